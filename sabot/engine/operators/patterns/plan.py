"""Converts a pattern for the kernel (`PatternTable`): predicates become bool columns, and conditions on earlier rows
become programs over columns of operands and remembered values.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api import patterns
from sabot.api.expr import Expr, lit, when
from sabot.api.patterns import COMPARISONS, StepValue, split, step_values, value_of_row, with_step_values
from sabot.base.arrays import PER_SECOND
from sabot.engine.operators.expressions.casts import common_type
from sabot.engine.operators.expressions.compiled import Compiled, compile_expr, compile_predicate
from sabot.engine.operators.expressions.node import times_within
from sabot.engine.operators.patterns.automaton import automaton_of
from sabot.errors import UserError

_MOST = 63  # the most tests, and the most slots, of the kernel
_SERIAL = -1  # the column of operands that stands for the number of the row
_ANY = -1  # the variable that stands for all steps
_CAST = 'cast them: .cast("float64")'

Array: TypeAlias = pa.Array
Program: TypeAlias = list[tuple[str, str, Any]]
Slot: TypeAlias = tuple[int, str, str, int, int, int]


class PatternPlan:
    """A pattern in the form of the kernel.

    `visits`: the steps as often as a match may visit them, with copies of those in groups. `variables`: for each the
    number of its name. `tests`: the expressions of bool columns. `operands`: functions that return columns to be
    compared with earlier rows; `kinds` are the kernel's types of these columns. `steps`, `edges`: the visits, and the
    ways from one to the next. `slots`: the values of earlier rows that the kernel remembers. `skip_slot`: the slot of
    the row at which the next match begins, or -1. `checked`: the expressions of tests and operands that may raise
    DataError for a row.

    `kept`: for each name the rows that are kept. Raises UserError for predicates that do not fit the columns, and for
    more than 63 tests or slots.
    """

    def __init__(self, pattern: patterns.Pattern, skip: patterns.Skip, kept: Sequence[str], input: pa.Schema) -> None:
        self._input = input
        self._known: dict[str, int] = {}  # by text of a predicate, its index among the tests
        self._columns: dict[tuple[str, str], int] = {}  # by text and type of an operand, its index
        self._types: dict[int, tuple[Expr, pa.DataType]] = {}  # by id of an expression, which is kept, its type
        self.tests: list[Compiled] = []
        self.operands: list[Callable[[pa.RecordBatch], Array]] = []
        self.checked: list[Compiled] = []
        self.kinds: list[str] = []
        self.slots: list[Slot] = []
        automaton = automaton_of(pattern)
        self.visits = [each.name for each in automaton.steps]
        self._names = list(dict.fromkeys(each.name for each in pattern.steps))
        self.variables = [self._names.index(name) for name in self.visits]
        self.steps: list[Any] = []
        for each, after, variable in zip(automaton.steps, automaton.after, self.variables, strict=True):
            test = self._test(each.predicate, each.name)
            tail = [self._test(predicate, None) for predicate in after]
            shape = (each.least, each.most, each.between, each.is_greedy, each.is_reluctant, kept[variable], variable)
            self.steps.append((*shape, test, tail))
        self.edges: list[list[Any]] = [
            [
                (
                    edge.to,
                    edge.before,
                    [self._test(predicate, None) for predicate in edge.gap]
                    + [self._test(each.predicate, each.name) for each in edge.passed],
                )
                for edge in edges
            ]
            for edges in automaton.edges
        ]
        self.skip_slot = -1
        if isinstance(skip, tuple):
            end = skip[0].removeprefix("to_")
            self.skip_slot = self._slot((self._names.index(skip[1]), end, "signed", _SERIAL, -1, 0))
        if len(self.tests) > _MOST or len(self.slots) > _MOST:
            raise UserError(
                f"the pattern has {len(self.tests)} predicates and {len(self.slots)} values of earlier rows; the most is {_MOST} each",
                hint="compute some as columns before, or use a shorter pattern",
            )

    @property
    def remembered(self) -> list[list[Any]]:
        """The slots as checkpoints describe them."""
        return [
            [variable, what == "first" if what in ("first", "last") else what, kind]
            for variable, what, kind, *_ in self.slots
        ]

    def _test(self, predicate: Expr, own: str | None) -> tuple[int, list[Program]]:
        alone, conditions = split(predicate)
        column = -1
        if alone is not None:
            column = self._known.setdefault(alone.text(), len(self.tests))
            if column == len(self.tests):
                self.tests.append(compile_predicate(alone, self._input))
                self.checked += [each for each in self.tests[-1:] if each.can_fail]
        return column, [self._condition(each, own) for each in conditions]

    # -- programs ---------------------------------------------------------------------------------------------------------

    def _condition(self, given: Expr, own: str | None) -> Program:
        compile_predicate(self._over_row(given), self._input)  # raises UserError for types that do not fit
        program = self._value(given, pa.bool_())
        if given.kind in COMPARISONS and any(
            value.option("step") == own and value.kind in ("step.first", "step.last") for value in step_values(given)
        ):
            program = [("fresh", "signed", self._variable(own)), *program, ("|", "signed", None)]
        return program

    def _over_row(self, expr: Expr) -> Expr:
        """Returns an expression over a row of the same type."""
        return with_step_values(expr, {value.text(): _typed(value) for value in step_values(expr)})

    def _type(self, expr: Expr) -> pa.DataType:
        found = self._types.get(id(expr))
        if found is None or found[0] is not expr:
            found = self._types[id(expr)] = expr, compile_expr(self._over_row(expr), self._input).type
        return found[1]

    def _value(self, expr: Expr, type: pa.DataType | None = None) -> Program:
        """Returns a program that leaves the value of an expression, of this type or of its own."""
        own = self._type(expr)
        type = own if type is None or pa.types.is_null(type) else type
        kind = self._kind(expr, type)
        if not list(step_values(expr)):
            compiled = compile_expr(expr, self._input)
            if compiled.value is not None and kind != "bytes":
                (value,) = _canonical(compiled, type, kind)(_one_row(self._input)).to_pylist()
                return [("null", kind, None) if value is None else ("constant", kind, value)]
            return [("operand", kind, self._operand(expr.text(), compiled, type, kind))]
        row = value_of_row(expr)
        if row is not None:
            column = self._operand(row.expr.text(), compile_expr(row.expr, self._input), type, kind)
            stored: Program = [("slot", kind, self._row_slot(row, kind, column))]
            return self._or_without_row(expr, row, type, stored)
        if isinstance(expr, StepValue):
            return self._converted(expr, self._aggregate(expr), own, type)
        if expr.kind in _REWRITTEN:
            return self._value(_REWRITTEN[expr.kind](expr), type)
        return self._converted(expr, self._computed(expr, own), own, type)

    def _or_without_row(self, expr: Expr, row: patterns.RowValue, type: pa.DataType, stored: Program) -> Program:
        """Returns the program of a value that is stored when its row arrives (`stored`), for a match that may not have
        the row: a function such as max_horizontal may then have a value all the same.
        """
        blank = {each.text(): lit(None).cast(self._type(each)) for each in step_values(expr)}
        without = with_step_values(expr, blank)
        made = compile_expr(without, self._input).value
        if made is None or not made.is_valid:
            return stored
        variable, kind = self._variable(row.step), self._kind(expr, type)
        if not row.offset and variable != _ANY:
            return [("fresh", "signed", variable), *self._value(without, type), *stored, ("when", kind, None)]
        count = self._slot((variable, "count", "signed", _SERIAL, -1, 0))
        there: Program = [("slot", "signed", count), ("constant", "signed", row.offset), (">", "signed", None)]
        return [*there, *stored, *self._value(without, type), ("when", kind, None)]

    def _computed(self, expr: Expr, type: pa.DataType) -> Program:
        """Returns the program of an operation over several rows, whose result has this type."""
        kind, inputs = expr.kind, expr.inputs
        if kind in COMPARISONS:
            common = self._common(expr)
            return self._joined(inputs, [common, common], kind, self._kind(expr, common))
        if kind in ("is_null", "is_not_null"):
            ask: Program = [*self._value(inputs[0]), ("is_null", "signed", None)]
            return ask if kind == "is_null" else [*ask, ("not", "signed", None)]
        if kind in ("&", "|", "^", "not"):
            return self._joined(inputs, [pa.bool_()] * len(inputs), kind, "signed")
        if kind in ("fill_null", "coalesce"):
            return self._joined(inputs, [type] * len(inputs), "coalesce", self._kind(expr, type))
        if kind == "when":
            return self._cases(inputs, type)
        if kind in ("cast", "alias"):
            return self._converted(expr, self._value(inputs[0]), self._type(inputs[0]), type)
        return self._joined(inputs, self._terms(expr, type), kind, self._kind(expr, type))

    def _joined(self, inputs: Sequence[Expr], types: Sequence[pa.DataType], op: str, kind: str) -> Program:
        program = self._value(inputs[0], types[0])
        if len(inputs) == 1 and op != "coalesce":
            return [*program, (op, kind, None)]
        for each, type in zip(inputs[1:], types[1:], strict=True):
            program += [*self._value(each, type), (op, kind, None)]
        return program

    def _cases(self, inputs: Sequence[Expr], type: pa.DataType) -> Program:
        if len(inputs) == 1:
            return self._value(inputs[0], type)
        return [
            *self._value(inputs[0], pa.bool_()),
            *self._value(inputs[1], type),
            *self._cases(inputs[2:], type),
            ("when", self._kind(inputs[1], type), None),
        ]

    def _terms(self, expr: Expr, type: pa.DataType) -> list[pa.DataType]:
        """Returns the types in which arithmetic takes its inputs. Raises UserError if the kernel cannot compute it."""
        own = [self._type(each) for each in expr.inputs]
        if pa.types.is_integer(type) and not pa.types.is_uint64(type):
            return [pa.int64()] * len(own)
        if pa.types.is_floating(type):
            return [pa.float64()] * len(own)
        if expr.kind == "-" and pa.types.is_duration(type) and all(map(_is_point, own)):
            return [pa.timestamp(type.unit) if all(map(pa.types.is_date, own)) else self._common(expr)] * 2
        if expr.kind in ("+", "-") and pa.types.is_timestamp(type):
            return [type if pa.types.is_timestamp(each) else pa.duration(type.unit) for each in own]
        if expr.kind in ("+", "-", "neg") and pa.types.is_duration(type) and all(map(pa.types.is_duration, own)):
            return [type] * len(own)
        raise UserError(f"{expr.text()}: {type} of several rows cannot be computed", hint=_CAST)

    def _common(self, expr: Expr) -> pa.DataType:
        """Returns the type in which the two inputs can be compared. Raises UserError if there is none."""
        types = [self._type(each) for each in expr.inputs]
        common = common_type(*types)
        if common is None or _kind(common) is None:
            shown = " and ".join(str(each) for each in types)
            raise UserError(f"{expr.text()}: {shown} of an earlier row cannot be compared", hint=_CAST)
        return common

    def _converted(self, expr: Expr, program: Program, type: pa.DataType, wanted: pa.DataType) -> Program:
        if type == wanted or (pa.types.is_integer(type) and pa.types.is_integer(wanted)):
            return program
        is_whole = pa.types.is_integer(type) or pa.types.is_boolean(type)
        if pa.types.is_null(type) or (is_whole and pa.types.is_integer(wanted)):
            return program
        if is_whole and pa.types.is_floating(wanted):
            return [*program, ("float", "signed", None)]
        if pa.types.is_floating(type) and pa.types.is_floating(wanted):
            return program
        if any(is_it(type) and is_it(wanted) for is_it in (pa.types.is_duration, pa.types.is_timestamp)):
            steps = PER_SECOND[wanted.unit] // PER_SECOND[type.unit]  # a common type has the finer unit
            return program if steps == 1 else [*program, ("constant", "signed", steps), ("*", "signed", None)]
        raise UserError(f"{expr.text()} is {type}, and cannot become {wanted} in a predicate", hint=_CAST)

    def _kind(self, expr: Expr, type: pa.DataType) -> str:
        kind = _kind(type)
        if kind is None:
            raise UserError(f"{expr.text()}: {type} of an earlier row cannot be compared", hint=_CAST)
        return kind

    # -- slots ------------------------------------------------------------------------------------------------------------

    def _variable(self, name: str | None) -> int:
        return _ANY if name is None else self._names.index(name)

    def _slot(self, slot: Slot) -> int:
        if slot not in self.slots:
            self.slots.append(slot)
        return self.slots.index(slot)

    def _row_slot(self, row: patterns.RowValue, kind: str, column: int) -> int:
        variable = self._variable(row.step)
        if row.end == "first" and row.offset:
            count = self._slot((variable, "count", "signed", _SERIAL, -1, 0))
            return self._slot((variable, "later", kind, column, count, row.offset))
        slot = self._slot((variable, row.end, kind, column, -1, 0))
        for _ in range(row.offset):
            slot = self._slot((variable, "earlier", kind, column, slot, 0))
        return slot

    def _aggregate(self, value: StepValue) -> Program:
        what, variable = value.kind.removeprefix("step."), self._variable(value.option("step"))
        if what == "count":
            return [
                ("slot", "signed", self._slot((variable, "count", "signed", _SERIAL, -1, 0))),
                ("constant", "signed", 0),
                ("coalesce", "signed", None),
            ]
        type = pa.float64() if what == "mean" else self._type(value)
        kind, (argument,) = self._kind(value, type), value.inputs
        column = self._operand(argument.text(), compile_expr(argument, self._input), type, kind)
        if what != "mean":
            return [("slot", kind, self._slot((variable, what, kind, column, -1, 0)))]
        return [
            ("slot", kind, self._slot((variable, "sum", kind, column, -1, 0))),
            ("slot", "signed", self._slot((variable, "count", "signed", column, -1, 0))),
            ("float", "signed", None),
            ("/", "float", None),
        ]

    def _operand(self, text: str, side: Compiled, common: pa.DataType, kind: str) -> int:
        place = (text, str(common))
        if place not in self._columns:
            self._columns[place] = len(self.operands)
            self.operands.append(_canonical(side, common, kind))
            self.checked += [side] if side.can_fail else []
            self.kinds.append(kind)
        return self._columns[place]


def _typed(value: StepValue) -> Expr:
    """Returns an expression over one row that has the type of a value of a step."""
    what = value.kind.removeprefix("step.")
    if what == "count":
        return lit(0).cast("int64")
    if what == "mean":
        return value.inputs[0].cast("float64")
    return value.inputs[0] * lit(1).cast("int64") if what == "sum" else value.inputs[0]


def _between(expr: Expr) -> Expr:
    value, lower, upper = expr.inputs
    closed = expr.option("closed")
    above = Expr(">=" if closed in ("both", "left") else ">", (value, lower))
    return above & Expr("<=" if closed in ("both", "right") else "<", (value, upper))


def _is_in(expr: Expr) -> Expr:
    (value,) = expr.inputs
    found: Expr | None = None
    for each in expr.option("values"):
        if each is not None:
            same = value == lit(each)
            found = same if found is None else found | same
    return value != value if found is None else found


_REWRITTEN: dict[str, Callable[[Expr], Expr]] = {
    "between": _between,
    "is_in": _is_in,
    "abs": lambda expr: when(expr.inputs[0] < -expr.inputs[0]).then(-expr.inputs[0]).otherwise(expr.inputs[0]),
}


def _one_row(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema)


def _is_point(type: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(type) or pa.types.is_date(type))


_DIGITS = 18
"""The most digits of a decimal whose unscaled values are int64."""


def _unscaled(array: Array) -> Array:
    """Returns the unscaled values of decimals of at most 18 digits as int64."""
    if not len(array):
        return pa.array([], pa.int64())
    low = np.frombuffer(array.buffers()[1], np.int64)[2 * array.offset : 2 * (array.offset + len(array)) : 2]
    return pa.array(low, mask=array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None)


def _kind(type: pa.DataType) -> str | None:
    """Returns the way in which the kernel stores values of this type ("signed", "unsigned", "float" or "bytes"), or
    None if it cannot store them.
    """
    if pa.types.is_uint64(type):
        return "unsigned"
    if pa.types.is_integer(type) or pa.types.is_boolean(type) or pa.types.is_temporal(type):
        return None if pa.types.is_interval(type) else "signed"
    if pa.types.is_decimal128(type) and type.precision <= _DIGITS:
        return "signed"  # the unscaled value; two of one type compare as these
    if pa.types.is_floating(type):
        return "float"
    return "bytes" if pa.types.is_string(type) or pa.types.is_binary(type) else None


def _canonical(side: Compiled, common: pa.DataType, kind: str) -> Callable[[pa.RecordBatch], Array]:
    """Returns a function that gives the values of an operand in the kernel's type."""
    to = {"signed": pa.int64(), "unsigned": pa.uint64(), "float": pa.float64(), "bytes": common}[kind]
    narrow = pa.types.is_date32(common) or pa.types.is_time32(common)

    def values(data: pa.RecordBatch) -> Array:
        array = side(data)
        if array.type != common:
            is_time = pa.types.is_temporal(common) and pa.types.is_temporal(array.type)
            array = times_within(array, common) if is_time else pc.cast(array, common, safe=False)
        if pa.types.is_decimal(common):
            return _unscaled(array)
        if narrow:
            array = array.cast(pa.int32())
        return array if array.type == to else pc.cast(array, to, safe=False)

    return values
