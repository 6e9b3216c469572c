import pyarrow as pa

class SessionTable:
    """Open sessions by key: for each key slot a chain of sessions in order of time. Has one owner thread; the GIL is
    released.

    A session extends from the time of its first row to `gap_ms` after its last. A row belongs to a session if it is
    less than `gap_ms` away from one of its rows. It may extend the session at either end, and may join two sessions.
    A session has an id (0, 1, …), which is reused after its removal. The caller assigns key slots, which are not
    negative (`GroupTable.resolve`). A session is kept for `lateness_ms` after its end.
    """

    def __init__(self, gap_ms: int, lateness_ms: int = 0) -> None: ...
    def __len__(self) -> int:
        """Returns the number of sessions that are not removed."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, time: pa.Int64Array, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array, pa.Int32Array, pa.Int32Array]:
        """Adds rows. Returns (session, created, into, source).

        `session`: the session of each row of `selection` (slots[i] is the slot of row selection[i]) after all merges
        of this call, or -1 for a late row. A row is late if it touches no existing session, and a session of its own
        would be over, including lateness, at the watermark of the last `advance`. `created`: the sessions that this
        call made. `into`, `source`: merged sessions that existed before this call: source[i] is removed, its rows
        belong to into[i]. The caller has to merge their results first and then add the rows, so that rows with equal
        times keep their order. Raises TypeError without times.
        """
    def vacant(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Returns those of the slots that have no session, each once; the caller may reuse them. `slots`: those of
        the last `add`.
        """
    def advance(self, watermark_ms: int) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns the sessions that are (ripe, over), in time proportional to their number.

        A ripe session has its end <= watermark, and has changed since it was last returned as ripe. A session that is
        over has end + lateness <= watermark; the caller has to remove it at once. A watermark below an earlier one
        returns nothing.
        """
    def bounds(self, ids: pa.Int32Array) -> tuple[pa.Int64Array, pa.Int64Array]:
        """Returns the times of the sessions' first rows, and the sessions' ends (time of the last row + gap_ms, at
        most 2^63 - 1). Raises KeyError for an id that is not a session, like all methods with `ids`.
        """
    def slots(self, ids: pa.Int32Array) -> pa.Int32Array:
        """Returns the key slots of the sessions."""
    def remove(self, ids: pa.Int32Array) -> pa.Int32Array:
        """Removes the sessions. Returns the slots that have no session any more, each once; the caller may reuse
        them.
        """
    def of_slots(self, slots: pa.Int32Array) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns the sessions of these slots, slot by slot, and the position in `slots` of each."""
    def export(self, ids: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Returns these sessions, or all: session int32, slot int32, first int64, last int64, given bool (returned as
        ripe, and not changed since).
        """
    def load(self, state: pa.RecordBatch) -> pa.Int32Array:
        """Loads sessions of `export`, with the slots of their keys in this table. Returns their new ids; the old ids
        are ignored. They must not touch existing sessions.
        """
    def statistics(self) -> dict[str, int]:
        """Returns the numbers of open sessions, merges and late rows, and bytes."""

class RunTable:
    """Divides the rows of a key, in the order in which they come, into runs. Has one owner thread; the GIL is
    released.

    A run ends when it has `rows` rows; before a row `idle_ms` or more after its latest row (time may run backwards);
    before a row `span_ms` or more after the row that began it. 0 disables a limit. Slots and ids are as in
    SessionTable.
    """

    def __init__(self, *, rows: int = 0, idle_ms: int = 0, span_ms: int = 0) -> None: ...
    def __len__(self) -> int:
        """Returns the number of runs that are not removed."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, time: pa.Int64Array | None = None, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array, pa.Int32Array, pa.Int32Array]:
        """Adds rows. Returns (the run of each row of `selection`, runs that began, the rows that began them, runs
        that ended), the last three in order.

        The caller has to remove all runs that ended before the next call. `time` is needed with idle_ms or span_ms,
        else TypeError.
        """
    def advance(self, watermark_ms: int) -> pa.Int32Array:
        """Returns the runs that no row at or after the watermark can belong to, in time proportional to their number.
        The caller has to remove them at once.
        """
    def bounds(self, ids: pa.Int32Array) -> tuple[pa.Int64Array, pa.Int64Array]:
        """Returns the runs' least and greatest times (with `span_ms`: the time of the row that began the run, and the
        greatest).
        """
    def slots(self, ids: pa.Int32Array) -> pa.Int32Array: ...
    def remove(self, ids: pa.Int32Array) -> pa.Int32Array:
        """Removes the runs. Returns the slots that have no run any more, each once."""
    def of_slots(self, slots: pa.Int32Array) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Returns the run of each slot that has one, and the position in `slots` of each."""
    def export(self, ids: pa.Int32Array | None = None) -> pa.RecordBatch:
        """Returns these runs, or all: run int32, slot int32, first int64, last int64, count int64."""
    def load(self, state: pa.RecordBatch) -> pa.Int32Array:
        """Loads runs of `export`, at most one per slot, with the slots of their keys in this table. Returns their new
        ids.
        """
    def statistics(self) -> dict[str, int]:
        """Returns the number of open runs, and bytes."""
