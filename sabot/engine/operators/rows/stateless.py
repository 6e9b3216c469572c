"""Steps without state: the result of a row depends on that row only.

Columns are picked, dropped and renamed without copying rows. When a value is computed and few rows are selected, the
selected rows are copied first. Otherwise the value is computed for all rows, and the batch keeps its selection.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch
from sabot._cython.arrow.selection import select_rows
from sabot.api.arguments import RowPolicy
from sabot.api.expr import Expr, col, lit
from sabot.api.nodes import rows as nodes
from sabot.api.words import select_text, with_text
from sabot.engine.operators.base import (
    DELETE,
    OP_COLUMN,
    Operator,
    OperatorContext,
    without_marks,
)
from sabot.engine.operators.expressions.compiled import Compiled, compile_expr, compile_predicate
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.layout.stages import Edge
from sabot.engine.operators.rows.bad import BadRows, values_or_nulls
from sabot.engine.operators.rows.marked import MARKS, AsInserts, check_given_names, pairs_split
from sabot.engine.operators.rows.origin import of_selected, reselected, with_columns_of
from sabot.errors import DataError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_FEW = 4  # if fewer than one row in 4 is selected, copying the selected rows is faster than computing all

Named = Sequence[tuple[str, Expr]]


class Filter(Operator):
    """Passes the rows for which the predicate is true. No row is copied: the batch gets a selection. If no row
    passes, nothing is emitted.

    If only some rows of a batch of changes pass, each update pair becomes a delete and an insert, since one of its
    two rows may pass without the other.
    """

    def __init__(self, predicate: Expr, on_error: RowPolicy = "fail") -> None:
        self.predicate = predicate
        self.on_error = on_error
        self.rows_in = self.rows_out = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        bad = BadRows(self.step.text or "filter", self.on_error, context, self.step)
        self._rows = _RowExpressions({"": self.predicate}, context.input, bad, compile_predicate)
        self._changes = OP_COLUMN in context.input.names
        return context.input

    def process(self, batch: Batch) -> None:
        self.rows_in += batch.num_rows
        batch, alone, (mask,) = self._rows(batch)
        selection = batch.selection
        kept = select_rows(mask, None if alone else selection)
        self.rows_out += len(kept)
        if len(kept) == 0:
            return
        if len(kept) == batch.num_rows:
            self.emit(batch)
            return
        if alone and selection is not None:
            kept = selection.take(kept)
        hashes = batch.hashes
        if self._changes:
            batch = pairs_split(batch)
        self.emit(reselected(batch, kept, hashes))

    def close(self) -> None:
        if hasattr(self, "_rows"):
            self._rows.close()

    def statistics(self) -> "ToldStep":
        return {"rows_in": self.rows_in, "rows_out": self.rows_out, **self._rows.statistics()}


class Select(Operator):
    """Emits the columns (name, expression), in this order."""

    def __init__(self, columns: Named, on_error: RowPolicy = "fail") -> None:
        self.columns = tuple(columns)
        self.on_error = on_error

    def open(self, context: OperatorContext) -> pa.Schema:
        check_given_names("select", [name for name, _ in self.columns])
        bad = BadRows(self.step.text or "select", self.on_error, context, self.step)
        self._outputs = _OutputColumns(context.input, dict(self.columns), bad)
        return self._outputs.schema

    def process(self, batch: Batch) -> None:
        made = self._outputs(batch)
        if made is not None:
            self.emit(made)

    def close(self) -> None:
        if hasattr(self, "_outputs"):
            self._outputs.close()

    def statistics(self) -> "ToldStep":
        return self._outputs.statistics()


class WithColumns(Operator):
    """Adds the columns (name, expression). A column replaces the column that has its name; otherwise it is appended."""

    def __init__(self, columns: Named, on_error: RowPolicy = "fail") -> None:
        self.columns = tuple(columns)
        self.on_error = on_error

    def open(self, context: OperatorContext) -> pa.Schema:
        check_given_names("with_columns", [name for name, _ in self.columns])
        bad = BadRows(self.step.text or "with_columns", self.on_error, context, self.step)
        outputs = {name: col(name) for name in without_marks(context.input).names}
        replaced = any(name in outputs for name, _ in self.columns)
        outputs.update(self.columns)
        self._outputs = _OutputColumns(context.input, outputs, bad, keep_hashes=not replaced)
        return self._outputs.schema

    def process(self, batch: Batch) -> None:
        made = self._outputs(batch)
        if made is not None:
            self.emit(made)

    def close(self) -> None:
        if hasattr(self, "_outputs"):
            self._outputs.close()

    def statistics(self) -> "ToldStep":
        return self._outputs.statistics()


class Drop(Operator):
    """Drops these columns. `unread`: True if the planner has checked the names already, and some of the columns are
    missing since no step reads them.
    """

    def __init__(self, names: Sequence[str], *, unread: bool = False) -> None:
        self.names = tuple(names)
        self._unread = unread

    def open(self, context: OperatorContext) -> pa.Schema:
        if not self._unread:
            _check_columns("drop", self.names, context.input)
        names = context.input.names
        self._kept = [i for i, name in enumerate(names) if name not in self.names]
        if all(names[i] in MARKS for i in self._kept):
            if not self._unread:
                raise nodes.all_dropped(self.names)
            # No later step reads a column of these rows, and a batch without columns would have no rows.
            self._kept.append(next(i for i, name in enumerate(names) if name not in MARKS))
        return pa.schema([context.input.field(i) for i in self._kept])

    def process(self, batch: Batch) -> None:
        self.emit(with_columns_of(batch, batch.data.select(self._kept)))


class EndVersions(Operator):
    """A filter for the changes of a table whose rows have versions: an INSERT begins the next version of its key, a
    DELETE ends it. No row is dropped: a row for which the predicate is false or null, or fails, is emitted as a
    DELETE, so that the earlier version of its key ends.
    """

    def __init__(self, predicate: Expr, on_error: RowPolicy = "fail") -> None:
        self.predicate = predicate
        self.on_error = on_error

    def open(self, context: OperatorContext) -> pa.Schema:
        bad = BadRows(self.step.text or "filter", self.on_error, context, self.step)
        self._rows = _RowExpressions({"": self.predicate}, context.input, bad, compile_predicate, keep=True)
        self._op = context.input.get_field_index(OP_COLUMN)
        return context.input

    def process(self, batch: Batch) -> None:
        batch, _, (mask,) = self._rows(of_selected(batch, batch.taken()))
        ops = pc.if_else(
            pc.fill_null(mask, pa.scalar(False)), batch.data.column(self._op), pa.scalar(DELETE, pa.int8())
        )
        self.emit(of_selected(batch, batch.data.set_column(self._op, batch.data.schema.field(self._op), ops)))

    def close(self) -> None:
        if hasattr(self, "_rows"):
            self._rows.close()

    def statistics(self) -> "ToldStep":
        return self._rows.statistics()


class Rename(Operator):
    """Renames columns. `names`: {old: new}. `unread`: as in Drop."""

    def __init__(self, names: Mapping[str, str], *, unread: bool = False) -> None:
        self.names = dict(names)
        self._unread = unread

    def open(self, context: OperatorContext) -> pa.Schema:
        if not self._unread:
            _check_columns("rename", self.names, context.input)
        names = [self.names.get(name, name) for name in context.input.names]
        check_given_names("rename", [name for name in names if name not in MARKS], among=names)
        self._schema = pa.schema([field.with_name(name) for field, name in zip(context.input, names, strict=True)])
        return self._schema

    def process(self, batch: Batch) -> None:
        self.emit(with_columns_of(batch, pa.RecordBatch.from_arrays(batch.data.columns, schema=self._schema)))


# -- common parts ---------------------------------------------------------------------------------------------------------


class _RowExpressions:
    """Computes expressions over the selected rows of a batch. They are computed over all rows if they cannot fail and
    enough rows are selected, else over a copy of the selected rows. Rows for which an expression fails are set apart,
    or get null as its value, as the policy says.
    """

    def __init__(
        self,
        columns: Mapping[str, Expr],
        schema: pa.Schema,
        bad: BadRows,
        make: Callable[[Expr, pa.Schema], Compiled] = compile_expr,
        *,
        keep: bool = False,
    ) -> None:
        """`columns`: the expressions, by the name of their column. `make`: compiles an expression. `keep`: True if
        rows that are set apart stay in the batch, with nulls.
        """
        exprs = list(columns.values())
        self._columns, self._bad, self._keep = list(columns), bad, keep
        self._changes = OP_COLUMN in schema.names
        self.types = [make(each, schema).type for each in exprs]  # over all columns, so that an error lists them
        used = frozenset().union(*(each.columns for each in exprs))
        used = used or frozenset([schema.names[0]])  # a batch without columns would have no rows
        self._names = [name for name in schema.names if name in used]
        narrow = pa.schema([schema.field(name) for name in self._names])
        self._exprs = [make(each, narrow) for each in exprs]
        self._can_fail = any(each.can_fail for each in self._exprs)

    def __call__(self, batch: Batch) -> tuple[Batch, bool, list[pa.Array]]:
        """Returns (batch, alone, values): the batch without rows that were set apart; True if the values are those of
        the selected rows only, False if of all rows; and the values, a column for each expression.
        """
        data, selection = batch.data.select(self._names), batch.selection
        alone = selection is not None and (self._can_fail or _FEW * len(selection) < data.num_rows)
        try:
            return batch, alone, self._values(data.take(selection) if alone else data)
        except DataError:
            pass  # some rows fail; they may be rows that are not selected
        return self._salvaged(batch, data if selection is None else data.take(selection))

    def _values(self, data: pa.RecordBatch) -> list[pa.Array]:
        return [each(data) for each in self._exprs]

    def _salvaged(self, batch: Batch, data: pa.RecordBatch) -> tuple[Batch, bool, list[pa.Array]]:
        """Computes the values when an expression has failed for some rows, and sets these rows apart. Returns as
        `__call__`.

        `data`: the columns of the selected rows. Raises DataError if the policy is to fail.
        """
        bad: dict[int, DataError] = {}
        pairs = zip(self._columns, self._exprs, strict=True)
        values = [values_or_nulls(name, each, data, bad) for name, each in pairs]
        errors = dict(sorted(bad.items()))
        if errors and self._bad.fails:
            row, error = next(iter(errors.items()))
            hint = error.hint or 'with on_error="dead_letter" such rows become dead letters'
            raise DataError(f"{self._bad.step}: {self._bad.message(batch, row, error)}", hint=hint) from error
        self._bad.set_apart(batch, errors)
        if not errors or self._bad.nulls or self._keep:
            return batch, True, values
        good = np.ones(data.num_rows, np.bool_)
        good[list(errors)] = False
        left = pa.array(np.flatnonzero(good).astype(np.int32))
        if self._changes:
            batch = pairs_split(batch)  # one row of an update may be set apart without the other
        kept = left if batch.selection is None else batch.selection.take(left)
        return reselected(batch, kept, batch.hashes), True, [each.take(left) for each in values]

    def close(self) -> None:
        self._bad.close()

    def statistics(self) -> "ToldStep":
        return self._bad.statistics()


class _OutputColumns:
    """The output columns of a step, (name, expression) each. The marks of the input are appended."""

    def __init__(
        self, input: pa.Schema, columns: Mapping[str, Expr], bad: BadRows, *, keep_hashes: bool = True
    ) -> None:
        columns = {**columns, **{name: col(name) for name in MARKS if name in input.names}}
        self._keep_hashes = keep_hashes
        made = {name: expr for name, expr in columns.items() if expr.column is None}
        self._rows = _RowExpressions(made, input, bad) if made else None
        types = dict(zip(made, self._rows.types if self._rows else [], strict=True))
        self._plan: list[int | None] = []  # the index of a picked column, or None for the next computed one
        fields = []
        for name, expr in columns.items():
            picked = expr.column
            if picked is None:
                self._plan.append(None)
                fields.append(pa.field(name, types[name]))
                continue
            compile_expr(expr, input)  # raises unless there is exactly one such column
            self._plan.append(input.get_field_index(picked))
            fields.append(input.field(picked).with_name(name))
        self.schema = pa.schema(fields)

    def __call__(self, batch: Batch) -> Batch | None:
        """Returns the rows with the new columns, or None if no row is left."""
        data = batch.data
        if self._rows is None:
            columns = [data.column(place) for place in self._plan if place is not None]
            return with_columns_of(batch, pa.RecordBatch.from_arrays(columns, schema=self.schema))
        had_rows = batch.num_rows > 0
        batch, alone, values = self._rows(batch)
        if had_rows and not batch.num_rows:
            return None
        data, computed = batch.data, iter(values)
        columns = [
            next(computed)
            if place is None
            else data.column(place).take(batch.selection)
            if alone and batch.selection is not None
            else data.column(place)
            for place in self._plan
        ]
        made = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        if alone:
            return of_selected(batch, made)
        made_of = with_columns_of(batch, made)
        return made_of if self._keep_hashes or batch.hashes is None else reselected(made_of, batch.selection, None)

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()

    def statistics(self) -> "ToldStep":
        return {} if self._rows is None else self._rows.statistics()


def _check_columns(what: str, names: Iterable[str], schema: pa.Schema) -> None:
    for name in names:
        if name in MARKS:
            raise UserError(f"{what}: {name!r} is a column that Sabot uses itself")
        try:
            compile_expr(col(name), schema)
        except UserError as error:
            raise UserError(f"{what}: {error.message}", hint=error.hint) from None


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_filter(node: nodes.Filter, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), partial(Filter, node.predicate, point.policy()))


def plan_end_versions(node: nodes.EndVersions, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), partial(EndVersions, node.predicate, point.policy()))


def plan_select(node: nodes.Select, point: PlanPoint) -> PlanPoint:
    return only_columns(point, nodes.only_wanted(node.columns, point.layout.used[id(node)]))


def only_columns(point: PlanPoint, columns: Named) -> PlanPoint:
    """Returns the plan point behind a step that emits these columns and no others."""
    kept = {name for name, expr in columns if expr.column == name}
    keys = point.keys if point.keys is not None and set(point.keys) <= kept else None
    policy = _policy(point, columns)
    columns = columns or (("_", lit(True)),)  # a batch without columns would have no rows
    return point.step(select_text(columns), partial(Select, columns, policy), keys=keys)


def plan_with_columns(node: nodes.WithColumns, point: PlanPoint) -> PlanPoint:
    columns = nodes.only_wanted(node.columns, point.layout.used[id(node)])
    return add_columns(point, columns) if columns else point


def add_columns(point: PlanPoint, columns: Named) -> PlanPoint:
    """Returns the plan point behind a step that adds these columns."""
    made = {name for name, _ in columns}
    keys = point.keys if point.keys is not None and not made & set(point.keys) else None
    return point.step(with_text(columns), partial(WithColumns, columns, _policy(point, columns)), keys=keys)


def _policy(point: PlanPoint, columns: Named) -> RowPolicy:
    """Returns the policy for rows for which the step fails. For a step that only picks columns it is "fail": it
    cannot fail, and needs no dead letters.
    """
    return point.policy() if any(expr.column is None for _, expr in columns) else "fail"


def plan_drop(node: nodes.Drop, point: PlanPoint) -> PlanPoint:
    keys = None if point.keys is not None and set(point.keys) & set(node.names) else point.keys
    checked = node.input.column_names is not None
    return point.step(node.text(), partial(Drop, node.names, unread=checked), keys=keys)


def plan_rename(node: nodes.Rename, point: PlanPoint) -> PlanPoint:
    renamed, checked = dict(node.names), node.input.column_names is not None
    taken = set(renamed.values()) - renamed.keys()  # names that mean another column from here on
    keys = point.keys
    if keys is not None:
        keys = None if taken & set(keys) else tuple(renamed.get(key, key) for key in keys)
    return point.step(node.text(), partial(Rename, renamed, unread=checked), keys=keys)


def plan_union(node: nodes.Union, *points: PlanPoint) -> PlanPoint:
    layout, timed = points[0].layout, all(point.timed for point in points)
    if any(point.changes for point in points):
        points = tuple(
            point if point.changes else point.step("as inserts", AsInserts, changes=True) for point in points
        )
    used = layout.used[id(node)]
    if used is not None:  # each stream may have been read with more columns
        names = [name for name in node.streams[0].column_names or sorted(used) if name in used]
        points = tuple(only_columns(point, tuple((name, col(name)) for name in names)) for point in points)
    if not timed:
        points = tuple(point.without_time() for point in points)
    stage = layout.stage("union", 1)
    for point in points:
        point.targets.append(Edge(stage, changes=point.changes))
    first = points[0]
    return PlanPoint(layout, stage, stage.targets, timed=timed, on_error=first.on_error, dead_letter=first.dead_letter)


def plan_on_error(node: nodes.OnError, point: PlanPoint) -> PlanPoint:
    return replace(point, on_error=node.policy)


def plan_broadcast(node: nodes.Broadcast, point: PlanPoint) -> PlanPoint:
    return point


PLANNERS: Planners = {
    nodes.Filter: plan_filter,
    nodes.EndVersions: plan_end_versions,
    nodes.Select: plan_select,
    nodes.WithColumns: plan_with_columns,
    nodes.Drop: plan_drop,
    nodes.Rename: plan_rename,
    nodes.Union: plan_union,
    nodes.Broadcast: plan_broadcast,
    nodes.OnError: plan_on_error,
}
