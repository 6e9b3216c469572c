"""Exact sums and means of decimals in accumulators of fixed width: sums of parts of 32 bits, which do not wrap."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import sum_overflow
from sabot.arrays import decimal_words
from sabot.errors import DataError

_LOW = np.int64(0xFFFFFFFF)
_EXACT = 2**53  # integers up to it are floats without rounding
_SHORT = 18  # digits that fit into 64 bits


class SumOverflow(DataError):
    """A sum that its type cannot hold. place: which one, by the number of its row or slot, as its raiser says; -1: unknown. Who knows the
    keys says that of the sum (`named_by`).
    """

    def __init__(self, message: str, hint: str, place: int) -> None:
        super().__init__(message, hint=hint)
        self.place = place


def decimal_overflow(what: str, kind: pa.DataType, place: int) -> SumOverflow:
    """The error for a sum of decimals that `kind`, the widest of its width, cannot hold."""
    wider = f'.cast("decimal(76, {kind.scale})"), or ' if kind.bit_width <= 128 else "a smaller scale, or "
    return SumOverflow(f"{what} is more than {kind} holds", f'sum a wider type: {wider}.cast("float64")', place)


@contextmanager
def named_by(keys_of: Callable[[int], pa.RecordBatch]) -> Iterator[None]:
    """A SumOverflow inside becomes one that names the key. keys_of: place -> the key's columns, of one row."""
    try:
        yield
    except SumOverflow as error:
        if error.place < 0:
            raise
        named = sum_overflow(error.message, keys_of(error.place))
        raise SumOverflow(named.message, error.hint, error.place if named.message == error.message else -1) from error


def sum_type(kind: pa.DataType) -> pa.DataType:
    """The type of a sum of decimals: as many digits as their width has."""
    return pa.decimal256(76, kind.scale) if pa.types.is_decimal256(kind) else pa.decimal128(38, kind.scale)


def part_count(kind: pa.DataType) -> int:
    """How many parts the decimals of a type have."""
    return 2 if kind.precision <= _SHORT else max(kind.bit_width, 128) // 32


def part_of(values: pa.Array, place: int, count: int) -> pa.Int64Array:
    """The unscaled values' part of 32 bits at this place of `count`, the least significant at 0; the last has the sign. Null stays null."""
    kind = values.type
    words = decimal_words(values if kind.bit_width >= 128 else values.cast(pa.decimal128(kind.precision, kind.scale)))
    mask = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    part = words[:, place // 2]
    part = part if place % 2 == 0 else part >> 32
    return pa.array(part if place == count - 1 else part & _LOW, mask=mask)


def word_count(kind: pa.DataType) -> int:
    """How many words of 64 bits the unscaled values of a type need."""
    return 1 if kind.precision <= _SHORT else max(kind.bit_width, 128) // 64


def word_of(values: pa.Array, place: int) -> pa.Int64Array:
    """The unscaled values' word of 64 bits at this place, the least significant at 0. Null stays null."""
    kind = values.type
    words = decimal_words(values if kind.bit_width >= 128 else values.cast(pa.decimal128(kind.precision, kind.scale)))
    mask = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    return pa.array(np.ascontiguousarray(words[:, place]), mask=mask)


def decimals_of(words: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """The decimals whose words these are, all `word_count` of them."""
    wide = kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    count, first = wide.bit_width // 64, words[0]
    columns = [word.fill_null(0).to_numpy() for word in words]
    columns += [columns[-1] >> 63] * (count - len(columns))
    valid = pa.py_buffer(np.packbits(first.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(np.stack(columns, axis=1)))
    made = pa.Array.from_buffers(wide, len(first), [valid, data])
    return made if wide is kind else made.cast(kind)


def too_wide(kind: str, type: pa.DataType | None) -> str:
    """The hint where `kind` over a column of this type has no result after each row, and would have one of fewer digits; else ""."""
    if type is None or kind not in ("min", "max") or not pa.types.is_decimal(type):
        return ""
    return (
        f'{kind} of decimals of up to {_SHORT} digits has one: .cast("decimal({_SHORT}, {min(type.scale, _SHORT)})"); '
        "or group_by(…).aggregate(…), or a window: they keep all decimals"
    )


def decimal_sums(counts: pa.Array, sums: Sequence[pa.Array], kind: pa.DataType, what: str) -> pa.Array:
    """The sum of each group as decimals of `kind`, which is as wide as the parts; null where nothing was counted. sums: of each part.

    Raises DataError for a sum that has more digits; what: the name of it.
    """
    n = counts.fill_null(0).to_numpy()
    parts = _with_carry(sums)
    signs = parts[-1] >> 31
    words = np.stack([(high << 32) | low for low, high in zip(parts[::2], parts[1::2], strict=True)], axis=1)
    valid = None if (n > 0).all() else pa.py_buffer(np.packbits(n > 0, bitorder="little"))
    made = pa.Array.from_buffers(kind, len(n), [valid, pa.py_buffer(np.ascontiguousarray(words))])
    wide = (signs != 0) & (signs != -1)
    try:
        if wide.any():
            raise pa.ArrowInvalid("more bits than the type has")
        made.validate(full=True)
    except pa.ArrowInvalid as error:
        raise decimal_overflow(what, kind, _first_invalid(made, wide)) from error
    return made


def decimal_means(counts: pa.Array, sums: Sequence[pa.Array], scale: int) -> pa.DoubleArray:
    """The mean of each group: the nearest float to the exact one; null where nothing was counted. sums: of each part."""
    n = counts.fill_null(0).to_numpy()
    parts = _with_carry(sums)
    below = np.ones(len(n), bool)  # the parts above 64 bits are those of a small negative number
    above = np.ones(len(n), bool)  # they are 0
    for place, part in enumerate(parts[2:], 2):
        below &= part == (_LOW if place < len(parts) - 1 else -1)
        above &= part == 0
    high = parts[1] if len(parts) == 2 else np.where(below, parts[1] - 2**32, parts[1])
    short = (below | above) & (high >= -(2**20)) & (high < 2**20)
    made = np.zeros(len(n))
    most = _EXACT // 10**scale if scale >= 0 else 0
    short &= (n > 0) & (n <= most)
    if short.any():  # both numbers are exact floats: one division rounds once
        made[short] = ((high[short] << 32) + parts[0][short]) / (n[short] * np.int64(10**scale))
    for row in np.flatnonzero(~short & (n > 0)).tolist():
        total = sum(int(part[row]) << 32 * place for place, part in enumerate(parts))
        made[row] = total * 10 ** max(-scale, 0) / (int(n[row]) * 10 ** max(scale, 0))
    return pa.array(made, mask=n <= 0)


def _first_invalid(made: pa.Array, wide: Any) -> int:
    """The first row that has more digits than its type, or for which `wide` is true."""
    for row in range(len(made)):
        try:
            made.slice(row, 1).validate(full=True)
        except pa.ArrowInvalid:
            return row
        if wide[row]:
            return row
    return -1


def _with_carry(sums: Sequence[pa.Array]) -> list[Any]:
    """The parts with what is above 32 bits carried into the next one; the last keeps it."""
    parts = [np.array(each.fill_null(0).to_numpy()) for each in sums]
    for place in range(len(parts) - 1):
        parts[place + 1] += parts[place] >> 32
        parts[place] &= _LOW
    return parts
