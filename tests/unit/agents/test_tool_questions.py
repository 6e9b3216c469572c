"""Tools of a kernel's agent that ask a person by an ActionManager, as document 001 shows it ("With Human-in-the-Loop")."""

import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    ActionManager,
    ActionSpec,
    ActionStatus,
    ExecutionRequest,
    InMemoryActionStore,
    InMemoryJobStore,
    JobStatus,
    RuntimeKernel,
)
from sabot.clock import ManualClock
from sabot.errors import EffectError, UserError
from sabot.llm import Agent, Effect, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool
from tools.agent_tools import bounded, until


class Deployer:
    """The tool of the document. asked, deployed: how often it came so far."""

    def __init__(self, manager: ActionManager, **spec: Any) -> None:
        self.asked, self.deployed, self._manager, self._spec = 0, 0, manager, spec

    async def __call__(self, effect: Effect) -> str:
        self.asked += 1
        action = await self._manager.require_action(
            ActionSpec(job_id=effect.id.job, type="confirm", payload={"message": "Deploy?"}, **self._spec)
        )
        await self._manager.wait_for_resolution(action.action_id)
        resolution = action.resolution
        if resolution.get("approved"):
            self.deployed += 1
            return "deployed"
        return str(action.status)


def asks(deployer: Deployer) -> Any:
    async def deploy(effect: Effect) -> str:
        """Deploys."""
        return await deployer(effect)

    async def operator(ctx: Any) -> Any:
        return await ctx.call(tool(deploy))

    return operator


async def test_a_tool_of_an_agent_asks_a_person_and_goes_on_behind_the_answer() -> None:
    store = InMemoryJobStore()
    manager = ActionManager(store, poll="1ms")
    deployer = Deployer(manager)

    async def deploy_changes(effect: Effect) -> str:
        """Deploys the changes."""
        return await deployer(effect)

    provider = ScriptedProvider([assistant("", ToolCall("1", "deploy_changes", "{}")), "done"])
    agent = Agent(ExecutionEngine(provider), tools=[tool(deploy_changes)], name="operator")
    async with RuntimeKernel(None, agent, job_store=store, action_store=store) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="deploy"))
        await until(lambda: kernel.statistics()["parked"] == 1)
        assert kernel.statistics()["in_flight"] == 0
        assert (await store.get(handle.job_id)).status is JobStatus.WAITING_ACTION
        (action,) = await handle.get_pending_actions()
        assert (action.type, dict(action.payload)) == ("confirm", {"message": "Deploy?"})
        assert (deployer.asked, deployer.deployed) == (1, 0)
        await manager.resolve(action.resume_token, {"approved": True}, by="ann")
        assert (await handle.result()).content == "done"
        assert (deployer.asked, deployer.deployed) == (2, 1)
        assert (await store.get(handle.job_id)).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize(("answer", "said"), [({"approved": False}, "resolved"), (None, "cancelled")])
async def test_a_tool_whose_question_is_refused_or_withdrawn_sees_that(answer: Any, said: str) -> None:
    manager = ActionManager(InMemoryActionStore(), poll="1ms")
    deployer = Deployer(manager)
    async with RuntimeKernel(None, asks(deployer), action_store=manager.store) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        await until(lambda: kernel.statistics()["parked"] == 1)
        (action,) = await handle.get_pending_actions()
        if answer is None:
            await manager.cancel(action.action_id)
        else:
            await manager.resolve(action.resume_token, answer)
        assert (await handle.result()).output == said
    assert deployer.deployed == 0


async def test_a_tool_whose_question_nobody_answers_in_time_sees_that() -> None:
    manager = ActionManager(InMemoryActionStore(), poll="1ms")
    async with RuntimeKernel(
        None, asks(Deployer(manager, timeout_seconds="50ms")), action_store=manager.store
    ) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        assert (await handle.result()).output == "expired"


@pytest.mark.parametrize("ends", [True, False])
async def test_the_question_of_a_tool_that_its_job_awaits_no_longer_is_withdrawn(ends: bool) -> None:
    """It stood among the questions to people until the job had ended."""
    manager, clock = ActionManager(InMemoryActionStore(), poll="1ms"), ManualClock()
    deployer, given_up = Deployer(manager), []

    async def f(ctx: Any) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await asks(deployer)(ctx)
        given_up.append(True)
        return "over" if ends else await ctx.wait("go")

    async with RuntimeKernel(None, f, action_store=manager.store, clock=clock) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        await until(lambda: deployer.asked)
        clock.advance(2)
        if ends:
            assert (await handle.result()).output == "over"
        await until(lambda: given_up)
        async with asyncio.timeout(60):
            while await handle.get_pending_actions():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert {action.status for action in await manager.find(job_id=handle.job_id)} <= {ActionStatus.CANCELLED}
    assert (deployer.asked, deployer.deployed) == (1, 0)


async def test_a_tool_that_its_job_awaits_no_longer_asks_nobody() -> None:
    """Its job, whose function was over, waited for the answer."""
    manager, clock = ActionManager(InMemoryActionStore(), poll="1ms"), ManualClock()
    begun, goes_on, given_up = asyncio.Event(), asyncio.Event(), []
    deployer = Deployer(manager)

    async def late(effect: Effect) -> str:
        begun.set()
        await goes_on.wait()
        return await deployer(effect)

    async def f(ctx: Any) -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await ctx.call(tool(late))
        given_up.append(True)
        return "over"

    async with RuntimeKernel(None, f, action_store=manager.store, clock=clock) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        await bounded(begun.wait())
        clock.advance(2)
        await until(lambda: given_up)
        goes_on.set()
        async with asyncio.timeout(60):
            assert (await handle.result()).output == "over"
        assert await manager.find(job_id=handle.job_id) == []
    assert (deployer.asked, deployer.deployed) == (1, 0)


async def test_a_call_asks_one_question_and_none_of_another_job() -> None:
    manager, said = ActionManager(InMemoryActionStore(), poll="1ms"), list[str]()

    async def twice(effect: Effect) -> None:
        for what in ("first", "second"):
            await manager.require_action(ActionSpec(job_id=effect.id.job, payload={"what": what}))

    async def of_another(effect: Effect) -> None:
        await manager.require_action(ActionSpec(job_id="kernel.f/other"))

    async def f(ctx: Any) -> None:
        for function in (twice, of_another):
            try:
                await ctx.call(tool(function))
            except EffectError as error:
                said.append(error.message)

    async with RuntimeKernel(None, f, action_store=manager.store) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        await until(lambda: kernel.statistics()["parked"] == 1)
        (action,) = await handle.get_pending_actions()
        await manager.resolve(action.resume_token, {})
        await handle.result()
        assert "a call asks one question" in said[-2]
        assert "kernel.f/other is a run of an agent" in said[-1]
        with pytest.raises(UserError, match="which asks by itself"):
            await manager.require_action(ActionSpec(job_id=handle.job_id))


CHILD = """
import asyncio, sys
from sabot.agents import *
sys.path[:0] = sys.argv[2:]
from unit.agents.test_tool_questions import Deployer, asks
async def main():
    manager = ActionManager(InMemoryActionStore(), poll="1ms")
    async with RuntimeKernel(None, asks(Deployer(manager)), action_store=manager.store, journal=sys.argv[1]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=""))
        while not (found := await handle.get_pending_actions()):
            await asyncio.sleep(0.01)
        print(found[0].resume_token, flush=True)
        await handle.result()
asyncio.run(main())
"""


@pytest.mark.one_in(2, "a process that is killed each")
@pytest.mark.parametrize("answered", ["while it is away", "when it is back"])
async def test_a_question_of_a_tool_survives_a_kill_and_its_work_is_done_once(tmp_path: Path, answered: str) -> None:
    tests = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "tools")]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path), *tests, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    token = (await child.stdout.readline()).decode().strip()
    child.send_signal(signal.SIGKILL)
    await child.wait()
    manager = ActionManager(InMemoryActionStore(), poll="1ms")
    deployer = Deployer(manager)
    kernel = RuntimeKernel(None, asks(deployer), action_store=manager.store, journal=tmp_path)
    if answered == "while it is away":
        await kernel.actions.resolve(token, {"approved": True})
    async with kernel:
        (handle,) = await kernel.resume()
        if answered == "when it is back":
            (action,) = await handle.get_pending_actions()
            assert (action.resume_token, action.status) == (token, ActionStatus.PENDING)
            assert deployer.asked == 0
            await manager.resolve(token, {"approved": True})
        assert (await handle.result()).output == "deployed"
    assert (deployer.asked, deployer.deployed) == (1, 1)
