"""A source of rows that are made of the entries of a journal, for streams over the activity of jobs.

Each entry gives any number of rows. The offset of a row is the offset of its entry times ROWS, plus the number of the
row in the entry. Only durable entries are read, and a journal only grows. So the same offsets give the same rows, and
the stream can be exactly once. If entries were trimmed before the source has read them, the source raises an error. An
app does not trim entries of its own journal that its own sources have not read yet (`held_for`).

A partition of the source is a run of the journal (`JournalReader.ends`), since entries of several workers become durable out
of the order of their places.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any, NamedTuple

from sabot._cython.arrow.batch import Batch
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import build_records
from sabot.connectors.base import Positions, Source
from sabot.errors import UserError
from sabot.journal.base import JournalReader
from sabot.journal.entries import Entry

ROWS = 1 << 14
"""The most rows that may be made of one entry."""

_LOOK_SECONDS = 0.05  # the seconds between two looks for new entries
_NAME = "journal of "


class JournalRow(NamedTuple):
    """A row of a stream that is made from a journal entry. `payload`: the content. `key`: the key; None for none.
    `at_ms`: the event time in milliseconds since 1970.
    """

    payload: bytes
    key: bytes | None
    at_ms: int


class JournalSource(Source):
    """A source of rows for a stream. The rows are made from the durable entries of a journal, and those of a
    partition are in the order of its entries. The source never ends.
    """

    def __init__(
        self,
        name: str,
        reading: Callable[[], AbstractContextManager[JournalReader]],
        rows: Callable[[Entry], Sequence[JournalRow]],
    ) -> None:
        """Makes a source.

        - `name`: a name that says what the rows are.
        - `reading`: a function that opens a reader of the journal. The reader stays open as long as the source.
        - `rows`: a function that returns the rows for an entry. For the same entry, it must always return the same
          rows.
        """
        self.name = f"{_NAME}{name}"
        self._reading = reading
        self._rows = rows
        self._held = ExitStack()
        self._reader: JournalReader | None = None
        self._closing = threading.Event()
        self._positions: dict[int, int] = {}  # by partition: the offset of the source behind the last row
        # by partition: the offset of the journal behind the last entry that was read
        self._scanned: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def identity(self) -> str:
        return f"{self._opened().identity}/{self.name}"

    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        restored = {partition: offset for (name, partition), offset in (positions or {}).items() if name == self.name}
        if start not in ("earliest", "latest") and not restored:
            raise UserError(f"{self.name}: start={start!r} is not a place to start at", hint='"earliest" or "latest"')
        self.close()
        self._closing.clear()
        try:
            self._reader = self._held.enter_context(self._reading())
            ends = self._reader.ends() or {0: 0}
            late = start == "latest" and not restored
            places = {partition: end * ROWS if late else 0 for partition, end in ends.items()}
            self._positions = {**places, **restored}
            self._scanned = {partition: at // ROWS for partition, at in self._positions.items()}
            self._ends = ends
            self._check(restored)
        except BaseException:
            self.close()
            raise

    def _check(self, restored: Mapping[int, int]) -> None:
        """Raises UserError if a position does not exist in the journal, or if entries were trimmed before this source
        has read them. `restored`: by partition, the positions from a checkpoint.
        """
        reader = self._opened()
        trimmed = reader.trimmed()
        for partition, position in restored.items():
            offset, number = divmod(position, ROWS)
            if number:
                with closing(reader.read_run(partition, offset)) as entries:  # type: ignore[type-var]
                    at, entry = next(iter(entries), (None, None))
                there = at is not None and entry is not None and at.offset == offset
                number = 0 if there and number <= len(self._rows(entry)) else number  # type: ignore[arg-type]
            if number or offset > max(self._ends.get(partition, 0), trimmed.get(partition, 0)):
                raise UserError(
                    f"{self.name}[{partition}]: position {position} does not exist; {reader.where} ends at entry "
                    f"{self._ends.get(partition, 0)}",
                    hint="give the journal that the job had; or start afresh (--fresh)",
                )
        self._check_trimmed()

    def _check_trimmed(self) -> None:
        reader = self._opened()
        for partition, offset in reader.trimmed().items():
            if self._positions.get(partition, 0) > 0 and self._scanned[partition] < offset:
                raise UserError(
                    f"{self.name}[{partition}]: entries before {offset} were trimmed, and only those before {self._scanned[partition]} "
                    f"were read: rows of {reader.where} are lost",
                    hint="read it in the app that owns it, whose checkpoints hold it; or start afresh (--fresh) with what is there",
                )

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        self._opened()
        until = SYSTEM_CLOCK.monotonic() + timeout
        while True:
            found = self._next(max_rows)
            if found is not None:
                return found
            left_s = until - SYSTEM_CLOCK.monotonic()
            if left_s <= 0 or self._closing.wait(min(left_s, _LOOK_SECONDS)):
                return None

    def _next(self, max_rows: int) -> Batch | None:
        reader = self._reader
        if reader is None:
            return None
        self._ends = reader.ends() or self._ends
        behind = {
            at: self._scanned.get(at, 0) for at, end in sorted(self._ends.items()) if self._scanned.get(at, 0) < end
        }
        if not behind:
            return None
        self._check_trimmed()
        found: list[tuple[int, int, JournalRow]] = []  # partition, offset of the source, row
        for partition, first in behind.items():
            if len(found) >= max_rows:
                break
            self._scan(reader, partition, first, max_rows - len(found), found)
        if not found:
            return None
        offsets = {(self.name, partition): offset + 1 for partition, offset, _ in found}
        self._positions |= {partition: offset for (_, partition), offset in offsets.items()}
        rows = [row for _, _, row in found]
        keys = [row.key for row in rows]
        places = [partition for partition, _, _ in found]
        times = [row.at_ms for row in rows]
        data = build_records([row.payload for row in rows], keys, times, places, [offset for _, offset, _ in found])
        return Batch(data, offsets, self.name)

    def _scan(
        self, reader: JournalReader, partition: int, first: int, most: int, found: list[tuple[int, int, JournalRow]]
    ) -> None:
        """Reads entries of a partition, from the offset `first` on, and appends their rows to `found`, at most `most`
        rows. Each element of `found` is a tuple of the partition, the offset of the row, and the row.
        """
        position = self._positions.get(partition, 0)
        entries: Any = reader.read_run(partition, first)
        with closing(entries):
            for at, entry in entries:
                if at.offset >= self._ends[partition]:
                    break
                for number, row in enumerate(self._rows(entry)):
                    offset = at.offset * ROWS + number
                    if offset < position:
                        continue
                    if most == 0:
                        return
                    found.append((partition, offset, row))
                    most -= 1
                self._scanned[partition] = at.offset + 1
            else:
                self._scanned[partition] = self._ends[partition]

    def positions(self) -> Positions:
        return {(self.name, partition): offset for partition, offset in list(self._positions.items())}

    def lag(self) -> dict[tuple[str, int], int]:
        """Returns the number of entries that were not read yet. The key is a pair of the name of the source and the
        partition.
        """
        if self._reader is None:
            return {}
        return {
            (self.name, partition): max(0, end - self._scanned.get(partition, 0))
            for partition, end in list(self._ends.items())
        }

    def close(self) -> None:
        self._closing.set()
        self._reader = None
        held, self._held = self._held, ExitStack()
        held.close()

    def _opened(self) -> JournalReader:
        if self._reader is None:
            raise UserError(f"{self.name} is not open")
        return self._reader


def held_for(read: Iterable[Positions], needed: Mapping[int, int]) -> dict[int, int]:
    """Returns, by partition of the journal, the first offset whose entries a checkpoint needs. It is the smaller of
    the offset that the app's jobs need and the offset that its sources have read.

    `read`: the positions of all sources of the app in this checkpoint. `needed`: the offsets that the app's jobs
    need.
    """
    held = dict(needed)
    for positions in read:
        for (name, partition), offset in positions.items():
            if name.startswith(_NAME):
                held[partition] = min(held.get(partition, 0), offset // ROWS)
    return held
