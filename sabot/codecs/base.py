"""The contracts of formats: what a record's payload becomes, and how rows become payloads.

    Format    what users name: `format="csv"`, `format=Avro(…)`; settings, which make the other two
    Codec     decodes the records of a source into columns
    Encoder   makes payloads of columns, for a sink

tests/contracts/test_codec_contract.py holds every codec to this, and test_format_contract.py every pair of codec and encoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Protocol, cast

import numpy as np
import pyarrow as pa

from sabot._cython.text.json import BadRow
from sabot.errors import UserError

LostFloats = Literal["nan", "not_finite"] | None
"""The floats that a format has no form for, and has as null: NaN; or infinities too. None: it has every float."""


class Codec(Protocol):
    """How the records of a source become columns. A codec belongs to one thread: each reader makes its own by `another`.

    What it learns from records (an inferred schema) it says as `text`, which a checkpoint keeps and `resumed` reads. What a record becomes
    depends on that record alone, and on what was learnt before.
    """

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches; None while they are unknown, before the first batch."""

    @property
    def text(self) -> str | None:
        """What a checkpoint keeps of this codec; None where its settings say everything, or nothing was learnt yet."""

    def resumed(self, text: str | None) -> "Codec":
        """A codec with the same settings that goes on with the `text` of a checkpoint. Settings that were given win over it."""

    def another(self) -> "Codec":
        """A codec with the same settings, for another thread."""

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes records into the good rows, in order, and the bad ones, which never stop a batch. The records are of RECORD_SCHEMA, or
        only their column `payload`.

        Raises RegistryUnavailable where a schema registry must be asked and does not answer. The same batch may be given again then.
        """


class ManyRows(Protocol):
    """A codec whose records have any number of rows each."""

    def decode_many(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Any, list[BadRow]]:
        """As `Codec.decode`, and between its results the number (int64) of the record that each good row is from, in order. A bad record
        gives no row.
        """


class Encoder(Protocol):
    """How rows become payloads. An encoder belongs to one thread: each writer makes its own by `another`."""

    def another(self) -> "Encoder":
        """An encoder with the same settings, for another thread."""

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """A payload for each row, in order; of a format without `one_row`, payloads of many rows each.

        Raises UserError for a value that the format cannot say; it names row and column, and why.
        """


class Format(ABC):
    """What users give as `format=`: settings, immutable and comparable. Made for a topic, it is a codec or an encoder.

    name: as users write it, and the first word of what a checkpoint keeps. one_row: a payload is one row. own_columns: the format itself
    says which columns there are, so `schema=` is not given. needs_schema: nothing but `schema=` says it. sample_rows: of how many
    records a codec learns the columns.
    """

    name: ClassVar[str]
    one_row: ClassVar[bool] = True
    own_columns: ClassVar[bool] = False
    needs_schema: ClassVar[bool] = False
    sample_rows: ClassVar[int] = 1000

    @property
    def said(self) -> str:
        """The format in words, for plans and checkpoints: the same for the same settings."""
        return self.name

    @property
    def known_columns(self) -> pa.Schema | None:
        """The columns, where the settings say them."""
        return None

    def check_input(self, schema: pa.Schema | None, where: str) -> None:
        """Raises UserError, whose text begins with `where`, for a `schema=` of what comes in that the format does not take, or lacks."""
        if self.own_columns and schema is not None:
            raise UserError(
                f"{where}: schema= beside format {self.name}, which says the columns itself", hint="leave schema= out"
            )
        if self.needs_schema and schema is None:
            raise UserError(
                f"{where}: format {self.name}, and no schema=",
                hint='schema={"id": "int64", …} names the fields, in order',
            )

    def columns(self, topic: str) -> pa.Schema | None:
        """The columns of a topic, where `known_columns` or a registry says them; None: only records do, or `schema=`. Blocking.

        Raises UserError, RegistryUnavailable.
        """
        return self.known_columns

    @abstractmethod
    def codec(
        self, topic: str, schema: pa.Schema | None, columns: Sequence[str] | None = None, text: str | None = None
    ) -> Codec:
        """A codec for these columns (None: all) of `schema` (None: it learns them), which goes on with the `text` of a checkpoint.

        Blocking, where a registry must be asked. Raises UserError, RegistryUnavailable.
        """

    @abstractmethod
    def encoder(self, topic: str) -> Encoder:
        """An encoder for whatever rows come. Nothing is asked before the first of them."""

    @abstractmethod
    def check_types(self, schema: pa.Schema, where: str) -> None:
        """Raises UserError, whose text begins with `where`, for columns that the format can never say. Asks nobody."""

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        """Which floats become null in a column of this type."""
        return None


def many_rows(codec: Codec) -> ManyRows | None:
    """The codec, if its records have any number of rows each. (`isinstance` of a Protocol takes as long as decoding a hundred records.)"""
    many: ManyRows | None = cast("Any", codec) if hasattr(codec, "decode_many") else None
    return many


def decode_numbered(codec: Codec, records: pa.RecordBatch) -> tuple[pa.RecordBatch, Any, list[BadRow]]:
    """As `ManyRows.decode_many`, of any codec."""
    if (many := many_rows(codec)) is not None:
        return many.decode_many(records)
    data, bad = codec.decode(records)
    numbers = np.arange(records.num_rows)
    return data, np.delete(numbers, [row.row for row in bad]) if bad else numbers, bad


def decode_records(codec: Codec, records: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch, list[BadRow]]:
    """The good rows, the record of each of them, and the bad records."""
    if (many := many_rows(codec)) is not None:
        data, numbers, bad = many.decode_many(records)
        return data, numbered(records, numbers), bad
    data, bad = codec.decode(records)
    if bad:
        records = records.take(pa.array(np.delete(np.arange(records.num_rows), [row.row for row in bad])))
    return data, records, bad


def numbered(records: pa.RecordBatch, numbers: Any) -> pa.RecordBatch:
    """The records of these numbers, without a copy where they are all, each once, in order."""
    if len(numbers) == records.num_rows and (numbers == np.arange(len(numbers))).all():
        return records
    return records.take(pa.array(numbers))
