"""How kernels read columns and make them.

An incoming column becomes a `View` (column.h): `open_view` takes any scalar type, `open_array` one type without nulls. `Numbers` is an
array of numbers that keeps its memory alive itself. An outgoing column is allocated here to be filled, or copied from a vector.
"""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema


cdef extern from "arrow/column.h" namespace "sabot" nogil:
    # How the values of a view lie in memory. Dates, times, timestamps and durations have the type of the integers that store them.
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
    cbool has_bytes(Type type) noexcept      # text, bytes, or bytes of a fixed size

    cppclass View:
        # A flat view of one array: IN only, owns nothing. See column.h for the fields.
        Type type
        cbool temporal               # a date, time, timestamp or duration
        int64_t length               # rows
        int64_t start                # the place of row 0 in every buffer
        const uint8_t* validity
        const void* values
        const int32_t* offsets
        const uint8_t* data
        cbool nullable() noexcept
        cbool valid(int64_t row) noexcept
        cbool truth(int64_t row) noexcept
        int64_t integer(int64_t row) noexcept
        const uint8_t* bytes_at(int64_t row, int64_t* size) noexcept
        const int8_t* int8s() noexcept       # row 0 of a column of this type; NULL where it has no rows
        const uint8_t* uint8s() noexcept
        const int32_t* int32s() noexcept
        const int64_t* int64s() noexcept
        const uint64_t* uint64s() noexcept

    # Whether all numbers are at least 0 and below `end`.
    cbool all_within(const int32_t* numbers, int64_t count, int64_t end) noexcept

    # For the child of a struct, `parent_offset` and `length` are those of the struct; otherwise 0 and array.length.
    View view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) noexcept

    # The same for keys: a decimal is the bytes that it consists of.
    Type key_type_of(const char* format) noexcept
    View key_view_of(const ArrowSchema* schema, const ArrowArray* array, int64_t parent_offset, int64_t length) noexcept


# IN `array`: a result of `plain_array`. OUT `view`. Returns the object that has to stay alive while the view is read. A type that kernels
# do not read becomes TYPE_OTHER, which the caller has to refuse.
cdef object open_view(object array, View* view)
cdef object open_key(object array, View* view)  # the same for a key

# IN `array`: anything that `plain_array` takes. OUT `view`. Returns the object that has to stay alive while the view is read. Raises
# TypeError for another type than `type` (a temporal type differs from its integers), ValueError for nulls; both texts use `name`.
cdef object open_array(object array, View* view, Type type, str name)


cdef class Numbers:
    """An array of numbers without nulls, open for reading."""

    cdef object array               # keeps the memory alive
    cdef const void* values         # row 0; never NULL, even for an empty array, because NULL means that there is no array
    cdef int64_t length

    cdef inline const int32_t* int32(self) noexcept nogil:
        return <const int32_t*> self.values

    cdef inline const int64_t* int64(self) noexcept nogil:
        return <const int64_t*> self.values

    cdef inline const uint64_t* uint64(self) noexcept nogil:
        return <const uint64_t*> self.values


# IN `data`: anything that `plain_array` takes. Raises TypeError where it is not of the pa.DataType `data_type`; ValueError where it has
# nulls, or another length (-1: any). The texts of the errors use `name`.
cdef Numbers numbers_of(object data, object data_type, str name, int64_t length)

# The row numbers of a selection, as `numbers_of` gives them. For None, which selects all rows, `values` is NULL and the length is `rows`.
# Raises IndexError for a number that is not below `rows`.
cdef Numbers rows_of(object selection, int64_t rows)

# A pa.Array of the pa.DataType `kind` with `size` values, to be filled through `data` (OUT). Bits are not set to 0.
cdef object new_array(object kind, int64_t size, void** data)

# Copies of the values, as a pa.Int32Array and a pa.Int64Array.
cdef object int32_array(const vector[int32_t]& values)
cdef object int64_array(const vector[int64_t]& values)
