"""Codecs: records -> a RecordBatch."""

from typing import Protocol

import pyarrow as pa

from sabot._cython.text.json import BadRow
from sabot.codecs.json import JsonCodec
from sabot.codecs.table import TableCodec

__all__ = ["Codec", "JsonCodec", "TableCodec"]


class Codec(Protocol):
    """How the records of a source become columns. Of one thread: each reader has `another`."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches; None: not known before the first one."""

    def another(self) -> "Codec":
        """One that does the same, for another thread."""

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Records -> the rows that are good, in order, and the bad ones, which never stop a batch."""
