import pyarrow as pa

def split_panes(
    time: pa.Int64Array,
    size_ms: int,
    offset_ms: int,
    selection: pa.Int32Array | None = None,
    *,
    late_before: int = ...,
) -> tuple[pa.Int32Array | None, list[tuple[int, pa.Int32Array | None]]]:
    """Divides rows by pane. Returns (rows with a time below `late_before`, or None; [(start of the pane, its rows),
    …] sorted by start).

    A row's pane starts at floor((time - offset_ms) / size_ms) * size_ms + offset_ms. Only rows of `selection` are
    used; they keep their order. The rows of a pane are None if they are all rows of the array, and the selection
    itself if they are all of it. Takes O(rows + panes), even if the panes are far apart. The GIL is released. Raises
    ValueError for size_ms below 1 or a null, TypeError for other types than int64, DataError for a time further than
    2^61 ms from 1970.
    """

def min_max(time: pa.Int64Array, selection: pa.Int32Array | None = None) -> tuple[int, int] | None:
    """Returns the least and the greatest time of the rows of `selection` (None for all), or None without rows."""
