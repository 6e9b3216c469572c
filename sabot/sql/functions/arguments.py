"""The arguments of a call of a function, as the makers of expressions ask for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.base.checks import is_whole
from sabot.sql.functions.conversions import as_text
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import SqlFault
from sabot.sql.syntax.tree import Argument, Call, Constant, Expression, Parameter, Word
from sabot.sql.types import sql_type
from sabot.sql.zones import on_the_clock

_T = TypeVar("_T")


class ArgumentOf(NamedTuple):
    """An argument of a call: its tree, and its bound form unless it is a word such as HOUR."""

    tree: Expression
    bound: TypedExpr | None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of one call. `zone`: the session's time zone."""

    call: Call
    items: list[ArgumentOf]
    zone: str

    def __len__(self) -> int:
        return len(self.items)

    def bound(self, i: int) -> TypedExpr:
        """Returns argument `i` with its type."""
        tree, bound = self.items[i]
        if bound is None:
            raise SqlFault(tree.span, "a value is needed here")
        return bound

    def expr(self, i: int) -> Expr:
        """Returns argument `i`."""
        return self.bound(i).expr

    def plain_text(self, i: int, hint: str = "") -> Expr:
        """Returns argument `i`, which must be a text; no other value is made one."""
        expr, type = self.bound(i)
        if not pa.types.is_string(type):
            message = f"{self.call.name.text.upper()} takes a text, and this is {sql_type(type)}"
            raise SqlFault(self.items[i].tree.span, message, hint)
        return expr

    def whole_number(self, i: int) -> Expr:
        """Returns argument `i`, which must be an integer."""
        expr, type = self.bound(i)
        if not (pa.types.is_integer(type) or pa.types.is_null(type)):
            message = f"{self.call.name.text.upper()} takes a whole number here, and this is {sql_type(type)}"
            raise SqlFault(self.items[i].tree.span, message, "CAST(x AS INT)")
        return expr

    def clock(self, i: int) -> Expr:
        """Returns argument `i`; a TIMESTAMP_LTZ as the time on the clock of the session's zone."""
        return on_the_clock(self.bound(i), self.zone).expr

    def text(self, i: int) -> Expr:
        """Returns argument `i` as a text."""
        return as_text(self.bound(i), self.zone)

    @property
    def exprs(self) -> list[Expr]:
        """All arguments."""
        return [self.expr(i) for i in range(len(self))]

    def constant(self, i: int, kind: str, what: str) -> str:
        """Returns argument `i`, which must be a constant of this kind, as it was written, or a parameter with such a value."""
        tree, bound = self.items[i]
        if isinstance(tree, Parameter) and bound is not None:
            value = bound.expr.option("value")
            if isinstance(value, str) if kind == "string" else is_whole(value, 0):
                return str(value)
        if not (isinstance(tree, Constant) and tree.kind == kind):
            hint = 'a column there needs a function of Python: app.register("f", function), or --functions module'
            raise SqlFault(
                tree.span,
                f"{what} of {self.call.name.text} is a constant {kind}",
                "" if isinstance(tree, Constant) else hint,
            )
        return tree.text

    def whole(self, i: int, what: str) -> int:
        """Returns argument `i`, which must be a constant whole number, with a sign or without."""
        expr = self.expr(i)
        value = expr.option("value") if expr.kind == "lit" else None
        return value if isinstance(value, int) else int(self.constant(i, "integer", what))

    def word(self, i: int) -> str:
        """Returns argument `i`, which must be a word."""
        tree = self.items[i].tree
        if not isinstance(tree, Word):
            raise SqlFault(tree.span, "a unit is needed here", "HOUR, DAY, …")
        return tree.text


Make = Callable[[CallArguments], Expr]


@dataclass(frozen=True, slots=True)
class Function:
    """A function: the least and the largest number of its arguments, or None without a limit, their form in a text such as
    "text, start[, length]", and the maker of its expression.
    """

    least: int
    most: int | None
    form: str
    make: Make


def is_word(tree: Expression) -> bool:
    """Returns True for an argument that is a word of the language and no value, such as the ERROR of ERROR ON EMPTY."""
    return isinstance(value_of(tree), Word)


def value_of(tree: Expression) -> Expression:
    """Returns the value of an argument that has a name, such as DEFAULT 0 ON EMPTY; any other argument unchanged."""
    return tree.value if isinstance(tree, Argument) else tree


def balanced(items: Sequence[_T], join: Callable[[_T, _T], _T]) -> _T:
    """Returns the items joined in pairs, and these again, so that a thousand of them are ten levels deep: as a chain, they
    would be deeper than Python's stack.
    """
    if len(items) == 1:
        return items[0]
    half = len(items) // 2
    return join(balanced(items[:half], join), balanced(items[half:], join))
