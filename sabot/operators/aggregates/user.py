"""Users' aggregates: the states that their functions make, by slot."""

from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from sabot.errors import UserError, short_repr
from sabot.operators.aggregates.gather import Array, Gather, GatheredValues

_STATE_BYTES = 300  # about the size of a state of a few numbers


class UserAggregate(Protocol):
    """A user's aggregate. A state is any value that msgpack can encode. Only these four functions read it."""

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

    def clear(self) -> None:
        self._states = {}

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
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            slot = int(numbers[start])
            state = self._states[slot] if slot in self._states else self._call("init")
            self._states[slot] = self._call("accumulate", state, values.slice(start, end - start))

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        for slot, states in zip(slots.to_pylist(), columns[0].to_pylist(), strict=True):
            for packed in states:
                self._join(slot, msgspec.msgpack.decode(packed))

    def results(self, slots: pa.Int32Array) -> Array:
        call, states, kind = self._call, self._states, self.gather.type
        values = [call("finish", states[slot] if slot in states else call("init")) for slot in slots.to_pylist()]
        try:
            return pa.array(values, kind)
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
        try:
            return msgspec.msgpack.encode(state)
        except Exception as error:
            raise UserError(
                f"{self._what('state')} cannot be saved: {type(error).__name__}: {error}; it is {short_repr(state)}",
                hint="make the state of numbers, texts, bytes, lists and dicts",
            ) from error

    def move(self, into: Any, source: Any) -> None:
        for target, slot in zip(into.tolist(), source.tolist(), strict=True):
            if slot in self._states:
                self._join(target, self._states.pop(slot))

    def remove(self, slots: Any) -> None:
        for slot in slots.tolist():
            self._states.pop(slot, None)

    @property
    def nbytes(self) -> int:
        return len(self._states) * _STATE_BYTES

    def _join(self, slot: int, state: Any) -> None:
        self._states[slot] = self._call("merge", self._states[slot], state) if slot in self._states else state

    def _call(self, method: str, *given: Any) -> Any:
        try:
            return getattr(self._function, method)(*given)
        except Exception as error:
            rows: Any = given[1] if method == "accumulate" else []
            over = (
                f"; {len(rows)} rows, the first is {short_repr(rows.slice(0, 1).to_pylist()[0])}" if len(rows) else ""
            )
            raise UserError(f"{self._what(method)}: {type(error).__name__}: {error}{over}") from error

    def _what(self, method: str) -> str:
        name = getattr(self._function, "name", type(self._function).__qualname__)
        return f"aggregate {self.gather.name}: {name}.{method}"


def fits(value: Any, kind: pa.DataType) -> bool:
    """Returns True if a column of this type can hold the Python value."""
    try:
        pa.scalar(value, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False
    return True
