from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

@dataclass(frozen=True)
class WireField:
    """A field of a message. If its values are messages, `fields` has the fields of these."""

    name: str
    path: str
    """The name for messages: "order.items[].price"."""
    number: int
    kind: str
    """The type as in .proto files, "enum" or "message"; or "timestamp", "duration", "wrapped" for messages of
    google.protobuf.
    """
    inner: str | None = None
    """For wrapped: the type of the value."""
    presence: bool = False
    """True if a missing field is null. Otherwise a missing field has the default of its type."""
    required: bool = False
    repeated: bool = False
    packed: bool = False
    """True if the numbers of a list are written without tags between them. Both forms are read."""
    map: bool = False
    """True for a list of pairs with the fields `key` and `value`, which are never missing."""
    group: bool = False
    """True for a message between two tags, without a length."""
    oneof: int = -1
    """The number of the oneof: fields of a message with the same number are members of the same oneof. -1 for none."""
    closed: bool = False
    """True for an enum whose field is skipped if its number has no name."""
    values: tuple[tuple[str, int], ...] = ()
    """For enum: names and numbers. The first is the default."""
    fields: tuple[WireField, ...] = ()
    """For message: its fields. All others are skipped."""

@dataclass(frozen=True)
class WireWriter:
    """The payloads whose header (Confluent's registry) has one schema id. `places` says which message of the schema's
    file they may have.
    """

    places: tuple[tuple[int, ...], ...] = ()
    """The message indexes that the header may contain. Any other makes a bad row."""
    refusal: str = ""
    """The reason why every payload is a bad row, or ""."""
    other: str = ""
    """The reason why a payload with another message is a bad row."""

class ProtobufDecoder:
    """Decodes payloads of one message type into batches of `schema`, in one call.

    Columns are in the order of `fields`: numbers, bool, string and binary have their own types; an enum's value is
    its name, or its number as text; timestamp and duration are in us (finer digits are dropped); a message is a
    struct, a list a list, a map a map. These payloads become bad rows, and decoding goes on: bytes that are not a
    message, strings that are not UTF-8, times out of google.protobuf's ranges, a missing required field, a null
    payload. Calls from several threads are safe; they run one after the other.
    """

    schema: pa.Schema
    def __init__(self, fields: Sequence[WireField], schema: pa.Schema, framed: bool = False) -> None:
        """`framed`: True if payloads begin with the header of Confluent's registry; any other beginning then makes a
        bad row.
        """
    def decode(
        self, payloads: pa.BinaryArray, writers: Sequence[WireWriter] = (), which: pa.Int32Array | None = None
    ) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes payloads. Returns the good rows, in order, and the bad rows. The GIL is released.

        `writers`: the possible headers of framed payloads; without writers the header is skipped unchecked. `which`:
        for each payload the index of its writer, or None for the first. Raises TypeError unless the payloads are
        binary, ValueError if `which` does not fit, OverflowError if a column would take more than 2 GiB.
        """

class ProtobufWriter:
    """Encodes the rows of batches of `schema` as payloads of one message type.

    Columns have the names of fields, in any order; fields without a column are left out. Column types are those that
    ProtobufDecoder produces; enums may also be int32, and times have any unit.
    """

    schema: pa.Schema
    def __init__(self, fields: Sequence[WireField], schema: pa.Schema, header: bytes = b"") -> None:
        """`header`: the first bytes of each payload."""
    def encode(self, batch: pa.RecordBatch) -> pa.Array[Any]:
        """Encodes each row. Returns the payloads as a binary array. The GIL is released.

        Raises UserError, with row and column, for a value that the message cannot represent; TypeError for another
        schema; OverflowError above 2 GiB.
        """
