"""Calls that ask another model than they were asked for: by a rule, or because a budget is used up. What rules say of that model holds."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from sabot.agents import (
    Budget,
    DataAccessPolicy,
    Decision,
    GuardedCall,
    GuardVerdict,
    InMemoryLedgerWriter,
    Ledger,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    PolicyRule,
    RedactionPolicy,
)
from sabot.agents.accounts.budgets import Judgement
from sabot.agents.accounts.guard import LedgerGuard
from sabot.base.accounts import Amounts
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.messages import user
from sabot.engine.calls.model_requests import RequestSpec
from sabot.jobs.guard import Behalf, EffectGuard, guard_of
from sabot.llm import ExecutionEngine, ModelUnavailable, ScriptedProvider
from sabot.llm.middleware import ModelCall

BIG_TO_SMALL = ModelPolicy(["big"], degrade_to="small")


@pytest.mark.parametrize("by_budget", [False, True])
@pytest.mark.parametrize(
    ("rules", "default", "decision", "model", "said"),
    [
        ([ModelPolicy(["small"], denied=True)], "allow", "deny", "", "small, in place of big: model small is denied"),
        (
            [ModelPolicy(["small"], require_approval=True)],
            "allow",
            "ask",
            "small",
            "small, in place of big: model small needs",
        ),
        ([DataAccessPolicy(["pii"], allowed_models=["big"])], "allow", "deny", "", "is pii may not go to model small"),
        ([ModelPolicy(["big"], warn=True)], "deny", "deny", "", "small, in place of big: no rule allows model small"),
        ([ModelPolicy(["small"], degrade_to="tiny")], "allow", "degrade", "tiny", "tiny is asked"),
        ([ModelPolicy(["small"], degrade_to="big")], "allow", "deny", "", "in a ring: big, small, big"),
        (
            [RedactionPolicy([r"sk-\d+"], model_patterns=["small"])],
            "allow",
            "degrade",
            "small",
            "texts in it are hidden",
        ),
    ],
)
async def test_the_rules_judge_the_model_that_is_asked_in_place_of_another_one(
    rules: list[PolicyRule], default: Any, decision: str, model: str, said: str, by_budget: bool
) -> None:
    """Also where the first one is replaced because a budget is used up. The intent has what was said of both."""
    policy = PolicyEngine(rules if by_budget else [BIG_TO_SMALL, *rules], default=default)
    if by_budget and default == "deny":
        policy.add_rule(ModelPolicy(["big"]))
    budget = Budget("acme", max_calls_daily=0, exhausted="degrade", degrade_to="small")
    guards: list[EffectGuard] = [policy, LedgerGuard(Ledger(InMemoryLedgerWriter(), budgets=[budget]))]
    spec = RequestSpec(messages=(user("my key is sk-123"),))
    call = GuardedCall(EffectId("j", 1), "model", "big", "app.f", Behalf("acme"), spec=spec, labels=frozenset({"pii"}))
    guard = guard_of(guards[: 1 + by_budget])
    assert guard is not None
    found = guard.decide(call)
    verdict = found if isinstance(found, GuardVerdict) else await found
    assert (verdict.decision, "" if decision == "deny" else verdict.model) == (decision, model)
    assert any(said in each for each in (verdict.reason, *verdict.notes))
    of_first = "the daily budget of acme" if by_budget else "a smaller model is to be asked"
    assert any(each.startswith(of_first) for each in (verdict.reason, *verdict.notes))
    assert verdict.hide == (("sk-\\d+",) if isinstance(rules[0], RedactionPolicy) else ())


async def test_an_async_rule_judges_the_model_that_is_asked_in_place_of_another_one() -> None:
    seen: list[str] = []

    async def rule(call: GuardedCall) -> Decision:
        seen.append(call.name)
        return Decision.DENY if call.name == "small" else Decision.ALLOW

    found = PolicyEngine([BIG_TO_SMALL, rule]).decide(GuardedCall(EffectId("j", 1), "model", "big"))
    assert not isinstance(found, GuardVerdict)
    assert ((await found).decision, seen) == ("deny", ["big", "small"])


async def test_what_a_budget_has_reserved_is_free_where_the_rules_deny_the_model_that_it_degrades_to() -> None:
    budget = Budget("acme", max_tokens_daily=10, exhausted="degrade", degrade_to="small")
    ledger = Ledger(InMemoryLedgerWriter(), budgets=[budget])
    guard = guard_of([PolicyEngine([ModelPolicy(["small"], denied=True)]), LedgerGuard(ledger)])
    assert guard is not None
    spec = RequestSpec(messages=(user("hi"),), max_tokens=100)
    found = guard.decide(GuardedCall(EffectId("j", 1), "model", "big", "app.f", Behalf("acme"), spec=spec))
    assert not isinstance(found, GuardVerdict)
    assert (await found).decision == "deny"
    judged = ledger.reserve("another", "acme", Amounts(10, Decimal(0), 1))
    assert isinstance(judged, Judgement)
    assert judged.decision in ("allow", "warn")


async def test_a_dearer_model_reserves_nothing_for_a_job_that_has_ended_meanwhile() -> None:
    """The owner of shared budgets answers later. Until then the job may end, and nobody would end the reservation."""
    prices = {"small": Decimal(1), "big": Decimal(2)}
    ledger = Ledger(InMemoryLedgerWriter(shared=True), budgets=[Budget("acme", max_cost_daily=Decimal(1000))])
    guard, spec = LedgerGuard(ledger), RequestSpec(messages=(user("hello"),))
    how: dict[str, Any] = {"spec": spec, "price": lambda model, usage: prices[model]}
    call = GuardedCall(EffectId("j", 1), "model", "small", "app.f", Behalf("acme"), **how)
    decided = guard.decide(call)
    assert not isinstance(decided, GuardVerdict)
    assert (await decided).decision is Decision.ALLOW
    assert (await ledger.standing("acme")).reserved.cost == 1
    judging = guard.decide(msgspec.structs.replace(call, name="big", after="degraded"))
    assert not isinstance(judging, GuardVerdict)
    guard.end_job("j", 0)
    assert (await judging).decision is Decision.DENY
    assert (await ledger.standing("acme")).reserved == Amounts()


async def test_the_first_of_two_rules_says_which_model_is_asked() -> None:
    found = PolicyEngine([BIG_TO_SMALL, ModelPolicy(["b*"], degrade_to="tiny")]).decide(
        GuardedCall(EffectId("j", 1), "model", "big")
    )
    assert isinstance(found, GuardVerdict)
    assert found.model == "small"


async def test_a_middleware_keeps_the_fallback_of_an_engine_from_being_asked() -> None:
    def fails(spec: RequestSpec) -> str:
        raise ModelUnavailable("it is down")

    async def only_big(call: ModelCall, forward: Any) -> Any:
        if call.model != "big":
            raise PolicyDenied(f"{call.model} may not be asked")
        return await forward(call)

    other = ScriptedProvider("x", model="small")
    how: dict[str, Any] = {"fallback": [other], "retries": 0, "patience": 0, "middleware": (only_big,)}
    async with ExecutionEngine(ScriptedProvider(fails, model="big"), **how) as engine:
        with pytest.raises(PolicyDenied, match="small may not be asked"):
            await engine.complete("what is told to big only")
    assert other.requests == []
