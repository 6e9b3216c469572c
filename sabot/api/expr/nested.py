"""The methods of `col("place").struct` and `col("tags").list`, for columns of nested values."""

from dataclasses import dataclass
from typing import Any, Generic

from sabot.api.expr.made import E, Make
from sabot.api.expr.words import whole_of
from sabot.checks import FLAG, TEXT, check


@dataclass(frozen=True, slots=True)
class StructExpr(Generic[E]):
    """The methods of `col("place").struct`, for columns of structs."""

    make: Make[E]

    def field(self, name: str) -> E:
        """Returns the field of this name; null if the struct is null."""
        return self.make("struct.field", name=check("struct.field: name", name, TEXT))


@dataclass(frozen=True, slots=True)
class ListExpr(Generic[E]):
    """The methods of `col("tags").list`, for columns of lists."""

    make: Make[E]

    def get(self, index: int, null_on_oob: bool = True) -> E:
        """Returns the value at this index; a negative index counts from the end.

        An index out of bounds gives null; with `null_on_oob=False` it is a DataError of the row.
        """
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
        """Joins a list of texts to one text; null if one of them is null."""
        return self.make("list.join", separator=check("list.join: separator", separator, TEXT))

    def len(self) -> E:
        """Returns the number of values, nulls included, as int32."""
        return self.make("list.len")

    def contains(self, value: Any) -> E:
        """Returns True if the list contains the value, or the value of another expression. None tests for a null in
        the list.
        """
        return self.make("list.contains", value)
