"""What a JSON schema says of the values at a path: their defaults, their names, their types; and whether a path leads
nowhere. The schema may come from a server: it may refer to itself, and what is not understood forbids nothing.
"""

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal

from sabot.engine.calls.fields import CLOSED_VALUE, LEFT_VALUE, MISSING_VALUE, REST, alike, is_no_value, keys_as_items
from sabot.engine.calls.json_schema import item_schema
from sabot.engine.calls.model_requests import JsonSchema
from sabot.errors import UserError

_DEEPEST = 60  # levels of a JSON schema whose defaults are filled in
_MOST_NESTED = 20_000  # defaults within defaults of one call: the schema of a server may refer to itself
_OPEN = frozenset({"patternProperties", "dependentSchemas", "dependencies", "then", "else"})  # say of further fields
_OF_OBJECTS = frozenset({"properties", "patternProperties", "additionalProperties"})
_JSON_TYPES: Mapping[Any, Any] = {
    "string": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": NoneType,
}


def with_defaults(value: Any, root: JsonSchema) -> Any:
    """Returns a copy of a JSON value, with the defaults of the fields that it leaves out. Raises UserError if the schema
    has more than 20,000 defaults within defaults.
    """
    return _filled(value, root, root, [_MOST_NESTED])


def _filled(
    value: Any, schema: Any, root: JsonSchema, left: list[int], seen: set[int] | None = None, inside: int = 0
) -> Any:
    """Returns a copy of a JSON value, with the defaults of the fields that it leaves out.

    - `left`: how many defaults within defaults may still be filled in. Raises UserError if there are more.
    - `seen`: the ids of the schemas by which this value was filled. `inside`: of how many defaults it is a part.
    """
    seen = set() if seen is None else seen
    if not isinstance(schema, dict) or not isinstance(value, dict | list) or id(schema) in seen or inside > _DEEPEST:
        return value
    seen.add(id(schema))
    if isinstance(value, list):
        value = [_filled(each, item_schema(schema, at), root, left, inside=inside) for at, each in enumerate(value)]
    else:
        value = _filled_object(value, schema, root, left, seen, inside)
    for each in (_referred(schema["$ref"], root) if "$ref" in schema else None, *_several(schema, "allOf")):
        value = _filled(value, each, root, left, seen, inside)
    for word in ("anyOf", "oneOf"):
        fitting = [each for each in _several(schema, word) if any(_is_of(value, part) for part in _parts(each, root))]
        if len(fitting) == 1:  # else it is not known which of several it is
            value = _filled(value, fitting[0], root, left, seen, inside)
    return value


def _filled_object(
    value: dict[str, Any], schema: JsonSchema, root: JsonSchema, left: list[int], seen: set[int], inside: int
) -> dict[str, Any]:
    found, declared = dict(value), _named(schema, "properties")
    for name, each in declared.items():
        if name in found:
            found[name] = _filled(found[name], each, root, left, inside=inside)
        elif isinstance(each, dict) and each.get("default") is not None:
            left[0] -= bool(inside)
            if left[0] < 0:
                raise UserError("the schema of its server has too many defaults within defaults")
            found[name] = _filled(each["default"], each, root, left, inside=inside + 1)
    others = [schema.get("additionalProperties"), *_named(schema, "patternProperties").values()]
    others = [each for each in others if isinstance(each, dict)]
    for name in (value.keys() - declared.keys()) if len(others) == 1 else ():
        found[name] = _filled(found[name], others[0], root, left, inside=inside)
    dependents = _dependents(schema)
    while named := dependents.keys() & found.keys():
        found = _filled(found, dependents.pop(named.pop()), root, left, seen, inside)
    return found


def _is_of(value: Any, schema: JsonSchema) -> bool:
    """Returns True if a schema says what a list or an object contains."""
    if isinstance(value, list):
        return "items" in schema or "prefixItems" in schema
    return isinstance(schema.get("properties"), dict)


def values_in_json(value: Any, path: Sequence[str], schemas: Sequence[Any], root: JsonSchema) -> list[Any]:
    """Returns the values at a path in a JSON value, as `values_at` does. `schemas`: those that may describe the value. A
    field that the value leaves out has the defaults of all these schemas, because each of them may be the one that holds.
    """
    if not path or value is None:
        return [value]
    first, rest = path[0], path[1:]
    objects = [each for schema in schemas for each in _parts(schema, root, value)]
    declared = [_named(each, "properties") for each in objects]
    found: list[tuple[Any, list[Any]]]
    if isinstance(value, Mapping):
        others = [each.get("additionalProperties") for each in objects]
        others += [one for each in objects for one in _named(each, "patternProperties").values()]
        of = {name: [*(each.get(name) for each in declared), *others] for name in (value if first == REST else [first])}
        found = [(value[name], of[name]) for name in of if name in value]
        taken = _takes_object(objects) if first == REST or first.isdecimal() else True
        if taken is False:  # the tool reads a list: it gets the keys
            found = [(CLOSED_VALUE, [])]
        elif first == REST and not rest and taken is None:
            found += [(each, []) for each in keys_as_items(value)]
        elif first != REST and first not in value:
            found = [
                (each["default"], of[first])
                for schema in of[first]
                for each in _parts(schema, root)
                if "default" in each
            ] or [(LEFT_VALUE if any(_may_lack(each, first, value) for each in objects) else MISSING_VALUE, [])]
        likes = [name for name in alike(value, first) if not any(name in each for each in declared)]
        found += [(value[name], others) for name in likes]
    elif isinstance(value, list | tuple) and (first == REST or (first.isdecimal() and int(first) < len(value))):
        places = range(len(value)) if first == REST else [int(first)]
        found = [(value[at], [item_schema(each, at) for each in objects]) for at in places]
    else:
        missing = isinstance(value, list | tuple) and first.isdecimal()
        found = [(MISSING_VALUE if missing else CLOSED_VALUE, [])]
    return [
        each for one, of_it in found for each in ([one] if is_no_value(one) else values_in_json(one, rest, of_it, root))
    ]


def _takes_object(schemas: Sequence[JsonSchema]) -> bool | None:
    """Returns True if one of the schemas of a value describes an object, and False if they only describe a list. Returns
    None if that is not known.
    """
    kinds: set[Any] = set()
    for each in schemas:
        kind = each.get("type")
        kinds.update(kind if isinstance(kind, list) else [kind])
    if "object" in kinds or any(not _OF_OBJECTS.isdisjoint(each) for each in schemas):
        return True
    return False if "array" in kinds else None


def _may_lack(schema: JsonSchema, name: str, value: Mapping[str, Any]) -> bool:
    """Returns True if a schema declares an optional field that this object leaves out, and the object may be one of this
    schema: it has the fields that are required, and the constants.
    """
    declared, required = _named(schema, "properties"), schema.get("required", ())
    if not isinstance(required, list | tuple) or name not in declared or not value.keys() >= {*map(str, required)}:
        return False
    return all(
        name not in value or not isinstance(each, dict) or "const" not in each or each["const"] == value[name]
        for name, each in declared.items()
    )


def schema_lacks(root: JsonSchema, path: Sequence[str]) -> str:
    """Returns the first part of a path that a value of this schema certainly does not have; "" if it may have the path."""
    return _lacks(root, root, path, 0)


def _lacks(schema: Any, root: JsonSchema, path: Sequence[str], depth: int) -> str:
    choices = _resolved(schema, root, depth)
    if not path or not choices or depth > _DEEPEST:
        return ""
    first, rest, wrong = path[0], path[1:], ""
    for each in choices:
        properties, kind = each.get("properties"), each.get("type")
        if isinstance(properties, dict) and first in properties:
            wrong = _lacks(properties[first], root, rest, depth + 1)
        elif kind == "array" and (first == REST or first.isdecimal()):
            of_items = [_lacks(one, root, rest, depth + 1) for one in _item_schemas(each, first)]
            wrong = "" if "" in of_items else of_items[0]
        elif isinstance(properties, dict) and properties and first != REST and _OPEN.isdisjoint(each):
            wrong = "" if each.get("additionalProperties") not in (None, False) else first
        else:
            wrong = first if kind in ("string", "integer", "number", "boolean", "array") else ""
        if not wrong:
            return ""
    return wrong


def schema_names(root: JsonSchema, path: Sequence[str]) -> list[str]:
    """Returns the names of the fields that a schema declares at a path."""
    schemas: list[Any] = [root]
    for part in path:
        schemas = [
            each.get("properties", {}).get(part, each.get("items"))
            for schema in schemas
            for each in _resolved(schema, root, 0) or ()
        ]
    found = [each for schema in schemas for each in _resolved(schema, root, 0) or ()]
    return [name for each in found for name in each.get("properties", ())]


def json_types(root: JsonSchema, path: Sequence[str]) -> list[Any]:
    """Returns the types of which a value at a path may be, without None: as `arguments.types_at` does."""
    return _types_at(root, root, path, 0)


def _types_at(schema: Any, root: JsonSchema, path: Sequence[str], depth: int) -> list[Any]:
    choices = _resolved(schema, root, depth)
    if choices is None or depth > _DEEPEST:
        return [Any]
    found: list[Any] = []
    for each in choices:
        if path and not _lacks(each, root, path[:1], depth):
            inner = _named(each, "properties").get(path[0]) or each.get("additionalProperties")
            is_item = each.get("type") == "array" and (path[0] == REST or path[0].isdecimal())
            for one in _item_schemas(each, path[0]) if is_item else [inner]:
                found += _types_at(one, root, path[1:], depth + 1)
        elif not path and (values := [each["const"]] if "const" in each else each.get("enum")):
            found.append(Literal[tuple(values)])
        elif not path:
            kinds = each.get("type")
            of = [_JSON_TYPES.get(kind, Any) for kind in (kinds if isinstance(kinds, list) else [kinds])]
            found += [kind for kind in of if kind is not NoneType]
    return found


def _resolved(schema: Any, root: JsonSchema, depth: int, seen: set[int] | None = None) -> list[JsonSchema] | None:
    """Returns the schemas of which one describes a value: the choices of `anyOf` and `oneOf`, without null. Returns
    None if the schema is written in another way.
    """
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return None
    seen = set() if seen is None else seen
    if id(schema) in seen:  # it refers to itself
        return []
    seen.add(id(schema))
    if "allOf" in schema:  # with one part, as pydantic 1 writes it, it is another name for the part
        parts = schema["allOf"]
        alone = isinstance(parts, list) and len(parts) == 1 and "properties" not in schema
        return _resolved(parts[0], root, depth + 1, seen) if alone else None
    if "$ref" in schema:
        return _resolved(_referred(schema["$ref"], root), root, depth + 1, seen)
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices is None:
        return [] if schema.get("type") == "null" else [schema]
    every: list[JsonSchema] = []
    for each in choices if isinstance(choices, list) else ():
        inner = _resolved(each, root, depth + 1, seen)
        if inner is None:
            return None
        every += inner
    return every


def _parts(schema: Any, root: JsonSchema, value: Any = None) -> list[JsonSchema]:
    """Returns a schema, the schema that it refers to, its choices and its parts, as one list. `value`: the value that it
    describes; the schemas that depend on the fields of an object are among the parts if it has these fields.
    """
    found: dict[int, JsonSchema] = {}
    pending = [schema]
    while pending:
        each = pending.pop()
        if not isinstance(each, dict) or id(each) in found:
            continue
        found[id(each)] = each
        inner = [one for word in ("anyOf", "oneOf", "allOf") for one in _several(each, word)]
        inner += [each.get("then"), each.get("else"), _referred(each["$ref"], root) if "$ref" in each else None]
        if isinstance(value, Mapping):
            inner += [one for name, one in _dependents(each).items() if name in value]
        pending += reversed(inner)
    return [*found.values()]


def _referred(name: Any, root: JsonSchema) -> Any:
    """Returns the part of a schema that `$ref` names; None if there is none."""
    found: Any = root
    for part in str(name).removeprefix("#").strip("/").split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _item_schemas(schema: JsonSchema, part: str) -> list[Any]:
    """Returns the schemas of the items of a list that a part of a path is about."""
    if part != REST:
        return [item_schema(schema, int(part))]
    own = _several(schema, "prefixItems") or _several(schema, "items")
    rest = item_schema(schema, len(own))
    return own if own and rest is True else [*own, rest]


def _several(schema: JsonSchema, word: str) -> list[Any]:
    found = schema.get(word)
    return found if isinstance(found, list) else []


def _named(schema: JsonSchema, word: str) -> dict[str, Any]:
    found = schema.get(word)
    return found if isinstance(found, dict) else {}


def _dependents(schema: JsonSchema) -> dict[str, Any]:
    """Returns the schemas that hold for an object which has a field of this name. Earlier drafts call them otherwise."""
    return _named(schema, "dependencies") | _named(schema, "dependentSchemas")
