"""Expressions that choose between others or combine them: `when(…).then(…)`, `coalesce`, `struct`, `concat_str`, `min_horizontal`."""

import functools
import operator
from datetime import timedelta
from typing import Any, ClassVar

from sabot.api.elsewhere import NamedElsewhere
from sabot.api.expr.tree import Expr, as_column, as_expr, lit
from sabot.base.checks import FLAG, TEXT, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError


@dataclass(frozen=True, slots=True)
class When(NamedElsewhere):
    """A condition of `when(…)` whose value is not set yet; its method `then` sets it."""

    _of_engine: ClassVar[str] = "inputs"

    inputs: tuple[Expr, ...]

    def then(self, value: Any) -> "Then":
        """Sets the value of rows for which the condition is true: an expression, a value, or the name of a column."""
        return Then("when", (*self.inputs, as_column(value), lit(None)))


class Then(Expr):
    """An expression `when(p).then(x)`: `x` where `p` is true, null in all other rows. Its methods `when` and
    `otherwise` add further cases.
    """

    __slots__ = ()

    def when(self, *predicates: Expr) -> When:
        """Adds a case for rows for which no earlier case was true. Several predicates are joined by `&`.

        Raises UserError without a predicate.
        """
        return When((*self.inputs[:-1], _all(predicates)))

    def otherwise(self, value: Any) -> Expr:
        """Sets the value of rows for which no case is true. A predicate that is null is not true.

        `value`: an expression, a value, or the name of a column.
        """
        return Expr("when", (*self.inputs[:-1], as_column(value)))


def when(*predicates: Expr) -> When:
    """Begins an expression of cases: `when(col("x") > 0).then("x").otherwise(0)`. The result is the value of the
    first case that is true. Without `otherwise` it is null if no case is true.

    Several predicates are joined by `&`. Strings in `then` and `otherwise` are names of columns: `then(lit("up"))`
    returns a text. Raises UserError without a predicate.
    """
    return When((_all(predicates),))


def coalesce(*exprs: Any) -> Expr:
    """Returns an expression with the first value of each row that is not null.

    `exprs`: expressions, names of columns, or values, one by one or in a list. Raises UserError without any.
    """
    return Expr("coalesce", _columns("coalesce", exprs))


def struct(**fields: Any) -> Expr:
    """Returns an expression that makes a struct of these fields: `struct(city="city", total=col("n") * 2)`.

    Strings are names of columns. Raises UserError without fields.
    """
    if not fields:
        raise UserError("struct needs at least one field", hint='struct(city="city")')
    return Expr("struct", tuple(as_column(each) for each in fields.values()), (("names", tuple(fields)),))


def concat_str(*exprs: Any, separator: str = "", ignore_nulls: bool = False) -> Expr:
    """Returns an expression that joins the texts of several expressions, with `separator` between them. Other values
    are converted to text, as by `cast("string")`.

    The result is null if one of the texts is null; with `ignore_nulls=True` null texts are left out. `exprs`:
    expressions, names of columns, or values. Raises UserError without any.
    """
    options = (
        ("separator", check("concat_str: separator", separator, TEXT)),
        ("ignore_nulls", check("concat_str: ignore_nulls", ignore_nulls, FLAG)),
    )
    return Expr("concat_str", _columns("concat_str", exprs), options)


def min_horizontal(*exprs: Any) -> Expr:
    """Returns an expression with the least of several values of each row. Nulls are ignored, and so is NaN if there
    is another value. The result is null if all values are null.

    `exprs`: expressions, names of columns, or values. Raises UserError without any.
    """
    return Expr("min_horizontal", _columns("min_horizontal", exprs))


def max_horizontal(*exprs: Any) -> Expr:
    """Returns an expression with the greatest of several values of each row, with nulls and NaN as in
    `min_horizontal`.
    """
    return Expr("max_horizontal", _columns("max_horizontal", exprs))


def sum_horizontal(*exprs: Any, ignore_nulls: bool = True) -> Expr:
    """Returns an expression with the sum of several values of each row. Nulls count as 0; with `ignore_nulls=False`
    the sum is null if one of the values is null.

    `exprs`: expressions, names of columns, or values. Raises UserError without any.
    """
    given = _columns("sum_horizontal", exprs)
    if check("sum_horizontal: ignore_nulls", ignore_nulls, FLAG):
        given = tuple(each.fill_null(0) for each in given)
    return functools.reduce(operator.add, given)


def all_horizontal(*exprs: Any) -> Expr:
    """Returns an expression that is true if all of these values are true in the row: the values joined by `&`."""
    return functools.reduce(operator.and_, _columns("all_horizontal", exprs))


def any_horizontal(*exprs: Any) -> Expr:
    """Returns an expression that is true if one of these values is true in the row: the values joined by `|`."""
    return functools.reduce(operator.or_, _columns("any_horizontal", exprs))


def _columns(where: str, exprs: tuple[Any, ...]) -> tuple[Expr, ...]:
    if len(exprs) == 1 and isinstance(exprs[0], list | tuple):
        exprs = tuple(exprs[0])
    if not exprs:
        raise UserError(f"{where} needs at least one expression", hint=f'{where}("a", col("b") + 1)')
    return tuple(as_column(each) for each in exprs)


def _all(predicates: tuple[Any, ...]) -> Expr:
    if not predicates:
        raise UserError("when needs a predicate", hint='when(col("amount") > 10).then(1).otherwise(0)')
    return functools.reduce(operator.and_, map(as_expr, predicates))


def instant(clock: Expr, zone: str) -> Expr:
    """Returns an expression for the instants (timestamps in UTC) of local times. `clock`: timestamps without a zone,
    as the clocks of `zone` show them. `zone`: the name of a time zone.

    A time that occurs twice, when the clocks are set back, is the earlier instant. A time that is skipped, when the
    clocks are set forward, is the instant that it would be if the clocks had not been changed, as in Java and Flink.
    """
    if zone == "UTC":
        return clock.dt.replace_time_zone("UTC")

    def there(time: Expr) -> Expr:
        zoned = time.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        return zoned.dt.convert_time_zone("UTC")

    day = lit(timedelta(days=1))
    return coalesce(there(clock), there(clock - day) + day)
