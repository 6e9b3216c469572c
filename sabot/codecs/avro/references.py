"""Joins a schema with the schemas that it refers to by name, which registries keep apart."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sabot.errors import UserError

_DEFINED = ("record", "error", "enum", "fixed")


def with_references(schema: str, others: Iterable[str]) -> str:
    """Returns the JSON text of a schema in which each named type from `others` is defined where it is first used.
    Raises UserError for a text that is not JSON.
    """
    known: dict[str, Mapping[str, Any]] = {}
    try:
        for other in others:
            _collect(json.loads(other), "", known)
        return json.dumps(_inlined(json.loads(schema), "", known, set()))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the Avro schema, or one that it refers to, is not JSON: {error}") from error


def _named(node: Mapping[str, Any], space: str) -> tuple[str, str]:
    """Returns the full name of a definition, and the namespace of the types in it."""
    name, own = str(node.get("name", "")), space if node.get("namespace") is None else node["namespace"]
    full = name if "." in name or not own else f"{own}.{name}"
    return full, full.rpartition(".")[0]


def _collect(node: Any, space: str, known: dict[str, Mapping[str, Any]]) -> None:
    """Adds the definitions in a schema to `known`, by their full names. Each definition is copied with its namespace
    as a field, because it will be put into a place with another namespace.
    """
    if isinstance(node, list):
        for each in node:
            _collect(each, space, known)
    elif isinstance(node, Mapping):
        if node.get("type") in _DEFINED:
            full, space = _named(node, space)
            known.setdefault(full, {**node, "namespace": space})
        for each in _inner(node):
            _collect(each, space, known)


def _inner(node: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the types that a definition, or another complex type, directly contains."""
    yield from (node[key] for key in ("items", "values", "type") if isinstance(node.get(key), list | Mapping))
    fields = node.get("fields")
    yield from (each["type"] for each in (fields if isinstance(fields, list) else ()) if _is_field(each))


def _is_field(node: Any) -> bool:
    return isinstance(node, Mapping) and "type" in node


def _inlined(node: Any, space: str, known: Mapping[str, Mapping[str, Any]], defined: set[str]) -> Any:
    if isinstance(node, str):
        for full in (f"{space}.{node}", node) if space and "." not in node else (node,):
            if full in defined:
                return full
            if full in known:
                return _inlined(known[full], "", known, defined)
        return node
    if isinstance(node, list):
        return [_inlined(each, space, known, defined) for each in node]
    if not isinstance(node, Mapping):
        return node
    made = dict(node)
    if node.get("type") in _DEFINED:
        full, space = _named(node, space)
        if full in defined:
            return full  # already defined where it was used first
        defined.add(full)
        if isinstance(node.get("fields"), list):
            made["fields"] = [
                {**each, "type": _inlined(each["type"], space, known, defined)} if _is_field(each) else each
                for each in node["fields"]
            ]
        return made
    for key in ("items", "values", "type"):
        if key in node:
            made[key] = _inlined(node[key], space, known, defined)
    return made
