"""An address with a password that stands at a wrong place of the command line: the error names the place, and hides the password."""

import os
import subprocess
import sys

import pytest

ADDRESS = "kafka://u:hun@ter2@h:1"


@pytest.mark.one_in(12, "a process each")
@pytest.mark.parametrize(
    "words",
    [
        [ADDRESS],
        ["run", ADDRESS],
        ["run", "app:app", ADDRESS],
        ["run", "app:app", f"--{ADDRESS}"],
        ["run", "app:app", "--loglevel", ADDRESS],
        ["run", "app:app", "--parallelism", ADDRESS],
        ["plan", "app:app", "--against", ADDRESS],
        ["dlq", ADDRESS],
        ["dlq", "list", "x.dlq", ADDRESS],
        ["dlq", "show", "x.dlq", ADDRESS],
        ["savepoint", ADDRESS],
        ["jobs", ADDRESS],
    ],
    ids=lambda words: " ".join(words),
)
def test_a_misplaced_address_does_not_show_its_password(tmp_path, words):
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "app.py").write_text("import sabot\napp = sabot.App('x')\n")
    done = subprocess.run([sys.executable, "-m", "sabot", *words], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode in (1, 2)
    assert "ter2" not in done.stdout + done.stderr
    assert "hun" not in done.stdout + done.stderr
