"""Limits of jobs over several workers of one journal in PostgreSQL: a limit holds for all of them together."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import psycopg
import pytest

from sabot.agents import ExecutionRequest, JobClient, JobLimit, JobStatus, RuntimeKernel
from sabot.errors import AppLocked
from sabot.journal.begin_facts import stored_key
from sabot.journal.entries import Begin, Cancel, End, Letter, encode_entry
from sabot.journal.job_tables import KEYS_OF_ALL, SHARED, WITHOUT_SEATS
from sabot.journal.postgres import PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.postgres_workers import PostgresWorker
from sabot.journal.seats import claim_seats
from tools.agent_tools import until
from tools.older_journals import without_sessions
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
    told = [entry for _, entry in found if not isinstance(entry, End)]  # of a job that is cancelled before it begins
    return ["cancel " * isinstance(entry, Cancel) + entry.job.removeprefix("k.a/") for entry in told]


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
        claimed = claim_seats(first, "k.a", one.lease.number, 9)
        assert claimed is not None
        assert len(claimed.letters) == 2
        assert claim_seats(second, "k.a", two.lease.number, 9) is None
        first.commit()
        claimed = claim_seats(second, "k.a", two.lease.number, 9)
        assert claimed is not None
        assert claimed.letters == []


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


def test_a_queued_job_that_is_cancelled_is_taken_at_once_with_its_cancel_and_takes_no_seat(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    one = worker(JobLimit("k.a", concurrency=1))
    post(url, app, letter("a"), letter("b", after_ms=1 << 50), letter("c"))
    post(url, app, Letter("cancel", job="k.a/b"), Letter("cancel", job="k.a/c"))
    assert begun(one) == ["a", "b", "cancel b", "c", "cancel c"]
    assert run(url, app, "SELECT job FROM seats") == [("k.a/a",)]
    assert begun(one) == []


def test_cancels_that_are_posted_together_wait_for_no_letter_while_they_have_others_locked(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    """A worker has locked one of them, and locks the other then. Had the cancels it locked, one of the two would fail."""
    one = worker(JobLimit("k.a", concurrency=1))
    post(url, app, letter("a"), letter("b"), letter("c"))
    assert begun(one) == ["a"]
    inbox, locked = PostgresInbox(url, app), "SELECT 1 FROM inbox WHERE once = 'begin:k.a/%s' FOR UPDATE"
    with ThreadPoolExecutor() as pool, psycopg.connect(url) as claiming:
        claiming.execute(f'SET search_path = "sabot_{app}"')
        claiming.execute(locked % "c")
        posted = pool.submit(inbox.post_all, [Letter("cancel", job=f"k.a/{each}") for each in "bc"])
        while run(url, app, "SELECT count(*) FROM inbox WHERE once LIKE 'cancel:%' AND taken = 0") != [(2,)]:
            assert not posted.done()
        claiming.execute(locked % "b")
        claiming.rollback()
        assert posted.result(60) == [None, None]
    inbox.close()
    assert begun(one) == ["b", "cancel b", "c", "cancel c"], "their cancels let both through"


def test_a_rate_holds_for_all_workers(url: str, app: str, worker: Callable[..., PostgresWorker]) -> None:
    first, second = worker(JobLimit("k.a", rate="2/h", per="scope")), worker()
    post(url, app, *(letter(each, scope=each[0]) for each in ("x1", "x2", "x3", "y1")))
    assert begun(first) == ["x1", "x2", "y1"]
    end(first, "x1", "x2")
    assert begun(second) == []
    run(url, app, "UPDATE seats SET at_ms = at_ms - 3600000 WHERE job LIKE '%x1'")
    assert begun(second) == ["x3"]


def test_a_retry_waits_for_a_seat_in_the_worker_that_has_the_job(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    first, second = worker(JobLimit("k.a", per="key", concurrency=1)), worker()
    post(url, app, letter("a", key="ann"))
    assert begun(first) == ["a"]
    assert first.wait_durable(first.append(End("k.a/a", 2, "failed")), 60)
    post(url, app, *(letter(each, key="ann") for each in "bc"))
    assert begun(first) == ["b"]
    mark = first.job("k.a/a")
    assert mark is not None
    again = encode_entry(Begin("k.a/a", 0, "k.a", key=stored_key("ann"), run=2))
    post(url, app, Letter("retry", job="k.a/a", name=str(mark.began.offset), body=again))
    assert (begun(first), begun(second)) == ([], [])
    end(first, "b")
    assert (begun(second), begun(first), begun(second)) == (["c"], [], []), "the other one does not hold job a"
    end(second, "c")
    assert begun(first) == ["a"]
    post(url, app, letter("d", key="ann"))
    assert (begun(first), begun(second)) == ([], [])
    end(first, "a")
    assert begun(second) == ["d"]


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


def before_seats(url: str, app: str) -> None:
    """Takes the tables of a shared journal back to the format that had no limits."""
    without_sessions(partial(run, url, app))
    run(
        url,
        app,
        "DROP INDEX letters_due, letters_later; DROP TABLE seats, limits; UPDATE meta SET value = '9' WHERE name = 'format'",
    )
    for name in ("scope_key", "agent", "scope", "key", "priority", "after_ms"):
        run(url, app, f"ALTER TABLE inbox DROP COLUMN {name}")


def test_a_journal_without_seats_is_brought_up_to_date_with_its_letters(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    worker().close()
    before_seats(url, app)
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


@pytest.mark.parametrize("shared", [True, False])
def test_a_client_that_stays_open_while_the_tables_are_brought_up_to_date_posts_letters_that_workers_claim(
    url: str, app: str, worker: Callable[..., PostgresWorker], shared: bool
) -> None:
    """It knew the format of the tables from its start, and its jobs waited for ever."""
    if shared:
        worker().close()
        before_seats(url, app)
    else:
        PostgresJournal(url, app).close()
    client = PostgresInbox(url, app)
    client.post(letter("a"))
    with psycopg.connect(url) as other, ThreadPoolExecutor(2) as threads:
        other.execute(f'SET search_path = "sabot_{app}"')
        other.execute("SELECT FROM inbox")
        waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '{}'"
        made = threads.submit(worker, JobLimit("k.a", concurrency=3))
        while not run(
            url, app, waits.format("%ALTER TABLE inbox%")
        ):  # amid the transaction that brings them up to date
            assert not made.done(), made.result()
        posted = threads.submit(client.post, letter("b"))
        while not run(url, app, waits.format("%FROM meta%")):
            assert not posted.done()
        other.commit()
        first = made.result()
        posted.result()
    client.post(letter("c"))
    client.post(letter("later", after_ms=1 << 50, priority=2))
    assert begun(first) == ["a", "b", "c"]
    client.post(Letter("cancel", job="k.a/later"))
    assert begun(first) == ["later", "cancel later"], "its cancel lets it through"
    client.close()


def test_seats_of_a_journal_in_which_a_key_was_one_of_all_scopes_move_to_those_of_their_scopes(
    url: str, app: str, worker: Callable[..., PostgresWorker]
) -> None:
    limit = JobLimit("k.a", per="key", concurrency=1)
    first = worker(limit)
    post(url, app, letter("a", key="ann", scope="x"), letter("free"))
    assert begun(first) == ["a", "free"]
    without_sessions(partial(run, url, app))
    run(
        url,
        app,
        "DROP INDEX letters_by_scope_key; ALTER TABLE inbox DROP COLUMN scope_key; UPDATE meta SET value = '10' WHERE name = 'format'; "
        "CREATE INDEX letters_by_key ON inbox (agent, key); UPDATE seats SET lane = E'k.a\nann'",
    )
    reader = PostgresReader(url, app)
    assert (reader.format, reader.is_shared) == (KEYS_OF_ALL, True)
    post(url, app, letter("b", key="ann", scope="x"), letter("c", key="ann", scope="y"))
    assert list(reader.waits(["k.a/b"]).values()) == ["no worker that has its agent had room for it yet"]
    reader.close()
    with pytest.raises(AppLocked, match="of an earlier Sabot"):
        worker(limit)
    run(url, app, "UPDATE workers SET until = 'epoch'")
    second = worker(limit)
    assert (second.format, run(url, app, "SELECT lane FROM seats")) == (SHARED, [("k.a\n1:xann",)])
    assert (begun(second), begun(second)) == (["c"], [])
    assert sorted(second.begins.taken_over) == ["k.a/a", "k.a/free"]
    end(second, "a")
    assert begun(second) == ["b"]
    assert run(url, app, "SELECT to_regclass('letters_by_key')") == [(None,)]


FILL = """
INSERT INTO jobs (job, began, digest, agent, worker) SELECT 'k.a/p' || n, n, '', 'k.a', {worker} FROM generate_series(1, {many}) n;
INSERT INTO seats SELECT 'k.a/p' || n, 'k.a', {lane}, n, {parked} FROM generate_series(1, {many}) n;
INSERT INTO inbox (once, job, letter, agent, scope, key, after_ms)
  SELECT 'begin:k.a/q' || n, 'k.a/q' || n, '', 'k.a', 'all', {key}, 0 FROM generate_series(1, {many}) n;
INSERT INTO inbox (once, job, letter, agent, scope, after_ms)
  SELECT 'begin:k.' || a || '/l' || n, 'k.' || a || '/l' || n, '', 'k.' || a, 'all', {later}
  FROM generate_series(1, {many}) n, unnest('{{a,b}}'::text[]) a;
"""
MANY = 3_000


def rows_read(monkeypatch: pytest.MonkeyPatch, url: str, app: str, work: Callable[[], object]) -> int:
    """Returns how many rows of tables and indexes the statements of `work` read, by their plans."""
    said = list[tuple[str, Any]]()
    execute = psycopg.Cursor.execute

    def noted(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
        said.append((str(query), params))
        return execute(cursor, query, params, **options)

    with monkeypatch.context() as patched:
        patched.setattr(psycopg.Cursor, "execute", noted)
        work()
    found = 0
    with psycopg.connect(url) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        connection.commit()
        for query, params in said:
            if "inbox" in query or "seats" in query:
                ((plans,),) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", params).fetchall()
                connection.rollback()
                found += sum(_rows_of(each["Plan"]) for each in plans)
    return found


def _rows_of(plan: dict[str, Any]) -> int:
    below = sum(map(_rows_of, plan.get("Plans", ())))
    if "Relation Name" not in plan and "Index Name" not in plan:
        return below
    return below + plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))


@pytest.mark.parametrize("per", ["agent", "key"])
def test_what_a_look_and_a_claim_read_does_not_grow_with_the_jobs_that_wait(
    url: str,
    app: str,
    worker: Callable[..., PostgresWorker],
    monkeypatch: pytest.MonkeyPatch,
    per: Literal["agent", "key"],
) -> None:
    """All seats of the agent were read with each claim, and all letters with each look: 100,000 jobs that wait for a person, and
    100,000 queued ones, each time.
    """
    one = worker(JobLimit("k.a", per=per, concurrency=2, parked="free"))
    one.reap_s = 60.0
    one.take()
    post(url, app, *(letter(each, key="new") for each in "abc"), letter("later", key="new", after_ms=1))
    lane, key = ("'k.a'", "'full'") if per == "agent" else ("E'k.a\n3:allfull'", "'full'")
    values = {"many": MANY, "worker": one.lease.number, "lane": lane, "key": key, "parked": "n > 2", "later": 1 << 50}
    if per == "agent":
        values["parked"] = "n > 1"
    run(url, app, FILL.format(**values))
    run(url, app, "ANALYZE jobs, seats, inbox")
    took = list[str]()

    def work() -> None:
        assert asyncio.run(one.look())
        took.extend(begun(one))

    assert rows_read(monkeypatch, url, app, work) < 500
    assert took == (["a"] if per == "agent" else ["a", "b"])
    assert rows_read(monkeypatch, url, app, lambda: took.extend(begun(one))) < 500
    end(one, "a")
    assert begun(one) == ["b" if per == "agent" else "c"]


def test_counting_the_seats_of_many_lanes_reads_no_job_of_another_one(
    url: str, app: str, worker: Callable[..., PostgresWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 256 lanes at once the planner read the whole table of jobs, to join it with the seats."""
    one = worker(JobLimit("k.a", per="key", concurrency=2))
    one.begins.room = lambda: 64
    filled = (
        "INSERT INTO jobs (job, began, digest, agent, worker) "
        f"SELECT 'k.a/p' || n, n, '', 'k.a', {one.lease.number} FROM generate_series(1, {MANY}) n; "
        f"INSERT INTO seats SELECT 'k.a/p' || n, 'k.a', E'k.a\n3:all' || n, n FROM generate_series(1, {MANY}) n"
    )
    run(url, app, filled)
    post(url, app, *(letter(f"q{each}", key=str(each), scope="all") for each in range(1, 251)))
    run(url, app, "ANALYZE jobs, seats, inbox")
    took = list[str]()
    assert rows_read(monkeypatch, url, app, lambda: took.extend(begun(one))) < MANY
    assert took == [f"q{each}" for each in range(1, 65)], "the first 64, although texts have another order"


def test_more_lanes_than_a_claim_looks_at_have_their_turn(
    url: str, app: str, worker: Callable[..., PostgresWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.journal.seats.LANES_AT_ONCE", 3)
    one, two = worker(JobLimit("k.a", per="key", concurrency=1)), worker()
    post(url, app, *(letter(f"{key}{each}", key=key) for each in (1, 2) for key in "abcdefg"))
    assert [begun(one) for _ in range(4)] == [["a1", "b1", "c1"], ["d1", "e1", "f1"], ["g1"], []]
    end(one, "f1")
    assert begun(one) == ["f2"], "the lane of a job that has just ended is looked at first"
    assert begun(two) == []
    end(one, "g1")
    assert [begun(two) for _ in range(3)] == [["g2"], [], []]


def test_a_seat_of_a_job_that_has_ended_is_forgotten_also_in_a_lane_that_nobody_uses(
    url: str, app: str, worker: Callable[..., PostgresWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.journal.seats.VISITS", 2)
    one = worker(JobLimit("k.a", per="key", concurrency=1))
    post(url, app, *(letter(each, key=each) for each in "abcd"))
    assert begun(one) == ["a", "b", "c", "d"]
    end(one, "a", "d")
    for _ in range(3):
        one.take()
    assert run(url, app, "SELECT job FROM seats ORDER BY job") == [("k.a/b",), ("k.a/c",)]


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
