"""The binder of expressions: a tree of SQL becomes an expression of the engine, with its type.

The meaning is that of Flink: integer division and remainder truncate towards zero, `=` with a null is null, a text is
compared with a time as a time.
"""

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import partial
from operator import add, mul, or_, sub
from typing import Any, Literal, Protocol

import pyarrow as pa

from sabot.api.expr import Expr, col, lit, when
from sabot.api.expr.time import reads_as_moment
from sabot.api.stream import Stream
from sabot.base.arrays import as_type, scalar_of_text
from sabot.base.checks import is_whole
from sabot.base.surrogates import whole_text
from sabot.errors import DataError, UserError
from sabot.sql import functions
from sabot.sql.scope import Relation, TypedExpr, has_text_of_event_time, is_clock
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Between,
    Binary,
    Call,
    Case,
    Cast,
    Column,
    Constant,
    Descriptor,
    Exists,
    Expression,
    FieldAccess,
    In,
    Index,
    Interval,
    Is,
    Items,
    Like,
    Name,
    Parameter,
    Query,
    Star,
    Subquery,
    TypedLiteral,
    Unary,
)
from sabot.sql.types import (
    DAY_MS,
    arrow_type,
    common_type,
    interval_months,
    interval_ms,
    literal_time,
    sql_type,
    text_length,
)
from sabot.sql.zones import UTC, is_local


class CompiledExpr(Protocol):
    """An expression that is ready to run. `value`: its value if it reads no column, a pa.Scalar, or None."""

    @property
    def type(self) -> pa.DataType: ...

    @property
    def value(self) -> Any: ...


Compile = Callable[[Expr, pa.Schema, dict[int, tuple[Expr, Any]]], CompiledExpr]
"""A function that compiles an expression over columns of a schema; raises UserError if their types do not fit. The dict has the
expressions that were compiled for this schema, by id, and it adds to them.
"""

_COMPARED = {"=": "==", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_OF_WHOLE: dict[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Context:
    """The values of the parameters of a text, the functions registered for it, and two functions of the engine.

    `rows`: returns the rows of a table in memory. `local_zone`: returns the session's time zone, `state_ttl` the event
    time for which it keeps state, or None for ever, and `idle` the time without rows after which partitions are idle, or
    None for the engine's default. SET changes all three. `now`: returns the seconds since 1970, by the clock of the app.
    """

    compile: Compile
    parameters: Mapping[str, Any]
    registered: Mapping[str, Any]
    rows: Callable[[pa.Table], Stream]
    local_zone: Callable[[], str]
    state_ttl: Callable[[], str | None]
    idle: Callable[[], str | None]
    now: Callable[[], float]

    @property
    def zone(self) -> str:
        """The session's time zone."""
        return self.local_zone()


class Binder:
    """Binds expressions over the columns of one table.

    Behind GROUP BY there are only keys and aggregates: `replaced` has the columns that they have become, by `key_of`
    over the table `before` the GROUP BY, whose names the expressions use.

    `shown`: True to read columns with their types in SQL, for the type that an expression has there (`shown_type`).
    """

    def __init__(
        self,
        context: Context,
        relation: Relation,
        replaced: Mapping[Any, TypedExpr] | None = None,
        before: Relation | None = None,
        *,
        shown: bool = False,
    ) -> None:
        self.context = context
        self.relation = relation
        self._replaced = replaced
        self._before = before or relation
        self._schema = relation.schema
        self._compiled: dict[int, tuple[Expr, Any]] = {}  # see `Compile`
        self._shown = {each.column: each.shown for each in relation.fields if each.shown is not None} if shown else {}

    # -- entry points -------------------------------------------------------------------------------------------------

    def bind(self, node: Expression) -> TypedExpr:
        """Returns the expression of a tree. Raises SqlFault."""
        if self._replaced is not None:
            found = self._replaced.get(key_of(node, self._before))
            if found is not None:
                return self._as_shown(found)
            if isinstance(node, Column):
                field, _ = self._before.find(node.parts)
                raise SqlFault(
                    node.span,
                    f'column "{field.name}" is neither in GROUP BY nor inside an aggregate',
                    f"add it to GROUP BY, or write MAX({field.name})",
                )
        bind = _BINDERS.get(type(node))
        if bind is None:
            raise SqlFault(node.span, "this has no value here", _HINTS.get(type(node), ""))
        return bind(self, node)

    def shown_type(self, node: Expression, type: pa.DataType) -> pa.DataType | None:
        """Returns the type in SQL of an expression that is bound to another `type` (`TableColumn.shown`), or None."""
        if not (is_local(type) or pa.types.is_nested(type)) or all(each.shown is None for each in self.relation.fields):
            return None
        try:
            found = Binder(self.context, self.relation, self._replaced, self._before, shown=True).bind(node).type
        except SqlFault:  # it stands beside a TIMESTAMP_LTZ, and is one
            return None
        return None if found == type else found

    def _as_shown(self, bound: TypedExpr) -> TypedExpr:
        columns = bound.expr.columns
        # window_time is the end less a millisecond, and ARRAY_AGG is NULL for an empty list
        takes = bound.expr.column is not None or is_local(bound.type) or pa.types.is_list(bound.type)
        if not columns or not columns <= self._shown.keys() or not takes:
            return bound
        type = self._shown[next(iter(columns))]
        return TypedExpr(bound.expr.cast(type), type)

    def predicate(self, node: Expression) -> Expr:
        """Returns the expression of a condition. Raises SqlFault if it is not true or false."""
        bound = self.bind(node)
        if not (pa.types.is_boolean(bound.type) or pa.types.is_null(bound.type)):
            raise SqlFault(node.span, f"a condition is true or false, and this is {sql_type(bound.type)}", "compare it")
        return bound.expr

    def typed(self, expr: Expr, span: Span, function: str = "") -> TypedExpr:
        """Returns an expression with the type that the engine gives it. Raises SqlFault for types that do not fit.
        `function`: the name in SQL of the function that it is, for the message.
        """
        try:
            return TypedExpr(expr, self.context.compile(expr, self._schema, self._compiled).type)
        except (UserError, DataError) as error:  # a constant may have no value: CAST('x' AS INT)
            raise _in_words_of_sql(error, span, function) from error

    # -- leaves -------------------------------------------------------------------------------------------------------

    def _column(self, node: Column) -> TypedExpr:
        field, further = self.relation.find(node.parts)
        if field.clock:
            return self._of_moment(node, *_NO_VALUE)
        bound = self._as_shown(TypedExpr(col(field.column), field.type))
        for name in further:
            bound = self._field_of(bound, name)
        return bound

    def _field_of(self, bound: TypedExpr, name: Name) -> TypedExpr:
        if not pa.types.is_struct(bound.type):
            raise SqlFault(name.span, f"{sql_type(bound.type)} has no fields, so there is no {name.text}")
        names = [each.name for each in bound.type]
        found = name.text if name.text in names else next((n for n in names if n.lower() == name.text.lower()), None)
        if found is None:
            raise SqlFault(name.span, f'there is no field "{name.text}"', f"there are {', '.join(names)}")
        return self.typed(bound.expr[found], name.span)

    def _constant(self, node: Constant) -> TypedExpr:
        if node.kind == "integer":
            return _whole(node.text, node.span)
        if node.kind == "decimal":
            return self.typed(lit(Decimal(node.text)), node.span)
        if node.kind == "float":
            return TypedExpr(lit(float(node.text)), pa.float64())
        if node.kind == "string":
            return TypedExpr(lit(node.text), pa.string())
        if node.kind == "boolean":
            return TypedExpr(lit(node.text.upper() == "TRUE"), pa.bool_())
        return TypedExpr(lit(None), pa.null())

    def _typed_literal(self, node: TypedLiteral) -> TypedExpr:
        return self.typed(literal_time(node, self.context.zone), node.span)

    def _interval(self, node: Interval) -> TypedExpr:
        return self.typed(lit(datetime.timedelta(milliseconds=interval_ms(node))), node.span)

    def _parameter(self, node: Parameter) -> TypedExpr:
        if node.name not in self.context.parameters:
            raise SqlFault(node.span, f"the parameter :{node.name} has no value", f"app.sql(…, {node.name}=…)")
        value = self.context.parameters[node.name]
        if isinstance(value, str) and whole_text(value) != value:
            message = f"the parameter :{node.name} has one half of a surrogate pair, which is no character"
            raise SqlFault(node.span, message)
        whole = is_whole(value, -(1 << 63), (1 << 63) - 1)
        return _whole(str(value), node.span) if whole else self.typed(lit(value), node.span)

    # -- operators ----------------------------------------------------------------------------------------------------

    def _unary(self, node: Unary) -> TypedExpr:
        if node.operator == "NOT":
            return self.typed(~self.predicate(node.operand), node.span)
        if node.operator == "-" and isinstance(node.operand, Constant) and node.operand.kind != "string":
            return self._constant_negated(node, node.operand)
        bound = self.bind(node.operand)
        return bound if node.operator == "+" else self.typed(-bound.expr, node.span)

    def _constant_negated(self, node: Unary, constant: Constant) -> TypedExpr:
        if constant.kind == "integer":
            return _whole(f"-{constant.text}", node.span)
        try:
            value: Any = {"decimal": Decimal, "float": float}[constant.kind](constant.text)
        except (KeyError, InvalidOperation):
            raise SqlFault(node.span, "this is not a number") from None
        return self.typed(lit(-value), node.span)

    def _binary(self, node: Binary) -> TypedExpr:
        operator = node.operator
        if operator in ("AND", "OR"):
            left, right = self.predicate(node.left), self.predicate(node.right)
            return TypedExpr(left & right if operator == "AND" else left | right, pa.bool_())
        if operator in _COMPARED:
            return self._compared(node)
        if operator.endswith("DISTINCT FROM"):
            return self._distinct_from(node)
        if operator == "OVERLAPS":
            return self._overlapping(node)
        if operator == "AT TIME ZONE":
            return self._at_time_zone(node)
        if (moved := self._moved_by_months(node)) is not None:
            return moved
        left_, right_ = self.bind(node.left), self.bind(node.right)
        if operator == "||":
            return self.typed(self._text(left_) + self._text(right_), node.span)
        if operator in _OF_WHOLE and left_.expr.kind == right_.expr.kind == "lit":
            values = [each.expr.option("value") for each in (left_, right_)]
            if all(pa.types.is_integer(each.type) for each in (left_, right_)):
                return self._folded(node, _OF_WHOLE[operator](*values), max(left_.type, right_.type, key=_width))
        left_, right_ = functions.beside(left_, right_)
        if operator in ("/", "%"):
            return self.typed(functions.divided(operator, left_, right_), node.span)
        if pa.types.is_string(left_.type) and pa.types.is_string(right_.type):
            raise SqlFault(node.span, f"{operator} of two texts", "texts are joined by ||")
        left_, right_ = self._on_one_clock([left_, right_], node.span)
        if operator == "*":
            made = functions.product(left_, right_)
        else:
            made = left_.expr + right_.expr if operator == "+" else left_.expr - right_.expr
        if any(pa.types.is_date(each.type) for each in (left_, right_)) and _is_of_days(node.left, node.right):
            made = made.cast("date32")  # a date and whole days are a date
        return self.typed(made, node.span)

    def _at_time_zone(self, node: Binary) -> TypedExpr:
        zone = constant_text(self._given(node.right), "the time zone")
        bound = self.bind(node.left)
        made = functions.at_time_zone(bound, functions.known_zone(zone, node.right.span))
        if made is None:
            hint = "it takes a TIMESTAMP or a TIMESTAMP_LTZ: CAST(… AS TIMESTAMP(3))"
            raise SqlFault(node.left.span, f"AT TIME ZONE of {sql_type(bound.type)}", hint)
        return self.typed(made, node.span)

    def _overlapping(self, node: Binary) -> TypedExpr:
        """Returns (a, b) OVERLAPS (c, d) as comparisons: each span ends when the other one begins, or later. A span is
        between two times, whichever is earlier, or it is a time and an interval.
        """
        spans = []
        for tree in (node.left, node.right):
            hint = "(a, b) OVERLAPS (c, INTERVAL '1' HOUR)"
            if not isinstance(tree, Items) or tree.kind != "ROW" or len(tree.items) != 2:
                raise SqlFault(tree.span, "OVERLAPS compares two spans of time", hint)
            one, other = tree.items
            type = self.bind(one).type
            if not pa.types.is_temporal(type):
                raise SqlFault(one.span, f"OVERLAPS compares spans of time, and this is {sql_type(type)}", hint)
            other = Binary("+", one, other, tree.span) if isinstance(other, Interval) else other
            ordered = Binary("<=", one, other, tree.span)
            spans.append(
                [Case(None, ((ordered, pair[0]),), pair[1], tree.span) for pair in ((one, other), (other, one))]
            )
        (begin, end), (its_begin, its_end) = spans
        reached, reaches = Binary(">=", end, its_begin, node.span), Binary(">=", its_end, begin, node.span)
        return self.bind(Binary("AND", reached, reaches, node.span))

    def _folded(self, node: Binary, value: int, type: pa.DataType) -> TypedExpr:
        """Returns the result of arithmetic with constants. Raises SqlFault if it exceeds their type, where Flink's wraps."""
        if not -(1 << type.bit_width - 1) <= value < 1 << type.bit_width - 1:
            wider = "CAST(… AS BIGINT) of one of them" if type.bit_width < 64 else "write one of them as a DECIMAL: 1.0"
            raise SqlFault(node.span, f"this is {value}, more than {sql_type(type)} holds", wider)
        return TypedExpr(lit(value, type), type)

    def _text(self, bound: TypedExpr) -> Expr:
        return functions.as_text(bound, self.context.zone)

    def _cast_to(self, bound: TypedExpr, type: pa.DataType, span: Span) -> TypedExpr:
        return self.typed(functions.cast(bound, type, self.context.zone, strict=True), span)

    def _moved_by_months(self, node: Binary) -> TypedExpr | None:
        """Returns a time plus or minus an interval of months or years, or None for any other operation."""
        for time, interval in ((node.left, node.right), (node.right, node.left)):
            months = interval_months(interval) if isinstance(interval, Interval) else None
            if months is not None and (node.operator == "+" or (node.operator == "-" and interval is node.right)):
                sign = -1 if node.operator == "-" else 1
                return self.typed(functions.plus_months(self.bind(time), sign * months, self.context.zone), node.span)
        return None

    def _compared(self, node: Binary) -> TypedExpr:
        left, right = self.bind(node.left), self.bind(node.right)
        if self._is_remainder_of_zero(node):
            # a remainder is zero for both kinds of division
            call = node.left
            operands = call.arguments if isinstance(call, Call) else (call.left, call.right)  # type: ignore[union-attr]
            dividend, divisor = functions.beside(*map(self.bind, operands))
            left = self.typed(dividend.expr % divisor.expr, node.span)
        left, right = self._alike(left, right, node.span)
        for side, tree in ((left, node.left), (right, node.right)):
            if pa.types.is_null(side.type):
                raise SqlFault(tree.span, "a comparison with NULL is never true", "write IS NULL or IS NOT NULL")
        made = getattr(left.expr, _METHODS[node.operator])(right.expr)
        return self.typed(made, node.span)

    def _is_remainder_of_zero(self, node: Binary) -> bool:
        left, right = node.left, node.right
        zero = isinstance(right, Constant) and right.kind == "integer" and int(right.text) == 0
        if not zero or node.operator not in ("=", "<>"):
            return False
        if isinstance(left, Call):
            return left.name.text.upper() == "MOD" and len(left.arguments) == 2
        return isinstance(left, Binary) and left.operator == "%"

    def _alike(self, left: TypedExpr, right: TypedExpr, span: Span) -> tuple[TypedExpr, TypedExpr]:
        """Casts a text that is compared with a number, and a constant one beside a time or a date, to that type, as Flink
        does.
        """
        for one, other in ((left, right), (right, left)):
            is_text = one.expr.kind == "lit" and pa.types.is_string(one.type)
            if is_text and (pa.types.is_temporal(other.type) or functions.is_number(other.type)):
                check_text(one.expr.option("value"), other.type, span)
                made = self._cast_to(one, other.type, span)
                return (made, right) if one is left else (left, made)
            if pa.types.is_string(one.type) and functions.is_number(other.type):
                made = self._cast_to(one, other.type, span)
                return (made, other) if one is left else (other, made)
            if is_text and pa.types.is_string(other.type) and reads_as_moment(one.expr.option("value")):
                time = pa.timestamp("us")
                if other.expr.column is not None and has_text_of_event_time(self.relation, other.expr.column):
                    cast = [self._cast_to(each, time, span) for each in (left, right)]
                    return cast[0], cast[1]
        left, right = self._on_one_clock([left, right], span)
        return functions.beside(left, right)

    def _on_one_clock(self, bounds: Sequence[TypedExpr], span: Span) -> list[TypedExpr]:
        """Casts times and dates beside a TIMESTAMP_LTZ to it, since they are on the clock of the session's zone."""
        local = next((each.type for each in bounds if is_local(each.type)), None)
        if local is None or self.context.zone == UTC:
            return list(bounds)
        return [
            self._cast_to(each, local, span) if _is_on_clock(each.type) and not is_local(each.type) else each
            for each in bounds
        ]

    def _distinct_from(self, node: Binary) -> TypedExpr:
        left, right = self._alike(self.bind(node.left), self.bind(node.right), node.span)
        same = (left.expr == right.expr).fill_null(False) | (left.expr.is_null() & right.expr.is_null())
        return self.typed(same if "NOT" in node.operator else ~same, node.span)

    def _between(self, node: Between) -> TypedExpr:
        operand = self.bind(node.operand)
        above, low = self._alike(operand, self.bind(node.lower), node.lower.span)
        below, high = self._alike(operand, self.bind(node.upper), node.upper.span)
        made = (above.expr >= low.expr) & (below.expr <= high.expr)
        if node.symmetric:
            made = made | ((below.expr >= high.expr) & (above.expr <= low.expr))
        return self.typed(~made if node.negated else made, node.span)

    def _in(self, node: In) -> TypedExpr:
        if isinstance(node.values, Query):
            message = "IN (SELECT …) stands in WHERE, joined by AND with other conditions"
            raise SqlFault(node.span, message, "for OR: SELECT … WHERE a UNION SELECT … WHERE x IN (SELECT …)")
        if isinstance(node.operand, Items):
            return self._in_rows(node, node.operand)
        operand = self.bind(node.operand)
        values: list[Any] = []
        tests: list[Expr] = []
        for tree in node.values:
            asked, found = operand, self.bind(tree)
            if not (pa.types.is_string(operand.type) and functions.is_number(found.type)):
                asked, found = self._alike(operand, found, tree.span)
            if pa.types.is_null(found.type):
                tests.append(lit(None, "bool"))
                continue
            if pa.types.is_list(found.type):
                raise SqlFault(
                    tree.span, "IN compares with values, and this is an array of them", "ARRAY_CONTAINS(array, x)"
                )
            known = asked is operand and not pa.types.is_null(operand.type)
            if known and pa.types.is_string(operand.type) != pa.types.is_string(found.type):
                message = f"{sql_type(operand.type)} and {sql_type(found.type)} are never equal"
                raise SqlFault(tree.span, message, f"CAST(… AS {sql_type(operand.type)})")
            value = self.constant_of_type(found, operand.type, exact=True) if asked is operand else None
            if value is None:
                tests.append(asked.expr == found.expr)
            else:
                values.append(value)
        if values:
            tests.append(operand.expr.is_in(values))
        made = functions.balanced(tests, or_)
        return self.typed(~made if node.negated else made, node.span)

    def constant_of_type(self, bound: TypedExpr, type: pa.DataType, *, exact: bool = False) -> Any:
        """Returns the value of a constant in another type, or None if it is no constant or this type lacks the value.
        `exact`: True to return None also for a number that would be rounded to the digits of a DECIMAL or a FLOAT.
        """
        numbers = functions.is_number(bound.type) and functions.is_number(type)
        times = _is_exact_time(bound.type) and _is_exact_time(type) and bound.type.tz == type.tz
        if bound.expr.columns or not (numbers or times or bound.type == type):
            return None
        try:
            value = self.context.compile(bound.expr, pa.schema([]), {}).value
            if pa.types.is_decimal(type) and pa.types.is_integer(value.type):
                value = pa.scalar(Decimal(value.as_py()))  # with the digits that it has, and not those of a BIGINT
            elif pa.types.is_floating(type) and pa.types.is_decimal(value.type):
                value = pa.scalar(float(value.as_py()))  # the nearest DOUBLE, which pyarrow misses for many digits
            made = value.cast(type)
            if exact and pa.types.is_floating(value.type) and float(made.as_py()) != value.as_py():
                return None
            return made.as_py()
        except (pa.ArrowInvalid, TypeError, UserError, DataError):
            return None

    def _in_rows(self, node: In, row: Items) -> TypedExpr:
        """Returns (a, b) IN ((1, 2), (3, 4)): a = 1 AND b = 2 OR a = 3 AND b = 4."""
        assert isinstance(node.values, tuple)
        rows: list[Expression] = []
        for value in node.values:
            if not isinstance(value, Items) or len(value.items) != len(row.items):
                raise SqlFault(
                    value.span, f"IN compares with rows of {len(row.items)} values", "(a, b) IN ((1, 2), (3, 4))"
                )
            pairs = zip(row.items, value.items, strict=True)
            same: list[Expression] = [Binary("=", mine, its, value.span) for mine, its in pairs]
            rows.append(functions.balanced(same, partial(_joined_by, "AND", value.span)))
        made = self.predicate(functions.balanced(rows, partial(_joined_by, "OR", node.span)))
        return self.typed(~made if node.negated else made, node.span)

    def _like(self, node: Like) -> TypedExpr:
        pattern = constant_text(self._given(node.pattern), f"the pattern of {node.operator}")
        escape = constant_text(node.escape, "the character of ESCAPE") if node.escape is not None else ""
        match = functions.like if node.operator == "LIKE" else functions.similar
        made = match(self.bind(node.operand).expr, pattern, escape, node.span)
        return self.typed(~made if node.negated else made, node.span)

    def _given(self, node: Expression) -> Expression:
        """Returns a parameter with a text as the constant of this text; any other expression unchanged."""
        value = self.context.parameters.get(node.name) if isinstance(node, Parameter) else None
        return Constant("string", value, node.span) if isinstance(value, str) else node

    def _is(self, node: Is) -> TypedExpr:
        if node.what in ("NULL", "UNKNOWN"):
            operand = self.bind(node.operand).expr
            return self.typed(operand.is_not_null() if node.negated else operand.is_null(), node.span)
        if node.what.startswith("JSON"):
            made = self.bind(node.operand).expr.str.is_json(node.what.removeprefix("JSON").strip().lower() or "value")
            return self.typed(~made if node.negated else made, node.span)
        truth = self.predicate(node.operand)
        made = (truth if node.what == "TRUE" else ~truth).fill_null(False)
        return self.typed(~made if node.negated else made, node.span)

    def _case(self, node: Case) -> TypedExpr:
        predicates = []
        for condition, _ in node.branches:
            if node.operand is not None:
                predicates.append(self.bind(Binary("=", node.operand, condition, condition.span)).expr)
            else:
                predicates.append(self.predicate(condition))
        trees = [value for _, value in node.branches] + ([] if node.otherwise is None else [node.otherwise])
        values = [each.expr for each in self._on_one_clock([self.bind(each) for each in trees], node.span)]
        chain: Any = when(predicates[0]).then(values[0])
        for predicate, value in zip(predicates[1:], values[1:], strict=False):
            chain = chain.when(predicate).then(value)
        return self.typed(chain.otherwise(lit(None) if node.otherwise is None else values[-1]), node.span)

    def _cast(self, node: Cast) -> TypedExpr:
        operand = self.bind(node.operand)
        target = arrow_type(node.type)
        if pa.types.is_struct(target) and pa.types.is_struct(operand.type):
            given, wanted = operand.type.num_fields, target.num_fields
            if given != wanted:
                message = f"a ROW of {given} fields is no {sql_type(target)}"
                raise SqlFault(node.span, message, "CAST(ROW(x, y) AS ROW<a INT, b STRING>)")
        made = functions.cast(operand, target, self.context.zone, strict=not node.lenient)
        length = text_length(node.type)
        if length is not None:
            made = made.str.slice(0, length)
            made = made.str.pad_end(length, " ") if node.type.name == "CHAR" else made
        return self.typed(made, node.span)

    def _index(self, node: Index) -> TypedExpr:
        operand = self.bind(node.operand)
        if pa.types.is_map(operand.type):
            return self.typed(functions.element(operand, self.bind(node.index), node.index.span), node.span)
        if not pa.types.is_list(operand.type):
            text = isinstance(node.index, Constant) and node.index.kind == "string"
            hint = f"row.{node.index.text}" if text else "an ARRAY has them: tags[1]"  # type: ignore[union-attr]
            raise SqlFault(node.span, f"{sql_type(operand.type)} has no elements", hint)
        if not (isinstance(node.index, Constant) and node.index.kind == "integer" and int(node.index.text) > 0):
            hint = "the first element is array[1]; CROSS JOIN UNNEST(array) AS t (x) gives a row for each"
            raise SqlFault(node.index.span, "the index of an array is a constant whole number, 1 or more", hint)
        return self.typed(operand.expr.list.get(int(node.index.text) - 1), node.span)

    def _field(self, node: FieldAccess) -> TypedExpr:
        return self._field_of(self.bind(node.operand), node.name)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, node: Call) -> TypedExpr:
        name = node.name.text.upper()
        if is_clock(node):
            return self._of_moment(node, *_NO_VALUE)
        if is_moment(node):
            message = f"{name} stands in a select list and in WHERE"
            return self._of_moment(node, message, f"SELECT *, {name}{'()' * node.parentheses} AS x FROM (SELECT …)")
        if node.over is not None:
            hint = f"SELECT *, {name} … OVER (…) AS r FROM (SELECT …, COUNT(*) AS n FROM t GROUP BY …)"
            raise SqlFault(node.span, f"{name} … OVER stands in a select list without aggregates", hint)
        if node.name.text.lower() in self.context.registered:
            return self._registered_call(node)
        if functions.is_aggregate(name):
            hint = "write it in the select list or in HAVING" if self._replaced is None else "aggregates do not nest"
            raise SqlFault(node.span, f"the aggregate {name} has no value in a single row", hint)
        if self.relation.calls and self._replaced is None:
            computed = self.relation.calls.get(key_of(node, self.relation))
            if computed is not None:
                return computed
        function = functions.scalar(node.name, self.context.registered)
        if node.filter is not None or node.distinct or node.order or node.star:
            raise SqlFault(node.span, f"{name} is no aggregate: no *, DISTINCT, FILTER or WITHIN GROUP")
        arguments = [
            functions.ArgumentOf(each, None if functions.is_word(each) else self.bind(functions.value_of(each)))
            for each in node.arguments
        ]
        if name in functions.OF_ONE_TYPE:
            alike = iter(self._on_one_clock([each.bound for each in arguments if each.bound is not None], node.span))
            arguments = [
                each if each.bound is None else functions.ArgumentOf(each.tree, next(alike)) for each in arguments
            ]
        try:
            made = function(functions.CallArguments(node, arguments, self.context.zone))
        except UserError as error:
            raise _in_words_of_sql(error, node.span, name) from error
        return self.typed(made, node.span, name)

    def _of_moment(self, node: Column | Call, message: str, hint: str) -> TypedExpr:
        """Returns the column that the rows have for a call of NOW() and its kin (`sabot.sql.moments`)."""
        found = None if self._replaced is not None else self.relation.calls.get(moment_key(node, self.relation))
        if found is None:
            raise SqlFault(node.span, message, hint)
        return found

    def _registered_call(self, node: Call) -> TypedExpr:
        found = None if self._replaced is not None else self.relation.calls.get(key_of(node, self.relation))
        if found is None:
            for argument in node.arguments:
                self.bind(argument)  # raises the error of an argument, if that is why the call has no column
            raise SqlFault(
                node.span,
                f"{node.name.text} cannot be called here",
                "call it in a query inside: FROM (SELECT f(x) AS y FROM t)",
            )
        return found


_METHODS = {"=": "__eq__", "<>": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}


def _items(self: Binder, node: Items) -> TypedExpr:
    """ARRAY[…] and MAP[…]."""
    values = [self.bind(each) for each in node.items]
    if node.kind == "MAP":
        return self.typed(functions.map_of(values, node.span), node.span, "MAP")
    if node.kind == "ROW":
        raise SqlFault(node.span, "a row of values stands before IN alone", _HINTS[Items])
    if not values:
        raise SqlFault(node.span, "an array of no values has no type", "CAST(NULL AS ARRAY<BIGINT>)")
    if any(each.expr.kind != "lit" for each in values):
        return self.typed(functions.array_of(values, node.span), node.span, "ARRAY")
    type = values[0].type
    for value in values[1:]:
        found = common_type(type, value.type)
        if found is None:
            raise SqlFault(node.span, f"an array of {sql_type(type)} and {sql_type(value.type)}", "write a CAST")
        type = found
    given = [self.context.compile(each.expr.cast(type), pa.schema([]), {}).value.as_py() for each in values]
    return self.typed(lit(pa.scalar(given, pa.list_(type))), node.span)


_BINDERS: dict[type, Callable[..., TypedExpr]] = {
    Column: Binder._column,
    Constant: Binder._constant,
    TypedLiteral: Binder._typed_literal,
    Interval: Binder._interval,
    Parameter: Binder._parameter,
    Unary: Binder._unary,
    Binary: Binder._binary,
    Between: Binder._between,
    In: Binder._in,
    Like: Binder._like,
    Is: Binder._is,
    Case: Binder._case,
    Cast: Binder._cast,
    Index: Binder._index,
    FieldAccess: Binder._field,
    Items: _items,
    Call: Binder._call,
}

_NO_VALUE = (
    "the time of processing has no value in a row",
    "it may stand in a select list, in DESCRIPTOR, in FOR SYSTEM_TIME AS OF, and in ORDER BY of a ROW_NUMBER() that is bounded by "
    "= 1; compare by the event time",
)

_HINTS = {
    Star: "* stands in the select list and in COUNT(*)",
    Subquery: "a query as a value stands in WHERE, or in a select list without aggregates: group in FROM (SELECT … GROUP BY …)",
    Exists: "EXISTS (SELECT …) stands in WHERE, joined by AND with other conditions",
    Items: "compare the columns one by one",
    Descriptor: "DESCRIPTOR is an argument of a table function",
}


_ENGINE_TYPES = re.compile(
    r"\b(u?int(8|16|32|64)|string|bool|double|float|date32\[day\]|timestamp\[[^\]]*\]|decimal\d+(?=\())"
)
_NO_CAST = re.compile(r".*?: (\S.*) cannot be cast to (.*?): (?=[A-Z]).*", re.DOTALL)
_ENGINE_OPERATORS = {"== of": "= of", "!= of": "<> of", "when of": "CASE of", "& of": "AND of", "| of": "OR of"}
_ARROW_TYPES = {"bool": "bool_", "double": "float64", "float": "float32", "date32[day]": "date32"}


def _in_words_of_sql(error: UserError | DataError, span: Span, function: str) -> SqlFault:
    """Returns an error of the engine about an expression, with the names that operators and types have in SQL."""

    def named(match: re.Match[str]) -> str:
        name = match[0]
        if name.startswith("timestamp"):
            return "TIMESTAMP"
        if name.startswith("decimal"):
            return "DECIMAL"
        return sql_type(getattr(pa, _ARROW_TYPES.get(name, name))())

    def of_sql(text: str) -> str:
        return _ENGINE_TYPES.sub(named, text).replace("list<item: ", "ARRAY<").replace("struct<", "ROW<")

    message = str(error.args[0] if error.args else error).split("cannot be computed: ", 1)
    text = message[-1]
    for old, new in _ENGINE_OPERATORS.items():
        text = text.replace(old, new) if text.startswith(old) else text
    hint = getattr(error, "hint", "") or ""
    if cast := _NO_CAST.fullmatch(text):
        given, wanted = (
            re.sub(r"(\w+): ", r"\1 ", of_sql(each)) if "<" in each else sql_type(as_type(each))
            for each in cast.groups()
        )
        text, hint = f"{given} cannot be cast to {wanted}", "JSON_STRING(…)" if wanted == "STRING" else hint
    elif len(message) == 2:
        text = of_sql(text)
        hint = _cast_for(text) if "cast" in hint else hint
        if function and " of " in text:
            text = f"{function} of {text.split(' of ', 1)[1]}"
            hint = hint or _form_of(function)
    elif "strict=False" in hint:  # a constant that is no value of the type of a CAST
        text, hint = _ENGINE_TYPES.sub(named, text.split("): ", 1)[-1]), "TRY_CAST(… AS …) gives NULL for such values"
    if function and _OF_PYTHON.search(f"{text} {hint}"):
        text, hint = _OF_PYTHON.sub(function, text), _form_of(function)
    return SqlFault(span, text, hint)


def _form_of(function: str) -> str:
    form = functions.FUNCTIONS[function].form if function in functions.FUNCTIONS else "…"
    return f"{function}({form})"


_OF_PYTHON = re.compile(r"\b(str|dt|list|struct|value)\.\w+|\.cast\(|\blog: base")
"""What an error of the API of Python names, and a text of SQL does not have."""


def _cast_for(text: str) -> str:
    """Returns what to write instead of an operation of types that do not fit: "+ of STRING and BIGINT"."""
    if text[0] in "+-" and "TIMESTAMP" in text:
        return "a time and an interval: ts + INTERVAL '1' DAY"
    if text.startswith("dt."):
        return "CAST(… AS TIMESTAMP(3))"
    if text[0] in "<>=" and "TIMESTAMP" in text:
        return "a time: TIMESTAMP '2024-05-17 12:30:00', or TO_TIMESTAMP_LTZ(x, 3) of ms since 1970"
    if text[0] in "+-*/%" or text.startswith("round"):
        return "CAST(… AS DOUBLE), or AS BIGINT"
    return "CAST(… AS STRING)"


def _whole(text: str, span: Span) -> TypedExpr:
    """Returns a constant whole number, which is an INT if it fits, else a BIGINT. Raises SqlFault for greater ones."""
    value = Decimal(text)  # of any length: `int` refuses 5,000 digits
    if not -(1 << 63) <= value < 1 << 63:
        raise SqlFault(span, f"{_short(text)} is more than a BIGINT holds", "write it as a DECIMAL: 1.0")
    type = pa.int32() if -(1 << 31) <= value < 1 << 31 else pa.int64()
    return TypedExpr(lit(int(value), type), type)


def _width(type: pa.DataType) -> int:
    return int(type.bit_width)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text):,} characters)"


def check_text(text: Any, type: pa.DataType, span: Span) -> None:
    """Raises SqlFault if a constant text, which is compared with a value of this type, is no such value."""
    try:
        if pa.types.is_timestamp(type):
            datetime.datetime.fromisoformat(text)
        elif functions.is_number(type) or pa.types.is_date(type):
            scalar_of_text(text, type)
    except (ValueError, pa.ArrowInvalid):
        form = "a number; or CAST(… AS STRING) = '…', which compares the texts"
        if not functions.is_number(type):
            form = "'2024-05-17 12:30:00'" if pa.types.is_timestamp(type) else "'2024-05-17'"
        raise SqlFault(span, f"'{text}' is no {sql_type(type)}", form) from None


def constant_text(node: Expression, what: str) -> str:
    """Returns the text of a constant. Raises SqlFault for any other expression."""
    if isinstance(node, Constant) and node.kind == "string":
        return node.text
    raise SqlFault(node.span, f"{what} is a constant text")


def conjuncts(node: Expression | None) -> list[Expression]:
    """Returns the conditions that AND joins, from left to right."""
    if node is None:
        return []
    if isinstance(node, Binary) and node.operator == "AND":
        return [*conjuncts(node.left), *conjuncts(node.right)]
    return [node]


def mirrored(operator: str) -> str:
    """Returns the comparison with its sides swapped."""
    return _MIRRORED[operator]


def _is_of_days(*nodes: Expression) -> bool:
    """Returns True if one of these expressions is an interval of whole days or weeks."""
    return any(isinstance(node, Interval) and interval_ms(node) % DAY_MS == 0 for node in nodes)


def _is_on_clock(type: pa.DataType) -> bool:
    """Returns True for DATE and TIMESTAMP, with a zone or without."""
    return bool(pa.types.is_date(type) or pa.types.is_timestamp(type))


def _joined_by(operator: Literal["AND", "OR"], span: Span, left: Expression, right: Expression) -> Expression:
    return Binary(operator, left, right, span)


def _is_exact_time(type: pa.DataType) -> bool:
    """Returns True for a TIMESTAMP whose values Python's datetime has: those with up to six digits of a second."""
    return bool(pa.types.is_timestamp(type)) and type.unit != "ns"


def walk(node: Any) -> Iterator[Any]:
    """Yields a node and all nodes below it; it does not enter queries."""
    waiting = [node]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is tuple:
            waiting += value[::-1]
            continue
        names = _parts_of.get(kind)
        if names is None:
            names = _parts(kind)
        if names:
            yield value
            if kind is not Query:
                waiting += [getattr(value, name) for name in names]


_parts_of: dict[type, tuple[str, ...]] = {Span: ()}  # a binder walks the same trees often: fields are looked up once


def _parts(kind: type) -> tuple[str, ...]:
    """Returns the names of the fields of a class of the tree, the last one first; empty for any other class.

    Positions in the text are left out: no binder looks for them, and two equal expressions stand at two places.
    """
    known = _parts_of.get(kind)
    if known is None:
        names = [each.name for each in reversed(fields(kind))] if is_dataclass(kind) else []
        known = _parts_of[kind] = tuple(name for name in names if name != "span")
    return known


def rebuilt(node: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a tree in which `change` has replaced nodes; below a node that it has replaced nothing is changed. A part
    of the tree without such nodes is the old one.
    """
    kind = type(node)
    if kind is tuple:
        made = tuple(rebuilt(each, change) for each in node)
        return node if all(one is other for one, other in zip(made, node, strict=True)) else made
    names = _parts(kind)
    if not names:
        return node
    changed = change(node)
    if changed is not node:
        return changed
    parts = {name: (getattr(node, name), rebuilt(getattr(node, name), change)) for name in reversed(names)}
    new = {name: after for name, (before, after) in parts.items() if after is not before}
    return replace(node, **new) if new else node


def alike(one: Any, other: Any) -> bool:
    """Returns True if two trees are the same text but for their places, spaces, and capitals of names without quotes."""
    if isinstance(one, Name) and isinstance(other, Name):
        exact = one.quoted or other.quoted
        return one.text == other.text if exact else one.text.lower() == other.text.lower()
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if type(one) is not type(other):
        return False
    names = _parts(type(one))
    return all(alike(getattr(one, name), getattr(other, name)) for name in names) if names else bool(one == other)


def is_moment(node: Any) -> bool:
    """Returns True for a call of the clock or of chance: NOW(), CURRENT_DATE, RAND(), UNIX_TIMESTAMP() without arguments."""
    if not isinstance(node, Call) or node.over is not None or node.star:
        return False
    name = node.name.text.upper()
    return name in functions.MOMENTS or (name == "UNIX_TIMESTAMP" and not node.arguments)


def moment_key(node: Column | Call, relation: Relation) -> Any:
    """Returns the key of a call of the clock in `Relation.calls`; each call of chance has a value of its own."""
    if isinstance(node, Call) and node.name.text.upper() in ("RAND", "RAND_INTEGER", "UUID"):
        return ("chance", node.span.start)
    return key_of(node, relation)


def key_of(node: Any, relation: Relation) -> Any:
    """Returns a value that two expressions share if they are the same over this table, however they are written."""
    if isinstance(node, Column):
        field, further = relation.find(node.parts)
        return ("column", field.column, *(each.text for each in further))
    if isinstance(node, Name):
        return node.text if node.quoted else node.text.upper()
    if isinstance(node, tuple):
        return tuple(key_of(each, relation) for each in node)
    if is_dataclass(node):
        return (type(node).__name__, *(key_of(getattr(node, name), relation) for name in reversed(_parts(type(node)))))
    return node
