from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.text.json import BadRow

class _ReadStep(Protocol):
    """How a value of the writer's is read; `codecs/avro/resolution.py` makes them. `op` is one of avro_read.h's ReadOp."""
    @property
    def op(self) -> str: ...
    @property
    def path(self) -> str:
        """The name of the field, for messages."""
    @property
    def child(self) -> int:
        """Of a field of a record, and of an item: which child of the column it fills; -1: none, the value is passed over."""
    @property
    def size(self) -> int:
        """Bytes; of a time the end of its range; of an array the least bytes of an item."""
    @property
    def null(self) -> int:
        """Where null stands in the writer's union of null and this; -1: it is no such union."""
    @property
    def steps(self) -> Sequence[_ReadStep]: ...
    @property
    def texts(self) -> Sequence[bytes]:
        """Symbols of an enum, the bytes of a constant, the reason of a failure."""
    @property
    def known(self) -> Sequence[bool]:
        """Of an enum: which symbols may come; empty: all."""

class _WriteStep(Protocol):
    """How a column is written; `codecs/avro/encoding.py` makes them. `op` is one of avro_write.h's WriteOp."""
    @property
    def op(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def column(self) -> int:
        """Which child of the parent's column; -1: none."""
    @property
    def size(self) -> int: ...
    @property
    def null(self) -> int: ...
    @property
    def multiply(self) -> int: ...
    @property
    def divide(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def steps(self) -> Sequence[_WriteStep]: ...
    @property
    def data(self) -> bytes: ...
    @property
    def symbols(self) -> Sequence[bytes]: ...

class AvroProgram:
    """How payloads of one writer's schema are read into the columns of one decoder."""

class AvroDecoder:
    """Decodes payloads into a RecordBatch of `schema`, in one call; only its columns are built.

    The following make a bad row, and decoding goes on: an end within a value or bytes after it, a number or length of more than 64 bits,
    an int of more than 32, a length or count that the payload has no bytes for, a block that is not as long as it says, a branch or symbol
    that the schema has not, a boolean that is neither 0 nor 1, text that is no UTF-8, a decimal with more digits than its type, a time that
    is not within a day, a null payload. Items that take no bytes count against the size of the payload.
    Passed over, a value is checked for its length only.
    """

    schema: pa.Schema
    def __init__(self, schema: pa.Schema) -> None: ...
    def program(self, step: _ReadStep) -> AvroProgram:
        """The program of a record: its steps fill each column of the schema exactly once, or one of them fails."""
    def decode(
        self,
        payloads: pa.Array[Any],
        programs: Sequence[AvroProgram],
        which: pa.Int32Array | None = None,
        header: int = 0,
    ) -> tuple[pa.RecordBatch, list[BadRow]]:
        """The good rows, in order, and the bad ones.

        Payload i is read by programs[which[i]], by the first where `which` is None, from byte `header` on. The GIL is released. Raises
        TypeError where the payloads are no array of binary or string, OverflowError where a column would take more than 2 GiB.
        """

class AvroWriter:
    """Writes rows of one schema as payloads."""

    def __init__(self, step: _WriteStep) -> None: ...
    def write(self, batch: pa.RecordBatch, header: bytes = b"") -> pa.BinaryArray | tuple[int, str, str]:
        """A payload for each row, behind `header`; or (row, path of the column, why) of the first value that cannot be written.

        The GIL is released. Raises OverflowError beyond 2 GiB.
        """
