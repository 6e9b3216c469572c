"""Expressions at work: an Expr over a schema becomes a tree of closures, made once; a batch then costs a few calls of pyarrow.compute.

Types are found while the tree is made: each step runs once over no rows, so what does not fit is a UserError before any row comes.
Null semantics, NaN and rounding are those of polars (`tests/unit/test_expressions.py` compares them).
"""

import datetime
import decimal
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.compare import LITERALS, LiteralSet, contains, equal_literal, starts_with
from sabot.api.expr import Expr
from sabot.api.words import no_column
from sabot.arrays import broadcast, epoch, floats, integer_array, integers, is_ascii, is_time, shown, where
from sabot.errors import DataError, InternalError, UserError
from sabot.operators.base import TIME_COLUMN
from sabot.operators.expressions import times
from sabot.operators.expressions.casts import caster, common_type, integer_range, is_number, least_integer

__all__ = ["Compiled", "compile_expr", "compile_predicate"]

Function = Callable[..., Any]

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_ARITHMETIC = {"+": pc.add, "-": pc.subtract, "*": pc.multiply, "/": pc.divide}
_LITERAL_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
_FALSE = pa.scalar(False, pa.bool_())  # without its type pyarrow looks for pandas, each time
_BITS = {"&": pc.bit_wise_and, "|": pc.bit_wise_or, "^": pc.bit_wise_xor}
_LOGIC = {"&": pc.and_kleene, "|": pc.or_kleene, "^": pc.xor}
_PARTS = {
    "dt.year": pc.year,
    "dt.month": pc.month,
    "dt.day": pc.day,
    "dt.hour": pc.hour,
    "dt.minute": pc.minute,
    "dt.second": pc.second,
    "dt.day_of_week": functools.partial(pc.day_of_week, count_from_zero=False, week_start=1),
}
_STRING_STEPS = {
    "lower",
    "upper",
    "strip",
    "split",
    "contains",
    "startswith",
    "endswith",
    "regexp_extract",
    "length",
    "slice",
}
_STRING_STEPS |= {"replace", "replace_all"}
_CLOCK_PARTS = {"dt.hour", "dt.minute", "dt.second"}
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_SHOWN = 200  # characters of a value in a message
_DOES_NOT_FIT = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowKeyError)


@dataclass(frozen=True, slots=True)
class Compiled:
    """An expression over one schema. Called with a batch of it, gives an array of `type`, a value a row. Threads may share it.

    can_fail: whether a value makes it raise a DataError by a rule of its own, as of a strict cast: it is to see only rows that count.
    value: of an expression without columns, else None.
    """

    type: pa.DataType
    run: Callable[[pa.RecordBatch], Any]
    can_fail: bool = False
    value: Any = None
    plain: bool = False  # a literal without a type: it takes that of what it is combined with

    def __call__(self, data: pa.RecordBatch) -> pa.Array:
        return broadcast(self.run(data), data.num_rows)


def compile_expr(expr: Expr, schema: pa.Schema) -> Compiled:
    """The expression made ready for batches of `schema`. UserError for a column that is not there, or types that do not fit."""
    if expr.kind == "col":
        return _column(expr, schema)
    if expr.kind == "lit":
        return _literal(expr)
    step = _STEPS.get(expr.kind)
    if expr.kind.startswith("step."):
        raise UserError(
            f"{expr!r} is a value of a pattern", hint="it stands in the predicates and measures of pattern(…)"
        )
    if step is None:
        raise InternalError(f"no step for expressions of the kind {expr.kind!r}")
    return step(expr, [compile_expr(each, schema) for each in expr.inputs])


def compile_predicate(expr: Expr, schema: pa.Schema) -> Compiled:
    """As `compile_expr`; UserError for what is not true or false."""
    made = compile_expr(expr, schema)
    if pa.types.is_null(made.type):
        return _to_type(made, pa.bool_())
    if not pa.types.is_boolean(made.type):
        raise UserError(f"{expr.text()} is {made.type}, not true or false", hint='compare it: col("amount") > 10')
    return made


# -- leaves ---------------------------------------------------------------------------------------------------------------


def _column(expr: Expr, schema: pa.Schema) -> Compiled:
    name = expr.option("name")
    places = schema.get_all_field_indices(name)
    if len(places) == 1:
        (place,) = places
        return Compiled(schema.field(place).type, lambda data: data.column(place))
    if places:
        raise UserError(f"there are {len(places)} columns {name!r}", hint="give all but one another name")
    known = [each for each in schema.names if each != TIME_COLUMN]
    raise no_column(name, known)


def _literal(expr: Expr) -> Compiled:
    value, type = expr.option("value"), expr.option("type")
    if isinstance(value, pa.Scalar):
        return _constant(value if type is None else value.cast(type))
    if type is not None:
        return _constant(pa.scalar(value, type))
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    scalar = pa.scalar(value, pa.uint64() if _is_int(value) and value >= 2**63 else _LITERAL_TYPES.get(value.__class__))
    adapts = value is None or (
        isinstance(value, int | float | datetime.date | datetime.timedelta) and not isinstance(value, bool)
    )
    return replace(_constant(scalar), plain=adapts)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _constant(value: pa.Scalar, can_fail: bool = False) -> Compiled:
    return Compiled(value.type, lambda data: value, can_fail, value)


# -- how steps are made ---------------------------------------------------------------------------------------------------


def _apply(expr: Expr, function: Function, *nodes: Compiled, can_fail: bool = False) -> Compiled:
    """The step `function` over what the nodes give: arrays, or scalars of constants. Without columns it runs here and now."""
    fails = can_fail or any(node.can_fail for node in nodes)
    try:
        if all(node.value is not None for node in nodes):
            return _constant(broadcast(function(*(broadcast(node.value, 1) for node in nodes)), 1)[0], fails)
        sample = function(*(pa.array([], node.type) if node.value is None else node.value for node in nodes))
    except _DOES_NOT_FIT as error:
        raise _misfit(expr, nodes, error) from error
    runs = [node.run for node in nodes]

    def run(data: pa.RecordBatch) -> Any:
        values = [each(data) for each in runs]
        try:
            return function(*values)
        except pa.ArrowInvalid as error:
            raise _refused(expr, function, values, error) from error

    return Compiled(sample.type, run, fails)


def _refused(expr: Expr, function: Function, values: list[Any], error: pa.ArrowInvalid) -> DataError:
    """What Arrow says of a value that a step cannot take, with the first such value."""
    rows = max(len(each) for each in values if isinstance(each, pa.Array))
    first, given = 0, ""
    while rows:
        size = (rows + 1) // 2  # of the former half; of one row itself
        reason = _reason(function, values, first, size)
        if reason is None:
            first, size = first + size, rows - size
            reason = _reason(function, values, first, size)
        if reason is None:  # only together they cannot be
            break
        error, rows = reason, size
        if size == 1:
            given = " of " + " and ".join(_cut(shown(each[first])) for each in values if isinstance(each, pa.Array))
            break
    return DataError(
        f"{expr.text()} cannot be{given}: {error}", hint="leave such rows out before, or cast to a type that has room"
    )


def _reason(function: Function, values: list[Any], first: int, rows: int) -> pa.ArrowInvalid | None:
    """What the step says of these rows."""
    try:
        function(*(each.slice(first, rows) if isinstance(each, pa.Array) else each for each in values))
    except pa.ArrowInvalid as error:
        return error
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _misfit(expr: Expr, nodes: Sequence[Compiled], error: Exception | None = None) -> UserError:
    found = " and ".join(str(node.type) for node in nodes)
    texts = any(pa.types.is_string(node.type) for node in nodes)
    nested = any(pa.types.is_nested(node.type) for node in nodes)
    hint = "" if nested else f'cast one of them: .cast("{"string" if texts else "float64"}")'
    reason = f": {error}" if error is not None and "no kernel" not in str(error) else ""
    return UserError(f"{expr.text()} cannot be: {expr.kind} of {found}{reason}", hint=hint)


def _to_type(node: Compiled, type: pa.DataType) -> Compiled:
    """The same values as another type that holds them."""
    if node.type == type:
        return node
    if node.value is not None:
        return _constant(_held(node.value, type), node.can_fail)
    run = node.run
    return Compiled(type, lambda data: pc.cast(run(data), type, safe=False), node.can_fail)


def _held(value: pa.Scalar, type: pa.DataType) -> pa.Scalar:
    return pc.cast(broadcast(value, 1), type, safe=False)[0]


def _adapted(node: Compiled, type: pa.DataType) -> Compiled | None:
    """A plain literal as this type; None where the type cannot hold it as it is."""
    value = node.value.as_py()
    if value is None:
        return _constant(pa.scalar(None, type))
    integer, floating = _is_int(value), isinstance(value, float)
    if integer and pa.types.is_integer(type):
        low, high = integer_range(type)
        return _constant(pa.scalar(value, type)) if low <= value <= high else None
    if (integer or floating) and pa.types.is_floating(type):
        return _constant(_held(node.value, type))
    if isinstance(value, datetime.date) and pa.types.is_timestamp(type):
        made = _held(node.value, type)
        return _constant(made) if _held(made, node.type) == node.value else None
    if isinstance(value, datetime.timedelta) and pa.types.is_duration(type):
        made = _held(node.value, type)
        return _constant(made) if _held(made, node.type) == node.value else None
    return None


def _unified(expr: Expr, nodes: Sequence[Compiled]) -> list[Compiled]:
    """All of one type: the one that the columns meet in, which plain literals take on where it holds them."""
    type: pa.DataType | None = pa.null()
    for node in nodes:
        if not node.plain and type is not None:
            type = common_type(type, node.type)
    adapts = type is not None and not pa.types.is_null(type)
    for node in nodes:
        if node.plain and type is not None and not (adapts and _adapted(node, type) is not None):
            value = node.value.as_py()
            narrow = _is_int(value) and pa.types.is_integer(type)
            type = common_type(type, least_integer(value, type) if narrow else node.type)
    if type is None:
        raise _misfit(expr, nodes)
    return [(_adapted(node, type) if node.plain else None) or _to_type(node, type) for node in nodes]


def _numbers(nodes: Sequence[Compiled]) -> bool:
    return all(is_number(node.type) or pa.types.is_null(node.type) for node in nodes)


# -- operators ------------------------------------------------------------------------------------------------------------


def _arithmetic(expr: Expr, nodes: list[Compiled]) -> Compiled:
    kind = expr.kind
    texts = [pa.types.is_string(node.type) for node in nodes]
    if (
        kind == "+"
        and any(texts)
        and all(is_text or pa.types.is_null(n.type) for is_text, n in zip(texts, nodes, strict=True))
    ):
        return _apply(expr, lambda a, b: pc.binary_join_element_wise(a, b, ""), *_unified(expr, nodes))
    if not _numbers(nodes):
        return _temporal(expr, nodes)
    if kind == "**":
        return _power(expr, *nodes)
    nodes = _counted(nodes)
    if (
        kind == "*"
        and any(pa.types.is_decimal(n.type) for n in nodes)
        and not any(pa.types.is_floating(n.type) for n in nodes)
    ):
        return _apply(expr, pc.multiply, *[_decimal(node) for node in nodes])  # a product has the digits of both
    nodes = _unified(expr, [_fraction(node, nodes) for node in nodes] if kind == "/" else nodes)
    type = nodes[0].type
    if kind in _ARITHMETIC:
        return _apply(expr, _ARITHMETIC[kind], *nodes)
    if pa.types.is_integer(type):
        divide = np.floor_divide if kind == "//" else np.remainder
        return _apply(expr, functools.partial(_divided, divide, type), *nodes)
    if not pa.types.is_floating(type):
        raise _misfit(expr, nodes)
    return _apply(expr, _floor_divided if kind == "//" else _remainder, *nodes)


def _counted(nodes: list[Compiled]) -> list[Compiled]:
    """bool as a number: that of its neighbour, else int64. A null column counts as int64."""
    has_number = any(not node.plain and is_number(node.type) and not pa.types.is_boolean(node.type) for node in nodes)
    return [
        _to_type(node, pa.int64())
        if (pa.types.is_boolean(node.type) and not has_number) or (pa.types.is_null(node.type) and not node.plain)
        else node
        for node in nodes
    ]


def _decimal(node: Compiled) -> Compiled:
    if pa.types.is_decimal(node.type):
        return node
    literal = node.plain and node.value.is_valid
    return (
        _constant(pa.scalar(decimal.Decimal(node.value.as_py()))) if literal else _to_type(node, pa.decimal128(20, 0))
    )


def _fraction(node: Compiled, nodes: list[Compiled]) -> Compiled:
    """A number as `/` takes it: floats stay, a narrow integer beside a float32 becomes one, all else float64."""
    if pa.types.is_floating(node.type):
        return node
    beside_float32 = any(not each.plain and each.type == pa.float32() for each in nodes)
    narrow = node.plain or (pa.types.is_integer(node.type) and node.type.bit_width <= 16)
    return _to_type(node, pa.float32() if beside_float32 and narrow else pa.float64())


def _divided(divide: Any, type: pa.DataType, a: Any, b: Any) -> pa.Array:
    """Integers, rounded down; by 0: null."""
    nulls = None
    if isinstance(b, pa.Scalar):
        if not b.is_valid or b.as_py() == 0:
            return pa.nulls(len(a), type)
        divisor: Any = np.array(b.as_py(), dtype=str(type))
    else:
        divisor = integers(b)
        zero = divisor == 0
        if zero.any():
            nulls = zero
    number: Any = integers(a) if isinstance(a, pa.Array) else np.array(a.as_py() or 0, dtype=str(type))
    with np.errstate(divide="ignore", over="ignore"):
        return integer_array(divide(number, divisor), type, a, b, nulls=nulls)


def _floor_divided(a: Any, b: Any) -> Any:
    return pc.floor(pc.divide(a, b))


def _remainder(a: Any, b: Any) -> Any:
    return pc.subtract(a, pc.multiply(pc.floor(pc.divide(a, b)), b))


def _power(expr: Expr, base: Compiled, exponent: Compiled) -> Compiled:
    if any(pa.types.is_boolean(node.type) for node in (base, exponent)):
        raise _misfit(expr, (base, exponent))
    if pa.types.is_decimal(base.type):
        base = _to_type(base, pa.float64())
    if pa.types.is_null(base.type) or pa.types.is_null(exponent.type):
        base, exponent = (
            _to_type(node, pa.int64()) if pa.types.is_null(node.type) else node for node in (base, exponent)
        )
    if pa.types.is_integer(base.type) and pa.types.is_integer(exponent.type):
        if exponent.value is not None and exponent.value.is_valid and exponent.value.as_py() < 0:
            raise UserError(f"{expr.text()} is no integer", hint='raise a float: .cast("float64") ** …')
        wide = pa.uint64() if pa.types.is_unsigned_integer(base.type) else pa.int64()
        type = base.type

        def integer_power(a: Any, b: Any) -> Any:
            """Wraps; null where the exponent is negative."""
            if isinstance(b, pa.Array) and pa.types.is_signed_integer(b.type):
                b = where(pc.greater_equal(b, pa.scalar(0, b.type)), b)
            made = pc.power(pc.cast(a, wide, safe=False), pc.cast(b, wide, safe=False))
            return pc.cast(made, type, safe=False)

        return _apply(expr, integer_power, base, exponent)
    type = base.type if pa.types.is_floating(base.type) and not base.plain else exponent.type
    if not pa.types.is_floating(type) or (exponent.plain and type != base.type):
        type = pa.float64()
    return _apply(expr, pc.power, _to_type(base, type), _to_type(exponent, type))


def _temporal(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Times and durations: pyarrow knows which go together."""
    if expr.kind not in _ARITHMETIC:
        raise _misfit(expr, nodes)
    left, right = nodes
    for one, other in ((left, right), (right, left)):
        if one.plain and pa.types.is_timestamp(other.type) and pa.types.is_duration(one.type):
            fitting = _adapted(one, pa.duration(other.type.unit)) or one
            left, right = (fitting, right) if one is left else (left, fitting)
    if pa.types.is_temporal(left.type) and common_type(left.type, right.type) is not None:
        left, right = _unified(expr, [left, right])
    if expr.kind == "/" and pa.types.is_duration(left.type) and pa.types.is_integer(right.type):
        return _apply(expr, _duration_divided, left, right)
    return _apply(expr, _ARITHMETIC[expr.kind], left, right)


def _duration_divided(a: Any, b: Any) -> Any:
    """By 0: null, as integers."""
    if isinstance(b, pa.Scalar):
        b = b if b.as_py() != 0 else pa.scalar(None, b.type)
    elif not np.all(integers(b)):
        b = where(pc.not_equal(b, pa.scalar(0, b.type)), b)
    return pc.divide(a, b)


def _logic(expr: Expr, nodes: list[Compiled]) -> Compiled:
    types = [node.type for node in nodes]
    if all(pa.types.is_boolean(type) or pa.types.is_null(type) for type in types):
        return _apply(expr, _LOGIC[expr.kind], *[_to_type(node, pa.bool_()) for node in nodes])
    if all(pa.types.is_integer(type) or pa.types.is_null(type) for type in types):
        return _apply(expr, _BITS[expr.kind], *_unified(expr, nodes))
    raise UserError(
        f"{expr.text()} cannot be: {expr.kind} of {types[0]} and {types[1]}",
        hint='both sides true or false, or integers; & binds tighter than > : (col("a") > 1) & (col("b") < 2)',
    )


def _not(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_integer(node.type):
        return _apply(expr, pc.bit_wise_not, node)
    return _apply(expr, pc.invert, _to_type(node, pa.bool_()) if pa.types.is_null(node.type) else node)


def _comparison(expr: Expr, nodes: list[Compiled]) -> Compiled:
    pair = _comparable(expr, nodes)
    return _apply(expr, _compare(expr.kind, *pair), *pair)


def _comparable(expr: Expr, nodes: Sequence[Compiled]) -> list[Compiled]:
    kinds = {node.type for node in nodes}
    if pa.uint64() in kinds and all(pa.types.is_integer(kind) for kind in kinds) and _adapts(nodes) is None:
        return [_to_type(node, pa.decimal128(20, 0)) for node in nodes]
    made = _unified(expr, nodes)
    return [_to_type(node, pa.int64()) for node in made] if pa.types.is_null(made[0].type) else made


def _adapts(nodes: Sequence[Compiled]) -> pa.DataType | None:
    """The type that integers of these nodes can be compared in; None where some 64 bits are signed and others not."""
    type: pa.DataType | None = pa.null()
    for node in nodes:
        if not node.plain and type is not None:
            type = common_type(type, node.type)
    if type is None or all(not node.plain or _adapted(node, type) is not None for node in nodes):
        return type
    return None


def _compare(kind: str, a: Compiled, b: Compiled) -> Function:
    """Comparison where NaN equals NaN and is greater than all else. What holds without NaN is asked in a way that NaN answers right."""
    plain: Function = _COMPARE[kind]
    if kind in ("==", "!=") and _is_bytes(a.type) and (a.value is None) != (b.value is None):
        return _literal_equality(kind, a, b)
    if not pa.types.is_floating(a.type) or _never_nan(a, b, kind in ("==", "!=")):
        return plain
    if _no_nan(b):
        return _inverted({">": pc.less_equal, ">=": pc.less}[kind]) if kind in (">", ">=") else plain
    if _no_nan(a):
        return _inverted({"<": pc.greater_equal, "<=": pc.greater}[kind]) if kind in ("<", "<=") else plain
    aware: dict[str, Function] = {
        "==": _equal,
        "!=": lambda x, y: pc.invert(_equal(x, y)),
        ">": _greater,
        ">=": _at_least,
        "<": lambda x, y: _greater(y, x),
        "<=": lambda x, y: _at_least(y, x),
    }
    careful = aware[kind]
    return lambda x, y: plain(x, y) if _without_nan(x) and _without_nan(y) else careful(x, y)


def _without_nan(values: Any) -> bool:
    """Known to be so: what stands in the place of a null counts too."""
    return isinstance(values, pa.Array) and not np.isnan(floats(values)).any()


def _is_bytes(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_binary(type))


def _literal_equality(kind: str, a: Compiled, b: Compiled) -> Function:
    """Of strings and a constant."""
    constant = a.value if b.value is None else b.value
    if not constant.is_valid:
        unknown: Function = _COMPARE[kind]
        return unknown
    wanted = constant.as_buffer().to_pybytes()

    def same(x: Any, y: Any) -> pa.Array:
        return equal_literal(y if isinstance(x, pa.Scalar) else x, wanted)

    return same if kind == "==" else lambda x, y: pc.invert(same(x, y))


def _inverted(function: Function) -> Function:
    return lambda x, y: pc.invert(function(x, y))


def _never_nan(a: Compiled, b: Compiled, equality: bool) -> bool:
    return (equality and (_no_nan(a) or _no_nan(b))) or (_no_nan(a) and _no_nan(b))


def _no_nan(node: Compiled) -> bool:
    return node.value is not None and not (node.value.is_valid and math.isnan(node.value.as_py()))


def _equal(x: Any, y: Any) -> Any:
    return pc.or_(pc.equal(x, y), pc.and_(pc.is_nan(x), pc.is_nan(y)))


def _greater(x: Any, y: Any) -> Any:
    return pc.and_(pc.invert(pc.less_equal(x, y)), pc.invert(pc.is_nan(y)))


def _at_least(x: Any, y: Any) -> Any:
    return pc.or_(pc.greater_equal(x, y), pc.is_nan(x))


def _between(expr: Expr, nodes: list[Compiled]) -> Compiled:
    value, lower, upper = _comparable(expr, nodes)
    closed = expr.option("closed")
    above = _compare(">=" if closed in ("both", "left") else ">", value, lower)
    below = _compare("<=" if closed in ("both", "right") else "<", value, upper)
    return _apply(expr, lambda x, low, high: pc.and_kleene(above(x, low), below(x, high)), value, lower, upper)


# -- numbers --------------------------------------------------------------------------------------------------------------


def _number(expr: Expr, node: Compiled) -> Compiled:
    if pa.types.is_null(node.type):
        return _to_type(node, pa.int64())
    if not is_number(node.type) or pa.types.is_boolean(node.type):
        raise _misfit(expr, [node])
    return node


def _negative(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_unsigned_integer(node.type):
        raise UserError(f"{expr.text()} cannot be: {node.type} has no sign", hint='.cast("int64") first')
    return _apply(expr, pc.negate, node if pa.types.is_duration(node.type) else _number(expr, node))


def _absolute(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    return _apply(expr, pc.abs, node if pa.types.is_duration(node.type) else _number(expr, node))


def _rounded(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = _number(expr, nodes[0])
    if pa.types.is_integer(node.type):
        return node
    if expr.kind == "round":
        return _apply(expr, functools.partial(_round, decimals=expr.option("decimals")), node)
    return _apply(expr, pc.floor if expr.kind == "floor" else pc.ceil, node)


def _round(x: pa.Array, decimals: int) -> pa.Array:
    """A float so great that it has no such digits stays as it is: 1e308 at two decimals, on the way to which it would overflow."""
    try:
        return pc.round(x, ndigits=decimals)
    except pa.ArrowInvalid:
        if not pa.types.is_floating(x.type):
            raise
    values = floats(x)
    with np.errstate(all="ignore"):
        ten = np.power(values.dtype.type(10), abs(decimals))
        made = values * ten if decimals >= 0 else np.rint(values / ten) * ten
    far = pa.array(np.isfinite(values) & ~np.isfinite(made))
    return pc.if_else(far, x, pc.round(where(pc.invert(far), x), ndigits=decimals))


def _root(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = _number(expr, nodes[0])
    return _apply(expr, pc.sqrt, node if pa.types.is_floating(node.type) else _to_type(node, pa.float64()))


# -- nulls, choices, casts ------------------------------------------------------------------------------------------------


def _is_nan(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node = _number(expr, nodes[0])
    return _apply(expr, pc.is_nan, node if pa.types.is_floating(node.type) else _to_type(node, pa.float64()))


def _fill_null(expr: Expr, nodes: list[Compiled]) -> Compiled:
    def filled(x: Any, value: Any) -> Any:
        return x if isinstance(x, pa.Array) and x.null_count == 0 else pc.coalesce(x, value)

    return _apply(expr, filled, *_unified(expr, nodes))


def _coalesce(expr: Expr, nodes: list[Compiled]) -> Compiled:
    return _apply(expr, pc.coalesce, *_unified(expr, nodes))


def _is_in(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    given = [value for value in expr.option("values") if value is not None]
    try:
        values = pa.array(given, node.type)
        if pa.types.is_integer(node.type) and values.to_pylist() != given:
            raise ValueError("not all values are integers")
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError, ValueError) as error:
        raise UserError(f"{expr.text()} cannot be: the column is {node.type}: {error}") from error
    if _is_bytes(node.type) and len(values) <= LITERALS:
        return _apply(expr, LiteralSet(value.as_buffer().to_pybytes() for value in values).holds, node)
    if pa.types.is_floating(node.type):  # looked up by their bits, 0.0 and -0.0 differ
        values = pa.concat_arrays([values, pc.negate(values.filter(pc.equal(values, pa.scalar(0, values.type))))])

    def found(x: Any) -> Any:
        made = pc.is_in(x, value_set=values)
        return where(pc.is_valid(x), made) if x.null_count else made

    return _apply(expr, found, node)


def _when(expr: Expr, nodes: list[Compiled]) -> Compiled:
    predicates, values = nodes[:-1:2], [*nodes[1:-1:2], nodes[-1]]
    for given, predicate in zip(expr.inputs[:-1:2], predicates, strict=True):
        if not pa.types.is_boolean(predicate.type) and not pa.types.is_null(predicate.type):
            raise UserError(f"{expr.text()}: when({given.text()}) is {predicate.type}, not true or false")
    values = _unified(expr, values)

    def chosen(*given: Any) -> Any:
        if nulls:  # as arrays: see `where`
            rows = next(len(each) for each in given if isinstance(each, pa.Array))
            given = tuple(broadcast(each, rows) if i in nulls else each for i, each in enumerate(given))
        made = given[-1]
        for i in range(len(given) - 3, -1, -2):
            asked = given[i]
            if isinstance(asked, pa.Scalar) or asked.null_count:
                asked = pc.coalesce(asked, _FALSE)
            made = pc.if_else(asked, given[i + 1], made)
        return made

    pairs = zip([_to_type(each, pa.bool_()) for each in predicates], values, strict=False)
    parts = [*(each for pair in pairs for each in pair), values[-1]]
    nulls = {i for i, each in enumerate(parts) if each.value is not None and not each.value.is_valid}
    return _apply(expr, chosen, *parts)


def _struct(expr: Expr, nodes: list[Compiled]) -> Compiled:
    fields = [pa.field(name, node.type) for name, node in zip(expr.option("names"), nodes, strict=True)]

    def joined(*values: Any) -> pa.Array:
        rows = next(len(value) for value in values if isinstance(value, pa.Array))
        return pa.StructArray.from_arrays([broadcast(value, rows) for value in values], fields=fields)

    return _apply(expr, joined, *nodes)


def _cast(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,), (given,) = nodes, expr.inputs
    what = f"column {given.option('name')!r}" if given.kind == "col" else given.text()
    strict = expr.option("strict")
    function, can_fail = caster(node.type, expr.option("type"), strict=strict, what=what)
    return _apply(expr, function, node, can_fail=can_fail)


# -- strings --------------------------------------------------------------------------------------------------------------


def _string_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if pa.types.is_null(node.type):
        node = _to_type(node, pa.string())
    if not pa.types.is_string(node.type):
        raise UserError(f"{expr.text()} cannot be: {expr.kind} of {node.type}", hint='.cast("string") first')
    function = _string_function(expr)
    try:
        function(pa.array([""]))  # a pattern is read only where there is a row
    except pa.ArrowInvalid as error:
        raise UserError(f"{expr.text()}: {error}") from error
    return _apply(expr, function, node)


def _string_function(expr: Expr) -> Function:
    options = dict(expr.options)
    match expr.kind.removeprefix("str."):
        case "lower":
            return _lower
        case "upper":
            return _upper
        case "strip":
            given = options["characters"]
            return functools.partial(pc.utf8_trim, characters=_WHITE_SPACE if given is None else given)
        case "split":
            return functools.partial(pc.split_pattern, pattern=options["by"])
        case "contains":
            if not options["literal"]:
                return functools.partial(pc.match_substring_regex, pattern=options["pattern"])
            wanted = options["pattern"].encode()
            return lambda x: contains(x, wanted)
        case "startswith":
            prefix = options["prefix"].encode()
            return lambda x: starts_with(x, prefix)
        case "endswith":
            return functools.partial(pc.ends_with, pattern=options["suffix"])
        case "regexp_extract":
            pattern = _one_group(options["pattern"], options["group"], expr)
            return lambda x: pc.struct_field(pc.extract_regex(x, pattern=pattern), [0])
        case "length":
            return lambda x: pc.binary_length(x) if is_ascii(x) else pc.utf8_length(x)
        case "slice":
            offset, length = options["offset"], options["length"]
            stop = None if length is None or (offset < 0 <= offset + length) else offset + length
            return functools.partial(pc.utf8_slice_codeunits, start=offset, stop=stop)
        case "replace" | "replace_all":
            once = 1 if expr.kind == "str.replace" else None
            value = options["value"]
            search = pc.replace_substring if options["literal"] else pc.replace_substring_regex
            replacement = value if options["literal"] else _replacement(value, expr)
            return functools.partial(search, pattern=options["pattern"], replacement=replacement, max_replacements=once)
    raise InternalError(f"no step for {expr.kind}")


def _lower(x: pa.Array) -> pa.Array:
    """Character by character; İ and the Σ at a word's end take Python's way, which knows what surrounds them."""
    return pc.ascii_lower(x) if is_ascii(x) else _with_python(pc.utf8_lower(x), x, "[İΣ]", str.lower)


def _upper(x: pa.Array) -> pa.Array:
    """Character by character; those that become several (ß) take Python's way."""
    return pc.ascii_upper(x) if is_ascii(x) else _with_python(pc.utf8_upper(x), x, _become_several(), str.upper)


def _with_python(made: pa.Array, x: pa.Array, special: str, function: Callable[[str], str]) -> pa.Array:
    rare = pc.match_substring_regex(x, special).fill_null(False)
    if not pc.any(rare).as_py():
        return made
    return pc.replace_with_mask(
        made, rare, pa.array([function(text) for text in x.filter(rare).to_pylist()], pa.string())
    )


@functools.cache
def _become_several() -> str:
    return "[" + "".join(chr(code) for code in range(0x80, 0xFB20) if len(chr(code).upper()) > 1) + "]"


_GROUP = re.compile(
    r"\\Q.*?(?:\\E|$)|\\.|\[\^?\]?(?:\\.|\[:\w+:\]|[^\]\\])*\]|\((?:\?P?<[A-Za-z_]\w*>|(?!\?))", re.DOTALL
)


def _one_group(pattern: str, group: int, expr: Expr) -> str:
    """The pattern with one capturing group, the wanted one, which has a name, as pyarrow wants it."""
    seen = 0

    def rewritten(match: re.Match[str]) -> str:
        nonlocal seen
        if not match[0].startswith("("):
            return match[0]
        seen += 1
        return "(?P<wanted>" if seen == group else "(?:"

    made = _GROUP.sub(rewritten, pattern)
    if not 0 <= group <= seen:
        raise UserError(f"{expr.text()}: the pattern has {seen} groups, not {group}", hint="group 0 is the whole match")
    return f"(?P<wanted>{made})" if group == 0 else made


def _replacement(value: str, expr: Expr) -> str:
    """$1 and ${1} as RE2 writes them: \\1."""

    def group(match: re.Match[str]) -> str:
        if match[0] == "\\":
            return r"\\"
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2]
        if name is None:
            return "$"
        if not re.fullmatch("[0-9]", name):
            raise UserError(f"{expr.text()}: ${name} is no group", hint="${0} to ${9}; a dollar sign is $$")
        return f"\\{name}"

    return re.sub(r"\\|\$\$|\$(\w+)|\$\{(\w+)\}|\$", group, value)


# -- times, structs, lists ------------------------------------------------------------------------------------------------


def _time_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    kind = expr.kind
    if pa.types.is_null(node.type):
        node = _to_type(node, pa.timestamp("ms"))
    if not is_time(node.type) or (kind in _CLOCK_PARTS and pa.types.is_date(node.type)):
        raise UserError(
            f"{expr.text()} cannot be: {kind} of {node.type}", hint="a timestamp, or int64 as ms since 1970 UTC"
        )
    if kind in _PARTS:
        part = _PARTS[kind]
        return _apply(expr, lambda x: part(times.local(x)), node)
    if kind == "dt.epoch":
        return _apply(expr, functools.partial(epoch, unit=expr.option("unit")), node)
    if kind == "dt.strftime":
        return _apply(expr, times.format_time(expr.option("format"), node.type), node)
    return _apply(expr, times.truncate(expr.option("every"), node.type), node)


def _struct_field(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,), name = nodes, expr.option("name")
    if not pa.types.is_struct(node.type):
        raise UserError(f"{expr.text()} cannot be: {expr.inputs[0].text()} is {node.type}, no struct")
    place = node.type.get_field_index(name)
    if place < 0:
        known = [field.name for field in node.type]
        raise UserError(f"{expr.text()}: there is no field {name!r}", hint=f"the fields are {', '.join(known)}")
    return _apply(expr, lambda x: pc.struct_field(x, [place]), node)


def _list_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node, *others = nodes
    if pa.types.is_fixed_size_list(node.type):
        node = _to_type(node, pa.list_(node.type.value_type))
    if not pa.types.is_list(node.type):
        raise UserError(f"{expr.text()} cannot be: {expr.inputs[0].text()} is {node.type}, no list")
    if expr.kind == "list.len":
        return _apply(expr, pc.list_value_length, node)
    if expr.kind == "list.get":
        strict = not expr.option("null_on_oob")
        get = functools.partial(_list_get, index=expr.option("index"), strict=strict, what=expr.text())
        return _apply(expr, get, node, can_fail=strict)
    inner = Compiled(node.type.value_type, node.run)
    typed, wanted = _comparable(expr, [inner, others[0]])
    if others[0].value is not None and not others[0].value.is_valid:
        return _apply(expr, _list_has_null, node)
    same = _compare("==", typed, wanted)
    return _apply(expr, functools.partial(_list_contains, same, typed.type), node, wanted)


def _list_get(lists: pa.Array, *, index: int, strict: bool, what: str) -> pa.Array:
    starts, ends = _bounds(lists)
    place = starts + index if index >= 0 else ends + index
    outside = (place < starts) | (place >= ends)
    if strict:
        beyond = outside & lists.is_valid().to_numpy(zero_copy_only=False)
        if beyond.any():
            row = lists[int(beyond.argmax())].as_py()
            raise DataError(
                f"{what}: the list has {len(row)} values: {row!r}", hint="null_on_oob=True gives null there"
            )
    return lists.values.take(integer_array(place, pa.int32(), lists, nulls=outside))


def _list_has_null(lists: pa.Array) -> pa.Array:
    values = lists.values
    return _any_per_list(lists, values.is_null() if values.null_count else pa.repeat(_FALSE, len(values)))


def _list_contains(same: Function, type: pa.DataType, lists: pa.Array, wanted: Any) -> pa.Array:
    values = lists.values if lists.type.value_type == type else pc.cast(lists.values, type, safe=False)
    if isinstance(wanted, pa.Scalar):
        return _any_per_list(lists, same(values, wanted))
    starts, ends = _bounds(lists)
    lengths = np.where(lists.is_valid().to_numpy(zero_copy_only=False), ends - starts, 0)
    parents = np.repeat(np.arange(len(lists), dtype=np.int32), lengths)
    before = np.cumsum(lengths) - lengths
    picked = values.take(pa.array(np.arange(len(parents)) + np.repeat(starts - before, lengths)))
    asked = wanted.take(pa.array(parents))
    hit = pc.or_kleene(same(picked, asked), pc.and_(pc.is_null(picked), pc.is_null(asked)))
    found = np.zeros(len(lists), dtype=bool)
    found[parents[_true(hit)]] = True
    return _flags(found, lists)


def _any_per_list(lists: pa.Array, hits: pa.Array) -> pa.Array:
    starts, ends = _bounds(lists)
    before = np.concatenate([[0], np.cumsum(_true(hits))])
    return _flags(before[ends] > before[starts], lists)


def _flags(values: Any, lists: pa.Array) -> pa.Array:
    nulls = lists.is_null().to_numpy(zero_copy_only=False) if lists.null_count else None
    return pa.array(values, mask=nulls)


def _true(hits: pa.Array) -> Any:
    return hits.fill_null(False).to_numpy(zero_copy_only=False)


def _bounds(lists: pa.Array) -> tuple[Any, Any]:
    """Where each list begins and ends in `lists.values`."""
    if len(lists) == 0:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing
    offsets = integers(lists.offsets)
    return offsets[:-1], offsets[1:]


_STEPS: dict[str, Callable[[Expr, list[Compiled]], Compiled]] = {
    **dict.fromkeys(["+", "-", "*", "/", "//", "%", "**"], _arithmetic),
    **dict.fromkeys(["==", "!=", "<", "<=", ">", ">="], _comparison),
    **dict.fromkeys(["&", "|", "^"], _logic),
    "not": _not,
    "neg": _negative,
    "abs": _absolute,
    **dict.fromkeys(["round", "floor", "ceil"], _rounded),
    "sqrt": _root,
    "alias": lambda expr, nodes: nodes[0],
    "is_null": lambda expr, nodes: _apply(expr, pc.is_null, *nodes),
    "is_not_null": lambda expr, nodes: _apply(expr, pc.is_valid, *nodes),
    "is_nan": _is_nan,
    "fill_null": _fill_null,
    "coalesce": _coalesce,
    "is_in": _is_in,
    "between": _between,
    "when": _when,
    "struct": _struct,
    "cast": _cast,
    **dict.fromkeys([f"str.{name}" for name in _STRING_STEPS], _string_step),
    **dict.fromkeys([*_PARTS, "dt.epoch", "dt.strftime", "dt.date_trunc"], _time_step),
    "struct.field": _struct_field,
    **dict.fromkeys(["list.get", "list.len", "list.contains"], _list_step),
}
