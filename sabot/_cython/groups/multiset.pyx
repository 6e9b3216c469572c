"""State of aggregates over changes, by slot. See multiset.pyi for the contract; the loops are in multiset_store.h,
multiset_distinct.h and multiset_sums.h.

Slots and sizes are checked here; then the call runs without the GIL.
"""

import numpy as np
import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

__all__ = ["Arrivals", "DistinctNumbers", "ExactSums", "Multisets", "join_keys", "split_keys"]


cdef extern from "<string_view>" namespace "std" nogil:
    cppclass string_view:
        string_view()
        string_view(const char* data, size_t size)


cdef extern from "groups/multiset_store.h" namespace "sabot" nogil:
    cppclass Strings:
        vector[int64_t] ends
        vector[uint8_t] valid
        string data

    cppclass Reader:
        const char* at
        const char* end
        string_view bytes(size_t size) except +

    cppclass MultisetStore "sabot::Multisets":
        int64_t nbytes()
        void add(int32_t slot, string_view key, int64_t by) except +
        void differing(const int32_t* slots, int64_t count, int64_t* out)
        void least(const int32_t* slots, int64_t count, string_view last_resort, Strings& out) except +
        void greatest(const int32_t* slots, int64_t count, string_view last_resort, Strings& out) except +
        void first_of_greatest(const int32_t* slots, int64_t count, int64_t width, string_view ending, Strings& out) except +
        void best(const int32_t* slots, int64_t count, int64_t most, int64_t* sizes, Strings& out) except +
        void save(const int32_t* slots, int64_t count, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size) except +
        void remove(const int32_t* slots, int64_t count) except +
        void clear()

    cppclass ArrivalStore "sabot::Arrivals":
        int64_t nbytes()
        void add(int32_t slot, int64_t order, string_view value) except +
        cbool take(int32_t slot, int64_t order, string_view value) except +
        void ends_of(const int32_t* slots, int64_t count, cbool last, Strings& out) except +
        void all(const int32_t* slots, int64_t count, int64_t* sizes, Strings& out) except +
        void save(const int32_t* slots, int64_t count, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size) except +
        void remove(const int32_t* slots, int64_t count) except +
        void clear()

    void append_escaped(string& out, const char* data, int64_t size) except +
    void read_escaped(Reader& reader, string& out) except +
    void append_bytes(string& out, Reader& reader, int64_t size) except +


cdef extern from "groups/multiset_distinct.h" namespace "sabot" nogil:
    cppclass DistinctStore "sabot::DistinctNumbers":
        DistinctStore(int filters) except +
        int64_t nbytes()
        void add(int32_t slot, uint64_t word, uint32_t filters) except +
        void differing(const int32_t* slots, int64_t count, int filter, int64_t* out)
        void save(const int32_t* slots, int64_t count, int filter, int width, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size, int filter, int width) except +
        void remove(const int32_t* slots, int64_t count) except +
        void clear() except +


cdef extern from "groups/multiset_sums.h" namespace "sabot" nogil:
    cppclass SumStore "sabot::ExactSums":
        SumStore(cbool squares) except +
        int64_t nbytes()
        void add_real(int32_t slot, double value, cbool take) except +
        void add_words(int32_t slot, const uint64_t* words, int count, cbool is_signed, cbool take) except +
        void sums(const int32_t* slots, int64_t count, double* values, uint8_t* valid) except +
        void means(const int32_t* slots, int64_t count, double* values, uint8_t* valid) except +
        void variances(const int32_t* slots, int64_t count, int64_t ddof, double* values, uint8_t* valid) except +
        int64_t whole(const int32_t* slots, int64_t count, int width, uint64_t* words, uint8_t* valid) except +
        void save(const int32_t* slots, int64_t count, Strings& out) except +
        void load(int32_t slot, const char* data, int64_t size) except +
        void remove(const int32_t* slots, int64_t count) except +
        void clear()


cdef object _LARGE_BINARY = pa.large_binary()
cdef const char* _NOTHING = b""


# Slots and byte strings

cdef class _Slots:
    """An array of slots, none of them negative."""

    cdef object array               # keeps the memory alive
    cdef const int32_t* values
    cdef int64_t count


cdef _Slots _slots(object slots):
    cdef _Slots result = _Slots()
    cdef const int32_t[::1] view
    cdef int64_t i
    array = np.ascontiguousarray(slots, np.int32)
    result.array = array
    result.count = len(array)
    result.values = NULL
    if result.count:
        view = array
        result.values = &view[0]
        for i in range(result.count):
            if result.values[i] < 0:
                raise IndexError(f"there is no slot {result.values[i]}")
    return result


cdef class _Bytes:
    """An array of binary or large binary without nulls, open for reading."""

    cdef object array
    cdef const int32_t* narrow      # offsets, or NULL
    cdef const int64_t* wide
    cdef const char* data
    cdef int64_t count

    cdef inline string_view at(self, int64_t i) noexcept nogil:
        if self.narrow != NULL:
            return string_view(self.data + self.narrow[i], <size_t> (self.narrow[i + 1] - self.narrow[i]))
        return string_view(self.data + self.wide[i], <size_t> (self.wide[i + 1] - self.wide[i]))

    cdef inline const char* begin(self, int64_t i) noexcept nogil:
        return self.data + (self.narrow[i] if self.narrow != NULL else self.wide[i])

    cdef inline int64_t size(self, int64_t i) noexcept nogil:
        return self.narrow[i + 1] - self.narrow[i] if self.narrow != NULL else self.wide[i + 1] - self.wide[i]


cdef _Bytes _bytes(object array, int64_t count):
    """Opens an array, which must have `count` values. Raises TypeError unless it is binary, ValueError for nulls or
    another length.
    """
    cdef _Bytes result = _Bytes()
    if array.type != _LARGE_BINARY and array.type != pa.binary():
        raise TypeError(f"values must be binary, not {array.type}")
    if array.null_count:
        raise ValueError("values must not be null")
    if len(array) != count:
        raise ValueError(f"{len(array)} values for {count} rows")
    result.array = array
    result.count = count
    result.narrow = NULL
    result.wide = NULL
    result.data = _NOTHING
    if count:
        _, offsets, data = array.buffers()
        if array.type == _LARGE_BINARY:
            result.wide = <const int64_t*> <size_t> offsets.address + <int64_t> array.offset
        else:
            result.narrow = <const int32_t*> <size_t> offsets.address + <int64_t> array.offset
        if data is not None and data.size:
            result.data = <const char*> <size_t> data.address
    return result


cdef object _large_binary(Strings& strings):
    """Returns the strings as a large binary array, null where a string is not valid."""
    cdef int64_t count = <int64_t> strings.ends.size()
    cdef int64_t[::1] to
    cdef uint8_t[::1] bits
    offsets = np.zeros(count + 1, np.int64)
    mask = np.zeros(count, np.uint8)
    if count:
        to = offsets
        bits = mask
        memcpy(&to[1], strings.ends.data(), count * 8)
        memcpy(&bits[0], strings.valid.data(), count)
    validity = None if mask.all() else pa.py_buffer(np.packbits(mask, bitorder="little"))
    data = pa.py_buffer(strings.data.data()[:strings.data.size()])
    return pa.Array.from_buffers(_LARGE_BINARY, count, [validity, pa.py_buffer(offsets), data])


cdef const uint8_t[::1] _flags(object flags, int64_t count):
    array = np.ascontiguousarray(flags).view(np.uint8)
    if len(array) != count:
        raise ValueError(f"{len(array)} flags for {count} rows")
    return array


# The methods of all stores

ctypedef fused Store:
    MultisetStore
    ArrivalStore
    SumStore


cdef object _save(Store* store, object slots):
    cdef _Slots numbers = _slots(slots)
    cdef Strings out
    with nogil:
        store.save(numbers.values, numbers.count, out)
    return _large_binary(out)


cdef object _load(Store* store, object slots, object states):
    cdef _Slots numbers = _slots(slots)
    cdef _Bytes saved = _bytes(states, numbers.count)
    cdef int64_t i
    with nogil:
        for i in range(numbers.count):
            store.load(numbers.values[i], saved.begin(i), saved.size(i))


cdef object _remove(Store* store, object slots):
    cdef _Slots numbers = _slots(slots)
    with nogil:
        store.remove(numbers.values, numbers.count)


# Keys of several columns

cdef cppclass Part:
    # One part of the keys, as an array.
    const int32_t* narrow           # offsets, or NULL
    const int64_t* wide
    const char* data
    int64_t width                   # bytes of each value, or -1 if they vary


def join_keys(parts, widths):
    """Joins the parts of each row into one key. See multiset.pyi."""
    cdef list opened = []           # keeps the memory alive
    cdef vector[Part] pieces
    cdef Part piece
    cdef _Bytes each
    cdef int64_t count = len(parts[0]), i, first, end, total = 0
    cdef size_t p
    cdef Strings out
    for array, width in zip(parts, widths, strict=True):
        each = _bytes(array, count)
        opened.append(each)
        piece.narrow, piece.wide, piece.data, piece.width = each.narrow, each.wide, each.data, width
        pieces.push_back(piece)
        if count:
            total += each.begin(count) - each.begin(0) + (2 * count if width < 0 else 0)
    with nogil:
        out.data.reserve(total)
        out.ends.reserve(count)
        out.valid.assign(count, 1)
        for i in range(count):
            for p in range(pieces.size()):
                if pieces[p].narrow != NULL:
                    first, end = pieces[p].narrow[i], pieces[p].narrow[i + 1]
                else:
                    first, end = pieces[p].wide[i], pieces[p].wide[i + 1]
                if pieces[p].width < 0:
                    append_escaped(out.data, pieces[p].data + first, end - first)
                else:
                    out.data.append(pieces[p].data + first, <size_t> (end - first))
            out.ends.push_back(<int64_t> out.data.size())
    return _large_binary(out)


def split_keys(keys, widths):
    """Splits keys into their parts. See multiset.pyi."""
    cdef _Bytes whole = _bytes(keys, len(keys))
    cdef size_t p, number = len(widths)
    cdef vector[int64_t] sizes = widths
    cdef vector[Strings] out
    cdef Reader reader
    cdef int64_t i
    out.resize(number)
    with nogil:
        for p in range(number):
            out[p].ends.reserve(whole.count)
            out[p].valid.assign(whole.count, 1)
        for i in range(whole.count):
            reader.at = whole.begin(i)
            reader.end = reader.at + whole.size(i)
            for p in range(number):
                if sizes[p] < 0:
                    read_escaped(reader, out[p].data)
                else:
                    append_bytes(out[p].data, reader, sizes[p])
                out[p].ends.push_back(<int64_t> out[p].data.size())
    return [_large_binary(out[p]) for p in range(number)]


# The stores

cdef class Multisets:
    """The distinct values of each slot, with counts. See multiset.pyi."""

    cdef MultisetStore store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add(self, slots, values, takes):
        cdef _Slots numbers = _slots(slots)
        cdef _Bytes keys = _bytes(values, numbers.count)
        cdef const uint8_t[::1] away = _flags(takes, numbers.count)
        cdef int64_t i
        with nogil:
            for i in range(numbers.count):
                self.store.add(numbers.values[i], keys.at(i), -1 if away[i] else 1)

    def differing(self, slots):
        cdef _Slots numbers = _slots(slots)
        result = np.zeros(numbers.count, np.int64)
        cdef int64_t[::1] out = result
        if numbers.count:
            with nogil:
                self.store.differing(numbers.values, numbers.count, &out[0])
        return result

    def least(self, slots, bytes last_resort=b"\xff" * 64):
        cdef _Slots numbers = _slots(slots)
        cdef string_view resort = string_view(<const char*> last_resort, <size_t> len(last_resort))
        cdef Strings out
        with nogil:
            self.store.least(numbers.values, numbers.count, resort, out)
        return _large_binary(out)

    def greatest(self, slots, bytes last_resort=b"\xff" * 64):
        cdef _Slots numbers = _slots(slots)
        cdef string_view resort = string_view(<const char*> last_resort, <size_t> len(last_resort))
        cdef Strings out
        with nogil:
            self.store.greatest(numbers.values, numbers.count, resort, out)
        return _large_binary(out)

    def first_of_greatest(self, slots, int64_t width):
        cdef _Slots numbers = _slots(slots)
        cdef string_view ending = string_view(<const char*> b"\x00\x00", 2)
        cdef Strings out
        with nogil:
            self.store.first_of_greatest(numbers.values, numbers.count, width, ending, out)
        return _large_binary(out)

    def best(self, slots, int64_t most):
        cdef _Slots numbers = _slots(slots)
        cdef Strings out
        sizes = np.zeros(numbers.count, np.int64)
        cdef int64_t[::1] counts = sizes
        if numbers.count:
            with nogil:
                self.store.best(numbers.values, numbers.count, most, &counts[0], out)
        return sizes, _large_binary(out)

    def save(self, slots):
        return _save(&self.store, slots)

    def load(self, slots, states):
        _load(&self.store, slots, states)

    def remove(self, slots):
        _remove(&self.store, slots)

    def clear(self):
        self.store.clear()


cdef class DistinctNumbers:
    """The distinct numbers of each slot, counted for several filters. See multiset.pyi."""

    cdef DistinctStore* store
    cdef readonly int filters
    cdef readonly int width

    def __cinit__(self, int filters, int width):
        if not 1 <= filters <= 32:
            raise ValueError(f"1 to 32 filters, not {filters}")
        if not 1 <= width <= 8:
            raise ValueError(f"a number has 1 to 8 bytes, not {width}")
        self.filters = filters
        self.width = width
        self.store = new DistinctStore(filters)

    def __dealloc__(self):
        del self.store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add(self, slots, words, filters):
        cdef _Slots numbers = _slots(slots)
        cdef const uint64_t[::1] values = np.ascontiguousarray(words, np.uint64)
        cdef const uint32_t[::1] bits = np.ascontiguousarray(filters, np.uint32)
        cdef int64_t i
        if len(values) != numbers.count or len(bits) != numbers.count:
            raise ValueError(f"{len(values)} numbers, and filters of {len(bits)} rows, for {numbers.count} rows")
        if (np.asarray(filters, np.uint32) >> np.uint32(self.filters - 1) > 1).any():
            raise IndexError(f"there are {self.filters} filters")
        with nogil:
            for i in range(numbers.count):
                self.store.add(numbers.values[i], values[i], bits[i])

    def differing(self, slots, int filter):
        self.check(filter)
        cdef _Slots numbers = _slots(slots)
        result = np.zeros(numbers.count, np.int64)
        cdef int64_t[::1] out = result
        if numbers.count:
            with nogil:
                self.store.differing(numbers.values, numbers.count, filter, &out[0])
        return result

    def save(self, slots, int filter):
        self.check(filter)
        cdef _Slots numbers = _slots(slots)
        cdef Strings out
        with nogil:
            self.store.save(numbers.values, numbers.count, filter, self.width, out)
        return _large_binary(out)

    def load(self, slots, states, int filter):
        self.check(filter)
        cdef _Slots numbers = _slots(slots)
        cdef _Bytes saved = _bytes(states, numbers.count)
        cdef int64_t i
        with nogil:
            for i in range(numbers.count):
                self.store.load(numbers.values[i], saved.begin(i), saved.size(i), filter, self.width)

    cdef int check(self, int filter) except -1:
        if not 0 <= filter < self.filters:
            raise IndexError(f"there is no filter {filter} of {self.filters}")
        return 0

    def remove(self, slots):
        cdef _Slots numbers = _slots(slots)
        with nogil:
            self.store.remove(numbers.values, numbers.count)

    def clear(self):
        self.store.clear()


cdef class Arrivals:
    """The values of each slot in order. See multiset.pyi."""

    cdef ArrivalStore store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add(self, slots, values, orders, takes):
        cdef _Slots numbers = _slots(slots)
        cdef _Bytes keys = _bytes(values, numbers.count)
        cdef const uint8_t[::1] away = _flags(takes, numbers.count)
        cdef const int64_t[::1] order = np.ascontiguousarray(orders, np.int64)
        cdef int64_t i, missing = 0
        if len(order) != numbers.count:
            raise ValueError(f"{len(order)} orders for {numbers.count} rows")
        with nogil:
            for i in range(numbers.count):
                if away[i]:
                    missing += not self.store.take(numbers.values[i], order[i], keys.at(i))
                else:
                    self.store.add(numbers.values[i], order[i], keys.at(i))
        return missing

    def first(self, slots):
        return self.ends_of(slots, False)

    def last(self, slots):
        return self.ends_of(slots, True)

    cdef object ends_of(self, object slots, cbool last):
        cdef _Slots numbers = _slots(slots)
        cdef Strings out
        with nogil:
            self.store.ends_of(numbers.values, numbers.count, last, out)
        return _large_binary(out)

    def all(self, slots):
        cdef _Slots numbers = _slots(slots)
        cdef Strings out
        sizes = np.zeros(numbers.count, np.int64)
        cdef int64_t[::1] counts = sizes
        if numbers.count:
            with nogil:
                self.store.all(numbers.values, numbers.count, &counts[0], out)
        return sizes, _large_binary(out)

    def save(self, slots):
        return _save(&self.store, slots)

    def load(self, slots, states):
        _load(&self.store, slots, states)

    def remove(self, slots):
        _remove(&self.store, slots)

    def clear(self):
        self.store.clear()


cdef class ExactSums:
    """Exact sums of each slot. See multiset.pyi."""

    cdef SumStore* store
    cdef readonly bint squares

    def __cinit__(self, bint squares=False):
        self.squares = squares
        self.store = new SumStore(squares)

    def __dealloc__(self):
        del self.store

    @property
    def nbytes(self):
        return self.store.nbytes()

    def add_reals(self, slots, values, takes):
        cdef _Slots numbers = _slots(slots)
        cdef const uint8_t[::1] away = _flags(takes, numbers.count)
        cdef const double[::1] reals = np.ascontiguousarray(values, np.float64)
        cdef int64_t i
        if len(reals) != numbers.count:
            raise ValueError(f"{len(reals)} values for {numbers.count} rows")
        with nogil:
            for i in range(numbers.count):
                self.store.add_real(numbers.values[i], reals[i], away[i])

    def add_words(self, slots, words, bint signed, takes):
        cdef _Slots numbers = _slots(slots)
        cdef const uint8_t[::1] away = _flags(takes, numbers.count)
        cdef const uint64_t[:, ::1] wide = np.ascontiguousarray(words, np.uint64)
        cdef int64_t i
        cdef int width = <int> wide.shape[1]
        if wide.shape[0] != numbers.count or not 1 <= width <= 4 or (self.squares and width > 1):
            raise ValueError(f"{wide.shape[0]} numbers of {width} words for {numbers.count} rows")
        with nogil:
            for i in range(numbers.count):
                self.store.add_words(numbers.values[i], &wide[i, 0], width, signed, away[i])

    def sums(self, slots):
        return self.result(slots, 0, 0)

    def means(self, slots):
        return self.result(slots, 1, 0)

    def variances(self, slots, int64_t ddof):
        if not self.squares:
            raise ValueError("variances need a store made with squares=True")
        return self.result(slots, 2, ddof)

    cdef object result(self, object slots, int what, int64_t ddof):
        cdef _Slots numbers = _slots(slots)
        values = np.zeros(numbers.count, np.float64)
        valid = np.zeros(numbers.count, np.uint8)
        cdef double[::1] out = values
        cdef uint8_t[::1] flags = valid
        if numbers.count:
            with nogil:
                if what == 0:
                    self.store.sums(numbers.values, numbers.count, &out[0], &flags[0])
                elif what == 1:
                    self.store.means(numbers.values, numbers.count, &out[0], &flags[0])
                else:
                    self.store.variances(numbers.values, numbers.count, ddof, &out[0], &flags[0])
        return pa.array(values, mask=valid == 0)

    def whole(self, slots, int width):
        cdef _Slots numbers = _slots(slots)
        if not 1 <= width <= 4:
            raise ValueError(f"a number has 1 to 4 words, not {width}")
        words = np.zeros((numbers.count, width), np.uint64)
        valid = np.zeros(numbers.count, np.uint8)
        cdef uint64_t[:, ::1] out = words
        cdef uint8_t[::1] flags = valid
        cdef int64_t beyond = -1
        if numbers.count:
            with nogil:
                beyond = self.store.whole(numbers.values, numbers.count, width, &out[0, 0], &flags[0])
        if beyond >= 0:
            raise OverflowError(f"the sum of slot {numbers.values[beyond]} has more than {64 * width} bits")
        return words, valid.view(bool)

    def save(self, slots):
        return _save(self.store, slots)

    def load(self, slots, states):
        _load(self.store, slots, states)

    def remove(self, slots):
        _remove(self.store, slots)

    def clear(self):
        self.store.clear()
