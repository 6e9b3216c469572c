"""The optimised graph -> stages: chains of operators that run in one thread, and the edges between them.

A stage ends where rows must change threads: before keyed work with more than one subtask (rows go to the owner of their key
group), before a union, before a sink. Everything else is fused: plain calls within a chain. A chain may fork; it never joins.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from typing import Any

import pyarrow as pa

from sabot.api import stream as logical
from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr, col, lit
from sabot.api.stream import Node, Read, Write
from sabot.api.windows import CountWindow, SessionWindow
from sabot.config import legal_topic
from sabot.connectors.base import Delivery, Sink, Source
from sabot.errors import UserError
from sabot.operators.aggregates import Call
from sabot.operators.base import Operator, OperatorContext, with_time
from sabot.operators.keyed import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.operators.ordered import EventOrder
from sabot.operators.sessions import SessionAggregate
from sabot.operators.stateless import (
    Drop,
    Filter,
    FlatMap,
    MapBatches,
    Rename,
    Select,
    WithColumns,
    WithoutHashes,
    WithoutTime,
)
from sabot.operators.windows import LocalCombine, WindowAggregate
from sabot.plan.optimise import check_columns, columns_of, optimise, used_columns, walk

__all__ = ["Edge", "Plan", "Reading", "Stage", "Step", "check_alike", "column_types", "make_plan"]


@dataclass(eq=False)
class Edge:
    """Rows of a chain go to another stage. keys: to the owner of the key group of these columns; None: all to its one subtask.

    right: they are the second input of the stage. everywhere: all of them go to each subtask.
    """

    target: "Stage"
    keys: tuple[str, ...] | None = None
    right: bool = False
    everywhere: bool = False


@dataclass(eq=False)
class Step:
    """One operator of a chain. `make` gives a new one for each subtask; `targets` is where its rows go, `sides` where some go beside."""

    id: str
    text: str
    make: Callable[[], Operator]
    targets: list["Step | Edge"] = field(default_factory=list)
    sides: dict[str, list["Step | Edge"]] = field(default_factory=dict)
    named: bool = False  # the user gave the id
    path: str = ""  # stands for all steps before it, back to the sources


@dataclass(eq=False)
class Reading:
    """How a source is read: `columns` are decoded (None: all), event time is put beside them if `timed`."""

    node: Read
    columns: tuple[str, ...] | None
    timed: bool
    dead_letters: Edge | None = None

    @property
    def schema(self) -> pa.Schema | None:
        """Of what is decoded; None: not known before the first records."""
        known = self.node.schema
        if known is None or self.columns is None:
            return known
        return pa.schema([known.field(name) for name in self.columns])

    @property
    def rows(self) -> pa.Schema | None:
        """The columns that go down the chain. Any of them may be null: what must not be was set apart."""
        return None if self.schema is None else with_time(pa.schema(column_types(self.schema)), self.timed)


@dataclass(eq=False)
class Stage:
    """A chain with what feeds it: a source (`reading`), the edges of other stages, or for a sink (`sink`) both of them and no steps."""

    id: str
    parallelism: int
    reading: Reading | None = None
    sink: tuple[str | Sink, str | None] | None = None  # (topic or Sink, the column that is the key)
    delivery: Delivery = None  # of the sink; None: what suits it
    targets: list[Step | Edge] = field(default_factory=list)

    def steps(self) -> list[Step]:
        """All operators of the chain, those upstream first."""
        found: list[Step] = []

        def visit(targets: list[Step | Edge]) -> None:
            for target in targets:
                if isinstance(target, Step):
                    found.append(target)
                    visit(target.targets)
                    for side in target.sides.values():
                        visit(side)

        visit(self.targets)
        return found


@dataclass
class Plan:
    """Stages, upstream before downstream."""

    stages: list[Stage]

    def check(self) -> None:
        """Opens every operator whose columns are known, and closes it again. Raises UserError for names and types that do not fit."""
        schemas: dict[str, pa.Schema] = {}

        def visit(targets: list[Step | Edge], schema: pa.Schema) -> None:
            for target in targets:
                if isinstance(target, Edge):
                    known = schemas.setdefault(target.target.id, schema)
                    if target.target.sink is None:
                        check_alike(known, schema)
                    continue
                operator = target.make()
                try:
                    columns = operator.open(OperatorContext(schema))
                finally:
                    operator.close()
                visit(target.targets, columns)

        for stage in self.stages:
            reading = stage.reading
            schema = schemas.get(stage.id) if reading is None else reading.rows
            if schema is not None:
                visit(stage.targets, schema)

    def text(self) -> str:
        """For people: what each stage reads, does, and sends where."""
        lines: list[str] = []
        for stage in self.stages:
            lines.append(f"stage {stage.id}" + (f"  x{stage.parallelism}" if stage.parallelism > 1 else ""))
            if stage.reading is not None:
                reading = stage.reading
                columns = "all columns" if reading.columns is None else ", ".join(reading.columns) or "no columns"
                time = f"; event time from {reading.node.time or 'the records'}" if reading.timed else ""
                lines.append(f"  read {reading.node.name}: {columns}{time}")
            if stage.sink is not None:
                sink, key = stage.sink
                name = sink if isinstance(sink, str) else sink.name
                lines.append(f"  write {name}" + ("" if key is None else f", key {key}"))
            _describe(stage.targets, "  ", lines)
        return "\n".join(lines)


def column_types(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """What must be alike where streams meet: names and types, in order."""
    return [(field.name, field.type) for field in schema]


def check_alike(one: pa.Schema, other: pa.Schema) -> None:
    """Raises UserError where streams of different columns would meet."""
    if column_types(one) != column_types(other):
        first, second = (", ".join(f"{name}: {kind}" for name, kind in column_types(each)) for each in (one, other))
        raise UserError(
            f"union: the streams have different columns: {first} and {second}",
            hint="select the same columns, in the same order, with the same types",
        )


def _describe(targets: Iterable[Step | Edge], indent: str, lines: list[str]) -> None:
    for target in targets:
        if isinstance(target, Edge):
            how = "" if target.keys is None else f" by key group of {', '.join(target.keys)}"
            lines.append(f"{indent}-> stage {target.target.id}{how}")
        else:
            lines.append(f"{indent}{target.text}")
            for name, side in target.sides.items():
                lines.append(f"{indent}  {name}:")
                _describe(side, indent + "    ", lines)
            _describe(target.targets, indent if len(target.targets) < 2 else indent + "  ", lines)


def make_plan(writes: Iterable[Write], *, parallelism: int = 1, readers: Mapping[str, int] | None = None) -> Plan:
    """Stages for these sinks and all that leads to them. Raises UserError for programs that cannot run.

    readers: by stage, how many readers a source has that must keep as many (those of a checkpoint).
    """
    writes = list(writes)
    check_columns(writes)
    return _Planner(optimise(writes), parallelism, readers or {}).plan()


@dataclass
class _Place:
    """Where the rows of a node come out: a list of targets to add to, in a stage; `keys`: split by the key group of these."""

    stage: Stage
    targets: list[Step | Edge]
    keys: tuple[str, ...] | None = None
    timed: bool = False
    time: str | None = None
    path: str = ""


class _Planner:
    def __init__(self, writes: list[Write], parallelism: int, readers: Mapping[str, int]) -> None:
        self._writes = writes
        self._readers = readers
        self._parallelism = parallelism
        self._used = used_columns(writes)
        self._stages: list[Stage] = []
        self._sinks: dict[int | str, Stage] = {}
        self._places: dict[int, _Place] = {}
        self._paths: dict[int, str] = {}
        self._ids: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._timed = _timed_reads(writes)

    def plan(self) -> Plan:
        for write in self._writes:
            place = self._place(write.input)
            place.targets.append(Edge(self._sink(write.sink, write.key, write.delivery)))
        upstream_first = [stage for stage in self._stages if stage.sink is None]
        return Plan(upstream_first + [stage for stage in self._stages if stage.sink is not None])

    def _id(self, kind: str) -> str:
        """Counted by kind, so that a filter more does not give a window's state to another window."""
        self._counts[kind] += 1
        return f"{kind}-{self._counts[kind]}"

    # -- stages -------------------------------------------------------------------------------------------------------

    def _stage(self, name: str, parallelism: int, **what: Any) -> Stage:
        stage = Stage(self._id(name), parallelism, **what)
        self._stages.append(stage)
        return stage

    def _sink(self, sink: str | Sink, key: str | None = None, delivery: Delivery = None) -> Stage:
        name = sink if isinstance(sink, str) else id(sink)
        stage = self._sinks.get(name)
        if stage is None:
            stage = self._sinks[name] = self._stage("write", 1, sink=(sink, key))
        elif stage.sink is not None and stage.sink[1] != key:
            raise UserError(f"to({sink!r}): two streams write it with different keys", hint="give both the same key=")
        if stage.delivery is not None and delivery not in (None, stage.delivery):
            raise UserError(f"to({sink!r}): two streams write it, with different delivery=", hint="give both the same")
        stage.delivery = delivery or stage.delivery
        return stage

    def _step(
        self, place: _Place, text: str, make: Callable[[], Operator], *, id: str = "", **facts: Any
    ) -> tuple[Step, _Place]:
        """The operator at the end of the chain, and the place behind it. id: by the user; else it is found."""
        given, id = bool(id), id or self._id(text.split(" ", 1)[0])
        if id in self._ids:
            raise UserError(
                f"two steps are called {id!r}", hint="name each once, and not as others are called by themselves"
            )
        self._ids.add(id)
        step = Step(id, text, make, named=given, path=place.path)
        place.targets.append(step)
        behind = {"keys": place.keys, "timed": place.timed, "time": place.time, "path": place.path} | facts
        return step, _Place(place.stage, step.targets, **behind)

    def _moved(self, place: _Place, keys: tuple[str, ...], name: str) -> _Place:
        """Rows of a key come together: here, if they are together already."""
        if place.stage.parallelism == 1 and (place.stage.reading is None or self._parallelism == 1):
            return place
        if keys and place.keys is not None and set(place.keys) <= set(keys):
            if place.keys == keys:
                return place
            return self._step(place, f"go on by {', '.join(keys)}", WithoutHashes)[1]
        stage = self._stage(name, self._parallelism if keys else 1)
        place.targets.append(Edge(stage, keys or None))
        return _Place(stage, stage.targets, keys or None, place.timed, place.time, place.path)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _place(self, node: Node) -> _Place:
        if id(node) not in self._places:
            place = self._placed(node)
            self._paths[id(node)] = _path(node, [self._paths[id(upstream)] for upstream in node.inputs])
            self._places[id(node)] = replace(place, path=self._paths[id(node)])
        return self._places[id(node)]

    def _placed(self, node: Node) -> _Place:
        match node:
            case Read():
                return self._read(node)
            case logical.Filter():
                predicate = node.predicate
                return self._then(node.input, f"filter {predicate.text()}", lambda: Filter(predicate))
            case logical.Select():
                return self._select(node)
            case logical.WithColumns():
                place = self._place(node.input)
                return self._with_columns(place, node.columns)
            case logical.Drop():
                return self._drop(node)
            case logical.Rename():
                return self._rename(node)
            case logical.MapBatches():
                place = self._place(node.input)
                function, schema, time = node.function, node.schema, place.time
                text = f"map_batches {_name_of(function)}"
                return self._step(place, text, lambda: MapBatches(function, schema, time=time), keys=None)[1]
            case logical.FlatMap():
                place = self._place(node.input)
                each, schema, time = node.function, node.schema, place.time
                text = f"flat_map {_name_of(each)}"
                return self._step(place, text, lambda: FlatMap(each, schema, time=time), keys=None)[1]
            case logical.Union():
                return self._union(node)
            case logical.AggregateWindow():
                return self._aggregate_window(node)
            case logical.RunningAggregate():
                by, ttl_ms = node.keys, node.ttl_ms
                place, calls = self._arguments(self._keyed(node, by, ttl_ms, "ttl="), node.aggregates)
                text = f"aggregate{_by(by)}: {_words(node.aggregates)}"
                return self._step(place, text, lambda: RunningAggregate(by, calls, ttl_ms=ttl_ms), id=node.id)[1]
            case logical.Reduce():
                by, reduce, ttl_ms = node.keys, node.function, node.ttl_ms
                place = self._keyed(node, by, ttl_ms, "ttl=")
                text = f"reduce{_by(by)}: {_name_of(reduce)}"
                return self._step(place, text, lambda: Reduce(by, reduce, ttl_ms=ttl_ms), id=node.id)[1]
            case logical.Deduplicate():
                by, within_ms = node.keys, node.within_ms
                place = self._keyed(node, by, within_ms, "within=")
                text = f"deduplicate{_by(by)}"
                return self._step(place, text, lambda: Deduplicate(by, within_ms=within_ms), id=node.id)[1]
            case _:
                raise UserError(f"{type(node).__name__} is no step of a stream")

    def _drop(self, node: logical.Drop) -> _Place:
        place, names, checked = self._place(node.input), node.names, columns_of(node.input) is not None
        keys = None if place.keys is not None and set(place.keys) & set(names) else place.keys
        time = None if place.time in names else place.time
        text = f"drop {', '.join(names)}"
        return self._step(place, text, lambda: Drop(names, unread=checked), keys=keys, time=time)[1]

    def _rename(self, node: logical.Rename) -> _Place:
        place, renamed, checked = self._place(node.input), dict(node.names), columns_of(node.input) is not None
        taken = set(renamed.values()) - renamed.keys()  # names that mean another column from here on
        keys, time = place.keys, place.time
        if keys is not None:
            keys = None if taken & set(keys) else tuple(renamed.get(key, key) for key in keys)
        if time is not None:
            time = None if time in taken else renamed.get(time, time)
        text = "rename " + ", ".join(f"{old} to {new}" for old, new in node.names)
        return self._step(place, text, lambda: Rename(renamed, unread=checked), keys=keys, time=time)[1]

    def _keyed(
        self,
        node: logical.RunningAggregate | logical.Reduce | logical.Deduplicate,
        keys: tuple[str, ...],
        span_ms: int | None,
        what: str,
    ) -> _Place:
        """Before the node: rows of a key together; where a span of event time decides, in its order."""
        place = self._place(node.input)
        self._need_time(place, span_ms is not None, what)
        place = self._moved(place, keys, "keyed")
        if span_ms is None:
            return place
        order = f"{node.id}.order" if node.id else ""
        return self._step(place, "order by event time", lambda: EventOrder(keys), id=order)[1]

    def _then(self, upstream: Node, text: str, make: Callable[[], Operator]) -> _Place:
        return self._step(self._place(upstream), text, make)[1]

    def _read(self, node: Read) -> _Place:
        used = self._used[id(node)]
        timed = id(node) in self._timed
        columns: tuple[str, ...] | None = None
        if used is not None and node.schema is not None:
            columns = tuple(name for name in node.schema.names if name in used) or _one_column(node.schema)
        elif used is not None:
            columns = tuple(sorted(used))
        stage = self._stage("read", self._parallelism, reading=Reading(node, columns, timed))
        stage.parallelism = self._readers.get(stage.id) or self._parallelism
        assert stage.reading is not None
        letters = node.dead_letter
        if isinstance(letters, str):
            letters = letters.replace("{topic}", legal_topic(node.name))
        stage.reading.dead_letters = Edge(self._sink(letters))
        return _Place(stage, stage.targets, timed=timed, time=node.time)

    def _select(self, node: logical.Select) -> _Place:
        place = self._place(node.input)
        columns = node.columns
        kept = {name for name, expr in columns if expr.same(col(name))}
        keys = place.keys if place.keys is not None and set(place.keys) <= kept else None
        time = place.time if place.time in kept else None
        text = "select " + ", ".join(_column(name, expr) for name, expr in columns)
        return self._step(place, text, lambda: Select(columns), keys=keys, time=time)[1]

    def _with_columns(self, place: _Place, columns: tuple[tuple[str, Expr], ...]) -> _Place:
        made = {name for name, _ in columns}
        if place.timed and place.time in made:
            raise UserError(
                f"with_columns: {place.time!r} is the stream's event time, and windows would still go by what it was",
                hint="give the new column another name; or read it again in map_batches, which takes event time from its output",
            )
        keys = place.keys if place.keys is not None and not set(place.keys) & made else None
        text = "with " + ", ".join(_column(name, expr) for name, expr in columns)
        return self._step(place, text, lambda: WithColumns(columns), keys=keys)[1]

    def _union(self, node: logical.Union) -> _Place:
        places = [self._place(stream) for stream in node.streams]
        timed = all(place.timed for place in places)
        used = self._used[id(node)]
        if used is not None:  # each branch may have been read with more than that
            names = [name for name in columns_of(node.streams[0]) or sorted(used) if name in used]
            same = tuple((name, col(name)) for name in names)
            same = same or (("_", lit(True)),)  # without any column rows would have no number
            text = f"select {', '.join(name for name, _ in same)}"
            places = [self._step(place, text, lambda: Select(same))[1] for place in places]
        if not timed:
            places = [self._step(p, "without event time", WithoutTime)[1] if p.timed else p for p in places]
        stage = self._stage("union", 1)
        for place in places:
            place.targets.append(Edge(stage))
        times = {place.time for place in places}
        return _Place(stage, stage.targets, timed=timed, time=times.pop() if len(times) == 1 else None)

    def _aggregate_window(self, node: logical.AggregateWindow) -> _Place:
        window, keys = node.window, node.keys
        place = self._place(node.input)
        self._need_time(place, not isinstance(window, CountWindow), type(window).__name__)
        by_time = not isinstance(window, CountWindow | SessionWindow)
        if by_time and not keys and self._parallelism > 1 and node.late is None:  # phases cannot give late rows back
            return self._two_phases(node, place)
        place, calls = self._arguments(self._moved(place, keys, "window"), node.aggregates)
        text = f"{_window_words(window)}{_by(keys)}: {_words(node.aggregates)}"
        step, behind = self._step(place, text, self._window_operator(node, calls), id=node.id, time=None)
        self._late(node, step)
        return behind

    def _window_operator(
        self, node: logical.AggregateWindow, calls: list[Call], *, partial: bool = False
    ) -> Callable[[], Operator]:
        window, keys, lateness = node.window, node.keys, node.allowed_lateness_ms
        if isinstance(window, SessionWindow):
            return lambda: SessionAggregate(window.gap_ms, keys, calls, allowed_lateness_ms=lateness)
        if isinstance(window, CountWindow):
            return lambda: CountAggregate(window.size, keys, calls)
        every = node.emit_every_ms
        return lambda: WindowAggregate(
            window, keys, calls, allowed_lateness_ms=lateness, emit_every_ms=every, partial=partial
        )

    def _two_phases(self, node: logical.AggregateWindow, place: _Place) -> _Place:
        """Without keys all rows meet in one subtask: each batch is made small before it goes there."""
        window = node.window
        assert not isinstance(window, SessionWindow | CountWindow)
        place, calls = self._arguments(place, node.aggregates)
        words = f"{_window_words(window)}: {_words(node.aggregates)}"
        _, behind = self._step(place, f"combine {words}", lambda: LocalCombine(window, (), calls))
        moved = self._moved(behind, (), "window")
        return self._step(moved, words, self._window_operator(node, calls, partial=True), id=node.id, time=None)[1]

    def _late(self, node: logical.AggregateWindow, step: Step) -> None:
        if node.late is not None:
            step.sides["late"] = [Edge(self._sink(node.late))]

    def _need_time(self, place: _Place, needed: bool, what: str) -> None:
        if needed and not place.timed:
            raise UserError(f"{what} needs event time", hint='app.stream(…, time="ts"): the column that holds it')

    def _arguments(self, place: _Place, aggregates: tuple[tuple[str, Aggregate], ...]) -> tuple[_Place, list[Call]]:
        """Arguments that are more than a column become columns, "__0" and so on, before the aggregate."""
        made: list[tuple[str, Expr]] = []
        taken = set().union(*(aggregate.columns for _, aggregate in aggregates))  # by the user's own columns

        def column(expr: Expr | None) -> str | None:
            if expr is None:
                return None
            names = [*expr.columns]
            if len(names) == 1 and expr.same(col(names[0])):
                return names[0]
            for name, known in made:
                if known.same(expr):
                    return name
            name = next(name for name in map("__{}".format, count(len(made))) if name not in taken)
            taken.add(name)
            made.append((name, expr))
            return name

        calls = [
            Call(
                name,
                each.kind,
                argument=column(each.argument),
                by=column(each.by),
                where=column(each.predicate),
                text=each.text(),
                **_call_options(each),
            )
            for name, each in aggregates
        ]
        return (self._with_columns(place, tuple(made)) if made else place), calls


_NOT_SAID = ("input", "streams", "schema", "inferred", "id", "late", "dead_letter")  # of a node, in a path
_NO_MATTER = ("emit_every_ms", "lateness_ms", "idle_ms")


def _path(node: Node, before: list[str]) -> str:
    """A digest of what the rows of a node have gone through. Says nothing to people; equal for the same steps in another program."""
    words = [type(node).__name__, *sorted(before)]
    for name, value in vars(node).items():
        if name not in _NOT_SAID and name not in _NO_MATTER:
            words.append(f"{name}={_said(value)}")
    return sha256("\n".join(words).encode()).hexdigest()[:16]


def _said(value: Any) -> str:
    if isinstance(value, Expr | Aggregate):
        return value.text()
    if isinstance(value, Source):
        return value.name
    if isinstance(value, tuple):
        return ", ".join(map(_said, value))
    return _name_of(value) if callable(value) else repr(value)


def _one_column(schema: pa.Schema) -> tuple[str, ...]:
    """For a program that uses no column, only rows: the cheapest one."""
    cheap = [field.name for field in schema if pa.types.is_primitive(field.type)]
    return tuple((cheap or schema.names)[:1])


def _call_options(aggregate: Aggregate) -> Mapping[str, Any]:
    options = dict(aggregate.options)
    if aggregate.function is not None:
        options["function"] = aggregate.function
    return options


def _timed_reads(writes: list[Write]) -> set[int]:
    """ids of Read nodes whose rows need their event time: something below cannot do without it, or can do more with it."""
    nodes = walk(writes)
    must: set[int] = set()
    may: set[int] = set()
    for node in reversed(nodes):
        inputs = {id(upstream) for upstream in node.inputs}
        if id(node) in must or _needs_time(node):
            must |= inputs
        if id(node) in may or isinstance(node, _KEYED):
            may |= inputs
    reads = [node for node in nodes if isinstance(node, Read)]
    has_time = {id(node) for node in reads if node.time is not None or isinstance(node.source, str)}
    return {id(node) for node in reads if id(node) in must or (id(node) in may and id(node) in has_time)}


_KEYED = (logical.AggregateWindow, logical.RunningAggregate, logical.Reduce, logical.Deduplicate)


def _needs_time(node: Node) -> bool:
    if isinstance(node, logical.AggregateWindow):
        return not isinstance(node.window, CountWindow)
    if isinstance(node, logical.RunningAggregate | logical.Reduce):
        return node.ttl_ms is not None
    return isinstance(node, logical.Deduplicate) and node.within_ms is not None


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _by(keys: tuple[str, ...]) -> str:
    return f" by {', '.join(keys)}" if keys else ""


def _column(name: str, expr: Expr) -> str:
    return name if expr.same(col(name)) else f"{name} = {expr.text()}"


def _words(aggregates: tuple[tuple[str, Aggregate], ...]) -> str:
    return ", ".join(f"{name} = {each.text()}" for name, each in aggregates)


def _window_words(window: Any) -> str:
    facts = {name.removesuffix("_ms"): value for name, value in vars(window).items() if name != "offset_ms" or value}
    sizes = ", ".join(f"{value} ms" if f"{name}_ms" in vars(window) else str(value) for name, value in facts.items())
    return f"{type(window).__name__.removesuffix('Window').lower()} window ({sizes})"
