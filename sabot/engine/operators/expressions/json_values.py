"""Values as JSON in the form of SQL: times in ISO 8601, bytes in base64."""

import base64

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.text.json import encode_rows
from sabot.base.arrays import column_of


def encoded_rows(rows: pa.RecordBatch) -> pa.Array:
    """Returns each row as an object of JSON. Times of day are texts; bytes within lists and structs are UTF-8."""
    return encode_rows(
        pa.RecordBatch.from_arrays([_as_text(each) for each in rows.columns], names=rows.schema.names), times="iso"
    ).cast(pa.string())


def values_as_json(values: pa.Array) -> pa.Array:
    """Returns each value as JSON: what {"v":1} has between its first five characters and the last one."""
    return pc.utf8_slice_codeunits(encoded_rows(pa.record_batch([values], names=["v"])), 5, -1)


def _as_text(values: pa.Array) -> pa.Array:
    if pa.types.is_time(values.type):
        return pc.replace_substring_regex(values.cast(pa.string()), r"\.0*$|(\.\d*?[1-9])0*$", r"\1")
    if pa.types.is_binary(values.type):
        texts = [None if each is None else base64.b64encode(each).decode() for each in values.to_pylist()]
        return column_of(texts, pa.string())
    return values
