"""The results of windows that consist of several panes: a cache of merged panes."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import pyarrow as pa

from sabot._cython.groups.keyed import GroupTable, SlidingTable
from sabot.engine.operators.aggregates.aggregator import Aggregator
from sabot.engine.operators.aggregates.extras import Extras
from sabot.engine.operators.base import CHUNK_ROWS
from sabot.engine.operators.spilled import SpilledGroups
from sabot.engine.operators.windows.panes import WindowShape
from sabot.engine.operators.windows.sparse import SparsePanes
from sabot.engine.state.tables.store import TableStore

_MOST_NUMBERS = 2**30  # the number of panes after which the table is built anew, since it numbers them


class MergedPanes:
    """A cache of the current window, which consists of several panes. One table has the merged groups of these panes.
    Windows must be requested in order of their ends.

    The table is a queue of two stacks, as `SlidingTable` describes: a pane enters at the back, is moved once from the
    back to the front, and leaves from the front. So a slide takes time for the groups of the panes that move, however
    long the window is and however many groups it has. The table has at most three times the size of the panes.

    The front has the panes of the window that are in a complete block, and the back the others (`WindowShape.blocks`).
    So the order in which floats are added follows from the panes alone, not from the window that was requested first,
    and it is that of `WindowMerge`. A cumulative window has no front: all its panes leave together.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        store: TableStore,
        extras: dict[int, Extras],
        spilled: SpilledGroups,
        sparse: SparsePanes | None,
        shape: WindowShape,
    ) -> None:
        self._aggregator, self._store, self._extras, self._spilled = aggregator, store, extras, spilled
        self._sparse = sparse
        self._shape, self._slides = shape, not shape.grows
        self._keys = list(range(len(aggregator.keys)))
        self._window = SlidingTable(aggregator.keys, aggregator.kernel)
        self._gathered = aggregator.extras()  # the extras of all panes, by the slots of the window
        self._gathered_back = aggregator.extras()
        self._gathered_front = aggregator.extras()  # only of users' functions
        self._front: deque[_FrontPane] = deque()
        self._back: list[_BackPane] = []
        self._number = 0  # the number of the pane that entered last
        self.merges = 0

    def forget(self) -> None:
        """Clears the cache. Called when rows were added to a pane that may be in it."""
        self._window.clear()
        self._gathered.clear()
        self._gathered_back.clear()
        self._gathered_front.clear()
        self._front.clear()
        self._back.clear()
        self._number = 0

    def slide(self, panes: list[int], end: int) -> None:
        """Moves to the window with this end. `panes`: the starts of its panes with rows, ascending."""
        if len(panes) == 1:
            return
        while self._front and self._front[0].pane < panes[0]:
            self._leave(self._front.popleft())
        if (self._back and self._back[0].pane < panes[0]) or self._number > _MOST_NUMBERS:
            self.forget()  # after a gap, or when the next cumulative window begins
        last = self._back[-1].pane if self._back else self._front[-1].pane if self._front else None
        block = bisect_left(panes, self._shape.block_start(end)) if self._slides else 0
        entered = 0 if last is None else bisect_right(panes, last)
        for pane in panes[entered:block]:
            self._enter(pane)
        if self._back and block and self._back[0].pane <= panes[block - 1]:
            self._turn()
        for pane in panes[max(entered, block) :]:
            self._enter(pane)

    def results(self, panes: list[int]) -> Iterator[pa.RecordBatch]:
        """Yields the results of the window, in pieces. `panes`: the panes of the last `slide`."""
        if len(panes) == 1:
            return self._results_alone(panes[0])
        return self._aggregator.results_of(self._window, self._gathered)

    def _results_alone(self, pane: int) -> Iterator[pa.RecordBatch]:
        yield from self._aggregator.results(self._store, pane, self._extras[pane])
        for table, extras in chain(self._on_disk(pane), self._in_sparse(pane)):
            yield from self._aggregator.results_of(table, extras)

    def _enter(self, pane: int) -> None:
        self._number += 1
        known = None
        for table, extras, whole in self._tables(pane):
            slots = self._window.enter(table, self._number if self._slides else 0)
            self.merges += 1
            if self._slides:
                self._gather(self._gathered_back, table, extras, slots)
            if self._slides and self._aggregator.has_functions:  # the order in which they merge counts
                self._gathered.remove(slots)
                self._add(self._gathered, slots, self._states_of(self._gathered_front, slots))
                self._add(self._gathered, slots, self._states_of(self._gathered_back, slots))
            else:
                self._gather(self._gathered, table, extras, slots)
            known = slots if whole else None
        self._back.append(_BackPane(pane, self._number, known))

    def _turn(self) -> None:
        """Moves all panes from the back to the front."""
        self._gathered_back.clear()
        for pane, number, known in reversed(self._back):
            left = []
            for table, extras, whole in self._tables(pane):
                slots = known if whole else None
                if slots is None:  # some of the pane's groups are or were on disk
                    slots = self._window.resolve(table.export(), self._keys, insert=False)
                later = self._states_of(self._gathered_back, slots)
                self._window.turn(table, number, slots)
                self.merges += 1
                if self._aggregator.has_functions:  # which get the earlier state first
                    self._gathered_back.remove(slots)
                self._gather(self._gathered_back, table, extras, slots)
                if self._aggregator.has_functions:
                    self._add(self._gathered_back, slots, later)
                left.append((slots, later))
            self._front.appendleft(_FrontPane(pane, number, left))
        self._window.turned()
        if self._aggregator.has_functions:
            self._gathered_front, self._gathered_back = self._gathered_back, self._gathered_front
            self._gathered.clear()
            everything = self._window.slots()
            self._add(self._gathered, everything, self._states_of(self._gathered_front, everything))
        self._gathered_back.clear()
        self._back.clear()

    def _leave(self, pane: "_FrontPane") -> None:
        for slots, later in reversed(pane.left):
            self._window.leave(pane.number, slots)
            self.merges += 1
            if self._aggregator.needs_slots:
                fronts = [self._gathered_front] if self._aggregator.has_functions else []
                for gathered in (self._gathered, *fronts):
                    gathered.remove(slots)
                    self._add(gathered, slots, later)
                self._add(self._gathered, slots, self._states_of(self._gathered_back, slots))

    def _tables(self, pane: int) -> Iterator[tuple[GroupTable, Extras, bool]]:
        """Yields all groups of a pane, as (table, extras, whole). If all groups are in memory, there is one table,
        and `whole` is True. If not, there is a table for each piece, and `whole` is False.
        """
        yield from ((table, extras, False) for table, extras in self._in_sparse(pane))
        if pane not in self._extras:
            return
        table = self._store.whole(pane)
        if table is not None:
            yield table, self._extras[pane], not self._spilled.holds(pane)
            yield from ((table, extras, False) for table, extras in self._on_disk(pane))
            return
        for state in self._store.export(pane):
            piece = self._aggregator.table()
            piece.merge(state)
            yield piece, self._extras[pane], False

    def _on_disk(self, pane: int) -> Iterator[tuple[GroupTable, Extras]]:
        """Yields the groups of the pane that are on disk (`SpilledGroups`), as a table and extras for each piece."""
        yield from self._pieces(self._spilled.read(pane))

    def _in_sparse(self, pane: int) -> Iterator[tuple[GroupTable, Extras]]:
        """Yields the groups of the pane that are in `SparsePanes`. After a change of the number of subtasks a pane may
        have a table too, since some of its groups come from a subtask in which it was dense.
        """
        if self._sparse is not None and pane in self._sparse.starts:
            yield from self._pieces(self._sparse.pane(pane))

    def _pieces(self, groups: Iterator[pa.RecordBatch]) -> Iterator[tuple[GroupTable, Extras]]:
        for rows in groups:
            table, extras = self._aggregator.table(), self._aggregator.extras()
            self._aggregator.merge(table, extras, rows)
            yield table, extras

    # The extras, by the slots of the window

    def _gather(self, into: Extras, table: GroupTable, extras: Extras, slots: pa.Int32Array) -> None:
        if self._aggregator.needs_slots:
            self._add(into, slots, self._aggregator.export_gathered(table, extras))

    def _states_of(self, extras: Extras, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        if not self._aggregator.needs_slots:
            return []
        names = self._aggregator.gathered.names[len(self._keys) :]
        pieces = [slots.slice(start, CHUNK_ROWS) for start in range(0, len(slots), CHUNK_ROWS)]
        return [pa.RecordBatch.from_arrays(extras.states(piece), names=names) for piece in pieces]

    def _add(self, into: Extras, slots: pa.Int32Array, states: Iterable[pa.RecordBatch]) -> None:
        start = 0
        for state in states:
            into.merge(slots.slice(start, state.num_rows), state)
            start += state.num_rows


class _BackPane(NamedTuple):
    """A pane in the back: it has entered the window, and has not been moved to the front."""

    pane: int
    number: int
    slots: pa.Int32Array | None  # the slots of its groups in the window, or None if it entered in pieces


class _FrontPane(NamedTuple):
    """A pane in the front.

    `left`: for each piece of the pane, the slots of its groups in the window, and the extras that later panes had in
    these slots when the pane was moved to the front.
    """

    pane: int
    number: int
    left: list[tuple[pa.Int32Array, list[pa.RecordBatch]]]
