"""The functions of SQL, each in one line of a table: name, arguments, and the expression of the engine that it becomes.

The meaning of each is that of Flink's documentation ("System (Built-in) Functions").
"""

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import add, and_, or_
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from sabot.api import aggregates as engine
from sabot.api.aggregates import Aggregate
from sabot.api.expr import Expr, coalesce, concat_str, instant, lit, max_horizontal, min_horizontal, struct, when
from sabot.api.expr.time import ZONED
from sabot.base.arrays import decimal_type
from sabot.base.checks import is_whole
from sabot.sql.scope import TypedExpr
from sabot.sql.syntax.text import Span, SqlFault, near_names
from sabot.sql.syntax.tree import Argument, Call, Constant, Expression, Name, Parameter, Word
from sabot.sql.types import months_within, ms_within, sql_type
from sabot.sql.zones import UTC, is_local, on_the_clock, zone_named

_T = TypeVar("_T")


class ArgumentOf(NamedTuple):
    """An argument of a call: its tree, and its bound form unless it is a word such as HOUR."""

    tree: Expression
    bound: TypedExpr | None


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The arguments of one call. `zone`: the session's time zone."""

    call: Call
    items: list[ArgumentOf]
    zone: str

    def __len__(self) -> int:
        return len(self.items)

    def bound(self, i: int) -> TypedExpr:
        """Returns argument `i` with its type."""
        tree, bound = self.items[i]
        if bound is None:
            raise SqlFault(tree.span, "a value is needed here")
        return bound

    def expr(self, i: int) -> Expr:
        """Returns argument `i`."""
        return self.bound(i).expr

    def clock(self, i: int) -> Expr:
        """Returns argument `i`; a TIMESTAMP_LTZ as the time on the clock of the session's zone."""
        return on_the_clock(self.bound(i), self.zone).expr

    def text(self, i: int) -> Expr:
        """Returns argument `i` as a text."""
        return as_text(self.bound(i), self.zone)

    @property
    def exprs(self) -> list[Expr]:
        """All arguments."""
        return [self.expr(i) for i in range(len(self))]

    def exprs_from(self, first: int) -> list[Expr]:
        """Returns the arguments from number `first` on."""
        return [self.expr(i) for i in range(first, len(self))]

    def constant(self, i: int, kind: str, what: str) -> str:
        """Returns argument `i`, which must be a constant of this kind, as it was written, or a parameter with such a value."""
        tree, bound = self.items[i]
        if isinstance(tree, Parameter) and bound is not None:
            value = bound.expr.option("value")
            if isinstance(value, str) if kind == "string" else is_whole(value, 0):
                return str(value)
        if not (isinstance(tree, Constant) and tree.kind == kind):
            hint = 'a column there needs a function of Python: app.register("f", function), or --functions module'
            raise SqlFault(
                tree.span,
                f"{what} of {self.call.name.text} is a constant {kind}",
                "" if isinstance(tree, Constant) else hint,
            )
        return tree.text

    def whole(self, i: int, what: str) -> int:
        """Returns argument `i`, which must be a constant whole number, with a sign or without."""
        expr = self.expr(i)
        value = expr.option("value") if expr.kind == "lit" else None
        return value if isinstance(value, int) else int(self.constant(i, "integer", what))

    def word(self, i: int) -> str:
        """Returns argument `i`, which must be a word."""
        tree = self.items[i].tree
        if not isinstance(tree, Word):
            raise SqlFault(tree.span, "a unit is needed here", "HOUR, DAY, …")
        return tree.text


Make = Callable[[CallArguments], Expr]


@dataclass(frozen=True, slots=True)
class Function:
    """A function: the least and the largest number of its arguments, or None without a limit, their form in a text such as
    "text, start[, length]", and the maker of its expression.
    """

    least: int
    most: int | None
    form: str
    make: Make


def scalar(name: Name, registered: Mapping[str, Any]) -> Make:
    """Returns the function of this name, which checks the number of its arguments. Raises SqlFault if there is none."""
    function = FUNCTIONS.get(name.text.upper())
    if function is None:
        known = [*FUNCTIONS, *AGGREGATES, *registered]
        hint = _ELSEWHERE.get(name.text.upper()) or near_names(name.text, known)
        hint = hint or f'SHOW FUNCTIONS lists them; app.register("{name.text}", function) adds one of Python'
        raise SqlFault(name.span, f"there is no function {name.text}", hint)

    def made(arguments: CallArguments) -> Expr:
        count = len(arguments)
        if count < function.least or (function.most is not None and count > function.most):
            wanted = f"{function.least}" if function.least == function.most else f"{function.least} to {function.most}"
            wanted = f"at least {function.least}" if function.most is None else wanted
            message = f"{name.text.upper()} takes {wanted} argument{'s' * (wanted != '1')}, and there are {count}"
            raise SqlFault(arguments.call.span, message, f"{name.text.upper()}({function.form})")
        return function.make(arguments)

    return made


_WINDOW_TABLE = "FROM TABLE(TUMBLE(TABLE t, DESCRIPTOR(ts), INTERVAL '1' HOUR)) GROUP BY window_start, window_end"
_WINDOW_SELECT = "SELECT TUMBLE_START(ts, INTERVAL '1' HOUR), and GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)"
_PERCENTILES = ("MEDIAN", "QUANTILE", "PERCENTILE_CONT", "PERCENTILE_DISC", "APPROX_PERCENTILE", "QUANTILE_CONT")
_WINDOW_GROUP = "GROUP BY TUMBLE(ts, INTERVAL '1' HOUR)"

_GREATEST = "QUALIFY ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC) = 1"
_CLOCK = "a column of event time; the clock's value would differ after a restart (PROCTIME() in DESCRIPTOR and AS OF)"

_ELSEWHERE = {
    **dict.fromkeys(("CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "LOCALTIMESTAMP", "LOCALTIME"), _CLOCK),
    **dict.fromkeys(("NOW", "CURRENT_ROW_TIMESTAMP", "GETDATE", "SYSDATE", "CURDATE"), _CLOCK),
    **dict.fromkeys(
        ("RAND", "RANDOM", "RAND_INTEGER", "UUID", "MD5", "SHA1", "SHA256"), "app.register, with a function of Python"
    ),
    **dict.fromkeys(
        _PERCENTILES, "PERCENTILE(x, 0.5): the median; 0.9 in place of 0.5 is exceeded by a tenth of the values"
    ),
    **dict.fromkeys(("TUMBLE", "HOP", "SESSION", "CUMULATE"), _WINDOW_SELECT),
    **dict.fromkeys(("LENGTH", "LEN"), "CHAR_LENGTH(text)"),
    **dict.fromkeys(("STRING_AGG", "GROUP_CONCAT"), "LISTAGG(text, ',')"),
    **dict.fromkeys(("STRFTIME", "TO_CHAR", "FORMAT_TIMESTAMP", "FORMAT_DATE"), "DATE_FORMAT(ts, 'yyyy-MM-dd')"),
    **dict.fromkeys(("DATEDIFF", "DATE_DIFF"), "TIMESTAMPDIFF(DAY, start, end)"),
    **dict.fromkeys(("DATEADD", "DATE_ADD"), "ts + INTERVAL '1' DAY"),
    "STRPTIME": "TO_TIMESTAMP(text, 'yyyy-MM-dd HH:mm:ss')",
    **dict.fromkeys(("IIF", "IFF"), "IF(condition, x, y)"),
    **dict.fromkeys(("CONVERT", "TRY_CONVERT"), "CAST(x AS BIGINT), or TRY_CAST"),
    **dict.fromkeys(("CHARINDEX", "STRPOS"), "POSITION(part IN text)"),
    **dict.fromkeys(("SPLIT_PART", "SUBSTRING_INDEX"), "SPLIT_INDEX(text, ',', 0): the first part is 0"),
    **dict.fromkeys(("ARG_MAX", "MAX_BY", "ARG_MIN", "MIN_BY"), _GREATEST),
    **dict.fromkeys(("COUNT_IF", "COUNTIF", "SUM_IF", "SUMIF"), "COUNT(*) FILTER (WHERE condition)"),
    **dict.fromkeys(("ROW_NUMBER", "RANK", "DENSE_RANK"), "ROW_NUMBER() OVER (PARTITION BY key ORDER BY x DESC)"),
    "DATE_PART": "EXTRACT(HOUR FROM ts)",
    "UNIX_TIMESTAMP": "EXTRACT(EPOCH FROM ts); the clock's own value would differ after a restart",
    "DAYNAME": "DATE_FORMAT(ts, 'EEEE')",
    "MONTHNAME": "DATE_FORMAT(ts, 'MMMM')",
    **dict.fromkeys(("TO_UNIXTIME", "EPOCH", "EPOCH_MS", "UNIX_MILLIS"), "EXTRACT(EPOCH FROM ts)"),
    "FROM_UNIXTIME": "TO_TIMESTAMP_LTZ(seconds, 0)",
    "CONTAINS": "text LIKE '%part%'",
    **dict.fromkeys(("EXPLODE", "UNNEST", "FLATTEN"), "CROSS JOIN UNNEST(array) AS t (x)"),
    **dict.fromkeys(("LIST", "COLLECT_LIST", "ARRAY_AGG_DISTINCT", "GROUP_ARRAY"), "ARRAY_AGG(x)"),
    "COLLECT_SET": "LISTAGG(DISTINCT x), or COUNT(DISTINCT x)",
    **dict.fromkeys(("FIRST", "ARBITRARY"), "FIRST_VALUE(x)"),
    "LAST": "LAST_VALUE(x)",
    "DATE": "DATE '2024-05-17', or CAST(text AS DATE)",
    "TIMESTAMP": "TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP(text)",
    "DATETIME": "TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP(text)",
    "COLUMNS": "name the columns",
    **dict.fromkeys(("STRUCT", "ROW", "NAMED_STRUCT"), "a column for each value, or JSON_OBJECT(KEY 'a' VALUE x)"),
    "ANY_VALUE": "FIRST_VALUE(x)",
    "ARRAY_LENGTH": "CARDINALITY(array)",
    "JSON_EXTRACT": "JSON_VALUE(text, '$.name')",
    "CLASSIFIER": "a measure for each variable: COUNT(A.x) AS a, COUNT(B.x) AS b",
    "MATCH_NUMBER": "ROW_NUMBER() in a query outside",
    "NEXT": "a variable for the next row: PATTERN (A B)",
    "PREV": "LAST(A.x, 1): the row before, in the match; or LAG(x) OVER (ORDER BY ts) in a query inside",
    "LAG": "LAG(x) OVER (ORDER BY ts)",
    "LEAD": "LEAD(x) OVER (ORDER BY ts)",
    **dict.fromkeys(("DATE_TRUNC", "TIMESTAMP_TRUNC", "DATETIME_TRUNC"), "FLOOR(ts TO HOUR)"),
    "REGEXP_LIKE": "REGEXP(text, pattern)",
    "SAFE_DIVIDE": "x / NULLIF(y, 0)",
    "STRING": "CAST(x AS STRING)",
    "ISNULL": "IFNULL(x, y), or x IS NULL",
    "NVL": "COALESCE(x, y)",
    "TIME_BUCKET": _WINDOW_TABLE,
    "WINDOW": _WINDOW_TABLE,
    "TUMBLE_START": _WINDOW_GROUP,
    "TUMBLE_END": _WINDOW_GROUP,
}
"""What to write for functions of other dialects, and for those that need their group."""


def is_known(name: str) -> bool:
    """Returns True if SQL has a function or an aggregate of this name, in capitals."""
    return name in FUNCTIONS or name in AGGREGATES


def is_word(tree: Expression) -> bool:
    """Returns True for an argument that is a word of the language and no value, such as the ERROR of ERROR ON EMPTY."""
    return isinstance(value_of(tree), Word)


def value_of(tree: Expression) -> Expression:
    """Returns the value of an argument that has a name, such as DEFAULT 0 ON EMPTY; any other argument unchanged."""
    return tree.value if isinstance(tree, Argument) else tree


def balanced(items: Sequence[_T], join: Callable[[_T, _T], _T]) -> _T:
    """Returns the items joined in pairs, and these again, so that a thousand of them are ten levels deep: as a chain, they
    would be deeper than Python's stack.
    """
    if len(items) == 1:
        return items[0]
    half = len(items) // 2
    return join(balanced(items[:half], join), balanced(items[half:], join))


def is_number(type: pa.DataType) -> bool:
    """Returns True for integers, floats and decimals."""
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type))


# -- numbers ----------------------------------------------------------------------------------------------------------


def beside(left: TypedExpr, right: TypedExpr) -> tuple[TypedExpr, TypedExpr]:
    """Returns two operands whose constant is a plain literal if the other one decides the type: BIGINT + 1, FLOAT * 2.
    A constant is an INT, and decides beside narrower numbers: SMALLINT * 1000 is an INT. A FLOAT beside a whole number
    makes a FLOAT of both.
    """
    if left.type == pa.float32() and pa.types.is_integer(right.type):
        return left, _beside(right, left)
    if right.type == pa.float32() and pa.types.is_integer(left.type):
        return _beside(left, right), right
    return (_beside(left, right), right) if left.expr.kind == "lit" else (left, _beside(right, left))


def _beside(one: TypedExpr, other: TypedExpr) -> TypedExpr:
    is_whole_number = pa.types.is_integer(one.type)
    if is_whole_number and one.expr.kind == "lit" and other.expr.kind != "lit" and is_number(other.type):
        narrower = pa.types.is_integer(other.type) and other.type.bit_width < one.type.bit_width
        return one if narrower else TypedExpr(lit(one.expr.option("value")), one.type)
    if is_whole_number and other.type == pa.float32():
        return TypedExpr(one.expr.cast(other.type), other.type)
    return one


def divided(operator: str, left: TypedExpr, right: TypedExpr, *, positive: bool = False) -> Expr:
    """Returns `/` or `%` of Flink: `/` of integers and `%` of all numbers truncate towards zero (the engine's `//` and `%` round down).
    `positive`: True if the divisor is known to be greater than 0.
    """
    a, b = left.expr, right.expr
    if not all(map(is_number, (left.type, right.type))):
        return a / b if operator == "/" else a % b
    if operator == "/" and not all(pa.types.is_integer(each.type) for each in (left, right)):
        return a / b
    if any(pa.types.is_floating(each.type) for each in (left, right)):
        return Expr("fmod", (a, b))
    quotient, rest = a // b, a % b
    positive = positive or (right.expr.kind == "lit" and right.expr.option("value") > 0)
    apart = (rest != 0) & ((a < 0) if positive else (a < 0) ^ (b < 0))
    whole = all(pa.types.is_integer(each.type) for each in (left, right))
    narrow = whole and left.type.bit_width < 64 and right.type.bit_width < 64  # else a literal has 64 bits by itself
    one, nothing = (lit(each, left.type if narrow else None) for each in (1, 0))
    if operator == "/":
        return quotient + when(apart).then(one).otherwise(nothing)
    return rest - when(apart).then(b).otherwise(nothing)


_AWAY = "half_away_from_zero"
_MOST_DIGITS = 38
_KEPT_DIGITS = 6  # the digits behind the point that a product keeps, if those in front of it have no room


def _roomy(expr: Expr, type: pa.DataType) -> Expr:
    """Returns a decimal in a type with one digit more, since 9.5 is 10 if it is rounded."""
    return expr.cast(decimal_type(type.precision + 1, type.scale))


def product(left: TypedExpr, right: TypedExpr) -> Expr:
    """Returns `*`. A product of decimals with more than 38 digits gives up digits behind the point down to 6, as Flink's:

    DECIMAL(38, 18) * DECIMAL(38, 18)   DECIMAL(38, 6)
    """
    types = [each.type for each in (left, right)]
    if not all(map(pa.types.is_decimal, types)):
        return left.expr * right.expr
    digits, scale = sum(each.precision for each in types), sum(each.scale for each in types)
    kept = max(_MOST_DIGITS - (digits - scale), min(scale, _KEPT_DIGITS))
    if digits <= _MOST_DIGITS or kept >= scale:
        return left.expr * right.expr
    room = _MOST_DIGITS - (digits == 2 * _MOST_DIGITS)  # 76 digits are the most of any decimal
    wide = [each.expr.cast(pa.decimal256(min(each.type.precision, room), each.type.scale)) for each in (left, right)]
    return (wide[0] * wide[1]).round(kept, mode=_AWAY).cast(pa.decimal128(_MOST_DIGITS, kept))


def cast(operand: TypedExpr, target: pa.DataType, zone: str, *, strict: bool) -> Expr:
    """Returns CAST of Flink: a fraction is cut off where the target is an integer, and rounded where it is a decimal with fewer digits.
    A TIMESTAMP_LTZ is a time on the clock of the session's zone.
    """
    expr, type = operand
    if is_local(target) and not is_local(type) and zone != UTC:
        if pa.types.is_temporal(type) or pa.types.is_string(type):
            clock = pa.timestamp(target.unit)
            if not pa.types.is_string(type):
                return instant(expr if type == clock else expr.cast(clock, strict=strict), zone)
            made = instant(_read(expr, clock, strict), zone)
            return when(expr.str.contains(ZONED)).then(_read(expr, target, strict)).otherwise(made)
    elif is_local(type) and not is_local(target) and pa.types.is_temporal(target):
        expr, type = on_the_clock(operand, zone)
    if pa.types.is_string(target):
        return as_text(operand, zone)
    if pa.types.is_integer(target) and pa.types.is_decimal(type) and type.scale:
        expr = _roomy(expr, type)
        expr = when(expr < 0).then(expr.ceil()).otherwise(expr.floor())
    if pa.types.is_decimal(target) and pa.types.is_floating(type):
        expr = expr.round(target.scale, mode=_AWAY)
    if pa.types.is_decimal(target) and pa.types.is_decimal(type) and type.scale > target.scale:
        expr = _roomy(expr, type).round(target.scale, mode=_AWAY)
    if pa.types.is_boolean(type) and is_number(target):
        return when(expr).then(lit(1)).when(~expr).then(lit(0)).otherwise(lit(None)).cast(target)
    return _read(expr, target, strict) if pa.types.is_string(type) else expr.cast(target, strict=strict)


def _read(texts: Expr, target: pa.DataType, strict: bool) -> Expr:
    """Returns the values of texts, which Flink reads more generously than the engine: ' 12 ', '12.7' as an INT, 'yes',
    '2024-4-5'.
    """
    return Expr("cast", (texts,), (("type", target), ("strict", strict), ("lenient", True)))


def _mod(arguments: CallArguments) -> Expr:
    return divided("%", *beside(arguments.bound(0), arguments.bound(1)))


_TRUNCATED = {
    **{"SECOND": "1s", "MINUTE": "1m", "HOUR": "1h", "DAY": "1d", "WEEK": "1w"},
    **{"MONTH": "1mo", "QUARTER": "1q", "YEAR": "1y"},
}


def _rounded(method: str, arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        expr, type = arguments.bound(0)
        if not pa.types.is_decimal(type):
            return getattr(expr, method)()  # type: ignore[no-any-return]
        whole = getattr(_roomy(expr, type), method)()
        return whole.cast(pa.decimal128(type.precision, 0)) if type.scale else expr
    unit = arguments.word(1)
    every = _TRUNCATED.get(unit)
    if every is None:
        name = arguments.call.name.text.upper()
        message = f"{name}(… TO {unit}) is not supported"
        raise SqlFault(arguments.items[1].tree.span, message, f"there are {', '.join(_TRUNCATED)}")
    time = arguments.clock(0)
    made = time.dt.date_trunc(every)
    if method == "ceil":
        made = when(made == time).then(made).otherwise(made.dt.offset_by(every))
    is_instant = is_local(arguments.bound(0).type) and arguments.zone != UTC
    return instant(made, arguments.zone) if is_instant else made


def _round(arguments: CallArguments) -> Expr:
    digits = arguments.whole(1, "the number of digits") if len(arguments) > 1 else 0
    expr, type = arguments.bound(0)
    if digits < 0 and pa.types.is_integer(type):
        return expr.cast("decimal(20, 0)").round(digits, mode=_AWAY).cast(type)
    if not pa.types.is_decimal(type):
        return expr.round(digits, mode=_AWAY)
    if digits >= type.scale:
        return expr
    kept = max(digits, 0)
    precision = min(type.precision - type.scale + kept + 1, _MOST_DIGITS)
    return _roomy(expr, type).round(digits, mode=_AWAY).cast(pa.decimal128(precision, kept))


def _log(arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        return arguments.expr(0).log()
    return arguments.expr(1).log() / arguments.expr(0).log()


def _extreme(pick: Callable[..., Expr], arguments: CallArguments) -> Expr:
    """Returns the greatest or the least argument, by `pick`; NULL if one of them is NULL."""
    bounds = [arguments.bound(i) for i in range(len(arguments))]
    units = [each.type.unit for each in bounds if is_local(each.type)]
    local = pa.timestamp(max(units, key=("s", "ms", "us", "ns").index), tz=UTC) if units else None
    exprs = [
        cast(each, local, arguments.zone, strict=True) if local is not None and each.type != local else each.expr
        for each in bounds
    ]
    nulls = balanced([each.is_null() for each in exprs], or_)
    if all(pa.types.is_boolean(each.type) or pa.types.is_null(each.type) for each in bounds):
        return when(nulls).then(lit(None)).otherwise(balanced(exprs, or_ if pick is max_horizontal else and_))
    floats = [each.expr for each in bounds if pa.types.is_floating(each.type) and each.expr.kind != "lit"]
    chosen = when(nulls).then(lit(None))
    if floats and pick is max_horizontal:  # NaN is the greatest number; the engine leaves it out
        chosen = chosen.when(balanced([each.is_nan() for each in floats], or_)).then(lit(math.nan))
    return chosen.otherwise(pick(*exprs))


def _power(arguments: CallArguments) -> Expr:
    """Returns POWER, which is a DOUBLE for whole numbers too, as in Flink: their powers soon exceed a BIGINT."""
    base, exponent = (
        each.expr if pa.types.is_floating(each.type) else each.expr.cast("float64")
        for each in (arguments.bound(0), arguments.bound(1))
    )
    return base**exponent


# -- texts ------------------------------------------------------------------------------------------------------------


def as_text(bound: TypedExpr, zone: str) -> Expr:
    """Returns the value as a text; a TIMESTAMP_LTZ as the time on the clock of the session's zone."""
    expr, type = on_the_clock(bound, zone)
    if pa.types.is_string(type):
        return expr
    if pa.types.is_boolean(type):
        return when(expr).then(lit("TRUE")).when(~expr).then(lit("FALSE")).otherwise(lit(None))
    value = expr.option("value") if expr.kind == "lit" else None
    if isinstance(value, datetime.datetime | datetime.time) and not is_local(type):
        text = f"{value:%H:%M:%S.%f}" if isinstance(value, datetime.time) else f"{value:%Y-%m-%d %H:%M:%S.%f}"
        return lit(text.rstrip("0").rstrip("."))  # it has the digits that are written
    return (expr.dt.replace_time_zone(None) if is_local(type) else expr).cast("string")


def like(operand: Expr, pattern: str, escape: str, span: Span) -> Expr:
    """Returns operand LIKE pattern."""
    if len(escape) > 1:
        raise SqlFault(span, "ESCAPE has one character")
    parts: list[str | None] = []  # a text, or None for %
    single = False
    i = 0
    while i < len(pattern):
        character = pattern[i]
        if character == escape:
            i += 1
            if i == len(pattern):
                raise SqlFault(span, "the pattern ends with its escape character")
            parts.append(re.escape(pattern[i]))
        elif character == "%":
            parts.append(None)
        elif character == "_":
            single = True
            parts.append(".")
        else:
            parts.append(re.escape(character))
        i += 1
    plain = re.sub(r"%", "", pattern)
    if not single and not escape:
        if "%" not in pattern:
            return operand == lit(pattern)
        if pattern == f"%{plain}%":
            return operand.str.contains(plain, literal=True)
        if pattern == f"{plain}%":
            return operand.str.startswith(plain)
        if pattern == f"%{plain}":
            return operand.str.endswith(plain)
    return operand.str.contains("(?s)^" + "".join(".*" if each is None else each for each in parts) + "$")


def _trim(arguments: CallArguments) -> Expr:
    if len(arguments) == 1:
        return arguments.expr(0).str.strip(" ")
    side = arguments.word(0)
    characters = arguments.constant(1, "string", "the characters") if len(arguments) == 3 else " "
    text = arguments.expr(len(arguments) - 1).str
    return {"BOTH": text.strip, "LEADING": text.strip_start, "TRAILING": text.strip_end}[side](characters)


def _substring(arguments: CallArguments) -> Expr:
    """Returns a part of a text from a position, 1 at its start and -1 at its last character."""
    text, start = arguments.expr(0), arguments.whole(1, "the position")
    length = arguments.whole(2, "the length") if len(arguments) > 2 else None
    if length is not None and length < 0:
        raise SqlFault(arguments.items[2].tree.span, "a part of a text is not shorter than 0", "a length of 0 or more")
    if start == 0:
        hint = "1 is the first character, -1 the last one"
        raise SqlFault(arguments.items[1].tree.span, "positions of a text begin at 1", hint)
    made = text.str.slice(start - 1 if start > 0 else start, length)
    return made if start > 0 else when(text.str.length() < -start).then(lit("")).otherwise(made)


def _concat(arguments: CallArguments) -> Expr:
    return balanced([arguments.text(i) for i in range(len(arguments))], add)


def _split_index(arguments: CallArguments) -> Expr:
    index = int(arguments.constant(2, "integer", "the index"))
    return arguments.expr(0).str.split(arguments.constant(1, "string", "the separator")).list.get(index)


def _regexp_extract(arguments: CallArguments) -> Expr:
    pattern = arguments.constant(1, "string", "the pattern")
    group = int(arguments.constant(2, "integer", "the group")) if len(arguments) > 2 else 0
    if group == 0:
        pattern, group = f"({pattern})", 1
    return arguments.expr(0).str.regexp_extract(pattern, group)


def _regexp_replace(arguments: CallArguments) -> Expr:
    pattern = arguments.constant(1, "string", "the pattern")
    value = re.sub(r"\$(\d)", r"${\1}", arguments.constant(2, "string", "the replacement"))
    return arguments.expr(0).str.replace_all(pattern, value)


def _replace(arguments: CallArguments) -> Expr:
    old, new = (arguments.constant(i, "string", "the text") for i in (1, 2))
    return arguments.expr(0).str.replace_all(old, new, literal=True)


def _pad(method: str, arguments: CallArguments) -> Expr:
    """Returns LPAD or RPAD, by `method`: the text cut or filled to a length; NULL if there is nothing to fill it with."""
    length = arguments.whole(1, "the length")
    fill = arguments.constant(2, "string", "the characters")
    if (
        length < 0 or not fill
    ):  # NULL, from a condition that is never true: each argument is checked, and part of the plan
        return when(arguments.expr(0).str.length() < -abs(length) - 1).then(lit(fill)).otherwise(lit(None))
    text = arguments.expr(0).str.slice(0, length)
    return Expr(f"str.{method}", (text,), (("length", length), ("fill_char", fill)))


def _ends(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0).str, method)(arguments.constant(1, "string", "the text"))  # type: ignore[no-any-return]


def _left(arguments: CallArguments) -> Expr:
    return arguments.expr(0).str.slice(0, _count(arguments))


def _right(arguments: CallArguments) -> Expr:
    count = _count(arguments)
    return arguments.expr(0).str.slice(-count) if count else arguments.expr(0).str.slice(0, 0)


def _count(arguments: CallArguments) -> int:
    return int(arguments.constant(1, "integer", "the number of characters"))


def _place(text: int, wanted: int, arguments: CallArguments) -> Expr:
    """Returns the place of a text in another one, from 1; 0 if it is nowhere. `text`, `wanted`: their arguments."""
    part = arguments.constant(wanted, "string", "the text to find")
    whole = arguments.expr(text)
    if not part:  # before the first character, as everywhere
        return when(whole.is_not_null()).then(lit(1, "int32")).otherwise(lit(None))
    before = whole.str.split(part).list.get(0).str.length()
    return (
        when(whole.str.contains(part, literal=True))
        .then(before + lit(1))
        .when(whole.is_not_null())
        .then(lit(0))
        .otherwise(lit(None))
    )


def _concat_ws(arguments: CallArguments) -> Expr:
    """Joins the texts that are not NULL."""
    by = arguments.constant(0, "string", "the separator")
    texts = [arguments.text(i) for i in range(1, len(arguments))]
    return concat_str(*texts, separator=by, ignore_nulls=True)


# -- JSON -------------------------------------------------------------------------------------------------------------


def _json_path(arguments: CallArguments) -> str:
    return arguments.constant(1, "string", "the path")


@dataclass(frozen=True, slots=True)
class _JsonMatch:
    """The value at a path of a JSON text, and the conditions under which it has none.

    `only`: the kind of values that the function takes, see `StringExpr.json_path_match`. `empty`: nothing is there, or JSON's
    null, or a value of another kind. `error`: the text is no JSON; for a path that begins with `strict`, also if nothing is
    there, or a value of another kind.
    """

    made: Expr
    only: str
    empty: Expr
    error: Expr


def _json_match(arguments: CallArguments, only: str) -> _JsonMatch:
    text, path = arguments.expr(0).str, _json_path(arguments)
    made, is_json = text.json_path_match(path, only), text.is_json()
    absent = is_json & made.is_null()
    if not _is_strict(path):
        return _JsonMatch(made, only, absent, ~is_json)
    null = text.json_exists(path) & text.json_path_match(path).is_null()
    return _JsonMatch(made, only, absent & null, ~is_json | (absent & ~null))


def _is_strict(path: str) -> bool:
    return path.split()[:1] == ["strict"]


def _json_options(arguments: CallArguments) -> dict[str, ArgumentOf]:
    """Returns the arguments RETURNING, EMPTY and ERROR."""
    return {each.tree.name.text: each for each in arguments.items[2:] if isinstance(each.tree, Argument)}


def _on_events(arguments: CallArguments, match: _JsonMatch, made: Expr) -> Expr:
    """Returns `made` with the values of ON EMPTY and ON ERROR in their places."""
    options = _json_options(arguments)
    for event, found in (("EMPTY", match.empty), ("ERROR", match.error)):
        option = options.get(event)
        if option is None:
            continue
        if option.bound is None:  # ERROR ON …: a strict search, which fails, over the texts of these rows alone
            texts = when(found).then(arguments.expr(0)).otherwise(lit(None))
            failing = texts.str.json_path_match(_json_path(arguments), match.only, strict=True)
            made = when(found & failing.is_null()).then(lit(None)).otherwise(made)
        elif not pa.types.is_null(option.bound.type):
            default = option.bound.expr if "RETURNING" in options else _default(option.bound, arguments.zone)
            made = when(found).then(default).otherwise(made)
    return made


def _json_value(arguments: CallArguments) -> Expr:
    match, options = _json_match(arguments, "scalar"), _json_options(arguments)
    returned = options.get("RETURNING")
    if returned is None:
        made = _with_defaults(arguments, match)
        return _on_events(arguments, match, match.made) if made is None else made
    assert returned.bound is not None
    fails = "ERROR" in options and options["ERROR"].bound is None
    made = cast(TypedExpr(match.made, pa.string()), returned.bound.type, arguments.zone, strict=fails)
    other = match.made.is_not_null() & made.is_null()  # a text that is no value of this type
    return _on_events(arguments, match if fails else replace(match, error=match.error | other), made)


def _with_defaults(arguments: CallArguments, match: _JsonMatch) -> Expr | None:
    """Returns the value at a path with constants in the place of nulls, or None for a strict path and other options.

    A text that is no JSON has no value, so a null is the error of such a text, and the empty value of any other. Each
    text is read twice, and not once more for each condition.
    """
    texts = arguments.expr(0)
    defaults: dict[str, Expr] = {}
    for event, option in _json_options(arguments).items():
        if option.bound is None or option.bound.expr.kind != "lit":
            return None
        defaults[event] = _default(option.bound, arguments.zone)
    if not defaults or _is_strict(_json_path(arguments)):
        return None
    nothing = lit(None, pa.string())
    error = when(texts.is_not_null()).then(defaults["ERROR"]).otherwise(nothing) if "ERROR" in defaults else nothing
    empty = defaults.get("EMPTY", nothing)
    return coalesce(match.made, when(texts.str.is_json()).then(empty).otherwise(error))


def _default(bound: TypedExpr, zone: str) -> Expr:
    """Returns a default of JSON_VALUE as a text; true and false as JSON has them."""
    return bound.expr.cast("string") if pa.types.is_boolean(bound.type) else as_text(bound, zone)


def _json_query(arguments: CallArguments) -> Expr:
    wrapper = arguments.word(2)
    match = _json_match(arguments, "nested" if wrapper == "WITHOUT" else "json")
    made = match.made
    if wrapper != "WITHOUT":
        wrapped = lit("[") + made + lit("]")
        made = wrapped if wrapper == "UNCONDITIONAL" else when(made.str.startswith("[")).then(made).otherwise(wrapped)
    return _on_events(arguments, match, made)


def _json_exists(arguments: CallArguments) -> Expr:
    text, path = arguments.expr(0), _json_path(arguments)
    exists = text.str.json_exists(path)
    error = ~exists if _is_strict(path) else ~text.str.is_json()
    behaviour = arguments.word(2) if len(arguments) > 2 else "FALSE"
    if behaviour == "FALSE":  # `exists` says so already
        return exists
    if behaviour == "ERROR":
        whole = when(error).then(text).otherwise(lit(None)).str.json_path_match(path, strict=True)
        return when(error & whole.is_null()).then(lit(False)).otherwise(exists)
    return when(error).then(lit({"TRUE": True, "UNKNOWN": None}[behaviour])).otherwise(exists)


def _json_object(arguments: CallArguments) -> Expr:
    items, absent = _without_on_null(arguments, absent=False)
    members = []
    for i in range(0, len(items), 2):
        key = arguments.constant(i, "string", "a key")
        members.append(_member(json.dumps(key, ensure_ascii=False) + ":", items[i + 1], absent))
    return _enclosed("{", members, "}")


def _json_array(arguments: CallArguments) -> Expr:
    items, absent = _without_on_null(arguments, absent=True)
    return _enclosed("[", [_member("", item, absent) for item in items], "]")


def _without_on_null(arguments: CallArguments, absent: bool) -> tuple[list[ArgumentOf], bool]:
    last = arguments.items[-1].tree if arguments.items else None
    return (arguments.items[:-1], last.text == "ABSENT") if isinstance(last, Word) else (arguments.items, absent)


_MADE_JSON = ("JSON_OBJECT", "JSON_ARRAY", "JSON_QUERY")


def _member(key: str, item: ArgumentOf, absent: bool) -> Expr:
    """Returns a comma, the key and the value as JSON; "" for NULL if it is `absent`."""
    assert item.bound is not None
    expr, tree = item.bound.expr, item.tree
    is_json = isinstance(tree, Call) and tree.name.text.upper() in _MADE_JSON
    # {"v":1} without its first five characters and its last one
    value = (
        expr.fill_null("null") if is_json else struct(v=expr).struct.json_encode().str.slice(5).str.replace(r"\}$", "")
    )
    made = lit(f",{key}") + value
    return when(expr.is_null()).then(lit("")).otherwise(made) if absent else made


def _enclosed(first: str, members: Sequence[Expr], last: str) -> Expr:
    return lit(first) + balanced([lit(""), *members], add).str.slice(1) + lit(last)


# -- times ------------------------------------------------------------------------------------------------------------

_PARTS: dict[str, Callable[[Expr], Expr]] = {
    "YEAR": lambda x: x.dt.year(),
    "QUARTER": lambda x: x.dt.quarter(),
    "MONTH": lambda x: x.dt.month(),
    "WEEK": lambda x: x.dt.week(),
    "DAY": lambda x: x.dt.day(),
    "DOY": lambda x: x.dt.ordinal_day(),
    "DOW": lambda x: x.dt.day_of_week() % lit(7) + lit(1),
    "ISODOW": lambda x: x.dt.day_of_week(),
    "HOUR": lambda x: x.dt.hour(),
    "MINUTE": lambda x: x.dt.minute(),
    "SECOND": lambda x: x.dt.second(),
    "MILLISECOND": lambda x: x.dt.millisecond(),
    "EPOCH": lambda x: x.dt.epoch("s"),
}

_JAVA = {
    "yyyy": "%Y",
    "yy": "%y",
    "MM": "%m",
    "dd": "%d",
    "HH": "%H",
    "hh": "%I",
    "mm": "%M",
    "ss": "%S",
    "a": "%p",
    "DDD": "%j",
    "EEE": "%a",
    "EEEE": "%A",
    "MMM": "%b",
    "MMMM": "%B",
}


_WRITTEN = {
    "Z": "%z",
    "M": "%-m",
    "d": "%-d",
    "H": "%-H",
    "h": "%-I",
    "m": "%-M",
    "s": "%-S",
    "SSS": "%3f",
    "SSSSSS": "%6f",
}
_READ = {"M": "%m", "d": "%d", "H": "%H", "m": "%M", "s": "%S", "SSS": "%3f", "SSSSSS": "%6f"}


def java_format(pattern: str, span: Span, *, reads: bool = False) -> str:
    """Returns a pattern of Java's DateTimeFormatter ("yyyy-MM-dd") as one of strftime; `reads`: as one that reads texts.
    Raises SqlFault for letters that have no equivalent.
    """
    made, known = [], _JAVA | (_READ if reads else _WRITTEN)
    for match in re.finditer(r"'((?:[^']|'')*)'|([A-Za-z])\2*|(.)", pattern, re.DOTALL):
        quoted, letter, other = match.groups()
        if quoted is not None:
            made.append((quoted.replace("''", "'") or "'").replace("%", "%%"))
        elif letter is not None:
            word = match.group()
            if word not in known:
                java = "patterns are Java's: yyyy-MM-dd HH:mm:ss" if "%" in pattern else f"there are {', '.join(known)}"
                raise SqlFault(span, f"{word} of the pattern has no equivalent", java)
            made.append(known[word])
        else:
            made.append(other.replace("%", "%%"))
    return "".join(made)


def _extract(arguments: CallArguments) -> Expr:
    part = _PARTS.get(arguments.word(0))
    if part is None:
        raise SqlFault(arguments.items[0].tree.span, f"EXTRACT({arguments.word(0)} …) is not supported")
    return part(arguments.expr(1) if arguments.word(0) == "EPOCH" else arguments.clock(1))


def _date_format(arguments: CallArguments) -> Expr:
    tree, time = arguments.items[1].tree, arguments.clock(0)
    if pa.types.is_string(arguments.bound(0).type):
        time = _read(time, pa.timestamp("us"), strict=False)
    format = java_format(arguments.constant(1, "string", "the pattern"), tree.span)
    if "%z" in format and is_local(arguments.bound(0).type):
        return arguments.expr(0).dt.convert_time_zone(arguments.zone).dt.strftime(format)
    return time.dt.strftime(re.sub(r"((?:%%)*)%z", r"\1+0000", format))


def _to_time(method: str, arguments: CallArguments) -> Expr:
    format = None
    if len(arguments) > 1:
        tree = arguments.items[1].tree
        format = java_format(arguments.constant(1, "string", "the pattern"), tree.span, reads=True)
    if format is None:
        type = pa.date32() if method == "to_date" else pa.timestamp("us")
        return _read(arguments.expr(0), type, strict=False)
    return getattr(arguments.expr(0).str, method)(format, strict=False)  # type: ignore[no-any-return]


def _convert_tz(arguments: CallArguments) -> Expr:
    """Returns a local time as a text on the clock of another zone."""
    before, after = (arguments.constant(i, "string", "the time zone") for i in (1, 2))
    there = _read(arguments.expr(0), pa.timestamp("us"), strict=False)
    return instant(there, before).dt.convert_time_zone(after).dt.strftime("%Y-%m-%d %H:%M:%S")


def _to_timestamp_ltz(arguments: CallArguments) -> Expr:
    if pa.types.is_string(arguments.bound(0).type):
        zone = arguments.constant(2, "string", "the time zone") if len(arguments) > 2 else UTC
        known = zone_named(zone)
        if known is None:
            raise SqlFault(arguments.items[2].tree.span, f"there is no time zone '{zone}'", "'Europe/Berlin', 'UTC'")
        return instant(_to_time("to_datetime", arguments), known)
    digits = int(arguments.constant(1, "integer", "the number of digits")) if len(arguments) > 1 else 3
    if digits not in (0, 3):
        raise SqlFault(arguments.items[1].tree.span, "the number of digits is 0 for seconds, or 3 for milliseconds")
    ms = arguments.expr(0) * lit(1000) if digits == 0 else arguments.expr(0)
    return ms.cast(pa.timestamp("ms", tz="UTC"))


_DAY_MS = 86_400_000
_TABLE_UNITS_MS = {"SECOND": 1000, "MINUTE": 60_000, "HOUR": 3_600_000, "DAY": 86_400_000, "WEEK": 604_800_000}


def _unit_ms(arguments: CallArguments) -> int:
    unit = arguments.word(0)
    if unit not in _TABLE_UNITS_MS:
        raise SqlFault(arguments.items[0].tree.span, f"{unit} is no unit of {arguments.call.name.text}", "DAY, HOUR, …")
    return _TABLE_UNITS_MS[unit]


_UNIT_MONTHS = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}


def _timestampdiff(arguments: CallArguments) -> Expr:
    if (months := _UNIT_MONTHS.get(arguments.word(0))) is not None:
        whole = _months_between(arguments.clock(1), arguments.clock(2))
        return divided("/", TypedExpr(whole, pa.int64()), TypedExpr(lit(months), pa.int64()))
    start, end = (arguments.expr(i).dt.epoch("ms") for i in (1, 2))
    distance = TypedExpr(end - start, pa.int64())
    return divided("/", distance, TypedExpr(lit(_unit_ms(arguments)), pa.int64()))


def _months_between(start: Expr, end: Expr) -> Expr:
    """Returns the whole months between two times: those that have passed to the day and the time of day."""
    first, last = (time.dt.year() * lit(12) + time.dt.month() for time in (start, end))
    rest = [time.dt.epoch("ms") - time.dt.date_trunc("1mo").dt.epoch("ms") for time in (start, end)]
    months = last - first
    less = when((months > 0) & _is_early(start, end, *rest)).then(lit(1))
    less = less.when((months < 0) & _is_early(end, start, *rest[::-1])).then(lit(-1))
    return months - less.otherwise(lit(0))


def _is_early(start: Expr, end: Expr, after_start: Expr, after_end: Expr) -> Expr:
    """Returns True if the last month up to the end is not whole. The last day of a shorter month ends it: 29 February is
    one month after 31 January. `after_start`, `after_end`: the milliseconds since the begin of their months.
    """
    last_day = end.dt.date_trunc("1mo").dt.offset_by("1mo").dt.offset_by("-1d").dt.day()
    whole_days = (start.dt.day() - last_day) * lit(_DAY_MS)
    return after_end < when(whole_days > 0).then(after_start - whole_days).otherwise(after_start)


def plus_months(time: TypedExpr, months: int, zone: str) -> Expr:
    """Returns a time moved by months; a TIMESTAMP_LTZ on the clock of the session's zone, so that its time of day stays.

    zone Europe/Berlin     2024-03-15 12:00 there (11:00Z) + 1 MONTH     ->     2024-04-15 12:00 there (10:00Z)
    """
    if not months:
        return time.expr
    moved = on_the_clock(time, zone).expr.dt.offset_by(f"{months}mo")
    return instant(moved, zone) if is_local(time.type) and zone != UTC else moved


def _timestampadd(arguments: CallArguments) -> Expr:
    amount = arguments.expr(1).option("value") if arguments.expr(1).kind == "lit" else None
    span = arguments.items[1].tree.span
    if not isinstance(amount, int):
        raise SqlFault(span, "the number of TIMESTAMPADD is a constant integer")
    if (months := _UNIT_MONTHS.get(arguments.word(0))) is not None:
        return plus_months(arguments.bound(2), months_within(amount * months, span), arguments.zone)
    ms = ms_within(amount * _unit_ms(arguments), span)
    made = arguments.expr(2) + lit(datetime.timedelta(milliseconds=ms))
    is_date = pa.types.is_date(arguments.bound(2).type) and _unit_ms(arguments) % _DAY_MS == 0
    return made.cast("date32") if is_date else made


# -- choices ----------------------------------------------------------------------------------------------------------


def _nullif(arguments: CallArguments) -> Expr:
    a, b = arguments.exprs
    return when((a == b).fill_null(False)).then(lit(None)).otherwise(a)


def _if(arguments: CallArguments) -> Expr:
    condition, a, b = arguments.exprs
    return when(condition).then(a).otherwise(b)


def _text(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0).str, method)()  # type: ignore[no-any-return]


def _number(method: str, arguments: CallArguments) -> Expr:
    return getattr(arguments.expr(0), method)()  # type: ignore[no-any-return]


def _part(name: str, arguments: CallArguments) -> Expr:
    return _PARTS[name](arguments.clock(0))


_LENGTH = Function(1, 1, "text", partial(_text, "length"))
_COALESCE = Function(1, None, "x, …", lambda a: coalesce(*a.exprs))

OF_ONE_TYPE = frozenset(("COALESCE", "GREATEST", "IF", "IFNULL", "LEAST", "NULLIF", "TIMESTAMPDIFF"))
"""Functions whose arguments are compared or put in each other's place."""

FUNCTIONS: dict[str, Function] = {
    "ABS": Function(1, 1, "number", partial(_number, "abs")),
    "ARRAY_CONTAINS": Function(2, 2, "array, x", lambda a: a.expr(0).list.contains(a.expr(1))),
    "BTRIM": Function(1, 1, "text", partial(_text, "strip")),
    "CARDINALITY": Function(1, 1, "array", lambda a: a.expr(0).list.len()),
    "CEIL": Function(1, 2, "number", partial(_rounded, "ceil")),
    "CEILING": Function(1, 2, "number", partial(_rounded, "ceil")),
    "CHARACTER_LENGTH": _LENGTH,
    "CHAR_LENGTH": _LENGTH,
    "COALESCE": _COALESCE,
    "CONCAT": Function(1, None, "text, …", _concat),
    "CONCAT_WS": Function(2, None, "separator, text, …", _concat_ws),
    "CONVERT_TZ": Function(3, 3, "text, zone, other_zone", _convert_tz),
    "DATE_FORMAT": Function(2, 2, "time, pattern", _date_format),
    "DAYOFMONTH": Function(1, 1, "time", partial(_part, "DAY")),
    "DAYOFWEEK": Function(1, 1, "time", partial(_part, "DOW")),
    "DAYOFYEAR": Function(1, 1, "time", partial(_part, "DOY")),
    "ENDSWITH": Function(2, 2, "text, end", partial(_ends, "endswith")),
    "EXP": Function(1, 1, "number", partial(_number, "exp")),
    "EXTRACT": Function(2, 2, "unit FROM time", _extract),
    "FLOOR": Function(1, 2, "number[ TO unit]", partial(_rounded, "floor")),
    "GREATEST": Function(1, None, "x, …", partial(_extreme, max_horizontal)),
    "INITCAP": Function(1, 1, "text", partial(_text, "to_titlecase")),
    "IF": Function(3, 3, "condition, x, y", _if),
    "IFNULL": Function(2, 2, "x, y", lambda a: coalesce(*a.exprs)),
    "INSTR": Function(2, 2, "text, part", partial(_place, 0, 1)),
    "JSON_ARRAY": Function(0, None, "[x, …]", _json_array),
    "JSON_EXISTS": Function(2, 3, "text, path[ ON ERROR]", _json_exists),
    "JSON_OBJECT": Function(0, None, "[KEY name VALUE x, …]", _json_object),
    "JSON_QUERY": Function(2, 5, "text, path", _json_query),
    "JSON_VALUE": Function(2, 5, "text, path", _json_value),
    "LEAST": Function(1, None, "x, …", partial(_extreme, min_horizontal)),
    "LEFT": Function(2, 2, "text, length", _left),
    "LN": Function(1, 1, "number", partial(_number, "log")),
    "LOCATE": Function(2, 2, "part, text", partial(_place, 1, 0)),
    "LOG": Function(1, 2, "[base, ]number", _log),
    "LOG10": Function(1, 1, "number", lambda a: a.expr(0).log(10)),
    "LOG2": Function(1, 1, "number", lambda a: a.expr(0).log(2)),
    "LOWER": Function(1, 1, "text", partial(_text, "lower")),
    "LPAD": Function(3, 3, "text, length, character", partial(_pad, "pad_start")),
    "LTRIM": Function(1, 1, "text", lambda a: a.expr(0).str.strip_start(" ")),
    "MOD": Function(2, 2, "number, divisor", _mod),
    "NULLIF": Function(2, 2, "x, y", _nullif),
    "POSITION": Function(2, 2, "part IN text", partial(_place, 1, 0)),
    "POWER": Function(2, 2, "number, exponent", _power),
    "REGEXP": Function(2, 2, "text, pattern", lambda a: a.expr(0).str.contains(a.constant(1, "string", "the pattern"))),
    "REGEXP_EXTRACT": Function(2, 3, "text, pattern[, group]", _regexp_extract),
    "REGEXP_REPLACE": Function(3, 3, "text, pattern, replacement", _regexp_replace),
    "REPLACE": Function(3, 3, "text, old, new", _replace),
    "REVERSE": Function(1, 1, "text", partial(_text, "reverse")),
    "RIGHT": Function(2, 2, "text, length", _right),
    "ROUND": Function(1, 2, "number[, digits]", _round),
    "RPAD": Function(3, 3, "text, length, character", partial(_pad, "pad_end")),
    "RTRIM": Function(1, 1, "text", lambda a: a.expr(0).str.strip_end(" ")),
    "SIGN": Function(1, 1, "number", partial(_number, "sign")),
    "SPLIT": Function(2, 2, "text, separator", lambda a: a.expr(0).str.split(a.constant(1, "string", "the separator"))),
    "SPLIT_INDEX": Function(3, 3, "text, separator, index", _split_index),
    "SQRT": Function(1, 1, "number", partial(_number, "sqrt")),
    "STARTSWITH": Function(2, 2, "text, start", partial(_ends, "startswith")),
    "SUBSTR": Function(2, 3, "text, start[, length]", _substring),
    "SUBSTRING": Function(2, 3, "text, start[, length]", _substring),
    "TIMESTAMPADD": Function(3, 3, "unit, number, time", _timestampadd),
    "TIMESTAMPDIFF": Function(3, 3, "unit, start, end", _timestampdiff),
    "TO_DATE": Function(1, 2, "text[, pattern]", partial(_to_time, "to_date")),
    "TO_TIMESTAMP": Function(1, 2, "text[, pattern]", partial(_to_time, "to_datetime")),
    "TO_TIMESTAMP_LTZ": Function(1, 3, "number[, digits]", _to_timestamp_ltz),
    "TRIM": Function(1, 3, "text", _trim),
    "UPPER": Function(1, 1, "text", partial(_text, "upper")),
    **{
        name: Function(1, 1, "time", partial(_part, name))
        for name in ("YEAR", "QUARTER", "MONTH", "WEEK", "HOUR", "MINUTE", "SECOND")
    },
}
"""The scalar functions, by their name in capitals."""


# -- aggregates -------------------------------------------------------------------------------------------------------

AGGREGATES: dict[str, Callable[[Expr], Aggregate]] = {
    "COUNT": engine.count,
    "SUM": engine.sum,
    "MIN": engine.min,
    "MAX": engine.max,
    "AVG": engine.mean,
    "FIRST_VALUE": engine.first,
    "LAST_VALUE": engine.last,
    "STDDEV": engine.stddev,
    "STDDEV_SAMP": engine.stddev,
    "STDDEV_POP": partial(engine.stddev, ddof=0),
    "VARIANCE": engine.variance,
    "VAR_SAMP": engine.variance,
    "VAR_POP": partial(engine.variance, ddof=0),
    "APPROX_COUNT_DISTINCT": engine.approx_count_distinct,
    "ARRAY_AGG": engine.collect_list,
    "COLLECT": engine.collect_list,
    "LISTAGG": engine.collect_list,
    "PERCENTILE": engine.collect_list,
}
"""The aggregates of one argument, and PERCENTILE, by their name in capitals."""

_SAME_IF_DISTINCT = ("MIN", "MAX")
_OF_NUMBERS = ("SUM", "AVG", "STDDEV", "VAR", "PERCENTILE")
_OF_PRESENT = ("FIRST_VALUE", "LAST_VALUE", "LISTAGG")  # they leave NULL out
_OF_DISTINCT = ("SUM", "AVG", "LISTAGG")


def is_aggregate(name: str) -> bool:
    """Returns True if a function of this name, in capitals, is an aggregate."""
    return name in AGGREGATES


def listed(text: TypedExpr, order: Sequence[Expr], predicate: Expr | None, zone: str) -> Aggregate:
    """Returns the aggregate of LISTAGG that is ordered by other values: a list of structs of the text and these values."""
    present = text.expr.is_not_null()
    keys = {f"by{i}": each for i, each in enumerate(order)}
    made = engine.collect_list(struct(text=as_text(text, zone), **keys))
    return made.filter(present if predicate is None else predicate & present)


def _fraction(node: Expression) -> float:
    """Returns the second argument of PERCENTILE."""
    value = float(node.text) if isinstance(node, Constant) and node.kind != "string" else -1.0
    if not 0 <= value <= 1:
        raise SqlFault(node.span, "the fraction of PERCENTILE is a constant number from 0 to 1", "0.5 is the median")
    return value


def aggregate(call: Call, argument: TypedExpr | None, predicate: Expr | None, zone: str) -> Aggregate | Expr:
    """Returns the aggregate of a call, or an expression of one. `argument`: None for COUNT(*). `zone`: that of the session.

    Raises SqlFault for what there is not.
    """
    name = call.name.text.upper()
    if call.order and name != "LISTAGG":
        raise SqlFault(call.span, f"{name} WITHIN GROUP is not supported", "LISTAGG(x) WITHIN GROUP (ORDER BY x)")
    if argument is not None and name.startswith(_OF_NUMBERS) and not is_number(argument.type):
        is_condition = pa.types.is_boolean(argument.type)
        hint = "COUNT(*) FILTER (WHERE condition)" if is_condition else "it takes numbers"
        raise SqlFault(call.span, f"{name} of {sql_type(argument.type)}", hint)
    if name in _OF_PRESENT and argument is not None:
        present = argument.expr.is_not_null()
        predicate = present if predicate is None else predicate & present
    if name == "LISTAGG" and argument is not None:
        argument = TypedExpr(as_text(argument, zone), pa.string())
    if argument is None:
        made = engine.count()
    elif call.distinct and name == "COUNT":
        made = engine.count_distinct(argument.expr)
    elif call.distinct and name not in _SAME_IF_DISTINCT:
        if name not in _OF_DISTINCT:
            hint = f"{', '.join(['COUNT', *_OF_DISTINCT])} take DISTINCT"
            raise SqlFault(call.span, f"{name}(DISTINCT …) is not supported", hint)
        made = engine.collect_set(argument.expr)
    else:
        made = AGGREGATES[name](argument.expr)
    made = made if predicate is None else made.filter(predicate)
    if name == "PERCENTILE":
        return made.expression().list.quantile(_fraction(call.arguments[1]), "linear")
    if made.kind != "collect_set" or name == "LISTAGG":
        return made
    total = made.expression().list.sum()
    return total if name == "SUM" else total.cast("float64") / made.expression().list.len()
