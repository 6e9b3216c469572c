"""The last operator of a chain: it writes rows to a Sink."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.arrow.batch import Batch, normalise
from sabot.base.arrays import empty_batch
from sabot.clock import Clock
from sabot.codecs.base import Encoder
from sabot.codecs.formats import JSON
from sabot.codecs.records import RECORD_SCHEMA, record_keys, row_records
from sabot.connectors.base import Delivers, LostFloats, OnNan, Sink, Stages, expect_changes, receiver_of
from sabot.engine.calls.judging import JUDGE, with_judge
from sabot.engine.letters.log import LetterLog, ReasonCounts
from sabot.engine.letters.refused import is_refusal, letters_of_refused, parted, refused_in, shortened
from sabot.engine.operators.base import (
    DELETE,
    OP_COLUMN,
    TIME_COLUMN,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    OperatorContext,
    WritesOutside,
    without_marks,
)
from sabot.engine.operators.nulled import Nulled
from sabot.errors import RowErrors, SabotError, TransientError, UserError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_log = logging.getLogger(__name__)

_WAYS = 'nan="null" of to(…), or of the agent, says that this is meant, nan="fail" stops the app instead'
_LASTING = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NotImplementedError)


class SinkWriter(WritesOutside):
    """An operator that writes its input rows to a sink. When `flush` returns, all rows so far are safe: at the
    receiver, or in parts that the checkpoint will name.

    `key`: the column whose values are the records' keys, or None. `expected`: the columns of the rows, or None if
    they are records or mixed. `now_ms`: returns the timestamp of records. `changes`: the unique key if rows are
    changes of a table, or None; rows of one key come in order. `nan`: the policy for floats that the sink's format
    cannot represent.
    """

    def __init__(
        self,
        sink: Sink,
        key: str | None,
        expected: pa.Schema | None,
        now_ms: Callable[[], int],
        changes: tuple[str, ...] | None = None,
        nan: OnNan = None,
    ) -> None:
        self.sink = sink
        self.rows_out = 0
        self.left: Sequence[str] = ()  # columns that the app has written before, and does not write any more
        self._receiver = receiver_of(sink)
        self._stages = sink if isinstance(sink, Stages) else None
        self._close = sink.close
        self._finish = sink.finish
        self._key = key
        # Results of an agent with `key=` are records, also for a sink that stores columns.
        self._format = sink.format or JSON
        self._encoder = self._format.encoder(sink.name)
        self._expected = expected
        self._now_ms = now_ms
        self._changes = changes
        self._nulled = Nulled(nan, _WAYS, _log)
        self._floats: list[tuple[int, LostFloats]] = []  # the columns of `_fields` that may have some
        self._fields: pa.Schema | None = None
        self._letters: Callable[[pa.RecordBatch], None] | None = None
        self._origin: dict[str, str] = {}
        self._refused = ReasonCounts()
        self._refused_log: LetterLog | None = None
        self.refused_rows = 0
        # Held while the sink is used, because the dead letters of other sinks are written by their threads.
        self._turn = threading.RLock()
        self._is_open = False

    def letters_to(
        self,
        write: Callable[[pa.RecordBatch], None],
        clock: Clock,
        origin: Mapping[str, str],
        *,
        before_checkpoint: bool = True,
    ) -> None:
        """Makes rows that the sink refuses dead letters. `write`: makes dead letters (RECORD_SCHEMA) safe; called from
        any thread. `origin`: their fields step, agent and version. `before_checkpoint`: False if rows that are refused
        before they are in a checkpoint raise the error of the sink.
        """
        self._origin = dict(origin)
        if self._stages is not None:
            self._stages.letters_to(write, self._origin)
            write = self._stages.put_letters
        if before_checkpoint:
            self._letters, self._refused_log = write, LetterLog(self._refused, clock, "refused row")

    def write_aside(self, letters: pa.RecordBatch) -> None:
        """Writes the dead letters of another sink, in any thread, also when this writer is not open yet, or closed. When it
        returns they are safe.
        """
        with self._named():
            try:
                self._write_aside(letters)
            except RowErrors as error:  # records that are too large for this topic too
                self._write_aside(shortened(letters, error.rows.keys()))

    def _write_aside(self, letters: pa.RecordBatch) -> None:
        if self._stages is not None:
            self._stages.deliver_aside(letters)
            return
        with self._turn:
            was_open = self._is_open
            try:
                if not was_open:
                    self.sink.open()
                self.sink.write(Batch(letters))
                self.sink.flush()
            finally:
                if not was_open:
                    self.sink.close()

    def start_afresh(self) -> None:
        """Tells the sink that the app starts without a checkpoint. Called before `open`."""
        self._receiver.start_afresh()

    def check_types(self, columns: pa.Schema) -> None:
        """Raises UserError for a type in `columns` that the sink can never write. Called before `open`, for each
        stream that is written to the sink.
        """
        if self._changes is None and self._key is not None:
            self._format.check_types(columns, f"sink {self.sink.name!r}, with key={self._key!r}")
        else:
            self._receiver.check_types(columns)

    def open(self, context: OperatorContext) -> pa.Schema:
        if self._changes is not None:
            self._expect_changes(without_marks(self._expected or context.input), self._changes)
        elif self._expected is not None and self._key is not None:
            self._check_columns([self._key], self._expected)
        elif self._expected is not None:
            self._receiver.expect(self._expected)
        self._receiver.expect_no_more(self.left)
        self._close = with_judge(self.sink.close, JUDGE.get())  # the thread that closes it may have no context
        with self._turn:
            self.sink.open()
            self._is_open = True
        return context.input

    def _expect_changes(self, columns: pa.Schema, keys: tuple[str, ...]) -> None:
        if self._key is not None and keys != (self._key,):
            raise UserError(
                f"to({self.sink.name!r}): the key of changes is what tells their rows apart, {', '.join(keys) or 'nothing'}, "
                f"not {self._key!r}",
                hint=f"leave key= out, or write .upsert({self._key!r}) before .to()",
            )
        self._check_columns(keys, columns)
        expect_changes(self.sink, columns, keys)

    def _check_columns(self, keys: Sequence[str], columns: pa.Schema) -> None:
        for key in keys:
            if key not in columns.names:
                raise UserError(
                    f"to({self.sink.name!r}): there is no column {key!r} for the key",
                    hint=f"the columns are {', '.join(columns.names)}",
                )

    def process(self, batch: Batch) -> None:
        data = batch.taken()
        if data.num_columns and data.schema.names[-1] == TIME_COLUMN:
            data = data.remove_column(data.num_columns - 1)
        if self._changes is not None:
            data = _settled(data, self._changes)
            if not data.num_rows:
                return
        with self._named(data):
            self._watch(data, batch)
            if self._changes is None and self._key is not None and data.schema != RECORD_SCHEMA:
                data = with_key(data, self._key, self._now_ms(), self._encoder)
            with self._turn:
                self.rows_out += self._write(data, batch.topic)

    def _write(self, data: pa.RecordBatch, topic: str) -> int:
        """Writes the rows, and returns their number. Those that the sink refuses become dead letters, if it names them, or
        if they are found when single rows are tried.
        """
        try:
            self.sink.write(Batch(data, None, topic))
        except Exception as error:
            if self._letters is None or not is_refusal(error):
                raise
            refused = self._refused_of(data, error)
            if not refused:
                raise
            self._letters(letters_of_refused([data], refused, **self._origin))
            self._tell(refused)
            (rest,) = parted([data], refused)
            return self._write(rest, topic) if rest.num_rows else 0
        written: int = data.num_rows
        return written

    def _refused_of(self, data: pa.RecordBatch, error: Exception) -> Mapping[int, str]:
        if isinstance(error, RowErrors):
            return {row: why for row, why in error.rows.items() if 0 <= row < data.num_rows}
        if self._stages is not None:
            return refused_in([data], self._stages.fits)
        return self.sink.refused_rows([data]) if isinstance(self.sink, Delivers) else {}

    def _tell(self, refused: Mapping[int, str]) -> None:
        assert self._refused_log is not None
        self.refused_rows += len(refused)
        first, name = next(iter(refused.values())), f"sink {self.sink.name}"
        self._refused.add(first, len(refused))
        if self._refused_log.begun:
            self._refused_log.note(name)
        else:
            self._refused_log.begin(first, "%s refuses rows, which become dead letters; the first: %s", name, first)

    def flush(self) -> Mapping[str, int]:
        with self._named(), self._turn:
            self.sink.flush()
        return {} if self._stages is None else self._stages.sealed

    def finish(self) -> None:
        with self._named(), self._turn:
            self._finish()

    @contextlib.contextmanager
    def _named(self, data: pa.RecordBatch | None = None) -> Iterator[None]:
        """Adds the sink's name to errors of the block of this context manager. An error that the rows cause becomes a
        UserError, since a repeated attempt would fail again; other errors become transient.
        """
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
        """Closes the sink, also while another thread hangs in it."""
        self._is_open = False
        self._close()

    @property
    def nulled(self) -> int:
        """The number of floats that became null because the sink's format cannot represent them."""
        return self._nulled.count

    def statistics(self) -> "ToldStep":
        figures: ToldStep = {"sink": self.sink.name, "rows_out": self.rows_out}
        if self.nulled:
            figures["nulled"] = self.nulled
        if self.refused_rows:
            figures["refused_rows"] = self.refused_rows
        return figures

    # -- floats that the format does not have --------------------------------------------------------------------------

    def _watch(self, data: pa.RecordBatch, batch: Batch) -> None:
        """Counts the floats that will be null, and warns once for each column. Raises UserError for the first one if
        nan="fail".
        """
        if self._fields is None or not data.schema.equals(self._fields):
            self._fields, self._floats = data.schema, self._columns_of_floats(data.schema)
        for index, lost in self._floats:
            column = data.column(index)
            if not pa.types.is_floating(column.type):
                column = normalise(data.select([index])).column(0)
            if count := _count_lost(column, lost):
                name = data.schema.names[index]
                told = partial(self._told, name, column, lost, f"of {data.num_rows}{_origin(batch)}")
                hint = f'fill_nan, or filter by col({name!r}).is_finite(), before the sink; or nan="null"'
                self._nulled.note(name, count, told, hint)

    def _told(self, name: str, column: Any, lost: LostFloats, origin: str) -> str:
        row = _first_lost(column, lost)
        value = f"is {column[row].as_py()!r}" if pa.types.is_floating(column.type) else "has NaN or an infinity"
        return f"sink {self.sink.name}: column {name!r} {value} in row {row} {origin}, for which its format has no form"

    def _columns_of_floats(self, schema: pa.Schema) -> list[tuple[int, LostFloats]]:
        """Returns the columns that may have floats which the sink's format cannot represent, and which floats these
        are. Other columns need no check.
        """
        if schema.equals(RECORD_SCHEMA):
            return []
        keyed = self._changes is None and self._key is not None
        plain = normalise(empty_batch(schema)).schema
        kinds = [(index, field.type) for index, field in enumerate(plain) if _has_floats(field.type)]
        lost = self._format.floats_lost if keyed else self._receiver.floats_lost
        found = [(index, lost(kind)) for index, kind in kinds]
        return [(index, floats) for index, floats in found if floats is not None]


def _has_floats(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_has_floats(kind.field(index).type) for index in range(kind.num_fields))
    return bool(pa.types.is_floating(kind))


def _count_lost(column: Any, lost: LostFloats) -> int:
    """Returns how many floats of the column, at any depth, become null: NaN, and infinities unless `lost` is "nan"."""
    if pa.types.is_floating(column.type):
        return int(pc.is_nan(column).true_count if lost == "nan" else pc.is_finite(column).false_count)
    if not _has_floats(column.type):
        return 0
    inner = column.flatten()
    return sum(_count_lost(each, lost) for each in (inner if isinstance(inner, list) else [inner]))


def _first_lost(column: Any, lost: LostFloats) -> int:
    """Returns the first row that `_count_lost` counts. There must be one."""
    low, high = 0, len(column)
    while high - low > 1:
        middle = (low + high) // 2
        if _count_lost(column.slice(low, middle - low), lost):
            high = middle
        else:
            low = middle
    return low


def _origin(batch: Batch) -> str:
    """Returns the source of the rows for a message, as far as it is known."""
    offsets = "".join(f", before {topic}[{partition}]@{offset}" for (topic, partition), offset in batch.offsets.items())
    return (f" from {batch.topic}" if batch.topic else "") + offsets


def _no_text(data: pa.RecordBatch) -> str:
    """Returns a text that names the first binary value that is not UTF-8, for an error, or ""."""
    for field, column in zip(data.schema, data.columns, strict=True):
        if pa.types.is_binary(field.type):
            for row, value in enumerate(column.to_pylist()):
                try:
                    (value or b"").decode()
                except UnicodeDecodeError:
                    return f"; {field.name!r} of row {row} of {data.num_rows} is {value[:40]!r}"
    return ""


def _settled(data: pa.RecordBatch, keys: Sequence[str]) -> pa.RecordBatch:
    """Returns changes in the form that sinks accept: an UPDATE_BEFORE is left out if its UPDATE_AFTER follows with
    the same key, and otherwise becomes a DELETE.
    """
    ops = data.column(OP_COLUMN).to_numpy()
    before = np.flatnonzero(ops == UPDATE_BEFORE)
    if not len(before):
        return data
    next_rows = np.minimum(before + 1, len(ops) - 1)
    updated = ops[next_rows] == UPDATE_AFTER
    for key in keys:
        column = data.column(key)
        same: Any = pc.equal(column.take(pa.array(before)), column.take(pa.array(next_rows)))
        updated &= np.asarray(pc.fill_null(same, False))
    kept = np.ones(len(ops), bool)
    kept[before[updated]] = False
    ops = ops.copy()
    ops[before[~updated]] = DELETE
    index = data.schema.get_field_index(OP_COLUMN)
    return data.set_column(index, data.schema.field(index), pa.array(ops)).filter(pa.array(kept))


def with_key(data: pa.RecordBatch, key: str, now_ms: int, encoder: Encoder) -> pa.RecordBatch:
    """Returns rows as records (RECORD_SCHEMA). Each row is a payload, and the column `key` the key, as `record_keys` has
    it.
    """
    return row_records(data, record_keys(data, [key], encoder), now_ms, encoder)
