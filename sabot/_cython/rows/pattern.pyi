from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Operand = tuple[bool, int]
"""(True, a slot) or (False, a column of operands)."""

Condition = tuple[str, Operand, Operand, bool]
"""op (== != < <= > >=), left, right, own. own: compares with an earlier row of the same step; the first row of the step passes."""

Test = tuple[int, Sequence[Condition]]
"""The index of the bool column that must be true (-1: none), and conditions that must hold too. A condition with a null does not hold."""

Step = tuple[int, int | None, str, str, bool, bool, str, Test]
"""least and most rows (None: any number), before, between ("next", "then", "then_any"), optional, greedy, keep, test.

keep: which rows of the step a match reports: "each", "ends" (the first and the last), or "count" (none; only how many). A partial match
grows with every row only under "each".
"""

Slot = tuple[int, bool, str, int]
"""A value that a partial match remembers: the step; whether it is that of the step's first row or of its last; the kind of the value; the
column of operands that has it.
"""

class PatternTable:
    """Partial matches of a pattern, by key slot. Has one owner; the GIL is released once per call.

    steps: at most 62. gaps: for each step the tests of forbidden rows between the step before it and the step; at the end the tests of
    rows that are forbidden after the last step, within `within_ms` of the first row. Rows of a key must come in order of time.

    A match assigns rows to the steps in order: `least` to `most` rows to each step, or none if the step is optional. Let p be a row of
    the match and q the next one, which belongs to step j. Then:
    - `before` of step j (or `between`, if p belongs to j too) limits the rows between p and q: "next", there is none; "then", none passes
      the test of j; "then_any", any may be there;
    - if q belongs to another step than p, no row after p up to and including q passes a test of the gaps between the two steps; if it
      belongs to the same step, and that has at least `least` rows by p, none passes a test of the gap behind the step;
    - if the step of p is greedy, is not j, and has fewer rows than `most`, no row after p up to q passes its test (if its `between` is
      "next": the row right after p does not).
    The times of the first and the last row are at most `within_ms` apart. A match whose last step has a gap behind it is complete
    `within_ms` after its first row, if no row after its last one and up to then passes a test of that gap.
    A test sees the values that the rows taken so far have left in the slots.

    skip: "none": all matches are reported. "past_last": of the matches that are complete first, only the one that started first is
    reported; among several of these, the one that takes a row rather than skips it, for its current step rather than a later one, and for
    an earlier one of several later steps. Then matching begins anew behind its last row. "to_next": at most one match per first row,
    chosen in the same order.

    operands: the kind of each column of operands: "signed" (int64 or the like), "unsigned" (uint64 or the like), "float" (float64) or
    "bytes" (string, binary). Raises ValueError for arguments that do not fit together.
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
        """The number of partial matches."""
    @property
    def nbytes(self) -> int: ...
    @property
    def next_row(self) -> int:
        """The number that the next row taken into a partial match will get."""
    @property
    def live_nodes(self) -> int:
        """An upper bound of the number of rows in partial matches."""
    def choose(
        self, tests: Sequence[pa.BooleanArray], rows: int, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns (the rows that can affect partial matches, those of them that can begin a match), of `rows` rows or of the selection, in
        order.

        The table remembers these rows; `begin` gives their key slots.
        """
    def begin(self, slots: pa.Int32Array, time: pa.Int64Array, operands: Sequence[pa.Array[Any]]) -> None:
        """Sets the key slots of the rows that `choose` returned, before they are walked. A slot is -1 for a row whose key has no partial
        matches and which cannot begin one.

        time, operands: those of all rows of the batch; the table keeps them alive until all rows are walked.
        """
    def walk(self) -> bool:
        """Walks the rows one by one, until all are done (True), or `output_rows` rows of matches wait for `matches` (False).

        Raises TooManyPartials where a key has more than `max_partial` partial matches, or more than `max_rows` rows in them; the table
        must not be used after that.
        """
    def expire(self, watermark_ms: int) -> bool:
        """Called when no row below the watermark can come: partial matches whose time is over are dropped, or become matches where they
        only had to wait. Returns True when done, False as `walk` does.
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
        """The matches found since the last call: (key slots, first time, last time, offsets, steps, rows, weights, taken).

        offsets, one more than matches, point into steps, rows and weights: the step of each row of a match, its number (-1: none), and for
        how many rows it stands (itself, and rows before it that are not kept). taken: the rows of the batch that got numbers since the
        last call, in order; theirs are the last len(taken) numbers below `next_row`.
        """
    def vacant(self) -> pa.Int32Array:
        """Key slots whose last partial match has gone since the last call: the caller may use them again."""
    def renumber(self) -> pa.Int64Array:
        """Renumbers the rows in partial matches: returns their numbers, ascending; the i-th of these rows has the number i from now on, and
        `next_row` is the count.
        """
    def due(self, watermark_ms: int) -> pa.Int32Array:
        """The key slots whose partial matches `expire` may change, with repeats."""
    def evict(self, slots: pa.Int32Array) -> None:
        """Drops the partial matches of these key slots, which `vacant` does not name for that."""
    def export(self, slots: pa.Int32Array | None = None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Copies of (partial matches, nodes) of these key slots, one after the other, or of all.

        Partials, in order for each key: slot int32, first int64 (ms), step int32, rows int32, count int32, loop bool, targets int64,
        start int64, last int64, node int64 (that of its last row), then the values "0", "1", …: int64 (the bits) or binary.
        Nodes: row int64, prev int64 (-1: none), step int32, weight int32. The place of a node in the batch is its number. Those of a key
        stand together, in the order of the keys.
        """
    def load(self, partials: pa.RecordBatch, nodes: pa.RecordBatch, first_row: int, row_count: int = ...) -> None:
        """Loads partial matches of an `export`, with the slots that they have here, and all of its nodes. Row i of the export gets the
        number first_row + i.

        row_count: how many rows are kept for these partial matches; `next_row` moves behind them all. The data is not trusted: raises
        ValueError where it is inconsistent, or could not result from any rows.
        """

class TooManyPartials(Exception):
    """A key has too many partial matches; `args` is its slot."""
