"""Batch, an Arrow RecordBatch with its source offsets; and the one place where foreign Arrow data becomes canonical."""

from libc.stdint cimport int64_t


cdef class Batch:
    cdef readonly object data       # pa.RecordBatch; never changed
    cdef dict _offsets              # {(topic, partition): next offset to read}; never changed, and copied for readers
    cdef readonly str topic         # the topic of rows with RECORD_SCHEMA; "" where rows have no topic
    cdef readonly object records    # pa.RecordBatch of the undecoded records of `data`, or None; they count in nbytes
    cdef readonly tuple rejected    # BadRow entries, sorted by row: the rows of `records` that are not in `data`
    cdef readonly object selection  # pa.Int32Array of the rows of `data` that count, in order; None: all
    cdef readonly object hashes     # pa.UInt64Array, the key hash of each row of `data`; None: not computed
    cdef readonly int64_t num_rows  # the rows that count: those of the selection where there is one
    cdef int64_t _nbytes            # bytes that the rows take; -1: not computed yet
    cdef readonly object bad        # pa.RecordBatch of the records that a decoding source has set apart, or None

    cdef int64_t size(self) except -1
    cdef int64_t record_of(self, int64_t row) except -1
    cdef Batch over(self, object data, dict offsets)


# Converts any Arrow array (pa.Array, pa.ChunkedArray, `__arrow_c_array__`, `__arrow_c_stream__`) to one pa.Array of a canonical type.
# Returns the array itself where nothing has to change.
cdef object plain_array(object data)
