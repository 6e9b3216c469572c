"""What Kafka clients take of this process: their threads and its memory."""

import contextlib
import resource
from pathlib import Path

import pytest

__all__ = ["LINUX", "MIB", "rss", "threads"]

MIB = 2**20
LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads and memory there")


def threads() -> int:
    """How many threads of librdkafka there are."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append(task.read_text())
    return sum(name.startswith("rdk:") for name in names)


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
