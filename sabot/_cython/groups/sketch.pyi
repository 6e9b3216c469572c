"""Sketches by slot (0, 1, …), which give approximate answers. Each store has one owner thread. A slot that was never
used is empty.

`save` returns a state for each slot (large binary). `load` merges states into the slots: the merged sketches of two
parts of the values equal the sketch of all values. It raises ValueError for bytes that are not a state. A slot below
0 raises IndexError.
"""

from typing import Any

import pyarrow as pa

class Distinct:
    """Estimates the number of distinct values per slot: exact up to 512, then with a standard error of 1.6 %. Takes
    up to 8 KiB per slot.
    """

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, hashes: Any) -> None:
        """Adds values, given by their hashes (numpy uint64) from `partition.hash_columns`."""
    def estimates(self, slots: Any) -> Any:
        """Returns the estimate for each slot (numpy int64)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Quantiles:
    """Estimates quantiles per slot within 1 % of the exact value. A slot takes 16 bytes for each step of 2 % in the
    range of its values.
    """

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: Any, takes: Any = None) -> None:
        """Adds numpy float64 values; NaN is ignored. `takes` (numpy bool): True for each value to remove instead of
        adding it.
        """
    def quantiles(self, slots: Any, of: Any) -> tuple[Any, Any]:
        """Returns two numpy arrays: the quantiles, with a row per slot and a column per quantile in `of`; and True
        for each slot with values.

        The quantile q of n values is the value with rank floor(q * (n - 1)), counted from 0.
        """
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
