"""Jobs under crashes at any moment, against a world that remembers what really happened: random programs (`programs`), and the cases that
they have found or do not reach.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from unit.jobs.hosting import Agent, Hosting, entries, hosting, prefix
from unit.jobs.programs import Crash, LifeOf, Seed, quiet, run_seed

from sabot.agents.accounts import guard, journal_rows
from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.engine.calls.tools import tool
from sabot.errors import EffectError, LetterRefused
from sabot.jobs import core
from sabot.journal import Letter
from sabot.journal.base import EVERY
from sabot.journal.ended_jobs import BLOCKED, JobQuery
from sabot.journal.entries import Attempt, Begin, Entry, Intent
from sabot.journal.memory import MemoryReader, MemoryStorage


@pytest.fixture(autouse=True)
def many_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A life has a few rows: a ledger marks its place in the journal every 3, in place of 1,000."""
    monkeypatch.setattr(guard, "MARK_EVERY", 3)


# -- random programs ----------------------------------------------------------------------------------------------------


@pytest.mark.one_in(10, "any seed draws all kinds of jobs; `make slow` runs hundreds")
@pytest.mark.parametrize("number", range(24))
def test_random_jobs_that_crash_do_in_the_world_what_they_say(number: int) -> None:
    run_seed(number, "memory")


@pytest.mark.one_in(10, "any seed draws all kinds of jobs; `make slow` runs hundreds")
@pytest.mark.parametrize("number", range(10))
def test_random_jobs_lose_what_was_not_durable_and_nothing_else(number: int) -> None:
    run_seed(number, "sqlite")


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1600, 100))
def test_many_random_jobs_that_crash(start: int) -> None:
    for number in range(start, start + 100):
        run_seed(number, "sqlite" if number % 4 == 0 else "memory")


@pytest.mark.one_in(5, "any seed draws all kinds of jobs; `make slow` runs 300 more")
@pytest.mark.parametrize("number", range(12))
def test_random_jobs_that_crash_do_what_rules_and_a_budget_allow(number: int) -> None:
    run_seed(number, "sqlite" if number < 2 else "memory", guarded=True)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(3000, 3300, 100))
def test_many_random_jobs_do_what_rules_and_a_budget_allow(start: int) -> None:
    for number in range(start, start + 100):
        run_seed(number, "sqlite" if number % 4 == 0 else "memory", guarded=True)


def some_seed_finds(words: str) -> bool:
    """Whether the oracle says so of one of the first seeds."""
    for number in range(40):
        try:
            run_seed(number, "memory", guarded=True)
        except AssertionError as error:
            if words in str(error):
                return True
    return False


@pytest.mark.slow  # half a second of a core
def test_a_verdict_that_a_restart_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "encode_verdict", lambda _: b"")
    assert some_seed_finds("was denied, and made") or some_seed_finds("nobody has allowed it")


@pytest.mark.slow  # half a second of a core
def test_a_ledger_that_counts_a_replay_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    starts, rows = iter(range(1000)), journal_rows.rows_of

    def counted_anew(entries: Iterable[Entry]) -> Iterator[LedgerEvent]:
        start = next(starts)
        for row in rows(entries):
            yield msgspec.structs.replace(row, event_id=f"{row.event_id} in life {start}")

    monkeypatch.setattr(journal_rows, "rows_of", counted_anew)
    assert some_seed_finds("and the ledger has")


@pytest.mark.slow  # half a second of a core
def test_a_start_that_passes_over_entries_behind_a_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_rows, "entries_behind", lambda *_: iter(()))
    assert some_seed_finds("and the ledger has")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "guarded", "first", "step"),
    [
        (14, False, 1, 1),
        (16, True, 1, 1),
        (3, False, 1, 1),
        # The longest one, a minute of a core: the time goes with the square of its entries. `make slow` draws some of its parts each
        # time, and not all or none.
        *((17, False, first, 6) for first in range(1, 7)),
        (11, True, 1, 1),
    ],
)
def test_a_crash_behind_each_entry_and_another_one_soon_after(
    number: int, guarded: bool, first: int, step: int
) -> None:
    at, over = first, False
    with quiet():
        while not over:
            seed = Seed(number, "memory", guarded=guarded)
            over = LifeOf(seed, Crash(entries=at)).live()
            if not over:
                LifeOf(seed, Crash(entries=3)).live()
                LifeOf(seed, Crash()).live()
            seed.check()
            at += step
    assert at > 10


@pytest.mark.slow  # half a second of a core
def test_a_seed_does_the_same_each_time() -> None:
    assert run_seed(5, "memory").turns == run_seed(5, "memory").turns


# -- attempts -----------------------------------------------------------------------------------------------------------


class World:
    """What happened, by name."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()

    def tool(self, name: str, **options: Any) -> Any:
        @tool(name=name, **options)
        async def make(value: Any = None) -> Any:
            self.made[f"{name} {value}"] += 1
            return value

        return make


def blocked(home: MemoryStorage) -> dict[str, str]:
    """The reasons of the blocked jobs, as any reader of the journal finds them."""
    return {mark.job: mark.blocked for mark in MemoryReader(home).logged(JobQuery(status=BLOCKED), EVERY)}


def questions(jobs: Hosting) -> list[str]:
    """Tokens of those that are open."""
    return [token for token, question in jobs.journal.storage.questions.items() if not question.closed]  # type: ignore[attr-defined]


async def test_a_result_that_is_asked_late_in_another_attempt_is_the_recorded_one() -> None:
    """The read fails at first and is asked again; the payment behind it was taken for one in doubt, though its result was there."""
    world, home, fails = World(), MemoryStorage(), [ValueError("busy")]
    pay = world.tool("pay")

    @tool(effect="read")
    async def look() -> str:
        if fails:
            raise fails.pop()
        return "there"

    async def f(ctx: DurableContext) -> Any:
        try:
            seen = await ctx.call(look)
        except EffectError:
            seen = "busy"
        paid = await ctx.call(pay, 1)
        if ctx.attempt == 1:
            raise ValueError("again")
        return [seen, paid]

    async with hosting(home, Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["there", 1]
    assert world.made == {"pay 1": 1}
    assert not any(isinstance(e, Intent) and e.kind == "ask" for e in entries(home))


async def test_a_question_that_an_attempt_gave_up_is_asked_anew_and_an_answered_one_is_not() -> None:
    home = MemoryStorage()
    world = World()
    look = world.tool("look", effect="read")

    async def f(ctx: DurableContext) -> Any:
        first = await ctx.ask("confirm", {"question": 1})
        if ctx.attempt == 1:
            async with asyncio.timeout(0.01):
                await ctx.ask("confirm", {"question": 2})
        await ctx.call(look)
        second = await ctx.ask("confirm", {"question": 2})
        return [first.outcome, second.outcome, second.approved]

    async with hosting(home, Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        (token,) = questions(jobs)
        jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
        await jobs.until(lambda: [e for e in entries(home) if isinstance(e, Attempt) and e.ordinal == 0])
        await jobs.parks("j")
        (token,) = questions(jobs)
        jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.done["j"] == ["resolved", "resolved", True]


async def test_a_child_that_an_attempt_gave_up_runs_again_in_the_next_one() -> None:
    home = MemoryStorage()

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == "child":
            await ctx.sleep(0.2)
            return "child"
        async with asyncio.timeout(0.01 if ctx.attempt == 1 else None):
            return await ctx.child("agent", "child")

    async with hosting(home, Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert (jobs.agent.done["j"], jobs.agent.outcomes["j~2"]) == ("child", "succeeded")
    assert [(e.job, e.run) for e in entries(home) if isinstance(e, Begin)] == [("j", 1), ("j~2", 1), ("j~2", 2)]


async def test_chance_and_ids_are_those_of_the_attempt_before() -> None:
    world = World()
    put = world.tool("put", effect="idempotent")

    async def f(ctx: DurableContext) -> Any:
        await ctx.call(put, [str(ctx.uuid()), ctx.random().random()])
        if ctx.attempt < 3:
            raise ValueError("again")

    async with hosting(MemoryStorage(), Agent(f, verdict="again")) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert list(world.made.values()) == [1]


# -- order --------------------------------------------------------------------------------------------------------------


async def test_what_comes_of_one_letter_is_told_behind_the_letters_that_came_with_it() -> None:
    """A verdict and an answer are taken in one step. The verdict's result stands behind the answer in the journal, and was told first."""
    home, release, called = MemoryStorage(), asyncio.Event(), asyncio.Event()

    @tool
    async def pay() -> None:
        raise ConnectionResetError

    @tool(effect="read")
    async def slow() -> None:  # so that the job is not parked
        called.set()
        await release.wait()

    async def f(ctx: DurableContext) -> Any:
        order: list[str] = []

        async def noted(name: str, work: Any) -> None:
            await work
            order.append(name)

        await asyncio.gather(noted("pay", ctx.call(pay)), noted("ask", ctx.ask("confirm", {})), ctx.call(slow))
        return order

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await called.wait()
        await jobs.until(lambda: len(questions(jobs)) == 2)
        of_pay, of_ask = sorted(questions(jobs), key=lambda token: home.questions[token].ordinal)
        jobs.journal.post(Letter("answer", of_pay, body=b'{"outcome": "done"}'))
        jobs.journal.post(Letter("answer", of_ask, body=b"{}"))
        await jobs.until(lambda: not jobs.journal.letters())
        release.set()
        await jobs.over("j")
        live = jobs.agent.done["j"]
    async with hosting(prefix(home, len(entries(home)) - 1), Agent(f)) as jobs:
        await jobs.over("j")
        assert jobs.agent.done["j"] == live == ["ask", "pay"]


async def test_a_job_is_not_parked_before_what_it_has_asked_is_noted() -> None:
    """Two letters are taken in one step: the second one parked the job, and the timer that the first one had led to was never set."""
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        await ctx.wait("go", timeout="0.9s")  # too short to be parked
        await ctx.sleep("1h")
        return "over"

    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: [e for e in entries(home) if isinstance(e, Intent) and e.kind == "wait"])
        for number, name in enumerate(["go", "other"]):
            jobs.journal.post(Letter("signal", str(number), "j", name))
        await jobs.parks("j")
        clock.advance(3601)
        await jobs.over("j")
        assert jobs.agent.done["j"] == "over"


async def test_a_job_that_goes_on_as_another_while_the_host_stops_does_so_at_the_next_start() -> None:
    """A host that stops notes nothing that is asked, so the new history must not begin behind that."""
    home, world, called, release = MemoryStorage(), World(), asyncio.Event(), asyncio.Event()
    pay = world.tool("pay")

    @tool
    async def slow() -> None:
        called.set()
        await release.wait()

    async def f(ctx: DurableContext) -> Any:
        if ctx.message == 2:
            return await ctx.call(pay, 2)
        await ctx.call(slow)
        wait = asyncio.create_task(ctx.wait("never"))
        await asyncio.sleep(0)
        wait.cancel()
        ctx.continue_as(2)

    async with hosting(home, Agent(f), grace_s=5.0) as jobs:
        jobs.begin("j", 1)
        await called.wait()
        asyncio.get_running_loop().call_later(0.05, release.set)
    for _ in range(2):
        async with hosting(home, Agent(f)) as jobs:
            await jobs.over("j")
            assert (jobs.agent.done["j"], jobs.agent.blocks) == (2, {})
    assert world.made == {"pay 2": 1}


# -- functions that are not deterministic ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "step", "words"),
    [
        ("new", "step 2, call pay", "call check"),
        ("removed", "step 1, call look", "call pay"),
        ("reordered", "step 1, call look", "call pay"),
        ("arguments", "step 2, call pay", "with other arguments"),
        ("chance", "step 2, call pay", "with other arguments"),
        ("shorter", "step 3", "the function"),
        ("kind", "step 2, call pay", "ask confirm"),
    ],
)
async def test_a_function_that_asks_otherwise_is_blocked_with_the_step_and_both_calls_and_others_go_on(
    change: str, step: str, words: str
) -> None:
    world, clock = World(), ManualClock()
    home = MemoryStorage(clock)
    look, pay, check = world.tool("look", effect="read"), world.tool("pay"), world.tool("check", effect="read")

    async def f(ctx: DurableContext) -> Any:
        now = ctx.message if changed else ""
        if now == "reordered":
            await ctx.call(pay, 1)
        if now != "removed":
            await ctx.call(look, 1)
        if now == "new":
            await ctx.call(check, 1)
        if now == "kind":
            await ctx.ask("confirm", {})
        if now != "reordered":
            amount = 2 if now == "arguments" else random.random() if now == "chance" else 1
            await ctx.call(pay, amount)
        if now != "shorter":
            await ctx.sleep("1h")
        return "over"

    changed = False
    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("bad", change)
        jobs.begin("good", "")
        await jobs.parks("bad")
        await jobs.parks("good")
    changed, made = True, world.made.copy()
    async with hosting(home, Agent(f, clock, code="2")) as jobs:
        await jobs.over("bad")
        told = str(jobs.agent.blocks["bad"])
        assert [each for each in (step, words, "'1'", "'2'") if each not in told] == [], told
        clock.advance(3601)
        await jobs.over("good")
        assert list(jobs.host.statistics()["blocked"]) == ["bad"]
        await jobs.until(lambda: blocked(home))
        assert blocked(home) == {"bad": told[:500]}
    assert blocked(home) == {"bad": told[:500]}  # while no process runs, and until the next start tries it again
    assert world.made == made
    changed = False
    async with hosting(home, Agent(f, clock)) as jobs:  # the old code is back
        assert blocked(home) == {}
        await jobs.over("bad")
        assert jobs.agent.done["bad"] == "over"
    assert world.made == made


# -- tools that do not behave ---------------------------------------------------------------------------------------------


class Unsayable:
    """msgpack has no word for it."""


@pytest.mark.parametrize(
    "result", [b"x" * (50 << 20), Unsayable(), {1: Unsayable()}, lambda: 1], ids=["50 MB", "a", "b", "c"]
)
async def test_a_result_that_cannot_be_recorded_is_an_error_and_the_effect_is_not_made_again(result: Any) -> None:
    home, calls = MemoryStorage(), []

    @tool
    async def pay() -> Any:
        calls.append(1)
        return result

    async def f(ctx: DurableContext) -> Any:
        try:
            await ctx.call(pay)
        except EffectError as error:
            await ctx.sleep(0)
            return error.type

    async with hosting(home, Agent(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == "ResultNotRecorded"
    for count in range(3, len(entries(home))):
        async with hosting(prefix(home, count), Agent(f)) as jobs:
            await jobs.over("j")
            assert jobs.agent.done["j"] == "ResultNotRecorded"
    assert len(calls) == 1


async def test_a_tool_that_hangs_and_ignores_its_cancellation_holds_nobody_but_its_job() -> None:
    release = asyncio.Event()

    @tool(timeout="10ms")
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    @tool
    async def hangs() -> None:
        await release.wait()

    async def f(ctx: DurableContext) -> Any:
        match ctx.message:
            case "hangs":
                await ctx.call(hangs)
            case "stubborn":
                await ctx.call(stubborn)
        return "over"

    async with hosting(MemoryStorage(), Agent(f)) as jobs:
        jobs.begin("stubborn", "stubborn")
        jobs.begin("hangs", "hangs")
        await jobs.parks("stubborn")  # a person is asked
        for number in range(40):
            jobs.begin(f"good{number}")
        await jobs.over(*(f"good{number}" for number in range(20)))
        (token,) = questions(jobs)
        jobs.journal.post(Letter("answer", token, body=b'{"outcome": "done"}'))
        await jobs.over("stubborn")
        assert (jobs.host.statistics()["in_flight"], len(jobs.host.left_behind)) == (1, 1)
        release.set()
        await jobs.over("hangs")


# -- letters ------------------------------------------------------------------------------------------------------------


async def test_an_answer_comes_once_in_time_and_with_its_token() -> None:
    clock = ManualClock()
    home = MemoryStorage(clock)

    async def f(ctx: DurableContext) -> Any:
        reply = await ctx.ask("confirm", {}, timeout="1h")
        return [reply.outcome, dict(reply.resolution)]

    def refused(jobs: Hosting, token: str) -> str:
        with pytest.raises(LetterRefused) as error:
            jobs.journal.post(Letter("answer", token, body=b'{"n": 2}'))
        return error.value.reason

    async with hosting(home, Agent(f, clock)) as jobs:
        jobs.begin("j")
        jobs.begin("late")
        await jobs.parks("j")
        await jobs.parks("late")
        tokens = {question.job: token for token, question in home.questions.items()}
        assert refused(jobs, "wrong") == "unknown"
        jobs.journal.post(Letter("answer", tokens["j"], body=b'{"n": 1}'))
        clock.advance(3601)  # an answer that was durable before the deadline beats the timer
        assert refused(jobs, tokens["j"]) in ("second", "closed")
        await jobs.over("j", "late")
        assert jobs.agent.done == {"j": ["resolved", {"n": 1}], "late": ["expired", {}]}
        assert refused(jobs, tokens["j"]) in ("second", "closed")
        assert refused(jobs, tokens["late"]) in ("closed", "expired", "second")
