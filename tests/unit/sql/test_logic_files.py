"""The files of `logic/`, in the manner of sqllogictest: statements of SQL, each with its rows or its error.

    query                    query duckdb             error there is no column "x"
    SELECT 1 AS x            SELECT id FROM orders    SELECT x FROM orders
    ----                     ---- duckdb
    1                        SELECT …

- `query`: the rows, one a line, the values apart by ` | `. With `ordered` behind it, their order counts.
- `query duckdb`: the rows are DuckDB's for the same text, or for the text behind `---- duckdb`.
- `error`: the message of the error has this regular expression.

A blank line ends a record. The tables are those of `tests/tools/sql_tables.py`.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from sabot.sql.functions import AGGREGATES, FUNCTIONS
from sabot.sql.syntax.text import SqlError
from tools.sql_tables import counted, ours, theirs, write_tables

FILES = sorted((Path(__file__).parent / "logic").glob("*.slt"))


class Record(NamedTuple):
    """A record of a file. `kind`: its first line."""

    place: str
    kind: str
    text: str
    rows: list[str]


def records(path):
    found, line = [], 1
    for block in path.read_text().split("\n\n"):
        lines = [each for each in block.split("\n") if not each.startswith("#")]
        if any(each.strip() for each in lines):
            kind, *rest = [each for each in lines if each.strip()]
            cut = next((i for i, each in enumerate(rest) if each.startswith("----")), len(rest))
            found.append(Record(f"{path.stem}:{line}", kind, "\n".join(rest[:cut]), rest[cut:]))
        line += block.count("\n") + 2
    return found


RECORDS = [record for path in FILES for record in records(path)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"))


def shown(value):
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"
    return str(value)


@pytest.mark.parametrize("record", RECORDS, ids=[each.place for each in RECORDS])
def test_a_record_has_its_answer(folder, record):
    if record.kind.startswith("error "):
        with pytest.raises(SqlError) as caught:
            ours(folder, record.text)
        assert re.search(record.kind.removeprefix("error "), str(caught.value))
        return
    kind, *words = record.kind.split()
    assert kind == "query"
    found = ours(folder, record.text)
    if "duckdb" in words:
        expected = theirs(folder, "\n".join(record.rows[1:]) or record.text)
        assert counted(found) == counted(expected)
        assert found.num_columns == expected.num_columns
        return
    assert record.rows, f"{record.place} has no rows: write ---- behind the statement"
    rows = [" | ".join(map(shown, row.values())) for row in found.to_pylist()]
    wanted = record.rows[1:]
    if "ordered" not in words:
        rows, wanted = sorted(rows), sorted(wanted)
    assert rows == wanted


def test_each_function_has_an_example():
    texts = " ".join(record.text.upper() for record in RECORDS if record.kind.startswith("query"))
    missing = [name for name in (*FUNCTIONS, *AGGREGATES) if not re.search(rf"\b{name}\s*\(", texts)]
    assert missing == []


def test_the_form_of_each_function_has_as_many_arguments_as_it_takes():
    for name, function in FUNCTIONS.items():
        if "…" in function.form or not re.fullmatch(r"[a-z_, \[\]]*", function.form):
            continue
        least = [each for each in re.sub(r"\[.*?\]", "", function.form).split(",") if each.strip()]
        most = [each for each in re.sub(r"[\[\]]", "", function.form).split(",") if each.strip()]
        assert (len(least), len(most)) == (function.least, function.most) or name in MORE, name


MORE = {"JSON_VALUE", "JSON_QUERY", "TO_TIMESTAMP_LTZ", "TRIM", "CEIL", "CEILING"}
"""Functions of which the form is the plainest of several."""
