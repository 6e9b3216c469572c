"""Rows kept as bytes (row_bytes.h), and how columns are made of them again: for every kernel that keeps whole rows."""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema


cdef extern from "rows/row_bytes.h" namespace "sabot" nogil:
    cppclass Node:
        cbool fixed() noexcept
        int64_t width               # bytes a row, where it is fixed

    cppclass Source:
        # A column open for reading.
        void open(const Node* of, const ArrowArray* array, int64_t parent_start) except +

    cppclass Made:
        # A column that was made. `validity` has bits; `values` bits or bytes; `offsets` of texts and lists.
        int64_t rows
        int64_t nulls
        vector[uint8_t] validity
        vector[uint8_t] values
        vector[int32_t] offsets
        vector[Made] children

    cppclass Layout:
        vector[Node] nodes
        cbool add(const ArrowSchema* schema) except +   # False: the type cannot be kept
        void ready() except +


# IN `made`; OUT a pa.Array of `kind`, whose storage type the Node was made of.
cdef object array_of_made(Made* made, object kind)

# The nodes of the columns' types; TypeError names a column that cannot be kept.
cdef int lay_out(Layout* layout, object schema) except -1

# The first `layout.nodes.size()` columns of a RecordBatch, of the types of `schema`, open in `sources` (OUT); -> what has to stay alive.
cdef tuple open_rows(Layout* layout, object schema, object data, vector[Source]* sources)
