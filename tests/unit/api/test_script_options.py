"""`app.main(sys.argv[1:])`: a script takes options of `sabot run`."""

import subprocess
import sys

import pytest

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


def test_a_script_takes_the_options_of_sabot_run(run):
    first = run("--parallelism", "2", "--until", "1767225600000")
    assert (first.stdout, first.returncode) == ("2 1767225600000 2\n", 0), first.stderr
    assert run().stdout == "1 None 0\n"  # all rows were read before
    assert run("--fresh", "--until", "now", "--loglevel", "error").stdout == "1 now 2\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--paralelism", "2"], "shop.py: error: unrecognized arguments: --paralelism"),
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
