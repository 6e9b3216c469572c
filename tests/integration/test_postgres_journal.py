"""The journal in PostgreSQL where the server, the network or its owner fail: on a real server."""

import math
import random
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from typer.testing import CliRunner

from sabot.cli import commands
from sabot.connectors.sql.server import PostgresServer
from sabot.errors import (
    AppLocked,
    BrokerUnavailable,
    CorruptJournal,
    JournalFailed,
    JournalFull,
    MissingExtra,
    ServerRefusal,
    UserError,
)
from sabot.journal import Letter, postgres
from sabot.journal.base import EVERY, JobMark
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import Answer, Begin, EffectResult, End, Intent
from sabot.journal.postgres import JournalLease, PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.schemas import JournalSchema, Statements
from tools.command_line import child
from tools.commit_wire import CommitWire
from tools.older_journals import EFFECT, OLDER, without_list, without_sessions, write_ended, write_given
from tools.postgres import Postgres, server_or_skip
from tools.tcp_proxy import TcpProxy

LEASE_S = 5.0  # on a busy machine a renewal may be a second late, and nobody must take over then


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as address:
        yield address


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex[:12]}"


def query(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def fill(journal: PostgresJournal, count: int, first: int = 0) -> None:
    """So many entries, each in a commit of its own."""
    for number in range(first, first + count):
        assert journal.wait_durable(journal.append(Begin(f"job-{number}", 0)), 60)


def jobs(count: int) -> list[str]:
    return [f"job-{number}" for number in range(count)]


def read(url: str, app: str | None = None) -> list[str]:
    reader = PostgresReader(url, app)
    try:
        found = list(reader.read())
        assert [position.offset for position, _ in found] == list(range(len(found)))
        return [entry.job for _, entry in found]
    finally:
        reader.close()


def until(done: Callable[[], object]) -> None:
    """Waits for something that another thread or process does."""
    for _ in range(60_000):
        if done():
            return
        threading.Event().wait(0.001)
    raise AssertionError("a minute has passed")


# -- addresses ----------------------------------------------------------------------------------------------------------


def test_a_journal_is_found_by_its_address_and_the_app(url: str, app: str) -> None:
    fresh = f"{url}?connect_timeout=5"
    app += ' of "Ann"'
    journal = PostgresJournal(fresh, app)
    fill(journal, 1)
    journal.close()
    assert read(f"{fresh}&app={quote(app)}") == read(url, app) == jobs(1)
    assert journal.where == f"journal sabot_{app} in {url.partition('@')[2]}"


def test_without_a_name_it_is_the_only_journal_of_the_database(app: str) -> None:
    with server_or_skip().database() as url:
        with pytest.raises(UserError, match="has no journal"):
            PostgresReader(url)
        PostgresJournal(url, app).close()
        assert read(url) == []
        PostgresJournal(url, "another").close()
        with pytest.raises(UserError, match=f"has journals of another, {app}|has journals of {app}, another") as error:
            PostgresInbox(url)
        assert "?app=NAME" in error.value.hint


def test_a_machine_without_psycopg_says_what_to_install(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtra, match="a journal in PostgreSQL"):
        PostgresJournal("postgresql://nowhere.invalid/d", app)


def test_what_is_no_journal_of_ours_is_told(url: str, app: str) -> None:
    for opened in (PostgresReader, PostgresInbox):
        with pytest.raises(UserError, match=f"journal sabot_{app} in .*: there is none"):
            opened(url, app)
    with pytest.raises(UserError, match="too long for a schema"):
        PostgresJournal(url, "a" * 60)
    PostgresJournal(url, app).close()
    query(url, f"UPDATE \"sabot_{app}\".meta SET value = '14' WHERE name = 'format'")
    with pytest.raises(UserError, match="has format 14, and this Sabot knows 13"):
        PostgresJournal(url, app)
    query(url, f"DELETE FROM \"sabot_{app}\".meta WHERE name = 'key'")
    with pytest.raises(CorruptJournal, match="lost its identity"):
        PostgresReader(url, app)


@pytest.mark.slow  # a second of a core, or more
def test_a_wrong_password_database_or_host_is_told_without_the_password(own_server: Postgres) -> None:
    query(own_server.url, "CREATE ROLE ann LOGIN PASSWORD 'right-one'")
    rules = own_server.folder / "data" / "pg_hba.conf"
    rules.write_text("host all sabot all trust\nhost all ann all scram-sha-256\n")
    query(own_server.url, "SELECT pg_reload_conf()")
    place = own_server.url.partition("@")[2]
    wrong = [f"ann:hunter2-hunter2@{place}", f"ann:hunter2-hunter2@{place}x", "ann:hunter2-hunter2@127.0.0.1:1/d"]
    errors = []
    for address in wrong:
        with pytest.raises((UserError, BrokerUnavailable)) as error:
            PostgresJournal(f"postgresql://{address}", "refunds")
        errors.append(type(error.value))
        assert "hunter2" not in f"{error.value} {error.value.hint} {error.value.__cause__}"
    assert errors == [ServerRefusal, ServerRefusal, BrokerUnavailable]
    with pytest.raises(ServerRefusal, match="permission denied"):
        PostgresJournal(f"postgresql://ann:right-one@{place}", "refunds")
    query(own_server.url, 'CREATE SCHEMA "sabot_refunds" AUTHORIZATION ann')
    PostgresJournal(f"postgresql://ann:right-one@{place}", "refunds").close()


@pytest.mark.slow  # half a second of a core
def test_the_command_line_takes_an_address(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    journal.append(Begin("job", 0, "agent"))
    assert journal.wait_durable(journal.append(Intent("job", 0, 1, "ask", "confirm", token="t")), 60)
    place = f"{url}?app={app}"
    answer = CliRunner().invoke(commands.cli, ["actions", "resolve", "t", "--journal", place, "--approve"])
    assert answer.stdout == "answered\n"
    assert [type(entry) for _, entry in journal.take()] == [Answer]
    journal.close()
    shown = CliRunner().invoke(commands.cli, ["journal", "show", "job", "--journal", place])
    assert [line.split()[3] for line in shown.stdout.splitlines()[1:]] == ["begin", "intent", "answer"]


# -- what is stored -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # a second of a core, or more
def test_a_commit_is_on_the_disk_when_the_server_answers(own_server: Postgres, app: str) -> None:
    query(own_server.url, "ALTER ROLE sabot SET synchronous_commit = off")
    journal = PostgresJournal(own_server.url, app)
    fill(journal, 1)
    assert journal._writing.execute("SHOW synchronous_commit").fetchall() == [("on",)]
    journal.close()


def test_a_server_with_standbys_that_no_commit_waits_for_is_named(
    url: str, app: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them that takes its place may lack the last entries, which nothing can tell behind the last checkpoint."""
    PostgresJournal(url, app).close()
    assert "standbys" not in caplog.text
    with psycopg.connect(f"{url}?replication=database", autocommit=True):
        PostgresJournal(url, app).close()
    assert "has standbys (1), and waits for none of them (synchronous_standby_names)" in caplog.text


@pytest.mark.parametrize("during", ["make", "bring_up_to_date", "known_facts"])
def test_a_start_whose_connection_is_reset_goes_on_with_another_one(
    url: str, app: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with an error, where a running app waits."""
    before = PostgresJournal(url, app)
    fill(before, 2)
    before.close()
    address = urlsplit(url)
    plain, resets = getattr(JournalSchema, during), []
    with TcpProxy(f"{address.hostname}:{address.port}") as proxy:

        def reset_once(self: JournalSchema, *given: Any) -> Any:
            if not resets:
                resets.append(during)
                proxy.reset()
            return plain(self, *given)

        monkeypatch.setattr(JournalSchema, during, reset_once)
        journal = PostgresJournal(url.replace(address.netloc.rpartition("@")[2], proxy.address), app)
        fill(journal, 1, 2)
        journal.close()
    assert resets == [during]
    assert read(url, app) == jobs(3)


def test_an_entry_that_was_changed_is_damaged(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    fill(journal, 2)
    query(url, f"UPDATE \"sabot_{app}\".entries SET entry = entry || 'x' WHERE place = 1")
    with pytest.raises(CorruptJournal, match="entry 1 is damaged"):
        list(journal.read())
    journal.close()


def test_text_that_no_database_takes_is_refused_before_it_is_appended(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    for entry in (Begin("a\0b", 0), Begin("a" * 601, 0), Intent("a", 0, 1, "ask", token="t\0")):
        with pytest.raises(UserError, match="no text that PostgreSQL keeps in an index"):
            journal.append(entry)
    assert journal.wait_durable(journal.append(Begin("job", 0, body=b"\0")), 60)
    with pytest.raises(UserError, match="index row size"):
        journal.post(Letter("signal", random.Random(1).randbytes(4000).hex(), "job", "s"))
    fill(journal, 1, 1)
    journal.close()
    assert read(url, app) == ["job", "job-1"]


def test_a_client_library_without_pipelines_writes_the_same(
    url: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresServer, "pipeline", lambda server, connection: nullcontext())
    first = PostgresJournal(url, app, lease_s=LEASE_S)
    fill(first, 3)
    query(url, f"UPDATE \"sabot_{app}\".claim SET epoch = epoch + 1, owner = 'another'")
    with pytest.raises(JournalFailed, match="another owner has taken the journal over"):
        fill(first, 1, 3)
    first.close()
    assert read(url, app) == jobs(3)


@pytest.mark.slow  # half a second of a core
async def test_many_appends_are_few_commits(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    for number in range(2000):
        journal.append(Begin(f"job-{number}", 0))
    await journal.flush()
    assert journal.statistics()["commits"] <= 20
    journal.close()
    assert read(url, app) == jobs(2000)


# -- two owners ---------------------------------------------------------------------------------------------------------

OWNER = """
import sys
from sabot.errors import JournalFailed
from sabot.journal.entries import Begin
from sabot.journal.postgres import PostgresJournal
url, app, lease_s, first = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
journal = PostgresJournal(url, app, lease_s=lease_s)
print("held", flush=True)
for number in range(first, 1_000_000):
    if first == 0 and number == 3:
        sys.stdin.readline()
        print(f"left {journal.claim_left()}", flush=True)
    try:
        journal.wait_durable(journal.append(Begin(f"job-{number}", 0)))
    except JournalFailed as error:
        print(error, flush=True)
        break
    print(number, flush=True)
"""


def owner(url: str, app: str, first: int = 0, lease_s: float = LEASE_S) -> Any:
    words = (sys.executable, "-c", OWNER, url, app, lease_s, first)
    return child(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.slow  # a second of a core, or more
def test_a_worker_that_was_paused_for_longer_than_its_lease_writes_nothing_more(url: str, app: str) -> None:
    with owner(url, app) as paused:
        assert [paused.stdout.readline() for _ in range(4)] == ["held\n", "0\n", "1\n", "2\n"]
        with pytest.raises(AppLocked, match=f"belongs to process {paused.pid} on "):
            PostgresJournal(url, app, lease_s=LEASE_S)
        paused.send_signal(signal.SIGSTOP)
        second = PostgresJournal(url, app, lease_s=LEASE_S)  # waits for the lease to end
        assert second.claim_left() > 0
        assert -60 < second.predecessor_left("a") <= 0  # it began its last call then
        fill(second, 1, 3)
        paused.stdin.write("go on\n")
        paused.stdin.flush()
        paused.send_signal(signal.SIGCONT)
        assert paused.stdout.readline() == "left 0.0\n"
        told = paused.stdout.readline()
        assert "another owner has taken the journal over: process" in told
        fill(second, 1, 4)
        second.close()
    assert read(url, app) == jobs(5)


def test_a_worker_that_was_paused_in_a_transaction_holds_nobody_up(url: str, app: str) -> None:
    first = PostgresJournal(url, app, lease_s=LEASE_S)
    fill(first, 2)
    first.lease.asked = float("inf")  # it renews no more: as if it were paused
    first._writing.execute("BEGIN")
    first._writing.execute("UPDATE claim SET until = until")
    second = PostgresJournal(url, app, lease_s=LEASE_S)
    fill(second, 1, 2)
    assert first.claim_left() == 0.0
    with pytest.raises(JournalFailed, match="another owner has taken the journal over"):
        fill(first, 1, 9)
    first.close()
    fill(second, 1, 3)
    second.close()
    assert read(url, app) == jobs(4)


@pytest.mark.slow  # half a second of a core
def test_an_owner_whose_process_was_killed_here_is_succeeded_at_once(url: str, app: str) -> None:
    with owner(url, app, lease_s=600.0) as killed:
        assert [killed.stdout.readline() for _ in range(4)] == ["held\n", "0\n", "1\n", "2\n"]
        killed.kill()
        killed.wait()
        second = PostgresJournal(url, app)  # and not in ten minutes
        assert second.predecessor_left("a") == -math.inf
        fill(second, 1, 3)
        second.close()
    assert read(url, app) == jobs(4)


@pytest.mark.slow  # a second of a core, or more
def test_a_paused_owner_is_waited_for_by_the_successor_of_its_successor_too(url: str, app: str) -> None:
    with owner(url, app, lease_s=0.5) as paused:
        assert paused.stdout.readline() == "held\n"
        paused.send_signal(signal.SIGSTOP)
        with owner(url, app, 3, lease_s=600.0) as second:
            assert second.stdout.readline() == "held\n"
            second.kill()
            second.wait()
        for _ in range(2):  # also behind one that has said goodbye
            after = PostgresJournal(url, app)
            assert -60 < after.predecessor_left("a") <= 0
            after.close()
        paused.kill()


def test_an_owner_without_work_keeps_its_claim(url: str, app: str) -> None:
    journal = PostgresJournal(url, app, lease_s=LEASE_S)
    began = journal.lease.renewed
    until(lambda: journal.lease.renewed > began + LEASE_S and journal.claim_left() > 0)
    with pytest.raises(AppLocked):
        PostgresJournal(url, app, lease_s=LEASE_S)
    fill(journal, 1)
    journal.close()


def test_of_many_who_make_a_journal_at_once_one_owns_it(url: str, app: str) -> None:
    owners: list[PostgresJournal] = []
    refused: list[str] = []

    def make() -> None:
        try:
            owners.append(PostgresJournal(url, app, lease_s=LEASE_S))
        except AppLocked as error:
            refused.append(error.message)

    makers = [threading.Thread(target=make) for _ in range(5)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert (len(owners), len(refused)) == (1, 4)
    fill(owners[0], 1)
    owners[0].close()
    assert read(url, app) == jobs(1)


@pytest.mark.slow  # a second of a core, or more
def test_of_an_owner_that_is_killed_anywhere_a_prefix_is_there_with_all_that_was_told(url: str, app: str) -> None:
    chance = random.Random(7)
    told = -1
    for _ in range(4):
        with owner(url, app, told + 1, lease_s=0.5) as process:
            process.stdin.write("go on\n")
            process.stdin.flush()
            lines = [process.stdout.readline() for _ in range(chance.randrange(2, 40))]
            process.kill()
            lines += process.stdout.read().splitlines(keepends=True)
        told = max([told, *(int(line) for line in lines if line.strip().isdigit())])
        found = read(url, app)
        assert found == jobs(len(found)), "what is there is a prefix"
        assert told < len(found) <= told + 2
        told = len(found) - 1


# -- the server and the way to it -----------------------------------------------------------------------------------------


class Appending:
    """A thread that appends entry after entry and knows what was durable."""

    def __init__(self, journal: PostgresJournal) -> None:
        self.told = 0
        self.error: BaseException | None = None
        self._journal = journal
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            number = 0
            while not self._over.is_set():
                last = self._journal.append(Begin(f"job-{number}", 0))
                number += 1
                if number % 7 == 0:
                    assert self._journal.wait_durable(last, 60)
                    self.told = number
        except BaseException as error:
            self.error = error

    def more(self, count: int = 20) -> None:
        before = self.told
        until(lambda: self.told > before + count or self.error)

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        assert self.error is None


@pytest.mark.slow  # a second of a core, or more
def test_entries_wait_while_the_server_is_gone_and_go_on_when_it_is_back(
    own_server: Postgres, app: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = PostgresJournal(own_server.url, app, lease_s=LEASE_S, capacity_bytes=100_000)
    fill(journal, 3)
    own_server.stop()
    position = journal.append(Begin("job-3", 0))
    until(lambda: journal.claim_left() == 0.0)  # so nothing is sent that must be sent once
    assert journal.take() == []
    assert journal.wait_durable(position, 0.1) is False
    with pytest.raises(JournalFull):  # noqa: PT012
        for number in range(4, 10_000):
            position = journal.append(Begin(f"job-{number}", 0))
    own_server.start()
    assert journal.wait_durable(position, 60)
    assert journal.claim_left() > 0
    assert [record.getMessage().rpartition(" in ")[2].partition(" ")[2][:15] for record in caplog.records][-2:] == [
        "does not answer",
        "answers again",
    ]
    journal.close()
    assert read(own_server.url, app) == jobs(position.offset + 1)


@pytest.mark.slow  # a second of a core, or more
def test_a_server_that_is_killed_in_the_middle_of_commits_loses_nothing(own_server: Postgres, app: str) -> None:
    journal = PostgresJournal(own_server.url, app)
    work = Appending(journal)
    for _ in range(4):
        work.more()
        own_server.stop(kill=True)
        own_server.start()
    work.more()
    work.end()
    journal.close()
    found = read(own_server.url, app)
    assert found == jobs(len(found))
    assert len(found) >= work.told


@pytest.mark.slow  # half a second of a core
def test_connections_that_are_cut_at_any_moment_lose_and_repeat_nothing(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    work = Appending(journal)
    chance = random.Random(3)
    for _ in range(25):
        work.more(chance.randrange(10))
        query(
            url,
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sabot-journal-{journal.lease.owner}'",
        )
    work.end()
    journal.close()
    found = read(url, app)
    assert found == jobs(len(found))
    assert len(found) >= work.told


@pytest.mark.parametrize(("cut", "sent"), [("before", 15), ("behind", 10)])
def test_a_commit_whose_outcome_is_unknown_is_looked_up(
    url: str, app: str, cut: str, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent again where it did not come through, and only there."""
    wire = CommitWire(url)
    journal = PostgresJournal(wire.url, app)
    groups: list[int] = []
    write = journal.write
    monkeypatch.setattr(journal, "write", lambda rows: (groups.append(len(rows)), write(rows)))
    for number in range(5):
        fill(journal, 1, 2 * number)
        wire.cut = cut
        fill(journal, 1, 2 * number + 1)
        assert wire.cut == ""
    journal.close()
    wire.close()
    assert len(groups) == sent
    assert read(url, app) == jobs(10)


def test_a_server_without_room_is_waited_for(url: str, app: str) -> None:
    journal = PostgresJournal(url, app)
    fill(journal, 2)
    query(
        url,
        f"""
        CREATE FUNCTION "sabot_{app}".full() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON "sabot_{app}".entries EXECUTE FUNCTION "sabot_{app}".full();
        """,
    )
    position = journal.append(Begin("job-2", 0))
    assert journal.wait_durable(position, 0.5) is False
    query(url, f'DROP TRIGGER full_disk ON "sabot_{app}".entries')
    assert journal.wait_durable(position, 60)
    journal.close()
    assert read(url, app) == jobs(3)


@pytest.mark.slow  # a second of a core, or more
def test_a_server_that_is_away_for_longer_than_our_patience_ends_the_journal(own_server: Postgres, app: str) -> None:
    journal = PostgresJournal(own_server.url, app, lease_s=LEASE_S, patience_s=0.5)
    fill(journal, 2)
    own_server.stop()
    position = journal.append(Begin("job-2", 0))
    with pytest.raises(JournalFailed, match=f"journal sabot_{app} in .* could not be made durable"):
        journal.wait_durable(position, 60)
    with pytest.raises(JournalFailed):
        journal.append(Begin("more", 0))
    journal.close()
    own_server.start()
    assert read(own_server.url, app) == jobs(2)


@pytest.mark.slow  # a second of a core, or more
def test_a_journal_whose_server_is_away_can_be_closed(
    own_server: Postgres, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_AT_THE_END", 0.2)
    journal = PostgresJournal(own_server.url, app, lease_s=LEASE_S)
    fill(journal, 1)
    own_server.stop()
    position = journal.append(Begin("lost", 0))
    journal.close()
    with pytest.raises(JournalFailed):
        journal.wait_durable(position, 1)


def test_a_server_that_has_lost_what_was_durable_ends_the_journal(url: str, app: str) -> None:
    """A copy that was behind has taken the server's place."""
    journal = PostgresJournal(url, app, lease_s=60)
    fill(journal, 5)
    query(url, f'DELETE FROM "sabot_{app}".entries WHERE place >= 3')
    query(url, f'UPDATE "sabot_{app}".log_end SET place = 3')
    query(
        url,
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sabot-journal-{journal.lease.owner}'",
    )
    with pytest.raises(JournalFailed, match="the log ends at 3, and this owner has written up to 5"):
        fill(journal, 1, 5)
    journal.close()
    assert read(url, app) == jobs(3)


@pytest.mark.slow  # a second of a core, or more
def test_a_reader_and_an_inbox_go_on_after_a_restart_of_the_server(own_server: Postgres, app: str) -> None:
    journal = PostgresJournal(own_server.url, app)
    last = journal.append(Intent("job", 0, 1, "ask", token="t"))
    assert journal.wait_durable(last, 60)
    reader, inbox = PostgresReader(own_server.url, app), PostgresInbox(own_server.url, app)
    assert len(list(reader.read())) == 1
    own_server.stop()
    for work in (lambda: reader.positions(), lambda: inbox.post(Letter("answer", "t"))):
        with pytest.raises(BrokerUnavailable):
            work()
    own_server.start()
    inbox.post(Letter("answer", "t"))
    assert len(reader.letters()) == 1
    until(lambda: [type(entry) for _, entry in journal.take()] == [Answer])
    for each in (reader, inbox, journal):
        each.close()


# -- letters ------------------------------------------------------------------------------------------------------------

POSTING = """
import sys
from sabot.errors import LetterRefused
from sabot.journal import Letter
from sabot.journal.postgres import PostgresInbox
inbox = PostgresInbox(sys.argv[1], sys.argv[2])
for number in range(100):
    try:
        inbox.post(Letter("answer", f"token-{number}", body=sys.argv[3].encode()))
        print(number, flush=True)
    except LetterRefused as error:
        assert error.reason == "second", error
"""


@pytest.mark.slow  # three processes; the same in one: test_journal_contract
def test_letters_of_other_processes_come_beside_the_owner_who_appends(url: str, app: str) -> None:
    """Two processes answer the same hundred questions while the owner writes: each answer is accepted once, and taken as that."""
    journal = PostgresJournal(url, app)
    for number in range(100):
        last = journal.append(Intent("job", 0, number, "ask", token=f"token-{number}"))
    assert journal.wait_durable(last, 60)
    words = [(sys.executable, "-c", POSTING, url, app, name) for name in ("ann", "bob")]
    answers: dict[int, bytes] = {}
    with child(*words[0], stdout=subprocess.PIPE) as ann, child(*words[1], stdout=subprocess.PIPE) as bob:
        while len(answers) < 100:
            assert journal.wait_durable(journal.append(EffectResult("job", 0, 1000)), 60)
            for _, entry in journal.take():
                assert isinstance(entry, Answer)
                assert entry.ordinal not in answers
                assert isinstance(entry.body, bytes)
                answers[entry.ordinal] = entry.body
        said = {name: [int(line) for line in process.stdout] for name, process in ((b"ann", ann), (b"bob", bob))}
    assert sorted(said[b"ann"] + said[b"bob"]) == list(range(100))
    assert answers == {number: name for name, numbers in said.items() for number in numbers}
    journal.close()


def test_a_letter_that_is_posted_while_its_job_is_trimmed_does_not_stay(url: str, app: str) -> None:
    """It waits for the trim, and is then refused: a letter without its question would be in the way of all others."""
    journal = PostgresJournal(url, app)
    journal.append(Begin("a", 0))
    journal.append(Intent("a", 0, 1, "ask", token="t"))
    assert journal.wait_durable(journal.append(End("a", 1, "succeeded")), 60)
    inbox = PostgresInbox(url, app)
    refused: list[str] = []

    def post() -> None:
        with pytest.raises(UserError) as error:
            inbox.post(Letter("answer", "t"))
        refused.append(error.value.message)

    with journal.inbox.transaction("trim") as trimming:
        posting = threading.Thread(target=post)
        posting.start()
        until(lambda: query(url, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        trimming.execute("DELETE FROM questions WHERE job = ?", ("a",))
    posting.join()
    assert refused == ["no question has this token"]
    assert journal.take() == []
    inbox.close()
    journal.close()


# -- migrations -----------------------------------------------------------------------------------------------------------


def test_sessions_of_ended_jobs_are_read_from_their_entries_by_the_first_owner(url: str, app: str) -> None:
    owner = PostgresJournal(url, app)
    write_ended(owner)
    owner.close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        without_sessions(connection.execute)  # type: ignore[arg-type]
        connection.execute("UPDATE meta SET value = '8' WHERE name = 'format'")
    reader, query = PostgresReader(url, app), JobQuery(session="chat-1")
    assert [row.job for row in reader.history.find(JobQuery(), 9)] == ["d", "c", "b", "a"]
    with pytest.raises(UserError, match="has format 8, whose ended jobs are not listed by session"):
        reader.history.find(query, 9)
    owner = PostgresJournal(url, app)
    for each in (owner, reader):  # the reader stays open
        assert [row.job for row in each.history.find(query, 9)] == ["c", "a"]
        assert each.history.counts(query) == {"succeeded": 2}
        each.close()


def of_format(form: int, url: str, app: str) -> list[JobMark]:
    """Makes a journal as an older format had it. Returns the list of its jobs that the format of today has."""
    journal = PostgresJournal(url, app)
    write_given(journal)
    found = journal.logged(JobQuery(), EVERY)
    journal.close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        OLDER[form](connection.execute)  # type: ignore[arg-type]
        connection.execute("UPDATE meta SET value = %s WHERE name = 'format'", (str(form),))
    return found


@pytest.mark.parametrize("form", [3, 4, 5, 6])
def test_a_journal_of_an_older_format_gets_its_list_from_its_first_owner(url: str, app: str, form: int) -> None:
    listed = of_format(form, url, app)
    reader = PostgresReader(url, app)
    assert reader.logged(JobQuery(), EVERY) == listed
    assert reader.logged_counts(JobQuery()) == {"queued": 1, "running": 1, "waiting_action": 1, "failed": 2}
    journal = PostgresJournal(url, app)
    assert (journal.format, journal.logged(JobQuery(), EVERY)) == (12, listed)
    for each in (reader, journal):
        assert sorted(each.begun_within(EFFECT)) == ["again", "works"]
    assert journal.wait_durable(journal.append(Answer("asks", 6000, 2, "open")), 60)
    assert journal.logged_counts(JobQuery()) == {"queued": 1, "running": 2, "failed": 2}
    for each in (reader, journal):
        each.close()


@pytest.mark.slow  # a second of a core, or more
def test_a_migration_whose_session_ends_at_any_statement_begins_anew(
    url: str, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_AT_THE_START", 600.0)
    listed, run = of_format(3, url, app), Statements.execute
    left = at = 0

    def execute(self: Statements, statement: str, values: Sequence[Any] = (), /) -> Any:
        nonlocal left
        left -= 1
        if not left:
            query(
                url,
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE 'sabot-journal-%' AND state = 'idle in transaction'",
            )
        return run(self, statement, values)

    monkeypatch.setattr(Statements, "execute", execute)
    while left <= 0:  # until the migration has fewer statements than that
        at += 1
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'SET search_path = "sabot_{app}"')
            if at > 1:
                without_list(connection.execute)  # type: ignore[arg-type]
            connection.execute("UPDATE meta SET value = '3' WHERE name = 'format'")
        left = at
        journal = PostgresJournal(url, app)  # begins anew by itself
        journal.close()
        reader = PostgresReader(url, app)
        assert (reader.format, reader.logged(JobQuery(), EVERY)) == (12, listed)
        assert sorted(reader.begun_within(EFFECT)) == ["again", "works"]
        reader.close()
        if at > 40:
            break
    assert at > 15


def test_a_long_migration_keeps_the_claim(url: str, app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that starts meanwhile would take the claim of an owner that is late, and end its session."""
    of_format(3, url, app)
    run, renewals = Statements.execute, list[Any]()

    def execute(self: Statements, statement: str, values: Sequence[Any] = (), /) -> Any:
        renewals.extend(query(url, f'SELECT until FROM "sabot_{app}".claim'))
        return run(self, statement, values)

    monkeypatch.setattr(Statements, "execute", execute)
    monkeypatch.setattr(JournalLease, "is_due", lambda self, now: True)
    PostgresJournal(url, app).close()
    assert len(set(renewals)) > 10
