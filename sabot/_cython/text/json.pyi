from collections.abc import Collection, Sequence
from typing import Any, Literal

import pyarrow as pa

NESTING_MAX: int
"""The greatest nesting of objects and lists in data from outside, for every decoder."""

def is_too_deep(payload: bytes) -> bool:
    """Returns True if a payload, valid or not, has objects and lists nested deeper than NESTING_MAX."""

class BadRow:
    """A payload that could not be decoded: `row` is its index in the input, `reason` says why, and at which byte.
    Compared by value.

    After decode_lines, `data[start:end]` is the line without its line ending, and the byte in `reason` counts from
    `start`. After decode() both are -1.
    """
    def __init__(self, row: int, reason: str, start: int = -1, end: int = -1) -> None: ...
    @property
    def row(self) -> int: ...
    @property
    def reason(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...

class JsonDecoder:
    """Decodes payloads into a RecordBatch of `schema`, in one call. Only the wanted columns are built.

    Types: bool, all ints, float32/64, string, binary (the UTF-8 of a JSON string), timestamp (any unit; values are
    UTC with or without a zone; a text without an offset is on the clock of the zone that the metadata `time_zone` of its
    field names, if there is one) and date32/64, both from integers (epoch ms) or ISO 8601 strings, time32/64, from strings
    such as 12:30:00.25, decimal128/256, from numbers or strings with a number, struct, list and map of these (a map is an
    object, so its keys are strings; of equal keys it has the last), `pa.null()`; other types raise UserError naming the
    column. int64 time columns accept integers only. A date is a time at midnight; an integer for it of at most 2,932,896 is
    days since 1970, as Kafka Connect writes them.

    A decimal is exact: a number with more digits than its type, before or after the point, makes a bad row; 1.500 and
    15e-1 are 1.5. Of duplicate keys the last is used. Unknown fields are skipped, but must be valid JSON. A missing
    or null value becomes null, or a bad row if the column is not nullable.

    These payloads become bad rows, and decoding goes on: a value of the wrong type, a number out of the type's range,
    invalid UTF-8, half a surrogate pair in a wanted string, trailing bytes, an empty or None payload, a payload that
    is not an object, nesting deeper than 512. An int fits a float column; a float without a fraction does not fit an
    int column. NaN and Infinity are not JSON. A byte order mark before a payload is skipped. Digits of a time beyond
    the column's unit are dropped; those of a time of day make a bad row.

    `guessed`: the columns whose types were inferred, and not declared. In them an int makes a bad row if a float64 would
    lose digits of it; else the nearest float is taken.
    """

    schema: pa.Schema
    def __init__(self, schema: pa.Schema, guessed: Collection[str] = ()) -> None: ...
    @property
    def others(self) -> int:
        """The number of names of unknown fields so far, of the first 1,024 names of each object, and shorter than 64 bytes."""

    def other_names(self) -> list[str]:
        """Returns these names as paths: "id", "order.items[].price". No call may decode meanwhile."""

    def decode(self, payloads: Sequence[bytes | None] | pa.Array[Any] | Any) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes payloads. Returns the good rows, in order, and the bad rows.

        Accepts an Arrow array of binary or string, any slice, or a sequence of bytes and None; raises TypeError for
        anything else. The GIL is released while parsing. Raises OverflowError if a column would take more than 2 GiB.
        """
    def decode_lines(self, data: bytes | memoryview | pa.Buffer) -> tuple[pa.RecordBatch, list[BadRow]]:
        r"""Decodes NDJSON: complete lines, which end in \n or \r\n (the last may lack it). Blank lines are skipped and
        not counted. Each bad row has the bounds of its line. The GIL is released.
        """

def encode_rows(batch: pa.RecordBatch, times: Literal["ms", "sql", "iso"] = "ms") -> pa.BinaryArray:
    """Encodes each row as one JSON object, compact, in UTF-8, with the fields in the order of the columns.

    `times`: timestamps and dates are epoch ms, or texts: `2024-05-17T12:30:00.25` with "iso", `2024-05-17 12:30:00.25`
    with "sql"; a Z is behind them if the type has a time zone. A date is `2024-05-17`. A time of day is always a text,
    `12:30:00.25`.

    Nulls, NaN and infinities are written as null; decimals as numbers with all digits of their scale (1.50); binary as a
    UTF-8 string (TypeError for other bytes, and for a time of day beyond its day); struct and map as objects, list as
    lists. Other types raise UserError naming the column. Floats are written with the fewest digits that round-trip, and always
    with a point or an exponent: 1.0 is `1.0`. Raises OverflowError above 2 GiB.
    """
