"""Selects rows of a batch by a mask. See selection.pyi for the contract; the loop over rows is in selection.h."""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport Numbers, View, open_view, rows_of

__all__ = ["select_rows"]


cdef extern from "arrow/selection.h" namespace "sabot" nogil:
    int64_t choose_rows "sabot::select_rows"(const View& mask, const int32_t* chosen, int64_t count, int32_t* out) noexcept

cdef object _INT32 = pa.int32()


def select_rows(mask, selection=None):
    """Returns the row numbers in `selection` (or of all rows, for None) where the mask is true and not null, in
    order.
    """
    array = plain_array(mask)
    if array.type != pa.bool_():
        raise TypeError(f"a mask must be bool, not {array.type}")
    cdef View view
    cdef object alive = open_view(array, &view)
    cdef Numbers rows = rows_of(selection, view.length)
    cdef const int32_t* chosen = rows.int32()
    buffer = pa.allocate_buffer(rows.length * 4, resizable=True)
    cdef int32_t* out = <int32_t*> <size_t> buffer.address
    cdef int64_t count
    with nogil:
        count = choose_rows(view, chosen, rows.length, out)
    return pa.Array.from_buffers(_INT32, count, [None, buffer], 0)
