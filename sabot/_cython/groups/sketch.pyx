"""Sketches by slot. See sketch.pyi for the contract; the loops are in sketch_store.h."""

import numpy as np
import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

__all__ = ["Distinct", "Quantiles"]


cdef extern from "groups/sketch_store.h" namespace "sabot" nogil:
    cppclass Strings:
        vector[int64_t] ends
        string data

    cppclass DistinctStore "sabot::Distinct":
        int64_t nbytes()
        void add(int32_t slot, uint64_t hash) except +
        int64_t estimate(int32_t slot) except +
        void save(int32_t slot, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size) except +
        void remove(int32_t slot)
        void clear()

    cppclass QuantileStore "sabot::Quantiles":
        int64_t nbytes()
        void add(int32_t slot, double value, cbool take) except +
        cbool quantiles(int32_t slot, const double* of, int64_t count, double* out) except +
        void save(int32_t slot, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size) except +
        void remove(int32_t slot)
        void clear()


cdef const int32_t[::1] _slots(object slots):
    """Opens an array of slots, none of which may be negative."""
    array = np.ascontiguousarray(slots, np.int32)
    if len(array) and array.min() < 0:
        raise IndexError(f"there is no slot {array.min()}")
    return array


cdef object _large_binary(Strings& strings):
    cdef int64_t count = <int64_t> strings.ends.size(), i
    offsets = np.zeros(count + 1, np.int64)
    cdef int64_t[::1] to = offsets
    for i in range(count):
        to[i + 1] = strings.ends[i]
    data = pa.py_buffer(strings.data.data()[:strings.data.size()])
    return pa.Array.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(offsets), data])


cdef tuple _opened(object states, int64_t count):
    """Returns the offsets and the bytes of a large binary array. Raises ValueError unless it has `count` values and
    no nulls.
    """
    if states.type != pa.large_binary() or states.null_count or len(states) != count:
        raise ValueError(f"the states must be large binary without nulls for {count} slots, not {len(states)} values of {states.type}")
    offsets = np.zeros(1, np.int64)
    data = None
    if count:
        _, ends, data = states.buffers()
        offsets = np.frombuffer(ends, np.int64)[states.offset : states.offset + count + 1]
    held = np.zeros(1, np.uint8) if data is None or not data.size else np.frombuffer(data, np.uint8)
    return offsets, held


# The methods of both stores

ctypedef fused Store:
    DistinctStore
    QuantileStore


cdef object _save(Store* store, object slots):
    cdef const int32_t[::1] numbers = _slots(slots)
    cdef Strings out
    cdef int64_t i
    with nogil:
        for i in range(len(numbers)):
            store.save(numbers[i], out)
    return _large_binary(out)


cdef object _load(Store* store, object slots, object states):
    cdef const int32_t[::1] numbers = _slots(slots)
    offsets, held = _opened(states, len(numbers))
    cdef const int64_t[::1] ends = offsets
    cdef const uint8_t[::1] data = held
    cdef const char* start = <const char*> &data[0]
    cdef int64_t i
    with nogil:
        for i in range(len(numbers)):
            store.load(numbers[i], start + ends[i], ends[i + 1] - ends[i])


cdef object _remove(Store* store, object slots):
    cdef const int32_t[::1] numbers = _slots(slots)
    cdef int64_t i
    with nogil:
        for i in range(len(numbers)):
            store.remove(numbers[i])


cdef class Distinct:
    """Estimates the number of distinct values per slot. See sketch.pyi."""

    cdef DistinctStore store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add(self, slots, hashes):
        cdef const int32_t[::1] numbers = _slots(slots)
        cdef const uint64_t[::1] values = np.ascontiguousarray(hashes, np.uint64)
        cdef int64_t i
        if len(values) != len(numbers):
            raise ValueError(f"{len(values)} hashes for {len(numbers)} rows")
        with nogil:
            for i in range(len(numbers)):
                self.store.add(numbers[i], values[i])

    def estimates(self, slots):
        cdef const int32_t[::1] numbers = _slots(slots)
        result = np.zeros(len(numbers), np.int64)
        cdef int64_t[::1] out = result
        cdef int64_t i
        with nogil:
            for i in range(len(numbers)):
                out[i] = self.store.estimate(numbers[i])
        return result

    def save(self, slots):
        return _save(&self.store, slots)

    def load(self, slots, states):
        _load(&self.store, slots, states)

    def remove(self, slots):
        _remove(&self.store, slots)

    def clear(self):
        self.store.clear()


cdef class Quantiles:
    """Estimates quantiles per slot. See sketch.pyi."""

    cdef QuantileStore store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add(self, slots, values, takes=None):
        cdef const int32_t[::1] numbers = _slots(slots)
        cdef const double[::1] reals = np.ascontiguousarray(values, np.float64)
        flags = np.zeros(len(numbers), np.uint8) if takes is None else np.ascontiguousarray(takes).view(np.uint8)
        cdef const uint8_t[::1] away = flags
        cdef int64_t i
        if len(reals) != len(numbers) or len(away) != len(numbers):
            raise ValueError(f"{len(reals)} values for {len(numbers)} rows")
        with nogil:
            for i in range(len(numbers)):
                self.store.add(numbers[i], reals[i], away[i])

    def quantiles(self, slots, of):
        cdef const int32_t[::1] numbers = _slots(slots)
        cdef const double[::1] asked = np.ascontiguousarray(of, np.float64)
        result = np.zeros((len(numbers), len(asked)), np.float64)
        there = np.zeros(len(numbers), np.uint8)
        if not len(numbers) or not len(asked):
            return result, there.view(bool)
        cdef double[:, ::1] out = result
        cdef uint8_t[::1] found = there
        cdef int64_t i
        with nogil:
            for i in range(len(numbers)):
                found[i] = self.store.quantiles(numbers[i], &asked[0], len(asked), &out[i, 0])
        return result, there.view(bool)

    def save(self, slots):
        return _save(&self.store, slots)

    def load(self, slots, states):
        _load(&self.store, slots, states)

    def remove(self, slots):
        _remove(&self.store, slots)

    def clear(self):
        self.store.clear()
