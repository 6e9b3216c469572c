"""Process functions: the user's own logic over the rows of a key, with state and timers.

    rows ──▶ function ───────────────┐
    rows of the other side ──▶ right ├──▶ rows out, rows to branches
    watermark, clock ──▶ on_timer ───┘
                │   ▲
                ▼   │
    values by (name, key)    `state.keyed_values`: in memory, or in RocksDB behind a cache
    timers                   `KeysWithTimers`: a `TimerTable`, by the slots of a `GroupTable` with the keys that have timers
    broadcast maps           equal in every subtask

`rows` calls functions that take a row, `columns` those that take a batch. Both use `state`.

Event timers fire in order of time when the watermark reaches them, before it is passed on; if the rows come in order
of event time, timers and rows are in one order. A timer that a firing
timer sets, and that is due, fires in the same `advance`. A key that sets timers without end is an
error: it may set at most TIMERS_OF_A_KEY timers that are not later than the one that fires, and at most as many after
the end of the input.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Never, TypeAlias

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.timers import EVENT, PROCESSING
from sabot._cython.groups.partition import KEY_GROUPS, hash_columns
from sabot.api.arguments import RowPolicy
from sabot.api.functions import ProcessSpec
from sabot.api.nodes import functions as nodes
from sabot.codecs.json import schema_of_text, schema_text
from sabot.engine.operators.base import (
    CHUNK_ROWS,
    OP_COLUMN,
    START_OF_TIME,
    TIME_COLUMN,
    Cut,
    HasBranches,
    OperatorContext,
    Polled,
    Saved,
    SecondInput,
    with_time,
)
from sabot.engine.operators.columns import key_columns, time_index
from sabot.engine.operators.functions.columns import BatchCaller
from sabot.engine.operators.functions.rows import RowCaller
from sabot.engine.operators.functions.state import FunctionCaller, FunctionState, Side, parts_of, plain_key
from sabot.engine.operators.keyed.ordered import in_order
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import (
    Batches,
    Owned,
    StatefulOperator,
    StatePart,
    StateParts,
    columns_schema,
    last_watermark,
    read_batches,
)
from sabot.engine.state.base import Entry, EntryFilter
from sabot.engine.state.keyed_values import load_values
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

Array: TypeAlias = pa.Array

_VALUES = "values"  # the name of the folder with the values in a checkpoint
_BROADCAST = pa.schema([("name", pa.string()), ("key", pa.binary()), ("value", pa.binary())])


class Process(StatefulOperator, HasBranches):
    """Runs the functions of `spec` over rows by `keys`. The emitted rows have the columns of `spec.schema`, and event
    time if the input has it.

    A result has the event time of its input row or event timer, but not less than the last watermark that was passed
    on. The result of a processing timer has the event time of the watermark. Late rows are processed like others; the
    function can compare them with ctx.watermark. If only the left input has event time, rows of the right input get
    the watermark as their time.

    `ordered`: True if an EventOrder is before this step, so that rows come in order of event time. An event timer then
    fires before the first row that is not earlier than the timer, so the size of batches changes no result. No step has
    this order with functions over batches that set timers.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spec: ProcessSpec,
        *,
        on_error: RowPolicy = "fail",
        ordered: bool = False,
    ) -> None:
        self.spec = spec
        self.on_error = on_error
        self._ordered = ordered
        self._names = list(keys)
        self._state: FunctionState | None = None
        self._dropped: dict[str, int] = {}

    def open(self, context: OperatorContext) -> pa.Schema:
        spec = self.spec
        keys, key_indices = key_columns(self._names, context.input)
        if not self._names:
            raise UserError(f"{spec.name}: the stream has no key", hint='write stream.key_by("account").process(...)')
        self._refuse_changes(context.input)
        timed = TIME_COLUMN in context.input.names
        if spec.ttl_ms is not None:
            time_index(context.input, f"{spec.name}: values with a ttl")
        self._context = context
        self._state = state = FunctionState(spec, keys, timed, context, self.on_error)
        self.state_parts = StateParts(context, [_Values(state, context), state.timer_state, _BroadcastMaps(state)])
        self._schema = with_time(spec.schema, timed)
        state.interleaves = self._ordered and spec.on_timer is not None
        caller = BatchCaller if spec.batch else RowCaller
        self._caller: FunctionCaller = caller(self._state, self._emit_rows, self._emit_to_branch)
        self._left = Side(context.input, key_indices)
        return self._schema

    def _refuse_changes(self, input: pa.Schema) -> None:
        if OP_COLUMN in input.names:
            raise UserError(
                f"{self.spec.name}: a process function cannot take changes", hint="make them plain rows: .changelog()"
            )

    def branch_schema(self, name: str, input: pa.Schema) -> pa.Schema:
        return with_time(self.spec.sides[name], self._open_state.timed)

    def process(self, batch: Batch) -> None:
        self._caller.rows(self.spec.function, self._left, batch)
        self._settle()

    def _settle(self) -> None:
        """Moves keys and timers to disk if they exceed the memory budget. Called after each batch."""
        timers = self._open_state.timer_state
        with timers.changing:
            timers.settle()

    def advance(self, watermark_ms: int) -> None:
        state = self._open_state
        passed = state.watermark_ms
        if passed is not None and watermark_ms < passed:
            return
        state.watermark_ms = watermark_ms
        if self.spec.on_timer is not None and len(state.timer_state):
            state.guard()
            for at in state.timer_state.firing(EVENT, watermark_ms):
                self._caller.fire(EVENT, at, START_OF_TIME if passed is None else passed)
            state.timers.guard(0)
        state.forget_expired(watermark_ms)

    def _emit_rows(self, data: pa.RecordBatch, times: Array | None, batch: Batch | None) -> None:
        """Emits result rows. `times`: their event times, or None. `batch`: the input batch if these are its last
        results, so that they carry its offsets, else None.
        """
        if times is not None:
            data = data.append_column(TIME_COLUMN, times)
        if data.num_rows:
            self.emit(Batch(data) if batch is None else batch.with_data(data))

    def _emit_to_branch(self, name: str, data: pa.RecordBatch, times: Array | None) -> None:
        """Emits rows to an output branch, or counts them as dropped if the branch has no receiver."""
        if times is not None:
            data = data.append_column(TIME_COLUMN, times)
        if name in self._context.branches and data.num_rows:
            self._context.branches[name](Batch(data))
        else:
            self._dropped[name] = self._dropped.get(name, 0) + data.num_rows

    # State

    @property
    def _open_state(self) -> "FunctionState":
        assert self._state is not None, "open comes first"
        return self._state

    def group_count(self) -> int:
        state = self._open_state
        shared = sum(len(each.stored) for each in state.maps.values())
        return state.values.statistics()["keys"] + len(state.timer_state) + shared

    def own_facts(self) -> OwnFacts:
        state = self._open_state
        return {
            "watermark": state.watermark_ms,
            "latest": state.latest_ms,
            "names": sorted({*state.names, *(name for name, each in state.maps.items() if each.stored)}),
        }

    def before_restore(self, saved: Sequence[Saved]) -> None:
        state = self._open_state
        state.forgets = self.forgets
        state.names |= {name for part in saved for name in part.facts.get("names", ())} - self.forgets
        watermark = last_watermark(saved, None)
        if watermark is not None:
            state.watermark_ms = watermark
            state.forget_expired(watermark)
        state.latest_ms = max([part.facts["latest"] for part in saved], default=START_OF_TIME)
        state.set_time(state.now())

    def after_restore(self, saved: Sequence[Saved]) -> None:
        if any("names" not in part.facts for part in saved):  # an older checkpoint does not list them
            self._open_state.names |= set(self._open_state.values.namespaces())

    def state_schema(self) -> StateSchema:
        return {"kind": "process", "keys": columns_schema(self._open_state.keys), "ttl": self.spec.ttl_ms}

    def state_reader(self) -> StateReader:
        return {"keys": self._names, "input": schema_text(self._open_state.keys)}

    def contents(self) -> Iterator[pa.RecordBatch]:
        """Yields the state for people: the keys, the name, and the value as JSON text. A row for each value, list or
        map of a key.
        """
        keys = self._open_state.keys
        schema = _contents_schema(keys)
        rows: list[tuple[Any, str, str]] = []
        for row in self._open_state.contents():
            rows.append(row)
            if len(rows) == CHUNK_ROWS:
                yield _contents_batch(rows, keys, schema)
                rows = []
        if rows:
            yield _contents_batch(rows, keys, schema)

    def close(self) -> None:
        if self._state is not None:
            self._state.bad.close()
            self._state.values.shut()
            self._state.timer_state.close()

    def statistics(self) -> "ToldStep":
        if self._state is None:
            return {}
        timers, values = self._state.timer_state, self._state.values.statistics()
        figures = timers.figures()
        return {
            "function": self.spec.name,
            **figures,
            "timers": len(timers),
            "timers_fired": timers.timers.statistics()["fired"],
            "values": values["keys"],
            "keys": timers.key_count,
            "bytes": figures["bytes"] + values["bytes"],
            "broadcast": sum(len(each.stored) for each in self._state.maps.values()),
            "dropped": dict(self._dropped),
            **self._state.bad.statistics(),
        }


class ProcessWithTimers(Process, Polled):
    """A Process whose functions may set timers."""

    def poll(self, now_ms: int) -> None:
        state = self._open_state
        if not len(state.timer_state):
            return
        state.poll_ms = now_ms
        state.timers.hold(PROCESSING)  # a timer that is set for now fires at the next poll
        try:
            for at in state.timer_state.firing(PROCESSING, now_ms):
                self._caller.fire(PROCESSING, at, state.now())
        finally:
            state.timers.release(PROCESSING)
            state.poll_ms = None


class ConnectedProcess(ProcessWithTimers, SecondInput):
    """A Process over two inputs.

    `right_keys`: the key columns of the second input, in the order of `keys`; empty if the second input is broadcast.
    """

    def __init__(
        self,
        keys: Sequence[str],
        spec: ProcessSpec,
        *,
        right_keys: Sequence[str] = (),
        on_error: RowPolicy = "fail",
    ) -> None:
        super().__init__(keys, spec, on_error=on_error)
        self._right_names = list(right_keys)
        self._right: Side | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        assert context.right is not None, "an operator of two inputs is opened with the columns of both"
        self._refuse_changes(context.right)
        schema = super().open(context)
        self._right = self._open_right(context.right, self._open_state.keys)
        return schema

    def _open_right(self, input: pa.Schema, keys: pa.Schema) -> "Side":
        if self.spec.broadcast:
            return Side(input, [])
        ours, indices = key_columns(self._right_names, input)
        if [field.type for field in ours] != [field.type for field in keys]:
            sides = [", ".join(f"{field.name} {field.type}" for field in each) for each in (keys, ours)]
            raise UserError(f"{self.spec.name}: the keys of the sides differ: {sides[0]}; {sides[1]}", hint="cast them")
        return Side(input, indices)

    def state_schema(self) -> StateSchema:
        assert self._context.right is not None
        right = columns_schema(self._context.right.field(name) for name in self._right_names)
        return {**super().state_schema(), "right_keys": right}

    def process_right(self, batch: Batch) -> None:
        function, side = self.spec.right, self._right
        assert function is not None, "an operator of one input has no right side"
        assert side is not None, "open comes first"
        self._caller.rows(function, side, batch)
        self._settle()


def process_operator(
    keys: Sequence[str],
    spec: ProcessSpec,
    *,
    right_keys: Sequence[str] = (),
    on_error: RowPolicy = "fail",
    ordered: bool = False,
) -> Process:
    """Returns the operator for the functions of `spec`: a ConnectedProcess if there is a function for a right input,
    else a ProcessWithTimers if there is an `on_timer`, else a Process.

    `right_keys`: the parameter of `ConnectedProcess`. `ordered`: the parameter of `Process`.
    """
    if spec.right is not None:
        return ConnectedProcess(keys, spec, right_keys=right_keys, on_error=on_error)
    make = Process if spec.on_timer is None else ProcessWithTimers
    return make(keys, spec, on_error=on_error, ordered=ordered)


class _Values(StatePart):
    """The values that functions store by key, as a part of the operator's state. Each entry of the backend is stored
    under the key group of its key.
    """

    def __init__(self, state: FunctionState, context: OperatorContext) -> None:
        self._state, self._context = state, context

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        values = self._state.values
        return {_VALUES: not values.is_empty}, {} if values.is_empty else {_VALUES: values.cut()}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        state = self._state
        directories = [part.directory / _VALUES for part in saved if part.facts[_VALUES]]
        passed = START_OF_TIME if state.watermark_ms is None else state.watermark_ms
        mine = None if owned is None else self._entry_filter(owned)
        load_values(state.values, directories, self._without_forgotten(mine) if state.forgets else mine, passed)

    def _without_forgotten(self, mine: EntryFilter | None) -> EntryFilter:
        """Returns a filter that passes the entries that `mine` passes, except those of names in `forgets`, whose
        state the user drops.
        """
        forgets = self._state.forgets
        return lambda entries: (
            entry for entry in (entries if mine is None else mine(entries)) if entry[0] not in forgets
        )

    def _entry_filter(self, owned: Owned) -> EntryFilter:
        """Returns a filter that passes the entries of keys that belong to this subtask."""
        if self._context.only is not None:  # `only` may select some keys of a key group
            return lambda entries: _owned_entries(entries, self._state.keys, owned)
        groups = owned(pa.array(range(KEY_GROUPS), pa.uint64())).to_pylist()
        return lambda entries: (entry for entry in entries if groups[entry[1][0] << 8 | entry[1][1]])


class _BroadcastMaps(StatePart):
    """The maps that all keys share, as a part of the operator's state. Every subtask has equal maps, so one of the
    saved copies is restored.
    """

    def __init__(self, state: FunctionState) -> None:
        self._state = state

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        maps = {name: dict(each.stored) for name, each in self._state.maps.items() if each.stored}
        return {}, {"broadcast": Batches(_BROADCAST, partial(_map_rows, maps))} if maps else {}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        for part in saved[:1]:
            for batch in read_batches(part.directory, "broadcast"):
                for name, key, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    if name not in self._state.forgets:
                        self._state.map(name).store(key, value)


def _map_rows(maps: dict[str, dict[bytes, bytes]]) -> Iterator[pa.RecordBatch]:
    rows = [(name, key, value) for name, stored in maps.items() for key, value in stored.items()]
    columns = zip(zip(*rows, strict=True), _BROADCAST, strict=True)
    arrays = [pa.array(column, field.type) for column, field in columns]
    yield pa.RecordBatch.from_arrays(arrays, schema=_BROADCAST)


def _owned_entries(
    entries: Iterator[Entry],
    keys: pa.Schema,
    only: Owned,
) -> Iterator[Entry]:
    """Yields the entries whose key belongs to this subtask. `only`: selects key hashes."""
    for entry in entries:
        if only(hash_columns(_key_columns([parts_of(entry[1][2:])[0]], keys)))[0].as_py():
            yield entry


def saved_process(reader: Mapping[str, Any]) -> Process:
    """Returns an operator that restores the state and yields its `contents`. `reader`: the result of
    `Process.state_reader`.
    """
    keys = schema_of_text(reader["input"])
    assert keys is not None
    spec = ProcessSpec("process", _no_function, None, None, _contents_schema(keys), {}, False, None, False)
    return Process(reader["keys"], spec)


def _no_function(row: Any, ctx: Any) -> Never:
    raise AssertionError("an operator that only reads state was given rows")


def _contents_schema(keys: pa.Schema) -> pa.Schema:
    names = [
        "name" if "name" not in keys.names else "state_name",
        "value" if "value" not in keys.names else "state_value",
    ]
    return pa.schema([*keys, *(pa.field(name, pa.string()) for name in names)])


def _contents_batch(rows: list[tuple[Any, str, str]], keys: pa.Schema, schema: pa.Schema) -> pa.RecordBatch:
    found, names, values = zip(*rows, strict=True)
    columns = [*_key_columns(found, keys), pa.array(names, pa.string()), pa.array(values, pa.string())]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _key_columns(found: Sequence[Any], keys: pa.Schema) -> list[Array]:
    """Returns the columns of keys that were decoded from msgpack."""
    columns = [found] if len(keys) == 1 else list(zip(*found, strict=True))
    return [
        pa.array(column, field.type)
        if (plain := plain_key(field.type)) is None
        else pa.array(column, plain).view(field.type)
        for column, field in zip(columns, keys, strict=True)
    ]


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_process(node: nodes.Process, point: PlanPoint) -> PlanPoint:
    point = point.partition_by(node.keys, "process")
    if node.order is not None:
        point = in_order(point, node.keys, node.id)
    policy = point.policy(node.on_error)
    make = partial(process_operator, node.keys, node.spec, on_error=policy, ordered=node.order is not None)
    return point.step(node.text(), make, id=node.id, keys=None)


def plan_connect(node: nodes.Connect, left: PlanPoint, right: PlanPoint) -> PlanPoint:
    point = left.layout.connect(node, "process", left, right, (node.left_keys, node.right_keys))
    make = partial(
        ConnectedProcess,
        *(node.left_keys, node.spec),
        right_keys=node.right_keys,
        on_error=point.policy(node.on_error),
    )
    return point.step(node.text(), make, id=node.id, keys=None)


def plan_side(node: nodes.Side, point: PlanPoint) -> PlanPoint:
    return point.branch(node.name)


PLANNERS: Planners = {nodes.Process: plan_process, nodes.Connect: plan_connect, nodes.Side: plan_side}


STATE_READERS: StateReaders = {"process": saved_process}
