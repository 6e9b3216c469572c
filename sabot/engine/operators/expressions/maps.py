"""Expressions over maps: made of values, of arrays and of texts; a value by its key; the keys, values and entries. They are
functions of SQL.

Of equal keys, a map has the last one.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot.api.expr import Expr
from sabot.base.arrays import integers
from sabot.engine.operators.expressions.list_parts import arrays_of, codes_of, keys_of, owners_of
from sabot.engine.operators.expressions.node import Compiled, Steps, apply, to_type
from sabot.errors import UserError


def _of(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of a map of pairs: key, value, key, value, …, all keys of one type, and all values."""
    pairs = len(nodes) // 2

    def run(*columns: Any) -> pa.Array:
        arrays = arrays_of(columns)
        rows = len(arrays[0])
        places = pa.array((np.arange(rows)[:, None] + rows * np.arange(pairs)).ravel())
        keys, values = (pa.concat_arrays(arrays[i::2]).take(places) for i in (0, 1))
        return _made(np.repeat(np.arange(rows), pairs), keys, values, rows, None)

    return apply(expr, run, *nodes)


def _step(expr: Expr, nodes: list[Compiled]) -> Compiled:
    """Makes the node of an expression whose first input is a map."""
    kind, first = expr.kind.removeprefix("map."), nodes[0]
    if not pa.types.is_map(first.type):
        raise UserError(f"{expr.text()} cannot be computed: {expr.inputs[0].text()} is {first.type}, not a map")
    if kind == "get":
        return apply(expr, lambda *columns: _got(*arrays_of(columns)), first, to_type(nodes[1], first.type.key_type))
    function = {"keys": _keys, "values": _values, "entries": _entries, "len": _sizes, "json": _json}[kind]
    return apply(expr, lambda *columns: function(*arrays_of(columns)), first)


def _from_arrays(expr: Expr, nodes: list[Compiled]) -> Compiled:
    return apply(expr, lambda *columns: _joined(*arrays_of(columns)), *nodes)


def _from_entries(expr: Expr, nodes: list[Compiled]) -> Compiled:
    return apply(expr, lambda lists: _of_entries(*arrays_of([lists])), *nodes)


def _from_text(expr: Expr, nodes: list[Compiled]) -> Compiled:
    between, within = expr.option("between"), expr.option("within")
    return apply(expr, lambda texts: _split(arrays_of([texts])[0], between, within), *nodes)


def _made(owners: Any, keys: pa.Array, values: pa.Array, rows: int, nulls: Any) -> pa.Array:
    """Returns maps of these entries, which are sorted by the number of their map (`owners`). `nulls`: True for a map that is
    null, or None if none is.
    """
    backwards = keys_of(owners, codes_of(keys)[0])[::-1]
    last = np.sort(len(owners) - 1 - np.unique(backwards, return_index=True)[1])
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owners[last], minlength=rows))]).astype(np.int32)
    places = pa.array(last.astype(np.int64))
    offsets = pa.array(bounds, mask=None if nulls is None else np.append(nulls, False))
    return pa.MapArray.from_arrays(offsets, keys.take(places), values.take(places))


def _parts(maps: pa.Array) -> tuple[Any, pa.Array, pa.Array]:
    """Returns the number of the map of each entry, the keys and the values."""
    offsets = integers(maps.offsets) if len(maps) else np.zeros(1, np.int64)
    starts = offsets[:-1].astype(np.int64)
    sizes = np.where(maps.is_valid().to_numpy(zero_copy_only=False), offsets[1:] - starts, 0).astype(np.int64)
    owners = np.repeat(np.arange(len(maps)), sizes)
    places = pa.array(np.arange(len(owners)) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes))
    return owners, maps.keys.take(places), maps.items.take(places)


def _got(maps: pa.Array, wanted: pa.Array) -> pa.Array:
    owners, keys, values = _parts(maps)
    mine, asked = codes_of(keys, wanted)
    places = np.full(len(maps), -1, np.int64)
    hits = np.flatnonzero(mine == asked[owners])
    places[owners[hits]] = hits
    return values.take(pa.array(places, mask=places < 0))


def _listed(maps: pa.Array, owners: Any, values: pa.Array) -> pa.Array:
    bounds = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(maps)))]).astype(np.int32)
    nulls = maps.is_null() if maps.null_count else None
    return pa.ListArray.from_arrays(pa.array(bounds), values, mask=nulls)


def _keys(maps: pa.Array) -> pa.Array:
    owners, keys, _ = _parts(maps)
    return _listed(maps, owners, keys)


def _values(maps: pa.Array) -> pa.Array:
    owners, _, values = _parts(maps)
    return _listed(maps, owners, values)


def _entries(maps: pa.Array) -> pa.Array:
    owners, keys, values = _parts(maps)
    return _listed(maps, owners, pa.StructArray.from_arrays([keys, values], names=["key", "value"]))


def _sizes(maps: pa.Array) -> pa.Array:
    owners, _, _ = _parts(maps)
    nulls = maps.is_null().to_numpy(zero_copy_only=False)
    return pa.array(np.bincount(owners, minlength=len(maps)).astype(np.int32), mask=nulls)


def _json(maps: pa.Array) -> pa.Array:
    """Returns each map as an object of JSON. A key that is no text is written as one."""
    from sabot.engine.operators.expressions.json_values import values_as_json  # few programs have it

    _, keys, values = _parts(maps)
    names, texts = (values_as_json(each) for each in (keys.cast(pa.string()), values))
    pairs = _listed(maps, _parts(maps)[0], pc.binary_join_element_wise(names, texts, ":"))
    return pc.binary_join_element_wise("{", pc.binary_join(pairs, ","), "}", "").fill_null("null")


def _joined(keys: pa.Array, values: pa.Array) -> pa.Array:
    sizes = [pc.list_value_length(each) for each in (keys, values)]
    if pc.any(pc.not_equal(*sizes)).as_py():
        raise pa.ArrowInvalid("a map needs as many values as keys")
    nulls = pc.or_(keys.is_null(), values.is_null()).to_numpy(zero_copy_only=False)
    kept = [each.filter(pa.array(~nulls)) for each in (keys, values)]
    owners = np.flatnonzero(~nulls)[owners_of(kept[0])]
    return _made(owners, kept[0].flatten(), kept[1].flatten(), len(keys), nulls if nulls.any() else None)


def _of_entries(lists: pa.Array) -> pa.Array:
    """Returns lists of pairs, rows of a key and a value, as maps. Pairs without a key are left out."""
    owners, pairs = owners_of(lists), lists.flatten()
    keys, values = (pc.struct_field(pairs, [i]) for i in (0, 1))
    there = np.asarray(keys.is_valid())
    nulls = np.asarray(lists.is_null()) if lists.null_count else None
    return _made(owners[there], keys.filter(pa.array(there)), values.filter(pa.array(there)), len(lists), nulls)


def _split(texts: pa.Array, between: str, within: str) -> pa.Array:
    """Splits texts "a=1,b=2" into pairs, and these into key and value; a pair without a value has NULL. As in Java, empty
    pairs at the end are left out.
    """
    pairs = pc.split_pattern_regex(texts, between)
    owners, whole = owners_of(pairs), pairs.flatten()
    full = np.flatnonzero(pc.not_equal(whole, "").to_numpy(zero_copy_only=False))
    last = np.full(len(texts), -1, np.int64)
    last[owners[full]] = full
    first = np.searchsorted(owners, np.arange(len(texts)))
    places = np.arange(len(owners))
    alone = pc.equal(texts, "").fill_null(False).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero((places <= last[owners]) | (alone[owners] & (places == first[owners])))
    parts = pc.split_pattern_regex(whole.take(pa.array(chosen)), within, max_splits=1)
    starts = integers(parts.offsets)[:-1] if len(parts) else np.zeros(0, np.int64)
    two = pc.list_value_length(parts).to_numpy() > 1 if len(parts) else np.zeros(0, bool)
    values = parts.values.take(pa.array(starts.astype(np.int64) + 1, mask=~two))
    keys = parts.values.take(pa.array(starts.astype(np.int64)))
    nulls = texts.is_null().to_numpy(zero_copy_only=False) if texts.null_count else None
    return _made(owners[chosen], keys, values, len(texts), nulls)


STEPS: Steps = {
    "map.of": _of,
    "map.from_arrays": _from_arrays,
    "map.from_entries": _from_entries,
    "map.from_text": _from_text,
}
STEPS |= {f"map.{kind}": _step for kind in ("get", "keys", "values", "entries", "len", "json")}
