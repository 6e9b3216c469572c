"""Session windows: rows of a key that are less than a gap apart.

`SessionTable` decides to which session a row belongs, and which sessions a row merges. `RunAggregates` has the
accumulators of each session. Only open sessions are state. With a directory, sessions of keys without recent rows are
on disk.

Sessions, and the runs of `keyed.running`, are numbered; a number is used again when its session or run is over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.windows.sessions import RunTable, SessionTable
from sabot.api.windows import WINDOW_END, WINDOW_START, SessionWindow, WindowTime
from sabot.engine.operators.aggregates.aggregator import (
    AggregateColumn,
    Aggregator,
    aggregates_reader,
    aggregates_schema,
)
from sabot.engine.operators.aggregates.decimals import named_by
from sabot.engine.operators.aggregates.migration import StateLayout, StateMigration, migration_of
from sabot.engine.operators.base import CHUNK_ROWS, END_OF_TIME, TIME_COLUMN, OperatorContext, Saved
from sabot.engine.operators.columns import key_columns, key_table, result_schema, time_index
from sabot.engine.operators.late_rows import LateRows
from sabot.engine.operators.readers import StateReaders, aggregates_of, described
from sabot.engine.operators.slot_state import SlotState
from sabot.engine.operators.state_facts import OwnFacts, StateReader, StateSchema
from sabot.engine.operators.state_parts import StatefulOperator, StateParts, columns_schema, last_watermark
from sabot.engine.operators.windows.panes import window_text

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_GROUP = "__group"
_TIMESTAMP = pa.timestamp("ms", "UTC")

Array: TypeAlias = pa.Array


class SessionAggregate(StatefulOperator):
    """Aggregates rows by `keys` and session. It emits the keys, window_start (the time of the first row), window_end
    (the time of the last row + gap), and the aggregates.

    A session is emitted when the watermark reaches its end, and its state is kept for `allowed_lateness_ms` after
    that. If a row changes it in this time, the next watermark emits it again; the results of sessions that were
    merged into it are not taken back. So streams take no such lateness, and it is here for the state of programs of
    earlier versions that did. A row is late if it belongs to no session with state, and the session that it
    would begin is over, lateness included. It is then emitted to the branch "late", without TIME_COLUMN.
    """

    def __init__(
        self,
        gap_ms: int,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        *,
        allowed_lateness_ms: int = 0,
        time: WindowTime = "event",
    ) -> None:
        self._window = SessionWindow(gap_ms, time)
        self._gap_ms, self._lateness_ms = gap_ms, allowed_lateness_ms
        self._keys, self._aggregates = list(keys), list(aggregates)
        self._state: Any = None  # a RunAggregates
        self._watermark_ms: int | None = None

    def open(self, context: OperatorContext) -> pa.Schema:
        self._context = context
        self._late = LateRows(context, self.step.text, place=self.step.origin.place)
        self._time = time_index(context.input, "session windows")
        self._sessions = SessionTable(self._gap_ms, self._lateness_ms)
        self._state = _OpenSessions(
            self._keys, self._aggregates, context, self._sessions, partial(_due, self._gap_ms, self._lateness_ms)
        )
        self._schema = result_schema(
            [
                *self._state.keys,
                pa.field(WINDOW_START, _TIMESTAMP),
                pa.field(WINDOW_END, _TIMESTAMP),
                *self._state.results,
            ],
            timed=True,
        )
        self.state_parts = StateParts(context, [self._state], keyed=len(self._keys) > 0)
        return self._schema

    def process(self, batch: Batch) -> None:
        state: _OpenSessions = self._state
        late = None
        self._late.came(batch.num_rows)
        with state.changing:
            selection = batch.selection
            slots = state.resolve(batch)
            ids, created, into, source = self._sessions.add(slots, batch.data.column(self._time), selection)
            state.begin(created)
            if len(source):
                state.merge(into, source)
            numbers = ids.to_numpy()
            if len(numbers) and numbers.min() < 0:
                on_time = numbers >= 0
                rows = np.arange(len(numbers), dtype=np.int32) if selection is None else selection.to_numpy()
                late = pa.array(rows[~on_time])
                state.release(self._sessions.vacant(slots))
                numbers, selection = numbers[on_time], pa.array(rows[on_time])
            state.add(numbers, batch.data, selection)
            state.settle()
        if late is not None:
            assert self._watermark_ms is not None, "no row is late before the first watermark"
            self._late.reject(batch, late, self._watermark_ms)

    def advance(self, watermark_ms: int) -> None:
        state: _OpenSessions = self._state
        if self._watermark_ms is None or watermark_ms > self._watermark_ms:
            self._watermark_ms = watermark_ms
        for _ in state.due(watermark_ms):
            with state.changing:
                complete, over = self._sessions.advance(watermark_ms)
                state.note_complete(complete)
            for start in range(0, len(complete), CHUNK_ROWS):
                with state.changing:
                    rows = self._results(complete.slice(start, CHUNK_ROWS))
                self.emit(Batch(rows))
            with state.changing:
                state.remove(over)
        with state.changing:
            state.settle()

    def _results(self, numbers: pa.Int32Array) -> pa.RecordBatch:
        first, end = self._sessions.bounds(numbers)
        bounds = [first.view(_TIMESTAMP), end.view(_TIMESTAMP)]
        columns = [*self._state.key_columns(numbers), *bounds, *self._state.aggregates(numbers)]
        return pa.RecordBatch.from_arrays([*columns, pa.array(end.to_numpy() - 1)], schema=self._schema)

    def state_schema(self) -> StateSchema:
        aggregates: StateSchema = self._state.aggregates_schema()
        return {
            "kind": "window",
            "keys": columns_schema(self._state.keys),
            "window": window_text(self._window),
            "allowed_lateness": self._lateness_ms,
            **aggregates,
        }

    def state_reader(self) -> StateReader:
        aggregates = aggregates_reader(self._keys, self._aggregates, self._context.input)
        return {**aggregates, "gap_ms": self._gap_ms, "allowed_lateness": self._lateness_ms}

    def contents(self) -> Iterator[pa.RecordBatch]:
        for numbers in self._state.numbers():
            yield self._results(numbers)

    def group_count(self) -> int:
        return int(self._state.count)

    def own_facts(self) -> OwnFacts:
        return {"watermark": self._watermark_ms, **self._late.facts()}

    def before_restore(self, saved: Sequence[Saved]) -> None:
        self._state.before_restore(saved, self.forgets)
        self._watermark_ms = last_watermark(saved, None)
        if self._watermark_ms is not None:
            self._sessions.advance(self._watermark_ms)  # the kernel is empty: this only sets which rows are late

    def after_restore(self, saved: Sequence[Saved]) -> None:
        self._late.restore(self.state_parts.share(saved))

    def close(self) -> None:
        if self._state is not None:
            self._state.clear()
            self._late.tell_rest()

    def statistics(self) -> "ToldStep":
        kernel = self._sessions.statistics()
        return {
            "sessions": self._state.count,
            "merged": kernel["merged"],
            **self._late.statistics(),
            **self._state.statistics(),
        }


class KeyedRuns(SlotState):
    """The keys whose rows form sessions or runs, and the state of these sessions or runs. The kernel `runs` numbers
    them, and stores the slot of the key for each number.

    `due`: for rows that the kernel exports, returns the time at which each session or run must be in memory; None if
    no time ends them. `beside`: further files of a checkpoint, by name, with their columns; each has a row for each
    run.
    """

    def __init__(
        self,
        keys: Sequence[str],
        context: OperatorContext,
        runs: SessionTable | RunTable,
        due: Callable[[pa.RecordBatch], Any] | None,
        beside: Mapping[str, pa.Schema] | None = None,
    ) -> None:
        self.keys, indices = key_columns(keys, context.input)
        self.runs, self._due = runs, due
        named = (field.with_name(f"key.{i}") for i, field in enumerate(self.keys))
        own = runs.export().schema
        files = {"runs": pa.schema([*own, *named]), **(beside or {})}
        self.width = len(own)
        super().__init__(key_table(self.keys), indices, files, range(len(own), len(files["runs"])), context)

    def release(self, slots: pa.Int32Array) -> None:
        """Removes the keys of these slots, which have no sessions or runs any more."""
        if len(slots):
            self.known.remove(slots)

    def key_columns(self, numbers: pa.Int32Array) -> list[Array]:
        """Returns the keys of these sessions or runs, with a row for each number."""
        return self.known.key_columns(self.runs.slots(numbers))

    def numbers(self) -> Iterator[pa.Int32Array]:
        """Yields the numbers of all sessions or runs, in pieces of about CHUNK_ROWS. A piece is valid until the next
        one is requested.
        """
        everything = self.runs.export().column(0)
        for start in range(0, len(everything), CHUNK_ROWS):
            yield everything.slice(start, CHUNK_ROWS)
        for some in self.every_read():
            yield pa.array(some)

    def remove(self, numbers: pa.Int32Array) -> None:
        """Removes these sessions or runs, and keys that have no others."""
        if len(numbers):
            self.note(self.runs.slots(numbers))
            self.release(self.runs.remove(numbers))

    def rows_of(self, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        runs = self.runs.export(self.runs.of_slots(slots)[0])
        keys = self.known.key_columns(runs.column("slot"))
        return [pa.RecordBatch.from_arrays([*runs.columns, *keys], schema=self.files["runs"])]

    def due_of(self, rows: list[pa.RecordBatch]) -> Any:
        return None if self._due is None else self._due(rows[0])

    def put(self, rows: list[pa.RecordBatch]) -> Any:
        """Adds rows of keys that are not in the table. Returns the numbers of their sessions or runs (numpy)."""
        runs, width = rows[0], self.width
        slots = self.known.resolve(runs, list(range(width, runs.num_columns)))
        self.note(slots)
        return self.runs.load(runs.select(range(width)).set_column(1, "slot", slots)).to_numpy()

    def forget(self, slots: pa.Int32Array) -> None:
        self.remove(self.runs.of_slots(slots)[0])

    def clear(self) -> None:
        """Removes all keys, and closes the state."""
        if not self.is_held:
            self.known.clear()
        self.close()

    @property
    def nbytes(self) -> int:
        return self.known.nbytes + self.runs.nbytes

    @property
    def count(self) -> int:
        """The number of sessions or runs, in memory and on disk."""
        return len(self.runs) + self.cold_rows

    def statistics(self) -> "ToldStep":
        return {"keys": self.key_count, **self.figures()}


class RunAggregates(KeyedRuns):
    """The keys and accumulators of sessions or runs.

    `results`: the fields of the aggregates. `running`: True if the caller uses the method `running` in place of
    `add`. In the accumulators' table, the key of a session or run is a serial number, which is never used again,
    unlike its number.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregates: Sequence[AggregateColumn],
        context: OperatorContext,
        runs: SessionTable | RunTable,
        due: Callable[[pa.RecordBatch], Any] | None,
        *,
        running: bool = False,
    ) -> None:
        self._aggregates, self._input, self._running = list(aggregates), context.input, running
        self._aggregator = _run_aggregator(aggregates, context.input, running=running)
        self.results = list(self._aggregator.schema)[1:]
        self._table = self._aggregator.table()
        self._extras = self._aggregator.extras()
        self._slot_of = np.zeros(0, np.int32)  # by number: the slot in the table
        self._serials = 0
        self._migration: StateMigration | None = None
        self._blank: Array = pa.nulls(0, pa.int64())
        super().__init__(keys, context, runs, due, {"states": self._aggregator.states})

    def before_restore(self, saved: Sequence[Saved], forgets: frozenset[str]) -> None:
        """Sets how the aggregates of the checkpoint are converted to those of the program. Called before a restore."""
        now, layout = self.aggregates_schema()["aggregates"], self._aggregator.layout

        def was(reader: Mapping[str, Any]) -> StateLayout:
            return _run_aggregator(*described(reader), running=self._running).layout

        self._migration = migration_of(saved, now, forgets, layout, was)

    def begin(self, numbers: pa.Int32Array) -> None:
        """Adds empty accumulators for new sessions or runs."""
        if len(numbers):
            self._assign(numbers.to_numpy(), self._table.resolve(self._serial_rows(len(numbers)), [0]))

    def add(self, numbers: Any, data: pa.RecordBatch, selection: pa.Int32Array | None) -> None:
        """Adds row i of the selection to the session or run numbers[i] (numpy)."""
        aggregator, slots, data = self._aggregator, pa.array(self._slot_of[numbers]), self._columns(data)
        self._table.accumulate(
            slots, data, aggregator.arguments, aggregator.filters, order=aggregator.order, selection=selection
        )
        if aggregator.needs_slots:
            with named_by(self._key_of):
                self._extras.add(slots, data, selection)

    def running(self, numbers: Any, data: pa.RecordBatch, selection: pa.Int32Array | None) -> list[Array]:
        """Adds rows like `add`, and returns the results of the aggregates after each row. The aggregates must have no
        extras.
        """
        aggregator, slots, data = self._aggregator, pa.array(self._slot_of[numbers]), self._columns(data)
        results = self._table.running(
            slots, data, aggregator.arguments, aggregator.filters, order=aggregator.order, selection=selection
        )
        return aggregator.compose(results, [])

    def merge(self, into: pa.Int32Array, source: pa.Int32Array) -> None:
        """Merges the accumulators of source[i] into those of into[i]. The kernel has already removed the sessions
        `source`.
        """
        targets, slots = self._slot_of[into.to_numpy()], self._slot_of[source.to_numpy()]
        self._table.merge_slots(pa.array(targets), pa.array(slots))
        if self._aggregator.needs_slots:
            self._extras.move(pa.array(targets), pa.array(slots))
        self._forget(slots)

    def aggregates(self, numbers: pa.Int32Array) -> list[Array]:
        """Returns the results of the aggregates, with a row for each number."""
        slots = pa.array(self._slot_of[numbers.to_numpy()])
        with named_by(self._key_of):
            return list(self._aggregator.finish(self._table, self._extras, slots).columns[1:])

    def _key_of(self, slot: int) -> pa.RecordBatch:
        """Returns the key of the session or run whose accumulators have this slot."""
        number = pa.array(np.flatnonzero(self._slot_of == slot)[:1].astype(np.int32))
        return pa.RecordBatch.from_arrays(self.key_columns(number), schema=self.keys)

    def aggregates_schema(self) -> StateSchema:
        """Returns the aggregates for `Stateful.state_schema`."""
        return aggregates_schema(self._aggregates, self.results, self._input)

    def contents(self) -> Iterator[tuple[pa.Int32Array, list[Array], list[Array]]]:
        """Yields the numbers, the keys and the results of all sessions or runs, in pieces."""
        for numbers in self.numbers():
            yield numbers, self.key_columns(numbers), self.aggregates(numbers)

    def remove(self, numbers: pa.Int32Array) -> None:
        if len(numbers):
            self.note(self.runs.slots(numbers))
            self._forget(self._slot_of[numbers.to_numpy()])
            super().remove(numbers)

    def rows_of(self, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        (runs,) = super().rows_of(slots)
        places = pa.array(self._slot_of[runs.column(0).to_numpy()])
        columns = [*self._table.export(places).columns, *self._extras.states(places)]
        return [runs, pa.RecordBatch.from_arrays(columns, schema=self._aggregator.states)]

    def put(self, rows: list[pa.RecordBatch]) -> Any:
        numbers, states = super().put(rows), rows[1]
        renamed = states.set_column(0, states.schema.field(0), self._serial_rows(len(numbers)).column(0))
        self._assign(numbers, self._aggregator.merge(self._table, self._extras, renamed))
        return numbers

    def files_of(self, saved: Sequence[Saved]) -> Mapping[str, pa.Schema]:
        return self.files if self._migration is None else {**self.files, "states": self._migration.states}

    def renewed(self, rows: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
        return rows if self._migration is None else [rows[0], self._migration.whole(rows[1])]

    def clear(self) -> None:
        if not self.is_held:
            self._table.clear()
            self._extras.clear()
        super().clear()

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._table.nbytes + self._extras.nbytes

    def _columns(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the columns that the aggregator expects. The column of serial numbers comes before the derived
        columns; it is null, and never read.
        """
        if len(self._blank) < data.num_rows:
            self._blank = pa.nulls(data.num_rows, pa.int64())
        return self._aggregator.columns(data.append_column(_GROUP, self._blank.slice(0, data.num_rows)))

    def _serial_rows(self, count: int) -> pa.RecordBatch:
        """Returns the next `count` serial numbers, as rows with one key column."""
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
        """Removes these slots (numpy) from the table and the extras."""
        gone = pa.array(slots)
        if self._aggregator.needs_slots:
            self._extras.remove(gone)
        self._table.remove(gone)


class _OpenSessions(RunAggregates):
    """The open sessions of a SessionAggregate, with their accumulators."""

    _complete: Any = None  # sessions that were not emitted when the open cuts were taken

    def note_complete(self, complete: pa.Int32Array) -> None:
        """Prepares snapshots that are not saved yet for the removal of sessions that the kernel has just reported as
        complete: such a snapshot stores them as not emitted. Called before any other change. Does nothing without
        such a snapshot.
        """
        if self.is_held and len(complete):
            self._complete = complete.to_numpy()
            self.note(self.runs.slots(complete))
            self._complete = None

    def rows_of(self, slots: pa.Int32Array) -> list[pa.RecordBatch]:
        runs, states = super().rows_of(slots)
        if self._complete is not None:
            given = runs.column("given").to_numpy(zero_copy_only=False) & ~np.isin(runs.column(0), self._complete)
            runs = runs.set_column(4, runs.schema.field(4), pa.array(given))
        return [runs, states]


def _due(gap_ms: int, lateness_ms: int, sessions: pa.RecordBatch) -> Any:
    """Returns the next time at which each session must be in memory: its end, or, if it has been emitted, the end of
    its lateness.
    """
    end = plus_ms(sessions.column("last"), gap_ms)
    given = sessions.column("given").to_numpy(zero_copy_only=False)
    return np.where(given, plus_ms(pa.array(end), lateness_ms), end)


def plus_ms(times: Array, ms: int) -> Any:
    """Returns the times with `ms` added, limited to END_OF_TIME (numpy)."""
    values = times.to_numpy()
    return np.where(values > END_OF_TIME - ms, END_OF_TIME, values + ms)


def _run_aggregator(aggregates: Sequence[AggregateColumn], input: pa.Schema, *, running: bool = False) -> Aggregator:
    """Returns the aggregator of sessions or runs, whose key is the serial number. `running`: the parameter of
    `Aggregator`.
    """
    order = TIME_COLUMN if TIME_COLUMN in input.names else None
    return Aggregator([_GROUP], aggregates, input.append(pa.field(_GROUP, pa.int64())), order=order, running=running)


def _read_with(reader: Mapping[str, Any]) -> SessionAggregate:
    lateness = reader["allowed_lateness"]
    return SessionAggregate(reader["gap_ms"], reader["keys"], aggregates_of(reader), allowed_lateness_ms=lateness)


STATE_READERS: StateReaders = {"session": _read_with}
