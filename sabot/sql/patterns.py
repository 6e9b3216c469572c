"""The binder of MATCH_RECOGNIZE: variables become steps of a pattern, measures become values of these steps.

PATTERN (A B+ C) DEFINE B AS B.price < A.price     ->     pattern("A").next("B", …, times=(1, None)).next("C")
"""

from dataclasses import replace
from functools import reduce
from typing import Any

import pyarrow as pa

from sabot.api import patterns as engine
from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.sql import functions
from sabot.sql.scope import Names, Relation, StarName, TableColumn, TypedExpr, at, names_of
from sabot.sql.select import order_columns
from sabot.sql.syntax.text import Span, SqlFault, list_names
from sabot.sql.syntax.tree import (
    Binary,
    Call,
    Column,
    Constant,
    Expression,
    Interval,
    Is,
    Item,
    MatchRecognize,
    Name,
    Pattern,
    Repeat,
    Succession,
    Variable,
)
from sabot.sql.types import interval_ms
from sabot.sql.values import Binder, Context, conjuncts, rebuilt, walk

_SKIPS = {"PAST LAST ROW": "past_last", "TO NEXT ROW": "to_next"}
_VALUES = {"FIRST": "first", "LAST": "last", "SUM": "sum", "MIN": "min", "MAX": "max", "AVG": "mean"}


def bind_match(context: Context, node: MatchRecognize, relation: Relation) -> Relation:
    """Returns the rows of MATCH_RECOGNIZE: the columns of PARTITION BY, and the measures of each match."""
    return _MatchBinder(context, node, relation).bind()


class _MatchBinder:
    """The binder of one MATCH_RECOGNIZE over a bound table."""

    def __init__(self, context: Context, node: MatchRecognize, relation: Relation) -> None:
        self._context = context
        self._node = node
        self._relation = relation
        self._variables = [name for _, name, _ in self._steps()]
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
            raise SqlFault(span, "MATCH_RECOGNIZE needs ORDER BY the event time, ascending", "ORDER BY ts")
        skip = _SKIPS.get(node.skip)
        if skip is None:
            raise SqlFault(
                node.skip_to.span if node.skip_to else node.span,
                f"AFTER MATCH SKIP {node.skip} is not supported",
                "AFTER MATCH SKIP PAST LAST ROW, or TO NEXT ROW",
            )
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
            stream = keyed.pattern(pattern, skip=skip, **given)  # type: ignore[arg-type]
            schema = stream.schema
        fields = [replace(key, qualifier="", shift_ms=None, window=None) for key in keys]
        taken = Names({field.name for field in fields})
        for name, (item, _) in measures.items():
            shown = taken.free(item.alias.text if item.alias is not None else "EXPR$0")
            column = name if name in given else engine.MATCH_END
            shift = None if name in given else 0
            fields.append(TableColumn("", shown, column, schema.field(column).type, shift, never_null=shift == 0))
        return Relation(stream, tuple(fields))

    # -- PATTERN and DEFINE -------------------------------------------------------------------------------------------

    def _steps(self) -> list[tuple[Pattern, str, Repeat | None]]:
        """Returns the variables of PATTERN with their number of rows. Raises SqlFault for groups and alternatives."""
        node = self._node.pattern
        found: list[tuple[Pattern, str, Repeat | None]] = []
        for each in node.patterns if isinstance(node, Succession) else (node,):
            inner = each.pattern if isinstance(each, Repeat) else each
            if not isinstance(inner, Variable):
                raise SqlFault(each.span, "a pattern is a sequence of variables here", "PATTERN (A B+ C?)")
            if inner.name.text in [name for _, name, _ in found]:
                raise SqlFault(inner.span, f"{inner.name.text} is in the pattern twice", "give it another name")
            found.append((each, inner.name.text, each if isinstance(each, Repeat) else None))
        last = found[-1][2]
        if last is not None and last.greedy and last.most != last.least:
            raise SqlFault(
                last.span,
                "the last variable cannot be repeated greedily: its end is not known",
                f"write {found[-1][1]}+?, or a variable after it",
            )
        return found

    def _pattern(self) -> engine.Pattern:
        defined = {name.text: (name, condition) for name, condition in self._node.define}
        for variable, _ in defined.values():
            if variable.text not in self._variables:
                hint = list_names(variable.text, self._variables)
                raise SqlFault(variable.span, f"the pattern has no variable {variable.text}", hint)
        made: engine.Pattern | None = None
        for node, name, repeat in self._steps():
            predicate = self._predicate(name, defined[name][1]) if name in defined else lit(True)
            times: Any = 1 if repeat is None else (repeat.least, repeat.most)
            with at(node.span):
                made = (
                    engine.pattern(name, predicate, times=times)
                    if made is None
                    else made.next(name, predicate, times=times)
                )
                if repeat is not None:
                    made = made.consecutive()
                    made = made.greedy() if repeat.greedy and repeat.least != repeat.most else made
        assert made is not None
        if self._node.within is not None:
            if not isinstance(self._node.within, Interval):
                raise SqlFault(self._node.within.span, "WITHIN takes an interval", "WITHIN INTERVAL '10' SECOND")
            with at(self._node.within.span):  # the bound itself is outside in Flink, and inside in the engine
                made = made.within(f"{interval_ms(self._node.within) - 1}ms")
        return made

    def _predicate(self, name: str, condition: Expression) -> Expr:
        made: Expr | None = None
        for each in conjuncts(condition):
            predicate = self._bound(_without_first(each, name), name).expr
            made = predicate if made is None else made & predicate
        assert made is not None
        return made

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
        if isinstance(node, Call) and node.name.text.upper() in (*_VALUES, "COUNT") and node.over is None:
            return self._of_call(node, own)
        if not isinstance(node, Column):
            return node
        variable = self._variable(node, own)
        if variable == own:
            return Column(_column_of(node), node.span)
        return self._value(node, variable, "last")

    def _variable(self, node: Column, own: str | None) -> str:
        """Returns the variable of `A.price`. A column alone is that of the current row: in a measure, of the last row."""
        name = node.parts[0].text
        if len(node.parts) == 1 and node.parts[0].text not in self._variables:
            last = self._steps()[-1][2]
            if own is not None:
                return own
            if last is None or last.least > 0:
                return self._variables[-1]
        if len(node.parts) < 2 or name not in self._variables:
            example = f"{self._variables[0]}.{node.parts[-1].text}"
            raise SqlFault(node.span, "a column of a pattern has the variable before it", f"write {example}")
        return name

    def _of_call(self, node: Call, own: str | None) -> Column:
        kind = node.name.text.upper()
        argument = node.arguments[0] if node.arguments else None
        if node.star and own is None and node.filter is None:
            rows = [engine.step(name).count() for name in self._variables]
            return self._column(node.span, pa.int64(), reduce(lambda one, more: one + more, rows))
        if not isinstance(argument, Column) or node.distinct or node.filter is not None:
            raise SqlFault(node.span, f"{kind} takes one column of a variable here", f"{kind}({self._variables[0]}.x)")
        variable = self._variable(argument, own)
        offset = 0
        if len(node.arguments) == 2 and isinstance(node.arguments[1], Constant) and kind in ("FIRST", "LAST"):
            offset = int(node.arguments[1].text)
        elif len(node.arguments) > 1:
            raise SqlFault(node.arguments[1].span, f"{kind} takes one column")
        if own is not None and (kind not in ("FIRST", "LAST") or (variable == own and kind == "FIRST")):
            raise SqlFault(
                node.span, f"{kind} of {variable} is not supported in DEFINE", "FIRST or LAST of a variable before it"
            )
        if variable == own and offset == 0:
            return Column(_column_of(argument), node.span)
        if own is None and offset:
            return self._row_of(argument, variable, kind, offset)
        if offset != (1 if variable == own else 0):
            raise SqlFault(node.span, f"{kind} with the offset {offset} is not supported here", "FIRST(A.x), LAST(A.x)")
        return self._value(argument, variable, kind.lower())

    def _row_of(self, node: Column, variable: str, kind: str, offset: int) -> Column:
        """Returns the value of a row of a variable, counted from its first or its last row; NULL if there is none."""
        bound = Binder(self._context, self._relation).bind(Column(_column_of(node), node.span))
        values = engine.step(variable).list(bound.expr)
        index = offset if kind == "FIRST" else -1 - offset
        return self._column(node.span, bound.type, values.list.get(index, null_on_oob=True))

    def _value(self, node: Column, variable: str, kind: str) -> Column:
        bound = Binder(self._context, self._relation).bind(Column(_column_of(node), node.span))
        rows, number = engine.step(variable), pa.types.is_integer(bound.type)
        if kind in ("first", "last", "min", "max"):
            return self._column(node.span, bound.type, getattr(rows, kind)(bound.expr))
        present = rows.sum(when(bound.expr.is_not_null()).then(lit(1)).otherwise(lit(0)))
        if kind == "count":
            return self._column(node.span, pa.int64(), coalesce(present, lit(0)))
        if not functions.is_number(bound.type):
            raise SqlFault(node.span, f"{kind.upper()} of {bound.type}", "it takes numbers")
        if kind == "sum":
            return self._column(node.span, pa.int64() if number else bound.type, rows.sum(bound.expr))
        if not number:
            return self._column(node.span, pa.float64(), rows.mean(bound.expr))
        quotient = functions.divided("/", TypedExpr(rows.sum(bound.expr), pa.int64()), TypedExpr(present, pa.int64()))
        return self._column(node.span, pa.int64(), when(present > 0).then(quotient).otherwise(lit(None)))

    def _column(self, span: Span, type: pa.DataType, value: Expr) -> Column:
        name = self._names.free("step_value")
        field = TableColumn("", name, name, type)
        self._added.append(field)
        self._values[name] = value
        return Column((StarName(name, span, True, field),), span)


def _column_of(node: Column) -> tuple[Name, ...]:
    """Returns the name of a column without the variable before it."""
    return node.parts[1:] if len(node.parts) > 1 else node.parts


def _without_first(node: Expression, own: str) -> Expression:
    """Returns `LAST(B.x, 1) IS NULL OR c` of the variable B as `c`.

    The engine takes a comparison with the row before for true where there is no such row, which is what this condition
    says. Raises SqlFault for `LAST(B.x, 1)` without it, which is NULL in the first row, so that no row would match.
    """
    if isinstance(node, Binary) and node.operator == "OR":
        for first, rest in ((node.left, node.right), (node.right, node.left)):
            if isinstance(first, Is) and first.what == "NULL" and not first.negated and _is_before(first.operand, own):
                return rest
    if any(_is_before(each, own) for each in walk(node)):
        raise SqlFault(
            node.span,
            f"the row before is NULL for the first row of {own}",
            f"write LAST({own}.x, 1) IS NULL OR …",
        )
    return node


def _is_before(node: Any, own: str) -> bool:
    return (
        isinstance(node, Call)
        and node.name.text.upper() == "LAST"
        and len(node.arguments) == 2
        and isinstance(node.arguments[0], Column)
        and node.arguments[0].parts[0].text == own
    )
