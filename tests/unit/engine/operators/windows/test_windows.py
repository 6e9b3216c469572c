"""Windows of event time against DuckDB and plain Python: one harness over all windows, aggregates and ways in which rows can come.

The answer must not depend on how rows are split into batches, where watermarks fall, how many subtasks there are, or where the app
is stopped and started again with another number of them.
"""

import json
import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.partition import hash_columns, partition_indices
from sabot.api.windows import cumulative, hopping, tumbling
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.aggregates.combining import LocalCombine
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.windows import fixed
from sabot.engine.operators.windows.fixed import WindowAggregate
from sabot.engine.operators.windows.top import WindowTopN
from sabot.errors import UserError

SCHEMA = pa.schema(
    [
        ("account", pa.string()),
        ("kind", pa.int32()),
        ("amount", pa.float64()),
        ("units", pa.int64()),
        ("text", pa.string()),
        ("online", pa.bool_()),
        (TIME_COLUMN, pa.int64()),
    ]
)


class SumOfSquares:
    type = pa.float64()

    def init(self) -> list[float]:
        return [0.0]

    def accumulate(self, state: list[float], values: pa.Array) -> list[float]:
        return [state[0] + sum(v * v for v in values.to_pylist() if v is not None)]

    def merge(self, state: list[float], other: list[float]) -> list[float]:
        return [state[0] + other[0]]

    def finish(self, state: list[float]) -> float:
        return state[0]


# Each aggregate, and the same in DuckDB's SQL over the columns, `t` (event time) and `row` (arrival).
KERNEL = [
    (AggregateColumn("n", "count"), "count(*)"),
    (AggregateColumn("n_text", "count", "text"), "count(text)"),
    (AggregateColumn("total", "sum", "amount"), "sum(amount)"),
    (AggregateColumn("n_units", "sum", "units"), "sum(units)::bigint"),
    (AggregateColumn("least", "min", "amount"), "min(amount)"),
    (AggregateColumn("most", "max", "units"), "max(units)"),
    (AggregateColumn("middle", "mean", "amount"), "avg(amount)"),
    (AggregateColumn("spread", "variance", "amount"), "var_samp(amount)"),
    (AggregateColumn("deviation", "stddev", "amount", ddof=0), "stddev_pop(amount)"),
    (AggregateColumn("early", "first", "units"), "first(units order by t, row)"),
    (AggregateColumn("late", "last", "amount"), "first(amount order by t desc, row desc)"),
    (AggregateColumn("online_total", "sum", "amount", where="online"), "sum(amount) filter (online)"),
    (AggregateColumn("online_texts", "count", "text", where="online"), "count(text) filter (online)"),
]
GATHERED = [
    (AggregateColumn("kinds", "count_distinct", "units"), "count(distinct units)"),
    (AggregateColumn("words", "collect_list", "text"), "list(text order by t, row)"),
    (
        AggregateColumn("online_words", "collect_list", "text", where="online"),
        "coalesce(list(text order by t, row) filter (online), [])",
    ),
    (AggregateColumn("low", "min", "text"), "min(text)"),
    (AggregateColumn("high", "max", "text", where="online"), "max(text) filter (online)"),
    (AggregateColumn("opening", "first", "text"), "first(text order by t, row)"),
    (AggregateColumn("closing", "last", "text"), "first(text order by t desc, row desc)"),
    (
        AggregateColumn("cheapest", "arg_min", "text", by="amount"),
        "first(text order by amount, t, row) filter (amount is not null)",
    ),
    (
        AggregateColumn("dearest", "arg_max", "units", by="text"),
        "first(units order by text desc, t, row) filter (text is not null)",
    ),
    (AggregateColumn("squares", "user", "amount", function=SumOfSquares()), "coalesce(sum(amount * amount), 0)"),
]

ALL = [call for call, _ in [*KERNEL, *GATHERED]]

WINDOWS = {
    "tumbling": tumbling("100ms"),
    "tumbling from 30": tumbling("70ms", offset="30ms"),
    "tumbling with a row or two each": tumbling("4ms", offset="1ms"),
    "hopping by 3": hopping("150ms", "50ms"),
    "hopping by 12": hopping("240ms", "20ms", offset="7ms"),
    "cumulative": cumulative("500ms", "100ms", offset="20ms"),
    "hopping with a row or two a pane": hopping("20ms", "4ms", offset="1ms"),
    "cumulative with a row or two a pane": cumulative("24ms", "4ms"),
}
KEYS = {"no key": [], "two keys": ["account", "kind"]}


def rows(seed: int, count: int, *, disorder: int = 60, gap: int = 0, start: int = -700) -> pa.RecordBatch:
    """Rows of rising event time, `disorder` ms of it, that repeat times and values; sums of amounts are exact."""
    dice = random.Random(seed)
    data: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in range(count):
        data["account"].append(dice.choice([None, "", "a", "b", "ä", "a-much-longer-name-of-an-account"]))
        data["kind"].append(dice.choice([None, 1, 2]))
        data["amount"].append(dice.choice([None, dice.randrange(-6400, 6400) / 64]))
        data["units"].append(dice.choice([None, dice.randrange(5), 2**40]))
        data["text"].append(dice.choice([None, "x", "y", "", "zebra" * 5, str(dice.randrange(30))]))
        data["online"].append(dice.choice([None, True, False]))
        data[TIME_COLUMN].append(start + row * 3 + (gap if row > count // 2 else 0) + dice.randrange(disorder + 1))
    return pa.RecordBatch.from_pydict(data, SCHEMA)


def expected(
    data: pa.RecordBatch, window: Any, keys: list[str], calls: list[tuple[AggregateColumn, str]]
) -> list[dict[str, Any]]:
    """DuckDB's answer: the windows beside each row, then one group by."""
    step = getattr(window, "slide_ms", getattr(window, "step_ms", window.size_ms))
    spans = defaultdict(list)
    for row, time in enumerate(data.column(TIME_COLUMN).to_pylist()):
        for start, end in windows_of(time, window, step):
            spans["row"].append(row), spans["window_start"].append(start), spans["window_end"].append(end)
    spans = pa.table(spans)
    numbered = pa.Table.from_batches([data]).append_column("row", pa.array(range(data.num_rows)))  # noqa: F841
    by = ", ".join([*keys, "window_start", "window_end"])
    what = ", ".join(f'{sql} as "{call.name}"' for call, sql in calls)
    sql = f"select {by}, {what} from (select *, {TIME_COLUMN} as t from numbered) join spans using (row) group by {by}"
    return duckdb.sql(sql).to_arrow_table().to_pylist()


def windows_of(time: int, window: Any, step: int) -> Iterator[tuple[int, int]]:
    pane = (time - window.offset_ms) // step * step + window.offset_ms
    if hasattr(window, "step_ms"):
        start = (time - window.offset_ms) // window.size_ms * window.size_ms + window.offset_ms
        return ((start, end) for end in range(pane + step, start + window.size_ms + 1, step))
    return ((end - window.size_ms, end) for end in range(pane + step, pane + window.size_ms + 1, step))


class Subtasks:
    """Subtasks of one WindowAggregate, as the runtime runs them: rows split by key group, watermarks to all."""

    def __init__(
        self,
        directory: Path | None,
        window: Any,
        keys: list[str],
        calls: list[AggregateColumn],
        budget: int = 1_000_000,
        **options: Any,
    ) -> None:
        self.budget = budget
        self.make = lambda: WindowAggregate(window, keys, calls, **options)
        self.keys, self.directory = keys, directory
        self.out: list[pa.RecordBatch] = []
        self.late: list[pa.RecordBatch] = []
        self.starts = 0
        self.start(1)

    def start(self, parallelism: int, saved: list[Saved] | None = None) -> None:
        self.starts += 1
        self.parts = []
        for subtask in range(parallelism):
            operator = self.make()
            operator.emit = lambda batch: self.out.append(batch.taken())
            place = None
            if self.directory is not None:
                place = self.directory / f"database-{self.starts}-{subtask}"
                place.mkdir()
            side = {"late": lambda batch: self.late.append(batch.taken())}
            context = OperatorContext(SCHEMA, subtask, parallelism, place, memory_budget=self.budget, branches=side)
            self.schema = operator.open(context)
            if saved is not None:
                operator.restore(saved)
            self.parts.append(operator)

    def process(self, data: pa.RecordBatch) -> None:
        if len(self.parts) == 1 or not self.keys:
            self.parts[0].process(Batch(data))
            return
        hashes = hash_columns([data.column(key) for key in self.keys])
        indices, bounds = partition_indices(hashes, len(self.parts))
        for part, (begin, end) in enumerate(zip(bounds.to_pylist(), bounds.to_pylist()[1:], strict=False)):
            if end > begin:
                self.parts[part].process(Batch(data, selection=indices.slice(begin, end - begin), hashes=hashes))

    def advance(self, watermark: int) -> None:
        for part in self.parts:
            part.advance(watermark)

    def restart(self, directory: Path, parallelism: int) -> None:
        """Stopped at a barrier, started again from what was saved."""
        saved = []
        for number, part in enumerate(self.parts):
            facts, state = part.snapshot()
            place = directory / f"saved-{self.starts}-{number}"
            place.mkdir()
            if state is not None:
                state.save(place)
            saved.append(Saved(place, json.loads(json.dumps(facts))))
        for part in self.parts:
            part.close()
        self.start(parallelism, saved)

    def results(self) -> list[dict[str, Any]]:
        for batch in self.out:
            assert batch.schema == self.schema
            batch.validate(full=True)
        return [row for batch in self.out for row in plain(batch)]


def plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    for name in ("window_start", "window_end"):
        index = batch.schema.get_field_index(name)
        batch = batch.set_column(index, name, batch.column(name).cast(pa.int64()))
    return batch.to_pylist()


def run(
    subtasks: Subtasks, data: pa.RecordBatch, seed: int, *, restarts: Path | None = None, splits: int = 12
) -> list[dict[str, Any]]:
    """The rows in batches of any size, watermarks where no row is late by them, and restarts anywhere."""
    dice = random.Random(seed)
    cuts = sorted({0, data.num_rows, *(dice.randrange(data.num_rows + 1) for _ in range(splits))})
    times = data.column(TIME_COLUMN).to_pylist()
    for begin, end in pairwise(cuts):
        subtasks.process(data.slice(begin, end - begin))
        if dice.random() < 0.6:
            subtasks.advance(min(times[end:], default=0) - dice.randrange(40))
        if restarts is not None and dice.random() < 0.4:
            subtasks.restart(restarts, dice.randrange(1, 5) if subtasks.keys else 1)
    subtasks.advance(END_OF_TIME)
    for part in subtasks.parts:
        part.finish()
        part.close()
    results = subtasks.results()
    for row in results:
        assert row.pop(TIME_COLUMN) == row["window_end"] - 1
    return results


def check(found: list[dict[str, Any]], wanted: list[dict[str, Any]], keys: list[str]) -> None:
    by = [*keys, "window_start", "window_end"]

    def ordered(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(
            table,
            key=lambda row: [(row[name] is not None, row[name]) if row[name] is not None else (False,) for name in by],
        )

    assert len(found) == len(wanted)
    for mine, theirs in zip(ordered(found), ordered(wanted), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, float):
                assert mine[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (name, mine)
            else:
                assert mine[name] == value, (name, mine)


@pytest.mark.one_in(30, "half a second of a core each")
@pytest.mark.parametrize("calls", [KERNEL, GATHERED], ids=["kernel", "gathered"])
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_windows_give_what_duckdb_gives(tmp_path, window, keys, calls):
    data = rows(1, 160)
    subtasks = Subtasks(tmp_path if keys else None, window, keys, [call for call, _ in calls])
    check(run(subtasks, data, 2, restarts=tmp_path), expected(data, window, keys, calls), keys)
    assert subtasks.late == []


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    window=st.sampled_from(list(WINDOWS.values())),
    count=st.integers(0, 90),
    gap=st.sampled_from([0, 150, 10**9]),
    splits=st.integers(0, 40),
)
def test_the_answer_is_the_same_however_rows_come(tmp_path_factory, seed, window, count, gap, splits):
    calls = [KERNEL[0], KERNEL[2], KERNEL[9], GATHERED[1]]
    data = rows(seed, count, gap=gap, disorder=seed % 200)
    subtasks = Subtasks(None, window, ["account"], [call for call, _ in calls])
    found = run(subtasks, data, seed, restarts=tmp_path_factory.mktemp("saved"), splits=splits)
    check(found, expected(data, window, ["account"], calls) if count else [], ["account"])


@pytest.mark.one_in(8, "half a second of a core each")
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("window", ["tumbling", "hopping by 3", "cumulative"])
def test_two_phases_give_what_one_gives(window, keys):
    window, data = WINDOWS[window], rows(3, 250)
    local = LocalCombine(window, keys, ALL)
    final = WindowAggregate(window, keys, ALL, partial=True)
    out: list[pa.RecordBatch] = []
    local.emit, final.emit = final.process, lambda batch: out.append(batch.taken())
    schema = final.open(OperatorContext(local.open(OperatorContext(SCHEMA))))
    assert schema.names == [*keys, "window_start", "window_end", *[call.name for call in ALL], TIME_COLUMN]
    for begin in range(0, 250, 60):
        local.process(Batch(data.slice(begin, 60)))
        final.advance(min(data.column(TIME_COLUMN).to_pylist()[begin + 60 :], default=END_OF_TIME))
    found = [{k: v for k, v in row.items() if k != TIME_COLUMN} for batch in out for row in plain(batch)]
    check(found, expected(data, window, keys, [*KERNEL, *GATHERED]), keys)


def test_partial_states_that_come_too_late_count_as_the_rows_they_were():
    calls = [AggregateColumn("online", "count", where="online"), AggregateColumn("n_text", "count", "text")]
    local = LocalCombine(tumbling("10ms"), ["account"], calls)
    final = WindowAggregate(tumbling("10ms"), ["account"], calls, partial=True)
    local.emit, final.emit = final.process, lambda batch: None
    final.open(OperatorContext(local.open(OperatorContext(SCHEMA))))
    final.advance(20)
    local.process(Batch(batch_of([5, 6, 15, 25])))
    assert final.statistics()["late_rows"] == 3
    assert local.statistics() == {"rows_in": 4, "rows_out": 3}


def batch_of(times: list[int], accounts: list[str | None] | None = None) -> pa.RecordBatch:
    count = len(times)
    columns: dict[str, list[Any]] = {name: [None] * count for name in SCHEMA.names}
    columns["account"] = list(accounts) if accounts is not None else ["a"] * count
    columns["units"] = [1] * count
    columns[TIME_COLUMN] = list(times)
    return pa.RecordBatch.from_pydict(columns, SCHEMA)


def spans(subtasks: Subtasks) -> list[tuple[Any, ...]]:
    """(start, end, account, n) of what has come out since the last call."""
    found = [(row["window_start"], row["window_end"], row["account"], row["n"]) for row in subtasks.results()]
    subtasks.out.clear()
    return found


COUNT = [AggregateColumn("n", "count")]


def test_a_window_closes_when_the_watermark_reaches_its_end_and_windows_come_in_order():
    subtasks = Subtasks(None, tumbling("10ms"), ["account"], COUNT)
    subtasks.process(batch_of([25, 3, 14, 9]))
    subtasks.advance(9)
    assert spans(subtasks) == []
    subtasks.advance(10)
    assert spans(subtasks) == [(0, 10, "a", 2)]
    subtasks.advance(40)
    assert spans(subtasks) == [(10, 20, "a", 1), (20, 30, "a", 1)]
    subtasks.advance(30)  # a watermark does not go back
    assert subtasks.parts[0].statistics()["panes"] == 0


def test_late_rows_are_counted_and_go_to_the_side_without_their_time():
    subtasks = Subtasks(None, tumbling("10ms"), ["account"], COUNT)
    subtasks.advance(20)
    subtasks.process(batch_of([20, 19, 5, 31]))
    subtasks.advance(END_OF_TIME)
    assert spans(subtasks) == [(20, 30, "a", 1), (30, 40, "a", 1)]
    assert subtasks.parts[0].statistics()["late_rows"] == 2
    assert [batch.num_rows for batch in subtasks.late] == [2]
    assert TIME_COLUMN not in subtasks.late[0].schema.names
    subtasks.process(batch_of([10**15]))  # after the end of time everything is late
    assert subtasks.parts[0].statistics()["late_rows"] == 3


def test_a_row_of_a_hopping_window_is_out_only_when_its_last_window_is_over(caplog):
    subtasks = Subtasks(None, hopping("30ms", "10ms"), ["account"], COUNT)
    subtasks.advance(20)
    subtasks.process(batch_of([5, -5, -15, 12]))  # in windows to 10, 20, 30; to 0, 10, 20; to -10, 0, 10; to 20, 30, 40
    subtasks.advance(END_OF_TIME)
    assert spans(subtasks) == [(0, 30, "a", 2), (10, 40, "a", 1)]
    assert [each.column("account").to_pylist() for each in subtasks.late] == [["a", "a"]]
    with caplog.at_level(logging.INFO, logger="sabot"):
        subtasks.parts[0].close()
    assert subtasks.parts[0].statistics()["late_rows"] == 4
    assert "; 2 of them missed only some of their windows, and count in the others" in caplog.text


@pytest.mark.parametrize("window", [hopping("30ms", "10ms"), cumulative("30ms", "10ms")], ids=["hopping", "cumulative"])
@pytest.mark.parametrize("lateness", [0, 10])
def test_rows_that_are_late_for_some_of_their_windows_are_counted_in_one_phase_and_in_two(window, lateness, caplog):
    for two in (False, True):
        final = WindowAggregate(window, [], COUNT, allowed_lateness_ms=lateness, partial=two)
        final.emit = lambda batch: None
        first = LocalCombine(window, [], COUNT) if two else final
        rows_in = first.open(OperatorContext(SCHEMA)) if two else SCHEMA
        if two:
            first.emit = final.process
        final.open(OperatorContext(rows_in))
        final.advance(20 + lateness)
        first.process(Batch(batch_of([1, 2, 15, 21, 25])))  # windows that end at 10 and 20 are over, lateness and all
        assert final.statistics()["late_rows"] == 3
        with caplog.at_level(logging.WARNING, logger="sabot"):
            final.close()
        assert caplog.messages.pop().endswith(": they missed only some of their windows, and count in the others")


def test_a_row_within_the_allowed_lateness_brings_its_window_again(tmp_path):
    for restart in (False, True):
        subtasks = Subtasks(None, tumbling("10ms"), ["account"], COUNT, allowed_lateness_ms=20)
        subtasks.process(batch_of([1, 2, 12], ["a", "b", "a"]))
        subtasks.advance(20)
        assert sorted(spans(subtasks)) == [(0, 10, "a", 1), (0, 10, "b", 1), (10, 20, "a", 1)]
        subtasks.process(batch_of([3, 3], ["a", "c"]))
        if restart:
            subtasks.restart(tmp_path, 3)
        subtasks.advance(21)
        assert sorted(spans(subtasks)) == [(0, 10, "a", 2), (0, 10, "c", 1)]
        subtasks.advance(29)
        assert spans(subtasks) == []
        subtasks.process(batch_of([4]))
        subtasks.advance(50)
        assert spans(subtasks) == [(0, 10, "a", 3)]
        subtasks.process(batch_of([5]))
        subtasks.advance(END_OF_TIME)
        assert spans(subtasks) == []
        assert sum(part.statistics()["late_rows"] for part in subtasks.parts) == 1


class Model:
    """Windows in plain Python, all rows kept: what comes out at each step, with lateness and early results."""

    def __init__(self, window: Any, lateness: int, every: int | None) -> None:
        self.window, self.lateness, self.every = window, lateness, every
        self.step = getattr(window, "slide_ms", getattr(window, "step_ms", window.size_ms))
        self.counts: dict[tuple[int, int, str], int] = defaultdict(int)
        self.again: set[tuple[int, int, str]] = set()
        self.watermark = -(10**9)
        self.late = 0

    def process(self, times: list[int], accounts: list[str]) -> None:
        for time, account in zip(times, accounts, strict=True):
            spans = list(windows_of(time, self.window, self.step))
            over = [end + self.lateness <= self.watermark for _, end in spans]
            self.late += any(over)
            if all(over):
                continue
            for start, end in spans:
                self.counts[start, end, account] += 1
                if end <= self.watermark < end + self.lateness:
                    self.again.add((start, end, account))

    def advance(self, watermark: int) -> list[tuple[Any, ...]]:
        before, self.watermark = self.watermark, max(watermark, self.watermark)
        out = sorted(self.again)
        out += sorted(g for g in self.counts if before < g[1] <= self.watermark)
        if self.every and before // self.every != self.watermark // self.every:
            out += sorted(g for g in self.counts if g[1] > self.watermark)
        self.again.clear()
        return [(*group, self.counts[group]) for group in out]


@settings(max_examples=25, deadline=None)
@given(
    window=st.sampled_from(
        [
            tumbling("10ms"),
            tumbling("2ms"),
            hopping("30ms", "10ms"),
            cumulative("30ms", "10ms"),
            hopping("50ms", "10ms"),
            hopping("6ms", "2ms"),
            cumulative("8ms", "2ms"),
        ]
    ),
    lateness=st.sampled_from([0, 5, 25, 60]),
    every=st.sampled_from([None, 7, 40]),
    steps=st.lists(
        st.lists(st.tuples(st.integers(-60, 60), st.sampled_from("ab")), max_size=12) | st.integers(1, 30) | st.none(),
        max_size=25,
    ),
)
def test_late_and_early_results_are_those_of_plain_python(tmp_path_factory, window, lateness, every, steps):
    directory = tmp_path_factory.mktemp("saved")
    subtasks = Subtasks(None, window, ["account"], COUNT, allowed_lateness_ms=lateness, emit_every_ms=every)
    model, watermark = Model(window, lateness, every), 0
    for step in steps:
        if step is None:
            subtasks.restart(directory, 1 + len(subtasks.parts) % 3)
        elif isinstance(step, int):
            watermark += step
            subtasks.advance(watermark)
            wanted = model.advance(watermark)
            found = spans(subtasks)
            assert sorted(found) == sorted(wanted)
            if len(subtasks.parts) == 1:
                assert [end for _, end, *_ in found] == [end for _, end, *_ in sorted(wanted, key=itemgetter(1))]
        else:
            times, accounts = [watermark + time for time, _ in step], [account for _, account in step]
            subtasks.process(batch_of(times, accounts))
            model.process(times, accounts)
    assert sum(part.statistics()["late_rows"] for part in subtasks.parts) == model.late


def test_windows_after_a_long_gap_do_not_wait_for_every_empty_one():
    for window in [tumbling("1ms"), hopping("60ms", "1ms"), cumulative("1s", "1ms")]:
        subtasks = Subtasks(None, window, ["account"], COUNT)
        subtasks.process(batch_of([0, 10**14]))  # 3,000 years
        subtasks.advance(10**14 - 100_000)
        subtasks.advance(10**14 + 100_000)
        ends = {end for _, end, *_ in spans(subtasks)}
        assert min(ends) == 1
        assert 10**14 < max(ends) <= 10**14 + 1_000


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("window", [tumbling("2ms"), hopping("8ms", "2ms"), cumulative("8ms", "2ms")], ids=str)
def test_windows_with_a_row_each_close_together(window):
    for lateness, every in [(0, None), (500, None), (0, 7)]:
        subtasks = Subtasks(None, window, ["account"], COUNT, allowed_lateness_ms=lateness, emit_every_ms=every)
        for start in range(0, 4_000, 400):
            subtasks.process(batch_of(list(range(start, start + 400, 2))))
            subtasks.advance(start + 300)
        subtasks.advance(END_OF_TIME)
        assert len(subtasks.out) <= 21  # about one batch for each watermark, and one for early results
        ends = [end for _, end, *_ in spans(subtasks)]
        assert len(set(ends)) == (2_003 if window == hopping("8ms", "2ms") else 2_000)
        assert every or ends == sorted(ends)
        assert subtasks.parts[0].statistics()["merges"] == 0  # no window was made alone


@pytest.mark.one_in(8, "a quarter of a second of a core each")
@pytest.mark.parametrize(
    ("calls", "many"),
    [(KERNEL, 16), (KERNEL, 10_000), (GATHERED, 16)],
    ids=["kernel, together", "kernel, alone", "gathered"],
)
@pytest.mark.parametrize("lateness", [0, 300])
@pytest.mark.parametrize("window", [hopping("60ms", "10ms"), cumulative("60ms", "10ms", offset="3ms")], ids=str)
def test_windows_with_panes_of_few_and_of_many_rows_give_what_duckdb_gives(
    tmp_path, monkeypatch, window, lateness, calls, many
):
    monkeypatch.setattr(fixed, "MANY_WINDOWS", many)
    dice, data = random.Random(7), rows(7, 900, disorder=90)
    times = np.array(data.column(TIME_COLUMN).to_pylist())
    burst = np.flatnonzero((times > 800) & (times < 1_600))
    times[burst] = 1_000 + times[burst] % 20  # two panes have a hundred rows and more, beside others that have three
    order = np.argsort(times // 200, kind="stable")
    data = data.set_column(data.num_columns - 1, TIME_COLUMN, pa.array(times)).take(pa.array(order))
    subtasks = Subtasks(
        tmp_path, window, ["account", "kind"], [call for call, _ in calls], allowed_lateness_ms=lateness
    )
    times = data.column(TIME_COLUMN).to_pylist()
    for start in range(0, data.num_rows, 150):
        subtasks.process(data.slice(start, 150))
        subtasks.advance(min(times[start + 150 :], default=0) + lateness // 2 - dice.randrange(40))
        if start == 450:
            subtasks.restart(tmp_path, 2)
    subtasks.advance(END_OF_TIME)
    assert subtasks.late == []
    found = subtasks.results()
    last = {}  # a window that late rows came for is emitted again
    for row in found:
        row.pop(TIME_COLUMN)
        last[row["account"], row["kind"], row["window_start"], row["window_end"]] = row
    assert lateness or len(last) == len(found)
    check(list(last.values()), expected(data, window, ["account", "kind"], calls), ["account", "kind"])
    alone = sum(part.statistics()["merges"] for part in subtasks.parts)
    assert lateness or (alone == 0) == (calls == KERNEL and many == 16)  # some have a dense pane


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize(
    "window",
    [hopping("60ms", "2ms", offset="7ms"), cumulative("60ms", "2ms"), hopping("1440ms", "1ms")],
    ids=["hopping", "cumulative", "1440 panes"],
)
def test_the_last_digits_of_a_window_depend_on_its_panes_alone(tmp_path, window):
    """Sums of floats depend on the order in which panes are added: watermarks and restarts with other subtasks do not
    change it, nor does a pane without rows.
    """
    dice = random.Random(4)
    amounts = [dice.random() * 10 ** dice.randrange(9) for _ in range(600)]
    data = batch_of([3 * row for row in range(600)], [dice.choice("abc") for _ in range(600)])
    data = data.set_column(SCHEMA.get_field_index("amount"), "amount", pa.array(amounts))
    calls = [AggregateColumn(name, name, "amount") for name in ("sum", "mean", "variance", "stddev")]
    outcomes = []
    for watermarks in (1, 2, 3, 600):
        place = tmp_path / str(watermarks)
        place.mkdir()
        subtasks = Subtasks(None, window, ["account"], calls)
        for number, start in enumerate(range(0, 600, 60)):
            subtasks.process(data.slice(start, 60))
            if number % watermarks == watermarks - 1:
                subtasks.advance(3 * start + dice.randrange(180))
                subtasks.restart(place, dice.randrange(1, 4))
        subtasks.advance(END_OF_TIME)
        assert all(part.statistics()["merges"] == 0 for part in subtasks.parts)  # no pane is dense
        outcomes.append(sorted(map(repr, subtasks.results())))
    assert len(outcomes[0]) > 600
    assert outcomes[1:] == outcomes[:1] * 3


@pytest.mark.one_in(6, "a second or two of a core each")
@pytest.mark.parametrize(
    ("window", "calls"),
    [
        (hopping("600ms", "60ms", offset="20ms"), KERNEL),
        (hopping("180ms", "60ms"), KERNEL),
        (hopping("180ms", "60ms"), [KERNEL[7], GATHERED[1], GATHERED[9]]),  # lists, and a user's function
        (cumulative("600ms", "60ms"), KERNEL),
        (hopping("420s", "60s", time_zone="Europe/Berlin"), KERNEL),
        (cumulative("420s", "60s", time_zone="Europe/Berlin"), KERNEL),
    ],
    ids=["hopping", "short", "gathered", "cumulative", "Berlin", "cumulative in Berlin"],
)
def test_a_restart_at_any_pane_changes_no_digit_of_a_window_with_many_rows(tmp_path, window, calls):
    """A sum of floats depends on the order in which panes are merged. It used to depend on the window that was emitted
    first after a restart too, and on whether a pane had a table of its own.
    """
    dice = random.Random(5)
    pane = getattr(window, "slide_ms", 0) or window.step_ms
    count, each = 30, 8
    data = rows(5, count * each)
    amounts = [dice.random() * 10 ** dice.randrange(9) for _ in range(count * each)]
    numbers = [number for number in range(count) for _ in range(each)]
    times = [(40 + number + (number > 20) * 5) * pane + dice.randrange(pane) for number in numbers]  # with a gap
    for name, column in ("amount", pa.array(amounts)), (TIME_COLUMN, pa.array(times)):
        data = data.set_column(SCHEMA.get_field_index(name), name, column)

    def outcome(restarts, *, panes=1):
        place = tmp_path / f"{restarts}-{panes}".replace(" ", "")
        place.mkdir()
        subtasks = Subtasks(None, window, ["account"], [call for call, _ in calls])
        for number in range(0, count, panes):
            subtasks.process(data.slice(number * each, panes * each))
            if restarts:
                subtasks.advance(times[min((number + panes) * each, len(times) - 1)] // pane * pane)
                if number % restarts == 0:
                    subtasks.restart(place, dice.randrange(1, 4))
        subtasks.advance(END_OF_TIME)
        merges = sum(part.statistics()["merges"] for part in subtasks.parts)
        return sorted(map(repr, subtasks.results())), merges

    wanted, merges = outcome(0)
    assert merges >= count  # all panes are dense
    for restarts in (1, 3, 7):
        assert outcome(restarts)[0] == wanted
    if calls == KERNEL:
        assert outcome(0, panes=10) == (wanted, 0)  # no pane is dense


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize(
    "window",
    [
        hopping("400ms", "2ms", offset="7ms"),
        cumulative("400ms", "2ms"),
        hopping("1440ms", "1ms"),
        hopping("400s", "2s", time_zone="Europe/Berlin"),
    ],
    ids=["hopping", "cumulative", "1440 panes", "Berlin"],
)
def test_windows_with_bursts_of_rows_are_merged_together_and_give_the_same_digits(tmp_path, window):
    """Windows of which some panes have a hundred rows, and others one or none: those that end at one watermark are
    merged together, and come out as if each were merged alone, also from panes on disk.
    """
    dice = random.Random(9)
    pane = getattr(window, "slide_ms", 0) or window.step_ms
    numbers = [
        number for burst in range(6) for number in [100 * burst] * 100 + list(range(100 * burst + 3, 100 * burst + 40))
    ]
    times = [(50 + number) * pane + dice.randrange(pane) for number in numbers]
    amounts = [dice.choice([-1, 1]) * dice.random() * 10 ** dice.randrange(9) for _ in times]
    accounts = [dice.choice(["a", "b", None]) for _ in times]
    data = batch_of(times, accounts)
    data = data.set_column(SCHEMA.get_field_index("amount"), "amount", pa.array(amounts))
    calls = [AggregateColumn(name, name, "amount") for name in ("count", "max", "sum", "mean", "variance")]

    def outcome(each: int, place: Path | None = None) -> tuple[list[dict[str, Any]], int]:
        """Returns the results if windows of so many panes end at a watermark, and the panes that were merged alone."""
        subtasks = Subtasks(place, window, ["account"], calls, 60_000)
        for rows in [data.slice(0, 274), data.slice(274)]:
            last = rows.column(TIME_COLUMN)[-1].as_py()
            subtasks.process(rows)
            for watermark in range(50 * pane, last, each * pane):
                subtasks.advance(watermark)
            subtasks.advance(last - pane)
        subtasks.advance(END_OF_TIME)
        assert subtasks.late == []
        return subtasks.results(), sum(part.statistics()["merges"] for part in subtasks.parts)

    (found, merges), (alone, more), (on_disk, _) = outcome(1_000), outcome(10), outcome(1_000, tmp_path)
    assert 2 * merges < more  # a few cumulative windows end at the last watermark
    assert sorted(map(repr, found)) == sorted(map(repr, alone)) == sorted(map(repr, on_disk))
    if "Berlin" not in str(window):
        wanted: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for time, account, amount in zip(times, accounts, amounts, strict=True):
            for start, end in windows_of(time, window, pane):
                wanted[account, start, end].append(amount)
        got = {(row["account"], row["window_start"], row["window_end"]): row for row in found}
        assert {key: (row["count"], row["max"]) for key, row in got.items()} == {
            key: (len(some), max(some)) for key, some in wanted.items()
        }
        for key, some in wanted.items():
            assert got[key]["sum"] == pytest.approx(sum(some), rel=1e-9, abs=1e-3)


def test_a_window_with_a_row_may_get_many_more():
    for lateness in (0, 100):
        subtasks = Subtasks(None, tumbling("10ms"), ["account"], COUNT, allowed_lateness_ms=lateness)
        subtasks.process(batch_of([5, 15, 25, 35, 45, 55]))
        subtasks.advance(20)
        assert spans(subtasks) == [(0, 10, "a", 1), (10, 20, "a", 1)]
        subtasks.process(batch_of([17, 38] if lateness else [38]))
        subtasks.process(batch_of([19] * 100 + [36] * 100 if lateness else [36] * 100))
        subtasks.process(batch_of([37] * 3 + [47]))
        subtasks.advance(50)
        again = [(10, 20, "a", 102)] if lateness else []
        assert spans(subtasks) == [*again, (20, 30, "a", 1), (30, 40, "a", 105), (40, 50, "a", 2)]
        subtasks.advance(END_OF_TIME)
        assert spans(subtasks) == [(50, 60, "a", 1)]


@pytest.mark.parametrize("calls", [COUNT, [*COUNT, AggregateColumn("words", "collect_list", "text")]])
def test_a_snapshot_of_windows_with_few_rows_has_them_as_they_were_at_the_barrier(tmp_path, calls):
    subtasks = Subtasks(None, tumbling("2ms"), ["account"], calls)
    subtasks.process(batch_of(list(range(0, 200, 2)), ["a", "b"] * 50))
    facts, state = subtasks.parts[0].snapshot()
    subtasks.process(batch_of(list(range(100, 300, 2)), ["a", "b"] * 50))  # more rows in these windows, and new ones
    subtasks.advance(120)  # the places of windows that are over are taken by others
    subtasks.process(batch_of(list(range(300, 400, 2)), ["c"] * 50))
    assert state is not None
    state.save(tmp_path)
    subtasks.out.clear()
    subtasks.start(2, [Saved(tmp_path, json.loads(json.dumps(facts)))])
    subtasks.advance(END_OF_TIME)
    assert sorted(spans(subtasks)) == [(time, time + 2, "ab"[time // 2 % 2], 1) for time in range(0, 200, 2)]


@pytest.mark.one_in(4, "a quarter of a second of a core each")
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    "calls", [[KERNEL[0], KERNEL[3]], [KERNEL[0], GATHERED[3], GATHERED[4]]], ids=["kernel", "gathered"]
)
def test_more_windows_with_few_rows_than_the_memory_budget_holds_give_the_same(tmp_path, keys, calls):
    data = rows(5, 12_000, disorder=3_000)
    subtasks = Subtasks(tmp_path, tumbling("2ms"), keys, [call for call, _ in calls], allowed_lateness_ms=900)
    cold = late = 0
    for start in range(0, 12_000, 1_500):
        subtasks.process(data.slice(start, 1_500))
        cold += subtasks.parts[0].statistics()["cold"]
        if start in (3_000, 7_500):
            subtasks.restart(tmp_path, 2 if keys and start == 3_000 else 1)
        if start == 9_000:
            subtasks.advance(min(data.column(TIME_COLUMN).to_pylist()[10_500:]) - 300)
    late += sum(part.statistics()["late_rows"] for part in subtasks.parts)
    subtasks.advance(END_OF_TIME)
    for part in subtasks.parts:
        part.close()
    assert cold > 0 == late
    found = [{name: value for name, value in row.items() if name != TIME_COLUMN} for row in subtasks.results()]
    check(found, expected(data, tumbling("2ms"), keys, calls), keys)


@pytest.mark.slow  # half a second of a core
def test_panes_of_hopping_windows_that_exceed_the_memory_budget_get_tables(tmp_path):
    data, calls = rows(5, 600), [KERNEL[0], GATHERED[1]]
    subtasks = Subtasks(tmp_path, hopping("40ms", "20ms"), ["account"], [call for call, _ in calls], budget=100_000)
    for start in range(0, 600, 100):
        subtasks.process(data.slice(start, 100))
    subtasks.advance(END_OF_TIME)
    found = subtasks.results()
    for row in found:
        del row[TIME_COLUMN]
    check(found, expected(data, hopping("40ms", "20ms"), ["account"], calls), ["account"])
    statistics = subtasks.parts[0].statistics()
    assert statistics["merges"] > 0
    assert statistics["panes"] == statistics["groups"] == 0


@pytest.mark.one_in(6, "half a second of a core each")
@pytest.mark.parametrize("every", [None, 50])
@pytest.mark.parametrize("window", [hopping("40ms", "10ms"), cumulative("40ms", "10ms"), tumbling("10ms")], ids=str)
def test_panes_that_share_a_table_give_what_a_table_for_each_pane_gives(tmp_path, monkeypatch, window, every):
    def results(few):
        dice, data = random.Random(3), rows(9, 400, disorder=30)
        place = tmp_path / str(few)
        place.mkdir()
        with monkeypatch.context() as patched:
            if not few:
                patched.setattr(fixed, "few_rows", lambda shape, **_: 0)
            options = {"allowed_lateness_ms": 60, "emit_every_ms": every}
            subtasks = Subtasks(None, window, ["account"], [call for call, _ in [KERNEL[1], GATHERED[1]]], **options)
            steps = []
            for start in range(0, 400, 40):
                subtasks.process(data.slice(start, 40))
                subtasks.advance(start * 3 - 640)  # later than some of the rows that come next
                if start % 160 == 120:
                    subtasks.restart(place, dice.choice([1, 2]))
                steps.append([row["window_end"] for row in subtasks.results()])
                steps.append(sorted(map(str, subtasks.results())))
                steps.append(
                    sorted(str(row) for part in subtasks.parts for each in part.contents() for row in plain(each))
                )
                subtasks.out.clear()
        late = [row for batch in subtasks.late for row in batch.to_pylist()]
        return steps, late, [part.statistics()["late_rows"] for part in subtasks.parts]

    assert results(True) == results(False)


def test_results_come_in_bounded_batches():
    count = 150_000
    data = pa.record_batch({"id": np.arange(count), TIME_COLUMN: np.full(count, 5)})
    operator = WindowAggregate(tumbling("10ms"), ["id"], COUNT)
    out: list[pa.RecordBatch] = []
    operator.emit = lambda batch: out.append(batch.taken())
    operator.open(OperatorContext(data.schema))
    operator.process(Batch(data))
    operator.advance(END_OF_TIME)
    assert max(batch.num_rows for batch in out) <= 65_536
    assert sum(batch.num_rows for batch in out) == count


def test_a_slide_costs_what_its_panes_cost_not_what_the_window_has():
    subtasks = Subtasks(None, hopping("60ms", "1ms"), ["account"], COUNT)
    subtasks.process(batch_of(list(range(1200))))
    subtasks.advance(1201)
    assert len(spans(subtasks)) == 1201
    assert subtasks.parts[0].statistics()["merges"] < 6 * 1200


@pytest.mark.slow  # a second of a core, or more
def test_more_groups_than_the_memory_budget_holds_give_the_same(tmp_path):
    window = hopping("1s", "500ms")
    calls = [KERNEL[0], KERNEL[3], KERNEL[5]]
    subtasks = Subtasks(tmp_path, window, ["account"], [call for call, _ in calls])
    dice = np.random.default_rng(7)
    parts = []
    for begin in range(0, 60_000, 10_000):
        accounts = [f"account number {i}" for i in dice.integers(0, 15_000, 10_000)]
        times = 250 * (begin // 10_000) + dice.integers(0, 100, 10_000)
        part = batch_of(times.tolist(), accounts)
        parts.append(part.set_column(3, "units", pa.array(dice.integers(0, 1000, 10_000))))
    evicted = 0
    for number, part in enumerate(parts):
        subtasks.process(part)
        if number == 3:
            evicted += subtasks.parts[0].statistics()["evicted_total"]
            subtasks.restart(tmp_path, 2)
    subtasks.advance(END_OF_TIME)
    assert evicted > 0
    for batch in subtasks.parts:
        batch.close()
    wanted = expected(pa.Table.from_batches(parts).combine_chunks().to_batches()[0], window, ["account"], calls)
    found = [{k: v for k, v in row.items() if k != TIME_COLUMN} for row in subtasks.results()]
    by = itemgetter("window_start", "account")
    assert sorted(found, key=by) == sorted(wanted, key=by)


@pytest.mark.slow  # a second of a core, or more
def test_panes_that_leave_memory_while_their_window_slides_give_the_same(tmp_path):
    window = hopping("1s", "250ms")
    calls = [KERNEL[0], KERNEL[3], KERNEL[5]]
    subtasks = Subtasks(tmp_path, window, ["account"], [call for call, _ in calls])
    dice = np.random.default_rng(11)
    parts, evicted = [], []
    for number in range(12):
        count = [600, 1200, 4000][number % 3]
        accounts = [f"account number {i}" for i in dice.integers(0, 6_000, count)]
        part = batch_of((250 * number + dice.integers(0, 250, count)).tolist(), accounts)
        parts.append(part.set_column(3, "units", pa.array(dice.integers(0, 1000, count))))
        subtasks.process(parts[-1])
        evicted.append(subtasks.parts[0].statistics()["evicted_total"])
        subtasks.advance(250 * number)
    subtasks.advance(END_OF_TIME)
    subtasks.parts[0].close()
    assert evicted[1] == 0 < evicted[5] < evicted[-1]
    wanted = expected(pa.Table.from_batches(parts).combine_chunks().to_batches()[0], window, ["account"], calls)
    found = [{k: v for k, v in row.items() if k != TIME_COLUMN} for row in subtasks.results()]
    by = itemgetter("window_start", "account")
    assert sorted(found, key=by) == sorted(wanted, key=by)


def test_a_window_needs_event_time_and_names_of_its_own():
    with pytest.raises(UserError, match="event time"):
        WindowAggregate(tumbling("1s"), [], COUNT).open(OperatorContext(pa.schema([("a", pa.int64())])))
    with pytest.raises(UserError, match="window_start"):
        WindowAggregate(tumbling("1s"), [], [AggregateColumn("window_start", "count")]).open(OperatorContext(SCHEMA))
    with pytest.raises(UserError, match="no column 'who'"):
        WindowAggregate(tumbling("1s"), ["who"], COUNT).open(OperatorContext(SCHEMA))


@pytest.mark.parametrize("window", [hopping("2s", "1s"), cumulative("4s", "1s"), tumbling("1s")], ids=repr)
@pytest.mark.parametrize("kind", ["aggregate", "top_n"])
def test_windows_that_close_together_come_as_one_batch(window: Any, kind: str) -> None:
    """The steps behind a window took longer for its batch of one row than the window did."""
    schema = pa.schema([("k", pa.int64()), ("v", pa.int64()), (TIME_COLUMN, pa.int64())])
    if kind == "top_n":
        operator: Any = WindowTopN(window, ["k"], 1, [("v", True)])
    else:
        operator = WindowAggregate(window, ["k"], [AggregateColumn("v", "sum", "v")])
    batches: list[pa.RecordBatch] = []
    operator.emit = lambda batch: batches.append(batch.taken())
    operator.open(OperatorContext(schema))
    rows = pa.RecordBatch.from_pylist([{"k": n % 2, "v": n, TIME_COLUMN: n * 1_000} for n in range(40)], schema)
    operator.process(Batch(rows))
    operator.advance(30_000)
    assert len(batches) == 1
    operator.advance(END_OF_TIME)
    assert len(batches) == 2
    ends = [end for batch in batches for end in batch.column("window_end").cast(pa.int64()).to_pylist()]
    assert ends == sorted(ends)
    assert max(ends[: batches[0].num_rows]) <= 30_000 < min(ends[batches[0].num_rows :])
    operator.close()
