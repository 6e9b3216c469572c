"""Makes one step of equal steps of a statement, such as two queries in FROM that count the same windows.

FROM (SELECT id, COUNT(*) … GROUP BY id, window) JOIN (SELECT MAX(n) FROM (SELECT COUNT(*) AS n … GROUP BY id, window) …)
->  one step counts, and both sides of the join read it
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr
from sabot.api.nodes.node import Node, walk

_INPUTS = ("input", "left", "right", "streams")


def without_repeats(ends: Sequence[Node], statement: str) -> list[Node]:
    """Returns the same steps over a graph in which equal steps of the statement are one step.

    Two steps are equal if they do the same with the same rows. Steps of other statements stay apart, since their state
    belongs to these statements. `statement`: the name of the statement (`StepOrigin`).
    """
    made: dict[int, Node] = {}
    known: dict[Any, Node] = {}
    for each in walk(ends):
        inputs = tuple(made[id(upstream)] for upstream in each.inputs)
        same = all(new is old for new, old in zip(inputs, each.inputs, strict=True))
        found = each if same else each.over(*inputs)
        of_statement = bool(each.origin.place) and each.origin.name.split(", ")[0] == statement
        if inputs and of_statement:
            found = known.setdefault((type(found), tuple(map(id, inputs)), _facts(found)), found)
        made[id(each)] = found
    return [made[id(each)] for each in ends]


def _facts(node: Node) -> tuple[Any, ...]:
    return tuple(
        (each.name, _fact(getattr(node, each.name)))
        for each in fields(node)
        if each.name not in _INPUTS and each.name != "origin"
    )


def _fact(value: Any) -> Any:
    """Returns a value that is equal for equal values of a step's field, and can be hashed."""
    if isinstance(value, Expr):
        return value.text()
    if isinstance(value, Aggregate):
        return value.text(), id(value.function)
    if isinstance(value, tuple):
        return tuple(map(_fact, value))
    if isinstance(value, Mapping):
        return tuple((name, _fact(each)) for name, each in value.items())
    if value is None or isinstance(value, bool | int | float | str | frozenset):
        return type(value), value
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_fact(getattr(value, each.name)) for each in fields(value))
    return id(value)
