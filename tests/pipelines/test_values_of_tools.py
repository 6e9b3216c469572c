"""What tools return, on every surface: a script, an agent as a tool, a durable agent, a kernel, and a server of MCP show a
model or a client the same text for the same value.
"""

import dataclasses
import datetime
import enum
import fractions
import uuid
from collections import Counter, OrderedDict, UserString, deque
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from mcp import Client
from tool_surfaces import SURFACES, Tools

from sabot.llm import Tool, tool
from sabot.mcp import ToolServer

DAY = datetime.date(2026, 1, 2)
TIME = datetime.time(3, 4, 5)
PLUS_2 = datetime.timezone(datetime.timedelta(hours=2))


class Tea(pydantic.BaseModel):
    name: str
    price: Decimal
    day: datetime.date = DAY


class Pot(pydantic.BaseModel):
    secret: pydantic.SecretStr
    site: pydantic.HttpUrl


class Words(pydantic.RootModel[list[str]]):
    pass


@dataclasses.dataclass
class Order:
    number: int
    price: Decimal
    tea: Tea
    sent: datetime.date | None = None


class Line(msgspec.Struct):
    text: str
    order: Order


class Pair(NamedTuple):
    left: int
    right: Decimal


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    pass


class Count(int):
    pass


class Later(datetime.datetime):
    pass


TEA = Tea(name="tea", price=Decimal("2.50"))
ORDER = Order(7, Decimal("1.10"), TEA, DAY)
SHOWN_TEA = '{"name":"tea","price":"2.50","day":"2026-01-02"}'
SHOWN_ORDER = f'{{"number":7,"price":"1.10","tea":{SHOWN_TEA},"sent":"2026-01-02"}}'

VALUES: dict[str, tuple[Any, str]] = {
    "text": ("tea", "tea"),
    "text_that_is_json": ("true", "true"),
    "half_of_a_pair": (["a\ud83d"], '["a\ufffd"]'),
    "half_of_a_pair_alone": ("a\ud83d", "a\ufffd"),
    "half_of_a_pair_in_an_object": ({1: Line("a\ud83d", ORDER)}, f'{{"1":{{"text":"a\ufffd","order":{SHOWN_ORDER}}}}}'),
    "nothing": (None, "null"),
    "numbers": ([1, 1.5, True, float("nan")], "[1,1.5,true,null]"),
    "long_integers": ([2**64, -(2**65), {2**70: 1}], f'[{2**64},{-(2**65)},{{"{2**70}":1}}]'),
    "model": (TEA, SHOWN_TEA),
    "models": ([TEA, {"best": TEA}], f'[{SHOWN_TEA},{{"best":{SHOWN_TEA}}}]'),
    "root_model": (Words(["a", "b"]), '["a","b"]'),
    "masked": (
        Pot(secret="hunter2", site="https://example.com/"),  # type: ignore[arg-type]
        '{"secret":"**********","site":"https://example.com/"}',
    ),
    "masked_alone": (pydantic.SecretStr("hunter2"), "**********"),
    "dataclass": (ORDER, SHOWN_ORDER),
    "struct": (Line("x", ORDER), f'{{"text":"x","order":{SHOWN_ORDER}}}'),
    "named_tuple": (Pair(1, Decimal("2.0")), '[1,"2.0"]'),
    "enum": (Colour.RED, "red"),
    "number_enum": ([Level.HIGH], "[3]"),
    "decimal": (Decimal("2.50"), "2.50"),
    "decimals": ({"a": [Decimal("2.50")]}, '{"a":["2.50"]}'),
    "date": (DAY, "2026-01-02"),
    "times": ([DAY, TIME, datetime.timedelta(days=1, seconds=5)], '["2026-01-02","03:04:05","P1DT5S"]'),
    "naive_time": (datetime.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
    "utc": ([datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)], '["2026-01-02T03:00:00Z"]'),
    "zones": (
        [datetime.datetime(2026, 1, 2, 0, 30, tzinfo=zone) for zone in (PLUS_2, ZoneInfo("Europe/Berlin"))],
        '["2026-01-02T00:30:00+02:00","2026-01-02T00:30:00+01:00"]',
    ),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "bytes": (b"\x00\xff", "AP8="),
    "path": ([PurePosixPath("/a/b")], '["/a/b"]'),
    "fraction": (fractions.Fraction(1, 3), "1/3"),
    "set": ({3}, "[3]"),
    "deque": (deque([1, DAY]), '[1,"2026-01-02"]'),
    "range": ({"all": range(3), "names": {"a": 1}.keys()}, '{"all":[0,1,2],"names":["a"]}'),
    "mappings": ([OrderedDict(a=1), MappingProxyType({"b": 2}), Counter("c")], '[{"a":1},{"b":2},{"c":1}]'),
    "subclasses": ([Name("n"), Count(2), Later(2026, 1, 2)], '["n",2,"2026-01-02T00:00:00"]'),
    "user_text": ([UserString("a")], '["a"]'),
    "pandas_nulls": ([*pd.Series([1, None], dtype="Int64"), pd.Period("2026-01", "M")], '[1,null,"2026-01"]'),
    "keys": ({1: "a", DAY: "b", Colour.RED: "c"}, '{"1":"a","2026-01-02":"b","red":"c"}'),
    "keys_beyond_json": (
        {(1, 2): "a", None: "b", True: "c", 1.5: "d"},
        '{"[1,2]":"a","null":"b","true":"c","1.5":"d"}',
    ),
    "numpy_keys": ({np.int64(1): "a"}, '{"1":"a"}'),
    "numpy": ([np.int64(3), np.float32(0.5), np.bool_(True), np.array([[1, 2]])], "[3,0.5,true,[[1,2]]]"),
    "numpy_alone": (np.float64(1.5), "1.5"),
    "numpy_text": (np.str_("a"), "a"),
    "numpy_times": (
        [np.datetime64("2026-01-02"), np.datetime64("2026-01-02T03:00:00.000000001"), np.array(["NaT"], "M8[ns]")],
        '["2026-01-02","2026-01-02T03:00:00.000000001",[null]]',
    ),
    "arrow_scalar": (pa.scalar(4), "4"),
    "arrow_array": (pa.array([1, None]), "[1,null]"),
    "arrow_rows": (pa.record_batch({"a": [1, 2], "d": [DAY, None]}), '[{"a":1,"d":"2026-01-02"},{"a":2,"d":null}]'),
    "polars": (pl.DataFrame({"a": [1], "d": [DAY]}), '[{"a":1,"d":"2026-01-02"}]'),
    "polars_series": (pl.Series([1, 2]), "[1,2]"),
    "pandas": (pd.DataFrame({"a": [1]}), '[{"a":1}]'),
    "pandas_times": ([pd.Timestamp("2026-01-02 03:00"), pd.Timedelta("5s")], '["2026-01-02T03:00:00","PT5S"]'),
}


def tools_that_return(values: dict[str, Any]) -> Tools:
    def one(name: str, value: Any) -> Tool:
        @tool(name=name, effect="read")
        async def give() -> Any:
            return value

        return give

    return [(one(name, value), "{}") for name, value in values.items()]


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("surface", SURFACES)
async def test_a_value_is_shown_alike_wherever_its_tool_is_called(
    surface: Any, memory_url: str, tmp_path: Path
) -> None:
    tools = tools_that_return({name: value for name, (value, _) in VALUES.items()})
    shown = await surface(tools, memory_url, tmp_path / "state")
    assert dict(zip(VALUES, shown, strict=True)) == {name: text for name, (_, text) in VALUES.items()}


class Unknown:
    def __str__(self) -> str:
        return "nothing that a model could use"


@pytest.mark.parametrize("surface", SURFACES)
async def test_what_has_no_form_is_refused_alike_with_its_class(surface: Any, memory_url: str, tmp_path: Path) -> None:
    [shown] = await surface(tools_that_return({"odd": [Unknown()]}), memory_url, tmp_path / "state")
    assert f"it has a value of type {__name__}.Unknown in it" in shown
    assert "was called" in shown
    assert "could use" not in shown


async def test_a_client_of_mcp_gets_the_same_as_data() -> None:
    tools = tools_that_return({"model": TEA, "text": "true", "day": DAY, "nothing": None, "many": [TEA]})
    async with Client(ToolServer("values", [each for each, _ in tools]).server) as client:
        said = [(await client.call_tool(each.name, {})).structured_content for each, _ in tools]
    tea = {"name": "tea", "price": "2.50", "day": "2026-01-02"}
    assert said == [tea, {"result": "true"}, {"result": "2026-01-02"}, {"result": None}, {"result": [tea]}]
