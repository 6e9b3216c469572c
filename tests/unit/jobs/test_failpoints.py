"""The steps of an effect, at which the runners of `sabot.testing` let an app die: its intent is durable, the call is about to be made, the
call has come back, its result is durable.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sabot import steps
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.tools import Tool, as_tool
from sabot.jobs.runner import Certainty, EffectRunner, Outcome
from sabot.journal import Position
from sabot.journal.entries import EffectResult, Intent
from sabot.journal.sqlite import SqliteJournal

EFFECT = EffectId("job", 1)


class Watching:
    """Notes each step, and lets the nth of a name fail before anything of it has happened."""

    def __init__(self, failing: str = "", nth: int = 1) -> None:
        self.seen: list[str] = []
        self._failing, self._left = failing, nth

    def before(self, name: str, what: str) -> None:
        self.seen.append(name)
        self._left -= name == self._failing
        if name == self._failing and self._left == 0:
            raise OSError(f"the test lets {name} fail")

    def after(self, name: str, what: str) -> None:
        self.seen.append(f"{name} done")

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@contextmanager
def watched(by: Watching) -> Iterator[None]:
    steps.watch(by)
    try:
        yield
    finally:
        steps.watch(None)


async def effect(journal: SqliteJournal, tool: Tool) -> Outcome:
    """One effect as a host makes it."""

    async def sendable(entry: Position | None) -> None:
        assert entry is not None
        await journal.durable(entry)

    runner = EffectRunner(clock=SYSTEM_CLOCK, sendable=sendable)
    intent = journal.append(Intent("job", 0, 1, "call", tool.name, effect_class=tool.effect))
    came: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    runner.make(EFFECT, tool, (), {}, came.set_result, intent)
    outcome = await came
    await journal.durable(journal.append(EffectResult("job", 0, 1, outcome=outcome.outcome, body=outcome.body)))
    await runner.close(0.0)
    return outcome


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_the_steps_of_an_effect_come_in_the_order_of_what_is_durable(tmp_path: Path, kind: str) -> None:
    journal, watching = SqliteJournal(tmp_path), Watching()

    def refund() -> str:
        watching.seen.append("the call")
        return "done"

    async def refund_async() -> str:
        return refund()

    with watched(watching):
        outcome = await effect(journal, as_tool(refund if kind == "thread" else refund_async))
    journal.close()
    assert outcome.certainty is Certainty.DONE
    made = ["call", "call done", "the call", "outcome", "outcome done"]
    assert watching.seen == ["journal", "journal done", *made, "journal", "journal done"]


@pytest.mark.parametrize(("at", "calls", "outcome"), [("call", 0, Certainty.NOT_SENT), ("outcome", 1, Certainty.DONE)])
async def test_an_error_at_a_step_of_a_call_says_whether_it_was_made(
    tmp_path: Path, at: str, calls: int, outcome: Any
) -> None:
    journal, made = SqliteJournal(tmp_path), 0

    async def refund() -> None:
        nonlocal made
        made += 1

    with watched(Watching(at)):
        found = await effect(journal, as_tool(refund))
    journal.close()
    assert (made, found.certainty) == (calls, outcome)
