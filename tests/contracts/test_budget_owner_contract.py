"""What every owner of shared budgets keeps (`sabot/agents/accounts/owners.py`): one suite for all of them."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from unit.jobs.hosting import Agent, Hosting, entries, hosting

from sabot.agents import (
    Budget,
    BudgetDecision,
    ExecutionContext,
    InMemoryLedgerWriter,
    Ledger,
    LedgerEvent,
    ModelPolicy,
    PolicyEngine,
    PostgresLedgerWriter,
    SqliteLedgerWriter,
)
from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.accounts.owners import (
    BudgetBatch,
    BudgetOwner,
    BudgetStep,
    SettledRow,
)
from sabot.base.accounts import Amounts
from sabot.clock import ManualClock
from sabot.errors import BrokerUnavailable, PolicyDenied
from sabot.jobs.guard import guard_of
from sabot.journal import Letter
from sabot.journal.entries import Intent
from sabot.journal.memory import MemoryStorage
from sabot.llm import (
    BudgetExceeded,
    BudgetUnavailable,
    Completion,
    ExecutionEngine,
    RequestSpec,
    ScriptedProvider,
    Usage,
    assistant,
)
from tools.postgres import server_or_skip

NOON = datetime(2026, 3, 31, 12, 0, tzinfo=UTC).timestamp()
LEASE_S = 30.0
LIMIT = Budget("tenant", max_tokens_daily=1000, warn_at=1)


class Place:
    """Where an owner keeps accounts; each process has an owner object of its own over it."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._open: list[Any] = []
        self.clock = ManualClock(NOON)

    def owner(self) -> BudgetOwner:
        owner: BudgetOwner = self._connect()
        self._open.append(owner)
        return owner

    def ledger(self, *budgets: Budget, **options: Any) -> Ledger:
        ledger = Ledger(self._connect(), budgets=budgets or [LIMIT], clock=self.clock, **options)
        self._open.append(ledger)
        return ledger

    async def close(self) -> None:
        for each in self._open:
            await each.close()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    with ExitStack() as open_now:
        memory = InMemoryLedgerWriter(shared=True)
        url = open_now.enter_context(server_or_skip().database()) if request.param == "postgres" else ""

        def connect() -> Any:
            if request.param == "memory":
                return memory
            return PostgresLedgerWriter(url, shared=True) if url else SqliteLedgerWriter(tmp_path / "l.db", shared=True)

        made = Place(connect)
        yield made
        await made.close()


def row(event_id: str, **fields: Any) -> LedgerEvent:
    return LedgerEvent(
        event_id=event_id, **{"type": "model", "scope_id": "tenant", "at_ms": round(NOON * 1000), **fields}
    )


def doubt(event_id: str, tokens: int) -> LedgerEvent:
    return row(event_id, type="doubt", reserved_tokens=tokens, job_id="job", at_ms=0)


class Process:
    """What one process asks of an owner, batch by batch."""

    def __init__(self, place: Place, name: str) -> None:
        self.owner, self.name, self._clock = place.owner(), name, place.clock
        self._number = 0

    async def _work(self, *steps: BudgetStep, rows: Any = (), corrects: bool = False) -> Any:
        batch = BudgetBatch(self.name, LEASE_S, self._clock.time(), None, steps, rows, corrects)
        return await self.owner.work(batch)

    def step(self, kind: Any, call: str, tokens: int = 0) -> BudgetStep:
        self._number += 1
        doubts = (doubt(f"{call}/1", tokens),) if tokens else ()
        return BudgetStep(kind, LIMIT, call, self._number, Amounts(tokens, Decimal(0), int(tokens > 0)), doubts)

    async def reserve(self, call: str, tokens: int) -> BudgetDecision:
        (judged,) = (await self._work(self.step("reserve", call, tokens))).judgements
        return judged.decision

    async def hold(self, call: str, tokens: int) -> None:
        await self._work(self.step("hold", call, tokens))

    async def release(self, call: str, number: int | None = None) -> None:
        step = self.step("release", call)
        await self._work(step if number is None else step._replace(number=number))

    async def settle(self, event: LedgerEvent, call: str = "", *, corrects: bool = False) -> int:
        self._number += 1
        worked = await self._work(rows=[SettledRow(event, call, self._number)], corrects=corrects)
        corrected: int = worked.corrected
        return corrected

    async def used(self) -> Amounts:
        worked = await self._work(BudgetStep("release", LIMIT, "", 0))
        amounts: Amounts = worked.used["tenant"]["daily"]
        return amounts

    async def left(self) -> int:
        """Tokens that a call could still reserve, to 50."""
        for tokens in range(1000, 0, -50):
            if await self.reserve("probe", tokens) is BudgetDecision.ALLOW:
                await self.release("probe")
                return tokens
        return 0


# -- ledgers over it -------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_three_ledgers_with_200_calls_each_never_use_more_than_there_is(place: Place) -> None:
    limit = Budget("tenant", max_tokens_daily=30_000, warn_at=1)
    ledgers = [place.ledger(limit) for _ in range(3)]
    made = 0

    async def call(ledger: Ledger, number: int) -> None:
        nonlocal made
        context = ExecutionContext(scope_id="tenant", job_id=f"job {number}")
        if await ledger.check_budget(context, 300) is BudgetDecision.DENY:
            return
        made += 1
        await ledger.record_model_usage(context, Usage(200, 100 if number % 2 else 0))

    await asyncio.gather(*(call(ledger, number) for number in range(200) for ledger in ledgers))
    (sums,) = await ledgers[0].writer.sums([], 0)
    used = [(await each.used("tenant"))["daily"] for each in ledgers]
    assert used == [Amounts(sums.input_tokens + sums.output_tokens, Decimal(0), made)] * 3
    assert sums.calls == made >= 100, "as many as may use 300 each fit in any case"
    assert used[0].tokens <= 30_000


async def test_what_is_at_the_limit_fits_little_left_is_a_warning_and_money_is_exact(place: Place) -> None:
    budget = Budget("tenant", max_cost_daily=Decimal("0.3"), max_tokens_hourly=1000)
    one, two = place.ledger(budget), place.ledger(budget)
    anna, bert = ExecutionContext(scope_id="tenant", principal_id="anna"), ExecutionContext(scope_id="tenant")
    assert await one.check_budget(anna, 799, pending_cost="0.1") is BudgetDecision.ALLOW
    assert await two.check_budget(bert, 1, pending_cost="0.1") is BudgetDecision.WARN
    assert await one.check_budget(anna, 1, pending_cost="0.100000000000000001") is BudgetDecision.DENY
    assert await two.check_budget(bert, 1, pending_cost="0.1") is BudgetDecision.WARN
    assert await one.check_budget(anna, 0, pending_cost="0.000000001") is BudgetDecision.DENY


async def test_processes_share_the_budget_that_a_pattern_makes_for_each_scope(place: Place) -> None:
    patterns = Budget("tenant-*", max_tokens_daily=100, warn_at=1), Budget("tenant-b", max_tokens_daily=10, warn_at=1)
    one, two = place.ledger(*patterns), place.ledger(*patterns)
    a, b, new = (ExecutionContext(scope_id=f"tenant-{name}") for name in ("a", "b", "new"))
    assert await one.check_budget(a, 60) is BudgetDecision.ALLOW
    assert await two.check_budget(a, 41) is BudgetDecision.DENY
    assert await two.check_budget(a, 40) is BudgetDecision.ALLOW
    assert await two.check_budget(b, 11) is BudgetDecision.DENY
    assert await two.check_budget(new, 100) is BudgetDecision.ALLOW
    await one.record_model_usage(a, Usage(60))
    third = place.ledger(*patterns)  # a process that starts later
    assert (await third.used("tenant-a"))["daily"].tokens == 60
    assert await third.check_budget(a, 1) is BudgetDecision.DENY, "two has reserved the rest"
    assert [each.scope_id for each in await third.budgets_in_use()] == ["tenant-b", "tenant-a"]


async def test_a_warning_of_a_shared_budget_comes_once_in_each_process(place: Place) -> None:
    told: list[str] = []
    one = place.ledger(
        Budget("tenant", max_tokens_daily=100), on_decision=lambda context, judged: told.append(judged.reason)
    )
    context = ExecutionContext(scope_id="tenant")
    for _ in range(3):
        assert await one.check_budget(context, 80) is BudgetDecision.WARN
        await one.record_model_usage(context, Usage(1))
    assert told == ["of the daily budget of tenant, 100 tokens, 80 may be used with this call"]


async def test_the_reason_of_a_refusal_has_the_numbers_of_all_processes(place: Place) -> None:
    told: list[str] = []
    one = place.ledger()
    two = place.ledger(on_decision=lambda context, judged: told.append(judged.reason))
    context = ExecutionContext(scope_id="tenant")
    await one.check_budget(context, 400)
    await one.record_model_usage(context, Usage(100, 200))
    await one.check_budget(context, 500)
    assert await two.check_budget(context, 300) is BudgetDecision.DENY
    assert told == [
        "the daily budget of tenant has 1000 tokens: 300 used, 500 reserved for calls in flight, and this call may use 300"
    ]


async def test_what_follows_where_a_budget_is_exhausted_is_said_by_the_one_who_asks(place: Place) -> None:
    context = ExecutionContext(scope_id="tenant")
    small = Budget("tenant", max_tokens_daily=0, exhausted="degrade", degrade_to="small")
    assert await place.ledger(small).check_budget(context, 1) is BudgetDecision.DEGRADE
    asks = place.ledger(Budget("tenant", max_tokens_daily=0, exhausted="ask"))
    assert await asks.check_budget(context, 1) is BudgetDecision.ASK
    assert await place.ledger().check_budget(context, 1000) is BudgetDecision.ALLOW


async def test_a_window_that_ends_while_calls_are_in_flight_ends_for_all(place: Place) -> None:
    one, two = place.ledger(), place.ledger()
    context = ExecutionContext(scope_id="tenant")
    place.clock.advance(12 * 3600 - 70)  # within the lease of those in flight, and more than a minute before midnight
    assert await one.check_budget(context, 600) is BudgetDecision.ALLOW
    await one.record_model_usage(context, Usage(600))
    assert await one.check_budget(context, 400) is BudgetDecision.ALLOW
    assert await two.check_budget(context, 1) is BudgetDecision.DENY
    for _ in range(4):
        place.clock.advance(20)
        await one.used("tenant")
    assert await two.check_budget(context, 601) is BudgetDecision.DENY, "400 of yesterday are in flight"
    await one.record_model_usage(context, Usage(300))
    assert (await two.used("tenant"))["daily"].tokens == 300, "a call counts on the day it ends"
    assert await two.check_budget(context, 700) is BudgetDecision.ALLOW
    assert (await one.used("tenant"))["monthly"].tokens == 300, "it is April"


async def test_rows_that_were_there_before_count(place: Place) -> None:
    before = place.ledger()
    await before.writer.write(
        [row("a", input_tokens=900), row("old", input_tokens=999, at_ms=round((NOON - 86400) * 1000))]
    )
    assert (await before.used("tenant"))["daily"].tokens == 900
    assert await before.check_budget(ExecutionContext(scope_id="tenant"), 101) is BudgetDecision.DENY
    await before.writer.write([row("b", input_tokens=50)])
    assert (await place.ledger().used("tenant"))["daily"].tokens == 950, "also those that somebody writes beside"


async def test_a_row_that_cannot_be_kept_keeps_what_was_reserved_and_others_are_written(place: Place) -> None:
    ledger = place.ledger()
    if isinstance(ledger.writer, InMemoryLedgerWriter):
        pytest.skip("memory keeps anything")
    for call in ("bad", "good"):
        assert (await ledger.reserve(call, "tenant", Amounts(400, Decimal(0), 1))).decision == "allow"
    ledger.record(row("bad", input_tokens=2**70), "bad")
    ledger.record(row("good", input_tokens=100), "good")
    await ledger.flush()
    assert ledger.refused_rows == 1
    assert (await ledger.used("tenant"))["daily"].tokens == 100
    assert (await ledger.reserve("more", "tenant", Amounts(501, Decimal(0), 1))).decision == "deny"
    assert (await ledger.reserve("more", "tenant", Amounts(500, Decimal(0), 1))).decision == "allow"


async def test_a_call_that_an_owner_does_not_take_is_refused_and_those_beside_it_are_judged(place: Place) -> None:
    ledger = place.ledger(Budget("tenant", max_calls_daily=3, warn_at=1))
    if isinstance(ledger.writer, InMemoryLedgerWriter):
        pytest.skip("memory keeps anything")
    context = ExecutionContext(scope_id="tenant")
    asked = [ledger.check_budget(context, tokens) for tokens in (1, 2**70, 2, 3, 4)]
    said = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(each) for each in said[:1] + said[2:]] == ["allow", "allow", "allow", "deny"]
    assert isinstance(said[1], BudgetUnavailable)
    await ledger.record_model_usage(context, Usage(5))
    assert (await ledger.used("tenant"))["daily"].tokens == 5


async def test_a_second_reservation_of_a_call_takes_the_place_of_the_first_one_if_it_fits(place: Place) -> None:
    one, two = Process(place, "one"), Process(place, "two")
    assert await one.reserve("a", 300) is BudgetDecision.ALLOW
    assert await one.reserve("a", 600) is BudgetDecision.ALLOW
    assert await two.left() == 400
    assert await one.reserve("a", 1050) is BudgetDecision.DENY
    assert await two.left() == 400, "what did not fit has changed nothing"
    await one.hold("a", 1500)
    assert await two.left() == 0, "a person has allowed more than there is"
    await one.release("a")
    assert await two.left() == 1000


async def test_a_row_ends_what_was_reserved_before_it_and_not_what_its_call_has_reserved_since(place: Place) -> None:
    one = Process(place, "one")
    await one.reserve("a", 300)
    early = SettledRow(row("a/1", input_tokens=100), "a", 1)
    await one.reserve("a", 400)
    await one._work(rows=[early])
    assert (await one.used()).tokens == 100
    assert await one.left() == 500


async def test_a_batch_that_is_given_again_counts_once(place: Place) -> None:
    one = Process(place, "one")
    reserve, release = one.step("reserve", "b", 200), one.step("release", "c")
    batch = BudgetBatch(
        "one", LEASE_S, place.clock.time(), None, [reserve, release], [SettledRow(row("a/1", input_tokens=300), "a", 5)]
    )
    await one.reserve("a", 400)
    for _ in range(3):
        worked = await one.owner.work(batch)
        assert [each.decision for each in worked.judgements] == ["allow"]
    assert (await one.used()).tokens == 300
    assert await one.left() == 500


# -- processes that die ----------------------------------------------------------------------------------------------------


async def test_what_a_dead_process_has_reserved_counts_as_used_and_is_a_row_in_doubt(place: Place) -> None:
    dead, other = Process(place, "dead"), Process(place, "other")
    await dead.reserve("a", 400)
    place.clock.advance(LEASE_S)
    assert await other.left() == 600, "its lease has not ended"
    place.clock.advance(1)
    assert await other.left() == 600
    assert await other.used() == Amounts(400, Decimal(0), 1), "nothing is given back"
    writer = place.ledger().writer
    (kept,) = await writer.sums(["type", "job"], 0)
    assert (kept.group, kept.doubt_tokens) == (("doubt", "job"), 400)


async def test_the_row_of_who_comes_back_takes_the_place_of_its_doubt(place: Place) -> None:
    late, other = Process(place, "late"), Process(place, "other")
    await late.reserve("a", 400)
    place.clock.advance(LEASE_S + 1)
    assert (await other.used()).tokens == 400
    await late.settle(row("a/1", input_tokens=150, at_ms=round(place.clock.time() * 1000)), "a")
    assert await other.used() == Amounts(150, Decimal(0), 1)
    assert await other.left() == 850


async def test_who_takes_a_job_over_takes_over_what_it_has_reserved(place: Place) -> None:
    dead, heir = Process(place, "dead"), Process(place, "heir")
    await dead.reserve("a", 400)
    await heir.hold("a", 400)
    assert await heir.left() == 600, "it counts once"
    place.clock.advance(LEASE_S + 1)
    assert (await heir.used()).tokens == 0, "it is the heir's"
    await dead.release("a")
    assert await heir.left() == 600, "and no more that of who had it"
    await heir.settle(row("a/1", input_tokens=100, at_ms=round(place.clock.time() * 1000)), "a")
    assert (await heir.used()).tokens == 100
    assert await heir.left() == 900


async def test_what_is_in_doubt_already_is_not_reserved_too(place: Place) -> None:
    dead, heir = Process(place, "dead"), Process(place, "heir")
    await dead.reserve("a", 400)
    place.clock.advance(LEASE_S + 1)
    assert (await heir.used()).tokens == 400
    await heir.hold("a", 400)
    assert await heir.left() == 600
    await heir.settle(row("a/1", input_tokens=100, at_ms=round(place.clock.time() * 1000)), "a")
    assert ((await heir.used()).tokens, await heir.left()) == (100, 900)


async def test_an_attempt_in_doubt_counts_once_when_another_one_is_asked_for(place: Place) -> None:
    """It was counted as used and reserved too, so that the second attempt of 500 tokens did not fit into 1000."""
    dead, heir = Process(place, "dead"), Process(place, "heir")
    await dead.reserve("a", 500)
    place.clock.advance(LEASE_S + 1)
    assert (await heir.used()).tokens == 500
    await heir.hold("a", 500)
    again = heir.step("reserve", "a", 500)
    both = again._replace(wanted=Amounts(1000, Decimal(0), 2), doubts=(*again.doubts, doubt("a/2", 500)))
    (judged,) = (await heir._work(both)).judgements
    assert judged.decision is BudgetDecision.ALLOW
    assert await heir.left() == 0
    await heir.settle(row("a/2", input_tokens=100, at_ms=round(place.clock.time() * 1000)), "a")
    assert ((await heir.used()).tokens, await heir.left()) == (600, 400)


async def test_who_works_keeps_what_it_has_reserved(place: Place) -> None:
    one, other = Process(place, "one"), Process(place, "other")
    await one.reserve("a", 400)
    for _ in range(4):
        place.clock.advance(LEASE_S - 1)
        await one._work()
    assert (await other.used()).tokens == 0
    assert await other.left() == 600


# -- jobs whose process dies -----------------------------------------------------------------------------------------------


class Asking:
    """A job that asks a model, over processes that die and are followed by another one. Policy or budget want a person's approval."""

    def __init__(self, place: Place, asks: str = "") -> None:
        self.place, self.home = place, MemoryStorage(place.clock)
        self.budget = Budget("app", max_tokens_daily=1000, warn_at=1)
        if asks == "budget":
            self.budget = Budget("app", max_calls_daily=0, exhausted="ask")
        elif asks == "cheaper":
            self.budget = Budget("app", max_calls_daily=0, exhausted="degrade", degrade_to="small")
        self.rules = [ModelPolicy(["m"], require_approval=True)] if asks == "policy" else []
        self.answers, self.asked = asyncio.Event(), asyncio.Event()
        self.agent = Agent(self._job, place.clock)

    async def _job(self, ctx: Any) -> str:
        engine = ExecutionEngine(ScriptedProvider(self._answer, model="m"), retries=0, patience=0)
        try:
            return str((await ctx.llm(engine).complete("one", max_tokens=100)).content)
        except (PolicyDenied, BudgetExceeded) as error:
            return type(error).__name__

    async def _answer(self, spec: RequestSpec) -> Completion:
        self.asked.set()
        await self.answers.wait()
        return Completion(message=assistant("yes"), usage=Usage(10, 5), model="m", provider="scripted")

    def process(self, ledger: Ledger | None = None, *, resume: bool = True) -> Any:
        """A process that goes on with the job. When it ends, its calls are cut off, and what it has reserved stays until its lease ends."""
        ledger = ledger or self.place.ledger(self.budget)
        guard = guard_of([PolicyEngine(self.rules), JobLimits(), LedgerGuard(ledger)])
        return hosting(self.home, self.agent, guard=guard, resume=resume)

    async def until_a_person_is_asked(self, running: Hosting) -> None:
        await running.until(lambda: any(isinstance(each, Intent) and each.kind == "ask" for each in entries(self.home)))
        await running.host.journal.flush()

    def says(self, running: Hosting, approved: bool) -> None:
        token = next(each.token for each in entries(self.home) if isinstance(each, Intent) and each.kind == "ask")
        running.journal.post(Letter("answer", token, body=b'{"approved": true}' if approved else b"{}"))

    async def used(self) -> Amounts:
        """What others see as used, when the leases of all that died have ended."""
        self.place.clock.advance(LEASE_S + 1)
        return (await self.place.ledger(self.budget).used("app"))["daily"]


BOUND = Amounts(16 + 2 + 100, Decimal(0), 1)  # of a call: what it reads, at most, and the answer


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("approved", [True, False], ids=["approved", "refused"])
@pytest.mark.parametrize("asks", ["policy", "budget"])
async def test_a_call_that_waits_for_approval_counts_nothing_though_its_process_dies(
    place: Place, asks: str, approved: bool
) -> None:
    """It was counted as used with all that it may use, for ever if the person refused it."""
    job = Asking(place, asks)
    async with job.process() as running:
        running.begin("job")
        await job.until_a_person_is_asked(running)
    assert await job.used() == Amounts()
    async with job.process():
        pass  # it has taken the reservation over, and dies
    assert await job.used() == Amounts()
    async with job.process() as running:
        job.answers.set()
        job.says(running, approved)
        await running.over("job")
        assert running.agent.done == {"job": "yes" if approved else "PolicyDenied"}
    assert await job.used() == (Amounts(15, Decimal(0), 1) if approved else Amounts())
    sums = await place.ledger().writer.sums(["job"], 0)
    assert [(each.calls, each.doubt_tokens) for each in sums] == ([(1, 0)] if approved else [])


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("asks", ["policy", "budget", ""])
async def test_a_call_that_was_sent_counts_with_its_bound_until_it_is_known(place: Place, asks: str) -> None:
    job = Asking(place, asks)
    async with job.process() as running:
        running.begin("job")
        if asks:
            await job.until_a_person_is_asked(running)
            job.says(running, approved=True)
        await job.asked.wait()
    assert await job.used() == BOUND
    async with job.process(resume=False):
        pass  # it dies before it asks the model again
    assert await job.used() == BOUND, "only one attempt may have been sent"
    async with job.process() as running:
        job.answers.set()
        await running.over("job")
    assert await job.used() == BOUND.plus(Amounts(15, Decimal(0), 1)), "the first attempt may have been paid"


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("asks", ["policy", "budget", "cheaper"])
async def test_a_call_is_not_sent_before_the_owner_knows_that_it_counts(place: Place, asks: str) -> None:
    """What is held beyond a budget, or after an approval, was told in passing: a process that died at once had used nothing."""
    job = Asking(place, asks)
    ledger, told, goes_on = place.ledger(job.budget), asyncio.Event(), asyncio.Event()
    work = ledger.writer.work  # type: ignore[attr-defined]

    async def slowly(batch: BudgetBatch) -> Any:
        if any(step.kind == "hold" for step in batch.steps):
            told.set()
            await goes_on.wait()
        return await work(batch)

    ledger.writer.work = slowly  # type: ignore[attr-defined]
    async with job.process(ledger) as running:
        running.begin("job")
        if asks != "cheaper":
            await job.until_a_person_is_asked(running)
            job.says(running, approved=True)
        await told.wait()
        await asyncio.sleep(0.05)
        assert not job.asked.is_set()
        goes_on.set()
        await job.asked.wait()
    ledger.writer.work = work  # type: ignore[attr-defined]


async def test_an_approved_call_is_not_sent_if_the_owner_is_away(place: Place) -> None:
    job = Asking(place, "policy")
    ledger = place.ledger(job.budget)
    work = ledger.writer.work  # type: ignore[attr-defined]

    async def away(batch: BudgetBatch) -> Any:
        raise BrokerUnavailable("the server is away")

    async with job.process(ledger) as running:
        running.begin("job")
        await job.until_a_person_is_asked(running)
        ledger.writer.work = away  # type: ignore[attr-defined]
        patience, ledger._accounts.patience_s = ledger._accounts.patience_s, 0.2
        job.says(running, approved=True)
        await running.over("job")
        ledger.writer.work, ledger._accounts.patience_s = work, patience  # type: ignore[attr-defined]
        assert running.agent.done == {"job": "BudgetUnavailable"}
        assert not job.asked.is_set()
    assert await job.used() == Amounts()


# -- rows ------------------------------------------------------------------------------------------------------------------


async def test_rows_count_once_and_corrections_change_what_is_used(place: Place) -> None:
    one = Process(place, "one")
    await one.settle(row("a/1", input_tokens=300))
    await one.settle(row("a/1", input_tokens=500))
    assert (await one.used()).tokens == 300, "it was there"
    assert await one.settle(row("a/1", input_tokens=500), corrects=True) == 1
    assert await one.settle(row("a/1", input_tokens=500), corrects=True) == 0
    await one.settle(row("a/2", type="doubt", reserved_tokens=100))
    await one.settle(row("a/2", type="doubt", reserved_tokens=50))
    assert (await one.used()).tokens == 600


async def test_a_row_with_which_the_account_of_a_scope_is_made_counts_once(place: Place) -> None:
    one = Process(place, "one")
    await one._work(one.step("reserve", "b", 200), rows=[SettledRow(row("a/1", input_tokens=300))])
    await one.settle(row("a/1", input_tokens=300))
    assert ((await one.used()).tokens, await one.left()) == (300, 500)


async def test_a_row_of_an_earlier_day_does_not_count_today(place: Place) -> None:
    one = Process(place, "one")
    midnight = NOON - 12 * 3600
    await one.used()
    await one.settle(row("a/1", input_tokens=100, at_ms=round((midnight - 61) * 1000)))
    assert (await one.used()).tokens == 0
    await one.settle(row("a/2", input_tokens=200, at_ms=round((midnight - 59) * 1000)))
    assert (await one.used()).tokens == 200, "clocks of machines may differ by a minute, and nothing is given away"


async def test_scopes_in_one_batch_are_judged_each_by_its_own(place: Place) -> None:
    one = Process(place, "one")
    other = Budget("other", max_calls_daily=1, warn_at=1)
    steps = [
        one.step("reserve", "a", 1000),
        BudgetStep("reserve", other, "b", 50, Amounts(1, Decimal(0), 1)),
        BudgetStep("reserve", other, "c", 51, Amounts(1, Decimal(0), 1)),
        one.step("reserve", "d", 1),
    ]
    assert [each.decision for each in (await one._work(*steps)).judgements] == ["allow", "allow", "deny", "deny"]


@pytest.mark.one_in(8, "a quarter of a second of a core each")
@pytest.mark.parametrize("seed", range(3))
async def test_it_judges_as_its_naive_twin_does(place: Place, seed: int) -> None:
    """Random calls of three processes, some of which are away for longer than their lease."""
    memory = InMemoryLedgerWriter(shared=True)
    twin = Place(lambda: memory)
    twin.clock = place.clock
    pairs = [(Process(place, name), Process(twin, name)) for name in ("one", "two", "three")]
    for each in (each for pair in pairs for each in pair):
        await each.used()
    lot = random.Random(seed)
    for turn in range(80):
        pair, call, tokens = lot.choice(pairs), f"call {lot.randrange(6)}", lot.randrange(0, 150, 10)
        match lot.choice(["reserve", "reserve", "hold", "release", "settle", "settle", "doubt", "time"]):
            case "settle":
                event = row(f"{call}/1", input_tokens=tokens, at_ms=round(place.clock.time() * 1000))
                for each in pair:
                    await each.settle(event, call)
            case "doubt":
                event = row(f"{call}/1", type="doubt", reserved_tokens=tokens, at_ms=round(place.clock.time() * 1000))
                for each in pair:
                    await each.settle(event, call)
            case "time":
                place.clock.advance(lot.choice([1.0, LEASE_S / 2, LEASE_S + 1]))
            case kind:
                step = pair[0].step(kind, call, 0 if kind == "release" else tokens)
                here, there = [await each._work(step) for each in pair]
                pair[1]._number = pair[0]._number
                assert here.judgements == there.judgements, turn
        assert [await each.used() for each in pair] == [await pair[0].used()] * 2, turn
    await twin.close()
