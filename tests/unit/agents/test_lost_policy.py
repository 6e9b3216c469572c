"""A job whose calls a policy has judged makes no call where there is no policy: the program has lost it in a deploy."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from sabot import App
from sabot.agents import (
    Budget,
    BudgetSpec,
    ConstraintPolicy,
    ExecutionRequest,
    JobClient,
    JobLimit,
    PolicyEngine,
    PolicyRef,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.durable.context import DurableContext
from sabot.agents.kernel.kernel import check_kernel
from sabot.clock import ManualClock
from sabot.errors import EffectError, NonDeterminism
from sabot.llm import ExecutionEngine, ScriptedProvider, tool
from tools.agent_tools import until


class Desk:
    """A job that pays twice, and asks a person for each payment."""

    def __init__(self) -> None:
        self.paid: list[str] = []

        @tool
        async def pay(order: str, amount: int) -> None:
            """Pays."""
            self.paid.append(order)

        self.pay = pay

    async def job(self, ctx: DurableContext) -> str:
        for order in ("a", "b"):
            try:
                await ctx.call(self.pay, order, 100)
            except EffectError:
                ctx.log.info("refused")
        return "done"

    @staticmethod
    def policy() -> PolicyEngine:
        return PolicyEngine([ConstraintPolicy(["pay"], "amount", max=50, otherwise="ask")])


async def asked(actions: Any) -> Any:
    while not (found := await actions.find(statuses=["pending"])):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found[0]


@pytest.mark.parametrize("approved", [True, False])
async def test_a_kernel_without_the_policy_makes_no_further_call(tmp_path: Path, approved: bool) -> None:
    """It made the second payment, about which nobody was asked, and the first one for an approval that nothing judged."""
    desk = Desk()

    def kernel(policy: PolicyEngine | None) -> RuntimeKernel:
        return RuntimeKernel.create(agent=desk.job, policy=policy, journal=str(tmp_path / "jobs"))

    async with kernel(desk.policy()) as first:
        await first.execute(ExecutionRequest(prompt="go"))
        question = await asked(first.actions)
    async with kernel(None) as second:
        [handle] = await second.resume()
        await second.actions.resolve(question.resume_token, {"approved": approved})
        with pytest.raises(NonDeterminism, match="at step 1, call pay: policy= judged the calls") as error:
            await handle.result()
        assert "policy=PolicyEngine([]) says that no rule is meant" in str(error.value.hint)
    assert desk.paid == []
    with kernel(None).jobs.store.reader() as reader:
        verdicts = [[each.verdict for each in check_kernel(kernel(of), reader)] for of in (None, desk.policy())]
    assert verdicts == [["blocked"], ["ok"]]
    async with kernel(PolicyEngine([])) as third:  # no rule is meant
        [handle] = await third.resume()
        assert (await handle.result()).output == "done"
    assert desk.paid == (["a", "b"] if approved else ["b"])


@pytest.mark.parametrize("later", ["without policy=", "editable=False"])
async def test_a_call_is_not_made_with_arguments_that_the_policy_of_the_day_does_not_judge(
    tmp_path: Path, later: str
) -> None:
    """5,000 were paid: the question was asked under a bound of 150, and answered in a kernel that had lost it. Or nobody could
    change the arguments by then.
    """
    desk = Desk()

    def kernel(policy: PolicyEngine | None) -> RuntimeKernel:
        return RuntimeKernel.create(agent=desk.job, policy=policy, journal=str(tmp_path / "jobs"))

    def rules(*, editable: bool, most: float) -> PolicyEngine:
        asks = ToolPolicy(["pay"], require_approval=True, editable=editable)
        return PolicyEngine([asks, ConstraintPolicy(["pay"], "amount", max=most)])

    async with kernel(rules(editable=True, most=150)) as first:
        await first.execute(ExecutionRequest(prompt="go"))
        question = await asked(first.actions)
    async with kernel(rules(editable=False, most=9_000) if later == "editable=False" else None) as second:
        [handle] = await second.resume()
        answer = {"approved": True, "arguments": {"amount": 5000}}
        await second.actions.resolve(question.resume_token, answer)
        if later == "editable=False":
            question = await asked(second.actions)  # about the second call
            await second.actions.resolve(question.resume_token, {"approved": True})
            assert (await handle.result()).output == "done"
        else:
            with pytest.raises(NonDeterminism, match="at step 1, call pay: policy= judged"):
                await handle.result()
    assert desk.paid == (["b"] if later == "editable=False" else [])


@pytest.mark.parametrize("name", ["production", "staging", "", None])
async def test_a_job_keeps_the_policy_for_which_its_request_asks(tmp_path: Path, name: str | None) -> None:
    """After a restart under another policy, or none, the job made the call that the policy of its request denies."""
    desk = Desk()

    async def job(ctx: DurableContext) -> str:
        await ctx.ask("confirm", {})
        return await desk.job(ctx)

    def kernel(name: str | None, **rule: Any) -> RuntimeKernel:
        policy = None if name is None else PolicyEngine([ToolPolicy(["pay"], **rule)], name=name)
        return RuntimeKernel.create(agent=job, policy=policy, journal=str(tmp_path / "jobs"))

    async with kernel("production", denied=True) as first:
        await first.execute(ExecutionRequest(prompt="go", policy_ref=PolicyRef("production")))
        question = await asked(first.actions)
    async with kernel(name, warn=True) as second:
        [handle] = await second.resume()
        await second.actions.resolve(question.resume_token, {"approved": True})
        if name == "production":  # its rules may change
            assert (await handle.result()).output == "done"
        else:
            with pytest.raises(NonDeterminism, match="call pay: its request asks for policy 'production', which"):
                await handle.result()
    assert desk.paid == (["a", "b"] if name == "production" else [])


async def _waits(ctx: DurableContext, desk: Desk) -> str:
    await ctx.ask("confirm", {})
    return await desk.job(ctx)


async def _goes_on_anew(ctx: DurableContext, desk: Desk) -> str:
    if ctx.message == "go":
        await ctx.call(desk.pay, "small", 10)
        await ctx.ask("confirm", {})
        ctx.continue_as("anew")
    return await desk.job(ctx)


@pytest.mark.parametrize("name", ["policy", "budgets", "policy_ref"])
@pytest.mark.parametrize("way", ["first call", "continue_as", "child"])
async def test_a_job_keeps_what_was_declared_when_it_began(tmp_path: Path, name: str, way: str) -> None:
    """No decision stood in its history: it had made no call before the restart, had gone on in a new history, or was a child."""
    desk, function = Desk(), _goes_on_anew if way == "continue_as" else _waits

    async def job(ctx: DurableContext) -> str:
        return await (ctx.child(below, ctx.message) if way == "child" else function(ctx, desk))

    async def below(ctx: DurableContext) -> str:
        return await function(ctx, desk)

    def kernel(**declared: Any) -> RuntimeKernel:
        return RuntimeKernel.create(agent=[job, below], journal=str(tmp_path / "jobs"), **declared)

    policy = PolicyEngine([ToolPolicy(["pay"], warn=True)], name="production")
    declared: dict[str, Any] = (
        {"budgets": [Budget("*", max_calls_daily=1)]} if name == "budgets" else {"policy": policy}
    )
    other: dict[str, Any] = {"policy": PolicyEngine([], name="staging")} if name == "policy_ref" else {}
    ref = PolicyRef("production") if name == "policy_ref" else None
    async with kernel(**declared) as first:
        await first.execute(ExecutionRequest(prompt="go", agent="job", policy_ref=ref))
        question = await asked(first.actions)
    paid, said = [*desk.paid], "its request asks for policy 'production'" if ref else f"{name}= judged"
    async with kernel(**other) as second:
        handle = (await second.resume())[-1]
        await second.actions.resolve(question.resume_token, {"approved": True})
        with pytest.raises(NonDeterminism, match=f"call pay: {said}"):
            await handle.result()
    assert desk.paid == paid
    async with kernel(**declared) as third:
        handles = await third.resume()
        assert [(await each.result()).output for each in handles] == ["done"] * len(handles)
    assert desk.paid == [*paid, "a", "b"]


async def test_a_job_of_a_client_keeps_what_was_declared_when_it_began(tmp_path: Path) -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> str:
        return await _waits(ctx, desk)

    async with RuntimeKernel.create(
        agent=job, journal=str(tmp_path / "jobs"), policy=desk.policy(), name="shop"
    ) as first:
        await JobClient(str(tmp_path / "jobs"), name="shop").start("job", "go")
        question = await asked(first.actions)
    async with RuntimeKernel.create(agent=job, journal=str(tmp_path / "jobs"), name="shop") as second:
        [handle] = await second.resume()
        await second.actions.resolve(question.resume_token, {"approved": True})
        with pytest.raises(NonDeterminism, match="call pay: policy= judged"):
            await handle.result()
    assert desk.paid == []


async def test_the_limits_of_a_job_are_no_policy(tmp_path: Path) -> None:
    """After a call that its `BudgetSpec` had denied, a job was blocked wherever it was read again, though it never had a policy."""
    desk = Desk()

    async def job(ctx: DurableContext) -> str:
        try:
            await ctx.call(desk.pay, "a", 10)
            await ctx.call(desk.pay, "b", 10)
        except EffectError:
            await ctx.ask("confirm", {})
        return (await ctx.llm(engine).complete("hello")).content

    engine = ExecutionEngine(ScriptedProvider(["hi"]))
    for last in (False, True):
        async with RuntimeKernel.create(agent=job, journal=str(tmp_path / "jobs")) as kernel:
            if not last:
                await kernel.execute(ExecutionRequest(prompt="go", budgets=BudgetSpec(max_tool_calls=1)))
                question = await asked(kernel.actions)
            else:
                [handle] = await kernel.resume()
                await kernel.actions.resolve(question.resume_token, {"approved": True})
                assert (await handle.result()).output == "hi"
    assert desk.paid == ["a"]


async def test_a_kernel_that_never_had_a_policy_goes_on(tmp_path: Path) -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> str:
        await ctx.call(desk.pay, "a", 100)
        await ctx.ask("confirm", {})
        return await desk.job(ctx)

    for last in (False, True):
        async with RuntimeKernel.create(agent=job, journal=str(tmp_path / "jobs")) as kernel:
            if not last:
                await kernel.execute(ExecutionRequest(prompt="go"))
                question = await asked(kernel.actions)
            else:
                [handle] = await kernel.resume()
                await kernel.actions.resolve(question.resume_token, {"approved": True})
                assert (await handle.result()).output == "done"
    assert desk.paid == ["a", "a", "b"]


async def test_an_app_without_the_policy_makes_no_further_call(tmp_path: Path) -> None:
    desk = Desk()

    def app(policy: PolicyEngine | None) -> App:
        made = App("desk", "memory://lost-policy", state=str(tmp_path), policy=policy)
        made.agent("claims", durable=True)(desk.job)
        return made

    first = app(desk.policy())
    await first.start()
    await first.send("claims", {"order": "a"})
    question = await asked(first.actions)
    await first.stop()
    second = app(None)
    await second.start()
    await second.actions.resolve(question.resume_token, {"approved": False})
    await until(lambda: cast(Any, second.statistics()["jobs"])["blocked"])
    await second.stop()
    assert desk.paid == []


@pytest.mark.parametrize("waits", ["start_after", "limit"])
@pytest.mark.parametrize("name", ["policy", "budgets"])
async def test_a_job_that_waited_in_the_queue_keeps_what_was_declared(tmp_path: Path, name: str, waits: str) -> None:
    """It had no entry in the log before the restart, so nothing said that a kernel with a policy had taken it."""
    desk, clock = Desk(), ManualClock(1_800_000_000.0)

    async def job(ctx: DurableContext) -> str:
        if ctx.message == "first":
            return (await ctx.ask("confirm", {})).outcome
        return await desk.job(ctx)

    def kernel(**declared: Any) -> RuntimeKernel:
        limits = [JobLimit("job", concurrency=1, parked="holds")]
        return RuntimeKernel.create(agent=job, journal=str(tmp_path / "jobs"), limits=limits, clock=clock, **declared)

    policy = PolicyEngine([ToolPolicy(["pay"], warn=True)])
    declared: dict[str, Any] = (
        {"budgets": [Budget("*", max_calls_daily=1)]} if name == "budgets" else {"policy": policy}
    )
    async with kernel(**declared) as first:
        if waits == "limit":
            await first.execute(ExecutionRequest(prompt="first"))
        after = "1h" if waits == "start_after" else None
        queued = (await first.execute(ExecutionRequest(prompt="go", start_after=after))).job_id
        if waits == "limit":
            await asked(first.actions)
    clock.advance(3600)
    async with kernel() as second:
        await second.resume()
        if waits == "limit":
            await second.actions.resolve((await asked(second.actions)).resume_token, {"approved": True})
        with pytest.raises(NonDeterminism, match=f"call pay: {name}= judged"):
            await (await second.handle(queued)).result()
    assert desk.paid == []
    async with kernel(**declared) as third:
        await third.resume()
        assert (await (await third.handle(queued)).result()).output == "done"
    assert desk.paid == ["a", "b"]
