"""The last step of a chain: rows leave for a Sink."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch
from sabot._cython.json import encode_rows
from sabot.connectors.base import RECORD_SCHEMA, Sink, json_records
from sabot.errors import SabotError, TransientError, UserError
from sabot.operators.base import TIME_COLUMN, Operator, OperatorContext, OperatorState

__all__ = ["SinkWriter", "with_key"]

_LASTING = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NotImplementedError)


class SinkWriter(Operator):
    """Writes what comes; at a barrier everything before it is safe: at the receiver, or in parts that the checkpoint will have."""

    def __init__(self, sink: Sink, key: str | None, expected: pa.Schema | None, now_ms: Callable[[], int]) -> None:
        self.sink = sink
        self.rows_out = 0
        self._key = key
        self._expected = expected
        self._now_ms = now_ms

    def open(self, context: OperatorContext) -> pa.Schema:
        if self._key is not None and self._expected is not None and self._key not in self._expected.names:
            raise UserError(
                f"to({self.sink.name!r}): there is no column {self._key!r} for the key",
                hint=f"the columns are {', '.join(self._expected.names)}",
            )
        if self._expected is not None and self._key is None:
            self.sink.expect(self._expected)
        self.sink.open()
        return context.input

    def process(self, batch: Batch) -> None:
        data = batch.taken()
        if data.num_columns and data.schema.names[-1] == TIME_COLUMN:
            data = data.remove_column(data.num_columns - 1)
        with self._named(data):
            if self._key is not None and data.schema != RECORD_SCHEMA:
                data = with_key(data, self._key, self._now_ms())
            self.sink.write(Batch(data, None, batch.topic))
        self.rows_out += data.num_rows

    def snapshot(self) -> tuple[dict[str, Any], OperatorState | None]:
        with self._named():
            self.sink.flush()
        self.sealed = self.sink.sealed
        return {}, None

    def finish(self) -> None:
        with self._named():
            self.sink.finish()

    @contextlib.contextmanager
    def _named(self, data: pa.RecordBatch | None = None) -> Iterator[None]:
        """Errors say whose they are. What is wrong with the rows will be wrong again: a UserError."""
        try:
            yield
        except UserError as error:
            if type(error) is not UserError or self.sink.name in error.message:
                raise
            raise UserError(f"sink {self.sink.name}: {error.message}", hint=error.hint) from error
        except SabotError:
            raise
        except _LASTING as error:
            place = "" if data is None else _no_text(data)
            raise UserError(
                f"sink {self.sink.name}: {type(error).__name__}: {error}{place}",
                hint="cast the column, or leave it out (select), before the sink",
            ) from error
        except Exception as error:
            raise TransientError(f"sink {self.sink.name}: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        self.sink.close()

    def statistics(self) -> dict[str, Any]:
        return {"rows_out": self.rows_out}


def _no_text(data: pa.RecordBatch) -> str:
    """Where binary is no UTF-8: the first row of the first such column."""
    for field, column in zip(data.schema, data.columns, strict=True):
        if pa.types.is_binary(field.type):
            for row, value in enumerate(column.to_pylist()):
                try:
                    (value or b"").decode()
                except UnicodeDecodeError:
                    return f"; {field.name!r} of row {row} of {data.num_rows} is {value[:40]!r}"
    return ""


def with_key(data: pa.RecordBatch, key: str, now_ms: int) -> pa.RecordBatch:
    """Rows -> RECORD_SCHEMA: each row as JSON, the column `key` as the record's key (text as it is, the rest as JSON)."""
    column = data.column(key)
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        keys = column.cast(pa.binary())
    else:
        text: Any = column if pa.types.is_primitive(column.type) else encode_rows(data.select([key]))
        keys = text.cast(pa.string()).cast(pa.binary())
    return json_records(data, pc.if_else(pc.is_null(column), pa.scalar(None, pa.binary()), keys), now_ms)
