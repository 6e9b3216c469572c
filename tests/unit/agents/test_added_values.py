"""What the type of an `output=` adds by itself to the words of a model, such as a new id: each run of a job has the values
of the first one. It decoded the words anew, so that the function saw another id after each question and each crash.
"""

import dataclasses
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest
from unit.jobs.hosting import Agent as Owner
from unit.jobs.hosting import entries, hosting, prefix

from sabot.agents import DurableContext, ExecutionRequest, ReplayMode, ReplayPlayer, RuntimeKernel
from sabot.agents.job_view import JobView
from sabot.engine.calls.decoded import adds_values, form_of, with_form
from sabot.jobs.values import pack, unpack
from sabot.journal import Letter
from sabot.journal.entries import EffectResult
from sabot.journal.memory import MemoryJournal, MemoryReader, MemoryStorage
from sabot.llm import Agent, ExecutionEngine, ScriptedProvider

PEN = '{"item": "pen"}'


def order_of(kind: str, numbers: Iterator[int]) -> Any:
    """A type that adds a new id to each order, as `default_factory=uuid4` does."""

    def new_id() -> UUID:
        return UUID(int=next(numbers))

    match kind:
        case "pydantic":
            return pydantic.create_model("Order", item=(str, ...), id=(UUID, pydantic.Field(default_factory=new_id)))
        case "validator":

            class Order(pydantic.BaseModel, frozen=True):
                item: str
                id: UUID | None = None

                @pydantic.field_validator("id", mode="after")
                @classmethod
                def added(cls, value: UUID | None) -> UUID:
                    return value or new_id()

                model_config = pydantic.ConfigDict(validate_default=True)

            return Order
        case "private":

            class WithPrivate(pydantic.BaseModel):
                item: str
                _id: UUID = pydantic.PrivateAttr(default_factory=new_id)

                @property
                def id(self) -> UUID:
                    return self._id

            return WithPrivate
        case "struct":
            return msgspec.defstruct("Order", [("item", str), ("id", UUID, msgspec.field(default_factory=new_id))])
        case "dataclass":
            fields = [("item", str), ("id", UUID, dataclasses.field(default_factory=new_id))]
            return dataclasses.make_dataclass("Order", fields, frozen=True, slots=True)
        case "post_init":

            @dataclasses.dataclass
            class Made:
                item: str

                def __post_init__(self) -> None:
                    self.id = new_id()

            return Made
        case _:
            return attrs.make_class(
                "Order", {"item": attrs.field(type=str), "id": attrs.field(type=UUID, factory=new_id)}
            )


KINDS = ["pydantic", "validator", "private", "struct", "dataclass", "post_init", "attrs"]


class Shop:
    """A job that asks a model for an order in two ways, then a person. `seen`: the ids that its runs have seen."""

    def __init__(self, kind: str, numbers: Iterator[int]) -> None:
        self.output, self.seen = order_of(kind, numbers), list[tuple[UUID, UUID]]()
        self.engine = ExecutionEngine(ScriptedProvider(lambda spec: PEN))
        self.agent = Agent(self.engine, name="shop", output=self.output)

    async def job(self, ctx: DurableContext) -> str:
        model = ctx.llm(self.engine)
        first = (await model.complete("an order", output=self.output)).output
        second = (await self.agent.run("another one", effects=model)).output
        self.seen.append((first.id, second.id))
        await ctx.ask("confirm", {"order": str(first.id)})
        return f"{first.id} {second.id}"


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_sees_one_new_id_of_an_output_before_and_after_a_question_and_a_crash(kind: str) -> None:
    home, numbers = MemoryStorage(), count(1)
    shop = Shop(kind, numbers)
    async with hosting(home, Owner(shop.job)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
        (question,) = JobView.of(MemoryReader(home)).actions.values()
        jobs.journal.post(Letter("answer", question.resume_token, body=b"{}"))
        await jobs.over("j")
        said = jobs.agent.done["j"]
    for recorded in (5, 6):  # before and behind the question
        async with hosting(prefix(home, recorded), Owner(shop.job)) as jobs:
            await jobs.parks("j")
    assert len(shop.seen) == 4
    assert {f"{first} {second}" for first, second in shop.seen} == {said}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_result_of_an_agent_in_a_kernel_has_one_new_id_however_often_it_is_read(kind: str) -> None:
    shop = Shop(kind, count(1))
    async with RuntimeKernel.create(agent=shop.agent) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt="an order", idempotency_key="o-1"))
        first = (await handle.result()).output
        again = (
            await (await kernel.execute(ExecutionRequest(prompt="an order", idempotency_key="o-1"))).result()
        ).output
        assert (type(first), first.id) == (type(again), again.id)
        recording, code = await kernel.record(handle.job_id), kernel.code()
    same = await ReplayPlayer(recording).replay(mode=ReplayMode.VERIFY, code=code)
    assert same.difference == ""


async def test_a_job_of_an_earlier_version_goes_on_with_an_id_that_is_made_anew() -> None:
    """Its entries have the words of the model alone."""
    home, shop = MemoryStorage(), Shop("struct", count(1))
    async with hosting(home, Owner(shop.job)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    earlier = prefix(home, 0)
    journal = MemoryJournal(earlier)
    for entry in entries(home)[:5]:
        if isinstance(entry, EffectResult):
            answer = unpack(entry.body)
            assert answer.pop("output")["item"] == "pen"
            entry = msgspec.structs.replace(entry, body=pack(answer, "an answer"))
        journal.append(entry)
    journal.close()
    async with hosting(earlier, Owner(shop.job)) as jobs:
        await jobs.parks("j")
    assert len(set(shop.seen)) == 2


def test_nothing_is_recorded_for_types_that_add_nothing_to_the_words_of_a_model() -> None:
    class Plain(pydantic.BaseModel):
        item: str = "pen"
        tags: list[str] = pydantic.Field(default_factory=list, max_length=5)
        inner: "Plain | None" = None

    named = msgspec.defstruct(
        "Named", [("by", dict[str, int], {}), ("tags", list[str], msgspec.field(default_factory=list))]
    )
    assert [each for each in (int, str, list[Plain], named, dict[str, named], Plain | None) if adds_values(each)] == []


async def test_a_field_has_no_recorded_value_of_another_type_after_a_deploy() -> None:
    home, shop = MemoryStorage(), Shop("struct", count(1))
    async with hosting(home, Owner(shop.job)) as jobs:
        jobs.begin("j")
        await jobs.parks("j")
    later = Shop("struct", count(1))
    later.output = msgspec.defstruct(
        "Order", [("item", str), ("id", str, msgspec.field(default_factory=lambda: "none"))]
    )
    later.agent = Agent(later.engine, name="shop", output=later.output)
    async with hosting(prefix(home, 5), Owner(later.job)) as jobs:
        await jobs.parks("j")
    assert later.seen == [("none", "none")]


class Pair(NamedTuple):
    name: str
    order: Any


def test_values_within_others_get_what_was_added_to_them() -> None:
    """Lists, dicts, tuples and NamedTuples, and texts of a class of their own."""

    class Word(str):
        pass

    order = order_of("struct", count(1))
    first = [order("a"), {"b": (order("b"), 1, None)}, Pair("c", order("c")), Word("d"), Path("e")]
    again = [order("a"), {"b": (order("b"), 1, None)}, Pair("c", order("c")), Word("?"), Path("e")]
    made = with_form(again, unpack(pack(form_of(first), "a form")))
    assert made == first
    assert [type(each) for each in made] == [type(each) for each in first]
