"""What `make test` leaves to `make slow`, and files that `make slow` does not import, by what they say."""

import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.drawing import leave_cases_to_slow
from tools.turns import ONLY_SLOW, check_words, may_be_slow

ROOT = Path(__file__).parents[2]


def item(path: Path, *marks: str, obj: Any = None) -> Any:
    return SimpleNamespace(path=path, obj=obj, get_closest_marker=lambda name: name in marks or None)


@given(st.none())
def a_property(nothing: None) -> None:
    """What Hypothesis makes of a function."""


@pytest.mark.parametrize(("marks", "obj"), [(["slow"], None), ([], a_property)])
def test_a_file_that_make_slow_would_leave_out_wrongly_is_an_error(tmp_path: Path, marks: list[str], obj: Any) -> None:
    silent, telling = tmp_path / "silent.py", tmp_path / "telling.py"
    silent.write_text("from others import *\n")
    telling.write_text("from others import *  # slow, hypothesis\n")
    assert not may_be_slow(silent)
    check_words([item(silent), item(telling, *marks, obj=obj)])
    with pytest.raises(pytest.UsageError, match=r"tests of silent\.py are slow"):
        check_words([item(silent, *marks, obj=obj)])


def test_make_slow_asks_for_what_the_files_are_looked_through_for() -> None:
    [line] = re.findall(r"^slow:.*\n(?:#.*\n)*\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f'-m "{ONLY_SLOW}"' in line


def kept(marks: dict[str, list[Any]]) -> list[str]:
    """Of cases with these marks those that stay in `make test`."""
    cases = [
        SimpleNamespace(
            nodeid=name,
            get_closest_marker=lambda mark, has=has: next((each for each in has if each.name == mark), None),
            add_marker=lambda mark, has=has: has.append(getattr(pytest.mark, mark).mark),
        )
        for name, has in marks.items()
    ]
    leave_cases_to_slow(cases)  # type: ignore[arg-type]
    return [each.nodeid for each in cases if each.get_closest_marker("slow") is None]


def few(count: int) -> Any:
    return pytest.mark.one_in(count, "why").mark


def test_each_test_with_one_in_keeps_a_case() -> None:
    for count, cases in product(range(1, 13), range(1, 41)):
        stay = kept({f"a.py::test_{count}[{case}]": [few(count)] for case in range(cases)})
        assert 1 <= len(stay) <= -(-cases // count), (count, cases)
    assert len(kept({"a.py::test_a": [few(6)], "a.py::test_b": [few(6)], "a.py::test_c[1]": []})) == 3


def test_a_case_that_is_slow_by_itself_is_not_the_one_that_stays() -> None:
    for slow in range(4):
        marks = {f"a.py::test[{case}]": [few(4)] for case in range(4)}
        marks[f"a.py::test[{slow}]"].append(pytest.mark.slow.mark)
        assert len(kept(marks)) == 1, slow


@pytest.mark.parametrize(("rows", "columns", "count"), [(4, 3, 3), (6, 2, 2), (5, 4, 4), (6, 6, 6)])
def test_each_value_of_each_parameter_stays_in_a_case(rows: int, columns: int, count: int) -> None:
    stay = kept({f"a.py::test[{row}-{column}]": [few(count)] for row, column in product(range(rows), range(columns))})
    pairs = [re.findall(r"\d+", name) for name in stay]
    assert len(stay) == rows * columns // count
    assert {row for row, _ in pairs} == {str(row) for row in range(rows)}
    assert {column for _, column in pairs} == {str(column) for column in range(columns)}
