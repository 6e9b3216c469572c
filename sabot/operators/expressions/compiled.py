"""Expressions, compiled: an Expr over a schema becomes a tree of closures, once; a batch then costs a few calls of pyarrow.compute.

Types are found while the tree is made: each step runs once over no rows, so types that do not fit are a UserError before any row comes.
Nulls, NaN and rounding behave as in polars (`tests/unit/operators/expressions/test_expressions.py` compares them). Each kind of expression
stands in one of the modules beside this one, whose `STEPS` make its node.
"""

import datetime
from dataclasses import replace

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.api.words import no_column
from sabot.errors import InternalError, UserError
from sabot.operators.base import TIME_COLUMN
from sabot.operators.expressions import choices, clock, comparisons, lists, numbers, text
from sabot.operators.expressions.node import Compiled, Steps, constant, is_int, to_type

__all__ = ["Compiled", "compile_expr", "compile_predicate"]

_LITERAL_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
_STEPS: Steps = numbers.STEPS | comparisons.STEPS | choices.STEPS | text.STEPS | clock.STEPS | lists.STEPS
_FUSED = {
    ("list.get", "str.split"): text.part_of_split
}  # a step over another one, for whose result alone nothing is made


def compile_expr(expr: Expr, schema: pa.Schema) -> Compiled:
    """The expression, ready for batches of `schema`. UserError for a column that is not there, or types that do not fit."""
    if expr.kind == "col":
        return _column(expr, schema)
    if expr.kind == "lit":
        return _literal(expr)
    below = expr.inputs[0] if expr.inputs else expr
    if (fused := _FUSED.get((expr.kind, below.kind))) is not None:
        return fused(expr, [compile_expr(each, schema) for each in below.inputs])
    step = _STEPS.get(expr.kind)
    if expr.kind.startswith("step."):
        raise UserError(
            f"{expr!r} is a value of a pattern", hint="it stands in the predicates and measures of pattern(…)"
        )
    if step is None:
        raise InternalError(f"no step for expressions of the kind {expr.kind!r}")
    return step(expr, [compile_expr(each, schema) for each in expr.inputs])


def compile_predicate(expr: Expr, schema: pa.Schema) -> Compiled:
    """As `compile_expr`, for an expression that is true or false; UserError for any other."""
    made = compile_expr(expr, schema)
    if pa.types.is_null(made.type):
        return to_type(made, pa.bool_())
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
        return constant(value if type is None else value.cast(type))
    if type is not None:
        return constant(pa.scalar(value, type))
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    scalar = pa.scalar(value, pa.uint64() if is_int(value) and value >= 2**63 else _LITERAL_TYPES.get(value.__class__))
    adapts = value is None or (
        isinstance(value, int | float | datetime.date | datetime.timedelta) and not isinstance(value, bool)
    )
    return replace(constant(scalar), plain=adapts)
