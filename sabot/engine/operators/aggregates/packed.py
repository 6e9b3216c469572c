"""Encodes values as bytes, and decodes them. `ordered` encodes each value as bytes that sort as the values do.
`packed` encodes a row of any columns as one byte string.

Equal values have equal bytes: -0.0 is encoded as 0.0, and every NaN alike, above all numbers. Text sorts by its
UTF-8. A row is encoded column by column; before each value, one byte says whether the value is null, and nulls sort
first. The bytes of lists can be compared for equality only.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.multiset import join_keys, split_keys
from sabot.base.arrays import integers

Array: TypeAlias = pa.Array
_Part: TypeAlias = tuple[Array, int]  # byte strings without nulls, and the length of each, or -1 if lengths differ

NAN = b"\xff\xf8\x00\x00\x00\x00\x00\x00"  # NaN as `ordered` encodes it
_SIGN = np.uint64(1 << 63)


def ordered_width(kind: pa.DataType) -> int:
    """Returns the number of bytes in which `ordered` encodes a value of this type, or -1 if values differ in length."""
    types = pa.types
    if types.is_string(kind) or types.is_binary(kind):
        return -1
    if types.is_floating(kind):
        return 8
    return 1 if types.is_boolean(kind) else int(kind.bit_width) // 8


def ordered(column: Array) -> Array:
    """Returns each value encoded as bytes that sort as the values do (binary, without nulls). A null has arbitrary
    bytes. Nested types are not supported.
    """
    kind = column.type
    width = ordered_width(kind)
    if width < 0:
        return pc.fill_null(column.cast(pa.binary()), b"")
    cells = _cells(column, width)
    if column.null_count:
        cells[column.is_null().to_numpy(zero_copy_only=False)] = 0
    return _of_cells(cells)


def has_words(kind: pa.DataType) -> bool:
    """Returns True if `words` supports columns of this type: numbers, bools and times."""
    types = pa.types
    timed = types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind) or types.is_duration(kind)
    return bool(timed or types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind))


def words(column: Array) -> Any:
    """Returns each value as a number of 64 bits (numpy uint64) that sorts as the value does. A null has an arbitrary
    number.
    """
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint64)
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64()).fill_null(0.0).to_numpy() + 0.0
        values[np.isnan(values)] = np.nan
        bits = values.view(np.uint64)
        return np.where(bits & _SIGN, ~bits, bits | _SIGN)
    numbers = integers(column)
    if pa.types.is_unsigned_integer(kind):
        return numbers.astype(np.uint64)
    width = kind.bit_width
    return numbers.astype(np.int64).view(np.uint64) + np.uint64(1 << (width - 1)) & np.uint64((1 << width) - 1)


def from_ordered(values: Array, kind: pa.DataType) -> Array:
    """Decodes the result of `ordered` to a column of type `kind`. `values`: large binary, with null for a null."""
    width = ordered_width(kind)
    if width < 0:
        return values.cast(kind)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    cells = np.zeros((len(values), width), np.uint8)
    cells[~missing] = _data(values).reshape(-1, width)
    return _column(cells, kind, missing if missing.any() else None)


def packed(columns: Sequence[Array], rows: int) -> Array:
    """Returns each row of the columns, encoded as bytes (large binary). `rows`: the number of rows."""
    parts = [part for column in columns for part in _parts(column)]
    if not parts:
        return pa.array([b""] * rows, pa.large_binary())
    return join_keys([part for part, _ in parts], [width for _, width in parts])


def unpacked(rows: Array, kinds: Sequence[pa.DataType]) -> list[Array]:
    """Decodes rows that `packed` has encoded, to columns of these types. Where `rows` is null, all columns are null."""
    widths = [width for kind in kinds for width in _widths(kind)]
    missing = rows.is_null()
    absent = bool(rows.null_count)
    there = rows.drop_null() if absent else rows
    parts = iter(split_keys(there, widths) if widths else [])
    columns = [_from_parts(kind, parts, len(there)) for kind in kinds]
    if absent:
        places = np.cumsum(~missing.to_numpy(zero_copy_only=False)) - 1
        index = pa.array(places, mask=missing.to_numpy(zero_copy_only=False))
        columns = [column.take(index) for column in columns]
    return columns


# The parts of a column: the byte strings that `join_keys` puts together


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_map(kind) or types.is_fixed_size_list(kind))


def _item(kind: pa.DataType) -> pa.DataType:
    return pa.struct([kind.key_field, kind.item_field]) if pa.types.is_map(kind) else kind.value_type


def _widths(kind: pa.DataType) -> list[int]:
    if isinstance(kind, pa.BaseExtensionType):
        return _widths(kind.storage_type)
    if pa.types.is_null(kind):
        return []
    if pa.types.is_struct(kind):
        return [1, *(width for field in kind for width in _widths(field.type))]
    if _is_list(kind):
        return [1, -1, -1]
    return [1, ordered_width(kind)]


def _parts(column: Array) -> list[_Part]:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _parts(column.storage)
    if pa.types.is_null(kind):
        return []
    there = _of_cells(column.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8).reshape(-1, 1))
    if pa.types.is_struct(kind):
        return [(there, 1), *(part for child in column.flatten() for part in _parts(child))]
    if _is_list(kind):
        return [(there, 1), *((part, -1) for part in _list_parts(column))]
    return [(there, 1), (ordered(column), ordered_width(kind))]


def _list_parts(column: Array) -> list[Array]:
    """Returns two byte strings for each list: the lengths of its values' bytes (int32), and these bytes end to end."""
    if not pa.types.is_list(column.type):
        column = column.cast(pa.list_(_item(column.type)))
    sizes = pc.list_value_length(column).fill_null(0).to_numpy()
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    values = pc.list_flatten(column)
    keys = packed([values], len(values))
    ends = _offsets(keys)
    lengths = np.diff(ends).astype(np.int32)
    return [_large(bounds * 4, lengths), _large(ends[bounds] - ends[0], _data(keys))]


def _from_parts(kind: pa.DataType, parts: Iterator[Array], rows: int) -> Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _from_parts(kind.storage_type, parts, rows))
    if pa.types.is_null(kind):
        return pa.nulls(rows)
    missing = _data(next(parts)) == 0
    mask = pa.array(missing) if missing.any() else None
    if pa.types.is_struct(kind):
        children = [_from_parts(field.type, parts, rows) for field in kind]
        if not children:
            return pa.array([None if gone else {} for gone in missing.tolist()], kind)
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)
    if _is_list(kind):
        return _list_column(kind, next(parts), next(parts), missing)
    column = from_ordered(next(parts), kind)
    return column if mask is None else pc.if_else(mask, pa.scalar(None, kind), column)


def _list_column(kind: pa.DataType, lengths: Array, data: Array, missing: Any) -> Array:
    ends = np.concatenate([[0], np.cumsum(_data(lengths).view(np.int32))])
    values = unpacked(_large(ends, _data(data)), [_item(kind)])[0]
    sizes = np.diff(_offsets(lengths)) // 4
    if pa.types.is_fixed_size_list(kind) and missing.any():  # a null of this type has values, too
        index = np.full((len(missing), kind.list_size), -1)
        index[~missing] = np.arange(len(values)).reshape(-1, kind.list_size)
        values = values.take(pa.array(index.reshape(-1), mask=index.reshape(-1) < 0))
    bounds = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    mask = pa.array(missing) if missing.any() else None
    if pa.types.is_map(kind):
        keys, items = (values.field(0), values.field(1)) if len(values) else values.flatten()
        return pa.MapArray.from_arrays(bounds, keys, items, type=kind, mask=mask)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)
    return pa.ListArray.from_arrays(bounds, values, type=kind, mask=mask)


# Cells: the bytes of values of one width, as a matrix with a row for each value


def _cells(column: Array, width: int) -> Any:
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_floating(kind):
        return _big_endian(words(column))[:, 8 - width :]
    if not len(column) or column.buffers()[1] is None:
        return np.zeros((len(column), width), np.uint8)
    start = column.offset * width
    raw = np.frombuffer(column.buffers()[1], np.uint8)[start : start + len(column) * width].reshape(-1, width)
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_interval(kind):
        return raw.copy()
    cells = raw[:, ::-1].copy()
    if not pa.types.is_unsigned_integer(kind):
        cells[:, 0] ^= 0x80
    return cells


def _column(cells: Any, kind: pa.DataType, missing: Any) -> Array:
    validity = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    rows = len(cells)
    if pa.types.is_boolean(kind):
        values = np.packbits(cells[:, 0], bitorder="little")
    elif pa.types.is_floating(kind):
        bits = np.ascontiguousarray(cells[:, ::-1]).reshape(-1).view(np.uint64)
        reals = np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float64)
        values = reals.astype(kind.to_pandas_dtype())
    elif pa.types.is_fixed_size_binary(kind) or pa.types.is_interval(kind):
        values = cells
    else:
        if not pa.types.is_unsigned_integer(kind):
            cells[:, 0] ^= 0x80
        values = cells[:, ::-1]
    return pa.Array.from_buffers(kind, rows, [validity, pa.py_buffer(np.ascontiguousarray(values))])


def _big_endian(words: Any) -> Any:
    return words.astype(">u8").view(np.uint8).reshape(-1, 8)


# Byte strings


def _of_cells(cells: Any) -> Array:
    rows, width = cells.shape
    return _large(np.arange(rows + 1) * width, np.ascontiguousarray(cells))


def _large(offsets: Any, data: Any) -> Array:
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _offsets(values: Array) -> Any:
    if not len(values):
        return np.zeros(1, np.int64)
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    return np.frombuffer(values.buffers()[1], kind)[values.offset : values.offset + len(values) + 1]


def _data(values: Array) -> Any:
    """Returns all bytes of the values, end to end (numpy). A null has none."""
    ends = _offsets(values)
    data = values.buffers()[2]
    return np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
