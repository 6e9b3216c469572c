"""Comparisons of strings with constants. See compare.pyi for the contract; the loops over rows are in compare.h."""

import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_BYTES, TYPE_TEXT, View, open_view

__all__ = ["LITERALS", "LiteralSet", "contains", "equal_literal", "starts_with"]


cdef extern from "arrow/compare.h" namespace "sabot" nogil:
    cppclass Strings:
        const int32_t* offsets
        const uint8_t* data
        int64_t length

    cppclass CLiteralSet "sabot::LiteralSet":
        void add(const uint8_t* data, int64_t size) except +
        void ready() except +
        void match(const Strings& strings, int skip, uint8_t* out) noexcept

    void equal_to(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) noexcept
    void begin_with(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) noexcept
    void contain(const Strings& strings, const uint8_t* wanted, int32_t size, int skip, uint8_t* out) noexcept


LITERALS = 256
cdef object _BOOL = pa.bool_()
cdef int64_t MAX_SIZE = 2**31 - 1


cdef class _Answer:
    """The strings to read, and one bit to write for each. The result shares the validity bitmap of the strings."""

    cdef object array           # keeps the memory of the strings alive
    cdef object buffer          # keeps the memory of `out` alive
    cdef Strings strings
    cdef int skip               # the bit of row 0 in the first byte of `out`; the same as in the validity bitmap
    cdef uint8_t* out

    cdef object finish(self):
        cdef int64_t nulls = self.array.null_count if self.strings.length else 0
        validity = None
        if nulls:
            validity = self.array.buffers()[0].slice(self.array.offset // 8)
        return pa.Array.from_buffers(_BOOL, self.strings.length, [validity, self.buffer], nulls, self.skip)


cdef _Answer _answer(object data):
    array = plain_array(data)
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type != TYPE_TEXT and view.type != TYPE_BYTES:
        raise TypeError(f"strings must be string or binary, not {array.type}")
    cdef _Answer answer = _Answer()
    answer.array = array
    answer.strings.length = view.length
    answer.strings.offsets = view.offsets + view.start if view.length else NULL
    answer.strings.data = view.data
    answer.skip = array.offset & 7
    answer.buffer = pa.allocate_buffer((answer.skip + view.length + 7) // 8)
    answer.out = <uint8_t*> <size_t> answer.buffer.address
    return answer


cdef int32_t _size(bytes value) except -1:
    if PyBytes_GET_SIZE(value) > MAX_SIZE - 8:
        raise ValueError(f"a constant of {PyBytes_GET_SIZE(value)} bytes is longer than a string can be")
    return <int32_t> PyBytes_GET_SIZE(value)


ctypedef void (*Match)(const Strings&, const uint8_t*, int32_t, int, uint8_t*) noexcept nogil


cdef object _matched(object strings, bytes value, Match match):
    cdef int32_t size = _size(value)
    cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(value)
    cdef _Answer answer = _answer(strings)
    with nogil:
        match(answer.strings, data, size, answer.skip, answer.out)
    return answer.finish()


def equal_literal(strings, bytes value not None):
    """Returns True for each string that equals `value`, compared as bytes; null for null."""
    return _matched(strings, value, equal_to)


def starts_with(strings, bytes value not None):
    """Returns True for each string that begins with `value`, compared as bytes; null for null."""
    return _matched(strings, value, begin_with)


def contains(strings, bytes value not None):
    """Returns True for each string that contains `value`, compared as bytes; null for null."""
    return _matched(strings, value, contain)


cdef class LiteralSet:
    """A set of at most LITERALS constants (else ValueError), in which strings are looked up. Several threads may use
    it.
    """

    cdef CLiteralSet values

    def __cinit__(self, values):
        given = list(values)
        if len(given) > LITERALS:
            raise ValueError(f"{len(given)} constants were given, and at most {LITERALS} are allowed")
        for value in given:
            if not isinstance(value, bytes):
                raise TypeError(f"a constant must be bytes, not {type(value).__name__}")
            self.values.add(<const uint8_t*> PyBytes_AS_STRING(value), _size(value))
        self.values.ready()

    def holds(self, strings):
        """Returns True for each string that is among the constants, compared as bytes; null for null."""
        cdef _Answer answer = _answer(strings)
        with nogil:
            self.values.match(answer.strings, answer.skip, answer.out)
        return answer.finish()
