from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import BadRow

@dataclass(frozen=True)
class WireField:
    """A field of a message, and where it has one, of the messages in it."""

    name: str
    path: str
    """The name for users: "order.items[].price"."""
    number: int
    kind: str
    """The type as .proto files name it, "enum" or "message"; or "timestamp", "duration", "wrapped" for google.protobuf's messages."""
    inner: str | None = None
    """wrapped: the type of the value."""
    presence: bool = False
    """Whether a field that is not there is null. Without it, it is the type's default."""
    required: bool = False
    repeated: bool = False
    packed: bool = False
    """Whether numbers of a list are written one behind the other. Either way they are read."""
    map: bool = False
    """A repeated message of `key` and `value`, which are always there."""
    group: bool = False
    """A message that stands between two tags, without a length."""
    oneof: int = -1
    """Fields of a message with the same number are members of the same oneof."""
    closed: bool = False
    """enum: a number without a name is no value of the field, which is skipped."""
    values: tuple[tuple[str, int], ...] = ()
    """enum: names and numbers. The first is the default."""
    fields: tuple[WireField, ...] = ()
    """message: its fields; others are skipped."""

@dataclass(frozen=True)
class WireWriter:
    """What payloads behind one schema's id in a registry's header can be."""

    places: tuple[tuple[int, ...], ...] = ()
    """The indexes with which the header may name the message; those of another one make a bad row."""
    refusal: str = ""
    """Why all of them are bad rows."""
    other: str = ""
    """Why those of another message are."""

class ProtobufDecoder:
    """Decodes payloads of one message type into batches of `schema`, in one call.

    Columns, in the order of `fields`: numbers, bool, string and binary as their types; an enum's value as its name, or its number as text;
    timestamp and duration in us (digits beyond are dropped); a message as a struct, a list as a list, a map as a map.
    The following make a bad row, and decoding goes on: bytes that are no message, strings that are not UTF-8, times out of the ranges that
    google.protobuf gives them, a required field that is missing, a null payload.
    Calls from several threads are safe, and run one after the other.
    """

    schema: pa.Schema
    def __init__(self, fields: Sequence[WireField], schema: pa.Schema, framed: bool = False) -> None:
        """framed: payloads begin with the header of Confluent's registry; another one makes a bad row."""
    def decode(
        self, payloads: pa.BinaryArray, writers: Sequence[WireWriter] = (), which: pa.Int32Array | None = None
    ) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes payloads into the good rows, in order, and the bad ones. The GIL is released.

        writers: of framed payloads, and which of them each payload is of (None: the first); without writers the header is skipped. Raises
        OverflowError where a column would take more than 2 GiB.
        """

class ProtobufWriter:
    """Encodes the rows of batches of `schema` as payloads of one message type.

    Columns have the names of fields, in any order; fields without a column are left out. Types: those that ProtobufDecoder gives; enums
    also as int32, times in any unit.
    """

    schema: pa.Schema
    def __init__(self, fields: Sequence[WireField], schema: pa.Schema, header: bytes = b"") -> None:
        """header: what each payload begins with."""
    def encode(self, batch: pa.RecordBatch) -> pa.Array[Any]:
        """The payloads of the rows, an array of type binary. The GIL is released.

        Raises UserError, which names row and column, for a value that the message cannot have; TypeError for another schema; OverflowError
        beyond 2 GiB.
        """
