"""The conditions of a join: which of them are keys, which are bounds of time, and which are left for a filter."""

from dataclasses import replace

import pyarrow as pa

from sabot.api.expr import coalesce, lit
from sabot.sql.functions import cast
from sabot.sql.registered import with_calls
from sabot.sql.scope import (
    Names,
    Relation,
    StarName,
    TableColumn,
    TypedExpr,
    node_of,
)
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import (
    Between,
    Binary,
    Column,
    Expression,
    Interval,
    JoinSource,
    Name,
)
from sabot.sql.types import common_type, interval_ms, sql_type
from sabot.sql.values import Binder, Context, conjuncts, mirrored, walk
from sabot.sql.zones import is_local

_HOW = {"INNER": "inner", "COMMA": "inner", "CROSS": "inner", "LEFT": "left", "RIGHT": "right", "FULL": "full"}
_COMPARISONS = ("<", "<=", ">", ">=")


class JoinConditions:
    """The two tables of a join, and what each condition of ON, USING and WHERE is for the join (`sort`).

    - `left`, `right`: the tables, whose columns have different names in the engine. `both`: the columns of both.
    - `how`: the kind of the join in the engine. `own`: the conditions of ON and USING.
    - `keys`: the equal columns: the condition, and its two sides, the left one first.
    - `lower`, `upper`: the bounds of (right event time - left event time) in ms. `bounds`: the conditions that say them.
    - `residual`: the conditions of ON that are neither.
    """

    def __init__(
        self,
        context: Context,
        join: JoinSource,
        left: Relation,
        right: Relation,
        where: list[Expression],
    ) -> None:
        """`where`: conditions of WHERE, from which the join takes those that it uses."""
        self.context = context
        if join.natural:
            join = replace(join, using=_common_names(left, right, join.span))
        self.join = join
        self.how = _HOW[join.kind]
        own = conjuncts(join.on)
        self.left = with_calls(context, left, own)
        right = self._apart(self.left, right)
        self.right = with_calls(context, right, own, self.left)
        self.both = Relation(left.stream, (*self.left.fields, *self.right.fields))
        self.own = own + [self._using(name) for name in join.using]
        self._where = where
        self.keys: list[tuple[Expression, TypedExpr, TypedExpr]] = []
        self.lower: int | None = None
        self.upper: int | None = None
        self.bounds: list[Expression] = []
        self.residual: list[Expression] = []
        # event time has whole ms; the rows of an inner join, which are found by it, are then filtered by their own times
        self._exact = self.how == "inner" and any(map(_is_finer, self.both.fields))

    def _apart(self, left: Relation, right: Relation) -> Relation:
        """Returns the right table with other columns where the left one has columns of these names."""
        names = Names({each.column for each in left.fields})
        names.taken |= set(node_of(left.stream).column_names or ())
        known = [each.column for each in right.fields if not each.clock]
        new = {column: names.free(column) for column in dict.fromkeys(known)}
        changed = {old: name for old, name in new.items() if old != name}
        hidden = [name for name in node_of(right.stream).column_names or () if name not in new]
        stream = right.stream
        if hidden and len(hidden) < len(node_of(right.stream).column_names or ()):
            stream = stream.drop(*hidden)
        if changed:
            stream = stream.rename(changed)
        fields = tuple(replace(each, column=new.get(each.column, each.column)) for each in right.fields)
        return replace(right, stream=stream, fields=fields)

    def _using(self, name: Name) -> Expression:
        sides = []
        for relation in (self.left, self.right):
            field, _ = relation.find((name,))
            sides.append(Column((StarName(field.name, name.span, True, field),), name.span))
        return Binary("=", sides[0], sides[1], name.span)

    def sort(self) -> None:
        """Finds the keys, the bounds of time and the further conditions."""
        for node in self.own:
            for each in walk(node):
                if isinstance(each, Column):
                    self.both.find(each.parts)  # a name that both tables have is neither's
            if not self._classify(node):
                self.residual.append(node)
        for node in list(self._where):
            if self._belongs(node) and self._classify(node):
                self._where.remove(node)

    def _belongs(self, node: Expression) -> bool:
        """Returns True if a condition of WHERE is about these two tables."""
        try:
            Binder(self.context, self.both).bind(node)
        except SqlFault:
            return False
        return True

    def _classify(self, node: Expression) -> bool:
        """Uses a condition as a key or as a bound of time. Returns True if nothing of it is left to check."""
        if isinstance(node, Between) and not node.negated and not node.symmetric:
            lower = self._bound_of_time(node.operand, ">=", node.lower)
            upper = self._bound_of_time(node.operand, "<=", node.upper)
            if lower is None or upper is None:
                return False
            for bound in (lower, upper):
                self._narrow(*bound)
            self.bounds.append(node)
            return not self._exact
        if not isinstance(node, Binary):
            return False
        if node.operator in ("=", "IS NOT DISTINCT FROM"):
            for one, other in ((node.left, node.right), (node.right, node.left)):
                left, right = self.side(one, self.left), self.side(other, self.right)
                if left is not None and right is not None:
                    keys = same_type(node, left, right, self.context.zone)
                    self.keys += [(node, *keys)] if node.operator == "=" else with_nulls(node, *keys)
                    return True
            return False
        if node.operator in _COMPARISONS:
            found = self._bound_of_time(node.left, node.operator, node.right)
            if found is not None:
                self._narrow(*found)
                self.bounds.append(node)
                return not self._exact
        return False

    def side(self, node: Expression, relation: Relation) -> TypedExpr | None:
        """Returns an expression of columns of this table alone, or None for any other one."""
        try:
            bound = Binder(self.context, relation).bind(node)
        except SqlFault:
            return None
        other = self.right if relation is self.left else self.left
        names = {each.column for each in other.fields}
        return bound if bound.expr.columns and not bound.expr.columns & names else None

    def _bound_of_time(self, left: Expression, operator: str, right: Expression) -> tuple[str, int] | None:
        """Returns (">=" or "<=", ms) for the distance of the right table's event time from that of the left table,
        or None if the comparison is not about these.
        """
        one, other = self._time(left), self._time(right)
        if one is None or other is None or one[0] is other[0]:
            return None
        # one.time + a <op> other.time + b
        (table, a), (_, b) = one, other
        if table is self.right:
            a, b, operator = b, a, mirrored(operator)
        # left + a <op> right + b, so (right - left) <mirrored op> a - b
        distance, operator = a - b, mirrored(operator)
        if operator in ("<", ">") and self._exact:
            return f"{operator}=", distance
        if operator in ("<", ">"):
            return f"{operator}=", distance - 1 if operator == "<" else distance + 1
        return operator, distance

    def _narrow(self, operator: str, ms: int) -> None:
        if operator == ">=":
            self.lower = ms if self.lower is None else max(self.lower, ms)
        else:
            self.upper = ms if self.upper is None else min(self.upper, ms)

    def _time(self, node: Expression) -> tuple[Relation, int] | None:
        """Returns the table whose event time an expression is, and its distance from it in ms."""
        if isinstance(node, Binary) and node.operator in ("+", "-") and isinstance(node.right, Interval):
            found = self._time(node.left)
            amount = interval_ms(node.right)
            return None if found is None else (found[0], found[1] + (amount if node.operator == "+" else -amount))
        if not isinstance(node, Column):
            return None
        try:
            field, further = self.both.find(node.parts)
        except SqlFault:
            return None
        if further or field.shift_ms is None:
            return None
        table = self.left if any(each is field for each in self.left.fields) else self.right
        return table, field.shift_ms


def same_type(node: Expression, left: TypedExpr, right: TypedExpr, zone: str) -> tuple[TypedExpr, TypedExpr]:
    """Returns the keys of a join with one type; a TIMESTAMP beside a TIMESTAMP_LTZ is on the clock of the session's zone.
    Raises SqlFault at `node` if their types cannot be compared.
    """
    if pa.types.is_timestamp(left.type) and pa.types.is_timestamp(right.type):
        local = next((each.type for each in (left, right) if is_local(each.type)), left.type)
        left, right = (
            each if is_local(each.type) == is_local(local) else TypedExpr(cast(each, local, zone, strict=True), local)
            for each in (left, right)
        )
    type = common_type(left.type, right.type)
    if type is None:
        message = f"{sql_type(left.type)} and {sql_type(right.type)} are never equal"
        raise SqlFault(node.span, message, "write a CAST")
    keys = [key if key.type == type else TypedExpr(key.expr.cast(type), type) for key in (left, right)]
    return keys[0], keys[1]


def with_nulls(node: Expression, left: TypedExpr, right: TypedExpr) -> list[tuple[Expression, TypedExpr, TypedExpr]]:
    """Returns keys that are equal where both values are equal or NULL: whether they are NULL, and the values."""
    type = left.type
    if pa.types.is_string(type) or pa.types.is_binary(type):
        instead = pa.scalar("", pa.string()).cast(type)
    else:
        try:
            instead = pa.scalar(0, pa.int32()).cast(type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            instead = pa.scalar(0, type) if pa.types.is_timestamp(type) else None
    if instead is None:
        raise SqlFault(node.span, f"{sql_type(type)} is no key of a join", "compare its parts")
    nulls = [TypedExpr(each.expr.is_null(), pa.bool_()) for each in (left, right)]
    values = [TypedExpr(coalesce(each.expr, lit(instead)), type) for each in (left, right)]
    return [(node, nulls[0], nulls[1]), (node, values[0], values[1])]


def _common_names(left: Relation, right: Relation, span: Span) -> tuple[Name, ...]:
    """Returns the names of the columns that both tables of a NATURAL JOIN have. Raises SqlFault if there are none."""
    known = {each.name for each in right.fields if not each.merged}
    found = dict.fromkeys(each.name for each in left.fields if not each.merged and each.name in known)
    if not found:
        raise SqlFault(span, "the two tables of NATURAL JOIN have no column of one name", "JOIN … ON a.id = b.key")
    return tuple(Name(name, span, True) for name in found)


def _is_finer(column: TableColumn) -> bool:
    """Returns True for an event time with more digits than ms."""
    return column.shift_ms is not None and pa.types.is_timestamp(column.type) and column.type.unit in ("us", "ns")
