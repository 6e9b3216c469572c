"""A kernel, an app or an agent that a tool starts which may be called again: each attempt would begin another job."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from sabot import App
from sabot.agents import ExecutionRequest, JobClient, PolicyEngine, RuntimeKernel, tool
from sabot.agents.kernel.jobs import _begun_by, effect_around
from sabot.jobs.open_jobs import jobs_begun_within
from sabot.journal.sqlite import SqliteReader
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant
from tools.agent_tools import started, until

Starts = Callable[[], Awaitable[str]]

REPEATED = ["local", "read", "metered", "idempotent"]


class Bank:
    """A tool that pays, other code that starts something in which the tool is called, and tools around this code.

    `made`: the payments. `attempts`: how often the tool around it was called.
    """

    def __init__(self, effect: Any = "unsafe", **options: Any) -> None:
        self.made: list[str] = []
        self.attempts, self.options = 0, options

        @tool(effect=effect)
        async def pay(order: str) -> str:
            self.made.append(order)
            return "paid"

        self.pay = pay

    # -- what is started --

    async def pays(self, ctx: Any) -> str:
        return str(await ctx.call(self.pay, "o-1"))

    async def parent(self, ctx: Any) -> str:
        return str(await ctx.child("pays", "go"))

    async def step(self, ctx: Any) -> str:
        async def within() -> str:
            return str(await self.pay("o-1"))

        return str(await ctx.step(within, effect="read"))

    async def kernel(self, name: str = "pays", **asked: Any) -> str:
        async with RuntimeKernel.create(agent=[self.pays, self.parent, self.step], **self.options) as kernel:
            handle = await kernel.execute(ExecutionRequest(prompt="go", agent=name, **asked))
            return str((await handle.result()).output)

    async def kernel_with_child(self) -> str:
        return await self.kernel("parent")

    async def kernel_with_step(self) -> str:
        return await self.kernel("step")

    async def keyed(self) -> str:
        return await self.kernel(idempotency_key="o-1")

    async def on_start(self) -> str:
        inner, done = App("inner", f"memory://{uuid4().hex}", **{"journal": "memory", **self.options}), list[str]()

        async def pays() -> None:
            done.append(await self.pay("o-1"))

        inner.on_start(pays)
        async with started(inner):
            return done[0]

    async def jobs_of_app(self) -> str:
        return await self._agent_of_app(durable=True)

    async def plain_agent_of_app(self) -> str:
        return await self._agent_of_app()

    async def _agent_of_app(self, **how: Any) -> str:
        inner, done = App("inner", f"memory://{uuid4().hex}", **{"journal": "memory", **self.options}), list[str]()

        @inner.agent("orders", sink="paid", **how)
        async def pays(ctx: Any) -> None:
            try:
                done.append(await (ctx.call(self.pay, "o-1") if how else self.pay("o-1")))
            except Exception as error:
                done.append(str(error))

        async with started(inner):
            await inner.send("orders", {"order": "o-1"})
            await until(lambda: done)
        if done[0] != "paid":
            raise ValueError(done[0])
        return done[0]

    async def agent(self) -> str:
        answers = [assistant("", ToolCall("1", "pay", '{"order": "o-1"}')), assistant("paid")]
        model = ScriptedProvider(answers, model="m")
        return (await Agent(ExecutionEngine(model, retries=0), tools=[self.pay], name="clerk").run("go")).content

    # -- around it --

    async def in_a_job(self, starts: Starts, effect: Any) -> str:
        """What a job gets that calls a tool of this class, which starts it and fails twice behind that."""

        async def work(ctx: Any) -> str:
            return str(await ctx.call(self._around(starts, effect)))

        async with RuntimeKernel.create(agent=work) as kernel:
            return str((await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output)

    async def in_a_script(self, starts: Starts, effect: Any) -> str:
        """What the model of an agent gets from that tool, without a job."""
        model = ScriptedProvider([assistant("", ToolCall("1", "look", "{}")), assistant("done")], model="m")
        engine = ExecutionEngine(model, retries=0)
        await Agent(engine, tools=[self._around(starts, effect)], name="desk").run("go")
        return model.requests[-1].messages[-1].content

    def _around(self, starts: Starts, effect: Any) -> Any:
        async def look() -> str:
            self.attempts += 1
            said = await starts()
            if self.attempts < 3 and effect != "unsafe":  # that would be a doubt, about which a person is asked
                raise ConnectionResetError("the answer was lost")
            return said

        return tool(effect=effect, retries=3, backoff="1ms")(look)


STARTS = ["kernel", "kernel_with_child", "kernel_with_step", "on_start", "jobs_of_app", "plain_agent_of_app"]


async def said(call: Awaitable[str]) -> str:
    try:
        return await call
    except Exception as error:
        return str(error)


@pytest.mark.one_in(9, "a tenth of a second of a core each")
@pytest.mark.parametrize("effect", REPEATED)
@pytest.mark.parametrize("starts", STARTS)
async def test_what_a_repeated_tool_of_a_job_starts_calls_no_unsafe_tool(starts: str, effect: Any) -> None:
    for options in ({}, {"policy": PolicyEngine([])}):
        bank = Bank(**options)
        words = await said(bank.in_a_job(getattr(bank, starts), effect))
        assert bank.made == [], words
        assert "pay was not" in words
        if starts != "kernel_with_step":  # a step that may be repeated says it of itself
            assert f"look has begun it, whose class '{effect}' allows to repeat it, and the class of pay is" in words
            assert 'effect="unsafe" for look, or effect="idempotent" and a request with idempotency_key=' in words


@pytest.mark.parametrize("effect", REPEATED)
async def test_an_agent_that_a_repeated_tool_of_a_job_runs_calls_no_unsafe_tool(effect: Any) -> None:
    bank = Bank()
    assert await bank.in_a_job(bank.agent, effect) == "paid", "the model has got the refusal as the tool's result"
    assert bank.made == []


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("effect", ["read", "idempotent"])
@pytest.mark.parametrize("starts", [*(each for each in STARTS if each != "kernel_with_step"), "agent"])
async def test_an_unsafe_tool_is_called_in_one_attempt_only_without_a_job(starts: str, effect: Any) -> None:
    bank = Bank()
    words = await bank.in_a_script(getattr(bank, starts), effect)
    assert bank.made == ["o-1"], words
    assert bank.attempts > 1
    assert starts == "agent" or "called pay, and the class of pay is 'unsafe'" in words


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("starts", STARTS)
async def test_what_a_repeated_tool_starts_calls_tools_that_change_nothing(starts: str) -> None:
    bank = Bank(effect="read")
    assert await bank.in_a_job(getattr(bank, starts), "idempotent") == "paid"
    assert bank.made == ["o-1"] * 3


@pytest.mark.parametrize("starts", ["kernel", "on_start"])
async def test_what_an_unsafe_tool_starts_calls_any_tool(starts: str) -> None:
    bank = Bank()
    assert await bank.in_a_job(getattr(bank, starts), "unsafe") == "paid"
    assert bank.made == ["o-1"]


@pytest.mark.parametrize("inner", ["unsafe", "reconcilable", "idempotent"])
async def test_a_tool_begins_one_job_by_its_idempotency_key_over_a_durable_journal(inner: str, tmp_path: Path) -> None:
    bank = Bank(journal=tmp_path)
    if inner == "reconcilable":
        bank.pay = tool(reconcile=lambda effect, order: False)(bank.pay.func)
    elif inner == "idempotent":
        bank = Bank("idempotent", journal=tmp_path)
    assert await bank.in_a_job(bank.keyed, "idempotent") == "paid"
    assert bank.attempts == 3
    assert bank.made == ["o-1"]


@pytest.mark.parametrize("effect", ["local", "read", "metered"])
async def test_a_tool_that_changes_nothing_begins_no_job_by_a_key_that_does(effect: Any, tmp_path: Path) -> None:
    """A job that is restored calls it again, and what it gives as the key may be another."""
    bank = Bank("idempotent", journal=tmp_path)
    assert "pay was not done" in await said(bank.in_a_job(bank.keyed, effect))
    assert bank.made == []


@pytest.mark.parametrize("inner", ["unsafe", "idempotent"])
async def test_a_key_holds_in_a_durable_journal_only(inner: str) -> None:
    """Without one another process begins another job; an idempotent tool then gets another key."""
    bank = Bank(inner)
    assert "over a durable journal" in await said(bank.in_a_job(bank.keyed, "idempotent"))
    assert bank.made == []


async def test_a_tool_begins_no_job_by_a_key_that_is_another_one_at_each_attempt(tmp_path: Path) -> None:
    """Each attempt began another job, which paid."""
    bank = Bank(journal=tmp_path)

    async def another_key() -> str:
        return await bank.kernel(idempotency_key=f"o-1 {bank.attempts}")

    words = await said(bank.in_a_job(another_key, "idempotent"))
    assert "no job was begun: an earlier attempt of effect 1 of job" in words
    assert bank.made == ["o-1"]


@pytest.mark.parametrize("starts", ["kernel", "client"])
async def test_a_key_of_before_a_crash_is_compared_too(starts: str, tmp_path: Path) -> None:
    """The attempts of a process were in its memory alone, so that the first one of the next process paid again."""
    bank, within = Bank(journal=tmp_path), set[str]()

    async def another_key() -> str:
        _begun_by.clear()  # what a crash takes
        within.add(effect_around())
        key = f"o-1 {bank.attempts}"
        if starts == "kernel":
            return await bank.kernel(idempotency_key=key)
        await JobClient(tmp_path).start("pays", "go", idempotency_key=key)
        return "begun"

    async with RuntimeKernel.create(agent=bank.pays, journal=tmp_path):
        pass  # a client needs a journal
    words = await said(bank.in_a_job(another_key, "idempotent"))
    assert "no job was begun: an earlier attempt of effect 1 of job" in words
    reader = SqliteReader(tmp_path)
    assert (len(within), len(jobs_begun_within(reader, *within))) == (1, 1)
    reader.close()


async def test_a_tool_of_an_agent_outside_of_a_job_begins_no_job_by_another_key(tmp_path: Path) -> None:
    bank = Bank("idempotent", journal=tmp_path)

    async def another_key() -> str:
        return await bank.kernel(idempotency_key=f"o-1 {bank.attempts}")

    words = await bank.in_a_script(another_key, "idempotent")
    assert "no job was begun: an earlier attempt of the tool that begins it" in words
    assert bank.made == ["o-1"]


async def test_a_tool_begins_several_jobs_by_their_keys_at_each_attempt(tmp_path: Path) -> None:
    """The first attempt has begun one of them, the third one more."""
    bank = Bank(journal=tmp_path)

    async def some() -> str:
        return [await bank.kernel(idempotency_key=f"o-{number}") for number in range(bank.attempts)][-1]

    assert await bank.in_a_job(some, "idempotent") == "paid"
    assert bank.made == ["o-1"] * 3
