"""Expressions over columns, as users write them: `col("amount") * 1.2 > 10`. Descriptions only; `operators/expressions/compiled` runs them.

Names and null semantics are those of polars. Where a value is expected, a string is that text; where a column is expected (`select`,
`then`, `coalesce`, `struct`, aggregates), a string is the name of a column.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from sabot.api.expr.elsewhere import MissingMethods
from sabot.api.expr.nested import ListExpr, StructExpr
from sabot.api.expr.text import StringExpr
from sabot.api.expr.time import DateExpr
from sabot.api.expr.words import as_type, literal_of, option_text, quoted, type_text, value_text, whole_of
from sabot.checks import FLAG, TEXT, OneOf, check
from sabot.errors import UserError

_BINARY = frozenset(["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^"])
_UNARY = {"neg": "-", "not": "~"}
_DEFAULTS = {
    "base": math.e,
    "closed": "both",
    "characters": None,
    "decimals": 0,
    "fill_char": " ",
    "format": None,
    "group": 1,
    "length": None,
    "literal": False,
    "null_on_oob": True,
    "strict": True,
    "unit": "us",
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Expr(MissingMethods):
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
        if self.kind == "aggregate":
            raise UserError(
                f"{self!r} is an aggregate, which has no value in a single row", hint=f"aggregate(name={self!r})"
            )
        return frozenset().union(*(each.columns for each in self.inputs))

    @property
    def name(self) -> str:
        """The name of its output: the alias, else the leftmost column's; "literal" where a literal stands leftmost."""
        if self.kind in ("col", "alias", "struct.field"):
            return str(self.option("name"))
        if self.kind in ("lit", "aggregate"):
            return "literal" if self.kind == "lit" else self.text()
        if self.kind == "struct":
            return str(self.option("names")[0])
        return self.inputs[1 if self.kind == "when" else 0].name

    @property
    def column(self) -> str | None:
        """The column whose unchanged values it has, under any alias. None: it is computed."""
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
        """The same expression with each `col(name)` in the mapping replaced by an expression. That may change its `name`."""
        if self.kind == "col":
            return columns.get(self.option("name"), self)
        if not self.inputs:
            return self
        return Expr(self.kind, tuple(each.substitute(columns) for each in self.inputs), self.options)

    def renamed(self, names: Mapping[str, str]) -> "Expr":
        """The same expression over renamed columns: {old name: new name}."""
        return self.substitute({old: col(new) for old, new in names.items()})

    def conjuncts(self) -> list["Expr"]:
        """The parts that `&` joins, from left to right. A row passes the expression where it passes each part."""
        if self.kind == "&":
            return [part for each in self.inputs for part in each.conjuncts()]
        return self.inputs[0].conjuncts() if self.kind == "alias" else [self]

    def text(self) -> str:
        """The expression as plans show it: `repr` without the outer parentheses. Equal expressions have equal texts, and no others do."""
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
        return StructExpr(self._made).field(name)

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

    def is_not_nan(self) -> "Expr":
        """True where it is a number; null stays null."""
        return ~self.is_nan()

    def is_finite(self) -> "Expr":
        """True where it is neither NaN nor infinite; null stays null."""
        return Expr("is_finite", (self,))

    def is_infinite(self) -> "Expr":
        """True where it is infinite, of either sign; null stays null."""
        return Expr("is_infinite", (self,))

    def fill_nan(self, value: Any) -> "Expr":
        """`value` (or another expression's, or None for null) where it is NaN."""
        return Expr("fill_nan", (self, as_expr(value)))

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
        check("between: closed", closed, OneOf(("both", "left", "right", "none")))
        return Expr("between", (self, as_expr(lower), as_expr(upper)), (("closed", closed),))

    is_between = between

    def abs(self) -> "Expr":
        """Without the sign. The least integer of its type stays as it is (it wraps)."""
        return Expr("abs", (self,))

    def round(self, decimals: int = 0) -> "Expr":
        """Rounds to so many digits behind the point, halves to the even neighbour, as Python's `round`; integers stay as they are."""
        return Expr("round", (self,), (("decimals", whole_of("round", decimals)),))

    def floor(self) -> "Expr":
        """The greatest whole number that is not above it; the type stays."""
        return Expr("floor", (self,))

    def ceil(self) -> "Expr":
        """The least whole number that is not below it; the type stays."""
        return Expr("ceil", (self,))

    def sqrt(self) -> "Expr":
        """The square root; NaN of negative numbers."""
        return Expr("sqrt", (self,))

    def exp(self) -> "Expr":
        """e to the power of it."""
        return Expr("exp", (self,))

    def log(self, base: float = math.e) -> "Expr":
        """The logarithm, natural unless `base` says otherwise; -inf of 0, NaN of negative numbers."""
        if isinstance(base, bool) or not isinstance(base, int | float) or not (base > 0 and base != 1):
            raise UserError(f"log: base {base!r} is no positive number other than 1", hint="log(2), log(10)")
        return Expr("log", (self,), (("base", float(base)),))

    def sign(self) -> "Expr":
        """-1, 0 or 1, of its type; NaN of NaN."""
        return Expr("sign", (self,))

    def clip(self, lower: Any = None, upper: Any = None) -> "Expr":
        """The nearest value within the bounds: values or expressions; None, and null in a row, is no bound. NaN stays NaN."""
        if lower is None and upper is None:
            raise UserError("clip: there is no bound", hint="clip(0, 100), clip(upper=100)")
        return Expr("clip", (self, as_expr(lower), as_expr(upper)))

    def cast(self, type: Any, strict: bool = True) -> "Expr":
        """As another type: a pa.DataType or its name ("int64", "float64", "string", "timestamp[ms]", "timestamp[ms, UTC]", …).

        A value that it cannot hold is a DataError that names it; with strict=False it becomes null. Fractions are cut off, times
        rounded down; the date of a time is that of its zone.
        """
        return Expr("cast", (self,), (("type", as_type(type)), ("strict", check("cast: strict", strict, FLAG))))

    def alias(self, name: str) -> "Expr":
        """The same under another name."""
        return Expr("alias", (self,), (("name", check("alias: name", name, TEXT)),))

    # -- as text ------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        kind, inputs = self.kind, self.inputs
        if kind == "col":
            return f"col({quoted(self.option('name'))})"
        if kind == "aggregate":
            return str(self.option("of").text())
        if kind == "lit":
            return (
                f"lit({_shown(self)})"
                if self.option("type") is None
                else f"lit({_shown(self)}, {type_text(self.option('type'))})"
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
            words.append(f"{name}={value!r}" if words or isinstance(value, bool) else option_text(value))
        return f"{inputs[0]!r}.{kind}({', '.join(words)})"

    def _made(self, kind: str, *inputs: Any, **options: Any) -> "Expr":
        return Expr(kind, (self, *map(as_expr, inputs)), tuple(options.items()))

    # -- by type ------------------------------------------------------------------------------------------------------

    @property
    def str(self) -> "StringExpr[Expr]":
        """What can be done with strings."""
        return StringExpr(self._made)

    @property
    def dt(self) -> "DateExpr[Expr]":
        """What can be done with times: timestamps, dates, and int64 columns of ms since 1970 UTC."""
        return DateExpr(self._made)

    @property
    def struct(self) -> "StructExpr[Expr]":
        """What can be done with structs."""
        return StructExpr(self._made)

    @property
    def list(self) -> "ListExpr[Expr]":
        """What can be done with lists."""
        return ListExpr(self._made)


def col(name: str) -> Expr:
    """The column of this name."""
    return Expr("col", (), (("name", check("col: name", name, TEXT)),))


def lit(value: Any, type: Any = None) -> Expr:
    """A value for every row: of this type, else int64, float64, string, … or the type of what it is combined with."""
    value, known = literal_of(value, type)
    return Expr("lit", (), (("value", value), ("type", known)))


def as_expr(value: Any) -> Expr:
    """An expression as it is, an aggregate as the expression that has its value; anything else as a literal."""
    if isinstance(value, Expr):
        return value
    return value.expression() if hasattr(value, "expression") else lit(value)


def as_column(value: Any) -> Expr:
    """An expression as it is, a string as the column of that name, anything else as a literal."""
    return col(value) if isinstance(value, str) else as_expr(value)


def _binary(kind: str, left: Any, right: Any) -> Expr:
    return Expr(kind, (as_expr(left), as_expr(right)))


def _compared(kind: str, left: Expr, right: Any) -> Expr:
    if right is None:
        ask = "is_null()" if kind == "==" else "is_not_null()"
        raise UserError(f"{left.text()} {kind} None would be null in every row", hint=f"use .{ask}")
    return Expr(kind, (left, as_expr(right)))


def _shown(expr: Expr) -> str:
    return value_text(expr.option("value"))


def _operand(expr: Expr) -> str:
    """The text of an operand of an operator, or of an argument of a method: a literal without a type is shown as Python writes it."""
    return _shown(expr) if expr.kind == "lit" and expr.option("type") is None else repr(expr)


def _argument(expr: Expr) -> str:
    """The text of an argument where a plain string would be the name of a column, so text literals are shown as lit(…)."""
    return repr(expr) if expr.kind == "lit" and isinstance(expr.option("value"), str) else _operand(expr)
