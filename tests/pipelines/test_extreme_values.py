"""Values at the ends of every type, as event time and in casts: each row goes on or is a dead letter, and none ends the app."""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, Stream, UserError, col, tumbling
from sabot.api.expr import Expr
from sabot.codecs.records import header_rows
from sabot.errors import DataError
from sabot.operators.expressions.compiled import compile_expr
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


@pytest.mark.parametrize("kind", COLUMNS)
def test_no_event_time_ends_the_app(kind: str) -> None:
    values = COLUMNS[kind]
    for time in ("t", *STEPS[1:4], STEPS[-1]):
        found = went(values, time=time)
        assert found is None or found[0] + len(found[1]) == len(values), time


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
