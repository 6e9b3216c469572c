"""The contracts of formats: the decoding of payloads into columns, and the encoding of rows as payloads.

    Format    the user's choice: `format="csv"`, `format=Avro(…)`; its settings make codecs and encoders
    Codec     decodes the records of a source into columns
    Encoder   makes payloads from columns, for a sink

tests/contracts/test_codec_contract.py checks every codec, test_format_contract.py every pair of codec and encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa

from sabot._cython.text.json import BadRow
from sabot.errors import UserError

LostFloats = Literal["nan", "not_finite"] | None
"""The floats that a format cannot represent and writes as null: "nan" only NaN, "not_finite" infinities too; None if
it writes every float.
"""


class Codec(Protocol):
    """A decoder of the records of a source into columns. A codec belongs to one thread: each reader makes its own by
    `another`.

    A codec may learn from records, for example an inferred schema. Then `text` returns what it has learnt; a
    checkpoint stores this text, and `Format.codec` takes it. The rows of a record depend only on the record and on what
    was learnt before it.
    """

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches, or None while they are unknown, before the first batch."""

    @property
    def text(self) -> str | None:
        """The text that a checkpoint stores for this codec, or None if there is nothing to store: the settings are
        complete, or nothing was learnt yet.
        """

    def another(self) -> "Codec":
        """Returns a codec with the same settings, for another thread."""

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes records. Returns the good rows, in order, and the bad rows; a bad row never stops a batch. The
        records have RECORD_SCHEMA, or only its column `payload`.

        Raises RegistryUnavailable if a schema registry must be asked and does not answer. The caller may then pass
        the same batch again.
        """


class Encoder(Protocol):
    """An encoder of rows as payloads. It belongs to one thread: each writer makes its own by `another`."""

    def another(self) -> "Encoder":
        """Returns an encoder with the same settings, for another thread."""

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Returns a payload for each row, in order; for a format without `one_row`, payloads of many rows each.

        Raises UserError, with row and column, for a value that the format cannot represent.
        """


class EncodesKeys(ABC):
    """The ability of an encoder to encode the keys of records too. For any other encoder `records.record_keys` makes
    them from the key columns.
    """

    @abstractmethod
    def encode_keys(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Returns the key of the record of each row, in order. Raises as `Encoder.encode` does."""


class EncodesParts(ABC):
    """The ability of an encoder to make the timestamps and the headers of records from columns. Without it, records have the
    time at which they are written, and no headers.
    """

    @abstractmethod
    def parts(self, batch: pa.RecordBatch) -> tuple[Any, Any]:
        """Returns the timestamps (ms since 1970 UTC, null for the time of writing) and the headers of the records of these
        rows, as RECORD_SCHEMA has them; None for those that no column has.
        """


class Format(ABC):
    """A format, which users give as `format=`: settings, immutable and comparable. For a topic it makes a codec or an
    encoder.

    `name`: the name for users, and the first word of the text in a checkpoint. `one_row`: True if a payload is one
    row. `own_columns`: True if the format itself knows the columns, so that `schema=` is not given. `needs_schema`:
    True if only `schema=` gives the columns.
    """

    name: ClassVar[str]
    one_row: ClassVar[bool] = True
    own_columns: ClassVar[bool] = False
    needs_schema: ClassVar[bool] = False

    @property
    def sample_rows(self) -> int:
        """The number of records from which a codec learns the columns."""
        return 1000

    @property
    def description(self) -> str:
        """The format in words, for plans and checkpoints: the same words for the same settings."""
        return self.name

    @property
    def known_columns(self) -> pa.Schema | None:
        """The columns, if the settings give them, else None."""
        return None

    def check_input(self, schema: pa.Schema | None, where: str) -> None:
        """Raises UserError, whose text begins with `where`, if the format does not accept the `schema=` of an input,
        or if it needs one and `schema` is None.
        """
        if self.own_columns and schema is not None:
            raise UserError(
                f"{where}: format {self.name} takes no schema=, because it has columns of its own",
                hint="leave schema= out",
            )
        if self.needs_schema and schema is None:
            raise UserError(
                f"{where}: format {self.name}, and no schema=",
                hint='schema={"id": "int64", …} names the fields, in order',
            )

    def columns(self, topic: str) -> pa.Schema | None:
        """Returns the columns of a topic if the settings or a registry know them, or None if only records or
        `schema=` give them. May block.

        Raises UserError, RegistryUnavailable.
        """
        return self.known_columns

    @abstractmethod
    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        """Returns a codec for the topic. `schema`: the columns, or None if the codec has to learn them. `columns`:
        the columns of `schema` to decode, or None for all. `text`: the codec's text from a checkpoint, or None; a
        schema that the settings give has precedence over it.

        May block to ask a registry. Raises UserError, RegistryUnavailable.
        """

    @abstractmethod
    def encoder(self, topic: str) -> Encoder:
        """Returns an encoder for rows of any columns. It asks no registry before the first rows."""

    @abstractmethod
    def check_types(self, schema: pa.Schema, where: str) -> None:
        """Raises UserError, whose text begins with `where`, for columns that the format can never represent. Asks no
        registry.
        """

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        """Returns which floats become null in a column of this type."""
        return None


def many_rows(codec: Codec) -> Callable[[pa.RecordBatch], tuple[pa.RecordBatch, Any, list[BadRow]]] | None:
    """Returns the method `decode_many` of a codec whose records have any number of rows each, or None for any other
    codec.

    The method decodes like `Codec.decode`. It returns the good rows; for each of them the index of its record (int64),
    ascending; and the bad rows. A bad record has no good rows.
    """
    return getattr(codec, "decode_many", None)


def decode_numbered(codec: Codec, records: pa.RecordBatch) -> tuple[pa.RecordBatch, Any, list[BadRow]]:
    """Decodes like the function of `many_rows`, with any codec."""
    if (many := many_rows(codec)) is not None:
        return many(records)
    data, bad = codec.decode(records)
    numbers = np.arange(records.num_rows)
    return data, np.delete(numbers, [row.row for row in bad]) if bad else numbers, bad


def decode_records(codec: Codec, records: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch, list[BadRow]]:
    """Returns the good rows, the record of each of them, and the bad records."""
    if (many := many_rows(codec)) is not None:
        data, numbers, bad = many(records)
        return data, numbered(records, numbers), bad
    data, bad = codec.decode(records)
    if bad:
        records = records.take(pa.array(np.delete(np.arange(records.num_rows), [row.row for row in bad])))
    return data, records, bad


def numbered(records: pa.RecordBatch, numbers: Any) -> pa.RecordBatch:
    """Returns the records at these indexes. Nothing is copied if they are all records, each once, in order."""
    if len(numbers) == records.num_rows and (numbers == np.arange(len(numbers))).all():
        return records
    return records.take(pa.array(numbers))
