"""Common parts of the operators that read the state of a checkpoint without the program that wrote it (`reading`).

`STATE_READERS` of each module maps the kind of state (`state_schema`) to a function that makes such an operator from
the description of the state (`state_reader`). For state without rows it has a text that names the content of the
state.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.codecs.json import schema_of_text
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.base import Restorable
from sabot.engine.state.reading import json_text

StateReaders: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], Restorable] | str]


def aggregates_of(reader: Mapping[str, Any]) -> list[AggregateColumn]:
    """Returns the aggregates that `reader` describes. Users' functions are not available; in their place are
    functions that return the state as JSON.
    """
    functions = _RowsAsJson() if reader.get("changes") else _StateAsJson()
    older: dict[str, Any] = {name: reader.get(name, True) for name in ("shares", "rounds")}
    return [
        AggregateColumn(**described, function=functions if described["kind"] == "user" else None, **older)
        for described in reader["calls"]
    ]


def described(reader: Mapping[str, Any]) -> tuple[list[AggregateColumn], pa.Schema]:
    """Returns the aggregates that `reader` describes, and the columns that they aggregate."""
    input = schema_of_text(reader["input"])
    assert input is not None
    return aggregates_of(reader), input


def no_function(so_far: Any, row: Any) -> Any:
    """Stands in for a user's function, and raises AssertionError: state is read without rows."""
    raise AssertionError("an operator that only reads state was given rows")


_SLICES = "__slices"  # the key of a dict with several states; a dict, since states are copied as msgpack


class _StateAsJson:
    """A stand-in for a user's aggregate, whose functions are not available. Its result is the state itself.

    For a hopping or cumulative window it is a list of the panes' states, which only the user's function could merge.
    """

    type = pa.string()

    def init(self) -> Any:
        return None

    def accumulate(self, state: Any, values: Any) -> Any:
        return no_function(state, values)

    def merge(self, state: Any, other: Any) -> Any:
        return {_SLICES: [*_slices(state), *_slices(other)]}

    def finish(self, state: Any) -> str | None:
        if state is None:
            return None
        slices = _slices(state)
        return json_text(slices[0] if len(slices) == 1 else slices)


def _slices(state: Any) -> list[Any]:
    return state[_SLICES] if isinstance(state, dict) and _SLICES in state else [state]


class _RowsAsJson:
    """A stand-in for a user's aggregate over changes, whose state is rows. Its result is the rows that the user's
    function would get.
    """

    type = pa.string()

    def init(self) -> list[Any]:
        return []

    def accumulate(self, state: list[Any], values: Any) -> list[Any]:
        rows: list[Any] = values.to_pylist()
        return state + rows

    def merge(self, state: list[Any], other: list[Any]) -> list[Any]:
        return state + other

    def finish(self, state: list[Any]) -> str:
        return json_text(state)
