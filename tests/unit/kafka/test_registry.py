"""The schema registry, asked with confluent-kafka's own client over HTTP."""

import logging
import threading
from collections.abc import Iterator

import pytest

from sabot.errors import RegistryUnavailable, UnknownSchema, UserError
from sabot.kafka.registry import Registry
from tools.broker import free_ports
from tools.registry import SchemaServer, schema_server

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
    with pytest.raises(UnknownSchema, match="no others are asked for"):
        registry.schema_of(2000, "AVRO")


def test_schemas_of_another_kind_or_with_references_are_named(server: SchemaServer) -> None:
    registry = Registry(server.url)
    proto = server.add("p-value", "cHJvdG8=", "PROTOBUF")
    other = server.add("r-value", V2, references=[{"name": "a.B", "subject": "b", "version": 1}])
    with pytest.raises(UnknownSchema, match="a schema of PROTOBUF, and not of AVRO"):
        registry.schema_of(proto, "AVRO")
    with pytest.raises(UnknownSchema, match="refers to other schemas"):
        registry.schema_of(other, "AVRO")
    with pytest.raises(UserError, match="has schemas of PROTOBUF"):
        registry.latest("p-value", "AVRO")
    with pytest.raises(UserError, match="refers to other schemas"):
        registry.latest("r-value", "AVRO")


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
    with pytest.raises(UserError, match="it refuses us: Unauthorized") as refused:
        wrong.latest("orders-value", "AVRO")
    with pytest.raises(UserError, match="it refuses us"):  # and no record is a dead letter for it
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
