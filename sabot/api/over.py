"""Functions over the neighbours of a row, as users write them: `keyed.over(before=lag("price"), place=row_number())`.
They are descriptions; an operator computes the values.

The rows of a key are in the order of event time; rows of equal time are in order of arrival. Aggregates over a frame
are those of `sabot.api.aggregates`.
"""

from typing import Any

from sabot.api.expr import Expr, as_column
from sabot.base.arrays import python_value
from sabot.base.checks import is_whole
from sabot.base.dataclass import dataclass
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class OverFunction:
    """A function that computes one column of `KeyedStream.over`.

    - `kind`: the name of a function of this module, such as "lag". `argument`: the expression of `lag` and `lead`;
      None for the others.
    - `offset`, `default`: the arguments of `lag` and `lead`.
    """

    kind: str
    argument: Expr | None = None
    offset: int = 0
    default: Any = None

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the function reads."""
        return frozenset() if self.argument is None else self.argument.columns

    def same(self, other: object) -> bool:
        """Returns True if `other` is an equal function: the same kind, of an equal expression."""
        return isinstance(other, OverFunction) and self.text() == other.text()

    def text(self) -> str:
        """Returns the function as a text, as plans show it: "lag(price)"."""
        if self.argument is None:
            return f"{self.kind}()"
        words = [self.argument.text()]
        if self.offset != 1:
            words.append(f"offset={self.offset}")
        if self.default is not None:
            words.append(f"default={self.default!r}")
        return f"{self.kind}({', '.join(words)})"

    def __repr__(self) -> str:
        return self.text()


def lag(x: str | Expr, offset: int = 1, default: Any = None) -> OverFunction:
    """Returns the value of `x` in the row that is `offset` rows before the current row, in the rows of its key;
    `default` if there is no such row.

    Raises UserError if `offset` is not a whole number, 1 or more.
    """
    return OverFunction("lag", as_column(x), _offset("lag", offset), default)


def lead(x: str | Expr, offset: int = 1, default: Any = None) -> OverFunction:
    """Returns the value of `x` in the row that is `offset` rows after the current row, in the rows of its key;
    `default` if the input ends before that row.

    A row is emitted only when the `offset` rows after it have arrived. Until then, later steps see no later event
    time than that of the row. Raises UserError if `offset` is not a whole number, 1 or more.
    """
    return OverFunction("lead", as_column(x), _offset("lead", offset), default)


def row_number() -> OverFunction:
    """Returns the number of the row within its key, from 1, as int64."""
    return OverFunction("row_number")


def rank() -> OverFunction:
    """Returns the row number, within its key, of the first row that has the same event time as the current row, as
    int64. So rows of equal time have the same rank.
    """
    return OverFunction("rank")


def dense_rank() -> OverFunction:
    """Returns how many different event times the rows of the key have up to the current row, as int64."""
    return OverFunction("dense_rank")


def _offset(where: str, offset: int) -> int:
    offset = python_value(offset)
    if not is_whole(offset, 1):
        raise UserError(f"{where}: offset={offset!r} is not a number of rows", hint="a whole number, 1 or more")
    return offset
