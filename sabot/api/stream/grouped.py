"""Rows by key, of which one is made that changes with them."""

from typing import TYPE_CHECKING

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    aggregates_of_keywords,
)
from sabot.api.nodes.changes import GroupAggregate
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.api.stream.base import Steps, Stream

__all__ = ["GroupedStream"]


class GroupedStream:
    """Rows by key, of which one is made that changes with them."""

    def __init__(self, steps: "Steps", keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate) -> "Stream":
        """The keys, then these: changes. Each batch updates the row of a key once; a key whose last row was taken back is deleted."""
        node = GroupAggregate(self._steps.node, self._keys, aggregates_of_keywords(unnamed, aggregates))
        for name, _ in node.aggregates:
            if name in self._keys:
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then(node)

    def __repr__(self) -> str:
        return f"GroupedStream(by {', '.join(self._keys)})"
