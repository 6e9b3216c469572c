from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Operand = tuple[bool, int]
"""One side of a comparison: (True, a slot) or (False, a column of operands)."""

Condition = tuple[str, Operand, Operand, bool]
"""A comparison: op (== != < <= > >=), left, right, own. `own`: True if it compares with an earlier row of the same
step; the first row of the step passes.
"""

Test = tuple[int, Sequence[Condition]]
"""The condition on a row: the index of the bool column that must be true (or -1), and comparisons that must hold too.
A comparison with a null does not hold.
"""

Step = tuple[int, int | None, str, str, bool, bool, str, Test]
"""A step: least and most rows (None for any number), before, between ("next", "then", "then_any"), optional, greedy,
keep, test.

`keep`: the rows of the step that a match reports: "each", "ends" (the first and the last), or "count" (none, only
their number). A partial match grows with every row only under "each".
"""

Slot = tuple[int, bool, str, int]
"""A value that a partial match remembers: the step; True for the step's first row, False for its last row; the kind
of the value; the column of operands that has it.
"""

class PatternTable:
    """The partial matches of a pattern, by key slot. Has one owner thread; the GIL is released.

    `steps`: at most 62. `gaps`: for each step the tests of forbidden rows between the step before it and the step; the last
    entry has the tests of rows that are forbidden after the last step, within `within_ms` of the first row. Rows of a key
    must come in order of time.

    A match assigns rows to the steps in order: `least` to `most` rows to each step, or none if the step is optional. Let p
    be a row of the match and q the next one, which belongs to step j. Then:
    - `before` of step j (or `between`, if p belongs to j too) limits the rows between p and q: "next" allows none, "then"
      none that passes the test of j, "then_any" any;
    - if q belongs to another step than p, no row after p up to and including q passes a test of the gaps between the two
      steps; if it belongs to the same step, and the step has at least `least` rows up to p, none passes a test of the gap
      after the step;
    - if the step of p is greedy, is not j, and has fewer rows than `most`, no row after p up to q passes its test (if its
      `between` is "next": the row right after p does not).
    The times of the first and the last row are at most `within_ms` apart. A match whose last step has a gap after it is
    complete `within_ms` after its first row, if no row between its last row and that time passes a test of that gap.
    A test sees the values that the rows taken so far have stored in the slots.

    `skip`: "none" reports all matches. "past_last" reports, of the matches that are complete first, only the one that
    started first; among several of these it prefers to take a row rather than to skip it, a row of the current step to a
    later step, and an earlier one of several later steps. Then matching starts anew after the last row of the match.
    "to_next" reports at most one match per first row, chosen in the same way.

    `operands`: the kind of each column of operands: "signed" (int64 or the like), "unsigned" (uint64 or the like), "float"
    (float64) or "bytes" (string, binary). Raises ValueError for arguments that do not fit together.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        gaps: Sequence[Sequence[Test]],
        slots: Sequence[Slot],
        operands: Sequence[str],
        *,
        within_ms: int | None,
        skip: str,
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
    def matches(
        self,
    ) -> tuple[
        pa.Int32Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int32Array,
        pa.Int64Array,
        pa.Int64Array,
        pa.Int32Array,
    ]:
        """Returns the matches found since the last call: (key slots, first time, last time, offsets, steps, rows,
        weights, taken).

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
        targets int64, start int64, last int64, node int64 (of its last row), then the values "0", "1", …: int64 (bits) or binary.
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
