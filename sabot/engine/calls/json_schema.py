"""Checks JSON values against a JSON schema.

It checks `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `prefixItems`,
`anyOf`, `oneOf`, `allOf`, `$ref`, and the bounds of numbers, of lengths, and of the number of items. Other keywords are left to the
vendor: most of them only describe, and a `pattern` from an untrusted schema may run for ever.
"""

from collections.abc import Iterator
from typing import Any

from sabot.engine.calls.model_requests import JsonSchema
from sabot.errors import UserError, short_repr

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}
_DEEPEST = 100
_MOST_CHARACTERS = 1000  # characters of the list of errors of several choices


def mismatch(value: Any, schema: JsonSchema) -> str:
    """Returns the first error of the value, such as "expected integer, got string - at $.amount", or "" if the value
    matches the schema. Raises UserError if the target of a `$ref` does not exist or a type is unknown.
    """
    return next(_errors(value, schema, _Root(schema), "$", 0), "")


def item_schema(schema: JsonSchema, place: int) -> Any:
    """Returns the schema of an item of a list by its place, from 0; True if it may be any value. The first items may have
    schemas of their own: `prefixItems`, or a list as `items` in earlier drafts.
    """
    first, items = schema.get("prefixItems"), schema.get("items", True)
    if isinstance(items, list):
        first, items = items, schema.get("additionalItems", True)
    return first[place] if isinstance(first, list) and place < len(first) else items


class _Root:
    """The root of a schema, in which the targets of `$ref` are looked up.

    `known`: the results of earlier checks, by the id of the value and the text of the `$ref`. Without it, the time for
    a schema whose parts refer to each other would double with each level of nesting.
    """

    def __init__(self, schema: JsonSchema) -> None:
        self.schema = schema
        self.known: dict[tuple[int, str], str] = {}

    def wrong(self, value: Any, reference: str, where: str, depth: int) -> str:
        """Checks the value against the part of the schema to which the `$ref` text `reference` points. Returns the
        first error, or "" if the value matches. `where`: the path of the value, such as "$.amount", for the error.
        `depth`: the levels of nesting so far.
        """
        key = id(value), reference
        if key not in self.known:
            self.known[key] = f"nested too deep - at {where}"  # the answer for a part that refers only to itself
            self.known[key] = next(_errors(value, _target(self.schema, reference), self, where, depth), "")
        return self.known[key]


def _errors(value: Any, schema: Any, root: _Root, where: str, depth: int) -> Iterator[str]:
    if schema is True or depth > _DEEPEST:
        if depth > _DEEPEST:
            yield f"nested too deep - at {where}"
        return
    if schema is False:
        yield f"nothing is allowed - at {where}"
        return
    if "$ref" in schema:
        wrong = root.wrong(value, schema["$ref"], where, depth + 1)
        if wrong:
            yield wrong
    yield from _type_errors(value, schema, where)
    if isinstance(value, dict):
        yield from _field_errors(value, schema, root, where, depth)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from _errors(each, item_schema(schema, place), root, f"{where}[{place}]", depth + 1)
    for each in schema.get("allOf", ()):
        yield from _errors(value, each, root, where, depth + 1)
    for word in ("anyOf", "oneOf"):
        choices = schema.get(word)
        if choices:
            first = [next(_errors(value, each, root, where, depth + 1), "") for each in choices]
            if "" not in first:
                yield first[0] if len(first) == 1 else f"it is none of: {'; '.join(first)}"[:_MOST_CHARACTERS]
            elif word == "oneOf" and first.count("") > 1:
                yield f"it is more than one of the {len(first)} choices - at {where}"


def _target(root: JsonSchema, reference: str) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    if found is None or not reference.startswith("#"):
        raise UserError(f"JSON schema: $ref {reference!r} leads nowhere", hint='a place in the schema: "#/$defs/…"')
    return found


def _type_errors(value: Any, schema: JsonSchema, where: str) -> Iterator[str]:
    wanted = schema.get("type")
    names = [wanted] if isinstance(wanted, str) else wanted
    if names and not any(_is_a(value, each) for each in names):
        yield f"expected {' or '.join(names)}, got {_kind_of(value)} - at {where}"
        return
    if "enum" in schema and not any(_equal(value, each) for each in schema["enum"]):
        yield f"{short_repr(value)} is none of {short_repr(schema['enum'])} - at {where}"
    if "const" in schema and not _equal(value, schema["const"]):
        yield f"{short_repr(value)} is not {short_repr(schema['const'])} - at {where}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from _bound_errors(value, schema, ("minimum", "maximum"), "", where)
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if (above is not None and value <= above) or (below is not None and value >= below):
            yield f"{value} is out of bounds - at {where}"
    elif isinstance(value, str):
        yield from _bound_errors(len(value), schema, ("minLength", "maxLength"), " characters", where)
    elif isinstance(value, list):
        yield from _bound_errors(len(value), schema, ("minItems", "maxItems"), " items", where)


def _bound_errors(size: float, schema: JsonSchema, words: tuple[str, str], unit: str, where: str) -> Iterator[str]:
    least, most = (schema.get(word) for word in words)
    if least is not None and size < least:
        yield f"{size}{unit}, and at least {least} are wanted - at {where}"
    if most is not None and size > most:
        yield f"{size}{unit}, and at most {most} are wanted - at {where}"


def _field_errors(value: dict[str, Any], schema: JsonSchema, root: _Root, where: str, depth: int) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{name!r} is missing - at {where}"
    properties = schema.get("properties", {})
    for name, each in value.items():
        known = properties.get(name)
        if known is None:
            known = schema.get("additionalProperties", True)
            if known is False and "patternProperties" in schema:  # a pattern is not checked
                continue
            if known is False:
                yield f"{name!r} is not expected - at {where}"
                continue
        yield from _errors(each, known, root, f"{where}.{name}", depth + 1)


def _is_a(value: Any, name: str) -> bool:
    kind = _TYPES.get(name)
    if kind is None:
        raise UserError(f"JSON schema: {name!r} is no type", hint=", ".join(_TYPES))
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, kind) or (name == "integer" and isinstance(value, float) and value.is_integer())


def _kind_of(value: Any) -> str:
    return next(name for name in _TYPES if _is_a(value, name))


def _equal(value: Any, other: Any) -> bool:
    """Returns True if two JSON values are equal. JSON has one kind of number (1 equals 1.0), and True is not a number,
    also within arrays and objects.
    """
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_equal, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(each, other[name]) for name, each in value.items())
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)
