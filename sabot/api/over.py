"""Functions of a row's neighbours, as users write them: `keyed.over(before=lag("price"), place=row_number())`. Descriptions only.

The rows of a key are in the order of event time; rows of equal time are in the order in which they came. Aggregates over a frame are
those of `sabot.api.aggregates`.
"""

from dataclasses import dataclass
from typing import Any

from sabot.api.expr import Expr, as_column
from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.errors import UserError


@dataclass(frozen=True, eq=False)
class OverFunction:
    """One column that `over` adds. kind: the name of a function of this module. argument: only of lag and lead."""

    kind: str
    argument: Expr | None = None
    offset: int = 0
    default: Any = None

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it reads."""
        return frozenset() if self.argument is None else self.argument.columns

    def same(self, other: object) -> bool:
        """Whether `other` is the same function of the same expression."""
        return isinstance(other, OverFunction) and self.text() == other.text()

    def text(self) -> str:
        """The function as text, as plans show it."""
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
    """The value of `x` in the row `offset` rows before this one; `default` where there is none."""
    return OverFunction("lag", as_column(x), _offset("lag", offset), default)


def lead(x: str | Expr, offset: int = 1, default: Any = None) -> OverFunction:
    """The value of `x` in the row `offset` rows after this one; `default` where the input ends before it.

    Each row waits for so many rows of its key to come: event time does not go on beyond the oldest that waits.
    """
    return OverFunction("lead", as_column(x), _offset("lead", offset), default)


def row_number() -> OverFunction:
    """1 for the first row of a key, and so on. int64."""
    return OverFunction("row_number")


def rank() -> OverFunction:
    """The row number of the first row that has this row's event time. int64."""
    return OverFunction("rank")


def dense_rank() -> OverFunction:
    """The number of different event times up to that of this row. int64."""
    return OverFunction("dense_rank")


def _offset(where: str, offset: int) -> int:
    offset = python_value(offset)
    if not is_whole(offset, 1):
        raise UserError(f"{where}: offset={offset!r} is no number of rows", hint="a whole number, 1 or more")
    return offset
