"""Spans of jobs: which there are, how they hang together, what they say, across a pause and a crash."""

import asyncio

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from sabot.agents import (
    ExecutionRequest,
    InMemoryEventBus,
    OpenTelemetryAdapter,
    OTelConfig,
    RuntimeEvent,
    RuntimeEventType,
    RuntimeKernel,
)
from sabot.errors import EffectError, UserError
from sabot.llm import ToolCall, assistant, tool
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from tools.agent_tools import until


@tool(effect="read")
async def look(what: str) -> str:
    """Looks."""
    if what == "lead":
        raise ValueError("no lead")
    return f"some {what}"


class Traced:
    """A bus, and the spans that are made of it."""

    def __init__(self, **config):
        self.bus, self.exporter, provider = InMemoryEventBus(), InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.adapter = OpenTelemetryAdapter(self.bus, OTelConfig(**config), tracer_provider=provider)

    async def __aenter__(self):
        await self.adapter.start()
        return self

    async def __aexit__(self, *_):
        await self.adapter.stop()

    async def spans(self, name=""):
        await self.bus.flush()
        return [span for span in self.exporter.get_finished_spans() if name in span.name]


def agent_of(*answers):
    engine = ExecutionEngine(ScriptedProvider(list(answers)), retries=0)
    return Agent(engine, tools=[look], name="miner")


def asks(what):
    return assistant("", ToolCall("c", "look", f'{{"what": "{what}"}}'))


async def traced_run(agent, prompt="find gold", **config):
    async with Traced(**config) as traced, RuntimeKernel.create(agent=agent, event_bus=traced.bus) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=prompt, scope_id="tenant-123"))
        await handle.result()
        await until(
            lambda: (
                traced.exporter.get_finished_spans()[-1:]
                and traced.exporter.get_finished_spans()[-1].name == "agent.job"
            )
        )
        return handle, await traced.spans()


async def test_the_tree_of_a_job_has_its_requests_and_calls():
    handle, spans = await traced_run(agent_of(asks("gold"), "There is some."), service_name="mine")
    assert [span.name for span in spans] == ["agent.run", "agent.tool", "agent.run", "agent.job"]
    job = spans[-1]
    assert {span.context.trace_id for span in spans} == {job.context.trace_id}
    assert [span.parent.span_id for span in spans[:-1]] == [job.context.span_id] * 3
    assert (job.parent, len({span.context.span_id for span in spans})) == (None, 4)
    assert all(job.start_time <= span.start_time <= span.end_time <= job.end_time for span in spans)
    assert dict(job.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "kernel.miner",
        "sabot.job.id": handle.job_id,
        "sabot.job.outcome": "succeeded",
        "sabot.scope": "tenant-123",
        "service.name": "mine",
    }
    assert spans[0].attributes["gen_ai.response.model"] == "scripted-1"
    assert spans[0].attributes["gen_ai.usage.output_tokens"] > 0
    assert spans[1].attributes["gen_ai.tool.name"] == "look"


async def test_tokens_and_durations_of_requests_are_measured():
    reader = InMemoryMetricReader()
    bus = InMemoryEventBus()
    adapter = OpenTelemetryAdapter(bus, tracer_provider=TracerProvider(), meter_provider=MeterProvider([reader]))
    await adapter.start()
    data = {
        "ordinal": 1,
        "attempt": 1,
        "began_at": 1.0,
        "model": "m",
        "usage": {"input_tokens": 30, "output_tokens": 4},
    }
    await bus.publish(RuntimeEvent(RuntimeEventType.MODEL_DONE, "j", data, at=3.0))
    await adapter.stop()
    [scope] = reader.get_metrics_data().resource_metrics[0].scope_metrics
    sums = {
        (metric.name, point.attributes.get("gen_ai.token.type")): point.sum
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    assert sums == {
        ("gen_ai.client.token.usage", "input"): 30,
        ("gen_ai.client.token.usage", "output"): 4,
        ("gen_ai.client.operation.duration", None): 2.0,
    }


async def test_content_is_there_only_where_it_is_asked_for():
    words = "gold", "find", "There"
    _, spans = await traced_run(agent_of(asks("gold"), "There is some."))
    said = " ".join(str(value) for span in spans for value in span.attributes.values())
    assert not any(word in said for word in words)
    every = {"capture_input": True, "capture_output": True, "capture_tool_args": True}
    _, spans = await traced_run(agent_of(asks("gold"), "There is some."), **every)
    assert spans[-1].attributes["gen_ai.input.messages"] == "find gold"
    assert spans[1].attributes["gen_ai.tool.call.arguments"] == '{"what": "gold"}'
    assert spans[1].attributes["gen_ai.tool.call.result"] == "some gold"
    assert spans[2].attributes["gen_ai.output.messages"] == "There is some."


@pytest.mark.parametrize("record", [True, False])
async def test_an_error_has_an_event_where_exceptions_are_recorded(record):
    _, spans = await traced_run(agent_of(asks("lead"), "There is none."), record_exceptions=record)
    span = spans[1]
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert [dict(each.attributes) for each in span.events] == [{"exception.type": "ValueError"}] * record


async def lost(ctx):
    raise ValueError("no lead for 4111")


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_an_error_said_is_content(wanted):
    _, spans = await traced_run(agent_of(asks("lead"), "There is none."), capture_output=wanted)
    with pytest.raises(EffectError):
        await failed_run(lost, traced := Traced(capture_output=wanted))
    for span, words in ((spans[1], "no lead"), (traced.exporter.get_finished_spans()[-1], "no lead for 4111")):
        assert (span.status.description, span.attributes["error.type"]) == (words if wanted else None, "ValueError")
        assert [words in str(dict(each.attributes)) for each in span.events] == [wanted]


async def failed_run(agent, traced):
    async with traced, RuntimeKernel.create(agent=agent, event_bus=traced.bus) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="find gold"))
        await until(traced.exporter.get_finished_spans)
        await handle.result()


async def ask_a_person(ctx):
    return (await ctx.ask("confirm", {"amount": 5})).approved


async def test_a_job_is_one_trace_across_the_pause_of_an_approval_and_the_end_of_the_process(tmp_path):
    async with (
        Traced() as before,
        RuntimeKernel.create(agent=ask_a_person, event_bus=before.bus, journal=tmp_path) as kernel,
    ):
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        await until(lambda: kernel.statistics()["parked"])
        assert await before.spans() == []
    async with (
        Traced() as after,
        RuntimeKernel.create(agent=ask_a_person, event_bus=after.bus, journal=tmp_path) as kernel,
    ):
        [found] = await kernel.resume()
        [action] = await found.get_pending_actions()
        await found.resolve_action(action.resume_token, {"approved": True})
        await found.result()
        await until(lambda: len(after.exporter.get_finished_spans()) == 2)
        asked, job = await after.spans()
    assert (asked.name, job.name, found.job_id) == ("agent.action", "agent.job", handle.job_id)
    assert (asked.context.trace_id, asked.parent.span_id) == (job.context.trace_id, job.context.span_id)
    assert asked.attributes["sabot.action.outcome"] == "resolved"
    assert asked.start_time == pytest.approx(action.created_at * 1e9, abs=1e6)


@pytest.mark.parametrize("how", ["cancelled", "returned", "failed", "continued"])
async def test_a_question_whose_job_ends_is_cancelled_and_has_a_span(how):
    """No event told that nobody can answer it any more, so it had no span either. After `continue_as` it stayed open."""

    async def work(ctx):
        if how == "cancelled":
            return await ask_a_person(ctx)
        if ctx.message == 2:
            return None
        asked = asyncio.ensure_future(ctx.ask("confirm", {"amount": 5}))
        await ctx.sleep("1ms")
        if how == "continued":
            ctx.continue_as(2)
        assert how == "returned", asked
        return None

    async with Traced() as traced, RuntimeKernel.create(agent=work, event_bus=traced.bus) as kernel:
        seen = []
        await traced.bus.subscribe(seen.append)
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        if how == "cancelled":
            await until(lambda: kernel.statistics()["parked"])
            await handle.cancel("not wanted")
        await until(lambda: len(traced.exporter.get_finished_spans()) == 2)
        asked, job = await traced.spans()
        assert [each.status for each in await kernel.actions.find()] == ["cancelled"]
    assert (asked.name, job.name) == ("agent.action", "agent.job")
    assert asked.attributes["sabot.action.outcome"] == "cancelled"
    assert asked.parent.span_id == job.context.span_id
    told = {str(event.type): event for event in seen}
    required, closed = told["action.required"], told["action.cancelled"]
    assert closed.data["action_id"] == required.data["action_id"]
    assert closed.data["type"] == "confirm"
    types = [str(event.type) for event in seen]
    assert types.index("action.cancelled") < types.index(
        f"job.{how if how in ('cancelled', 'failed') else 'completed'}"
    )


async def test_an_event_that_is_told_again_gives_the_same_span():
    def events():
        data = {"tool": "look", "ordinal": 1, "attempt": 1, "began_at": 1.0, "result": 1}
        yield RuntimeEvent(RuntimeEventType.JOB_STARTED, "j", {"agent": "a"}, "j/0/1/job.started", 1.0)
        yield RuntimeEvent(RuntimeEventType.TOOL_END, "j", data, "j/1/1/tool.end", 2.0)

    async with Traced() as traced:
        for _ in range(2):
            for event in events():
                await traced.bus.publish(event)
        first, second = await traced.spans()
    assert first.context == second.context


async def test_jobs_are_sampled_whole():
    async with Traced(sampling_rate=0.5) as traced:
        for number in range(400):
            for kind, data in (("job.started", {}), ("final.result", {"outcome": "succeeded"})):
                await traced.bus.publish(RuntimeEvent(RuntimeEventType(kind), f"job-{number}", data))
        spans = await traced.spans()
    assert 100 < len(spans) < 300
    assert len(await _count(0.0)) == 0


async def _count(rate):
    async with Traced(sampling_rate=rate) as traced:
        await traced.bus.publish(RuntimeEvent(RuntimeEventType.FINAL_RESULT, "j", {"outcome": "succeeded"}))
        return await traced.spans()


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(UserError, match="sampling_rate"):
        OTelConfig(sampling_rate=2)
    assert OTelConfig() == OTelConfig(tracer_name="agent_runtime", record_exceptions=True, sampling_rate=1.0)


async def test_without_a_provider_nothing_is_recorded_and_nothing_fails():
    bus = InMemoryEventBus()
    adapter = OpenTelemetryAdapter(bus)
    await adapter.start()
    await adapter.start()
    await bus.publish(RuntimeEvent(RuntimeEventType.FINAL_RESULT, "j", {"outcome": "succeeded"}))
    await adapter.stop()
    await adapter.stop()
    assert not bus.wants(RuntimeEventType.FINAL_RESULT, "j")


async def test_the_spans_of_children_are_in_the_trace_of_the_first_job_also_after_a_restart(tmp_path):
    async def lead(ctx):
        return await ctx.child(middle, "gold")

    async def middle(ctx):
        return await ctx.child(digger, ctx.message)

    async def digger(ctx):
        await ctx.call(look, ctx.message)
        return await ctx.wait("go")

    agents = {"agent": [lead, middle, digger], "journal": tmp_path}
    async with Traced() as before, RuntimeKernel.create(event_bus=before.bus, **agents) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="find gold"))
        await until(lambda: kernel.statistics()["parked"] == 3)
        await until(lambda: any("agent.tool" in span.name for span in before.exporter.get_finished_spans()))
        (call,) = await before.spans("agent.tool")
    async with Traced() as after, RuntimeKernel.create(event_bus=after.bus, **agents) as kernel:
        (again,) = [each for each in await kernel.resume() if each.job_id == handle.job_id]
        await kernel.jobs.signal(f"{handle.job_id}~1~1", "go", "dug")
        assert (await again.result()).output == "dug"
        await until(lambda: len(after.exporter.get_finished_spans()) == 4)
        jobs = {span.attributes["sabot.job.id"]: span for span in await after.spans("agent.job")}
    first, second, third = (jobs[handle.job_id + below] for below in ("", "~1", "~1~1"))
    assert first.parent is None
    assert (second.parent.span_id, third.parent.span_id) == (first.context.span_id, second.context.span_id)
    assert call.parent.span_id == third.context.span_id
    assert {span.context.trace_id for span in (call, *jobs.values())} == {first.context.trace_id}


async def test_a_job_is_sampled_with_its_children():
    traced = Traced(sampling_rate=0.5)
    for number in range(40):
        names = [f"job-{number}", f"job-{number}~1", f"job-{number}~1~7"]
        assert len({traced.adapter._samples(name) for name in names}) == 1
    assert {traced.adapter._samples(f"job-{number}") for number in range(40)} == {True, False}
