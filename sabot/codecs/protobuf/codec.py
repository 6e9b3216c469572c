"""The codec of Protobuf payloads."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.binary.protobuf import ProtobufDecoder, WireWriter
from sabot._cython.binary.wire import schema_ids
from sabot._cython.text.json import BadRow
from sabot.codecs.protobuf.fields import arrow_field, message_type, oneof_others, wire_fields
from sabot.codecs.protobuf.files import places_of
from sabot.codecs.writer_cache import WriterCache


class ProtobufCodec:
    """A codec for payloads of one message type.

    `message`: a generated class, its descriptor, or a result of `descriptor_of`. `columns`: the fields that become
    columns, in this order, or None for all. `framed`: True if payloads begin with the header of Confluent's schema
    registry: a 0, a schema's id in 4 bytes, and the position of the message in that schema's file. `schema_of`:
    returns the file of an id; payloads of other messages are then bad rows. If it is None, the header is skipped.
    Fields are identified by their numbers, whatever schema the writer had.

    Raises UserError if the message contains itself, within the wanted columns. A codec belongs to one thread: see
    `another`.
    """

    def __init__(
        self,
        message: Any,
        *,
        framed: bool = False,
        columns: Sequence[str] | None = None,
        schema_of: Callable[[int], str] | None = None,
    ) -> None:
        self._given = (message, framed, columns, schema_of)
        descriptor = message_type(message)
        names = [field.name for field in descriptor.fields] if columns is None else list(columns)
        fields = wire_fields(descriptor, names)
        # these must be decoded because they replace the values of wanted fields
        others = oneof_others(descriptor, names)
        self._schema = pa.schema(map(arrow_field, fields))
        self._wanted = range(len(fields)) if others else None
        self._decoder = ProtobufDecoder(
            [*fields, *others], pa.schema([*self._schema, *map(arrow_field, others)]), framed
        )
        self._name: str = descriptor.full_name
        self._writers = None if schema_of is None else WriterCache(schema_of, self._writer_of, _refused)

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def text(self) -> None:
        """Always None, because the codec learns nothing from records that a checkpoint could store."""
        return None

    def another(self) -> "ProtobufCodec":
        message, framed, columns, schema_of = self._given
        return ProtobufCodec(message, framed=framed, columns=columns, schema_of=schema_of)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes the column `payload`. Returns the good rows, in order, and the bad rows. Raises the errors of
        `schema_of`, except UnknownSchema.
        """
        payloads = batch.column("payload")
        writers: list[WireWriter] = []
        which = None
        if self._writers is not None:
            ids, which = schema_ids(payloads)
            writers = [WireWriter() if each is None else self._writers[each] for each in ids]
        data, bad = self._decoder.decode(payloads, writers, which)
        return data if self._wanted is None else data.select(self._wanted), bad

    def _writer_of(self, file: str) -> WireWriter:
        places = places_of(file, self._name)
        if not places:
            return _refused(f"its schema has no message {self._name}")
        return WireWriter(tuple(places), other=f"it is not {self._name}, but another message of its schema")


def _refused(reason: str) -> WireWriter:
    return WireWriter(refusal=reason)
