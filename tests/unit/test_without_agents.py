"""`make test` runs the tests of the engine's rooms where the rooms of the agents cannot be imported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.source_tree import PROJECT
from tools.without_agents import of_the_engine

PLANTED = {
    "a test that imports": "def test_it():\n    import sabot.jobs.host\n",
    "a test that is skipped": "import pytest\ndef test_it():\n    pytest.importorskip('sabot.jobs.host')\n",
    "a file that is skipped": "import pytest\npytest.importorskip('sabot.jobs.host')\n",
}


def test_the_files_of_the_engine_are_known_by_their_folder() -> None:
    rooms = {each.name for each in (PROJECT / "sabot" / "engine").iterdir() if (each / "__init__.py").exists()}
    tested = {room for room in rooms if of_the_engine(f"tests/unit/engine/{room}/test_core.py")}
    assert rooms - tested == {"letters", "workers"}
    assert of_the_engine("tests/unit/sql/test_table_formats.py::turn")
    assert not of_the_engine("tests/unit/jobs/test_core.py")


@pytest.mark.one_in(3, "a run of pytest with two workers each")
@pytest.mark.parametrize("planted", PLANTED)
def test_a_test_of_the_engine_that_needs_a_room_of_the_agents_fails(planted: str, tmp_path: Path) -> None:
    """Other files of the same run may import it, whichever worker has them."""
    for place in ("unit/sql/test_table_formats.py", "unit/jobs/test_core.py", "unit/jobs/test_host.py"):
        file = tmp_path / "tests" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(PLANTED[planted] if "sql" in place else "def test_it():\n    import sabot.jobs.host\n")
    shutil.copy(PROJECT / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    words = ["-q", "-p", "no:benchmark", "-n", "1", "--dist", "loadfile", "-m", "not slow", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{PROJECT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "which is a room of the agents" in done.stdout
    assert "1 failed, 2 passed" in done.stdout or "2 passed, 1 error" in done.stdout, done.stdout
