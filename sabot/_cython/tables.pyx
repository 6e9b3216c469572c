"""Groups of keyed tables as keys and values of a database, and back; and a filter over key hashes. See tables.pyi.

Bytes objects can be made only with the GIL, so `pack` and `unpack` keep it; they call no Python code per row.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.columns cimport TYPE_INT32, TYPE_UINT64, Type, View, open_view

from sabot.errors import UserError

__all__ = ["KeyFilter", "RowCodec", "give_back", "places"]

cdef extern from "Python.h":
    object PySequence_Fast(object, const char* message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    PyObject** PySequence_Fast_ITEMS(object)

cdef extern from *:
    """
    #include <cmath>
    #include <cstdint>
    #include <cstring>
    #ifdef __GLIBC__
    #include <malloc.h>
    static inline void sabot_give_back() { malloc_trim(0); }
    #else
    static inline void sabot_give_back() {}
    #endif

    static inline void sabot_put_big64(uint8_t* out, uint64_t word) {
        for (int i = 0; i < 8; i++) out[i] = (uint8_t)(word >> (56 - 8 * i));
    }
    // In place: the one form of a float that is a key.
    static inline void sabot_key_double(uint8_t* data) {
        double value;
        std::memcpy(&value, data, 8);
        if (std::isnan(value)) { const uint64_t bits = 0x7ff8000000000000ULL; std::memcpy(data, &bits, 8); }
        else if (value == 0.0) std::memset(data, 0, 8);
    }
    static inline void sabot_key_float(uint8_t* data) {
        float value;
        std::memcpy(&value, data, 4);
        if (std::isnan(value)) { const uint32_t bits = 0x7fc00000U; std::memcpy(data, &bits, 4); }
        else if (value == 0.0f) std::memset(data, 0, 4);
    }
    // The word of a filter of `words` words where a hash has its bits, and these bits: 4 of 64.
    static inline uint64_t sabot_filter_word(uint64_t hash, uint64_t words) {
        return (uint64_t)(((unsigned __int128)(hash * 0x9e3779b97f4a7c15ULL) * words) >> 64);
    }
    static inline uint64_t sabot_filter_bits(uint64_t hash) {
        return 1ULL << (hash & 63) | 1ULL << (hash >> 6 & 63) | 1ULL << (hash >> 12 & 63) | 1ULL << (hash >> 18 & 63);
    }
    """
    void put_big64 "sabot_put_big64"(uint8_t* out, uint64_t word) noexcept nogil
    void key_double "sabot_key_double"(uint8_t* data) noexcept nogil
    void key_float "sabot_key_float"(uint8_t* data) noexcept nogil
    uint64_t filter_word "sabot_filter_word"(uint64_t hash, uint64_t words) noexcept nogil
    uint64_t filter_bits "sabot_filter_bits"(uint64_t hash) noexcept nogil
    void _give_back "sabot_give_back"() noexcept nogil

cdef enum:
    HEAD_BYTES = 16           # pane and place
    GROUP_BITS = 10           # of a hash: KEY_GROUPS is 1024
    FIRST_LEVEL = 1 << 14     # keys that the first level of a filter is made for
    KEYS_PER_WORD = 5         # of a filter that is full
    MAX_DATA = 0x7FFFFFFF     # bytes in the data buffer of one string or binary array


cdef object _open_words(object array, View* view, Type type):
    """Fills `view` from an array of this type without nulls; -> what has to stay alive while it is read."""
    alive = open_view(array, view)
    if view.temporal or view.type != type or array.null_count:
        raise TypeError(f"{array.type} with {array.null_count} nulls where numbers of another type were expected")
    return alive


def places(hashes):
    """Key hash -> where the key stands in a database: the 10 bits of its key group first, then the rest of the hash."""
    cdef View column
    cdef object alive = _open_words(hashes, &column, TYPE_UINT64)
    cdef object buffer = pa.allocate_buffer(column.length * 8)
    cdef uint64_t* out = <uint64_t*> <size_t> buffer.address
    cdef const uint64_t* words = column.uint64s()
    cdef int64_t row
    with nogil:
        for row in range(column.length):
            out[row] = words[row] >> GROUP_BITS | words[row] << (64 - GROUP_BITS)
    return pa.Array.from_buffers(pa.uint64(), column.length, [None, buffer])


# Rows of columns <-> bytes

cdef enum Form:
    FORM_FIXED    # `width` bytes
    FORM_BOOL     # a bit in Arrow, a byte here
    FORM_BYTES    # 4 bytes of length, bytes


cdef struct Field:
    Form form
    int64_t width      # of FORM_FIXED
    bint real          # a float
    bint as_key


cdef struct Target:
    # A column being read back. OUT.
    uint8_t* values
    uint8_t* validity
    int32_t* offsets
    int64_t nulls


cdef class RowCodec:
    """Rows of columns <-> bytes. See tables.pyi for the format."""

    cdef vector[Field] fields
    cdef list types, storage    # the types of the columns, and as what the kernel reads them

    def __init__(self, types, *, bint as_keys=False):
        cdef Field field
        self.types = list(types)
        self.storage = [_storage(kind) for kind in self.types]
        for kind in self.storage:
            field.real = pa.types.is_floating(kind)
            field.as_key = as_keys
            field.width = 0
            if pa.types.is_boolean(kind):
                field.form = FORM_BOOL
            elif pa.types.is_string(kind) or pa.types.is_binary(kind):
                field.form = FORM_BYTES
            else:
                field.form = FORM_FIXED
                field.width = kind.bit_width // 8
            self.fields.push_back(field)

    def pack(self, columns, *, int64_t pane=0, heads=None):
        """With `heads`, each row begins with the pane (8 bytes that sort as the number does) and its head."""
        cdef vector[View] opened
        cdef View column, head
        cdef int64_t row, length = -1, before = 0
        cdef list alive = []
        if len(columns) != len(self.types):
            raise TypeError(f"{len(columns)} columns for a codec of {len(self.types)}")
        for array, kind, storage in zip(columns, self.types, self.storage):
            if array.type != kind:
                raise TypeError(f"a column is {array.type}, the codec was made for {kind}")
            alive.append(open_view(array if storage is kind else array.view(storage), &column))
            if length >= 0 and column.length != length:
                raise ValueError(f"columns of {length} and of {column.length} rows")
            length = column.length
            opened.push_back(column)
        cdef const uint64_t* head_words = NULL
        if heads is not None:
            alive.append(_open_words(heads, &head, TYPE_UINT64))
            head_words = head.uint64s()
            if length >= 0 and head.length != length:
                raise ValueError(f"{head.length} heads for {length} rows")
            length = head.length
            before = HEAD_BYTES
        cdef list rows = PyList_New(max(length, 0))
        cdef uint8_t* out
        cdef bytes packed
        for row in range(length):
            packed = PyBytes_FromStringAndSize(NULL, before + self.size_of(opened, row))
            out = <uint8_t*> PyBytes_AS_STRING(packed)
            if before:
                put_big64(out, <uint64_t> pane ^ (<uint64_t> 1 << 63))
                put_big64(out + 8, head_words[row])
            self.put(out + before, opened, row)
            Py_INCREF(packed)
            PyList_SET_ITEM(rows, row, packed)
        return rows

    def unpack(self, rows, *, int64_t skip=0):
        """The columns of packed rows, without their first `skip` bytes."""
        cdef object items = PySequence_Fast(rows, b"unpack needs a sequence of bytes")
        cdef int64_t count = PySequence_Fast_GET_SIZE(items), row, bits, size, place
        cdef PyObject** item = PySequence_Fast_ITEMS(items)
        cdef int64_t number = self.fields.size(), i
        cdef vector[int64_t] totals
        cdef vector[Target] targets
        cdef Target target
        cdef const uint8_t* data
        cdef uint32_t length = 0
        bits = (number + 7) >> 3
        totals.resize(number)
        # first how many bytes the strings have, and that every row is whole
        for row in range(count):
            if not PyBytes_Check(<object> item[row]):
                raise TypeError(f"row {row} is {type(<object> item[row]).__name__}, not bytes")
            size = PyBytes_GET_SIZE(<object> item[row])
            data = <const uint8_t*> PyBytes_AS_STRING(<object> item[row])
            place = skip + bits
            if place <= size:
                for i in range(number):
                    if not data[skip + (i >> 3)] >> (i & 7) & 1:
                        continue
                    if self.fields[i].form != FORM_BYTES:
                        place += 1 if self.fields[i].form == FORM_BOOL else self.fields[i].width
                        continue
                    if place + 4 > size:
                        place = size + 1
                        break
                    memcpy(&length, data + place, 4)
                    place += 4 + <int64_t> length
                    totals[i] += length
            if place != size:
                raise ValueError(f"row {row} of {size} bytes is no packed row of {self.types}")
        cdef list buffers = []
        for i in range(number):
            validity = pa.allocate_buffer((count + 7) >> 3)
            target.validity = <uint8_t*> <size_t> validity.address
            memset(target.validity, 0, (count + 7) >> 3)
            target.nulls = 0
            target.offsets = NULL
            if self.fields[i].form == FORM_BYTES:
                if totals[i] > MAX_DATA:
                    raise UserError(f"{totals[i]} bytes do not fit one Arrow array (2 GiB)")
                offsets = pa.allocate_buffer((count + 1) * 4)
                target.offsets = <int32_t*> <size_t> offsets.address
                target.offsets[0] = 0
                values = pa.allocate_buffer(totals[i])
                buffers.append([validity, offsets, values])
            elif self.fields[i].form == FORM_BOOL:
                values = pa.allocate_buffer((count + 7) >> 3)
                buffers.append([validity, values])
            else:
                values = pa.allocate_buffer(count * self.fields[i].width)
                buffers.append([validity, values])
            target.values = <uint8_t*> <size_t> values.address
            memset(target.values, 0, values.size)
            targets.push_back(target)
        for row in range(count):
            data = <const uint8_t*> PyBytes_AS_STRING(<object> item[row]) + skip
            self.take(targets, row, data, data + bits)
        arrays = []
        for i in range(number):
            if targets[i].nulls == 0:
                buffers[i][0] = None
            arrays.append(pa.Array.from_buffers(self.types[i], count, buffers[i], targets[i].nulls))
        return arrays

    cdef int64_t size_of(self, const vector[View]& columns, int64_t row) noexcept:
        cdef int64_t size = (<int64_t> self.fields.size() + 7) >> 3, i, length
        for i in range(<int64_t> self.fields.size()):
            if not columns[i].valid(row):
                continue
            if self.fields[i].form == FORM_BYTES:
                columns[i].bytes_at(row, &length)
                size += 4 + length
            else:
                size += 1 if self.fields[i].form == FORM_BOOL else self.fields[i].width
        return size

    cdef void put(self, uint8_t* out, const vector[View]& columns, int64_t row) noexcept:
        cdef int64_t bits = (<int64_t> self.fields.size() + 7) >> 3, i, size
        cdef const uint8_t* data
        cdef uint8_t* place = out + bits
        cdef uint32_t length
        memset(out, 0, bits)
        for i in range(<int64_t> self.fields.size()):
            if not columns[i].valid(row):
                continue
            out[i >> 3] |= <uint8_t> (1 << (i & 7))
            if self.fields[i].form == FORM_BYTES:
                data = columns[i].bytes_at(row, &size)
                length = <uint32_t> size
                memcpy(place, &length, 4)
                if size:
                    memcpy(place + 4, data, size)
                place += 4 + size
            elif self.fields[i].form == FORM_BOOL:
                place[0] = columns[i].truth(row)
                place += 1
            else:
                size = self.fields[i].width
                memcpy(place, <const uint8_t*> columns[i].values + (columns[i].start + row) * size, size)
                if self.fields[i].real and self.fields[i].as_key:
                    if size == 8:
                        key_double(place)
                    else:
                        key_float(place)
                place += size

    cdef void take(self, vector[Target]& targets, int64_t row, const uint8_t* present, const uint8_t* place) noexcept:
        """The other way round. Rows come in order."""
        cdef int64_t i, size
        cdef uint32_t length
        cdef Target* target
        for i in range(<int64_t> self.fields.size()):
            target = &targets[i]
            if self.fields[i].form == FORM_BYTES:
                target.offsets[row + 1] = target.offsets[row]
            if not present[i >> 3] >> (i & 7) & 1:
                target.nulls += 1
                continue
            target.validity[row >> 3] |= <uint8_t> (1 << (row & 7))
            if self.fields[i].form == FORM_BYTES:
                memcpy(&length, place, 4)
                if length:
                    memcpy(target.values + target.offsets[row], place + 4, length)
                target.offsets[row + 1] += <int32_t> length
                place += 4 + <int64_t> length
            elif self.fields[i].form == FORM_BOOL:
                target.values[row >> 3] |= <uint8_t> (place[0] << (row & 7))
                place += 1
            else:
                size = self.fields[i].width
                memcpy(target.values + row * size, place, size)
                place += size


cdef object _storage(object kind):
    """As what the kernel reads a column of this type: the type itself, or an integer of the same width."""
    types = pa.types
    if types.is_date32(kind) or types.is_time32(kind):
        return pa.int32()
    if types.is_date64(kind) or types.is_time64(kind) or types.is_timestamp(kind) or types.is_duration(kind):
        return pa.int64()
    if (
        types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
        or types.is_string(kind) or types.is_binary(kind)
    ):  # fmt: skip
        return kind
    raise TypeError(f"groups with {kind} cannot be kept in a database")


def give_back():
    """Memory that was freed goes back to the system, where the C library keeps it otherwise (glibc)."""
    with nogil:
        _give_back()


# The filter

cdef class KeyFilter:
    """A Bloom filter over key hashes that grows: a new level, four times as large, when one is full.

    All bits of a key stand in one word, so a look costs one cache line a level (Putze, Sanders, Singler: Cache-, hash- and
    space-efficient Bloom filters, 2007).
    """

    cdef vector[vector[uint64_t]] levels
    cdef int64_t room    # keys that still go into the last level

    def __init__(self):
        self.room = 0

    def add(self, hashes):
        cdef View column
        cdef object alive = _open_words(hashes, &column, TYPE_UINT64)
        cdef const uint64_t* words = column.uint64s()
        cdef uint64_t* level
        cdef int64_t row
        with nogil:
            for row in range(column.length):
                if self.has(words[row]):
                    continue
                if self.room == 0:
                    self.grow()
                self.room = self.room - 1
                level = self.levels.back().data()  # through a pointer: Cython would change a copy of the vector
                level[filter_word(words[row], self.levels.back().size())] |= filter_bits(words[row])

    cdef bint has(self, uint64_t hash) noexcept nogil:
        cdef uint64_t bits = filter_bits(hash)
        cdef size_t level
        for level in range(self.levels.size()):
            if self.levels[level].data()[filter_word(hash, self.levels[level].size())] & bits == bits:
                return True
        return False

    cdef void grow(self) noexcept nogil:
        cdef int64_t keys = FIRST_LEVEL << (2 * self.levels.size())
        self.levels.push_back(vector[uint64_t](keys // KEYS_PER_WORD + 1))
        self.room = keys

    def candidates(self, hashes, rows):
        """Those of the rows whose hash was perhaps added, in order. `hashes` is of all rows."""
        cdef View column, picked
        cdef object alive = _open_words(hashes, &column, TYPE_UINT64), alive_rows = _open_words(rows, &picked, TYPE_INT32)
        cdef const uint64_t* words = column.uint64s()
        cdef const int32_t* row = picked.int32s()
        cdef object buffer = pa.allocate_buffer(picked.length * 4, resizable=True)
        cdef int32_t* out = <int32_t*> <size_t> buffer.address
        cdef int64_t i, found = 0
        with nogil:
            for i in range(picked.length):
                if row[i] < 0 or row[i] >= column.length:
                    with gil:
                        raise IndexError(f"row {row[i]} of {column.length}")
                if self.has(words[row[i]]):
                    out[found] = row[i]
                    found += 1
        return pa.Array.from_buffers(pa.int32(), found, [None, buffer])

    @property
    def nbytes(self):
        cdef int64_t total = 0
        cdef size_t level
        for level in range(self.levels.size()):
            total += <int64_t> self.levels[level].size() * 8
        return total
