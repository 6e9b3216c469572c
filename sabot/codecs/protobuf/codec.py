"""Decodes Protobuf payloads into batches."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.binary.protobuf import ProtobufDecoder
from sabot._cython.text.json import BadRow
from sabot.codecs.protobuf.fields import arrow_field, message_type, oneof_others, wire_fields

__all__ = ["ProtobufCodec"]


class ProtobufCodec:
    """Decodes payloads of one message type.

    message: a generated class, its descriptor, or what `descriptor_of` gives. columns: the fields that become columns, in this order; None:
    all. framed: payloads begin with the header of Confluent's schema registry, a 0, a schema's id in 4 bytes, and the path of the message
    in that schema. Id and path are skipped: fields are known by their numbers, whatever schema the writer had.

    Raises UserError for a message that contains itself, within the wanted columns. A codec belongs to one thread: see `another`.
    """

    def __init__(self, message: Any, *, framed: bool = False, columns: Sequence[str] | None = None) -> None:
        self._given = (message, framed, columns)
        descriptor = message_type(message)
        names = [field.name for field in descriptor.fields] if columns is None else list(columns)
        fields = wire_fields(descriptor, names)
        others = oneof_others(descriptor, names)  # they are decoded because they end the values of wanted fields
        self._schema = pa.schema(map(arrow_field, fields))
        self._wanted = range(len(fields)) if others else None
        self._decoder = ProtobufDecoder(
            [*fields, *others], pa.schema([*self._schema, *map(arrow_field, others)]), framed
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns of decoded batches."""
        return self._schema

    @property
    def text(self) -> None:
        """Nothing is learnt from records."""
        return None

    def resumed(self, text: str | None) -> "ProtobufCodec":
        """A codec with the same settings, which say everything."""
        return self.another()

    def another(self) -> "ProtobufCodec":
        """A codec with the same settings, for another thread."""
        message, framed, columns = self._given
        return ProtobufCodec(message, framed=framed, columns=columns)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes the column `payload` into the good rows, in order, and the bad ones, which never stop a batch."""
        data, bad = self._decoder.decode(batch.column("payload"))
        return data if self._wanted is None else data.select(self._wanted), bad
