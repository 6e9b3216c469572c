"""Converts a pattern for the kernel (`PatternTable`): predicates become bool columns, and comparisons with earlier
rows become operands.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.api import patterns
from sabot.api.expr import Expr
from sabot.api.patterns import split
from sabot.errors import UserError
from sabot.operators.expressions.casts import common_type
from sabot.operators.expressions.compiled import Compiled, compile_expr, compile_predicate

_MOST = 63  # the most tests, and the most slots, of the kernel

Array: TypeAlias = pa.Array


class PatternPlan:
    """A pattern in the form of the kernel.

    `tests`: the expressions of bool columns. `operands`: functions that return columns to be compared with earlier
    rows; `kinds` are the kernel's types of these columns. `steps`, `gaps`: for each step, and for each gap between
    steps, the numbers of its tests and its comparisons. `slots`: the values of earlier rows that the kernel
    remembers. `can_fail`: True if a value may make a test or an operand raise DataError.

    Raises UserError for predicates that do not fit the columns, and for more than 63 tests or slots.
    """

    def __init__(self, pattern: patterns.Pattern, kept: Sequence[str], input: pa.Schema) -> None:
        self._input = input
        self._known: dict[str, int] = {}  # by text of a predicate, its index among the tests
        self._columns: dict[tuple[str, str], int] = {}  # by text and type of an operand, its index
        self._slots: dict[tuple[int, bool, int], int] = {}
        self.tests: list[Compiled] = []
        self.operands: list[Callable[[pa.RecordBatch], Array]] = []
        self.can_fail = False
        self.kinds: list[str] = []
        self.slots: list[tuple[int, bool, str, int]] = []
        self._names = [each.name for each in pattern.steps]
        self.steps: list[Any] = []
        for number, each in enumerate(pattern.steps):
            test = self._test(each.predicate, number)
            rows = (each.least, each.most, each.before, each.between)
            self.steps.append((*rows, each.is_optional, each.is_greedy, kept[number], test))
        gaps = [*(each.forbidden for each in pattern.steps), pattern.ending]
        self.gaps = [[self._test(predicate, -1) for predicate in gap] for gap in gaps]
        if len(self.tests) > _MOST or len(self.slots) > _MOST:
            raise UserError(
                f"the pattern has {len(self.tests)} predicates and {len(self.slots)} values of earlier rows; the most is {_MOST} each",
                hint="compute some as columns before, or use a shorter pattern",
            )

    def _test(self, predicate: Expr, own: int) -> tuple[int, list[Any]]:
        alone, comparisons = split(predicate)
        column = -1
        if alone is not None:
            column = self._known.setdefault(alone.text(), len(self.tests))
            if column == len(self.tests):
                self.tests.append(compile_predicate(alone, self._input))
                self.can_fail |= self.tests[-1].can_fail
        return column, [self._condition(each, own) for each in comparisons]

    def _condition(self, given: patterns.Comparison, own: int) -> Any:
        # raises UserError for types that do not fit
        compile_predicate(Expr(given.op, (given.left, given.right)), self._input)
        sides = [compile_expr(each, self._input) for each in (given.left, given.right)]
        common = common_type(sides[0].type, sides[1].type)
        kind = None if common is None else _kind(common)
        if common is None or kind is None:
            types = " and ".join(str(each.type) for each in sides)
            raise UserError(
                f"{given.left.text()} {given.op} {given.right.text()}: {types} of an earlier row cannot be compared",
                hint='cast them: .cast("float64")',
            )
        ends = []
        for expr, side, row in zip((given.left, given.right), sides, (given.left_of, given.right_of), strict=True):
            column = self._operand(expr.text(), side, common, kind)
            if row is None:
                ends.append((False, column))
                continue
            place = (self._names.index(row[0]), row[1] == "first", column)
            slot = self._slots.setdefault(place, len(self.slots))
            if slot == len(self.slots):
                self.slots.append((*place[:2], kind, column))
            ends.append((True, slot))
        itself = own >= 0 and self._names[own] in [row[0] for row in (given.left_of, given.right_of) if row is not None]
        return given.op, ends[0], ends[1], itself

    def _operand(self, text: str, side: Compiled, common: pa.DataType, kind: str) -> int:
        place = (text, str(common))
        if place not in self._columns:
            self._columns[place] = len(self.operands)
            self.operands.append(_canonical(side, common, kind))
            self.can_fail |= side.can_fail
            self.kinds.append(kind)
        return self._columns[place]


def _kind(type: pa.DataType) -> str | None:
    """Returns the way in which the kernel stores values of this type ("signed", "unsigned", "float" or "bytes"), or
    None if it cannot store them.
    """
    if pa.types.is_uint64(type):
        return "unsigned"
    if pa.types.is_integer(type) or pa.types.is_boolean(type) or pa.types.is_temporal(type):
        return None if pa.types.is_interval(type) else "signed"
    if pa.types.is_floating(type):
        return "float"
    return "bytes" if pa.types.is_string(type) or pa.types.is_binary(type) else None


def _canonical(side: Compiled, common: pa.DataType, kind: str) -> Callable[[pa.RecordBatch], Array]:
    """Returns a function that gives the values of an operand in the kernel's type."""
    to = {"signed": pa.int64(), "unsigned": pa.uint64(), "float": pa.float64(), "bytes": common}[kind]
    narrow = pa.types.is_date32(common) or pa.types.is_time32(common)

    def values(data: pa.RecordBatch) -> Array:
        array = side(data)
        array = array if array.type == common else array.cast(common)
        if narrow:
            array = array.cast(pa.int32())
        return array if array.type == to else array.cast(to)

    return values
