"""Models that tools and steps of durable agents ask by themselves are judged and counted, once."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from unit.agents.test_accounting import PRICES, answer, guard
from unit.jobs.hosting import Agent, hosting

from sabot.agents import DataAccessPolicy, Decision, GuardedCall, ModelPolicy, PolicyEngine
from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.errors import EffectError, UserError
from sabot.jobs.guard import NOBODY, Behalf, EffectGuard, guard_of
from sabot.jobs.loop import JobLoop
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent as ModelAgent
from sabot.llm import ExecutionEngine, RequestContext, RequestSpec, ScriptedProvider, ToolCall, assistant, tool, user

Job = Callable[[DurableContext], Coroutine[Any, Any, Any]]


class Desk:
    """A model, tools that ask it, and jobs that call them."""

    def __init__(self, answers: Any = answer) -> None:
        self.provider = ScriptedProvider(answers, model="m")
        self.engine = ExecutionEngine(self.provider, retries=0, patience=0, prices=PRICES)

        @tool(effect="read")
        async def asks(text: str) -> str:
            """Asks a model."""
            return (await self.engine.complete(text, max_tokens=100)).content

        @tool(effect="read")
        def asks_in_a_thread(text: str) -> str:
            """Asks a model, in an event loop of its own."""
            return asyncio.run(self.engine.complete(text, max_tokens=100)).content

        @tool(effect="read", labels={"pii"})
        async def patient() -> str:
            """Whose record it is."""
            return "Ann"

        self.asks, self.asks_in_a_thread, self.patient = asks, asks_in_a_thread, patient

    async def run(self, job: Job, *guards: EffectGuard, behalf: Behalf = NOBODY) -> Any:
        """What the job returns."""
        agent = Agent(job)
        async with hosting(MemoryStorage(ManualClock(1.0)), agent, guard=guard_of(guards)) as running:
            running.begin("job", behalf=behalf)
            await running.over("job")
        return agent.done["job"] if "job" in agent.done else agent.errors["job"]


async def said(call: Coroutine[Any, Any, Any]) -> Any:
    """What it gives, or the type of its error and its words."""
    try:
        return await call
    except EffectError as error:
        return error.type, error.message


@pytest.mark.parametrize("as_step", [False, True])
async def test_a_model_that_the_policy_denies_is_not_asked_by_a_tool_of_a_job(as_step: bool) -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> Any:
        if as_step:
            return await said(ctx.step(desk.engine.complete, "one", effect="read"))
        return await said(ctx.call(desk.asks, "one"))

    denied = await desk.run(job, PolicyEngine([ModelPolicy(["m"], allowed_scopes=["others"])]))
    assert denied[0] == "PolicyDenied"
    assert denied[1].endswith("m was not asked: scope app may not use model m (rule ModelPolicy m)")
    allowed = await desk.run(job, PolicyEngine([ModelPolicy(["m"], allowed_scopes=["app"])]))
    assert "yes" in str(allowed)
    assert len(desk.provider.requests) == 1


async def test_what_a_tool_asks_is_counted_for_whom_its_job_runs_and_a_budget_holds_for_it() -> None:
    desk, by = Desk(), guard(max_tokens_daily=200, warn_at=1)

    async def job(ctx: DurableContext) -> Any:
        return [await said(ctx.call(desk.asks, text)) for text in ("one", "two")]

    first, second = await desk.run(job, by, behalf=Behalf("app", "ann"))
    await by.ledger.flush()
    (row,) = [each for each in by.ledger.writer.events if each.type == "model"]
    assert (row.scope_id, row.principal_id, row.agent, row.name, row.total_tokens) == (
        "app",
        "ann",
        "app.agent",
        "m",
        150,
    )
    assert row.job_id.startswith("job/1/")
    assert first == "yes"
    assert second[0] == "BudgetExceeded"
    assert "the daily budget of app has 200 tokens: 150 used" in second[1]
    assert len(desk.provider.requests) == 1
    assert (await by.ledger.standing("app")).reserved.calls == 0


async def test_calls_with_one_request_id_are_rows_of_their_own_in_each_attempt_of_a_tool() -> None:
    """Each attempt numbered its calls from 1, so that the rows of the second one had the ids of the first, and were
    dropped: the budget had more left than was true.
    """
    desk, by, context = Desk(), guard(), RequestContext(request_id="order-7")
    attempts: list[int] = []

    @tool(effect="read", retries=1, backoff="1ms")
    async def asks() -> str:
        attempts.append(1)
        await desk.engine.complete("one", max_tokens=100, context=context)
        if len(attempts) == 1:
            raise TimeoutError("the second half did not come")
        return "yes"

    async def job(ctx: DurableContext) -> Any:
        return await ctx.call(asks)

    assert await desk.run(job, by) == "yes"
    await by.ledger.flush()
    assert len(desk.provider.requests) == 2
    assert len([each for each in by.ledger.writer.events if each.type == "model"]) == 2


async def test_a_tool_tells_a_model_nothing_that_its_job_may_not_tell_it() -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> Any:
        return [
            await said(ctx.call(each, *given))
            for each, *given in ((desk.asks, "one"), (desk.patient,), (desk.asks, "two"))
        ]

    policy = PolicyEngine([DataAccessPolicy(["pii"], allowed_models=["other"])])
    first, _, second = await desk.run(job, policy)
    assert first == "yes"
    assert second[0] == "PolicyDenied"
    assert "what is pii may not go to m" in second[1]


async def test_a_tool_cannot_ask_a_person_for_a_model() -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> Any:
        return await said(ctx.call(desk.asks, "one"))

    kind, words = await desk.run(job, PolicyEngine([ModelPolicy(["m"], require_approval=True)]))
    assert kind == "PolicyDenied"
    assert "a tool asks nobody: let the agent ask the model, by ctx.llm(engine)" in words


async def test_a_sync_tool_that_asks_in_a_loop_of_its_own_is_told_what_to_do() -> None:
    desk = Desk()

    async def job(ctx: DurableContext) -> Any:
        return await said(ctx.call(desk.asks_in_a_thread, "one"))

    kind, words = await desk.run(job, PolicyEngine())
    assert kind == "UserError"
    assert "m was not asked" in words
    assert "make the tool `async def`" in words
    assert desk.provider.requests == []
    assert await Desk().run(job) == "yes", "nobody judges"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_thread_that_was_given_no_context_asks_no_model_while_calls_of_jobs_are_judged(is_async: bool) -> None:
    """Else what a tool asks there would be judged by nobody."""
    provider = ScriptedProvider(answer, model="m")

    def ask() -> str:
        return asyncio.run(ExecutionEngine(provider, retries=0).complete("one")).content

    @tool(effect="read")
    async def in_an_executor() -> str:
        """Asks in a thread of the event loop's."""
        return await asyncio.get_running_loop().run_in_executor(None, ask)

    @tool(effect="read")
    def in_a_pool() -> str:
        """Asks in a thread of its own."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(ask).result()

    @tool(effect="read")
    async def in_the_program() -> str:
        """What the program asks meanwhile, in a thread that was given its context."""
        return await asyncio.get_running_loop().run_in_executor(None, program.run, ask)

    async def job(ctx: DurableContext) -> Any:
        return [
            await said(ctx.call(in_an_executor if is_async else in_a_pool)),
            await said(ctx.call(in_the_program)),
        ]

    program = copy_context()
    refused, allowed = await Desk().run(job, PolicyEngine([ModelPolicy(["m"], denied=True)]))
    assert refused[0] == "UserError"
    assert (
        "m was not asked: an app or a kernel with a policy or budgets runs in this process, and thread " in refused[1]
    )
    assert "await the engine in it; elsewhere begin the thread by asyncio.to_thread(" in refused[1]
    assert allowed == "yes", "the context of the program says that no tool asks"
    assert len(provider.requests) == 1
    assert await Desk().run(job) == ["yes", "yes"], "nobody judges"


async def test_each_call_of_a_model_is_judged_once_whoever_makes_it() -> None:
    asked: list[str] = []

    def rule(call: GuardedCall) -> Decision:
        if call.kind == "model":
            assert call.spec is not None
            asked.append(call.spec.messages[-1].text)
        return Decision.ALLOW

    desk = Desk()

    def answers(spec: Any) -> Any:
        if spec.tools and spec.messages[-1].role != "tool":
            name = spec.tools[0].name
            given = '{"text": "of a tool"}' if name == "asks" else '{"prompt": "of an agent"}'
            return assistant("", ToolCall("1", name, given))
        return answer(spec)

    agents = ExecutionEngine(ScriptedProvider(answers, model="m"), retries=0)
    worker = ModelAgent(agents, name="worker", tools=[desk.asks])
    lead = ModelAgent(agents, name="lead", tools=[worker])

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(desk.engine).complete("of the job", max_tokens=100)
        await ctx.call(desk.asks, "of a tool")
        asked.append("--")
        await lead.run("of the lead", effects=ctx.llm(agents))

    await desk.run(job, PolicyEngine([rule]))
    assert asked == ["of the job", "of a tool", "--", "of the lead", "of an agent", "of a tool", "yes", "yes"]
    assert len(desk.provider.requests) == 3


async def test_a_job_that_ended_under_an_older_version_stays_as_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions let a job go on whose function had caught the refusal of a call."""
    home, desk = MemoryStorage(), Desk()

    async def job(ctx: DurableContext) -> Any:
        with pytest.raises(UserError, match="calls an engine directly"):
            await desk.engine.complete("one")
        return (await ctx.llm(desk.engine).complete("two")).content

    with monkeypatch.context() as older:
        older.setattr(JobLoop, "refuse_call", lambda _, what, hint: UserError(what, hint=hint))
        async with hosting(home, Agent(job)) as running:
            running.begin("j")
            await running.over("j")
    async with hosting(home, again := Agent(job)) as running:  # no checkpoint covers its end
        await running.over("j")
    assert again.done["j"] == "yes"


@pytest.mark.parametrize("way", ["complete", "stream", "embed", "agent.run"])
async def test_the_function_of_a_job_asks_no_engine_by_itself(way: str) -> None:
    """The job fails, also if the function catches the error: otherwise it would succeed without the answer."""
    desk = Desk()

    async def in_pieces() -> None:
        async for _ in desk.engine.stream("one"):
            pass

    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "complete": lambda: desk.engine.complete("one"),
        "stream": in_pieces,
        "embed": lambda: asyncio.gather(desk.engine.embed(["one"])),
        "agent.run": lambda: ModelAgent(desk.engine).run("one"),
    }

    async def job(ctx: DurableContext) -> Any:
        with pytest.raises(UserError, match="calls an engine directly"):
            await ways[way]()
        return "all is well"

    failed = await desk.run(job)
    assert isinstance(failed, UserError), failed
    assert "ctx.llm(engine)" in str(failed.hint)
    assert desk.provider.requests == []
    assert (await desk.engine.complete("outside of a job")).content == "yes"


@pytest.mark.parametrize("way", ["complete", "stream", "embed"])
async def test_a_provider_is_asked_by_engines_only_where_calls_are_judged(way: str) -> None:
    """A model that the policy denies answered a tool that had asked its provider, and nobody counted it."""
    desk = Desk()

    async def in_pieces() -> None:
        async for _ in desk.provider.stream(RequestSpec(messages=(user("one"),))):
            pass

    ways: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "complete": lambda: desk.provider.complete(RequestSpec(messages=(user("one"),))),
        "stream": in_pieces,
        "embed": lambda: desk.provider.embed(["one"]),
    }

    @tool(effect="read")
    async def asks() -> str:
        """Asks a provider."""
        await ways[way]()
        return "asked"

    async def by_tool(ctx: DurableContext) -> Any:
        return await said(ctx.call(asks))

    async def by_step(ctx: DurableContext) -> Any:
        return await said(ctx.step(ways[way], effect="read"))

    async def by_itself(ctx: DurableContext) -> Any:
        with pytest.raises(UserError, match="calls an engine directly"):
            await ways[way]()

    for job in (by_tool, by_step):
        kind, words = await desk.run(job, PolicyEngine([ModelPolicy(["m"], allowed_scopes=["app"])]))
        assert (kind, "m was not asked: this code asks a provider without an engine" in words) == ("UserError", True)
    assert isinstance(await desk.run(by_itself), UserError)
    assert (desk.provider.requests, desk.provider.embedded) == ([], [])
    await ways[way]()  # outside of all apps it is the program's


async def test_a_provider_in_front_of_another_one_is_asked_by_an_engine() -> None:
    desk = Desk()

    class Wrapped(ScriptedProvider):
        async def complete(self, spec: RequestSpec, **how: Any) -> Any:
            return await desk.provider.complete(spec, **how)

    desk.engine = ExecutionEngine(Wrapped("", model="m"), retries=0, prices=PRICES)

    async def job(ctx: DurableContext) -> Any:
        return await ctx.call(desk.asks, "one"), (await ctx.llm(desk.engine).complete("two")).content

    assert await desk.run(job, PolicyEngine([ModelPolicy(["m"], allowed_scopes=["app"])])) == ("yes", "yes")
