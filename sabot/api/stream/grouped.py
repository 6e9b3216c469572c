"""Streams behind `group_by`: one row for each key, which changes with the rows of the key."""

from typing import TYPE_CHECKING

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    aggregates_of_keywords,
)
from sabot.api.expr import Expr
from sabot.api.nodes.changes import GroupAggregate
from sabot.api.stream.elsewhere import NamedElsewhere
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.api.stream.base import Steps, Stream


class GroupedStream(NamedElsewhere):
    """Rows grouped by key. `aggregate` makes one row of each group, and updates it as rows come."""

    _made_by = 'group_by("column")'
    _ends_in = "aggregate(…)"

    def __init__(self, steps: "Steps", keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """The keys and these aggregates, or what is computed of them (`share=sum("a") / sum("b")`), as changes. A batch updates the row of
        a key at most once. A key is deleted when all its rows are.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        for name in aggregates:
            if name in self._keys:
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then_aggregate(GroupAggregate(self._steps.node, self._keys, known), known, computed)

    def __repr__(self) -> str:
        return f"GroupedStream(by {', '.join(self._keys)})"
