"""The tests of the engine's rooms pass where the agents' rooms cannot be imported, and none of them is skipped for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.source_tree import PROJECT
from tools.without_agents import REFUSED

ROOMS = (
    "_cython",
    "api",
    "engine/calls",
    "engine/checkpoint",
    "codecs",
    "connectors",
    "engine/delivery",
    "engine/exchange",
    "kafka",
    "engine/operators",
    "engine/plan",
    "engine/runtime",
    "sql",
    "engine/state",
)


UNIT = PROJECT / "tests" / "unit"
FILES_OF_A_PART = 13  # the 37 of the connectors took one interpreter two minutes, for which all others had to wait


def parts() -> list[Any]:
    """The files of each room, some at a time."""
    found = []
    for room in ROOMS:
        files = sorted(os.fspath(file.relative_to(PROJECT)) for file in (UNIT / room).rglob("test_*.py"))
        count = -(-len(files) // FILES_OF_A_PART)
        found += [pytest.param(files[part::count], id=f"{room}-{part}") for part in range(count)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("files", parts())
def test_the_tests_of_a_room_of_the_engine_need_no_room_of_the_agents(files: list[str], tmp_path: Path) -> None:
    options = [
        "-q",
        "-m",
        "not slow",
        "-n",
        "0",
        "-p",
        "no:benchmark",
        "-p",
        "no:cacheprovider",
        "-p",
        "tools.without_agents",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-rs", f"--basetemp={tmp_path / 'made'}", *files],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert REFUSED not in done.stdout
