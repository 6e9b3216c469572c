"""Process functions: rows, state and timers beside a twin in plain Python, whatever the splits, restarts and rescales."""

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns
from sabot.api.functions import Process as ProcessClass
from sabot.api.functions import ProcessSpec, Timer, process_spec
from sabot.clock import ManualClock
from sabot.codecs.json import schema_of_text
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext, Polled, Saved
from sabot.engine.operators.functions import state as process_state
from sabot.engine.operators.functions.process import Process, process_operator, saved_process
from sabot.errors import CorruptCheckpoint, UserError
from tools.operator_run import OperatorRun

INPUT = pa.schema([("k", pa.string()), ("op", pa.int64()), ("v", pa.int64()), (TIME_COLUMN, pa.int64())])
OUTPUT = {"k": "string", "what": "string", "n": "int64"}
LEAST = -(2**63)


def rows_of(rows: list[tuple[Any, ...]], schema: pa.Schema = INPUT) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


class Run(OperatorRun):
    """An OperatorRun with a clock, any sides, and rows of a broadcast side beside rows that go by their keys."""

    def __init__(
        self,
        spec: ProcessSpec,
        directory: Path,
        *,
        input: pa.Schema = INPUT,
        keys: Any = ("k",),
        right: pa.Schema | None = None,
        right_keys: Any = (),
        parallelism: int = 1,
        disk: bool = False,
    ) -> None:
        self.clock, self.spec = ManualClock(1000.0), spec
        self.sides: dict[str, list[dict[str, Any]]] = defaultdict(list)
        super().__init__(
            lambda: process_operator(keys, spec, right_keys=right_keys),
            input,
            keys,
            directory,
            parallelism,
            4_000_000 if disk else None,
            right=right,
            right_keys=right_keys,
            clock=self.clock,
        )

    def _start(self, parallelism: int, saved: list[Saved], *, own: bool = False) -> None:
        super()._start(parallelism, saved, own=own)
        for part in self.parts:
            assert isinstance(part, Process)
            for name in self.spec.sides:
                part._context.branches[name] = partial(self._beside, name)

    def _beside(self, name: str, batch: Batch) -> None:
        part = self.parts[0]
        assert batch.schema.equals(part.branch_schema(name, self._input))
        self.sides[name].extend(batch.taken().to_pylist())

    def feed_right(self, rows: pa.RecordBatch, size: int = 1 << 16) -> None:
        if not self.spec.broadcast:
            super().feed_right(rows, size)
            return
        for part in self.parts:
            part.process_right(Batch(rows))

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.poll(int(self.clock.time() * 1000))

    def close(self) -> None:
        for part in self.parts:
            part.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    made: list[Run] = []

    def make(function: Any, *, schema: Any = None, **options: Any) -> Run:
        names = ("input", "keys", "right", "right_keys", "parallelism", "disk")
        given_ = {name: options.pop(name) for name in names if name in options}
        spec = process_spec(
            function,
            schema=schema or OUTPUT,
            two_inputs="right" in given_,
            broadcast=options.pop("broadcast", False),
            **{("right" if n == "on_right" else n): o for n, o in options.items()},
        )
        made.append(Run(spec, tmp_path / f"run-{len(made)}", **given_))
        return made[-1]

    yield make
    for each in made:
        each.close()


# A program that uses everything, and its twin


def program(row: dict[str, Any], ctx: Any) -> Any:
    """What a row does is said by its `op`."""
    op, v, at = row["op"], row["v"], ctx.timestamp
    count = ctx.state("count")
    if op == 0:
        count.put((count.get() or 0) + v)
        return {"k": ctx.key, "what": f"at {at} of {ctx.watermark}", "n": count.get()}
    if op == 1:
        ctx.timers.event(at + v, "again" if v % 2 else "")
    elif op == 2:
        ctx.timers.processing(ctx.now() + v * 1000, "p")
    elif op == 3:
        ctx.timers.delete(at + v)
        ctx.timers.delete(at + v + 1, "again")
    elif op == 4:
        kept = ctx.map("fields")
        kept.put(v, {"at": at})
        if v % 3 == 0:
            kept.delete(v - 1)
        return [{"k": ctx.key, "what": json.dumps(list(kept.items().items())), "n": None}]
    elif op == 5:
        ctx.list("seen").add([v, at])
        return ({"k": ctx.key, "what": json.dumps(each)} for each in ctx.list("seen").get())
    elif op == 6:
        count.delete()
        ctx.list("seen").delete()
        ctx.map("fields").delete()
    elif op == 7:
        ctx.timers.event(at - 50)
    ctx.side("aside", {"op": op})
    return None


def as_timers_fire(timer: Timer, ctx: Any) -> Any:
    count = ctx.state("count")
    count.put((count.get() or 0) + 1)
    if timer.name == "again" and count.get() < 8:
        ctx.timers.event(timer.at + 2, "again")
        ctx.timers.event(timer.at - 1, "past")
    if timer.kind == "processing" and count.get() < 5:
        ctx.timers.processing(ctx.now(), "p")
    ctx.side("aside", {"op": timer.at})
    yield {"k": ctx.key, "what": f"{timer.kind} {timer.name} {timer.at}", "n": count.get()}


class NaiveContext:
    """The ProcessContext of the twin: dicts."""

    def __init__(self, twin: "Twin", key: Any, now: int | None, timestamp: int, stamp: int) -> None:
        self.twin, self.key, self.timestamp, self._now, self._stamp = twin, key, timestamp, now, stamp
        self.watermark, self.timers = twin.watermark, self

    def now(self) -> int:
        return self.twin.clock_ms

    def state(self, name: str) -> "NaiveValue":
        return NaiveValue(self, name)

    def list(self, name: str) -> "NaiveList":
        return NaiveList(self, name)

    def map(self, name: str) -> "NaiveMap":
        return NaiveMap(self, name)

    def side(self, name: str, row: Any) -> None:
        self.twin.aside.append({**row, TIME_COLUMN: self._stamp})

    def event(self, at: int, name: str = "") -> None:
        self.twin.set(self.key, at, "event", name)

    def processing(self, at: int, name: str = "") -> None:
        self.twin.set(self.key, at, "processing", name)

    def delete(self, at: int, name: str = "", kind: str = "event") -> None:
        self.twin.timers.pop((self.key, at, kind, name), None)


class NaiveValue:
    """A value of the twin; with a ttl it counts until so long after it was put."""

    def __init__(self, ctx: NaiveContext, name: str) -> None:
        self.ctx, self.at, self.values = ctx, (ctx.key, name), ctx.twin.values

    def get(self) -> Any:
        value, until = self.values.get(self.at, (None, None))
        if until is not None and self.ctx._now is not None and until <= self.ctx._now:
            return None
        return copy.deepcopy(value)

    def put(self, value: Any) -> None:
        ttl = self.ctx.twin.ttl
        until = None if ttl is None or self.ctx._now is None else self.ctx._now + ttl
        self.values[self.at] = (copy.deepcopy(value), until)

    def delete(self) -> None:
        self.values.pop(self.at, None)


class NaiveList(NaiveValue):
    """A list of the twin."""

    def get(self) -> Any:
        return super().get() or []

    def add(self, value: Any) -> None:
        self.put([*self.get(), value])


class NaiveMap(NaiveValue):
    """A map of the twin; the last field takes the place of one that goes."""

    def items(self) -> dict[Any, Any]:
        return self.get() or {}

    def put(self, field: Any, value: Any) -> None:  # type: ignore[override]
        super().put({**self.items(), field: value})

    def delete(self, *field: Any) -> None:  # type: ignore[override]
        if not field:
            super().delete()
            return
        there = list(self.items().items())
        place = next((i for i, (name, _) in enumerate(there) if name == field[0]), None)
        if place is not None:
            there[place] = there[-1]
            there.pop()
            super().put(dict(there))


class Twin:
    """The program over one row, and one timer, after the other."""

    def __init__(self, ttl: int | None = None) -> None:
        self.values: dict[Any, Any] = {}
        self.timers: dict[tuple[Any, int, str, str], tuple[int, int]] = {}
        self.out: list[dict[str, Any]] = []
        self.aside: list[Any] = []
        self.watermark: int | None = None
        self.latest = LEAST
        self.clock_ms = 1_000_000
        self.ttl = ttl
        self.numbers = 0

    def set(self, key: Any, at: int, kind: str, name: str) -> None:
        if (key, at, kind, name) not in self.timers:
            self.numbers += 1
            serial = next((number for timer, (number, _) in self.timers.items() if timer[0] == key), self.numbers)
            self.timers[key, at, kind, name] = (serial, self.numbers)

    def take(self, made: Any, time: int) -> None:
        for row in [] if made is None else [made] if isinstance(made, dict) else made:
            self.out.append({"n": None, **row, TIME_COLUMN: time})

    def feed(self, rows: list[Any]) -> None:
        for key, op, v, at in rows:
            self.latest = max(self.latest, at)
            now = at if self.watermark is None else max(at, self.watermark)
            self.take(program({"k": key, "op": op, "v": v}, NaiveContext(self, key, now, at, at)), at)

    def fire(self, kind: str, limit: int, passed: int, known: Any = None) -> None:
        while True:
            due = [t for t in self.timers if t[2] == kind and t[1] <= limit and (known is None or t in known)]
            if not due:
                return
            timer = min(due, key=lambda each: (each[1], *self.timers[each]))
            del self.timers[timer]
            if known is not None:
                known.discard(timer)
            key, at, _, name = timer
            time = max(at, passed) if kind == "event" else passed
            self.take(as_timers_fire(Timer(at, name, kind), NaiveContext(self, key, time, at, time)), time)

    def advance(self, watermark: int) -> None:
        passed, self.watermark = self.watermark, watermark
        self.fire("event", watermark, LEAST if passed is None else passed)

    def pass_time(self, ms: int) -> None:
        self.clock_ms += ms
        self.fire(
            "processing", self.clock_ms, self.latest if self.watermark is None else self.watermark, set(self.timers)
        )


ROW = st.tuples(st.sampled_from("abcde"), st.integers(0, 7), st.integers(0, 9), st.integers(0, 60))
STEP = st.one_of(
    st.tuples(st.just("rows"), st.lists(ROW, min_size=1, max_size=20), st.integers(1, 9)),
    st.tuples(st.just("watermark"), st.integers(0, 25)),
    st.tuples(st.just("clock"), st.integers(0, 8)),
    st.tuples(st.just("restart"), st.integers(1, 3)),
)


def by_key(rows: list[dict[str, Any]]) -> dict[Any, list[Any]]:
    found = defaultdict(list)
    for row in rows:
        found[row["k"]].append(row)
    return found


def check_program(steps: Any, ttl: int | None, parallelism: int, disk: bool) -> None:
    """Runs the steps; what comes out is what the twin gives. With a ttl, lists and maps expire entry by entry: without those."""
    options: dict[str, Any] = {"on_timer": as_timers_fire, "sides": {"aside": {"op": "int64"}}}
    spec = process_spec(program, schema=OUTPUT, ttl=None if ttl is None else ttl / 1000, **options)
    twin, alone, watermark = Twin(ttl), parallelism == 1, 0
    with TemporaryDirectory() as directory:
        made = Run(spec, Path(directory) / "run", parallelism=parallelism, disk=disk)
        made.advance(0)
        twin.advance(0)
        for step, *given_ in steps:
            if step == "rows":
                rows = given_[0] if ttl is None else [row for row in given_[0] if row[1] not in (4, 5)]
                made.feed(rows_of(rows), given_[1])
                twin.feed(rows)
            elif step == "watermark":
                watermark += given_[0]
                made.advance(watermark)
                twin.advance(watermark)
            elif step == "clock":
                made.pass_time(given_[0])
                twin.pass_time(given_[0] * 1000)
            else:
                alone = alone and given_[0] == 1
                made.restart(given_[0])
        made.end()
        twin.advance(END_OF_TIME)
        if alone:
            assert made.results == twin.out
        assert by_key(made.results) == by_key(twin.out)
        asides = [sorted(tuple(row.values()) for row in rows) for rows in (made.sides["aside"], twin.aside)]
        assert asides[0] == asides[1]
        assert made.statistic("timers") == len([timer for timer in twin.timers if timer[2] == "processing"])
        made.close()


@settings(max_examples=50, deadline=None)
@given(st.lists(STEP, max_size=12), st.sampled_from([None, 7, 20]), st.integers(1, 3))
def test_any_split_restart_and_rescale_gives_what_the_twin_gives(steps: Any, ttl: int | None, parallelism: int) -> None:
    check_program(steps, ttl, parallelism, disk=False)


@settings(max_examples=4, deadline=None)
@given(st.lists(STEP, min_size=3, max_size=8), st.sampled_from([None, 7, 20]), st.integers(1, 2))
def test_with_a_directory_too_it_gives_what_the_twin_gives(steps: Any, ttl: int | None, parallelism: int) -> None:
    check_program(steps, ttl, parallelism, disk=True)


# Batches


def sums(keys: Any, batch: pa.RecordBatch, ctx: Any) -> Any:
    """The sum of each key, and a timer for each row; every second row goes on."""
    added = pa.table({"k": keys, "v": batch.column("v")}).group_by("k").aggregate([("v", "sum")])
    state, own = ctx.state("sum"), added.column("k").combine_chunks()
    before = state.get_many(own)
    before = pc.fill_null(before.cast(pa.int64()), 0)
    state.put_many(own, pc.add(before, added.column("v_sum").combine_chunks()))
    ctx.timers.event_many(keys, pc.add(ctx.timestamp, batch.column("v")))
    chosen = pc.equal(batch.column("op"), 1)
    some = pa.record_batch({"k": keys, "what": pc.cast(ctx.timestamp, pa.string()), "n": batch.column("v")})
    ctx.timers.delete_many(keys.filter(chosen), pc.add(ctx.timestamp, batch.column("v")).filter(chosen))
    return some.filter(chosen), ctx.timestamp.filter(chosen)


def sums_fire(keys: Any, at: pa.Int64Array, ctx: Any) -> Any:
    values = ctx.state("sum").get_many(keys).cast(pa.int64())
    short = pc.less(values, 30)
    ctx.state("sum").put_many(keys.filter(short), pc.add(values, 10).filter(short))
    ctx.timers.event_many(keys.filter(short), pc.add(at, 3).filter(short))
    return pa.record_batch({"k": keys, "what": pc.cast(at, pa.string()), "n": values})


def naive_sums(steps: Any) -> list[Any]:
    """The same in plain Python."""
    totals: dict[str, int] = defaultdict(int)
    timers: set[tuple[int, str]] = set()
    out, passed = [], LEAST
    for step, *given_ in [*steps, ("watermark", END_OF_TIME)]:
        if step == "rows":
            for start in range(0, len(given_[0]), given_[1]):
                part = given_[0][start : start + given_[1]]
                for key, _, v, at in part:
                    totals[key] += v
                    timers.add((at + v, key))
                for key, op, v, at in part:
                    if op == 1:
                        timers.discard((at + v, key))
                        out.append((key, str(at), v, at))
        elif step == "watermark":
            mark = given_[0] if given_[0] == END_OF_TIME else max(passed, 0) + given_[0]
            while any(at <= mark for at, _ in timers):
                at, key = min(timers)
                timers.discard((at, key))
                out.append((key, str(at), totals[key], max(at, passed)))
                if totals[key] < 30:
                    totals[key] += 10
                    timers.add((at + 3, key))
            passed = mark
    return out


@settings(max_examples=30, deadline=None)
@given(st.lists(STEP, max_size=10), st.integers(1, 3))
def test_functions_over_batches_see_each_key_in_the_order_of_time(steps: Any, parallelism: int) -> None:
    spec = process_spec(sums, schema=OUTPUT, batch=True, on_timer=sums_fire)
    watermark = 0
    with TemporaryDirectory() as directory:
        made = Run(spec, Path(directory) / "run", parallelism=parallelism)
        for step, *given_ in steps:
            if step == "rows":
                made.feed(rows_of(given_[0]), given_[1])
            elif step == "watermark":
                watermark += given_[0]
                made.advance(watermark)
            elif step == "restart":
                made.restart(given_[0])
        made.end()
        expected = defaultdict(list)
        for key, what, n, time in naive_sums(steps):
            expected[key].append({"k": key, "what": what, "n": n, TIME_COLUMN: time})
        assert by_key(made.results) == expected
        made.close()


def test_a_batch_of_timers_has_a_key_at_one_time_only(run: Any) -> None:
    calls: list[Any] = []

    def fire(keys: Any, at: Any, ctx: Any) -> None:
        calls.append(list(zip(keys.to_pylist(), at.to_pylist(), strict=True)))

    made = run(lambda keys, batch, ctx: ctx.timers.event_many(keys, batch.column("v")), batch=True, on_timer=fire)
    made.feed(
        rows_of([("a", 0, 5, 1), ("b", 0, 6, 1), ("a", 0, 7, 1), ("b", 0, 6, 1), ("c", 0, 7, 1), ("c", 0, 99, 1)])
    )
    made.advance(50)
    assert calls == [[("a", 5), ("b", 6)], [("a", 7), ("c", 7)]]
    assert made.statistic("timers") == 1


def test_what_a_batch_function_gives_must_be_what_was_said(run: Any) -> None:
    good = pa.record_batch({"k": ["a"], "what": ["x"], "n": [1]})
    wrong: list[tuple[Any, str]] = [
        (pa.record_batch({"k": ["a"], "what": ["x"]}), "no column 'n'"),
        (pa.record_batch({"k": ["a"], "what": ["x"], "n": ["?"]}), "'n' is string, not int64"),
        (good.append_column("m", pa.array([1])), "an extra column 'm'"),
        ([1, 2], "list, which is not Arrow data"),
        (good, "1 rows for 2"),
        ((good, pa.array([1, 2])), "2 event times for 1 rows"),
        ((good, pa.array(["x"])), "not int64"),
    ]
    for given_, message in wrong:
        made = run(lambda keys, batch, ctx, given_=given_: given_, batch=True)
        with pytest.raises(UserError, match=message):
            made.feed(rows_of([("a", 0, 1, 5), ("b", 0, 1, 5)]))
    cast = run(
        lambda keys, batch, ctx: (pa.table({"n": pa.array([1], pa.int8()), "k": ["a"], "what": ["x"]}), [7]), batch=True
    )
    cast.feed(rows_of([("a", 0, 1, 5), ("b", 0, 1, 5)]))
    assert cast.results == [{"k": "a", "what": "x", "n": 1, TIME_COLUMN: 7}]


TWO_KEYS = pa.schema([("k", pa.string()), ("n", pa.int32()), ("v", pa.int64()), (TIME_COLUMN, pa.int64())])


@pytest.mark.parametrize("disk", [False, True])
def test_keys_of_several_columns_are_structs_in_batches(run: Any, disk: bool) -> None:
    def function(keys: Any, batch: Any, ctx: Any) -> Any:
        state, some = ctx.state(), keys.take(pa.array([0]))
        known = state.get_many(keys)
        assert keys.type == pa.struct([("k", pa.string()), ("n", pa.int32())])
        assert batch.schema.names == ["k", "n", "v"]
        state.put_many(keys, batch.column("v"))
        assert state.get_many(some).to_pylist() == state.get_many(some.to_pylist()).to_pylist()
        ctx.timers.processing_many(keys, ctx.now() + 1000)
        ctx.timers.event_many(pa.chunked_array([keys]), pc.add(ctx.timestamp, 5))
        ctx.timers.delete_many(some, 1_001_000, kind="processing")
        return pa.record_batch(
            {"k": batch.column("k"), "what": pa.repeat("row", len(keys)), "n": known.cast(pa.int64())}
        )

    def fire(keys: Any, at: Any, ctx: Any) -> Any:
        known = ctx.state().get_many(keys).cast(pa.int64())
        ctx.side("gone", pa.table({"k": keys.field("k"), "n": known}))
        ctx.state().delete_many(keys)
        assert at.equals(ctx.timestamp) == (ctx.kind == "event")
        return pa.record_batch({"k": keys.field("k"), "what": pa.repeat(ctx.kind, len(keys)), "n": known})

    made = run(
        function,
        input=TWO_KEYS,
        keys=("k", "n"),
        batch=True,
        on_timer=fire,
        sides={"gone": {"k": "string", "n": "int64"}},
        disk=disk,
        parallelism=2,
    )
    rows = [("a", 1, 10, 0), ("a", 2, 20, 0), ("b", 1, 30, 0), (None, None, 40, 0)]
    for row in rows:
        made.feed(rows_of([row], TWO_KEYS))  # each is the first of its batch: none keeps its processing timer
    made.restart(3)
    made.restart(1)
    made.feed(rows_of([(*row[:2], row[2] + 1, 1) for row in rows], TWO_KEYS))
    made.pass_time(2)
    made.advance(6)
    results = by_key(made.results)
    fired = [[(row["what"], row["n"]) for row in results[key][-3:]] for key in ("b", None)]
    assert fired == [[("processing", n), ("event", None), ("event", None)] for n in (31, 41)]
    assert sorted((row["what"], row["n"] or 0) for row in results["a"][-5:]) == [
        *[("event", 0)] * 3,
        ("event", 11),
        ("processing", 21),
    ]
    assert sorted(row["n"] for row in results["a"] if row["what"] == "row" and row["n"]) == [10, 20]
    gone = [(row["k"], row["n"], row[TIME_COLUMN]) for row in made.results if row["what"] != "row"]
    assert [tuple(row.values()) for row in made.sides["gone"]] == gone
    made.advance(50)
    assert made.statistic("keys") == made.statistic("timers") == 0


# Two inputs

RIGHT = pa.schema([("id", pa.string()), ("limit", pa.int64()), (TIME_COLUMN, pa.int64())])


def test_both_sides_share_the_state_and_the_timers_of_a_key(run: Any) -> None:
    def left(row: Any, ctx: Any) -> Any:
        limit = ctx.state("limit").get()
        return {"k": ctx.key, "what": "over", "n": limit} if limit is not None and row["v"] > limit else None

    def right(row: Any, ctx: Any) -> None:
        ctx.state("limit").put(row["limit"])
        ctx.timers.event(ctx.timestamp + 10)

    def forget(timer: Timer, ctx: Any) -> None:
        ctx.state("limit").delete()

    made = run(left, on_right=right, on_timer=forget, right=RIGHT, right_keys=("id",), parallelism=2)
    made.feed(rows_of([("a", 0, 100, 1)]))
    made.feed_right(rows_of([("a", 50, 2), ("b", 5, 2)], RIGHT))
    made.feed(rows_of([("a", 0, 100, 3), ("b", 0, 1, 3), ("a", 0, 49, 3)]))
    made.restart(3)
    made.feed(rows_of([("b", 0, 7, 4)]))
    made.advance(12)
    made.feed(rows_of([("a", 0, 100, 13), ("b", 0, 7, 13)]))
    assert [(row["k"], row["n"]) for row in made.results] == [("a", 50), ("b", 5)]


def test_keys_of_two_types_cannot_be_connected(run: Any) -> None:
    other = pa.schema([("id", pa.int64()), (TIME_COLUMN, pa.int64())])
    with pytest.raises(UserError, match="k string; id int64"):
        run(lambda row, ctx: None, on_right=lambda row, ctx: None, right=other, right_keys=("id",))


RULES = pa.schema([("rule", pa.string()), ("least", pa.int64()), (TIME_COLUMN, pa.int64())])


def rule(row: Any, ctx: Any) -> None:
    ctx.broadcast("rules").put(row["rule"], None if row["least"] is None else {"least": row["least"]})


def judged(row: Any, ctx: Any) -> Any:
    return [
        {"k": ctx.key, "what": name, "n": row["v"]}
        for name, each in ctx.broadcast("rules").items().items()
        if row["v"] >= each["least"]
    ]


@pytest.mark.parametrize("disk", [False, True])
def test_a_broadcast_map_is_the_same_for_all_keys_and_comes_back_in_every_subtask(run: Any, disk: bool) -> None:
    made = run(judged, on_right=rule, right=RULES, broadcast=True, parallelism=3, disk=disk)
    made.feed_right(rows_of([("big", 50, 1), ("huge", 90, 1), ("old", 0, 1)], RULES))
    made.feed_right(rows_of([("old", None, 1)], RULES))
    made.restart(2)
    made.restart(4)
    made.feed(rows_of([(key, 0, v, 2) for key in "abcd" for v in (10, 60, 95)]))
    assert sorted((row["k"], row["what"], row["n"]) for row in made.results) == sorted(
        (key, what, v) for key in "abcd" for what, v in [("big", 60), ("big", 95), ("huge", 95)]
    )
    assert made.statistic("broadcast") == 8


def test_a_broadcast_map_is_written_by_its_side_alone_which_has_no_key(run: Any) -> None:
    made = run(lambda row, ctx: ctx.broadcast().put("x", 1), on_right=rule, right=RULES, broadcast=True)
    with pytest.raises(UserError, match=r"only by the function of the broadcast side; at the key {'k': 'a'}, row 0"):
        made.feed(rows_of([("a", 0, 1, 1)]))
    for touch in (
        lambda row, ctx: ctx.state().get(),
        lambda row, ctx: ctx.map("m").items(),
        lambda row, ctx: ctx.timers.event(5),
    ):
        made = run(judged, on_right=touch, right=RULES, broadcast=True, on_timer=as_timers_fire)
        with pytest.raises(UserError, match=r"need.* a key"):
            made.feed_right(rows_of([("big", 50, 1)], RULES))
    in_batches = run(
        lambda keys, batch, ctx: ctx.state().put_many(batch.column("rule"), batch.column("least")),
        on_right=lambda keys, batch, ctx: ctx.state().get_many(batch.column(0)),
        right=RULES,
        broadcast=True,
        batch=True,
    )
    with pytest.raises(UserError, match="state and timers need a key"):
        in_batches.feed_right(rows_of([("big", 50, 1)], RULES))


# Time


def test_rows_of_a_timer_have_its_time_but_never_one_below_the_watermark(run: Any) -> None:
    def function(row: Any, ctx: Any) -> None:
        ctx.timers.event(row["v"])
        ctx.timers.processing(1_001_000)

    made = run(function, on_timer=lambda timer, ctx: {"k": ctx.key, "what": timer.kind, "n": ctx.timestamp})
    made.feed(rows_of([("a", 0, 40, 5), ("b", 0, 70, 95)]))
    made.pass_time(1.0)
    assert [(row["what"], row[TIME_COLUMN]) for row in made.results] == [("processing", 95)] * 2
    made.advance(60)
    made.feed(rows_of([("c", 0, 1, 99)]))
    made.advance(60)
    made.advance(80)
    fired = [(row["k"], row["n"], row[TIME_COLUMN]) for row in made.results[2:]]
    assert fired == [("a", 40, 40), ("c", 1, 60), ("b", 70, 70)]


def test_rows_below_the_watermark_are_processed_like_others(run: Any) -> None:
    def function(row: Any, ctx: Any) -> Any:
        late = ctx.watermark is not None and ctx.timestamp < ctx.watermark
        return {"k": ctx.key, "what": "late" if late else "", "n": row["v"]}

    made = run(function)
    made.feed(rows_of([("a", 0, 1, 5)]))
    made.advance(10)
    made.feed(rows_of([("a", 0, 2, 5), ("a", 0, 3, 10)]))
    assert [row["what"] for row in made.results] == ["", "late", ""]


def test_at_the_end_event_timers_fire_with_those_that_they_set_and_processing_timers_do_not(run: Any) -> None:
    def function(row: Any, ctx: Any) -> None:
        ctx.timers.event(ctx.timestamp + 5, "first")
        ctx.timers.processing(1)

    def fire(timer: Timer, ctx: Any) -> Any:
        if timer.at < 20:
            ctx.timers.event(timer.at + 6)
        return {"k": ctx.key, "what": f"{timer.at} {timer.kind}", "n": None}

    made = run(function, on_timer=fire)
    made.feed(rows_of([("b", 0, 0, 3), ("a", 0, 0, 1)]))
    made.end()
    assert [(row["k"], row["what"]) for row in made.results] == [
        ("a", "6 event"),
        ("b", "8 event"),
        ("a", "12 event"),
        ("b", "14 event"),
        ("a", "18 event"),
        ("b", "20 event"),
        ("a", "24 event"),
    ]
    assert made.statistic("timers") == 2


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("batch", [False, True])
def test_a_key_that_sets_timers_for_ever_is_an_error_that_names_it(
    run: Any, batch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_state, "TIMERS_OF_A_KEY", 500)
    if batch:
        function: Any = lambda keys, data, ctx: ctx.timers.event_many(keys, data.column("v"))  # noqa: E731
        fire: Any = lambda keys, at, ctx: ctx.timers.event_many(keys, pc.add(at, ahead))  # noqa: E731
    else:
        function = lambda row, ctx: ctx.timers.event(row["v"])  # noqa: E731
        fire = lambda timer, ctx: ctx.timers.event(timer.at + ahead)  # noqa: E731
    ahead = 60_000
    made = run(function, batch=batch, on_timer=fire)
    made.feed(rows_of([("endless", 0, 1, 1)]))
    made.advance(60_000 * 600)  # that far it is no error: time goes on
    assert made.statistic("timers_fired") == 600
    with pytest.raises(UserError, match="'endless'} has set 500 timers after the end of the input"):
        made.end()
    ahead = 0
    made = run(function, batch=batch, on_timer=fire)
    made.feed(rows_of([("endless", 0, 1, 1)]))
    with pytest.raises(UserError, match="'endless'} has set 500 timers that are due at once"):
        made.advance(5)


def test_a_dict_that_is_changed_and_given_again_is_another_row(run: Any) -> None:
    def function(row: Any, ctx: Any) -> Any:
        made = {"k": ctx.key}
        for made["n"] in range(3):
            ctx.side("aside", made)
            yield made

    made = run(function, sides={"aside": {"k": "string", "n": "int64"}})
    made.feed(rows_of([("a", 0, 0, 1)]))
    assert [row["n"] for row in made.results] == [0, 1, 2]
    assert [row["n"] for row in made.sides["aside"]] == [0, 1, 2]


def test_a_processing_timer_set_for_now_fires_at_the_next_poll(run: Any) -> None:
    fired: list[int] = []

    def fire(timer: Timer, ctx: Any) -> None:
        fired.append(ctx.now())
        ctx.timers.processing(ctx.now())

    made = run(lambda row, ctx: ctx.timers.processing(ctx.now() + 500), on_timer=fire)
    assert isinstance(made.parts[0], Polled)
    made.feed(rows_of([("a", 0, 0, 1)]))
    made.pass_time(0.4)
    assert fired == []
    for _ in range(3):
        made.pass_time(0.1)
    assert fired == [1_000_500, 1_000_600, 1_000_700]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("disk", [False, True])
def test_state_is_no_larger_than_what_has_not_expired(run: Any, disk: bool) -> None:
    def function(row: Any, ctx: Any) -> None:
        ctx.state("seen").put(row["v"])
        ctx.list("all").add(row["v"])

    made = run(function, ttl="100ms", disk=disk)
    for step in range(40):
        at = 50 * step
        made.feed(rows_of([(f"key {step} {i}", 0, i, at) for i in range(100)]))
        made.advance(at)
        if step % 10 == 9:
            made.checkpoint()
    if disk:
        made.checkpoint()
        made.checkpoint()
    saved = made.checkpoint()
    reader = saved[0].facts["reader"]
    copy_ = saved_process(reader)
    copy_.open(OperatorContext(schema_of_text(reader["input"])))
    copy_.restore(saved)
    rows = sum(piece.num_rows for piece in copy_.contents())
    assert 400 <= rows <= 700  # two kinds, of the keys of two or three steps
    if not disk:
        assert made.statistic("values") <= 4 * 3 * 100
    made.advance(10_000)
    if not disk:
        assert made.statistic("values") == 0


# Errors


def test_what_a_function_raises_names_step_key_and_row(run: Any) -> None:
    def function(row: Any, ctx: Any) -> Any:
        return {"k": "x", "what": "", "n": 1 // row["v"]}

    made = run(function)
    batch = Batch(rows_of([("a", 0, 1, 1), ("b", 0, 0, 1)]), {("orders", 3): 17})
    with pytest.raises(
        UserError, match=r"function\): ZeroDivisionError: .*; at the key {'k': 'b'}, row 1 of a batch of 2"
    ) as error:
        made.parts[0].process(batch)
    assert "orders[3] before offset 17" in str(error.value)
    fails = run(lambda row, ctx: ctx.timers.event(1), on_timer=lambda timer, ctx: 1 // 0)
    fails.feed(rows_of([("a", 0, 0, 1)]))
    with pytest.raises(UserError, match=r"ZeroDivisionError.*at the key 'a', as Timer.*at=1"):
        fails.advance(5)
    batches = run(lambda keys, data, ctx: data.column("nothing"), batch=True)
    with pytest.raises(UserError, match=r"KeyError: .*nothing.*; a batch of 1 rows"):
        batches.feed(rows_of([("a", 0, 0, 1)]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda row, ctx: {"k": "a", "wat": 1}, "a row has 'wat', which is not a column of its schema .*k, what, n"),
        (lambda row, ctx: {"k": 1}, "its rows do not fit the schema"),
        (lambda row, ctx: 7, "it returned 7; at the key"),
        (lambda row, ctx: "text", "it returned 'text'"),
        (lambda row, ctx: ctx.side("nowhere", {}), "there is no side 'nowhere'.*aside"),
        (lambda row, ctx: ctx.side("aside", {"op": "x"}), "do not fit the side 'aside'"),
        (lambda row, ctx: ctx.state("s").put(object()), "cannot keep this object"),
        (lambda row, ctx: ctx.state(""), "'' cannot be the name of state"),
        (lambda row, ctx: ctx.timers.event(1.5), "a timer is set to 1.5"),
        (lambda row, ctx: ctx.timers.event(2**63), "a timer is set to"),
        (lambda row, ctx: ctx.timers.delete(1, kind="else"), "no kind of timer 'else'"),
    ],
)
def test_a_mistake_says_what_is_wrong(run: Any, function: Any, message: str) -> None:
    made = run(function, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}})
    with pytest.raises(UserError, match=message):
        made.feed(rows_of([("a", 0, 0, 1)]))


@pytest.mark.parametrize("batch", [False, True])
def test_what_goes_wrong_behind_the_step_is_not_the_error_of_its_function(run: Any, batch: bool) -> None:
    def rows(row: Any, ctx: Any) -> Any:
        ctx.timers.event(1)
        return ({"k": "x"} for _ in range(row["v"]))

    def columns(keys: Any, data: Any, ctx: Any) -> Any:
        ctx.timers.event_many(keys, 1)
        n = data.column("v")[0].as_py()
        return pa.table({"k": ["x"] * n, "what": [""] * n, "n": pa.nulls(n, pa.int64())}), [1] * n

    def fire(*given_: Any) -> None:
        side = {"op": [1]} if batch else {"op": 1}
        given_[-1].side("aside", pa.table(side) if batch else side)

    made = run(columns if batch else rows, batch=batch, on_timer=fire, sides={"aside": {"op": "int64"}})

    def closed(*_: Any) -> None:
        raise ConnectionError("the channel is closed")

    part = made.parts[0]
    part.emit = part._context.branches["aside"] = closed
    for n in (1, 20_000):
        with pytest.raises(ConnectionError):
            made.feed(rows_of([("a", 0, n, 1)]))
    made.feed(rows_of([("a", 0, 0, 1)]))
    with pytest.raises(ConnectionError):
        made.advance(5)


def test_timers_need_a_function_and_event_time(run: Any) -> None:
    made = run(lambda row, ctx: ctx.timers.event(1))
    with pytest.raises(UserError, match=r"no on_timer function.*on_timer=f"):
        made.feed(rows_of([("a", 0, 0, 1)]))
    untimed = pa.schema([("k", pa.string()), ("v", pa.int64())])
    made = run(lambda row, ctx: ctx.timers.event(1), input=untimed, on_timer=as_timers_fire)
    with pytest.raises(UserError, match="an event timer needs event time"):
        made.feed(rows_of([("a", 1)], untimed))
    with pytest.raises(UserError, match="values with a ttl need event time"):
        run(lambda row, ctx: None, input=untimed, ttl="1s")
    with pytest.raises(UserError, match="nokey"):
        run(lambda row, ctx: None, keys=("nokey",))


def test_changes_are_no_rows(run: Any) -> None:
    with pytest.raises(UserError, match=r"cannot take changes .*changelog"):
        run(lambda row, ctx: None, input=pa.schema([("k", pa.string()), ("__op", pa.int8())]))


def test_without_event_time_there_are_state_and_processing_timers(run: Any) -> None:
    untimed = pa.schema([("k", pa.string()), ("v", pa.int64())])

    def function(row: Any, ctx: Any) -> Any:
        ctx.timers.processing(ctx.now() + 1000)
        return {"k": ctx.key, "what": str(ctx.timestamp), "n": row["v"]}

    made = run(function, input=untimed, on_timer=lambda timer, ctx: {"k": ctx.key, "what": "fired"})
    made.feed(rows_of([("a", 1)], untimed))
    made.restart(2)
    made.pass_time(2)
    made.end(timed=False)
    assert made.results == [{"k": "a", "what": "None", "n": 1}, {"k": "a", "what": "fired", "n": None}]


async def waits(row: Any, ctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"function": 5}, "5 is neither a function"),
        ({"schema": None}, "schema=None is not a schema"),
        ({"schema": {}}, "no columns"),
        ({"schema": {"__time": "int64"}}, "__time"),
        ({"function": waits}, "cannot be async"),
        ({"ttl": 0}, "not a whole number of milliseconds, 1 or more"),
        ({"on_timer": 3}, "on_timer=3 is not a function"),
        ({"two_inputs": True}, "there is no function for the rows of the other side"),
        ({"right": len}, "right= has no rows"),
        ({"sides": {"x": 1}}, r"sides\['x'\]=1 is not a schema"),
    ],
)
def test_a_description_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        process_spec(**{"function": program, "schema": OUTPUT, **options})


def test_an_object_brings_its_methods(run: Any) -> None:
    class Counts(ProcessClass):
        def __init__(self, step: int) -> None:
            self.step = step

        def process(self, row: Any, ctx: Any) -> None:
            ctx.timers.event(ctx.timestamp + self.step)

        def on_timer(self, timer: Timer, ctx: Any) -> Any:
            return {"k": ctx.key, "what": "fired", "n": timer.at}

    made = run(Counts(5))
    made.feed(rows_of([("a", 0, 0, 1)]))
    made.end()
    assert made.results == [{"k": "a", "what": "fired", "n": 6, TIME_COLUMN: 6}]

    class Plain(ProcessClass):
        def process(self, row: Any, ctx: Any) -> None: ...

    spec = process_spec(Plain(), schema=OUTPUT)
    assert spec.on_timer is None
    assert not isinstance(process_operator(["k"], spec), Polled)
    with pytest.raises(UserError, match="other side"):
        process_spec(Plain(), schema=OUTPUT, two_inputs=True)
    with pytest.raises(UserError, match=r"Plain is a class .*Plain\(\)"):
        process_spec(Plain, schema=OUTPUT)


# Checkpoints

KEYS = pa.schema(
    [("day", pa.date32()), ("at", pa.timestamp("us")), ("f", pa.float64()), ("n", pa.uint64()), ("v", pa.int64())]
)


@pytest.mark.parametrize("disk", [False, True])
def test_keys_of_all_types_come_back_with_state_and_timers(run: Any, disk: bool) -> None:
    schema = KEYS.append(pa.field(TIME_COLUMN, pa.int64()))
    rows = rows_of(
        [
            (1, 10**15, 1.5, 2**64 - 1, 1, 5),
            (None, None, None, None, 2, 6),
            (1, 10**15, float("nan"), 0, 3, 7),
            (1, 10**15, -0.0, 0, 4, 8),
        ],
        schema,
    )
    again = rows.set_column(2, "f", pa.array([1.5, None, float("nan"), 0.0]))

    def function(row: Any, ctx: Any) -> Any:
        before = ctx.state().get()
        ctx.state().put(row["v"])
        ctx.timers.event(100)
        return {"k": repr(ctx.key), "what": "row", "n": before}

    made = run(
        function,
        input=schema,
        keys=["day", "at", "f", "n"],
        on_timer=lambda timer, ctx: {"k": repr(ctx.key), "what": "timer", "n": ctx.state().get()},
        parallelism=2,
        disk=disk,
    )
    made.feed(rows)
    made.restart(3)
    made.restart(1)
    made.feed(again)
    made.advance(200)
    results = made.results
    assert [row["n"] for row in results[:4]] == [None] * 4
    assert sorted(row["n"] for row in results[4:8]) == [1, 2, 3, 4]
    assert sorted((row["what"], row["n"]) for row in results[8:]) == [("timer", n) for n in (1, 2, 3, 4)]
    assert "datetime.date(1970, 1, 2)" in results[0]["k"]


@pytest.mark.parametrize(("disk", "then"), [(False, False), (True, True), (False, True), (True, False)])
def test_a_snapshot_is_of_its_moment_though_it_is_saved_later(run: Any, tmp_path: Path, disk: bool, then: bool) -> None:
    made = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}}, disk=disk)
    made.feed(rows_of([("a", 0, 5, 1), ("a", 1, 50, 1), ("b", 5, 3, 1)]))
    facts, state = made.parts[0].snapshot()
    made.feed(rows_of([("a", 0, 100, 2), ("c", 0, 1, 2), ("a", 3, 49, 2), ("b", 5, 4, 2)]))
    directory = tmp_path / "later"
    directory.mkdir()
    written = state.save(directory)
    assert written == sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    state.discard()
    state.discard()
    new = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}}, disk=then)
    new.parts[0].restore([Saved(directory, json.loads(json.dumps(facts)))])
    new.feed(rows_of([("a", 0, 0, 3), ("c", 0, 0, 3), ("b", 5, 9, 3)]))
    new.advance(60)
    assert [(row["k"], row["what"], row["n"]) for row in new.results] == [
        ("a", "at 3 of None", 5),
        ("c", "at 3 of None", 0),
        ("b", "[3, 1]", None),
        ("b", "[9, 3]", None),
        ("a", "event  51", 6),
    ]


def test_what_expires_after_the_barrier_is_still_in_its_checkpoint(run: Any, tmp_path: Path) -> None:
    made = run(lambda row, ctx: ctx.state().put(row["v"]), ttl=0.01, disk=True)
    part = made.parts[0]
    made.feed(rows_of([("a", 0, 5, 1), ("b", 0, 6, 7)]))
    made.advance(12)
    go_on = Event()
    part._state.values._worker.submit(go_on.wait)  # the thread that writes has other things to do
    facts, state = part.snapshot()
    made.advance(100)
    go_on.set()
    state.save(tmp_path)
    new = run(lambda row, ctx: {"k": ctx.key, "n": ctx.state().get()}, ttl=0.01, disk=True)
    new.parts[0].restore([Saved(tmp_path, facts)])
    new.feed(rows_of([("a", 0, 0, 12), ("b", 0, 0, 16), ("b", 0, 0, 17)]))
    assert [row["n"] for row in new.results] == [None, 6, None]


def test_with_a_directory_a_checkpoint_brings_only_what_has_changed(run: Any) -> None:
    made = run(lambda row, ctx: ctx.state().put(row["v"]), disk=True)
    made.feed(rows_of([(f"key {i}", 0, i, 1) for i in range(3000)]))
    first = made.checkpoint()[0].directory
    made.feed(rows_of([("one more", 0, 1, 2)]))
    second = made.checkpoint()[0].directory
    names = {file.name: file.stat().st_ino for file in first.rglob("*.sst")}
    assert names
    kept = [file for file in second.rglob("*.sst") if names.get(file.name) == file.stat().st_ino]
    assert len(kept) == len(names)


def test_state_may_be_larger_than_its_memory(run: Any) -> None:
    made = run(lambda row, ctx: ctx.state().put("x" * 400), disk=True)
    keys = [f"key {i}" for i in range(8000)]
    for start in range(0, len(keys), 500):
        made.feed(rows_of([(key, 0, 0, 1) for key in keys[start : start + 500]]))
    figures = made.parts[0]._state.values.statistics()
    assert figures["dirty_bytes"] < 4_000_000
    made.restart(1)
    check = run(lambda row, ctx: {"k": ctx.key, "what": ctx.state().get() or "gone"}, disk=True)
    check.parts[0].restore(made.checkpoint())
    check.feed(rows_of([(key, 0, 0, 1) for key in keys[::97]]))
    assert {row["what"] for row in check.results} == {"x" * 400}


@pytest.mark.parametrize("disk", [False, True])
def test_state_is_read_from_outside(run: Any, disk: bool) -> None:
    made = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}}, parallelism=2, disk=disk)
    made.feed(rows_of([("a", 0, 5, 1), ("b", 0, 2, 1), ("b", 4, 1, 1), ("b", 5, 8, 1), ("c", 1, 9, 1)]))
    saved = made.checkpoint()
    facts = saved[0].facts
    assert facts["schema"] == {"kind": "process", "keys": [["k", "string"]], "ttl": None}
    keys = schema_of_text(facts["reader"]["input"])
    for only, expected in [
        (None, {("a", "count", "5"), ("b", "count", "2"), ("b", "fields", '[[1,{"at":1}]]'), ("b", "seen", "[[8,1]]")}),
        (hash_columns([pa.array(["a"])])[0], {("a", "count", "5")}),
    ]:
        reader = saved_process(facts["reader"])
        context = OperatorContext(keys)
        if only is not None:
            context.only = lambda hashes, only=only: pc.equal(hashes, only)  # type: ignore[misc]
        assert reader.open(context).names == ["k", "name", "value"]
        reader.restore(saved)
        table = pa.Table.from_batches(list(reader.contents()))
        assert {tuple(row.values()) for row in table.to_pylist()} == expected
        reader.close()


def test_timers_of_one_time_keep_their_order_over_a_restart(run: Any) -> None:
    def function(row: Any, ctx: Any) -> None:
        if row["op"]:
            ctx.timers.event(row["v"], str(row["op"]))
        else:
            ctx.timers.delete(row["v"], "3")

    made = run(function, on_timer=lambda timer, ctx: {"k": ctx.key, "what": timer.name})
    made.feed(rows_of([("x", 3, 9, 1), ("d", 2, 9, 1), ("c", 2, 9, 1), ("x", 0, 9, 1)]))  # a place becomes free
    made.feed(rows_of([(key, op, 9, 1) for op in (5, 4, 1) for key in "bad"]))
    made.restart(1)
    made.advance(10)
    fired = [(row["k"], row["what"]) for row in made.results]
    assert fired == [
        *[("d", name) for name in "2541"],
        ("c", "2"),
        *[(key, name) for key in "ba" for name in "541"],
    ]


def test_timers_of_other_keys_are_no_state_of_this_program(run: Any) -> None:
    made = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}})
    made.feed(rows_of([("a", 1, 5, 1)]))
    other = run(program, keys=("op",), on_timer=as_timers_fire, sides={"aside": {"op": "int64"}})
    with pytest.raises(CorruptCheckpoint, match="other columns than the program"):
        other.parts[0].restore(made.checkpoint())


def test_a_drained_app_that_goes_on_begins_time_anew(run: Any) -> None:
    made = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}})
    made.feed(rows_of([("a", 0, 5, 100)]))
    made.end()
    made.restart(1)
    made.feed(rows_of([("a", 0, 1, 7), ("a", 1, 4, 7)]))
    made.advance(20)
    assert [(row["what"], row["n"]) for row in made.results] == [
        ("at 100 of None", 5),
        ("at 7 of None", 6),
        ("event  11", 7),
    ]


def test_keys_without_timers_are_not_kept(run: Any) -> None:
    made = run(program, on_timer=as_timers_fire, sides={"aside": {"op": "int64"}})
    for turn in range(20):
        rows = [(f"key {turn} {i}", 1 if i % 10 == 0 else 0, 4, turn) for i in range(100)]
        made.feed(rows_of(rows))
        assert made.statistic("keys") == made.statistic("timers")
        made.advance(turn)
        assert made.statistic("timers") <= 50
    made.end()
    assert made.statistic("keys") == made.statistic("timers") == 0
