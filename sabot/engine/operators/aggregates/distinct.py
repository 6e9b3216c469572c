"""count_distinct for groups to which rows are only added. If several aggregates count the same column with different
filters, and its values are numbers or times, they share one set of values: each row is then looked up once.

A set has the values of a column, by slot; each of its `counts` has the results and the state of one count_distinct. A
checkpoint has the state in the form of `Multisets`, for all types of values and for shared sets too.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.groups.multiset import DistinctNumbers
from sabot.engine.operators.aggregates.aggregator import AggregateColumn
from sabot.engine.operators.aggregates.packed import has_words, ordered_width, words
from sabot.engine.operators.aggregates.values import ChangedRows, Values

Array: TypeAlias = pa.Array
_FILTERS = 32  # the most aggregates that share a set


def distinct_sets(aggregates: Sequence[AggregateColumn], input: pa.Schema) -> "list[_SharedSet | _SeparateSet]":
    """Returns the sets for these aggregates, which are all count_distinct."""
    sets: list[_SharedSet | _SeparateSet] = []
    shared: dict[str, list[AggregateColumn]] = {}
    for aggregate in aggregates:
        kind = input.field(aggregate.argument).type
        if has_words(kind):
            shared.setdefault(str(aggregate.argument), []).append(aggregate)
        else:
            sets.append(_SeparateSet(aggregate, kind))
    for argument, alike in shared.items():
        for first in range(0, len(alike), _FILTERS):
            sets.append(_SharedSet(alike[first : first + _FILTERS], input.field(argument).type))
    return sets


class _SharedSet:
    """A set of the numbers or times of one column, for at most _FILTERS aggregates."""

    def __init__(self, aggregates: Sequence[AggregateColumn], kind: pa.DataType) -> None:
        self._argument = str(aggregates[0].argument)
        self._numbers: DistinctNumbers = DistinctNumbers(len(aggregates), ordered_width(kind))
        self.counts: list[_FilteredCounts] = [
            _FilteredCounts(aggregate, self._numbers, place) for place, aggregate in enumerate(aggregates)
        ]

    def add(self, rows: ChangedRows) -> None:
        values = rows.column(self._argument)
        filters = np.zeros(len(rows.slots), np.uint32)
        for place, each in enumerate(self.counts):
            filters |= rows.counting(each.aggregate, values).astype(np.uint32) << np.uint32(place)
        self._numbers.add(rows.slots, words(values), filters)

    def remove(self, slots: Any) -> None:
        self._numbers.remove(slots)

    def clear(self) -> None:
        self._numbers.clear()

    @property
    def nbytes(self) -> int:
        return self._numbers.nbytes


class _FilteredCounts:
    def __init__(self, aggregate: AggregateColumn, numbers: DistinctNumbers, place: int) -> None:
        self.aggregate, self._numbers, self._place = aggregate, numbers, place

    def results(self, slots: Any) -> Array:
        return pa.array(self._numbers.differing(slots, self._place))

    def save(self, slots: Any) -> Array:
        return self._numbers.save(slots, self._place)

    def load(self, slots: Any, states: Array) -> None:
        self._numbers.load(slots, states, self._place)


class _SeparateSet:
    """A set of the values of one aggregate, for types that do not fit into 64 bits."""

    def __init__(self, aggregate: AggregateColumn, kind: pa.DataType) -> None:
        self.aggregate = aggregate
        self.counts: list[_SeparateSet] = [self]
        self._values = Values(aggregate, kind, pa.int64())

    def add(self, rows: ChangedRows) -> None:
        self._values.add(rows)

    def results(self, slots: Any) -> Array:
        return self._values.results(slots, None)

    def save(self, slots: Any) -> Array:
        return self._values.store.save(slots)

    def load(self, slots: Any, states: Array) -> None:
        self._values.store.load(slots, states)

    def remove(self, slots: Any) -> None:
        self._values.store.remove(slots)

    def clear(self) -> None:
        self._values.store.clear()

    @property
    def nbytes(self) -> int:
        return self._values.store.nbytes
