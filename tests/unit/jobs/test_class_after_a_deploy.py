"""A call may have been made when the process was killed, and the program of the next start gives its tool another class."""

from typing import Any

import pytest
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.engine.calls.effects import Reconciled
from sabot.engine.calls.tools import Tool, tool
from sabot.journal.entries import Intent
from sabot.journal.memory import MemoryStorage

made: list[str] = []


def paying(effect: Any) -> Tool:
    async def look(effect: Any, order: str) -> Any:
        return Reconciled.UNKNOWN

    @tool(effect=effect, name="pay", **({"reconcile": look} if effect == "reconcilable" else {}))
    async def pay(order: str) -> str:
        made.append(order)
        return "paid"

    return pay


def job(effect: Any) -> Any:
    pay = paying(effect)

    async def function(ctx: Any) -> Any:
        return await ctx.call(pay, "o-1")

    return function


ASKED = [
    *(("unsafe", today) for today in ("local", "read", "metered", "idempotent", "reconcilable", "unsafe")),
    *(("reconcilable", today) for today in ("read", "idempotent", "unsafe")),
    ("idempotent", "unsafe"),
    ("read", "unsafe"),
]
REPEATED = [("idempotent", "read"), ("idempotent", "local"), ("metered", "read"), ("read", "idempotent")]


@pytest.mark.parametrize(("recorded", "today"), ASKED + REPEATED)
async def test_the_stricter_class_says_whether_a_call_that_may_have_been_made_is_repeated(
    recorded: str, today: str
) -> None:
    """A deploy that declared `effect="read"` made an unsafe call a second time, and asked nobody."""
    home = MemoryStorage()
    async with hosting(home, Agent(job(recorded))) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    count = next(at for at, each in enumerate(entries(home), 1) if isinstance(each, Intent))
    crashed = prefix(home, count)
    made.clear()
    async with hosting(crashed, Agent(job(today))) as jobs:
        if (recorded, today) in REPEATED:
            await jobs.over("j")
            assert (jobs.agent.done["j"], made) == ("paid", ["o-1"])
            return
        await jobs.parks("j")
    questions = [each.name for each in entries(crashed) if isinstance(each, Intent) and each.kind == "ask"]
    assert (questions, made) == (["in_doubt"], [])
