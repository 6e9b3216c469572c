"""A script of SQL over Avro on a real Kafka broker: records of Confluent's serializer, a kill, and each row once behind it."""

import asyncio
import io
import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tools.agent_tools import manifests, until
from tools.fault_tools import Place, lines_of, running
from tools.registry import SchemaServer, schema_server

pytestmark = [pytest.mark.integration, pytest.mark.kafka]

ORDER = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "account", "type": ["null", "string"], "default": None},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "unused", "type": "string", "default": ""},
    ],
}
SUM = {  # as Flink makes it from the columns of the table `sums`
    "type": "record",
    "name": "record",
    "fields": [
        {"name": "account", "type": ["null", "string"], "default": None},
        {"name": "until", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}], "default": None},
        {"name": "n", "type": ["null", "long"], "default": None},
    ],
}
SCRIPT = """
SET 'pipeline.name' = '{name}';
CREATE TABLE orders (
    id BIGINT, account STRING, price DECIMAL(10, 2), `at` TIMESTAMP_LTZ(3), part INT METADATA FROM 'partition',
    WATERMARK FOR `at` AS `at` - INTERVAL '1' SECOND
) WITH (
    'connector' = 'kafka', 'properties.bootstrap.servers' = '{servers}', 'topic' = '{orders}',
    'scan.startup.mode' = 'earliest-offset', 'format' = 'avro-confluent', 'avro-confluent.url' = '{registry}'
);
CREATE TABLE doubled (id BIGINT NOT NULL, account STRING, price DECIMAL(12, 2), part INT) WITH (
    'connector' = 'kafka', 'properties.bootstrap.servers' = '{servers}', 'topic' = '{doubled}',
    'format' = 'avro-confluent', 'avro-confluent.url' = '{registry}', 'sink.delivery-guarantee' = 'exactly-once'
);
CREATE TABLE sums (account STRING, until TIMESTAMP_LTZ(3), n BIGINT) WITH (
    'connector' = 'kafka', 'properties.bootstrap.servers' = '{servers}', 'topic' = '{sums}',
    'format' = 'avro', 'sink.delivery-guarantee' = 'exactly-once'
);
EXECUTE STATEMENT SET BEGIN
    INSERT INTO doubled SELECT id, UPPER(account), CAST(price * 2 AS DECIMAL(12, 2)), part FROM orders WHERE MOD(id, 10) <> 3;
    INSERT INTO sums SELECT account, window_end, COUNT(*) FROM TABLE(TUMBLE(TABLE orders, DESCRIPTOR(`at`), INTERVAL '10' SECOND))
        GROUP BY account, window_start, window_end;
END;
"""
COUNT, START_MS = 4000, 1_700_000_000_000


def order(number: int) -> dict[str, Any]:
    at = datetime.fromtimestamp((START_MS + 20 * number) / 1000, UTC)
    account = None if number % 5 == 0 else f"a{number % 3}"
    return {"id": number, "account": account, "price": Decimal(number) / 100, "at": at, "unused": "x"}


def fill(place: Place, server: SchemaServer, topic: str, numbers: range) -> None:
    """Writes orders into two partitions, as Confluent's serializer does, which registers the schema."""
    serializer = AvroSerializer(SchemaRegistryClient({"url": server.url}), json.dumps(ORDER))
    context = SerializationContext(topic, MessageField.VALUE)
    for partition in range(2):
        some = [serializer(order(number), context) for number in numbers if number % 2 == partition]
        place.fill(topic, some, partition=partition)


@pytest.mark.slow  # three processes and a broker
async def test_avro_in_sql_goes_from_kafka_to_kafka_exactly_once_over_a_kill(kafka_url: str, tmp_path: Path) -> None:
    place, log, checkpoints = Place(kafka_url), tmp_path / "log", tmp_path / "state" / "checkpoints"
    topics = {"orders": place.topic(2), "doubled": place.topic(2), "sums": place.topic(1)}
    with schema_server() as server:
        names = {
            "name": f"avro-{uuid.uuid4().hex[:8]}",
            "servers": kafka_url.removeprefix("kafka://"),
            "registry": server.url,
        }
        (tmp_path / "avro.sql").write_text(SCRIPT.format(**names, **topics))
        fill(place, server, topics["orders"], range(COUNT // 2))
        words = ["avro.sql", "--state", "state", "--checkpoint-interval", "0.2"]

        async def rows_out(process: Any, topic: str, count: int) -> None:
            def there() -> bool:
                assert process.poll() is None, lines_of(log)
                return len(place.read(topic)) >= count

            await until(there, f"{count} rows in {topic}")

        with running(log, *words, folder=tmp_path) as process:
            await rows_out(process, topics["doubled"], 100)
            known = manifests(checkpoints)
            fill(place, server, topics["orders"], range(COUNT // 2, COUNT // 2 + 500))
            await until(lambda: manifests(checkpoints) - known, "a checkpoint")
            process.kill()
            await asyncio.to_thread(process.wait)
        fill(place, server, topics["orders"], range(COUNT // 2 + 500, COUNT))
        with running(log, *words, folder=tmp_path) as process:
            wanted = [number for number in range(COUNT) if number % 10 != 3]
            await rows_out(process, topics["doubled"], len(wanted))
            await rows_out(process, topics["sums"], 4 * 7)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
        deserializer = AvroDeserializer(SchemaRegistryClient({"url": server.url}))
        context = SerializationContext(topics["doubled"], MessageField.VALUE)
        doubled = [deserializer(record.payload, context) for record in place.read(topics["doubled"])]
    assert sorted(doubled, key=lambda row: row["id"]) == [
        {
            "id": number,
            "account": None if number % 5 == 0 else f"A{number % 3}",
            "price": order(number)["price"] * 2,
            "part": number % 2,
        }
        for number in wanted
    ]
    sums = [fastavro.schemaless_reader(io.BytesIO(each.payload), SUM, None) for each in place.read(topics["sums"])]
    expected: dict[tuple[Any, int], int] = {}
    for number in range(COUNT):
        row = order(number)
        end = int(row["at"].timestamp() * 1000) // 10_000 * 10_000 + 10_000
        expected[row["account"], end] = expected.get((row["account"], end), 0) + 1
    last = max(end for _, end in expected)  # no order comes that would close this window
    assert len({(row["account"], row["until"]) for row in sums}) == len(sums), "a window came twice"
    assert {(row["account"], int(row["until"].timestamp() * 1000)): row["n"] for row in sums} == {
        key: n for key, n in expected.items() if key[1] < last
    }
