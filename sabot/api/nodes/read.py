"""Where rows come in, and where they go out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa

from sabot.api.arguments import RowPolicy, Schema, row_policy, schema_of
from sabot.api.nodes.node import Node, check_columns, walk
from sabot.codecs.fields import fields_of, type_of_field
from sabot.config import Duration, parse_ms
from sabot.connectors.base import Delivery, Sink, Source, check_input, check_sink
from sabot.errors import SabotError, UserError

__all__ = ["Read", "StreamEnd", "TableFormat", "Write", "endless_read", "only_source", "read_node"]


@dataclass(frozen=True)
class TableFormat:
    """Records that are changes of a table: what they say of the row with these `keys`. format: "json", a row; "debezium"."""

    keys: tuple[str, ...]
    format: Literal["json", "debezium"] = "json"


@dataclass(frozen=True, eq=False)
class Read(Node):
    """Rows of a topic, or of a Source. `time`: the column of event time; None: the records' timestamps, where they have one.

    schema: the columns of the payloads. fields: (column, field) of what else of a record becomes a column, behind those.
    table: they are read as changes of a table, with the op that says which rows end.
    """

    word = "stream"
    source: str | Source
    schema: pa.Schema | None
    time: str | None
    lateness_ms: int
    idle_ms: int
    dead_letter: str | Sink
    table: TableFormat | None = None
    inferred: bool = False  # `schema` was not given but found
    on_error: RowPolicy = "dead_letter"
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The topic, or the source's name."""
        return self.source if isinstance(self.source, str) else self.source.name

    @property
    def has_time(self) -> bool:
        """A column of event time is named, or the records have timestamps."""
        return self.time is not None or isinstance(self.source, str)

    @cached_property
    def columns(self) -> pa.Schema | None:
        """All columns: those of the payloads and the fields of the records. Raises UserError for a column that both have."""
        if self.schema is None or not self.fields:
            return self.schema
        for column, said in self.fields:
            if column in self.schema.names:
                raise UserError(
                    f"stream {self.name}: {column!r} is a column of its payloads, and of fields= too",
                    hint=f'name the one of fields=: {{"record_{column}": "{said}"}}',
                )
        return pa.schema([*self.schema, *(pa.field(column, type_of_field(said)) for column, said in self.fields)])

    @cached_property
    def column_names(self) -> list[str] | None:
        """As given, or as the data of a Source tells."""
        schema = self.schema
        if schema is None and isinstance(self.source, Source):
            try:
                schema = self.source.infer_schema()
            except (SabotError, OSError):
                return None  # the start will say what is wrong with it
        return None if schema is None else [*schema.names, *(column for column, _ in self.fields)]

    @cached_property
    def event_times(self) -> frozenset[str]:
        return frozenset() if self.time is None else frozenset([self.time])

    def check(self) -> None:
        """The start checks what is read: only then all columns are known."""


@dataclass(frozen=True, eq=False)
class StreamEnd(Node):
    """Rows leave the stream."""

    input: Node


@dataclass(frozen=True, eq=False)
class Write(StreamEnd):
    """Rows leave for a topic or a Sink."""

    word = "to"
    takes_changes = True
    sink: str | Sink
    key: str | None
    delivery: Delivery = None

    @property
    def mentioned(self) -> tuple[frozenset[str], ...]:
        return (frozenset() if self.key is None else frozenset([self.key]),)

    def check(self) -> None:
        check_columns(self.word, self.input, self.mentioned[0])


def read_node(
    source: str | Source,
    *,
    schema: Schema | None = None,
    time: str | None = None,
    lateness: Duration = 0,
    idle: Duration = "30s",
    dead_letter: str | Sink = "{topic}.dlq",
    table: TableFormat | None = None,
    on_error: RowPolicy = "dead_letter",
    fields: Any = (),
) -> Read:
    """The checked first step of a stream."""
    row_policy("stream", on_error)
    check_input(source, "stream", 'stream("orders") or stream(files("*.ndjson"))')
    check_sink(dead_letter, "stream: dead_letter")
    if time is not None and not isinstance(time, str):
        raise UserError(f"stream: time={time!r} is no name of a column", hint='time="ts"')
    known = None if schema is None else schema_of(schema)
    pairs = fields_of(fields, "stream")
    if pairs and isinstance(source, Source) and type(source).scan is not Source.scan:
        raise UserError(
            f"stream: fields= are of records, and {source.name} has rows without any", hint="a topic has records"
        )
    lateness_ms, idle_ms = (parse_ms(each, name=name) for each, name in ((lateness, "lateness"), (idle, "idle")))
    read = Read(source, known, time, lateness_ms, idle_ms, dead_letter, table, on_error=on_error, fields=pairs)
    columns = read.columns
    if time is not None and columns is not None and time not in columns.names:
        raise UserError(f"stream: time={time!r} is none of the columns {columns.names}")
    return read


def endless_read(node: Node) -> Read | None:
    """A source of this step's rows that has no end; None where all have one."""
    reads = (each for each in walk([node]) if isinstance(each, Read))
    return next((each for each in reads if isinstance(each.source, str) or not each.source.bounded), None)


def only_source(node: Node) -> str:
    """The name of the one source that the rows of this step come from: a topic, a path. "": there are several."""
    names = {each.name for each in walk([node]) if isinstance(each, Read)}
    return names.pop() if len(names) == 1 else ""
