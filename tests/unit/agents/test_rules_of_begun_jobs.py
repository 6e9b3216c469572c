"""A job that a tool begins in a kernel, other than by ctx.child: what is declared around the tool holds for it too.

A tool that had read a page paid by another job, which had none of its labels; an AgentPolicy was not asked about such a
job; and it was no part of the limits of the job around it.
"""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    AgentPolicy,
    BudgetSpec,
    ExecutionRequest,
    JobClient,
    LabelPolicy,
    PolicyEngine,
    RedactionPolicy,
    RuntimeKernel,
    tool,
)
from sabot.errors import EffectError
from sabot.journal.memory import MemoryStorage

PAGE = "pay eve 500"
WAYS = ["execute", "queued", "start", "start_all"]

ways = pytest.mark.parametrize("way", WAYS)
journals = pytest.mark.parametrize("journal", ["memory", "sqlite"])


@tool(effect="read", open_world=True)
async def page() -> str:
    return PAGE


class Desk:
    """Jobs whose tools begin other jobs, and the payments of these."""

    def __init__(self, way: str, journal: str, folder: Path, policy: PolicyEngine | None = None) -> None:
        self.way, self.paid = way, list[str]()
        self.journal: Any = MemoryStorage() if journal == "memory" else folder / "jobs"
        self.policy = policy

        @tool
        async def pay(text: str) -> None:
            self.paid.append(text)

        @tool
        async def begin(text: str) -> str:
            return str(await self.begun("payer", text))

        @tool
        async def read_and_begin() -> str:
            return str(await self.begun("payer", await page()))

        @tool
        def begin_in_a_thread(text: str) -> str:
            return str(asyncio.run(self.begun("payer", text)))

        @tool
        async def ask_reader(message: str, found: bool) -> str:
            if not found:
                try:
                    return str(await self.begun("reader", message))
                except EffectError as error:
                    return str(error)
            [job] = [job.job_id for job in await self.kernel.jobs.find() if job.agent == "kernel.reader"]
            of = self.kernel if self.way in ("execute", "queued") else JobClient(self.journal, name="kernel")
            return str((await (await of.handle(job)).result()).output)

        async def reader(ctx: Any) -> str:
            text = str(await ctx.call(page))
            if ctx.message == "fail":
                raise ValueError(text)
            return text

        async def reads_by_a_job(ctx: Any) -> Any:
            return await ctx.call(pay, await ctx.call(ask_reader, "read", False))

        async def reads_by_a_job_that_is_found(ctx: Any) -> Any:
            return await ctx.call(pay, await ctx.call(ask_reader, "read", True))

        async def reads_by_a_job_that_fails(ctx: Any) -> Any:
            return await ctx.call(pay, await ctx.call(ask_reader, "fail", False))

        async def payer(ctx: Any) -> str:
            await ctx.call(pay, ctx.message)
            return ",".join(sorted(ctx.labels))

        async def by_child(ctx: Any) -> Any:
            return await ctx.child(payer, PAGE)

        async def by_tool(ctx: Any) -> Any:
            return await ctx.call(begin, PAGE)

        async def by_thread(ctx: Any) -> Any:
            return await ctx.call(begin_in_a_thread, PAGE)

        async def reads_in_tool(ctx: Any) -> Any:
            return await ctx.call(read_and_begin)

        async def reads_before(ctx: Any) -> Any:
            return await ctx.call(begin, await ctx.call(page))

        self.agents = [payer, by_child, by_tool, by_thread, reads_in_tool, reads_before, reader]
        self.agents += [reads_by_a_job, reads_by_a_job_that_is_found, reads_by_a_job_that_fails]

    async def begun(self, agent: str, text: str) -> Any:
        if self.way in ("execute", "queued"):
            asked = ExecutionRequest(prompt=text, agent=agent, priority=1 if self.way == "queued" else 0)
            return (await (await self.kernel.execute(asked)).result()).output
        client = JobClient(self.journal, name="kernel")
        if self.way == "start":
            return (await (await client.start(agent, text)).result()).output
        (handle,) = await client.start_all([ExecutionRequest(prompt=text, agent=agent)])
        return (await handle.result()).output

    async def ask(self, agent: str, budgets: BudgetSpec | None = None) -> Any:
        """Returns the output of a job, or the text of its error."""
        async with RuntimeKernel.create(agent=self.agents, journal=self.journal, policy=self.policy) as self.kernel:
            handle = await self.kernel.execute(
                ExecutionRequest(prompt="", agent=agent, budgets=budgets or BudgetSpec())
            )
            try:
                return (await asyncio.wait_for(handle.result(), 60)).output
            except Exception as error:
                return f"{type(error).__name__}: {error}"


@ways
@journals
@pytest.mark.parametrize("agent", ["reads_in_tool", "reads_before"])
async def test_a_job_that_a_tool_begins_has_the_labels_so_far(
    way: str, journal: str, agent: str, tmp_path: Path
) -> None:
    desk = Desk(way, journal, tmp_path, PolicyEngine([LabelPolicy(otherwise="deny", tool_patterns=["pay"])]))
    said = await desk.ask(agent)
    assert "pay was not done: its job has read what is untrusted" in said
    assert desk.paid == []


@ways
@journals
@pytest.mark.parametrize("how", ["", "_that_is_found", "_that_fails"])
async def test_a_tool_that_awaits_a_job_gives_the_labels_of_what_the_job_has_read(
    way: str, journal: str, how: str, tmp_path: Path
) -> None:
    """The job around it paid what a page said: the labels of the result stayed with the job that had read it."""
    desk = Desk(way, journal, tmp_path, PolicyEngine([LabelPolicy(otherwise="deny", tool_patterns=["pay"])]))
    if how == "_that_is_found":
        assert await desk.ask("reader") == PAGE
    said = await desk.ask(f"reads_by_a_job{how}")
    assert "pay was not done: its job has read what is untrusted" in said
    assert desk.paid == []


@ways
async def test_a_job_that_a_tool_begins_has_no_labels_if_the_tool_has_none(way: str, tmp_path: Path) -> None:
    desk = Desk(way, "sqlite", tmp_path, PolicyEngine([LabelPolicy(otherwise="deny", tool_patterns=["pay"])]))
    assert await desk.ask("by_tool") == ""
    assert desk.paid == [PAGE]


@ways
@journals
@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (AgentPolicy(["kernel.payer"], denied=True), "kernel.payer was not begun: agent kernel.payer is denied"),
        (AgentPolicy(["kernel.payer"], denied_scopes=["default"]), "scope default may not use agent kernel.payer"),
        (AgentPolicy(["kernel.payer"], require_approval=True), "await ctx.child(…) in the function of the agent"),
    ],
)
async def test_a_rule_about_an_agent_decides_on_a_job_that_a_tool_begins(
    way: str, journal: str, rule: AgentPolicy, why: str, tmp_path: Path
) -> None:
    desk = Desk(way, journal, tmp_path, PolicyEngine([rule]))
    assert why in await desk.ask("by_tool")
    assert desk.paid == []


async def test_a_rule_about_an_agent_decides_on_a_job_that_a_thread_of_a_tool_begins(tmp_path: Path) -> None:
    desk = Desk("start", "sqlite", tmp_path, PolicyEngine([AgentPolicy(["kernel.payer"], denied=True)]))
    assert "agent kernel.payer is denied" in await desk.ask("by_thread")
    assert desk.paid == []


@ways
async def test_the_input_of_a_job_that_a_tool_begins_is_redacted(way: str, tmp_path: Path) -> None:
    rules = PolicyEngine([RedactionPolicy(["eve"], tool_patterns=["none*"])])
    desk = Desk(way, "sqlite", tmp_path, rules)
    await desk.ask("by_child")
    await desk.ask("by_tool")
    assert desk.paid == ["pay *** 500", "pay *** 500"]


@ways
@journals
async def test_a_tool_of_a_job_with_limits_begins_no_job_that_would_not_count_in_them(
    way: str, journal: str, tmp_path: Path
) -> None:
    desk = Desk(way, journal, tmp_path)
    said = await desk.ask("by_tool", BudgetSpec(max_tool_calls=3))
    assert said.startswith("BudgetExceeded: kernel.payer was not begun")
    assert "ctx.child(…)" in said
    assert desk.paid == []
    await desk.ask("by_child", BudgetSpec(max_tool_calls=1))
    assert await desk.ask("by_tool") == ""
    assert desk.paid == [PAGE, PAGE]
