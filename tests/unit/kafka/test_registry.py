"""The schema registry, asked with confluent-kafka's own client over HTTP."""

import json
import logging
import threading
from collections.abc import Iterator

import pyarrow as pa
import pytest

from sabot.codecs.avro import arrow_schema as columns_of
from sabot.errors import RegistryUnavailable, UnknownSchema, UserError
from sabot.kafka.registry import Registry
from tools.broker import free_ports
from tools.registry import SchemaServer, schema_server

MONEY = pa.struct([pa.field("cents", pa.int64(), nullable=False)])
LINE = pa.struct([pa.field("price", MONEY, nullable=False), pa.field("unit", pa.string(), nullable=False)])
V1 = '{"type": "record", "name": "Order", "fields": [{"name": "id", "type": "long"}]}'
V2 = '{"type": "record", "name": "Order", "fields": [{"name": "id", "type": "long"}, {"name": "n", "type": "int", "default": 0}]}'


@pytest.fixture
def server() -> Iterator[SchemaServer]:
    with schema_server() as server:
        yield server


def test_a_schema_is_asked_for_once_by_its_id(server: SchemaServer) -> None:
    id, registry = server.add("orders-value", V1), Registry(server.url)
    assert [registry.schema_of(id, "AVRO") for _ in range(3)] == [V1] * 3
    assert len(server.asked) == 1
    server.down = True
    assert registry.schema_of(id, "AVRO") == V1


def test_a_schema_is_registered_once_and_found_again(server: SchemaServer) -> None:
    registry = Registry(server.url)
    with pytest.raises(UserError, match="subject 'orders-value': Subject"):
        registry.latest("orders-value", "AVRO")
    id = registry.register("orders-value", V1, "AVRO")
    assert registry.register("orders-value", V1, "AVRO") == id
    assert registry.latest("orders-value", "AVRO") == (id, V1)
    newer = registry.register("orders-value", V2, "AVRO")
    assert registry.latest("orders-value", "AVRO") == (newer, V2), "the newest is never an old answer"
    assert registry.lookup("orders-value", V1, "AVRO") == id
    with pytest.raises(UserError, match="not found"):
        registry.lookup("orders-value", V1.replace("Order", "Other"), "AVRO")
    assert server.subjects == {"orders-value": [id, newer]}


def test_what_the_registry_refuses_says_why(server: SchemaServer) -> None:
    registry = Registry(server.url)
    registry.register("orders-value", V1, "AVRO")
    server.compatible = lambda subject, schema: False
    with pytest.raises(UserError, match="incompatible") as refused:
        registry.register("orders-value", V2, "AVRO")
    assert "compatibility" in refused.value.hint
    with pytest.raises(UserError, match="Invalid schema"):
        registry.register("orders-value", "{", "AVRO")


@pytest.mark.slow  # half a second of a core
def test_an_unknown_id_is_asked_for_once_a_minute_and_many_of_them_are_not_asked_for(server: SchemaServer) -> None:
    """A topic that somebody has filled with bytes of his own does not make a request of each record."""
    registry = Registry(server.url)
    for _ in range(3):
        with pytest.raises(UnknownSchema, match="schema id 7: the schema registry"):
            registry.schema_of(7, "AVRO")
    assert len(server.asked) == 1
    for id in range(1000, 1400):
        with pytest.raises(UnknownSchema):
            registry.schema_of(id, "AVRO")
    assert len(server.asked) == 200
    with pytest.raises(UnknownSchema, match="so this id is not looked up"):
        registry.schema_of(2000, "AVRO")


def test_types_that_a_schema_refers_to_are_part_of_its_text(server: SchemaServer) -> None:
    """A reference of a reference, an older version, a type that is used twice, and one that the referred schema has within another."""
    registry = Registry(server.url)
    money = {"type": "record", "name": "Money", "fields": [{"name": "cents", "type": "long"}]}
    server.add("money", {**money, "namespace": "bank"})
    server.add("money", {**money, "namespace": "bank", "doc": "newer, which nothing refers to"})
    line = [
        {"name": "price", "type": "bank.Money"},
        {"name": "unit", "type": {"type": "enum", "name": "Unit", "symbols": ["kg"]}},
    ]
    to_money = {"name": "bank.Money", "subject": "money", "version": 1}
    server.add("line", {"type": "record", "name": "shop.Line", "fields": line}, references=[to_money])
    order = [
        {"name": "unit", "type": ["null", "Unit"]},
        {"name": "lines", "type": {"type": "array", "items": "Line"}},
        {"name": "total", "type": "bank.Money"},
    ]
    whole = {"type": "record", "name": "Order", "namespace": "shop", "fields": order}
    to_line = {"name": "shop.Line", "subject": "line", "version": 1}
    id = server.add("orders-value", whole, references=[to_line, to_money])
    text = registry.schema_of(id, "AVRO")
    assert registry.latest("orders-value", "AVRO") == (id, text)
    assert "newer" not in text
    assert columns_of(text) == pa.schema(
        [
            ("unit", pa.string()),
            pa.field("lines", pa.list_(pa.field("item", LINE, nullable=False)), nullable=False),
            pa.field("total", MONEY, nullable=False),
        ]
    )
    asked = len(server.asked)
    assert registry.schema_of(id, "AVRO") == text
    assert len(server.asked) == asked


def test_references_that_lead_nowhere_are_named(server: SchemaServer) -> None:
    registry = Registry(server.url)
    lost = server.add("r-value", V2, references=[{"name": "a.B", "subject": "b", "version": 1}])
    with pytest.raises(UnknownSchema, match=r"it refers to 'a\.B', version 1 of subject 'b': .*Subject"):
        registry.schema_of(lost, "AVRO")
    with pytest.raises(UserError, match=r"it refers to 'a\.B', version 1 of subject 'b': .*Subject"):
        registry.latest("r-value", "AVRO")
    server.add("loop", V1, references=[{"name": "a.C", "subject": "loop", "version": 1}])
    assert json.loads(registry.latest("loop", "AVRO")[1]) == json.loads(V1)
    server.schemas.append({"schema": "no JSON"})
    server.subjects["odd"] = [len(server.schemas)]
    odd = server.add(
        "o-value", V2.replace("Order", "Odd"), references=[{"name": "a.D", "subject": "odd", "version": 1}]
    )
    with pytest.raises(UnknownSchema, match="is not JSON"):
        registry.schema_of(odd, "AVRO")


def test_schemas_of_another_kind_are_named(server: SchemaServer) -> None:
    registry = Registry(server.url)
    proto = server.add("p-value", "cHJvdG8=", "PROTOBUF")
    with pytest.raises(UnknownSchema, match="a schema of PROTOBUF, and not of AVRO"):
        registry.schema_of(proto, "AVRO")
    with pytest.raises(UserError, match="has schemas of PROTOBUF"):
        registry.latest("p-value", "AVRO")


def test_a_registry_that_does_not_answer_is_no_lasting_error(server: SchemaServer) -> None:
    id, registry = server.add("orders-value", V1), Registry(server.url)
    server.down = True
    for ask in (
        lambda: registry.schema_of(id, "AVRO"),
        lambda: registry.latest("orders-value", "AVRO"),
        lambda: registry.register("orders-value", V2, "AVRO"),
    ):
        with pytest.raises(RegistryUnavailable, match="503 it is down"):
            ask()
    server.down = False
    assert registry.schema_of(id, "AVRO") == V1
    (port,) = free_ports(1)
    with pytest.raises(RegistryUnavailable, match=f"127.0.0.1:{port} does not answer: ConnectError"):
        Registry(f"http://127.0.0.1:{port}").schema_of(1, "AVRO")


ODD = [
    (404, {"message": "no Route matched with those values"}),
    (404, []),
    (404, "<html>default backend - 404</html>"),
    (302, {}),
    (200, {}),
    (200, {"status": "maintenance"}),
    (200, {"schema": 5, "id": "x", "version": None}),
    (200, {"schema": V1, "schemaType": 7}),
]


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize(("status", "body"), ODD, ids=str)
def test_an_answer_that_is_no_registrys_is_as_none(server: SchemaServer, status: int, body: object) -> None:
    """A proxy that has lost its registry says 404 of its own: no good record is a dead letter for it, and no row is written without the id
    of its schema.
    """
    id, registry, answer = server.add("orders-value", V1), Registry(server.url), server.answer
    server.answer = lambda *asked: (status, body)  # type: ignore[method-assign]
    for ask in (
        lambda: registry.schema_of(id, "AVRO"),
        lambda: registry.latest("orders-value", "AVRO"),
        lambda: registry.register("orders-value", V1, "AVRO"),
        lambda: registry.lookup("orders-value", V1, "AVRO"),
        lambda: registry.refer("orders-value", V1, "AVRO"),
    ):
        with pytest.raises(RegistryUnavailable, match="no answer of a registry"):
            ask()
    server.answer = answer  # type: ignore[method-assign]
    assert registry.schema_of(id, "AVRO") == V1
    assert registry.latest("orders-value", "AVRO") == (id, V1)
    assert registry.register("orders-value", V1, "AVRO") == registry.lookup("orders-value", V1, "AVRO") == id


def test_several_addresses_are_tried_in_turn(server: SchemaServer) -> None:
    id, (port,) = server.add("orders-value", V1), free_ports(1)
    assert Registry(f"http://127.0.0.1:{port},{server.url}").schema_of(id, "AVRO") == V1


def test_many_threads_share_a_registry(server: SchemaServer) -> None:
    ids = [server.add(f"s{n}", V1.replace("Order", f"Order{n}")) for n in range(20)]
    registry, found = Registry(server.url), list[str]()
    threads = [
        threading.Thread(target=lambda: found.extend(registry.schema_of(id, "AVRO") for id in ids)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(each["schema"] for each in server.schemas for _ in range(4))


def test_a_password_is_sent_and_never_shown(server: SchemaServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.user = "ada:s3cret-of-ada"
    id = server.add("orders-value", V1)
    registry = Registry(server.url, auth=("ada", "s3cret-of-ada"))
    assert registry.schema_of(id, "AVRO") == V1
    in_url = Registry(f"http://ada:s3cret-of-ada@127.0.0.1:{server.port}")
    assert in_url.schema_of(id, "AVRO") == V1
    wrong = Registry(server.url, auth=("ada", "no-s3cret-at-all"))
    with pytest.raises(UserError, match="it refuses access: Unauthorized") as refused:
        wrong.latest("orders-value", "AVRO")
    with pytest.raises(UserError, match="it refuses access"):  # and no record is a dead letter for it
        wrong.schema_of(id, "AVRO")
    said = " ".join(map(repr, (registry, in_url, wrong, refused.value, refused.value.__cause__))) + caplog.text
    assert "s3cret" not in said


def test_settings_that_are_none_are_refused() -> None:
    for make in (
        lambda: Registry("localhost:8081"),
        lambda: Registry("http://h", auth="ada:pw"),  # type: ignore[arg-type]
        lambda: Registry("http://h", timeout="soon"),
        lambda: Registry("http://h", settings=["x"]),  # type: ignore[arg-type]
        lambda: Registry("http://h", settings={"no.such.setting": 1}).latest("s", "AVRO"),
        lambda: Registry("http://h", settings={"ssl.ca.location": "/no/such/file.pem"}).latest("s", "AVRO"),
    ):
        with pytest.raises(UserError):
            make()
