"""A worker that the system's memory killer ends is named as that, and the app goes on: in a control group that may have little memory."""

import asyncio
import contextlib
import re
import sys
import uuid
from pathlib import Path

import pytest

from tools.agent_tools import manifests, read_lines, until, write_lines
from tools.stream_tools import answers, expected, payments

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, where

from tools.fault_tools import lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.slow]  # some six processes

SECONDS = 150
LIMIT_BYTES = 900_000_000  # more than a coordinator and two workers need
KINDS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))


@pytest.fixture
async def group():
    """The folder of a control group that may have LIMIT_BYTES."""
    folder = limited()
    if folder is None:
        pytest.skip("a control group for memory cannot be made here: that takes root, and a system that hands it over")
    yield folder
    await until(lambda: removed(folder), "the end of all in the control group")


def limited():
    """A new control group, of version 1 or 2; None where there can be none."""
    for root, limit in KINDS:
        with contextlib.suppress(OSError):
            folder = root / f"sabot-{uuid.uuid4().hex[:8]}"
            folder.mkdir()
            try:
                (folder / limit).write_text(str(LIMIT_BYTES))
                return folder
            except OSError:
                folder.rmdir()
    return None


def removed(folder):
    """Whether it is gone, for which no process may be left in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
    return not folder.exists()


async def test_a_worker_that_had_too_much_memory_is_named_as_that_and_the_app_goes_on(tmp_path, group):
    rows, out, log, hungry = payments(3000), tmp_path / "out.ndjson", tmp_path / "log", tmp_path / "hungry"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    hurry = tmp_path / "hurry"
    env |= {"MINUTES_SLOW": "0.2", "MINUTES_HURRY": str(hurry), "MINUTES_HUNGRY": str(hungry)}
    words = ["minutes_app:app", *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1", "--workers", "2"]
    with running(log, *words, "--restart", "fixed(1, 100ms)", folder=HERE, **env) as process:
        (group / "cgroup.procs").write_text(str(process.pid))  # long before it has workers, which inherit it
        known = manifests(tmp_path / "state" / "checkpoints")
        await until(
            lambda: process.poll() is not None or manifests(tmp_path / "state" / "checkpoints") - known,
            "a checkpoint",
            patience=SECONDS,
        )
        hungry.touch()
        hurry.touch()
        assert await asyncio.to_thread(process.wait, SECONDS) == 0, lines_of(log)
    assert re.search(
        r"worker [12] \(pid \d+\) was killed by the system because memory ran out"
        r" \(the limit of its control group is 900 MB\)(; it had [\d,]+ MB a second before)?",
        lines_of(log),
    ), lines_of(log)
    found = read_lines(out)
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows)), "a window came twice"
