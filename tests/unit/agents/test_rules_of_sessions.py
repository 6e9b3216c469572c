"""Rules about a program hold for the steps by which a session of it goes on: `work.resume`, which starts it again, and `work.finish`."""

from collections.abc import Callable
from typing import Any

import pytest

from sabot.agents import (
    CedarPolicy,
    ConstraintPolicy,
    DataAccessPolicy,
    Decision,
    GuardedCall,
    GuardVerdict,
    LabelPolicy,
    PolicyEngine,
    RedactionPolicy,
    ToolPolicy,
    tool,
)
from sabot.agents.policy.names import check_names
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.tools import Tool, tool_within
from sabot.jobs.guard import Behalf

BEHALF = Behalf("acme", "ann", labels=("untrusted",))


def run(argv: list[str], stdin: str | None) -> None: ...
def finished(session: str, run: str) -> None: ...


START = tool(name="work")(run)
RESUME = tool_within(START, run, "resume", "idempotent")
FINISH = tool_within(START, finished, "finish", "read")


def judged(policy: PolicyEngine, made: Tool, *args: Any) -> GuardVerdict:
    labels = frozenset(BEHALF.labels)
    facts: dict[str, Any] = {"effect_class": made.effect, "tool": made, "args": args, "labels": labels}
    found = policy.decide(GuardedCall(EffectId("j", 1), "tool", made.name, "app.work", BEHALF, **facts))
    assert isinstance(found, GuardVerdict)
    return found


def decisions(*rules: Any, default: Any = "allow") -> list[str]:
    """Returns the decisions on the start, on the resumption and on the wait."""
    policy = PolicyEngine(rules, default=default)
    resumed = judged(policy, RESUME, ["claude", "--resume", "s"], None)
    started = judged(policy, START, ["claude", "Do it"], None)
    return [started.decision, resumed.decision, judged(policy, FINISH, "s", "r").decision]


def by_name(call: GuardedCall) -> Decision | None:
    return Decision.DENY if call.name == "work" and "--resume" in call.arguments["argv"] else None


def by_step(call: GuardedCall) -> Decision | None:
    return Decision.DENY if call.name == "work.resume" else None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ToolPolicy(["work"], denied=True), ["deny", "deny", "deny"]),
        (ToolPolicy(["work"], allowed_scopes=["other"]), ["deny", "deny", "deny"]),
        (ToolPolicy(["work"], allowed_principals=["bob"]), ["deny", "deny", "deny"]),
        (ToolPolicy(["work"], require_approval=True), ["ask", "ask", "ask"]),
        (ToolPolicy(["work.resume"], denied=True), ["allow", "deny", "allow"]),
        (ToolPolicy(["work*"], warn=True), ["warn", "warn", "warn"]),
        (ConstraintPolicy(["work"], "argv.*", denied=["--resume"]), ["allow", "deny", "allow"]),
        (ConstraintPolicy(["work"], "argv", max_length=2, otherwise="ask"), ["allow", "ask", "allow"]),
        (ConstraintPolicy(["work.*"], "argv.*", denied=["--resume"]), ["allow", "deny", "allow"]),
        (LabelPolicy(tool_patterns=["work"], effects=["unsafe"]), ["ask", "ask", "allow"]),
        (DataAccessPolicy(["untrusted"], allowed_tools=["work"]), ["allow", "allow", "allow"]),
        (DataAccessPolicy(["untrusted"], allowed_tools=["other"]), ["deny", "deny", "deny"]),
        (RedactionPolicy(["resume"], tool_patterns=["work"]), ["allow", "redact", "allow"]),
        (by_name, ["allow", "deny", "allow"]),
        (by_step, ["allow", "deny", "allow"]),
    ],
)
def test_a_rule_about_a_program_holds_for_the_steps_of_its_sessions(rule: Any, expected: list[str]) -> None:
    """Behind a crash the program was started again as `work.resume`, which no rule about `work` judged."""
    assert decisions(rule) == expected


@pytest.mark.parametrize(
    "rule", [ToolPolicy(["work"]), ConstraintPolicy(["work"], "argv", max_length=5), ToolPolicy(["w*k", "work.resume"])]
)
def test_what_is_allowed_to_start_is_allowed_to_go_on(rule: Any) -> None:
    """The program had run, and its result was denied: no rule allowed `work.finish`."""
    assert decisions(rule, default="deny") == ["allow", "allow", "allow"]
    assert decisions(default="deny") == ["deny", "deny", "allow"]


def test_cedar_judges_a_session_by_the_program() -> None:
    pytest.importorskip("cedarpy")
    permitted = 'permit(principal, action, resource == Tool::"work");'
    assert decisions(CedarPolicy(permitted)) == ["allow", "allow", "allow"]
    assert decisions(CedarPolicy(permitted), default="deny") == ["allow", "allow", "allow"]
    resumed = 'forbid(principal, action, resource == Tool::"work.resume");'
    assert decisions(CedarPolicy(permitted + resumed)) == ["allow", "deny", "allow"]
    words = 'forbid(principal, action, resource == Tool::"work") when { context.arguments.argv.contains("--resume") };'
    assert decisions(CedarPolicy(permitted + words)) == ["allow", "deny", "allow"]
    unsafe = 'forbid(principal, action, resource == Tool::"work") when { context.effect_class == "unsafe" };'
    assert decisions(CedarPolicy(permitted + unsafe)) == ["deny", "deny", "allow"]


def test_an_answer_for_a_rule_about_a_program_is_one_for_its_steps() -> None:
    """The digest of the rule is the same for each step, so an approval of the first step holds for the others."""
    policy = PolicyEngine([ToolPolicy(["work"], require_approval=True), ToolPolicy(["work*"], require_approval=True)])
    asked = [judged(policy, START, ["x"], None), judged(policy, RESUME, ["x"], None), judged(policy, FINISH, "s", "r")]
    assert [each.terms for each in asked] == [asked[0].terms] * 3
    assert len({each.rule for each in asked}) == 1


def test_a_step_of_a_session_is_a_name_that_a_rule_may_have() -> None:
    functions: list[Callable[..., Any]] = []
    names = [ToolPolicy([each], denied=True) for each in ("work", "work.resume", "work.finish", "work.*")]
    check_names([*names, ConstraintPolicy(["work.resume"], "argv.*", denied=["-x"])], functions, [], "app")
