"""Arguments of aggregates that are expressions. They become columns before the step that aggregates."""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr
from sabot.api.over import OverFunction
from sabot.operators.aggregates.aggregator import AggregateColumn
from sabot.operators.layout.plan_points import PlanPoint
from sabot.operators.rows.stateless import add_columns


class Arguments:
    """The columns "__0", "__1", … for arguments that are expressions.

    `what`: the aggregates, or columns of `over`, by name.
    """

    def __init__(self, what: Iterable[tuple[str, Aggregate | OverFunction]]) -> None:
        self.columns: list[tuple[str, Expr]] = []
        self._taken = set().union(*(each.columns for _, each in what))  # the user's own columns

    def column(self, expr: Expr | None) -> str | None:
        """Returns the name of the column that the expression is, or of the column that is made for it. Equal
        expressions share a column.
        """
        if expr is None:
            return None
        if expr.column is not None:
            return expr.column
        for name, known in self.columns:
            if known.same(expr):
                return name
        name = next(name for name in map("__{}".format, count(len(self.columns))) if name not in self._taken)
        self._taken.add(name)
        self.columns.append((name, expr))
        return name

    def add(self, point: PlanPoint) -> PlanPoint:
        """Returns the plan point behind a step that computes these columns, or `point` if there are none."""
        return add_columns(point, tuple(self.columns)) if self.columns else point


def with_arguments(
    point: PlanPoint, given: tuple[tuple[str, Aggregate], ...]
) -> tuple[PlanPoint, list[AggregateColumn]]:
    """Returns the plan point where all arguments of the aggregates are columns, and the aggregates over these
    columns.
    """
    arguments = Arguments(given)
    made = []
    for name, each in given:
        argument, by, where = map(arguments.column, (each.argument, each.by, each.predicate))
        options = _options(each)
        made.append(
            AggregateColumn(name, each.kind, argument=argument, by=by, where=where, text=each.text(), **options)
        )
    return arguments.add(point), made


def _options(aggregate: Aggregate) -> Mapping[str, Any]:
    return {
        **aggregate.options,
        **({} if aggregate.function is None else {"function": aggregate.function}),
    }
