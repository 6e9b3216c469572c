"""Reads the groups of a TableStore from a checkpoint: from the files of `saved`, and from the database next to them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot.engine.state.tables.cold import read_cold
from sabot.engine.state.tables.hot import CHUNK_ROWS, pieces
from sabot.engine.state.tables.saved import COLD, read_changes


class PaneFacts(NamedTuple):
    """The facts about a pane in a checkpoint."""

    pane: int
    life: int
    since: int  # the first delta that counts for the pane
    bound: tuple[int, int] | None
    cold: int  # the number of groups that are only in the database
    parts: int  # the number of parts of groups in the database
    hot: int = 0  # the number of groups in memory; 0 if unknown


class Renewal(ABC):
    """A converter of groups from a checkpoint, which have other accumulators, into the form of the groups of the
    store.
    """

    make: Callable[[], GroupTable]
    """Returns an empty table with the old accumulators."""

    @abstractmethod
    def groups(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        """Returns keys and accumulators of these groups in the form of the store."""


class SavedGroups:
    """The groups of a store in a checkpoint. `make`: returns an empty table with their accumulators."""

    def __init__(self, directory: Path, panes: Sequence[PaneFacts], make: Callable[[], GroupTable]) -> None:
        self._directory, self._panes, self._make = directory, panes, make
        table = make()
        self._keys, self._states = table.keys, table.states

    def all(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields pairs of a pane and groups of it, including those of the database, each group once."""
        hot = {pane.pane: self._make() for pane in self._panes}
        for number, groups in self.in_memory():
            hot[number].merge(groups)
        for number, are_parts, groups in read_cold(self._directory / COLD, self._states, len(self._keys), self._make):
            if number in hot:
                yield number, self._beside(hot[number], groups, are_parts)
        for number, table in hot.items():
            for slots in pieces(table, CHUNK_ROWS):
                yield number, table.export(slots)

    def in_memory(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yields pairs of a pane and groups of it that were in memory, each group once. Changes are read from the
        newest back; each yields the groups that no newer one has.
        """
        since = {(pane.pane, pane.life): pane.since for pane in self._panes}
        changes = [  # files are mapped here, and read later
            change
            for change in read_changes(self._directory, self._keys, self._states)
            if change.number >= since.get((change.pane, change.life), change.number + 1)
        ]
        seen = {pane.pane: GroupTable(self._keys, []) for pane in self._panes}
        columns = range(len(self._keys))
        oldest = min((change.number for change in changes), default=0)
        if changes and changes[0].number > oldest:
            for pane in self._panes:
                seen[pane.pane].reserve(pane.hot)
        for change in changes:
            table = seen[change.pane]
            if change.number == oldest and change.gone:
                continue
            for start in range(0, change.groups.num_rows, CHUNK_ROWS):
                groups = change.groups.slice(start, CHUNK_ROWS)
                if change.number > oldest:
                    before = len(table)
                    slots = table.resolve(groups, columns)
                    # slots are given out in order in a table that no group leaves
                    new = pc.greater_equal(slots, before)
                elif len(table):
                    new = pc.less(table.resolve(groups, columns, insert=False), 0)
                else:
                    new = None
                if not change.gone:
                    yield change.pane, groups if new is None else groups.filter(new)

    def _beside(self, hot: GroupTable, groups: pa.RecordBatch, are_parts: bool) -> pa.RecordBatch:
        """Makes some groups of the database whole. For a group that was hot, the hot value replaces that of the
        database, or is merged with it if that is only a part.
        """
        slots = hot.resolve(groups, range(len(self._keys)), insert=False)
        if not are_parts:
            return groups.filter(pc.less(slots, 0))
        slots = slots.filter(pc.greater_equal(slots, 0))
        if not len(slots):
            return groups
        table = self._make()
        table.merge(groups)
        table.merge(hot.export(slots))
        hot.remove(slots)
        return table.export()
