"""State of aggregates without a fixed width, stored by the slots of a table.

`Pairs` stores values, `Sketches` stores estimates, `UserStates` stores the states of users' functions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sabot.engine.operators.aggregates.gather import Array, Gather, GatheredValues
from sabot.engine.operators.aggregates.pairs import Pairs
from sabot.engine.operators.aggregates.sketches import Sketches
from sabot.engine.operators.aggregates.user import UserStates

_KEPT_BY: dict[str, Callable[[Gather], GatheredValues]] = {"user": UserStates, "sketch": Sketches}


class Extras:
    """The state of one table that does not fit into the kernel's accumulators, by the table's slots. It has one
    owner, and is the state of one pane.

    `before`: called with slots to which rows are about to be added.
    """

    def __init__(self, gathers: Sequence[Gather], before: Callable[[pa.Int32Array], None] = lambda slots: None) -> None:
        self._before = before
        self._parts: list[GatheredValues] = [_KEPT_BY.get(gather.reduce, Pairs)(gather) for gather in gathers]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        """Adds row i of the selection (of `data`, if `selection` is None) to slots[i]. Columns of `data` behind the
        input columns of the aggregates are ignored.
        """
        self._before(slots)
        for part in self._parts:
            part.add(slots, data, selection)

    def merge(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        """Merges row i of `state` into slots[i]. `state`: columns that `states` has returned, by name."""
        self._before(slots)
        for part in self._parts:
            part.merge(slots, [state.column(field.name) for field in part.gather.states])

    def results(self, slots: pa.Int32Array) -> list[Array]:
        """Returns the results of these slots: one column for each aggregate."""
        return [part.results(slots) for part in self._parts]

    def results_over(self, slots: Any, first: Any, sizes: Any) -> list[Array]:
        """Returns the results of ranges of slots, as `GatheredValues.results_over` does."""
        return [part.results_over(slots, first, sizes) for part in self._parts]

    def states(self, slots: pa.Int32Array) -> list[Array]:
        """Returns the state of these slots, as columns for `merge`."""
        return [column for part in self._parts for column in part.states(slots)]

    def move(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """Merges the state of slot source[i] into slot into[i], and empties source[i]. `source` has no repeats, and
        no slot is in both arrays.

        The order of two values with equal `order` is arbitrary after their slots are merged.
        """
        for part in self._parts:
            part.move(into.to_numpy(), source.to_numpy())

    def remove(self, slots: pa.Int32Array) -> None:
        """Empties these slots. `slots` has no repeats."""
        for part in self._parts:
            part.remove(slots.to_numpy())

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    @property
    def nbytes(self) -> int:
        """The bytes in memory. Long lists in a state of a user's function are estimated from some of their values."""
        return sum(part.nbytes for part in self._parts)
