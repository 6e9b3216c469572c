"""The command `sabot` for the tests: in a process of its own, or inside this one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import sabot
from sabot.cli import commands

SABOT = (sys.executable, "-P", "-c", "from sabot.cli import main; main()")
ENV = {**os.environ, "PYTHONPATH": str(Path(sabot.__file__).parents[1]), "COLUMNS": "100", "NO_COLOR": "1"}


def sabot_does(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*SABOT, *words], cwd=folder, env=ENV, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


@contextmanager
def sabot_running(folder: Path, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """The command in the background, once it has printed its first line on stdout."""
    command = [*SABOT, *words]
    with subprocess.Popen(
        command, cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            if not first:
                raise AssertionError(process.communicate(timeout=60)[1])
            yield process
        finally:
            process.kill()


def sabot_says(*words: object) -> Any:
    return CliRunner().invoke(commands._cli, [str(word) for word in words], catch_exceptions=False)


def lines(*words: object) -> list[dict[str, Any]]:
    done = sabot_says(*words)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
