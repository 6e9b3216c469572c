"""The table of all modules with operators of streams.

Each module says how its steps are put into a plan (`PLANNERS`), how their state is read without the program
(`STATE_READERS`), or both. A module that is not listed here is not found. A program has few kinds of steps, so a
module is loaded when one of its nodes is looked up; to find a reader of state, all are loaded.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from sabot.api.nodes.node import Node
from sabot.engine.operators.base import Restorable
from sabot.engine.operators.layout.plan_points import PlanPoint
from sabot.errors import UserError

_MODULES = {
    "agents": ("agents.feed",),
    "calls": ("calls.map_async", "calls.lookups", "calls.map_llm"),
    "changes": ("changes.steps", "changes.materialize", "changes.sorting", "changes.expiring"),
    "functions": ("functions.process",),
    "joins": ("joins.join", "joins.interval", "joins.window", "joins.asof"),
    "keyed": ("keyed.running", "keyed.top", "keyed.over"),
    "patterns": ("patterns.match",),
    "rows": ("rows.stateless", "rows.exploded", "rows.mapped", "rows.subset"),
    "times": ("rows.timed", "keyed.ordered"),
    "windows": ("windows.fixed", "windows.top"),
}
"""The modules of operators, by the module of `api/nodes` that has their nodes."""

_ONLY_READ = ("windows.sessions",)


def planner_of(kind: type[Node]) -> Callable[..., PlanPoint]:
    """Returns the function that puts nodes of this kind into a plan (see `plan_points`). Raises UserError if they are
    no steps.
    """
    for name in _MODULES.get(kind.__module__.rpartition(".")[2], ()):
        place: Callable[..., PlanPoint] | None = _table(name, "PLANNERS").get(kind)
        if place is not None:
            return place
    raise UserError(
        f"{kind.__name__} is no step of a stream",
        hint="a module in _MODULES of engine/operators/layout/operator_table.py has a planner of each step, in PLANNERS",
    )


def reader_of(kind: str) -> Callable[[Mapping[str, Any]], Restorable] | str | None:
    """Returns how a kind of state is read: a function that makes an operator which reads it; or a text that says what
    the state consists of, if it has no rows; or None for an unknown kind.
    """
    return _readers().get(kind)


@cache
def _readers() -> dict[str, Callable[[Mapping[str, Any]], Restorable] | str]:
    names = [name for names in _MODULES.values() for name in names]
    return {kind: make for name in [*names, *_ONLY_READ] for kind, make in _table(name, "STATE_READERS").items()}


def _table(name: str, table: str) -> Mapping[Any, Any]:
    found: Mapping[Any, Any] = getattr(import_module(f"sabot.engine.operators.{name}"), table, {})
    return found
