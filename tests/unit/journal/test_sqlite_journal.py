"""The journal in SQLite where the machine fails: killed, torn, full, taken over, of somebody else."""

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

import pytest

from sabot.errors import AppLocked, CorruptJournal, JournalFailed, JournalFull, SabotError, TransientError, UserError
from sabot.journal import Letter, sqlite, tables
from sabot.journal.base import EVERY, JobMark
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Answer, Begin, EffectResult, End, Intent, encode_entry
from sabot.journal.job_tables import find_statement, statement_of_counts
from sabot.journal.sqlite import DATABASE, SqliteInbox, SqliteJournal, SqliteReader
from sabot.journal.tables import checksum
from sabot.journal.writing import Appended, GroupWriter
from sabot.steps import watch
from tools.older_journals import EFFECT, GIVEN, OLDER, without_sessions, write_ended, write_given


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    owner = SqliteJournal(tmp_path / "journal")
    yield owner
    owner.close()


def as_a_crash_leaves_it(journal: SqliteJournal, copy: Path) -> Path:
    """The files as they are now, in another folder: what a process that was killed leaves behind."""
    copy.mkdir(mode=0o700)
    folder = Path(journal.where.removeprefix("journal ")).parent
    for name in (DATABASE, f"{DATABASE}-wal"):
        shutil.copyfile(folder / name, copy / name)
    return copy


def jobs_of(folder: Path) -> list[str]:
    """The jobs of all entries, as a new owner reads them."""
    owner = SqliteJournal(folder)
    try:
        return [entry.job for _, entry in owner.read()]
    finally:
        owner.close()


def fill(journal: SqliteJournal, count: int, first: int = 0, body: bytes = b"") -> None:
    """So many entries, each in a commit of its own."""
    for number in range(first, first + count):
        assert journal.wait_durable(journal.append(Begin(f"job-{number}", 0, body=body)), 60)


# -- files ------------------------------------------------------------------------------------------------------------


def test_its_files_are_for_our_user_alone(tmp_path: Path, journal: SqliteJournal) -> None:
    fill(journal, 1)
    folder = tmp_path / "journal"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(["LOCK", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"], 0o600)


def test_a_commit_is_one_fsync(journal: SqliteJournal) -> None:
    assert journal._writing.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_journal_that_was_half_made_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir(mode=0o700)
    (folder / f"{DATABASE}.new").write_bytes(b"half")
    (folder / f"{DATABASE}.new-journal").write_bytes(b"half")
    journal = SqliteJournal(folder)
    fill(journal, 1)
    journal.close()
    assert sorted(path.name for path in folder.iterdir()) == ["LOCK", DATABASE]


def test_a_journal_that_is_begun_anew_is_another_one_and_has_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    before = SqliteJournal(folder)
    assert before.is_new
    fill(before, 3)
    assert not before.is_new
    with pytest.raises(AppLocked):
        SqliteJournal(folder, anew=True)  # while somebody has it
    assert len(list(before.read())) == 3
    before.close()
    after = SqliteJournal(folder, anew=True)
    assert (after.is_new, list(after.read())) == (True, [])
    assert after.identity != before.identity
    assert after.key != before.key
    after.close()


def test_a_journal_that_a_refused_start_has_made_goes_with_it_and_no_other_does(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    SqliteJournal(folder).abandon()
    assert list(tmp_path.iterdir()) == []
    used = SqliteJournal(folder)
    fill(used, 1)
    used.abandon()
    assert jobs_of(folder) == ["job-0"]
    shutil.rmtree(folder)
    SqliteJournal(folder).close()
    identity = SqliteReader(folder).identity
    SqliteJournal(folder).abandon()  # an earlier start had made it, and a checkpoint may know of it
    assert SqliteReader(folder).identity == identity
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    (folder / "copy").touch()
    SqliteJournal(folder).abandon()
    assert sorted(each.name for each in folder.iterdir()) == ["LOCK", "copy"]


def test_a_log_whose_database_is_gone_is_refused(tmp_path: Path, journal: SqliteJournal) -> None:
    """Made anew beside it, the database would be given the pages of the old log."""
    fill(journal, 3)
    crashed = as_a_crash_leaves_it(journal, tmp_path / "crashed")
    (crashed / DATABASE).unlink()
    with pytest.raises(CorruptJournal, match=r"journal\.db is gone, and its log journal\.db-wal is there"):
        SqliteJournal(crashed)
    (crashed / f"{DATABASE}-wal").unlink()
    assert jobs_of(crashed) == []


def test_what_is_no_journal_of_ours_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    folder.mkdir(mode=0o700)
    with sqlite3.connect(folder / DATABASE) as other:
        other.execute("CREATE TABLE users (name)")
    other.close()
    with pytest.raises(CorruptJournal, match="no journal of Sabot"):
        SqliteJournal(folder)
    (folder / DATABASE).write_bytes(b"text" * 5000)
    for opened in (SqliteJournal, SqliteReader, SqliteInbox):
        with pytest.raises(CorruptJournal):
            opened(folder)
    with pytest.raises(UserError, match="has no journal"):
        SqliteReader(tmp_path / "elsewhere")


def test_a_later_format_is_refused_by_its_number(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "journal").close()
    with sqlite3.connect(tmp_path / "journal" / DATABASE) as database:
        database.execute("PRAGMA user_version = 13")
    database.close()
    with pytest.raises(UserError, match="has format 13, and this Sabot knows 12"):
        SqliteJournal(tmp_path / "journal")


# -- owners -----------------------------------------------------------------------------------------------------------


def test_a_refused_owner_names_the_process_that_has_it(tmp_path: Path, journal: SqliteJournal) -> None:
    with pytest.raises(AppLocked, match=f"belongs to process {os.getpid()}"):
        SqliteJournal(tmp_path / "journal")


def test_an_owner_whose_lock_was_removed_writes_nothing_more(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "journal")
    fill(first, 1)
    (tmp_path / "journal" / "LOCK").unlink()
    second = SqliteJournal(tmp_path / "journal")
    position = first.append(Begin("late", 0))
    with pytest.raises(JournalFailed, match="another owner has taken the journal over"):
        first.wait_durable(position, 60)
    with pytest.raises(JournalFailed):
        first.append(Begin("later", 0))
    first.close()
    fill(second, 1, 1)
    assert [entry.job for _, entry in second.read()] == ["job-0", "job-1"]
    second.close()


HOLDING = """
import sys, time
from sabot.journal.entries import Begin
from sabot.journal.sqlite import SqliteJournal
journal = SqliteJournal(sys.argv[1])
journal.wait_durable(journal.append(Begin("job-0", 0)))
print("held", flush=True)
time.sleep(600)
"""


def test_an_owner_that_is_paused_keeps_the_journal_and_one_that_is_killed_does_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path / "journal"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    child.send_signal(signal.SIGSTOP)
    with pytest.raises(AppLocked, match=f"belongs to process {child.pid}"):
        SqliteJournal(tmp_path / "journal")
    assert len(list(SqliteReader(tmp_path / "journal").read())) == 1
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert jobs_of(tmp_path / "journal") == ["job-0"]


def test_an_entry_of_a_later_version_is_told_by_its_number(tmp_path: Path, journal: SqliteJournal) -> None:
    data = b"\x09" + encode_entry(Begin("job-1", 0))[1:]
    fill(journal, 1)
    with sqlite3.connect(tmp_path / "journal" / DATABASE) as database:
        database.execute("INSERT INTO entries VALUES (1, 'job-1', ?, ?)", (checksum(1, "job-1", data), data))
    database.close()
    with pytest.raises(UserError, match=r"journal\.db: an entry has version 9, and this Sabot knows 1"):
        list(journal.read())


def test_an_entry_whose_bytes_have_become_text_is_damaged(tmp_path: Path, journal: SqliteJournal) -> None:
    """A changed byte of a page may change the type of a value."""
    fill(journal, 1)
    with sqlite3.connect(tmp_path / "journal" / DATABASE) as database:
        database.execute("UPDATE entries SET entry = 'text'")
    database.close()
    with pytest.raises(CorruptJournal, match="entry 0 is damaged"):
        list(journal.read())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="who may not"):
        SqliteJournal(tmp_path / "journal")


def test_entries_wait_while_another_process_holds_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tables, "_WAIT_SECONDS", 0.05)
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 1)
    other = sqlite3.connect(tmp_path / "journal" / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    position = journal.append(Begin("job-1", 0))
    while "waiting: 1 entry" not in caplog.text:
        assert not journal.wait_durable(position, 0.01)
    with pytest.raises(TransientError, match="another process has held it"):
        journal.post(Letter("cancel", job="job-0"))
    other.execute("ROLLBACK")
    assert journal.wait_durable(position, 60)
    other.execute("BEGIN IMMEDIATE")
    position = journal.append(Begin("job-2", 0))
    journal.close()
    with pytest.raises(JournalFailed, match="locked"):
        journal.wait_durable(position, 60)
    other.close()
    assert jobs_of(tmp_path / "journal") == ["job-0", "job-1"]


# -- group commit -----------------------------------------------------------------------------------------------------


async def test_many_appends_are_few_commits(journal: SqliteJournal) -> None:
    for number in range(2000):
        journal.append(Begin(f"job-{number}", 0))
    await journal.flush()
    assert journal.statistics()["entries"] == 2000
    assert journal.statistics()["commits"] <= 20


class Disk:
    """A commit that waits until it is let go, and may fail."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.begun = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.error: Exception | None = None

    def commit(self, group: list[Appended]) -> None:
        self.groups.append(len(group))
        self.begun.release()
        self.go.acquire()
        if self.error is not None:
            raise self.error


async def test_what_comes_while_the_disk_is_busy_is_the_next_group() -> None:
    disk = Disk()
    writer = GroupWriter("here", 0, 0, disk.commit)
    first = writer.append(Begin("a", 0))
    disk.begun.acquire()
    rest = [writer.append(Begin("b", 0)) for _ in range(5)]
    disk.go.release()
    await writer.durable(first.offset)
    assert writer.durable_offset == 1
    disk.go.release()
    await writer.durable(rest[-1].offset)
    assert disk.groups == [1, 5]
    writer.close()


async def test_entries_that_are_appended_together_are_one_group() -> None:
    """A crash between a CANCEL and the END behind it would leave an open job of an agent that nobody has."""
    disk = Disk()
    writer = GroupWriter("here", 0, 0, disk.commit)
    writer.append(Begin("a", 0))
    disk.begun.acquire()
    for _ in range(4_094):
        writer.append(Begin("b", 0))
    last = writer.append_all([(Begin("c", 0), 7), *((Begin("d", 0), 0) for _ in range(4))])[-1]
    behind = writer.append(Begin("e", 0))
    disk.go.release(3)
    await writer.durable(behind.offset)
    assert (disk.groups, last.offset) == ([1, 4_099, 1], 4_099), "a group has 4,096, and what belongs to the last ones"
    writer.close()


async def test_a_full_queue_refuses_an_append_and_room_waits_for_the_disk() -> None:
    disk = Disk()
    writer = GroupWriter("here", 0, 0, disk.commit, capacity_bytes=1000)
    writer.append(Begin("a", 0))
    with pytest.raises(JournalFull, match="bytes wait for its disk"):
        [writer.append(Begin("a", 0)) for _ in range(10)]
    waiting = asyncio.ensure_future(writer.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    for _ in range(10):
        disk.go.release()
    await waiting
    last = writer.append(Begin("a", 0))
    await writer.durable(last.offset)
    writer.close()


async def test_who_was_told_of_room_may_append_an_entry_of_any_length() -> None:
    disk = Disk()
    writer = GroupWriter("here", 0, 0, disk.commit, capacity_bytes=1000)
    writer.append(Begin("a", 0))
    await writer.room()
    last = writer.append(Begin("b", 0, body=b"x" * 1000))
    with pytest.raises(JournalFull):
        writer.append(Begin("c", 0))
    disk.go.release(2)
    await writer.durable(last.offset)
    writer.close()


async def test_an_entry_longer_than_the_queue_passes_alone() -> None:
    disk = Disk()
    disk.go.release()
    writer = GroupWriter("here", 0, 0, disk.commit, capacity_bytes=1000)
    await writer.durable(writer.append(Begin("a", 0, body=b"x" * 50_000)).offset)
    writer.close()


async def test_a_failed_commit_is_told_to_all_who_wait_and_ends_the_journal() -> None:
    disk = Disk()
    writer = GroupWriter("here", 0, 0, disk.commit, capacity_bytes=1000)
    positions = [writer.append(Begin("a", 0)) for _ in range(3)]
    waiting = [asyncio.ensure_future(writer.durable(each.offset)) for each in positions]
    room = asyncio.ensure_future(writer.room())
    await asyncio.sleep(0)
    disk.error = OSError(28, "No space left on device")
    disk.go.release()
    for each in (*waiting, room):
        with pytest.raises(JournalFailed, match="here: entries could not be made durable"):
            await each
    with pytest.raises(JournalFailed, match="make room there; then open the journal anew"):
        writer.append(Begin("b", 0))
    with pytest.raises(JournalFailed):
        await writer.durable(positions[0].offset)
    with pytest.raises(JournalFailed):
        writer.wait_durable(positions[0].offset, 1)
    with pytest.raises(JournalFailed):
        await writer.room()
    assert writer.durable_offset == 0
    assert len(disk.groups) == 1
    writer.close()


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_journal_and_what_was_durable_is_there(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 3)
    (pages,) = journal._writing.execute("PRAGMA page_count").fetchone()
    journal._writing.execute(f"PRAGMA max_page_count = {pages + 3}")
    with pytest.raises(JournalFailed, match="disk is full") as error:
        fill(journal, 1000, 3, b"x" * 10_000)
    assert "make room" in error.value.hint
    with pytest.raises(JournalFailed):
        journal.append(Begin("more", 0))
    (durable,) = journal.positions().values()
    journal.close()
    assert durable >= 3
    assert jobs_of(tmp_path / "journal") == [f"job-{number}" for number in range(durable)]


LIMITED = """
import resource, signal, sys
from sabot.errors import JournalFailed
from sabot.journal.entries import Begin
from sabot.journal.sqlite import SqliteJournal
journal = SqliteJournal(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
try:
    for number in range(10_000):
        journal.wait_durable(journal.append(Begin(f"job-{number}", 0, body=b"x" * 10_000)))
        print(number, flush=True)
except JournalFailed as error:
    print("failed", error)
"""


@pytest.mark.slow  # a second of a core, or more
def test_a_write_that_the_system_cuts_short_leaves_what_was_durable(tmp_path: Path) -> None:
    """A limit on the size of files: a write is short, in the middle of a commit, as on a disk that fills up."""
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path / "journal"], capture_output=True, text=True)
    *numbers, last = done.stdout.splitlines()
    assert last.startswith("failed"), done.stderr
    assert len(numbers) > 5
    assert jobs_of(tmp_path / "journal")[: len(numbers)] == [f"job-{number}" for number in range(len(numbers))]


# -- torn writes and damage -------------------------------------------------------------------------------------------


def places(size: int) -> list[int]:
    """Each byte around the borders of header, frames and pages, and some between."""
    frame = 24 + 4096
    near = {32 + frame * number + delta for number in range(size // frame + 1) for delta in (-1, 0, 1, 23, 24, 25)}
    return sorted(place for place in {*near, 0, 1, 31, *range(0, size, 499)} if 0 <= place <= size)


@pytest.mark.slow  # a second of a core
def test_of_a_log_that_was_torn_at_any_byte_a_prefix_is_read(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 12)
    crashed = as_a_crash_leaves_it(journal, tmp_path / "crashed")
    journal.close()
    whole = (crashed / f"{DATABASE}-wal").read_bytes()
    every = [f"job-{number}" for number in range(12)]
    counts = []
    for number, place in enumerate(places(len(whole))):
        folder = tmp_path / f"torn-{number}"
        shutil.copytree(crashed, folder)
        (folder / f"{DATABASE}-wal").write_bytes(whole[:place])
        reader = SqliteReader(folder)
        found = [entry.job for _, entry in reader.read()]
        assert reader.positions() == {0: len(found)}
        reader.close()
        assert found == every[: len(found)]
        counts.append(len(found))
        shutil.rmtree(folder)
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 12)
    assert set(counts) == set(range(13))


@pytest.mark.slow  # half a second of a core
def test_of_a_log_with_a_changed_byte_a_prefix_is_read_and_the_owner_goes_on_behind_it(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 6)
    crashed = as_a_crash_leaves_it(journal, tmp_path / "crashed")
    journal.close()
    whole = (crashed / f"{DATABASE}-wal").read_bytes()
    for number, place in enumerate(range(40, len(whole), 2503)):
        folder = tmp_path / f"changed-{number}"
        shutil.copytree(crashed, folder)
        changed = bytearray(whole)
        changed[place] ^= 0x55
        (folder / f"{DATABASE}-wal").write_bytes(changed)
        owner = SqliteJournal(folder)
        found = [entry.job for _, entry in owner.read()]
        assert found == [f"job-{each}" for each in range(len(found))]
        fill(owner, 1, 100)
        owner.close()
        assert jobs_of(folder) == [*found, "job-100"]


@pytest.mark.slow  # half a second of a core
def test_a_damaged_database_is_told_and_never_read_as_something_else(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 40, body=b"a body of some length" * 20)
    journal.close()
    whole = (tmp_path / "journal" / DATABASE).read_bytes()
    told: list[bool] = []
    for place in range(0, len(whole), 397):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        folder = tmp_path / f"damaged-{place}"
        folder.mkdir(mode=0o700)
        (folder / DATABASE).write_bytes(changed)
        try:
            reader = SqliteReader(folder)
            found = [(position.offset, entry) for position, entry in reader.read()]
        except SabotError as error:
            told.append(str(folder) in str(error))
        else:
            wanted = [(number, Begin(f"job-{number}", 0, body=b"a body of some length" * 20)) for number in range(40)]
            assert found == wanted[: len(found)]
            reader.close()
        shutil.rmtree(folder)
    assert len(told) > 10
    assert all(told)


@pytest.mark.parametrize("table", ["meta", "log_end"])
def test_a_journal_without_the_rows_that_tell_what_it_is_is_refused_with_what_to_do(tmp_path: Path, table: str) -> None:
    """Without the place behind its entries, the owner raised IndexError."""
    journal = SqliteJournal(tmp_path)
    fill(journal, 4)
    journal.close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute(f"DELETE FROM {table}")
    for opened in (SqliteJournal, lambda folder: list(SqliteReader(folder).read())):
        with pytest.raises(CorruptJournal, match="has lost") as told:
            opened(tmp_path)
        assert "go back to a copy" in str(told.value.hint)


# -- kill -9 ----------------------------------------------------------------------------------------------------------

APPENDING = """
import asyncio, sys
from sabot.journal.entries import Begin, EffectResult, End
from sabot.journal.sqlite import SqliteJournal
async def main():
    journal = SqliteJournal(sys.argv[1])
    async def one(number):
        job = f"job-{number}"
        journal.append(Begin(job, 0, body=b"x" * (100_000 if number % 50 == 0 else 10)))
        journal.append(EffectResult(job, 0, 1))
        await journal.durable(journal.append(End(job, 0, "succeeded")))
        print(job, flush=True)
    for first in range(0, 1_000_000, 40):
        await asyncio.gather(*(one(number) for number in range(first, first + 40)))
asyncio.run(main())
"""


@pytest.mark.one_in(3, "half a second of a core each")
@pytest.mark.parametrize("lines", [1, 40, 333])
def test_what_was_durable_is_there_after_kill_9_in_the_middle_of_appends(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", APPENDING, tmp_path / "journal"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline().strip() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.read().split("\n")[:-1]
    child.wait()
    assert len(told) >= lines
    owner = SqliteJournal(tmp_path / "journal")
    found = list(owner.read())
    assert [position.offset for position, _ in found] == list(range(len(found))), "what is there is a prefix"
    ended = {entry.job for _, entry in found if isinstance(entry, End)}
    assert set(told) <= ended
    for _, entry in found:
        if isinstance(entry, Begin):
            assert len(owner.load(entry.body)) in (10, 100_000)
    fill(owner, 1, 5_000_000)
    owner.close()


POSTING = """
import sys
from sabot.errors import LetterRefused
from sabot.journal import Letter
from sabot.journal.sqlite import SqliteInbox
inbox = SqliteInbox(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    try:
        inbox.post(Letter("answer", f"token-{number}", body=sys.argv[4].encode()))
        print(number, flush=True)
    except LetterRefused as error:
        assert error.reason == "second", error
"""


@pytest.mark.slow  # three processes; the same in one: test_journal_contract
def test_letters_of_other_processes_come_beside_the_owner_who_appends(tmp_path: Path, journal: SqliteJournal) -> None:
    """Two processes answer the same hundred questions while the owner writes: each answer is accepted once, and taken as that."""
    for number in range(100):
        last = journal.append(Intent("job", 0, number, "ask", token=f"token-{number}"))
    assert journal.wait_durable(last, 60)
    children = [
        subprocess.Popen([sys.executable, "-c", POSTING, tmp_path, "0", "100", name], stdout=subprocess.PIPE, text=True)
        for name in ("ann", "bob")
    ]
    answers: dict[int, str] = {}
    while any(child.poll() is None for child in children) or len(answers) < 100:
        journal.wait_durable(journal.append(EffectResult("job", 0, 1000)), 60)
        for _, entry in journal.take():
            assert entry.ordinal not in answers  # type: ignore[union-attr]
            answers[entry.ordinal] = entry.body.decode()  # type: ignore[union-attr]
    said = {
        name: [int(line) for line in (child.stdout or []) if line.strip()]
        for name, child in zip(("ann", "bob"), children, strict=True)
    }
    assert sorted(said["ann"] + said["bob"]) == list(range(100))
    assert answers == {number: name for name, numbers in said.items() for number in numbers}
    for child in children:
        child.communicate()
        assert child.returncode == 0


def test_a_letter_whose_entry_was_not_durable_is_taken_again_by_the_next_owner(
    tmp_path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = journal.append(Intent("job", 0, 1, "ask", token="t"))
    assert journal.wait_durable(last, 60)
    journal.post(Letter("answer", "t", body=b"yes"))
    crashed = as_a_crash_leaves_it(journal, tmp_path / "crashed")
    assert len(journal.take()) == 1
    after = SqliteJournal(crashed)
    assert len(after.take()) == 1
    assert after.take() == []
    after.close()


class DuringTrim:
    """Does something between the choice of the jobs that are trimmed and their removal."""

    def __init__(self, do: Callable[[], object]) -> None:
        self._do = do

    def before(self, name: str, what: str) -> None:
        if what.endswith("trim"):
            self._do()

    def after(self, name: str, what: str) -> None: ...

    def torn(self, name: str, what: str, size: int) -> int:
        return size


def test_a_job_that_begins_again_while_it_is_trimmed_keeps_its_history(journal: SqliteJournal) -> None:
    journal.append(Begin("a", 1))
    assert journal.wait_durable(journal.append(End("a", 2, "continued")), 60)
    watch(DuringTrim(lambda: journal.wait_durable(journal.append(Begin("a", 3)), 60)))
    try:
        assert journal.trim({0: 2}) == 0
    finally:
        watch(None)
    assert [type(entry) for _, entry in journal.read("a")] == [Begin, End, Begin]


# -- searched for -----------------------------------------------------------------------------------------------------


def test_a_digest_and_a_key_leave_no_argument_in_the_files(tmp_path: Path) -> None:
    from sabot.engine.calls.effects import EffectId, digest

    journal = SqliteJournal(tmp_path / "journal")
    asked = digest(journal.key, "call", "refund", {"card": "4111-secret"})
    journal.append(Intent("job", 0, 1, "call", EffectId("job", 1).key, asked, "unsafe"))
    journal.close()
    held = b"".join(path.read_bytes() for path in (tmp_path / "journal").iterdir())
    assert re.search(b"4111|secret", held) is None


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    fill(journal, 3)
    crashed = as_a_crash_leaves_it(journal, tmp_path / "crashed")
    journal.close()
    before = {path.name: path.read_bytes() for path in crashed.iterdir()}
    reader = SqliteReader(crashed)
    assert len(list(reader.read())) == 3
    reader.close()
    with suppress(FileNotFoundError):
        (crashed / f"{DATABASE}-shm").unlink()
    assert {path.name: path.read_bytes() for path in crashed.iterdir()} == before


async def test_an_idle_owner_knows_without_a_query_that_nobody_has_written(
    tmp_path: Path, journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    untaken = journal.untaken
    monkeypatch.setattr(journal, "untaken", lambda after: reads.append("letters") or untaken(after))
    assert journal.wait_durable(journal.append(Intent("j", 0, 1, "ask", "confirm", token="t")), 60)
    assert [await journal.look() for _ in range(4)] == [False] * 4
    assert len(reads) == 1  # an entry of its own made it look
    inbox = SqliteInbox(tmp_path / "journal")
    inbox.post(Letter("answer", "t"))
    inbox.close()
    assert [await journal.look() for _ in range(3)] == [True] * 3
    assert len(reads) == 4, "letters that were not taken are looked at again"
    assert journal.wait_durable(journal.take()[0][0], 60)
    assert [await journal.look() for _ in range(3)] == [False] * 3
    assert len(reads) == 6, "take has read them, and the first look after it"
    journal.close()
    with pytest.raises(UserError, match="closed database"):
        await journal.look()


@pytest.mark.parametrize("name", ["jobs.db", "jobs.sqlite", "jobs.sqlite3"])
def test_a_name_of_a_file_is_refused_with_the_folder_to_give_instead(tmp_path: Path, name: str) -> None:
    """`journal="jobs.db"` made a folder of that name."""
    with pytest.raises(UserError, match=f"{name}: a journal is a folder") as error:
        SqliteJournal(tmp_path / name)
    assert error.value.hint == f'give a folder: "{tmp_path / "jobs"}"'
    assert list(tmp_path.iterdir()) == []


def test_the_database_itself_is_no_place_for_an_owner_and_a_folder_of_before_is(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "jobs").close()
    with pytest.raises(UserError, match="a journal is a folder") as error:
        SqliteJournal(tmp_path / "jobs" / DATABASE)
    assert error.value.hint == f'give its folder: "{tmp_path / "jobs"}"'
    (tmp_path / "jobs").rename(tmp_path / "jobs.db")
    SqliteJournal(tmp_path / "jobs.db").close()


@pytest.mark.parametrize("letters", [1, 40])
def test_letters_that_begin_jobs_are_looked_up_together(
    tmp_path: Path, letters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was a query of its own, also over a network, in the thread of the event loop."""
    owner, asked = SqliteJournal(tmp_path / "journal"), list[str]()
    owner.begins.agents = frozenset({"k.a"})
    for number in range(letters):
        begin = Begin(f"k.a/{number}", 1, "k.a")
        owner.post(Letter("begin", job=begin.job, name="k.a", body=encode_entry(begin)))
    known = Begin("k.a/0", 1, "k.a")
    owner.begins.reserve(known.job)
    assert owner.wait_durable(owner.append(known), 60)  # as `execute` does, whose letter came before
    owner.begins.release(known.job)
    select = owner.select
    monkeypatch.setattr(
        owner, "select", lambda statement, *values: asked.append(statement) or select(statement, *values)
    )
    assert [entry.job for _, entry in owner.take()] == [f"k.a/{number}" for number in range(1, letters)]
    assert len(asked) == 2, asked  # the letters, and which of their jobs have begun
    owner.close()


# -- migrations -------------------------------------------------------------------------------------------------------


def test_sessions_of_ended_jobs_are_read_from_their_entries_by_the_first_owner(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    owner = SqliteJournal(folder)
    write_ended(owner)
    owner.close()
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        without_sessions(database.execute)
        database.execute("PRAGMA user_version = 8")
    reader = SqliteReader(folder)
    assert [row.job for row in reader.history.find(JobQuery(), 9)] == ["d", "c", "b", "a"]
    for ask in (lambda query: reader.history.find(query, 9), reader.history.counts):
        with pytest.raises(UserError, match="has format 8, whose ended jobs are not listed by session"):
            ask(JobQuery(session="chat-1"))
    reader.close()
    owner = SqliteJournal(folder)
    assert [row.job for row in owner.history.find(JobQuery(session="chat-1"), 9)] == ["c", "a"]
    assert [row.session for row in owner.history.known("abcd")] == ["chat-1", "chat-2", "chat-1", ""]
    plan = owner.select("EXPLAIN QUERY PLAN SELECT job FROM history WHERE session = ? AND session <> ''", ("chat-1",))
    assert "USING INDEX history_of_session" in str(plan)
    owner.close()


def of_format(form: int, folder: Path) -> list[JobMark]:
    """Makes a journal as an older format had it. Returns the list of its jobs that the format of today has."""
    owner = SqliteJournal(folder)
    write_given(owner)
    found = owner.logged(JobQuery(), EVERY)
    owner.close()
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        OLDER[form](database.execute)
        database.execute(f"PRAGMA user_version = {form}")
    return found


@pytest.mark.parametrize("form", [3, 4, 5, 6])
def test_a_journal_of_an_older_format_gets_its_list_from_its_first_owner(tmp_path: Path, form: int) -> None:
    folder = tmp_path / "journal"
    listed = of_format(form, folder)
    assert [(mark.job, mark.status) for mark in listed] == [
        ("requested", "queued"),
        ("again", "failed"),
        ("works", "running"),
        ("asks", "waiting_action"),
        ("done", "failed"),
    ]
    reader = SqliteReader(folder)  # reads all entries, since the tables have no list, or none with reasons
    assert (reader.format, reader.logged(JobQuery(), EVERY)) == (form, listed)
    assert reader.logged_counts(JobQuery(scope="us")) == {"waiting_action": 1}
    assert (reader.begun_again(), reader.logged_below(["done"])) == ([], [])
    owner = SqliteJournal(folder)
    for each in (owner, reader):
        assert each.logged(JobQuery(), EVERY) == listed
        assert sorted(each.begun_within(EFFECT)) == ["again", "works"]
        assert each.begun_within("") == each.begun_within("sabot-other") == []
    assert owner.wait_durable(owner.append(Answer("asks", 6000, 2, "open")), 30)
    assert owner.logged_counts(JobQuery()) == {"queued": 1, "running": 2, "failed": 2}
    owner.note_blocked({"works": "another call"})
    assert owner.logged_counts(JobQuery()) == {"queued": 1, "running": 1, "failed": 2, "blocked": 1}
    for closed in (reader, owner):
        closed.close()


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("form", [3, 4, 5, 6])
def test_a_migration_that_is_killed_at_any_statement_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: int
) -> None:
    """What a kill leaves are the files as they are just before each statement of the first owner."""
    folder, killed = tmp_path / "journal", list[Path]()
    listed = of_format(form, folder)
    opened = sqlite.connected

    def leave(statement: str) -> None:
        copy = tmp_path / f"killed-{len(killed)}"
        copy.mkdir(mode=0o700)
        for each in folder.glob(f"{DATABASE}*"):
            if not each.name.endswith("-shm"):  # made anew by who opens it
                shutil.copyfile(each, copy / each.name)
        killed.append(copy)

    def watched(path: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
        connection = opened(path, mode)
        if mode == "rw" and not killed:
            connection.set_trace_callback(leave)
        return connection

    monkeypatch.setattr(sqlite, "connected", watched)
    SqliteJournal(folder).close()
    monkeypatch.undo()
    assert len(killed) > {3: 20, 4: 4, 5: 3, 6: 3}[form]
    for copy in killed:
        owner = SqliteJournal(copy)
        assert (owner.format, owner.logged(JobQuery(), EVERY)) == (12, listed)
        assert sorted(owner.begun_within(EFFECT)) == ["again", "works"]
        assert [entry for _, entry in owner.read()] == GIVEN
        owner.close()


@pytest.mark.parametrize("form", ["of today", "without the index"])
@pytest.mark.parametrize("by", ["session", "key"])
def test_the_jobs_of_a_session_and_of_a_key_are_found_by_an_index(tmp_path: Path, form: str, by: str) -> None:
    """Each job of a session looks for the ones before: going through all jobs, they would be quadratic."""
    folder = tmp_path / "journal"
    SqliteJournal(folder).close()
    if form == "without the index":
        with closing(sqlite3.connect(folder / DATABASE)) as database:
            database.execute(f"DROP INDEX jobs_of_{by}")
    owner = SqliteJournal(folder)
    statement, values = find_statement(
        "SELECT * FROM jobs", JobQuery.of({"agent": "clerk", "scope": "acme", by: "s-1"}), EVERY
    )
    plan = " ".join(str(row) for row in owner.select(f"EXPLAIN QUERY PLAN {statement}", values))
    owner.close()
    assert f"USING INDEX jobs_of_{by} ({by}=?" in plan


@pytest.mark.parametrize("query", [{}, {"agent": "clerk"}, {"scope": "acme"}, {"status": "failed"}, {"since": 1.0}])
def test_a_page_far_back_in_a_list_is_searched_in_the_index(tmp_path: Path, query: dict[str, str | float]) -> None:
    """Walked from the newest job on, each next page would cost more; and where a condition made the planner take two searches in one
    place of that walk, it sorted all jobs behind the cursor.
    """
    owner = SqliteJournal(tmp_path / "journal")
    statement, values = find_statement("SELECT * FROM jobs", JobQuery.of({**query, "after": "2000:b"}), EVERY)
    plan = " ".join(str(row) for row in owner.select(f"EXPLAIN QUERY PLAN {statement}", values))
    owner.close()
    assert "SEARCH jobs USING INDEX jobs_by_creation (created_ms>? AND (created_ms,job)<(?,?))" in plan
    assert "TEMP B-TREE" not in plan


def test_jobs_are_counted_without_sorting_them(tmp_path: Path) -> None:
    owner = SqliteJournal(tmp_path / "journal")
    statement, values = statement_of_counts(JobQuery("clerk"))
    assert "TEMP B-TREE" not in str(owner.select(f"EXPLAIN QUERY PLAN {statement}", values))
    owner.close()


def test_open_jobs_are_counted_without_a_look_at_those_that_have_ended(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "journal").close()
    with closing(sqlite3.connect(tmp_path / "journal" / "journal.db")) as database:
        database.execute("DROP INDEX jobs_open")  # as a journal from before
    SqliteJournal(tmp_path / "journal").close()
    with closing(sqlite3.connect(tmp_path / "journal" / "journal.db")) as database:
        counted = "SELECT agent, count(*) FROM jobs WHERE ended IS NULL GROUP BY agent"
        ((*_, plan),) = database.execute(f"EXPLAIN QUERY PLAN {counted}").fetchall()
    assert "COVERING INDEX jobs_open" in plan


def test_letters_are_found_without_a_look_at_those_that_were_taken(tmp_path: Path) -> None:
    """Who asks for a job reads the letters first; those of all jobs that were not trimmed are there too."""
    folder = tmp_path / "journal"
    SqliteJournal(folder).close()
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.execute("DROP INDEX letters_to_take")  # as a journal from before
    owner = SqliteJournal(folder)
    ((*_, plan),) = owner.select(
        "EXPLAIN QUERY PLAN SELECT letter FROM inbox WHERE taken = 0 AND number > 0 ORDER BY number"
    )
    owner.close()
    assert "USING INDEX letters_to_take" in plan
