"""The steps of a stream as descriptions: the nodes of the graph that `api/stream` builds and `plan/` makes stages of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import pyarrow as pa

from sabot.api.aggregates import Aggregate
from sabot.api.calls import AsyncCall, LookupCall
from sabot.api.expr import Expr, as_type
from sabot.api.over import OverFunction
from sabot.api.patterns import Pattern
from sabot.api.process import ProcessSpec
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow, Window
from sabot.config import Duration, parse_seconds
from sabot.connectors.base import Delivery, Sink, Source, check_input, check_sink
from sabot.errors import UserError

__all__ = [
    "AggregateWindow",
    "AsofJoin",
    "Broadcast",
    "Changelog",
    "Connect",
    "Deduplicate",
    "Drop",
    "EndVersions",
    "Filter",
    "FlatMap",
    "GroupAggregate",
    "IntervalJoin",
    "Join",
    "JoinHow",
    "Lookup",
    "LookupAsync",
    "MapAsync",
    "MapBatches",
    "Match",
    "Materialize",
    "Node",
    "Over",
    "Process",
    "Read",
    "Reduce",
    "Rename",
    "RunningAggregate",
    "Sample",
    "Schema",
    "Select",
    "Side",
    "TableFormat",
    "Ties",
    "TopN",
    "TwoInputs",
    "Union",
    "Upsert",
    "Versions",
    "WindowJoin",
    "WindowTopN",
    "WithColumns",
    "Write",
    "read_node",
    "schema_of",
]

Schema: TypeAlias = pa.Schema | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Node:
    """One step. Compared by identity: two streams may do the same and stay two."""

    @property
    def inputs(self) -> tuple["Node", ...]:
        """The steps whose rows come in."""
        node = getattr(self, "input", None)
        return () if node is None else (node,)

    def over(self, *inputs: "Node") -> "Node":
        """The same step over other inputs, as many as it has."""
        return replace(self, input=inputs[0]) if inputs else self  # type: ignore[call-arg]


@dataclass(frozen=True)
class TableFormat:
    """Records that are changes of a table: what they say of the row with these `keys`. format: "json", a row; "debezium"."""

    keys: tuple[str, ...]
    format: Literal["json", "debezium"] = "json"


@dataclass(frozen=True, eq=False)
class Read(Node):
    """Rows of a topic, or of a Source. `time`: the column of event time; None: the records' timestamps, where they have one.

    table: they are read as changes of a table, with the op that says which rows end.
    """

    source: str | Source
    schema: pa.Schema | None
    time: str | None
    lateness_ms: int
    idle_ms: int
    dead_letter: str | Sink
    table: TableFormat | None = None
    inferred: bool = False  # `schema` was not given but found

    @property
    def name(self) -> str:
        """The topic, or the source's name."""
        return self.source if isinstance(self.source, str) else self.source.name


@dataclass(frozen=True, eq=False)
class Filter(Node):
    """Rows for which the predicate is true."""

    input: Node
    predicate: Expr


@dataclass(frozen=True, eq=False)
class Select(Node):
    """These columns and no others."""

    input: Node
    columns: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, eq=False)
class WithColumns(Node):
    """These columns beside, or in place of, those that are there."""

    input: Node
    columns: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, eq=False)
class Drop(Node):
    """All columns but these."""

    input: Node
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Rename(Node):
    """Other names for some columns."""

    input: Node
    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class MapBatches(Node):
    """The user's function over RecordBatches."""

    input: Node
    function: Callable[[pa.RecordBatch], Any]
    schema: pa.Schema | None


@dataclass(frozen=True, eq=False)
class FlatMap(Node):
    """The user's function over single rows: a dict in, any number of dicts out."""

    input: Node
    function: Callable[[dict[str, Any]], Any]
    schema: pa.Schema


@dataclass(frozen=True, eq=False)
class Union(Node):
    """The rows of several streams, which have the same columns."""

    streams: tuple[Node, ...]

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.streams

    def over(self, *inputs: Node) -> Node:
        return replace(self, streams=inputs)


@dataclass(frozen=True, eq=False)
class Broadcast(Node):
    """The same rows, all of them for each subtask of the step that they go into."""

    input: Node


@dataclass(frozen=True, eq=False)
class TwoInputs(Node):
    """A step over the rows of two streams."""

    left: Node
    right: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.left, self.right

    def over(self, *inputs: Node) -> Node:
        return replace(self, left=inputs[0], right=inputs[1])


JoinHow: TypeAlias = Literal["inner", "left", "right", "full", "semi", "anti"]


@dataclass(frozen=True, eq=False)
class Join(TwoInputs):
    """Rows whose keys are equal, put together: the columns of the left, then those of the right without its keys.

    keep_ms: of each side, for how much event time its rows are kept; None: for ever.
    """

    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    how: JoinHow = "inner"
    suffix: str = "_right"
    keep_ms: tuple[int | None, int | None] = (None, None)
    id: str = ""


@dataclass(frozen=True, eq=False)
class IntervalJoin(Join):
    """A join of rows that are near each other in event time: right in [left + lower, left + upper]; None: no bound."""

    lower_ms: int | None = None
    upper_ms: int | None = None


@dataclass(frozen=True, eq=False)
class WindowJoin(Join):
    """A join of rows that fall into the same window."""

    window: TumblingWindow | HoppingWindow | CumulativeWindow = field(default_factory=lambda: TumblingWindow(1))


@dataclass(frozen=True, eq=False)
class AsofJoin(Join):
    """Each row of the left with the row of the right that was (or will be) current at its time."""

    strategy: Literal["backward", "forward", "nearest"] = "backward"
    tolerance_ms: int | None = None


@dataclass(frozen=True, eq=False)
class Lookup(Join):
    """Each row of the left with the row that the right has for its key when it comes."""


@dataclass(frozen=True, eq=False)
class AggregateWindow(Node):
    """One row for each key and window."""

    input: Node
    keys: tuple[str, ...]
    window: Window
    aggregates: tuple[tuple[str, Aggregate], ...]
    allowed_lateness_ms: int
    emit_every_ms: int | None
    late: str | Sink | None
    id: str = ""  # given by the user


@dataclass(frozen=True, eq=False)
class RunningAggregate(Node):
    """For each row its key's aggregates so far, the row included."""

    input: Node
    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    ttl_ms: int | None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Reduce(Node):
    """For each row its key's rows so far, reduced to one by the user's function."""

    input: Node
    keys: tuple[str, ...]
    function: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
    ttl_ms: int | None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Deduplicate(Node):
    """The first row of each key."""

    input: Node
    keys: tuple[str, ...]
    within_ms: int | None
    id: str = ""


@dataclass(frozen=True, eq=False)
class GroupAggregate(Node):
    """One row for each key, which changes as rows come."""

    input: Node
    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    id: str = ""


@dataclass(frozen=True, eq=False)
class Upsert(Node):
    """The last row of each key is the key's row. deletes: the input says by its op which keys have no row any more."""

    input: Node
    keys: tuple[str, ...]
    deletes: bool = False
    id: str = ""


@dataclass(frozen=True, eq=False)
class Versions(Node):
    """All rows of an Upsert's input, none left out, as changes: the plan's own, below an AsofJoin."""

    input: Node
    deletes: bool


@dataclass(frozen=True, eq=False)
class EndVersions(Node):
    """A Filter over Versions: a row that does not pass ends the one before."""

    input: Node
    predicate: Expr


@dataclass(frozen=True, eq=False)
class Changelog(Node):
    """Changes as rows: what happened to a row is its column `op`."""

    input: Node


@dataclass(frozen=True, eq=False)
class Materialize(Node):
    """The rows that are there when all changes have been."""

    input: Node
    id: str = ""


Ties: TypeAlias = Literal["row_number", "rank", "dense_rank"]


@dataclass(frozen=True, eq=False)
class TopN(Node):
    """The first rows of each key, in the order of `by`: (column, whether the greatest come first)."""

    input: Node
    keys: tuple[str, ...]
    n: int
    by: tuple[tuple[str, bool], ...]
    ties: Ties
    rank: str | None
    id: str = ""


@dataclass(frozen=True, eq=False)
class WindowTopN(Node):
    """The first rows of each key and window."""

    input: Node
    keys: tuple[str, ...]
    window: TumblingWindow | HoppingWindow | CumulativeWindow
    n: int
    by: tuple[tuple[str, bool], ...]
    ties: Ties
    rank: str | None
    allowed_lateness_ms: int
    late: str | Sink | None
    id: str = ""


@dataclass(frozen=True, eq=False)
class MapAsync(Node):
    """The user's coroutine function over rows, several calls at a time. dead_letter: where rows go whose calls failed."""

    input: Node
    call: AsyncCall
    dead_letter: str | Sink | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class LookupAsync(Node):
    """Columns that the user's coroutine function knows for a key."""

    input: Node
    call: LookupCall
    suffix: str = "_right"
    dead_letter: str | Sink | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Over(Node):
    """Columns beside each row, made of it and the rows of its key before it: so many, or of so much event time; None: all."""

    input: Node
    keys: tuple[str, ...]
    columns: tuple[tuple[str, Aggregate | OverFunction], ...]
    preceding_rows: int | None = None
    preceding_ms: int | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Match(Node):
    """Rows of a key that follow a pattern, in event time: one row for each match."""

    input: Node
    keys: tuple[str, ...]
    pattern: Pattern
    skip: str
    measures: tuple[tuple[str, Expr], ...]
    max_partial: int = 10_000
    id: str = ""


@dataclass(frozen=True, eq=False)
class Process(Node):
    """The user's functions over the rows of a key, its state and its timers."""

    input: Node
    keys: tuple[str, ...]
    spec: ProcessSpec
    id: str = ""


@dataclass(frozen=True, eq=False)
class Connect(TwoInputs):
    """As Process, over the rows of two streams with the same keys, or of one by key and one that every subtask gets."""

    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    spec: ProcessSpec
    id: str = ""


@dataclass(frozen=True, eq=False)
class Side(Node):
    """The rows that leave a process step by one of its sides."""

    input: Process | Connect
    name: str


@dataclass(frozen=True, eq=False)
class Sample(Node):
    """Some of the rows, by chance."""

    input: Node
    fraction: float
    seed: int
    id: str = ""


@dataclass(frozen=True, eq=False)
class Write(Node):
    """Rows leave for a topic or a Sink."""

    input: Node
    sink: str | Sink
    key: str | None
    delivery: Delivery = None


def read_node(
    source: str | Source,
    *,
    schema: Schema | None = None,
    time: str | None = None,
    lateness: Duration = 0,
    idle: Duration = "30s",
    dead_letter: str | Sink = "{topic}.dlq",
    table: TableFormat | None = None,
) -> Read:
    """The checked first step of a stream."""
    check_input(source, "stream", 'stream("orders") or stream(files("*.ndjson"))')
    check_sink(dead_letter, "stream: dead_letter")
    if time is not None and not isinstance(time, str):
        raise UserError(f"stream: time={time!r} is no name of a column", hint='time="ts"')
    known = schema_of(schema)
    if time is not None and known is not None and time not in known.names:
        raise UserError(f"stream: time={time!r} is none of the columns {known.names}")
    lateness_ms, idle_ms = (
        round(parse_seconds(each, name=name) * 1000) for each, name in ((lateness, "lateness"), (idle, "idle"))
    )
    return Read(source, known, time, lateness_ms, idle_ms, dead_letter, table)


def schema_of(schema: Schema | None) -> pa.Schema | None:
    """A pa.Schema, or {"name": "type"} with pyarrow's names of types."""
    if schema is None or isinstance(schema, pa.Schema):
        return schema
    if not isinstance(schema, Mapping):
        raise UserError(
            f"schema={schema!r} is no schema", hint='{"account": "string", "amount": "float64"}, or a pa.Schema'
        )
    return pa.schema([pa.field(str(name), as_type(kind)) for name, kind in schema.items()])
