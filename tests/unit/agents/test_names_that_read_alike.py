"""A key whose name reads like the field of a bound: `{"Amount": 500}` for `order.amount`. Many programs take it for the field."""

from dataclasses import dataclass
from typing import Any, TypedDict

import polars as pl
import pyarrow as pa
import pydantic
import pytest

from sabot.agents import ConstraintPolicy, PolicyEngine, tool
from sabot.engine.calls.edits import edited_arguments
from sabot.errors import UserError
from sabot.mcp.tools import OfferedArguments

ALIKE = ["Amount", "AMOUNT", " amount ", "a_mount", "a-mount", "\uff41mount", "amou\u00adnt"]


class Aliased(pydantic.BaseModel):
    amount: int = pydantic.Field(default=5, validation_alias=pydantic.AliasChoices("amount", "Amount"))


class Camel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=lambda name: name.title(), populate_by_name=True)

    amount: int = 5


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    amount: int = 5


class Typed(TypedDict, total=False):
    amount: int


@dataclass
class Both:
    amount: int
    Amount: int


@tool
def untyped(order: dict): ...  # type: ignore[type-arg]


@tool
def unknown(order: Any): ...


@tool
def aliased(order: Aliased): ...


@tool
def camel(order: Camel): ...


@tool
def opened(order: Open): ...


@tool
def typed(order: Typed): ...


@tool
def listed(order: list[dict[str, int]]): ...


@tool
def more(**order: int): ...


@tool
def and_more(order: int = 1, **rest: int): ...


@tool
def batch(rows: pa.RecordBatch): ...


@tool
def frame(rows: pl.DataFrame): ...


@tool
def both(order: Both): ...


async def judged(name: str, field: str, arguments: Any, **bound: Any) -> str:
    policy = PolicyEngine([ConstraintPolicy([name], field, **(bound or {"max": 50}))])
    return str((await policy.check_tool(globals()[name], arguments=arguments)).decision)


@pytest.mark.parametrize("key", ALIKE)
@pytest.mark.parametrize("name", ["untyped", "unknown", "aliased", "camel", "opened", "typed"])
async def test_a_key_that_reads_like_the_field_is_judged(name: str, key: str) -> None:
    assert await judged(name, "order.amount", {"order": {key: 500}}) == "deny"
    assert await judged(name, "order.amount", {"order": {"amount": 5, key: 500}}) == "deny"
    if name != "typed":  # nobody knows what it takes in place of the amount
        assert await judged(name, "order.amount", {"order": {key: 5}}) == "allow"
    assert await judged(name, "order.amount", {"order": {"amount": 5, "count": 500}}) == "allow"


@pytest.mark.parametrize("key", ALIKE)
async def test_it_stands_for_no_field_that_is_required(key: str) -> None:
    """The tool may read the other name, and take an amount of its own."""
    for name in ("untyped", "unknown"):
        assert await judged(name, "order.amount", {"order": {key: 5}}, max=50, required=True) == "deny"


@pytest.mark.parametrize("key", ALIKE)
async def test_items_rows_and_arguments_without_a_parameter_are_judged_so_too(key: str) -> None:
    assert await judged("listed", "order.*.amount", {"order": [{"amount": 5}, {key: 500}]}) == "deny"
    assert await judged("more", "amount", {key: 500}) == "deny"
    assert await judged("more", "order.amount", {key: 500}) == "deny"
    assert await judged("and_more", "amount", {"amount": 5, key: 500}) == "deny"
    rows = pa.RecordBatch.from_pylist([{"amount": 5, key: 500}])
    assert await judged("batch", "rows.*.amount", {"rows": rows}) == "deny"
    assert await judged("frame", "rows.*.amount", {"rows": pl.DataFrame({key: [500]})}) == "deny"


@pytest.mark.parametrize("key", ALIKE)
async def test_a_model_with_other_fields_than_its_own_is_judged_as_a_dict_is(key: str) -> None:
    """Agents give the tool the model that they have decoded, and the tool sends all of its fields on."""
    for said in ('{"order": {"amount": 5, "%s": 500}}', '{"order": {"%s": 500}}'):
        assert await judged("opened", "order.amount", opened.arguments(said % key)) == "deny"
    assert await judged("opened", "order.amount", {"order": Open(amount=5, **{key: 6, "count": 500})}) == "allow"


async def test_a_field_that_the_type_declares_is_another_one() -> None:
    assert await judged("both", "order.amount", {"order": Both(5, 500)}) == "allow"
    assert await judged("both", "order.amount", {"order": {"amount": 5, "Amount": 500}}) == "allow"
    assert await judged("both", "order.Amount", {"order": {"amount": 5, "Amount": 500}}) == "deny"


@pytest.mark.parametrize("key", ALIKE)
async def test_a_tool_of_a_server_is_judged_so_too(key: str) -> None:
    """Servers in Go read the keys of JSON in either case."""
    import dataclasses

    schema = {
        "type": "object",
        "properties": {"amount": {"type": "integer", "default": 5}, "order": {"type": "object"}},
    }
    served = dataclasses.replace(tool(name="pay")(lambda **_: None), parameters=OfferedArguments("pay", "", schema))
    for field, arguments in (("amount", {key: 500}), ("order.amount", {"order": {key: 500}})):
        policy = PolicyEngine([ConstraintPolicy(["pay"], field, max=50)])
        assert (await policy.check_tool(served, arguments=arguments)).decision == "deny"
    policy = PolicyEngine([ConstraintPolicy(["pay"], "amount", max=50)])
    assert (await policy.check_tool(served, arguments={"amount": 6})).decision == "allow"


def test_a_person_may_change_a_field_that_a_model_takes_beside_its_own() -> None:
    """The change was taken when it was given, and refused when the call was made."""
    order = Open(amount=1, Amount=500, note="rent")  # type: ignore[call-arg]
    (changed,), _ = edited_arguments(opened, (order,), {}, {"order": {"Amount": 5, "amount": 2}})
    assert changed.model_dump() == {"amount": 2, "Amount": 5, "note": "rent"}
    assert order.model_dump() == {"amount": 1, "Amount": 500, "note": "rent"}
    with pytest.raises(UserError, match="order has no field 'AMOUNT'"):
        edited_arguments(opened, (order,), {}, {"order": {"AMOUNT": 5}})
