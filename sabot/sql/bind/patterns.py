"""The binder of MATCH_RECOGNIZE: variables become steps of a pattern, measures become values of these steps.

PATTERN (A B+ (C | D)) DEFINE B AS B.price < A.price     ->     pattern("A").next("B", …, times=(1, None)).next(C | D)

FIRST, LAST and aggregates in DEFINE take the current row with the rows that its variable has before; values of the engine's
steps do not, so it is added here.
"""

from dataclasses import replace
from functools import reduce
from typing import Any

import pyarrow as pa

from sabot.api import patterns as engine
from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.sql import functions
from sabot.sql.bind.over import order_columns
from sabot.sql.moments import ordered_by_clock
from sabot.sql.scope import Names, Relation, StarName, TableColumn, TypedExpr, at, hint_of_time, names_of
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import (
    Alternatives,
    Binary,
    Call,
    Column,
    Constant,
    Expression,
    Interval,
    Item,
    MatchRecognize,
    Name,
    Pattern,
    Repeat,
    Succession,
    Variable,
)
from sabot.sql.types import interval_ms, sql_type
from sabot.sql.values import Binder, Context, conjuncts, mirrored, rebuilt, walk

_SKIPS: dict[str, Any] = {
    "PAST LAST ROW": "past_last",
    "TO NEXT ROW": "to_next",
    "TO FIRST": "to_first",
    "TO LAST": "to_last",
    "TO": "to_last",
}
# the same comparison of a whole number plus 0 or 1
_MEANS = {"<": ("<", 0), "<=": ("<", 1), ">=": (">=", 0), ">": (">=", 1)}
_VALUES = ("FIRST", "LAST", "SUM", "MIN", "MAX", "AVG", "COUNT")


def bind_match(context: Context, node: MatchRecognize, relation: Relation) -> Relation:
    """Returns the rows of MATCH_RECOGNIZE: the columns of PARTITION BY, and the measures of each match."""
    return _MatchBinder(context, node, relation).bind()


def _with_preference(made: engine.Pattern, repeat: Repeat, is_in_group: bool) -> engine.Pattern:
    """Returns a pattern whose last part prefers the number of rows that it has in Flink: of `A+` all that it can take, of
    `A?` none if that completes the match, of `A+?` the least. Groups, which Flink refuses, go back as in standard SQL.
    """
    if repeat.least == repeat.most:
        return made
    if not repeat.greedy:
        return made.reluctant()
    if is_in_group or not isinstance(repeat.pattern, Variable):
        return made
    return made.reluctant() if repeat.most == 1 else made.greedy()


class _MatchBinder:
    """The binder of one MATCH_RECOGNIZE over a bound table."""

    def __init__(self, context: Context, node: MatchRecognize, relation: Relation) -> None:
        self._context = context
        self._node = node
        self._relation = relation = ordered_by_clock(context, relation, node.order)
        variables = (each.name.text for each in walk(node.pattern) if isinstance(each, Variable))
        self._variables = list(dict.fromkeys(variables))
        self._names = names_of(relation)
        self._added: list[TableColumn] = []  # columns that stand for values of steps while an expression is bound
        self._values: dict[str, Expr] = {}  # the values for which they stand

    def bind(self) -> Relation:
        """Returns the matches."""
        node, relation = self._node, self._relation
        by, _ = order_columns(self._context, relation, node.order)
        times = [each.column for each in relation.fields if each.shift_ms == 0]
        if len(by) != 1 or by[0][0] not in times or by[0][1]:
            span = node.order[0].span if node.order else node.span
            raise SqlFault(
                span, "MATCH_RECOGNIZE needs ORDER BY the event time, ascending", f"ORDER BY {hint_of_time(relation)}"
            )
        skip = _SKIPS[node.skip]
        if node.skip_to is not None:
            skip = (skip, self._known(node.skip_to))
        keys = []
        for each in node.partition:
            bound = Binder(self._context, relation).bind(each)
            if bound.expr.column is None:
                raise SqlFault(each.span, "PARTITION BY takes columns here", "compute them in a query inside")
            keys.append(next(field for field in relation.fields if field.column == bound.expr.column))
        pattern = self._pattern()
        measures = {f"measure{i}": (item, self._measure(item)) for i, item in enumerate(node.measures)}
        with at(node.span):
            keyed = relation.stream.key_by(*(key.column for key in keys), **({} if keys else {"every": lit(0)}))
            given = {name: expr for name, (_, expr) in measures.items() if expr.column != engine.MATCH_END}
            stream = keyed.pattern(pattern, skip=skip, overlap="begun", **given)  # type: ignore[arg-type]
            schema = stream.schema
        own = next(each.sql_type for each in relation.fields if each.column == by[0][0])
        time = pa.timestamp("ms") if pa.types.is_timestamp(own) and own.tz is None else None  # of MATCH_ROWTIME()
        fields = [replace(key, qualifier="", shift_ms=None, window=None) for key in keys]
        taken = Names({field.name for field in fields})
        for name, (item, _) in measures.items():
            shown = taken.free(item.alias.text if item.alias is not None else "EXPR$0")
            column = name if name in given else engine.MATCH_END
            shift = None if name in given else 0
            field = TableColumn("", shown, column, schema.field(column).type, shift, never_null=shift == 0)
            type = self._shown_measure(item.expression, field.type) if name in given else time
            fields.append(replace(field, shown=type))
        return Relation(stream, tuple(fields))

    def _shown_measure(self, tree: Expression, type: pa.DataType) -> pa.DataType | None:
        """Returns the type in SQL (`TableColumn.shown`) of a measure of this type in the engine."""
        found = [self._relation.find(self._column_of(node))[0] for node in walk(tree) if isinstance(node, Column)]
        return next((each.shown for each in found), None) if all(each.type == type for each in found) else None

    # -- PATTERN and DEFINE -------------------------------------------------------------------------------------------

    def _pattern(self) -> engine.Pattern:
        for variable, _ in self._node.define:
            self._known(variable)
        defined = {name.text: condition for name, condition in self._node.define}
        self._define = {
            name: self._predicate(name, defined[name]) if name in defined else lit(True) for name in self._variables
        }
        made = self._sequence(self._node.pattern)
        if self._node.within is not None:
            if not isinstance(self._node.within, Interval):
                raise SqlFault(self._node.within.span, "WITHIN takes an interval", "WITHIN INTERVAL '10' SECOND")
            with at(self._node.within.span):  # the bound itself is outside in Flink, and inside in the engine
                made = made.within(f"{interval_ms(self._node.within) - 1}ms")
        return made

    def _known(self, variable: Name) -> str:
        if variable.text not in self._variables:
            hint = list_names(variable.text, self._variables)
            raise SqlFault(variable.span, f"the pattern has no variable {variable.text}", hint)
        return variable.text

    def _sequence(self, node: Pattern, is_in_group: bool = False) -> engine.Pattern:
        """Returns a part of PATTERN as a pattern of the engine."""
        if isinstance(node, Alternatives):
            return reduce(lambda one, other: one | other, [self._sequence(each, True) for each in node.patterns])
        made: engine.Pattern | None = None
        for each in node.patterns if isinstance(node, Succession) else (node,):
            repeat = each if isinstance(each, Repeat) else None
            inner = each if repeat is None else repeat.pattern
            given: Any = (
                (inner.name.text, self._define[inner.name.text])
                if isinstance(inner, Variable)
                else (self._sequence(inner, True),)
            )
            times: Any = 1 if repeat is None else (repeat.least, repeat.most)
            with at(each.span):
                made = engine.pattern(*given, times=times) if made is None else made.next(*given, times=times)
                if repeat is not None:
                    made = _with_preference(made.consecutive(), repeat, is_in_group)
        assert made is not None
        return made

    def _predicate(self, name: str, condition: Expression) -> Expr:
        made: Expr | None = None
        for each in conjuncts(condition):
            predicate = self._bound(self._without_mean(each), name).expr
            if predicate.kind in engine.COMPARISONS and any(
                value.option("step") == name for value in engine.step_values(predicate)
            ):
                predicate = coalesce(predicate, lit(False))  # alone, the engine takes it for true at the first row
            made = predicate if made is None else made & predicate
        assert made is not None
        return made

    def _without_mean(self, node: Expression) -> Expression:
        """Returns a comparison of the mean of whole numbers with a constant above 0 as one without a division, which each
        partial match would compute for each row; any other condition unchanged.

            AVG(A.price) <= 9     ->     SUM(A.price) < 10 * COUNT(A.price)

        AVG is cut off towards zero, so it is below 10 exactly if the quotient is: both are if the sum is negative.
        """
        if not isinstance(node, Binary) or node.operator not in _MEANS:
            return node
        operator, mean, bound = node.operator, node.left, node.right
        if isinstance(mean, Constant):
            operator, mean, bound = mirrored(operator), bound, mean
        if not (isinstance(mean, Call) and mean.name.text.upper() == "AVG" and len(mean.arguments) == 1):
            return node
        if not (isinstance(bound, Constant) and bound.kind == "integer"):
            return node
        operator, more = _MEANS[operator]
        least = int(bound.text) + more
        if not 1 <= least < 1 << 31 or not pa.types.is_integer(self._argument(mean.arguments[0]).type):
            return node
        total, count = (replace(mean, name=replace(mean.name, text=kind)) for kind in ("SUM", "COUNT"))
        return Binary(operator, total, Binary("*", replace(bound, text=str(least)), count, node.span), node.span)

    def _measure(self, item: Item) -> Expr:
        if item.alias is None and not isinstance(item.expression, Column):
            raise SqlFault(item.span, "a measure needs a name", "MEASURES LAST(A.price) AS price")
        made = self._bound(item.expression, None).expr
        if made.column != engine.MATCH_END and engine.MATCH_END in made.columns:
            raise SqlFault(item.span, "MATCH_ROWTIME() is a measure by itself", "compute in a query outside")
        return made

    # -- expressions --------------------------------------------------------------------------------------------------

    def _bound(self, tree: Expression, own: str | None) -> TypedExpr:
        """Binds a condition of the variable `own`, or a measure if that is None."""
        self._added, self._values = [], {}
        changed = rebuilt(tree, lambda node: self._stand_in(node, own))
        relation = replace(self._relation, fields=(*self._relation.fields, *self._added))
        bound = Binder(self._context, relation).bind(changed)
        return TypedExpr(bound.expr.substitute(self._values), bound.type)

    def _stand_in(self, node: Any, own: str | None) -> Any:
        """Returns a column in the place of a value of a step; any other node unchanged."""
        if isinstance(node, Call) and node.name.text.upper() == "MATCH_ROWTIME" and own is None:
            return self._column(node.span, pa.timestamp("ms", tz="UTC"), col(engine.MATCH_END))
        if isinstance(node, Call) and node.name.text.upper() in _VALUES and node.over is None:
            return self._of_call(node, own)
        if not isinstance(node, Column):
            return node
        variable = self._variable(node)
        if own is not None and variable in (own, None):
            return Column(self._column_of(node), node.span)
        return self._row(node.span, self._argument(node), variable or self._last_variable(), "LAST", 0, None)

    def _variable(self, node: Column) -> str | None:
        """Returns the variable of `A.price`, or None for a column without one, which is that of all rows of the match."""
        name = node.parts[0].text
        return name if len(node.parts) > 1 and name in self._variables else None

    def _last_variable(self) -> str | None:
        """Returns the variable of the last row of a match, or None if it is not always the same."""
        pattern = self._node.pattern
        last = pattern.patterns[-1] if isinstance(pattern, Succession) else pattern
        if isinstance(last, Repeat) and last.least:
            last = last.pattern
        return last.name.text if isinstance(last, Variable) else None

    def _argument(self, node: Expression) -> TypedExpr:
        """Returns an expression over the columns of one row."""
        plain = rebuilt(
            node, lambda each: Column(self._column_of(each), each.span) if isinstance(each, Column) else each
        )
        return Binder(self._context, self._relation).bind(plain)

    def _of_call(self, node: Call, own: str | None) -> Any:
        """Binds FIRST, LAST or an aggregate of the rows of a variable, or of all rows."""
        kind = node.name.text.upper()
        if node.distinct or node.filter is not None:
            raise SqlFault(node.span, f"{kind} of the rows of a match has no DISTINCT and no FILTER")
        if node.star:
            return self._column(node.span, pa.int64(), engine.step().count() + (0 if own is None else 1))
        columns = [each for each in walk(node.arguments[:1]) if isinstance(each, Column)]
        variables = {self._variable(each) for each in columns}
        if len(variables) != 1 or any(
            isinstance(each, Call) and each.name.text.upper() in _VALUES for each in walk(node.arguments)
        ):
            example = f"{kind}({self._variables[0]}.x)"
            raise SqlFault(node.span, f"{kind} takes columns of one variable here", f"write {example}")
        (variable,) = variables
        argument = self._argument(node.arguments[0])
        current = argument.expr if own is not None and variable in (own, None) else None
        if kind in ("FIRST", "LAST"):
            return self._row(node.span, argument, variable, kind, self._offset(node), current)
        if len(node.arguments) > 1:
            raise SqlFault(node.arguments[1].span, f"{kind} takes one column")
        return self._aggregate(node.span, argument, engine.step(variable), kind, current)

    def _offset(self, node: Call) -> int:
        if len(node.arguments) < 2:
            return 0
        offset = node.arguments[1]
        if not isinstance(offset, Constant) or not offset.text.isdigit() or len(node.arguments) > 2:
            raise SqlFault(offset.span, f"{node.name.text.upper()} takes a number of rows", "LAST(A.x, 1)")
        return int(offset.text)

    def _row(
        self, span: Span, argument: TypedExpr, variable: str | None, kind: str, offset: int, current: Expr | None
    ) -> Column:
        """Returns the value of a row of a variable, counted from its first or its last row; NULL if there is none.
        `current`: the value of the current row, if the variable has it too.
        """
        rows = engine.step(variable)
        if current is None:
            value = getattr(rows, kind.lower())(argument.expr, offset=offset)
        elif kind == "LAST":
            value = rows.last(argument.expr, offset=offset - 1) if offset else current
        else:
            value = when(rows.count() == offset).then(current).otherwise(rows.first(argument.expr, offset=offset))
        return self._column(span, argument.type, value)

    def _aggregate(
        self, span: Span, argument: TypedExpr, rows: engine.StepRows, kind: str, current: Expr | None
    ) -> Column:
        expr, type = argument
        if kind in ("MIN", "MAX"):
            value = getattr(rows, kind.lower())(expr)
            if current is not None:
                further = current < value if kind == "MIN" else current > value
                value = when(value.is_null() | further).then(current).otherwise(value)
            return self._column(span, type, value)
        is_there = when(expr.is_not_null()).then(lit(1)).otherwise(lit(0))
        present = coalesce(rows.sum(is_there), lit(0)) + (0 if current is None else is_there)
        if kind == "COUNT":
            return self._column(span, pa.int64(), present)
        if not functions.is_number(type):
            raise SqlFault(span, f"{kind} of {sql_type(type)}", "it takes numbers")
        whole = pa.types.is_integer(type)
        total = rows.sum(expr)
        if current is not None:
            total = coalesce(total + current, current, total)
        if kind == "SUM":
            return self._column(span, pa.int64() if whole else type, total)
        if not whole:
            mean = rows.mean(expr) if current is None else total / present
            return self._column(span, pa.float64(), mean)
        sides = TypedExpr(total, pa.int64()), TypedExpr(present, pa.int64())
        quotient = functions.divided("/", *sides, positive=True)
        return self._column(span, pa.int64(), when(present > 0).then(quotient).otherwise(lit(None)))

    def _column(self, span: Span, type: pa.DataType, value: Expr) -> Column:
        name = self._names.free("step_value")
        field = TableColumn("", name, name, type)
        self._added.append(field)
        self._values[name] = value
        return Column((StarName(name, span, True, field),), span)

    def _column_of(self, node: Column) -> tuple[Name, ...]:
        """Returns the name of a column without the variable before it. Raises SqlFault for a name that is neither a variable
        nor a table or a column with fields.
        """
        if self._variable(node) is not None:
            return node.parts[1:]
        if len(node.parts) > 1:
            try:
                self._relation.find(node.parts)
            except SqlFault:
                self._known(node.parts[0])
        return node.parts
