"""Shared parts of the operators that read state out of a checkpoint, without the program that wrote it (see `reading`).

The table `STATE_READERS` of each module maps the kind of state (`state_schema`) to a function that makes such an operator of the state's
description (`state_reader`). For state without rows, the table has a text that says what the state consists of.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pyarrow as pa

from sabot.codecs.json import schema_of_text
from sabot.operators.aggregates.aggregator import AggregateColumn
from sabot.operators.base import Restorable
from sabot.state.reading import json_text

StateReaders: TypeAlias = Mapping[str, Callable[[Mapping[str, Any]], Restorable] | str]


def aggregates_of(reader: Mapping[str, Any]) -> list[AggregateColumn]:
    """The aggregates that `reader` describes. The user's functions are not there: stand-ins give their states as JSON."""
    functions = _RowsAsJson() if reader.get("changes") else _StateAsJson()
    older: dict[str, Any] = {name: reader.get(name, True) for name in ("shares", "rounds")}
    return [
        AggregateColumn(**described, function=functions if described["kind"] == "user" else None, **older)
        for described in reader["calls"]
    ]


def described(reader: Mapping[str, Any]) -> tuple[list[AggregateColumn], pa.Schema]:
    """The aggregates that `reader` describes, and the columns that they are over."""
    input = schema_of_text(reader["input"])
    assert input is not None
    return aggregates_of(reader), input


def no_function(so_far: Any, row: Any) -> Any:
    """Stands in for a user's function that is called with rows, which never happens here."""
    raise AssertionError("state that is read takes no rows")


_SLICES = "__slices"  # the key of a dict that holds several states; it is a dict, since states are copied as msgpack


class _StateAsJson:
    """Stands in for an aggregate function of the user's: its result is the state, as it is.

    For a hopping or cumulative window it is a list of the states of the panes, which only the user's function could merge.
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
    """Stands in for an aggregate function over changes, of which the rows that it would get are kept: its result is these rows."""

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
