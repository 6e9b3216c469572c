"""State by slots of keys: a budget that holds next to nothing changes no result, and a cut is of its barrier whenever it is saved."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sabot._cython.arrow.batch import Batch
from sabot.api.expr import col
from sabot.api.functions import process_spec
from sabot.api.patterns import pattern, step
from sabot.api.windows import HoppingWindow, TumblingWindow
from sabot.engine.operators import cuts
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import DELETE, INSERT, OP_COLUMN, TIME_COLUMN, Operator, OperatorContext, Polled, Saved
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.engine.operators.functions import timed
from sabot.engine.operators.functions.process import process_operator
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_columns import OverColumn
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.engine.operators.keyed.top import TopN
from sabot.engine.operators.patterns.match import Pattern
from sabot.engine.operators.patterns.state import PatternState
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.engine.state import segment_parts
from sabot.engine.state.segments import RowFilter, Segments, read_segments
from sabot.errors import CorruptCheckpoint
from tools.operator_run import OperatorRun

SCHEMA = pa.schema(
    [("key", pa.string()), ("n", pa.int64()), ("note", pa.string()), ("x", pa.float64()), (TIME_COLUMN, pa.int64())]
)
NUMBERS = [
    AggregateColumn("count", "count"),
    AggregateColumn("total", "sum", "n"),
    AggregateColumn("last", "last", "n"),
]
TEXTS = [AggregateColumn("most", "max", "note"), AggregateColumn("all", "collect_list", "n")]
DISTINCT = AggregateColumn("notes", "count_distinct", "note")
CHANGES = SCHEMA.insert(4, pa.field(OP_COLUMN, pa.int8()))
FRAME = [OverColumn("total", "sum", "n"), OverColumn("most", "max", "n"), OverColumn("rows", "count")]
AROUND = [
    OverColumn("nth", "row_number"),
    OverColumn("place", "dense_rank"),
    OverColumn("before", "lag", "note"),
    OverColumn("before_3", "lag", "x", 3, default=-1.0),
    OverColumn("after", "lead", "note", 2),
]
TINY = 20_000  # bytes, of which empty tables take more: some of the keys leave after each batch


def summed(so_far: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "n": so_far["n"] + row["n"]}


RANG = {"key": "string", "at": "int64", "name": "string", "seen": "int64"}


def arm(row: dict[str, Any], ctx: Any) -> None:
    n, at, seen = row["n"], ctx.timestamp, ctx.state("seen")
    seen.put((seen.get() or 0) + 1)
    ctx.timers.event(at + n % 37)
    if n % 3 == 0:
        ctx.timers.event(at + 100 + n % 200, f"far {n % 5}")
    if n % 4 == 0:
        ctx.timers.delete(at + (n - 1) % 37)


def rang(timer: Any, ctx: Any) -> dict[str, Any]:
    if timer.name == "far 1":
        ctx.timers.event(timer.at + 50, "again")
    return {"key": ctx.key, "at": timer.at, "name": timer.name, "seen": ctx.state("seen").get()}


def arm_clocks(row: dict[str, Any], ctx: Any) -> None:
    n, at, seen = row["n"], ctx.timestamp, ctx.state("seen")
    seen.put((seen.get() or 0) + 1)
    ctx.timers.processing(at + n % 37)
    if n % 3 == 0:
        ctx.timers.event(at + 100 + n % 200, f"far {n % 5}")
    if n % 5 == 0:
        ctx.timers.processing(at + 150 + n % 90, "later")
    if n % 4 == 0:
        ctx.timers.delete(at + (n - 1) % 37, kind="processing")


def rang_clocks(timer: Any, ctx: Any) -> dict[str, Any]:
    if timer.name in ("later", "far 2"):
        ctx.timers.processing(timer.at + 40, "again")
    if timer.name == "again" and timer.at % 3 == 0:
        ctx.timers.processing(0, f"at once, for {timer.at}")  # and so at the next poll, wherever it has been meanwhile
    return {"key": ctx.key, "at": timer.at, "name": timer.name, "seen": ctx.state("seen").get()}


def arm_many_clocks(keys: Any, batch: pa.RecordBatch, ctx: Any) -> None:
    n = batch.column("n").to_numpy()
    ctx.state("seen").put_many(keys, batch.column("n"))
    ctx.timers.processing_many(keys, pa.array(ctx.timestamp.to_numpy() + n % 251))
    ctx.timers.delete_many(keys, pa.array(ctx.timestamp.to_numpy() + (n + 1) % 251), kind="processing")


def arm_many(keys: Any, batch: pa.RecordBatch, ctx: Any) -> None:
    n = batch.column("n").to_numpy()
    ctx.state("seen").put_many(keys, batch.column("n"))
    ctx.timers.event_many(keys, pa.array(ctx.timestamp.to_numpy() + n % 251))
    ctx.timers.delete_many(keys, pa.array(ctx.timestamp.to_numpy() + (n + 1) % 251))


def rang_many(keys: Any, at: pa.Int64Array, ctx: Any) -> pa.RecordBatch:
    seen = ctx.state("seen").get_many(keys)
    return pa.record_batch([keys, at, pa.repeat("", len(at)), seen], names=list(RANG))


def timers(function: Any, on_timer: Any, *, ordered: bool = False, **options: Any) -> Operator:
    spec = process_spec(function, schema=RANG, on_timer=on_timer, **options)
    return process_operator(["key"], spec, ordered=ordered)


FALLS = pattern("low", col("n") % 3 == 0, times=(1, 3)).then(
    "other", (col("note") != step("low").last("note")) & (col("n") % 13 == 0)
)
GROUPS = pattern(
    (
        pattern("low", col("n") % 3 == 0)
        | pattern("other", (col("note") >= step("low").max("note")) | (col("n") % 2 == 0))
    ),
    times=(2, None),
).consecutive()
QUIET = pattern("one", col("n") % 4 == 0).then("two", col("n") % 3 == 1).optional().without(col("n") % 11 == 0)


def matches(of: Any, skip: str, last: str, within: str = "300ms") -> Operator:
    measures = [("all", step("low" if last == "other" else "one").list("n")), ("note", step(last).last("note"))]
    return Pattern(["key"], of.within(within), skip, measures)


def groups() -> Operator:
    measures = [("all", step().list("n")), ("note", step("other").last("note", offset=1)), ("low", step("low").count())]
    return Pattern(["key"], GROUPS, ("to_last", "other"), measures, overlap="begun")


KINDS: dict[str, Callable[[], Operator]] = {
    "sessions": lambda: SessionAggregate(40, ["key"], [*NUMBERS, *TEXTS], allowed_lateness_ms=30),
    "count windows": lambda: CountAggregate(3, ["key"], [*NUMBERS, *TEXTS]),
    "ttl": lambda: RunningAggregate(["key"], NUMBERS, ttl_ms=60),
    "deduplicate within": lambda: Deduplicate(["key"], 50),
    "reduce": lambda: Reduce(["key"], summed, 60),
    "patterns": lambda: matches(FALLS, "past_last", "other"),
    "all matches of patterns": lambda: matches(FALLS, "none", "other", "120ms"),
    "patterns that wait": lambda: matches(QUIET, "to_next", "two"),
    "groups of patterns": groups,
    "timers": lambda: timers(arm, rang),
    "timers among rows": lambda: timers(arm, rang, ordered=True),
    "timers of batches": lambda: timers(arm_many, rang_many, batch=True),
    "timers by the clock": lambda: timers(arm_clocks, rang_clocks),
    "timers of batches by the clock": lambda: timers(arm_many_clocks, rang_many, batch=True),
    "frames of rows": lambda: Over(["key"], [*FRAME, OverColumn("sum", "sum", "x")], preceding_rows=4),
    "frames of time": lambda: Over(["key"], FRAME, preceding_ms=70),
    "lag and lead": lambda: Over(["key"], AROUND),
    "top_n": lambda: TopN(["key"], 3, [("note", True)], rank="place"),
    "top_n of ties": lambda: TopN(["key"], 2, [("note", False)], ties="dense_rank"),
}
# Kinds with state beside tables (test_spilled), whose cut copies nothing either
BESIDE: dict[str, Callable[[], Operator]] = {
    "texts": lambda: WindowAggregate(TumblingWindow(100, 0), ["key"], [*NUMBERS, *TEXTS], allowed_lateness_ms=50),
    "texts of hopping windows": lambda: WindowAggregate(HoppingWindow(90, 30), ["key"], [*NUMBERS, *TEXTS]),
    "top_n of windows": lambda: WindowTopN(HoppingWindow(90, 30), ["key"], 2, [("note", True)]),
    "texts of groups": lambda: GroupAggregate(["key"], [*NUMBERS, TEXTS[0], DISTINCT], changes=False),
    "texts of changes": lambda: GroupAggregate(["key"], [*NUMBERS, *TEXTS, DISTINCT], changes=True),
}
each_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut reads a few keys at a time."""
    monkeypatch.setattr(cuts, "_PIECE_SLOTS", 16)


def rows(seed: int, count: int = 2_400, keys: int = 200) -> list[dict[str, Any]]:
    """In order of time; a key comes again soon, or long after."""
    rng = random.Random(seed)
    found = []
    for n in range(count):
        near = rng.random() < 0.5
        key = n // 20 % keys + rng.randrange(5) if near else rng.randrange(keys)
        row = {"key": f"key {key}", "n": n, "note": f"note {n * 7 % 13}", "x": 10 ** rng.uniform(-9, 9)}
        found.append({**row, TIME_COLUMN: 1_000 + n // 4})
    return found


def pieces(seed: int) -> list[pa.RecordBatch]:
    rng, given = random.Random(seed), rows(seed)
    found = []
    while given:
        size = rng.choice([1, 30, 100, 300])
        found.append(pa.RecordBatch.from_pylist(given[:size], schema=SCHEMA))
        given = given[size:]
    return found


def drive(make: Callable[[], Operator], folder: Path, seed: int, *, budget: int | None, most: int) -> tuple[Any, Any]:
    """What came out, and the figures of the state that were seen on the way."""
    rng = random.Random(seed)
    run = OperatorRun(make, SCHEMA, ["key"], folder, 1, budget)
    moved: Counter[str] = Counter()
    for piece in pieces(seed):
        run.feed(piece)
        last = piece.column(TIME_COLUMN)[-1].as_py()
        if rng.random() < 0.6:
            ago = rng.choice([0, 20, 60])
            run.advance(last - ago)
            run.poll(last - ago)
        if rng.random() < 0.1:
            parallelism = rng.randint(1, most)
            for part in run.parts:
                told = part.statistics()
                moved += Counter({name: told[name] for name in ("evicted_total", "faults_total")})
            run.restart(parallelism)
    for _ in range(4):  # timers set others
        run.poll(10**9)
    run.end()
    return Counter(map(repr, run.results)), moved


@pytest.mark.one_in(40, "all kinds keep their state by the same code")
@pytest.mark.parametrize("most", [1, 2], ids=["one subtask", "two subtasks"])
@each_kind
def test_a_tiny_budget_changes_no_result(make: Callable[[], Operator], most: int, tmp_path: Path) -> None:
    wanted, _ = drive(make, tmp_path / "memory", most, budget=None, most=1)
    found, moved = drive(make, tmp_path / "disk", most, budget=TINY, most=most)
    assert moved["evicted_total"] > 60
    assert moved["faults_total"] > 30
    assert found == wanted


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("kind", ["timers", "timers by the clock"])
def test_timers_fire_in_the_same_order_from_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "_DUE_ROWS", 32)
    found = []
    for place in (None, tmp_path / "disk"):
        operator, out = opened(KINDS[kind], place)
        feed(operator, pieces(4))
        told = operator.statistics()
        assert (told["evicted_total"] > 200) is (place is not None)
        operator.advance(2**63 - 1)
        for _ in range(4):
            operator.poll(10**9)
        assert operator.statistics()["timers"] == 0
        operator.close()
        found.append(out)
    assert found[0] == found[1]


def test_a_timer_of_either_clock_brings_its_key_back_whole(tmp_path: Path) -> None:
    """Of keys with timers by both clocks, which are on disk: who fires first takes the other with it."""

    def set_both(row: dict[str, Any], ctx: Any) -> None:
        ctx.timers.event(10**9 + row["n"])
        if row["n"] % 2:
            ctx.timers.processing(50 + row["n"])

    ring = lambda timer, ctx: {"key": ctx.key, "at": timer.at}  # noqa: E731
    operator, out = opened(lambda: timers(set_both, ring), tmp_path / "disk")
    given = pa.RecordBatch.from_pylist(
        [{"key": f"key {n}", "n": n, TIME_COLUMN: 1_000} for n in range(1_000)], schema=SCHEMA
    )
    for start in range(0, 1_000, 100):
        operator.process(Batch(given.slice(start, 100)))
    told = operator.statistics()
    assert told["timers"] == 1_500
    assert told["cold"] > 500
    operator.poll(49)
    operator.poll(450)
    assert [row["at"] for row in out] == list(range(51, 451, 2))
    operator.advance(10**9 + 99)
    assert [row["at"] for row in out[200:]] == list(range(10**9, 10**9 + 100))
    operator.poll(2_000)
    assert [row["at"] for row in out[300:]] == list(range(451, 1_050, 2))
    assert operator.statistics()["timers"] == 900
    operator.close()


@pytest.mark.slow  # half a second of a core
def test_a_pattern_on_disk_is_read_with_its_program_and_without(tmp_path: Path) -> None:
    make = KINDS["all matches of patterns"]
    operator, _ = opened(make, tmp_path / "disk")
    in_memory, _ = opened(make, None)
    for each in (operator, in_memory):
        feed(each, pieces(6)[:10])
    wanted = Counter(repr(row) for rows in in_memory.contents() for row in rows.to_pylist())
    assert len(wanted) > 50
    assert operator.statistics()["cold"] > 20
    assert Counter(repr(row) for rows in operator.contents() for row in rows.to_pylist()) == wanted
    facts, cut = operator.snapshot()
    each = saved(cut, facts, tmp_path / "saved")
    reader = PatternState(["key"], ["low", "other"])
    reader.open(OperatorContext(SCHEMA))
    reader.restore([each])
    assert Counter(repr(row) for rows in reader.contents() for row in rows.to_pylist()) == wanted
    for one in (operator, in_memory):
        one.close()


def test_partial_matches_that_no_pattern_has_are_refused(tmp_path: Path) -> None:
    make = KINDS["patterns"]
    operator, _ = opened(make, None)
    feed(operator, pieces(6)[:10])
    facts, cut = operator.snapshot()
    each = saved(cut, facts, tmp_path / "saved")
    operator.close()
    file = tmp_path / "saved" / "matches.arrow"
    with pa.ipc.open_stream(file.read_bytes()) as reader:
        rows = reader.read_all().combine_chunks().to_batches()[0]
    found = rows.column("nodes").to_pylist()
    found[0][0]["prev"] = len(found[0])  # a node of the next key
    rows = rows.set_column(
        rows.schema.get_field_index("nodes"),
        rows.schema.field("nodes"),
        pa.array(found, rows.schema.field("nodes").type),
    )
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, rows.schema) as writer:
        writer.write_batch(rows)
    operator, _ = opened(make, None)
    with pytest.raises(CorruptCheckpoint, match="does not have so many nodes"):
        operator.restore([each])
    operator.close()


def opened(make: Callable[[], Operator], directory: Path | None) -> tuple[Operator, list[Any]]:
    out: list[Any] = []
    operator = make()
    operator.emit = lambda batch: out.extend(batch.taken().to_pylist())
    if directory is not None:
        directory.mkdir()
    schema = CHANGES if make is BESIDE["texts of changes"] else SCHEMA
    operator.open(OperatorContext(schema, directory=directory, memory_budget=TINY))
    return operator, out


def changed(piece: pa.RecordBatch) -> pa.RecordBatch:
    """The rows, of which each third is taken away again."""
    added = [{**row, OP_COLUMN: INSERT} for row in piece.to_pylist()]
    return pa.RecordBatch.from_pylist([*added, *({**row, OP_COLUMN: DELETE} for row in added[::3])], schema=CHANGES)


def feed(operator: Operator, given: list[pa.RecordBatch]) -> None:
    for number, piece in enumerate(given):
        operator.process(Batch(piece))
        if number % 3 == 2:
            now = piece.column(TIME_COLUMN)[-1].as_py() - 10
            operator.advance(now)
            if isinstance(operator, Polled):
                operator.poll(now)


def saved(cut: Any, facts: dict[str, Any], directory: Path) -> Saved:
    directory.mkdir()
    cut.save(directory)
    cut.discard()
    return Saved(directory, json.loads(json.dumps(facts)), own=True)


def ended(operator: Operator, out: list[Any]) -> Counter[str]:
    operator.advance(2**63 - 1)
    for _ in range(4 if isinstance(operator, Polled) else 0):
        operator.poll(10**9)
    operator.finish()
    operator.close()
    return Counter(map(repr, out))


@pytest.mark.one_in(30, "all kinds keep their state by the same code; a second of a core each")
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "directory"])
@pytest.mark.parametrize("make", [*KINDS.values(), *BESIDE.values()], ids=[*KINDS, *BESIDE])
def test_a_cut_is_of_its_barrier(make: Callable[[], Operator], on_disk: bool, tmp_path: Path) -> None:
    """Two cuts are open at once: one is saved beside the rows that come, the other after the operator was closed."""
    given = pieces(3)
    if make is BESIDE["texts of changes"]:
        given = [changed(piece) for piece in given]
    half, rest = given[: len(given) // 2], given[len(given) // 2 :]
    operator, out = opened(make, tmp_path / "before" if on_disk else None)
    feed(operator, half)
    facts, first = operator.snapshot()
    _, second = operator.snapshot()
    out.clear()
    kept: list[Saved] = []
    saver = threading.Thread(target=lambda: kept.append(saved(first, facts, tmp_path / "first")))
    saver.start()
    feed(operator, rest)
    wanted = ended(operator, out)
    saver.join()
    kept.append(saved(second, facts, tmp_path / "second"))
    assert wanted
    for number, each in enumerate(kept):
        for place in (None, tmp_path / f"after {number}"):  # state moves between memory and disk at a restore
            operator, out = opened(make, place)
            operator.restore([each])
            feed(operator, rest)
            assert ended(operator, out) == wanted


def test_a_save_that_fails_can_begin_again(tmp_path: Path) -> None:
    make = KINDS["sessions"]
    given = pieces(5)
    operator, out = opened(make, None)
    feed(operator, given[:20])
    reads = 0
    state: Any = operator
    rows_of = state._state.rows_of

    def full(slots: pa.Int32Array) -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise OSError("No space left on device")
        return rows_of(slots)

    state._state.rows_of = full
    facts, cut = operator.snapshot()
    assert cut is not None
    (tmp_path / "failed").mkdir()
    with pytest.raises(OSError, match="No space"):
        cut.save(tmp_path / "failed")
    out.clear()
    feed(operator, given[20:])
    wanted = ended(operator, out)
    each = saved(cut, facts, tmp_path / "saved")
    operator, out = opened(make, None)
    operator.restore([each])
    feed(operator, given[20:])
    assert ended(operator, out) == wanted


# Segments


def batch(numbers: list[int]) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(numbers), "all": pa.array([[n, n + 1] for n in numbers])})


def values(found: Any) -> list[int]:
    return sorted(n for rows in found for n in rows.column("n").to_pylist())


def test_rows_are_taken_by_hash_and_by_time(tmp_path: Path) -> None:
    segments = Segments(batch([1]).schema, tmp_path / "cold")
    for start in range(0, 100, 10):
        numbers = list(range(start, start + 10))
        hashes = np.array([n // 2 for n in numbers], np.uint64)  # two rows a key
        segments.write([(batch(numbers), hashes, np.array([1_000 - n for n in numbers]))])
    assert len(segments) == 100
    assert values(segments.take(np.array([3, 3, 49, 77], np.uint64))) == [6, 7, 98, 99]
    assert values(segments.take(np.array([3], np.uint64))) == []
    assert values(segments.due(907)) == [92, 93, 94, 95, 96, 97]
    assert values(segments.due(907)) == []
    cut = segments.cut()
    left = values(segments.read())
    assert len(left) == 90
    assert values(segments.take_all()) == left
    (tmp_path / "saved").mkdir()
    told = json.loads(json.dumps(cut.facts))
    cut.save(tmp_path / "saved")
    assert values(read_segments(tmp_path / "saved", segments.schema, told)) == left
    again = Segments(segments.schema, tmp_path / "again")
    again.link(tmp_path / "saved", told)
    assert values(again.due(2_000)) == left
    segments.close()
    again.close()
    assert not list((tmp_path / "cold").iterdir())
    assert not list((tmp_path / "again").iterdir())
    assert values(read_segments(tmp_path / "saved", segments.schema, told)) == left


def test_a_key_is_whole_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_parts, "_PIECE_ROWS", 4)
    rng = random.Random(7)
    keys = sorted(rng.choices(range(12), k=60))
    segments = Segments(batch([1]).schema, tmp_path / "cold")
    segments.write([(batch(keys), np.array(keys, np.uint64), None)])
    gone = [key for key in set(keys) if key % 3 == 0]
    segments.take(np.array(gone, np.uint64))
    pieces = [piece.column("n").to_pylist() for piece in segments.take_all()]
    assert [key for piece in pieces for key in piece] == [key for key in keys if key % 3]
    assert all(len(piece) >= 4 for piece in pieces[:-1])
    assert len(pieces) > 2
    assert not any(one[-1] == other[0] for one, other in pairwise(pieces))
    segments.close()


def test_segments_are_few_and_the_gone_rows_of_sparse_ones_leave_the_disk(tmp_path: Path) -> None:
    def keep(keys: Any) -> None:
        segments.write([(pa.record_batch({"n": keys}), keys.astype(np.uint64), None)])

    segments = Segments(pa.schema([("n", pa.int64())]), tmp_path / "cold")
    most, rows = 0, 20 * 2_100  # from about 2,000 rows on segments have levels
    for start in range(0, rows, 2_100):
        keep(np.arange(start, start + 2_100))
        most = max(most, len(list((tmp_path / "cold").iterdir())))
    assert 3 < most <= 7, "three of each level"
    every = np.arange(rows)
    segments.take(every[every % 5 > 0].astype(np.uint64))
    on_disk = [sum(count for _, count in segments.cut().facts)]
    keep(np.array([rows]))
    on_disk.append(sum(count for _, count in segments.cut().facts))
    left = [*range(0, rows, 5), rows]
    assert (on_disk, values(segments.read())) == ([rows, len(left)], left)
    segments.close()


@pytest.mark.one_in(4, "a third of a second of a core each")
@pytest.mark.parametrize("seed", range(4))
def test_segments_of_many_parts_keep_what_a_dict_keeps(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_parts, "_PIECE_ROWS", 5)
    monkeypatch.setattr(segment_parts, "_SAMPLE", 1)
    rng = random.Random(seed)
    segments = Segments(batch([1]).schema, tmp_path / "cold")
    kept: dict[int, tuple[int, int]] = {}  # by number: its key's hash, and when it is due
    numbers, now = iter(range(10_000)), 0

    def gone(found: Any) -> list[int]:
        rows = values(found)
        for number in rows:
            del kept[number]
        return rows

    def save(segments: Segments) -> tuple[Path, Any]:
        place = tmp_path / f"saved{rng.random()}"
        place.mkdir()
        cut = segments.cut()
        told = json.loads(json.dumps(cut.facts))
        cut.save(place)
        segments.close()
        return place, told

    def shared(place: Path, told: Any, of: int, number: int) -> Segments:
        """The rows of every `of`th key."""
        mine = RowFilter(
            [0], lambda rows: pa.array([kept.get(n, (0, 0))[0] % of == number for n in rows.column(0).to_pylist()])
        )
        part = Segments(batch([1]).schema, tmp_path / f"cold {of} {number}")
        part.copy(place, told, mine)
        assert values(part.read()) == sorted(n for n, (each, _) in kept.items() if each % of == number)
        return part

    for _ in range(60):
        step = rng.choice(["write", "write", "take", "due", "restart", "shared"])
        hashes = {which for which, _ in kept.values()}
        if step == "write":
            fresh = sorted(set(rng.sample(range(200), 12)) - hashes)
            rows = [(number, each) for each in fresh for number, _ in zip(numbers, range(3), strict=False)]
            due = [now + rng.randrange(1, 60) for _ in rows]
            kept |= {number: (each, at) for (number, each), at in zip(rows, due, strict=True)}
            some = batch([number for number, _ in rows])
            segments.write([(some, np.array([each for _, each in rows], np.uint64), np.array(due))])
        elif step == "take":
            asked = rng.sample(range(200), 20)
            wanted = sorted(number for number, (each, _) in kept.items() if each in asked)
            assert gone(segments.take(np.array(asked, np.uint64))) == wanted
        elif step == "due":
            now += rng.randrange(8)
            ripe = {each for each, at in kept.values() if at <= now}
            wanted = sorted(number for number, (each, _) in kept.items() if each in ripe)
            assert gone(segments.due(now)) == wanted
            assert (segments.least_due or 10**9) == min((at for _, at in kept.values()), default=10**9)
        elif step == "restart":
            place, told = save(segments)
            assert values(read_segments(place, segments.schema, told)) == sorted(kept)
            segments = Segments(batch([1]).schema, tmp_path / "cold")
            segments.link(place, told)
        else:
            place, told = save(segments)
            parts = [save(shared(place, told, 3, number)) for number in range(3)]
            segments = Segments(batch([1]).schema, tmp_path / "cold")
            for part in parts:
                segments.copy(*part, RowFilter([1], lambda rows: pa.array([True] * rows.num_rows)))
        assert len(segments) == len(kept)
    assert values(segments.read()) == sorted(kept)
    segments.close()


def test_no_more_than_a_piece_of_a_merge_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_parts, "_PIECE_ROWS", 1_000)
    segments = Segments(pa.schema([("n", pa.int64())]), tmp_path / "cold")
    rng = np.random.default_rng(1)
    hashes = rng.permutation(20_000).astype(np.uint64) << np.uint64(40)
    for some in np.split(hashes, 4):
        segments.write([(pa.record_batch({"n": some.astype(np.int64)}), some, None)])
    (file,) = (tmp_path / "cold").iterdir()
    with pa.OSFile(str(file), "rb") as source:
        reader = pa.ipc.open_file(source)
        sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
    assert sum(sizes) == 20_000
    assert max(sizes) <= 1_500
    segments.close()


def test_damage_is_named(tmp_path: Path) -> None:
    segments = Segments(batch([1]).schema, tmp_path / "cold")
    segments.write([(batch([1, 2]), np.array([5, 6], np.uint64), None)])
    cut = segments.cut()
    (tmp_path / "saved").mkdir()
    told = cut.facts
    cut.save(tmp_path / "saved")
    other = pa.schema([("n", pa.string())])
    with pytest.raises(CorruptCheckpoint, match="other columns"):
        list(read_segments(tmp_path / "saved", other, told))
    with pytest.raises(CorruptCheckpoint, match="other segments"):
        list(read_segments(tmp_path / "saved", segments.schema, [["000000000009.arrow", 2]]))
    (tmp_path / "saved" / told[0][0]).unlink()
    with pytest.raises(CorruptCheckpoint, match="saved"):
        list(read_segments(tmp_path / "saved", segments.schema, told))
