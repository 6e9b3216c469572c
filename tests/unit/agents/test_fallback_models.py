"""Models of other providers of an engine, which are asked where the first one fails: the rules judge them too."""

import asyncio
from contextvars import copy_context
from decimal import Decimal
from typing import Any

import pytest
from unit.agents.test_accounting import guard, rows
from unit.jobs.hosting import Agent, entries, hosting, prefix

from sabot.agents import DataAccessPolicy, ModelPolicy, PolicyEngine, PolicyRule, RedactionPolicy
from sabot.agents.accounts.job_limits import JobLimits
from sabot.agents.durable.context import DurableContext
from sabot.agents.policy.auditing import audit_job
from sabot.clock import ManualClock
from sabot.jobs.guard import Behalf, EffectGuard, guard_of, stood_in
from sabot.jobs.judges import judge_of
from sabot.journal.entries import Attempt
from sabot.journal.memory import MemoryReader, MemoryStorage
from sabot.llm import (
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    ModelError,
    ModelUnavailable,
    Price,
    PriceTable,
    RateLimited,
    RequestSpec,
    ScriptedProvider,
    Usage,
    assistant,
)
from sabot.llm.judges import JUDGE

PRICES = PriceTable(
    {"m": Price("1", "10"), "spare": Price("2", "20"), "third": Price("3", "30"), "dear": Price("2000", "20000")},
    version="1",
)
BUSY = RateLimited("slow down")


def answer(spec: RequestSpec) -> Completion:
    return Completion(message=assistant("yes"), usage=Usage(100, 50))


class Desk:
    """An engine with three providers, of which the first one fails, and who asks it: a job, or an agent without jobs."""

    def __init__(self, durable: bool, failure: Exception = BUSY, third: Any = answer) -> None:
        self.durable = durable
        self.first = ScriptedProvider([failure], model="m")
        self.spare, self.third = ScriptedProvider(answer, model="spare"), ScriptedProvider(third, model="third")
        others = [self.spare, self.third]
        self.engine = ExecutionEngine(self.first, fallback=others, retries=0, patience=0, prices=PRICES)

    async def ask(self, *guards: EffectGuard, text: str = "one", labels: tuple[str, ...] = ()) -> Any:
        """The model that answers, or what it raises."""
        clock = ManualClock(1_000_000.0)
        if self.durable:
            found: list[Any] = []

            async def job(ctx: DurableContext) -> None:
                try:
                    found.append((await ctx.llm(self.engine).complete(text, max_tokens=100)).model)
                except (ModelError, BudgetExceeded) as error:
                    found.append(error)

            async with hosting(MemoryStorage(clock), Agent(job), guard=guard_of(guards)) as running:
                running.begin("job", behalf=Behalf(labels=labels))
                await running.over("job")
            return found[0]

        async def ask() -> Any:
            JUDGE.set(judge_of("app", guards, clock))
            return (await self.engine.complete(text, max_tokens=100)).model

        [said] = await asyncio.gather(asyncio.create_task(ask(), context=copy_context()), return_exceptions=True)
        return said


@pytest.fixture(params=[True, False], ids=["durable", "alone"])
def desk(request: pytest.FixtureRequest) -> Desk:
    return Desk(request.param)


async def test_a_fallback_that_the_policy_denies_is_skipped_and_the_next_one_is_asked(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    by = guard(max_tokens_daily=1000)
    policy = PolicyEngine([ModelPolicy(["spare"], denied=True)])
    assert await desk.ask(policy, JobLimits(), by) == "third"
    assert [len(each.requests) for each in (desk.first, desk.spare, desk.third)] == [1, 0, 1]
    await by.ledger.flush()
    assert list(rows(by).values()) == [("model", "third", 150, "0.001800")], "it is booked under who has answered"
    assert (await by.ledger.standing("app")).reserved.calls == 0
    assert "spare was not asked: model spare is denied (rule ModelPolicy spare)" in caplog.text
    assert desk.engine.statistics()["fallbacks"] == 1


async def test_where_all_fallbacks_are_denied_the_error_names_them_and_the_call_is_counted(desk: Desk) -> None:
    desk = Desk(desk.durable, ModelUnavailable("it broke off"))
    by = guard(max_tokens_daily=1000)
    error = await desk.ask(PolicyEngine([ModelPolicy(["m"])], default="deny"), by)
    assert isinstance(error, ModelUnavailable)
    assert "m: it broke off; " in error.message
    for model in ("spare", "third"):
        assert f"{model} was not asked: no rule allows model {model} (rule default)" in error.message
    assert desk.spare.requests == desk.third.requests == []
    await by.ledger.flush()
    assert [row[0] for row in rows(by).values()] == ["doubt"]
    assert (await by.ledger.standing("app")).reserved.calls == 0


async def test_an_error_names_those_that_failed_too() -> None:
    desk = Desk(True, third=[ModelUnavailable("it is down")])
    error = await desk.ask(PolicyEngine([ModelPolicy(["spare"], denied=True)]))
    assert isinstance(error, ModelUnavailable)
    words = ["third: it is down", "m: slow down", "spare was not asked: model spare is denied"]
    assert [each in error.message for each in words] == [True] * 3, error.message


@pytest.mark.parametrize(
    ("rule", "asked", "told"),
    [
        (ModelPolicy(["spare"], degrade_to="tiny"), "tiny", "my key is sk-1"),
        (RedactionPolicy([r"sk-\d+"], model_patterns=["spare"]), "spare", "my key is ***"),
        (ModelPolicy(["other"], denied=True), "spare", "my key is sk-1"),
    ],
)
async def test_what_rules_say_of_a_fallback_holds(desk: Desk, rule: PolicyRule, asked: str, told: str) -> None:
    assert await desk.ask(PolicyEngine([rule]), guard(), text="my key is sk-1") == asked
    assert [(each.model or "spare", each.messages[0].text) for each in desk.spare.requests] == [(asked, told)]
    assert desk.first.requests[0].messages[0].text == "my key is sk-1"


async def test_a_dearer_model_that_a_rule_puts_in_place_of_a_fallback_is_asked_only_where_its_money_is_left(
    desk: Desk,
) -> None:
    """What it may cost is reserved in place of what the models of the engine may."""
    dear = Decimal(18 * 2000 + 100 * 20000) / 1_000_000
    policy = PolicyEngine([ModelPolicy(["spare"], degrade_to="dear")])
    for limit, asked in ((dear - Decimal("0.000001"), "third"), (dear, "dear")):
        desk = Desk(desk.durable)
        by = guard(max_cost_daily=limit)
        assert await desk.ask(policy, by) == asked
        assert len(desk.spare.requests) == (asked == "dear")
        assert (await by.ledger.standing("app")).reserved.cost == 0


async def test_what_a_dearer_fallback_may_have_used_is_what_was_reserved_for_it(desk: Desk) -> None:
    desk.spare = ScriptedProvider(lambda spec: Completion(message=assistant("yes")), model="spare")
    desk.engine = ExecutionEngine(desk.first, fallback=[desk.spare], retries=0, patience=0, prices=PRICES)
    by = guard(max_cost_daily=10)
    await desk.ask(PolicyEngine([ModelPolicy(["spare"], degrade_to="dear")]), by)
    await by.ledger.flush()
    assert [row[3] for row in rows(by).values()] == ["2.036000"]


async def test_nobody_is_asked_for_a_fallback(desk: Desk) -> None:
    error = await desk.ask(PolicyEngine([ModelPolicy(["spare", "third"], require_approval=True)]))
    assert isinstance(error, RateLimited)
    assert error.message.count("nobody is asked for a model that stands in for another one") == 2


async def test_what_one_model_may_be_told_its_fallback_is_not() -> None:
    for labels, answered in (((), True), (("pii",), False)):
        desk = Desk(True)
        said = await desk.ask(PolicyEngine([DataAccessPolicy(["pii"], allowed_models=["m"])]), labels=labels)
        assert (said == "spare", len(desk.spare.requests)) == (answered, int(answered))


async def test_money_is_reserved_for_the_dearest_model_that_may_be_asked(desk: Desk) -> None:
    most = (Decimal(16 + 2) * 3 + 100 * 30) / 1_000_000  # of `third`
    error = await desk.ask(guard(max_cost_daily=most - Decimal("0.000001")))
    assert isinstance(error, BudgetExceeded)
    assert desk.first.requests == []
    desk = Desk(desk.durable, ModelUnavailable("it broke off"))
    by = guard(max_cost_daily=2 * most)
    assert await desk.ask(by) == "spare"
    await by.ledger.flush()
    assert [row[:2] for row in rows(by).values()] == [("doubt", "m"), ("model", "spare")]


# -- in the journal ---------------------------------------------------------------------------------------------------------


class Asking:
    """A job that asks a model whose answer is lost, and then another one, which the policy puts in place of a third, and which hangs."""

    def __init__(self) -> None:
        self.first = ScriptedProvider([ModelUnavailable("it broke off"), answer], model="m")
        self.spare = ScriptedProvider(answer, model="spare")
        self.spare.hold()
        denied = ScriptedProvider(answer, model="denied")
        self.engine = ExecutionEngine(self.first, fallback=[denied, self.spare], retries=0, patience=0, prices=PRICES)
        self.policy = PolicyEngine([ModelPolicy(["denied"], denied=True), ModelPolicy(["spare"], degrade_to="dear")])
        self.storage, self.books = MemoryStorage(ManualClock(1_000_000.0)), guard(max_cost_daily=100)

    async def job(self, ctx: DurableContext) -> Any:
        return (await ctx.llm(self.engine).complete("one", max_tokens=100)).model

    def guard(self) -> EffectGuard:
        found = guard_of([self.policy, JobLimits(), self.books])
        assert found is not None
        return found


async def test_an_audit_says_what_was_decided_of_fallbacks_too() -> None:
    asking = Asking()
    asking.spare.release()
    async with hosting(asking.storage, Agent(asking.job), guard=asking.guard()) as running:
        running.begin("job")
        await running.over("job")
    reader = MemoryReader(asking.storage)
    found = [
        (each.name, each.in_place_of, each.decision, each.rule, each.model, each.outcome)
        for each in audit_job(reader, "job")
    ]
    assert found == [
        ("m", "", "allow", "", "", "failed"),
        ("denied", "m", "deny", "ModelPolicy denied", "", "PolicyDenied"),
        ("spare", "m", "degrade", "ModelPolicy spare", "dear", "ok"),
    ]
    versions = {each.version for each in audit_job(reader, "job") if each.in_place_of}
    assert versions == {asking.policy.version}
    assert [row[:2] for row in rows(asking.books).values()] == [("doubt", "m"), ("model", "dear")]


async def test_an_audit_says_of_each_model_of_a_call_that_it_failed_but_of_the_one_that_answered() -> None:
    """The first one had the outcome of the call, which is that of the last one."""
    failing = [ScriptedProvider([BUSY], model=name) for name in ("m", "spare")]
    engine = ExecutionEngine(
        failing[0], fallback=[failing[1], ScriptedProvider(answer, model="third")], retries=0, patience=0
    )

    async def job(ctx: DurableContext) -> Any:
        return (await ctx.llm(engine).complete("one", max_tokens=100)).model

    home = MemoryStorage(ManualClock(1_000_000.0))
    async with hosting(home, Agent(job), guard=guard_of([PolicyEngine([ModelPolicy(["no"], denied=True)])])) as running:
        running.begin("job")
        await running.over("job")
    found = [(each.name, each.outcome) for each in audit_job(MemoryReader(home), "job")]
    assert found == [("m", "failed"), ("spare", "failed"), ("third", "ok")]


async def test_a_fallback_is_asked_only_when_the_journal_has_what_was_decided_of_it() -> None:
    asking, told = Asking(), list[bool]()

    def said(spec: RequestSpec) -> Completion:
        (note,) = [each for each in entries(asking.storage) if isinstance(each, Attempt) and stood_in(each)]
        told.append((note.ordinal, note.attempt) == (1, 2))
        return answer(spec)

    asking.spare = ScriptedProvider(said, model="spare")
    asking.engine = ExecutionEngine(asking.first, fallback=[asking.spare], retries=0, patience=0, prices=PRICES)
    async with hosting(asking.storage, Agent(asking.job), guard=asking.guard()) as running:
        running.begin("job")
        await running.over("job")
    assert told == [True]


async def test_what_a_crash_leaves_of_a_fallback_is_in_doubt_under_its_name_and_at_its_price() -> None:
    """It was booked under the first model's name, and after the restart at the first model's price."""
    dear = Decimal(18 * 2000 + 100 * 20000) / 1_000_000
    asking = Asking()
    async with hosting(asking.storage, Agent(asking.job), guard=asking.guard()) as running:
        running.begin("job")
        await asking.spare.arrived(1)
        left = prefix(asking.storage, len(entries(asking.storage)))
        reserved = (await asking.books.ledger.standing("app")).reserved
        assert (reserved.cost, reserved.calls) == (2 * dear, 2)
    asking.books = guard(max_cost_daily=100)
    async with hosting(left, Agent(asking.job), guard=asking.guard()) as running:
        await running.over("job")
    await asking.books.ledger.flush()
    assert [(row[0], row[1], Decimal(row[3] or 0)) for row in rows(asking.books).values()] == [
        ("doubt", "m", dear),
        ("doubt", "dear", dear),
        ("model", "m", Decimal("0.0006")),
    ]
    assert (await asking.books.ledger.standing("app")).reserved.calls == 0


async def test_a_fallback_whose_answer_is_lost_is_in_doubt_under_its_own_name(desk: Desk) -> None:
    desk.spare = ScriptedProvider([ModelUnavailable("it broke off")], model="spare")
    desk.engine = ExecutionEngine(desk.first, fallback=[desk.spare], retries=0, patience=0, prices=PRICES)
    by = guard(max_tokens_daily=1000)
    assert isinstance(await desk.ask(by), ModelUnavailable)
    await by.ledger.flush()
    assert [row[:2] for row in rows(by).values()] == [("doubt", "spare")]


async def test_what_a_policy_puts_in_place_of_a_budgets_cheaper_model_is_in_doubt_under_its_own_name() -> None:
    """The row had the budget's model, until a restart; and what the policy's model costs more was not reserved."""
    by = guard(max_calls_daily=0, exhausted="degrade", degrade_to="spare")
    guards = guard_of([PolicyEngine([ModelPolicy(["spare"], degrade_to="third")]), JobLimits(), by])

    def lost(spec: RequestSpec) -> Completion:
        asked.append(by.ledger._accounts.by_scope["app"].reserved.cost)
        raise ModelUnavailable("it broke off")

    provider, asked = ScriptedProvider(lost, model="m"), list[Decimal]()
    engine = ExecutionEngine(provider, retries=0, patience=0, prices=PRICES)

    async def job(ctx: DurableContext) -> Any:
        await ctx.llm(engine).complete("one", max_tokens=100)

    async with hosting(MemoryStorage(ManualClock(1_000_000.0)), Agent(job), guard=guards) as running:
        running.begin("job")
        await running.over("job")
    await by.ledger.flush()
    assert [each.model for each in provider.requests] == ["third"]
    assert asked == [(Decimal(18) * 3 + 100 * 30) / 1_000_000], "it is dearer than the budget's own"
    assert [row[:2] for row in rows(by).values()] == [("doubt", "third")]
