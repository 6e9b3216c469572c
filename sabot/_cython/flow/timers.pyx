"""Timers by key. See timers.pyi for the contract; the loops are in timers_queue.h."""

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.columns cimport (
    TYPE_INT8,
    TYPE_INT32,
    TYPE_INT64,
    View,
    int32_array,
    int64_array,
    new_array,
    open_array,
)

__all__ = ["EVENT", "PROCESSING", "TimerTable"]

EVENT, PROCESSING = 0, 1

cdef enum:
    KIND_COUNT = 2

cdef extern from "flow/timers_queue.h" namespace "sabot" nogil:
    const int64_t TIMERS_AHEAD

    cppclass Mutex "std::mutex":
        void lock()
        void unlock()

    cppclass Timer:
        int64_t at
        uint64_t serial
        uint64_t order
        int32_t slot
        int32_t name
        uint8_t kind
        cbool alive

    cppclass Timers:
        int64_t alive
        int64_t dead
        int64_t fired
        int32_t over
        uint64_t serials
        uint64_t orders
        Mutex mutex
        vector[int32_t] names
        cbool add(int32_t slot, int64_t at, int kind, int32_t name) except +
        void fetch(int32_t slot, int64_t at, int kind, int32_t name) noexcept
        void fetch_head(int32_t slot) noexcept
        cbool put(int32_t slot, int64_t at, int kind, int32_t name, uint64_t serial, uint64_t order) except +
        cbool remove(int32_t slot, int64_t at, int kind, int32_t name) except +
        cbool remove(int32_t slot, int64_t at, int kind, int32_t name, Timer* out) except +
        void of_slots(const int32_t* slots, int64_t count, vector[Timer]& out) except +
        void evict(const int32_t* slots, int64_t count) except +
        void due(int kind, int64_t limit, vector[int32_t]& out) except +
        cbool take(int kind, int64_t limit, Timer* out) except +
        int32_t next_slot(int kind, int64_t limit) except +
        void take_batch(int kind, int64_t limit, int64_t rows, vector[int32_t]& slots, vector[int64_t]& times) except +
        void soon(int kind, int64_t limit, size_t rows, vector[int32_t]& out) except +
        int64_t soonest(int kind) noexcept
        void hold(int kind) noexcept
        void release(int kind) except +
        void begin_guard(int64_t limit) noexcept
        void set_floor(int64_t floor) noexcept
        void vacant(const int32_t* slots, int64_t count, vector[int32_t]& out) except +
        int64_t bytes() noexcept


_ROWS = pa.schema(
    [
        ("slot", pa.int32()),
        ("at", pa.int64()),
        ("kind", pa.int8()),
        ("name", pa.string()),
        ("serial", pa.int64()),
        ("order", pa.int64()),
    ]
)

cdef int64_t _FAR = <int64_t> 1 << 62  # greater than the serial and the order of any timer


cdef int _kind(kind) except -1:
    if not 0 <= kind < KIND_COUNT:
        raise ValueError(f"there is no kind of timer {kind}")
    return kind


cdef class _Sets:
    """The opened arguments of `add` and `delete`: slots, and a time for each."""

    cdef View slot_column, at_column
    cdef object alive
    cdef int64_t count

    def __cinit__(self, slots, at):
        self.alive = [
            open_array(slots, &self.slot_column, TYPE_INT32, "slots"),
            open_array(at, &self.at_column, TYPE_INT64, "at"),
        ]
        self.count = self.slot_column.length
        if self.count != self.at_column.length:
            raise ValueError(f"{self.count} slots for {self.at_column.length} times")
        cdef int64_t i
        for i in range(self.count):
            if self.slot_column.integer(i) < 0:
                raise IndexError(f"row {i}: its slot is negative")


cdef class TimerTable:
    """A table of timers by key. See timers.pyi for all methods."""

    cdef Timers timers
    cdef dict name_ids              # name: its id, for the names that timers have; the id of "" is always 0
    cdef list name_texts            # the names by id
    cdef vector[int64_t] name_counts
    cdef vector[int32_t] unused_names
    cdef Timer removed              # the timer that `take_one` or `unset` has removed last

    def __cinit__(self):
        self.name_ids = {"": 0}
        self.name_texts = [""]
        self.name_counts.push_back(0)

    def __len__(self):
        return self.timers.alive

    @property
    def nbytes(self):
        return self.timers.bytes()

    @property
    def over(self):
        return self.timers.over

    @property
    def removed_from(self):
        return self.removed.serial, self.removed.order

    def set(self, int32_t slot, int64_t at, kind, str name not None="", uint64_t serial=0, uint64_t order=0):
        if slot < 0:
            raise IndexError(f"slot {slot} is negative")
        cdef int which = _kind(kind)
        cdef int32_t number = self._name(name)
        cdef bint fresh
        if order:
            fresh = self.timers.put(slot, at, which, number, serial, order)
        else:
            fresh = self.timers.add(slot, at, which, number)
        if fresh:
            self.name_counts[number] += 1
        return bool(fresh)

    def unset(self, int32_t slot, int64_t at, kind, str name not None=""):
        cdef int which = _kind(kind)
        number = self.name_ids.get(name)
        if number is None or not self.timers.remove(slot, at, which, number, &self.removed):
            return False
        self._unname(number)
        return True

    def add(self, slots, at, kind):
        cdef _Sets rows = _Sets(slots, at)
        cdef int which = _kind(kind)
        cdef int64_t i, ahead, added = 0
        with nogil:
            self.timers.mutex.lock()
            try:
                for i in range(rows.count):
                    if i + TIMERS_AHEAD < rows.count:
                        ahead = i + TIMERS_AHEAD
                        self.timers.fetch(<int32_t> rows.slot_column.integer(ahead), rows.at_column.integer(ahead), which, 0)
                    if i + TIMERS_AHEAD // 2 < rows.count:
                        self.timers.fetch_head(<int32_t> rows.slot_column.integer(i + TIMERS_AHEAD // 2))
                    added += self.timers.add(<int32_t> rows.slot_column.integer(i), rows.at_column.integer(i), which, 0)
            finally:
                self.timers.mutex.unlock()
        self.name_counts[0] += added
        return added

    def delete(self, slots, at, kind):
        cdef _Sets rows = _Sets(slots, at)
        cdef int which = _kind(kind)
        cdef int64_t i, gone = 0
        with nogil:
            self.timers.mutex.lock()
            try:
                for i in range(rows.count):
                    gone += self.timers.remove(<int32_t> rows.slot_column.integer(i), rows.at_column.integer(i), which, 0)
            finally:
                self.timers.mutex.unlock()
        self.name_counts[0] -= gone
        return gone

    def next_slot(self, int64_t limit, kind):
        cdef int32_t slot = self.timers.next_slot(_kind(kind), limit)
        return None if slot < 0 else slot

    def take_one(self, int64_t limit, kind):
        if not self.timers.take(_kind(kind), limit, &self.removed):
            return None
        text = self.name_texts[self.removed.name]
        self._unname(self.removed.name)
        return self.removed.slot, self.removed.at, text

    def take(self, int64_t limit, kind, int64_t rows):
        cdef vector[int32_t] slots
        cdef vector[int64_t] times
        cdef int which = _kind(kind)
        self.timers.names.clear()
        with nogil:
            self.timers.mutex.lock()
            try:
                self.timers.take_batch(which, limit, rows, slots, times)
            finally:
                self.timers.mutex.unlock()
        self._unname_all()
        return int32_array(slots), int64_array(times)

    def soon(self, int64_t limit, kind, int64_t rows):
        cdef vector[int32_t] slots
        self.timers.soon(_kind(kind), limit, rows, slots)
        return int32_array(slots)

    def soonest(self, kind):
        return self.timers.soonest(_kind(kind))

    def hold(self, kind):
        self.timers.hold(_kind(kind))

    def release(self, kind):
        self.timers.release(_kind(kind))

    def guard(self, int64_t limit):
        self.timers.begin_guard(limit)

    def floor(self, int64_t at):
        self.timers.set_floor(at)

    def vacant(self, slots):
        cdef View column
        cdef object alive = open_array(slots, &column, TYPE_INT32, "slots")
        cdef vector[int32_t] out
        with nogil:
            self.timers.mutex.lock()
            try:
                self.timers.vacant(column.int32s(), column.length, out)
            finally:
                self.timers.mutex.unlock()
        return int32_array(out)

    # Timers of some keys, for snapshots and for state that is not in memory

    @property
    def last(self):
        return self.timers.serials, self.timers.orders

    def due(self, int64_t limit, kind):
        cdef vector[int32_t] slots
        self.timers.due(_kind(kind), limit, slots)
        return int32_array(slots)

    def rows_of(self, slots):
        cdef View column
        cdef object alive = open_array(slots, &column, TYPE_INT32, "slots")
        cdef vector[Timer] found
        cdef int64_t i, count
        with nogil:
            self.timers.mutex.lock()  # mutex and GIL are both held: no thread can change timers now, whether it holds the GIL or not
        try:
            self.timers.of_slots(column.int32s(), column.length, found)
        finally:
            self.timers.mutex.unlock()
        count = found.size()
        cdef int32_t* slot
        cdef int64_t* at
        cdef int8_t* kind
        cdef int64_t* serial
        cdef int64_t* order
        columns = [
            new_array(pa.int32(), count, <void**> &slot),
            new_array(pa.int64(), count, <void**> &at),
            new_array(pa.int8(), count, <void**> &kind),
            new_array(pa.int64(), count, <void**> &serial),
            new_array(pa.int64(), count, <void**> &order),
        ]
        cdef bint named = False
        for i in range(count):
            slot[i] = found[i].slot
            at[i] = found[i].at
            kind[i] = <int8_t> found[i].kind
            serial[i] = <int64_t> found[i].serial
            order[i] = <int64_t> found[i].order
            named = named or found[i].name != 0
        texts = pa.array([self.name_texts[found[i].name] for i in range(count)], pa.string()) if named else pa.repeat("", count)
        return pa.RecordBatch.from_arrays([*columns[:3], texts, *columns[3:]], schema=_ROWS)

    def put_back(self, slots, rows, serial=0, order=0):
        cdef View kind_column, serial_column, order_column
        cdef _Sets given = _Sets(slots, rows.column(1))
        cdef list alive = [
            open_array(rows.column(2), &kind_column, TYPE_INT8, "kind"),
            open_array(rows.column(4), &serial_column, TYPE_INT64, "serial"),
            open_array(rows.column(5), &order_column, TYPE_INT64, "order"),
        ]
        cdef int64_t i, kind, first = serial, base = order
        cdef int32_t number
        if kind_column.length != given.count:
            raise ValueError(f"{kind_column.length} timers for {given.count} slots")
        for i in range(given.count):
            kind = kind_column.integer(i)
            if not (0 <= kind < KIND_COUNT and 0 < serial_column.integer(i) < _FAR and 0 < order_column.integer(i) < _FAR):
                raise ValueError(f"row {i}: the kind of the timer does not exist, or its order is out of range")
        names = rows.column(3)
        plain = not any(names.unique().to_pylist())
        texts = None if plain else names.to_pylist()
        for i in range(given.count):
            number = 0 if plain else self._name(texts[i])
            if self.timers.put(
                <int32_t> given.slot_column.integer(i), given.at_column.integer(i), <int> kind_column.integer(i), number,
                <uint64_t> (first + serial_column.integer(i)), <uint64_t> (base + order_column.integer(i)),
            ):  # fmt: skip
                self.name_counts[number] += 1
            elif number and self.name_counts[number] == 0:
                self.name_counts[number] = 1
                self._unname(number)

    def evict(self, slots):
        cdef View column
        cdef object alive = open_array(slots, &column, TYPE_INT32, "slots")
        self.timers.names.clear()
        self.timers.evict(column.int32s(), column.length)
        self._unname_all()

    def statistics(self):
        return {
            "timers": self.timers.alive,
            "fired": self.timers.fired,
            "names": len(self.name_ids) - 1,
            "bytes": self.timers.bytes(),
        }

    cdef int32_t _name(self, str text) except -1:
        """Returns the id of a name. A new name gets an id."""
        number = self.name_ids.get(text)
        if number is not None:
            return number
        cdef int32_t fresh
        if self.unused_names.size():
            fresh = self.unused_names.back()
            self.unused_names.pop_back()
            self.name_texts[fresh] = text
        else:
            fresh = <int32_t> self.name_counts.size()
            self.name_counts.push_back(0)
            self.name_texts.append(text)
        self.name_ids[text] = fresh
        return fresh

    cdef int _unname_all(self) except -1:
        """Decrements the counts of the names of the timers that were removed last."""
        cdef size_t i
        for i in range(self.timers.names.size()):
            self._unname(self.timers.names[i])
        return 0

    cdef int _unname(self, int32_t number) except -1:
        """Decrements the count of timers with this name. A name without timers loses its id."""
        self.name_counts[number] -= 1
        if number and self.name_counts[number] == 0:
            del self.name_ids[self.name_texts[number]]
            self.name_texts[number] = ""
            self.unused_names.push_back(number)
        return 0
