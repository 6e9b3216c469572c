"""Requests that were sent and whose answers were not read: each is a row in doubt, and each further one is asked of the budgets first."""

import asyncio
from contextlib import suppress
from contextvars import copy_context
from decimal import Decimal
from typing import Any

import pytest
from unit.agents.test_accounting import COST, MOST, PRICES, answer, guard, rows
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents import Decision, GuardedCall, PolicyEngine
from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.durable.context import DurableContext
from sabot.clock import ManualClock
from sabot.jobs.guard import guard_of
from sabot.jobs.judges import judge_of
from sabot.jobs.log import Fragment
from sabot.journal import Letter
from sabot.journal.entries import Attempt
from sabot.journal.memory import MemoryReader, MemoryStorage
from sabot.llm import (
    BudgetExceeded,
    ExecutionEngine,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    ModelUnreachable,
    OpenAIProvider,
    RateLimited,
    RequestSpec,
    ScriptedProvider,
)
from sabot.llm.judges import JUDGE

LOST = ModelUnavailable("the connection broke")
RESERVED = str(COST)


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


class Losing(ScriptedProvider):
    """Loses vectors too, as the script has it."""

    async def embed(self, texts: Any, **how: Any) -> Any:
        await self.complete(RequestSpec(messages=()))
        return await super().embed(texts, **how)


class Asking:
    """An engine with retries, and a job that asks it once."""

    def __init__(self, *answers: Any, **options: Any) -> None:
        self.provider = Losing(list(answers), model="m")
        self.engine = ExecutionEngine(self.provider, prices=PRICES, **{"sleep": at_once, **options})
        self.errors: list[Exception] = []

    async def job(self, ctx: DurableContext) -> Any:
        try:
            return (await ctx.llm(self.engine).complete("one", max_tokens=100)).model
        except (ModelError, BudgetExceeded) as error:
            self.errors.append(error)
        return None

    async def run(self, by: LedgerGuard, home: MemoryStorage | None = None, listener: Any = None) -> MemoryStorage:
        home = home or MemoryStorage(ManualClock(1_000_000.0))
        begun = bool(entries(home))
        async with hosting(home, Agent(self.job), guard=by, listener=listener) as running:
            if not begun:
                running.begin("job")
            await running.over("job")
        await by.ledger.flush()
        return home


class Hearing:
    """A listener that wants pieces."""

    def __init__(self) -> None:
        self.pieces: list[int] = []

    async def wants_fragments(self, job_id: str) -> bool:
        return True

    async def publish(self, notice: Any) -> None:
        if isinstance(notice, Fragment):
            self.pieces.append(notice.attempt)


@pytest.mark.parametrize("listener", [None, Hearing()])
async def test_each_request_whose_answer_was_not_read_is_a_row(listener: Any) -> None:
    asking, by = Asking(LOST, ModelTimeout("no answer in 1 s"), answer), guard(max_tokens_daily=10_000)
    await asking.run(by, listener=listener)
    assert rows(by) == {
        "job/1/1": ("doubt", "m", 0, RESERVED),
        "job/1/2": ("doubt", "m", 0, RESERVED),
        "job/1/3": ("model", "m", 150, "0.000600"),
    }
    used = (await by.ledger.used("app"))["daily"]
    assert (used.tokens, used.cost, used.calls) == (2 * MOST + 150, 2 * COST + Decimal("0.0006"), 3)
    assert (await by.ledger.standing("app")).reserved.tokens == 0


async def test_pieces_are_told_as_those_of_the_attempt_that_they_are_of() -> None:
    hearing = Hearing()
    await Asking(LOST, ("a", "b")).run(guard(), listener=hearing)
    assert hearing.pieces == [2, 2]


async def test_a_stream_that_broke_off_and_the_whole_that_is_asked_for_then_are_two_requests() -> None:
    asking, by = Asking(("a", "b", LOST), answer), guard()
    await asking.run(by, listener=Hearing())
    assert [each[0] for each in rows(by).values()] == ["doubt", "model"]


async def test_requests_that_nobody_is_paid_for_are_no_rows() -> None:
    unsent = [RateLimited("slow down"), ModelUnreachable("refused"), ModelTimeout("no connection", sent=False)]
    asking, by = Asking(*unsent, answer), guard()
    await asking.run(by)
    assert list(rows(by)) == ["job/1/1"]
    assert len(asking.provider.requests) == 4


@pytest.mark.slow  # half a second of a core
async def test_a_server_that_is_not_there_costs_nothing() -> None:
    asking, by = Asking(), guard(max_tokens_daily=10_000)
    asking.engine = ExecutionEngine(OpenAIProvider("m", base_url="http://127.0.0.1:9/v1", api_key="k"), sleep=at_once)
    await asking.run(by)
    assert isinstance(asking.errors[0], ModelUnreachable)
    assert rows(by) == {"job/1/1": ("free", "m", 0, Decimal(0))}
    assert (await by.ledger.used("app"))["daily"].tokens == 0
    await asking.engine.close()


@pytest.mark.parametrize(
    "limits", [{"max_tokens_daily": 250}, {"max_calls_daily": 2}, {"max_cost_daily": Decimal("0.0021")}]
)
async def test_a_budget_that_is_used_up_ends_the_retries(limits: Any) -> None:
    asking, by = Asking(LOST, LOST, LOST, LOST, answer), guard(**limits)
    await asking.run(by)
    assert len(asking.provider.requests) == 2
    (error,) = asking.errors
    assert isinstance(error, BudgetExceeded)
    assert "with attempts before it that may have been paid, the daily budget of app has" in error.message
    assert [each[0] for each in rows(by).values()] == ["doubt", "doubt"]
    assert (await by.ledger.used("app"))["daily"].calls == 2


async def test_middleware_that_asks_again_after_all_is_asked_of_the_budget_each_time() -> None:
    async def stubborn(call: Any, forward: Any) -> Any:
        for _ in range(3):
            with suppress(ModelUnavailable, BudgetExceeded):
                return await forward(call)
        return await forward(call)

    asking, by = Asking(LOST, LOST, LOST, answer, middleware=(stubborn,)), guard(max_calls_daily=2)
    await asking.run(by)
    assert isinstance(asking.errors[0], BudgetExceeded)
    assert len(asking.provider.requests) == len(rows(by)) == 2


async def test_another_provider_is_asked_only_where_the_budget_has_room_for_both() -> None:
    for limit, made in ((1, 0), (2, 1)):
        second = ScriptedProvider([answer], model="small")
        asking, by = Asking(LOST, retries=0, fallback=[second]), guard(max_calls_daily=limit)
        await asking.run(by)
        assert len(second.requests) == made
        assert [each[0] for each in rows(by).values()] == ["doubt", "model"][:limit]


async def test_what_a_job_may_use_holds_for_retries_too() -> None:
    home, asking = MemoryStorage(ManualClock(1_000.0)), Asking(LOST, LOST, LOST, answer)
    by = guard()
    guards = guard_of([by, JobLimits()])
    async with hosting(home, Agent(asking.job), guard=guards) as running:
        running.begin("job", {"prompt": 1, "budgets": {"max_tokens": 250}})
        await running.over("job")
    assert len(asking.provider.requests) == 2
    assert isinstance(asking.errors[0], BudgetExceeded)
    assert [each.event_id for each in by.ledger.writer.events] == ["job/1/1", "job/1/2"]


async def test_a_request_is_in_the_journal_before_it_is_sent() -> None:
    home, seen = MemoryStorage(ManualClock(1_000.0)), []

    def attempts() -> list[int]:
        return [each.attempt for each in entries(home) if isinstance(each, Attempt)]

    def lost(spec: Any) -> Any:
        seen.append(attempts())
        raise LOST

    asking = Asking(lost, lost, answer)
    await asking.run(guard(), home)
    assert (seen, attempts()) == ([[], [2]], [2, 3])


async def test_after_a_crash_at_any_step_each_request_has_a_row() -> None:
    home = await Asking(LOST, LOST, answer).run(guard())
    written = entries(home)
    assert [type(each).__name__ for each in written] == ["Begin", "Intent", "Attempt", "Attempt", "EffectResult", "End"]
    for count in range(1, 5):
        cut, asking, by = prefix(home, count), Asking(answer), guard(max_tokens_daily=10_000)
        await asking.run(by, cut)
        assert [each[0] for each in rows(by).values()] == ["doubt"] * (count - 1) + ["model"], count
        anew = guard(max_tokens_daily=10_000)
        async with hosting(cut, Agent(asking.job), guard=anew, resume=False):
            assert rows(anew) == rows(by), "the journal has them"


async def test_who_is_not_waited_for_sends_nothing_more() -> None:
    asleep, go_on = asyncio.Event(), asyncio.Event()

    async def sleep(seconds: float) -> None:
        asleep.set()
        await go_on.wait()

    asking, by, home = Asking(LOST, answer, sleep=sleep), guard(), MemoryStorage(ManualClock(1_000.0))
    async with hosting(home, Agent(asking.job), guard=by, grace_s=5.0) as running:
        running.begin("job")
        await asleep.wait()
        running.journal.post(Letter("cancel", job="job"))
        await running.over("job")
        go_on.set()
        await running.until(lambda: not running.host.statistics()["in_flight"])
    await by.ledger.flush()
    assert len(asking.provider.requests) == 1
    assert list(rows(by)) == ["job/1/1"]
    assert [type(each).__name__ for each in (entry for _, entry in MemoryReader(home).read())][-1] == "End"


# -- calls that no job makes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2, 10])
@pytest.mark.parametrize("kind", ["complete", "stream", "embed"])
async def test_calls_of_streams_and_other_agents_are_counted_so_too(kind: str, limit: int) -> None:
    asking, by = Asking(*[LOST] * 3, "yes"), guard(max_calls_daily=limit)

    async def ask() -> Any:
        JUDGE.set(judge_of("app", [by], ManualClock(1_000_000.0)))
        if kind == "embed":
            return await asking.engine.embed(["one"])
        if kind == "stream":
            return [piece async for piece in asking.engine.stream("one")]
        return await asking.engine.complete("one")

    asked = asyncio.create_task(ask(), context=copy_context())
    (outcome,) = await asyncio.gather(asked, return_exceptions=True)
    await by.ledger.flush()
    counted = [each[0] for each in rows(by).values()]
    if limit == 2:
        assert isinstance(outcome, BudgetExceeded)
        assert counted == ["doubt"] * 2
    else:
        assert not isinstance(outcome, Exception), outcome
        assert counted == ["doubt"] * 3 + ["model"]
    assert (await by.ledger.standing("app")).reserved.calls == 0


async def test_a_call_that_is_cancelled_while_a_rule_decides_reserves_nothing_of_the_budget() -> None:
    deciding = asyncio.Event()

    async def rule(call: GuardedCall) -> Decision:
        deciding.set()
        await asyncio.Event().wait()
        return Decision.ALLOW

    asking, by = Asking("yes"), guard(max_calls_daily=10)

    async def ask() -> Any:
        JUDGE.set(judge_of("app", [by, PolicyEngine([rule])], ManualClock(1_000_000.0)))
        return await asking.engine.complete("one")

    asked = asyncio.create_task(ask(), context=copy_context())
    await deciding.wait()
    assert (await by.ledger.standing("app")).reserved.calls == 1
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert (await by.ledger.standing("app")).reserved.calls == 0


async def test_texts_of_which_vectors_are_made_are_seen_by_rules_and_counted_before_they_are_sent() -> None:
    seen: list[Any] = []

    def rule(call: GuardedCall) -> Decision:
        assert call.spec is not None
        seen.append([each.text for each in call.spec.messages])
        return Decision.ALLOW

    asking, by = Asking("vectors"), guard(max_tokens_daily=1000)
    guards = [PolicyEngine([rule]), by]

    async def ask(text: str) -> Any:
        JUDGE.set(judge_of("app", guards, ManualClock(1_000_000.0)))
        return await asking.engine.embed([text])

    with pytest.raises(BudgetExceeded):
        await asyncio.create_task(ask("漢" * 500), context=copy_context())
    assert seen == [["漢" * 500]]
    assert asking.provider.requests == []
    await asyncio.create_task(ask("one"), context=copy_context())
