"""Times as text. See times.pyi for the contract; the loop over rows is in times_text.h."""

import numpy as np
import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_INT64, View, open_view

__all__ = ["write_times"]


cdef extern from "text/times_text.h" namespace "sabot" nogil:
    cppclass TimeFormat:
        void open(const char* text, int32_t width, int64_t per_second) except +
        void add(char code, int32_t place, int32_t digits) except +
        cbool write(const int64_t* times, const uint8_t* validity, int64_t start, int64_t count, uint8_t* out) noexcept


cdef dict WIDTHS = {"Y": 4, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2}
cdef int64_t MAX_BYTES = 2**31 - 1


def write_times(times, int64_t per_second, bytes text not None, fields):
    """Returns times as texts of one width: `text` with the digits of each field at its place; None if a year does not
    have four digits.
    """
    if per_second not in (1, 1_000, 1_000_000, 1_000_000_000):
        raise ValueError(f"per_second must be 1, 1,000, 1,000,000 or 1,000,000,000, not {per_second}")
    cdef TimeFormat format
    cdef int32_t width = len(text)
    format.open(text, width, per_second)
    for code, place, digits in fields:
        if code == "f" and not 1 <= digits <= 9 or code != "f" and WIDTHS.get(code) != digits:
            raise ValueError(f"{code!r} with {digits} digits is not a field of a time")
        if not 0 <= place <= width - digits:
            raise ValueError(f"{digits} digits at {place} are not within {width} bytes")
        format.add(ord(code), place, digits)
    array = plain_array(times)
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type != TYPE_INT64:
        raise TypeError(f"times must be int64, not {array.type}")
    cdef int64_t count = view.length
    if count * width > MAX_BYTES:
        return None
    made = pa.allocate_buffer(count * width)
    cdef uint8_t* out = <uint8_t*> <size_t> made.address
    cdef const uint8_t* validity = view.validity if view.nullable() else NULL
    cdef const int64_t* values = view.int64s()
    cdef cbool written
    with nogil:
        written = format.write(values, validity, view.start, count, out)
    if not written:
        return None
    # The texts share the bitmap of the times, so row 0 is at the same bit of a byte.
    cdef int64_t nulls = array.null_count if count else 0
    cdef int64_t skip = array.offset & 7 if nulls else 0
    bitmap = array.buffers()[0].slice(array.offset // 8) if nulls else None
    offsets = np.maximum(np.arange(-skip, count + 1) * width, 0).astype(np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), made, bitmap, nulls, skip)
