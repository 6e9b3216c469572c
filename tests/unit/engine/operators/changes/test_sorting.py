"""Rows in an order: on disk if they are many, by event time if they have no end."""

import random
from functools import partial

import pyarrow as pa
import pytest

import sabot
from sabot import App, UserError, col
from sabot.base.sorting import SortedRuns
from sabot.engine.operators.changes.sorting import places_of

BY = (("x", True, False), ("n", False, True))


def pieces(rows: int) -> list[pa.RecordBatch]:
    rng = random.Random(4)
    numbers = list(range(rows))
    rng.shuffle(numbers)
    data = pa.record_batch(
        {
            "n": pa.array(numbers, pa.int64()),
            "x": pa.array([rng.choice([None, float("nan"), 1.0, 2.5, -3.0]) for _ in numbers], pa.float64()),
        }
    )
    return [data.slice(start, 700) for start in range(0, rows, 700)]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("run_bytes", [1, 20_000, 150_000, 10**9])
def test_runs_on_disk_give_the_rows_that_memory_gives(tmp_path, run_bytes):
    given = pieces(20_000)
    runs = SortedRuns(partial(places_of, by=BY), tmp_path / "runs", run_bytes)
    for piece in given:
        runs.add(piece)
    found = list(runs.rows())
    whole = pa.concat_batches(given)
    assert pa.concat_batches(found)["n"].equals(whole["n"].take(places_of(whole, BY)))
    assert not (tmp_path / "runs").exists()


def test_without_rows_there_are_none(tmp_path):
    assert list(SortedRuns(partial(places_of, by=BY), tmp_path, 1).rows()) == []


@pytest.mark.parametrize("run_bytes", [1, 3000, 10**9])
def test_rows_that_are_equal_in_the_order_come_out_as_they_were_added(tmp_path, run_bytes):
    runs = SortedRuns(partial(places_of, by=(("x", False, False),)), tmp_path / "runs", run_bytes)
    whole = pa.record_batch({"x": [n * 7 % 5 for n in range(5000)], "n": range(5000)})
    for start in range(0, 5000, 100):
        runs.add(whole.slice(start, 100))
    found = pa.concat_batches(list(runs.rows()))
    assert found["n"].to_pylist() == sorted(range(5000), key=lambda n: (n * 7 % 5, n))


def test_null_comes_first_and_nan_is_the_greatest_number():
    rows = App("order").stream([{"x": 2.0}, {"x": None}, {"x": float("nan")}, {"x": -1.0}])
    assert [str(each) for each in rows.sort("x").collect()["x"].to_pylist()] == ["None", "-1.0", "2.0", "nan"]
    last = rows.sort("x", descending=True, nulls_last=True).collect()["x"].to_pylist()
    assert [str(each) for each in last] == ["nan", "2.0", "-1.0", "None"]


@pytest.mark.parametrize("parallelism", [1, 3])
def test_the_final_rows_of_changes_come_in_their_order(parallelism):
    app = App("order", parallelism=parallelism)
    rows = app.stream([{"k": n % 7, "x": n * 31 % 11} for n in range(500)])
    totals = rows.group_by("k").aggregate(total=sabot.sum("x")).sort("total", "k", descending=[True, False])
    found = totals.with_columns(twice=col("total") * 2).collect().to_pylist()
    assert len(found) == 7
    assert found == sorted(found, key=lambda row: (-row["total"], row["k"]))


def test_a_type_without_an_order_is_refused():
    rows = App("order").stream([{"tags": [1, 2]}])
    with pytest.raises(UserError, match="sort"):
        rows.sort("tags").collect()


async def test_a_stream_without_an_end_is_sorted_as_event_time_passes():
    app = App("order")
    rows = app.stream("rows", schema={"ts": "int64", "x": "int64"}, time="ts", lateness="1s", until="now")
    rows.sort("ts", "x").to(found := [])
    for ts, x in [(1000, 3), (500, 1), (1000, 2), (9000, 1), (3000, 4), (8500, 5)]:
        await app.send("rows", {"ts": ts, "x": x})
    await app.run()
    assert [(row["ts"], row["x"]) for row in found] == [(500, 1), (1000, 2), (1000, 3), (3000, 4), (8500, 5), (9000, 1)]
