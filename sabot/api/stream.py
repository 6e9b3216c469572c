"""Streams as users write them: a graph of descriptions, nothing runs.

    app.stream("transactions", schema=..., time="ts", lateness="5s")
        .filter(col("amount") > 10).key_by("account").window(tumbling("1m")).aggregate(n=count())
        .to("account_minutes")

A `Stream` stands for the rows after one step; each method gives a new one, and `to` says where rows go. The steps are the
nodes below; `plan/` makes stages of them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr, as_type, col
from sabot.api.windows import CountWindow, SessionWindow, Window
from sabot.config import Duration, parse_seconds
from sabot.connectors.base import Delivery, Sink, Source, check_delivery
from sabot.errors import UserError

__all__ = [
    "AggregateWindow",
    "Deduplicate",
    "Drop",
    "Filter",
    "FlatMap",
    "KeyedStream",
    "MapBatches",
    "Node",
    "Owner",
    "Read",
    "Reduce",
    "Rename",
    "RunningAggregate",
    "Select",
    "Stream",
    "Union",
    "WindowedStream",
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


@dataclass(frozen=True, eq=False)
class Read(Node):
    """Rows of a topic, or of a Source. `time`: the column of event time; None: the records' timestamps, where they have one."""

    source: str | Source
    schema: pa.Schema | None
    time: str | None
    lateness_ms: int
    idle_ms: int
    dead_letter: str | Sink
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
class Write(Node):
    """Rows leave for a topic or a Sink."""

    input: Node
    sink: str | Sink
    key: str | None
    delivery: Delivery = None


class Owner(Protocol):
    """What a stream asks of its app."""

    def write(self, node: Write) -> None:
        """The stream will be run with the app."""

    def collect(self, node: Node) -> pa.Table:
        """Runs the steps up to this node, now, over bounded inputs."""

    def explain(self, node: Node) -> str:
        """The plan of the steps up to this node."""


class Stream:
    """The rows after a step. Immutable: every method gives a new stream; nothing runs before the app does, or `collect`."""

    def __init__(self, owner: Owner, node: Node) -> None:
        self._owner = owner
        self._node = node

    # -- rows and columns ---------------------------------------------------------------------------------------------

    def filter(self, *predicates: Expr) -> "Stream":
        """The rows for which all predicates are true; not those for which one is null."""
        if not predicates:
            raise UserError("filter needs a predicate", hint='filter(col("amount") > 10)')
        node = self._node
        for predicate in predicates:
            node = Filter(node, _expression(predicate, "filter"))
        return self._then(node)

    def select(self, *columns: str | Expr | Sequence[str | Expr], **named: Expr | Any) -> "Stream":
        """These columns, in this order: names, expressions, or name=expression."""
        return self._then(Select(self._node, _named(columns, named, "select")))

    def with_columns(self, *columns: Expr, **named: Expr | Any) -> "Stream":
        """Adds columns, or replaces those of the same name. All see the columns as they were before."""
        return self._then(WithColumns(self._node, _named(columns, named, "with_columns")))

    def drop(self, *names: str | Sequence[str]) -> "Stream":
        """All columns but these."""
        return self._then(Drop(self._node, _names(_flat(names), "drop")))

    def rename(self, names: Mapping[str, str]) -> "Stream":
        """{old name: new name}."""
        pairs = tuple((str(old), str(new)) for old, new in names.items())
        return self._then(Rename(self._node, pairs))

    def map_batches(self, function: Callable[[pa.RecordBatch], Any], *, schema: Schema | None = None) -> "Stream":
        """`function(batch: pa.RecordBatch)` -> anything that speaks Arrow, or None for nothing.

        schema: of what it gives; without one it is called with an empty batch, once, to see. Where windows follow, event time is
        read again from its column if that is there, else the number of rows must stay the same.
        """
        return self._then(MapBatches(self._node, _callable(function, "map_batches"), schema_of(schema)))

    def flat_map(self, function: Callable[[dict[str, Any]], Any], *, schema: Schema) -> "Stream":
        """`function(row: dict)` -> an iterable of dicts. A Python call for each row: prefer `map_batches`."""
        known = schema_of(schema)
        assert known is not None
        return self._then(FlatMap(self._node, _callable(function, "flat_map"), known))

    def union(self, *others: "Stream") -> "Stream":
        """The rows of this stream and of the others; their columns are the same, in the same order."""
        return self._then(Union((self._node, *(other._node for other in others))))

    def split(self, predicate: Expr) -> tuple["Stream", "Stream"]:
        """-> (rows for which the predicate is true, all other rows: those where it is null too)."""
        yes = _expression(predicate, "split")
        return self.filter(yes), self.filter(~yes.fill_null(False))

    # -- keys and time ------------------------------------------------------------------------------------------------

    def key_by(self, *keys: str | Expr) -> "KeyedStream":
        """Rows that belong together: names of columns, or expressions with an alias. Null is a key like others."""
        if not keys:
            raise UserError("key_by needs a column", hint='key_by("account")')
        named = _named(keys, {}, "key_by")
        made = tuple((name, expr) for name, expr in named if not expr.same(col(name)))
        for name, expr in made:
            if name in expr.columns:
                raise UserError(
                    f"key_by: {expr!r} would take the place of column {name!r}", hint='give it a name: .alias("…")'
                )
        node = WithColumns(self._node, made) if made else self._node
        return KeyedStream(self._owner, node, tuple(name for name, _ in named))

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """All rows of a window together. See KeyedStream.window."""
        return KeyedStream(self._owner, self._node, ()).window(
            window, allowed_lateness=allowed_lateness, emit_every=emit_every, late=late
        )

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> "Stream":
        """For each row the aggregates of all rows so far, this one included. See KeyedStream.aggregate."""
        return KeyedStream(self._owner, self._node, ()).aggregate(*unnamed, ttl=None, **aggregates)

    def deduplicate(self, *keys: str | Expr, within: Duration | None = None) -> "Stream":
        """The first row of each key; with `within`, a key counts as new again so long (of event time) after its first row."""
        keyed = self.key_by(*keys)
        made = keyed._node.columns if isinstance(keyed._node, WithColumns) and keyed._node is not self._node else ()
        firsts = keyed.deduplicate(within=within)
        return firsts.drop(*(name for name, _ in made)) if made else firsts

    def named(self, id: str) -> "Stream":
        """Gives the step before this place that keeps state (aggregate, reduce, deduplicate) an id: its state goes on under it when the
        program around it changes, and `sabot state` reads it by it.
        """
        if not isinstance(id, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", id):
            raise UserError(f"named: {id!r} is no id", hint='letters, digits, "_", "-" and ".", at most 80: "totals"')
        return self._then(_with_id(self._node, id))

    # -- out ----------------------------------------------------------------------------------------------------------

    def to(self, sink: str | Sink, *, key: str | None = None, delivery: Delivery = None) -> None:
        """Rows go to this topic or Sink when the app runs. May be said several times. key: the column that is the records' key.

        delivery: "exactly_once": rows are there once a checkpoint covers them, each of them once whatever crashes. "at_least_once": they
        are there at once, and may be there again after a crash. None: exactly once where the sink can and checkpoints are written.
        """
        check_delivery(delivery, f"to({sink!r})")
        if not isinstance(sink, str | Sink):
            raise UserError(
                f"to: {sink!r} is no topic and no Sink", hint='to("topic") or to(ParquetSink("out.parquet"))'
            )
        self._owner.write(Write(self._node, sink, key, delivery))

    def collect(self) -> pa.Table:
        """Runs it now and gives all rows. Bounded inputs only. Also in a notebook."""
        return self._owner.collect(self._node)

    def print(self, n: int = 20) -> None:
        """Runs it now and prints the first `n` rows. Bounded inputs only."""
        table = self.collect()
        print(f"{_shown(table.slice(0, n))}\n{table.num_rows} rows")

    def explain(self) -> str:
        """The plan as text: stages, what each does, what is read."""
        return self._owner.explain(self._node)

    def __repr__(self) -> str:
        return f"Stream({type(self._node).__name__})"

    def _then(self, node: Node) -> "Stream":
        return Stream(self._owner, node)


class KeyedStream:
    """Rows by key."""

    def __init__(self, owner: Owner, node: Node, keys: tuple[str, ...]) -> None:
        self._owner = owner
        self._node = node
        self._keys = keys

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration = 0,
        emit_every: Duration | None = None,
        late: str | Sink | None = None,
    ) -> "WindowedStream":
        """Rows of a key put together by event time (or count).

        allowed_lateness: how long after its end a window still takes rows; each time it did, its whole result is emitted again.
        emit_every: early results of windows that are still open, each time event time has gone on by so much.
        late: a topic or Sink for rows that come after that; they are counted in any case.
        """
        if not isinstance(window, Window):
            raise UserError(
                f"window: {window!r} is no window", hint='tumbling("1m"), hopping("1h", "1m"), session("5m")'
            )
        if late is not None and not isinstance(late, str | Sink):
            raise UserError(f"window: late={late!r} is no topic and no Sink", hint='late="late-orders"')
        every = None if emit_every is None else _ms(emit_every, "emit_every")
        if every is not None and isinstance(window, SessionWindow | CountWindow):
            raise UserError("emit_every: sessions and windows by count have no early results", hint="leave it out")
        return WindowedStream(self, window, _ms(allowed_lateness, "allowed_lateness"), every, late)

    def aggregate(self, *unnamed: Aggregate, ttl: Duration | None = None, **aggregates: Aggregate) -> Stream:
        """For each row, its key's aggregates so far, the row included. ttl: a key not seen for so long of event time starts anew.

        Of numbers and times: count, sum, min, max, mean, variance, stddev, first, last, any. The others need a window.
        """
        known = _aggregates(unnamed, aggregates)
        return Stream(self._owner, RunningAggregate(self._node, self._keys, known, _optional_ms(ttl, "ttl")))

    def reduce(
        self,
        function: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
        *,
        ttl: Duration | None = None,
    ) -> Stream:
        """For each row, its key's rows so far reduced to one: `function(so_far, row)`, dicts of the same columns."""
        node = Reduce(self._node, self._keys, _callable(function, "reduce"), _optional_ms(ttl, "ttl"))
        return Stream(self._owner, node)

    def deduplicate(self, *, within: Duration | None = None) -> Stream:
        """The first row of each key; with `within`, a key counts as new again so long (of event time) after its first row."""
        return Stream(self._owner, Deduplicate(self._node, self._keys, _optional_ms(within, "within")))

    def __repr__(self) -> str:
        return f"KeyedStream(by {', '.join(self._keys)})"


class WindowedStream:
    """Rows by key and window."""

    def __init__(
        self,
        keyed: KeyedStream,
        window: Window,
        allowed_lateness_ms: int,
        emit_every_ms: int | None,
        late: str | Sink | None,
    ) -> None:
        self._keyed = keyed
        self._window = window
        self._allowed_lateness_ms = allowed_lateness_ms
        self._emit_every_ms = emit_every_ms
        self._late = late

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> Stream:
        """One row for each key and window: the keys, window_start, window_end (end exclusive), then these."""
        keyed = self._keyed
        node = AggregateWindow(
            keyed._node,
            keyed._keys,
            self._window,
            _aggregates(unnamed, aggregates),
            self._allowed_lateness_ms,
            self._emit_every_ms,
            self._late,
        )
        for name, _ in node.aggregates:
            if name in (*keyed._keys, "window_start", "window_end"):
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return Stream(keyed._owner, node)

    def __repr__(self) -> str:
        return f"WindowedStream({self._window})"


def read_node(
    source: str | Source,
    *,
    schema: Schema | None = None,
    time: str | None = None,
    lateness: Duration = 0,
    idle: Duration = "30s",
    dead_letter: str | Sink = "{topic}.dlq",
) -> Read:
    """The checked first step of a stream."""
    if not isinstance(source, str | Source):
        raise UserError(
            f"stream: {source!r} is no topic and no Source", hint='stream("orders") or stream(files("*.ndjson"))'
        )
    if not isinstance(dead_letter, str | Sink):
        raise UserError(f"stream: dead_letter={dead_letter!r} is no topic and no Sink", hint='"{topic}.dlq"')
    if time is not None and not isinstance(time, str):
        raise UserError(f"stream: time={time!r} is no name of a column", hint='time="ts"')
    known = schema_of(schema)
    if time is not None and known is not None and time not in known.names:
        raise UserError(f"stream: time={time!r} is none of the columns {known.names}")
    return Read(source, known, time, _ms(lateness, "lateness"), _ms(idle, "idle"), dead_letter)


def schema_of(schema: Schema | None) -> pa.Schema | None:
    """A pa.Schema, or {"name": "type"} with pyarrow's names of types."""
    if schema is None or isinstance(schema, pa.Schema):
        return schema
    if not isinstance(schema, Mapping):
        raise UserError(
            f"schema={schema!r} is no schema", hint='{"account": "string", "amount": "float64"}, or a pa.Schema'
        )
    return pa.schema([pa.field(str(name), as_type(kind)) for name, kind in schema.items()])


def _with_id(node: Node, id: str) -> Node:
    if isinstance(node, AggregateWindow | RunningAggregate | Reduce | Deduplicate):
        if node.id:
            raise UserError(f"named: this step is called {node.id!r} already", hint="name it once")
        return replace(node, id=id)
    if len(node.inputs) != 1:
        hint = "call it right behind aggregate, reduce or deduplicate"
        raise UserError(f"named({id!r}): no step before this place keeps state", hint=hint)
    return replace(node, input=_with_id(node.inputs[0], id))  # type: ignore[call-arg]


def _ms(value: Duration, name: str) -> int:
    return round(parse_seconds(value, name=name) * 1000)


def _optional_ms(value: Duration | None, name: str) -> int | None:
    if value is None:
        return None
    ms = _ms(value, name)
    if ms < 1:
        raise UserError(f"{name}: {value!r} is less than a millisecond")
    return ms


def _expression(value: Any, where: str) -> Expr:
    if not isinstance(value, Expr):
        raise UserError(f"{where}: {value!r} is no expression", hint='col("amount") > 10')
    return value


def _callable(value: Any, where: str) -> Any:
    if not callable(value):
        raise UserError(f"{where}: {value!r} is no function")
    return value


def _flat(values: Iterable[Any]) -> list[Any]:
    """As polars takes them: one by one, or in a list."""
    return [each for value in values for each in (value if isinstance(value, list | tuple) else [value])]


def _names(names: Sequence[Any], where: str) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{where}: {name!r} is no column name")
    return tuple(names)


def _named(columns: Sequence[Any], named: Mapping[str, Any], where: str) -> tuple[tuple[str, Expr], ...]:
    pairs = list(_pairs(columns, named, where))
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise UserError(f"{where}: two columns are called {name!r}", hint='name one of them: .alias("…")')
        seen.add(name)
    return tuple(pairs)


def _pairs(columns: Sequence[Any], named: Mapping[str, Any], where: str) -> Iterator[tuple[str, Expr]]:
    for column in _flat(columns):
        expr = col(column) if isinstance(column, str) else _expression(column, where)
        yield expr.name, expr
    for name, value in named.items():
        yield name, col(value) if isinstance(value, str) else _expression(value, f"{where}, {name}")


def _aggregates(unnamed: Sequence[Any], aggregates: Mapping[str, Any]) -> tuple[tuple[str, Aggregate], ...]:
    if unnamed:
        raise UserError(
            f"aggregate: {unnamed[0]!r} has no name, and its column needs one", hint=f"aggregate(n={unnamed[0]!r})"
        )
    if not aggregates:
        raise UserError("aggregate needs at least one", hint='aggregate(n=sabot.count(), total=sabot.sum("amount"))')
    for name, aggregate in aggregates.items():
        if not isinstance(aggregate, Aggregate):
            raise UserError(f"aggregate: {name}={aggregate!r} is no aggregate", hint=f'{name}=sabot.sum("amount")')
    return tuple(aggregates.items())


def _shown(table: pa.Table) -> str:
    """A table as text, in columns."""
    columns = [
        [name, *(str(value) for value in table.column(i).to_pylist())] for i, name in enumerate(table.column_names)
    ]
    if not columns:
        return "(no columns)"
    widths = [max(map(len, cells)) for cells in columns]
    rows = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
