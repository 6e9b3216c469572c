"""Exactly once into a real topic: parts are whole, once, and in order, whoever dies, stalls or is refused in between."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import KafkaError, KafkaException

from tools.agent_tools import PATIENCE, within
from tools.broker import Broker, free_ports

sys.path.insert(0, str(Path(__file__).parent))

from delivery_child import ROWS, part, payloads, track_of
from integration.kafka_journals import until

from sabot import steps
from sabot._cython.arrow.batch import Batch
from sabot._cython.kafka.librdkafka import RecordProducer
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import build_records, iterate_records
from sabot.connectors.base import Delivers, KeepsToken, Token, Track
from sabot.connectors.memory import MemoryBroker, MemorySink
from sabot.errors import AppLocked, BrokerUnavailable, DataError, RowErrors, SabotError, TransientError, UserError
from sabot.kafka import KafkaSink, KafkaSource, admin, client, transactions
from tools.kafka_clients import have_ended, threads
from tools.kafka_eyes import committed, token

pytestmark = pytest.mark.kafka
CHILD = Path(__file__).with_name("delivery_child.py")


def columns(*numbers: int) -> list[pa.RecordBatch]:
    return [pa.record_batch({"n": pa.array(numbers, pa.int64())})]


class Watch:
    """Notes steps, and calls `then` before one of them, once."""

    def __init__(self, name: str = "", then: Any = None) -> None:
        self.name, self.then = name, then
        self.seen: list[tuple[str, str]] = []

    def before(self, name: str, what: str) -> None:
        self.seen.append((name, what))
        if name == self.name and self.then is not None:
            then, self.then = self.then, None
            then()

    def after(self, name: str, what: str) -> None:
        self.seen.append((f"/{name}", what))

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.fixture
def watch() -> Iterator[Any]:
    """`watch(name, then)`: a Watch of the steps of this test."""

    def make(name: str = "", then: Any = None) -> Watch:
        watcher = Watch(name, then)
        steps.watch(watcher)
        return watcher

    yield make
    steps.watch(None)


@pytest.fixture
def sinks(kafka_url: str, topic: str) -> Iterator[Any]:
    """`sinks()`: another sink of the test's topic, closed at its end."""
    made: list[KafkaSink] = []

    def make(**kafka: Any) -> KafkaSink:
        made.append(KafkaSink(topic, kafka_url, **kafka))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.mark.slow  # nine seconds of a core
def test_parts_are_seen_whole_in_order_and_in_their_steps(kafka_url: str, topic: str, sinks: Any, watch: Any) -> None:
    sink = sinks()
    assert isinstance(sink, Delivers)
    assert isinstance(sink, KeepsToken)
    assert sink.claim(track_of(topic)) is None
    noted = watch()
    sink.deliver(7, part(7))
    assert [name for name, _ in noted.seen] == [
        step for name in ("begin", "produce", "token", "commit") for step in (name, f"/{name}")
    ]
    assert {what for _, what in noted.seen} == {topic}
    assert committed(kafka_url, topic) == payloads(7)
    sink.deliver(9, [])
    sink.deliver(2**40 + 1, columns(1, 2))
    assert committed(kafka_url, topic) == [*payloads(7), b'{"n":1}', b'{"n":2}']
    sink.finish()


def test_a_part_that_is_given_again_is_there_once(kafka_url: str, topic: str, sinks: Any) -> None:
    sink = sinks()
    sink.claim(track_of(topic))
    for seq in (1, 1, 3, 1, 3):
        sink.deliver(seq, part(seq))
    again = sinks()
    assert again.claim(track_of(topic)) == Token(3, "this-one")
    again.deliver(3, part(3))
    again.deliver(4, part(4))
    assert committed(kafka_url, topic) == payloads(1, 3, 4)


def test_the_token_is_an_offset_of_the_tracks_group_with_the_incarnation(
    kafka_url: str, topic: str, sinks: Any
) -> None:
    track = Track("app", topic, "0b9e")
    sink = sinks()
    sink.claim(track)
    sink.deliver(3 << 40 | 5, part(1))
    assert token(kafka_url, f"sabot.app.{topic}.0", topic) == (3 << 40 | 5, "0b9e")
    sink.settle(3 << 40 | 9)
    assert token(kafka_url, f"sabot.app.{topic}.0", topic) == (3 << 40 | 9, "0b9e")
    sink.deliver(3 << 40 | 9, part(2))
    assert committed(kafka_url, topic) == payloads(1)
    assert sinks().claim(track) == Token(3 << 40 | 9, "0b9e")


def test_a_part_of_another_incarnation_is_not_taken_for_one_that_is_there(
    kafka_url: str, topic: str, sinks: Any
) -> None:
    sink = sinks()
    sink.claim(Track("app", topic, "older"))
    sink.deliver(9, part(9))
    assert sink.claim(Track("app", topic, "newer")) == Token(9, "older")
    sink.deliver(1, part(1))
    assert committed(kafka_url, topic) == payloads(9, 1)
    assert sink.claim(Track("app", topic, "newer")) == Token(1, "newer")


def test_tracks_of_one_topic_do_not_disturb_each_other(kafka_url: str, topic: str, sinks: Any) -> None:
    first, second = sinks(), sinks()
    first.claim(Track("app", "a", topic))
    second.claim(Track("app", "b", topic))
    first.deliver(1, part(1))
    second.deliver(5, part(5))
    first.deliver(2, part(2))
    assert sorted(committed(kafka_url, topic)) == sorted(payloads(1, 2, 5))
    assert first.claim(Track("app", "a", topic)) == Token(2, topic)
    assert second.claim(Track("app", "b", topic)) == Token(5, topic)


def test_keys_headers_timestamps_and_partitions_are_as_with_write(kafka_url: str, topic: str, sinks: Any) -> None:
    admin.create_topic(kafka_url, topic, 3)
    keys = [b"key-%d" % (n % 5) for n in range(40)]
    headers = [(("h", b"%d" % n),) if n % 3 else () for n in range(40)]
    batch = build_records([b"%d" % n for n in range(40)], keys, [1_600_000_000_000] * 40, 0, range(40), headers)
    sink = sinks()
    sink.claim(track_of(topic))
    sink.deliver(1, [batch])
    with_write = f"{topic}-written"
    admin.create_topic(kafka_url, with_write, 3)
    writer = KafkaSink(with_write, kafka_url)
    writer.open()
    writer.write(Batch(batch))
    writer.flush()
    writer.close()
    assert records(kafka_url, topic) == records(kafka_url, with_write)


def records(url: str, topic: str) -> list[tuple[Any, ...]]:
    source = KafkaSource(topic, url, topic)
    source.open(None)
    found = []
    while len(found) < 40:
        batch = source.read_batch(100, 60)
        assert batch is not None
        found += iterate_records(batch.data, topic)
    source.close()
    return sorted((each.partition, each.payload, each.key, each.headers, each.timestamp) for each in found)


def test_a_part_may_be_larger_than_the_queue_of_the_client(kafka_url: str, topic: str, sinks: Any) -> None:
    sink = sinks(**{"queue.buffering.max.messages": 1000})
    sink.claim(track_of(topic))
    sink.deliver(1, columns(*range(1500)) + columns(*range(1500, 4000)))
    assert committed(kafka_url, topic) == [b'{"n":%d}' % n for n in range(4000)]


def test_a_source_reads_parts_to_the_end_with_no_lag(kafka_url: str, topic: str, sinks: Any) -> None:
    """The marker behind each transaction takes an offset that no record stands at."""
    sink = sinks()
    sink.claim(track_of(topic))
    source = KafkaSource(topic, kafka_url, topic)
    source.open(None)
    for seq in (1, 2):
        sink.deliver(seq, part(seq))
        found: list[Any] = []
        while len(found) < ROWS:
            batch = source.read_batch(1000, 60)
            assert batch is not None
            found += iterate_records(batch.data, topic)
        assert [record.payload for record in found] == payloads(seq)
        until(
            lambda: source.read_batch(1000, 0.1) is None and source.lag() == {(topic, 0): 0}
        )  # the broker tells the end
        assert source.positions() == {(topic, 0): seq * (ROWS + 1) - 1}
    source.close()


KILLS = [f"{when} {name}" for name in ("claim", "begin", "produce", "token", "commit") for when in ("before", "after")]


@pytest.mark.slow  # a second of a core, or more
def test_a_worker_killed_at_any_step_leaves_nothing_lost_and_nothing_twice(kafka_url: str, topic: str) -> None:
    command = [sys.executable, "-P", str(CHILD), kafka_url, topic, *KILLS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == done.stderr == ""  # each was killed

    def go_on(number: int) -> tuple[int, list[bytes]]:
        name = f"{topic}-{number}"
        sink = KafkaSink(name, kafka_url)
        found = sink.claim(track_of(name))
        seq = found.seq if found is not None else 0
        for missing in range(seq + 1, 4):
            sink.deliver(missing, part(missing))
        sink.close()
        return seq, committed(kafka_url, name)

    with ThreadPoolExecutor(len(KILLS)) as pool:
        outcomes = dict(zip(KILLS, pool.map(go_on, range(len(KILLS))), strict=True))
    assert {which: seq for which, (seq, _) in outcomes.items()} == {
        which: 0 if "claim" in which else 2 if which == "after commit" else 1 for which in KILLS
    }
    assert {which for which, (_, found) in outcomes.items() if found != payloads(1, 2, 3)} == set()


@pytest.mark.slow  # a second of a core, or more
def test_a_worker_that_was_paused_is_shut_out_by_its_successor(kafka_url: str, topic: str) -> None:
    command = [sys.executable, "-P", str(CHILD), kafka_url, topic, "stopped before commit"]
    paused = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        worker = stopped_child(paused.pid)
        name = f"{topic}-0"
        assert committed(kafka_url, name, is_open=True) == payloads(1)
        sink = KafkaSink(name, kafka_url)
        assert sink.claim(track_of(name)) == Token(1, "this-one")
        sink.deliver(2, part(2))
        os.kill(worker, signal.SIGCONT)
        assert paused.communicate(timeout=60)[0] == "AppLocked\n"
        sink.deliver(3, part(3))
        assert committed(kafka_url, name) == payloads(1, 2, 3)
        sink.close()
    finally:
        os.killpg(paused.pid, signal.SIGKILL) if paused.poll() is None else None
        paused.wait()


def stopped_child(parent: int) -> int:
    """The child of `parent`, once it has stopped itself."""
    deadline = SYSTEM_CLOCK.monotonic() + 60
    while SYSTEM_CLOCK.monotonic() < deadline:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    return int(child)
        time.sleep(0.02)
    raise AssertionError("no worker stopped itself")


def test_a_fenced_worker_that_still_owns_its_app_goes_on_with_a_new_claim(
    kafka_url: str, topic: str, sinks: Any
) -> None:
    """The broker says the same to one whose transaction timed out. The other claim stands for its time-out here."""
    sink = sinks()
    sink.still_ours = lambda: True
    sink.claim(track_of(topic))
    sink.deliver(1, part(1))
    sinks().claim(track_of(topic))
    with pytest.raises(TransientError, match=topic):
        sink.deliver(2, part(2))
    with pytest.raises(UserError, match="claim"):
        sink.deliver(2, part(2))
    assert sink.claim(track_of(topic)) == Token(1, "this-one")
    sink.deliver(2, part(2))
    assert committed(kafka_url, topic) == payloads(1, 2)


def test_a_worker_without_its_app_fences_nobody(kafka_url: str, topic: str, sinks: Any) -> None:
    older, newer = sinks(), sinks()
    older.claim(track_of(topic))
    newer.claim(track_of(topic))
    older.still_ours = lambda: False
    with pytest.raises(AppLocked, match=f"another worker delivers to topic '{topic}'"):
        older.deliver(1, part(1))
    with pytest.raises(AppLocked):
        older.claim(track_of(topic))
    newer.deliver(1, part(1))
    assert committed(kafka_url, topic) == payloads(1)


def test_an_error_that_the_client_loses_on_its_way_is_asked_for_again(
    topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen once in some twenty fenced parts: `flush` raised a SystemError, "returned NULL without setting an exception"."""

    def lose(producer: RecordProducer, data: pa.RecordBatch, *_: Any) -> None:
        producer.produce(data, 0)
        with suppress(KafkaException, SystemError):
            producer.client.flush(60)
        raise SystemError("returned NULL without setting an exception")

    sink = sinks()
    sink.claim(track_of(topic))
    sinks().claim(track_of(topic))
    monkeypatch.setattr(transactions, "produce", lose)
    with pytest.raises(AppLocked):
        sink.deliver(1, part(1))
    sink.close()  # from here on it is a newcomer
    sink.claim(track_of(topic))
    with pytest.raises(TransientError, match="lost its own error"):  # nothing was fatal
        sink.deliver(1, part(1))


def test_a_record_after_a_fatal_error_fails_for_the_reason_of_that_error(
    topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client learns in a thread of its own that it is fenced, so that the next record may be the first to be told of it."""
    send = transactions.produce

    def produce_twice(producer: RecordProducer, data: pa.RecordBatch, go_on: Any) -> None:
        send(producer, data, go_on)
        with suppress(KafkaException, SystemError):
            producer.client.flush(60)
        send(producer, data, go_on)

    sink = sinks()
    sink.claim(track_of(topic))
    sinks().claim(track_of(topic))
    monkeypatch.setattr(transactions, "produce", produce_twice)
    with pytest.raises(AppLocked):
        sink.deliver(1, part(1))


@pytest.mark.slow  # the start of a broker each
@pytest.mark.parametrize("step", ["token", pytest.param("commit", marks=pytest.mark.slow)])
def test_a_broker_that_restarts_in_a_transaction_loses_and_repeats_nothing(
    own_kafka: Broker, topic: str, watch: Any, step: str
) -> None:
    def restart() -> None:
        own_kafka.stop()
        own_kafka.start()

    sink = KafkaSink(topic, own_kafka.url)
    sink.claim(track_of(topic))
    sink.deliver(1, part(1))
    watch(step, restart)
    try:
        sink.deliver(2, part(2))
    except TransientError:
        found = sink.claim(track_of(topic))
        if found == Token(1, "this-one"):
            sink.deliver(2, part(2))
    sink.deliver(3, part(3))
    sink.close()
    assert committed(own_kafka.url, topic) == payloads(1, 2, 3)


def test_an_absent_broker_is_named(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 1.0)
    address = f"127.0.0.1:{free_ports(1)[0]}"
    sink = KafkaSink(topic, f"kafka://{address}")
    with pytest.raises(BrokerUnavailable, match=address):
        sink.claim(track_of(topic))
    sink.close()


def test_a_record_that_is_too_large_leaves_nothing_and_the_track_goes_on(
    kafka_url: str, topic: str, sinks: Any
) -> None:
    admin.create_topic(kafka_url, topic, config={"max.message.bytes": "10000"})
    sink = sinks(**{"compression.type": "none", "message.max.bytes": 20_000})
    sink.claim(track_of(topic))
    with pytest.raises(RowErrors, match=topic) as caught:  # the client's own limit, before it is sent
        sink.deliver(1, [*part(1), build_records([b"1", b"x" * 30_000], None, [0, 0], 0, [0, 1])])
    assert set(caught.value.rows) == {ROWS + 1}
    assert sink.claim(track_of(topic)) is None
    with pytest.raises(DataError, match=f"{topic}.*too large"):  # the topic's
        sink.deliver(1, [*part(1), build_records([b"x" * 15_000], None, [0], 0, [0])])
    assert committed(kafka_url, topic) == []
    assert sink.claim(track_of(topic)) is None
    sink.deliver(1, part(1))
    assert committed(kafka_url, topic) == payloads(1)


def test_a_refused_part_does_not_hold_readers_back(kafka_url: str, topic: str, sinks: Any) -> None:
    """Nobody claims the track again: the transaction is aborted by the one who leaves it, not by its time-out."""
    sink = sinks(**{"message.max.bytes": 1_000_000})
    sink.claim(track_of(topic))
    many = [build_records([b"x" * 100] * 20_000, None, [0] * 20_000, 0, range(20_000))] * 10
    with pytest.raises(RowErrors):
        sink.deliver(1, [*many, build_records([b"x" * 2_000_000], None, [0], 0, [0])])
    other = sinks()
    other.open()
    other.write(Batch(build_records([b"behind"], None, [0], 0, [0])))
    other.flush()
    assert committed(kafka_url, topic) == [b"behind"]


def test_a_topic_that_was_deleted_is_named(kafka_url: str, topic: str, sinks: Any) -> None:
    sink = sinks(**{"topic.metadata.propagation.max.ms": 500, "topic.metadata.refresh.interval.ms": 500})
    sink.claim(track_of(topic))
    sink.deliver(1, part(1))
    admin.delete_topic(kafka_url, topic)
    while admin.partitions(kafka_url, topic):
        """The broker takes records for it, a moment longer."""
    with pytest.raises(UserError, match=f"topic '{topic}' is not on"):
        sink.deliver(2, part(2))
    assert sink.claim(track_of(topic)) is None  # a topic of that name is made, without the token


def test_settings_that_cannot_be_are_named(kafka_url: str, topic: str, sinks: Any) -> None:
    with pytest.raises(UserError, match=r"transaction\.timeout\.ms.*transaction\.max\.timeout\.ms"):
        sinks(**{"transaction.timeout.ms": 1_000_000_000}).claim(track_of(topic))
    with pytest.raises(UserError, match=r"transactional\.id"):
        sinks(**{"transactional.id": "mine"}).claim(track_of(topic))
    with pytest.raises(UserError, match=r"no\.such"):
        sinks(**{"no.such": 1}).claim(track_of(topic))


class Stuck:
    """In place of a call of the client: does not return until the test is over. `done`: it does its work before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, times: int, done: bool = False) -> None:
        self.over, self.inside = threading.Event(), threading.Event()
        true = getattr(transactions._Client, name)

        def call(its_own: Any, *arguments: Any) -> Any:
            nonlocal times
            times -= 1
            if times < 0 or done:
                true(its_own, *arguments)
            if times >= 0:
                self.inside.set()
                self.over.wait()

        monkeypatch.setattr(transactions._Client, name, call)


@pytest.mark.one_in(3, "it waits")
@pytest.mark.parametrize(("name", "done"), [("send_token", False), ("commit", False), ("commit", True)])
def test_a_call_that_never_returns_is_left_and_the_token_says_what_it_did(
    kafka_url: str, topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch, name: str, done: bool
) -> None:
    sink = sinks()
    sink.claim(track_of(topic))
    monkeypatch.setattr(transactions, "CALL_SECONDS", 0.3)
    monkeypatch.setattr(
        transactions, "GRACE_SECONDS", 2.0
    )  # the calls before it, which are not stuck, return in this time
    stuck = Stuck(monkeypatch, name, 1, done)
    with pytest.raises(TransientError, match="did not return"):
        sink.deliver(1, part(1))
    monkeypatch.undo()
    through = (name, done) == ("commit", True)
    assert sink.claim(track_of(topic)) == (Token(1, "this-one") if through else None)
    stuck.over.set()
    sink.deliver(1, part(1))
    sink.deliver(2, part(2))
    assert committed(kafka_url, topic) == payloads(1, 2)


def test_clients_that_never_return_are_bounded(topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEFT_CLIENTS", 2), ("CALL_SECONDS", 0.1), ("GRACE_SECONDS", 2.0), ("ANSWER_SECONDS", 0.1)):
        monkeypatch.setattr(transactions, name, value)
    monkeypatch.setattr(transactions, "TOPIC_SECONDS", 8.0)
    stuck = Stuck(monkeypatch, "committed", 9)
    sink = sinks()
    for _ in range(2):
        with pytest.raises(TransientError):
            sink.claim(track_of(topic))
    with pytest.raises(SabotError, match="2 Kafka clients never returned") as caught:
        sink.claim(track_of(topic))
    assert not isinstance(caught.value, TransientError)
    stuck.over.set()


def test_close_while_a_call_hangs_returns_and_ends_the_delivery(
    topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "CLOSE_SECONDS", 0.3)
    sink = sinks()
    sink.claim(track_of(topic))
    stuck = Stuck(monkeypatch, "send_token", 1)
    raised: list[Exception] = []

    def deliver() -> None:
        try:
            sink.deliver(1, part(1))
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=deliver)
    thread.start()
    assert stuck.inside.wait(60)
    with within(3):
        sink.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [TransientError]
    stuck.over.set()
    sink.close()


def test_faults_in_a_row_end_the_app_and_a_part_between_starts_the_count_anew(
    topic: str, sinks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "FAULTS_IN_A_ROW", 2)
    sink = sinks()
    sink.still_ours = lambda: True

    def be_fenced() -> None:
        sink.claim(track_of(topic))
        sinks().claim(track_of(topic))
        sink.settle(1)

    with pytest.raises(TransientError):
        be_fenced()
    sink.claim(track_of(topic))
    sink.deliver(2, part(2))
    with pytest.raises(TransientError):
        be_fenced()
    with pytest.raises(SabotError, match="2 times in a row") as caught:
        be_fenced()
    assert not isinstance(caught.value, TransientError)


@pytest.mark.slow  # waits five seconds
def test_many_claims_leave_no_threads(topic: str, sinks: Any) -> None:
    sink = sinks()
    sink.claim(track_of(topic))
    sink.claim(track_of(topic))
    before = threads()
    for _ in range(12):
        sink.claim(track_of(topic))
    assert have_ended(before + 11)  # a claim has some six threads, for its time
    sink.close()


def test_over_memory_it_stands_before_a_memory_sink_and_has_an_address_of_its_own() -> None:
    sink = KafkaSink("t", "memory://delivery", **{"linger.ms": 5})
    assert isinstance(sink.sink, MemorySink)
    assert (sink.address, sink.sink.address) == ("t@memory://delivery", "t")
    assert sink.claim(Track("app", "0", "i")) is None
    sink.deliver(1, columns(1))
    sink.deliver(1, columns(1))
    assert len(MemoryBroker.get("memory://delivery").records("t")) == 1
    sink.close()


def test_a_class_that_derives_from_it_has_the_last_word() -> None:
    class Counted(KafkaSink):
        batches = 0

        def write(self, batch: Batch) -> None:
            self.batches += 1
            super().write(batch)

    sink = Counted("t", "memory://derived")
    sink.open()
    sink.write(Batch(columns(1)[0]))
    assert sink.batches == len(MemoryBroker.get("memory://derived").records("t")) == 1
    sink.close()


@pytest.mark.parametrize(
    ("code", "still_ours", "expected"),
    [
        ("_FENCED", None, AppLocked),
        ("_FENCED", False, AppLocked),
        ("INVALID_PRODUCER_EPOCH", True, TransientError),
        ("PRODUCER_FENCED", False, AppLocked),
        ("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", True, UserError),
        ("GROUP_AUTHORIZATION_FAILED", True, UserError),
        ("UNKNOWN_TOPIC_OR_PART", True, UserError),
        ("_UNKNOWN_PARTITION", True, UserError),
        ("_UNSUPPORTED_FEATURE", True, UserError),
        ("MSG_SIZE_TOO_LARGE", True, DataError),
        ("INVALID_TIMESTAMP", True, DataError),
        ("INVALID_RECORD", True, DataError),
        ("_TIMED_OUT", True, TransientError),
        ("_STATE", True, TransientError),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", True, TransientError),
        ("INVALID_TXN_STATE", True, TransientError),
    ],
)
def test_each_error_of_the_client_has_its_class(code: str, still_ours: bool | None, expected: type[Exception]) -> None:
    track = transactions.KafkaDelivery("t", "kafka://localhost:1", {})
    track.still_ours = None if still_ours is None else lambda: still_ours
    assert type(track._fault(KafkaError(getattr(KafkaError, code)))) is expected
