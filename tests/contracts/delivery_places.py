"""The places that the suite of exactly once runs on: how to make one, and how to look at it from outside.

Another one: a class like these, and a line in PLACES.
"""

import contextlib
import json
import re
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import psycopg
import pyarrow as pa
import redis
from pyiceberg.catalog import load_catalog

from sabot.connectors.base import Sink
from sabot.connectors.delta import DeltaSink
from sabot.connectors.files import ObjectSink
from sabot.connectors.iceberg import IcebergSink
from sabot.connectors.memory import MemoryBroker, MemorySink
from sabot.connectors.redis import RedisStreamSink
from sabot.connectors.sql import SqlSink
from sabot.testing.connectors import ConnectorPlace
from sabot.testing.connectors.place import Row
from tools.checkpoint_tools import in_memory
from tools.iceberg_lake import lake_of, rows_in_lake
from tools.postgres import server_or_skip
from tools.redis_server import server_or_skip as redis_server


class MemoryDelivery(ConnectorPlace):
    """A topic of the embedded broker."""

    def __init__(self) -> None:
        self._url = f"memory://{uuid.uuid4().hex}"

    def sink(self) -> Sink:
        return MemorySink("results", self._url)

    def rows(self) -> list[Row]:
        return [_row(record.value) for record in MemoryBroker.get(self._url).records("results")]


class SqliteDelivery(ConnectorPlace):
    """A table of a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.db"

    def sink(self) -> Sink:
        return SqlSink(f"sqlite://{self.path}", "results")

    def rows(self) -> list[Row]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'results'").fetchone():
                return []
            return connection.execute("SELECT n, text FROM results ORDER BY rowid").fetchall()

    def values(self) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [value for (value,) in connection.execute("SELECT v FROM results ORDER BY n")]

    def refuse(self, numbers: Sequence[int]) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute(f"CREATE TABLE results (n INTEGER CHECK (n NOT IN {_listed(numbers)}), text TEXT)")

    def drop(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("DROP TABLE results")


class DuckDelivery(ConnectorPlace):
    """A table of a DuckDB file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.duckdb"

    def sink(self) -> Sink:
        return SqlSink(f"duckdb://{self.path}", "results")

    def rows(self) -> list[Row]:
        with duckdb.connect(self.path) as connection:
            tables = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
            found = "SELECT n, text FROM results ORDER BY rowid"
            return connection.execute(found).fetchall() if ("results",) in tables else []

    def values(self) -> list[Any]:
        with duckdb.connect(self.path) as connection:
            return connection.sql("SELECT v FROM results ORDER BY n").to_arrow_table().column(0).to_pylist()

    def refuse(self, numbers: Sequence[int]) -> None:
        with duckdb.connect(self.path) as connection:
            connection.execute(f"CREATE TABLE results (n BIGINT CHECK (n NOT IN {_listed(numbers)}), text VARCHAR)")

    def drop(self) -> None:
        with duckdb.connect(self.path) as connection:
            connection.execute("DROP TABLE results")


class PostgresDelivery(ConnectorPlace):
    """A table of a PostgreSQL server, in a schema of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = f"s{uuid.uuid4().hex}.results"
        self._execute(f"CREATE SCHEMA {self.table.partition('.')[0]}")

    def sink(self) -> Sink:
        return SqlSink(self.url, self.table)

    def rows(self) -> list[Row]:
        with psycopg.connect(self.url) as connection:
            if connection.execute("SELECT to_regclass(%s)", (self.table,)).fetchone() == (None,):
                return []
            return connection.execute(f"SELECT n, text FROM {self.table} ORDER BY ctid").fetchall()  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            found = connection.execute(f"SELECT v FROM {self.table} ORDER BY n")  # type: ignore[arg-type]
            return [value for (value,) in found.fetchall()]

    def refuse(self, numbers: Sequence[int]) -> None:
        self._execute(f"CREATE TABLE {self.table} (n bigint CHECK (n NOT IN {_listed(numbers)}), text text)")

    def drop(self) -> None:
        self._execute(f"DROP TABLE {self.table}")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


class RedisDelivery(ConnectorPlace):
    """A stream of a Redis server, written in chunks of two rows."""

    def __init__(self, url: str) -> None:
        self.url, self.stream = url, f"results-{uuid.uuid4().hex}"

    def sink(self) -> Sink:
        sink = RedisStreamSink(self.url, self.stream)
        sink.chunk_rows = 2
        return sink

    def rows(self) -> list[Row]:
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            return [_row(json.loads(fields[b"value"])) for _, fields in client.xrange(self.stream)]

    def drop(self) -> None:
        """A stream that is deleted is made again by the next entry, with all rows if the token is gone too; so another value is there."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            client.set(self.stream, "no stream any more")


class ObjectDelivery(ConnectorPlace):
    """A folder of an object store."""

    fences = False

    def __init__(self) -> None:
        self._store, self._handler = in_memory()

    def sink(self) -> Sink:
        return ObjectSink((self._store, "bucket/results"), "ndjson")

    def rows(self) -> list[Row]:
        objects = sorted((path, data) for path, data in self._handler.files.items() if not path.endswith(".tmp"))
        return [_row(json.loads(line)) for _, data in objects for line in data.splitlines()]


class DeltaDelivery(ConnectorPlace):
    """A table of Delta Lake."""

    def __init__(self, folder: Path) -> None:
        self._table = folder / uuid.uuid4().hex

    def sink(self) -> Sink:
        return DeltaSink(self._table, schema=pa.schema([("n", pa.int64()), ("text", pa.string())]))

    def refuse(self, numbers: Sequence[int]) -> None:
        fields = deltalake.Schema.from_arrow(pa.schema([("n", pa.int64()), ("text", pa.string())]))
        table = deltalake.DeltaTable.create(self._table, fields)
        table.alter.add_constraint({"allowed": " AND ".join(f"n <> {n}" for n in numbers)})

    def drop(self) -> None:
        shutil.rmtree(self._table)

    def rows(self) -> list[Row]:
        if not self._table.exists():
            return []
        connection = duckdb.connect()  # its own reader of Parquet, over the files that the log of the table lists
        files = deltalake.DeltaTable(self._table).file_uris()
        if not files:
            return []
        return connection.execute("SELECT n, text FROM read_parquet(?) ORDER BY n", [files]).fetchall()


class IcebergDelivery(ConnectorPlace):
    """A table of Iceberg, in a catalog in a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self._catalog = lake_of(folder)
        self._table = f"lake.t{uuid.uuid4().hex}"

    def sink(self) -> Sink:
        return IcebergSink(self._catalog, self._table, schema=pa.schema([("n", pa.int64()), ("text", pa.string())]))

    def drop(self) -> None:
        with contextlib.closing(load_catalog("default", **self._catalog)) as catalog:
            catalog.drop_table(self._table)

    def rows(self) -> list[Row]:
        found = rows_in_lake(self._catalog, self._table)
        return sorted(((row["n"], row["text"]) for row in found), key=lambda row: row[0])


class DocumentedDelivery(ConnectorPlace):
    """The sink of a user's own that docs/sinks.md shows."""

    fences = False

    def __init__(self, folder: Path) -> None:
        page = (Path(__file__).parents[2] / "docs" / "sinks.md").read_text()
        programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        (program,) = [text for text in programs if "class Parts" in text]
        names: dict[str, Any] = {}
        exec(program, names)
        self._class: Callable[[Path], Sink] = names["Parts"]
        self._folder = folder / uuid.uuid4().hex

    def sink(self) -> Sink:
        return self._class(self._folder)

    def rows(self) -> list[Row]:
        return [_row(value) for path in sorted(self._folder.glob("*.json")) for value in json.loads(path.read_text())]


def _listed(numbers: Sequence[int]) -> str:
    return f"({', '.join(map(str, numbers))})"


def _row(value: dict[str, Any]) -> Row:
    return value["n"], value["text"]


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[Callable[[], ConnectorPlace]]:
    with server_or_skip().database() as url:
        yield lambda: PostgresDelivery(url)


PLACES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Callable[[], ConnectorPlace]]]] = {
    "memory": lambda folder: contextlib.nullcontext(MemoryDelivery),
    "sqlite": lambda folder: contextlib.nullcontext(lambda: SqliteDelivery(folder)),
    "duckdb": lambda folder: contextlib.nullcontext(lambda: DuckDelivery(folder)),
    "postgres": _postgres,
    "redis": lambda folder: contextlib.nullcontext(partial(RedisDelivery, redis_server().url)),
    "delta": lambda folder: contextlib.nullcontext(lambda: DeltaDelivery(folder)),
    "iceberg": lambda folder: contextlib.nullcontext(lambda: IcebergDelivery(folder)),
    "objects": lambda folder: contextlib.nullcontext(ObjectDelivery),
    "documented": lambda folder: contextlib.nullcontext(lambda: DocumentedDelivery(folder)),
}
"""By name: a function that takes a folder for files, and returns one that makes empty places."""
