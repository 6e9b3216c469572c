"""A sink that keeps its rows, for a test to read."""

import threading
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import RECORD_SCHEMA, decode_json, iterate_records
from sabot.connectors.base import Delivers, Sink, TakesChanges, Token, Track
from sabot.engine.operators.base import DELETE, OP_COLUMN, with_marks
from sabot.errors import UserError
from sabot.steps import step


class ListSink(Sink, Delivers, TakesChanges):
    """A sink that keeps its rows, exactly once or at least once. Like the outside world, it survives the crashes of a
    test.

    Make it outside of the function that builds the app. With at least once, rows count when they are flushed, and a
    crash loses rows that are not flushed. With exactly once, a part that is delivered again is ignored. Any thread
    may read it.

    It accepts changes. `rows` are then the changes as they came, each with its op in the column "__op" (0 and 2: the
    new row of its key; 3: the key's row is deleted), and `current` is the resulting table.
    """

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self._arrived: list[pa.RecordBatch] = []
        self._unflushed: list[pa.RecordBatch] = []
        self._schema: pa.Schema | None = None
        self._track: Track | None = None
        self._last: dict[Track, int] = {}  # the number of the last part of each track
        self._keys: tuple[str, ...] | None = None  # the key columns, when the rows are changes of a table
        self._lock = threading.Lock()

    @property
    def rows(self) -> list[Any]:
        """The rows in the order of their arrival: rows of columns as dicts, records as their decoded values."""
        found: list[Any] = []
        for data in self.batches:
            if data.schema.equals(RECORD_SCHEMA):
                records = iterate_records(data, self.name)
                found += [decode_json(record.payload, where=self.name) for record in records]
            else:
                found += data.to_pylist()
        return found

    @property
    def current(self) -> list[dict[str, Any]]:
        """The rows of the table after all changes so far, in the order in which their keys first came. Raises
        UserError if the sink gets no changes.
        """
        if self._keys is None:
            raise UserError(f"sink {self.name}: its input has no changes, so there is no table", hint="read .rows")
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in self.rows:
            key, op = tuple(row[name] for name in self._keys), row.pop(OP_COLUMN)
            if op == DELETE:
                found.pop(key, None)
            else:
                found[key] = row
        return list(found.values())

    @property
    def batches(self) -> list[pa.RecordBatch]:
        """The batches in the order of their arrival."""
        with self._lock:
            return list(self._arrived)

    def table(self) -> pa.Table:
        """Returns all rows so far as a table. Raises UserError if the batches have different columns."""
        batches = self.batches
        schema = batches[0].schema if batches else self._schema
        if any(not data.schema.equals(schema) for data in batches):
            raise UserError(f"sink {self.name}: its rows have different columns", hint="read .rows, or .batches")
        return pa.table({}) if schema is None else pa.Table.from_batches(batches, schema=schema)

    # -- Sink ---------------------------------------------------------------------------------------------------------

    def expect(self, schema: pa.Schema) -> None:
        self._schema = schema

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        self._schema = with_marks(schema, op=True, timed=False)
        self._keys = tuple(keys)

    def open(self) -> None:
        with self._lock:
            self._unflushed = []

    def write(self, batch: Batch) -> None:
        with self._lock:
            self._unflushed.append(batch.taken())

    def flush(self) -> None:
        if self._unflushed:
            with step("flush", self.name), self._lock:
                self._arrived += self._unflushed
                self._unflushed = []

    def claim(self, track: Track) -> Token | None:
        with step("claim", track.key), self._lock:
            self._track = track
            return None

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        track = self._track
        if track is None:
            raise UserError(f"sink {self.name}: no track has claimed it")
        with step("deliver", f"{track.key} {seq}"), self._lock:
            if seq > self._last.get(track, 0):
                self._last[track] = seq
                self._arrived += [data for data in batches if data.num_rows]

    def close(self) -> None:
        """Does nothing: the rows stay."""
