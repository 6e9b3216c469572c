"""A table of DuckDB: the database is a file that one process at a time has open. Rows come into it as Arrow columns.
Only this module imports duckdb.
"""

import contextlib
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sabot.base.disk import name_new, sync
from sabot.base.os_errors import errno_of, hint_of
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.sql.database import TOKENS, FileDatabase, quoted
from sabot.connectors.sql.duckdb_values import declared_type, fitted, identifies, is_text, refused_values, stored, takes
from sabot.connectors.sql.rows import Columns, JsonKind, last_of_each_key
from sabot.errors import InternalError, MissingExtra, TransientError, UserError
from sabot.steps import step

_OLDEST = 2  # the first version whose catalog tells generated columns
_WAIT_SECONDS = 30.0  # how long a transaction waits for another process that has the file open
_PAUSE_SECONDS = 0.05
_IN = "sabot_rows"  # the name under which a statement reads the rows that come
_ROW = "sabot_row_number"
_COLLATED = re.compile(r'("(?:[^"]|"")+"|\w+) VARCHAR COLLATE')
_CHANGES = ("INSERT", "UPDATE", "DELETE")
_OF_TABLE = "database_name = current_database() AND lower(schema_name) = lower(?) AND lower(table_name) = lower(?)"
_FILE = "SELECT path FROM duckdb_databases() WHERE database_name = current_database() AND type = 'duckdb'"
_GIVE = "give the path of a database of DuckDB, or one at which no file is: one is made"
_HINTS = {
    "not a valid DuckDB database": _GIVE,
    "Is a directory": _GIVE,
    '"sqlite_scanner"': f"it is a database of SQLite: its address begins with sqlite:; or {_GIVE}",  # the extension that DuckDB would load
    "Cannot open encrypted database": f"it is encrypted, and the sink has no key: {_GIVE}",
    "Corrupt database file": "it is damaged, or was copied while it was written: go back to a copy of it",
    "newer version of DuckDB": "pip install -U duckdb; or EXPORT DATABASE by the version that wrote it, and IMPORT DATABASE by this one",
    "database file with version": "EXPORT DATABASE by the version that wrote it, and IMPORT DATABASE by this one",
}
"""What to do about a file that cannot be opened, by words of DuckDB, whose errors have no codes."""
_HELD = "IO Error: Could not set lock on file"
# Connections of one process to one file share its database. The first connection makes it, and only then gives it the functions that
# read Arrow: a second one that comes in between would have none ("python_arrow_scan does not exist").
_opening = threading.Lock()


class DuckDatabase(FileDatabase):
    """A table of DuckDB. Its name may have a schema (`sales.alerts`); the table of tokens is in the same schema.

    The file is open during transactions only, so that other processes can use it in between, except that writes at
    least once keep it open until the next flush. A commit is on the disk when it returns.
    """

    mark = "?"

    def __init__(self, path: Path, table: str, keys: Sequence[str]) -> None:
        super().__init__(path, table, keys)
        try:
            import duckdb
        except ImportError as error:
            raise MissingExtra("a sink into DuckDB", "duckdb") from error
        if int(duckdb.__version__.partition(".")[0]) < _OLDEST:
            raise UserError(
                f"table {table}: DuckDB {duckdb.__version__} is installed, and a sink into DuckDB needs {_OLDEST}.0 or newer",
                hint="pip install -U 'sabot[duckdb]'",
            )
        self._driver = duckdb
        schema, _, name = table.rpartition(".")
        self._place = (schema or "main", name)
        self._prefix = f"{quoted(schema)}." if schema else ""
        self._name = self._prefix + quoted(name)
        self._ready = False  # after `connect`, and until an error or `close`
        self._connection: Any = None
        self._kinds: dict[
            str, tuple[str, pa.DataType]
        ] = {}  # types of the columns, of DuckDB and of Arrow, by the folded name
        self._done: list[tuple[str, pa.Table | None]] | None = None  # the changes of a trial

    @property
    def name(self) -> str:
        return self._name

    @property
    def tokens(self) -> str:
        return self._prefix + quoted(TOKENS)

    def floats_lost(self, kind: pa.DataType) -> None:
        """Returns None: columns of floats, also in lists and structs, hold all floats."""

    def connect(self, session: str) -> None:
        self.close()
        self.make_folder()
        self._ready = True

    def close(self) -> None:
        self._ready = False
        self.release()

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def _open(self) -> Any:
        if not self._ready:
            raise UserError(f"the sink of table {self.table} is not open")
        if self._connection is None:
            if not self.exists:
                self._make_file()
            self._connection = self._wait_for_file()
        return self._connection

    def _make_file(self) -> None:
        """Makes an empty database under another name first, because DuckDB refuses a file of which a crash left a part."""
        unfinished = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            self._driver.connect(str(unfinished)).close()
            sync(unfinished)
            with contextlib.suppress(FileExistsError):  # another process was faster
                name_new(unfinished, self.path)
            sync(self.path.parent)
        finally:
            unfinished.unlink(missing_ok=True)

    def _wait_for_file(self) -> Any:
        end = SYSTEM_CLOCK.monotonic() + _WAIT_SECONDS
        while True:
            try:
                with _opening:
                    connection = self._driver.connect(str(self.path))
                break
            except self._driver.Error as error:
                text, hint = _first_line(error), _hint_of_file(error)
                # A lock has no class or errno of its own. Another descriptor cannot ask for it: closing that would end the locks
                # that this process has on the file. A ConnectionException is of a connection of this process.
                of_file = isinstance(error, self._driver.IOException)
                if not (text.startswith(_HELD) if of_file else isinstance(error, self._driver.ConnectionException)):
                    if not of_file and not hint:
                        raise
                    kind = TransientError if errno_of(error) else UserError
                    raise kind(f"table {self.table} of {self.path}: {text}", hint=hint_of(error, hint)) from error
                if SYSTEM_CLOCK.monotonic() >= end:
                    raise TransientError(
                        f"table {self.table} of {self.path}: another program has had it open for {_WAIT_SECONDS:g} s, and "
                        f"DuckDB lets one process at a time write: {text}",
                        hint="close it there: in between, the sink leaves the file to others",
                    ) from error
            time.sleep(_PAUSE_SECONDS)
        if connection.execute(_FILE).fetchone() in (None, (None,)):  # in memory, with a view of the file; or of SQLite
            connection.close()
            raise UserError(
                f"table {self.table} of {self.path}: the file is no database of DuckDB, which reads it as data",
                hint=_GIVE,
            )
        return connection

    def begin(self) -> None:
        self._execute("BEGIN TRANSACTION")

    def commit(self) -> None:
        self._execute("COMMIT")

    @contextmanager
    def trial(self) -> Iterator[None]:
        self._done = []
        try:
            with super().trial():
                yield
        finally:
            self._done = None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """As in the contract, without savepoints, which DuckDB lacks: after an error the transaction begins anew, and the
        changes of earlier attempts are made again.
        """
        assert self._done is not None, "an attempt is a part of a trial"
        earlier = list(self._done)
        try:
            with self.explained():
                yield
        except UserError:
            with self.explained():
                self._execute("ROLLBACK")
                self._execute("BEGIN TRANSACTION")
                self._done = earlier
                for statement, rows in earlier:
                    self._execute(statement, (), rows)
            raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        driver = self._driver
        try:
            yield
        except driver.Error as error:
            message, hint = f"table {self.table} of {self.path}: {_first_line(error)}", hint_of(error)
            passing = (
                driver.TransactionException,
                driver.IOException,
                driver.OutOfMemoryException,
                driver.InterruptException,
            )
            if hint or isinstance(error, passing):
                raise TransientError(message, hint=hint) from error
            if isinstance(error, driver.InternalException | driver.FatalException):  # no fault of the rows
                raise InternalError(message, hint="a fault of DuckDB: update it (pip install -U duckdb)") from error
            raise UserError(message) from error

    def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[tuple[Any, ...]]]:
        if not statement.startswith(_CHANGES):
            return 0, self._execute(statement, values)
        (changed,) = self._execute(statement, values)[0]
        if self._done is not None and not values:
            self._done.append((statement, None))
        return int(changed), []

    def _execute(
        self, statement: str, values: Sequence[Any] = (), rows: pa.Table | None = None
    ) -> list[tuple[Any, ...]]:
        """Runs a statement, which reads `rows` as the table `_IN`. Returns the rows that it gives."""
        connection = self._open
        if rows is None:
            found: list[tuple[Any, ...]] = connection.execute(statement, list(values)).fetchall()
            return found
        connection.register(_IN, rows)
        found = connection.execute(statement).fetchall()
        connection.unregister(_IN)
        return found

    def _change(self, statement: str, rows: pa.Table | None = None) -> None:
        """Runs a statement that changes the table, and notes it for the next attempt of a trial."""
        with step("sql", self.table):
            self._execute(statement, (), rows)
        if self._done is None:
            return
        if self._done and not self.keys and rows is not None and self._done[-1][0] == statement:
            rows = pa.concat_tables([self._done.pop()[1], rows])  # one statement in place of many
        self._done.append((statement, rows))

    def as_text(self, name: str) -> str:
        return f"CAST({self.column(name)} AS VARCHAR)"

    def columns(self) -> Columns | None:
        _, found = self.run(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE database_name = current_database() AND NOT is_generated "
            "AND lower(schema_name) = lower(?) AND lower(table_name) = lower(?) ORDER BY column_index",
            self._place,
        )
        if not found:
            self._kinds = {}
            return None
        kinds = self._open.sql(f"SELECT * FROM {self._name} LIMIT 0").to_arrow_table().schema
        self._kinds = {self.same_column(name): (declared, kinds.field(name).type) for name, declared in found}
        return {name: _json_kind(declared, kinds.field(name).type) for name, declared in found}

    def misfit(self, field: "pa.Field[Any]") -> str:
        declared, own = self._kinds.get(self.same_column(field.name), ("", None))
        return "" if own is None or takes(declared, own, field.type) else declared

    def refused(self, data: pa.RecordBatch) -> dict[int, str]:
        found: dict[int, str] = {}
        for field, column in zip(data.schema, data.columns, strict=True):
            for row, why in refused_values(field.name, column, *self._kind(field)).items():
                found.setdefault(row, why)
        return found

    def _kind(self, field: "pa.Field[Any]") -> tuple[str, pa.DataType]:
        """Returns the types of a column, of DuckDB and of Arrow: those that it has, or would get."""
        if (known := self._kinds.get(self.same_column(field.name))) is not None:
            return known
        own = stored(field)
        return declared_type(own, field.name), own

    def has_rows(self) -> bool:
        return bool(self.run(f"SELECT 1 FROM {self._name} LIMIT 1")[1])

    def same_column(self, name: str) -> str:
        return name.lower()

    def create(self, schema: pa.Schema) -> None:
        columns = [f"{quoted(field.name)} {declared_type(stored(field), field.name)}" for field in schema]
        if self.keys:
            columns.append(f"PRIMARY KEY ({', '.join(map(quoted, self.keys))})")
        self._change(f"CREATE TABLE {self._name} ({', '.join(columns)})")

    def add_columns(self, schema: pa.Schema) -> None:
        for field in schema:
            added = f"{quoted(field.name)} {declared_type(stored(field), field.name)}"
            self._change(f"ALTER TABLE {self._name} ADD COLUMN {added}")

    def check_keys(self) -> None:
        wanted = {self.same_column(key) for key in self.keys}
        if not any(set(columns) == wanted for columns in self._unique()):
            raise UserError(
                f"table {self.table} of {self.path} has no unique index on {', '.join(self.keys)}",
                hint=f"CREATE UNIQUE INDEX ... ON {self._name} ({', '.join(map(quoted, self.keys))})",
            )
        if collated := wanted & self._collated():
            raise UserError(
                f"table {self.table} of {self.path}: its key {', '.join(sorted(collated))} has a collation, by which "
                "DuckDB compares values otherwise than its index does",
                hint="make the table without COLLATE",
            )

    def _unique(self) -> list[list[str]]:
        """Returns the columns of each unique constraint and index, folded; of an index by expressions, the expressions."""
        _, found = self.run(
            f"SELECT constraint_column_names FROM duckdb_constraints() WHERE {_OF_TABLE} "
            f"AND constraint_type IN ('PRIMARY KEY', 'UNIQUE') UNION ALL SELECT CAST(expressions AS VARCHAR[]) "
            f"FROM duckdb_indexes() WHERE {_OF_TABLE} AND is_unique",
            (*self._place, *self._place),
        )
        return [[self.same_column(_bare(name)) for name in names] for (names,) in found]

    def _collated(self) -> set[str]:
        """Returns the columns with a collation, folded."""
        _, made = self.run(f"SELECT sql FROM duckdb_tables() WHERE {_OF_TABLE}", self._place)
        return {self.same_column(_bare(name)) for (sql,) in made for name in _COLLATED.findall(sql)}

    def repeated(self, data: pa.RecordBatch) -> dict[int, list[tuple[str, int | None]]]:
        found: dict[int, list[tuple[str, int | None]]] = {}
        fields = {self.same_column(field.name): field for field in data.schema}
        try:
            with self.attempt():
                rows = pa.Table.from_batches([self._fitted(data)])
                rows = rows.append_column(_ROW, pa.array(np.arange(data.num_rows)))
                usable = fields.keys() - self._collated()
                for columns in self._unique():
                    if not usable.issuperset(columns):  # an expression, or the default of a column that does not come
                        continue
                    for row, first, there in self._execute(self._repeats(columns, fields), (), rows):
                        why = f"table {self.table} of {self.path}: another row has the same {', '.join(columns)}, which is unique"
                        found.setdefault(row, []).append((why, None if there else first))
        except (UserError, pa.ArrowException):  # of a value that does not fit: an attempt with its row tells more
            return {}
        return found

    def _repeats(self, columns: Sequence[str], fields: "dict[str, pa.Field[Any]]") -> str:
        """Returns the query for rows of `_IN` whose values of these columns an earlier row or a row of the table has."""
        keys = [f"key_{number}" for number in range(len(columns))]
        values = ", ".join(f"{self._value(fields[name])} AS {key}" for name, key in zip(columns, keys, strict=True))
        same = " AND ".join(f"there.{quoted(name)} = {key}" for name, key in zip(columns, keys, strict=True))
        known = " AND ".join(f"{key} IS NOT NULL" for key in keys)  # a null equals no other one
        return (
            f"WITH coming AS (SELECT {_ROW}, {values} FROM temp.{_IN} AS come), found AS (SELECT {_ROW}, min({_ROW}) "
            f"OVER (PARTITION BY {', '.join(keys)}) AS first, EXISTS (SELECT 1 FROM {self._name} AS there WHERE {same}) "
            f"AS known FROM coming WHERE {known}) SELECT {_ROW}, first, known FROM found WHERE known OR first < {_ROW}"
        )

    def try_types(self, empty: pa.RecordBatch) -> None:
        for field in empty.schema:
            declared_type(stored(field), field.name)

    def insert(self, data: pa.RecordBatch) -> None:
        rows, action = self._fitted(data), ""
        if self.keys:
            keys = ", ".join(map(quoted, self.keys))
            action = f" ON CONFLICT ({keys}) DO {self.replacing(data.schema.names)}"
            rows = last_of_each_key(rows, self.keys)  # a statement may not write one row twice
            last = self.last_of_equal(rows.select(self.keys))
            rows = rows if last is None else rows.take(pa.array(last, pa.int64()))
        names = ", ".join(map(quoted, rows.schema.names))
        values = ", ".join(map(self._value, rows.schema))
        statement = f"INSERT INTO {self._name} ({names}) SELECT {values} FROM temp.{_IN} AS come{action}"
        self._change(statement, pa.Table.from_batches([rows]))

    def delete(self, data: pa.RecordBatch) -> None:
        rows = self._fitted(data)
        same = " AND ".join(f"there.{quoted(field.name)} = {self._value(field)}" for field in rows.schema)
        self._change(
            f"DELETE FROM {self._name} AS there USING temp.{_IN} AS come WHERE {same}", pa.Table.from_batches([rows])
        )

    def last_of_equal(self, keys: pa.RecordBatch) -> list[int] | None:
        if all(identifies(*self._kind(field)) for field in keys.schema):
            return None
        rows = self._fitted(keys)
        numbered = pa.Table.from_batches([rows]).append_column(_ROW, pa.array(np.arange(keys.num_rows)))
        values = ", ".join(map(self._value, rows.schema))
        found = self._execute(f"SELECT max({_ROW}) FROM temp.{_IN} AS come GROUP BY {values}", (), numbered)
        return sorted(row for (row,) in found)

    def _fitted(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows in the types of the table. Raises Arrow's errors for values that a type does not hold."""
        columns = [
            fitted(column, *self._kind(field)[1:]) for field, column in zip(data.schema, data.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, names=data.schema.names)

    def _value(self, field: "pa.Field[Any]") -> str:
        """Returns the expression for a column of `_IN`, as a value of the column of the table."""
        name = f"come.{quoted(field.name)}"
        declared, own = self._kind(field)
        return name if own == field.type and not is_text(own) else f"CAST({name} AS {declared})"

    def make_tokens(self) -> None:
        with step("sql", TOKENS):
            self._execute(
                f"CREATE TABLE IF NOT EXISTS {self.tokens} "
                "(lane VARCHAR PRIMARY KEY, seq BIGINT, incarnation VARCHAR, owner VARCHAR NOT NULL)"
            )

    def expel(self, owner: str) -> None:
        """Does nothing: a transaction of another process ends with that process. Until then `begin` waits, at most 30
        s, and raises TransientError.
        """


def _json_kind(declared: str, own: pa.DataType) -> JsonKind:
    """Returns how JSON is read for a column."""
    types = pa.types
    if declared == "JSON":
        return "json"
    if types.is_timestamp(own):
        return pa.timestamp(own.unit, own.tz and "UTC")
    known = types.is_primitive(own) or types.is_decimal(own) or types.is_binary(own) or types.is_nested(own)
    if not known or types.is_time(own) or types.is_union(own) or not takes(declared, own, own):
        return "text"
    return own


def _hint_of_file(error: Exception) -> str:
    text = str(error)
    return next((hint for words, hint in _HINTS.items() if words in text), "")


def _first_line(error: Exception) -> str:
    """Returns what an error says, without the place in our statement and without DuckDB's stack."""
    return str(error).strip().partition("\n")[0].strip()


def _bare(name: str) -> str:
    """Returns a name as DuckDB writes it in an expression, without its quotes."""
    name = name.strip("'")
    return name[1:-1].replace('""', '"') if name[:1] == '"' else name
