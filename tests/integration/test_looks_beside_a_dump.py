"""What a worker's look at the queue in PostgreSQL reads while a dump has its snapshot, and what it finds then."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from sabot.journal.entries import Begin, Letter, encode_entry, encode_letter
from sabot.journal.postgres import PostgresInbox
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.schemas import Statements
from sabot.journal.seats import columns_of
from tools.postgres import server_or_skip

MANY = 3_000
CLAIMED = (
    "INSERT INTO inbox (once, job, letter, agent, scope) SELECT 'begin:q' || n, 'q' || n, '', 'k.a', 'all' "
    f"FROM generate_series(1, {MANY}) n",
    "UPDATE inbox SET worker = {number} WHERE starts_with(job, 'q')",
    "UPDATE inbox SET taken = 1 WHERE starts_with(job, 'q')",
    f"INSERT INTO jobs (job, began, digest, agent, worker) SELECT 'q' || n, n, '', 'k.a', {{number}} FROM generate_series(1, {MANY}) n",
    "UPDATE jobs SET ended = began, outcome = 'succeeded' WHERE starts_with(job, 'q')",
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex}"


@pytest.fixture
def worker(url: str, app: str) -> Iterator[Callable[[], PostgresWorker]]:
    """Opens workers that look at the whole queue once, and pass over a letter at once."""
    opened: list[PostgresWorker] = []

    def open_worker() -> PostgresWorker:
        made = PostgresWorker(url, app, lease_s=600.0)
        made.begins.agents, made.reap_s, made.late_s, made.patient = frozenset({"k.a"}), 600.0, 0.0, 1 << 40
        opened.append(made)
        return made

    yield open_worker
    for each in opened:
        each.close()


@pytest.fixture
def connection(url: str, app: str, worker: Callable[[], PostgresWorker]) -> Iterator[Any]:
    with psycopg.connect(url, autocommit=True) as opened:
        worker()  # which makes the journal
        opened.execute(f'SET search_path = "sabot_{app}"')  # type: ignore[arg-type]
        yield opened


def letter(job: str, priority: int = 0) -> Letter:
    return Letter("begin", job=job, name="k.a", body=encode_entry(Begin(job, 1, "k.a")), priority=priority)


def post(url: str, app: str, *letters: Letter) -> None:
    inbox = PostgresInbox(url, app)
    for each in letters:
        inbox.post(each)
    inbox.close()


def pages_read(journal: PostgresWorker, connection: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns how many pages the statements of a look that finds nothing read, by their plans."""
    said, select, found = list[tuple[str, Any]](), journal.select, 0

    def noted(statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
        said.append((statement, values))
        return select(statement, values)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "select", noted)
        assert not asyncio.run(journal.look())
    for statement, values in said:
        ((plans,),) = Statements(connection).execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", values)
        found += sum(each["Plan"]["Shared Hit Blocks"] + each["Plan"]["Shared Read Blocks"] for each in plans)
    return found


def test_a_look_beside_a_dump_reads_nothing_of_the_jobs_that_have_run_since(
    url: str,
    app: str,
    worker: Callable[[], PostgresWorker],
    connection: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server keeps their index entries for the snapshot. Each look read all of them: 7 ms of the server after 2,000 jobs."""
    one = worker()
    one.take()
    before = pages_read(one, connection, monkeypatch)
    with psycopg.connect(url) as dump:
        dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT 1")
        for statement in CLAIMED:
            connection.execute(statement.format(number=one.lease.number))
        pages_read(one, connection, monkeypatch)  # it passes over them
        assert pages_read(one, connection, monkeypatch) < before + 20
        post(url, app, letter("a"))
        assert asyncio.run(one.look())
        assert [entry.job for _, entry in one.take()] == ["a"]


def test_a_look_finds_what_comes_behind_those_that_wait_or_becomes_due(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    one = worker()
    one.take()
    room = 0
    one.begins.room = lambda: room
    post(url, app, letter("a"), letter("b"))
    connection.execute("UPDATE inbox SET after_ms = 1::bigint << 50 WHERE job = 'a'")
    room = 1
    assert [entry.job for _, entry in one.take()] == ["b"]
    assert not asyncio.run(one.look())
    post(url, app, letter("c"), letter("d"))
    assert [entry.job for _, entry in one.take()] == ["c"]
    connection.execute("UPDATE inbox SET after_ms = 1 WHERE job = 'a'")
    assert asyncio.run(one.look())
    assert [[entry.job for _, entry in one.take()] for _ in range(3)] == [["a"], ["d"], []]


def test_what_a_look_cannot_know_is_found_by_the_next_look_at_the_whole_queue(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    """A start drew its number before letters that were passed over, and committed behind them. A priority is new."""
    one = worker()
    one.take()
    post(url, app, letter("a"), letter("b"))
    connection.execute("UPDATE inbox SET number = 100 WHERE job = 'b'")
    assert [entry.job for _, entry in one.take()] == ["a", "b"]
    assert not asyncio.run(one.look())
    late = letter("late")
    row = {"number": 50, "once": late.once, "job": late.job, "letter": encode_letter(late), **columns_of(late)}
    connection.execute(
        f"INSERT INTO inbox ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})", list(row.values())
    )
    connection.execute("SELECT setval(pg_get_serial_sequence('inbox', 'number'), 200)")
    post(url, app, letter("first", priority=-1))
    assert (asyncio.run(one.look()), one.take()) == (False, [])
    other = worker()  # it looks at the whole queue
    assert asyncio.run(other.look())
    assert [entry.job for _, entry in other.take()] == ["first", "late"]
