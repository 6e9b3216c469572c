"""What a worker's look at the queue in PostgreSQL reads while a dump has its snapshot, and what it finds then.

A job waited for 38 seconds once: its letter was passed over, and was found by the next look at the whole queue only.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from sabot.errors import TransientError
from sabot.journal.entries import Begin, Letter, Signal, encode_entry
from sabot.journal.postgres import PostgresInbox
from sabot.journal.postgres_begins import Asked, begin_jobs
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.schemas import JournalSchema, Statements
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
    """Opens workers that look at the whole queue once."""
    opened: list[PostgresWorker] = []

    def open_worker() -> PostgresWorker:
        made = PostgresWorker(url, app, lease_s=600.0)
        made.begins.agents, made.reap_s, made.patient = frozenset({"k.a"}), 600.0, 1 << 40
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
        assert [asyncio.run(one.look()) for _ in range(2)] == [False, False]  # it passes over them
        assert pages_read(one, connection, monkeypatch) < before + 20
        post(url, app, letter("a"))
        assert asyncio.run(one.look())
        assert [entry.job for _, entry in one.take()] == ["a"]


JOBS = f"INSERT INTO jobs (job, began, digest, agent, worker) SELECT 'q' || n, n, '', 'k.a', {{number}} FROM generate_series(1, {MANY}) n"
SIGNALLED = (
    f"INSERT INTO inbox (once, job, letter) SELECT 'signal:' || n, 'q' || n, '' FROM generate_series(1, {MANY}) n",
    "UPDATE inbox SET taken = 1 WHERE starts_with(once, 'signal:')",
)


def test_a_look_beside_a_dump_reads_nothing_of_the_letters_to_jobs_that_were_taken_since(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = worker(), worker()
    post(url, app, letter("a"))
    assert [entry.job for _, entry in one.take()] == ["a"]
    assert asyncio.run(one.flush())
    connection.execute(JOBS.format(number=one.lease.number))
    assert not asyncio.run(one.look())
    before = pages_read(one, connection, monkeypatch)
    with psycopg.connect(url) as dump:
        dump.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        dump.execute("SELECT 1")
        for statement in SIGNALLED:
            connection.execute(statement)
        assert [asyncio.run(one.look()) for _ in range(2)] == [False, False]
        assert pages_read(one, connection, monkeypatch) < before + 20
        post(url, app, Letter("signal", job="a", token="t", name="go"))
        assert asyncio.run(one.look())
        assert [type(entry) for _, entry in one.take()] == [Signal]
    assert other.take() == []


def test_a_letter_to_a_job_of_another_worker_is_found_by_the_one_that_takes_the_job_later(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    one, other = worker(), worker()
    post(url, app, letter("a"), letter("b", 1))
    one.begins.room = other.begins.room = lambda: 1
    assert [[entry.job for _, entry in each.take()] for each in (one, other)] == [["a"], ["b"]]
    for each in (one, other):
        asyncio.run(each.flush())
    for number in range(3):
        post(url, app, *(Letter("signal", job=job, token=f"{number}", name="go") for job in "ba"))
        assert [entry.job for _, entry in one.take()] == ["a"]
        asyncio.run(one.flush())
        assert [asyncio.run(one.look()) for _ in range(2)] == [False, False]
    connection.execute("UPDATE jobs SET worker = %s WHERE job = 'b'", (one.lease.number,))
    assert asyncio.run(one.look())
    assert [entry.job for _, entry in one.take()] == ["b"] * 3


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


def test_a_letter_is_found_whose_transaction_was_open_while_others_were_taken(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """A client had drawn its number, and its COMMIT came when later letters were passed over."""
    one = worker()
    one.take()
    assert not asyncio.run(one.look())
    with psycopg.connect(url) as client:
        asked = begin_jobs(JournalSchema(url, app), lambda key: [letter("slow")])
        answer = None
        while (request := next_of(asked, answer)) is not None:
            answer = client.execute(*request).fetchall()
        post(url, app, letter("a"))
        assert [entry.job for _, entry in one.take()] == ["a"]
        assert [asyncio.run(one.look()) for _ in range(4)] == [False] * 4
    assert asyncio.run(one.look())
    assert [entry.job for _, entry in one.take()] == ["slow"]


def next_of(asked: Asked[Any], answer: Any) -> tuple[str, Any] | None:
    try:
        return asked.send(answer)
    except StopIteration:
        return None


@pytest.mark.parametrize("priority", [-(1 << 40), -1, 3, 1 << 40])
def test_a_letter_of_a_priority_that_the_worker_has_not_met_is_found_at_once(
    url: str, app: str, worker: Callable[[], PostgresWorker], priority: int
) -> None:
    one = worker()
    post(url, app, letter("a"), letter("b", 5))
    assert [entry.job for _, entry in one.take()] == ["a", "b"]
    assert [asyncio.run(one.look()) for _ in range(3)] == [False] * 3
    post(url, app, letter("new", priority))
    assert asyncio.run(one.look())
    assert [entry.job for _, entry in one.take()] == ["new"]


def passed_over(url: str, app: str, worker: Callable[[], PostgresWorker]) -> tuple[PostgresWorker, PostgresWorker]:
    """Returns a worker that has passed over the letters `a` and `b`, and another one that has claimed them."""
    one, other = worker(), worker()
    one.take()
    post(url, app, letter("a"), letter("b"))
    other.claim_letters()
    post(url, app, letter("c"))
    assert [entry.job for _, entry in one.take()] == ["c"]
    assert [asyncio.run(one.look()) for _ in range(4)] == [False] * 4
    other.begins.room = lambda: 0
    return one, other


def found_soon(one: PostgresWorker) -> list[str]:
    """Returns the jobs that the first look which finds letters lets the worker take, of a few looks."""
    for _ in range(3):
        if asyncio.run(one.look()):
            return [entry.job for _, entry in one.take()]
    return []


def test_letters_that_a_leaving_worker_has_claimed_are_found_by_those_that_have_passed_over_them(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    one, other = passed_over(url, app, worker)
    other.close()
    assert found_soon(one) == ["a", "b"]


def test_letters_of_a_dead_worker_that_one_without_room_has_freed_are_found_by_the_others(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    full = worker()
    one, dead = passed_over(url, app, worker)
    connection.execute("UPDATE workers SET gone = true WHERE number = %s", (dead.lease.number,))
    full.begins.room, full.begins.resumes = lambda: 0, True
    full.take()
    assert found_soon(one) == ["a", "b"]


def test_letters_that_a_killed_worker_had_put_back_are_found_by_those_that_have_passed_over_them(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    """It was killed before it could tell."""
    other = worker()
    one, dead = passed_over(url, app, worker)
    connection.execute("UPDATE inbox SET worker = 0 WHERE worker = %s AND taken = 0", (dead.lease.number,))
    connection.execute("UPDATE workers SET until = 'epoch' WHERE number = %s", (dead.lease.number,))
    other.begins.room, other.begins.resumes = lambda: 0, True
    other.take()
    assert found_soon(one) == ["a", "b"]


def test_letters_that_become_due_at_a_worker_without_room_are_found_by_the_others(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    one, full = worker(), worker()
    one.take()
    full.begins.room = lambda: 0
    post(url, app, letter("due"), letter("a"))
    connection.execute("UPDATE inbox SET after_ms = 1::bigint << 50 WHERE job = 'due'")
    assert [entry.job for _, entry in one.take()] == ["a"]
    assert [asyncio.run(one.look()) for _ in range(4)] == [False] * 4
    connection.execute("UPDATE inbox SET after_ms = 1 WHERE job = 'due'")
    assert asyncio.run(full.look())
    assert full.take() == []
    assert found_soon(one) == ["due"]


def test_a_worker_that_does_not_know_what_it_has_put_back_looks_at_the_whole_queue(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the server was lost behind the statement by which a letter became due."""
    one = worker()
    one.take()
    post(url, app, letter("due"), letter("a"))
    connection.execute("UPDATE inbox SET after_ms = 1::bigint << 50 WHERE job = 'due'")
    assert [entry.job for _, entry in one.take()] == ["a"]
    assert [asyncio.run(one.look()) for _ in range(4)] == [False] * 4
    connection.execute("UPDATE inbox SET after_ms = 0 WHERE job = 'due'")

    def lost(*, strangers: bool) -> None:
        raise TransientError("the connection broke")

    with monkeypatch.context() as patched:
        patched.setattr(one, "claim_letters", lost)
        assert one.take() == []
    assert found_soon(one) == ["due"]


def test_a_letter_that_was_put_back_and_of_which_nobody_was_told_is_found_by_the_next_look_at_the_whole_queue(
    url: str, app: str, worker: Callable[[], PostgresWorker], connection: Any
) -> None:
    """A worker was killed between the two."""
    one, dead = passed_over(url, app, worker)
    connection.execute("UPDATE inbox SET worker = 0 WHERE worker = %s AND taken = 0", (dead.lease.number,))
    assert (asyncio.run(one.look()), one.take()) == (False, [])
    other = worker()  # it looks at the whole queue
    assert asyncio.run(other.look())
    assert [entry.job for _, entry in other.take()] == ["a", "b"]
