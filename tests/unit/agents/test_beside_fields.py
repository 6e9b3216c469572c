"""Attributes of arguments that are no fields: they reach the tool, and are no part of what is packed."""

import dataclasses
from functools import cached_property
from typing import Any

import pydantic
import pytest

from sabot.agents import ExecutionRequest, PolicyEngine, RedactionPolicy, RuntimeKernel, ToolPolicy, tool
from sabot.jobs.masking import mask
from sabot.jobs.shown_arguments import unseen

SECRET = "key 12345678"
HIDDEN = "key ***"


class Model(pydantic.BaseModel):
    order: str = "o-1"
    inner: Any = None
    _note: Any = SECRET

    @cached_property
    def length(self) -> int:
        return len(self.order)


@dataclasses.dataclass
class Plain:
    order: str = "o-1"
    inner: Any = None


class Pairs(dict[str, Any]): ...


class Items(list[Any]): ...


class Text(str): ...


def with_note(value: Any) -> Any:
    value._note = SECRET
    return value


MADE = [
    pytest.param(Model, id="a private attribute of pydantic"),
    pytest.param(lambda: with_note(Plain()), id="an attribute of a dataclass"),
    pytest.param(lambda: with_note(Pairs(a=1)), id="an attribute of a dict"),
    pytest.param(lambda: with_note(Items([1])), id="an attribute of a list"),
    pytest.param(lambda: with_note(Text("a")), id="an attribute of a text"),
]


@pytest.mark.parametrize("make", MADE)
def test_texts_are_hidden_in_attributes_that_are_no_fields(make: Any) -> None:
    value = make()
    shown = mask([value], ["[0-9]{8}"])[0]
    assert (type(shown), shown._note, value._note) == (type(value), HIDDEN, SECRET)
    value._note = "nothing"
    assert mask(value, ["[0-9]{8}"]) is value


@pytest.mark.parametrize("make", MADE)
async def test_a_question_names_what_reaches_the_tool_and_is_not_shown(make: Any) -> None:
    """An approved call pays by a private attribute, too. Its value may be a secret, so the question has its name only."""
    got: list[Any] = []

    @tool
    async def pay(of: Any) -> None:
        got.append(of._note)

    async def job(ctx: Any) -> None:
        await ctx.call(pay, make())

    policy = PolicyEngine([ToolPolicy(["pay"], require_approval=True), RedactionPolicy(["[0-9]{8}"])])
    async with RuntimeKernel.create(agent=job, policy=policy) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="go"))
        async for event in handle.events():
            if event.type == "action.required":
                (question,) = await handle.get_pending_actions()
                said = question.payload["reason"]
                assert said == (
                    "tool pay needs approval; the tool also gets what is no field, and is not shown: of._note"
                )
                await handle.resolve_action(question.resume_token, {"approved": True})
    assert got == [HIDDEN]


def test_attributes_that_lead_back_to_their_object_have_an_end() -> None:
    value, inner = Model(), Model(order="12345678")
    value.inner, value._note, inner._note = inner, [value, SECRET], value
    shown = mask(value, ["[0-9]{8}"])
    assert shown.inner.order == "***"
    assert shown._note[1] == HIDDEN
    assert unseen({"of": value}) == ["of._note", "of.inner._note"]


def test_cached_values_objects_of_the_program_and_what_has_no_such_attribute_are_as_they_were() -> None:
    value = Model()
    assert value.length == 3
    value._note = client = object()
    assert mask(value, ["[0-9]{8}"])._note is client
    assert unseen({"of": value}) == ["of._note"]
    for plain in (Plain(), {"a": Plain()}, [1, "a", None], dataclasses.field, 1.5):
        assert unseen({"of": plain}) == []
