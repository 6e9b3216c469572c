"""Converts JSON payloads to Arrow batches, and back. See json.pyi for the contract; the loops are in json_parse.h and
json_write.h.

This module turns a schema into a tree of C++ nodes, once. Then a batch takes one call without the GIL, and its
buffers are exported through the Arrow C Data Interface.
"""

import datetime
import functools
import zoneinfo

import pyarrow as pa

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, array_of

from sabot._cython.arrow.batch import normalise
from sabot.errors import UserError

__all__ = ["NESTING_MAX", "BadRow", "JsonDecoder", "encode_rows", "is_too_deep"]


cdef extern from "text/json_parse.h" namespace "sabot" nogil:
    const int MAX_DEPTH
    cbool c_is_too_deep "sabot::is_too_deep" (const uint8_t* payload, int64_t n)

    int NULL_ "static_cast<int>(sabot::Kind::null_)"
    int BOOL_ "static_cast<int>(sabot::Kind::bool_)"
    int INT8 "static_cast<int>(sabot::Kind::int8)"
    int INT16 "static_cast<int>(sabot::Kind::int16)"
    int INT32 "static_cast<int>(sabot::Kind::int32)"
    int INT64 "static_cast<int>(sabot::Kind::int64)"
    int UINT8 "static_cast<int>(sabot::Kind::uint8)"
    int UINT16 "static_cast<int>(sabot::Kind::uint16)"
    int UINT32 "static_cast<int>(sabot::Kind::uint32)"
    int UINT64 "static_cast<int>(sabot::Kind::uint64)"
    int FLOAT32 "static_cast<int>(sabot::Kind::float32)"
    int FLOAT64 "static_cast<int>(sabot::Kind::float64)"
    int TEXT "static_cast<int>(sabot::Kind::text)"
    int TIMESTAMP "static_cast<int>(sabot::Kind::timestamp)"
    int DATE32 "static_cast<int>(sabot::Kind::date32)"
    int DATE64 "static_cast<int>(sabot::Kind::date64)"
    int DECIMAL128 "static_cast<int>(sabot::Kind::decimal128)"
    int DECIMAL256 "static_cast<int>(sabot::Kind::decimal256)"
    int TIME32 "static_cast<int>(sabot::Kind::time32)"
    int TIME64 "static_cast<int>(sabot::Kind::time64)"
    int STRUCT_ "static_cast<int>(sabot::Kind::struct_)"
    int LIST_ "static_cast<int>(sabot::Kind::list)"
    int MAP_ "static_cast<int>(sabot::Kind::map)"

    struct ClockStep:
        int64_t shown
        int64_t ahead

    cppclass Node:
        int precision
        int scale
        cbool exact
        vector[ClockStep] clock
        Node(int kind, cbool nullable, int64_t per_second, const string& path, const string& type) except +
        void add_child(Node* child, const string& name) except +  # takes ownership

    cppclass CBadRow "sabot::BadRow":
        int64_t row
        string reason
        int64_t start
        int64_t end

    cppclass Decoder:
        Node root
        int64_t others
        Decoder() except +
        @staticmethod
        void unwanted(const Node& node, vector[string]& paths) except +
        # Each may be called from any thread; concurrent calls wait for each other. `out` becomes a struct array that
        # owns its buffers.
        void rows[Offset](
            const Offset* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n,
            ArrowArray* out, vector[CBadRow]& bad
        ) except +
        void payloads(
            const uint8_t* const* starts, const int64_t* lengths, int64_t n, ArrowArray* out, vector[CBadRow]& bad
        ) except +
        void lines(const uint8_t* data, int64_t n, ArrowArray* out, vector[CBadRow]& bad) except +


cdef extern from "text/json_write.h" namespace "sabot" nogil:
    cppclass Column:
        int scale
        char between
        cbool zoned
        Column(int kind, cbool checked, int64_t per_second, const string& path, const string& name, cbool first) except +
        void add_child(Column* child) except +  # takes ownership

    # Returns False if JSON cannot represent a value of the column `path`.
    cbool write_rows(Column& root, const ArrowArray* batch, ArrowArray* out, string& path) except +


NESTING_MAX = MAX_DEPTH


def is_too_deep(bytes payload not None):
    """Returns True if a payload, valid or not, has objects and lists nested deeper than NESTING_MAX."""
    if PyBytes_GET_SIZE(payload) <= MAX_DEPTH:
        return False
    return c_is_too_deep(<const uint8_t*> PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


cdef dict KINDS = {
    pa.null(): NULL_,
    pa.bool_(): BOOL_,
    pa.int8(): INT8,
    pa.int16(): INT16,
    pa.int32(): INT32,
    pa.int64(): INT64,
    pa.uint8(): UINT8,
    pa.uint16(): UINT16,
    pa.uint32(): UINT32,
    pa.uint64(): UINT64,
    pa.float32(): FLOAT32,
    pa.float64(): FLOAT64,
    pa.string(): TEXT,
    pa.binary(): TEXT,
    pa.date32(): DATE32,
    pa.date64(): DATE64,
}
cdef int MAX_NESTED = 60  # the greatest nesting of types; Arrow imports up to 64 levels
cdef int MAX_SCALE = 76  # of decimals
cdef dict PER_SECOND = {"s": 1, "ms": 1000, "us": 1000000, "ns": 1000000000}


cdef int kind_of(object data_type, str path, str verb) except -1:
    """Returns the C++ kind of an Arrow type. Raises UserError naming the column if JSON cannot represent the type."""
    kind = KINDS.get(data_type)
    if kind is not None:
        return kind
    if pa.types.is_timestamp(data_type):
        return TIMESTAMP
    if pa.types.is_time(data_type):
        return TIME32 if data_type.bit_width == 32 else TIME64
    if pa.types.is_decimal128(data_type) or pa.types.is_decimal256(data_type):
        if abs(data_type.scale) > MAX_SCALE:
            raise UserError(f"column {path!r}: {data_type} cannot be {verb} JSON", hint=f"its scale is beyond {MAX_SCALE}")
        return DECIMAL128 if data_type.bit_width == 128 else DECIMAL256
    if pa.types.is_struct(data_type):
        return STRUCT_
    if pa.types.is_list(data_type):
        return LIST_
    if pa.types.is_map(data_type) and data_type.key_type == pa.string():
        return MAP_
    raise UserError(
        f"column {path!r}: {data_type} cannot be {verb} JSON",
        hint="use bool, integers, floats, decimals, string, binary, timestamp, date, time, list, struct or a map of strings",
    )


cdef int64_t unit_of(object data_type, int kind) except -1:
    """Returns the units per second of a timestamp or time of day, else 1."""
    return PER_SECOND[data_type.unit] if kind in (TIMESTAMP, TIME32, TIME64) else 1


cdef list children_of(object data_type, str path):
    """Returns pairs (field, its path) of a struct's fields, of a list's item, or of a map's entry."""
    if pa.types.is_list(data_type):
        return [(data_type.value_field, f"{path}[]")]
    if pa.types.is_map(data_type):
        entry = pa.struct([data_type.key_field, data_type.item_field])
        return [(pa.field("entries", entry, nullable=False), path)]
    return [(data_type.field(i), f"{path}.{data_type.field(i).name}") for i in range(data_type.num_fields)]


cdef class BadRow:
    """A payload that could not be decoded: `row` is its index in the input, `reason` says why, and at which byte.

    `start` and `end` are the bounds of its line in the data given to decode_lines, else -1.
    """

    cdef readonly int64_t row
    cdef readonly str reason
    cdef readonly int64_t start
    cdef readonly int64_t end

    def __init__(self, int64_t row, str reason, int64_t start=-1, int64_t end=-1):
        self.row = row
        self.reason = reason
        self.start = start
        self.end = end

    cdef tuple values(self):
        return self.row, self.reason, self.start, self.end

    def __eq__(self, other):
        return isinstance(other, BadRow) and self.values() == (<BadRow> other).values()

    def __hash__(self):
        return hash(self.values())

    def __repr__(self):
        place = "" if self.start < 0 else f", start={self.start}, end={self.end}"
        return f"BadRow(row={self.row}, reason={self.reason!r}{place})"

    def __reduce__(self):
        return BadRow, self.values()


TIME_ZONE = b"time_zone"
_YEARS = 1900, 2200
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@functools.cache
def clock_of(zone):
    """Returns the steps of a zone's clock: (the time that it shows, its distance ahead of UTC), in seconds since 1970.

    Of a time that it shows twice the earlier instant is meant; for one that it leaves out, the instant that it would have
    had without the change, as `instant` of expressions has it.
    """
    info = zoneinfo.ZoneInfo(zone)

    def ahead_at(time):
        return int((_EPOCH + datetime.timedelta(seconds=time)).astimezone(info).utcoffset().total_seconds())

    begin, end = (int((datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) - _EPOCH).total_seconds()) for year in _YEARS)
    ahead = ahead_at(begin)
    steps = [(begin, ahead)]
    for week in range(begin, end, 7 * 86400):
        later = ahead_at(week + 7 * 86400)
        if later != ahead:
            before, after = week, week + 7 * 86400
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if ahead_at(middle) == ahead else (before, middle)
            steps.append((after + max(ahead, later), later))
            ahead = later
    return steps


cdef int add_fields(Node* parent, list fields, object guessed, int depth=1) except -1:
    """Adds a node to `parent` for each (field, path). `guessed`: the names of the columns whose types were inferred, or True below such
    a column. Raises UserError for types that JSON cannot represent, and for names given twice.
    """
    cdef Node* node
    cdef int kind
    if depth > MAX_NESTED:
        raise UserError(f"column {fields[0][1][:100]!r}… is nested deeper than {MAX_NESTED} types", hint="leave that field out of the schema")
    names = set()
    for field, path in fields:
        if field.name in names:
            raise UserError(f"there are two columns {path!r}", hint="give every column its own name")
        names.add(field.name)
        kind = kind_of(field.type, path, "decoded from")
        unit = PER_SECOND["ms"] if kind == DATE64 else unit_of(field.type, kind)
        node = new Node(kind, field.nullable, unit, path.encode(), str(field.type).encode())
        if kind == DECIMAL128 or kind == DECIMAL256:
            node.precision, node.scale = field.type.precision, field.type.scale
        below = guessed if depth > 1 else field.name in guessed
        node.exact = below
        if kind == TIMESTAMP and field.metadata and TIME_ZONE in field.metadata:
            for shown, ahead in clock_of(field.metadata[TIME_ZONE].decode()):
                node.clock.push_back(ClockStep(shown, ahead))
        parent.add_child(node, field.name.encode())  # the parent owns the node from here on, even if the next line raises
        if kind == STRUCT_ or kind == LIST_ or kind == MAP_:
            add_fields(node, children_of(field.type, path), below, depth + 1)
    return 0


cdef class JsonDecoder:
    """Decodes payloads into a RecordBatch of `schema`, in one call. Only the wanted columns are built.

    It learns the order of fields and the size of texts from the rows that it has seen. Calls from several threads are
    safe; they run one after the other.
    """

    cdef Decoder* decoder
    cdef readonly object schema

    def __cinit__(self, schema, guessed=()):
        self.decoder = new Decoder()

    def __init__(self, schema, guessed=()):
        if not isinstance(schema, pa.Schema):
            raise TypeError(f"a schema must be a pyarrow.Schema, not a {type(schema).__name__}")
        self.schema = schema
        add_fields(&self.decoder.root, [(field, field.name) for field in schema], guessed)

    def __dealloc__(self):
        del self.decoder

    @property
    def others(self):
        return self.decoder.others

    def other_names(self):
        cdef vector[string] paths
        Decoder.unwanted(self.decoder.root, paths)
        return [path.decode() for path in paths]

    def decode(self, payloads):
        """Decodes payloads. Returns the good rows, in order, and the bad rows.

        `payloads`: bytes objects and None, or an Arrow array of binary or string (any slice). The GIL is released
        while parsing. Raises OverflowError if a column would take more than 2 GiB.
        """
        if isinstance(payloads, (pa.Array, pa.ChunkedArray)) or hasattr(payloads, "__arrow_c_array__"):
            return self._decode_array(_binary(payloads))
        return self._decode_list(tuple(payloads))  # the tuple keeps every payload alive while the GIL is released

    def decode_lines(self, data):
        r"""Decodes NDJSON: lines that end in \n or \r\n (the last may lack it). Blank lines are skipped and not
        counted.
        """
        cdef Py_buffer view
        cdef ArrowArray out
        cdef vector[CBadRow] bad
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                self.decoder.lines(<const uint8_t*> view.buf, view.len, &out, bad)
        finally:
            PyBuffer_Release(&view)
        return self._result(&out, bad)

    def _decode_array(self, array):
        cdef int64_t n = len(array)
        cdef int64_t offset = array.offset
        validity, offsets, data = array.buffers()
        cdef const uint8_t* validity_at = NULL
        cdef const int32_t* offsets_at = NULL
        cdef const uint8_t* data_at = NULL
        cdef ArrowArray out
        cdef vector[CBadRow] bad
        if n and validity is not None:
            validity_at = <const uint8_t*> <uintptr_t> validity.address
        if n:
            offsets_at = <const int32_t*> <uintptr_t> offsets.address + offset
        if n and data is not None:
            data_at = <const uint8_t*> <uintptr_t> data.address
        with nogil:
            self.decoder.rows(offsets_at, data_at, validity_at, offset, n, &out, bad)
        return self._result(&out, bad)

    def _decode_list(self, tuple payloads):
        cdef Py_ssize_t n = len(payloads), i
        cdef vector[const uint8_t*] starts
        cdef vector[int64_t] lengths
        cdef ArrowArray out
        cdef vector[CBadRow] bad
        starts.resize(n)
        lengths.resize(n)
        for i in range(n):
            payload = payloads[i]
            if payload is None:
                starts[i] = NULL
            elif PyBytes_Check(payload):
                starts[i] = <const uint8_t*> PyBytes_AS_STRING(payload)
                lengths[i] = PyBytes_GET_SIZE(payload)
            else:
                raise TypeError(f"payload {i} is a {type(payload).__name__}, not bytes or None")
        with nogil:
            self.decoder.payloads(starts.data(), lengths.data(), n, &out, bad)
        return self._result(&out, bad)

    cdef tuple _result(self, ArrowArray* out, vector[CBadRow]& bad):
        batch = pa.RecordBatch._import_from_c(<uintptr_t> out, self.schema)
        cdef size_t i
        return batch, [
            BadRow(bad[i].row, bad[i].reason.decode(), bad[i].start, bad[i].end) for i in range(bad.size())
        ]


def _binary(payloads):
    """Converts any Arrow array of payloads to an array of type binary or string."""
    if isinstance(payloads, pa.ChunkedArray):
        payloads = payloads.combine_chunks()
    array = payloads if isinstance(payloads, pa.Array) else pa.array(payloads)
    if array.type not in (pa.binary(), pa.string()):
        try:
            array = array.cast(pa.binary())
        except pa.ArrowNotImplementedError as error:
            raise TypeError(f"payloads must be binary, not {array.type}") from error
    return array


cdef dict BETWEEN = {"ms": 0, "sql": ord(" "), "iso": ord("T")}


cdef int add_columns(Column* parent, list fields, char between) except -1:
    """Adds a column to `parent` for each (field, path). `between`: see json_write.h. Raises UserError for types that JSON
    cannot represent.
    """
    cdef Column* column
    cdef int kind
    first = True
    for field, path in fields:
        kind = kind_of(field.type, path, "written as")
        unit = unit_of(field.type, kind)
        column = new Column(kind, field.type == pa.binary(), unit, path.encode(), field.name.encode(), first)
        if kind == DECIMAL128 or kind == DECIMAL256:
            column.scale = field.type.scale
        column.between = between
        column.zoned = kind == TIMESTAMP and field.type.tz is not None
        parent.add_child(column)  # the parent owns the column from here on, even if the next line raises
        if kind == STRUCT_ or kind == LIST_ or kind == MAP_:
            add_columns(column, children_of(field.type, path), between)
        first = False
    return 0


def encode_rows(batch, times="ms"):
    """Encodes each row as one JSON object, compact, in UTF-8, with the fields in the order of the columns. See json.pyi."""
    cdef char between = BETWEEN[times]
    batch = normalise(batch)
    cdef Column* root = new Column(STRUCT_, False, 1, b"", b"", True)
    cdef ArrowArray out
    cdef string path
    cdef cbool written
    cdef ArrowArray* rows
    try:
        add_columns(root, [(field, field.name) for field in batch.schema], between)
        _, capsule = batch.__arrow_c_array__()  # kept alive while its buffers are read
        rows = array_of(capsule)
        with nogil:
            written = write_rows(root[0], rows, &out, path)
    finally:
        del root
    if not written:
        what = "binary must be UTF-8, and a time of day within one day"
        raise TypeError(f"column {path.decode()!r} has a value that JSON cannot hold ({what})")
    return pa.Array._import_from_c(<uintptr_t> &out, pa.binary())
