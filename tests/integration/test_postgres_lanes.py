"""Limits of jobs over several workers of one journal in PostgreSQL: a limit holds for all of them together."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from sabot.agents import ExecutionRequest, JobClient, JobLimit, JobStatus, RuntimeKernel
from sabot.journal.begin_facts import stored_key
from sabot.journal.entries import Begin, End, Letter, encode_entry
from sabot.journal.job_tables import SHARED, WITHOUT_SEATS
from sabot.journal.postgres import PostgresInbox, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.seats import claim_seats
from tools.agent_tools import until
from tools.postgres import server_or_skip

TWO = JobLimit("k.a", concurrency=2)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex}"


@pytest.fixture
def worker(url: str, app: str) -> Iterator[Callable[..., PostgresWorker]]:
    opened: list[PostgresWorker] = []

    def open_worker(*limits: JobLimit) -> PostgresWorker:
        made = PostgresWorker(url, app, lease_s=60.0)
        made.begins.agents, made.begins.resumes = frozenset({"k.a"}), True
        made.reap_s = made.full_s = 0.0
        if limits:
            made.begins.limit({each.agent: each for each in limits})
        opened.append(made)
        return made

    yield open_worker
    for each in opened:
        each.close()


def letter(job: str, *, key: str = "", scope: str = "", **fields: Any) -> Letter:
    begin = Begin(f"k.a/{job}", 1, "k.a", key=stored_key(key), scope=scope)
    return Letter("begin", job=begin.job, name="k.a", body=encode_entry(begin), **fields)


def post(url: str, app: str, *letters: Letter) -> None:
    inbox = PostgresInbox(url, app)
    for each in letters:
        inbox.post(each)
    inbox.close()


def begun(journal: PostgresWorker) -> list[str]:
    found = journal.take()
    assert all(journal.wait_durable(position, 60) for position, _ in found)
    journal.begins.begun_all()
    return [entry.job.removeprefix("k.a/") for _, entry in found]


def end(journal: PostgresWorker, *jobs: str) -> None:
    for job in jobs:
        assert journal.wait_durable(journal.append(End(f"k.a/{job}", 2, "succeeded")), 60)


def run(url: str, app: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        done = connection.execute(statement)
        return done.fetchall() if done.description else []


def test_a_limit_holds_for_all_workers_together_and_a_seat_is_free_when_its_job_ends(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    first, second = worker(TWO), worker()
    post(url, app, *(letter(each) for each in "abcde"))
    assert begun(first) == ["a", "b"]
    assert begun(second) == []
    end(first, "a")
    assert begun(second) == ["c"]
    assert (begun(first), begun(second)) == ([], [])
    end(second, "c")
    end(first, "b")
    assert begun(first) == ["d", "e"]


def test_a_count_of_seats_behind_a_lock_passes_no_limit(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    """The second taker finds the lock, and then the seats that the first one has taken, although its look was before."""
    one, two = worker(TWO), worker()
    post(url, app, *(letter(each) for each in "abc"))
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        for each in (first, second):
            each.execute(f'SET search_path = "sabot_{app}"')
            each.commit()
        second.execute("SELECT count(*) FROM seats")
        assert claim_seats(first, "k.a", one.lease.number, 9, []) == ([], 2)
        assert claim_seats(second, "k.a", two.lease.number, 9, []) is None
        first.commit()
        assert claim_seats(second, "k.a", two.lease.number, 9, []) == ([], 0)


def test_takers_that_race_pass_no_limit_and_leave_no_job(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    limit = JobLimit("k.a", per="key", concurrency=2)
    takers = [worker(limit), worker()]
    wanted = {f"{key}{each}" for key in "xyz" for each in range(8)}
    post(url, app, *(letter(each, key=each[0]) for each in sorted(wanted)))
    lock, open_now, most, done, errors = (
        threading.Lock(),
        dict.fromkeys("xyz", 0),
        [0],
        set[str](),
        list[BaseException](),
    )

    def work(taker: PostgresWorker) -> None:
        try:
            while done != wanted:
                jobs = begun(taker)
                with lock:
                    for job in jobs:
                        open_now[job[0]] += 1
                        most.append(open_now[job[0]])
                for job in jobs:
                    with lock:  # before its end is in the journal: the seat is free from then on
                        open_now[job[0]] -= 1
                    end(taker, job)
                    done.add(job)
        except BaseException as error:
            errors.append(error)
            done.update(wanted)

    threads = [threading.Thread(target=work, args=(each,)) for each in takers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (errors, done) == ([], wanted)
    assert max(most) <= 2


def test_a_letter_of_a_dead_worker_has_no_seat_and_its_open_jobs_keep_theirs(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    dying, second = worker(TWO), worker()
    post(url, app, letter("a"), letter("b"))
    dying.claim_letters()
    run(url, app, f"UPDATE workers SET until = 'epoch' WHERE number = {dying.lease.number}")
    assert begun(second) == ["a", "b"], "it buries the dead worker, whose letters are free then"
    third = worker()
    post(url, app, letter("c"))
    run(url, app, f"UPDATE workers SET until = 'epoch' WHERE number = {second.lease.number}")
    assert begun(third) == []
    assert sorted(third.begins.taken_over) == ["k.a/a", "k.a/b"]
    assert begun(third) == []
    end(third, "a")
    assert begun(third) == ["c"]


def test_a_job_that_waits_gives_its_seat_up_and_has_one_before_it_goes_on(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    first, second = worker(JobLimit("k.a", concurrency=1)), worker()
    post(url, app, *(letter(each) for each in "abc"))
    assert begun(first) == ["a"]
    first.begins.lanes.park("k.a/a")
    assert begun(first) == ["b"]
    went = list[str]()
    first.begins.lanes.go_on("k.a/a", lambda: went.append("a"))
    assert (begun(first), begun(second), first.begins.granted) == ([], [], [])
    end(first, "b")
    assert begun(first) == []
    for go in first.begins.granted:
        go()
    assert went == ["a"], "before c, which is to begin"
    assert begun(second) == []
    end(first, "a")
    assert begun(second) == ["c"]


def test_letters_wait_for_their_time_and_begin_by_their_priority(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    one = worker()
    later = 1 << 50
    post(url, app, letter("a", priority=5), letter("b", after_ms=later), letter("c"), letter("d", priority=-1))
    assert begun(one) == ["d", "c", "a"]
    run(url, app, "UPDATE inbox SET after_ms = 1")
    assert begun(one) == ["b"]


def test_a_queued_job_that_is_cancelled_begins_at_once_and_takes_no_seat(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    one = worker(JobLimit("k.a", concurrency=1))
    post(url, app, letter("a"), letter("b", after_ms=1 << 50), letter("c"))
    post(url, app, Letter("cancel", job="k.a/b"), Letter("cancel", job="k.a/c"))
    assert sorted(begun(one)) == ["a", "b", "c"]
    assert run(url, app, "SELECT job FROM seats") == [("k.a/a",)]
    assert sorted(begun(one)) == ["b", "c"], "their cancels"


def test_a_rate_holds_for_all_workers(url: str, app: str, worker: Callable[..., PostgresWorker]) -> None:
    first, second = worker(JobLimit("k.a", rate="2/h", per="scope")), worker()
    post(url, app, *(letter(each, scope=each[0]) for each in ("x1", "x2", "x3", "y1")))
    assert begun(first) == ["x1", "x2", "y1"]
    end(first, "x1", "x2")
    assert begun(second) == []
    run(url, app, "UPDATE seats SET at_ms = at_ms - 3600000 WHERE job LIKE '%x1'")
    assert begun(second) == ["x3"]


def test_the_limit_of_the_worker_that_has_started_last_holds(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    first = worker(JobLimit("k.a", concurrency=1))
    post(url, app, *(letter(each) for each in "abc"))
    assert begun(first) == ["a"]
    worker(TWO)
    assert begun(first) == ["b"]
    last = worker()
    last.begins.limit({})
    assert begun(last) == ["c"]


def test_a_journal_without_seats_is_brought_up_to_date_with_its_letters(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    worker().close()
    run(
        url,
        app,
        "DROP INDEX letters_to_claim; DROP TABLE seats, limits; UPDATE meta SET value = '9' WHERE name = 'format'",
    )
    for name in ("agent", "scope", "key", "priority", "after_ms"):
        run(url, app, f"ALTER TABLE inbox DROP COLUMN {name}")
    reader = PostgresReader(url, app)
    assert (reader.format, reader.is_shared) == (WITHOUT_SEATS, True)
    reader.close()
    post(url, app, letter("a", key="ann"), letter("b", key="ann"))
    with pytest.raises(Exception, match="of an earlier Sabot, without start_after= and priority="):
        post(url, app, letter("c", priority=1))
    first = worker(JobLimit("k.a", per="key", concurrency=1))
    assert first.format == SHARED
    assert begun(first) == ["a"]
    assert begun(first) == []


def test_two_kernels_keep_a_limit_and_a_job_that_waits_lets_the_next_pass(url: str, app: str) -> None:
    started: list[str] = []

    async def asks(ctx: Any) -> Any:
        if ctx.message not in started:
            started.append(ctx.message)
        return (await ctx.ask("confirm", {})).resolution

    def kernel() -> RuntimeKernel:
        limits = [JobLimit("asks", concurrency=1)]
        return RuntimeKernel.create(agent=asks, journal=url, name=app, shared=True, limits=limits)

    async def main() -> None:
        async with kernel() as one, kernel() as two:
            await one.resume()
            await two.resume()
            client = JobClient(url, name=app)
            first, second = [await client.start("asks", each, key="k") for each in ("1", "2")]
            third = await one.execute(ExecutionRequest(prompt="3", start_after="1h"))
            await until(lambda: started == ["1", "2"])
            assert (await client.jobs.get(third.job_id)).status is JobStatus.QUEUED
            for each in (first, second):
                async for event in each.events():
                    if event.type == "action.required":
                        break
                (action,) = await each.get_pending_actions()
                await client.actions.resolve(action.resume_token, {"of": each.job_id})
                assert (await each.result()).output == {"of": each.job_id}

    asyncio.run(main())
