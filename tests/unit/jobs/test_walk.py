"""An effect walks through few functions, from `ctx.call` to the delivery of its result (docs/decisions/089)."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

from unit.jobs.hosting import Agent, hosting

import sabot.jobs
from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.engine.calls.tools import tool
from sabot.journal.memory import MemoryStorage

FUNCTIONS, FILES = 42, 9
BESIDE = {"timers.py", "journal_calls.py"}  # the host looks for timers and letters meanwhile
ROOM = Path(sabot.jobs.__file__).parent


@tool(effect="read")
async def add(number: int) -> int:
    return number + 1


async def test_an_effect_walks_through_no_more_functions_than_its_budget() -> None:
    walks: list[set[tuple[str, str]]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent == ROOM and file.name not in BESIDE:
            walks[-1].add((file.name, frame.f_code.co_qualname))

    async def job(ctx: DurableContext) -> Any:
        await ctx.call(add, 0)
        for number in range(3):  # of an effect in a row, since the host may do something else during one of them
            walks.append(set())
            before = sys.getprofile()
            sys.setprofile(note)
            try:
                await ctx.call(add, number)
            finally:
                sys.setprofile(before)

    agent = Agent(job)
    async with hosting(MemoryStorage(ManualClock()), agent) as running:
        running.begin("job")
        await running.over("job")
    assert list(agent.done) == ["job"]
    walked = set.intersection(*walks)
    files = {file for file, _ in walked}
    assert (len(walked) <= FUNCTIONS, len(files) <= FILES) == (True, True), sorted(walked)
    assert {"core.py", "host.py", "run.py", "runner.py"} <= files, "the walk was not seen"
