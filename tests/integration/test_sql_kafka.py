"""Tables of Flink's Kafka and JSON pages at a real broker: keys, times, places to begin and to end, groups."""

import json
import uuid

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from sabot import App
from sabot.kafka import admin

pytestmark = [pytest.mark.integration, pytest.mark.kafka]


def table(kafka_url: str, topic: str, columns: str, *options: str, connector: str = "kafka") -> str:
    given = [
        f"'connector' = '{connector}'",
        f"'topic' = '{topic}'",
        f"'properties.bootstrap.servers' = '{kafka_url.removeprefix('kafka://')}'",
    ]
    return f"CREATE TABLE t ({columns}) WITH ({', '.join([*given, *options])});"


def produced(kafka_url: str, topic: str, rows: list[tuple[str | None, str | None, int]]) -> None:
    producer = Producer({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    for key, value, partition in rows:
        producer.produce(topic, value, key, partition)
    assert producer.flush(60) == 0


def consumed(kafka_url: str, topic: str, count: int) -> list[tuple[bytes | None, bytes | None]]:
    consumer = Consumer({"bootstrap.servers": kafka_url.removeprefix("kafka://"), "group.id": uuid.uuid4().hex})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found = [consumer.consume(1, 20)[0] for _ in range(count)]
    consumer.close()
    return [(each.key(), each.value()) for each in found]


BOUNDED = "'scan.bounded.mode' = 'latest-offset'"


async def test_keys_and_times_are_written_as_flink_reads_them_and_read_again(kafka_url, topic, tmp_path):
    admin.create_topic(kafka_url, topic, 1)
    text = table(
        kafka_url,
        topic,
        "k_user BIGINT, seen TIMESTAMP_LTZ(3), day DATE, price DECIMAL(6, 2)",
        "'key.format' = 'json'",
        "'key.fields' = 'k_user'",
        "'key.fields-prefix' = 'k_'",
        "'value.format' = 'json'",
        "'value.fields-include' = 'EXCEPT_KEY'",
        "'value.json.timestamp-format.standard' = 'ISO-8601'",
        "'sink.delivery-guarantee' = 'exactly-once'",
        "{more}",
    )
    app = App(f"writes-{topic}", kafka_url, state=str(tmp_path))
    app.sql(
        text.replace(", {more}", "")
        + "INSERT INTO t VALUES (5, TIMESTAMP_LTZ '2024-05-17 12:30:00.25Z', DATE '2024-05-17', 1.50)"
    )
    await app.run()
    payload = b'{"seen":"2024-05-17T12:30:00.25Z","day":"2024-05-17","price":1.50}'
    assert consumed(kafka_url, topic, 1) == [(b'{"user":5}', payload)]
    rows = App(f"reads-{topic}", kafka_url).sql(
        text.replace("{more}", BOUNDED)
        + "SELECT k_user, CAST(seen AS STRING) AS seen, CAST(price AS STRING) AS price FROM t"
    )
    assert rows.collect().to_pylist() == [{"k_user": 5, "seen": "2024-05-17 12:30:00.250", "price": "1.50"}]


def test_a_table_is_read_between_offsets_and_from_the_offsets_of_a_group(kafka_url, topic):
    admin.create_topic(kafka_url, topic, 2)
    produced(kafka_url, topic, [(None, json.dumps({"n": n}), n % 2) for n in range(10)])  # 0, 2, 4 … and 1, 3, 5 …
    offsets = "'scan.{0}.mode' = 'specific-offsets', 'scan.{0}.specific-offsets' = 'partition:0,offset:{1};partition:1,offset:{2}'"
    part = table(
        kafka_url,
        topic,
        "n BIGINT",
        "'format' = 'json'",
        offsets.format("startup", 1, 2),
        offsets.format("bounded", 3, 4),
    )
    found = App(f"part-{topic}", kafka_url).sql(part + "SELECT n FROM t").collect()
    assert sorted(found["n"].to_pylist()) == [2, 4, 5, 7]
    group = f"flink-{topic}"
    consumer = Consumer({"bootstrap.servers": kafka_url.removeprefix("kafka://"), "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=False)
    consumer.close()
    options = (
        "'format' = 'json'",
        f"'properties.group.id' = '{group}'",
        "'properties.auto.offset.reset' = 'earliest'",
        BOUNDED,
    )
    again = App(f"group-{topic}", kafka_url).sql(table(kafka_url, topic, "n BIGINT", *options) + "SELECT n FROM t")
    assert sorted(again.collect()["n"].to_pylist()) == [1, 3, 5, 7, 8, 9]


def test_a_compacted_topic_of_flink_loses_the_rows_that_its_tombstones_name(kafka_url, topic):
    admin.create_topic(kafka_url, topic, 1)
    rows = [
        ('{"name":"ada"}', '{"city":"Ulm"}', 0),
        ('{"name":"bob"}', '{"city":"Bonn"}', 0),
        ('{"name":"ada"}', None, 0),
    ]
    produced(kafka_url, topic, rows)
    options = ("'key.format' = 'json'", "'value.format' = 'json'", "'value.fields-include' = 'EXCEPT_KEY'", BOUNDED)
    text = table(
        kafka_url,
        topic,
        "name STRING, city STRING, PRIMARY KEY (name) NOT ENFORCED",
        *options,
        connector="upsert-kafka",
    )
    found = App(f"table-{topic}", kafka_url).sql(text + "SELECT name, city FROM t").materialize().collect()
    assert found.to_pylist() == [{"name": "bob", "city": "Bonn"}]
