"""What a policy judges, a person is shown and a tool gets are the same arguments: defaults too, under each name of a field."""

import dataclasses
import enum
import gc
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from unit.jobs.hosting import Agent as Owner
from unit.jobs.hosting import entries, hosting, prefix

from sabot.agents import (
    CedarPolicy,
    ConstraintPolicy,
    Decision,
    DurableContext,
    GuardedCall,
    GuardVerdict,
    PolicyDenied,
    PolicyEngine,
    RedactionPolicy,
    ToolPolicy,
    tool,
)
from sabot.agents.job_view import JobView
from sabot.errors import UserError
from sabot.jobs.guard import Behalf
from sabot.jobs.masking import mask
from sabot.jobs.values import pack, unpack
from sabot.journal import Letter
from sabot.journal.effects import EffectId
from sabot.journal.entries import Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant, names
from sabot.llm.arguments import lacks, types_at
from sabot.llm.names import note_tool
from sabot.llm.tools import Tool
from sabot.mcp.offers import OfferedArguments

MOST_50 = ConstraintPolicy(["refund"], "amount", max=50)


class Money(pydantic.BaseModel):
    amount: int = pydantic.Field(500, alias="betrag")
    currency: str = "EUR"


class Order(pydantic.BaseModel):
    id: str
    money: Money = pydantic.Field(default_factory=Money)


class Line(msgspec.Struct, rename="camel"):
    unit_price: int = 500
    name: str = ""


@dataclasses.dataclass
class Parcel:
    weight: int = 500


class Note(TypedDict, total=False):
    text: str


@tool
def pay(order: Order) -> None: ...


@tool
def bill(lines: list[Line], parcel: Parcel | None = None) -> None: ...


@tool
def keep(note: Note, by: dict[str, Order] | None = None) -> None: ...


def refund_with(amount: int = 500) -> tuple[Tool, list[Any]]:
    """A tool whose default is of this deploy, and what it was called with."""
    made: list[Any] = []

    @tool
    def refund(order: str, amount: int = amount) -> int:
        made.append((order, amount))
        return amount

    return refund, made


def served(made: list[Any], default: Any = 500) -> Tool:
    """A tool of a server, which has a default in its schema and fills in another one by itself."""

    async def call(**arguments: Any) -> int:
        made.append(arguments)
        return int(arguments.get("amount", 999))

    schema = {
        "type": "object",
        "properties": {
            "order": {"$ref": "#/$defs/Order"},
            "amount": {"type": "integer", "default": default},
        },
        "required": ["order"],
        "$defs": {"Order": {"type": "object", "properties": {"id": {"type": "string"}, "fee": {"default": 70}}}},
    }
    return dataclasses.replace(tool(name="refund")(call), parameters=OfferedArguments("refund", "", schema))


def asking(refund: Tool) -> Agent:
    said = [assistant("", ToolCall("c", "refund", '{"order": "o-1"}')), "done"]
    return Agent(ExecutionEngine(ScriptedProvider(said)), tools=[refund])


def open_question(home: MemoryStorage) -> Any:
    known = JobView.of(MemoryReader(home))
    return next(each for each in known.actions.values() if each.status == "pending")


# -- defaults -----------------------------------------------------------------------------------------------------------


WAYS: dict[str, Callable[[DurableContext, Any], Any]] = {
    "a call": lambda ctx, f: ctx.call(f, "o-1"),
    "a call by name": lambda ctx, f: ctx.call(f, order="o-1"),
    "a step": lambda ctx, f: ctx.step(f.func, "o-1"),
    "a partial": lambda ctx, f: ctx.call(partial(f.func, "o-1")),
    "a partial by name": lambda ctx, f: ctx.step(partial(f.func, amount=500), "o-1"),
    "a model": lambda ctx, f: asking(f).run("go", effects=ctx.llm(asking(f).engine)),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_bound_holds_for_an_argument_that_the_caller_leaves_out(way: str) -> None:
    refund, made = refund_with()

    async def f(ctx: DurableContext) -> str:
        try:
            await WAYS[way](ctx, refund)
        except PolicyDenied as error:
            return error.message
        return "went on"

    home = MemoryStorage()
    async with hosting(home, Owner(f), guard=PolicyEngine([MOST_50])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
        if way != "a model":
            assert "amount is 500, and at most 50 is allowed" in jobs.agent.done["j"]
    assert made == []
    denied = [entry for entry in entries(home) if isinstance(entry, Intent) and entry.name == "refund"]
    assert len(denied) == 1


async def test_a_bound_holds_for_the_defaults_of_models_by_each_name_and_also_if_a_dict_is_given() -> None:
    for field in ("order.money.amount", "order.money.betrag"):
        policy = PolicyEngine([ConstraintPolicy(["pay"], field, max=50)])
        for order in (
            Order(id="o"),
            Order(id="o", money=Money(betrag=60)),
            {"id": "o"},
            {"id": "o", "money": {"betrag": 60}},
            {"id": "o", "money": {"amount": 60}},
            {"id": "o", "money": {"amount": 1, "betrag": 60}},
        ):
            assert (await policy.check_tool(pay, arguments={"order": order})).decision == "deny", (field, order)
        for order in (Order(id="o", money=Money(betrag=5)), {"id": "o", "money": {"betrag": 5}}):
            assert (await policy.check_tool(pay, arguments={"order": order})).decision == "allow", (field, order)
    for field in ("lines.*.unit_price", "lines.*.unitPrice"):
        policy = PolicyEngine([ConstraintPolicy(["bill"], field, max=50)])
        for lines in ([Line(5), Line()], [{"name": "a"}], [{"unitPrice": 60}], [{"unit_price": 60}]):
            assert (await policy.check_tool(bill, arguments={"lines": lines})).decision == "deny", (field, lines)
    policy = PolicyEngine([ConstraintPolicy(["bill"], "parcel.weight", max=50)])
    assert (await policy.check_tool(bill, arguments={"lines": [], "parcel": Parcel()})).decision == "deny"
    assert (await policy.check_tool(bill, arguments={"lines": [], "parcel": {}})).decision == "deny"
    assert (await policy.check_tool(bill, arguments={"lines": []})).decision == "allow"


class Point(NamedTuple):
    x: int
    y: int = 7


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        ("to.*", "eve", "to.* is missing: a text"),
        ("to.*", ["bob", "eve"], "to.* is 'eve'"),
        ("to.*", deque(["eve"]), "to.* is 'eve'"),
        ("to.*", {"eve": 1}.keys(), "to.* is 'eve'"),
        ("to.*", iter(["eve"]), "to.* is missing"),
        ("to.*", (each for each in ["eve"]), "to.* is missing"),
        ("to.*", Parcel(), "to.* is missing"),
        ("to.*.name", [{"name": "bob"}, "eve"], "to.*.name is missing"),
        ("to.name", [{"name": "eve"}], "to.name is missing"),
        ("to.name", '{"name": "eve"}', "to.name is missing"),
        ("to.*", ["bob"], ""),
        ("to.*", deque(["bob"]), ""),
        ("to.*", None, ""),
        ("to.name", {"id": 1}, ""),
        ("to.name", Parcel(), ""),
        ("to.5", ["bob"], ""),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
async def test_a_value_in_which_a_path_cannot_be_followed_is_denied(
    remote: bool, field: str, given: Any, reason: str
) -> None:
    """`to: str | list[str]`: a rule about each of the list let a text pass in silence, and an iterator."""

    @tool
    def send(to: Any) -> None: ...

    if remote:
        if not isinstance(given, str | list | dict | None):
            pytest.skip("a server gets JSON")
        schema = {"type": "object", "properties": {"to": {}}}
        send = dataclasses.replace(send, parameters=OfferedArguments("send", "", schema))
    for otherwise in ("deny", "warn"):
        policy = PolicyEngine([ConstraintPolicy(["send"], field, allowed=["bob"], otherwise=otherwise)])
        result = await policy.check_tool(send, arguments={"to": given})
        lost = "missing" in reason
        assert result.decision == (("deny" if lost else otherwise) if reason else "allow")
        assert reason in result.reason


async def test_a_bound_of_a_named_tuple_holds_for_a_plain_tuple() -> None:
    @tool
    def move(to: Point) -> None: ...

    policy = PolicyEngine([ConstraintPolicy(["move"], "to.y", max=5)])
    for to, decision in (
        (Point(1), "deny"),
        ((1, 9), "deny"),
        ([1, 9], "deny"),
        ((1, 2), "allow"),
        (Point(1, 2), "allow"),
    ):
        assert (await policy.check_tool(move, arguments={"to": to})).decision == decision, to
    assert (await policy.check_tool(move, arguments={"to": (1,)})).decision == "deny"


async def test_further_arguments_are_judged_by_the_names_of_their_parameters() -> None:
    """`"amounts.*"` and `"more.fee"` were accepted at the start, and limited nobody."""

    @tool
    def pay(*amounts: int, **more: int) -> None: ...

    for field in ("amounts.*", "amounts.1", "more.fee", "more.*", "fee"):
        policy = PolicyEngine([ConstraintPolicy(["pay"], field, max=5)])
        for amount, decision in ((9, "deny"), (2, "allow")):
            given = {"tool": pay, "args": (1, amount), "kwargs": {"fee": amount}, "effect_class": "unsafe"}
            call = GuardedCall(EffectId("j", 1), "tool", "pay", "app.agent", Behalf("acme", "ada"), **given)
            found = policy.decide(call)
            assert isinstance(found, GuardVerdict)
            assert found.decision == decision, field
    assert lacks(pay, ["amounts", "x"]) == "x"
    assert lacks(pay, ["more", "fee", "x"]) == "x"
    assert types_at(pay, ["amounts", "*"]) == types_at(pay, ["more", "fee"]) == [int]


async def test_an_argument_that_is_none_by_default_passes_no_bound_and_concerns_no_other_rule() -> None:
    @tool
    def send(amount: int | None = None, cc: str | None = None) -> None: ...

    for rule, decision in (
        (ConstraintPolicy(["send"], "amount", max=50), "deny"),
        (ConstraintPolicy(["send"], "cc", pattern=".*@acme.com"), "allow"),
        (ConstraintPolicy(["send"], "cc", pattern=".*@acme.com", required=True), "deny"),
    ):
        assert (await PolicyEngine([rule]).check_tool(send)).decision == decision
    pattern = PolicyEngine([ConstraintPolicy(["send"], "cc", pattern=".*@acme.com")])
    assert (await pattern.check_tool(send, arguments={"cc": None})).decision == "deny", "it was given"


async def test_rules_of_ones_own_and_cedar_see_defaults_under_each_name() -> None:
    seen: list[Any] = []

    def look(call: GuardedCall) -> None:
        seen.append(dict(call.arguments))

    refund, _ = refund_with()
    await PolicyEngine([look]).check_tool(refund, arguments={"order": "o-1"})
    assert seen == [{"order": "o-1", "amount": 500}]
    pytest.importorskip("cedarpy")
    for name in ("amount", "betrag"):
        cedar = CedarPolicy(
            f"permit(principal, action, resource) when {{ context.arguments.order.money.{name} <= 50 }};"
        )
        for order, decision in (
            (Order(id="o"), "deny"),
            ({"id": "o"}, "deny"),
            (Order(id="o", money={"betrag": 5}), "allow"),
        ):
            result = await PolicyEngine([cedar]).check_tool(pay, arguments={"order": order})
            assert result.decision == decision, result.reason


async def test_aliases_of_parameters_hold_for_functions_that_pydantic_checks() -> None:
    made: list[int] = []

    @pydantic.validate_call
    def refund(order: str, amount: Annotated[int, pydantic.Field(alias="betrag", default=500)]) -> None:
        made.append(amount)

    policy = PolicyEngine([MOST_50])
    for arguments in ({"order": "o"}, {"order": "o", "betrag": 60}):
        assert (await policy.check_tool(tool(refund), arguments=arguments)).decision == "deny"
    assert (await policy.check_tool(tool(refund), arguments={"order": "o", "betrag": 5})).decision == "allow"


async def test_a_default_of_a_server_passes_no_bound_however_its_schema_says_it() -> None:
    """A null, a part of `allOf` (pydantic 1), and a choice of `oneOf`: such defaults were not judged, so the server paid
    what the model had left out.
    """
    pay = {"type": "object", "properties": {"amount": {"type": "integer", "default": 500}}}
    bonus = {"type": "object", "properties": {"total": {"type": "integer", "default": 500}}}
    nullable = {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}
    for schema, field, given in (
        (nullable, "p", {}),
        ({"allOf": [{"$ref": "#/$defs/Pay"}]}, "p.amount", {"p": {}}),
        ({"allOf": [{"$ref": "#/$defs/Pay"}, {"title": "P"}]}, "p.amount", {"p": {}}),
        ({"oneOf": [{"$ref": "#/$defs/Pay"}, bonus]}, "p.amount", {"p": {}}),
        (
            {"type": "array", "items": {"oneOf": [{"$ref": "#/$defs/Pay"}, bonus]}},
            "p.*.amount",
            {"p": [{"amount": 5}, {}]},
        ),
        ({"type": "object", "additionalProperties": {"anyOf": [pay, bonus]}}, "p.*.total", {"p": {"x": {}}}),
    ):
        json = {"type": "object", "properties": {"p": schema}, "$defs": {"Pay": pay}}
        served_pay = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
        result = await PolicyEngine([ConstraintPolicy(["pay"], field, max=50)]).check_tool(served_pay, arguments=given)
        assert result.decision == "deny", (schema, given)
        wide = PolicyEngine([ConstraintPolicy(["pay"], field, max=1000)])
        assert ((await wide.check_tool(served_pay, arguments=given)).decision == "allow") is (schema is not nullable)


async def test_the_default_of_a_server_is_judged_and_sent_with_the_call_also_after_a_restart() -> None:
    made: list[Any] = []

    async def f(ctx: DurableContext) -> Any:
        try:
            return await ctx.call(served(made, default), order={"id": "o"})
        except PolicyDenied as error:
            return error.message

    for said, guard, sent in (
        (500, PolicyEngine([MOST_50]), []),
        (40, PolicyEngine([MOST_50]), [{"order": {"id": "o", "fee": 70}, "amount": 40}]),
        (40, PolicyEngine([ConstraintPolicy(["refund"], "order.fee", max=50)]), []),
        (40, PolicyEngine([ToolPolicy(["refund"])]), [{"order": {"id": "o"}}]),
    ):
        default = said
        made.clear()
        async with hosting(MemoryStorage(), Owner(f), guard=guard) as jobs:
            jobs.begin("j")
            await jobs.over("j")
        assert made == sent
    made.clear()
    home, ask = MemoryStorage(), PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    default = 500
    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": {"id": "o", "fee": 70}, "amount": 500}]
    default = 9
    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    assert made == [{"order": {"id": "o", "fee": 70}, "amount": 500}]


async def test_a_default_that_nobody_can_record_neither_denies_a_call_nor_reaches_it_as_another_object() -> None:
    nothing, made = object(), list[Any]()

    @tool
    def refund(order: str, amount: int = 5, client: Any = nothing) -> None:
        made.append(client is nothing)

    async def f(ctx: DurableContext) -> None:
        await ctx.call(refund, "4711")

    policy = PolicyEngine([MOST_50, RedactionPolicy(["4711"]), ToolPolicy(["refund"])])
    async with hosting(MemoryStorage(), Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded"
    assert made == [True]


# -- misspelt fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "field", "words", "hint"),
    [
        ("pay", "ordr", "tool pay has no ordr", "did you mean 'order'"),
        ("pay", "order.mony.amount", "tool pay has no order.mony", "did you mean 'money'"),
        ("pay", "order.money.amuont", "tool pay has no order.money.amuont", "did you mean 'amount'"),
        ("bill", "lines.*.unit_prize", "tool bill has no lines.*.unit_prize", "'unit_price'"),
        ("bill", "lines.unit_price", "tool bill has no lines.unit_price", "it has"),
        ("bill", "parcel.wieght", "tool bill has no parcel.wieght", "did you mean 'weight'"),
        ("keep", "note.txt", "tool keep has no note.txt", "did you mean 'text'"),
        ("keep", "by.ann.money.amuont", "tool keep has no by.ann.money.amuont", "did you mean 'amount'"),
        ("refund", "order.fees", "tool refund has no order.fees", "did you mean 'fee'"),
    ],
)
async def test_a_misspelt_path_is_refused_at_the_start_and_denies_calls(
    named: str, field: str, words: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_MADE", {})  # without the tools that other tests have made under these names
    made = {"pay": pay, "bill": bill, "keep": keep, "refund": served([])}[named]
    note_tool(made)
    policy = PolicyEngine([ConstraintPolicy([named], field, max=5)])
    with pytest.raises(UserError) as caught:
        policy.check_names([], [], "app desk")
    assert words in caught.value.message
    assert hint in caught.value.hint
    given = {"pay": {"order": Order(id="o")}, "bill": {"lines": []}, "keep": {"note": {}}, "refund": {"order": {}}}
    result = await policy.check_tool(made, arguments=given[named])
    if "*" not in field:
        assert result.decision == "deny"
        assert "has no argument" in result.reason


def test_a_tool_that_only_an_agent_keeps_is_known_at_the_start() -> None:
    @tool
    def only_here(amount: int) -> None: ...

    policy = PolicyEngine([ConstraintPolicy(["only_here"], "amuont", max=5)])
    kept = Agent(ExecutionEngine(ScriptedProvider("yes")), tools=[only_here], tool_timeout="5s")
    del only_here
    gc.collect()
    assert kept.tools["only_here"].timeout_s == 5
    with pytest.raises(UserError, match="tool only_here has no amuont"):
        policy.check_names([], [], "app desk")


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ("pay", "order.money.betrag"),
        ("bill", "lines.0.unitPrice"),
        ("bill", "parcel.weight"),
        ("keep", "note.text"),
        ("keep", "by.ann.money.currency"),
    ],
)
def test_a_path_to_a_field_by_one_of_its_names_lets_the_start_go_on(named: str, field: str) -> None:
    PolicyEngine([ConstraintPolicy([named], field, required=True)]).check_names([], [], "app desk")


# -- redaction ----------------------------------------------------------------------------------------------------------


class Kind(enum.Enum):
    PLAIN = "plain"


class Person(pydantic.BaseModel, frozen=True):
    name: str
    kind: Kind = Kind.PLAIN
    secret: pydantic.SecretStr = pydantic.SecretStr("")
    site: pydantic.HttpUrl | None = None
    friends: list["Person"] = []
    tags: set[str] = set()


@dataclasses.dataclass(frozen=True)
class Kept:
    text: str
    made: str = dataclasses.field(init=False, default="4711")

    def __post_init__(self) -> None:
        assert "*" not in self.text


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        (Person(name="no 4711"), Person(name="no ***")),
        (Person(name="a", friends=[Person(name="4711")]), Person(name="a", friends=[Person(name="***")])),
        (Person(name="a", tags={"4711"}), Person(name="a", tags={"***"})),
        (Person(name="a", secret="4711"), Person(name="a", secret="***")),
        (Line(name="4711"), Line(name="***")),
        ({"note": [Note(text="4711")]}, {"note": [{"text": "***"}]}),
        ((b"4711", {"4711"}, frozenset({"4711"})), (b"***", {"***"}, frozenset({"***"}))),
        (msgspec.UNSET, msgspec.UNSET),
    ],
)
async def test_texts_are_hidden_in_models_and_everything_that_a_tool_takes(given: Any, hidden: Any) -> None:
    got: list[Any] = []

    @tool
    def store(value: Any) -> None:
        got.append(value)

    async def f(ctx: DurableContext) -> None:
        await ctx.call(store, given if given is not msgspec.UNSET else Person(name="x"))

    home = MemoryStorage()
    async with hosting(home, Owner(f), guard=PolicyEngine([RedactionPolicy(["4711"])])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert got == [hidden if given is not msgspec.UNSET else Person(name="x")]
    intent = next(entry for entry in entries(home) if isinstance(entry, Intent))
    assert "4711" not in str(unpack(intent.body))


def test_fields_that_a_class_makes_itself_are_hidden_too() -> None:
    shown = mask(Kept("4711"), ["4711"])
    assert (shown.text, shown.made) == ("***", "***")
    assert mask(Person(name="a", site="https://acme.com/4711"), ["4711"]).site == "https://acme.com/***"


async def test_texts_are_hidden_in_the_defaults_of_a_tool() -> None:
    got: list[Any] = []

    @tool
    def mail(text: str, /, footer: str = "card 4711", *, cc: str = "4711@acme.com") -> None:
        got.append((text, footer, cc))

    async def f(ctx: DurableContext) -> None:
        await ctx.call(mail, "hello")

    home = MemoryStorage()
    async with hosting(home, Owner(f), guard=PolicyEngine([RedactionPolicy(["4711"])])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert got == [("hello", "card ***", "***@acme.com")]


# -- questions -----------------------------------------------------------------------------------------------------------


async def test_a_question_shows_all_arguments_and_the_approved_call_is_made_with_them_after_a_deploy_too() -> None:
    home, ask = MemoryStorage(), PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    first, _ = refund_with(500)
    second, made = refund_with(9)

    def job(refund: Tool) -> Any:
        async def f(ctx: DurableContext) -> Any:
            return await ctx.call(refund, "o-1")

        return f

    async with hosting(home, Owner(job(first)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": "o-1", "amount": 500}]
    async with hosting(home, Owner(job(second)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.done["j"] == 500
    assert made == [("o-1", 500)]


class Fee(msgspec.Struct, omit_defaults=True, tag=True):
    cents: int = 70


async def test_a_question_shows_the_defaults_that_a_struct_leaves_out() -> None:
    @tool
    def charge(fees: list[Fee]) -> None: ...

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(charge, [Fee(), Fee(9)])

    home = MemoryStorage()
    policy = PolicyEngine([ToolPolicy(["charge"], require_approval=True)])
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    shown = [{"type": "Fee", "cents": 70}, {"type": "Fee", "cents": 9}]
    assert open_question(home).payload["arguments"] == [[], {"fees": shown}]


async def test_a_question_of_an_older_version_is_made_with_what_it_shows_and_the_default_of_today() -> None:
    """Older journals have the arguments that the function gave: the rest is what the tool does by itself."""
    home, ask = MemoryStorage(), PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    refund, made = refund_with(9)

    async def f(ctx: DurableContext) -> Any:
        return await ctx.call(refund, "o-1")

    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    older = MemoryStorage(home.clock)
    older.identity, older.key = home.identity, home.key
    journal = MemoryJournal(older)
    for entry in entries(home):  # as they were written before
        asks = isinstance(entry, Intent) and entry.kind == "call"
        journal.append(msgspec.structs.replace(entry, body=pack([["o-1"], {}], "it")) if asks else entry)
    journal.close()
    home = older
    question = open_question(home)
    assert question.payload["arguments"] == [["o-1"], {}]
    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    assert made == [("o-1", 9)]


async def test_an_approved_call_of_a_tool_that_takes_no_such_argument_any_more_is_not_made() -> None:
    home, ask = MemoryStorage(), PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    first, made = refund_with(500)

    @tool(name="refund")
    def second(order: str) -> None:
        made.append(order)

    def job(refund: Tool) -> Any:
        async def f(ctx: DurableContext) -> Any:
            try:
                return await ctx.call(refund, "o-1")
            except PolicyDenied as error:
                return error.message

        return f

    async with hosting(home, Owner(job(first)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
    async with hosting(home, Owner(job(second)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert "it was judged with amount=500, and refund has no argument amount now" in jobs.agent.done["j"]
    assert made == []


async def test_a_call_is_made_with_the_default_by_which_it_was_judged_after_a_crash_and_a_deploy() -> None:
    @tool(effect="idempotent", name="refund")
    def first(order: str, amount: int = 40) -> int:
        return amount

    @tool(effect="idempotent", name="refund")
    def second(order: str, amount: int = 500) -> int:
        return amount

    def job(refund: Tool) -> Any:
        async def f(ctx: DurableContext) -> Any:
            return await ctx.call(refund, "o-1")

        return f

    home = MemoryStorage()
    async with hosting(home, Owner(job(first)), guard=PolicyEngine([MOST_50])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == 40
    for guard in (PolicyEngine([MOST_50]), None):
        crashed = prefix(home, 2)  # BEGIN and INTENT
        async with hosting(crashed, Owner(job(second)), guard=guard) as jobs:
            await jobs.over("j")
            assert jobs.agent.done["j"] == 40


def test_a_rule_by_name_alone_reads_no_arguments() -> None:
    refund, _ = refund_with()
    call = GuardedCall(EffectId("j", 1), "tool", "refund", tool=refund, args=("o-1",))
    verdict = PolicyEngine([ToolPolicy(["refund"])]).decide(call)
    assert isinstance(verdict, GuardVerdict)
    assert verdict.decision is Decision.ALLOW
    assert not call.was_seen
