"""A source that reads a script: rows, and marks for events between them."""

import enum
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.arrays import batch_of_rows, empty_batch
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import build_records, encode_json
from sabot.connectors.base import Bounded, Positions, Scans, Source
from sabot.errors import UserError

_START_MS = 1_700_000_000_000  # the timestamp of the first record; each further one is a ms later
_WAIT_SECONDS = 0.002  # the longest wait at BARRIER within one read, because the barrier itself comes between two reads


class ScriptMark(enum.Enum):
    """An event at one place of a script: a checkpoint, a crash, or the end."""

    BARRIER = "a checkpoint is taken, with its barrier exactly here; the next entries wait until it is complete"
    CRASH = "the app crashes here, once; the next start continues from the last checkpoint"
    END = "the source ends"


BARRIER = ScriptMark.BARRIER
"""The mark at which a checkpoint is taken. The entries after it wait until the checkpoint is complete."""
CRASH = ScriptMark.CRASH
"""The mark at which the app crashes, once. The next start continues from the last checkpoint."""
END = ScriptMark.END
"""The mark at which the source ends."""


class Director(Protocol):
    """An object that carries out the marks of scripts during one life of the app, from a start to the next crash or
    to the end. Its methods are called in the thread that reads the source.
    """

    def checkpoint(self) -> "Future[Any]":
        """Triggers a checkpoint. The future is done when the checkpoint is complete."""

    def crash(self, place: tuple[str, int]) -> bool:
        """Crashes the app, unless it has crashed at this place before. Returns True if it crashes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A batch or a mark of the script. `first`: the offset of its first row; a mark has an offset too."""

    first: int
    end: int
    what: pa.RecordBatch | ScriptMark


class ScriptedSource(Source, Bounded, Scans):
    """A source for tests: `ScriptedSource([rows, BARRIER, rows, CRASH, rows, END])`. Streams and agents read it in
    apps that `sabot.testing.run` runs.

    Rows are an Arrow batch or table, a list of dicts (for record agents of any JSON values), which becomes one batch,
    or a single dict or value. Dicts and values become JSON records, like those of a topic, unless `schema=` makes
    columns of them. There is one partition, and reading continues at the position of a checkpoint. Marks have offsets
    too, so that offsets are the same in each life. Without END the source never ends. Raises UserError if anything
    follows END, or if the rows have different columns.
    """

    def __init__(self, script: Sequence[Any], *, name: str = "script", schema: pa.Schema | None = None) -> None:
        self.name = name
        self._columns: pa.Schema | None = schema
        parts = [part if isinstance(part, ScriptMark) else self._batch(part) for part in script]
        if any(part is END for part in parts[:-1]):
            raise UserError(f"script {name}: something follows END", hint="put END last")
        self.bounded = bool(parts) and parts[-1] is END
        schemas = {str(part.schema): part.schema for part in parts if isinstance(part, pa.RecordBatch)}
        if len(schemas) > 1:
            raise UserError(f"script {name}: its rows have different columns: {'; '.join(schemas)}")
        self._is_decoded = schema is not None or any(isinstance(part, pa.RecordBatch | pa.Table) for part in script)
        if self._is_decoded and self._columns is None:
            self._columns = next(iter(schemas.values()))
        self._entries: list[_Entry] = []
        for part in parts:
            first = self._entries[-1].end if self._entries else 0
            rows = 1 if isinstance(part, ScriptMark) else part.num_rows
            if rows:
                what = part if isinstance(part, ScriptMark) or self._is_decoded else _at(part, first)
                self._entries.append(_Entry(first, first + rows, what))
        self._firsts = [entry.first for entry in self._entries]
        self._wanted: list[str] | None = None
        self._at = 0
        self._director: Director | None = None
        self._checkpoint: Future[Any] | None = None

    def _batch(self, part: Any) -> pa.RecordBatch:
        if isinstance(part, pa.RecordBatch):
            return part
        if isinstance(part, pa.Table):
            chunks = part.combine_chunks().to_batches()
            return chunks[0] if chunks else empty_batch(part.schema)
        rows = part if isinstance(part, list) else [part]
        if self._columns is not None:
            return batch_of_rows(rows, self._columns)
        payloads = [row if row is None or isinstance(row, bytes) else encode_json(row) for row in rows]
        return build_records(payloads, None, [0] * len(rows), 0, range(len(rows)))

    def directed_by(self, director: Director) -> None:
        """Sets the object that carries out the marks. Call it before `open`."""
        self._director = director

    # -- Source -------------------------------------------------------------------------------------------------------

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        self._wanted = None
        if self._columns is None:
            return False
        if columns is not None:
            if missing := [name for name in columns if name not in self._columns.names]:
                raise UserError(
                    f"script {self.name} has no column {', '.join(missing)}",
                    hint=f"it has {', '.join(self._columns.names)}",
                )
            self._wanted = list(columns)
        return True

    def infer_schema(self) -> pa.Schema:
        if self._columns is not None:
            return self._columns
        batches = [entry.what for entry in self._entries if isinstance(entry.what, pa.RecordBatch)]
        codec = JsonCodec()
        if batches:
            codec.decode(pa.Table.from_batches(batches).combine_chunks().to_batches()[0])
        if codec.schema is None:
            raise UserError(
                f"script {self.name}: its rows are not JSON objects", hint="a stream needs dicts, or schema="
            )
        return codec.schema

    @property
    def schema(self) -> pa.Schema | None:
        if self._columns is None or self._wanted is None:
            return self._columns
        return pa.schema([self._columns.field(name) for name in self._wanted])

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        self._checkpoint = None
        self._at = (positions or {}).get((self.name, 0), 0)
        if not 0 <= self._at <= self._end:
            raise UserError(f"script {self.name}: there is no position {self._at}", hint=f"it has 0 to {self._end}")
        while self._at and (entry := self._entry) is not None and entry.what is BARRIER:
            self._at = entry.end  # the restored checkpoint was taken at this mark

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        while (entry := self._entry) is not None:
            if isinstance(entry.what, ScriptMark):
                if not self._carry_out(entry.what, timeout):
                    return None
                self._at = entry.end
                continue
            inside = self._at - entry.first
            data = entry.what.slice(inside, max_rows)
            self._at += data.num_rows
            if self._wanted is not None:
                data = data.select(self._wanted)
            return Batch(data, {(self.name, 0): self._at}, self.name)
        return None

    def _carry_out(self, mark: ScriptMark, timeout: float) -> bool:
        """Carries out a mark; for a checkpoint, waits at most `timeout` seconds. Returns True when the mark is done,
        also for a crash of an earlier run, and False if it is not done yet or if the app has crashed.

        Raises UserError if no test carries out marks, and the error of a failed checkpoint.
        """
        if mark is END:
            return True
        if self._director is None:
            raise UserError(
                f"script {self.name}: nothing carries out its {mark.name}", hint="run the app by sabot.testing.run"
            )
        if mark is CRASH:
            return not self._director.crash((self.name, self._at))
        if self._checkpoint is None:
            self._checkpoint = self._director.checkpoint()
        try:
            self._checkpoint.result(min(timeout, _WAIT_SECONDS))
        except (TimeoutError, CancelledError):
            return False
        self._checkpoint = None
        return True

    @property
    def _entry(self) -> _Entry | None:
        """The entry at the current position, or None after the last one."""
        return None if self._at >= self._end else self._entries[bisect_right(self._firsts, self._at) - 1]

    @property
    def _end(self) -> int:
        return self._entries[-1].end if self._entries else 0

    def identity(self) -> str:
        """Returns the name of the script, which is the same in each life. Ids of durable jobs contain it."""
        return f"script {self.name}"

    @property
    def exhausted(self) -> bool:
        return self.bounded and self._at >= self._end

    def positions(self) -> Positions:
        return {(self.name, 0): self._at}

    def lag(self) -> dict[tuple[str, int], int]:
        return {(self.name, 0): self._end - self._at}

    def close(self) -> None:
        """Does nothing: there are no resources."""


def _at(records: pa.RecordBatch, first: int) -> pa.RecordBatch:
    """Returns the records with their offsets in the script, and with timestamps."""
    offsets = range(first, first + records.num_rows)
    payloads: Any = records.column("payload")
    return build_records(payloads.to_pylist(), None, [_START_MS + offset for offset in offsets], 0, offsets)
