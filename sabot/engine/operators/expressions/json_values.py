"""Values as JSON in the form of SQL: times in ISO 8601, bytes in base64."""

from binascii import b2a_base64
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import normalise
from sabot._cython.text.json import encode_rows
from sabot.base.arrays import where


def values_as_json(values: pa.Array) -> pa.Array:
    """Returns each value as JSON: what {"v":1} has between its first five characters and the last one."""
    rows = normalise(pa.record_batch([values], names=["v"]))
    rows = pa.record_batch([_with_texts(rows.column(0))], names=["v"])
    return pc.utf8_slice_codeunits(encode_rows(rows, times="iso").cast(pa.string()), 5, -1)


def base64_texts(values: pa.Array) -> pa.Array:
    """Returns bytes in base64; null stays null."""
    rows = len(values)
    filled = pc.fill_null(values, b"")
    _, offsets, data = filled.buffers()
    bounds = (
        np.frombuffer(offsets, np.int32)[filled.offset : filled.offset + rows + 1].astype(np.int64)
        if rows
        else np.zeros(1, int)
    )
    sizes = np.diff(bounds)
    thirds = (sizes + 2) // 3  # of each value: three bytes are four letters
    ends = np.cumsum(thirds)
    padded = np.zeros(3 * int(ends[-1]) if rows else 0, np.uint8)
    if len(padded):
        moved = 3 * (ends - thirds) - bounds[:-1]  # each value begins with a letter of its own
        places = np.arange(bounds[0], bounds[-1]) + np.repeat(moved, sizes)
        padded[places] = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
    letters = np.frombuffer(b2a_base64(padded.tobytes(), newline=False), np.uint8).copy()
    missing = 3 * thirds - sizes
    for number in (1, 2):
        letters[4 * ends[missing >= number] - number] = ord("=")
    starts: Any = pa.array(np.concatenate([[0], 4 * ends])).cast(pa.int32())
    made = pa.Array.from_buffers(pa.string(), rows, [None, starts.buffers()[1], pa.py_buffer(letters)])
    return where(values.is_valid(), made) if values.null_count else made


def _with_texts(values: pa.Array) -> pa.Array:
    """Returns values whose bytes, also those within lists and structs, are texts in base64."""
    kind, types = values.type, pa.types
    if types.is_binary(kind):
        return base64_texts(values)
    if types.is_struct(kind):
        inner = [_with_texts(each) for each in values.flatten()]
        fields = [field.with_type(each.type) for field, each in zip(kind, inner, strict=True)]
        return (
            values if fields == list(kind) else pa.StructArray.from_arrays(inner, fields=fields, mask=values.is_null())
        )
    if types.is_list(kind):
        item = _with_texts(values.flatten())
        if item.type == kind.value_type:
            return values
        ends = np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(values), 0)), dtype=np.int32)
        return pa.ListArray.from_arrays(
            pa.array(np.concatenate([np.zeros(1, np.int32), ends])), item, mask=values.is_null()
        )
    return values
