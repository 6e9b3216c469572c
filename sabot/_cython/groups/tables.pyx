"""Functions of key hashes for state in a database: the position of a key, and a filter over the keys that exist. See
tables.pyi.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.columns cimport TYPE_INT32, TYPE_UINT64, View, open_array

__all__ = ["KeyFilter", "give_back", "places"]

cdef extern from *:
    """
    #include <cstdint>
    #ifdef __GLIBC__
    #include <malloc.h>
    static inline void sabot_give_back() { malloc_trim(0); }
    #else
    static inline void sabot_give_back() {}
    #endif

    // The word of a filter of `words` words where a hash has its bits, and these bits: 4 of 64.
    static inline uint64_t sabot_filter_word(uint64_t hash, uint64_t words) {
        return (uint64_t)(((unsigned __int128)(hash * 0x9e3779b97f4a7c15ULL) * words) >> 64);
    }
    static inline uint64_t sabot_filter_bits(uint64_t hash) {
        return 1ULL << (hash & 63) | 1ULL << (hash >> 6 & 63) | 1ULL << (hash >> 12 & 63) | 1ULL << (hash >> 18 & 63);
    }
    """
    uint64_t filter_word "sabot_filter_word"(uint64_t hash, uint64_t words) noexcept nogil
    uint64_t filter_bits "sabot_filter_bits"(uint64_t hash) noexcept nogil
    void _give_back "sabot_give_back"() noexcept nogil

cdef enum:
    GROUP_BITS = 10           # the bits of a hash that are the key group: KEY_GROUPS is 1024
    FIRST_LEVEL = 1 << 14     # the number of keys for which the first level of a filter is made
    KEYS_PER_WORD = 5         # a level is full at so many


def places(hashes):
    """Returns the position of each key in a database, from its hash: the 10 bits of its key group first, then the
    rest of the hash.
    """
    cdef View column
    cdef object alive = open_array(hashes, &column, TYPE_UINT64, "hashes")
    cdef object buffer = pa.allocate_buffer(column.length * 8)
    cdef uint64_t* out = <uint64_t*> <size_t> buffer.address
    cdef const uint64_t* words = column.uint64s()
    cdef int64_t row
    with nogil:
        for row in range(column.length):
            out[row] = words[row] >> GROUP_BITS | words[row] << (64 - GROUP_BITS)
    return pa.Array.from_buffers(pa.uint64(), column.length, [None, buffer])


def give_back():
    """Returns freed memory to the system; the C library (glibc) would keep it otherwise."""
    with nogil:
        _give_back()


# The filter

cdef class KeyFilter:
    """A Bloom filter over key hashes that grows: when a level is full, a new one is added that is four times as
    large.

    All bits of a key are in one word, so a lookup reads one cache line per level (Putze, Sanders, Singler: Cache-,
    hash- and space-efficient Bloom filters, 2007).
    """

    cdef vector[vector[uint64_t]] levels
    cdef int64_t room    # how many more keys fit into the last level

    def __init__(self):
        self.room = 0

    def add(self, hashes):
        cdef View column
        cdef object alive = open_array(hashes, &column, TYPE_UINT64, "hashes")
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
                level = self.levels.back().data()  # through a pointer, because Cython would copy the vector
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
        """Returns those of the rows, in order, whose hash may have been added. `hashes`: the hashes of all rows."""
        cdef View column, picked
        cdef object alive = open_array(hashes, &column, TYPE_UINT64, "hashes"), alive_rows = open_array(rows, &picked, TYPE_INT32, "rows")
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
