"""Joins by event time, beside brute force and DuckDB.

What comes out must not depend on which side's rows come first, where batches end, on restarts, or on the number of subtasks; nothing may
come out that is older than what the next operators were told; and what can meet nothing any more is not kept.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot.api.windows import cumulative, hopping, session, tumbling
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
)
from sabot.engine.operators.joins.asof import AsofJoin
from sabot.engine.operators.joins.interval import IntervalJoin
from sabot.engine.operators.joins.sides import JoinOperator, Sides
from sabot.engine.operators.joins.window import WindowJoin
from sabot.errors import UserError
from tools.operator_run import OperatorRun

FEW = settings(max_examples=20, deadline=None)

LEFT = pa.schema([("a", pa.int64()), ("k", pa.string()), (TIME_COLUMN, pa.int64())])
RIGHT = pa.schema([("rk", pa.string()), ("b", pa.int64()), (TIME_COLUMN, pa.int64())])
CHANGES = pa.schema([*list(RIGHT)[:2], pa.field(OP_COLUMN, pa.int8()), pa.field(TIME_COLUMN, pa.int64())])
SIDES = Sides(("k",), ("rk",), (("b", "b"),))
ALONE = Sides(("k",), ("rk",))
HOWS = ["inner", "left", "right", "full", "semi", "anti"]

Row = tuple[Any, ...]
Event = tuple[str, Any]  # ("left", rows) | ("right", rows) | ("watermark", ms) | ("restart", subtasks)


def batch_of(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


KEYS = st.sampled_from(["x", "y", "", None])
PART = st.lists(st.tuples(KEYS, st.integers(0, 25)), min_size=1, max_size=10)
STEPS = st.lists(
    st.tuples(st.sampled_from(["left", "right"]), PART, st.integers(0, 9), st.sampled_from([0, 0, 1, 3])), max_size=8
)
SIZES = st.sampled_from([1, 3, 1000])


def drive(
    make: Callable[[], JoinOperator], steps: Any, size: int, right: pa.Schema = RIGHT, ops: bool = False
) -> tuple[OperatorRun, list[Row], list[Row], int]:
    """-> (the run at its end, the rows of the left (a, k, time) and of the right (rk, b, time) that were not late, late rows).

    Rows are numbered as they come, so all differ. A step's watermark is so much above the one before; rows are from a little below
    it on.
    """
    rows: dict[str, list[Row]] = {"left": [], "right": []}
    watermark, number, late = 0, 0, 0
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(make, LEFT, ["k"], Path(directory), right=right, right_keys=["rk"], punctual=True)
        for side, part, ahead, restart in steps:
            made = []
            for key, time in part:
                number += 1
                at = watermark + time - 2
                row = (number, key, at) if side == "left" else (key, number, at)
                if at < watermark and watermark:
                    late += 1
                else:
                    rows[side].append(row)
                made.append(row)
            if side == "left":
                run.feed(batch_of(made, LEFT), size)
            else:
                run.feed_right(batch_of(made, right), size)
            if ahead:
                watermark += ahead
                run.advance(watermark)
            if restart:
                run.restart(restart)
                if watermark:
                    run.advance(watermark)
        run.end()
    return run, rows["left"], rows["right"], late


def counted(rows: Any) -> Counter[Row]:
    return Counter(tuple(row.values()) if isinstance(row, dict) else row for row in rows)


# Interval


def near(left: Sequence[Row], right: Sequence[Row], how: str, lower: int | None, upper: int | None) -> Counter[Row]:
    """Brute force: a, k, b, time."""
    low, high = -(10**9) if lower is None else lower, 10**9 if upper is None else upper
    pairs = [
        (one, other)
        for one in left
        for other in right
        if one[1] == other[0] is not None and low <= other[2] - one[2] <= high
    ]
    met = {one for one, _ in pairs}
    partnered = {other for _, other in pairs}
    if how in ("semi", "anti"):
        return Counter(one for one in left if (one in met) == (how == "semi"))
    rows = [(one[0], one[1], other[1], max(one[2], other[2])) for one, other in pairs]
    if how in ("left", "full"):
        rows += [(one[0], one[1], None, one[2]) for one in left if one not in met]
    if how in ("right", "full"):
        rows += [(None, other[0], other[1], other[2]) for other in right if other not in partnered]
    return Counter(rows)


BOUNDS = st.sampled_from([(-5, 5), (0, 0), (-8, -3), (2, 6), (0, 12), (-12, 0), (None, 4), (-4, None), (None, None)])


@FEW
@given(STEPS, SIZES, st.sampled_from(HOWS), BOUNDS)
def test_an_interval_join_gives_what_brute_force_gives(steps: Any, size: int, how: str, bounds: Any) -> None:
    lower, upper = bounds
    if (upper is None and how in ("left", "full", "anti", "semi")) or (lower is None and how in ("right", "full")):
        how = "inner"
    sides = ALONE if how in ("semi", "anti") else SIDES
    run, left, right, late = drive(lambda: IntervalJoin(sides, how, lower, upper), steps, size)
    assert counted(run.results) == near(left, right, how, lower, upper)
    assert run.statistic("late_rows") == late == len(run.late)
    assert run.statistic("left_rows") == run.statistic("right_rows") == 0


@FEW
@given(STEPS, SIZES, st.sampled_from(["inner", "left"]), st.sampled_from([(-5, 5), (-8, -3), (2, 6), (None, 4)]))
def test_pairs_may_have_the_event_time_of_their_left_row(steps: Any, size: int, how: str, bounds: Any) -> None:
    run, left, right, _ = drive(lambda: IntervalJoin(SIDES, how, *bounds, left_time=True), steps, size)
    times = {one[0]: one[2] for one in left}
    assert counted(run.results) == Counter(
        (a, k, b, times[a]) for a, k, b, _ in near(left, right, how, *bounds).elements()
    )


def test_the_watermark_behind_pairs_with_the_time_of_their_left_row_waits_for_the_last_of_them(tmp_path: Path) -> None:
    run = start(lambda: IntervalJoin(SIDES, "inner", -10, 20, left_time=True), tmp_path)
    run.feed(batch_of([(1, "x", 100)], LEFT))
    [part] = run.parts
    assert part.advance(120) == 100
    run.feed_right(batch_of([("x", 2, 120)], RIGHT))
    assert run.results == [{"a": 1, "k": "x", "b": 2, TIME_COLUMN: 100}]


@FEW
@given(STEPS, SIZES, st.sampled_from([-5, 0, 3, None]))
def test_a_semi_join_without_an_upper_bound_gives_every_row_that_ever_has_a_partner(
    steps: Any, size: int, lower: int | None
) -> None:
    run, left, right, _ = drive(lambda: IntervalJoin(ALONE, "semi", lower, None), steps, size)
    want = near(left, right, "semi", lower, None)
    assert Counter((row["a"], row["k"]) for row in run.results) == Counter(row[:2] for row in want)


def start(make: Callable[[], JoinOperator], directory: Path, right: pa.Schema = RIGHT) -> OperatorRun:
    return OperatorRun(make, LEFT, ["k"], directory, right=right, right_keys=["rk"], punctual=True)


@pytest.mark.slow  # a second of a core; test_joins_against_batch has a week of each join
def test_an_interval_join_of_a_week_holds_an_hour(tmp_path: Path) -> None:
    hour = 3_600_000
    for how in HOWS:
        sides = ALONE if how in ("semi", "anti") else SIDES
        run = start(lambda sides=sides, how=how: IntervalJoin(sides, how, -hour, 0), tmp_path / how)
        most = 0
        for step in range(7 * 24):
            times = [step * hour + n * hour // 20 for n in range(20)]
            run.feed(batch_of([(n, f"k{n % 7}", time) for n, time in enumerate(times)], LEFT))
            run.feed_right(batch_of([(f"k{n % 9}", n, time) for n, time in enumerate(times)], RIGHT))
            run.advance(times[-1])
            assert run.statistic("left_rows") <= 1
            most = max(most, run.statistic("right_rows"))
        assert 15 <= most <= 21, how


def test_rows_without_a_partner_come_out_when_none_can_come(tmp_path: Path) -> None:
    run = start(lambda: IntervalJoin(SIDES, "full", -10, 20), tmp_path)
    run.feed(batch_of([(1, "x", 100), (2, None, 100)], LEFT))
    run.feed_right(batch_of([("y", 1, 100), ("x", 2, 121)], RIGHT))
    assert [row["a"] for row in run.results] == [2]
    [part] = run.parts
    assert part.advance(110) == 90
    assert len(run.results) == 1
    assert part.advance(111) == 91
    assert run.results[1:] == [{"a": None, "k": "y", "b": 1, TIME_COLUMN: 100}]
    assert part.advance(120) == 100
    assert len(run.results) == 2
    assert part.advance(121) == 101
    assert run.results[2:] == [{"a": 1, "k": "x", "b": None, TIME_COLUMN: 100}]


def test_late_rows_are_dropped_counted_and_go_to_the_side(tmp_path: Path) -> None:
    run = start(lambda: IntervalJoin(SIDES, "inner", -50, 50), tmp_path)
    run.advance(100)
    run.feed(batch_of([(1, "x", 99), (2, "x", 100)], LEFT))
    run.feed_right(batch_of([("x", 7, 98), ("x", 8, 100)], RIGHT))
    assert counted(run.results) == Counter([(2, "x", 8, 100)])
    assert run.late == [{"a": 1, "k": "x"}, {"rk": "x", "b": 7}]
    run.restart(2)
    run.feed(batch_of([(3, "x", 99)], LEFT))
    assert run.statistic("late_rows") == 3


def test_a_hot_key_of_a_semi_join_costs_no_product_of_its_rows(tmp_path: Path) -> None:
    run = start(lambda: IntervalJoin(ALONE, "semi", 0, 1000), tmp_path)
    run.feed(batch_of([(n, "hot", 0) for n in range(2_000)], LEFT))
    run.feed_right(batch_of([("hot", n, 10) for n in range(2_000)], RIGHT))
    assert len(run.results) == 2_000
    assert run.statistic("left_rows") == 0


def test_an_interval_join_agrees_with_duckdb(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)

    def table(rows: int, key: str, value: str) -> pa.Table:
        columns = {
            key: pa.array([f"u{n}" for n in rng.integers(0, 60, rows)], mask=rng.random(rows) < 0.03),
            value: pa.array(np.arange(rows)),
            TIME_COLUMN: pa.array(np.arange(rows) * 10 + rng.integers(0, 200, rows)),
        }
        return pa.table(columns)

    one, other = table(6_000, "k", "a").select(["a", "k", TIME_COLUMN]), table(6_000, "rk", "b")
    run = start(lambda: IntervalJoin(SIDES, "full", -300, 500), tmp_path)
    lefts, rights = (t.combine_chunks().to_batches()[0] for t in (one, other))
    for first in range(0, 6_000, 1_000):
        run.feed_right(rights.slice(first, 1_000), 300)
        run.feed(lefts.slice(first, 1_000), 450)
        run.advance((first + 1_000) * 10)
        if first == 2_000:
            run.restart(3)
    run.end()
    query = """SELECT a, coalesce(k, rk), b, greatest(one.__time, other.__time) FROM one FULL JOIN other
        ON k = rk AND other.__time BETWEEN one.__time - 300 AND one.__time + 500"""
    assert counted(run.results) == Counter(duckdb.sql(query).fetchall())


# Windows


def in_windows(left: Sequence[Row], right: Sequence[Row], how: str, bounds: Sequence[tuple[int, int]]) -> Counter[Row]:
    """Brute force: a, k, start, end, b, time."""
    made: Counter[Row] = Counter()
    for first, end in bounds:
        inside = [[row for row in side if first <= row[2] < end] for side in (left, right)]
        for row in near(*inside, how, None, None):
            middle = (first, end)
            rest = () if how in ("semi", "anti") else (row[2],)
            made[(*row[:2], *middle, *rest, end - 1)] += 1
    return made


WINDOWS = {
    "tumbling": (tumbling(0.010), lambda: [(n, n + 10) for n in range(-20, 400, 10)]),
    "hopping": (hopping(0.012, 0.004), lambda: [(n, n + 12) for n in range(-24, 400, 4)]),
    "cumulative": (
        cumulative(0.012, 0.003),
        lambda: [(n, n + step) for n in range(-24, 400, 12) for step in range(3, 13, 3)],
    ),
}


@FEW
@given(STEPS, SIZES, st.sampled_from(HOWS), st.sampled_from(sorted(WINDOWS)))
def test_a_window_join_gives_what_brute_force_gives(steps: Any, size: int, how: str, kind: str) -> None:
    window, bounds = WINDOWS[kind]
    sides = ALONE if how in ("semi", "anti") else SIDES
    steps = [
        (side, [(key, max(time, 2)) for key, time in part], ahead, n) for side, part, ahead, n in steps
    ]  # none late
    run, left, right, late = drive(lambda: WindowJoin(sides, how, window), steps, size)
    rows = run.results
    for row in rows:
        for name in ("window_start", "window_end"):
            row[name] = round(row[name].timestamp() * 1000)
    assert late == 0
    assert counted(rows) == in_windows(left, right, how, bounds())
    assert run.statistic("left_rows") == run.statistic("right_rows") == run.statistic("panes") == 0


def test_a_row_is_late_when_all_its_windows_are_over(tmp_path: Path) -> None:
    run = start(lambda: WindowJoin(SIDES, "inner", hopping(0.010, 0.005)), tmp_path)
    run.feed_right(batch_of([("x", 1, 4), ("x", 2, 6)], RIGHT))
    run.advance(11)
    assert run.results == []
    run.feed(batch_of([(1, "x", 4), (2, "x", 5)], LEFT))
    assert run.late == [{"a": 1, "k": "x"}]
    run.end()
    assert [(row["a"], row["b"], row[TIME_COLUMN]) for row in run.results] == [(2, 2, 14)]
    assert run.schema.names == ["a", "k", "window_start", "window_end", "b", TIME_COLUMN]


def test_windows_of_a_day_hold_what_is_in_open_windows(tmp_path: Path) -> None:
    run = start(lambda: WindowJoin(SIDES, "left", tumbling("1m")), tmp_path)
    for minute in range(120):
        times = [minute * 60_000 + n * 6_000 for n in range(10)]
        run.feed(batch_of([(n, "x", time) for n, time in enumerate(times)], LEFT))
        run.feed_right(batch_of([("x", n, time) for n, time in enumerate(times)], RIGHT))
        run.advance(times[-1])
        assert run.statistic("left_rows") == run.statistic("right_rows") == 10
        assert run.statistic("panes") == 1
    assert len(run.results) == 119 * 100


# As of


def as_of(left: Sequence[Row], right: Sequence[Row], how: str, strategy: str, tolerance: int | None) -> Counter[Row]:
    """Brute force: a, k, b, time. right: in order of arrival; b None: the end of a version."""
    made = []
    for a, k, time in left:
        own = [(at, place, b) for place, (rk, b, at) in enumerate(right) if rk == k is not None]
        if tolerance is not None:
            own = [row for row in own if abs(row[0] - time) <= tolerance]
        before = max((row for row in own if row[0] <= time), default=None)
        first = min((row[0] for row in own if row[0] >= time), default=None)
        after = max((row for row in own if row[0] == first), default=None)
        found = before if strategy == "backward" else after
        if strategy == "nearest":
            both = [row for row in (before, after) if row is not None]
            found = min(both, key=lambda row: (abs(row[0] - time), row[0]), default=None)
        b = None if found is None else found[2]
        if how == "left" or b is not None:
            made.append((a, k, b, time))
    return Counter(made)


STRATEGIES = st.sampled_from(
    [
        ("backward", None),
        ("backward", 6),
        ("backward", 0),
        ("forward", 6),
        ("forward", 0),
        ("nearest", 6),
        ("nearest", 40),
    ]
)


@FEW
@given(STEPS, SIZES, st.sampled_from(["left", "inner"]), STRATEGIES)
def test_an_as_of_join_gives_what_brute_force_gives(steps: Any, size: int, how: str, given: Any) -> None:
    strategy, tolerance = given
    steps = [
        (side, [(key, max(time, 2)) for key, time in part], ahead, n) for side, part, ahead, n in steps
    ]  # none late
    run, left, right, _ = drive(lambda: AsofJoin(SIDES, how, strategy=strategy, tolerance_ms=tolerance), steps, size)
    assert counted(run.results) == as_of(left, right, how, strategy, tolerance)
    assert run.statistic("left_rows") == 0
    keys = {rk for rk, _, _ in right if rk is not None}
    assert run.statistic("right_rows") == (0 if tolerance is not None else len(keys))


VERSIONS = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 25), st.booleans()), min_size=1, max_size=8)


@FEW
@given(
    st.lists(st.tuples(VERSIONS, PART, st.integers(0, 9), st.sampled_from([0, 0, 1, 3])), max_size=7),
    SIZES,
    st.booleans(),
    st.sampled_from([None, 8]),
)
def test_versions_of_a_table_hold_until_they_are_replaced_or_deleted(
    steps: Any, size: int, left_first: bool, tolerance: int | None
) -> None:
    """The right is a table whose rows are inserted, updated and deleted, in any order of time."""
    versions: list[Row] = []
    there: dict[str, int] = {}
    left: list[Row] = []
    watermark = number = 0
    with tempfile.TemporaryDirectory() as directory:
        run = start(
            lambda: AsofJoin(SIDES, "left", tolerance_ms=tolerance, right_changes=True), Path(directory), CHANGES
        )
        for table, part, ahead, restart in steps:
            changes: list[Row] = []
            for key, time, deleted in table:
                number += 1
                at = watermark + time
                if deleted and key in there:
                    changes.append((key, there.pop(key), DELETE, at))
                    versions.append((key, None, at))
                else:
                    if key in there:
                        changes.append((key, there[key], UPDATE_BEFORE, at))
                    changes.append((key, number, UPDATE_AFTER if key in there else INSERT, at))
                    versions.append((key, number, at))
                    there[key] = number
            rows = []
            for key, time in part:
                number += 1
                rows.append((number, key, watermark + time))
            left += rows
            for of_left in (left_first, not left_first):
                if of_left:
                    run.feed(batch_of(rows, LEFT), size)
                else:
                    run.feed_right(batch_of(changes, CHANGES), size)
            watermark += ahead
            run.advance(watermark)
            if restart:
                run.restart(restart)
                run.advance(watermark)
        run.end()
    assert counted(run.results) == as_of(left, versions, "left", "backward", tolerance)
    latest = {
        key: max((at, place, b) for place, (k, b, at) in enumerate(versions) if k == key) for key, _, _ in versions
    }
    kept = 0 if tolerance is not None else sum(b is not None for _, _, b in latest.values())
    assert run.statistic("right_rows") == kept


def test_old_versions_and_deleted_keys_are_forgotten(tmp_path: Path) -> None:
    run = start(lambda: AsofJoin(SIDES, "inner", right_changes=True), tmp_path, CHANGES)
    for step in range(50):
        at = step * 100
        alive = [(f"k{n}", step, UPDATE_AFTER, at + n) for n in range(10)]
        shortly = [(f"s{step}.{n}", 1, INSERT, at + n) for n in range(10)]
        ended = [(f"s{step}.{n}", 1, DELETE, at + 50 + n) for n in range(10)]
        run.feed_right(batch_of([*alive, *shortly, *ended], CHANGES))
        run.feed(batch_of([(step, "k3", at + 20)], LEFT))
        run.advance(at + 99)
        assert run.statistic("right_rows") == 10
        assert run.statistic("left_rows") == 0
    assert [row["b"] for row in run.results] == list(range(50))


def test_a_version_that_comes_late_holds_for_rows_that_are_still_to_come(tmp_path: Path) -> None:
    run = start(lambda: AsofJoin(SIDES, "left"), tmp_path)
    run.feed_right(batch_of([("x", 1, 10)], RIGHT))
    run.advance(100)
    run.feed_right(batch_of([("x", 2, 90), ("x", 3, 5)], RIGHT))
    run.feed(batch_of([(1, "x", 99), (2, "x", 100)], LEFT))
    run.advance(101)
    assert counted(run.results) == Counter([(2, "x", 2, 100)])
    assert run.statistic("late_rows") == 3
    assert run.statistic("right_rows") == 1
    assert run.late == [
        {"rk": "x", "b": 2},
        {"rk": "x", "b": 3},
        {"a": 1, "k": "x"},
    ]  # those of the right count all the same


def test_an_as_of_join_agrees_with_duckdb(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows = 8_000
    one = pa.table(
        {
            "a": pa.array(np.arange(rows)),
            "k": pa.array([f"u{n}" for n in rng.integers(0, 50, rows)], mask=rng.random(rows) < 0.03),
            TIME_COLUMN: pa.array(np.arange(rows) * 10 + rng.integers(0, 100, rows)),
        }
    )
    other = pa.table(
        {
            "rk": pa.array([f"u{n}" for n in rng.integers(0, 60, rows)]),
            "b": pa.array(np.arange(rows)),
            TIME_COLUMN: pa.array(rng.permutation(rows) * 10 + 5),  # no two are equal: DuckDB takes any of equal ones
        }
    )
    other = other.take(pa.array(np.argsort(other.column(TIME_COLUMN).to_numpy() // 200, kind="stable")))
    run = start(lambda: AsofJoin(SIDES, "left"), tmp_path)
    lefts, rights = (t.combine_chunks().to_batches()[0] for t in (one, other))
    for first in range(0, rows, 1_000):
        run.feed(lefts.slice(first, 1_000), 300)
        run.feed_right(rights.slice(first, 1_000), 450)
        run.advance((first + 1_000) * 10)
        if first == 2_000:
            run.restart(3)
    run.end()
    query = """SELECT a, k, b, one.__time FROM one ASOF LEFT JOIN other ON k = rk AND one.__time >= other.__time"""
    assert counted(run.results) == Counter(duckdb.sql(query).fetchall())


# All of them


MAKERS: list[Callable[[], JoinOperator]] = [
    lambda: IntervalJoin(SIDES, "left", -10, 10),
    lambda: WindowJoin(SIDES, "full", tumbling("1s")),
    lambda: AsofJoin(SIDES, "left", strategy="nearest", tolerance_ms=10),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_can_be_read_by_one_that_its_reader_makes(tmp_path: Path, make: Callable[[], JoinOperator]) -> None:
    run = start(make, tmp_path)
    run.feed(batch_of([(1, "x", 5), (2, "y", 6)], LEFT))
    run.feed_right(batch_of([("x", 7, 9), ("z", 8, 9)], RIGHT))
    saved = run.checkpoint()
    assert saved[0].facts["groups"] == 4
    assert saved[0].facts["schema"] == run.parts[0].state_schema()
    reader = type(make()).read_with(saved[0].facts["reader"])
    reader.open(OperatorContext(LEFT, right=RIGHT))
    reader.restore(saved)
    assert reader.state_schema() == run.parts[0].state_schema()
    rows = [row for piece in reader.contents() for row in piece.to_pylist()]
    assert [(row["side"], row["k"], row["a"], row["b"]) for row in rows] == [
        ("left", "x", 1, None),
        ("left", "y", 2, None),
        ("right", "x", None, 7),
        ("right", "z", None, 8),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IntervalJoin(SIDES, "inner", 5, -5), "lower bound 5 ms is above the upper bound -5 ms"),
        (lambda: IntervalJoin(SIDES, "left", 0, None), "needs the upper bound, or a row of the left"),
        (lambda: IntervalJoin(ALONE, "anti", 0, None), "needs the upper bound"),
        (lambda: IntervalJoin(SIDES, "full", None, 0), "needs the lower bound, or a row of the right"),
        (lambda: IntervalJoin(SIDES, "inner", 0, 2**62), "out of range"),
        (lambda: WindowJoin(SIDES, "inner", session("1m")), "SessionWindow"),
        (lambda: AsofJoin(SIDES, "full"), "how='full' is not known"),
        (lambda: AsofJoin(SIDES, "left", strategy="back"), "strategy='back'"),
        (lambda: AsofJoin(SIDES, "left", strategy="forward"), "needs a tolerance"),
        (lambda: AsofJoin(SIDES, "left", tolerance_ms=-1), "tolerance of -1 ms"),
        (lambda: AsofJoin(SIDES, "left", strategy="nearest", tolerance_ms=1, right_changes=True), "changes"),
    ],
)
def test_what_cannot_be_joined_is_said_at_once(make: Callable[[], JoinOperator], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("make", MAKERS)
def test_both_sides_need_event_time(make: Callable[[], JoinOperator]) -> None:
    untimed = pa.schema(list(RIGHT)[:2])
    with pytest.raises(UserError, match="the right side has no event time"):
        make().open(OperatorContext(LEFT, right=untimed))
