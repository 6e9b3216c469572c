"""The lives of agents, with small programs as their processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from unit.process.children import ByHand, alive, line, sh, state

from sabot.errors import IllegalTransition, UserError
from sabot.process import (
    AgentError,
    AgentInstance,
    AgentNotSpawned,
    Child,
    Command,
    LifecycleConfig,
    LifecycleError,
    LifecycleManager,
    LifecycleState,
    NotFound,
    RestartFailed,
    ResumeFailed,
    SpawnFailed,
    Supervisor,
    SuspendFailed,
    TerminateFailed,
    UnknownAgent,
    inspection,
)
from sabot.process import instance as instances
from sabot.process.phases import Phase
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

SLEEP = Command(argv=["sleep", "1000"])
FAILS = sh("exit 3")
IGNORES = sh("trap '' TERM; echo ready; while :; do sleep 0.01; done")
PENDING, RUNNING, SUSPENDED, TERMINATED, FAILED = LifecycleState

Make = Callable[..., LifecycleManager]


@pytest.fixture
def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
async def make(by_hand: ByHand) -> AsyncIterator[Make]:
    made: list[LifecycleManager] = []

    def manager(*, checkpoint: Any = None, on_state: Any = None, **config: Any) -> LifecycleManager:
        more = {"checkpoint": checkpoint, "on_state": on_state, "clock": by_hand.clock, "sleep": by_hand.sleep}
        made.append(
            LifecycleManager(LifecycleConfig(**({"idle_suspend": None, "shutdown_timeout": 5} | config)), **more)
        )
        return made[-1]

    yield manager
    for each in made:
        await each.close()


def pid_of(agent: AgentInstance) -> int:
    assert agent.child is not None
    return agent.child.pid


def kill(agent: AgentInstance) -> None:
    os.kill(pid_of(agent), signal.SIGKILL)


# -- what it is told ----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_document() -> None:
    config = LifecycleConfig()
    assert (config.spawn_timeout, config.shutdown_timeout, config.idle_suspend) == (60, 30, 300)
    assert [config.restart_backoff * 2**each for each in range(config.max_restarts)] == [1, 2, 4, 8, 16]
    assert [str(each) for each in LifecycleState] == ["pending", "running", "suspended", "terminated", "failed"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"spawn_timeout": 0},
        {"shutdown_timeout": -1},
        {"idle_suspend": 0},
        {"idle_suspend": float("inf")},
        {"restart_backoff": float("nan")},
        {"stable_after": True},
        {"max_restarts": -1},
        {"max_restarts": 1.5},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        LifecycleConfig(**wrong)


@pytest.mark.parametrize(
    ("error", "code", "also"),
    [
        (AgentNotSpawned, "E2020", SpawnFailed),
        (TerminateFailed, "E2021", AgentError),
        (SuspendFailed, "E2022", AgentError),
        (ResumeFailed, "E2023", AgentError),
        (RestartFailed, "E2024", AgentError),
        (UnknownAgent, "E2025", NotFound),
    ],
)
def test_errors_have_the_codes_of_document_002(error: type[LifecycleError], code: str, also: type) -> None:
    assert issubclass(error, LifecycleError)
    assert issubclass(error, also)
    assert error("it was so", hint="do that").code == code


# -- spawn --------------------------------------------------------------------------------------------------------------


async def test_an_agent_runs_is_listed_and_is_terminated(make: Make) -> None:
    manager = make()
    agent = await manager.spawn(SLEEP, agent_id="a", name="sleeper")
    pid = pid_of(agent)
    (info,) = manager.list_agents()
    assert (info.id, info.name, info.state, info.pid, info.restarts) == ("a", "sleeper", RUNNING, pid, 0)
    await manager.terminate("a")
    assert not alive(pid)
    (info,) = manager.list_agents()
    assert (info.state, info.pid, info.why) == (TERMINATED, 0, "it was terminated")


async def test_an_agent_that_does_not_start_is_failed_and_says_why(make: Make) -> None:
    manager = make()
    with pytest.raises(AgentNotSpawned, match=r"instance 'nobody': no-such-program: not found on PATH"):
        await manager.spawn(Command(argv=["no-such-program"]), agent_id="a", name="nobody")
    assert manager.agent("a").state is FAILED


async def test_errors_name_the_agent_also_where_its_program_is_that_of_others(make: Make) -> None:
    manager = make()
    with pytest.raises(AgentNotSpawned, match=r"instance 'reviewer' \(no-such-program\): no-such-program: not found"):
        await manager.spawn(Command(argv=["no-such-program"]), agent_id="reviewer")
    with pytest.raises(ResumeFailed, match=r"instance 'reviewer' \(no-such-program\) does not go on: it is failed"):
        await manager.resume("reviewer")
    for agent_id in "one", "other":
        await manager.spawn(SLEEP, agent_id=agent_id)
        await manager.terminate(agent_id)
        for verb, error in (
            (manager.suspend, SuspendFailed),
            (manager.resume, ResumeFailed),
            (manager.restart, RestartFailed),
        ):
            with pytest.raises(error, match=rf"instance '{agent_id}' \(sleep\)"):
                await verb(agent_id)
    assert [info.name for info in manager.list_agents()] == ["no-such-program", "sleep", "sleep"]


async def test_an_agent_that_is_not_ready_in_time_leaves_no_process(make: Make) -> None:
    manager = make(spawn_timeout=0.05)
    with pytest.raises(AgentNotSpawned, match=r"it was not ready in 0\.05 s"):
        await manager.spawn(SLEEP, ready=lambda child: asyncio.Event().wait())
    assert (await Supervisor.running()).children == []


async def test_a_program_that_is_not_even_executed_in_time_leaves_no_process(
    make: Make, supervisor: Supervisor
) -> None:
    manager = make(spawn_timeout=0.01)
    os.kill(supervisor.pid, signal.SIGSTOP)
    spawning = asyncio.ensure_future(manager.spawn(SLEEP))
    await until(manager.list_agents)  # its time runs, and is over before this wait, which begins later and is longer
    await asyncio.wait([spawning], timeout=0.05)
    os.kill(supervisor.pid, signal.SIGCONT)
    with pytest.raises(AgentNotSpawned, match=r"it was not ready in 0\.01 s"):
        await spawning
    assert supervisor.children == []


async def test_an_agent_that_ends_before_it_is_ready_or_says_no_is_not_spawned(make: Make) -> None:
    async def hears(child: Child) -> None:
        assert await line(child) == "ready"

    async def refuses(child: Child) -> None:
        raise ValueError("no such model")

    manager = make()
    agent = await manager.spawn(sh("echo ready; exec sleep 1000"), ready=hears)
    assert agent.state is RUNNING
    with pytest.raises(AgentNotSpawned, match="it was not ready before it ended with 3"):
        await manager.spawn(FAILS, ready=lambda child: asyncio.Event().wait())
    with pytest.raises(AgentNotSpawned, match="no such model"):
        await manager.spawn(SLEEP, ready=refuses)


async def test_spawn_of_an_id_that_runs_gives_that_agent(make: Make) -> None:
    manager = make()
    first, second = await asyncio.gather(manager.spawn(SLEEP, agent_id="a"), manager.spawn(SLEEP, agent_id="a"))
    assert first is second
    with pytest.raises(AgentNotSpawned, match="is running, with another command"):
        await manager.spawn(FAILS, agent_id="a")
    await manager.terminate("a")
    again = await manager.spawn(FAILS, agent_id="a")
    assert again is not first


async def test_a_spawn_that_is_cancelled_leaves_no_process(make: Make) -> None:
    manager, begun = make(), asyncio.Event()
    seen: list[int] = []

    async def never(child: Child) -> None:
        seen.append(child.pid)
        begun.set()
        await asyncio.Event().wait()

    spawning = asyncio.create_task(manager.spawn(SLEEP, agent_id="a", ready=never))
    await begun.wait()
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await spawning
    assert not alive(seen[0])
    assert manager.agent("a").state is TERMINATED


# -- suspend and resume -------------------------------------------------------------------------------------------------


async def test_suspend_stops_the_whole_session_and_resume_lets_it_go_on(make: Make) -> None:
    manager = make()
    agent = await manager.spawn(sh("sleep 1000 & echo $!; wait"))
    assert agent.child is not None
    both = [pid_of(agent), int(await line(agent.child))]
    for _ in range(2):  # the second one does nothing
        await manager.suspend(agent.id)
        await until(lambda: [state(pid) for pid in both] == ["T", "T"])
        assert (agent.state, agent.why) == (SUSPENDED, "it was suspended")
    for _ in range(2):
        await manager.resume(agent.id)
        await until(lambda: [state(pid) for pid in both] == ["S", "S"])
        assert agent.state is RUNNING


async def test_an_agent_that_somebody_else_has_stopped_is_suspended_until_somebody_lets_it_go_on(make: Make) -> None:
    manager = make()
    agent = await manager.spawn(SLEEP)
    child = agent.child
    assert child is not None
    for by_resume in (True, False):
        os.kill(child.pid, signal.SIGSTOP)
        await until(lambda: child.paused)
        with pytest.raises(ResumeFailed, match=r"is suspended: somebody else has stopped its process .SIGSTOP."):
            async with manager.in_use(agent.id):
                raise AssertionError("it does not run")
        assert [each.state for each in manager.list_agents()] == [SUSPENDED]
        if by_resume:
            await manager.resume(agent.id)
        else:
            os.kill(child.pid, signal.SIGCONT)
            await until(lambda: not child.paused)
        async with manager.in_use(agent.id):
            await until(lambda: state(child.pid) == "S")
        assert [each.state for each in manager.list_agents()] == [RUNNING]


async def test_a_suspend_of_what_somebody_else_has_stopped_stops_the_rest_of_it_too(make: Make) -> None:
    """A SIGSTOP from outside stops one process; its descendants go on, and use what the suspend is to save."""
    manager = make()
    agent = await manager.spawn(sh("sleep 1000 & echo $!; wait"))
    child = agent.child
    assert child is not None
    both = [child.pid, int(await line(child))]
    os.kill(child.pid, signal.SIGSTOP)
    await until(lambda: child.paused)
    assert [each.state for each in manager.list_agents()] == [SUSPENDED]
    assert state(both[1]) != "T"
    await manager.suspend(agent.id)
    await until(lambda: [state(pid) for pid in both] == ["T", "T"])
    await manager.resume(agent.id)
    await until(lambda: [state(pid) for pid in both] == ["S", "S"])


async def test_memory_is_given_back_by_a_checkpoint_and_the_agent_goes_on_from_there(make: Make) -> None:
    async def checkpoint(agent: AgentInstance) -> Command:
        assert agent.child is not None
        assert agent.child.stdin is not None
        agent.child.stdin.write(b"save\n")
        return replace(agent.command, argv=[*agent.command.argv, await line(agent.child)])

    manager = make(checkpoint=checkpoint)
    agent = await manager.spawn(sh('echo "from ${0#sh}"; read -r word; echo "session-7"; exec sleep 1000'))
    assert agent.child is not None
    assert await line(agent.child) == "from "
    pid = pid_of(agent)
    await manager.suspend(agent.id)  # stopped first: a checkpoint needs it to answer
    await manager.suspend(agent.id, release_memory=True)
    assert (agent.state, agent.child, agent.info.pid) == (SUSPENDED, None, 0)
    assert not alive(pid)
    await manager.resume(agent.id)
    assert agent.child is not None
    assert await line(agent.child) == "from session-7"
    assert agent.state is RUNNING


async def test_a_checkpoint_that_fails_leaves_the_agent_where_it_was(make: Make) -> None:
    async def fails(agent: AgentInstance) -> Command:
        raise OSError("the disk is full")

    manager = make(checkpoint=fails)
    agent = await manager.spawn(SLEEP)
    with pytest.raises(SuspendFailed, match="the disk is full"):
        await manager.suspend(agent.id, release_memory=True)
    assert agent.state is RUNNING
    await until(lambda: state(pid_of(agent)) == "S")
    other = make()
    agent = await other.spawn(SLEEP)
    with pytest.raises(SuspendFailed, match="the manager has no checkpoint"):
        await other.suspend(agent.id, release_memory=True)


async def test_a_suspended_agent_whose_process_is_killed_gets_another_one_when_it_is_resumed(make: Make) -> None:
    manager = make()
    agent = await manager.spawn(SLEEP)
    await manager.suspend(agent.id)
    kill(agent)
    await until(lambda: agent.child is None)
    assert (agent.state, agent.why) == (SUSPENDED, "it was ended by signal 9")
    await manager.resume(agent.id)
    assert alive(pid_of(agent))


async def test_verbs_that_do_not_fit_are_refused(make: Make) -> None:
    manager = make(max_restarts=0)
    agent = await manager.spawn(FAILS)
    assert await manager.wait(agent.id) is FAILED
    with pytest.raises(SuspendFailed, match="it is failed, and has no process"):
        await manager.suspend(agent.id)
    with pytest.raises(ResumeFailed, match="it is failed, it ended with 3"):
        await manager.resume(agent.id)
    with pytest.raises(RestartFailed, match="was started again 0 times"):
        await manager.restart(agent.id)
    await manager.terminate(agent.id)
    with pytest.raises(RestartFailed, match="is terminated: it was terminated"):
        await manager.restart(agent.id, at_once=True)
    for verb in (manager.suspend, manager.resume, manager.restart, manager.terminate, manager.wait):
        with pytest.raises(UnknownAgent, match="there is no instance 'nobody'"):
            await verb("nobody")  # type: ignore[operator]


def test_states_follow_the_table() -> None:
    agent = AgentInstance(SLEEP, name="a")
    agent.phase = Phase.TERMINATED
    with pytest.raises(IllegalTransition, match="one that is terminated does not become ready"):
        agent.become(Phase.READY)


# -- restarts -----------------------------------------------------------------------------------------------------------


async def test_a_failing_agent_is_started_again_five_times_and_then_it_has_failed(make: Make, by_hand: ByHand) -> None:
    manager = make()
    agent = await manager.spawn(FAILS, agent_id="a")
    for number, seconds in enumerate((1, 2, 4, 8, 16), 1):
        await until(lambda number=number: len(by_hand.waits) == number)  # type: ignore[misc]
        (info,) = manager.list_agents()
        assert (info.state, info.restarts, info.why) == (PENDING, number - 1, "it ended with 3")
        assert info.next_start_at == by_hand.clock.time() + seconds
        by_hand.advance(seconds)
    assert await manager.wait("a") is FAILED
    assert by_hand.waits == [1, 2, 4, 8, 16]
    assert (agent.restarts, agent.info.next_start_at) == (5, None)


async def test_an_agent_that_ends_with_0_is_terminated_and_not_started_again(make: Make, by_hand: ByHand) -> None:
    manager = make()
    agent = await manager.spawn(sh("exit 0"))
    assert await manager.wait(agent.id) is TERMINATED
    assert (agent.why, by_hand.waits) == ("it ended with 0", [])


async def test_who_has_run_long_enough_begins_the_count_anew(make: Make, by_hand: ByHand) -> None:
    manager = make(stable_after=300)
    agent = await manager.spawn(SLEEP)
    for ran, waits in ((299, 1), (299, 2), (300, 1)):
        by_hand.advance(ran)
        seen = len(by_hand.waits)
        kill(agent)
        await until(lambda seen=seen: len(by_hand.waits) > seen)  # type: ignore[misc]
        assert by_hand.waits[-1] == waits
        by_hand.advance(waits)
        await until(lambda: agent.state is RUNNING)


async def test_restart_waits_counts_and_is_joined_by_another_one(make: Make, by_hand: ByHand) -> None:
    manager = make()
    agent = await manager.spawn(SLEEP)
    pid = pid_of(agent)
    restarts = [asyncio.create_task(manager.restart(agent.id)) for _ in range(3)]
    await until(lambda: by_hand.waits == [1])
    assert (agent.state, alive(pid)) == (PENDING, False)
    by_hand.advance(1)
    await asyncio.gather(*restarts)
    assert (agent.restarts, agent.failures, alive(pid_of(agent))) == (1, 1, True)


async def test_restart_at_once_begins_the_count_anew_also_of_who_has_failed(make: Make, by_hand: ByHand) -> None:
    manager = make(max_restarts=1)
    agent = await manager.spawn(SLEEP)
    kill(agent)
    await until(lambda: by_hand.waits == [1])
    await manager.restart(agent.id, at_once=True)  # instead of the planned one
    assert (agent.state, agent.failures) == (RUNNING, 0)
    kill(agent)
    await until(lambda: by_hand.waits == [1, 1])
    by_hand.advance(1)
    await until(lambda: agent.state is RUNNING)
    kill(agent)
    assert await manager.wait(agent.id) is FAILED
    with pytest.raises(RestartFailed, match="begins the count anew"):
        await manager.restart(agent.id)
    await manager.restart(agent.id, at_once=True)
    assert agent.state is RUNNING


async def test_a_restart_whose_program_is_gone_fails_when_all_tries_are_used_up(
    make: Make, by_hand: ByHand, tmp_path: Path
) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    manager = make(max_restarts=2)
    agent = await manager.spawn(Command(argv=[str(program)]), name="agent")
    program.unlink()
    restarting = asyncio.create_task(manager.restart(agent.id))
    for number, seconds in ((1, 1), (2, 2)):
        await until(lambda number=number: len(by_hand.waits) == number)  # type: ignore[misc]
        by_hand.advance(seconds)
    with pytest.raises(RestartFailed, match=r"was not started again: .*there is no such file"):
        await restarting
    assert agent.state is FAILED


# -- ends ---------------------------------------------------------------------------------------------------------------


async def test_who_ignores_sigterm_is_killed_after_the_grace(make: Make) -> None:
    async def ready(child: Child) -> None:
        await line(child)

    manager = make(shutdown_timeout=0.05)
    agent = await manager.spawn(IGNORES, ready=ready)
    child = agent.child
    await manager.terminate(agent.id)
    assert child is not None
    assert child.status is not None
    assert (child.status.signal, agent.state) == (signal.SIGKILL, TERMINATED)


async def test_a_terminate_without_grace_overtakes_one_with_it(make: Make) -> None:
    async def ready(child: Child) -> None:
        await line(child)

    manager = make(shutdown_timeout=1000)
    agent = await manager.spawn(IGNORES, ready=ready)
    slow = asyncio.create_task(manager.terminate(agent.id))
    await asyncio.sleep(0)
    await manager.terminate(agent.id, grace_seconds=0)
    assert (await slow) is agent
    assert agent.state is TERMINATED


async def test_what_cannot_be_ended_is_told(
    make: Make, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor is stopped, so nobody ends or stops anything."""
    monkeypatch.setattr(instances, "_KILL_SECONDS", 0.02)
    monkeypatch.setattr(inspection, "_USAGE_SECONDS", 0.02)
    manager = make()
    agent = await manager.spawn(SLEEP)
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        with pytest.raises(SuspendFailed, match="has not answered"):
            await manager.suspend(agent.id)
        with pytest.raises(TerminateFailed, match="was sent SIGKILL, and has not ended"):
            await manager.terminate(agent.id, grace_seconds=0)
        assert agent.state is RUNNING
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    await until(lambda: agent.state is TERMINATED)


async def test_an_id_is_free_again_when_nothing_of_its_agent_is_left(
    make: Make, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not ready, and could not be ended then: its supervisor is stopped."""
    monkeypatch.setattr(instances, "_KILL_SECONDS", 0.02)

    async def hangs(child: Child) -> None:
        os.kill(supervisor.pid, signal.SIGSTOP)
        raise ValueError("no such model")

    manager = make()
    try:
        with pytest.raises(AgentNotSpawned, match=r"no such model; .* was sent SIGKILL, and has not ended"):
            await manager.spawn(SLEEP, agent_id="a", ready=hangs)
        agent = manager.agent("a")
        assert (agent.state, alive(pid_of(agent))) == (FAILED, True)
        with pytest.raises(AgentNotSpawned, match="no such model"):
            await manager.spawn(SLEEP, agent_id="a")
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    await until(lambda: agent.child is None)
    assert (await manager.spawn(SLEEP, agent_id="a")).state is RUNNING


@pytest.mark.slow  # a second of a core, or more
async def test_a_supervisor_that_is_killed_is_a_failure_of_its_agents(
    make: Make, by_hand: ByHand, supervisor: Supervisor
) -> None:
    manager = make()
    agent = await manager.spawn(SLEEP)
    os.kill(supervisor.pid, signal.SIGKILL)
    await until(lambda: by_hand.waits == [1])
    assert agent.why == "its supervisor was killed"
    by_hand.advance(1)
    await until(lambda: agent.state is RUNNING)


async def test_a_closed_manager_leaves_no_child_whatever_its_agents_were_at(make: Make, by_hand: ByHand) -> None:
    manager, begun = make(), asyncio.Event()

    async def never(child: Child) -> None:
        begun.set()
        await asyncio.Event().wait()

    supervisor = await Supervisor.running()
    agents = [await manager.spawn(each) for each in (SLEEP, SLEEP, FAILS, sh("setsid sleep 1000 & wait"))]
    await manager.suspend(agents[0].id)
    starting = asyncio.create_task(manager.spawn(SLEEP, ready=never))
    await begun.wait()
    await until(lambda: by_hand.waits == [1])
    await manager.close()
    assert supervisor.children == []
    with pytest.raises(AgentNotSpawned, match="terminated before it was ready"):
        await starting
    with pytest.raises(AgentNotSpawned, match="is closed"):
        await manager.spawn(SLEEP)
    assert {each.state for each in manager.list_agents()} == {TERMINATED}
    await manager.close()


async def test_verbs_on_one_agent_at_a_time_leave_one_process_or_none(make: Make, by_hand: ByHand) -> None:
    manager = make(shutdown_timeout=5)
    agent = await manager.spawn(SLEEP)
    verbs = [manager.suspend, manager.resume, manager.suspend, manager.resume, manager.suspend]
    done = await asyncio.gather(
        *(verb(agent.id) for verb in verbs), manager.restart(agent.id, at_once=True), manager.resume(agent.id)
    )
    assert all(each is agent for each in done)
    assert agent.state is RUNNING
    assert [child.pid for child in (await Supervisor.running()).children] == [pid_of(agent)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_comes_at_once_an_agent_has_one_process_or_none(
    make: Make, by_hand: ByHand, supervisor: Supervisor, seed: int
) -> None:
    """Verbs, deaths and cancelled callers, in a random order."""

    async def checkpoint(agent: AgentInstance) -> Command:
        return agent.command

    random = Random(seed)
    manager = make(checkpoint=checkpoint, max_restarts=1000)
    agents = [await manager.spawn(SLEEP) for _ in range(4)]

    async def disturb(agent: AgentInstance) -> None:
        await asyncio.sleep(random.random() / 20)
        match random.choice(["suspend", "release", "resume", "restart", "at once", "kill", "use", "time", "terminate"]):
            case "suspend":
                await manager.suspend(agent.id)
            case "release":
                await manager.suspend(agent.id, release_memory=True)
            case "resume":
                await manager.resume(agent.id)
            case "restart":
                await manager.restart(agent.id)
            case "at once":
                await manager.restart(agent.id, at_once=True)
            case "kill" if agent.child is not None and not agent.child.is_over:
                agent.child.kill()
            case "use":
                async with manager.in_use(agent.id):
                    await asyncio.sleep(0.001)
            case "time":
                by_hand.advance(5)
            case "terminate" if random.random() < 0.1:
                await manager.terminate(agent.id)

    verbs = [asyncio.create_task(disturb(random.choice(agents))) for _ in range(80)]
    for each in random.sample(verbs, 10):
        await asyncio.sleep(0.003)
        each.cancel()
    while not all(each.done() for each in verbs):  # who waits for a restart needs time to pass
        by_hand.advance(1000)
        await asyncio.sleep(0.01)
    for error in await asyncio.gather(*verbs, return_exceptions=True):
        assert error is None or isinstance(error, LifecycleError | asyncio.CancelledError), error
    for agent in agents:
        async with agent.lock:
            assert (agent.state is RUNNING) <= (agent.child is not None), agent
            assert agent.child is None or agent.state in (RUNNING, SUSPENDED), agent
    await until(lambda: not any(agent.lock.locked() for agent in agents))
    owned = {agent.child for agent in agents}
    assert set(supervisor.children) <= owned
    await manager.close()
    assert supervisor.children == []
    assert {agent.state for agent in agents} == {TERMINATED}


# -- idle ---------------------------------------------------------------------------------------------------------------


async def test_an_idle_agent_is_suspended_after_300_s_and_goes_on_when_it_is_used(make: Make, by_hand: ByHand) -> None:
    manager = make(idle_suspend=300)
    agent = await manager.spawn(Command(argv=["cat"]))
    assert agent.child is not None
    assert agent.child.stdin is not None
    assert await manager.suspend_idle() == []
    by_hand.advance(299)
    assert await manager.suspend_idle() == []
    by_hand.advance(1)
    assert await manager.suspend_idle() == [agent.id]
    await until(lambda: state(pid_of(agent)) == "T")
    assert (agent.state, agent.why) == (SUSPENDED, "it was idle")
    async with manager.in_use(agent.id) as same:
        assert (same, agent.state) == (agent, RUNNING)
        agent.child.stdin.write(b"a task\n")
        assert await line(agent.child) == "a task"
        by_hand.advance(1000)
        assert await manager.suspend_idle() == []
    assert await manager.suspend_idle() == []
    by_hand.advance(300)
    assert await manager.suspend_idle() == [agent.id]


async def test_who_writes_or_computes_is_not_idle(make: Make, by_hand: ByHand) -> None:
    manager = make(idle_suspend=1)
    writes = await manager.spawn(Command(argv=["cat"]))
    computes = await manager.spawn(Command(argv=[sys.executable, "-I", "-S", "-c", "while True: pass"]))
    await manager.suspend_idle()
    assert writes.child is not None
    assert writes.child.stdin is not None
    assert computes.child is not None
    writes.child.stdin.write(b"still here\n")
    await line(writes.child)
    used = (await computes.child.usage()).cpu_seconds
    while (await computes.child.usage()).cpu_seconds < used + 0.05:
        pass
    by_hand.advance(1)
    assert await manager.suspend_idle() == []


async def test_who_was_suspended_on_purpose_is_not_woken_by_use(make: Make, by_hand: ByHand) -> None:
    manager = make(idle_suspend=1)
    agent = await manager.spawn(SLEEP)
    await manager.suspend_idle()
    by_hand.advance(1)
    assert await manager.suspend_idle() == [agent.id]
    await manager.suspend(agent.id, why="it costs too much")
    with pytest.raises(ResumeFailed, match="is suspended: it costs too much"):
        async with manager.in_use(agent.id):
            raise AssertionError("it must not run")
    await manager.resume(agent.id)
    assert agent.state is RUNNING


async def test_the_manager_looks_by_itself_and_gives_memory_back_if_it_is_to(make: Make, by_hand: ByHand) -> None:
    async def checkpoint(agent: AgentInstance) -> Command:
        return agent.command

    manager = make(idle_suspend=1, release_idle=True, checkpoint=checkpoint)
    agent = await manager.spawn(SLEEP)
    for looks in range(12):
        await until(lambda looks=looks: len(by_hand.waits) > looks)  # type: ignore[misc]
        by_hand.advance(0.1)
    await until(lambda: agent.state is SUSPENDED)
    assert agent.child is None
    async with manager.in_use(agent.id):
        assert alive(pid_of(agent))


async def test_states_are_told_also_to_a_listener_that_raises(make: Make, by_hand: ByHand) -> None:
    told: list[str] = []

    def on_state(agent: AgentInstance, before: LifecycleState, after: LifecycleState) -> None:
        told.append(f"{before} -> {after}")
        raise RuntimeError("it listens badly")

    manager = make(on_state=on_state)
    agent = await manager.spawn(SLEEP)
    await manager.suspend(agent.id)
    await manager.resume(agent.id)
    await manager.restart(agent.id, at_once=True)
    await manager.terminate(agent.id)
    assert told == [
        "pending -> running",
        "running -> suspended",
        "suspended -> running",
        "running -> pending",
        "pending -> running",
        "running -> terminated",
    ]
