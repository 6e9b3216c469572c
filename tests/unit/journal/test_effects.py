"""How effects are named, what their digests tell, and what follows for each class when one is in doubt."""

import subprocess
import sys
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabot.engine.calls.effects import RULES, Doubt, EffectClass, EffectId, Reconciled, digest, effect_class, in_doubt
from sabot.errors import UserError

KEY = bytes(range(32))


@pytest.mark.parametrize(
    ("kind", "intent", "doubt"),
    [
        ("local", "next", Doubt.AGAIN),
        ("read", "later", Doubt.AGAIN),
        ("metered", "first", Doubt.AGAIN),
        ("idempotent", "first", Doubt.AGAIN_WITH_KEY),
        ("reconcilable", "first", Doubt.RECONCILE),
        ("unsafe", "first", Doubt.ASK),
    ],
)
def test_each_class_has_its_rule(kind: str, intent: str, doubt: Doubt) -> None:
    rule = RULES[effect_class(kind)]
    assert (rule.intent, in_doubt(effect_class(kind))) == (intent, doubt)


def test_the_table_has_every_class() -> None:
    assert set(RULES) == set(EffectClass)


def test_a_class_that_nobody_knows_is_named() -> None:
    with pytest.raises(UserError, match="effect='harmless' is no class of effects"):
        effect_class("harmless")


@given(
    st.sampled_from(EffectClass),
    st.sampled_from(["ask", "fail", "assume_done"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, *Reconciled]),
)
def test_an_effect_that_may_have_happened_is_repeated_only_where_its_class_allows_it(
    kind: EffectClass, configured: str, sent: bool | None, found: Reconciled | None
) -> None:
    decision = in_doubt(kind, configured=configured, sent=sent, found=found)  # type: ignore[arg-type]
    may_have_happened = sent is not False and found is not Reconciled.NOT_DONE
    if kind in (EffectClass.UNSAFE, EffectClass.RECONCILABLE) and may_have_happened:
        assert decision not in (Doubt.AGAIN, Doubt.AGAIN_WITH_KEY)
    if kind is EffectClass.UNSAFE and sent is not False:
        assert decision == Doubt(configured)


@pytest.mark.parametrize(
    ("found", "decision"),
    [
        (None, Doubt.RECONCILE),
        (Reconciled.DONE, Doubt.TAKE),
        (Reconciled.NOT_DONE, Doubt.AGAIN_WITH_KEY),
        (Reconciled.UNKNOWN, Doubt.ASK),
    ],
)
def test_a_reconcilable_effect_goes_by_what_was_found(found: Reconciled | None, decision: Doubt) -> None:
    assert in_doubt(EffectClass.RECONCILABLE, found=found) is decision


def test_attempts_of_an_effect_share_the_key_that_the_service_sees() -> None:
    first, second = EffectId("orders/0/7", 3), EffectId("orders/0/7", 3, 2)
    assert first.key == second.key
    assert str(first) != str(second)
    assert first.key.isascii()
    assert "orders" not in first.key
    assert first.key != EffectId("orders/0/7", 4).key != EffectId("orders/0/73", 4).key


@pytest.mark.slow  # half a second of a core
def test_a_digest_is_the_same_in_another_process_and_whatever_the_order_of_the_keys() -> None:
    arguments = {"order": "7", "amount": 1.5, "lines": [1, {"b": 2, "a": b"x"}]}
    code = (
        "from sabot.engine.calls.effects import digest\n"
        "print(digest(bytes(range(32)), 'call', 'refund',"
        " {'lines': [1, {'a': b'x', 'b': 2}], 'amount': 1.5, 'order': '7'}).hex())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert digest(KEY, "call", "refund", arguments).hex() == other


def test_a_digest_tells_apart_what_is_asked_and_nothing_without_the_key() -> None:
    asked = [("call", "f", {"n": 1}), ("step", "f", {"n": 1}), ("call", "g", {"n": 1}), ("call", "f", {"n": 1.0})]
    digests = {digest(KEY, *each) for each in asked}
    assert len(digests) == 4
    assert digest(bytes(32), *asked[0]) not in digests
    assert all(len(each) == 16 for each in digests)


def test_arguments_that_cannot_be_written_down_are_refused_with_the_fix() -> None:
    digest(KEY, "call", "f", {"when": datetime(2026, 1, 1)})
    with pytest.raises(UserError, match="call f: its arguments cannot be written down"):
        digest(KEY, "call", "f", {"socket": object()})
