"""The drawings of plans in README and the documents are those that `sabot plan` makes, and the pictures of the console are small.
`make pictures` makes them anew.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

import pytest

from tools.command_line import sabot_says
from tools.source_tree import PROJECT

DRAWINGS = PROJECT / "docs" / "drawings"
PHOTOS = PROJECT / "docs" / "pictures"  # of the console, by tests/integration/test_console_pictures.py
PICTURES = {"fraud": "examples.fraud:app", "shop": "shop:app"}  # by the name of the file: the app


def drawn(target: str, folder: Path) -> str:
    """The drawing of an app of the examples, or of the program of docs/operations.md."""
    program = re.search(r"^```python\n(.*?)^```", (PROJECT / "docs" / "operations.md").read_text(), re.M | re.S)
    assert program is not None
    (folder / "shop.py").write_text(program[1])
    before, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(PROJECT)]
    try:
        done = sabot_says("plan", target, "--svg", "-")
    finally:
        os.chdir(before)
        sys.path[:] = path
        sys.modules.pop("shop", None)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_the_plan_of_its_app(name: str, tmp_path: Path) -> None:
    assert (DRAWINGS / f"{name}.svg").read_text() == drawn(PICTURES[name], tmp_path), (
        "run `make pictures`, and look at them"
    )


def test_each_picture_is_shown_somewhere() -> None:
    pages = [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]
    shown = {
        name
        for page in pages
        for name in re.findall(r"\]\((?:docs/)?((?:drawings|pictures)/\w+\.\w+)\)", page.read_text())
    }
    assert {path.stem for path in DRAWINGS.glob("*.svg")} == PICTURES.keys()
    made = {f"{each.parent.name}/{each.name}" for folder in (DRAWINGS, PHOTOS) for each in folder.iterdir()}
    assert made - shown == set()


def test_the_pictures_of_the_console_are_small() -> None:
    assert {path.name: size for path in PHOTOS.iterdir() if (size := path.stat().st_size) > 150_000} == {}


if __name__ == "__main__":
    DRAWINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name, target in PICTURES.items():
            (DRAWINGS / f"{name}.svg").write_text(drawn(target, Path(scratch)))
            print(DRAWINGS / f"{name}.svg")
