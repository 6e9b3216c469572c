"""A real broker that is absent, goes away, refuses, forgets, or has aborted transactions: nothing is lost
silently.
"""

import asyncio
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from integration.kafka_journals import until

from sabot import App
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import Record, build_records, iterate_records
from sabot.connectors.base import Source, Track
from sabot.errors import BrokerUnavailable, DataError, RowErrors, SabotError, TransientError, UserError
from sabot.kafka import KafkaSink, KafkaSource, RecordSender, admin, reader, transactions, writer
from sabot.kafka.client import FETCHING, producer_of
from sabot.kafka.native import record_producer_of
from sabot.kafka.reader import KafkaReader
from sabot.testing import ManualClock
from tools.agent_tools import bounded, within
from tools.broker import Broker, free_ports
from tools.fault_tools import Place
from tools.kafka_clients import GivesRowsUp, GivesUp

pytestmark = pytest.mark.kafka
WAIT = 60.0


def batch(payloads: list[bytes]) -> Batch:
    rows = len(payloads)
    return Batch(build_records(payloads, None, np.zeros(rows), 0, np.arange(rows)))


def filled(url: str, topic: str, payloads: list[bytes], partitions: int = 1) -> None:
    admin.create_topic(url, topic, partitions)
    sink = KafkaSink(topic, url)
    sink.open()
    sink.write(batch(payloads))
    sink.flush()
    sink.close()


def deleted(url: str, topic: str) -> None:
    """Deletes the topic, and returns when the broker takes no more records for it, which is a moment after it has answered."""
    admin.delete_topic(url, topic)
    while admin.partitions(url, topic):
        """It is there."""


def read(source: Source, rows: int) -> list[Record]:
    found: list[Record] = []
    while len(found) < rows:
        got = source.read_batch(1000, WAIT)
        assert got is not None, f"{len(found)} of {rows} rows came"
        found += iterate_records(got.data, got.topic)
    return found


@pytest.mark.slow  # waits eight seconds; an app says so in test_agent_kafka
async def test_an_absent_broker_is_named_within_ten_seconds() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    url = f"kafka://{address}"
    with within(10):
        outcomes = await asyncio.gather(
            asyncio.to_thread(KafkaSource("t", url, "g").open, None),
            asyncio.to_thread(KafkaSink("t", url).open),
            RecordSender(url).send("t", b"1"),
            KafkaSource("t", url, "g").start(),
            return_exceptions=True,
        )
    for outcome in outcomes:
        assert isinstance(outcome, BrokerUnavailable)
        assert address in str(outcome)


def test_a_missing_source_topic_is_named_and_not_made(kafka_url: str, topic: str) -> None:
    source = KafkaSource(topic, kafka_url, "g")
    with pytest.raises(UserError, match=f"{topic}.*does not exist"):
        source.open(None)
    source.close()
    assert admin.partitions(kafka_url, topic) == 0


def test_a_missing_sink_topic_is_made(kafka_url: str, topic: str) -> None:
    filled(kafka_url, topic, [b"1"])
    assert admin.partitions(kafka_url, topic) == 1
    assert admin.topics(kafka_url)[topic] == 1
    admin.delete_topic(kafka_url, topic)
    admin.delete_topic(kafka_url, topic)


@pytest.mark.slow  # a second of a core, or more
def test_a_broker_that_goes_and_comes_back_loses_nothing_and_is_logged_once_each_way(
    own_kafka: Broker, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(own_kafka.url, topic, [b"%d" % n for n in range(100)])
    source, sink = KafkaSource(topic, own_kafka.url, topic), KafkaSink(topic, own_kafka.url)
    source.open(None)
    sink.open()
    assert len(read(source, 100)) == 100
    sink.write(batch([b"%d" % n for n in range(100, 150)]))
    with caplog.at_level(logging.WARNING, logger="sabot.kafka"):
        own_kafka.stop()
        sink.write(batch([b"%d" % n for n in range(150, 300)]))
        failed: list[BaseException] = []

        def flush() -> None:
            try:
                sink.flush()
            except BaseException as error:
                failed.append(error)

        flushing = threading.Thread(target=flush)
        flushing.start()
        while caplog.text.count("does not answer") < 2:  # each of the two notices in its own time
            source.read_batch(1000, 0.2)
        own_kafka.start()
        rest = source.positions()[(topic, 0)]
        while source.positions()[(topic, 0)] < 300:
            assert source.read_batch(1000, WAIT) is not None
        flushing.join(WAIT)
        while caplog.text.count("answers again") < 2:  # records may be here before the source's watch has asked
            source.read_batch(1000, 0.2)
    assert not flushing.is_alive()
    assert failed == []
    assert rest < 300
    for who in ("source", "sink"):
        lines = [line for line in caplog.messages if line.startswith(who)]
        assert len([line for line in lines if "does not answer" in line]) == 1
        assert len([line for line in lines if "answers again" in line]) == 1
    source.commit(source.positions())
    source.close()
    source.open(None)
    found = [record.payload for record in read(source, 300)]
    assert found == [b"%d" % n for n in range(300)]
    source.close()
    sink.close()


async def test_a_topic_that_was_deleted_is_made_again_by_the_call_behind_the_one_that_is_told(
    kafka_url: str, topic: str
) -> None:
    """Each later call was told, after half a minute, that Sabot makes no topic that it reads."""
    sender = RecordSender(kafka_url, {"topic.metadata.propagation.max.ms": 500})
    assert await sender.send(topic, b"1") == 0
    deleted(kafka_url, topic)
    with pytest.raises(UserError, match=f"topic '{topic}' is not on {kafka_url} any more"):
        await bounded(sender.send(topic, b"2"), WAIT)
    assert await bounded(sender.send(topic, b"3"), WAIT) == 0
    sender.close()


async def test_a_sender_whose_client_gave_a_record_up_asks_for_the_topic_and_makes_it_again(
    kafka_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a topic is deleted the client may report "Local: Broker handle destroyed for termination" and nothing else: an error that
    passed for one of the moment.
    """
    made: list[GivesUp] = []

    def producer(*how: Any, **settings: Any) -> GivesUp:
        made.append(GivesUp(producer_of(*how, **settings)))
        return made[-1]

    monkeypatch.setattr(writer, "producer_of", producer)
    sender = RecordSender(kafka_url)
    with pytest.raises(TransientError, match="Local: Broker handle destroyed"):
        await bounded(sender.send(topic, b"1"), WAIT)
    made[0].now = False
    assert await bounded(sender.send(topic, b"2"), WAIT) == 0
    deleted(kafka_url, topic)
    made[0].now = True
    with pytest.raises(UserError, match=f"topic '{topic}' is not on {kafka_url} any more"):
        await bounded(sender.send(topic, b"3"), WAIT)
    made[0].now = False
    assert await bounded(sender.send(topic, b"4"), WAIT) == 0
    assert len(made) == 1
    sender.close()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_sink_whose_client_gave_records_up_asks_for_the_topic(
    kafka_url: str, topic: str, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    for module in (writer, transactions):
        monkeypatch.setattr(
            module, "record_producer_of", lambda *how, **settings: GivesRowsUp(record_producer_of(*how, **settings))
        )
    sink, rows = KafkaSink(topic, kafka_url), batch([b"1"])

    def opened() -> None:
        sink.open() if delivery == "at_least_once" else sink.claim(Track("app", topic, "0b9e"))

    def written() -> None:
        sink.write(rows) if delivery == "at_least_once" else sink.deliver(1, [rows.data])

    opened()
    deleted(kafka_url, topic)
    with pytest.raises(UserError, match=f"topic '{topic}' is not on {kafka_url} any more"):
        written()
    opened()  # which makes the topic again
    with pytest.raises(TransientError, match="Local: Broker handle destroyed"):
        written()
    sink.close()


@pytest.mark.slow  # a second of a core, or more
async def test_a_send_that_waits_for_a_broker_that_is_gone_ends_when_the_sender_is_closed(
    own_kafka: Broker, topic: str
) -> None:
    sender = RecordSender(own_kafka.url)
    assert await sender.send(topic, b"1") == 0
    own_kafka.stop()
    waiting = [asyncio.ensure_future(sender.send(topic, b"2")) for _ in range(3)]
    await asyncio.sleep(0)  # they begin
    await asyncio.to_thread(sender.close)
    for outcome in await bounded(asyncio.gather(*waiting, return_exceptions=True), WAIT):
        assert isinstance(outcome, TransientError)
        assert f"topic '{topic}': the sender was closed before {own_kafka.url} acknowledged a record" in str(outcome)


def test_positions_that_retention_has_passed_are_refused_by_name(
    kafka_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(kafka_url, topic, [b"%d" % n for n in range(100)])
    client = AdminClient({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    for done in client.delete_records([TopicPartition(topic, 0, 60)]).values():
        done.result()
    source = KafkaSource(topic, kafka_url, topic)
    with pytest.raises(UserError, match=rf"{topic}\[0\]: position 10 does not exist; the log holds 60 to 100"):
        source.open({(topic, 0): 10})
    source.skip_removed()
    source.open({(topic, 0): 10})
    assert f"{topic}[0]: 50 records that were not read are missing" in caplog.text
    assert read(source, 40)[0].payload == b"60"
    with pytest.raises(UserError, match="position 101 does not exist"):
        source.open({(topic, 0): 101})
    source.open(None)
    assert source.positions() == {(topic, 0): 60}
    assert read(source, 40)[0].payload == b"60"
    source.close()


def test_aborted_records_are_not_read_and_positions_step_over_their_offsets(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic)
    producer = Producer({"bootstrap.servers": kafka_url.removeprefix("kafka://"), "transactional.id": topic})
    producer.init_transactions()
    for n, commit in enumerate([True, False, True, True, False]):
        producer.begin_transaction()
        for part in range(3):
            producer.produce(topic, b"%d-%d" % (n, part))
        producer.flush()
        if commit:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    expected = [b"%d-%d" % (n, part) for n in (0, 2, 3) for part in range(3)]
    source = KafkaSource(topic, kafka_url, topic)
    source.open(None)
    found = read(source, 9)
    assert [record.payload for record in found] == expected
    assert [record.offset for record in found] == [0, 1, 2, 8, 9, 10, 12, 13, 14]  # markers take offsets too
    until(lambda: source.read_batch(10, 0.1) is None and source.lag() == {(topic, 0): 0})  # the broker tells the end
    assert source.positions() == {(topic, 0): 15}
    source.close()
    producer.begin_transaction()  # one that stays open: its record is not there yet
    producer.produce(topic, b"open")
    producer.flush()
    source.open(None)
    assert source.backlog() == 20
    read(source, 9)
    until(
        lambda: source.read_batch(10, 0.1) is None and source.backlog() == 0
    )  # markers and aborted records at the end count as read
    assert source.positions() == {(topic, 0): 15}
    source.close()
    producer.abort_transaction()
    for rows in range(9):  # a position may point at a marker or an aborted record
        source.open({(topic, 0): found[rows].offset + 1})
        assert [record.payload for record in read(source, 8 - rows)] == expected[rows + 1 :]
        source.close()


def test_records_above_the_limit_are_named_before_anything_is_sent(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic)
    sink = KafkaSink(topic, kafka_url, **{"message.max.bytes": 10_000})
    sink.open()
    with pytest.raises(RowErrors, match=topic) as caught:
        sink.write(batch([b"1", b"x" * 10_000, b"2", b"y" * 20_000]))
    assert set(caught.value.rows) == {1, 3}
    sink.write(batch([b"1", b"2"]))
    sink.flush()
    sink.close()
    source = KafkaSource(topic, kafka_url, topic)
    source.open(None)
    assert [record.payload for record in read(source, 2)] == [b"1", b"2"]
    source.close()


def test_what_the_topic_refuses_is_named_by_write_once(kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic, config={"max.message.bytes": "2000"})
    sink = KafkaSink(topic, kafka_url, **{"compression.type": "none"})
    sink.open()
    sink.write(batch([b"1"]))
    sink.flush()
    with pytest.raises(RowErrors, match=f"{topic}.*5000 bytes are above max.message.bytes") as caught:
        sink.write(batch([b"2", b"x" * 5_000]))
    assert list(caught.value.rows) == [1]
    sink.flush()
    sink.write(batch([b"3"]))
    sink.flush()
    sink.close()
    sender = RecordSender(kafka_url)
    with pytest.raises(DataError, match="too large"):
        asyncio.run(sender.send(topic, np.random.default_rng(0).bytes(5_000)))
    sender.close()


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize(
    ("config", "timestamps", "told"),
    [
        ({"cleanup.policy": "compact"}, (1000, 1000), "no record without a key"),
        ({"message.timestamp.after.max.ms": "3600000"}, (1000, 2**42), "message.timestamp.after.max.ms"),
    ],
    ids=["no key", "far in the future"],
)
async def test_a_record_that_the_topic_will_never_take_ends_the_app_with_the_setting(
    kafka_url: str,
    topic: str,
    tmp_path: Path,
    config: dict[str, str],
    timestamps: tuple[int, ...],
    told: str,
) -> None:
    """Such an answer passed for a fault of the broker that might pass, and named no setting. With on_error="skip", or
    exactly once, it is a dead letter: test_kafka_refusals.py.
    """
    source, place = f"{topic}-in", Place(kafka_url)
    admin.create_topic(kafka_url, source, config={"message.timestamp.after.max.ms": str(2**63 - 1)})
    admin.create_topic(kafka_url, topic, config=config)
    for timestamp in timestamps:
        place.fill(source, [b'{"v": 1}'], timestamp=timestamp)
    app = App(topic, broker=kafka_url, state=str(tmp_path / "state"), checkpoint_interval=0.1)

    @app.agent(source, sink=topic, name="same", delivery="at_least_once")
    async def same(ctx: Any) -> Any:
        return ctx.message

    with pytest.raises(SabotError, match=f"topic '{topic}' refuses a record") as caught:
        await bounded(app.run())
    assert told in str(caught.value)


def test_a_full_producer_makes_the_writer_wait(kafka_url: str, topic: str) -> None:
    sink = KafkaSink(topic, kafka_url, **{"queue.buffering.max.messages": 100})
    sink.open()
    sink.write(batch([b"%d" % n for n in range(5_000)]))
    sink.flush()
    sink.close()
    source = KafkaSource(topic, kafka_url, topic)
    source.open(None)
    assert [record.payload for record in read(source, 5_000)] == [b"%d" % n for n in range(5_000)]
    source.close()


def test_a_setting_that_the_client_does_not_know_is_named(kafka_url: str, topic: str) -> None:
    for made in (KafkaSource(topic, kafka_url, "g", **{"no.such": 1}), KafkaSink(topic, kafka_url, **{"no.such": 1})):
        with pytest.raises(UserError, match=r"no\.such"):
            made.open(None) if isinstance(made, KafkaSource) else made.open()


def test_settings_reach_the_client_and_secrets_never_reach_a_log(
    kafka_url: str, topic: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.kafka.client.ANSWER_SECONDS", 1.0)
    secret = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN"}
    secret |= {"sasl.username": "me", "sasl.password": "hunter2"}
    with caplog.at_level(logging.DEBUG), pytest.raises(SabotError) as caught:
        KafkaSource(topic, kafka_url, "g", **secret).open(None)
    assert "sasl_plaintext" in caplog.text
    assert "hunter2" not in caplog.text
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow  # a second of a core, or more
def test_a_source_whose_client_was_full_goes_on_at_once(kafka_url: str, topic: str) -> None:
    """The client stops fetching at 100,000 records. It looked again a second later, of which two thirds went by with an empty queue."""
    rows = 300_000
    filled(kafka_url, topic, [b"%d" % n for n in range(rows)])
    source = KafkaSource(topic, kafka_url, topic)
    for _ in range(5):  # on a busy machine half a second may go by without a record now and then, and not each time
        source.open(None)
        read(source, 1)
        while (batch := source.read_batch(32_768, 0.5)) is not None:
            assert batch.num_rows
        reached = source.positions()
        source.close()
        if reached == {(topic, 0): rows}:
            break
    assert reached == {(topic, 0): rows}


def test_what_a_source_fetches_ahead_is_bounded_and_settings_of_the_user_win(
    kafka_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(kafka_url, topic, [b"1"])
    source = KafkaSource(topic, kafka_url, topic, **{"fetch.max.bytes": 4 << 20})
    with caplog.at_level(logging.DEBUG, logger="sabot.kafka"):
        source.open(None)
    source.close()
    settings = next(line for line in caplog.messages if "isolation.level" in line)
    for name, value in ({**FETCHING, "fetch.max.bytes": 4 << 20}).items():
        assert f"{name!r}: {value}" in settings


def test_a_topic_deleted_while_it_is_read_is_named(kafka_url: str, topic: str) -> None:
    filled(kafka_url, topic, [b"1"])
    source = KafkaSource(topic, kafka_url, topic, partition_check=0.2)
    source.open(None)
    read(source, 1)
    admin.delete_topic(kafka_url, topic)
    with pytest.raises(UserError, match=topic):
        read(source, 1)
    source.close()


def test_a_position_that_is_gone_since_the_topic_was_made_again_says_so_with_both_ids(
    kafka_url: str, topic: str
) -> None:
    """A reader that stands still during the change, as one does that backpressure holds, first hears of it by its position."""
    filled(kafka_url, topic, [b"%d" % n for n in range(9)])
    source = KafkaReader(topic, kafka_url, topic, 3600.0, {})
    source.open(None)
    before = source.topic_id()
    assert len(read(source, 9)) == 9
    deleted(kafka_url, topic)
    filled(kafka_url, topic, [b"new"])
    lost = KafkaError(KafkaError.OFFSET_OUT_OF_RANGE)
    with pytest.raises(
        UserError, match=rf"{topic} was deleted and made again while it was read: it was {re.escape(before)}"
    ):
        source._notice(lost, 0, 9)
    source.close()
    source.open(None)
    assert source.topic_id() not in ("", before)
    with pytest.raises(UserError, match=r"position 0 does not exist any more: ") as raised:
        source._notice(lost, 0, 0)
    assert "retention has removed it" in str(raised.value.hint)
    source.close()


def test_commits_that_go_on_being_refused_are_one_warning_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(reader, "SYSTEM_CLOCK", clock)
    source = KafkaReader("t", "kafka://127.0.0.1:1", "g", 30.0, {})
    refused = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
    for _ in range(25):
        source._on_commit(refused, [])
    assert [text for text in caplog.messages if "are not committed" in text] == caplog.messages[:1]
    clock.advance(61.0)
    source._on_commit(refused, [])
    assert len(caplog.messages) == 2
    assert "24 times more since the last warning" in caplog.messages[1]


@pytest.mark.slow  # a second of a core, or more
def test_the_client_is_loaded_by_the_first_kafka_address_only() -> None:
    program = """
import sys
from sabot.kafka import KafkaSource, KafkaSink, RecordSender, open_source
KafkaSource("t", "memory://", "g").open(None); KafkaSink("t", "memory://").open(); RecordSender("memory://")
assert "confluent_kafka" not in sys.modules
KafkaSource("t", "kafka://localhost:1", "g")
assert "confluent_kafka" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])
