"""Rows by key. See row_table.pyi for the contract; the loops over rows are in row_table.h.

Types are checked here and columns opened as views, once per call. Then the call runs without the GIL.
"""

import os

import pyarrow as pa

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool as cbool
from libcpp.memory cimport shared_ptr, unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport TYPE_OTHER, Numbers, Type, View, int64_array, key_type_of, key_view_of, new_array, numbers_of, rows_of

from sabot._cython.groups.partition import check_keys

__all__ = ["ALIVE", "RowCut", "RowTable"]


cdef extern from "rows/row_table.h" namespace "sabot" nogil:
    cbool same_type(const ArrowSchema* a, const ArrowSchema* b)

    cppclass Layout:
        pass

    cppclass Store:
        int64_t rows

    cppclass Memory:
        Memory()

    cppclass Keys "sabot::Table":
        int64_t groups
        void add_key(Type type) except +

    cppclass Incoming:
        ArrowArray** columns
        int64_t offset
        const View* keys
        const uint64_t* hashes
        const int32_t* chosen
        int64_t count
        const int64_t* order

    cppclass Alive:
        uint8_t kind
        string data
        string counts

    cppclass RowBlock:
        int64_t first_id

    cppclass Part "sabot::RowsCut::Part":
        shared_ptr[const RowBlock] block
        int64_t alive

    cppclass RowsCut:
        vector[Part] parts
        Alive alive(const Part& part) except +
        int64_t rows
        int64_t next_id
        int64_t rows_in(int64_t first, int64_t end)
        int64_t read(
            const vector[Layout]& layouts, int64_t first, int64_t end, int64_t most, vector[Store]& out
        ) except +

    cppclass Table "sabot::RowTable":
        Keys keys
        void add_column(const ArrowSchema* schema) except +
        cbool column_is_kept(int64_t column)
        void set_key_count(size_t count)
        void ready(int64_t key_columns, cbool counted) except +
        void use_directory(const string& directory, int64_t memory_bytes) except +
        const vector[Layout]& layouts()
        int64_t rows()
        int64_t blocks()
        int64_t nbytes()
        void insert(const Incoming& rows, int64_t* ids) except +
        void known_slots(const Incoming& rows, int32_t* slots) except +
        void nearest(const Incoming& rows, cbool last, int64_t* ids) except +
        void match(const Incoming& rows, int64_t* ids) except +
        void take(const int64_t* ids, int64_t count, const vector[int]& columns, vector[Store]& out) except +
        void orders(const int64_t* ids, int64_t count, int64_t* out) except +
        void hashes(const int64_t* ids, int64_t count, uint64_t* out) except +
        void counts(const int64_t* ids, int64_t count, int32_t* out) except +
        void add_counts(const int64_t* ids, int64_t count, const int32_t* by, int32_t same) except +
        void remove(const int64_t* ids, int64_t count) except +
        void below(int64_t order, vector[int64_t]& ids) except +
        void superseded(int64_t order, vector[int64_t]& ids) except +
        shared_ptr[RowsCut] cut() except +

    cppclass Finder:
        Finder(const int64_t* lower, const int64_t* upper, int64_t limit) except +
        void start(Table& table, const Incoming& rows) except +
        int64_t next(const Table& table, int64_t most, Memory& numbers, Memory& ids) except +
        cbool outdated(const Table& table)

    void give_columns(
        vector[Store]& stores, const vector[Layout]& layouts, const vector[int]& columns, int64_t rows, ArrowArray* out
    ) except +
    void give_cut_columns(vector[Store]& stores, const vector[Layout]& layouts, ArrowArray* out) except +
    void give_numbers(Memory& memory, int64_t width, int64_t rows, ArrowArray* out) except +


cdef object _RecordBatch = pa.RecordBatch
cdef object _INT32 = pa.int32()
cdef object _INT64 = pa.int64()
cdef object _UINT64 = pa.uint64()
cdef int64_t LAST_ID = 2**63 - 1
cdef size_t BLOCKS_AT_ONCE = 1000

ALIVE = pa.schema(
    [("first", pa.int64()), ("rows", pa.int32()), ("kind", pa.int8()), ("data", pa.binary()), ("counts", pa.binary())]
)


# Arrays made here

cdef void _release_capsule(object capsule) noexcept:
    cdef ArrowArray* array = <ArrowArray*> PyCapsule_GetPointer(capsule, "arrow_array")
    if array.release != NULL:
        array.release(array)
    free(array)


cdef class _Made:
    """An array that was made here. pyarrow takes over its memory."""

    cdef object capsule
    cdef ArrowArray* array
    cdef object schema              # any object with __arrow_c_schema__

    def __cinit__(self, schema):
        self.schema = schema
        self.array = <ArrowArray*> calloc(1, sizeof(ArrowArray))
        if self.array == NULL:
            raise MemoryError()
        self.capsule = PyCapsule_New(self.array, "arrow_array", _release_capsule)

    def __arrow_c_array__(self, requested_schema=None):
        return self.schema.__arrow_c_schema__(), self.capsule


# Arguments

cdef class _Rows:
    """The rows of one call, open for reading."""

    cdef object batch
    cdef tuple capsules             # keep the structs alive
    cdef ArrowSchema* schema
    cdef ArrowArray* array
    cdef list kept                  # keeps the Numbers alive
    cdef vector[View] keys
    cdef Incoming rows

    cdef int64_t add_numbers(self, object data, object data_type, str name) except 0:
        """Opens an array with an entry for each row of the batch. Returns the address of its values."""
        cdef Numbers numbers = numbers_of(data, data_type, name, self.array.length)
        self.kept.append(numbers)
        return <int64_t> numbers.values


cdef _Rows _open(object data, object selection, object hashes):
    if not isinstance(data, _RecordBatch):
        raise TypeError(f"the rows must be a pyarrow.RecordBatch, not a {type(data).__name__}")
    cdef _Rows rows = _Rows()
    cdef Numbers chosen
    rows.batch = data
    rows.capsules = data.__arrow_c_array__()
    rows.schema = schema_of(rows.capsules[0])
    rows.array = array_of(rows.capsules[1])
    rows.kept = []
    rows.rows.offset = rows.array.offset
    rows.rows.count = rows.array.length
    if selection is not None:
        chosen = rows_of(selection, rows.array.length)
        rows.kept.append(chosen)
        rows.rows.chosen = chosen.int32()
        rows.rows.count = chosen.length
    if hashes is not None:
        rows.rows.hashes = <const uint64_t*> rows.add_numbers(hashes, _UINT64, "hashes")
    return rows


cdef class RowTable:
    """Rows by key, kept in the table's own columns. See row_table.pyi."""

    cdef Table* table
    cdef readonly object rows
    cdef readonly list keys
    cdef readonly bint counted
    cdef list key_columns           # the indexes of the key columns
    cdef object schema_capsule      # the schema of the rows
    cdef ArrowSchema* schema
    cdef dict schemas               # the schemas of selections of columns

    def __cinit__(self, *args, **kwargs):
        self.table = new Table()

    def __dealloc__(self):
        del self.table

    def __init__(self, rows, keys, *, bint counted=False, directory=None, int64_t memory_bytes=256_000_000):
        if not isinstance(rows, pa.Schema):
            raise TypeError(f"the columns must be a pyarrow.Schema, not a {type(rows).__name__}")
        self.rows = rows
        self.keys = list(keys)
        self.counted = counted
        self.key_columns = []
        self.schemas = {}
        self.schema_capsule = rows.__arrow_c_schema__()
        self.schema = schema_of(self.schema_capsule)
        for column in range(len(rows)):
            self.table.add_column(self.schema.children[column])
            if not self.table.column_is_kept(column):
                raise TypeError(
                    f"column {rows.names[column]!r} of type {rows.types[column]} cannot be stored: normalise the batch, or cast it"
                )
        for name in self.keys:
            column = rows.get_field_index(name)
            if column < 0:
                raise ValueError(f"key {name!r} must be the name of exactly one column of {rows.names}")
            if column in self.key_columns:
                raise ValueError(f"key {name!r} is given twice")
            kind = rows.types[column]
            format = self.schema.children[column].format
            if key_type_of(format) == TYPE_OTHER or pa.types.is_null(kind) or pa.types.is_fixed_size_binary(kind):
                raise TypeError(f"key {name!r} cannot be {kind}: use bool, integers, floats, decimals, string, binary, dates or times")
            self.key_columns.append(column)
            self.table.keys.add_key(key_type_of(format))
        check_keys(pa.schema([rows.field(column) for column in self.key_columns]))
        self.table.set_key_count(len(self.key_columns))
        self.table.ready(len(self.key_columns), counted)
        if directory is not None:
            self.table.use_directory(os.fsencode(directory), memory_bytes)

    def __len__(self):
        return self.table.rows()

    @property
    def nbytes(self):
        """The bytes of memory that the table takes, including index and keys."""
        return self.table.nbytes()

    def statistics(self):
        """Returns the numbers of rows, keys, blocks and bytes."""
        return {
            "rows": self.table.rows(),
            "keys": self.table.keys.groups,
            "blocks": self.table.blocks(),
            "bytes": self.table.nbytes(),
        }

    # Adding rows

    cdef int add_keys(self, _Rows call, object keys) except -1:
        """Adds the key columns of the batch to the call."""
        cdef int64_t column
        if len(keys) != len(self.key_columns):
            raise ValueError(f"{len(keys)} key columns were given, and the table has {len(self.key_columns)}")
        for column, mine in zip(keys, self.key_columns):
            if not 0 <= column < call.array.n_children:
                raise IndexError(f"the batch has no column {column}, only {call.array.n_children}")
            if not same_type(call.schema.children[column], self.schema.children[<int64_t> mine]):
                raise TypeError(
                    f"key column {call.batch.schema.names[column]!r} is {call.batch.schema.types[column]}, "
                    f"the table's key {self.rows.names[mine]!r} is {self.rows.types[mine]}"
                )
            call.keys.push_back(
                key_view_of(call.schema.children[column], call.array.children[column], call.array.offset, call.array.length)
            )
        call.rows.keys = call.keys.data()
        return 0

    cdef _Rows open_rows(self, object data, object order, object hashes, object selection):
        """Opens whole rows, with all columns of the table."""
        cdef _Rows call = _open(data, selection, hashes)
        cdef int64_t column
        if call.array.n_children < len(self.rows):
            raise TypeError(f"the batch has the columns {call.batch.schema.names}, and the table has {self.rows.names}")
        for column in range(len(self.rows)):
            if not same_type(call.schema.children[column], self.schema.children[column]):
                raise TypeError(
                    f"column {call.batch.schema.names[column]!r} is {call.batch.schema.types[column]}, "
                    f"the table's {self.rows.names[column]!r} is {self.rows.types[column]}"
                )
        self.add_keys(call, self.key_columns)
        call.rows.columns = call.array.children
        if order is not None:
            call.rows.order = <const int64_t*> call.add_numbers(order, _INT64, "order")
        return call

    cdef _Rows open_probes(self, object data, object keys, object hashes, object selection):
        cdef _Rows call = _open(data, selection, hashes)
        self.add_keys(call, keys)
        return call

    def insert(self, data, order=None, *, hashes=None, selection=None):
        """Adds rows. Returns their ids."""
        cdef _Rows call = self.open_rows(data, order, hashes, selection)
        cdef int64_t* ids
        made = new_array(_INT64, call.rows.count, <void**> &ids)
        with nogil:
            self.table.insert(call.rows, ids)
        return made

    # Searching

    def find(self, data, keys, *, hashes=None, selection=None, lower=None, upper=None, limit=None):
        """Returns all pairs (row of `data`, row of the table) of equal keys with lower <= order <= upper."""
        cdef _Found found = self.finder(data, keys, hashes, selection, lower, upper, limit)
        return found.next(LAST_ID)

    def find_chunks(self, data, keys, *, hashes=None, selection=None, lower=None, upper=None, limit=None, int64_t rows=65_536):
        """Returns the pairs of `find` in pieces."""
        if rows < 1:
            raise ValueError(f"rows must be 1 or more, not {rows}")
        cdef _Found found = self.finder(data, keys, hashes, selection, lower, upper, limit)
        found.most = rows
        return found

    cdef _Found finder(self, object data, object keys, object hashes, object selection, object lower, object upper, object limit):
        cdef _Rows call = self.open_probes(data, keys, hashes, selection)
        cdef const int64_t* least = NULL
        cdef const int64_t* most = NULL
        cdef int64_t count = LAST_ID if limit is None else limit
        if lower is not None:
            least = <const int64_t*> call.add_numbers(lower, _INT64, "lower")
        if upper is not None:
            most = <const int64_t*> call.add_numbers(upper, _INT64, "upper")
        if count < 0:
            raise ValueError(f"limit must not be negative, as {count} is")
        cdef _Found found = _Found()
        found.table = self
        found.call = call
        found.finder.reset(new Finder(least, most, count))
        cdef Finder* finder = found.finder.get()
        with nogil:
            finder.start(self.table[0], call.rows)
        return found

    def last_at(self, data, keys, at, *, hashes=None, selection=None):
        """Returns the id of the key's last row with order <= at, or -1."""
        return self.nearest(data, keys, at, hashes, selection, True)

    def first_at(self, data, keys, at, *, hashes=None, selection=None):
        """Returns the id of the key's first row with order >= at, or -1."""
        return self.nearest(data, keys, at, hashes, selection, False)

    cdef object nearest(self, object data, object keys, object at, object hashes, object selection, bint last):
        cdef _Rows call = self.open_probes(data, keys, hashes, selection)
        call.rows.order = <const int64_t*> call.add_numbers(at, _INT64, "at")
        cdef int64_t* ids
        made = new_array(_INT64, call.rows.count, <void**> &ids)
        with nogil:
            self.table.nearest(call.rows, last, ids)
        return made

    def match(self, data, order=None, *, hashes=None, selection=None):
        """Returns the ids of equal rows, or -1."""
        cdef _Rows call = self.open_rows(data, order, hashes, selection)
        cdef int64_t* ids
        made = new_array(_INT64, call.rows.count, <void**> &ids)
        with nogil:
            self.table.match(call.rows, ids)
        return made

    def key_ids(self, data, keys, *, hashes=None, selection=None):
        """Returns a number for each row's key; -1 if the table has no rows of the key, or the key has a null."""
        cdef _Rows call = self.open_probes(data, keys, hashes, selection)
        cdef int32_t* slots
        made = new_array(_INT32, call.rows.count, <void**> &slots)
        with nogil:
            self.table.known_slots(call.rows, slots)
        return made

    # Access by id

    def take(self, ids, columns=None):
        """Returns the rows; the id -1 gives a row of nulls."""
        cdef Numbers numbers = numbers_of(ids, _INT64, "ids", -1)
        cdef vector[int] wanted
        cdef vector[Store] stores
        cdef int column
        if columns is None:
            schema = self.rows
            for column in range(<int> len(self.rows)):
                wanted.push_back(column)
        else:
            names = tuple(columns)
            schema = self.schemas.get(names)
            for column in names:
                if not 0 <= column < len(self.rows):
                    raise IndexError(f"the table has no column {column}, only {len(self.rows)}")
                wanted.push_back(column)
            if schema is None:
                schema = self.schemas[names] = pa.schema([self.rows.field(c) for c in names])
        cdef _Made made = _Made(schema)
        with nogil:
            self.table.take(numbers.int64(), numbers.length, wanted, stores)
            give_columns(stores, self.table.layouts(), wanted, numbers.length, made.array)
        return pa.record_batch(made)

    def orders(self, ids):
        """Returns the orders of the rows."""
        cdef Numbers numbers = numbers_of(ids, _INT64, "ids", -1)
        cdef int64_t* out
        made = new_array(_INT64, numbers.length, <void**> &out)
        with nogil:
            self.table.orders(numbers.int64(), numbers.length, out)
        return made

    def hashes(self, ids):
        """Returns the hashes of the rows' keys."""
        cdef Numbers numbers = numbers_of(ids, _INT64, "ids", -1)
        cdef uint64_t* out
        made = new_array(_UINT64, numbers.length, <void**> &out)
        with nogil:
            self.table.hashes(numbers.int64(), numbers.length, out)
        return made

    def counts(self, ids):
        """Returns the counts of the rows."""
        cdef Numbers numbers = self.countable(ids)
        cdef int32_t* out
        made = new_array(_INT32, numbers.length, <void**> &out)
        with nogil:
            self.table.counts(numbers.int64(), numbers.length, out)
        return made

    def add_counts(self, ids, by):
        """Adds to the counts of the rows."""
        cdef Numbers numbers = self.countable(ids), more
        cdef const int32_t* each = NULL
        cdef int32_t same = 0
        if isinstance(by, int):
            same = by
        else:
            more = numbers_of(by, _INT32, "by", numbers.length)
            each = more.int32()
        with nogil:
            self.table.add_counts(numbers.int64(), numbers.length, each, same)

    cdef Numbers countable(self, object ids):
        if not self.counted:
            raise ValueError("the table has no counts: make it with counted=True")
        return numbers_of(ids, _INT64, "ids", -1)

    def remove(self, ids):
        """Removes the rows."""
        cdef Numbers numbers = numbers_of(ids, _INT64, "ids", -1)
        with nogil:
            self.table.remove(numbers.int64(), numbers.length)

    # Access by order

    def below(self, int64_t order):
        """Returns the ids of rows with an order below this one, sorted by (order, id)."""
        cdef vector[int64_t] ids
        with nogil:
            self.table.below(order, ids)
        return int64_array(ids)

    def superseded(self, int64_t order):
        """Returns the ids of rows with an order below this one that are not the last such row of their key."""
        cdef vector[int64_t] ids
        with nogil:
            self.table.superseded(order, ids)
        return int64_array(ids)

    def cut(self):
        """Takes a snapshot of the rows."""
        cdef RowCut cut = RowCut.__new__(RowCut)
        with nogil:
            cut.cut = self.table.cut()
        cut.table = self
        cut.schema = pa.schema([*self.rows, pa.field("__order", _INT64), pa.field("__id", _INT64)])
        cut.next_id = cut.cut.get().next_id
        return cut


cdef class _Found:
    """The pairs that a search finds, in pieces."""

    cdef RowTable table
    cdef _Rows call
    cdef unique_ptr[Finder] finder
    cdef int64_t most
    cdef bint over

    cdef tuple next(self, int64_t most):
        cdef Finder* finder = self.finder.get()
        cdef Memory numbers, ids
        cdef int64_t pairs
        cdef _Made rows_made = _Made(_INT32), ids_made = _Made(_INT64)
        with nogil:
            pairs = finder.next(self.table.table[0], most, numbers, ids)
            give_numbers(numbers, 4, pairs, rows_made.array)
            give_numbers(ids, 8, pairs, ids_made.array)
        self.over = pairs < most
        return pa.array(rows_made), pa.array(ids_made)

    def __iter__(self):
        return self

    def __next__(self):
        if self.over:
            raise StopIteration
        if self.finder.get().outdated(self.table.table[0]):
            raise RuntimeError("the table has changed since the search began")
        pairs = self.next(self.most)
        if len(pairs[0]) == 0:
            raise StopIteration
        return pairs


cdef class RowCut:
    """A snapshot of the rows of a table. See row_table.pyi."""

    cdef RowTable table
    cdef shared_ptr[RowsCut] cut
    cdef readonly object schema
    cdef readonly int64_t next_id

    cdef int need(self) except -1:
        if self.cut.get() == NULL:
            raise ValueError("the cut is closed")
        return 0

    def __len__(self):
        self.need()
        return self.cut.get().rows

    def rows_in(self, int64_t first, int64_t end):
        """Returns the number of rows with first <= id < end."""
        self.need()
        return self.cut.get().rows_in(first, end)

    def read(self, int64_t first=0, int64_t end=LAST_ID, *, int64_t rows=65_536):
        """Returns the rows with first <= id < end, by id."""
        while first < end:
            batch, first = self.read_some(first, end, rows)
            if batch.num_rows:
                yield batch

    cdef tuple read_some(self, int64_t first, int64_t end, int64_t most):
        self.need()
        cdef shared_ptr[RowsCut] cut = self.cut
        cdef vector[Store] stores
        cdef _Made made = _Made(self.schema)
        with nogil:
            first = cut.get().read(self.table.table.layouts(), first, end, most, stores)
            give_cut_columns(stores, self.table.table.layouts(), made.array)
        return pa.record_batch(made), first

    def alive(self):
        """Returns the live ids, block by block, and their counts."""
        self.need()
        cdef shared_ptr[RowsCut] cut = self.cut
        cdef Alive found
        cdef size_t part, start
        for start in range(0, cut.get().parts.size(), BLOCKS_AT_ONCE):
            firsts, rows, kinds, data, counts = [], [], [], [], []
            for part in range(start, min(start + BLOCKS_AT_ONCE, cut.get().parts.size())):
                with nogil:
                    found = cut.get().alive(cut.get().parts[part])
                firsts.append(cut.get().parts[part].block.get().first_id)
                rows.append(cut.get().parts[part].alive)
                kinds.append(found.kind)
                data.append(<bytes> found.data)
                counts.append(<bytes> found.counts)
            yield pa.record_batch(
                [pa.array(x, field.type) for x, field in zip((firsts, rows, kinds, data, counts), ALIVE)], ALIVE
            )

    def close(self):
        """Frees the memory that only the snapshot keeps."""
        self.cut.reset()
