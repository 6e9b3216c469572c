"""Groups by key with their accumulators. See keyed.pyi for the contract; the loops over rows are in keyed_table.h.

Types are resolved here once per table, and columns are opened as views once per call. Then the call runs without the
GIL.
"""

import pyarrow as pa
import pyarrow.compute as pc

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport TYPE_OTHER, Numbers, Type, View, key_type_of, key_view_of, numbers_of, rows_of, type_of, view_of
from sabot._cython.groups.partition import check_keys
from sabot.errors import DataError

__all__ = ["KINDS", "GroupTable", "SlidingTable", "TableCut", "WindowMerge", "sum_overflow"]


cdef extern from "groups/keyed_table.h" namespace "sabot" nogil:
    ctypedef enum Kind "sabot::Kind":
        COUNT "sabot::Kind::count"
        SUM "sabot::Kind::sum"
        MIN "sabot::Kind::min"
        MAX "sabot::Kind::max"
        MEAN "sabot::Kind::mean"
        VARIANCE "sabot::Kind::variance"
        FIRST "sabot::Kind::first"
        LAST "sabot::Kind::last"

    ctypedef enum What "sabot::Source::What":
        KEY "sabot::Source::key"
        RESULT "sabot::Source::result"
        FIELD "sabot::Source::field"

    int LIVE
    int DIRTY

    cppclass Inputs:
        const View* argument        # NULL if the aggregate has no argument
        const View* filter          # NULL if every row counts

    cppclass Output:
        void* values                # numbers or bits; for bytes, the offsets
        uint8_t* validity
        uint8_t* data               # the bytes
        int64_t nulls               # OUT: the number of nulls

    cppclass Source:
        What what
        int index                   # the number of the key or aggregate
        int field_index             # the number of the accumulator

    cppclass Copies:
        Copies() except +
        int64_t count

    cppclass Cut:
        int64_t groups
        int64_t next_slot
        void rewind()
        void close()

    cppclass Table:
        # Callers have to check that slots are within the table, and rows within the columns.
        int64_t groups
        int32_t tick
        int overflow                # the aggregate whose sum exceeded 64 bits, or -1
        int64_t overflow_slot       # the slot of that sum, or -1 if unknown
        void add_key(Type type) except +
        void add_aggregate(Kind kind, Type argument, Type result) except +
        void ready() except +
        void reserve(int64_t more) except +
        int64_t slots_used()
        int64_t nbytes()
        int64_t dirty_groups()
        cbool live(int64_t slot)
        void update(
            const View* keys, const Inputs* inputs, const View* order, const uint64_t* hashes, const int32_t* chosen, int64_t count,
            int32_t* slots
        ) except +
        void resolve(
            const View* keys, const uint64_t* hashes, const int32_t* chosen, int64_t count, cbool insert, int32_t* slots
        ) except +
        void accumulate(
            const int32_t* slots, const Inputs* inputs, const View* order, const int32_t* chosen, int64_t count
        ) except +
        void running(
            const int32_t* slots, const Inputs* inputs, const View* order, const int32_t* chosen, int64_t count, Output* outputs
        ) except +
        void merge(const View* keys, const View* fields, const int32_t* chosen, int64_t count, int32_t* slots) except +
        void merge_slots(const int32_t* into, const int32_t* source, int64_t count)
        int64_t key_bytes(int key, const int32_t* slots, int64_t count)
        void columns(const vector[Source]& sources, const int32_t* slots, int64_t count, Output* outputs) except +
        shared_ptr[Cut] cut(cbool all, int64_t start, int64_t more) except +
        void read(Cut& cut, int64_t most, Copies& out) except +
        int64_t copied_key_bytes "key_bytes"(int key, const Copies& copies)
        void copied_columns "columns"(const vector[Source]& sources, const Copies& copies, Output* outputs) except +
        int64_t slots_in(uint8_t state, int32_t* out)
        int64_t slots_idle(int32_t since, int32_t* out)
        void hashes(const int32_t* slots, int64_t count, uint64_t* out)
        void clean()
        cbool remove(const int32_t* slots, int64_t count) except +  # returns False, with nothing changed, if a slot is named twice
        void clear() except +


cdef extern from "groups/keyed_slide.h" namespace "sabot" nogil:
    cppclass Slide:
        # As with a Table, callers have to check slots and lengths.
        Slide(Table* window) except +
        void ready() except +
        int64_t nbytes()
        int64_t groups_in_front()
        void clear()
        void enter(const Table& pane, int32_t number, int32_t* slots) except +
        void turn(const Table& pane, int32_t number, const int32_t* slots) except +
        void turned() except +
        void leave(int32_t number, const int32_t* slots, int64_t count) except +


cdef extern from "groups/keyed_windows.h" namespace "sabot" nogil:
    cppclass Windows:
        # As with a Table, callers have to check slots and lengths.
        Windows(Table* table) except +
        void open(
            const int32_t* slots, const int64_t* blocks, int64_t groups, const int64_t* starts, const int64_t* ends,
            const int64_t* last_blocks, int64_t windows
        ) except +
        int64_t next(int64_t most) except +
        int64_t key_bytes(int key)
        void columns(const vector[Source]& sources, Output* outputs) except +
        const int32_t* windows()
        const int32_t* order()
        const int32_t* spans()


KINDS = frozenset(["count", "sum", "min", "max", "mean", "variance", "first", "last"])
cdef dict _KINDS = {
    "count": <int> COUNT, "sum": <int> SUM, "min": <int> MIN, "max": <int> MAX,
    "mean": <int> MEAN, "variance": <int> VARIANCE, "first": <int> FIRST, "last": <int> LAST,
}  # fmt: skip
cdef int64_t MAX_OFFSET = 2**31 - 1
cdef object _RecordBatch = pa.RecordBatch
cdef object _INT32 = pa.int32()
cdef object _INT64 = pa.int64()
cdef object _UINT64 = pa.uint64()
cdef object _BINARY = pa.binary()


cdef bytes _format(object data_type):
    """Returns the type in the notation of the C data interface."""
    capsule = data_type.__arrow_c_schema__()
    return schema_of(capsule).format


cdef bint _is_temporal(object data_type):
    types = pa.types
    return (
        types.is_date(data_type) or types.is_time(data_type) or types.is_timestamp(data_type) or types.is_duration(data_type)
    )


cdef bint _is_number(object data_type):
    types = pa.types
    return (
        types.is_boolean(data_type) or types.is_integer(data_type)
        or types.is_float32(data_type) or types.is_float64(data_type)
    )


cdef bint _is_bytes(object data_type):
    """Returns True if keys of this type are kept as bytes: text, binary and decimals."""
    return data_type == pa.string() or data_type == pa.binary() or _is_wide_decimal(data_type)


cdef bint _is_wide_decimal(object data_type):
    return pa.types.is_decimal128(data_type) or pa.types.is_decimal256(data_type)


cdef object _decimals(object array, object data_type):
    """Converts the bytes of decimals to decimals."""
    validity = array.buffers()[0]
    if array.null_count:  # null rows have no bytes
        array = pc.fill_null(array, bytes(data_type.byte_width))
    return pa.Array.from_buffers(data_type, len(array), [validity, array.buffers()[2]])


cdef object _int32_array(object buffer, int64_t length):
    return pa.Array.from_buffers(_INT32, length, [None, buffer], 0)


# Columns

cdef class _Columns:
    """The columns of a batch, open for reading."""

    cdef object batch
    cdef tuple capsules             # keep the structs alive
    cdef ArrowSchema* schema
    cdef ArrowArray* array

    cdef View view(self, int64_t index, bytes format, str what) except *:
        """Returns the view of column `index`, whose type must be `format`; for None, any type whose nulls can be
        read. `what` begins the message of an error.
        """
        cdef ArrowSchema* schema
        cdef View view
        if not 0 <= index < self.array.n_children:
            raise IndexError(f"{what}: the batch has no column {index}, only {self.array.n_children}")
        schema = self.schema.children[index]
        view = view_of(schema, self.array.children[index], self.array.offset, self.array.length)
        if format is None:
            if schema.dictionary == NULL and schema.format[0] == c"+" and (schema.format[1] == c"r" or schema.format[1] == c"u"):
                raise TypeError(f"{what}: a column of {self._type(index)} has no bitmap of nulls; normalise the batch")
        elif schema.dictionary != NULL or schema.format != format:
            raise TypeError(f"{what}: column {self.batch.schema.names[index]!r} is {self._type(index)}, and the table was made for another type")
        return view

    cdef View key(self, int64_t index, bytes format, str what) except *:
        """Returns the view of a key column, whose type must be `format`."""
        self.view(index, format, what)
        return key_view_of(self.schema.children[index], self.array.children[index], self.array.offset, self.array.length)

    cdef object _type(self, int64_t index):
        return self.batch.schema.field(index).type


cdef _Columns _columns(object batch):
    if not isinstance(batch, _RecordBatch):
        raise TypeError(f"the rows must be a pyarrow.RecordBatch, not a {type(batch).__name__}")
    cdef _Columns columns = _Columns()
    columns.batch = batch
    columns.capsules = batch.__arrow_c_array__()
    columns.schema = schema_of(columns.capsules[0])
    columns.array = array_of(columns.capsules[1])
    return columns


# The table

cdef class _Call:
    """The views and pointers of one call, and references to the objects whose memory they point into."""

    cdef _Columns columns
    cdef Numbers rows
    cdef Numbers hashes             # or None
    cdef vector[View] views         # never grows beyond its reserved size, because inputs point into it
    cdef vector[Inputs] inputs
    cdef View order_view
    cdef const View* order
    cdef const uint64_t* hash_values
    cdef const int32_t* chosen
    cdef int64_t count              # rows


def sum_overflow(str what, keys=None):
    """Returns the error for a sum that its type cannot hold. `keys`: columns whose first row is the key; the engine's
    own columns are left out.
    """
    told = [] if keys is None else [
        f"{name}={column[0].as_py()!r}" for name, column in zip(keys.schema.names, keys.columns) if not name.startswith("__")
    ]
    return DataError(
        what + (f": its key is {', '.join(told)}" if told else ""),
        hint='sum a wider type: .cast("float64"), or .cast(pa.decimal128(38, 0))',
    )


cdef class GroupTable:
    """Groups by key: each key has a slot (0, 1, …), each slot its accumulators. Has one owner thread; the GIL is
    released.
    """

    cdef Table* table
    cdef readonly object keys
    cdef readonly list results
    cdef readonly object states
    cdef tuple aggregates           # (kind, type of the argument or None)
    cdef list key_formats           # in the notation of the C data interface, like the next two
    cdef list argument_formats      # None if there is no argument, or if it may have any type
    cdef list state_formats         # of the accumulators

    def __cinit__(self, *args, **kwargs):
        self.table = new Table()

    def __dealloc__(self):
        del self.table

    def __init__(self, keys, aggregates):
        if not isinstance(keys, pa.Schema):
            raise TypeError(f"keys must be a pyarrow.Schema, not a {type(keys).__name__}")
        self.keys = keys
        self.key_formats = []
        self.argument_formats = []
        self.results = []
        for field in keys:
            if not (_is_number(field.type) or _is_temporal(field.type) or _is_bytes(field.type)):
                raise TypeError(
                    f"key {field.name!r} cannot be {field.type}: use bool, integers, floats, decimals, string, binary, dates or times"
                )
            format = _format(field.type)
            self.key_formats.append(format)
            self.table.add_key(key_type_of(format))
        check_keys(keys)
        self.aggregates = tuple([(kind, argument) for kind, argument in aggregates])
        states = [pa.field(field.name, field.type) for field in keys]
        for i, (kind, argument) in enumerate(self.aggregates):
            result = _result_type(kind, argument)
            self.results.append(result)
            format = None if kind == "count" else _format(argument)
            self.argument_formats.append(format)
            self.table.add_aggregate(
                <Kind> <int> _KINDS[kind], TYPE_OTHER if format is None else type_of(format), type_of(_format(result))
            )
            states.extend([pa.field(f"{i}.{name}", data_type) for name, data_type in _state_types(kind, argument)])
        self.states = pa.schema(states)
        self.state_formats = [_format(field.type) for field in states[len(keys):]]
        self.table.ready()

    def __len__(self):
        return self.table.groups

    @property
    def nbytes(self):
        """The bytes of memory that the table takes, including keys and index."""
        return self.table.nbytes()

    @property
    def tick(self):
        """A clock that the owner sets, 0 to 2^31 - 1, at first 0. Each touch of a group records it."""
        return self.table.tick

    @tick.setter
    def tick(self, int64_t value):
        if not 0 <= value <= MAX_OFFSET:
            raise ValueError(f"tick must be 0 to 2^31 - 1, not {value}")
        self.table.tick = <int32_t> value

    def statistics(self):
        """Returns the number of groups, slots in use, dirty slots, and bytes."""
        return {
            "groups": self.table.groups,
            "slots": self.table.slots_used(),
            "dirty": self.table.dirty_groups(),
            "bytes": self.nbytes,
        }

    def reserve(self, int64_t groups):
        """Makes room in the index for `groups` more groups."""
        if not 0 <= groups < MAX_OFFSET:
            raise ValueError(f"a table holds 0 to 2^31 - 2 groups, not {groups}")
        with nogil:
            self.table.reserve(groups)

    # Adding rows

    cdef int check_sums(self) except -1:
        """Raises DataError if a sum exceeds what its type can hold. Called after each call that adds."""
        if self.table.overflow < 0:
            return 0
        result = self.results[self.table.overflow]
        slot, self.table.overflow, self.table.overflow_slot = self.table.overflow_slot, -1, -1
        keys = pa.record_batch(self.key_columns(pa.array([slot], _INT32)), schema=self.keys) if slot >= 0 and self.key_formats else None
        raise sum_overflow(f"a sum is more than {result} holds", keys)

    cdef _Call open(self, object data, object selection, object hashes):
        cdef _Call call = _Call()
        call.columns = _columns(data)
        call.rows = rows_of(selection, call.columns.array.length)
        call.chosen = call.rows.int32()
        call.count = call.rows.length
        call.hash_values = NULL
        call.order = NULL
        if hashes is not None:
            call.hashes = numbers_of(hashes, _UINT64, "hashes", -1)
            if call.hashes.length != call.columns.array.length:
                raise ValueError(f"{call.hashes.length} hashes for {call.columns.array.length} rows")
            call.hash_values = call.hashes.uint64()
        return call

    cdef int add_keys(self, _Call call, object keys) except -1:
        if len(keys) != len(self.key_formats):
            raise ValueError(f"{len(keys)} key columns were given, and the table has {len(self.key_formats)}")
        for i in range(len(keys)):
            call.views.push_back(call.columns.key(keys[i], self.key_formats[i], f"key {self.keys.names[i]!r}"))
        return 0

    cdef int add_inputs(self, _Call call, object arguments, object filters, int64_t order) except -1:
        cdef Inputs input
        cdef int64_t column
        cdef size_t count = len(self.aggregates)
        if len(arguments) != count:
            raise ValueError(f"{len(arguments)} arguments for {count} aggregates")
        if filters is not None and len(filters) != count:
            raise ValueError(f"{len(filters)} filters for {count} aggregates")
        call.views.reserve(call.views.size() + 2 * count)
        for i in range(count):
            input.argument = NULL
            input.filter = NULL
            column = arguments[i]
            if column >= 0:
                call.views.push_back(call.columns.view(column, self.argument_formats[i], f"aggregate {i} ({self.aggregates[i][0]})"))
                input.argument = &call.views.back()
            elif self.aggregates[i][1] is not None:
                raise ValueError(f"aggregate {i} ({self.aggregates[i][0]}) needs an argument")
            column = -1 if filters is None else filters[i]
            if column >= 0:
                call.views.push_back(call.columns.view(column, b"b", f"filter of aggregate {i}"))
                input.filter = &call.views.back()
            call.inputs.push_back(input)
        if order >= 0:
            call.order_view = call.columns.view(order, b"l", "order")
            call.order = &call.order_view
        return 0

    def update(
        self, data, keys, arguments, filters=None, *, int64_t order=-1, hashes=None, selection=None, bint want_slots=False
    ):
        """Adds the rows of `selection`, in its order, or all rows for None. See keyed.pyi."""
        cdef _Call call = self.open(data, selection, hashes)
        call.views.reserve(len(self.key_formats) + 2 * len(self.aggregates))
        self.add_keys(call, keys)
        self.add_inputs(call, arguments, filters, order)
        buffer = pa.allocate_buffer(call.count * 4) if want_slots else None
        cdef int32_t* slots = <int32_t*> <size_t> buffer.address if want_slots else NULL
        with nogil:
            self.table.update(
                call.views.data(), call.inputs.data(), call.order, call.hash_values, call.chosen, call.count, slots
            )
        self.check_sums()
        return _int32_array(buffer, call.count) if want_slots else None

    def resolve(self, data, keys, *, hashes=None, selection=None, bint insert=True):
        """Returns the slot of each row. A missing key is inserted with empty accumulators if `insert`; otherwise its
        slot is -1.
        """
        cdef _Call call = self.open(data, selection, hashes)
        self.add_keys(call, keys)
        buffer = pa.allocate_buffer(call.count * 4)
        cdef int32_t* slots = <int32_t*> <size_t> buffer.address
        with nogil:
            self.table.resolve(call.views.data(), call.hash_values, call.chosen, call.count, insert, slots)
        return _int32_array(buffer, call.count)

    cdef Numbers slots_of(self, _Call call, object slots):
        """Opens the slots for the rows of a call: as many as rows, each a slot of this table or -1."""
        cdef Numbers numbers = numbers_of(slots, _INT32, "slots", -1)
        if numbers.length != call.count:
            raise ValueError(f"{numbers.length} slots for {call.count} rows")
        if not self.all_live(numbers, True):
            raise IndexError("a slot has no group")
        return numbers

    def accumulate(self, slots, data, arguments, filters=None, *, int64_t order=-1, selection=None):
        """Adds row i of the selection to slots[i], like the second half of `update`. Rows with slot -1 are skipped."""
        cdef _Call call = self.open(data, selection, None)
        self.add_inputs(call, arguments, filters, order)
        cdef Numbers numbers = self.slots_of(call, slots)
        with nogil:
            self.table.accumulate(numbers.int32(), call.inputs.data(), call.order, call.chosen, call.count)
        self.check_sums()

    def running(self, slots, data, arguments, filters=None, *, int64_t order=-1, selection=None):
        """Like `accumulate`. Returns for each row the results of its slot right after the row was added: one array
        per aggregate.
        """
        cdef _Call call = self.open(data, selection, None)
        self.add_inputs(call, arguments, filters, order)
        cdef Numbers numbers = self.slots_of(call, slots)
        cdef _Outputs outputs = _Outputs(call.count)
        for data_type in self.results:
            outputs.add(data_type, 0)
        with nogil:
            self.table.running(
                numbers.int32(), call.inputs.data(), call.order, call.chosen, call.count, outputs.items.data()
            )
        self.check_sums()
        return outputs.arrays()

    def merge(self, state, *, selection=None):
        """Merges groups that `export` of a table with the same columns returned. Returns the slot of each row."""
        cdef _Call call = self.open(state, selection, None)
        cdef size_t keys = len(self.key_formats)
        if state.schema.names != self.states.names:
            raise TypeError(f"the state has the columns {state.schema.names}, and the table has {self.states.names}")
        self.add_keys(call, range(keys))
        for i in range(len(self.state_formats)):
            call.views.push_back(call.columns.view(keys + i, self.state_formats[i], "state"))
        buffer = pa.allocate_buffer(call.count * 4)
        cdef int32_t* slots = <int32_t*> <size_t> buffer.address
        with nogil:
            self.table.merge(call.views.data(), call.views.data() + keys, call.chosen, call.count, slots)
        self.check_sums()
        return _int32_array(buffer, call.count)

    def merge_slots(self, into, source):
        """Merges the accumulators of slot source[i] into slot into[i], pair by pair, in order. The sources become
        empty; their keys stay.
        """
        cdef Numbers to = self.groups(into)
        cdef Numbers origin = self.groups(source)
        cdef int64_t i
        if to.length != origin.length:
            raise ValueError(f"`into` has {to.length} slots, and `source` has {origin.length}")
        for i in range(to.length):
            if to.int32()[i] == origin.int32()[i]:
                raise ValueError(f"slot {to.int32()[i]} cannot be merged into itself")
        with nogil:
            self.table.merge_slots(to.int32(), origin.int32(), to.length)
        self.check_sums()

    # Reading results

    cdef bint all_live(self, Numbers slots, bint absent) noexcept:
        """Returns True if all slots hold groups. With `absent`, -1 is allowed too."""
        cdef const int32_t* values = slots.int32()
        cdef Table* table = self.table
        cdef int64_t i
        cdef bint result = True
        with nogil:
            for i in range(slots.length):
                result &= table.live(values[i]) or (absent and values[i] == -1)
        return result

    cdef Numbers groups(self, object slots):
        """Opens slots, or all slots that hold groups for None. Raises IndexError for a slot without a group."""
        cdef Numbers numbers = numbers_of(self.slots() if slots is None else slots, _INT32, "slots", -1)
        if slots is not None and not self.all_live(numbers, False):
            raise IndexError("a slot has no group")
        return numbers

    cdef list gather(self, vector[Source]& sources, list types, object slots):
        """Returns these columns of the slots."""
        cdef Numbers numbers = self.groups(slots)
        cdef _Outputs outputs = _Outputs(numbers.length)
        cdef size_t s
        cdef int64_t size
        for s in range(sources.size()):
            size = 0
            if sources[s].what == KEY and _is_bytes(types[s]):
                size = self.table.key_bytes(sources[s].index, numbers.int32(), numbers.length)
                if size > MAX_OFFSET:
                    raise OverflowError(f"keys {self.keys.names[sources[s].index]!r} of {numbers.length} groups take more than 2 GiB: ask for fewer at once")
            outputs.add(types[s], size)
        with nogil:
            self.table.columns(sources, numbers.int32(), numbers.length, outputs.items.data())
        return outputs.arrays()

    cdef list key_sources(self, vector[Source]& sources):
        """Adds the sources of the key columns. Returns their types."""
        cdef Source source
        for i in range(len(self.key_formats)):
            source.what, source.index, source.field_index = KEY, i, 0
            sources.push_back(source)
        return [field.type for field in self.keys]

    def key_columns(self, slots=None):
        """Returns the key columns of these slots, or of all groups in the order of their slots."""
        cdef vector[Source] sources
        cdef list types = self.key_sources(sources)
        return self.gather(sources, types, slots)

    def finish(self, slots=None):
        """Returns the key columns and one column of results per aggregate. The table does not change."""
        cdef vector[Source] sources
        cdef Source source
        cdef list types = self.key_sources(sources)
        for i in range(len(self.results)):
            source.what, source.index, source.field_index = RESULT, i, 0
            sources.push_back(source)
        return self.gather(sources, types + self.results, slots)

    def values(self, slots):
        """Returns the results of these slots, one column per aggregate, like `finish`."""
        cdef vector[Source] sources
        cdef Source source
        for i in range(len(self.results)):
            source.what, source.index, source.field_index = RESULT, i, 0
            sources.push_back(source)
        return self.gather(sources, self.results, slots)

    cdef list state_sources(self, vector[Source]& sources):
        """Adds the sources of all columns of `states`. Returns their types."""
        cdef Source source
        cdef list types = self.key_sources(sources)
        for i, (kind, argument) in enumerate(self.aggregates):
            for f, (_, data_type) in enumerate(_state_types(kind, argument)):
                source.what, source.index, source.field_index = FIELD, i, f
                sources.push_back(source)
                types.append(data_type)
        return types

    cdef object state_batch(self, list columns, int64_t rows):
        if not columns:
            return pa.record_batch([pa.nulls(rows)], names=["_"]).select([])
        return _RecordBatch.from_arrays(columns, schema=self.states)

    def export(self, slots=None):
        """Returns keys and accumulators of these slots, or of all groups in the order of their slots, with the
        columns of `states`.
        """
        cdef vector[Source] sources
        cdef list types = self.state_sources(sources)
        return self.state_batch(self.gather(sources, types, slots), self.table.groups if slots is None else len(slots))

    def cut(self, turn=None):
        """Takes a snapshot of the groups. See keyed.pyi."""
        cdef TableCut cut = TableCut.__new__(TableCut)
        cdef cbool everything = turn is None
        cdef int64_t start = 0, more = 0
        if turn is not None:
            start, more = turn
            if start < 0 or more < 0:
                raise ValueError(f"`turn` must be a first slot and a number of groups, not ({start}, {more})")
        with nogil:
            cut.cut = self.table.cut(everything, start, more)
        cut.table = self
        cut.next_slot = cut.cut.get().next_slot
        return cut

    def slots(self):
        """Returns all slots that hold a group, ascending."""
        return self.slots_with(LIVE, -1)

    def dirty(self):
        """Returns the slots that were updated, merged or inserted since `clean`, ascending."""
        return self.slots_with(DIRTY, -1)

    def idle_since(self, int64_t tick):
        """Returns the slots that were last touched (by update, resolve, merge) before the table's `tick` was set to
        this value.
        """
        return self.slots_with(0, min(max(tick, 0), MAX_OFFSET))

    cdef object slots_with(self, int state, int64_t since):
        buffer = pa.allocate_buffer(max(self.table.groups, 1) * 4, resizable=True)
        cdef int32_t* out = <int32_t*> <size_t> buffer.address
        cdef int64_t count
        with nogil:
            if since >= 0:
                count = self.table.slots_idle(<int32_t> since, out)
            else:
                count = self.table.slots_in(<uint8_t> state, out)
        return _int32_array(buffer, count)

    def clean(self):
        """Marks all slots as clean."""
        with nogil:
            self.table.clean()

    def hashes(self, slots):
        """Returns the key hash of each slot."""
        cdef Numbers numbers = self.groups(slots)
        buffer = pa.allocate_buffer(numbers.length * 8)
        cdef uint64_t* out = <uint64_t*> <size_t> buffer.address
        with nogil:
            self.table.hashes(numbers.int32(), numbers.length, out)
        return pa.Array.from_buffers(_UINT64, numbers.length, [None, buffer], 0)

    def remove(self, slots):
        """Removes the groups, dirty or not. Later inserts reuse their slots."""
        cdef Numbers numbers = self.groups(slots)
        cdef bint removed
        with nogil:
            removed = self.table.remove(numbers.int32(), numbers.length)
        if not removed:
            raise ValueError("a slot to be removed is given twice")

    def clear(self):
        """Removes all groups and keeps the memory for new ones."""
        with nogil:
            self.table.clear()


cdef class TableCut:
    """A snapshot of the groups of a table. See keyed.pyi."""

    cdef GroupTable table
    cdef shared_ptr[Cut] cut
    cdef Copies copies
    cdef readonly int64_t next_slot

    def __dealloc__(self):
        if self.cut.get() != NULL:
            self.cut.get().close()

    def __len__(self):
        return self.cut.get().groups

    @property
    def schema(self):
        return self.table.states

    def read(self, int64_t rows):
        """Returns the next groups, about `rows`, with the columns of `GroupTable.export`; None at the end."""
        cdef vector[Source] sources
        cdef list types = self.table.state_sources(sources)
        cdef Table* table = self.table.table
        cdef size_t s
        cdef int64_t size
        if rows < 1:
            raise ValueError(f"{rows} rows cannot be read")
        with nogil:
            table.read(self.cut.get()[0], rows, self.copies)
        if self.copies.count == 0:
            self.copies = Copies()
            return None
        cdef _Outputs outputs = _Outputs(self.copies.count)
        for s in range(sources.size()):
            size = 0
            if sources[s].what == KEY and _is_bytes(types[s]):
                size = table.copied_key_bytes(sources[s].index, self.copies)
                if size > MAX_OFFSET:
                    raise OverflowError(f"keys of {self.copies.count} groups take more than 2 GiB: read fewer at once")
            outputs.add(types[s], size)
        with nogil:
            table.copied_columns(sources, self.copies, outputs.items.data())
        return self.table.state_batch(outputs.arrays(), self.copies.count)

    def rewind(self):
        """Starts again with the first groups."""
        with nogil:
            self.cut.get().rewind()

    def close(self):
        """Releases the snapshot. Idempotent."""
        with nogil:
            self.cut.get().close()


cdef class SlidingTable(GroupTable):
    """The groups of a window that slides over panes. See keyed.pyi."""

    cdef Slide* slide

    def __cinit__(self, *args, **kwargs):
        self.slide = new Slide(self.table)

    def __dealloc__(self):
        del self.slide

    def __init__(self, keys, aggregates):
        super().__init__(keys, aggregates)
        self.slide.ready()

    @property
    def nbytes(self):
        return self.table.nbytes() + self.slide.nbytes()

    cdef Table* pane_table(self, GroupTable pane) except NULL:
        if pane is None or pane is self or pane.aggregates != self.aggregates or not pane.keys.equals(self.keys):
            raise TypeError("a pane must be another table, with the keys and aggregates of the window")
        return pane.table

    cdef int check_number(self, int32_t number, int32_t least) except -1:
        if not least <= number < MAX_OFFSET:
            raise ValueError(f"panes are numbered from 1 to 2^31 - 2, not {number}")
        return 0

    def enter(self, GroupTable pane, int32_t number):
        """Adds a pane to the back. Returns the slots of its groups, in the order of pane.slots()."""
        cdef Table* table = self.pane_table(pane)
        self.check_number(number, 0)
        buffer = pa.allocate_buffer(table.groups * 4)
        cdef int32_t* slots = <int32_t*> <size_t> buffer.address
        with nogil:
            self.slide.enter(table[0], number, slots)
        self.check_sums()
        return _int32_array(buffer, table.groups)

    def turn(self, GroupTable pane, int32_t number, slots):
        """Moves a pane to the front."""
        cdef Table* table = self.pane_table(pane)
        cdef Numbers numbers = self.groups(slots)
        self.check_number(number, 1)
        if numbers.length != table.groups:
            raise ValueError(f"{numbers.length} slots for a pane of {table.groups} groups")
        with nogil:
            self.slide.turn(table[0], number, numbers.int32())
        self.check_sums()

    def turned(self):
        """Ends a turn."""
        with nogil:
            self.slide.turned()

    def cut(self, turn=None):
        raise TypeError("a sliding window has no cut: take cuts of its panes")

    def leave(self, int32_t number, slots):
        """Removes the pane that turned last."""
        cdef Numbers numbers = self.groups(slots)
        self.check_number(number, 1)
        if numbers.length > self.slide.groups_in_front():
            raise ValueError(f"{numbers.length} groups of a pane, but only {self.slide.groups_in_front()} are in the front")
        with nogil:
            self.slide.leave(number, numbers.int32(), numbers.length)
        self.check_sums()

    def clear(self):
        with nogil:
            self.table.clear()
            self.slide.clear()


cdef class WindowMerge:
    """The results of windows of several panes. See keyed.pyi."""

    cdef GroupTable table
    cdef Windows* windows
    cdef int64_t groups, results    # of all windows, and of the last `read`

    def __dealloc__(self):
        del self.windows

    def __init__(self, GroupTable table not None, slots, blocks, starts, ends, last_blocks):
        cdef Numbers numbers = table.groups(slots)
        cdef Numbers of_groups = numbers_of(blocks, _INT64, "blocks", -1)
        cdef Numbers begin = numbers_of(starts, _INT64, "starts", -1)
        cdef Numbers end = numbers_of(ends, _INT64, "ends", -1)
        cdef Numbers of_windows = numbers_of(last_blocks, _INT64, "last_blocks", -1)
        if not table.key_formats or table.keys.types[len(table.key_formats) - 1] != _INT64:
            raise TypeError("the last key of the table must be the pane, an int64")
        if of_groups.length != numbers.length:
            raise ValueError(f"{of_groups.length} blocks for {numbers.length} groups")
        if begin.length != end.length or of_windows.length != end.length:
            raise ValueError(f"{begin.length} starts, {end.length} ends and {of_windows.length} blocks of windows")
        if self.windows != NULL:
            raise RuntimeError("the windows are merged already")
        self.table = table
        self.groups = numbers.length
        self.windows = new Windows(table.table)
        with nogil:
            self.windows.open(
                numbers.int32(), of_groups.int64(), numbers.length, begin.int64(), end.int64(), of_windows.int64(), end.length
            )
        table.check_sums()

    def read(self, int64_t rows):
        """Returns the results of the next windows, and the window of each row; None at the end."""
        cdef vector[Source] sources
        cdef Source source
        cdef GroupTable table = self.table
        cdef int64_t count, size
        cdef size_t s
        self.results = 0
        with nogil:
            count = self.windows.next(rows)
        table.check_sums()
        if count == 0:
            return None
        cdef list types = table.key_sources(sources) + table.results
        for i in range(len(table.results)):
            source.what, source.index, source.field_index = RESULT, i, 0
            sources.push_back(source)
        cdef _Outputs outputs = _Outputs(count)
        for s in range(sources.size()):
            size = 0
            if sources[s].what == KEY and _is_bytes(types[s]):
                size = self.windows.key_bytes(sources[s].index)
                if size > MAX_OFFSET:
                    raise OverflowError(f"keys of {count} results take more than 2 GiB: read fewer at once")
            outputs.add(types[s], size)
        with nogil:
            self.windows.columns(sources, outputs.items.data())
        self.results = count
        return outputs.arrays(), _copied(self.windows.windows(), count)

    def order(self):
        """Returns the groups by key, as places in `slots`."""
        return _copied(self.windows.order(), self.groups)

    def spans(self):
        """Returns the first and the last group of each result of the last `read`, as places in `order`."""
        cdef const int32_t* spans = self.windows.spans()
        return _copied(spans, self.results), _copied(spans + self.results, self.results)


cdef object _copied(const int32_t* numbers, int64_t count):
    buffer = pa.allocate_buffer(count * 4)
    memcpy(<void*> <size_t> buffer.address, numbers, count * 4)
    return _int32_array(buffer, count)


cdef class _Outputs:
    """Arrays of one length under construction."""

    cdef vector[Output] items
    cdef list buffers               # (type, values or offsets, validity, bytes or None)
    cdef int64_t length

    def __cinit__(self, int64_t length):
        self.length = length
        self.buffers = []

    cdef int add(self, object data_type, int64_t size) except -1:
        """Adds a column of this type; a column of string or binary has `size` bytes in all."""
        cdef Output item
        cdef bint text = _is_bytes(data_type)
        validity = pa.allocate_buffer((self.length + 7) // 8)
        if text:
            values = pa.allocate_buffer((self.length + 1) * 4)
        else:
            values = pa.allocate_buffer((self.length * data_type.bit_width + 7) // 8)
        data = pa.allocate_buffer(size) if text else None
        item.values = <void*> <size_t> values.address
        item.validity = <uint8_t*> <size_t> validity.address
        item.data = <uint8_t*> <size_t> data.address if text else NULL
        item.nulls = 0
        self.items.push_back(item)
        self.buffers.append((data_type, values, validity, data))
        return 0

    cdef list arrays(self):
        cdef list result = []
        cdef size_t i
        for i in range(self.items.size()):
            data_type, values, validity, data = self.buffers[i]
            parts = [validity if self.items[i].nulls else None, values]
            if data is not None:
                parts.append(data)
            if _is_wide_decimal(data_type):
                result.append(_decimals(pa.Array.from_buffers(_BINARY, self.length, parts, self.items[i].nulls), data_type))
            else:
                result.append(pa.Array.from_buffers(data_type, self.length, parts, self.items[i].nulls))
        return result


cdef object _result_type(str kind, object argument):
    """Returns the type of an aggregate's result. Raises ValueError for an unknown aggregate, TypeError for an
    argument that it cannot take.
    """
    types = pa.types
    if kind not in _KINDS:
        raise ValueError(f"unknown aggregate {kind!r}: there are {', '.join(sorted(_KINDS))}")
    if kind == "count":
        return pa.int64()
    if argument is None:
        raise TypeError(f"{kind} needs an argument")
    if kind in ("sum", "mean", "variance"):
        if not _is_number(argument):
            raise TypeError(f"{kind} is not defined for {argument}: use bool, integers or floats")
        if kind != "sum" or types.is_floating(argument):
            return pa.float64()
        return pa.uint64() if types.is_unsigned_integer(argument) else pa.int64()
    if not (_is_number(argument) or _is_temporal(argument)):
        raise TypeError(f"a GroupTable has no accumulator for {kind} of {argument}: use bool, integers, floats, dates or times")
    return argument


cdef list _state_types(str kind, object argument):
    """Returns (name, type) for each accumulator of an aggregate, in the order of `export`."""
    count = ("count", pa.int64())
    if kind == "count":
        return [count]
    if kind == "mean":
        if pa.types.is_floating(argument):
            return [count, ("sum", pa.float64())]
        return [count, ("high", pa.int64()), ("low", pa.uint64())]  # the words of a sum of 128 bits
    if kind == "variance":
        return [count, ("mean", pa.float64()), ("m2", pa.float64())]
    if kind in ("first", "last"):
        return [(kind, argument), ("order", pa.int64())]
    return [(kind, _result_type(kind, argument))]
