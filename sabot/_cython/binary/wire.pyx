"""The header of Confluent's registry in payloads: a byte 0, the schema id in 4 bytes (highest first), then the
message.
"""

from cython.operator cimport dereference
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_BYTES, TYPE_TEXT, View, int32_array, open_view

__all__ = ["HEADER_BYTES", "schema_ids"]

HEADER_BYTES = 5


def schema_ids(payloads):
    """Reads the schema ids at the beginning of the payloads. See wire.pyi."""
    cdef View view
    keep = open_view(plain_array(payloads), &view)  # kept alive while its buffers are read
    if view.type != TYPE_BYTES and view.type != TYPE_TEXT:
        raise TypeError(f"payloads must be binary, not {payloads.type}")
    cdef vector[int64_t] ids  # in the order of first appearance; -1 stands for no header
    cdef vector[int32_t] which
    cdef unordered_map[int64_t, int32_t] places
    cdef int64_t n = view.length, row, size, last = -2, found
    cdef int32_t place = 0
    cdef unordered_map[int64_t, int32_t].iterator known
    cdef const uint8_t* p
    which.resize(n)
    with nogil:
        for row in range(n):
            found = -1
            if view.valid(row):
                p = view.bytes_at(row, &size)
                if size >= 5 and p[0] == 0:
                    found = <int64_t> (<uint32_t> p[1] << 24 | <uint32_t> p[2] << 16 | <uint32_t> p[3] << 8 | <uint32_t> p[4])
            if found != last:
                known = places.find(found)
                if known != places.end():
                    place = dereference(known).second
                else:
                    place = <int32_t> ids.size()
                    places[found] = place
                    ids.push_back(found)
                last = found
            which[row] = place
    return [None if each < 0 else each for each in ids], None if ids.size() < 2 else int32_array(which)
