"""Divides rows by pane of event time. See window.pyi for the contract.

One pass finds the least and the greatest time: usually both are in one pane, and nothing has to be moved. Otherwise
rows are sorted by pane in a counting sort. A pane's number is computed by multiplication with 1 / size and corrected
by one if it is off, which is exact while the distance to the first pane is below 2^52. If panes are too far apart to
be counted in an array, a hash map numbers them.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.algorithm cimport sort
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_INT32, TYPE_INT64, View, open_view

from sabot.errors import DataError

__all__ = ["min_max", "split_panes"]

cdef int64_t LEAST = -(2**63 - 1) - 1
cdef int64_t GREATEST = 2**63 - 1
cdef int64_t FARTHEST = 2**61      # the farthest that a time may be from 1970, in ms: sums of times and sizes fit into 64 bits
cdef int64_t EXACT = 2**52         # up to this distance a double gives the number of the pane, or one next to it


cdef struct Rows:
    # IN: the times, and the rows that count.
    const int64_t* time
    const int32_t* selection   # NULL for all rows
    int64_t count              # the number of rows that count


cdef class _Opened:
    """Keeps the arrays behind a Rows alive."""

    cdef Rows rows
    cdef object alive

    def __cinit__(self, time, selection):
        cdef View times, chosen
        array = plain_array(time)
        if array.null_count:
            raise ValueError("event time must not be null")
        self.alive = [open_view(array, &times)]
        if times.temporal or times.type != TYPE_INT64:
            raise TypeError(f"event time must be int64, not {array.type}")
        self.rows.time = times.int64s()
        self.rows.selection = NULL
        self.rows.count = times.length
        if selection is None:
            return
        self.alive.append(open_view(selection, &chosen))
        if chosen.type != TYPE_INT32 or chosen.temporal:
            raise TypeError(f"a selection must be int32, not {selection.type}")
        self.rows.count = chosen.length
        self.rows.selection = chosen.int32s()


cdef inline int64_t _row(const Rows* rows, int64_t i) noexcept nogil:
    return i if rows.selection == NULL else rows.selection[i]


cdef void _range(const Rows* rows, int64_t* least, int64_t* greatest) noexcept nogil:
    # OUT least and greatest of all rows. Without rows the least is above the greatest.
    cdef int64_t low = GREATEST, high = LEAST, i, t
    cdef const int64_t* time = rows.time
    cdef const int32_t* selection = rows.selection
    if selection == NULL:
        for i in range(rows.count):
            t = time[i]
            low = t if t < low else low
            high = t if t > high else high
    else:
        for i in range(rows.count):
            t = time[selection[i]]
            low = t if t < low else low
            high = t if t > high else high
    least[0] = low
    greatest[0] = high


cdef int64_t _least_from(const Rows* rows, int64_t late_before, int64_t* late) noexcept nogil:
    # Returns the least time that is not late, or GREATEST if all are late. OUT late: how many are late.
    cdef int64_t low = GREATEST, count = 0, i, t
    for i in range(rows.count):
        t = rows.time[_row(rows, i)]
        if t < late_before:
            count += 1
        elif t < low:
            low = t
    late[0] = count
    return low


cdef inline int64_t _floor(int64_t time, int64_t size, int64_t offset) noexcept nogil:
    # Returns the start of the pane.
    cdef int64_t rest = (time - offset) % size    # C: the sign of the dividend
    return time - rest - (size if rest < 0 else 0)


def min_max(time, selection=None):
    """Returns (least, greatest) time of the rows of `selection` (None for all), or None without rows."""
    cdef _Opened opened = _Opened(time, selection)
    cdef int64_t least, greatest
    with nogil:
        _range(&opened.rows, &least, &greatest)
    return None if opened.rows.count == 0 else (least, greatest)


def split_panes(time, int64_t size_ms, int64_t offset_ms, selection=None, *, int64_t late_before=LEAST):
    """Divides rows by pane: (late rows or None, [(start of the pane, rows or None), ...] sorted by start). See
    window.pyi.
    """
    if size_ms < 1 or size_ms > FARTHEST:
        raise ValueError(f"a pane must have 1 to 2**61 ms, not {size_ms}")
    cdef _Opened opened = _Opened(time, selection)
    cdef const Rows* rows = &opened.rows
    if rows.count == 0:
        return None, []
    offset_ms %= size_ms
    cdef int64_t least, greatest, late_count = 0, first, last
    with nogil:
        _range(rows, &least, &greatest)
        if least < late_before:
            least = _least_from(rows, late_before, &late_count)
    late_buffer = pa.allocate_buffer(late_count * 4) if late_count else None
    cdef int32_t* late = <int32_t*> <size_t> late_buffer.address if late_count else NULL
    if late_count == rows.count:
        with nogil:
            _all(rows, late)
        return _int32(late_buffer, late_count), []
    if least < -FARTHEST or greatest > FARTHEST:
        raise DataError(
            f"the event time {least if least < -FARTHEST else greatest} ms is out of range",
            hint="event time is milliseconds since 1970; is the column in another unit?",
        )
    first = _floor(least, size_ms, offset_ms)
    last = _floor(greatest, size_ms, offset_ms)
    if first == last and late_count == 0:
        return None, [(first, selection)]
    cdef vector[int64_t] starts     # the starts of the panes that have rows, ascending
    cdef vector[int64_t] ends       # the ends of the rows of each pane in `sorted`; they begin at the end of the pane before
    buffer = pa.allocate_buffer((rows.count - late_count) * 4)
    cdef int32_t* sorted = <int32_t*> <size_t> buffer.address
    with nogil:
        if (last - first) // size_ms < 4 * rows.count + 1024 and greatest - first < EXACT:
            _split_near(rows, size_ms, first, last, late_before, late, sorted, starts, ends)
        else:
            _split_far(rows, size_ms, offset_ms, late_before, late, sorted, starts, ends)
    indices = _int32(buffer, rows.count - late_count)
    cdef int64_t begin = 0
    cdef size_t i
    panes = []
    for i in range(starts.size()):
        panes.append((starts[i], indices.slice(begin, ends[i] - begin)))
        begin = ends[i]
    return _int32(late_buffer, late_count) if late_count else None, panes


cdef object _int32(object buffer, int64_t length):
    return pa.Array.from_buffers(pa.int32(), length, [None, buffer], 0)


cdef void _all(const Rows* rows, int32_t* out) noexcept nogil:
    cdef int64_t i
    for i in range(rows.count):
        out[i] = <int32_t> _row(rows, i)


cdef inline int64_t _pane(int64_t distance, double inverse, int64_t size) noexcept nogil:
    # Returns distance // size for 0 <= distance < EXACT.
    cdef int64_t pane = <int64_t> (<double> distance * inverse)
    cdef int64_t rest = distance - pane * size
    return pane - (rest < 0) + (rest >= size)


cdef void _split_near(
    const Rows* rows, int64_t size, int64_t first, int64_t last, int64_t late_before, int32_t* late, int32_t* sorted,
    vector[int64_t]& starts, vector[int64_t]& ends,
) noexcept nogil:
    # A counting sort: pane p is the p-th pane from `first` on.
    cdef int64_t panes = (last - first) // size + 1, i, p, row, t, sum = 0
    cdef double inverse = 1.0 / <double> size
    cdef vector[int64_t] free        # the next free position of each pane in `sorted`
    free.assign(panes + 1, 0)
    for i in range(rows.count):
        t = rows.time[_row(rows, i)]
        if t >= late_before:
            free[_pane(t - first, inverse, size) + 1] += 1
    for p in range(panes):
        if free[p + 1] > 0:
            sum += free[p + 1]
            starts.push_back(first + p * size)
            ends.push_back(sum)
        free[p + 1] = sum
    for i in range(rows.count):
        row = _row(rows, i)
        t = rows.time[row]
        if t >= late_before:
            p = _pane(t - first, inverse, size)
            sorted[free[p]] = <int32_t> row
            free[p] += 1
        else:
            late[0] = <int32_t> row
            late += 1


cdef void _split_far(
    const Rows* rows, int64_t size, int64_t offset, int64_t late_before, int32_t* late, int32_t* sorted,
    vector[int64_t]& starts, vector[int64_t]& ends,
) noexcept nogil:
    # The same for panes that are far apart, which a hash map numbers.
    cdef unordered_map[int64_t, int64_t] free
    cdef int64_t i, row, t, start, sum = 0
    for i in range(rows.count):
        t = rows.time[_row(rows, i)]
        if t >= late_before:
            start = _floor(t, size, offset)
            if free.count(start) == 0:
                starts.push_back(start)
            free[start] += 1
    sort(starts.begin(), starts.end())
    for start in starts:
        sum += free[start]
        ends.push_back(sum)
        free[start] = sum - free[start]
    for i in range(rows.count):
        row = _row(rows, i)
        t = rows.time[row]
        if t >= late_before:
            start = _floor(t, size, offset)
            sorted[free[start]] = <int32_t> row
            free[start] += 1
        else:
            late[0] = <int32_t> row
            late += 1
