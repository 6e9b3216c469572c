"""Expressions that choose or combine others: `when(…).then(…)`, `coalesce`, `struct`."""

from dataclasses import dataclass
from typing import Any

from sabot.api.expr.tree import Expr, as_column, as_expr, lit
from sabot.errors import UserError

__all__ = ["Then", "When", "coalesce", "struct", "when"]


@dataclass(frozen=True, slots=True)
class When:
    """`when(p)`: `then` comes next."""

    inputs: tuple[Expr, ...]

    def then(self, value: Any) -> "Then":
        """What the rows get for which the predicate is true: an expression, a value, or the name of a column."""
        return Then("when", (*self.inputs, as_column(value), lit(None)))


class Then(Expr):
    """`when(p).then(x)`: an expression that is null elsewhere; `otherwise` and `when` go on from it."""

    __slots__ = ()

    def when(self, *predicates: Expr) -> When:
        """Of the rows that are left, those where this is true."""
        return When((*self.inputs[:-1], _all(predicates)))

    def otherwise(self, value: Any) -> Expr:
        """What all other rows get, also those where a predicate is null."""
        return Expr("when", (*self.inputs[:-1], as_column(value)))


def when(*predicates: Expr) -> When:
    """`when(col("x") > 0).then("x").otherwise(0)`: the first case that is true counts. Strings in then and otherwise name columns."""
    return When((_all(predicates),))


def coalesce(*exprs: Any) -> Expr:
    """For each row the first that is not null: expressions, names of columns, values."""
    if not exprs:
        raise UserError("coalesce needs at least one expression")
    return Expr("coalesce", tuple(as_column(each) for each in exprs))


def struct(**fields: Any) -> Expr:
    """A struct with these fields: `struct(city="city", total=col("n") * 2)`."""
    if not fields:
        raise UserError("struct needs at least one field", hint='struct(city="city")')
    return Expr("struct", tuple(as_column(each) for each in fields.values()), (("names", tuple(fields)),))


def _all(predicates: tuple[Any, ...]) -> Expr:
    if not predicates:
        raise UserError("when needs a predicate", hint='when(col("amount") > 10).then(1).otherwise(0)')
    first, *rest = [as_expr(each) for each in predicates]
    for each in rest:
        first = first & each
    return first
