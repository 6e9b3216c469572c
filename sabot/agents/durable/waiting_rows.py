"""Mailboxes store the rows of a key whose job takes long. So a key whose job is parked for days delays no other key.

    MailRoom       the store of all mailboxes of an app, with a limit for all together; each checkpoint has a snapshot
    Mailboxes      the mailboxes of one agent: a queue for each key that has rows, with a limit for each
    NotesOfParked  notes of the things that the parked jobs of all agents wait for

The store is not the backend of users' state, because values of that state may expire, and that backend may be of the
user's own class. In memory a queue has only the numbers of its first and last row.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from sabot.engine.state import MemoryBackend, load_snapshot
from sabot.engine.state.base import Cut, LocalBackend, LocalSnapshot
from sabot.jobs.parking import ParkedNotes

STATE = "mailboxes"
"""The name under which a checkpoint has the mailboxes, among the states of the agent task."""

NOTES = "parked"
"""The name under which a checkpoint has the notes of parked jobs, among the states of the agent task."""

_ROWS = 1_000_000  # the most rows in all mailboxes of an app
_BYTES = 1 << 30
_NUMBER = struct.Struct(">Q")  # follows the scope in the backend's keys, so that the rows of a scope are in order


class MailRoom:
    """The store of all mailboxes of an app. A mailbox contains the rows that wait until the current job of their key
    has ended. The store limits the number of rows and of bytes in all mailboxes together.

    - `rows`, `nbytes`: the present number of rows, and their size in bytes.
    - `on_room`: functions that are called when a row was removed.
    """

    def __init__(self, backend: LocalBackend, *, capacity_rows: int = _ROWS, capacity_bytes: int = _BYTES) -> None:
        self.backend = backend
        self.capacity_rows, self.capacity_bytes = capacity_rows, capacity_bytes
        self.rows = self.nbytes = 0
        self.on_room: list[Callable[[], None]] = []  # called when a row was removed

    @property
    def has_room(self) -> bool:
        """True if the mailboxes together are below their limits of rows and bytes, so that another row may be added."""
        return self.rows < self.capacity_rows and self.nbytes < self.capacity_bytes

    def cut(self) -> Cut | None:
        """Returns a snapshot of all rows for a checkpoint, or None if no mailbox has ever contained a row."""
        return None if self.backend.is_empty else self.backend.cut()

    def load(self, directory: Path) -> None:
        """Loads the rows from the snapshot in this directory. Must be called before a `Mailboxes` object is made.
        Blocks. Raises CorruptCheckpoint if the snapshot cannot be read.
        """
        _load(self.backend, directory)

    def shut(self) -> None:
        """Closes the store that contains the rows. Blocks. May be called more than once."""
        self.backend.shut()


def _load(backend: LocalBackend, directory: Path) -> None:
    snapshot = load_snapshot(directory)
    backend.load([snapshot.cut if isinstance(snapshot, LocalSnapshot) else snapshot])


class NotesOfParked(ParkedNotes):
    """The notes about the parked jobs of an app, one for each job. A parked job waits for something, and its function
    is not in memory. A note says for which questions, timers and signals the job waits, so that the job need not be
    replayed after a restart. The notes are kept in memory, and a checkpoint stores all of them in one file.
    """

    def __init__(self) -> None:
        self._notes: dict[str, bytes] = {}

    def put(self, job_id: str, note: bytes) -> None:
        self._notes[job_id] = note

    def remove(self, job_id: str) -> None:
        self._notes.pop(job_id, None)

    def items(self) -> Iterator[tuple[str, bytes]]:
        return iter(self._notes.items())

    def cut(self) -> Cut | None:
        """Returns a snapshot of all notes for a checkpoint, or None if there are no notes."""
        return _CutOfNotes(self._notes.copy()) if self._notes else None

    def load(self, directory: Path) -> None:
        """Loads the notes from the snapshot in this directory. Blocks. Raises CorruptCheckpoint if the snapshot
        cannot be read.
        """
        backend = MemoryBackend()
        _load(backend, directory)
        self._notes = {key.decode(): note for key, note in backend.items("")}


class _CutOfNotes:
    """A snapshot of the notes about parked jobs (jobs that wait for something, and whose functions are not in
    memory). A checkpoint writes it to its directory.
    """

    def __init__(self, notes: dict[str, bytes]) -> None:
        self._notes = notes

    def save(self, directory: Path) -> int:
        backend = MemoryBackend()
        for job_id, note in self._notes.items():
            backend.write("", job_id.encode(), note)
        return backend.cut().save(directory)

    def discard(self) -> None:
        """Does nothing: a snapshot of notes has no files to delete."""


class Mailboxes:
    """The mailboxes of one agent. There is one for each key that has rows waiting. `scope` is the encoded key. A row
    is bytes.
    """

    def __init__(self, room: MailRoom, agent_id: str, capacity_rows: int) -> None:
        """Makes the mailboxes of an agent, with the rows that `room`, the store of all mailboxes, contains for it.
        Each mailbox has room for `capacity_rows` rows.
        """
        self._room = room
        self._backend = room.backend
        self._space = agent_id
        self._capacity = capacity_rows
        self._bounds: dict[bytes, list[int]] = {}  # by scope: [number of the first row, number behind the last]
        self.rows = 0
        for key, row in self._backend.items(agent_id):
            scope, number = key[: -_NUMBER.size], _NUMBER.unpack(key[-_NUMBER.size :])[0]
            bounds = self._bounds.setdefault(scope, [number, number])
            bounds[1] = number + 1
            self._count(1, len(row))

    def __contains__(self, scope: bytes) -> bool:
        return scope in self._bounds

    def __iter__(self) -> Iterator[bytes]:
        """Yields the encoded keys whose mailboxes contain rows."""
        return iter(self._bounds)

    def rows_of(self, scope: bytes) -> int:
        """Returns the number of rows in the mailbox of the key `scope`, which is 0 if there is none."""
        first, end = self._bounds.get(scope, (0, 0))
        return end - first

    def has_room(self, scope: bytes) -> bool:
        """Returns True if another row may be added to the mailbox of the key `scope`: neither this mailbox nor the
        mailboxes of the app together have reached their limits.
        """
        return self.rows_of(scope) < self._capacity and self._room.has_room

    def add(self, scope: bytes, row: bytes) -> None:
        """Adds a row at the end of the mailbox of the key `scope`. Does not check whether there is room."""
        bounds = self._bounds.setdefault(scope, [0, 0])
        self._backend.write(self._space, scope + _NUMBER.pack(bounds[1]), row)
        bounds[1] += 1
        self._count(1, len(row))

    def first(self, scope: bytes) -> bytes:
        """Returns the first row in the mailbox of the key `scope`, without removing it. The mailbox must contain a
        row.
        """
        row = self._backend.read(self._space, scope + _NUMBER.pack(self._bounds[scope][0]))
        assert row is not None
        return row

    def remove_first(self, scope: bytes) -> None:
        """Removes the first row from the mailbox of the key `scope`. Then calls the functions in `MailRoom.on_room`,
        because there is room for another row.
        """
        row, bounds = self.first(scope), self._bounds[scope]
        self._backend.write(self._space, scope + _NUMBER.pack(bounds[0]), None)
        bounds[0] += 1
        if bounds[0] == bounds[1]:
            del self._bounds[scope]
        self._count(-1, -len(row))
        for listener in self._room.on_room:
            listener()

    def _count(self, rows: int, nbytes: int) -> None:
        self.rows += rows
        self._room.rows += rows
        self._room.nbytes += nbytes
