"""Policies in Cedar: what they are told of a call, and that what they cannot decide is denied."""

import sys
from dataclasses import dataclass
from decimal import Decimal as Money
from typing import Any

import pytest

from sabot.agents import CedarPolicy, Decision, ExecutionContext, GuardedCall, PolicyEngine, ToolPolicy
from sabot.engine.calls.effects import EffectId
from sabot.errors import MissingExtra, UserError
from sabot.jobs.guard import Behalf

ANN = Behalf("acme", "ann")


def call(name: str, kind: Any = "tool", behalf: Behalf = ANN, **facts: Any) -> GuardedCall:
    return GuardedCall(EffectId("job", 1), kind, name, "desk.handle", behalf, **facts)


def says(policies: str, asked: GuardedCall, **options: Any) -> tuple[str, str]:
    found: Any = PolicyEngine([CedarPolicy(policies, **options)]).decide(asked)
    return str(found.decision), found.reason


def permit(condition: str, scope: str = "principal, action, resource") -> str:
    return f"permit({scope}) when {{ {condition} }};"


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        ('permit(principal == Principal::"ann", action, resource);', call("refund")),
        ('permit(principal in Scope::"acme", action == Action::"tool", resource == Tool::"refund");', call("refund")),
        ('permit(principal, action == Action::"model", resource == Model::"gpt-4o");', call("gpt-4o", "model")),
        ('permit(principal, action == Action::"child", resource == Agent::"desk.pay");', call("desk.pay", "child")),
        ('permit(principal == Principal::"", action, resource);', call("refund", behalf=Behalf("acme"))),
        (permit('resource.name like "file_*"'), call("file_read")),
        (permit('context.scope == "acme" && context.agent == "desk.handle"'), call("refund")),
        (permit('context.effect_class == "unsafe"'), call("refund", effect_class="unsafe")),
        (permit('context.labels.contains("pii")'), call("refund", labels=frozenset({"pii"}))),
        (permit("context.arguments.amount <= 5"), call("refund", kwargs={"amount": 5, "to": None})),
        (permit('context.arguments.to.city == "Rome"'), call("refund", kwargs={"to": {"city": "Rome"}})),
        (permit('context.arguments.tags.contains("b")'), call("refund", kwargs={"tags": ["a", "b"]})),
    ],
)
def test_a_policy_sees_who_asks_for_what(policy: str, asked: GuardedCall) -> None:
    assert says(policy, asked) == ("allow", "")
    assert says(policy, call("other", behalf=Behalf("guests", "eve")))[0] == "deny"


@dataclass
class Order:
    total: Money
    paid: float


def test_arguments_with_fractions_and_of_classes_can_be_compared() -> None:
    little = permit(
        'context.arguments.order.total.lessThan(decimal("10.5")) && context.arguments.order.paid == decimal("0.25")'
    )
    assert says(little, call("pay", kwargs={"order": Order(Money("10.49"), 0.25)})) == ("allow", "")
    assert says(little, call("pay", kwargs={"order": Order(Money("10.51"), 0.25)}))[0] == "deny"


@pytest.mark.parametrize("amount", [100.00001, 0.00004, Money("100.00001"), Money("1E-9"), {"of": [100.00001]}])
def test_a_number_that_a_decimal_of_cedar_cannot_hold_is_no_rounded_one(amount: Any) -> None:
    """100.00001 was judged as 100.0000, and passed a bound of 100."""
    decision, why = says("permit(principal, action, resource);", call("pay", kwargs={"amount": amount}))
    assert (decision, "more than the four digits behind the point" in why) == ("deny", True), why


@pytest.mark.parametrize("amount", [0.1 + 0.2, 19.99 * 3, 0.0, -2.5, 1e9, Money("2.50000"), Money("7")])
def test_the_last_digits_of_a_sum_of_floats_are_no_digits_of_a_number(amount: Any) -> None:
    assert says("permit(principal, action, resource);", call("pay", kwargs={"amount": amount})) == ("allow", "")


def test_what_forbids_wins_and_is_named() -> None:
    policies = (
        'permit(principal, action, resource); @id("no deletes") forbid(principal, action, resource == Tool::"delete");'
    )
    assert says(policies, call("read")) == ("allow", "")
    assert says(policies, call("delete")) == ("deny", "Cedar forbids it: no deletes")
    assert says("", call("read")) == ("deny", "no Cedar policy permits it")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "does not have the attribute `amount`"),
        ({"amount": "much"}, "type error"),
        ({"amount": float("nan")}, "Cedar could not decide"),
        ({"amount": 2**70}, "Cedar could not decide"),
        ({"amount": object()}, "cannot be told to Cedar"),
    ],
)
def test_what_cannot_be_decided_is_denied_though_something_permits_it(arguments: dict[str, Any], why: str) -> None:
    policies = "permit(principal, action, resource); forbid(principal, action, resource) when { context.arguments.amount > 5 };"
    decision, reason = says(policies, call("pay", kwargs=arguments))
    assert decision == "deny"
    assert why in reason


def test_roles_are_entities_of_ones_own() -> None:
    ann = {
        "uid": {"type": "Principal", "id": "ann"},
        "attrs": {"level": 3},
        "parents": [{"type": "Role", "id": "admin"}],
    }
    policies = 'permit(principal in Role::"admin", action, resource) when { principal.level > 2 };'
    assert says(policies, call("wipe"), entities=[ann]) == ("allow", "")
    assert says(policies, call("wipe", behalf=Behalf("acme", "bob")), entities=[ann])[0] == "deny"


async def test_it_is_a_rule_among_others_and_decides_on_its_kinds() -> None:
    cedar = CedarPolicy('permit(principal, action, resource == Tool::"refund");', kinds=["tool"])
    policy = PolicyEngine([cedar, ToolPolicy(["refund"], require_approval=True)])
    ann = ExecutionContext(scope_id="acme", principal_id="ann")
    assert (await policy.check_tool("refund", ann)).decision is Decision.ASK
    assert (await policy.check_tool("wipe", ann)).rule == "CedarPolicy"
    assert (await policy.check_model("gpt-4o", ann)).decision is Decision.ALLOW
    other = CedarPolicy('permit(principal, action, resource == Tool::"wipe");', kinds=["tool"])
    assert cedar.version() == CedarPolicy(cedar.policies, kinds=["tool"]).version() != other.version()


SCHEMA = """
entity Scope; entity Principal in [Scope]; entity Tool { name: String };
action tool appliesTo { principal: [Principal], resource: [Tool], context: {
  scope: String, agent: String, effect_class: String, labels: Set<String>, arguments: { amount: Long } } };
"""


def test_a_schema_finds_a_policy_and_a_call_that_do_not_fit() -> None:
    policies = 'permit(principal, action == Action::"tool", resource) when { context.arguments.amount < 5 };'
    assert says(policies, call("pay", kwargs={"amount": 1}), schema=SCHEMA) == ("allow", "")
    decision, reason = says(policies, call("pay", kwargs={"amount": "1"}), schema=SCHEMA)
    assert (decision, reason.startswith("Cedar could not decide")) == ("deny", True)
    with pytest.raises(UserError, match="amnt"):
        CedarPolicy(policies.replace("amount", "amnt"), schema=SCHEMA)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("permit(",), "unexpected end of input"),
        (("", {"entities": [{"id": "ann"}]}), "entities"),
        (("", {"kinds": ["tools"]}), "kinds="),
        (("", {"kinds": []}), "kinds="),
        ((3,), "policies=3"),
    ],
)
def test_what_is_no_cedar_is_refused_at_once(arguments: Any, why: str) -> None:
    policies, *options = arguments
    with pytest.raises(UserError, match=why):
        CedarPolicy(policies, **dict(*options))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cedarpy", None)
    with pytest.raises(MissingExtra) as caught:
        CedarPolicy("")
    assert "sabot[cedar]" in caught.value.hint
