"""`timeout=` of a job: how long an attempt may run without being parked."""

import asyncio
from typing import Any

from unit.jobs.hosting import AGENT, Agent, entries, hosting, prefix

from sabot.clock import ManualClock
from sabot.jobs.history import History
from sabot.journal import Letter
from sabot.journal.entries import Begin, EffectResult, End, Intent
from sabot.journal.memory import MemoryStorage
from sabot.llm import tool


def late_ones(home: MemoryStorage) -> list[EffectResult]:
    return [each for each in entries(home) if isinstance(each, EffectResult) and each.ordinal == 0]


class Slow:
    """A function that calls a tool which does not return before the gate opens."""

    def __init__(self, effect: str = "read", **options: Any) -> None:
        self.gate = asyncio.Event()
        self.calls = 0
        self.seen: list[str] = []

        @tool(effect=effect, **options)
        async def look() -> str:
            self.calls += 1
            await self.gate.wait()
            return "seen"

        self.look = look

    async def __call__(self, ctx: Any) -> Any:
        try:
            return await ctx.call(self.look)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise


async def test_an_attempt_that_runs_too_long_fails_with_a_timeout_and_so_it_does_in_every_replay() -> None:
    home, clock, slow = MemoryStorage(), ManualClock(), Slow()
    agent = Agent(slow, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.until(lambda: slow.calls)
        clock.advance(4.9)
        jobs.begin("b")
        await jobs.until(lambda: slow.calls == 2)
        clock.advance(0.1)
        await jobs.over("a")
        assert "b" not in agent.outcomes
        assert str(agent.errors["a"]) == "job a ran longer than timeout=5s"
        assert isinstance(agent.errors["a"], TimeoutError)
        assert agent.outcomes == {"a": "failed"}
    assert slow.seen == ["cancelled"]
    before_end = next(at for at, each in enumerate(entries(home)) if isinstance(each, End))
    again = Agent(Slow(), clock)  # today without timeout=
    async with hosting(prefix(home, before_end), again) as jobs:
        await jobs.over("a")
        assert repr(again.errors["a"]) == repr(agent.errors["a"])


async def test_the_time_stands_still_while_a_job_is_parked_and_begins_anew_when_it_wakes() -> None:
    home, clock = MemoryStorage(), ManualClock()
    slow = Slow()

    async def function(ctx: Any) -> Any:
        await ctx.sleep("1h")
        return await ctx.call(slow.look)

    agent = Agent(function, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.parks("a")
        clock.advance(3600)
        await jobs.until(lambda: slow.calls)
        clock.advance(4)
        slow.gate.set()
        await jobs.over("a")
        assert agent.done == {"a": "seen"}
    assert late_ones(home) == []


async def test_another_attempt_has_its_time_anew() -> None:
    home, clock, slow = MemoryStorage(), ManualClock(), Slow()
    agent = Agent(slow, clock, timeout_s=5, verdict="again")
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.until(lambda: slow.calls)
        clock.advance(5)
        await jobs.until(lambda: slow.calls == 2)
        clock.advance(4)
        slow.gate.set()
        await jobs.over("a")
        assert agent.done == {"a": "seen"}
    assert len(late_ones(home)) == 1
    again = Agent(slow, clock)
    async with hosting(prefix(home, len(entries(home)) - 1), again) as jobs:
        await jobs.over("a")
        assert again.done == {"a": "seen"}
    assert slow.calls == 2


async def test_an_unsafe_call_that_hangs_is_a_question_to_a_person_once_the_time_is_over() -> None:
    home, clock, slow = MemoryStorage(), ManualClock(), Slow("unsafe")
    agent = Agent(slow, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.until(lambda: slow.calls)
        clock.advance(5)
        await jobs.parks("a")  # the function is over, and the job is not: nobody knows whether the call was made
        question = next(each for each in entries(home) if isinstance(each, Intent) and each.kind == "ask")
        jobs.journal.post(Letter("answer", question.token, body=b'{"outcome": "done"}'))
        await jobs.over("a")
        assert isinstance(agent.errors["a"], TimeoutError)
    assert slow.calls == 1


async def test_what_the_function_does_about_it_is_not_cut_short() -> None:
    home, clock, slow = MemoryStorage(), ManualClock(), Slow()
    undone: list[str] = []

    @tool(effect="unsafe")
    async def undo() -> str:
        undone.append("undone")
        return "undone"

    async def function(ctx: Any) -> Any:
        try:
            await ctx.call(slow.look)
        except asyncio.CancelledError:
            return await ctx.call(undo)

    agent = Agent(function, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.until(lambda: slow.calls)
        clock.advance(5)
        await jobs.over("a")
        assert agent.done == {"a": "undone"}
        clock.advance(5)
    assert undone == ["undone"]
    assert len(late_ones(home)) == 1


async def test_a_cancel_from_outside_is_a_cancel_though_the_time_is_over_too() -> None:
    home, clock = MemoryStorage(), ManualClock()
    slow = Slow()

    async def function(ctx: Any) -> Any:
        try:
            await ctx.call(slow.look)
        except asyncio.CancelledError:
            await ctx.ask("confirm", {})

    agent = Agent(function, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        jobs.begin("a")
        await jobs.until(lambda: slow.calls)
        clock.advance(5)
        await jobs.parks("a")
        jobs.journal.post(Letter("cancel", job="a", name="enough"))
        await jobs.over("a")
        assert agent.outcomes == {"a": "cancelled"}


async def test_a_call_that_was_not_sent_is_not_in_doubt() -> None:
    home, clock, slow = MemoryStorage(), ManualClock(), Slow("unsafe")
    agent = Agent(slow, clock, timeout_s=5)
    async with hosting(home, agent) as jobs:
        written, durable = asyncio.Event(), jobs.journal.durable
        jobs.journal.durable = lambda position: written.wait()  # the disk takes its time
        jobs.begin("a")
        await jobs.until(lambda: jobs.host.statistics()["in_flight"] == 1)
        clock.advance(5)
        await jobs.until(lambda: [each for each in entries(home) if isinstance(each, EffectResult) and each.ordinal])
        jobs.journal.durable = durable
        written.set()
        await jobs.over("a")
        assert isinstance(agent.errors["a"], TimeoutError)
        assert jobs.host.statistics()["doubts"] == slow.calls == 0


def test_the_time_of_a_job_is_told_without_a_look_at_all_its_calls_under_way() -> None:
    """Each entry looked at all that were open: a history of four thousand calls that were made at once took a second."""
    looked = 0

    class Open(dict[int, Intent]):
        def values(self) -> Any:
            nonlocal looked
            for each in super().values():
                looked += 1
                yield each

    history = History(Begin("job", 0, AGENT, b""))
    history._open = Open()
    for ordinal in range(1, 101):
        history.add(Intent("job", ordinal, ordinal, "call", "look"))
    for ordinal in range(1, 101):
        history.add(EffectResult("job", 100 + ordinal, ordinal))
    assert (history.ran_ms, history._open) == (200, {})
    assert looked <= 200
