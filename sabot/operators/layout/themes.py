"""Every module of operators of streams: how they stand in a plan (`PLACES`), and how their state is read from outside (`READERS`)."""

from collections.abc import Callable, Mapping
from typing import Any

from sabot.api.nodes.node import Node
from sabot.operators.base import Operator
from sabot.operators.calls import lookups, map_async
from sabot.operators.changes import steps as changes
from sabot.operators.functions import process
from sabot.operators.joins import join as joins
from sabot.operators.joins import timed as time_joins
from sabot.operators.keyed import ordered, over
from sabot.operators.keyed import running as keyed
from sabot.operators.keyed import top as ranked
from sabot.operators.layout.sites import Site
from sabot.operators.patterns import match as pattern
from sabot.operators.rows import mapped, stateless
from sabot.operators.windows import fixed as windows
from sabot.operators.windows import sessions

__all__ = ["PLACES", "READERS"]

_THEMES = (
    stateless,
    mapped,
    windows,
    keyed,
    ranked,
    over,
    changes,
    joins,
    time_joins,
    map_async,
    lookups,
    process,
    pattern,
)

PLACES: dict[type[Node], Callable[..., Site]] = {
    node: place for theme in _THEMES for node, place in theme.PLACES.items()
}
"""Node -> what puts it into a plan (see `sites`)."""

_WITH_STATE = (
    stateless,
    windows,
    sessions,
    keyed,
    ranked,
    ordered,
    over,
    changes,
    joins,
    time_joins,
    map_async,
    lookups,
    process,
    pattern,
)

READERS: dict[str, Callable[[Mapping[str, Any]], Operator] | str] = {
    kind: make for theme in _WITH_STATE for kind, make in theme.READERS.items()
}
"""Kind of state -> what makes an operator that reads it; a text: it keeps no rows, only this (see `readers`)."""
