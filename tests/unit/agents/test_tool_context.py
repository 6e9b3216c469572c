"""A tool whose first parameter is a ToolContext knows for whom it is called, and has the objects of its agent."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Optional

import pytest
from pydantic import Field

from sabot import App
from sabot.agents import (
    Decision,
    DurableContext,
    ExecutionRequest,
    GuardedCall,
    PolicyEngine,
    RuntimeKernel,
    ToolContext,
)
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls.effects import EffectId
from sabot.errors import EffectError, PolicyDenied, UserError
from sabot.journal.memory import MemoryStorage
from sabot.llm import (
    Agent,
    Effect,
    ExecutionEngine,
    RequestContext,
    ScriptedProvider,
    ToolCall,
    assistant,
    tool,
)
from sabot.mcp import ToolServer
from tools.agent_tools import started, until


@dataclass
class Shop:
    """Something that a tool needs and that no journal can hold."""

    paid: list[Any] = field(default_factory=list)
    lock: Any = field(default_factory=asyncio.Lock)


@tool
async def refund(ctx: ToolContext[Shop], order: str, amount: int = 5) -> str:
    """Pays money back."""
    ctx.deps.paid.append((ctx.scope, ctx.principal, ctx.session, order, amount, ctx.effect.key))
    return f"{order}: {amount}"


@tool(effect="read")
def told(ctx: ToolContext) -> dict[str, Any]:
    return {
        "scope": ctx.scope,
        "principal": ctx.principal,
        "session": ctx.session,
        "job": ctx.job,
        "message": ctx.message,
        "metadata": dict(ctx.metadata),
        "labels": sorted(ctx.labels),
        "deps": ctx.deps,
    }


def calls(*named: tuple[str, str]) -> Any:
    return assistant("", *(ToolCall(f"c{number}", name, text) for number, (name, text) in enumerate(named)))


def engine(*answers: Any) -> ExecutionEngine:
    return ExecutionEngine(ScriptedProvider(list(answers)), retries=0, patience=0)


CALLER = RequestContext(tenant_id="acme", user_id="ann", session_id="s-1")
REFUND = calls(("refund", '{"order": "o-1"}'))


# -- outside of a job -------------------------------------------------------------------------------------------------


async def test_a_run_tells_its_tools_the_caller_the_prompt_and_the_objects_of_the_agent() -> None:
    shop, seen = Shop(), []

    @tool(effect="read")
    async def look(ctx: ToolContext[Shop], order: str) -> str:
        seen.append(ctx)
        return order

    agent = Agent(engine(calls(("look", '{"order": "o-1"}')), "done"), tools=[look], deps=shop)
    await agent.run("Where is o-1?", context=CALLER)
    (ctx,) = seen
    assert (ctx.scope, ctx.principal, ctx.session, ctx.job) == ("acme", "ann", "s-1", "")
    assert (ctx.message, ctx.deps is shop, ctx.deadline is not None) == ("Where is o-1?", True, True)
    assert (ctx.effect.attempt, ctx.effect.deadline) == (1, ctx.deadline)


def test_a_model_does_not_see_the_context() -> None:
    assert list(refund.schema.parameters["properties"]) == ["order", "amount"]
    assert refund.schema.parameters["required"] == ["order"]
    assert refund.arguments('{"order": "o-1"}') == {"order": "o-1"}


async def test_who_calls_the_tool_as_a_function_gives_the_context() -> None:
    shop = Shop()
    assert await refund(ToolContext(scope="acme", deps=shop), "o-1", 7) == "o-1: 7"
    assert await refund(order="o-2", ctx=ToolContext(deps=shop)) == "o-2: 5"
    assert [each[:5] for each in shop.paid] == [("acme", "", "", "o-1", 7), ("", "", "", "o-2", 5)]
    for wrong in (lambda: refund("o-1"), lambda: refund(order="o-1"), lambda: refund()):
        with pytest.raises(UserError, match="tool refund was called without its ctx: ToolContext") as refused:
            wrong()
        assert "refund(ToolContext(scope=…, deps=…), …)" in refused.value.hint


def test_the_context_is_the_first_parameter_or_the_tool_is_refused() -> None:
    def last(order: str, ctx: ToolContext) -> None: ...
    def twice(ctx: ToolContext, other: ToolContext) -> None: ...
    def named(*, ctx: ToolContext) -> None: ...

    for wrong in (last, twice, named):
        with pytest.raises(UserError, match=r"is a ToolContext, and is not its first parameter"):
            tool(wrong)


async def test_every_form_of_a_function_takes_a_context() -> None:
    class Till:
        name = "till"

        @tool(effect="read")
        def of_class(self, ctx: ToolContext[Shop], order: str) -> str:
            return f"{self.name} {ctx.scope} {order}"

        def of_method(self, ctx: "ToolContext[Shop]", order: str) -> str:
            return f"{self.name} {ctx.scope} {order}"

        def __call__(self, ctx: "ToolContext | None", order: str) -> str:
            return f"{self.name} {ctx.scope} {order}" if ctx else ""

    @tool(effect="read")
    async def with_effect(ctx: ToolContext, order: str, effect: Effect) -> str:
        return f"{effect.key == ctx.effect.key} {ctx.scope} {order}"

    @tool(effect="read")
    def of_field(ctx: ToolContext, /, order: str, days: Annotated[int, Field(default=3)] = Field(default=3)) -> str:
        return f"{days} {ctx.scope} {order}"

    async def shared(ctx: ToolContext, shop: str, order: str) -> str:
        return f"{shop} {ctx.scope} {order}"

    async def given(ctx: ToolContext, order: str) -> str:
        return f"{ctx.scope} {order}"

    till = Till()
    forms = [
        till.of_class,
        tool(effect="read")(till.of_method),
        tool(effect="read", name="object")(till),
        with_effect,
        of_field,
        tool(effect="read", name="partial")(partial(shared, shop="till")),
        tool(effect="read", name="given")(partial(given, ToolContext(scope="by the program"))),
    ]
    model = engine(calls(*((each.name, '{"order": "o-1"}') for each in forms)), "done")
    result = await Agent(model, tools=forms, deps=Shop()).run("x", context=CALLER)
    results = [each.text for each in result.messages if each.role == "tool"]
    assert results == [*3 * ["till acme o-1"], "True acme o-1", "3 acme o-1", "till acme o-1", "by the program o-1"]


async def test_the_type_of_the_context_may_be_written_in_every_way() -> None:
    """Texts and unions in other forms were not seen, and the message named a type that the user has not written."""

    def optional(ctx: Optional["ToolContext[Shop]"], order: str) -> str:
        return f"{ctx and ctx.scope} {order}"

    def annotated(ctx: Annotated[ToolContext[Shop] | None, "whom it serves"], order: str) -> str:
        return f"{ctx and ctx.scope} {order}"

    def called_self(self: ToolContext[Shop], order: str) -> str:
        return f"{self.scope} {order}"

    def alone(self: ToolContext) -> str:
        return f"{self.scope} o-1"

    texts = [
        "Optional[ToolContext[Shop]]",
        "Annotated[ToolContext, 'it']",
        "'ToolContext[Hidden]'",
        "Ours",
        "Alias | None",
    ]
    module: dict[str, Any] = {"ToolContext": ToolContext, "Ours": ToolContext, "Alias": ToolContext[Shop]}
    module |= {"Optional": Optional, "Annotated": Annotated}
    for number, text in enumerate(texts):
        exec(
            f"from __future__ import annotations\ndef f{number}(ctx: {text}, order: str): return f'{{ctx.scope}} {{order}}'",
            module,
        )
    forms = [optional, annotated, called_self, *(module[f"f{number}"] for number in range(len(texts)))]
    tools = [tool(effect="read")(each) for each in forms]
    asked = calls(*((each.name, '{"order": "o-1"}') for each in tools), ("alone", "{}"))
    agent = Agent(engine(asked, "done"), tools=[*tools, tool(alone)], deps=Shop())
    result = await agent.run("x", context=CALLER)
    assert [each.text for each in result.messages if each.role == "tool"] == 9 * ["acme o-1"]

    def of_list(order: list[ToolContext]) -> None: ...

    with pytest.raises(UserError, match="its parameter 'order' is a ToolContext"):
        Agent(engine(), tools=[of_list])


# -- the objects of an agent ------------------------------------------------------------------------------------------


class Pool:
    """A context manager that says in which task it was entered and left."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    @contextlib.asynccontextmanager
    async def open(self, ctx: ToolContext):
        self.said.append(("open", ctx.scope, ctx.job != "", asyncio.current_task()))
        yield self
        self.said.append(("closed", asyncio.current_task()))

    @property
    def words(self) -> list[str]:
        return [each[0] for each in self.said]


@tool(effect="read")
async def use(ctx: ToolContext[Pool]) -> str:
    return ctx.deps.words[-1]


USE = calls(("use", "{}"), ("use", "{}"))


async def test_a_context_manager_is_entered_once_a_run_and_left_by_the_same_task() -> None:
    pool = Pool()
    agent = Agent(engine(USE, USE, "done", USE, "done", "done"), tools=[use], deps=pool.open)
    for opened in (1, 2, 2):
        result = await agent.run("x", context=CALLER)
        assert pool.words == opened * ["open", "closed"]
    assert not [each for each in result.messages if each.role == "tool"]  # the last run has called none
    assert all(pool.said[at][-1] is pool.said[at + 1][-1] for at in (0, 2))


async def test_deps_are_a_value_or_what_a_function_makes_of_the_context() -> None:
    shop = Shop()

    async def later(ctx: ToolContext) -> Any:
        await asyncio.sleep(0)
        return ctx.scope

    class Manager(contextlib.AbstractAsyncContextManager):
        async def __aexit__(self, *_: Any) -> None:
            raise AssertionError("an object that is a value is nobody's to enter")

    async def manager(ctx: ToolContext) -> Any:
        return entered

    entered, seen = Manager(), []

    @tool(effect="read")
    async def look(ctx: ToolContext) -> str:
        seen.append(ctx.deps)
        return "ok"

    for deps in (shop, None, {"a": 1}, Shop, later, lambda ctx: [ctx.principal], entered, manager):
        await Agent(engine(calls(("look", "{}")), "done"), tools=[look], deps=deps).run("x", context=CALLER)
    assert seen == [shop, None, {"a": 1}, Shop, "acme", ["ann"], entered, entered]


async def test_deps_that_cannot_be_made_fail_the_call_and_are_tried_again() -> None:
    tried = []

    async def deps(ctx: ToolContext) -> str:
        tried.append(ctx.scope)
        if len(tried) < 2:
            raise ConnectionError("no database")
        return "db"

    agent = Agent(
        engine(calls(("told", "{}")), calls(("told", "{}")), "done"), tools=[told], deps=deps, max_tool_retries=0
    )
    result = await agent.run("x", context=CALLER)
    first, second = (each.text for each in result.messages if each.role == "tool")
    assert first == "ConnectionError: deps of agent agent: no database"
    assert '"deps":"db"' in second


@pytest.mark.parametrize("in_job", [False, True])
async def test_deps_call_no_tool_that_changes_something(in_job: bool) -> None:
    """Their function is called again after a failure and after each wait of the job: it wrote four mails for one call."""
    made: list[str] = []

    @tool
    async def mail(text: str) -> None:
        made.append(text)

    @tool(effect="idempotent")
    async def sign(text: str) -> None:
        made.append(text)

    @tool(effect="read")
    async def look(text: str) -> None:
        made.append("looked")
        await sign(text)

    @tool
    async def order(ctx: ToolContext, what: str) -> str:
        return f"{what} of {ctx.deps}"

    async def begins(ctx: ToolContext) -> None:
        await mail("begin")

    @contextlib.asynccontextmanager
    async def ends(ctx: ToolContext):
        with pytest.raises(UserError, match="sign was not called"):
            await look("signed")  # what it calls, the function calls
        yield "db"
        await mail("end")

    async def results(deps: Any) -> list[str]:
        provider = ScriptedProvider([calls(("order", '{"what": "tea"}')), "done"])
        agent = Agent(ExecutionEngine(provider), tools=[order], deps=deps, name="clerk", max_tool_retries=0)
        if in_job:
            async with RuntimeKernel.create(agent=agent) as kernel:
                await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
        else:
            await agent.run("x")
        return [each.text for each in provider.requests[-1].messages if each.role == "tool"]

    (refused,) = await results(begins)
    assert "mail was not called: deps= of agent clerk may be called again" in refused
    assert (await results(ends), made) == (["tea of db"], ["looked"])


def test_a_function_of_deps_that_cannot_work_is_refused_when_the_agent_is_made() -> None:
    """The model was told of the TypeError, and of generators tools got the generator."""

    async def pieces(ctx: ToolContext) -> Any:
        yield "db"

    @contextlib.contextmanager
    def sync(ctx: ToolContext) -> Any:
        yield "db"

    for yields in (pieces, sync, partial(pieces)):
        with pytest.raises(UserError, match="yields, and tools would get a generator") as refused:
            Agent(engine(), deps=yields)
        assert "contextlib.asynccontextmanager" in (refused.value.hint or "")
    wrong: list[Any] = [lambda: "db", lambda ctx, more: "db", partial(lambda *, ctx: "db")]
    for takes in wrong:
        with pytest.raises(UserError, match=r"agent agent: deps=.* does not take one ToolContext"):
            Agent(engine(), deps=takes)


async def test_deps_whose_function_is_cancelled_within_fail_the_call() -> None:
    """The call waited for ever."""

    async def deps(ctx: ToolContext) -> str:
        raise asyncio.CancelledError("by a library")

    def agent() -> Agent[Any, Any]:
        return Agent(engine(calls(("told", "{}")), "done"), tools=[told], deps=deps, max_tool_retries=0, name="clerk")

    alone, in_job = agent(), agent()
    await alone.run("x")
    async with RuntimeKernel.create(agent=in_job) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    for each in (alone, in_job):
        text = each.engine.provider.requests[1].messages[-1].text  # type: ignore[attr-defined]
        assert text == "CancelledError: deps of agent clerk: what makes them was cancelled"


@pytest.mark.parametrize("in_job", [False, True])
async def test_deps_that_are_slower_than_a_call_may_take_are_made_once_for_the_next_call(in_job: bool) -> None:
    """Each call opened them anew, and none had them."""
    said: list[str] = []
    opened = asyncio.Event()

    @contextlib.asynccontextmanager
    async def deps(ctx: ToolContext):
        said.append("begin")
        await opened.wait()
        yield "db"
        said.append("closed")

    @tool(effect="read", timeout="20ms")
    async def look(ctx: ToolContext[str]) -> str:
        return ctx.deps

    @tool(effect="read")
    async def wait(ctx: ToolContext[str]) -> str:
        return ctx.deps

    @tool(effect="read")
    async def let() -> None:
        opened.set()

    asked = [calls(("look", "{}"), ("look", "{}")), calls(("wait", "{}"), ("let", "{}"))]
    agent = Agent(engine(*asked, "done"), tools=[look, wait, let], deps=deps, max_tool_retries=0)
    if in_job:
        async with RuntimeKernel.create(agent=agent) as kernel:
            await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    else:
        await agent.run("x")
    sent = agent.engine.provider.requests[-1].messages  # type: ignore[attr-defined]
    late, _, made, _ = (each.text for each in sent if each.role == "tool")
    assert (made, said) == ("db", ["begin", "closed"])
    assert "deps of agent agent were not made within timeout=0.02s" in late if in_job else "0.02 s" in late


async def test_the_end_of_a_run_cancels_deps_that_are_not_made_yet() -> None:
    begun, said = asyncio.Event(), []

    async def deps(ctx: ToolContext) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            said.append("cancelled")

    agent = Agent(engine(calls(("told", "{}")), "done"), tools=[told], deps=deps)
    running = asyncio.create_task(agent.run("x"))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(60):
            await running
    assert said == ["cancelled"]


async def test_an_agent_that_is_a_tool_has_its_own_deps() -> None:
    seen: list[str] = []

    @tool(effect="read")
    async def look(ctx: ToolContext[str]) -> str:
        seen.append(ctx.deps)
        return "ok"

    def both() -> Agent[str, Any]:
        inner = Agent(engine(calls(("look", "{}")), "inner"), tools=[look], deps="of inner", name="inner")
        answers = calls(("look", "{}"), ("inner", '{"prompt": "go"}')), "outer"
        return Agent(engine(*answers), tools=[look, inner], deps="of outer", max_concurrent_tools=1)

    await both().run("x")
    async with RuntimeKernel.create(agent=both()) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert sorted(seen) == 2 * ["of inner"] + 2 * ["of outer"]


# -- in a job ---------------------------------------------------------------------------------------------------------


async def test_a_job_tells_its_tools_the_request() -> None:
    answered = engine(calls(("told", "{}")), "done")
    agent = Agent(answered, tools=[told], deps="shop")
    async with RuntimeKernel.create(agent=agent) as kernel:
        request = ExecutionRequest(
            prompt="Where?", scope_id="acme", principal_id="ann", session_id="s-1", metadata={"channel": ["web"]}
        )
        handle = await kernel.execute(request)
        await handle.result()
    said = answered.provider.requests[1].messages[-1].text
    for part in (
        '"scope":"acme"',
        '"principal":"ann"',
        '"session":"s-1"',
        f'"job":"{handle.job_id}"',
        '"message":"Where?"',
        '"metadata":{"channel":["web"]}',
        '"deps":"shop"',
    ):
        assert part in said.replace(": ", ":").replace(", ", ",")


async def test_an_agent_of_an_app_tells_its_tools_the_record_and_whom_it_serves(memory_url: str) -> None:
    """Each such call failed: "the metadata of the job cannot be copied"."""
    seen: list[Any] = []

    @tool
    async def look(ctx: ToolContext) -> None:
        seen.append((ctx.scope, ctx.principal, ctx.session, ctx.message["order"], dict(ctx.metadata), ctx.deps))

    app, broker = App("desk", memory_url, state="memory", journal="memory"), MemoryBroker.get(memory_url)
    asked: dict[str, Any] = {"key": "order", "scope": "tenant", "principal": "user"}
    app.llm_agent("asked", engine(calls(("look", "{}")), "done"), tools=[look], deps="db", sink="out", **asked)

    @app.agent("called", durable=True, sink="out", **asked)
    async def called(ctx: DurableContext) -> str:
        await ctx.call(look)
        return "done"

    async with started(app):
        for topic in ("asked", "called"):
            broker.publish(topic, [{"order": "o-1", "tenant": "acme", "user": "ann", "text": "Where?"}])
        await until(lambda: len(broker.records("out")) == 2)
    both = {(f"desk.{name}/o-1", deps) for name, deps in (("agent", "db"), ("called", None))}
    assert {(session, deps) for _, _, session, *_, deps in seen} == both
    assert {each[:2] + each[3:4] for each in seen} == {("acme", "ann", "o-1")}
    assert [each[4] for each in seen] == [{}, {}]


async def test_the_function_of_a_job_leaves_the_context_out() -> None:
    seen = []

    @tool
    async def pay(ctx: ToolContext, order: str, amount: int = 5) -> str:
        seen.append((ctx.scope, dict(ctx.message), order, amount, ctx.effect.key, ctx.effect.attempt))
        ctx.message["order"] = "changed by the tool"
        return order

    async def job(ctx):
        first = await ctx.call(pay, "o-1")
        second = await ctx.call(pay, order="o-2", amount=7)
        third = await ctx.step(lambda ctx2: 3, 1)
        return [first, second, third, ctx.message]

    async with RuntimeKernel.create(agent=job) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt={"order": "o-1"}, scope_id="acme"))
        result = await handle.result()
    assert result.output == ["o-1", "o-2", 3, {"order": "o-1"}]
    assert [each[:4] for each in seen] == [("acme", {"order": "o-1"}, "o-1", 5), ("acme", {"order": "o-1"}, "o-2", 7)]
    assert len({each[4] for each in seen}) == 2


@dataclass
class Till:
    open: bool = True


@pytest.mark.parametrize(
    ("kind", "wants"),
    [
        (ToolContext[Till], True),
        (Annotated[ToolContext[Till], "for a reader"], True),
        (ToolContext[Till] | None, True),
        ("ToolContext[Till]", True),
        ("ToolContext['NotThere']", True),
        ("ToolContext[NotThere]", True),
        (ToolContext, False),
        (ToolContext[Any], False),
        (ToolContext[None], False),
        (ToolContext[Till | None], False),
        (ToolContext[Optional[Till]], False),  # noqa: UP045
        ("ToolContext[NotThere | None]", False),
        ("ToolContext[Optional[NotThere]]", False),
        ("ToolContext", False),
    ],
)
async def test_a_tool_that_needs_deps_is_not_called_where_nobody_gives_them(kind: Any, wants: bool) -> None:
    """`ctx.deps` was None in the function of a job, and the tool failed with an AttributeError, or used None."""
    seen = list[Any]()

    async def look(ctx: Any, order: str) -> str:
        seen.append(ctx.deps)
        return order

    look.__annotations__["ctx"] = kind
    looks = tool(effect="read")(look)

    async def calls_it(ctx: DurableContext) -> Any:
        return await ctx.call(looks, "o-1")

    model = engine(calls(("look", '{"order": "o-1"}')), "done", "done")
    async with RuntimeKernel.create(agent=calls_it) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        if wants:
            said = r"its ctx is a ToolContext\[(Till|'?NotThere'?)\], and nobody gives deps"
            with pytest.raises(EffectError, match=f"UserError: tool look: {said} .only Agent"):
                await handle.result()
            with pytest.raises(UserError, match=f"tool look: {said} .Agent"):
                Agent(model, tools=[looks])
            with pytest.raises(UserError, match=f"agent .*instructions: {said}"):
                Agent(model, instructions=looks.func.__wrapped__)
        else:
            assert (await handle.result()).output == "o-1"
            await Agent(model, tools=[looks]).run("go")
            assert seen == [None, None]
    assert wants == (seen == [])
    await Agent(engine(calls(("look", '{"order": "o-1"}')), "done"), tools=[looks], deps=Till()).run("go")
    assert seen[-1] == Till()


async def test_a_context_that_the_function_of_a_job_gives_is_refused() -> None:
    """The context was taken for the order, the order for the amount, and the call was made."""
    made: list[Any] = []

    @tool
    async def pay(ctx: ToolContext, order: Any, amount: Any = 5) -> None:
        made.append((order, amount))

    async def job(ctx):
        own, refused = ToolContext(principal="boss"), []
        for called in (
            lambda: ctx.call(pay, own, "o-1"),
            lambda: ctx.call(pay, "o-1", ctx=own),
            lambda: ctx.step(pay, own, "o-1"),
        ):
            with pytest.raises(
                UserError, match="pay was called with its ctx: ToolContext, which the job gives"
            ) as error:
                await called()
            refused.append(error.value.hint)
        return refused

    async with RuntimeKernel.create(agent=job) as kernel:
        result = await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert (result.output, made) == (3 * ["leave it out: await ctx.call(pay, …) with the other arguments"], [])


def judge_small(judged: list[dict[str, Any]]) -> PolicyEngine:
    def small(call: GuardedCall) -> Decision | None:
        if call.kind != "tool":
            return None
        judged.append(dict(call.arguments))
        return Decision.DENY if call.arguments.get("amount", 0) > 10 else None

    return PolicyEngine([small])


async def test_rules_see_the_arguments_and_not_the_context() -> None:
    judged: list[dict[str, Any]] = []
    shop = Shop()
    asked = calls(("refund", '{"order": "o-1"}'), ("refund", '{"order": "o-2", "amount": 500}'))
    agent = Agent(engine(asked, "done"), tools=[refund], deps=shop)
    async with RuntimeKernel.create(agent=agent, policy=judge_small(judged)) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert judged == [{"order": "o-1", "amount": 5}, {"order": "o-2", "amount": 500}]
    assert [each[3:5] for each in shop.paid] == [("o-1", 5)]


async def test_a_tool_that_calls_another_one_gives_its_context_and_rules_hold() -> None:
    judged: list[dict[str, Any]] = []
    shop, seen = Shop(), []

    @tool
    async def refund_all(ctx: ToolContext[Shop], amount: int) -> str:
        with pytest.raises(UserError, match="without its ctx"):
            await refund("o-1", amount)
        try:
            return await refund(ctx, "o-1", amount=amount)
        except PolicyDenied as error:
            seen.append(error.message)
            return "denied"

    asked = calls(("refund_all", '{"amount": 5}'), ("refund_all", '{"amount": 10}'))
    agent = Agent(engine(asked, "done"), tools=[refund_all], deps=shop, max_concurrent_tools=1)
    async with RuntimeKernel.create(agent=agent, policy=judge_small(judged)) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x", scope_id="acme"))).result()
    assert {"order": "o-1", "amount": 10} in judged
    assert [each[:5] for each in shop.paid] == [("acme", "", "", "o-1", 5), ("acme", "", "", "o-1", 10)]


async def test_a_job_that_waits_for_a_person_has_no_deps_and_makes_them_again() -> None:
    pool, jobs = Pool(), []

    async def job(ctx: DurableContext) -> str:
        agent = Agent(engine(USE, "done"), tools=[use], deps=pool.open)
        jobs.append((await agent.run("x", effects=ctx.llm(agent.engine))).content)
        await ctx.ask("confirm", {})
        later = Agent(engine(USE, "done"), tools=[use], deps=pool.open, name="later")
        return (await later.run("y", effects=ctx.llm(later.engine))).content

    async with RuntimeKernel.create(agent=job) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x", scope_id="acme"))
        await until(lambda: kernel.statistics()["parked"] and pool.words == ["open", "closed"])
        (action,) = await handle.get_pending_actions()
        await kernel.actions.resolve(action.resume_token, {"approved": True})
        assert (await handle.result()).output == "done"
        await until(lambda: pool.words == 2 * ["open", "closed"], "the end of the job closes them")
    assert pool.said[0][1:3] == ("acme", True)
    assert all(pool.said[at][-1] is pool.said[at + 1][-1] for at in (0, 2))


async def test_the_end_of_a_kernel_closes_the_deps_of_its_open_jobs() -> None:
    pool, hangs = Pool(), asyncio.Event()

    @tool
    async def hang(ctx: ToolContext[Pool]) -> None:
        hangs.set()
        await asyncio.Event().wait()

    agent = Agent(engine(calls(("hang", "{}"))), tools=[hang], deps=pool.open)
    async with RuntimeKernel.create(agent=agent, stop_grace=0) as kernel:
        await kernel.execute(ExecutionRequest(prompt="x"))
        await hangs.wait()
        assert pool.words == ["open"]
    assert pool.words == ["open", "closed"]


async def test_deps_that_fail_in_a_job_fail_the_call_which_was_not_made() -> None:
    tried = []

    async def deps(ctx: ToolContext) -> str:
        tried.append(ctx.job)
        if len(tried) < 3:
            raise ConnectionError("no database")
        return "db"

    answered = engine(calls(("refund2", "{}")), "done")

    @tool
    async def refund2(ctx: ToolContext[str]) -> str:
        return ctx.deps

    async with RuntimeKernel.create(agent=Agent(answered, tools=[refund2], deps=deps)) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert (len(tried), answered.provider.requests[1].messages[-1].text) == (3, "db")


async def test_reconcile_gets_the_arguments_without_the_context() -> None:
    looked, made = [], asyncio.Event()

    async def find(effect: Effect, order: str) -> bool:
        looked.append((effect.attempt, order))
        return True

    @tool(reconcile=find)
    async def pay(ctx: ToolContext, order: str) -> str:
        made.set()
        raise ConnectionResetError("who knows")

    async def job(ctx: DurableContext) -> Any:
        return await ctx.call(pay, "o-1")

    async with RuntimeKernel.create(agent=job) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="x"))).result()
    assert looked == [(1, "o-1")]


async def test_a_server_offers_no_tool_that_takes_a_context() -> None:
    with pytest.raises(UserError, match="tool told takes a ToolContext, and a call from outside has none"):
        ToolServer("shop", [told])


# -- instructions -----------------------------------------------------------------------------------------------------


async def test_instructions_may_be_a_function_of_the_context() -> None:
    def sync(ctx: ToolContext[str]) -> str:
        return f"You serve {ctx.principal} of {ctx.scope} ({ctx.deps})."

    async def later(ctx: ToolContext[str]) -> str:
        await asyncio.sleep(0)
        return sync(ctx)

    for given in (sync, later, lambda c: sync(c)):
        answered = engine("done")
        agent = Agent(answered, instructions=given, deps="gold")
        await agent.run("x", context=CALLER)
        first = answered.provider.requests[0].messages[0]
        assert (first.role, first.text) == ("system", "You serve ann of acme (gold).")
    with pytest.raises(UserError, match=r"what its function of instructions has returned=5"):
        await Agent(engine("done"), instructions=lambda ctx: 5).run("x")  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match="takes no ToolContext"):
        Agent(engine(), instructions=lambda: "x")  # type: ignore[arg-type, misc]


async def test_a_job_that_goes_on_has_the_instructions_with_which_it_began() -> None:
    home, texts = MemoryStorage(), iter(["first", "second"])

    def agent(*answers: Any) -> tuple[Agent[Any, Any], Any]:
        answered = engine(*answers)

        async def job(ctx: DurableContext) -> str:
            talker = Agent(answered, instructions=lambda c: f"{next(texts)} {c.scope}", name="talker")
            await talker.run("one", effects=ctx.llm(answered))
            await ctx.ask("confirm", {})
            return (await talker.run("two", effects=ctx.llm(answered))).content

        return job, answered.provider

    job, before = agent("1")
    async with RuntimeKernel.create(agent=job, journal=home) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x", scope_id="acme"))
        await until(lambda: kernel.statistics()["parked"])
    job, after = agent("2")
    async with RuntimeKernel.create(agent=job, journal=home) as kernel:
        [handle] = await kernel.resume()
        (action,) = await handle.get_pending_actions()
        await kernel.actions.resolve(action.resume_token, {"approved": True})
        await handle.result()
    assert [each.messages[0].text for each in before.requests] == ["first acme"]
    assert [each.messages[0].text for each in after.requests] == ["second acme"]


async def test_a_tool_that_is_called_again_gives_the_calls_of_its_agent_their_keys_again() -> None:
    """The second attempt paid with other keys, so the service paid twice."""
    keys: list[list[str]] = []

    @tool(effect="idempotent")
    async def wire(order: str, effect: Effect) -> str:
        keys[-1].append(effect.key)
        return "sent"

    @tool(effect="idempotent")
    def pay(ctx: ToolContext, order: str) -> str:
        keys[-1].append(ctx.effect.key)
        return "paid"

    @tool(effect="idempotent", retries=2)
    async def payroll(month: str) -> str:
        keys.append([])
        order = '{"order": "o-1"}'
        asked = calls(("wire", order), ("wire", order), ("pay", order)), calls(("wire", '{"order": "o-2"}')), "done"
        await asyncio.gather(*(Agent(engine(*asked), tools=[wire, pay]).run("Pay.") for _ in range(2)))
        pay(ToolContext(principal="ann"), "o-1")
        if len(keys) == 1:
            raise ConnectionResetError("lost")
        return "done"

    async def job(ctx):
        return [await ctx.call(payroll, "May"), await ctx.call(payroll, "May")]

    async with RuntimeKernel.create(agent=job) as kernel:
        assert (await (await kernel.execute(ExecutionRequest(prompt="x"))).result()).output == ["done", "done"]
    first, again, other = map(set, keys)
    assert (first, len(first), len(keys[0])) == (again, 9, 9)
    assert len(other) == 9
    assert not first & other


async def test_calls_of_a_tool_that_gets_the_context_of_another_one_have_keys_of_their_own() -> None:
    """Two payments of one trip had the key of the trip, so the service dropped the second one as a repetition."""
    keys: list[str] = []

    @tool(effect="idempotent")
    async def charge(ctx: ToolContext, card: str, cents: int) -> None:
        keys.append(ctx.effect.key)

    @tool(effect="idempotent", retries=1, backoff=0)
    async def trip(ctx: ToolContext) -> None:
        for card in ["a", "b"] if ctx.effect.attempt == 1 else ["b", "a"]:
            await charge(ctx, card, 5)
        await charge(ctx, "a", 5)
        keys.append(ctx.effect.key)
        if ctx.effect.attempt == 1:
            raise ConnectionResetError("behind the payments")

    async def f(ctx: DurableContext) -> None:
        await ctx.call(trip)

    async with RuntimeKernel.create(agent=f) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    a, b, again, own = keys[:4]
    assert len({a, b, again, own}) == 4
    assert keys[4:] == [b, a, again, own], "another attempt has the same keys"
    await charge(ToolContext(), "a", 5)
    await charge(ToolContext(), "a", 5)
    assert len(set(keys)) == 6, "calls of a program"
    await charge(ToolContext(effect=Effect(EffectId("j", 1), "chosen", 1, None)), "a", 5)
    assert keys[-1] == "chosen"


async def test_calls_to_which_a_tool_gives_on_its_effect_have_keys_of_their_own() -> None:
    """Two payments of one trip, and what each of them called, had the key of the trip."""
    keys: list[str] = []

    @tool(effect="idempotent")
    def book(card: str, effect: Effect) -> None:
        keys.append(effect.key)

    @tool(effect="idempotent")
    async def charge(card: str, effect: Effect) -> None:
        keys.append(effect.key)
        book(card, effect)

    @tool(effect="idempotent", retries=1, backoff=0)
    async def trip(effect: Effect) -> None:
        for card in ["a", "b"] if effect.attempt == 1 else ["b", "a"]:
            await charge(card, effect=effect)
        await charge("a", effect)
        keys.append(effect.key)
        if effect.attempt == 1:
            raise ConnectionResetError("behind the payments")
        await charge("a", Effect(effect.id, "chosen", 1, None))

    async def f(ctx: DurableContext) -> None:
        await ctx.call(trip)

    async with RuntimeKernel.create(agent=f) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    first, second = keys[:7], keys[7:14]
    assert len(set(first)) == 7
    assert second == [*first[2:4], *first[:2], *first[4:]], "another attempt has the same keys"
    assert keys[14:] == ["chosen", "chosen"]
