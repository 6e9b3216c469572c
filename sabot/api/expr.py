"""Expressions over columns, as users write them: `col("amount") * 1.2 > 10`. Descriptions only; `operators/expressions/compiled` runs them.

Names and null semantics are those of polars. Where a value is expected, a string is that text; where a column is expected (`select`,
`then`, `coalesce`, `struct`, aggregates), a string is the name of a column.
"""

import datetime
import decimal
import hashlib
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from sabot.errors import UserError

__all__ = [
    "DateExpr",
    "Expr",
    "ListExpr",
    "StringExpr",
    "StructExpr",
    "Then",
    "When",
    "as_column",
    "as_expr",
    "as_type",
    "coalesce",
    "col",
    "lit",
    "struct",
    "when",
]

_BINARY = frozenset(["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^"])
_UNARY = {"neg": "-", "not": "~"}
_DEFAULTS = {
    "closed": "both",
    "characters": None,
    "decimals": 0,
    "group": 1,
    "length": None,
    "literal": False,
    "null_on_oob": True,
    "strict": True,
    "unit": "us",
}
_SHOWN_VALUES = 20
_WORDS = {
    "nanosecond": "1ns",
    "microsecond": "1us",
    "millisecond": "1ms",
    "second": "1s",
    "minute": "1m",
    "hour": "1h",
    "day": "1d",
    "week": "1w",
    "month": "1mo",
    "quarter": "1q",
    "year": "1y",
}
_TYPES: dict[Any, str] = {
    **{str: "string", int: "int64", float: "float64", bool: "bool"},
    **{"str": "string", "int": "int64", "float": "float64", "double": "float64", "boolean": "bool", "date": "date32"},
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Expr:
    """A computation over the columns of a batch, one value a row. Immutable; `==` and the other operators give an Expr.

    kind: "col", "lit", "alias", "when", "coalesce", "struct", an operator as Python writes it ("neg" and "not" for - and ~), or the
    name of a method ("is_null", "str.lower"). options: what is no expression, as (name, value) pairs.
    """

    kind: str
    inputs: tuple["Expr", ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    # -- what the planner asks ----------------------------------------------------------------------------------------

    @property
    def columns(self) -> frozenset[str]:
        """Names of the columns that it reads."""
        if self.kind == "col":
            return frozenset([self.option("name")])
        return frozenset().union(*(each.columns for each in self.inputs))

    @property
    def name(self) -> str:
        """The name of its output: the alias, else the leftmost column's; "literal" where a literal stands leftmost."""
        if self.kind in ("col", "alias", "struct.field"):
            return str(self.option("name"))
        if self.kind == "lit":
            return "literal"
        if self.kind == "struct":
            return str(self.option("names")[0])
        return self.inputs[1 if self.kind == "when" else 0].name

    @property
    def column(self) -> str | None:
        """The column that it is no more than, under whatever name; None: it is computed."""
        expr = self
        while expr.kind == "alias":
            (expr,) = expr.inputs
        return str(expr.option("name")) if expr.kind == "col" else None

    def option(self, name: str) -> Any:
        """The option of this name; KeyError where this kind has none."""
        return dict(self.options)[name]

    def same(self, other: object) -> bool:
        """Whether `other` is the same expression, part by part. (`==` builds an expression.)"""
        return (
            isinstance(other, Expr)
            and self.kind == other.kind
            and len(self.inputs) == len(other.inputs)
            and repr(self.options) == repr(other.options)
            and all(mine.same(its) for mine, its in zip(self.inputs, other.inputs, strict=True))
        )

    def substitute(self, columns: Mapping[str, "Expr"]) -> "Expr":
        """The same over other columns: each `col(name)` in the mapping becomes its expression. Its `name` may change by that."""
        if self.kind == "col":
            return columns.get(self.option("name"), self)
        if not self.inputs:
            return self
        return Expr(self.kind, tuple(each.substitute(columns) for each in self.inputs), self.options)

    def renamed(self, names: Mapping[str, str]) -> "Expr":
        """The same over columns that are called otherwise: {old name: new name}."""
        return self.substitute({old: col(new) for old, new in names.items()})

    def conjuncts(self) -> list["Expr"]:
        """The parts that `&` joins, left to right: a row passes the whole where it passes each."""
        if self.kind == "&":
            return [part for each in self.inputs for part in each.conjuncts()]
        return self.inputs[0].conjuncts() if self.kind == "alias" else [self]

    def text(self) -> str:
        """It as one reads it in a plan: as `repr`, without the outer parentheses. The same text, the same expression."""
        shown = repr(self)
        return shown[1:-1] if self.kind in _BINARY or self.kind in _UNARY else shown

    # -- operators ----------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> "Expr":
        return _binary("+", self, other)

    def __radd__(self, other: Any) -> "Expr":
        return _binary("+", other, self)

    def __sub__(self, other: Any) -> "Expr":
        return _binary("-", self, other)

    def __rsub__(self, other: Any) -> "Expr":
        return _binary("-", other, self)

    def __mul__(self, other: Any) -> "Expr":
        return _binary("*", self, other)

    def __rmul__(self, other: Any) -> "Expr":
        return _binary("*", other, self)

    def __truediv__(self, other: Any) -> "Expr":
        return _binary("/", self, other)

    def __rtruediv__(self, other: Any) -> "Expr":
        return _binary("/", other, self)

    def __floordiv__(self, other: Any) -> "Expr":
        return _binary("//", self, other)

    def __rfloordiv__(self, other: Any) -> "Expr":
        return _binary("//", other, self)

    def __mod__(self, other: Any) -> "Expr":
        return _binary("%", self, other)

    def __rmod__(self, other: Any) -> "Expr":
        return _binary("%", other, self)

    def __pow__(self, other: Any) -> "Expr":
        return _binary("**", self, other)

    def __rpow__(self, other: Any) -> "Expr":
        return _binary("**", other, self)

    def __and__(self, other: Any) -> "Expr":
        return _binary("&", self, other)

    def __rand__(self, other: Any) -> "Expr":
        return _binary("&", other, self)

    def __or__(self, other: Any) -> "Expr":
        return _binary("|", self, other)

    def __ror__(self, other: Any) -> "Expr":
        return _binary("|", other, self)

    def __xor__(self, other: Any) -> "Expr":
        return _binary("^", self, other)

    def __rxor__(self, other: Any) -> "Expr":
        return _binary("^", other, self)

    def __eq__(self, other: Any) -> "Expr":  # type: ignore[override]
        return _compared("==", self, other)

    def __ne__(self, other: Any) -> "Expr":  # type: ignore[override]
        return _compared("!=", self, other)

    def __lt__(self, other: Any) -> "Expr":
        return _compared("<", self, other)

    def __le__(self, other: Any) -> "Expr":
        return _compared("<=", self, other)

    def __gt__(self, other: Any) -> "Expr":
        return _compared(">", self, other)

    def __ge__(self, other: Any) -> "Expr":
        return _compared(">=", self, other)

    def __neg__(self) -> "Expr":
        return Expr("neg", (self,))

    def __invert__(self) -> "Expr":
        return Expr("not", (self,))

    def __getitem__(self, name: str) -> "Expr":
        """A field of a struct: `col("place")["city"]`."""
        return StructExpr(self).field(name)

    def __bool__(self) -> NoReturn:
        raise UserError(
            f"{self.text()} has no truth value: it stands for a column",
            hint="use & | ~ in place of and, or, not, each side in parentheses; between() in place of a < x < b; is_in() in place of in",
        )

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{self.text()} is an expression, not a sequence")

    def __contains__(self, value: object) -> NoReturn:
        bool(self)
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]  # a dict would compare with ==; its text() is a key
    __array_ufunc__ = None  # so that numpy leaves `np.float64(1) * col("x")` to us

    # -- nulls and NaN ------------------------------------------------------------------------------------------------

    def is_null(self) -> "Expr":
        """True where there is no value."""
        return Expr("is_null", (self,))

    def is_not_null(self) -> "Expr":
        """True where there is a value."""
        return Expr("is_not_null", (self,))

    def fill_null(self, value: Any) -> "Expr":
        """`value` (or another expression's) where there is none."""
        return Expr("fill_null", (self, as_expr(value)))

    def is_nan(self) -> "Expr":
        """True where it is NaN; null stays null."""
        return Expr("is_nan", (self,))

    # -- values -------------------------------------------------------------------------------------------------------

    def is_in(self, values: Iterable[Any]) -> "Expr":
        """Whether it is one of these values; null stays null."""
        if isinstance(values, pa.Array | pa.ChunkedArray):
            values = values.to_pylist()
        if isinstance(values, str | bytes | Expr) or not isinstance(values, Iterable):
            raise UserError(f"is_in: {values!r} is no list of values", hint='is_in(["DE", "FR"])')
        given = [each.item() if isinstance(each, np.generic) else each for each in values]
        if isinstance(values, set | frozenset):
            given.sort(key=repr)  # the same text in each process
        return Expr("is_in", (self,), (("values", tuple(given)),))

    def between(self, lower: Any, upper: Any, closed: str = "both") -> "Expr":
        """lower <= it <= upper; `closed` says which bounds belong to it: both, left, right, none."""
        _one_of("between: closed", closed, ("both", "left", "right", "none"))
        return Expr("between", (self, as_expr(lower), as_expr(upper)), (("closed", closed),))

    is_between = between

    def abs(self) -> "Expr":
        """Without the sign. The least integer of its type stays as it is (it wraps)."""
        return Expr("abs", (self,))

    def round(self, decimals: int = 0) -> "Expr":
        """To so many digits behind the point, halves to the even neighbour; integers stay as they are."""
        return Expr("round", (self,), (("decimals", _whole("round", decimals)),))

    def floor(self) -> "Expr":
        """The greatest whole number that is not above it; the type stays."""
        return Expr("floor", (self,))

    def ceil(self) -> "Expr":
        """The least whole number that is not below it; the type stays."""
        return Expr("ceil", (self,))

    def sqrt(self) -> "Expr":
        """The square root; NaN of negative numbers."""
        return Expr("sqrt", (self,))

    def cast(self, type: Any, strict: bool = True) -> "Expr":
        """As another type: a pa.DataType or its name ("int64", "float64", "string", "timestamp[ms]", "timestamp[ms, UTC]", …).

        A value that it cannot hold is a DataError that names it; with strict=False it becomes null. Fractions are cut off, times
        rounded down; the date of a time is that of its zone.
        """
        return Expr("cast", (self,), (("type", as_type(type)), ("strict", bool(strict))))

    def alias(self, name: str) -> "Expr":
        """The same under another name."""
        return Expr("alias", (self,), (("name", _string("alias", name)),))

    # -- as text ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        kind, inputs = self.kind, self.inputs
        if kind == "col":
            return f"col({_quoted(self.option('name'))})"
        if kind == "lit":
            return (
                f"lit({_shown(self)})"
                if self.option("type") is None
                else f"lit({_shown(self)}, {_named(self.option('type'))})"
            )
        if kind in _BINARY:
            left, right = inputs
            typed = left.kind == "lit" and right.kind == "lit"
            return f"({left if typed else _operand(left)} {kind} {_operand(right)})"
        if kind in _UNARY:
            return f"({_UNARY[kind]}{inputs[0]!r})"
        if kind == "when":
            steps = [f"when({inputs[i]!r}).then({_argument(inputs[i + 1])})" for i in range(0, len(inputs) - 1, 2)]
            return f"{'.'.join(steps)}.otherwise({_argument(inputs[-1])})"
        if kind == "coalesce":
            return f"coalesce({', '.join(_argument(each) for each in inputs)})"
        if kind == "struct":
            pairs = zip(self.option("names"), inputs, strict=True)
            return f"struct({', '.join(f'{name}={_argument(each)}' for name, each in pairs)})"
        words = [_operand(each) for each in inputs[1:]]
        for name, value in self.options:
            if name in _DEFAULTS and _DEFAULTS[name] == value:
                continue
            words.append(f"{name}={value!r}" if words or isinstance(value, bool) else _option(value))
        return f"{inputs[0]!r}.{kind}({', '.join(words)})"

    # -- by type ------------------------------------------------------------------------------------------------------

    @property
    def str(self) -> "StringExpr":
        """What can be done with strings."""
        return StringExpr(self)

    @property
    def dt(self) -> "DateExpr":
        """What can be done with times: timestamps, dates, and int64 columns of ms since 1970 UTC."""
        return DateExpr(self)

    @property
    def struct(self) -> "StructExpr":
        """What can be done with structs."""
        return StructExpr(self)

    @property
    def list(self) -> "ListExpr":
        """What can be done with lists."""
        return ListExpr(self)


@dataclass(frozen=True, slots=True)
class StringExpr:
    """`col("name").str`: strings. Patterns are RE2's: Rust's, except that \\w, \\d, \\s and \\b know ASCII only."""

    expr: Expr

    def lower(self) -> Expr:
        """In lower case."""
        return Expr("str.lower", (self.expr,))

    def upper(self) -> Expr:
        """In upper case."""
        return Expr("str.upper", (self.expr,))

    def strip(self, characters: str | None = None) -> Expr:
        """Without these characters (white space) at both ends."""
        given = None if characters is None else _string("strip", characters)
        return Expr("str.strip", (self.expr,), (("characters", given),))

    def split(self, by: str) -> Expr:
        """The list of what stands between `by`."""
        if not _string("split", by):
            raise UserError("str.split: there is nothing to split by", hint='str.split(",")')
        return Expr("str.split", (self.expr,), (("by", by),))

    def contains(self, pattern: str, literal: bool = False) -> Expr:
        """Whether the regular expression (with `literal`, the text) is found in it."""
        return Expr(
            "str.contains", (self.expr,), (("pattern", _string("contains", pattern)), ("literal", bool(literal)))
        )

    def startswith(self, prefix: str) -> Expr:
        """Whether it begins with this text."""
        return Expr("str.startswith", (self.expr,), (("prefix", _string("startswith", prefix)),))

    def endswith(self, suffix: str) -> Expr:
        """Whether it ends with this text."""
        return Expr("str.endswith", (self.expr,), (("suffix", _string("endswith", suffix)),))

    def regexp_extract(self, pattern: str, group: int = 1) -> Expr:
        """What the group (0: all of it) of the first match holds; null without a match, "" for a group that took no part in it."""
        options = (("pattern", _string("regexp_extract", pattern)), ("group", _whole("regexp_extract", group)))
        return Expr("str.regexp_extract", (self.expr,), options)

    def extract(self, pattern: str, group_index: int = 1) -> Expr:
        """As `regexp_extract`."""
        return self.regexp_extract(pattern, group_index)

    def length(self) -> Expr:
        """Characters, as int32."""
        return Expr("str.length", (self.expr,))

    def slice(self, offset: int, length: int | None = None) -> Expr:
        """`length` characters (all) from `offset` on; an offset below 0 counts from the end."""
        taken = None if length is None else _whole("slice", length)
        if taken is not None and taken < 0:
            raise UserError(f"str.slice: length {length} is negative")
        return Expr("str.slice", (self.expr,), (("offset", _whole("slice", offset)), ("length", taken)))

    def replace(self, pattern: str, value: str, literal: bool = False) -> Expr:
        """With `value` for the first match; $1 or ${1} in it stand for a group, $$ for a dollar sign (not with `literal`)."""
        return self._replaced("str.replace", pattern, value, literal)

    def replace_all(self, pattern: str, value: str, literal: bool = False) -> Expr:
        """With `value` for each match."""
        return self._replaced("str.replace_all", pattern, value, literal)

    def _replaced(self, kind: str, pattern: str, value: str, literal: bool) -> Expr:
        given = (("pattern", _string(kind, pattern)), ("value", _string(kind, value)), ("literal", bool(literal)))
        return Expr(kind, (self.expr,), given)

    to_lowercase = lower
    to_uppercase = upper
    strip_chars = strip
    starts_with = startswith
    ends_with = endswith
    len_chars = length


@dataclass(frozen=True, slots=True)
class DateExpr:
    """`col("ts").dt`: timestamps (in their zone), dates, and int64 as ms since 1970 UTC. Parts of a time are int64."""

    expr: Expr

    def date_trunc(self, every: str | datetime.timedelta) -> Expr:
        """Down to a whole "hour", "1h", "15m", "1d", "1w" (from Monday), "1mo", "1q", "1y", …; the type stays."""
        if isinstance(every, datetime.timedelta):
            every = f"{every // datetime.timedelta(microseconds=1)}us"
        text = _WORDS.get(_string("date_trunc", every).removesuffix("s"), every)
        match = re.fullmatch(r"(\d+)(ns|us|ms|s|m|h|d|w|mo|q|y)", text)
        if match is None or int(match[1]) == 0:
            raise UserError(
                f"dt.date_trunc: {every!r} is no length of time", hint='"hour", "15m", "1d", "1w", "1mo", "1y"'
            )
        return Expr("dt.date_trunc", (self.expr,), (("every", text),))

    def strftime(self, format: str) -> Expr:
        """As text, by chrono's codes: "%Y-%m-%d %H:%M:%S"; %3f, %6f, %9f: digits of the second's fraction, %.3f with the point."""
        return Expr("dt.strftime", (self.expr,), (("format", _string("strftime", format)),))

    def epoch(self, unit: str = "us") -> Expr:
        """int64 since 1970 UTC in "ns", "us", "ms", "s" or "d"."""
        _one_of("dt.epoch", unit, ("ns", "us", "ms", "s", "d"))
        return Expr("dt.epoch", (self.expr,), (("unit", unit),))

    def year(self) -> Expr:
        """The year."""
        return Expr("dt.year", (self.expr,))

    def month(self) -> Expr:
        """1 to 12."""
        return Expr("dt.month", (self.expr,))

    def day(self) -> Expr:
        """1 to 31."""
        return Expr("dt.day", (self.expr,))

    def hour(self) -> Expr:
        """0 to 23."""
        return Expr("dt.hour", (self.expr,))

    def minute(self) -> Expr:
        """0 to 59."""
        return Expr("dt.minute", (self.expr,))

    def second(self) -> Expr:
        """0 to 59."""
        return Expr("dt.second", (self.expr,))

    def day_of_week(self) -> Expr:
        """Monday 1 to Sunday 7."""
        return Expr("dt.day_of_week", (self.expr,))

    truncate = date_trunc
    weekday = day_of_week
    to_string = strftime


@dataclass(frozen=True, slots=True)
class StructExpr:
    """`col("place").struct`."""

    expr: Expr

    def field(self, name: str) -> Expr:
        """The field of this name; null where the struct is null."""
        return Expr("struct.field", (self.expr,), (("name", _string("struct.field", name)),))


@dataclass(frozen=True, slots=True)
class ListExpr:
    """`col("tags").list`."""

    expr: Expr

    def get(self, index: int, null_on_oob: bool = True) -> Expr:
        """The value at this place, from the end where it is negative; beyond the list null, or a DataError if not `null_on_oob`."""
        options = (("index", _whole("list.get", index)), ("null_on_oob", bool(null_on_oob)))
        return Expr("list.get", (self.expr,), options)

    def len(self) -> Expr:
        """Values, nulls included, as int32."""
        return Expr("list.len", (self.expr,))

    def contains(self, value: Any) -> Expr:
        """Whether the value, or another expression's, is in the list; None asks for a null in it."""
        return Expr("list.contains", (self.expr, as_expr(value)))


@dataclass(frozen=True, slots=True)
class When:
    """`when(p)`: `then` comes next."""

    inputs: tuple[Expr, ...]

    def then(self, value: Any) -> "Then":
        """What the rows get for which the predicate is true: an expression, a value, or the name of a column."""
        return Then("when", (*self.inputs, as_column(value), lit(None)))


class Then(Expr):
    """`when(p).then(x)`: an expression that is null elsewhere; `otherwise` and `when` go on from it."""

    __slots__ = ()

    def when(self, *predicates: Expr) -> When:
        """Of the rows that are left, those where this is true."""
        return When((*self.inputs[:-1], _all(predicates)))

    def otherwise(self, value: Any) -> Expr:
        """What all other rows get, also those where a predicate is null."""
        return Expr("when", (*self.inputs[:-1], as_column(value)))


def col(name: str) -> Expr:
    """The column of this name."""
    return Expr("col", (), (("name", _string("col", name)),))


def lit(value: Any, type: Any = None) -> Expr:
    """A value for every row: of this type, else int64, float64, string, … or the type of what it is combined with."""
    if isinstance(value, np.generic):
        value = value.item()
    known = None if type is None else as_type(type)
    try:
        if known is None and isinstance(value, list | tuple | dict):
            value = pa.scalar(list(value) if isinstance(value, tuple) else value)
        elif known is not None:
            pa.scalar(value.as_py() if isinstance(value, pa.Scalar) else value, known)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise UserError(f"lit: {value} has more than 64 bits")
    except (pa.ArrowException, TypeError, OverflowError, ValueError) as error:
        raise UserError(f"lit: {value!r} is no {known or 'value of one type'}: {error}") from error
    if not isinstance(value, _LITERALS):
        raise UserError(
            f"{value!r} is no value that a column can hold", hint="a number, text, bytes, bool, date, time or None"
        )
    return Expr("lit", (), (("value", value), ("type", known)))


def when(*predicates: Expr) -> When:
    """`when(col("x") > 0).then("x").otherwise(0)`: the first case that is true counts. Strings in then and otherwise name columns."""
    return When((_all(predicates),))


def coalesce(*exprs: Any) -> Expr:
    """For each row the first that is not null: expressions, names of columns, values."""
    if not exprs:
        raise UserError("coalesce needs at least one expression")
    return Expr("coalesce", tuple(as_column(each) for each in exprs))


def struct(**fields: Any) -> Expr:
    """A struct with these fields: `struct(city="city", total=col("n") * 2)`."""
    if not fields:
        raise UserError("struct needs at least one field", hint='struct(city="city")')
    return Expr("struct", tuple(as_column(each) for each in fields.values()), (("names", tuple(fields)),))


def as_expr(value: Any) -> Expr:
    """An expression as it is; anything else as a literal."""
    return value if isinstance(value, Expr) else lit(value)


def as_column(value: Any) -> Expr:
    """An expression as it is, a string as the column of that name, anything else as a literal."""
    return col(value) if isinstance(value, str) else as_expr(value)


def as_type(type: Any) -> pa.DataType:
    """A pa.DataType as it is, or the type of this name: Arrow's, or Python's (int, float, str, bool)."""
    if isinstance(type, pa.DataType):
        return type
    name = _TYPES.get(type, type) if isinstance(type, Hashable) else type
    zoned = re.fullmatch(r"timestamp\[(s|ms|us|ns),\s*(?:tz=)?([\w/+:-]+)\]", name) if isinstance(name, str) else None
    if zoned is not None:
        return pa.timestamp(zoned[1], zoned[2])
    try:
        return pa.type_for_alias(name)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{type!r} is no type", hint='"int64", "float64", "string", "bool", "timestamp[ms]", …'
        ) from error


_LITERALS = (
    type(None)
    | bool
    | int
    | float
    | str
    | bytes
    | datetime.date
    | datetime.time
    | datetime.timedelta
    | decimal.Decimal
    | pa.Scalar
)


def _binary(kind: str, left: Any, right: Any) -> Expr:
    return Expr(kind, (as_expr(left), as_expr(right)))


def _compared(kind: str, left: Expr, right: Any) -> Expr:
    if right is None:
        ask = "is_null()" if kind == "==" else "is_not_null()"
        raise UserError(f"{left.text()} {kind} None would be null in every row", hint=f"use .{ask}")
    return Expr(kind, (left, as_expr(right)))


def _all(predicates: tuple[Any, ...]) -> Expr:
    if not predicates:
        raise UserError("when needs a predicate", hint='when(col("amount") > 10).then(1).otherwise(0)')
    first, *rest = [as_expr(each) for each in predicates]
    for each in rest:
        first = first & each
    return first


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is no string")
    return value


def _whole(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UserError(f"{where}: {value!r} is no whole number")
    return int(value)


def _one_of(where: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{where}: {value!r} is none of {', '.join(known)}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _named(type: pa.DataType) -> str:
    """A type by a name that `as_type` reads; Arrow's own for float32 is float."""
    return _quoted(
        {"halffloat": "float16", "float": "float32", "double": "float64", "date32[day]": "date32"}.get(
            str(type), str(type)
        )
    )


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return repr(value.as_py()) if isinstance(value, pa.Scalar) else repr(value)


def _shown(expr: Expr) -> str:
    return _literal(expr.option("value"))


def _operand(expr: Expr) -> str:
    """Beside an operator, or as the argument of a method: a plain literal as Python writes it."""
    return _shown(expr) if expr.kind == "lit" and expr.option("type") is None else repr(expr)


def _argument(expr: Expr) -> str:
    """Where a string would be a column's name."""
    return repr(expr) if expr.kind == "lit" and isinstance(expr.option("value"), str) else _operand(expr)


def _option(value: Any) -> str:
    if isinstance(value, pa.DataType):
        return _named(value)
    if not isinstance(value, tuple):
        return _literal(value)
    words = [_literal(each) for each in value[:_SHOWN_VALUES]]
    if len(value) > _SHOWN_VALUES:
        words.append(f"… {len(value)} values, {hashlib.sha256(repr(value).encode()).hexdigest()[:12]}")
    return f"[{', '.join(words)}]"
