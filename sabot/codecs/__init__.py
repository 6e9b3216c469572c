"""Codecs, which decode records into a RecordBatch."""

from typing import Protocol

import pyarrow as pa

from sabot._cython.text.json import BadRow
from sabot.codecs.json import JsonCodec
from sabot.codecs.table import TableCodec

__all__ = ["Codec", "JsonCodec", "TableCodec"]


class Codec(Protocol):
    """How the records of a source become columns. A codec belongs to one thread: each reader makes its own by `another`."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches; None while they are unknown, before the first batch."""

    def another(self) -> "Codec":
        """A codec with the same settings, for another thread."""

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes records into the good rows, in order, and the bad ones, which never stop a batch."""
