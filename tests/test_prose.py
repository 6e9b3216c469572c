"""Habits of prose that a pattern can see: in docstrings, and in pages that are too wide to read.

A pattern sees a third of what readers stumble over, so this is a floor and no measure of good prose. `prose.json` has, by room and by page,
how many of them were left when the rule was made. A number may only fall: write the change's own prose without them, and lower the number
when some are gone (`python tests/test_prose.py` writes the file anew, and refuses to raise one).
"""

import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from tools.source_tree import PROJECT, nodes_of, sources

FILE = Path(__file__).parent / "prose.json"
WIDEST = 120  # characters of a line of Markdown, and of a cell of a table
HABITS = {
    "opens without a verb or a noun": r"^(?:See `|As (?:of |`)|Of |In place of|Before an? |At an? [a-z]+:|The same[,.]|The answer\.)",
    "opens with a relative pronoun": r"^(?:What|Whether|Who|Whose|Those|Its)\b",
    "a relative pronoun as a noun": r"[;:] what (?:it|they|was|is)\b|, (?:and )?what (?:it|they|was|is)\b|\b(?:of|opens|or|so) what\b",
    "a parameter without its noun": r"(?:^|[.;] )[a-z_]+: (?:of|for|by|as|whether a letter|the number of)\b",
    "None without its clause": r"\bNone: (?!there|it is)(?:an?|no|nobody|where)\b",
}


def habits_of(text: str) -> list[str]:
    """The habits that a docstring has."""
    flat = re.sub(r"\s+", " ", text.strip())
    return [name for name, pattern in HABITS.items() if re.search(pattern, flat, re.IGNORECASE)]


def docstrings() -> dict[str, list[str]]:
    """Returns the places of docstrings with a habit, and the habits, by room."""
    found = defaultdict(list)
    for name, path in sources(".py").items():
        for kind in (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef):
            for node in nodes_of(path, kind):
                if habits := habits_of(ast.get_docstring(node) or ""):
                    room = name.partition("/")[0].removesuffix(".py")
                    found[room].append(f"sabot/{name}:{node.lineno} {node.name}: {', '.join(habits)}")
    return found


def wide_lines(page: str) -> list[str]:
    """Returns the lines and cells of a page of Markdown that are too wide. Blocks of code are left out."""
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL).splitlines()
    cells = [cell.strip() for line in prose if line.startswith("|") for cell in line.split("|")]
    return [text for text in [*(line for line in prose if not line.startswith("|")), *cells] if len(text) > WIDEST]


def pages() -> dict[str, list[str]]:
    """Returns the lines and cells that are too wide, by page."""
    paths = [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "benchmarks").rglob("*.md")]
    return {path.relative_to(PROJECT).as_posix(): wide_lines(path.read_text()) for path in paths}


def found() -> dict[str, dict[str, list[str]]]:
    places = {"docstrings": docstrings(), "pages": pages()}
    return {kind: {name: texts for name, texts in sorted(by.items()) if texts} for kind, by in places.items()}


def more_than(left: dict[str, int], now: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the rooms or pages with more places than `left` has for them, each with all of its places, new or not."""
    return {name: places for name, places in now.items() if len(places) > left.get(name, 0)}


@pytest.mark.parametrize("kind", ["docstrings", "pages"])
def test_new_prose_has_none_of_the_habits(kind: str) -> None:
    worse = more_than(json.loads(FILE.read_text())[kind], found()[kind])
    hint = f"write one of these anew: a line of a page has at most {WIDEST} characters, and HABITS has the patterns"
    assert worse == {}, "\n".join([hint, *(f"{name}: {place}" for name, places in worse.items() for place in places)])


@pytest.mark.parametrize(
    ("text", "habit"),
    [
        ("Of a loop that is dead.", "opens without a verb or a noun"),
        ("Whether anybody does now.", "opens with a relative pronoun"),
        ("Reads a page, or what it has.", "a relative pronoun as a noun"),
        ("Reads a page. size: of a page.", "a parameter without its noun"),
        ("The message; None: no more is read.", "None without its clause"),
    ],
)
def test_a_habit_is_seen(text: str, habit: str) -> None:
    assert habit in habits_of(text)


def test_plain_prose_has_no_habit() -> None:
    assert habits_of("Returns the window that ends at `end`, or None if no row has arrived for it.") == []


def test_a_wide_line_and_a_wide_cell_are_seen() -> None:
    wide = "a" * (WIDEST + 1)
    assert wide_lines(f"{wide}\n| a | {wide} |\n| b | c |\nshort\n```\n{wide}\n```\n") == [wide, wide]


def test_the_places_of_a_room_that_got_worse_are_named() -> None:
    assert more_than({"api": 1}, {"api": ["a", "b"], "plan": []}) == {"api": ["a", "b"]}


if __name__ == "__main__":
    left, now = json.loads(FILE.read_text()) if FILE.exists() else None, found()
    worse = (
        []
        if left is None
        else [place for kind in now for places in more_than(left[kind], now[kind]).values() for place in places]
    )
    if worse:
        sys.exit("these rooms and pages have more than before:\n" + "\n".join(worse))
    counts = {kind: {name: len(places) for name, places in by.items()} for kind, by in now.items()}
    FILE.write_text(json.dumps(counts, indent=2) + "\n")
