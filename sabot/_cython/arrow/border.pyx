"""Checks Arrow data from outside before a kernel follows its offsets. See border.pyi for the contract."""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t

__all__ = ["validate"]


cdef extern from "arrow/utf8.h" namespace "sabot" nogil:
    # length of the sequence at p, whose first byte is >= 0x80; 0 if invalid
    int utf8_length(const uint8_t* p, const uint8_t* end) noexcept


ctypedef fused Offset:
    int32_t
    int64_t


cdef enum:
    BLOCK = 512  # bytes that are checked at once, in a loop without an exit, which compilers vectorise
    FOREIGN = 24  # above so many characters in a block that are not ASCII, pyarrow's check is faster

cdef dict TEXTS = {  # type: (bytes per offset, True for text)
    pa.string(): (4, True),
    pa.binary(): (4, False),
    pa.large_string(): (8, True),
    pa.large_binary(): (8, False),
}


def validate(batch):
    """Raises pa.ArrowInvalid, naming the column, for a batch whose data does not conform to its types."""
    for name, column in zip(batch.schema.names, batch.columns):
        try:
            column.validate()  # checks the sizes of buffers and the outermost offsets, on which the loops below rely
            kind = TEXTS.get(column.type)
            if kind is None or not sound(column, kind[0], kind[1]):
                column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise pa.ArrowInvalid(f"column {name!r}: {error}") from error


cdef bint sound(object array, int width, bint text) except -1:
    """Returns True if the values are consecutive and, for text, valid UTF-8.

    False means that pyarrow has to decide: bytes of null rows are checked here too, and text with few ASCII blocks is
    not read to its end.
    """
    cdef int64_t n = len(array)
    if n == 0:
        return False
    _, offsets, data = array.buffers()
    cdef uintptr_t at = <uintptr_t> offsets.address + <uintptr_t> (array.offset * width)
    cdef const uint8_t* values = NULL
    if data is not None and text:
        values = <const uint8_t*> <uintptr_t> data.address
    if at % width:
        return False
    with nogil:
        if width == 4:
            return in_order(<const int32_t*> at, n) and (values == NULL or is_utf8(<const int32_t*> at, values, n))
        return in_order(<const int64_t*> at, n) and (values == NULL or is_utf8(<const int64_t*> at, values, n))


cdef bint in_order(const Offset* offsets, int64_t n) noexcept nogil:
    cdef int64_t i
    cdef int back = 0
    for i in range(n):
        back |= offsets[i + 1] < offsets[i]
    return back == 0


cdef bint is_utf8(const Offset* offsets, const uint8_t* data, int64_t n) noexcept nogil:
    """Returns True if each value between these ascending offsets is UTF-8.

    The values are read as one text. If the text is valid and no value begins in the middle of a character, each value
    is valid.
    """
    cdef const uint8_t* end = data + offsets[n]
    cdef const uint8_t* p = after_ascii(data + offsets[0], end)
    cdef const uint8_t* stop
    cdef int length, foreign
    cdef int64_t i
    cdef int inside = 0
    if p == end:
        return True
    while p < end:
        stop = p + min(BLOCK, end - p)
        foreign = 0
        while p < stop:
            if p[0] < 0x80:
                p += 1
                continue
            length = utf8_length(p, end)
            foreign += 1
            if length == 0 or foreign > FOREIGN:
                return False
            p += length
        p = after_ascii(p, end)
    for i in range(n):
        if data + offsets[i] < end:
            inside |= (data[offsets[i]] & 0xC0) == 0x80
    return inside == 0


cdef const uint8_t* after_ascii(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Returns the address of the first block that is not all ASCII, or `end`."""
    cdef int64_t i, size
    cdef uint8_t seen
    while p < end:
        seen = 0
        if end - p >= BLOCK:
            for i in range(BLOCK):
                seen |= p[i]
            size = BLOCK
        else:
            size = end - p
            for i in range(size):
                seen |= p[i]
        if seen & 0x80:
            return p
        p += size
    return end
