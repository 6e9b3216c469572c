"""Estimated aggregates: a sketch of each slot's values."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.groups.partition import hash_columns
from sabot._cython.groups.sketch import Distinct, Quantiles
from sabot.engine.operators.aggregates.gather import Array, Gather, GatheredValues, selected
from sabot.engine.operators.aggregates.packed import ordered


class Sketches(GatheredValues):
    """A sketch of each slot's values: for approx_count_distinct, or for approx_quantile."""

    def __init__(self, gather: Gather) -> None:
        super().__init__(gather)
        self._counts = Distinct() if gather.option is None else None
        self._places = Quantiles() if gather.option is not None else None
        self._store: Distinct | Quantiles = self._counts or self._places  # type: ignore[assignment]

    def add(self, slots: pa.Int32Array, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        gather = self.gather
        values = selected(data.column(gather.argument), selection)
        keep = None if values.null_count == 0 else values.is_valid()
        if gather.where >= 0:
            mask = selected(data.column(gather.where), selection)
            keep = mask if keep is None else pc.and_(keep, mask)
        if keep is not None:
            slots, values = slots.filter(keep), values.filter(keep)
        if self._counts is not None:
            self._counts.add(slots.to_numpy(), value_hashes(values))
        elif self._places is not None:
            self._places.add(slots.to_numpy(), values.cast(pa.float64(), safe=False).to_numpy())

    def merge(self, slots: pa.Int32Array, columns: list[Array]) -> None:
        parents = pc.list_parent_indices(columns[0])
        self._store.load(slots.take(parents).to_numpy(), pc.list_flatten(columns[0]))

    def results(self, slots: pa.Int32Array) -> Array:
        if self._counts is not None:
            return pa.array(self._counts.estimates(slots.to_numpy()))
        assert self._places is not None
        return quantile_column(self._places, slots.to_numpy(), self.gather.option)

    def states(self, slots: pa.Int32Array) -> list[Array]:
        saved = self._store.save(slots.to_numpy())
        ends = np.frombuffer(saved.buffers()[1], np.int64)
        there = ends[1:] > ends[:-1]
        offsets = np.concatenate([[0], np.cumsum(there)]).astype(np.int32)
        return [pa.ListArray.from_arrays(pa.array(offsets), saved.filter(pa.array(there)))]

    def move(self, into: Any, source: Any) -> None:
        self._store.load(into, self._store.save(source))
        self._store.remove(source)

    def remove(self, slots: Any) -> None:
        self._store.remove(slots)

    def clear(self) -> None:
        self._store.clear()

    @property
    def nbytes(self) -> int:
        return self._store.nbytes


def value_hashes(values: Array) -> Any:
    """Returns a hash for each value (numpy uint64). `values`: without nulls."""
    if pa.types.is_decimal(values.type) or pa.types.is_fixed_size_binary(values.type):
        values = ordered(values).cast(pa.binary())
    return hash_columns([values]).to_numpy()


def quantile_column(sketch: Quantiles, slots: Any, of: Any) -> Array:
    """Returns the results of approx_quantile for these slots. `of`: a quantile, or several quantiles; the result of
    several is a list for each slot.
    """
    several = isinstance(of, list | tuple)
    found, there = sketch.quantiles(slots, of if several else [of])
    mask = None if there.all() else pa.array(~there)
    if not several:
        return pa.array(found[:, 0], mask=None if mask is None else ~there)
    bounds = pa.array(np.arange(len(found) + 1, dtype=np.int32) * found.shape[1])
    return pa.ListArray.from_arrays(bounds, pa.array(found.reshape(-1)), mask=mask)
