"""Other processes for the tests: any command, and `sabot`, which can also be called inside this process."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer.testing
from typer.testing import CliRunner

import sabot
from sabot.cli import commands
from tools.agent_tools import PATIENCE

SABOT = (sys.executable, "-P", "-c", "from sabot.cli import main; main()")
ENV = {**os.environ, "PYTHONPATH": str(Path(sabot.__file__).parents[1]), "COLUMNS": "100", "NO_COLOR": "1"}


# Each call of a CliRunner would make all commands anew, which is half of what most calls take.
typer.testing._get_command = functools.cache(typer.testing._get_command)

CHILD_SECONDS = 900.0  # longer than any test waits on purpose


@contextmanager
def child(*command: object, **options: Any) -> "Iterator[subprocess.Popen[str]]":
    """A process with text on its pipes, killed at the end of the block, and after CHILD_SECONDS. So a test whose child does not end fails;
    the end of `with Popen(...)` waits for ever.
    """
    with subprocess.Popen([str(word) for word in command], text=True, **options) as process:
        alarm = threading.Timer(CHILD_SECONDS, process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            process.kill()


def sabot_does(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*SABOT, *words],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def sabot_running(folder: Path, *words: str) -> "Iterator[subprocess.Popen[str]]":
    """The command in the background, once it has printed its first line on stdout."""
    with child(*SABOT, *words, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            raise AssertionError(process.communicate(timeout=PATIENCE)[1])
        yield process


def sabot_says(*words: object) -> Any:
    return CliRunner().invoke(commands.cli, [str(word) for word in words], catch_exceptions=False)


def lines(*words: object) -> list[dict[str, Any]]:
    done = sabot_says(*words)
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
