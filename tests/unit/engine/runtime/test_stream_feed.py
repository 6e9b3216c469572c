"""The barriers of a stream that goes into an agent, before and after the agents' cut, and those of checkpoints that were given up; and
what becomes of rows that the agent does not take.
"""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa

from sabot import Batch
from sabot._cython.flow.channel import END, Abort, Barrier, Channel
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.runtime.agents.stream_feed import StreamFeed
from sabot.errors import InternalError, SabotError


class Lanes:
    """An agent's operator, as a feed sees it."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.full = self.stopped = False
        self.failure: BaseException | None = None
        self.error: Exception | None = None  # what `put` raises
        self.spec = SimpleNamespace(agent_id="one.take")

    async def writable(self) -> None:
        await asyncio.Event().wait()

    def put(self, batch: Batch) -> None:
        if self.error is not None:
            raise self.error
        self.rows += batch.data.column("n").to_pylist()


class Fed:
    """A feed with its channel, its lanes, and what it recorded."""

    def __init__(self) -> None:
        self.channel, self.lanes = Channel(name="stream to agent"), Lanes()
        self.broken: list[SabotError] = []
        operator = cast(AgentOperator, self.lanes)
        self.feed = StreamFeed(self.channel, operator, [], lambda what, error: self.broken.append(error))
        self.feed.start()

    async def come(self, *elements: Any) -> None:
        for element in elements:
            row = isinstance(element, int)
            self.channel.put_nowait(Batch(pa.RecordBatch.from_pydict({"n": [element]})) if row else element)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def recorded(self) -> list[int]:
        return [n for batch in self.feed.recorded for n in batch.data.column("n").to_pylist()]


async def test_rows_behind_a_barrier_that_came_before_the_cut_wait_for_it() -> None:
    fed = Fed()
    await fed.come(1, Barrier(1), 2)
    assert fed.lanes.rows == [1]
    assert fed.feed.barrier(1).done()
    await fed.settle()
    assert (fed.lanes.rows, fed.recorded) == ([1, 2], [])


async def test_rows_between_the_cut_and_the_barrier_are_recorded_though_there_is_no_room() -> None:
    fed = Fed()
    await fed.come(1)
    fed.lanes.full = True
    come = fed.feed.barrier(1)
    fed.lanes.failure = ValueError("nobody serves them")
    await fed.come(2, 3, Barrier(1), 4)
    assert come.done()
    assert (fed.lanes.rows, fed.recorded) == ([1, 2, 3], [2, 3])


async def test_the_end_of_a_stream_stands_for_its_barrier() -> None:
    fed = Fed()
    come = fed.feed.barrier(1)
    await fed.come(1, END)
    assert come.done()
    assert fed.recorded == [1]
    assert fed.feed.over.is_set()
    assert fed.feed.barrier(2).done()


async def test_a_checkpoint_that_was_given_up_holds_nothing_back() -> None:
    fed = Fed()
    await fed.come(Barrier(1), 1)
    fed.feed.abort(1)
    await fed.come(2)
    assert fed.lanes.rows == [1, 2]
    fed.feed.abort(2)
    await fed.come(Barrier(2), 3)  # it comes late
    assert fed.lanes.rows == [1, 2, 3]


async def test_word_of_an_older_checkpoint_that_was_given_up_does_not_end_the_wait_for_the_next() -> None:
    fed = Fed()
    come = fed.feed.barrier(2)
    await fed.come(Barrier(1), Abort(1), 1)
    assert not come.done()
    assert fed.feed.flushing
    await fed.come(Barrier(2))
    assert come.done()
    assert fed.recorded == [1]


async def test_an_error_while_rows_go_into_the_lanes_is_told() -> None:
    fed = Fed()
    fed.lanes.error = KeyError("no such port")
    await fed.come(1)
    assert [type(error) for error in fed.broken] == [InternalError]
    assert "stream to agent" in str(fed.broken[0])


async def test_rows_of_an_agent_that_fails_while_inputs_end_go_into_its_lanes() -> None:
    fed = Fed()
    fed.lanes.full = True
    fed.feed.take_all()
    await fed.come(1, END)
    assert fed.lanes.rows == [], "the agent serves them when it has room"
    fed.lanes.failure = ValueError("nobody serves them")
    fed.feed.go_on()
    await fed.settle()
    assert fed.lanes.rows == [1]
    assert fed.feed.over.is_set()
    fed.feed.close()


async def test_a_feed_that_is_closed_waits_for_no_room() -> None:
    fed = Fed()
    before = asyncio.all_tasks()
    fed.lanes.full = True
    await fed.come(1)
    waiting = asyncio.all_tasks() - before
    assert len(waiting) == 1
    fed.feed.close()
    await fed.settle()
    assert [task.cancelled() for task in waiting] == [True]


async def test_recorded_rows_are_kept_until_the_checkpoint_has_them_or_is_given_up() -> None:
    fed = Fed()
    fed.feed.barrier(1)
    await fed.come(1, Barrier(1))
    assert [batch.num_rows for batch in fed.feed.take_recorded()] == [1]
    assert fed.recorded == []
    fed.feed.barrier(2)
    await fed.come(2)
    fed.feed.abort(2)
    assert fed.recorded == []
