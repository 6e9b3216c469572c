"""What aggregates over changes keep of each group, by slot (0, 1, …): what was added can be taken away again. One owner.

Values are byte strings, in the order of bytes: binary or large binary without nulls. `takes`: for each row whether it takes away
(numpy bool). A slot that was never named is empty. `save` gives a state for each slot, `load` adds states to what is there;
ValueError for what is none. IndexError for a slot below 0.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

def join_keys(parts: Sequence[pa.Array[Any]], widths: Sequence[int]) -> pa.LargeBinaryArray:
    """One key a row, of its parts: they sort as the parts do, one after the other. widths: bytes of a part, -1 where they differ."""

def split_keys(keys: pa.Array[Any], widths: Sequence[int]) -> list[pa.LargeBinaryArray]:
    """The parts that `join_keys` was given."""

class Multisets:
    """Which values each slot has, and how often. A value costs a logarithm of how many differ."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], takes: Any) -> None:
        """A value may be taken before it is added, if it is before anything is asked."""
    def differing(self, slots: Any) -> Any:
        """How many values each slot has that differ (numpy int64)."""
    def least(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray:
        """The least value, null without one; `last_resort` only where there is nothing else."""
    def greatest(self, slots: Any, last_resort: bytes = ...) -> pa.LargeBinaryArray: ...
    def first_of_greatest(self, slots: Any, width: int) -> pa.LargeBinaryArray:
        """Of keys of several parts: the least whose first part is the greatest; `width` is that part's, as `join_keys` was told."""
    def best(self, slots: Any, most: int) -> tuple[Any, pa.LargeBinaryArray]:
        """(how many of each slot, the greatest `most` of each, greatest first, as often as they are there)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Arrivals:
    """Values of each slot in order: by a number that is given, then as they came. Each is found by what it is."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: pa.Array[Any], orders: Any, takes: Any) -> int:
        """orders: int64. Of equal values one of the same order is taken, the oldest; where there is none, the first in order.

        -> how many were to be taken and are not there.
        """
    def first(self, slots: Any) -> pa.LargeBinaryArray:
        """Null without a value."""
    def last(self, slots: Any) -> pa.LargeBinaryArray: ...
    def all(self, slots: Any) -> tuple[Any, pa.LargeBinaryArray]:
        """(how many of each slot, all of them in order)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class ExactSums:
    """Sums of numbers, exact until they are rounded to a result: the order does not matter, and x - x leaves 0.

    squares: variances can be asked for. A slot costs about 110 bytes, and 8 for each 32 bits that its numbers reach over.
    """

    def __init__(self, squares: bool = False) -> None: ...
    squares: bool
    @property
    def nbytes(self) -> int: ...
    def add_reals(self, slots: Any, values: Any, takes: Any) -> None:
        """numpy float64; NaN and infinities are counted, so they can be taken away too."""
    def add_words(self, slots: Any, words: Any, signed: bool, takes: Any) -> None:
        """Whole numbers: numpy uint64 (rows, words), the lowest word first, in two's complement where `signed`."""
    def sums(self, slots: Any) -> pa.DoubleArray:
        """Rounded once; null where no value is there."""
    def means(self, slots: Any) -> pa.DoubleArray: ...
    def variances(self, slots: Any, ddof: int) -> pa.DoubleArray:
        """Null for `ddof` values or fewer; NaN where one of them is NaN or infinite."""
    def whole(self, slots: Any, width: int) -> tuple[Any, Any]:
        """(sums of whole numbers as words, where there is a value). OverflowError for one that does not fit."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
