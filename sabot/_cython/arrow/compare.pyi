from collections.abc import Iterable
from typing import Any

import pyarrow as pa

LITERALS: int  # the largest number of constants in a LiteralSet

# `strings` is a string or binary array in any encoding, else TypeError is raised. A result has one row per string,
# and is null where the string is null (the validity bitmap is shared, not copied). Strings are compared as UTF-8
# bytes. The GIL is released. A constant of 2 GiB or more raises ValueError.

def equal_literal(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Returns True for each string that equals `value`."""

def starts_with(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Returns True for each string that begins with `value`. Every string begins with b""."""

def contains(strings: pa.Array[Any], value: bytes) -> pa.BooleanArray:
    """Returns True for each string that contains `value`. Every string contains b""."""

class LiteralSet:
    """A set of constants in which strings are looked up. Make it once and keep it. Several threads may use it."""

    def __init__(self, values: Iterable[bytes]) -> None:
        """Raises ValueError for more than LITERALS constants, TypeError for a constant that is not bytes."""

    def holds(self, strings: pa.Array[Any]) -> pa.BooleanArray:
        """Returns True for each string that is among the constants."""
