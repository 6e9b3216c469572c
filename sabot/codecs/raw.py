"""Payloads as they are: for programs that read the bytes themselves."""

from typing import cast

import pyarrow as pa

from sabot._cython.batch import normalise
from sabot._cython.json import BadRow
from sabot.errors import UserError

__all__ = ["RawCodec"]


class RawCodec:
    """Records pass through with all their columns; what is written must have a text or binary column `payload`, or only one column."""

    @property
    def schema(self) -> pa.Schema | None:
        """None: the columns are those of the records."""
        return None

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        """The batch itself. No row is bad, a null payload neither."""
        return batch, []

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        """The column `payload`, or the only one. Raises UserError where it is missing or neither binary nor string."""
        batch = normalise(batch)
        if "payload" in batch.schema.names:
            column = batch.column("payload")
        elif batch.num_columns == 1:
            column = batch.column(0)
        else:
            raise UserError(
                f"columns {', '.join(batch.schema.names)}: none of them is the payload",
                hint="name the column of bytes 'payload'",
            )
        if column.type not in (pa.binary(), pa.string()):
            raise UserError(f"the payload is {column.type}, not bytes", hint="write through the JSON codec")
        return cast(pa.BinaryArray, column.cast(pa.binary()))
