"""The phases of an instance: the table of their changes, and the documents' names for them."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from unit.process.children import ByHand, sh, state

from sabot.base.supervision import TaskSet
from sabot.errors import IllegalTransition
from sabot.process import (
    AgentStatus,
    Child,
    Command,
    LifecycleState,
    ProcessState,
    ResumeFailed,
    SpawnFailed,
    Supervisor,
)
from sabot.process.instance import Instance, RestartPolicy
from sabot.process.phases import NEXT, OVER, Phase
from tools.agent_tools import until

SLEEP = Command(argv=["sleep", "1000"])
PAGE = Path(__file__).parents[3] / "docs/names.md"


# -- tables -------------------------------------------------------------------------------------------------------------


def test_every_phase_has_a_row_and_can_come_to_an_end() -> None:
    assert set(NEXT) == set(Phase)
    for phase in Phase:
        seen, left = {phase}, deque([phase])
        while left:
            more = set(NEXT[left.popleft()]) - seen
            seen |= more
            left.extend(more)
        assert seen & set(OVER), phase
        assert phase is Phase.NEW or any(phase in each for each in NEXT.values()), "no phase is out of reach"


@pytest.mark.parametrize("states", [LifecycleState, AgentStatus, ProcessState])
def test_each_document_has_a_state_for_every_phase_and_no_other_state(states: type[StrEnum]) -> None:
    assert {each for phase in Phase for each in vars(phase).values() if isinstance(each, states)} == set(states)


def test_the_page_of_names_has_the_state_of_every_phase_in_each_document() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    told = {row[0].strip("`"): [each.strip() for each in row[1:4]] for row in rows if len(row) == 5}
    for phase in Phase:
        assert told[phase] == [phase.lifecycle_state, phase.agent_status, phase.process_state], phase


def test_the_page_of_names_has_the_table_of_changes() -> None:
    (table,) = [each for each in PAGE.read_text().split("```") if each.startswith("text\nnew ")]
    told = {words[0]: words[1:] for words in (line.replace(",", "").split() for line in table.splitlines()[1:])}
    assert told == {phase: list(NEXT[phase]) for phase in Phase if NEXT[phase]}


def test_a_change_that_the_table_does_not_have_is_refused() -> None:
    instance = Instance(SLEEP, name="a")
    with pytest.raises(IllegalTransition, match="instance 'a': one that is new does not become ready"):
        instance.become(Phase.READY)
    assert instance.phase is Phase.NEW


# -- changes ------------------------------------------------------------------------------------------------------------


class Owner:
    """An owner of instances that notes their changes."""

    def __init__(self) -> None:
        self.time = ByHand()
        self.tasks = TaskSet("a test")
        self.changes: list[tuple[Phase, Phase]] = []
        self.made: list[Instance] = []

    def instance(self, command: Command = SLEEP, *, watched: bool = True, most: int = 9, **options: Any) -> Instance:
        if watched:
            options |= {"tasks": self.tasks, "policy": RestartPolicy(most=most)}
        self.made.append(Instance(command, on_phase=self.told, clock=self.time.clock, sleep=self.time.sleep, **options))
        return self.made[-1]

    def told(self, _: Instance, before: Phase, phase: Phase) -> None:
        self.changes.append((before, phase))

    async def started(self, command: Command = SLEEP, **options: Any) -> Instance:
        instance = self.instance(command, **options)
        await instance.start()
        return instance

    async def restarted(self, instance: Instance) -> None:
        """Lets time pass until the instance is in another phase than WAITING."""
        before = instance.restarts
        while instance.restarts == before:
            self.time.advance(1000)
            await asyncio.sleep(0.001)
        await instance.until(lambda phase: phase is not Phase.STARTING)


@pytest.fixture
async def owner(supervisor: object) -> AsyncIterator[Owner]:
    made = Owner()
    yield made
    for each in made.made:
        if each.child is not None:
            await each.end(0.0, "the test is over")
    await made.tasks.cancel()


async def never(child: Child) -> None:
    await asyncio.Event().wait()


def kill(instance: Instance) -> None:
    assert instance.child is not None
    os.kill(instance.child.pid, signal.SIGKILL)


async def test_every_change_of_the_table_happens_and_no_other_one(owner: Owner) -> None:
    """A row of the table that nothing brings about would be a rule that a reader learns for nothing."""
    # Never started; not started; ended while it starts.
    await owner.instance().end(0.0, "it is not needed")
    gone = owner.instance(Command(argv=["no-such-program"]))
    with pytest.raises(SpawnFailed):
        await gone.start()
    await gone.end(0.0, "it is not needed")
    begins = owner.instance(ready=never)
    starting = asyncio.ensure_future(begins.start())
    await begins.until(lambda phase: phase is Phase.STARTING)
    ending = asyncio.ensure_future(begins.end(0.0, "it is not needed"))
    with pytest.raises(SpawnFailed, match="terminated before it was ready"):
        await starting
    await ending

    # Works, is suspended from each phase in which it runs, fails from each of them, and is started again.
    works = await owner.started()
    for phase in (Phase.READY, Phase.BUSY, Phase.IDLE):
        if works.phase is not phase:
            works.become(phase)
        await works.suspend("it costs too much")
        await works.resume()
        assert works.phase is phase
    works.become(Phase.BUSY)
    for phases in ([], [Phase.BUSY, Phase.IDLE], [Phase.BUSY]):
        kill(works)
        await works.until(lambda phase: phase is Phase.WAITING)
        await owner.restarted(works)
        for phase in phases:
            works.become(phase)
    await works.suspend("it costs too much")
    kill(works)
    await until(lambda: works.child is None)
    await works.resume()  # in a new process
    works.become(Phase.BUSY)
    works.become(Phase.IDLE)
    await works.suspend("it costs too much")
    kill(works)
    await until(lambda: works.child is None)
    works.command = Command(argv=["no-such-program"])
    with pytest.raises(ResumeFailed, match="no-such-program"):
        await works.resume()
    await works.restart("try again", grace_s=0.0)
    await owner.restarted(works)  # it fails, and is tried again
    assert works.phase is Phase.WAITING
    await works.end(0.0, "it is not needed")

    # Suspended, and ended; used up, and begun anew.
    paused = await owner.started()
    await paused.suspend("it costs too much")
    await paused.end(0.0, "it is not needed")
    used_up = await owner.started(most=0)
    kill(used_up)
    await used_up.until(lambda phase: phase is Phase.FAILED)
    await used_up.restart("try again", grace_s=0.0, at_once=True)
    await used_up.until(lambda phase: phase is Phase.READY)
    await used_up.end(0.0, "it is not needed")

    # Ends by itself with 0; and an instance whose end nobody awaits, while it is stopped.
    await (await owner.started(sh("exit 0"))).until(lambda phase: phase is Phase.COMPLETED)
    for ended_by, end_asked in ((signal.SIGKILL, False), (signal.SIGKILL, True), (signal.SIGCONT, False)):
        seen = await owner.started(sh("kill -STOP $$; exit 0"), watched=False)
        await until(lambda: seen.see() is Phase.SUSPENDED)  # noqa: B023
        assert seen.child is not None
        seen.end_asked = end_asked
        os.kill(seen.child.pid, ended_by)
        await seen.child.wait()
        seen.see()

    assert set(owner.changes) == {(before, phase) for before in Phase for phase in NEXT[before]}


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_restart_before_the_first_start_does_nothing(owner: Owner, at_once: bool) -> None:
    new = owner.instance()
    await new.restart("too early", grace_s=0.0, at_once=at_once)
    assert (new.phase, new.next_start_at, owner.changes) == (Phase.NEW, None, [])


async def test_a_process_that_the_program_is_not_at_fault_for_is_replaced_without_a_wait(owner: Owner) -> None:
    async def not_at_fault(child: Child) -> bool:
        return False

    instance = await owner.started(ended=not_at_fault)
    first = instance.child
    kill(instance)
    await until(lambda: instance.restarts == 1 and instance.phase is Phase.READY)
    assert (instance.failures, owner.time.waits, instance.child is first) == (0, [], False)


async def test_end_and_plan_ends_only_the_process_that_was_meant(owner: Owner) -> None:
    instance = await owner.started()
    first = instance.child
    assert first is not None
    await instance.end_and_plan(first, "its answers are late", counts=False)
    await until(lambda: instance.phase is Phase.READY)
    second = instance.child
    await instance.end_and_plan(first, "its answers are late")
    assert (instance.phase, instance.child) == (Phase.READY, second)
    assert first.is_over


async def test_a_process_whose_successor_is_wanted_gets_one_also_when_it_ends_with_0(owner: Owner) -> None:
    instance = owner.instance(sh("exit 0"), watched=False)
    instance._tasks, instance.policy = owner.tasks, RestartPolicy(most=2, after_success=True)
    await instance.start()
    for _ in range(2):
        await instance.until(lambda phase: phase is Phase.WAITING)
        await owner.restarted(instance)
    await instance.until(lambda phase: phase is Phase.FAILED)
    assert [wait for wait in owner.time.waits if wait] == [1, 2]


async def test_a_resume_that_is_cancelled_while_its_new_process_starts_leaves_the_instance_suspended(
    owner: Owner,
) -> None:
    is_ready = asyncio.Event()
    is_ready.set()
    instance = await owner.started(ready=lambda child: is_ready.wait())
    await instance.suspend("it costs too much")
    kill(instance)
    await until(lambda: instance.child is None)
    is_ready.clear()
    resuming = asyncio.ensure_future(instance.resume())
    await instance.until(lambda phase: phase is Phase.STARTING)
    await until(lambda: instance.child is not None)
    resuming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resuming
    assert (instance.phase, instance.child) == (Phase.SUSPENDED, None)
    is_ready.set()
    await instance.resume()
    assert instance.phase is Phase.READY


async def test_a_verb_that_is_cancelled_leaves_the_process_as_the_phase_says(
    owner: Owner, supervisor: Supervisor
) -> None:
    async def checkpoint(_: Instance) -> Command:
        await asyncio.Event().wait()
        return SLEEP

    instance = await owner.started()
    child = instance.child
    assert child is not None

    async def cancel(verb: Coroutine[Any, Any, None]) -> None:
        os.kill(supervisor.pid, signal.SIGSTOP)  # it does not answer, so that the verb waits
        try:
            work = asyncio.ensure_future(verb)
            await asyncio.sleep(0.05)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)
        await child.usage()  # it answers in order

    async def stays(phase: Phase) -> None:
        await until(lambda: (state(child.pid) == "T") is (phase is Phase.SUSPENDED))
        assert instance.see() is phase

    await cancel(instance.suspend("it costs too much"))
    await stays(Phase.READY)
    await instance.suspend("it costs too much")
    await cancel(instance.resume())
    await stays(Phase.SUSPENDED)
    await cancel(instance.release(checkpoint, 5.0, "it costs memory"))
    await stays(Phase.SUSPENDED)
    assert instance.why == "it costs too much"
    await instance.resume()
    await stays(Phase.READY)
