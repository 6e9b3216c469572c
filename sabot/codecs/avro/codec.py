"""The codec and the encoder of Avro, with and without the header of Confluent's wire format."""

from collections.abc import Callable, Sequence

import pyarrow as pa

from sabot._cython.arrow.batch import normalise
from sabot._cython.binary.avro import AvroDecoder, AvroProgram, AvroWriter
from sabot._cython.binary.wire import HEADER_BYTES, schema_ids
from sabot._cython.text.json import BadRow
from sabot.codecs.avro.columns import columns_of
from sabot.codecs.avro.encoding import encoding
from sabot.codecs.avro.resolution import ReadStep, failing, resolved
from sabot.codecs.avro.schema import AvroRecord, SchemaLike, parsed_record
from sabot.codecs.writer_cache import WriterCache
from sabot.errors import UserError

_NO_HEADER = "the payload does not begin with the id of a schema: a byte 0, and 4 bytes"


class AvroCodec:
    """A codec for payloads of one Avro record each, which it decodes into columns of `reader_schema`. A codec belongs
    to one thread: see `another`.

    `writer_schema`: the schema with which all payloads were written, if it is another one. `schema_of`: a function
    for payloads that begin with the id of their schema (Confluent's wire format); it returns the schema's text. It is
    called once for each id. If it raises UnknownSchema, the records with that id are bad rows, and it is called for
    that id again. `columns`: the fields to decode, in this order, or None for all.

    A writer's schema is resolved against the reader's by the rules of the specification: fields by name or alias,
    defaults, promotions. Payloads are bad rows if the schema of their id does not fit. Raises UserError if
    `writer_schema` does not fit, or if a field has no column type.
    """

    def __init__(
        self,
        reader_schema: SchemaLike,
        *,
        writer_schema: SchemaLike | None = None,
        schema_of: Callable[[int], str] | None = None,
        columns: Sequence[str] | None = None,
    ) -> None:
        self._reader = parsed_record(reader_schema)
        writer = self._reader if writer_schema is None else parsed_record(writer_schema)
        self._given = (writer, columns)
        self._schema = columns_of(self._reader, columns)
        self._decoder = AvroDecoder(self._schema)
        self._writers: WriterCache[AvroProgram] | None = None
        if schema_of is not None:
            self._writers = WriterCache(schema_of, self._program_of, lambda why: self._compiled(failing(why)))
        self._program = self._compiled(failing(_NO_HEADER) if schema_of is not None else self._steps(writer))

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @property
    def text(self) -> None:
        """None: the codec learns nothing from records."""
        return None

    def another(self) -> "AvroCodec":
        writer, columns = self._given
        schema_of = None if self._writers is None else self._writers.schema_of
        return AvroCodec(self._reader, writer_schema=writer, schema_of=schema_of, columns=columns)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes the column `payload`. Returns the good rows, in order, and the bad rows. Raises the errors of
        `schema_of`, except UnknownSchema.
        """
        payloads = batch.column("payload")
        if self._writers is None:
            return self._decoder.decode(payloads, [self._program])
        ids, which = schema_ids(payloads)
        programs = [self._program if each is None else self._writers[each] for each in ids]
        return self._decoder.decode(payloads, programs or [self._program], which, HEADER_BYTES)

    def _program_of(self, writer: str) -> AvroProgram:
        return self._compiled(self._steps(parsed_record(writer)))

    def _steps(self, writer: AvroRecord) -> ReadStep:
        return resolved(writer, self._reader, self._schema.names)

    def _compiled(self, steps: ReadStep) -> AvroProgram:
        return self._decoder.program(steps)


class AvroEncoder:
    """An encoder that writes rows as payloads of one Avro record each. An encoder belongs to one thread: see
    `another`.

    `schema_id`: the id with which payloads begin (Confluent's wire format), or None for no header. Columns are
    matched by name. A field without a column gets its default; a column without a field is refused. Times are rounded
    down to the unit of the schema; integers must fit into the type of the field.
    """

    def __init__(self, schema: SchemaLike, *, schema_id: int | None = None) -> None:
        self._record = parsed_record(schema)
        self._schema_id = schema_id
        if schema_id is not None and not 0 <= schema_id < 2**32:
            raise UserError(f"schema_id={schema_id} is not the id of a schema", hint="ids have 32 bits")
        self._header = b"" if schema_id is None else b"\0" + schema_id.to_bytes(4, "big")
        self._columns: pa.Schema | None = None  # the columns of the last batch, for which `_writer` was made
        self._writer: AvroWriter | None = None

    def another(self) -> "AvroEncoder":
        return AvroEncoder(self._record, schema_id=self._schema_id)

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Returns a payload for each row, in order.

        Raises UserError for columns that do not fit the schema, and for a value that does not fit, with its row and
        column; OverflowError above 2 GiB.
        """
        batch = normalise(batch)
        if self._writer is None or batch.schema != self._columns:
            self._writer = AvroWriter(encoding(self._record, batch.schema))
            self._columns = batch.schema
        written = self._writer.write(batch, self._header)
        if isinstance(written, tuple):
            row, path, why = written
            raise UserError(
                f"row {row}, column {path!r} cannot be written with the Avro schema {self._record.name!r}: it {why}"
            )
        return written
