"""`sabot run --reload`: the program starts again when a file of it changes; what does not parse is told and waited out."""

import signal
import subprocess
from pathlib import Path

import pytest

from sabot.cli.reloading import program_files
from sabot.cli.run import words_of
from tools.command_line import ENV, SABOT, child

PROGRAM = """
from sabot import App
app = App("dev", state="state")

@app.on_start
async def say():
    print("{word}", flush=True)

@app.agent("words")
async def read(ctx): ...
"""


def replace(path: Path, text: str) -> None:
    """At once, as editors do."""
    new = path.with_name("new.txt")
    new.write_text(text)
    new.rename(path)


@pytest.mark.slow  # three starts of a program
def test_a_change_starts_the_program_again_and_an_error_of_syntax_is_waited_out(tmp_path: Path) -> None:
    program = tmp_path / "dev.py"
    program.write_text(PROGRAM.format(word="one"))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(*SABOT, "run", "dev:app", "--reload", "--fresh", cwd=tmp_path, env=ENV, **pipes) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "one\n"
        replace(program, "app = App(")
        for line in running.stderr:
            if "SyntaxError" in line:
                break
        assert (
            line
            == f"sabot: {program}:1: SyntaxError: '(' was never closed; the program runs on as it was until the file is corrected\n"
        )
        replace(program, PROGRAM.format(word="three"))
        assert running.stdout.readline() == "three\n"
        replace(program, "raise RuntimeError('no')")
        for line in running.stderr:
            if "has ended" in line:
                break
        assert line == "sabot: the program has ended with code 2; it starts again when one of its files changes\n"
        replace(program, PROGRAM.format(word="four"))
        assert running.stdout.readline() == "four\n"
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=60)[1]
        assert running.returncode in (0, 128 + signal.SIGTERM), said
        assert "Traceback" not in said


def test_options_that_are_for_once_are_left_out_when_it_starts_again() -> None:
    settings = {
        "broker": None,
        "fresh": True,
        "from_": "there",
        "drop": ["a", "b"],
        "metrics_port": 0,
        "restart": "none",
    }
    assert words_of(settings, again=True) == ["--metrics-port", "0", "--restart", "none"]
    first = ["--fresh", "--from", "there", "--drop", "a", "--drop", "b", "--metrics-port", "0", "--restart", "none"]
    assert words_of(settings, again=False) == first


def test_only_files_of_the_program_are_looked_at(tmp_path: Path) -> None:
    for name in ("app.py", "parts/more.py", "parts/data.csv", ".git/hook.py", "env/lib/other.py", "__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    before = program_files(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in before} == {"app.py", "parts/more.py"}
    replace(tmp_path / "app.py", "x = 1")
    assert program_files(tmp_path) != before
