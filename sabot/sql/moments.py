"""Functions whose values are those of the moment at which rows are processed: the clock, and chance.

    SELECT id, NOW() FROM t     ->     t, with a column of the time, the same for all rows of a batch; then the SELECT

They have a step of their own before the SELECT, so that no other step computes them again: a row that is updated must be
taken back with the value that it was given.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sabot.api.expr import Expr, col
from sabot.api.nodes.times import WithWatermark
from sabot.sql.functions import cast
from sabot.sql.scope import Relation, TableColumn, TypedExpr, at, is_clock, names_of, node_of, steps_of
from sabot.sql.syntax.text import Span, SqlFault
from sabot.sql.syntax.tree import Call, Column, Expression, Item, Sort
from sabot.sql.values import Binder, Context, is_moment, moment_key, walk

_log = logging.getLogger(__name__)

_INSTANT = pa.timestamp("ms", tz="UTC")
_DATES = {
    "CURRENT_DATE": pa.date32(),
    "CURRENT_TIME": pa.time32("s"),
    "LOCALTIME": pa.time32("s"),
    "LOCALTIMESTAMP": pa.timestamp("ms"),
}
_TYPES = {"UNIX_TIMESTAMP": pa.int64(), "RAND": pa.float64(), "RAND_INTEGER": pa.int32(), "UUID": pa.string()}
_WATERMARK = "CURRENT_WATERMARK"
_FOR_WATERMARK = "SELECT *, CURRENT_WATERMARK(ts) AS mark FROM t, in a query or a view"
_GROUP_WINDOWS = ("TUMBLE", "HOP", "SESSION")


class _Added(NamedTuple):
    """A column that a step adds to each batch. `values`: returns those of a number of rows, and of the columns `given`."""

    name: str
    type: pa.DataType
    values: Callable[..., pa.Array]
    given: tuple[str, ...] = ()


def has_moments(tree: Expression, relation: Relation) -> bool:
    """Returns True if an expression has the clock or chance in it."""
    return bool(_moments(tree, relation))


def with_moments(
    context: Context, relation: Relation, trees: Sequence[Item | Expression], clause: str = ""
) -> Relation:
    """Returns the table with a column for each call of such a function in these expressions, and for each PROCTIME() that
    is a part of an expression. `clause`: the clause of the expressions, if their rows depend on them; a warning says so.
    """
    for tree in trees:
        for node in reversed(_moments(tree, relation)):  # inner calls first
            key = moment_key(node, relation)
            if key in relation.calls:
                continue
            if clause:
                message = "%s in %s: after a restart, rows are read again at another moment, and other ones may pass"
                _log.warning(message, _named(node), clause)
            relation, made = _computed(context, relation, node)
            relation = replace(relation, calls={**relation.calls, key: made})
    return relation


def with_moment_types(relation: Relation, tree: Expression) -> Relation:
    """Returns columns without rows with those that `with_moments` would add for an expression, to learn its type."""
    calls = {}
    for i, node in enumerate(_moments(tree, relation)):
        name = "PROCTIME" if isinstance(node, Column) else node.name.text.upper()
        if name == _WATERMARK:
            raise SqlFault(node.span, f"{name} is of rows that are read, and no column of the table", _FOR_WATERMARK)
        type = _DATES.get(name) or _TYPES.get(name, _INSTANT)
        calls[moment_key(node, relation)] = TypedExpr(col(f"moment {i}"), type)
    return replace(relation, calls={**relation.calls, **calls})


def check_no_moment(node: Expression, what: str) -> None:
    """Raises SqlFault if an expression has the clock or chance in it. `what`: the use of the expression."""
    for each in walk(node):
        if is_moment(each) and not is_clock(each):
            message = f"{_named(each)} has another value at each moment, so it is no {what}"
            raise SqlFault(each.span, message, "GROUP BY TUMBLE(PROCTIME(), INTERVAL '1' MINUTE)")


def with_clocks(context: Context, relation: Relation, span: Span) -> Relation:
    """Returns the rows with values in their columns of PROCTIME(): the moment at which they leave the query."""
    clocks = [each for each in relation.fields if each.clock]
    if not clocks:
        return relation
    if relation.stream.changes:
        message = f"{clocks[0].name} is the time of processing, which rows that are updated do not have"
        raise SqlFault(span, message, "leave it out of the select list")
    relation, made = _now(context, relation, span)
    column = str(made.expr.column)
    fields = tuple(
        TableColumn(each.qualifier, each.name, column, made.type, never_null=True) if each.clock else each
        for each in relation.fields
    )
    columns = {each.name: col(each.column) for each in fields}
    with at(span):
        stream = relation.stream.select(**columns)
    return replace(relation, stream=stream, fields=tuple(replace(each, column=each.name) for each in fields))


def ordered_by_clock(context: Context, relation: Relation, order: Sequence[Sort]) -> Relation:
    """Returns the rows with the time of processing as their event time, if ORDER BY names it; else the rows unchanged.

    The clock of a step never goes back, so that no row is late.
    """
    first = order[0].expression if order else None
    clock = isinstance(first, Column) and _is_clock_column(first, relation)
    if not clock or relation.stream.changes:
        return relation
    assert first is not None
    time, latest = context.now, [0]

    def now(rows: int) -> pa.Array:
        latest[0] = max(latest[0], int(time() * 1000))
        return pa.repeat(pa.scalar(latest[0], _INSTANT), rows)

    relation, made = _added(relation, _Added("now", _INSTANT, now), first.span)
    relation = replace(relation, calls={**relation.calls, "order": made})
    column = str(made.expr.column)
    with at(first.span):
        stream = relation.stream.with_time(column)
    fields = tuple(
        TableColumn(each.qualifier, each.name, column, made.type, 0, never_null=True)
        if each.clock
        else replace(each, shift_ms=None, window=None)
        for each in relation.fields
    )
    return replace(relation, stream=stream, fields=fields)


def _named(node: Any) -> str:
    if isinstance(node, Call):
        return f"{node.name.text.upper()}{'()' if node.parentheses else ''}"
    return "PROCTIME()"


def _moments(tree: Item | Expression, relation: Relation) -> list[Column | Call]:
    """Returns the calls of such functions in an expression, the outer ones first, and its columns of PROCTIME().

    An entry of the select list that is PROCTIME() has its value where the rows leave the query; the windows of OVER and of
    GROUP BY take the clock itself.
    """
    whole = tree.expression if isinstance(tree, Item) else tree
    clocks = any(each.clock for each in relation.fields)
    if isinstance(whole, Column) or is_clock(whole):
        return []
    found: list[Column | Call] = []
    left_out: set[int] = set()
    for node in walk(whole):
        if isinstance(node, Call):
            if node.name.text.upper().startswith(_GROUP_WINDOWS):
                left_out.update(map(id, walk(node)))
            elif node.over is not None:
                left_out.update(map(id, walk(node.over)))
            elif is_moment(node) and id(node) not in left_out:
                found.append(node)
        elif clocks and isinstance(node, Column) and id(node) not in left_out and _is_clock_column(node, relation):
            found.append(node)
    return found


def _is_clock_column(node: Column, relation: Relation) -> bool:
    try:
        return relation.find(node.parts)[0].clock
    except SqlFault:  # the binder of the expression raises it at its place
        return False


def _computed(context: Context, relation: Relation, node: Column | Call) -> tuple[Relation, TypedExpr]:
    name = "PROCTIME" if isinstance(node, Column) else node.name.text.upper()
    if isinstance(node, Column) or name in _OF_THE_CLOCK:
        if isinstance(node, Call) and node.arguments:
            raise SqlFault(node.span, f"{name} takes no argument", f"{name}()" if node.parentheses else name)
        relation, now = _now(context, relation, node.span)
        if name == "UNIX_TIMESTAMP":
            return _with_column(relation, now.expr.dt.epoch("s"), pa.int64(), node.span)
        if name in _DATES:
            type = _DATES[name]
            return _with_column(relation, cast(now, type, context.zone, strict=True), type, node.span)
        return relation, now
    assert isinstance(node, Call)
    if name == _WATERMARK:
        return _watermark(relation, node)
    if len(node.arguments) != (name == "RAND_INTEGER"):
        message = f"{name} takes {'one argument' if name == 'RAND_INTEGER' else 'no argument'}, and there "
        message += f"{'is 1' if len(node.arguments) == 1 else f'are {len(node.arguments)}'}"
        raise SqlFault(node.span, message, "RAND_INTEGER(10): 0 to 9; there are no seeds")
    if name == "RAND":
        return _added(relation, _Added("rand", pa.float64(), _doubles), node)
    if name == "UUID":
        return _added(relation, _Added("uuid", pa.string(), _uuids), node)
    bound = Binder(context, relation).bind(node.arguments[0])
    if not pa.types.is_integer(bound.type):
        raise SqlFault(
            node.arguments[0].span, "the bound of RAND_INTEGER is a whole number", "RAND_INTEGER(10): 0 to 9"
        )
    relation, given = _with_column(relation, bound.expr.cast("int32"), pa.int32(), node.span)
    return _added(relation, _Added("rand", pa.int32(), _integers, (str(given.expr.column),)), node)


def _watermark(relation: Relation, node: Call) -> tuple[Relation, TypedExpr]:
    """Returns the column of the watermark of the column of event time that a call names."""
    (argument, *others) = node.arguments or (None,)
    field = relation.find(argument.parts)[0] if isinstance(argument, Column) else None
    if field is None or others:
        raise SqlFault(node.span, f"{_WATERMARK} takes the column of event time", f"{_WATERMARK}(ts)")
    if field.shift_ms != 0:
        message = f"{field.name} is not the event time of these rows, so it has no watermark"
        raise SqlFault(node.span, message, f"WATERMARK FOR {field.name} AS {field.name} in CREATE TABLE")
    if relation.stream.changes:
        message = "rows that are updated are taken back with the watermark that they had"
        raise SqlFault(node.span, message, "call it in a query before the GROUP BY")
    name = names_of(relation).free("watermark")
    with at(node.span):
        stream = steps_of(relation.stream).then(WithWatermark(node_of(relation.stream), name))
    relation = replace(relation, stream=stream)
    if pa.types.is_timestamp(field.type) and field.type.tz is not None:
        return relation, TypedExpr(col(name), _INSTANT)
    return _with_column(relation, col(name).dt.replace_time_zone(None), pa.timestamp("ms"), node.span)


def _now(context: Context, relation: Relation, span: Span) -> tuple[Relation, TypedExpr]:
    """Returns the column of the time, which the rows of a SELECT have once, however many functions use it."""
    found = relation.calls.get("now")
    if found is None:
        time = context.now

        def now(rows: int) -> pa.Array:
            return pa.repeat(pa.scalar(int(time() * 1000), _INSTANT), rows)

        relation, found = _added(relation, _Added("now", _INSTANT, now), span)
        relation = replace(relation, calls={**relation.calls, "now": found})
    return relation, found


def _with_column(relation: Relation, expr: Expr, type: pa.DataType, span: Span) -> tuple[Relation, TypedExpr]:
    name = names_of(relation).free("moment")
    with at(span):
        return replace(relation, stream=relation.stream.with_columns(**{name: expr})), TypedExpr(col(name), type)


def _added(relation: Relation, added: _Added, place: Call | Span) -> tuple[Relation, TypedExpr]:
    span = place.span if isinstance(place, Call) else place
    if relation.stream.changes:
        what = "the clock" if added.name == "now" else "chance"
        raise SqlFault(
            span,
            f"{what} has no value for rows that are updated: they are taken back with the values that they had",
            "call it in a query before the GROUP BY, or in one that reads the table into which this one is written",
        )
    column = names_of(relation).free(added.name)
    schema = relation.stream.schema.append(pa.field(column, added.type))

    def call(batch: pa.RecordBatch) -> pa.RecordBatch:
        values = added.values(batch.num_rows, *(batch.column(name) for name in added.given))
        return pa.RecordBatch.from_arrays([*batch.columns, values], schema=schema)

    call.__name__ = call.__qualname__ = added.name
    with at(span):
        stream = relation.stream.map_batches(call, schema=schema)
    return replace(relation, stream=stream), TypedExpr(col(column), added.type)


def _doubles(rows: int) -> pa.Array:
    return pa.array(np.random.default_rng().random(rows))


def _integers(rows: int, bounds: pa.Array) -> pa.Array:
    """Returns whole numbers from 0 on that are less than the bounds; NULL for a bound that is NULL or less than 1."""
    bound = bounds.fill_null(0).to_numpy()
    drawn = np.random.default_rng().integers(0, np.maximum(bound, 1), dtype=np.int32)
    return pa.array(drawn, mask=bound < 1)


def _uuids(rows: int) -> pa.Array:
    """Returns random UUIDs (version 4) as texts."""
    drawn = np.frombuffer(os.urandom(16 * rows), np.uint8).reshape(rows, 16).copy()
    drawn[:, 6] = drawn[:, 6] & 0x0F | 0x40
    drawn[:, 8] = drawn[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(drawn.tobytes().hex().encode(), np.uint8).reshape(rows, 32)
    texts = np.full((rows, 36), ord("-"), np.uint8)
    begin = 0
    for i, size in enumerate((8, 4, 4, 4, 12)):
        texts[:, begin + i : begin + i + size] = digits[:, begin : begin + size]
        begin += size
    bounds = np.arange(rows + 1, dtype=np.int32) * 36
    return pa.StringArray.from_buffers(rows, pa.py_buffer(bounds.tobytes()), pa.py_buffer(texts.tobytes()))


_OF_THE_CLOCK = ("NOW", "CURRENT_TIMESTAMP", "CURRENT_ROW_TIMESTAMP", "PROCTIME", "UNIX_TIMESTAMP", *_DATES)
