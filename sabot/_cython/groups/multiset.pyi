"""State of aggregates over changes, by slot (0, 1, …), from which added values can be removed again. Each store has
one owner thread.

Values are byte strings, ordered bytewise: binary or large binary without nulls. `takes` (numpy bool): for each row,
True to remove its value instead of adding it. A slot that was never used is empty. `save` returns a state for each
slot. `load` adds states to the contents of slots, and raises ValueError for bytes that are not a state. A slot below
0 raises IndexError.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def join_keys(parts: Sequence[pa.Array[Any]], widths: Sequence[int]) -> pa.LargeBinaryArray:
    """Joins the parts of each row into one key. Keys sort like the sequences of their parts. `widths`: the bytes of
    each part, or -1 for parts of varying length.
    """

def split_keys(keys: pa.Array[Any], widths: Sequence[int]) -> list[pa.LargeBinaryArray]:
    """Splits keys that `join_keys` made into their parts. Raises ValueError for other bytes."""

class Multisets:
    """The distinct values of each slot, with counts. Adding a value takes O(log n) for n distinct values."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], takes: Any) -> None:
        """Adds values, or removes them where `takes` is True. A value may be removed before it is added, if both
        happen before the next query.
        """
    def differing(self, slots: Any) -> Any:
        """Returns the number of distinct values of each slot (numpy int64)."""
    def least(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray:
        """Returns the least value of each slot, or null for an empty slot. The value `last_resort` is returned only
        if there is no other.
        """
    def greatest(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray: ...
    def first_of_greatest(self, slots: Any, width: int) -> pa.LargeBinaryArray:
        """For keys of several parts: returns the least key among those with the greatest first part. `width`: the
        bytes of that part, like in `join_keys`.
        """
    def best(self, slots: Any, most: int) -> tuple[Any, pa.LargeBinaryArray]:
        """Returns (the number of values of each slot in the result, the values). The result has the `most` greatest
        values of each slot, greatest first; a value occurs in it as often as in the slot.
        """
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class DistinctNumbers:
    """The distinct numbers of each slot, counted for several filters: for each number the filters that accepted one
    of its rows. A number takes some 24 bytes, whatever the number of filters. Numbers are removed only together with
    their slot.

    `filters`: the number of filters, at most 32. `width`: the bytes of a number in a state. A state has the format of
    a `Multisets` with values of `width` bytes, and `load` takes such states.
    """

    def __init__(self, filters: int, width: int) -> None: ...
    filters: int
    width: int
    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, words: Any, filters: Any) -> None:
        """Adds numbers (numpy uint64, of at most `width` bytes). `filters` (numpy uint32): for each row the bits of
        the filters that accepted it. Raises IndexError for a filter that does not exist, here and below.
        """
    def differing(self, slots: Any, filter: int) -> Any:
        """Returns the number of distinct numbers of each slot that this filter accepted (numpy int64)."""
    def save(self, slots: Any, filter: int) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any], filter: int) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Arrivals:
    """The values of each slot, ordered by a given number, then by arrival. Values can also be found, to remove them."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], orders: Any, takes: Any) -> int:
        """Adds values with their orders (int64). Where `takes` is True, removes the oldest equal value with the same
        order, or else the first equal value.

        Returns how many values were to be removed but did not exist.
        """
    def first(self, slots: Any) -> pa.LargeBinaryArray:
        """Returns the first value of each slot, or null for an empty slot."""
    def last(self, slots: Any) -> pa.LargeBinaryArray: ...
    def all(self, slots: Any) -> tuple[Any, pa.LargeBinaryArray]:
        """Returns the number of values of each slot, and all values in order."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class ExactSums:
    """Exact sums of numbers, rounded only when they are read: the order of additions does not matter, and x - x
    leaves 0.

    `squares`: True to keep sums of squares too, for variances. A slot takes about 110 bytes, and 8 for each 32 bits
    of range of its numbers.
    """

    def __init__(self, squares: bool = False) -> None: ...
    squares: bool
    @property
    def nbytes(self) -> int: ...
    def add_reals(self, slots: Any, values: Any, takes: Any) -> None:
        """Adds numpy float64 values, or removes them where `takes` is True. NaN and infinities are counted, so they
        can be removed too.
        """
    def add_words(self, slots: Any, words: Any, signed: bool, takes: Any) -> None:
        """Adds whole numbers, or removes them where `takes` is True: numpy uint64 (rows, words), the lowest word
        first, in two's complement if `signed`.
        """
    def sums(self, slots: Any) -> pa.DoubleArray:
        """Returns the sums, each rounded once; null for an empty slot."""
    def means(self, slots: Any) -> pa.DoubleArray: ...
    def variances(self, slots: Any, ddof: int) -> pa.DoubleArray:
        """Returns the variances; null for `ddof` values or fewer, NaN if a value is NaN or infinite. Raises
        ValueError without `squares`.
        """
    def whole(self, slots: Any, width: int) -> tuple[Any, Any]:
        """Returns the sums of whole numbers as `width` words each, and True for each slot with a value. Raises
        OverflowError for a sum that does not fit.
        """
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
