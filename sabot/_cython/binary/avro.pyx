"""Converts Avro payloads to Arrow batches, and back. See avro.pyi for the contract; the loops are in avro_read.h and
avro_write.h.

This module turns the steps, which Python makes once per schema, into trees of C++ steps. Then a batch takes one call
without the GIL.
"""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport TYPE_BYTES, TYPE_TEXT, Numbers, View, all_within, numbers_of, open_view

from sabot._cython.text.json import BadRow

__all__ = ["AvroDecoder", "AvroProgram", "AvroWriter"]


cdef extern from "binary/avro_read.h" namespace "sabot" nogil:
    int NULL_ "static_cast<int>(sabot::Layout::null_)"
    int BOOL_ "static_cast<int>(sabot::Layout::bool_)"
    int FIXED_ "static_cast<int>(sabot::Layout::fixed)"
    int BYTES_ "static_cast<int>(sabot::Layout::bytes)"
    int LIST_ "static_cast<int>(sabot::Layout::list)"
    int STRUCT_ "static_cast<int>(sabot::Layout::struct_)"

    cppclass Whole:
        pass

    Whole power_of_ten(int digits)


cdef extern from "binary/avro_read.h" namespace "sabot::avro" nogil:
    const int64_t PADDING

    cppclass Column:
        Whole limit
        cbool nullable
        Column(int layout, cbool nullable, int64_t width) except +
        void add_child(Column* child) except +  # takes ownership
        Column* child(size_t i)

    cppclass ReadStep:
        ReadStep(int op, Column* column, int64_t size, const string& path) except +
        void of_union(int null_at)
        ReadStep* add_step(int op, Column* column, int64_t size, const string& path) except +  # valid until the next step is added
        void add_text(const string& text, cbool is_known) except +

    cppclass CBadRow "sabot::BadRow":
        int64_t row
        string reason

    cppclass Decoder:
        Column root
        Decoder() except +
        # May be called from any thread; concurrent calls wait for each other. `out` becomes a struct array that owns
        # its buffers.
        void rows(
            const int32_t* offsets, const uint8_t* data, const uint8_t* validity, int64_t bit, int64_t n, int64_t header,
            const ReadStep** programs, const int32_t* which, ArrowArray* out, vector[CBadRow]& bad
        ) except +


cdef extern from "binary/avro_write.h" namespace "sabot::avro" nogil:
    cppclass Unwritable:
        string path
        string why

    cppclass WriteStep:
        int64_t multiply
        int64_t divide
        int64_t least
        int64_t most
        string data
        WriteStep(int op, int column, int64_t size, const string& path) except +
        void of_union(int null_at)
        WriteStep* add_step(int op, int column, int64_t size, const string& path) except +  # valid until the next step is added
        void add_symbol(const string& name) except +
        void sort_symbols() except +

    int64_t write_rows(
        WriteStep& root, const ArrowSchema* schema, const ArrowArray* batch, const string& header, ArrowArray* out, Unwritable& wrong
    ) except +


# In the order of ReadOp: the op, the layout of the column that it fills, and the bytes of a value. None stands for
# any layout, or for no column.
cdef tuple READS = (
    ("skip", None, 0),
    ("skip_varint", None, 0),
    ("skip_sized", None, 0),
    ("nothing", None, 0),
    ("boolean", BOOL_, 1),
    ("int32", FIXED_, 4),
    ("int64", FIXED_, 8),
    ("float32", FIXED_, 4),
    ("float64", FIXED_, 8),
    ("int32_as_int64", FIXED_, 8),
    ("int32_as_float32", FIXED_, 4),
    ("int32_as_float64", FIXED_, 8),
    ("int64_as_float32", FIXED_, 4),
    ("int64_as_float64", FIXED_, 8),
    ("float32_as_float64", FIXED_, 8),
    ("time32", FIXED_, 4),
    ("time64", FIXED_, 8),
    ("bytes", BYTES_, 0),
    ("text", BYTES_, 0),
    ("fixed", FIXED_, None),
    ("decimal", FIXED_, None),
    ("uuid", BYTES_, 0),
    ("enum", BYTES_, 0),
    ("record", STRUCT_, 0),
    ("array", LIST_, 0),
    ("union", None, 0),
    ("constant", None, 0),
    ("fail", None, 0),
)
cdef frozenset PASSES_OVER = frozenset(["skip", "skip_varint", "skip_sized", "record", "array", "union", "fail"])
cdef dict READ_OPS = {name: number for number, (name, _, _) in enumerate(READS)}
cdef tuple WRITES = (
    "nothing", "boolean", "whole", "float32", "float64", "bytes", "text", "fixed", "decimal", "uuid", "enum", "record", "array", "constant",
)
cdef dict WRITE_OPS = {name: number for number, name in enumerate(WRITES)}


cdef tuple shape_of(object data_type):
    """Returns the layout of a column of this type and the bytes of a value."""
    types = pa.types
    if types.is_null(data_type):
        return NULL_, 0
    if types.is_boolean(data_type):
        return BOOL_, 1
    if data_type in (pa.string(), pa.binary()):
        return BYTES_, 0
    if types.is_list(data_type) or types.is_map(data_type):
        return LIST_, 0
    if types.is_struct(data_type):
        return STRUCT_, 0
    if types.is_primitive(data_type) or types.is_decimal(data_type) or types.is_fixed_size_binary(data_type):
        return FIXED_, data_type.bit_width // 8
    raise TypeError(f"Avro values cannot be decoded to a column of {data_type}")


cdef list children_of(object data_type):
    """Returns the fields of a struct, the item of a list, or the entries of a map."""
    if pa.types.is_map(data_type):
        entries = pa.struct([data_type.key_field, data_type.item_field])
        return [pa.field("entries", entries, nullable=False)]
    if pa.types.is_list(data_type):
        return [data_type.value_field]
    return list(data_type) if pa.types.is_struct(data_type) else []


cdef int add_columns(Column* parent, list fields) except -1:
    cdef Column* column
    for field in fields:
        layout, width = shape_of(field.type)
        column = new Column(layout, field.nullable, width)
        if pa.types.is_decimal(field.type):
            column.limit = power_of_ten(field.type.precision)
        parent.add_child(column)  # the parent owns the column from here on, even if the next line raises
        add_columns(column, children_of(field.type))
    return 0


cdef class AvroProgram:
    """The reading of payloads of one writer's schema into the columns of one decoder."""

    cdef ReadStep* root
    cdef object decoder  # the decoder with the columns that the steps fill

    def __dealloc__(self):
        del self.root


cdef class AvroDecoder:
    """Decodes payloads into a RecordBatch of `schema`. Calls from several threads are safe; they run one after the
    other.
    """

    cdef Decoder* decoder
    cdef readonly object schema

    def __cinit__(self, schema):
        self.decoder = new Decoder()

    def __init__(self, schema):
        self.schema = schema
        add_columns(&self.decoder.root, list(schema))

    def __dealloc__(self):
        del self.decoder

    def program(self, step):
        """Compiles the steps of a record. They must fill each column of the schema exactly once, or one of them must
        be "fail".
        """
        made = AvroProgram()
        made.decoder = self
        made.root = new ReadStep(READ_OPS[step.op], &self.decoder.root, 0, b"")
        fill_read(made.root, step, &self.decoder.root, list(self.schema))
        return made

    def decode(self, payloads, programs, which=None, header=0):
        """Decodes payloads. Returns the good rows, in order, and the bad rows."""
        cdef View view
        keep = open_view(plain_array(payloads), &view)  # kept alive while its buffers are read
        if view.type != TYPE_BYTES and view.type != TYPE_TEXT:
            raise TypeError(f"payloads must be binary, not {payloads.type}")
        cdef Numbers numbers = None if which is None else numbers_of(which, pa.int32(), "which", view.length)
        cdef const int32_t* which_at = NULL
        if numbers is not None:
            which_at = numbers.int32()
        if not programs or which_at != NULL and not all_within(which_at, view.length, len(programs)):
            raise ValueError("`which` must be the index of a program for each payload")
        cdef vector[const ReadStep*] steps
        for program in programs:
            if (<AvroProgram?> program).decoder is not self:
                raise ValueError("a program belongs to another decoder")
            steps.push_back((<AvroProgram> program).root)
        cdef int64_t skipped = header
        cdef const int32_t* offsets = NULL
        if view.length:
            offsets = view.offsets + view.start
        cdef ArrowArray out
        cdef vector[CBadRow] bad
        cdef size_t i
        with nogil:
            self.decoder.rows(offsets, view.data, view.validity, view.start, view.length, skipped, steps.data(), which_at, &out, bad)
        batch = pa.RecordBatch._import_from_c(<uintptr_t> &out, self.schema)
        return batch, [BadRow(bad[i].row, bad[i].reason.decode()) for i in range(bad.size())]


cdef int check_fit(step, data_type) except -1:
    """Raises TypeError if a step would write values of another size than the column's."""
    _, layout, width = READS[READ_OPS[step.op]]
    has_layout, has_width = shape_of(data_type)
    if width is None:
        width = has_width if step.op == "decimal" and pa.types.is_decimal(data_type) else step.size
    if layout is not None and (layout, width) != (has_layout, has_width):
        raise TypeError(f"the step {step.op} cannot write into a column of {data_type}")
    return 0


cdef int fill_read(ReadStep* made, step, Column* column, list fields) except -1:
    """Fills in a C++ step and the steps below it. `fields`: the children of its column."""
    cdef ReadStep* child
    cdef Column* below
    cdef int64_t i
    if step.null >= 0:
        made.of_union(step.null)
    for text, known in zip(step.texts, step.known or (True,) * len(step.texts), strict=True):
        made.add_text(text + bytes(PADDING) if step.op == "constant" else text, known)
    for each in step.steps:
        below = NULL
        inner = []
        if step.op in ("union", "constant"):
            below = column
            inner = fields
        elif column != NULL and each.child >= 0:
            i = each.child
            below = column.child(i)
            inner = children_of(fields[i].type)
            check_fit(each, fields[i].type)
        if below == NULL and each.op not in PASSES_OVER:
            raise TypeError(f"the step {each.op} needs a column")
        child = made.add_step(READ_OPS[each.op], below, each.size, each.path.encode())
        fill_read(child, each, below, inner)
    return 0


cdef class AvroWriter:
    """Encodes rows of one schema as payloads."""

    cdef WriteStep* root

    def __cinit__(self, step):
        self.root = new WriteStep(WRITE_OPS["record"], -1, 0, b"")

    def __init__(self, step):
        fill_write(self.root, step)

    def __dealloc__(self):
        del self.root

    def write(self, batch, bytes header=b""):
        """Encodes each row. Returns the payloads, or (row, column, reason) of the first value that cannot be written."""
        cdef ArrowArray out
        cdef Unwritable wrong
        cdef string before = header
        cdef int64_t row
        schema_capsule, array_capsule = batch.__arrow_c_array__()  # kept alive while its buffers are read
        cdef ArrowSchema* schema = schema_of(schema_capsule)
        cdef ArrowArray* rows = array_of(array_capsule)
        with nogil:
            row = write_rows(self.root[0], schema, rows, before, &out, wrong)
        if row >= 0:
            return row, wrong.path.decode(), wrong.why.decode()
        return pa.Array._import_from_c(<uintptr_t> &out, pa.binary())


cdef int fill_write(WriteStep* made, step) except -1:
    cdef WriteStep* child
    if step.null >= 0:
        made.of_union(step.null)
    made.multiply, made.divide, made.least, made.most = step.multiply, step.divide, step.least, step.most
    made.data = step.data
    for symbol in step.symbols:
        made.add_symbol(symbol)
    made.sort_symbols()
    for each in step.steps:
        child = made.add_step(WRITE_OPS[each.op], each.column, each.size, each.path.encode())
        fill_write(child, each)
    return 0
