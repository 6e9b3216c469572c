"""A stream between two durable agents drops the labels of data, so rules about them do not hold behind it: the start says so."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sabot import App, col
from sabot.agents import ExecutionRequest, PolicyEngine, RuntimeKernel, tool
from sabot.errors import UserError
from sabot.llm import ExecutionEngine, ScriptedProvider
from tools.agent_tools import started


@tool(open_world=True, effect="read")
async def browse(url: str) -> str:
    return "text of anybody"


@tool(effect="read")
async def look(order: str) -> str:
    return order


async def reads(ctx: Any) -> Any:
    return {"id": "1", "text": await ctx.call(browse, "http://x")}


async def looks(ctx: Any) -> Any:
    return {"id": "1", "text": await ctx.call(look, "o")}


async def plain(ctx: Any) -> Any:
    return ctx.message


async def pays(ctx: Any) -> None: ...


async def passes(ctx: Any) -> Any:
    return ctx.message


SCHEMA = {"id": "string", "text": "string"}


def by_topics(app: App) -> None:
    app.stream("read", schema=SCHEMA).filter(col("text") != "").to("asked")


def by_agent_without_jobs(app: App) -> None:
    app.agent("read", name="plain", sink="asked")(plain)


def by_stream_and_agent(app: App) -> None:
    app.stream("read", schema=SCHEMA).to("middle")
    app.agent("middle", name="plain", sink="asked")(plain)


async def told(url: str, path: Path, caplog: Any, build: Any, **second: Any) -> list[str]:
    app = App("shop", url, state=str(path), journal="memory")
    app.agent("pages", name="reader", sink="read", durable=True)(reads)
    build(app)
    app.agent("asked", name="payer", durable=True, job_id="id", **second)(pays)
    async with started(app):
        pass
    return [each for each in caplog.messages if "are lost on the way" in each]


@pytest.mark.parametrize(
    ("build", "by"),
    [
        (by_topics, "a stream"),
        (by_agent_without_jobs, "agent shop.plain"),
        (by_stream_and_agent, "a stream"),
    ],
)
async def test_the_start_names_both_agents_between_which_a_step_drops_the_labels(
    build: Any, by: str, memory_url: str, tmp_path: Path, caplog: Any
) -> None:
    (line,) = await told(memory_url, tmp_path, caplog, build)
    assert line == (
        f"app shop: results of agent shop.reader reach agent shop.payer by {by}, and the labels of its data are lost on "
        "the way: jobs of shop.payer do not have 'untrusted', and rules about it do not hold for them; "
        "@app.agent(…, labels=['untrusted']) for agent shop.payer, or let it read the topic of the first agent itself"
    )


async def test_nothing_is_said_if_the_second_agent_has_the_labels_itself(
    memory_url: str, tmp_path: Path, caplog: Any
) -> None:
    assert await told(memory_url, tmp_path, caplog, by_topics, labels=["untrusted"]) == []


async def test_nothing_is_said_of_agents_without_labels_and_of_a_topic_between_two(
    memory_url: str, tmp_path: Path, caplog: Any
) -> None:
    app = App("shop", memory_url, state=str(tmp_path), journal="memory")
    app.agent("orders", name="looker", sink="read", durable=True)(looks)
    by_topics(app)
    app.agent("asked", name="payer", durable=True)(pays)
    app.agent("pages", name="reader", sink="answers", durable=True)(reads)
    app.agent("answers", name="other", durable=True)(pays)
    async with started(app):
        pass
    assert "are lost on the way" not in caplog.text


async def test_labels_are_followed_through_durable_agents_and_batches_and_records_have_them_by_declaration(
    memory_url: str, tmp_path: Path, caplog: Any
) -> None:
    app = App("shop", memory_url, state=str(tmp_path), journal="memory")
    engine = ExecutionEngine(ScriptedProvider("yes"))
    app.llm_agent("pages", engine, name="reader", tools=[browse], output={"text": "string"}, sink="first")
    app.agent("first", name="second", sink="middle", durable=True)(passes)
    app.stream("middle", schema=SCHEMA).to("asked")
    app.agent("asked", name="payer", durable=True)(pays)

    @app.agent("mails", name="batches", batch=True, durable=True, schema=SCHEMA, labels=["pii"], sink="rows")
    async def batches(batch: Any, ctx: Any) -> Any:
        return batch

    app.agent("rows", name="last", durable=True)(pays)
    async with started(app):
        pass
    lines = [each for each in caplog.messages if "are lost on the way" in each]
    assert [each.split(", and the")[0].removeprefix("app shop: results of ") for each in lines] == [
        "agent shop.second reach agent shop.payer by a stream",
        "agent shop.batches reach agent shop.last by batches",
    ]


@pytest.mark.parametrize("begun", ["after the call", "within the call"])
async def test_a_task_that_outlives_its_tool_reads_nothing_whose_labels_the_job_would_not_get(begun: str) -> None:
    """A tool returned while its task read on: the job went on without the label, and no rule about it held."""
    read, goes_on, ends, tasks = asyncio.Event(), asyncio.Event(), asyncio.Event(), list[asyncio.Task[str]]()

    @tool(open_world=True, effect="read")
    async def page() -> str:
        read.set()
        await ends.wait()
        return "text of anybody"

    async def later() -> str:
        if begun == "after the call":
            await goes_on.wait()
        return str(await page())

    @tool(effect="read")
    async def fetch() -> str:
        tasks.append(asyncio.create_task(later()))
        if begun == "within the call":
            await read.wait()
        return "begun"

    @tool(effect="read")
    async def waits() -> str:
        goes_on.set()
        ends.set()
        with pytest.raises(UserError, match=r"page was not called|the result of page is withheld") as raised:
            await tasks[0]
        return raised.value.message

    async def job(ctx: Any) -> str:
        await ctx.call(fetch)
        assert not ctx.labels
        return str(await ctx.call(waits))

    async with RuntimeKernel.create(agent=job, policy=PolicyEngine([])) as kernel:
        said = (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output
    assert "the call of fetch has ended, which has begun this task" in said
    assert "would not get the labels untrusted of the result" in said
    assert read.is_set() == (begun == "within the call")


async def test_a_task_that_a_tool_awaits_gives_its_labels_to_the_job() -> None:
    @tool(effect="read")
    async def fetch() -> str:
        return str(await asyncio.create_task(browse("x")))

    async def job(ctx: Any) -> list[str]:
        await ctx.call(fetch)
        return sorted(ctx.labels)

    async with RuntimeKernel.create(agent=job, policy=PolicyEngine([])) as kernel:
        assert (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output == ["untrusted"]
