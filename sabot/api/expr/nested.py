"""`col("place").struct` and `col("tags").list`: methods for columns of nested values."""

from dataclasses import dataclass
from typing import Any, Generic

from sabot.api.expr.made import E, Make
from sabot.api.expr.words import whole_of
from sabot.checks import FLAG, TEXT, check


@dataclass(frozen=True, slots=True)
class StructExpr(Generic[E]):
    """Methods of `col("place").struct`."""

    make: Make[E]

    def field(self, name: str) -> E:
        """Returns the field of this name; null if the struct is null."""
        return self.make("struct.field", name=check("struct.field: name", name, TEXT))


@dataclass(frozen=True, slots=True)
class ListExpr(Generic[E]):
    """Methods of `col("tags").list`."""

    make: Make[E]

    def get(self, index: int, null_on_oob: bool = True) -> E:
        """Returns the value at this index, from the end if it is negative. Out of bounds: null, or a DataError if not `null_on_oob`."""
        return self.make(
            "list.get",
            index=whole_of("list.get", index),
            null_on_oob=check("list.get: null_on_oob", null_on_oob, FLAG),
        )

    def first(self) -> E:
        """Returns the first value; null of an empty list."""
        return self.get(0)

    def last(self) -> E:
        """Returns the last value; null of an empty list."""
        return self.get(-1)

    def join(self, separator: str) -> E:
        """Joins a list of strings to one string; null if one of them is null."""
        return self.make("list.join", separator=check("list.join: separator", separator, TEXT))

    def len(self) -> E:
        """Returns the number of values, nulls included, as int32."""
        return self.make("list.len")

    def contains(self, value: Any) -> E:
        """Returns whether the list contains the value, or that of another expression. None tests for a null in the list."""
        return self.make("list.contains", value)
