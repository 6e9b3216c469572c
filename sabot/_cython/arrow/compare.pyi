from collections.abc import Iterable
from typing import Any

import pyarrow as pa

LITERALS: int  # the most constants that a LiteralSet takes

# `strings` are string or binary in any encoding, else TypeError. A result has as many rows, and is null where the string is (the bitmap
# is shared, not copied). Values are compared as bytes; those of strings are UTF-8. The GIL is released over the rows.

def equal_literal(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether each string is `value`."""

def starts_with(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether each string begins with `value`; with b"" all do."""

def contains(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Whether each string contains `value`; every string contains b""."""

class LiteralSet:
    """A set of constants in which strings are looked up. Make it once and keep it; threads may share it."""

    def __init__(self, values: Iterable[bytes]) -> None:
        """Raises ValueError for more than LITERALS constants."""

    def holds(self, strings: pa.Array[Any]) -> pa.BooleanArray:
        """Whether each string is among the constants."""
