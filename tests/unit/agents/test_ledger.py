"""Budgets and the ledger: what fits, when, beside what is in flight; and rows that are kept once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sabot.agents import (
    Budget,
    BudgetDecision,
    BudgetExceededError,
    ExecutionContext,
    InMemoryLedgerWriter,
    Ledger,
    LedgerEvent,
    LedgerWriter,
    PostgresLedgerWriter,
    SqliteLedgerWriter,
)
from sabot.agents.accounts.budgets import ALLOWED
from sabot.agents.accounts.journal_rows import update_ledger
from sabot.agents.accounts.reads import limit_records
from sabot.base.accounts import Amounts
from sabot.clock import ManualClock
from sabot.connectors.sql.server import PostgresServer
from sabot.errors import AppLocked, BrokerUnavailable, DataError, TransientError, UserError
from sabot.journal.memory import MemoryJournal
from sabot.llm import BudgetExceeded, Usage
from tools.postgres import server_or_skip

NOON = datetime(2026, 3, 31, 12, 0, tzinfo=UTC).timestamp()
TENANT = ExecutionContext(scope_id="tenant", principal_id="ann", job_id="job")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], LedgerWriter]]:
    """A function that makes a writer over the same rows, as another process has it; in memory it is the same object."""
    with ExitStack() as open_now:
        if request.param == "memory":
            kept = InMemoryLedgerWriter()
            yield lambda: kept
        elif request.param == "sqlite":
            yield lambda: SqliteLedgerWriter(tmp_path / "a" / "ledger.db")
        else:
            url = open_now.enter_context(server_or_skip().database())
            yield lambda: PostgresLedgerWriter(url)


@pytest.fixture
async def writer(another: Callable[[], LedgerWriter]) -> AsyncIterator[LedgerWriter]:
    made = another()
    yield made
    await made.close()


def ledger(clock: ManualClock | None = None, writer: LedgerWriter | None = None, **limits: Any) -> Ledger:
    budgets = [Budget("tenant", **limits)] if limits else []
    return Ledger(writer or InMemoryLedgerWriter(), budgets=budgets, clock=clock or ManualClock(NOON))


def row(event_id: str, **fields: Any) -> LedgerEvent:
    return LedgerEvent(
        event_id=event_id, **{"type": "model", "scope_id": "tenant", "at_ms": round(NOON * 1000), **fields}
    )


# -- ledgers over one writer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False], ids=["one object", "two objects"])
async def test_one_ledger_at_a_time_counts_budgets_over_a_writer_that_is_not_shared(
    another: Callable[[], LedgerWriter], same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several kernels over one file counted by itself: five calls passed with a limit of three."""
    monkeypatch.setattr("sabot.agents.stores.tables.LOCK_SECONDS", 0.05)
    one = another()
    two = one if same else another()
    first, second, notes = (
        ledger(writer=one, max_calls_daily=1),
        ledger(writer=two, max_calls_daily=1),
        ledger(writer=two),
    )
    assert await first.check_budget(TENANT) is not BudgetDecision.DENY
    with pytest.raises(AppLocked, match=r"counts budgets over these rows by itself(.|\n)*shared=True"):
        await second.check_budget(TENANT)
    assert await notes.check_budget(TENANT) is BudgetDecision.ALLOW, "it has no budgets, and only records"
    notes.set_budget(Budget("tenant", max_calls_daily=1))
    with pytest.raises(AppLocked):
        await notes.check_budget(TENANT)
    await first.record_model_usage(TENANT, Usage(1))
    await first.close()
    assert await second.check_budget(TENANT) is BudgetDecision.DENY, "it reads what the first one has used"
    with pytest.raises(AppLocked):
        await first.check_budget(TENANT)
    await second.close()


async def test_a_ledger_whose_session_of_postgresql_has_ended_counts_on_only_if_no_other_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sabot.agents.stores.tables.LOCK_SECONDS", 0.05)
    with server_or_skip().database() as url:

        def ended() -> None:
            """Ends the session that has the lock, and returns when it has ended."""
            admin = PostgresServer(url, "test", "test").connect("")
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks JOIN pg_database d ON d.oid = database "
                "WHERE locktype = 'advisory' AND datname = current_database()"
            )
            admin.close()

        first, second = (ledger(writer=PostgresLedgerWriter(url), max_calls_daily=9) for _ in range(2))
        assert await first.check_budget(TENANT) is BudgetDecision.ALLOW
        ended()
        await first.record_model_usage(TENANT, Usage(1))  # by another session, which has taken the lock again
        with pytest.raises(AppLocked):
            await second.check_budget(TENANT)
        ended()
        assert await second.check_budget(TENANT) is BudgetDecision.ALLOW
        with pytest.raises(AppLocked):
            await first.record_model_usage(TENANT, Usage(1))
        with pytest.raises(AppLocked):
            await first.check_budget(TENANT)
        await second.close()
        assert await first.check_budget(TENANT) is BudgetDecision.ALLOW, "now it has the lock again"
        await first.close()


# -- what fits -------------------------------------------------------------------------------------------------------------


async def test_a_scope_without_a_budget_may_do_what_it_likes_and_is_recorded() -> None:
    writer = InMemoryLedgerWriter()
    accounts = ledger(writer=writer)
    assert await accounts.check_budget(TENANT, 10**12) is BudgetDecision.ALLOW
    event = await accounts.record_model_usage(TENANT, Usage(10, 5), cost=Decimal("0.1"), model="m")
    assert writer.events == [event]
    assert (event.total_tokens, event.principal_id, event.job_id, event.at_ms) == (15, "ann", "job", NOON * 1000)
    with pytest.raises(UserError, match="scope tenant has no budget"):
        await accounts.used("tenant")


async def test_what_is_exactly_at_the_limit_fits_and_little_left_is_a_warning() -> None:
    accounts = ledger(max_tokens_daily=1000)
    assert await accounts.check_budget(TENANT, 799) is BudgetDecision.ALLOW
    assert await accounts.check_budget(TENANT, 1) is BudgetDecision.WARN
    assert await accounts.check_budget(TENANT, 201) is BudgetDecision.DENY
    assert await accounts.check_budget(TENANT, 200) is BudgetDecision.WARN


async def test_a_check_reserves_and_is_not_used_and_looking_reserves_nothing() -> None:
    writer = InMemoryLedgerWriter()
    accounts = ledger(writer=writer, max_tokens_daily=100, max_calls_daily=2, warn_at=1)
    looked = [(await accounts.used("tenant"))["daily"] for _ in range(5)]
    assert await accounts.check_budget(TENANT, 60) is BudgetDecision.ALLOW, "five looks have taken no call"
    assert await accounts.check_budget(TENANT, 60) is BudgetDecision.DENY, "a second check would be a second call"
    assert {*looked, (await accounts.used("tenant"))["daily"]} == {Amounts(0, Decimal(0), 0)}
    assert writer.events == []


async def test_200_calls_side_by_side_never_use_more_than_there_is() -> None:
    writer = InMemoryLedgerWriter()
    accounts = ledger(writer=writer, max_tokens_daily=10_000)
    refused = 0

    async def call(number: int) -> None:
        nonlocal refused
        if await accounts.check_budget(TENANT, 300) is BudgetDecision.DENY:
            refused += 1
            return
        await asyncio.sleep(0)
        await accounts.record_model_usage(TENANT, Usage(200, 100 if number % 2 else 0))

    await asyncio.gather(*(call(number) for number in range(200)))
    used = sum(event.total_tokens for event in writer.events)
    assert len(writer.events) == 33, "as many as may use 300 each"
    assert used <= 10_000
    assert refused == 200 - len(writer.events)
    assert (await accounts.used("tenant"))["daily"].tokens == used


async def test_money_and_calls_are_limited_too() -> None:
    accounts = ledger(max_cost_daily=Decimal("1.00"), max_calls_hourly=3)
    assert await accounts.check_budget(TENANT, pending_cost=Decimal("0.9")) is BudgetDecision.WARN
    assert await accounts.check_budget(TENANT, pending_cost="0.11") is BudgetDecision.DENY
    await accounts.record_model_usage(TENANT, Usage(), cost=Decimal("1.00"))
    assert await accounts.check_budget(TENANT) is BudgetDecision.DENY, "a call whose price is not known, at the limit"
    accounts = ledger(max_calls_hourly=2, warn_at=1)
    assert [await accounts.check_budget(TENANT) for _ in range(3)] == ["allow", "allow", "deny"]


async def test_who_is_exhausted_may_be_degraded_or_asked() -> None:
    degraded = ledger(max_tokens_daily=0, exhausted="degrade", degrade_to="small")
    assert await degraded.check_budget(TENANT, 1) is BudgetDecision.DEGRADE
    assert await ledger(max_tokens_daily=0, exhausted="ask").check_budget(TENANT, 1) is BudgetDecision.ASK


async def test_the_reason_of_a_refusal_has_the_numbers() -> None:
    told: list[Any] = []
    accounts = Ledger(
        InMemoryLedgerWriter(),
        budgets=[Budget("tenant", max_tokens_daily=100)],
        clock=ManualClock(NOON),
        on_decision=lambda context, judged: told.append((context.scope_id, judged.reason)),
    )
    await accounts.check_budget(TENANT, 70)
    await accounts.record_model_usage(TENANT, Usage(30, 10))
    await accounts.check_budget(TENANT, 50)
    await accounts.check_budget(TENANT, 20)
    assert told == [
        ("tenant", "of the daily budget of tenant, 100 tokens, 90 may be used with this call"),
        (
            "tenant",
            "the daily budget of tenant has 100 tokens: 40 used, 50 reserved for calls in flight, and this call may use 20",
        ),
    ]


async def test_more_is_allowed_when_the_budget_is_raised() -> None:
    accounts = ledger(max_tokens_daily=10)
    assert await accounts.check_budget(TENANT, 20) is BudgetDecision.DENY
    accounts.set_budget(Budget("tenant", max_tokens_daily=20, warn_at=1))
    assert await accounts.check_budget(TENANT, 20) is BudgetDecision.ALLOW
    assert await accounts.check_budget(TENANT, 1) is BudgetDecision.DENY
    assert BudgetExceededError is BudgetExceeded


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens_daily": -1},
        {"max_tokens_daily": 1.5},
        {"max_cost_daily": "much"},
        {"max_cost_daily": float("nan")},
        {"warn_at": 0},
        {"warn_at": True},
        {"exhausted": "degrade", "degrade_to": 3},
        {"exhausted": "stop"},
        {"exhausted": "degrade"},
        {"degrade_to": "small"},
    ],
)
def test_a_budget_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Budget of tenant"):
        Budget("tenant", **wrong)
    with pytest.raises(UserError, match="is no Budget"):
        ledger().set_budget(100)  # type: ignore[arg-type]


async def test_use_that_is_negative_or_no_number_is_refused_and_gives_nothing_back() -> None:
    """-1000000 tokens that were to come made room for 500,000, and one row of NaN broke the account for good."""
    books, who = ledger(max_tokens_daily=100, max_cost_daily=1), TENANT
    for pending in ({"pending_tokens": -1}, {"pending_tokens": 1.5}, {"pending_cost": -5}, {"pending_cost": "much"}):
        with pytest.raises(UserError, match=next(iter(pending))):
            await books.check_budget(who, **pending)  # type: ignore[arg-type]
    for cost in (Decimal("NaN"), Decimal("-1"), Decimal("Infinity")):
        with pytest.raises(UserError, match="cost="):
            await books.record_model_usage(who, Usage(1, 1), cost=cost)
    with pytest.raises(UserError, match="input_tokens="):
        await books.record_model_usage(who, Usage(-7, 1))
    assert await books.check_budget(who, 101) is BudgetDecision.DENY
    assert await books.check_budget(who, 79) is BudgetDecision.ALLOW


async def test_budgets_of_the_same_scope_hold_together_and_one_that_is_set_takes_their_place() -> None:
    def books(*budgets: Budget) -> Ledger:
        return Ledger(InMemoryLedgerWriter(), budgets=budgets, clock=ManualClock(NOON))

    daily, monthly = Budget("tenant", max_tokens_daily=10, max_calls_daily=5), Budget("tenant", max_tokens_monthly=20)
    other = Budget("other", max_tokens_daily=1)
    for given in (
        [daily, other, monthly],
        [monthly, daily, other],
        [daily, monthly, Budget("tenant", max_tokens_daily=99)],
    ):
        made = books(*given)
        assert list(made.budget("tenant").limits()) == [
            ("tokens", 10, "daily"),
            ("calls", 5, "daily"),
            ("tokens", 20, "monthly"),
        ]
        assert await made.check_budget(TENANT, 11) is BudgetDecision.DENY
        made.set_budget(monthly)
        assert await made.check_budget(TENANT, 11) is BudgetDecision.ALLOW
    asks = Budget("tenant", max_calls_daily=9, exhausted="ask")
    with pytest.raises(UserError, match=r"two budgets of tenant: one has exhausted='deny', the other exhausted='ask'"):
        books(daily, asks)


# -- time ------------------------------------------------------------------------------------------------------------------


async def test_a_window_is_one_of_the_calendar() -> None:
    clock = ManualClock(NOON)
    accounts = ledger(clock, max_tokens_hourly=100, max_tokens_daily=200, max_tokens_monthly=300, warn_at=1)

    async def uses(tokens: int) -> BudgetDecision:
        decided = await accounts.check_budget(TENANT, tokens)
        if decided is BudgetDecision.ALLOW:
            await accounts.record_model_usage(TENANT, Usage(tokens))
        return decided

    assert [await uses(100), await uses(1)] == ["allow", "deny"]
    clock.advance(3600)  # the next hour
    assert [await uses(100), await uses(1)] == ["allow", "deny"]
    clock.advance(3600)
    assert await uses(1) is BudgetDecision.DENY, "of the day"
    clock.advance(10 * 3600 - 1)  # a second before midnight, which is the end of the month
    assert await uses(1) is BudgetDecision.DENY
    clock.advance(1)
    assert [await uses(100), await uses(1)] == ["allow", "deny"]
    assert (await accounts.used("tenant"))["monthly"] == Amounts(100, Decimal(0), 1)


async def test_a_clock_that_is_set_back_gives_no_day_twice() -> None:
    clock = ManualClock(NOON)
    accounts = ledger(clock, max_tokens_daily=100)
    await accounts.check_budget(TENANT, 80)
    await accounts.record_model_usage(TENANT, Usage(80))
    clock.set(clock.time() - 86400)
    assert await accounts.check_budget(TENANT, 80) is BudgetDecision.DENY
    clock.set(clock.time() + 86400)
    assert await accounts.check_budget(TENANT, 80) is BudgetDecision.DENY


async def test_a_check_without_a_record_ends_after_its_time_for_everybody() -> None:
    """It counted until the same caller checked again, so that a caller that had gone took its part of the budget for ever."""
    clock = ManualClock(NOON)
    accounts = ledger(clock, max_tokens_daily=100, warn_at=1)
    for job in range(5):
        assert await accounts.check_budget(replace(TENANT, job_id=f"job-{job}"), 20) is BudgetDecision.ALLOW
        clock.advance(60)
    other = replace(TENANT, principal_id="somebody else")
    assert await accounts.check_budget(other, 20) is BudgetDecision.DENY
    clock.advance(5 * 60)  # ten minutes after the first one
    assert await accounts.check_budget(other, 20) is BudgetDecision.ALLOW
    assert await accounts.check_budget(other, 20) is BudgetDecision.DENY
    clock.advance(60)
    assert accounts.reserve("a call of a guard", "tenant", Amounts(20, Decimal(0), 1)) == ALLOWED
    clock.advance(3600)
    assert await accounts.check_budget(other, 80) is BudgetDecision.ALLOW
    assert len(accounts._held) == len(accounts._held_by) == 1, "callers that are gone take no memory"


async def test_a_call_that_began_before_midnight_counts_on_the_day_it_ends() -> None:
    clock = ManualClock(NOON + 43140)
    accounts = ledger(clock, max_tokens_daily=100)
    await accounts.check_budget(TENANT, 80)
    clock.advance(60)
    assert await accounts.check_budget(TENANT, 30) is BudgetDecision.DENY, "it may use its 80 today"
    await accounts.record_model_usage(TENANT, Usage(50))
    assert (await accounts.used("tenant"))["daily"].tokens == 50


async def test_a_reservation_of_which_nothing_comes_ends_by_itself() -> None:
    clock = ManualClock(NOON)
    accounts = ledger(clock, max_tokens_daily=100)
    assert await accounts.check_budget(TENANT, 80) is BudgetDecision.WARN
    clock.advance(599)
    assert await accounts.check_budget(TENANT, 80) is BudgetDecision.DENY
    clock.advance(1)
    assert await accounts.check_budget(TENANT, 80) is BudgetDecision.WARN


# -- rows ------------------------------------------------------------------------------------------------------------------


@pytest.mark.one_in(3, "a tenth of a second of a core each")
async def test_what_was_used_before_the_ledger_was_opened_counts(writer: LedgerWriter) -> None:
    old = round((NOON - 86400) * 1000)
    await writer.write([row("1", input_tokens=60, cost=Decimal("0.1")), row("2", input_tokens=900, at_ms=old)])
    await writer.write([row("3", scope_id="other", input_tokens=900), row("4", type="tool", name="look")])
    accounts = ledger(writer=writer, max_tokens_daily=100)
    used = await accounts.used("tenant")
    assert used["daily"] == Amounts(60, Decimal("0.1"), 1)
    assert used["monthly"] == Amounts(960, Decimal("0.1"), 2)
    assert await accounts.check_budget(TENANT, 41) is BudgetDecision.DENY


async def test_what_is_recorded_under_one_name_counts_once_also_in_memory_and_over_a_restart(
    writer: LedgerWriter,
) -> None:
    async def record(books: Ledger) -> None:
        await books.record_model_usage(TENANT, Usage(40), cost=Decimal("0.4"), event_id="e1")

    once = Amounts(40, Decimal("0.4"), 1)
    books = ledger(writer=writer, max_tokens_daily=100)
    assert await books.check_budget(TENANT, 40) is BudgetDecision.ALLOW
    await asyncio.gather(record(books), record(books), record(books))
    await record(books)
    assert ((await books.used("tenant"))["daily"], await writer.used("tenant", 0)) == (once, once)
    await books.close()
    again = ledger(writer=writer, max_tokens_daily=100)
    await record(again)
    assert (await again.used("tenant"))["daily"] == once
    assert await writer.known(["e1", "e2"]) == {"e1"}
    assert await again.check_budget(TENANT, 60) is BudgetDecision.WARN, "no reservation is left"


async def test_a_writer_that_does_not_answer_for_a_time_costs_no_reservation() -> None:
    """The reservation of the call was counted until the end of the process."""

    class Silent(InMemoryLedgerWriter):
        async def known(self, event_ids: Sequence[str]) -> set[str]:
            if away:
                raise BrokerUnavailable("away")
            return await super().known(event_ids)

    away = [True]
    books = ledger(writer=Silent(), max_tokens_daily=100, warn_at=1)
    assert await books.check_budget(TENANT, 60) is BudgetDecision.ALLOW
    with pytest.raises(BrokerUnavailable):
        await books.record_model_usage(TENANT, Usage(10), event_id="e1")
    away.clear()
    await books.record_model_usage(TENANT, Usage(10), event_id="e1")
    assert await books.check_budget(TENANT, 90) is BudgetDecision.ALLOW


async def test_a_name_with_a_nul_is_refused_where_it_comes_in() -> None:
    for names in ({"model": "m\0x"}, {"event_id": "e\0x"}, {"model": "\ud800"}):
        with pytest.raises(UserError, match=next(iter(names))):
            await ledger().record_model_usage(TENANT, Usage(1), **names)  # type: ignore[arg-type]


@pytest.mark.parametrize("another", ["sqlite", "postgres"], indirect=True)
async def test_a_row_that_cannot_be_kept_for_what_it_says_is_left_out_and_the_others_are_kept(
    writer: LedgerWriter, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(str(number), input_tokens=3 * 10**9) for number in range(7)]
    rows[2:2] = [row("huge", input_tokens=10**30), row("half", name="\ud800")]
    with pytest.raises(DataError, match="does not take it"):
        await writer.write(rows)
    assert await writer.used("tenant", 0) == Amounts()
    books = ledger(writer=writer)
    for each in rows:
        books.record(each)
    await books.flush()
    assert books.refused_rows == 2
    assert (await writer.used("tenant", 0)) == Amounts(21 * 10**9, Decimal(0), 7)
    assert await books.correct([rows[0], rows[2], row("next", input_tokens=1)]) == 0
    assert (await writer.used("tenant", 0)).calls == 8
    assert "row huge of scope tenant is left out" in caplog.text
    assert "row half of scope tenant is left out" in caplog.text


async def test_a_row_is_kept_once(writer: LedgerWriter) -> None:
    assert await writer.used("tenant", 0) == Amounts()
    await writer.write([row("1", input_tokens=1), row("1", input_tokens=1)])
    await writer.write([row("1", input_tokens=7), row("2", input_tokens=2)])
    assert (await writer.used("tenant", 0)).tokens == 3


async def test_a_doubt_makes_room_for_what_is_known_and_for_no_other_doubt(writer: LedgerWriter) -> None:
    doubt = row("1", type="doubt", name="big", reserved_tokens=70, cost=Decimal("0.7"))
    known = row("1", name="big", input_tokens=10, cost=Decimal("0.1"), settles=doubt.amounts)
    await writer.write([doubt])
    assert await writer.used("tenant", 0) == Amounts(70, Decimal("0.7"), 1)
    await writer.write([row("1", type="doubt", reserved_tokens=90), known, doubt, row("2", type="doubt")])
    await writer.write([doubt])
    assert await writer.used("tenant", 0) == Amounts(10, Decimal("0.1"), 2)
    _, sums = await writer.sums(["model"], 0)
    assert (sums.calls, sums.input_tokens, sums.doubt_tokens, sums.cost, sums.doubt_cost) == (
        1,
        10,
        0,
        Decimal("0.1"),
        0,
    )


async def test_rows_that_say_something_else_are_corrected_and_counted(writer: LedgerWriter) -> None:
    true = [
        row("1", input_tokens=10, cost=Decimal("0.10")),
        row("2", name="m"),
        row("3", type="doubt", reserved_tokens=9),
    ]
    await writer.write([row("1", input_tokens=1, cost=Decimal("0.1")), row("2", name="m"), row("3", input_tokens=4)])
    assert await writer.correct([*true, row("4", input_tokens=1)]) == 1
    assert await writer.correct(true) == 0
    (sums,) = await writer.sums([], 0)
    assert (sums.calls, sums.input_tokens, sums.doubt_tokens, sums.cost) == (4, 15, 0, Decimal("0.10"))


async def test_rows_are_put_together_by_what_is_asked(writer: LedgerWriter) -> None:
    next_day = round((NOON + 86400) * 1000)
    await writer.write(
        [
            row("1", name="big", input_tokens=10, output_tokens=1, cost=Decimal("0.1")),
            row("2", name="big", input_tokens=20, cost=Decimal("0.2"), at_ms=next_day),
            row("3", name="small", input_tokens=5),
            row("4", type="doubt", name="small", reserved_tokens=70, cost=Decimal("0.9")),
            row("5", type="tool", name="look", scope_id="other"),
        ]
    )
    found = {each.group: each for each in await writer.sums(["scope", "model"], 0)}
    assert list(found) == [("other", ""), ("tenant", "big"), ("tenant", "small")]
    big, small = found["tenant", "big"], found["tenant", "small"]
    assert (big.calls, big.input_tokens, big.output_tokens, big.cost) == (2, 30, 1, Decimal("0.3"))
    assert (small.calls, small.doubt_tokens, small.unpriced, small.cost) == (2, 70, 1, Decimal(0))
    assert (small.doubt_cost, big.doubt_cost) == (Decimal("0.9"), Decimal(0))
    assert [each.group for each in await writer.sums(["day"], 0)] == [("2026-03-31",), ("2026-04-01",)]
    assert [each.group for each in await writer.sums(["tool", "type"], next_day)] == [("", "model")]
    assert [each.calls for each in await writer.sums([], 0)] == [5]
    assert await writer.sums([], next_day + 1) == []
    with pytest.raises(UserError, match="a ledger has no 'colour'"):
        await writer.sums(["colour"], 0)
    with pytest.raises(UserError, match="put together by scope twice"):
        await writer.sums(["scope", "day", "scope"], 0)
    with pytest.raises(UserError, match="by='scope'"):
        await writer.sums("scope", 0)


async def test_costs_are_added_exactly(writer: LedgerWriter) -> None:
    await writer.write([row(str(number), cost=Decimal("0.000000001")) for number in range(1000)])
    assert (await writer.used("tenant", 0)).cost == Decimal("0.000001")


class Failing(InMemoryLedgerWriter):
    failing = True

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        if self.failing:
            raise OSError("the disk is full")
        await super().write(events)


async def test_rows_that_cannot_be_written_count_and_wait(caplog: pytest.LogCaptureFixture) -> None:
    writer = Failing()
    accounts = ledger(writer=writer, max_tokens_daily=100)
    await accounts.ready("tenant")
    accounts.record(row("1", input_tokens=90))
    with pytest.raises(OSError, match="the disk is full"):
        await accounts.flush()
    assert await accounts.check_budget(TENANT, 20) is BudgetDecision.DENY
    assert "1 row could not be written yet: the disk is full" in caplog.text
    writer.failing = False
    await accounts.close()
    assert [event.event_id for event in writer.events] == ["1"]


async def test_a_shared_ledger_that_was_closed_renews_no_lease_for_a_late_release() -> None:
    """The task that renews it began again, and never ended: what other calls had reserved was held for ever."""
    accounts = ledger(writer=InMemoryLedgerWriter(shared=True), max_tokens_daily=100)
    for call in ("late", "lost"):
        accounts.hold(call, "tenant", Amounts(40))
    await accounts.close()
    accounts.release("late", "tenant")
    assert (await accounts.standing("tenant")).reserved.tokens == 40
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_what_is_recorded_while_the_account_is_opened_counts_once() -> None:
    class Slow(InMemoryLedgerWriter):
        async def used(self, scope_id: str, since_ms: int) -> Amounts:
            found = await super().used(scope_id, since_ms)
            if not opened:
                opened.append(True)
                accounts.record(row("1", input_tokens=90))
            return found

    opened: list[bool] = []
    accounts = ledger(writer=Slow(), max_tokens_daily=100)
    assert (await accounts.used("tenant"))["daily"].tokens == 90


async def test_the_database_of_a_ledger_is_for_its_owner_and_may_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first, second = SqliteLedgerWriter(path), SqliteLedgerWriter(path)
    await first.write([row("1", input_tokens=5)])
    assert (await second.used("tenant", 0)).tokens == 5
    assert path.stat().st_mode & 0o777 == 0o600
    await first.close()
    await second.close()
    (tmp_path / "text").write_text("no database, but long enough to be taken for one" * 100)
    third = SqliteLedgerWriter(tmp_path / "text")
    with pytest.raises(UserError, match="text"):
        await third.used("tenant", 0)
    await first.write([row("2", input_tokens=5)])  # it is opened again
    assert (await first.used("tenant", 0)).tokens == 10
    await first.close()


# -- a server that goes away at the start ------------------------------------------------------------------------------------


class Away(InMemoryLedgerWriter):
    """Breaks off so many writes."""

    def __init__(self, times: int, *, shared: bool) -> None:
        super().__init__(shared=shared)
        self.times = times

    async def write(self, events: Sequence[LedgerEvent]) -> None:
        self.times -= 1
        if self.times >= 0:
            raise TransientError("ledger of db:5432: server closed the connection")
        await super().write(events)


async def test_a_start_waits_for_the_server_of_shared_budgets_while_it_restarts() -> None:
    writer = Away(3, shared=True)
    await update_ledger(Ledger(writer, patience="60s"), MemoryJournal())
    assert writer.times == -1


@pytest.mark.parametrize("shared", [True, False])
async def test_a_start_without_its_server_says_that_it_is_not_there(shared: bool) -> None:
    ledger = Ledger(Away(10**6, shared=shared), patience="30ms")
    with pytest.raises(BrokerUnavailable, match="db:5432: server closed the connection"):
        await update_ledger(ledger, MemoryJournal())


def test_a_connection_that_breaks_off_as_it_is_made_is_a_server_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    psycopg = pytest.importorskip("psycopg")
    closed: list[bool] = []

    class Breaks:
        def execute(self, *statement: object) -> None:
            raise psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly")

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(psycopg, "connect", lambda *words, **options: Breaks())
    server = PostgresServer("postgresql://sabot@db:5432/sabot", "ledger", "test")
    with pytest.raises(BrokerUnavailable, match=r"PostgreSQL at db:5432/sabot: .*consuming input failed"):
        server.connect("")
    assert closed == [True]


# -- budgets of patterns ---------------------------------------------------------------------------------------------------


def of(scope: str) -> ExecutionContext:
    return ExecutionContext(scope_id=scope)


async def test_a_pattern_is_a_budget_for_each_scope_that_matches_and_a_name_stands_before_it(
    writer: LedgerWriter,
) -> None:
    """`Budget("tenant-*")` limited nobody, in silence."""
    budgets = [
        Budget("*", max_tokens_daily=100, warn_at=1),
        Budget("tenant-*", max_tokens_daily=200, warn_at=1),
        Budget("tenant-big", max_tokens_daily=5000, warn_at=1),
    ]
    books = Ledger(writer, budgets=budgets, clock=ManualClock(NOON))
    for scope, most in {"ann": 100, "tenant-a": 200, "tenant-b": 200, "tenant-big": 5000, "Tenant-a": 100}.items():
        assert await books.check_budget(of(scope), most + 1) is BudgetDecision.DENY, scope
        assert await books.check_budget(of(scope), most) is BudgetDecision.ALLOW, scope
        assert await books.check_budget(of(scope), 1) is BudgetDecision.DENY, scope
        await books.record_model_usage(of(scope), Usage(most))
        assert (await books.used(scope))["daily"].tokens == most, "each has its own account"
    assert (books.budget("tenant-a").scope_id, books.budget("tenant-a").max_tokens_daily) == ("tenant-a", 200)
    await books.close()
    again = Ledger(writer, budgets=budgets, clock=ManualClock(NOON))  # after a restart
    assert await again.check_budget(of("tenant-a"), 1) is BudgetDecision.DENY
    assert (await again.used("tenant-b"))["daily"].tokens == 200
    assert await again.check_budget(of("tenant-new"), 200) is BudgetDecision.ALLOW


async def test_a_budget_that_is_set_later_counts_what_a_scope_has_used_by_its_pattern() -> None:
    books = Ledger(
        InMemoryLedgerWriter(), budgets=[Budget("t-*", max_tokens_daily=100, warn_at=1)], clock=ManualClock(NOON)
    )
    await books.check_budget(of("t-1"), 90)
    await books.record_model_usage(of("t-1"), Usage(90))
    books.set_budget(Budget("t-*", max_tokens_daily=150, warn_at=1))
    assert await books.check_budget(of("t-1"), 61) is BudgetDecision.DENY
    books.set_budget(Budget("t-1", max_tokens_daily=300, warn_at=1))
    assert await books.check_budget(of("t-1"), 211) is BudgetDecision.DENY
    assert await books.check_budget(of("t-1"), 210) is BudgetDecision.ALLOW
    assert await books.check_budget(of("t-2"), 151) is BudgetDecision.DENY


@pytest.mark.parametrize("given", ["?", "[ab]*", "a*", "*"])
async def test_all_wildcards_of_rules_are_those_of_budgets(given: str) -> None:
    books = Ledger(InMemoryLedgerWriter(), budgets=[Budget(given, max_calls_daily=0)], clock=ManualClock(NOON))
    assert await books.check_budget(of("a")) is BudgetDecision.DENY
    assert await books.check_budget(of("cc")) is (BudgetDecision.DENY if given == "*" else BudgetDecision.ALLOW)


async def test_more_scopes_than_are_kept_in_memory_keep_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sabot.agents.accounts.budgets._MOST_SCOPES", 3)
    books = Ledger(
        InMemoryLedgerWriter(), budgets=[Budget("*", max_tokens_daily=10, warn_at=1)], clock=ManualClock(NOON)
    )
    held = [await books.check_budget(of("held"), 10)]
    for number in range(20):
        assert await books.check_budget(of(str(number)), 10) is BudgetDecision.ALLOW
        await books.record_model_usage(of(str(number)), Usage(10))
    assert len(books._accounts.by_scope) <= 4
    assert held == [BudgetDecision.ALLOW]
    for scope in ("held", "0", "7", "19"):
        assert await books.check_budget(of(scope), 1) is BudgetDecision.DENY, scope


async def test_what_is_shown_of_a_pattern_is_each_scope_that_has_used_something(writer: LedgerWriter) -> None:
    books = Ledger(
        writer,
        budgets=[
            Budget("t-*", max_tokens_daily=100),
            Budget("u-*", max_tokens_daily=5),
            Budget("ann", max_calls_daily=1),
        ],
        clock=ManualClock(NOON),
    )
    for scope, tokens in {"t-1": 10, "t-2": 70, "other": 3}.items():
        await books.record_model_usage(of(scope), Usage(tokens))
    shown = [(each.scope, int(each.spent), int(each.limit)) for each in await limit_records(books)]
    assert shown == [("ann", 0, 1), ("t-2", 70, 100), ("t-1", 10, 100), ("u-*", 0, 5)]


async def test_a_budget_of_a_scope_that_nobody_had_is_named_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    books = Ledger(
        InMemoryLedgerWriter(),
        budgets=[
            Budget("acmee", max_calls_daily=1),
            Budget("ann", max_calls_daily=9),
            Budget("x-*", max_calls_daily=1),
        ],
    )
    for scope in ("acme", "ann"):
        await books.check_budget(of(scope))
    await books.close()
    await books.close()
    (said,) = [each.getMessage() for each in caplog.records]
    assert said == (
        "budgets: no call of a model in this process was of the scope of these budgets: acmee, x-*; did you mean acme?"
    )
    caplog.clear()
    idle = Ledger(InMemoryLedgerWriter(), budgets=[Budget("acmee", max_calls_daily=1)])
    await idle.close()
    assert not caplog.records, "nobody called"


async def test_a_warning_comes_once_in_a_window_and_a_decision_with_each_call() -> None:
    clock, told = ManualClock(NOON), list[str]()
    books = Ledger(
        InMemoryLedgerWriter(),
        budgets=[Budget("tenant", max_tokens_hourly=1000, max_tokens_daily=3000)],
        clock=clock,
        on_decision=lambda context, judged: told.append(judged.reason),
    )

    async def call(tokens: int) -> BudgetDecision:
        decided = await books.check_budget(TENANT, tokens)
        await books.record_model_usage(TENANT, Usage(tokens))
        return decided

    assert [await call(10) for _ in range(2)] == [BudgetDecision.ALLOW] * 2
    assert [await call(10) for _ in range(3)] == [BudgetDecision.ALLOW] * 3
    assert await call(760) is BudgetDecision.WARN
    assert [await call(10) for _ in range(5)] == [BudgetDecision.WARN] * 5
    assert (len(told), len(books.judged)) == (1, 1)
    assert told[0] == "of the hourly budget of tenant, 1000 tokens, 810 may be used with this call"
    clock.advance(3600)
    assert [await call(860), await call(10)] == [BudgetDecision.WARN] * 2
    assert len(told) == 2
    clock.advance(3600)
    assert [await call(10) for _ in range(2)] == [BudgetDecision.ALLOW] * 2
    assert [await call(720), await call(10)] == [BudgetDecision.WARN] * 2
    assert len(told) == 3
    assert told[2] == "of the daily budget of tenant, 3000 tokens, 2470 may be used with this call"
