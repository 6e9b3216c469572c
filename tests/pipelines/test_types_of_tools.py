"""Types of tools' parameters and of answers that pydantic reads: the same on every surface."""

import dataclasses
import datetime
import enum
import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import msgspec
import pyarrow as pa
import pydantic
import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from tool_surfaces import SURFACES, Tools
from typing_extensions import TypeAliasType

from sabot import App
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls.edits import edited_arguments
from sabot.engine.calls.schema import Mismatch, Schema
from sabot.errors import EffectError, UserError
from sabot.llm import MalformedAnswer, Tool, ToolError, tool
from sabot.llm.agent import Agent
from sabot.llm.engine import ExecutionEngine
from sabot.llm.providers.scripted import ScriptedProvider
from sabot.mcp import ToolServer
from sabot.testing import ListSink
from tools.agent_tools import started, until

DAY = datetime.date(2026, 1, 2)


class Colour(enum.Enum):
    RED = "red"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(ge=1)


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool = True


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: datetime.date
    at: datetime.datetime
    colour: Colour
    pair: tuple[int, str]
    price: Decimal


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []
    pet: Pet | None = None


@pydantic.dataclasses.dataclass
class Size:
    width: int = Field(ge=1)

    @pydantic.field_validator("width")
    @classmethod
    def is_even(cls, width: int) -> int:
        if width % 2:
            raise ValueError("width has to be even")
        return width


@dataclasses.dataclass
class Box:
    size: Size
    count: Annotated[int, Field(le=3)] = 1


@dataclasses.dataclass
class Mug:
    handles: int


@dataclasses.dataclass
class Pot:
    volume: int


class Line(msgspec.Struct):
    pet: Cat
    count: int = 1


def even(value: int) -> int:
    if value % 2:
        raise ValueError("it has to be even")
    return value


STRICT = '{"day": "2026-01-02", "at": "2026-01-02T03:00:00+02:00", "colour": "red", "pair": [1, "a"], "price": "2.50"}'
STRICT_VALUE = Strict(
    day=DAY,
    at=datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    colour=Colour.RED,
    pair=(1, "a"),
    price=Decimal("2.50"),
)
CAT, DOG = '{"kind": "cat", "lives": 9}', '{"kind": "dog"}'

TYPES: dict[str, tuple[Any, str, Any, str, str]] = {
    # name: type, JSON that fits, its value, JSON that does not, what the model reads of it
    "bounded": (Annotated[int, Field(ge=1, le=5, description="how many")], "3", 3, "9", "less than or equal to 5"),
    "bounded_text": (Annotated[str, Field(pattern="^a+$")], '"aa"', "aa", '"b"', "match pattern"),
    "validated": (Annotated[int, AfterValidator(even)], "2", 2, "3", "it has to be even"),
    "constrained": (pydantic.conint(ge=1), "2", 2, "0", "greater than or equal to 1"),
    "alias": (TypeAliasType("Alias", Annotated[int, Field(ge=1)]), "2", 2, "0", "greater than or equal to 1"),
    "plain_alias": (TypeAliasType("Plain", int), "2", 2, '"x"', "Expected `int`"),
    "dataclasses": (Mug | Pot, '{"volume": 2}', Pot(2), '{"volume": "x"}', "Input should be"),
    "list_of_dataclasses": (list[Mug | Pot], '[{"handles": 1}]', [Mug(1)], "[5]", "Input should be"),
    "positive": (pydantic.PositiveInt, "2", 2, "-2", "greater than 0"),
    "address": (pydantic.HttpUrl, '"https://a.b/"', pydantic.HttpUrl("https://a.b/"), '"x"', "valid URL"),
    "list_of_bounded": (list[Annotated[int, Field(ge=1)]], "[1]", [1], "[0]", "greater than or equal to 1"),
    "strict": (Strict, STRICT, STRICT_VALUE, STRICT.replace('"2026-01-02"', "5"), "valid date"),
    "strict_list": (list[Strict], f"[{STRICT}]", [STRICT_VALUE], "[{}]", "Field required"),
    "pydantic_dataclass": (Size, '{"width": 2}', Size(2), '{"width": 3}', "width has to be even"),
    "dataclass_with_one": (Box, '{"size": {"width": 2}}', Box(Size(2)), '{"size": {"width": 3}}', "has to be even"),
    "bound_in_dataclass": (Box, '{"size": {"width": 2}, "count": 3}', Box(Size(2), 3), '{"size": {"width": 2}, "count": 4}', "equal to 3"),
    "union": (Cat | Dog, DOG, Dog(kind="dog"), '{"kind": "cow"}', "Input should be"),
    "discriminated": (Pet, CAT, Cat(lives=9), '{"kind": "cow"}', "does not match any of the expected tags"),
    "model_or_text": (Cat | str, '"none"', "none", "5", "Input should be"),
    "model_or_list": (Cat | list[Dog], f"[{DOG}]", [Dog(kind="dog")], "5", "Input should be"),
    "list_of_union": (list[Cat | Dog], f"[{CAT}, {DOG}]", [Cat(lives=9), Dog(kind="dog")], "[5]", "Input should be"),
    "dict_of_union": (dict[str, Pet], f'{{"a": {CAT}}}', {"a": Cat(lives=9)}, '{"a": 5}', "Input should be"),
    "optional_union": (Cat | Dog | None, "null", None, "5", "Input should be"),
    "list_of_model": (list[Cat], f"[{CAT}]", [Cat(lives=9)], '[{"lives": 0}]', "greater than or equal to 1"),
    "tree": (
        Tree,
        f'{{"name": "a", "children": [{{"name": "b", "pet": {CAT}}}]}}', Tree(name="a", children=[Tree(name="b", pet=Cat(lives=9))]),
        '{"name": 5}',
        "valid string at name",
    ),
    "struct_with_model": (Line, f'{{"pet": {CAT}}}', Line(Cat(lives=9)), '{"pet": {"lives": 0}}', "equal to 1 at lives - at `$.it.pet`"),
    "described_struct": (
        Annotated[list[Line], Field(min_length=1, description="lines")],
        f'[{{"pet": {CAT}}}]', [Line(Cat(lives=9))],
        "[]",
        "length >= 1",
    ),
}  # fmt: skip
MISSING = object()


def tool_of(name: str, kind: Any, given: list[Any], default: Any = MISSING) -> Tool:
    def take(it: Any = MISSING) -> str:
        given.append(it)
        return "taken"

    take.__annotations__ = {"it": kind, "return": str}
    take.__defaults__ = None if default is MISSING else (default,)
    return tool(name=name, effect="read")(take)


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("surface", SURFACES)
async def test_an_argument_is_read_by_its_type_on_every_surface(surface: Any, memory_url: str, tmp_path: Path) -> None:
    given: dict[str, list[Any]] = {name: [] for name in TYPES}
    tools = [(name, tool_of(name, kind, given[name])) for name, (kind, *_) in TYPES.items()]
    good: Tools = [(each, f'{{"it": {TYPES[name][1]}}}') for name, each in tools]
    assert set(await surface(good, memory_url, tmp_path / "state")) == {"taken"}
    assert given == {name: [value] for name, (_, _, value, *_) in TYPES.items()}


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("surface", SURFACES)
async def test_an_argument_that_does_not_fit_is_refused_on_every_surface(
    surface: Any, memory_url: str, tmp_path: Path
) -> None:
    given: list[Any] = []
    bad: Tools = [(tool_of(name, kind, given), f'{{"it": {wrong}}}') for name, (kind, _, _, wrong, _) in TYPES.items()]
    shown = await surface(bad, memory_url, tmp_path / "state")
    assert given == []
    for (name, (*_, says)), text in zip(TYPES.items(), shown, strict=True):
        assert f"{name} does not take these arguments" in text
        assert says in text
        assert "https://errors" not in text


DEFAULTS: dict[str, tuple[Any, Any, Any]] = {
    # name: type, default, the value that the function gets for a call without the argument
    "field": (int, Field(default=3), 3),
    "field_of_a_factory": (list[int], Field(default_factory=lambda: [1]), [1]),
    "bounded_field": (int, Field(3, ge=1), 3),
    "annotated": (Annotated[int, Field(ge=1)], 3, 3),
    "default_in_annotated": (Annotated[int, Field(default=3)], MISSING, 3),
    "infinity": (float, math.inf, math.inf),
    "model": (Cat, Cat(lives=1), Cat(lives=1)),
    "union": (Cat | Dog | None, None, None),
}


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("surface", SURFACES)
async def test_an_argument_that_is_left_out_has_the_value_of_its_field(
    surface: Any, memory_url: str, tmp_path: Path
) -> None:
    given: dict[str, list[Any]] = {name: [] for name in DEFAULTS}
    tools: Tools = [(tool_of(n, kind, given[n], default), "{}") for n, (kind, default, _) in DEFAULTS.items()]
    assert set(await surface(tools, memory_url, tmp_path / "state")) == {"taken"}
    assert given == {name: [value] for name, (*_, value) in DEFAULTS.items()}
    for each, _ in tools:
        each()  # a program that calls it gets the same
    assert given == {name: [value] * 2 for name, (*_, value) in DEFAULTS.items()}


def test_fields_in_annotations_that_are_texts_have_their_defaults_and_foreign_names_do_no_harm() -> None:
    def take(it, other=1):  # type: ignore[no-untyped-def]
        return it, other

    def odd(it, other=1):  # type: ignore[no-untyped-def]
        return it, other

    take.__annotations__ = {"it": "Annotated[int, Field(default=3)]", "other": "int"}
    odd.__annotations__ = {"it": "Annotated[int, Field(default=3)]", "other": "OnlyForTypeCheckers"}
    assert (tool(take)(), tool(take)(1)) == ((3, 1), (1, 1))
    assert tool(odd)(2) == (2, 1)


def test_fields_hold_behind_partials_methods_and_objects_that_are_called() -> None:
    def add(one: int, other: int = Field(default=2, le=5)) -> tuple[int, int]:
        return one, other

    class Adds:
        def __call__(self, other: int = Field(default=2, le=5)) -> tuple[int, int]:
            return 1, other

        @tool
        def add(self, other: int = Field(default=2, le=5)) -> tuple[int, int]:
            return 1, other

    for made in (tool(name="add")(partial(add, 1)), tool(name="add")(Adds()), Adds().add):
        assert made() == made.func(**made.arguments("{}")) == (1, 2)
        assert made.schema.parameters["properties"]["other"] == {"type": "integer", "maximum": 5, "default": 2}
        with pytest.raises(ToolError, match="less than or equal to 5"):
            made.arguments('{"other": 6}')


# -- answers ----------------------------------------------------------------------------------------------------------


def engine_of(*answers: str) -> ExecutionEngine:
    return ExecutionEngine(ScriptedProvider(list(answers)), retries=0, patience=0)


async def by_an_engine(kind: Any, answer: str, url: str, path: Path) -> Any:
    return (await engine_of(answer).complete("go", output=kind)).output


async def by_an_agent(kind: Any, answer: str, url: str, path: Path) -> Any:
    return (await Agent(engine_of(answer), output=kind, repairs=0).run("go")).output


async def by_a_kernel(kind: Any, answer: str, url: str, path: Path) -> Any:
    agent = Agent(engine_of(answer), output=kind, repairs=0)
    async with RuntimeKernel(None, agent, journal=path) as kernel:
        return (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output


async def by_a_job(kind: Any, answer: str, url: str, path: Path) -> Any:
    engine, found = engine_of(answer), []
    app = App("answers", url, state=str(path), checkpoint_interval=3600)

    @app.agent("asked", durable=True, on_error="skip")
    async def asks(ctx: Any) -> None:
        try:
            found.append((await ctx.llm(engine).complete("go", output=kind)).output)
        except MalformedAnswer as error:
            found.append(error)

    async with started(app):
        MemoryBroker.get(url).publish("asked", [{"prompt": "go"}])
        await until(lambda: found)
    if isinstance(found[0], MalformedAnswer):
        raise found[0]
    return found[0]


async def by_an_llm_agent(kind: Any, answer: str, url: str, path: Path) -> Any:
    app = App("answers", url, state=str(path), checkpoint_interval=3600)
    app.llm_agent("asked", engine_of(answer), output=kind, repairs=0, sink="answers")
    broker = MemoryBroker.get(url)
    async with started(app):
        broker.publish("asked", [{"prompt": "go"}])
        await until(lambda: broker.records("answers") or broker.records("asked.dlq"))
    for letter in broker.records("asked.dlq"):
        raise EffectError("MalformedAnswer", str(letter.headers))
    return Schema(kind).decode(broker.records("answers")[0].payload.decode())


Ask = Callable[[Any, str, str, Path], Any]
ASKS: tuple[Ask, ...] = (by_an_engine, by_an_agent, by_a_kernel, by_a_job, by_an_llm_agent)


@pytest.mark.one_in(36, "some hundredths of a second of a core each")
@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("name", TYPES)
async def test_an_answer_is_read_by_its_type(name: str, ask: Ask, memory_url: str, tmp_path: Path) -> None:
    kind, text, value, wrong, says = TYPES[name]
    if value is None and ask is by_an_llm_agent:
        return  # it writes nothing
    wrapped = Schema(kind).json.get("properties", {}).keys() == {"value"}
    for number, answer in enumerate([f'{{"value": {text}}}', text] if wrapped else [text]):
        assert await ask(kind, answer, f"{memory_url}{number}", tmp_path / f"{number}") == value
    with pytest.raises((MalformedAnswer, Mismatch, EffectError)) as refused:
        await ask(kind, f'{{"value": {wrong}}}' if wrapped else wrong, f"{memory_url}x", tmp_path / "x")
    assert says.partition(" - at")[0] in str(refused.value)


def test_columns_of_a_stream_are_read_by_the_rules_of_json(memory_url: str) -> None:
    class Rated(BaseModel):
        model_config = ConfigDict(strict=True)
        day: datetime.date
        stars: Annotated[int, Field(ge=1, le=5)]

    dead = ListSink("dead")
    answers = ['{"day": "2026-01-02", "stars": 5}', '{"day": "2026-01-02", "stars": 6}']
    app = App("rated", memory_url)
    rows = app.stream(pa.table({"text": ["a", "b"]}))
    engine, how = engine_of(*answers), {"on_error": "skip", "dead_letter": dead, "concurrency": 1}
    found = rows.map_llm("Rate: {text}", engine, output=Rated, **how).collect()
    assert found.to_pylist() == [{"text": "a", "day": DAY, "stars": 5}]
    assert len(dead.rows) == 1


# -- what is refused ---------------------------------------------------------------------------------------------------


class Unknown:
    pass


class Plain(msgspec.Struct):
    count: Annotated[int, Field(ge=1)]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Unknown, "Unknown"),
        (Annotated[int, Unknown()], "in Annotated, which Sabot does not know"),
        (list[Annotated[int, Unknown()]], "in Annotated, which Sabot does not know"),
        (Plain, "beside Plain, a msgspec Struct, which ignores it"),
        (Line | Dog, "may not contain"),
        (list[Annotated[Cat | Dog, msgspec.Meta(min_length=1)]], "which ignores it"),
        (Annotated[Callable[[], int], Field(description="x")], "pydantic does not take its type"),
    ],
    ids=["class", "note", "inner-note", "struct", "struct-or-model", "meta", "function"],
)
def test_a_type_that_is_not_understood_is_refused_with_the_parameter(kind: Any, says: str) -> None:
    odd = tool_of("odd", kind, [])
    for make in (lambda: Agent(engine_of(), tools=[odd]), lambda: ToolServer("odd", [odd])):
        with pytest.raises(UserError) as refused:
            make()
        assert "tool odd: its parameter 'it'" in str(refused.value)
        assert says in str(refused.value)
        assert refused.value.hint


def test_without_pydantic_its_bounds_are_refused_and_other_types_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(UserError, match=r"parameter 'it' has .*Ge.*, and pydantic is not installed") as refused:
        tool_of("odd", Annotated[int, annotated_types.Ge(1)], []).schema  # noqa: B018
    assert "msgspec.Meta(ge=1)" in refused.value.hint
    plain = tool_of("plain", Annotated[list[datetime.date], msgspec.Meta(min_length=1), "days"], [])
    assert plain.arguments('{"it": ["2026-01-02"]}') == {"it": [DAY]}
    assert plain.schema.parameters["properties"]["it"]["description"] == "days"


def test_models_of_one_name_have_schemas_of_their_own() -> None:
    def item(**fields: Any) -> Any:
        part = pydantic.create_model("Part", **fields)
        return pydantic.create_model("Item", part=part)

    one, other = item(a=int), item(b=str)
    given: list[Any] = []

    def take(first: one, second: other, third: one, line: Line) -> None:  # type: ignore[valid-type]
        given.append((first, second))

    made = tool(take)
    defs = made.schema.parameters["$defs"]
    parts = [sorted(each["properties"]) for name, each in defs.items() if name.startswith("Part")]
    assert sorted(parts) == [["a"], ["b"]]

    def part_of(name: str) -> Any:
        reference = made.schema.parameters["properties"][name]["properties"]["part"]["$ref"]
        return sorted(defs[reference.rpartition("/")[2]]["properties"])

    assert [part_of(name) for name in ("first", "second", "third")] == [["a"], ["b"], ["a"]]
    whole = {"first": {"a": 1}, "second": {"b": "x"}, "third": {"a": 2}}
    said = {**{name: {"part": each} for name, each in whole.items()}, "line": {"pet": {"lives": 9}}}
    made.func(**made.arguments(json.dumps(said)))
    assert given[0][1].part.b == "x"


def test_a_schema_says_what_fields_say() -> None:
    def take(
        days: Annotated[int, Field(ge=1, le=5, description="how many")],
        start: Annotated[str, "the first day"],
        far: float = math.inf,
        from_: str = Field(default="here", alias="from", description="where"),
    ) -> None:
        """Books.

        Args:
            days: not this
            far: how far
        """

    schema = tool(take).schema.parameters
    assert schema["required"] == ["days", "start"]
    assert schema["properties"]["days"] == {"type": "integer", "minimum": 1, "maximum": 5, "description": "how many"}
    assert schema["properties"]["start"] == {"type": "string", "description": "the first day"}
    assert schema["properties"]["far"] == {"type": "number", "description": "how far"}
    assert schema["properties"]["from"] == {"type": "string", "default": "here", "description": "where"}
    assert tool(take).arguments('{"days": 1, "start": "x", "from": "y"}') == {"days": 1, "start": "x", "from_": "y"}


@pytest.mark.parametrize(
    ("kind", "default"),
    [(Annotated[int, Field(le=5)], 1), (int, Field(1, le=5)), (Cat | Dog, None)],
    ids=["annotated", "field", "union"],
)
def test_what_a_person_changes_is_held_to_the_type_too(kind: Any, default: Any) -> None:
    booked = tool_of("book", kind, [], default)
    good, bad = ({"kind": "cat", "lives": 9}, {"kind": "cat", "lives": 0}) if default is None else (5, 6)
    _, kwargs = edited_arguments(booked, (), {"it": 1}, {"it": good})
    assert kwargs["it"] == (Cat(lives=9) if default is None else 5)
    with pytest.raises(UserError, match="it does not take"):
        edited_arguments(booked, (), {"it": 1}, {"it": bad})


class Far(BaseModel):
    most: float = math.inf
    steps: list[float] = [math.nan]


class Near(msgspec.Struct):
    far: Far
    most: float = math.inf


@pytest.mark.parametrize(
    "kind", [Far, Near, list[Far], Annotated[float, Field(le=math.inf)]], ids=["model", "struct", "list", "bound"]
)
def test_an_infinity_is_in_no_schema(kind: Any) -> None:
    json.dumps(Schema(kind).json, allow_nan=False)
    json.dumps(tool_of("go", kind, []).schema.parameters, allow_nan=False)


def test_a_union_is_any_of_its_members_for_a_vendor() -> None:
    def take(pet: Pet) -> None: ...

    assert [*tool(take).schema.parameters["properties"]["pet"]] == ["anyOf"]
