"""Arrays without nulls, as kernels take and give them: slots, row numbers, times, words of a state.

What comes in is opened as a Column (arrow.pxd), of which `int32s` and the like give the values as a pointer, or as Numbers, which keep
their memory themselves. What goes out is made here, to be filled, or of a vector.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

from sabot._cython.arrow cimport Column, Kind


# IN `array`: what `plain_array` takes; `column` OUT; -> what has to stay alive while it is read. TypeError for another type than
# `kind`, ValueError for nulls; both name it by `name`.
cdef object open_array(object array, Column* column, Kind kind, str name)


cdef class Numbers:
    """An array of numbers without nulls, open for reading."""

    cdef object array               # keeps the memory
    cdef const void* values         # row 0; not NULL, which would mean that there is no array: of an empty one nothing is read
    cdef int64_t length

    cdef inline const int32_t* int32(self) noexcept nogil:
        return <const int32_t*> self.values

    cdef inline const int64_t* int64(self) noexcept nogil:
        return <const int64_t*> self.values

    cdef inline const uint64_t* uint64(self) noexcept nogil:
        return <const uint64_t*> self.values


# IN `data`: what `plain_array` takes. TypeError where it is not of the pa.DataType `data_type`; ValueError where it has nulls, or another
# length (-1: any). The errors name it by `name`.
cdef Numbers numbers_of(object data, object data_type, str name, int64_t length)

# A pa.Array of the pa.DataType `kind`, of `size` values that `data` (OUT) points at, to be filled. Bits are not set to 0.
cdef object new_array(object kind, int64_t size, void** data)

# Copies: pa.Int32Array, pa.Int64Array.
cdef object int32_array(const vector[int32_t]& values)
cdef object int64_array(const vector[int64_t]& values)


cdef inline const int8_t* int8s(const Column* column) noexcept nogil:
    """Row 0 of a KIND_INT8 column; NULL where it is empty."""
    if column.length == 0:
        return NULL
    return <const int8_t*> column.values + column.start


cdef inline const int32_t* int32s(const Column* column) noexcept nogil:
    """Row 0 of a KIND_INT32 column; NULL where it is empty."""
    if column.length == 0:
        return NULL
    return <const int32_t*> column.values + column.start


cdef inline const int64_t* int64s(const Column* column) noexcept nogil:
    """Row 0 of a KIND_INT64 column; NULL where it is empty."""
    if column.length == 0:
        return NULL
    return <const int64_t*> column.values + column.start


cdef inline bint all_within(const int32_t* numbers, int64_t count, int64_t end) noexcept nogil:
    """None is negative, all are below `end`."""
    cdef int64_t i
    cdef bint good = True
    for i in range(count):
        good &= 0 <= numbers[i] < end
    return good
