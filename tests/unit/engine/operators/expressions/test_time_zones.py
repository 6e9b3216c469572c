"""Times with a zone beside `zoneinfo`, which has the rules of all years: pyarrow's list of changes ends with 2037."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sabot import App, files
from sabot.api.expr import Expr, col
from sabot.connectors.files import CsvSink
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import DataError, UserError

ZONES = [
    *[
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kolkata",
        "America/Havana",
        "Africa/Casablanca",
    ],
    *["Pacific/Apia", "America/Sao_Paulo", "Europe/Dublin", "Pacific/Chatham", "Asia/Tokyo"],
]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
zones = st.sampled_from(ZONES)
seconds = st.one_of(
    st.integers(-4_000_000_000, 7_000_000_000),
    st.integers(-62_000_000_000, 253_000_000_000),  # the years 5 to 9987
    # Sundays of March, April, September to November, in which most clocks are changed, until 2100.
    st.tuples(
        st.integers(1990, 2100), st.sampled_from([3, 4, 9, 10, 11]), st.integers(0, 4), st.integers(-90000, 90000)
    ).map(lambda made: int((sunday(made[0], made[1], made[2]) - EPOCH).total_seconds()) + made[3]),
)


def sunday(year: int, month: int, number: int) -> dt.datetime:
    first = dt.datetime(year, month, 1, tzinfo=dt.UTC)
    return first + dt.timedelta(days=6 - first.weekday() + 7 * min(number, 3))


def instants(values: list[int | None], zone: str, unit: str = "s") -> pa.Array:
    return pa.array(values, pa.int64()).view(pa.timestamp("s", zone)).cast(pa.timestamp(unit, zone))


def evaluate(expr: Expr, times: pa.Array) -> list[Any]:
    batch = pa.record_batch({"t": times})
    made = compile_expr(expr, batch.schema)(batch)
    made.validate(full=True)
    if pa.types.is_timestamp(made.type):
        made = made.cast(pa.timestamp("s", made.type.tz)).cast(pa.int64())
    return list(made.to_pylist())


def shown(second: int, zone: str) -> dt.datetime:
    return (EPOCH + dt.timedelta(seconds=second)).astimezone(ZoneInfo(zone))


def offset(second: int, zone: str) -> int:
    return int((shown(second, zone).utcoffset() or dt.timedelta()).total_seconds())


def offset_text(second: int, zone: str) -> str:
    minutes = offset(second, zone) // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"


PARTS: dict[str, Any] = {
    "year": lambda t: t.year,
    "month": lambda t: t.month,
    "day": lambda t: t.day,
    "hour": lambda t: t.hour,
    "minute": lambda t: t.minute,
    "second": lambda t: t.second,
    "week": lambda t: t.isocalendar().week,
    "weekday": lambda t: t.isoweekday(),
    "ordinal_day": lambda t: t.timetuple().tm_yday,
    "date": lambda t: t.date(),
}


@settings(max_examples=40, deadline=None)
@example([(2161808 * 1000)], "Europe/Berlin")
@given(st.lists(st.one_of(seconds, st.none()), min_size=1, max_size=20), zones)
def test_the_clock_of_a_zone_shows_what_zoneinfo_says(values: list[int | None], zone: str) -> None:
    times = instants(values, zone)
    clocks = [None if value is None else shown(value, zone) for value in values]
    for part, of in PARTS.items():
        assert evaluate(getattr(col("t").dt, part)(), times) == [t and of(t) for t in clocks], part
    assert evaluate(col("t").cast("date32"), times) == [t and t.date() for t in clocks]
    assert evaluate(col("t").cast("time32[s]"), times) == [t and t.time() for t in clocks]
    written = [t and t.replace(tzinfo=None).isoformat(sep=" ") for t in clocks]
    assert evaluate(col("t").dt.strftime("%Y-%m-%d %H:%M:%S"), times) == written
    days = [t and f"{t.day:02}.{t.month:02}. {t.hour:02}" for t in clocks]
    assert evaluate(col("t").dt.strftime("%d.%m. %H"), times) == days
    ends = [value if value is None else f"%z {offset_text(value, zone)}" for value in values]
    assert evaluate(col("t").dt.strftime("%%z %z"), times) == ends
    names = [t and f"{t.tzname()} {t.isoweekday()}" for t in clocks]
    assert evaluate(col("t").dt.strftime("%Z %u"), times) == names
    minutes = [None if v is None else EPOCH + dt.timedelta(seconds=v + offset(v, zone) // 60 * 60) for v in values]
    texts = [
        None if t is None or v is None else f"{t.replace(tzinfo=None).isoformat(sep=' ')}{offset_text(v, zone)}"
        for t, v in zip(minutes, values, strict=True)
    ]
    assert evaluate(col("t").cast("string"), times) == texts


def latest(value: int, back: int, zone: str) -> int:
    """The last time up to `value` at which the clock shows `back` seconds less than then; the end of the gap where it never does."""
    wanted = value + offset(value, zone) - back
    fitting = [each for each in (wanted - offset(value, zone), wanted - offset(value - 86400, zone)) if each <= value]
    fitting = [each for each in fitting if each + offset(each, zone) == wanted]
    if fitting:
        return max(fitting)
    low, high = value - 86400, value
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if offset(middle, zone) == offset(value, zone) else (middle, high)
    return high


@settings(max_examples=60, deadline=None)
@given(
    st.lists(seconds, min_size=1, max_size=20),
    zones,
    st.sampled_from([("12h", 43200), ("90m", 5400), ("1h", 3600), ("2h", 7200)]),
)
def test_truncation_goes_by_the_clock_also_on_days_when_it_is_changed(
    values: list[int], zone: str, every: tuple[str, int]
) -> None:
    expected = [latest(value, (value + offset(value, zone)) % every[1], zone) for value in values]
    for unit in ("s", "ms"):
        assert evaluate(col("t").dt.truncate(every[0]), instants(values, zone, unit)) == expected
    made = evaluate(col("t").dt.truncate(every[0]), instants(sorted(values), zone))
    assert made == sorted(made)  # a later time is never in an earlier window


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York"])
@pytest.mark.parametrize("every", ["15m", "1h", "90m", "2h", "12h", "1d", "1w", "1mo"])
def test_truncation_is_that_of_polars_on_each_quarter_hour_of_a_year(zone: str, every: str) -> None:
    values = list(range(1_700_000_000, 1_700_000_000 + 366 * 86400, 900))
    theirs = pl.Series(values).cast(pl.Int64) * 1000
    series = theirs.cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").dt.convert_time_zone(zone).dt.truncate(every)
    assert evaluate(col("t").dt.truncate(every), instants(values, zone, "ms")) == series.dt.epoch("s").to_list()


def test_summer_time_goes_on_after_2037() -> None:
    evening = instants([int(dt.datetime(2038, 7, 1, 22, 30, tzinfo=dt.UTC).timestamp())], "Europe/Berlin")
    assert evaluate(col("t").dt.hour(), evening) == [0]
    assert evaluate(col("t").dt.date(), evening) == [dt.date(2038, 7, 2)]


def test_times_beyond_all_years_of_python_have_a_clock_too() -> None:
    summer = int(dt.datetime(2400, 7, 1, 22, 30, tzinfo=dt.UTC).timestamp())
    cycle = 146097 * 86400
    assert evaluate(
        col("t").dt.hour(), instants([summer + 1000 * cycle, None, summer - 6 * cycle], "Europe/Berlin")
    ) == [0, None, 23]


@pytest.mark.parametrize(("zone", "hour"), [("+05:30", 4), ("-09:30", 13), ("UTC", 23), ("Etc/UTC", 23)])
def test_zones_of_a_fixed_offset_have_a_clock(zone: str, hour: int) -> None:
    assert evaluate(col("t").dt.hour(), instants([23 * 3600], zone)) == [hour]


def test_a_time_at_the_end_of_64_bits_is_refused_and_an_unknown_zone_too() -> None:
    with pytest.raises(DataError, match="too far from 1970"):
        evaluate(col("t").dt.hour(), pa.array([0, 2**63 - 1]).view(pa.timestamp("ns", "Europe/Berlin")))
    with pytest.raises(UserError, match="Mars/Olympus"):
        evaluate(col("t").dt.hour(), pa.array([0]).view(pa.timestamp("ns", "Mars/Olympus")))


@pytest.mark.slow  # half a second of a core
@settings(max_examples=300)
@given(st.lists(seconds, min_size=1, max_size=20), zones)
def test_a_clock_time_is_read_in_its_zone_as_zoneinfo_reads_it(values: list[int], zone: str) -> None:
    clock = pa.array(values, pa.int64()).view(pa.timestamp("s"))
    known = ZoneInfo(zone)

    def expected(second: int, fold: int) -> int | None:
        naive = (EPOCH + dt.timedelta(seconds=second)).replace(tzinfo=None)
        made = naive.replace(tzinfo=known, fold=fold).astimezone(dt.UTC)
        back = made.astimezone(known).replace(tzinfo=None)
        return round((made - EPOCH).total_seconds()) if back == naive else None

    earliest = evaluate(col("t").dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null"), clock)
    latest = evaluate(col("t").dt.replace_time_zone(zone, ambiguous="latest", non_existent="null"), clock)
    assert earliest == [expected(each, 0) for each in values]
    assert latest == [expected(each, 1) for each in values]
    once = evaluate(col("t").dt.replace_time_zone(zone, ambiguous="null", non_existent="null"), clock)
    assert once == [a if a == b else None for a, b in zip(earliest, latest, strict=True)]


@pytest.mark.parametrize("clock", ["2024-03-31 02:30:00", "2024-10-27 02:30:00"])
def test_a_clock_time_that_is_skipped_or_occurs_twice_is_refused_with_the_way_out(clock: str) -> None:
    times = pa.array(["2024-07-01 12:00:00", clock]).cast(pa.timestamp("s"))
    with pytest.raises(DataError, match=r"2024.* is no timestamp\[s, tz=Europe/Berlin\].*ambiguous=") as caught:
        evaluate(col("t").dt.replace_time_zone("Europe/Berlin"), times)
    assert caught.value.rows.to_pylist() == [False, True]


OLD = [
    dt.datetime(1900, 1, 1, tzinfo=dt.UTC),
    dt.datetime(1971, 12, 31, tzinfo=dt.UTC),
    dt.datetime(2024, 6, 1, tzinfo=dt.UTC),
    None,
]


@pytest.mark.parametrize("zone", ["Europe/Dublin", "Europe/Amsterdam", "Africa/Monrovia", "America/New_York"])
def test_the_text_of_a_time_names_its_instant_also_where_the_clock_had_seconds(tmp_path: Path, zone: str) -> None:
    """Dublin was 25 minutes and 21 seconds behind UTC: with "-0025" behind the clock's text the instant was another one."""
    type = pa.timestamp("us", zone)
    rows = pa.table({"n": [0, 1, 2, 3], "at": pa.array(OLD, type)})
    text = evaluate(col("t").cast("string"), pa.array(OLD, type))
    app = App("old", f"memory://old-{tmp_path.name}-{zone}")
    app.stream(rows).to(CsvSink(tmp_path / "rows.csv"))
    asyncio.run(app.run())
    read = App("read").stream(files(tmp_path / "rows.csv"), schema={"n": "int64", "at": type}).collect()
    assert read["at"].to_pylist() == rows["at"].to_pylist()
    found = [None if each is None else dt.datetime.strptime(each, "%Y-%m-%d %H:%M:%S.%f%z") for each in text]
    assert found == OLD


def test_a_cast_of_a_clock_time_to_a_zone_names_the_two_ways() -> None:
    times = pa.array([dt.datetime(2024, 7, 1)])
    with pytest.raises(UserError, match=r"could mean two things.*replace_time_zone\(.*convert_time_zone\("):
        evaluate(col("t").cast("timestamp[us, Europe/Berlin]"), times)
    assert evaluate(col("t").cast("timestamp[us, UTC]"), times) == [1719792000]
