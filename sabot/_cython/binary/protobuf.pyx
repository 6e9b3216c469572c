"""Converts Protobuf payloads to Arrow batches, and back. See protobuf.pyi for the contract; the loops are in
protobuf_read.h and protobuf_write.h.

This module turns a message type into a tree of C++ columns, once. Then a batch takes one call without the GIL.
"""

from dataclasses import dataclass

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.c_data cimport ArrowArray, array_of
from sabot._cython.arrow.columns cimport TYPE_BYTES, Numbers, View, all_within, numbers_of, open_view

from sabot._cython.text.json import BadRow
from sabot.errors import UserError

__all__ = ["ProtobufDecoder", "ProtobufWriter", "WireField", "WireWriter"]


cdef extern from "binary/protobuf_read.h" namespace "sabot::protobuf" nogil:
    int VARINT32 "static_cast<int>(sabot::protobuf::Op::varint32)"
    int VARINT64 "static_cast<int>(sabot::protobuf::Op::varint64)"
    int ZIGZAG32 "static_cast<int>(sabot::protobuf::Op::zigzag32)"
    int ZIGZAG64 "static_cast<int>(sabot::protobuf::Op::zigzag64)"
    int BOOL "static_cast<int>(sabot::protobuf::Op::bool_)"
    int FIXED32 "static_cast<int>(sabot::protobuf::Op::fixed32)"
    int FIXED64 "static_cast<int>(sabot::protobuf::Op::fixed64)"
    int ENUM "static_cast<int>(sabot::protobuf::Op::enum_)"
    int STRING "static_cast<int>(sabot::protobuf::Op::string)"
    int BYTES "static_cast<int>(sabot::protobuf::Op::bytes)"
    int TIMESTAMP "static_cast<int>(sabot::protobuf::Op::timestamp)"
    int DURATION "static_cast<int>(sabot::protobuf::Op::duration)"
    int WRAPPED "static_cast<int>(sabot::protobuf::Op::wrapped)"
    int MESSAGE "static_cast<int>(sabot::protobuf::Op::message)"

    cppclass Names:
        void add(int32_t number, const string& name) except +

    cppclass Column:
        Names names

    cppclass Spec:
        uint32_t number
        int op, inner
        cbool presence, required, repeated, map, group, closed
        string path
        string first

    cppclass CBadRow "sabot::BadRow":
        int64_t row
        string reason

    cppclass Writer:
        vector[vector[int64_t]] places
        string refusal
        string other

    cppclass Decoder:
        Column root
        cbool framed
        Decoder() except +
        Column* add(Column* message, const Spec& spec) except +  # the decoder owns the column
        void oneof(const vector[Column*]& members) except +
        # May be called from any thread; concurrent calls wait for each other. `out` becomes a struct array that owns
        # its buffers.
        void rows(
            const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n,
            const vector[Writer]& writers, const int32_t* which, ArrowArray* out, vector[CBadRow]& bad
        ) except +


cdef extern from "binary/protobuf_write.h" namespace "sabot::protobuf" nogil:
    cppclass OutNames "std::map<std::string, int32_t, std::less<>>":
        int32_t& operator[](const string& name) except +

    cppclass Out:
        cbool presence, required, repeated, packed, group, is_signed, numbers
        uint32_t number
        int64_t per_second
        size_t child
        string path
        OutNames names
        vector[vector[Out*]] oneofs
        Out(int op, int inner) except +
        Out* add(Out* field) except +  # takes ownership, even if it raises

    cppclass Encoder:
        Out root
        string header
        Encoder() except +
        # Returns False if a value cannot be written; the last three arguments then say which and why.
        cbool rows(const ArrowArray* batch, ArrowArray* out, int64_t& row, string& path, string& reason) except +


@dataclass(frozen=True)
class WireWriter:
    """The payloads with one schema id in their header. See protobuf.pyi."""

    places: tuple[tuple[int, ...], ...] = ()
    refusal: str = ""
    other: str = ""


@dataclass(frozen=True)
class WireField:
    """A field of a message. See protobuf.pyi."""

    name: str
    path: str
    number: int
    kind: str
    inner: str | None = None
    presence: bool = False
    required: bool = False
    repeated: bool = False
    packed: bool = False
    map: bool = False
    group: bool = False
    oneof: int = -1
    closed: bool = False
    values: tuple[tuple[str, int], ...] = ()
    fields: tuple["WireField", ...] = ()


cdef dict OPS = {
    "int32": VARINT32,
    "int64": VARINT64,
    "uint32": VARINT32,
    "uint64": VARINT64,
    "sint32": ZIGZAG32,
    "sint64": ZIGZAG64,
    "fixed32": FIXED32,
    "fixed64": FIXED64,
    "sfixed32": FIXED32,
    "sfixed64": FIXED64,
    "float": FIXED32,
    "double": FIXED64,
    "bool": BOOL,
    "enum": ENUM,
    "string": STRING,
    "bytes": BYTES,
    "timestamp": TIMESTAMP,
    "duration": DURATION,
    "wrapped": WRAPPED,
    "message": MESSAGE,
}
cdef dict PER_SECOND = {"s": 1, "ms": 1000, "us": 1000000, "ns": 1000000000}


cdef int add_fields(Decoder* decoder, Column* message, object fields) except -1:
    """Adds the fields to `message`, and their fields to them."""
    cdef Column* column
    cdef Spec spec
    cdef dict oneofs = {}
    cdef vector[vector[Column*]] members
    for field in fields:
        spec.number = field.number
        spec.op = OPS[field.kind]
        spec.inner = OPS[field.inner or field.kind]
        spec.presence, spec.required, spec.repeated = field.presence, field.required, field.repeated
        spec.map, spec.group, spec.closed = field.map, field.group, field.closed
        spec.path = field.path.encode()
        spec.first = b"" if field.presence or field.repeated or not field.values else field.values[0][0].encode()
        column = decoder.add(message, spec)
        names = {}
        for name, number in field.values:  # if several names have one number, the first name is used
            if number not in names:
                names[number] = name
                column.names.add(number, name.encode())
        if field.oneof >= 0:
            if field.oneof not in oneofs:
                oneofs[field.oneof] = members.size()
                members.resize(members.size() + 1)
            members[<size_t> oneofs[field.oneof]].push_back(column)
        add_fields(decoder, column, field.fields)
    cdef size_t i
    for i in range(members.size()):
        decoder.oneof(members[i])
    return 0


cdef class ProtobufDecoder:
    """Decodes payloads into batches of `schema`. See protobuf.pyi."""

    cdef Decoder* decoder
    cdef readonly object schema

    def __cinit__(self, fields, schema, bint framed=False):
        self.decoder = new Decoder()

    def __init__(self, fields, schema, bint framed=False):
        self.schema = schema
        self.decoder.framed = framed
        add_fields(self.decoder, &self.decoder.root, fields)

    def __dealloc__(self):
        del self.decoder

    def decode(self, payloads, writers=(), which=None):
        """Decodes an array of type binary. Returns the good rows, in order, and the bad rows. The GIL is released."""
        cdef View view
        keep = open_view(plain_array(payloads), &view)  # kept alive while its buffers are read
        if view.type != TYPE_BYTES:
            raise TypeError(f"payloads must be binary, not {payloads.type}")
        cdef Numbers numbers = None if which is None else numbers_of(which, pa.int32(), "which", view.length)
        cdef const int32_t* which_at = NULL
        cdef const int32_t* offsets = NULL
        cdef ArrowArray out
        cdef vector[CBadRow] bad
        cdef vector[Writer] known
        cdef size_t i
        if numbers is not None:
            which_at = numbers.int32()
            if not all_within(which_at, view.length, len(writers)):
                raise ValueError("`which` must be the index of a writer for each payload")
        known.resize(len(writers))
        for i, writer in enumerate(writers):
            known[i].places = writer.places
            known[i].refusal = writer.refusal.encode()
            known[i].other = writer.other.encode()
        if view.length:
            offsets = view.offsets + view.start
        with nogil:
            self.decoder.rows(offsets, view.data, view.validity, view.start, view.length, known, which_at, &out, bad)
        batch = pa.RecordBatch._import_from_c(<uintptr_t> &out, self.schema)
        return batch, [BadRow(bad[i].row, bad[i].reason.decode()) for i in range(bad.size())]


cdef int add_columns(Out* message, object fields, object types, bint pair=False) except -1:
    """Adds those fields to `message` that have a column. `types`: the struct type or the schema of the columns.
    `pair`: True for the message of a map's pair, whose key and value are always written.
    """
    cdef Out* out
    cdef dict oneofs = {}
    cdef vector[vector[Out*]] members
    cdef size_t i
    for field in sorted(fields, key=_number):
        child = types.get_field_index(field.name)
        if child < 0:
            continue
        out = message.add(new Out(OPS[field.kind], OPS[field.inner or field.kind]))
        out.number = field.number
        out.presence, out.required, out.repeated = field.presence, field.required or pair, field.repeated
        out.packed, out.group = field.packed, field.group
        out.is_signed = "int32" in (field.kind, field.inner)
        out.child = child
        out.path = field.path.encode()
        kind = types.field(child).type
        if field.map:
            kind = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
        elif field.repeated:
            kind = kind.value_type
        out.numbers = field.kind == "enum" and pa.types.is_integer(kind)
        if field.kind in ("timestamp", "duration"):
            out.per_second = PER_SECOND[kind.unit]
        for name, number in field.values:
            out.names[name.encode()] = number
        if field.oneof >= 0:
            if field.oneof not in oneofs:
                oneofs[field.oneof] = members.size()
                members.resize(members.size() + 1)
            members[<size_t> oneofs[field.oneof]].push_back(out)
        if field.kind == "message":
            add_columns(out, field.fields, kind, field.map)
    for i in range(members.size()):
        if members[i].size() > 1:
            message.oneofs.push_back(members[i])
    return 0


def _number(field):
    return field.number


cdef class ProtobufWriter:
    """Encodes the rows of batches of `schema` as payloads. See protobuf.pyi."""

    cdef Encoder* encoder
    cdef readonly object schema

    def __cinit__(self, fields, schema, bytes header=b""):
        self.encoder = new Encoder()

    def __init__(self, fields, schema, bytes header=b""):
        self.schema = schema
        self.encoder.header = header
        add_columns(&self.encoder.root, fields, schema)

    def __dealloc__(self):
        del self.encoder

    def encode(self, batch):
        """Encodes each row. Returns the payloads as a binary array. The GIL is released."""
        if batch.schema.types != self.schema.types or batch.schema.names != self.schema.names:
            raise TypeError(f"the batch has the columns {batch.schema}, and the encoder was made for {self.schema}")
        cdef ArrowArray out
        cdef int64_t row = 0
        cdef string path, reason
        cdef cbool written
        _, capsule = batch.__arrow_c_array__()  # kept alive while its buffers are read
        cdef ArrowArray* rows = array_of(capsule)
        with nogil:
            written = self.encoder.rows(rows, &out, row, path, reason)
        if not written:
            raise UserError(f"column {path.decode()!r}, row {row}: {reason.decode()}")
        return pa.Array._import_from_c(<uintptr_t> &out, pa.binary())
