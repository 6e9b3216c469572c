"""Compares the old and new rows of keys, and weaves them into one batch of changes."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import normalise
from sabot._cython.groups.keyed import GroupTable
from sabot._cython.rows.changes import weave, woven
from sabot.engine.operators.base import OP_COLUMN, TIME_COLUMN

Array: TypeAlias = pa.Array


def signs(ops: Array) -> Any:
    """Returns True for each op that removes a row, False for each that adds one (numpy bool). `ops`: the values of
    OP_COLUMN.
    """
    return (ops.to_numpy() & 1).astype(bool)


def same_rows(data: pa.RecordBatch) -> Any:
    """Returns a number for each row (numpy int32), the same for rows that are equal in all columns but TIME_COLUMN
    and OP_COLUMN.
    """
    columns = [
        part
        for name, column in zip(data.schema.names, data.columns, strict=True)
        if name not in (TIME_COLUMN, OP_COLUMN)
        for part in _comparable(column)
    ]
    return _numbered(columns, data.num_rows)


def _numbered(columns: Sequence[Array], rows: int) -> Any:
    if not columns:
        return np.zeros(rows, np.int32)
    batch = pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])
    return GroupTable(batch.schema, []).resolve(batch, range(len(columns))).to_numpy()


def _comparable(column: Array) -> list[Array]:
    """Converts a column to columns of types that a table can have as keys. Two rows are equal in them if and only if
    they are equal in `column`.
    """
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _comparable(column.storage)
    types = pa.types
    if types.is_null(kind):
        return []
    if types.is_struct(kind):
        # where a struct is null, so are its children
        parts = [part for child in column.flatten() for part in _comparable(child)]
        return [column.is_valid(), *parts]
    if types.is_map(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_list_keys(column)]
    if types.is_decimal(kind) or types.is_interval(kind) or types.is_fixed_size_binary(kind):
        return [_fixed_keys(column)]
    if types.is_float16(kind):
        return [column.cast(pa.float32())]
    plain: Array = normalise(pa.RecordBatch.from_arrays([column], names=["c"])).column(0)
    return [plain] if plain.type == kind else _comparable(plain)


def _list_keys(column: Array) -> Array:
    """Converts lists to bytes: each value becomes its number among the distinct values."""
    counts = pc.list_value_length(column).fill_null(0).to_numpy() if not pa.types.is_map(column.type) else None
    if counts is None:
        column = column.cast(pa.list_(pa.struct([column.type.key_field, column.type.item_field])))
        counts = pc.list_value_length(column).fill_null(0).to_numpy()
    values = pc.list_flatten(column)
    numbers = _numbered(_comparable(values) or [pa.nulls(len(values), pa.bool_())], len(values)).astype(np.int32)
    return _bytes_of(numbers, np.concatenate([[0], np.cumsum(counts)]) * 4, column)


def _fixed_keys(column: Array) -> Array:
    width = column.type.bit_width // 8
    values = column.buffers()[1]
    data = np.frombuffer(values, np.uint8)[column.offset * width :] if values is not None else np.zeros(0, np.uint8)
    return _bytes_of(data, np.arange(len(column) + 1) * width, column)


def _bytes_of(data: Any, offsets: Any, like: Array) -> Array:
    """Returns binary values, null where `like` is null.

    `data`: the bytes of all values. `offsets`: where each value begins in `data`, and behind them the end of the
    last.
    """
    mask = like.is_null()
    ends = pa.py_buffer(offsets.astype(np.int32))
    values = pa.Array.from_buffers(pa.binary(), len(like), [None, ends, pa.py_buffer(np.ascontiguousarray(data))])
    return pc.if_else(mask, pa.scalar(None, pa.binary()), values) if like.null_count else values


# Changes of keys


class Weave:
    """The changes from the old rows of keys to their new rows: for key i an insert, an update pair, a delete, or
    nothing.

    `taken[i]`: True if the old row of key i is removed. `added[i]`: True if its new row is added. Both are numpy
    bool.
    """

    def __init__(self, taken: Any, added: Any) -> None:
        rows, choice, ops = weave(taken, added)
        self._ops = pa.array(ops)
        self._only_adds = len(rows) == len(added) and bool(added.all())
        self._rows, self._choice, self._places = pa.array(rows), pa.array(choice), choice

    def ops(self) -> Array:
        """Returns OP_COLUMN of the changes."""
        return self._ops

    def same(self, column: Array, rows: pa.Int32Array) -> Array:
        """Returns a column of the changes whose values are the same before and after, such as a key.

        `rows[i]`: the number of a row of `column` that has the value of key i.
        """
        return column.take(rows if self._only_adds else rows.take(self._rows))

    def woven(self, before: Array, after: Array) -> Array:
        """Returns a column of the changes: removed rows have the value from `before`, added rows the one from
        `after`. Both have one value for each key.
        """
        if self._only_adds:
            return after
        kind = before.type
        if _is_word(kind) and before.null_count == after.null_count == 0:
            words = woven(_words(before), _words(after), self._places)
            return pa.Array.from_buffers(kind, len(words), [None, pa.py_buffer(words)])
        return pa.concat_arrays([before, after]).take(self._choice)


def _is_word(kind: pa.DataType) -> bool:
    """Returns True if values of this type have 64 bits."""
    return bool(pa.types.is_primitive(kind) and kind.bit_width == 64)


def _words(column: Array) -> Any:
    values = column.buffers()[1]
    if not len(column) or values is None:
        return np.zeros(len(column), np.int64)
    return np.frombuffer(values, np.int64)[column.offset : column.offset + len(column)]


def differ(before: Sequence[Array], after: Sequence[Array]) -> Any:
    """Returns True for each row in which any column of `before` differs from that of `after` (numpy bool). Null
    equals null, NaN equals NaN, -0.0 equals 0.0.
    """
    result = np.zeros(len(before[0]) if before else 0, bool)
    for old, new in zip(before, after, strict=True):
        result |= _differ(old, new)
    return result


def _differ(old: Array, new: Array) -> Any:
    kind = old.type
    # pyarrow compares neither of these, nor intervals.
    if pa.types.is_nested(kind) or pa.types.is_interval(kind) or isinstance(kind, pa.BaseExtensionType):
        numbers = _numbered(_comparable(pa.concat_arrays([old, new])), 2 * len(old))
        return numbers[: len(old)] != numbers[len(old) :]
    if pa.types.is_null(kind):
        return np.zeros(len(old), bool)
    if pa.types.is_integer(kind) and not old.null_count and not new.null_count:
        return old.to_numpy() != new.to_numpy()
    if pa.types.is_float16(kind):  # pyarrow has no kernel for it
        old, new = (pc.cast(each, pa.float32()) for each in (old, new))
    unlike = pc.not_equal(old, new)
    if pa.types.is_floating(kind):
        unlike = pc.and_not(unlike, pc.and_(pc.is_nan(old), pc.is_nan(new)))
    if unlike.null_count:
        unlike = unlike.fill_null(True).to_numpy(zero_copy_only=False)
        both = pc.and_(old.is_null(), new.is_null())
        return unlike & ~both.to_numpy(zero_copy_only=False)
    return unlike.to_numpy(zero_copy_only=False)
