"""The methods of `col("place").struct` and `col("tags").list`, for columns of nested values."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic

from sabot.api.elsewhere import LISTS, STRUCTS, NamedElsewhere
from sabot.api.expr.made import E, Make
from sabot.api.expr.words import fraction_of, whole_of
from sabot.base.checks import FLAG, TEXT, OneOf, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

INTERPOLATIONS = ("nearest", "lower", "higher", "midpoint", "linear")


@dataclass(frozen=True, slots=True)
class StructExpr(NamedElsewhere, Generic[E]):
    """The methods of `col("place").struct`, for columns of structs."""

    _elsewhere: ClassVar[Mapping[str, str]] = STRUCTS
    _of_engine: ClassVar[str] = "make"
    make: Make[E]

    def field(self, name: str) -> E:
        """Returns the field of this name; null if the struct is null."""
        return self.make("struct.field", name=check("struct.field: name", name, TEXT))

    def json_encode(self) -> E:
        """Returns the struct as a compact JSON text. Times are written as ms since 1970, NaN as null; fields that are
        null are written, too.
        """
        return self.make("struct.json_encode")


@dataclass(frozen=True, slots=True)
class ListExpr(NamedElsewhere, Generic[E]):
    """The methods of `col("tags").list`, for columns of lists."""

    _elsewhere: ClassVar[Mapping[str, str]] = LISTS
    _of_engine: ClassVar[str] = "make"
    make: Make[E]

    def get(self, index: int, null_on_oob: bool = True) -> E:
        """Returns the value at this index; a negative index counts from the end.

        An index out of bounds returns null. With `null_on_oob=False` it is an error of the row (DataError), which the
        stream's `on_error` handles.
        """
        return self.make(
            "list.get",
            index=whole_of("list.get", index),
            null_on_oob=check("list.get: null_on_oob", null_on_oob, FLAG),
        )

    def first(self) -> E:
        """Returns the first value; null for an empty list."""
        return self.get(0)

    def last(self) -> E:
        """Returns the last value; null for an empty list."""
        return self.get(-1)

    def join(self, separator: str) -> E:
        """Joins a list of texts to one text, with `separator` between them. The result is null if one of the texts is
        null.
        """
        return self.make("list.join", separator=check("list.join: separator", separator, TEXT))

    def len(self) -> E:
        """Returns the number of values, nulls included, as int32."""
        return self.make("list.len")

    def sum(self) -> E:
        """Returns the sum of the numbers, with the type that `sabot.sum` has. Nulls are ignored; without any number
        the sum is null. If the sum does not fit its type, this is an error of the row (DataError), which the stream's
        `on_error` handles.
        """
        return self.make("list.sum")

    def sort(self, descending: bool = False, *, nulls_last: bool = False) -> E:
        """Sorts the values of each list; NaN is greater than all numbers. Nulls come first, or last with
        `nulls_last=True`.
        """
        return self.make(
            "list.sort",
            descending=check("list.sort: descending", descending, FLAG),
            nulls_last=check("list.sort: nulls_last", nulls_last, FLAG),
        )

    def field(
        self,
        name: str,
        *,
        by: Sequence[str] = (),
        descending: Sequence[bool] = (),
        nulls_last: Sequence[bool] = (),
    ) -> E:
        """Returns one field of each struct in a list of structs, as a list. For example,
        `col("people").list.field("name")` returns the names; with `by=["rank"]` they are in the order of the ranks,
        the least first.

        - `by`: fields by which the structs are sorted first. Structs with equal values keep their order. NaN is
          greater than all numbers.
        - `descending`, `nulls_last`: a bool for each field of `by`; False for all if left out. Raises UserError for
          another number of values.
        """
        names = tuple(check("list.field: by", each, TEXT) for each in by)
        ways = [
            tuple(check(f"list.field: {what}", each, FLAG) for each in given) or (False,) * len(names)
            for what, given in (("descending", descending), ("nulls_last", nulls_last))
        ]
        if any(len(each) != len(names) for each in ways):
            raise UserError("list.field: descending= and nulls_last= have a value for each field of by=")
        name = check("list.field: name", name, TEXT)
        return self.make("list.field", name=name, by=names, descending=ways[0], nulls_last=ways[1])

    def quantile(self, quantile: float, interpolation: str = "nearest") -> E:
        """Returns the value below which this fraction of the values is, as float64. Null and NaN are ignored; without
        a value the result is null.

        `quantile`: a fraction from 0 to 1. `interpolation`: what to return if the fraction is between two values:
        "nearest", "lower", "higher", "midpoint" or "linear". Raises UserError for another fraction or word.
        """
        fraction = fraction_of("list.quantile: quantile", quantile)
        check("list.quantile: interpolation", interpolation, OneOf(INTERPOLATIONS))
        return self.make("list.quantile", quantile=fraction, interpolation=interpolation)

    def median(self) -> E:
        """Returns the median of the numbers, as float64. For an even number of values it is the mean of the two in
        the middle.
        """
        return self.quantile(0.5, "linear")

    def contains(self, value: Any) -> E:
        """Returns True if the list contains this value. `value`: a value, or an expression for the value; None tests
        for a null in the list.
        """
        return self.make("list.contains", value)
