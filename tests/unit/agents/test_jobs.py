"""Jobs over a journal: their transitions, idempotency keys, limits of time, and what a kill leaves of them (rows 1.10, 1.11)."""

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.agents import (
    ActionManager,
    ActionSpec,
    BudgetSpec,
    ExecutionContext,
    IdempotencyConflict,
    IllegalTransition,
    InMemoryJobStore,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    PolicyRef,
    RunVersions,
    SqliteInbox,
    SqliteJournal,
)
from sabot.agents.jobs import ENDS, TRANSITIONS, check_move
from sabot.agents.store import cancel_letter
from sabot.clock import ManualClock
from sabot.errors import UserError
from sabot.journal import Letter, Position
from sabot.journal.memory import MemoryJournal, MemoryStorage

SPEC = JobSpec(scope_id="tenant-123", principal_id="user-456", idempotency_key="unique-key")


def manager(clock: ManualClock | None = None, events: "list[tuple[str, Any]] | None" = None) -> JobManager:
    told = (lambda name, data: events.append((name, dict(data)))) if events is not None else None
    return JobManager(InMemoryJobStore(clock=clock or ManualClock()), on_event=told)


async def test_the_example_of_the_specification() -> None:
    jobs = JobManager(InMemoryJobStore())
    job = await jobs.create(SPEC)
    assert job.status is JobStatus.QUEUED
    job = await jobs.start(job.job_id)
    assert job.status is JobStatus.RUNNING
    job = await jobs.complete(job.job_id, result_ref="result-123")
    assert (job.status, job.result_ref) == (JobStatus.SUCCEEDED, "result-123")


async def test_what_is_told_of_a_job_is_not_newer_than_what_is_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one task waits for the disk another one goes on: what that one appends may not be told before it is durable."""
    store = InMemoryJobStore()
    jobs = JobManager(store)

    async def started_meanwhile(_: Position) -> None:
        monkeypatch.undo()
        (job,) = await jobs.find()
        assert (await jobs.start(job.job_id)).status is JobStatus.RUNNING

    monkeypatch.setattr(store.journal, "durable", started_meanwhile)
    assert (await jobs.create(SPEC)).status is JobStatus.QUEUED

    async def made_meanwhile() -> dict[int, int]:
        monkeypatch.undo()
        await jobs.create(JobSpec(scope_id="another"))
        return {}

    monkeypatch.setattr(store.journal, "flush", made_meanwhile)
    assert [job.scope_id for job in await jobs.find()] == ["tenant-123"]
    assert len(await jobs.find()) == 2


async def test_a_record_has_what_was_asked_for_and_when_it_happened() -> None:
    clock = ManualClock(1000.0)
    jobs = manager(clock)
    context = ExecutionContext(
        scope_id="t",
        principal_id="p",
        session_id="s",
        run_id="r",
        budgets=BudgetSpec(max_tokens=100_000, max_cost=10.0, max_turns=20),  # type: ignore[arg-type]
        policy_ref=PolicyRef("production"),
        versions=RunVersions(model_version="m"),
        metadata={"a": [1]},
    )
    made = await jobs.create(JobSpec.of(context, deadline=5000.0))
    clock.advance(1)
    await jobs.start(made.job_id)
    clock.advance(2)
    job = await jobs.fail(made.job_id, "no luck")
    assert (job.scope_id, job.principal_id, job.session_id, job.run_id) == ("t", "p", "s", "r")
    assert (job.budgets, job.policy_ref, job.versions) == (context.budgets, context.policy_ref, context.versions)
    assert (job.metadata, job.deadline) == ({"a": [1]}, 5000.0)
    assert (job.created_at, job.started_at, job.completed_at, job.updated_at) == (1000.0, 1001.0, 1003.0, 1003.0)
    assert (job.status, job.error, job.ran_seconds) == (JobStatus.FAILED, "no luck", 2.0)


# -- transitions ------------------------------------------------------------------------------------------------------


def test_the_table_is_the_drawing() -> None:
    drawn = {
        "queued": {"running", "cancelled", "timed_out"},
        "running": {"waiting_action", "succeeded", "failed", "cancelled", "timed_out"},
        "waiting_action": {"running", "failed", "cancelled", "timed_out"},
        **{end: set() for end in ("succeeded", "failed", "cancelled", "timed_out")},
    }
    assert {str(before): {str(after) for after in afters} for before, afters in TRANSITIONS.items()} == drawn
    assert set(TRANSITIONS) == set(JobStatus)


VERBS = ["start", "complete", "fail", "cancel", "ask", "answer", "pass the deadline", "kill"]
LEADS_TO = {
    "start": JobStatus.RUNNING,
    "complete": JobStatus.SUCCEEDED,
    "fail": JobStatus.FAILED,
    "cancel": JobStatus.CANCELLED,
}


@given(st.lists(st.sampled_from(VERBS), max_size=12))
def test_transitions_of_any_program_are_those_of_the_table_also_after_a_new_start(verbs: list[str]) -> None:
    """A model of one job walks along. `kill`: the store is made anew from its journal, without a word of goodbye."""
    asyncio.run(walk(verbs))


async def walk(verbs: list[str]) -> None:
    clock = ManualClock(0.0)
    home = MemoryStorage(clock)
    store = JournalStore(MemoryJournal(home))
    jobs, actions = JobManager(store), ActionManager(store)
    job_id = (await jobs.create(JobSpec(scope_id="s", deadline=100.0))).job_id
    status, tokens = JobStatus.QUEUED, list[str]()
    for verb in verbs:
        if verb == "kill":
            home.owner = None
            store = JournalStore(MemoryJournal(home))
            jobs, actions = JobManager(store), ActionManager(store)
        elif verb == "pass the deadline":
            clock.advance(101)
            status = status if status in ENDS else JobStatus.TIMED_OUT
        elif verb == "ask":
            if status in (JobStatus.RUNNING, JobStatus.WAITING_ACTION):
                tokens.append((await actions.require_action(ActionSpec(job_id=job_id))).resume_token)
                status = JobStatus.WAITING_ACTION
            else:
                with pytest.raises(IllegalTransition):
                    await actions.require_action(ActionSpec(job_id=job_id))
        elif verb == "answer":
            if status is JobStatus.WAITING_ACTION:
                await actions.resolve(tokens.pop(), {})
                status = JobStatus.WAITING_ACTION if tokens else JobStatus.RUNNING
        else:
            wanted = LEADS_TO[verb]
            legal = wanted in TRANSITIONS[status] and (status, verb) != (JobStatus.WAITING_ACTION, "start")
            if legal:
                await getattr(jobs, verb)(job_id)
                status = wanted
            else:
                with pytest.raises(IllegalTransition):
                    await getattr(jobs, verb)(job_id)
        if status in ENDS:
            tokens.clear()
        assert (await jobs.get(job_id)).status is status


def test_an_illegal_transition_says_what_would_be_legal() -> None:
    with pytest.raises(IllegalTransition, match=r"job j is queued, and cannot become succeeded .*cancelled, running"):
        check_move("j", JobStatus.QUEUED, JobStatus.SUCCEEDED)
    with pytest.raises(IllegalTransition, match=r"failed is an end"):
        check_move("j", JobStatus.FAILED, JobStatus.RUNNING)


async def test_a_job_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="job nobody: there is none of this name") as found:
        await manager().start("nobody")
    assert "sabot jobs list" in (found.value.hint or ""), "where to look for the right name"


# -- idempotency keys -------------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_job_within_its_scope() -> None:
    events: list[tuple[str, Any]] = []
    jobs = manager(events=events)
    first = await jobs.create(SPEC)
    await jobs.start(first.job_id)
    again = await jobs.create(JobSpec(scope_id="tenant-123", principal_id="user-456", idempotency_key="unique-key"))
    assert (again.job_id, again.status) == (first.job_id, JobStatus.RUNNING)
    other = await jobs.create(JobSpec(scope_id="tenant-9", principal_id="user-456", idempotency_key="unique-key"))
    assert other.job_id != first.job_id
    assert [name for name, _ in events] == ["idempotency.start", "idempotency.hit", "idempotency.start"]
    assert events[1][1] == {"scope_id": "tenant-123", "idempotency_key": "unique-key", "job_id": first.job_id}


async def test_the_same_key_with_other_content_raises_and_fires_an_event() -> None:
    events: list[tuple[str, Any]] = []
    jobs = manager(events=events)
    await jobs.create(SPEC)
    with pytest.raises(IdempotencyConflict, match="'unique-key' of scope tenant-123 is that of job"):
        await jobs.create(JobSpec(scope_id="tenant-123", principal_id="another", idempotency_key="unique-key"))
    assert [name for name, _ in events] == ["idempotency.start", "idempotency.conflict"]


async def test_another_attempt_to_ask_is_no_other_content() -> None:
    jobs = manager()
    one = JobSpec(scope_id="s", idempotency_key="k", run_id="1", deadline=1e12)
    two = JobSpec(scope_id="s", idempotency_key="k", run_id="2", versions=RunVersions(code_version="2"))
    assert (await jobs.create(one)).job_id == (await jobs.create(two)).job_id


async def test_content_is_equal_whatever_the_order_of_its_keys_and_sets() -> None:
    jobs = manager()
    one = JobSpec(scope_id="s", idempotency_key="k", metadata={"a": 1, "b": {str(n) for n in range(50)}})
    two = JobSpec(scope_id="s", idempotency_key="k", metadata={"b": {str(n) for n in reversed(range(50))}, "a": 1})
    assert (await jobs.create(one)).job_id == (await jobs.create(two)).job_id


def test_a_deadline_is_a_moment() -> None:
    for deadline in ("5m", math.nan, math.inf, -1, True):
        with pytest.raises(UserError, match=f"deadline={deadline!r}"):
            JobSpec(scope_id="s", deadline=deadline)  # type: ignore[arg-type]


@pytest.mark.slow  # a second of a core, or more
def test_import_sabot_loads_no_client_of_a_server_that_has_a_journal() -> None:
    code = "import sys, sabot.agents; print({'psycopg', 'confluent_kafka'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


async def test_jobs_without_a_key_are_all_new() -> None:
    jobs = manager()
    made = [await jobs.create(JobSpec(scope_id="s")) for _ in range(3)]
    assert len({job.job_id for job in made}) == 3


async def test_the_same_key_asked_for_at_once_is_one_job(tmp_path: Path) -> None:
    """Others run the same id side by side until the first of them has ended."""
    events: list[str] = []
    journal = SqliteJournal(tmp_path / "journal")
    jobs = JobManager(JournalStore(journal), on_event=lambda name, _: events.append(name))
    made = await asyncio.gather(*(jobs.create(SPEC) for _ in range(20)))
    assert len({job.job_id for job in made}) == 1
    assert sorted(events) == ["idempotency.hit"] * 19 + ["idempotency.start"]
    assert journal.statistics()["entries"] == 1
    journal.close()


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -1, True, 1e308, 10**400])
async def test_a_history_is_kept_for_a_time_that_is_one(seconds: float) -> None:
    """inf and nan ended in a ValueError of `round`; -1 forgot what is yet to end."""
    with pytest.raises(UserError, match="trim: keep_seconds"):
        await InMemoryJobStore().trim(seconds)


async def test_a_key_is_known_after_its_job_was_trimmed_and_free_when_it_is_forgotten(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = SqliteJournal(tmp_path / "journal", clock=clock)
    store = JournalStore(journal)
    jobs = JobManager(store)
    job = await jobs.create(SPEC)
    await jobs.start(job.job_id)
    await jobs.complete(job.job_id, "r")
    clock.advance(100)
    assert await store.trim(keep_seconds=1000) == 3
    again = await jobs.create(SPEC)
    assert (again.job_id, again.status, again.result_ref) == (job.job_id, JobStatus.SUCCEEDED, "r")
    with pytest.raises(IdempotencyConflict):
        await jobs.create(JobSpec(scope_id="tenant-123", principal_id="other", idempotency_key="unique-key"))
    await store.trim(keep_seconds=99)
    assert (await jobs.create(SPEC)).status is JobStatus.QUEUED
    journal.close()


# -- time -------------------------------------------------------------------------------------------------------------


async def test_a_job_past_its_deadline_is_timed_out_and_exactly_at_it_is_not() -> None:
    clock = ManualClock(0.0)
    jobs = manager(clock)
    job = await jobs.create(JobSpec(scope_id="s", deadline=10.0))
    clock.advance(10)
    assert await jobs.expire() == []
    assert (await jobs.get(job.job_id)).status is JobStatus.QUEUED
    clock.advance(0.001)
    with pytest.raises(IllegalTransition, match="is timed_out, and cannot become running"):
        await jobs.start(job.job_id)
    assert (await jobs.get(job.job_id)).error == "its deadline has passed"


async def test_the_running_time_of_a_budget_does_not_count_the_time_that_a_job_waits() -> None:
    clock = ManualClock(0.0)
    store = InMemoryJobStore(clock=clock)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s", budgets=BudgetSpec(max_runtime_seconds=300.0)))
    clock.advance(1000)
    await jobs.start(job.job_id)
    clock.advance(200)
    action = await actions.require_action(ActionSpec(job_id=job.job_id))
    clock.advance(100_000)
    await actions.resolve(action.resume_token, {})
    clock.advance(100)
    assert (await jobs.get(job.job_id)).status is JobStatus.RUNNING
    clock.advance(1)
    (ended,) = await jobs.expire()
    assert (ended.status, ended.error) == (JobStatus.TIMED_OUT, "it has run longer than 300 s")


async def test_jobs_are_found_by_scope_and_status_in_the_order_of_their_creation() -> None:
    jobs = manager()
    made = [await jobs.create(JobSpec(scope_id=scope)) for scope in ("a", "b", "a")]
    await jobs.start(made[2].job_id)
    assert [job.job_id for job in await jobs.find()] == [job.job_id for job in made]
    assert [job.job_id for job in await jobs.find(scope_id="a")] == [made[0].job_id, made[2].job_id]
    assert [job.job_id for job in await jobs.find(statuses=[JobStatus.RUNNING])] == [made[2].job_id]


# -- from outside, and after a kill -----------------------------------------------------------------------------------


async def test_a_cancel_from_another_process_ends_the_job_and_its_actions(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    store = JournalStore(journal)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s"))
    await jobs.start(job.job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id))
    inbox = SqliteInbox(tmp_path)
    inbox.post(cancel_letter(job.job_id, "no need"))
    inbox.close()
    found = await jobs.get(job.job_id)
    assert (found.status, found.error, action.status) == (JobStatus.CANCELLED, "no need", "cancelled")
    journal.close()


async def test_a_cancel_that_came_while_nobody_was_there_is_carried_out_at_the_start(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    job = await JobManager(JournalStore(journal)).create(JobSpec(scope_id="s"))
    journal.close()
    inbox = SqliteInbox(tmp_path)
    inbox.post(cancel_letter(job.job_id))
    inbox.close()
    journal = SqliteJournal(tmp_path / "journal")
    journal.take()
    await journal.flush()
    journal.close()  # killed between the Cancel and the End
    journal = SqliteJournal(tmp_path / "journal")
    assert (await JobManager(JournalStore(journal)).get(job.job_id)).status is JobStatus.CANCELLED
    journal.close()


KILLED = """
import asyncio, os, signal, sys
from sabot.agents import *
async def main():
    store = JournalStore(SqliteJournal(sys.argv[1]))
    jobs, actions = JobManager(store), ActionManager(store)
    for key in ("queued", "running", "waiting", "done"):
        job = await jobs.create(JobSpec(scope_id="s", idempotency_key=key, metadata={"key": key}))
        if key != "queued":
            await jobs.start(job.job_id)
        if key == "waiting":
            action = await actions.require_action(ActionSpec(job_id=job.job_id, payload={"message": "Deploy?"}))
            print(action.action_id, action.resume_token, flush=True)
        if key == "done":
            await jobs.complete(job.job_id, "result")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def killed(folder: Path) -> list[str]:
    """The action that was open, and its token."""
    done = subprocess.run([sys.executable, "-c", KILLED, folder], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    return done.stdout.split()


@pytest.mark.slow  # a second of a core, or more
async def test_jobs_and_actions_survive_kill_9_and_are_answered_while_nobody_is_there(tmp_path: Path) -> None:
    action_id, token = killed(tmp_path / "journal")
    inbox = SqliteInbox(tmp_path)
    inbox.post(Letter("answer", token, body=b'{"approved": true}', by="ann"))
    inbox.close()
    journal = SqliteJournal(tmp_path / "journal")
    store = JournalStore(journal)
    jobs, actions = JobManager(store), ActionManager(store)
    action = await actions.wait_for_resolution(action_id, timeout=60)
    assert (action.resolution, action.by, action.payload) == ({"approved": True}, "ann", {"message": "Deploy?"})
    found = {job.metadata["key"]: job for job in await jobs.find()}
    assert {key: str(job.status) for key, job in found.items()} == {
        "queued": "queued",
        "running": "running",
        "waiting": "running",
        "done": "succeeded",
    }
    again = await jobs.create(JobSpec(scope_id="s", idempotency_key="done", metadata={"key": "done"}))
    assert (again.job_id, again.result_ref) == (found["done"].job_id, "result")
    journal.close()


async def test_a_clock_that_is_set_back_takes_no_running_time_away() -> None:
    clock = ManualClock(1e9)
    store = InMemoryJobStore(clock=clock)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s", budgets=BudgetSpec(max_runtime_seconds=300.0)))
    await jobs.start(job.job_id)
    clock.set(clock.time() - 86_400)
    action = await actions.require_action(ActionSpec(job_id=job.job_id))
    await actions.resolve(action.resume_token, {})
    assert (await jobs.get(job.job_id)).ran_seconds == 0.0
    clock.advance(301)
    assert (await jobs.get(job.job_id)).status is JobStatus.TIMED_OUT
