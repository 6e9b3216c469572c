"""Conversions between Python's bytes objects and Arrow columns, and the encoding of state keys and values.

See records.pyi for the contract. Bytes objects can be made only with the GIL, so these loops hold it; they call no
Python code per row.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

import msgspec
import pyarrow as pa

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_NOTHING, TYPE_OTHER, TYPE_UINT64, View, has_bytes, open_array, open_view
from sabot._cython.groups.partition cimport (
    KEY_GROUP_COUNT,
    group_of,
    key_size,
    put_array_head,
    put_bin_head,
    put_int,
    put_key,
    put_key_float,
    put_str_head,
    put_uint,
    put_value,
    value_size,
)

from sabot.errors import UserError

__all__ = [
    "binary_array",
    "bytes_list",
    "decode_values",
    "encode_keys",
    "encode_values",
    "key_rows",
    "state_key",
]

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    unsigned long long PyLong_AsUnsignedLongLong(object number) except? 0xFFFFFFFFFFFFFFFF
    bint PyLong_Check(object)
    bint PyUnicode_Check(object)
    object PySequence_Fast(object, const char* message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    PyObject** PySequence_Fast_ITEMS(object)

cdef enum:
    GROUP_BYTES = 2       # the bytes of the key group before every key, big endian
    DEPTH_LIMIT = 64      # the greatest nesting of tuples in a key
    MAX_DATA = 0x7FFFFFFF  # the most bytes in the data buffer of one string or binary array

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


# Bytes objects and binary arrays

def binary_array(values):
    """Returns an array of pa.binary() with these bytes objects, made in one pass without a Python call per row.

    Raises TypeError for an item that is neither bytes nor None, UserError if the bytes do not fit one array (2 GiB).
    """
    cdef object items = PySequence_Fast(values, b"binary_array needs a sequence of bytes")
    cdef Py_ssize_t count = PySequence_Fast_GET_SIZE(items), row, nulls = 0
    cdef PyObject** item = PySequence_Fast_ITEMS(items)
    cdef int64_t total = 0
    for row in range(count):
        if item[row] == <PyObject*> None:
            nulls += 1
        elif PyBytes_Check(<object> item[row]):
            total += PyBytes_GET_SIZE(<object> item[row])
        else:
            raise TypeError(f"item {row} is {type(<object> item[row]).__name__}, not bytes or None")
    cdef _Strings out = _Strings(count, nulls, total)
    for row in range(count):
        if item[row] == <PyObject*> None:
            out.add_null(row)
        else:
            out.add(row, <const uint8_t*> PyBytes_AS_STRING(<object> item[row]), PyBytes_GET_SIZE(<object> item[row]))
    return out.finish(pa.binary())


cdef class _Strings:
    """A string or binary array of known size under construction."""

    cdef object offset_buffer, data_buffer, validity_buffer
    cdef int32_t* offsets
    cdef uint8_t* data
    cdef uint8_t* validity    # NULL if there are no nulls
    cdef int64_t count, nulls, used

    def __cinit__(self, int64_t count, int64_t nulls, int64_t total):
        if total > MAX_DATA:
            raise UserError(f"{total} bytes do not fit one Arrow array (2 GiB)", hint="make the batches smaller")
        self.count, self.nulls, self.used = count, nulls, 0
        self.offset_buffer = pa.allocate_buffer((count + 1) * 4)
        self.data_buffer = pa.allocate_buffer(total)
        self.offsets = <int32_t*> <size_t> self.offset_buffer.address
        self.data = <uint8_t*> <size_t> self.data_buffer.address
        self.offsets[0] = 0
        self.validity_buffer = _bitmap(count, True) if nulls else None
        self.validity = <uint8_t*> <size_t> self.validity_buffer.address if nulls else NULL

    cdef inline void add(self, int64_t row, const uint8_t* data, int64_t size) noexcept:
        memcpy(self.data + self.used, data, size)
        self.used += size
        self.offsets[row + 1] = <int32_t> self.used

    cdef inline void add_null(self, int64_t row) noexcept:
        _clear(self.validity, row)
        self.offsets[row + 1] = <int32_t> self.used

    cdef object finish(self, object kind):
        buffers = [self.validity_buffer, self.offset_buffer, self.data_buffer]
        return pa.Array.from_buffers(kind, self.count, buffers, self.nulls)


cdef object _bitmap(int64_t count, bint value):
    """Returns a buffer of at least `count` bits, all `value`."""
    buffer = pa.allocate_buffer((count + 7) // 8)
    memset(<void*> <size_t> buffer.address, 0xFF if value else 0, (count + 7) // 8)
    return buffer


cdef inline void _clear(uint8_t* bits, int64_t row) noexcept nogil:
    bits[row >> 3] &= <uint8_t> ~(1 << (row & 7))


cdef inline void _set(uint8_t* bits, int64_t row) noexcept nogil:
    bits[row >> 3] |= <uint8_t> (1 << (row & 7))


def bytes_list(array):
    """Returns the values of a binary or string array (any slice, any encoding; fixed-size binary too) as bytes
    objects.

    Raises TypeError for other types.
    """
    array = plain_array(array)
    cdef View view
    cdef object alive = open_view(array, &view)
    if not has_bytes(view.type) and view.type != TYPE_NOTHING:
        raise TypeError(f"bytes_list needs a binary or string array, not {array.type}")
    cdef list rows = PyList_New(view.length)
    cdef int64_t row, size
    cdef const uint8_t* data
    cdef object value
    for row in range(view.length):
        if not view.valid(row):
            value = None
        else:
            data = view.bytes_at(row, &size)
            value = PyBytes_FromStringAndSize(<const char*> data, size)
        Py_INCREF(value)
        PyList_SET_ITEM(rows, row, value)
    return rows


# Keys of state

def state_key(key, *, bytes scope not None=b""):
    """Returns one key of state: 2 bytes of key group (big endian) and msgpack(key), with floats as in `hash_array`.

    `scope`: the encoded key of a keyed agent's record, made by this function; the result is then `scope +
    msgpack(key)`, in the scope's key group. `key`: None, bool, int (64 bit), float, str, bytes, or tuples/lists of
    these (64 deep); raises TypeError for anything else.
    """
    cdef uint8_t small[16]
    cdef Py_ssize_t size
    cdef const char* text
    cdef int head
    cdef vector[uint8_t] out
    if type(key) is str:
        text = PyUnicode_AsUTF8AndSize(key, &size)
        head = put_str_head(small, size)
        return _joined(scope, small, head, <const uint8_t*> text, size)
    if type(key) is int:
        head = _put_long(small, key)
        return _joined(scope, small, head, NULL, 0)
    _pack(out, key, 0)
    return _joined(scope, NULL, 0, out.data(), out.size())


cdef bytes _joined(bytes scope, const uint8_t* head, int head_size, const uint8_t* tail, int64_t tail_size):
    """Joins scope (or the key group), head and tail."""
    cdef int64_t before = PyBytes_GET_SIZE(scope)
    if 0 < before <= GROUP_BYTES:
        raise ValueError(f"{scope!r} is not an encoded key")
    if before == 0:
        before = GROUP_BYTES
    cdef bytes result = PyBytes_FromStringAndSize(NULL, before + head_size + tail_size)
    cdef uint8_t* out = <uint8_t*> PyBytes_AS_STRING(result)
    if head_size:
        memcpy(out + before, head, head_size)
    if tail_size:
        memcpy(out + before + head_size, tail, tail_size)
    if PyBytes_GET_SIZE(scope):
        memcpy(out, PyBytes_AS_STRING(scope), before)
    else:
        _put_group(out, group_of(out + GROUP_BYTES, head_size + tail_size))
    return result


cdef inline void _put_group(uint8_t* out, int64_t group) noexcept:
    out[0] = <uint8_t> (group >> 8)
    out[1] = <uint8_t> group


cdef inline int _put_long(uint8_t* out, object number) except -1:
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow == 0:
        return put_int(out, value)
    if overflow > 0 and number <= 0xFFFFFFFFFFFFFFFF:
        return put_uint(out, PyLong_AsUnsignedLongLong(number))
    raise TypeError(f"an int that is a key of state must fit into 64 bits, unlike {number}")


cdef int _pack(vector[uint8_t]& out, object key, int depth) except -1:
    """Appends msgpack(key) to `out`."""
    cdef uint8_t small[16]
    cdef Py_ssize_t size
    cdef const char* text
    if key is None or key is True or key is False:
        small[0] = 0xC0 if key is None else 0xC3 if key is True else 0xC2
        _append(out, small, 1)
    elif PyLong_Check(key):
        _append(out, small, _put_long(small, key))
    elif PyUnicode_Check(key):
        text = PyUnicode_AsUTF8AndSize(key, &size)
        _append(out, small, put_str_head(small, size))
        _append(out, <const uint8_t*> text, size)
    elif PyBytes_Check(key):
        size = PyBytes_GET_SIZE(key)
        _append(out, small, put_bin_head(small, size))
        _append(out, <const uint8_t*> PyBytes_AS_STRING(key), size)
    elif PyFloat_Check(key):
        _append(out, small, put_key_float(small, PyFloat_AS_DOUBLE(key)))
    elif isinstance(key, (tuple, list)):
        if depth == DEPTH_LIMIT:
            raise TypeError(f"tuples in a key of state can be nested at most {DEPTH_LIMIT} deep")
        _append(out, small, put_array_head(small, len(key)))
        for part in key:
            _pack(out, part, depth + 1)
    else:
        raise TypeError(
            f"a key of state must be None, bool, int, float, str, bytes or a tuple of these, not {type(key).__name__}"
        )
    return 0


cdef inline void _append(vector[uint8_t]& out, const uint8_t* data, int64_t size):
    out.insert(out.end(), data, data + size)


def encode_keys(keys):
    """Returns the key of state for each row: `state_key(keys[i].as_py())`, vectorised.

    Accepts string, binary, integers, bool and floats in any encoding; raises TypeError naming any other type,
    ValueError for a null.
    """
    array = plain_array(keys)
    cdef vector[View] views
    views.resize(1)
    cdef object alive = open_view(array, &views[0])
    if views[0].type == TYPE_OTHER or views[0].temporal:
        raise TypeError(f"keys of state cannot be {array.type}: use bool, integers, floats, string or binary")
    if array.null_count:
        raise ValueError(f"{array.null_count} keys are null")
    return _encoded_keys(views, NULL)


def key_rows(columns, hashes):
    """Returns the stored key of each row: the key group of hashes[i] and the msgpack of the columns' values. See
    records.pyi.
    """
    cdef vector[View] views
    cdef View view
    cdef list alive = []
    if not columns:
        raise ValueError("a key needs at least one column")
    for column in columns:
        array = plain_array(column)
        alive.append(open_view(array, &view))
        if view.type == TYPE_OTHER or view.temporal:
            raise TypeError(f"a column of a key cannot be {array.type}")
        if views.size() and view.length != views[0].length:
            raise ValueError(f"key columns have {views[0].length} and {view.length} rows")
        views.push_back(view)
    alive.append(open_array(hashes, &view, TYPE_UINT64, "hashes"))
    if view.length != views[0].length:
        raise ValueError(f"{view.length} hashes for {views[0].length} keys")
    return _encoded_keys(views, view.uint64s())


def encode_values(values):
    """Returns the msgpack of each row's value; None for null, which deletes.

    It is fast for bool, all ints, float32/64, string, binary, fixed_size_binary, in any encoding; lists of these and
    structs work too, more slowly, through msgspec. Timestamps, decimals and the like raise TypeError naming the type.
    """
    array = plain_array(values)
    cdef View view
    cdef object alive = open_view(array, &view)
    if view.type != TYPE_OTHER and not view.temporal:
        return _encoded_values(&view)
    _require_plain_msgpack(array.type, array.type)
    return [None if value is None else _encode(value) for value in array.to_pylist()]


cdef object _require_plain_msgpack(object kind, object whole):
    """Raises TypeError unless lists and structs of `kind` contain only values that msgpack can represent without
    extensions.
    """
    types = pa.types
    if types.is_struct(kind):
        for field in kind:
            _require_plain_msgpack(field.type, whole)
    elif types.is_list(kind) or types.is_fixed_size_list(kind):
        _require_plain_msgpack(kind.value_type, whole)
    elif not (
        types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
        or types.is_string(kind) or types.is_binary(kind) or types.is_fixed_size_binary(kind) or types.is_null(kind)
    ):  # fmt: skip
        raise TypeError(f"values of type {whole} cannot be stored in state: cast them to integers or strings first")


cdef list _encoded_keys(const vector[View]& views, const uint64_t* hashes):
    """Returns the key of each row of the columns (at least one): its key group and msgpack. The key group is that of
    hashes[row] or, for NULL, of the key's bytes.
    """
    cdef int64_t count = views[0].length, row, size
    cdef int columns = <int> views.size()
    cdef const View* view = views.data()
    cdef list rows = PyList_New(count)
    cdef uint8_t* out
    cdef object made
    for row in range(count):
        size = key_size(view, columns, row)
        made = PyBytes_FromStringAndSize(NULL, GROUP_BYTES + size)
        out = <uint8_t*> PyBytes_AS_STRING(made)
        put_key(out + GROUP_BYTES, view, columns, row)
        if hashes == NULL:
            _put_group(out, group_of(out + GROUP_BYTES, size))
        else:
            _put_group(out, <int64_t> (hashes[row] % <uint64_t> KEY_GROUP_COUNT))
        Py_INCREF(made)
        PyList_SET_ITEM(rows, row, made)
    return rows


cdef list _encoded_values(const View* view):
    """Returns the msgpack of each row; None for null."""
    cdef list rows = PyList_New(view.length)
    cdef int64_t row
    cdef object made
    for row in range(view.length):
        if view.valid(row):
            made = PyBytes_FromStringAndSize(NULL, value_size(view[0], row))
            put_value(<uint8_t*> PyBytes_AS_STRING(made), view[0], row, False)
        else:
            made = None
        Py_INCREF(made)
        PyList_SET_ITEM(rows, row, made)
    return rows


# From msgpack to Arrow

cdef enum Found:
    FOUND_NIL = 1
    FOUND_BOOL = 2
    FOUND_INT = 4
    FOUND_FLOAT = 8
    FOUND_STRING = 16
    FOUND_BINARY = 32
    FOUND_UINT = 64     # an integer above int64, whose bits are in `number`
    FOUND_OTHER = 128   # a container, an extension, or invalid msgpack: msgspec decides


cdef struct Value:
    Found found
    int64_t number          # for FOUND_INT; 0 or 1 for FOUND_BOOL
    double real             # for FOUND_FLOAT
    const uint8_t* data     # for FOUND_STRING and FOUND_BINARY
    int64_t size


cdef inline uint64_t _big_endian(const uint8_t* data, int64_t size) noexcept nogil:
    cdef uint64_t word = 0
    cdef int64_t i
    for i in range(size):
        word = (word << 8) | data[i]
    return word


cdef Found _scan(const uint8_t* data, int64_t size, Value* value) noexcept nogil:
    """Reads one msgpack scalar (IN data, OUT value) that must fill all `size` bytes."""
    cdef uint8_t tag
    cdef int64_t width
    cdef uint64_t word
    cdef float narrow
    cdef uint32_t narrow_bits
    value.found = FOUND_OTHER
    if size == 0:
        return FOUND_OTHER
    tag = data[0]
    if tag < 0x80 or tag >= 0xE0:
        value.number = tag if tag < 0x80 else <int64_t> tag - 256
        value.found = FOUND_INT if size == 1 else FOUND_OTHER
    elif tag == 0xC0:
        value.found = FOUND_NIL if size == 1 else FOUND_OTHER
    elif tag == 0xC2 or tag == 0xC3:
        value.number = tag - 0xC2
        value.found = FOUND_BOOL if size == 1 else FOUND_OTHER
    elif 0xA0 <= tag < 0xC0:
        value.data, value.size = data + 1, tag - 0xA0
        value.found = FOUND_STRING if size == 1 + value.size else FOUND_OTHER
    elif 0xCC <= tag <= 0xD3:
        width = 1 << ((tag - 0xCC) & 3)
        if size != 1 + width:
            return FOUND_OTHER
        word = _big_endian(data + 1, width)
        if tag >= 0xD0:  # signed: shift the sign bit to the top and back
            value.number = <int64_t> (word << (64 - 8 * width)) >> (64 - 8 * width)
        else:
            value.number = <int64_t> word
        value.found = FOUND_UINT if tag == 0xCF and word >> 63 else FOUND_INT
    elif tag == 0xCB and size == 9:
        word = _big_endian(data + 1, 8)
        memcpy(&value.real, &word, 8)
        value.found = FOUND_FLOAT
    elif tag == 0xCA and size == 5:
        narrow_bits = <uint32_t> _big_endian(data + 1, 4)
        memcpy(&narrow, &narrow_bits, 4)
        value.real = narrow
        value.found = FOUND_FLOAT
    elif 0xC4 <= tag <= 0xC6 or 0xD9 <= tag <= 0xDB:
        width = 1 << (tag - 0xC4 if tag < 0xD0 else tag - 0xD9)
        if size < 1 + width:
            return FOUND_OTHER
        value.data, value.size = data + 1 + width, <int64_t> _big_endian(data + 1, width)
        if size == 1 + width + value.size:
            value.found = FOUND_BINARY if tag < 0xD0 else FOUND_STRING
    return value.found


def decode_values(values):
    """Returns an Arrow array of msgpack values; None and nil become null.

    Ints give int64 (uint64 if one needs it and none is negative), ints and floats together float64, str gives string,
    bin binary, bool bool, and no value at all pa.null(). Other or mixed values go through msgspec and pa.array, and
    raise their errors. A string that is not UTF-8 raises ValueError.
    """
    cdef object items = PySequence_Fast(values, b"decode_values needs a sequence of bytes")
    cdef Py_ssize_t count = PySequence_Fast_GET_SIZE(items), row, nulls = 0
    cdef PyObject** item = PySequence_Fast_ITEMS(items)
    cdef vector[Value] found
    cdef int seen = 0
    cdef int64_t total = 0
    found.resize(count)
    for row in range(count):
        if item[row] == <PyObject*> None:
            found[row].found = FOUND_NIL
        elif PyBytes_Check(<object> item[row]):
            _scan(
                <const uint8_t*> PyBytes_AS_STRING(<object> item[row]),
                PyBytes_GET_SIZE(<object> item[row]),
                &found[row],
            )
        else:
            raise TypeError(f"item {row} is {type(<object> item[row]).__name__}, not bytes or None")
        if found[row].found == FOUND_NIL:
            nulls += 1
        else:
            seen |= found[row].found
            if found[row].found == FOUND_STRING or found[row].found == FOUND_BINARY:
                total += found[row].size
    if seen == 0:
        return pa.nulls(count)
    if seen & ~(FOUND_INT | FOUND_UINT | FOUND_FLOAT) == 0 and not (seen == (FOUND_INT | FOUND_UINT) and _any_negative(found)):
        return _numbers(found, nulls, seen)
    if seen == FOUND_BOOL:
        return _bools(found, nulls)
    if seen == FOUND_STRING or seen == FOUND_BINARY:
        return _strings(found, nulls, total, pa.string() if seen == FOUND_STRING else pa.binary())
    return pa.array([None if value is None else _decode(value) for value in items])


cdef bint _any_negative(vector[Value]& found) noexcept nogil:
    cdef size_t row
    for row in range(found.size()):
        if found[row].found == FOUND_INT and found[row].number < 0:
            return True
    return False


cdef object _numbers(vector[Value]& found, int64_t nulls, int seen):
    """Returns an array of int64, of uint64 if a value needs it, or of float64 if one is a float."""
    cdef int64_t count = found.size(), row
    buffer = pa.allocate_buffer(count * 8)
    validity_buffer = _bitmap(count, True) if nulls else None
    cdef uint8_t* validity = <uint8_t*> <size_t> validity_buffer.address if nulls else NULL
    cdef int64_t* integers = <int64_t*> <size_t> buffer.address
    cdef double* floats = <double*> <size_t> buffer.address
    for row in range(count):
        if found[row].found == FOUND_NIL:
            integers[row] = 0
            _clear(validity, row)
        elif not seen & FOUND_FLOAT:
            integers[row] = found[row].number
        elif found[row].found == FOUND_INT:
            floats[row] = <double> found[row].number
        elif found[row].found == FOUND_UINT:
            floats[row] = <double> <uint64_t> found[row].number
        else:
            floats[row] = found[row].real
    kind = pa.float64() if seen & FOUND_FLOAT else pa.uint64() if seen & FOUND_UINT else pa.int64()
    return pa.Array.from_buffers(kind, count, [validity_buffer, buffer], nulls)


cdef object _bools(vector[Value]& found, int64_t nulls):
    cdef int64_t count = found.size(), row
    buffer = _bitmap(count, False)
    validity_buffer = _bitmap(count, True) if nulls else None
    cdef uint8_t* validity = <uint8_t*> <size_t> validity_buffer.address if nulls else NULL
    cdef uint8_t* bits = <uint8_t*> <size_t> buffer.address
    for row in range(count):
        if found[row].found == FOUND_NIL:
            _clear(validity, row)
        elif found[row].number:
            _set(bits, row)
    return pa.Array.from_buffers(pa.bool_(), count, [validity_buffer, buffer], nulls)


cdef object _strings(vector[Value]& found, int64_t nulls, int64_t total, object kind):
    cdef int64_t count = found.size(), row
    cdef _Strings out = _Strings(count, nulls, total)
    for row in range(count):
        if found[row].found == FOUND_NIL:
            out.add_null(row)
        else:
            out.add(row, found[row].data, found[row].size)
    array = out.finish(kind)
    array.validate(full=True)  # checks UTF-8
    return array
