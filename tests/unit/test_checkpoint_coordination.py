"""Checkpoints of the agent runtime: triggers, barriers, acknowledgements, the timer (rows 0.15 and 0.16)."""

import asyncio
import time

import pytest

from sabot import App
from sabot.agents.runtime import AgentProcess, AgentRuntime
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import Coordinator
from sabot.engine.state import BackendConfig, MemoryBackend
from sabot.errors import CheckpointFailed, UserError
from tools.agent_tools import bounded, checkpoint, manifests, processed, publish, records, started, state_of, until


class CountingBackend(MemoryBackend):
    """A user's own backend; `snapshots` tells when each was asked for, `fails` makes them fail."""

    def __init__(self):
        super().__init__(BackendConfig(backend_type="memory"))
        self.snapshots: list[float] = []
        self.awaited = 0
        self.fails = False

    async def snapshot(self):
        self.snapshots.append(time.monotonic())
        if self.fails:
            raise CheckpointFailed("the disk of the test is full")
        taken = await super().snapshot()
        await asyncio.sleep(0)
        self.awaited += 1
        return taken


@pytest.fixture
def backend():
    return CountingBackend()


@pytest.fixture
def app(memory_url, backend):
    app = App("shop", broker=memory_url)
    app.state_backend = backend
    return app


# Row 0.15


def test_coordinator_triggers_without_a_task_or_a_loop_give_growing_ids():
    coordinator = Coordinator()
    first, second = coordinator.trigger(), coordinator.trigger()
    assert isinstance(first, int)
    assert 0 < first < second


async def test_coordinator_without_a_task_completes_at_once():
    coordinator = Coordinator()
    await bounded(coordinator.wait(coordinator.trigger()))


async def test_checkpoint_triggered():
    """Document 000, step 2.5: agents are registered, none is running."""
    runtime = AgentRuntime(App("test-app"))

    async def test_agent(ctx):
        return None

    await runtime.register_agent(agent_id="test", agent_func=test_agent, topic="test")
    first = await bounded(runtime.trigger_checkpoint())
    second = await bounded(runtime.trigger_checkpoint())
    assert 0 < first < second


async def test_agent_receives_barrier():
    """Document 000, step 2.5."""

    async def test_agent(ctx):
        return None

    agent = AgentProcess(agent_id="test", agent_func=test_agent, topic="test", broker="memory://")
    await agent.receive_barrier(1)
    assert await bounded(agent.barrier_queue.get()) == 1


def test_runtime_has_a_coordinator_and_an_interval_of_a_minute():
    runtime = AgentRuntime(App("test-app"))
    assert isinstance(runtime.checkpoint_coordinator, Coordinator)
    assert runtime._checkpoint_interval == 60.0


async def test_the_interval_can_be_set_before_the_start(app):
    """Document 000 sets it; a property without a setter refused it with an AttributeError."""
    runtime = app.agent_runtime
    runtime._checkpoint_interval = 5.0
    assert (runtime._checkpoint_interval, app.settings.checkpoint_interval) == (5.0, 5.0)
    runtime._checkpoint_interval = "2s"
    assert app.settings.checkpoint_interval == 2.0
    with pytest.raises(UserError, match="checkpoint_interval"):
        runtime._checkpoint_interval = 0

    @app.agent("orders")
    async def orders(ctx):
        return None

    async with started(app):
        with pytest.raises(UserError, match="runs already"):
            runtime._checkpoint_interval = 1.0
    assert app.settings.checkpoint_interval == 2.0


async def test_checkpoints_come_by_themselves_between_start_and_stop(app, backend):
    app.configure(checkpoint_interval=0.1)

    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)

    publish(app, "orders", [1])
    begun = time.monotonic()
    async with started(app):
        await until(lambda: len(backend.snapshots) >= 3)
        assert time.monotonic() - begun >= 0.2
        assert backend.awaited >= 2
    count = len(backend.snapshots)
    await asyncio.sleep(0.3)  # three intervals: the timer must not run on
    assert len(backend.snapshots) == count


async def test_the_timer_survives_failing_checkpoints(app, backend):
    app.configure(checkpoint_interval=0.1)
    backend.fails = True
    seen = []

    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)
        seen.append(ctx.message)

    async with started(app):
        await until(lambda: len(backend.snapshots) >= 3)
        publish(app, "orders", [1])
        await until(lambda: seen == [1])
        assert state_of(app, "orders") == "running"
        assert backend.awaited == 0
        backend.fails = False
        await until(lambda: backend.awaited >= 1)


async def test_a_checkpoint_that_was_asked_for_and_fails_says_so(app, backend):
    backend.fails = True

    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)

    async with started(app):
        with pytest.raises(CheckpointFailed, match="the disk of the test is full"):
            await checkpoint(app)
        backend.fails = False
        await checkpoint(app)


# Row 0.16


async def test_a_trigger_awaits_the_snapshot_of_an_assigned_backend(app, backend):
    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)

    async with started(app):
        for number in range(1, 4):
            publish(app, "orders", [number])
            await until(lambda number=number: processed(app, "orders") == number)
            before = backend.awaited
            assert await bounded(app.agent_runtime.trigger_checkpoint()) > 0
            assert backend.awaited == before + 1


async def test_an_idle_app_acknowledges_a_barrier_within_a_tenth_of_a_second(app, backend):
    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", 1)

    @app.agent("others")
    async def others(ctx):
        return None

    delays = []
    async with started(app):
        limit = time.monotonic() + 60
        while time.monotonic() < limit and min(delays, default=1) >= 0.1:  # a busy machine may delay any of them
            asked, already = time.monotonic(), len(backend.snapshots)
            await bounded(app.agent_runtime.trigger_checkpoint())
            delays.append(backend.snapshots[already] - asked)
    assert min(delays) < 0.1


async def test_a_barrier_passes_while_messages_keep_coming(app, backend):
    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)
        await asyncio.sleep(0)

    publish(app, "orders", list(range(20_000)))
    async with started(app):
        await until(lambda: processed(app, "orders") > 0)
        await checkpoint(app)
        assert processed(app, "orders") < 20_000


async def test_a_call_that_hangs_does_not_hold_up_a_checkpoint(app, backend):
    """Its input goes into the checkpoint (DESIGN.md, decision 10)."""
    inside = asyncio.Event()

    @app.agent("orders")
    async def hangs(ctx):
        await ctx.state().put("n", ctx.message)
        inside.set()
        await asyncio.Event().wait()

    publish(app, "orders", [1])
    async with started(app):
        await bounded(inside.wait())
        await checkpoint(app)
        assert backend.awaited == 1
        assert list(backend.items("default")) == []


async def test_only_running_agents_are_waited_for(app, backend):
    @app.agent("bad")
    async def bad(ctx):
        raise ValueError("no")

    @app.agent("good")
    async def good(ctx):
        await ctx.state().put("n", ctx.message)

    publish(app, "bad", [1])
    async with started(app):
        await until(lambda: state_of(app, "bad") == "failed")
        await checkpoint(app)
        assert backend.awaited == 1


async def test_two_triggers_at_once_both_complete(app):
    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)

    async with started(app):
        first, second = await bounded(
            asyncio.gather(app.agent_runtime.trigger_checkpoint(), app.agent_runtime.trigger_checkpoint())
        )
    assert first != second


async def test_offsets_are_committed_with_a_checkpoint_and_not_before(app):
    @app.agent("orders")
    async def orders(ctx):
        return None

    broker = MemoryBroker.get(app.broker)
    publish(app, "orders", [1, 2, 3])
    async with started(app):
        await until(lambda: processed(app, "orders") == 3)
        assert broker.committed("shop.orders-group", "orders") == {}
        await checkpoint(app)
        await until(lambda: broker.committed("shop.orders-group", "orders") == {0: 3})


async def test_results_are_in_the_sink_when_the_checkpoint_that_covers_them_is_complete(app):
    @app.agent("orders", sink="out")
    async def orders(ctx):
        return ctx.message

    publish(app, "orders", list(range(100)))
    async with started(app):
        await until(lambda: processed(app, "orders") == 100)
        await checkpoint(app)
        assert len(records(app, "out")) == 100


async def test_only_the_last_checkpoints_are_kept(memory_url, tmp_path):
    app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

    @app.agent("orders")
    async def orders(ctx):
        await ctx.state().put("n", ctx.message)

    directory = tmp_path / "state" / "checkpoints"
    async with started(app):
        for number in range(8):
            publish(app, "orders", [number])
            await until(lambda number=number: processed(app, "orders") == number + 1)
            last = await checkpoint(app)
            assert any(str(last) in name for name in manifests(directory))
        await until(lambda: len(manifests(directory)) <= 4)
        assert any(str(last) in name for name in manifests(directory))
