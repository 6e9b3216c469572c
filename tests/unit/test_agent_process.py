"""AgentProcess: the face of one agent (acceptance rows 0.01 to 0.06), and the context that it gives to its function."""

import asyncio
import dataclasses
import time

import pytest

from sabot import AgentContext, App
from sabot.agents.runtime import AgentProcess, AgentState
from sabot.connectors.memory import MemoryBroker
from sabot.engine.state import BackendConfig, MemoryBackend
from sabot.kafka import KafkaSource
from tools.agent_tools import bounded, until


async def nothing(ctx):
    return None


def process(func, url, topic="in", **options) -> AgentProcess:
    return AgentProcess(agent_id="the-agent", agent_func=func, topic=topic, broker=url, **options)


class CountingBackend(MemoryBackend):
    """A user's own backend that remembers when each snapshot was asked for, once it is taken."""

    def __init__(self):
        super().__init__(BackendConfig(backend_type="memory"))
        self.snapshots: list[float] = []

    async def snapshot(self):
        asked = time.monotonic()
        taken = await super().snapshot()
        self.snapshots.append(asked)
        return taken


# Row 0.01


def test_fields_have_the_documented_names_and_defaults():
    agent = process(nothing, "memory://")
    assert dataclasses.is_dataclass(agent)
    assert (agent.agent_id, agent.agent_func, agent.topic, agent.broker) == ("the-agent", nothing, "in", "memory://")
    assert agent.process is None
    assert agent.state == AgentState.STOPPED
    assert agent.consumer is None
    assert agent.messages_processed == 0
    assert agent.errors_count == 0
    assert agent.last_message_time is None
    assert agent.state_backend is None
    assert isinstance(agent.barrier_queue, asyncio.Queue)


def test_fields_in_the_documented_order_can_be_given_by_place():
    assert [field.name for field in dataclasses.fields(AgentProcess)][:12] == [
        "agent_id",
        "agent_func",
        "topic",
        "broker",
        "process",
        "state",
        "consumer",
        "messages_processed",
        "errors_count",
        "last_message_time",
        "state_backend",
        "barrier_queue",
    ]


def test_fields_that_are_queues_are_not_shared_between_agents():
    assert process(nothing, "memory://").barrier_queue is not process(nothing, "memory://").barrier_queue


# Row 0.04


def test_states_have_the_documented_members_each_with_a_value_of_its_own():
    names = {state.name for state in AgentState}
    assert {"STOPPED", "STARTING", "RUNNING", "STOPPING", "FAILED", "RESTARTING"} <= names
    assert len({state.value for state in AgentState}) == len(names)
    assert all(isinstance(state.value, str) for state in AgentState)


# Rows 0.02 and 0.03


async def test_lifecycle_goes_from_stopped_to_running_to_stopped(memory_url):
    agent = process(nothing, memory_url)
    assert agent.state == AgentState.STOPPED
    await bounded(agent.start())
    assert agent.state == AgentState.RUNNING
    assert isinstance(agent.process, asyncio.Task)
    assert not agent.process.done()
    await bounded(agent.stop())
    assert agent.state == AgentState.STOPPED
    assert agent.process is None or agent.process.done()


async def test_lifecycle_opens_a_kafka_source_of_the_agents_own_group(memory_url):
    agent = process(nothing, memory_url)
    await bounded(agent.start())
    assert isinstance(agent.consumer, KafkaSource)
    assert agent.consumer.group_id == "the-agent-group"
    assert agent.consumer.name == "in"
    await bounded(agent.stop())


async def test_lifecycle_stop_is_idempotent_and_allowed_before_the_start(memory_url):
    agent = process(nothing, memory_url)
    await bounded(agent.stop())
    assert agent.state == AgentState.STOPPED
    await bounded(agent.start())
    await bounded(agent.stop())
    await bounded(agent.stop())
    assert agent.state == AgentState.STOPPED


async def test_lifecycle_can_begin_again_after_a_stop(memory_url):
    seen = []

    async def collect(ctx):
        seen.append(ctx.message)

    agent = process(collect, memory_url)
    await bounded(agent.start())
    await bounded(agent.stop())
    MemoryBroker.get(memory_url).publish("in", [1])
    await bounded(agent.start())
    assert agent.state == AgentState.RUNNING
    await until(lambda: seen == [1])
    await bounded(agent.stop())


async def test_lifecycle_is_stopping_while_a_call_is_being_cancelled(memory_url):
    states = []
    inside = asyncio.Event()

    async def hangs(ctx):
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            states.append(agent.state)

    agent = process(hangs, memory_url)
    MemoryBroker.get(memory_url).publish("in", [1])
    await bounded(agent.start())
    await bounded(inside.wait())
    await bounded(agent.stop())
    assert states == [AgentState.STOPPING]
    assert agent.state == AgentState.STOPPED


async def test_lifecycle_ends_with_the_offsets_committed_to_the_agents_group(memory_url):
    broker = MemoryBroker.get(memory_url)
    broker.publish("in", ["a", "b", "c"])
    agent = process(nothing, memory_url)
    await bounded(agent.start())
    await until(lambda: agent.messages_processed == 3)
    await bounded(agent.stop())
    assert broker.committed("the-agent-group", "in") == {0: 3}


async def test_lifecycle_leaves_no_task_on_the_loop(memory_url):
    before = asyncio.all_tasks()
    agent = process(nothing, memory_url)
    await bounded(agent.start())
    await agent.receive_barrier(1)
    MemoryBroker.get(memory_url).publish("in", [1])
    await until(lambda: agent.messages_processed == 1)
    await bounded(agent.stop())
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()


# Rows 0.05 and 0.06


async def test_loop_gives_each_message_in_order_as_a_context(memory_url):
    seen = []

    async def collect(ctx):
        assert isinstance(ctx, AgentContext)
        seen.append(ctx.message)

    agent = process(collect, memory_url)
    before = time.time()
    await bounded(agent.start())
    MemoryBroker.get(memory_url).publish("in", [{"n": n} for n in range(50)])
    await until(lambda: agent.messages_processed == 50)
    assert seen == [{"n": n} for n in range(50)]
    assert agent.errors_count == 0
    assert before - 1 <= agent.last_message_time <= time.time() + 1
    await bounded(agent.stop())


async def test_loop_that_meets_an_error_under_the_default_policy_fails(memory_url):
    seen = []

    async def second_is_bad(ctx):
        seen.append(ctx.message)
        if ctx.message == 2:
            raise ValueError("two")

    MemoryBroker.get(memory_url).publish("in", [1, 2, 3])
    agent = process(second_is_bad, memory_url)
    await bounded(agent.start())
    await until(lambda: agent.state == AgentState.FAILED)
    assert seen == [1, 2]
    assert agent.errors_count == 1
    assert agent.messages_processed == 1
    assert MemoryBroker.get(memory_url).records("in.dlq") == []
    await bounded(agent.stop())


async def test_loop_reraises_its_cancellation(memory_url):
    agent = process(nothing, memory_url)
    await bounded(agent.start())
    loop_task = agent.process
    loop_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(loop_task)
    await bounded(agent.stop())
    assert agent.state == AgentState.STOPPED


async def test_loop_that_is_idle_sees_a_barrier_within_a_tenth_of_a_second(memory_url):
    backend = CountingBackend()
    agent = process(nothing, memory_url, state_backend=backend)
    await bounded(agent.start())
    delays = []
    limit, number = time.monotonic() + 60, 0
    while time.monotonic() < limit and min(delays, default=1) >= 0.1:  # a busy machine may delay any of them
        number += 1
        asked, already = time.monotonic(), len(backend.snapshots)
        await agent.receive_barrier(number)
        await until(lambda already=already: len(backend.snapshots) > already, f"snapshot {number}")
        delays.append(backend.snapshots[already] - asked)
    assert min(delays) < 0.1
    await bounded(agent.stop())


async def test_loop_gives_the_context_the_agents_state_backend(memory_url):
    backend = MemoryBackend(BackendConfig(backend_type="memory"))
    counts = []

    async def count(ctx):
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        counts.append(n)

    agent = process(count, memory_url, state_backend=backend)
    await bounded(agent.start())
    MemoryBroker.get(memory_url).publish("in", ["x"] * 3)
    await until(lambda: agent.messages_processed == 3)
    assert counts == [1, 2, 3]
    await bounded(agent.stop())


# The context


async def test_fields_of_the_context_tell_where_a_message_came_from(memory_url):
    contexts = []
    app = App("shop", broker=memory_url)

    @app.agent("orders")
    async def look(ctx):
        contexts.append(ctx)

    broker = MemoryBroker.get(memory_url)
    broker.create_topic("orders", 2)
    broker.publish("orders", [{"first": True}], partition=1)
    broker.publish(
        "orders",
        [{"id": 7}],
        key="k1",
        partition=1,
        headers=(("trace", b"abc"), ("trace", b"def")),
        timestamp=1_700_000_000_123,
    )
    await app.start()
    await until(lambda: len(contexts) == 2)
    await app.stop()
    first, ctx = contexts
    assert first.key is None
    assert first.headers == ()
    assert ctx.message == {"id": 7}
    assert ctx.key == b"k1"
    assert ctx.headers == (("trace", b"abc"), ("trace", b"def"))
    assert ctx.timestamp == 1_700_000_000_123
    assert (ctx.topic, ctx.partition, ctx.offset) == ("orders", 1, 1)
    assert ctx.agent_id == "shop.look"
    assert type(ctx) is AgentContext


async def test_fields_of_a_record_agents_message_are_what_json_loads_gives(memory_url):
    shapes = [{"a": {"b": [1, 2.5, None, True]}}, [1, "two"], "text", 3, 2.5, True, None, {"ключ": "値"}, 2**70]
    seen = []
    app = App("shapes", broker=memory_url)

    @app.agent("any")
    async def look(ctx):
        seen.append(ctx.message)

    MemoryBroker.get(memory_url).publish("any", [s if s is not None else b"null" for s in shapes])
    await app.start()
    await until(lambda: len(seen) == len(shapes))
    await app.stop()
    assert seen == shapes
    assert [type(value) for value in seen] == [type(value) for value in shapes]
