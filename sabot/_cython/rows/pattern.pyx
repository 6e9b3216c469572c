"""Matches patterns in sequences of rows by key. See pattern.pyi for the contract; pattern_walk.h extends partial
matches by a row.
"""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memset
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

import pyarrow as pa

from sabot._cython.arrow.batch cimport plain_array
from sabot._cython.arrow.columns cimport (
    TYPE_BOOL,
    TYPE_BYTES,
    TYPE_FLOAT64,
    TYPE_INT32,
    TYPE_INT64,
    TYPE_NOTHING,
    TYPE_TEXT,
    TYPE_UINT64,
    View,
    all_within,
    int32_array,
    int64_array,
    new_array,
    open_array,
    open_view,
)

__all__ = ["PatternTable", "TooManyPartials"]


cdef extern from "rows/pattern_bits.h" namespace "sabot" nogil:
    void add_bits(const View& view, const int32_t* chosen, int64_t count, uint64_t bit, uint64_t* masks) noexcept


cdef extern from "rows/pattern_walk.h" namespace "sabot" nogil:
    const int BYTES_KIND "sabot::BYTES"
    const int SIGNED_KIND "sabot::SIGNED"
    const int FLOAT_KIND "sabot::FLOAT"
    const int ALL_MATCHES "sabot::ALL"
    const int TO_SLOT "sabot::TO_SLOT"
    const int END_BIT "sabot::END"
    const int ACCEPT "sabot::ACCEPT"
    const int NUMBER "sabot::NUMBER"
    const int LATER "sabot::LATER"
    const int EARLIER "sabot::EARLIER"
    const int OPERAND "sabot::OPERAND"
    const int SLOT "sabot::SLOT"
    const int CONSTANT "sabot::CONSTANT"
    const int FRESH "sabot::FRESH"
    const uint64_t EVERY

    cppclass Instruction:
        int op
        int kind
        int index
        uint64_t raw

    cppclass CTest "sabot::Test":
        uint64_t bits
        vector[vector[Instruction]] conditions

    cppclass StepPlan:
        int32_t least
        int32_t most
        int between
        cbool greedy
        cbool reluctant
        int keep
        int variable
        CTest test
        vector[CTest] after

    cppclass Edge:
        int to
        int before
        vector[CTest] gap

    cppclass SlotPlan:
        int variable
        int what
        int kind
        int source
        int other
        int64_t rows

    cbool fits_stack(const vector[Instruction]& program) noexcept
    uint64_t bits_of(double value) noexcept

    cppclass Partial:
        int64_t start
        int64_t last
        int64_t first_time
        uint64_t targets
        uint64_t valid
        int32_t node
        int32_t next
        int32_t count
        int16_t step
        cbool loop

    cppclass Node:
        int64_t row
        int32_t prev
        int32_t total
        int32_t weight
        int32_t slot
        int32_t step

    cppclass KeyOf:
        int32_t head
        int32_t size

    cppclass Found:
        vector[int32_t] slots
        vector[int32_t] steps
        vector[int64_t] first
        vector[int64_t] last
        vector[int64_t] known
        vector[int64_t] offsets
        vector[int64_t] rows
        vector[int64_t] weights
        void clear() except +

    cppclass Matcher:
        vector[StepPlan] steps
        vector[vector[Edge]] edges
        vector[SlotPlan] slots
        vector[int] operand_kinds
        vector[View] operands
        int64_t within
        int skip
        int skip_slot
        cbool begun
        int64_t most_partials
        int64_t most_nodes
        int64_t output_rows
        uint64_t start_bits
        uint64_t watched
        Found found
        vector[int64_t] taken
        vector[KeyOf] keys
        int64_t next_row
        int64_t partials
        int64_t nodes
        int32_t crowded
        void ready() except +
        void reach_slot(int32_t greatest) except +
        cbool full() noexcept
        void row(int32_t slot, int64_t index, uint64_t mask, int64_t time) except +
        cbool expire(int64_t watermark) except +
        cbool flush(int64_t known) except +
        void occupied(vector[int32_t]& out) except +
        void drain_vacant(vector[int32_t]& out) except +
        void live_rows(vector[int64_t]& out) except +
        void renumber(const vector[int64_t]& live) except +
        void gather(const int32_t* given, int64_t count, vector[int32_t]& which, vector[int32_t]& order) except +
        int32_t place(int32_t node) noexcept
        void forget_places(const vector[int32_t]& order) noexcept
        void evict(const int32_t* given, int64_t count) except +
        void due(int64_t watermark, vector[int32_t]& out) except +
        const Node& node(int32_t i) noexcept
        const Partial& partial(int32_t i) noexcept
        uint64_t value(int32_t partial, int slot) noexcept
        const string& text(uint64_t handle) noexcept
        int32_t load_node(int64_t row, int32_t prev, int32_t step, int32_t weight, int32_t slot) except +
        bint belongs(const Partial& given)
        int32_t load_partial(int32_t slot, const Partial& given) except +
        void load_value(int32_t p, int slot, uint64_t raw) except +
        void load_text(int32_t p, int slot, const uint8_t* data, int64_t size) except +
        int64_t memory() noexcept


_KINDS = ["signed", "unsigned", "float", "bytes"]
_OPS = [
    "operand", "slot", "constant", "null", "fresh", "float", "neg", "not", "is_null", "+", "-", "*", "/", "//", "%",
    "==", "!=", "<", "<=", ">", ">=", "&", "|", "^", "coalesce", "when",
]  # in the order of pattern_program.h
_WHATS = ["first", "last", "sum", "count", "min", "max", "later", "earlier"]
_BEFORE = ["next", "then", "then_any"]
_SKIP = ["past_last", "to_next", "none", "to_slot"]
_OVERLAP = ["complete", "begun"]
_MOST_STEPS = 62
_KEEP = ["count", "ends", "each"]
_NODES = pa.schema([("row", pa.int64()), ("prev", pa.int64()), ("step", pa.int32()), ("weight", pa.int32())])
_PARTIALS = [
    ("slot", pa.int32()), ("first", pa.int64()), ("step", pa.int32()), ("rows", pa.int32()), ("count", pa.int32()),
    ("loop", pa.bool_()), ("targets", pa.int64()), ("start", pa.int64()), ("last", pa.int64()), ("node", pa.int64()),
]  # fmt: skip


class TooManyPartials(Exception):
    """Raised if a key has too many partial matches; `args` has its slot."""


cdef int _index(list names, object name, str what) except -1:
    if name not in names:
        raise ValueError(f"{what}: {name!r} is not one of {', '.join(names)}")
    return names.index(name)


cdef class PatternTable:
    """The partial matches of a pattern, by key slot. See pattern.pyi."""

    cdef Matcher matcher
    cdef vector[uint64_t] masks            # the bits of the tests that each chosen row passes
    cdef vector[int32_t] chosen            # the chosen rows
    cdef int64_t done                      # the number of chosen rows that are walked
    cdef int64_t rows                      # the number of rows of the batch
    cdef View slot_column, time_column
    cdef object alive                      # keeps arrays of the batch alive

    def __cinit__(
        self, steps, edges, slots, operands, *, within_ms, skip, overlap="complete", int skip_slot=-1,
        int64_t max_partial=10_000, int64_t max_rows=1_000_000, int64_t output_rows=1_048_576,
    ):
        cdef StepPlan plan
        cdef Edge edge
        cdef SlotPlan slot
        cdef vector[Edge] leaving
        cdef Matcher* matcher = &self.matcher
        if not 1 <= len(steps) <= _MOST_STEPS or len(edges) != len(steps) + 1 or len(slots) > 63:
            raise ValueError(f"{len(steps)} steps with {len(edges)} lists of edges and {len(slots)} slots")
        for kind in operands:
            matcher.operand_kinds.push_back(_index(_KINDS, kind, "operand"))
        for variable, what, kind, source, other, rows in slots:
            slot.variable, slot.what, slot.kind = variable, _index(_WHATS, what, "slot"), _index(_KINDS, kind, "slot")
            slot.source, slot.other, slot.rows = source, other, rows
            self._check_slot(slot, len(steps))
            matcher.slots.push_back(slot)
        for least, most, between, greedy, reluctant, keep, variable, test, after in steps:
            plan.least, plan.most = least, 0 if most is None else most
            if plan.least < 1 or (plan.most and plan.most < plan.least):
                raise ValueError(f"a step cannot match {least} to {most} rows")
            plan.between, plan.variable = _index(_BEFORE, between, "between"), variable
            plan.greedy, plan.reluctant, plan.test, plan.after = greedy, reluctant, self._test(test), self._tests(after)
            plan.keep = _index(_KEEP, keep, "keep")
            if greedy and (reluctant or between == "then_any"):
                raise ValueError("a greedy step cannot be reluctant or use then_any: it matches every row that it can")
            if not 0 <= plan.variable < len(steps):
                raise ValueError(f"a step cannot have the variable {variable}")
            matcher.steps.push_back(plan)
        for number, given in enumerate(edges):
            leaving.clear()
            for to, before, gap in given:
                edge.to = END_BIT if to == "end" else ACCEPT if to == "accept" else to
                edge.before, edge.gap = _index(_BEFORE, before, "before"), self._tests(gap)
                if not (0 <= edge.to < len(steps) or (number and edge.to in (END_BIT, ACCEPT))):
                    raise ValueError(f"no edge leads from {number} to {to}")
                if to == "end" and within_ms is None:
                    raise ValueError("a gap behind the last step needs within_ms")
                leaving.push_back(edge)
            if len({to for to, _, _ in given}) != len(given):
                raise ValueError(f"two edges lead from {number} to the same step")
            matcher.edges.push_back(leaving)
        matcher.within = -1 if within_ms is None else within_ms
        matcher.skip, matcher.skip_slot = _index(_SKIP, skip, "skip"), skip_slot
        if matcher.skip == TO_SLOT:
            if not 0 <= skip_slot < len(slots) or matcher.slots[skip_slot].source >= 0:
                raise ValueError(f"slot {skip_slot} has no row with which the next match could begin")
        matcher.begun = _index(_OVERLAP, overlap, "overlap") == 1 and matcher.skip != ALL_MATCHES
        matcher.most_partials, matcher.most_nodes, matcher.output_rows = max_partial, max_rows, output_rows
        matcher.ready()
        self.done = self.rows = 0

    cdef int _check_slot(self, const SlotPlan& slot, int64_t steps) except -1:
        """Raises ValueError for a slot that does not fit the steps, the operands and the slots before it."""
        cdef Matcher* matcher = &self.matcher
        cdef int64_t before = matcher.slots.size()
        cdef bint fits = -1 <= slot.variable < steps and -1 <= slot.source < <int64_t> matcher.operand_kinds.size()
        if slot.what == LATER or slot.what == EARLIER:
            fits = fits and 0 <= slot.other < before and matcher.slots[slot.other].variable == slot.variable
            if fits and slot.what == LATER:
                fits = matcher.slots[slot.other].what == NUMBER and matcher.slots[slot.other].source < 0
            elif fits:
                fits = matcher.slots[slot.other].kind == slot.kind
        if fits and slot.what != NUMBER and slot.what != EARLIER:
            fits = slot.kind == (SIGNED_KIND if slot.source < 0 else matcher.operand_kinds[slot.source])
        if not fits:
            raise ValueError(f"slot {before} has no such variable, operand or slot, or another kind")
        return 0

    cdef vector[CTest] _tests(self, given) except *:
        cdef vector[CTest] tests
        for test in given:
            tests.push_back(self._test(test))
        return tests

    cdef CTest _test(self, given) except *:
        cdef CTest test
        cdef vector[Instruction] program
        cdef Instruction made
        column, conditions = given
        if column >= 63:
            raise ValueError(f"test {column} is not allowed: a pattern has at most 63 tests")
        test.bits = EVERY if column < 0 else <uint64_t> 1 << <int> column
        for condition in conditions:
            program.clear()
            for op, kind, value in condition:
                made.op, made.kind, made.index, made.raw = _index(_OPS, op, "condition"), _index(_KINDS, kind, "kind"), 0, 0
                if made.op == CONSTANT:
                    made.raw = bits_of(value) if made.kind == FLOAT_KIND else <uint64_t> <int64_t> value
                elif value is not None:
                    made.index = value
                self._check_instruction(made)
                program.push_back(made)
            if not fits_stack(program):
                raise ValueError("a condition does not leave one value, or needs too many at a time")
            test.conditions.push_back(program)
        return test

    cdef int _check_instruction(self, const Instruction& made) except -1:
        """Raises ValueError for a slot, operand or variable that is not there, or is of another kind."""
        cdef Matcher* matcher = &self.matcher
        cdef bint fits = True
        if made.op == SLOT:
            fits = 0 <= made.index < <int> matcher.slots.size() and matcher.slots[made.index].kind == made.kind
        elif made.op == OPERAND:
            fits = 0 <= made.index < <int> matcher.operand_kinds.size() and matcher.operand_kinds[made.index] == made.kind
        elif made.op == FRESH:
            fits = 0 <= made.index < _MOST_STEPS
        if not fits:
            raise ValueError(f"there is no {_OPS[made.op]} {made.index} of the kind {_KINDS[made.kind]}")
        return 0

    def __len__(self):
        return self.matcher.partials

    @property
    def nbytes(self):
        return self.matcher.memory() + self.masks.capacity() * 8 + self.chosen.capacity() * 4

    @property
    def next_row(self):
        return self.matcher.next_row

    @property
    def live_nodes(self):
        return self.matcher.nodes

    # Adding rows

    def choose(self, tests, int64_t rows, selection=None):
        """Chooses the rows that can affect partial matches, and those that can begin one. See pattern.pyi."""
        cdef View view
        cdef View chosen_column
        cdef const int32_t* chosen = NULL
        cdef int64_t count = rows, i, n = 0
        cdef vector[int32_t] starts
        cdef uint64_t bit, mask, watched = self.matcher.watched, first = self.matcher.start_bits
        cdef int32_t row
        if selection is not None:
            kept = open_array(selection, &chosen_column, TYPE_INT32, "selection")
            chosen, count = chosen_column.int32s(), chosen_column.length
            if not all_within(chosen, count, rows):
                raise IndexError(f"the selection has row numbers outside of the {rows} rows of the batch")
        self.masks.assign(count, EVERY)
        for number, test in enumerate(tests):
            alive = open_view(plain_array(test), &view)
            if (view.type != TYPE_BOOL and view.type != TYPE_NOTHING) or view.length != rows:
                raise TypeError(f"test {number} is {test.type} of {view.length} rows, not bool of {rows}")
            bit = <uint64_t> 1 << <int> number
            if count:
                with nogil:
                    add_bits(view, chosen, count, bit, self.masks.data())
        self.chosen.resize(count)
        with nogil:
            for i in range(count):
                mask = self.masks[i]
                if mask & watched:
                    row = <int32_t> i if chosen == NULL else chosen[i]
                    self.chosen[n] = row
                    self.masks[n] = mask
                    n += 1
                    if mask & first:
                        starts.push_back(row)
            self.chosen.resize(n)
            self.masks.resize(n)
        self.rows = rows
        self.done = n
        return int32_array(self.chosen), int32_array(starts)

    def begin(self, slots, time, operands):
        """Sets the key slots of the chosen rows. See pattern.pyi."""
        cdef View view
        cdef int64_t i
        cdef int32_t greatest = -1
        cdef const int32_t* slot
        cdef int kind
        alive = [
            open_array(slots, &self.slot_column, TYPE_INT32, "slots"),
            open_array(time, &self.time_column, TYPE_INT64, "time"),
        ]
        if self.slot_column.length != <int64_t> self.chosen.size() or self.time_column.length != self.rows:
            raise ValueError(f"{len(slots)} slots for {self.chosen.size()} rows, {len(time)} times for {self.rows}")
        if len(operands) != <int64_t> self.matcher.operand_kinds.size():
            raise ValueError(f"{len(operands)} operands for {self.matcher.operand_kinds.size()}")
        self.matcher.operands.clear()
        for i, operand in enumerate(operands):
            alive.append(open_view(plain_array(operand), &view))
            kind = self.matcher.operand_kinds[i]
            if not _fits(&view, kind) or view.length != self.rows:
                raise TypeError(f"operand {i} is {operand.type} of {view.length} rows, not {_KINDS[kind]} of {self.rows}")
            self.matcher.operands.push_back(view)
        slot = self.slot_column.int32s()
        for i in range(self.slot_column.length):
            if slot[i] > greatest:
                greatest = slot[i]
        self.matcher.reach_slot(greatest)
        self.alive = alive
        self.done = 0

    def walk(self):
        """Processes the chosen rows until all are done, or matches have to be taken out. See pattern.pyi."""
        cdef const int32_t* slot = self.slot_column.int32s()
        cdef const int64_t* time = self.time_column.int64s()
        cdef int64_t i = self.done, count = self.chosen.size()
        cdef int32_t row
        cdef Matcher* matcher = &self.matcher
        with nogil:
            while i < count:
                if slot[i] >= 0:
                    row = self.chosen[i]
                    matcher.row(slot[i], row, self.masks[i], time[row])
                    if matcher.crowded >= 0 or matcher.full():
                        i += 1
                        break
                i += 1
        self.done = i
        if matcher.crowded >= 0:
            raise TooManyPartials(matcher.crowded)
        if i < count:
            return False
        self.alive = None
        return True

    def expire(self, int64_t watermark_ms):
        """Drops partial matches whose time is over, or turns them into matches. See pattern.pyi."""
        cdef bint done
        with nogil:
            done = self.matcher.expire(watermark_ms)
        return done

    def flush(self, int64_t known_ms):
        """Drops all partial matches, or turns them into matches. See pattern.pyi."""
        cdef bint done
        with nogil:
            done = self.matcher.flush(known_ms)
        return done

    def occupied(self):
        """Returns the slots that have partial matches. See pattern.pyi."""
        cdef vector[int32_t] out
        self.matcher.occupied(out)
        return int32_array(out)

    # Matches

    def matches(self):
        """Returns the matches found since the last call. See pattern.pyi."""
        cdef Found* found = &self.matcher.found
        cdef vector[int32_t] taken
        cdef size_t i
        taken.resize(self.matcher.taken.size())
        for i in range(taken.size()):
            taken[i] = <int32_t> self.matcher.taken[i]
        answer = (
            int32_array(found.slots), int64_array(found.first), int64_array(found.last), int64_array(found.known),
            int64_array(found.offsets),
            int32_array(found.steps), int64_array(found.rows), int64_array(found.weights), int32_array(taken),
        )  # fmt: skip
        self.matcher.taken.clear()
        found.clear()
        return answer

    def vacant(self):
        """Returns the key slots that have no partial match any more. See pattern.pyi."""
        cdef vector[int32_t] out
        self.matcher.drain_vacant(out)
        return int32_array(out)

    def renumber(self):
        """Renumbers the rows in partial matches. See pattern.pyi."""
        cdef vector[int64_t] live
        with nogil:
            self.matcher.live_rows(live)
            self.matcher.renumber(live)
        return int64_array(live)

    # Saving and loading

    def export(self, slots=None):
        """Returns copies of partial matches and nodes. See pattern.pyi."""
        cdef vector[int32_t] given
        cdef View column
        cdef object alive
        cdef int64_t i
        if slots is None:
            given.resize(self.matcher.keys.size())
            for i in range(<int64_t> given.size()):
                given[i] = <int32_t> i
        else:
            alive = open_array(slots, &column, TYPE_INT32, "slots")
            given.resize(column.length)
            for i in range(column.length):
                given[i] = <int32_t> column.integer(i)
        return self._export(given)

    def evict(self, slots):
        """Drops the partial matches of these slots. See pattern.pyi."""
        cdef View column
        cdef object alive = open_array(slots, &column, TYPE_INT32, "slots")
        self.matcher.evict(column.int32s(), column.length)

    def due(self, int64_t watermark_ms):
        """Returns the slots that `expire` may change. See pattern.pyi."""
        cdef vector[int32_t] out
        self.matcher.due(watermark_ms, out)
        return int32_array(out)

    cdef object _export(self, const vector[int32_t]& given):
        cdef Matcher* matcher = &self.matcher
        cdef vector[int32_t] order, which
        with nogil:
            matcher.gather(given.data(), given.size(), which, order)
        cdef int64_t size = which.size(), length = order.size(), i, n
        cdef int32_t* slot
        cdef int32_t* step
        cdef int32_t* rows
        cdef int32_t* count
        cdef int32_t* node_step
        cdef int32_t* weight
        cdef int64_t* first
        cdef int64_t* targets
        cdef int64_t* start
        cdef int64_t* last
        cdef int64_t* node
        cdef int64_t* row
        cdef int64_t* prev
        cdef uint8_t* loop
        cdef const Partial* partial
        cdef const Node* at
        columns = [
            new_array(pa.int32(), size, <void**> &slot), new_array(pa.int64(), size, <void**> &first),
            new_array(pa.int32(), size, <void**> &step), new_array(pa.int32(), size, <void**> &rows),
            new_array(pa.int32(), size, <void**> &count), new_array(pa.bool_(), size, <void**> &loop),
            new_array(pa.int64(), size, <void**> &targets), new_array(pa.int64(), size, <void**> &start),
            new_array(pa.int64(), size, <void**> &last), new_array(pa.int64(), size, <void**> &node),
        ]  # fmt: skip
        nodes = [
            new_array(pa.int64(), length, <void**> &row), new_array(pa.int64(), length, <void**> &prev),
            new_array(pa.int32(), length, <void**> &node_step), new_array(pa.int32(), length, <void**> &weight),
        ]  # fmt: skip
        with nogil:
            memset(loop, 0, (size + 7) // 8)
            for i in range(length):
                at = &matcher.node(order[i])
                row[i] = at.row
                prev[i] = -1 if at.prev < 0 else matcher.place(at.prev)
                node_step[i] = at.step
                weight[i] = at.weight
            for n in range(size):
                partial = &matcher.partial(which[n])
                at = &matcher.node(partial.node)
                slot[n] = at.slot
                first[n] = partial.first_time
                step[n] = partial.step
                rows[n] = at.total
                count[n] = partial.count
                if partial.loop:
                    loop[n >> 3] |= <uint8_t> (1 << (n & 7))
                targets[n] = <int64_t> partial.targets
                start[n] = partial.start
                last[n] = partial.last
                node[n] = matcher.place(partial.node)
            matcher.forget_places(order)
        columns += [self._values(which, i) for i in range(<int64_t> matcher.slots.size())]
        return pa.record_batch(columns, schema=self._schema()), pa.record_batch(nodes, schema=_NODES)

    cdef object _schema(self):
        slots = [
            (str(i), pa.binary() if self.matcher.slots[i].kind == BYTES_KIND else pa.int64())
            for i in range(self.matcher.slots.size())
        ]
        return pa.schema([*_PARTIALS, *slots])

    cdef object _values(self, const vector[int32_t]& which, int slot):
        """Returns the values that these partial matches remember in a slot."""
        cdef Matcher* matcher = &self.matcher
        cdef int64_t size = which.size(), i, nulls = 0
        cdef bint texts = matcher.slots[slot].kind == BYTES_KIND
        cdef string data
        cdef int32_t* offsets = NULL
        cdef int64_t* raw = NULL
        validity = pa.allocate_buffer((size + 7) // 8)
        cdef uint8_t* valid = <uint8_t*> <size_t> validity.address
        values = pa.allocate_buffer((size + 1) * (4 if texts else 8))
        if texts:
            offsets = <int32_t*> <size_t> values.address
            offsets[0] = 0
        else:
            raw = <int64_t*> <size_t> values.address
        with nogil:
            memset(valid, 0, (size + 7) // 8)
            for i in range(size):
                if (matcher.partial(which[i]).valid >> slot) & 1:
                    valid[i >> 3] |= <uint8_t> (1 << (i & 7))
                    if texts:
                        data.append(matcher.text(matcher.value(which[i], slot)))
                    else:
                        raw[i] = <int64_t> matcher.value(which[i], slot)
                else:
                    nulls += 1
                    if not texts:
                        raw[i] = 0
                if texts:
                    offsets[i + 1] = <int32_t> data.size()
        if data.size() >= <size_t> 2**31:
            raise OverflowError(f"partial matches have {data.size()} bytes of text; a checkpoint can have at most 2 GiB")
        if texts:
            return pa.Array.from_buffers(pa.binary(), size, [validity, values, pa.py_buffer(<bytes> data)], nulls)
        return pa.Array.from_buffers(pa.int64(), size, [validity, values], nulls)

    def load(self, partials, nodes, int64_t first_row, int64_t row_count=1 << 40):
        """Loads partial matches of an `export`. See pattern.pyi."""
        cdef Matcher* matcher = &self.matcher
        if not partials.schema.equals(self._schema()) or not nodes.schema.equals(_NODES):
            raise ValueError("the columns are not those of partial matches of this pattern")
        cdef View row_column, prev_column, step_column, weight_column
        cdef View slot_column, first_column, at_column, count_column, loop_column
        cdef View targets_column, start_column, last_column, node_column
        cdef View view
        cdef int64_t i, at, size = partials.num_rows, length = nodes.num_rows
        cdef int slot
        cdef const uint8_t* data
        cdef int64_t bytes_
        cdef Partial given
        cdef vector[int32_t] place, path
        cdef int32_t made, greatest = -1
        cdef int64_t rows = 0
        cdef int n = <int> matcher.steps.size()
        alive = [
            open_array(nodes.column("row"), &row_column, TYPE_INT64, "row"),
            open_array(nodes.column("prev"), &prev_column, TYPE_INT64, "prev"),
            open_array(nodes.column("step"), &step_column, TYPE_INT32, "step"),
            open_array(nodes.column("weight"), &weight_column, TYPE_INT32, "weight"),
            open_array(partials.column("slot"), &slot_column, TYPE_INT32, "slot"),
            open_array(partials.column("first"), &first_column, TYPE_INT64, "first"),
            open_array(partials.column("step"), &at_column, TYPE_INT32, "step"),
            open_array(partials.column("count"), &count_column, TYPE_INT32, "count"),
            open_array(partials.column("loop"), &loop_column, TYPE_BOOL, "loop"),
            open_array(partials.column("targets"), &targets_column, TYPE_INT64, "targets"),
            open_array(partials.column("start"), &start_column, TYPE_INT64, "start"),
            open_array(partials.column("last"), &last_column, TYPE_INT64, "last"),
            open_array(partials.column("node"), &node_column, TYPE_INT64, "node"),
        ]
        cdef const int64_t* row = row_column.int64s()
        cdef const int64_t* prev = prev_column.int64s()
        cdef const int32_t* step = step_column.int32s()
        cdef const int32_t* weight = weight_column.int32s()
        cdef const int32_t* slots = slot_column.int32s()
        cdef const int32_t* steps = at_column.int32s()
        cdef const int64_t* ends = node_column.int64s()
        for i in range(length):
            if not (-1 <= prev[i] < length and 0 <= step[i] < n and -1 <= row[i] < row_count and weight[i] >= 1):
                raise ValueError(f"node {i}: a value is out of range")
            rows = max(rows, row[i] + 1)
        place.assign(length, -1)
        for i in range(size):
            greatest = max(greatest, slots[i])
        matcher.reach_slot(greatest)
        made_of = []
        for i in range(size):
            at = ends[i]
            if not (0 <= at < length and 0 <= steps[i] < n and slots[i] >= 0):
                raise ValueError(f"partial match {i}: a value is out of range")
            path.clear()
            while at >= 0 and place[at] < 0:
                if <int64_t> path.size() > length:
                    raise ValueError("the nodes form a cycle")
                path.push_back(<int32_t> at)
                at = prev[at]
            while path.size():
                at = path.back()
                path.pop_back()
                place[at] = matcher.load_node(
                    first_row + row[at] if row[at] >= 0 else -1, place[prev[at]] if prev[at] >= 0 else -1, step[at],
                    weight[at], slots[i],
                )  # fmt: skip
                if place[at] < 0:
                    raise ValueError(f"node {at} has too many rows before it")
            given.first_time = first_column.int64s()[i]
            given.step = <int16_t> steps[i]
            given.count = count_column.int32s()[i]
            given.loop = loop_column.truth(i)
            given.targets = <uint64_t> targets_column.int64s()[i]
            given.start = start_column.int64s()[i]
            given.last = last_column.int64s()[i]
            given.node = place[ends[i]]
            if not matcher.belongs(given):
                raise ValueError(f"partial match {i} does not fit this pattern")
            made = matcher.load_partial(slots[i], given)
            made_of.append(made)
        for slot in range(<int> matcher.slots.size()):
            kept = open_view(plain_array(partials.column(10 + slot)), &view)
            for i in range(size):
                if not view.valid(i):
                    continue
                if matcher.slots[slot].kind == BYTES_KIND:
                    data = view.bytes_at(i, &bytes_)
                    matcher.load_text(made_of[i], slot, data, bytes_)
                else:
                    matcher.load_value(made_of[i], slot, view.uint64s()[i])
        if matcher.next_row < first_row + rows:
            matcher.next_row = first_row + rows


cdef bint _fits(const View* view, int kind) noexcept:
    if view.type == TYPE_NOTHING:
        return True
    if kind == BYTES_KIND:
        return view.type == TYPE_TEXT or view.type == TYPE_BYTES
    return view.type == (TYPE_INT64 if kind == 0 else TYPE_UINT64 if kind == 1 else TYPE_FLOAT64)
