"""SQLite from the standard library: the database is a file with one writer at a time."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.base.arrays import time_texts
from sabot.base.os_errors import hint_of
from sabot.base.sqlite_files import error_of, hint_of_file, is_held, open_database
from sabot.connectors.base import LostFloats
from sabot.connectors.sql.database import TOKENS, FileDatabase, quoted
from sabot.connectors.sql.rows import Columns, JsonKind, json_text, loses_digits, not_held, refusals
from sabot.errors import TransientError, UserError
from sabot.steps import step

_WAIT_SECONDS = 30.0  # how long a transaction waits for other writers of the file
_ROWS = 16384  # rows that become Python tuples at once
# affinities of columns in which a decimal, which is written as text, becomes a number
_NUMERIC = {"INTEGER", "REAL", "NUMERIC"}
_BECOMES = "SQLite drops in a column of this type (declare it TEXT)"
_TEXTS = ("CHAR", "CLOB", "TEXT")  # words in the declared type of a column of texts
_PASSING = {
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_PROTOCOL,
}


class SqliteDatabase(FileDatabase):
    """A table of SQLite. Each transaction locks the file for other writers when it begins, and is on the disk when it
    is committed.
    """

    mark = "?"
    tokens = quoted(TOKENS)

    def __init__(self, path: Path, table: str, keys: Sequence[str]) -> None:
        super().__init__(path, table, keys)
        self._name = quoted(table)
        self._connection: sqlite3.Connection | None = None
        self._affinities: dict[str, str] = {}  # of the columns, by the folded name

    @property
    def name(self) -> str:
        return self._name

    def column(self, name: str) -> str:
        """Quotes a name so that one which the table lacks is an error: in double quotes SQLite takes it for a text."""
        return "`" + quoted(name)[1:-1].replace('""', '"').replace("`", "``") + "`"

    def connect(self, session: str) -> None:
        self.close()
        with self.explained():
            self.make_folder()
            self._connection = open_database(self.path, wait_s=_WAIT_SECONDS)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        return super().floats_lost(kind) or "nan"

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise UserError(f"the sink of table {self.table} is not open")
        return self._connection

    def begin(self) -> None:
        self._open.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._open.execute("COMMIT")

    @contextmanager
    def explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            where = f"table {self.table} of {self.path}"
            if is_held(error):
                raise error_of(error, where, wait_s=_WAIT_SECONDS) from error
            message = f"{where}: {error}"
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING:
                raise TransientError(message, hint=hint_of(error)) from error
            raise UserError(message, hint=hint_of_file(error)) from error
        except OverflowError as error:
            raise UserError(
                f"table {self.table} of {self.path}: an integer above 2^63 - 1", hint="cast the column before the sink"
            ) from error

    def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[tuple[Any, ...]]]:
        cursor = self._open.execute(statement, values)
        return cursor.rowcount, cursor.fetchall()

    def columns(self) -> Columns | None:
        _, rows = self.run(f"PRAGMA table_info({self._name})")
        self._affinities = {self.same_column(name): _affinity(declared) for _, name, declared, *_ in rows}
        return {name: _json_kind(declared) for _, name, declared, *_ in rows} or None

    def has_rows(self) -> bool:
        return bool(self.run(f"SELECT 1 FROM {self._name} LIMIT 1")[1])

    def same_column(self, name: str) -> str:
        return name.lower()

    def create(self, schema: pa.Schema) -> None:
        columns = [f"{quoted(field.name)} {_declared(field.type)}" for field in schema]
        if self.keys:
            columns.append(f"PRIMARY KEY ({', '.join(map(quoted, self.keys))})")
        with step("sql", self.table):
            self.run(f"CREATE TABLE {self._name} ({', '.join(columns)})")

    def add_columns(self, schema: pa.Schema) -> None:
        for field in schema:
            with step("sql", self.table):
                self.run(f"ALTER TABLE {self._name} ADD COLUMN {quoted(field.name)} {_declared(field.type)}")

    def check_keys(self) -> None:
        _, info = self.run(f"PRAGMA table_info({self._name})")
        if {self.same_column(key) for key in self.keys} == {
            self.same_column(name) for _, name, _, _, _, place in info if place
        } or self._collations():
            return
        raise UserError(
            f"table {self.table} of {self.path} has no unique index on {', '.join(self.keys)}",
            hint=f"CREATE UNIQUE INDEX ... ON {self._name} ({', '.join(map(quoted, self.keys))})",
        )

    def _collations(self) -> dict[str, str]:
        """Returns the collations of the columns of the unique index on `keys`, by the folded name. The primary key of
        integers has no index.
        """
        wanted = {self.same_column(key) for key in self.keys}
        for _, index, unique, _, partial in self.run(f"PRAGMA index_list({self._name})")[1]:
            inside = self.run(f"PRAGMA index_xinfo({quoted(index)})")[1]
            found = {self.same_column(name or ""): collation for _, _, name, _, collation, is_key in inside if is_key}
            if unique and not partial and wanted == found.keys():
                return found
        return {}

    def try_types(self, empty: pa.RecordBatch) -> None:
        for name, column in zip(empty.schema.names, empty.columns, strict=True):
            _values(column, name)

    def refused(self, data: pa.RecordBatch) -> dict[int, str]:
        found: dict[int, str] = {}
        for name, column in zip(data.schema.names, data.columns, strict=True):
            if pa.types.is_uint64(column.type):
                far = pc.greater(column, pa.scalar(2**63 - 1, pa.uint64()))
                found |= refusals(name, column, far, "is above 2^63 - 1")
            affinity = self._affinities.get(self.same_column(name), "")
            if affinity in _NUMERIC and pa.types.is_decimal(column.type):
                most = 0 if affinity == "REAL" else 2**63 - 1
                found |= refusals(name, column, loses_digits(column, 53, most), f"has digits that {_BECOMES}")
            elif affinity == "REAL" and pa.types.is_integer(column.type):
                found |= refusals(name, column, loses_digits(column, 53), f"has digits that {_BECOMES}")
        return found

    def insert(self, data: pa.RecordBatch) -> None:
        names = [quoted(name) for name in data.schema.names]
        statement = f"INSERT INTO {self._name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        if self.keys:
            keys = ", ".join(map(quoted, self.keys))
            statement += f" ON CONFLICT ({keys}) DO {self.replacing(data.schema.names)}"
        self._for_each(data, statement)

    def delete(self, data: pa.RecordBatch) -> None:
        same = " AND ".join(f"{quoted(name)} = ?" for name in data.schema.names)
        self._for_each(data, f"DELETE FROM {self._name} WHERE {same}")

    def last_of_equal(self, keys: pa.RecordBatch) -> list[int] | None:
        collations = self._collations()
        declared = {
            self.same_column(name): kind for _, name, kind, *_ in self.run(f"PRAGMA table_info({self._name})")[1]
        }
        columns = [
            (quoted(field.name), declared.get(same, ""), collations.get(same, "BINARY"), field.type)
            for field in keys.schema
            for same in [self.same_column(field.name)]
        ]
        if all(_tells_apart(kind, collation, given) for _, kind, collation, given in columns):
            return None
        self.run("DROP TABLE IF EXISTS temp.sabot_same")
        defined = ", ".join(f"{name} {kind} COLLATE {collation}" for name, kind, collation, _ in columns)
        self.run(f"CREATE TEMP TABLE sabot_same (sabot_row INTEGER PRIMARY KEY, {defined})")
        numbered = keys.add_column(0, "sabot_row", pa.array(np.arange(keys.num_rows)))
        self._for_each(numbered, f"INSERT INTO temp.sabot_same VALUES ({', '.join('?' * numbered.num_columns)})")
        names = ", ".join(name for name, *_ in columns)
        _, rows = self.run(f"SELECT max(sabot_row) FROM temp.sabot_same GROUP BY {names}")
        return sorted(row for (row,) in rows)

    def _for_each(self, data: pa.RecordBatch, statement: str) -> None:
        """Runs the statement for each row, with the row's values."""
        for start in range(0, data.num_rows, _ROWS):
            part = data.slice(start, _ROWS)
            values = [_values(column, name) for name, column in zip(part.schema.names, part.columns, strict=True)]
            with step("sql", self.table):
                self._open.executemany(statement, zip(*values, strict=True))

    def make_tokens(self) -> None:
        with step("sql", TOKENS):
            self.run(
                f"CREATE TABLE IF NOT EXISTS {self.tokens} "
                "(lane TEXT PRIMARY KEY, seq BIGINT, incarnation TEXT, owner TEXT NOT NULL)"
            )

    def expel(self, owner: str) -> None:
        """Does nothing: a transaction of another process ends with that process. Until then `begin` waits, at most 30
        s, and raises TransientError.
        """


_JSON_KINDS: dict[str, JsonKind] = {
    "INTEGER": pa.int64(),
    "TEXT": "text",
    "BLOB": pa.binary(),
    "REAL": pa.float64(),
    "NUMERIC": "text",
    "": "any",
}


def _declared(kind: pa.DataType) -> str:
    """Returns the declared type of a column of this Arrow type."""
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_integer(kind) or pa.types.is_duration(kind):
        return "INTEGER"
    if pa.types.is_floating(kind):
        return "REAL"
    if _is_bytes(kind):
        return "BLOB"
    return "TEXT"


def _tells_apart(declared: str, collation: str, kind: Any) -> bool:
    """Returns True if it is certain that a column keeps all values of an Arrow type, and finds no two of them equal."""
    declared = declared.upper()
    whole = "INT" in declared
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_duration(kind):
        return whole or "BOOL" in declared
    if pa.types.is_floating(kind) or _is_bytes(kind):
        return _is_bytes(kind)
    return collation == "BINARY" and not whole and any(word in declared for word in _TEXTS)


def _affinity(declared: str) -> str:
    """Returns the affinity of a column by its declared type, or "" if no type is declared."""
    declared = declared.upper()
    if "INT" in declared:
        return "INTEGER"
    if any(word in declared for word in _TEXTS):
        return "TEXT"
    if "BLOB" in declared or not declared:
        return "BLOB" if declared else ""
    return "REAL" if any(word in declared for word in ("REAL", "FLOA", "DOUB")) else "NUMERIC"


def _json_kind(declared: str) -> JsonKind:
    """Returns how JSON is read for a column."""
    if "BOOL" in declared.upper():
        return pa.bool_()
    return _JSON_KINDS[_affinity(declared)]


def _values(column: Any, name: str) -> list[Any]:
    """Returns a column in the types that SQLite stores: integers, floats, text, bytes."""
    kind = column.type
    types = pa.types
    if types.is_nested(kind):
        column = json_text(column, name)
    elif types.is_timestamp(kind) or types.is_date(kind):
        column = time_texts(column)
    elif types.is_decimal(kind) or types.is_time(kind):
        column = column.cast(pa.string())
    elif types.is_duration(kind):
        column = column.cast(pa.int64())
    elif types.is_float16(kind):
        column = column.cast(pa.float32())
    elif types.is_interval(kind) or not (
        types.is_primitive(kind) or types.is_null(kind) or types.is_string(kind) or _is_bytes(kind)
    ):
        raise not_held(name, kind)
    values: list[Any] = column.to_pylist()
    return values


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))
