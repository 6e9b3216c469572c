"""The journal in a topic whose broker goes or is killed, whose topic is deleted, or whose files were damaged on the broker's disk."""

import asyncio
import os
import random
import signal
import socket
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from integration.kafka_journals import WAIT, jobs_of, until, written

from sabot.clock import SYSTEM_CLOCK
from sabot.errors import CorruptJournal, JournalFailed, TransientError
from sabot.journal import Letter
from sabot.journal.entries import Begin, Intent
from sabot.journal.kafka import KafkaInbox, KafkaJournal, KafkaJournalReader
from sabot.journal.replica import FRAMES, LETTERS
from sabot.kafka import admin, log
from sabot.kafka.client import NoSuchTopic, link_of, producer_of
from tools.broker import Broker
from tools.kafka_clients import GivesUp

pytestmark = [pytest.mark.kafka, pytest.mark.slow]  # brokers that are killed, and disks that are damaged


@pytest.mark.slow  # a second of a core, or more
def test_a_topic_that_is_deleted_or_made_anew_ends_the_journal(own_kafka: Broker, topic: str) -> None:
    for number, anew in enumerate((False, True)):
        name = f"{topic}-{number}"
        journal = KafkaJournal(f"{own_kafka.url}/{name}")
        written(journal, Begin("a", 0))
        admin.delete_topic(own_kafka.url, name)
        while admin.partitions(own_kafka.url, name):  # the broker takes records for it, a moment longer
            time.sleep(0.05)
        if anew:
            admin.create_topic(own_kafka.url, name, 2, config={"retention.ms": "-1"})
        with pytest.raises(
            JournalFailed, match="deleted" if not anew else "has lost records, or was made anew|deleted"
        ):
            journal.wait_durable(journal.append(Begin("b", 0)), WAIT)
        with pytest.raises(JournalFailed):
            journal.append(Begin("c", 0))
        assert journal.claim_left() == 0.0
        journal.close()


def test_an_append_that_the_client_gave_up_says_what_is_wrong_with_the_topic(
    kafka: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "producer_of", lambda *how, **settings: GivesUp(producer_of(*how, **settings)))
    appender = log.TopicAppender(link_of(kafka.url, "journal"), {}, topic, patience_s=WAIT)
    with pytest.raises(NoSuchTopic, match="does not exist"):
        appender.append(0, [b"record"])
    admin.create_topic(kafka.url, topic, 1)
    with pytest.raises(TransientError, match="Local: Broker handle destroyed"):
        appender.append(0, [b"record"])
    appender.close()


async def test_appends_wait_for_a_broker_that_is_gone_and_go_on_when_it_is_back(own_kafka: Broker, topic: str) -> None:
    journal = KafkaJournal(f"{own_kafka.url}/{topic}", lease_s=3.0)
    written(journal, Begin("a", 0), Intent("a", 0, 1, "ask", token="t"))
    own_kafka.stop()
    last = journal.append(Begin("b", 0))
    until(lambda: journal.claim_left() == 0.0)  # it cannot know any more
    assert not journal.wait_durable(last, 0.1)
    assert journal.take() == []
    assert journal.statistics()["waiting"] == 1
    own_kafka.start()
    async with asyncio.timeout(WAIT):
        await journal.durable(last)
    until(lambda: journal.claim_left() > 0.0)
    journal.post(Letter("answer", "t", body=b"yes"))
    assert len(journal.take()) == 1
    journal.close()
    assert jobs_of(f"{own_kafka.url}/{topic}") == ["a", "a", "b", "a"]


def test_a_broker_that_stays_away_ends_the_journal_after_its_patience(own_kafka: Broker, topic: str) -> None:
    journal = KafkaJournal(f"{own_kafka.url}/{topic}", patience_s=3.0)
    written(journal, Begin("a", 0))
    before = SYSTEM_CLOCK.monotonic()
    own_kafka.stop()  # a beat may wait from here on
    stopped = SYSTEM_CLOCK.monotonic()
    with pytest.raises(JournalFailed, match="did not acknowledge records within 3 s"):
        journal.wait_durable(journal.append(Begin("b", 0)), WAIT)
    assert before + 3 <= SYSTEM_CLOCK.monotonic() < stopped + 60
    journal.close()
    own_kafka.start()
    again = KafkaJournal(f"{own_kafka.url}/{topic}")
    found = [entry.job for _, entry in again.read()]
    assert found in (["a"], ["a", "b"])
    again.close()


def answers(broker: Broker) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", int(broker.url.rpartition(":")[2]))) == 0


@pytest.mark.slow  # a second of a core, or more
def test_a_broker_that_is_killed_in_the_middle_of_commits_loses_nothing(own_kafka: Broker, topic: str) -> None:
    journal = KafkaJournal(f"{own_kafka.url}/{topic}")
    told: list[int] = []
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(20):
                last = journal.append(Begin(f"job-{number}", 0, body=b"x" * 1000))
                number += 1
            assert journal.wait_durable(last, 120)
            told.append(number)

    worker = threading.Thread(target=work)
    worker.start()
    assert own_kafka.folder is not None
    for _ in range(2):
        count = len(told)
        until(lambda count=count: len(told) > count + 5)  # type: ignore[misc]
        os.kill(int((own_kafka.folder / "pid").read_text()), signal.SIGKILL)
        until(lambda: not answers(own_kafka))
        own_kafka.start()
    count = len(told)
    until(lambda: len(told) > count)
    stop.set()
    worker.join()
    journal.close()
    found = jobs_of(f"{own_kafka.url}/{topic}")
    assert found == [f"job-{number}" for number in range(len(found))]
    assert len(found) == told[-1]


def batches(data: bytes | bytearray) -> list[int]:
    """Where each batch of a partition's file begins: its offset in 8 bytes, the length of what follows in 4, and that."""
    starts = [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 12 + int.from_bytes(data[starts[-1] + 8 : starts[-1] + 12]))
    return starts


@pytest.mark.slow  # a second of a core, or more
def test_what_changed_on_the_brokers_disk_is_told(own_kafka: Broker, topic: str) -> None:
    def file_of(name: str, partition: int) -> Path:
        assert own_kafka.folder is not None
        (file,) = own_kafka.folder.glob(f"data/{topic}-{name}-{partition}/*.log")
        return file

    def flipped(name: str, byte: int) -> int:
        """Of the longest batch its version, its offset, or its records. Returns which offset it had."""
        data = bytearray(file_of(name, FRAMES).read_bytes())
        start, _ = max(pairwise(batches(data)), key=lambda ends: ends[1] - ends[0])
        offset = int.from_bytes(data[start : start + 8])
        data[start + byte] ^= 0x55
        file_of(name, FRAMES).write_bytes(data)
        return offset

    def shortened(name: str, partition: int) -> None:
        """By its last batch."""
        data = file_of(name, partition).read_bytes()
        file_of(name, partition).write_bytes(data[: batches(data)[-2]])

    names = ("records", "offset", "version", "frames", "letters")
    for name in names:
        journal = KafkaJournal(f"{own_kafka.url}/{topic}-{name}")
        written(journal, Begin("a", 0), Intent("a", 0, 1, "ask", token="t"))
        journal.post(Letter("answer", "t"))
        assert journal.wait_durable(journal.take()[0][0], WAIT)
        written(journal, Begin("b", 0, body=random.Random(1).randbytes(3000)))
        written(journal, Begin("c", 0))
        journal.close()
    opened_before = KafkaJournalReader(f"{own_kafka.url}/{topic}-frames")
    own_kafka.stop()
    assert own_kafka.folder is not None
    assert (own_kafka.folder / "data" / ".kafka_cleanshutdown").exists()  # else it would cut the files itself
    in_records, in_offset, in_version = flipped("records", 500), flipped("offset", 7), flipped("version", 16)
    shortened("frames", FRAMES)
    shortened("letters", LETTERS)
    own_kafka.start()
    for name, why in {
        "records": rf": {topic}-NAME\[0\] is damaged: .*(at offset {in_records} .*CRC|Magic)",
        "offset": rf": {topic}-NAME\[0\] is damaged: a record at offset {in_offset} or later says that its offset is {in_offset ^ 0x55}",
        "version": rf": {topic}-NAME\[0\] is damaged: .*Magic.* at offset {in_version}",
        "letters": rf" has lost records: a frame names letter 1, and {topic}-letters\[1\] ends at 0",
    }.items():
        address = f"{own_kafka.url}/{topic}-{name}"
        for opened in (KafkaJournal, KafkaJournalReader, KafkaInbox):
            with pytest.raises(CorruptJournal, match=f"journal {address}{why.replace('NAME', name)}") as error:
                opened(address)
            assert "bring back a copy of the topic" in error.value.hint
    with pytest.raises(
        CorruptJournal, match=rf"has lost records: {topic}-frames\[0\] went to offset \d+, and ends at \d+ now"
    ):
        opened_before.job("a")
    opened_before.close()
