"""Records from librdkafka into columns, on the broker that librdkafka itself can play: no Java, and faults of our own."""

import ctypes
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition, cimpl

from sabot._cython.kafka.librdkafka import PLUGINS, RecordQueue, load_client
from sabot.codecs.records import RECORD_SCHEMA, header_rows
from sabot.errors import UserError
from sabot.kafka import KafkaSource
from tools.kafka_clients import LINUX, MIB, grown, have_ended, threads

WAIT = 60.0  # seconds; only a test that fails waits so long

load_client(cimpl.__file__)


@pytest.fixture(scope="module")
def producer() -> Iterator[Any]:
    """Its client plays the broker for as long as it lives."""
    made = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ours", "log_level": 2, "linger.ms": 0})
    yield made
    made.flush(WAIT)


@pytest.fixture(scope="module")
def broker(producer: Any) -> str:
    node = next(iter(producer.list_topics(timeout=WAIT).brokers.values()))
    return f"{node.host}:{node.port}"


def queue_of(broker: str, *, headers: bool = True, **settings: Any) -> RecordQueue:
    conf = {"bootstrap.servers": broker, "group.id": "g", "log_level": 2, "fetch.wait.max.ms": 10, **settings}
    return RecordQueue(Consumer, RECORD_SCHEMA, conf, headers=headers)


def reading(broker: str, topic: str, partitions: int = 1, *, headers: bool = True, **settings: Any) -> RecordQueue:
    queue = queue_of(broker, headers=headers, **settings)
    queue.follow(topic, range(partitions))
    queue.client.assign([TopicPartition(topic, index, 0) for index in range(partitions)])
    return queue


def closed(queue: RecordQueue) -> None:
    queue.close()
    queue.client.close()


def taken(queue: RecordQueue, rows: int, most: int = 1000) -> tuple[list[dict[str, Any]], dict[int, int]]:
    found: list[dict[str, Any]] = []
    behind: dict[int, int] = {}
    while len(found) < rows:
        data, covered, events = queue.read(min(most, rows - len(found)), WAIT)
        assert data is not None, (found, events)
        data.validate(full=True)
        assert 0 < data.num_rows <= most
        found += data.to_pylist()
        behind.update(covered)
    return found, behind


def test_records_become_columns_with_their_nulls_and_the_offsets_behind_them(producer: Any, broker: str) -> None:
    sent = [
        (0, b"a", None, None),
        (0, b"", b"", [("n", b"1"), ("n", None), ("ü", b"")]),
        (1, None, b"key", None),
        (0, bytes(100_000), b"k", [("x", b"\0")]),
    ]
    for partition, payload, key, headers in sent:
        producer.produce("columns", payload, key, partition, headers=headers, timestamp=1_700_000_000_000)
    assert producer.flush(WAIT) == 0
    for most in (1, 2, 100):
        queue = reading(broker, "columns", 2)
        found, behind = taken(queue, 4, most)
        found.sort(key=lambda row: (row["partition"], row["offset"]))
        assert [(row["partition"], row["offset"]) for row in found] == [(0, 0), (0, 1), (0, 2), (1, 0)]
        assert [row["payload"] for row in found] == [b"a", b"", bytes(100_000), None]
        assert [row["key"] for row in found] == [None, b"", b"k", b"key"]
        assert {row["timestamp"] for row in found} == {1_700_000_000_000}
        headers = [row["headers"] and [tuple(pair.values()) for pair in row["headers"]] for row in found]
        assert headers == [None, [("n", b"1"), ("n", None), ("ü", b"")], [("x", b"\0")], None]
        assert behind == {0: 3, 1: 1}
        assert queue.client.poll(0) is None
        closed(queue)


def test_what_was_fetched_of_a_partition_that_is_held_comes_later_and_is_not_fetched_again(
    producer: Any, broker: str
) -> None:
    for n in range(2000):
        producer.produce("held", b"%d" % n, partition=n % 2)
    assert producer.flush(WAIT) == 0
    seen: list[dict[str, Any]] = []
    told = {"statistics.interval.ms": 20, "stats_cb": lambda text: seen.append(json.loads(text))}
    queue = reading(broker, "held", 2, **told)

    def figures(name: str) -> list[int]:
        """Of both partitions, as of now."""
        seen.clear()
        ends_at = time.monotonic() + WAIT
        while time.monotonic() < ends_at and not (seen and "held" in seen[-1]["topics"]):
            queue.client.poll(0.1)
        partitions = seen[-1]["topics"]["held"]["partitions"]
        return [partitions[each][name] for each in ("0", "1")]

    first, _ = taken(queue, 100)
    while sum(figures("rxmsgs")) < 2000:
        """All of it is fetched."""
    for held in ({0}, {0, 1}, {1}, set(), {0}):
        assert queue.hold(held) == []
        data, _, _ = queue.read(100, 0)
        found = [] if data is None else data.to_pylist()
        assert len(found) == (0 if len(held) == 2 else 100)
        assert {row["partition"] for row in found} <= {0, 1} - held
        first += found
    queue.hold([])
    rows, behind = taken(queue, 2000 - len(first))
    assert behind == {0: 1000, 1: 1000}
    for partition in (0, 1):
        payloads = [int(row["payload"]) for row in [*first, *rows] if row["partition"] == partition]
        assert payloads == list(range(partition, 2000, 2))
    assert (figures("rxmsgs"), figures("rx_ver_drops")) == ([1000, 1000], [0, 0])
    closed(queue)


def test_a_batch_without_headers_has_a_column_of_nulls(producer: Any, broker: str) -> None:
    producer.produce("bare", b"1", partition=0)
    assert producer.flush(WAIT) == 0
    queue = reading(broker, "bare")
    data, _, _ = queue.read(10, WAIT)
    assert data is not None
    assert data.column("headers").null_count == 1
    assert header_rows(data.column("headers")) == [()]
    closed(queue)
    assert data.column("payload").to_pylist() == [b"1"]  # the columns have memory of their own


def test_headers_that_were_left_out_are_there_for_single_records_until_the_next_read(
    producer: Any, broker: str
) -> None:
    for number in range(20):
        headers = [("n", str(number).encode())] if number % 2 else None
        producer.produce("left", b"p", None, number % 2, headers=headers)
    assert producer.flush(WAIT) == 0
    queue = reading(broker, "left", 2, headers=False)
    rows, batches = 0, 0
    while rows < 20:
        data, _, _ = queue.read(7, WAIT)
        assert data is not None
        assert data.column("headers").null_count == data.num_rows
        places = [data.column(name).to_numpy() for name in ("partition", "offset")]
        for asked in ([], [0], [data.num_rows - 1], range(0, data.num_rows, 2), [data.num_rows - 1, 0, 0]):
            chosen = np.array(asked, np.int64)
            found = queue.headers(*(place[chosen] for place in places))
            found.validate(full=True)
            wanted = [
                [("n", b"%d" % (2 * at + 1))] if odd else []
                for odd, at in zip(*(place[chosen] for place in places), strict=True)
            ]
            assert [list(pairs) for pairs in header_rows(found)] == wanted
        rows, batches, last = rows + data.num_rows, batches + 1, places
    assert batches > 2
    assert queue.headers(np.array([0], np.int32), np.array([99])).null_count == 1  # it was never read
    with pytest.raises(ValueError, match="1 partitions, and 2 offsets"):
        queue.headers(np.array([0], np.int32), np.array([1, 2]))
    assert queue.read(7, 0.0)[0] is None
    assert queue.headers(*last).null_count == len(last[0])
    closed(queue)
    assert queue.headers(*last).null_count == len(last[0])


def test_the_name_of_a_header_that_is_no_text_is_read_with_the_sign_for_it(broker: str) -> None:
    """Kafka's clients write UTF-8; librdkafka sends any bytes, and Arrow's strings must be valid."""
    library = ctypes.CDLL(cimpl.__file__)  # its functions are those of librdkafka too
    for name, result in (("conf_new", ctypes.c_void_p), ("new", ctypes.c_void_p), ("headers_new", ctypes.c_void_p)):
        getattr(library, f"rd_kafka_{name}").restype = result
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    assert library.rd_kafka_conf_set(conf, b"bootstrap.servers", broker.encode(), None, 0) == 0
    client = ctypes.c_void_p(library.rd_kafka_new(0, conf, None, 0))
    headers = ctypes.c_void_p(library.rd_kafka_headers_new(1))
    name = b"a\xff\xc3b\xe2\x82\xac"
    library.rd_kafka_header_add(headers, name, ctypes.c_ssize_t(len(name)), b"v", ctypes.c_ssize_t(1))
    parts = (1, b"named", 3, ctypes.c_int32(0), 4, b"p", ctypes.c_size_t(1), 10, headers, 0)  # RD_KAFKA_V_…
    assert library.rd_kafka_producev(client, *parts) == 0
    assert library.rd_kafka_flush(client, int(WAIT * 1000)) == 0
    library.rd_kafka_destroy(client)
    queue = reading(broker, "named")
    found, _ = taken(queue, 1)
    assert found[0]["headers"] == [{"name": "a\ufffd\ufffdb€", "value": b"v"}]
    closed(queue)


def test_the_end_of_a_partition_comes_as_an_event_with_its_offset(producer: Any, broker: str) -> None:
    producer.produce("ends", b"1", partition=0)
    assert producer.flush(WAIT) == 0
    queue = reading(broker, "ends", **{"enable.partition.eof": True})
    rows, seen = 0, []
    while not seen:
        data, _, events = queue.read(10, WAIT)
        rows += 0 if data is None else data.num_rows
        seen += events
    code, text, partition, offset = seen[0]
    assert (rows, code, partition, offset) == (1, KafkaError._PARTITION_EOF, 0, 1)
    assert "end of partition" in text
    closed(queue)


def test_what_is_on_its_way_when_a_partition_is_held_is_not_fetched_again(producer: Any, broker: str) -> None:
    rows = 12_000
    for n in range(rows):
        producer.produce("on-its-way", b"%d" % n, partition=n % 2)
    assert producer.flush(WAIT) == 0
    told: list[dict[str, Any]] = []
    settings = {"statistics.interval.ms": 20, "stats_cb": lambda text: told.append(json.loads(text))}
    settings |= {"fetch.message.max.bytes": 1000, "queued.min.messages": 300, "fetch.queue.backoff.ms": 1}
    queue = reading(broker, "on-its-way", 2, **settings)
    found: list[dict[str, Any]] = []
    turn = 0
    while len(found) < rows:
        came = len(found)
        held = (set[int](), {0}, {1}, {0, 1}, {1}, {0})[turn % 6]
        turn += 1
        assert queue.hold(held) == []
        data, _, _ = queue.read(200, 0.02)
        found += [] if data is None else data.to_pylist()
        assert {row["partition"] for row in found[came:]} <= {0, 1} - held
    for partition in (0, 1):
        payloads = [int(row["payload"]) for row in found if row["partition"] == partition]
        assert payloads == list(range(partition, rows, 2))
    told.clear()
    ends_at = time.monotonic() + WAIT
    while time.monotonic() < ends_at and not told:
        queue.client.poll(0.1)
    partitions = told[-1]["topics"]["on-its-way"]["partitions"]
    assert [partitions[each]["rxmsgs"] for each in ("0", "1")] == [rows // 2] * 2
    closed(queue)


def test_of_many_partitions_that_are_held_all_but_two_are_to_be_paused(producer: Any, broker: str) -> None:
    """The memory of those two is as much as that of all that are read."""
    for n in range(400):
        producer.produce("many-held", b"%d" % n, partition=n % 4)
    assert producer.flush(WAIT) == 0
    queue = reading(broker, "many-held", 4)
    assert queue.hold([0, 1, 2]) == [2]
    assert queue.hold([1, 2, 3]) == []  # 0 goes on
    assert queue.hold([0, 1, 2, 3]) == [0]
    assert queue.hold([]) == []
    found, behind = taken(queue, 400)
    assert behind == dict.fromkeys(range(4), 100)
    assert sorted(int(row["payload"]) for row in found) == list(range(400))
    closed(queue)


def test_a_paused_partition_gives_nothing_and_goes_on_where_it_was(producer: Any, broker: str) -> None:
    for number in range(20):
        producer.produce("paused", b"%d" % number, partition=0)
    assert producer.flush(WAIT) == 0
    queue = reading(broker, "paused")
    before, _ = taken(queue, 7)
    queue.client.pause([TopicPartition("paused", 0)])
    assert queue.read(100, 0)[0] is None  # what had been fetched is thrown away
    queue.client.resume([TopicPartition("paused", 0)])
    after, behind = taken(queue, 13)
    assert [row["payload"] for row in before + after] == [b"%d" % number for number in range(20)]
    assert behind == {0: 20}
    closed(queue)


def test_close_ends_a_read_that_waits_in_another_thread(broker: str) -> None:
    queue = reading(broker, "nothing")
    outcome: list[Any] = []
    entered = threading.Event()

    def read() -> None:
        entered.set()
        outcome.append(queue.read(10, 600.0))

    reader = threading.Thread(target=read)
    reader.start()
    assert entered.wait(WAIT)
    closed(queue)
    reader.join(WAIT)
    assert not reader.is_alive()
    assert outcome[0][0] is None
    assert queue.read(10, 600.0) == (None, {}, [])
    queue.close()
    with pytest.raises(UserError, match=r"nothing\[0\]: the Kafka client has no queue of this partition"):
        queue.follow("nothing", [0])


def test_close_ends_a_read_that_waits_whatever_was_read_just_before(broker: str) -> None:
    """What wakes a reader woke one call of the client, also one that does not wait: the next one waited for its whole time."""
    longest = 0.0
    for least in range(400):
        queue = reading(broker, "nothing")
        entered = threading.Event()
        took: list[float] = []

        def read(queue: RecordQueue = queue, entered: threading.Event = entered, took: list[float] = took) -> None:
            entered.set()
            for _ in range(50):
                queue.read(1, 0.0)
            began = time.monotonic()
            queue.read(10, 20.0)
            took.append(time.monotonic() - began)

        reader = threading.Thread(target=read)
        reader.start()
        assert entered.wait(WAIT)
        for _ in range(least):
            pass
        closed(queue)
        reader.join(WAIT)
        longest = max(longest, *took)
        if longest > 19.0:
            break
    assert longest < 19.0


def test_the_clients_callbacks_run_in_the_thread_that_reads_the_source(producer: Any, broker: str) -> None:
    """The queue of records has none of them: they need the Python client, which `read_batch` polls."""
    producer.produce("called", b"1", partition=0)
    assert producer.flush(WAIT) == 0
    called: list[int] = []
    settings = {"statistics.interval.ms": 20, "stats_cb": lambda _: called.append(threading.get_ident())}
    source = KafkaSource("called", f"kafka://{broker}", **settings)
    source.open(None)
    rows = 0
    while rows < 1 or not called:
        batch = source.read_batch(10, 0.1)
        rows += 0 if batch is None else batch.num_rows
    assert set(called) == {threading.get_ident()}
    assert rows == 1
    source.close()


@pytest.mark.slow  # half a second of a core
@LINUX
def test_many_consumers_that_are_opened_and_closed_leave_no_memory_and_no_thread(producer: Any, broker: str) -> None:
    """Each is closed with records of 2 MiB in its queue, and some that were read."""
    for _ in range(64):
        producer.produce("many", bytes(32 << 10), partition=0)
    assert producer.flush(WAIT) == 0

    def once() -> None:
        queue = reading(broker, "many")
        taken(queue, 1)
        closed(queue)

    for _ in range(5):
        once()
    running = threads()
    assert grown(lambda: [once() for _ in range(20)]) < 16 * MIB
    assert have_ended(running)


@LINUX
def test_a_partition_that_is_followed_again_takes_no_memory(broker: str) -> None:
    queue = queue_of(broker)
    queue.follow("again", [0] * 1000)
    many = [0] * 300_000  # 2.4 MB of the process themselves
    assert grown(lambda: queue.follow("again", many)) < 8 * MIB
    closed(queue)


@LINUX
def test_a_queue_in_a_cycle_is_freed_by_the_collector_before_its_client(broker: str) -> None:
    """A source is in such a cycle: its client knows its methods. The client ends its threads when it is freed."""
    gc.collect()
    before = threads()
    held: list[RecordQueue] = []
    held.append(reading(broker, "nothing", error_cb=held.append))
    del held
    gc.collect()
    assert have_ended(before)


def test_plugins_of_the_users_stay(broker: str) -> None:
    given: list[dict[str, Any]] = []
    make: Callable[[dict[str, Any]], Any] = lambda conf: given.append(conf)  # noqa: E731
    with pytest.raises(UserError, match="has not loaded sabot's plugin"):
        RecordQueue(make, RECORD_SCHEMA, {PLUGINS: "/opt/watch", "group.id": "g"})
    with pytest.raises(UserError, match="has not loaded sabot's plugin"):
        RecordQueue(make, RECORD_SCHEMA, {})
    assert given[0]["group.id"] == "g"
    assert given[0][PLUGINS].startswith("/opt/watch;/")
    assert given[1][PLUGINS] == given[0][PLUGINS].removeprefix("/opt/watch;")


def test_a_library_without_librdkafka_is_named_with_what_to_install() -> None:
    import pyarrow.lib

    with pytest.raises(
        UserError, match=r"librdkafka is not found through .*lib.*: no rd_kafka_version_str in it"
    ) as caught:
        load_client(pyarrow.lib.__file__)
    assert "pip install" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"/nowhere\.so: it is not loaded"):
        load_client("/nowhere.so")
    assert load_client(cimpl.__file__)[0].isdigit()  # what was found before is still there
