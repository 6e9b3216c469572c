"""Rows that a program has in memory, as a source and as a sink: `app.stream(rows)` and `stream.to(rows)`."""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot.base.arrays import check_no_union, column_of, exact_cast, mixed_zones, table_of, twice_named
from sabot.codecs.json import AbsentColumns
from sabot.codecs.records import RECORD_SCHEMA, decode_json, iterate_records
from sabot.connectors.base import Bounded, Positions, Sink, Source
from sabot.connectors.files.formats.columns import canonical, fitted
from sabot.errors import UserError


class ArrowTable(Protocol):
    """An object that gives its rows as an Arrow stream: a pyarrow.Table, a data frame, or a relation of DuckDB."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Returns the capsule of the stream."""


Rows: TypeAlias = ArrowTable | Sequence[Mapping[str, Any]]
"""Rows in memory: a table of any library that speaks Arrow, or a list of dicts."""


def is_rows(given: object) -> bool:
    """Returns True for rows in memory: a list or tuple, or an object that speaks Arrow."""
    return isinstance(given, list | tuple) or hasattr(given, "__arrow_c_stream__")


class RowsSource(Source, Bounded):
    """A source of rows that are in memory when the program is built. The offset of a row is its number.

    `rows`: all rows. A reader that can be read only once is read here. `schema`: the types of the columns, or None to
    find them. Raises UserError for rows that do not fit `schema`, or have no types in common.
    """

    def __init__(self, rows: Rows, name: str, schema: pa.Schema | None = None) -> None:
        self.name = name
        table = _table_of_dicts(rows, name, schema) if isinstance(rows, list | tuple) else _table(rows, name, schema)
        self._schema = _checked(table.schema)
        self._batches = [
            fitted(batch, self._schema, name) for batch in table.to_batches() if batch.num_rows and self._schema.names
        ]
        self._firsts = [0]
        for batch in self._batches:
            self._firsts.append(self._firsts[-1] + batch.num_rows)
        self._at = 0
        self._log_id = ""

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def log_id(self) -> str:
        """A digest of the rows: positions of a checkpoint mean nothing in other rows."""
        if not self._log_id:
            digest = hashlib.blake2b(str(self._schema).encode(), digest_size=16)
            for number in range(len(self._schema)):
                for batch in self._batches:
                    digest.update(_hashes(batch.column(number)).buffers()[1])
            self._log_id = digest.hexdigest()
        return self._log_id

    def identity(self) -> str | None:
        """Returns None: equal rows of two programs are no records of one log."""
        return None

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._at = (positions or {}).get((self.name, 0), 0)

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        if self.exhausted:
            return None
        number = bisect_right(self._firsts, self._at) - 1
        data = self._batches[number].slice(self._at - self._firsts[number], max_rows)
        self._at += data.num_rows
        return Batch(data, self.positions(), self.name)

    @property
    def exhausted(self) -> bool:
        return self._at >= self._firsts[-1]

    def positions(self) -> Positions:
        return {(self.name, 0): self._at}

    def close(self) -> None:
        """Does nothing: the rows stay, for the next start."""


class ListOfRows(Sink):
    """A sink that appends each row as a dict to a list of the program, at least once."""

    format = None

    def __init__(self, rows: list[Any]) -> None:
        self.name = "list"
        self._rows = rows

    def open(self) -> None:
        """Does nothing: the list is there."""

    def write(self, batch: Batch) -> None:
        data = batch.taken()
        if data.schema.equals(RECORD_SCHEMA):
            records = iterate_records(data, self.name)
            self._rows += [decode_json(record.payload, where=self.name) for record in records]
        else:
            self._rows += data.to_pylist()

    def flush(self) -> None:
        """Does nothing: the rows are in the list."""

    def close(self) -> None:
        """Does nothing: the list stays."""


def _hashes(column: Any) -> Any:
    """Returns the hashes of the values, which depend neither on batches nor on the bytes below nulls."""
    try:
        return hash_columns([column])
    except TypeError:  # nested values, and decimals
        return hash_columns([pa.array([repr(value) for value in column.to_pylist()], pa.string())])


def _table(rows: Any, source: str, schema: pa.Schema | None) -> pa.Table:
    """Returns the rows of an object that speaks Arrow. The unnamed index of a pandas frame is left out."""
    try:
        table = table_of(rows)
    except (ValueError, TypeError, OverflowError) as error:
        twice = [name for name, times in Counter(map(str, getattr(rows, "columns", ()))).items() if times > 1]
        if twice:
            raise UserError(f"stream: the rows have two columns {twice[0]!r}", hint="rename one of them") from error
        what = f"a {type(rows).__module__.partition('.')[0]}.{type(rows).__name__}"
        if hasattr(rows, "columns"):
            hint = "give each of its columns one type that Arrow has"
            raise UserError(f"stream: the columns of {what} cannot be read: {error}", hint=hint) from error
        raise UserError(f"stream: {what} has no columns: {error}", hint="stream(series.to_frame())") from error
    table = table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
    for index in (table.schema.pandas_metadata or {}).get("index_columns", ()):
        # Arrow has only the bounds of an index that counts, which is what pandas makes of many an index of integers.
        if isinstance(index, dict) and index["name"] is not None:
            values = pa.array(range(index["start"], index["stop"], index["step"]), pa.int64())
            table = table.append_column(index["name"], values)
    if schema is None:
        return table
    if missing := [name for name in schema.names if name not in table.column_names]:
        raise UserError(
            f"stream: the rows have no column {missing[0]!r}", hint=f"they have {', '.join(table.column_names)}"
        )
    columns = []
    for field in schema:
        try:
            chunks = [exact_cast(chunk, field.type) for chunk in table[field.name].chunks]
            columns.append(pa.chunked_array(chunks, field.type))
        except pa.ArrowException as error:
            raise UserError(f"stream: the rows do not fit schema=: column {field.name!r}: {error}") from error
    absent = AbsentColumns(f"stream {source}")
    absent.look_at_types(table.schema, schema, table.num_rows)
    if not absent.is_done:
        absent.tell()
    try:
        return pa.table(columns, names=schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:  # a null in a column that has none
        raise UserError(f"stream: the rows do not fit schema=: {error}") from error


def _table_of_dicts(rows: Sequence[Any], source: str, schema: pa.Schema | None) -> pa.Table:
    """Returns dicts as a table. A column that a dict lacks is null in its row; one that all lack is logged. `source`: the
    name of the source, for the log.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"stream: row {number} is {row!r}, not a dict", hint='[{"id": 1}, {"id": 2}]')
    names = list(dict.fromkeys(name for row in rows for name in row)) if schema is None else schema.names
    if not names:
        raise UserError("stream: rows without columns", hint='give schema={"id": "int64"} for a list that may be empty')
    columns: dict[str, Any] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns[str(name)] = made = column_of(values, None if schema is None else schema.field(name).type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"stream: the values of {name!r} have no type in common: {error}"
                if schema is None
                else f"stream: a value of {name!r} does not fit {schema.field(name).type}: {error}",
                hint="give schema= the type that all values fit, or convert them before",
            ) from error
        if wrong := mixed_zones(name, values) if pa.types.is_timestamp(made.type) else "":
            hint = 'give all of them one: datetime(…, tzinfo=ZoneInfo("Europe/Berlin")); or none, for UTC'
            raise UserError(f"stream: {wrong}", hint=hint)
    if schema is not None:
        absent = AbsentColumns(f"stream {source}")
        absent.look_at(rows, schema.names)
        if not absent.is_done:
            absent.tell()
    return pa.table(columns, schema=schema)


def _checked(schema: pa.Schema) -> pa.Schema:
    """Returns the columns as streams have them. Raises UserError for columns that no stream can have."""
    if twice := twice_named(schema):
        raise UserError(f"stream: the rows have two columns {twice!r}", hint="rename one of them")
    found = canonical(schema)
    check_no_union(found, "stream: ")
    return found
