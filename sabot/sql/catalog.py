"""The tables of a SQL program: CREATE TABLE … WITH ('connector' = …) as sources and sinks of the engine."""

import logging
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.expr import Expr, col, lit
from sabot.api.nodes.changes import Upsert
from sabot.api.nodes.read import endless_read
from sabot.api.stream import Stream
from sabot.codecs.base import Format
from sabot.codecs.fields import FILE_FIELDS, type_of_field
from sabot.codecs.formats import Csv, Json
from sabot.connectors.base import Sink, Source, TakesBound, takes_changes
from sabot.connectors.console import ConsoleSink
from sabot.connectors.files.formats.table import format_of as path_format
from sabot.connectors.installed import Connector, installed
from sabot.errors import UserError
from sabot.sql.formats import (
    DEBEZIUM,
    check_written,
    format_of,
    stream_of,
    with_keys,
    with_metadata,
    written_format,
)
from sabot.sql.functions import cast
from sabot.sql.moments import with_moment_types, with_moments
from sabot.sql.scope import (
    Relation,
    TableColumn,
    TypedExpr,
    as_shown,
    at,
    clock_column,
    fields_of,
    is_clock,
    names_of,
    node_of,
    steps_of,
)
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import (
    Binary,
    Cast,
    Column,
    ColumnDefinition,
    CreateTable,
    Insert,
    Interval,
    Item,
    Name,
    Query,
    SelectBody,
    SetOperation,
    Star,
    WatermarkDefinition,
)
from sabot.sql.table_options import Options, delivery_of
from sabot.sql.topic_options import (
    CONSUMERS,
    Place,
    check_partitioner,
    client_of,
    end_of,
    endless,
    pace_of,
    refuse_drift,
    refuse_start,
    reset_of,
    start_of,
    topic_of,
)
from sabot.sql.types import arrow_type, interval_ms, is_implicit, sql_type
from sabot.sql.values import Binder, Context
from sabot.sql.zones import UTC, is_local

if TYPE_CHECKING:
    from sabot.api.streams import HasStreams

_log = logging.getLogger(__name__)

_METADATA = ("partition", "offset", "timestamp", "key", "headers", "headers.NAME")
"""The keys of METADATA columns. Each is a field of a record; a key is read as text or as bytes, as its column says."""

_HEADERS = pa.map_(pa.string(), pa.binary())
_OF_BROKER = ("partition", "offset")
"""The keys of METADATA that are never written."""

_NOT_KEPT = {
    "topic": "a table reads one topic: 'orders' AS topic in the query has its name",
    "leader-epoch": "leave the column out",
    "timestamp-type": "leave the column out",
    **{
        f"{prefix}{key}": "a table with 'format' = 'json' reads it as a column of the records: " + column
        for prefix in ("", "value.")
        for key, column in (
            ("ingestion-timestamp", "ts_ms BIGINT"),
            ("source.timestamp", "source ROW<ts_ms BIGINT>"),
            ("source.database", "source ROW<db STRING>"),
            ("source.schema", "source ROW<`schema` STRING>"),
            ("source.table", "source ROW<`table` STRING>"),
            ("source.properties", "source ROW<db STRING, `table` STRING>"),
            ("schema", "`schema` STRING"),
        )
    },
    **dict.fromkeys(FILE_FIELDS, "a table of files has it: 'connector' = 'filesystem'"),
}
"""Keys of METADATA columns of Flink that records do not have here, and what to do instead."""


class BlackholeSink(Sink):
    """A sink that drops all rows."""

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> None:
        """There is nothing to open."""

    def write(self, batch: Batch) -> None:
        """Drops the rows."""

    def flush(self) -> None:
        """There is nothing to flush."""

    def close(self) -> None:
        """There is nothing to close."""


# -- declaring --------------------------------------------------------------------------------------------------------


_NO_ROWS: Any = None  # an expression is bound to columns alone


def check_table(context: Context, statement: CreateTable) -> None:
    """Raises SqlFault for a table that cannot be: a column, a watermark or an option that is wrong."""
    for each in statement.columns:
        if each.metadata is not None:
            _metadata(each, statement)
    types = {each.name.text: arrow_type(each.type) for each in statement.columns if each.type is not None}
    _check_json(statement)
    fields = [TableColumn("", name, name, type) for name, type in types.items()]
    for each in statement.columns:
        if each.computed is not None and not is_clock(each.computed):
            columns = with_moment_types(Relation(_NO_ROWS, tuple(fields)), each.computed)
            bound = Binder(context, columns).bind(each.computed)
            types[each.name.text] = bound.type
            fields.append(TableColumn("", each.name.text, each.name.text, bound.type))
    time, _ = time_of(statement)
    if time is not None and time in types and not _may_be_time(types[time]):
        assert statement.watermark is not None
        message = f"{time} is {sql_type(types[time])}, which is no event time"
        raise SqlFault(statement.watermark.column[-1].span, message, f"declare it as TIMESTAMP(3): {time} TIMESTAMP(3)")
    _check_options(statement)


def _check_json(statement: CreateTable) -> None:
    """Raises SqlFault for a column of a type that JSON does not have, and warns of one that Flink writes in another form."""
    given = {each.key: each.value for each in statement.options}
    of_topic = given.get("connector") in ("kafka", "upsert-kafka", "memory")
    format = _format_of_rows(statement)
    if format not in (*_JSON, *([None] if of_topic else [])):
        return
    for each in statement.columns:
        type = None if each.type is None or each.metadata is not None else arrow_type(each.type)
        if type is not None and (keys := _other_keys(type)):
            message = f"column {each.name.text}: names in JSON are texts, and the keys of this MAP are {keys}"
            raise SqlFault(each.span, message, "MAP<STRING, …>: CAST in the query makes other keys of them")
        if type == pa.binary():
            name = statement.name[-1].text
            _log.warning(
                "table %s: BYTES of column %s are UTF-8 in JSON, and not base64 as in Flink", name, each.name.text
            )


def _other_keys(type: pa.DataType) -> str:
    """Returns the type of the keys of a map in this type that are no texts, or ""."""
    if pa.types.is_map(type) and type.key_type != pa.string():
        return sql_type(type.key_type)
    inner = [type.field(i).type for i in range(type.num_fields)] if pa.types.is_struct(type) else []
    inner += [type.item_type] if pa.types.is_map(type) else [type.value_type] if pa.types.is_list(type) else []
    return next(filter(None, map(_other_keys, inner)), "")


def _may_be_time(type: pa.DataType) -> bool:
    """Returns True for timestamps and dates, and for numbers of ms since 1970."""
    return bool(pa.types.is_timestamp(type) or pa.types.is_date(type) or pa.types.is_int64(type))


def _check_options(statement: CreateTable) -> None:
    """Raises SqlFault for a wrong value, and for options with which the table can neither be read nor written."""
    missing: list[SqlFault] = []
    known: list[Options] = []
    for connect in ("read", "write"):
        options = _options_of(statement)
        direction = getattr(_connector(options), connect)
        if direction is None:
            continue
        try:
            direction(options, statement)
            if connect == "read":
                pace_of(options, timed=statement.watermark is not None)
            known.append(options)
        except SqlFault as fault:
            if fault.fault.span != options.span:
                raise
            missing.append(fault)
    if not known:
        raise missing[0]
    known[0].check_known(*known[1:])
    if statement.partition and _connector(_options_of(statement)) not in (_FILES, _DELTA, _ICEBERG):
        _log.warning("table %s: PARTITIONED BY has no effect: it names the folders of files", statement.name[-1].text)


def _options_of(statement: CreateTable) -> Options:
    name = statement.name[-1]
    return Options(name.text, statement.options, name.span)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_table(app: "HasStreams", context: Context, statement: CreateTable, span: Span) -> Relation:
    """Returns the rows of a table, which the text names at `span`. Raises SqlFault for options and columns that cannot be."""
    name = statement.name[-1].text
    options = _options_of(statement)
    connector = _connector(options)
    if connector.read is None:
        raise SqlFault(
            span,
            f"table {name} can only be written: its connector has no rows to read",
            "read the table or the view that its rows come from",
        )
    given: dict[str, Any] = {}
    physical = [each for each in statement.columns if each.type is not None and each.metadata is None]
    instants: dict[str, pa.DataType] = {}  # read as texts, which the session's zone makes instants
    if physical:
        columns = {each.name.text: arrow_type(each.type) for each in physical if each.type}
        format = _format_of_rows(statement)
        instants = {name: type for name, type in columns.items() if is_local(type)} if format == "csv" else {}
        fields = [pa.field(name, type) for name, type in (columns | dict.fromkeys(instants, pa.string())).items()]
        if format in _JSON and context.zone != UTC:
            fields = [_on_clock_of(each, context.zone) for each in fields]
        given["schema"] = pa.schema(fields)
    metadata = {each.name.text: _metadata(each, statement) for each in statement.columns if each.metadata is not None}
    if metadata:
        given["fields"] = metadata
    casts = {
        each.name.text: wanted
        for each in statement.columns
        if each.name.text in metadata
        and each.type
        and (wanted := arrow_type(each.type)) != type_of_field(metadata[each.name.text])
        if metadata[each.name.text] != "headers" or pa.types.is_map(wanted)
    }
    time, lateness = time_of(statement)
    computed = [each for each in statement.columns if each.computed is not None]
    is_computed = any(each.name.text == time for each in computed)
    later = time is not None and (is_computed or time in instants or time in casts)
    if time is not None and not later:
        given |= {"time": time, "lateness": f"{lateness}ms"}
    open_rows = connector.read(options, statement)
    idle = context.idle()
    has_time = time is not None and not (later and connector in (_FILES, _DELTA))  # of files, a later step computes it
    if has_time and idle is not None:
        given["idle"] = endless(idle)
    given |= pace_of(options, timed=time is not None)
    with at(statement.span):
        stream = open_rows(app, given)
    options.finish()
    with at(statement.span):
        if instants:
            stream = stream.with_columns(**{name: _instant(name, type, context) for name, type in instants.items()})
        if casts:
            found = {name: TypedExpr(col(name), type_of_field(metadata[name])) for name in casts}
            made = {name: _of_record(found[name], type, context.zone) for name, type in casts.items()}
            stream = stream.with_columns(**made)
        relation = Relation(stream, fields_of(stream, name, {time: 0} if time and not is_computed else None))
    whole = _computed(relation, context, statement, computed, time if later else None, lateness)
    return replace(whole, key=tuple(each.text for each in statement.key))


def _of_record(field: TypedExpr, type: pa.DataType, zone: str) -> Expr:
    """Returns a field of a record as the type that its column declares."""
    return Expr("map.from_entries", (field.expr,)) if pa.types.is_map(type) else cast(field, type, zone, strict=True)


def _instant(name: str, type: pa.DataType, context: Context) -> Expr:
    """Returns a column of texts as instants. Digits of the second that the type lacks are cut off."""
    exact = pa.timestamp("us" if type.unit in ("s", "ms") else type.unit, type.tz)
    made = cast(TypedExpr(col(name), pa.string()), exact, context.zone, strict=True)
    return made if exact == type else made.cast(type, strict=False)


_JSON = ("json", "ndjson", "debezium-json")


def _on_clock_of(field: pa.Field, zone: str) -> pa.Field:
    """Returns a column whose texts of a TIMESTAMP_LTZ without an offset the parser of JSON reads on the clock of a zone."""
    type = field.type
    if pa.types.is_struct(type):
        return field.with_type(pa.struct([_on_clock_of(each, zone) for each in type]))
    if pa.types.is_list(type):
        return field.with_type(pa.list_(_on_clock_of(type.value_field, zone)))
    if pa.types.is_map(type):
        return field.with_type(pa.map_(type.key_type, _on_clock_of(type.item_field, zone)))
    return field.with_metadata({"time_zone": zone}) if is_local(type) else field


def _format_of_rows(statement: CreateTable) -> str | None:
    """Returns the format from which the rows of a table are read, or None if neither an option nor a path names it."""
    given = {each.key: each.value for each in statement.options}
    named = next((given[key] for key in ("value.format", "format") if key in given), None)
    return named or path_format(given.get("path") or "")


def _computed(
    relation: Relation,
    context: Context,
    statement: CreateTable,
    computed: list[ColumnDefinition],
    time: str | None,
    lateness: int,
) -> Relation:
    stream = relation.stream
    fields = list(relation.fields)
    for each in computed:
        tree = each.computed
        assert tree is not None
        if is_clock(tree):
            fields.append(clock_column(each.name.text, fields[0].qualifier if fields else ""))
            continue
        known = replace(relation, stream=stream, fields=tuple(fields))
        with_values = with_moments(context, known, [tree])
        bound: TypedExpr = Binder(context, with_values).bind(tree)
        with at(each.span):
            stream = with_values.stream.with_columns(**{each.name.text: bound.expr})
            if with_values is not known:
                stream = stream.drop(*(names_of(with_values).taken - names_of(known).taken))
        shift = 0 if each.name.text == time else None
        if shift == 0 and with_values is not known:
            message = (
                "table %s: %s is the clock of the moment at which a row is read: a restart reads rows at another one"
            )
            _log.warning(message, statement.name[-1].text, each.name.text)
        fields.append(
            TableColumn(fields[0].qualifier, each.name.text, each.name.text, bound.type, shift, never_null=shift == 0)
        )
    if time is not None and statement.watermark is not None:
        with at(statement.watermark.span):
            stream = stream.with_time(time, lateness=f"{lateness}ms")
    order = {each.name.text: i for i, each in enumerate(statement.columns)}
    fields.sort(key=lambda field: order.get(field.name, len(order)))
    return Relation(stream, tuple(fields))


def _metadata(column: ColumnDefinition, statement: CreateTable) -> str:
    """Returns the field of a record, or of a file, that a METADATA column is. Raises SqlFault for another key, and for a type to
    which the field cannot be cast.
    """
    key = column.metadata or ""
    of_files = _connector(_options_of(statement)) is _FILES
    known = tuple(FILE_FIELDS) if of_files else _METADATA
    if key not in known and (of_files or not (key.startswith("headers.") and key != "headers.")):
        hint = f"there are {', '.join(known)}" if of_files else _NOT_KEPT.get(key) or f"there are {', '.join(known)}"
        raise SqlFault(column.span, f"there is no metadata '{key}'", hint)
    assert column.type is not None
    wanted = arrow_type(column.type)
    field = "key_bytes" if key == "key" and wanted == pa.binary() else key
    found = type_of_field(field)
    if key == "headers" and pa.types.is_map(wanted) and wanted != _HEADERS:
        hint = "MAP<STRING, BYTES>; CAST(headers['trace'] AS STRING) is one of them as text, as METADATA FROM 'headers.trace' is"
        raise SqlFault(column.type.span, "the values of headers are bytes", hint)
    fits = wanted == _HEADERS or pa.types.is_list(wanted)
    if not (fits if key == "headers" else is_implicit(found, wanted) or is_implicit(wanted, found)):
        raise SqlFault(
            column.span, f"the metadata '{key}' is {sql_type(found)}, and no {sql_type(wanted)}", "declare its type"
        )
    return field


def time_of(statement: CreateTable) -> tuple[str | None, int]:
    """Returns the column of event time and the lateness in ms that WATERMARK declares."""
    watermark = statement.watermark
    if watermark is None:
        return None, 0
    names = {each.name.text.lower(): each.name.text for each in statement.columns}
    wanted = watermark.column[-1]
    if not any(each.type is not None for each in statement.columns):  # the columns are those of the rows
        names.setdefault(wanted.text.lower(), wanted.text)
    if len(watermark.column) != 1 or wanted.text.lower() not in names:
        name = ".".join(part.text for part in watermark.column)
        raise SqlFault(wanted.span, f'there is no column "{name}"', list_names(name, names.values()))
    return names[wanted.text.lower()], _lateness(watermark, wanted)


def _lateness(watermark: WatermarkDefinition, column: Name) -> int:
    node = watermark.expression
    lateness = 0
    if isinstance(node, Binary) and node.operator == "-" and isinstance(node.right, Interval):
        lateness, node = interval_ms(node.right), node.left
    if not (isinstance(node, Column) and node.parts[-1].text.lower() == column.text.lower()) or lateness < 0:
        raise SqlFault(
            watermark.span,
            "a watermark is the column itself, or the column less an interval",
            f"WATERMARK FOR {column.text} AS {column.text} - INTERVAL '5' SECOND",
        )
    return lateness


# -- connectors -------------------------------------------------------------------------------------------------------

OpenRead = Callable[["HasStreams", dict[str, Any]], Stream]
"""A function that returns the rows of a table. It is called with the app and with further options of `App.stream`."""

OpenWrite = Callable[["HasStreams"], tuple[str | Sink, dict[str, Any]]]
"""A function that returns the sink of a table, and the options of `Stream.to`."""

Read = Callable[[Options, CreateTable], OpenRead]
Write = Callable[[Options, CreateTable], OpenWrite]


@dataclass(frozen=True, slots=True)
class TableConnector:
    """The connector of a table: how its rows are read, and how they are written; None if it cannot. Each takes its options first,
    so that they are checked when the table is declared, and opens nothing before the table is used.
    """

    read: Read | None
    write: Write | None


def _connector(options: Options) -> TableConnector:
    known = CONNECTORS
    # looking for packages takes ms
    if options.given("connector") not in (None, *CONNECTORS):
        known = known | {name: _of_declared(each) for name, each in installed().items() if name not in CONNECTORS}
    found: TableConnector | None = options.choose("connector", known)
    if found is None:
        near = options.near("connector")
        if near is not None:
            raise SqlFault(near.key_span, f"there is no option '{near.key}'", "did you mean connector?")
        hint = f"WITH ('connector' = '…'): {', '.join(known)}"
        raise SqlFault(options.span, f"table {options.table} has no connector", hint)
    return found


def _of_declared(connector: Connector) -> TableConnector:
    """Returns a connector whose options are the arguments of its classes: that of another package, or one of Sabot that needs no more."""

    def made(options: Options, kind: "type[Source] | type[Sink]") -> Any:
        maker = connector.load(kind)
        known = signature(maker).parameters
        given: dict[str, Any] = {}
        span = options.span
        for name in connector.options:
            argument = re.sub("[.-]", "_", name)
            place = options.value_span(name)
            if argument in known and (value := options.take(name)) is not None:
                given[argument] = value
                span = place  # of a value, as a fault at the table's name says that an option is missing
        hint = f"connector {connector.name} has the options {', '.join(connector.options) or 'none'}"
        with at(span):
            try:
                return maker(**given)
            except TypeError as error:  # an argument is missing
                raise SqlFault(options.span, f"table {options.table}: {error}", hint) from error
            except ValueError as error:
                raise SqlFault(span, f"table {options.table}: {error}", hint) from error

    def read(options: Options, statement: CreateTable) -> OpenRead:
        places: dict[str, Any] = {}
        if issubclass(connector.load(Source), TakesBound):
            places = {"start": start_of(options), "until": end_of(options)}
        source = made(options, Source)
        more = {name: value for name, value in places.items() if value is not None}
        return lambda app, given: app.stream(source, **given, **more)

    def write(options: Options, statement: CreateTable) -> OpenWrite:
        written: dict[str, Any] = {}
        written |= delivery_of(options)
        sink = made(options, Sink)
        return lambda app: (sink, written)

    return TableConnector(read if connector.source else None, write if connector.sink else None)


def _read_topic(options: Options, statement: CreateTable) -> OpenRead:
    format: str | Format | None = format_of(options, statement)
    if format == DEBEZIUM:
        return _read_changes(options, statement)
    format, _ = with_keys(options, statement, format, reads=True)
    until = end_of(options)
    source, start = _topic(options, start_of(options))

    def open_rows(app: "HasStreams", given: dict[str, Any]) -> Stream:
        more = {"start": start, "until": until}
        given = {**given, **{name: value for name, value in more.items() if value is not None}}
        return stream_of(app.stream, source(app), format, given, statement)

    return open_rows


def _read_changes(options: Options, statement: CreateTable) -> OpenRead:
    """Returns the reader of a topic whose records are changes of a table."""
    _check_key(options, statement)
    key = [name.text for name in statement.key]
    metadata = next((each for each in statement.columns if each.metadata is not None), None)
    if metadata is not None:
        hint = "declare it in a table with 'format' = 'json', whose columns are before, after and op"
        raise SqlFault(metadata.span, "a record of Debezium may change two rows, so they have no METADATA", hint)
    source, until = _table(options)
    return lambda app, given: app.table(source(app), key=key, format=DEBEZIUM, **given, **until)


def _read_upserts(options: Options, statement: CreateTable) -> OpenRead:
    _check_key(options, statement)
    format, _ = with_keys(options, statement, format_of(options, statement), reads=True)
    key = [name.text for name in statement.key]
    source, until = _table(options)
    return lambda app, given: stream_of(partial(app.table, key=key), source(app), format, given | until, statement)


def _table(options: Options) -> tuple[Callable[["HasStreams"], Any], dict[str, Any]]:
    """Returns the topic of a table whose rows are updated, and where reading ends, as an option of `App.table`."""
    refuse_start(options, "its rows are what all of its changes make")
    refuse_drift(options)
    until = end_of(options)
    source, _ = _topic(options, "earliest")
    return source, {} if until is None else {"until": until}


def _write_upserts(options: Options, statement: CreateTable) -> OpenWrite:
    _check_key(options, statement)
    return _write_topic(options, statement)


def _check_key(options: Options, statement: CreateTable) -> None:
    if not statement.key:
        raise SqlFault(options.span, f"table {options.table} needs PRIMARY KEY (…) NOT ENFORCED")


def _topic(options: Options, start: Place) -> tuple[Callable[["HasStreams"], Any], Place]:
    """Returns a function that returns the topic of an app, with its server if the options have one, and the place where
    reading begins.
    """
    topic = topic_of(options)
    reset = options.key_span("properties.auto.offset.reset")
    servers, settings = client_of(options)
    start = reset_of(options, settings, start, reset)
    group = settings.pop("group.id", "")
    check = options.duration("scan.topic-partition-discovery.interval")
    own: dict[str, Any] = settings if check is None else {**settings, "partition_check": endless(check)}

    def source(app: "HasStreams") -> Any:
        from sabot.kafka import KafkaSource

        if servers is None and not own and not group:
            return topic
        return KafkaSource(topic, f"kafka://{servers}" if servers else _broker(app), group, **own)

    return source, start


def _broker(app: "HasStreams") -> str:
    return str(getattr(app, "broker", "memory://"))


def _write_topic(options: Options, statement: CreateTable) -> OpenWrite:
    topic = topic_of(options)
    check_partitioner(options)
    servers, settings = client_of(options)
    written: dict[str, Any] = {}
    if (format := written_format(options, statement)) == DEBEZIUM:
        hint = "'connector' = 'upsert-kafka' with 'value.format' = 'json' writes the rows of a table"
        raise SqlFault(options.value_span("format"), "'format' = 'debezium-json' can be read, and not written", hint)
    format, key = with_keys(options, statement, format, reads=False)
    format, key = with_metadata(options, format, key, written_metadata(statement), keyed=bool(statement.key))
    written |= {name: value for name, value in {"format": format, "key": key}.items() if value is not None}
    written |= delivery_of(options)

    def open_sink(app: "HasStreams") -> tuple[str | Sink, dict[str, Any]]:
        from sabot.kafka import KafkaSink

        if servers is None and not settings.keys() - CONSUMERS:
            return topic, written
        of_producer = {name: value for name, value in settings.items() if name not in CONSUMERS}
        # A sink has its format itself; `to` takes one only for a topic.
        to = {name: value for name, value in written.items() if name != "format"}
        sink: Any = KafkaSink
        address = f"kafka://{servers}" if servers else _broker(app)
        return sink(topic, address, format=written.get("format"), **of_producer), to

    return open_sink


def written_metadata(statement: CreateTable) -> dict[str, str]:
    """Returns the columns of a table on a topic that become parts of its records beside the payload, with their keys."""
    found = {each.name.text: each.metadata for each in statement.columns if each.metadata and not each.virtual}
    return {name: key for name, key in found.items() if key not in _OF_BROKER}


def _read_files(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.files import read_files

    return read_files(options, statement)


def _write_files(options: Options, statement: CreateTable) -> OpenWrite:
    from sabot.sql.tables.files import write_files

    return write_files(options, statement)


def _read_sql(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.databases import read_sql

    return read_sql(options, statement)


def _write_sql(options: Options, statement: CreateTable) -> OpenWrite:
    from sabot.sql.tables.databases import write_sql

    return write_sql(options)


def _read_delta(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.lakes import read_delta

    return read_delta(options, statement)


def _write_delta(options: Options, statement: CreateTable) -> OpenWrite:
    from sabot.sql.tables.lakes import write_delta

    return write_delta(options, statement)


def _read_iceberg(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.lakes import read_iceberg

    return read_iceberg(options, statement)


def _write_iceberg(options: Options, statement: CreateTable) -> OpenWrite:
    from sabot.sql.tables.lakes import write_iceberg

    return write_iceberg(options, statement)


def _read_poll(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.web import read_poll

    return read_poll(options, statement)


def _read_sse(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.web import read_sse

    return read_sse(options, statement)


def _read_websocket(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.web import read_websocket

    return read_websocket(options, statement)


def _read_webhook(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.web import read_webhook

    return read_webhook(options, statement)


def _write_http(options: Options, statement: CreateTable) -> OpenWrite:
    from sabot.sql.tables.web import write_http

    return write_http(options, statement)


def _read_agent(options: Options, statement: CreateTable) -> OpenRead:
    name = options.take("agent") or options.table

    def open_rows(app: "HasStreams", given: dict[str, Any]) -> Stream:
        if "schema" not in given:
            raise SqlFault(options.span, f"table {options.table} needs columns: those of the results of agent {name}")
        return app.stream(app.agent_of(name).func, **given)

    return open_rows


def _read_datagen(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.generated import read_datagen

    return read_datagen(options, statement)


def _read_faker(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.generated import read_faker

    return read_faker(options, statement)


def _read_postgres_changes(options: Options, statement: CreateTable) -> OpenRead:
    from sabot.sql.tables.databases import read_postgres_changes

    return read_postgres_changes(options, statement)


_TOPIC = TableConnector(_read_topic, _write_topic)
_MEMORY = TableConnector(_read_topic, _write_topic)
_FILES = TableConnector(_read_files, _write_files)
_SQL = TableConnector(_read_sql, _write_sql)
_DELTA = TableConnector(_read_delta, _write_delta)
_ICEBERG = TableConnector(_read_iceberg, _write_iceberg)
_PRINT = TableConnector(None, lambda options, statement: lambda app: (ConsoleSink(times="sql"), {}))

_WITH_OP = (None, "json", "csv", "arrow")
"""The formats whose records may have a column more than the table: `op`, which says what each change is."""

CONNECTORS: dict[str, TableConnector] = {
    "kafka": _TOPIC,
    "upsert-kafka": TableConnector(_read_upserts, _write_upserts),
    "memory": _MEMORY,
    "agent": TableConnector(_read_agent, None),
    "files": _FILES,
    "filesystem": _FILES,
    "sqlite": _SQL,
    "duckdb": _SQL,
    "postgres": _SQL,
    "jdbc": _SQL,
    "postgres-cdc": TableConnector(_read_postgres_changes, None),
    "delta": _DELTA,
    "iceberg": _ICEBERG,
    "http": TableConnector(None, _write_http),
    "poll": TableConnector(_read_poll, None),
    "sse": TableConnector(_read_sse, None),
    "webhook": TableConnector(_read_webhook, None),
    "websocket": TableConnector(_read_websocket, None),
    "datagen": TableConnector(_read_datagen, None),
    "faker": TableConnector(_read_faker, None),
    "print": _PRINT,
    "console": _PRINT,
    "blackhole": TableConnector(None, lambda options, statement: lambda app: (BlackholeSink(options.table), {})),
}
"""The connectors, by the value of 'connector'."""

_TOPICS = tuple(CONNECTORS[name] for name in ("kafka", "upsert-kafka", "memory"))
"""The connectors whose rows are records, which have METADATA."""


# -- writing ----------------------------------------------------------------------------------------------------------


def write_table(
    app: "HasStreams",
    context: Context,
    statement: CreateTable,
    relation: Relation,
    columns: tuple[Name, ...],
    query: Query,
    span: Span,
    shared: dict[CreateTable, Sink],
) -> None:
    """Writes rows into a table, by the position of their columns. `query`: the query whose rows they are. `span`: the
    place of the table's name. `shared`: the sinks of tables of files that several statements write. Raises SqlFault for
    columns that do not fit.
    """
    name = statement.name[-1].text
    options = _options_of(statement)
    connector = _connector(options)
    if connector.write is None:
        raise SqlFault(span, f"table {name} can only be read")
    check_written(statement, span)
    written_columns = _written_columns(statement)
    metadata = any(each.metadata is not None for each in statement.columns)
    key = [each.text for each in statement.key]
    stream = _fitting(context, relation, written_columns, columns, name, query, span, metadata=metadata, key=key)
    with at(span):
        sink, written = connector.write(options, statement)(app)
        options.finish()
        if isinstance(sink, Sink) and connector is _FILES:  # one sink numbers the files of all its statements
            sink = shared.setdefault(statement, sink)
        format = written.get("format")
        logged = connector is _MEMORY and not key and (format in _WITH_OP or isinstance(format, Json | Csv))
        plain = logged or isinstance(sink, ConsoleSink | BlackholeSink)
        adds_only = isinstance(sink, Sink) and not plain and not takes_changes(sink)
        if stream.changes and adds_only and endless_read(node_of(stream)) is None:
            stream = stream.materialize()  # a file gets the rows that there are at the end of the input
        elif stream.changes and adds_only:
            hint = "GROUP BY a window gives final rows; or a table with a PRIMARY KEY, such as 'connector' = 'sqlite'"
            raise SqlFault(span, f"the rows of this query are updated, and table {name} can only add rows", hint)
        elif relation.stream.changes and plain:
            stream = stream.changelog()
        elif key and not plain:
            stream = _by_key(stream, key)
            written.pop("key", None)
        try:
            stream.to(sink, **written)
        except UserError as error:
            if relation.stream.changes and not key:
                raise SqlFault(
                    span,
                    f"the rows of this query are updated, and table {name} has no PRIMARY KEY",
                    f"declare PRIMARY KEY (…) NOT ENFORCED in CREATE TABLE {name}",
                ) from error
            raise


def with_partition(
    context: Context, statement: Insert, table: CreateTable, relation: Relation
) -> tuple[Relation, tuple[Name, ...]]:
    """Returns the rows of `INSERT INTO t PARTITION (day = '…')` with the values of the partition as columns, and the columns of the
    table in their order. Raises SqlFault for a column by which the table is not divided.
    """
    divided = {each.text.lower(): each.text for each in table.partition}
    types = {each.name.text: each.type for each in table.columns if each.type is not None}
    stream, fields = relation.stream, list(relation.fields)
    named: dict[str, Name] = {}
    for name, tree in statement.partition:
        column = divided.get(name.text.lower())
        if column is None:
            message = f"table {table.name[-1].text} is not PARTITIONED BY {name.text}"
            raise SqlFault(name.span, message, list_names(name.text, divided.values()) or "select the column instead")
        if column in named or any(each.text == column for each in statement.columns):
            raise SqlFault(name.span, f"{column} has two values", "name it once, in PARTITION or among the columns")
        bound = Binder(context, Relation(_NO_ROWS, ())).bind(Cast(tree, types[column], lenient=False, span=tree.span))
        with at(tree.span):
            stream = stream.with_columns(**{f"partition.{column}": bound.expr})
        named[column] = Name(column, name.span)
        fields.append(TableColumn("", column, f"partition.{column}", bound.type))
    given = statement.columns or tuple(each.name for each in _written_columns(table) if each.name.text not in named)
    return replace(relation, stream=stream, fields=tuple(fields)), (*given, *named.values())


def _written_columns(statement: CreateTable) -> list[ColumnDefinition]:
    """Returns the columns to which INSERT gives values."""
    parts = written_metadata(statement) if _connector(_options_of(statement)) in _TOPICS else {}
    return [
        each for each in statement.columns if each.name.text in parts or (each.computed is None and not each.metadata)
    ]


def _by_key(stream: Stream, key: list[str]) -> Stream:
    """Returns the rows as changes of the table that a sink makes of them. Rows that are final need no state: the sink
    replaces the row of a key by the next one. A table with a row for each window would be kept for ever otherwise.
    """
    if stream.changes:
        return stream.upsert(*key)
    node = Upsert(node_of(stream), tuple(key), kept=False)
    node.check()
    return steps_of(stream).then(node)


def _fitting(
    context: Context,
    relation: Relation,
    target: list[ColumnDefinition],
    columns: tuple[Name, ...],
    table: str,
    query: Query,
    span: Span,
    *,
    metadata: bool,
    key: Collection[str],
) -> Stream:
    """Returns the stream with the names and types of the table's columns; those that INSERT leaves out are NULL. `metadata`:
    True if the table also has METADATA columns. `key`: the columns of its PRIMARY KEY.
    """
    if not target:
        return as_shown(relation)
    missing: list[ColumnDefinition] = []
    if columns:
        known = {each.name.text: each for each in target}
        for name in columns:
            if name.text not in known:
                raise SqlFault(name.span, f'table {table} has no column "{name.text}"', list_names(name.text, known))
        missing = [each for each in target if each.name.text not in {name.text for name in columns}]
        needed = [each.name.text for each in missing if each.name.text in key or not (each.type and each.type.nullable)]
        if needed:
            named = columns[0].span.to(columns[-1].span)
            why = "of the PRIMARY KEY" if needed[0] in key else "which is NOT NULL"
            raise SqlFault(named, f"INSERT leaves out the column {needed[0]}, {why}", "give it a value")
        target = [known[name.text] for name in columns]
    if len(target) != len(relation.fields):
        message = f"table {table} has {len(target)} columns, and the query {len(relation.fields)}"
        hint = f"{table}({', '.join(each.name.text for each in target)})"
        why = ": METADATA is written too, but for 'partition', 'offset' and VIRTUAL columns"
        raise SqlFault(span, message, f"{hint}{why}" if metadata else hint)
    if not columns:
        _warn_of_positions(target, relation, table)
    chosen: dict[str, Any] = {}
    spans = _entries(query, len(target)) or [span] * len(target)
    for column, field, place in zip(target, relation.fields, spans, strict=True):
        assert column.type is not None
        wanted = arrow_type(column.type)
        expr = col(field.column)
        if field.type != wanted:
            integers = pa.types.is_integer(field.type) and pa.types.is_integer(wanted)
            if not (integers or is_implicit(field.type, wanted)):
                asked, given = sql_type(wanted), sql_type(field.sql_type)
                what = "…" if field.name.startswith("EXPR$") else field.name
                message = f"column {column.name.text} of table {table} is {asked}, and the query gives {given}"
                raise SqlFault(place, message, f"CAST({what} AS {asked})")
            bound = TypedExpr(expr, field.type)
            expr = cast(bound, wanted, context.zone, strict=True)
        chosen[column.name.text] = expr
    for column in missing:
        assert column.type is not None
        chosen[column.name.text] = lit(None, arrow_type(column.type))
    order = [each.name.text for each in [*target, *missing]]
    if node_of(relation.stream).column_names == order and all(expr.column == name for name, expr in chosen.items()):
        return relation.stream
    with at(span):
        return relation.stream.select(**chosen)


def _entries(query: Query, width: int) -> list[Span]:
    """Returns the places of the columns of a query, or nothing if they do not stand in its text one by one."""
    body: Any = query.body
    while isinstance(body, Query | SetOperation):
        body = body.body if isinstance(body, Query) else body.left
    entries = body.items if isinstance(body, SelectBody) else body.rows[0]
    starred = any(isinstance(each, Item) and isinstance(each.expression, Star) for each in entries)
    return [] if starred or len(entries) != width else [each.span for each in entries]


def _warn_of_positions(target: list[ColumnDefinition], relation: Relation, table: str) -> None:
    names = {each.name.text.lower() for each in target}
    for column, field in zip(target, relation.fields, strict=True):
        if field.name.lower() != column.name.text.lower() and field.name.lower() in names:
            order = ", ".join(each.name for each in relation.fields)
            _log.warning(
                "INSERT INTO %s goes by position: the column %s of the query is written into %s; "
                "to go by name, write INSERT INTO %s (%s)",
                table,
                field.name,
                column.name.text,
                table,
                order,
            )
