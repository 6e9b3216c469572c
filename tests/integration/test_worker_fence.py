"""The fence of workers in PostgreSQL, two connections each: what locks the row of a worker, who waits for whom, and what is left behind."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from sabot.agents import ExecutionRequest, JobClient, RuntimeKernel
from sabot.errors import JournalFailed
from sabot.journal.base import EVERY
from sabot.journal.entries import INLINE_BYTES, Attempt, Begin, End, Entry
from sabot.journal.postgres_workers import PostgresWorker
from tools.postgres import server_or_skip

LEASE_S = 600.0  # not due for a renewal within a test
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex}"


@pytest.fixture
def worker(url: str, app: str) -> Iterator[Callable[[], PostgresWorker]]:
    opened: list[PostgresWorker] = []

    def open_worker() -> PostgresWorker:
        made = PostgresWorker(url, app, lease_s=LEASE_S)
        made.begins.agents, made.begins.resumes, made.reap_s = frozenset({"k.a"}), True, 0.0
        opened.append(made)
        return made

    yield open_worker
    for each in opened:
        each.close()


@pytest.fixture
def connect(url: str, app: str) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def connected(**options: Any) -> Any:
        connection = psycopg.connect(url, **options)
        connection.execute(f'SET search_path = "sabot_{app}"')
        connection.commit()
        opened.append(connection)
        return connection

    yield connected
    for each in opened:
        each.close()


def written(journal: PostgresWorker, *entries: Entry) -> None:
    positions = [journal.append(entry) for entry in entries]
    assert journal.wait_durable(positions[-1], 60)


def test_a_commit_leaves_no_version_of_the_row_of_its_worker_behind(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any]
) -> None:
    """A long dump keeps all versions, and each look of each worker would read them. Nor has a job a version without its worker."""
    first, beside = worker(), connect(autocommit=True)
    version = f"SELECT ctid, epoch FROM workers WHERE number = {first.lease.number}"
    before = beside.execute(version).fetchall()
    for job in "abc":
        written(first, Begin(job, 1, "k.a"))
    assert beside.execute(version).fetchall() == before
    assert beside.execute("SELECT job, worker, xmax FROM jobs ORDER BY ctid").fetchall() == [
        (job, first.lease.number, "0") for job in "abc"
    ]


@pytest.mark.parametrize("ends", ["come back", "leave"])
def test_a_worker_waits_for_its_commit_under_way_before_its_right_to_commit_ends(
    url: str, app: str, worker: Callable[[], PostgresWorker], connect: Callable[..., Any], ends: str
) -> None:
    """An UPDATE of the row would not: it does not conflict with FOR KEY SHARE. The commit would arrive after it was not found."""
    first, under_way, again, beside = worker(), connect(), connect(autocommit=True), connect(autocommit=True)
    written(first, Begin("a", 1, "k.a"))
    end, lease = first.lease.end, first.lease
    under_way.execute(*lease.fence(renews=False))
    under_way.execute("INSERT INTO entries VALUES (%s, 'a', 0, '')", (end,))
    with ThreadPoolExecutor() as pool:
        done = pool.submit(lease.come_back, again, end + 1) if ends == "come back" else pool.submit(lease.leave, again)
        while beside.execute(WAITING).fetchall() != [(1,)]:
            assert not done.done(), "it did not wait"
        under_way.commit()
        assert done.result(60) == (end + 1 if ends == "come back" else None)
    statement, _ = lease.fence(renews=False)
    with pytest.raises(psycopg.errors.DivisionByZero):
        under_way.execute(statement, (lease.number, 0))


def test_a_worker_is_declared_dead_behind_its_commit_under_way_which_is_the_last(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any]
) -> None:
    first, second, under_way, beside = worker(), worker(), connect(), connect(autocommit=True)
    written(first, Begin("a", 1, "k.a"))
    beside.execute("UPDATE workers SET until = 'epoch' WHERE number = %s", (first.lease.number,))
    under_way.execute(*first.lease.fence(renews=False))
    assert (second.take(), second.begins.taken_over) == ([], [])
    under_way.commit()
    assert (second.take(), second.begins.taken_over) == ([], ["a"])
    for renews in (False, True):
        with pytest.raises(psycopg.errors.DivisionByZero):
            under_way.execute(*first.lease.fence(renews))
        under_way.rollback()
    position = first.append(Attempt("a", 2, 0, 1))
    with pytest.raises(JournalFailed, match="other workers have declared this one dead"):
        first.wait_durable(position, 60)


@pytest.mark.parametrize("holder", ["lives", "nobody"])
@pytest.mark.parametrize(
    "entry",
    [Attempt("a", 2, 0, 1), Begin("a", 2, "k.a", run=2), End("a", 2, "succeeded"), Begin("a~3", 2, "k.a")],
    ids=["attempt", "next run", "end", "child"],
)
def test_a_commit_for_a_job_of_another_worker_that_lives_leaves_no_entry(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any], holder: str, entry: Entry
) -> None:
    """Nor of the worker's own jobs in its group. The holder, or whoever takes the job, goes on with it."""
    first, second, beside = worker(), worker(), connect(autocommit=True)
    written(first, Begin("a", 1, "k.a"))
    written(second, Begin("b", 1, "k.a"))
    has = f"worker {first.lease.number}" if holder == "lives" else "no worker"
    if holder == "nobody":
        first.give_back(["a"])
    tables = [f"SELECT * FROM {table} ORDER BY 1" for table in ("entries", "jobs", "questions")]
    lock = connect()
    lock.execute("SELECT 1 FROM workers WHERE number = %s FOR UPDATE", (second.lease.number,))
    alone = second.append(Attempt("b", 2, 0, 1))
    while beside.execute(WAITING).fetchall() != [(1,)]:
        pass
    second.append(Attempt("b", 2, 0, 2))  # in one group with the next, as the commit before waits
    position = second.append(entry)
    lock.commit()
    assert second.wait_durable(alone, 60)
    before = [beside.execute(table).fetchall() for table in tables]
    with pytest.raises(
        JournalFailed, match=f"tree of job a was written by worker {second.lease.number}, and {has} has"
    ):
        second.wait_durable(position, 60)
    assert [beside.execute(table).fetchall() for table in tables] == before
    if holder == "nobody":
        assert (first.take(), first.begins.taken_over) == ([], ["a"])
    written(first, entry)


def test_a_job_is_given_back_behind_the_commit_under_way_of_its_worker(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any]
) -> None:
    first, second, under_way, beside = worker(), worker(), connect(), connect(autocommit=True)
    written(first, Begin("a", 1, "k.a"))
    under_way.execute(*first.lease.fence(renews=False))
    with ThreadPoolExecutor() as pool:
        given = pool.submit(first.give_back, ["a"])
        while beside.execute(WAITING).fetchall() != [(1,)]:
            assert not given.done(), "it did not wait"
        assert (second.take(), second.begins.taken_over) == ([], [])
        under_way.commit()
        given.result(60)
    assert (second.take(), second.begins.taken_over) == ([], ["a"])


def test_a_lease_is_renewed_beside_a_commit_under_way(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any]
) -> None:
    first, commit, renewal = worker(), connect(), connect()
    commit.execute(*first.lease.fence(renews=False))
    renewal.execute("SET lock_timeout = '20s'")
    assert renewal.execute(*first.lease.renewal()).fetchall() == [(1,)]
    renewal.execute(*first.lease.fence(renews=True))
    commit.execute(*first.lease.fence(renews=False))
    renewal.commit()
    commit.commit()


def test_whether_a_group_was_committed_is_seen_by_its_last_entry_also_after_a_trim(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any]
) -> None:
    idle, first, beside = worker(), worker(), connect(autocommit=True)
    assert idle.lease.come_back(beside, None) == idle.lease.first, "nothing was written"
    written(first, Begin("a", 1, "k.a"), End("a", 2, "succeeded"))
    end = first.lease.end
    found = [first.lease.come_back(beside, behind) for behind in (None, end, end + 5)]
    assert first.inbox.trim(["a"], EVERY, []) == 2
    found += [first.lease.come_back(beside, behind) for behind in (None, end, end + 5)]
    assert found == [end] * 6
    beside.execute("DELETE FROM gone")
    for behind in (None, end + 5):
        with pytest.raises(JournalFailed, match=f"entry {end - 1}, which this worker has written, is missing"):
            first.lease.come_back(beside, behind)


def test_a_trim_waits_for_a_commit_under_way_that_names_a_body_of_what_it_removes(
    worker: Callable[[], PostgresWorker], connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit finds the long body there, and stores no second one: a trim that does not see its entry would delete the only one."""
    first, second, beside = worker(), worker(), connect(autocommit=True)
    body = bytes(INLINE_BYTES + 1)
    written(first, Begin("a", 1, "k.a", body=body), End("a", 2, "succeeded"))
    written(first, Begin("last", 1, "k.a"), End("last", 3, "succeeded"))
    insert = second.insert

    def insert_and_wait(connection: Any, rows: Any) -> None:
        insert(connection, rows)
        connection.execute("SELECT pg_advisory_xact_lock(7)")

    monkeypatch.setattr(second, "insert", insert_and_wait)
    beside.execute("SELECT pg_advisory_lock(7)")
    with ThreadPoolExecutor() as pool:
        position = second.append(Begin("b", 1, "k.a", body=body))
        while beside.execute(WAITING).fetchall() != [(1,)]:
            pass
        trimmed = pool.submit(first.trim, {0: EVERY})
        try:
            while beside.execute(WAITING).fetchall() != [(2,)]:
                assert not trimmed.done(), "it did not wait"
        finally:
            beside.execute("SELECT pg_advisory_unlock(7)")
        assert trimmed.result(60) == 2
    assert second.wait_durable(position, 60)
    ((_, entry),) = second.read("b")
    assert isinstance(entry, Begin)
    assert second.load(entry.body) == body


def test_a_job_with_one_effect_writes_ten_rows(url: str, app: str, connect: Callable[..., Any]) -> None:
    """Five entries, the job and its end, its letter, who has claimed it, and that it was taken. Asked: at most 14."""

    async def one() -> int:
        return 1

    async def work(ctx: Any) -> Any:
        return await ctx.step(one, effect="read")

    async def run() -> None:
        async with RuntimeKernel.create(agent=work, journal=url, name=app, shared=True) as kernel:
            await kernel.resume()
            client = JobClient(url, name=app)
            for handle in await client.start_all([ExecutionRequest(prompt="x", agent="work") for _ in range(20)]):
                assert (await handle.result()).output == 1

    asyncio.run(run())
    beside = connect(autocommit=True)
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type LIKE 'client%'"
    while beside.execute(others).fetchall():  # a session tells what it has written at its end
        beside.execute("SELECT pg_stat_clear_snapshot()")
    written = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = %s AND relname = ANY(%s)"
    tables = ["entries", "jobs", "inbox", "seats", "questions", "bodies", "uses"]
    assert beside.execute(written, (f"sabot_{app}", tables)).fetchall() == [(200,)]
