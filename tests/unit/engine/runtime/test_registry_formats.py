"""Avro with a schema registry, from topic to topic: a real HTTP registry, asked by the real client."""

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pytest
from google.protobuf import message_factory, timestamp_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from sabot import App, Avro, Protobuf, Registry, col
from sabot.codecs.avro import AvroEncoder
from sabot.codecs.protobuf import descriptor_of
from sabot.errors import RegistryUnavailable, UserError
from tools.agent_tools import bounded, checkpoint, crash_image, publish, records, started, until, values, within
from tools.broker import free_ports
from tools.registry import SchemaServer, schema_server


def order(*fields: tuple[str, Any], **defaults: Any) -> dict[str, Any]:
    made = [
        {"name": name, "type": kind, **({"default": defaults[name]} if name in defaults else {})}
        for name, kind in fields
    ]
    return {"type": "record", "name": "Order", "namespace": "shop", "fields": made}


V1 = order(("id", "long"), ("name", "string"))
V2 = order(("id", "long"), ("name", "string"), ("country", "string"), country="AT")
ROWS = [{"id": n, "name": f"n{n}"} for n in range(6)]


@pytest.fixture
def server() -> Iterator[SchemaServer]:
    with schema_server() as server:
        yield server


@pytest.fixture
def registry(server: SchemaServer) -> Registry:
    return Registry(server.url, timeout="2s")


@pytest.fixture
def app(memory_url: str) -> App:
    return App("shop", memory_url)


def payloads(
    server: SchemaServer, schema: dict[str, Any], rows: list[dict[str, Any]], subject: str = "orders-value"
) -> list[bytes]:
    """What a producer writes with this schema."""
    encoder = AvroEncoder(schema, schema_id=server.add(subject, schema))
    made: list[bytes] = encoder.encode(pa.RecordBatch.from_pylist(rows)).to_pylist()
    return made


async def test_rows_go_from_avro_to_avro_through_the_registry(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    publish(app, "orders", payloads(server, V1, ROWS))
    orders = app.stream("orders", format=Avro(registry=registry))
    orders.with_columns(double=col("id") * 2).to("doubled", format=Avro(registry=registry))
    orders.to("same", key="name", format=Avro(V1, registry=registry, subject="{record}"))
    async with started(app):
        await until(lambda: len(records(app, "doubled")) == len(records(app, "same")) == 6, "the rows")
    assert set(server.subjects) == {"orders-value", "doubled-value", "shop.Order"}
    assert server.subjects["shop.Order"] == server.subjects["orders-value"], "one schema has one id"
    assert [record.payload for record in records(app, "same")] == [record.payload for record in records(app, "orders")]
    assert records(app, "same")[3].key == b"n3"
    (made,) = [json.loads(server.schemas[id - 1]["schema"]) for id in server.subjects["doubled-value"]]
    assert [field["name"] for field in made["fields"]] == ["id", "name", "double"]
    look = App("look", app.broker).stream("doubled", format=Avro(registry=registry))
    assert look.collect(limit=6).to_pylist() == [{**row, "double": 2 * row["id"]} for row in ROWS]


async def test_records_of_several_writers_are_read_as_the_reader_says(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    newer = [{**row, "country": "DE"} for row in ROWS[3:]]
    old, new = payloads(server, V1, ROWS[:3]), payloads(server, V2, newer)
    publish(app, "orders", [old[0], new[0], old[1], new[1], old[2], new[2]])
    app.stream("orders", format=Avro(V2, registry=registry)).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 6, "the rows")
    found = values(app, "out")
    assert [row["country"] for row in found] == ["AT", "DE"] * 3
    assert sorted(row["id"] for row in found) == list(range(6))


async def test_a_record_that_cannot_be_read_is_a_dead_letter_with_its_place(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    good = payloads(server, V1, ROWS[:2])
    unknown, magic = b"\0\0\0\x03\xe7" + good[0][5:], b"\x01" + good[0][1:]
    publish(app, "orders", [good[0], unknown, magic, good[0][:-1], b"", b"\0\0", good[1]])
    app.stream("orders", format=Avro(registry=registry)).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 2, "the good rows")
        await until(lambda: len(records(app, "orders.dlq")) == 5, "the dead letters")
    assert values(app, "out") == ROWS[:2]
    letters = [(dict(each.headers), each.payload) for each in records(app, "orders.dlq")]
    assert [headers["sabot.offset"] for headers, _ in letters] == [b"1", b"2", b"3", b"4", b"5"]
    assert {headers["sabot.topic"] for headers, _ in letters} == {b"orders"}
    assert {headers["sabot.partition"] for headers, _ in letters} == {b"0"}
    assert [payload for _, payload in letters] == [unknown, magic, good[0][:-1], b"", b"\0\0"]
    assert b"schema id 999" in letters[0][0]["sabot.message"]


@pytest.mark.slow  # half a second of a core
async def test_a_registry_that_goes_away_holds_rows_back_and_nothing_else(
    memory_url: str, tmp_path: Path, server: SchemaServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of a schema that is known go on; those of a new one wait, and come in their order when the registry is back."""
    app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", checkpoint_interval="1h")
    app.configure(metrics_port=0)
    publish(app, "orders", payloads(server, V1, ROWS[:2]))
    app.stream("orders", format=Avro(V1, registry=registry)).to("out", delivery="at_least_once")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 2, "the first rows")
        new = payloads(server, V2, [{**row, "country": "DE"} for row in ROWS[4:]])
        server.down = True
        publish(app, "orders", payloads(server, V1, ROWS[2:4]))
        await until(lambda: len(records(app, "out")) == 4, "rows of a schema that is known")
        publish(app, "orders", new)
        await until(
            lambda: server.asked.count(server.asked[-1]) >= 2 and "reading is paused" in caplog.text, "some tries"
        )
        await checkpoint(app)
        image = crash_image(tmp_path / "checkpoints", tmp_path / "image")
        assert len(records(app, "out")) == 4
        ready = f"http://127.0.0.1:{app.statistics()['metrics']['port']}/ready"
        report = json.loads(await asyncio.to_thread(lambda: urlopen(ready, timeout=60).read()))
        assert report["ready"], "rows of other schemas go on"
        assert "503 it is down" in report["registry"][0]
        server.down = False
        await until(lambda: len(records(app, "out")) == 6, "the rows of the new schema")
    assert values(app, "out") == ROWS
    assert "503 it is down" in caplog.text
    again = App("shop", memory_url, checkpoint_dir=image, checkpoint_interval="1h")
    again.stream("orders", format=Avro(V1, registry=registry)).to("out", delivery="at_least_once")
    async with started(again):
        await until(lambda: len(records(again, "out")) == 8, "what the checkpoint did not cover")
    assert values(again, "out")[6:] == ROWS[4:]


async def test_an_app_is_stopped_while_its_registry_is_away(app: App, server: SchemaServer, registry: Registry) -> None:
    publish(app, "orders", payloads(server, V2, [{"id": 1, "name": "n", "country": "AT"}]))
    app.stream("orders", format=Avro(V1, registry=registry)).to("out")
    server.down = True
    async with started(app):
        await until(lambda: len(server.asked) >= 2, "some tries")
        with within(5):
            await bounded(app.stop())
    assert records(app, "out") == []


async def test_a_start_needs_the_registry_only_where_it_has_to_ask(memory_url: str, server: SchemaServer) -> None:
    (port,) = free_ports(1)
    away = Registry(f"http://127.0.0.1:{port}")
    app = App("shop", memory_url)
    app.stream("orders", format=Avro(registry=away)).to("out")
    with pytest.raises(RegistryUnavailable, match=f"127.0.0.1:{port}"):
        await app.start()
    other = App("other", memory_url)
    other.stream("orders", format=Avro(V1, registry=away)).to("out")
    async with started(other):
        assert other.statistics()["failure"] is None


async def test_the_schema_of_a_reader_stays_when_the_subject_has_a_newer_one(
    memory_url: str, tmp_path: Path, server: SchemaServer, registry: Registry
) -> None:
    """The columns of an app do not change under its state; `schema="refresh"` takes the newest."""

    def program() -> App:
        app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints")
        app.stream("orders", format=Avro(registry=registry)).to("out", delivery="at_least_once")
        return app

    first = program()
    publish(first, "orders", payloads(server, V1, ROWS[:2]))
    async with started(first):
        await until(lambda: len(records(first, "out")) == 2, "the first rows")
    second = program()
    publish(second, "orders", payloads(server, V2, [{**ROWS[2], "country": "DE"}]))
    async with started(second):
        await until(lambda: len(records(second, "out")) == 3, "a row of the newer schema")
    third = program()
    third.configure(schema="refresh")
    publish(third, "orders", payloads(server, V2, [{**ROWS[3], "country": "DE"}]))
    async with started(third):
        await until(lambda: len(records(third, "out")) == 4, "a row with all columns")
    assert values(third, "out") == [*ROWS[:3], {**ROWS[3], "country": "DE"}]


async def test_a_writer_that_may_not_register_takes_what_is_there(
    memory_url: str, server: SchemaServer, registry: Registry
) -> None:
    app = App("shop", memory_url)
    publish(app, "orders", payloads(server, V1, ROWS[:1]))
    orders = app.stream("orders", format=Avro(registry=registry))
    server.add("out-value", V2)
    orders.to("out", format=Avro(registry=registry, auto_register=False))
    async with started(app):
        await until(lambda: records(app, "out"), "the row")
    assert len(server.schemas) == 2
    look = App("look", memory_url).stream("out", format=Avro(registry=registry))
    assert look.collect(limit=1).to_pylist() == [{**ROWS[0], "country": "AT"}]
    other = App("other", memory_url, restart="none")
    other.stream("orders", format=Avro(registry=registry)).to(
        "else", format=Avro(V1, registry=registry, auto_register=False), delivery="at_least_once"
    )
    with pytest.raises(UserError, match="else-value"):
        await bounded(other.run())


async def test_agents_and_tables_read_and_write_avro(app: App, server: SchemaServer, registry: Registry) -> None:
    publish(app, "orders", payloads(server, V1, ROWS[:3]))
    for payload, row in zip(payloads(server, V1, ROWS[:3], "stock-value"), ROWS, strict=False):
        publish(app, "stock", [payload], key=row["name"])
    seen: list[Any] = []

    @app.agent("orders", format=Avro(registry=registry), sink="out", sink_format=Avro(V2, registry=registry))
    async def order(ctx: Any) -> dict[str, Any]:
        seen.append(ctx.message)
        return {**ctx.message, "country": "FR"}

    @app.agent(
        "orders",
        name="batches",
        batch=True,
        format=Avro(V2, registry=registry),
        sink="more",
        sink_format=Avro(registry=registry),
    )
    def batches(batch: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        return batch

    app.table("stock", key="name", format=Avro(registry=registry)).to("now", format=Avro(registry=registry))
    async with started(app):
        await until(
            lambda: len(records(app, "out")) == len(records(app, "more")) == len(records(app, "now")) == 3, "all rows"
        )
        publish(app, "stock", [None], key="n1")
        await until(lambda: len(records(app, "now")) == 4, "the end of a row")
    assert seen == ROWS[:3]
    assert records(app, "now")[-1].payload is None
    look = App("look", app.broker)
    assert look.stream("out", format=Avro(registry=registry)).collect(limit=3).to_pylist() == [
        {**row, "country": "FR"} for row in ROWS[:3]
    ]
    assert look.stream("more", format=Avro(registry=registry)).collect(limit=3).to_pylist() == [
        {**row, "country": "AT"} for row in ROWS[:3]
    ]


async def test_a_result_that_is_no_row_of_the_schema_is_an_error_of_its_call(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    publish(app, "orders", [{"id": 1, "name": "n"}, {"id": "one", "name": "n"}, {"id": 2, "other": 3}])

    @app.agent("orders", sink="out", sink_format=Avro(V1, registry=registry), on_error="skip")
    async def pass_on(ctx: Any) -> dict[str, Any]:
        return ctx.message

    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 2, "the dead letters")
        await until(lambda: records(app, "out"), "the row")
    told = [dict(each.headers)["sabot.message"] for each in records(app, "orders.dlq")]
    assert b"cannot be written as avro" in told[0]
    assert b"'other' is not a column" in told[1]


def test_settings_of_avro_that_do_not_fit_are_refused(app: App, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "order.avsc").write_text(json.dumps(V1))
    assert Avro(tmp_path / "order.avsc") == Avro(V1) == Avro(json.dumps(V1))
    for make, told in (
        (lambda: app.stream("orders", format=Avro()), "has no schema"),
        (lambda: app.stream("orders", format=Avro(registry=registry, subject="{record}")), "the name of the record"),
        (lambda: app.stream("orders", format=Avro(V1), schema={"id": "int64"}), "has columns of its own"),
        (lambda: Avro("no json"), "not JSON"),
        (lambda: Avro(["string"]), "not the schema of a record"),
        (lambda: Avro(V1, subject="{tpoic}-value"), "subject="),
        (lambda: app.table("orders", key="no", format=Avro(V1)), "'no'"),
    ):
        with pytest.raises(UserError, match=told):
            make()


async def test_protobuf_goes_through_the_registry_with_the_file_of_its_message(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    file = FileDescriptorProto(name="m.proto", package="lab", syntax="proto3")
    file.message_type.add(name="Other")
    reading = file.message_type.add(name="Reading")
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    reading.field.add(name="id", number=1, type=FieldDescriptorProto.TYPE_INT64, label=optional)
    reading.field.add(name="name", number=2, type=FieldDescriptorProto.TYPE_STRING, label=optional)
    kind = descriptor_of(FileDescriptorSet(file=[file]).SerializeToString(), "lab.Reading")
    publish(app, "in", ROWS)
    app.stream("in", schema={"id": "int64", "name": "string"}).to(
        "readings", key="name", format=Protobuf(kind, registry=registry)
    )
    app.stream("readings", format=Protobuf(kind, registry=registry)).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 6, "the rows")
    assert values(app, "out") == ROWS
    (kept,) = server.schemas
    assert kept["schemaType"] == "PROTOBUF"
    assert FileDescriptorProto.FromString(b64decode(kept["schema"])) == file
    payload = records(app, "readings")[1].payload or b""
    assert payload[:7] == b"\0\0\0\0\1" + b"\x02\x02", "id 1, and a path of one step: the second message of its file"
    made = message_factory.GetMessageClass(kind).FromString(payload[7:])
    assert (made.id, made.name) == (1, "n1")


async def test_a_record_of_another_message_is_a_dead_letter_and_none_is_read_as_one_that_it_is_not(
    app: App, server: SchemaServer, registry: Registry
) -> None:
    """Both messages have a field 1, so the bytes of one can be read as the other. The id and the place in the file tell them apart."""
    text = 'syntax = "proto3"; package lab; message Other { int64 n = 1; } message Reading { int64 id = 1; }'
    moved = 'syntax = "proto3"; package lab; message Reading { int64 id = 1; string name = 2; } message Other {}'
    alone = 'syntax = "proto3"; package lab; message Alone { int64 n = 1; }'
    ids = [server.add(f"s{n}", each, "PROTOBUF") for n, each in enumerate((text, moved, alone))]
    ids.append(server.add("avro", V1))
    file = FileDescriptorProto(name="m.proto", package="lab", syntax="proto3")
    file.message_type.add(name="Reading").field.add(
        name="id", number=1, type=FieldDescriptorProto.TYPE_INT64, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    kind = descriptor_of(FileDescriptorSet(file=[file]).SerializeToString(), "lab.Reading")
    first, second = b"\0", b"\x02\x02"
    sent = [(ids[0], second), (ids[0], first), (ids[1], first), (ids[1], second), (ids[2], first), (ids[3], first)]
    sent += [(999, first), (ids[0], second)]
    frames = [b"\0" + id.to_bytes(4, "big") + place + b"\x08" + bytes([n]) for n, (id, place) in enumerate(sent)]
    publish(app, "readings", frames)
    app.stream("readings", format=Protobuf(kind, registry=registry)).to("out")
    async with started(app):
        await until(lambda: len(records(app, "out")) == 3, "the rows")
        await until(lambda: len(records(app, "readings.dlq")) == 5, "the dead letters")
    assert [row["id"] for row in values(app, "out")] == [0, 2, 7]
    told = [dict(each.headers)["sabot.message"].decode() for each in records(app, "readings.dlq")]
    another = "it is not lab.Reading, but another message of its schema"
    assert told[:2] == [another, another]
    assert told[2] == "its schema has no message lab.Reading"
    assert "a schema of AVRO, and not of PROTOBUF" in told[3]
    assert "schema id 999" in told[4]
    assert len(server.asked) == 5, "one request an id"


def test_the_files_that_a_message_imports_are_registered_before_its_own(
    server: SchemaServer, registry: Registry
) -> None:
    base = FileDescriptorProto(name="base.proto", package="lab", syntax="proto3")
    common = FileDescriptorProto(name="common.proto", package="lab", syntax="proto3", dependency=["base.proto"])
    imported = ["common.proto", "google/protobuf/timestamp.proto", "base.proto"]
    file = FileDescriptorProto(name="m.proto", package="lab", syntax="proto3", dependency=imported)
    file.message_type.add(name="Reading").field.add(
        name="id", number=1, type=FieldDescriptorProto.TYPE_INT64, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    known = FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(known)
    kind = descriptor_of(FileDescriptorSet(file=[base, common, known, file]).SerializeToString(), "lab.Reading")
    format = Protobuf(kind, registry=registry)
    payloads = format.encoder("out").encode(pa.RecordBatch.from_pylist([{"id": 1}]))
    assert server.subjects == {"base.proto": [1], "common.proto": [2], "out-value": [3]}
    to_base, to_common = ({"name": name, "subject": name, "version": 1} for name in ("base.proto", "common.proto"))
    assert [each.get("references", []) for each in server.schemas] == [[], [to_base], [to_common, to_base]]
    found, bad = format.codec("out", None).decode(pa.RecordBatch.from_arrays([payloads], names=["payload"]))
    assert (found.to_pylist(), bad) == ([{"id": 1}], [])
