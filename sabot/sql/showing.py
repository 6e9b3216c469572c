"""The answers of SHOW and DESCRIBE, as Arrow tables or texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.redaction import shown_setting
from sabot.connectors.installed import COLUMNS, summary
from sabot.sql.catalog import time_of
from sabot.sql.scope import Relation
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.types import arrow_type, sql_type


def names_table(title: str, names: Iterable[str]) -> pa.Table:
    """Returns a table of one column with these names, sorted."""
    return pa.table({title: pa.array(sorted(names), pa.string())})


def named_like(shown: pa.Table, like: tuple[str, bool] | None) -> pa.Table:
    """Returns the rows whose name, the first column, fits a pattern of LIKE, or those that do not, if its second part is True."""
    if like is None:
        return shown
    fits: Any = pc.match_like(shown.column(0), like[0])
    return shown.filter(pc.invert(fits) if like[1] else fits)


def connectors_table() -> pa.Table:
    """Returns the answer of SHOW CONNECTORS, which `sabot connectors` gives too."""
    rows = summary()
    return pa.table({title: pa.array([row[i] for row in rows], pa.string()) for i, title in enumerate(COLUMNS)})


def options_table(options: Sequence[tuple[str, str]]) -> pa.Table:
    """Returns the options that SET has given."""
    keys, values = [key for key, _ in options], [str(shown_setting(key, value)) for key, value in options]
    return pa.table({"key": pa.array(keys, pa.string()), "value": pa.array(values, pa.string())})


def columns_table(rows: Iterable[tuple[str, str, str, str, str]]) -> pa.Table:
    """Returns the answer of DESCRIBE: a row for each column of a table."""
    titles = ("name", "type", "key", "extras", "watermark")
    every = list(rows)
    return pa.table({title: pa.array([row[i] for row in every], pa.string()) for i, title in enumerate(titles)})


def is_declared(table: CreateTable) -> bool:
    """Returns True if the statement says the types of all columns, so that nothing has to be read for them."""
    return bool(table.columns) and all(each.type is not None for each in table.columns)


def declared_rows(table: CreateTable) -> Iterable[tuple[str, str, str, str, str]]:
    """Returns the columns of a table whose types its statement says, for `columns_table`."""
    for each in table.columns:
        assert each.type is not None
        yield _row(table, each.name.text, sql_type(arrow_type(each.type)))


def relation_rows(table: CreateTable | None, relation: Relation) -> Iterable[tuple[str, str, str, str, str]]:
    """Returns the columns of bound rows, for `columns_table`. `table`: the statement that declares them, or None."""
    for each in relation.fields:
        type = "TIMESTAMP_LTZ(3)" if each.clock else sql_type(each.sql_type)
        if table is not None:
            yield _row(table, each.name, type)
        else:
            yield each.name, type, "", "PROCTIME()" if each.clock else "", "event time" if each.shift_ms == 0 else ""


def _row(table: CreateTable, name: str, type: str) -> tuple[str, str, str, str, str]:
    key = "PRIMARY KEY" if name.lower() in [each.text.lower() for each in table.key] else ""
    column = next((each for each in table.columns if each.name.text == name), None)
    extras = ""
    if column is not None and column.metadata is not None:
        extras = f"METADATA FROM '{column.metadata}'{' VIRTUAL' if column.virtual else ''}"
    elif column is not None and column.computed is not None:
        extras = "computed"
    time, lateness = time_of(table)
    watermark = f"{name} - {lateness} ms" if lateness else name
    return name, type, key, extras, watermark if time == name else ""
