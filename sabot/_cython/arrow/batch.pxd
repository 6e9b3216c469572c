"""`Batch`, an Arrow RecordBatch with its source offsets, and the conversion of foreign Arrow data to canonical types."""

from libc.stdint cimport int64_t


cdef class Batch:
    cdef readonly object data       # the columns: a pa.RecordBatch; never changed
    cdef dict _offsets              # {(topic, partition): next offset to read}; never changed; readers get a copy
    cdef readonly str topic         # the topic of rows with RECORD_SCHEMA; "" if the rows have no topic
    # the undecoded records of `data` (pa.RecordBatch), or None; their bytes count in nbytes
    cdef readonly object records
    cdef readonly tuple rejected    # BadRow entries, sorted by row: the rows of `records` that are not in `data`
    # the row numbers of `data` that count, in order (pa.Int32Array), or None for all rows
    cdef readonly object selection
    cdef readonly object hashes     # the key hash of each row of `data` (pa.UInt64Array), or None if not computed
    cdef readonly int64_t num_rows  # the number of rows that count: the length of the selection, if there is one
    cdef int64_t _nbytes            # the bytes of the rows that count, or -1 if not computed yet
    cdef readonly object bad        # the records that a decoding source could not decode (pa.RecordBatch), or None

    cdef int64_t size(self) except -1
    cdef int64_t record_of(self, int64_t row) except -1
    cdef Batch over(self, object data, dict offsets)


# Converts any Arrow array (pa.Array, pa.ChunkedArray, or an object with `__arrow_c_array__` or `__arrow_c_stream__`)
# to one pa.Array of a canonical type. Returns the array itself if nothing has to change. Raises TypeError for any
# other object, UserError for values that have no canonical form.
cdef object plain_array(object data)
