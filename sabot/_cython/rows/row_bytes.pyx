"""Rows of columns as bytes, and back. See row_bytes.pyi for RowCodec, row_bytes.pxd for other kernels; the loops are
in row_bytes.h.

Bytes objects can be made only with the GIL, so `pack` and `unpack` hold it; they call no Python code per row.
"""

import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset
from libcpp.utility cimport move
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport TYPE_UINT64, View, open_array
from sabot.errors import UserError

__all__ = ["RowCodec"]

cdef extern from "Python.h":
    object PySequence_Fast(object, const char* message)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    PyObject** PySequence_Fast_ITEMS(object)

cdef extern from "rows/row_bytes.h" namespace "sabot" nogil:
    cppclass Filled:
        uint8_t* values
        uint8_t* validity
        int32_t* offsets
        int64_t nulls

    cppclass Compact:
        vector[Node] nodes
        bint add(const ArrowSchema* schema, bint keys) except +
        int64_t size(const vector[Source]& columns, int64_t row) noexcept
        void write(const vector[Source]& columns, int64_t row, uint8_t* out) noexcept
        bint measure(const uint8_t* row, int64_t size, int64_t* text_bytes) noexcept
        void read(const uint8_t* row, int64_t i, Filled* columns) noexcept

cdef enum:
    HEAD_BYTES = 16           # pane and head
    MAX_DATA = 0x7FFFFFFF     # bytes in the data buffer of one string or binary array

cdef object _RecordBatch = pa.RecordBatch


# Rows in the memory of a kernel

cdef class _Owner:
    """Owns the memory of a column that was made, as long as arrays use it."""

    cdef Made made


cdef object array_of_made(Made* made, object kind):
    """Returns a pa.Array over the memory of the column, which is taken from it. Nothing is copied."""
    cdef _Owner owner = _Owner()
    owner.made = move(made[0])
    return _array_over(&owner.made, kind, owner)


cdef object _array_over(Made* made, object kind, _Owner owner):
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array_over(made, kind.storage_type, owner))
    types = pa.types
    if types.is_null(kind):
        return pa.nulls(made.rows)
    validity = _buffer(made.validity.data(), made.validity.size(), owner) if made.nulls else None
    cdef list buffers = [validity], children = []
    if types.is_string(kind) or types.is_binary(kind):
        buffers.append(_buffer(made.offsets.data(), made.offsets.size() * 4, owner))
        buffers.append(_buffer(made.values.data(), made.values.size(), owner))
    elif types.is_list(kind) or types.is_map(kind):
        buffers.append(_buffer(made.offsets.data(), made.offsets.size() * 4, owner))
        inner = kind.value_type if types.is_list(kind) else pa.struct([kind.key_field, kind.item_field])
        children.append(_array_over(&made.children[0], inner, owner))
    elif types.is_fixed_size_list(kind):
        children.append(_array_over(&made.children[0], kind.value_type, owner))
    elif types.is_struct(kind):
        for i in range(kind.num_fields):
            children.append(_array_over(&made.children[i], kind.field(i).type, owner))
    else:
        buffers.append(_buffer(made.values.data(), made.values.size(), owner))
    return pa.Array.from_buffers(kind, made.rows, buffers, made.nulls, 0, children or None)


cdef object _buffer(const void* data, int64_t size, _Owner owner):
    if size == 0:
        return pa.allocate_buffer(0)  # an empty vector may have no address
    return pa.foreign_buffer(<size_t> data, size, owner)


cdef int lay_out(Layout* layout, object schema) except -1:
    """Adds the nodes for the types of the columns. Raises TypeError naming a column whose type is not supported."""
    capsule = schema.__arrow_c_schema__()
    cdef ArrowSchema* raw = schema_of(capsule)
    cdef int64_t i
    for i in range(raw.n_children):
        if not layout.add(raw.children[i]):
            raise TypeError(f"column {schema.field(i).name!r} of type {schema.field(i).type} cannot be stored")
    layout.ready()
    return 0


cdef tuple open_rows(Layout* layout, object schema, object data, vector[Source]* sources):
    """Opens columns for reading. Raises TypeError if their types are not those of `schema`."""
    if not isinstance(data, _RecordBatch):
        raise TypeError(f"rows must be a pyarrow.RecordBatch, not a {type(data).__name__}")
    cdef int64_t i, count = layout.nodes.size()
    if data.num_columns < count or any([data.schema.field(i).type != schema.field(i).type for i in range(count)]):
        raise TypeError(f"columns {data.schema.types} are not {schema.types}")
    capsules = data.__arrow_c_array__()
    cdef ArrowArray* array = array_of(capsules[1])
    sources.resize(count)
    for i in range(count):
        sources[0][i].open(&layout.nodes[i], array.children[i], array.offset)
    return capsules


# Rows in a database

cdef class RowCodec:
    """Converts rows of columns to bytes, and back. See row_bytes.pyi for the format."""

    cdef Compact format
    cdef list types

    def __init__(self, types, *, bint as_keys=False):
        self.types = list(types)
        for kind in self.types:
            capsule = kind.__arrow_c_schema__()
            if not _is_kept(kind) or not self.format.add(schema_of(capsule), as_keys):
                raise TypeError(f"groups with {kind} cannot be stored in a database")

    def pack(self, columns, *, int64_t pane=0, heads=None):
        """Packs each row into a bytes object. With `heads`, a row begins with the pane (8 bytes that sort like the
        number) and its head.
        """
        cdef vector[Source] sources
        cdef View head_view
        cdef ArrowArray* array
        cdef int64_t row, i, length = -1, before = 0
        cdef const uint64_t* head = NULL
        cdef list alive = []
        if len(columns) != len(self.types):
            raise TypeError(f"{len(columns)} columns were given to a codec of {len(self.types)}")
        sources.resize(len(columns))
        for i, (column, kind) in enumerate(zip(columns, self.types)):
            if column.type != kind:
                raise TypeError(f"a column is {column.type}, and the codec was made for {kind}")
            capsules = column.__arrow_c_array__()
            alive.append(capsules)
            array = array_of(capsules[1])
            if length >= 0 and array.length != length:
                raise ValueError(f"columns of {length} and of {array.length} rows")
            length = array.length
            sources[i].open(&self.format.nodes[i], array, 0)
        if heads is not None:
            alive.append(open_array(heads, &head_view, TYPE_UINT64, "heads"))
            if length >= 0 and head_view.length != length:
                raise ValueError(f"{head_view.length} heads for {length} rows")
            length = head_view.length
            head = head_view.uint64s()
            before = HEAD_BYTES
        cdef list rows = PyList_New(max(length, 0))
        cdef uint8_t* out
        cdef bytes packed
        for row in range(length):
            packed = PyBytes_FromStringAndSize(NULL, before + self.format.size(sources, row))
            out = <uint8_t*> PyBytes_AS_STRING(packed)
            if before:
                _put_big_endian(out, <uint64_t> pane ^ (<uint64_t> 1 << 63))
                _put_big_endian(out + 8, head[row])
            self.format.write(sources, row, out + before)
            Py_INCREF(packed)
            PyList_SET_ITEM(rows, row, packed)
        return rows

    def unpack(self, rows, *, int64_t skip=0):
        """Returns the columns of packed rows, without the first `skip` bytes of each row."""
        cdef object items = PySequence_Fast(rows, b"unpack needs a sequence of bytes")
        cdef int64_t count = PySequence_Fast_GET_SIZE(items), row, size, i
        cdef PyObject** item = PySequence_Fast_ITEMS(items)
        cdef vector[int64_t] text_bytes
        cdef vector[Filled] filled
        cdef const uint8_t* data
        text_bytes.resize(self.format.nodes.size())
        for row in range(count):
            if not PyBytes_Check(<object> item[row]):
                raise TypeError(f"row {row} is {type(<object> item[row]).__name__}, not bytes")
            size = PyBytes_GET_SIZE(<object> item[row])
            data = <const uint8_t*> PyBytes_AS_STRING(<object> item[row])
            if size < skip or not self.format.measure(data + skip, size - skip, text_bytes.data()):
                raise ValueError(f"row {row} of {size} bytes is not a packed row of {self.types}")
        cdef list buffers = []
        filled.resize(self.format.nodes.size())
        for i, kind in enumerate(self.types):
            validity = _zeros((count + 7) >> 3)
            filled[i].validity = <uint8_t*> <size_t> validity.address
            if self.format.nodes[i].fixed():
                values = _zeros((count * <int64_t> kind.bit_width + 7) >> 3)
                buffers.append([validity, values])
            else:
                if text_bytes[i] > MAX_DATA:
                    raise UserError(f"{text_bytes[i]} bytes do not fit one Arrow array (2 GiB)")
                offsets = pa.allocate_buffer((count + 1) * 4)
                filled[i].offsets = <int32_t*> <size_t> offsets.address
                filled[i].offsets[0] = 0
                values = pa.allocate_buffer(text_bytes[i])
                buffers.append([validity, offsets, values])
            filled[i].values = <uint8_t*> <size_t> values.address
        for row in range(count):
            self.format.read(<const uint8_t*> PyBytes_AS_STRING(<object> item[row]) + skip, row, filled.data())
        arrays = []
        for i, kind in enumerate(self.types):
            if filled[i].nulls == 0:
                buffers[i][0] = None
            arrays.append(pa.Array.from_buffers(kind, count, buffers[i], filled[i].nulls))
        return arrays


cdef object _zeros(int64_t size):
    buffer = pa.allocate_buffer(size)
    memset(<void*> <size_t> buffer.address, 0, size)
    return buffer


cdef inline void _put_big_endian(uint8_t* out, uint64_t word) noexcept nogil:
    cdef int i
    for i in range(8):
        out[i] = <uint8_t> (word >> (56 - 8 * i))


cdef bint _is_kept(object kind) except -1:
    """Returns True if the type is a number, time, bool or text. A Compact could keep more types, but state in a
    database has never had others.
    """
    types = pa.types
    return (
        types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
        or types.is_string(kind) or types.is_binary(kind) or types.is_date(kind) or types.is_time(kind)
        or types.is_timestamp(kind) or types.is_duration(kind) or types.is_decimal128(kind) or types.is_decimal256(kind)
    )
