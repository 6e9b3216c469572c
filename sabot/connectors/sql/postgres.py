"""A table of PostgreSQL. Rows are sent by COPY, as CSV that Arrow writes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from sabot.connectors.sql.database import TOKENS, Database, quoted
from sabot.connectors.sql.postgres_values import moments, refused_values, spans, takes, tells_apart
from sabot.connectors.sql.rows import Columns, JsonKind, hex_text, json_text, last_of_each_key, not_held
from sabot.connectors.sql.server import PostgresServer
from sabot.errors import UserError
from sabot.steps import step

_ROWS = 16384  # rows that become CSV at once
# Temporary tables of this session: for rows that replace others, for keys of rows to delete, and for keys to compare.
_ROWS_IN, _KEYS_OUT, _KEYS_SAME = '"sabot_rows"', '"sabot_keys"', '"sabot_same"'
_INSERT, _NUMBER = "sabot_insert", "sabot_row_number"
_TWICE = "21000"  # the code of an INSERT that would write one row twice
# The type of a column `a` with its digits; of a domain that of its values.
_BELOW_DOMAINS = """
WITH RECURSIVE below (kind, digits, type, next, next_digits) AS (
    SELECT oid, a.atttypmod, typtype, typbasetype, typtypmod FROM pg_type WHERE oid = a.atttypid
    UNION ALL
    SELECT oid, next_digits, typtype, typbasetype, typtypmod FROM below JOIN pg_type ON oid = next WHERE type = 'd'
) SELECT kind, digits FROM below WHERE type <> 'd'
"""
_LOCK = 0x5AB07  # held while tables are made, so that two processes do not make one table


class PostgresDatabase(Database):
    """A table of PostgreSQL. Its name may have a schema (`sales.alerts`); the table of tokens is in the same schema."""

    mark = "%s"

    def __init__(self, url: str, table: str, keys: Sequence[str]) -> None:
        super().__init__(table, keys)
        schema, _, name = table.rpartition(".")
        self._prefix = f"{quoted(schema)}." if schema else ""
        self._name = self._prefix + quoted(name)
        self._connection: Any = None
        self._types: dict[str, str] = {}
        self._whole_types: dict[str, str] = {}  # with lengths and digits
        self._folds: set[str] = set()  # columns whose collation finds different texts equal
        self._has_policies = False  # for the rows that this user writes: COPY refuses such a table
        self._staged: dict[str, list[str]] = {}  # the columns of the temporary tables of this session, by name
        self._server = PostgresServer(url, f"table {table}", "a sink into PostgreSQL")

    @property
    def where(self) -> str:
        return self._server.where

    @property
    def name(self) -> str:
        return self._name.replace("%", "%%")

    def column(self, name: str) -> str:
        return quoted(name).replace("%", "%%")

    def as_text(self, name: str) -> str:
        return f"{self.column(name)}::text"

    @property
    def tokens(self) -> str:
        return (self._prefix + quoted(TOKENS)).replace("%", "%%")

    def connect(self, session: str) -> None:
        self.close()
        self._connection = self._server.connect(session)
        self._connection.autocommit = False

    def close(self) -> None:
        connection, self._connection, self._staged = self._connection, None, {}
        if connection is not None:
            connection.close()

    @property
    def _open(self) -> Any:
        if self._connection is None:
            raise UserError(f"the sink of table {self.table} is not open")
        return self._connection

    def begin(self) -> None:
        """Does nothing: the first statement begins a transaction."""
        assert self._open is not None

    def commit(self) -> None:
        self._open.commit()

    def explained(self) -> AbstractContextManager[None]:
        return self._server.explained()

    def run(self, statement: str, values: Sequence[Any] = ()) -> tuple[int, list[tuple[Any, ...]]]:
        cursor = self._open.execute(statement, values)
        return cursor.rowcount, cursor.fetchall() if cursor.description is not None else []

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows = super().read(statement, values)
        with self.explained():
            self.commit()  # the query has begun a transaction
        return rows

    def columns(self) -> Columns | None:
        _, rows = self.run(
            "SELECT attname, format_type(kind, NULL), format_type(kind, digits), collisdeterministic, row_security_active(attrelid) "
            f"FROM pg_attribute a CROSS JOIN LATERAL ({_BELOW_DOMAINS}) AS d LEFT JOIN pg_collation c ON c.oid = attcollation "
            "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
            (self._name,),
        )
        self._types = {name: kind for name, kind, *_ in rows}
        self._whole_types = {name: whole for name, _, whole, *_ in rows}
        self._folds = {name for name, _, _, exact, _ in rows if exact is False}
        self._has_policies = any(active for *_, active in rows)
        return {name: _JSON_KINDS.get(kind, "text") for name, kind in self._types.items()} or None

    def misfit(self, field: "pa.Field[Any]") -> str:
        declared = self._types.get(field.name, "")
        return "" if takes(declared, field.type) else declared

    def refused(self, data: pa.RecordBatch) -> dict[int, str]:
        found: dict[int, str] = {}
        for name, column in zip(data.schema.names, data.columns, strict=True):
            declared = self._types.get(name, "")
            for row, why in refused_values(name, column, declared, self._whole_types.get(name, "")).items():
                found.setdefault(row, why)
        return found

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Checks at the end of the block what the database would check at the commit: constraints that are deferred."""
        with super().attempt():
            yield
            self.run("SAVEPOINT sabot_deferred")
            self.run("SET CONSTRAINTS ALL IMMEDIATE")
            self.run("ROLLBACK TO SAVEPOINT sabot_deferred")  # the checks stay to be made at the commit
            self.run("RELEASE SAVEPOINT sabot_deferred")

    def undo(self) -> None:
        super().undo()
        self._staged = {}

    def has_rows(self) -> bool:
        _, allowed = self.run("SELECT has_table_privilege(%s, 'SELECT')", (self._name,))  # a sink needs only INSERT
        return allowed == [(True,)] and bool(self.run(f"SELECT 1 FROM {self.name} LIMIT 1")[1])

    def same_column(self, name: str) -> str:
        return name

    def create(self, schema: pa.Schema) -> None:
        columns = [f"{quoted(field.name)} {_declared(field)}" for field in schema]
        if self.keys:
            columns.append(f"PRIMARY KEY ({', '.join(map(quoted, self.keys))})")
        self._make(self._name, ", ".join(columns), self.table)

    def _make(self, name: str, columns: str, what: str) -> None:
        """Makes a table under a lock, because CREATE TABLE IF NOT EXISTS fails if two transactions run it at the same
        time.
        """
        self.run("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        with step("sql", what):
            self._execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns})")

    def add_columns(self, schema: pa.Schema) -> None:
        added = ", ".join(f"ADD COLUMN IF NOT EXISTS {quoted(field.name)} {_declared(field)}" for field in schema)
        self._staged = {}  # the temporary tables have the types of the columns that were there before
        with step("sql", self.table):
            self._execute(f"ALTER TABLE {self._name} {added}")

    def check_keys(self) -> None:
        _, rows = self.run(
            "SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
            "AND a.attnum = ANY(i.indkey) WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indpred IS NULL "
            "AND i.indexprs IS NULL AND i.indimmediate GROUP BY i.indexrelid",
            (self._name,),
        )
        if not any(set(names) == set(self.keys) for (names,) in rows):
            raise UserError(
                f"table {self.table} of {self.where} has no unique index on {', '.join(self.keys)}",
                hint=f"CREATE UNIQUE INDEX ON {self._name} ({', '.join(map(quoted, self.keys))})",
            )

    def try_types(self, empty: pa.RecordBatch) -> None:
        for field, column in zip(empty.schema, empty.columns, strict=True):
            _text(column, field.name, _declared(field))

    def insert(self, data: pa.RecordBatch) -> None:
        names = list(data.schema.names)
        columns, keys = ", ".join(map(quoted, names)), ", ".join(map(quoted, self.keys))
        # as COPY does: values of identity columns are those of the rows
        into = f"INSERT INTO {self._name} ({columns}) OVERRIDING SYSTEM VALUE"
        if not self.keys:
            if not self._has_policies:
                return self._copy(data, self._name)
            staged = self._stage(data, _ROWS_IN)
            with step("sql", self.table):
                self._execute(f"{into} SELECT {columns} FROM {staged}")
            self._execute(f"DELETE FROM {staged}")
            return None
        rows = last_of_each_key(data, self.keys)
        staged = self._stage(rows, _ROWS_IN)
        action = f"ORDER BY {keys} ON CONFLICT ({keys}) DO {self.replacing(names)}"
        self.run(f"SAVEPOINT {_INSERT}")
        try:
            with step("sql", self.table):
                self._execute(f"{into} SELECT {columns} FROM {staged} {action}")
        except Exception as error:
            if getattr(error, "sqlstate", None) != _TWICE:
                raise
            # Keys that differ here are equal in the database, by the type or the collation of its columns.
            self.run(f"ROLLBACK TO SAVEPOINT {_INSERT}")
            numbered = rows.append_column(_NUMBER, pa.array(np.arange(rows.num_rows)))
            staged = self._stage(numbered, _ROWS_IN)
            last = f"SELECT DISTINCT ON ({keys}) {columns} FROM {staged} ORDER BY {keys}, {_NUMBER} DESC"
            with step("sql", self.table):
                self._execute(f"{into} SELECT {columns} FROM ({last}) AS last_rows {action}")
        self.run(f"RELEASE SAVEPOINT {_INSERT}")
        self._execute(f"DELETE FROM {staged}")
        return None

    def delete(self, data: pa.RecordBatch) -> None:
        staged = self._stage(data, _KEYS_OUT)
        same = " AND ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in data.schema.names)
        with step("sql", self.table):
            self._execute(f"DELETE FROM {self._name} t USING {staged} s WHERE {same}")
        self._execute(f"DELETE FROM {staged}")

    def last_of_equal(self, keys: pa.RecordBatch) -> list[int] | None:
        types, whole = self._types, self._whole_types
        if not any(
            field.name in self._folds
            or not tells_apart(types.get(field.name, ""), whole.get(field.name, ""), field.type)
            for field in keys.schema
        ):
            return None
        staged = self._stage(keys.append_column(_NUMBER, pa.array(np.arange(keys.num_rows))), _KEYS_SAME)
        names = ", ".join(map(quoted, keys.schema.names))
        with step("sql", self.table):
            rows = self._open.execute(f"SELECT max({_NUMBER}) FROM {staged} GROUP BY {names}").fetchall()
        self._execute(f"DELETE FROM {staged}")
        return sorted(row for (row,) in rows)

    def _stage(self, data: pa.RecordBatch, name: str) -> str:
        """Writes rows into a temporary table of this session, whose columns have the types of the real table. Returns
        its name.
        """
        names = list(data.schema.names)
        staged = f"pg_temp.{name}"
        if self._staged.get(name) != names:
            columns = ", ".join(map(quoted, names))
            columns = columns.removesuffix(quoted(_NUMBER)) + f"0::bigint AS {_NUMBER}" if _NUMBER in names else columns
            self._execute(f"DROP TABLE IF EXISTS {staged}")
            self._execute(
                f"CREATE TEMP TABLE {name} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {self._name} WITH NO DATA"
            )
            self._staged[name] = names
        self._copy(data, staged)
        return staged

    def _copy(self, data: pa.RecordBatch, target: str) -> None:
        types = self._types
        columns = [
            _text(column, name, types.get(name, ""))
            for name, column in zip(data.schema.names, data.columns, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(columns, names=data.schema.names)
        names = ", ".join(map(quoted, data.schema.names))
        with (
            step("sql", self.table),
            self._open.cursor() as cursor,
            cursor.copy(f"COPY {target} ({names}) FROM STDIN WITH (FORMAT csv)") as copy,
        ):
            for start in range(0, rows.num_rows, _ROWS):
                text = pa.BufferOutputStream()
                csv.write_csv(rows.slice(start, _ROWS), text, _CSV)
                copy.write(memoryview(text.getvalue()))

    def _execute(self, statement: str) -> None:
        """Runs a statement without values, in which a `%` in a name is an ordinary character."""
        self._open.execute(statement)

    def make_tokens(self) -> None:
        name = self._prefix + quoted(TOKENS)
        _, [(there,)] = self.run("SELECT to_regclass(%s) IS NOT NULL", (name,))
        if not there:  # so a user who may not create tables can use existing ones
            self._make(name, "lane text PRIMARY KEY, seq bigint, incarnation text, owner text NOT NULL", TOKENS)

    def expel(self, owner: str) -> None:
        """Ends the session of a process that hangs in a transaction, which would lock the track's row for ever. An
        idle process needs no end: its next statement raises that it has lost the track.
        """
        with step("expel", owner):
            self.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = %s AND state <> 'idle' AND pid <> pg_backend_pid()",
                (owner,),
            )


# COPY reads an empty field as null, and `""` as an empty text.
_CSV = csv.WriteOptions(include_header=False)

_JSON_KINDS: dict[str, JsonKind] = {
    "json": "json",
    "jsonb": "json",
    "boolean": pa.bool_(),
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}

_DECLARED: list[tuple[Any, str]] = [
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_int8, "smallint"),
    (pa.types.is_int16, "smallint"),
    (pa.types.is_int32, "integer"),
    (pa.types.is_int64, "bigint"),
    (pa.types.is_uint8, "smallint"),
    (pa.types.is_uint16, "integer"),
    (pa.types.is_uint32, "bigint"),
    (pa.types.is_uint64, "numeric(20)"),
    (pa.types.is_float64, "double precision"),
    (pa.types.is_floating, "real"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (pa.types.is_duration, "bigint"),
    (pa.types.is_binary, "bytea"),
    (pa.types.is_fixed_size_binary, "bytea"),
    (pa.types.is_string, "text"),
    (pa.types.is_null, "text"),
    (pa.types.is_nested, "jsonb"),
]


def _declared(field: "pa.Field[Any]") -> str:
    """Returns the type of a column for this field."""
    kind: Any = field.type
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamptz"
    for is_kind, declared in _DECLARED:
        if is_kind(kind):
            return declared
    raise not_held(field.name, kind)


def _text(column: Any, name: str, declared: str) -> Any:
    """Returns a column in a form that Arrow's CSV writer can write and COPY can read."""
    kind = column.type
    types = pa.types
    if types.is_nested(kind):
        return json_text(column, name)
    if types.is_binary(kind) or types.is_fixed_size_binary(kind) or (types.is_string(kind) and declared == "bytea"):
        if declared == "bytea":
            return hex_text(column)
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid as error:
            raise UserError(
                f"column {name!r} is {declared}, and a binary value is no UTF-8 text", hint="a bytea column holds it"
            ) from error
    if types.is_timestamp(kind) or types.is_date(kind):
        return moments(column, of_utc=declared == "timestamp with time zone")
    if types.is_time(kind):
        clock = column.cast(pa.time64("us"), safe=False)
        return (
            pc.binary_join_element_wise(clock.cast(pa.string()), "+00", "") if "with time zone" in declared else clock
        )
    if types.is_duration(kind):
        return spans(column) if declared == "interval" else column.cast(pa.int64())
    if types.is_float16(kind):
        return column.cast(pa.float32())
    if types.is_null(kind) or types.is_decimal(kind):
        return column.cast(pa.string())
    if types.is_primitive(kind) or types.is_string(kind):
        return column
    raise not_held(name, kind)
