"""What `output=` of an llm_agent takes, its sink can write: of each type, in each format; or the app does not start."""

import datetime
import decimal
import enum
import ipaddress
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, is_typeddict

import msgspec
import pyarrow as pa
import pydantic
import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from sabot import App, Avro, Csv, Message, Protobuf, Raw, UserError
from sabot.base.arrays import typed_fields
from sabot.clock import ManualClock
from sabot.codecs.protobuf import descriptor_of
from sabot.connectors.memory import MemoryBroker
from sabot.connectors.memory.sink import MemorySink
from sabot.engine.calls.schema import Schema
from sabot.llm import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import started, until

DAY = "2026-01-31"
ID = "6a1e7f7e-3f2a-4f63-9d8a-0d6a2b3c4d5e"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Line(pydantic.BaseModel):
    item: str
    many: int = pydantic.Field(gt=0, default=1)


class Bill(pydantic.BaseModel):
    name: str
    lines: list[Line]
    due: datetime.date
    tags: set[str] = set()
    page: pydantic.HttpUrl = pydantic.HttpUrl("https://a.example/")
    next: "Bill | None" = None


class Verdict(msgspec.Struct):
    label: str
    at: datetime.datetime
    price: decimal.Decimal
    picture: bytes
    id: uuid.UUID
    tags: set[str]
    colour: Colour


class Around(msgspec.Struct):
    line: Line


@dataclass
class Pair:
    left: Line | None
    right: str = "r"


class Named(TypedDict):
    line: Line


class Point(NamedTuple):
    x: int
    y: str


VERDICT: dict[str, Any] = {
    "label": "a",
    "at": f"{DAY}T00:00:00Z",
    "price": "1.50",
    "picture": "aGk=",
    "id": ID,
    "tags": ["a", "b"],
    "colour": "red",
}
BILL: dict[str, Any] = {
    "name": "ann",
    "lines": [{"item": "x", "many": 2}],
    "due": DAY,
    "tags": ["a", "b", "c"],
    "page": "https://a.example/",
    "next": None,
}

TYPES: dict[str, tuple[Any, Any]] = {
    "model": (Bill, BILL),
    "struct": (Verdict, VERDICT),
    "model in a struct": (Around, {"line": {"item": "x", "many": 1}}),
    "model in a dataclass": (Pair, {"left": {"item": "x", "many": 1}, "right": "r"}),
    "model in a TypedDict": (Named, {"line": {"item": "x", "many": 1}}),
    "list of models": (list[Line], [{"item": "x", "many": 1}]),
    "model or None": (Line | None, {"item": "x", "many": 1}),
    "root model": (pydantic.RootModel[list[int]], {"value": [1, 2]}),
    "named tuple": (Point, [1, "y"]),
    "Literal": (Literal["yes", "no"], "yes"),
    "enum": (Colour, "red"),
    "int": (int, 3),
    "float": (float, 0.5),
    "bool": (bool, True),
    "text": (str, "x"),
    "bytes": (bytes, "aGk="),
    "date": (datetime.date, DAY),
    "time": (datetime.datetime, f"{DAY}T00:00:00Z"),
    "duration": (datetime.timedelta, "PT5S"),
    "Decimal": (decimal.Decimal, "1.50"),
    "UUID": (uuid.UUID, ID),
    "set": (set[str], ["a", "b", "c"]),
    "dict": (dict[str, Line], {"k": {"item": "x", "many": 1}}),
    "columns": ({"label": "string", "n": "int64"}, {"label": "a", "n": 1}),
    "JSON schema": ({"type": "object", "properties": {"x": {"type": "integer"}}}, {"x": 1}),
}


class Desk:
    """An app with an llm_agent whose model gives `answers`, one for each question."""

    def __init__(self, url: str, directory: Path, *answers: Any) -> None:
        self.url = url
        said = [each if isinstance(each, str) else json.dumps(each) for each in answers]
        self.provider = ScriptedProvider(said)
        self.app = App("desk", url, state=str(directory), clock=ManualClock(1_000_000.0))

    def agent(self, output: Any, sink: Any = "out", **options: Any) -> None:
        self.app.llm_agent("questions", ExecutionEngine(self.provider, retries=0), output=output, sink=sink, **options)

    def ask(self, *texts: str) -> None:
        MemoryBroker.get(self.url).publish("questions", [{"text": each} for each in texts])

    def payloads(self, topic: str = "out") -> list[Any]:
        return [record.payload for record in MemoryBroker.get(self.url).records(topic)]


@pytest.fixture
def desk(memory_url: str, tmp_path: Path) -> Callable[..., Desk]:
    return lambda *answers: Desk(memory_url, tmp_path / "state", *answers)


def said(output: Any, value: Any) -> Any:
    """The answer of a model with this value: vendors want an object."""
    return value if "value" not in Schema(output).json.get("properties", {}) else {"value": value}


@pytest.mark.one_in(9, "some hundredths of a second of a core each")
@pytest.mark.parametrize("name", TYPES)
async def test_a_topic_of_json_gets_an_output_of_each_type(desk: Callable[..., Desk], name: str) -> None:
    output, value = TYPES[name]
    if name == "root model":
        value = value["value"]
    it = desk(said(output, value))
    it.agent(output)
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    assert [json.loads(each) for each in it.payloads()] == [value]


@pytest.mark.parametrize("name", TYPES)
def test_an_example_can_be_made_of_each_type_and_is_of_it(name: str) -> None:
    output, _ = TYPES[name]
    made = Schema(output).example()
    if isinstance(output, type) and not is_typeddict(output):
        assert isinstance(made, output)
    typed_fields(made)


async def test_another_agent_gets_an_output_that_is_a_model(desk: Callable[..., Desk]) -> None:
    it, got = desk(BILL), []

    @it.app.agent()
    async def take(ctx: Any) -> None:
        got.append(ctx.message)

    it.agent(Bill, sink=take)
    async with started(it.app):
        it.ask("x")
        await until(lambda: got)
    assert got == [BILL]


async def test_a_parent_gets_an_output_that_is_a_model_as_its_fields(desk: Callable[..., Desk]) -> None:
    it = desk(BILL)
    it.agent(Bill, sink=None, name="bills")

    @it.app.agent("orders", sink="out", durable=True)
    async def order(ctx: Any) -> Any:
        return {"bill": await ctx.child("bills", {"text": "x"})}

    async with started(it.app):
        MemoryBroker.get(it.url).publish("orders", [{}])
        await until(lambda: it.payloads())
    assert json.loads(it.payloads()[0]) == {"bill": BILL}


async def test_an_answer_of_null_is_no_result(desk: Callable[..., Desk]) -> None:
    it = desk({"value": None}, {"value": {"item": "x"}})
    it.agent(Line | None)
    async with started(it.app):
        it.ask("none", "one")
        await until(lambda: it.payloads())
    assert [json.loads(each) for each in it.payloads()] == [{"item": "x", "many": 1}]


# -- functions that return objects ------------------------------------------------------------------------------------


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("way", ["return", "yield", "message", "inside"])
async def test_a_function_may_give_a_model_to_its_sink(desk: Callable[..., Desk], way: str, durable: bool) -> None:
    it, bill = desk(), Bill.model_validate(BILL)

    async def give(ctx: Any) -> Any:
        return {"return": bill, "message": Message(bill, key=b"k"), "inside": {"bill": [bill]}}[way]

    async def pieces(ctx: Any) -> Any:
        yield bill

    it.app.agent("questions", name="give", sink="out", durable=durable)(pieces if way == "yield" else give)
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    found = json.loads(it.payloads()[0])
    found = found["bill"][0] if way == "inside" else found
    assert {**found, "tags": sorted(found["tags"])} == BILL


# -- formats with columns ---------------------------------------------------------------------------------------------

AVRO_VERDICT = {
    "type": "record",
    "name": "Verdict",
    "fields": [
        {"name": "label", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "picture", "type": "bytes"},
        {"name": "id", "type": "string"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["red", "blue"]}},
    ],
}
LINE = {
    "type": "record",
    "name": "Line",
    "fields": [{"name": "item", "type": "string"}, {"name": "many", "type": "int"}],
}
AVRO_BILL = {
    "type": "record",
    "name": "Bill",
    "fields": [
        {"name": "name", "type": "string"},
        {"name": "lines", "type": {"type": "array", "items": LINE}},
        {"name": "due", "type": {"type": "int", "logicalType": "date"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "page", "type": "string"},
    ],
}


class ShortBill(pydantic.BaseModel):
    name: str
    lines: list[Line]
    due: datetime.date
    tags: set[str]
    page: pydantic.HttpUrl


def read(format: Any, payload: bytes) -> Any:
    records = pa.RecordBatch.from_arrays([pa.array([payload], pa.binary())], names=["payload"])
    return format.codec("out", None).decode(records)[0].to_pylist()[0]


@pytest.mark.parametrize("own", [False, True], ids=["a topic", "a Sink with a format"])
async def test_a_topic_of_avro_gets_dates_bytes_and_decimals_as_such(desk: Callable[..., Desk], own: bool) -> None:
    it, format = desk(VERDICT), Avro(AVRO_VERDICT)
    if own:
        it.agent(Verdict, sink=MemorySink("out", it.url, format))
    else:
        it.agent(Verdict, sink_format=format)
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    assert read(format, it.payloads()[0]) == {
        **VERDICT,
        "at": datetime.datetime(2026, 1, 31, tzinfo=datetime.UTC),
        "price": decimal.Decimal("1.50"),
        "picture": b"hi",
    }


async def test_a_topic_of_avro_gets_a_model(desk: Callable[..., Desk]) -> None:
    wanted = {name: BILL[name] for name in ShortBill.model_fields}
    it, format = desk(wanted), Avro(AVRO_BILL)
    it.agent(ShortBill, sink_format=format)
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    assert read(format, it.payloads()[0]) == {**wanted, "due": datetime.date(2026, 1, 31)}


def message_of(**kinds: int) -> Any:
    file = FileDescriptorProto(name="line.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Line")
    for number, (name, kind) in enumerate(kinds.items(), 1):
        message.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    return descriptor_of(FileDescriptorSet(file=[file]).SerializeToString(), "shop.Line")


async def test_a_topic_of_protobuf_gets_a_model(desk: Callable[..., Desk]) -> None:
    kinds = FieldDescriptorProto
    it, format = desk({"item": "x", "many": 2}), Protobuf(message_of(item=kinds.TYPE_STRING, many=kinds.TYPE_INT64))
    it.agent(Line, sink_format=format)
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    assert read(format, it.payloads()[0]) == {"item": "x", "many": 2}


async def test_a_batch_agent_with_a_key_writes_in_the_format_of_its_sink(memory_url: str, tmp_path: Path) -> None:
    app, format = App("desk", memory_url, state=str(tmp_path)), Avro(LINE)

    @app.agent(
        "lines",
        batch=True,
        key="item",
        schema={"item": "string", "many": "int32"},
        sink=MemorySink("out", memory_url, format),
    )
    def copy(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        return batch

    async with started(app):
        MemoryBroker.get(memory_url).publish("lines", [{"item": "x", "many": 2}])
        await until(lambda: MemoryBroker.get(memory_url).records("out"))
    assert read(format, MemoryBroker.get(memory_url).records("out")[0].payload or b"") == {"item": "x", "many": 2}


PROTO_NUMBER = {"item": FieldDescriptorProto.TYPE_INT64, "many": FieldDescriptorProto.TYPE_INT64}


@pytest.mark.one_in(6, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("output", "format", "why"),
    [
        (int, Avro(LINE), "a int cannot be written as avro"),
        (list[Line], Avro(LINE), "a list cannot be written as avro"),
        (None, Avro(LINE), "'content' is not a column of the avro schema"),
        (Verdict, Avro(LINE), "'at', 'colour', 'id', .* is not a column"),
        ({"item": "int64", "many": "int64"}, Avro(LINE), "cannot be written as avro"),
        ({"item": "string"}, Avro(LINE), "many"),
        (Bill, Raw(text=True), "is not a column of the raw schema"),
        (Line, Protobuf(message_of(**PROTO_NUMBER)), "cannot be written as protobuf"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["a topic", "a Sink with a format"])
async def test_what_a_sink_cannot_write_is_refused_before_the_first_record(
    desk: Callable[..., Desk], output: Any, format: Any, why: str, own: bool
) -> None:
    it = desk("{}")
    it.agent(output, **({"sink": MemorySink("out", it.url, format)} if own else {"sink_format": format}))
    it.ask("x")
    with pytest.raises(UserError, match=f"agent desk.agent: output=.* to sink 'out' as .*{why}") as refused:
        await it.app.start()
    assert "reply=" in (refused.value.hint or "")
    assert it.provider.requests == [], "nothing was paid"


async def test_reply_makes_of_an_answer_what_the_sink_takes(desk: Callable[..., Desk]) -> None:
    it, format = desk({"value": 3}), Avro(LINE)
    it.agent(int, sink_format=format, reply=lambda message, result: Line(item="x", many=result.output))
    async with started(it.app):
        it.ask("x")
        await until(lambda: it.payloads())
    assert read(format, it.payloads()[0]) == {"item": "x", "many": 3}


async def test_an_answer_that_does_not_fit_into_its_column_is_a_dead_letter_and_the_agent_goes_on(
    desk: Callable[..., Desk],
) -> None:
    it, format = desk({"item": "x", "many": 2**40}, {"item": "y", "many": 1}), Avro(LINE)
    it.agent(Line, sink_format=format)
    async with started(it.app):
        it.ask("too many", "one")
        await until(lambda: it.payloads())
    assert read(format, it.payloads()[0]) == {"item": "y", "many": 1}
    (letter,) = MemoryBroker.get(it.url).records("questions.dlq")
    assert dict(letter.headers)["sabot.error"] == b"DataError"


class Broken(pydantic.BaseModel):
    word: str

    @pydantic.field_serializer("word")
    def _said(self, word: str) -> str:
        if word != "good":
            raise ValueError("it cannot be told")
        return word


def test_a_type_whose_values_cannot_be_written_is_refused_where_it_is_declared(desk: Callable[..., Desk]) -> None:
    with pytest.raises(UserError, match="agent agent: the output of type Broken cannot be written"):
        desk("{}").agent(Broken)


class Even(pydantic.BaseModel):
    """A type of which no example can be made."""

    word: str
    at: ipaddress.IPv4Address = ipaddress.IPv4Address("192.0.2.1")

    @pydantic.field_validator("word")
    @classmethod
    def _even(cls, word: str) -> str:
        if word not in ("good", "bad"):
            raise ValueError("good or bad")
        return word

    @pydantic.field_serializer("word")
    def _said(self, word: str) -> str:
        if word == "bad":
            raise ValueError("it cannot be told")
        return word


async def test_a_value_that_its_type_cannot_write_is_a_dead_letter_and_the_agent_goes_on(
    desk: Callable[..., Desk],
) -> None:
    it = desk({"word": "bad"}, {"word": "good"})
    it.agent(Even)
    async with started(it.app):
        it.ask("x", "y")
        await until(lambda: it.payloads())
    assert json.loads(it.payloads()[0]) == {"word": "good", "at": "192.0.2.1"}
    assert len(MemoryBroker.get(it.url).records("questions.dlq")) == 1


async def test_a_record_agent_is_refused_a_sink_whose_format_wants_declared_columns(memory_url: str) -> None:
    app = App("desk", memory_url)
    with pytest.raises(UserError, match="needs columns, and results of this agent have none declared"):
        app.agent("in", name="give", sink=MemorySink("out", memory_url, Csv()))(lambda ctx: None)
