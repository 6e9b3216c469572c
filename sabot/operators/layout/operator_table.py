"""The modules of operators of streams, and what these say together: how steps stand in a plan (`PLANNERS`), and how their state is read
from outside (`STATE_READERS`). A module that is not named here is not found; one may have either of the two tables, or both.

A program has few kinds of steps, so a module is loaded when a node that it may place is looked up; for readers all are.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from sabot.api.nodes.node import Node
from sabot.errors import UserError
from sabot.operators.base import Restorable
from sabot.operators.layout.plan_points import PlanPoint

_MODULES = {
    "agents": ("agents.feed",),
    "calls": ("calls.map_async", "calls.lookups", "calls.map_llm"),
    "changes": ("changes.steps", "changes.materialize"),
    "functions": ("functions.process",),
    "joins": ("joins.join", "joins.interval", "joins.window", "joins.asof"),
    "keyed": ("keyed.running", "keyed.top", "keyed.over"),
    "patterns": ("patterns.match",),
    "rows": ("rows.stateless", "rows.exploded", "rows.mapped", "rows.subset"),
    "times": ("rows.timed",),
    "windows": ("windows.fixed", "windows.top"),
}
"""By the module of `api/nodes` that has the nodes, the modules of operators that place them."""

_ONLY_READ = ("windows.sessions", "keyed.ordered")


def planner_of(kind: type[Node]) -> Callable[..., PlanPoint]:
    """The function that puts nodes of this kind into a plan (see `points`). Raises UserError where they are no steps."""
    for name in _MODULES.get(kind.__module__.rpartition(".")[2], ()):
        place: Callable[..., PlanPoint] | None = _table(name, "PLANNERS").get(kind)
        if place is not None:
            return place
    raise UserError(f"{kind.__name__} is no step of a stream")


def reader_of(kind: str) -> Callable[[Mapping[str, Any]], Restorable] | str | None:
    """The function that makes an operator which reads this kind of state, or a text that says what is kept where it is no rows (see
    `readers`); None: nobody knows the kind.
    """
    return _readers().get(kind)


@cache
def _readers() -> dict[str, Callable[[Mapping[str, Any]], Restorable] | str]:
    names = [name for names in _MODULES.values() for name in names]
    return {kind: make for name in [*names, *_ONLY_READ] for kind, make in _table(name, "STATE_READERS").items()}


def _table(name: str, table: str) -> Mapping[Any, Any]:
    found: Mapping[Any, Any] = getattr(import_module(f"sabot.operators.{name}"), table, {})
    return found
