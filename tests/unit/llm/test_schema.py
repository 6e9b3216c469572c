"""`Schema` and `Tool.schema`: what a model is told to write, and what is read of what it wrote."""

import datetime
import decimal
import enum
import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

import msgspec
import pyarrow as pa
import pytest
from msgspec import Meta

from sabot.engine.calls.json_schema import mismatch
from sabot.engine.calls.schema import Mismatch, Schema
from sabot.errors import UserError
from sabot.llm import Effect, ToolError, tool
from sabot.llm.providers.sdk import is_strict


class Verdict(msgspec.Struct):
    """What is thought of a ticket."""

    label: Literal["good", "bad"]
    score: Annotated[float, Meta(ge=0, le=1, description="how sure")]
    notes: list[str] = []


@dataclass
class Order:
    id: str
    amount: int = 1


class Row(TypedDict):
    name: str
    age: NotRequired[int]


class Tree(msgspec.Struct):
    name: str
    children: list["Tree"] = []


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


def test_a_struct_becomes_a_schema_of_an_object_with_what_is_said_of_it():
    schema = Schema(Verdict)
    assert schema.name == "Verdict"
    assert schema.json == {
        "title": "Verdict",
        "description": "What is thought of a ticket.",
        "type": "object",
        "properties": {
            "label": {"enum": ["bad", "good"]},
            "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "how sure"},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["label", "score", "notes"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "of", [Verdict, Order, Tree, list[Tree], Order | None, {"a": "string", "b": pa.struct({"x": "int8"})}]
)
def test_a_vendor_can_hold_its_model_to_the_schema_of_a_type(of):
    assert is_strict(Schema(of).json)


def test_a_field_that_may_be_missing_may_be_missing():
    assert Schema(Row).json["required"] == ["name"]
    assert Schema(Order).decode('{"id": "o-1"}') == Order("o-1", 1)


@pytest.mark.parametrize(
    ("of", "text", "value"),
    [
        (Verdict, '{"label": "good", "score": 1}', Verdict("good", 1.0)),
        (Order, '{"id": "o-1", "amount": 3}', Order("o-1", 3)),
        (Row, '{"name": "x"}', {"name": "x"}),
        (Tree, '{"name": "a", "children": [{"name": "b"}]}', Tree("a", [Tree("b")])),
        (list[Order], '{"value": [{"id": "1"}]}', [Order("1")]),
        (Literal["yes", "no"], '{"value": "no"}', "no"),
        (int, '{"value": 7}', 7),
        (Order | None, '{"value": null}', None),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        ({"label": "string", "score": "float64"}, '{"label": "a", "score": 2}', {"label": "a", "score": 2.0}),
        ({"type": "string"}, '{"type": "x"}', {"type": "x"}),
        ({"n": pa.list_(pa.int8())}, '{"n": [1, -128]}', {"n": [1, -128]}),
        (
            {"on": "date32", "ok": bool},
            '{"on": "2024-02-29", "ok": true}',
            {"on": datetime.date(2024, 2, 29), "ok": True},
        ),
        ({"a": pa.decimal128(9, 2)}, '{"a": "1.50"}', {"a": decimal.Decimal("1.50")}),
        ({"s": pa.struct({"x": pa.int32()})}, '{"s": {"x": 1}}', {"s": {"x": 1}}),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": 1}', {"a": 1}),
    ],
)
def test_an_answer_is_read_as_what_was_asked_for(of, text, value):
    schema = Schema(of)
    assert schema.json["type"] == "object"
    assert json.loads(json.dumps(schema.json)) == schema.json
    assert schema.decode(text) == value
    assert schema.decode(f"```json\n{text}\n```\n") == value


@pytest.mark.parametrize(
    ("of", "text", "says"),
    [
        (Verdict, '{"label": "good"}', "Object missing required field `score`"),
        (Verdict, '{"label": "fine", "score": 1}', "Invalid enum value 'fine' - at `$.label`"),
        (Verdict, '{"label": "bad", "score": 2}', "Expected `float` <= 1.0 - at `$.score`"),
        (Tree, '{"name": "a", "children": [{}]}', "Object missing required field `name` - at `$.children[0]`"),
        (Verdict, "I think it is good.", "it is no JSON"),
        (Verdict, "", "it is no JSON"),
        (Verdict, '{"label": "go', "it is no JSON"),
        ({"n": "int8"}, '{"n": 128}', "<= 127"),
        ({"n": "uint16"}, '{"n": -1}', ">= 0"),
        ({"n": "int64"}, '{"n": null}', "got `null`"),
        (Verdict, "[1, 2]", "got `array`"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": "1"}', "got string - at $.a"),
        ({"type": "object", "properties": {}}, "[" * 100_000, "it is no JSON"),
    ],
)
def test_an_answer_that_does_not_match_is_refused_in_words_for_the_model(of, text, says):
    with pytest.raises(Mismatch) as caught:
        Schema(of).decode(text)
    assert says in str(caught.value)


def test_pydantic_models_are_taken_alone_and_inside_other_types():
    pydantic = pytest.importorskip("pydantic")

    class Part(pydantic.BaseModel):
        count: int = pydantic.Field(gt=0)

    class Whole(pydantic.BaseModel):
        parts: list[Part]
        colour: Colour = Colour.RED

    class Holder(msgspec.Struct):
        whole: Whole

    alone = Schema(Whole)
    assert alone.name == "Whole"
    assert alone.json["$defs"].keys() == {"Part", "Colour"}
    assert alone.decode('{"parts": [{"count": 2}]}') == Whole(parts=[Part(count=2)])
    assert Schema(list[Whole]).decode('{"value": [{"parts": []}]}') == [Whole(parts=[])]
    held = Schema(Holder)
    assert held.json["$defs"].keys() >= {"Part", "Colour"}
    with pytest.raises(Mismatch) as caught:
        held.decode('{"whole": {"parts": [{"count": 0}], "colour": "green"}}')
    said = str(caught.value)
    assert "Input should be greater than 0 at parts.0.count" in said
    assert "'red' or 'blue' at colour" in said
    assert said.endswith("- at `$.whole`")
    assert "https://" not in said


@pytest.mark.parametrize(
    "of", [{}, {"a": "no type"}, {"a": "binary"}, {"type": "array", "items": {}}, object, 5, Mismatch]
)
def test_what_has_no_schema_is_refused(of):
    with pytest.raises(UserError) as caught:
        Schema(of)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("schema", "good", "bad", "says"),
    [
        ({"type": ["string", "null"]}, None, 1, "expected string or null, got number - at $.a"),
        ({"enum": [1, "x"]}, "x", True, "True is none of [1, 'x'] - at $.a"),
        ({"const": 3}, 3, 4, "4 is not 3"),
        ({"const": [1, {"b": 0}]}, [1.0, {"b": 0}], [1, {"b": False}], "[1, {'b': False}] is not [1, {'b': 0}]"),
        ({"type": "integer"}, 3.0, 3.5, "expected integer, got number"),
        ({"type": "number", "minimum": 1, "exclusiveMaximum": 5}, 1, 5, "5 is out of bounds"),
        ({"type": "number", "exclusiveMinimum": 5}, 1e16, 5, "5 is out of bounds"),  # 1e16 - 1 is 1e16 too
        ({"minimum": 1}, 1, 0, "0, and at least 1 are wanted"),
        ({"type": "string", "maxLength": 2}, "ab", "abc", "3 characters, and at most 2"),
        ({"type": "array", "minItems": 1, "items": {"type": "boolean"}}, [True], [], "0 items, and at least 1"),
        ({"items": {"type": "boolean"}}, [True], [1], "at $.a[0]"),
        ({"required": ["b"]}, {"b": 1}, {}, "'b' is missing - at $.a"),
        ({"properties": {"b": True}, "additionalProperties": False}, {"b": 1}, {"c": 1}, "'c' is not expected"),
        ({"additionalProperties": {"type": "string"}}, {"b": "1"}, {"b": 1}, "at $.a.b"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, 1, "it is none of: expected string"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1.5, 1, "more than one of the 2 choices"),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, 2, 3, "at most 2"),
        ({"$ref": "#/$defs/deep"}, {"deep": {}}, {"deep": {"deep": 1}}, "at $.a.deep.deep"),
        (False, None, 1, "nothing is allowed"),
    ],
)
def test_a_json_schema_is_checked(schema, good, bad, says):
    whole = {
        "type": "object",
        "properties": {"a": schema},
        "$defs": {"deep": {"type": "object", "properties": {"deep": {"$ref": "#/$defs/deep"}}}},
    }
    if schema is not False:
        assert Schema(whole).decode(json.dumps({"a": good})) == {"a": good}
    with pytest.raises(Mismatch) as caught:
        Schema(whole).decode(json.dumps({"a": bad}))
    assert says in str(caught.value)


def test_parts_that_refer_twice_to_the_next_are_each_checked_once():
    """They took twice as long at each step: 40 of them for ever, and their message all memory."""
    parts = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**parts, "a40": {"type": "string"}}}
    assert mismatch("x", schema) == ""
    assert mismatch(5, schema).startswith("it is none of: ")
    assert len(mismatch(5, schema)) <= 1000


def test_a_schema_that_refers_to_itself_alone_ends():
    loop = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}
    with pytest.raises(Mismatch, match="nested too deep"):
        Schema(loop).decode('{"a": 1}')
    with pytest.raises(UserError, match="leads nowhere"):
        Schema({"type": "object", "$ref": "#/$defs/gone"}).decode("{}")


@tool(effect="read")
def find(query: str, limit: int = 10, where: Verdict | None = None, *, effect: Effect):
    """Searches the shop.

    Two lines of it.

    Args:
        query: what to look for,
            in any words
        limit (int): how many
    Returns:
        the orders: all
    """
    return query, limit, where


def test_a_tool_tells_its_parameters_and_what_its_docstring_says():
    assert find.schema.name == "find"
    assert find.schema.description == "Searches the shop.\n\nTwo lines of it."
    parameters = find.schema.parameters
    assert parameters["required"] == ["query"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["query"] == {"type": "string", "description": "what to look for, in any words"}
    assert parameters["properties"]["limit"] == {"type": "integer", "description": "how many", "default": 10}
    assert parameters["properties"].keys() == {"query", "limit", "where"}
    assert find.schema is find.schema


def test_the_arguments_of_a_tool_are_read_as_its_types():
    given = find.arguments('{"query": "x", "where": {"label": "bad", "score": 0}}')
    assert given == {"query": "x", "where": Verdict("bad", 0.0)}
    assert find(**given, effect=None) == ("x", 10, Verdict("bad", 0.0))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"query": 1}', "find does not take these arguments: Expected `str`, got `int` - at `$.query`"),
        ('{"query": "x", "effect": {}}', "unknown field `effect`"),
        ("{}", "missing required field `query`"),
        ('{"query": "x"', "it is no JSON"),
        ("", "missing required field `query`"),
        ("[" * 10_000, "find does not take these arguments"),
    ],
)
def test_arguments_that_a_tool_does_not_take_are_refused_in_words_for_the_model(text, says):
    with pytest.raises(ToolError) as caught:
        find.arguments(text)
    assert says in caught.value.message


def test_fields_of_a_docstring_describe_parameters_too():
    def send(to: str, text="hello"):
        """Sends a mail.

        :param to: who gets it,
            by address
        :param str text: what it says
        :returns: nothing
        """

    schema = tool(send).schema
    assert schema.description == "Sends a mail."
    assert {name: each["description"] for name, each in schema.parameters["properties"].items()} == {
        "to": "who gets it, by address",
        "text": "what it says",
    }


def test_a_tool_of_no_parameters_and_one_that_is_a_method_have_schemas():
    class Shop:
        @tool
        def refund(self, order: str):
            return order

    assert Shop().refund.schema.parameters["required"] == ["order"]
    assert Shop().refund.arguments('{"order": "1"}') == {"order": "1"}
    nothing = tool(name="ping")(lambda: None)
    assert (nothing.schema.description, nothing.schema.parameters["properties"]) == ("", {})
    assert nothing.arguments("") == nothing.arguments("{}") == {}


@pytest.mark.parametrize(
    ("func", "says"),
    [
        (lambda *args: None, "cannot be given by name"),
        (lambda a, /: None, "cannot be given by name"),
        (lambda **kwargs: None, "cannot be given by name"),
    ],
)
def test_parameters_that_a_model_cannot_give_are_refused(func, says):
    with pytest.raises(UserError, match=f"tool f: .*{says}"):
        tool(name="f")(func).schema  # noqa: B018


def test_a_type_that_is_there_for_type_checkers_alone_is_refused():
    def look(at: "Nowhere"):  # noqa: F821
        """Looks."""

    with pytest.raises(UserError, match="tool look: a type of its parameters cannot be found"):
        tool(look).schema  # noqa: B018


# -- answers of models that are not held to the schema: "value" is left out -----------------------------------------------


@pytest.mark.parametrize(
    ("of", "text", "value"),
    [
        (int, "3", 3),
        (list[int], "```json\n[1, 2]\n```", [1, 2]),
        (list[Order], '[{"id": "1"}]', [Order("1")]),
        (Order | None, '{"id": "1"}', Order("1")),
        (Order | None, "null", None),
        (Colour, '"red"', Colour.RED),
        (Colour, "red\n", Colour.RED),
        (Literal["yes", "no"], "no", "no"),
        (datetime.date, "2026-11-21", datetime.date(2026, 11, 21)),
        (str, "It is Rome.", "It is Rome."),
        (str, "5", "5"),
        (str, '{"value": "Rome"}', "Rome"),
    ],
)
def test_what_is_no_object_may_stand_alone(of, text, value):
    assert Schema(of).decode(text) == value


@pytest.mark.parametrize(
    ("of", "text", "says"),
    [
        (Colour, '"green"', "Invalid enum value 'green'"),
        (Colour, "green", "Invalid enum value 'green'"),
        (Annotated[int, Meta(ge=3)], "2", "Expected `int` >= 3"),
        (int, "three", "Expected `int`, got `str`"),
        (list[int], "[1, 2", "it is no JSON"),
        (str, '{"value": "Ro', "it is no JSON"),
        (str, "", "it is no JSON"),
        (int, '{"value": "x"}', "Expected `int`, got `str` - at `$.value`"),
        (int, '{"values": 3}', "missing required field `value`"),
    ],
)
def test_what_stands_alone_and_does_not_match_says_why(of, text, says):
    with pytest.raises(Mismatch, match=re.escape(says)):
        Schema(of).decode(text)
