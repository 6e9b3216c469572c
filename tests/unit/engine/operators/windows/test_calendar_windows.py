"""Windows of days, weeks, months, quarters and years in a time zone, beside `zoneinfo` and polars."""

import datetime as dt
import random
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sabot
from sabot import App, UserError, cumulative, hopping, tumbling
from sabot.api.windows import CalendarWindow, ClockWindow, TimeWindow, TumblingWindow
from sabot.engine.operators.windows.panes import shape_of
from sabot.errors import DataError
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run

ZONES = [
    "Europe/Berlin",
    "America/Havana",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "America/Sao_Paulo",
    "Asia/Kolkata",
    "Europe/Amsterdam",  # 19:32 minutes from UTC until 1937
    "Africa/Monrovia",  # -44:30 minutes until 1972
    "UTC",
]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MONTHS = {"mo": 1, "q": 3, "y": 12}


def first_day(clock: dt.datetime, count: int, unit: str) -> dt.date:
    """The first day of the unit that a clock shows."""
    if unit in MONTHS:
        month = (clock.year - 1970) * 12 + clock.month - 1
        month -= month % (count * MONTHS[unit])
        return dt.date(1970 + month // 12, month % 12 + 1, 1)
    days, begin = (7 * count, dt.date(1970, 1, 5)) if unit == "w" else (count, dt.date(1970, 1, 1))
    passed = (clock.date() - begin).days
    return begin + dt.timedelta(days=passed - passed % days)


def day_after(first: dt.date, count: int, unit: str) -> dt.date:
    if unit in MONTHS:
        month = (first.year - 1970) * 12 + first.month - 1 + count * MONTHS[unit]
        return dt.date(1970 + month // 12, month % 12 + 1, 1)
    return first + dt.timedelta(days=count * (7 if unit == "w" else 1))


def begin_of(day: dt.date, zone: str) -> int:
    """The ms at which the clock of the zone first shows this day or a later one."""
    known = ZoneInfo(zone)
    midnight = dt.datetime.combine(day, dt.time())
    moment = midnight.replace(tzinfo=dt.UTC) - dt.timedelta(hours=30)
    step = dt.timedelta(hours=1)
    while step >= dt.timedelta(seconds=1):
        while (moment + step).astimezone(known).replace(tzinfo=None) < midnight:
            moment += step
        step /= 60
    return round((moment + dt.timedelta(seconds=1) - EPOCH).total_seconds() * 1000)


def span_of(ms: int, window: CalendarWindow) -> tuple[int, int]:
    """The start and end of the window of a time, by zoneinfo."""
    clock = (EPOCH + dt.timedelta(milliseconds=ms)).astimezone(ZoneInfo(window.time_zone)).replace(tzinfo=None)
    first = first_day(clock, window.count, window.unit)
    after = day_after(first, window.count, window.unit)
    if begin_of(after, window.time_zone) <= ms:  # the clock was put back over midnight
        first, after = after, day_after(after, window.count, window.unit)
    start, end = begin_of(first, window.time_zone), begin_of(after, window.time_zone)
    while end <= start:  # a day that the zone has skipped
        after = day_after(after, window.count, window.unit)
        end = begin_of(after, window.time_zone)
    return start, end


HOUR = 3_600_000
moments = st.one_of(
    st.integers(0, 4_000_000_000_000),
    st.sampled_from(
        [1_711_843_200_000, 1_729_987_200_000, 1_325_239_200_000, 1_699_160_400_000, 1_762_056_000_000]
    ).flatmap(lambda change: st.integers(change - 30 * HOUR, change + 30 * HOUR)),
)
any_moments = st.one_of(
    moments,
    st.integers(-3_000_000_000_000, 100_000_000_000),  # from 1874 on: most clocks were some seconds off whole minutes
    st.integers(4_000_000_000_000, 200_000_000_000_000),  # to 8307: only rules are known
    st.sampled_from([-1_693_700_372_000, -1_029_190_772_000, 63_593_070_000]).flatmap(  # changes of the last two zones
        lambda change: st.integers(change - 30 * HOUR, change + 30 * HOUR)
    ),
)


def clock_so_far(ms: int, zone: str) -> int:
    """The greatest time that the clock of the zone has shown until then, in ms since 1970 on that clock, by zoneinfo."""

    def shown(at: int) -> int:
        clock = (EPOCH + dt.timedelta(milliseconds=at)).astimezone(ZoneInfo(zone)).replace(tzinfo=dt.UTC)
        return (clock - EPOCH) // dt.timedelta(milliseconds=1)

    half_hours = ms // (HOUR // 2)
    return max([shown(ms), *(shown((half_hours - back) * (HOUR // 2) - 1) for back in range(4))])


def time_of_clock(clock: int, zone: str) -> int:
    """The ms at which the clock of the zone first shows this time or a later one."""
    low, high = clock - 30 * HOUR, clock + 30 * HOUR
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if clock_so_far(middle, zone) >= clock else (middle + 1, high)
    return low


@settings(max_examples=60, deadline=None)
@given(
    moments,
    st.sampled_from(ZONES[:-1]),
    st.sampled_from([("3d", "1d"), ("1d", "6h"), ("1d", "10m"), ("12h", "12h")]),
    st.booleans(),
    st.sampled_from(["0s", "3h"]),
)
def test_windows_on_a_clock_begin_and_end_where_it_first_shows_their_bounds(ms, zone, sizes, grows, offset) -> None:
    plain = (cumulative if grows else hopping)(*sizes, offset=offset)
    step, size = plain.step_ms if grows else plain.slide_ms, plain.size_ms
    window = ClockWindow(size, step, grows, zone, plain.offset_ms)
    shape = shape_of(window)
    clock = clock_so_far(ms, zone) - window.offset_ms
    pane = clock - clock % step
    assert shape.pane(ms) == time_of_clock(pane + window.offset_ms, zone)
    assert shape.pane(ms) <= ms < shape.pane_end(shape.pane(ms))
    first = clock - clock % size if grows else pane
    last_end = time_of_clock((first if grows else pane) + size + window.offset_ms, zone)
    assert shape.last_end(shape.pane(ms)) == last_end
    ends = list(shape.ends([shape.pane(ms)], shape.pane(ms)))
    assert ends[-1] == last_end
    assert all(shape.start(end) <= shape.pane(ms) < end for end in ends)
    if grows:
        assert {shape.start(end) for end in ends} == {time_of_clock(first + window.offset_ms, zone)}
    late = shape.late_before(ms)
    assert shape.last_end(shape.pane(late - 1)) <= ms < shape.last_end(shape.pane(late)), (
        "late rows have no window left"
    )
    times = pa.array([ms, ms + HOUR // 3, ms], pa.int64())
    split = [(at, rows) for at, rows in shape.split(times, None)[1]]
    assert [at for at, _ in split] == sorted({shape.pane(each) for each in times.to_pylist()})


def test_an_hour_that_the_clock_shows_twice_is_in_one_window() -> None:
    begun = dt.datetime(2024, 10, 26, 22, 30, tzinfo=dt.UTC)
    ms = [(begun + dt.timedelta(hours=hour) - EPOCH) // dt.timedelta(milliseconds=1) for hour in range(6)]
    rows = App("night").stream([{"at": at} for at in ms], schema={"at": "int64"}, time="at")
    made = rows.window(cumulative("1d", "1h", time_zone="Europe/Berlin")).aggregate(n=sabot.count()).collect()
    until = [f"{row['window_end'].astimezone(ZoneInfo('Europe/Berlin')):%H:%M} {row['n']}" for row in made.to_pylist()]
    assert until[:5] == ["01:00 1", "02:00 2", "03:00 4", "04:00 5", "05:00 6"]
    assert len(until) == 24


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_moments, min_size=1, max_size=12),
    st.sampled_from(ZONES),
    st.sampled_from(["1d", "3d", "1w", "1mo", "5mo", "1q", "1y"]),
    st.integers(0, 20),
)
def test_the_bounds_of_a_window_are_midnights_of_its_zone(times: list[int], zone: str, size: str, late: int) -> None:
    window = tumbling(size, time_zone=zone)
    if isinstance(window, TumblingWindow):
        assert zone == "UTC"
        window = CalendarWindow(int(size[0]), "w" if "w" in size else "d")
    shape = shape_of(window)
    late_before = sorted(times)[late] if late < len(times) else -(2**63)
    refused, panes = shape.split(pa.array(times), None, late_before)
    assert (refused.to_pylist() if refused is not None else []) == [
        i for i, each in enumerate(times) if each < late_before
    ]
    found = {}
    for start, rows in panes:
        for row in range(len(times)) if rows is None else rows.to_pylist():
            found[row] = (start, shape.pane_end(start))
    assert found == {i: span_of(each, window) for i, each in enumerate(times) if each >= late_before}
    assert list(dict(panes)) == sorted(dict(panes))
    for each in times:
        start, end = span_of(each, window)
        assert (shape.pane(each), shape.start(end), shape.last_end(start)) == (start, start, end)
        assert shape.late_before(each) == start
        assert list(shape.ends([start], start - 1, end)) == [end]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize(
    ("size", "zone"), [("1d", "Europe/Berlin"), ("1w", "America/New_York"), ("1mo", "Asia/Tokyo"), ("1q", "UTC")]
)
def test_a_year_of_rows_is_grouped_as_by_polars(size: str, zone: str, parallelism: int, tmp_path: Path) -> None:
    dice = random.Random(7)
    begin = 1_704_067_200_000
    rows = [
        {"ts": begin + (i * 366 * 24 * HOUR) // 3000 + dice.randrange(HOUR), "k": dice.choice("ab"), "n": i}
        for i in range(3000)
    ]
    app = App("year", parallelism=parallelism)
    stream = app.stream(rows, time="ts", lateness="1h")
    windows = stream.key_by("k").window(tumbling(size, time_zone=zone)).aggregate(n=sabot.count(), total=sabot.sum("n"))
    made = pl.from_arrow(windows.collect()).sort("k", "window_start")
    frame = pl.DataFrame(rows).with_columns(
        pl.from_epoch("ts", "ms")
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone(zone)
        .dt.truncate(size)
        .alias("start")
    )
    wanted = frame.group_by("k", "start").agg(n=pl.len(), total=pl.sum("n")).sort("k", "start")
    assert made.select("k", "n", "total").rows() == wanted.select("k", "n", "total").rows()
    starts = wanted["start"].dt.epoch("ms").to_list()
    assert made["window_start"].dt.epoch("ms").to_list() == starts
    after = wanted["start"].dt.offset_by(size).dt.epoch("ms").to_list()
    assert made["window_end"].dt.epoch("ms").to_list() == after


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Asia/Kolkata"])
@pytest.mark.parametrize("size", ["15m", "30m", "1h"])
def test_hours_that_a_clock_shows_twice_are_two_windows_as_in_polars(size: str, zone: str) -> None:
    if (zone, size) == ("Australia/Lord_Howe", "1h"):
        pytest.skip("its clock is changed by half an hour, so its hours are of different lengths")
    info, rows = ZoneInfo(zone), []
    for day in [dt.datetime(2024, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=each) for each in range(366)]:
        if day.astimezone(info).utcoffset() != (day + dt.timedelta(days=1)).astimezone(info).utcoffset():
            rows += [day + dt.timedelta(minutes=7 * each) for each in range(400)]
    rows = rows or [EPOCH]
    stream = App("hours").stream(pl.DataFrame({"ts": rows}), time="ts")
    made = stream.window(tumbling(size, time_zone=zone)).aggregate(n=sabot.count()).collect()
    frame = pl.DataFrame({"ts": rows}).with_columns(pl.col("ts").dt.convert_time_zone(zone)).sort("ts")
    wanted = frame.group_by_dynamic("ts", every=size).agg(n=pl.len())
    assert made["window_start"].cast(pa.int64()).to_pylist() == wanted["ts"].dt.epoch("ms").to_list()
    assert made["n"].to_pylist() == wanted["n"].to_list()


def test_rows_of_two_streams_meet_on_the_same_local_day() -> None:
    zone = ZoneInfo("Europe/Berlin")
    late_evening, after_midnight = (
        dt.datetime(2024, 10, 26, 23, 30, tzinfo=zone),
        dt.datetime(2024, 10, 27, 0, 30, tzinfo=zone),
    )
    app = App("days")
    left = app.stream(
        [{"k": 1, "ts": late_evening, "l": "evening"}, {"k": 1, "ts": after_midnight, "l": "night"}], time="ts"
    )
    right = app.stream([{"k": 1, "ts": dt.datetime(2024, 10, 27, 23, 59, tzinfo=zone), "r": "end"}], time="ts")
    met = left.join(right, on="k", window=tumbling("1d", time_zone="Europe/Berlin")).select("l", "r")
    assert met.collect().to_pylist() == [{"l": "night", "r": "end"}]


def test_the_first_row_of_each_month() -> None:
    app = App("months")
    stream = app.stream(
        [{"ts": f"2024-0{m}-{d:02}", "n": 10 * m + d} for m in (1, 2, 3) for d in (1, 15, 29)], time="ts"
    )
    first = stream.window(tumbling("1mo")).top_n(1, "n", descending=False)
    assert first.select("n").collect().to_pylist() == [{"n": 11}, {"n": 21}, {"n": 31}]


BERLIN = "Europe/Berlin"


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("window", [tumbling("1d", time_zone=BERLIN), hopping("1d", "1d", time_zone=BERLIN)])
def test_windows_of_a_calendar_go_on_after_a_crash(parallelism: int, window: TimeWindow) -> None:
    script = [
        [{"k": "a", "ts": "2024-03-30T23:30:00", "n": 1}, {"k": "b", "ts": "2024-03-31T21:30:00", "n": 2}],
        BARRIER,
        {"k": "a", "ts": "2024-03-31T21:59:00", "n": 4},
        CRASH,
        {"k": "a", "ts": "2024-03-31T22:00:00", "n": 8},
        {"k": "a", "ts": "2024-03-31T00:00:00", "n": 100},  # within the allowed lateness
        END,
    ]
    days = ListSink()

    def build(directory: Path) -> App:
        app = App("days", state="memory", checkpoint_dir=directory, parallelism=parallelism)
        stream = app.stream(
            ScriptedSource(script), time="ts", schema={"k": "string", "ts": "timestamp[ms]", "n": "int64"}
        )
        windows = stream.key_by("k").window(window, allowed_lateness="30m")
        windows.aggregate(total=sabot.sum("n")).to(days)
        return app

    assert run(build) == 2
    hours = sorted(
        ((r["window_end"] - r["window_start"]).total_seconds() / 3600, r["k"], r["total"]) for r in days.rows
    )
    assert hours == [(23, "a", 5), (23, "a", 105), (23, "b", 2), (24, "a", 8)]


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda: tumbling("1mo", offset="1h"), "begins at midnight, so it has no offset"),
        (lambda: tumbling("1d", time_zone="Europe/Berlni"), "there is no time zone 'Europe/Berlni'"),
        (lambda: tumbling("0mo"), "is not a size of a window"),
        (
            lambda: tumbling("1 month"),
            r"'1 month' is no duration .*; tumbling also takes months, quarters and years: mo, q, y",
        ),
        (lambda: hopping("1mo", "1d"), "'1mo' has no fixed length"),
        (lambda: cumulative("1y", "1mo"), "'1y' has no fixed length"),
    ],
)
def test_sizes_that_are_none_are_refused_with_the_way_out(write, said) -> None:
    with pytest.raises(UserError, match=said):
        write()


def test_weeks_begin_on_mondays() -> None:
    monday = 4 * 24 * HOUR
    assert tumbling("1w") == TumblingWindow(7 * 24 * HOUR, monday)
    assert tumbling("7d") == TumblingWindow(7 * 24 * HOUR)
    assert hopping("2w", "1w").offset_ms == cumulative("1w", "1d").offset_ms == monday
    assert tumbling("5min") == tumbling("5m") == TumblingWindow(300_000)


def test_a_time_beyond_all_calendars_is_refused() -> None:
    with pytest.raises(DataError, match="out of range for windows of a calendar"):
        shape_of(tumbling("1mo")).split(pa.array([2**60]), None)
