"""Columns over the rows around a row: frames of rows and of time, lag, lead and ranks."""

import math
import random
from collections import Counter, defaultdict

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.windows.over import FrameTable, PlaceTable, WaitTable
from sabot.api.over import dense_rank, lag, lead, rank, row_number
from sabot.engine.operators.base import END_OF_TIME, TIME_COLUMN, OperatorContext
from sabot.engine.operators.keyed.ordered import EventOrder
from sabot.engine.operators.keyed.over import Over
from sabot.engine.operators.keyed.over_state import OverColumn
from sabot.errors import UserError
from tools.operator_run import OperatorRun

SCHEMA = pa.schema(
    [
        ("k", pa.int64()),
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("on", pa.bool_()),
        ("number", pa.int64()),
        (TIME_COLUMN, pa.int64()),
    ]
)
AGGREGATES = [
    OverColumn("n", "count"),
    OverColumn("n_i", "count", "i"),
    OverColumn("n_s", "count", "s"),
    OverColumn("sum_i", "sum", "i"),
    OverColumn("sum_f", "sum", "f"),
    OverColumn("min_i", "min", "i"),
    OverColumn("max_f", "max", "f"),
    OverColumn("mean_i", "mean", "i"),
    OverColumn("mean_f", "mean", "f"),
    OverColumn("var_i", "variance", "i"),
    OverColumn("dev_f", "stddev", "f", ddof=0),
    OverColumn("first_i", "first", "i"),
    OverColumn("last_f", "last", "f"),
    OverColumn("sum_on", "sum", "i", where="on"),
    OverColumn("first_on", "first", "i", where="on"),
    OverColumn("or", "max", "on"),
]
SQL = {
    "n": "count(*) over w",
    "n_i": "count(i) over w",
    "n_s": "count(s) over w",
    "sum_i": "sum(i) over w",
    "sum_f": "sum(f) over w",
    "min_i": "min(i) over w",
    "max_f": "max(f) over w",
    "mean_i": "avg(i) over w",
    "mean_f": "avg(f) over w",
    "var_i": "var_samp(i) over w",
    "dev_f": "stddev_pop(f) over w",
    "first_i": "first_value(i) over w",
    "last_f": "last_value(f) over w",
    "sum_on": 'sum(i) filter (where "on") over w',
    "or": 'bool_or("on") over w',
}
AROUND = [
    OverColumn("nth", "row_number"),
    OverColumn("place", "rank"),
    OverColumn("dense", "dense_rank"),
    OverColumn("before", "lag", "s"),
    OverColumn("before_3", "lag", "f", 3, default=-1.0),
    OverColumn("after", "lead", "i"),
    OverColumn("after_2", "lead", "s", 2, default="end"),
]
AROUND_SQL = {
    "nth": "row_number() over r",
    "place": "rank() over t",
    "dense": "dense_rank() over t",
    "before": "lag(s) over r",
    "before_3": "lag(f, 3, -1.0) over r",
    "after": "lead(i) over r",
    "after_2": "lead(s, 2, 'end') over r",
}


def rows_in_order(seed, rows=800, keys=7):
    """By event time, with many equal times; floats that add up exactly."""
    rng = random.Random(seed)
    time, found = 1000, []
    for number in range(rows):
        time += rng.choice([0, 0, 1, 5, 30])
        found.append(
            {
                "k": rng.choice([None, *range(keys)]),
                "i": rng.choice([None, *range(-5, 20)]),
                "f": rng.choice([None, 0.25, 1.5, -3.0, 8.0]),
                "s": rng.choice([None, "", "a", "text\0", "long " * 5]),
                "on": rng.choice([None, True, False]),
                "number": number,
                TIME_COLUMN: time,
            }
        )
    return pa.RecordBatch.from_pylist(found, schema=SCHEMA)


def drive(run, rows, rng, *, rescale=(1,), restarts=0.1):
    """In order, in any batches, with watermarks that are true, and restarts."""
    times = rows.column(TIME_COLUMN).to_pylist()
    start = 0
    while start < rows.num_rows:
        size = rng.choice([1, 7, 100])
        run.feed(rows.slice(start, size))
        start += size
        if start < rows.num_rows and rng.random() < 0.5:
            run.advance(times[start] - rng.choice([0, 0, 10]))
        if rng.random() < restarts:
            run.restart(rng.choice(rescale))
    run.end()


def close(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    return a == b


def expected_by_duckdb(rows, frame, columns):
    source = pa.Table.from_batches([rows]).rename_columns([*rows.schema.names[:-1], "t"])  # noqa: F841
    order = "partition by k order by t" if "range" in frame else "partition by k order by t, number"
    selected = ", ".join(f'{sql} as "{name}"' for name, sql in columns.items())
    query = (
        f"select number, {selected} from source window w as ({order} {frame}), "
        "r as (partition by k order by t, number), t as (partition by k order by t) order by number"
    )
    return duckdb.sql(query).to_arrow_table().to_pylist()


FRAMES = {
    "4 rows": ({"preceding_rows": 4}, "rows between 4 preceding and current row"),
    "the row": ({"preceding_rows": 0}, "rows between current row and current row"),
    "60 ms": ({"preceding_ms": 60}, "range between 60 preceding and current row"),
    "its time": ({"preceding_ms": 0}, "range between 0 preceding and current row"),
    "all": ({}, "rows between unbounded preceding and current row"),
    "all up to its time": ({"peers": True}, "range between unbounded preceding and current row"),
}


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("frame", list(FRAMES))
@pytest.mark.parametrize("parallelism", [1, 3])
def test_frames_hold_what_duckdb_says_whatever_the_batches_watermarks_and_restarts(frame, parallelism, tmp_path):
    rng = random.Random(f"{frame}{parallelism}")
    given, sql = FRAMES[frame]
    rows = rows_in_order(f"{frame}{parallelism}")
    run = OperatorRun(lambda: Over(["k"], AGGREGATES, **given), SCHEMA, ["k"], tmp_path, parallelism)
    drive(run, rows, rng, rescale=(1, 2, 3) if parallelism > 1 else (1,))
    found = sorted(run.results, key=lambda row: row["number"])
    assert [{name: row[name] for name in SCHEMA.names} for row in found] == rows.to_pylist()
    expected = expected_by_duckdb(rows, sql, SQL)
    for row, right in zip(found, expected, strict=True):
        for name, value in right.items():
            if name in ("first_i", "last_f") and "range" in sql:
                continue  # DuckDB says nothing about the order of rows of equal time
            whole = name.startswith("sum_") and name != "sum_f" and value is not None  # a decimal
            assert close(row[name], int(value) if whole else value), (name, row, right)


@pytest.mark.parametrize("frame", list(FRAMES))
def test_frames_hold_what_the_naive_twin_says(frame, tmp_path):
    given, _ = FRAMES[frame]
    rows = rows_in_order(11, rows=300, keys=3)
    run = OperatorRun(lambda: Over(["k"], AGGREGATES, **given), SCHEMA, ["k"], tmp_path)
    drive(run, rows, random.Random(1))
    every = rows.to_pylist()
    for row in run.results:
        key = [r for r in every if r["k"] == row["k"]]
        if "preceding_ms" in given:
            frame_rows = [r for r in key if 0 <= row[TIME_COLUMN] - r[TIME_COLUMN] <= given["preceding_ms"]]
        elif given.get("peers"):
            frame_rows = [r for r in key if r[TIME_COLUMN] <= row[TIME_COLUMN]]
        else:
            upto = [r for r in key if r["number"] <= row["number"]]
            frame_rows = upto[-given["preceding_rows"] - 1 :] if given else upto
        assert row["n"] == len(frame_rows)
        assert row["first_i"] == frame_rows[0]["i"]
        assert row["last_f"] == frame_rows[-1]["f"]
        on = [r["i"] for r in frame_rows if r["on"]]
        assert row["first_on"] == (on[0] if on else None)
        assert row["sum_on"] == (sum(i for i in on if i is not None) if any(i is not None for i in on) else None)


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("rows_before", [None, 2])
def test_rows_around_a_row_are_those_that_duckdb_says(parallelism, rows_before, tmp_path):
    rng = random.Random(parallelism)
    rows = rows_in_order(parallelism)
    calls = [*AROUND, OverColumn("total", "sum", "i")]
    run = OperatorRun(lambda: Over(["k"], calls, preceding_rows=rows_before), SCHEMA, ["k"], tmp_path, parallelism)
    drive(run, rows, rng, rescale=(1, 2, 4) if parallelism > 1 else (1,))
    assert run.schema.names == [*SCHEMA.names[:-1], *(call.name for call in calls), TIME_COLUMN]
    found = sorted(run.results, key=lambda row: row["number"])
    assert [{name: row[name] for name in SCHEMA.names} for row in found] == rows.to_pylist()
    frame = f"rows between {'unbounded' if rows_before is None else rows_before} preceding and current row"
    expected = expected_by_duckdb(rows, frame, {**AROUND_SQL, "total": "sum(i) over w"})
    for row, right in zip(found, expected, strict=True):
        right["total"] = None if right["total"] is None else int(right["total"])
        assert {name: row[name] for name in right} == right


def test_rows_go_on_as_soon_as_the_rows_that_lead_are_there_and_watermarks_wait_for_them(tmp_path):
    run = OperatorRun(lambda: Over(["k"], [OverColumn("after", "lead", "i")]), SCHEMA, ["k"], tmp_path)
    over = run.parts[0]

    def row(k, i, time):
        return pa.RecordBatch.from_pylist([{"k": k, "i": i, TIME_COLUMN: time}], schema=SCHEMA)

    run.feed(row(1, 10, 100))
    run.feed(row(2, 20, 110))
    assert run.results == []
    assert over.advance(200) == 100
    run.feed(row(1, 11, 210))
    assert [(r["i"], r["after"]) for r in run.results] == [(10, 11)]
    assert over.advance(300) == 110
    run.restart(1)
    over = run.parts[0]
    assert over.advance(300) == 110
    run.feed(row(2, 21, 310))
    assert over.advance(400) == 210
    assert over.advance(END_OF_TIME) is None
    assert [(r["i"], r["after"]) for r in run.results] == [(10, 11), (20, 21), (11, None), (21, None)]
    assert over.advance(END_OF_TIME) is None
    assert over.statistics()["rows"] == 0


def test_state_of_a_frame_of_time_goes_with_the_watermark(tmp_path):
    run = OperatorRun(
        lambda: Over(["k"], [OverColumn("n", "count"), OverColumn("m", "max", "i")], preceding_ms=1000),
        SCHEMA,
        ["k"],
        tmp_path,
    )
    rng = random.Random(2)
    for second in range(60):
        rows = [{"k": rng.randrange(1000), "i": 1, TIME_COLUMN: second * 1000 + 5 * n} for n in range(200)]
        run.feed(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
        run.advance(second * 1000 + 1000)
        assert run.statistic("rows") <= 200 * 1.1 + 1
        if second == 30:
            run.restart(1)
    run.advance(100_000)
    assert run.statistic("rows") == run.statistic("keys") == 0


def test_a_late_row_takes_its_place_in_the_frames_that_still_have_it(tmp_path):
    totals = [OverColumn("n", "count"), OverColumn("total", "sum", "i")]
    calls = [*totals, OverColumn("nth", "row_number"), OverColumn("before", "lag", "i")]

    def row(i, time):
        return pa.RecordBatch.from_pylist([{"k": 1, "i": i, TIME_COLUMN: time}], schema=SCHEMA)

    def said(frame, name):
        run = OperatorRun(lambda: Over(["k"], calls, **frame), SCHEMA, ["k"], tmp_path / name)
        for i, time in [(1, 100), (2, 110), (4, 150)]:
            run.feed(row(i, time))
            run.advance(time + 1)
        run.restart(1)
        run.batches.clear()
        run.feed(row(8, 105))
        run.feed(row(16, 20))
        run.advance(152)
        run.feed(row(32, 160))
        run.end()
        return [(r["i"], r["n"], r["total"], r["nth"], r["before"]) for r in run.results]

    # at the watermark 151 the row of time 100 is still in a frame of 51 ms to come, and in none of 50 ms
    assert said({"preceding_ms": 51}, "51 ms") == [(8, 2, 9, 4, None), (16, 1, 16, 5, None), (32, 3, 38, 6, 4)]
    assert said({"preceding_ms": 50}, "50 ms") == [(8, 1, 8, 4, None), (16, 1, 16, 5, None), (32, 3, 38, 6, 4)]
    # frames of two rows have 110 and 150; a row before them stands alone, and counts for nothing after it
    assert said({"preceding_rows": 1}, "rows") == [(8, 1, 8, 4, None), (16, 1, 16, 5, None), (32, 2, 36, 6, 4)]
    # over all rows it is the newest
    assert said({}, "all") == [(8, 4, 15, 4, None), (16, 5, 31, 5, None), (32, 6, 63, 6, 4)]


def late_twin(calls, ms=None, count=None):
    """Naive: the rows of one key by call, in any order of time -> (rows in the frame, sum) of each, as FrameTable says it."""
    kept, said = [], []
    for call in calls:
        results = [None] * len(call)
        in_order = sorted(range(len(call)), key=lambda i: call[i][0])
        newest = kept[-1][0] if kept else -1
        late = [i for i in in_order if call[i][0] < newest]
        for part in (late, in_order[len(late) :]):
            there = sorted([*((*row, None) for row in kept), *((*call[i], i) for i in part)], key=lambda row: row[0])
            for place, (time, _, i) in enumerate(there):
                before = there[: place + 1][-count - 1 :] if count is not None else there
                frame = [row for row in before if count is not None or 0 <= time - row[0] <= ms]
                if i is not None:
                    results[i] = (len(frame), sum(row[1] for row in frame))
            kept = [row[:2] for row in there]
            kept = kept[-count - 1 :] if count is not None else [row for row in kept if kept[-1][0] - row[0] <= ms]
        said += results
    return said


ROWS_OF_A_CALL = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(-9, 9)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.lists(ROWS_OF_A_CALL, max_size=12), st.integers(0, 5), st.integers(0, 30), st.integers(0, 12))
def test_rows_in_any_order_of_time_are_as_the_naive_twin_says(calls, count, ms, restart):
    kinds, types = [("count", None), ("sum", pa.int64())], [pa.int64()] * 2
    for frame, of_twin in (({"rows": count}, {"count": count}), ({"ms": ms}, {"ms": ms})):
        table = FrameTable(kinds, [-1, 0], [-1, -1], types, **frame)
        found = defaultdict(list)
        for number, call in enumerate(calls):
            if number == restart:
                state, table = table.export(), FrameTable(kinds, [-1, 0], [-1, -1], types, **frame)
                table.load(state)
            slots, times, values = zip(*call, strict=True)
            data = pa.record_batch([pa.array(values)], names=["v"])
            n, total = table.add(pa.array(slots, pa.int32()), data, pa.array(times))
            for slot, *result in zip(slots, n.to_pylist(), total.to_pylist(), strict=True):
                found[slot].append(tuple(result))
        for slot, results in found.items():
            mine = [[(time, value) for s, time, value in call if s == slot] for call in calls]
            assert results == late_twin([call for call in mine if call], **of_twin)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_kernel_results_have_the_types_and_values_of_a_group_table(data):
    kind, values = data.draw(
        st.sampled_from(
            [
                (pa.int8(), st.integers(-128, 127)),
                (pa.uint64(), st.sampled_from([0, 3, 2**63, 2**64 - 1])),
                (pa.int64(), st.sampled_from([0, -7, 2**62, -(2**63)])),
                (pa.float32(), st.sampled_from([0.5, -1.0, float("nan"), float("inf")])),
                (pa.float64(), st.sampled_from([0.5, -1.0, float("nan"), 4.0])),
                (pa.bool_(), st.booleans()),
                (pa.timestamp("us", "UTC"), st.integers(0, 10**15)),
            ]
        )
    )
    column = pa.array(data.draw(st.lists(st.none() | values, min_size=1, max_size=12)), kind)
    kinds = ["count", "min", "max", "first", "last"]
    if not pa.types.is_timestamp(kind):
        kinds += ["sum", "mean", "variance"]
    aggregates = [(each, kind) for each in kinds]
    width = data.draw(st.integers(0, 4))
    zeros = [0] * len(kinds)
    types = GroupTable(pa.schema([]), aggregates).results
    table = FrameTable(aggregates, zeros, [-1] * len(kinds), types, rows=width)
    padded = pa.record_batch([pa.concat_arrays([column.slice(0, 1), column]).slice(1)], names=["v"])
    rows = len(column)
    found = table.add(pa.array([0] * rows, pa.int32()), padded, pa.array(range(rows)))
    for row in range(rows):
        frame = column.slice(max(0, row - width), min(width, row) + 1)
        whole = GroupTable(pa.schema([]), aggregates)
        whole.update(pa.record_batch([frame], names=["v"]), [], zeros)
        for name, mine, right in zip(kinds, found, whole.finish(), strict=True):
            assert mine.type == right.type
            a, b = mine[row].as_py(), right[0].as_py()
            both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
            assert both_nan or close(a, b), (name, row, a, b)


def test_a_long_frame_of_a_hot_key_costs_no_more_a_row_than_a_short_one():
    rows, totals = 60_000, {}
    data = pa.record_batch([pa.array(range(rows))], names=["v"])
    for width in (10, 50_000):
        table = FrameTable([("max", pa.int64()), ("sum", pa.int64())], [0, 0], [-1, -1], [pa.int64()] * 2, rows=width)
        parts = []
        for start in range(0, rows, 500):
            part = data.slice(start, 500)
            parts.append(table.add(pa.array([0] * 500, pa.int32()), part, pa.array(range(start, start + 500)))[1])
        totals[width] = pa.concat_arrays(parts)
    for width, column in totals.items():
        for row in (0, 7, 30_000, rows - 1):
            low = max(0, row - width)
            assert column[row].as_py() == (low + row) * (row - low + 1) // 2


def test_behind_event_order_late_rows_and_all_others_come_out_once(tmp_path):
    rng = random.Random(9)
    times = [n * 2 + rng.randrange(-30, 30) for n in range(600)]
    rows = pa.RecordBatch.from_pylist(
        [{"k": rng.randrange(3), "i": 1, "number": n, TIME_COLUMN: t} for n, t in enumerate(times)], schema=SCHEMA
    )
    order, over, found = EventOrder(("k",)), Over(["k"], [OverColumn("n", "count")], preceding_ms=40), []
    order.emit = over.process
    over.emit = lambda batch: found.extend(batch.taken().to_pylist())
    over.open(OperatorContext(order.open(OperatorContext(SCHEMA))))
    for start in range(0, 600, 20):
        order.process(Batch(rows.slice(start, 20)))
        for step in (order, over):
            step.advance(start * 2 + 15)
    for step in (order, over):
        step.advance(END_OF_TIME)
        step.finish()
    assert Counter(row["number"] for row in found) == Counter(range(600))
    on_time = sorted(rows.to_pylist(), key=lambda row: row[TIME_COLUMN])
    late = {row["number"] for row in found} - {row["number"] for row in on_time}
    assert not late
    right = {
        row["number"]: sum(o["k"] == row["k"] and 0 <= row[TIME_COLUMN] - o[TIME_COLUMN] <= 40 for o in on_time)
        for row in on_time
    }
    assert sum(row["n"] == right[row["number"]] for row in found) > 400  # those that no late row is missing from
    assert all(row["n"] <= right[row["number"]] for row in found)


def test_what_is_wrong_is_said_when_it_is_opened():
    def opened(columns, **frame):
        Over(["k"], columns, **frame).open(OperatorContext(SCHEMA))

    with pytest.raises(UserError, match=r"there is no count_distinct of 'i', which is int32"):
        opened([OverColumn("d", "count_distinct", "i")])
    with pytest.raises(UserError, match="no min of 's', which is string"):
        opened([OverColumn("d", "min", "s")], preceding_rows=2)
    with pytest.raises(UserError, match="no column 'nothing'"):
        opened([OverColumn("d", "lag", "nothing")])
    with pytest.raises(UserError, match="default 'x' is not a int32"):
        opened([OverColumn("d", "lead", "i", default="x")])
    with pytest.raises(UserError, match="two columns 'i'"):
        opened([OverColumn("i", "row_number")])
    with pytest.raises(UserError, match="1 or more"):
        Over(["k"], [OverColumn("d", "lag", "i", 0)])
    with pytest.raises(UserError, match="no 'median' over rows"):
        Over(["k"], [OverColumn("d", "median", "i")])
    with pytest.raises(UserError, match="not both"):
        Over(["k"], [], preceding_rows=1, preceding_ms=1)
    with pytest.raises(UserError, match="need event time"):
        Over(["k"], []).open(OperatorContext(pa.schema([("k", pa.int64())])))


def test_functions_say_what_they_are():
    assert [each.text() for each in (lag("x"), lead("x", 2, default=0), row_number(), rank(), dense_rank())] == [
        'lag(col("x"))',
        'lead(col("x"), offset=2, default=0)',
        "row_number()",
        "rank()",
        "dense_rank()",
    ]
    assert lag("x").columns == {"x"}
    assert row_number().columns == frozenset()
    assert lag("x").same(lag("x"))
    assert not lag("x").same(lag("x", 2))
    with pytest.raises(UserError, match="offset=0"):
        lag("x", 0)


def test_what_is_kept_and_what_it_consists_of_is_told(tmp_path):
    calls = [OverColumn("total", "sum", "i"), OverColumn("before", "lag", "s", 2), OverColumn("after", "lead", "i")]
    run = OperatorRun(lambda: Over(["k"], calls, preceding_rows=1), SCHEMA, ["k"], tmp_path)
    rows = [{"k": 1, "i": i, "s": str(i), TIME_COLUMN: i} for i in range(5)]
    run.feed(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    assert [row for batch in run.parts[0].contents() for row in batch.to_pylist()] == [{"k": 1, "total": 7}]
    told = run.parts[0].state_schema()
    assert told["frame"] == {"rows": 1}
    assert [each[:2] for each in told["columns"]] == [["total", "sum(i)"], ["before", "lag(s, 2)"], ["after", "lead(i, 1)"]]  # fmt: skip
    assert run.checkpoint()[0].facts["groups"] == 1
    assert run.parts[0].state_reader()["preceding_rows"] == 1


def test_columns_that_do_not_fit_are_refused():
    table = FrameTable([("sum", pa.int64())], [0], [-1], [pa.int64()], rows=1)
    rows = pa.record_batch([pa.array([1, 2])], names=["v"])
    slots, times = pa.array([0, 0], pa.int32()), pa.array([1, 2])
    with pytest.raises(TypeError, match="not int64"):
        table.add(slots, rows.cast(pa.schema([("v", pa.int32())])), times)
    with pytest.raises(ValueError, match="1 times for 2 rows"):
        table.add(slots, rows, times.slice(1))
    with pytest.raises(IndexError, match="negative"):
        table.add(pa.array([0, -1], pa.int32()), rows, times)
    with pytest.raises(ValueError, match="either `rows` or `ms`"):
        FrameTable([], [], [], [], rows=1, ms=1)
    with pytest.raises(ValueError, match="1 or more"):
        PlaceTable(pa.schema([]), [0])
    with pytest.raises(TypeError, match="cannot be stored"):
        WaitTable(pa.schema([("d", pa.dictionary(pa.int8(), pa.string()))]), [1], [[0]])


# A budget of memory


def rows_with_late_ones(rng: random.Random) -> list[pa.RecordBatch]:
    """Keys come again soon, or long after; some rows are late; floats of all sizes, whose sums depend on the order of additions."""
    found = []
    for number in range(40):
        size = rng.choice([1, 40, 120])
        rows = []
        for _ in range(size):
            key = number // 4 * 3 + rng.randrange(6) if rng.random() < 0.5 else rng.randrange(80)
            time = 1_000 + 15 * number + rng.randrange(15) - (rng.randrange(200) if rng.random() < 0.1 else 0)
            row = {"k": key, "i": rng.randrange(100), "f": 10 ** rng.uniform(-9, 9), "s": f"text {key}", "on": None}
            rows.append({**row, "number": number, TIME_COLUMN: time})
        found.append(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
    return found


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize("given", [{"preceding_ms": 60}, {"preceding_rows": 5}, {}], ids=["of time", "of rows", "all"])
def test_late_rows_and_floats_are_the_same_bit_by_bit_under_a_tiny_budget(given, tmp_path):
    rng = random.Random(31)
    columns = [OverColumn("sum", "sum", "f"), OverColumn("mean", "mean", "f"), *AROUND]
    runs = [
        OperatorRun(lambda: Over(["k"], columns, **given), SCHEMA, ["k"], tmp_path / name, memory_budget=budget)
        for name, budget in (("memory", None), ("disk", 200_000))
    ]
    moved = 0
    for number, rows in enumerate(rows_with_late_ones(rng)):
        lag_ms = rng.choice([5, 30, 100])
        for run in runs:
            run.feed(rows)
            run.advance(1_000 + 15 * number - lag_ms)
            if number % 9 == 8:
                moved += run.statistic("faults_total")
                run.restart(1)
        assert [repr(row) for row in runs[0].results] == [repr(row) for row in runs[1].results]
    for run in runs:
        run.end()
    assert moved > 30
    first, second = ([repr(row) for row in run.results] for run in runs)
    assert sorted(first) == sorted(second)
