"""The optimised graph -> stages."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.api import nodes as logical
from sabot.api.aggregates import Aggregate
from sabot.api.calls import AsyncCall
from sabot.api.expr import Expr, col, lit
from sabot.api.nodes import Node, Read, Write
from sabot.api.over import OverFunction
from sabot.api.process import ProcessSpec
from sabot.api.shape import (
    answer_names,
    check_event_time,
    columns_of,
    event_times,
    is_changes,
    right_names,
    step_name,
    unique_key,
)
from sabot.api.windows import CountWindow, SessionWindow
from sabot.config import dead_letter_topic
from sabot.connectors.base import Delivery, Sink, Source, agreed_delivery
from sabot.errors import UserError
from sabot.operators.aggregates import Call
from sabot.operators.base import Operator
from sabot.operators.changes import Changelog, Materialize, Upsert
from sabot.operators.groups import GroupAggregate
from sabot.operators.joins import Join, TableLookup
from sabot.operators.keyed import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.operators.lookups import LookupAsync
from sabot.operators.map_async import MapAsync
from sabot.operators.ordered import EventOrder
from sabot.operators.over import Over, OverCall
from sabot.operators.pattern import Pattern
from sabot.operators.process import Process
from sabot.operators.ranked import TopN, WindowTopN
from sabot.operators.sessions import SessionAggregate
from sabot.operators.sides import Sides
from sabot.operators.stateless import (
    AsInserts,
    Drop,
    EndVersions,
    Filter,
    FlatMap,
    MapBatches,
    Rename,
    Sample,
    Select,
    WithColumns,
    WithoutPairs,
    WithoutTime,
)
from sabot.operators.time_joins import AsofJoin, IntervalJoin, WindowJoin
from sabot.operators.windows import LocalCombine, WindowAggregate
from sabot.plan.optimise import check_nodes, optimise, used_columns, walk
from sabot.plan.stages import Edge, Plan, Reading, Stage, Step

__all__ = ["make_plan"]


def make_plan(writes: Iterable[Write], *, parallelism: int = 1, readers: Mapping[str, int] | None = None) -> Plan:
    """Stages for these sinks and all that leads to them. Raises UserError for programs that cannot run.

    readers: by stage, how many readers a source has that must keep as many (those of a checkpoint).
    """
    writes = list(writes)
    check_nodes(writes)
    return _Planner(optimise(writes), parallelism, readers or {}).plan()


_Keys: TypeAlias = tuple[str, ...]


@dataclass
class _Place:
    """Where the rows of a node come out: a list of targets to add to, in a stage; `keys`: split by the key group of these.

    changes: the rows are; unique: then the key of which there is one row.
    """

    stage: Stage
    targets: list[Step | Edge]
    keys: tuple[str, ...] | None = None
    timed: bool = False
    path: str = ""
    changes: bool = False
    unique: tuple[str, ...] | None = None


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
        self._processes: dict[int, Step] = {}
        self._waits: dict[int, set[int]] = {}  # ids of Read nodes -> of those that are read to their end before
        self._ids: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._timed, self._goes_by_time = _timed_nodes(writes)

    def plan(self) -> Plan:
        for write in self._writes:
            place = self._place(write.input)
            sink = self._sink(write.sink, write.key, write.delivery, place.unique if place.changes else None)
            place.targets.append(Edge(sink, changes=place.changes))
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

    def _sink(
        self,
        sink: str | Sink,
        key: str | None = None,
        delivery: Delivery = None,
        changes: tuple[str, ...] | None = None,
    ) -> Stage:
        name = sink if isinstance(sink, str) else id(sink)
        stage = self._sinks.get(name)
        if stage is None:
            stage = self._sinks[name] = self._stage("write", 1, sink=(sink, key), changes=changes)
        elif stage.sink is not None and stage.sink[1] != key:
            raise UserError(f"to({sink!r}): two streams write it with different keys", hint="give both the same key=")
        elif stage.changes != changes:
            raise UserError(
                f"to({sink!r}): two streams write it, and they are not both changes of the same key",
                hint="union them before .upsert(key)",
            )
        stage.delivery = agreed_delivery(sink, stage.delivery, delivery)
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
        return step, replace(place, targets=step.targets, **facts)

    def _moved(self, place: _Place, keys: tuple[str, ...], name: str) -> _Place:
        """Rows of a key come together: here, if they are together already."""
        if place.stage.parallelism == 1 and (place.stage.reading is None or self._parallelism == 1):
            return replace(place, keys=keys or None)  # those of before may be gone behind the step
        if keys and place.keys == keys:  # not if by some of them: a restore finds its rows by the key groups of all
            return place
        stage = self._stage(name, self._parallelism if keys else 1)
        place = self._parted(place, keys)
        place.targets.append(Edge(stage, keys or None, changes=place.changes))
        return replace(place, stage=stage, targets=stage.targets, keys=keys or None)

    def _parted(self, place: _Place, keys: tuple[str, ...]) -> _Place:
        """Before changes are dealt out by these keys: where an update's two rows may go to two subtasks, it is a delete and an insert."""
        if not place.changes or not keys or (place.unique is not None and set(keys) <= set(place.unique)):
            return place
        return self._step(place, "part updates", WithoutPairs)[1]

    def _met(
        self, node: logical.TwoInputs, name: str, left: _Place, right: _Place, keys: tuple[_Keys, _Keys]
    ) -> _Place:
        """The head of a stage into which two streams go, by the keys of each; all of a broadcast one into every subtask."""
        timeless = left.timed and not right.timed and _left_has_time(node)
        if left.timed != right.timed and not timeless:
            left, right = (self._untimed(each) for each in (left, right))
        whole = isinstance(node.right, logical.Broadcast)
        by_left, by_right = keys
        joined = whole and isinstance(node, logical.Join)  # then rows of the left may stay where they are
        stage = self._stage(name, self._parallelism if by_left else 1)
        left = left if joined else self._parted(left, by_left)
        right = right if whole else self._parted(right, by_right)
        left.targets.append(Edge(stage, None if joined else by_left or None, straight=joined, changes=left.changes))
        by_right = () if whole else by_right
        facts = {"right": True, "everywhere": whole, "timeless": timeless, "changes": right.changes}
        facts["first"] = (timeless or isinstance(node, logical.Lookup)) and self._ends_apart(node)
        right.targets.append(Edge(stage, by_right or None, **facts))
        keys_behind = None if joined else by_left or None  # with another parallelism they would be dealt out anew
        return replace(left, stage=stage, targets=stage.targets, keys=keys_behind)

    def _ends_apart(self, node: logical.TwoInputs) -> bool:
        """The right side ends, and may be read to its end first: nothing that it reads waits, by others, for the left."""
        left, right = ({id(each): each for each in walk([side]) if isinstance(each, Read)} for side in node.inputs)
        if not all(isinstance(each.source, Source) and each.source.bounded for each in right.values()):
            return False
        awaited, more = set(right), list(right)
        while more:
            for each in self._waits.get(more.pop(), set()) - awaited:
                awaited.add(each)
                more.append(each)
        if awaited & left.keys():
            return False
        for each in left:
            self._waits.setdefault(each, set()).update(right)
        return True

    def _untimed(self, place: _Place) -> _Place:
        return self._step(place, "without event time", WithoutTime, timed=False)[1] if place.timed else place

    # -- nodes --------------------------------------------------------------------------------------------------------

    def _place(self, node: Node) -> _Place:
        if id(node) not in self._places:
            place = self._placed(node)
            if place.timed and id(node) in self._goes_by_time:
                check_event_time(node)
            self._paths[id(node)] = _path(node, [self._paths[id(upstream)] for upstream in node.inputs])
            self._places[id(node)] = replace(
                place, path=self._paths[id(node)], changes=is_changes(node), unique=unique_key(node)
            )
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
                function, schema, time = node.function, node.schema, _time_of(node.input)
                text = f"map_batches {_name_of(function)}"
                return self._step(place, text, lambda: MapBatches(function, schema, time=time), keys=None)[1]
            case logical.FlatMap():
                place = self._place(node.input)
                each, schema, time = node.function, node.schema, _time_of(node.input)
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
                if place.changes:
                    first = partial(TopN, by, 1, (), ties="row_number", rank=None, changes=True)
                    return self._step(place, text, first, id=node.id)[1]
                return self._step(place, text, lambda: Deduplicate(by, within_ms=within_ms), id=node.id)[1]
            case logical.Broadcast():
                return self._place(node.input)
            case logical.Join():
                return self._join(node)
            case logical.GroupAggregate():
                by = node.keys
                place, calls = self._arguments(self._moved(self._place(node.input), by, "grouped"), node.aggregates)
                text = f"group{_by(by)}: {_words(node.aggregates)}"
                make: Callable[[], Operator] = partial(GroupAggregate, by, calls, changes=place.changes)
                return self._step(place, text, make, id=node.id)[1]
            case logical.Upsert():
                return self._upsert(node)
            case logical.Versions():
                place = self._place(node.input)
                return place if node.deletes else self._step(place, "as versions", AsInserts, changes=True)[1]
            case logical.EndVersions():
                predicate = node.predicate
                return self._then(node.input, f"versions while {predicate.text()}", lambda: EndVersions(predicate))
            case logical.Changelog():
                return self._step(self._place(node.input), "changelog", Changelog)[1]
            case logical.Materialize():
                place = self._place(node.input)
                place = place if place.keys is not None else self._moved(place, (), "table")
                make = partial(Materialize, place.keys or ())
                return self._step(place, "materialize", make, id=node.id)[1]
            case logical.TopN():
                by, order = node.keys, node.by
                place = self._moved(self._place(node.input), by, "ranked")
                make = partial(TopN, by, node.n, order, ties=node.ties, rank=node.rank, changes=place.changes)
                return self._step(place, f"top {node.n}{_by(by)}, order {_order(order)}", make, id=node.id)[1]
            case logical.WindowTopN():
                by, order = node.keys, node.by
                self._need_time(self._place(node.input), True, "top_n of a window")
                place = self._moved(self._place(node.input), by, "ranked")
                text = f"top {node.n} of {_window_words(node.window)}{_by(by)}, order {_order(order)}"
                options: dict[str, Any] = {
                    "ties": node.ties,
                    "rank": node.rank,
                    "allowed_lateness_ms": node.allowed_lateness_ms,
                }
                make = partial(WindowTopN, node.window, by, node.n, order, **options)
                step, place = self._step(place, text, make, id=node.id)
                self._late(node, step)
                return place
            case logical.MapAsync():
                place, call, name = self._place(node.input), node.call, node.call.name
                options = {
                    "batch": call.batch,
                    "rows": call.rows,
                    "time": _time_of(node.input),
                    "keys": place.keys or (),
                    "ordered": call.ordered,
                }
                make = partial(MapAsync, call.function, call.schema, options=call.options, **options)
                step, place = self._step(place, f"map_async {name}", make, id=node.id, keys=None)
                return self._with_letters(node, step, place)
            case logical.LookupAsync():
                place, names = self._place(node.input), dict(answer_names(node))
                call = node.call.call
                options = {"names": names, "how": node.call.how, "keys": place.keys or (), "ordered": call.ordered}
                options |= {"cache_rows": node.call.cache_rows, "cache_ttl_s": node.call.cache_ttl_s}
                make = partial(LookupAsync, call.function, node.call.on, call.schema, options=call.options, **options)
                text = f"lookup {call.name} on {', '.join(node.call.on)}"
                step, place = self._step(place, text, make, id=node.id)
                return self._with_letters(node, step, place)
            case logical.Over():
                return self._over(node)
            case logical.Match():
                by = node.keys
                self._need_time(self._place(node.input), True, "pattern")
                place = self._in_order(self._moved(self._place(node.input), by, "pattern"), by, node.id)
                make = partial(Pattern, by, node.pattern, node.skip, node.measures, max_partial=node.max_partial)
                text = f"pattern{_by(by)}: {node.pattern.text()}; {node.skip}"
                return self._step(place, text, make, id=node.id)[1]
            case logical.Process():
                place = self._moved(self._place(node.input), node.keys, "process")
                make = partial(Process, node.keys, node.spec)
                return self._processed(node, node.spec, place, make, _by(node.keys))
            case logical.Connect():
                left, right = self._place(node.left), self._place(node.right)
                place = self._met(node, "process", left, right, (node.left_keys, node.right_keys))
                make = partial(Process, node.left_keys, node.spec, right_keys=node.right_keys)
                return self._processed(node, node.spec, place, make, _by(node.left_keys))
            case logical.Side():
                behind = self._place(node.input)
                side = self._processes[id(node.input)].sides.setdefault(node.name, [])
                return replace(behind, targets=side, keys=None)
            case logical.Sample():
                make = partial(Sample, node.fraction, node.seed)
                return self._step(self._place(node.input), f"sample {node.fraction:g}", make, id=node.id)[1]
            case _:
                raise UserError(f"{type(node).__name__} is no step of a stream")

    def _processed(self, node: Node, spec: ProcessSpec, place: _Place, make: Callable[[], Operator], by: str) -> _Place:
        step, behind = self._step(place, f"{spec.name}{by}", make, id=getattr(node, "id", ""), keys=None)
        self._processes[id(node)] = step
        return behind

    def _with_letters(self, node: logical.MapAsync | logical.LookupAsync, step: Step, behind: _Place) -> _Place:
        if node.dead_letter is not None:
            step.sides["dead"] = [Edge(self._sink(node.dead_letter))]
        return behind

    def _join(self, node: logical.Join) -> _Place:
        left, right = self._place(node.left), self._place(node.right)
        by_time = isinstance(node, logical.IntervalJoin | logical.WindowJoin | logical.AsofJoin)
        for side, keep_ms in zip((left, right), node.keep_ms, strict=True):
            self._need_time(side, by_time or keep_ms is not None, step_name(node))
        changes = left.changes, right.changes
        names, used = right_names(node), self._used.get(id(node))
        if names is not None and used is not None:
            names = [(old, new) for old, new in names if new in used]
        place = self._met(node, "join", left, right, (node.left_keys, node.right_keys))
        on = ", ".join(
            one if one == two else f"{one} = {two}" for one, two in zip(node.left_keys, node.right_keys, strict=True)
        )

        def make() -> Operator:
            if names is None:
                raise UserError(
                    f"{step_name(node)}: the columns of its two streams must be known before it runs",
                    hint="give map_batches(…, schema=) what its columns are",
                )
            return _join_operator(node, Sides(node.left_keys, node.right_keys, tuple(names)), changes)

        text = f"{step_name(node)} {node.how} on {on}{_join_words(node)}"
        step, place = self._step(place, text, make, id=node.id)
        step.scattered = isinstance(node.right, logical.Broadcast)
        return place

    def _over(self, node: logical.Over) -> _Place:
        by = node.keys
        place = self._moved(self._place(node.input), by, "over")
        self._need_time(place, True, "over")
        place = self._in_order(place, by, node.id)
        made = _Made(node.columns)
        calls = [made.over_call(name, each) for name, each in node.columns]
        place = self._with_columns(place, tuple(made.columns)) if made.columns else place
        words = ", ".join(f"{name} = {each.text()}" for name, each in node.columns)
        frame = "" if node.preceding_rows is None else f", {node.preceding_rows} rows before"
        frame = frame if node.preceding_ms is None else f", {node.preceding_ms} ms before"
        make = partial(Over, by, calls, preceding_rows=node.preceding_rows, preceding_ms=node.preceding_ms)
        behind = self._step(place, f"over{_by(by)}{frame}: {words}", make, id=node.id)[1]
        if not made.columns:
            return behind
        names = [name for name, _ in made.columns]
        return self._step(behind, f"drop {', '.join(names)}", lambda: Drop(names))[1]

    def _upsert(self, node: logical.Upsert) -> _Place:
        by, place = node.keys, self._place(node.input)
        if place.changes and place.unique is not None and set(place.unique) == set(by):
            return place  # they are that already
        place = self._moved(place, by, "keyed")
        make = partial(Upsert, by, changes=place.changes, deletes=node.deletes)
        return self._step(place, f"upsert{_by(by)}", make, id=node.id)[1]

    def _drop(self, node: logical.Drop) -> _Place:
        place, names, checked = self._place(node.input), node.names, columns_of(node.input) is not None
        keys = None if place.keys is not None and set(place.keys) & set(names) else place.keys
        text = f"drop {', '.join(names)}"
        return self._step(place, text, lambda: Drop(names, unread=checked), keys=keys)[1]

    def _rename(self, node: logical.Rename) -> _Place:
        place, renamed, checked = self._place(node.input), dict(node.names), columns_of(node.input) is not None
        taken = set(renamed.values()) - renamed.keys()  # names that mean another column from here on
        keys = place.keys
        if keys is not None:
            keys = None if taken & set(keys) else tuple(renamed.get(key, key) for key in keys)
        text = "rename " + ", ".join(f"{old} to {new}" for old, new in node.names)
        return self._step(place, text, lambda: Rename(renamed, unread=checked), keys=keys)[1]

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
        return place if span_ms is None else self._in_order(place, keys, node.id)

    def _in_order(self, place: _Place, keys: tuple[str, ...], id: str) -> _Place:
        """The rows by event time. id: of the step that needs it."""
        order = f"{id}.order" if id else ""
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
            letters = dead_letter_topic(letters, node.name)
        stage.reading.dead_letters = Edge(self._sink(letters))
        return _Place(stage, stage.targets, timed=timed)

    def _select(self, node: logical.Select) -> _Place:
        place = self._place(node.input)
        columns = node.columns
        kept = {name for name, expr in columns if expr.column == name}
        keys = place.keys if place.keys is not None and set(place.keys) <= kept else None
        text = "select " + ", ".join(_column(name, expr) for name, expr in columns)
        return self._step(place, text, lambda: Select(columns), keys=keys)[1]

    def _with_columns(self, place: _Place, columns: tuple[tuple[str, Expr], ...]) -> _Place:
        made = {name for name, _ in columns}
        keys = place.keys if place.keys is not None and not set(place.keys) & made else None
        text = "with " + ", ".join(_column(name, expr) for name, expr in columns)
        return self._step(place, text, lambda: WithColumns(columns), keys=keys)[1]

    def _union(self, node: logical.Union) -> _Place:
        places = [self._place(stream) for stream in node.streams]
        timed = all(place.timed for place in places)
        if any(place.changes for place in places):
            places = [
                place if place.changes else self._step(place, "as inserts", AsInserts, changes=True)[1]
                for place in places
            ]
        used = self._used[id(node)]
        if used is not None:  # each branch may have been read with more than that
            names = [name for name in columns_of(node.streams[0]) or sorted(used) if name in used]
            same = tuple((name, col(name)) for name in names)
            same = same or (("_", lit(True)),)  # without any column rows would have no number
            text = f"select {', '.join(name for name, _ in same)}"
            places = [self._step(place, text, lambda: Select(same))[1] for place in places]
        if not timed:
            places = [self._untimed(place) for place in places]
        stage = self._stage("union", 1)
        for place in places:
            place.targets.append(Edge(stage, changes=place.changes))
        return _Place(stage, stage.targets, timed=timed)

    def _aggregate_window(self, node: logical.AggregateWindow) -> _Place:
        window, keys = node.window, node.keys
        place = self._place(node.input)
        self._need_time(place, not isinstance(window, CountWindow), type(window).__name__)
        by_time = not isinstance(window, CountWindow | SessionWindow)
        if by_time and not keys and self._parallelism > 1 and node.late is None:  # phases cannot give late rows back
            return self._two_phases(node, place)
        place, calls = self._arguments(self._moved(place, keys, "window"), node.aggregates)
        text = f"{_window_words(window)}{_by(keys)}: {_words(node.aggregates)}"
        step, behind = self._step(place, text, self._window_operator(node, calls), id=node.id)
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
        return self._step(moved, words, self._window_operator(node, calls, partial=True), id=node.id)[1]

    def _late(self, node: logical.AggregateWindow | logical.WindowTopN, step: Step) -> None:
        if node.late is not None:
            step.sides["late"] = [Edge(self._sink(node.late))]

    def _need_time(self, place: _Place, needed: bool, what: str) -> None:
        if needed and not place.timed:
            raise UserError(f"{what} needs event time", hint='app.stream(…, time="ts"): the column that holds it')

    def _arguments(self, place: _Place, aggregates: tuple[tuple[str, Aggregate], ...]) -> tuple[_Place, list[Call]]:
        """Arguments that are more than a column become columns before the aggregate."""
        made = _Made(aggregates)
        calls = [made.call(name, each) for name, each in aggregates]
        return (self._with_columns(place, tuple(made.columns)) if made.columns else place), calls


class _Made:
    """Columns, "__0" and so on, for arguments that are more than a column. what: all that has arguments."""

    def __init__(self, what: Iterable[tuple[str, Aggregate | OverFunction]]) -> None:
        self.columns: list[tuple[str, Expr]] = []
        self._taken = set().union(*(each.columns for _, each in what))  # by the user's own columns

    def column(self, expr: Expr | None) -> str | None:
        """The column of this name, or the one that is made for it."""
        if expr is None:
            return None
        if expr.column is not None:
            return expr.column
        for name, known in self.columns:
            if known.same(expr):
                return name
        name = next(name for name in map("__{}".format, count(len(self.columns))) if name not in self._taken)
        self._taken.add(name)
        self.columns.append((name, expr))
        return name

    def call(self, name: str, each: Aggregate) -> Call:
        """The aggregate over columns."""
        argument, by, where = map(self.column, (each.argument, each.by, each.predicate))
        return Call(name, each.kind, argument=argument, by=by, where=where, text=each.text(), **_call_options(each))

    def over_call(self, name: str, each: Aggregate | OverFunction) -> OverCall:
        """The same for a step that looks at rows around a row."""
        if isinstance(each, OverFunction):
            argument = self.column(each.argument)
            return OverCall(name, each.kind, argument, each.offset, each.default, text=each.text())
        return OverCall(
            name,
            each.kind,
            self.column(each.argument),
            where=self.column(each.predicate),
            ddof=each.options.get("ddof", 1),
            text=each.text(),
        )


_NOT_SAID = (
    "input",
    "streams",
    "left",
    "right",
    "schema",
    "inferred",
    "id",
    "late",
    "dead_letter",
)  # of a node, in a path
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
    if isinstance(value, Source | Sink):
        return value.name
    if isinstance(value, tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(each)}" for name, each in value.items())
    if isinstance(value, AsyncCall):
        return f"AsyncCall({', '.join(map(_said, value.facts))})"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_said(getattr(value, each.name)) for each in fields(value))})"
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


def _time_of(node: Node) -> str | None:
    """The column that is the event time of a node's rows; None: none, or not the same one for all."""
    times = event_times(node)
    return next(iter(times)) if len(times) == 1 else None


def _timed_nodes(writes: list[Write]) -> tuple[set[int], set[int]]:
    """ids of the Read nodes whose rows carry their event time, as something below cannot do without it, or can do more with it; and of
    all nodes behind which the answer goes by it.
    """
    nodes = walk(writes)
    must: set[int] = set()
    may: set[int] = set()
    asked: set[int] = set()
    for node in reversed(nodes):
        inputs = {id(upstream) for upstream in node.inputs}
        if id(node) in must or _needs_time(node):
            must |= {id(node.inputs[0])} if _left_has_time(node) else inputs
        if id(node) in may or isinstance(node, _KEYED):
            may |= inputs
        if id(node) in asked or _orders_by_time(node):
            asked |= inputs
    reads = [node for node in nodes if isinstance(node, Read)]
    has_time = {id(node) for node in reads if node.time is not None or isinstance(node.source, str)}
    return {id(node) for node in reads if id(node) in must or (id(node) in may and id(node) in has_time)}, must | asked


_KEYED = (
    logical.AggregateWindow,
    logical.RunningAggregate,
    logical.Reduce,
    logical.Deduplicate,
    logical.GroupAggregate,
    logical.TopN,
    logical.Join,
    logical.Process,
    logical.Connect,
)
_BY_TIME = (logical.IntervalJoin, logical.WindowJoin, logical.AsofJoin, logical.WindowTopN, logical.Over, logical.Match)


def _left_has_time(node: Node) -> bool:
    """Of a step of two inputs: it is enough that the left one has event time; rows of the other are there when they come."""
    if type(node) is logical.Join:
        return node.how in ("inner", "left", "semi", "anti") and node.keep_ms[1] is None
    return isinstance(node, logical.Lookup | logical.Connect)


def _orders_by_time(node: Node) -> bool:
    """Where its rows have event time its answer depends on it, though it could do without."""
    if isinstance(node, logical.RunningAggregate | logical.GroupAggregate | logical.AggregateWindow):
        return any(each.kind in ("first", "last", "any", "collect_list") for _, each in node.aggregates)
    return isinstance(node, logical.Process | logical.Connect)


def _needs_time(node: Node) -> bool:
    if isinstance(node, _BY_TIME) or (isinstance(node, logical.Join) and node.keep_ms != (None, None)):
        return True
    if isinstance(node, logical.AggregateWindow):
        return not isinstance(node.window, CountWindow)
    if isinstance(node, logical.RunningAggregate | logical.Reduce):
        return node.ttl_ms is not None
    return isinstance(node, logical.Deduplicate) and node.within_ms is not None


def _join_operator(node: logical.Join, sides: Sides, changes: tuple[bool, bool]) -> Operator:
    match node:
        case logical.IntervalJoin():
            return IntervalJoin(sides, node.how, node.lower_ms, node.upper_ms)
        case logical.WindowJoin():
            return WindowJoin(sides, node.how, node.window)
        case logical.AsofJoin():
            options: dict[str, Any] = {
                "strategy": node.strategy,
                "tolerance_ms": node.tolerance_ms,
                "right_changes": changes[1],
            }
            return AsofJoin(sides, node.how, **options)
        case logical.Lookup():
            return TableLookup(sides, node.how)
    whole = isinstance(node.right, logical.Broadcast)
    left_keep_ms, right_keep_ms = node.keep_ms
    return Join(
        sides,
        node.how,
        left_changes=changes[0],
        right_changes=changes[1],
        broadcast=whole,
        left_keep_ms=left_keep_ms,
        right_keep_ms=right_keep_ms,
    )


def _join_words(node: logical.Join) -> str:
    match node:
        case logical.IntervalJoin():
            lower, upper = ("open" if ms is None else f"{ms} ms" for ms in (node.lower_ms, node.upper_ms))
            return f", between {lower} and {upper}"
        case logical.WindowJoin():
            return f", {_window_words(node.window)}"
        case logical.AsofJoin():
            return f", {node.strategy}" + ("" if node.tolerance_ms is None else f" within {node.tolerance_ms} ms")
    kept = ", ".join(f"{side} kept {ms} ms" for side, ms in zip(("left", "right"), node.keep_ms, strict=True) if ms)
    return (f", {kept}" if kept else "") + (", broadcast" if isinstance(node.right, logical.Broadcast) else "")


def _order(by: tuple[tuple[str, bool], ...]) -> str:
    return ", ".join(f"{name} {'descending' if down else 'ascending'}" for name, down in by)


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _by(keys: tuple[str, ...]) -> str:
    return f" by {', '.join(keys)}" if keys else ""


def _column(name: str, expr: Expr) -> str:
    return name if expr.column == name else f"{name} = {expr.text()}"


def _words(aggregates: tuple[tuple[str, Aggregate], ...]) -> str:
    return ", ".join(f"{name} = {each.text()}" for name, each in aggregates)


def _window_words(window: Any) -> str:
    facts = {name.removesuffix("_ms"): value for name, value in vars(window).items() if name != "offset_ms" or value}
    sizes = ", ".join(f"{value} ms" if f"{name}_ms" in vars(window) else str(value) for name, value in facts.items())
    return f"{type(window).__name__.removesuffix('Window').lower()} window ({sizes})"
