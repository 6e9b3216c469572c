"""Converts what PostgreSQL sends of a table to Arrow batches. See pgoutput.pyi for the contract; the loops are in
pgoutput_read.h, and the texts of values in pgoutput_text.h.
"""

import json

import pyarrow as pa

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.pair cimport pair
from libcpp.string cimport string
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray

__all__ = ["KINDS", "BadChange", "ChangeDecoder", "ChangeRun", "SentRelation", "SentTransaction", "Truncate"]


cdef extern from "binary/pgoutput_read.h" namespace "sabot" nogil:
    int BOOL_ "static_cast<int>(sabot::Layout::bool_)"
    int FIXED_ "static_cast<int>(sabot::Layout::fixed)"
    int BYTES_ "static_cast<int>(sabot::Layout::bytes)"
    int LIST_ "static_cast<int>(sabot::Layout::list)"

    cppclass Whole:
        pass

    Whole power_of_ten(int digits)


cdef extern from "binary/pgoutput_read.h" namespace "sabot::pg" nogil:
    cppclass Column:
        string name
        int scale
        Whole limit
        cbool is_key
        Column(int layout, cbool nullable, int64_t width) except +
        void of_kind(int kind, int inner) except +  # inner: -1 for none
        void nest() except +                        # "list range KIND", after of_kind(list, KIND)
        void add_child(Column* child) except +      # takes ownership

    struct Message:
        const uint8_t* p
        int64_t n

    struct CBadChange "sabot::pg::BadChange":
        int64_t row
        int64_t message
        int column
        string reason
        vector[pair[int, string]] texts

    struct CTransaction "sabot::pg::Transaction":
        int64_t first
        uint64_t lsn
        int64_t time
        uint32_t xid

    struct CRelationColumn "sabot::pg::RelationColumn":
        string name
        uint32_t type
        int32_t typmod
        cbool is_key

    cppclass CRun "sabot::pg::Run":
        vector[CBadChange] bad
        vector[CTransaction] transactions
        int64_t next
        uint64_t position
        int64_t taken
        int stop
        uint32_t relation
        string schema
        string table
        char identity
        vector[CRelationColumn] columns
        vector[uint32_t] truncated
        int options

    int RELATION "sabot::pg::Run::RELATION"
    int TRUNCATE "sabot::pg::Run::TRUNCATE"

    cppclass Decoder:
        Column root
        Decoder() except +
        void use(uint32_t relation, const vector[int]& places) except +
        void ignore(uint32_t relation) except +
        void begin(uint64_t after, int64_t skip)
        # `out` becomes a struct array that owns its buffers.
        void changes(const Message* messages, int64_t count, int64_t first, int64_t max_rows, ArrowArray* out, CRun& run) except +
        void copied(const Message* messages, int64_t count, ArrowArray* out, CRun& run) except +


# In the order of Kind: the layout of a column, the bytes of a value, and the type; None for one of several types.
cdef tuple SHAPES = (
    ("bool", BOOL_, 1, pa.bool_()),
    ("int2", FIXED_, 2, pa.int16()),
    ("int4", FIXED_, 4, pa.int32()),
    ("int8", FIXED_, 8, pa.int64()),
    ("oid", FIXED_, 8, pa.int64()),
    ("float4", FIXED_, 4, pa.float32()),
    ("float8", FIXED_, 8, pa.float64()),
    ("decimal", FIXED_, 0, None),
    ("date", FIXED_, 4, pa.date32()),
    ("time", FIXED_, 8, pa.time64("us")),
    ("timestamp", FIXED_, 8, pa.timestamp("us")),
    ("timestamptz", FIXED_, 8, pa.timestamp("us", "UTC")),
    ("text", BYTES_, 0, pa.string()),
    ("jsonb", BYTES_, 0, pa.string()),
    ("bytea", BYTES_, 0, pa.binary()),
    ("vector", LIST_, 0, pa.list_(pa.float32())),
    ("list", LIST_, 0, None),
    ("numeric", BYTES_, 0, pa.string()),
    ("uuid", BYTES_, 0, pa.string()),
    ("timetz", BYTES_, 0, pa.string()),
    ("interval", BYTES_, 0, pa.string()),
    ("inet", BYTES_, 0, pa.string()),
    ("macaddr", BYTES_, 0, pa.string()),
    ("bits", BYTES_, 0, pa.string()),
    ("range", BYTES_, 0, pa.string()),
    ("multirange", BYTES_, 0, pa.string()),
)
cdef dict NUMBERS = {shape[0]: number for number, shape in enumerate(SHAPES)}
cdef frozenset NESTED = frozenset(["list", "range", "multirange"])
KINDS = frozenset(NUMBERS) - NESTED
cdef str OP = "__op"
cdef int64_t LOOK_AHEAD = 4096  # messages of a call beyond those that can be rows


cdef Column* made_column(str name, object data_type, cbool nullable, list words) except NULL:
    """Makes a column. `words`: its kind, such as ["list", "int4"]."""
    outer = words[0]
    nested = outer in NESTED
    known = outer in NUMBERS and len(words) == 1 + nested and (not nested or words[1] in KINDS)
    if not known and not (words[:2] == ["list", "range"] and len(words) == 3 and words[2] in KINDS):
        raise TypeError(f"column {name}: there is no kind {' '.join(words)!r}")
    _, layout, width, wanted = SHAPES[NUMBERS[outer]]
    is_decimal = outer == "decimal" and pa.types.is_decimal(data_type)
    if data_type != wanted and not is_decimal and not (outer == "list" and pa.types.is_list(data_type)):
        raise TypeError(f"column {name}: values of the kind {' '.join(words)!r} do not go into a column of {data_type}")
    cdef Column* column = new Column(layout, nullable, data_type.bit_width // 8 if is_decimal else width)
    try:
        column.name = name.encode()
        column.of_kind(NUMBERS[outer], NUMBERS[words[len(words) - 1]] if nested else -1)
        if len(words) == 3:
            column.nest()
        if is_decimal:
            column.scale = data_type.scale
            column.limit = power_of_ten(data_type.precision)
        elif outer == "list":
            column.add_child(made_column(name, data_type.value_type, True, words[1:]))
        elif outer == "vector":
            column.add_child(made_column(name, pa.float32(), True, ["float4"]))
    except:
        del column
        raise
    return column


cdef class SentRelation:
    """A table as it is from here on."""

    cdef readonly object oid
    cdef readonly str schema
    cdef readonly str table
    cdef readonly str identity
    cdef readonly list columns


cdef class Truncate:
    """All rows of these tables were removed."""

    cdef readonly list relations
    cdef readonly bint cascade
    cdef readonly bint restart


cdef class SentTransaction:
    """A transaction with rows in a run."""

    cdef readonly int64_t first
    cdef readonly uint64_t lsn
    cdef readonly int64_t time
    cdef readonly uint32_t xid


cdef class BadChange:
    """A row that Arrow does not have."""

    cdef readonly int64_t row
    cdef readonly int64_t message
    cdef readonly str column
    cdef readonly str reason
    cdef readonly bytes payload


cdef class ChangeRun:
    """What was decoded in one call."""

    cdef readonly object rows
    cdef readonly list bad
    cdef readonly int64_t next
    cdef readonly object stop
    cdef readonly uint64_t position
    cdef readonly int64_t taken
    cdef readonly list transactions


cdef class ChangeDecoder:
    """Decodes the changes of a table of PostgreSQL. Has one owner thread."""

    cdef Decoder* decoder
    cdef readonly object schema
    cdef int64_t width
    cdef frozenset needed  # the columns that cannot be null

    def __cinit__(self, columns, kinds, keys):
        self.decoder = new Decoder()

    def __init__(self, columns, kinds, keys):
        cdef Column* column
        cdef Column* ops
        if missing := set(keys).difference(columns.names):
            raise ValueError(f"the keys {', '.join(sorted(missing))} are no columns")
        for field, kind in zip(columns, kinds, strict=True):
            if not field.nullable and field.name not in keys:
                raise ValueError(f"column {field.name} is no key, and has to be nullable: deletions have no value of it")
            column = made_column(field.name, field.type, field.nullable, kind.split())
            column.is_key = field.name in keys
            self.decoder.root.add_child(column)
        ops = new Column(FIXED_, False, 1)
        self.decoder.root.add_child(ops)
        self.schema = columns.append(pa.field(OP, pa.int8(), nullable=False))
        self.width = len(columns)
        self.needed = frozenset(number for number, field in enumerate(columns) if not field.nullable or field.name in keys)

    def __dealloc__(self):
        del self.decoder

    def use(self, uint32_t relation, places):
        """Decodes the rows of a relation from now on."""
        found = sorted(place for place in places if place != -1)
        if len(set(found)) != len(found) or found and not 0 <= found[0] <= found[len(found) - 1] < self.width:
            raise ValueError(f"relation {relation}: `places` are columns of our {self.width}, each at most once, or -1: {list(places)}")
        for number in self.needed.difference(found):
            raise ValueError(f"relation {relation}: it has no column for {self.schema.names[number]}, which is a key")
        cdef vector[int] made = places
        self.decoder.use(relation, made)

    def ignore(self, uint32_t relation):
        """Passes over the rows of a relation from now on."""
        self.decoder.ignore(relation)

    def begin(self, uint64_t after=0, int64_t skip=0):
        """Forgets relations and transactions, for a new connection."""
        self.decoder.begin(after, skip)

    def decode(self, messages, int64_t first=0, int64_t max_rows=10_000):
        """Decodes messages[first:] until `max_rows` rows, a SentRelation or a Truncate."""
        if first < 0 or max_rows < 1:
            raise ValueError(f"first={first}, max_rows={max_rows}: there are no such messages")
        cdef int64_t end = min(len(messages), first + min(max_rows, 1 << 30) + LOOK_AHEAD)
        cdef vector[Message] spans
        given = messages[first:end]  # kept alive while their bytes are read
        add_spans(given, spans)
        cdef ArrowArray out
        cdef CRun run
        with nogil:
            self.decoder.changes(spans.data(), <int64_t> spans.size(), 0, max_rows, &out, run)
        return self.made(&out, run, first)

    def copy(self, messages):
        """Decodes the rows of messages of COPY."""
        cdef vector[Message] spans
        given = tuple(messages)
        add_spans(given, spans)
        cdef ArrowArray out
        cdef CRun run
        with nogil:
            self.decoder.copied(spans.data(), <int64_t> spans.size(), &out, run)
        run.next = len(given)
        return self.made(&out, run, 0)

    cdef ChangeRun made(self, ArrowArray* out, CRun& run, int64_t first):
        made = ChangeRun()
        made.rows = pa.RecordBatch._import_from_c(<uintptr_t> out, self.schema)
        made.bad = [self.bad_change(run.bad[i], first) for i in range(run.bad.size())]
        made.next, made.position, made.taken = first + run.next, run.position, run.taken
        made.transactions = [transaction_of(run.transactions[i]) for i in range(run.transactions.size())]
        made.stop = relation_of(run) if run.stop == RELATION else truncate_of(run) if run.stop == TRUNCATE else None
        return made

    cdef BadChange bad_change(self, const CBadChange& bad, int64_t first):
        made = BadChange()
        names = self.schema.names
        made.row, made.message, made.column = bad.row, first + bad.message, names[<int> bad.column]
        made.reason = f"column {made.column}: {bad.reason.decode()}"
        values = dict.fromkeys(names[: self.width])
        cdef size_t i
        for i in range(bad.texts.size()):
            values[names[<int> bad.texts[i].first]] = bad.texts[i].second.decode(errors="replace")
        made.payload = json.dumps(values, ensure_ascii=False).encode()
        return made


cdef int add_spans(object given, vector[Message]& spans) except -1:
    cdef Message span
    for each in given:
        if not isinstance(each, bytes):
            raise TypeError(f"a message must be bytes, not {type(each).__name__}")
        span.p = <const uint8_t*> PyBytes_AS_STRING(each)
        span.n = PyBytes_GET_SIZE(each)
        spans.push_back(span)
    return 0


cdef SentTransaction transaction_of(const CTransaction& given):
    made = SentTransaction()
    made.first, made.lsn, made.time, made.xid = given.first, given.lsn, given.time, given.xid
    return made


cdef SentRelation relation_of(const CRun& run):
    cdef size_t i
    made = SentRelation()
    made.oid, made.schema, made.table = run.relation, run.schema.decode(), run.table.decode()
    made.identity = chr(<uint8_t> run.identity)
    made.columns = []
    for i in range(run.columns.size()):
        made.columns.append((run.columns[i].name.decode(), run.columns[i].type, run.columns[i].typmod, bool(run.columns[i].is_key)))
    return made


cdef Truncate truncate_of(const CRun& run):
    made = Truncate()
    made.relations = [run.truncated[i] for i in range(run.truncated.size())]
    made.cascade, made.restart = bool(run.options & 1), bool(run.options & 2)
    return made
