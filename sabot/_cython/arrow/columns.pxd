"""The reading of columns by kernels, and the making of new ones.

An incoming column becomes a `View` (column.h): `open_view` takes any scalar type, `open_array` one given type without
nulls. `Numbers` is an array of numbers that keeps its memory alive itself. An outgoing column is allocated by
`new_array` and then filled, or copied from a vector.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema


cdef extern from "arrow/column.h" namespace "sabot" nogil:
    # The memory layout of the values of a view. Dates, times, timestamps and durations have the type of the integers
    # that store them.
    ctypedef enum Type "sabot::Type":
        TYPE_OTHER "sabot::Type::other"      # only its validity can be read
        TYPE_NOTHING "sabot::Type::nothing"  # every row is null; no buffers
        TYPE_BOOL "sabot::Type::bool_"       # bits
        TYPE_INT8 "sabot::Type::int8"
        TYPE_INT32 "sabot::Type::int32"
        TYPE_INT64 "sabot::Type::int64"
        TYPE_UINT8 "sabot::Type::uint8"
        TYPE_UINT64 "sabot::Type::uint64"
        TYPE_FLOAT64 "sabot::Type::float64"
        TYPE_TEXT "sabot::Type::text"        # int32 offsets into UTF-8
        TYPE_BYTES "sabot::Type::bytes"      # int32 offsets into bytes

    Type type_of(const char* format) noexcept
    cbool has_bytes(Type type) noexcept      # true for text, bytes, and bytes of a fixed size

    cppclass View:
        # A flat view of one array. Read only; owns no memory. See column.h for the fields.
        Type type
        cbool temporal               # true for a date, time, timestamp or duration
        int64_t length               # rows
        int64_t start                # the position of row 0 in every buffer
        const uint8_t* validity
        const void* values
        const int32_t* offsets
        const uint8_t* data
        cbool nullable() noexcept
        cbool valid(int64_t row) noexcept
        cbool truth(int64_t row) noexcept
        int64_t integer(int64_t row) noexcept
        const uint8_t* bytes_at(int64_t row, int64_t* size) noexcept
        const int8_t* int8s() noexcept       # the address of row 0 in a column of this type, or NULL if the column has no rows
        const uint8_t* uint8s() noexcept
        const int32_t* int32s() noexcept
        const int64_t* int64s() noexcept
        const uint64_t* uint64s() noexcept

    # Returns true if all numbers are at least 0 and below `end`.
    cbool all_within(const int32_t* numbers, int64_t count, int64_t end) noexcept

    # Makes the view of an array. For the child of a struct, `parent_offset` and `length` are those of the struct;
    # otherwise 0 and array.length.
    View view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) noexcept

    # The same for a key column, where a decimal is read as its bytes.
    Type key_type_of(const char* format) noexcept
    View key_view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) noexcept


# IN `array`: a result of `plain_array`. OUT `view`. Returns the object that has to stay alive while the view is read.
# A type that kernels cannot read becomes TYPE_OTHER; the caller has to refuse it.
cdef object open_view(object array, View* view)
cdef object open_key(object array, View* view)  # the same for a key column

# IN `array`: anything that `plain_array` takes. OUT `view`. Returns the object that has to stay alive while the view
# is read. Raises TypeError if the type is not `type` (a temporal type differs from its integers), ValueError for
# nulls; both messages contain `name`.
cdef object open_array(object array, View* view, Type type, str name)


cdef class Numbers:
    """An array of numbers without nulls, open for reading."""

    cdef object array               # keeps the memory alive
    cdef const void* values         # row 0; not NULL even for an empty array, because NULL stands for "no selection" (see rows_of)
    cdef int64_t length

    cdef inline const int32_t* int32(self) noexcept nogil:
        return <const int32_t*> self.values

    cdef inline const int64_t* int64(self) noexcept nogil:
        return <const int64_t*> self.values

    cdef inline const uint64_t* uint64(self) noexcept nogil:
        return <const uint64_t*> self.values


# IN `data`: anything that `plain_array` takes. Raises TypeError if its type is not the pa.DataType `data_type`;
# ValueError if it has nulls, or if its length is not `length` (-1: any length). The messages contain `name`.
cdef Numbers numbers_of(object data, object data_type, str name, int64_t length)

# Opens the row numbers of a selection like `numbers_of`. For None, which selects all rows, `values` is NULL and the
# length is `rows`. Raises IndexError for a number outside of 0..rows-1.
cdef Numbers rows_of(object selection, int64_t rows)

# Returns a pa.Array of the pa.DataType `kind` with `size` values, to be filled through `data` (OUT). Its memory is
# not initialised, so bits must be written as whole bytes. Raises MemoryError.
cdef object new_array(object kind, int64_t size, void** data)

# Return copies of the values, as a pa.Int32Array and a pa.Int64Array.
cdef object int32_array(const vector[int32_t]& values)
cdef object int64_array(const vector[int64_t]& values)
