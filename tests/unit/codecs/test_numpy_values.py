"""Scalars of numpy's in what agents and functions give: they are the Python values that they stand for."""

import datetime
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sabot
from sabot import App, UserError, files
from sabot.base.arrays import batch_of_rows, python_value
from sabot.codecs.records import encode_json, encode_key
from tools.agent_tools import publish, started, until, values

GIVEN: dict[str, Any] = {
    "i": np.int64(2**62),
    "u": np.uint64(2**64 - 1),
    "f": np.float32(1.5),
    "b": np.bool_(True),
    "s": np.str_("ä"),
    "t": np.datetime64("2024-02-29T13:45:59.123456789"),
    "d": np.datetime64("2024-02-29"),
    "none": np.datetime64("NaT"),
    "took": np.timedelta64(5, "s"),
    "l": [np.int8(1), {"x": np.float64(0.5)}],
    "a": np.array([[1, 2], [3, 4]]),
}
SAID = {
    "i": 2**62,
    "u": 2**64 - 1,
    "f": 1.5,
    "b": True,
    "s": "ä",
    "t": "2024-02-29T13:45:59.123456789",
    "d": "2024-02-29",
    "none": None,
    "took": "PT5S",
    "l": [1, {"x": 0.5}],
    "a": [[1, 2], [3, 4]],
}


def test_json_says_them() -> None:
    assert json.loads(encode_json(GIVEN)) == SAID
    assert encode_json({np.int64(7): 1, np.str_("k"): 2}) == b'{"7":1,"k":2}'
    assert (encode_key(np.str_("k")), encode_key(np.int64(7))) == (b"k", b"7")
    assert encode_json(np.array(["2024-02-29"], "M8[D]")) == b'["2024-02-29"]'


@pytest.mark.parametrize(
    "value", [np.longdouble(1), np.complex64(1j), np.timedelta64(5, "ns"), np.timedelta64(1, "Y"), object()]
)
def test_what_has_no_python_value_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"cannot be written as JSON: Encoding objects of type .* is unsupported"):
        encode_json({"v": value})


async def test_a_record_agent_gives_them(memory_url: str) -> None:
    app = App("numbers", broker=memory_url)

    @app.agent("in", sink="out")
    async def numbers(ctx: Any) -> Any:
        return GIVEN

    publish(app, "in", [{"n": 1}])
    async with started(app):
        await until(lambda: values(app, "out"))
    assert values(app, "out") == [SAID]


ROW = {
    "n": np.int32(7),
    "f": np.int64(2),
    "t": np.datetime64("2024-02-29T13:45:59"),
    "d": np.datetime64("2024-02-29"),
    "took": np.timedelta64(1500, "ms"),
    "m": np.int64(3),
    "l": [np.datetime64("2024-02-29")],
}
KINDS: dict[str, Any] = {
    "n": "int64",
    "f": "float64",
    "t": "timestamp[us]",
    "d": "date32",
    "took": pa.duration("us"),
    "m": "decimal(5, 2)",
    "l": pa.list_(pa.date32()),
}
COLUMNS = {
    "n": 7,
    "f": 2.0,
    "t": datetime.datetime(2024, 2, 29, 13, 45, 59),
    "d": datetime.date(2024, 2, 29),
    "took": datetime.timedelta(seconds=1.5),
    "m": 3,
    "l": [datetime.date(2024, 2, 29)],
}


def test_functions_of_streams_give_them(tmp_path: Any) -> None:
    (tmp_path / "a.ndjson").write_text('{"k": 1}\n{"k": 2}\n')

    def rows() -> sabot.Stream:
        return App("numbers").stream(files(tmp_path / "a.ndjson"))

    async def answer(row: Any) -> Any:
        return ROW

    ways = [
        rows().flat_map(lambda row: [ROW], schema=KINDS),
        rows().key_by("k").process(lambda row, ctx: ROW, schema=KINDS),
        rows().map_async(answer, schema=KINDS).select(*KINDS),
    ]
    for stream in ways:
        assert stream.collect().to_pylist() == [COLUMNS] * 2


def test_no_digit_is_lost() -> None:
    exact = np.datetime64("2024-02-29T13:45:59.123456789")
    assert python_value(exact) is exact
    with pytest.raises(pa.ArrowNotImplementedError):
        batch_of_rows([{"t": exact}], pa.schema([("t", pa.timestamp("us"))]))
