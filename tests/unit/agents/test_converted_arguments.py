"""What a tool makes of its arguments before its function gets them is what rules and people see: `validate_call` of pydantic,
and the classes by which a function may read a dict.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import attrs
import msgspec
import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    computed_field,
    model_validator,
    validate_call,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from sabot.agents import (
    CedarPolicy,
    ConstraintPolicy,
    Effect,
    ExecutionRequest,
    PolicyEngine,
    PolicyRule,
    RedactionPolicy,
    RuntimeKernel,
    ToolContext,
    tool,
)
from sabot.engine.calls.edits import recorded_arguments
from sabot.errors import UserError
from sabot.journal.memory import MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider, ToolCall, assistant

MADE: list[Any] = []
Cents = Annotated[int, AfterValidator(lambda dollars: 100 * dollars)]


@pytest.fixture(autouse=True)
def _nothing_made() -> None:
    MADE.clear()


async def outcome(call: Callable[[Any], Any], *rules: PolicyRule) -> str:
    """Runs a job that makes one call. Returns the error, or ""."""

    async def desk(ctx: Any) -> str:
        try:
            await call(ctx)
        except Exception as error:
            return str(error)
        return ""

    async with RuntimeKernel.create(agent=desk, policy=PolicyEngine([*rules])) as kernel:
        return str((await (await kernel.execute(ExecutionRequest(prompt="x"))).result()).output)


# -- dicts in place of objects --------------------------------------------------------------------------------------------


class ByPath(BaseModel):
    amount: int = Field(default=1, validation_alias=AliasPath("total", "amount"))


class ByChoices(BaseModel):
    amount: int = Field(default=1, validation_alias=AliasChoices("sum", AliasPath("total", 0)))


class After(BaseModel):
    amount: Cents


class Before(BaseModel):
    amount: Annotated[int, BeforeValidator(lambda dollars: 100 * dollars)]


class Renamed(BaseModel):
    amount: int = 1

    @model_validator(mode="before")
    @classmethod
    def _of_cents(cls, given: Any) -> Any:
        given["amount"] = given.pop("cents")
        return given


class Computed(BaseModel):
    price: int
    count: int

    @computed_field
    def amount(self) -> int:
        return self.price * self.count


@pydantic_dataclass
class OfPydantic:
    amount: Cents


class Struct(msgspec.Struct):
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 100


@dataclass
class Plain:
    amount: int

    def __post_init__(self) -> None:
        self.amount *= 100


@attrs.define
class Attrs:
    amount: int = attrs.field(converter=lambda dollars: 100 * dollars)


READ: dict[Any, tuple[Callable[[Any], Any], Any, Any]] = {
    ByPath: (ByPath.model_validate, {"total": {"amount": 500}}, {"total": {"amount": 5}}),
    ByChoices: (ByChoices.model_validate, {"total": [500]}, {"total": [5]}),
    After: (After.model_validate, {"amount": 5}, {"amount": 0}),
    Before: (Before.model_validate, {"amount": 5}, {"amount": 0}),
    Renamed: (Renamed.model_validate, {"cents": 500}, {"cents": 5}),
    Computed: (Computed.model_validate, {"price": 50, "count": 10}, {"price": 5, "count": 1}),
    OfPydantic: (TypeAdapter(OfPydantic).validate_python, {"amount": 5}, {"amount": 0}),
    Struct: (lambda given: msgspec.convert(given, Struct), {"amount": 5}, {"amount": 0}),
    Plain: (lambda given: Plain(**given), {"amount": 5}, {"amount": 0}),
    Attrs: (lambda given: Attrs(**given), {"amount": 5}, {"amount": 0}),
}


@pytest.mark.parametrize("within", ["alone", "in a list"])
@pytest.mark.parametrize("kind", READ)
async def test_a_dict_is_judged_by_what_the_class_of_the_parameter_makes_of_it(kind: Any, within: str) -> None:
    """A validator changed the amount, or an AliasPath took it from elsewhere, and the bound judged what was not paid."""
    read, much, little = READ[kind]

    async def pay(order: Any) -> None:
        MADE.append([read(each).amount for each in (order if isinstance(order, list) else [order])])

    pay.__annotations__["order"] = kind if within == "alone" else list[kind]
    path = "order.amount" if within == "alone" else "order.*.amount"
    bound, made = ConstraintPolicy(["pay"], path, max=50), tool(pay)
    for given, refused in ((much, True), (little, False)):
        order = given if within == "alone" else [given]
        before = json.dumps(order)
        said = await outcome(lambda ctx, order=order: ctx.call(made, order), bound)
        assert ("500, and at most 50" in said) is refused, said
        assert json.dumps(order) == before
    assert len(MADE) == 1
    assert MADE[0][0] <= 50


async def test_cedar_denies_a_dict_of_which_the_class_makes_another_value() -> None:
    @tool
    async def pay(order: After) -> None:
        MADE.append(order)

    @tool(name="pay_by_path")
    async def pay_by_path(order: ByPath) -> None:
        MADE.append(order)

    cedar = CedarPolicy(
        "permit(principal, action, resource) when { context.arguments.order.amount <= 50 };", kinds=["tool"]
    )
    assert "amount is 5, and After makes 500 of it" in await outcome(lambda ctx: ctx.call(pay, {"amount": 5}), cedar)
    assert "no Cedar policy permits it" in await outcome(
        lambda ctx: ctx.call(pay_by_path, {"total": {"amount": 500}}), cedar
    )
    assert not MADE
    assert not await outcome(lambda ctx: ctx.call(pay_by_path, {"total": {"amount": 5}}), cedar)


# -- validate_call --------------------------------------------------------------------------------------------------------


@validate_call
async def pay_cents(amount: Cents = 0, note: str = "") -> None:
    MADE.append(amount)


@validate_call(config={"str_to_upper": True})
def send_to(to: str) -> None:
    MADE.append(to)


class Bank:
    @validate_call
    async def send(self, amount: Cents) -> None:
        MADE.append(amount)


@validate_call(config={"arbitrary_types_allowed": True})
async def pay_with_key(amount: Cents, effect: Effect) -> None:
    MADE.append(amount)


@validate_call(config={"arbitrary_types_allowed": True})
async def pay_for(ctx: ToolContext, amount: Cents) -> None:
    MADE.append(amount)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("function", [pay_cents, Bank().send, pay_with_key, pay_for])
async def test_rules_see_what_validate_call_gives_to_the_function(function: Any, named: bool) -> None:
    """It was judged as it was given: 5 passed, and 500 were paid."""
    pay = tool(name="pay")(function)
    given: dict[str, Any] = {"amount": 5} if named else {}

    def call(ctx: Any) -> Any:
        return ctx.call(pay, *(() if named else (5,)), **given)

    assert "amount is 500, and at most 50" in await outcome(call, ConstraintPolicy(["pay"], "amount", max=50))
    assert not MADE
    assert not await outcome(call, ConstraintPolicy(["pay"], "amount", max=500))
    assert MADE == [500]


async def test_rules_see_texts_as_the_config_of_validate_call_makes_them() -> None:
    send = tool(send_to)
    denies = ConstraintPolicy(["send_to"], "to", denied=["EVE"])
    assert "to is 'EVE', which is denied" in await outcome(lambda ctx: ctx.call(send, "eve"), denies)
    hides = RedactionPolicy(patterns=["EVE"])
    assert "makes a text of to that has to be hidden" in await outcome(lambda ctx: ctx.call(send, "eve"), hides)
    assert not MADE
    assert not await outcome(lambda ctx: ctx.call(send, "bob"), denies, hides)
    assert MADE == ["BOB"]


async def test_a_person_sees_what_validate_call_makes_and_changes_nothing_that_it_would_change_again() -> None:
    pay = tool(name="pay_in_cents")(pay_cents)

    async def desk(ctx: Any) -> None:
        await ctx.call(pay, 5)

    asks = ConstraintPolicy(["pay_in_cents"], "amount", max=50, otherwise="ask")
    async with RuntimeKernel.create(agent=desk, policy=PolicyEngine([asks])) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        async for event in handle.events():
            if event.type.startswith("action"):
                break
        (question,) = await kernel.actions.find(job_id=handle.job_id)
        assert question.payload["arguments"][1] == {"amount": 500, "note": ""}
        with pytest.raises(UserError, match="called with amount=300, and validate_call makes 30000"):
            await kernel.actions.resolve(question.resume_token, {"approved": True, "arguments": {"amount": 3}})
        await kernel.actions.resolve(question.resume_token, {"approved": True, "arguments": {"note": "rent"}})
        await handle.result()
    assert MADE == [500]


async def test_an_approved_call_is_made_with_what_was_shown_behind_a_restart() -> None:
    home, pay = MemoryStorage(), tool(name="pay")(pay_cents)
    policy = PolicyEngine([ConstraintPolicy(["pay"], "amount", max=50, otherwise="ask")])

    async def desk(ctx: Any) -> None:
        await ctx.call(pay, 5)

    async with RuntimeKernel.create(agent=desk, policy=policy, journal=home) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="x"))
        async for event in handle.events():
            if event.type.startswith("action"):
                break
    async with RuntimeKernel.create(agent=desk, policy=policy, journal=home) as kernel:
        await kernel.resume()
        (question,) = await kernel.actions.find(job_id=handle.job_id)
        await kernel.actions.resolve(question.resume_token, {"approved": True})
        await (await kernel.handle(handle.job_id)).result()
    assert MADE == [500]


async def test_a_default_that_is_not_validated_is_called_as_it_was_judged() -> None:
    """Rules get a copy of a default that can change. If the call got it too, it was an argument, which is validated."""

    @tool
    @validate_call
    async def pay(amounts: Annotated[list[int], AfterValidator(lambda each: each * 2)] = [500]) -> None:  # noqa: B006
        MADE.append(amounts)

    assert not await outcome(lambda ctx: ctx.call(pay), ConstraintPolicy(["pay"], "amounts", allowed=[[500]]))
    assert MADE == [[500]]


async def pay_plainly(amount: Cents) -> None:
    MADE.append(amount)


async def pay_order(order: After, amounts: list[Cents]) -> None:
    MADE.append(order)


@pytest.mark.parametrize(
    ("function", "recorded"),
    [
        (pay_cents, {"amount": 3}),
        (pay_plainly, {"amount": 3}),
        (pay_order, {"order": {"amount": 3}}),
        (pay_order, {"amounts": [3]}),
    ],
)
def test_a_default_of_before_a_deploy_is_not_validated_again(function: Any, recorded: Any) -> None:
    """A call that was judged with 3, the default of then, paid 300."""
    with pytest.raises(UserError, match=r"of which a validator of pay makes .*300"):
        recorded_arguments(tool(name="pay")(function), (), {}, recorded, recorded)


def test_a_default_of_before_a_deploy_is_that_of_the_call() -> None:
    pay, recorded = tool(name="pay")(pay_cents), {"note": "rent", "amount": 0}
    assert recorded_arguments(pay, (), {}, recorded, recorded) == ((), {"note": "rent"})


@pytest.mark.parametrize(
    ("function", "amount", "made"),
    [(pay_plainly, 5, [500]), (pay_cents, 5, []), (Bank().send, 5, []), (pay_cents, 0, [0])],
)
async def test_what_a_model_gives_is_converted_once(function: Any, amount: int, made: list[int]) -> None:
    """`validate_call` converted once more what was converted when the arguments were read: 50,000 were paid for 5."""
    script = [assistant("", ToolCall("1", "pay", json.dumps({"amount": amount}))), "done"]
    result = await Agent(ExecutionEngine(ScriptedProvider(script)), tools=[tool(name="pay")(function)]).run("go")
    assert made == MADE
    assert made or "would make 50000 of amount=500" in result.messages[-2].text
