"""Processes that are forked from a warm interpreter are what they would be without one: children of the test, with their own program,
folder, environment and end.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("warm_starts")

SAYS = """
import os, sys
print("sabot" in sys.modules, sys.argv[1:], os.getcwd(), os.environ["WORD"], os.getppid(), sys.stdin.read())
sys.exit(3)
"""
FAILS = """
import sys
print("sabot" in sys.modules, __file__, __name__, flush=True)
sys.stdin.read()
1 / 0
"""


def environment(word: str) -> dict[str, str]:
    return {
        **os.environ,
        "WORD": word,
        "LC_OF_THIS_TEST": word,
    }  # no other test asks for an interpreter with this variable


@pytest.mark.parametrize("warm", [False, True])  # the second one is made from what the first one has asked for twice
def test_a_process_has_its_words_folder_environment_and_code(tmp_path: Path, warm: bool) -> None:
    command = [sys.executable, "-P", "-c", SAYS, "a", "b c"]
    for _ in range(2):
        done = subprocess.run(
            command, input="said", capture_output=True, text=True, cwd=tmp_path, env=environment("one"), check=False
        )
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout == f"{warm} ['a', 'b c'] {tmp_path} one {os.getpid()} said\n"


@pytest.mark.parametrize("warm", [False, True])
def test_a_process_is_killed_as_any_other_and_an_error_ends_it_with_1(tmp_path: Path, warm: bool) -> None:
    program = tmp_path / "program.py"
    program.write_text(FAILS)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for code in (-signal.SIGKILL, 1):
        with subprocess.Popen([sys.executable, program], env=environment("two"), text=True, **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"{warm} {program} __main__\n"
            if code < 0:
                process.kill()
            _, errors = process.communicate("", timeout=60)
            assert process.returncode == code
            assert code < 0 or errors.endswith("ZeroDivisionError: division by zero\n")


PARENT = """
import os, subprocess, sys
says = "import os, sys; print('sabot' in sys.modules, os.getpgid(0) == os.getpid(), os.getppid(), end=' ', flush=True); sys.exit(5)"
done = subprocess.run([sys.executable, "-P", "-c", says], process_group=0)
print(done.returncode, os.getpid())
"""


@pytest.mark.parametrize("warm", [False, True])
def test_children_of_a_fork_are_forks_too_and_lead_their_groups(warm_children: None, warm: bool) -> None:
    for _ in range(2):
        command = [sys.executable, "-P", "-c", PARENT]
        done = subprocess.run(command, capture_output=True, text=True, env=environment("three"), check=True)
        imported, leads, parent, code, process = done.stdout.split()
        assert (imported, leads, code, parent) == (str(warm), "True", "5", process)


STARTS = """
import json, os, subprocess, sys
def main():  # --rounds is asked for where a script has it: "--rounds"
    shown = subprocess.run([sys.executable, __file__, "child"], capture_output=True, text=True, check=True).stdout
    print(json.dumps([sys.argv[1:], "sabot.sql.session" in sys.modules, json.loads(shown), __file__]))
if sys.argv[1] == "child":
    print(json.dumps(["sabot.sql.session" in sys.modules, os.getcwd()]))
else:
    main()
"""


def test_benchmarks_and_what_they_start_are_forks_of_one_interpreter_and_one_that_fails_ends_them(
    tmp_path: Path,
) -> None:
    for name, text in (
        ("starts.py", STARTS),
        ("fails.py", "raise SystemExit('a wrong answer')"),
        ("never.py", "1 / 0"),
    ):
        (tmp_path / name).write_text(text)
    words = [sys.executable, Path(__file__).parent / "tools/smokes.py", "7", "starts.py", "fails.py", "never.py"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    head, line, *more = done.stdout.splitlines()
    assert head == "== starts.py"
    assert json.loads(line) == [
        ["--rows", "7", "--rounds", "1"],
        True,
        [True, str(tmp_path)],
        str(tmp_path / "starts.py"),
    ]
    assert more == ["== fails.py"]
    assert done.stderr.splitlines() == ["a wrong answer", "fails.py --rows 7: ended with 1"]
    assert done.returncode == 1
