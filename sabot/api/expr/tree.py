"""Expressions over columns, as users write them: `col("amount") * 1.2 > 10`. They only describe;
`engine/operators/expressions/compiled` computes.

Names and the treatment of null are those of polars. Where a value is expected, a string is a text; where a column is
expected (`select`, `then`, `coalesce`, `struct`, aggregates), a string is the name of a column.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

import numpy as np
import pyarrow as pa

from sabot.api.elsewhere import EXPRESSIONS, NamedElsewhere
from sabot.api.expr.nested import ListExpr, StructExpr
from sabot.api.expr.text import StringExpr
from sabot.api.expr.time import DateExpr
from sabot.api.expr.words import (
    as_type,
    literal_of,
    numbers_of,
    option_text,
    quoted,
    replacements_of,
    type_text,
    value_text,
    whole_of,
)
from sabot.base.checks import FLAG, TEXT, TEXTS, OneOf, check
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

_BINARY = frozenset(["+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&", "|", "^"])
_UNARY = {"neg": "-", "not": "~"}
# not methods of their first input
_FUNCTIONS = frozenset(["coalesce", "concat_str", "min_horizontal", "max_horizontal"])
_DEFAULTS = {
    "ambiguous": "raise",
    "base": math.e,
    "closed": "both",
    "characters": None,
    "decimals": 0,
    "fill_char": " ",
    "format": None,
    "group": 1,
    "ignore_nulls": False,
    "interpolation": "nearest",
    "labels": None,
    "left_closed": False,
    "length": None,
    "literal": False,
    "non_existent": "raise",
    "null_on_oob": True,
    "of": "value",
    "only": None,
    "separator": "",
    "strict": True,
    "unit": "us",
}


class Operators(NamedElsewhere):
    """A base class of expressions and aggregates, with the operators that return an Expr. None of them returns a
    bool, so that a condition of Python over them raises UserError.
    """

    __slots__ = ()

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
        return Expr("neg", (as_expr(self),))

    def __invert__(self) -> "Expr":
        return Expr("not", (as_expr(self),))

    def __abs__(self) -> "Expr":
        return Expr("abs", (as_expr(self),))

    def __bool__(self) -> NoReturn:
        raise UserError(
            f"{as_expr(self).text()} has no truth value: it stands for a column",
            hint="use & | ~ in place of and, or, not, each side in parentheses; between() in place of a < x < b; is_in() in place of in",
        )

    def __iter__(self) -> NoReturn:
        raise TypeError(f"{as_expr(self).text()} is an expression, not a sequence")

    def __contains__(self, value: object) -> NoReturn:
        bool(self)
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]  # a dict would compare with ==; use text() as a key
    __array_ufunc__ = None  # so that numpy calls `__rmul__` for `np.float64(1) * col("x")`


GUARDED = "guarded"
"""The kind of an expression whose first input is its value, which only rows need for which the second one is true. It
has the text of its value.
"""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Expr(Operators):
    """A computation over the columns of a batch, with one value per row. It is immutable; operators such as `+` and
    `==` return an Expr.

    - `kind`: the operation. It is "col", "lit", "alias", "when", "coalesce", "struct", an operator as Python writes
      it ("neg" for unary -, "not" for ~), or the name of a method, such as "is_null" or "str.lower".
    - `inputs`: the expressions that are its operands.
    - `options`: its other arguments, as (name, value) pairs.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = EXPRESSIONS
    _of_engine: ClassVar[str] = "column columns conjuncts inputs kind name option options renamed same substitute text"

    kind: str
    inputs: tuple["Expr", ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def _of_another_kind(self, name: str) -> str:
        spaces = {"str": StringExpr, "dt": DateExpr, "list": ListExpr, "struct": StructExpr}
        if name.startswith("_") or name == "make":
            return ""
        return ", ".join(f"{space}.{name}(…)" for space, methods in spaces.items() if name in vars(methods))

    # -- for the planner ----------------------------------------------------------------------------------------

    @property
    def columns(self) -> frozenset[str]:
        """The names of the columns that the expression reads. Raises UserError if the expression contains an
        aggregate.
        """
        if self.kind == "col":
            return frozenset([self.option("name")])
        if self.kind == "aggregate":
            raise UserError(
                f"{self!r} is an aggregate, which has no value in a single row", hint=f"aggregate(name={self!r})"
            )
        return frozenset().union(*(each.columns for each in self.inputs))

    @property
    def name(self) -> str:
        """The name of the output column: the alias if there is one, else the name of the leftmost column in the
        expression. It is "literal" if a literal is leftmost.
        """
        if self.kind in ("col", "alias", "struct.field"):
            return str(self.option("name"))
        if self.kind in ("lit", "aggregate"):
            return "literal" if self.kind == "lit" else self.text()
        if self.kind == "struct":
            return str(self.option("names")[0])
        return self.inputs[1 if self.kind == "when" else 0].name

    @property
    def column(self) -> str | None:
        """The name of the column, if the expression returns the values of one column unchanged (it may have an
        alias); None if it computes new values.
        """
        expr = self
        while expr.kind == "alias":
            (expr,) = expr.inputs
        return str(expr.option("name")) if expr.kind == "col" else None

    def option(self, name: str) -> Any:
        """Returns the option of this name. Raises KeyError if an expression of this kind has none."""
        return dict(self.options)[name]

    def same(self, other: object) -> bool:
        """Returns True if `other` is an equal expression. (The operator `==` returns a new expression instead.)"""
        return (
            isinstance(other, Expr)
            and self.kind == other.kind
            and len(self.inputs) == len(other.inputs)
            and repr(self.options) == repr(other.options)
            and all(mine.same(its) for mine, its in zip(self.inputs, other.inputs, strict=True))
        )

    def substitute(self, columns: Mapping[str, "Expr"]) -> "Expr":
        """Returns the expression with each `col(name)` of the mapping replaced by an expression. This may change its
        `name`.
        """
        if self.kind == "col":
            return columns.get(self.option("name"), self)
        if not self.inputs:
            return self
        return Expr(self.kind, tuple(each.substitute(columns) for each in self.inputs), self.options)

    def renamed(self, names: Mapping[str, str]) -> "Expr":
        """Returns the same expression over renamed columns. `names` is {old name: new name}."""
        return self.substitute({old: col(new) for old, new in names.items()})

    def conjuncts(self) -> list["Expr"]:
        """Returns the operands that `&` joins, from left to right; the expression itself if it has no `&`. The
        expression is true for a row if all operands are true.
        """
        if self.kind == "&":
            return [part for each in self.inputs for part in each.conjuncts()]
        return self.inputs[0].conjuncts() if self.kind == "alias" else [self]

    def text(self) -> str:
        """Returns the expression as plans show it: `repr` without the outer parentheses. Two expressions have the
        same text only if they are equal.
        """
        shown = repr(self)
        return shown[1:-1] if self.kind in _BINARY or self.kind in _UNARY else shown

    def __getitem__(self, name: str) -> "Expr":
        """Returns a field of a struct: `col("place")["city"]`."""
        return StructExpr(self._made).field(name)

    # -- nulls and NaN ------------------------------------------------------------------------------------------------

    def is_null(self) -> "Expr":
        """Returns True if the value is null."""
        return Expr("is_null", (self,))

    def is_not_null(self) -> "Expr":
        """Returns True if the value is not null."""
        return Expr("is_not_null", (self,))

    def fill_null(self, value: Any) -> "Expr":
        """Replaces null by a value, or by the value of another expression."""
        return Expr("fill_null", (self, as_expr(value)))

    def is_nan(self) -> "Expr":
        """Returns True if the value is NaN; null stays null."""
        return Expr("is_nan", (self,))

    def is_not_nan(self) -> "Expr":
        """Returns True if the value is a number; null stays null."""
        return ~self.is_nan()

    def is_finite(self) -> "Expr":
        """Returns True if the value is neither NaN nor infinite; null stays null."""
        return Expr("is_finite", (self,))

    def is_infinite(self) -> "Expr":
        """Returns True if the value is infinite, of either sign; null stays null."""
        return Expr("is_infinite", (self,))

    def fill_nan(self, value: Any) -> "Expr":
        """Replaces NaN by a value, by the value of another expression, or by null (None)."""
        return Expr("fill_nan", (self, as_expr(value)))

    # -- values -------------------------------------------------------------------------------------------------------

    def is_in(self, values: Iterable[Any]) -> "Expr":
        """Returns True if the value is one of these; null stays null.

        `values`: a list, a set, or an Arrow array. Raises UserError for a text or an expression.
        """
        if isinstance(values, pa.Array | pa.ChunkedArray):
            values = values.to_pylist()
        if isinstance(values, str | bytes | Expr) or not isinstance(values, Iterable):
            raise UserError(f"is_in: {values!r} is not a list of values", hint='is_in(["DE", "FR"])')
        given = [each.item() if isinstance(each, np.generic) else each for each in values]
        if isinstance(values, set | frozenset):
            given.sort(key=repr)  # so that the text is the same in each process
        return Expr("is_in", (self,), (("values", tuple(given)),))

    def between(self, lower: Any, upper: Any, closed: str = "both") -> "Expr":
        """Returns True if lower <= value <= upper. The bounds are values or expressions.

        `closed`: the bounds that are included: "both", "left", "right" or "none". Raises UserError for another word.
        """
        check("between: closed", closed, OneOf(("both", "left", "right", "none")))
        return Expr("between", (self, as_expr(lower), as_expr(upper)), (("closed", closed),))

    is_between = between

    def abs(self) -> "Expr":
        """Returns the absolute value. The least integer of a type has no positive counterpart in this type, and stays
        negative.
        """
        return Expr("abs", (self,))

    def round(self, decimals: int = 0, *, mode: str = "half_to_even") -> "Expr":
        """Rounds to a number of decimal places. A value in the middle is rounded to the even neighbour, as by
        Python's `round`. Integers do not change.

        `mode`: "half_to_even", or "half_away_from_zero" for 3 of 2.5 and -3 of -2.5; there the middle is that of the
        digits that the value is shown with, so that 2.675 becomes 2.68. Raises UserError for another mode.
        """
        check("round: mode", mode, OneOf(("half_to_even", "half_away_from_zero")))
        options: tuple[tuple[str, Any], ...] = (("decimals", whole_of("round", decimals)),)
        return Expr("round", (self,), options if mode == "half_to_even" else (*options, ("mode", mode)))

    __round__ = round

    def floor(self) -> "Expr":
        """Returns the greatest whole number that is not above the value, of the same type."""
        return Expr("floor", (self,))

    def ceil(self) -> "Expr":
        """Returns the least whole number that is not below the value, of the same type."""
        return Expr("ceil", (self,))

    def sqrt(self) -> "Expr":
        """Returns the square root; NaN for negative numbers."""
        return Expr("sqrt", (self,))

    def exp(self) -> "Expr":
        """Returns e to the power of the value."""
        return Expr("exp", (self,))

    def log(self, base: float = math.e) -> "Expr":
        """Returns the logarithm to `base`, by default e; -inf for 0, NaN for negative numbers.

        Raises UserError if `base` is 1, or is not a positive number.
        """
        if isinstance(base, bool) or not isinstance(base, int | float) or not (base > 0 and base != 1):
            raise UserError(f"log: base {base!r} is not a positive number other than 1", hint="log(2), log(10)")
        return Expr("log", (self,), (("base", float(base)),))

    def sign(self) -> "Expr":
        """Returns -1, 0 or 1, of the same type; NaN for NaN."""
        return Expr("sign", (self,))

    def clip(self, lower: Any = None, upper: Any = None) -> "Expr":
        """Limits the value to the range from `lower` to `upper`, which are values or expressions. NaN stays NaN.

        A bound that is None, or null in a row, does not limit the value. Raises UserError if both bounds are None.
        """
        if lower is None and upper is None:
            raise UserError("clip: there is no bound", hint="clip(0, 100), clip(upper=100)")
        return Expr("clip", (self, as_expr(lower), as_expr(upper)))

    def cut(self, breaks: Sequence[float], labels: Sequence[str] | None = None, left_closed: bool = False) -> "Expr":
        """Returns the label of the interval that contains the value, as a text. For null and NaN the result is null.

        - `breaks`: the bounds between the intervals, in ascending order; n bounds make n + 1 intervals.
        - `labels`: a label for each interval, by default such as "(0, 1]".
        - `left_closed`: True if a value that equals a bound is in the interval above it; False if it is in the one
          below.

        Raises UserError for bounds that are not numbers in ascending order, and for another number of labels.
        """
        bounds = numbers_of("cut", breaks)
        if labels is not None and len(texts := tuple(check("cut: labels", labels, TEXTS))) != len(bounds) + 1:
            raise UserError(
                f"cut: {len(bounds)} breaks make {len(bounds) + 1} intervals, but there are {len(texts)} labels"
            )
        options = (
            ("breaks", bounds),
            ("labels", None if labels is None else texts),
            ("left_closed", check("cut: left_closed", left_closed, FLAG)),
        )
        return Expr("cut", (self,), options)

    def replace(self, old: Any, new: Any = None) -> "Expr":
        """Replaces some values by others: `replace({"NYC": "New York"})` or `replace(["a", "b"], ["x", "y"])`. All
        other values, and the type, stay the same.

        Raises UserError for lists of different length, for a repeated old value, and for a new value that does not
        fit the type.
        """
        return Expr("replace", (self, self), replacements_of("replace", old, new))

    def replace_strict(self, old: Any, new: Any = None, *, default: Any = None) -> "Expr":
        """Replaces values by others, as `replace` does; values without a replacement become `default`. The type of
        the result is that of the new values and of `default`.

        `default`: a value or an expression; None for null.
        """
        return Expr("replace_strict", (self, as_expr(default)), replacements_of("replace_strict", old, new))

    def cast(self, type: Any, strict: bool = True) -> "Expr":
        """Converts to a type. `type`: a pa.DataType, or a name such as "int64", "float64", "string", "timestamp[ms]",
        "timestamp[ms, UTC]".

        A value that does not fit the type is an error of the row (DataError), which the stream's `on_error` handles;
        with `strict=False` it becomes null. Fractions are cut off, and times are rounded down. A timestamp with a
        time zone is converted to the date in this zone. Raises UserError for an unknown type.
        """
        return Expr("cast", (self,), (("type", as_type(type)), ("strict", check("cast: strict", strict, FLAG))))

    def alias(self, name: str) -> "Expr":
        """Returns the expression under another name."""
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
        if kind == GUARDED:
            return repr(inputs[0])
        if kind == "when":
            steps = [f"when({inputs[i]!r}).then({_argument(inputs[i + 1])})" for i in range(0, len(inputs) - 1, 2)]
            return f"{'.'.join(steps)}.otherwise({_argument(inputs[-1])})"
        if kind in _FUNCTIONS:
            words = [_argument(each) for each in inputs]
            words += [f"{name}={option_text(value)}" for name, value in self.options if _DEFAULTS.get(name) != value]
            return f"{kind}({', '.join(words)})"
        if kind == "struct":
            pairs = zip(self.option("names"), inputs, strict=True)
            return f"struct({', '.join(f'{name}={_argument(each)}' for name, each in pairs)})"
        if kind in ("replace", "replace_strict"):
            pairs = zip(self.option("old"), self.option("new"), strict=True)
            words = [f"{{{', '.join(f'{value_text(old)}: {value_text(new)}' for old, new in pairs)}}}"]
            words += [f"default={_operand(inputs[1])}"] if kind == "replace_strict" else []
            return f"{inputs[0]!r}.{kind}({', '.join(words)})"
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
        """The methods for texts, such as `col("name").str.lower()`."""
        return StringExpr(self._made)

    @property
    def dt(self) -> "DateExpr[Expr]":
        """The methods for times: timestamps, dates, and int64 columns of ms since 1970 UTC."""
        return DateExpr(self._made)

    @property
    def struct(self) -> "StructExpr[Expr]":
        """The methods for structs."""
        return StructExpr(self._made)

    @property
    def list(self) -> "ListExpr[Expr]":
        """The methods for lists."""
        return ListExpr(self._made)


def col(name: str) -> Expr:
    """Returns the column of this name as an expression."""
    return Expr("col", (), (("name", check("col: name", name, TEXT)),))


def lit(value: Any, type: Any = None) -> Expr:
    """Returns an expression with this value in every row. A string is a text, not the name of a column.

    `type`: a pa.DataType or its name. By default the value gets the type of the expression with which it is combined;
    without one, it gets a type by its Python type: int64, float64, string and so on. Raises UserError for a value
    that no column can contain, or that is not of the type.
    """
    value, known = literal_of(value, type)
    return Expr("lit", (), (("value", value), ("type", known)))


def as_expr(value: Any) -> Expr:
    """Converts a value to an expression: an aggregate to an expression of its value, and any other value to a
    literal. Returns an expression unchanged.
    """
    if isinstance(value, Expr):
        return value
    return value.expression() if hasattr(value, "expression") else lit(value)


def as_column(value: Any) -> Expr:
    """Returns the column of this name if `value` is a string; otherwise does what `as_expr` does."""
    return col(value) if isinstance(value, str) else as_expr(value)


def _binary(kind: str, left: Any, right: Any) -> Expr:
    return Expr(kind, (as_expr(left), as_expr(right)))


def _compared(kind: str, left: Operators, right: Any) -> Expr:
    if right is None:
        ask = "is_null()" if kind == "==" else "is_not_null()"
        raise UserError(f"{as_expr(left).text()} {kind} None would be null in every row", hint=f"use .{ask}")
    return _binary(kind, left, right)


def _shown(expr: Expr) -> str:
    return value_text(expr.option("value"))


def _operand(expr: Expr) -> str:
    """Returns the text of an operand, or of a method's argument, for plans and messages. A literal without an
    explicit type is shown as Python writes it; any other expression by its `repr`.
    """
    return _shown(expr) if expr.kind == "lit" and expr.option("type") is None else repr(expr)


def _argument(expr: Expr) -> str:
    """Returns the text of an argument that may be the name of a column. To distinguish the two, a literal text is
    shown as lit("…"). Other expressions are shown as by `_operand`.
    """
    return repr(expr) if expr.kind == "lit" and isinstance(expr.option("value"), str) else _operand(expr)
