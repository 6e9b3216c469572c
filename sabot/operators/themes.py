"""Every module of operators that a step of a stream can become: where their `PLACES` are found."""

from collections.abc import Callable

from sabot.api.nodes.node import Node
from sabot.operators import (
    changes,
    joins,
    keyed,
    lookups,
    map_async,
    mapped,
    over,
    pattern,
    process,
    ranked,
    stateless,
    time_joins,
    windows,
)
from sabot.operators.sites import Site

__all__ = ["PLACES"]

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
