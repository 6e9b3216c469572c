"""Expressions over values of any type: fill_null, coalesce, when, struct, cast."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import encode_rows
from sabot.api.expr import GUARDED, Expr
from sabot.base.arrays import broadcast, exact_cast
from sabot.engine.operators.expressions.casts import caster
from sabot.engine.operators.expressions.comparisons import by_value, literal_array
from sabot.engine.operators.expressions.node import (
    FALSE,
    TRUE,
    Compiled,
    Steps,
    apply,
    carefully,
    computed_for,
    number,
    to_type,
    true_where,
    unified,
    with_branches,
)
from sabot.errors import UserError


def _fill_null(expr: Expr, nodes: list[Compiled]) -> Compiled:
    def filled(x: Any, value: Any) -> Any:
        return x if isinstance(x, pa.Array) and x.null_count == 0 else pc.coalesce(x, value)

    nodes = unified(expr, nodes)
    return with_branches(apply(expr, filled, *nodes), partial(_first_value, nodes))


def _coalesce(expr: Expr, nodes: list[Compiled]) -> Compiled:
    nodes = unified(expr, nodes)
    return with_branches(apply(expr, pc.coalesce, *nodes), partial(_first_value, nodes))


def _first_value(nodes: list[Compiled], data: pa.RecordBatch) -> pa.Array:
    """Returns the first value of each row that is not null. A node is computed for rows in which those before it are
    null.
    """
    made = carefully(nodes[0], data)
    for node in nodes[1:]:
        made = pc.coalesce(made, computed_for(node, data, made.is_null()))
    return made


def _when(expr: Expr, nodes: list[Compiled]) -> Compiled:
    predicates, values = nodes[:-1:2], [*nodes[1:-1:2], nodes[-1]]
    for given, predicate in zip(expr.inputs[:-1:2], predicates, strict=True):
        if not pa.types.is_boolean(predicate.type) and not pa.types.is_null(predicate.type):
            raise UserError(f"{expr.text()}: when({given.text()}) is {predicate.type}, not true or false")
    values = unified(expr, values)

    def chosen(*given: Any) -> Any:
        if nulls:  # null scalars become arrays: pyarrow 17 breaks a slice of strings otherwise (see `arrays.where`)
            rows = next(len(each) for each in given if isinstance(each, pa.Array))
            given = tuple(broadcast(each, rows) if i in nulls else each for i, each in enumerate(given))
        made = given[-1]
        for i in range(len(given) - 3, -1, -2):
            asked = given[i]
            asked = pc.coalesce(asked, FALSE) if isinstance(asked, pa.Scalar) else true_where(asked)
            made = pc.if_else(asked, given[i + 1], made)
        return made

    def guarded(data: pa.RecordBatch) -> Any:
        """A predicate is computed for the rows that no branch before it has, a value for the rows of its branch."""
        left, made = pa.repeat(TRUE, data.num_rows), []
        for predicate, value in pairs:
            asked = true_where(computed_for(predicate, data, left))
            made += [asked, computed_for(value, data, pc.and_(left, asked))]
            left = pc.and_not(left, asked)
        return chosen(*made, computed_for(values[-1], data, left))

    pairs = list(zip([to_type(each, pa.bool_()) for each in predicates], values, strict=False))
    parts = [*(each for pair in pairs for each in pair), values[-1]]
    nulls = {i for i, each in enumerate(parts) if each.value is not None and not each.value.is_valid}
    return with_branches(apply(expr, chosen, *parts), guarded)


def _guarded(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of a value that is needed only where the predicate is true, such as an argument with FILTER."""
    value, predicate = nodes
    predicate = to_type(predicate, pa.bool_())
    return with_branches(value, lambda data: computed_for(value, data, true_where(carefully(predicate, data))))


def _struct(expr: Expr, nodes: list[Compiled]) -> Compiled:
    fields = [pa.field(name, node.type) for name, node in zip(expr.option("names"), nodes, strict=True)]

    def joined(*values: Any) -> pa.Array:
        rows = next(len(value) for value in values if isinstance(value, pa.Array))
        return pa.StructArray.from_arrays([broadcast(value, rows) for value in values], fields=fields)

    return apply(expr, joined, *nodes)


def _cast(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,), (given,) = nodes, expr.inputs
    what = f"column {given.option('name')!r}" if given.kind == "col" else given.text()
    strict = expr.option("strict")
    if "exact" in dict(expr.options):  # of declared columns of SQL: no number is cut or rounded
        return apply(expr, lambda values: exact_cast(values, expr.option("type")), node, can_fail=True)
    lenient = "lenient" in dict(expr.options)  # of SQL: it reads more texts than the API of Python
    function, can_fail = caster(node.type, expr.option("type"), strict=strict, what=what, lenient=lenient)
    return apply(expr, function, node, can_fail=can_fail)


def _json_encode(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,) = nodes
    if not pa.types.is_struct(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {node.type}, not a struct")
    names = [each.name for each in node.type]

    def run(structs: pa.Array) -> pa.Array:
        rows = pa.RecordBatch.from_arrays(structs.flatten(), names=names)
        texts = encode_rows(rows).cast(pa.string())
        return pc.if_else(structs.is_valid(), texts, None) if structs.null_count else texts

    return apply(expr, run, node)


def _struct_field(expr: Expr, nodes: list[Compiled]) -> Compiled:
    (node,), name = nodes, expr.option("name")
    if not pa.types.is_struct(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {node.type}, not a struct")
    place = node.type.get_field_index(name)
    if place < 0:
        known = [field.name for field in node.type]
        raise UserError(f"{expr.text()}: there is no field {name!r}", hint=f"the fields are {', '.join(known)}")
    return apply(expr, lambda x: pc.struct_field(x, [place]), node)


def _concat_str(expr: Expr, nodes: list[Compiled]) -> Compiled:
    texts = []
    for each in nodes:
        function, can_fail = caster(each.type, pa.string(), strict=True, what=expr.text())
        texts.append(apply(expr, function, each, can_fail=can_fail))
    separator = pa.scalar(expr.option("separator"), pa.string())
    if not expr.option("ignore_nulls"):
        return apply(expr, lambda *values: pc.binary_join_element_wise(*values, separator), *texts)

    def joined(*values: Any) -> Any:  # pyarrow's null_handling="skip" leaves out rows without a text
        made = values[0]
        for value in values[1:]:
            made = pc.coalesce(pc.binary_join_element_wise(made, value, separator), made, value)
        return pc.coalesce(made, pa.scalar("", pa.string()))

    return apply(expr, joined, *texts)


def _extreme(expr: Expr, nodes: list[Compiled]) -> Compiled:
    pick = pc.min_element_wise if expr.kind == "min_horizontal" else pc.max_element_wise
    alike = unified(expr, nodes)
    type = alike[0].type
    if not (pa.types.is_timestamp(type) and type.tz is not None):
        return apply(expr, pick, *alike)
    # pyarrow compares times of a zone, and has no least one of them
    return apply(expr, lambda *times: pc.cast(pick(*(pc.cast(each, pa.int64()) for each in times)), type), *alike)


def _cut(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node that finds the interval of each number by binary search."""
    breaks = np.array(expr.option("breaks"))
    left = expr.option("left_closed")
    ends = ["-inf", *(np.format_float_positional(each, trim="-") for each in breaks), "inf"]
    open_, close = ("[", ")") if left else ("(", "]")
    labels = expr.option("labels") or [f"{open_}{low}, {high}{close}" for low, high in itertools.pairwise(ends)]
    texts = pa.array(labels, pa.string())

    def placed(x: pa.Array) -> pa.Array:
        values = x.to_numpy(zero_copy_only=False)
        found = np.searchsorted(breaks, values, "right" if left else "left")
        return texts.take(pa.array(found, pa.int64(), mask=np.isnan(values)))

    return apply(expr, placed, to_type(number(expr, nodes[0]), pa.float64()))


def _replace(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node that looks each value up among the old ones."""
    x, default = nodes
    try:
        old = by_value(literal_array(list(expr.option("old")), x.type))
        given = list(expr.option("new"))
        new = literal_array(given, x.type) if expr.kind == "replace" else pa.array(given)
    except (TypeError, OverflowError, ValueError) as error:
        hint = "replace_strict gives another type" if expr.kind == "replace" else ""
        raise UserError(
            f"{expr.text()} cannot be computed: a value does not fit {x.type}: {error}", hint=hint
        ) from error
    if expr.kind == "replace_strict":
        type = unified(expr, [Compiled(new.type, lambda data: new), default])[0].type
        new, default = pc.cast(new, type), to_type(default, type)

    def replaced(values: Any, otherwise: Any) -> pa.Array:
        places = pc.index_in(by_value(values), value_set=old)
        return pc.if_else(pc.is_valid(places), new.take(places), otherwise)

    return apply(expr, replaced, x, default)


STEPS: Steps = {
    "concat_str": _concat_str,
    "min_horizontal": _extreme,
    "max_horizontal": _extreme,
    "cut": _cut,
    "replace": _replace,
    "replace_strict": _replace,
    "alias": lambda expr, nodes: nodes[0],
    "is_null": lambda expr, nodes: apply(expr, pc.is_null, *nodes),
    "is_not_null": lambda expr, nodes: apply(expr, pc.is_valid, *nodes),
    "fill_null": _fill_null,
    "coalesce": _coalesce,
    "when": _when,
    GUARDED: _guarded,
    "struct": _struct,
    "cast": _cast,
    "struct.field": _struct_field,
    "struct.json_encode": _json_encode,
}
