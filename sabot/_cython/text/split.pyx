"""One part of each text, the elements of a JSON array, and codes in CSV. See split.pyi for the contract; the loops are in split.h."""

import numpy as np
import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_TEXT, View, open_view

__all__ = ["element_end", "elements", "may_have_codes", "split_part"]


cdef extern from "text/split.h" namespace "sabot" nogil:
    cppclass Separator:
        const uint8_t* bytes
        int64_t size

    void find_parts(
        const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t start, int64_t count, Separator by, int64_t index,
        int32_t* starts, int32_t* ends, uint8_t* there
    ) noexcept
    void copy_parts(const uint8_t* data, const int32_t* starts, const int32_t* ends, int64_t count, uint8_t* out) noexcept

    cppclass ArrayScan:
        vector[int64_t] starts
        vector[int64_t] sizes
        int64_t end
        int64_t close
        void scan(const uint8_t* data, int64_t n, int64_t most, cbool keep) except +
        void copy(const uint8_t* data, int32_t* offsets, uint8_t* out) noexcept

    cppclass CodeScan:
        const uint8_t* data
        int64_t n
        uint8_t delimiter
        const uint8_t* wanted
        int64_t fields
        cbool any() noexcept


def split_part(texts, bytes by not None, int64_t index):
    """Returns part `index` of each text, split at each `by`; null if it has fewer parts."""
    if not by:
        raise ValueError("the separator is empty")
    array = plain_array(texts)
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type != TYPE_TEXT:
        raise TypeError(f"texts must be string, not {array.type}")
    cdef int64_t count = view.length
    if not count:
        return pa.array([], pa.string())
    cdef Separator separator
    separator.bytes = <const uint8_t*> PyBytes_AS_STRING(by)
    separator.size = PyBytes_GET_SIZE(by)
    offsets, begins, bits = np.zeros(count + 1, np.int32), np.empty(count, np.int32), np.zeros((count + 7) // 8, np.uint8)
    cdef int32_t[::1] ends = offsets, starts = begins
    cdef uint8_t[::1] there = bits
    cdef const uint8_t* validity = view.validity if view.nullable() else NULL
    with nogil:
        find_parts(
            view.offsets + view.start, view.data, validity, view.start, count, separator, index, &starts[0], &ends[1], &there[0]
        )
    made = pa.allocate_buffer(int(offsets[count]))
    cdef uint8_t* out = <uint8_t*> <size_t> made.address
    with nogil:
        copy_parts(view.data, &starts[0], &ends[1], count, out)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), made, pa.py_buffer(bits), -1)


def element_end(const uint8_t[::1] data, int64_t most=0):
    """Returns the position behind the last comma between elements; see split.pyi."""
    cdef ArrayScan found
    if len(data):
        with nogil:
            found.scan(&data[0], len(data), most, False)
    return found.end


def elements(const uint8_t[::1] data):
    """Returns the elements, where they begin, and the position behind the closing bracket; see split.pyi."""
    cdef ArrayScan found
    cdef int64_t size = len(data)
    if size:
        with nogil:
            found.scan(&data[0], size, 0, True)
    cdef int64_t count = <int64_t> found.starts.size()
    if not count:
        return pa.array([], pa.binary()), np.empty(0, np.int64), found.close
    starts, offsets = np.empty(count, np.int64), np.zeros(count + 1, np.int32)
    cdef int64_t[::1] begins = starts
    cdef int32_t[::1] ends = offsets
    made = pa.allocate_buffer(size)
    cdef uint8_t* out = <uint8_t*> <size_t> made.address
    cdef int64_t i
    with nogil:
        for i in range(count):
            begins[i] = found.starts[i]
        found.copy(&data[0], &ends[1], out)
    return pa.BinaryArray.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), made]), starts, found.close


def may_have_codes(const uint8_t[::1] data, bytes delimiter not None, bytes wanted not None):
    """Returns False if no wanted field is a code; see split.pyi."""
    cdef CodeScan codes
    cdef cbool found
    if not len(data):
        return False
    codes.data, codes.n = &data[0], len(data)
    codes.delimiter = delimiter[0]
    codes.wanted, codes.fields = <const uint8_t*> PyBytes_AS_STRING(wanted), PyBytes_GET_SIZE(wanted)
    with nogil:
        found = codes.any()
    return found
