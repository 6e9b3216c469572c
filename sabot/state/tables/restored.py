"""The groups of a TableStore, read out of a checkpoint: what `saved` has written, and the database that lies beside it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.keyed import GroupTable
from sabot.state.tables.cold import read_cold
from sabot.state.tables.hot import CHUNK_ROWS, pieces
from sabot.state.tables.saved import COLD, read_changes


class PaneFacts(NamedTuple):
    """The facts about a pane in a checkpoint."""

    pane: int
    life: int
    since: int  # the first delta that counts for the pane
    bound: tuple[int, int] | None
    cold: int  # how many groups are only in the database
    parts: int  # how many parts of groups are in the database
    hot: int = 0  # how many groups are in memory; 0 if unknown


class Renewal(Protocol):
    """How groups that had other accumulators become groups of a store."""

    make: Callable[[], GroupTable]
    """An empty table with the accumulators that they had."""

    def groups(self, groups: pa.RecordBatch) -> pa.RecordBatch:
        """Keys and accumulators of these groups, as the store has them."""


class SavedGroups:
    """The groups that a checkpoint has of a store. make: an empty table with the accumulators that they have."""

    def __init__(self, directory: Path, panes: Sequence[PaneFacts], make: Callable[[], GroupTable]) -> None:
        self._directory, self._panes, self._make = directory, panes, make
        table = make()
        self._keys, self._states = table.keys, table.states

    def all(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Pairs of a pane and groups of it, also those of the database, each group once."""
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
        """Pairs of a pane and groups of it that were in memory, each group once: going from the newest change back, each change gives the
        groups that no newer one has.
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
                    new = pc.greater_equal(
                        slots, before
                    )  # slots are given out in order, of a table that nothing leaves
                elif len(table):
                    new = pc.less(table.resolve(groups, columns, insert=False), 0)
                else:
                    new = None
                if not change.gone:
                    yield change.pane, groups if new is None else groups.filter(new)

    def _beside(self, hot: GroupTable, groups: pa.RecordBatch, are_parts: bool) -> pa.RecordBatch:
        """The database's values of some groups, made whole: for a group that was hot, the hot value replaces the one in the database, or is
        merged with it where that is only a part.
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
