"""Python values that a column cannot hold whole: each way in refuses them, and says column, value and type."""

import datetime
import random
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sabot
from sabot import App, Avro, DataError, UserError, count_window, files
from sabot.base.arrays import batch_of_rows, column_of, exact_cast
from sabot.codecs.arrow import ArrowCodec, ArrowEncoder
from sabot.codecs.formats import Csv
from sabot.codecs.records import build_records
from sabot.engine.operators.agents.payloads import RowPayloads

ZONE = datetime.timezone(datetime.timedelta(hours=2))
AT_FIVE = datetime.datetime(2024, 1, 1, 5)
FINE = datetime.datetime(2024, 1, 1, 5, 0, 0, 5)

CUT: list[tuple[Any, pa.DataType, str]] = [
    (2.5, pa.int64(), "2.5 would lose its fraction as int64"),
    (-0.5, pa.uint8(), "-0.5 would lose its fraction as uint8"),
    (Decimal("2.5"), pa.int64(), r"Decimal\('2.5'\) would lose its fraction as int64"),
    (np.float32(2.5), pa.int8(), "2.5 would lose its fraction as int8"),
    (1e40, pa.float32(), r"1e\+40 would be infinite as float"),
    (1e6, pa.float16(), "1000000.0 would be infinite as halffloat"),
    (datetime.time(5, tzinfo=ZONE), pa.time64("us"), r"would lose its zone as time64\[us\]"),
    (datetime.time(5, 0, 0, 5), pa.time32("ms"), r"would lose its microseconds as time32\[ms\]"),
    (AT_FIVE, pa.date32(), r"would lose its hour as date32\[day\]"),
    (FINE, pa.timestamp("ms"), r"would lose its microseconds as timestamp\[ms\]"),
    (datetime.timedelta(microseconds=5), pa.duration("ms"), r"would lose its microseconds as duration\[ms\]"),
    (2.5, pa.timestamp("us"), r"2.5 would lose its fraction as timestamp\[us\]"),
    (2.5, pa.date32(), r"2.5 would lose its fraction as date32\[day\]"),
    ({"a": 1, "b": 2}, pa.struct({"a": pa.int64()}), "'b' is not a field of struct<a: int64>"),
    (2.5, pa.dictionary(pa.int8(), pa.int64()), "2.5 would lose its fraction as int64"),
]
WHOLE: list[tuple[Any, pa.DataType]] = [
    (3.0, pa.int64()),
    (Decimal(3), pa.int64()),
    (np.int8(3), pa.int64()),
    (float("inf"), pa.float32()),
    (0.1, pa.float64()),
    (datetime.time(5, 0, 0, 5000), pa.time32("ms")),
    (datetime.datetime(2024, 1, 1), pa.date32()),
    (AT_FIVE, pa.timestamp("s")),
    (datetime.timedelta(seconds=5), pa.duration("s")),
    ({"a": 1}, pa.struct({"a": pa.int64(), "b": pa.int64()})),
]


def nested(value: Any, type: pa.DataType) -> Iterator[tuple[Any, pa.DataType]]:
    yield value, type
    yield [value], pa.list_(type)
    yield {"x": value}, pa.struct({"x": type})
    yield {"k": value}, pa.map_(pa.string(), type)
    yield [{"x": [value]}], pa.list_(pa.struct({"x": pa.list_(type)}))


@pytest.mark.parametrize(("value", "type", "said"), CUT)
def test_a_value_that_would_be_cut_is_refused_at_every_depth(value: Any, type: pa.DataType, said: str) -> None:
    for given, kind in nested(value, type):
        with pytest.raises(ValueError, match=said):
            column_of([None, given], kind)
        with pytest.raises(ValueError, match=rf"column 'v': .*{said}"):
            batch_of_rows([{}, {"v": given}], pa.schema({"v": kind}))


@pytest.mark.parametrize(("value", "type"), WHOLE)
def test_a_value_that_stays_whole_is_taken_at_every_depth(value: Any, type: pa.DataType) -> None:
    for given, kind in nested(value, type):
        assert batch_of_rows([{}, {"v": given}], pa.schema({"v": kind})).column("v").null_count == 1


def one_row() -> sabot.Stream:
    return App("whole").stream([{"k": 1, "n": 1}])


async def answers(row: Any) -> Any:
    return {"v": 2.5}


class Half(sabot.UserAggregate):
    type = pa.int64()

    def init(self) -> int:
        return 0

    def accumulate(self, state: int, values: Any) -> int:
        return state + len(values)

    def merge(self, state: int, other: int) -> int:
        return state + other

    def finish(self, state: int) -> float:
        return state + 0.5


@sabot.aggregate("int64")
def half(values: Any) -> Any:
    return len(values) / 2


LINE = {"type": "record", "name": "Line", "fields": [{"name": "many", "type": "int"}]}


WAYS: dict[str, Callable[[], sabot.Stream]] = {
    "stream": lambda: App("whole").stream([{"v": 2.5}], schema={"v": "int64"}),
    "flat_map": lambda: one_row().flat_map(lambda row: [{"v": 2.5}], schema={"v": "int64"}),
    "process": lambda: one_row().key_by("k").process(lambda row, ctx: {"v": 2.5}, schema={"v": "int64"}),
    "map_async": lambda: one_row().map_async(answers, schema={"v": "int64"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_into_an_integer_column_refuses_a_fraction(way: str) -> None:
    with pytest.raises(UserError, match=r"'v'.*2\.5 would lose its fraction as int64"):
        WAYS[way]().collect()


def test_the_mean_by_reduce_of_integers_is_refused_with_the_key() -> None:
    rows = App("whole").stream([{"k": 7, "n": 1}, {"k": 7, "n": 2}])
    mean = rows.key_by("k").reduce(lambda a, b: {"n": (a["n"] + b["n"]) / 2})
    with pytest.raises(UserError, match=r"'n' of the key {'k': 7} is int64, and cannot be 1\.5"):
        mean.collect()


@pytest.mark.parametrize(("made", "value"), [(sabot.aggregate_with(Half(), "n"), "1.5"), (half("n"), "0.5")])
def test_an_aggregate_refuses_a_result_that_its_type_would_cut(made: Any, value: str) -> None:
    windows = one_row().key_by("k").window(count_window(1))
    with pytest.raises(UserError, match=rf"aggregate v.* returned .*{re.escape(value)}.* is not a int64"):
        windows.aggregate(v=made).collect()


def test_rows_of_an_own_source_that_would_be_cut_are_dead_letters() -> None:
    app = App("whole")

    @app.source(schema={"v": "int64"}, bounded=True)
    def own(position: int) -> Any:
        yield [{"v": 1}, {"v": 2.5}, {"v": 3}][position:]

    source: Any = own
    source.open(None)
    batch = source.read_batch(10, 60.0)
    assert batch.data.column("v").to_pylist() == [1, 3]
    assert batch.bad.column("reason").to_pylist() == ["column 'v': 2.5 would lose its fraction as int64"]
    source.close()


def test_an_answer_of_an_agent_that_its_avro_sink_would_cut_is_refused() -> None:
    payload_of = RowPayloads({"out": Avro(LINE)})
    payload_of.open()
    assert payload_of({"many": 2.0}, None, "out")
    with pytest.raises(DataError, match=r"written as avro: column 'many': 2\.5 would lose its fraction as int32"):
        payload_of({"many": 2.5}, None, "out")


def test_a_date_beside_a_time_of_day_is_refused_where_the_type_is_found() -> None:
    days = [{"at": datetime.date(2024, 1, 1)}, {"at": AT_FIVE}]
    with pytest.raises(UserError, match=r"'at' have no type in common: .* would lose its hour as date32"):
        App("whole").stream(days)


def test_an_answer_of_an_agent_whose_sink_has_no_columns_is_refused_where_the_type_is_found() -> None:
    """CSV takes any columns; a clock in a zone was written without its zone."""
    payload_of = RowPayloads({"out": Csv()})
    payload_of.open()
    assert payload_of({"n": 2.5, "at": datetime.time(5)}, None, "out") == b"2.5,05:00:00.000000"
    with pytest.raises(DataError, match=r"cannot be written as csv: .*would lose its zone as time64\[us\]"):
        payload_of({"at": datetime.time(5, tzinfo=ZONE)}, None, "out")


def of_days(ms: int) -> pa.Array:
    return pa.Array.from_buffers(pa.date64(), 1, [None, pa.py_buffer(ms.to_bytes(8, "little"))])


NOON = datetime.datetime(2024, 1, 1, 12)
OTHER_TYPES: list[tuple[pa.Array, pa.DataType, Any]] = [  # a value, a type, and the value in it; None if it is lost
    (pa.array([NOON], pa.timestamp("us")), pa.date32(), None),
    (pa.array([NOON], pa.timestamp("s", "UTC")), pa.date64(), None),
    (pa.array([datetime.datetime(2024, 1, 1)], pa.timestamp("ns")), pa.date32(), datetime.date(2024, 1, 1)),
    (of_days(3_600_000), pa.date32(), None),
    (of_days(86_400_000), pa.date32(), datetime.date(1970, 1, 2)),
    (pa.array([5], pa.int64()), pa.date64(), None),
    (pa.array([NOON], pa.timestamp("us")), pa.time64("us"), None),
    (pa.array([86_400_000_000], pa.int64()), pa.time64("us"), None),
    (pa.array([43_200], pa.int32()), pa.time32("s"), datetime.time(12)),
    (pa.array([1e40], pa.float64()), pa.float32(), None),
    (pa.array([float("inf")], pa.float64()), pa.float32(), float("inf")),
    (pa.array([0.125], pa.float64()), pa.decimal128(9, 2), None),
    (pa.array([0.1], pa.float64()), pa.decimal128(9, 2), Decimal("0.10")),
    (pa.array([Decimal("3.30")], pa.decimal128(9, 2)), pa.float64(), 3.3),
    (pa.array([5], pa.int64()), pa.bool_(), None),
    (pa.array([1], pa.int64()), pa.bool_(), True),
    (pa.array([0.5], pa.float64()), pa.bool_(), None),
]


def through_a_file(table: pa.Table, type: pa.DataType, path: Path) -> Any:
    with pa.ipc.new_file(str(path / "in.arrow"), table.schema) as writer:
        writer.write_table(table)
    return App("files").stream(files(str(path / "in.arrow")), schema=pa.schema([("x", type)])).collect()


def through_a_table(table: pa.Table, type: pa.DataType, path: Path) -> Any:
    return App("tables").stream(table, schema=pa.schema([("x", type)])).collect()


def through_a_record(table: pa.Table, type: pa.DataType, path: Path) -> Any:
    (payload,) = ArrowEncoder(10).encode(table.to_batches()[0]).to_pylist()
    found, bad = ArrowCodec(pa.schema([("x", type)])).decode(build_records([payload], None, [0], [0], [0]))
    if bad:
        raise UserError(bad[0].reason)
    return found


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("way", [through_a_file, through_a_table, through_a_record], ids=lambda way: way.__name__)
@pytest.mark.parametrize("nested", [False, True])
def test_a_column_of_another_type_is_refused_where_a_value_would_be_cut(way: Any, nested: bool, tmp_path: Path) -> None:
    """pyarrow's cast gives each of these without a word: the hour is gone, 1e40 is infinite."""
    for values, type, expected in OTHER_TYPES:
        if nested:
            values = pa.ListArray.from_arrays([0, 0, 1], pa.StructArray.from_arrays([values], ["y"]))
            type = pa.list_(pa.struct([("y", type)]))
            expected = None if expected is None else [{"y": expected}]
        table = pa.table({"x": values})
        if expected is not None:
            assert way(table, type, tmp_path).column("x").to_pylist()[-1] == expected
            continue
        with pytest.raises((UserError, DataError), match="'x'"):
            way(table, type, tmp_path)


@pytest.mark.parametrize("fault", ["casts", "lists"])
def test_a_conversion_that_cuts_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: pyarrow's casts are not looked at, and neither is what it makes of Python values."""
    if fault == "casts":
        monkeypatch.setattr("sabot.base.arrays.check_exact", lambda given, made: None)
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            test_a_column_of_another_type_is_refused_where_a_value_would_be_cut(through_a_table, False, tmp_path)
        return
    monkeypatch.setattr("sabot.base.arrays.loss_of", lambda values, type: "")
    for way in WAYS:
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            test_each_way_into_an_integer_column_refuses_a_fraction(way)


def test_decimals_are_the_nearest_floats_at_each_depth_of_a_cast() -> None:
    """pyarrow's cast of structs, lists and maps gives 3.3000000000000003 for 3.30."""
    digits = random.Random(1)
    values = [None if row % 7 == 0 else Decimal(digits.randrange(10**20)).scaleb(-10) for row in range(60)]
    floats = [None if value is None else float(value) for value in values]

    def forms(leaves: list[Any], leaf: pa.DataType) -> list[tuple[list[Any], pa.DataType]]:
        struct = pa.struct([("a", leaf), ("b", pa.int64())])
        none = [row % 5 == 0 for row in range(60)]
        return [
            ([None if none[row] else {"a": leaves[row], "b": row} for row in range(60)], struct),
            ([None if none[row] else leaves[row : row + row % 4] for row in range(60)], pa.list_(leaf)),
            ([None if none[row] else leaves[row : row + row % 4] for row in range(60)], pa.large_list(leaf)),
            ([None if none[row] else leaves[row : row + 2] for row in range(58)], pa.list_(leaf, 2)),
            ([None if none[row] else [(str(row), leaves[row])] for row in range(60)], pa.map_(pa.string(), leaf)),
            ([None if none[row] else [{"a": leaves[row], "b": 1}, None] for row in range(60)], pa.list_(struct)),
        ]

    ways = zip(forms(values, pa.decimal128(30, 10)), forms(floats, pa.float64()), strict=True)
    for (given, before), (wanted, after) in ways:
        column = pa.array(given, before)
        for first, count in ((0, len(given)), (3, 40), (5, 0)):  # also of a slice
            made = exact_cast(column.slice(first, count), after)
            made.validate(full=True)
            assert made.type == after
            assert made.to_pylist() == wanted[first : first + count]


def test_an_item_of_a_map_that_a_cast_would_cut_is_refused() -> None:
    maps = pa.array([[("a", 1e40)], [("b", 1.0)]], pa.map_(pa.string(), pa.float64()))
    kind = pa.map_(pa.string(), pa.float32())
    with pytest.raises(pa.ArrowInvalid, match=r"1e\+40 would be inf"):
        exact_cast(maps, kind)
    assert exact_cast(maps.slice(1), kind).to_pylist() == [[("b", 1.0)]]
