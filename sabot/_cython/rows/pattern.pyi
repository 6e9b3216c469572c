from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Instruction = tuple[str, str, int | float | None]
"""A step of a condition's program: what it does, the kind of its values, and a number. The program works on a stack of
values; true and false are the signed integers 1 and 0. Without inputs: "operand" and "slot" (the number of a column of
operands, or of a slot), "constant" (its value), "null", "fresh" (true if the partial match has no row of the variable
yet). Of one value: "float" (of a signed integer), "neg", "not", "is_null". Of two: + - * / // %, == != < <= > >=, & | ^,
"coalesce". Of three: "when" (the second if the first is true, else the third). Nulls are treated as in SQL.
"""

Test = tuple[int, Sequence[Sequence[Instruction]]]
"""The condition on a row: the index of the bool column that must be true (or -1), and programs that must give true too."""

Step = tuple[int, int | None, str, bool, bool, str, int, Test, Sequence[Test]]
"""A step: least and most rows (None for any number), between ("next", "then", "then_any"), greedy, reluctant, keep,
variable, test, after.

`keep`: the rows of the step that a match reports: "each", "ends" (the first and the last), or "count" (none, only
their number). A partial match grows with every row only under "each". `variable`: the number of its name; steps of one
name share it. `after`: tests of rows that end the step once it has its least number of rows.
"""

Edge = tuple[int | str, str, Sequence[Test]]
"""A way on: to a step, to "end" (the time after the last step in which no row may pass the gap), or to "accept", where
the pattern is complete; before; the gap, which are tests of rows that may not come between the two steps.
"""

Slot = tuple[int, str, str, int, int, int]
"""A value that a partial match remembers of its rows: variable (-1 for the rows of all), what, kind, source, other, rows.

`what`: "first", "last", "sum", "min", "max" of a column of operands (`source`; -1 for the serial number of the row),
"count" of its values that are not null (-1: of the rows); "later": the value of the row that comes `rows` rows after the
first one, whose number is counted in the slot `other`; "earlier": what the slot `other` had before the last row.
"""

class PatternTable:
    """The partial matches of a pattern, by key slot. Has one owner thread; the GIL is released.

    `steps`: at most 62. `edges`: first those to the steps that can be first, then for each step those to the steps that can
    come after it, in the order of preference. Rows of a key must come in order of time.

    A match assigns rows to steps along the edges: `least` to `most` rows to each step. Let p be a row of the match and q the
    next one, which belongs to step j. Then:
    - `before` of the edge (or `between`, if p belongs to the same visit of j) limits the rows between p and q: "next" allows
      none, "then" none that passes the test of j, "then_any" any;
    - if q begins a step, no row after p up to and including q passes a test of the edge's gap; if it belongs to the same visit
      of a step, and this has at least `least` rows up to p, none passes a test of `after`;
    - if the step of p is greedy, is not j, and has fewer rows than `most`, no row after p up to q passes its test (if its
      `between` is "next": the row right after p does not).
    The times of the first and the last row are at most `within_ms` apart. A match that leads to "end" is complete
    `within_ms` after its first row, if no row between its last row and that time passes a test of that edge's gap.
    A test sees the values that the rows taken so far have stored in the slots.

    Of the matches with the same first row, one is preferred: it takes a row rather than to skip it, for the current step
    rather than for another (for a reluctant step the other way round), and by an earlier edge of a step.

    `skip`: "none" reports all matches. With "past_last", matching starts anew after the last row of a match, with "to_next"
    after its first row, with "to_slot" at the row whose serial number is in `skip_slot` (but after the first row).
    `overlap`: of matches that overlap, "complete" reports the one that is complete first, of these the one that began first,
    of these the preferred one. "begun" reports the one that began first, of these the preferred one. A match is reported when
    it is certain to be the one: when a row has come that completes it, or that ends the last partial match before it.

    `operands`: the kind of each column of operands: "signed" (int64 or the like), "unsigned" (uint64 or the like), "float"
    (float64) or "bytes" (string, binary). Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        edges: Sequence[Sequence[Edge]],
        slots: Sequence[Slot],
        operands: Sequence[str],
        *,
        within_ms: int | None,
        skip: str,
        overlap: str = "complete",
        skip_slot: int = -1,
        max_partial: int = 10_000,
        max_rows: int = 1_000_000,
        output_rows: int = 1_048_576,
    ) -> None: ...
    def __len__(self) -> int:
        """Returns the number of partial matches."""
    @property
    def nbytes(self) -> int: ...
    @property
    def next_row(self) -> int:
        """The number for the next row that is taken into a partial match."""
    @property
    def live_nodes(self) -> int:
        """An upper bound of the number of rows in partial matches."""
    def choose(
        self, tests: Sequence[pa.BooleanArray], rows: int, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns the rows that can affect partial matches, and those of them that can begin a match, in order, among
        `rows` rows or among the selection.

        The table remembers these rows; `begin` sets their key slots. Raises TypeError for tests that are not bool or
        have another length, IndexError for a selection outside of the rows.
        """
    def begin(self, slots: pa.Int32Array, time: pa.Int64Array, operands: Sequence[pa.Array[Any]]) -> None:
        """Sets the key slots of the rows that `choose` returned, before they are walked. The slot is -1 for a row
        whose key has no partial matches and which cannot begin one.

        `time`, `operands`: one value for each row of the batch; the table keeps them alive until all rows are walked.
        """
    def walk(self) -> bool:
        """Processes the rows one by one. Returns True when all are done, or False when `output_rows` rows of matches
        wait for `matches`.

        Raises TooManyPartials if a key has more than `max_partial` partial matches, or more than `max_rows` rows in
        them; the table must not be used after that.
        """
    def expire(self, watermark_ms: int) -> bool:
        """Drops partial matches whose time is over at this watermark, or turns them into matches if they only had to
        wait. Call it when no row below the watermark can come. Returns True when done, or False when `output_rows`
        rows of matches wait for `matches`.
        """
    def flush(self, known_ms: int) -> bool:
        """Drops all partial matches, and reports the complete ones that waited for them. Call it when no row can come.
        `known_ms`: the time. Returns True when done, as `expire` does.
        """
    def occupied(self) -> pa.Int32Array:
        """Returns the key slots that have partial matches."""
    def matches(
        self,
    ) -> tuple[
        pa.Int32Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int32Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int32Array,
    ]:
        """Returns the matches found since the last call: (key slots, first time, last time, known,
        offsets, steps, rows, weights, taken).

        `known`: the time of the row, or the end of the time limit, with which the match was certain; at least the last
        time.

        `offsets`, one more than matches, are positions in steps, rows and weights, which have for each row of a match
        its step, its number (or -1), and how many rows it stands for (itself, and the rows before it that are not
        kept). `taken`: the rows of the batch that got numbers since the last call, in order; their numbers are the
        last len(taken) numbers below `next_row`.
        """
    def vacant(self) -> pa.Int32Array:
        """Returns the key slots whose last partial match has gone since the last call. The caller may reuse them."""
    def renumber(self) -> pa.Int64Array:
        """Renumbers the rows in partial matches. Returns their old numbers, ascending; the i-th of these rows has the
        number i from now on, and `next_row` is their count.
        """
    def due(self, watermark_ms: int) -> pa.Int32Array:
        """Returns the key slots whose partial matches `expire` may change, with repeats."""
    def evict(self, slots: pa.Int32Array) -> None:
        """Drops the partial matches of these key slots. `vacant` does not report these slots."""
    def export(self, slots: pa.Int32Array | None = None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Returns copies of the partial matches and the nodes of these key slots, one slot after the other, or of all slots.

        Partial matches, in order for each key: slot int32, first int64 (ms), step int32, rows int32, count int32, loop bool,
        targets int64 (bits; of a complete match bit 62, and the ms from its first to its last row), start int64, last int64,
        node int64 (of its last row), then the values "0", "1", …: int64 (bits) or binary.
        Nodes: row int64, prev int64 (or -1), step int32, weight int32. The row number of a node in the batch is the node's
        number. The nodes of a key stand together, in the order of the keys.
        """
    def load(self, partials: pa.RecordBatch, nodes: pa.RecordBatch, first_row: int, row_count: int = ...) -> None:
        """Loads partial matches of an `export`, with the slots of their keys in this table, and all of its nodes. Row
        i of the export gets the number first_row + i.

        `row_count`: the number of rows that are kept for these partial matches; `next_row` becomes greater than all
        their numbers. The data is checked: raises ValueError if it is inconsistent or could not result from any rows.
        """

class TooManyPartials(Exception):
    """Raised if a key has too many partial matches; `args` has its slot."""
