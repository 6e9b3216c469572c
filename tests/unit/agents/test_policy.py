"""Policies: what rules say of calls, which of them holds, and what follows in jobs."""

import asyncio
import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from unit.jobs.hosting import Agent, entries, hosting

from sabot import EffectError
from sabot.agents import (
    AgentPolicy,
    ConstraintPolicy,
    DataAccessPolicy,
    Decision,
    DurableContext,
    ExecutionContext,
    ExecutionRequest,
    GuardedCall,
    GuardVerdict,
    LabelPolicy,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    PolicyRule,
    RedactionPolicy,
    RuntimeKernel,
    ToolPolicy,
    tool,
)
from sabot.engine.calls.effects import EffectId
from sabot.engine.calls.messages import user
from sabot.errors import UserError
from sabot.jobs.guard import Behalf, decode_verdict
from sabot.journal import Letter
from sabot.journal.entries import Intent
from sabot.journal.memory import MemoryStorage

INSIDE, OUTSIDE = (ExecutionContext(scope_id=each) for each in ("internal", "guests"))


def call_of(name: str = "pay", scope: str = "acme", **facts: Any) -> GuardedCall:
    facts = {"effect_class": "unsafe", **facts}
    return GuardedCall(EffectId("j", 1), "tool", name, "app.agent", Behalf(scope, "ada"), **facts)


# -- tools and models -------------------------------------------------------------------------------------------------------


async def test_the_example_of_document_001() -> None:
    engine = PolicyEngine()
    engine.add_rule(ToolPolicy(tool_patterns=["file_*"], allowed_scopes=["internal"]))
    engine.add_rule(ModelPolicy(model_patterns=["gpt-4*"], require_approval=True))
    result = await engine.check_tool("file_read", INSIDE)
    assert (result.allowed, result.decision, result.reason) == (True, "allow", "")
    result = await engine.check_tool("file_read", OUTSIDE)
    assert (result.allowed, result.decision, result.reason) == (
        False,
        "deny",
        "scope guests may not use tool file_read",
    )
    assert (result.rule, result.version) == ("ToolPolicy file_*", engine.version)
    with pytest.raises(PolicyDenied, match="scope guests may not use tool file_read"):
        raise PolicyDenied(result.reason)
    assert (await engine.check_tool("mail", OUTSIDE)).allowed
    asked = await engine.check_model("gpt-4o", INSIDE)
    assert (asked.allowed, asked.decision) == (False, "ask")
    assert (await engine.check_model("small", INSIDE)).allowed


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({}, "allow"),
        ({"denied": True}, "deny"),
        ({"allowed_scopes": ["ac*"]}, "allow"),
        ({"allowed_scopes": []}, "deny"),
        ({"denied_scopes": ["acme"]}, "deny"),
        ({"denied_scopes": ["ACME"]}, "allow"),
        ({"allowed_principals": ["ada"]}, "allow"),
        ({"allowed_principals": ["bob"]}, "deny"),
        ({"require_approval": True}, "ask"),
        ({"require_approval": True, "denied": True}, "deny"),
        ({"warn": True}, "warn"),
    ],
)
async def test_a_tool_policy_goes_by_who_asks(options: dict[str, Any], decision: str) -> None:
    engine = PolicyEngine([ToolPolicy(["pay*"], **options)])
    assert (await engine.check(call_of("payment"))).decision == decision
    assert (await engine.check(call_of("repay"))).rule == ""


@pytest.mark.parametrize(
    ("options", "decision"),
    [
        ({}, "degrade"),
        ({"allowed_scopes": ["acme"]}, "allow"),
        ({"allowed_scopes": ["other"]}, "degrade"),
        ({"denied": True}, "degrade"),
        ({"require_approval": True}, "ask"),
        ({"require_approval": True, "denied_scopes": ["acme"]}, "degrade"),
    ],
)
async def test_a_model_policy_has_a_smaller_model_asked_in_place_of_a_denial(
    options: dict[str, Any], decision: str
) -> None:
    engine = PolicyEngine([ModelPolicy(["*"], degrade_to="small", **options)])
    call = GuardedCall(EffectId("j", 1), "model", "large", behalf=Behalf("acme"))
    verdict = engine.decide(call)
    assert isinstance(verdict, GuardVerdict)
    assert (verdict.decision, verdict.model) == (decision, "small" if decision == "degrade" else "")


async def test_children_go_by_the_agents_name_and_the_default_does_not_touch_them() -> None:
    engine = PolicyEngine([AgentPolicy(["app.pay*"], denied=True)], default="deny")
    for name, decision in (("app.payments", "deny"), ("app.mail", "allow")):
        assert (await engine.check(GuardedCall(EffectId("j", 1), "child", name))).decision == decision


async def test_default_deny_denies_what_no_rule_allows() -> None:
    engine = PolicyEngine([ToolPolicy(["read_*"]), ModelPolicy(["small"])], default="deny")
    for name, allowed in (("read_file", True), ("write_file", False)):
        assert (await engine.check_tool(name)).allowed is allowed
    assert (await engine.check_model("small")).allowed
    assert (await engine.check_model("large")).reason == "no rule allows model large"


@pytest.mark.parametrize(
    ("rule", "decision", "hidden"),
    [
        (RedactionPolicy(["4711"]), "redact", ("4711",)),
        (LabelPolicy(otherwise="warn"), "warn", ()),
        (DataAccessPolicy(["untrusted"], allowed_tools=["none"], otherwise="warn"), "warn", ()),
    ],
    ids=["redaction", "labels", "data"],
)
async def test_a_rule_that_only_restricts_allows_nothing_that_the_default_denies(
    rule: PolicyRule, decision: str, hidden: tuple[str, ...]
) -> None:
    """A text to hide in the arguments, or data from the web, let a tool be called that was denied otherwise."""
    engine = PolicyEngine([ToolPolicy(["read_*"]), rule], default="deny")
    for name, wanted in (("read_file", decision), ("write_file", "deny")):
        found = engine.decide(call_of(name, kwargs={"text": "4711"}, labels=frozenset(["untrusted"])))
        assert isinstance(found, GuardVerdict)
        assert (found.decision, found.hide) == (wanted, hidden)


# -- arguments, labels, texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "arguments", "reason"),
    [
        ({"field": "amount", "max": 100}, {"amount": 100}, ""),
        ({"field": "amount", "max": 100}, {"amount": 100.01}, "amount is 100.01, and at most 100 is allowed"),
        (
            {"field": "amount", "max": 100},
            {"amount": float("nan")},
            "amount is nan, which cannot be compared with max=100",
        ),
        ({"field": "amount", "max": 100}, {"amount": Decimal("NaN")}, "which cannot be compared with max=100"),
        ({"field": "amount", "min": 1}, {"amount": Decimal("sNaN")}, "which cannot be compared with min=1"),
        ({"field": "amount", "min": 1}, {"amount": 0}, "amount is 0, and at least 1 is allowed"),
        ({"field": "amount", "max": 100}, {}, ""),
        ({"field": "amount", "max": 100, "required": True}, {}, "amount is missing"),
        ({"field": "to", "allowed": {"ada"}}, {"to": "bob"}, "to is 'bob', and allowed are 'ada'"),
        ({"field": "to", "denied": ["bob"]}, {"to": "bob"}, "to is 'bob', which is denied"),
        ({"field": "to", "pattern": r"\w+@acme\.com"}, {"to": "x@acme.com.evil.org"}, "does not match"),
        ({"field": "text", "max_length": 3}, {"text": "four"}, "a length of at most 3 is allowed"),
        ({"field": "order.items.*.price", "max": 9}, {"order": {"items": [{"price": 1}, {"price": 10}]}}, "is 10"),
        ({"field": "order.items.1.price", "max": 9}, {"order": {"items": [{"price": 99}, {"price": 9}]}}, ""),
        (
            {"field": "amount", "max": 100},
            {"amount": "much"},
            "amount is 'much', which cannot be compared with max=100",
        ),
        ({"field": "amount", "denied": ["500"]}, {"amount": 500}, "cannot be compared with denied=['500']"),
        ({"field": "amount", "max": "50"}, {"amount": 500}, "cannot be compared with max='50'"),
        ({"field": "text", "max_length": 3}, {"text": 4000}, "cannot be compared with max_length=3"),
        ({"field": "tags", "denied": ["x"], "otherwise": "warn"}, {"tags": ["x"]}, "cannot be compared with denied"),
        ({"field": "amount", "denied": ["x", 5]}, {"amount": 6}, ""),
        ({"field": "amount", "max": 100}, {"amount": True}, "amount is True, which is no number"),
        ({"field": "amount", "allowed": [1, 2]}, {"amount": True}, "amount is True, and allowed are 1, 2"),
        ({"field": "o.*.price", "max": 9, "required": True}, {"o": [{"price": 1}, {}]}, "o.*.price is missing"),
        ({"field": "o.*.price", "max": 9, "required": True}, {"o": {"a": {"price": 1}, "b": 7}}, "is missing"),
        ({"field": "o.*.price", "max": 9, "required": True}, {"o": [{}, {"price": 10}]}, "o.*.price is 10"),
        ({"field": "o.*.price", "max": 9}, {"o": [{"price": 1}, {}]}, ""),
        ({"field": "o.1", "max": 9, "required": True}, {"o": [1]}, "o.1 is missing"),
        ({"field": "o.x", "max": 9, "required": True}, {"o": [1]}, "o.x is missing"),
    ],
)
async def test_a_constraint_says_what_an_argument_may_be(
    constraint: dict[str, Any], arguments: dict[str, Any], reason: str
) -> None:
    result = await PolicyEngine([ConstraintPolicy(["pay"], **constraint)]).check_tool("pay", arguments=arguments)
    assert (result.decision, reason in result.reason) == ("deny" if reason else "allow", True)


async def test_a_constraint_sees_positional_arguments_by_the_names_of_the_parameters() -> None:
    @tool
    def pay(to: str, amount: int) -> None: ...

    engine = PolicyEngine([ConstraintPolicy(["pay"], "amount", max=9, otherwise="ask")])
    verdict = engine.decide(call_of(tool=pay, args=("bob", 10)))
    assert isinstance(verdict, GuardVerdict)
    assert verdict.decision is Decision.ASK


async def test_a_constraint_of_an_argument_that_its_tool_does_not_have_denies() -> None:
    @tool
    async def pay(amount: float, **more: float) -> None: ...

    @tool
    async def give(amount: float) -> None: ...

    for patterns, asked, allowed in (["give"], give, False), (["g*"], give, True), (["pay"], pay, True):
        engine = PolicyEngine([ConstraintPolicy(patterns, "amuont", max=9)])
        result = await engine.check_tool(asked, arguments={"amount": 10})
        assert (result.allowed, "give has no argument amuont" in result.reason) == (allowed, not allowed)


async def test_data_with_a_label_is_read_by_some_and_goes_to_some() -> None:
    @tool(effect="read", labels={"pii"})
    def customers() -> None: ...

    rule = DataAccessPolicy(["pii"], allowed_scopes=["internal"], allowed_models=["local-*"], allowed_tools=["store"])
    engine = PolicyEngine([rule])
    assert (await engine.check_tool(customers, INSIDE)).allowed
    assert (
        await engine.check_tool(customers, OUTSIDE)
    ).reason == "scope guests may not read what is pii by tool customers"
    assert (await engine.check_model("gpt", INSIDE)).allowed
    assert (await engine.check_model("gpt", INSIDE, labels={"pii"})).reason == "what is pii may not go to model gpt"
    assert (await engine.check_model("local-1", INSIDE, labels={"pii"})).allowed
    assert not (await engine.check_tool("mail", INSIDE, labels={"pii"})).allowed
    assert (await engine.check_tool("store", INSIDE, labels={"pii"})).allowed


@pytest.mark.parametrize(
    ("labels", "effect", "decision"),
    [
        ((), "unsafe", "allow"),
        (("untrusted",), "unsafe", "ask"),
        (("untrusted",), "idempotent", "ask"),
        (("untrusted",), "read", "allow"),
        (("pii",), "unsafe", "allow"),
    ],
)
async def test_what_was_read_in_the_open_world_needs_approval_to_change_it(
    labels: tuple[str, ...], effect: str, decision: str
) -> None:
    call = call_of(labels=frozenset(labels), effect_class=effect)
    assert (await PolicyEngine([LabelPolicy()]).check(call)).decision == decision


async def test_redaction_says_which_texts_are_hidden_where_there_are_some() -> None:
    engine = PolicyEngine([RedactionPolicy([r"\d{4}"], tool_patterns=["mail"])])
    assert (await engine.check_tool("mail", arguments={"text": "pin 4711"})).decision == "redact"
    assert (await engine.check_tool("mail", arguments={"text": "no pin"})).decision == "allow"
    assert (await engine.check_tool("pay", arguments={"text": "pin 4711"})).decision == "allow"
    assert (await engine.check_model("m", messages=[user("pin 4711")])).decision == "redact"


@pytest.mark.parametrize(
    "given",
    [
        4111111111111111,
        4111111111111111.0,
        Decimal("4.111111111111111E15"),
        -4111111111111111,
        {4111111111111111: "ann"},
        [{"cards": (1, 4111111111111111)}],
    ],
)
async def test_a_call_with_a_number_whose_digits_are_to_be_hidden_is_denied(given: Any) -> None:
    """Texts were hidden, and a model that wrote the card as a number got it through."""
    engine = PolicyEngine([RedactionPolicy([r"[0-9]{16}"], tool_patterns=["send"])])
    said = await engine.check_tool("send", arguments={"card": given})
    assert said.decision == "deny"
    assert "a number in an argument matches a pattern of what is hidden" in said.reason
    assert (await engine.check_tool("pay", arguments={"card": given})).decision == "allow"


@pytest.mark.parametrize("given", [True, 411111111111111, 1e300, float("nan"), Decimal("1E+100000"), 10**15])
async def test_a_call_with_other_numbers_is_allowed(given: Any) -> None:
    engine = PolicyEngine([RedactionPolicy(["4[0-9]{15}"])])
    assert (await engine.check_tool("send", arguments={"card": given})).decision == "allow"
    assert (
        await PolicyEngine([RedactionPolicy([r"\d"])]).check_model("m", messages=[user("no pin")])
    ).decision == "allow"


# -- one's own rules, and which one holds -------------------------------------------------------------------------------------


async def test_rules_of_ones_own_are_functions_and_subclasses_sync_and_async() -> None:
    def only_ada(call: GuardedCall) -> Decision | None:
        return None if call.principal == "ada" else Decision.DENY

    async def looked_up(call: GuardedCall) -> GuardVerdict:
        await asyncio.sleep(0)
        return GuardVerdict(Decision.WARN, reason=f"looked up {call.name}")

    class Night(PolicyRule):
        name = "night"

        def decide(self, call: GuardedCall) -> Decision:
            return Decision.ASK

    engine = PolicyEngine([only_ada])
    assert (await engine.check(call_of())).decision == "allow"
    engine.add_rule(looked_up)
    result = await engine.check(call_of())
    assert (result.decision, result.reason, result.rule) == ("warn", "looked up pay", "looked_up")
    engine.add_rule(Night())
    assert (await engine.check(call_of())).rule == "night"
    assert (await engine.check_tool("pay")).rule == "only_ada"


async def test_a_rule_that_raises_hangs_or_says_nonsense_denies_and_says_so() -> None:
    def broken(call: GuardedCall) -> None:
        raise LookupError("no such scope")

    async def broken_later(call: GuardedCall) -> None:
        raise LookupError("no such scope")

    async def hangs(call: GuardedCall) -> None:
        await asyncio.Event().wait()

    async def hangs_on(call: GuardedCall) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # as a client does that catches all errors
            await asyncio.Event().wait()

    def times_out(call: GuardedCall) -> None:
        raise TimeoutError("the directory is away")

    async def times_out_later(call: GuardedCall) -> None:
        raise TimeoutError("the directory is away")

    def cancelled(call: GuardedCall) -> None:
        raise asyncio.CancelledError

    async def cancelled_later(call: GuardedCall) -> None:
        raise asyncio.CancelledError

    for rule, said in (
        (cancelled, "rule cancelled has failed: CancelledError"),
        (cancelled_later, "rule cancelled_later has failed: CancelledError"),
        (broken, "rule broken has failed: LookupError: no such scope"),
        (broken_later, "rule broken_later has failed: LookupError: no such scope"),
        (times_out, "rule times_out has failed: TimeoutError: the directory is away"),
        (times_out_later, "rule times_out_later has failed: TimeoutError: the directory is away"),
        (hangs, "rule hangs has failed: TimeoutError: no answer within 0.01 s"),
        (hangs_on, "rule hangs_on has failed: TimeoutError: no answer within 0.01 s"),
        (lambda call: "yes", "it says 'yes': no Decision, GuardVerdict or None"),
        (lambda call: GuardVerdict("block"), "Invalid enum value 'block'"),  # type: ignore[arg-type]
        (lambda call: GuardVerdict(None), "Expected `str`, got `null`"),  # type: ignore[arg-type]
        (lambda call: GuardVerdict(Decision.WARN, reason=None), "Expected `str`, got `null`"),  # type: ignore[arg-type]
        (lambda call: GuardVerdict(Decision.REDACT, hide="eve"), "Expected `array`, got `str`"),  # type: ignore[arg-type]
        (lambda call: Decision.REDACT, "it says redact: that needs a GuardVerdict with hide="),
        (lambda call: GuardVerdict(Decision.DEGRADE), "it says degrade: that needs a GuardVerdict with model="),
    ):
        result = await PolicyEngine([rule], timeout="10ms").check(call_of())
        assert (result.decision, result.allowed) == ("deny", False)
        assert said in result.reason


async def test_a_verdict_with_a_decision_as_a_text_is_that_decision_also_for_a_job() -> None:
    made = list[str]()

    @tool(effect="unsafe")
    async def wire(to: str) -> None:
        made.append(to)

    async def desk(ctx: Any) -> str:
        try:
            await ctx.call(wire, "eve")
        except PolicyDenied as error:
            return error.message
        return "sent"

    def wrong(call: GuardedCall) -> GuardVerdict:
        return GuardVerdict("deny", reason="not to eve")  # type: ignore[arg-type]

    engine = PolicyEngine([wrong])
    assert (await engine.check_tool("wire")).decision is Decision.DENY
    async with RuntimeKernel.create(agent=desk, policy=engine) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        assert (await handle.result()).output == "wire was not done: not to eve (rule wrong)"
    assert made == []


STRICTNESS = ["allow", "warn", "redact", "degrade", "ask", "deny"]


@pytest.mark.parametrize("strict", STRICTNESS)
@pytest.mark.parametrize("mild", STRICTNESS)
async def test_the_strictest_rule_holds_in_whatever_order_they_stand(mild: str, strict: str) -> None:
    def first(call: GuardedCall) -> GuardVerdict:
        return GuardVerdict(Decision(mild), reason="first", hide=("4711",), model="small")

    async def second(call: GuardedCall) -> GuardVerdict:
        return GuardVerdict(Decision(strict), reason="second", hide=("4711",), model="small")

    expected = max(mild, strict, key=STRICTNESS.index)
    for rules in ([first, second], [second, first]):
        assert (await PolicyEngine(rules).check(call_of())).decision == expected


async def test_what_milder_rules_hide_is_hidden_though_a_person_is_asked_too() -> None:
    engine = PolicyEngine([RedactionPolicy(["4711"]), ToolPolicy(["mail"], require_approval=True)])
    verdict = engine.decide(call_of("mail", kwargs={"text": "4711"}))
    assert isinstance(verdict, GuardVerdict)
    assert (verdict.decision, verdict.hide, verdict.version) == (Decision.ASK, ("4711",), engine.version)
    assert verdict.notes == ("texts in it are hidden (tool mail)",)


def test_the_version_is_that_of_the_rules() -> None:
    def rules() -> list[Any]:
        return [ToolPolicy(["a"], denied=True), ConstraintPolicy(["a"], "n", allowed=[1, 2])]

    def asks(call: GuardedCall) -> Decision:
        return Decision.ASK

    def denies(call: GuardedCall) -> Decision:
        return Decision.DENY

    engine = PolicyEngine(rules())
    assert engine.version == PolicyEngine(rules()).version
    versions = {engine.version, PolicyEngine(rules(), default="deny").version}
    versions |= {PolicyEngine([*rules(), each]).version for each in (asks, denies)}
    versions.add(PolicyEngine([ToolPolicy(["a"], denied=False), *rules()[1:]]).version)
    assert len(versions) == 5
    sets = [ConstraintPolicy(["a"], "n", allowed=given) for given in ({0, 8, 16}, {16, 8, 0}, [0, 16, 8])]
    assert len({PolicyEngine([each]).version for each in sets}) == 1, "the order of a set differs between processes"
    before = engine.version
    engine.add_rule(asks)
    assert engine.version != before


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ToolPolicy("file_*"),  # type: ignore[arg-type]
        lambda: ToolPolicy([]),
        lambda: ToolPolicy(["a"], approval_timeout="soon"),
        lambda: ToolPolicy(["a"], require_approval=True, approval_timeout=[]),  # type: ignore[arg-type]
        lambda: ToolPolicy(["a"], approval_timeout="5m"),
        lambda: ToolPolicy(["a"], denied="no"),  # type: ignore[arg-type]
        lambda: ToolPolicy(["a"], require_approval="yes"),  # type: ignore[arg-type]
        lambda: ModelPolicy(["a"], warn=1),  # type: ignore[arg-type]
        lambda: ModelPolicy(["a"], degrade_to=3),  # type: ignore[arg-type]
        lambda: AgentPolicy(["a"], reason=3),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n", max=1, otherwise="degrade"),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n", max=1, approval_timeout="5m"),
        lambda: ConstraintPolicy(["a"], "n", pattern="("),
        lambda: ConstraintPolicy(["a"], "n", pattern=b"a"),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n"),
        lambda: ConstraintPolicy(["a"], "", max=1),
        lambda: ConstraintPolicy(["a"], "n..m", max=1),
        lambda: ConstraintPolicy(["a"], 3, max=1),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n", allowed="abc"),
        lambda: ConstraintPolicy(["a"], "n", denied=b"abc"),
        lambda: ConstraintPolicy(["a"], "n", denied=3),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n", max=float("nan")),
        lambda: ConstraintPolicy(["a"], "n", min=Decimal("nan")),
        lambda: ConstraintPolicy(["a"], "n", max=True),
        lambda: ConstraintPolicy(["a"], "n", max=[5]),
        lambda: ConstraintPolicy(["a"], "n", max=object()),
        lambda: ConstraintPolicy(["a"], "n", min=5, max=1),
        lambda: ConstraintPolicy(["a"], "n", min=5, max="z"),
        lambda: ConstraintPolicy(["a"], "n", max_length=-1),
        lambda: ConstraintPolicy(["a"], "n", max_length=1.5),  # type: ignore[arg-type]
        lambda: ConstraintPolicy(["a"], "n", required="no"),  # type: ignore[arg-type]
        lambda: DataAccessPolicy(["pii"]),
        lambda: DataAccessPolicy("pii", allowed_models=["m"]),
        lambda: DataAccessPolicy(5, allowed_models=["m"]),  # type: ignore[arg-type]
        lambda: DataAccessPolicy(["pii"], allowed_models="local"),
        lambda: LabelPolicy(labels="untrusted"),
        lambda: LabelPolicy(effects=["idempotnet"]),
        lambda: LabelPolicy(effects="unsafe"),
        lambda: LabelPolicy(effects=[]),
        lambda: RedactionPolicy(["("]),
        lambda: RedactionPolicy(["x*"]),
        lambda: RedactionPolicy(["x"], tool_patterns=[], model_patterns=[], agent_patterns=[]),
        lambda: PolicyEngine(ToolPolicy(["a"])),  # type: ignore[arg-type]
        lambda: PolicyEngine(default="maybe"),  # type: ignore[arg-type]
        lambda: PolicyEngine([7]),  # type: ignore[list-item]
        lambda: PolicyEngine([ToolPolicy]),
        lambda: tool(labels="pii")(print),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(make: Any) -> None:
    with pytest.raises(UserError):
        make()


# -- in jobs ------------------------------------------------------------------------------------------------------------------


async def test_deny_leaves_the_side_effect_file_untouched(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")

    @tool
    def file_write(text: str) -> None:
        file.write_text(text)

    async def f(ctx: DurableContext) -> str:
        assert (ctx.scope, ctx.principal) == ("guests", "eve")
        try:
            await ctx.call(file_write, "after")
        except EffectError as error:
            return f"{error.type}: {error.message}"
        return "written"

    policy = PolicyEngine([ToolPolicy(tool_patterns=["file_*"], allowed_scopes=["internal"])])
    home = MemoryStorage()
    async with hosting(home, Agent(f), guard=policy) as jobs:
        jobs.begin("j", behalf=Behalf("guests", "eve"))
        await jobs.over("j")
        said = "file_write was not done: scope guests may not use tool file_write (rule ToolPolicy file_*)"
        assert jobs.agent.done["j"] == f"PolicyDenied: {said}"
    assert file.read_text() == "before"
    intent = next(entry for entry in entries(home) if isinstance(entry, Intent))
    verdict = decode_verdict(intent.note)
    assert verdict is not None
    assert (verdict.decision, verdict.version) == (Decision.DENY, policy.version)


async def test_a_rule_that_is_added_holds_for_what_is_asked_from_then_on_also_in_jobs_that_run() -> None:
    made, go_on, policy = [], asyncio.Event(), PolicyEngine()

    @tool(effect="idempotent")
    async def put(number: int) -> int:
        if number == 1:
            await go_on.wait()
        made.append(number)
        return number

    async def f(ctx: DurableContext) -> Any:
        first = await ctx.call(put, 1)
        try:
            return [first, await ctx.call(put, 2)]
        except PolicyDenied:
            return [first, "denied"]

    home = MemoryStorage()
    async with hosting(home, Agent(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.until(lambda: len(entries(home)) == 2)
        policy.add_rule(ToolPolicy(["put"], denied=True))
        go_on.set()
        await jobs.over("j")
        assert jobs.agent.done["j"] == [1, "denied"]
    assert made == [1]


async def test_what_a_job_makes_of_an_untrusted_result_carries_its_label_over_restarts_and_through_children() -> None:
    sent: list[str] = []

    @tool(effect="read", open_world=True)
    def web(page: str) -> str:
        return f"text of {page}"

    @tool
    def mail(text: str) -> None:
        sent.append(text)

    seen: dict[str, list[list[str]]] = {}

    async def f(ctx: DurableContext) -> Any:
        labels = seen.setdefault(ctx.job_id, [])
        labels.clear()
        labels.append(sorted(ctx.labels))
        if ctx.message == "reads":
            found = await ctx.call(web, "a")
        elif ctx.message == "has a child":
            await ctx.call(mail, "before")
            found = await ctx.child("agent", "reads")
        else:
            return await ctx.call(mail, ctx.message)
        labels.append(sorted(ctx.labels))
        if ctx.message == "has a child":
            await ctx.child("agent", found)
            await ctx.call(mail, "after")
        return found

    home, policy = MemoryStorage(), PolicyEngine([LabelPolicy()])

    def questions(jobs: Any) -> list[Any]:
        return [each for each in jobs.journal.storage.questions.values() if not each.closed]

    async def approve(jobs: Any, job: str) -> None:
        await jobs.until(lambda: [each.job for each in questions(jobs)] == [job])
        token = next(token for token, each in jobs.journal.storage.questions.items() if not each.closed)
        jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))

    async with hosting(home, Agent(f), guard=policy) as jobs:
        jobs.begin("j", "has a child")
        await jobs.until(lambda: questions(jobs))
        assert sent == ["before"]
    async with hosting(home, Agent(f), guard=policy) as jobs:
        await approve(jobs, "j~3")  # the child that was given what another one had read
        await approve(jobs, "j")
        await jobs.over("j")
    assert sent == ["before", "text of a", "after"]
    assert seen["j"] == [[], ["untrusted"]]
    assert seen["j~2"] == [[], ["untrusted"]]
    assert seen["j~3"] == [["untrusted"]]
