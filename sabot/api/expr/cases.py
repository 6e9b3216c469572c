"""Expressions that choose between others or combine them: `when(…).then(…)`, `coalesce`, `struct`."""

from dataclasses import dataclass
from typing import Any

from sabot.api.expr.tree import Expr, as_column, as_expr, lit
from sabot.errors import UserError


@dataclass(frozen=True, slots=True)
class When:
    """`when(p)`, the first half of a case; `then` completes it."""

    inputs: tuple[Expr, ...]

    def then(self, value: Any) -> "Then":
        """Gives the value of rows for which the predicate is true: an expression, a value, or the name of a column."""
        return Then("when", (*self.inputs, as_column(value), lit(None)))


class Then(Expr):
    """`when(p).then(x)`: an expression that is null for all other rows. `otherwise` and `when` continue it."""

    __slots__ = ()

    def when(self, *predicates: Expr) -> When:
        """Adds a case: of the remaining rows, those for which this predicate is true."""
        return When((*self.inputs[:-1], _all(predicates)))

    def otherwise(self, value: Any) -> Expr:
        """Gives the value of all other rows, also of those for which a predicate is null."""
        return Expr("when", (*self.inputs[:-1], as_column(value)))


def when(*predicates: Expr) -> When:
    """`when(col("x") > 0).then("x").otherwise(0)`: the first case that is true applies. Strings in then and otherwise name columns."""
    return When((_all(predicates),))


def coalesce(*exprs: Any) -> Expr:
    """Returns for each row the first value that is not null, of expressions, names of columns, and values."""
    if not exprs:
        raise UserError("coalesce needs at least one expression")
    return Expr("coalesce", tuple(as_column(each) for each in exprs))


def struct(**fields: Any) -> Expr:
    """Makes a struct with these fields: `struct(city="city", total=col("n") * 2)`."""
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
