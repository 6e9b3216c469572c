"""Running aggregates, reduce, deduplicate and windows by count, beside plain Python twins and DuckDB.

What a key's rows give must not depend on where batches end, on restarts, or on the number of subtasks.
"""

import datetime
import decimal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sabot
from sabot import App
from sabot.api.stream import Stream
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import TIME_COLUMN, Operator, OperatorContext
from sabot.engine.operators.keyed.running import CountAggregate, Deduplicate, Reduce, RunningAggregate
from sabot.errors import CorruptCheckpoint, UserError
from sabot.testing import END, ScriptedSource
from tools.operator_run import OperatorRun

FEW = settings(max_examples=25, deadline=None)

SCHEMA = pa.schema([("user", pa.string()), ("x", pa.float64()), ("tag", pa.string()), (TIME_COLUMN, pa.int64())])
UNTIMED = pa.schema(list(SCHEMA)[:3])
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("some", "count", "x"),
    AggregateColumn("total", "sum", "x"),
    AggregateColumn("least", "min", "x"),
    AggregateColumn("start", "first", "x"),
    AggregateColumn("end", "last", "x"),
]
EXTRAS = [AggregateColumn("tags", "count_distinct", "tag"), AggregateColumn("all", "collect_list", "x")]

Row = tuple[Any, Any, Any, int]


def batch_of(rows: list[Row], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    columns = zip(zip(*rows, strict=True), schema, strict=False)
    return pa.RecordBatch.from_arrays([pa.array(column, field.type) for column, field in columns], schema=schema)


def aggregates(rows: list[Row], *, timed: bool = True) -> dict[str, Any]:
    """CALLS over the rows, in order of coming."""
    values = [x for _, x, _, _ in rows if x is not None]
    order = [row[3] if timed else place for place, row in enumerate(rows)]
    return {
        "n": len(rows),
        "some": len(values),
        "total": sum(values) if values else None,
        "least": min(values, default=None),
        "start": rows[order.index(min(order))][1],
        "end": rows[len(order) - 1 - order[::-1].index(max(order))][1],
    }


ROW = st.tuples(
    st.sampled_from(["ann", "bob", "", None]),
    st.none() | st.integers(-64, 64).map(lambda n: n / 64),
    st.sampled_from(["r", "g", None]),
    st.integers(0, 60),
)
STEPS = st.lists(
    st.tuples(st.lists(ROW, min_size=1, max_size=40), st.integers(-20, 60), st.sampled_from([0, 0, 1, 3])), max_size=5
)
SIZES = st.sampled_from([1, 4, 1000])


def drive(make: Callable[[], Operator], steps: Any, size: int) -> tuple[OperatorRun, list[Row | int]]:
    """-> (the run at its end, its rows and watermarks in order)."""
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(make, SCHEMA, ["user"], Path(directory))
        events: list[Row | int] = []
        for part, watermark, restart in steps:
            run.feed(batch_of(part), size)
            run.advance(watermark)
            events += [*part, watermark]
            if restart:
                run.restart(restart)
        run.end()
    return run, events


def rows_of(events: list[Row | int]) -> list[Row]:
    return [event for event in events if isinstance(event, tuple)]


def same(found: list[dict[str, Any]], want: list[dict[str, Any]]) -> bool:
    """Equal but for the order in which subtasks come."""
    return sorted(found, key=repr) == sorted(want, key=repr)


# Running aggregates


@FEW
@given(STEPS, SIZES)
def test_running_aggregates_follow_each_row_of_their_key(steps: Any, size: int) -> None:
    run, events = drive(lambda: RunningAggregate(["user"], CALLS), steps, size)
    seen: dict[Any, list[Row]] = {}
    want = []
    for row in rows_of(events):
        seen.setdefault(row[0], []).append(row)
        want.append({"user": row[0], **aggregates(seen[row[0]]), TIME_COLUMN: row[3]})
    assert same(run.results, want)


@FEW
@given(STEPS, SIZES)
def test_running_aggregates_with_a_ttl_start_anew_after_a_silence(steps: Any, size: int) -> None:
    ttl = 15
    run, events = drive(lambda: RunningAggregate(["user"], CALLS, ttl_ms=ttl), steps, size)
    seen: dict[Any, list[Row]] = {}
    want = []
    for row in events:
        if isinstance(row, int):
            seen = {user: known for user, known in seen.items() if max(time for *_, time in known) + ttl > row}
            continue
        known = seen.get(row[0], [])
        if row[3] >= max((time for *_, time in known), default=0) + ttl:
            known = []
        seen[row[0]] = [*known, row]
        want.append({"user": row[0], **aggregates(seen[row[0]]), TIME_COLUMN: row[3]})
    assert same(run.results, want)
    assert run.statistic("keys") == 0  # the end of time is later than any ttl


def test_running_aggregates_agree_with_duckdb(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    count = 30_000
    table = pa.table(
        {
            "user": pa.array([f"u{n}" for n in rng.zipf(1.3, count) % 500]),
            "x": pa.array(rng.integers(-6400, 6400, count) / 64, mask=rng.random(count) < 0.1),
            "tag": pa.array(rng.choice(["r", "g"], count)),
            TIME_COLUMN: pa.array(np.arange(count)),
        }
    )
    calls = [
        AggregateColumn("n", "count", where="red"),
        AggregateColumn("total", "sum", "x"),
        AggregateColumn("mean", "mean", "x"),
    ]
    data = table.combine_chunks().to_batches()[0]
    data = data.add_column(3, "red", pa.array(np.asarray(table.column("tag")) == "r"))
    run = OperatorRun(lambda: RunningAggregate(["user"], calls), data.schema, ["user"], tmp_path, 2)
    run.feed(data.slice(0, 17_000), 4_096)
    run.restart(3)
    run.feed(data.slice(17_000), 5_000)
    query = f"""
        select "user", count(*) filter (tag = 'r') over w, sum(x) over w, avg(x) over w, {TIME_COLUMN} from rows
        window w as (partition by "user" order by {TIME_COLUMN} rows unbounded preceding) order by {TIME_COLUMN}
    """
    connection = duckdb.connect()
    connection.register("rows", table)
    found = sorted((tuple(row.values()) for row in run.results), key=lambda row: row[-1])
    want = connection.execute(query).fetchall()
    assert [row[:3] + row[4:] for row in found] == [row[:3] + row[4:] for row in want]
    means = [(row[3], other[3]) for row, other in zip(found, want, strict=True)]
    assert all(a == b or a == pytest.approx(b, rel=1e-12) for a, b in means)


def test_keys_that_fall_silent_leave_no_memory_behind(tmp_path: Path) -> None:
    run = OperatorRun(lambda: RunningAggregate(["user"], CALLS, ttl_ms=100), SCHEMA, ["user"], tmp_path)
    sizes = []
    for step in range(60):
        run.feed(batch_of([(f"{step}.{n}", 1.0, None, step * 100 + n % 100) for n in range(400)]))
        run.advance(step * 100)
        sizes.append(run.statistic("bytes"))
    assert run.statistic("keys") <= 800
    assert max(sizes[30:]) <= 1.2 * max(sizes[:30])


def test_aggregates_without_a_result_after_each_row_are_named_when_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tags \(count_distinct of tag\), all \(collect_list of x\).*window"):
        RunningAggregate(["user"], CALLS + EXTRAS)
    texts = [AggregateColumn("least", "min", "tag")]
    with pytest.raises(UserError, match=r"least \(min of tag\).*window"):
        OperatorRun(lambda: RunningAggregate(["user"], texts), SCHEMA, ["user"], tmp_path)
    with pytest.raises(UserError, match="event time"):
        OperatorRun(lambda: RunningAggregate(["user"], CALLS, ttl_ms=1), UNTIMED, ["user"], tmp_path)
    with pytest.raises(UserError, match="ttl: 0 ms"):
        RunningAggregate(["user"], CALLS, ttl_ms=0)


# Windows by count


@FEW
@given(STEPS, SIZES, st.integers(1, 5), st.booleans())
def test_every_so_many_rows_of_a_key_are_a_window_and_the_rest_comes_at_the_end(
    steps: Any, size: int, count: int, extras: bool
) -> None:
    calls = CALLS + EXTRAS if extras else CALLS
    run, events = drive(lambda: CountAggregate(count, ["user"], calls), steps, size)
    by_key: dict[Any, list[Row]] = {}
    for row in rows_of(events):
        by_key.setdefault(row[0], []).append(row)
    want = []
    for user, own in by_key.items():
        for start in range(0, len(own), count):
            part = own[start : start + count]
            result = aggregates(part)
            if extras:
                result["tags"] = len({tag for _, _, tag, _ in part if tag is not None})
                result["all"] = [x for _, x, _, _ in sorted(part, key=lambda row: row[3])]
            first, last = min(row[3] for row in part), max(row[3] for row in part)
            bounds = {"window_start": first, "window_end": last + 1}
            want.append({"user": user, **bounds, **result, TIME_COLUMN: last})
    found = run.results
    for row in found:
        for name in ("window_start", "window_end"):
            row[name] = round(row[name].timestamp() * 1000)
    assert same(found, want)
    assert run.statistic("keys") == run.statistic("windows") == 0


def test_windows_by_count_without_event_time_have_no_bounds(tmp_path: Path) -> None:
    calls = [AggregateColumn("n", "count"), AggregateColumn("start", "first", "x")]
    run = OperatorRun(lambda: CountAggregate(2, ["user"], calls), UNTIMED, ["user"], tmp_path)
    rows = [("a", 1.0, None, 0), ("b", 2.0, None, 0), ("a", 3.0, None, 0), ("a", 4.0, None, 0)]
    run.feed(batch_of(rows, UNTIMED), 3)
    assert run.results == [{"user": "a", "n": 2, "start": 1.0}]
    run.restart(2)
    run.end(timed=False)
    assert same(run.results[1:], [{"user": "a", "n": 1, "start": 4.0}, {"user": "b", "n": 1, "start": 2.0}])


@pytest.mark.slow  # half a second of a core
def test_finished_windows_by_count_leave_no_memory_behind(tmp_path: Path) -> None:
    run = OperatorRun(lambda: CountAggregate(2, ["user"], CALLS), SCHEMA, ["user"], tmp_path)
    sizes = []
    for step in range(40):
        run.feed(batch_of([(f"{step}.{n // 2}", 1.0, None, step) for n in range(1000)]), 333)
        assert run.statistic("keys") == run.statistic("windows") == 0
        sizes.append(run.statistic("bytes"))
    assert len(run.results) == 20_000
    assert max(sizes[20:]) <= 1.2 * max(sizes[:20])


# Deduplicate


@FEW
@given(STEPS, SIZES, st.sampled_from([None, 1, 12]))
def test_the_first_row_of_a_key_passes(steps: Any, size: int, within: int | None) -> None:
    run, events = drive(lambda: Deduplicate(["user"], within), steps, size)
    passed: dict[Any, int] = {}
    want = []
    for row in events:
        if isinstance(row, int):
            passed = {user: first for user, first in passed.items() if within is None or first + within > row}
            continue
        first = passed.get(row[0])
        if first is None or (within is not None and row[3] >= first + within):
            passed[row[0]] = row[3]
            want.append(dict(zip(SCHEMA.names, row, strict=True)))
    assert same(run.results, want)
    assert run.statistic("dropped_rows") == len(rows_of(events)) - len(want)


def test_deduplicate_passes_a_selection_of_the_same_data(tmp_path: Path) -> None:
    run = OperatorRun(lambda: Deduplicate(["user", "tag"]), SCHEMA, ["user"], tmp_path)
    rows = batch_of([("a", 1.0, "r", 0), ("a", 2.0, "g", 0), ("a", 3.0, "r", 0), (None, 4.0, None, 0)])
    run.feed(rows)
    [batch] = run.batches
    assert batch.data.column(1).buffers()[1].address == rows.column(1).buffers()[1].address
    assert batch.selection.to_pylist() == [0, 1, 3]
    run.feed(rows)
    assert len(run.batches) == 1
    run.feed(batch_of([("b", 1.0, "r", 0)]))
    assert run.batches[1].selection is None


def test_keys_that_may_pass_again_leave_no_memory_behind(tmp_path: Path) -> None:
    run = OperatorRun(lambda: Deduplicate(["user"], 100), SCHEMA, ["user"], tmp_path)
    sizes = []
    for step in range(60):
        run.feed(batch_of([(f"{step}.{n // 2}", 1.0, None, step * 100) for n in range(800)]))
        run.advance(step * 100)
        sizes.append(run.statistic("bytes"))
    assert run.statistic("keys") == 400
    assert len(run.results) == 60 * 400
    assert max(sizes[30:]) <= 1.2 * max(sizes[:30])


def test_deduplicate_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="within: 0 ms"):
        Deduplicate(["user"], 0)
    with pytest.raises(UserError, match="event time"):
        OperatorRun(lambda: Deduplicate(["user"], 10), UNTIMED, ["user"], tmp_path)
    with pytest.raises(UserError, match="'who'"):
        OperatorRun(lambda: Deduplicate(["who"]), SCHEMA, ["who"], tmp_path)


# Reduce


def add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    assert set(a) == set(b) == {"user", "x", "tag"}
    return {"x": (a["x"] or 0.0) + (b["x"] or 0.0), "tag": b["tag"] or a["tag"]}


@FEW
@given(STEPS, SIZES, st.sampled_from([None, 15]))
def test_reduce_gives_what_each_row_makes_of_those_before(steps: Any, size: int, ttl: int | None) -> None:
    run, events = drive(lambda: Reduce(["user"], add, ttl), steps, size)
    state: dict[Any, Any] = {}
    latest: dict[Any, int] = {}
    want = []
    for event in events:
        if isinstance(event, int):
            over = [user for user in latest if ttl and latest[user] + ttl <= event]
        else:
            user, x, tag, time = event
            over = [user] if ttl and user in latest and time >= latest[user] + ttl else []
        for gone in over:
            del state[gone], latest[gone]
        if isinstance(event, int):
            continue
        row = {"user": user, "x": x, "tag": tag}
        state[user] = {"user": user, **add(state[user], row)} if user in state else row
        latest[user] = max(time, latest.get(user, time))
        want.append({**state[user], TIME_COLUMN: time})
    assert same(run.results, want)


def test_reduce_keeps_every_type_of_the_input_and_rows_that_the_function_changes(tmp_path: Path) -> None:
    schema = pa.schema(
        [
            ("k", pa.int32()),
            ("at", pa.timestamp("us", "UTC")),
            ("seen", pa.list_(pa.int64())),
            ("d", pa.decimal128(9, 2)),
        ]
    )

    def latest(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        a["seen"].extend(b["seen"])
        a["at"] = max(a["at"], b["at"])
        a["d"] += b["d"]
        return a

    day = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
    rows = [{"k": 1, "at": day.replace(day=n), "seen": [n], "d": f"{n}.25"} for n in (3, 1, 2)]
    for row in rows:
        row["d"] = decimal.Decimal(row["d"])
    run = OperatorRun(lambda: Reduce(["k"], latest), schema, ["k"], tmp_path)
    for part in rows:
        run.feed(pa.RecordBatch.from_pylist([part], schema=schema))
        run.restart(1)
    whole = OperatorRun(lambda: Reduce(["k"], latest), schema, ["k"], tmp_path / "none")
    whole.feed(pa.RecordBatch.from_pylist(rows, schema=schema))
    assert run.results == whole.results
    assert [row["seen"] for row in whole.results] == [[3], [3, 1], [3, 1, 2]]
    assert [row["at"].day for row in whole.results] == [3, 3, 3]
    assert [str(row["d"]) for row in whole.results] == ["3.25", "4.50", "6.75"]


def test_a_reduced_number_is_the_same_after_a_restart(tmp_path: Path) -> None:
    """The function got its own float64 back for a float32, and its own 3.0 for an int64, until a restart."""
    schema = pa.schema([("k", pa.int32()), ("x", pa.float32()), ("n", pa.int64()), ("said", pa.string())])

    def summed(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        return {"x": a["x"] + b["x"], "n": (a["n"] + b["n"]) / 1, "said": f"{a['x']!r} {a['n']!r}"}

    rows = pa.RecordBatch.from_pylist([{"k": 1, "x": 0.1 * n, "n": n} for n in range(1, 20)], schema=schema)
    found = []
    for restarts in (False, True):
        run = OperatorRun(lambda: Reduce(["k"], summed), schema, ["k"], tmp_path / str(restarts))
        for at in range(rows.num_rows):
            run.feed(rows.slice(at, 1))
            if restarts:
                run.restart(1)
        found.append(run.results)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"x": "much"}, r"'x' of the key {'user': 'a'} is double, and cannot be 'much'"),
        ({"x": 1.0, "y": 2}, r"has 'y', which is not a column.*user, x, tag"),
        (None, r"returned None for the key {'user': 'a'}"),
    ],
)
def test_what_does_not_fit_the_columns_names_key_and_field(tmp_path: Path, result: Any, message: str) -> None:
    run = OperatorRun(lambda: Reduce(["user"], lambda a, b: result), SCHEMA, ["user"], tmp_path)
    with pytest.raises(UserError, match=message):
        run.feed(batch_of([("a", 1.0, None, 0), ("a", 2.0, None, 0)]))


def test_an_error_of_the_users_function_says_at_which_key(tmp_path: Path) -> None:
    run = OperatorRun(lambda: Reduce(["user"], lambda a, b: a["z"]), SCHEMA, ["user"], tmp_path)
    with pytest.raises(UserError, match=r"reduce: .*lambda.* failed at the key {'user': 'a'}: KeyError: 'z'") as caught:
        run.feed(batch_of([("a", 1.0, None, 0), ("a", 2.0, None, 0)]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    run = OperatorRun(lambda: Reduce(["user"], add), SCHEMA, ["user"], tmp_path)
    run.feed(batch_of([("a", 1.0, "r", 0)]))
    saved = run.checkpoint()
    other = Reduce(["tag"], add)
    other.open(OperatorContext(pa.schema([("x", pa.float64()), ("tag", pa.string())])))
    with pytest.raises(CorruptCheckpoint, match="other columns"):
        other.restore(saved)


# State that does not fit the memory


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("make", [lambda: RunningAggregate(["user"], CALLS[:3]), lambda: Deduplicate(["user"])])
def test_state_beyond_the_memory_budget_gives_the_same(tmp_path: Path, make: Callable[[], Operator]) -> None:
    rng = np.random.default_rng(5)
    small = OperatorRun(make, UNTIMED, ["user"], tmp_path / "small", memory_budget=2_000_000)
    whole = OperatorRun(make, UNTIMED, ["user"], tmp_path / "whole")
    for step in range(8):
        users = pa.array([f"user {n}" for n in rng.integers(step * 5_000, step * 5_000 + 20_000, 15_000)])
        rows = pa.RecordBatch.from_arrays(
            [users, pa.array(np.ones(15_000)), pa.nulls(15_000, pa.string())], schema=UNTIMED
        )
        for run in (small, whole):
            run.feed(rows, 4_000)
        if step == 5:
            assert small.statistic("evicted_total") > 0
            small.restart(1)
    assert pa.Table.from_batches([b.taken() for b in small.batches]) == pa.Table.from_batches(
        [b.taken() for b in whole.batches]
    )
    for run in (small, whole):
        for part in run.parts:
            part.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunningAggregate(["user"], CALLS),
        lambda: CountAggregate(
            40,
            ["user"],
            [*CALLS, AggregateColumn("first_tag", "first", "tag"), AggregateColumn("last_tag", "last", "tag")],
        ),
    ],
)
def test_without_event_time_first_and_last_are_by_coming_also_after_a_restart(
    tmp_path: Path, make: Callable[[], Operator]
) -> None:
    rows = [("a", float(n), f"t{n}", 0) for n in range(30)]
    run = OperatorRun(make, UNTIMED, ["user"], tmp_path)
    run.feed(batch_of(rows[:20], UNTIMED))
    run.restart(1)
    run.feed(batch_of(rows[20:29], UNTIMED), 2)
    run.restart(1)
    run.feed(batch_of(rows[29:], UNTIMED))
    run.end(timed=False)
    last = run.results[-1]
    assert (last["n"], last["start"], last["end"]) == (30, 0.0, 29.0)
    assert (last.get("first_tag", "t0"), last.get("last_tag", "t29")) == ("t0", "t29")


NUMBERS = [f"c{number}" for number in range(33)]
MANY_KEYED: dict[str, Callable[[Stream, Stream], Stream]] = {
    "group_by": lambda rows, _: rows.group_by(*NUMBERS).aggregate(n=sabot.count()),
    "aggregate": lambda rows, _: rows.key_by(*NUMBERS).aggregate(n=sabot.count()),
    "deduplicate": lambda rows, _: rows.deduplicate(*NUMBERS),
    "join": lambda rows, others: rows.join(others, on=NUMBERS),
}


@pytest.mark.parametrize("step", MANY_KEYED)
def test_a_key_of_more_columns_than_a_table_takes_is_refused_by_their_names(step: str) -> None:
    """It was a bare ValueError of the kernel."""
    app = App("wide")
    rows, others = (app.stream(ScriptedSource([dict.fromkeys(NUMBERS, 1), END])) for _ in range(2))
    with pytest.raises(UserError, match=r"key has 33 columns that are not text \(c0, c1, c2, …\): at most 32"):
        MANY_KEYED[step](rows, others).collect()
