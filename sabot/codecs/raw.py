"""Payloads that are kept unchanged in one column `value`, as bytes or text."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import normalise
from sabot._cython.text.json import BadRow
from sabot._cython.text.records import bytes_list
from sabot.errors import UserError

VALUE = "value"


class RawCodec:
    """A codec that reads the payload of each record as bytes or text. A record without a payload is a bad row; for
    text, so is a payload that is not UTF-8.
    """

    text = None

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def another(self) -> "RawCodec":
        return RawCodec(self.schema)

    def decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[BadRow]]:
        payloads = batch.column("payload")
        bad = [BadRow(row, "the payload is null") for row in _where(payloads.is_null())] if payloads.null_count else []
        values = payloads.drop_null() if bad else payloads
        kind = self.schema.field(0).type
        try:
            values = values.cast(kind)
        except pa.ArrowInvalid:
            wrong = {row: reason for row, payload in enumerate(bytes_list(payloads)) if (reason := _no_text(payload))}
            good = np.ones(len(payloads), bool)
            good[[*wrong, *(row.row for row in bad)]] = False
            bad = sorted([*bad, *(BadRow(row, wrong[row]) for row in wrong)], key=lambda row: row.row)
            values = payloads.filter(pa.array(good)).cast(kind)
        return pa.RecordBatch.from_arrays([values], schema=self.schema), bad


class RawEncoder:
    """An encoder that writes the one column of the rows as payloads: bytes unchanged, text as UTF-8."""

    def another(self) -> "RawEncoder":
        return RawEncoder()

    def encode(self, batch: pa.RecordBatch) -> pa.BinaryArray:
        column = normalise(batch).column(0)
        if column.null_count:
            name, row = batch.schema.names[0], _where(column.is_null())[0]
            raise UserError(
                f"column {name!r} of row {row} is null, which format raw cannot represent",
                hint=f"filter(col({name!r}).is_not_null()), or fill_null, before the sink",
            )
        return column.cast(pa.binary())


def _where(mask: pa.BooleanArray) -> list[int]:
    found: list[int] = pc.indices_nonzero(mask).to_pylist()
    return found


def _no_text(payload: bytes | None) -> str | None:
    """Returns the reason why a payload is not text, or None if it is text or null."""
    try:
        (payload or b"").decode()
    except UnicodeDecodeError as error:
        return f"the payload is not UTF-8: {error.reason} at byte {error.start}"
    return None
