"""A rule that names a tool, a model or an agent that nobody has protects nothing: the start is refused, with the names that are near."""

import logging
from dataclasses import replace
from functools import partial, partialmethod, wraps
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.agents import (
    AgentPolicy,
    Budget,
    BudgetDecision,
    ConstraintPolicy,
    DataAccessPolicy,
    ExecutionContext,
    ExecutionRequest,
    InMemoryLedgerWriter,
    LabelPolicy,
    Ledger,
    ModelPolicy,
    PolicyEngine,
    PolicyRef,
    RedactionPolicy,
    RuntimeKernel,
    ToolPolicy,
)
from sabot.agents.policy import names
from sabot.engine.calls.names import SERVERS
from sabot.errors import EffectError, UserError
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, tool
from sabot.mcp import McpServerPool
from tools.agent_tools import started


@pytest.fixture(autouse=True)
def _no_pool_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SERVERS", set())


@tool
def refund(order: int) -> int:
    """Gives money back."""
    return order


def look_up(order: int) -> int:
    return order


async def handle(ctx: Any) -> Any:
    await ctx.step(look_up, 1, effect="read")
    await ctx.child("clerk", {})
    return await ctx.call(refund, 1)


async def clerk(ctx: Any) -> None: ...


def shop(url: str, directory: Path, *rules: Any) -> App:
    app = App("shop", url, state=str(directory), policy=PolicyEngine(list(rules)))
    app.agent("orders", durable=True)(handle)
    app.agent("clerks", durable=True)(clerk)
    engine = ExecutionEngine(ScriptedProvider("yes", model="gpt-4o-mini"))
    app.llm_agent("questions", engine, name="desk", tools=[refund])
    return app


MISSPELT = [
    (ToolPolicy(["refnud"], require_approval=True), "names the tool 'refnud'", "did you mean 'refund'"),
    (ConstraintPolicy(["refnd"], "order", max=5), "names the tool 'refnd'", "did you mean 'refund'"),
    (ToolPolicy(["refund", "shipp"], denied=True), "names the tool 'shipp'", "'shipp*'"),
    (ModelPolicy(["gpt-4o-mnii"], denied=True), "names the model 'gpt-4o-mnii'", "did you mean 'gpt-4o-mini'"),
    (AgentPolicy(["shop.clrek"], denied=True), "names the agent 'shop.clrek'", "did you mean 'shop.clerk'"),
    (DataAccessPolicy(["pii"], allowed_tools=["look_upp"]), "names the tool 'look_upp'", "did you mean 'look_up'"),
]


@pytest.mark.parametrize(("rule", "words", "hint"), MISSPELT)
async def test_an_app_does_not_start_with_a_rule_about_what_nobody_has(
    memory_url: str, tmp_path: Path, rule: Any, words: str, hint: str
) -> None:
    app = shop(memory_url, tmp_path, rule)
    with pytest.raises(UserError) as caught:
        await app.start()
    assert words in caught.value.message
    assert hint in caught.value.hint


async def test_rules_about_tools_steps_models_and_agents_that_are_there_let_an_app_start(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = [
        ToolPolicy(["refund", "look_up"], require_approval=True),
        ModelPolicy(["gpt-4o-mini"], degrade_to="small"),
        ModelPolicy(["small"], warn=True),
        AgentPolicy(["shop.clerk"], denied=True),
        ToolPolicy(["*"], warn=True),
        ToolPolicy(["ref*"], warn=True),
    ]
    async with started(shop(memory_url, tmp_path, *rules)):
        pass
    assert "matches no" not in caplog.text


async def test_a_pattern_that_matches_nothing_is_warned_of(
    memory_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with started(shop(memory_url, tmp_path, ToolPolicy(["zzz_*"], denied=True))):
        pass
    assert "app shop: its policy: ToolPolicy zzz_* matches no tool that is known at the start" in caplog.text


async def test_a_kernel_does_not_start_with_a_misspelt_rule_either() -> None:
    engine = ExecutionEngine(ScriptedProvider("yes"))
    agent = Agent(engine, tools=[refund])
    with pytest.raises(UserError, match="kernel kernel: its policy: ToolPolicy refnud names the tool 'refnud'"):
        async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([ToolPolicy(["refnud"], denied=True)])):
            pass
    async with RuntimeKernel.create(agent=agent, policy=PolicyEngine([ToolPolicy(["refund"], denied=True)])):
        pass


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (None, "it has none; PolicyEngine"),
        (PolicyEngine(), "its policy has no name"),
        (PolicyEngine(name="production"), "its policy is 'production'"),
    ],
)
async def test_a_request_under_a_policy_that_the_kernel_does_not_have_is_refused(policy: Any, words: str) -> None:
    agent = Agent(ExecutionEngine(ScriptedProvider("yes")))
    async with RuntimeKernel.create(agent=agent, policy=policy) as kernel:
        with pytest.raises(UserError, match="kernel kernel has no policy 'no-such-policy'") as caught:
            await kernel.execute(ExecutionRequest(prompt="hi", policy_ref=PolicyRef("no-such-policy")))
    assert words in caught.value.hint


async def test_a_request_under_the_policy_of_the_kernel_runs() -> None:
    policy = PolicyEngine(name="production")
    async with RuntimeKernel.create(
        agent=Agent(ExecutionEngine(ScriptedProvider(["yes"] * 2))), policy=policy
    ) as kernel:
        for ref in (PolicyRef("production"), PolicyRef("production", policy.version)):
            assert (
                await (await kernel.execute(ExecutionRequest(prompt="hi", policy_ref=ref))).result()
            ).content == "yes"
        with pytest.raises(UserError, match="no policy 'production', version 0"):
            await kernel.execute(ExecutionRequest(prompt="hi", policy_ref=PolicyRef("production", "0")))


async def test_a_rule_may_name_a_tool_of_a_server_that_was_not_asked_yet(caplog: pytest.LogCaptureFixture) -> None:
    rules = [ToolPolicy(["create_issue"], denied=True)]
    pool = McpServerPool()
    names.SERVERS.add(pool)
    with caplog.at_level(logging.WARNING):
        names.check_names(rules, [handle], ["desk.handle"], "app desk")
    assert "names the tool 'create_issue', and there is none of this name so far" in caplog.text
    names.SERVERS.discard(pool)
    with pytest.raises(UserError, match="names the tool 'create_issue'"):
        names.check_names(rules, [handle], ["desk.handle"], "app desk")
    await pool.close()


async def test_a_pool_of_servers_is_known_while_it_is_open() -> None:
    pool = McpServerPool()
    assert pool in SERVERS
    await pool.close()
    assert pool not in SERVERS


# -- rules and budgets that say nothing, and broken patterns -------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["refund[", "ref[a-", "[]", "[!]", "x[[]y[", "[z-a]x"])
@pytest.mark.parametrize(
    "make",
    [
        lambda pattern: ToolPolicy([pattern], denied=True),
        lambda pattern: ToolPolicy(["refund"], allowed_scopes=[pattern]),
        lambda pattern: ToolPolicy(["refund"], denied_scopes=[pattern]),
        lambda pattern: ToolPolicy(["refund"], allowed_principals=[pattern]),
        lambda pattern: ModelPolicy([pattern], denied=True),
        lambda pattern: AgentPolicy([pattern], denied=True),
        lambda pattern: ConstraintPolicy([pattern], "order", max=5),
        lambda pattern: DataAccessPolicy(["pii"], allowed_tools=[pattern]),
        lambda pattern: LabelPolicy(tool_patterns=[pattern]),
        lambda pattern: RedactionPolicy(["[0-9]+"], tool_patterns=[pattern]),
        lambda pattern: Budget(pattern, max_calls_daily=1),
    ],
)
def test_a_broken_pattern_is_refused_where_it_is_written(make: Any, pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        make(pattern)
    assert f"the pattern {pattern!r} is broken" in caught.value.message
    assert "[[]" in caught.value.hint


def test_patterns_with_sets_and_expressions_with_brackets_are_no_broken_ones() -> None:
    for pattern in ("refund[[]x", "[]]", "[!]]", "[a-z]*", "ref[!0-9]"):
        ToolPolicy([pattern], denied=True)
        Budget(pattern, max_calls_daily=1)
    RedactionPolicy([r"[^]]+[a-z]{4}\["])
    LabelPolicy(labels=["pii["])


async def test_a_scope_with_a_bracket_has_the_budget_of_a_pattern() -> None:
    books = Ledger(InMemoryLedgerWriter(), budgets=[Budget("t*", max_calls_daily=1, warn_at=1)])
    assert await books.check_budget(ExecutionContext(scope_id="t["), 1) is BudgetDecision.ALLOW
    assert books.budget("t[").max_calls_daily == 1


@pytest.mark.parametrize("scope", ["*", "t", "tenant-*"])
def test_a_budget_without_a_limit_is_refused(scope: str) -> None:
    for options in ({}, {"warn_at": 0.5}, {"exhausted": "ask"}, {"unpriced": "ask"}):
        with pytest.raises(UserError, match="limits nothing") as caught:
            Budget(scope, **options)
        assert "max_cost_daily=5" in caught.value.hint


@pytest.mark.parametrize(
    "rule", [ToolPolicy(["refund"]), ToolPolicy(["ref*"], reason="money"), ModelPolicy(["gpt-4o-mini"])]
)
def test_a_rule_that_allows_what_is_allowed_anyway_is_named_at_the_start(
    rule: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its options may be those of one deployment: `denied=settings.frozen`."""
    PolicyEngine([rule], default="deny").check_names([handle], [], "app shop")  # a permission there
    assert caplog.text == ""
    PolicyEngine([rule]).check_names([handle], [], "app shop")
    assert f"app shop: {rule.name} says nothing" in caplog.text
    assert "denied=True" in caplog.text


@pytest.mark.parametrize("default", ["allow", "deny"])
def test_a_rule_for_children_says_nothing_without_options_whatever_the_default_is(
    default: Any, caplog: pytest.LogCaptureFixture
) -> None:
    policy = PolicyEngine([AgentPolicy(["shop.clerk"])], default=default)
    policy.check_names([handle], ["shop.clerk"], "app shop")
    assert "says nothing" in caplog.text


def test_each_option_of_a_rule_says_something() -> None:
    options: list[dict[str, Any]] = [
        {"denied": True},
        {"require_approval": True},
        {"warn": True},
        {"allowed_scopes": []},
        {"denied_scopes": ["x"]},
        {"allowed_principals": ["ann"]},
    ]
    rules = [ToolPolicy(["refund"], **each) for each in options]
    PolicyEngine([*rules, ModelPolicy(["gpt-4o-mini"], degrade_to="m")]).check_names([handle], [], "app shop")


class Till:
    def __init__(self, shop: str) -> None:
        self.shop = shop

    def send(self, to: str) -> None: ...


def sending(shop: str) -> Any:
    @tool
    def send(to: str) -> str:
        return shop

    return send


async def send_by(client: list[str], to: str) -> None: ...


def sending_by(client: list[str]) -> Any:
    @tool(name="send")
    async def post(to: str) -> None:
        client.append(to)

    return post


ONE_CLIENT: list[str] = []


@pytest.mark.parametrize("others", ["same", "made twice", "functions", "methods", "closures", "clients", "partials"])
async def test_two_tools_of_one_name_are_warned_of(others: str, caplog: pytest.LogCaptureFixture) -> None:
    """Rules of one of them hold for the other, too; and what a person has approved, if the function is the same."""

    @tool(name="send")
    def mail(to: str) -> None: ...

    @tool(name="send")
    def pay(to: str) -> None: ...

    mail, other = {
        "same": (mail, mail),
        "made twice": (sending_by(ONE_CLIENT), sending_by(ONE_CLIENT)),
        "clients": (sending_by([]), sending_by([])),
        "partials": (tool(name="send")(partial(send_by, [])), tool(name="send")(partial(send_by, []))),
        "functions": (mail, pay),
        "methods": (tool(Till("a").send), tool(Till("b").send)),
        "closures": (sending("a"), sending("b")),
    }[others]

    async def first(ctx: Any) -> None:
        await ctx.call(mail, "ann")

    async def second(ctx: Any) -> None:
        await ctx.call(other, "ann")

    policy = PolicyEngine([ToolPolicy(["send"], require_approval=True)])
    async with RuntimeKernel.create(agent=[first, second], policy=policy):
        pass
    said = "its agents have 2 tools with the name send, so rules of one are those of the others"
    assert (said in caplog.text) is (others not in ("same", "made twice"))


@pytest.mark.parametrize("other", ["replace", "tool.func"])
async def test_a_rule_that_holds_for_one_name_of_a_function_only_is_warned_of(
    other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`ToolPolicy(["wire"], denied=True)` let the same payment pass under its second name, without a word."""

    @tool
    def wire(to: str) -> None: ...

    beside = replace(wire, name="wire_fast") if other == "replace" else tool(name="wire_fast")(wire.func)

    async def pays(ctx: Any) -> None:
        await ctx.call(beside, "ann")
        await ctx.call(wire, "ann")

    denied = [ToolPolicy(["wire"], denied=True)]
    async with RuntimeKernel.create(agent=pays, policy=PolicyEngine(denied)):
        pass
    said = "ToolPolicy wire holds for wire, and not for wire_fast, which calls the same function"
    assert said in caplog.text
    caplog.clear()
    async with RuntimeKernel.create(agent=pays, policy=PolicyEngine([ToolPolicy(["wire*"], denied=True)])):
        pass
    assert "the same function" not in caplog.text


@pytest.mark.parametrize("other", ["replace", "tool.func"])
@pytest.mark.parametrize("rules", ["one", "all", "its own", "step"])
async def test_a_tool_that_is_made_at_the_call_of_a_ruled_function_is_called_only_if_a_rule_has_its_name(
    other: str, rules: str
) -> None:
    """No code names such a tool at the start, so the payment passed the rule."""
    paid = list[str]()

    @tool
    def wire(to: str) -> str:
        paid.append(to)
        return to

    async def pays(ctx: Any) -> Any:
        fast = replace(wire, name="wire_fast") if other == "replace" else tool(name="wire_fast")(wire.func)
        return await (ctx.step(fast, ctx.message) if rules == "step" else ctx.call(fast, ctx.message))

    policy = PolicyEngine([ToolPolicy(["wire*" if rules == "all" else "wire"], warn=True)])
    if rules == "its own":
        policy.add_rule(ToolPolicy(["wire_fast"], warn=True))
    async with RuntimeKernel.create(agent=pays, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="ann", scope_id="acme"))
        if rules in ("all", "its own"):
            assert (await handle.result()).output == "ann"
            return
        with pytest.raises(EffectError, match="calls the function of the tool wire, for which ToolPolicy wire holds"):
            await handle.result()
        assert not paid


async def test_an_innocent_tool_of_the_same_name_lets_no_tool_of_a_ruled_function_pass() -> None:
    """The rules of a name are found once: behind a call of the innocent one the payment was made."""

    @tool
    def wire(to: str) -> str:
        return to

    async def pays(ctx: Any) -> Any:
        await ctx.call(tool(name="fast")(lambda to: to), ctx.message)
        return await ctx.call(replace(wire, name="fast"), ctx.message)

    policy = PolicyEngine([ToolPolicy(["wire"], warn=True)])
    async with RuntimeKernel.create(agent=pays, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="ann", scope_id="acme"))
        with pytest.raises(EffectError, match="fast calls the function of the tool wire"):
            await handle.result()


# -- names of the program that calls do not have -----------------------------------------------------------------------


def _audited(func: Any) -> Any:
    async def inner(*args: Any, **kwargs: Any) -> Any:
        return await func(*args, **kwargs)

    return inner


def _kept(func: Any) -> Any:
    return wraps(func)(_audited(func))


@_audited
async def hand_over_parcel(order: int) -> None: ...


@_kept
async def bill(order: int) -> None: ...


find_order = look_up
find_first_order = partial(look_up, 1)
give_it_back = refund


class Desk:
    async def _jot(self, text: str) -> None: ...

    jot = _jot
    say_hello = partialmethod(_jot, "hello")

    async def note(self, text: str) -> None: ...


note = Desk()._jot


async def all_of_them(ctx: Any) -> None:
    desk = Desk()
    for each in (hand_over_parcel, bill, find_order, find_first_order, desk.jot, desk.say_hello, note):
        await ctx.step(each)
    await ctx.call(give_it_back)


@pytest.mark.parametrize(
    ("named", "own"),
    [
        ("hand_over_parcel", "inner"),
        ("find_order", "look_up"),
        ("find_first_order", "look_up"),
        ("give_it_back", "refund"),
        ("jot", "_jot"),
        ("say_hello", "_jot"),
    ],
)
async def test_a_rule_by_a_name_that_calls_do_not_have_is_refused_with_the_one_that_they_have(
    named: str, own: str
) -> None:
    rule = ToolPolicy([named], denied=True)
    with pytest.raises(UserError, match=f"names the tool '{named}'.* are calls of '{own}'") as caught:
        async with RuntimeKernel.create(agent=all_of_them, policy=PolicyEngine([rule])):
            pass
    assert caught.value.hint == f"{own!r}; a decorator that has functools.wraps(f) keeps the name of f"


@pytest.mark.parametrize("named", ["bill", "look_up", "refund", "_jot", "note", "inner"])
async def test_a_rule_by_a_name_that_a_call_may_have_lets_the_start_go_on(named: str) -> None:
    async with RuntimeKernel.create(agent=all_of_them, policy=PolicyEngine([ToolPolicy([named], denied=True)])):
        pass
