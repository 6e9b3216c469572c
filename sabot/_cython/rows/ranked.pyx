"""The first n rows of each key slot. See ranked.pyi for the contract; the loops over rows are in ranked_table.h."""

import pyarrow as pa

from libc.stdint cimport int8_t, int32_t, int64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from sabot._cython.arrow.c_data cimport ArrowArray, ArrowSchema, array_of, schema_of
from sabot._cython.arrow.columns cimport (
    TYPE_INT8,
    TYPE_INT32,
    TYPE_INT64,
    TYPE_OTHER,
    Type,
    View,
    all_within,
    has_bytes,
    int32_array,
    new_array,
    open_array,
    type_of,
    view_of,
)
from sabot._cython.rows.row_bytes cimport Layout, Made, Source, array_of_made, lay_out, open_rows

__all__ = ["NUMBER_COLUMN", "RankTable"]

NUMBER_COLUMN = "__number"
_TIME_COLUMN = "__time"
cdef object _RecordBatch = pa.RecordBatch


cdef extern from "rows/ranked_table.h" namespace "sabot" nogil:
    ctypedef enum Ties "sabot::Ties":
        ROW_NUMBER "sabot::Ties::row_number"
        RANK "sabot::Ties::rank"
        DENSE_RANK "sabot::Ties::dense_rank"

    cppclass Row:
        pass

    cppclass Change:
        pass

    cppclass SortColumn:
        int index
        cbool descending
        cbool decimal

    cppclass Ranking:
        # Callers have to check that slots are not negative, and that rows are within the columns.
        Layout layout
        vector[SortColumn] by
        cbool exact
        int64_t n
        Ties ties
        cbool ranked
        cbool changes
        cbool borrows
        int64_t rows
        vector[Change] out
        Ranking() except +
        int64_t nbytes()
        int64_t add(
            const vector[Source]& columns, const vector[View]& sort_views, const int32_t* slots, const int32_t* chosen,
            int64_t count, const int8_t* ops, const int64_t* times, int64_t arrival
        ) except +
        void load(
            const vector[Source]& columns, const vector[View]& sort_views, const int32_t* slots, int64_t count,
            const int64_t* numbers, const int64_t* times
        ) except +
        void absorb(const Ranking& other, const int32_t* slots) except +
        int64_t slots_used()
        void settle(vector[int32_t]& vacant) except +
        void members() except +
        void rows_of(const int32_t* slots, int64_t count, vector[const Row*]& found) except +
        void remove(const int32_t* slots, int64_t count)
        int64_t piece(int64_t start, int64_t most)


cdef extern from *:
    """
    #include "rows/ranked_table.h"

    static inline void sabot_read_changes(
        const sabot::Layout& layout, const std::vector<sabot::Change>& out, int64_t start, int64_t count,
        std::vector<sabot::Made>& columns, int64_t* ranks, int8_t* ops, int64_t* times
    ) {
        layout.read(count, [&](int64_t i) { return out[start + i].row->bytes(); }, columns, nullptr, [&](int64_t i) {
            const sabot::Change& change = out[start + i];
            ranks[i] = change.rank;
            ops[i] = change.op;
            times[i] = change.row->time;
        });
    }
    static inline void sabot_read_rows(
        const sabot::Layout& layout, const std::vector<const sabot::Row*>& rows, std::vector<sabot::Made>& columns,
        int64_t* numbers, int64_t* times
    ) {
        auto bytes_of = [&](int64_t i) { return rows[i]->bytes(); };
        layout.read(rows.size(), bytes_of, columns, nullptr, [&](int64_t i) {
            numbers[i] = sabot::Ranking::arrival(rows[i]);
            times[i] = rows[i]->time;
        });
    }
    """
    void read_changes "sabot_read_changes"(
        const Layout& layout, const vector[Change]& out, int64_t start, int64_t count, vector[Made]& columns,
        int64_t* ranks, int8_t* ops, int64_t* times
    ) except + nogil
    void read_rows "sabot_read_rows"(
        const Layout& layout, const vector[const Row*]& rows, vector[Made]& columns, int64_t* numbers, int64_t* times
    ) except + nogil


cdef class RankTable:
    """Rows by key slot, and the first n rows of each slot. See ranked.pyi."""

    cdef Ranking* ranking
    cdef readonly object rows
    cdef list absorbed              # keeps the tables alive whose rows it refers to

    def __cinit__(self, rows, by, int64_t n, *, str ties="row_number", bint ranked=False, bint changes=False):
        self.ranking = new Ranking()
        self.absorbed = []
        if n < 1:
            raise ValueError(f"n must be 1 or more, not {n}")
        cdef dict kinds = {"row_number": <int> ROW_NUMBER, "rank": <int> RANK, "dense_rank": <int> DENSE_RANK}
        if ties not in kinds:
            raise ValueError(f"ties must be row_number, rank or dense_rank, not {ties!r}")
        self.rows = rows
        self.ranking.n = n
        self.ranking.ties = <Ties> <int> kinds[ties]
        self.ranking.ranked = ranked
        self.ranking.changes = changes
        lay_out(&self.ranking.layout, rows)
        cdef SortColumn column
        cdef Type kind
        capsule = rows.__arrow_c_schema__()
        for index, descending in by:
            kind = type_of(schema_of(capsule).children[<int64_t> index].format)
            data_type = rows.field(index).type
            column.index = index
            column.descending = descending
            column.decimal = pa.types.is_decimal(data_type)
            if kind == TYPE_OTHER and not column.decimal:
                raise TypeError(f"rows cannot be ordered by {rows.field(index).name!r}, which is {data_type}")
            self.ranking.by.push_back(column)
            self.ranking.exact = len(by) == 1 and not column.decimal and not has_bytes(kind)

    def __dealloc__(self):
        del self.ranking

    def __len__(self):
        return self.ranking.rows

    @property
    def nbytes(self):
        return self.ranking.nbytes()

    cdef int _views(self, tuple capsules, vector[View]* views) except -1:
        """Opens a view per sort column."""
        cdef ArrowSchema* schema = schema_of(capsules[0])
        cdef ArrowArray* array = array_of(capsules[1])
        cdef size_t i
        cdef int index
        for i in range(self.ranking.by.size()):
            index = self.ranking.by[i].index
            views.push_back(view_of(schema.children[index], array.children[index], array.offset, array.length))
        return 0

    cdef int _check_own(self) except -1:
        if self.ranking.borrows:
            raise ValueError("rows cannot be added to a table that has absorbed another")
        return 0

    def add(self, slots, data, *, selection=None, ops=None, time=None, int64_t arrival=-1):
        """Adds and removes rows. See ranked.pyi."""
        self._check_own()
        cdef vector[Source] sources
        cdef vector[View] views
        cdef View slot_column, chosen_column, op_column, time_column
        capsules = open_rows(&self.ranking.layout, self.rows, data, &sources)
        self._views(capsules, &views)
        cdef list alive = [open_array(slots, &slot_column, TYPE_INT32, "slots")]
        cdef int64_t rows = data.num_rows, count = slot_column.length, missing
        cdef const int32_t* chosen = NULL
        cdef const int8_t* op_values = NULL
        cdef const int64_t* times = NULL
        if selection is not None:
            alive.append(open_array(selection, &chosen_column, TYPE_INT32, "selection"))
            chosen = chosen_column.int32s()
            if chosen_column.length != count:
                raise ValueError(f"{count} slots for a selection of {chosen_column.length} rows")
            if not all_within(chosen, count, rows):
                raise IndexError(f"the selection has row numbers outside of the {rows} rows of the batch")
        elif rows != count:
            raise ValueError(f"{count} slots for {rows} rows")
        if not all_within(slot_column.int32s(), count, 2**31 - 1):
            raise IndexError("a slot is negative")
        if ops is not None:
            if not self.ranking.changes:
                raise ValueError("a table made with changes=False accepts no ops")
            alive.append(open_array(ops, &op_column, TYPE_INT8, "ops"))
            op_values = op_column.int8s()
        if time is not None:
            alive.append(open_array(time, &time_column, TYPE_INT64, "time"))
            times = time_column.int64s()
        if (ops is not None and op_column.length != rows) or (time is not None and time_column.length != rows):
            raise ValueError(f"ops and time must have a value for each of the {rows} rows")
        if count == 0:
            return
        with nogil:
            missing = self.ranking.add(sources, views, slot_column.int32s(), chosen, count, op_values, times, arrival)
        if missing >= 0:
            raise KeyError(f"row {missing} is to be removed, but it is not in the table: {data.slice(missing, 1).to_pylist()[0]}")

    def load(self, slots, data, numbers, time):
        """Loads rows of a checkpoint. See ranked.pyi."""
        self._check_own()
        cdef vector[Source] sources
        cdef vector[View] views
        cdef View slot_column, number_column, time_column
        capsules = open_rows(&self.ranking.layout, self.rows, data, &sources)
        self._views(capsules, &views)
        cdef list alive = [
            open_array(slots, &slot_column, TYPE_INT32, "slots"),
            open_array(numbers, &number_column, TYPE_INT64, "numbers"),
            open_array(time, &time_column, TYPE_INT64, "time"),
        ]
        cdef int64_t count = data.num_rows
        if not (slot_column.length == count and number_column.length == count and time_column.length == count):
            raise ValueError(f"slots, numbers and time must have a value for each of the {count} rows")
        if not all_within(slot_column.int32s(), count, 2**31 - 1):
            raise IndexError("a slot is negative")
        if count:
            with nogil:
                self.ranking.load(
                    sources, views, slot_column.int32s(), count, number_column.int64s(), time_column.int64s()
                )

    def absorb(self, RankTable other, slots):
        """Adds the rows of another table. See ranked.pyi."""
        cdef View column
        alive = open_array(slots, &column, TYPE_INT32, "slots")
        if self.ranking.changes or (self.ranking.rows and not self.ranking.borrows):
            raise ValueError("only a table without rows of its own, made with changes=False, can absorb another")
        if other is self or not other.rows.equals(self.rows) or other.ranking.exact != self.ranking.exact:
            raise ValueError("only another table of the same rows can be absorbed")
        if not all_within(column.int32s(), column.length, 2**31 - 1):
            raise IndexError("a slot is negative")
        if column.length < other.ranking.slots_used():
            raise IndexError(f"{column.length} slots for a table that has {other.ranking.slots_used()}")
        self.absorbed.append(other)
        with nogil:
            self.ranking.absorb(other.ranking[0], column.int32s())

    def settle(self):
        """Computes the changes of the result, for `pieces`. See ranked.pyi."""
        cdef vector[int32_t] vacant
        with nogil:
            self.ranking.settle(vacant)
        return int32_array(vacant)

    def members(self):
        """Makes all rows among the first n available for `pieces`. See ranked.pyi."""
        with nogil:
            self.ranking.members()

    def pieces(self, int64_t rows):
        """Returns the rows as (columns, ranks, ops, times). See ranked.pyi."""
        cdef int64_t start = 0, count
        cdef int64_t size = self.ranking.out.size()
        cdef list found = []
        while start < size:
            count = self.ranking.piece(start, rows)
            found.append(self._piece(start, count))
            start += count
        return found

    cdef tuple _piece(self, int64_t start, int64_t count):
        cdef vector[Made] columns
        cdef int64_t i
        cdef int64_t* rank_out
        cdef int64_t* time_out
        cdef int8_t* op_out
        ranks = new_array(pa.int64(), count, <void**> &rank_out)
        ops = new_array(pa.int8(), count, <void**> &op_out)
        times = new_array(pa.int64(), count, <void**> &time_out)
        with nogil:
            read_changes(self.ranking.layout, self.ranking.out, start, count, columns, rank_out, op_out, time_out)
        cdef list arrays = [array_of_made(&columns[i], self.rows.field(i).type) for i in range(<int64_t> columns.size())]
        return arrays, ranks, ops, times

    def export(self, slots):
        """Returns the rows of these slots. See ranked.pyi."""
        cdef View column
        cdef vector[const Row*] found
        cdef vector[Made] columns
        cdef int64_t i
        cdef int64_t* number_out
        cdef int64_t* time_out
        alive = open_array(slots, &column, TYPE_INT32, "slots")
        if not all_within(column.int32s(), column.length, 2**31 - 1):
            raise IndexError("a slot is negative")
        with nogil:
            self.ranking.rows_of(column.int32s(), column.length, found)
        numbers = new_array(pa.int64(), found.size(), <void**> &number_out)
        times = new_array(pa.int64(), found.size(), <void**> &time_out)
        with nogil:
            read_rows(self.ranking.layout, found, columns, number_out, time_out)
        cdef list arrays = [array_of_made(&columns[i], self.rows.field(i).type) for i in range(<int64_t> columns.size())]
        schema = self.rows.append(pa.field(NUMBER_COLUMN, pa.int64())).append(pa.field(_TIME_COLUMN, pa.int64()))
        return pa.RecordBatch.from_arrays([*arrays, numbers, times], schema=schema)

    def remove(self, slots):
        """Removes the rows of these slots. See ranked.pyi."""
        self._check_own()
        cdef View column
        alive = open_array(slots, &column, TYPE_INT32, "slots")
        if not all_within(column.int32s(), column.length, 2**31 - 1):
            raise IndexError("a slot is negative")
        with nogil:
            self.ranking.remove(column.int32s(), column.length)
