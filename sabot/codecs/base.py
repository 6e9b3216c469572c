"""What a codec is: undecoded records -> a batch of columns, and back."""

from typing import Protocol

import pyarrow as pa

from sabot._cython.json import BadRow

__all__ = ["Codec"]


class Codec(Protocol):
    """A list of payloads <-> a RecordBatch. Knows its types, keeps no rows; may be called from any thread."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches; None while they are not known yet. Recorded in the checkpoint."""

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Records (a batch with the binary column `payload`) -> the rows that are good, in order, and the bad ones.

        `BadRow.row` counts in `batch`. Never raises because of a payload.
        """

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """Row i -> its payload. Raises UserError where a column has no form in this format."""
