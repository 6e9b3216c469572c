"""State of aggregates over changes, by slot (0, 1, …), from which added values can be removed again. Each store has one owner.

Values are byte strings, ordered bytewise: binary or large binary without nulls. takes: for each row whether its value is removed instead
of added (numpy bool). A slot that was never used is empty. `save` returns a state for each slot, `load` adds states to the slots'
contents and raises ValueError for bytes that are no state. A slot below 0 raises IndexError.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def join_keys(parts: Sequence[pa.Array[Any]], widths: Sequence[int]) -> pa.LargeBinaryArray:
    """Joins the parts of each row to one key. Keys sort as the sequences of their parts do. widths: bytes of a part, -1 where they vary."""

def split_keys(keys: pa.Array[Any], widths: Sequence[int]) -> list[pa.LargeBinaryArray]:
    """The parts of keys that `join_keys` made: its inverse."""

class Multisets:
    """Counts of the distinct values of each slot. Adding a value takes O(log n) for n distinct values."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], takes: Any) -> None:
        """Adds values and removes those of rows in `takes`. A value may be removed before it is added, if both come before any query."""
    def differing(self, slots: Any) -> Any:
        """The number of distinct values of each slot (numpy int64)."""
    def least(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray:
        """The least value of each slot, null without one. The value `last_resort` is returned only where there is no other."""
    def greatest(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray: ...
    def first_of_greatest(self, slots: Any, width: int) -> pa.LargeBinaryArray:
        """For keys of several parts: the least key among those with the greatest first part. width: that part's, as for `join_keys`."""
    def best(self, slots: Any, most: int) -> tuple[Any, pa.LargeBinaryArray]:
        """Pairs of (how many per slot, the `most` greatest values of each, greatest first, repeated as often as they occur)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class DistinctNumbers:
    """Which numbers each slot has had, counted for several filters: of each value it knows which filters let one of its rows through. A
    value takes some 24 bytes, whatever the number of filters, and is not removed but with its slot.

    filters: how many, at most 32. width: the bytes that a number has in a state, which is the one that a `Multisets` of values of so many
    bytes gives, and takes.
    """

    def __init__(self, filters: int, width: int) -> None: ...
    filters: int
    width: int
    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, words: Any, filters: Any) -> None:
        """Adds numbers (numpy uint64, of at most `width` bytes). filters: for each row the bits of those that let it through (numpy
        uint32). Raises IndexError for a filter that there is not, here and below.
        """
    def differing(self, slots: Any, filter: int) -> Any:
        """How many distinct numbers of each slot this filter has let through (numpy int64)."""
    def save(self, slots: Any, filter: int) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any], filter: int) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Arrivals:
    """The values of each slot, ordered by a given number, then by arrival. A value can also be looked up, to remove it."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], orders: Any, takes: Any) -> int:
        """Adds values with their orders (int64), and removes those of rows in `takes`: the oldest equal value of the same order; where
        there is none, the first equal value.

        Returns how many values were to be removed and do not exist.
        """
    def first(self, slots: Any) -> pa.LargeBinaryArray:
        """The first value of each slot; null without one."""
    def last(self, slots: Any) -> pa.LargeBinaryArray: ...
    def all(self, slots: Any) -> tuple[Any, pa.LargeBinaryArray]:
        """Pairs of (how many per slot, all values in order)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class ExactSums:
    """Exact sums of numbers, rounded only when they are read: the order of additions does not matter, and x - x leaves 0.

    squares: also keep sums of squares, for variances. A slot takes about 110 bytes, and 8 for each 32 bits of range of its numbers.
    """

    def __init__(self, squares: bool = False) -> None: ...
    squares: bool
    @property
    def nbytes(self) -> int: ...
    def add_reals(self, slots: Any, values: Any, takes: Any) -> None:
        """Adds or removes numpy float64 values. NaN and infinities are counted, so they can be removed too."""
    def add_words(self, slots: Any, words: Any, signed: bool, takes: Any) -> None:
        """Adds or removes whole numbers: numpy uint64 (rows, words), the lowest word first, in two's complement if `signed`."""
    def sums(self, slots: Any) -> pa.DoubleArray:
        """The sums, rounded once; null where there is no value."""
    def means(self, slots: Any) -> pa.DoubleArray: ...
    def variances(self, slots: Any, ddof: int) -> pa.DoubleArray:
        """The variances; null for `ddof` values or fewer, NaN where one of the values is NaN or infinite."""
    def whole(self, slots: Any, width: int) -> tuple[Any, Any]:
        """Pairs of (the sums of whole numbers as words, whether there is a value). Raises OverflowError for a sum that does not fit."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
