"""One current row for each key: what the changes add up to is what plain Python makes of the rows that are left, at every moment.

Rows come, and are taken away again, in any split into batches, over restarts, in any number of subtasks.
"""

import math
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from statistics import mean, variance
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import (
    DELETE,
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
    with_marks,
)
from sabot.engine.operators.changes.groups import GroupAggregate
from sabot.errors import DataError, UserError
from tools.operator_run import OperatorRun

FEW = settings(max_examples=25, deadline=None)

PLAIN = pa.schema(
    [
        ("user", pa.string()),
        ("x", pa.float64()),
        ("i", pa.int64()),
        ("tag", pa.string()),
        ("ok", pa.bool_()),
        ("price", pa.decimal128(12, 2)),
        ("pair", pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))])),
    ]
)
SCHEMA = with_marks(PLAIN, op=True, timed=True)
ADDED = with_marks(PLAIN, op=False, timed=True)

Row = tuple[Any, ...]  # the columns of PLAIN
Change = tuple[int, Row, int]  # op, row, time


class Total:
    """A user's aggregate: how many, and the sum, in digits: it may be more than 64 bits."""

    type = pa.string()

    def init(self) -> list[Any]:
        return [0, "0"]

    def accumulate(self, state: list[Any], values: pa.Array) -> list[Any]:
        found = [v for v in values.to_pylist() if v is not None]
        return [state[0] + len(found), str(int(state[1]) + sum(found))]

    def merge(self, state: list[Any], other: list[Any]) -> list[Any]:
        return [state[0] + other[0], str(int(state[1]) + int(other[1]))]

    def finish(self, state: list[Any]) -> str:
        return f"{state[0]} {state[1]}"


CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("ok_n", "count", "x", where="ok"),
    AggregateColumn("isum", "sum", "i"),
    AggregateColumn("imean", "mean", "i"),
    AggregateColumn("xsum", "sum", "x"),
    AggregateColumn("xmean", "mean", "x"),
    AggregateColumn("xvar", "variance", "x"),
    AggregateColumn("ivar", "stddev", "i", ddof=0),
    AggregateColumn("psum", "sum", "price"),
    AggregateColumn("low", "min", "x"),
    AggregateColumn("high", "max", "x"),
    AggregateColumn("tag_low", "min", "tag"),
    AggregateColumn("tag_high", "max", "tag", where="ok"),
    AggregateColumn("price_high", "max", "price"),
    AggregateColumn("tags", "count_distinct", "tag"),
    AggregateColumn("tags_each", "collect_set", "tag"),
    AggregateColumn("i_each", "collect_set", "i", where="ok"),
    AggregateColumn("first", "first", "tag"),
    AggregateColumn("last", "last", "i"),
    AggregateColumn("tag_at_low", "arg_min", "tag", by="i"),
    AggregateColumn("i_at_high", "arg_max", "i", by="tag"),
    AggregateColumn("all", "collect_list", "tag"),
    AggregateColumn("pairs", "collect_list", "pair"),
    AggregateColumn("mine", "user", "i", function=Total()),
]
# without a count, so that a group may be touched and stay as it is
QUIET = [
    AggregateColumn("high", "max", "i"),
    AggregateColumn("isum", "sum", "i", where="ok"),
    AggregateColumn("tags", "count_distinct", "tag"),
]


def value(row: Row, name: str) -> Any:
    return row[PLAIN.names.index(name)]


def expected(rows: list[tuple[Row, int]], call: AggregateColumn) -> Any:
    """`rows`: those that are there, with their times, in order of arrival."""
    rows = sorted(rows, key=lambda each: each[1])
    kept = [row for row, _ in rows if call.where is None or value(row, call.where)]
    if call.kind == "count" and call.argument is None:
        return len(kept)
    values = [value(row, call.argument) for row in kept]
    found = [each for each in values if each is not None]
    match call.kind:
        case "count":
            return len(found)
        case "sum":
            if found and isinstance(found[0], int):
                return sum(found)
            return None if not found else math.fsum(found) if isinstance(found[0], float) else sum(found)
        case "mean":
            return float(mean(found)) if found else None
        case "variance":
            return variance(found) if len(found) > 1 else None
        case "stddev":
            return math.sqrt(np.var([float(f) for f in found])) if found else None
        case "min":
            return min(found, default=None)
        case "max":
            return max(found, default=None)
        case "count_distinct":
            return len(set(found))
        case "collect_set":
            return sorted(set(found))
        case "first":
            return values[0] if values else None
        case "last":
            return values[-1] if values else None
        case "collect_list":
            return values
        case "user":
            return f"{len(found)} {sum(found)}"
    least = call.kind == "arg_min"
    pairs = [(value(row, call.by), value(row, call.argument)) for row in kept if value(row, call.by) is not None]
    if not pairs:
        return None
    best = min(by for by, _ in pairs) if least else max(by for by, _ in pairs)
    return min(
        (each for by, each in pairs if by == best), key=lambda each: (each is not None, each if each is not None else 0)
    )


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, float):
        return found == pytest.approx(wanted, rel=1e-9, abs=1e-12) or (math.isnan(found) and math.isnan(wanted))
    return bool(found == wanted)


def hashable(row: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(repr(each) for each in row)


def applied(batches: Sequence[Batch], *, key: int) -> dict[Any, tuple[Any, ...]]:
    """The table that changes make, of one row a key (the first `key` columns). Checks that each of them can be."""
    table: dict[Any, tuple[Any, ...]] = {}
    for batch in batches:
        data = batch.taken()
        ops = data.column(OP_COLUMN).to_pylist()
        rows = list(zip(*(column.to_pylist() for column in data.columns), strict=True))
        names = data.schema.names
        user = [
            i for i, name in enumerate(names) if name != OP_COLUMN
        ]  # with the time: what goes has that of what came
        touched = set()
        for at, (op, row) in enumerate(zip(ops, rows, strict=True)):
            mine = tuple(row[i] for i in user)
            mark = hashable(mine[:key])
            if op in (DELETE, UPDATE_BEFORE):
                assert hashable(table.pop(mark)) == hashable(mine)
                assert mark not in touched
            else:
                assert mark not in table
                table[mark] = mine
            if op == UPDATE_BEFORE:
                assert ops[at + 1] == UPDATE_AFTER
            if op == UPDATE_AFTER:
                assert ops[at - 1] == UPDATE_BEFORE
                before = [rows[at - 1][i] for i in user if names[i] != TIME_COLUMN]
                after = [row[i] for i in user if names[i] != TIME_COLUMN]
                assert hashable(rows[at - 1][:key]) == hashable(row[:key])
                assert hashable(before) != hashable(after)
            touched.add(mark) if op != UPDATE_BEFORE else None
    return table


def check(run: OperatorRun, log: list[Change], calls: list[AggregateColumn], *, keyed: bool = True) -> None:
    """All that came out is what the changes so far should make."""
    left: dict[Any, list[tuple[Row, int]]] = {}
    for op, row, time in log:
        rows = left.setdefault(row[0] if keyed else None, [])
        if op in (INSERT, UPDATE_AFTER):
            rows.append((row, time))
        else:
            rows.remove((row, time))
    table = applied(run.batches, key=int(keyed))
    assert len(table) == sum(bool(rows) for rows in left.values())
    for key, rows in left.items():
        if rows:
            found = table[hashable((key,)) if keyed else ()][int(keyed) :]
            for call, each in zip(calls, found, strict=False):
                wanted = expected(rows, call)
                assert same(each, wanted), f"{key}: {call.name} is {each}, should be {wanted}"


def batch_of(log: list[Change], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    rows = [dict(zip(PLAIN.names, row, strict=True)) | {OP_COLUMN: op, TIME_COLUMN: time} for op, row, time in log]
    return pa.RecordBatch.from_pylist(rows, schema=schema)


ROW = st.tuples(
    st.sampled_from(["ann", "bob", "", None]),
    st.none() | st.sampled_from([0.1, 0.2, -0.3, 1e17, 3.0, 1e-9]),
    st.none() | st.sampled_from([0, 5, -7, 2**50, 2**52, -(2**51)]),
    st.sampled_from(["r", "g", "a longer text than others", "", None]),
    st.sampled_from([True, False, None]),
    st.none() | st.sampled_from([Decimal("1.25"), Decimal("-3.00")]),
    st.none() | st.fixed_dictionaries({"a": st.none() | st.integers(0, 1), "b": st.none() | st.just(["u", None])}),
)


@st.composite
def logs(draw: Any, most: int = 25) -> list[Change]:
    """Changes of which every prefix is valid. Times differ, so that there is one order."""
    there: list[tuple[Row, int]] = []
    log: list[Change] = []
    for time in draw(st.lists(st.integers(0, 1000), max_size=most, unique=True)):
        what = draw(st.sampled_from(["insert", "insert", "delete", "update"]))
        if there and what != "insert":
            row, at = there.pop(draw(st.integers(0, len(there) - 1)))
            log.append((DELETE if what == "delete" else UPDATE_BEFORE, row, at))
        if what != "delete":
            row = draw(ROW)
            there.append((row, time))
            log.append((UPDATE_AFTER if log and log[-1][0] == UPDATE_BEFORE else INSERT, row, time))
    return log


PARTS = st.lists(st.tuples(st.integers(1, 9), st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=6)


def drive(
    log: list[Change],
    parts: Any,
    calls: list[AggregateColumn],
    *,
    changes: bool,
    keyed: bool = True,
    budget: int | None = None,
) -> OperatorRun:
    schema, keys = (SCHEMA if changes else ADDED), ["user"] if keyed else []
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: GroupAggregate(keys, calls, changes=changes), schema, keys, Path(directory), 1, budget
        )
        at = turn = 0
        while at < len(log):
            size, restart = parts[turn % len(parts)]
            turn += 1
            if restart:
                run.restart(restart)
            run.feed(batch_of(log[at : at + size], schema))
            at += size
            check(run, log[:at], calls, keyed=keyed)
        assert budget is None or run.statistic("evicted_total")
        run.restart(2)
        contents = [row for part in run.parts for batch in part.contents() for row in batch.to_pylist()]
        assert len(contents) == len(applied(run.batches, key=int(keyed)))
        for part in run.parts:
            part.close()
        return run


@FEW
@given(log=logs(), parts=PARTS, keyed=st.booleans())
def test_what_is_left_of_changes_is_aggregated_exactly(log, parts, keyed):
    drive(log, parts, CALLS, changes=True, keyed=keyed)


@FEW
@given(log=logs(), parts=PARTS, changes=st.booleans())
def test_a_group_that_is_touched_and_stays_as_it_is_is_not_told(log, parts, changes):
    if not changes:
        log = [each for each in log if each[0] in (INSERT, UPDATE_AFTER)]
    drive(log, parts, QUIET, changes=changes)


@FEW
@given(rows=st.lists(ROW, max_size=30, unique_by=repr), parts=PARTS, keyed=st.booleans())
def test_rows_that_are_only_added_are_aggregated(rows, parts, keyed):
    log = [(INSERT, row, time * 7 % 101) for time, row in enumerate(rows)]
    # an append stream wraps sums of floats as they come: those of the oracle are exact
    calls = [call for call in CALLS if call.kind not in ("variance", "stddev") and call.name != "tag_at_low"]
    calls = [call for call in calls if call.name not in ("xsum", "xmean", "imean", "i_at_high")]
    drive(log, parts, calls, changes=False, keyed=keyed)


@pytest.mark.slow  # half a second of a core
def test_groups_that_do_not_fit_in_memory_go_on():
    rows = [(("ann", "bob", "", None)[n % 4], 1.0, n, "r", None, None, None) for n in range(60)]
    log = [(INSERT, row, n) for n, row in enumerate(rows)]
    calls = [AggregateColumn("n", "count"), AggregateColumn("isum", "sum", "i"), AggregateColumn("imean", "mean", "i")]
    parts = [(25, 0), (25, 2)]
    drive(log, parts, calls, changes=False, budget=1)
    log += [(DELETE, row, n) for n, row in enumerate(rows) if n % 4 == 1 or n % 5 == 0]
    drive(log, parts, calls, changes=True, budget=1)


@pytest.mark.slow  # a second of a core, or more
def test_many_changes_leave_what_duckdb_finds_in_the_rows_that_are_left():
    rng = np.random.default_rng(7)
    rows = [
        (f"user {n}", float(x), int(i), f"tag {t}", bool(ok), Decimal(int(p)) / 100, None)
        for n, x, i, t, ok, p in zip(*(rng.integers(-9 if at == 1 else 0, 40, 4000) for at in range(6)), strict=True)
    ]
    log: list[Change] = [(INSERT, row, n) for n, row in enumerate(rows)]
    gone = rng.permutation(4000)[:3000].tolist()
    log += [(DELETE, rows[n], n) for n in gone]
    calls = [call for call in CALLS if call.kind not in ("user", "collect_list", "collect_set")] + [
        AggregateColumn("middle", "approx_quantile", "x", q=[0.5]),
        AggregateColumn("best", "top_k", "i", k=3),
    ]
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(lambda: GroupAggregate(["user"], calls, changes=True), SCHEMA, ["user"], Path(directory), 2)
        run.feed(batch_of(log[:3000]), 999)
        run.restart(3)
        run.feed(batch_of(log[3000:]), 999)
    left = batch_of([change for n, change in enumerate(log[:4000]) if n not in set(gone)])
    found = applied(run.batches, key=1)
    answer = (
        duckdb.connect()
        .register("rows", left)
        .execute(
            """
        select "user", count(*), count(x) filter (ok), sum(i), avg(i), sum(x), avg(x), var_samp(x), stddev_pop(i), sum(price), min(x),
            max(x), min(tag), max(tag) filter (ok), max(price), count(distinct tag), arg_min(tag, __time), arg_max(i, __time),
            min(tag) filter (i = low), min(i) filter (tag = high), quantile_disc(x, 0.5), list(i order by i desc)[1:3]
        from (select *, min(i) over (partition by "user") low, max(tag) over (partition by "user") high from rows) group by "user"
        """
        )
    )
    expected = {row[0]: row[1:] for row in answer.fetchall()}
    assert len(found) == len(expected) == 40
    for row in found.values():
        wanted = expected[row[0]]
        for call, one, other in zip(calls, row[1:], wanted, strict=False):
            if call.kind == "approx_quantile":
                one = one[0]
                assert one == pytest.approx(float(other), rel=0.01), call.name
            else:
                other = float(other) if isinstance(one, float) else other
                assert same(one, other), f"{row[0]}: {call.name} is {one}, should be {other}"


def test_a_sum_forgets_what_was_taken_away_whatever_came_between():
    schema = with_marks(pa.schema([("x", pa.float64())]), op=True, timed=False)
    step = GroupAggregate(
        [],
        [
            AggregateColumn("total", "sum", "x"),
            AggregateColumn("mean", "mean", "x"),
            AggregateColumn("var", "variance", "x"),
        ],
        changes=True,
    )
    found: list[Batch] = []
    step.emit = found.append
    step.open(OperatorContext(schema))
    changes = [(0, 1.0), (0, 1e300), (0, math.inf), (0, math.nan), (0, 2.0), (1, math.inf), (1, 1e300), (1, math.nan)]
    totals = []
    for op, x in changes:
        step.process(Batch(pa.RecordBatch.from_pylist([{"x": x, OP_COLUMN: op}], schema=schema)))
        totals.append(found[-1].data.to_pylist()[-1])
    assert [each["total"] for each in totals[:3]] == [1.0, 1e300, math.inf]
    assert math.isnan(totals[3]["total"])
    assert math.isnan(totals[5]["total"])
    assert totals[-1] == {"total": 3.0, "mean": 1.5, "var": 0.5, OP_COLUMN: UPDATE_AFTER}


def test_nothing_is_told_of_what_a_batch_brings_and_takes():
    schema = with_marks(PLAIN, op=True, timed=True)
    step = GroupAggregate(["user"], CALLS, changes=True)
    found: list[Batch] = []
    step.emit = found.append
    step.open(OperatorContext(schema))
    row: Row = ("ann", 1.0, 1, "r", True, None, None)
    step.process(Batch(batch_of([(INSERT, row, 1), (DELETE, row, 1)])))
    step.process(Batch(batch_of([])))
    assert not found
    assert step.statistics()["groups"] == 0
    step.process(Batch(batch_of([(INSERT, row, 1)])))
    step.process(Batch(batch_of([(UPDATE_BEFORE, row, 1), (UPDATE_AFTER, row, 1)])))
    assert len(found) == 1


def test_what_goes_has_the_time_of_what_came():
    step = GroupAggregate(["user"], QUIET, changes=False)
    found: list[Batch] = []
    step.emit = found.append
    step.open(OperatorContext(ADDED))
    for time, i in ((10, 5), (20, 4), (30, 6)):  # the second changes nothing
        step.process(Batch(batch_of([(INSERT, ("ann", None, i, "r", False, None, None), time)], ADDED)))
    ops = [(row[OP_COLUMN], row[TIME_COLUMN]) for batch in found for row in batch.data.to_pylist()]
    assert ops == [(INSERT, 10), (UPDATE_BEFORE, 10), (UPDATE_AFTER, 30)]


def test_what_cannot_forget_is_refused_over_changes():
    with pytest.raises(UserError, match="approx_count_distinct does not work over changes") as refused:
        GroupAggregate([], [AggregateColumn("n", "approx_count_distinct", "tag")], changes=True).open(
            OperatorContext(SCHEMA)
        )
    assert "use count_distinct" in str(refused.value)


def test_a_sum_of_decimals_that_does_not_fit_is_refused():
    kind = pa.decimal128(38, 0)
    schema = with_marks(pa.schema([("d", kind)]), op=True, timed=False)
    step = GroupAggregate([], [AggregateColumn("total", "sum", "d")], changes=True)
    step.emit = lambda batch: None
    step.open(OperatorContext(schema))
    data = pa.RecordBatch.from_pylist([{"d": Decimal(10**38 - 1), OP_COLUMN: 0}] * 2, schema=schema)
    with pytest.raises(DataError, match="more than decimal128"):
        step.process(Batch(data))


def test_state_of_other_aggregates_is_taken_over_as_far_as_they_are_the_same(tmp_path):
    run = OperatorRun(lambda: GroupAggregate(["user"], CALLS[4:7], changes=True), SCHEMA, ["user"], tmp_path / "a")
    run.feed(batch_of([(INSERT, ("ann", 1.0, 1, "r", True, None, None), 1)]))
    (before,) = next(run.parts[0].contents()).to_pylist()
    saved = run.checkpoint()
    other = GroupAggregate(["user"], CALLS[4:6], changes=True)
    other.open(OperatorContext(SCHEMA))
    other.restore(saved)
    (now,) = next(other.contents()).to_pylist()
    assert now == {name: value for name, value in before.items() if name in now}
    assert len(now) == len(before) - 1


def test_the_values_of_a_table_are_its_results_without_keys():
    data = batch_of([(INSERT, (name, 1.0, n, "r", None, None, None), n) for n, name in enumerate("abca")])
    table = GroupTable(pa.schema([("user", pa.string())]), [("count", None), ("sum", pa.int64())])
    table.update(data, [0], [-1, 2])
    slots = pa.array([2, 0], pa.int32())
    assert table.values(slots) == table.finish(slots)[1:]
    assert [column.to_pylist() for column in table.values(slots)] == [[1, 2], [2, 3]]
    with pytest.raises(IndexError, match="no group"):
        table.values(pa.array([7], pa.int32()))
