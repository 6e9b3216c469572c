"""On whose behalf a job runs reaches each model call that it makes, on all ways, and what is logged and measured of it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sabot import App
from sabot.agents import (
    DurableContext,
    ExecutionRequest,
    InMemoryEventBus,
    OpenTelemetryAdapter,
    RuntimeKernel,
    tool,
)
from sabot.base import logs
from sabot.connectors.memory import MemoryBroker
from sabot.llm import Agent, ExecutionEngine, RequestContext, ScriptedProvider, ToolCall, assistant
from tools.agent_tools import started, until

seen: list[RequestContext] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


async def watch(call: Any, forward: Any) -> Any:
    seen.append(call.context)
    return await forward(call)


def engine_of(*answers: Any) -> ExecutionEngine:
    provider = ScriptedProvider(list(answers)) if answers else ScriptedProvider(lambda spec: "said")
    return ExecutionEngine(provider, middleware=["logging", "retry", watch])


ENGINE = engine_of()


@tool(effect="read")
async def asks(text: str) -> str:
    """Asks."""
    return (await ENGINE.complete(text)).content


async def run_an_agent(text: str) -> str:
    first = assistant("", ToolCall("c", "asks", '{"text": "more"}'))
    return (await Agent(engine_of(first, "done"), tools=[asks]).run(text)).content


HELPER = Agent(engine_of(), name="helper", instructions="Help.")

WAYS: dict[str, Any] = {
    "model": lambda ctx: ctx.llm(ENGINE).complete("x"),
    "stream": lambda ctx: anext(ctx.llm(ENGINE).stream("x")),
    "tool": lambda ctx: ctx.call(asks, "x"),
    "step": lambda ctx: ctx.step(lambda: run_an_agent("x")),
    "agent": lambda ctx: HELPER.run("x", effects=ctx.llm(ENGINE)),
    "agent as a tool": lambda ctx: Agent(
        engine_of(assistant("", ToolCall("c", "helper", '{"prompt": "x"}')), "done"), tools=[HELPER]
    ).run("x", effects=ctx.llm(engine_of(assistant("", ToolCall("c", "helper", '{"prompt": "x"}')), "done"))),
}


def facts(context: RequestContext) -> tuple[Any, ...]:
    return context.tenant_id, context.user_id, context.session_id, context.job_id


@pytest.mark.parametrize("way", WAYS)
async def test_each_model_call_of_a_job_of_a_kernel_says_on_whose_behalf_it_is_made(way: str) -> None:
    async def f(ctx: DurableContext) -> None:
        await WAYS[way](ctx)

    request = ExecutionRequest(prompt="go", scope_id="acme", principal_id="ann", session_id="c-1")
    async with RuntimeKernel.create(agent=f) as kernel:
        handle = await kernel.execute(request)
        await handle.result()
    assert {facts(each) for each in seen} == {("acme", "ann", "c-1", handle.job_id)}
    assert len({each.trace_id for each in seen} - {None}) == 1
    assert len(seen) == {"step": 3, "agent as a tool": 3}.get(way, 1)


async def test_the_model_calls_of_an_apps_jobs_do_so_too_and_those_of_children_have_their_parents_trace(
    memory_url: str,
) -> None:
    app = App("desk", memory_url, journal="memory")

    @app.agent("questions", durable=True, scope="tenant", principal="user", key="thread", sink="answers")
    async def handle(ctx: Any) -> Any:
        await ctx.llm(ENGINE).complete("x")
        return await ctx.child("pay", {"text": "x"})

    @app.agent("nothing", durable=True)
    async def pay(ctx: Any) -> Any:
        await ctx.call(asks, "x")
        return "paid"

    app.llm_agent("hints", ENGINE, name="hints", sink="answers", scope="tenant")
    async with started(app):
        question = {"tenant": "acme", "user": "ann", "thread": 7}
        MemoryBroker.get(memory_url).publish("questions", [question])
        await until(lambda: len(seen) == 2)
        parent, child = seen
        assert facts(parent)[:3] == facts(child)[:3] == ("acme", "ann", "desk.handle/7")
        assert child.job_id == f"{parent.job_id}~2"
        assert child.trace_id == parent.trace_id
        MemoryBroker.get(memory_url).publish("hints", [{"tenant": "guests", "text": "x"}])
        await until(lambda: len(seen) == 3)
        assert facts(seen[2])[:3] == ("guests", None, None)
        assert seen[2].trace_id != parent.trace_id


async def test_a_context_that_is_given_is_taken_and_outside_of_jobs_there_is_none() -> None:
    async def f(ctx: DurableContext) -> None:
        await ctx.step(lambda: ENGINE.complete("x", context=RequestContext(tenant_id="other")))

    async with RuntimeKernel.create(agent=f) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go", scope_id="acme"))).result()
    await ENGINE.complete("x")
    assert [facts(each) for each in seen] == [("other", None, None, None), (None, None, None, None)]


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_line_that_a_job_or_its_tool_logs_names_the_job(form: str, tmp_path: Path) -> None:
    log, path = logging.getLogger("shop"), tmp_path / "log"
    handler = logging.FileHandler(path)
    handler.setFormatter(logs.AsJson("") if form == "json" else logs.Scrubbing("%(name)s: %(message)s"))
    engine_log, level = logging.getLogger("sabot.llm"), logging.getLogger("sabot.llm").level

    @tool(effect="read")
    def look(text: str) -> None:
        log.warning("look %s", text)

    async def f(ctx: DurableContext) -> None:
        log.warning("begins")
        await ctx.call(look, "here")
        await ctx.llm(ENGINE).complete("x")

    for each in (log, engine_log):
        each.addHandler(handler)
    engine_log.setLevel(logging.DEBUG)
    try:
        async with RuntimeKernel.create(agent=f) as kernel:
            request = ExecutionRequest(prompt="go", scope_id="acme", principal_id="ann", session_id="c-1")
            handle = await kernel.execute(request)
            await handle.result()
        log.warning("after")
    finally:
        engine_log.setLevel(level)
        for each in (log, engine_log):
            each.removeHandler(handler)
    *lines, last = path.read_text().splitlines()
    assert len(lines) == 3
    if form == "text":
        assert lines[:2] == [f"shop: {said} (job {handle.job_id})" for said in ("begins", "look here")]
        words = f"(tenant acme, user ann, session c-1, job {handle.job_id}, trace {seen[0].trace_id}): scripted"
        assert words in lines[2]
        assert last == "shop: after"
        return
    wanted = {"tenant": "acme", "user": "ann", "session": "c-1", "job": handle.job_id, "trace": seen[0].trace_id}
    for line in map(json.loads, lines):
        assert {name: line[name] for name in wanted} == wanted
    assert json.loads(last).keys().isdisjoint(wanted)


async def test_spans_have_the_session_and_the_trace_that_model_calls_name() -> None:
    exporter, provider, bus = InMemorySpanExporter(), TracerProvider(), InMemoryEventBus()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    adapter = OpenTelemetryAdapter(bus, tracer_provider=provider)
    await adapter.start()

    async def f(ctx: DurableContext) -> None:
        await ctx.call(asks, "x")

    async with RuntimeKernel.create(agent=f, event_bus=bus) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="go", scope_id="acme", session_id="c-1"))).result()
        await until(lambda: len(exporter.get_finished_spans()) == 2)
    await adapter.stop()
    for span in exporter.get_finished_spans():
        assert (span.attributes["sabot.scope"], span.attributes["sabot.session"]) == ("acme", "c-1")
        assert f"{span.context.trace_id:032x}" == seen[0].trace_id
