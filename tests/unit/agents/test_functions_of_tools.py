"""The function of a tool (`transfer.func`) under `ctx.step` and `ctx.call`: a call of the tool, with its name and its class."""

import asyncio
import dataclasses
import functools
import gc
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
from unit.jobs.hosting import Agent as Owner
from unit.jobs.hosting import entries, hosting

from sabot.agents import DurableContext, Effect, PolicyDenied, PolicyEngine, ToolPolicy, tool
from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.tools import Tool, as_tool
from sabot.errors import UserError
from sabot.journal.entries import Intent, Letter
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant

MADE: list[Any] = []


def send(to: str, amount: int = 5) -> str:
    MADE.append((to, amount))
    return to


class Bank:
    @tool(name="transfer")
    async def pay(self, to: str) -> str:
        MADE.append((to, 5))
        return to

    def send(self, to: str) -> str:
        MADE.append((to, 5))
        return to


class Sends:
    def __call__(self, to: str) -> str:
        MADE.append((to, 5))
        return to


async def send_later(to: str, effect: Effect) -> str:
    MADE.append((to, 5))
    return to


def sent_in_pieces(to: str) -> Any:
    MADE.append((to, 5))
    yield to


declared = functools.partial(tool, name="transfer")
BANK, SENDS, SENDS_FIVE = Bank(), Sends(), functools.partial(send, amount=5)
OF_SERVICE = Effect(None, "key", 1, None)  # type: ignore[arg-type]

WAYS: dict[str, tuple[Callable[[], Tool], Callable[[DurableContext, Any], Any]]] = {
    "a step": (lambda: declared()(send), lambda ctx, t: ctx.step(t.func, "eve")),
    "a call": (lambda: declared()(send), lambda ctx, t: ctx.call(t.func, "eve")),
    "what it wraps": (lambda: declared()(send), lambda ctx, t: ctx.step(t.__wrapped__, "eve")),
    "unwrapped": (lambda: declared()(send), lambda ctx, t: ctx.step(inspect.unwrap(t), "eve")),
    "a partial": (lambda: declared()(send), lambda ctx, t: ctx.step(functools.partial(t.func, "eve"))),
    "a partial of a partial": (
        lambda: declared()(send),
        lambda ctx, t: ctx.step(functools.partial(functools.partial(t.func, "eve"), amount=5)),
    ),
    "a partial that is the tool": (lambda: declared()(SENDS_FIVE), lambda ctx, t: ctx.step(t.func, "eve")),
    "a method": (lambda: BANK.pay, lambda ctx, t: ctx.step(t.func, "eve")),
    "a bound method": (lambda: declared()(BANK.send), lambda ctx, t: ctx.step(BANK.send, "eve")),
    "an object": (lambda: declared()(SENDS), lambda ctx, t: ctx.step(SENDS, "eve")),
    "a call of an object": (lambda: declared()(SENDS), lambda ctx, t: ctx.step(SENDS.__call__, "eve")),
    "its __call__": (lambda: declared()(send), lambda ctx, t: ctx.step(t.func.__call__, "eve")),
    "a __call__ in a partial": (
        lambda: declared()(send),
        lambda ctx, t: ctx.step(functools.partial(t.func.__call__.__call__, "eve")),
    ),
    "a __call__ of a method": (lambda: BANK.pay, lambda ctx, t: ctx.step(t.func.__call__, "eve")),
    "a generator": (lambda: declared()(sent_in_pieces), lambda ctx, t: ctx.step(sent_in_pieces, "eve")),
    "an effect": (lambda: declared()(send_later), lambda ctx, t: ctx.step(t.func, "eve")),
    "an effect of one's own": (
        lambda: declared()(send_later),
        lambda ctx, t: ctx.step(functools.partial(t.func, effect=OF_SERVICE), "eve"),
    ),
    "a tool of a model": (
        lambda: declared()(send),
        lambda ctx, t: asking(t.func).run("go", effects=ctx.llm(asking(t.func).engine)),
    ),
}


def asking(func: Any) -> Agent:
    said = [assistant("", ToolCall("c", "transfer", '{"to": "eve"}')), "done"]
    return Agent(ExecutionEngine(ScriptedProvider(said)), tools=[func])


@pytest.fixture(autouse=True)
def _nothing_made() -> None:
    MADE.clear()
    gc.collect()  # the tools of other tests


@pytest.mark.parametrize("way", WAYS)
async def test_a_rule_about_the_tool_holds_for_its_function(way: str) -> None:
    """A step of `transfer.func` had the name of the function, `send`, about which there is no rule."""
    make, call = WAYS[way]
    made = make()

    async def f(ctx: DurableContext) -> str:
        try:
            await call(ctx, made)
        except PolicyDenied as error:
            return error.message
        return "went on"

    async with hosting(MemoryStorage(), Owner(f), guard=PolicyEngine([ToolPolicy(["transfer"], denied=True)])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
        said = jobs.agent.done["j"]
    assert MADE == []
    assert "tool transfer is denied" in said or way == "a tool of a model"


@pytest.mark.parametrize("way", [each for each in WAYS if each != "a tool of a model"])
async def test_without_a_rule_the_function_is_called_once_under_the_name_of_the_tool(way: str) -> None:
    make, call = WAYS[way]
    made, home = make(), MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        return await call(ctx, made)

    async with hosting(home, Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert MADE == [("eve", 5)]
    if way != "an effect of one's own":
        assert [each.name for each in entries(home) if isinstance(each, Intent)] == ["transfer"]


async def test_a_thread_of_the_function_is_no_step() -> None:
    made = declared()(send)

    async def f(ctx: DurableContext) -> Any:
        with pytest.raises(UserError):  # a thread's function is no argument that can be recorded
            await ctx.step(asyncio.to_thread, made.func, "eve")
        return "over"

    async with hosting(MemoryStorage(), Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert MADE == []


def test_the_class_and_the_settings_are_those_of_the_tool() -> None:
    made = tool(effect="read", name="look", retries=2, labels={"pii"})(send)
    again = as_tool(send)
    assert (again.effect, again.retry.retries, again.labels) == (EffectClass.READ, 2, {"pii"})
    assert as_tool(send, timeout="3s").timeout_s == 3
    del made, again
    assert as_tool(send).name == "send", "there is no such tool any more"


async def test_a_step_of_the_function_cannot_be_repeated_more_than_the_tool() -> None:
    made = declared()(send)

    async def f(ctx: DurableContext) -> Any:
        with pytest.raises(UserError, match="the tool is declared 'unsafe'"):
            await ctx.step(made.func, "eve", effect="read")
        return "over"

    async with hosting(MemoryStorage(), Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert MADE == []


def test_a_function_is_that_of_the_tool_as_it_was_declared_while_the_tool_or_a_copy_exists() -> None:
    """Each call with a time limit of its own makes a copy: behind it a step of the function was none of the tool."""
    made = declared()(send)
    assert as_tool(made, timeout="5s").timeout_s == 5
    assert as_tool(send) is made
    copy = as_tool(as_tool(made, timeout="7s"), retries=2)
    assert as_tool(send) is made
    del made
    assert (as_tool(send).name, as_tool(send).timeout_s, copy.timeout_s) == ("transfer", None, 7)
    del copy
    assert as_tool(send).name == "send"


def test_the_tool_of_a_function_is_found_in_the_time_of_one_however_many_there_are() -> None:
    """The copies were a list: of 50,000 agents with time limits, each new one, each step and each end went through all."""
    made = [as_tool(declared()(send), timeout="5s") for _ in range(2_000)]
    looks = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal looks
        looks += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        as_tool(send)
        made.append(as_tool(made[0], timeout="6s"))
    finally:
        sys.setprofile(None)
    assert looks < 200
    made.clear()
    assert as_tool(send).name == "send"


def test_a_function_of_two_tools_is_refused_with_their_names() -> None:
    made = declared()(send), tool(name="send_little")(send)
    with pytest.raises(UserError, match=r"2 tools \(send_little, transfer\)"):
        as_tool(made[0].func)
    assert as_tool(made[0]) is made[0]


@pytest.mark.parametrize("effect", ["unsafe", "read"])
async def test_a_job_that_has_called_the_function_under_its_own_name_goes_on(effect: Any) -> None:
    """Earlier versions have recorded it so, also of a class that the tool does not allow."""
    home, declared_tools = MemoryStorage(), list[Any]()

    async def f(ctx: DurableContext) -> Any:
        found = await ctx.step(send, "eve", effect=effect)
        await ctx.wait("go")
        return found

    async with hosting(home, Owner(f)) as jobs:  # while there is no such tool, a call of its function is none of it
        jobs.begin("j")
        await jobs.parks("j")
    declared_tools.append(declared()(send))
    async with hosting(home, Owner(f)) as jobs:
        jobs.journal.post(Letter("signal", "1", "j", "go"))
        await jobs.over("j")
        assert (jobs.agent.outcomes["j"], jobs.agent.done["j"]) == ("succeeded", "eve"), jobs.agent.errors
    assert MADE == [("eve", 5)]


@pytest.mark.parametrize("name", ["__call__", "__get__", "func", "name", "effect", "labels"])
def test_a_class_of_tools_that_is_called_otherwise_is_refused(name: str) -> None:
    """Its call in a step was judged by nobody, and one in the function of a job was made in each run."""
    with pytest.raises(UserError, match=f"class OwnTool: a tool whose {name} is its own"):
        type("OwnTool", (Tool,), {name: lambda self, *args: self})


async def test_a_class_of_tools_with_more_is_a_tool() -> None:
    class Described(Tool):  # type: ignore[type-arg]
        @property
        def words(self) -> str:
            return f"{self.name}s money"

    plain = declared()(send)
    made = Described(**{each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)})

    async def f(ctx: DurableContext) -> str:
        with pytest.raises(PolicyDenied):
            await ctx.call(made, "eve")
        return made.words

    async with hosting(MemoryStorage(), Owner(f), guard=PolicyEngine([ToolPolicy(["transfer"], denied=True)])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == "transfers money"
    assert MADE == []
