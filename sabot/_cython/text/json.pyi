from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NESTING_MAX: int
"""Objects and lists inside one another in what comes from outside, whoever decodes it."""

def is_too_deep(payload: bytes) -> bool:
    """Whether a payload has more than NESTING_MAX objects and lists inside one another, be it valid or not."""

class BadRow:
    """A payload that could not be decoded: `row` is its index in the input, `reason` says what and at which byte. Compared by value.

    From decode_lines, `data[start:end]` is the line without its line ending, so a reader of files that knows where its block
    begins has payload and offset at hand; from decode() both are -1. The byte in `reason` counts from `start`.
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
    """Payloads -> a RecordBatch of `schema`, in one call; only the wanted columns are built.

    Types: bool, all ints, float32/64, string, binary (from a JSON string's UTF-8), timestamp (any unit; with or without a zone the
    value is UTC) and date32/64 from integers (epoch ms) or ISO 8601 strings, struct and list of these, `pa.null()`; anything else:
    UserError naming the column. int64 time columns take integers only.
    Duplicate keys: the last wins. Unknown fields are skipped (but must be valid JSON). Missing or null -> null; in a column that is
    not nullable, a bad row.
    A value of the wrong type, a number out of the type's range, invalid UTF-8, half a surrogate pair in a wanted string, trailing bytes, an
    empty or None payload, a payload that is no object, one nested deeper than 512: the row is set apart with its reason, the batch goes on.
    An int fits a float column; a float with no fraction does not fit an int one. NaN and Infinity are no JSON.
    A byte order mark before a payload is passed over. Digits of a time past the column's unit are dropped.
    """

    schema: pa.Schema
    def __init__(self, schema: pa.Schema) -> None: ...
    def decode(self, payloads: Sequence[bytes | None] | pa.Array[Any] | Any) -> tuple[pa.RecordBatch, list[BadRow]]:
        """The rows that are good, in order, and the bad ones.

        An Arrow array of binary or string, any slice, or a sequence of bytes and None; TypeError for anything else. The GIL is released
        while parsing. OverflowError where a column would take more than 2 GiB.
        """
    def decode_lines(self, data: bytes | memoryview | pa.Buffer) -> tuple[pa.RecordBatch, list[BadRow]]:
        """NDJSON: complete lines (\\n or \\r\\n; the last may lack it); blank lines are skipped and not counted. Each bad row has
        the bounds of its line. The GIL is released."""

def infer_schema(payloads: Sequence[bytes | None]) -> pa.Schema:
    """The narrowest schema that all the valid payloads fit: bool, int64, float64, string, list, struct, null; int64+float64 -> float64, and
    so are integers beyond 64 bits; types that do not agree -> string is NOT guessed: UserError naming the field and both types. Fields in
    order of first appearance. No valid payload: a schema without columns."""

def encode_rows(batch: pa.RecordBatch) -> pa.BinaryArray:
    """Row i -> one JSON object, compact, UTF-8; nulls written as null; NaN and infinities as null; timestamps and dates as epoch ms; binary
    as a UTF-8 string (TypeError if it is not). struct and list too; other types: UserError naming the column. Floats round-trip (shortest),
    and always have a point or an exponent: 1.0 is written `1.0`."""
