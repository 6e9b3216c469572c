"""What `make` does before anything else: the checks, the virtual environment, the build, the stamp. Python is a fake that logs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE_PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$SET_UP_LOG"
case "$*" in
*ensurepip* | *Python.h*) [ "$BARE" != yes ] ;;
*"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
*"pip config list"*) printf '%s\\n' "$PIP_SETTINGS" ;;
*"pip install"*" uv") [ "$NO_UV" != yes ] && cp "$0" "${0%/*}/uv" ;;
*"pip install"*-e*) [ "$INTERRUPTED" != yes ] ;;
*"pip install"*test-requires*) [ "$OFFLINE" != yes ] ;;
esac
"""
TOOLS = ("cat", "cp", "grep", "make", "mkdir", "printf", "rm", "sh", "uname")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "setup.py", "tools/setup.sh"):
        target = tmp_path / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"{tool} is needed by this test"
        (tmp_path / "bin" / tool).symlink_to(found)
    for name, text in (("python3", FAKE_PYTHON), ("c++", "#!/bin/sh\n"), ("apt-get", "#!/bin/sh\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "tree"


def set_up(tree: Path, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "CXX", "CC", "PYTHON"))}
    clean |= {"PATH": str(tree.parent / "bin"), "SET_UP_LOG": str(tree.parent / "log"), "PIP_SETTINGS": ""} | env
    stamp = ".venv/.sabot"
    return subprocess.run(["make", *words, stamp], cwd=tree, env=clean, capture_output=True, text=True, timeout=60)


def calls(tree: Path, words: str) -> int:
    log = tree.parent / "log"
    return sum(words in line for line in log.read_text().splitlines())


def test_a_finished_set_up_is_not_done_again_until_a_source_changes(tree: Path) -> None:
    assert set_up(tree).returncode == 0
    assert (tree / ".venv" / ".sabot").exists()
    assert calls(tree, "pip install") == 4
    assert "up to date" in set_up(tree).stdout
    later = (tree / ".venv" / ".sabot").stat().st_mtime + 10
    os.utime(tree / "setup.py", (later, later))
    assert set_up(tree).returncode == 0
    assert calls(tree, "pip install") == 8
    assert calls(tree, "-m venv") == 1


def test_an_environment_of_another_checkout_is_left_alone(tree: Path) -> None:
    """A worktree whose environment was a link to that of the main checkout replaced the main one's Sabot by its own."""
    main = tree.parent / "main"
    folder = Path("lib/python3/site-packages/sabot-folder.pth")
    (main / ".venv" / folder).parent.mkdir(parents=True)
    (main / ".venv" / folder).write_text(f"{main}\n")
    shutil.copytree(tree / "tools", main / "tools")
    (tree / ".venv").symlink_to(main / ".venv")
    done = set_up(tree)
    assert done.returncode != 0
    assert f"sabot: .venv belongs to the checkout {main}, where this build would replace Sabot." in done.stderr
    assert done.stderr.splitlines()[1].strip() == "rm -rf .venv"
    assert sorted(path.name for path in (main / ".venv").iterdir()) == ["lib"]
    shutil.rmtree(main / "tools")  # that checkout is gone: this environment is ours
    assert set_up(tree).returncode == 0
    assert calls(tree, "-m venv") == 1


@pytest.mark.parametrize(
    ("why", "by_uv"),
    [({}, 2), ({"NO_UV": "yes"}, 0), ({"PIP_SETTINGS": "global.index-url='https://index.example'"}, 0)],
)
def test_uv_installs_unless_pip_is_told_of_an_index_or_has_no_uv(tree: Path, why: dict[str, str], by_uv: int) -> None:
    assert set_up(tree, **why).returncode == 0
    assert calls(tree, "pip install -q --python .venv/bin/python -r") == by_uv
    assert calls(tree, "pip install -q --no-compile -r") == 2 - by_uv


def test_an_interrupted_set_up_is_not_taken_for_a_finished_one(tree: Path) -> None:
    assert set_up(tree, INTERRUPTED="yes").returncode != 0
    assert not (tree / ".venv" / ".sabot").exists()
    assert set_up(tree).returncode == 0
    assert (tree / ".venv" / ".sabot").exists()
    assert calls(tree, "-m venv") == 2, "a half-filled environment is made anew"


def test_what_cannot_be_installed_beside_the_build_ends_the_set_up(tree: Path) -> None:
    assert set_up(tree, OFFLINE="yes").returncode != 0
    assert calls(tree, "--no-deps -e .") == 1
    assert not (tree / ".venv" / ".sabot").exists()
    assert set_up(tree).returncode == 0
    assert (tree / ".venv" / ".sabot").exists()


def test_what_an_interrupted_build_left_behind_is_built_again(tree: Path) -> None:
    """The object of a killed linker is newer than its source, so nothing else would ever rebuild it."""
    assert set_up(tree).returncode == 0
    later = (tree / ".venv" / ".sabot").stat().st_mtime + 10
    os.utime(tree / "setup.py", (later, later))
    half = tree / "sabot" / "_cython" / "batch.so"
    half.parent.mkdir(parents=True)
    half.touch()
    assert set_up(tree, INTERRUPTED="yes").returncode != 0
    assert half.exists()
    assert set_up(tree).returncode == 0
    assert not half.exists()
    assert calls(tree, "-m venv") == 1


def test_what_is_missing_is_named_with_the_one_line_that_installs_it(tree: Path) -> None:
    (tree.parent / "bin" / "c++").unlink()
    done = set_up(tree, BARE="yes")
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert lines[0] == "sabot: missing: the venv module, the Python headers, a C++ compiler. This line installs it:"
    assert lines[1].strip() == "sudo apt-get install -y python3 python3-venv python3-dev g++ make"
    assert not (tree / ".venv").exists()


def test_no_python_at_all_is_said(tree: Path) -> None:
    (tree.parent / "bin" / "python3").unlink()
    done = set_up(tree)
    assert done.returncode != 0
    assert "missing: Python 3.11 or newer." in done.stderr
