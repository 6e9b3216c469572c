"""Rows that come too late for a step by event time: none vanishes. They are counted and told, and go where `late=` says, in windows, joins
and patterns alike.

The story: twenty repaired dead letters went back into a pipeline with `join_asof`, came too late, and were in no output at all.
"""

import json
import logging
import re

import numpy as np
import pyarrow as pa
import pytest
from harness import until

import sabot
from sabot import App, Batch, NdjsonSink, UserError, col, pattern, session, tumbling
from sabot.engine.letters.form import LETTER_SCHEMA
from sabot.engine.operators.base import TIME_COLUMN, OperatorContext
from sabot.engine.operators.late_rows import LateRows
from sabot.testing import END, ManualClock, MemoryBroker, ScriptedSource

SCHEMA = {"k": "string", "n": "int64", "ts": "int64"}
ROW = {"k": "x", "n": -1, "ts": 1000}  # comes when event time is an hour on
OTHER = {"k": "x", "p": -2, "ts": 2000}


def steps(url, step, late, **options):
    """An app that reads "orders" and "prices", joins or counts them with `step`, and writes "out". late: options of the step."""
    app = App("late", broker=url, **options)
    orders = app.stream("orders", schema=SCHEMA, time="ts", idle="1h")
    prices = app.stream("prices", schema={"k": "string", "p": "int64", "ts": "int64"}, time="ts", idle="1h")
    made = {
        "asof": lambda: orders.join_asof(prices, on="k", **late),
        "between": lambda: orders.join(prices, on="k", how="left", between=("-1s", "1s"), **late),
        "join window": lambda: orders.join(prices, on="k", how="full", window=tumbling("1s"), **late),
        "pattern": lambda: orders.key_by("k").pattern(pattern("a", col("n") < 0), n=sabot.step("a").last("n"), **late),
        "window": lambda: orders.key_by("k").window(tumbling("1s"), **late).aggregate(n=sabot.count()),
        "session": lambda: orders.key_by("k").window(session("1s"), **late).aggregate(n=sabot.count()),
        "top": lambda: orders.key_by("k").window(tumbling("1s"), **late).top_n(1, by="n"),
    }[step]()
    made.to("out")
    return app


STEPS = ("asof", "between", "join window", "pattern", "window", "session", "top")
JOINS = STEPS[:3]


def late_rows(app):
    """How many late rows the app's statistics count, and the watermark of the step that counts them."""
    for task in app.statistics()["streams"].values():
        found = [each["late_rows"] for each in task["operators"].values() if "late_rows" in each]
        if found:
            return found[0], task["watermark_ms"]
    return 0, None


async def too_late(app, url, step):
    """Runs the app until a late order, and for a join a late price, have come."""
    broker = MemoryBroker.get(url)
    times = [3_600_000 + n * 2000 for n in range(4)]
    broker.publish("orders", [{"k": "x", "n": n, "ts": ts} for n, ts in enumerate(times)])
    broker.publish("prices", [{"k": "x", "p": n, "ts": ts} for n, ts in enumerate(times)])
    await app.start()
    try:
        await until(lambda: (late_rows(app)[1] or 0) >= times[-1], "the watermark")
        broker.publish("orders", [ROW])
        if step in JOINS:
            broker.publish("prices", [OTHER])
        await until(lambda: late_rows(app)[0] == (2 if step in JOINS else 1), "the late rows")
    finally:
        await app.stop()
    return broker


def values(broker, topic):
    return [record.value for record in broker.records(topic)]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
async def test_a_late_row_goes_to_a_place_of_its_own(step):
    url = f"memory://late-{step.replace(' ', '-')}"
    app = steps(url, step, {"late": "late"})
    broker = await too_late(app, url, step)
    assert sorted(values(broker, "late"), key=str) == ([ROW, OTHER] if step in JOINS else [ROW])
    assert ROW["n"] not in [value.get("n") for value in values(broker, "out")]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
async def test_a_late_row_goes_into_a_list_of_the_program(step):
    url, late = f"memory://late-list-{step.replace(' ', '-')}", []
    await too_late(steps(url, step, {"late": late}), url, step)
    assert sorted(late, key=str) == ([ROW, OTHER] if step in JOINS else [ROW])


async def test_sorted_puts_late_rows_into_a_list_of_the_program():
    late, rows = [], [[{"ts": 0}], [{"ts": 120_000}], [{"ts": 1000}], END]
    stream = App("sorted").stream(ScriptedSource(rows), schema={"ts": "int64"}, time="ts")
    assert stream.sorted(late=late).collect().to_pylist() == [{"ts": 0}, {"ts": 120_000}]
    assert late == [{"ts": 1000}]


async def test_late_rows_of_both_sides_go_into_two_lists():
    url, orders, prices = "memory://two-lists", [], []
    await too_late(steps(url, "between", {"late": (orders, prices)}), url, "between")
    assert (orders, prices) == ([ROW], [OTHER])
    with pytest.raises(UserError, match="is not a pair of sinks") as refused:
        steps(url, "between", {"late": ["late-orders", "late-prices"]})
    assert 'late=("late-orders", "late-payments")' in refused.value.hint


@pytest.mark.parametrize("word", ["drop", "dead_letter", "null", "fail"])
@pytest.mark.parametrize("step", STEPS)
def test_a_word_of_what_becomes_of_bad_rows_is_no_topic_for_late_ones(step, word):
    with pytest.raises(UserError, match=f"late: '{word}' would be the name of a topic") as refused:
        steps("memory://words", step, {"late": word})
    assert 'late="{topic}.dlq"' in refused.value.hint


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
async def test_a_late_row_goes_back_to_the_dead_letters(step):
    url = f"memory://letters-{step.replace(' ', '-')}"
    app = steps(url, step, {"late": "{topic}.dlq"})
    broker = await too_late(app, url, step)
    found = [("orders", ROW), ("prices", OTHER)] if step in JOINS else [("orders", ROW)]
    for topic, row in found:
        (letter,) = broker.records(f"{topic}.dlq")
        headers = dict(letter.headers)
        assert letter.value == row
        assert headers["sabot.topic"] == topic.encode()
        assert headers.get("sabot.offset") == (None if step == "pattern" else b"4")  # rows wait for their order there
        assert headers["sabot.message"].startswith(
            f"late: 1970-01-01T00:00:0{row['ts'] // 1000}.000+00:00 is ".encode()
        )
        assert b" too old: the watermark was at 1970-01-01T01:00:" in headers["sabot.message"]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("step", STEPS)
async def test_late_rows_of_a_service_are_told_when_they_begin(step, caplog):
    url = f"memory://told-{step.replace(' ', '-')}"
    app = steps(url, step, {})
    with caplog.at_level(logging.WARNING, logger="sabot"):
        broker = await too_late(app, url, step)
    told = [record.getMessage() for record in caplog.records if "too late" in record.getMessage()]
    assert len(told) == (2 if step in JOINS else 1)
    assert all("by up to 1 h" in line for line in told)
    assert ROW["n"] not in [value.get("n") for value in values(broker, "out")]


async def test_a_reference_that_is_out_of_order_is_told_at_once_with_the_ways_out(caplog):
    url = "memory://reference"
    with caplog.at_level(logging.WARNING, logger="sabot"):
        await too_late(steps(url, "asof", {}), url, "asof")
    told = [line for line in caplog.messages if "too late" in line]
    assert (
        sum("app.table(…)" in line and "files(…, sort=)" in line for line in told) == 1
    )  # of the reference, not of the orders


async def test_late_rows_of_both_sides_go_to_two_places():
    url = "memory://both"
    app = steps(url, "between", {"late": ("late-orders", "late-prices")})
    broker = await too_late(app, url, "between")
    assert values(broker, "late-orders") == [ROW]
    assert values(broker, "late-prices") == [OTHER]


async def test_late_rows_of_a_join_by_an_expression_are_without_its_key():
    url = "memory://expression"
    app = App("late", broker=url)
    orders = app.stream("orders", schema=SCHEMA, time="ts", idle="1h")
    prices = app.stream("prices", schema={"k": "string", "p": "int64", "ts": "int64"}, time="ts", idle="1h")
    orders.join_asof(prices, left_on=col("k").str.upper(), right_on=col("k").str.upper(), late="late").to("out")
    broker = await too_late(app, url, "asof")
    assert sorted(values(broker, "late"), key=str) == [ROW, OTHER]


async def test_late_dead_letters_in_a_file_are_rows_of_the_letters_columns(tmp_path):
    url, letters = "memory://file-letters", NdjsonSink(tmp_path / "bad.ndjson")
    app = App("late", broker=url)
    orders = app.stream("orders", schema=SCHEMA, time="ts", dead_letter=letters)
    found = orders.key_by("k").pattern(pattern("a", col("n") < 0), n=sabot.step("a").last("n"), late=letters)
    found.to("out")
    await too_late(app, url, "pattern")
    (row,) = [json.loads(line) for line in (tmp_path / "bad.ndjson").read_text().splitlines()]
    assert set(row) == set(LETTER_SCHEMA.names)
    assert json.loads(row["payload"]) == ROW


def test_a_join_that_no_row_is_late_for_takes_no_place_for_late_rows():
    app = App("late", broker="memory://never")
    orders, prices = app.stream("orders", schema=SCHEMA), app.stream("prices", schema=SCHEMA)
    with pytest.raises(UserError, match="no row is too late"):
        orders.join(prices, on="k", late="late")
    with pytest.raises(UserError, match="the other stream is changes"):
        orders.join_asof(prices.upsert("k"), on="k", late=("late", "late-prices"))


def test_the_log_says_how_late_rows_were_and_the_lateness_that_would_have_kept_nearly_all(caplog):
    context = OperatorContext(pa.schema([("n", pa.int64()), (TIME_COLUMN, pa.int64())]), clock=ManualClock())
    rows = LateRows(context, "window")
    rows.came(10_000)
    late_ms = np.array([*[100] * 9000, *[3000] * 995, *[60_000] * 5])
    with caplog.at_level(logging.WARNING, logger="sabot"):
        rows.note(100_000 - late_ms, 100_000)
    (line,) = caplog.messages
    found = re.search(
        r"half of them by up to (\d+) ms, 99 % by up to ([\d.]+) s; lateness= greater by ([\d.]+) s would", line
    )
    assert found is not None, line
    assert 100 <= float(found[1]) < 120
    assert 3 <= float(found[2]) < 3.6
    assert 3 <= float(found[3]) < 3.6, "only 5 of 10,000 rows were later"
    assert "by up to 1 min" in line


def test_the_lateness_in_the_log_is_that_which_keeps_nearly_all_rows_and_not_nearly_all_late_ones(caplog):
    app = App("kept", broker="memory://kept")
    in_time = [{"k": "x", "n": n, "ts": 3_600_000 + n} for n in range(10_000)]
    late = [{"k": "x", "n": -1, "ts": 3_600_000 - late_ms} for late_ms in [3000] * 10 + [60_000] * 10]
    batches = [in_time[:5000], in_time[5000:], late, END]
    orders = app.stream(ScriptedSource(batches), schema=SCHEMA, time="ts", lateness="0s")
    counts = orders.key_by("k").window(tumbling("1s")).aggregate(n=sabot.count())
    with caplog.at_level(logging.WARNING, logger="sabot"):
        counts.collect()
    (line,) = [line for line in caplog.messages if "too late" in line]
    found = re.search(r"lateness= greater by ([\d.]+) s would have kept 99.9 % of all rows", line)
    assert found is not None, line
    assert 13 <= float(found[1]) < 16, "10 of 10,020 rows were later: one in a thousand may be"
    assert "20 rows came too late" in line


def test_the_log_of_a_script_says_what_to_write_in_sql(caplog):
    app = App("rides", broker="memory://rides")
    batches = [[{"k": "x", "n": 1, "ts": 10_000_000}], [{"k": "x", "n": 2, "ts": 3_600_000}], END]
    app.register("rides", app.stream(ScriptedSource(batches), schema=SCHEMA, time="ts"))
    query = "SELECT COUNT(*) FROM TABLE(TUMBLE(TABLE rides, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end"
    with caplog.at_level(logging.WARNING, logger="sabot"):
        app.sql(query).collect()
    (line,) = [line for line in caplog.messages if "too late" in line]
    assert "(at SQL:1:1)" in line
    assert "an interval of WATERMARK that is greater by" in line
    assert "(the interval of WATERMARK FOR … AS … - INTERVAL … says how late rows may be)" in line
    assert "lateness=" not in line


def test_the_log_says_that_nearly_all_rows_were_in_time(caplog):
    app = App("intime", broker="memory://intime")
    in_time = [{"k": "x", "n": n, "ts": 3_600_000 + n} for n in range(10_000)]
    orders = app.stream(ScriptedSource([in_time, [ROW], END]), schema=SCHEMA, time="ts", lateness="0s")
    matches = orders.key_by("k").pattern(pattern("a", col("n") < 0), n=sabot.step("a").last("n"))
    with caplog.at_level(logging.WARNING, logger="sabot"):
        matches.collect()
    (line,) = [line for line in caplog.messages if "too late" in line]
    assert "99.9 % of all rows were in time" in line


def test_late_rows_are_told_at_once_then_once_a_minute_and_at_the_end(caplog):
    clock = ManualClock()
    context = OperatorContext(pa.schema([("n", pa.int64()), (TIME_COLUMN, pa.int64())]), clock=clock)
    rows = LateRows(context, "pattern by k")
    batch = Batch(pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array([0, 4000])], schema=context.input))

    def said():
        (line,) = [record.getMessage().split(" (")[0] for record in caplog.records]
        caplog.clear()
        return line

    with caplog.at_level(logging.WARNING, logger="sabot"):
        rows.reject(batch, pa.array([0], pa.int32()), 5000)
        assert said() == "1 row came too late for pattern by k, by up to 5 s"
        clock.advance(59)
        rows.reject(batch, pa.array([0, 1], pa.int32()), 90_000)
        assert not caplog.records
        clock.advance(1)
        rows.reject(batch, pa.array([1], pa.int32()), 5000)
        assert said() == "4 rows came too late for pattern by k, since the last message by up to 1 min 30 s"
        rows.reject(batch, pa.array([1], pa.int32()), 4250)
        rows.tell_rest()
        assert said() == "5 rows came too late for pattern by k, since the last message by up to 250 ms"
        rows.tell_rest()
        assert not caplog.records
