"""Aggregates without a fixed width, by the slots of a table.

`Pairs` keeps values, `Sketches` estimates, `UserStates` the states of users' functions.
"""

from collections.abc import Callable, Sequence

import pyarrow as pa

from sabot.operators.aggregates.gather import Array, Gather, Gathered
from sabot.operators.aggregates.pairs import Pairs
from sabot.operators.aggregates.sketches import Sketches
from sabot.operators.aggregates.user import UserStates

__all__ = ["Extras"]

_KEPT_BY: dict[str, Callable[[Gather], Gathered]] = {"user": UserStates, "sketch": Sketches}


class Extras:
    """What a table's kernel cannot keep, by the table's slots. One owner; the extras of one pane."""

    def __init__(self, gathers: Sequence[Gather]) -> None:
        self._parts: list[Gathered] = [_KEPT_BY.get(gather.reduce, Pairs)(gather) for gather in gathers]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        """Row i of the selection goes to slots[i]. `data` may have further columns behind those that calls know."""
        for part in self._parts:
            part.add(slots, data, selection)

    def merge(self, slots: pa.Int32Array, state: pa.RecordBatch) -> None:
        """Row i of what `states` gave (columns by name) goes to slots[i]."""
        for part in self._parts:
            part.merge(slots, [state.column(field.name) for field in part.gather.states])

    def results(self, slots: pa.Int32Array) -> list[Array]:
        """One column a call."""
        return [part.results(slots) for part in self._parts]

    def states(self, slots: pa.Int32Array) -> list[Array]:
        """The columns that `merge` takes."""
        return [column for part in self._parts for column in part.states(slots)]

    def move(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """What slot source[i] has goes to slot into[i]; the sources are empty then. None is named twice, or is an `into` too.

        Of values that this brings together, and that have the same order, any may be first.
        """
        for part in self._parts:
            part.move(into.to_numpy(), source.to_numpy())

    def remove(self, slots: pa.Int32Array) -> None:
        """These slots, each named once, are empty."""
        for part in self._parts:
            part.remove(slots.to_numpy())

    def clear(self) -> None:
        for part in self._parts:
            part.clear()

    @property
    def nbytes(self) -> int:
        """Bytes that gathered columns take (states of user functions are not counted)."""
        return sum(part.nbytes for part in self._parts)
