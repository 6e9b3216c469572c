"""The session, or the run, that a row belongs to. See sessions.pyi for the contract; the loops over rows are in
spans.h.

Arrays are opened here, once per call. Then the call runs without the GIL.
"""

from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.columns cimport (
    TYPE_BOOL,
    TYPE_INT32,
    TYPE_INT64,
    View,
    int32_array,
    new_array,
    open_array,
)

__all__ = ["RunTable", "SessionTable"]


cdef extern from "windows/spans.h" namespace "sabot" nogil:
    cppclass SpanRows:
        const int32_t* slots
        const int64_t* times        # NULL if the rows have no times
        const int32_t* chosen       # NULL for all rows
        int64_t count
        int32_t greatest            # the greatest slot

    cppclass SpanTable:
        # Callers have to check that slots and ids are within the table.
        int64_t size() noexcept
        int64_t nbytes() noexcept
        void add(const SpanRows& rows, int32_t* out, vector[int32_t]& a, vector[int32_t]& b, vector[int32_t]& c) except +
        void advance(int64_t watermark_ms, vector[int32_t]& ripe, vector[int32_t]& over) except +
        int64_t unknown(const int32_t* ids, int64_t count) noexcept
        void bounds(const int32_t* ids, int64_t count, int64_t* first, int64_t* last) noexcept
        void slots(const int32_t* ids, int64_t count, int32_t* out) noexcept
        void remove(const int32_t* ids, int64_t count, vector[int32_t]& vacant) except +
        void of_slots(const int32_t* slots, int64_t count, vector[int32_t]& ids, vector[int32_t]& which) except +
        void all(vector[int32_t]& ids) except +
        void write(const int32_t* ids, int64_t count, int32_t* slots, int64_t* first, int64_t* last, void* rest) noexcept
        void load(const SpanRows& rows, const int64_t* first, const int64_t* last, const View& rest, int32_t* out) except +

    cppclass Sessions(SpanTable):
        int64_t merges
        int64_t late
        Sessions(int64_t gap_ms, int64_t lateness_ms) except +
        void vacant(const int32_t* slots, int64_t count, vector[int32_t]& out) except +

    cppclass Runs(SpanTable):
        Runs(int64_t rows, int64_t idle_ms, int64_t span_ms) except +


_INT32 = pa.int32()
_INT64 = pa.int64()
_BOUNDS = [("slot", _INT32), ("first", _INT64), ("last", _INT64)]
_SESSIONS = pa.schema([("session", _INT32), *_BOUNDS, ("given", pa.bool_())])
_RUNS = pa.schema([("run", _INT32), *_BOUNDS, ("count", _INT64)])


cdef class _Rows:
    """The checked rows of one call. Keeps their arrays alive."""

    cdef SpanRows rows
    cdef list alive

    def __cinit__(self, slots, time, selection):
        cdef View slot_view, time_view, chosen_view
        self.alive = [open_array(slots, &slot_view, TYPE_INT32, "slots")]
        cdef int64_t count = slot_view.length, length = slot_view.length, i
        self.rows.count = count
        self.rows.slots = slot_view.int32s()
        if time is not None:
            self.alive.append(open_array(time, &time_view, TYPE_INT64, "time"))
            self.rows.times = time_view.int64s()
            length = time_view.length
        if selection is not None:
            self.alive.append(open_array(selection, &chosen_view, TYPE_INT32, "selection"))
            self.rows.chosen = chosen_view.int32s()
            if chosen_view.length != count:
                raise ValueError(f"{count} slots for a selection of {chosen_view.length} rows")
        elif length != count:
            raise ValueError(f"{count} slots for {length} times")
        cdef int64_t bad = -1
        cdef int32_t slot
        cdef bint of_times = time is not None and selection is not None
        with nogil:
            for i in range(count):
                slot = self.rows.slots[i]
                if slot < 0:
                    bad = i
                elif slot > self.rows.greatest:
                    self.rows.greatest = slot
                if of_times and not 0 <= self.rows.chosen[i] < length:
                    bad = i
        if bad >= 0:
            raise IndexError(f"row {bad}: its slot is negative, or it is outside of the {length} rows")


def _checked(int64_t value, str name, int64_t least):
    if value < least:
        raise ValueError(f"{name} is {value}, and must be at least {least}")
    return value


cdef class _Table:
    """A table of spans with either rule."""

    cdef SpanTable* table           # owned by the subclass, which frees it
    cdef object columns             # the schema of `export`: id, slot, first, last, and a column of the rule

    def __len__(self):
        return self.table.size()

    @property
    def nbytes(self):
        return self.table.nbytes()

    cdef tuple add_rows(self, object slots, object time, object selection):
        """Adds rows. Returns (the span of each row, and the results of the rule's `add`)."""
        cdef _Rows given = _Rows(slots, time, selection)
        cdef int32_t* out
        cdef vector[int32_t] a, b, c
        ids = new_array(_INT32, given.rows.count, <void**> &out)
        with nogil:
            self.table.add(given.rows, out, a, b, c)
        return ids, int32_array(a), int32_array(b), int32_array(c)

    cdef object opened(self, object ids, View* view):
        """Fills `view`. Returns the object that has to stay alive while it is read. Raises KeyError for an id that is
        not a span.
        """
        name = self.columns.names[0]
        alive = open_array(ids, view, TYPE_INT32, name + "s")
        cdef int64_t bad = self.table.unknown(view.int32s(), view.length)
        if bad >= 0:
            raise KeyError(f"no {name} {view.int32s()[bad]}")
        return alive

    def bounds(self, ids):
        """Returns two times of each span. See sessions.pyi."""
        cdef View view
        cdef object alive = self.opened(ids, &view)
        cdef int64_t* first
        cdef int64_t* last
        firsts = new_array(_INT64, view.length, <void**> &first)
        lasts = new_array(_INT64, view.length, <void**> &last)
        with nogil:
            self.table.bounds(view.int32s(), view.length, first, last)
        return firsts, lasts

    def slots(self, ids):
        """Returns the key slots of the spans."""
        cdef View view
        cdef object alive = self.opened(ids, &view)
        cdef int32_t* out
        slots = new_array(_INT32, view.length, <void**> &out)
        with nogil:
            self.table.slots(view.int32s(), view.length, out)
        return slots

    def remove(self, ids):
        """Removes the spans. Returns slots without any. See sessions.pyi."""
        cdef View view
        cdef object alive = self.opened(ids, &view)
        cdef vector[int32_t] vacant
        with nogil:
            self.table.remove(view.int32s(), view.length, vacant)
        return int32_array(vacant)

    def of_slots(self, slots):
        """Returns the spans of these slots, and the slot that each belongs to. See sessions.pyi."""
        cdef View view
        cdef object alive = open_array(slots, &view, TYPE_INT32, "slots")
        cdef vector[int32_t] ids, which
        with nogil:
            self.table.of_slots(view.int32s(), view.length, ids, which)
        return int32_array(ids), int32_array(which)

    def export(self, ids=None):
        """Returns spans as columns. See sessions.pyi."""
        cdef vector[int32_t] every
        if ids is None:
            with nogil:
                self.table.all(every)
            ids = int32_array(every)
        cdef View view
        cdef object alive = self.opened(ids, &view)
        cdef int64_t count = view.length
        cdef int32_t* slots
        cdef int64_t* first
        cdef int64_t* last
        cdef void* rest
        columns = [
            ids,
            new_array(_INT32, count, <void**> &slots),
            new_array(_INT64, count, <void**> &first),
            new_array(_INT64, count, <void**> &last),
            new_array(self.columns.field(4).type, count, &rest),
        ]
        with nogil:
            self.table.write(view.int32s(), count, slots, first, last, rest)
        return pa.RecordBatch.from_arrays(columns, schema=self.columns)

    def load(self, state):
        """Loads spans of `export`. Returns their new ids. See sessions.pyi."""
        cdef _Rows given = _Rows(state.column("slot"), None, None)
        cdef View first, last, rest
        name = self.columns.names[4]
        cdef list alive = [
            open_array(state.column("first"), &first, TYPE_INT64, "first"),
            open_array(state.column("last"), &last, TYPE_INT64, "last"),
            open_array(state.column(name), &rest, TYPE_BOOL if name == "given" else TYPE_INT64, name),
        ]
        cdef int32_t* out
        ids = new_array(_INT32, given.rows.count, <void**> &out)
        with nogil:
            self.table.load(given.rows, first.int64s(), last.int64s(), rest, out)
        return ids


cdef class SessionTable(_Table):
    """Open sessions by key. See sessions.pyi."""

    cdef Sessions* sessions

    def __cinit__(self, int64_t gap_ms, int64_t lateness_ms=0):
        self.sessions = new Sessions(_checked(gap_ms, "gap_ms", 1), _checked(lateness_ms, "lateness_ms", 0))
        self.table = self.sessions
        self.columns = _SESSIONS

    def __dealloc__(self):
        del self.sessions

    def add(self, slots, time, selection=None):
        """Returns the session of each row, the new sessions, and the merges of earlier ones. See sessions.pyi."""
        if time is None:
            raise TypeError("sessions need event time")
        return self.add_rows(slots, time, selection)

    def vacant(self, slots):
        """Returns slots without a session, each once. See sessions.pyi."""
        cdef _Rows given = _Rows(slots, None, None)
        cdef vector[int32_t] out
        with nogil:
            self.sessions.vacant(given.rows.slots, given.rows.count, out)
        return int32_array(out)

    def advance(self, int64_t watermark_ms):
        """Returns the sessions that are (ripe, over). See sessions.pyi."""
        cdef vector[int32_t] ripe, over
        with nogil:
            self.table.advance(watermark_ms, ripe, over)
        return int32_array(ripe), int32_array(over)

    def statistics(self):
        """Returns the numbers of open sessions, merges and late rows, and bytes."""
        return {"open": len(self), "merged": self.sessions.merges, "late": self.sessions.late, "bytes": self.nbytes}


cdef class RunTable(_Table):
    """Runs of rows by key. See sessions.pyi."""

    cdef Runs* runs
    cdef bint by_time

    def __cinit__(self, *, int64_t rows=0, int64_t idle_ms=0, int64_t span_ms=0):
        self.runs = new Runs(_checked(rows, "rows", 0), _checked(idle_ms, "idle_ms", 0), _checked(span_ms, "span_ms", 0))
        self.table = self.runs
        self.columns = _RUNS
        self.by_time = idle_ms or span_ms

    def __dealloc__(self):
        del self.runs

    def add(self, slots, time=None, selection=None):
        """Returns the run of each row, those that began, their first rows, those that ended. See sessions.pyi."""
        if time is None and self.by_time:
            raise TypeError("runs that end by time need event time")
        return self.add_rows(slots, time, selection)

    def advance(self, int64_t watermark_ms):
        """Returns runs that are over by event time. See sessions.pyi."""
        cdef vector[int32_t] ripe, over
        with nogil:
            self.table.advance(watermark_ms, ripe, over)
        return int32_array(over)

    def statistics(self):
        """Returns the number of open runs, and bytes."""
        return {"open": len(self), "bytes": self.nbytes}
