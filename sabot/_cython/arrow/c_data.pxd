"""The two structs of the Arrow C Data Interface, and the functions that get them out of capsules. column.h and
columns.pxd find row i in them.

A kernel takes a pa.Array and keeps the pair of capsules of `array.__arrow_c_array__()` alive while it reads. It never
calls `release`; the capsules do.

Source: https://arrow.apache.org/docs/format/CDataInterface.html
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t


cdef extern from "arrow/arrow_c.h":
    ctypedef struct ArrowSchema:
        const char* format         # the type: "l" int64, "u" string, "+s" struct, "w:16" fixed-size binary, ...
        const char* name           # the name of the field; may be NULL
        const char* metadata       # key-value pairs in a binary form; may be NULL
        int64_t flags              # bits: 1 dictionary ordered, 2 nullable, 4 map keys sorted
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary    # the type of the values if the array is dictionary encoded, else NULL
        void (*release)(ArrowSchema*) noexcept nogil
        void* private_data         # belongs to the producer

    ctypedef struct ArrowArray:
        int64_t length             # rows
        int64_t null_count         # number of nulls, or -1 if not counted
        int64_t offset             # rows to skip at the start of every buffer
        int64_t n_buffers
        int64_t n_children
        const void** buffers       # by type: [validity, values], [validity, offsets, data], [validity], or no buffer
        ArrowArray** children
        ArrowArray* dictionary
        void (*release)(ArrowArray*) noexcept nogil
        void* private_data


cdef inline ArrowSchema* schema_of(object capsule) except NULL:
    """Returns the struct in a capsule. It lives as long as the capsule. Raises ValueError for another capsule."""
    return <ArrowSchema*> PyCapsule_GetPointer(capsule, "arrow_schema")


cdef inline ArrowArray* array_of(object capsule) except NULL:
    """Returns the struct in a capsule. It lives as long as the capsule. Raises ValueError for another capsule."""
    return <ArrowArray*> PyCapsule_GetPointer(capsule, "arrow_array")
