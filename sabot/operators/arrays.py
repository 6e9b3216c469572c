"""Between Arrow arrays and numpy's views of their values."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["broadcast", "floats", "integer_array", "integers", "is_ascii", "is_utc", "where"]


def broadcast(value: Any, rows: int) -> pa.Array:
    """A scalar as an array of so many rows; an array as it is, in one piece."""
    if isinstance(value, pa.Scalar):
        return pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, value.type)
    return value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value


def integers(array: pa.Array) -> Any:
    """The values of an array of integers, times or dates, without a copy; anything where it is null."""
    return _view(array, "u" if pa.types.is_unsigned_integer(array.type) else "i")


def floats(array: pa.Array) -> Any:
    """The values of an array of floats, without a copy; anything where it is null."""
    return _view(array, "f")


def _view(array: pa.Array, kind: str) -> Any:
    dtype = np.dtype(f"{kind}{array.type.bit_width // 8}")
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype)[array.offset : array.offset + len(array)]


def is_ascii(strings: pa.Array) -> bool:
    """Whether all bytes of these strings are ASCII, those included that a null may hide. One look over the memory."""
    _, offsets, data = strings.buffers()
    if len(strings) == 0 or data is None:
        return True
    ends = np.frombuffer(offsets, np.int32)
    start, end = ends[strings.offset], ends[strings.offset + len(strings)]
    return bool(np.frombuffer(data, np.uint8)[start:end].max(initial=0) < 0x80)


def shown(value: pa.Scalar) -> str:
    """A value as messages show it; a time that Python has no object for as the number that it is."""
    try:
        return repr(value.as_py())
    except (OverflowError, ValueError):
        return f"{value.value} {getattr(value.type, 'unit', 'days')} since 1970"


def integer_array(values: Any, type: pa.DataType, *sources: Any, nulls: Any = None) -> pa.Array:
    """numpy integers as an array of this type (as wide as they are); null where a source is, and where `nulls` is true."""
    for source in sources:
        if isinstance(source, pa.Scalar):
            if not source.is_valid:
                return pa.nulls(len(values), type)
        elif source.null_count:
            more = source.is_null().to_numpy(zero_copy_only=False)
            nulls = more if nulls is None else nulls | more
    made = pa.array(values, mask=nulls)
    return made if made.type == type else made.view(type)


def where(mask: Any, array: pa.Array) -> pa.Array:
    """The values where the mask is true, null elsewhere. (pyarrow 17 breaks a slice of strings where the null is a scalar.)"""
    return pc.if_else(mask, array, pa.nulls(len(array), array.type))


def is_utc(zone: str | None) -> bool:
    """Whether times of this zone are what they are in UTC; a time without a zone is UTC."""
    return zone is None or zone in ("UTC", "Etc/UTC", "Z", "+00:00", "utc")
