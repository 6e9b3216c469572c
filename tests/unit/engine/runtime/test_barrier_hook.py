"""What must be safe before a task acknowledges a barrier: the flush of an operator, and what an agent task waits for."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.connectors.base import Sink
from sabot.engine.operators.base import Stateful
from sabot.engine.operators.sink import SinkWriter
from sabot.engine.runtime.agents.task import AgentTask
from sabot.engine.runtime.life.local_parts import LocalParts
from sabot.errors import CheckpointFailed
from tools.agent_tools import bounded, publish, started, until


class Journal:
    """Flushes when it is told to."""

    what = "journal orders"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.flushed: asyncio.Future[Mapping[str, int]] = asyncio.get_running_loop().create_future()

    @property
    def flushing(self) -> bool:
        return not self.flushed.done()

    def barrier(self, checkpoint_id: int) -> "asyncio.Future[Mapping[str, int]]":
        self.asked.append(checkpoint_id)
        return self.flushed


def an_app(url: str, directory: Path) -> App:
    app = App("shop", broker=url, checkpoint_dir=directory, checkpoint_interval="1h")

    @app.agent("orders")
    async def orders(ctx: Any) -> None:
        return None

    return app


def the_task(app: App) -> AgentTask:
    """Nobody but the engine adds to what its barriers wait for."""
    run = app.agent_runtime.runner._run
    assert run is not None
    assert isinstance(run.parts, LocalParts)
    assert run.parts.agents is not None
    return run.parts.agents.task


async def test_an_agent_task_acknowledges_when_all_that_must_flush_has(memory_url: str, tmp_path: Path) -> None:
    app, journal = an_app(memory_url, tmp_path), Journal()
    publish(app, "orders", [1])
    async with started(app):
        task = the_task(app)
        task.flushes.append(journal)
        taken = asyncio.ensure_future(app.agent_runtime.trigger_checkpoint())
        await until(lambda: len(journal.asked) == 1)
        await until(lambda: task.hint() == "journal orders has not flushed")  # sinks and calls have ended by themselves
        assert not taken.done()
        journal.flushed.set_result({})
        assert await bounded(taken) == journal.asked[0]


async def test_who_cannot_flush_makes_the_task_decline(memory_url: str, tmp_path: Path) -> None:
    app, journal = an_app(memory_url, tmp_path), Journal()
    publish(app, "orders", [1])
    async with started(app):
        task = the_task(app)
        task.flushes.append(journal)
        taken = asyncio.ensure_future(app.agent_runtime.trigger_checkpoint())
        await until(lambda: len(journal.asked) == 1)
        journal.flushed.set_exception(OSError("the disk of the journal is full"))
        with pytest.raises(CheckpointFailed, match="task agents declined: the disk of the journal is full"):
            await bounded(taken)
        task.flushes.remove(journal)


class Kept(Sink):
    def __init__(self) -> None:
        self.name = "kept"
        self.said: list[str] = []

    def open(self) -> None:
        self.said.append("open")

    def write(self, batch: Any) -> None:
        self.said.append("write")

    def flush(self) -> None:
        self.said.append("flush")

    def close(self) -> None:
        self.said.append("close")


def test_the_hook_of_a_sink_writer_flushes_its_sink_and_it_has_no_state() -> None:
    sink = Kept()
    writer = SinkWriter(sink, None, None, lambda: 0)
    assert writer.flush() == {}
    assert sink.said == ["flush"]
    assert not isinstance(writer, Stateful)
