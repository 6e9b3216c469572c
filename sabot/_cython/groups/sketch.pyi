"""Sketches by slot (0, 1, …): what is asked of them is about right. One owner. A slot that was never named is empty.

`save` gives a state for each slot (large binary), `load` adds states to what is there: a sketch of two parts is that of the whole,
whatever the parts are. ValueError for what is no state, IndexError for a slot below 0.
"""

from typing import Any

import pyarrow as pa

class Distinct:
    """About how many values of each slot differ: exact for 512 and less, then within 1.6 % (standard error). Up to 8 KiB a slot."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, hashes: Any) -> None:
        """numpy uint64: hashes of the values, as `partition.hash_columns` gives them."""
    def estimates(self, slots: Any) -> Any:
        """numpy int64."""
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...

class Quantiles:
    """About where quantiles lie: within 1 % of the value that is there. 16 bytes for each 2 % that the values of a slot reach over."""

    @property
    def nbytes(self) -> int: ...
    def add(self, slots: Any, values: Any, takes: Any = None) -> None:
        """numpy float64; NaN does not count. takes (numpy bool): which are taken away again."""
    def quantiles(self, slots: Any, of: Any) -> tuple[Any, Any]:
        """(a row for each slot, a column for each of the quantiles `of`; whether a slot has values), numpy.

        The quantile q of n values is the one of rank floor(q * (n - 1)), from 0 on.
        """
    def save(self, slots: Any) -> pa.LargeBinaryArray: ...
    def load(self, slots: Any, states: pa.Array[Any]) -> None: ...
    def remove(self, slots: Any) -> None: ...
    def clear(self) -> None: ...
