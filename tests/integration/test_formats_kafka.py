"""Formats on a real Kafka broker, beside Confluent's own serializers: what they write Sabot reads, and the other way round."""

import io
import json
import uuid
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from sabot import App, ArrowIpc, Avro, Protobuf, Registry, col
from sabot.codecs.protobuf import descriptor_of
from tools.agent_tools import bounded, checkpoint, started, until
from tools.fault_tools import Place, header
from tools.registry import SchemaServer, schema_server

pytestmark = [pytest.mark.integration, pytest.mark.kafka]

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "name", "type": ["null", "string"], "default": None},
        {"name": "price", "type": "double"},
    ],
}
NEWER = {**ORDER, "fields": [*ORDER["fields"], {"name": "country", "type": "string", "default": "AT"}]}
NEWEST = {**NEWER, "fields": [{"name": "note", "type": "string"}, *NEWER["fields"]]}


@pytest.fixture
def place(kafka_url: str) -> Place:
    return Place(kafka_url)


@pytest.fixture
def server() -> Iterator[SchemaServer]:
    with schema_server() as server:
        yield server


def rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"id": n, "name": None if n % 7 == 0 else f"n{n}", "price": n / 4} for n in range(first, first + count)]


def written(server: SchemaServer, topic: str, schema: dict[str, Any], some: list[dict[str, Any]]) -> list[bytes]:
    """As Confluent's serializer writes them, which registers the schema."""
    serializer = AvroSerializer(SchemaRegistryClient({"url": server.url}), json.dumps(schema))
    return [serializer(row, SerializationContext(topic, MessageField.VALUE)) for row in some]


def read(server: SchemaServer, place: Place, topic: str) -> list[dict[str, Any]]:
    """As Confluent's deserializer reads the topic."""
    deserializer = AvroDeserializer(SchemaRegistryClient({"url": server.url}))
    context = SerializationContext(topic, MessageField.VALUE)
    return [deserializer(record.payload, context) for record in place.read(topic)]


@pytest.mark.slow  # half a second of a core
async def test_avro_goes_through_exactly_once_over_a_restart_and_an_outage_of_the_registry(
    place: Place, server: SchemaServer, tmp_path: Path
) -> None:
    topic, out, name = place.topic(2), place.topic(1), f"app-{uuid.uuid4().hex[:8]}"

    def program() -> App:
        registry = Registry(server.url, timeout="2s")
        app = App(name, place.url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval="300ms")
        orders = app.stream(topic, format=Avro(NEWER, registry=registry), fields=["partition"])
        orders.with_columns(double=col("price") * 2).to(out, key="name", format=Avro(registry=registry))
        return app

    def is_out(count: int) -> bool:
        return len(place.read(out)) >= count

    place.fill(topic, written(server, topic, ORDER, rows(0, 300)), partition=0)
    place.fill(topic, [b"\0\0\0\0\x63no such schema"], partition=1)
    place.fill(topic, written(server, topic, NEWER, [{**row, "country": "DE"} for row in rows(300, 300)]), partition=1)
    async with started(program()):
        await until(lambda: is_out(600), "the rows of both writers")
    later = written(
        server,
        topic,
        NEWEST,
        [{**row, "country": "FR", "note": "n"} for row in rows(600, 50)],
    )
    known = written(server, topic, ORDER, rows(650, 50))
    place.fill(topic, known, partition=0)
    place.fill(topic, later, partition=1)
    app = program()
    async with started(app):
        server.down = True
        await checkpoint(app)
        server.down = False
        await until(lambda: is_out(700), "the rows behind the checkpoint")
    found = read(server, place, out)
    country = {
        **dict.fromkeys(range(300), "AT"),
        **dict.fromkeys(range(300, 600), "DE"),
        **dict.fromkeys(range(600, 650), "FR"),
        **dict.fromkeys(range(650, 700), "AT"),
    }
    wanted = {
        row["id"]: {
            **row,
            "country": country[row["id"]],
            "double": row["price"] * 2,
            "partition": int(300 <= row["id"] < 650),
        }
        for row in rows(0, 700)
    }
    assert {row["id"]: row for row in found} == wanted
    assert len(found) == len(wanted), "each row once"
    letters = place.read(f"{topic}.dlq")
    assert len(letters) == 1
    assert (letters[0].payload, header(letters[0], "partition"), header(letters[0], "offset")) == (
        b"\0\0\0\0\x63no such schema",
        "1",
        "0",
    )


async def test_many_rows_of_an_arrow_record_come_through_exactly_once(place: Place, tmp_path: Path) -> None:
    topic, out, name = place.topic(1), place.topic(1), f"app-{uuid.uuid4().hex[:8]}"
    some = rows(0, 5000)
    place.fill(topic, [json.dumps(row).encode() for row in some])
    app = App(name, place.url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval="200ms")
    app.stream(topic).to(out, format=ArrowIpc(rows=700, compression="zstd"))

    def out_rows() -> list[dict[str, Any]]:
        tables = [pa.ipc.open_stream(record.payload).read_all() for record in place.read(out)]
        return [row for table in tables for row in table.to_pylist()]

    async with started(app):
        await until(lambda: len(out_rows()) >= 5000, "the rows")
    assert out_rows() == some


INNER = {
    "type": "record",
    "name": "Inner",
    "fields": [
        {"name": "x", "type": ["null", "int"], "default": None},
        {"name": "texts", "type": {"type": "array", "items": "string"}},
    ],
}
DECIMAL = {"logicalType": "decimal", "precision": 10, "scale": 3}
UTC_EPOCH, EPOCH = datetime(1970, 1, 1, tzinfo=UTC), datetime(1970, 1, 1)
EVERY: list[tuple[str, Any, Any]] = [  # a field, its type, and a value
    ("least", "long", -(2**63)),
    ("dec", {"type": "bytes", **DECIMAL}, Decimal("-1234567.001")),
    ("fixed_dec", {"type": "fixed", "name": "D", "size": 8, **DECIMAL}, Decimal("0.001")),
    ("day", {"type": "int", "logicalType": "date"}, date(1969, 12, 31)),
    ("ms", {"type": "int", "logicalType": "time-millis"}, time(23, 59, 59, 999_000)),
    ("us", {"type": "long", "logicalType": "time-micros"}, time(0, 0, 0, 1)),
    ("at_ms", {"type": "long", "logicalType": "timestamp-millis"}, UTC_EPOCH - timedelta(milliseconds=1)),
    ("at_us", {"type": "long", "logicalType": "timestamp-micros"}, UTC_EPOCH + timedelta(days=20_000, microseconds=1)),
    ("local_ms", {"type": "long", "logicalType": "local-timestamp-millis"}, EPOCH + timedelta(days=20_000)),
    ("local_us", {"type": "long", "logicalType": "local-timestamp-micros"}, EPOCH - timedelta(microseconds=1)),
    ("uuid", {"type": "string", "logicalType": "uuid"}, uuid.UUID(int=1)),
    ("kind", {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}, "B"),
    ("three", {"type": "fixed", "name": "Three", "size": 3}, b"\0\xffc"),
    ("inner", INNER, {"x": None, "texts": ["", "é"]}),
    ("by_name", {"type": "map", "values": ["null", "double"]}, {"k": None, "l": 0.5}),
    ("many", {"type": "array", "items": "Inner"}, [{"x": 1, "texts": []}]),
    ("second", ["string", "null"], None),
    ("maybe", ["null", "Inner"], None),
    ("flag", "boolean", True),
    ("float", "float", 0.5),
    ("bytes", "bytes", b"\0\xff"),
]


@pytest.mark.slow  # half a second of a core
async def test_avro_of_every_type_is_read_from_confluents_serializer_and_written_for_its_deserializer(
    place: Place, server: SchemaServer
) -> None:
    """With a record that was cut, one of another magic byte and one with bytes behind it among them."""
    fields = [{"name": name, "type": kind} for name, kind, _ in EVERY]
    schema, row = {"type": "record", "name": "bank.Every", "fields": fields}, {name: value for name, _, value in EVERY}
    topic, out = place.topic(), place.topic()
    (payload,) = written(server, topic, schema, [row])
    place.fill(topic, [payload, payload[:-1], b"\1" + payload[1:], payload + b"\0", payload])
    registry = Registry(server.url)
    app = App(f"app-{uuid.uuid4().hex[:8]}", place.url)
    rows = app.stream(topic, format=Avro(registry=registry), until="now")
    rows.to(out, format=Avro(schema, registry=registry))
    await bounded(app.run())
    assert read(server, place, out) == [row, row]
    reasons = [header(letter, "message") for letter in place.read(f"{topic}.dlq")]
    told = [
        "field bytes: the payload ends too early",
        "does not begin with the id",
        "there are bytes after the end of the record",
    ]
    assert [each in reason for each, reason in zip(told, reasons, strict=True)] == [True] * 3


def purchase() -> Any:
    """The type of a message within another, the second of its file, with a message of an imported file and a oneof."""
    kinds = FieldDescriptorProto
    times, money = FileDescriptorProto(), FileDescriptorProto(name="lab/money.proto", package="lab", syntax="proto3")
    timestamp_pb2.DESCRIPTOR.CopyToProto(times)
    money.message_type.add(name="Money").field.add(name="cents", number=1, type=kinds.TYPE_INT64, label=1)
    file = FileDescriptorProto(name="lab/shop.proto", package="lab", syntax="proto3")
    file.dependency.extend([money.name, times.name])
    file.message_type.add(name="First")
    made = file.message_type.add(name="Shop").nested_type.add(name="Purchase")
    made.oneof_decl.add(name="by")
    made.field.add(name="id", number=1, type=kinds.TYPE_INT64, label=1)
    made.field.add(name="price", number=2, type=kinds.TYPE_MESSAGE, type_name=".lab.Money", label=1)
    made.field.add(name="at", number=3, type=kinds.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp", label=1)
    made.field.add(name="card", number=4, type=kinds.TYPE_STRING, label=1, oneof_index=0)
    made.field.add(name="till", number=5, type=kinds.TYPE_INT32, label=1, oneof_index=0)
    made.field.add(name="sizes", number=6, type=kinds.TYPE_SINT32, label=kinds.LABEL_REPEATED)
    files = FileDescriptorSet(file=[times, money, file])
    return descriptor_of(files.SerializeToString(), "lab.Shop.Purchase")


async def test_protobuf_is_read_from_confluents_serializer_and_written_for_its_deserializer(
    place: Place, server: SchemaServer
) -> None:
    topic, out, kind = place.topic(), place.topic(), purchase()
    made = message_factory.GetMessageClass(kind)
    given = [made(id=1, card="visa", sizes=[3, -1]), made(id=2, till=0), made()]
    given[0].price.cents = 250
    given[0].at.FromMilliseconds(1500)
    serializer = ProtobufSerializer(made, SchemaRegistryClient({"url": server.url}))
    payloads = [serializer(each, SerializationContext(topic, MessageField.VALUE)) for each in given]
    place.fill(topic, [*payloads[:2], payloads[0][:-1], payloads[2]])
    app = App(f"app-{uuid.uuid4().hex[:8]}", place.url)
    format = Protobuf(kind, registry=Registry(server.url))
    app.stream(topic, format=format, until="now").to(out, format=format)
    await bounded(app.run())
    deserializer = ProtobufDeserializer(made)
    context = SerializationContext(out, MessageField.VALUE)
    assert [deserializer(record.payload, context) for record in place.read(out)] == given
    (letter,) = place.read(f"{topic}.dlq")
    assert (letter.payload, header(letter, "offset")) == (payloads[0][:-1], "2")


CONNECT = "org.apache.kafka.connect.data."
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAID: list[tuple[str, str, dict[str, Any], Any, Any, Any]] = [
    # a column, its type in Connect, the rest of its schema, a value as Avro and as JSON write it, and what it is
    ("id", "bytes", {"name": CONNECT + "Decimal", "parameters": {"scale": "2"}}, b"\x04\xd2", "BNI=", Decimal("12.34")),
    ("at", "int64", {"name": CONNECT + "Timestamp"}, -1, -1, EPOCH - timedelta(milliseconds=1)),
    ("day", "int32", {"name": CONNECT + "Date"}, -1, -1, date(1969, 12, 31)),
    ("clock", "int32", {"name": CONNECT + "Time"}, 86_399_999, 86_399_999, time(23, 59, 59, 999_000)),
    (
        "micros",
        "int64",
        {"name": "io.debezium.time.MicroTimestamp"},
        -1,
        -1,
        datetime(1969, 12, 31, 23, 59, 59, 999_999),
    ),
    ("nanos", "int64", {"name": "io.debezium.time.NanoTime"}, 1_000, 1_000, time(0, 0, 0, 1)),
    ("zoned", "string", {"name": "io.debezium.time.ZonedTimestamp"}, *["2024-02-29T12:00:00Z"] * 3),
]
PAID_KINDS = {"id": "decimal(38, 2)", "at": pa.timestamp("ms", "UTC"), "day": "date32"}
PAID_KINDS |= {
    "clock": "int64",
    "micros": pa.timestamp("us"),
    "nanos": "int64",
    "zoned": "string",
}  # no times of day in JSON


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize("form", ["avro", "json"])
async def test_types_of_connect_are_what_they_mean_in_rows_and_in_the_keys_of_tombstones(
    place: Place, server: SchemaServer, form: str
) -> None:
    topic, kinds = place.topic(), {"bytes": "bytes", "int64": "long", "int32": "int", "string": "string"}

    def record(part: str, names: list[str], id: int) -> bytes:
        some = [each for each in PAID if each[0] in names]
        if form == "json":
            fields = [{"field": name, "type": kind, "optional": False, **rest} for name, kind, rest, *_ in some]
            payload = {name: written for name, _, _, _, written, _ in some}
            payload["id"] = b64encode(id.to_bytes(2, "big", signed=True)).decode()
            return json.dumps({"schema": {"type": "struct", "fields": fields}, "payload": payload}).encode()
        types = [
            (
                name,
                {"type": kinds[kind], "connect.version": 1} | {f"connect.{each}": told for each, told in rest.items()},
            )
            for name, kind, rest, *_ in some
        ]
        schema = {"type": "record", "name": f"shop.{part}", "fields": [{"name": n, "type": kind} for n, kind in types]}
        file, row = io.BytesIO(), {name: written for name, _, _, written, _, _ in some}
        fastavro.schemaless_writer(file, schema, row | {"id": id.to_bytes(2, "big", signed=True)})
        return b"\0" + server.add(f"{topic}-{part.lower()}", schema).to_bytes(4) + file.getvalue()

    every = [name for name, *_ in PAID]
    for id, is_there in ((1234, True), (-1, True), (7, True), (-1, False), (7, True)):
        place.fill(topic, [record("Value", every, id) if is_there else None], record("Key", ["id"], id))
    how = {"format": Avro(registry=Registry(server.url))} if form == "avro" else {"schema": PAID_KINDS}
    app = App(f"app-{uuid.uuid4().hex[:8]}", place.url)
    rows = app.table(topic, key="id", until="now", **how).materialize().collect().to_pylist()
    row = {name: value for name, *_, value in PAID}
    if form == "json":
        row |= {name: written for name, *_, written, _ in PAID if name in ("clock", "nanos")}
    assert rows == [row, {**row, "id": Decimal("0.07")}]
    assert place.read(f"{topic}.dlq") == []
