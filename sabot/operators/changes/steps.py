"""Steps over changes: what cancels out in a batch, the last row of each key, the log of changes.

append stream ──Upsert──▶ changes ──Changelog──▶ append stream (the op is a column)
                             └────Materialize──▶ append stream (the rows that are there when the input ends)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import changes as nodes
from sabot.api.nodes.changes import OP
from sabot.codecs.json import schema_of_text, schema_text
from sabot.errors import UserError
from sabot.operators.aggregates.arguments import with_arguments
from sabot.operators.base import (
    OP_COLUMN,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    without_marks,
)
from sabot.operators.changes.groups import GroupAggregate, TableOperator
from sabot.operators.changes.latest import LatestRows
from sabot.operators.changes.removable import LastOfChanges
from sabot.operators.changes.state import Groups
from sabot.operators.changes.weaving import same_rows, signs
from sabot.operators.layout.plan_points import Planners, PlanPoint
from sabot.operators.readers import StateReaders, aggregates_of
from sabot.operators.rows.marked import AsInserts
from sabot.operators.state_parts import SavesWatermark, StateParts, columns_schema, fewer_columns

Array: TypeAlias = pa.Array

_WORDS = pa.array(["insert", "update_before", "update_after", "delete"])


def net(batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """A batch of changes -> (rows to take away, rows to add), in order of arrival, without OP_COLUMN but with TIME_COLUMN.

    Opposite changes of equal rows cancel out, so that of equal rows only takes or only adds are left: the last adds, or the first takes.
    Rows are equal if all of the user's columns are, whatever their event time; null equals null, NaN equals NaN, -0.0 equals 0.0. The
    caller takes away first, then adds: so it never takes away a row that the same batch brings.

    A batch of adds alone, or of takes alone, costs only a look at its ops, and is not copied unless it has a selection. A batch without
    OP_COLUMN is all adds.
    """
    data = batch.taken()
    place = data.schema.get_field_index(OP_COLUMN)
    if place < 0:
        return data.slice(0, 0), data
    takes = signs(data.column(place))
    data = pa.RecordBatch.from_arrays(
        [column for i, column in enumerate(data.columns) if i != place], schema=data.schema.remove(place)
    )
    if not takes.any():
        return data.slice(0, 0), data
    if takes.all():
        return data, data.slice(0, 0)
    left = _left(same_rows(data), takes)
    return data.take(pa.array(np.flatnonzero(left & takes))), data.take(pa.array(np.flatnonzero(left & ~takes)))


def _left(rows: Any, takes: Any) -> Any:
    """Which rows do not cancel out (numpy bool). rows: a number for each row, the same for equal rows."""
    count = int(rows.max()) + 1
    taken = np.bincount(rows[takes], minlength=count)
    added = np.bincount(rows[~takes], minlength=count)
    left = np.ones(len(rows), bool)
    both = np.minimum(taken, added)
    mixed = np.flatnonzero(both[rows])
    if not len(mixed):
        return left
    numbers, of_take = rows[mixed], takes[mixed]
    order = np.lexsort((of_take, numbers))  # by number: first the adds, then the takes, each in order of arrival
    numbers, of_take = numbers[order], of_take[order]
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    place = np.arange(len(numbers)) - np.repeat(begins, np.diff(np.append(begins, len(numbers))))
    # the first adds and the last takes cancel out
    gone = np.where(of_take, place >= added[numbers] + taken[numbers] - both[numbers], place < both[numbers])
    left[mixed[order[gone]]] = False
    return left


class Upsert(TableOperator):
    """The last row of each key to arrive, as changes with the unique key `keys`; columns as in the input.

    The first row of a key is an insert, and each further one an update pair, unless it is equal to the row before. Only the last row of a
    key in a batch counts. A row has its own event time; the change that takes it away has the same.

    deletes: a row with the op DELETE takes the row of its key away; only its key columns count. changes: rows may be taken away. The
    row of a key is then the last to arrive of those that are still there; of equal rows the oldest is taken away. All rows are kept,
    and the event time of the key's row is the latest of the key so far.
    """

    def __init__(self, keys: Sequence[str], *, changes: bool, deletes: bool = False) -> None:
        super().__init__(keys)
        if not keys:
            raise UserError("upsert needs a key", hint='upsert("id")')
        self._changes, self._deletes = changes, deletes
        self.needs_table = changes and not deletes
        self._untimed = False  # whether it goes on with rows that were kept without their event time
        self._last_only = deletes or not changes  # whether the last row of each key is kept, not all of them

    def _make(self, context: OperatorContext) -> Groups:
        kind = LatestRows if self._last_only else LastOfChanges
        return kind(self.key_names, self.rows, context)

    def _order(self) -> list[str]:
        return list(without_marks(self.rows).names)

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._untimed = TIME_COLUMN in self.rows.names and any(map(_lacks_times, saved))

    def own_facts(self) -> dict[str, Any]:
        return {"untimed": True} if self._untimed else {}

    def state_schema(self) -> dict[str, Any]:
        columns = {
            "columns": columns_schema(without_marks(self.rows)),
            "changes": not self._last_only,
        }
        return {"kind": "upsert", "keys": columns_schema(self.keys), **columns}

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        return "which row of a key came last is not known"

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """The last rows may lose columns: `RowStore` reads those that it keeps. Where all rows of a key are kept they are packed bytes."""
        return fewer_columns(before, now) if fact == "columns" and self._last_only else None

    def state_reader(self) -> dict[str, Any]:
        given = {"changes": self._changes, "deletes": self._deletes}
        return {"keys": self.key_names, "input": schema_text(self.rows), **given}


def _lacks_times(part: Saved) -> bool:
    if not part.facts.get("groups"):
        return False
    input = schema_of_text(part.facts["reader"]["input"])
    return bool(part.facts.get("untimed")) or (input is not None and TIME_COLUMN not in input.names)


class Changelog(SavesWatermark):
    """Changes as rows: the column `op` (insert, update_before, update_after, delete), then the columns of the input.

    A change may have the event time of the row that it takes back, which may be below the watermark. As a row of a log it would be late,
    so it gets the watermark as its time.
    """

    def open(self, context: OperatorContext) -> pa.Schema:
        place = context.input.get_field_index(OP_COLUMN)
        if place < 0:
            raise UserError("changelog of rows that are no changes", hint="they are all inserts: leave it out")
        if OP in context.input.names:
            raise UserError(
                f"changelog: there is a column {OP!r} already", hint=f'.rename({OP}="…") before .changelog()'
            )
        self._schema = context.input.remove(place).insert(0, pa.field(OP, pa.string()))
        self.state_parts = StateParts(context)
        return self._schema

    def process(self, batch: Batch) -> None:
        data = batch.data
        place = data.schema.get_field_index(OP_COLUMN)
        words = _WORDS.take(data.column(place))
        columns = [words, *(column for i, column in enumerate(data.columns) if i != place)]
        if self._schema.names[-1] == TIME_COLUMN:
            columns[-1] = pa.array(np.maximum(columns[-1].to_numpy(), self._watermark))
        logged = batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.emit(logged if batch.selection is None else logged.with_selection(batch.selection, batch.hashes))

    def advance(self, watermark_ms: int) -> None:
        self._watermark = watermark_ms

    def state_schema(self) -> dict[str, Any]:
        return {"kind": "changelog"}


# -- where they stand in a plan -----------------------------------------------------------------------------------------


def plan_group_aggregate(node: nodes.GroupAggregate, point: PlanPoint) -> PlanPoint:
    point, parted_by = point.partition_by_some(node.keys, "grouped")
    point, aggregates = with_arguments(point, node.aggregates)
    make = partial(GroupAggregate, node.keys, aggregates, changes=point.changes, parted_by=parted_by)
    return point.step(node.text(), make, id=node.id)


def plan_upsert(node: nodes.Upsert, point: PlanPoint) -> PlanPoint:
    if point.changes and point.unique is not None and set(point.unique) == set(node.keys):
        return point  # the changes have this key already
    point = point.partition_by(node.keys, "keyed")
    make = partial(Upsert, node.keys, changes=point.changes, deletes=node.deletes)
    return point.step(node.text(), make, id=node.id)


def plan_versions(node: nodes.Versions, point: PlanPoint) -> PlanPoint:
    return point if node.deletes else point.step("as versions", AsInserts, changes=True)


def plan_changelog(node: nodes.Changelog, point: PlanPoint) -> PlanPoint:
    return point.step(node.text(), Changelog)


PLANNERS: Planners = {
    nodes.GroupAggregate: plan_group_aggregate,
    nodes.Upsert: plan_upsert,
    nodes.Versions: plan_versions,
    nodes.Changelog: plan_changelog,
}


STATE_READERS: StateReaders = {
    "groups": lambda reader: GroupAggregate(reader["keys"], aggregates_of(reader), changes=reader["changes"]),
    "upsert": lambda reader: Upsert(reader["keys"], changes=reader["changes"], deletes=reader["deletes"]),
    "changelog": "the event time that its rows have reached",
}
