"""Rows kept as bytes (row_bytes.h), and their conversion back to columns, for every kernel that keeps whole rows."""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema


cdef extern from "rows/row_bytes.h" namespace "sabot" nogil:
    cppclass Node:
        cbool fixed() noexcept
        int64_t width               # bytes per row, for types of fixed width

    cppclass Source:
        # A column open for reading.
        void open(const Node* of, const ArrowArray* array, int64_t parent_start) except +

    cppclass Made:
        # A column that was made. `validity` has bits, `values` bits or bytes; texts and lists have `offsets`.
        int64_t rows
        int64_t nulls
        vector[uint8_t] validity
        vector[uint8_t] values
        vector[int32_t] offsets
        vector[Made] children

    cppclass Layout:
        vector[Node] nodes
        cbool add(const ArrowSchema* schema) except +   # returns False if the type is not supported
        void ready() except +


# Returns a pa.Array of `kind`, from whose storage type the Node was made. Takes over the memory of `made`, which is
# empty afterwards. Raises MemoryError.
cdef object array_of_made(Made* made, object kind)

# Adds the nodes for the types of the columns. Raises TypeError naming a column whose type is not supported.
cdef int lay_out(Layout* layout, object schema) except -1

# Opens the first `layout.nodes.size()` columns of a RecordBatch. OUT `sources`. Returns the object that has to stay
# alive while they are read. Raises TypeError unless `data` is a RecordBatch whose columns have the types of `schema`.
cdef tuple open_rows(Layout* layout, object schema, object data, vector[Source]* sources)
