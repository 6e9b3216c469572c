"""Tables of databases: 'connector' = 'jdbc' and its kin, which are read, looked up and written, and 'postgres-cdc', which is followed.
Their options are those of Flink's connectors of these names.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa

from sabot.api.calls import LookupOptions
from sabot.base.threads import run_in_thread
from sabot.connectors.generated import GeneratorSource
from sabot.sql.formats import declared_columns
from sabot.sql.scope import FindsRows, at
from sabot.sql.syntax.text import SqlFault, list_names
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.table_options import YES_OR_NO, Options, delivery_of
from sabot.sql.types import arrow_type

if TYPE_CHECKING:
    from sabot.api.stream import Stream
    from sabot.connectors.base import Sink
    from sabot.connectors.sql.reading import DatabaseTable

_log = logging.getLogger(__name__)

_MODES = {"initial": "initial", "latest-offset": "latest", "snapshot": "snapshot"}
_PLUGINS = {"pgoutput": "pgoutput"}


def read_postgres_changes(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table of PostgreSQL and its changes. Raises SqlFault."""
    from sabot.connectors.postgres import PostgresChanges

    host, database = options.need("hostname"), options.need("database-name")
    table = f"{options.take('schema-name') or 'public'}.{options.need('table-name')}"
    user, password = options.take("username"), options.take("password")
    login = "" if user is None else quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    url = f"postgresql://{login}{'@' if login else ''}{host}:{options.take('port') or 5432}/{quote(database, safe='')}"
    options.choose("decoding.plugin.name", _PLUGINS)
    mode = options.choose("scan.startup.mode", _MODES, "initial")
    given: dict[str, Any] = {"slot": options.take("slot.name"), "publication": options.take("publication.name")}
    given["heartbeat"] = options.duration("heartbeat.interval") or options.duration("heartbeat.interval.ms")
    if ignored := sorted(options.prefixed("debezium.")):
        _log.warning("table %s: the options 'debezium.*' have no effect: %s", options.table, ", ".join(ignored))
    _refuse_metadata(statement, "PostgreSQL")
    with at(options.span):
        source = PostgresChanges(url, table, **{name: value for name, value in given.items() if value is not None})

    def open_rows(app: Any, more: "dict[str, Any]") -> "Stream":
        wanted = more.pop("schema", None)
        found = source.infer_schema()
        for name in () if wanted is None else wanted.names:
            if name not in found.names:
                column = next(each for each in statement.columns if each.name.text == name)
                raise SqlFault(
                    column.span, f"column {name} is not in the table {source.name}", list_names(name, found.names)
                )
        key = [name.text for name in statement.key]
        if key and mode == "initial" and set(key) != set(source.keys):
            message = f"the key of the table {source.name} is {', '.join(source.keys)}"
            raise SqlFault(statement.key[0].span, message, f"PRIMARY KEY ({', '.join(source.keys)}) NOT ENFORCED")
        places: dict[str, Any] = {"snapshot": {"until": "now"}, "latest": {"start": "latest"}}.get(mode, {})
        read = app.table if mode == "initial" else app.stream
        stream: Stream = read(source, **more, **places)
        if wanted is None:
            return stream
        return stream.select(**declared_columns(found, wanted, statement, f"the table {source.name}"))

    return open_rows


# -- SQLite, DuckDB and PostgreSQL --------------------------------------------------------------------------------------

AT_ONCE = 4  # lookups of a subtask, each with a connection
_CACHED = 10_000


def _address(options: Options) -> str:
    url = options.need("url").removeprefix("jdbc:")
    user, password = options.take("username", "user"), options.take("password")
    if user is None and password is None:
        return url
    scheme, _, rest = url.partition("://")
    login = quote(user or "", safe="") + (f":{quote(password, safe='')}" if password is not None else "")
    return f"{scheme}://{login}@{rest.rpartition('@')[2]}"


def write_sql(options: Options) -> "Callable[[Any], tuple[str | Sink, dict[str, Any]]]":
    """Returns the writer of a table of a database. Raises SqlFault."""
    from sabot.connectors.sql import SqlSink

    span = options.value_span("url")
    url, table = _address(options), options.need("table-name", "table")
    written = delivery_of(options)
    evolve = options.choose("evolve", YES_OR_NO, False)
    with at(span):
        sink = SqlSink(url, table, evolve=evolve)
    return lambda app: (sink, written)


def read_sql(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of the rows that a table of a database has. Raises SqlFault."""
    table, schema = _table(options, statement)
    finds = _finds_rows(options.table, table, schema, _of_lookups(options))

    def open_rows(app: Any, given: "dict[str, Any]") -> "Stream":
        given.pop("schema", None)
        source = DatabaseRows(table.rows, options.table, schema, bounded=True)
        source.finds, source.key = finds, tuple(name.text for name in statement.key)
        rows: Stream = app.stream(source, **given)
        return rows

    return open_rows


class DatabaseRows(GeneratorSource):
    """The rows that a table of a database has. `finds`: finds those of a key, for `FOR SYSTEM_TIME AS OF` a PROCTIME(). `key`: the
    PRIMARY KEY of the statement.
    """

    finds: FindsRows
    key: tuple[str, ...]


def _finds_rows(name: str, table: "DatabaseTable", schema: pa.Schema, given: LookupOptions) -> FindsRows:
    from sabot.connectors.sql import reading

    row = pa.list_(pa.struct(list(schema)))

    def of_columns(columns: Sequence[str]) -> tuple[Callable[[Any], Any], LookupOptions]:
        async def lookup(key: Any) -> Mapping[str, Any] | None:
            values = key if len(columns) > 1 else (key,)
            while (found := await run_in_thread(table.found, columns, values)) is None:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(reading.PAUSE_SECONDS)
            return {"found": found} if found else None

        lookup.__name__ = lookup.__qualname__ = name
        return lookup, {**given, "schema": pa.schema([("found", row)])}

    return of_columns


def _table(options: Options, statement: CreateTable) -> "tuple[DatabaseTable, pa.Schema]":
    from sabot.connectors.sql.reading import DatabaseTable

    span = options.value_span("url")
    url, table = _address(options), options.need("table-name", "table")
    _refuse_metadata(statement, "a database")
    columns = {each.name.text: arrow_type(each.type) for each in statement.columns if each.type is not None}
    if not columns:
        message = f"table {options.table} needs columns to be read"
        raise SqlFault(options.span, message, f"CREATE TABLE {options.table} (id BIGINT, …)")
    schema = pa.schema(list(columns.items()))
    with at(span):
        return DatabaseTable(url, table, schema, [name.text for name in statement.key]), schema


def _of_lookups(options: Options) -> LookupOptions:
    """Returns the options of `Stream.lookup` that a table says. As in Flink, no answers are kept unless it says so."""
    retries = options.number("lookup.max-retries")
    found: LookupOptions = {"concurrency": AT_ONCE, "retries": 3 if retries is None else max(0, int(retries))}
    kind = options.value_span("lookup.cache")
    chosen = options.take("lookup.cache")
    if chosen is not None and chosen.upper() not in ("NONE", "PARTIAL"):
        hint = "'PARTIAL' keeps the answers of the keys that come; without AS OF, a join reads the whole table"
        raise SqlFault(kind, f"'lookup.cache' = '{chosen}' is not there", hint)
    rows = options.number("lookup.partial-cache.max-rows")
    rows = options.number("lookup.cache.max-rows") if rows is None else rows
    ages = [
        options.duration(name)
        for name in (
            "lookup.partial-cache.expire-after-write",
            "lookup.partial-cache.expire-after-access",
            "lookup.cache.ttl",
        )
    ]
    age = next((each for each in ages if each is not None), None)
    if (chosen or "").upper() == "NONE" or (chosen is None and rows is None and age is None):
        return {**found, "cache": 0}
    return {**found, "cache": _CACHED if rows is None else max(0, int(rows)), "cache_ttl": age}


def _refuse_metadata(statement: CreateTable, of: str) -> None:
    metadata = next((each for each in statement.columns if each.metadata is not None), None)
    if metadata is not None:
        raise SqlFault(metadata.span, f"rows of a table of {of} have no METADATA", "leave the column out")
