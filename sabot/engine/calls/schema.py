"""JSON schemas of types (for structured answers) and of functions (for tools), and the decoding of the JSON that a
model wrote.

`Schema(of)` accepts

    Verdict                                    a msgspec Struct, a dataclass, a TypedDict, or a pydantic model
    list[Verdict], Literal["yes", "no"], int   any other type that msgspec reads
    Cat | Dog, Annotated[int, Field(ge=1)]     a type that only pydantic reads (see `pydantic_types`)
    {"label": "string", "score": "float64"}    columns, by the names of Arrow types; the answer is a dict
    {"type": "object", "properties": …}        a JSON schema; the answer is the decoded JSON

The text of a model is checked when it is decoded. An error names the place and the reason, in words by which the
model can correct its answer.
"""

import datetime
import decimal
import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from itertools import count
from typing import Annotated, Any, TypedDict, cast, get_args, get_type_hints

import msgspec
import pyarrow as pa

from sabot.base.arrays import as_type
from sabot.engine.calls.decoded import NO_FORM, adds_values, form_of
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.json_schema import mismatch
from sabot.engine.calls.model_requests import JsonSchema
from sabot.engine.calls.pydantic_types import (
    MISSING_DEFAULT,
    converted_by_name,
    default_of,
    field_in,
    is_field,
    is_model,
    readable,
)
from sabot.engine.calls.tool_results import plain_form
from sabot.errors import UNREADABLE, UserError, message_of, short_repr

_REF = "#/$defs/"
_MARK = "\0"
_WRAPPED = "value"
_FENCED = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_PARAMETER_LINE = re.compile(r"(\s*)\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_REST_LINE = re.compile(r"\s*:param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
_ARGUMENTS = re.compile(r"\s*(?:Args|Arguments|Parameters)\s*:\s*$")
_SECTION = re.compile(r"\s*(?:Returns?|Raises|Yields?|Examples?|Notes?)\s*:|\s*:(?:returns?|rtype|raises)\b")


class Mismatch(ValueError):
    """The error for a model's text that is not JSON or does not match a schema. The message is written for the model:
    it says which part of the text is wrong and why, and does not mention Python.
    """


class _NoJson(Mismatch):
    """The error for a model's text that is not JSON."""


class Schema:
    """The JSON schema of the type of an answer, and the decoder of such answers.

    - `of`: the type. It may also be a dict from the names of columns to their types, or the JSON schema of an object.
    - `json`: the schema that is sent to the model. Vendors accept only schemas of objects. For a type that is not an
      object, such as `int`, it is the schema of an object with one field: {"value": …}. In schemas that were made from
      a type, each object requires all of its fields and allows no others, because vendors enforce only such schemas.
      Nevertheless `decode` accepts answers without fields that have a default.
    - `name`: the name of the type. Characters that vendors do not accept are replaced by "_".

    Raises UserError for a type that has no JSON schema.
    """

    def __init__(self, of: Any) -> None:
        self.of = of
        self._wrapped_type: Any = None  # the type that is wrapped in {"value": …}
        self._columns = False
        if isinstance(of, Mapping):
            if not of:
                raise UserError(
                    "output={} has no columns", hint='{"label": "string"}, a JSON schema of an object, or a type'
                )
            self._columns = _are_columns(of)
        self.name = "answer" if isinstance(of, Mapping) else _name_of(of)
        if isinstance(of, Mapping) and not self._columns:
            if of.get("type") != "object":
                raise UserError(
                    f"output={short_repr(of)} is no JSON schema of an object",
                    hint='{"type": "object", "properties": …}; or columns, {"label": "string"}',
                )
            self.json: JsonSchema = dict(of)
            self._type: Any = Any
            return
        where = f"output={short_repr(of)}"
        self._type = _row_type(of) if self._columns else readable(of, where)
        self.json = _schema_of(self._type, where)
        if self.json.get("type") != "object":
            self._wrapped_type = self._type
            self._type = _record(self.name, {_WRAPPED: self._type})
            self.json = _schema_of(self._type, where)
        _require_all(self.json)

    def decode(self, text: str) -> Any:
        """Decodes the text of an answer, and returns the value. Raises Mismatch if the text does not match.

        If the vendor does not enforce the schema, models deviate from it in two ways, which are accepted: the JSON is
        enclosed in lines of ```, or a value that should be in {"value": …} comes without it.
        """
        text = _strip_fence(text)
        if self._wrapped_type is None:
            value = _decode(text, self._type)
            if self._type is Any and (wrong := mismatch(value, self.json)):
                raise Mismatch(wrong)
            return value
        try:
            return _decode(text, self._type)[_WRAPPED]
        except Mismatch as error:
            return _decode_unwrapped(text.strip(), self._wrapped_type, error)

    @cached_property
    def adds_values(self) -> bool:
        """True if two values that are decoded from one text may differ, because the type adds a new id, say."""
        return not isinstance(self.of, Mapping) and adds_values(self.of)

    def form_of(self, text: str) -> Any:
        """Returns the value of an answer in the form that a journal records (`decoded`). None if the type adds nothing to
        the text by itself, or if the text does not match.
        """
        if not self.adds_values:
            return None
        try:
            form = form_of(self.decode(text))
        except Mismatch:
            return None
        return None if form is NO_FORM else form

    def example(self) -> Any:
        """Returns a value of the type, made from its schema. Raises Mismatch if the type has conditions that the schema
        does not tell, such as those of a user's validator.
        """
        return self.decode(msgspec.json.encode(_example(self.json, self.json.get("$defs", {}))).decode())


class Parameters:
    """The parameters of a function as a JSON schema, which is made of their types and of the function's docstring.

    - `json`: the schema.
    - `description`: the docstring without the descriptions of the parameters, which may be a section `Args:` or lines
      `:param name:`. They are in the schema.
    - `where`: the text with which messages of errors begin.
    - `hidden`: the names of parameters that are not in the schema.

    Raises UserError for parameters that a model cannot give by name, and for types without a JSON schema.
    """

    output: JsonSchema | None = None  # the function has an annotation for it
    server = ""

    def __init__(self, func: Callable[..., Any], where: str, hidden: tuple[str, ...] = ()) -> None:
        self.description, told = _read_docstring(inspect.getdoc(func) or "")
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        hints = _hints_of(func, where)
        renamed: dict[str, str] = {}
        for name, parameter in inspect.signature(func).parameters.items():
            if name in hidden:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise UserError(
                    f"{where}: its parameter {parameter} cannot be given by name",
                    hint="a tool has parameters with names",
                )
            kind, default = hints.get(name, Any), parameter.default
            if context := _context_in(kind):
                raise UserError(
                    f"{where}: its parameter {name!r} is a {context}, which the model that calls the tool would fill in",
                    hint="models fill in all parameters but a first one `ctx: ToolContext`, by which Sabot says for whom the tool is "
                    "called and gives it the objects of Agent(deps=…), and `effect: Effect`",
                )
            if is_field(default):
                kind = Annotated[kind, default]
            field = field_in(kind)
            if field is not None and (default is parameter.empty or is_field(default)):
                default = default_of(field)
                default = parameter.empty if default is MISSING_DEFAULT else default
            if field is not None and (alias := field.validation_alias or field.alias):
                if not isinstance(alias, str):
                    raise UserError(f"{where}: its parameter {name!r} has several aliases", hint='alias="one name"')
                renamed[name] = alias
            kind = readable(kind, f"{where}: its parameter {name!r}")
            if name in told and (field is None or not field.description):
                kind = Annotated[kind, msgspec.Meta(description=told[name])]
            if default is parameter.empty:
                fields.append((name, kind, msgspec.NODEFAULT))
            else:
                fields.append((name, kind | msgspec.UnsetType, msgspec.UNSET))
                defaults[renamed.get(name, name)] = default
        self._type = msgspec.defstruct(
            "Arguments", fields, kw_only=True, forbid_unknown_fields=True, rename=renamed or None
        )
        # A function that pydantic has wrapped takes its arguments by their aliases.
        self._func: Any = func if hasattr(func, "raw_function") else None
        self._names = renamed if self._func is not None else {}
        try:
            self.json = _schema_of(self._type, where)
        except UserError:
            for name, kind, _ in fields:
                _schema_of(kind, f"{where}: its parameter {name!r}")
            raise
        self.json.pop("title", None)
        for name, value in defaults.items():
            _add_default(self.json["properties"][name], value)

    def decode(self, text: str) -> dict[str, Any]:
        """Decodes the arguments of a tool call that a model wrote as JSON, and returns them by name. Parameters that
        the model left out are not in the dict. Raises Mismatch if the text does not match the schema.
        """
        found = _decode(text or "{}", self._type)
        given = {name: getattr(found, name) for name in found.__struct_fields__}
        given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        named = {self._names.get(name, name): value for name, value in given.items()}
        if self._func is not None:
            again = converted_by_name(self._func, named)
            if name := next((name for name in given if name in again and again[name] != given[name]), ""):
                raise Mismatch(
                    f"its validate_call would make {short_repr(again[name])} of {name}={short_repr(given[name])}, converted before"
                )
        return named


# -- schemas ----------------------------------------------------------------------------------------------------------


def schema_of(kind: Any, where: str) -> JsonSchema:
    """Returns the JSON schema of a type. The schema of the type itself is at the top level, not behind a `$ref`.
    `where`: the text with which the error message begins. Raises UserError if the type has no JSON schema.
    """
    return _schema_of(readable(kind, where), where)


def _schema_of(kind: Any, where: str) -> JsonSchema:
    foreign: dict[Any, JsonSchema] = {}  # the schemas of the models of pydantic
    try:
        msgspec.json.Decoder(kind, dec_hook=validate_pydantic)  # it refuses unions that `schema_components` accepts
        (root,), parts = msgspec.json.schema_components(
            [kind], ref_template=_REF + "{name}", schema_hook=lambda each: _pydantic_schema(each, foreign)
        )
    except (TypeError, NotImplementedError) as error:
        raise UserError(
            f"{where}: {str(error).splitlines()[-1]}",
            hint="a msgspec Struct, a dataclass, a TypedDict, a pydantic model, or a type made of these",
        ) from error
    if foreign:
        names = _named(foreign.values(), parts)
        root, parts = _referring(root, names), {name: _referring(each, names) for name, each in parts.items()}
    reference = root.get("$ref", "").removeprefix(_REF)
    if reference:
        root = deepcopy(parts[reference])
        if not _refers(parts, reference):
            del parts[reference]
    return cast("JsonSchema", _without_infinities({**root, **({"$defs": parts} if parts else {})}))


def _named(foreign: Iterable[JsonSchema], parts: dict[str, Any]) -> dict[str, str]:
    """Adds the definitions of the models of pydantic to `parts`, each under a name of its own; equal ones are added once.
    Returns the `$ref`s to them by those that `_pydantic_schema` has written.
    """
    every: dict[str, str] = {}
    for schema in foreign:
        defs = schema.get("$defs", {})
        names = {mark: mark.rpartition(_MARK)[2] for mark in defs}
        while True:
            references = {_REF + mark: _REF + name for mark, name in names.items()}
            made = {mark: _referring(each, references) for mark, each in defs.items()}
            taken = [mark for mark, name in names.items() if name in parts and parts[name] != made[mark]]
            if not taken:
                break
            for mark in taken:
                first = mark.rpartition(_MARK)[2]
                free = (f"{first}_{number}" for number in count(2))
                names[mark] = next(each for each in free if each not in parts and each not in names.values())
        parts |= {names[mark]: each for mark, each in made.items()}
        every |= references
    return every


def _referring(schema: Any, names: Mapping[str, str]) -> Any:
    """Returns a copy of a schema with other `$ref`s. `names`: the new ones by the old ones."""
    if isinstance(schema, dict):
        return {
            word: names.get(each, each) if word == "$ref" and isinstance(each, str) else _referring(each, names)
            for word, each in schema.items()
        }
    return [_referring(each, names) for each in schema] if isinstance(schema, list | tuple) else schema


def _without_infinities(schema: Any) -> Any:
    """Returns a schema without the defaults and bounds that JSON cannot express: infinities and NaN."""
    if isinstance(schema, dict):
        return {
            word: _without_infinities(each)
            for word, each in schema.items()
            if _is_finite(each) or (word != "default" and not isinstance(each, float))
        }
    return [_without_infinities(each) for each in schema] if isinstance(schema, list) else schema


def _is_finite(value: Any) -> bool:
    """Returns True if JSON can express all numbers in this value of JSON."""
    if isinstance(value, list | tuple | dict):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _require_all(schema: Any) -> None:
    """Changes a schema so that objects require fields with defaults too, and accept no other fields. Vendors enforce
    only such schemas.
    """
    if isinstance(schema, list | tuple):
        for each in schema:
            _require_all(each)
    elif isinstance(schema, dict):
        properties = schema.get("properties")
        if schema.get("type") == "object" and isinstance(properties, dict):
            required = schema.get("required", ())
            schema["required"] = [name for name, each in properties.items() if name in required or "default" in each]
            schema.setdefault("additionalProperties", False)
            for each in properties.values():
                each.pop("default", None)
        for word, each in schema.items():
            if word in ("properties", "$defs"):
                _require_all(list(each.values()))
            elif word not in ("enum", "const", "default"):
                _require_all(each)


_EXAMPLES = {
    "date-time": "2000-01-01T00:00:00Z",
    "date": "2000-01-01",
    "time": "00:00:00",
    "duration": "PT0S",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "email": "a@example.com",
    "uri": "https://example.com/",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "decimal": "0",
}


def _example(schema: Any, parts: Mapping[str, Any], inside: tuple[str, ...] = ()) -> Any:
    """Returns a JSON value that matches a schema, as far as the schema says what matches. `parts`: the definitions to
    which `$ref` refers. `inside`: those in which this schema is; a type that refers to itself ends with null or [].
    """
    if not isinstance(schema, Mapping):
        return None
    if given := [schema[word] for word in ("const", "default") if word in schema] or schema.get("enum"):
        return given[0]
    if reference := schema.get("$ref", "").removeprefix(_REF):
        return None if reference in inside else _example(parts.get(reference), parts, (*inside, reference))
    if branches := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return next((each for part in branches if (each := _example(part, parts, inside)) is not None), None)
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind != "null":
            return _plain_example(kind, schema, parts, inside)
    return None


def _plain_example(kind: str, schema: Mapping[str, Any], parts: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    match kind:
        case "object":
            return {name: _example(each, parts, inside) for name, each in schema.get("properties", {}).items()}
        case "array" if schema.get("prefixItems"):
            return [_example(each, parts, inside) for each in schema["prefixItems"]]
        case "array":
            item = _example(schema.get("items"), parts, inside)
            return [] if item is None else [item] * schema.get("minItems", 1)
        case "integer" | "number":
            above, below = schema.get("exclusiveMinimum", -math.inf) + 1, schema.get("exclusiveMaximum", math.inf) - 1
            return max(schema.get("minimum", above), min(schema.get("maximum", below), 0))
        case "boolean":
            return False
    if schema.get("contentEncoding"):
        return "AAAA"
    usual = "0" if "pattern" in schema else _EXAMPLES["date-time"]  # Decimals of pydantic, datetimes of msgspec
    text = _EXAMPLES.get(schema.get("format", ""), usual)
    return text.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]


def _refers(value: Any, name: str) -> bool:
    """Returns True if the schema contains a `$ref` to the definition `name` in `$defs`."""
    if isinstance(value, dict):
        return value.get("$ref") == _REF + name or any(_refers(each, name) for each in value.values())
    return isinstance(value, list | tuple) and any(_refers(each, name) for each in value)


def _pydantic_schema(kind: Any, foreign: dict[Any, JsonSchema]) -> JsonSchema:
    """Returns the JSON schema of a pydantic model, without importing pydantic. Adds it to `foreign` with its definitions,
    whose names are marked by its number there: two models may use others of one name. Raises NotImplementedError if
    `kind` is not a pydantic model.
    """
    if not is_model(kind):
        raise NotImplementedError(f"{kind!r} has no JSON schema")
    if kind not in foreign:
        schema = kind.model_json_schema()
        inner = schema.get("$defs", {})
        marks = {name: f"{len(foreign)}{_MARK}{name}" for name in inner}
        schema = _choices_of_any(_referring(schema, {_REF + name: _REF + mark for name, mark in marks.items()}))
        foreign[kind] = {**schema, "$defs": {marks[name]: each for name, each in schema.get("$defs", {}).items()}}
    whole = foreign[kind]
    root = {word: each for word, each in whole.items() if word != "$defs"}
    reference = root.get("$ref", "").removeprefix(_REF)
    return cast("JsonSchema", deepcopy(whole["$defs"][reference] if reference else root))


def _choices_of_any(schema: Any) -> Any:
    """Returns a schema of pydantic with `anyOf` in place of `oneOf` and its discriminator, which vendors do not enforce."""
    if isinstance(schema, dict):
        found = {word: _choices_of_any(each) for word, each in schema.items()}
        if isinstance(found.get("oneOf"), list) and "anyOf" not in found:
            found = {word: each for word, each in found.items() if word not in ("oneOf", "discriminator")} | {
                "anyOf": found["oneOf"]
            }
        return found
    return [_choices_of_any(each) for each in schema] if isinstance(schema, list) else schema


def _name_of(of: Any) -> str:
    name = _NAME.sub("_", getattr(of, "__name__", "") if isinstance(of, type) else "")[:64]
    return name or "answer"


# -- columns ----------------------------------------------------------------------------------------------------------


def _are_columns(of: Mapping[Any, Any]) -> bool:
    """Returns True if the dict describes columns: each key is a name, and each value the name of a type or a type. A
    dict with "type": "object" is a JSON schema and not columns.
    """
    return of.get("type") != "object" and all(
        isinstance(name, str) and (isinstance(kind, str | type | pa.DataType)) for name, kind in of.items()
    )


def _record(name: str, fields: dict[str, Any]) -> Any:
    """Returns a TypedDict with these fields."""
    make: Any = TypedDict
    return make(_NAME.sub("_", name), fields)


def _row_type(columns: Mapping[str, Any]) -> Any:
    return _record("Row", {name: _value_type(as_type(kind), name) for name, kind in columns.items()})


def _value_type(kind: pa.DataType, name: str) -> Any:
    """Returns the Python type whose JSON schema a model gets for a column of this Arrow type. Raises UserError if
    values of the type cannot be written as JSON. `name`: the name of the column, for the error message.
    """
    if pa.types.is_integer(kind) and kind.bit_width < 64:
        most = 2 ** (kind.bit_width - pa.types.is_signed_integer(kind))
        least = -most if pa.types.is_signed_integer(kind) else 0
        return Annotated[int, msgspec.Meta(ge=least, le=most - 1)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return list[_value_type(kind.value_type, name)]  # type: ignore[misc]
    if pa.types.is_struct(kind):
        return _record(name, {field.name: _value_type(field.type, field.name) for field in kind})
    for is_kind, found in _VALUES:
        if is_kind(kind):
            return found
    raise UserError(
        f"column {name!r}: a model cannot write {kind}", hint="string, bool, numbers, dates, times, lists, structs"
    )


_VALUES: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (pa.types.is_string, str),
    (pa.types.is_large_string, str),
    (pa.types.is_boolean, bool),
    (pa.types.is_integer, int),
    (pa.types.is_floating, float),
    (pa.types.is_decimal, decimal.Decimal),
    (pa.types.is_date, datetime.date),
    (pa.types.is_timestamp, datetime.datetime),
)


# -- functions --------------------------------------------------------------------------------------------------------


def _hints_of(func: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(unwrap(func), include_extras=True)
    except NameError as error:
        raise UserError(
            f"{where}: a type of its parameters cannot be found: {message_of(error)}",
            hint="import it when the program runs, not under TYPE_CHECKING alone",
        ) from error


def _context_in(kind: Any) -> str:
    """Returns the name of the first class of Sabot in the type whose name ends with "Context", such as
    `DurableContext`. Returns "" if there is none. A parameter of such a type is refused, because a model could not give
    its value.
    """
    if isinstance(kind, type):
        for each in kind.__mro__:
            if each.__module__.partition(".")[0] == "sabot" and each.__name__.endswith("Context"):
                return each.__name__
    return next(filter(None, map(_context_in, get_args(kind))), "")


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Splits a docstring. Returns the text before the descriptions of the parameters, and a dict of these descriptions
    by the names of the parameters.
    """
    before: list[str] = []
    told: dict[str, str] = {}
    inside, indent, name = False, -1, ""
    for line in text.splitlines():
        rest = _REST_LINE.match(line)
        if rest:
            inside, name, told[rest[1]] = True, rest[1], rest[2]
            indent = -1
        elif _ARGUMENTS.match(line):
            inside, indent, name = True, -1, ""
        elif inside and _SECTION.match(line):
            name, indent = "", 1 << 30
        elif not inside:
            if _SECTION.match(line):
                inside, indent = True, 1 << 30
                continue
            before.append(line)
        elif indent < 1 << 30:
            entry = _PARAMETER_LINE.match(line)
            if entry and entry[1] and indent in (-1, len(entry[1])) and not (name and indent == -1):
                indent, name = len(entry[1]), entry[2]
                told[name] = entry[3]
            elif name and line.strip():
                told[name] = f"{told[name]} {line.strip()}".strip()
    return "\n".join(before).strip(), told


def _add_default(schema: JsonSchema, value: Any) -> None:
    """Adds the default value of a parameter to its schema. Does nothing if the value is not a text, number, bool or
    None.
    """
    if value is None or (isinstance(value, str | int | float | bool) and _is_finite(value)):
        schema["default"] = value


# -- values -----------------------------------------------------------------------------------------------------------


def _strip_fence(text: str) -> str:
    fenced = _FENCED.match(text) if "```" in text else None
    return fenced[1] if fenced else text


def _decode(text: str, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=validate_pydantic)
    except msgspec.ValidationError as error:
        raise Mismatch(str(error)) from error
    except UNREADABLE as error:
        raise _NoJson(f"it is no JSON: {message_of(error)}") from error


def converted(value: Any, kind: Any) -> Any:
    """Returns a value of JSON, or one that a journal has recorded, converted into a type. Raises Mismatch if it does not
    fit, and if no value of the type can be made of it.
    """
    if kind is Any:
        return value
    try:
        return msgspec.convert(value, readable(kind, "it"), dec_hook=validate_pydantic)
    except msgspec.ValidationError as error:
        raise Mismatch(str(error)) from error
    except (TypeError, AttributeError, NotImplementedError, UserError) as error:
        raise Mismatch(f"no value of type {short_repr(kind)} can be made of it: {message_of(error)}") from error


def _decode_unwrapped(text: str, kind: Any, wrapped: Mismatch) -> Any:
    """Decodes a text that is not in the form {"value": …}: first as JSON, then as a text whose quotes are missing.
    Raises Mismatch if neither matches the type.

    `wrapped`: the error of an earlier attempt to decode the form {"value": …}. If the text begins with "{", this error
    is raised, because the model probably meant that form.
    """
    try:
        return _decode(text, kind)
    except Mismatch as error:
        wrong = wrapped if text.startswith("{") else error
    if text[:1] in '{["':  # meant as JSON, or empty
        raise wrong
    try:
        return _decode(msgspec.json.encode(text).decode(), kind)
    except Mismatch as error:
        raise (error if isinstance(wrong, _NoJson) else wrong) from None


def validate_pydantic(kind: Any, value: Any) -> Any:
    """Checks a value with a pydantic model, by pydantic's rules for JSON, and returns the object of the model. Raises
    ValueError if the value does not match. The message contains the names of the fields and the reasons. It contains
    neither the value nor links to pydantic's web pages.
    """
    # `json`, because pydantic reads an infinity, which msgspec writes as null
    text = json.dumps(msgspec.to_builtins(value, enc_hook=plain_form, str_keys=True))
    try:
        return kind.model_validate_json(text)
    except ValueError as error:
        told = getattr(error, "errors", None)
        if told is None:
            raise
        places = [
            each["msg"] + "".join(f" at {'.'.join(map(str, each['loc']))}" for _ in each["loc"][:1]) for each in told()
        ]
        raise ValueError("; ".join(places)) from error
