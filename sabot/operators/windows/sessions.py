"""Session windows: rows of a key that are less than a gap apart.

`SessionTable` says which session a row belongs to, and which sessions a row has merged; `Numbered` has the accumulators of each session.
The state is that of the sessions that are open, and is kept in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.windows.sessions import RunTable, SessionTable
from sabot.api.windows import WINDOW_END, WINDOW_START, SessionWindow, WindowTime
from sabot.operators.aggregates.aggregator import AggregateColumn, Aggregator, aggregates_reader, aggregates_schema
from sabot.operators.aggregates.carried import Carried, carried
from sabot.operators.base import CHUNK_ROWS, TIME_COLUMN, Cut, OperatorContext, Saved
from sabot.operators.columns import key_columns, key_table, result_schema, time_index
from sabot.operators.keeping import (
    Batches,
    Keeper,
    Keeping,
    Kept,
    Owned,
    columns_schema,
    key_hashes,
    last_watermark,
    other_columns,
    read_batches,
)
from sabot.operators.readers import Readers, aggregates_of, described
from sabot.operators.windows.panes import window_words

__all__ = ["READERS", "KeyedRuns", "Numbered", "SessionAggregate"]

_GROUP = "__group"
_TIMESTAMP = pa.timestamp("ms", "UTC")

Array: TypeAlias = pa.Array


class SessionAggregate(Keeping):
    """`aggregates` over the sessions of each key: keys, window_start (the first row's time), window_end (the last row's + gap), aggregates.

    A session is emitted when the watermark reaches its end. It stays for `allowed_lateness_ms` after that; if rows have changed it, the
    next watermark emits it again, but results of sessions that were merged into it are not taken back. A row is late when the session
    that it would make is over, lateness included, and it touches no session that is still there: then it leaves by the branch "late",
    without TIME_COLUMN.
    """

    def __init__(
        self,
        gap_ms: int,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        *,
        allowed_lateness_ms: int = 0,
        time: WindowTime = "event",
        id: str = "",
    ) -> None:
        self.id = id
        self._window = SessionWindow(gap_ms, time)
        self._gap_ms, self._lateness_ms = gap_ms, allowed_lateness_ms
        self._keys, self._aggregates = list(keys), list(aggregates)
        self._state: Any = None  # a Numbered
        self._watermark_ms: int | None = None
        self._late_rows = 0

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._time = time_index(context.input, "session windows")
        self._sessions = SessionTable(self._gap_ms, self._lateness_ms)
        self._state = Numbered(self._keys, self._aggregates, context.input, self._sessions)
        self._schema = result_schema(
            [
                *self._state.keys,
                pa.field(WINDOW_START, _TIMESTAMP),
                pa.field(WINDOW_END, _TIMESTAMP),
                *self._state.results,
            ],
            timed=True,
        )
        self.kept = Keeper(context, [self._state], keyed=len(self._keys) > 0)
        return self._schema

    def process(self, batch: Batch) -> None:
        state: Numbered = self._state
        selection = batch.selection
        slots = state.resolve(batch)
        ids, created, into, source = self._sessions.add(slots, batch.data.column(self._time), selection)
        state.open(created)
        if len(source):
            state.merge(into, source)
        numbers = ids.to_numpy()
        if len(numbers) and numbers.min() < 0:
            on_time = numbers >= 0
            rows = np.arange(len(numbers), dtype=np.int32) if selection is None else selection.to_numpy()
            self._reject(batch, pa.array(rows[~on_time]), slots)
            numbers, selection = numbers[on_time], pa.array(rows[on_time])
        state.add(numbers, batch.data, selection)

    def _reject(self, batch: Batch, rows: pa.Int32Array, slots: pa.Int32Array) -> None:
        """Counts these rows as late, and lets them leave. slots: the key slots of the batch."""
        self._late_rows += len(rows)
        self._state.release(self._sessions.vacant(slots))
        if "late" in self._context.branches:
            self._context.branches["late"](Batch(batch.data.drop_columns([TIME_COLUMN]).take(rows)))

    def advance(self, watermark_ms: int) -> None:
        if self._watermark_ms is None or watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
        ripe, over = self._sessions.advance(watermark_ms)
        for start in range(0, len(ripe), CHUNK_ROWS):
            part = ripe.slice(start, CHUNK_ROWS)
            first, end = self._sessions.bounds(part)
            times = [first.view(_TIMESTAMP), end.view(_TIMESTAMP)]
            last = pa.array(end.to_numpy() - 1)
            columns = [*self._state.key_columns(part), *times, *self._state.aggregates(part), last]
            self.emit(Batch(pa.RecordBatch.from_arrays(columns, schema=self._schema)))
        self._state.remove(over)

    def state_schema(self) -> dict[str, Any]:
        return {
            "kind": "window",
            "keys": columns_schema(self._state.keys),
            "window": window_words(self._window),
            "allowed_lateness": self._lateness_ms,
            **self._state.aggregates_schema(),
        }

    def state_reader(self) -> dict[str, Any]:
        given = {"gap_ms": self._gap_ms, "allowed_lateness": self._lateness_ms}
        return {**aggregates_reader(self._keys, self._aggregates, self._context.input), **given}

    def contents(self) -> Iterator[pa.RecordBatch]:
        for numbers, keys, aggregates in self._state.contents():
            first, end = self._sessions.bounds(numbers)
            columns = [*keys, first.view(_TIMESTAMP), end.view(_TIMESTAMP), *aggregates, pa.array(end.to_numpy() - 1)]
            yield pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def group_count(self) -> int:
        return len(self._sessions)

    def noted(self) -> dict[str, Any]:
        return {"watermark": self._watermark_ms, "late_rows": self._late_rows}

    def foretell(self, saved: Sequence[Saved]) -> None:
        self._state.foretell(saved, self.forgets)
        self._watermark_ms = last_watermark(saved, None)
        if self._watermark_ms is not None:
            self._sessions.advance(self._watermark_ms)  # the kernel is still empty: this only says which rows are late

    def recall(self, saved: Sequence[Saved]) -> None:
        self._late_rows = self.kept.once(saved, "late_rows")

    def close(self) -> None:
        if self._state is not None:
            self._state.clear()

    def statistics(self) -> dict[str, Any]:
        kernel = self._sessions.statistics()
        return {
            "sessions": kernel["open"],
            "merged": kernel["merged"],
            "late_rows": self._late_rows,
            **self._state.statistics(),
        }


class KeyedRuns(Kept):
    """Keys, and the sessions or runs that a kernel numbers: the kernel `runs` says which key slot each number belongs to."""

    def __init__(self, keys: Sequence[str], input: pa.Schema, runs: SessionTable | RunTable) -> None:
        self.keys, self._key_indices = key_columns(keys, input)
        self._known = key_table(self.keys)
        self._runs = runs
        self.saved_schema = pa.schema(
            [*runs.export().schema, *(field.with_name(f"key.{i}") for i, field in enumerate(self.keys))]
        )

    def resolve(self, batch: Batch) -> pa.Int32Array:
        """The key slot of each selected row."""
        return self._known.resolve(batch.data, self._key_indices, hashes=batch.hashes, selection=batch.selection)

    def release(self, slots: pa.Int32Array) -> None:
        """Forgets the keys of these slots, which have no sessions or runs any more."""
        if len(slots):
            self._known.remove(slots)

    def key_columns(self, numbers: pa.Int32Array) -> list[Array]:
        """The keys of these sessions or runs, a row for each number."""
        return self._known.key_columns(self._runs.slots(numbers))

    def numbers(self) -> Iterator[pa.Int32Array]:
        """All numbers that are in use, in pieces of at most CHUNK_ROWS."""
        everything = self._runs.export().column(0)
        for start in range(0, len(everything), CHUNK_ROWS):
            yield everything.slice(start, CHUNK_ROWS)

    def remove(self, numbers: pa.Int32Array) -> None:
        """Removes these sessions or runs, which are over."""
        if len(numbers):
            self.release(self._runs.remove(numbers))

    def saved(self) -> list[pa.RecordBatch]:
        """What the kernel exports, and the keys: `saved_schema`, in pieces of at most CHUNK_ROWS rows."""
        pieces = []
        everything = self._runs.export()
        for start in range(0, everything.num_rows, CHUNK_ROWS):
            part = everything.slice(start, CHUNK_ROWS)
            keys = self._known.key_columns(part.column("slot"))
            pieces.append(pa.RecordBatch.from_arrays([*part.columns, *keys], schema=self.saved_schema))
        return pieces

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        runs = self.saved()
        return {}, {"runs": Batches(self.saved_schema, runs)} if runs else {}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        for _ in self.load(saved, owned, "runs", self.saved_schema):
            pass  # there is no other file

    def load(
        self, saved: Sequence[Saved], owned: Owned | None, beside: str, schema: pa.Schema
    ) -> Iterator[tuple[Any, pa.RecordBatch]]:
        """Takes back the runs whose keys belong here; -> (their numbers, the same rows of the file `beside`), piece by piece.

        schema: the columns of that file. Raises CorruptCheckpoint where the checkpoint kept other columns.
        """
        width = len(self.saved_schema) - len(self.keys)
        for part in saved:
            files = [read_batches(part.directory, name) for name in ("runs", beside)]
            for runs, others in zip(*files, strict=True):
                if not (runs.schema.equals(self.saved_schema) and others.schema.equals(schema)):
                    raise other_columns(part)
                if owned is not None:
                    mine = owned(key_hashes(runs.columns[width:], runs.num_rows))
                    runs, others = runs.filter(mine), others.filter(mine)
                yield self._load(runs, width), others

    def _load(self, runs: pa.RecordBatch, width: int) -> Any:
        slots = self._known.resolve(runs, list(range(width, runs.num_columns)))
        return self._runs.load(runs.select(range(width)).set_column(1, "slot", slots)).to_numpy()

    def clear(self) -> None:
        """Forgets all keys."""
        self._known.clear()

    def statistics(self) -> dict[str, int]:
        return {"keys": len(self._known), "bytes": self._known.nbytes + self._runs.nbytes}


class Numbered(KeyedRuns):
    """Keys and accumulators by session or run. `results`: the fields of the aggregates.

    The accumulators of a number stand in the table under a serial of their own, so that the number can be used again.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        input: pa.Schema,
        runs: SessionTable | RunTable,
    ) -> None:
        super().__init__(keys, input, runs)
        self._aggregates, self._input = list(aggregates), input
        self._aggregator = _numbering(aggregates, input)
        self.results = list(self._aggregator.schema)[1:]
        self._table = self._aggregator.table()
        self._extras = self._aggregator.extras()
        self._slot_of = np.zeros(0, np.int32)  # number -> slot in the table
        self._serials = 0
        self._carried: Carried | None = None
        self._blank: Array = pa.nulls(0, pa.int64())

    def foretell(self, saved: Sequence[Saved], forgets: frozenset[str]) -> None:
        """Before a restore: how the checkpoint's aggregates become those of now."""
        now, shape = self.aggregates_schema()["aggregates"], self._aggregator.shape
        self._carried = carried(saved, now, forgets, shape, lambda reader: _numbering(*described(reader)).shape)

    def open(self, numbers: pa.Int32Array) -> None:
        """Makes empty accumulators for new numbers."""
        if len(numbers):
            self._assign(numbers.to_numpy(), self._table.resolve(self._serial_rows(len(numbers)), [0]))

    def add(self, numbers: Any, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        """Adds row i of the selection to numbers[i] (numpy)."""
        aggregator, slots, data = self._aggregator, pa.array(self._slot_of[numbers]), self._columns(data)
        self._table.accumulate(
            slots, data, aggregator.arguments, aggregator.filters, order=aggregator.order, selection=selection
        )
        if aggregator.needs_slots:
            self._extras.add(slots, data, selection)

    def running(self, numbers: Any, data: pa.RecordBatch, selection: pa.Int32Array | None) -> list[Array]:
        """As `add`; -> the results of the aggregates after each row. Only for aggregates without extras."""
        aggregator, slots, data = self._aggregator, pa.array(self._slot_of[numbers]), self._columns(data)
        results = self._table.running(
            slots, data, aggregator.arguments, aggregator.filters, order=aggregator.order, selection=selection
        )
        return aggregator.compose(results, [])

    def merge(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """Merges the accumulators of source[i] into those of into[i]. The kernel has forgotten the sources already."""
        targets, slots = self._slot_of[into.to_numpy()], self._slot_of[source.to_numpy()]
        self._table.merge_slots(pa.array(targets), pa.array(slots))
        if self._aggregator.needs_slots:
            self._extras.move(pa.array(targets), pa.array(slots))
        self._forget(slots)

    def aggregates(self, numbers: pa.Int32Array) -> list[Array]:
        """The results of the aggregates, a row for each number."""
        slots = pa.array(self._slot_of[numbers.to_numpy()])
        return list(self._aggregator.finish(self._table, self._extras, slots).columns[1:])

    def aggregates_schema(self) -> dict[str, Any]:
        """The aggregates, for `Operator.state_schema`."""
        return aggregates_schema(self._aggregates, self.results, self._input)

    def contents(self) -> Iterator[tuple[pa.Int32Array, list[Array], list[Array]]]:
        """(numbers, their keys, the results of their aggregates) of all sessions or runs, piece by piece."""
        for numbers in self.numbers():
            yield numbers, self.key_columns(numbers), self.aggregates(numbers)

    def remove(self, numbers: pa.Int32Array) -> None:
        if len(numbers):
            self._forget(self._slot_of[numbers.to_numpy()])
            super().remove(numbers)

    def cut(self) -> tuple[dict[str, Any], dict[str, Cut | Batches]]:
        runs, states = self.saved(), []
        for part in runs:
            slots = pa.array(self._slot_of[part.column(0).to_numpy()])
            columns = [*self._table.export(slots).columns, *self._extras.states(slots)]
            states.append(pa.RecordBatch.from_arrays(columns, schema=self._aggregator.states))
        if not runs:
            return {}, {}
        return {}, {"runs": Batches(self.saved_schema, runs), "states": Batches(self._aggregator.states, states)}

    def restore(self, saved: Sequence[Saved], owned: Owned | None) -> None:
        schema, carried = self._aggregator.states, self._carried
        for numbers, states in self.load(saved, owned, "states", schema if carried is None else carried.states):
            if carried is not None:
                states = carried.whole(states)
            serials = self._serial_rows(len(numbers)).column(0)
            renamed = states.set_column(0, schema.field(0), serials)
            self._assign(numbers, self._aggregator.merge(self._table, self._extras, renamed))

    def clear(self) -> None:
        super().clear()
        self._table.clear()
        self._extras.clear()

    def statistics(self) -> dict[str, int]:
        figures = super().statistics()
        return {**figures, "bytes": figures["bytes"] + self._table.nbytes + self._extras.nbytes}

    def _columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """The columns as the aggregator expects them: with a column of serials, all null and never read, before derived columns."""
        if len(self._blank) < data.num_rows:
            self._blank = pa.nulls(data.num_rows, pa.int64())
        return self._aggregator.columns(data.append_column(_GROUP, self._blank.slice(0, data.num_rows)))

    def _serial_rows(self, count: int) -> pa.RecordBatch:
        """The next serials, as rows of a key column."""
        self._serials += count
        serials = np.arange(self._serials - count, self._serials)
        return pa.RecordBatch.from_arrays([pa.array(serials)], names=[_GROUP])

    def _assign(self, numbers: Any, slots: pa.Int32Array) -> None:
        highest = int(numbers.max(initial=-1))
        if highest >= len(self._slot_of):
            grown = np.zeros(max(2 * len(self._slot_of), highest + 1, 1024), np.int32)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        self._slot_of[numbers] = slots.to_numpy()

    def _forget(self, slots: Any) -> None:
        """Removes these slots (numpy) from the table."""
        gone = pa.array(slots)
        if self._aggregator.needs_slots:
            self._extras.remove(gone)
        self._table.remove(gone)


def _numbering(aggregates: Sequence[AggregateColumn], input: pa.Schema) -> Aggregator:
    """The aggregator of sessions or runs, by the serials of these."""
    order = TIME_COLUMN if TIME_COLUMN in input.names else None
    return Aggregator([_GROUP], aggregates, input.append(pa.field(_GROUP, pa.int64())), order=order)


def _read_with(reader: Mapping[str, Any]) -> SessionAggregate:
    lateness = reader["allowed_lateness"]
    return SessionAggregate(reader["gap_ms"], reader["keys"], aggregates_of(reader), allowed_lateness_ms=lateness)


READERS: Readers = {"session": _read_with}
