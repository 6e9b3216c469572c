"""Aggregates without windows: the result is a table with one row for each key, emitted as changes.

    rows ──▶ slots of their keys ──▶ results before │ add rows, remove rows │ results after ──▶ changes where they differ

A batch emits at most one change (an insert, a delete or an update pair) for each of its keys. If the input only adds
rows, a group has the state of an `Aggregator` (`added`). If the input also removes rows (`removable`), counts and
sums of integers are in the store's tables. Everything else is kept outside the tables, by slot, and is exact: sums
without rounding, sorted multisets of values, rows in order (`_cython.groups.multiset`).
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.rows.changes import Touches
from sabot.base.disk import make_folder
from sabot.engine.operators.aggregates.aggregator import AggregateColumn, aggregates_reader, aggregates_schema
from sabot.engine.operators.aggregates.migration import ROWS_OF_A_KEY, StateLayout, migration_of
from sabot.engine.operators.base import (
    INSERT,
    OP_COLUMN,
    TIME_COLUMN,
    FilledFromTable,
    GivesTable,
    OperatorContext,
    Saved,
    with_marks,
)
from sabot.engine.operators.changes.added import AddedGroups
from sabot.engine.operators.changes.removable import RemovableGroups
from sabot.engine.operators.changes.state import Groups, StoredGroups
from sabot.engine.operators.changes.weaving import Weave, differ
from sabot.engine.operators.columns import key_columns, result_schema
from sabot.engine.operators.readers import described
from sabot.engine.operators.rows.origin import reselected
from sabot.engine.operators.state_facts import StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts, columns_schema
from sabot.engine.state.files import remove_tree

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_BY_ARRIVAL = ("first", "last", "collect_list", "user")  # these follow the order of arrival if rows have no event time


class TableOperator(StatefulOperator, GivesTable, FilledFromTable):
    """The base of aggregates and upserts: keeps one current row for each key, and emits its changes. The unique key
    of the changes is `keys`.
    """

    _groups: "Groups | None" = None

    def __init__(self, keys: Sequence[str]) -> None:
        self.key_names = list(keys)

    @abstractmethod
    def _make_groups(self, context: OperatorContext) -> "Groups":
        """Returns the empty state of the groups. `self.rows` is set by then: the columns of the input without
        OP_COLUMN.
        """

    def _order(self) -> list[str]:
        """Returns the names of the result's columns, in order: the keys, then the fields."""
        return [*self.key_names, *(field.name for field in self._require_groups().fields)]

    def open(self, context: OperatorContext) -> pa.Schema:
        place = context.input.get_field_index(OP_COLUMN)
        self.rows = context.input if place < 0 else context.input.remove(place)
        self._timed = TIME_COLUMN in self.rows.names
        self.keys, _ = key_columns(self.key_names, self.rows)
        self._groups = self._make_groups(context)
        self.state_parts = StateParts(context, self._groups.parts(), keyed=len(self.key_names) > 0)
        self._touches = Touches()
        fields = result_schema([*self.keys, *self._groups.fields], timed=False)
        names = self._order()
        self._places = [fields.get_field_index(name) for name in names]
        self._columns = pa.schema([fields.field(place) for place in self._places])
        self._schema = with_marks(self._columns, op=True, timed=self._timed)
        return self._schema

    def process(self, batch: Batch) -> None:
        if not batch.num_rows:
            return
        groups, data = self._require_groups(), batch.data
        keys = [data.schema.get_field_index(name) for name in self.key_names]
        with groups.changing:
            groups.fetch(batch, keys)
            table = groups.table()
            slots = table.resolve(data, keys, hashes=batch.hashes, selection=batch.selection)
            touched, first, _, latest = self._touches.of(slots.to_numpy(), self._times(batch))
            asked = pa.array(touched)
            rows, times, before = groups.results(table, asked)
            groups.note(slots)
            groups.add(table, slots, batch)
            rows_after, times_after, after = groups.results(table, asked)
            was, now = rows > 0, rows_after > 0
            changed = was | now if groups.always_change else was != now
            if before and not groups.always_change:
                changed |= was & now & differ(before, after)
            if not groups.always_change:
                groups.note_changes(table, asked, batch, changed, latest)
            if latest is not None:
                latest = np.where(now, times_after, latest) if groups.own_times else np.maximum(times, latest)
        if changed.any():
            weave = Weave(was & changed, now & changed)
            first = pa.array(first) if batch.selection is None else batch.selection.take(pa.array(first))
            columns = [weave.same(data.column(key), first) for key in keys]
            columns += [weave.woven(old, new) for old, new in zip(before, after, strict=True)]
            columns = [columns[place] for place in self._places]
            columns.append(weave.ops())
            if latest is not None:
                columns.append(weave.woven(pa.array(times), pa.array(latest)))
            self.emit(batch.with_data(pa.RecordBatch.from_arrays(columns, schema=self._schema)))
        with groups.changing:
            if not now.all():
                groups.remove(table, pa.array(touched[~now]))
            groups.settle()

    def _times(self, batch: Batch) -> Any:
        """Returns the event times of the selected rows (numpy), or None if rows have no event time."""
        if not self._timed:
            return None
        times = batch.data.column(batch.schema.get_field_index(TIME_COLUMN))
        return (times if batch.selection is None else times.take(batch.selection)).to_numpy()

    def group_count(self) -> int:
        return self._require_groups().count

    def contents(self) -> Iterator[pa.RecordBatch]:
        for columns in self._require_groups().contents():
            yield pa.RecordBatch.from_arrays([columns[place] for place in self._places], schema=self._columns)

    def table(self) -> Iterator[Batch]:
        for rows, times, columns in self._require_groups().current():
            columns = [columns[place] for place in self._places]
            columns.append(pa.array(np.full(rows, INSERT, np.int8)))
            if self._timed:
                columns.append(pa.array(times))
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        if self._groups is not None:
            self._groups.close()

    def statistics(self) -> "ToldStep":
        return {} if self._groups is None else self._groups.statistics()

    def _require_groups(self) -> "Groups":
        assert self._groups is not None
        return self._groups


class GroupAggregate(TableOperator):
    """The `aggregates` of all rows of each key: a table with one row (keys, aggregates) for each key that has rows,
    emitted as changes. Without keys the table has one row.

    For each key of a batch it emits an insert if the key is new, an update pair if the result has changed, or a
    delete if the key's last row was removed. The event time of a result is the latest event time of the key's rows at
    the last change of the result. The change that removes the result has the same event time.

    `changes`: True if the input may remove rows. Results are then exactly those of the rows that are left; a float is
    the exact sum, rounded once. Ties of arg_min and arg_max are decided by the least value, and `any` is the least
    value; first, last and collect_list follow event time, then arrival; of equal rows the oldest is removed. These
    aggregates keep their values, and each row costs time in the logarithm of the key's row count. For a user's own
    aggregate all rows of a key are kept, and its function is computed again after each change. Raises UserError for
    approx_count_distinct, which cannot remove a row.

    `parted_by`: those of the keys that decide to which subtask a row goes, if these are not all of them. The state is
    divided by them too.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        *,
        changes: bool,
        parted_by: tuple[str, ...] = (),
    ) -> None:
        super().__init__(keys)
        self._aggregates, self._changes = list(aggregates), changes
        self.parted_by = parted_by
        self.needs_table = changes

    def process(self, batch: Batch) -> None:
        if self.parted_by and batch.hashes is not None:  # the hashes are those of `parted_by`, not of all keys
            batch = reselected(batch, batch.selection, None)
        super().process(batch)

    def unfit_to_fill(self, names: frozenset[str]) -> str:
        by_order = [
            each.name
            for each in self._aggregates
            if each.kind in _BY_ARRIVAL and (not names or each.name in names) and not self._timed
        ]
        return (
            f"{', '.join(by_order)} depends on the order in which rows arrived, which a table does not keep"
            if by_order
            else ""
        )

    def fill(self, rows: Iterator[Batch], names: frozenset[str]) -> None:
        """Computes all groups from the rows of the table, and copies the state of the aggregates `names` from the
        computed groups.
        """
        folder = None if self._context.directory is None else self._context.directory / "filling"
        if folder is not None:
            make_folder(folder)
        other = GroupAggregate(self.key_names, self._aggregates, changes=True, parted_by=self.parted_by)
        other.open(replace(self._context, directory=folder))
        other.emit = lambda batch: None
        try:
            for batch in rows:
                other.process(batch)
            groups, made = self._require_groups(), other._require_groups()
            assert isinstance(groups, RemovableGroups)
            assert isinstance(made, RemovableGroups)
            groups.take_parts(made, [i for i, each in enumerate(self._aggregates) if each.name in names])
        finally:
            other.close()
            if folder is not None:
                remove_tree(folder)

    def _make_groups(self, context: OperatorContext) -> "Groups":
        self._context = context
        context = replace(context, parted_by=self.parted_by)
        return (RemovableGroups if self._changes else AddedGroups)(self.key_names, self._aggregates, self.rows, context)

    def before_restore(self, saved: Sequence[Saved]) -> None:
        groups, now = self._require_groups(), self.state_schema()["aggregates"]
        assert isinstance(groups, StoredGroups)
        hidden = [[*ROWS_OF_A_KEY], *([["", "event time", "int64"]] if self._timed else [])]
        groups.migration = migration_of(
            saved,
            now,
            self.forgets,
            groups.layout,
            self._layout_in,
            hidden=hidden,
            keeps=str if self._changes else None,
        )

    def _layout_in(self, reader: Mapping[str, Any]) -> StateLayout:
        """Returns the layout of the state of the aggregates that `reader` describes."""
        make = RemovableGroups if self._changes else AddedGroups
        aggregates, input = described(reader)
        return make(self.key_names, aggregates, input, OperatorContext(input)).layout

    def state_schema(self) -> StateSchema:
        aggregates = aggregates_schema(self._aggregates, self._require_groups().fields, self.rows)
        return {"kind": "groups", "keys": columns_schema(self.keys), "changes": self._changes, **aggregates}

    def state_reader(self) -> StateReader:
        return {**aggregates_reader(self.key_names, self._aggregates, self.rows), "changes": self._changes}
