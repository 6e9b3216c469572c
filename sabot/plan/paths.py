"""A digest of the steps that the rows of a step have gone through, which tells two steps in a checkpoint apart that keep the same state.

It must be the same in every version, so it is made of the names, order and values of the nodes' fields.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from typing import Any

from sabot.api.aggregates import Aggregate
from sabot.api.calls import AsyncCall
from sabot.api.expr import Expr
from sabot.api.nodes.node import Node
from sabot.api.words import name_of
from sabot.connectors.base import Sink, Source

__all__ = ["path_of"]

_GRAPH = ("input", "streams", "left", "right")
_NO_MATTER = ("schema", "inferred", "id", "late", "dead_letter", "emit_every_ms", "lateness_ms", "idle_ms")


def path_of(node: Node, before: Iterable[str]) -> str:
    """The digest of a node, which is equal for the same steps in another program. before: the paths of its inputs."""
    words = [type(node).__name__, *sorted(before)]
    for field in fields(node):
        if field.name not in _GRAPH and field.name not in _NO_MATTER:
            words.append(f"{field.name}={_said(getattr(node, field.name))}")
    return sha256("\n".join(words).encode()).hexdigest()[:16]


def _said(value: Any) -> str:
    if isinstance(value, Expr | Aggregate):
        return value.text()
    if isinstance(value, Source | Sink):
        return value.name
    if isinstance(value, tuple):
        return ", ".join(map(_said, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_said(each)}" for name, each in value.items())
    if isinstance(value, AsyncCall):
        return f"AsyncCall({', '.join(map(_said, value.facts))})"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_said(getattr(value, each.name)) for each in fields(value))})"
    return name_of(value) if callable(value) else repr(value)
