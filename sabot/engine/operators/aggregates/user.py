"""Users' aggregates: the states that their functions make, by slot."""

from collections.abc import Sequence
from itertools import islice
from sys import getsizeof
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from sabot.base.arrays import column_of
from sabot.codecs.engine_columns import TIME_COLUMN
from sabot.engine.operators.aggregates.gather import Array, Gather, GatheredValues
from sabot.engine.state.values import unfit
from sabot.errors import UserError, short_repr

_SLOT_BYTES = 200  # of the entries for a slot in the two dicts of `UserStates`
_WHOLE, _SAMPLE = 64, 8  # the number of values of a list up to which all are measured, and of those that stand for more


class UserAggregate(Protocol):
    """A user's aggregate. A state is any value that msgpack has (`state.values`). Only these four functions read it."""

    type: pa.DataType
    """The type of the results of `finish`."""

    def init(self) -> Any:
        """Returns the state of no rows."""

    def accumulate(self, state: Any, values: Any) -> Any:
        """Returns the state with further rows of its group. `values`: a pa.Array of the argument, or a RecordBatch if
        there is no argument.
        """

    def merge(self, state: Any, other: Any) -> Any:
        """Returns the state of the rows of both states."""

    def finish(self, state: Any) -> Any:
        """Returns the result."""


class UserStates(GatheredValues):
    """The states of a user's function, by slot. An error that the function raises becomes a UserError with its name."""

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._function: UserAggregate = gather.function
        self._states: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._bytes = 0  # the sum of `_sizes`

    def clear(self) -> None:
        self._states, self._sizes, self._bytes = {}, {}, 0

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        slots, selection = gather.counted(slots, data, selection)
        if not len(slots):
            return
        numbers = slots.to_numpy()
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
        rows = pa.array(order) if selection is None else selection.take(pa.array(order))
        among = data.select(list(range(gather.width))) if gather.argument < 0 else data.column(gather.argument)
        values = among.take(rows)
        if gather.order >= 0 and getattr(self._function, "wants_time", False):
            times = data.column(gather.order).take(rows)
            values = pa.RecordBatch.from_arrays([*values.flatten(), times], [*values.type.names, TIME_COLUMN])
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            slot = int(numbers[start])
            state = self._states[slot] if slot in self._states else self._call("init")
            self._put(slot, self._call("accumulate", state, values.slice(start, end - start)))

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        for slot, states in zip(slots.to_pylist(), columns[0].to_pylist(), strict=True):
            for packed in states:
                self._join(slot, msgspec.msgpack.decode(packed))

    def results(self, slots: pa.Int32Array) -> Array:
        call, states, kind = self._call, self._states, self.gather.type
        values = [call("finish", states[slot] if slot in states else call("init")) for slot in slots.to_pylist()]
        try:
            return column_of(values, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            wrong = next((value for value in values if not fits(value, kind)), None)
            raise UserError(
                f"{self._what('finish')} returned {short_repr(wrong)}, which is not a {kind}",
                hint="`type` of the aggregate is the type of its results: change it, or change finish",
            ) from error

    def states(self, slots: pa.Int32Array) -> list[Array]:
        packed = [[self._packed(self._states[slot])] if slot in self._states else [] for slot in slots.to_pylist()]
        return [pa.array(packed, pa.list_(pa.binary()))]

    def _packed(self, state: Any) -> bytes:
        # msgspec encodes sets, decimals and dates too, but it decodes them as lists and texts.
        if reason := unfit(state):
            raise self._not_saved(reason, state)
        try:
            return msgspec.msgpack.encode(state)
        except Exception as error:
            raise self._not_saved(f"{type(error).__name__}: {error}", state) from error

    def _not_saved(self, reason: str, state: Any) -> UserError:
        return UserError(
            f"{self._what('state')} cannot be saved: {reason}; it is {short_repr(state)}",
            hint="make the state of None, bool, int (64 bit), float, str, bytes, and lists and dicts of these",
        )

    def move(self, into: Any, source: Any) -> None:
        for target, slot in zip(into.tolist(), source.tolist(), strict=True):
            if slot in self._states:
                self._join(target, self._taken(slot))

    def remove(self, slots: Any) -> None:
        for slot in slots.tolist():
            self._taken(slot)

    @property
    def nbytes(self) -> int:
        return self._bytes

    def _join(self, slot: int, state: Any) -> None:
        self._put(slot, self._call("merge", self._states[slot], state) if slot in self._states else state)

    def _put(self, slot: int, state: Any) -> None:
        size = _SLOT_BYTES + state_bytes(state)
        self._bytes += size - self._sizes.get(slot, 0)
        self._states[slot], self._sizes[slot] = state, size

    def _taken(self, slot: int) -> Any:
        """Removes the state of a slot, and returns it; None if there is none."""
        self._bytes -= self._sizes.pop(slot, 0)
        return self._states.pop(slot, None)

    def _call(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self._function, method)(*given)
        except UserError:
            raise
        except Exception as error:
            rows: Any = given[1] if method == "accumulate" else []
            over = (
                f"; {len(rows)} rows, the first is {short_repr(rows.slice(0, 1).to_pylist()[0])}" if len(rows) else ""
            )
            raise UserError(f"{self._what(method)}: {type(error).__name__}: {error}{over}") from error

    def _what(self, method: str) -> str:
        name = getattr(self._function, "name", type(self._function).__qualname__)
        return f"aggregate {self.gather.name}: {name}.{method}"


def state_bytes(state: Any, depth: int = 3) -> int:
    """Returns about how many bytes a state has in memory.

    It takes a time that does not grow with the state: long lists and dicts are estimated from some of their values, and
    values `depth` levels below the state count as their own object alone.
    """
    if depth and isinstance(state, list | tuple):
        return getsizeof(state) + _bytes_of_all(state, len(state), depth)
    if depth and isinstance(state, dict):
        some = [each for item in islice(state.items(), _SAMPLE) for each in item]
        return getsizeof(state) + _bytes_of_all(some, 2 * len(state), depth)
    return getsizeof(state)


def _bytes_of_all(values: Sequence[Any], count: int, depth: int) -> int:
    """Returns about how many bytes `count` values have of which these are some, or all."""
    if len(values) > _WHOLE:
        values = values[:: -(-len(values) // _SAMPLE)]
    return sum(state_bytes(each, depth - 1) for each in values) * count // max(len(values), 1)


def fits(value: Any, kind: pa.DataType) -> bool:
    """Returns True if a column of this type can hold the Python value."""
    try:
        column_of([value], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True
