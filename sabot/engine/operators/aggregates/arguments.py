"""Turns arguments of aggregates that are expressions into columns, which a step before the aggregation computes."""

from collections.abc import Iterable, Mapping
from functools import reduce
from itertools import count
from operator import or_
from typing import Any

from sabot.api.aggregates import Aggregate
from sabot.api.expr import GUARDED, Expr
from sabot.api.over import OverFunction
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.layout.plan_points import PlanPoint
from sabot.engine.operators.rows.stateless import add_columns


class Arguments:
    """The columns that must be computed for arguments that are expressions. They are called "__0", "__1", and so on.

    `what`: the aggregates whose arguments these are, or the columns of `over`, as pairs (name, aggregate or column).
    `kept`: the names of the columns of the input that are in the result too.
    """

    def __init__(self, what: Iterable[tuple[str, Aggregate | OverFunction]], kept: Iterable[str]) -> None:
        self._columns: list[tuple[str, Expr]] = []
        self._names: dict[str, str] = {}  # of the computed columns, by the text of their expression
        self._needed_by: dict[str, list[Expr | None]] = {}
        self._taken = set(kept).union(*(each.columns for _, each in what))  # the user's own columns

    @property
    def columns(self) -> list[tuple[str, Expr]]:
        """The computed columns, as pairs (name, expression). A column that only aggregates with a predicate need may fail
        for rows of which none of these predicates is true.
        """
        return [(name, _needed_where(expr, self._needed_by[name])) for name, expr in self._columns]

    def column(self, expr: Expr | None, where: Expr | None = None) -> str | None:
        """Returns the name of the column with the value of `expr`. If the expression is a column, this is its own
        name; otherwise it is the name of a computed column, which equal expressions share. Returns None for None.
        `where`: the predicate of the rows whose value is needed; None for all rows.
        """
        if expr is None:
            return None
        if expr.column is not None:
            return expr.column
        name = self._name_of(expr)
        self._needed_by.setdefault(name, []).append(where)
        return name

    def _name_of(self, expr: Expr) -> str:
        text = expr.text()  # of equal expressions only
        if text not in self._names:
            name = next(name for name in map("__{}".format, count(len(self._columns))) if name not in self._taken)
            self._taken.add(name)
            self._columns.append((name, expr))
            self._names[text] = name
        return self._names[text]

    def add(self, point: PlanPoint) -> PlanPoint:
        """Returns the plan point behind a step that computes these columns, or `point` if there are none."""
        return add_columns(point, tuple(self.columns)) if self._columns else point


def _needed_where(expr: Expr, predicates: list[Expr | None]) -> Expr:
    given = [each for each in predicates if each is not None]
    if len(given) < len(predicates):
        return expr
    different = {each.text(): each for each in given}
    return Expr(GUARDED, (expr, reduce(or_, different.values())))


def with_arguments(
    point: PlanPoint, given: tuple[tuple[str, Aggregate], ...], keys: Iterable[str]
) -> tuple[PlanPoint, list[AggregateColumn]]:
    """Returns the plan point behind a step that computes the arguments that are expressions, and the aggregates with
    arguments that are columns only. `keys`: the columns by which rows are grouped.
    """
    arguments = Arguments(given, keys)
    made = []
    for name, each in given:
        argument, by = (arguments.column(expr, each.predicate) for expr in (each.argument, each.by))
        where = arguments.column(each.predicate)
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
