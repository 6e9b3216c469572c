"""Actions over a journal: tokens, deadlines, who is first, and that a handle sees its answer (rows 1.12 to 1.14)."""

import asyncio
import gc
import threading
import weakref
from pathlib import Path

import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    ActionStatus,
    IllegalTransition,
    InMemoryActionStore,
    JobManager,
    JobSpec,
    JobStatus,
    JournalStore,
    LetterRefused,
    SqliteInbox,
    SqliteJournal,
)
from sabot.agents.actions import ACTION_TYPES
from sabot.clock import ManualClock
from sabot.errors import TransientError, UserError
from sabot.journal import Letter, Position
from sabot.journal.entries import Entry
from sabot.journal.memory import MemoryJournal

SPEC = ActionSpec(job_id="job-123", type="confirm", payload={"message": "Proceed?"}, timeout_seconds=300)


async def refused(actions: ActionManager, token: str) -> str:
    with pytest.raises(LetterRefused) as error:
        await actions.resolve(token, {"confirmed": True})
    return error.value.reason


async def test_the_example_of_the_specification() -> None:
    actions = ActionManager(InMemoryActionStore())
    action = await actions.require_action(SPEC)
    assert (action.status, action.job_id, dict(action.payload)) == ("pending", "job-123", {"message": "Proceed?"})
    await actions.resolve(action.resume_token, resolution={"confirmed": True})
    await actions.wait_for_resolution(action.action_id)
    assert action.status is ActionStatus.RESOLVED
    assert action.resolution.get("confirmed")


async def test_who_waits_is_woken_by_the_answer_and_the_handle_sees_it() -> None:
    actions = ActionManager(InMemoryActionStore(), poll="1h")
    action = await actions.require_action(SPEC)
    waiting = [asyncio.ensure_future(actions.wait_for_resolution(action.action_id)) for _ in range(3)]
    for _ in range(50):
        await asyncio.sleep(0)
    await actions.resolve(action.resume_token, {"approved": True}, by="ann")
    assert [await each for each in waiting] == [action] * 3
    assert (action.resolution, action.by) == ({"approved": True}, "ann")


async def test_a_manager_keeps_no_question_that_its_caller_has_let_go() -> None:
    store = InMemoryActionStore()
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="a"))
    await jobs.start(job.job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id))
    seen = weakref.ref(action)
    await jobs.cancel(job.job_id)  # no manager of actions reads that
    await store.trim(0)
    del action
    gc.collect()
    assert seen() is None


async def test_an_answer_from_another_process_is_found() -> None:
    store = InMemoryActionStore()
    actions = ActionManager(store, poll="10ms")
    action = await actions.require_action(SPEC)
    waiting = asyncio.ensure_future(actions.wait_for_resolution(action.action_id))
    await asyncio.sleep(0)
    store.journal.post(Letter("answer", action.resume_token, body=b'{"approved": false}'))
    assert (await waiting).resolution == {"approved": False}


async def test_an_answer_that_was_being_taken_when_its_caller_was_cancelled_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wait with a time-out can end while a thread takes the letters: what that thread appended has to be applied all the same, or the
    action stays pending in this process for ever.
    """
    store = InMemoryActionStore()
    actions = ActionManager(store)
    action = await actions.require_action(SPEC)
    store.journal.post(Letter("answer", action.resume_token, body=b'{"n": 1}'))
    taking, go, take = threading.Event(), threading.Event(), store.journal.take

    def held() -> list[tuple[Position, Entry]]:
        taking.set()
        assert go.wait(60)
        return take()

    monkeypatch.setattr(store.journal, "take", held)
    looking = asyncio.ensure_future(actions.get(action.action_id))
    assert await asyncio.to_thread(taking.wait, 60)
    looking.cancel()
    asyncio.get_running_loop().call_soon(go.set)
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert action.resolution == {"n": 1}


async def test_an_answer_that_was_accepted_is_told_so_though_the_home_of_the_journal_goes_away_behind_it() -> None:
    """Who answered got a TransientError, tried again, and was told that somebody else had answered before."""

    class Away(MemoryJournal):
        times = 0

        def take(self) -> list[tuple[Position, Entry]]:
            if self.times:
                self.times -= 1
                raise TransientError("the server is away")
            return super().take()

    journal = Away()
    actions = ActionManager(JournalStore(journal))
    action = await actions.require_action(SPEC)
    journal.times = 2
    answered = await actions.resolve(action.resume_token, {"confirmed": True})
    assert (answered.status, journal.times) == ("resolved", 0)


async def test_a_wait_that_is_too_long_leaves_the_action_pending() -> None:
    actions = ActionManager(InMemoryActionStore())
    action = await actions.require_action(SPEC)
    with pytest.raises(TimeoutError):
        await actions.wait_for_resolution(action.action_id, timeout="10ms")
    assert action.status is ActionStatus.PENDING


@pytest.mark.parametrize("kind", ACTION_TYPES)
async def test_every_type_can_be_asked(kind: str) -> None:
    actions = ActionManager(InMemoryActionStore())
    assert (await actions.require_action(ActionSpec(job_id="j", type=kind))).type == kind


def test_a_question_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="type='beg' is no type of actions"):
        ActionSpec(job_id="j", type="beg")
    with pytest.raises(UserError, match="timeout_seconds"):
        ActionSpec(job_id="j", timeout_seconds=-1)


async def test_what_json_cannot_say_is_refused_and_asks_nothing() -> None:
    actions = ActionManager(InMemoryActionStore())
    with pytest.raises(UserError, match="payload cannot be written as JSON"):
        await actions.require_action(ActionSpec(job_id="j", payload={"socket": object()}))
    assert await actions.find() == []
    action = await actions.require_action(SPEC)
    with pytest.raises(UserError, match="resolution cannot be written as JSON"):
        await actions.resolve(action.resume_token, {"socket": object()})
    assert (await actions.get(action.action_id)).status is ActionStatus.PENDING


# -- tokens -----------------------------------------------------------------------------------------------------------


async def test_a_wrong_token_a_second_answer_and_a_late_one_are_refused_with_the_reason() -> None:
    clock = ManualClock()
    actions = ActionManager(InMemoryActionStore(clock=clock))
    action = await actions.require_action(SPEC)
    assert await refused(actions, "wrong") == "unknown"
    await actions.resolve(action.resume_token, {"n": 1})
    assert await refused(actions, action.resume_token) == "second"
    assert action.resolution == {"n": 1}
    late = await actions.require_action(SPEC)
    clock.advance(300.001)
    assert await refused(actions, late.resume_token) == "expired"
    assert late.status is ActionStatus.EXPIRED
    assert await refused(actions, late.resume_token) == "second"


async def test_of_many_answers_at_once_one_is_accepted(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal")
    actions = ActionManager(JournalStore(journal))
    action = await actions.require_action(SPEC)
    outcomes = await asyncio.gather(
        *(actions.resolve(action.resume_token, {"n": number}) for number in range(10)), return_exceptions=True
    )
    refusals = [each for each in outcomes if isinstance(each, LetterRefused)]
    assert [each.reason for each in refusals] == ["second"] * 9
    (accepted,) = [number for number, each in enumerate(outcomes) if not isinstance(each, BaseException)]
    assert action.resolution == {"n": accepted}
    journal.close()


async def test_tokens_of_actions_are_unique_and_long() -> None:
    actions = ActionManager(InMemoryActionStore())
    tokens = [(await actions.require_action(SPEC)).resume_token for _ in range(100)]
    assert len(set(tokens)) == 100
    assert min(map(len, tokens)) >= 32


@pytest.mark.parametrize(
    ("answered", "resolution"),
    [(b"yes", {"answer": "yes"}), (b"[1]", {"answer": "[1]"}), (b"\xff", {"answer": "\ufffd"}), (b"", {}), (b"{}", {})],
)
async def test_an_answer_that_is_no_json_object_does_not_harm_the_journal(
    tmp_path: Path, answered: bytes, resolution: dict[str, str]
) -> None:
    """Who has a token may put any bytes into the inbox. They are taken, and the journal can be read, now and at the next start."""
    journal = SqliteJournal(tmp_path / "journal")
    actions = ActionManager(JournalStore(journal))
    action = await actions.require_action(SPEC)
    inbox = SqliteInbox(tmp_path)
    inbox.post(Letter("answer", action.resume_token, body=answered))
    inbox.close()
    assert (await actions.get(action.action_id)).resolution == resolution
    journal.close()
    journal = SqliteJournal(tmp_path / "journal")
    assert (await ActionManager(JournalStore(journal)).get(action.action_id)).resolution == resolution
    journal.close()


@pytest.mark.parametrize("seconds", [1e16, 1e308])
async def test_a_time_out_beyond_all_clocks_does_not_harm_the_journal(tmp_path: Path, seconds: float) -> None:
    """A number that the database cannot hold would fail its commit, and with it the journal."""
    journal = SqliteJournal(tmp_path / "journal")
    actions = ActionManager(JournalStore(journal))
    action = await actions.require_action(ActionSpec(job_id="j", timeout_seconds=seconds))
    await actions.resolve(action.resume_token, {})
    assert action.status is ActionStatus.RESOLVED
    journal.close()


# -- deadlines --------------------------------------------------------------------------------------------------------


async def test_an_action_expires_after_its_time_and_its_job_goes_on() -> None:
    clock = ManualClock()
    store = InMemoryActionStore(clock=clock)
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s"))
    await jobs.start(job.job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id, timeout_seconds="5m"))
    assert (await jobs.get(job.job_id)).status is JobStatus.WAITING_ACTION
    clock.advance(300)
    assert await actions.expire() == []
    clock.advance(0.001)
    assert await actions.expire() == [action]
    assert (action.status, action.resolution) == (ActionStatus.EXPIRED, {})
    assert (await jobs.get(job.job_id)).status is JobStatus.RUNNING


async def test_who_waits_for_an_action_that_expires_is_told() -> None:
    clock = ManualClock()
    actions = ActionManager(InMemoryActionStore(clock=clock), poll="10ms")
    action = await actions.require_action(SPEC)
    waiting = asyncio.ensure_future(actions.wait_for_resolution(action.action_id))
    await asyncio.sleep(0)
    clock.advance(301)
    assert (await waiting).status is ActionStatus.EXPIRED


async def test_an_answer_that_was_in_time_beats_the_deadline_that_is_looked_at_later(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = SqliteJournal(tmp_path / "journal", clock=clock)
    actions = ActionManager(JournalStore(journal))
    action = await actions.require_action(SPEC)
    inbox = SqliteInbox(tmp_path, clock=clock)
    inbox.post(Letter("answer", action.resume_token, body=b'{"n": 1}'))
    inbox.close()
    clock.advance(100_000)
    assert await actions.expire() == []
    assert (action.status, action.resolution) == (ActionStatus.RESOLVED, {"n": 1})
    journal.close()


async def test_a_clock_that_is_set_back_opens_nothing_again() -> None:
    clock = ManualClock(1e9)
    store = InMemoryActionStore(clock=clock)
    actions = ActionManager(store)
    action = await actions.require_action(SPEC)
    clock.advance(301)
    await actions.expire()
    clock.set(clock.time() - 86_400)
    assert await refused(actions, action.resume_token) == "second"
    assert (await actions.get(action.action_id)).status is ActionStatus.EXPIRED


# -- cancelling, and jobs ---------------------------------------------------------------------------------------------


async def test_a_cancelled_action_takes_no_answer_and_what_is_closed_cannot_be_cancelled() -> None:
    actions = ActionManager(InMemoryActionStore())
    action = await actions.require_action(SPEC)
    assert (await actions.cancel(action.action_id)).status is ActionStatus.CANCELLED
    assert await refused(actions, action.resume_token) == "second"
    with pytest.raises(IllegalTransition, match="is cancelled, and cannot become cancelled"):
        await actions.cancel(action.action_id)
    with pytest.raises(UserError, match="action nobody: there is none"):
        await actions.get("nobody")


async def test_a_job_waits_until_its_last_action_is_closed() -> None:
    store = InMemoryActionStore()
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s"))
    with pytest.raises(IllegalTransition, match="is queued, and cannot become waiting_action"):
        await actions.require_action(ActionSpec(job_id=job.job_id))
    await jobs.start(job.job_id)
    first = await actions.require_action(ActionSpec(job_id=job.job_id))
    second = await actions.require_action(ActionSpec(job_id=job.job_id))
    assert first.action_id != second.action_id
    with pytest.raises(IllegalTransition):
        await jobs.complete(job.job_id)
    await actions.resolve(first.resume_token, {})
    assert (await jobs.get(job.job_id)).status is JobStatus.WAITING_ACTION
    await actions.resolve(second.resume_token, {})
    assert (await jobs.complete(job.job_id)).status is JobStatus.SUCCEEDED
    assert [each.action_id for each in await actions.find(job_id=job.job_id)] == [first.action_id, second.action_id]


async def test_the_actions_of_a_job_that_ends_are_cancelled() -> None:
    store = InMemoryActionStore()
    jobs, actions = JobManager(store), ActionManager(store)
    job = await jobs.create(JobSpec(scope_id="s"))
    await jobs.start(job.job_id)
    action = await actions.require_action(ActionSpec(job_id=job.job_id))
    await jobs.cancel(job.job_id, "enough")
    assert action.status is ActionStatus.CANCELLED
    assert await refused(actions, action.resume_token) == "closed"
    assert await actions.find(statuses=[ActionStatus.PENDING]) == []
