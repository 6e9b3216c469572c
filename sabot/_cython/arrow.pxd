"""The Arrow C Data Interface as kernels read it: the two structs, and how to find row i in them.

A kernel takes a pa.Array, keeps the pair of capsules of `array.__arrow_c_array__()` alive while it reads, and never calls
`release`: the capsules do. What every reader must expect, and the functions below see to:

- row i of an array stands at `offset + i` of its buffers, validity and bools (bits) too;
- the child of a struct keeps its own offset: row i of the parent is `parent.offset + i` of the child, hence
  `parent.offset + child.offset + i` of the child's buffers (a list's child is addressed by the list's offsets instead);
- `null_count` may be -1 (not counted), and the validity buffer may be absent even then;
- an empty array may have no buffers behind its pointers at all.

Source: https://arrow.apache.org/docs/format/CDataInterface.html
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport strtol


cdef extern from "arrow_c.h":
    ctypedef struct ArrowSchema:
        const char* format         # the type: "l" int64, "u" string, "+s" struct, "w:16" fixed-size binary, ...
        const char* name           # of the field; may be NULL
        const char* metadata       # binary pairs; may be NULL
        int64_t flags              # 1 dictionary ordered, 2 nullable, 4 map keys sorted
        int64_t n_children
        ArrowSchema** children
        ArrowSchema* dictionary    # of the values, where the array is dictionary encoded; else NULL
        void (*release)(ArrowSchema*) noexcept nogil
        void* private_data         # the producer's

    ctypedef struct ArrowArray:
        int64_t length             # rows
        int64_t null_count         # -1: not counted
        int64_t offset             # rows to skip at the start of every buffer
        int64_t n_buffers
        int64_t n_children
        const void** buffers       # by type: [validity, values], [validity, offsets, data], [validity], or none
        ArrowArray** children
        ArrowArray* dictionary
        void (*release)(ArrowArray*) noexcept nogil
        void* private_data


cdef inline ArrowSchema* schema_of(object capsule) except NULL:
    """The struct inside a capsule; lives as long as the capsule."""
    return <ArrowSchema*> PyCapsule_GetPointer(capsule, "arrow_schema")


cdef inline ArrowArray* array_of(object capsule) except NULL:
    """The struct inside a capsule; lives as long as the capsule."""
    return <ArrowArray*> PyCapsule_GetPointer(capsule, "arrow_array")


cdef inline bint bit(const uint8_t* bits, int64_t i) noexcept nogil:
    """Bit i of a bitmap, least significant first."""
    return (bits[i >> 3] >> (i & 7)) & 1


cdef inline const uint8_t* validity_of(const ArrowArray* array) noexcept nogil:
    """The validity bitmap (NOT moved by the offset), or NULL where no row is null."""
    if array.null_count == 0 or array.n_buffers == 0 or array.length == 0:
        return NULL
    return <const uint8_t*> array.buffers[0]


cdef enum Kind:
    """How the values of a Column lie in memory."""
    KIND_OTHER      # not a scalar type of this list; a Column of it cannot be read
    KIND_NULL       # every row is null; no buffers
    KIND_BOOL       # bits
    KIND_INT8
    KIND_INT16
    KIND_INT32
    KIND_INT64
    KIND_UINT8
    KIND_UINT16
    KIND_UINT32
    KIND_UINT64
    KIND_FLOAT32
    KIND_FLOAT64
    KIND_STRING     # int32 offsets into UTF-8
    KIND_BINARY     # int32 offsets into bytes
    KIND_FIXED      # `width` bytes a row


cdef struct Column:
    # A flat view of one scalar array: IN only, owns nothing.
    Kind kind
    int64_t length              # rows
    int64_t start               # row 0 stands here in every buffer: array.offset, plus the parent's for a struct's child
    const uint8_t* validity     # NULL: no row is null
    const void* values          # numbers, bits or fixed-size bytes; NULL when length is 0
    const int32_t* offsets      # strings and binaries; NULL when length is 0
    const uint8_t* data         # bytes of strings and binaries; may be NULL where all are empty
    int64_t width               # bytes a row, of KIND_FIXED


cdef inline Kind kind_of(const char* format) noexcept nogil:
    """The kind of a format string; KIND_OTHER for everything that is no scalar of the list above."""
    if format[0] == c"w" and format[1] == c":":
        return KIND_FIXED
    if format[0] == 0 or format[1] != 0:
        return KIND_OTHER
    if format[0] == c"n":
        return KIND_NULL
    if format[0] == c"b":
        return KIND_BOOL
    if format[0] == c"c":
        return KIND_INT8
    if format[0] == c"s":
        return KIND_INT16
    if format[0] == c"i":
        return KIND_INT32
    if format[0] == c"l":
        return KIND_INT64
    if format[0] == c"C":
        return KIND_UINT8
    if format[0] == c"S":
        return KIND_UINT16
    if format[0] == c"I":
        return KIND_UINT32
    if format[0] == c"L":
        return KIND_UINT64
    if format[0] == c"f":
        return KIND_FLOAT32
    if format[0] == c"g":
        return KIND_FLOAT64
    if format[0] == c"u":
        return KIND_STRING
    if format[0] == c"z":
        return KIND_BINARY
    return KIND_OTHER


cdef inline Kind open_column(
    Column* column, const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length
) noexcept nogil:
    """Fills `column` (OUT). `parent_offset` and `length` are the struct parent's for its child, 0 and array.length else.

    Returns the kind; after KIND_OTHER the column must not be read.
    """
    cdef Kind kind = KIND_OTHER if schema.dictionary != NULL else kind_of(schema.format)
    column.kind = kind
    column.length = length
    column.start = parent_offset + array.offset
    column.validity = validity_of(array)
    column.values = NULL
    column.offsets = NULL
    column.data = NULL
    column.width = 0
    if kind == KIND_OTHER or kind == KIND_NULL or length == 0:
        return kind
    if kind == KIND_STRING or kind == KIND_BINARY:
        column.offsets = <const int32_t*> array.buffers[1]
        column.data = <const uint8_t*> array.buffers[2]
    else:
        column.values = array.buffers[1]
        if kind == KIND_FIXED:
            column.width = strtol(schema.format + 2, NULL, 10)
    return kind


cdef inline bint is_null(const Column* column, int64_t row) noexcept nogil:
    return column.kind == KIND_NULL or (
        column.validity != NULL and not bit(column.validity, column.start + row)
    )


cdef inline bint bool_at(const Column* column, int64_t row) noexcept nogil:
    return bit(<const uint8_t*> column.values, column.start + row)


cdef inline int64_t int_at(const Column* column, int64_t row) noexcept nogil:
    """The value of any integer kind; of KIND_UINT64 the same 64 bits, to be cast back."""
    cdef int64_t i = column.start + row
    if column.kind == KIND_INT64 or column.kind == KIND_UINT64:
        return (<const int64_t*> column.values)[i]
    if column.kind == KIND_INT32:
        return (<const int32_t*> column.values)[i]
    if column.kind == KIND_INT16:
        return (<const int16_t*> column.values)[i]
    if column.kind == KIND_INT8:
        return (<const int8_t*> column.values)[i]
    if column.kind == KIND_UINT32:
        return (<const uint32_t*> column.values)[i]
    if column.kind == KIND_UINT16:
        return (<const uint16_t*> column.values)[i]
    return (<const uint8_t*> column.values)[i]


cdef inline double float_at(const Column* column, int64_t row) noexcept nogil:
    """The value of KIND_FLOAT32 or KIND_FLOAT64."""
    if column.kind == KIND_FLOAT32:
        return (<const float*> column.values)[column.start + row]
    return (<const double*> column.values)[column.start + row]


cdef inline int64_t bytes_at(const Column* column, int64_t row, const uint8_t** data) noexcept nogil:
    """The length of a string, binary or fixed-size value; `data` (OUT) points at it, possibly NULL where the length is 0."""
    cdef int64_t i = column.start + row
    if column.kind == KIND_FIXED:
        data[0] = <const uint8_t*> column.values + i * column.width
        return column.width
    data[0] = column.data + column.offsets[i]
    return column.offsets[i + 1] - column.offsets[i]
