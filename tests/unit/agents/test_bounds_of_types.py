"""A bound that no value of an argument can be compared with would limit nobody in silence: the start is refused."""

import dataclasses
import datetime
import enum
import uuid
from collections import defaultdict
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NewType

import msgspec
import pydantic
import pytest

from sabot import App, secret
from sabot.agents import ConstraintPolicy, PolicyEngine, RuntimeKernel, tool
from sabot.agents.policy import names as rule_names
from sabot.engine.calls import names
from sabot.engine.calls.names import note_tool
from sabot.engine.calls.tools import Tool
from sabot.errors import UserError
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider
from sabot.mcp.offers import OfferedArguments

Cents = NewType("Cents", int)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.StrEnum):
    SMALL = "small"


class Money(pydantic.BaseModel):
    amount: int = pydantic.Field(500, alias="betrag")
    unit: Literal["EUR", "USD"] = "EUR"


class Line(msgspec.Struct, rename="camel"):
    unit_price: Decimal = Decimal(5)


@dataclasses.dataclass
class Parcel:
    weight: float = 1.0


@tool
def pay(
    order: str,
    amount: int = 500,
    total: Decimal = Decimal(1),
    limit: Annotated[float | None, "in EUR"] = None,
    cents: Cents = Cents(1),
    day: datetime.date | None = None,
    at: datetime.datetime | None = None,
    ref: uuid.UUID | None = None,
    now: bool = False,
    colour: Colour = Colour.RED,
    size: Size = Size.SMALL,
    unit: Literal["EUR", "USD"] = "EUR",
    notes: list[str] | None = None,
    money: Money | None = None,
    lines: tuple[Line, ...] = (),
    parcel: Parcel | None = None,
    either: int | str = 0,
    anything: Any = None,
    untyped=None,
    file: Path | None = None,
    **more: Any,
) -> None: ...


@pytest.fixture(autouse=True)
def _only_the_tools_of_this_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_names, "SERVERS", set())
    monkeypatch.setattr(rule_names, "TOOLS", {"pay"})
    monkeypatch.setattr(names, "_MADE", {})
    note_tool(pay)


def start(*rules: ConstraintPolicy, functions: Any = ()) -> None:
    PolicyEngine(list(rules)).check_names(list(functions), [], "app desk")


WRONG = [
    ("amount", {"denied": ["500"]}, "denied=['500']", "its type is int", "denied=[500]"),
    ("amount", {"allowed": ["50"]}, "allowed=['50']", "its type is int", "allowed=[50]"),
    ("amount", {"allowed": [50, "60"]}, "allowed=['60']", "its type is int", "allowed=[60]"),
    ("amount", {"max": "50"}, "max='50'", "its type is int", "max=50"),
    ("amount", {"min": "50"}, "min='50'", "its type is int", "min=50"),
    ("amount", {"max_length": 3}, "max_length=3", "its type is int", "numbers have max"),
    ("amount", {"pattern": "[0-9]+"}, "pattern='[0-9]+'", "its type is int", "pattern= is for texts"),
    ("amount", {"denied": [0.5]}, "denied=[0.5]", "its type is int", "of the type int"),
    ("amount", {"denied": [True]}, "denied=[True]", "its type is int", "of the type int"),
    ("cents", {"denied": ["500"]}, "denied=['500']", "its type is int", "denied=[500]"),
    ("total", {"denied": ["0.1"]}, "denied=['0.1']", "its type is Decimal", "denied=[Decimal('0.1')]"),
    ("total", {"denied": [0.1]}, "denied=[0.1]", "its type is Decimal", "denied=[Decimal('0.1')]"),
    ("limit", {"denied": [Decimal("0.1")]}, "denied=[Decimal('0.1')]", "its type is float", "denied=[0.1]"),
    ("limit", {"max": "5"}, "max='5'", "its type is float", "max=5.0"),
    ("order", {"max": 50}, "max=50", "its type is str", "compared by their characters"),
    ("order", {"denied": [500]}, "denied=[500]", "its type is str", "denied=['500']"),
    ("day", {"max": "2026-01-01"}, "max='2026-01-01'", "its type is date", "max=datetime.date(2026, 1, 1)"),
    ("day", {"denied": [datetime.datetime(2026, 1, 1)]}, "denied", "its type is date", "of the type date"),
    ("at", {"min": datetime.date(2026, 1, 1)}, "min=datetime.date", "its type is datetime", "of the type datetime"),
    ("ref", {"denied": [str(uuid.UUID(int=7))]}, "denied", "its type is UUID", "denied=[UUID("),
    ("now", {"max": 1}, "max=1", "its type is bool", "allowed=[True]"),
    ("now", {"denied": ["true"]}, "denied=['true']", "its type is bool", "denied=[True]"),
    ("colour", {"denied": ["red"]}, "denied=['red']", "its type is Colour", "Colour.RED, Colour.BLUE"),
    ("size", {"denied": ["smal"]}, "denied=['smal']", "its type is Size", "Size.SMALL"),
    ("unit", {"allowed": ["EUR", "CHF"]}, "allowed=['CHF']", "its type is Literal['EUR', 'USD']", "'EUR', 'USD'"),
    ("notes", {"denied": ["x"]}, "denied=['x']", "its type is list[str]", 'field="notes.*"'),
    ("notes", {"pattern": "x"}, "pattern='x'", "its type is list[str]", 'field="notes.*"'),
    ("notes.*", {"max": 5}, "max=5", "its type is str", "characters"),
    ("money", {"max": 5}, "max=5", "its type is Money", "path of a field"),
    ("money.amount", {"denied": ["5"]}, "denied=['5']", "its type is int", "denied=[5]"),
    ("money.betrag", {"denied": ["5"]}, "denied=['5']", "its type is int", "denied=[5]"),
    ("money.unit", {"denied": ["CHF"]}, "denied=['CHF']", "its type is Literal", "'EUR', 'USD'"),
    ("lines.*.unitPrice", {"max": "5"}, "max='5'", "its type is Decimal", "max=Decimal('5')"),
    ("lines.0.unit_price", {"max": "5"}, "max='5'", "its type is Decimal", "max=Decimal('5')"),
    ("parcel.weight", {"max": "5"}, "max='5'", "its type is float", "max=5.0"),
    ("either", {"max": datetime.date(2026, 1, 1)}, "max=datetime.date", "its type is int or str", "type int or str"),
    ("file", {"denied": ["/etc/passwd"]}, "denied=['/etc/passwd']", "its type is Path", "of the type Path"),
]


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("field", "bound", "shown", "kind", "hint"), WRONG)
def test_a_bound_of_another_type_than_its_argument_is_refused_at_the_start(
    field: str, bound: dict[str, Any], shown: str, kind: str, hint: str
) -> None:
    for pattern in ("pay", "pa*"):
        with pytest.raises(UserError) as caught:
            start(ConstraintPolicy([pattern], field, **bound))
        for words in (shown, kind, f"no {field} of tool pay can be compared", "app desk: ConstraintPolicy"):
            assert words in caught.value.message
        assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("field", "bound"),
    [
        ("amount", {"max": 50.5, "min": Decimal(1), "denied": [7, 8.0]}),
        ("total", {"max": 50, "denied": [0.5, 3]}),
        ("limit", {"max": Decimal("0.1")}),
        ("at", {"max": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}),
        ("at", {"max": datetime.datetime(2026, 1, 1)}),
        ("colour", {"denied": [Colour.RED]}),
        ("size", {"denied": ["small"], "pattern": ".*"}),
        ("now", {"allowed": [False]}),
        ("notes", {"max_length": 3, "denied": [["a"]]}),
        ("notes.*", {"denied": ["x"], "pattern": ".*"}),
        ("day", {"allowed": [None, datetime.date(2026, 1, 1)]}),
        ("either", {"max": 5, "pattern": "x"}),
        ("either", {"denied": ["500"]}),
        ("anything", {"denied": ["500"], "max": "50", "max_length": 3}),
        ("anything.of.it", {"denied": ["500"], "max": "50", "pattern": "x"}),
        ("untyped", {"denied": ["500"], "max": "50"}),
        ("else", {"denied": ["500"], "max": "50"}),
        ("file", {"denied": [Path("/etc/passwd")]}),
        ("amount", {"required": True}),
    ],
)
def test_a_bound_that_can_be_compared_and_one_of_an_unknown_type_let_the_start_go_on(
    field: str, bound: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    start(ConstraintPolicy(["pay"], field, **bound), ConstraintPolicy(["pa*"], field, **bound))
    assert not caplog.records


async def test_a_value_of_an_unknown_type_that_cannot_be_compared_is_denied_with_its_words() -> None:
    for value, words in (
        (500, "anything is 500, which cannot be compared with denied=['500'] (tool pay)"),
        (["500"], "anything is ['500'], which cannot be compared with denied=['500']"),
        (Colour.RED, "which cannot be compared with denied=['500']"),
        (datetime.date(2026, 1, 1), "which cannot be compared with denied=['500']"),
        ("500", "which is denied"),
    ):
        policy = PolicyEngine([ConstraintPolicy(["pay"], "anything", denied=["500"], otherwise="warn")])
        result = await policy.check_tool(pay, arguments={"order": "o", "anything": value})
        assert words in result.reason
        assert (result.decision == "deny") is (value != "500")


def served(schema: Any) -> Tool:
    json = {"type": "object", "properties": {"amount": schema}, "$defs": {"Cents": {"type": "integer"}}}
    made = dataclasses.replace(tool(name="pay")(print), parameters=OfferedArguments("pay", "", json))
    note_tool(made)
    return made


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "integer"}, "int"),
        ({"type": ["number", "null"]}, "float"),
        ({"anyOf": [{"$ref": "#/$defs/Cents"}, {"type": "null"}]}, "int"),
        ({"enum": [50, 60]}, "Literal[50, 60]"),
        ({"type": "array", "items": {"type": "string"}}, "list"),
        ({}, ""),
        ({"description": "an amount"}, ""),
        ({"type": "string"}, ""),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, ""),
        ({"allOf": [{"type": "integer"}, {"minimum": 0}]}, ""),
    ],
)
def test_the_schema_of_a_server_says_of_which_type_its_arguments_are(
    schema: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_MADE", {})
    made = served(schema)
    assert made.name == "pay"
    rule = ConstraintPolicy(["pay"], "amount", denied=["500"])
    if not kind:
        start(rule)
        return
    with pytest.raises(UserError) as caught:
        start(rule)
    assert caught.value.message.endswith(f"its type is {kind}")


# -- fields behind a pattern -----------------------------------------------------------------------------------------


@tool
def give_now(order: str, amount: int = 500) -> None: ...


@tool
def give_later(order: str, amount: str = "500") -> None: ...


@tool
def give_thanks(text: str) -> None: ...


@tool
def give_much(order: str, amuont: int = 500) -> None: ...


def give_by_step(order: str, amount: int) -> None: ...


async def agent_with_a_step(ctx: Any) -> None:
    await ctx.step(give_by_step, "o", 5)


def only(monkeypatch: pytest.MonkeyPatch, *tools: Tool) -> None:
    monkeypatch.setattr(names, "_MADE", {})
    monkeypatch.setattr(rule_names, "TOOLS", {each.name for each in tools})
    for each in tools:
        note_tool(each)


def test_a_misspelt_field_behind_a_pattern_is_refused_if_no_tool_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, give_now, give_later, give_thanks)
    for pattern in ("give*", "*"):
        with pytest.raises(UserError) as caught:
            start(ConstraintPolicy([pattern], "amonut", max=50))
        said = f"none of the tools that {pattern} matches has amonut"
        assert caught.value.message == f"app desk: ConstraintPolicy amonut is about amonut, and {said}"
        assert caught.value.hint == "did you mean 'amount'?"
    with pytest.raises(UserError) as caught:
        start(ConstraintPolicy(["give_t*", "give_now"], "colour", max=50))
    assert caught.value.hint == "they have text"
    with pytest.raises(UserError) as caught:
        start(ConstraintPolicy(["give_now"], "amount.*", max=50))
    assert caught.value.hint == "amount has no fields"


def test_a_field_behind_a_pattern_limits_the_tools_that_have_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    only(monkeypatch, give_now, give_thanks)
    start(ConstraintPolicy(["give*"], "amount", max=50), ConstraintPolicy(["*"], "amount", max=50))
    assert not caplog.records, "it is plain that thanks have no amount"
    only(monkeypatch, give_now, give_thanks, give_much)
    start(ConstraintPolicy(["give*"], "amount", max=50))
    assert caplog.messages == [
        "app desk: ConstraintPolicy amount limits only tools that have amount; is it another name in give_much (amuont)?"
    ]


async def test_a_bound_behind_a_pattern_denies_the_calls_of_tools_of_another_type_and_warns_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    only(monkeypatch, give_now, give_later)
    rules = [ConstraintPolicy(["give*"], "amount", denied=[500])]
    start(*rules)
    assert caplog.messages == [
        "app desk: ConstraintPolicy amount has denied=[500], with which no amount of tool give_later can be compared: "
        "its type is str, so its calls are denied"
    ]
    result = await PolicyEngine(rules).check_tool(give_later, arguments={"order": "o"})
    assert (result.decision, "cannot be compared with denied=[500]" in result.reason) == ("deny", True)
    with pytest.raises(UserError, match="denied=\\['1000'\\]"):  # a value that is of no use for any of them
        start(ConstraintPolicy(["give_now"], "amount", denied=[500, "1000"]))
    start(ConstraintPolicy(["give_now", "give_later"], "amount", denied=[500, "500"]))


def test_functions_that_are_steps_are_known_by_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, give_thanks)
    start(ConstraintPolicy(["give*"], "amount", max=50), functions=[agent_with_a_step])
    for rule, words in (
        (ConstraintPolicy(["give_by_step"], "amuont", max=50), "tool give_by_step has no amuont"),
        (ConstraintPolicy(["give_by_step"], "amount", denied=["500"]), "its type is int"),
    ):
        with pytest.raises(UserError, match=words):
            start(rule, functions=[agent_with_a_step])


def test_a_field_that_only_the_tool_of_a_server_may_have_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    only(monkeypatch, give_thanks)
    monkeypatch.setattr(rule_names, "SERVERS", {object()})
    start(ConstraintPolicy(["give*"], "amount", max=50))
    assert "none of the tools that give* matches has amount so far: is it about the tool of an MCP" in caplog.text


async def test_apps_and_kernels_do_not_start_with_a_bound_of_another_type(memory_url: str, tmp_path: Path) -> None:
    rule_names.TOOLS.add("give_now")
    note_tool(give_now)
    policy = PolicyEngine([ConstraintPolicy(["give_now"], "amount", max="50")])
    app = App("desk", memory_url, state=str(tmp_path), policy=policy)
    app.llm_agent("questions", ExecutionEngine(ScriptedProvider("yes")), name="desk", tools=[give_now])
    with pytest.raises(UserError, match="app desk: its policy: ConstraintPolicy amount has max='50'"):
        await app.start()
    kept = Agent(ExecutionEngine(ScriptedProvider("yes")), tools=[give_now])
    with pytest.raises(UserError, match="kernel kernel: its policy: ConstraintPolicy amount has max='50'"):
        async with RuntimeKernel.create(agent=kept, policy=policy):
            pass


async def test_a_denied_member_of_a_plain_enum_denies_no_other_member() -> None:
    """Two members of one Enum could not be compared, and each was denied."""

    class Mark:
        """A class whose objects are equal to themselves only."""

    mark = Mark()

    @tool
    def paint(colour: Any) -> None: ...

    for denied, other in ((Colour.RED, Colour.BLUE), (mark, Mark())):
        policy = PolicyEngine([ConstraintPolicy(["paint"], "colour", denied=[denied])])
        found = [await policy.check_tool(paint, arguments={"colour": each}) for each in (denied, other)]
        assert [each.allowed for each in found] == [False, True]


@pytest.mark.parametrize("given", [pydantic.SecretStr("eve"), pydantic.SecretBytes(b"eve"), secret("EVE")], ids=repr)
async def test_a_secret_passes_no_bound_that_looks_at_its_text(given: Any) -> None:
    """It is unequal to each text, so `denied=` let it pass."""

    @tool
    def mail(to: Any) -> None: ...

    found = await PolicyEngine([ConstraintPolicy(["mail"], "to", denied=["eve"])]).check_tool(
        mail, arguments={"to": given}
    )
    assert (found.allowed, "cannot be compared with denied" in found.reason) == (False, True)
    same = await PolicyEngine([ConstraintPolicy(["mail"], "to", denied=[given])]).check_tool(
        mail, arguments={"to": given}
    )
    assert "which is denied" in same.reason


async def test_the_default_of_a_dict_passes_no_bound() -> None:
    @tool
    def pay(order: Any) -> None: ...

    policy = PolicyEngine([ConstraintPolicy(["pay"], "order.amount", max=50)])
    for amount in (5, 500):
        order = defaultdict[str, int](lambda amount=amount: amount)  # type: ignore[misc]
        assert (await policy.check_tool(pay, arguments={"order": order})).allowed is (amount == 5)
        assert not order
