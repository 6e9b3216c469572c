import pyarrow as pa

def split_panes(
    time: pa.Int64Array,
    size_ms: int,
    offset_ms: int,
    selection: pa.Int32Array | None = None,
    *,
    late_before: int = ...,
) -> tuple[pa.Int32Array | None, list[tuple[int, pa.Int32Array | None]]]:
    """Rows by pane: (rows with a time below `late_before`, or None; [(start of the pane, its rows), …] by start).

    A row's pane starts at floor((time - offset_ms) / size_ms) * size_ms + offset_ms. Only rows that `selection` names are looked at;
    they keep their order. Rows None: all rows of the array. Where all rows of a selection are in one pane, the rows are that
    selection itself. Costs O(rows + panes), whatever the panes. The GIL is released.
    ValueError: size_ms below 1, a null; TypeError: not int64; DataError: a time beyond 2^61 ms on either side of 1970.
    """

def min_max(time: pa.Int64Array, selection: pa.Int32Array | None = None) -> tuple[int, int] | None:
    """The least and the greatest value of the rows that `selection` names; None: there is none."""
