import pyarrow as pa

class SessionTable:
    """Open sessions by key: per key slot a chain of them in order of time. Native; one owner; the GIL is released once per call.

    A session is from its first row's time to `gap_ms` after its last. A row belongs to a session when it is less than `gap_ms` away
    from one of its rows; it may extend it at both ends, and may join two. A session has an id (0, 1, …), used again after it is gone.
    Key slots are the caller's, not negative (`GroupTable.resolve`). A session stays for `lateness_ms` after its end.
    """

    def __init__(self, gap_ms: int, lateness_ms: int = 0) -> None: ...
    def __len__(self) -> int:
        """Sessions that are not removed."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, time: pa.Int64Array, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array, pa.Int32Array, pa.Int32Array]:
        """-> (session, created, into, source).

        session: of each row of `selection` (slots[i] is the slot of row selection[i]), after all merges of this call; -1: late, that is
        the session that it would make is over, lateness included, at the watermark of the last `advance`, and it touches none that is
        still there. created: the sessions that this call made. into, source: sessions of before this call that were joined: source[i]
        is gone, its rows are into[i]'s now. Do these merges first, then add the rows: then equal times keep their order.
        """
    def vacant(self, slots: pa.Int32Array) -> pa.Int32Array:
        """Those of the slots, which were given to the last `add`, that have no session, each once: the caller may use them anew."""
    def advance(self, watermark_ms: int) -> tuple[pa.Int32Array, pa.Int32Array]:
        """-> (ripe, over), in time proportional to what they hold.

        ripe: end <= watermark, and changed since they were last given. over: end + lateness <= watermark; to be removed, at once.
        A watermark below an earlier one gives nothing.
        """
    def bounds(self, ids: pa.Int32Array) -> tuple[pa.Int64Array, pa.Int64Array]:
        """Their first rows' times, and their ends (last row's + gap_ms, at most 2^63 - 1)."""
    def slots(self, ids: pa.Int32Array) -> pa.Int32Array:
        """Their keys."""
    def remove(self, ids: pa.Int32Array) -> pa.Int32Array:
        """They are gone. -> the slots of the keys that have no session any more, each once: the caller may use them anew."""
    def export(self) -> pa.RecordBatch:
        """All sessions: session int32, slot int32, first int64, last int64, given bool (ripe, and not changed since)."""
    def load(self, state: pa.RecordBatch) -> pa.Int32Array:
        """Sessions of `export`, their slots as they are here, their ids not looked at -> their new ids. They touch none that is there."""
    def statistics(self) -> dict[str, int]:
        """open, merged, late, bytes."""

class RunTable:
    """The rows of a key in the order in which they come, cut into runs. Native; one owner; the GIL is released once per call.

    A run ends, 0 meaning never: when it has `rows` rows; before a row `idle_ms` or more after its latest row (time may run
    backwards); before a row `span_ms` or more after the row that began it. Slots and ids are as in SessionTable.
    """

    def __init__(self, *, rows: int = 0, idle_ms: int = 0, span_ms: int = 0) -> None: ...
    def __len__(self) -> int:
        """Runs that are not removed."""
    @property
    def nbytes(self) -> int: ...
    def add(
        self, slots: pa.Int32Array, time: pa.Int64Array | None = None, selection: pa.Int32Array | None = None
    ) -> tuple[pa.Int32Array, pa.Int32Array, pa.Int32Array, pa.Int32Array]:
        """-> (run of each row of `selection`, runs that began, the rows that began them, runs that ended), the last three in order.

        Those that ended are to be removed, all of them, before the next call. `time` is needed where idle_ms or span_ms is.
        """
    def advance(self, watermark_ms: int) -> pa.Int32Array:
        """Runs that no row at or after the watermark can be in, in time proportional to them; to be removed, at once."""
    def bounds(self, ids: pa.Int32Array) -> tuple[pa.Int64Array, pa.Int64Array]:
        """Their least and greatest times (with `span_ms`: the time of the row that began them, and the greatest)."""
    def slots(self, ids: pa.Int32Array) -> pa.Int32Array: ...
    def remove(self, ids: pa.Int32Array) -> pa.Int32Array:
        """They are gone. -> the slots of the keys that have no run any more, each once."""
    def export(self) -> pa.RecordBatch:
        """All runs: run int32, slot int32, first int64, last int64, count int64."""
    def load(self, state: pa.RecordBatch) -> pa.Int32Array:
        """Runs of `export`, at most one a slot, their slots as they are here, their ids not looked at -> their new ids."""
    def statistics(self) -> dict[str, int]:
        """open, bytes."""
