"""Every kernel on every way in which the same rows can lie in Arrow memory, against a naive twin in plain Python.

The story: kernels written against whole, fresh arrays read the wrong rows of sliced ones (parent and child offsets, validity and
bool bits too), and crash on absent validity, on null_count -1 and on empty arrays without buffers.

A new kernel is one line in KERNELS: its name, the kernel, its twin (a function of the list of values), and the types it takes.
"""

import ctypes
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sabot._cython.arrow.batch import Batch, normalise
from sabot._cython.arrow.gather import gathered
from sabot._cython.arrow.selection import select_rows
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.groups.partition import KEY_GROUPS, hash_array, hash_columns, key_hash, partition_indices
from sabot._cython.rows.row_table import RowTable
from sabot._cython.text.json import encode_rows
from sabot._cython.text.records import binary_array, bytes_list, decode_values, encode_keys, encode_values

pack = msgspec.msgpack.encode

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    pa.bool_(): st.booleans(),
    pa.int8(): st.integers(-(2**7), 2**7 - 1),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 2**8 - 1),
    pa.uint16(): st.integers(0, 2**16 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.string(): TEXTS,
    pa.binary(): st.binary(max_size=20),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.null(): st.none(),
    pa.list_(pa.string()): st.lists(st.none() | TEXTS, max_size=3),
    pa.struct([("a", pa.int64()), ("b", pa.string())]): st.fixed_dictionaries(
        {"a": st.none() | st.integers(-5, 5), "b": st.none() | TEXTS}
    ),
}

SCALARS = [kind for kind in VALUES if not pa.types.is_nested(kind)]
KEYS = [kind for kind in SCALARS if kind != pa.null()]
BYTES = [pa.string(), pa.binary(), pa.binary(3)]
EXACT = [pa.bool_(), pa.int8(), pa.int64(), pa.uint64(), pa.string(), pa.list_(pa.string()), list(VALUES)[-1]]
HASHES = [pa.uint64()]
GROUPS = [kind for kind in KEYS if kind != pa.binary(3)]
NUMBERS = [kind for kind in GROUPS if kind not in BYTES]


def _key(value: Any) -> bytes:
    """msgpack of a key: equal floats written alike."""
    if isinstance(value, float):
        value = 0.0 if value == 0 else math.nan if math.isnan(value) else value
    return pack(value)


def _with_group(key: bytes) -> bytes:
    return (key_hash(key) % KEY_GROUPS).to_bytes(2, "big") + key


def _naive_partition(hashes: list[int], parts: int = 3) -> tuple[list[int], list[int]]:
    part = [value % KEY_GROUPS * parts // KEY_GROUPS for value in hashes]
    order = sorted(range(len(part)), key=part.__getitem__)
    return order, [sum(p < bound for p in part) for bound in range(parts + 1)]


def _rows(column: Any) -> pa.RecordBatch:
    """The column as the foreign batch that a border would get."""
    if isinstance(column, NoBuffers):
        return normalise(NoBuffers(pa.array([], pa.struct([("c", column.array.type)]))))
    return normalise(pa.table({"c": column if isinstance(column, pa.ChunkedArray) else pa.array(column)}))


def _grouped(column: Any) -> list[Any]:
    """Each row's key as its group gives it back, and how many rows the group has, nulls left out."""
    rows = _rows(column)
    table = GroupTable(rows.schema, [("count", rows.schema[0].type)])
    return [x.to_pylist() for x in table.finish(table.update(rows, [0], [0], want_slots=True))]


def _naive_grouped(values: list[Any]) -> list[Any]:
    keys = [0.0 if x == 0 and isinstance(x, float) else x for x in values]
    return [keys, [0 if x is None else sum(_same(x, y) for y in keys) for x in keys]]


def _extremes(column: Any) -> list[Any]:
    """first, last, min and max of all rows, before and after the state of the table went through another one."""
    rows = _rows(column)
    results = []
    table = GroupTable(pa.schema([]), [(kind, rows.schema[0].type) for kind in ("first", "last", "min", "max")])
    table.update(rows, [], [0, 0, 0, 0])
    for _ in range(2):
        results.append([x[0].as_py() for x in table.finish()] if len(table) else [])
        state = table.export()
        table = GroupTable(table.keys, [(kind, rows.schema[0].type) for kind in ("first", "last", "min", "max")])
        table.merge(state)
    return results


def _naive_extremes(values: list[Any]) -> list[Any]:
    some = [x for x in values if x is not None]
    numbers = [x for x in some if x == x] or some
    results = [values[0], values[-1], min(numbers, default=None), max(numbers, default=None)] if values else []
    return [results, results]


def _kept(column: Any) -> list[Any]:
    """The rows as a table gives them back, put in as they are and backwards; and which rows it finds when it is asked for these."""
    rows = _rows(column)
    table = RowTable(rows.schema, [])
    ids = table.insert(rows)
    found = table.match(rows).to_pylist()
    backwards = pa.array(range(rows.num_rows)[::-1], pa.int32())
    others = table.insert(rows, selection=backwards)
    return [*[table.take(x).column(0).to_pylist() for x in (ids, others, ids.slice(len(ids) // 2))], found]


def _naive_kept(values: list[Any]) -> list[Any]:
    return [values, values[::-1], values[len(values) // 2 :], list(range(len(values)))]


def _found(column: Any) -> list[Any]:
    """For each row, the rows with its key; of those the ones that came no later."""
    rows = _rows(column)
    table = RowTable(rows.schema, [rows.schema.names[0]])
    numbers = pa.array(range(rows.num_rows), pa.int64())
    table.insert(rows, numbers)
    all_pairs, some = table.find(rows, [0]), table.find(rows, [0], upper=numbers)
    return [list(zip(*[x.to_pylist() for x in pairs], strict=True)) for pairs in (all_pairs, some)]


def _naive_found(values: list[Any]) -> list[Any]:
    pairs = [(i, j) for i, x in enumerate(values) for j, y in enumerate(values) if x is not None and _same(x, y)]
    return [pairs, [(i, j) for i, j in pairs if j <= i]]


def _gathered(column: Any) -> list[Any]:
    """The rows as they are, behind them the same ones backwards."""
    whole = Batch(_rows(column))
    backwards = whole.with_selection(pa.array(range(whole.num_rows)[::-1], pa.int32()))
    rows, _ = gathered([whole, backwards])
    rows.validate(full=True)
    return rows.column(0).to_pylist()


def _as_bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what it must give for the list of values that its argument holds."""

    name: str
    run: Callable[[Any], Any]
    twin: Callable[[list[Any]], Any]
    kinds: list[pa.DataType]
    nulls: bool = True


# fmt: off
KERNELS = [
    Kernel("hash_array", lambda c: hash_array(c).to_pylist(), lambda v: [key_hash(_key(x)) for x in v], SCALARS),
    Kernel("encode_keys", encode_keys, lambda v: [_with_group(_key(x)) for x in v], KEYS, nulls=False),
    Kernel("encode_values", encode_values, lambda v: [None if x is None else pack(x) for x in v], list(VALUES)),
    Kernel("decode_values", lambda c: decode_values(encode_values(c)).to_pylist(), list, EXACT),
    Kernel("bytes_list", bytes_list, lambda v: [_as_bytes(x) for x in v], BYTES),
    Kernel("binary_array", lambda c: binary_array(bytes_list(c)).to_pylist(), lambda v: [_as_bytes(x) for x in v], BYTES),
    Kernel("partition_indices", lambda c: tuple(x.to_pylist() for x in partition_indices(c, 3)), _naive_partition, HASHES, nulls=False),
    Kernel("normalise", lambda c: _rows(c).column(0).to_pylist(), list, list(VALUES)),
    Kernel("Batch", lambda c: Batch(_rows(c)).slice(1 if len(c) else 0).data.column(0).to_pylist(), lambda v: v[1:], list(VALUES)),
    Kernel("hash_columns", lambda c: hash_columns([c]).to_pylist(), lambda v: [key_hash(_key(x)) for x in v], SCALARS),
    Kernel("gathered", _gathered, lambda v: [*v, *v[::-1]], list(VALUES)),
    Kernel("select_rows", lambda c: select_rows(c).to_pylist(), lambda v: [i for i, x in enumerate(v) if x], [pa.bool_()]),
    Kernel("GroupTable.keys", _grouped, _naive_grouped, GROUPS),
    Kernel("GroupTable.values", _extremes, _naive_extremes, NUMBERS),
    Kernel("RowTable.rows", _kept, _naive_kept, list(VALUES)),
    Kernel("RowTable.keys", _found, _naive_found, GROUPS),
    Kernel("encode_rows", lambda c: [json.loads(x) for x in encode_rows(_rows(c)).to_pylist()], lambda v: [{"c": x} for x in v], EXACT),
]
# fmt: on


class Capsule:
    """An array of some other library: its capsules and nothing else."""

    def __init__(self, array: pa.Array) -> None:
        self.array = array

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        return self.array.__arrow_c_array__(requested_schema)

    def __len__(self) -> int:
        return len(self.array)


class NoBuffers(Capsule):
    """An empty array whose buffers are null pointers."""

    def __arrow_c_array__(self, requested_schema: object = None) -> Any:
        schema, array = self.array.__arrow_c_array__(requested_schema)
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # struct ArrowArray: length, null_count, offset, n_buffers, n_children, buffers, ...
        fields = (ctypes.c_int64 * 6).from_address(pointer(array, b"arrow_array"))
        buffers = (ctypes.c_void_p * fields[3]).from_address(fields[5])
        for i in range(fields[3]):
            buffers[i] = None
        return schema, array


def _fresh(array: pa.Array) -> Any:
    return array


def _nulls_not_counted(array: pa.Array) -> Any:
    """null_count -1; the buffers as they are."""
    if pa.types.is_nested(array.type) or pa.types.is_null(array.type):
        return array.slice(0)
    return pa.Array.from_buffers(array.type, len(array), array.buffers(), -1, array.offset)


def _no_buffers(array: pa.Array) -> Any:
    """An empty array of some other library may have null pointers for all its buffers."""
    return NoBuffers(pa.array([], array.type)) if len(array) == 0 else array


def _child_of_a_struct(array: pa.Array) -> Any:
    """A column of a sliced struct array, taken through the struct's capsule: parent and child offsets add up."""
    padded = pa.concat_arrays([pa.nulls(3, array.type), array])
    struct = pa.StructArray.from_arrays([padded.slice(1)], names=["c"])  # child offset 1
    return Batch(Capsule(struct.slice(2))).data.column(0)  # and parent offset 2


def _capsule(array: pa.Array) -> Any:
    return Capsule(array)


def _two_chunks(array: pa.Array) -> Any:
    return pa.chunked_array([array.slice(0, len(array) // 2), array.slice(len(array) // 2)], array.type)


def _no_chunks(array: pa.Array) -> Any:
    return array if len(array) else pa.chunked_array([], array.type)


def _large(array: pa.Array) -> Any:
    large = {
        pa.string(): pa.large_string(),
        pa.binary(): pa.large_binary(),
        pa.list_(pa.string()): pa.large_list(pa.large_string()),
    }
    return array.cast(large.get(array.type, array.type))


def _view(array: pa.Array) -> Any:
    if pa.types.is_list(array.type):
        return pa.array(array.to_pylist(), pa.list_view(pa.string_view()))
    return array.cast({pa.string(): pa.string_view(), pa.binary(): pa.binary_view()}.get(array.type, array.type))


def _view_capsule(array: pa.Array) -> Any:
    """As polars hands out strings."""
    return Capsule(_view(array))


def _dictionary(array: pa.Array) -> Any:
    return array if pa.types.is_nested(array.type) or pa.types.is_null(array.type) else array.dictionary_encode()


def _run_ends(array: pa.Array) -> Any:
    return array if pa.types.is_nested(array.type) or pa.types.is_null(array.type) else pc.run_end_encode(array)


LAYOUTS = [
    _fresh,
    _nulls_not_counted,
    _no_buffers,
    _child_of_a_struct,
    _capsule,
    _two_chunks,
    _no_chunks,
    _large,
    _view,
    _view_capsule,
    _dictionary,
    _run_ends,
]


def test_the_fuzz_reaches_what_it_is_for():
    """The layouts really have the properties that kernels trip over."""
    array = pa.array([1, None, 3, 4]).slice(1, 2)
    raw = _nulls_not_counted(array)
    assert (raw.offset, raw.to_pylist()) == (1, [None, 3])
    child = _child_of_a_struct(pa.array(["a", None, "b"]))
    assert (child.offset, child.to_pylist()) == (3, ["a", None, "b"])
    assert pa.types.is_run_end_encoded(_run_ends(pa.array([1, 1])).type)


@pytest.mark.one_in(12, "a tenth of a second of a core each")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_kernel_reads_the_rows_that_are_meant(kernel: Kernel, data: st.DataObject):
    kind = data.draw(st.sampled_from(kernel.kinds))
    cell = st.none() | VALUES[kind] if kernel.nulls else VALUES[kind]
    values = data.draw(st.lists(cell, max_size=20))
    hidden = data.draw(st.lists(st.none() | VALUES[kind], max_size=11))  # rows before and after, sliced away
    before = data.draw(st.integers(0, len(hidden)))
    layout = data.draw(st.sampled_from(LAYOUTS))
    slice_last = data.draw(st.booleans())  # the foreign array itself is the slice

    whole = pa.array(hidden[:before] + values + hidden[before:], kind)
    if slice_last and layout not in (_no_buffers, _child_of_a_struct, _capsule, _view_capsule):
        column = layout(whole).slice(before, len(values))
    else:
        column = layout(whole.slice(before, len(values)))
    expected = whole.slice(before, len(values)).to_pylist()  # float32 rounds
    assert _same(kernel.run(column), kernel.twin(expected))


def _same(one: Any, other: Any) -> bool:
    """Equal, NaN to NaN."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other
