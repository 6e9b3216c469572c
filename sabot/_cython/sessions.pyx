"""Which session, or which run, a row belongs to. See sessions.pyi for the contract.

      newest[slot] ──▶ session ──left──▶ session ──left──▶ …        one chain a key, by time; `right` leads back
      wheel: slot ──▶ (due, id), (due, id), …                       a slot is at most a 512th of what a session waits for

A chain is walked from its newest session; where that takes long, the key gets a search tree over the same sessions (`trees`).
The wheel is lazy: rows that extend a session do not touch it. An entry's time is at most that at which its session is due; an entry
whose session is not due yet is entered again, one that is not its session's own (`due` differs) is dropped. That costs an entry
for each gap of event time that a session lives, and an advance what it finds and the rest of the slot that it ends in. (A binary
heap in its place took a third of all time, at 50,000 open sessions.)
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset
from libcpp.map cimport map as ordered_map
from libcpp.pair cimport pair
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.columns cimport TYPE_BOOL, TYPE_INT32, TYPE_INT64, View, int32_array, new_array, open_array

__all__ = ["RunTable", "SessionTable"]

cdef enum:
    WALK_LIMIT = 16         # steps along a chain before its key gets a tree
    TREE_LIMIT = 8          # sessions below which it loses it again
    WHEEL = 2048 * 24       # bytes of an empty wheel
    TREE_NODE = 64          # bytes of a session in a tree, about
    SLACK = 1024            # stale entries of the wheel that are always tolerated
    SPOKES = 512            # slots that the longest wait takes, at least, where a slot is 1 ms or more; at most half of a wheel
    NOTHING = -1            # no session, no run
    GONE = -2               # as NOTHING; the slot was given back by `remove`

ctypedef pair[int64_t, int32_t] Entry    # (due, id)

cdef struct Session:
    int64_t first       # ms, of its rows
    int64_t last
    int64_t due         # of its own entry in the wheel
    int32_t slot        # of its key; NOTHING: the id is free
    int32_t left        # the one before it in time, of the same key
    int32_t right
    int32_t into        # merged away in this call of `add`: what it became a part of; else NOTHING
    uint8_t given       # ripe, and unchanged since
    uint8_t fresh       # made in this call of `add`

cdef struct Run:
    int64_t first       # ms: of the row that began it, or the least
    int64_t last        # ms: the greatest
    int64_t count       # rows
    int64_t due         # of its own entry in the wheel
    int32_t slot        # NOTHING: the id is free

_SESSIONS = pa.schema(
    [("session", pa.int32()), ("slot", pa.int32()), ("first", pa.int64()), ("last", pa.int64()), ("given", pa.bool_())]
)
_RUNS = pa.schema(
    [("run", pa.int32()), ("slot", pa.int32()), ("first", pa.int64()), ("last", pa.int64()), ("count", pa.int64())]
)


cdef class _Rows:
    """The arguments of `add`: row i of `count` has slots[i] and stands at selection[i] of the times."""

    cdef View slot_column, time_column, selection_column
    cdef object alive
    cdef int64_t count
    cdef const int32_t* slots
    cdef const int64_t* time          # NULL: there are no times
    cdef const int32_t* selection     # NULL: all rows
    cdef int32_t greatest             # slot

    def __cinit__(self, slots, time, selection):
        self.alive = [open_array(slots, &self.slot_column, TYPE_INT32, "slots")]
        self.count = self.slot_column.length
        self.slots = self.slot_column.int32s()
        self.time = NULL
        self.selection = NULL
        cdef int64_t length = self.count, i
        if time is not None:
            self.alive.append(open_array(time, &self.time_column, TYPE_INT64, "time"))
            self.time = self.time_column.int64s()
            length = self.time_column.length
        if selection is not None:
            self.alive.append(open_array(selection, &self.selection_column, TYPE_INT32, "selection"))
            self.selection = self.selection_column.int32s()
            if self.selection_column.length != self.count:
                raise ValueError(f"{self.count} slots for a selection of {self.selection_column.length} rows")
        elif length != self.count:
            raise ValueError(f"{self.count} slots for {length} times")
        self.greatest = -1
        cdef int64_t bad = -1
        with nogil:
            for i in range(self.count):
                if self.slots[i] < 0:
                    bad = i
                elif self.slots[i] > self.greatest:
                    self.greatest = self.slots[i]
                if self.selection != NULL and time is not None and not 0 <= self.selection[i] < length:
                    bad = i
        if bad >= 0:
            raise IndexError(f"row {bad}: its slot is negative, or it is none of the {length} rows")

    cdef inline int64_t row(self, int64_t i) noexcept nogil:
        return i if self.selection == NULL else self.selection[i]


# Times. Differences of int64 do not always fit one, so they are compared as unsigned ones, which is exact where later >= earlier.

cdef inline bint _apart(int64_t earlier, int64_t later, int64_t ms) noexcept nogil:
    """later >= earlier + ms, for ms > 0."""
    return later >= earlier and <uint64_t> later - <uint64_t> earlier >= <uint64_t> ms


cdef inline int64_t _plus(int64_t time, int64_t ms) noexcept nogil:
    """time + ms, at most INT64_MAX; ms >= 0."""
    return INT64_MAX if time > INT64_MAX - ms else time + ms


# What is due when

cdef extern from *:
    """
    #include <cstdint>
    #include <utility>
    #include <vector>

    // A bucket is a stretch of 2^shift ms; bucket b stands in slot b % SLOTS, beside those of other rounds.
    struct SabotWheel {
        typedef std::pair<int64_t, int32_t> Entry;
        static const uint64_t SLOTS = 2048;
        std::vector<std::vector<Entry>> slots = std::vector<std::vector<Entry>>(SLOTS);
        int64_t entries = 0;
        int64_t now = INT64_MIN;   // the bucket of the watermark
        uint64_t left = 0;         // buckets up to `now` that `take` has still to give
        int shift = 0;

        void put(int64_t due, int32_t id) {
            const int64_t bucket = due >> shift;
            slots[(uint64_t)(bucket < now ? now : bucket) % SLOTS].emplace_back(due, id);
            entries++;
        }
        // The watermark is here: `take` gives what stands from where it was to where it is.
        void advance(int64_t watermark) {
            const int64_t before = now;
            if (watermark >> shift > now) now = watermark >> shift;
            const uint64_t passed = (uint64_t)now - (uint64_t)before;
            left = passed < SLOTS ? passed + 1 : SLOTS;
        }
        // Moves the entries of the next slot out; -> whether there was one. Some may be later than the watermark: to be put back.
        bool take(std::vector<Entry>& out) {
            out.clear();
            if (!left) return false;
            left--;
            out.swap(slots[((uint64_t)now - left) % SLOTS]);
            entries -= (int64_t)out.size();
            return true;
        }
        void clear() {
            for (auto& slot : slots) slot.clear();
            entries = 0;
        }
    };
    """
    cdef cppclass Wheel "SabotWheel":
        int64_t entries
        int shift
        void put(int64_t due, int32_t id) except + nogil
        void advance(int64_t watermark) noexcept nogil
        bint take(vector[Entry]& out) noexcept nogil
        void clear() noexcept nogil


cdef int _shift(int64_t span_ms) noexcept:
    """The width of a wheel's slots, as a power of two, for things that are due within `span_ms`."""
    cdef int shift = 0
    while span_ms >> (shift + 1) >= SPOKES:
        shift += 1
    return shift


def _checked(int64_t value, str name, int64_t least):
    if value < least:
        raise ValueError(f"{name} is {value}, and must be at least {least}")
    return value


cdef class SessionTable:
    """Open sessions by key. See sessions.pyi."""

    cdef vector[Session] sessions
    cdef vector[int32_t] unused                                             # ids
    cdef vector[int32_t] newest                                             # by slot
    cdef unordered_map[int32_t, ordered_map[int64_t, int32_t]] trees        # slot -> first -> session, of keys with long chains
    cdef Wheel wheel
    cdef vector[int32_t] created, joined                                    # in this call of `add`; joined: merged away, not fresh
    cdef vector[int32_t] merged_away                                        # all of them, fresh ones too
    cdef int64_t gap_ms, lateness_ms, watermark_ms
    cdef int64_t merges, late, in_trees

    def __cinit__(self, int64_t gap_ms, int64_t lateness_ms=0):
        self.gap_ms = _checked(gap_ms, "gap_ms", 1)
        self.lateness_ms = _checked(lateness_ms, "lateness_ms", 0)
        self.watermark_ms = INT64_MIN
        self.wheel.shift = _shift(_plus(gap_ms, lateness_ms))
        self.merges = self.late = self.in_trees = 0

    def __len__(self):
        return self.sessions.size() - self.unused.size()

    @property
    def nbytes(self):
        return (
            self.sessions.capacity() * sizeof(Session) + (self.unused.capacity() + self.newest.capacity()) * 4
            + self.wheel.entries * sizeof(Entry) + WHEEL + self.in_trees * TREE_NODE
        )  # fmt: skip

    def add(self, slots, time, selection=None):
        """The session of each row, those made, and the merges of those there before. See sessions.pyi."""
        if time is None:
            raise TypeError("sessions need event time")
        cdef _Rows rows = _Rows(slots, time, selection)
        cdef int32_t* out
        ids = new_array(pa.int32(), rows.count, <void**> &out)
        cdef vector[int32_t] created, into, source
        with nogil:
            self._add(rows, out, created, into, source)
        return ids, int32_array(created), int32_array(into), int32_array(source)

    cdef int _add(
        self, _Rows rows, int32_t* out, vector[int32_t]& created, vector[int32_t]& into, vector[int32_t]& source
    ) except -1 nogil:
        cdef int64_t i
        cdef size_t k
        cdef int32_t id
        self.created.clear()
        self.merged_away.clear()
        if <int64_t> self.newest.size() <= rows.greatest:
            self.newest.resize(rows.greatest + 1, NOTHING)
        for i in range(rows.count):
            out[i] = self._place(rows.slots[i], rows.time[rows.row(i)])
        if self.merged_away.size():
            for i in range(rows.count):
                if out[i] >= 0:
                    out[i] = self._final(out[i])
        for k in range(self.created.size()):
            id = self.created[k]
            self.sessions[id].fresh = False
            if self.sessions[id].into == NOTHING:
                created.push_back(id)
        for k in range(self.joined.size()):
            source.push_back(self.joined[k])
            into.push_back(self._final(self.joined[k]))
        for k in range(self.merged_away.size()):  # only now: the final of others was found through them
            id = self.merged_away[k]
            self.sessions[id].into = NOTHING
            self.unused.push_back(id)
        self.joined.clear()
        return 0

    cdef int32_t _final(self, int32_t id) noexcept nogil:
        """What the session is a part of now; the way there is made short."""
        cdef int32_t top = id, after
        while self.sessions[top].into != NOTHING:
            top = self.sessions[top].into
        while self.sessions[id].into != NOTHING:
            after = self.sessions[id].into
            self.sessions[id].into = top
            id = after
        return top

    cdef int32_t _place(self, int32_t slot, int64_t time) except -2 nogil:
        """The session that the row belongs to from here on; NOTHING where it is late."""
        cdef int32_t right
        cdef int32_t left = self._find(slot, time, &right)
        cdef Session* session
        cdef bint touches_left = left != NOTHING and not _apart(self.sessions[left].last, time, self.gap_ms)
        cdef bint touches_right = right != NOTHING and not _apart(time, self.sessions[right].first, self.gap_ms)
        if touches_left:
            if touches_right:
                left = self._join(left, right)
            session = &self.sessions[left]
            if session.last < time:
                session.last = time
            return self._changed(left)
        if touches_right:
            self._move_first(right, time)
            return self._changed(right)
        if _plus(_plus(time, self.gap_ms), self.lateness_ms) <= self.watermark_ms:
            self.late = self.late + 1
            return NOTHING
        return self._make(slot, time, time, left, right)

    cdef inline int32_t _find(self, int32_t slot, int64_t time, int32_t* right) except -2 nogil:
        """The key's last session with first <= time, and (OUT) the one after it; NOTHING where there is none."""
        cdef int32_t left = self.newest[slot]
        cdef int steps = 0
        right[0] = NOTHING
        if left == GONE:
            self.newest[slot] = NOTHING  # the slot is in use again
            return NOTHING
        while left != NOTHING and self.sessions[left].first > time:
            steps += 1
            if steps > WALK_LIMIT:
                return self._search(slot, time, right)
            right[0] = left
            left = self.sessions[left].left
        return left

    cdef int32_t _search(self, int32_t slot, int64_t time, int32_t* right) except -2 nogil:
        """As the walk along the chain, through the key's tree."""
        cdef int32_t id
        if self.trees.count(slot) == 0:
            id = self.newest[slot]
            while id != NOTHING:
                self.trees[slot][self.sessions[id].first] = id
                self.in_trees = self.in_trees + 1
                id = self.sessions[id].left
        cdef ordered_map[int64_t, int32_t].iterator place = self.trees[slot].upper_bound(time)
        # `time` is below WALK_LIMIT sessions: `place` is never the end
        right[0] = _value(place)
        return self.sessions[right[0]].left

    cdef int32_t _changed(self, int32_t id) except -2 nogil:
        """A row was added: a session that was given out is to be given again."""
        cdef Session* session = &self.sessions[id]
        if session.given:
            session.given = False
            self._schedule(id, _plus(session.last, self.gap_ms))
        return id

    cdef int _schedule(self, int32_t id, int64_t due) except -1 nogil:
        self.sessions[id].due = due
        self.wheel.put(due, id)
        if self.wheel.entries > 2 * <int64_t> (self.sessions.size() - self.unused.size()) + SLACK:
            self._sweep_wheel()
        return 0

    cdef int _sweep_wheel(self) except -1 nogil:
        """Leaves the sessions' own entries; those that `advance` found to be over have none."""
        cdef size_t id
        self.wheel.clear()
        for id in range(self.sessions.size()):
            if self.sessions[id].slot != NOTHING and self.sessions[id].due != INT64_MIN:
                self.wheel.put(self.sessions[id].due, <int32_t> id)
        return 0

    cdef int32_t _make(self, int32_t slot, int64_t first, int64_t last, int32_t left, int32_t right) except -2 nogil:
        """A new session between these two of its key."""
        cdef int32_t id
        cdef Session* session
        if self.unused.size():
            id = self.unused.back()
            self.unused.pop_back()
        else:
            if self.sessions.size() >= 0x7FFFFFFF:
                with gil:
                    raise OverflowError("more than 2^31 - 1 open sessions in one subtask: use more parallelism")
            id = <int32_t> self.sessions.size()
            self.sessions.resize(id + 1)
        session = &self.sessions[id]
        session.first, session.last, session.slot = first, last, slot
        session.left, session.right, session.into = left, right, NOTHING
        session.given = False
        session.fresh = True
        if left != NOTHING:
            self.sessions[left].right = id
        if right != NOTHING:
            self.sessions[right].left = id
        else:
            self.newest[slot] = id
        if self.trees.size() and self.trees.count(slot):
            self.trees[slot][first] = id
            self.in_trees = self.in_trees + 1
        self.created.push_back(id)
        self._schedule(id, _plus(last, self.gap_ms))
        return id

    cdef int _move_first(self, int32_t id, int64_t first) except -1 nogil:
        cdef Session* session = &self.sessions[id]
        if self.trees.size() and self.trees.count(session.slot):
            self.trees[session.slot].erase(session.first)
            self.trees[session.slot][first] = id
        session.first = first
        return 0

    cdef int32_t _join(self, int32_t left, int32_t right) except -2 nogil:
        """Two neighbours become one; -> the one that stays: rather one that was there before this call."""
        cdef bint keep_right = self.sessions[left].fresh and not self.sessions[right].fresh
        cdef int32_t kept = right if keep_right else left, other = left if keep_right else right
        cdef int64_t first = self.sessions[left].first, last = self.sessions[right].last
        self._unlink(other)
        self._move_first(kept, first)
        self.sessions[kept].last = last
        self.sessions[other].into = kept
        self.sessions[other].slot = NOTHING
        self.merged_away.push_back(other)
        if not self.sessions[other].fresh:
            self.joined.push_back(other)
        self.merges = self.merges + 1
        return kept

    cdef int _unlink(self, int32_t id) except -1 nogil:
        """Out of its chain."""
        cdef Session* session = &self.sessions[id]
        if session.left != NOTHING:
            self.sessions[session.left].right = session.right
        if session.right != NOTHING:
            self.sessions[session.right].left = session.left
        else:
            self.newest[session.slot] = session.left
        if self.trees.size() and self.trees.count(session.slot):
            self.trees[session.slot].erase(session.first)
            self.in_trees = self.in_trees - 1
            if self.trees[session.slot].size() < TREE_LIMIT:
                self.in_trees = self.in_trees - self.trees[session.slot].size()
                self.trees.erase(session.slot)
        return 0

    def vacant(self, slots):
        """Slots without a session, each once. See sessions.pyi."""
        cdef _Rows rows = _Rows(slots, None, None)
        cdef vector[int32_t] out
        cdef int64_t i
        with nogil:
            for i in range(rows.count):
                if rows.slots[i] < <int64_t> self.newest.size() and self.newest[rows.slots[i]] == NOTHING:
                    self.newest[rows.slots[i]] = GONE
                    out.push_back(rows.slots[i])
        return int32_array(out)

    def advance(self, int64_t watermark_ms):
        """(ripe, over). See sessions.pyi."""
        cdef vector[int32_t] ripe, over
        with nogil:
            self._advance(watermark_ms, ripe, over)
        return int32_array(ripe), int32_array(over)

    cdef int _advance(self, int64_t watermark_ms, vector[int32_t]& ripe, vector[int32_t]& over) except -1 nogil:
        cdef vector[Entry] bucket, early
        cdef size_t i
        if watermark_ms > self.watermark_ms:
            self.watermark_ms = watermark_ms
        self.wheel.advance(self.watermark_ms)
        while self.wheel.take(bucket):
            for i in range(bucket.size()):
                if self.sessions[bucket[i].second].slot == NOTHING or self.sessions[bucket[i].second].due != bucket[i].first:
                    continue
                if bucket[i].first > self.watermark_ms:
                    early.push_back(bucket[i])
                else:
                    self._look_at(bucket[i].second, ripe, over)
            for i in range(early.size()):
                self.wheel.put(early[i].first, early[i].second)
            early.clear()
        return 0

    cdef int _look_at(self, int32_t id, vector[int32_t]& ripe, vector[int32_t]& over) except -1 nogil:
        """Its entry's time has come."""
        cdef Session* session = &self.sessions[id]
        cdef int64_t due = _plus(session.last, self.gap_ms)
        if due <= self.watermark_ms:
            if not session.given:
                session.given = True
                ripe.push_back(id)
            due = _plus(due, self.lateness_ms)
        if due <= self.watermark_ms:
            session.due = INT64_MIN  # an entry of an earlier session with this id must not be taken for its own
            over.push_back(id)
        else:
            self._schedule(id, due)
        return 0

    def bounds(self, sessions):
        """(first rows' times, ends). See sessions.pyi."""
        cdef View column
        cdef object alive = open_array(sessions, &column, TYPE_INT32, "sessions")
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        cdef int64_t* first
        cdef int64_t* end
        firsts = new_array(pa.int64(), column.length, <void**> &first)
        ends = new_array(pa.int64(), column.length, <void**> &end)
        self._check(&column)
        with nogil:
            for i in range(column.length):
                first[i] = self.sessions[ids[i]].first
                end[i] = _plus(self.sessions[ids[i]].last, self.gap_ms)
        return firsts, ends

    def slots(self, sessions):
        """Their keys."""
        cdef View column
        cdef object alive = open_array(sessions, &column, TYPE_INT32, "sessions")
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        cdef int32_t* out
        slots = new_array(pa.int32(), column.length, <void**> &out)
        self._check(&column)
        with nogil:
            for i in range(column.length):
                out[i] = self.sessions[ids[i]].slot
        return slots

    cdef int _check(self, const View* column) except -1:
        """KeyError unless all ids are of sessions that are there."""
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        for i in range(column.length):
            if not 0 <= ids[i] < <int64_t> self.sessions.size() or self.sessions[ids[i]].slot == NOTHING:
                raise KeyError(f"no session {ids[i]}")
        return 0

    def remove(self, sessions):
        """They are gone; -> slots of keys without any. See sessions.pyi."""
        cdef View column
        cdef object alive = open_array(sessions, &column, TYPE_INT32, "sessions")
        cdef const int32_t* ids = column.int32s()
        cdef vector[int32_t] slots
        cdef int64_t i
        cdef int32_t slot
        self._check(&column)
        with nogil:
            for i in range(column.length):
                slot = self.sessions[ids[i]].slot
                if slot == NOTHING:
                    continue  # named twice
                self._unlink(ids[i])
                self.sessions[ids[i]].slot = NOTHING
                self.unused.push_back(ids[i])
                if self.newest[slot] == NOTHING:
                    self.newest[slot] = GONE
                    slots.push_back(slot)
            if self.wheel.entries > 2 * <int64_t> (self.sessions.size() - self.unused.size()) + SLACK:
                self._sweep_wheel()
        return int32_array(slots)

    def export(self):
        """All sessions as columns. See sessions.pyi."""
        cdef int64_t count = len(self), at = 0
        cdef size_t id
        cdef int32_t* ids
        cdef int32_t* slot
        cdef int64_t* first
        cdef int64_t* last
        cdef uint8_t* given
        columns = [
            new_array(pa.int32(), count, <void**> &ids),
            new_array(pa.int32(), count, <void**> &slot),
            new_array(pa.int64(), count, <void**> &first),
            new_array(pa.int64(), count, <void**> &last),
            new_array(pa.bool_(), count, <void**> &given),
        ]
        with nogil:
            memset(given, 0, (count + 7) // 8)
            for id in range(self.sessions.size()):
                if self.sessions[id].slot == NOTHING:
                    continue
                ids[at] = <int32_t> id
                slot[at] = self.sessions[id].slot
                first[at] = self.sessions[id].first
                last[at] = self.sessions[id].last
                if self.sessions[id].given:
                    given[at >> 3] |= <uint8_t> (1 << (at & 7))
                at += 1
        return pa.RecordBatch.from_arrays(columns, schema=_SESSIONS)

    def load(self, state):
        """Sessions of `export` come in -> their ids. See sessions.pyi."""
        cdef View slot_column, first_column, last_column, given_column
        cdef list alive = [
            open_array(state.column("slot"), &slot_column, TYPE_INT32, "slot"),
            open_array(state.column("first"), &first_column, TYPE_INT64, "first"),
            open_array(state.column("last"), &last_column, TYPE_INT64, "last"),
            open_array(state.column("given"), &given_column, TYPE_BOOL, "given"),
        ]
        cdef int32_t* out
        ids = new_array(pa.int32(), slot_column.length, <void**> &out)
        cdef int64_t i
        cdef int32_t id, slot, left, right
        with nogil:
            for i in range(slot_column.length):
                slot = <int32_t> slot_column.integer(i)
                if <int64_t> self.newest.size() <= slot:
                    self.newest.resize(slot + 1, NOTHING)
                left = self._find(slot, first_column.integer(i), &right)
                id = self._make(slot, first_column.integer(i), last_column.integer(i), left, right)
                if given_column.truth(i):
                    self.sessions[id].given = True
                self.sessions[id].fresh = False
                out[i] = id
            self.created.clear()
        return ids

    def statistics(self):
        """open, merged, late, bytes."""
        return {"open": len(self), "merged": self.merges, "late": self.late, "bytes": self.nbytes}


cdef extern from *:
    """
    template <typename Iterator> static inline int32_t sabot_value(Iterator place) { return place->second; }
    """
    int32_t _value "sabot_value"(ordered_map[int64_t, int32_t].iterator place) noexcept nogil


cdef class RunTable:
    """Runs of rows by key. See sessions.pyi."""

    cdef vector[Run] runs
    cdef vector[int32_t] unused         # ids
    cdef vector[int32_t] current        # by slot: the run that its next row may be in
    cdef Wheel wheel
    cdef int64_t rows, idle_ms, span_ms

    def __cinit__(self, *, int64_t rows=0, int64_t idle_ms=0, int64_t span_ms=0):
        self.rows = _checked(rows, "rows", 0)
        self.idle_ms = _checked(idle_ms, "idle_ms", 0)
        self.span_ms = _checked(span_ms, "span_ms", 0)
        self.wheel.shift = _shift(max(idle_ms, span_ms))

    def __len__(self):
        return self.runs.size() - self.unused.size()

    @property
    def nbytes(self):
        return (
            self.runs.capacity() * sizeof(Run) + (self.unused.capacity() + self.current.capacity()) * 4
            + self.wheel.entries * sizeof(Entry) + WHEEL
        )  # fmt: skip

    def add(self, slots, time=None, selection=None):
        """The run of each row, those that began, their first rows, those that ended. See sessions.pyi."""
        if time is None and (self.idle_ms or self.span_ms):
            raise TypeError("runs that end by time need event time")
        cdef _Rows rows = _Rows(slots, time, selection)
        cdef int32_t* out
        ids = new_array(pa.int32(), rows.count, <void**> &out)
        cdef vector[int32_t] began, heads, ended
        with nogil:
            self._add(rows, out, began, heads, ended)
        return ids, int32_array(began), int32_array(heads), int32_array(ended)

    cdef int _add(
        self, _Rows rows, int32_t* out, vector[int32_t]& began, vector[int32_t]& heads, vector[int32_t]& ended
    ) except -1 nogil:
        cdef int64_t i, time = 0
        cdef int32_t id, slot
        cdef Run* run
        if <int64_t> self.current.size() <= rows.greatest:
            self.current.resize(rows.greatest + 1, NOTHING)
        for i in range(rows.count):
            slot = rows.slots[i]
            if rows.time != NULL:
                time = rows.time[rows.row(i)]
            id = self.current[slot]
            if id >= 0 and self._is_over(&self.runs[id], time):
                ended.push_back(id)
                id = NOTHING
            if id < 0:
                id = self._make(slot, time, time, 0)
                began.push_back(id)
                heads.push_back(<int32_t> rows.row(i))
            run = &self.runs[id]
            run.count += 1
            if run.last < time:
                run.last = time
            if run.first > time and not self.span_ms:
                run.first = time
            if run.count == self.rows:
                ended.push_back(id)
                self.current[slot] = NOTHING
            out[i] = id
        return 0

    cdef inline bint _is_over(self, const Run* run, int64_t time) noexcept nogil:
        """No row of this time, or later, can be in the run."""
        return (self.idle_ms and _apart(run.last, time, self.idle_ms)) or (
            self.span_ms and _apart(run.first, time, self.span_ms)
        )

    cdef inline int64_t _due(self, const Run* run) noexcept nogil:
        """From when on it is over."""
        cdef int64_t due = INT64_MAX
        if self.idle_ms:
            due = _plus(run.last, self.idle_ms)
        if self.span_ms and _plus(run.first, self.span_ms) < due:
            due = _plus(run.first, self.span_ms)
        return due

    cdef int32_t _make(self, int32_t slot, int64_t first, int64_t last, int64_t count) except -2 nogil:
        cdef int32_t id
        cdef Run* run
        if self.unused.size():
            id = self.unused.back()
            self.unused.pop_back()
        else:
            if self.runs.size() >= 0x7FFFFFFF:
                with gil:
                    raise OverflowError("more than 2^31 - 1 runs in one subtask: use more parallelism")
            id = <int32_t> self.runs.size()
            self.runs.resize(id + 1)
        run = &self.runs[id]
        run.first, run.last, run.count, run.slot = first, last, count, slot
        self.current[slot] = id
        if self.idle_ms or self.span_ms:
            self._schedule(id)
        return id

    cdef int _schedule(self, int32_t id) except -1 nogil:
        self.runs[id].due = self._due(&self.runs[id])
        self.wheel.put(self.runs[id].due, id)
        if self.wheel.entries > 2 * <int64_t> (self.runs.size() - self.unused.size()) + SLACK:
            self._sweep_wheel()
        return 0

    cdef int _sweep_wheel(self) except -1 nogil:
        """Leaves the runs' own entries; those that `advance` found to be over have none."""
        cdef size_t id
        self.wheel.clear()
        for id in range(self.runs.size()):
            if self.runs[id].slot != NOTHING and self.runs[id].due != INT64_MIN:
                self.wheel.put(self.runs[id].due, <int32_t> id)
        return 0

    def advance(self, int64_t watermark_ms):
        """Runs that are over by event time. See sessions.pyi."""
        cdef vector[int32_t] over
        with nogil:
            self._advance(watermark_ms, over)
        return int32_array(over)

    cdef int _advance(self, int64_t watermark_ms, vector[int32_t]& over) except -1 nogil:
        cdef vector[Entry] bucket, early
        cdef size_t i
        cdef Run* run
        self.wheel.advance(watermark_ms)
        while self.wheel.take(bucket):
            for i in range(bucket.size()):
                run = &self.runs[bucket[i].second]
                if run.slot == NOTHING or run.due != bucket[i].first or self.current[run.slot] != bucket[i].second:
                    continue
                if bucket[i].first > watermark_ms:
                    early.push_back(bucket[i])
                elif self._due(run) <= watermark_ms:
                    run.due = INT64_MIN  # an entry of an earlier run with this id must not be taken for its own
                    over.push_back(bucket[i].second)
                else:
                    self._schedule(bucket[i].second)
            for i in range(early.size()):
                self.wheel.put(early[i].first, early[i].second)
            early.clear()
        return 0

    def bounds(self, runs):
        """(first, last). See sessions.pyi."""
        cdef View column
        cdef object alive = open_array(runs, &column, TYPE_INT32, "runs")
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        cdef int64_t* first
        cdef int64_t* last
        firsts = new_array(pa.int64(), column.length, <void**> &first)
        lasts = new_array(pa.int64(), column.length, <void**> &last)
        self._check(&column)
        with nogil:
            for i in range(column.length):
                first[i] = self.runs[ids[i]].first
                last[i] = self.runs[ids[i]].last
        return firsts, lasts

    def slots(self, runs):
        """Their keys."""
        cdef View column
        cdef object alive = open_array(runs, &column, TYPE_INT32, "runs")
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        cdef int32_t* out
        slots = new_array(pa.int32(), column.length, <void**> &out)
        self._check(&column)
        with nogil:
            for i in range(column.length):
                out[i] = self.runs[ids[i]].slot
        return slots

    cdef int _check(self, const View* column) except -1:
        """KeyError unless all ids are of runs that are there."""
        cdef const int32_t* ids = column.int32s()
        cdef int64_t i
        for i in range(column.length):
            if not 0 <= ids[i] < <int64_t> self.runs.size() or self.runs[ids[i]].slot == NOTHING:
                raise KeyError(f"no run {ids[i]}")
        return 0

    def remove(self, runs):
        """They are gone; -> slots of keys without any. See sessions.pyi."""
        cdef View column
        cdef object alive = open_array(runs, &column, TYPE_INT32, "runs")
        cdef const int32_t* ids = column.int32s()
        cdef vector[int32_t] slots
        cdef int64_t i
        cdef int32_t slot
        self._check(&column)
        with nogil:
            for i in range(column.length):
                slot = self.runs[ids[i]].slot
                if slot == NOTHING:
                    continue  # named twice
                self.runs[ids[i]].slot = NOTHING
                self.unused.push_back(ids[i])
                if self.current[slot] == ids[i]:
                    self.current[slot] = NOTHING
                if self.current[slot] == NOTHING:
                    self.current[slot] = GONE
                    slots.push_back(slot)
            if self.wheel.entries > 2 * <int64_t> (self.runs.size() - self.unused.size()) + SLACK:
                self._sweep_wheel()
        return int32_array(slots)

    def export(self):
        """All runs as columns. See sessions.pyi."""
        cdef int64_t count = len(self), at = 0
        cdef size_t id
        cdef int32_t* ids
        cdef int32_t* slot
        cdef int64_t* first
        cdef int64_t* last
        cdef int64_t* rows
        columns = [
            new_array(pa.int32(), count, <void**> &ids),
            new_array(pa.int32(), count, <void**> &slot),
            new_array(pa.int64(), count, <void**> &first),
            new_array(pa.int64(), count, <void**> &last),
            new_array(pa.int64(), count, <void**> &rows),
        ]
        with nogil:
            for id in range(self.runs.size()):
                if self.runs[id].slot == NOTHING:
                    continue
                ids[at] = <int32_t> id
                slot[at] = self.runs[id].slot
                first[at] = self.runs[id].first
                last[at] = self.runs[id].last
                rows[at] = self.runs[id].count
                at += 1
        return pa.RecordBatch.from_arrays(columns, schema=_RUNS)

    def load(self, state):
        """Runs of `export` come in -> their ids. See sessions.pyi."""
        cdef View slot_column, first_column, last_column, count_column
        cdef list alive = [
            open_array(state.column("slot"), &slot_column, TYPE_INT32, "slot"),
            open_array(state.column("first"), &first_column, TYPE_INT64, "first"),
            open_array(state.column("last"), &last_column, TYPE_INT64, "last"),
            open_array(state.column("count"), &count_column, TYPE_INT64, "count"),
        ]
        cdef int32_t* out
        ids = new_array(pa.int32(), slot_column.length, <void**> &out)
        cdef int64_t i
        cdef int32_t slot
        with nogil:
            for i in range(slot_column.length):
                slot = <int32_t> slot_column.integer(i)
                if <int64_t> self.current.size() <= slot:
                    self.current.resize(slot + 1, NOTHING)
                out[i] = self._make(slot, first_column.integer(i), last_column.integer(i), count_column.integer(i))
        return ids

    def statistics(self):
        """open, bytes."""
        return {"open": len(self), "bytes": self.nbytes}
