"""The contract of a codec, which decodes records into a RecordBatch; tests/contracts/test_codec_contract.py holds every one to it."""

from typing import Protocol

import pyarrow as pa

from sabot._cython.text.json import BadRow

__all__ = ["Codec"]


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
        """Decodes records (RECORD_SCHEMA) into the good rows, in order, and the bad ones, which never stop a batch."""
