"""Tables of databases that are followed: 'connector' = 'postgres-cdc', with the options of Flink's connector of this name."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sabot.sql.formats import declared_columns
from sabot.sql.scope import at
from sabot.sql.syntax.text import SqlFault, list_names
from sabot.sql.syntax.tree import CreateTable
from sabot.sql.table_options import Options

if TYPE_CHECKING:
    from sabot.api.stream import Stream

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
    metadata = next((each for each in statement.columns if each.metadata is not None), None)
    if metadata is not None:
        raise SqlFault(metadata.span, "rows of a table of PostgreSQL have no METADATA", "leave the column out")
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
