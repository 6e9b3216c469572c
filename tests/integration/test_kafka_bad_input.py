"""What a real broker may give a source that is no plain log of records: damage, gaps, other partitions, another topic, what is too large.

Nothing of it is lost in silence: there is an error that says what to do, or the rows come and event time goes on. Of the other cases see
`test_kafka_faults` (transactions, retention, brokers that go), `test_kafka_security` (rights) and `test_faults` (payloads).
"""

import asyncio
import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

import sabot
from sabot import App, DataError, SabotError, UserError, tumbling
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import Record, iterate_records
from sabot.connectors.base import Source
from sabot.connectors.places import Bound
from sabot.kafka import KafkaSource, admin
from sabot.kafka.client import NoSuchTopic, explain, link_of
from sabot.kafka.reader import KafkaReader
from tools.agent_tools import bounded, started, until
from tools.broker import Broker
from tools.fault_tools import Place, jsons

pytestmark = pytest.mark.kafka
WAIT = 60.0


def read(source: Source, rows: int) -> list[Record]:
    found: list[Record] = []
    while len(found) < rows:
        got = source.read_batch(1000, WAIT)
        assert got is not None, f"{len(found)} of {rows} rows came"
        found += iterate_records(got.data, got.topic)
    return found


def read_on(source: Source) -> Batch | None:
    """Reads until there is an error."""
    while True:
        source.read_batch(1000, WAIT)


def made_again(place: Place, topic: str, payloads: list[bytes]) -> None:
    admin.delete_topic(place.url, topic)
    while admin.partitions(place.url, topic):
        """The broker deletes it a little later."""
    place.topic(name=topic)
    place.fill(topic, payloads)


@pytest.mark.slow  # a broker that is started twice
@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_batch_that_was_damaged_on_the_brokers_disk_is_named_and_none_behind_it_is_given(
    own_kafka: Broker, topic: str, compression: str
) -> None:
    """The client reports it, and goes on with the next batch: its records would be missing."""
    place = Place(own_kafka.url)
    place.topic(name=topic)
    starts = []
    assert own_kafka.folder is not None
    for n in range(3):
        producer = Producer({**place.settings, "compression.type": compression})
        for _ in range(10):
            producer.produce(topic, json.dumps({"n": n, "text": "so many bytes " * 9}))
        assert producer.flush(60) == 0
        (file,) = own_kafka.folder.glob(f"data/{topic}-0/*.log")
        starts.append(file.stat().st_size)
    own_kafka.stop()
    data = bytearray(file.read_bytes())
    data[(starts[0] + starts[1]) // 2] ^= 0x55
    file.write_bytes(data)
    own_kafka.start()
    source = KafkaSource(topic, own_kafka.url, topic)
    source.open(None)
    with pytest.raises(DataError, match=rf"{topic}\[0\] is damaged from offset 10 on: .*CRC") as caught:
        read_on(source)
    assert "replica" in str(caught.value.hint)
    assert source.positions() == {(topic, 0): 0}
    source.close()
    behind = KafkaSource(topic, own_kafka.url, topic)
    behind.open({(topic, 0): 20})
    assert [record.value["n"] for record in read(behind, 10)] == [2] * 10
    behind.close()
    admin.delete_topic(own_kafka.url, topic)


@pytest.mark.slow  # waits for the broker to compact
def test_a_compacted_topic_is_read_across_its_gaps_from_every_offset_and_up_to_every_bound(
    own_kafka: Broker, topic: str
) -> None:
    place = Place(own_kafka.url)
    client = AdminClient(place.settings)
    entry = ConfigEntry("log.cleaner.backoff.ms", "50", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.BROKER, "1", incremental_configs=[entry])
    client.incremental_alter_configs([resource])[resource].result()
    config = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.001"}
    admin.create_topic(own_kafka.url, topic, 1, config=config | {"max.compaction.lag.ms": "100"})
    for n in range(6):
        place.fill(topic, [b"%d" % n] * 4, key=b"key %d" % (n % 2))
    place.fill(topic, [b"last"], key=b"another")
    reader = Consumer({**place.settings, "group.id": topic, "enable.partition.eof": True})

    def all_of_it() -> list[tuple[Any, Any]]:
        reader.assign([TopicPartition(topic, 0, 0)])
        found = []
        while (message := reader.poll(WAIT)).error() is None:
            found.append((message.offset(), message.value()))
        return found

    while True:
        place.fill(topic, [b"roll"], key=b"roll")  # a segment is closed by the next record behind its time
        there = all_of_it()
        if there[0][0] > 0 and len([payload for _, payload in there if payload != b"roll"]) == 3:
            break
    # The cleaner would go on with the older of the last records. A topic that is compacted no more is given up by it.
    entry = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    client.incremental_alter_configs([resource])[resource].result()
    while there != (there := all_of_it()):
        """It was in the middle of a segment."""
    reader.close()
    end = there[-1][0] + 1
    places = [0, 5, *(offset + step for offset, _ in there[:4] for step in (0, 1)), end]
    for begin in places:
        source = KafkaSource(topic, own_kafka.url, topic)
        source.open({(topic, 0): begin})
        wanted = [row for row in there if row[0] >= begin]
        assert [(record.offset, record.payload) for record in read(source, len(wanted))] == wanted
        source.close()
    for bound in places:
        source = KafkaSource(topic, own_kafka.url, topic)
        source.end_at(Bound({0: bound}))
        source.open(None)
        found: list[Any] = []
        while not source.exhausted:
            got = source.read_batch(2, WAIT)
            found += [] if got is None else iterate_records(got.data, topic)
        assert [(record.offset, record.payload) for record in found] == [row for row in there if row[0] < bound]
        source.close()
    admin.delete_topic(own_kafka.url, topic)


def test_up_to_now_ends_before_an_open_transaction_and_behind_aborted_records(kafka_url: str, topic: str) -> None:
    place = Place(kafka_url)
    place.topic(name=topic)
    producer = Producer({**place.settings, "transactional.id": topic})
    producer.init_transactions()
    for end in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        for n in range(3):
            producer.produce(topic, b"%d" % n)
        producer.flush()
        end()
    producer.begin_transaction()
    producer.produce(topic, b"open")
    producer.flush()
    for bound, rows in (("now", 3), ({0: 2}, 2), ({0: 3}, 3), ({0: 6}, 3)):
        source = KafkaSource(topic, kafka_url, topic, until=bound)
        source.open(None)
        assert [record.payload for record in read(source, rows)] == [b"%d" % n for n in range(rows)]
        while not source.exhausted:
            assert source.read_batch(10, WAIT) is None
        source.close()
    producer.commit_transaction()


def test_a_topic_that_is_made_again_while_it_is_read_and_has_more_records_than_before_ends_the_read(
    kafka_url: str, topic: str
) -> None:
    """Its offsets are as good as those of before, and the client reads on in the middle of the other topic."""
    place = Place(kafka_url)
    place.topic(name=topic)
    place.fill(topic, [b"%d" % n for n in range(9)])
    source = KafkaSource(topic, kafka_url, topic, partition_check=1.0)
    source.open(None)
    before = source.topic_id()
    assert len(read(source, 9)) == 9
    made_again(place, topic, [b"other %d" % n for n in range(30)])
    with pytest.raises(
        UserError, match=rf"topic {topic} was deleted and made again while it was read: it was {re.escape(before)}"
    ) as caught:
        read_on(source)
    assert "--fresh" in str(caught.value.hint)
    assert "--reprocess" in str(caught.value.hint)
    source.close()
    source.open(None)  # the one of now
    assert len(read(source, 30)) == 30
    source.close()


def test_a_topic_that_was_seen_to_be_gone_and_is_there_again_is_told_as_made_again(kafka_url: str, topic: str) -> None:
    """The look at the topic, or the client, came while there was none. What was told was that the topic does not exist."""
    place = Place(kafka_url)
    place.topic(name=topic)
    source = KafkaReader(topic, kafka_url, topic, 3600.0, {})
    source.open(None)
    before, gone = source.topic_id(), KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    seen = explain(gone, link_of(kafka_url, "source"), topic)
    admin.delete_topic(kafka_url, topic)
    while admin.partitions(kafka_url, topic):
        """The broker deletes it a little later."""
    with pytest.raises(NoSuchTopic):
        source._notice(gone, 0, None)
    place.topic(name=topic)
    told = rf"topic {topic} was deleted and made again while it was read: it was {re.escape(before)}"
    with pytest.raises(UserError, match=told):
        source._notice(gone, 0, None)
    source._fault = seen
    with pytest.raises(UserError, match=told):
        source.read_batch(1, 0.0)
    source.close()


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("reads", ["stream", "agent"])
async def test_an_app_ends_when_its_topic_is_made_again_and_its_checkpoint_is_refused(
    kafka_url: str, topic: str, tmp_path: Path, reads: str
) -> None:
    place, name = Place(kafka_url), f"again-{uuid.uuid4().hex[:8]}"
    place.topic(name=topic)
    out = place.topic()
    place.fill(topic, [b'{"v": %d}' % n for n in range(9)])

    def build() -> App:
        app = App(name, broker=kafka_url, state=str(tmp_path / "state"))
        source = KafkaSource(topic, kafka_url, topic, partition_check=1.0)
        if reads == "stream":
            app.stream(source, schema={"v": "int64"}).to(out, delivery="at_least_once")
        else:

            @app.agent(source, sink=out, name="same", delivery="at_least_once")
            async def same(ctx: sabot.AgentContext) -> Any:
                return ctx.message

        return app

    app = build()
    running = asyncio.create_task(app.run())
    await until(lambda: len(place.read(out)) == 9, patience=WAIT)
    await app.agent_runtime.trigger_checkpoint()  # the results were there before it
    made_again(place, topic, [b'{"v": %d}' % n for n in range(100, 130)])
    # The app reads on meanwhile, and may see that there is no topic before there is another one.
    with pytest.raises(SabotError, match=rf"made again while it was read|topic '{topic}' does not exist"):
        await bounded(running, WAIT)
    place.fill(topic, [b'{"v": 1}'])
    with pytest.raises(UserError, match="made again since the checkpoint"):
        await bounded(build().run(), WAIT)


@pytest.mark.slow  # half a second of a core
async def test_windows_count_the_rows_of_partitions_that_are_added_while_they_run(kafka_url: str, topic: str) -> None:
    place = Place(kafka_url)
    place.topic(name=topic)
    out = place.topic()
    app = App(f"grown-{uuid.uuid4().hex[:8]}", broker=kafka_url)
    source = KafkaSource(topic, kafka_url, topic, partition_check=0.2)
    stream = app.stream(source, schema={"ts": "int64"}, time="ts", idle="1h")
    stream.window(tumbling("10s")).aggregate(n=sabot.count()).to(out)

    def counts() -> list[int]:
        return [row["n"] for row in jsons(place.read(out))]

    async with started(app):
        place.fill(topic, [b'{"ts": %d}' % (1000 * n) for n in range(21)])
        await until(lambda: counts() == [10, 10])
        place.topic(3, name=topic)
        for partition in (1, 2):
            place.fill(topic, [b'{"ts": %d}' % (1000 * n) for n in range(20, 41)], partition=partition)
        await until(
            lambda: sum(each["input"].get("rows_in", 0) for each in app.statistics()["streams"].values()) == 63,
            patience=WAIT,
        )
        place.fill(topic, [b'{"ts": %d}' % (1000 * n) for n in range(21, 41)])  # holds event time back until here
        await until(lambda: counts() == [10, 10, 30, 30])


def test_a_batch_that_is_larger_than_the_client_takes_is_named_with_the_setting(kafka_url: str, topic: str) -> None:
    place = Place(kafka_url)
    place.topic(name=topic)
    place.fill(topic, [b"small", np.random.default_rng(0).bytes(50_000), b"small"])
    source = KafkaSource(
        topic,
        kafka_url,
        topic,
        **{"message.max.bytes": 1000, "fetch.max.bytes": 1000, "receive.message.max.bytes": 2000},
    )
    source.open(None)
    with pytest.raises(UserError, match=r"receive\.message\.max\.bytes"):
        read_on(source)
    source.close()


@pytest.mark.slow  # a second of a core, or more
async def test_the_group_of_a_stream_is_seen_by_the_brokers_own_tools(
    kafka_url: str, topic: str, tmp_path: Path
) -> None:
    """Its offsets are those of a complete checkpoint, and the figures of the app say how far behind it is."""
    place, name = Place(kafka_url), f"group-{uuid.uuid4().hex[:8]}"
    place.topic(2, name=topic)
    place.fill(topic, [b'{"v": 1}'] * 7)
    place.fill(topic, [b'{"v": 1}'] * 5, partition=1)
    app = App(name, broker=kafka_url, state=str(tmp_path / "state"), checkpoint_interval=0.1)
    app.stream(topic, schema={"v": "int64"}).to(place.topic(), delivery="at_least_once")
    client = AdminClient(place.settings)
    async with started(app):
        await until(lambda: place.committed(f"{name}-group", topic) == {0: 7, 1: 5})
        listed = client.list_consumer_groups().result().valid
        assert [each.state.name for each in listed if each.group_id == f"{name}-group"] == ["EMPTY"]
        streams = app.statistics()["streams"].values()
        lags = [each["input"]["lag"] for each in streams if "lag" in each["input"]]
        assert lags == [{f"{topic}[0]": 0, f"{topic}[1]": 0}]
