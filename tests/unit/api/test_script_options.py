"""`app.main(sys.argv[1:])`: a script takes options of `sabot run`."""

import subprocess
import sys

import pytest

from sabot import UserError
from sabot.api.script_options import hint_with_program
from sabot.cli.running import guarded

pytestmark = pytest.mark.usefixtures("warm_starts")

SCRIPT = """
import sys
from sabot import App

app = App("shop", broker="memory://", state="kept")
found = []
app.stream([{"n": 1}, {"n": 2}]).to(found)
if __name__ == "__main__":
    app.main(sys.argv[1:])
    print(app.settings.parallelism, app.settings.until, len(found))
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "shop.py").write_text(SCRIPT)

    def run(*words):
        return subprocess.run(
            [sys.executable, "shop.py", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    return run


@pytest.mark.slow  # two seconds of a core
def test_a_script_takes_the_options_of_sabot_run(run):
    first = run("--parallelism", "2", "--until", "1767225600000")
    assert (first.stdout, first.returncode) == ("2 1767225600000 2\n", 0), first.stderr
    assert run().stdout == "1 None 0\n"  # all rows were read before
    assert run("--fresh", "--until", "now", "--loglevel", "error").stdout == "1 now 2\n"


@pytest.mark.one_in(3, "a process each")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--paralelism", "2"], "unrecognized arguments: --paralelism 2 (did you mean --parallelism?)"),
        (
            ["--from=place"],
            "unrecognized arguments: --from=place (--from needs the command: sabot run module:app --from)",
        ),
        (["--web"], "unrecognized arguments: --web (--web needs the command: sabot run module:app --web)"),
        (["now"], "shop.py: error: unrecognized arguments: now\n"),
        (["--parallelism", "0"], "shop.py: error: "),
        (["--until", "tomorrow"], "shop.py: error: "),
    ],
)
def test_a_wrong_option_ends_the_script_with_its_name(run, words, message):
    ended = run(*words)
    assert message in ended.stderr
    assert (ended.returncode, ended.stdout) == (2, "")


def test_help_lists_the_options(run):
    assert "--checkpoint-interval TIME" in run("--help").stdout


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("start afresh (--fresh)", "start afresh (sabot run job:app --fresh)"),
        ("put the files back, or start with --fresh", "put the files back, or start with sabot run job:app --fresh"),
        ("--fresh --forget-effects, if it may be", "sabot run job:app --fresh --forget-effects, if it may be"),
        ("without --fresh the app resumes", "without --fresh the app resumes"),
        ("leave --fresh out; --freshly is no option", "leave --fresh out; --freshly is no option"),
    ],
)
def test_a_hint_names_the_command_that_takes_its_option(hint, said):
    assert hint_with_program(hint, "sabot run job:app") == said


def test_the_error_of_a_run_names_the_command_that_started_it(capsys):
    def work():
        raise UserError("the topic was made again", hint="start afresh (--fresh)")

    assert guarded(work, debug=False, program="sabot run job:app") == 1
    assert capsys.readouterr().err == "sabot: the topic was made again (start afresh (sabot run job:app --fresh))\n"


def test_the_error_of_a_script_names_the_script(tmp_path):
    (tmp_path / "job.py").write_text(
        """
import sys
from sabot import App, UserError

app = App("job", broker="memory://", state="kept")


@app.source(schema={"n": "int64"}, bounded=True)
def numbers(position):
    raise UserError("the numbers were made again", hint="start afresh (--fresh)")
    yield {"n": 1}


app.stream(numbers).to([])
app.main(sys.argv[1:])
"""
    )
    words = [sys.executable, "job.py", "--parallelism", "1"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "the numbers were made again" in ended.stderr
    assert "start afresh (python job.py --fresh)" in ended.stderr.splitlines()[-1]


MISSING = """
import sys
import sabot
from sabot import App

app = App("shop", broker="memory://")


@app.source(schema={"n": "int64"}, bounded=True)
def numbers(position):
    raise sabot.UserError("there are no numbers", hint="make some")
    yield {"n": 1}


app.stream(numbers).to([])
"""


@pytest.mark.one_in(2, "two processes each")
@pytest.mark.parametrize("call", ["app.main()", "app.main(sys.argv[1:])"])
def test_an_error_of_a_script_is_the_line_and_the_exit_code_of_sabot_run(tmp_path, call):
    (tmp_path / "shop.py").write_text(MISSING)
    (tmp_path / "script.py").write_text(MISSING + call)

    def run(*words):
        words = [sys.executable, *words]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    script, command = run("script.py"), run("-m", "sabot", "run", "shop:app")
    said = command.stderr.splitlines()[-1]
    assert said.startswith("sabot: ")
    assert said.endswith("(make some)")
    assert (script.stderr.splitlines()[-1], script.returncode) == (said, command.returncode)
    assert "Traceback" not in script.stderr


@pytest.mark.one_in(3, "a process each")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (MISSING + "app.main(['--loglevel', 'debug'])", "Traceback (most recent call last)"),
        (MISSING + "try:\n    app.main()\nexcept sabot.UserError:\n    raise ValueError('mine')", "ValueError: mine"),
        (
            "import sys\nsys.excepthook = lambda *error: print('hooked', file=sys.stderr)" + MISSING + "app.main()",
            "hooked",
        ),
    ],
    ids=["debug", "caught", "hook"],
)
def test_a_script_may_see_the_error_itself(tmp_path, script, said):
    (tmp_path / "shop.py").write_text(script)
    words = [sys.executable, "shop.py"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert said in ended.stderr
    assert ended.returncode == 1
