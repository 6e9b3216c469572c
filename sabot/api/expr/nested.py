"""`col("place").struct`, `col("tags").list`: what can be done with values that have values in them."""

from dataclasses import dataclass
from typing import Any, Generic

from sabot.api.expr.made import E, Make
from sabot.api.expr.words import string_of, whole_of

__all__ = ["ListExpr", "StructExpr"]


@dataclass(frozen=True, slots=True)
class StructExpr(Generic[E]):
    """`col("place").struct`."""

    make: Make[E]

    def field(self, name: str) -> E:
        """The field of this name; null where the struct is null."""
        return self.make("struct.field", name=string_of("struct.field", name))


@dataclass(frozen=True, slots=True)
class ListExpr(Generic[E]):
    """`col("tags").list`."""

    make: Make[E]

    def get(self, index: int, null_on_oob: bool = True) -> E:
        """The value at this place, from the end where it is negative; beyond the list null, or a DataError if not `null_on_oob`."""
        return self.make("list.get", index=whole_of("list.get", index), null_on_oob=bool(null_on_oob))

    def len(self) -> E:
        """Values, nulls included, as int32."""
        return self.make("list.len")

    def contains(self, value: Any) -> E:
        """Whether the value, or another expression's, is in the list; None asks for a null in it."""
        return self.make("list.contains", value)
