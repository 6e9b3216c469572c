from collections.abc import Sequence
from typing import Any

import pyarrow as pa

Operand = tuple[bool, int]
"""(True, a slot) or (False, a column of operands)."""

Condition = tuple[str, Operand, Operand, bool]
"""op (== != < <= > >=), left, right, own: with an earlier row of the same step; the step's first row has none, and passes."""

Test = tuple[int, Sequence[Condition]]
"""Index of the bool column that must be true (-1: none), and conditions that must hold too. With a null, none does."""

Step = tuple[int, int | None, str, str, bool, bool, str, Test]
"""least and most rows (None: any number), before, between ("next", "then", "then_any"), optional, greedy, keep, test.

keep: what a match tells of its rows of the step: "each", "ends" (the first and the last), or "count" (no row has a number). It bounds
what is kept: with "each", a partial match grows by each row; else it does not.
"""

Slot = tuple[int, bool, str, int]
"""A value that a partial match remembers: of its step's first row (else the last), its kind, and the column of operands it is from."""

class PatternTable:
    """Partial matches of a pattern, by key slot. Native; one owner; the GIL is released once per call.

    steps: at most 62. gaps: for each step the tests of rows that may not come before it (after the step before may be over), and last
    those of rows that may not come after the last step within `within_ms` of the first row. Rows of a key come in order of time.

    A match gives rows to steps in order: each step `least` to `most` rows, none if it is optional. Between a row p and the next q of
    the match, which is of the step `j`:
    - before (between, where p is of j too) is "next": there is no row; "then": no row that passes j's test; "then_any": any rows;
    - where q is of another step than p, no row after p up to q, q included, passes a test in the gaps between their steps; where it is
      of the same one, which has `least` rows by p, none passes a test of the gap behind it;
    - where p's step is greedy, is not j and has fewer rows than `most`: no row after p up to q passes its test (of "next": not the very
      next).
    From the first row's time to the last are at most `within_ms`. A match whose last step has a gap behind it ends `within_ms` after
    its first row: no row after its last and up to then passes a test of that gap.
    A test is asked with the values that the rows taken before have left in the slots.

    skip: "none": all matches. "past_last": of those that are complete first, the one that started first, and of these the one that
    takes a row rather than leave it, for the same step rather than a later one, for a step rather than for one behind it; then all
    begins anew with the row behind its last one. "to_next": by the same order, at most one for each first row.

    operands: of the columns of operands, "signed", "unsigned" (int64 and uint64 or the like), "float" (float64) or "bytes" (string,
    binary). ValueError for what does not fit together.
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
        """Partial matches."""
    @property
    def nbytes(self) -> int: ...
    @property
    def next_row(self) -> int:
        """The number of the next row that is taken."""
    @property
    def live_nodes(self) -> int:
        """At least as many as rows that partial matches have."""
    def choose(
        self, tests: Sequence[pa.BooleanArray], rows: int, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array]:
        """(rows that can change anything, those of them that can begin a match), of `rows` or of the selection, in order.

        They are remembered: `begin` says where they belong.
        """
    def begin(self, slots: pa.Int32Array, time: pa.Int64Array, operands: Sequence[pa.Array[Any]]) -> None:
        """The rows that `choose` gave, row i of key slots[i] (-1: of a key without partial matches; it cannot begin one). To be walked.

        time, operands: of all rows of the batch; kept alive until all are walked.
        """
    def walk(self) -> bool:
        """The rows, one by one, until all are done (True), or `output_rows` rows of matches wait for `matches` (False).

        TooManyPartials where a key has more than `max_partial`, or more than `max_rows` rows in them; the table must not be used then.
        """
    def expire(self, watermark_ms: int) -> bool:
        """No row below comes any more: what has no time left goes, or is a match that only had to wait. As `walk`: True when done."""
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
        """Those found since the last call: (key slots, first time, last time, offsets, steps, rows, weights, taken).

        offsets, one more than matches, into steps, rows and weights: which step each row of a match is of, its number (-1: none), and how
        many rows it stands for (itself, and those before it that are not kept). taken: the batch's
        rows that were given numbers since the last call, in order: they are the last len(taken) below `next_row`.
        """
    def vacant(self) -> pa.Int32Array:
        """Key slots that came to have no partial match, since the last call: the caller may use them anew."""
    def renumber(self) -> pa.Int64Array:
        """The numbers of the rows that partial matches have, ascending; the i-th of them has the number i from now on.

        `next_row` is behind the last.
        """
    def export(self) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """(partial matches, nodes): copies.

        Partials, of each key in order: slot int32, first int64 (ms), step int32, rows int32, count int32, loop bool, targets int64,
        start int64, last int64, node int64 (of its last row), then the slots "0", "1", …: int64 (the bits) or binary.
        Nodes: row int64, prev int64 (-1: none), step int32, weight int32. A node's place is its number.
        """
    def load(self, partials: pa.RecordBatch, nodes: pa.RecordBatch, first_row: int, row_count: int = ...) -> None:
        """Partials of an `export`, with slots as they are here, and all of its nodes; the row of number i then is first_row + i now.

        row_count: of the rows that are kept for them. `next_row` is behind them all. ValueError where they do not belong together, or
        where no rows can have led to them: what is loaded is not trusted.
        """

class TooManyPartials(Exception):
    """args: the key slot."""
