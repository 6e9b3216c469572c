"""Steps over changes: `net`, the last row of each key (Upsert), changes as rows of a log (Changelog).

append stream ──Upsert──▶ changes ──Changelog──▶ append stream (the op is a column)
                             └────Materialize──▶ append stream (the rows of the table when the input ends)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.api.nodes import changes as nodes
from sabot.api.nodes.changes import OP
from sabot.api.nodes.read import Read
from sabot.codecs.json import schema_of_text, schema_text
from sabot.engine.operators.aggregates.arguments import with_arguments
from sabot.engine.operators.base import (
    OP_COLUMN,
    TIME_COLUMN,
    OperatorContext,
    Saved,
    without_marks,
)
from sabot.engine.operators.changes.expiring import ExpiringGroups
from sabot.engine.operators.changes.groups import GroupAggregate, TableOperator
from sabot.engine.operators.changes.latest import LatestRows
from sabot.engine.operators.changes.removable import LastOfChanges
from sabot.engine.operators.changes.state import Groups
from sabot.engine.operators.changes.weaving import same_rows, signs
from sabot.engine.operators.keyed.ordered import in_order
from sabot.engine.operators.layout.plan_points import Planners, PlanPoint
from sabot.engine.operators.readers import StateReaders, aggregates_of
from sabot.engine.operators.rows.marked import AsInserts
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import SavesWatermark, StateParts, columns_schema, fewer_columns
from sabot.errors import UserError

Array: TypeAlias = pa.Array

_WORDS = pa.array(["insert", "update_before", "update_after", "delete"])


def net(batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Returns the changes of a batch as (rows to remove, rows to add), in order of arrival, with TIME_COLUMN and
    without OP_COLUMN.

    Opposite changes of equal rows cancel out. So equal rows are only removed or only added; those left are the first
    to be removed, or the last to be added. Rows are equal if all of the user's columns are, whatever their event
    times; null equals null, NaN equals NaN, -0.0 equals 0.0. The caller removes first and adds then, so it never
    removes a row that the same batch adds.

        changes of the batch            to remove   to add
        insert a, insert b, delete a    –           b

    A batch without OP_COLUMN only adds. If a batch only adds or only removes, just its ops are read, and rows are
    copied only if it has a selection.
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
    left = _uncancelled(same_rows(data), takes)
    return data.take(pa.array(np.flatnonzero(left & takes))), data.take(pa.array(np.flatnonzero(left & ~takes)))


def _uncancelled(rows: Any, takes: Any) -> Any:
    """Returns True for each change that is left after opposite changes of equal rows have cancelled out (numpy bool).

    `rows`: a number for each row, the same for equal rows. `takes`: True for each row to be removed.
    """
    count = int(rows.max()) + 1
    taken = np.bincount(rows[takes], minlength=count)
    added = np.bincount(rows[~takes], minlength=count)
    left = np.ones(len(rows), bool)
    both = np.minimum(taken, added)
    mixed = np.flatnonzero(both[rows])
    if not len(mixed):
        return left
    numbers, of_take = rows[mixed], takes[mixed]
    # by number; among equal rows the adds, then the removals, each in order of arrival
    order = np.lexsort((of_take, numbers))
    numbers, of_take = numbers[order], of_take[order]
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    place = np.arange(len(numbers)) - np.repeat(begins, np.diff(np.append(begins, len(numbers))))
    # the first adds and the last removals cancel out
    gone = np.where(of_take, place >= added[numbers] + taken[numbers] - both[numbers], place < both[numbers])
    left[mixed[order[gone]]] = False
    return left


class Upsert(TableOperator):
    """The last row of each key to arrive, as changes with the unique key `keys` and the columns of the input.

    The first row of a key is an insert. Each further row is an update pair, or nothing if it equals the row before.
    If a batch has several rows of a key, only the last one is used. A row keeps its event time, and the change that
    removes it has the same event time.

    `deletes`: True if a row with the op DELETE removes the row of its key; only its key columns are read. `changes`:
    True if the input may remove rows. All rows are then kept. The row of a key is the last to arrive among its rows
    that were not removed; its event time is the latest that the key has had. If equal rows are kept and one is
    removed, the oldest is.

    Raises UserError without keys.
    """

    def __init__(self, keys: Sequence[str], *, changes: bool, deletes: bool = False) -> None:
        super().__init__(keys)
        if not keys:
            raise UserError("upsert needs a key", hint='upsert("id")')
        self._changes, self._deletes = changes, deletes
        self.needs_table = changes and not deletes
        self._untimed = False  # True after a restore of rows that were saved without event times
        self._last_only = deletes or not changes  # True if only the last row of each key is kept, False if all rows are

    def _make_groups(self, context: OperatorContext) -> Groups:
        kind = LatestRows if self._last_only else LastOfChanges
        return kind(self.key_names, self.rows, context)

    def _order(self) -> list[str]:
        return list(without_marks(self.rows).names)

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._untimed = TIME_COLUMN in self.rows.names and any(map(_lacks_times, saved))

    def own_facts(self) -> OwnFacts:
        return {"untimed": True} if self._untimed else {}

    def state_schema(self) -> StateSchema:
        return {
            "kind": "upsert",
            "keys": columns_schema(self.keys),
            "columns": columns_schema(without_marks(self.rows)),
            "changes": not self._last_only,
        }

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        return "a table does not say which row of a key came last"

    def taken_over(self, fact: str, before: Any, now: Any, groups: int) -> str | None:
        """Lets the state continue if the program has fewer columns, but only if the last row of each key is kept:
        `RowStore` reads the remaining columns. If all rows of a key are kept, they are packed bytes, and the columns
        cannot change.
        """
        return fewer_columns(before, now) if fact == "columns" and self._last_only else None

    def state_reader(self) -> StateReader:
        return {
            "keys": self.key_names,
            "input": schema_text(self.rows),
            "changes": self._changes,
            "deletes": self._deletes,
        }


def _lacks_times(part: Saved) -> bool:
    if not part.facts.get("groups"):
        return False
    input = schema_of_text(part.facts["reader"]["input"])
    return bool(part.facts.get("untimed")) or (input is not None and TIME_COLUMN not in input.names)


class Changelog(SavesWatermark):
    """Changes as rows of an append stream: the column `op` (insert, update_before, update_after, delete), then the
    columns of the input.

    A change may have the event time of the row that it removes, which may be below the watermark. Such a row of the
    log would be late, so its event time is raised to the watermark.
    """

    def open(self, context: OperatorContext) -> pa.Schema:
        place = context.input.get_field_index(OP_COLUMN)
        if place < 0:
            raise UserError("changelog() needs changes, and this stream only has inserts", hint="leave changelog() out")
        if OP in context.input.names:
            raise UserError(
                f"changelog() adds a column {OP!r}, and the input has one already",
                hint=f'.rename({OP}="…") before .changelog()',
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

    def state_schema(self) -> StateSchema:
        return {"kind": "changelog"}


# -- their place in a plan ----------------------------------------------------------------------------------------------


def plan_group_aggregate(node: nodes.GroupAggregate, point: PlanPoint) -> PlanPoint:
    if node.ttl_ms is not None:
        point = in_order(point.partition_by(node.keys, "grouped"), node.keys, node.id)
        point, aggregates = with_arguments(point, node.aggregates, node.keys)
        return point.step(node.text(), partial(ExpiringGroups, node.keys, aggregates, node.ttl_ms), id=node.id)
    point, parted_by = point.partition_by_some(node.keys, "grouped")
    point, aggregates = with_arguments(point, node.aggregates, node.keys)
    make = partial(GroupAggregate, node.keys, aggregates, changes=point.changes, parted_by=parted_by)
    return point.step(node.text(), make, id=node.id)


def plan_upsert(node: nodes.Upsert, point: PlanPoint) -> PlanPoint:
    if point.changes and point.unique is not None and set(point.unique) == set(node.keys):
        return point  # the changes have this unique key already
    point = point.partition_by(node.keys, "keyed")
    if not node.kept:
        return point.step(node.text(), AsInserts, changes=True)
    make = partial(Upsert, node.keys, changes=point.changes, deletes=node.deletes)
    made = point.step(node.text(), make, id=node.id)
    if isinstance(node.input, Read) and made.last is not None:
        made.last.table = node.input.name if node.input.table is not None else ""
    return made


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
