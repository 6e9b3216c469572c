"""Expressions that choose between others or combine them: `when(…).then(…)`, `coalesce`, `struct`."""

from dataclasses import dataclass
from typing import Any

from sabot.api.expr.tree import Expr, as_column, as_expr, lit
from sabot.errors import UserError


@dataclass(frozen=True, slots=True)
class When:
    """A condition of `when(…)` that has no value yet: `then` gives it one."""

    inputs: tuple[Expr, ...]

    def then(self, value: Any) -> "Then":
        """Sets the value of rows for which the condition is true: an expression, a value, or the name of a column."""
        return Then("when", (*self.inputs, as_column(value), lit(None)))


class Then(Expr):
    """An expression `when(p).then(x)`: `x` where `p` is true, null in all other rows. `when` and `otherwise` continue
    it.
    """

    __slots__ = ()

    def when(self, *predicates: Expr) -> When:
        """Adds a case for rows that no earlier case has taken. Several predicates are joined by `&`.

        Raises UserError without a predicate.
        """
        return When((*self.inputs[:-1], _all(predicates)))

    def otherwise(self, value: Any) -> Expr:
        """Sets the value of rows that no case has taken, also of rows for which a predicate is null.

        `value`: an expression, a value, or the name of a column.
        """
        return Expr("when", (*self.inputs[:-1], as_column(value)))


def when(*predicates: Expr) -> When:
    """Begins an expression of cases: `when(col("x") > 0).then("x").otherwise(0)`. The first case that is true gives
    the value.

    Several predicates are joined by `&`. Strings in `then` and `otherwise` are names of columns: `then(lit("up"))`
    gives a text. Without `otherwise`, rows that no case has taken are null. Raises UserError without a predicate.
    """
    return When((_all(predicates),))


def coalesce(*exprs: Any) -> Expr:
    """Returns an expression that gives in each row the first value that is not null.

    `exprs`: expressions, names of columns, or values. Raises UserError without any.
    """
    if not exprs:
        raise UserError("coalesce needs at least one expression")
    return Expr("coalesce", tuple(as_column(each) for each in exprs))


def struct(**fields: Any) -> Expr:
    """Returns an expression that makes a struct of these fields: `struct(city="city", total=col("n") * 2)`.

    Strings are names of columns. Raises UserError without fields.
    """
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
