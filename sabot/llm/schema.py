"""JSON schemas of types (for structured answers) and of functions (for tools), and the decoding of the JSON that a
model wrote.

`Schema(of)` accepts

    Verdict                                    a msgspec Struct, a dataclass, a TypedDict, or a pydantic model
    list[Verdict], Literal["yes", "no"], int   any other type that msgspec reads
    {"label": "string", "score": "float64"}    columns, by the names of Arrow types; the answer is a dict
    {"type": "object", "properties": …}        a JSON schema; the answer is the decoded JSON

The text of a model is checked when it is decoded. An error names the place and the reason, in words by which the
model can correct its answer.
"""

import datetime
import decimal
import inspect
import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Annotated, Any, TypedDict, cast, get_args, get_type_hints

import msgspec
import pyarrow as pa

from sabot.base.arrays import as_type
from sabot.calls.functions import unwrap
from sabot.errors import UNREADABLE, UserError, message_of, short_repr
from sabot.llm.json_schema import mismatch
from sabot.llm.spec import JsonSchema

_REF = "#/$defs/"
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
        self._type = _row_type(of) if self._columns else of
        self.json = schema_of(self._type, f"output={short_repr(of)}")
        if self.json.get("type") != "object":
            self._wrapped_type = self._type
            self._type = _record(self.name, {_WRAPPED: self._type})
            self.json = schema_of(self._type, f"output={short_repr(of)}")
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

    def __init__(self, func: Callable[..., Any], where: str, hidden: tuple[str, ...] = ()) -> None:
        self.description, told = _read_docstring(inspect.getdoc(func) or "")
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        hints = _hints_of(func, where)
        for name, parameter in inspect.signature(func).parameters.items():
            if name in hidden:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise UserError(
                    f"{where}: its parameter {parameter} cannot be given by name",
                    hint="a tool has parameters with names",
                )
            kind = hints.get(name, Any)
            if context := _context_in(kind):
                raise UserError(
                    f"{where}: its parameter {name!r} is a {context}, which the model that calls the tool would fill in",
                    hint="remove it, because models fill in all parameters; the function of a durable agent can pass values of its job, "
                    "such as ctx.scope, by ctx.call(tool, …), and Sabot fills in a parameter `effect: Effect`",
                )
            if name in told:
                kind = Annotated[kind, msgspec.Meta(description=told[name])]
            if parameter.default is parameter.empty:
                fields.append((name, kind, msgspec.NODEFAULT))
            else:
                fields.append((name, kind | msgspec.UnsetType, msgspec.UNSET))
                defaults[name] = parameter.default
        self._type = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        self.json = schema_of(self._type, where)
        self.json.pop("title", None)
        for name, value in defaults.items():
            _add_default(self.json["properties"][name], value)

    def decode(self, text: str) -> dict[str, Any]:
        """Decodes the arguments of a tool call that a model wrote as JSON, and returns them by name. Parameters that
        the model left out are not in the dict. Raises Mismatch if the text does not match the schema.
        """
        found = _decode(text or "{}", self._type)
        given = {name: getattr(found, name) for name in found.__struct_fields__}
        return {name: value for name, value in given.items() if value is not msgspec.UNSET}


# -- schemas ----------------------------------------------------------------------------------------------------------


def schema_of(kind: Any, where: str) -> JsonSchema:
    """Returns the JSON schema of a type. The schema of the type itself is at the top level, not behind a `$ref`.
    `where`: the text with which the error message begins. Raises UserError if the type has no JSON schema.
    """
    foreign: dict[str, Any] = {}
    try:
        (root,), parts = msgspec.json.schema_components(
            [kind], ref_template=_REF + "{name}", schema_hook=lambda each: _pydantic_schema(each, foreign)
        )
    except (TypeError, NotImplementedError) as error:
        raise UserError(
            f"{where}: {str(error).splitlines()[-1]}",
            hint="a msgspec Struct, a dataclass, a TypedDict, a pydantic model, or a type made of these",
        ) from error
    parts = {**parts, **foreign}
    reference = root.get("$ref", "").removeprefix(_REF)
    if reference:
        root = deepcopy(parts[reference])
        if not _refers(parts, reference):
            del parts[reference]
    return {**root, **({"$defs": parts} if parts else {})}


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


def _pydantic_schema(kind: Any, parts: dict[str, Any]) -> JsonSchema:
    """Returns the JSON schema of a pydantic model, without importing pydantic. Adds the schemas of other models that it
    uses to the dict `parts`, by their names. Raises NotImplementedError if `kind` is not a pydantic model.
    """
    if not _is_pydantic(kind):
        raise NotImplementedError(f"{kind!r} has no JSON schema")
    schema = kind.model_json_schema()
    inner = schema.pop("$defs", {})
    parts.update(inner)
    reference = schema.get("$ref", "").removeprefix(_REF)
    return cast("JsonSchema", deepcopy(inner[reference]) if reference else schema)


def _is_pydantic(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate")


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
    if value is None or isinstance(value, str | int | float | bool):
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
        return msgspec.convert(value, kind, dec_hook=validate_pydantic)
    except msgspec.ValidationError as error:
        raise Mismatch(str(error)) from error
    except (TypeError, AttributeError, NotImplementedError) as error:
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
    """Checks a value with a pydantic model, and returns the object of the model. Raises ValueError if the value does
    not match. The message contains the names of the fields and the reasons. It contains neither the value nor links to
    pydantic's web pages.
    """
    try:
        return kind.model_validate(value)
    except ValueError as error:
        told = getattr(error, "errors", None)
        if told is None:
            raise
        places = [f"{each['msg']} at {'.'.join(map(str, each['loc'])) or 'its top'}" for each in told()]
        raise ValueError("; ".join(places)) from error
