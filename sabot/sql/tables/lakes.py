"""Tables of lakehouses: 'connector' = 'delta' and 'iceberg', with the options of Flink's connectors of these names."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sabot.sql.scope import at
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.table_options import YES_OR_NO, Options, delivery_of

if TYPE_CHECKING:
    from sabot.api.stream import Stream
    from sabot.connectors.base import Sink

_MODES = {"batch": False, "streaming": True}
_CATALOGS = {"rest": "rest", "jdbc": "sql", "sql": "sql", "glue": "glue", "hive": "hive"}
_OF_CATALOGS = ("token", "credential", "scope", "oauth2-server-uri", "user", "password")
_FAMILIES = ("s3.", "gcs.", "adls.", "hdfs.", "glue.", "rest.", "header.", "client.")


def read_delta(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table of Delta Lake. Raises SqlFault."""
    from sabot.connectors.delta import DeltaSource

    path = options.need("table-path", "path")
    feed, first = options.key_span("readChangeFeed"), options.key_span("startingVersion")
    follows = options.choose("mode", _MODES, False)
    interval = options.duration("monitor-interval") or "60s"
    changes = options.choose("readChangeFeed", YES_OR_NO, False)
    latest = options.given("startingVersion") == "latest"
    if latest:
        options.take("startingVersion")
    version, since = options.number("versionAsOf"), options.number("startingVersion")
    keys = [name.text for name in statement.key]
    if changes and not (keys and follows):
        hint = "'mode' = 'streaming'" if keys else "PRIMARY KEY (id) NOT ENFORCED says which columns name a row"
        raise SqlFault(feed, "changes are read by a key, from a table that is followed", hint)
    if latest and not follows:
        hint = "'mode' = 'streaming'"
        raise SqlFault(first, "only a table that is followed has a latest version", hint)
    with at(options.span):
        source = DeltaSource(
            path,
            version=None if version is None else int(version),
            since=None if since is None else int(since),
            follow=interval if follows else None,
            keys=keys if changes else (),
            storage_options=options.prefixed("storage."),
        )
    places = {"start": "latest"} if latest else {}
    return lambda app, given: (app.table if changes else app.stream)(source, **given, **places)


def write_delta(options: Options, statement: CreateTable) -> "Callable[[Any], tuple[Sink, dict[str, Any]]]":
    """Returns the writer of a table of Delta Lake. Raises SqlFault."""
    from sabot.connectors.delta import DeltaSink

    path = options.need("table-path", "path")
    written = delivery_of(options)
    evolve = options.choose("evolve", YES_OR_NO, False)
    gather = options.duration("gather") or "0s"
    stored = options.prefixed("storage.")
    partitions = [name.text for name in statement.partition]
    with at(options.span):
        sink = DeltaSink(path, partition_by=partitions, evolve=evolve, gather=gather, storage_options=stored)
    return lambda app: (sink, written)


def read_iceberg(options: Options, statement: CreateTable) -> "Callable[[Any, dict[str, Any]], Stream]":
    """Returns the reader of a table of Iceberg. Raises SqlFault."""
    from sabot.connectors.iceberg import IcebergSource

    catalog, table = _iceberg_table(options)
    snapshot = options.number("snapshot-id")
    follows = options.choose("streaming", YES_OR_NO, False)
    interval = options.duration("monitor-interval") or "60s"
    with at(options.span):
        source = IcebergSource(
            catalog,
            table,
            snapshot=None if snapshot is None else int(snapshot),
            follow=interval if follows else None,
        )
    return lambda app, given: app.stream(source, **given)


def write_iceberg(options: Options, statement: CreateTable) -> "Callable[[Any], tuple[Sink, dict[str, Any]]]":
    """Returns the writer of a table of Iceberg. Raises SqlFault."""
    from sabot.connectors.iceberg import IcebergSink

    if options.given("write.upsert.enabled") == "true":
        raise SqlFault(
            options.key_span("write.upsert.enabled"),
            "rows of a table of Iceberg are not replaced",
            "a view whose rows are final, or a table of 'connector' = 'jdbc'",
        )
    options.take("write.upsert.enabled")
    catalog, table = _iceberg_table(options)
    written = delivery_of(options)
    evolve = options.choose("evolve", YES_OR_NO, False)
    gather = options.duration("gather") or "1m"
    partitions = [name.text for name in statement.partition]
    with at(options.span):
        sink = IcebergSink(catalog, table, partition_by=partitions, evolve=evolve, gather=gather)
    return lambda app: (sink, written)


def _iceberg_table(options: Options) -> "tuple[str | dict[str, str], str]":
    """Returns the properties of the catalog, or its name in the configuration of pyiceberg, and the name of the table."""
    table = f"{options.take('catalog-database') or 'default'}.{options.take('catalog-table') or options.table}"
    name = options.take("catalog-name")
    if options.given("catalog-type") is None and options.given("uri") is None:
        if name is None:
            options.need("catalog-type")
        return str(name), table
    settings = {"type": options.choose("catalog-type", _CATALOGS, "rest"), "name": name or "default"}
    for each in ("uri", "warehouse", *_OF_CATALOGS):
        if (value := options.take(each)) is not None:
            settings[each] = value
    for family in _FAMILIES:
        settings |= {f"{family}{each}": value for each, value in options.prefixed(family).items()}
    if settings["type"] == "sql":
        settings["uri"] = settings.get("uri", "").removeprefix("jdbc:")
    return settings, table
