"""Exact sums and means of decimals in accumulators of fixed width. Unscaled values are cut into parts of 32 bits,
whose sums do not wrap.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from sabot._cython.groups.keyed import sum_overflow
from sabot.base.arrays import decimal_words
from sabot.errors import DataError

_LOW = np.int64(0xFFFFFFFF)
_EXACT = 2**53  # floats represent all integers up to this one exactly
_SHORT = 18  # decimals of up to 18 digits fit into 64 bits


class SumOverflow(DataError):
    """The error for a sum that does not fit its type.

    `place`: the index of the sum's row or slot, or -1 if it is unknown. A caller that knows the keys adds the key of
    this row to the message (`named_by`).
    """

    def __init__(self, message: str, hint: str, place: int) -> None:
        super().__init__(message, hint=hint)
        self.place = place


def decimal_overflow(what: str, kind: pa.DataType, place: int) -> SumOverflow:
    """Returns the error for a sum of decimals that does not fit `kind`, the sum's type.

    `what`: the name of the sum. `place`: as in SumOverflow.
    """
    wider = f'.cast("decimal(76, {kind.scale})"), or ' if kind.bit_width <= 128 else "a smaller scale, or "
    return SumOverflow(f"{what} is more than {kind} holds", f'sum a wider type: {wider}.cast("float64")', place)


@contextmanager
def named_by(keys_of: Callable[[int], pa.RecordBatch]) -> Iterator[None]:
    """Adds the key of the group to the message of a SumOverflow that the block of this context manager raises.

    `keys_of`: returns the key columns, as one row, for the `place` of the error. An error whose `place` is -1 is
    raised unchanged.
    """
    try:
        yield
    except SumOverflow as error:
        if error.place < 0:
            raise
        named = sum_overflow(error.message, keys_of(error.place))
        raise SumOverflow(named.message, error.hint, error.place if named.message == error.message else -1) from error


def sum_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of a sum of decimals: the most digits that the width of `kind` allows (38 or 76)."""
    return pa.decimal256(76, kind.scale) if pa.types.is_decimal256(kind) else pa.decimal128(38, kind.scale)


def part_count(kind: pa.DataType) -> int:
    """Returns the number of 32-bit parts that decimals of a type have."""
    return 2 if kind.precision <= _SHORT else max(kind.bit_width, 128) // 32


def part_of(values: pa.Array, place: int, count: int) -> pa.Int64Array:
    """Returns the 32 bits at `place` of each unscaled value; place 0 is the least significant. The last of `count`
    parts has the sign. A null stays null.
    """
    kind = values.type
    words = decimal_words(values if kind.bit_width >= 128 else values.cast(pa.decimal128(kind.precision, kind.scale)))
    mask = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    part = words[:, place // 2]
    part = part if place % 2 == 0 else part >> 32
    return pa.array(part if place == count - 1 else part & _LOW, mask=mask)


def word_count(kind: pa.DataType) -> int:
    """Returns the number of 64-bit words that the unscaled values of a type need."""
    return 1 if kind.precision <= _SHORT else max(kind.bit_width, 128) // 64


def word_of(values: pa.Array, place: int) -> pa.Int64Array:
    """Returns the 64-bit word at `place` of each unscaled value; place 0 is the least significant. A null stays null."""
    kind = values.type
    words = decimal_words(values if kind.bit_width >= 128 else values.cast(pa.decimal128(kind.precision, kind.scale)))
    mask = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
    return pa.array(np.ascontiguousarray(words[:, place]), mask=mask)


def decimals_of(words: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    """Returns the decimals that consist of these words. `words`: all `word_count` of them, from the least
    significant.
    """
    wide = kind if kind.bit_width >= 128 else pa.decimal128(kind.precision, kind.scale)
    count, first = wide.bit_width // 64, words[0]
    columns = [word.fill_null(0).to_numpy() for word in words]
    columns += [columns[-1] >> 63] * (count - len(columns))
    valid = pa.py_buffer(np.packbits(first.is_valid().to_numpy(zero_copy_only=False), bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(np.stack(columns, axis=1)))
    made = pa.Array.from_buffers(wide, len(first), [valid, data])
    return made if wide is kind else made.cast(kind)


def too_wide(kind: str, type: pa.DataType | None) -> str:
    """Returns the hint for a running min or max of decimals that is refused because its type has too many digits, or
    "" if the digits are not the reason.
    """
    if type is None or kind not in ("min", "max") or not pa.types.is_decimal(type):
        return ""
    return (
        f'{kind} of decimals of up to {_SHORT} digits works: .cast("decimal({_SHORT}, {min(type.scale, _SHORT)})"); '
        "or group_by(…).aggregate(…), or a window, which accept all decimals"
    )


def decimal_sums(counts: pa.Array, sums: Sequence[pa.Array], kind: pa.DataType, what: str) -> pa.Array:
    """Returns the sum of each group as decimals of `kind`, or null where no value was counted. `kind` has 32 bits for
    each of the parts.

    `counts`: the number of values of each group. `sums`: the sums of each part. `what`: the name of the sum, for the
    message. Raises SumOverflow for a sum with too many digits.
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
    """Returns the mean of each group, rounded once to the nearest float, or null where no value was counted. `sums`:
    the sums of each part.
    """
    n = counts.fill_null(0).to_numpy()
    parts = _with_carry(sums)
    below = np.ones(len(n), bool)  # True: the parts above 64 bits only extend the sign of a negative number
    above = np.ones(len(n), bool)  # True: the parts above 64 bits are 0
    for place, part in enumerate(parts[2:], 2):
        below &= part == (_LOW if place < len(parts) - 1 else -1)
        above &= part == 0
    high = parts[1] if len(parts) == 2 else np.where(below, parts[1] - 2**32, parts[1])
    short = (below | above) & (high >= -(2**20)) & (high < 2**20)
    made = np.zeros(len(n))
    most = _EXACT // 10**scale if scale >= 0 else 0
    short &= (n > 0) & (n <= most)
    if short.any():  # both operands are exact floats, so the division rounds once
        made[short] = ((high[short] << 32) + parts[0][short]) / (n[short] * np.int64(10**scale))
    for row in np.flatnonzero(~short & (n > 0)).tolist():
        total = sum(int(part[row]) << 32 * place for place, part in enumerate(parts))
        made[row] = total * 10 ** max(-scale, 0) / (int(n[row]) * 10 ** max(scale, 0))
    return pa.array(made, mask=n <= 0)


def _first_invalid(made: pa.Array, wide: Any) -> int:
    """Returns the first row that has more digits than its type, or for which `wide` is true, or -1."""
    for row in range(len(made)):
        try:
            made.slice(row, 1).validate(full=True)
        except pa.ArrowInvalid:
            return row
        if wide[row]:
            return row
    return -1


def _with_carry(sums: Sequence[pa.Array]) -> list[Any]:
    """Returns the parts with all bits above the low 32 carried into the next part. The last part keeps its high bits."""
    parts = [np.array(each.fill_null(0).to_numpy()) for each in sums]
    for place in range(len(parts) - 1):
        parts[place + 1] += parts[place] >> 32
        parts[place] &= _LOW
    return parts
