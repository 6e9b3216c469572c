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
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from sabot.sql.functions import AGGREGATES, FUNCTIONS
from sabot.sql.syntax import tree
from sabot.sql.syntax.parser import parse
from sabot.sql.syntax.text import SqlError, SqlText
from tools.sql_tables import counted, ours, records, shown, theirs, write_tables

FILES = sorted((Path(__file__).parent / "logic").glob("*.slt"))


RECORDS = [record for path in FILES for record in records(path)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.mark.one_in(36, "some hundredths of a second of a core each")
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


ELSEWHERE = {
    *(f"{kind} by itself" for kind in ("ColumnDefinition", "CreateFunction", "CreateModel", "CreateTable", "Describe")),
    *(f"{kind} by itself" for kind in ("DropStatement", "Explain", "Insert", "ModelArgument", "Parameter")),
    *(f"{kind} by itself" for kind in ("Show", "StatementSet", "Use", "WatermarkDefinition")),
    "SetOption.reset",
    *("TableName.hints", "TableFunction.lateral"),
}
"""Parts of statements that give no rows, need a declared table or an app, or are read in order to be refused with a hint."""


def parts_of(tree_):
    """Yields the kind of each node below a syntax tree, and each of its fields that the text has set."""
    if isinstance(tree_, tuple | list):
        for each in tree_:
            yield from parts_of(each)
    elif is_dataclass(tree_):
        yield f"{type(tree_).__name__} by itself"
        for field in fields(tree_):
            value = getattr(tree_, field.name)
            if field.name != "span" and value not in (None, False, (), ""):
                yield f"{type(tree_).__name__}.{field.name}"
                yield from parts_of(value)


def test_each_clause_has_an_example():
    """A node of the syntax tree, and a field of a node, is in a record whose rows are compared: so is each of its tokens, in
    `test_changed_tokens`.
    """
    seen = {
        part for record in RECORDS if record.kind.startswith("query") for part in parts_of(parse(SqlText(record.text)))
    }
    kinds = [kind for kind in vars(tree).values() if isinstance(kind, type) and is_dataclass(kind)]
    every = {f"{kind.__name__} by itself" for kind in kinds}
    every |= {f"{k.__name__}.{each.name}" for k in kinds for each in fields(k) if f"{k.__name__} by itself" in seen}
    every = {part for part in every if not part.endswith(".span") and not part.startswith("Span")}
    assert every - seen == ELSEWHERE


def test_each_function_has_an_example():
    texts = " ".join(record.text.upper() for record in RECORDS if record.kind.startswith("query"))
    missing = [name for name in (*FUNCTIONS, *AGGREGATES) if not re.search(rf"\b{name}\s*\(", texts)]
    assert missing == [], "each needs an example in tests/unit/sql/logic/functions.slt or a file beside it"


def test_the_form_of_each_function_has_as_many_arguments_as_it_takes():
    for name, function in FUNCTIONS.items():
        if "…" in function.form or not re.fullmatch(r"[a-z_, \[\]]*", function.form):
            continue
        least = [each for each in re.sub(r"\[.*?\]", "", function.form).split(",") if each.strip()]
        most = [each for each in re.sub(r"[\[\]]", "", function.form).split(",") if each.strip()]
        assert (len(least), len(most)) == (function.least, function.most) or name in MORE, name


MORE = {"JSON_VALUE", "JSON_QUERY", "TO_TIMESTAMP_LTZ", "TRIM", "CEIL", "CEILING"}
"""Functions of which the form is the plainest of several."""
