"""The modules of operators of streams, and what these say together: how steps stand in a plan (`PLACES`), and how their state is read
from outside (`READERS`). A module that is not named here is not found; one may have either of the two tables, or both.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sabot.api.nodes.node import Node
from sabot.operators.agents import feed
from sabot.operators.base import Operator
from sabot.operators.calls import lookups, map_async, map_llm
from sabot.operators.changes import materialize
from sabot.operators.changes import steps as changes
from sabot.operators.functions import process
from sabot.operators.joins import asof, interval, join
from sabot.operators.joins import window as window_join
from sabot.operators.keyed import ordered, over, running, top
from sabot.operators.layout.sites import Site
from sabot.operators.patterns import match
from sabot.operators.rows import exploded, mapped, stateless, subset, timed
from sabot.operators.windows import fixed, sessions
from sabot.operators.windows import top as window_top

__all__ = ["PLACES", "READERS"]

_MODULES: tuple[Any, ...] = (
    stateless,
    exploded,
    mapped,
    subset,
    fixed,
    timed,
    sessions,
    running,
    top,
    window_top,
    ordered,
    over,
    changes,
    materialize,
    join,
    interval,
    window_join,
    asof,
    map_async,
    lookups,
    map_llm,
    process,
    match,
    feed,
)

PLACES: dict[type[Node], Callable[..., Site]] = {
    node: place for module in _MODULES for node, place in getattr(module, "PLACES", {}).items()
}
"""Node -> the function that puts it into a plan (see `sites`)."""

READERS: dict[str, Callable[[Mapping[str, Any]], Operator] | str] = {
    kind: make for module in _MODULES for kind, make in getattr(module, "READERS", {}).items()
}
"""Kind of state -> the function that makes an operator which reads it, or a text that says what is kept where it is no rows (see
`readers`).
"""
