"""Records from columns to librdkafka, on the broker that librdkafka itself can play: no Java, and a client that is purged at will."""

import gc
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition, cimpl

from sabot._cython.kafka.librdkafka import RecordProducer, RecordQueue, load_client, rows_above
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records
from sabot.errors import UserError
from sabot.kafka.writer import produce, refused_by
from tools.kafka_clients import LINUX, MIB, grown, have_ended, threads

WAIT = 60.0  # seconds; only a test that fails waits so long
STAMP = 1_700_000_000_000  # ms
PARTITIONS = 4  # which the broker gives to a topic of its own accord
FAULTY = {"bootstrap.servers": "127.0.0.1:1"}  # where nobody answers
topics = (f"produced-{number}" for number in itertools.count())

load_client(cimpl.__file__)


@pytest.fixture(scope="module")
def client() -> Any:
    """It plays the broker for as long as it lives."""
    settings = {"test.mock.num.brokers": 1, "bootstrap.servers": "ours", "log_level": 2, "linger.ms": 0}
    return Producer(settings)


@pytest.fixture(scope="module")
def broker(client: Any) -> str:
    node = next(iter(client.list_topics(timeout=WAIT).brokers.values()))
    return f"{node.host}:{node.port}"


def producer_to(topic: str, partitions: int = PARTITIONS, **settings: Any) -> RecordProducer:
    conf = {"log_level": 0, "linger.ms": 0, "partitioner": "murmur2_random", **settings}
    return RecordProducer(Producer, topic, partitions, conf)


def records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
) -> pa.RecordBatch:
    return build_records(payloads, keys, [STAMP] * len(payloads), 0, range(len(payloads)), headers)


def go_on() -> None:
    """Nothing ends the wait for room."""


def sent(producer: RecordProducer, data: pa.RecordBatch) -> None:
    produce(producer, data, go_on)
    assert producer.client.flush(WAIT) == 0
    assert producer.refused() is None


def read(broker: str, topic: str, rows: int) -> list[dict[str, Any]]:
    """By partition and offset."""
    queue = RecordQueue(Consumer, RECORD_SCHEMA, {"bootstrap.servers": broker, "group.id": "g", "log_level": 2})
    queue.follow(topic, range(PARTITIONS))
    queue.client.assign([TopicPartition(topic, index, 0) for index in range(PARTITIONS)])
    found: list[dict[str, Any]] = []
    while len(found) < rows:
        data, _, events = queue.read(1000, WAIT)
        assert data is not None, (found, events)
        found += data.to_pylist()
    queue.close()
    queue.client.close()
    return sorted(found, key=lambda row: (row["partition"], row["offset"]))


def pairs_of(row: dict[str, Any]) -> Headers:
    return tuple((pair["name"], pair["value"]) for pair in row["headers"] or ())


def murmur2(data: bytes) -> int:
    """The hash by which Kafka's Java clients choose a partition, word by word as the specification of murmur2 says."""
    mask, factor = 0xFFFFFFFF, 0x5BD1E995
    mixed = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * factor & mask
        word = (word ^ word >> 24) * factor & mask
        mixed = (mixed * factor & mask) ^ word
    if whole < len(data):
        mixed = (mixed ^ int.from_bytes(data[whole:], "little")) * factor & mask
    mixed = (mixed ^ mixed >> 13) * factor & mask
    return mixed ^ mixed >> 15


def test_the_twin_of_the_hash_is_that_of_kafkas_own_tests() -> None:
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    assert {key: murmur2(key) for key in known} == {key: value & 0xFFFFFFFF for key, value in known.items()}


def test_a_key_goes_to_the_partition_that_the_java_clients_choose(broker: str) -> None:
    keys = [b"k%d" % number * (number % 7 + 1) for number in range(300)] + [b"", b"\x80\xff" * 9]
    topic = next(topics)
    sent(producer_to(topic, **{"bootstrap.servers": broker}), records([b"p"] * len(keys), keys))
    chosen = {row["key"]: row["partition"] for row in read(broker, topic, len(keys))}
    assert chosen == {key: (murmur2(key) & 0x7FFFFFFF) % PARTITIONS for key in keys}


def test_columns_become_records_with_their_nulls_headers_and_timestamps(broker: str) -> None:
    payloads = [b"a", b"", None, bytes(100_000)]
    headers: list[Headers] = [(), (("n", b"1"), ("n", None), ("ü", b"")), (), (("", b"\0"),)]
    topic = next(topics)
    data = records(payloads, [b"k"] * 3 + [b""], headers)
    stamps = pa.array([STAMP, STAMP + 1, None, STAMP + 3], pa.int64())
    sent(producer_to(topic, **{"bootstrap.servers": broker}), data.set_column(2, RECORD_SCHEMA.field(2), stamps))
    found = read(broker, topic, 4)
    found.sort(key=lambda row: payloads.index(row["payload"]))
    assert [(row["payload"], row["key"]) for row in found] == list(zip(payloads, [b"k"] * 3 + [b""], strict=True))
    assert [pairs_of(row) for row in found] == headers
    assert [row["timestamp"] for row in found if row["payload"] is not None] == [STAMP, STAMP + 1, STAMP + 3]
    (late,) = (row["timestamp"] for row in found if row["payload"] is None)
    assert late > STAMP + 3  # it has the time at which it was sent


@pytest.mark.parametrize("partitions", [PARTITIONS, 1])
def test_the_rows_of_a_partition_stay_in_the_order_of_the_batch(broker: str, partitions: int) -> None:
    """Grouped by a hash that is not the client's they would not: a partition has many keys here, of all lengths and bytes."""
    keys = [bytes([(number * 37 + at) % 256 for at in range(number % 13)]) for number in range(200)]
    count = 20_000
    topic = next(topics)
    data = records([b"%05d" % number for number in range(count)], [keys[number * 7 % 200] for number in range(count)])
    sent(producer_to(topic, partitions, **{"bootstrap.servers": broker, "queue.buffering.max.messages": 7_000}), data)
    found = read(broker, topic, count)
    assert {row["partition"] for row in found} == set(range(PARTITIONS))
    assert found == sorted(found, key=lambda row: (row["partition"], row["payload"]))


def test_the_rows_of_a_key_stay_in_order_when_the_topic_has_grown(broker: str) -> None:
    topic = next(topics)
    data = records([b"%04d" % number for number in range(2000)], [b"%d" % (number % 50) for number in range(2000)])
    sent(producer_to(topic, 3, **{"bootstrap.servers": broker}), data)
    found = read(broker, topic, 2000)
    assert found != sorted(found, key=lambda row: (row["partition"], row["payload"])), "it is no other grouping"
    of_keys: dict[bytes, list[bytes]] = {}
    for row in found:
        of_keys.setdefault(row["key"], []).append(row["payload"])
    assert len(of_keys) == 50
    assert all(payloads == sorted(payloads) for payloads in of_keys.values())


ROWS: list[tuple[bytes | None, bytes | None, Headers]] = [
    (b"0", None, ()),
    (None, b"k", (("a", b"1"), ("b", None))),
    (b"", b"kk", ()),
    (b"three", b"", (("ü", b""),)),
    (b"4", b"kkkk", (("c", b"2"), ("c", b"3"), ("d", b"4"))),
]
SLICES = [(start, end - start) for start, end in itertools.combinations(range(len(ROWS) + 1), 2)] + [(2, 0)]


def all_rows() -> pa.RecordBatch:
    return records([row[0] for row in ROWS], [row[1] for row in ROWS], [row[2] for row in ROWS])


def test_a_slice_of_a_batch_is_sent_as_its_rows_are(broker: str) -> None:
    topic = next(topics)
    in_order = producer_to(topic, 1, **{"bootstrap.servers": broker})
    by_partition = producer_to(topic, **{"bootstrap.servers": broker})
    wanted: list[tuple[bytes | None, bytes | None, Headers]] = []
    for start, length in SLICES:
        for taken in range(length + 1):
            assert in_order.produce(all_rows().slice(start, length), taken) == (length, None)
            wanted += ROWS[start + taken : start + length]
        assert by_partition.produce(all_rows().slice(start, length), 0) == (length, None)
        wanted += ROWS[start : start + length]
    assert in_order.client.flush(WAIT) == by_partition.client.flush(WAIT) == 0
    found = [(row["payload"], row["key"], pairs_of(row)) for row in read(broker, topic, len(wanted))]
    assert sorted(found, key=repr) == sorted(wanted, key=repr)


def test_the_rows_above_a_size_are_those_that_a_loop_finds() -> None:
    sizes = [
        len(payload or b"")
        + len(key or b"")
        + sum(len(name.encode()) + len(value or b"") + 10 for name, value in pairs)
        for payload, key, pairs in ROWS
    ]
    assert sorted(sizes) == [1, 2, 17, 24, 41]
    for start, length in SLICES:
        for limit in (0, 1, 2, 17, 23, 24, 40, 41):
            wanted = {row: size for row, size in enumerate(sizes[start : start + length]) if size > limit}
            assert rows_above(all_rows().slice(start, length), limit) == wanted
    with pytest.raises(TypeError, match="not have the columns of records"):
        rows_above(pa.record_batch({"n": [1]}), 0)


def test_a_full_queue_takes_what_it_can_and_goes_on_where_it_stopped(broker: str) -> None:
    """The queue has room again although nothing polls the client: what is delivered is forgotten at once."""
    topic = next(topics)
    producer = producer_to(topic, **{"bootstrap.servers": broker, "queue.buffering.max.messages": 100, "linger.ms": 5})
    data = records([b"%d" % number for number in range(1000)], [b"one"] * 1000)
    taken = 0
    while taken < 1000:
        taken, fault = producer.produce(data, taken)
        assert fault is None
        producer.wait(WAIT)
    assert producer.client.flush(WAIT) == 0
    assert [row["payload"] for row in read(broker, topic, 1000)] == data.column(0).to_pylist()


def test_a_wait_ends_with_the_time_where_nothing_is_delivered() -> None:
    producer = producer_to("nowhere", **FAULTY, **{"queue.buffering.max.messages": 2})
    assert producer.produce(records([b"1", b"2", b"3"]), 0) == (2, None)
    producer.wait(0.01)
    assert producer.produce(records([b"1", b"2", b"3"]), 2) == (2, None)
    producer.client.purge()


def test_records_that_are_given_up_are_counted_and_the_first_is_named() -> None:
    producer = producer_to("nowhere", 1, **FAULTY)
    key = bytes(range(100))
    assert producer.produce(records([b"payload", None, b"3"], [key, None, b"k"]), 0) == (3, None)
    assert producer.refused() is None
    producer.client.purge()
    assert producer.client.flush(WAIT) == 0  # it serves the purge, and calls nothing of Python's
    refused = refused_by(producer)
    assert refused is not None
    assert (refused.count, refused.partition, refused.size) == (3, -1, 107)
    assert refused.error.code() == KafkaError._PURGE_QUEUE
    assert str(refused) == f"a record of 107 bytes with key {key[:64]!r}; and 2 more records of this sink"
    assert producer.refused() is None


def test_a_record_above_the_clients_limit_stops_the_batch_in_front_of_it(broker: str) -> None:
    topic = next(topics)
    producer = producer_to(topic, **{"bootstrap.servers": broker, "message.max.bytes": 1000})
    data = records([b"1", b"x" * 2000, b"3"], None, [(("n", b"1"),)] * 3)
    taken, fault = producer.produce(data, 0)
    assert taken == 1
    assert fault is not None
    assert fault[0] == KafkaError.MSG_SIZE_TOO_LARGE
    with pytest.raises(KafkaException, match="too large"):
        produce(producer, data, go_on)
    assert producer.produce(data, 2) == (3, None)
    assert producer.client.flush(WAIT) == 0
    assert sorted(row["payload"] for row in read(broker, topic, 3)) == [b"1", b"1", b"3"]


def test_the_clients_callbacks_run_in_the_thread_that_polls(broker: str) -> None:
    called: list[int] = []
    settings = {"statistics.interval.ms": 20, "stats_cb": lambda _: called.append(threading.get_ident())}
    producer = producer_to(next(topics), **{"bootstrap.servers": broker}, **settings)
    while not called:
        produce(producer, records([b"1"]), go_on)
        producer.client.poll(0.05)
    assert set(called) == {threading.get_ident()}
    assert producer.client.flush(WAIT) == 0
    assert producer.refused() is None


def test_batches_of_other_columns_and_names_that_no_topic_has_are_refused() -> None:
    producer = producer_to("nowhere", **FAULTY)
    with pytest.raises(TypeError, match="not have the columns of records"):
        producer.produce(pa.record_batch({"n": [1]}), 0)
    with pytest.raises(ValueError, match="already taken is negative: -1"):
        producer.produce(records([b"1"]), -1)
    assert producer.produce(records([b"1"]), 5) == (5, None)
    with pytest.raises(UserError, match=r"refuses the topic 'xxx.*Invalid argument"):
        producer_to("x" * 600, **FAULTY)
    with pytest.raises(UserError, match="has not loaded sabot's plugin"):
        RecordProducer(lambda conf: None, "t", 1, {})


@LINUX
def test_many_producers_that_are_dropped_leave_no_memory_and_no_thread() -> None:
    """Each is dropped with records of 2 MiB in its queue."""
    data = records([bytes(32 << 10)] * 64)

    def once() -> None:
        producer = producer_to("nowhere", **FAULTY)
        assert producer.produce(data, 0) == (64, None)

    for _ in range(5):
        once()
    running = threads()
    assert grown(lambda: [once() for _ in range(20)]) < 16 * MIB
    assert have_ended(running)


@LINUX
def test_a_producer_in_a_cycle_is_freed_by_the_collector_before_its_client() -> None:
    gc.collect()
    before = threads()
    held: list[RecordProducer] = []
    held.append(producer_to("nowhere", **FAULTY, error_cb=held.append))
    del held
    gc.collect()
    assert have_ended(before)
