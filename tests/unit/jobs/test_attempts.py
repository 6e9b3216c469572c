"""Another attempt of a job goes on with what those before it have made: with children that they have given up, and with the call or
child that has succeeded, where an equal one has not.
"""

import asyncio
from typing import Any

import msgspec
import pytest
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError
from sabot.jobs.history import NOT_MADE, History
from sabot.journal.entries import Attempt, Begin, EffectResult, End, Entry, Intent, decode_entry, encode_entry
from sabot.journal.memory import MemoryJournal, MemoryStorage


class Desk:
    """A job that pays through a child, and is late once. `made`: what was paid."""

    def __init__(self) -> None:
        self.clock, self.made, self.late, self.answered = ManualClock(1_000.0), list[Any](), 0, asyncio.Event()

        @tool(effect="unsafe")
        async def pay(order: int) -> str:
            self.made.append(order)
            await self.answered.wait()
            return "paid"

        self.pay = pay
        self.agent = Agent(self.job, clock=self.clock, verdict="again")

    async def job(self, ctx: DurableContext) -> Any:
        if ctx.message == "pay":
            return await ctx.call(self.pay, 1)
        try:
            async with asyncio.timeout(10):
                return await ctx.child("agent", "pay")
        except TimeoutError:
            self.late += 1
            raise

    async def run(self, home: MemoryStorage) -> None:
        async with hosting(home, self.agent) as jobs:
            jobs.begin("j")
            await jobs.until(lambda: self.made)
            self.clock.advance(10)
            await jobs.until(lambda: any(isinstance(each, Attempt) for each in entries(home)))
            self.answered.set()
            await jobs.over("j")


def begun(home: MemoryStorage) -> list[tuple[str, int, bool]]:
    return [(each.job, each.run, each.keeps) for each in entries(home) if isinstance(each, Begin)]


async def test_a_job_that_was_late_goes_on_with_its_child_after_a_crash_at_any_entry() -> None:
    desk = Desk()
    home = MemoryStorage(desk.clock)
    await desk.run(home)
    assert (desk.made, desk.late, desk.agent.done["j"]) == ([1], 1, "paid")
    assert begun(home) == [("j", 1, False), ("j~2", 1, False), ("j~2", 2, True)]
    (attempt,) = [at for at, each in enumerate(entries(home)) if isinstance(each, Attempt)]
    paid = [at for at, each in enumerate(entries(home)) if isinstance(each, EffectResult) and each.job == "j~2"]
    for count in range(max(attempt, *paid) + 1, len(entries(home))):
        later, cut = Desk(), prefix(home, count)
        later.clock.advance(10)
        later.answered.set()
        async with hosting(cut, later.agent) as jobs:
            await jobs.over("j")
        assert (later.made, later.agent.done["j"]) == ([], "paid"), count


PAYING = ("j~2~1", "j~3")


class DeepDesk(Desk):
    """A desk whose child pays through a child of its own, beside another one that pays."""

    async def job(self, ctx: DurableContext) -> Any:
        if isinstance(ctx.message, int):
            return await ctx.call(self.pay, ctx.message)
        if ctx.message == "between":
            return await ctx.child("agent", 1)
        async with asyncio.timeout(10):
            return await asyncio.gather(ctx.child("agent", "between"), ctx.child("agent", 2))


async def test_a_crash_at_any_entry_of_a_tree_that_was_late_pays_nothing_twice() -> None:
    """Also between ATTEMPT and the second BEGIN of a child, and of a child of that: a call whose end nobody knows is asked
    about.
    """
    desk = DeepDesk()
    home = MemoryStorage(desk.clock)
    async with hosting(home, desk.agent) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: len(desk.made) == 2)
        desk.clock.advance(10)
        await jobs.until(lambda: any(isinstance(each, Attempt) for each in entries(home)))
        desk.answered.set()
        await jobs.over("j")
    whole = entries(home)
    assert sorted(desk.made) == [1, 2]
    assert max(each.run for each in whole if isinstance(each, Begin) and each.job == "j~2~1") == 2
    for count in range(1, len(whole)):
        calls = [each.job for each in whole[:count] if isinstance(each, Intent) and each.name == "pay"]
        unknown = len(calls) - len(payments(whole[:count]))
        assert await after_a_crash(prefix(home, count), unknown) == 2 - len(calls), count


def payments(found: list[Entry]) -> set[str]:
    return {
        each.job for each in found if isinstance(each, EffectResult) and each.job in PAYING and each.outcome == "ok"
    }


async def after_a_crash(home: MemoryStorage, unknown: int) -> int:
    """Goes on until each of the `unknown` calls is asked about, or to the end if there is none. Returns how many were made."""
    desk = DeepDesk()
    desk.clock.advance(10)  # or each attempt is late at once: the results of children before it are of a later time
    desk.answered.set()

    def asked() -> int:
        return sum(isinstance(each, Intent) and each.name == "in_doubt" for each in entries(home))

    def paid() -> int:
        return len(payments(entries(home)))

    async with hosting(home, desk.agent) as jobs:
        await (jobs.until(lambda: asked() == unknown) if unknown else jobs.over("j"))
        await jobs.until(lambda: asked() + paid() >= 2)
    assert asked() == unknown
    return len(desk.made)


async def test_an_attempt_of_an_earlier_version_goes_on_with_the_other_child_that_it_has_asked_for() -> None:
    """Its entry does not say that it keeps the first one, and the journal has what follows from that."""
    desk = Desk()
    home = MemoryStorage(desk.clock)
    await desk.run(home)
    (at,) = [at for at, each in enumerate(entries(home)) if isinstance(each, Attempt)]
    cut = prefix(home, at)
    before: Entry = msgspec.structs.replace(entries(home)[at], keeps=False)
    assert old_form(before) == before
    later = Desk()
    later.answered.set()
    owned = MemoryJournal(cut)
    owned.append(before)
    owned.close()
    async with hosting(cut, later.agent) as jobs:
        await jobs.over("j")
    assert later.agent.done["j"] == "paid"
    assert begun(cut)[-1] == ("j~4", 1, False)


@pytest.mark.parametrize("kind", ["idempotent", "child"])
async def test_an_attempt_takes_the_call_that_has_succeeded_for_an_equal_one_that_has_not(kind: str) -> None:
    """The first one was made once more, beside the one that the function had made in its place: it paid twice."""
    made: list[str] = []
    attempts: list[int] = []

    @tool(effect="idempotent", retries=0)
    async def pay() -> str:
        made.append("tried")
        if len(made) == 1:
            raise ValueError("the bank is closed")
        return f"paid by try {len(made)}"

    async def job(ctx: DurableContext) -> Any:
        if ctx.message == "pay":
            return await ctx.call(pay)
        attempts.append(ctx.attempt)
        for _ in range(2):
            try:
                told = await (ctx.call(pay) if kind == "idempotent" else ctx.child("agent", "pay"))
            except EffectError:
                continue
            if ctx.attempt == 1:
                raise RuntimeError("once")
            return told

    agent = Agent(job)

    def verdict(run: Any, error: BaseException) -> Any:
        return "again" if isinstance(error, RuntimeError) else "end"

    agent.failed = verdict  # type: ignore[method-assign]
    async with hosting(MemoryStorage(), agent) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert (attempts[-1], agent.done["j"], len(made)) == (2, "paid by try 2", 2)


def old_form(entry: Entry) -> Entry:
    """The entry as an earlier version has written it, without its last field."""
    data = encode_entry(entry)
    fields = msgspec.msgpack.decode(data[1:])
    assert fields.pop() is False
    return decode_entry(data[:1] + msgspec.msgpack.encode(fields), "here")


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("tries", [0, 1])
def test_a_child_that_was_given_up_is_kept_if_it_had_begun_and_the_entry_says_so(
    run: bool, again: bool, tries: int
) -> None:
    """Journals of earlier versions, of new ones, and such that both have written. `run`, `again`: what BEGIN and ATTEMPT say."""
    begin = Begin("j", 0, "a")
    given_up = EffectResult("j", 2, 1, tries, NOT_MADE)
    entries = [old_form(begin), Intent("j", 1, 1, "child", "a"), given_up, End("j", 3, "cancelled")]
    later = msgspec.structs.replace(begin, run=2, keeps=run)
    retried = History.of("j", [*entries, later if run else old_form(later)])
    assert (set(retried.intents), retried.failed_children) == (({1}, {1}) if run and tries else (set(), set()))
    attempt = Attempt("j", 4, 0, 2, keeps=again)
    tried = History.of("j", [*entries[:-1], attempt if again else old_form(attempt)])
    assert (set(tried.intents), tried.failed_children) == (({1}, {1}) if again and tries else (set(), set()))
    both = History.of("j", [*entries, later, msgspec.structs.replace(attempt, attempt=3)])
    assert set(both.intents) == ({1} if run and tries else set())
