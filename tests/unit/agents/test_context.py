"""Who asks, for whom, within which limits (rows 1.08, 1.09)."""

from decimal import Decimal

import pytest

from sabot.agents import BudgetSpec, ExecutionContext, ExecutionRequest, PolicyRef, RunVersions
from sabot.errors import UserError


def test_the_example_of_the_specification() -> None:
    context = ExecutionContext(
        scope_id="tenant-123",
        principal_id="user-456",
        session_id="session-789",
        budgets=BudgetSpec(max_tokens=100000, max_cost=10.0, max_turns=20),  # type: ignore[arg-type]
        policy_ref=PolicyRef(name="production"),
    )
    assert context.budgets.max_cost == Decimal("10.0")
    assert context.versions == RunVersions()
    assert context.with_job("job-1").job_id == "job-1"
    assert context.with_job("job-1").scope_id == "tenant-123"


def test_a_budget_without_arguments_limits_nothing() -> None:
    budget = BudgetSpec()
    limits = ("max_tokens", "max_cost", "max_tool_calls", "max_turns", "max_runtime_seconds")
    assert [getattr(budget, name) for name in limits] == [None] * 5


def test_a_cost_is_what_was_written() -> None:
    """0.1 as a float is a little more."""
    assert BudgetSpec(max_cost=0.1).max_cost == Decimal("0.1")  # type: ignore[arg-type]
    assert BudgetSpec(max_cost=Decimal("1.10")).max_cost == Decimal("1.10")


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_turns": True},
        {"max_cost": "much"},
        {"max_cost": float("nan")},
        {"max_cost": -0.01},
        {"max_runtime_seconds": float("inf")},
    ],
)
def test_a_limit_that_is_none_is_refused(limits: dict[str, object]) -> None:
    (name,) = limits
    with pytest.raises(UserError, match=name):
        BudgetSpec(**limits)  # type: ignore[arg-type]


def test_a_scope_is_needed() -> None:
    with pytest.raises(UserError, match="scope_id=''"):
        ExecutionContext(scope_id="")
    with pytest.raises(UserError, match="principal_id=7"):
        ExecutionContext(scope_id="s", principal_id=7)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="PolicyRef name=''"):
        PolicyRef("")


@pytest.mark.parametrize("field", ["idempotency_key", "scope_id", "principal_id"])
def test_half_of_a_surrogate_pair_is_refused_by_name(field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}='a.*surrogates not allowed"):
        ExecutionRequest(prompt="hi", **{field: "a\ud800"})
