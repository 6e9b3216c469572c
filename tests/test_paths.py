"""Files and modules that documents, docstrings and comments name are there: a reader who follows a path arrives."""

import re
from collections import defaultdict
from pathlib import Path

from tools.source_tree import PROJECT, ROOT

SUFFIXES = (".md", ".py", ".pyx", ".pxd", ".pyi", ".h", ".cc", ".sh", ".yml")
# A path from the project's root, anywhere in a text.
WHOLE = re.compile(r"(?<![\w/.{}\"'-])(?:tests|sabot|docs|benchmarks|tools|examples)/[\w/.-]*\w")
# A path from the package's root, between backticks: `engine/runtime/tasks/task`, `engine/runtime/tasks/task.StreamTask`, `api/nodes/`.
ROOM = re.compile(r"`(?:sabot/)?([a-z_]+(?:/[a-z_]+)+/?)(?:\.(\w+))?[`(]")

NOT_OURS = {  # paths of a user's project, of a job's directory, of folders that tests make, and of what Python makes
    "docs/file",
    "docs/key",
    "examples/app.py",
    "state/checkpoints",
    "tests/unit/__pycache__",
}
MADE_BY_TESTS = {"test_connector.py", "test_it.py", "test_page.py", "test_shop.py"}

HINT = "the file on the left names these, which do not exist: correct the path or the name there"


def texts() -> dict[str, str]:
    """All that a reader meets, by its path: documents, and code with its docstrings and comments."""
    folders = ("sabot", "tests", "docs", "benchmarks", "examples")
    paths = [path for folder in folders for path in (PROJECT / folder).rglob("*") if path.suffix in SUFFIXES]
    paths += [PROJECT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "SECURITY.md", "Makefile")]
    return {path.relative_to(PROJECT).as_posix(): path.read_text() for path in paths if path != Path(__file__)}


def is_there(path: Path) -> bool:
    """As a folder, as a file, as a module without its suffix, or as a decision by its number."""
    names = [path.name, *(path.name + suffix for suffix in SUFFIXES)]
    return any(path.with_name(name).exists() for name in names) or any(path.parent.glob(f"{path.name}-*.md"))


def test_paths_from_the_project_exist() -> None:
    wrong = defaultdict(list)
    for name, text in texts().items():
        for found in sorted(set(WHOLE.findall(text)) - NOT_OURS):
            if not is_there(PROJECT / found):
                wrong[name].append(found)
    assert wrong == {}, HINT


def test_files_of_tests_that_are_named_exist() -> None:
    """`test_dlq.py`, with its folder or without."""
    files = {path.name for path in (PROJECT / "tests").rglob("test_*.py")}
    wrong = {}
    for name, text in texts().items():
        if gone := set(re.findall(r"(?<![\w*])test_\w+\.py", text)) - files - MADE_BY_TESTS:
            wrong[name] = sorted(gone)
    assert wrong == {}, HINT


def test_modules_of_a_room_exist_and_have_what_is_named() -> None:
    """`engine/runtime/tasks/task.StreamTask`: a module of the package, and a name that it has."""
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()}
    wrong = defaultdict(list)
    for name, text in texts().items():
        for path, what in set(ROOM.findall(text)):
            if path in NOT_OURS or path.partition("/")[0] not in rooms:
                continue
            module = ROOT / path
            if f".{what}" in SUFFIXES or not what:
                there = is_there(module)
            else:
                sources = [module.with_name(module.name + suffix) for suffix in (".py", ".pyx")]
                there = any(each.exists() and re.search(rf"\b{what}\b", each.read_text()) for each in sources)
            if not there:
                wrong[name].append(f"{path}.{what}" if what else path)
    assert wrong == {}, HINT


def test_the_walk_sees_a_path_that_is_not_there() -> None:
    """Guards the guard: were the patterns blind, every text would pass."""
    assert WHOLE.findall("see tests/nowhere/test_x.py, and `sabot/gone.py`.") == [
        "tests/nowhere/test_x.py",
        "sabot/gone.py",
    ]
    assert ROOM.findall("`sabot/gone/away.py` and `engine/gone.Task`") == [
        ("gone/away", "py"),
        ("engine/gone", "Task"),
    ]
    assert not is_there(ROOT / "engine" / "gone")
