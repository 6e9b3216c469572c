"""The journal in a topic where the world fails: its owner is killed or paused, its topic is cut."""

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from confluent_kafka import Producer
from integration.kafka_journals import WAIT, jobs_of, until, written
from typer.testing import CliRunner

from sabot.agents import ActionManager, ActionSpec, JobManager, JobSpec, JournalStore
from sabot.cli import commands
from sabot.clock import SYSTEM_CLOCK, boot_seconds
from sabot.errors import AppLocked, BrokerUnavailable, CorruptJournal, JournalFailed, UserError
from sabot.journal import Letter, Position, open_journal
from sabot.journal.base import check_place
from sabot.journal.entries import Begin, EffectResult, End, Entry, Intent
from sabot.journal.kafka import KafkaInbox, KafkaJournal, KafkaJournalReader
from sabot.journal.replica import FRAMES, LETTERS
from sabot.kafka import admin
from sabot.kafka.client import link_of
from sabot.kafka.log import TopicLog
from sabot.steps import watch
from tools.agent_tools import within
from tools.broker import free_ports

pytestmark = pytest.mark.kafka


@pytest.fixture
def address(kafka_url: str, topic: str) -> str:
    return f"{kafka_url}/{topic}"


def first_offset(address: str, partition: int) -> int:
    url, _, topic = address.rpartition("/")
    log = TopicLog("test", link_of(url, "test"), {})
    try:
        return log.bounds(topic, partition)[0]
    finally:
        log.close()


def foreign(address: str, partition: int, value: bytes) -> None:
    """Somebody else's record."""
    url, _, topic = address.rpartition("/")
    producer = Producer({"bootstrap.servers": url.removeprefix("kafka://")})
    producer.produce(topic, value, partition=partition)
    assert producer.flush(WAIT) == 0


# -- the topic --------------------------------------------------------------------------------------------------------


def test_the_topic_keeps_everything_and_acknowledges_what_is_on_the_disk(kafka_url: str, topic: str) -> None:
    open_journal(kafka_url, app=topic).close()
    name = f"{topic}.journal"
    assert admin.partitions(kafka_url, name) == 2
    settings = admin.settings_of(link_of(kafka_url, "test"), {}, name)
    assert settings is not None
    assert (settings["retention.ms"], settings["retention.bytes"], settings["cleanup.policy"]) == ("-1", "-1", "delete")
    assert settings["flush.messages"] == "1"  # it has one replica


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention.ms", "86400000"),
        ("retention.bytes", "1000000"),
        ("cleanup.policy", "compact"),
        ("unclean.leader.election.enable", "true"),
    ],
)
def test_a_topic_that_would_lose_entries_is_refused_with_the_command(
    address: str, kafka_url: str, topic: str, name: str, value: str
) -> None:
    config = {"retention.ms": "-1", "retention.bytes": "-1", name: value}
    admin.create_topic(kafka_url, topic, 2, config=config)
    with pytest.raises(UserError, match=f"would lose entries of the journal: {name}={value}") as error:
        KafkaJournal(address)
    right = {"cleanup.policy": "delete", "unclean.leader.election.enable": "false"}.get(name, "-1")
    assert f"--alter --entity-type topics --entity-name {topic} --add-config {name}={right}" in error.value.hint


def test_a_topic_of_one_partition_is_refused(address: str, kafka_url: str, topic: str) -> None:
    admin.create_topic(kafka_url, topic, 1, config={"retention.ms": "-1"})
    with pytest.raises(UserError, match="has 1 partitions, and a journal has 2"):
        KafkaJournal(address)


def test_a_reader_and_an_inbox_make_nothing(address: str, kafka_url: str, topic: str) -> None:
    for opened in (KafkaJournalReader, KafkaInbox):
        with pytest.raises(UserError, match=f"journal {address}: there is none"):
            opened(address)
    assert admin.partitions(kafka_url, topic) == 0
    admin.create_topic(kafka_url, topic, 2)
    with pytest.raises(UserError, match="there is none"):
        KafkaJournalReader(address)


@pytest.mark.slow  # waits eight seconds; an app says so in test_agent_kafka
def test_an_absent_broker_is_named_within_ten_seconds() -> None:
    place = f"127.0.0.1:{free_ports(1)[0]}"
    with within(10), ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(kind, f"kafka://{place}/t") for kind in (KafkaJournal, KafkaJournalReader)]
        for each in opened:
            with pytest.raises(BrokerUnavailable, match=place):
                each.result()


def test_a_setting_of_the_user_cannot_make_less_of_durable(address: str) -> None:
    journal = KafkaJournal(address, kafka={"linger.ms": 10_000, "retries": 0})
    with within(5):
        written(journal, Begin("a", 0))
    journal.close()


# -- owners -----------------------------------------------------------------------------------------------------------

HOLDING = """
import sys
from sabot.errors import JournalFailed
from sabot.journal.entries import Begin
from sabot.journal.kafka import KafkaJournal
journal = KafkaJournal(sys.argv[1], lease_s=float(sys.argv[2]))
journal.wait_durable(journal.append(Begin("first", 0)))
print("held", flush=True)
sys.stdin.readline()
print(journal.claim_left(), flush=True)
try:
    journal.wait_durable(journal.append(Begin("late", 0)))
    print("written", flush=True)
except JournalFailed as error:
    print("failed", error.message, flush=True)
journal.close()
"""


def holding(address: str, lease_s: float) -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDING, address, str(lease_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


@pytest.mark.one_in(2, "a second of a core each")
@pytest.mark.parametrize("waits", [False, True])
def test_a_paused_owner_is_succeeded_and_learns_it_at_its_next_append(address: str, waits: bool) -> None:
    child = holding(address, 4.0)
    child.send_signal(signal.SIGSTOP)
    before = boot_seconds()
    second = KafkaJournal(address)
    left = second.predecessor_left("a")
    assert (
        left <= 4.0 <= boot_seconds() + left - before
    )  # 4 s from the beginning of the watch on, however long the opening took
    written(second, Begin("second", 0))
    if waits:
        until(lambda: second.predecessor_left("a") <= 0.0)
    may_be_sending = second.predecessor_left("a")
    child.send_signal(signal.SIGCONT)
    told, _ = child.communicate("\n", timeout=WAIT)
    left, outcome = told.splitlines()
    assert float(left) <= max(0.0, may_be_sending)
    assert outcome.startswith("failed")
    written(second, Begin("third", 0))  # what the first one wrote stands before it, and counts for nothing
    assert second.claim_left() > 0
    second.close()
    assert jobs_of(address) == ["first", "second", "third"]


@pytest.mark.slow  # half a second of a core
def test_an_owner_whose_process_was_killed_here_is_succeeded_at_once(address: str) -> None:
    child = holding(address, 600.0)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    before = SYSTEM_CLOCK.monotonic()
    second = KafkaJournal(address)
    assert SYSTEM_CLOCK.monotonic() - before < WAIT  # and not half of the lease
    assert second.predecessor_left("a") == -math.inf
    written(second, Begin("second", 0))
    second.close()
    assert jobs_of(address) == ["first", "second"]


@pytest.mark.slow  # a second of a core, or more
def test_a_paused_owner_is_waited_for_by_the_successor_of_its_successor_too(address: str) -> None:
    paused = holding(address, 240.0)  # half of it is left to the third, less the time in which the second opens
    paused.send_signal(signal.SIGSTOP)
    second = holding(address, 10.0)
    second.send_signal(signal.SIGKILL)
    second.communicate()
    third = KafkaJournal(address)
    assert third.predecessor_left("a") > 1.0
    third.close()
    paused.kill()
    paused.communicate()


@pytest.mark.slow  # it waits
def test_an_owner_that_says_nothing_keeps_its_claim_by_beats(address: str) -> None:
    lease_s = 10.0  # who comes watches for half of it, in which ten beats may be late
    journal = KafkaJournal(address, lease_s=lease_s)
    began = SYSTEM_CLOCK.monotonic()
    while SYSTEM_CLOCK.monotonic() < began + lease_s + 1.0:
        with pytest.raises(AppLocked, match=f"journal {address} belongs to process {os.getpid()} on"):
            KafkaJournal(address)
    until(lambda: 0 < journal.claim_left() <= lease_s)
    journal.close()
    assert journal.claim_left() == 0.0


def test_of_two_who_want_the_journal_at_once_one_gets_it(address: str) -> None:
    KafkaJournal(address).close()
    owners: list[KafkaJournal] = []
    refused: list[AppLocked] = []

    def want() -> None:
        try:
            owners.append(KafkaJournal(address))
        except AppLocked as error:
            refused.append(error)

    workers = [threading.Thread(target=want) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert (len(owners), len(refused)) == (1, 3)
    written(owners[0], Begin("a", 0))
    owners[0].close()


APPENDING = """
import asyncio, sys
from sabot.journal.entries import Begin, EffectResult, End
from sabot.journal.kafka import KafkaJournal
async def main():
    journal = KafkaJournal(sys.argv[1])
    async def one(number):
        job = f"job-{sys.argv[2]}-{number}"
        journal.append(Begin(job, 0, body=(b"%d" % number) * (300_000 if number % 50 == 0 else 2)))
        journal.append(EffectResult(job, 0, 1))
        await journal.durable(journal.append(End(job, 0, "succeeded")))
        print(job, flush=True)
    for first in range(0, 1_000_000, 40):
        await asyncio.gather(*(one(number) for number in range(first, first + 40)))
asyncio.run(main())
"""


@pytest.mark.slow  # a second of a core, or more
@pytest.mark.parametrize("seed", [7, 8])
def test_what_was_durable_is_there_after_kill_9_at_any_point_over_and_over(address: str, seed: int) -> None:
    dice, told, before = random.Random(seed), set(), 0
    for round_ in range(4):
        command = [sys.executable, "-c", APPENDING, address, str(round_)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline().strip() for _ in range(dice.randrange(1, 200))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().split("\n")[:-1]
        child.wait()
        assert all(lines), "it ended by itself"
        told |= set(lines)
        reader = KafkaJournalReader(address)
        found = list(reader.read())
        assert [position.offset for position, _ in found] == list(range(len(found))), "what is there is a prefix"
        assert len(found) >= before
        before = len(found)
        assert told <= {entry.job for _, entry in found if isinstance(entry, End)}
        for _, entry in found:
            if isinstance(entry, Begin):
                number = entry.job.rpartition("-")[2].encode()
                assert reader.load(entry.body) == number * (300_000 if int(number) % 50 == 0 else 2)
        reader.close()


# -- letters ----------------------------------------------------------------------------------------------------------

POSTING = """
import sys
from sabot.errors import LetterRefused
from sabot.journal import Letter
from sabot.journal.kafka import KafkaInbox
inbox = KafkaInbox(sys.argv[1])
for number in range(int(sys.argv[2])):
    try:
        inbox.post(Letter("answer", f"token-{number}", body=sys.argv[3].encode()))
        print(number, flush=True)
    except LetterRefused as error:
        assert error.reason == "second", error
"""


@pytest.mark.slow  # processes on a broker; the same in one process: test_journal_contract
def test_letters_of_two_processes_at_once_are_accepted_once_and_taken_as_that(address: str) -> None:
    journal = KafkaJournal(address)
    written(journal, *(Intent("job", 0, number, "ask", token=f"token-{number}") for number in range(60)))
    children = {
        name: subprocess.Popen([sys.executable, "-c", POSTING, address, "60", name], stdout=subprocess.PIPE, text=True)
        for name in ("ann", "bob")
    }
    answers: dict[int, str] = {}
    while any(child.poll() is None for child in children.values()) or len(answers) < 60:
        written(journal, EffectResult("job", 0, 1000))
        for _, entry in journal.take():
            assert entry.ordinal not in answers  # type: ignore[union-attr]
            answers[entry.ordinal] = entry.body.decode()  # type: ignore[union-attr]
    said = {name: [int(line) for line in child.communicate()[0].split()] for name, child in children.items()}
    assert sorted(said["ann"] + said["bob"]) == list(range(60))
    assert answers == {number: name for name, numbers in said.items() for number in numbers}
    assert {child.returncode for child in children.values()} == {0}
    journal.close()


def test_a_letter_whose_entry_was_not_durable_is_taken_again_by_the_next_owner(address: str) -> None:
    journal = KafkaJournal(address, lease_s=1.0)
    written(journal, Begin("job", 0), Intent("job", 0, 1, "ask", token="t"))
    journal.post(Letter("answer", "t", body=b"yes"))
    dies(journal)
    with pytest.raises(JournalFailed):
        journal.wait_durable(journal.take()[0][0], WAIT)
    after = KafkaJournal(address)
    ((position, _),) = after.take()
    assert after.wait_durable(position, WAIT)
    assert after.take() == after.letters() == []
    after.close()


def dies(journal: KafkaJournal) -> None:
    """Nothing more comes from it, as if its process were gone from another machine."""

    def nothing(*_: object) -> list[int]:
        raise JournalFailed("it is dead")

    journal._appender.append = nothing  # type: ignore[method-assign]


# -- trimming ---------------------------------------------------------------------------------------------------------


def history(journal: KafkaJournal) -> list[tuple[Position, Entry]]:
    """Ended jobs, and between them what must stay: a job that waits, with a long body, an answer that was taken, and one that was not."""
    long = b"long" * 50_000
    written(journal, Begin("waits", 0, body=long), Intent("waits", 0, 1, "ask", token="t"), Begin("old", 0, body=long))
    journal.post(Letter("signal", "1", "waits", "s"))
    written(journal, *(EffectResult("old", 0, number) for number in range(50)), End("old", 1_000, "succeeded", "r"))
    assert journal.wait_durable(journal.take()[0][0], WAIT)
    written(journal, Begin("late", 0), End("late", 5_000, "failed", "why"))
    journal.post(Letter("answer", "t", body=b"yes"))
    return [(position, entry) for position, entry in journal.read() if entry.job != "old"]


def holds(journal: KafkaJournal | KafkaJournalReader, stays: list[tuple[Position, Entry]]) -> None:
    """`history`, trimmed up to its last job."""
    assert list(journal.read()) == stays
    assert [entry for _, entry in journal.read("waits")] == [entry for _, entry in stays if entry.job == "waits"]
    assert journal.load(stays[0][1].body) == b"long" * 50_000  # type: ignore[union-attr]
    old, late, waits = journal.job("old"), journal.job("late"), journal.job("waits")
    assert old is not None
    assert (old.outcome, old.result, old.ended_ms) == ("succeeded", "r", 1_000)
    assert late is not None
    assert (late.outcome, waits is not None and waits.outcome) == ("failed", "")
    question = journal.question("t")
    assert question is not None
    assert question.closed == ""
    assert [letter.kind for letter in journal.letters()] == ["answer"]


@pytest.mark.slow  # half a second of a core
def test_what_must_stay_is_written_anew_at_its_places_before_the_beginning_is_deleted(address: str) -> None:
    journal = KafkaJournal(address, copy_slack_bytes=-(1 << 40))
    stays = history(journal)
    behind = KafkaJournalReader(address)
    identity, place = journal.identity, {0: stays[-1][0].offset}
    assert first_offset(address, FRAMES) == first_offset(address, LETTERS) == 0
    assert journal.trim(place, forget_before_ms=900) == 52
    assert first_offset(address, FRAMES) > 0
    assert first_offset(address, LETTERS) == 2
    holds(journal, stays)
    holds(behind, stays)  # it was opened before
    behind.close()
    refused = KafkaInbox(address)
    for letter in (Letter("signal", "1", "waits", "s"), Letter("answer", "t")):
        with pytest.raises(Exception, match="already"):
            refused.post(letter)
    refused.close()
    journal.close()
    again = KafkaJournal(address)
    holds(again, stays)
    check_place(again, identity, {0: stays[-1][0].offset + 1})
    assert again.append(Begin("new", 0)).offset == stays[-1][0].offset + 1
    assert [entry.job for _, entry in again.take()] == ["waits"]
    again.close()
    assert jobs_of(address) == [*(entry.job for _, entry in stays), "new", "waits"]


STEPS = 10  # of a trim of `history`


class DiesAt:
    """Lets the owner die before its step number `at`, counted from 0, or, with a half, behind it; counts the steps."""

    def __init__(self, journal: KafkaJournal, at: float) -> None:
        self._journal = journal
        self._at = at
        self.steps = 0

    def before(self, name: str, what: str) -> None:
        if self.steps == self._at:
            dies(self._journal)
            raise JournalFailed("killed")

    def after(self, name: str, what: str) -> None:
        self.steps += 1
        if self.steps == self._at + 0.5:
            dies(self._journal)
            raise JournalFailed("killed")

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.mark.one_in(
    12, "what a record before the copy's end leaves counts for nothing, whichever it is; `make slow` has each of them"
)
@pytest.mark.parametrize("at", [half / 2 for half in range(2 * STEPS + 1)])
def test_a_trim_may_die_at_each_of_its_steps(address: str, at: float) -> None:
    journal = KafkaJournal(address, copy_slack_bytes=-(1 << 40), lease_s=0.4)
    stays = history(journal)
    place = {0: stays[-1][0].offset}
    watch(DiesAt(journal, at))
    try:
        with pytest.raises(JournalFailed, match="killed") if at < STEPS else nullcontext():
            journal.trim(place)
    finally:
        watch(None)
    dies(journal)
    for _ in range(2):  # the second one finds what the first one has finished
        after = KafkaJournal(address, copy_slack_bytes=-(1 << 40), lease_s=0.4)
        after.trim(place)
        holds(after, stays)
        after.close()
        reader = KafkaJournalReader(address)
        holds(reader, stays)
        reader.close()


@pytest.mark.slow  # a second of a core
def test_entries_come_beside_a_copy_and_are_behind_it_for_who_begins_there(address: str) -> None:
    journal = KafkaJournal(address, copy_slack_bytes=-(1 << 40))
    journal._piece_bytes = 2000  # so it has many frames
    written(journal, *(Begin(f"open-{number}", 0, body=b"x" * 500) for number in range(300)))
    written(journal, *(entry for n in range(300) for entry in (Begin(f"old-{n}", 0), End(f"old-{n}", 0, "succeeded"))))
    (place,) = journal.positions().values()
    beside = 0
    for _ in range(100):  # a copy is written anew by each; of one the owner may by chance leave no room for entries
        trimming = threading.Thread(target=journal.trim, args=({0: place},))
        trimming.start()
        while trimming.is_alive():
            job = f"open-{beside % 300}"
            written(journal, EffectResult(job, 0, beside + 1), End(job, 0, "failed"))
            beside += 1
        if beside > 3:
            break
    assert beside > 3
    assert first_offset(address, FRAMES) > 0
    entries = list(journal.read())
    assert [position.offset for position, _ in entries[300:]] == list(range(place, place + 2 * beside))
    journal.close()
    reader = KafkaJournalReader(address)
    assert list(reader.read()) == entries
    ended = [reader.job(f"open-{number}") for number in range(min(beside, 300))]
    assert {mark.outcome for mark in ended if mark is not None} == {"failed"}
    reader.close()


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_record_of_somebody_else_is_left_out_and_told(address: str, caplog: pytest.LogCaptureFixture) -> None:
    journal = KafkaJournal(address)
    written(journal, Begin("a", 0), Intent("a", 0, 1, "ask", token="t"))
    foreign(address, FRAMES, b"what is this?")
    foreign(address, LETTERS, b"and this?")
    written(journal, Begin("b", 0))  # it stands further on than it should, and that is no claim
    journal.post(Letter("answer", "t"))
    assert len(journal.take()) == 1
    journal.close()
    with caplog.at_level(logging.WARNING, logger="sabot.journal"):
        assert jobs_of(address) == ["a", "a", "b", "a"]
    assert "is not of a journal, and is left out" in caplog.text


def test_records_that_are_gone_from_the_beginning_are_told(address: str) -> None:
    journal = KafkaJournal(address)
    for number in range(5):
        written(journal, Begin(f"job-{number}", 0))
    journal.close()
    url, _, topic = address.rpartition("/")
    admin.delete_before(link_of(url, "test"), {}, topic, {FRAMES: 3})
    for opened in (KafkaJournal, KafkaJournalReader, KafkaInbox):
        with pytest.raises(CorruptJournal, match=rf"{topic}\[0\]@3 is frame 3, and what stood before it is gone"):
            opened(address)


def test_answers_that_are_gone_from_the_beginning_are_told(address: str) -> None:
    journal = KafkaJournal(address)
    written(journal, Begin("a", 0), Intent("a", 0, 1, "ask", token="t"))
    journal.close()
    inbox = KafkaInbox(address)
    inbox.post(Letter("answer", "t", body=b"yes"))
    inbox.close()
    url, _, topic = address.rpartition("/")
    admin.delete_before(link_of(url, "test"), {}, topic, {LETTERS: 1})
    for opened in (KafkaJournal, KafkaJournalReader, KafkaInbox):
        with pytest.raises(CorruptJournal, match=rf"has lost records: {topic}\[1\] begins at offset 1"):
            opened(address)


def test_a_record_of_a_later_version_stops_the_start_by_its_number(address: str) -> None:
    KafkaJournal(address).close()
    foreign(address, FRAMES, b"SJ\x09")
    with pytest.raises(UserError, match="a record has version 9, and this Sabot knows 1"):
        KafkaJournal(address)


# -- from a shell -----------------------------------------------------------------------------------------------------


def printed(*words: str) -> str:
    done = CliRunner().invoke(commands.cli, list(words))
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


@pytest.mark.slow  # half a second of a core
async def test_an_action_is_answered_from_a_shell_while_the_app_is_down(address: str) -> None:
    journal = KafkaJournal(address)
    store = JournalStore(journal)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.start((await jobs.create(JobSpec(scope_id="shop"))).job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"message": "Refund?"}))
    journal.close()
    assert "Refund?" in printed("actions", "list", "--journal", address)
    token = action.resume_token
    assert printed("actions", "resolve", token, "--journal", address, "--approve", "--by", "ann") == "answered\n"
    second = CliRunner().invoke(commands.cli, ["actions", "resolve", token, "--journal", address, "--reject"])
    assert (second.exit_code, "already answered" in second.stderr) == (1, True)
    (seen,) = [json.loads(line) for line in printed("jobs", "list", "--journal", address, "--json").splitlines()]
    assert seen["job_id"] == job.job_id
    assert "intent" in printed("journal", "show", job.job_id, "--journal", address)
    journal = KafkaJournal(address)
    record = await ActionManager(JournalStore(journal)).get(action.action_id)
    assert (record.resolution, record.by) == ({"approved": True}, "ann")
    journal.close()
    wrong = CliRunner().invoke(commands.cli, ["jobs", "list", "--journal", address, "--kafka", "security.protocol"])
    assert (wrong.exit_code, "has no value" in wrong.stderr) == (2, True)
