"""Tables of made rows: 'connector' = 'datagen', with random values and sequences, and 'connector' = 'faker', with expressions."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot.base.config import parse_ms
from sabot.connectors.datagen import GeneratedSource
from sabot.connectors.datagen.expressions import expression_field
from sabot.connectors.datagen.kinds import list_field, map_field, random_field, sequence_field, some_null, struct_field
from sabot.connectors.datagen.source import Field
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import CreateTable, Type
from sabot.sql.table_options import Options
from sabot.sql.types import arrow_type, sql_type

if TYPE_CHECKING:
    from sabot.api.stream import Stream

_log = logging.getLogger(__name__)

_LENGTHS = ("CHAR", "VARCHAR", "BINARY", "VARBINARY")
_SEED = 0
_TRIED = 16  # rows that are made of a column when its table is declared


class _MadeColumns:
    """The options of the columns of one table."""

    def __init__(self, options: Options, statement: CreateTable) -> None:
        self.options = options
        self.ends: list[int] = []  # how many rows each sequence has
        self.row_bytes = 0
        self._statement = statement

    def each(self, make: "Callable[[_MadeColumns, str, pa.DataType, Type], Field]") -> Iterator[tuple[pa.Field, Field]]:
        """Yields the columns that have values of their own. Raises SqlFault for one that cannot be made. Warns of options
        of a computed column, which have no effect.
        """
        for column in self._statement.columns:
            if column.type is None and self.options.take(f"fields.{column.name.text}.expression"):
                message = "table %s: 'fields.%s.expression' has no effect: the column is computed"
                _log.warning(message, self.options.table, column.name.text)
            if column.type is None or column.metadata is not None:
                continue
            type = arrow_type(column.type)
            name = column.name.text
            with _told(name, type, column.span):
                field = make(self, f"fields.{name}", type, column.type)
                zeros = np.zeros(_TRIED, np.int64)
                self.row_bytes += field(np.random.default_rng(_SEED), zeros, zeros).nbytes // _TRIED
            yield pa.field(name, type), field

    def number(self, name: str, default: Any = None) -> Any:
        """Returns a number above 0, or the default."""
        span = self.options.value_span(name)
        found = self.options.number(name)
        if found is not None and (found != int(found) or found < 1):
            raise SqlFault(span, f"'{name}' is a whole number above 0, and '{found}' is none")
        return default if found is None else int(found)

    def with_nulls(self, prefix: str, field: Field) -> Field:
        """Returns a column with the part of its values that 'null-rate' asks for NULL."""
        span, rate = self.options.value_span(f"{prefix}.null-rate"), self.options.number(f"{prefix}.null-rate")
        if rate is None:
            return field
        if not 0 <= rate <= 1:
            raise SqlFault(span, f"'{prefix}.null-rate' is between 0 and 1", "'0.1': one row of ten")
        return some_null(field, float(rate))


@contextmanager
def _told(name: str, type: pa.DataType, span: Span) -> Iterator[None]:
    """Turns an error of a column's values into a SqlFault at the column."""
    try:
        yield
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise SqlFault(span, f"there are no values for column {name} {sql_type(type)}: {error}") from error


def read_datagen(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table of random values and sequences."""
    return _reader(options, statement, _datagen_field)


def read_faker(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table whose columns are texts with expressions."""
    return _reader(options, statement, _faker_field)


def _reader(
    options: Options, statement: CreateTable, make: Callable[[_MadeColumns, str, pa.DataType, Type], Field]
) -> "Callable[[Any, dict[str, Any]], Stream]":
    columns = _MadeColumns(options, statement)
    made = list(columns.each(make))
    if not made:
        raise SqlFault(options.span, f"table {options.table} needs columns: they say what is made")
    per_second = columns.number("rows-per-second", 10_000)
    counts = [columns.number("number-of-rows"), *columns.ends]
    rows = min((each for each in counts if each is not None), default=None)
    schema = pa.schema([field for field, _ in made])
    fields = {field.name: value for field, value in made}

    def open_rows(app: Any, given: dict[str, Any]) -> "Stream":
        source = GeneratedSource(
            options.table, schema, fields, rows=rows, per_second=per_second, row_bytes=columns.row_bytes, seed=_SEED
        )
        given = {name: value for name, value in given.items() if name != "schema"}
        return app.stream(source, **given)  # type: ignore[no-any-return]

    return open_rows


def _datagen_field(columns: _MadeColumns, prefix: str, type: pa.DataType, declared: Type | None) -> Field:
    options = columns.options
    kind = options.choose(f"{prefix}.kind", {"random": "random", "sequence": "sequence"}, "random")
    if kind == "sequence":
        first, last = (int(_needed(options, f"{prefix}.{name}")) for name in ("start", "end"))
        if last < first:
            raise ValueError(f"its sequence ends at {last}, before {first}")
        columns.ends.append(last - first + 1)
        return sequence_field(type, first, last)
    if pa.types.is_struct(type):
        parts = {each.name: _datagen_field(columns, f"{prefix}.{each.name}", each.type, None) for each in type}
        return columns.with_nulls(prefix, struct_field(type, parts))
    if pa.types.is_list(type):
        length = columns.number(f"{prefix}.length", 3)
        element = _datagen_field(columns, f"{prefix}.element", type.value_type, None)
        return columns.with_nulls(prefix, list_field(type, element, length))
    if pa.types.is_map(type):
        length = columns.number(f"{prefix}.length", 3)
        key, value = (
            _datagen_field(columns, f"{prefix}.{part}", of, None)
            for part, of in (("key", type.key_type), ("value", type.item_type))
        )
        return columns.with_nulls(prefix, map_field(type, key, value, length))
    given: dict[str, Any] = {}
    if pa.types.is_timestamp(type):
        age = options.duration(f"{prefix}.max-past")
        given["most"] = None if age is None else parse_ms(age, name="max-past")
    elif pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type):
        given = {"least": options.number(f"{prefix}.min"), "most": options.number(f"{prefix}.max")}
    elif pa.types.is_string(type) or pa.types.is_binary(type):
        longest = (
            declared.numbers[0] if declared is not None and declared.name in _LENGTHS and declared.numbers else 100
        )
        given["length"] = columns.number(f"{prefix}.length", longest)
        given["varies"] = options.choose(f"{prefix}.var-len", {"true": True, "false": False}, False)
    return columns.with_nulls(prefix, random_field(type, **given))


def _needed(options: Options, name: str) -> Decimal:
    found = options.number(name)
    if found is None or found != int(found):
        raise SqlFault(
            options.span, f"table {options.table} needs the option '{name}', a whole number", f"'{name}' = '1'"
        )
    return found


def _faker_field(columns: _MadeColumns, prefix: str, type: pa.DataType, declared: Type | None) -> Field:
    options = columns.options
    if pa.types.is_struct(type):
        parts = {each.name: _faker_field(columns, f"{prefix}.{each.name}", each.type, None) for each in type}
        return columns.with_nulls(prefix, struct_field(type, parts))
    if pa.types.is_list(type):
        length = columns.number(f"{prefix}.length", 1)
        return columns.with_nulls(
            prefix, list_field(type, _faker_field(columns, prefix, type.value_type, None), length)
        )
    text = options.need(f"{prefix}.expression")
    return columns.with_nulls(prefix, expression_field(type, text, _SEED))
