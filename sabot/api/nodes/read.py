"""The steps at the ends of a stream: those that read sources, and those that write sinks."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from sabot.api.arguments import RowPolicy, Schema, TimeUnit, row_policy, schema_of, whole_ms
from sabot.api.expr import Expr, col
from sabot.api.expr.time import zone_of
from sabot.api.formats import payload_format
from sabot.api.nodes.node import Node, check_columns, walk
from sabot.api.words import check_names
from sabot.base.arrays import PER_SECOND, is_time
from sabot.base.checks import FLAG, OneOf, Whole, check
from sabot.base.config import Duration, parse_ms
from sabot.base.dataclass import dataclass
from sabot.codecs.base import Format
from sabot.codecs.fields import FILE_FIELDS, fields_of, type_of_field
from sabot.codecs.formats import JSON, Json, format_of
from sabot.connectors.base import Delivery, OnNan, Scans, Sink, Source, columns_of, ends, overrides, start_of
from sabot.connectors.checks import check_ends, check_input, check_sink, check_start
from sabot.connectors.places import Place, Start, Until, checked_start, checked_until
from sabot.errors import SabotError, UserError

_IDLE_MS = 30_000  # the default of `idle=`
_INFER_MOST = 1_000_000  # the payloads from which columns are inferred are all in memory


@dataclass(frozen=True)
class TableFormat:
    """The form of records that are read as changes of a table. `keys`: the columns of the table's key. `format`:
    "json" if each payload is a row, or "debezium" if it is an envelope of Debezium, with the row before and after a
    change.
    """

    keys: tuple[str, ...]
    format: Literal["json", "debezium"] = "json"


@dataclass(frozen=True, eq=False)
class Read(Node):
    """A step that reads rows of a topic or a Source.

    - `schema`: the columns of the payloads, or None if they are not known yet. `format`: the format of the payloads.
    - `time`: the column of event time, a path to a field of a struct, or an expression. With None, event time is the
      timestamp of the record; a Source of rows without records then has no event time.
    - `time_unit`: the unit of event times that are numbers, or None for ms. `time_format`: the format of event times
      that are texts, or None for ISO 8601. `time_zone`: the time zone of event times that have none, or None for UTC.
    - `lateness_ms`: by how many ms of event time rows may be out of order. `idle_ms`: after so many ms without rows,
      a partition no longer holds back event time.
    - `dead_letter`: the topic or Sink for records that cannot be read. `on_error`: what happens to rows for which a
      step fails.
    - `fields`: other parts of a record that become columns after those of the payload, as (column, field).
    - `table`: for `App.table`, the key and the form of the records, which are read as changes; None for a stream of
      rows.
    - `first`: True if joins wait until the rows that exist at the start are read; False if they do not wait. With
      None, the kind of join decides.
    - `start`: the place from which a topic is read without a checkpoint, or None for the app's `start=`.
    - `until`: the place where reading ends, or None if it does not end.
    - `overrides`: types of some columns, which replace the inferred ones.
    """

    word = "stream"
    source: str | Source
    schema: pa.Schema | None
    time: str | Expr | None
    lateness_ms: int
    idle_ms: int
    dead_letter: str | Sink
    table: TableFormat | None = None
    inferred: bool = False  # True if `schema` was not declared but found
    on_error: RowPolicy = "dead_letter"
    fields: tuple[tuple[str, str], ...] = ()
    time_unit: TimeUnit | None = None
    time_format: str | None = None
    time_zone: str | None = None
    first: bool | None = None
    idle_closes: bool = False  # True closes windows when all partitions are idle
    max_drift_ms: int | None = None  # the greatest distance between partitions
    format: Format = JSON
    start: Place | None = None
    until: Place | None = None
    overrides: tuple[tuple[str, pa.DataType], ...] = ()

    @property
    def name(self) -> str:
        """The topic, or the name of the Source."""
        return self.source if isinstance(self.source, str) else self.source.name

    @property
    def bounded(self) -> bool:
        """True if the source has an end."""
        return self.until is not None or (isinstance(self.source, Source) and ends(self.source))

    @property
    def has_time(self) -> bool:
        """True if the rows have event time: a column of event time is named, or the records have timestamps."""
        return self.time is not None or isinstance(self.source, str)

    def begins(self, start: Place) -> Place:
        """Returns the place at which reading begins without a checkpoint. `start`: the place for sources that have
        none of their own.
        """
        place = start if self.start is None else self.start
        return start_of(self.source, place) if isinstance(self.source, Source) else place

    def ending(self, until: Place) -> "Read":
        """Returns a copy of the step that ends at `until`, if it reads a topic and has no end of its own; otherwise
        the step unchanged.
        """
        return replace(self, until=until) if self.until is None and isinstance(self.source, str) else self

    def found_schema(self) -> pa.Schema | None:
        """Returns `schema` if it is declared. Otherwise returns the columns that the data of a Source or the registry
        of the format declares, or None if they declare none.
        """
        if self.schema is not None:
            return self.schema
        found = columns_of(self.source) if isinstance(self.source, Source) else self.format.columns(self.name)
        return None if found is None else self.overridden(found)

    def overridden(self, found: pa.Schema) -> pa.Schema:
        """Returns the inferred columns `found`, with the types of `overrides`. Raises UserError if `overrides` has a
        column that `found` does not have.
        """
        for name, kind in self.overrides:
            if (place := found.get_field_index(name)) < 0:
                raise UserError(
                    f"stream {self.name}: schema_overrides= has {name!r}, which was not found",
                    hint=f"the columns are {', '.join(found.names)}; schema= names columns that come later",
                )
            found = found.set(place, found.field(place).with_type(kind))
        return found

    @property
    def guessed(self) -> list[str]:
        """The columns of the payloads whose types were inferred, and not declared."""
        declared = {name for name, _ in self.overrides}
        return [name for name in self.schema.names if name not in declared] if self.inferred and self.schema else []

    @cached_property
    def columns(self) -> pa.Schema | None:
        """The columns of the payloads and those of `fields`; None if the columns of the payloads are unknown. Raises
        UserError for a name that both have.
        """
        if self.schema is None or not self.fields:
            return self.schema
        for column, said in self.fields:
            if column in self.schema.names:
                raise UserError(
                    f"stream {self.name}: {column!r} is a column of the payloads and also of fields=",
                    hint=f'rename the field: fields={{"record_{column}": "{said}"}}',
                )
        return pa.schema([*self.schema, *(pa.field(column, type_of_field(said)) for column, said in self.fields)])

    @cached_property
    def time_column(self) -> str | None:
        """The column whose values can be used as event times unchanged, since they are in ms or timestamps. None if
        there is no such column; event times may then be computed (`time_expr`).
        """
        if (
            not isinstance(self.time, str)
            or (self.time_format or self.time_zone) is not None
            or self.time_unit not in (None, "ms")
        ):
            return None
        if self.columns is None:
            return self.time
        fields = [field for field in self.columns if field.name == self.time and is_time(field.type)]
        return self.time if fields and (self.time_unit is None or pa.types.is_integer(fields[0].type)) else None

    @cached_property
    def time_expr(self) -> Expr | None:
        """The expression that computes event times. None if a column already has them, or if they are the timestamps
        of the records.
        """
        if self.time is None or self.time_column is not None:
            return None
        if isinstance(self.time, Expr):
            return self.time
        if self.columns is not None and self.time in self.columns.names:
            return col(self.time)
        return path_of(self.time)

    @property
    def time_text(self) -> str | None:
        """The column or expression of event time, as plans and errors show it; None if event times are the timestamps
        of the records.
        """
        return self.time.text() if isinstance(self.time, Expr) else self.time

    @property
    def said_time(self) -> str:
        """The definition of event time as a text, as checkpoints record it: the column or expression, and the name of
        the source.
        """
        return f"{said_time(self.time, self.time_unit, self.time_format, self.time_zone)} of {self.name}"

    @cached_property
    def column_names(self) -> list[str] | None:
        """The names of the columns: those that were declared, or those that the data of a Source has. None if they
        are unknown, for example because the source cannot be read at the moment.
        """
        try:
            schema = self.found_schema()
        except (SabotError, OSError):
            return None  # the start of the app raises the error
        return None if schema is None else [*schema.names, *(column for column, _ in self.fields)]

    @cached_property
    def event_times(self) -> dict[str, bool]:
        if self.time_column is not None:
            return {self.time_column: True}
        return named_time(self.time, None if self.columns is None else self.columns.names)

    def check(self) -> None:
        """Does nothing: the columns are only known when the app starts, and are checked then."""


@dataclass(frozen=True, eq=False)
class StreamEnd(Node):
    """The last step of a stream, which passes rows to a sink or an agent."""

    input: Node


@dataclass(frozen=True, eq=False)
class Write(StreamEnd):
    """A step that writes rows to a topic or a Sink."""

    word = "to"
    takes_changes = True
    sink: str | Sink
    key: str | None
    delivery: Delivery = None
    nan: OnNan = None
    format: Format | None = None  # the format of a topic; None: JSON

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset() if self.key is None else frozenset([self.key]),)

    def check(self) -> None:
        check_columns(self.word, self.input, self.mentioned[0])


def read_node(
    source: str | Source,
    *,
    schema: Schema | None = None,
    time: str | Expr | None = None,
    time_unit: TimeUnit | None = None,
    time_format: str | None = None,
    time_zone: str | None = None,
    lateness: Duration = 0,
    idle: Duration = "30s",
    idle_closes: bool = False,
    dead_letter: str | Sink = "{topic}.dlq",
    table: TableFormat | None = None,
    on_error: RowPolicy = "dead_letter",
    fields: Any = (),
    first: bool | None = None,
    max_drift: Duration | None = None,
    format: str | Format | None = None,
    start: Start | None = None,
    until: Until | None = None,
    schema_overrides: Schema | None = None,
    infer: int | None = None,
) -> Read:
    """Returns the checked first step of a stream. The arguments are those of `App.stream`, and `first` is that of
    `App.table`. `table`: the key and the form of the records of a table; None for a stream of rows.

    Raises UserError for arguments that do not fit the source or each other.
    """
    if first is not None:
        check("table: first", first, FLAG)
    row_policy("stream", on_error)
    check_input(
        source, "stream", 'stream("orders"), stream(files("*.ndjson")), stream([{"id": 1}]), stream(data_frame)'
    )
    check_sink(dead_letter, "stream: dead_letter")
    known = None if schema is None else schema_of(schema)
    if schema_overrides is not None and known is not None:
        raise UserError("stream: schema= has all types already", hint="give schema= or schema_overrides=, not both")
    if infer is not None:
        format, source = _inferring(infer, format, source, known)
    payloads = payload_format(format, source, known, "stream")
    known = payloads.known_columns if known is None else known
    pairs = fields_of(fields, "stream")
    of_files = [field for _, field in pairs if field in FILE_FIELDS]
    if of_files and isinstance(source, Source) and isinstance(source, Scans):
        source, known, pairs = source.with_fields(dict(pairs)), _with_fields(known, pairs), ()
    elif of_files:
        name = source if isinstance(source, str) else source.name
        raise UserError(
            f"stream: {name} has no {of_files[0]!r}", hint="rows of files have it: stream(files(…), fields=…)"
        )
    elif pairs and isinstance(source, Source) and (isinstance(source, Scans) or source.schema is not None):
        hint = f"a topic has records; rows of files have {', '.join(FILE_FIELDS)}"
        raise UserError(f"stream: fields= are for records, and {source.name} has rows", hint=hint)
    check_time("stream", time, time_unit, time_format, time_zone)
    lateness_ms, idle_ms = (parse_ms(each, name=name) for each, name in ((lateness, "lateness"), (idle, "idle")))
    options: Any = {
        "on_error": on_error,
        "fields": pairs,
        "time_unit": time_unit,
        "time_format": time_format,
        "time_zone": time_zone,
        "first": first,
        "format": payloads,
        "idle_closes": check("stream: idle_closes", idle_closes, FLAG),
        "max_drift_ms": None if max_drift is None else _drift_ms(source, max_drift),
        "start": None if start is None else checked_start(start, "stream"),
        "until": checked_until(until, "stream"),
        "overrides": tuple((each.name, each.type) for each in schema_of(schema_overrides or {})),
    }
    if options["start"] is not None:
        check_start(source, options["start"], "stream")
    if until is not None:
        check_ends(source, "stream")
    read = Read(source, known, time, lateness_ms, idle_ms, dead_letter, table, **options)
    if not read.has_time:
        given = {"lateness": lateness_ms, "idle": idle_ms - _IDLE_MS, "idle_closes": idle_closes}
        for name in (name for name, value in given.items() if value):
            raise UserError(
                f"stream: {name}= is about event time, and the rows of {read.name} have none",
                hint='time="ts" names their column of event time; with_time("ts", lateness="5s") gives one to a later step',
            )
    if read.columns is not None:
        _check_time_column(time, read.columns)
    return read


def _inferring(infer: int, format: Any, source: str | Source, known: pa.Schema | None) -> tuple[Any, str | Source]:
    """Returns the format and the source for a stream whose columns are inferred from the first `infer` records.
    Exactly one of the two is changed for this: the source if it infers columns itself, and otherwise the format.
    Raises UserError for a source or a format without inference. `known`: the declared columns, or None; with declared
    columns UserError is raised.
    """
    rows = check("stream: infer", infer, Whole(1, _INFER_MOST))
    if known is not None:
        raise UserError("stream: schema= has all types already", hint="give schema= or infer=, not both")
    if isinstance(source, Source):
        if isinstance(source, Scans):
            return format, source.inferring(rows)
        if source.schema is not None:
            raise UserError(f"stream: infer= is for records, and {source.name} has types", hint="leave infer= out")
    payloads = format_of(format, "stream")
    if not isinstance(payloads, Json):
        raise UserError(f"stream: infer={rows} is for JSON and CSV, whose types are inferred", hint="leave infer= out")
    return replace(payloads, sample_rows=rows), source


def _with_fields(known: pa.Schema | None, pairs: Sequence[tuple[str, str]]) -> pa.Schema | None:
    """Returns the declared columns with those of `fields=`. Raises UserError for a name that both have."""
    if known is None:
        return None
    for column, said in pairs:
        if column in known.names:
            hint = f'rename the field: fields={{"file_{column}": "{said}"}}'
            raise UserError(f"stream: {column!r} is a column of schema= and also of fields=", hint=hint)
    return pa.schema([*known, *(pa.field(name, type_of_field(said)) for name, said in pairs)])


def _drift_ms(source: str | Source, max_drift: Duration) -> int:
    if isinstance(source, Source) and not overrides(source, "hold"):
        raise UserError(
            f"stream: max_drift= is for partitions that can wait for each other, but {source.name} has none",
            hint="leave max_drift= out: files are read one after another; a Source of your own needs the method hold",
        )
    return whole_ms(max_drift, "stream: max_drift")


def said_time(time: str | Expr | None, unit: TimeUnit | None, format: str | None, zone: str | None) -> str:
    """Returns a definition of event time as a text. Equal definitions have equal texts: "ts" and `col("ts")` both
    become "ts", and the default unit, ms, is left out.
    """
    if time is None:
        return "the records' timestamp"
    said = time.column or time.text() if isinstance(time, Expr) else time
    return (
        said
        + (f" in {unit}" if unit not in (None, "ms") else "")
        + (f" as {format!r}" if format else "")
        + (f" of {zone}" if zone else "")
    )


def named_time(time: str | Expr | None, columns: Collection[str] | None) -> dict[str, bool]:
    """Returns {name: False} if `time` is the name of a column, and {} if it is a path or is computed. This is the
    form of `Node.event_times`; False means that the unit of the column's values is unknown.

    `columns`: the known columns, or None.
    """
    name = time.column if isinstance(time, Expr) else time
    path = isinstance(time, str) and "." in time and (columns is None or time not in columns)
    return {} if name is None or path else {name: False}


def path_of(path: str) -> Expr:
    """Returns the field of a struct at this path as an expression: "bid.dateTime" is the field `dateTime` of the
    column `bid`.
    """
    column, *fields = path.split(".")
    expr = col(column)
    for field in fields:
        expr = expr.struct.field(field)
    return expr


def check_time(where: str, time: Any, unit: Any, format: Any, zone: Any) -> None:
    """Raises UserError if these arguments cannot define an event time, whatever columns the stream has. `where`: the
    beginning of the message.
    """
    if time is not None and not isinstance(time, str | Expr):
        raise UserError(
            f"{where}: time={time!r} is not a column", hint='time="ts", time="bid.at", time=col("s") * 1000'
        )
    for name, value in (("time_unit", unit), ("time_format", format), ("time_zone", zone)):
        if value is not None and time is None:
            raise UserError(f"{where}: {name}={value!r} without a column of event time", hint='time="ts" names it')
    if unit is not None:
        check(f"{where}: time_unit", unit, OneOf(tuple(PER_SECOND)))
    if zone is not None:
        zone_of(where, zone)
    if unit is not None and zone is not None:
        raise UserError(f"{where}: time_unit= and time_zone= exclude each other", hint="numbers count from 1970 UTC")
    if unit is not None and format is not None:
        raise UserError(
            f"{where}: time_unit= and time_format= exclude each other", hint="numbers have a unit, texts a format"
        )
    if format is not None:
        col("t").str.to_datetime(format)


def _check_time_column(time: str | Expr | None, schema: pa.Schema) -> None:
    if isinstance(time, Expr):
        check_names(f"stream: time={time.text()}", sorted(time.columns), schema.names)
    elif time is not None and time not in schema.names and time.split(".")[0] not in schema.names:
        raise UserError(f"stream: time={time!r} is not one of the columns {schema.names}")


def endless_read(node: Node) -> Read | None:
    """Returns the first source of this step's rows that has no end, or None if all of its sources have an end."""
    reads = (each for each in walk([node]) if isinstance(each, Read))
    return next((each for each in reads if not each.bounded), None)


def only_source(node: Node) -> str:
    """Returns the name of the only source of this step's rows (a topic, a path), or "" if there are several."""
    names = {each.name for each in walk([node]) if isinstance(each, Read)}
    return names.pop() if len(names) == 1 else ""
