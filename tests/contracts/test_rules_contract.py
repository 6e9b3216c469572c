"""A rule holds wherever a tool is called, or the call is refused with what to do.

Each cell is a surface (where the call is made), a way of calling, and a rule. The tool has a witness: it was not called
when the rule says no, and once when nothing does. Doors are planted, and found by the same cells.
"""

import asyncio
import contextlib
import functools
import json
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pyarrow as pa
import pydantic
import pytest

from sabot import App, Batch, Overloaded, RowErrors, Sink, Source, files, lit
from sabot.agents import (
    AgentPolicy,
    BudgetSpec,
    ConstraintPolicy,
    Decision,
    ExecutionRequest,
    GuardedCall,
    InMemoryEventBus,
    LabelPolicy,
    ModelPolicy,
    OperatorContext,
    PolicyEngine,
    PolicyRule,
    RedactionPolicy,
    RuntimeEvent,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.connectors import Bounded
from sabot.connectors.base import Positions
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls.tools import Tool
from sabot.errors import EffectError, NotSent, SabotError, UserError
from sabot.jobs import loop as job_loop
from sabot.jobs.judges import GuardJudge
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant, tool
from sabot.llm.direct import DirectTools
from sabot.mcp import McpServerPool, ToolServer
from sabot.testing import ListSink
from tools.agent_tools import started, until

MUCH = {"amount": 500}


class Desk:
    """The tools of one cell, and their witness: `made` gets the order of each call. `run` is an llm agent that calls `refund` once."""

    def __init__(self, made: list[str] | None = None) -> None:
        made = [] if made is None else made
        self.made = made

        @tool
        async def refund(order: str, amount: int = 10) -> str:
            """Pays money back."""
            made.append(order)
            return "paid"

        @tool(name="refund")
        def refund_in_thread(order: str, amount: int = 10) -> str:
            """Pays money back."""
            made.append(order)
            return "paid"

        class Till:
            @tool
            def refund(self, order: str, amount: int = 10) -> str:
                """Pays money back."""
                made.append(order)
                return "paid"

        @functools.wraps(refund_in_thread.func)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return refund_in_thread(*args, **kwargs)

        self.refund, self.sync, self.till, self.wrapped = refund, refund_in_thread, Till(), wrapped
        self.engine = ExecutionEngine(ScriptedProvider(_answer, model="m"), retries=0, patience=0)
        self.worker = Agent(self.engine, name="worker", tools=[refund])
        self.lead = Agent(self.engine, name="lead", tools=[self.worker])


def _answer(spec: Any) -> Any:
    last = spec.messages[-1]
    if last.role == "tool":
        return last.text
    name = spec.tools[0].name
    given = '{"order": "o-1", "amount": 500}' if name == "refund" else '{"prompt": "pay"}'
    return assistant("", ToolCall("1", name, given))


async def _ran(agent: Agent, **options: Any) -> str:
    return (await agent.run("pay", **options)).content


async def _gathered(desk: Desk) -> Any:
    return await asyncio.gather(desk.refund("o-1", **MUCH))


SYNC: Mapping[str, Callable[[Desk], Any]] = {
    "plain": lambda desk: desk.sync("o-1", **MUCH),
    "partial": lambda desk: functools.partial(desk.sync, "o-1", **MUCH)(),
    "method": lambda desk: desk.till.refund("o-1", **MUCH),
    "wrapper": lambda desk: desk.wrapped("o-1", **MUCH),
}
ASYNC: Mapping[str, Callable[[Desk], Awaitable[Any]]] = {
    "awaited": lambda desk: desk.refund("o-1", **MUCH),
    "awaited partial": lambda desk: functools.partial(desk.refund, "o-1", **MUCH)(),
    "gather": lambda desk: _gathered(desk),
    "to_thread": lambda desk: asyncio.to_thread(desk.sync, "o-1", **MUCH),
    "agent.run": lambda desk: _ran(desk.worker),
    "agent as tool": lambda desk: _ran(desk.lead),
    "flow": lambda desk: OperatorContext.of(None).call(desk.refund, order="o-1", **MUCH),
}
WAYS = [*SYNC, *ASYNC]


async def call(way: str, desk: Desk) -> Any:
    return SYNC[way](desk) if way in SYNC else await ASYNC[way](desk)


RULES: Mapping[str, PolicyEngine | None] = {
    "none": None,
    "denied": PolicyEngine([ToolPolicy(["refund"], denied=True)]),
    "bound": PolicyEngine([ConstraintPolicy(["refund"], "amount", max=50)]),
    "approval": PolicyEngine([ToolPolicy(["refu*"], require_approval=True)]),
}
SAYS = {
    "denied": "rule ToolPolicy refund",
    "bound": "amount is 500, and at most 50 is allowed",
    "approval": "a person would have to allow it",
    "budget": "the job may call tools 1 times",
    "agent denied": "tool worker is denied",
    "agents denied": "rule AgentPolicy work*",
    "agent's argument": "prompt is 'pay', and a length of at most 2 is allowed",
    "agent's approval": "a person would have to allow it",
    "agent not allowed": "no rule allows tool worker",
}
AGENT_RULES: Mapping[str, PolicyEngine] = {  # about the agent that is a tool of another one
    "agent denied": PolicyEngine([ToolPolicy(["worker"], denied=True)]),
    "agents denied": PolicyEngine([AgentPolicy(["work*"], denied=True)]),
    "agent's argument": PolicyEngine([ConstraintPolicy(["worker"], "prompt", max_length=2)]),
    "agent's approval": PolicyEngine([ToolPolicy(["work*"], require_approval=True)]),
    "agent not allowed": PolicyEngine([ModelPolicy(["*"]), ToolPolicy(["[!w]*"])], default="deny"),
}
ALL_RULES = {**RULES, **AGENT_RULES}
REFUSALS = ("await ctx.call(refund, …)", "ctx.llm(engine)", "asyncio.to_thread", "OperatorContext.of(ctx)")


@dataclass
class Seen:
    """What was seen of a cell: the calls of the tool, and the result or the error with its hint."""

    made: int
    said: str
    asked: bool = False
    failed: bool = False

    def check(self, cell: str, rule: str, *, refused: bool = False) -> None:
        if rule == "none" and not refused:
            assert (self.made, "paid" in self.said) == (1, True), f"{cell}: {self}"
            return
        assert self.made == 0, f"{cell}: the tool was called: {self}"
        words = REFUSALS if refused else (SAYS[rule],)
        assert self.asked or any(each in self.said for each in words), f"{cell}: {self}"


def words_of(error: BaseException) -> str:
    hint = error.hint if isinstance(error, SabotError) else ""
    return f"{type(error).__name__}: {error} {hint or ''}"


async def said(call: Awaitable[Any]) -> str:
    try:
        return str(await call)
    except Exception as error:
        return words_of(error)


# -- jobs ---------------------------------------------------------------------------------------------------------------

Place = Callable[[Any, Desk, str], Awaitable[Any]]


async def _in_step(ctx: Any, desk: Desk, way: str) -> Any:
    async def pays() -> Any:
        return await call(way, desk)

    return await ctx.step(pays)


async def _in_lambda(ctx: Any, desk: Desk, way: str) -> Any:
    return await ctx.step(lambda: SYNC[way](desk) if way in SYNC else ASYNC[way](desk))


async def _in_tool(ctx: Any, desk: Desk, way: str) -> Any:
    @tool
    async def desk_work() -> Any:
        return await call(way, desk)

    return await ctx.call(desk_work)


async def _in_tool_of_tool(ctx: Any, desk: Desk, way: str) -> Any:
    @tool
    async def inner() -> Any:
        return await call(way, desk)

    @tool
    async def outer() -> Any:
        return await inner()

    return await ctx.call(outer)


async def _in_function(ctx: Any, desk: Desk, way: str) -> Any:
    return await call(way, desk)


async def _in_gathered_function(ctx: Any, desk: Desk, way: str) -> Any:
    async def pays() -> Any:
        return await call(way, desk)

    return await asyncio.create_task(pays())


EFFECTS: Mapping[str, Place] = {
    "step": _in_step,
    "lambda": _in_lambda,
    "tool": _in_tool,
    "tool of a tool": _in_tool_of_tool,
}
FUNCTIONS: Mapping[str, Place] = {"function": _in_function, "task of a function": _in_gathered_function}

RECORDED: Mapping[str, Callable[[Any, Desk], Awaitable[Any]]] = {
    "ctx.call": lambda ctx, desk: ctx.call(desk.refund, "o-1", **MUCH),
    "ctx.call of a def": lambda ctx, desk: ctx.call(desk.sync, "o-1", **MUCH),
    "ctx.call of a method": lambda ctx, desk: ctx.call(desk.till.refund, "o-1", **MUCH),
    "ctx.step(tool)": lambda ctx, desk: ctx.step(desk.refund, "o-1", **MUCH),
    "agent.run(effects=)": lambda ctx, desk: _ran(desk.worker, effects=ctx.llm(desk.engine)),
    "agent as tool(effects=)": lambda ctx, desk: _ran(desk.lead, effects=ctx.llm(desk.engine)),
    "flow": lambda ctx, desk: OperatorContext.of(ctx).call(desk.refund, order="o-1", **MUCH),
}


async def in_job(
    job: Callable[[Any, Desk], Awaitable[Any]], rule: str, *, child: bool = False, budgets: BudgetSpec | None = None
) -> Seen:
    desk = Desk()

    async def work(ctx: Any) -> str:
        return await said(job(ctx, desk))

    async def lead(ctx: Any) -> Any:
        return await ctx.child(work, "go")

    agents = [lead, work] if child else [work]
    async with RuntimeKernel.create(agent=agents, policy=ALL_RULES[rule]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go", budgets=budgets))
        result = asyncio.ensure_future(handle.result())
        while not result.done():
            if await kernel.actions.find():
                result.cancel()
                return Seen(len(desk.made), "", asked=True)
            await asyncio.wait([result], timeout=0.02)
        words = await said(_content(result))
        return Seen(len(desk.made), words, failed=result.exception() is not None)


async def _content(result: Awaitable[Any]) -> Any:
    return (await result).content


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", [*EFFECTS, *FUNCTIONS])
async def test_a_rule_holds_for_what_a_job_calls_by_itself(place: str, rule: str) -> None:
    job, refused = {**EFFECTS, **FUNCTIONS}[place], place in FUNCTIONS
    for way, seen in (await _all_ways(job, rule)).items():
        seen.check(f"{place}, {way}, {rule}", rule, refused=refused)
        assert seen.failed is refused, f"{place}, {way}: a job does not go on without a call that its function makes"


async def _all_ways(job: Place, rule: str, **options: Any) -> dict[str, Seen]:
    jobs = [in_job(lambda ctx, desk, way=way: job(ctx, desk, way), rule, **options) for way in WAYS]
    return dict(zip(WAYS, await asyncio.gather(*jobs), strict=True))


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_holds_for_the_calls_that_a_journal_records(rule: str) -> None:
    found = await asyncio.gather(*(in_job(way, rule) for way in RECORDED.values()))
    for way, seen in zip(RECORDED, found, strict=True):
        seen.check(f"{way}, {rule}", rule)
        assert rule != "approval" or seen.asked, "an effect of a job asks the person"


@pytest.mark.parametrize("rule", AGENT_RULES)
async def test_a_rule_holds_for_an_agent_that_is_a_tool_of_another_one(rule: str) -> None:
    places = {**EFFECTS, "recorded": lambda ctx, desk, way: RECORDED["agent as tool(effects=)"](ctx, desk)}
    cells = [(name, child) for name in places for child in (False, True)]
    jobs = [
        in_job(lambda ctx, desk, job=places[name]: job(ctx, desk, "agent as tool"), rule, child=child)
        for name, child in cells
    ]
    for cell, seen in zip(cells, await asyncio.gather(*jobs), strict=True):
        seen.check(f"{cell}, {rule}", rule)
        assert seen.asked is (cell[0] == "recorded" and rule == "agent's approval"), f"{cell}, {rule}: {seen}"


@pytest.mark.parametrize("place", ["step", "function"])
async def test_a_rule_holds_in_a_child(place: str) -> None:
    job = {**EFFECTS, **FUNCTIONS}[place]
    for way, seen in (await _all_ways(job, "denied", child=True)).items():
        seen.check(f"child, {place}, {way}", "denied", refused=place == "function")


@pytest.mark.parametrize("place", EFFECTS)
async def test_calls_within_tools_count_in_the_budget_of_a_job(place: str) -> None:
    most = BudgetSpec(max_tool_calls=1)  # the tool around the call is the first one
    for way, seen in (await _all_ways(EFFECTS[place], "none", budgets=most)).items():
        assert seen.made == 0, f"{place}, {way}: {seen}"
        assert SAYS["budget"] in seen.said, f"{place}, {way}: {seen}"


@pytest.mark.parametrize("rule", ["none", "denied"])
@pytest.mark.parametrize("effect", ["read", "local", "idempotent", "metered", "unsafe"])
async def test_a_tool_that_is_repeated_calls_none_that_must_not_be(effect: str, rule: str) -> None:
    async def job(ctx: Any, desk: Desk, way: str) -> Any:
        async def pays() -> Any:
            return await call(way, desk)

        return await ctx.step(pays, effect=effect)

    for way, seen in (await _all_ways(job, rule)).items():
        if effect == "unsafe":
            seen.check(f"{effect}, {way}", rule)
        else:
            assert seen.made == 0, f"{effect}, {way}: {seen}"
            assert f"whose class '{effect}' allows to repeat it" in seen.said, f"{effect}, {way}: {seen}"


async def test_in_an_app_without_rules_a_tool_that_is_repeated_calls_none_that_must_not_be(memory_url: str) -> None:
    """A kernel has the limits of its jobs; an app may have nothing that judges calls."""
    desks, said_of = {way: Desk() for way in WAYS}, dict[str, str]()
    app = App("shop", memory_url, journal="memory", state="memory")

    @app.agent("ways", durable=True)
    async def handle(ctx: Any) -> None:
        way = ctx.message["way"]

        async def pays() -> Any:
            return await call(way, desks[way])

        said_of[way] = await said(ctx.step(pays, effect="read"))

    async with started(app):
        MemoryBroker.get(memory_url).publish("ways", [{"way": way} for way in WAYS])
        await until(lambda: len(said_of) == len(WAYS))
    for way, words in said_of.items():
        assert "whose class 'read' allows to repeat it" in words, f"{way}: {words}"
        assert desks[way].made == []


@pytest.mark.parametrize("rule", ["none", "bound"])
@pytest.mark.parametrize("effect", ["read", "local", "metered", "idempotent"])
async def test_a_tool_that_changes_nothing_calls_none_that_is_made_once_by_its_key(effect: str, rule: str) -> None:
    """A job that is restored repeats a read, and the payment within it had another key then: it was made twice."""

    made: list[str] = []

    @tool(name="refund", effect="idempotent")
    async def put(order: str, amount: int) -> str:
        made.append(order)
        return "paid"

    @tool(name="refund", effect="idempotent")
    def put_in_thread(order: str, amount: int) -> str:
        made.append(order)
        return "paid"

    agent = Agent(ExecutionEngine(ScriptedProvider(_answer, model="m"), retries=0), name="worker", tools=[put])
    ways: list[Callable[[], Any]] = [
        lambda: put("o-1", **MUCH),
        lambda: asyncio.to_thread(put_in_thread, "o-1", **MUCH),
        lambda: _ran(agent),
    ]

    async def job(ctx: Any, desk: Desk) -> Any:
        async def pays(number: int) -> Any:
            return str(await ways[number]())

        return "; ".join([await said(ctx.step(pays, number, effect=effect)) for number in range(len(ways))])

    seen = await in_job(job, rule)
    refused = seen.said.count("it would be repeated with another idempotency key")
    paid = ["o-1"] * 3 if (effect, rule) == ("idempotent", "none") else []
    assert (refused, made) == (0 if effect == "idempotent" else len(ways), paid), seen.said


async def test_a_step_declares_no_weaker_class_than_its_tool() -> None:
    async def job(ctx: Any, desk: Desk) -> Any:
        return await ctx.step(desk.refund, "o-1", effect="read")

    seen = await in_job(job, "none")
    seen.check("ctx.step(tool, effect=read)", "none", refused=True)


async def test_a_step_does_not_declare_that_a_tool_with_a_key_changes_nothing() -> None:
    @tool(effect="idempotent")
    async def put(order: str) -> str:
        raise AssertionError(order)

    async def job(ctx: Any, desk: Desk) -> Any:
        return await ctx.step(put, "o-1", effect="read")

    assert "declared 'idempotent', so every call of it changes something" in (await in_job(job, "none")).said


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", ["step", "function", "an agent in a step", "an agent without jobs"])
async def test_a_rule_holds_for_the_tool_of_a_server_that_is_called_plainly(
    place: str, rule: str, memory_url: str
) -> None:
    desk, words = Desk(), list[str]()
    async with McpServerPool() as pool:
        pool.add("shop", connect=ToolServer("shop", [desk.refund]).connect)
        (remote,) = await pool.tools("shop")
        agent = Agent(desk.engine, name="worker", tools=[remote])

        async def pays() -> Any:
            return await _ran(agent) if "agent" in place else (await remote(order="o-1", **MUCH)).text

        async def work(ctx: Any) -> None:
            words.append(await said(ctx.step(pays) if "step" in place else pays()))

        if place == "an agent without jobs":
            app = App("shop", memory_url, **({} if RULES[rule] is None else {"policy": RULES[rule]}))
            app.agent("orders")(work)
            MemoryBroker.get(memory_url).publish("orders", [{"order": 1}])
            if rule == "approval":
                with pytest.raises(UserError, match="can call, and that agent has no jobs, so nobody can be asked"):
                    await app.start()
                return
            async with started(app):
                await until(lambda: words)
        else:
            async with RuntimeKernel.create(agent=work, policy=RULES[rule]) as kernel:
                handle = await kernel.execute(ExecutionRequest(prompt="go"))
                await asyncio.wait([asyncio.ensure_future(handle.result())])
    Seen(len(desk.made), words[0]).check(f"MCP tool, {place}, {rule}", rule, refused=place == "function")


@pytest.mark.parametrize("caught", [True, False])
async def test_no_run_of_a_function_sends_a_record_of_the_app(caught: bool, memory_url: str) -> None:
    app = App("shop", memory_url, journal="memory", state="memory")

    @app.agent("orders", durable=True, on_error="skip")
    async def handle(ctx: Any) -> None:
        if ctx.message["step"]:
            await ctx.step(app.send, "payments", {"order": 1})
            return
        with contextlib.suppress(UserError if caught else ()):
            await app.send("payments", {"order": 0})

    broker = MemoryBroker.get(memory_url)
    async with started(app):
        broker.publish("orders", [{"step": False}, {"step": True}])
        await until(lambda: broker.records("payments") and broker.records("orders.dlq"))
    assert [each.value for each in broker.records("payments")] == [{"order": 1}]


@pytest.mark.parametrize("awaited", [True, False])
async def test_no_run_of_a_function_uses_a_session_of_a_server(awaited: bool) -> None:
    desk = Desk()
    pool = McpServerPool()
    pool.add("shop", connect=ToolServer("shop", [desk.refund]).connect)
    session = await pool.session("shop")

    async def handle(ctx: Any) -> None:
        calling = asyncio.ensure_future(session.call("refund", {"order": "o-1"}))
        if awaited:
            with contextlib.suppress(Exception):
                await calling
        for _ in range(3):
            await ctx.sleep("1s 10ms")

    async with pool, RuntimeKernel.create(agent=handle) as kernel:
        handle_ = await kernel.execute(ExecutionRequest(prompt="go"))
        with pytest.raises(EffectError, match="uses a session of an MCP server"):
            await handle_.result()
        assert desk.made == []


@pytest.mark.parametrize("way", WAYS)
async def test_no_run_of_a_function_makes_a_plain_call(way: str) -> None:
    """A function is run again behind each question, also without a crash. A job whose call was refused does not succeed
    without it, also if its function catches the error.
    """
    desk, caught = Desk(), list[str]()

    async def work(ctx: Any) -> str:
        caught.append(await said(call(way, desk)))
        await ctx.ask("confirm", {})
        return "all is well"

    async with RuntimeKernel.create(agent=work) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        with pytest.raises(EffectError) as failed:
            await handle.result()
        assert any(each in words_of(failed.value) for each in (*REFUSALS, "ctx.step")), failed.value
    assert len(caught) <= 1
    assert desk.made == []


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_a_call_that_a_function_makes_elsewhere_is_refused_and_told(
    where: str, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The call comes from the function, although it is made in another thread, or by `run_coroutine_threadsafe`."""
    desk, words, outside, over = Desk(), list[str](), asyncio.get_running_loop(), asyncio.Event()

    async def pays() -> None:
        if ends:
            await over.wait()
        words.append(await said(call("awaited", desk)))

    def in_thread() -> None:
        words.append(_tried("plain", desk))

    async def work(ctx: Any) -> str:
        if where == "loop":
            asyncio.run_coroutine_threadsafe(pays(), outside)
        else:
            thread = Thread(target=copy_context().run, args=(in_thread,))
            thread.start()
            thread.join()
        while not ends and not words:
            await ctx.sleep("1ms")
        return "all is well"

    async with RuntimeKernel.create(agent=work) as kernel:
        result = (await kernel.execute(ExecutionRequest(prompt="go"))).result()
        if ends and where == "loop":  # the job has ended before the call is made
            assert (await result).content == "all is well"
            over.set()
        else:
            with pytest.raises(EffectError, match="calls the tool refund directly"):
                await result
        await until(lambda: words)
    assert "await ctx.call(refund, …)" in words[0]
    assert "the function calls the tool refund directly" in caplog.text
    assert desk.made == []


async def test_a_call_is_made_with_the_changes_that_a_rule_requires() -> None:
    got: list[str] = []

    @tool
    async def mail(text: str) -> None:
        got.append(text)

    @tool
    def mail_in_thread(text: str) -> None:
        got.append(text)

    async def work(ctx: Any) -> None:
        await ctx.step(lambda: mail("pin 1234"))
        await ctx.step(lambda: mail_in_thread("pin 1234"))

    policy = PolicyEngine([RedactionPolicy([r"\d{4}"], tool_patterns=["mail*"])])
    async with RuntimeKernel.create(agent=work, policy=policy) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    assert got == ["pin ***", "pin ***"]


async def test_a_rule_that_takes_time_is_waited_for_or_the_call_is_refused() -> None:
    """A def on the event loop cannot wait for it."""
    desk = Desk()

    async def slow(call: GuardedCall) -> Decision | None:
        await asyncio.sleep(0)
        return Decision.DENY if call.name == "refund" and call.arguments.get("amount") == 500 else None

    async def on_loop() -> Any:
        return desk.sync("o-1")

    async def work(ctx: Any) -> list[str]:
        return [
            await said(ctx.step(lambda: desk.sync("o-1"))),
            await said(ctx.step(lambda: desk.sync("o-1", **MUCH))),
            await said(ctx.step(lambda: desk.refund("o-2"))),
            await said(ctx.step(lambda: desk.refund("o-2", **MUCH))),
            await said(ctx.step(on_loop)),
        ]

    async with RuntimeKernel.create(agent=work, policy=PolicyEngine([slow])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        paid, denied, paid_too, denied_too, refused = (await handle.result()).output
    assert (paid, paid_too, desk.made) == ("paid", "paid", ["o-1", "o-2"])
    assert "rule slow" in denied and "rule slow" in denied_too  # noqa: PT018
    assert "what decides on it takes time" in refused


async def test_arguments_that_change_while_a_rule_decides_about_them_are_not_paid() -> None:
    asked, decided, paid = asyncio.Event(), asyncio.Event(), list[dict[str, int]]()

    @tool
    async def pay(order: dict[str, int]) -> str:
        paid.append(dict(order))
        return "paid"

    async def slow(call: GuardedCall) -> None:
        if call.name == "pay":
            asked.set()
            await decided.wait()

    async def changes(change: bool) -> str:
        order = {"amount": 5}
        call = asyncio.create_task(pay(order))
        await asked.wait()
        if change:
            order["amount"] = 500
        decided.set()
        return await said(call)

    async def work(ctx: Any) -> list[str]:
        kept = await ctx.step(changes, False, effect="unsafe")
        asked.clear()
        decided.clear()
        return [kept, await ctx.step(changes, True, effect="unsafe")]

    rules = [slow, ConstraintPolicy(["pay"], "order.amount", max=50)]
    async with RuntimeKernel.create(agent=work, policy=PolicyEngine(rules)) as kernel:
        kept, changed = (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output
    assert (kept, paid) == ("paid", [{"amount": 5}])
    assert "its arguments were changed while rule slow decided about them" in changed


class Mail(pydantic.BaseModel):
    to: str
    bcc: str | None = pydantic.Field(None, exclude=True)


@dataclass
class Letter:
    to: str
    bcc: str | None = None


def without_bcc(call: GuardedCall) -> None:
    if call.name == "mail":
        call.arguments["order"].pop("bcc")


async def without_bcc_later(call: GuardedCall) -> None:
    await asyncio.sleep(0)
    without_bcc(call)


def without_the_argument(call: GuardedCall) -> None:
    if call.name == "mail":
        call.arguments.pop("order")  # type: ignore[attr-defined]


class WithoutBcc(PolicyRule):
    name = "WithoutBcc"

    def decide(self, call: GuardedCall) -> None:
        without_bcc(call)


def reads(call: GuardedCall) -> None:
    if call.name == "mail":
        deepcopy(call.arguments["order"]).pop("bcc")


CHANGING = (without_bcc, without_bcc_later, without_the_argument, WithoutBcc(), reads)


@pytest.mark.parametrize("rule", CHANGING, ids=lambda rule: getattr(rule, "__name__", "") or rule.name)
@pytest.mark.parametrize("way", ["effect", "plain", "server", "agent"])
async def test_a_rule_that_changes_the_arguments_hides_nothing_from_later_rules_and_the_tool(
    way: str, rule: Any
) -> None:
    sent: list[Any] = []
    order = {"to": "ann", "bcc": "eve"}

    @tool
    async def mail(order: dict[str, str]) -> str:
        """Sends a mail."""
        sent.append(order)
        return "sent"

    def answers(spec: Any) -> Any:
        last = spec.messages[-1]
        return last.text if last.role == "tool" else assistant("", ToolCall("1", "mail", json.dumps({"order": order})))

    engine = ExecutionEngine(ScriptedProvider(answers, model="m"), retries=0, patience=0)
    worker = Agent(engine, name="worker", tools=[mail])
    async with McpServerPool() as pool:
        pool.add("desk", connect=ToolServer("desk", [mail]).connect)
        (remote,) = await pool.tools("desk")

        async def plainly() -> str:
            return await said(mail(dict(order)))

        async def work(ctx: Any) -> str:
            if way == "effect":
                return await said(ctx.call(mail, dict(order)))
            if way == "server":
                return await said(ctx.call(remote, order=dict(order)))
            if way == "agent":
                return await said(worker.run("mail", effects=ctx.llm(engine)))
            return str(await ctx.step(plainly, effect="unsafe"))

        policy = PolicyEngine([rule, ConstraintPolicy(["mail"], "order.bcc", allowed=["eve"])])
        async with RuntimeKernel.create(agent=work, policy=policy) as kernel:
            found = (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output
    if rule is reads:
        assert (sent, "sent" in found) == ([order], True)
    else:
        assert sent == []
        name = getattr(rule, "__name__", "") or rule.name
        assert f"its arguments were changed while rule {name} decided about them" in found


@pytest.mark.parametrize(
    "given",
    [
        Mail(to="ann", bcc="eve"),
        Letter("ann", "eve"),
        [Letter("ann", "eve")],
        {"letter": Letter("ann", "eve")},
        types.SimpleNamespace(bcc="eve"),
    ],
    ids=repr,
)
async def test_a_rule_changes_no_objects_in_arguments_either(given: Any) -> None:
    @tool
    async def mail(order: Any) -> str:
        return "sent"

    def concealed(call: GuardedCall) -> None:
        order = call.arguments["order"]
        order = order[0] if isinstance(order, list) else order["letter"] if isinstance(order, dict) else order
        order.bcc = None

    found = await PolicyEngine([concealed]).check_tool(mail, arguments={"order": given})
    assert "its arguments were changed while rule concealed decided" in found.reason
    read = await PolicyEngine([lambda call: call.arguments["order"] and None]).check_tool(
        mail, arguments={"order": given}
    )
    assert read.allowed


async def test_a_thread_without_a_context_calls_no_tool_while_calls_of_jobs_are_judged() -> None:
    desk = Desk()

    def in_a_pool() -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(desk.sync, "o-1").result()

    async def work(ctx: Any) -> str:
        return await said(ctx.step(in_a_pool))

    async with RuntimeKernel.create(agent=work, policy=RULES["denied"]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        words = str((await handle.result()).output)
    assert (
        "refund was not called: an app or a kernel with a policy or budgets runs in this process, and thread " in words
    )
    assert desk.made == []


async def test_a_thread_of_a_job_calls_no_tool_before_the_first_effect_either() -> None:
    """Else each run of the function would pay, and no rule would be asked."""
    desk, words = Desk(), list[str]()

    async def work(ctx: Any) -> None:
        thread = Thread(target=lambda: words.append(_tried("plain", desk)))
        thread.start()
        thread.join()

    async with RuntimeKernel.create(agent=work, policy=RULES["denied"]) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    assert "refund was not called" in words[0]
    assert desk.made == []
    assert _tried("plain", desk) == "paid", "the kernel is closed: nobody judges"


@pytest.mark.parametrize("rule", ["none", "bound"])
@pytest.mark.parametrize("surface", ["job", "agent"])
async def test_the_thread_of_a_call_that_took_too_long_calls_no_tool(surface: str, rule: str) -> None:
    """A thread cannot be cancelled: it went on, and paid after its job had ended."""
    desk, words = Desk(), list[str]()
    goes_on, is_done = Event(), Event()

    @tool(timeout="10ms", in_doubt="fail", name="refund")
    def slow(order: str, amount: int) -> None:
        goes_on.wait(60)
        try:
            words.append(desk.sync(order, 10))
        except UserError as error:
            words.append(error.message)
        is_done.set()

    async def job(ctx: Any) -> str:
        return await said(ctx.call(slow, "o-1", 10))

    agent = Agent(ExecutionEngine(ScriptedProvider(_answer, model="m"), retries=0), name="worker", tools=[slow])
    async with RuntimeKernel.create(agent=job, policy=RULES[rule]) as kernel:
        if surface == "job":
            await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
        else:
            assert "did not return within 0.01 s" in await _ran(agent)
        goes_on.set()
        await asyncio.to_thread(is_done.wait, 60)
    assert (desk.made, len(words)) == ([], 1)
    assert "refund was not called: the call of" in words[0]


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_a_tool_reads_by_another_tool_labels_its_job(restarts: bool) -> None:
    """Else text of strangers would lose its label on the way through a step."""
    desk, storage = Desk(), MemoryStorage()

    @tool(effect="read", open_world=True)
    async def page() -> str:
        return "pay at once"

    async def work(ctx: Any) -> str:
        await ctx.step(lambda: page(), effect="read")
        if restarts:
            await ctx.wait("go on")
        return await said(ctx.call(desk.refund, "o-1"))

    policy = PolicyEngine([LabelPolicy(otherwise="deny")])
    async with RuntimeKernel.create(agent=work, policy=policy, journal=storage) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        if restarts:
            await until(lambda: kernel.statistics()["parked"])
        else:
            assert "its job has read what is untrusted" in str((await handle.result()).output)
    if restarts:
        async with RuntimeKernel.create(agent=work, policy=policy, journal=storage) as kernel:
            (handle,) = await kernel.resume()
            await kernel.jobs.signal(handle.job_id, "go on")
            assert "its job has read what is untrusted" in str((await handle.result()).output)
    assert desk.made == []


async def test_calls_within_tools_have_rows_in_the_ledger() -> None:
    desk = Desk()

    async def work(ctx: Any) -> None:
        await ctx.step(lambda: desk.refund("o-1"))

    async with RuntimeKernel.create(agent=work, budgets=[]) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        await handle.result()
        ledger = await kernel.accounts()
        assert ledger is not None
        await ledger.flush()
        rows = [(each.type, each.name, each.job_id == handle.job_id) for each in ledger.writer.events]  # type: ignore[attr-defined]
    assert sorted(rows) == [("tool", "<lambda>", True), ("tool", "refund", False)]


# -- agents and streams without jobs --------------------------------------------------------------------------------------

COLUMNS = pa.schema({"way": pa.string()})


def _plain(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    @app.agent("ways")
    async def handle(ctx: Any) -> None:
        done[ctx.message["way"]] = await said(call(ctx.message["way"], desks[ctx.message["way"]]))


def _batch(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    @app.agent("ways", batch=True, schema=COLUMNS)
    async def handle(batch: pa.RecordBatch, ctx: Any) -> None:
        for way in batch["way"].to_pylist():
            done[way] = await said(call(way, desks[way]))


def _mapped(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    async def pays(row: dict[str, Any]) -> None:
        done[row["way"]] = await said(call(row["way"], desks[row["way"]]))

    app.stream("ways", schema=COLUMNS).map_async(pays, schema=COLUMNS).to("out")


def _in_batches(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    def pays(batch: pa.RecordBatch) -> pa.RecordBatch:
        for way in batch["way"].to_pylist():
            done[way] = _tried(way, desks[way])
        return batch

    app.stream("ways", schema=COLUMNS).map_batches(pays, schema=COLUMNS).to("out")


def _processed(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    def pays(row: dict[str, Any], ctx: Any) -> dict[str, Any]:
        done[row["way"]] = _tried(row["way"], desks[row["way"]])
        return row

    app.stream("ways", schema=COLUMNS).key_by("way").process(pays, schema=COLUMNS).to("out")


def _prompted(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    def prompt(batch: pa.RecordBatch) -> list[str]:
        for way in batch["way"].to_pylist():
            done[way] = _tried(way, desks[way])
        return batch["way"].to_pylist()

    engine = ExecutionEngine(ScriptedProvider("yes", model="m"), retries=0)
    app.stream("ways", schema=COLUMNS).map_llm(prompt, engine).to("out")


def _tried(way: str, desk: Desk) -> str:
    try:
        return str(SYNC[way](desk))
    except Exception as error:
        return words_of(error)


async def _all(desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    for way, desk in desks.items():
        if way not in done:
            done[way] = await said(call(way, desk))


def _at_start(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    app.on_start(lambda: _all(desks, done))


def _after_start(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    tasks: list[asyncio.Task[None]] = []
    app.on_start(lambda: tasks.append(asyncio.create_task(_all(desks, done))))


def _with_a_resource(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    @app.resource
    async def client() -> AsyncIterator[int]:
        await _all(desks, done)
        yield 1


def _at_times(app: App, desks: Mapping[str, Desk], done: dict[str, str]) -> None:
    @app.timer("10ms")
    async def tick() -> None:
        await _all(desks, done)


WITHOUT_JOBS: Mapping[str, tuple[Callable[..., None], list[str]]] = {
    "on_start": (_at_start, WAYS),
    "a task of on_start": (_after_start, WAYS),
    "resource": (_with_a_resource, WAYS),
    "timer": (_at_times, WAYS),
    "agent": (_plain, WAYS),
    "batch agent": (_batch, WAYS),
    "map_async": (_mapped, WAYS),
    "map_batches": (_in_batches, list(SYNC)),
    "process": (_processed, list(SYNC)),
    "map_llm": (_prompted, list(SYNC)),
}


async def without_jobs(surface: str, rule: str, url: str, some: Sequence[str] | None = None) -> dict[str, Seen]:
    declare, ways = WITHOUT_JOBS[surface]
    ways = ways if some is None else some
    desks, done = {way: Desk() for way in ways}, dict[str, str]()
    app = App("shop", url, **({} if ALL_RULES[rule] is None else {"policy": ALL_RULES[rule]}))
    declare(app, desks, done)
    async with started(app):
        MemoryBroker.get(url).publish("ways", [{"way": way} for way in ways])
        await until(lambda: len(done) == len(ways), f"{surface}: {done}")
    return {way: Seen(len(desks[way].made), done[way]) for way in ways}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("surface", WITHOUT_JOBS)
async def test_a_rule_holds_where_there_is_no_job(surface: str, rule: str, memory_url: str) -> None:
    for way, seen in (await without_jobs(surface, rule, memory_url)).items():
        seen.check(f"{surface}, {way}, {rule}", rule)


@pytest.mark.parametrize("rule", AGENT_RULES)
@pytest.mark.parametrize("surface", [each for each, (_, ways) in WITHOUT_JOBS.items() if "agent as tool" in ways])
async def test_a_rule_holds_for_an_agent_that_is_a_tool_where_there_is_no_job(
    surface: str, rule: str, memory_url: str
) -> None:
    seen = await without_jobs(surface, rule, memory_url, ["agent as tool"])
    seen["agent as tool"].check(f"{surface}, {rule}", rule)


@pytest.mark.parametrize("ruled", [False, True])
@pytest.mark.parametrize("surface", ["agent", "map_async"])
async def test_what_is_called_again_after_a_failure_repeats_no_tool_that_must_not_be(
    surface: str, ruled: bool, memory_url: str
) -> None:
    """`retries=` would pay again for each failure behind the payment."""
    desks, words = {way: Desk() for way in WAYS}, {way: list[str]() for way in WAYS}
    read: list[str] = []
    app = App(
        "shop",
        memory_url,
        **({"policy": PolicyEngine([ToolPolicy(["refund"], denied_scopes=["guests"])])} if ruled else {}),
    )

    @tool(effect="read")
    async def look() -> None:
        read.append("")

    async def pays(way: str) -> None:
        await look()
        words[way].append(await said(call(way, desks[way])))
        raise RuntimeError("behind the payment")

    if surface == "agent":

        @app.agent("ways", on_error="retry", retries=2, backoff="1ms")
        async def handle(ctx: Any) -> None:
            await pays(ctx.message["way"])
    else:

        async def mapped(row: dict[str, Any]) -> None:
            await pays(row["way"])

        options: dict[str, Any] = {"retries": 2, "backoff": "1ms", "on_error": "skip"}
        app.stream("ways", schema=COLUMNS).map_async(mapped, schema=COLUMNS, **options).to("out")
    async with started(app):
        MemoryBroker.get(memory_url).publish("ways", [{"way": way} for way in WAYS])
        await until(lambda: all(len(each) == 3 for each in words.values()), str(words))
    for way, desk in desks.items():
        first, *again = words[way]
        assert ("paid" in first, desk.made) == (True, ["o-1"]), f"{way}: {words[way]}"
        assert all("an earlier attempt has called it" in each for each in again), f"{way}: {words[way]}"
    assert len(read) == 3 * len(WAYS), "what may be repeated is"


@pytest.mark.parametrize("way", ["an overload", "an answer of 503", "rows", "halves", "a denied row"])
async def test_what_is_called_again_without_retries_repeats_no_tool_that_must_not_be(way: str, tmp_path: Path) -> None:
    """A valve was opened again for each Overloaded behind it, for RowErrors of its batch, and for each half of a batch
    in which a row had failed, also if a rule had denied the call for that row."""
    app = App("shop", state="memory", policy=PolicyEngine([ToolPolicy(["shut"], denied=True)]))
    valves = tmp_path / "valves.ndjson"
    valves.write_text('{"way": "a"}\n{"way": "b"}\n')
    opened: list[str] = []

    answered = ConnectionError("503")

    @tool
    def turn(valve: str) -> None:
        opened.append(valve)
        if way == "an answer of 503" and len(opened) < 9:
            raise Overloaded("busy", retry_after=0.001) from answered

    @tool
    def shut(valve: str) -> None: ...

    fails = {
        "an overload": Overloaded("busy", retry_after=0.001),
        "rows": RowErrors({1: "broken"}),
        "halves": ValueError("broken"),
    }

    def works(batch: pa.RecordBatch) -> pa.RecordBatch:
        for valve in batch.column("way").to_pylist():
            turn(valve)
        if batch.num_rows and way == "a denied row":
            shut("b")
        elif batch.num_rows and len(opened) < 9:
            raise fails[way]
        return batch

    if way in ("an overload", "an answer of 503", "rows"):

        @app.agent(files(str(valves)), batch=True)
        def handle(batch: pa.RecordBatch, ctx: Any) -> None:
            works(batch)
    else:
        app.stream(files(str(valves))).map_batches(works, schema=COLUMNS).to(ListSink("out"))
    with contextlib.suppress(SabotError):  # an attempt that is not allowed to call the tool ends the app
        await app.run()
    assert opened == (["a"] if way == "an answer of 503" else ["a", "b"])


@pytest.mark.parametrize("is_batch", [False, True])
async def test_a_process_function_that_gets_rows_again_repeats_no_tool_that_must_not_be(
    is_batch: bool, tmp_path: Path
) -> None:
    """The rows before one that failed had their valves opened twice."""
    app, letters = App("shop", state="memory"), ListSink("letters")
    valves = tmp_path / "valves.ndjson"
    valves.write_text("".join(f'{{"way": "{way}"}}\n' for way in "abcde"))
    opened: list[str] = []

    @tool
    def turn(valve: str) -> None:
        opened.append(valve)
        if valve == "c":
            raise ValueError("broken")

    def row(given: dict[str, Any], ctx: Any) -> dict[str, Any]:
        turn(given["way"])
        return given

    def batch(keys: Any, rows: pa.RecordBatch, ctx: Any) -> pa.RecordBatch:
        for valve in rows.column("way").to_pylist():
            turn(valve)
        return rows

    keyed = app.stream(files(str(valves)), dead_letter=letters).with_columns(key=lit(1)).key_by("key")
    keyed.process(batch if is_batch else row, batch=is_batch, schema=COLUMNS).to(ListSink("out"))
    with pytest.raises(SabotError, match="an earlier attempt has called it"):
        await app.run()
    assert opened == ["a", "b", "c"]


@pytest.mark.parametrize("effect", ["unsafe", "read"])
async def test_timers_that_fire_again_after_a_failure_repeat_no_tool_that_must_not_be(
    effect: str, tmp_path: Path
) -> None:
    """`on_timer` of a function over batches gets the timers of a failed call again, in halves, and called the tool for
    each of them a second time. With a tool that may be repeated, no timer is lost, and none gives a result twice."""
    app, letters, sink = App("shop", state="memory"), ListSink("letters"), ListSink("out")
    valves = tmp_path / "valves.ndjson"
    valves.write_text("".join(f'{{"way": "{way}", "at": {number}}}\n' for number, way in enumerate("abcde")))
    opened: list[str] = []

    @tool(effect=effect)
    def turn(valve: str) -> None:
        opened.append(valve)

    def rows(keys: Any, batch: pa.RecordBatch, ctx: Any) -> None:
        ctx.timers.event_many(keys, 20)

    def due(keys: Any, at: Any, ctx: Any) -> pa.RecordBatch:
        for valve in keys.to_pylist():
            turn(valve)
        if "c" in keys.to_pylist():
            raise ValueError("broken")
        return pa.record_batch([keys], schema=COLUMNS)

    app.stream(files(str(valves)), time="at", dead_letter=letters).key_by("way").process(
        rows, batch=True, on_timer=due, schema=COLUMNS
    ).to(sink)
    if effect == "unsafe":
        with pytest.raises(SabotError, match="turn was not called: an earlier attempt has called it"):
            await app.run()
        assert sorted(opened) == [*"abcde"]
        return
    await app.run()
    assert sorted(each["way"] for each in sink.rows) == [*"abde"]
    assert (opened.count("c"), len(letters.rows)) == (3, 1)


async def test_a_tool_that_was_certainly_not_called_is_called_again(memory_url: str) -> None:
    app, made, out = App("shop", memory_url), list[str](), MemoryBroker.get(memory_url)

    @tool
    async def refund(order: str) -> str:
        made.append(order)
        if len(made) == 1:
            raise NotSent("no connection")
        return "paid"

    async def pays(row: dict[str, Any]) -> dict[str, Any]:
        return {"way": await refund(row["way"])}

    app.stream("ways", schema=COLUMNS).map_async(pays, schema=COLUMNS, retries=1, backoff="1ms").to("out")
    async with started(app):
        out.publish("ways", [{"way": "o-1"}])
        await until(lambda: out.records("out"))
    assert made == ["o-1", "o-1"]


@pytest.mark.parametrize("rule", [None, ToolPolicy(["refund"], denied_scopes=["guests"])])
@pytest.mark.parametrize("surface", ["ctx.call", "ctx.step", "job of an agent", "script", "map_async"])
async def test_a_call_that_was_not_sent_is_not_repeated_with_what_its_tool_had_called(
    surface: str, rule: PolicyRule | None, memory_url: str
) -> None:
    """A tool that had charged a card by another tool, and whose carrier had raised NotSent, charged four times: the
    agent's own retries, without a word of the program, took all of it for a call that was not sent."""
    desks, carrier, attempts = {way: Desk() for way in WAYS}, list[str](), list[str]()
    rules: dict[str, Any] = {} if rule is None else {"policy": PolicyEngine([rule])}

    @tool
    async def ship(way: str) -> None:
        carrier.append(way)
        raise NotSent("the carrier is down")

    @tool(backoff=0)
    async def buy(way: str) -> None:
        assert "paid" in await call(way, desks[way])
        await ship(way)

    def shopper(way: str) -> Agent:
        script = [assistant("", ToolCall("1", "buy", json.dumps({"way": way}))), "sorry"]
        return Agent(ExecutionEngine(ScriptedProvider(script, model="m")), tools=[buy])

    async def order(ctx: Any) -> str:
        way = ctx.message
        if surface == "ctx.call":
            return await said(ctx.call(tool(retries=2, backoff=0)(buy.func), way))
        if surface == "ctx.step":
            return await said(ctx.step(buy.func, way, retries=2))
        agent = shopper(way)
        return (await agent.run("buy", effects=ctx.llm(agent.engine))).content

    async def mapped(row: dict[str, Any]) -> None:
        attempts.append(row["way"])
        await buy(row["way"])

    if surface == "script":
        for way in WAYS:
            assert (await shopper(way).run("buy")).content == "sorry"
    elif surface == "map_async":
        app = App("shop", memory_url, **rules)
        options: dict[str, Any] = {"retries": 2, "backoff": "1ms", "on_error": "skip"}
        app.stream("ways", schema=COLUMNS).map_async(mapped, schema=COLUMNS, **options).to("out")
        async with started(app):
            MemoryBroker.get(memory_url).publish("ways", [{"way": way} for way in WAYS])
            await until(lambda: len(attempts) == 3 * len(WAYS))
    else:
        async with RuntimeKernel.create(agent=order, **rules) as kernel:
            for way in WAYS:
                await (await kernel.execute(ExecutionRequest(prompt=way))).result()
    assert {way: desk.made for way, desk in desks.items()} == {way: ["o-1"] for way in WAYS}
    assert sorted(carrier) == sorted(WAYS)


class _Paying(Sink):
    """A sink that calls the tool in each of its methods while the app runs."""

    name = "paying"

    def __init__(self, desk: Desk, done: dict[str, str]) -> None:
        self._desk, self._done = desk, done

    def open(self) -> None:
        self._done["open"] = _tried(next(iter(SYNC)), self._desk)

    def write(self, batch: Any) -> None:
        self._done["write"] = _tried(next(iter(SYNC)), self._desk)

    def flush(self) -> None:
        self._done["flush"] = _tried(next(iter(SYNC)), self._desk)

    def close(self) -> None:
        self._done["close"] = _tried(next(iter(SYNC)), self._desk)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_rule_holds_for_a_sink_of_an_agent(durable: bool, memory_url: str) -> None:
    desk, done = Desk(), dict[str, str]()
    journal = {"journal": "memory", "state": "memory"} if durable else {}
    app = App("shop", memory_url, policy=RULES["denied"], **journal)

    @app.agent("orders", sink=_Paying(desk, done), durable=durable)
    async def handle(ctx: Any) -> dict[str, int]:
        return {"order": 1}

    async with started(app):
        MemoryBroker.get(memory_url).publish("orders", [{"order": 1}])
        await until(lambda: "write" in done, f"{done}")
    assert desk.made == []
    assert done.keys() >= {"open", "write", "close"}
    assert all(SAYS["denied"] in each for each in done.values()), done


class _PayingSource(Source, Bounded):
    """A source that calls the tool in each of its methods."""

    name = "paying"
    schema = COLUMNS

    def __init__(self, desk: Desk) -> None:
        self._desk, self._next = desk, 0
        self.done: dict[str, str] = {}

    def _pays(self, method: str) -> None:
        self.done[method] = _tried(next(iter(SYNC)), self._desk)

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._pays("open")

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        self._pays("read_batch")
        self._next += 1
        rows = pa.RecordBatch.from_pylist([{"way": "plain"}], COLUMNS)
        return Batch(rows, self.positions(), self.name) if self._next == 1 else None

    @property
    def exhausted(self) -> bool:
        self._pays("exhausted")
        return self._next > 1

    def positions(self) -> Positions:
        return {(self.name, 0): self._next}

    def close(self) -> None:
        self._pays("close")


@pytest.mark.parametrize("reads", ["stream", "agent", "durable agent"])
async def test_a_rule_holds_for_a_source(reads: str) -> None:
    desk = Desk()
    source = _PayingSource(desk)
    app = App("shop", policy=RULES["denied"], state="memory", journal="memory")
    if reads == "stream":
        app.stream(source).to(ListSink("out"))
    else:
        durable: dict[str, Any] = {"durable": True, "job_id": "way"} if reads == "durable agent" else {}

        @app.agent(source, **durable)
        async def handle(ctx: Any) -> None: ...

    source.done.clear()  # what the program itself has called
    desk.made.clear()
    await app.run()
    assert desk.made == []
    assert source.done.keys() == {"open", "read_batch", "exhausted", "close"}
    assert all(SAYS["denied"] in each for each in source.done.values()), source.done


@pytest.mark.parametrize("rule", ["none", "denied"])
@pytest.mark.parametrize("owner", ["app", "kernel"])
async def test_a_rule_holds_for_handlers_of_events(owner: str, rule: str, memory_url: str) -> None:
    desks, done, bus = {way: Desk() for way in WAYS}, dict[str, str](), InMemoryEventBus()

    async def work(ctx: Any) -> str:
        return "done"

    async def handler(event: RuntimeEvent) -> None:
        await _all(desks, done)

    bus.on(handler, ["job.started"])
    if owner == "kernel":
        async with RuntimeKernel.create(agent=work, policy=RULES[rule], event_bus=bus) as kernel:
            await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
            await until(lambda: len(done) == len(WAYS))
    else:
        app = App("shop", memory_url, journal="memory", state="memory", events=bus, policy=RULES[rule])
        app.agent("orders", name="work", durable=True)(work)
        async with started(app):
            MemoryBroker.get(memory_url).publish("orders", [{"order": 1}])
            await until(lambda: len(done) == len(WAYS))
    for way, desk in desks.items():
        Seen(len(desk.made), done[way]).check(f"{owner}, {way}, {rule}", rule)


@pytest.mark.parametrize("rule", RULES)
async def test_a_rule_holds_when_an_app_stops(rule: str, memory_url: str) -> None:
    desks, done = {way: Desk() for way in WAYS}, dict[str, str]()
    app = App("shop", memory_url, **({} if RULES[rule] is None else {"policy": RULES[rule]}))
    app.on_stop(lambda: _all(desks, done))
    async with started(app):
        assert not done
    for way, desk in desks.items():
        Seen(len(desk.made), done[way]).check(f"on_stop, {way}, {rule}", rule)


@pytest.mark.parametrize("rule", ["none", "denied"])
async def test_a_rule_holds_for_steps_that_are_only_looked_at(rule: str, memory_url: str) -> None:
    desks, done = {way: Desk() for way in SYNC}, dict[str, str]()
    app = App("shop", memory_url, policy=RULES[rule])

    def pays(batch: pa.RecordBatch) -> pa.RecordBatch:
        for way in batch["way"].to_pylist():
            done[way] = _tried(way, desks[way])
        return batch

    MemoryBroker.get(memory_url).publish("ways", [{"way": way} for way in SYNC])
    stream = app.stream("ways", schema=COLUMNS).map_batches(pays, schema=COLUMNS)
    await asyncio.to_thread(stream.collect, limit=len(SYNC))
    for way, desk in desks.items():
        Seen(len(desk.made), done[way]).check(f"collect, {way}, {rule}", rule)


@pytest.mark.parametrize("rule", ["none", "denied"])
async def test_a_rule_holds_for_an_agent_of_the_app_that_is_started_alone(rule: str, memory_url: str) -> None:
    desks, done = {way: Desk() for way in WAYS}, dict[str, str]()
    app = App("shop", memory_url, policy=RULES[rule])
    _plain(app, desks, done)
    MemoryBroker.get(memory_url).publish("ways", [{"way": way} for way in WAYS])
    (agent,) = app.spec.agents.values()
    await agent.start()
    await until(lambda: len(done) == len(WAYS))
    await agent.stop()
    for way, desk in desks.items():
        Seen(len(desk.made), done[way]).check(f"agent alone, {way}, {rule}", rule)


@pytest.mark.parametrize("ruled", [True, False])
async def test_a_thread_without_a_context_calls_no_tool_beside_agents_and_streams_without_jobs(
    ruled: bool, memory_url: str
) -> None:
    """`run_in_executor` gives its thread no context, and passed by the policy of an app that had no durable agent."""
    desks, done = {where: Desk() for where in ("agent", "stream")}, dict[str, str]()
    app = App("shop", memory_url, **({"policy": RULES["denied"]} if ruled else {}))

    @app.agent("ways")
    async def handle(ctx: Any) -> None:
        loop = asyncio.get_running_loop()
        done["agent"] = await loop.run_in_executor(None, _tried, "plain", desks["agent"])

    def pays(batch: pa.RecordBatch) -> pa.RecordBatch:
        with ThreadPoolExecutor(1) as pool:
            done["stream"] = pool.submit(_tried, "plain", desks["stream"]).result()
        return batch

    app.stream("rows", schema=COLUMNS).map_batches(pays, schema=COLUMNS).to("out")
    async with started(app):
        for topic in ("ways", "rows"):
            MemoryBroker.get(memory_url).publish(topic, [{"way": "plain"}])
        await until(lambda: len(done) == 2, str(done))
    for where, desk in desks.items():
        assert ("refund was not called" in done[where]) is ruled, where
        assert desk.made == ([] if ruled else ["o-1"]), where


async def test_a_thread_without_a_context_calls_no_tool_before_agents_begin_and_after_their_end(
    memory_url: str,
) -> None:
    """Functions of the start and the stop, and resources, run while no agent or stream does."""
    desk, done, app = Desk(), dict[str, str](), App("shop", memory_url, policy=RULES["denied"])

    async def tried(where: str) -> None:
        done[where] = await asyncio.get_running_loop().run_in_executor(None, _tried, "plain", desk)

    @app.resource
    async def client() -> AsyncIterator[int]:
        await tried("opening")
        yield 1
        await tried("closing")

    app.on_start(lambda: tried("start"))
    app.on_stop(lambda: tried("stop"))
    _plain(app, {}, {})
    async with started(app):
        assert len(done) == 2
    assert len(done) == 4
    for where, words in done.items():
        assert "refund was not called" in words, where
    assert desk.made == []
    assert _tried("plain", desk) == "paid", "the app has ended: nobody judges"


async def test_the_program_itself_calls_its_tools_as_functions_beside_a_running_app(memory_url: str) -> None:
    app, desks = App("shop", memory_url, policy=RULES["denied"]), {way: Desk() for way in WAYS}
    _plain(app, desks, {})
    async with started(app):
        for way, desk in desks.items():
            assert "paid" in await said(call(way, desk)), way
            assert desk.made == ["o-1"]


async def _inner_kernel(desk: Desk, **options: Any) -> str:
    async def pays(ctx: Any) -> str:
        return str(await ctx.call(desk.refund, "o-1", **MUCH))

    async with RuntimeKernel.create(agent=pays, **options) as kernel:
        return str(await (await kernel.execute(ExecutionRequest(prompt="go"))).result())


async def _inner_app(desk: Desk, **options: Any) -> str:
    inner, done = App("inner", "memory://inner", **options), list[str]()

    async def pays() -> None:
        done.append(await desk.refund("o-1", **MUCH))

    inner.on_start(pays)
    async with started(inner):
        return done[0]


INNER = {"kernel": _inner_kernel, "app": _inner_app}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("around", ["a tool of a kernel", "on_start"])
async def test_what_judged_code_starts_needs_rules_too(around: str, inner: str, memory_url: str) -> None:
    """Its own calls would be judged by nobody. With a policy of its own, this one decides."""
    desk, own, done = Desk(), Desk(), dict[str, str]()
    denied, none = PolicyEngine([ToolPolicy(["refund"], denied=True)]), PolicyEngine([])

    async def starts() -> None:
        done["without"] = await said(INNER[inner](desk))
        done["with"] = await said(INNER[inner](own, policy=none))

    if around == "on_start":
        app = App("shop", memory_url, policy=denied)
        app.on_start(starts)
        async with started(app):
            pass
    else:
        step = tool(starts)

        async def work(ctx: Any) -> None:
            await ctx.call(step)

        async with RuntimeKernel.create(agent=work, policy=denied) as kernel:
            await (await kernel.execute(ExecutionRequest(prompt="go"))).result()
    assert desk.made == []
    assert "has no policy=" in done["without"]
    assert own.made == ["o-1"], done
    assert "paid" in (await said(INNER[inner](desk))), "outside of judged code a program starts what it likes"


# -- planted doors ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def door(monkeypatch: pytest.MonkeyPatch, *planted: tuple[Any, str, Any]) -> AsyncIterator[None]:
    with monkeypatch.context() as patch:
        for where, name, instead in planted:
            patch.setattr(where, name, instead)
        yield


async def found(surfaces: Mapping[str, Awaitable[dict[str, Seen]]], rule: str = "denied") -> set[tuple[str, str]]:
    """The cells where the tool was called although the rule denies it."""
    return {(name, way) for name, seen in surfaces.items() for way, each in (await seen).items() if each.made}


BY_TOOL = {*SYNC, "awaited", "awaited partial", "gather", "to_thread"}  # the ways that end in `Tool.__call__`
BY_AGENT = {"agent.run", "agent as tool", "flow"}  # those that end in `DirectTools`


async def test_a_door_in_plain_calls_is_found_on_each_surface(monkeypatch: pytest.MonkeyPatch, memory_url: str) -> None:
    async with door(monkeypatch, (Tool, "__call__", lambda self, *args, **kwargs: self.func(*args, **kwargs))):
        cells = await found(
            {
                "function": _all_ways(_in_function, "denied"),
                "step": _all_ways(_in_step, "denied"),
                "agent": without_jobs("agent", "denied", memory_url),
            }
        )
    assert cells == {(surface, way) for surface in ("step", "agent") for way in BY_TOOL} | {
        ("function", way) for way in BY_TOOL - {"to_thread"}
    }


async def test_a_door_in_direct_agents_is_found(monkeypatch: pytest.MonkeyPatch, memory_url: str) -> None:
    async with door(monkeypatch, (DirectTools, "make", DirectTools._attempts)):
        cells = await found(
            {
                "step": _all_ways(_in_step, "denied"),
                "agent": without_jobs("agent", "denied", memory_url),
                "function": _all_ways(_in_function, "denied"),
            }
        )
    expected = {(surface, way) for surface in ("step", "agent") for way in BY_AGENT}
    assert cells == expected | {("function", "flow")}


async def test_a_door_in_the_functions_of_jobs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with door(monkeypatch, (job_loop, "RefusingJudge", lambda refuse: None)):
        cells = await found({"function": _all_ways(_in_function, "denied")})
    assert cells >= {("function", way) for way in BY_TOOL - {"to_thread"}}


@pytest.mark.parametrize("surface", WITHOUT_JOBS)
async def test_a_door_in_an_app_without_a_judge_is_found(
    surface: str, monkeypatch: pytest.MonkeyPatch, memory_url: str
) -> None:
    planted = (GuardJudge, "call_plainly", lambda self, tool, args, kwargs: tool.func(*args, **kwargs))
    async with door(monkeypatch, planted):
        cells = await found({surface: without_jobs(surface, "denied", memory_url)})
    assert cells == {(surface, way) for way in WITHOUT_JOBS[surface][1] if way in BY_TOOL}
