"""The rows around each row among the rows of its key. See over.pyi for the contract; the loops are in over_frames.h
and over_rows.h.
"""

import pyarrow as pa

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport (
    TYPE_INT32,
    TYPE_INT64,
    TYPE_NOTHING,
    TYPE_UINT8,
    TYPE_UINT64,
    Type,
    View,
    all_within,
    int32_array,
    int64_array,
    new_array,
    open_array,
    type_of,
    view_of,
)
from sabot._cython.rows.row_bytes cimport Layout, Made, Source, array_of_made, lay_out, open_rows

__all__ = ["FrameTable", "PlaceTable", "WaitTable"]

_MARKS = [pa.field("__slot", pa.int32()), pa.field("__at", pa.int64()), pa.field("__number", pa.int64())]


cdef extern from "windows/over_frames.h" namespace "sabot" nogil:
    ctypedef enum Fold "sabot::Fold":
        FOLD_COUNT "sabot::Fold::count"
        FOLD_SUM_INT "sabot::Fold::sum_int"
        FOLD_SUM_FLOAT "sabot::Fold::sum_float"
        FOLD_MIN "sabot::Fold::min"
        FOLD_MAX "sabot::Fold::max"
        FOLD_MEAN_INT "sabot::Fold::mean_int"
        FOLD_MEAN_FLOAT "sabot::Fold::mean_float"
        FOLD_VARIANCE "sabot::Fold::variance"
        FOLD_FIRST "sabot::Fold::first"
        FOLD_LAST "sabot::Fold::last"

    cppclass FrameCall:
        Fold fold
        Type type
        Type result
        int value

    cppclass FrameValue:
        const View* argument
        const View* filter

    cppclass FrameColumn:
        vector[uint64_t] raw
        vector[uint8_t] valid

    cppclass Frames:
        # Callers have to check that slots are not negative, and that rows are within the columns.
        vector[FrameCall] calls
        int values
        int64_t rows
        int64_t ms
        vector[FrameColumn] results
        int64_t kept
        int64_t overflow            # the first row whose sum overflows 64 bits, or -1
        int overflow_call
        Frames() except +
        void ready()
        int64_t used()
        int64_t nbytes()
        void add(
            const int32_t* slots, const int32_t* chosen, int64_t count, const vector[FrameValue]& values, const int64_t* times
        ) except +
        void advance(int64_t watermark, vector[int32_t]& vacant) except +
        void due(int64_t watermark, vector[int32_t]& slots) except +
        void remove(const int32_t* slots, int64_t count) except +
        void every(vector[int32_t]& slots) except +
        void current(const vector[int32_t]& slots, vector[int64_t]& newest) except +
        int64_t size_of(int32_t slot)
        void export_rows(const int32_t* chosen, int64_t count, int32_t* slots, int64_t* times, uint64_t** raw, uint8_t** states)
        void load(const int32_t* slots, int64_t count, const int64_t* times, const uint64_t** raw, const uint8_t** states) except +

    int64_t pack(Type type, const uint64_t* raw, const uint8_t* valid, int count, int64_t first, void* values, uint8_t* validity)


cdef extern from "windows/over_rows.h" namespace "sabot" nogil:
    cppclass Kept:
        int64_t time
        int64_t number
        int32_t slot

    cppclass Keeping:
        Layout layout
        int64_t rows

    cppclass Places:
        Keeping kept
        int64_t depth
        vector[int64_t] offsets
        vector[int64_t] numbers
        vector[int64_t] ranks
        vector[int64_t] dense_ranks
        vector[vector[int64_t]] sources
        vector[const Kept*] history
        Places() except +
        int64_t used()
        int64_t nbytes()
        void add(
            const vector[Source]& columns, const int32_t* slots, const int32_t* chosen, int64_t count, const int64_t* times
        ) except +
        void every(vector[int32_t]& slots) except +
        void there(const int32_t* slots, int64_t count, vector[int32_t]& out) except +
        void counters(
            const vector[int32_t]& slots, int64_t* rows, int64_t* newest, int64_t* rank, int64_t* dense, int64_t* last
        )
        void remove(const int32_t* slots, int64_t count)
        void load_counter(int32_t slot, int64_t rows, int64_t newest, int64_t rank, int64_t dense) except +
        void history_of(const vector[int32_t]& slots, vector[const Kept*]& out) except +
        bint load(const vector[Source]& columns, int64_t row, int32_t slot, int64_t time) except +

    cppclass Waiting:
        Keeping kept
        int64_t depth
        int64_t next_number
        vector[int64_t] offsets
        vector[const Kept*] ready
        vector[vector[const Kept*]] sources
        Waiting() except +
        int64_t waiting()
        int64_t nbytes()
        int64_t least()
        void add(
            const vector[Source]& columns, const int32_t* slots, const int32_t* chosen, int64_t count, const int64_t* times
        ) except +
        void flush(vector[int32_t]& slots) except +
        void all(vector[const Kept*]& out) except +
        void rows_of(const int32_t* slots, int64_t count, vector[const Kept*]& out) except +
        void remove(const int32_t* slots, int64_t count)
        void load(const vector[Source]& columns, int64_t row, int32_t slot, int64_t time, int64_t number) except +


cdef extern from *:
    """
    #include "windows/over_rows.h"

    // Columns of `count` rows from `start` on; a missing row gets the values of another one.
    static inline void sabot_read_kept(
        const sabot::Layout& layout, const std::vector<const sabot::Kept*>& rows, int64_t start, int64_t count,
        const std::vector<const sabot::Kept*>& instead, const std::vector<char>& wanted, std::vector<sabot::Made>& columns
    ) {
        layout.read(
            count,
            [&](int64_t i) { return (rows[start + i] ? rows[start + i] : instead[start + i])->bytes(); },
            columns, wanted.empty() ? nullptr : &wanted, [](int64_t) {}
        );
    }
    // How many rows from `start` on are converted to columns at once: at most `most`, limited in bytes.
    static inline int64_t sabot_kept_piece(const std::vector<const sabot::Kept*>& rows, int64_t start, int64_t most) {
        int64_t count = 0, bytes = 0;
        while (start + count < (int64_t)rows.size() && count < most && (count == 0 || bytes < (1LL << 29)))
            bytes += rows[start + count++]->size;
        return count;
    }
    """
    void read_kept "sabot_read_kept"(
        const Layout& layout, const vector[const Kept*]& rows, int64_t start, int64_t count, const vector[const Kept*]& instead,
        const vector[char]& wanted, vector[Made]& columns
    ) except + nogil
    int64_t kept_piece "sabot_kept_piece"(const vector[const Kept*]& rows, int64_t start, int64_t most) nogil


# Arguments and results

cdef class _Rows:
    """The rows of a call: row i of `count` has slot slots[i], and is row chosen[i] of the data."""

    cdef View slot_column, chosen_column, time_column
    cdef list alive
    cdef int64_t count
    cdef const int32_t* slots
    cdef const int32_t* chosen      # NULL for all rows
    cdef const int64_t* times       # the times of all rows of the data

    def __cinit__(self, slots, data, selection, time):
        cdef int64_t rows = data.num_rows
        self.alive = [
            open_array(slots, &self.slot_column, TYPE_INT32, "slots"),
            open_array(time, &self.time_column, TYPE_INT64, "time"),
        ]
        self.count = self.slot_column.length
        self.slots = self.slot_column.int32s()
        self.times = self.time_column.int64s()
        self.chosen = NULL
        if self.time_column.length != rows:
            raise ValueError(f"{self.time_column.length} times for {rows} rows")
        if selection is not None:
            self.alive.append(open_array(selection, &self.chosen_column, TYPE_INT32, "selection"))
            self.chosen = self.chosen_column.int32s()
            if self.chosen_column.length != self.count:
                raise ValueError(f"{self.count} slots for a selection of {self.chosen_column.length} rows")
        elif rows != self.count:
            raise ValueError(f"{self.count} slots for {rows} rows")
        if not (all_within(self.slots, self.count, 2**31) and (selection is None or all_within(self.chosen, self.count, rows))):
            raise IndexError(f"a slot is negative, or the selection has row numbers outside of the {rows} rows of the batch")


cdef class _Slots:
    """Slots of a call."""

    cdef View column
    cdef object alive
    cdef int64_t count
    cdef const int32_t* values

    def __cinit__(self, slots):
        self.alive = open_array(slots, &self.column, TYPE_INT32, "slots")
        self.count, self.values = self.column.length, self.column.int32s()
        if not all_within(self.values, self.count, 2**31):
            raise IndexError("a slot is negative")


# Frames

cdef class FrameTable:
    """Aggregates over the last rows of each key slot. See over.pyi."""

    cdef Frames* frames
    cdef list sources               # for each value of a row, the column indexes (argument, filter), or -1
    cdef list argument_types        # for each value, the type of the argument, or None if there is none, or if it may have any type
    cdef readonly list results      # the types of the results

    def __cinit__(self, aggregates, arguments, filters, results, *, int64_t rows=-1, int64_t ms=-1):
        self.frames = new Frames()
        if (rows < 0) == (ms < 0):
            raise ValueError("a frame has either `rows` or `ms`")
        self.frames.rows = rows
        self.frames.ms = max(ms, 0)
        self.results = list(results)
        self.sources = []
        self.argument_types = []
        cdef dict known = {}
        cdef FrameCall call
        for (kind, argument_type), argument, where, result in zip(aggregates, arguments, filters, results, strict=True):
            call.type = _kernel_type(argument_type)
            call.result = _kernel_type(result)
            call.fold = _fold(kind, argument_type)
            if (argument, where) not in known:
                known[argument, where] = len(self.sources)
                self.sources.append((argument, where))
                self.argument_types.append(argument_type)
            call.value = known[argument, where]
            self.frames.calls.push_back(call)
        self.frames.values = len(self.sources)
        self.frames.ready()

    def __dealloc__(self):
        del self.frames

    def __len__(self):
        return self.frames.kept

    @property
    def keys(self):
        """The number of slots that have rows."""
        return self.frames.used()

    @property
    def nbytes(self):
        return self.frames.nbytes()

    def add(self, slots, data, time, *, selection=None):
        """Adds rows. Returns the results of each. See over.pyi."""
        cdef _Rows rows = _Rows(slots, data, selection, time)
        capsules = data.__arrow_c_array__()
        cdef ArrowSchema* schema = schema_of(capsules[0])
        cdef ArrowArray* array = array_of(capsules[1])
        cdef vector[View] views
        cdef vector[FrameValue] values
        cdef FrameValue value
        cdef int64_t index
        views.reserve(2 * len(self.sources))
        for (argument, where), argument_type in zip(self.sources, self.argument_types):
            if argument_type is not None and data.schema.field(argument).type != argument_type:
                raise TypeError(f"column {data.schema.names[argument]!r} is {data.schema.field(argument).type}, not {argument_type}")
            value.argument = value.filter = NULL
            for index in (argument, where):
                if index >= array.n_children:
                    raise IndexError(f"the batch has no column {index}, only {array.n_children}")
            if argument >= 0:
                index = argument
                views.push_back(view_of(schema.children[index], array.children[index], array.offset, array.length))
                value.argument = &views.back()
            if where >= 0:
                index = where
                views.push_back(view_of(schema.children[index], array.children[index], array.offset, array.length))
                value.filter = &views.back()
            values.push_back(value)
        with nogil:
            self.frames.add(rows.slots, rows.chosen, rows.count, values, rows.times)
        return self._results(rows.count)

    cdef list _results(self, int64_t count):
        cdef list found = []
        if self.frames.overflow >= 0:
            row, self.frames.overflow = self.frames.overflow, -1
            raise OverflowError(f"a sum is more than {self.results[self.frames.overflow_call]} holds", row)
        cdef size_t c
        cdef int64_t nulls
        cdef FrameColumn* column
        for c in range(self.frames.calls.size()):
            column = &self.frames.results[c]
            kind = self.results[c]
            values = pa.allocate_buffer((count * kind.bit_width + 7) // 8)
            validity = pa.allocate_buffer((count + 7) // 8)
            nulls = pack(
                self.frames.calls[c].result, column.raw.data(), column.valid.data(), <int> count, 0,
                <void*> <size_t> values.address, <uint8_t*> <size_t> validity.address,
            )  # fmt: skip
            found.append(pa.Array.from_buffers(kind, count, [validity if nulls else None, values], nulls))
        return found

    def advance(self, int64_t watermark_ms):
        """Drops rows that no later frame includes. See over.pyi."""
        cdef vector[int32_t] vacant
        with nogil:
            self.frames.advance(watermark_ms, vacant)
        return int32_array(vacant)

    def due(self, int64_t watermark_ms):
        """Returns the slots that `advance` would change. See over.pyi."""
        cdef vector[int32_t] slots
        with nogil:
            self.frames.due(watermark_ms, slots)
        return int32_array(slots)

    def remove(self, slots):
        """Removes the rows of these slots. See over.pyi."""
        cdef _Slots chosen = _Slots(slots)
        with nogil:
            self.frames.remove(chosen.values, chosen.count)

    def current(self, chosen=None):
        """Returns (slots, times, results). See over.pyi."""
        cdef vector[int32_t] slots
        cdef vector[int64_t] newest
        cdef _Slots of
        cdef int64_t k
        if chosen is None:
            self.frames.every(slots)
        else:
            of = _Slots(chosen)
            for k in range(of.count):
                if self.frames.size_of(of.values[k]):
                    slots.push_back(of.values[k])
        with nogil:
            self.frames.current(slots, newest)
        return int32_array(slots), int64_array(newest), self._results(slots.size())

    def export(self, chosen=None):
        """Returns rows as columns. See over.pyi."""
        cdef vector[int32_t] every
        if chosen is None:
            self.frames.every(every)
            chosen = int32_array(every)
        cdef _Slots of = _Slots(chosen)
        cdef int64_t count = 0, k
        for k in range(of.count):
            count += self.frames.size_of(of.values[k])
        cdef int32_t* slots
        cdef int64_t* times
        cdef void* data
        cdef vector[uint64_t*] raw
        cdef vector[uint8_t*] states
        cdef list columns = [new_array(pa.int32(), count, <void**> &slots), new_array(pa.int64(), count, <void**> &times)]
        cdef list names = ["slot", "time"]
        for i in range(len(self.sources)):
            columns.append(new_array(pa.uint64(), count, &data))
            raw.push_back(<uint64_t*> data)
            columns.append(new_array(pa.uint8(), count, &data))
            states.push_back(<uint8_t*> data)
            names += [f"{i}.value", f"{i}.state"]
        with nogil:
            self.frames.export_rows(of.values, of.count, slots, times, raw.data(), states.data())
        return pa.RecordBatch.from_arrays(columns, names=names)

    def load(self, state):
        """Loads rows of `export`. See over.pyi."""
        cdef View column, slots, times
        cdef vector[const uint64_t*] raw
        cdef vector[const uint8_t*] states
        cdef int64_t count = state.num_rows
        cdef list alive = [
            open_array(state.column("slot"), &slots, TYPE_INT32, "slot"),
            open_array(state.column("time"), &times, TYPE_INT64, "time"),
        ]
        if count == 0:
            return
        for i in range(len(self.sources)):
            alive.append(open_array(state.column(f"{i}.value"), &column, TYPE_UINT64, "value"))
            raw.push_back(column.uint64s())
            alive.append(open_array(state.column(f"{i}.state"), &column, TYPE_UINT8, "state"))
            states.push_back(column.uint8s())
        with nogil:
            self.frames.load(slots.int32s(), count, times.int64s(), raw.data(), states.data())


cdef Type _kernel_type(object data_type) except *:
    """Returns the kernel's code for a type; `nothing` for None."""
    if data_type is None:
        return TYPE_NOTHING
    capsule = data_type.__arrow_c_schema__()
    return type_of(schema_of(capsule).format)


cdef Fold _fold(str kind, object argument_type) except *:
    floating = argument_type is not None and pa.types.is_floating(argument_type)
    if kind == "sum":
        return FOLD_SUM_FLOAT if floating else FOLD_SUM_INT
    if kind == "mean":
        return FOLD_MEAN_FLOAT if floating else FOLD_MEAN_INT
    if kind == "count":
        return FOLD_COUNT
    if kind == "min":
        return FOLD_MIN
    if kind == "max":
        return FOLD_MAX
    if kind == "variance":
        return FOLD_VARIANCE
    if kind == "first":
        return FOLD_FIRST
    if kind == "last":
        return FOLD_LAST
    raise ValueError(f"there is no aggregate {kind!r} over a frame")


# Rows before and after a row

cdef list _columns_of(
    const Layout* layout, object schema, const vector[const Kept*]& rows, int64_t start, int64_t count,
    const vector[const Kept*]& instead, object wanted
):
    """Returns the columns of these rows that `wanted` names by index (None for all), in order."""
    cdef vector[Made] columns
    cdef vector[char] marks
    indices = range(len(schema)) if wanted is None else wanted
    if wanted is not None:
        marks.resize(len(schema), 0)
        for index in wanted:
            marks[<int64_t> index] = 1
    with nogil:
        read_kept(layout[0], rows, start, count, instead, marks, columns)
    made = {index: array_of_made(&columns[<int64_t> index], schema.field(index).type) for index in set(indices)}
    return [made[index] for index in indices]


cdef list _all_rows(const Layout* layout, object schema, const vector[const Kept*]& rows, int64_t most):
    """Returns batches of (slot, time, number, columns…); the names of the first three are reserved."""
    cdef int64_t start = 0, count, i
    cdef int64_t size = rows.size()
    cdef int32_t* slots
    cdef int64_t* times
    cdef int64_t* numbers
    cdef list found = []
    saved = pa.schema([*_MARKS, *schema])
    while start < size:
        count = kept_piece(rows, start, most)
        arrays = [
            new_array(pa.int32(), count, <void**> &slots),
            new_array(pa.int64(), count, <void**> &times),
            new_array(pa.int64(), count, <void**> &numbers),
        ]
        for i in range(count):
            slots[i] = rows[start + i].slot
            times[i] = rows[start + i].time
            numbers[i] = rows[start + i].number
        arrays += _columns_of(layout, schema, rows, start, count, rows, None)
        found.append(pa.RecordBatch.from_arrays(arrays, schema=saved))
        start += count
    return found


cdef list _checked_offsets(object offsets, vector[int64_t]* out):
    for offset in offsets:
        if offset < 1:
            raise ValueError(f"an offset must be 1 or more, not {offset}")
        out.push_back(offset)
    return list(offsets)


cdef class PlaceTable:
    """The position of each row among the rows of its key slot, and the rows before it. See over.pyi."""

    cdef Places* places
    cdef readonly object columns

    def __cinit__(self, columns, offsets):
        self.places = new Places()
        self.columns = columns
        lay_out(&self.places.kept.layout, columns)
        self.places.depth = max(_checked_offsets(offsets, &self.places.offsets), default=0)

    def __dealloc__(self):
        del self.places

    def __len__(self):
        return self.places.used()

    @property
    def nbytes(self):
        return self.places.nbytes()

    def add(self, slots, data, time, *, selection=None):
        """Adds rows. See over.pyi."""
        cdef _Rows rows = _Rows(slots, data, selection, time)
        cdef vector[Source] sources
        capsules = open_rows(&self.places.kept.layout, self.columns, data, &sources)
        with nogil:
            self.places.add(sources, rows.slots, rows.chosen, rows.count, rows.times)
        cdef size_t o
        ranks = (
            int64_array(self.places.numbers), int64_array(self.places.ranks), int64_array(self.places.dense_ranks)
        )  # fmt: skip
        found = [int64_array(self.places.sources[o]) for o in range(self.places.offsets.size())]
        history = _columns_of(
            &self.places.kept.layout, self.columns, self.places.history, 0, self.places.history.size(), self.places.history, None
        )
        return ranks, found, history

    def export(self, int64_t rows, slots=None):
        """Returns (counters, kept rows). See over.pyi."""
        cdef vector[int32_t] found
        cdef vector[const Kept*] kept
        cdef _Slots chosen
        if slots is None:
            self.places.every(found)
        else:
            chosen = _Slots(slots)
            self.places.there(chosen.values, chosen.count, found)
        cdef int64_t* raw[5]
        cdef list columns = [int32_array(found)]
        for i in range(5):
            columns.append(new_array(pa.int64(), found.size(), <void**> &raw[<int> i]))
        with nogil:
            self.places.counters(found, raw[0], raw[1], raw[2], raw[3], raw[4])
            self.places.history_of(found, kept)
        counters = pa.RecordBatch.from_arrays(columns, names=["slot", "rows", "newest", "rank", "dense", "kept"])
        return counters, _all_rows(&self.places.kept.layout, self.columns, kept, rows)

    def remove(self, slots):
        """Removes these slots. See over.pyi."""
        cdef _Slots chosen = _Slots(slots)
        with nogil:
            self.places.remove(chosen.values, chosen.count)

    def load(self, counters):
        """Loads counters of `export`."""
        cdef View slots
        cdef View columns[4]
        cdef list alive = [open_array(counters.column("slot"), &slots, TYPE_INT32, "slot")]
        cdef int64_t i
        for i, name in enumerate(("rows", "newest", "rank", "dense")):
            alive.append(open_array(counters.column(name), &columns[i], TYPE_INT64, name))
        with nogil:
            for i in range(slots.length):
                self.places.load_counter(
                    slots.int32s()[i], columns[0].int64s()[i], columns[1].int64s()[i], columns[2].int64s()[i],
                    columns[3].int64s()[i],
                )  # fmt: skip

    def load_history(self, slots, data, time):
        """Loads kept rows of `export`, whose counters are loaded. See over.pyi."""
        cdef _Rows rows = _Rows(slots, data, None, time)
        cdef vector[Source] sources
        capsules = open_rows(&self.places.kept.layout, self.columns, data, &sources)
        cdef int64_t i
        for i in range(rows.count):
            if not self.places.load(sources, i, rows.slots[i], rows.times[i]):
                raise ValueError(f"row {i}: slot {rows.slots[i]} has no counter, or more rows than the greatest offset")


cdef class WaitTable:
    """Rows that wait for rows of their key slot to come after them. See over.pyi."""

    cdef Waiting* rows_waiting
    cdef readonly object rows
    cdef object wanted              # for each offset, the columns that are returned

    def __cinit__(self, rows, offsets, wanted):
        self.rows_waiting = new Waiting()
        self.rows = rows
        self.wanted = [list(each) for each in wanted]
        lay_out(&self.rows_waiting.kept.layout, rows)
        self.rows_waiting.depth = max(_checked_offsets(offsets, &self.rows_waiting.offsets))

    def __dealloc__(self):
        del self.rows_waiting

    def __len__(self):
        return self.rows_waiting.waiting()

    @property
    def nbytes(self):
        return self.rows_waiting.nbytes()

    @property
    def next_number(self):
        return self.rows_waiting.next_number

    @next_number.setter
    def next_number(self, int64_t number):
        self.rows_waiting.next_number = number

    @property
    def least(self):
        """The least time of a waiting row, or None if no row waits."""
        return self.rows_waiting.least() if self.rows_waiting.waiting() else None

    def add(self, slots, data, time, *, selection=None, int64_t rows=65536):
        """Adds rows. Returns those that need not wait any more. See over.pyi."""
        cdef _Rows given = _Rows(slots, data, selection, time)
        cdef vector[Source] sources
        capsules = open_rows(&self.rows_waiting.kept.layout, self.rows, data, &sources)
        with nogil:
            self.rows_waiting.add(sources, given.slots, given.chosen, given.count, given.times)
        return self._ready(rows)

    def flush(self, int64_t rows=65536):
        """Returns all waiting rows at the end of the input. See over.pyi."""
        cdef vector[int32_t] slots
        with nogil:
            self.rows_waiting.flush(slots)
        return int32_array(slots), self._ready(rows)

    cdef list _ready(self, int64_t most):
        cdef int64_t start = 0, count, i
        cdef int64_t size = self.rows_waiting.ready.size()
        cdef size_t o
        cdef Layout* layout = &self.rows_waiting.kept.layout
        cdef list found = []
        cdef int64_t* times
        cdef uint8_t* there
        while start < size:
            count = kept_piece(self.rows_waiting.ready, start, most)
            columns = _columns_of(layout, self.rows, self.rows_waiting.ready, start, count, self.rows_waiting.ready, None)
            time = new_array(pa.int64(), count, <void**> &times)
            for i in range(count):
                times[i] = self.rows_waiting.ready[start + i].time
            after = []
            for o in range(self.rows_waiting.offsets.size()):
                marks = new_array(pa.uint8(), count, <void**> &there)
                for i in range(count):
                    there[i] = self.rows_waiting.sources[o][start + i] != NULL
                values = _columns_of(
                    layout, self.rows, self.rows_waiting.sources[o], start, count, self.rows_waiting.ready, self.wanted[o]
                )
                after.append((marks.cast(pa.bool_()), values))
            found.append((columns, time, after))
            start += count
        return found

    def export(self, int64_t rows, slots=None):
        """Returns the waiting rows. See over.pyi."""
        cdef vector[const Kept*] all
        cdef _Slots chosen
        if slots is None:
            self.rows_waiting.all(all)
        else:
            chosen = _Slots(slots)
            self.rows_waiting.rows_of(chosen.values, chosen.count, all)
        return _all_rows(&self.rows_waiting.kept.layout, self.rows, all, rows)

    def remove(self, slots):
        """Removes the waiting rows of these slots. See over.pyi."""
        cdef _Slots chosen = _Slots(slots)
        with nogil:
            self.rows_waiting.remove(chosen.values, chosen.count)

    def load(self, slots, data, time, numbers):
        """Loads rows of `export`. See over.pyi."""
        cdef _Rows rows = _Rows(slots, data, None, time)
        cdef View column
        alive = open_array(numbers, &column, TYPE_INT64, "numbers")
        if column.length != rows.count:
            raise ValueError(f"{column.length} numbers for {rows.count} rows")
        cdef vector[Source] sources
        capsules = open_rows(&self.rows_waiting.kept.layout, self.rows, data, &sources)
        cdef int64_t i
        with nogil:
            for i in range(rows.count):
                self.rows_waiting.load(sources, i, rows.slots[i], rows.times[i], column.int64s()[i])
