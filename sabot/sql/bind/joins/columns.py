"""The columns of joined rows: keys that the engine drops, those of USING, and values without a partner."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sabot.api.expr import Expr, coalesce, col, lit, when
from sabot.api.nodes.joins import WindowJoin
from sabot.api.nodes.rows import Drop
from sabot.sql.bind.joins.conditions import JoinConditions
from sabot.sql.registered import with_calls
from sabot.sql.scope import (
    Names,
    Relation,
    TableColumn,
    TypedExpr,
    at,
    names_of,
    node_of,
)
from sabot.sql.syntax.tree import (
    Expression,
    JoinSource,
)
from sabot.sql.values import Binder

_FROM_LAST_MS = {"time": 0, "end": 1}  # of a window's bounds, in ms


def copied(on: JoinConditions, left: Relation, right: Relation) -> tuple[Relation, Relation, dict[str, str]]:
    """Copies key columns that the joined rows would not have: the engine drops the keys of the right table, which
    differ from those of the left one if the join is an outer one, or if the left key is computed.
    """
    outer: dict[str, str] = {}
    names = Names({each.column for each in (*left.fields, *right.fields)})

    def with_copies(relation: Relation, keys: Sequence[TypedExpr]) -> Relation:
        made: dict[str, Expr] = {}
        for key in keys:
            column = key.expr.column
            if column is not None and column not in outer:
                outer[column] = names.free(f"{column}0")
                made[outer[column]] = col(column)
        return replace(relation, stream=relation.stream.with_columns(**made)) if made else relation

    if on.how in ("left", "full"):
        right = with_copies(right, [key for _, _, key in on.keys])
    elif on.how == "inner":
        right = with_copies(right, [its for _, mine, its in on.keys if mine.expr.column is None])
    if on.how in ("right", "full"):
        left = with_copies(left, [key for _, key, _ in on.keys])
    return left, right, outer


def joined(on: JoinConditions, stream: Any, left: Relation, right: Relation, outer: dict[str, str]) -> Relation:
    """Returns the relation of the joined stream: a key of the right table is the key of the left one."""
    same = {
        key_right.expr.column: key_left.expr.column
        for _, key_left, key_right in on.keys
        if key_right.expr.column is not None and key_left.expr.column is not None
    }
    node = node_of(stream)
    step = node.inputs[0] if isinstance(node, Drop) else node
    fields = []
    sides = [(each, on.how in ("inner", "left")) for each in left.fields]
    sides += [(each, on.how in ("inner", "right")) for each in right.fields]
    for each, kept in sides:
        column = outer.get(each.column, each.column)
        if each.clock:
            fields += [] if stream.changes else [each]
            continue
        if node.column_names is not None and column not in node.column_names:
            column = same.get(each.column) or column
        of_left = len(fields) < len(left.fields)
        shift = each.shift_ms if step.keeps_time and of_left else None
        if isinstance(step, WindowJoin) and each.window is not None and kept:
            shift = _FROM_LAST_MS.get(each.window.edge)  # the time of a joined row is the last ms of its window
        fields.append(replace(each, column=column, shift_ms=shift, never_null=each.never_null and kept))
    relation = Relation(stream, tuple(fields))
    if on.join.using:
        split = sum(not (each.clock and stream.changes) for each in left.fields)
        relation = _merged(relation, on.join, split)
    if on.how == "inner" and on.residual:
        relation = with_calls(on.context, relation, on.residual)
        binder = Binder(on.context, relation)
        for condition in on.residual:
            with at(condition.span):
                relation = replace(relation, stream=relation.stream.filter(binder.predicate(condition)))
    return relation


def with_further(
    on: JoinConditions, relation: Relation, conditions: Sequence[Expression], its: Collection[str]
) -> Relation:
    """Returns joined rows that fulfil further conditions of ON. Of a LEFT JOIN, the others have no partner. `its`: the columns of the
    right table.
    """
    if not conditions:
        return relation
    relation = with_calls(on.context, relation, conditions)
    binder = Binder(on.context, relation)
    for condition in conditions:
        with at(condition.span):
            predicate = binder.predicate(condition)
            if on.how == "inner":
                stream = relation.stream.filter(predicate)
            else:
                kept = {
                    each.column: when(predicate).then(col(each.column)).otherwise(lit(None, each.type))
                    for each in relation.fields
                    if each.column in its and not each.clock
                }
                stream = relation.stream.with_columns(**kept)
            relation = replace(relation, stream=stream)
    return relation


def _merged(joined: Relation, join: JoinSource, split: int) -> Relation:
    """Returns the rows of a join with one column for each key of USING, before the other columns.

    `split`: the number of the left table's columns.
    """
    sides = [replace(joined, fields=joined.fields[:split]), replace(joined, fields=joined.fields[split:])]
    names, stream, fields = names_of(joined), joined.stream, list(joined.fields)
    made = []
    for name in join.using:
        left, right = (side.find((name,))[0] for side in sides)
        chosen = right if join.kind == "RIGHT" else left
        if join.kind == "FULL":
            column = names.free(left.name)
            with at(name.span):
                stream = stream.with_columns(**{column: coalesce(col(left.column), col(right.column))})
            chosen = TableColumn("", left.name, column, left.type, shown=left.shown)
        made.append(replace(chosen, qualifier="", name=left.name))
        for old in (left, right):
            fields[fields.index(old)] = replace(old, merged=True)
    return Relation(stream, (*made, *fields))
