"""Event time as people have it: seconds, floats, texts, fields of structs, expressions; and what is said where it cannot be one."""

import datetime as dt
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sabot
from sabot import App, Stream, UserError, col, files, tumbling
from sabot.codecs.records import header_rows
from sabot.engine.operators.event_time import FAR_MS, ComputedTime
from sabot.testing import BARRIER, CRASH, END, ListSink, MemoryBroker, ScriptedSource, run
from tools.agent_tools import records, started, until

START = 1_700_000_000_000
TIMES = [START + 997 * n for n in range(200)]  # not whole seconds


def utc(ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(milliseconds=ms)


FORMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {  # the row, the arguments, the schema where it is given
    "ms": (lambda ms: {"t": ms}, {"time": "t"}, {}),
    "seconds": (lambda ms: {"t": ms // 1000}, {"time": "t", "time_unit": "s"}, {}),
    "microseconds": (lambda ms: {"t": ms * 1000 + 7}, {"time": "t", "time_unit": "us"}, {}),
    "nanoseconds": (lambda ms: {"t": ms * 10**6 + 7}, {"time": "t", "time_unit": "ns"}, {}),
    "float seconds": (lambda ms: {"t": ms / 1000}, {"time": "t", "time_unit": "s"}, {}),
    "float ms": (lambda ms: {"t": ms + 0.5}, {"time": "t"}, {}),
    "ISO 8601": (lambda ms: {"t": utc(ms).isoformat()}, {"time": "t"}, {"t": "string"}),
    "as inferred": (lambda ms: {"t": utc(ms).isoformat()}, {"time": "t"}, {}),
    "format": (lambda ms: {"t": f"{utc(ms):%d.%m.%Y %H:%M:%S}"}, {"time": "t", "time_format": "%d.%m.%Y %T"}, {}),
    "struct": (lambda ms: {"bid": {"dateTime": ms}}, {"time": "bid.dateTime"}, {}),
    "deeper": (lambda ms: {"a": {"b": {"t": ms // 1000}}}, {"time": "a.b.t", "time_unit": "s"}, {}),
    "a dot in the name": (lambda ms: {"a.t": ms}, {"time": "a.t"}, {}),
    "expression": (lambda ms: {"s": ms // 1000}, {"time": col("s") * 1000}, {}),
    "field": (lambda ms: {"p": {"ts": ms}}, {"time": col("p").struct.field("ts")}, {}),
    "to_datetime": (lambda ms: {"t": f"{utc(ms):%F %T}"}, {"time": col("t").str.to_datetime("%F %T")}, {"t": "string"}),
    "timestamp[s]": (lambda ms: {"t": utc(ms).isoformat("T", "seconds")}, {"time": "t"}, {"t": pa.timestamp("s")}),
}
_WHOLE_SECONDS = {"seconds", "format", "deeper", "expression", "to_datetime", "timestamp[s]"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def per_window(stream: Stream) -> dict[int, int]:
    table = stream.window(tumbling("10s")).aggregate(n=sabot.count()).collect()
    starts = table["window_start"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_pylist()
    return dict(zip(starts, table["n"].to_pylist(), strict=True))


def of_duckdb(times: list[int]) -> dict[int, int]:
    found = duckdb.sql(
        "select t // 10000 * 10000 w, count(*) from (select unnest($t) t) group by w", params={"t": times}
    )
    return dict(found.fetchall())


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("form", FORMS)
def test_windows_are_those_of_duckdb_whatever_form_the_times_have(tmp_path: Path, form: str) -> None:
    row, arguments, given = FORMS[form]
    path = write(tmp_path / "rows.ndjson", [{"n": n, **row(ms)} for n, ms in enumerate(TIMES)])
    schema = {"n": "int64", **given} if given else None
    stream = App("times").stream(files(path), schema=schema, lateness="1s", **arguments)
    expected = [ms // 1000 * 1000 if form in _WHOLE_SECONDS else ms for ms in TIMES]
    assert per_window(stream.filter(col("n") >= 0)) == of_duckdb(expected)


UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=8), st.sampled_from(sorted(UNITS)))
@settings(max_examples=60, deadline=None)
def test_integers_of_every_unit_round_down_to_ms_and_those_that_do_not_fit_are_null(values: Any, unit: str) -> None:
    data = pa.record_batch({"t": pa.array(values, pa.int64())})
    times, reasons = ComputedTime("stream t", col("t"), unit, None, data.schema).of(data)
    exact = [None if each is None else each * 1000 // UNITS[unit] for each in values]
    assert times.to_pylist() == [None if each is None or abs(each) >= FAR_MS else each for each in exact]
    assert not reasons


def test_numbers_that_are_no_times_are_null() -> None:
    floats = pa.array([1.5, float("nan"), float("inf"), -1e300, None, 1_700_000_000.123])
    data = pa.record_batch({"f": floats, "u": pa.array([1, 2**63, 2**64 - 1, 2**63 - 1, None, 0], pa.uint64())})
    of_floats, _ = ComputedTime("stream t", col("f"), "s", None, data.schema).of(data)
    assert of_floats.to_pylist() == [1500, None, None, None, None, 1_700_000_000_123]
    unsigned, _ = ComputedTime("stream t", col("u"), "us", None, data.schema).of(data)
    assert unsigned.to_pylist() == [0, None, None, (2**63 - 1) // 1000, None, 0]


def letters_of(source: ScriptedSource, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a stream, and what its dead letters say, over a script with a crash in it."""
    results, letters = ListSink("results"), ListSink("letters")

    def build(directory: Path) -> App:
        app = App("times", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        stream = app.stream(source, dead_letter=letters, **options)
        stream.window(tumbling("1s")).aggregate(n=sabot.collect_list("n")).to(results)
        return app

    run(build)
    said = []
    for data in letters.batches:
        said += [dict(headers)["sabot.message"].decode() for headers in header_rows(data.column("headers"))]
    return results.rows, said


def test_values_that_are_no_times_are_dead_letters_that_name_them_and_the_others_go_on_over_a_restart() -> None:
    texts = ["2024-01-01T00:00:00Z", "soon", None, "2024-01-01T00:00:05Z", "", "2024-01-01T00:00:09Z"]
    rows = [{"n": n, "t": text} for n, text in enumerate(texts)]
    source = ScriptedSource([rows[:3], BARRIER, CRASH, rows[3:], END], name="in")
    found, said = letters_of(source, schema={"n": "int64", "t": "string"}, time="t")
    assert [row["n"] for row in found] == [[0], [3], [5]]
    told = Counter(said)
    assert set(told) == {
        "event time 't': col(\"t\").str.to_datetime(): 'soon' is no timestamp[us]",
        "event time 't' is null, or out of range",
        "event time 't': col(\"t\").str.to_datetime(): '' is no timestamp[us]",
    }, told


def test_an_expression_that_fails_for_a_row_costs_only_that_row() -> None:
    rows = [{"n": n, "t": text} for n, text in enumerate(["1", "2", "x", "4"])]
    source = ScriptedSource([rows, END], name="in")
    time = col("t").cast("int64") * 1000
    found, said = letters_of(source, schema={"n": "int64", "t": "string"}, time=time)
    assert [row["n"] for row in found] == [[0], [1], [3]]
    assert len(said) == 1
    assert said[0].startswith("event time ")
    assert "'x' is no int64" in said[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"time": "b"}, "rows.ndjson: event time 'b' is bool, which is no time"),
        ({"time": "p"}, r"rows.ndjson: event time 'p' is struct<t: int64>, which is no time"),
        ({"time": "p.q"}, r"rows.ndjson: event time '?col\(\"p\"\)"),
        ({"time": "n.q"}, "rows.ndjson: event time"),
        ({"time": "zz"}, "rows.ndjson: there is no column 'zz' for event time"),
        ({"time": col("zz") + 1}, "rows.ndjson: event time .*there is no column 'zz'"),
        ({"time": col("b")}, "rows.ndjson: event time 'b' is bool"),
        ({"time": "s", "time_unit": "s"}, "rows.ndjson: event time 's' is string, which has no time_unit"),
        ({"time": "n", "time_format": "%F"}, "rows.ndjson: event time 'n': int64 has no format"),
        ({"time": "s", "time_unit": "min"}, "stream: time_unit='min'"),
        ({"time": "s", "time_format": "%Q"}, "%Q is not a code for reading times"),
        ({"time": "s", "time_format": "%F", "time_unit": "s"}, "exclude each other"),
        ({"time_unit": "s"}, "stream: time_unit='s' without a column of event time"),
        ({"time": 3}, "stream: time=3 is not a column"),
    ],
)
def test_what_types_show_is_refused_at_the_start(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "rows.ndjson", [{"n": 1, "b": True, "s": "x", "p": {"t": 1}}])
    with pytest.raises(UserError, match=says):
        per_window(App("times").stream(files(path), **arguments))


def test_a_text_of_digits_with_a_unit_is_cast_as_the_hint_says() -> None:
    """The hint spoke of timestamps of JSON."""
    with pytest.raises(UserError, match="event time 't' is string, which has no time_unit") as refused:
        ComputedTime("stream rows", col("t"), "s", None, pa.schema([("t", pa.string())]))
    assert refused.value.hint == 'time=col("t").cast("int64"), time_unit="s" where the texts are numbers'
    rows = pa.record_batch({"t": ["1700000000", "soon"]})
    times, bad = ComputedTime("stream rows", col("t").cast("int64"), "s", None, rows.schema).of(rows)
    assert (times.to_pylist(), list(bad)) == ([1_700_000_000_000, None], [1])


def test_the_expression_of_known_columns_is_checked_where_it_is_written() -> None:
    with pytest.raises(UserError, match="there is no column 'epoch'"):
        App("times").stream("topic", schema={"n": "int64"}, time=col("epoch") * 1000)


@pytest.mark.parametrize(
    ("value", "arguments", "says"),
    [
        (
            1_700_000_000,
            {"time": "t"},
            "1970-01-20 16:13:20+00:00, as its numbers count ms; in s it would be 2023-11-14",
        ),
        (1_700_000_000_000_000, {"time": "t"}, "in us it would be 2023-11-14"),
        (1_700_000_000_000, {"time": "t", "time_unit": "s"}, "as its numbers count s; in ms it would be 2023-11-14"),
        (1_700_000_000.5, {"time": "t"}, "in s it would be 2023-11-14"),
        (1_700_000_000_000, {"time": "t"}, None),
        (788_918_400_000, {"time": "t"}, None),  # 1995: no unit makes it later
        (0, {"time": "t"}, None),
        (2013, {"time": "t"}, '1970-01-01 00:00:02+00:00: time="t" may be no time; time_unit="ms" says that it is one'),
        (2013, {"time": "t", "time_unit": "ms"}, None),
        ("1970-01-01 00:00:02", {"time": "t"}, None),
    ],
)
def test_first_times_that_are_no_times_or_in_another_unit_are_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any, arguments: dict[str, Any], says: str | None
) -> None:
    path = write(tmp_path / "rows.ndjson", [{"n": n, "t": value} for n in range(3)])
    with caplog.at_level(logging.WARNING, "sabot"):
        App("times", parallelism=2).stream(files(path), **arguments).window(tumbling("1h")).aggregate(
            n=sabot.count()
        ).collect()
    warned = [record.getMessage() for record in caplog.records if "event time" in record.getMessage()]
    assert len(warned) == (says is not None)
    if says is not None:
        assert says in warned[0]
        assert "rows.ndjson: event time 't' of its first rows is " in warned[0]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("2012/01/01", "%Y/%m/%d"),
        ("2010/01/01 00:00", "%Y/%m/%d %H:%M"),
        ("Jan 1 2000", "%b %d %Y"),
        ("31.12.2024", "%d.%m.%Y"),
    ],
)
def test_a_start_over_texts_in_another_form_names_the_format_that_reads_them(text: str, format: str) -> None:
    rows = [{"n": n, "t": text} for n in range(200)]
    with pytest.raises(UserError, match="none of its first 200 rows has an event time") as refused:
        minutes_of(App("times").stream(rows, time="t"))
    assert refused.value.hint == f'time_format="{format}" reads {text!r}'
    assert len(minutes_of(App("times").stream(rows, time="t", time_format=format))) == 1


def test_the_hint_for_a_part_of_a_text_names_the_way_to_a_time() -> None:
    with pytest.raises(UserError, match=r"dt.month of string .*str.to_datetime"):
        App("times").stream([{"t": "2024-01-01"}]).with_columns(m=col("t").dt.month()).collect()


_BERLIN = [
    ("2024-01-01 10:00:00", "2024-01-01 09:00"),
    ("2024-07-01T10:00:00", "2024-07-01 08:00"),
    ("2024-07-01T10:00:00Z", "2024-07-01 10:00"),
    ("2024-07-01T10:00:00-05:00", "2024-07-01 15:00"),
    ("2024-07-02", "2024-07-01 22:00"),
    ("2024-10-27 02:30:00", "2024-10-27 00:30"),  # twice on clocks: the first
    ("2024-03-31 02:40:00", "2024-03-31 01:40"),  # clocks skip it: as if they had not been changed
    ("2024-03-31T02:30:00Z", "2024-03-31 02:30"),  # a time that clocks skip, and the text has a zone of its own
    ("2024-05-17T12Z", "2024-05-17 12:00"),
]


def minutes_of(stream: Stream) -> list[str]:
    table = stream.window(tumbling("1m")).aggregate(n=sabot.count()).collect()
    return [f"{start:%Y-%m-%d %H:%M}" for start in table["window_start"].to_pylist()]


@pytest.mark.parametrize("later", [False, True])
def test_texts_without_a_zone_have_the_zone_of_the_stream(tmp_path: Path, later: bool) -> None:
    rows = [{"t": text} for text, _ in _BERLIN]
    source = files(write(tmp_path / "rows.ndjson", rows))
    zone: Any = {"lateness": "1000d", "time_zone": "Europe/Berlin"}
    app = App("zones")
    stream = app.stream(source).with_time("t", **zone) if later else app.stream(source, time="t", **zone)
    assert minutes_of(stream) == sorted(at for _, at in _BERLIN)


def test_timestamps_and_dates_without_a_zone_have_the_zone_of_the_stream() -> None:
    summer = dt.datetime(2024, 7, 1, 10)
    zoned = summer.replace(tzinfo=dt.UTC)
    for value, expected in [(summer, "08:00"), (summer.date(), "22:00"), (zoned, "10:00")]:
        stream = App("zones").stream(pa.table({"t": [value]}), time="t", time_zone="Europe/Berlin")
        assert [at[-5:] for at in minutes_of(stream)] == [expected]
    with pytest.raises(UserError, match="int64 has no time_zone"):
        App("zones").stream(pa.table({"t": [1]}), time="t", time_zone="Europe/Berlin").collect()
    with pytest.raises(UserError, match="there is no time zone 'Berlin'"):
        App("zones").stream("topic", time="t", time_zone="Berlin")


def test_a_plan_says_what_event_time_is_read_of() -> None:
    stream = App("times").stream("bids", schema={"bid": pa.struct({"at": pa.int64()}), "n": "int64"}, time="bid.at")
    assert "read bids: n; event time from bid.at" in stream.window(tumbling("1s")).aggregate(n=sabot.count()).explain()


async def test_a_deletion_of_a_table_has_the_time_of_its_record(memory_url: str) -> None:
    """Its payload is empty, so no expression gives it a time: it was once set apart, and the row stayed in the table."""
    broker = MemoryBroker.get(memory_url)
    broker.publish("rows", [{"k": "a", "at": 5}], key="a")
    app = App("times", memory_url)
    table = app.table("rows", key="k", schema={"k": "string", "at": "int64"}, time="at", time_unit="s")
    table.changelog().to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 1, "the row")
        broker.publish("rows", [None], key="a")
        await until(lambda: len(records(app, "out")) == 2, "its end")
    assert [record.value["k"] for record in records(app, "out")] == ["a", "a"]
    assert not records(app, "rows.dlq")
