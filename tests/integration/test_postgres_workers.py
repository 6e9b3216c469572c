"""Several workers over one journal in PostgreSQL: each job is in one of them, and is not lost with it."""

import asyncio
import json
import math
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from sabot.agents import (
    ExecutionRequest,
    InMemoryLedgerWriter,
    JobClient,
    JobLimit,
    Ledger,
    PolicyEngine,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.app_jobs import JournalAddress
from sabot.agents.job_view import JobView
from sabot.agents.kernel.client import ClientHandle
from sabot.agents.kernel.handle import JobHandle
from sabot.agents.questions import OpenQuestions
from sabot.cli import commands
from sabot.codecs.records import iterate_records
from sabot.errors import (
    AppLocked,
    EffectError,
    IdempotencyConflict,
    JobCancelled,
    JournalFailed,
    TransientError,
    UserError,
)
from sabot.jobs.tree import first_of
from sabot.jobs.values import pack
from sabot.journal.crashes import MOST, ONE_TREE, ROOT, SUSPECTS, in_trees, tree_of
from sabot.journal.ended_jobs import BLOCKED, JobQuery
from sabot.journal.entries import Answer, Attempt, Begin, EffectResult, End, Entry, Intent, Letter, encode_entry
from sabot.journal.history_tables import SESSIONS
from sabot.journal.job_tables import SHARED, SHARED_BEFORE, WITHOUT_SESSIONS
from sabot.journal.postgres import PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.postgres_workers import _GIVE_BACK, _IN_GIVEN, PostgresWorker, workers_of
from sabot.journal.schemas import JournalSchema
from sabot.journal.source import JournalRow, JournalSource
from sabot.llm import Effect, tool
from sabot.web.job_reading import read_job, read_jobs
from sabot.web.payloads import Payloads
from tools.agent_tools import until
from tools.commit_wire import CommitWire
from tools.older_journals import EFFECT, without_sessions, without_within, write_ended
from tools.postgres import Postgres, server_or_skip

LEASE_S = 60.0
IN_DOUBT = "datname = current_database() AND state = 'idle in transaction'"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server_or_skip().database() as found:
        yield found


@pytest.fixture
def app() -> str:
    return f"app-{uuid.uuid4().hex}"


@pytest.fixture
def worker(url: str, app: str) -> Iterator[Callable[[], PostgresWorker]]:
    """Opens workers of one journal, which go on with the jobs of others. They are closed at the end."""
    opened: list[PostgresWorker] = []

    def open_worker() -> PostgresWorker:
        made = PostgresWorker(url, app, lease_s=LEASE_S)
        made.begins.agents, made.begins.resumes, made.reap_s = frozenset({"k.a"}), True, 0.0
        opened.append(made)
        return made

    yield open_worker
    for each in opened:
        each.close()


def post(url: str, app: str, *letters: Letter) -> None:
    inbox = PostgresInbox(url, app)
    for letter in letters:
        inbox.post(letter)
    inbox.close()


def retry(url: str, app: str, job: str) -> None:
    reader = PostgresReader(url, app)
    mark = reader.job(job)
    reader.close()
    assert mark is not None
    again = Begin(job, 3, "k.a", run=2)
    post(url, app, Letter("retry", job=job, name=str(mark.began.offset), body=encode_entry(again)))


def begins(*jobs: str) -> list[Letter]:
    return [Letter("begin", job=job, name="k.a", body=encode_entry(Begin(job, 1, "k.a"))) for job in jobs]


def written(journal: PostgresWorker, *entries: Entry) -> None:
    positions = [journal.append(entry) for entry in entries]
    assert journal.wait_durable(positions[-1], 60)


def taken(journal: PostgresWorker) -> list[str]:
    """Takes letters: the jobs to which they are. Their entries are durable."""
    found = journal.take()
    assert all(journal.wait_durable(position, 60) for position, _ in found)
    return [entry.job for _, entry in found]


def taken_over(journal: PostgresWorker) -> list[str]:
    """The open jobs of workers that are gone, which it takes with the letters. There are no letters."""
    assert taken(journal) == []
    jobs, journal.begins.taken_over = journal.begins.taken_over, []
    return sorted(jobs)


def log(url: str, app: str, job: str | None = None) -> list[Entry]:
    reader = PostgresReader(url, app)
    try:
        found = list(reader.read(job))
        assert [position for position, _ in found] == sorted(position for position, _ in found)
        return [entry for _, entry in found]
    finally:
        reader.close()


def run(url: str, app: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')  # type: ignore[arg-type]
        connection.execute(statement)  # type: ignore[arg-type]


def dies(url: str, app: str, journal: PostgresWorker) -> None:
    """The lease of this worker is over, though its process is there: as if it were paused."""
    run(url, app, f"UPDATE workers SET until = 'epoch' WHERE number = {journal.lease.number}")


async def test_each_letter_begins_one_job_in_one_worker(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    first.begins.room = second.begins.room = lambda: 2
    post(url, app, *begins("a", "b", "c"))
    assert await first.look()
    assert await second.look()
    assert (taken(first), taken(second), taken(first), taken(second)) == (["a", "b"], ["c"], [], [])
    assert [entry.job for entry in log(url, app)] == ["a", "b", "c"]
    assert (first.unfinished({}), second.unfinished({})) == (["a", "b"], ["c"])


def test_letters_go_to_the_worker_that_holds_their_job(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    written(first, Begin("a", 1, "k.a"), Intent("a", 2, 1, "ask", "confirm", token="t"))
    written(second, Begin("b", 1, "k.a"))
    post(url, app, Letter("answer", "t", body=b"yes"), Letter("cancel", job="b"))
    assert (taken(second), taken(first)) == (["b"], ["a"])
    assert isinstance(log(url, app, "a")[-1], Answer)


def test_jobs_of_a_worker_that_left_belong_to_the_first_who_takes_them(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second, third = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"), Begin("a/1", 1, "k.a"), Begin("b", 1, "k.a"), End("b", 2, "succeeded"))
    written(second, Begin("c", 1, "k.a"))
    assert taken_over(second) == []
    first.close()
    assert taken_over(second) == ["a", "a/1"]
    assert taken_over(third) == []
    assert second.predecessor_left("a") < 0  # it has left: none of its calls begins any more
    written(second, Attempt("a", 2, 0, 1))
    assert log(url, app, "a") == [Begin("a", 1, "k.a"), Attempt("a", 2, 0, 1)]


def test_the_jobs_of_a_dead_worker_are_spread_over_the_living(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """Each takes its part of all open jobs, in whole trees. What one has no room for is taken by the others later."""
    first, second, third, full = worker(), worker(), worker(), worker()
    second.reap_s = third.reap_s = full.reap_s = 600.0
    full.begins.room = lambda: 0
    written(second, *(Begin(f"own-{number}", 1, "k.a") for number in range(20)))
    trees = [(f"t{number}", f"t{number}~1", f"t{number}~1~2") for number in range(60)]
    written(first, *(Begin(job, 1, "k.a") for tree in trees for job in tree))
    first.close()
    parts = [taken_over(each) for each in (second, third, full, third, second, full, third)]
    assert [len(part) for part in parts] == [48, 66, 0, 3, 0, 0, 0]
    second.reap_s = 0.0  # the others had their time
    parts += [taken_over(second), taken_over(second)]
    assert [len(part) for part in parts[7:]] == [63, 0]
    for part in parts:
        assert {job.partition("~")[0] for job in part} <= {tree[0] for tree in trees if {*tree} <= {*part}}
    assert sorted(job for part in parts for job in part) == sorted(job for tree in trees for job in tree)


async def test_a_worker_without_resume_warns_where_no_other_runs(
    url: str, app: str, worker: Callable[[], PostgresWorker], caplog: pytest.LogCaptureFixture
) -> None:
    """It may not have called `resume` yet: it warns at the second look."""
    first, second, alone = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"))
    first.close()
    alone.begins.resumes = False
    assert [await alone.look() for _ in range(3)] == [False] * 3
    assert "resume" not in caplog.text
    dies(url, app, second)
    assert [await alone.look() for _ in range(3)] == [False] * 3
    assert caplog.text.count("has open jobs, and no worker goes on with them before `await kernel.resume()`") == 1


def test_a_take_is_bounded(url: str, app: str, worker: Callable[[], PostgresWorker]) -> None:
    first, second = worker(), worker()
    written(first, *(Begin(f"t{number}", 1, "k.a") for number in range(150)))
    first.close()
    assert [len(taken_over(second)) for _ in range(4)] == [64, 64, 22, 0]
    second.close()
    third = worker()
    third.begins.room = lambda: 3
    assert [len(taken_over(third)) for _ in range(2)] == [3, 3]


def test_a_list_of_jobs_names_the_workers_that_hold_them(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second, third = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"), Begin("b", 1, "k.a"), End("b", 2, "succeeded"))
    written(second, Begin("c", 1, "k.a"))
    third.close()
    first.close()
    done = CliRunner().invoke(commands.cli, ["jobs", "list", "--journal", f"{url}?app={app}"])
    rows = [line.split("  ") for line in done.output.partition("\nworker")[2].splitlines()[1:]]
    found = [[word.strip() for word in row if word.strip()] for row in rows]
    process = f"process {os.getpid()} on {socket.gethostname()}"
    assert found == [["1", process, "has ended", "1"], ["2", process, "runs", "1"]]


def test_rows_of_workers_that_hold_nothing_go(url: str, app: str, worker: Callable[[], PostgresWorker]) -> None:
    first, second, third = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"), Begin("b", 1, "k.a"), End("b", 2, "failed"))
    first.close()
    second.close()
    assert taken_over(third) == ["a"]
    assert taken_over(third) == []
    with psycopg.connect(url) as connection:
        found = connection.execute(f'SELECT number FROM "sabot_{app}".workers ORDER BY 1').fetchall()  # type: ignore[arg-type]
    assert found == [(SUSPECTS,), (0,), (third.lease.number,)]
    retry(url, app, "b")
    assert taken(third) == ["b"]


async def test_a_paused_worker_writes_nothing_after_its_jobs_were_taken(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    written(first, Begin("a", 1, "k.a"))
    post(url, app, *begins("b"))
    first.claim_letters()  # it was paused before it made an entry of it
    assert not taken(second)
    dies(url, app, first)
    assert await second.look()
    assert taken(second) == ["b"]
    assert second.begins.taken_over == ["a"]
    assert 0 < second.predecessor_left("a") <= LEASE_S  # it may still be sending calls
    position = first.append(Attempt("a", 2, 0, 1))
    with pytest.raises(JournalFailed, match="other workers have declared this one dead"):
        first.wait_durable(position, 60)
    assert [type(entry) for entry in log(url, app, "a")] == [Begin]
    assert first.claim_left() == 0


def test_what_is_in_doubt_in_a_job_waits_for_its_own_earlier_worker_only(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """It waited for the last lease of all whose jobs were taken: in a worker that takes jobs of a paused one each 10 s, for ever."""
    first, other, second = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"))
    written(other, Begin("b", 1, "k.a"))
    written(second, Begin("own", 1, "k.a"))
    dies(url, app, first)
    assert taken_over(second) == ["a"]
    left = second.predecessor_left("a")
    assert 0 < left <= LEASE_S
    dies(url, app, other)
    assert taken_over(second) == ["b"]
    assert second.predecessor_left("a") <= left < second.predecessor_left("b") + 1
    assert second.predecessor_left("own") == -math.inf


@pytest.mark.parametrize("end", ["it leaves", "it is killed", "it gives its jobs back"])
def test_what_is_in_doubt_in_a_job_waits_for_a_paused_worker_also_if_the_next_one_has_ended(
    url: str, app: str, worker: Callable[[], PostgresWorker], end: str
) -> None:
    """The one behind both judged it at once, while the paused one could still send its call: the last of them had certainly ended."""
    paused, second, third = worker(), worker(), worker()
    written(paused, Begin("a", 1, "k.a"))
    dies(url, app, paused)
    assert taken_over(second) == ["a"]
    left = second.predecessor_left("a")
    if end == "it leaves":
        second.close()
    elif end == "it is killed":
        run(url, app, f"UPDATE workers SET life = life || '0' WHERE number = {second.lease.number}")
    else:
        second.begins.give_back(["a"])
    assert taken_over(third) == ["a"]
    assert left - 2 < third.predecessor_left("a") <= left


def test_a_worker_forgets_from_whom_it_has_taken_jobs_long_ago(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, other, second = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"))
    written(other, Begin("b", 1, "k.a"))
    dies(url, app, first)
    assert taken_over(second) == ["a"]
    second.kept_s = -2 * LEASE_S
    dies(url, app, other)
    assert taken_over(second) == ["b"]
    assert second.predecessor_left("a") == -math.inf
    assert second.predecessor_left("b") > 0


def test_places_rise_within_a_job_that_goes_to_and_fro(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """The worker that takes a job has drawn its places before those of the job's entries."""
    second, first = worker(), worker()
    written(second, Begin("b", 1, "k.a"))
    written(first, Begin("a", 1, "k.a"))
    first.close()
    assert taken_over(second) == ["a"]
    written(second, Attempt("a", 2, 0, 1))
    assert [type(entry) for entry in log(url, app, "a")] == [Begin, Attempt]


async def test_a_retry_of_a_job_whose_worker_is_gone_is_taken_by_another(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    written(first, Begin("a", 1, "k.a"), End("a", 2, "failed"))
    first.close()
    retry(url, app, "a")
    assert await second.look()
    assert taken(second) == ["a"]
    assert [type(entry) for entry in log(url, app, "a")] == [Begin, End, Begin]
    assert second.unfinished({}) == ["a"]


def test_a_commit_whose_answer_was_lost_is_made_once(url: str, app: str, worker: Callable[[], PostgresWorker]) -> None:
    first = worker()
    written(first, Begin("a", 1, "k.a"))
    write = first.write

    def lost(rows: list) -> None:  # type: ignore[type-arg]
        write(rows)
        first.write = write  # type: ignore[method-assign]
        raise TransientError("the connection broke behind the COMMIT")

    first.write = lost  # type: ignore[method-assign]
    try:
        written(first, Attempt("a", 2, 0, 1))
    finally:
        first.write = write  # type: ignore[method-assign]
    written(first, Attempt("a", 3, 0, 2))
    assert log(url, app, "a") == [Begin("a", 1, "k.a"), Attempt("a", 2, 0, 1), Attempt("a", 3, 0, 2)]


async def test_a_client_sees_the_end_of_a_job_whose_worker_writes_below_another(
    url: str, app: str, worker: Callable[[], PostgresWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last place of the journal, by which a client saw that entries have come, does not change."""
    first, second = worker(), worker()
    written(second, Begin("b", 1, "k.a"))
    written(first, Begin("a", 1, "k.a"))
    looks, ends = list[int](), PostgresReader.ends

    def look(reader: PostgresReader) -> dict[int, int]:
        looks.append(1)
        return ends(reader)

    monkeypatch.setattr(PostgresReader, "ends", look)
    handle = await JobClient(f"{url}?app={app}", name="k").handle("a")
    result = asyncio.create_task(handle.result())
    await until(lambda: len(looks) >= 2)
    written(first, End("a", 2, "succeeded", body=pack(5, "x")))
    assert (await result).output == 5


def out_of_order(first: PostgresWorker, second: PostgresWorker) -> Iterator[list[Entry]]:
    """Two connections write in turns, the second at higher places than the first: the entries that are new each time."""
    steps: list[tuple[PostgresWorker, Entry]] = [
        (second, Begin("b", 1, "k.a")),
        (first, Begin("a", 1, "k.a")),
        (second, Intent("b", 2, 1, "ask", "confirm", token="tb")),
        (first, Intent("a", 2, 1, "ask", "confirm", token="ta")),
        (first, End("a", 3, "succeeded")),
    ]
    for journal, entry in steps:
        written(journal, entry)
        yield [entry]
    written(first, Begin("c", 1, "k.a"))
    written(second, Begin("d", 1, "k.a"), End("d", 2, "failed"))
    yield [Begin("c", 1, "k.a"), Begin("d", 1, "k.a"), End("d", 2, "failed")]


def test_a_stream_of_entries_has_those_that_become_durable_below_others(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """Also where another source goes on from its positions, as after a crash."""
    source = JournalSource(
        "k",
        lambda: closing(PostgresReader(url, app)),
        lambda entry: [JournalRow(encode_entry(entry), b"", entry.at_ms)],
    )
    positions: Any = None
    for new in out_of_order(worker(), worker()):
        source.open(positions)
        batch = source.read_batch(10, 0.0)
        assert batch is not None
        assert [each.payload for each in iterate_records(batch.data, batch.topic)] == [
            encode_entry(each) for each in new
        ]
        assert source.read_batch(10, 0.0) is None
        positions = source.positions()
        source.close()


def test_a_view_that_goes_on_has_the_jobs_of_all_workers(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    reader, view, asked = PostgresReader(url, app), JobView(), OpenQuestions()
    questions = list[list[str]]()
    for new in out_of_order(first, second):
        assert {*view.follow(reader)} == {each.job for each in new}
        questions.append([each.action.job_id for each in asked.read(reader)])
    assert [view.states[job].status.value for job in "abcd"] == ["succeeded", "waiting_action", "running", "failed"]
    assert questions == [[], [], ["b"], ["b", "a"], ["b"], ["b"]]
    assert not view.has_missed(reader)
    written(first, End("c", 9, "cancelled"))
    first.trim({0: first.writer.last_offset + 1}, 8)  # all of it but "c", the last that has ended
    assert [job for job in ("a", "c") if log(url, app, job)] == ["c"]
    assert not view.has_missed(reader), "it has read all that was removed"
    written(first, Begin("e", 9, "k.a"), End("e", 10, "succeeded"), Begin("f", 10, "k.a"), End("f", 11, "succeeded"))
    first.trim({0: first.writer.last_offset + 1}, 8)
    assert view.has_missed(reader)
    assert [each.action.job_id for each in asked.read(reader)] == ["b"]
    assert [*view.follow(reader)] == ["c", "f"]
    reader.close()


def reason(url: str, app: str, job: str) -> str:
    """The reason why a job is blocked, as lists show it."""
    reader = PostgresReader(url, app)
    mark = reader.job(job)
    reader.close()
    assert mark is not None
    assert (mark.status == BLOCKED) == bool(mark.blocked)
    return mark.blocked


def counted(url: str, app: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return dict(connection.execute(f'SELECT tree, count FROM "sabot_{app}".crashes').fetchall())  # type: ignore[arg-type]


def test_a_job_that_kills_its_workers_is_set_aside_with_its_reason(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """Of these, "a" kills whoever runs it, the others do not. All are blamed until it is tried alone. Progress and rest clear the
    others, a tree when all of its jobs rest.
    """
    journal, takes, counts = worker(), list[tuple[list[str], list[str]]](), list[dict[str, int]]()
    written(journal, *(Begin(job, 1, "k.a") for job in ("a", "b", "c", "d", "d~1")))
    for number in range(MOST):
        dies(url, app, journal)
        journal = worker()
        first = taken_over(journal)
        if number == 1:
            written(journal, EffectResult("c", 2, 1))
        for job in ["b", "d"] if number == 1 else ["b", "c", "d", "d~1"] if number > 1 else []:
            journal.begins.rests(job)
        takes.append((first, taken_over(journal)))
        counts.append(counted(url, app))
    every = ["a", "b", "c", "d", "d~1"]
    assert takes[:4] == [(every, []), (every, []), (["a", "b", "c"], []), (["b", "c", "d", "d~1"], ["a"])]
    assert takes[4:] == [*[(every, [])] * 5, (every[1:], [])]
    assert counts[:4] == [dict.fromkeys("abcd", 1), {"a": 2, "d": 2}, {"a": 3, "d": 3}, {"a": 4}]
    assert counts[4:] == [{"a": number} for number in range(5, MOST + 1)]
    assert "set aside: 10 workers in a row have ended while they ran it" in reason(url, app, "a")
    retry(url, app, "a")  # somebody has read the logs
    assert (reason(url, app, "a"), taken_over(journal), counted(url, app)["a"]) == ("", ["a"], 3)
    written(journal, End("a", 9, "succeeded"))
    assert (taken_over(journal), counted(url, app)) == ([], {})


def test_a_cancel_ends_a_job_that_was_set_aside(url: str, app: str, worker: Callable[[], PostgresWorker]) -> None:
    first, second = worker(), worker()
    written(first, Begin("a", 1, "k.a"))
    run(url, app, "UPDATE jobs SET worker = -1, blocked = 'set aside'")
    assert taken_over(second) == []
    post(url, app, Letter("cancel", job="a"))
    assert (taken(second), second.begins.taken_over) == (["a"], ["a"])


def test_the_tree_of_a_job_is_the_same_in_python_and_in_sql(url: str) -> None:
    # the ids of keyed jobs end with the key, in which a client may write anything
    trees = {
        "a": ["a", "a~1", "a~12~3"],
        "a~": ["a~"],
        "a~0": ["a~0"],
        "a~01": ["a~01", "a~01~2"],
        "a~b": ["a~b", "a~b~1"],
    }
    trees |= {"a~1 ": ["a~1 "], "a~1~": ["a~1~"], "a.b": ["a.b", "a.b~7"], "a~1~x": ["a~1~x", "a~1~x~1"]}
    jobs = [job for each in trees.values() for job in each]
    python = {job: tree_of(job) for job in jobs}
    assert python == {job: first_of(job) for job in jobs} == {job: tree for tree, each in trees.items() for job in each}
    with psycopg.connect(url) as connection:
        connection.execute('CREATE TEMPORARY TABLE jobs (job text COLLATE "C")')
        connection.execute("INSERT INTO jobs SELECT unnest(%s::text[])", (jobs,))
        assert dict(connection.execute(f"SELECT job, {ROOT} FROM jobs").fetchall()) == python
        found = f"SELECT job FROM jobs WHERE {in_trees(ONE_TREE)}"
        within = {tree: {job for (job,) in connection.execute(found, (tree,)).fetchall()} for tree in trees}
    assert within == {tree: set(each) for tree, each in trees.items()}


def test_jobs_that_are_given_back_are_not_each_compared_with_all_others(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """A worker that held 20,000 jobs took 25 s to leave: the server knew of no statistics, and compared each row with each tree."""
    leaves = worker()
    facts = f"n, '', 'k.a', n, {leaves.lease.number} FROM generate_series(1, 2000) n"
    run(url, app, f"INSERT INTO jobs (job, began, digest, agent, created_ms, worker) SELECT 'k.a/' || n, {facts}")
    jobs = leaves.unfinished({})
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        explain = "EXPLAIN (ANALYZE, FORMAT JSON)"
        plans = connection.execute(f"{explain} {_IN_GIVEN}", (jobs,)).fetchall()
        plans += connection.execute(f"{explain} {_GIVE_BACK}", (jobs, leaves.lease.number)).fetchall()

    def compared(plan: dict[str, Any]) -> float:
        own = (plan["Actual Rows"] + plan.get("Rows Removed by Join Filter", 0)) * plan["Actual Loops"]
        return max([own, *map(compared, plan.get("Plans", []))])

    assert max(compared(plan["Plan"]) for ((plan,),) in plans) < 10 * len(jobs) == 20_000
    assert leaves.unfinished({}) == []


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_tree_moves_whole(url: str, app: str, worker: Callable[[], PostgresWorker], goes_on: bool) -> None:
    """The first job of a tree has failed, and one below it, which may outlive it, is open. When the first is retried, both are
    in one worker, whoever of two has seen what first, and whether or not that worker goes on with the jobs of others.
    """
    first, second, third = worker(), worker(), worker()
    written(first, Begin("a", 1, "k.a"), Begin("a~1", 1, "k.a"), Begin("a~2", 1, "k.a"), End("a", 2, "failed"))
    written(first, End("a~1", 2, "succeeded"))
    if goes_on:
        first.give_back(["a~2"])  # as a worker that stops does
        assert taken_over(second) == ["a~2"]
    first.close()
    second.begins.resumes = goes_on
    retry(url, app, "a")
    assert taken(third if goes_on else second) == ([] if goes_on else ["a"])
    if goes_on:
        assert taken(second) == ["a"]
    else:
        assert second.begins.taken_over == ["a~2"]
    assert taken_over(third) == []
    assert sorted(second.unfinished({})) == ["a", "a~2"]


@pytest.mark.parametrize("cut", ["before", "behind", "late", "undone"])
def test_jobs_are_taken_once_by_a_take_whose_outcome_is_unknown(
    url: str, app: str, worker: Callable[[], PostgresWorker], cut: str
) -> None:
    """The connection breaks around the COMMIT of the take. It was made or not; or it is made when the next take has looked
    ("late"), which may say neither; or the server undoes the first take between the look and the take of the second.
    """
    first, third = worker(), worker()
    written(first, Begin("a", 1, "k.a"), Begin("a~2", 1, "k.a"), Begin("b", 1, "k.a"))
    first.close()
    wire = CommitWire(url)
    second = PostgresWorker(wire.url, app, lease_s=LEASE_S)
    second.begins.agents, second.begins.resumes, second.reap_s = frozenset({"k.a"}), True, 0.0
    wire.cut = "late" if cut == "undone" else cut
    assert (taken_over(second), wire.cut) == ([], "")
    if cut in ("late", "undone"):  # the transaction is open
        assert (taken_over(second), taken_over(third)) == ([], [])
    if cut == "late":
        wire.deliver()
    elif cut == "undone":
        select = second.select

        def undone(statement: str, values: Any = ()) -> list[tuple[Any, ...]]:
            found = select(statement, values)
            if "SKIP LOCKED" in statement:
                run(url, app, f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {IN_DOUBT}")
            return found

        second.select = undone  # type: ignore[method-assign]
    found: list[str] = []
    while not found:
        found = taken_over(second)
    assert found == ["a", "a~2", "b"]
    assert (taken_over(second), taken_over(third)) == ([], [])
    written(second, *(Attempt(job, 2, 0, 1) for job in found))
    second.close()
    wire.close()
    assert [len(log(url, app, job)) for job in found] == [2, 2, 2]


def test_a_journal_with_one_owner_becomes_shared_with_its_open_jobs(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    owner = PostgresJournal(url, app)
    owner.wait_durable(owner.append(Begin("a", 1, "k.a")), 60)
    with pytest.raises(AppLocked):
        PostgresWorker(url, app)
    owner.close()
    first = worker()
    assert taken_over(first) == ["a"]
    written(first, Attempt("a", 2, 0, 1))
    assert log(url, app, "a") == [Begin("a", 1, "k.a"), Attempt("a", 2, 0, 1)]
    with pytest.raises(UserError, match="several workers share"):
        PostgresJournal(url, app)


class Dying:
    """A connection whose process ends before a statement."""

    def __init__(self, connection: Any, statements: int) -> None:
        self._connection, self.left = connection, statements

    def execute(self, statement: str, values: Any = ()) -> Any:
        if not self.left:
            self._connection.close()
            raise TransientError("killed")
        self.left -= 1
        return self._connection.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_a_journal_that_becomes_shared_is_whole_after_a_kill_at_each_statement(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    owner = PostgresJournal(url, app)
    owner.wait_durable(owner.append(Begin("a", 1, "k.a")), 60)
    owner.close()
    place, formats = JournalSchema(url, app), list[int]()
    while SHARED not in formats:
        dying = Dying(place.connect(), len(formats))
        with suppress(TransientError):
            place.share(dying, lambda: None)
        dying.close()
        reader = PostgresReader(url, app)
        formats.append(reader.format)
        reader.close()
    assert formats == [SESSIONS] * (len(formats) - 1) + [SHARED], "nothing is shared before all is"
    assert len(formats) > 10
    first = worker()
    assert taken_over(first) == ["a"]
    assert log(url, app, "a") == [Begin("a", 1, "k.a")]


def test_a_shared_journal_of_the_first_such_format_is_brought_up_to_date_when_its_workers_have_left(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """Not before: workers of the earlier Sabot would not note in the new column what begins within an effect."""
    first = worker()
    written(first, Begin("a", 1, "k.a", within=EFFECT), Begin("b", 1, "k.a"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        without_within(connection.execute)  # type: ignore[arg-type]
        connection.execute("UPDATE meta SET value = %s WHERE name = 'format'", (str(SHARED_BEFORE),))
        reader = PostgresReader(url, app)
        assert reader.begun_within(EFFECT) == ["a"]
        with pytest.raises(AppLocked, match="of an earlier Sabot, and its tables are to be brought up to date"):
            worker()
        connection.execute("UPDATE workers SET until = 'epoch'")
    second = worker()
    assert (second.format, second.begun_within(EFFECT)) == (SHARED, ["a"])
    assert taken_over(second) == ["a", "b"]
    with pytest.raises(JournalFailed):
        written(first, Begin("late", 1, "k.a"))
    reader.close()


def test_a_shared_journal_whose_ended_jobs_have_no_sessions_is_brought_up_to_date_when_its_workers_have_left(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    owner = PostgresJournal(url, app)
    write_ended(owner)
    owner.close()
    worker()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'SET search_path = "sabot_{app}"')
        without_sessions(connection.execute)  # type: ignore[arg-type]
        connection.execute("UPDATE meta SET value = %s WHERE name = 'format'", (str(WITHOUT_SESSIONS),))
        with pytest.raises(AppLocked, match="of an earlier Sabot, and its tables are to be brought up to date"):
            worker()
        connection.execute("UPDATE workers SET until = 'epoch'")
    second = worker()
    assert second.format == SHARED
    assert [row.job for row in second.history.find(JobQuery(session="chat-1"), 9)] == ["c", "a"]


def test_a_reader_that_stays_open_while_a_journal_becomes_shared_misses_no_entries(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    """It took the gaps between the places of workers for entries that are lost, and its hint was to forget effects."""
    owner = PostgresJournal(url, app)
    assert owner.wait_durable(owner.append(Begin("a", 1, "k.a")), 60)
    owner.close()
    reader = PostgresReader(url, app)
    assert (reader.is_shared, [entry.job for _, entry in reader.read()]) == (False, ["a"])
    for each in "bc":
        written(worker(), Begin(each, 1, "k.a"))
    assert [entry.job for _, entry in reader.read()] == ["a", "b", "c"]
    assert (reader.is_shared, sorted(reader.ends())) == (True, [0, 1, 2])
    assert len(workers_of(reader)) == 3
    reader.close()


def test_a_trim_keeps_what_is_open_and_what_ended_later(
    url: str, app: str, worker: Callable[[], PostgresWorker]
) -> None:
    first, second = worker(), worker()
    written(second, Begin("open", 1, "k.a"))
    for number, at_ms in enumerate((2_000, 4_000, 5_000)):
        written(first, Begin(f"a{number}", 1, "k.a"), End(f"a{number}", at_ms, "succeeded"))
    written(second, Begin("early", 1, "k.a"), End("early", 1_000, "succeeded"))
    written(second, Begin("late", 1, "k.a"), End("late", 6_000, "succeeded"))
    before = first.writer.last_offset - 1  # two of its jobs had ended; the last of these stays
    assert first.trim({0: before}, 1) == 4
    assert {entry.job for entry in log(url, app)} == {"open", "a1", "a2", "late"}


# -- kernels ------------------------------------------------------------------------------------------------------------


class Shop:
    """Kernels of one code, over one journal. An order is paid when a person has said so."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.paid: list[tuple[str, int]] = []  # the order, and the kernel
        self.looked: list[int] = []

    def kernel(self, number: int, *, max_jobs: int = 256) -> RuntimeKernel:
        payer = self.payer(number)
        return RuntimeKernel.create(agent=payer, journal=self.url, name="shop", shared=True, max_jobs=max_jobs)

    def payer(self, number: int) -> Callable[..., Any]:
        @tool(effect="unsafe")
        async def pay(order: str) -> str:
            self.paid.append((order, number))
            return f"{order} is paid"

        @tool(effect="read")
        async def look(order: str) -> str:
            self.looked.append(number)
            return order

        async def payer(ctx: Any) -> Any:
            await ctx.call(look, ctx.message)
            await ctx.ask("confirm", {"order": ctx.message})
            return await ctx.call(pay, ctx.message)

        return payer

    async def asked(self, handle: JobHandle) -> list[Any]:
        """Waits until the job asks: what it has done before is durable."""
        found: list[Any] = []
        while not found:
            found = await handle.get_pending_actions()
        return found

    async def answer(self, client: JobClient, handle: ClientHandle) -> str:
        asked = await self.asked(handle)
        await handle.resolve_action(asked[0].resume_token, {"order": "yes"})
        return str((await handle.result()).output)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with server_or_skip().database() as url:
        yield Shop(url)


async def test_two_kernels_share_the_jobs_and_one_goes_on_with_those_of_the_other(shop: Shop) -> None:
    first, second = shop.kernel(1), shop.kernel(2)
    await first.start()
    await first.resume()
    client = JobClient(shop.url, name="shop")
    before = [await client.start("payer", f"a{number}", idempotency_key=f"a{number}") for number in range(3)]
    assert await shop.answer(client, before[0]) == "a0 is paid"
    async with second:
        await second.resume()
        await until(lambda: len(shop.looked) == 3)
        await first.close()  # two of its jobs wait for an answer
        after = await client.start("payer", "b", idempotency_key="b")
        again = await client.start("payer", "b", idempotency_key="b")
        assert (again.job_id, again.created) == (after.job_id, False)
        answers = [await shop.answer(client, each) for each in (*before[1:], after)]
        assert answers == ["a1 is paid", "a2 is paid", "b is paid"]
    assert shop.paid == [("a0", 1), ("a1", 2), ("a2", 2), ("b", 2)]
    assert shop.looked == [1, 1, 1, 2]  # what was recorded was not done again
    assert {job.status for job in await client.jobs.find()} == {"succeeded"}


async def test_lists_and_pages_name_the_worker_that_holds_a_job(shop: Shop) -> None:
    first, second = shop.kernel(1), shop.kernel(2)
    client = JobClient(shop.url, name="shop")
    address = JournalAddress(shop.url, "shop", {})
    await first.start()
    await first.resume()
    ended, held = [await client.start("payer", name, idempotency_key=name) for name in "ab"]
    await shop.answer(client, ended)
    await shop.asked(held)
    async with second:
        records = {job.job_id: job for job in await client.jobs.find()}
        holder = records[held.job_id].worker
        with address.opened() as reader:
            workers = {number: (state, jobs) for number, _, state, jobs in workers_of(reader)}
        assert (records[ended.job_id].worker, workers[holder]) == (0, ("runs", 1))
        assert sorted(workers.values()) == [("runs", 0), ("runs", 1)]
        said = CliRunner().invoke(commands.cli, ["jobs", "show", held.job_id, "--journal", shop.url, "--json"])
        assert json.loads(said.output)["worker"] == holder
        top = json.loads(CliRunner().invoke(commands.cli, ["top", shop.url, "--json"]).output)
        assert top["jobs"] == {"waiting_action": 1, "succeeded": 1}
        assert {row["worker"]: (row["state"], row["open_jobs"]) for row in top["workers"]} == workers
        table, _ = read_jobs(address, JobQuery(), Payloads(), "")
        assert re.search(rf"<td>waiting action</td><td class=.n.>{holder}</td>", table)
        assert "<h2>Workers</h2>" in table
        assert f"<dt>worker</dt><dd>{holder}</dd>" in read_job(address, held.job_id, 0, Payloads(), "", 3.0)[1]
        await second.resume()
        await first.close()

        def is_taken() -> bool:
            with address.opened() as reader:
                mark = reader.job(held.job_id)
                return mark is not None and mark.worker not in (0, holder)

        await until(is_taken)


async def test_a_hundred_clients_at_once_leave_connections_of_the_server_to_others(shop: Shop) -> None:
    kernel, name = shop.kernel(1), f"few{uuid.uuid4().hex[:8]}"
    async with kernel:
        await kernel.resume()
        with psycopg.connect(shop.url, autocommit=True) as connection:
            for statement in (
                f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 14",
                f"GRANT ALL ON SCHEMA sabot_shop TO {name}",
                f"GRANT ALL ON ALL TABLES IN SCHEMA sabot_shop TO {name}",
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA sabot_shop TO {name}",
            ):
                connection.execute(statement)
            client = JobClient(shop.url.replace("//sabot@", f"//{name}@"), name="shop")
            begun = await asyncio.gather(*(client.start("payer", number) for number in range(100)))
            assert len({each.job_id for each in begun}) == 100
            records = await asyncio.gather(*(client.jobs.get(each.job_id) for each in begun))
            assert all(record is not None for record in records)
            connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_one_idempotency_key_is_one_job_whichever_workers_are_asked(shop: Shop) -> None:
    """At once, and again when it has ended. Each worker that was asked has its result, its events and its questions."""
    first, second = shop.kernel(1), shop.kernel(2)
    async with first, second:
        await first.resume()
        await second.resume()
        for number in range(3):
            request = ExecutionRequest(prompt=f"a{number}", idempotency_key=f"a{number}")
            handles = await asyncio.gather(*(kernel.execute(request) for kernel in (first, second, first, second)))
            assert {handle.job_id for handle in handles} == {handles[0].job_id}
            elsewhere = handles[number % 2]
            await shop.asked(elsewhere)
            (question,) = await elsewhere.get_pending_actions()
            await elsewhere.resolve_action(question.resume_token, {"order": "yes"})
            assert [(await handle.result()).output for handle in handles] == [f"a{number} is paid"] * 4
            assert all(handle.done for handle in handles)
            told = [[event.type.value async for event in handle.events()] for handle in handles]
            assert told == [told[0]] * 4
            assert told[0][-1] == "final.result"
        again = await second.execute(request)
        assert (await again.result()).output == "a2 is paid"
        assert (await (await first.handle(again.job_id)).result()).output == "a2 is paid"
        with pytest.raises(IdempotencyConflict):
            await second.execute(ExecutionRequest(prompt="another", idempotency_key="a0"))
    assert sorted(order for order, _ in shop.paid) == ["a0", "a1", "a2"]


async def test_a_handle_to_a_job_of_another_worker_cancels_it_and_follows_it_when_it_moves(shop: Shop) -> None:
    first, second, third = shop.kernel(1), shop.kernel(2), shop.kernel(3)
    await first.start()
    async with second, third:
        await third.resume()
        own = [await first.execute(ExecutionRequest(prompt=f"a{number}")) for number in range(2)]
        moves, ends = [await second.handle(handle.job_id) for handle in own]
        await shop.asked(moves)
        await ends.cancel("not needed")
        with pytest.raises(JobCancelled):
            await ends.result()
        assert not moves.done
        await first.close()
        (question,) = await moves.get_pending_actions()
        await moves.resolve_action(question.resume_token, {"order": "yes"})
        assert (await moves.result()).output == "a0 is paid"
        left = await second.handle((await third.execute(ExecutionRequest(prompt="b"))).job_id)
    with pytest.raises(UserError, match="closed before the end of the job"):
        await left.result()
    assert shop.paid == [("a0", 3)]


async def test_the_function_of_a_queued_job_that_is_cancelled_is_called_by_no_worker(shop: Shop) -> None:
    async def pure(ctx: Any) -> str:
        called.append(ctx.message)
        return "a result"

    called = list[Any]()
    client = JobClient(shop.url, name="shop")
    kernels = [RuntimeKernel.create(agent=pure, journal=shop.url, name="shop", shared=True) for _ in range(2)]
    async with kernels[0], kernels[1]:
        later = {"start_after": "1h"}
        of_client = await client.start("pure", "client", **later)
        of_kernel = await kernels[0].execute(ExecutionRequest(prompt="kernel", agent="pure", start_after="1h"))
        await client.jobs.signal(of_client.job_id, "go", 5)
        for each in (of_client, of_kernel):
            await each.cancel("no more")
        for each in (of_client, of_kernel):
            with pytest.raises(JobCancelled):
                await each.result()
            assert (await client.jobs.get(each.job_id)).status == "cancelled"
        assert called == []
        assert (await (await client.start("pure", "again")).result()).output == "a result"


async def test_a_handle_is_made_of_a_job_that_begins_meanwhile(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries of the job were looked at first and its letter second: of one that was taken in between there was neither."""
    free = asyncio.Event()

    async def works(ctx: Any) -> Any:
        if ctx.message == "first":
            await ctx.step(free.wait, effect="idempotent")
        return ctx.message

    async with RuntimeKernel.create(agent=works, journal=shop.url, name="shop", shared=True, max_jobs=1) as kernel:
        await kernel.execute(ExecutionRequest(prompt="first"))
        queued = await JobClient(shop.url, name="shop").start("works", "second")
        loop, look = asyncio.get_running_loop(), PostgresWorker.letter

        def begun_before(worker: PostgresWorker, once: str) -> Letter | None:
            loop.call_soon_threadsafe(free.set)
            with closing(PostgresReader(shop.url, "shop")) as reader:
                while reader.job(queued.job_id) is None:
                    time.sleep(0.005)
            return look(worker, once)

        monkeypatch.setattr(PostgresWorker, "letter", begun_before)
        handle = await kernel.handle(queued.job_id)
        assert (await handle.result()).output == "second"


async def test_a_job_goes_to_workers_whose_code_can_continue_it(shop: Shop) -> None:
    """A rolling update in which the code of a job changes, and which has a new agent: each worker that takes a job of the other
    version gives it back before anything is written, with the reason, and no job runs in both.
    """
    client, went_on = JobClient(shop.url, name="shop"), list[str]()

    def kernel(version: str) -> RuntimeKernel:
        @tool(effect="unsafe")
        async def done(what: str) -> str:
            went_on.append(f"{what} {version}")
            return what

        async def changed(ctx: Any) -> Any:
            await ctx.ask("before" if version == "old" else "now", {})
            return await ctx.call(done, "changed")

        async def added(ctx: Any) -> Any:
            await ctx.ask("confirm", {})
            return await ctx.call(done, "added")

        agents = [shop.payer(1), changed, *([added] if version == "new" else [])]
        return RuntimeKernel.create(agent=agents, journal=shop.url, name="shop", shared=True)

    async def answer(handle: ClientHandle) -> Any:
        (question,) = await shop.asked(handle)
        await handle.resolve_action(question.resume_token, {})
        return (await handle.result()).output

    async def blocked(handle: ClientHandle) -> str:
        why = ""
        while not why:
            why = (await client.jobs.get(handle.job_id)).blocked
        return why

    old, other = kernel("old"), kernel("old")
    await old.resume()
    before = await client.start("changed", None)
    await shop.asked(before)
    new = kernel("new")
    await new.start()
    await old.close()
    await new.resume()
    assert "at step 1, ask before, the function asks for ask now" in await blocked(before)
    later = await client.start("added", None)
    await shop.asked(later)
    await other.resume()  # the update was taken back in this process: an old one again
    assert await answer(before) == "changed"
    await new.close()
    assert "no agent shop.added" in await blocked(later)
    async with other, kernel("new") as last:
        await last.resume()
        assert await answer(later) == "added"
    assert went_on == ["changed old", "added new"]


def last_worker(url: str) -> Any:
    with psycopg.connect(url) as connection:
        ((found,),) = connection.execute("SELECT max(number) FROM sabot_shop.workers").fetchall()  # type: ignore[arg-type]
    return found


async def test_a_kernel_that_stops_gives_its_jobs_back_while_its_last_call_runs(shop: Shop) -> None:
    """A rolling update without a gap: a job that waits goes on at once, and the one of the call when that has ended, with what
    it has returned. The call is unsafe: nobody is asked whether it was made.
    """
    calls, go, client = list[int](), asyncio.Event(), JobClient(shop.url, name="shop")

    def kernel(number: int) -> RuntimeKernel:
        @tool(effect="unsafe")
        async def send() -> str:
            calls.append(number)
            await go.wait()
            return f"sent by {number}"

        async def sender(ctx: Any) -> Any:
            return [await ctx.call(send), await ctx.call(send)]

        return RuntimeKernel.create(agent=[shop.payer(number), sender], journal=shop.url, name="shop", shared=True)

    first, second = kernel(1), kernel(2)
    await first.resume()
    waits = [await client.start("payer", f"a{number}", idempotency_key=f"a{number}") for number in range(5)]
    sends = await client.start("sender", None)
    await until(lambda: (len(shop.looked), calls) == (5, [1]))
    async with second:
        await second.resume()
        closing = asyncio.create_task(first.close())
        assert await shop.answer(client, waits[0]) == "a0 is paid"
        assert (closing.done(), calls) == (False, [1])
        go.set()
        assert (await sends.result()).output == ["sent by 1", "sent by 2"]
        await closing
        assert [await shop.answer(client, each) for each in waits[1:]] == [
            f"a{number} is paid" for number in range(1, 5)
        ]
    assert (sorted(shop.paid), shop.looked) == ([(f"a{number}", 2) for number in range(5)], [1] * 5)


async def test_a_kernel_whose_lease_is_lost_begins_anew_as_another_worker(shop: Shop) -> None:
    """What another worker does to one that was paused beyond its lease. The call under way is cut, and made again by its key."""
    client, calls, go = JobClient(shop.url, name="shop"), list[str](), asyncio.Event()

    @tool(effect="idempotent")
    async def send(effect: Effect) -> str:
        calls.append(effect.key)
        await go.wait()
        return "sent"

    async def sender(ctx: Any) -> Any:
        return await ctx.call(send)

    options = {"agent": [shop.payer(1), sender], "journal": shop.url, "name": "shop", "shared": True}
    async with RuntimeKernel.create(**options) as kernel:
        await kernel.resume()
        own = await kernel.execute(ExecutionRequest(prompt=None, agent="sender"))
        asks = await client.start("payer", "a", idempotency_key="a")
        await shop.asked(asks)
        await until(lambda: len(calls) == len(shop.looked) == 1)
        run(shop.url, "shop", "UPDATE workers SET gone = true")
        later = await client.start("payer", "b", idempotency_key="b")
        with pytest.raises(JournalFailed, match="declared this one dead") as lost:
            await own.result()
        assert "goes on in another worker" in lost.value.hint
        await until(lambda: len(calls) == len(shop.looked) == 2)
        go.set()
        assert (await (await client.handle(own.job_id)).result()).output == "sent"
        assert [await shop.answer(client, each) for each in (asks, later)] == ["a is paid", "b is paid"]
        assert (await (await kernel.execute(ExecutionRequest(prompt=None, agent="sender"))).result()).output == "sent"
    assert (len(set(calls)), calls[0], len(calls)) == (2, calls[1], 3)
    assert (shop.paid, last_worker(shop.url)) == ([("a", 1), ("b", 1)], 2)


async def test_a_kernel_that_is_closed_while_it_becomes_another_worker_raises_nothing(shop: Shop) -> None:
    """A lost lease has stopped no kernel, and the close comes before the journal is open again. The next one has the job."""
    client = JobClient(shop.url, name="shop")
    async with shop.kernel(1) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        asks = await client.handle(handle.job_id)
        await shop.asked(asks)
        run(shop.url, "shop", "UPDATE workers SET gone = true")
        with pytest.raises(JournalFailed, match="declared this one dead"):
            await handle.result()
    async with shop.kernel(2) as kernel:
        await kernel.resume()
        assert await shop.answer(client, asks) == "a is paid"


@pytest.mark.slow  # it starts a server of its own
async def test_kernels_go_on_when_their_server_was_restarted(own_server: Postgres) -> None:
    """Both leases are over when it answers again: whoever looks first declares the other one dead, which begins anew."""
    shop = Shop(own_server.url)
    first, second, client = shop.kernel(1), shop.kernel(2), JobClient(own_server.url, name="shop")
    async with first, second:
        await first.resume()
        await second.resume()
        before = [await client.start("payer", f"a{number}", idempotency_key=f"a{number}") for number in range(6)]
        await until(lambda: len(shop.looked) == 6)
        for kill in (True, False):
            await asyncio.to_thread(own_server.stop, kill=kill)
            await asyncio.to_thread(own_server.start)
            run(own_server.url, "shop", "UPDATE workers SET until = 'epoch'")
        after = [await client.start("payer", f"b{number}", idempotency_key=f"b{number}") for number in range(6)]
        answers = [await shop.answer(client, each) for each in (*before, *after)]
    assert answers == [f"{letter}{number} is paid" for letter in "ab" for number in range(6)]
    assert sorted(order for order, _ in shop.paid) == [f"{letter}{number}" for letter in "ab" for number in range(6)]


async def test_a_worker_has_the_options_that_others_have(shop: Shop) -> None:
    """A worker that had forgotten the policy took every second job, and made its calls unjudged."""

    def kernel(number: int, **options: Any) -> RuntimeKernel:
        agent = shop.payer(number)
        return RuntimeKernel.create(agent=agent, journal=shop.url, name="shop", shared=True, **options)

    ledger = Ledger(InMemoryLedgerWriter(shared=True))
    async with kernel(1), kernel(2, policy=PolicyEngine([ToolPolicy(["pay"], denied=True)])):
        with pytest.raises(UserError, match=r"kernel shop has no policy=, and other workers of the .+ have") as error:
            await kernel(3).start()
        assert "policy=PolicyEngine([]) says that no rule is meant" in str(error.value.hint)
        async with kernel(3, policy=PolicyEngine([]), budgets=ledger):
            with pytest.raises(UserError, match="kernel shop has no budgets= and policy=, and"):
                await kernel(4).start()
    assert shop.paid == []


@pytest.mark.one_in(3, "a second of a core each")
@pytest.mark.parametrize(
    ("forgotten", "limits"), [(False, []), (True, []), (True, [JobLimit("payer", concurrency=50)])]
)
async def test_a_worker_that_runs_takes_no_jobs_once_others_have_a_policy(
    shop: Shop, forgotten: bool, limits: list[JobLimit], caplog: pytest.LogCaptureFixture
) -> None:
    """It went on to take every second job, and to make its calls unjudged, until it was started anew."""
    client = JobClient(shop.url, name="shop")

    def kernel(number: int, **options: Any) -> RuntimeKernel:
        agent = shop.payer(number)
        return RuntimeKernel.create(agent=agent, journal=shop.url, name="shop", shared=True, limits=limits, **options)

    denied = {"policy": PolicyEngine([ToolPolicy(["pay"], denied=True)])}
    async with kernel(1, **({} if forgotten else denied)) as first:
        await first.resume()
        async with kernel(2, **denied) as second:
            await second.resume()
            jobs = [await client.start("payer", f"a{number}") for number in range(6)]
            for job in jobs:
                with pytest.raises(EffectError, match="tool pay is denied"):
                    await shop.answer(client, job)
            if forgotten:
                with pytest.raises(UserError, match="kernel shop has no policy="):
                    await first.execute(ExecutionRequest(prompt="b"))
        left = await client.start("payer", "c")  # by a worker with the policy, when there is one again
        async with kernel(3, **denied) as third:
            await third.resume()
            with pytest.raises(EffectError, match="tool pay is denied"):
                await shop.answer(client, left)
    assert shop.paid == []
    assert ("other workers have policy= now, and this one has not" in caplog.text) is forgotten


async def test_a_shared_kernel_refuses_what_knows_one_worker_only(shop: Shop) -> None:
    with pytest.raises(UserError, match="share a journal in PostgreSQL only"):
        await RuntimeKernel.create(agent=shop.kernel, shared=True).start()
    with pytest.raises(UserError, match=r"shared=True and budgets=: they know of the jobs of one worker only"):
        RuntimeKernel.create(agent=shop.kernel, shared=True, budgets=[])
    async with shop.kernel(1) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="a"))
        assert (await kernel.handle(handle.job_id)) is handle
