"""`with_time`: rows get another event time on their way, and windows behind go by it, also over a restart."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sabot
from sabot import App, Stream, UserError, col, files, tumbling
from sabot._cython.arrow.batch import Batch
from sabot._cython.flow.channel import Watermark
from sabot.codecs.records import header_rows
from sabot.engine.operators.base import START_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.rows.timed import EventTimeProgress, NewTime
from sabot.testing import BARRIER, CRASH, END, ListSink, ManualClock, MemoryBroker, ScriptedSource, run
from tools.agent_tools import records, started, until

SCHEMA = {"n": "int64", "came": "int64", "made": "int64"}


def counted(stream: Stream) -> Stream:
    return stream.window(tumbling("10s")).aggregate(n=sabot.count())


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("came", [None, "came"], ids=["untimed", "timed"])
def test_windows_behind_go_by_the_new_time_as_in_duckdb(tmp_path: Path, parallelism: int, came: str | None) -> None:
    """The new times are up to 3 s out of order, which `lateness` allows for; the files are read side by side."""
    rng, tables = random.Random(7), []
    for part in range(3):
        made = [1000 * n + rng.randrange(3000) for n in range(2000)]
        table = pa.table(
            {"k": [n % 5 for n in range(2000)], "came": range(2000), "made": pa.array(made).cast("float64")}
        )
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=200)
        tables.append(table)
    app = App("times", parallelism=parallelism)
    stream = app.stream(files(str(tmp_path / "*.parquet")), time=came)
    retimed = stream.filter(col("k") != 2).with_time(col("made") / 1000, time_unit="s", lateness="2h")
    found = retimed.key_by("k").window(tumbling("10s")).aggregate(n=sabot.count()).collect()
    rows = pa.concat_tables(tables)  # noqa: F841  read by DuckDB
    asked = "select k, cast(made as bigint) // 10000 * 10000 w, count(*) n from rows where k != 2 group by k, w"
    starts = found["window_start"].cast(pa.timestamp("ms", "UTC")).cast("int64").to_pylist()
    assert Counter(zip(found["k"].to_pylist(), starts, found["n"].to_pylist(), strict=True)) == Counter(
        duckdb.sql(asked).fetchall()
    )


@pytest.mark.parametrize("parallelism", [1, 2])
async def test_no_row_is_late_though_one_partition_is_read_far_ahead_of_the_other(
    memory_url: str, parallelism: int
) -> None:
    """Windows closed by the new times of one partition while the other was still to be read."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", partitions=2)
    rows = [{"n": n, "came": 1000 * n, "made": 1000 * n - 500} for n in range(61)]
    app = App("times", memory_url, parallelism=parallelism)
    stream = app.stream("in", schema=SCHEMA, time="came", idle="1h").with_time("made")
    stream.to("seen")
    counted(stream).to("out")
    async with started(app):
        broker.publish("in", rows, partition=0)
        for n in range(0, 61, 10):
            broker.publish("in", rows[n : n + 10], partition=1)
            await until(lambda n=n: len(records(app, "seen")) == min(61 + n + 10, 122), "the rows")  # type: ignore[misc]
        await until(lambda: len(records(app, "out")) == 6, "the windows that are over")
    assert [record.value["n"] for record in records(app, "out")] == [2, 20, 20, 20, 20, 20]


async def test_a_silent_partition_does_not_hold_the_new_time_back(memory_url: str) -> None:
    """Its reader had no rows, and so no watermark of its own."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", partitions=2)
    app = App("times", memory_url, parallelism=2)
    stream = app.stream("in", schema=SCHEMA, time="came", idle="200ms")
    counted(stream.with_time("made")).to("out")
    count = iter(range(100_000))

    def over() -> bool:  # the other partition is never silent
        n = next(count)
        broker.publish("in", [{"n": n, "came": n, "made": 5000 * n}], partition=0)
        return len(records(app, "out")) > 2

    async with started(app):
        await until(over, "the windows that are over")


def test_a_restored_step_goes_on_where_it_was() -> None:
    """Also with rows that are ahead of the watermark of its input, which count when that has passed them."""

    def made() -> tuple[NewTime, list[int]]:
        told: list[int] = []
        step = NewTime("made", 100)
        step.emit = lambda batch: None
        step.on_mark = lambda mark: told.append(mark.timestamp_ms)
        step.open(OperatorContext(pa.schema([("made", pa.int64()), (TIME_COLUMN, pa.int64())])))
        return step, told

    def rows(*pairs: tuple[int, int]) -> Batch:
        return Batch(
            pa.record_batch([list(column) for column in zip(*pairs, strict=True)], names=["made", TIME_COLUMN])
        )

    step, told = made()
    step.process(rows((1000, 1)))
    step.process(rows((9000, 5)))
    step.hold(Watermark(3))
    assert told == [900]
    facts, _ = step.snapshot()
    restored, told = made()
    restored.restore([Saved(Path("nothing"), json.loads(json.dumps(facts)))])
    restored.process(rows((20, 6)))
    restored.hold(Watermark(4))
    restored.hold(Watermark(6))
    assert told == [900, 8900]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("time", [None, "came"], ids=["untimed", "timed"])
def test_what_was_late_is_late_after_a_restart(time: str | None) -> None:
    """The checkpoint keeps how far the new time had come."""
    before = [{"n": n, "came": 1000 * n, "made": 4000 * n} for n in range(6)]  # the new time has come to 20 s
    after = [
        {"n": 10, "came": 6000, "made": 9000},
        {"n": 11, "came": 7000, "made": 20500},
        {"n": 12, "came": 8000, "made": 31000},
    ]
    results, late = ListSink("results"), ListSink("late")

    def build(directory: Path) -> App:
        app = App("times", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        source = ScriptedSource([before, BARRIER, CRASH, after, END], name="in")
        stream = app.stream(source, schema=SCHEMA, time=time).with_time("made", lateness="2s")
        stream.window(tumbling("5s"), late=late).aggregate(ids=sabot.collect_list("n")).to(results)
        return app

    run(build)
    assert [row["n"] for row in late.rows] == [10]
    assert [sorted(row["ids"]) for row in results.rows] == [[0, 1], [2], [3], [4], [5, 11], [12]]


def test_values_that_are_no_times_are_set_apart_and_the_others_go_on() -> None:
    rows = [{"n": n, "t": t} for n, t in enumerate(["2024-01-01", "soon", None, "2024-01-02"])]
    results, letters = ListSink("results"), ListSink("letters")

    def build(directory: Path) -> App:
        app = App("times", checkpoint_dir=directory)
        stream = app.stream(ScriptedSource([rows, END]), schema={"n": "int64", "t": "string"}, dead_letter=letters)
        stream.filter(col("n") >= 0).with_time("t").window(tumbling("1d")).aggregate(ids=sabot.collect_list("n")).to(
            results
        )
        return app

    run(build)
    assert [row["ids"] for row in results.rows] == [[0], [3]]
    said = [dict(row) for data in letters.batches for row in header_rows(data.column("headers"))]
    assert [each["sabot.message"].decode() for each in said] == [
        "event time 't': col(\"t\").str.to_datetime(): 'soon' is no timestamp[us]",
        "event time 't' is null, or out of range",
    ]
    assert {each["sabot.step"] for each in said} == {b"with_time t, lateness 0 ms"}


def test_errors_name_the_step_and_the_column(tmp_path: Path) -> None:
    (tmp_path / "rows.ndjson").write_text('{"n": 1, "b": true}\n')
    stream = App("times").stream(files(str(tmp_path / "rows.ndjson")))
    with pytest.raises(UserError, match="with_time: there is no column 'made'"):
        stream.with_time("made")
    with pytest.raises(UserError, match="with_time: event time 'b' is bool"):
        counted(stream.with_time("b")).collect()
    with pytest.raises(UserError, match="with_time: time_unit='h'"):
        stream.with_time("n", time_unit="h")  # type: ignore[arg-type]


def test_a_column_that_other_values_replace_may_become_the_time_again(tmp_path: Path) -> None:
    """Without `with_time` that is refused: windows would go by the values that were."""
    (tmp_path / "rows.csv").write_text("ts\n0\n60000\n")
    shifted = App("times").stream(files(str(tmp_path / "rows.csv")), time="ts").with_columns(ts=col("ts") + 5000)
    with pytest.raises(UserError, match="'ts' is the stream's event time") as refused:
        counted(shifted).collect()
    assert "with_time" in str(refused.value.hint)
    starts = counted(shifted.with_time("ts")).collect()["window_start"].cast("int64").to_pylist()
    assert starts == [0, 60_000]
    late = counted(shifted.filter(col("ts") > 6000).with_time(col("ts") * 2)).collect()
    assert late["window_start"].cast("int64").to_pylist() == [130_000]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1000)), min_size=1, max_size=6)
        ),
        max_size=20,
    ),
    st.lists(st.integers(0, 45), max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_the_new_time_is_the_greatest_one_that_the_watermark_has_passed(seen: Any, watermarks: list[int]) -> None:
    """For all subtasks alike, whichever of them asks first, and however rows come in batches; also when what one has kept is loaded by
    another.
    """
    progress, other = EventTimeProgress(), EventTimeProgress()
    for subtask in range(3):
        progress.join(subtask)
    other.join(0)
    for subtask, batch in seen:
        progress.record(subtask, *np.array(batch).T)
    rows = [row for _, batch in seen for row in batch]
    for watermark in sorted(watermarks):
        expected = max((new for former, new in rows if former <= watermark), default=START_OF_TIME)
        assert {progress.advance(subtask, watermark) for subtask in (1, 0, 2)} == {expected}
    for subtask in range(3):
        other.load(0, progress.facts(subtask))
    later = [watermark for watermark in range(51) if watermark >= max(watermarks, default=0)]
    for watermark in later:
        expected = max((new for former, new in rows if former <= watermark), default=START_OF_TIME)
        assert other.advance(0, watermark) == expected


def test_what_is_kept_of_rows_ahead_is_bounded_and_makes_no_watermark_come_early() -> None:
    """A subtask without rows stands still while another one is read far ahead: its steps are thinned out, and count with later ones."""
    progress = EventTimeProgress()
    progress.join(0)
    progress.join(1)
    for former in range(2_200):
        progress.record(0, np.array([former]), np.array([10 * former]))
    kept = progress.facts(0)["ahead"]
    assert len(kept) <= 1024
    assert kept[-1] == (2_199, 21_990)
    found = [progress.advance(0, former) for former in range(2_200)]
    assert found == sorted(found)
    assert all(new <= 10 * former for former, new in enumerate(found))
    assert found[-1] == 21_990


async def test_windows_close_up_to_the_last_watermark_of_a_topic_that_is_read_in_one_batch(memory_url: str) -> None:
    """A batch counted as a whole: none of its windows closed before the next one had been read."""
    broker = MemoryBroker.get(memory_url)
    broker.create_topic("in", partitions=1)
    broker.publish("in", [{"ts": 1_000 * n} for n in range(60)])
    app = App("bulk", memory_url, clock=ManualClock())
    rows = app.stream("in", schema={"ts": "int64"}, time="ts", lateness="1s", idle="1h").with_time(col("ts") + 500)
    rows.window(tumbling("5s")).aggregate(n=sabot.count()).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) >= 11, "the windows before 58.5 s")
    assert [record.value["n"] for record in records(app, "out")] == [5] * 11


def later(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, the column `at` by one more."""
    at = batch.schema.get_field_index("at")
    return batch.set_column(
        at, "at", pa.array([value.as_py() + 1 for value in batch["at"]], batch.schema.field(at).type)
    )


def as_floats(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index("at")
    return batch.set_column(at, "at", pa.array(batch["at"].to_pylist(), pa.float64()))


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", ["source", "with_time"])
def test_a_function_over_batches_that_changes_what_event_time_was_computed_of_is_refused(
    tmp_path: Path, way: str
) -> None:
    """It is not where nothing goes by event time, or where with_time behind says that windows go by it."""
    (tmp_path / "a.ndjson").write_text("".join(f'{{"n": {n}, "at": {n}}}\n' for n in range(30)))
    app = App("changed")
    rows = app.stream(files(tmp_path / "a.ndjson"), **({"time": "at", "time_unit": "s"} if way == "source" else {}))
    if way == "with_time":
        rows = rows.with_time("at", time_unit="s")
    with pytest.raises(
        UserError, match=r"map_batches\(later\) changes 'at', from which event time was computed"
    ) as refused:
        counted(rows.map_batches(later)).collect()
    assert ".with_time(…) after this step" in refused.value.hint
    with pytest.raises(UserError, match="changes 'at'"):
        counted(rows.drop("at").map_batches(lambda batch: batch.append_column("at", batch["n"]))).collect()
    assert rows.map_batches(later).collect()["at"].to_pylist() == list(range(1, 31))
    renewed = rows.map_batches(later).with_time("at", time_unit="s")
    assert counted(renewed).collect()["n"].to_pylist() == [9, 10, 10, 1]
    for same in (lambda batch: batch, as_floats, lambda batch: batch.select(["n"])):
        assert counted(rows.map_batches(same)).collect()["n"].to_pylist() == [10, 10, 10]


def each_later(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    row["at"] += 1
    yield row


async def row_later(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "at": row["at"] + 1}


async def batch_later(batch: pa.RecordBatch) -> pa.RecordBatch:
    return later(batch)


STEPS: dict[str, Callable[[Stream], Stream]] = {
    "map_batches": lambda rows: rows.map_batches(later, schema=COLUMNS),
    "flat_map": lambda rows: rows.flat_map(each_later, schema=COLUMNS),
    "map_async of rows": lambda rows: rows.map_async(row_later, schema=COLUMNS),
    "map_async of batches": lambda rows: rows.map_async(batch_later, schema=COLUMNS, batch=True),
}
COLUMNS = {"n": "int64", "at": "int64"}


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
def test_each_function_that_changes_what_event_time_was_computed_of_is_refused(tmp_path: Path, step: str) -> None:
    """flat_map and map_async changed the column, and windows went on by what it was, without a word."""
    (tmp_path / "a.ndjson").write_text("".join(f'{{"n": {n}, "at": {n}}}\n' for n in range(30)))
    rows = App("changed").stream(files(tmp_path / "a.ndjson"), time="at", time_unit="s")
    with pytest.raises(UserError, match="changes 'at', from which event time was computed"):
        counted(STEPS[step](rows)).collect()
    assert sorted(STEPS[step](rows).collect()["at"].to_pylist()) == list(range(1, 31))
    renewed = STEPS[step](rows).with_time("at", time_unit="s")
    assert counted(renewed).collect()["n"].to_pylist() == [9, 10, 10, 1]


@pytest.mark.parametrize("step", STEPS)
def test_event_time_follows_a_column_that_is_the_times_or_its_change_is_refused(tmp_path: Path, step: str) -> None:
    """Results of map_async of rows have the times of the rows that came in, so they must not say otherwise."""
    (tmp_path / "a.ndjson").write_text("".join(f'{{"n": {n}, "at": {n * 1000 + 999}}}\n' for n in range(30)))
    made = counted(STEPS[step](App("follows").stream(files(tmp_path / "a.ndjson"), time="at")))
    if step == "map_async of rows":
        with pytest.raises(UserError, match="changes 'at'"):
            made.collect()
    else:
        assert made.collect()["n"].to_pylist() == [9, 10, 10, 1]


def test_rows_of_two_times_keep_both_columns(tmp_path: Path) -> None:
    """Behind a union of streams with different columns of event time none of them is followed, so neither may change."""
    (tmp_path / "a.ndjson").write_text("".join(f'{{"n": {n}, "at": {n}}}\n' for n in range(30)))
    app = App("two")
    one, other = (app.stream(files(tmp_path / "a.ndjson"), time=time) for time in ("at", "n"))
    with pytest.raises(UserError, match=r"map_batches\(later\) changes 'at'"):
        counted(one.union(other).map_batches(later)).collect()


def test_a_failed_row_keeps_its_time_where_others_follow_their_column(tmp_path: Path) -> None:
    def far(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if row["n"] == 3:
            raise ValueError("three")
        yield {**row, "at": row["at"] + 10_000}

    (tmp_path / "a.ndjson").write_text("".join(f'{{"n": {n}, "at": {n * 1000}}}\n' for n in range(10)))
    rows = App("nulls").stream(files(tmp_path / "a.ndjson"), time="at", lateness="1m")
    made = counted(rows.flat_map(far, schema=COLUMNS, on_error="null")).collect()
    assert made["n"].to_pylist() == [1, 9]
