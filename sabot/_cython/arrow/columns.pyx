"""The reading of columns by kernels, and the making of new ones. See columns.pxd; Python code uses nothing in here."""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, array_of, schema_of
from sabot._cython.arrow.batch cimport plain_array

__all__ = []

cdef object _INT32 = pa.int32()
cdef object _INT64 = pa.int64()
cdef object _allocate = pa.allocate_buffer
cdef object _from_buffers = pa.Array.from_buffers


cdef object open_view(object array, View* view):
    """Fills `view`. Returns the object that has to stay alive while the view is read."""
    capsules = array.__arrow_c_array__()
    cdef ArrowArray* raw = array_of(capsules[1])
    view[0] = view_of(schema_of(capsules[0]), raw, 0, raw.length)
    return capsules


cdef object open_key(object array, View* view):
    """Fills `view` for a key column, like open_view."""
    capsules = array.__arrow_c_array__()
    cdef ArrowArray* raw = array_of(capsules[1])
    view[0] = key_view_of(schema_of(capsules[0]), raw, 0, raw.length)
    return capsules


cdef object open_array(object array, View* view, Type type, str name):
    """Fills `view`. Returns the object that has to stay alive while it is read. Raises TypeError for another type,
    ValueError for nulls.
    """
    array = plain_array(array)
    if array.null_count:
        raise ValueError(f"{name}: {array.null_count} values are null")
    alive = open_view(array, view)
    if view.temporal or view.type != type:
        raise TypeError(f"{name} cannot be {array.type}")
    view.validity = NULL
    return alive


cdef class Numbers:
    """An array of numbers without nulls, open for reading. See columns.pxd."""


cdef Numbers numbers_of(object data, object data_type, str name, int64_t length):
    """Opens an array of numbers. Raises TypeError for another type; ValueError for nulls, or for another length (-1:
    any length).
    """
    array = plain_array(data)
    if array.type != data_type:
        raise TypeError(f"{name} must be {data_type}, not {array.type}")
    if array.null_count:
        raise ValueError(f"{name} must not be null")
    cdef Numbers numbers = Numbers()
    numbers.array = array
    numbers.length = len(array)
    numbers.values = <const void*> <size_t> 8  # for an empty array; never read
    if length >= 0 and numbers.length != length:
        raise ValueError(f"{name}: {numbers.length} values for {length} rows")
    if numbers.length:
        skipped = array.offset * (array.type.bit_width // 8)
        numbers.values = <const void*> <size_t> (array.buffers()[1].address + skipped)
    return numbers


cdef Numbers rows_of(object selection, int64_t rows):
    """Opens row numbers, each below `rows`. For None, which selects all rows, `values` is NULL. Raises IndexError for
    other numbers.
    """
    cdef Numbers numbers
    if selection is None:
        numbers = Numbers()
        numbers.values = NULL
        numbers.length = rows
        return numbers
    numbers = numbers_of(selection, _INT32, "selection", -1)
    if not all_within(numbers.int32(), numbers.length, rows):
        raise IndexError(f"the selection has row numbers outside of the {rows} rows of the batch")
    return numbers


cdef object new_array(object kind, int64_t size, void** data):
    """Returns an array of `size` values, to be filled through `data` (OUT)."""
    buffer = _allocate((size * <int64_t> kind.bit_width + 7) // 8)
    data[0] = <void*> <size_t> buffer.address
    return _from_buffers(kind, size, [None, buffer], 0)


cdef object int32_array(const vector[int32_t]& values):
    cdef void* data
    array = new_array(_INT32, values.size(), &data)
    if values.size():
        memcpy(data, values.data(), values.size() * 4)
    return array


cdef object int64_array(const vector[int64_t]& values):
    cdef void* data
    array = new_array(_INT64, values.size(), &data)
    if values.size():
        memcpy(data, values.data(), values.size() * 8)
    return array
