"""What every journal keeps (`sabot/journal/base.py`): one suite for all homes."""

import asyncio
import math
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec
import psycopg
import pytest
from confluent_kafka import Producer
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.text.records import state_key
from sabot.agents.session_turns import Recalled, Turn, recall
from sabot.base.accounts import Amounts
from sabot.clock import ManualClock
from sabot.errors import AppLocked, CorruptJournal, LetterRefused, OtherJournal, SabotError, UserError
from sabot.journal import Inbox, Journal, JournalReader, Letter, Position, tables
from sabot.journal.base import EVERY, JobKeeping, check_place
from sabot.journal.ended_jobs import EndedJob, JobQuery, cursor_of
from sabot.journal.entries import (
    INLINE_BYTES,
    Answer,
    Attempt,
    Begin,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    JobOrigin,
    Signal,
    StoredBody,
    encode_entry,
)
from sabot.journal.frames import EntriesFrame, FrameOrder
from sabot.journal.job_marks import JobMarks, selected
from sabot.journal.kafka import KafkaInbox, KafkaJournal, KafkaJournalReader
from sabot.journal.memory import MemoryInbox, MemoryJournal, MemoryReader, MemoryStorage
from sabot.journal.postgres import PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.sqlite import DATABASE, SqliteInbox, SqliteJournal, SqliteReader
from sabot.kafka.client import ensure_topic, link_of
from sabot.llm import user
from sabot.steps import watch
from tools.kafka_eyes import messages
from tools.postgres import server_or_skip
from tools.told_turns import SESSION, begun, says, texts_of


class Home(Protocol):
    clock: ManualClock

    def owner(self) -> Journal: ...
    def reader(self) -> JournalReader: ...
    def inbox(self) -> Inbox: ...

    def lose(self, *places: int) -> None:
        """The entries at these places are gone, by no doing of Sabot's. Nobody has the journal open."""


class InMemory:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.storage = MemoryStorage(self.clock)

    def owner(self) -> Journal:
        return MemoryJournal(self.storage)

    def reader(self) -> JournalReader:
        return MemoryReader(self.storage)

    def inbox(self) -> Inbox:
        return MemoryInbox(self.storage)

    def lose(self, *places: int) -> None:
        for place in places:
            job, _ = self.storage.entries.pop(place)
            self.storage.of_job[job].remove(place)


class InSqlite:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.folder = folder / "state" / "journal"

    def owner(self) -> Journal:
        return SqliteJournal(self.folder, clock=self.clock)

    def reader(self) -> JournalReader:
        return SqliteReader(self.folder.parent)

    def inbox(self) -> Inbox:
        return SqliteInbox(self.folder, clock=self.clock)

    def lose(self, *places: int) -> None:
        with closing(sqlite3.connect(self.folder / DATABASE)) as database, database:
            database.executemany("DELETE FROM entries WHERE place = ?", [(place,) for place in places])


class InKafka:
    def __init__(self, url: str, topic: str) -> None:
        self.clock = ManualClock()
        self.address = f"{url}/{topic}"

    def owner(self) -> Journal:
        return KafkaJournal(self.address, clock=self.clock)

    def reader(self) -> JournalReader:
        return KafkaJournalReader(self.address)

    def inbox(self) -> Inbox:
        return KafkaInbox(self.address, clock=self.clock)

    def lose(self, *places: int) -> None:
        """A topic without the frames that have these entries, under another name: Kafka deletes nothing in the middle."""
        broker, _, topic = self.address.rpartition("/")
        self.address = f"{broker}/{topic}-"
        ensure_topic(link_of(broker, "a test", {}, "Write"), f"{topic}-", {}, 2, FOREVER)
        producer, order = Producer({"bootstrap.servers": broker.removeprefix("kafka://")}), FrameOrder()
        for message in messages(broker, topic):
            frame = order.take(message.value(), topic) if message.partition() == 0 else None
            if not isinstance(frame, EntriesFrame) or not {entry[0] for entry in frame.entries} & set(places):
                producer.produce(f"{topic}-", message.value(), partition=message.partition())
        assert producer.flush(60) == 0


class InPostgres:
    def __init__(self, url: str, app: str) -> None:
        self.clock = ManualClock()
        self.url, self.app = url, app

    def owner(self) -> Journal:
        return PostgresJournal(self.url, self.app, clock=self.clock, lease_s=5.0)

    def reader(self) -> JournalReader:
        return PostgresReader(f"{self.url}?app={self.app}")

    def inbox(self) -> Inbox:
        return PostgresInbox(self.url, self.app, clock=self.clock)

    def lose(self, *places: int) -> None:
        with psycopg.connect(self.url, autocommit=True) as database:
            database.execute(f'DELETE FROM "sabot_{self.app}".entries WHERE place = ANY(%s)', (list(places),))  # type: ignore[arg-type]


class InWorkers(InPostgres):
    """Each owner is one of several workers, which resumes the jobs of those that have left."""

    def owner(self) -> Journal:
        worker = PostgresWorker(self.url, self.app, clock=self.clock, lease_s=5.0)
        worker.begins.resumes, worker.reap_s = True, 0.0
        return worker


FOREVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
HOMES = ["memory", "sqlite", "postgres", pytest.param("kafka", marks=pytest.mark.kafka)]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """An address of PostgreSQL; skipped where no server is installed."""
    with server_or_skip().database() as url:
        yield url


def home_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Home:
    if kind in ("postgres", "workers"):
        made = InPostgres if kind == "postgres" else InWorkers
        return made(request.getfixturevalue("database"), f"app-{uuid.uuid4().hex}")
    if kind == "kafka":
        return InKafka(request.getfixturevalue("kafka_url"), f"t-{uuid.uuid4().hex[:12]}")
    return InMemory() if kind == "memory" else InSqlite(folder)


OF_ONE_OWNER = {  # tests of what a journal that several workers share does not have
    # places from 0 on, without gaps
    "test_appends_of_several_threads_have_one_order",
    "test_an_entry_that_is_missing_in_the_middle_is_told_by_its_place",
    "test_entries_that_are_missing_at_the_end_are_told_by_readers_and_the_next_owner",
    "test_a_look_for_open_jobs_finds_missing_entries_of_ended_ones",
    "test_what_was_trimmed_is_not_missing",
    "test_a_checkpoint_of_another_journal_or_of_a_later_one_is_refused",
    "test_a_job_has_a_mark_from_its_beginning_to_its_end",
    "test_a_job_that_begins_again_has_a_new_history",
    # a trim by a place: a worker keeps what has ended at the time of its last job, or later
    "test_an_approval_for_other_jobs_is_durable_with_the_next_entry_until_its_job_is_trimmed",
    "test_the_same_long_body_is_stored_once_and_goes_with_the_last_entry_that_names_it",
    "test_a_checkpoint_that_needs_what_was_trimmed_is_refused",
    "test_only_jobs_that_ended_before_the_position_are_trimmed",
    "test_an_ended_job_is_known_until_it_is_forgotten",
    "test_a_job_that_may_begin_again_keeps_its_entries_as_long_as_its_mark",
    "test_positions_do_not_begin_again_when_all_was_trimmed",
    "test_a_signal_goes_with_the_job_that_it_names_whatever_its_token_is",
    "test_what_is_trimmed_is_in_the_history_and_its_entries_are_read_there",
    "test_the_history_is_found_by_agent_scope_key_status_text_and_time_a_page_at_a_time",
    "test_the_history_says_what_the_jobs_below_a_job_have_used",
    "test_ended_jobs_leave_the_history_by_their_age",
    "test_the_oldest_jobs_leave_a_history_that_is_too_long",
    "test_a_job_that_begins_again_after_it_was_moved_is_in_the_history_once",
    "test_jobs_whose_entries_were_trimmed_are_in_no_list_until_they_begin_again",
    "test_the_jobs_of_a_session_are_found_in_the_log_and_in_the_history",
    # one owner, which gets all letters, has all open jobs, and looks for no others
    "test_a_second_owner_is_refused_while_the_first_holds_the_journal",
    "test_the_entries_of_open_jobs_are_read_without_those_of_others",
    "test_an_owner_sees_that_a_letter_may_have_come",
    "test_a_letter_begins_a_job_once",
}


@pytest.fixture(params=[*HOMES, pytest.param("workers", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "workers" and request.node.originalname in OF_ONE_OWNER:
        pytest.skip("a shared journal does not have it")
    return home_of(request.param, request, tmp_path)


@pytest.fixture
def journal(home: Home) -> Iterator[Journal]:
    owner = home.owner()
    yield owner
    owner.close()


def written(journal: Journal, *entries: Entry) -> Position:
    """Appended and durable: the position of the last one."""
    positions = [journal.append(entry) for entry in entries]
    assert journal.wait_durable(positions[-1], 60)
    return positions[-1]


def entries(journal: JournalReader, job: str | None = None) -> list[Entry]:
    return [entry for _, entry in journal.read(job)]


def asked(job: str = "a", token: str = "t", due_ms: int = 0) -> list[Entry]:
    """A job that waits for the answer to a question."""
    return [Begin(job, 0), Intent(job, 0, 1, "ask", "confirm", token=token, due_ms=due_ms)]


def refused(inbox: Inbox, letter: Letter) -> str:
    with pytest.raises(LetterRefused) as error:
        inbox.post(letter)
    return error.value.reason


# -- order and durability ---------------------------------------------------------------------------------------------


@pytest.mark.one_in(3, "a fifth of a second of a core each")
def test_entries_come_back_in_the_order_of_the_appends(journal: Journal) -> None:
    given = [Begin("a", 1, "agent", b"input", b"key", b"digest", "v1"), Begin("b", 2), Signal("a", 3, "s", "t", b"x")]
    last = written(journal, *given, End("b", 4, "succeeded", "r", b"d"))
    found = list(journal.read())
    assert [entry for _, entry in found] == [*given, End("b", 4, "succeeded", "r", b"d")]
    assert [position for position, _ in found] == sorted(position for position, _ in found)
    assert found[-1][0] == last
    assert journal.positions() == {0: last.offset + 1}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_the_entries_of_a_job_can_be_read_alone_and_from_a_position_on(journal: Journal) -> None:
    written(journal, Begin("a", 1), Begin("b", 2), Cancel("a", 3), Cancel("b", 4))
    assert entries(journal, "a") == [Begin("a", 1), Cancel("a", 3)]
    second = list(journal.read())[2][0]
    assert [entry for _, entry in journal.read(start={0: second.offset})] == [Cancel("a", 3), Cancel("b", 4)]
    assert entries(journal, "nobody") == []


def test_what_was_appended_is_there_for_the_next_owner(home: Home) -> None:
    first = home.owner()
    identity, key = first.identity, first.key
    last = first.append(Begin("a", 1))
    first.close()  # what waits becomes durable
    second = home.owner()
    try:
        assert (second.identity, second.key) == (identity, key)
        assert entries(second) == [Begin("a", 1)]
        assert second.append(Begin("b", 2)) > last
    finally:
        second.close()
    reader = home.reader()
    assert entries(reader) == [Begin("a", 1), Begin("b", 2)]
    reader.close()


async def test_flush_returns_when_all_before_it_is_durable(home: Home, journal: Journal) -> None:
    for number in range(500):
        journal.append(Begin(f"job-{number}", number))
    positions = await journal.flush()
    reader = home.reader()
    assert [entry.job for entry in entries(reader)] == [f"job-{number}" for number in range(500)]
    assert positions == reader.ends()
    assert reader.positions() == journal.positions()
    reader.close()


async def test_many_who_wait_for_one_journal_are_all_told(journal: Journal) -> None:
    async def one(number: int) -> bool:
        position = journal.append(Begin(f"job-{number}", 0))
        await journal.durable(position)
        return journal.positions()[0] > position.offset

    assert all(await asyncio.gather(*(one(number) for number in range(300))))
    assert journal.statistics()["entries"] == 300
    assert journal.statistics()["waiting"] == 0


def test_appends_of_several_threads_have_one_order(journal: Journal) -> None:
    def work(name: str) -> None:
        for number in range(200):
            journal.append(Begin(f"{name}-{number}", 0))

    workers = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert journal.wait_durable(Position(0, 599), 60)
    jobs = [entry.job for entry in entries(journal)]
    assert len(jobs) == 600
    for name in "xyz":
        assert [job for job in jobs if job.startswith(name)] == [f"{name}-{number}" for number in range(200)]


def test_a_closed_journal_takes_nothing(home: Home) -> None:
    journal = home.owner()
    journal.close()
    journal.close()
    with pytest.raises(UserError, match="closed"):
        journal.append(Begin("a", 1))


# -- what is missing --------------------------------------------------------------------------------------------------


def apart(home: Home, count: int) -> None:
    """So many entries of three jobs in turn, each in a commit of its own, by an owner that has closed."""
    owner = home.owner()
    for number in range(count):
        written(owner, Begin("abc"[number % 3], number) if number < 3 else Cancel("abc"[number % 3], number))
    owner.close()


def read_by_a_reader(home: Home) -> int:
    reader = home.reader()
    try:
        return len(entries(reader))
    finally:
        reader.close()


def read_by_an_owner(home: Home) -> int:
    owner = home.owner()
    try:
        return len(entries(owner))
    finally:
        owner.close()


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("lost", "told"), [([4], "entry 4 is"), ([3, 4, 5], "entries 3 to 5 are"), ([0], "entry 0 is")]
)
def test_an_entry_that_is_missing_in_the_middle_is_told_by_its_place(home: Home, lost: list[int], told: str) -> None:
    apart(home, 8)
    home.lose(*lost)
    told = f"{told} missing" if not isinstance(home, InKafka) else "missing"
    for read in (read_by_a_reader, read_by_an_owner):
        with pytest.raises(CorruptJournal, match=told):
            read(home)


def test_entries_that_are_missing_at_the_end_are_told_by_readers_and_the_next_owner(home: Home) -> None:
    """As a server loses them that takes the place of another one; what was done would be done again."""
    apart(home, 8)
    home.lose(6, 7)
    told = "entries 6 to 7 are missing" if not isinstance(home, InKafka) else "is missing"
    for read in (read_by_a_reader, read_by_an_owner):
        with pytest.raises(CorruptJournal, match=told):
            read(home)


def test_a_look_for_open_jobs_finds_missing_entries_of_ended_ones(home: Home) -> None:
    owner = home.owner()
    written(owner, Begin("a", 1), Begin("b", 2), EffectResult("a", 3, 1), End("a", 4, "succeeded"))
    owner.close()
    home.lose(2)

    def look(find: Callable[[JournalReader], object]) -> None:
        reader = home.reader()
        try:
            find(reader)
        finally:
            reader.close()

    for find in (lambda reader: reader.unfinished(reader.positions()), lambda reader: reader.open_agents()):
        with pytest.raises(CorruptJournal, match="missing"):
            look(find)


def test_open_jobs_are_told_by_agent_and_in_the_order_in_which_they_began_last(home: Home, journal: Journal) -> None:
    reader = home.reader()
    for each in (journal, reader):
        assert (each.open_agents(), each.open_marks()) == ({}, [])
    begun = [Begin(job, 1, agent=f"app.{agent}") for job, agent in (("d", "x"), ("b", "y"), ("a", "x"), ("c", "z"))]
    written(journal, *begun, Begin("e", 1), End("c", 2, "succeeded"), End("d", 2, "failed"))
    for each in (journal, reader):
        assert each.open_agents() == {"app.y": 1, "app.x": 1, "": 1}
        assert [mark.job for mark in each.open_marks()] == ["b", "a", "e"]
    written(journal, Begin("d", 3, agent="app.x", run=2), Intent("a", 4, 1, "ask", "confirm", token="t"))
    for each in (journal, reader):
        assert each.open_agents() == {"app.y": 1, "app.x": 2, "": 1}
        assert each.open_marks() == [each.job(job) for job in ("b", "a", "e", "d")]
        assert [mark.asks for mark in each.open_marks()] == [0, 1, 0, 0]
    journal.trim(journal.positions())
    assert reader.open_agents() == {"app.y": 1, "app.x": 2, "": 1}
    reader.close()


def test_the_entries_of_open_jobs_are_read_without_those_of_others(
    home: Home, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_CHUNK", 3)
    names = ["b", "a~1", "a", "a/b", "c~2", "ä"]
    for at in range(5):
        written(journal, *(EffectResult(name, at, at) if at else Begin(name, at) for name in names))
    ended = written(journal, End("b", 9, "succeeded"), End("c~2", 9, "failed"))
    written(journal, Begin("c~2", 10))
    reader = home.reader()
    for each in (journal, reader):
        assert sorted(each.unfinished(each.positions())) == ["a", "a/b", "a~1", "c~2", "ä"]
        assert {"b"} <= set(each.unfinished({0: ended.offset - 1}))
        for some in (["a", "ä", "c~2", "gone"], names, ["a/b"], []):
            found = list(each.read_jobs(some))
            assert {name: [row for row in found if row[1].job == name] for name in some} == {
                name: list(each.read(name)) for name in some
            }
            assert len(found) == sum(len(list(each.read(name))) for name in some)
    journal.trim(journal.positions(), 1 << 60)
    assert sorted(journal.unfinished({})) == ["a", "a/b", "a~1", "c~2", "ä"]
    reader.close()


def test_an_approval_for_other_jobs_is_durable_with_the_next_entry_until_its_job_is_trimmed(
    home: Home, journal: Journal
) -> None:
    given = ("a", "acme\0" * 900, "s-1", "tool refund", "asks", "by ann")
    others = [("b", *given[1:]), ("b", "acme", "", *given[3:])]
    written(journal, Begin("a", 1), Begin("b", 1))
    for each in (given, *others, given):
        journal.note_approval(each)
    reader = home.reader()
    assert not reader.approvals() or isinstance(journal, MemoryJournal)
    kept = not isinstance(home, InKafka)
    written(journal, End("a", 2, "succeeded"))
    assert sorted(reader.approvals() or ()) == (sorted([given, *others]) if kept else [])
    journal.trim(journal.positions(), 1 << 60)
    journal.close()
    owner = home.owner()
    for each in (reader, owner):
        found = each.approvals()
        assert (None if found is None else sorted(found)) == (sorted(others) if kept else None)
        each.close()


def test_a_journal_that_does_not_know_its_approvals_is_told_them_once(home: Home) -> None:
    owner = home.owner()
    given = [("a", f"scope {number}", "", "tool refund", "asks", "by ann") for number in range(3)]
    owner.keep_approvals(given)
    owner.close()
    reader = home.reader()
    assert sorted(reader.approvals() or ()) == ([] if isinstance(home, InKafka | InMemory) else given)
    reader.close()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
def test_what_was_trimmed_is_not_missing(home: Home) -> None:
    apart(home, 9)  # 0, 3 and 6 are of the job "a"
    owner = home.owner()
    written(owner, End("a", 9, "succeeded"), Signal("b", 10, "s", "t"), End("c", 11, "succeeded"))
    assert owner.trim({0: 10}) == 4
    owner.close()
    assert read_by_a_reader(home) == read_by_an_owner(home) == 8
    owner = home.owner()
    assert owner.trim({0: 12}) == 4  # those of "c", and its END is the last entry
    owner.close()
    assert read_by_a_reader(home) == read_by_an_owner(home) == 4
    owner = home.owner()
    assert written(owner, Cancel("b", 12)) == Position(0, 12)
    owner.close()
    assert read_by_a_reader(home) == read_by_an_owner(home) == 5
    home.lose(4)  # of "b", between two that were trimmed
    with pytest.raises(CorruptJournal, match="entry 4 is missing" if not isinstance(home, InKafka) else "missing"):
        read_by_a_reader(home)


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "some hundredths of a second of a core each")
@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES, INLINE_BYTES + 1, 5_000_000])
def test_a_body_of_any_length_comes_back(journal: Journal, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    written(journal, Begin("a", 1, body=body))
    (entry,) = entries(journal)
    assert isinstance(entry, Begin)
    assert isinstance(entry.body, StoredBody) == (size > INLINE_BYTES)
    assert journal.load(entry.body) == body


def test_the_same_long_body_is_stored_once_and_goes_with_the_last_entry_that_names_it(journal: Journal) -> None:
    body = b"conversation" * INLINE_BYTES
    for job in ("a", "b"):
        written(journal, Begin(job, 1, body=body), EffectResult(job, 2, 1, body=body))
    named = {entry.body for entry in entries(journal) if isinstance(entry, Begin | EffectResult)}
    assert len(named) == 1
    last = written(journal, End("a", 3, "succeeded"))
    assert journal.trim({0: last.offset + 1}) == 3
    (stored,) = {entry.body for entry in entries(journal) if isinstance(entry, Begin | EffectResult)}
    assert journal.load(stored) == body
    last = written(journal, End("b", 3, "succeeded"))
    journal.trim({0: last.offset + 1})
    with pytest.raises(CorruptJournal, match="missing"):
        journal.load(stored)


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("body", ["text", "x" * (INLINE_BYTES + 1), None])
def test_an_entry_that_could_not_be_read_again_is_refused_at_its_append(journal: Journal, body: object) -> None:
    """Later it would end the journal, with all that stands behind it."""
    wrong = [Begin("a", 0, body=body), Begin("a", 2**63), Begin("a", "now"), Begin(None, 0), End("a", 0, None)]  # type: ignore[arg-type]
    for entry in [*wrong, Begin("a", 0.5, body=b"x" * (INLINE_BYTES + 1))]:  # type: ignore[arg-type]
        with pytest.raises(UserError, match="cannot be written down"):
            journal.append(entry)
    written(journal, Begin("a", 0))
    assert entries(journal) == [Begin("a", 0)]


# -- the claim --------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_refused_while_the_first_holds_the_journal(home: Home) -> None:
    first = home.owner()
    with pytest.raises(AppLocked):
        home.owner()
    assert written(first, Begin("a", 1)) == Position(0, 0)
    first.close()
    home.owner().close()


def test_an_owner_knows_for_how_long_it_has_the_claim(home: Home) -> None:
    first = home.owner()
    assert first.claim_left() > 0
    assert first.predecessor_left("a") == -math.inf  # nobody was before it
    first.close()
    second = home.owner()
    assert second.claim_left() > 0
    assert second.predecessor_left("a") == -math.inf  # the first one has closed, and sends nothing
    second.close()


def test_a_checkpoint_of_another_journal_or_of_a_later_one_is_refused(home: Home, journal: Journal) -> None:
    written(journal, Begin("a", 1), Begin("b", 2))
    check_place(journal, journal.identity, {0: 2})
    check_place(journal, journal.identity, {0: 1})
    with pytest.raises(OtherJournal, match="ends at 2 in partition 0, and the checkpoint knows of 3"):
        check_place(journal, journal.identity, {0: 3})
    with pytest.raises(OtherJournal, match="was made with"):
        check_place(journal, "another", {0: 1})


def test_a_checkpoint_that_needs_what_was_trimmed_is_refused(home: Home) -> None:
    journal = home.owner()
    written(journal, Begin("a", 1), End("a", 1, "succeeded"), Begin("b", 1), End("b", 1, "succeeded"), Begin("c", 1))
    assert not any(journal.trimmed().values())
    check_place(journal, journal.identity, {0: 1})
    assert journal.trim({0: 4}) == 4
    for _ in range(2):
        assert journal.trimmed() == {0: 4}
        check_place(journal, journal.identity, {0: 4})
        with pytest.raises(OtherJournal, match=r"before 4 in partition 0, and the checkpoint needs those from 3 on"):
            check_place(journal, journal.identity, {0: 3})
        with pytest.raises(OtherJournal, match="needs those from 1 on"):
            check_place(journal, journal.identity, {0: 5}, {0: 1})
        journal.close()
        journal = home.owner()
    reader = home.reader()
    assert reader.trimmed() == {0: 4}
    reader.close()
    written(journal, End("c", 1, "succeeded"), EffectResult("c", 1, 1))
    assert journal.trim({0: 7}) == 3
    assert journal.trimmed() == {0: 6}, "entries behind END are needed by nobody"
    journal.close()


# -- marks and trimming -----------------------------------------------------------------------------------------------


def test_a_job_has_a_mark_from_its_beginning_to_its_end(journal: Journal) -> None:
    assert journal.job("a") is None
    assert journal.marked(["a"]) == {}
    written(journal, Begin("a", 1, digest=b"d"))
    mark = journal.job("a")
    assert journal.marked(["a", "b"]) == {"a": mark}
    assert mark is not None
    assert (mark.began, mark.digest, mark.outcome) == (Position(0, 0), b"d", "")
    written(journal, End("a", 7, "failed", "why"))
    mark = journal.job("a")
    assert mark is not None
    assert (mark.outcome, mark.result, mark.ended_ms) == ("failed", "why", 7)


def test_a_job_that_begins_again_has_a_new_history(journal: Journal) -> None:
    written(journal, Begin("a", 1), End("a", 2, "continued"), Begin("a", 3, digest=b"2"))
    mark = journal.job("a")
    assert mark is not None
    assert (mark.outcome, mark.digest, mark.began) == ("", b"2", Position(0, 2))
    assert journal.trim({0: 100}) == 0


def test_only_jobs_that_ended_before_the_position_are_trimmed(journal: Journal) -> None:
    written(journal, Begin("old", 1), Begin("open", 1), End("old", 2, "succeeded"), Begin("late", 3))
    written(journal, End("late", 4, "succeeded"))
    assert journal.trim({0: 4}) == 2
    assert [entry.job for entry in entries(journal)] == ["open", "late", "late"]
    assert journal.trim({0: 4}) == 0


def test_an_ended_job_is_known_until_it_is_forgotten(journal: Journal) -> None:
    last = written(journal, Begin("a", 1, digest=b"d"), End("a", 1_000, "succeeded", "r"))
    journal.trim({0: last.offset + 1}, forget_before_ms=1_000)
    mark = journal.job("a")
    assert mark is not None
    assert (mark.outcome, mark.result, mark.digest) == ("succeeded", "r", b"d")
    journal.trim({0: last.offset + 1}, forget_before_ms=1_001)
    assert journal.job("a") is None


def test_a_job_that_may_begin_again_keeps_its_entries_as_long_as_its_mark(journal: Journal) -> None:
    told = [Begin("a", 1), Intent("a", 2, 1, "call"), End("a", 1_000, "failed")]
    last = written(journal, *told, Begin("b", 1), End("b", 1_000, "cancelled"), Begin("c", 1), End("c", 1, "succeeded"))
    assert journal.trim({0: last.offset + 1}, forget_before_ms=1_000) == 2  # those of c
    assert [entry for entry in entries(journal) if entry.job == "a"] == told
    assert journal.trim({0: last.offset + 1}, forget_before_ms=1_001) == 5
    assert (entries(journal), journal.job("a")) == ([], None)


def test_a_job_of_a_session_keeps_its_entries_as_long_as_its_mark_if_the_owner_says_so(journal: Journal) -> None:
    told = [Begin("a", 1, "k.a", session="s"), End("a", 1_000, "succeeded")]
    written(journal, *told, Begin("b", 1, "k.a"), End("b", 1_000, "succeeded"))
    written(journal, Begin("c", 1, "k.a", session="t"), End("c", 2_000, "succeeded"))
    journal.trim({0: EVERY}, forget_before_ms=1_000, sessions=True)
    assert [entry for entry in entries(journal) if entry.job in "ab"] == told
    assert [mark.job for mark in journal.logged(JobQuery("k.a", session="s"), EVERY)] == ["a"]
    assert journal.logged(JobQuery("k.b", session="s"), EVERY) == []
    journal.trim({0: EVERY}, forget_before_ms=1_001, sessions=True)
    assert [entry for entry in entries(journal) if entry.job in "ab"] == []


def test_a_conversation_is_read_from_its_newest_turn_without_what_was_forgotten(journal: Journal) -> None:
    def says_all(job: str, at_ms: int, recalled: Recalled | None = None) -> None:
        told = begun(job, at_ms, recall(journal, SESSION) if recalled is None else recalled)
        turn = Turn([user(f"{job} {'x' * INLINE_BYTES}")])  # a long body is stored outside of its entry
        written(journal, *told, says(job, at_ms + 1, turn, (f"of {job}",)))

    def found() -> tuple[list[str], list[str]]:
        texts, read = texts_of(journal)
        return [each.split()[0] for each in texts], read

    for number in range(4):
        says_all(f"j{number}", 1_000 + 10 * number)
    assert found() == (["j0", "j1", "j2", "j3"], ["j3"])
    journal.forget(["j1"])
    assert found() == (["j0", "j2", "j3"], ["j3"])
    assert recall(journal, SESSION).labels == ["of j3"]
    journal.forget(["j3"])
    assert found() == (["j0", "j2"], ["j2"])
    says_all("j4", 2_000, Recalled())  # has begun before all of them, and ends last
    assert found() == (["j0", "j2", "j4"], ["j4", "j2"])
    journal.forget(["j0", "j2", "j4"])
    assert (found(), recall(journal, SESSION)) == (([], []), Recalled())


def test_jobs_that_have_ended_are_forgotten_by_name(journal: Journal) -> None:
    written(journal, Begin("a", 1), End("a", 2, "succeeded", "r"), Begin("b", 3), Begin("c", 4), End("c", 5, "failed"))
    assert journal.forget(["a", "b"]) == 2
    assert [entry.job for entry in entries(journal)] == ["b", "c", "c"]
    mark = journal.job("a")
    assert mark is not None
    assert (mark.outcome, mark.result) == ("succeeded", "r")


def test_positions_do_not_begin_again_when_all_was_trimmed(home: Home) -> None:
    """Else a checkpoint would find a journal that is behind, or take new entries for those that it knows."""
    journal = home.owner()
    last = written(journal, Begin("a", 1), End("a", 2, "succeeded"))
    for _ in range(2):
        journal.trim({0: last.offset + 1})
    journal.close()
    reader = home.reader()
    assert reader.positions() == {0: 2}
    reader.close()
    again = home.owner()
    assert again.append(Begin("b", 3)) == Position(0, 2)
    again.close()


# -- the inbox --------------------------------------------------------------------------------------------------------


def test_an_answer_is_taken_once(home: Home, journal: Journal) -> None:
    written(journal, *asked())
    inbox = home.inbox()
    inbox.post(Letter("answer", "t", body=b"yes", by="ann"))
    taken = journal.take()
    now_ms = round(home.clock.time() * 1000)
    assert [entry for _, entry in taken] == [Answer("a", now_ms, 1, "t", "resolved", b"yes", "ann")]
    assert journal.take() == []
    assert journal.wait_durable(taken[-1][0], 60)
    assert entries(journal)[-1] == taken[-1][1]
    question = journal.question("t")
    assert question is not None
    assert question.closed == "resolved"
    inbox.close()


async def test_an_owner_sees_that_a_letter_may_have_come(home: Home, journal: Journal) -> None:
    written(journal, *asked())
    assert not await journal.look()
    assert not journal.letters()
    inbox = home.inbox()
    inbox.post(Letter("answer", "t"))
    inbox.close()
    assert await journal.look()
    assert len(journal.letters()) == 1
    (taken,) = journal.take()
    assert journal.wait_durable(taken[0], 60)
    assert not journal.letters()


class _HeldCommits:
    """Holds the threads that write entries before their commits, until the end of the block."""

    def __init__(self) -> None:
        self._go = threading.Event()

    def __enter__(self) -> None:
        watch(self)

    def __exit__(self, *error: object) -> None:
        watch(None)
        self._go.set()

    def before(self, name: str, what: str) -> None:
        if threading.current_thread().name.startswith("sabot-journal "):
            assert self._go.wait(60)

    def after(self, name: str, what: str) -> None:
        """Does nothing."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_a_letter_stays_in_the_inbox_until_its_entry_can_be_read(home: Home, journal: Journal) -> None:
    """Who reads the letters first and then the jobs misses none. A schedule found no job that was open, and began one more."""
    journal.begins.agents = frozenset({"app.f"})
    written(journal, *asked())
    with closing(home.inbox()) as inbox, closing(home.reader()) as reader:
        inbox.post(beginning("b"))
        inbox.post(Letter("answer", "t", body=b"yes"))
        with _HeldCommits():
            (_, (last, _)) = journal.take()
            for seen in (journal, reader):
                named, begun = seen.letter("begin:b"), {mark.job for mark in seen.logged(JobQuery(), EVERY)}
                is_logged = "b" in begun  # memory makes an entry and takes its letter in one step
                assert is_logged or (named is not None and named.job == "b")
                kinds, question = [letter.kind for letter in seen.letters()], seen.question("t")
                assert question is not None
                assert kinds == ([] if is_logged else ["begin", "answer"])
                assert question.closed == ("resolved" if is_logged else "")
        assert journal.wait_durable(last, 60)
        for seen in (journal, reader):
            assert (seen.letters(), seen.letter("begin:b")) == ([], None)


def test_a_letter_that_came_while_no_owner_was_there_is_taken_by_the_next(home: Home) -> None:
    owner = home.owner()
    written(owner, *asked())
    owner.close()
    inbox = home.inbox()
    inbox.post(Letter("answer", "t", body=b"yes"))
    inbox.post(Letter("cancel", job="a", name="no need"))
    inbox.close()
    reader = home.reader()
    assert [letter.kind for letter in reader.letters()] == ["answer", "cancel"]
    reader.close()
    owner = home.owner()
    assert [type(entry) for _, entry in owner.take()] == [Answer, Cancel]
    owner.close()
    owner = home.owner()
    assert owner.letters() == owner.take() == []
    assert [type(entry) for entry in entries(owner)[2:]] == [Answer, Cancel]
    owner.close()


def test_a_wrong_a_second_and_an_expired_token_are_refused_with_the_reason(home: Home, journal: Journal) -> None:
    now_ms = round(home.clock.time() * 1000)
    written(journal, *asked("a", "t"), *asked("b", "late", now_ms), *asked("c", "done"))
    inbox = home.inbox()
    assert refused(inbox, Letter("answer", "nobody's")) == "unknown"
    inbox.post(Letter("answer", "t"))
    assert refused(inbox, Letter("answer", "t")) == "second"
    assert refused(inbox, Letter("withdraw", "t", name="expired")) == "second"
    journal.take()
    asyncio.run(journal.flush())
    assert refused(inbox, Letter("answer", "t")) == "second"
    home.clock.advance(0.001)
    assert refused(inbox, Letter("answer", "late")) == "expired"
    written(journal, End("c", 1, "cancelled"))
    assert refused(inbox, Letter("answer", "done")) == "closed"
    with pytest.raises(LetterRefused):
        journal.post(Letter("answer", "nobody's"))
    assert journal.statistics()["refused"] == 1
    inbox.close()


def test_an_answer_at_the_deadline_is_in_time_and_a_withdrawal_after_it_comes_too_late(
    home: Home, journal: Journal
) -> None:
    """An answer that was durable before the deadline beats the timer."""
    now_ms = round(home.clock.time() * 1000)
    written(journal, *asked("a", "t", now_ms))
    inbox = home.inbox()
    inbox.post(Letter("answer", "t"))
    home.clock.advance(60)
    assert refused(inbox, Letter("withdraw", "t", name="expired")) == "second"
    assert [entry.outcome for _, entry in journal.take() if isinstance(entry, Answer)] == ["resolved"]
    inbox.close()


def test_a_question_that_was_withdrawn_takes_no_answer(home: Home, journal: Journal) -> None:
    written(journal, *asked())
    inbox = home.inbox()
    inbox.post(Letter("withdraw", "t", name="expired"))
    assert refused(inbox, Letter("answer", "t")) == "second"
    assert [entry.outcome for _, entry in journal.take() if isinstance(entry, Answer)] == ["expired"]
    inbox.close()


def test_signals_and_cancels_are_for_jobs_that_are_there_and_come_once(home: Home, journal: Journal) -> None:
    written(journal, Begin("a", 1), Begin("b", 1), End("b", 2, "succeeded"))
    inbox = home.inbox()
    assert refused(inbox, Letter("cancel", job="nobody")) == "unknown"
    assert refused(inbox, Letter("cancel", job="b")) == "closed"
    assert refused(inbox, Letter("signal", job="a", name="s")) == "unknown"
    for token in ("1", "2"):
        inbox.post(Letter("signal", token, "a", "s"))
    assert refused(inbox, Letter("signal", "1", "a", "s")) == "second"
    inbox.post(Letter("cancel", job="a"))
    assert refused(inbox, Letter("cancel", job="a")) == "second"
    assert [type(entry) for _, entry in journal.take()] == [Signal, Signal, Cancel]
    inbox.close()


def test_the_token_of_a_signal_is_one_of_its_job(home: Home, journal: Journal) -> None:
    """Who had sent his job the token `order-7` first kept the signal of another tenant from its job, as sent before."""
    written(journal, Begin("a", 1), Begin("b", 1), Begin("1:a", 1))
    inbox = home.inbox()
    sent = [("order-7", "a"), ("order-7", "b"), ("x", "1:a"), ("a:x", "1"), ("3:1:a:x", "a")]
    for token, job in sent:
        if job == "1":
            assert refused(inbox, Letter("signal", token, job, "s")) == "unknown"
        else:
            inbox.post(Letter("signal", token, job, "s"))
            assert refused(inbox, Letter("signal", token, job, "s")) == "second"
    assert [entry.job for _, entry in journal.take()] == ["a", "b", "1:a", "a"]
    inbox.close()


def test_a_job_that_begins_again_may_be_cancelled_again(home: Home, journal: Journal) -> None:
    """Its first cancel was refused a second time for good, also after its dead letter was sent again."""
    written(journal, Begin("a", 1))
    inbox = home.inbox()
    inbox.post(Letter("cancel", job="a"))
    journal.take()
    written(journal, End("a", 2, "failed"), Begin("a", 3, run=2))
    inbox.post(Letter("cancel", job="a", name="again"))
    assert refused(inbox, Letter("cancel", job="a")) == "second"
    assert [entry.reason for _, entry in journal.take() if isinstance(entry, Cancel)] == ["again"]
    inbox.close()


def test_a_job_that_has_failed_or_was_cancelled_is_begun_again_by_a_letter_once_a_run(
    home: Home, journal: Journal
) -> None:
    written(journal, Begin("a", 1), Begin("b", 1), End("b", 2, "succeeded"), Begin("c", 1))
    inbox = home.inbox()

    def retry(job: str, run: int, began: int) -> Letter:
        body = encode_entry(Begin(job, 0, "app.f", b"\x01" * (INLINE_BYTES + 1), run=run))
        return Letter("retry", job=job, name=str(began), body=body)

    def began(job: str) -> int:
        mark = journal.job(job)
        assert mark is not None
        return mark.began.offset

    assert refused(inbox, retry("nobody", 2, 0)) == "unknown"
    assert refused(inbox, retry("b", 2, began("b"))) == "closed"
    assert refused(inbox, retry("a", 2, began("a"))) == "second"  # it runs
    for run, outcome in ((2, "failed"), (3, "cancelled")):
        before = began("a")
        written(journal, End("a", 2, outcome))
        inbox.post(retry("a", run, before))
        assert refused(inbox, retry("a", run, before)) == "second"
        [(position, entry)] = journal.take()
        assert isinstance(entry, Begin)
        assert (entry.job, entry.run, entry.at_ms > 0) == ("a", run, True)
        assert journal.wait_durable(position, 60)
        assert journal.take() == []
        assert refused(inbox, retry("a", run + 1, before)) == "second"  # read before it began again
        mark = journal.job("a")
        assert mark is not None
        assert (mark.outcome, mark.status, mark.began) == ("", "running", position)
        stored = list(journal.read("a"))[-1][1]
        assert isinstance(stored, Begin)
        assert journal.load(stored.body) == b"\x01" * (INLINE_BYTES + 1)
    inbox.close()


def beginning(job: str, agent: str = "app.f", body: bytes = b"asked") -> Letter:
    return Letter("begin", job=job, name=agent, body=encode_entry(Begin(job, 7, agent, body, digest=b"d")))


def test_a_letter_begins_a_job_once(home: Home, journal: Journal) -> None:
    written(journal, Begin("there", 1), Begin("over", 1), End("over", 2, "succeeded"))
    journal.begins.agents = frozenset({"app.f"})
    inbox = home.inbox()
    for job in ("there", "over"):
        assert refused(inbox, beginning(job)) == "second"
    assert refused(inbox, Letter("cancel", job="a")) == "unknown"
    inbox.post(beginning("a", body=b"\x01" * (INLINE_BYTES + 1)))
    assert refused(inbox, beginning("a")) == "second"
    inbox.post(Letter("signal", "1", "a", "s"))  # it is queued, and gets letters already
    inbox.post(Letter("cancel", job="a"))
    inbox.post(beginning("b"))
    assert [letter.kind for letter in journal.letters()] == ["begin", "signal", "cancel", "begin"]
    taken = journal.take()
    assert [type(entry) for _, entry in taken] == [Begin, Signal, Cancel, End, Begin]
    position, begin = taken[0]
    assert isinstance(begin, Begin)
    assert begin.at_ms > 7  # its times count from now
    assert journal.wait_durable(taken[-1][0], 60)
    mark = journal.job("a")
    assert mark is not None
    assert (mark.began, mark.digest, mark.status) == (position, b"d", "cancelled")
    assert (journal.take(), journal.letters()) == ([], [])
    assert refused(inbox, beginning("a")) == "second"
    stored = next(entry for _, entry in journal.read("a"))
    assert isinstance(stored, Begin)
    assert journal.load(stored.body) == b"\x01" * (INLINE_BYTES + 1)
    inbox.close()


def test_letters_that_begin_jobs_are_posted_together(home: Home, journal: Journal) -> None:
    """Each job begins once, also if two letters of one call are for it."""
    written(journal, Begin("there", 1), Begin("over", 1), End("over", 2, "succeeded"))
    journal.begins.agents = frozenset({"app.f"})
    inbox = home.inbox()
    asked = [beginning("b"), beginning("there"), beginning("a"), beginning("b", body=b"other"), beginning("over")]
    assert inbox.begin(asked) == [True, False, True, False, False]
    assert (inbox.begin([]), journal.begin([beginning("a"), beginning("c")])) == ([], [False, True])
    with pytest.raises(UserError):
        inbox.begin([replace_body(beginning("d"), "no bytes")])
    assert refused(inbox, beginning("c")) == "second"
    with closing(home.reader()) as reader:  # another one sees them as soon as they are posted
        assert [letter.job for letter in reader.letters()] == ["b", "a", "c"]
    begun = [entry for _, entry in journal.take()]
    assert [(each.job, each.body) for each in begun if isinstance(each, Begin)] == [(job, b"asked") for job in "bac"]
    assert journal.begin([beginning("a"), beginning("e")]) == [False, True]
    assert journal.statistics()["refused"] == 2
    inbox.close()


class Transactions:
    """Counts the letters' transactions."""

    def __init__(self) -> None:
        self.letters = 0

    def before(self, name: str, what: str) -> None:
        self.letters += what.endswith(": letter")

    def after(self, name: str, what: str) -> None:
        pass

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_letters_to_jobs_are_posted_together(home: Home, journal: Journal) -> None:
    """Who is refused holds up nobody else. In tables all are one transaction."""
    written(journal, Begin("a", 1), Begin("b", 1), Begin("over", 1), End("over", 2, "succeeded"))
    inbox, seen = home.inbox(), Transactions()
    jobs = ("a", "over", "a", "none", "b")
    signal = Letter("signal", "s", job="b", name="paid")
    watch(seen)
    try:
        found = inbox.post_all([*(Letter("cancel", job=job) for job in jobs), signal])
    finally:
        watch(None)
    reasons = [each and each.reason for each in found]
    assert reasons == [None, "closed", "second", "unknown", None, None]
    if isinstance(inbox, SqliteInbox | PostgresInbox):
        assert seen.letters == 1
    assert (inbox.post_all([]), [each and each.reason for each in journal.post_all([signal])]) == ([], ["second"])
    assert journal.statistics()["refused"] == 1
    assert [(type(entry), entry.job) for _, entry in journal.take()] == [(Cancel, "a"), (Cancel, "b"), (Signal, "b")]
    inbox.close()


def replace_body(letter: Letter, body: Any) -> Letter:
    return msgspec.structs.replace(letter, body=body)


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_a_letter_for_an_agent_that_the_owner_does_not_have_waits_for_one_that_has_it(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """An app has no agents whose jobs clients begin. The journal would have an open job that no start can go on with."""
    journal = home.owner()
    inbox = home.inbox()
    inbox.post(beginning("a"))
    inbox.post(beginning("b", "app.g"))
    assert (journal.take(), journal.take()) == ([], [])
    assert caplog.text.count("a client has begun job a of agent app.f") == 1
    journal.close()
    journal = home.owner()
    journal.begins.agents = frozenset({"app.f"})
    assert [entry.job for _, entry in journal.take()] == ["a"]
    journal.close()
    journal = home.owner()
    journal.begins.agents = frozenset({"app.f", "app.g"})
    assert [entry.job for _, entry in journal.take()] == ["b"]
    journal.close()
    inbox.close()


def test_a_job_that_the_owner_begins_itself_is_not_begun_by_a_letter_too(home: Home) -> None:
    journal = home.owner()
    journal.begins.agents = frozenset({"app.f"})
    inbox = home.inbox()
    inbox.post(beginning("a"))
    journal.begins.reserve("a")
    assert journal.take() == []
    written(journal, Begin("a", 1, "app.f"))
    journal.begins.release("a")
    assert journal.take() == []
    journal.close()
    journal = home.owner()  # the letter is still there, and the job has begun
    journal.begins.agents = frozenset({"app.f"})
    assert journal.take() == []
    written(journal, End("a", 2, "succeeded"))
    journal.trim({0: 1 << 40})
    assert journal.take() == []
    journal.close()
    inbox.close()


@pytest.mark.one_in(6, "some hundredths of a second of a core each")
def test_of_many_who_answer_at_once_one_is_accepted(home: Home, journal: Journal) -> None:
    written(journal, *asked())
    accepted: list[int] = []
    reasons: list[str] = []

    def work(number: int) -> None:
        inbox = home.inbox()
        try:
            inbox.post(Letter("answer", "t", body=str(number).encode()))
            accepted.append(number)
        except LetterRefused as error:
            reasons.append(error.reason)
        finally:
            inbox.close()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(accepted) == 1
    assert reasons == ["second"] * 7
    assert [entry.body for _, entry in journal.take() if isinstance(entry, Answer)] == [str(accepted[0]).encode()]


# -- against a list ---------------------------------------------------------------------------------------------------

JOBS = st.sampled_from("abc")
STEPS = st.one_of(
    st.tuples(st.just("begin"), JOBS),
    st.tuples(st.just("result"), JOBS),
    st.tuples(st.just("end"), JOBS),
    st.tuples(st.just("trim"), st.integers(0, 40)),
    st.tuples(st.just("again"), st.just("")),
)


def test_a_claim_that_ends_with_the_process_has_no_time(tmp_path: Path) -> None:
    for home in (InMemory(), InSqlite(tmp_path)):
        journal = home.owner()
        assert (journal.claim_left(), journal.predecessor_left("a")) == (math.inf, -math.inf)
        journal.close()


@pytest.mark.slow  # a second of a core
@pytest.mark.parametrize("kind", HOMES)
def test_a_journal_is_a_list_of_entries_from_which_ended_jobs_are_trimmed(
    kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples={"kafka": 10, "postgres": 30}.get(kind, 100), deadline=None)
    @given(st.lists(STEPS, max_size=25))
    def check(steps: list[tuple[str, str | int]]) -> None:
        home = home_of(kind, request, tmp_path_factory.mktemp("journal"))
        journal = home.owner()
        model: list[tuple[int, Entry]] = []
        ended: set[str] = set()
        count = trimmed = 0
        for verb, what in steps:
            if verb == "trim":
                asyncio.run(journal.flush())
                journal.trim({0: int(what)})
                gone = {job for job in ended if all(at < int(what) for at, entry in model if entry.job == job)}
                ends = [at + 1 for at, entry in model if entry.job in gone and isinstance(entry, End)]
                trimmed = max([trimmed, *ends])
                model = [(at, entry) for at, entry in model if entry.job not in gone]
            elif verb == "again":
                journal.close()
                journal = home.owner()
            else:
                job = str(what)
                entry: Entry = {
                    "begin": Begin(job, count),
                    "result": EffectResult(job, count, count),
                    "end": End(job, count, "succeeded"),
                }[verb]
                (ended.add if verb == "end" else ended.discard if verb == "begin" else ended.intersection)(
                    job  # type: ignore[arg-type]
                )
                journal.append(entry)
                model.append((count, entry))
                count += 1
        asyncio.run(journal.flush())
        assert [(position.offset, entry) for position, entry in journal.read()] == model
        assert journal.positions() == {0: count}
        assert journal.trimmed().get(0, 0) == trimmed
        journal.close()

    check()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_a_signal_goes_with_the_job_that_it_names_whatever_its_token_is(home: Home, journal: Journal) -> None:
    """The token of a signal is its sender's own, and may be that of a question of another job."""
    written(journal, *asked("a", "t"), Begin("b", 1))
    inbox = home.inbox()
    inbox.post(Letter("signal", "t", "b", "s"))
    last = written(journal, End("a", 2, "succeeded"))
    assert journal.trim({0: last.offset + 1}) == 3
    assert [entry.job for _, entry in journal.take()] == ["b"]
    inbox.close()


def test_a_letter_that_could_not_be_read_again_is_refused(home: Home, journal: Journal) -> None:
    """In the inbox it would be in the way of all other letters, at each start."""
    written(journal, *asked())
    inbox = home.inbox()
    with pytest.raises(UserError, match="a letter cannot be written down"):
        inbox.post(Letter("answer", "t", body="yes"))  # type: ignore[arg-type]
    assert journal.take() == []
    inbox.post(Letter("answer", "t", body=b"yes"))
    assert len(journal.take()) == 1
    inbox.close()


# -- history ----------------------------------------------------------------------------------------------------------


def row_of(reader: JournalReader, job: str) -> EndedJob | None:
    """A row of the history: job "tom-1" is of agent shop.tom, and so on."""
    found = [entry for _, entry in reader.history.entries(job)]
    begun = next((entry for entry in found if isinstance(entry, Begin)), None)
    if begun is None:
        return None
    name = job.partition("-")[0].partition("~")[0]
    end = next(entry for entry in reversed(found) if isinstance(entry, End))
    text = f"{job} {end.result}".casefold()
    times = begun.at_ms, end.at_ms
    return EndedJob(
        *(job, f"shop.{name}", name, begun.scope, job[-1], end.outcome, *times, text),
        *(len(found), 5, end.outcome.encode(), begun.session),
    )


def test_the_jobs_of_a_session_are_found_in_the_log_and_in_the_history(home: Home, journal: Journal) -> None:
    told = [(f"tom-{n}", f"chat-{n % 2}" if n < 4 else "") for n in range(5)]
    for at_ms, (job, session) in enumerate(told):
        last = written(journal, Begin(job, at_ms, "shop.tom", session=session), End(job, at_ms + 1, "succeeded"))
    keeping(journal)
    assert journal.trim({0: last.offset - 3}) == 6, "the first three jobs move into the history"
    reader, query = home.reader(), JobQuery(session="chat-1")
    for each in (journal, reader):
        assert [row.job for row in each.history.find(query, 10)] == ["tom-1"]
        assert [row.session for row in each.history.find(JobQuery(), 10)] == ["chat-0", "chat-1", "chat-0"]
        assert [mark.job for mark in each.logged(query, 10)] == ["tom-3"]
        assert (each.history.counts(query), each.logged_counts(query)) == ({"succeeded": 1}, {"succeeded": 1})
        assert each.history.find(JobQuery(session="chat"), 10) == []


def keeping(journal: Journal, seconds: float = 1e12, most_bytes: int = 1 << 40) -> None:
    journal.keeping = JobKeeping(row_of, seconds, most_bytes)


def ended(journal: Journal, *jobs: str, at: int = 1, outcome: str = "succeeded", body: bytes = b"") -> dict[int, int]:
    """Jobs that have begun, made an effect and ended; and the position behind them."""
    last = Position(0, 0)
    for job in jobs:
        result = EffectResult(job, at, 1, body=body)
        last = written(
            journal, Begin(job, at, scope=f"of {job[0]}"), result, End(job, at + 1, outcome, "why 100%_done")
        )
    return {0: last.offset + 1}


def test_what_is_trimmed_is_in_the_history_and_its_entries_are_read_there(home: Home, journal: Journal) -> None:
    long = b"long" * INLINE_BYTES
    place = ended(journal, "tom-1", "ann-2", body=long)
    written(journal, Begin("tom-3", 5))
    before = {job: list(journal.read(job)) for job in ("tom-1", "ann-2")}
    keeping(journal)
    assert journal.trim(place) == 6
    assert {entry.job for entry in entries(journal)} == {"tom-3"}
    reader = home.reader()
    for each in (journal, reader):
        history = each.history
        assert [job.job for job in history.find(JobQuery(), 10)] == ["tom-1", "ann-2"]
        assert history.find(JobQuery(agent="tom"), 10) == [row_of(journal, "tom-1")]
        for job, entries_before in before.items():
            assert entries(each, job) == []
            assert list(history.entries(job)) == entries_before
            assert [each.load(entry.body) for _, entry in entries_before if isinstance(entry, EffectResult)] == [long]
        assert [entry for _, entry in history.entries("tom-3")] == [Begin("tom-3", 5)]
        assert list(history.entries("nobody")) == []
    reader.close()
    assert journal.trim(place) == 0
    assert journal.history.counts(JobQuery()) == {"succeeded": 2}


def test_the_history_is_found_by_agent_scope_key_status_text_and_time_a_page_at_a_time(journal: Journal) -> None:
    keeping(journal)
    for number in range(6):
        outcome = "failed" if number == 3 else "succeeded"
        ended(journal, f"{'tom' if number % 2 else 'ann'}-{number}", at=10 * number, outcome=outcome)
    journal.trim({0: 1 << 40}, forget_before_ms=1 << 40)
    find = journal.history.find

    def found(most: int = 10, **query: Any) -> str:
        counted = sum(journal.history.counts(JobQuery(**query)).values())
        jobs = "".join(job.key for job in find(JobQuery(**query), most))
        assert counted >= len(jobs)
        return jobs

    assert found() == "543210"
    assert found(agent="tom") == found(agent="shop.tom") == found(scope="of t") == "531"
    assert found(key="4") == "4"
    assert found(status="failed") == found(text="TOM-3") == found(since=0.03, until=0.04) == "3"
    assert found(text="Y 100%_D") == "543210"
    assert found(text="100_") == found(text="\\") == found(agent="om") == ""
    first = find(JobQuery(), 4)
    assert [job.key for job in find(JobQuery(after=cursor_of(first[-1].created_ms, first[-1].job)), 4)] == ["1", "0"]
    assert journal.history.counts(JobQuery(agent="tom")) == {"succeeded": 2, "failed": 1}
    assert [job.job for job in journal.history.known(["tom-3", "nobody"])] == ["tom-3"]
    assert journal.history.known([]) == []


def test_the_history_says_what_the_jobs_below_a_job_have_used(journal: Journal) -> None:
    keeping(journal)
    journal.trim(ended(journal, "tom", "tom~1", "tom~1~2", "tom-4"))
    used = journal.history.used_below(["tom", "tom~1", "tom-4"])
    nanodollar = Decimal("1e-9")
    assert used == {"tom": Amounts(6, 10 * nanodollar), "tom~1": Amounts(3, 5 * nanodollar)}
    assert journal.history.used_below([]) == {}


def test_ended_jobs_leave_the_history_by_their_age(home: Home, journal: Journal) -> None:
    now = round(home.clock.time() * 1000)
    keeping(journal, seconds=60)
    body = b"long" * INLINE_BYTES
    journal.trim(ended(journal, "tom-1", at=now, body=body))
    home.clock.advance(61)
    place = ended(journal, "ann-2", at=now + 61_000, body=body)
    journal.trim(place)
    assert [job.job for job in journal.history.find(JobQuery(), 10)] == ["ann-2"]
    assert list(journal.history.entries("tom-1")) == []
    (stored,) = [entry.body for _, entry in journal.history.entries("ann-2") if isinstance(entry, EffectResult)]
    assert journal.load(stored) == body, "another job names it too"
    home.clock.advance(61)
    journal.trim(place)
    assert journal.history.counts(JobQuery()) == {}
    with pytest.raises(CorruptJournal, match="missing"):
        journal.load(stored)


def test_the_oldest_jobs_leave_a_history_that_is_too_long(journal: Journal) -> None:
    body = bytes(10_000)
    place = ended(journal, *(f"tom-{number}" for number in range(9)), body=body)
    keeping(journal, most_bytes=35_000)
    journal.trim(place)
    assert [job.key for job in journal.history.find(JobQuery(), 10)] == ["8", "7", "6"]
    keeping(journal, most_bytes=25_000)
    journal.trim(place)
    assert [job.key for job in journal.history.find(JobQuery(), 10)] == ["8", "7"]
    assert journal.trim(ended(journal, "tom-9", at=5, body=body)) == 3
    assert [job.key for job in journal.history.find(JobQuery(), 10)] == ["9", "8"]


def test_a_job_that_begins_again_after_it_was_moved_is_in_the_history_once(journal: Journal) -> None:
    keeping(journal)
    journal.trim(ended(journal, "tom-1"))
    place = ended(journal, "tom-1", at=9, outcome="failed")
    assert len(list(journal.history.entries("tom-1"))) == 6
    journal.trim(place, forget_before_ms=1 << 40)
    (job,) = journal.history.find(JobQuery(), 10)
    assert (job.status, job.tokens, len(list(journal.history.entries("tom-1")))) == ("failed", 6, 6)
    keeping(journal, most_bytes=0)
    journal.trim(place)
    assert list(journal.history.entries("tom-1")) == []


def test_a_history_that_is_not_kept_any_more_goes_with_the_next_trim(journal: Journal) -> None:
    keeping(journal)
    place = ended(journal, "tom-1")
    journal.trim(place)
    journal.keeping = JobKeeping(row_of, 0, 0)
    journal.trim(place)
    assert journal.history.counts(JobQuery()) == {}


class Killed(BaseException):
    """The end of a process."""


class DiesAt:
    """Dies before step number `at`, counted from 0, or, with a half, behind it; counts the steps."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.steps = 0

    def before(self, name: str, what: str) -> None:
        if self.steps == self.at:
            raise Killed

    def after(self, name: str, what: str) -> None:
        self.steps += 1
        if self.steps == self.at + 0.5:
            raise Killed

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.mark.one_in(3, "a quarter of a second of a core each")
@pytest.mark.parametrize("kind", ["sqlite", "postgres", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_no_job_is_lost_or_doubled_if_the_owner_dies_at_a_step_of_a_trim(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    jobs, at, dead = ["tom-1", "ann-2", "tom-3"], 0.0, True
    while dead:
        dead = False
        home = home_of(kind, request, tmp_path / str(at))
        owner = home.owner()
        place = ended(owner, "old-0")
        keeping(owner)
        owner.trim(place)
        place = ended(owner, *jobs, at=round(home.clock.time() * 1000))
        keeping(owner, seconds=60)
        watch(DiesAt(at))
        try:
            owner.trim(place, forget_before_ms=1)
        except Killed:
            dead = True
        finally:
            watch(None)
        with suppress(SabotError):
            owner.close()
        owner = home.owner()
        logged = {entry.job for entry in entries(owner)}
        kept = [job.job for job in owner.history.find(JobQuery(), 10) if job.job in jobs]
        assert sorted([*logged, *kept]) == sorted(jobs)
        assert all(len(list(owner.history.entries(job))) == 3 for job in jobs)
        keeping(owner, seconds=60)
        owner.trim(place)
        assert owner.history.counts(JobQuery()) == {"succeeded": 3}
        assert not entries(owner)
        assert not list(owner.history.entries("old-0"))
        owner.close()
        at += 0.5
    assert at > 3  # a step for the jobs that move, one for the marks, one for those that are too old


# -- lists ------------------------------------------------------------------------------------------------------------


def listed(reader: JournalReader, **query: Any) -> list[tuple[str, str]]:
    return [(mark.job, mark.status) for mark in reader.logged(JobQuery(**query), EVERY)]


def test_a_list_says_how_far_each_job_is_and_reads_no_entries(home: Home, journal: Journal) -> None:
    written(
        journal,
        Begin("a", 1000, "shop.refund", key=state_key(7), scope="eu", principal="ann", session="s"),
        Begin("b", 2000, "shop.refund", key=state_key("bob"), scope="us"),
        Intent("b", 2001, 1, "ask", "confirm", token="t1"),
        Intent("b", 2001, 1, "ask", "confirm", token="t1"),  # asked again with its token
        Intent("b", 2002, 2, "ask", "confirm", token="t2"),
        Begin("c", 3000),  # requested, and taken by nobody yet
        Begin("d", 4000, "shop.mail", origin=JobOrigin("a", "1", 500)),
        End("d", 4001, "failed", "ValueError"),
        Begin("e", 5000, "shop.mail"),
        End("e", 5001, "lost in space"),
        End("f", 6000, "succeeded"),  # its beginning is gone
    )
    reader = home.reader()
    for each in (journal, reader):
        assert listed(each) == [
            ("e", "failed"),
            ("c", "queued"),
            ("b", "waiting_action"),
            ("a", "running"),
            ("d", "failed"),
        ]
        (first,) = each.logged(JobQuery(key="7"), 9)
        assert (first.agent, first.scope, first.principal, first.session) == ("shop.refund", "eu", "ann", "s")
        assert (first.key, first.created_ms, first.asks) == ("7", 1000, 0)
        assert each.logged_counts(JobQuery()) == {"failed": 2, "queued": 1, "waiting_action": 1, "running": 1}
        assert listed(each, agent="mail") == listed(each, agent="shop.mail") == [("e", "failed"), ("d", "failed")]
        assert listed(each, agent="op.mail") == listed(each, agent="ail") == []
        assert listed(each, status="waiting_action", scope="us", since=2, until=3) == [("b", "waiting_action")]
        assert listed(each, after=cursor_of(2000, "b")) == [("a", "running"), ("d", "failed")]
        assert [mark.job for mark in each.logged(JobQuery(), 2)] == ["e", "c"]
    written(journal, Answer("b", 7000, 1, "t1"))
    assert listed(reader, status="waiting_action") == [("b", "waiting_action")]
    written(journal, Answer("b", 7001, 2, "t2"), Answer("b", 7001, 2, "t2"), Attempt("c", 7002, 0, 1))
    assert listed(reader, status="running") == [("c", "running"), ("b", "running"), ("a", "running")]
    reader.close()


def test_a_question_from_before_a_new_history_is_not_counted(journal: Journal) -> None:
    written(journal, Begin("a", 1, "shop.ask"), Intent("a", 2, 1, "ask", "old", token="old"), Begin("a", 3, "shop.ask"))
    assert listed(journal) == [("a", "running")]
    written(journal, Intent("a", 4, 2, "ask", "new", token="new"), Answer("a", 5, 1, "old"))
    assert listed(journal) == [("a", "waiting_action")]
    assert [mark.created_ms for mark in journal.logged(JobQuery(), 1)] == [1]


def test_jobs_whose_entries_were_trimmed_are_in_no_list_until_they_begin_again(home: Home, journal: Journal) -> None:
    keeping(journal)
    written(journal, Begin("a~1", 1, "shop.b"))
    for job in ("a", "b"):
        ended(journal, job, at=2, outcome="failed")
    journal.trim(journal.positions(), 1)
    assert (listed(journal, status="failed"), journal.begun_again()) == ([("b", "failed"), ("a", "failed")], [])
    journal.trim(journal.positions(), 1 << 60)
    assert (listed(journal), journal.begun_again()) == ([("a~1", "running")], [])
    assert journal.logged_below(["a", "b"]) == ["a~1"]
    written(journal, Begin("a", 9, "shop.a"))
    reader = home.reader()
    for each in (journal, reader):
        assert (listed(each, status="running"), each.begun_again()) == ([("a", "running"), ("a~1", "running")], ["a"])
    reader.close()


def test_a_list_says_why_jobs_are_blocked_until_they_end_or_begin_again(home: Home, journal: Journal) -> None:
    before = written(
        journal,
        Begin("a", 1000, "shop.refund"),
        Begin("b", 2000, "shop.refund"),
        Intent("b", 2001, 1, "ask", "confirm", token="t1"),
        Begin("c", 3000),
        Begin("d", 4000, "shop.refund"),
        End("d", 4001, "failed"),
    )
    journal.note_blocked({"a": "another call", "b": "no call\0" + "x" * 1000, "c": "no agent", "d": "ended", "e": "?"})
    reader = home.reader()
    for each in (journal, reader):
        assert listed(each, status="blocked") == [("c", "blocked"), ("b", "blocked"), ("a", "blocked")]
        assert listed(each, status="running") == listed(each, status="waiting_action") == []
        assert each.logged_counts(JobQuery()) == {"blocked": 3, "failed": 1}
        reasons = {mark.job: (mark.blocked, mark.asks) for mark in each.logged(JobQuery(), EVERY)}
        assert reasons.pop("b") == ("no call\ufffd" + "x" * 492, 1)
        assert reasons == {"a": ("another call", 0), "c": ("no agent", 0), "d": ("", 0)}
        assert each.positions() == {0: before.offset + 1}  # the log has no entry of it
    journal.note_blocked({"c": ""})
    written(journal, Answer("b", 5000, 1, "t1"), Begin("b", 5001, "shop.refund"), End("a", 5001, "cancelled"))
    for each in (journal, reader):
        assert listed(each) == [("d", "failed"), ("c", "queued"), ("b", "running"), ("a", "cancelled")]
        assert not any(mark.blocked for mark in each.logged(JobQuery(), EVERY))
    reader.close()


@pytest.mark.one_in(3, "hundredths of a second of a core each")
def test_the_next_owner_and_a_copy_of_the_journal_know_which_jobs_are_blocked(home: Home) -> None:
    first = home.owner()
    written(first, Begin("a", 1000, "shop.refund"))
    first.note_blocked({"a": "another call"})
    if isinstance(first, KafkaJournal):
        first._copy()
    first.close()
    second = home.owner()
    assert listed(second) == [("a", "blocked")]
    second.close()


@pytest.mark.one_in(9, "some tenths of a second of a core each")
@pytest.mark.parametrize("seed", range(3))
def test_the_list_of_a_journal_is_that_of_its_entries(home: Home, journal: Journal, seed: int) -> None:
    """Against the plain fold of all entries, which journals of an older format use."""
    dice, made = Random(seed), list[Entry]()
    for number in range(120):
        job, token = f"job-{dice.randrange(4)}", f"t{dice.randrange(5)}"
        made.append(
            dice.choice(
                [
                    Begin(job, number, dice.choice(["", "shop.a"])),
                    Attempt(job, number, dice.randrange(2), 1),
                    Intent(job, number, 1, "ask", token=f"{job}{token}"),
                    Intent(job, number, 1, "ask", token=f"{job}{token}"),
                    Answer(job, number, 1, f"{job}{token}"),
                    EffectResult(job, number, 1),
                    End(job, number, dice.choice(["succeeded", "failed"])),
                ]
            )
        )
    for first in range(0, len(made), 30):
        written(journal, *made[first : first + 30])
        known = JobMarks()
        for position, entry in journal.read():
            known.apply(position.offset, entry)
        reader = home.reader()
        for each in (journal, reader):
            # no entry says who holds a job
            found = [replace(mark, worker=0) for mark in each.logged(JobQuery(), EVERY)]
            assert found == selected(known.marks.values(), JobQuery(), EVERY)
        reader.close()
