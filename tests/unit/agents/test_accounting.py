"""The ledger of jobs: rows as often as calls, also over crashes, and never more than the budget has."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from unit.jobs.hosting import AGENT, Agent, entries, hosting, prefix

from sabot import App
from sabot.agents import (
    Budget,
    BudgetSpec,
    ExecutionRequest,
    InMemoryLedgerWriter,
    Ledger,
    LedgerEvent,
    ModelPolicy,
    PolicyEngine,
    PostgresLedgerWriter,
    RuntimeKernel,
    SqliteLedgerWriter,
)
from sabot.agents.accounts import ledger
from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.job_limits import JobLimits, reported_use
from sabot.agents.accounts.journal_rows import rows_of, update_ledger
from sabot.agents.durable.context import DurableContext
from sabot.agents.kernel.jobs import encode_request
from sabot.base.accounts import Amounts
from sabot.clock import ManualClock
from sabot.engine.calls.effects import EffectId
from sabot.errors import BrokerUnavailable, UserError
from sabot.jobs.guard import GuardedCall, guard_of
from sabot.jobs.values import pack
from sabot.journal import Letter
from sabot.journal.ended_jobs import JobQuery
from sabot.journal.entries import EffectResult, End, Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import (
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    Image,
    ModelUnavailable,
    OpenAIProvider,
    Price,
    PriceTable,
    RateLimited,
    RequestSpec,
    ScriptedProvider,
    Usage,
    assistant,
    system,
    tool,
    user,
)
from sabot.testing import FakeModelServer
from tools.agent_tools import checkpoint, publish, started, until, values

PRICES = PriceTable({"m": Price("1", "10"), "small": Price("0.1", "1")}, version="1")
READ = 16 + 2  # "one", or "two", at most: what stands around a message, and its letters two by two
MOST = READ + 100  # with an answer of 100 tokens
COST = (READ * Decimal(1) + 100 * Decimal(10)) / 1_000_000


def answer(spec: RequestSpec) -> Completion:
    return Completion(message=assistant("yes"), usage=Usage(100, 50), model=spec.model or "m", provider="scripted")


class World:
    """A model, and a tool, that jobs call."""

    def __init__(self, answers: Any = answer) -> None:
        self.provider = ScriptedProvider(answers, model="m")
        self.engine = ExecutionEngine(self.provider, retries=0, patience=0, prices=PRICES)
        self.looks = 0

        @tool(effect="read")
        def look(text: str) -> str:
            """Looks."""
            self.looks += 1
            return text

        self.look = look

    async def job(self, ctx: DurableContext) -> Any:
        first = await ctx.llm(self.engine).complete("one", max_tokens=100)
        await ctx.call(self.look, "x")
        second = await ctx.llm(self.engine).complete("two", max_tokens=100)
        return [first.model, second.model]


SHARED = False


@pytest.fixture(params=["alone", "shared"], autouse=True)
def _owner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that counts alone, and one whose budgets others may spend from too."""
    monkeypatch.setitem(globals(), "SHARED", request.param == "shared")


async def reserved(by: LedgerGuard) -> Amounts:
    """What the calls in flight of the app have reserved."""
    assert by.ledger.shared == SHARED
    if not SHARED:
        return (await by.ledger.standing("app")).reserved
    await by.ledger.ready("app")
    writer: Any = by.ledger.writer
    if isinstance(writer, SqliteLedgerWriter):
        with closing(sqlite3.connect(writer.path)) as database:
            kept = database.execute("SELECT tokens, calls FROM runtime_accounts WHERE span = 'reserved'").fetchall()
        return Amounts(*[kept[0][0], Decimal(0), kept[0][1]] if kept else ())
    return reduce(Amounts.plus, (each.amounts for each in writer._book._reserved.values()), Amounts())


def guard(writer: Any = None, clock: ManualClock | None = None, **budget: Any) -> LedgerGuard:
    budgets = [Budget("app", **budget)] if budget else []
    ledger = Ledger(
        writer or InMemoryLedgerWriter(shared=SHARED), budgets=budgets, clock=clock or ManualClock(1_000_000.0)
    )
    return LedgerGuard(ledger)


def rows(of: LedgerGuard) -> dict[str, tuple[str, str, int, str | None]]:
    writer: Any = of.ledger.writer
    return {
        each.event_id: (each.type, each.name, each.total_tokens, each.cost and str(each.cost)) for each in writer.events
    }


async def run(home: MemoryStorage, function: Any, by: LedgerGuard, *jobs: str) -> Agent:
    agent = Agent(function)
    async with hosting(home, agent, guard=by) as running:
        for job in jobs:
            running.begin(job)
        await running.over(*(jobs or ["job"]))
    await by.ledger.flush()
    return agent


async def test_each_call_is_a_row_with_what_it_used() -> None:
    by = guard()
    agent = await run(MemoryStorage(ManualClock(1.0)), World().job, by, "job")
    assert agent.done["job"] == ["m", "m"]
    assert rows(by) == {
        "job/1/1": ("model", "m", 150, "0.000600"),
        "job/2/1": ("tool", "look", 0, None),
        "job/3/1": ("model", "m", 150, "0.000600"),
    }


async def test_a_call_that_does_not_fit_is_not_made_and_the_function_hears_why() -> None:
    seen: list[Any] = []
    world = World()

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(world.engine).complete("one", max_tokens=100)
        try:
            await ctx.llm(world.engine).complete("two", max_tokens=100)
        except BudgetExceeded as error:
            seen.append(error.message)

    by = guard(max_tokens_daily=200, warn_at=1)
    await run(MemoryStorage(ManualClock(1.0)), job, by, "job")
    assert len(world.provider.requests) == 1
    assert list(rows(by)) == ["job/1/1"]
    assert seen == [
        f"m was not done: the daily budget of app has 200 tokens: 150 used, 0 reserved for calls in flight, and this call may use {MOST} "
        "(rule daily budget)"
    ]


async def test_a_further_attempt_is_denied_while_too_many_rows_wait_for_a_writer_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of the writer ended the app: a guard must not raise when it is asked about a further attempt."""

    class Away(InMemoryLedgerWriter):
        async def write(self, events: Sequence[LedgerEvent]) -> None:
            if events:
                raise BrokerUnavailable("the ledger does not answer")

    monkeypatch.setattr(ledger, "_MOST_WAITING", 0)
    monkeypatch.setitem(globals(), "SHARED", False)
    budgets, spec = [Budget("app", max_tokens_daily=10_000)], RequestSpec(messages=(user("one"),), max_tokens=100)
    by = LedgerGuard(Ledger(Away(), budgets=budgets, clock=ManualClock(1_000_000.0), patience="1ms"))
    first: Any = by.decide(GuardedCall(EffectId("job", 1), "model", "m", "app.agent", spec=spec))
    assert (await first).decision == "allow"
    by.ledger.record(LedgerEvent(event_id="x", type="model", scope_id="app"))
    again: Any = by.decide(GuardedCall(EffectId("job", 1, 2), "model", "m", spec=spec, after="again"))
    denied = await again
    assert (denied.decision, denied.error) == ("deny", "BudgetUnavailable")
    assert "the ledger does not answer" in denied.reason


async def test_a_tool_is_called_where_the_money_of_its_scope_is_used_up() -> None:
    world = World(
        lambda spec: Completion(message=assistant("yes"), usage=Usage(5_000, 5_000), model="m", provider="scripted")
    )

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(world.engine).complete("one", max_tokens=100)
        looked = await ctx.call(world.look, "x")
        with pytest.raises(BudgetExceeded):
            await ctx.llm(world.engine).complete("two", max_tokens=100)
        return looked

    by = guard(max_cost_daily=Decimal("0.01"))
    agent = await run(MemoryStorage(ManualClock(1.0)), job, by, "job")
    assert (agent.done["job"], world.looks, len(world.provider.requests)) == ("x", 1, 1)
    assert [each[0] for each in rows(by).values()] == ["model", "tool"]
    assert [each.name for each in by.ledger.judged] == ["m"]
    assert await reserved(by) == Amounts()


@pytest.mark.one_in(2, "a fifth of a second of a core each")
async def test_200_jobs_side_by_side_never_use_more_than_there_is() -> None:
    world = World()

    async def job(ctx: DurableContext) -> Any:
        try:
            await ctx.llm(world.engine).complete("one", max_tokens=199)
        except BudgetExceeded:
            return "denied"
        return "made"

    by = guard(max_tokens_daily=5_000)
    jobs = [f"job {number}" for number in range(200)]
    agent = await run(MemoryStorage(ManualClock(1.0)), job, by, *jobs)
    made = [each for each in agent.done.values() if each == "made"]
    assert len(made) == len(world.provider.requests) == len(rows(by))
    assert (await by.ledger.used("app"))["daily"].tokens == 150 * len(made) <= 5_000
    assert await reserved(by) == Amounts()
    assert by._open == {}


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("prompt", "read", "limit"),
    [
        ("word " * 800, 1000, 10_000),
        ("漢" * 1000, 1000, 10_000),
        ("\N{ROBOT FACE}" * 500, 1000, 10_000),
        (user("What is this?", Image(data=b"picture", media_type="image/png")), 48_169, 100_000),
        ([system("Be brief. " * 100), user("hi")], 302, 10_000),
    ],
)
async def test_no_budget_is_exceeded_by_what_a_vendor_counts_of_prompts(prompt: Any, read: int, limit: int) -> None:
    def answer(spec: RequestSpec) -> Completion:
        return Completion(message=assistant("yes"), usage=Usage(read, 10), model="m", provider="scripted")

    world = World(answer)

    async def job(ctx: DurableContext) -> Any:
        with suppress(BudgetExceeded):
            await ctx.llm(world.engine).complete(prompt, max_tokens=10)

    by = guard(max_tokens_daily=limit, max_cost_daily=Decimal(limit) / 10**6, warn_at=1)
    await run(MemoryStorage(ManualClock(1.0)), job, by, *(f"job {number}" for number in range(40)))
    used = (await by.ledger.used("app"))["daily"]
    assert used.calls == len(world.provider.requests) > 0
    assert (used.tokens <= limit, used.cost <= Decimal(limit) / 10**6) == (True, True), used


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    ("budget", "sent"),
    [
        ({"max_tokens_daily": 10_000}, 4096),
        ({"max_cost_monthly": 1}, 4096),
        ({"max_calls_hourly": 3}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("said", [None, 7, 10_000])
async def test_a_model_is_told_how_much_is_reserved_for_its_answer(budget: Any, sent: Any, said: int | None) -> None:
    """Where a budget limits that, and the request does not say it; else a model writes more than was reserved."""
    world = World()

    async def job(ctx: DurableContext) -> Any:
        with suppress(BudgetExceeded):
            await ctx.llm(world.engine).complete("one", max_tokens=said)

    await run(MemoryStorage(ManualClock(1.0)), job, guard(**budget), "job")
    denied = said == 10_000 and "max_tokens_daily" in budget
    assert [each.max_tokens for each in world.provider.requests] == ([] if denied else [said or sent])


async def test_money_is_reserved_by_the_prices() -> None:
    world = World()

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(world.engine).complete("one", max_tokens=100)

    by = guard(max_cost_daily=COST - Decimal("0.000001"))
    agent = await run(MemoryStorage(ManualClock(1.0)), job, by, "job")
    assert agent.outcomes == {"job": "failed"}
    assert world.provider.requests == []


async def test_a_cheaper_model_answers_where_the_budget_says_so() -> None:
    world = World()
    by = guard(max_tokens_daily=200, warn_at=1, exhausted="degrade", degrade_to="small")
    agent = await run(MemoryStorage(ManualClock(1.0)), world.job, by, "job")
    assert agent.done["job"] == ["m", "small"]
    assert rows(by)["job/3/1"] == ("model", "small", 150, "0.0000600")


async def test_a_person_may_allow_more_and_who_refuses_pays_nothing() -> None:
    for approved in (True, False):
        world, home = World(), MemoryStorage(ManualClock(1.0))
        by = guard(max_tokens_daily=200, warn_at=1, exhausted="ask")
        agent = Agent(world.job)
        async with hosting(home, agent, guard=by) as running:
            running.begin("job")
            await running.parks("job")
            (question,) = [entry for entry in entries(home) if isinstance(entry, Intent) and entry.kind == "ask"]
            said = b'{"approved": true}' if approved else b'{"approved": false}'
            running.journal.post(Letter("answer", question.token, body=said))
            await running.over("job")
        await by.ledger.flush()
        assert agent.outcomes["job"] == ("succeeded" if approved else "failed")
        assert list(rows(by)) == ["job/1/1", "job/2/1", *(["job/3/1"] if approved else [])]
        assert await reserved(by) == Amounts()


async def test_a_call_that_a_budget_gives_to_a_person_reserves_nothing_after_a_restart_either() -> None:
    """After a restart it held all that it may use, so that each further call of the scope was given to a person too."""
    home, clock = MemoryStorage(ManualClock(1.0)), ManualClock(1_000_000.0)
    world = World()

    async def job(ctx: DurableContext) -> Any:
        return (await ctx.llm(world.engine).complete("one", max_tokens=ctx.message)).content

    for life in ("first", "second"):
        by, agent = guard(clock=clock, max_tokens_daily=300, warn_at=1, exhausted="ask"), Agent(job)
        async with hosting(home, agent, guard=by) as running:
            if life == "first":
                running.begin("large", 1000)
            await running.parks("large")
            running.begin(life, 50)
            await running.over(life)
            assert agent.outcomes[life] == "succeeded"
            assert await reserved(by) == Amounts()
            if life == "second":
                token = next(each.token for each in entries(home) if isinstance(each, Intent) and each.kind == "ask")
                running.journal.post(Letter("answer", token, body=b'{"approved": true}'))
                await running.over("large")
                assert agent.outcomes["large"] == "succeeded"


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (RateLimited("slow down"), ("free", "m", 0, Decimal(0))),
        (ModelUnavailable("it broke off"), ("doubt", "m", 0, str(COST))),
    ],
)
async def test_a_call_that_failed_may_have_been_paid_or_not(error: Exception, row: Any) -> None:
    world = World([error])

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(world.engine).complete("one", max_tokens=100)

    by = guard(max_tokens_daily=1000)
    await run(MemoryStorage(ManualClock(1.0)), job, by, "job")
    assert rows(by) == {"job/1/1": row}
    assert (await by.ledger.used("app"))["daily"].tokens == (MOST if row[0] == "doubt" else 0)
    assert [each.unpriced for each in await by.ledger.writer.sums([], 0)] == [0]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
async def test_after_a_crash_at_any_step_rows_and_calls_agree(tmp_path: Path) -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    await run(home, World().job, guard(), "job")
    written = entries(home)
    assert sum(isinstance(entry, EffectResult) for entry in written) == 3
    for count in range(1, len(written) + 1):
        before = written[:count]
        world, cut = World(), prefix(home, count)
        writer = SqliteLedgerWriter(tmp_path / f"{count}.db", shared=SHARED)
        by = guard(writer, max_tokens_daily=10_000)
        assert await update_ledger(by.ledger, MemoryReader(cut)) == sum(
            isinstance(entry, EffectResult) for entry in before
        )
        assert await update_ledger(by.ledger, MemoryReader(cut)) == sum(
            isinstance(entry, EffectResult) for entry in before
        )
        asked = {entry.ordinal for entry in before if isinstance(entry, Intent) and entry.name == "llm"}
        answered = {entry.ordinal for entry in before if isinstance(entry, EffectResult)}
        async with hosting(cut, Agent(world.job), guard=by) as running:
            if count < len(written):
                await running.over("job")
        await by.ledger.flush()
        (sums,) = await writer.sums([], 0)
        assert len(world.provider.requests) == 2 - len(asked & answered)
        doubts = len(asked - answered)
        assert (sums.calls, sums.input_tokens) == (3 + doubts, 200), count
        assert sums.doubt_tokens == doubts * MOST
        assert await reserved(by) == Amounts()
        await writer.close()


async def test_what_an_open_call_may_use_is_reserved_again_after_a_crash() -> None:
    home = MemoryStorage(ManualClock(1_000.0))
    await run(home, World().job, guard(), "job")
    cut = prefix(home, 2)  # BEGIN, INTENT
    assert isinstance(entries(cut)[-1], Intent)
    by = guard(max_tokens_daily=10_000)
    async with hosting(cut, Agent(World().job), guard=by, resume=False):
        assert (held := await reserved(by)) == Amounts(2 * MOST, held.cost, 2)


# -- calls without a result ------------------------------------------------------------------------------------------------


@pytest.mark.one_in(6, "a quarter of a second of a core each")
@pytest.mark.parametrize("ends", ["cancelled", "failed", "timed out"])
async def test_a_call_that_outlives_its_job_is_in_doubt_with_what_it_may_use(ends: str) -> None:
    clock = ManualClock(1_000_000.0)
    with FakeModelServer("an answer of some words") as server:
        provider = OpenAIProvider("m", base_url=server.openai_url, api_key="key")
        engine = ExecutionEngine(provider, retries=0, patience=0, prices=PRICES)

        async def job(ctx: DurableContext) -> Any:
            model = ctx.llm(engine)
            await model.complete("one", max_tokens=50)
            server.hold()  # here, so that neither of the next two is answered
            asking = [asyncio.ensure_future(model.complete(each, max_tokens=50)) for each in ("two", "three")]
            await ctx.wait("go")
            raise ValueError(f"{len(asking)} answers are not awaited")

        by, home = guard(clock=clock, max_tokens_daily=10_000), MemoryStorage(clock)
        agent = Agent(job, clock, timeout_s=60 if ends == "timed out" else None)
        async with hosting(home, agent, guard=by) as running:
            running.begin("job")
            await running.until(lambda: server.in_flight == 2)
            if ends == "timed out":
                clock.advance(60)
            else:
                kind = "cancel" if ends == "cancelled" else "signal"
                running.journal.post(Letter(kind, "1" if kind == "signal" else "", job="job", name="go"))
            await running.over("job")
            server.release()
            await running.until(lambda: server.in_flight == 0)
        await by.ledger.flush()
        found = [each for each in by.ledger.writer.events if each.type == "doubt"]
        recorded = sum(each.total_tokens for each in by.ledger.writer.events)
        counted = server.tokens.total_tokens
    assert [each.event_id for each in found] == ["job/3/1", "job/4/1"]
    assert 0 < recorded <= counted <= recorded + sum(each.reserved_tokens for each in found)
    assert recorded < counted or ends == "timed out", "the calls of a job that is out of time are given up"
    used = (await by.ledger.used("app"))["daily"]
    assert used == Amounts(recorded + sum(each.reserved_tokens for each in found), used.cost, 3)
    assert await reserved(by) == Amounts()
    anew = guard(clock=clock, max_tokens_daily=10_000)
    assert await update_ledger(anew.ledger, MemoryReader(home)) == 3, "the journal has them"
    assert (await anew.ledger.used("app"))["daily"] == used
    await engine.close()


@pytest.mark.parametrize("asks", ["policy", "budget"])
@pytest.mark.parametrize("ends", ["cancel", "signal"])
async def test_a_call_that_nobody_has_allowed_when_its_job_ends_or_goes_on_has_used_nothing(
    ends: str, asks: str
) -> None:
    """It was counted with all that it may use, in the ledger and in the limits of the job's parent."""
    clock, world = ManualClock(1_000_000.0), World()

    async def job(ctx: DurableContext) -> Any:
        asking = asyncio.ensure_future(ctx.llm(world.engine).complete("one", max_tokens=100))
        await ctx.wait("go")
        asking.cancel()
        await ctx.wait("end")

    by = guard(
        clock=clock, **({"max_calls_daily": 0, "exhausted": "ask"} if asks == "budget" else {"max_calls_daily": 9})
    )
    rules = [ModelPolicy(["m"], require_approval=True)] if asks == "policy" else []
    limits, home, agent = JobLimits(), MemoryStorage(clock), Agent(job, clock)
    async with hosting(home, agent, guard=guard_of([PolicyEngine(rules), limits, by])) as running:
        request = encode_request(ExecutionRequest(prompt=1, budgets=BudgetSpec(max_tokens=5_000)))
        running.host.begin(AGENT, "job", record=request, key=b"", digest=b"")
        await running.parks("job")
        running.journal.post(Letter(ends, "1" if ends == "signal" else "", job="job", name="go"))
        if ends == "signal":
            await running.parks("job", wakes=1)
            await running.until(lambda: limits._jobs["job"].most() == Amounts())
            assert await reserved(by) == Amounts()
        else:
            await running.over("job")
    await by.ledger.flush()
    assert rows(by) == {}
    assert [each.usage for each in entries(home) if isinstance(each, End)] == [b""] * (ends == "cancel")


async def test_the_calls_of_another_attempt_of_a_job_have_rows_and_none_counts_twice() -> None:
    world = World([ModelUnavailable("it broke off"), answer])

    async def job(ctx: DurableContext) -> Any:
        return (await ctx.llm(world.engine).complete("one", max_tokens=100)).model

    clock = ManualClock(1_000_000.0)
    by, home = guard(clock=clock, max_tokens_daily=10_000), MemoryStorage(clock)
    agent = Agent(job, clock, verdict="again")
    async with hosting(home, agent, guard=by) as running:
        running.begin("job")
        await running.over("job")
    await by.ledger.flush()
    assert {name: row[0] for name, row in rows(by).items()} == {"job/1/1": "doubt", "job/1/2": "model"}
    used = (await by.ledger.used("app"))["daily"]
    assert (used.tokens, used.calls) == (MOST + 150, 2)
    anew = guard(clock=clock, max_tokens_daily=10_000)
    await update_ledger(anew.ledger, MemoryReader(home))
    assert (await anew.ledger.used("app"))["daily"] == used


async def test_the_later_result_of_a_call_takes_the_place_of_its_doubt() -> None:
    """Its job has failed, and is begun again in the process that makes the call."""
    answering = asyncio.Event()

    class Slow(ScriptedProvider):
        async def complete(self, spec: RequestSpec, *given: Any, **how: Any) -> Completion:
            await answering.wait()
            return await super().complete(spec, *given, **how)

    slow = Slow(answer, model="m")
    engine = ExecutionEngine(slow, retries=0, prices=PRICES)
    runs: list[int] = []

    async def job(ctx: DurableContext) -> Any:
        runs.append(1)
        asking = asyncio.ensure_future(ctx.llm(engine).complete("one", max_tokens=100))
        if len(runs) == 1:
            await ctx.wait("go")
            raise ValueError("not this time")
        return (await asking).model

    clock = ManualClock(1_000_000.0)
    by, home = guard(clock=clock, max_tokens_daily=10_000), MemoryStorage(clock)
    agent = Agent(job, clock)
    async with hosting(home, agent, guard=by) as running:
        running.begin("job")
        await running.until(lambda: running.host.statistics()["in_flight"] and running.host.journal.job("job"))
        running.journal.post(Letter("signal", "1", job="job", name="go"))
        await running.over("job")
        assert agent.outcomes == {"job": "failed"}
        assert (await by.ledger.used("app"))["daily"] == Amounts(MOST, COST, 1)
        running.host.begin(AGENT, "job", record=pack(None, "input"), key=b"", digest=b"", run=2)
        await running.until(lambda: len(runs) == 2)
        answering.set()
        await running.until(lambda: agent.outcomes == {"job": "succeeded"})
    await by.ledger.flush()
    assert rows(by) == {"job/2/1": ("model", "m", 150, "0.000600")}
    used = Amounts(150, Decimal("0.0006"), 1)
    assert (await by.ledger.used("app"))["daily"] == used
    anew = guard(clock=clock, max_tokens_daily=10_000)
    await update_ledger(anew.ledger, MemoryReader(home))
    assert (await anew.ledger.used("app"))["daily"] == used


async def test_no_row_outlives_its_result() -> None:
    by, home = guard(max_tokens_daily=1000), MemoryStorage(ManualClock(1.0))
    disk = asyncio.Event()

    class SlowDisk(MemoryJournal):
        async def flush(self) -> dict[int, int]:
            await disk.wait()
            return await super().flush()

    journal, agent = SlowDisk(home), Agent(World().job)
    async with hosting(journal, agent, guard=by) as running:
        running.begin("job")
        await running.over("job")
        assert rows(by) == {}
        disk.set()
        await by.ledger.flush()
        assert len(rows(by)) == 3
    journal.close()


async def test_a_job_that_has_ended_asks_no_model_again_when_it_is_run_over_its_history() -> None:
    world, clock = World(), ManualClock(1.0)

    async def job(ctx: DurableContext) -> Any:
        asyncio.ensure_future(ctx.llm(world.engine).complete("not awaited", max_tokens=100))  # noqa: RUF006
        await ctx.call(world.look, "x")

    home = MemoryStorage(clock)
    await run(home, job, guard(), "job")
    asked = len(world.provider.requests)
    async with hosting(home, Agent(job, clock), guard=guard()) as running:  # no checkpoint covers its end
        await running.over("job")
        await running.until(lambda: not running.host.statistics()["in_flight"])
    assert len(world.provider.requests) == asked


class Waits(World):
    """A model that answers the first request, and no other: these have come in `asked`."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        super().__init__(self._answer)

    async def _answer(self, spec: RequestSpec) -> Completion:
        if spec.messages[0].text == "one":
            return answer(spec)
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody lets it go on")


@pytest.mark.parametrize("limit", [3 * MOST - 1, 3 * MOST])
async def test_a_call_in_doubt_is_made_again_where_the_budget_has_room_for_all_of_its_attempts(limit: int) -> None:
    home, said = MemoryStorage(ManualClock(1_000.0)), []

    async def job(ctx: DurableContext) -> Any:
        try:
            said.append((await ctx.llm(world.engine).complete("two", max_tokens=100)).content)
        except BudgetExceeded as error:
            said.append(error.message)

    for life in (1, 2):  # each dies while the model is asked
        by, world = guard(max_tokens_daily=limit, warn_at=1), Waits()
        async with hosting(home, Agent(job), guard=by) as running:
            if life == 1:
                running.begin("job")
            await world.asked.wait()
    by, world = guard(max_tokens_daily=limit, warn_at=1), World()
    await run(home, job, by)
    kinds = [(each.event_id, each.type) for each in by.ledger.writer.events]
    if limit == 3 * MOST:
        assert said == ["yes"]
        assert kinds == [("job/1/1", "doubt"), ("job/1/2", "doubt"), ("job/1/3", "model")]
    else:
        assert (
            f"m was not done: with attempts before it that may have been paid, the daily budget of app has {limit}"
            in said[0]
        )
        assert kinds == [("job/1/1", "doubt"), ("job/1/2", "doubt")]
    assert len(world.provider.requests) == (limit == 3 * MOST)
    assert await reserved(by) == Amounts()


async def test_where_ledger_and_journal_disagree_the_journal_wins_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A start compares what is behind its mark; without marks, all."""
    home, path = MemoryStorage(ManualClock(1.0)), tmp_path / "ledger.db"
    await run(home, World().job, guard(SqliteLedgerWriter(path)), "job")
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE runtime_ledger SET input_tokens = 1, total_tokens = 1 WHERE event_id = 'job/1/1'")
        database.execute("DELETE FROM runtime_ledger WHERE event_id = 'job/3/1'")
        database.execute("DELETE FROM runtime_notes")
    by = guard(SqliteLedgerWriter(path), max_tokens_daily=1000)
    async with hosting(home, Agent(World().job), guard=by):
        assert (await by.ledger.used("app"))["daily"].tokens == 300
    assert caplog.text.count("corrected 1 row of the ledger, which said something else") == 1


def test_the_rows_of_a_journal_are_those_of_its_results() -> None:
    assert list(rows_of([])) == []
    from sabot.errors import CorruptJournal

    with pytest.raises(CorruptJournal, match="what effect 3 has used cannot be read"):
        list(rows_of([EffectResult("job", 1, 3, usage=b"\xc1")]))
    assert LedgerEvent(event_id="1", type="tool", scope_id="a").amounts == Amounts()


async def test_a_journal_forgets_no_result_whose_row_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    class Full(InMemoryLedgerWriter):
        full = True

        async def write(self, events: Any) -> None:
            if self.full and events:
                raise OSError("the disk is full")
            await super().write(events)

    writer, world = Full(), World()
    by = guard(writer)
    home, agent = MemoryStorage(ManualClock(1.0)), Agent(world.job)
    async with hosting(home, agent, guard=by) as running:
        running.begin("job")
        await running.over("job")
        end = dict(running.journal.positions())
        running.host.log.trim(lambda: end, 2**60)
        await running.until(lambda: "is not trimmed" in caplog.text)
        assert len(entries(home)) == 8
        writer.full = False
        running.host.log.trim(lambda: end, 2**60)
        await running.until(lambda: not entries(home))
        assert len(writer.events) == 3


@pytest.mark.parametrize("usage", [None, Usage(0, 0)], ids=["none", "zeros"])
async def test_an_answer_that_does_not_say_what_it_has_used_is_not_free(
    usage: Usage | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts with what was reserved, tokens and money, in the ledger as in the limits of a job, and the log says so once a model."""
    silent = World(lambda spec: Completion(message=assistant("yes"), usage=usage, model="m", provider="scripted"))
    by = guard(max_cost_daily="0.003")  # two calls, each of which may cost 0.001 and what it reads
    async with hosting(MemoryJournal(MemoryStorage(ManualClock())), Agent(silent.job), guard=by) as host:
        host.begin("job")
        await host.over("job")
        host.begin("next")
        await host.over("next")
    await by.ledger.flush()
    said = rows(by)
    assert said["job/1/1"] == ("model", "m", MOST, str(COST))
    assert isinstance(host.agent.errors["next"], BudgetExceeded)
    assert [record.getMessage() for record in caplog.records if "what was reserved" in record.getMessage()] == [
        f"scripted reports {'no usage' if usage is None else '0 tokens'} for an answer of m: budgets count what was reserved for it"
    ]


class Mad:
    """Prices that are none."""

    version = "1"

    def __init__(self, cost: str) -> None:
        self._cost = Decimal(cost)

    def cost(self, provider: str, model: str, usage: Usage) -> Decimal | None:
        return self._cost


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "told",
    [
        {"usage": Usage(-5, 7)},
        {"usage": Usage(5, -7)},
        {"usage": Usage(5, 10**30)},
        {"usage": Usage(-5, 7), "cost": Decimal(3)},
        {"cost": Decimal(-3)},
        {"cost": -3},
        {"cost": Decimal("NaN")},
        {"cost": Decimal("Infinity")},
    ],
    ids=str,
)
async def test_an_answer_that_says_what_cannot_be_counts_with_what_was_reserved(
    told: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Else it gives a budget back what it has used, or keeps all later calls from it. The log says so once."""
    world = World(lambda spec: Completion(message=assistant("yes"), model="m", provider="scripted", **told))
    prices = PriceTable({"m": Price("1", "10", cached="0")}, version="1")
    world.engine = ExecutionEngine(world.provider, retries=0, patience=0, prices=prices)
    by = guard(max_cost_daily="1")
    await run(MemoryStorage(ManualClock(1.0)), world.job, by, "job")
    assert [rows(by)[f"job/{each}/1"] for each in (1, 3)] == [("model", "m", MOST, str(COST))] * 2
    assert (await by.ledger.used("app"))["daily"].cost == 2 * COST
    said = "scripted reports an impossible usage for an answer of m: budgets count what was reserved for it"
    assert [each.getMessage() for each in caplog.records if "what was reserved" in each.getMessage()] == [said]
    assert world.engine.statistics()["cost"] == 0
    answer = Completion(message=assistant("yes"), **told)
    assert reported_use(answer, Amounts(MOST, COST, 1)) == (Usage(MOST), COST), "as a journal of another program has it"


@pytest.mark.parametrize(
    ("told", "tokens", "cost"),
    [
        ({"usage": Usage(5, 7, cached_tokens=1000)}, 1012, "0.000075"),
        ({"usage": Usage(5, 7, cache_write_tokens=1000)}, 1012, "0.001075"),
        ({"usage": Usage(5, 7, reasoning_tokens=1000)}, 1012, "0.010075"),
        ({"usage": Usage(5, 7, cached_tokens=-(10**6))}, 12, "0.000075"),
        ({"usage": Usage(5, 7), "cost": Decimal(-3)}, 12, "0.000075"),
        ({"usage": Usage(5, 7), "cost": Decimal("NaN")}, 12, "0.000075"),
    ],
    ids=str,
)
async def test_parts_beside_their_whole_are_counted_too_and_a_lie_about_one_figure_does_not_void_the_others(
    told: dict[str, Any], tokens: int, cost: str
) -> None:
    """Such a usage counted as what was reserved, which may be a thousandth of what was told."""
    world = World(lambda spec: Completion(message=assistant("yes"), model="m", provider="scripted", **told))
    prices = PriceTable({"m": Price("1", "10", cached="0")}, version="1")
    world.engine = ExecutionEngine(world.provider, retries=0, patience=0, prices=prices)
    by = guard(max_cost_daily="1")
    await run(MemoryStorage(ManualClock(1.0)), world.job, by, "job")
    assert [rows(by)[f"job/{each}/1"] for each in (1, 3)] == [("model", "m", tokens, cost)] * 2
    answer = Completion(message=assistant("yes"), **told)
    counted, dollars = reported_use(answer, Amounts(MOST, COST, 1))
    assert (counted.total_tokens, dollars) == (tokens, COST if "cost" in told else None)


@pytest.mark.parametrize("cost", ["NaN", "-3", "Infinity"])
async def test_a_price_that_is_none_is_not_known(cost: str) -> None:
    world, by = World(), guard(max_cost_daily="1")
    world.engine = ExecutionEngine(world.provider, retries=0, patience=0, prices=Mad(cost))
    agent = await run(MemoryStorage(ManualClock(1.0)), world.job, by, "job")
    assert "the price of m is not known" in str(agent.errors["job"])
    assert rows(by) == {}
    assert world.provider.requests == []


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_more_that_a_vendor_put_into_its_cache_than_was_read_was_read_beside_it() -> None:
    said = Completion(message=assistant("yes"), usage=Usage(5, 7, cache_write_tokens=10**6))
    with FakeModelServer(said) as server:
        async with ExecutionEngine(OpenAIProvider("m", base_url=server.openai_url, api_key="k")) as engine:
            assert (await engine.complete("one")).usage == Usage(10**6 + 5, 7, cache_write_tokens=10**6)


def test_the_address_of_a_redis_server_is_refused_as_a_place_of_budgets_and_its_password_is_not_shown() -> None:
    address = "redis://:swordfish@cache:6379/0"
    for make in (SqliteLedgerWriter, PostgresLedgerWriter, Ledger, ledger_of_app):
        with pytest.raises(UserError, match="Redis keeps no budgets and no ledger") as told:
            make(address)
        assert "PostgresLedgerWriter" in str(told.value)
        assert "swordfish" not in str(told.value)


def ledger_of_app(address: Any) -> Any:
    return App("desk", journal="memory", budgets=address)


async def test_a_budget_of_a_pattern_limits_each_tenant_of_jobs_and_an_unused_one_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = ScriptedProvider(answer, model="m")
    engine = ExecutionEngine(provider, retries=0, prices=PRICES)

    async def asks(ctx: DurableContext) -> Any:
        return (await ctx.llm(engine).complete("one", max_tokens=100)).content

    kernel = RuntimeKernel.create(
        agent=asks, budgets=[Budget("tenant-*", max_calls_daily=1, warn_at=1), Budget("acne", max_calls_daily=5)]
    )
    async with kernel:
        for scope in ("tenant-a", "tenant-b", "acme", "acme"):
            assert await (await kernel.execute(ExecutionRequest(prompt="hi", scope_id=scope))).result() is not None
        handle = await kernel.execute(ExecutionRequest(prompt="hi", scope_id="tenant-a"))
        with pytest.raises(Exception, match="the daily budget of tenant-a has 1 calls"):
            await handle.result()
    (said,) = [each.getMessage() for each in caplog.records if each.name == "sabot.agents.accounts.ledger"]
    assert said.endswith("was of the scope of these budgets: acne; did you mean acme?")


async def test_an_app_without_durable_agents_names_the_budgets_that_nobody_had(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0, prices=PRICES)
    app = App("shop", memory_url, budgets=[Budget("shopp", max_calls_daily=1)])

    @app.agent("asks", sink="answers")
    async def asks(ctx: Any) -> Any:
        return (await engine.complete("one", max_tokens=100)).content

    async with started(app):
        publish(app, "asks", [{"n": 1}])
        await until(lambda: values(app, "answers"))
    (said,) = [each.getMessage() for each in caplog.records if each.name == "sabot.agents.accounts.ledger"]
    assert said.endswith("was of the scope of these budgets: shopp; did you mean shop?")


@pytest.mark.parametrize("policy", [None, PolicyEngine([])])
async def test_a_job_of_a_kernel_without_budgets_says_what_it_has_used(policy: PolicyEngine | None) -> None:
    """Lists and `sabot jobs show` said 0 tokens of jobs that had paid, unless budgets=[] was given."""
    asked = asyncio.Event()
    engine = ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0, prices=PRICES)

    async def asks(ctx: DurableContext) -> Any:
        for each in ("one", "two"):
            await ctx.llm(engine).complete(each, max_tokens=100)
        asked.set()
        return await ctx.wait("go")

    kernel = RuntimeKernel.create(agent=asks, policy=policy)
    async with kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="hi", scope_id="ann", principal_id="bo"))
        await asyncio.wait_for(asked.wait(), 60)
        open_one = await kernel.jobs.get(handle.job_id)
        await kernel.jobs.signal(handle.job_id, "go")
        await handle.result()
        ended = await kernel.jobs.get(handle.job_id)
        assert (open_one.tokens, open_one.dollars) == (ended.tokens, ended.dollars) == (300, Decimal("0.0012"))
        (listed,) = await kernel.jobs.find()
        assert (listed.tokens, listed.doubt_tokens) == (300, 0)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_job_of_an_app_without_budgets_says_what_it_has_used_in_its_history_too(
    memory_url: str, tmp_path: Path
) -> None:
    engine = ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0, prices=PRICES)
    app = App("shop", memory_url, state=tmp_path / "state", checkpoint_interval=3600)

    @app.agent("asks", durable=True, sink="answers")
    async def asks(ctx: Any) -> Any:
        return (await ctx.llm(engine).complete("one", max_tokens=100)).content

    async with started(app):
        publish(app, "asks", [{"n": 1}])
        await until(lambda: values(app, "answers"))
        (job,) = await app.jobs.find()
        assert (job.tokens, job.dollars) == (150, Decimal("0.0006"))
        for _ in range(4):  # the entries move into the history
            await checkpoint(app)
        await until(lambda: app.agent_runtime.runner.journal.history.find(JobQuery(), 9))
        (job,) = await app.jobs.find()
        assert (job.tokens, job.dollars) == (150, Decimal("0.0006"))


async def test_budgets_that_come_later_count_what_was_used_before_them() -> None:
    engine, home = ExecutionEngine(ScriptedProvider(answer, model="m"), retries=0, prices=PRICES), MemoryStorage()

    async def asks(ctx: DurableContext) -> Any:
        return (await ctx.llm(engine).complete("one", max_tokens=100)).content

    async with RuntimeKernel.create(agent=asks, journal=home) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt="hi", scope_id="ann"))).result()
    budgets = [Budget("ann", max_calls_daily=1, warn_at=1)]
    async with RuntimeKernel.create(agent=asks, journal=home, budgets=budgets) as kernel:
        with pytest.raises(Exception, match="the daily budget of ann has 1 calls: 1 used"):
            await (await kernel.execute(ExecutionRequest(prompt="hi", scope_id="ann"))).result()
