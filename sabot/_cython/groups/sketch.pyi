"""Sketches by slot (0, 1, …), which give approximate answers. Each store has one owner. A slot that was never used is empty.

`save` returns a state for each slot (large binary), `load` merges states into the slots: merging the sketches of two parts, whatever they
are, gives the sketch of the whole. Raises ValueError for bytes that are no state, IndexError for a slot below 0.
"""

from typing import Any

import pyarrow as pa

class Distinct:
    """Estimates the number of distinct values per slot: exact up to 512, then with a standard error of 1.6 %. Up to 8 KiB per slot."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, hashes: Any) -> None:
        """Adds values, given by their hashes (numpy uint64) as `partition.hash_columns` computes them."""
    def estimates(self, slots: Any) -> Any:
        """The estimate of each slot (numpy int64)."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Quantiles:
    """Estimates quantiles per slot within 1 % of the exact value. A slot takes 16 bytes for each step of 2 % in the range of its values."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: Any, takes: Any = None) -> None:
        """Adds numpy float64 values; NaN does not count. takes (numpy bool): which values are removed instead."""
    def quantiles(self, slots: Any, of: Any) -> tuple[Any, Any]:
        """Two numpy arrays: the quantiles, with a row per slot and a column per quantile in `of`; and whether each slot has values.

        The quantile q of n values is the one with rank floor(q * (n - 1)), counted from 0.
        """
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
