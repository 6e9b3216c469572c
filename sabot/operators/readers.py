"""What operators share that are made to read state out of a checkpoint, without the program that wrote it (see `reading`).

Each module says in its `READERS` how to make one: by the kind of state (`state_schema`), of what the state's description
(`state_reader`) says. A text instead says what is kept, where that is no rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.api import windows
from sabot.operators.aggregates.aggregator import AggregateColumn
from sabot.operators.base import Operator
from sabot.state.reading import json_text

__all__ = ["Readers", "aggregates_of", "no_function", "window_of"]

Readers: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], Operator] | str]

_WINDOWS = {each.__name__: each for each in (windows.TumblingWindow, windows.HoppingWindow, windows.CumulativeWindow)}


def window_of(reader: Mapping[str, Any]) -> Any:
    """The window by which the rows were put together."""
    name, figures = reader["window"]
    return _WINDOWS[name](**figures)


def aggregates_of(reader: Mapping[str, Any]) -> list[AggregateColumn]:
    """The aggregates; in the place of the user's functions, which are not there, what gives their state as JSON."""
    functions = _RowsAsJson() if reader.get("changes") else _StateAsJson()
    return [
        AggregateColumn(**described, function=functions if described["kind"] == "user" else None)
        for described in reader["calls"]
    ]


def no_function(so_far: Any, row: Any) -> Any:
    """In the place of a function of the user's that is called with rows."""
    raise AssertionError("state that is read takes no rows")


_SLICES = "__slices"  # the key under which states of slices stand that were put together; states are copied as msgpack between


class _StateAsJson:
    """Stands in for a function of the user's, which is not there: the value is its state, as it is.

    Of a hopping or cumulative window, whose slices only the function could merge, it is a list of the states of the slices.
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
    """Stands in for a function over changes: what is kept are the rows that it gets."""

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
