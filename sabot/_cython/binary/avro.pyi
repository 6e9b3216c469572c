from collections.abc import Sequence
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.text.json import BadRow

class _ReadStep(Protocol):
    """A step of decoding: how one value of the writer's schema is read. `codecs/avro/resolution.py` makes the steps.
    `op` is a member of ReadOp in avro_read.h.
    """
    @property
    def op(self) -> str: ...
    @property
    def path(self) -> str:
        """The name of the field, for messages."""
    @property
    def child(self) -> int:
        """The index of the child column that the value fills, or -1 to skip the value. Used for fields of records and
        items of arrays.
        """
    @property
    def size(self) -> int:
        """The number of bytes; for a time the end of its range; for an array the least number of bytes of an item."""
    @property
    def null(self) -> int:
        """The index of null in the writer's union of null and this type, or -1 if there is no such union."""
    @property
    def steps(self) -> Sequence[_ReadStep]: ...
    @property
    def texts(self) -> Sequence[bytes]:
        """The symbols of an enum, the bytes of a constant, or the reason of a failure."""
    @property
    def known(self) -> Sequence[bool]:
        """True for each symbol of an enum that the reader's schema has; empty if it has all."""

class _WriteStep(Protocol):
    """A step of encoding: how one column is written. `codecs/avro/encoding.py` makes the steps. `op` is a member of
    WriteOp in avro_write.h.
    """
    @property
    def op(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def column(self) -> int:
        """The index of the child in the parent's column, or -1 for none."""
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
    """The steps that decode payloads of one writer's schema to the columns of one decoder."""

class AvroDecoder:
    """Decodes payloads into a RecordBatch of `schema` in one call. Only its columns are built.

    These payloads become bad rows, and decoding goes on: one that ends within a value or has bytes after it; a number
    or length of more than 64 bits, or an int of more than 32; a length or count that exceeds the payload; a block
    whose size is wrong; a branch or symbol that the schema does not have; a boolean other than 0 or 1; text that is
    not UTF-8; a decimal with too many digits; a time outside of a day; a null payload. Items that take no bytes count
    against the size of the payload. Of a skipped value only the length is checked.
    """

    schema: pa.Schema
    def __init__(self, schema: pa.Schema) -> None: ...
    def program(self, step: _ReadStep) -> AvroProgram:
        """Compiles the steps of a record. They must fill each column of the schema exactly once, or one of them must
        be "fail". Raises TypeError for a step that does not fit its column.
        """
    def decode(
        self,
        payloads: pa.Array[Any],
        programs: Sequence[AvroProgram],
        which: pa.Int32Array | None = None,
        header: int = 0,
    ) -> tuple[pa.RecordBatch, list[BadRow]]:
        """Decodes payloads. Returns the good rows, in order, and the bad rows.

        `which`: for each payload the index of its program, or None for programs[0]. `header`: the number of bytes to
        skip at the start of each payload. The GIL is released. Raises TypeError unless the payloads are an array of
        binary or string, ValueError if `which` or a program does not fit, OverflowError if a column would take more
        than 2 GiB.
        """

class AvroWriter:
    """Encodes rows of one schema as payloads."""

    def __init__(self, step: _WriteStep) -> None: ...
    def write(self, batch: pa.RecordBatch, header: bytes = b"") -> pa.BinaryArray | tuple[int, str, str]:
        """Encodes each row as a payload that begins with `header`. Returns the payloads, or (row, path of the column,
        reason) of the first value that cannot be written.

        The GIL is released. Raises OverflowError above 2 GiB.
        """
