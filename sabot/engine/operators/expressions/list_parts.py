"""Expressions that make lists of the values of other lists: a part, a set, another order. They are functions of SQL.

The values of all lists are picked at once, by their places:

    lists [b a] [] null [c]     values b a c     their lists 0 0 3
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import broadcast
from sabot.engine.operators.expressions.node import Compiled, Steps, apply, misfit, to_type, unified
from sabot.errors import UserError


def _of(expr: Expr, nodes: list[Compiled]) -> Compiled:
    def run(*columns: Any) -> pa.Array:
        arrays = arrays_of(columns)
        values, rows = pa.concat_arrays(arrays), len(arrays[0])
        places = np.arange(rows)[:, None] + rows * np.arange(len(columns))
        bounds = pa.array((np.arange(rows + 1) * len(columns)).astype(np.int32))
        return pa.ListArray.from_arrays(bounds, values.take(pa.array(places.ravel())))

    return apply(expr, run, *unified(expr, nodes))


def _step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of an expression whose first input is a list."""
    kind, first = expr.kind.removeprefix("list."), nodes[0]
    if not pa.types.is_list(first.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {first.type}, not a list")
    inner = first.type.value_type
    if pa.types.is_nested(inner) and kind not in ("reverse", "slice", "concat", "drop_nulls", "places"):
        raise UserError(f"{expr.text()} cannot be computed: {expr.kind} of {first.type}")
    rest = nodes[1:]
    if kind == "slice":
        rest = [to_type(each, pa.int64()) for each in rest]
    elif kind in ("union", "except", "intersect", "concat"):
        if any(each.type != first.type for each in rest):
            raise misfit(expr, nodes)
    elif rest:
        rest = [to_type(each, inner) for each in rest]
    functions: dict[str, Callable[..., pa.Array]] = {
        **{"places": _places, "reverse": _reversed, "slice": _sliced, "unique": _unique, "drop_nulls": _without_nulls},
        **{"position": _position, "remove": _without, "fill_null": _filled},
        **{"union": _union, "except": _except, "intersect": _intersection, "concat": _joined},
    }
    function = functions[kind]
    return apply(expr, lambda *columns: function(*arrays_of(columns)), first, *rest)


def arrays_of(columns: Sequence[Any]) -> list[pa.Array]:
    """Returns arrays of as many values for the values of the inputs, which may be scalars for constants."""
    rows = next((len(each) for each in columns if isinstance(each, pa.Array)), 1)
    return [broadcast(each, rows) for each in columns]


def owners_of(lists: pa.Array) -> Any:
    """Returns the number of the list of each value of `lists.flatten()`."""
    return np.repeat(np.arange(len(lists)), pc.list_value_length(lists).fill_null(0).to_numpy())


def _picked(lists: pa.Array, values: pa.Array, owners: Any, places: Any, also: pa.Array | None = None) -> pa.Array:
    """Returns lists of the values at these places, which are sorted by list. A list is null where it was, and where
    `also` is null.
    """
    sizes = np.bincount(owners[places], minlength=len(lists))
    nulls = lists.is_null() if also is None else pc.or_(lists.is_null(), also.is_null())
    bounds = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    chosen = values.take(pa.array(places.astype(np.int64)))
    made = pa.ListArray.from_arrays(bounds, chosen, mask=nulls if pc.any(nulls).as_py() else None)
    return made if made.type == lists.type else made.cast(lists.type)


def codes_of(*arrays: pa.Array) -> list[Any]:
    """Returns a number for each value, equal ones for equal values; null equals null, and NaN equals NaN."""
    whole = pa.concat_arrays([each.cast(arrays[0].type) for each in arrays])
    codes = pc.dictionary_encode(whole, null_encoding="encode").indices.to_numpy()
    return np.split(codes, np.cumsum([len(each) for each in arrays])[:-1])


def keys_of(owners: Any, codes: Any) -> Any:
    """Returns a number for each value that equal values of the same list share."""
    return owners * (int(codes.max(initial=0)) + 1) + codes


def _first_of(keys: Any) -> Any:
    """Returns the places of the first of the equal ones, in their order."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _reversed(lists: pa.Array) -> pa.Array:
    owners = owners_of(lists)
    return _picked(lists, lists.flatten(), owners, np.lexsort((-np.arange(len(owners)), owners)))


def _places(lists: pa.Array) -> pa.Array:
    """Returns the places of the values in their lists, from 1 on."""
    sizes = pc.list_value_length(lists).fill_null(0).to_numpy()
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(bounds[-1]) - np.repeat(bounds[:-1], sizes) + 1
    nulls = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(places.astype(np.int32)), mask=nulls)


def _sliced(lists: pa.Array, start: pa.Array, end: pa.Array) -> pa.Array:
    """Returns the values from one place to another, both from 1, or from -1 for the last one; 0 is the first one."""
    sizes = pc.list_value_length(lists).fill_null(0).to_numpy()
    bounds = []
    for each in (start, end):
        place = each.fill_null(0).to_numpy()
        bounds.append(np.where(place > 0, place, np.where(place < 0, place + sizes + 1, 1)))
    owners = owners_of(lists)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    chosen = np.flatnonzero((within >= bounds[0][owners]) & (within <= bounds[1][owners]))
    missing = pc.if_else(pc.or_(start.is_null(), end.is_null()), None, True)
    return _picked(lists, lists.flatten(), owners, chosen, missing)


def _unique(lists: pa.Array) -> pa.Array:
    owners, values = owners_of(lists), lists.flatten()
    return _picked(lists, values, owners, _first_of(keys_of(owners, codes_of(values)[0])))


def _without_nulls(lists: pa.Array) -> pa.Array:
    values = lists.flatten()
    return _picked(lists, values, owners_of(lists), np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False)))


def _filled(lists: pa.Array, value: pa.Array) -> pa.Array:
    owners = owners_of(lists)
    values = pc.coalesce(lists.flatten(), value.take(pa.array(owners)))
    return _picked(lists, values, owners, np.arange(len(owners)), value)


def _hits(lists: pa.Array, wanted: pa.Array) -> tuple[Any, pa.Array, Any]:
    """Returns the list of each value, the values, and True for those that equal the wanted value of their list."""
    owners, values = owners_of(lists), lists.flatten()
    mine, asked = codes_of(values, wanted)
    return owners, values, mine == asked[owners]


def _position(lists: pa.Array, wanted: pa.Array) -> pa.Array:
    owners, _, hits = _hits(lists, wanted)
    starts = np.searchsorted(owners, np.arange(len(lists)))
    found = np.flatnonzero(hits)
    first = found[np.unique(owners[found], return_index=True)[1]]
    places = np.zeros(len(lists), np.int32)
    places[owners[first]] = first - starts[owners[first]] + 1
    nulls = pc.or_(lists.is_null(), wanted.is_null())
    return pa.array(places, mask=nulls.to_numpy(zero_copy_only=False))


def _without(lists: pa.Array, unwanted: pa.Array) -> pa.Array:
    owners, values, hits = _hits(lists, unwanted)
    return _picked(lists, values, owners, np.flatnonzero(~hits))


def _both(one: pa.Array, other: pa.Array) -> tuple[pa.Array, Any, Any]:
    """Returns the values of both lists, those of one first; their lists; and True for those of the first one."""
    owners = np.concatenate([owners_of(one), owners_of(other)])
    order = np.argsort(owners, kind="stable")
    first = one.flatten()
    return pa.concat_arrays([first, other.flatten()]).take(pa.array(order)), owners[order], order < len(first)


def _joined(*lists: pa.Array) -> pa.Array:
    return reduce(_joined_two, lists)


def _joined_two(one: pa.Array, other: pa.Array) -> pa.Array:
    values, owners, _ = _both(one, other)
    return _picked(one, values, owners, np.arange(len(owners)), other)


def _union(one: pa.Array, other: pa.Array) -> pa.Array:
    values, owners, _ = _both(one, other)
    return _picked(one, values, owners, _first_of(keys_of(owners, codes_of(values)[0])), other)


def _except(one: pa.Array, other: pa.Array) -> pa.Array:
    return _compared(one, other, wanted=False)


def _intersection(one: pa.Array, other: pa.Array) -> pa.Array:
    return _compared(one, other, wanted=True)


def _compared(one: pa.Array, other: pa.Array, *, wanted: bool) -> pa.Array:
    """Returns the different values of one list that the other one has, or has not."""
    values, owners, mine = _both(one, other)
    keys = keys_of(owners, codes_of(values)[0])
    chosen = np.flatnonzero(mine & (np.isin(keys, keys[~mine]) == wanted))
    return _picked(one, values, owners, chosen[_first_of(keys[chosen])], other)


_KINDS = (
    "places",
    "reverse",
    "slice",
    "unique",
    "drop_nulls",
    "position",
    "remove",
    "fill_null",
    "union",
    "except",
    "intersect",
)


def _named(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of lists, or maps, whose rows have other names of their fields. A cast of Arrow goes by the names, and would make
    them null.
    """
    return apply(expr, lambda values: arrays_of([values])[0].view(expr.option("type")), *nodes)


STEPS: Steps = {
    "list.of": _of,
    "list.named": _named,
    "list.concat": _step,
    **{f"list.{kind}": _step for kind in _KINDS},
}
