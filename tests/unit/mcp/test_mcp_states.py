"""The tools that read state, over tables that a test gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest

from sabot.errors import UserError
from sabot.mcp import StateInfo, state_tools


class Given:
    """One checkpoint, with one table under any name."""

    checkpoint_id, created_ms = 7, 1_700_000_000_500

    def __init__(self, table: pa.Table, keys: list[str]) -> None:
        self._read = (table, keys)

    @contextmanager
    def open(self, checkpoint_id: int | None) -> Iterator["Given"]:
        yield self

    def kept(self) -> list[StateInfo]:
        return [StateInfo(name="totals", kind="agent", rows=None, text="")]

    def read(self, name: str, key: str | None) -> tuple[pa.Table, list[str]]:
        return self._read


def read(columns: dict[str, Any], keys: list[str] | None = None, **words: Any) -> Any:
    *_, state_read = state_tools(Given(pa.table(columns), keys or []).open)
    return state_read(name="totals", **words)


def test_an_answer_says_as_of_when() -> None:
    assert read({"k": ["a"]})["as_of"] == {"checkpoint": 7, "written": "2023-11-14T22:13:20.500+00:00"}


@pytest.mark.parametrize(
    ("column", "prefix", "found"),
    [
        (["apple", "apricot", None, "pear"], "ap", 2),
        ([b"apple", b"\xff", None], "ap", 1),
        ([12, 123, 21], "12", 2),
        (["a%b", "axb"], "a%", 1),
        (["a", "b"], "", 2),
    ],
)
def test_a_prefix_is_of_the_first_key_column_as_text(column: list[Any], prefix: str, found: int) -> None:
    assert read({"value": range(len(column)), "key": column}, ["key", "value"], prefix=prefix)["total"] == found


def test_a_page_ends_at_64_kb_and_the_cursor_goes_on() -> None:
    column = ["x" * 5000 for _ in range(40)]
    seen, cursor, pages = 0, None, 0
    while pages == 0 or cursor is not None:
        page = read({"v": column}, limit=1000, cursor=cursor)
        seen, cursor, pages = seen + len(page["rows"]), page["next"], pages + 1
    assert (seen, pages) == (40, 4)


def test_values_that_json_cannot_say_as_they_are_become_text() -> None:
    row = read({"b": [b"\x00\xff"], "t": pa.array([0], pa.timestamp("ms", "UTC"))})["rows"][0]
    assert row == {"b": "AP8=", "t": "1970-01-01T00:00:00Z"}


def test_a_column_of_json_is_data_and_a_text_among_it_stays_text() -> None:
    rows = read({"v": ['{"a":1}', "[2]", *['"t"'] * 1000, "no json", None]}, limit=1000)["rows"]
    assert [row["v"] for row in rows[:3]] == [{"a": 1}, [2], "t"]
    rows = read({"v": ['{"a":1}', *['"t"'] * 1000, "no json", None]}, cursor="7:1000")["rows"]
    assert [row["v"] for row in rows] == ["t", "no json", None]
    assert read({"v": ["5", "true"]})["rows"] == [{"v": "5"}, {"v": "true"}]


@pytest.mark.parametrize("cursor", ["", "7", "7:", ":1", "7:-1", "٧:١", "a:b"])
def test_a_cursor_that_no_page_gave_is_refused(cursor: str) -> None:
    with pytest.raises(UserError, match="give back what stands under next"):
        read({"v": ["a"]}, cursor=cursor)


def test_a_cursor_behind_the_end_gives_nothing() -> None:
    assert read({"v": ["a"]}, cursor="7:99")["rows"] == []


def test_a_field_of_an_agent_that_is_named_as_a_secret_is_hidden() -> None:
    """The state of an agent has a row for each field, whose name is a value of the column `key`."""
    rows = read({"key": ["password", "name", "api_key"], "value": ['"hunter2"', '"Ada"', '"sk-1"']}, ["key"])["rows"]
    assert "hunter2" not in str(rows)
    assert "sk-1" not in str(rows)
    assert [row["key"] for row in rows] == ["password", "name", "api_key"]
    assert "Ada" in str(rows[1])


@pytest.mark.parametrize("value", ['["hunter2"]', '{"ann": "hunter2"}', '"hunter2"'])
def test_lists_and_maps_that_are_named_as_secrets_are_hidden(value: str) -> None:
    """`ctx.list_state("api_key")` and `ctx.map_state("passwords")` have their names in the column `namespace`."""
    columns = {"namespace": ["desk.token/api_key", "desk.token/names", "desk.a/passwords"], "key": ["a", "a", "b"]}
    rows = read({**columns, "value": [value] * 3}, ["key"])["rows"]
    assert ["hunter2" in str(row) for row in rows] == [False, True, False]
    assert [row["value"] for row in rows[::2]] == ["***", "***"]
