from collections.abc import Iterable
from typing import Any

import pyarrow as pa

LITERALS: int  # that a LiteralSet takes

# `strings` are string or binary in any encoding, else TypeError. The answers have as many rows, and nulls where the strings have
# them (the bitmap is shared, not copied). Bytes are compared, so of strings UTF-8. The GIL is released over the rows.

def equal_literal(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether each string is `value`."""

def starts_with(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether each string begins with `value`; with b"" all do."""

def contains(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether `value` stands somewhere in each string; b"" does in all."""

class LiteralSet:
    """Constants to look strings up in. Made once and kept; threads may share it."""

    def __init__(self, values: Iterable[bytes]) -> None:
        """ValueError for more than LITERALS of them."""

    def holds(self, strings: pa.Array[Any]) -> pa.BooleanArray:
        """Whether each string is among the constants."""
