"""Expressions of lists."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import integer_array, integers
from sabot.engine.operators.expressions.comparisons import comparable, comparison_of
from sabot.engine.operators.expressions.node import FALSE, Compiled, Function, Steps, apply, number, to_type
from sabot.errors import DataError, UserError


def _list_step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    node, *others = nodes
    if pa.types.is_fixed_size_list(node.type):
        node = to_type(node, pa.list_(node.type.value_type))
    if not pa.types.is_list(node.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {node.type}, not a list")
    if expr.kind == "list.len":
        return apply(expr, pc.list_value_length, node)
    if expr.kind == "list.join":
        separator = pa.scalar(expr.option("separator"), pa.string())
        return apply(expr, lambda x: pc.binary_join(x, separator), node)
    if expr.kind == "list.get":
        strict = not expr.option("null_on_oob")
        get = functools.partial(_list_get, index=expr.option("index"), strict=strict, what=expr.text())
        return apply(expr, get, node, can_fail=strict)
    if expr.kind == "list.sort":
        if pa.types.is_nested(node.type.value_type):
            raise UserError(f"{expr.text()} cannot be computed: list.sort of {node.type}")
        return apply(expr, functools.partial(_sort, **dict(expr.options)), node)
    if expr.kind == "list.field":
        return _field_step(expr, node)
    if expr.kind == "list.sum":
        kind = number(expr, Compiled(node.type.value_type, node.run)).type
        if pa.types.is_decimal256(kind):
            raise UserError(f"{expr.text()} cannot be computed: list.sum of {kind}", hint=".cast() to a decimal128")
        wide, result = _sum_types(kind)
        return apply(expr, functools.partial(_sum, wide=wide, result=result, what=expr.text()), node, can_fail=True)
    if expr.kind == "list.quantile":
        inner = number(expr, Compiled(node.type.value_type, node.run))
        node = to_type(node, pa.list_(pa.float64())) if inner.type != pa.float64() else node
        find = functools.partial(
            _quantile, fraction=expr.option("quantile"), between=_BETWEEN[expr.option("interpolation")]
        )
        return apply(expr, find, node)
    inner = Compiled(node.type.value_type, node.run)
    typed, wanted = comparable(expr, [inner, others[0]])
    if others[0].value is not None and not others[0].value.is_valid:
        return apply(expr, _list_has_null, node)
    same = comparison_of("==", typed, wanted)
    return apply(expr, functools.partial(_list_contains, same, typed.type), node, wanted)


def _list_get(lists: pa.Array, *, index: int, strict: bool, what: str) -> pa.Array:
    starts, ends = _bounds(lists)
    lengths = ends - starts
    outside = lengths <= index if index >= 0 else lengths < -index
    place = np.where(outside, 0, (starts if index >= 0 else ends) + (index if -(2**31) <= index < 2**31 else 0))
    if strict:
        beyond = outside & lists.is_valid().to_numpy(zero_copy_only=False)
        if beyond.any():
            raise no_value_at_index(what, lists[int(beyond.argmax())].as_py())
    return lists.values.take(integer_array(place.astype(np.int32), pa.int32(), lists, nulls=outside))


def no_value_at_index(what: str, values: list[Any]) -> DataError:
    """Returns the error for a list that has no value at the index."""
    return DataError(
        f"{what}: the list has only {len(values)} values: {values!r}", hint="with null_on_oob=True the result is null"
    )


_BETWEEN: dict[str, Callable[[Any, Any, Any], Any]] = {  # two neighbours and the place between them, from 0 to 1
    "nearest": lambda low, high, place: np.where(place < 0.5, low, high),
    "lower": lambda low, high, place: low,
    "higher": lambda low, high, place: np.where(place > 0, high, low),
    "midpoint": lambda low, high, place: np.where(place > 0, low / 2 + high / 2, low),
    "linear": lambda low, high, place: np.where(place > 0, low * (1 - place) + high * place, low),
}


def _quantile(lists: pa.Array, *, fraction: float, between: Callable[[Any, Any, Any], Any]) -> pa.Array:
    """Sorts the values of all lists at once, by list and value, and picks those at the rank of the fraction."""
    rows = _rows(lists)
    parents, values = rows["list"].to_numpy(), rows["value"].to_numpy()
    known = ~np.isnan(values)
    parents, values = parents[known], values[known]
    values = values[np.lexsort((values, parents))]
    sizes = np.bincount(parents, minlength=len(lists))
    first = np.cumsum(sizes) - sizes
    rank = np.maximum(sizes - 1, 0) * fraction
    low = np.floor(rank).astype(np.int64)
    high = np.ceil(rank).astype(np.int64)
    empty = sizes == 0
    if not len(values):
        return pa.nulls(len(lists), pa.float64())
    at = np.where(empty, 0, first)
    made = between(
        values[np.minimum(at + low, len(values) - 1)], values[np.minimum(at + high, len(values) - 1)], rank - low
    )
    return pa.array(made, pa.float64(), mask=empty)


def _rows(lists: pa.Array) -> pa.Table:
    """Returns the values of all lists, one below the other, with the number of their list."""
    # Not pc.list_parent_indices, which counts values behind a null list too.
    return pa.table({"list": np.repeat(np.arange(len(lists)), _sizes(lists)), "value": lists.flatten()})


def _sizes(lists: pa.Array) -> Any:
    return pc.list_value_length(lists).fill_null(0).to_numpy()


def _sort(lists: pa.Array, *, descending: bool, nulls_last: bool) -> pa.Array:
    values = lists.flatten()
    return _with_values(lists, values.take(_order(lists, [values], [descending], [nulls_last])), lists.type)


def _order(lists: pa.Array, by: Sequence[pa.Array], descending: Sequence[bool], nulls_last: Sequence[bool]) -> pa.Array:
    """Returns the places of the values of all lists, sorted in each list by these arrays. Equal ones stay in their order."""
    # Not pc.list_parent_indices, which counts values behind a null list too.
    columns: dict[str, Any] = {"list": np.repeat(np.arange(len(lists)), _sizes(lists))}
    order = [("list", "ascending")]
    for i, (values, down, last) in enumerate(zip(by, descending, nulls_last, strict=True)):
        way = "descending" if down else "ascending"
        columns[f"null{i}"] = values.is_null() if last else values.is_valid()
        order.append((f"null{i}", "ascending"))
        if pa.types.is_floating(values.type):  # pyarrow puts NaN behind all numbers in both directions
            columns[f"nan{i}"] = pc.is_nan(values)
            order.append((f"nan{i}", way))
        columns[f"value{i}"] = values
        order.append((f"value{i}", way))
    return pc.sort_indices(pa.table(columns), order)


def _with_values(lists: pa.Array, values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Returns lists of the same lengths with other values."""
    bounds = pa.array(np.concatenate([[0], np.cumsum(_sizes(lists))]).astype(np.int32))
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(bounds, values, type=kind, mask=mask)


def _field_step(expr: Expr, node: Compiled) -> Compiled:
    kind, options = node.type.value_type, dict(expr.options)
    if not pa.types.is_struct(kind):
        raise UserError(
            f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {node.type}, not a list of structs"
        )
    fields = {each.name: each.type for each in kind}
    for name in (options["name"], *options["by"]):
        if name not in fields:
            raise UserError(
                f"{expr.text()} cannot be computed: the structs have no field {name!r}",
                hint=f"there are {', '.join(fields)}",
            )
    if nested := next((name for name in options["by"] if pa.types.is_nested(fields[name])), None):
        raise UserError(f"{expr.text()} cannot be computed: {nested!r} is {fields[nested]}, which has no order")
    return apply(expr, functools.partial(_field, **options, kind=pa.list_(fields[options["name"]])), node)


def _field(
    lists: pa.Array,
    *,
    name: str,
    by: Sequence[str],
    descending: Sequence[bool],
    nulls_last: Sequence[bool],
    kind: pa.DataType,
) -> pa.Array:
    structs = lists.flatten()
    values = pc.struct_field(structs, name)
    if by:
        values = values.take(_order(lists, [pc.struct_field(structs, each) for each in by], descending, nulls_last))
    return _with_values(lists, values, kind)


def _sum(lists: pa.Array, *, wide: pa.DataType, result: pa.DataType, what: str) -> pa.Array:
    """Sums the values of each list in a wider type, since pyarrow's sums of whole numbers and decimals wrap in silence."""
    rows = _rows(lists)
    rows = rows.set_column(1, "value", rows.column("value").cast(wide))
    sums = rows.group_by("list", use_threads=False).aggregate([("value", "sum")])
    places = np.full(len(lists), -1, np.int64)
    places[sums.column("list").to_numpy()] = np.arange(len(sums))
    try:
        return sums.column("value_sum").cast(result).combine_chunks().take(pa.array(places, mask=places < 0))
    except pa.ArrowInvalid as error:
        raise DataError(f"{what}: the sum does not fit {result}", hint="cast the values to a wider type") from error


def _sum_types(kind: pa.DataType) -> tuple[pa.DataType, pa.DataType]:
    """Returns the type in which values of a type are summed exactly, and the type of the sum."""
    if pa.types.is_decimal(kind):
        return pa.decimal256(76, kind.scale), pa.decimal128(38, kind.scale)
    if pa.types.is_integer(kind):
        return pa.decimal128(20), pa.uint64() if pa.types.is_unsigned_integer(kind) else pa.int64()
    return pa.float64(), pa.float64()


def _list_has_null(lists: pa.Array) -> pa.Array:
    values = lists.values
    return _any_per_list(lists, values.is_null() if values.null_count else pa.repeat(FALSE, len(values)))


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
    """Returns (the start of each list in `lists.values`, its end), as numpy arrays."""
    if len(lists) == 0:
        nothing = np.zeros(0, dtype=np.int32)
        return nothing, nothing
    offsets = integers(lists.offsets)
    return offsets[:-1], offsets[1:]


STEPS: Steps = dict.fromkeys(
    ["list.get", "list.len", "list.join", "list.contains", "list.quantile", "list.sum", "list.sort", "list.field"],
    _list_step,
)
