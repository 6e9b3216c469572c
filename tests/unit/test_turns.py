"""Files that `make slow` does not import, by what they say."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
