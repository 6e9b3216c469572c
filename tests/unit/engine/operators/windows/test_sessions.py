"""Sessions and runs: the kernels beside plain Python twins, and sessions with aggregates beside DuckDB and a twin.

A row belongs to a session when it is less than the gap away from one of its rows, whatever the order in which rows come.
"""

import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.windows.sessions import RunTable, SessionTable
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import TIME_COLUMN, OperatorContext
from sabot.engine.operators.windows.sessions import SessionAggregate
from sabot.errors import CorruptCheckpoint, UserError
from tools.operator_run import OperatorRun

FEW = settings(max_examples=60, deadline=None)
END = 2**63 - 1


def ints(values: Any) -> pa.Int32Array:
    return pa.array(values, pa.int32())


def times(values: Any) -> pa.Int64Array:
    return pa.array(values, pa.int64())


# The kernel of sessions


@dataclass
class Open:
    """An open session of the twin."""

    first: int
    last: int
    rows: set[int] = field(default_factory=set)
    given: bool = False


class NaiveSessions:
    """SessionTable in plain Python: the sessions of each key as a list."""

    def __init__(self, gap: int, lateness: int = 0) -> None:
        self.gap, self.lateness, self.watermark = gap, lateness, -(2**63)
        self.open: dict[int, list[Open]] = defaultdict(list)
        self.late: set[int] = set()

    def add(self, key: int, time: int, row: int) -> None:
        touched = [s for s in self.open[key] if s.first - self.gap < time < s.last + self.gap]
        if not touched and time + self.gap + self.lateness <= self.watermark:
            self.late.add(row)
            return
        rows = {row}.union(*(s.rows for s in touched))
        one = Open(min([time, *(s.first for s in touched)]), max([time, *(s.last for s in touched)]), rows)
        self.open[key] = [s for s in self.open[key] if s not in touched] + [one]

    def advance(self, watermark: int) -> tuple[list[Any], list[Any]]:
        """(ripe, over) as (key, first, end, rows)."""
        self.watermark = max(self.watermark, watermark)
        ripe, over = [], []
        for key, sessions in self.open.items():
            for s in list(sessions):
                end = s.last + self.gap
                known = (key, s.first, end, frozenset(s.rows))
                if end <= self.watermark and not s.given:
                    ripe.append(known)
                    s.given = True
                if end + self.lateness <= self.watermark:
                    over.append(known)
                    sessions.remove(s)
        return sorted(ripe), sorted(over)


class Sessions:
    """SessionTable as an operator uses it: which rows are in which session, by applying what `add` reports."""

    def __init__(self, gap: int, lateness: int = 0) -> None:
        self.table = SessionTable(gap, lateness)
        self.rows: dict[int, set[int]] = {}
        self.late: set[int] = set()

    def add(self, keys: list[int], when: list[int], first_row: int) -> None:
        ids, created, into, source = (a.to_pylist() for a in self.table.add(ints(keys), times(when)))
        for id in created:
            assert id not in self.rows
            self.rows[id] = set()
        for target, gone in zip(into, source, strict=True):
            self.rows[target] |= self.rows.pop(gone)
        for row, id in enumerate(ids, first_row):
            (self.late if id < 0 else self.rows[id]).add(row)
        assert len(self.table) == len(self.rows)

    def known(self, ids: pa.Int32Array) -> list[Any]:
        first, end = self.table.bounds(ids)
        columns = [self.table.slots(ids), first, end, ids]
        return sorted(
            (key, start, stop, frozenset(self.rows[id]))
            for key, start, stop, id in zip(*(c.to_pylist() for c in columns), strict=True)
        )

    def advance(self, watermark: int) -> tuple[list[Any], list[Any]]:
        ripe, over = self.table.advance(watermark)
        result = self.known(ripe), self.known(over)
        self.table.remove(over)
        for id in over.to_pylist():
            del self.rows[id]
        return result

    def reload(self) -> "Sessions":
        """Another table with the same sessions, shuffled."""
        state = self.table.export()
        state = state.take(pa.array(np.random.default_rng(1).permutation(state.num_rows)))
        new = Sessions(1)
        new.late = self.late
        return self._loaded(new, state)

    def _loaded(self, new: "Sessions", state: pa.RecordBatch) -> "Sessions":
        new.table = SessionTable(GAP, LATENESS)
        ids = new.table.load(state)
        new.rows = {id: self.rows[old] for id, old in zip(ids.to_pylist(), state.column(0).to_pylist(), strict=True)}
        return new


GAP, LATENESS = 5, 12
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(-20, 60)), min_size=1, max_size=60)
STEPS = st.lists(st.tuples(ROWS, st.integers(-30, 70), st.booleans()), max_size=6)


@FEW
@given(STEPS)
def test_session_table_agrees_with_its_twin_in_every_batch_and_after_a_reload(steps: Any) -> None:
    kernel, twin = Sessions(GAP, LATENESS), NaiveSessions(GAP, LATENESS)
    row, latest = 0, -(2**63)
    for rows, watermark, reload in steps:
        kernel.add([key for key, _ in rows], [time for _, time in rows], row)
        for key, time in rows:
            twin.add(key, time, row)
            row += 1
        latest = max(latest, watermark)
        assert kernel.advance(watermark) == twin.advance(watermark)
        assert kernel.late == twin.late
        if reload:
            kernel = kernel.reload()
            assert kernel.advance(latest) == ([], [])
    assert kernel.advance(END) == twin.advance(END)
    assert len(kernel.table) == 0


def test_a_row_just_inside_the_gap_joins_and_one_at_the_gap_does_not() -> None:
    table = SessionTable(10)
    ids, *_ = table.add(ints([0] * 4), times([100, 109, 119, 90]))
    assert ids.to_pylist()[0] == ids.to_pylist()[1]
    assert len(set(ids.to_pylist())) == 3


def test_a_row_that_joins_two_sessions_makes_three_into_one_and_reports_the_merge() -> None:
    table = SessionTable(10)
    old, *_ = table.add(ints([0, 0]), times([100, 118]))
    ids, created, into, source = table.add(ints([0]), times([109]))
    assert created.to_pylist() == []
    assert {into[0].as_py(), source[0].as_py()} == set(old.to_pylist())
    assert ids.to_pylist() == into.to_pylist()
    assert [b.to_pylist() for b in table.bounds(ids)] == [[100], [128]]


def test_merges_inside_one_call_are_not_reported_and_rows_get_the_session_that_is_left() -> None:
    table = SessionTable(10)
    ids, created, into, source = table.add(ints([0] * 4), times([100, 118, 136, 109]))
    assert len(created) == 2
    assert ids.to_pylist()[0] == ids.to_pylist()[1] == ids.to_pylist()[3] != ids.to_pylist()[2]
    assert len(into) == len(source) == 0
    ids, created, into, source = table.add(ints([0] * 2), times([154, 127]))
    assert len(table) == 2
    assert len(into) == 1
    assert len(created) == 1


def test_a_new_session_that_takes_in_two_old_ones_keeps_one_of_them() -> None:
    table = SessionTable(10)
    old, *_ = table.add(ints([0] * 2), times([100, 130]))
    ids, created, into, source = table.add(ints([0] * 3), times([115, 108, 123]))
    assert created.to_pylist() == []
    assert sorted([*into.to_pylist(), *source.to_pylist()]) == sorted(old.to_pylist())
    assert set(ids.to_pylist()) == set(into.to_pylist())


@pytest.mark.slow  # half a second of a core
def test_many_open_sessions_of_one_key_are_found_in_any_order() -> None:
    count = 50_000
    order = np.random.default_rng(2).permutation(count) * 20
    table = SessionTable(10)
    ids, *_ = table.add(ints(np.zeros(count)), times(order))
    assert len(set(ids.to_pylist())) == len(table) == count
    again, created, *_ = table.add(ints(np.zeros(count)), times(order[::-1] + 3))
    assert again.to_pylist() == ids.to_pylist()[::-1]
    ripe, over = table.advance(20 * 1000)
    assert len(ripe) == len(over) == 1000
    assert sorted(table.bounds(ripe)[0].to_pylist()) == list(range(0, 20_000, 20))
    assert table.remove(over).to_pylist() == []
    ids, created, into, _ = table.add(ints(np.zeros(count)), times(order[::-1] + 11))
    assert len(created) == 0
    assert len(into) == count - 1001  # each row touched the session before and the one after it
    assert len(table) == 1
    assert ids.to_pylist().count(-1) == 999  # but what is over stays over


def test_ids_and_entries_are_used_again() -> None:
    table = SessionTable(10)
    highest = 0
    for step in range(3000):
        ids, *_ = table.add(ints(range(20)), times([step * 7 + (step % 3) * 40] * 20))
        _, over = table.advance(step * 7 - 50)
        table.remove(over)
        highest = max(highest, *ids.to_pylist())
    assert highest < 400
    assert table.nbytes < 200_000


def test_merging_without_a_watermark_keeps_the_wheel_small() -> None:
    table = SessionTable(10)
    for step in range(0, 60_000, 6):
        table.add(ints([0, 0]), times([step + 12, step]))
    assert len(table) == 1
    assert table.nbytes < 100_000


def test_slots_of_keys_without_sessions_come_back_once() -> None:
    table = SessionTable(10)
    table.add(ints([0, 0, 1, 2]), times([0, 50, 0, 100]))
    _, over = table.advance(70)
    assert sorted(table.remove(over).to_pylist()) == [0, 1]
    ids, *_ = table.add(ints([0, 1, 1]), times([30, 200, 31]))
    assert ids.to_pylist()[::2] == [-1, -1]
    assert table.vacant(ints([0, 1, 1, 0])).to_pylist() == [0]


def test_a_changed_session_is_given_again_until_its_lateness_is_over() -> None:
    table = SessionTable(10, 100)
    ids, *_ = table.add(ints([0]), times([0]))
    assert [a.to_pylist() for a in table.advance(10)] == [ids.to_pylist(), []]
    assert [a.to_pylist() for a in table.advance(20)] == [[], []]
    table.add(ints([0]), times([5]))
    assert [a.to_pylist() for a in table.advance(20)] == [ids.to_pylist(), []]
    table.add(ints([0]), times([14]))
    assert [a.to_pylist() for a in table.advance(23)] == [[], []]
    assert [a.to_pylist() for a in table.advance(24)] == [ids.to_pylist(), []]
    assert [a.to_pylist() for a in table.advance(124)] == [[], ids.to_pylist()]


def test_times_at_the_ends_of_int64_neither_wrap_nor_join() -> None:
    table = SessionTable(10)
    extremes = [-(2**63), -(2**63) + 5, 0, 2**63 - 1, 2**63 - 4]
    ids, *_ = table.add(ints([0] * 5), times(extremes))
    low, near, middle, high, close = ids.to_pylist()
    assert low == near
    assert high == close
    assert len({low, middle, high}) == 3
    assert table.bounds(ints([high]))[1].to_pylist() == [2**63 - 1]
    assert len(table.advance(END)[1]) == 3


def test_selections_and_slices_name_rows() -> None:
    table = SessionTable(10)
    padded = times([7, 0, 100, 1, 200, 9])
    ids, *_ = table.add(ints([9, 0, 0, 1]).slice(1), padded.slice(1), ints([5, 0, 2, 3]).slice(1))
    first, _ = table.bounds(ids)
    assert first.to_pylist() == [0, 0, 200]
    assert table.slots(ids).to_pylist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((ints([0]), times([1, 2])), ValueError),
        ((ints([0]), times([1, 2]), ints([0, 1])), ValueError),
        ((ints([0]), times([1]), ints([1])), IndexError),
        ((ints([-1]), times([1])), IndexError),
        ((times([0]), times([1])), TypeError),
        ((ints([0]), ints([1])), TypeError),
        ((ints([None]), times([1])), ValueError),
        ((ints([0]), None), TypeError),
    ],
)
def test_wrong_arguments_are_errors(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SessionTable(10).add(*arguments)
    with pytest.raises(KeyError):
        SessionTable(10).remove(ints([0]))
    with pytest.raises(ValueError):
        SessionTable(0)


# The kernel of runs


def naive_runs(rows: list[tuple[int, int]], count: int, idle: int, span: int) -> tuple[list[int], list[int]]:
    """-> (number of each row's run, rows that begin one)."""
    current: dict[int, dict[str, int]] = {}
    numbers, heads = [], []
    for row, (key, time) in enumerate(rows):
        run = current.get(key)
        if run is not None and (
            (count and run["rows"] == count)
            or (idle and time >= run["last"] + idle)
            or (span and time >= run["first"] + span)
        ):
            run = None
        if run is None:
            run = current[key] = {"number": len(heads), "rows": 0, "last": time, "first": time}
            heads.append(row)
        run["rows"] += 1
        run["last"] = max(run["last"], time)
        numbers.append(run["number"])
    return numbers, heads


@FEW
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=80),
    st.sampled_from([(3, 0, 0), (1, 0, 0), (0, 7, 0), (0, 0, 9), (4, 6, 11), (0, 0, 0)]),
    st.integers(1, 30),
)
def test_run_table_agrees_with_its_twin_under_any_split(rows: Any, limits: Any, size: int) -> None:
    count, idle, span = limits
    table = RunTable(rows=count, idle_ms=idle, span_ms=span)
    numbers, heads = naive_runs(rows, count, idle, span)
    of_id: dict[int, int] = {}
    found_heads = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids, began, first_rows, ended = table.add(ints([k for k, _ in part]), times([t for _, t in part]))
        found_heads += [start + row for row in first_rows.to_pylist()]
        for id, row in zip(began.to_pylist(), first_rows.to_pylist(), strict=True):
            assert id not in of_id
            of_id[id] = numbers[start + row]
        assert [of_id[id] for id in ids.to_pylist()] == numbers[start : start + size]
        table.remove(ended)
        for id in ended.to_pylist():
            del of_id[id]
        if start % 3 == 0:
            state = table.export()
            table = RunTable(rows=count, idle_ms=idle, span_ms=span)
            renamed = zip(table.load(state).to_pylist(), state.column(0).to_pylist(), strict=True)
            of_id = {new: of_id[old] for new, old in renamed}
    assert found_heads == heads
    assert len(table) == len(of_id)


def test_runs_that_are_over_by_event_time_are_found_and_their_slots_come_back() -> None:
    table = RunTable(idle_ms=10)
    table.add(ints([0, 1, 2]), times([0, 5, 100]))
    table.add(ints([0]), times([8]))
    over = table.advance(15)
    assert table.slots(over).to_pylist() == [1]
    assert table.remove(over).to_pylist() == [1]
    over = table.advance(18)
    assert [b.to_pylist() for b in table.bounds(over)] == [[0], [8]]
    assert table.remove(over).to_pylist() == [0]
    assert len(table) == 1
    assert len(table.advance(18)) == 0


def test_a_slot_with_two_runs_in_one_call_comes_back_once_and_only_when_none_is_left() -> None:
    table = RunTable(rows=2)
    _, began, _, ended = table.add(ints([0] * 4 + [1] * 3))
    assert len(began) == 4
    assert len(ended) == 3
    assert table.remove(ended).to_pylist() == [0]
    assert len(table) == 1


def test_run_memory_is_flat_over_many_keys() -> None:
    table = RunTable(span_ms=10)
    for step in range(500):
        _, _, _, ended = table.add(ints(range(100)), times([step * 5] * 100))
        table.remove(ended)
        table.remove(table.advance(step * 5 - 20))
    assert len(table) == 100
    assert table.nbytes < 100_000


# The operator

SCHEMA = pa.schema([("user", pa.string()), ("x", pa.float64()), ("tag", pa.string()), (TIME_COLUMN, pa.int64())])
CALLS = [
    AggregateColumn("n", "count"),
    AggregateColumn("total", "sum", "x"),
    AggregateColumn("least", "min", "x"),
    AggregateColumn("start", "first", "x"),
    AggregateColumn("end", "last", "x"),
]
EXTRAS = [AggregateColumn("tags", "count_distinct", "tag"), AggregateColumn("all", "collect_list", "x")]


def batch_of(rows: list[tuple[Any, Any, Any, int]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def expected(user: Any, first: int, end: int, rows: list[Any]) -> dict[str, Any]:
    """What the session of these rows (in order of coming) must give."""
    values = [x for _, x, _, _ in rows if x is not None]
    by_time = sorted(rows, key=lambda row: row[3])
    latest = max(row[3] for row in rows)
    return {
        "user": user,
        "window_start": first,
        "window_end": end,
        "n": len(rows),
        "total": sum(values) if values else None,
        "least": min(values, default=None),
        "start": by_time[0][1],
        "end": [row[1] for row in rows if row[3] == latest][-1],
        "tags": len({tag for _, _, tag, _ in rows if tag is not None}),
        "all": [x for _, x, _, _ in by_time],
        TIME_COLUMN: end - 1,
    }


def plain(rows: list[dict[str, Any]], *names: str) -> list[Any]:
    """Rows with times as ms, in an order of their own."""
    for row in rows:
        for name in ("window_start", "window_end"):
            if name in row and not isinstance(row[name], int):
                row[name] = round(row[name].timestamp() * 1000)
    return sorted(({k: v for k, v in row.items() if k not in names} for row in rows), key=repr)


ROW = st.tuples(
    st.sampled_from(["ann", "bob", "", None]),
    st.none() | st.integers(-64, 64).map(lambda n: n / 64),
    st.sampled_from(["r", "g", None]),
    st.integers(-20, 60),
)
OPERATOR_STEPS = st.lists(
    st.tuples(st.lists(ROW, min_size=1, max_size=30), st.integers(-30, 70), st.sampled_from([0, 0, 1, 3])), max_size=5
)


@settings(max_examples=30, deadline=None)
@given(OPERATOR_STEPS, st.sampled_from([1, 4, 1000]), st.booleans())
def test_sessions_agree_with_their_twin_under_any_split_restart_and_parallelism(
    steps: Any, size: int, extras: bool
) -> None:
    twin = NaiveSessions(GAP, LATENESS)
    calls = CALLS + EXTRAS if extras else CALLS
    ids = {user: number for number, user in enumerate(["ann", "bob", "", None])}
    users = {number: user for user, number in ids.items()}
    rows: list[Any] = []
    want = []
    with tempfile.TemporaryDirectory() as directory:
        run = OperatorRun(
            lambda: SessionAggregate(GAP, ["user"], calls, allowed_lateness_ms=LATENESS),
            SCHEMA,
            ["user"],
            Path(directory),
        )
        for part, watermark, restart in [*steps, ([], END, 0)]:
            if part:
                run.feed(batch_of(part), size)
            for row in part:
                twin.add(ids[row[0]], row[3], len(rows))
                rows.append(row)
            run.advance(watermark)
            for key, first, end, members in twin.advance(watermark)[0]:
                want.append(expected(users[key], first, end, [rows[i] for i in sorted(members)]))
            if restart:
                run.restart(restart)
        run.end()
    left_out = () if extras else ("tags", "all")
    assert plain(run.results) == plain(want, *left_out)
    late = [dict(zip(SCHEMA.names[:3], rows[i][:3], strict=True)) for i in twin.late]
    assert sorted(run.late, key=repr) == sorted(late, key=repr)
    assert run.statistic("late_rows") == len(late)
    assert run.statistic("sessions") == run.statistic("keys") == 0


@pytest.mark.slow  # half a second of a core
def test_sessions_agree_with_duckdb_on_rows_out_of_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    count = 40_000
    time = np.sort(rng.integers(0, 400_000, count)) + rng.integers(0, 3_000, count)
    table = pa.table(
        {
            "user": pa.array([f"u{n}" for n in rng.zipf(1.3, count) % 300]),
            "x": pa.array(rng.integers(-6400, 6400, count) / 64),
            "tag": pa.array(rng.choice(["r", "g", "b"], count)),
            TIME_COLUMN: pa.array(time),
        }
    )
    calls = [
        AggregateColumn("n", "count"),
        AggregateColumn("total", "sum", "x"),
        AggregateColumn("tags", "count_distinct", "tag"),
    ]
    run = OperatorRun(lambda: SessionAggregate(1_000, ["user"], calls), SCHEMA, ["user"], tmp_path, 2)
    for step, start in enumerate(range(0, count, 5_000)):
        part = table.slice(start, 5_000).combine_chunks().to_batches()[0]
        run.feed(part, 1_700)
        run.advance(int(time[: start + 5_000].max()) - 3_000)
        if step == 3:
            run.restart(3)
    run.end()
    assert run.late == []
    query = f"""
        with marked as (
            select *, coalesce({TIME_COLUMN} - lag({TIME_COLUMN}) over w >= 1000, true)::int as fresh
            from rows window w as (partition by "user" order by {TIME_COLUMN})
        ), numbered as (
            select *, sum(fresh) over (partition by "user" order by {TIME_COLUMN} rows unbounded preceding) as number from marked
        )
        select "user", min({TIME_COLUMN}) as window_start, max({TIME_COLUMN}) + 1000 as window_end,
               count(*) as n, sum(x) as total, count(distinct tag) as tags
        from numbered group by "user", number
    """
    connection = duckdb.connect()
    connection.register("rows", table)
    want = connection.execute(query).fetchall()
    columns = ["user", "window_start", "window_end", "n", "total", "tags"]
    assert len(want) > 2_000
    assert sorted(tuple(row[c] for c in columns) for row in plain(run.results)) == sorted(want)


def test_a_row_that_joins_three_sessions_gives_one_result(tmp_path: Path) -> None:
    run = OperatorRun(lambda: SessionAggregate(10, ["user"], CALLS + EXTRAS), SCHEMA, ["user"], tmp_path)
    run.feed(batch_of([("a", 1.0, "r", 100), ("a", 2.0, "g", 118), ("a", 4.0, "r", 136)]))
    run.restart(1)
    run.feed(batch_of([("a", 8.0, None, 127), ("a", 16.0, "b", 109)]), 1)
    run.advance(146)
    [row] = plain(run.results)
    assert (row["window_start"], row["window_end"], row["n"], row["total"]) == (100, 146, 5, 31.0)
    assert (row["tags"], row["all"]) == (3, [1.0, 16.0, 2.0, 8.0, 4.0])


def test_late_rows_go_to_the_side_and_leave_nothing_behind(tmp_path: Path) -> None:
    run = OperatorRun(lambda: SessionAggregate(10, ["user"], CALLS), SCHEMA, ["user"], tmp_path)
    run.advance(1_000)
    run.feed(batch_of([(f"u{n}", 1.0, "r", n % 900) for n in range(5_000)]))
    assert len(run.late) == run.statistic("late_rows") == 5_000
    assert TIME_COLUMN not in run.late[0]
    assert run.statistic("keys") == run.statistic("sessions") == 0
    run.restart(1)
    run.feed(batch_of([("a", 1.0, "r", 985)]))  # the watermark is part of the checkpoint
    assert run.statistic("late_rows") == 5_001


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("calls", [CALLS, CALLS + EXTRAS])
def test_memory_of_sessions_is_that_of_the_open_ones(tmp_path: Path, calls: list[AggregateColumn]) -> None:
    run = OperatorRun(lambda: SessionAggregate(100, ["user"], calls), SCHEMA, ["user"], tmp_path)
    sizes = []
    for step in range(60):
        run.feed(batch_of([(f"{step}.{n}", 1.0, "r", step * 100 + n % 100) for n in range(500)]))
        run.advance(step * 100)
        sizes.append(run.statistic("bytes"))
    assert len(run.results) == 58 * 500 + run.results[-1]["n"] * 5
    assert run.statistic("keys") <= 1_000
    assert max(sizes[30:]) <= 1.2 * max(sizes[:30])


def test_sessions_need_event_time_and_columns_that_are_there(tmp_path: Path) -> None:
    SessionAggregate(10, ["user"], CALLS).close()
    untimed = pa.schema(list(SCHEMA)[:3])
    with pytest.raises(UserError, match="event time"):
        OperatorRun(lambda: SessionAggregate(10, ["user"], CALLS), untimed, ["user"], tmp_path)
    with pytest.raises(UserError, match="'who'"):
        OperatorRun(lambda: SessionAggregate(10, ["who"], CALLS), SCHEMA, ["who"], tmp_path)
    twice = [AggregateColumn("window_end", "count")]
    with pytest.raises(UserError, match="two columns 'window_end'"):
        OperatorRun(lambda: SessionAggregate(10, ["user"], twice), SCHEMA, ["user"], tmp_path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    run = OperatorRun(lambda: SessionAggregate(10, ["user"], CALLS), SCHEMA, ["user"], tmp_path)
    run.feed(batch_of([("a", 1.0, "r", 0)]))
    saved = run.checkpoint()
    other = SessionAggregate(10, [SCHEMA.names[1]], CALLS)
    other.open(OperatorContext(SCHEMA))
    with pytest.raises(CorruptCheckpoint, match="other columns"):
        other.restore(saved)


def test_sessions_without_keys_are_those_of_the_whole_stream(tmp_path: Path) -> None:
    run = OperatorRun(lambda: SessionAggregate(10, [], CALLS), SCHEMA, [], tmp_path)
    run.feed(batch_of([("a", 1.0, "r", 0), ("b", 2.0, "r", 5), ("c", 4.0, "r", 30)]))
    run.restart(1)
    run.end()
    assert [row["total"] for row in plain(run.results)] == [3.0, 4.0]
