"""Values at the ends of every type, as event time and in casts: each row goes on or is a dead letter, and none ends the app."""

import datetime as dt
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, Batch, CsvSink, SqlSink, Stream, UserError, col, tumbling
from sabot.api.expr import Expr
from sabot.codecs.records import header_rows
from sabot.engine.operators.expressions.compiled import compile_expr
from sabot.errors import DataError
from sabot.testing import END, ListSink, ScriptedSource, run

ENDS = [-(2**63), 2**63 - 1, -(2**62), 2**61, 0, None]
UNSIGNED = [2**64 - 1, 2**63, 2**63 - 1, 0, None]
COLUMNS: dict[str, pa.Array] = {
    "uint64": pa.array(UNSIGNED, pa.uint64()),
    "int64": pa.array(ENDS, pa.int64()),
    "uint32": pa.array([2**32 - 1, 0, None], pa.uint32()),
    "date32": pa.array([-(2**31), 2**31 - 1, 0, None], pa.int32()).view(pa.date32()),
    "float64": pa.array([float("nan"), float("inf"), -1e300, 9.3e18, 0.0, None]),
    "string": pa.array(["", "x", "9999-12-31", "-9999-01-01", "99999-01-01T00:00:00Z", None]),
    **{f"timestamp[{unit}]": pa.array(ENDS).view(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")},
    **{f"{unit} in a zone": pa.array(ENDS).view(pa.timestamp(unit, "Europe/Berlin")) for unit in ("s", "ns")},
}
CASTS = ["timestamp[ms]", "timestamp[ns]", "date32", "date64", "int64", "uint64", "time32[s]", "time64[us]", "string"]
STEPS: list[Expr | None] = [
    None,
    *(col("t").cast(each) for each in CASTS),
    *(col("t").dt.truncate(each) for each in ("1h", "1d", "1mo")),
    *(col("t").dt.hour(), col("t").dt.date(), col("t").dt.epoch("ns"), col("t").dt.strftime("%Y-%m-%d %H %A")),
    col("t") + dt.timedelta(days=1),
]


def went(values: pa.Array, *, time: Any = None, step: Expr | None = None) -> tuple[int, list[str]] | None:
    """How many rows came out, and what the letters of the others say; None where the types are refused at the start."""
    batch = pa.record_batch({"n": pa.array(range(len(values))), "t": values})
    results, letters = ListSink("results"), ListSink("letters")

    def build(directory: Path) -> App:
        app = App("ends", checkpoint_dir=directory, restart="fixed(1, 1ms)")
        source = ScriptedSource([batch, END], name="in")
        stream = app.stream(
            source, dead_letter=letters, schema=batch.schema, **({} if time is None else {"time": time})
        )
        if step is not None:
            stream = stream.with_columns(x=step)
        if time is not None:
            stream = stream.window(tumbling("1s")).aggregate(n=sabot.collect_list("n"))
        stream.to(results)
        return app

    try:
        run(build)
    except UserError as error:
        if "cannot be" in error.message or "no time" in error.message:
            return None
        raise
    made = [each for data in results.batches for each in data.column("n").to_pylist()]
    said = [
        dict(headers)["sabot.message"].decode()
        for data in letters.batches
        for headers in header_rows(data.column("headers"))
    ]
    return (sum(map(len, made)) if time is not None else len(made)), said


@pytest.mark.one_in(12, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", COLUMNS)
def test_no_event_time_ends_the_app(kind: str) -> None:
    values = COLUMNS[kind]
    for time in ("t", *STEPS[1:4], STEPS[-1]):
        found = went(values, time=time)
        assert found is None or found[0] + len(found[1]) == len(values), time


@pytest.mark.one_in(12, "half a second of a core each")
@pytest.mark.parametrize("kind", COLUMNS)
def test_no_value_of_a_step_ends_the_app(kind: str) -> None:
    values = COLUMNS[kind]
    for step in STEPS:
        found = went(values, step=step)
        assert found is None or found[0] + len(found[1]) == len(values), step


def test_an_event_time_of_uint64_beyond_64_bits_is_a_dead_letter() -> None:
    assert went(COLUMNS["uint64"], time="t") == (1, ["event time 't' is null, or out of range"] * 4)


def test_a_row_whose_time_python_has_no_object_for_is_a_dead_letter_with_its_number() -> None:
    found = went(COLUMNS["timestamp[s]"], step=col("t").cast("timestamp[ms]"))
    assert found is not None
    assert found[0] == 2
    assert "-9223372036854775808 s since 1970 is no timestamp[ms]" in found[1][0]


@pytest.mark.parametrize("unit", ["ns", "us", "ms", "s", "d"])
def test_epochs_that_do_not_fit_into_64_bits_are_errors_and_neither_null_nor_another_number(unit: str) -> None:
    for values in (pa.array([0, 2**64 - 1], pa.uint64()), pa.array([0, 2**62]).view(pa.timestamp("s"))):
        if pa.types.is_timestamp(values.type) and unit in ("s", "d"):
            continue
        batch = pa.record_batch({"t": values})
        with pytest.raises(DataError, match="64 bits"):
            compile_expr(col("t").dt.epoch(unit), batch.schema)(batch)
    batch = pa.record_batch({"t": pa.array([2**63 - 1, None], pa.uint64())})
    assert compile_expr(col("t").dt.epoch("ms"), batch.schema)(batch).to_pylist() == [2**63 - 1, None]


FAR = pa.table({"k": ["a", "a", "b"], "t": pa.array([0, 10**18, 5]).view(pa.timestamp("us"))})


def test_a_function_over_rows_does_not_get_a_time_that_python_has_no_value_for() -> None:
    """It ended the app with an InternalError, whatever `on_error=` said."""
    rows = App("far").stream(FAR).on_error("null").flat_map(lambda row: row, schema=FAR.schema)
    assert rows.collect()["k"].to_pylist() == ["a", None, "b"]


def test_a_reduced_row_with_a_time_that_python_has_no_value_for_is_named() -> None:
    rows = App("far").stream(FAR).key_by("k").reduce(lambda before, row: row)
    with pytest.raises(DataError, match="reduce: column 't' is 1000000000000000000 us since 1970, for which Python"):
        rows.collect()


def test_a_time_that_python_has_no_value_for_is_printed_as_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    App("far").stream(FAR).print()
    assert "a  1000000000000000000 us since 1970\n" in capsys.readouterr().out


@pytest.mark.parametrize("time", [-(2**63), 2**62, 2**63 - 1])
@pytest.mark.parametrize("step", ["map_batches", "flat_map", "map_async"])
def test_a_function_gives_no_event_time_that_is_out_of_range(step: str, time: int) -> None:
    """At 2**63 - 1, which ends the input, `over`, `sorted` and `deduplicate(within=)` lost all rows without a word."""
    with pytest.raises(UserError, match="1 rows have no event time, or one that is out of range"):
        counted(step, time, "fail").collect()


@pytest.mark.parametrize(("step", "name"), [("map_batches", None), ("flat_map", "a")])
def test_a_row_whose_event_time_is_out_of_range_keeps_the_time_from_before_its_function(
    step: str, name: str | None
) -> None:
    rows = counted(step, 2**63 - 1, "null").collect()
    assert rows.select(["k", "n"]).to_pylist() == [{"k": name, "n": 1}, {"k": "b", "n": 1}]


def counted(step: str, time: int, on_error: Any) -> Stream:
    """Counts the rows "a" and "b" by key after a function that gives "a" the event time `time`."""
    schema = pa.schema([("k", pa.string()), ("ts", pa.int64())])

    def moved(batch: pa.RecordBatch) -> pa.RecordBatch:
        times = [time if name == "a" else 7 for name in batch["k"].to_pylist()]
        return pa.record_batch({"k": batch["k"], "ts": pa.array(times, pa.int64())})

    async def moved_later(batch: pa.RecordBatch) -> pa.RecordBatch:
        return moved(batch)

    rows = App("far").stream(pa.table({"k": ["a", "b"], "ts": [1, 2]}, schema=schema), time="ts").on_error(on_error)
    if step == "map_batches":
        rows = rows.map_batches(moved)
    elif step == "map_async":
        rows = rows.map_async(moved_later, batch=True, schema=schema, timeout="1s")
    else:
        rows = rows.flat_map(lambda row: {**row, "ts": time if row["k"] == "a" else 7}, schema=schema)
    return rows.key_by("k").over(n=sabot.count())


# -- far years ------------------------------------------------------------------------------------------------------------


def civil(days: int) -> tuple[int, int, int]:
    """Year, month and day by arithmetic of days, from any number of them since 1970."""
    era, day = divmod(days + 719_468, 146_097)
    of_era = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    of_year = day - (365 * of_era + of_era // 4 - of_era // 100)
    month = (5 * of_year + 2) // 153
    return (
        of_era + era * 400 + (month > 9),
        month + 3 if month < 10 else month - 9,
        of_year - (153 * month + 2) // 5 + 1,
    )


def iso(value: int, per_second: int) -> str:
    seconds, part = divmod(value, per_second)
    days, second = divmod(seconds, 86_400)
    year, month, day = civil(days)
    clock = f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    fraction = f".{part:0{len(str(per_second)) - 1}}" if per_second > 1 else ""
    return f"{'-' * (year < 0)}{abs(year):04}-{month:02}-{day:02} {clock}{fraction}"


FAR_SECONDS = [
    971_890_963_199,
    971_890_963_200,
    -1_096_193_779_200,
    -1_096_225_315_201,
    253_402_300_800,
    -62_167_219_201,
    -1,
]


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1000), ("us", 10**6)])
def test_a_time_of_any_year_has_its_text_and_its_parts(unit: str, per_second: int, tmp_path: Path) -> None:
    """pyarrow has years of 16 bits: it wrote `<value out of range: …>`, and its year wrapped."""
    random = Random(unit)
    near = [each * per_second + part for each in FAR_SECONDS for part in (0, per_second - 1)]
    values = [value for value in near if abs(value) < 2**63]
    values += [-(2**63), 2**63 - 1, *(random.randrange(-(2**63), 2**63) for _ in range(500))]
    for zone, end in ((None, ""), ("UTC", "Z")):
        times = pa.array(values).view(pa.timestamp(unit, zone))
        texts = [iso(value, per_second) + end for value in values]
        assert computed(times, col("t").cast("string")) == texts
        sink = CsvSink(str(tmp_path / f"times{end}.csv"))
        sink.open()
        sink.write(Batch(pa.record_batch({"n": pa.array(range(len(values))), "t": times})))
        sink.finish()
        sink.close()
        lines = (tmp_path / f"times{end}.csv").read_text().splitlines()[1:]
        assert [line.split(",")[1].strip('"') for line in lines] == texts
    dates = [civil(value // per_second // 86_400) for value in values]
    assert computed(times, col("t").dt.year()) == [year for year, _, _ in dates]
    assert computed(times, col("t").dt.month()) == [month for _, month, _ in dates]
    assert computed(times, col("t").dt.day()) == [day for _, _, day in dates]
    weekdays = [(value // per_second // 86_400 + 3) % 7 + 1 for value in values]
    assert computed(times, col("t").dt.weekday()) == weekdays


def computed(times: pa.Array, expr: Expr) -> list[Any]:
    compiled = compile_expr(expr, pa.schema([("t", times.type)]))
    made: list[Any] = compiled(pa.record_batch({"t": times})).to_pylist()
    return made


def test_a_format_of_a_time_does_not_write_another_year() -> None:
    """2404-04-06 2576980377607:12:55 was the text of the greatest int64 of milliseconds."""
    times = pa.array([2**63 - 1, 0]).view(pa.timestamp("ms"))
    stream, x = App("far").stream(pa.table({"t": times})), col("t").dt.strftime("%Y-%m-%d %H:%M")
    with pytest.raises(DataError, match="9223372036854775807 ms since 1970: strftime knows years up to 32767"):
        stream.with_columns(x=x).collect()
    assert stream.on_error("null").with_columns(x=x).collect()["x"].to_pylist() == [None, "1970-01-01 00:00"]


def test_a_day_of_any_year_has_its_text_and_its_year() -> None:
    days = [-(2**31), 2**31 - 1, 11_248_737, 11_248_738, -12_687_429, -12_687_430, 0, -719_163]
    dates = pa.array([*days, None], pa.int32()).view(pa.date32())
    texts = [f"{'-' * (y < 0)}{abs(y):04}-{m:02}-{d:02}" for y, m, d in map(civil, days)]
    assert computed(dates, col("t").cast("string")) == [*texts, None]
    assert computed(dates, col("t").dt.year()) == [*(civil(day)[0] for day in days), None]


def test_a_far_time_is_its_text_in_sqlite(tmp_path: Path) -> None:
    ends = [2**63 - 1, -(2**63), -1]
    for name, zone, end in (("plain", None, ""), ("zoned", "Europe/Berlin", "Z")):
        sink = SqlSink(f"sqlite://{tmp_path}/{name}.db", "t")
        sink.open()
        sink.write(Batch(pa.record_batch({"t": pa.array(ends).view(pa.timestamp("ms", zone))})))
        sink.close()
        with sqlite3.connect(tmp_path / f"{name}.db") as database:
            assert [text for (text,) in database.execute("SELECT t FROM t")] == [iso(each, 1000) + end for each in ends]
