"""What a policy judges, a person is shown and a tool gets are the same arguments: defaults too, under each name of a field."""

import asyncio
import dataclasses
import enum
import gc
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial, update_wrapper, wraps
from itertools import count
from typing import Annotated, Any, NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from unit.jobs.hosting import Agent as Owner
from unit.jobs.hosting import entries, hosting, prefix

from sabot import App
from sabot.agents import (
    BudgetSpec,
    CedarPolicy,
    ConstraintPolicy,
    Decision,
    DurableContext,
    ExecutionRequest,
    GuardedCall,
    GuardVerdict,
    ModelPolicy,
    PolicyDenied,
    PolicyEngine,
    RedactionPolicy,
    ReplayMode,
    ReplayPlayer,
    RuntimeKernel,
    ToolPolicy,
    fork,
    tool,
)
from sabot.agents.job_view import JobView
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls import names
from sabot.engine.calls.arguments import lacks, types_at
from sabot.engine.calls.edits import edited_arguments
from sabot.engine.calls.effects import EffectId, digest
from sabot.engine.calls.names import note_tool
from sabot.engine.calls.tools import Tool
from sabot.errors import UserError
from sabot.jobs.guard import Behalf, decode_verdict, encode_verdict
from sabot.jobs.masking import mask
from sabot.jobs.values import pack, unpack
from sabot.journal import Letter
from sabot.journal.entries import Attempt, Intent
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import (
    Agent,
    Effect,
    ExecutionEngine,
    ModelUnavailable,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    assistant,
)
from sabot.mcp.offers import OfferedArguments
from tools.agent_tools import started, until

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


def pending(home: MemoryStorage) -> list[Any]:
    return [each for each in JobView.of(MemoryReader(home)).actions.values() if each.status == "pending"]


def open_question(home: MemoryStorage) -> Any:
    return pending(home)[0]


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
    assert (await policy.check_tool(bill, arguments={"lines": []})).decision == "deny", "it sends what it likes"


class Point(NamedTuple):
    x: int
    y: int = 7


class Currency(enum.Enum):
    EUR = "eur"


class Unset: ...


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
        ("to.*", None, "to.* is None"),
        ("to.name", None, "to.name is None"),
        ("to.city", Currency.EUR, "to.city is missing"),
        ("to.name", object(), "to.name is missing"),
        ("to.name", Unset(), "to.name is missing"),
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


@pytest.mark.parametrize("is_async", [True, False])
async def test_each_attempt_of_a_call_gets_what_was_judged(is_async: bool, memory_url: str) -> None:
    """The first attempt had changed the dict, and the second one paid the sum that nobody had judged."""
    paid: list[int] = []

    def pays(order: dict[str, int]) -> str:
        paid.append(order["amount"])
        order["amount"] = 500
        if len(paid) < 3:
            raise ConnectionError("reset")
        return "paid"

    async def pays_later(order: dict[str, int]) -> str:
        return pays(order)

    pay = tool(effect="idempotent", retries=3, backoff="1ms", name="pay")(pays_later if is_async else pays)
    script = [assistant("", ToolCall("1", "pay", '{"order": {"amount": 5}}')), "done"]
    agent, done = Agent(ExecutionEngine(ScriptedProvider(script)), tools=[pay]), list[str]()
    app = App("shop", memory_url, policy=PolicyEngine([ConstraintPolicy(["pay"], "order.amount", max=50)]))

    @app.agent("orders")
    async def handle(ctx: Any) -> None:
        done.append((await agent.run("go")).content)

    async with started(app):
        MemoryBroker.get(memory_url).publish("orders", [{"a": 1}])
        await until(lambda: done)
    assert (paid, done) == ([5, 5, 5], ["done"])


def _listed(amounts: list[int]) -> None: ...
def _iterated(amounts: Iterable[int]) -> None: ...
def _listed_or_one(amounts: list[int] | int) -> None: ...
def _by_word(amounts: dict[str, int]) -> None: ...
def _by_number(amounts: dict[int, int]) -> None: ...
def _by_currency(amounts: dict[Currency, int]) -> None: ...
def _either(amounts: list[int] | dict[str, int]) -> None: ...
def _untyped(amounts) -> None: ...  # type: ignore[no-untyped-def]


_LIST_SCHEMA = {"type": "object", "properties": {"amounts": {"type": ["array", "null"], "items": {"type": "integer"}}}}
_WORDS_SCHEMA = {"type": "object", "properties": {"amounts": {"additionalProperties": {"type": "integer"}}}}
_OPEN_SCHEMA = {"type": "object", "properties": {"amounts": {}}}


@pytest.mark.parametrize(
    ("takes", "field", "amounts", "decision"),
    [
        (_listed, "amounts.*", {500: 1}, "deny"),
        (_listed, "amounts.*", [5, 500], "deny"),
        (_listed, "amounts.*", [5], "allow"),
        (_listed, "amounts.0", {0: 500}, "deny"),
        (_iterated, "amounts.*", {500: 1}, "deny"),
        (_listed_or_one, "amounts.*", {500: 1}, "deny"),
        (_by_word, "amounts.*", {"rent": 5}, "allow"),
        (_by_word, "amounts.*", [500], "deny"),
        (_by_word, "amounts.rent", [500], "deny"),
        (_by_number, "amounts.7", {7: 500}, "deny"),
        (_by_number, "amounts.7", {7.0: 500, "7": 5}, "deny"),
        (_by_number, "amounts.7", {7: 5, 8: 500}, "allow"),
        (_by_currency, "amounts.eur", {Currency.EUR: 500}, "deny"),
        (_by_currency, "amounts.EUR", {Currency.EUR: 500}, "deny"),
        (_by_currency, "amounts.eur", {Currency.EUR: 5}, "allow"),
        (_either, "amounts.*", {"rent": 5}, "allow"),
        (_untyped, "amounts.*", {500: 1}, "deny"),
        (_untyped, "amounts.*", {"500": 1}, "deny"),
        (_untyped, "amounts.*", {"rent": 5}, "allow"),
        (_untyped, "amounts.*", {"rent": 500}, "deny"),
        (_LIST_SCHEMA, "amounts.*", {"500": 1}, "deny"),
        (_LIST_SCHEMA, "amounts.0", {"0": 500}, "deny"),
        (_LIST_SCHEMA, "amounts.*", None, "deny"),
        (_WORDS_SCHEMA, "amounts.*", {"500": 1}, "allow"),
        (_OPEN_SCHEMA, "amounts.*", {"500": 1}, "deny"),
        (_OPEN_SCHEMA, "amounts.*", {"rent": 5}, "allow"),
    ],
)
async def test_a_dict_is_judged_as_the_tool_reads_it(takes: Any, field: str, amounts: Any, decision: str) -> None:
    """`for each in amounts` gives the keys of a dict, and the rule had judged its values."""
    if isinstance(takes, dict):
        pay = dataclasses.replace(tool(name="pay")(_untyped), parameters=OfferedArguments("pay", "", takes))
    else:
        pay = tool(name="pay")(takes)
    policy = PolicyEngine([ConstraintPolicy(["pay"], field, max=50)])
    assert (await policy.check_tool(pay, arguments={"amounts": amounts})).decision == decision


async def test_the_words_that_a_tool_without_types_may_read_are_judged() -> None:
    @tool
    def send(to: Any) -> None: ...

    policy = PolicyEngine([ConstraintPolicy(["send"], "to.*", pattern=".*@acme.com")])
    for to, decision in (({"eve@evil.com": "x@acme.com"}, "deny"), ({"a@acme.com": "x@acme.com"}, "allow")):
        assert (await policy.check_tool(send, arguments={"to": to})).decision == decision, to


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


def test_a_tool_of_whose_arguments_two_may_have_one_name_is_refused() -> None:
    """`pay(500, amount=5)` was judged, and shown, as a payment of 5."""
    seen: list[Any] = []

    def pay(amount: int = 500, /, **note: int) -> None:
        """Pays the amount."""

    class Desk:
        def pay(self, /, **amounts: int) -> None:
            """Pays all amounts."""
            seen.append(amounts)

    for each in (pay, partial(pay), partial(pay, note=3)):
        with pytest.raises(UserError, match=r"amount is given by place alone, and \*\*note may have another"):
            tool(name="pay")(each)
    tool(Desk().pay)(amount=5)
    assert seen == [{"amount": 5}]


@pytest.mark.parametrize(
    ("path", "args", "named"),
    [
        ("amounts.*", ("ad", 500), {"amounts": [5]}),
        ("amounts.*", ("ad", 500), {"*": (5,)}),
        ("more.fee", ("ad",), {"fee": 500, "more": {"fee": 5}}),
    ],
    ids=["*args", "the star", "**kwargs"],
)
async def test_further_arguments_hide_behind_no_argument_of_their_name(path: str, args: Any, named: Any) -> None:
    """The bound was about the one that has the name, and the others were paid."""
    paid: list[Any] = []

    @tool
    async def spend(ad: str, *amounts: int, **more: Any) -> None:
        paid.append((ad, amounts, more))

    policy = PolicyEngine([ConstraintPolicy(["spend"], path, max=50)])
    async with hosting(MemoryStorage(), Owner(lambda ctx: ctx.call(spend, *args, **named)), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert paid == []
    for each in ({"amounts": 5}, {"more": {"fee": 5}}):
        with pytest.raises(UserError, match="so no argument can be given by the name"):
            edited_arguments(spend, ("ad", 7), {"fee": 3}, each)
    assert edited_arguments(spend, ("ad", 7), {"fee": 3}, {"fee": 4}) == (("ad", 7), {"fee": 4})


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


OPTIONAL = {"type": "object", "properties": {"amount": {"type": "integer"}, "to": {"type": "string"}}}
CARD = {"properties": {"kind": {"const": "card"}, "amount": {"type": "integer"}}, "required": ["kind"]}
VOUCHER = {"properties": {"kind": {"const": "voucher"}, "code": {"type": "string"}}, "required": ["kind"]}
WHOLE = {"properties": {"amount": {"type": "integer"}}, "required": ["amount"]}


@pytest.mark.parametrize(
    ("schema", "given", "decision"),
    [
        (OPTIONAL, {}, "deny"),
        (OPTIONAL, {"amount": 5}, "allow"),
        ({"$ref": "#/$defs/Optional"}, {"to": "ann"}, "deny"),
        ({"allOf": [{"title": "P"}, OPTIONAL]}, {}, "deny"),
        ({"oneOf": [CARD, VOUCHER]}, {"kind": "card"}, "deny"),
        ({"oneOf": [CARD, VOUCHER]}, {"kind": "voucher"}, "allow"),
        ({"oneOf": [WHOLE, VOUCHER]}, {"kind": "voucher"}, "allow"),
        ({"additionalProperties": {"type": "integer"}}, {}, "allow"),
    ],
)
async def test_what_a_server_takes_for_an_optional_argument_is_not_known(
    schema: Any, given: Any, decision: str
) -> None:
    """A model left the amount out, and the server paid its own default, of which the schema says nothing."""
    json = {"type": "object", "properties": {"p": schema}, "required": ["p"], "$defs": {"Optional": OPTIONAL}}
    served = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
    for bound in ({"max": 50}, {"min": 1}, {"allowed": [5]}, {"denied": [7, None]}):
        policy = PolicyEngine([ConstraintPolicy(["pay"], "p.amount", **bound)])
        result = await policy.check_tool(served, arguments={"p": given})
        assert result.decision == decision, result.reason
        assert decision == "allow" or "amount is left out, and what pay takes then is not known" in result.reason
        assert ("allowed=[…, None] lets it be left out" in result.reason) is ("allowed" in bound and decision == "deny")
    asks = PolicyEngine([ConstraintPolicy(["pay"], "p.amount", max=50, otherwise="ask")])
    assert ((await asks.check_tool(served, arguments={"p": given})).decision == "ask") is (decision == "deny")
    for bound in ({"denied": [7]}, {"allowed": [5, None]}):
        values = PolicyEngine([ConstraintPolicy(["pay"], "p.amount", **bound)])
        assert (await values.check_tool(served, arguments={"p": given})).decision == "allow"


async def test_a_key_that_may_be_left_out_passes_no_bound() -> None:
    class Wish(TypedDict, total=False):
        amount: int

    class Gift(msgspec.Struct):
        amount: int | msgspec.UnsetType = msgspec.UNSET

    @tool
    async def pay(wish: Wish, gift: Gift) -> None: ...

    for field, given, decision in (
        ("wish.amount", Wish(), "deny"),
        ("wish.amount", Wish(amount=5), "allow"),
        ("gift.amount", Gift(), "deny"),
        ("gift.amount", Gift(5), "allow"),
    ):
        arguments = {"wish": Wish(amount=1), "gift": Gift(1)} | {field.partition(".")[0]: given}
        for bound in ({"max": 50}, {"allowed": [5]}):
            policy = PolicyEngine([ConstraintPolicy(["pay"], field, **bound)])
            result = await policy.check_tool(pay, arguments=arguments)
            assert result.decision == decision, (field, result.reason)
        listed = PolicyEngine([ConstraintPolicy(["pay"], field, allowed=[5, None])])
        assert (await listed.check_tool(pay, arguments=arguments)).decision == "allow"


async def test_a_default_of_none_is_allowed_if_it_is_in_the_list() -> None:
    """`transfer("ann")` took the currency of the account, although only EUR was allowed."""
    made: list[Any] = []

    @tool
    async def transfer(to: str, currency: str | None = None) -> str:
        made.append(currency)
        return "done"

    for bounds, arguments, decision in (
        ({"allowed": ["EUR"]}, {}, "deny"),
        ({"allowed": ["EUR"]}, {"currency": None}, "deny"),
        ({"allowed": ["EUR"]}, {"currency": "EUR"}, "allow"),
        ({"allowed": ["EUR"], "otherwise": "ask"}, {}, "ask"),
        ({"allowed": ["EUR", None]}, {}, "allow"),
        ({"allowed": ["EUR", None]}, {"currency": None}, "allow"),
        ({"allowed": ["EUR", None], "required": True}, {}, "deny"),
        ({"denied": ["USD"]}, {}, "allow"),
        ({"denied": ["USD", None]}, {}, "deny"),
        ({"pattern": "E.."}, {}, "allow"),
        ({"max_length": 3}, {}, "allow"),
    ):
        policy = PolicyEngine([ConstraintPolicy(["transfer"], "currency", **bounds)])
        result = await policy.check_tool(transfer, arguments={"to": "ann"} | arguments)
        assert result.decision == decision, (bounds, arguments, result.reason)
        if decision != "allow" and not arguments and "required" not in bounds and "denied" not in bounds:
            assert result.reason == (
                "currency is None, and allowed are 'EUR' (tool transfer); allowed=[…, None] lets it be left out"
            )
    owner = Owner(lambda ctx: ctx.call(transfer, "ann"))
    guard = PolicyEngine([ConstraintPolicy(["transfer"], "currency", allowed=["EUR"])])
    async with hosting(MemoryStorage(), owner, guard=guard) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert made == []


class Due(TypedDict):
    amount: int


@pytest.mark.parametrize("made", [Money, Parcel, Due, Line])
async def test_none_in_place_of_an_object_passes_no_bound(made: Any) -> None:
    """`m=None` has no `m.amount`, so the bound had nothing to judge, and the tool paid what it takes without an order."""
    name = {Parcel: "weight", Line: "unit_price"}.get(made, "amount")
    paid: list[Any] = []

    @tool
    async def pay(m: made | None = None, more: list[made | None] | None = None) -> None:
        paid.append(500 if m is None and not more else m)

    def decide(field: str, arguments: dict[str, Any], **bounds: Any) -> Any:
        return PolicyEngine([ConstraintPolicy(["pay"], field, **bounds)]).check_tool(pay, arguments=arguments)

    good = {"amount": 5} if made is Due else made(5) if made is not Money else Money(betrag=5)
    for field, arguments in (
        (f"m.{name}", {}),
        (f"m.{name}", {"m": None}),
        (f"more.*.{name}", {"more": [good, None]}),
        (f"more.*.{name}", {"more": None}),
        (f"more.1.{name}", {"more": [good, None]}),
    ):
        for bounds in ({"max": 50}, {"min": 1}):
            result = await decide(field, arguments, **bounds)
            assert (result.decision, result.reason) == ("deny", f"{field} is None, which is no number (tool pay)")
            assert (await decide(field, arguments, **bounds, otherwise="ask")).decision == "ask"
            assert "is missing" in (await decide(field, arguments, **bounds, required=True)).reason
        # what is left out is judged by bounds and lists alone, and what is given by every option
        assert (await decide(field, arguments, max_length=5)).decision == ("deny" if arguments else "allow")
        assert (await decide(field, arguments, allowed=[5])).decision == "deny"
        assert (await decide(field, arguments, allowed=[5], required=True)).decision == "deny"
        assert "has no argument" in (await decide(f"{field}s", arguments, max=50)).reason
        assert "has no argument" in (await decide(f"{field}s", arguments, allowed=[5])).reason
        others = PolicyEngine([ConstraintPolicy(["p*"], f"{field}s", max=50)])
        assert (await others.check_tool(pay, arguments=arguments)).decision == "allow", "it has no such field"
    for field, arguments in ((f"m.{name}", {"m": good}), (f"more.*.{name}", {"more": [good]})):
        assert (await decide(field, arguments, max=50)).decision == "allow"
    rule = PolicyEngine([ConstraintPolicy(["pay"], f"m.{name}", max=50)])
    for arguments in ({}, {"m": None}):
        owner = Owner(lambda ctx, arguments=arguments: ctx.call(pay, **arguments))
        async with hosting(MemoryStorage(), owner, guard=rule) as jobs:
            jobs.begin("j")
            await jobs.over("j")
    assert paid == []


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"$ref": "#/$defs/Optional"}, {"type": "null"}]},
        {"anyOf": [{"$ref": "#/$defs/Optional"}, {"type": "null"}], "default": None},
        {"type": ["object", "null"], "properties": {"amount": {"type": "integer", "default": 5}}},
    ],
)
async def test_null_in_place_of_an_object_of_a_server_passes_no_bound(schema: Any) -> None:
    several = {"type": ["array", "null"], "items": schema}
    json = {"type": "object", "properties": {"p": schema, "more": several}, "$defs": {"Optional": OPTIONAL}}
    served = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
    for field, given in (
        ("p.amount", {}),
        ("p.amount", {"p": None}),
        ("more.*.amount", {"more": None}),
        ("more.*.amount", {"more": [{"amount": 5}, None]}),
    ):
        result = await PolicyEngine([ConstraintPolicy(["pay"], field, max=50)]).check_tool(served, arguments=given)
        assert result.decision == "deny"
        assert "is None" in result.reason or "left out" in result.reason
    for field in ("p.amuont", "more.*.amuont"):
        wrong = PolicyEngine([ConstraintPolicy(["pay"], field, max=50)])
        given = {"p": None, "more": [None]}
        assert (await wrong.check_tool(served, arguments=given)).decision == "deny"
    fine = {"p": {"amount": 5}, "more": [{"amount": 5}]}
    for field in ("p.amount", "more.*.amount"):
        policy = PolicyEngine([ConstraintPolicy(["pay"], field, max=50)])
        assert (await policy.check_tool(served, arguments=fine)).decision == "allow"


AMOUNT = {"properties": {"amount": {"type": "integer", "default": 500}}}
OF_LIST = {"properties": {"p": {"type": "array", "items": [AMOUNT, {"type": "string"}]}}}


@pytest.mark.parametrize(
    ("schema", "given", "field"),
    [
        (
            {"properties": {"p": {"type": "array", "prefixItems": [AMOUNT, {"type": "string"}]}}},
            {"p": [{}, "x"]},
            "p.0.amount",
        ),
        (
            {"properties": {"p": {"type": "array", "prefixItems": [{}], "items": AMOUNT}}},
            {"p": ["x", {}]},
            "p.1.amount",
        ),
        ({"properties": {"p": {"prefixItems": [AMOUNT], "items": False}}}, {"p": [{}]}, "p.*.amount"),
        (OF_LIST, {"p": [{}, "x"]}, "p.0.amount"),
        ({"properties": {"card": {}}, "dependentSchemas": {"card": AMOUNT}}, {"card": "4711"}, "amount"),
        ({"properties": {"card": {}}, "dependencies": {"card": AMOUNT}}, {"card": "4711"}, "amount"),
        (
            {"properties": {"card": {"default": "visa"}}, "dependentSchemas": {"card": {"$ref": "#/$defs/Amount"}}},
            {},
            "amount",
        ),
        (AMOUNT | {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"a": 1}, "amount"),
        ({"properties": {}, "allOf": [{"$ref": "#/$defs/Amount"}, {"title": "x"}]}, {}, "amount"),
        ({"properties": {"p": {"additionalProperties": AMOUNT}}}, {"p": {"x": {}}}, "p.x.amount"),
        ({"properties": {"p": {"patternProperties": {"^x": AMOUNT}}}}, {"p": {"x": {}}}, "p.x.amount"),
    ],
    ids=str,
)
async def test_defaults_of_a_server_are_filled_in_wherever_its_schema_has_them(
    schema: dict[str, Any], given: dict[str, Any], field: str
) -> None:
    """A rule function saw no amount, and the server paid 500."""
    json = {"type": "object", "$defs": {"Amount": AMOUNT}, **schema}
    served = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
    assert served.arguments(msgspec.json.encode(given).decode()) == given
    seen: list[Any] = []

    def looks(call: GuardedCall) -> None:
        found: Any = call.arguments
        for part in field.replace("*", "0").split("."):
            found = found[int(part) if isinstance(found, list) else part]
        seen.append(found)

    bounds = [ConstraintPolicy(["pay"], field, max=most) for most in (500, 50)]
    allowed = [(await PolicyEngine([each]).check_tool(served, arguments=given)).allowed for each in bounds]
    assert allowed == [True, False]
    assert (await PolicyEngine([looks]).check_tool(served, arguments=given)).allowed
    assert seen == [500]
    assert not lacks(served, field.split("."))


async def test_a_schema_that_refers_to_itself_takes_no_time() -> None:
    """Each level of the reference doubled the time."""
    twice = {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}], "anyOf": [{"$ref": "#/$defs/A"}] * 2}
    tree = {"properties": {name: {"$ref": "#/$defs/B", "default": {}} for name in "ab"}}
    defs = {"A": twice, "B": tree}
    bound = PolicyEngine([ConstraintPolicy(["pay"], "p.a.a", max=50), lambda call: call.arguments and None])
    for name, words in (("A", ""), ("B", "too many defaults")):
        json = {"type": "object", "properties": {"p": {"$ref": f"#/$defs/{name}"}}, "$defs": defs}
        served = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
        lacks(served, ["p", "a", "a"])
        assert words in (await bound.check_tool(served, arguments={"p": {"x": {}}})).reason


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
        (
            "bill",
            "lines.unit_price",
            "tool bill has no lines.unit_price",
            "field='lines.*.unit_price' is about each item",
        ),
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


class Payee(pydantic.BaseModel):
    name: str
    kind: Kind = Kind.PLAIN
    inner: "Payee | None" = None


@dataclasses.dataclass
class Sender:
    name: str


class Address(TypedDict):
    name: str


@pytest.mark.parametrize("way", ["model", "effect", "plain"])
@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (Payee, Payee.model_validate),
        (list[Payee], lambda given: [Payee(**each) for each in given]),
        (Sender, lambda given: Sender(**given)),
        (Line, lambda given: Line(**given)),
        (Address, dict),
    ],
    ids=["pydantic", "a list", "dataclass", "struct", "TypedDict"],
)
async def test_a_tool_whose_parameter_has_a_class_is_called_with_hidden_texts(
    kind: Any, made: Callable[[Any], Any], way: str
) -> None:
    """Each call of a tool with a parameter of pydantic was denied, whether a text matched or not."""
    got: list[Any] = []

    async def store(value: Any) -> str:
        got.append(value)
        return "kept"

    store.__annotations__["value"] = kind
    keeps = tool(store)

    def value(text: str) -> Any:
        return [{"name": text}] if kind == list[Payee] else {"name": text}

    def answer(spec: RequestSpec) -> Any:
        last = spec.messages[-1]
        text = json.dumps({"value": value(spec.messages[0].text)})
        return last.text if last.role == "tool" else assistant("", ToolCall("c", "store", text))

    clerk = Agent(ExecutionEngine(ScriptedProvider(answer), retries=0), name="clerk", tools=[keeps])

    async def job(ctx: DurableContext) -> Any:
        if way == "model":
            return (await clerk.run(str(ctx.message), effects=ctx.llm(clerk.engine))).content
        given = made(value(str(ctx.message)))
        return await (ctx.call(keeps, given) if way == "effect" else ctx.step(lambda: keeps(given)))

    policy = PolicyEngine([RedactionPolicy([r"\d{4}"], tool_patterns=["store"])])
    async with RuntimeKernel.create(agent=job, policy=policy) as kernel:
        for text in ("no 4711", "no 5"):
            assert (await (await kernel.execute(ExecutionRequest(prompt=text))).result()).output == "kept"
    assert got == [made(value("no ***")), made(value("no 5"))]


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


async def test_a_question_shows_the_defaults_of_a_dataclass_that_a_model_leaves_out() -> None:
    """msgspec decodes a dataclass without attributes for them: the class has their values."""
    made: list[Any] = []

    @dataclasses.dataclass
    class Box:
        parcels: list[Parcel]
        first: Parcel = dataclasses.field(default_factory=Parcel)
        fee: int = 70

    @tool
    def send(box: Box, by: dict[str, Parcel]) -> None:
        made.append((box, by))

    model = ScriptedProvider([assistant("", ToolCall("1", "send", SENT)), "sent"])
    agent = Agent(ExecutionEngine(model), tools=[send])

    async def f(ctx: DurableContext) -> str:
        return (await agent.run("send it", effects=ctx.llm(agent.engine))).content

    home = MemoryStorage()
    policy = PolicyEngine([ToolPolicy(["send"], require_approval=True)])
    async with hosting(home, Owner(f), guard=policy) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        box = {"parcels": [{"weight": 500}, {"weight": 3}], "first": {"weight": 500}, "fee": 70}
        assert question.payload["arguments"] == [[], {"box": box, "by": {"sea": {"weight": 500}}}]
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    assert made == [(Box([Parcel(), Parcel(3)]), {"sea": Parcel()})]


SENT = '{"box": {"parcels": [{}, {"weight": 3}]}, "by": {"sea": {}}}'


@pytest.mark.parametrize("kind", ["struct", "dataclass"])
async def test_an_approved_call_has_the_defaults_of_fields_that_were_shown_after_a_deploy_too(kind: str) -> None:
    """A value that leaves out its defaults is recorded as the same bytes, whatever these are."""
    home, made = MemoryStorage(), list[Any]()
    ask = PolicyEngine([ToolPolicy(["charge"], require_approval=True)])

    def job(cents: int) -> Any:
        fields = [("id", str), ("cents", int, cents)]
        made_of: Any = msgspec.defstruct("Fee", fields, omit_defaults=True)
        if kind == "dataclass":
            made_of = dataclasses.make_dataclass("Fee", fields)

        @tool
        def charge(fee: made_of, more: list[made_of]) -> None:  # type: ignore[valid-type]
            made.append((fee.cents, [each.cents for each in more]))  # type: ignore[attr-defined]

        async def f(ctx: DurableContext) -> None:
            await ctx.call(
                charge, **charge.arguments('{"fee": {"id": "a"}, "more": [{"id": "b"}, {"id": "c", "cents": 3}]}')
            )

        return f

    async with hosting(home, Owner(job(70)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"][1]["fee"] == {"id": "a", "cents": 70}
    async with hosting(home, Owner(job(900)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert made == [(70, [70, 3])]


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
        if isinstance(entry, Intent) and entry.kind == "call":
            verdict = decode_verdict(entry.note)
            assert verdict is not None
            note = encode_verdict(msgspec.structs.replace(verdict, named=False))
            entry = msgspec.structs.replace(entry, body=pack([["o-1"], {}], "it"), note=note)
        journal.append(entry)
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
    for guard in (PolicyEngine([MOST_50]), PolicyEngine([])):
        crashed = prefix(home, 2)  # BEGIN and INTENT
        async with hosting(crashed, Owner(job(second)), guard=guard) as jobs:
            await jobs.over("j")
            assert jobs.agent.done["j"] == 40


class Base(pydantic.BaseModel):
    id: str = "o"


class WithFee(Base):
    fee: int = pydantic.Field(500, exclude=True)


class Rounded(Base):
    fee: Annotated[int, pydantic.PlainSerializer(lambda value: 0)] = 500


class Empty(Base):
    fee: int = 500

    @pydantic.model_serializer
    def nothing(self) -> dict[str, Any]:
        return {}


class OfBase(pydantic.BaseModel):
    """pydantic packs the fields of the declared type."""

    order: Base = WithFee()
    by: dict[str, Base] = {"sea": WithFee(fee=3)}


class Roots(pydantic.RootModel[list[Base]]):
    root: list[Base] = [WithFee()]


class Paid(Base):
    card: pydantic.SecretStr = pydantic.SecretStr("4711")
    fee: int = 500

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        return self.fee + 1


class WithClient(Base):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    client: Any = pydantic.Field(default_factory=object, exclude=True)
    fee: int = pydantic.Field(500, exclude=True)


class Pair(NamedTuple):
    left: Base
    right: int = 3


class Renamed(msgspec.Struct, rename="camel", omit_defaults=True):
    the_fee: int = 500
    note: str | msgspec.UnsetType = msgspec.UNSET


@dataclasses.dataclass
class Quiet:
    fee: int = dataclasses.field(default=500, repr=False)
    _rate: int = 7


@attrs.define
class OfAttrs:
    order: Base = attrs.field(factory=WithFee)
    _rate: int = 7
    _client: Any = attrs.field(factory=object, eq=False)


SHOWN: list[tuple[Any, Any]] = [
    (WithFee(), {"id": "o", "fee": 500}),
    (Rounded(), {"id": "o", "fee": 500}),
    (Empty(), {"id": "o", "fee": 500}),
    (OfBase(), {"order": {"id": "o", "fee": 500}, "by": {"sea": {"id": "o", "fee": 3}}}),
    (Roots(), [{"id": "o", "fee": 500}]),
    (Paid(), {"id": "o", "card": "**********", "fee": 500, "total": 501}),
    (WithClient(), {"id": "o", "fee": 500}),
    (Pair(WithFee()), [{"id": "o", "fee": 500}, 3]),
    ((1, [WithFee()]), [1, [{"id": "o", "fee": 500}]]),
    (Renamed(), {"theFee": 500}),
    (Quiet(), {"fee": 500, "_rate": 7}),
    (OfAttrs(), {"order": {"id": "o", "fee": 500}, "_rate": 7}),
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("given", "shown"), SHOWN, ids=lambda each: type(each).__name__)
async def test_a_question_shows_the_fields_that_an_object_hides_and_the_tool_gets_them(
    given: Any, shown: Any, restart: bool
) -> None:
    home = MemoryStorage()

    @tool
    def pay(order: Any) -> None:
        paid.append(order)

    paid.clear()
    async with hosting(home, Owner(pays(pay, (), {"order": given})), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": shown}]
        if not restart:
            jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
            await jobs.over("j")
    if restart:
        async with hosting(home, Owner(pays(pay, (), {"order": given})), guard=ASK_PAY) as jobs:
            jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
            await jobs.over("j")
    (got,) = paid
    assert type(got) is type(given)
    assert isinstance(given, WithClient) or got == given
    assert getattr(got, "fee", 500) == 500


@pytest.mark.parametrize("kind", ["exclude", "serializer"])
async def test_an_approved_call_has_the_hidden_field_that_was_shown_after_a_deploy_too(kind: str) -> None:
    """Another value of it is recorded as the same bytes."""
    home, of_kind = MemoryStorage(), WithFee if kind == "exclude" else Rounded

    @tool
    def pay(order: of_kind) -> None:  # type: ignore[valid-type]
        paid.append(order.fee)  # type: ignore[attr-defined]

    paid.clear()
    for fee in (500, 900):
        async with hosting(home, Owner(pays(pay, (), {"order": of_kind(fee=fee)})), guard=ASK_PAY) as jobs:
            if fee == 500:
                jobs.begin("j")
                await jobs.parks("j")
                continue
            jobs.journal.post(Letter("answer", open_question(home).resume_token, body=b'{"approved": true}'))
            await jobs.over("j")
            assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert paid == [500]


async def test_a_secret_that_was_shown_as_a_mask_reaches_the_tool_of_an_approved_call() -> None:
    """The types of the tool add a new id in each run, so that the recorded values are read."""
    home, numbers = MemoryStorage(), count(1)

    class Numbered(Paid):
        number: int = pydantic.Field(default_factory=numbers.__next__)

    @tool
    def pay(order: Numbered) -> None:
        paid.append((order.card.get_secret_value(), order.number))

    def answers(spec: RequestSpec) -> Any:
        words = '{"order": {"card": "0815"}}'
        return "paid" if spec.messages[-1].role == "tool" else assistant("", ToolCall("1", "pay", words))

    agent = Agent(ExecutionEngine(ScriptedProvider(answers)), tools=[pay])

    async def f(ctx: DurableContext) -> str:
        return (await agent.run("pay it", effects=ctx.llm(agent.engine))).content

    paid.clear()
    async with hosting(home, Owner(f), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    async with hosting(home, Owner(f), guard=ASK_PAY) as jobs:
        jobs.journal.post(Letter("answer", open_question(home).resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.done["j"] == "paid"
    assert paid == [("0815", 1)]


# -- defaults that calls share -----------------------------------------------------------------------------------------


SHARED: dict[str, Callable[[], tuple[Any, Callable[[Any], Any]]]] = {
    "list": lambda: ([], lambda each: each.append(500)),
    "dict": lambda: ({}, lambda each: each.update(fee=500)),
    "nested": lambda: (([],), lambda each: each[0].append(500)),
    "model": lambda: (WithFee(fee=1), lambda each: setattr(each, "fee", 500)),
    "struct": lambda: (Renamed(1), lambda each: setattr(each, "the_fee", 500)),
}


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("way", ["rule", "question", "partial", "judged"])
async def test_a_call_is_made_with_the_default_by_which_it_was_judged_although_another_call_has_changed_it(
    kind: str, way: str
) -> None:
    default, changes = SHARED[kind]()
    before, seen = repr(default), list[str]()

    def pay(order: str, what: Any = default) -> None:
        seen.append(repr(what))
        changes(what)

    def bounded(call: GuardedCall) -> None:
        assert call.name != "pay" or repr(call.arguments["what"]) == before

    async def f(ctx: DurableContext) -> None:
        call = partial(pay, what=default) if way == "partial" else pay
        await asyncio.gather(*(ctx.step(call, each) for each in ("a", "b", "c")))

    async def plainly(ctx: DurableContext) -> None:
        made = tool(pay)

        async def outer() -> None:
            await asyncio.gather(*(asyncio.to_thread(made, each) for each in ("a", "b", "c")))

        await ctx.step(outer, effect="unsafe")

    home, rules = MemoryStorage(), [ToolPolicy(["pay"], require_approval=True)] if way == "question" else [bounded]
    async with hosting(home, Owner(plainly if way == "judged" else f), guard=PolicyEngine(rules)) as jobs:
        jobs.begin("j")
        for _ in range(3 if way == "question" else 0):
            await jobs.until(lambda: pending(home))
            token = open_question(home).resume_token
            jobs.journal.post(Letter("answer", token, body=b'{"approved": true}'))
            await jobs.until(lambda token=token: token not in [each.resume_token for each in pending(home)])
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert seen == [before] * 3


@pytest.mark.parametrize("way", ["by place", "by name", "nested", "step", "question", "agent", "within"])
async def test_a_partial_gives_what_it_gave_when_the_rule_began_to_decide(way: str) -> None:
    """A list that a partial gives by place was no copy: the rule saw one receiver, and the tool paid another one."""
    to, seen, deciding, decided = ["ann"], list[Any](), asyncio.Event(), asyncio.Event()

    @tool(effect="unsafe")
    async def pay(to: list[Any], amount: int = 1) -> None:
        seen.append(to)

    async def slow(call: GuardedCall) -> GuardVerdict:
        if call.name != "pay":
            return GuardVerdict(Decision.ALLOW)
        assert call.arguments["to"] == (["ann"] if way != "nested" else [["ann"]])
        deciding.set()
        await decided.wait()
        return GuardVerdict(Decision.ASK if way == "question" else Decision.ALLOW)

    call = partial(pay, to=to) if way == "by name" else partial(pay, [to] if way == "nested" else to)

    async def f(ctx: DurableContext) -> None:
        if way in ("agent", "within"):
            said = [assistant("", ToolCall("c", "pay", "{}")), "done"]
            agent = Agent(ExecutionEngine(ScriptedProvider(said)), tools=[call])
            await (agent.run("go", effects=ctx.llm(agent.engine)) if way == "agent" else ctx.step(agent.run, "go"))
        else:
            await (ctx.step if way == "step" else ctx.call)(call)

    home = MemoryStorage()
    async with hosting(home, Owner(f), guard=PolicyEngine([slow])) as jobs:
        jobs.begin("j")
        await jobs.until(deciding.is_set)
        to[0] = "eve"
        decided.set()
        if way == "question":
            await jobs.until(lambda: pending(home))
            jobs.journal.post(Letter("answer", open_question(home).resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    paid_to = [[["ann"]] if way == "nested" else ["ann"]]
    # beside a journal the call is denied; so is one whose job was parked, as nobody may give what a partial gives by place
    assert seen == ([] if way in ("within", "question") else paid_to)


# -- what a later program adds ------------------------------------------------------------------------------------------


def before_and_after_a_deploy() -> tuple[Any, Any]:
    """The function of a tool in two programs."""

    def before() -> Any:
        def pay(order: str, amount: int) -> None:
            paid.append((order, amount))

        return pay

    def pay(order: str, amount: int, tip: int = 900) -> None:
        paid.append((order, amount, tip))

    return before(), pay


paid: list[Any] = []
ASK_PAY = PolicyEngine([ToolPolicy(["pay"], require_approval=True)])


def pays(pay: Any, args: tuple[Any, ...], kwargs: dict[str, Any], step: bool = False) -> Any:
    async def f(ctx: DurableContext) -> Any:
        try:
            return await (ctx.step if step else ctx.call)(pay, *args, **kwargs)
        except PolicyDenied as error:
            return error.message

    return f


@pytest.mark.parametrize("way", ["by place", "by name", "step", "partial", "edited"])
async def test_an_approved_call_is_not_made_with_a_parameter_that_nobody_has_seen(way: str) -> None:
    """A later program adds `tip=900`. If the function had given all arguments, it was filled in without a word."""
    paid.clear()
    first, second = before_and_after_a_deploy()
    args: tuple[Any, ...] = ("o-1", 50)
    kwargs: dict[str, Any] = {}
    if way == "by name":
        args, kwargs = (), {"order": "o-1", "amount": 50}
    tools = [each if way in ("step", "partial") else tool(each) for each in (first, second)]
    if way == "partial":
        args, tools = (), [partial(each, "o-1", amount=50) for each in tools]
    home, step = MemoryStorage(), way in ("step", "partial")
    async with hosting(home, Owner(pays(tools[0], args, kwargs, step)), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": "o-1", "amount": 50}]
    said = b'{"approved": true, "arguments": {"amount": 5}}' if way == "edited" else b'{"approved": true}'
    same, later = prefix(home, len(entries(home))), prefix(home, len(entries(home)))
    async with hosting(same, Owner(pays(tools[0], args, kwargs, step)), guard=ASK_PAY) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=said))
        await jobs.over("j")
    assert paid == [("o-1", 5 if way == "edited" else 50)], "the program that has asked makes the call"
    paid.clear()
    async with hosting(later, Owner(pays(tools[1], args, kwargs, step)), guard=ASK_PAY) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=said))
        await jobs.over("j")
        assert "a person has seen it without tip=900, which the program has added since" in jobs.agent.done["j"]
    assert paid == []


@pytest.mark.parametrize("kind", ["struct", "dataclass", "default"])
async def test_an_approved_call_is_not_made_with_a_field_that_nobody_has_seen(kind: str) -> None:
    """A field with a default is recorded as the same bytes, or is read from the same words of a model."""
    home = MemoryStorage()

    def job(*fields: Any) -> Any:
        parts = [("id", str), ("cents", int), *fields]
        made_of: Any = dataclasses.make_dataclass("Fee", parts)
        if kind != "dataclass":
            made_of = msgspec.defstruct("Fee", parts, omit_defaults=True)
        default = [made_of("a", 5)]

        @tool
        def pay(fees: list[made_of] = default) -> None:  # type: ignore[valid-type]
            paid.append(fees)

        words = '{"fees": [{"id": "a", "cents": 5}]}'
        return pays(pay, (), {} if kind == "default" else dict(pay.arguments(words)))

    paid.clear()
    async with hosting(home, Owner(job()), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"fees": [{"id": "a", "cents": 5}]}]
    async with hosting(home, Owner(job(("tip", int, 900))), guard=ASK_PAY) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert "a person has seen it without fees.0.tip=900" in jobs.agent.done["j"]
    assert paid == []


async def test_an_approved_call_of_a_server_is_not_made_with_a_field_that_nobody_has_seen() -> None:
    def offered(more: dict[str, Any]) -> Any:
        json = {"type": "object", "properties": {"order": {"type": "object", "properties": more}}}
        return dataclasses.replace(tool(name="pay")(paid.append), parameters=OfferedArguments("pay", "", json))

    paid.clear()
    home, tip = MemoryStorage(), {"tip": {"type": "integer", "default": 900}}
    async with hosting(home, Owner(pays(offered({}), (), {"order": {"id": 1}})), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
    async with hosting(home, Owner(pays(offered(tip), (), {"order": {"id": 1}})), guard=ASK_PAY) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert "without order.tip=900" in jobs.agent.done["j"]
    assert paid == []


@pytest.mark.parametrize("most", [1000, 100])
async def test_a_judged_call_is_judged_again_with_a_parameter_that_a_later_program_adds(most: int) -> None:
    """A crash had cut it off. No rule had seen `tip=900`."""
    home, effect = MemoryStorage(), "idempotent"

    @tool(effect=effect, name="pay")
    def first(order: str, amount: int) -> int:
        return amount

    @tool(effect=effect, name="pay")
    def second(order: str, amount: int, tip: int = 900) -> int:
        return amount + tip

    bounds = [ConstraintPolicy(["pay"], "amount", max=50), ConstraintPolicy(["*"], "tip", max=most)]
    async with hosting(home, Owner(pays(first, ("o-1", 50), {})), guard=PolicyEngine(bounds)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert jobs.agent.done["j"] == 50
    async with hosting(prefix(home, 2), Owner(pays(second, ("o-1", 50), {})), guard=PolicyEngine(bounds)) as jobs:
        await jobs.over("j")
        said = "its arguments are others than before the restart: tip is 900" if most == 100 else "950"
        assert said in str(jobs.agent.done["j"])


async def test_a_call_that_may_have_been_made_is_in_doubt_although_its_tool_has_changed() -> None:
    """It was made when the process was killed. That it was refused was not true."""
    paid.clear()
    home, args, (first, second) = MemoryStorage(), ("o-1", 50), map(tool, before_and_after_a_deploy())
    async with hosting(home, Owner(pays(first, args, {})), guard=ASK_PAY) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        jobs.journal.post(Letter("answer", open_question(home).resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    count = next(at for at, each in enumerate(entries(home), 1) if isinstance(each, Attempt))
    for said, found in ((b'{"outcome": "done"}', None), (b'{"outcome": "not_done"}', "without tip=900")):
        crashed = prefix(home, count)
        async with hosting(crashed, Owner(pays(second, args, {})), guard=ASK_PAY) as jobs:
            await jobs.parks("j")
            question = open_question(crashed)
            assert question.type == "in_doubt"
            jobs.journal.post(Letter("answer", question.resume_token, body=said))
            await jobs.over("j")
            assert jobs.agent.done["j"] is None if found is None else found in jobs.agent.done["j"]
    assert paid == [("o-1", 50)]


async def test_a_call_by_place_has_the_arguments_that_were_judged_although_their_order_has_changed() -> None:
    home = MemoryStorage()

    @tool(effect="idempotent", name="pay")
    def first(order: int, amount: int) -> Any:
        return {"order": order, "amount": amount}

    @tool(effect="idempotent", name="pay")
    def second(amount: int, order: int) -> Any:
        return {"order": order, "amount": amount}

    bound = PolicyEngine([ConstraintPolicy(["pay"], "amount", max=50)])
    async with hosting(home, Owner(pays(first, (900, 50), {})), guard=bound) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    async with hosting(prefix(home, 2), Owner(pays(second, (900, 50), {})), guard=bound) as jobs:
        await jobs.over("j")
        assert jobs.agent.done["j"] == {"order": 900, "amount": 50}


def test_a_rule_by_name_alone_reads_no_arguments() -> None:
    refund, _ = refund_with()
    call = GuardedCall(EffectId("j", 1), "tool", "refund", tool=refund, args=("o-1",))
    verdict = PolicyEngine([ToolPolicy(["refund"])]).decide(call)
    assert isinstance(verdict, GuardVerdict)
    assert verdict.decision is Decision.ALLOW
    assert not call.was_seen


# -- partials and wrappers ---------------------------------------------------------------------------------------------


class Wrapper:
    """A decorator as a class: it is called in place of the function, and takes everything."""

    def __init__(self, func: Any) -> None:
        self.wrapped = func
        update_wrapper(self, func)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapped(*args, **kwargs)


GIVEN: dict[str, Callable[[Any], Any]] = {
    "by name": lambda refund: partial(refund, amount=500),
    "by place": lambda refund: partial(refund, "o-1", 500),
    "to a tool": lambda refund: tool(partial(refund, "o-1", amount=500)),
}


@pytest.mark.parametrize("given", ["by name", "by place", "to a tool"])
async def test_a_question_shows_what_a_partial_gives_and_the_approved_call_is_made_with_it(given: str) -> None:
    home, made = MemoryStorage(), list[Any]()

    def refund(order: str, amount: int = 9) -> None:
        made.append((order, amount))

    async def f(ctx: DurableContext) -> None:
        await ctx.step(GIVEN[given](refund), *(["o-1"] if given == "by name" else []))

    ask = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": "o-1", "amount": 500}]
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.outcomes["j"] == "succeeded", jobs.agent.errors
    assert made == [("o-1", 500)]


class Bank:
    """A service whose method is a tool."""

    def __init__(self, made: list[Any]) -> None:
        self._made = made

    @tool(effect="idempotent")
    async def refund(self, order: str, amount: int = 9) -> None:
        self._made.append((order, amount))


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("given", ["by name", "by place", "by nothing", "to a method"])
async def test_a_partial_of_a_tool_is_approved_once_and_counts_once(given: str, step: bool) -> None:
    """A person was asked and approved it, and the call was refused: its tool was judged as a tool within a tool."""
    made = list[Any]()

    @tool(effect="idempotent")
    async def refund(order: str, amount: int = 9) -> None:
        made.append((order, amount))

    async def f(ctx: DurableContext) -> None:
        ways = {
            "by name": partial(refund, amount=500),
            "by place": partial(partial(refund, "o-1"), 500),
            "by nothing": partial(refund),
            "to a method": partial(Bank(made).refund, amount=500),
        }
        args = [] if given == "by place" else ["o-1"]
        await (ctx.step(ways[given], *args) if step else ctx.call(ways[given], *args))

    ask = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with RuntimeKernel.create(agent=f, policy=ask) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=None, budgets=BudgetSpec(max_tool_calls=1)))
        async with asyncio.timeout(60):
            while not (questions := await handle.get_pending_actions()):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        amount = 9 if given == "by nothing" else 500
        assert questions[0].payload["arguments"] == [[], {"order": "o-1", "amount": amount}]
        await handle.resolve_action(questions[0].resume_token, {"approved": True})
        await handle.result()
    assert made == [("o-1", amount)]


async def test_a_partial_of_a_tool_has_its_class_and_its_look_up_gets_what_the_partial_gives() -> None:
    """A partial of a tool was an unsafe function that calls a tool, and could be declared harmless."""
    looked = list[Any]()

    async def find(effect: Effect, order: str, amount: int = 9) -> bool:
        looked.append((order, amount))
        return True

    @tool(reconcile=find, retries=0)
    async def refund(order: str, amount: int = 9) -> None:
        raise ConnectionResetError("after it was sent")

    @tool
    async def ship(order: str) -> None:
        raise AssertionError(order)

    async def f(ctx: DurableContext) -> None:
        await ctx.call(partial(refund, "o-1"), 500)
        await ctx.step(partial(refund, amount=500), "o-2")
        with pytest.raises(UserError, match="the tool is declared 'unsafe', so no call of it may be repeated"):
            await ctx.step(partial(ship, "o-3"), effect="idempotent")

    async with RuntimeKernel.create(agent=f) as kernel:
        await (await kernel.execute(ExecutionRequest(prompt=None))).result()
    assert looked == [("o-1", 500), ("o-2", 500)]


@pytest.mark.parametrize("by_name", [True, False])
async def test_an_approved_call_has_what_a_partial_gave_before_a_deploy_or_is_not_made(by_name: bool) -> None:
    home, made = MemoryStorage(), list[Any]()

    def refund(order: str, amount: int) -> None:
        made.append((order, amount))

    def job(amount: int) -> Any:
        async def f(ctx: DurableContext) -> Any:
            call = partial(refund, "o-1", amount=amount) if by_name else partial(refund, "o-1", amount)
            try:
                return await ctx.step(call)
            except PolicyDenied as error:
                return error.message

        return f

    ask = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with hosting(home, Owner(job(5)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
    async with hosting(home, Owner(job(900)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert by_name or "refund gets amount by its place in a functools.partial" in jobs.agent.done["j"]
    assert made == ([("o-1", 5)] if by_name else [])


@pytest.mark.parametrize("values", [(5, 900), ({"a": 5}, {"a": 900}), ((5, object()), (900, object()))])
@pytest.mark.parametrize("by_name", [True, False])
async def test_a_call_that_no_rule_judges_is_another_one_if_its_partial_gives_other_values(
    by_name: bool, values: Any
) -> None:
    """Its values were in no digest: a payment in doubt was repeated with its key and another amount after a deploy."""
    home, made = MemoryStorage(), list[Any]()

    def pay(*given: Any, amount: Any = None) -> None:
        made.append(given or amount)

    def job(value: Any) -> Any:
        async def f(ctx: DurableContext) -> Any:
            await ctx.step(partial(pay, amount=value) if by_name else partial(pay, value), effect="idempotent")

        return f

    before, after = values
    async with hosting(home, Owner(job(before))) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    for value, blocked in ((after, True), (before, False)):
        async with hosting(prefix(home, 2), Owner(job(value))) as jobs:
            await jobs.over("j")
            assert bool(jobs.host.statistics()["blocked"]) == (blocked and not isinstance(value, tuple))
    if not isinstance(before, tuple):
        assert len(made) == 2


async def test_a_partial_in_a_journal_of_an_earlier_version_is_the_same_call() -> None:
    """The digest was that of the arguments that the caller gives."""
    home, made = MemoryStorage(), list[Any]()

    def pay(order: str, amount: int) -> None:
        made.append((order, amount))

    async def f(ctx: DurableContext) -> Any:
        await ctx.step(partial(pay, amount=5), "o-1", effect="idempotent")

    async with hosting(home, Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    for recorded in (2, 3):
        earlier = prefix(home, 0)
        journal = MemoryJournal(earlier)
        for entry in entries(home)[:recorded]:
            if isinstance(entry, Intent):
                entry = msgspec.structs.replace(entry, digest=digest(home.key, "call", "pay", entry.body))
            journal.append(entry)
        journal.close()
        async with hosting(earlier, Owner(f)) as jobs:
            await jobs.over("j")
            assert not jobs.host.statistics()["blocked"]
    assert made == [("o-1", 5)] * 2


async def test_texts_are_hidden_in_what_a_partial_gives_or_the_call_is_denied() -> None:
    home, made = MemoryStorage(), list[Any]()

    def mail(text: str, footer: str = "") -> None:
        made.append((text, footer))

    async def f(ctx: DurableContext) -> Any:
        await ctx.step(partial(mail, footer="card 4711"), "hello")
        try:
            await ctx.step(partial(mail, "card 4711"))
        except PolicyDenied as error:
            return error.message

    async with hosting(home, Owner(f), guard=PolicyEngine([RedactionPolicy(["4711"])])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert "mail gets text by its place" in jobs.agent.done["j"]
    assert made == [("hello", "card ***")]
    assert "4711" not in str([unpack(entry.body) for entry in entries(home) if isinstance(entry, Intent)])


async def test_what_a_partial_gives_and_nobody_can_record_is_left_out_of_the_question() -> None:
    home, made, client = MemoryStorage(), list[Any](), object()

    def refund(client: Any, order: str, amount: int = 9) -> None:
        made.append((client, order, amount))

    async def f(ctx: DurableContext) -> None:
        await ctx.step(partial(refund, client), "o-1")

    ask = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with hosting(home, Owner(f), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": "o-1", "amount": 9}]
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    assert made == [(client, "o-1", 9)]


@pytest.mark.parametrize("given", [("o-1", 500), ("o-1",), ()])
@pytest.mark.parametrize("is_tool", [True, False])
async def test_a_bound_holds_for_the_function_within_an_object_that_wraps_it(
    is_tool: bool, given: tuple[Any, ...]
) -> None:
    made: list[Any] = []

    def refund(order: str = "o-1", amount: int = 500) -> None:
        made.append(amount)

    async def f(ctx: DurableContext) -> str:
        wrapped: Any = Wrapper(refund)
        try:
            return str(await ctx.call(tool(wrapped) if is_tool else wrapped, *given))
        except PolicyDenied as error:
            return error.message

    async with hosting(MemoryStorage(), Owner(f), guard=PolicyEngine([MOST_50])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert "amount is 500, and at most 50 is allowed" in jobs.agent.done["j"]
    assert made == []


async def test_nobody_is_asked_about_a_function_that_only_wraps_the_tool() -> None:
    """A person approved the call, and then it was refused, since the call in the function asks nobody."""
    paid: list[str] = []

    @tool
    async def transfer(to: str) -> None:
        paid.append(to)

    @wraps(transfer)
    async def logged(*args: Any) -> None:
        await transfer(*args)

    async def f(ctx: Any) -> str:
        with pytest.raises(PolicyDenied, match=re.escape("transfer.func, and make a tool of that")):
            await ctx.call(partial(logged), "eve")
        return "over"

    policy = PolicyEngine([ToolPolicy(["transfer"], require_approval=True)])
    async with RuntimeKernel.create(agent=f, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        assert (await handle.result()).output == "over"
    assert not paid


async def test_an_argument_that_may_be_the_bounded_one_and_has_no_name_is_denied() -> None:
    made: list[Any] = []

    @tool
    def refund(*args: Any, **kwargs: Any) -> None:
        made.append((args, kwargs))

    async def f(ctx: DurableContext) -> str:
        await ctx.call(refund, amount=5)
        await ctx.call(refund, "o-1", amount=5)
        await ctx.call(refund, order="o-1")
        try:
            return str(await ctx.call(refund, "o-1", 500))
        except PolicyDenied as error:
            return error.message

    async with hosting(MemoryStorage(), Owner(f), guard=PolicyEngine([MOST_50])) as jobs:
        jobs.begin("j")
        await jobs.over("j")
        assert "amount may be among the arguments of *args, which have no names" in jobs.agent.done["j"]
    assert made == [((), {"amount": 5}), (("o-1",), {"amount": 5}), ((), {"order": "o-1"})]


# -- what the types of a tool add by themselves ----------------------------------------------------------------------------


def labels_of(kind: str, numbers: Iterator[int]) -> type[Any]:
    """A type of arguments that adds a new id to each object, as `default_factory=uuid4` does."""
    if kind == "pydantic":
        return pydantic.create_model("Label", to=(str, ...), id=(int, pydantic.Field(default_factory=numbers.__next__)))
    id_of = dataclasses.field if kind == "dataclass" else msgspec.field
    fields = [("to", str), ("id", int, id_of(default_factory=numbers.__next__))]
    return dataclasses.make_dataclass("Label", fields) if kind == "dataclass" else msgspec.defstruct("Label", fields)


class Post:
    """An agent whose tool prints a label, and what it has printed: the number of the label, and the key of the call."""

    def __init__(self, kind: str, numbers: Iterator[int], effect: str = "idempotent") -> None:
        self.printed: list[tuple[int, str]] = []

        @tool(effect=effect)
        def stick(label: Any, effect: Effect) -> int:
            self.printed.append((label.id, effect.key))
            return label.id

        stick.func.__annotations__["label"] = labels_of(kind, numbers)
        engine = ExecutionEngine(ScriptedProvider(self.answer), retries=0, patience=0)
        self.agent = Agent(engine, name="post", tools=[stick])

    def answer(self, spec: RequestSpec) -> Any:
        return "stuck" if spec.messages[-1].role == "tool" else assistant("", ToolCall("1", "stick", TO_ANN))

    async def job(self, ctx: DurableContext) -> str:
        return (await self.agent.run("send it", effects=ctx.llm(self.agent.engine))).content


TO_ANN = '{"label": {"to": "Ann"}}'
KINDS = ["pydantic", "dataclass", "struct"]


@pytest.mark.parametrize("guard", [None, PolicyEngine([ToolPolicy(["stick"], denied_scopes=["guests"])])])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_goes_on_after_a_crash_with_the_new_id_that_its_call_has_got(kind: str, guard: Any) -> None:
    """Each run of the job decoded another id, by which the call was taken for another one: the job was blocked."""
    home, numbers = MemoryStorage(), count(1)
    whole = Post(kind, numbers)
    async with hosting(home, Owner(whole.job), guard=guard) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    assert [number for number, _ in whole.printed] == [1]
    for recorded, again in ((4, whole.printed), (5, [])):  # the INTENT entry of the call, and its result
        after = Post(kind, numbers)
        async with hosting(prefix(home, recorded), Owner(after.job), guard=guard) as jobs:
            await jobs.over("j")
            assert jobs.agent.done["j"] == "stuck"
        assert after.printed == again


@pytest.mark.parametrize("kind", KINDS)
async def test_an_approved_call_of_an_agent_has_the_new_id_that_was_shown(kind: str) -> None:
    home, post = MemoryStorage(), Post(kind, count(1), "unsafe")
    async with hosting(
        home, Owner(post.job), guard=PolicyEngine([ToolPolicy(["stick"], require_approval=True)])
    ) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        (shown,) = question.payload["arguments"][1].values()
        assert (shown["to"], shown["id"]) == ("Ann", 1)
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert jobs.agent.done["j"] == "stuck"
    assert [number for number, _ in post.printed] == [1]


@pytest.mark.parametrize("guard", [None, PolicyEngine([ToolPolicy(["stick"], denied_scopes=["guests"])])])
async def test_a_recording_of_calls_to_which_their_types_add_an_id_can_be_verified_and_forked(guard: Any) -> None:
    post = Post("pydantic", count(1), "unsafe")
    async with RuntimeKernel.create(agent=post.agent, policy=guard) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="send it"))
        await handle.result()
        recording, code = await kernel.record(handle.job_id), kernel.code()
    same = await ReplayPlayer(recording).replay(mode=ReplayMode.VERIFY, code=code)
    forked = await fork(recording, code, at=3)
    assert (same.difference, forked.outcome, forked.first_difference) == ("", "succeeded", None)
    assert len(post.printed) == 1


async def test_another_attempt_of_a_job_does_not_repeat_a_call_to_which_its_types_add_an_id(memory_url: str) -> None:
    """Each failure of the model behind a purchase bought again."""
    post, fails = Post("pydantic", count(1), "unsafe"), [ModelUnavailable("down"), ModelUnavailable("down")]

    def answer(spec: RequestSpec) -> Any:
        return fails.pop() if fails and spec.messages[-1].role == "tool" else post.answer(spec)

    app, broker = App("desk", memory_url, state="memory", journal="memory"), MemoryBroker.get(memory_url)
    engine = ExecutionEngine(ScriptedProvider(answer), retries=0, patience=0)
    options: dict[str, Any] = {"on_error": "retry", "retries": 2, "backoff": "1ms"}
    app.llm_agent("in", engine, tools=list(post.agent.tools.values()), sink="out", **options)
    async with started(app):
        broker.publish("in", ["send it"])
        await until(lambda: broker.records("out"))
    assert ([number for number, _ in post.printed], fails) == ([1], [])


async def test_an_agent_finds_a_call_that_an_earlier_version_has_recorded() -> None:
    """It recorded the digest of the decoded arguments, and not that of the model's words."""
    home, made = MemoryStorage(), list[str]()

    @tool
    def refund(order: str) -> str:
        made.append(order)
        return "paid"

    def answer(spec: RequestSpec) -> Any:
        last = spec.messages[-1]
        return last.text if last.role == "tool" else assistant("", ToolCall("1", "refund", '{"order": "o-1"}'))

    agent = Agent(ExecutionEngine(ScriptedProvider(answer)), tools=[refund])

    async def f(ctx: DurableContext) -> str:
        return (await agent.run("refund it", effects=ctx.llm(agent.engine))).content

    async with hosting(home, Owner(f)) as jobs:
        jobs.begin("j")
        await jobs.over("j")
    earlier = prefix(home, 0)
    journal = MemoryJournal(earlier)
    for entry in entries(home)[:5]:  # the result of the call is the last one
        if isinstance(entry, Intent) and entry.name == "refund":
            entry = msgspec.structs.replace(entry, digest=digest(home.key, "call", "refund", entry.body))
        journal.append(entry)
    journal.close()
    async with hosting(earlier, Owner(f)) as jobs:
        await jobs.over("j")
        assert (jobs.agent.done["j"], made) == ("paid", ["o-1"])


async def test_an_approved_call_gives_the_arguments_by_the_names_that_were_shown_after_a_deploy_too() -> None:
    """The function gives them by place, and the tool of the later program has its parameters in another order."""
    home, made = MemoryStorage(), list[Any]()

    @tool(name="refund")
    def first(order: Any, amount: Any, note: str = "") -> None: ...

    @tool(name="refund")
    def second(amount: Any, order: Any, note: str = "") -> None:
        made.append({"order": order, "amount": amount})

    def job(refund: Tool) -> Any:
        async def f(ctx: DurableContext) -> None:
            await ctx.call(refund, 1, 900)

        return f

    ask = PolicyEngine([ToolPolicy(["refund"], require_approval=True)])
    async with hosting(home, Owner(job(first)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
        assert question.payload["arguments"] == [[], {"order": 1, "amount": 900, "note": ""}]
    async with hosting(home, Owner(job(second)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
    assert made == [{"order": 1, "amount": 900}]


# -- calls whose arguments a deploy may change --------------------------------------------------------------------------


async def test_a_call_about_which_a_person_was_asked_is_not_made_with_arguments_of_a_later_program() -> None:
    """A replay may give a call that changes nothing other arguments, but nobody has allowed these."""
    home, made = MemoryStorage(), list[Any]()

    @tool(effect="read")
    def export(rows: int) -> int:
        made.append(rows)
        return rows

    def job(rows: int) -> Any:
        async def f(ctx: DurableContext) -> Any:
            try:
                return await ctx.call(export, rows)
            except PolicyDenied as error:
                return error.message

        return f

    ask = PolicyEngine([ToolPolicy(["export"], require_approval=True)])
    async with hosting(home, Owner(job(5)), guard=ask) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        question = open_question(home)
    async with hosting(home, Owner(job(900)), guard=ask) as jobs:
        jobs.journal.post(Letter("answer", question.resume_token, body=b'{"approved": true}'))
        await jobs.over("j")
        assert "a person was asked about other arguments" in jobs.agent.done["j"]
    assert made == []


@pytest.mark.parametrize("later", ["the same model", "a denied one", "a longer prompt", "a secret"])
async def test_a_request_that_a_crash_cut_off_is_judged_again_if_the_next_program_makes_another_one(later: str) -> None:
    home, asked, arrived = MemoryStorage(), list[Any](), asyncio.Event()

    def short(call: GuardedCall) -> GuardVerdict | None:
        long = call.spec is not None and len(call.spec.messages[-1].text) > 20
        return GuardVerdict(Decision.DENY, reason="too long") if long else None

    policy = [ModelPolicy(["big"], denied=True), short, RedactionPolicy(["4711"], model_patterns=["*"])]

    def job(prompt: str, model: str) -> Any:
        async def answer(spec: RequestSpec) -> str:
            asked.append(spec.messages[-1].text)
            if len(asked) == 1:
                arrived.set()
                await asyncio.Event().wait()
            return "yes"

        engine = ExecutionEngine(ScriptedProvider(answer, model=model))

        async def f(ctx: DurableContext) -> Any:
            try:
                return (await ctx.llm(engine).complete(prompt)).content
            except PolicyDenied as error:
                return error.message

        return f

    async with hosting(home, Owner(job("short", "small")), guard=PolicyEngine(policy)) as jobs:
        jobs.begin("j")
        await arrived.wait()
        crashed = prefix(home, 2)  # BEGIN and INTENT
    then = {
        "a denied one": ("short", "big"),
        "a longer prompt": ("long " * 9, "small"),
        "a secret": ("card 4711", "small"),
    }
    async with hosting(crashed, Owner(job(*then.get(later, ("again", "small")))), guard=PolicyEngine(policy)) as jobs:
        await jobs.over("j")
        done = jobs.agent.done["j"]
    if later in ("a denied one", "a longer prompt"):
        assert asked == ["short"]
        assert "its arguments are others than before the restart" in done
    else:
        assert done == "yes"
        assert asked == ["short", "card ***" if later == "a secret" else "again"]
