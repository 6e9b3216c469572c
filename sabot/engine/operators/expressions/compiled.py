"""Compiles expressions: an Expr over a schema becomes a tree of closures, once. A batch then costs a few calls of
pyarrow.compute.

The types are found while the tree is made: each function runs once without rows, so that types that do not fit raise
UserError before the app starts. Nulls, NaN and rounding behave as in polars
(`tests/unit/engine/operators/expressions/test_expressions.py` compares the two). Each kind of expression is in one of the
modules of this package; the `STEPS` of a module make the nodes.
"""

import datetime
from dataclasses import replace

import pyarrow as pa

from sabot.api.expr import Expr
from sabot.api.words import no_column
from sabot.base.arrays import scalar_of
from sabot.engine.operators.base import TIME_COLUMN
from sabot.engine.operators.expressions import (
    choices,
    clock,
    comparisons,
    list_parts,
    lists,
    maps,
    numbers,
    single_values,
    text,
)
from sabot.engine.operators.expressions.node import Compiled, Steps, constant, is_int, to_type
from sabot.errors import InternalError, UserError

__all__ = ["Compiled", "compile_expr", "compile_predicate"]

_LITERAL_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary()}
_STEPS: Steps = numbers.STEPS | comparisons.STEPS | choices.STEPS | text.STEPS | clock.STEPS | lists.STEPS
_STEPS |= list_parts.STEPS | maps.STEPS | single_values.STEPS
# (a step, the step of its input): one function computes both, without the values in between
_FUSED = {("list.get", "str.split"): text.part_of_split}


def compile_expr(expr: Expr, schema: pa.Schema, made: dict[int, tuple[Expr, Compiled]] | None = None) -> Compiled:
    """Compiles an expression for batches of `schema`. Raises UserError for a missing column, and for types that do
    not fit.

    `made`: expressions that were compiled for this schema, by id; the parts of this one are taken from there, and
    it is added. An expression that grows by a level at a time is compiled once then, and not once for each level.
    """
    known = None if made is None else made.get(id(expr))
    if known is not None:
        return known[1]
    compiled = _compiled(expr, schema, made)
    if made is not None:
        made[id(expr)] = expr, compiled  # the expression too: while it lives, no other one gets its id
    return compiled


def _compiled(expr: Expr, schema: pa.Schema, made: dict[int, tuple[Expr, Compiled]] | None) -> Compiled:
    if expr.kind == "col":
        return _column(expr, schema)
    if expr.kind == "lit":
        return _literal(expr)
    below = expr.inputs[0] if expr.inputs else expr
    if (fused := _FUSED.get((expr.kind, below.kind))) is not None:
        return fused(expr, [compile_expr(each, schema, made) for each in below.inputs])
    step = _STEPS.get(expr.kind)
    if expr.kind.startswith("step."):
        raise UserError(
            f"{expr!r} is only known inside a pattern", hint="use it in the predicates and measures of pattern(…)"
        )
    if step is None:
        raise InternalError(f"no step for expressions of the kind {expr.kind!r}")
    return step(expr, [compile_expr(each, schema, made) for each in expr.inputs])


def compile_predicate(expr: Expr, schema: pa.Schema) -> Compiled:
    """Compiles an expression whose values are true or false. Raises UserError as `compile_expr` does, and for any
    other type.
    """
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
        raise UserError(f"there are {len(places)} columns {name!r}", hint="rename all but one")
    known = [each for each in schema.names if each != TIME_COLUMN]
    raise no_column(name, known)


def _literal(expr: Expr) -> Compiled:
    value, type = expr.option("value"), expr.option("type")
    if isinstance(value, pa.Scalar):
        return constant(value if type is None else value.cast(type))
    if type is not None:
        return constant(scalar_of(value, type))
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    scalar = scalar_of(value, pa.uint64() if is_int(value) and value >= 2**63 else _LITERAL_TYPES.get(value.__class__))
    adapts = value is None or (
        isinstance(value, int | float | datetime.date | datetime.timedelta) and not isinstance(value, bool)
    )
    return replace(constant(scalar), plain=adapts)
