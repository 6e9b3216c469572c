"""State in RocksDB, behind a write-back cache.

    write -> dirty ──(budget or cut)──> flushing ──(worker thread)──> RocksDB
    read  <- dirty <- flushing <- young <- old <- RocksDB

`dirty` and `flushing` (several dicts, the newest first) have entries that RocksDB does not have yet. `young` and `old`
have copies of RocksDB's entries, and None for keys that RocksDB is known not to have. When `young` is full it becomes
`old`, and the entries that were in `old` are dropped; so no order is kept per key.

Files in the directory of the backend:

    lock            locked by the one process that uses the directory
    db/<n>/         the database; it is never the authority: a start removes it, a restore builds it anew
    snapshots/<n>/  cuts that are neither saved nor discarded yet
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

from sabot.base.disk import make_folder, own_folder
from sabot.base.os_errors import checkpoint_error, hint_of
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.state.backends.database import StateDatabase, database_options, read_database, read_mark
from sabot.engine.state.base import (
    BackendConfig,
    BackendCut,
    ClosedTables,
    Entry,
    EntryFilter,
    LocalBackend,
    Snapshot,
    stored_entries,
)
from sabot.engine.state.expiry import Expiry
from sabot.engine.state.files import claim_directory, link_tree, remove_tree
from sabot.errors import CheckpointFailed, SabotError, UserError

_Entries = dict[bytes, bytes | None]
_UNKNOWN = b"\x00unknown"  # compared by identity
_ENTRY_BYTES = 150  # the overhead of an entry in bytes: two bytes objects and a slot of a dict
_IMPORT_BYTES = 32 << 20
_FEW = 10_000  # entries that are put into a dict in about a millisecond


class RocksDBCut(BackendCut):
    """A snapshot: a directory of hard links that RocksDB can open. The worker thread makes it, after it has written
    the dirty values.
    """

    path: Path

    def __init__(self, directory: Path, made: "Future[Exception | None]", *, sealed: bool) -> None:
        self.path = directory
        self.sealed = sealed
        self._made = made

    def wait(self) -> None:
        error = self._made.result()
        if error is not None:
            raise CheckpointFailed(
                f"state directory {self.path.parent.parent}: {error}", hint=hint_of(error)
            ) from error

    def entries(self) -> Iterator[Entry]:
        self.wait()
        return read_database(self.path)

    def save(self, directory: Path) -> int:
        self.wait()
        return link_tree(self.path, directory)

    def saved_in(self, directory: Path) -> "SavedDatabase":
        return SavedDatabase(directory)

    def discard(self) -> None:
        self._made.add_done_callback(lambda _: remove_tree(self.path))


class SavedDatabase(BackendCut):
    """The directory into which a RocksDBCut was saved. Its methods raise CorruptCheckpoint."""

    path: Path

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.sealed = read_mark(directory)

    def entries(self) -> Iterator[Entry]:
        return read_database(self.path)

    def save(self, directory: Path) -> int:
        return link_tree(self.path, directory)

    def saved_in(self, directory: Path) -> "SavedDatabase":
        return SavedDatabase(directory)


class _Table:
    """The entries of one namespace that are in memory."""

    __slots__ = ("dirty", "flushing", "old", "young")

    def __init__(self) -> None:
        self.dirty: _Entries = {}
        self.flushing: tuple[_Entries, ...] = ()
        self.young: _Entries = {}
        self.old: _Entries = {}


class RocksDBBackend(LocalBackend):
    """A backend for state that may be larger than memory. Of `memory_budget` a sixth is for dirty entries, a sixth
    for entries that are being flushed, a quarter for RocksDB's block cache, and the rest for copies of RocksDB's
    entries.

    A write blocks while the dirty entries fill their sixth and the flush before is still running. The constructor
    raises AppLocked if another process, or another backend, has the directory.
    """

    def __init__(self, config: BackendConfig, *, clock: Clock = SYSTEM_CLOCK, expiry: Expiry | None = None) -> None:
        """`expiry`: decides when values expire, instead of the config's ttl."""
        if config.backend_type != "rocksdb" or config.path is None:
            raise UserError(f"RocksDBBackend got a config for {config.backend_type!r}")
        self.config = config
        self.path = Path(config.path).absolute()
        self.expiry = Expiry(config.ttl_ms, clock) if expiry is None and config.ttl_ms is not None else expiry
        self.expires = self.expiry is not None
        self._dirty_limit = config.budget_bytes // 6
        self._young_limit = config.budget_bytes // 12
        self._dirty_bytes = self._flushing_bytes = self._young_bytes = self._old_bytes = 0
        self._tables: dict[str, _Table] = {}
        self._options = database_options(config.budget_bytes // 4, config.options)
        self._numbers = count(1)
        self._writes: list[Future[Exception | None]] = []
        self._dropped: list[_Entries] = []  # for the next write: freeing them takes longer than a barrier may
        self._failed: Exception | None = None
        self._claim = claim_directory(self.path)
        try:
            for name in ("db", "snapshots"):
                _wipe(self.path / name)
            self._database = self._open()
        except BaseException:
            self._claim.release()
            raise
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sabot-state")

    def read(self, namespace: str, key: bytes) -> bytes | None:
        table = self._tables.get(namespace) or self._table(namespace)
        value = table.dirty.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = self._cached(table, key)
            if value is _UNKNOWN:
                value = self._database.get(namespace, key)
                self._remember(table, key, value)
        return value if self.expiry is None else self.expiry.open(value)

    def write(self, namespace: str, key: bytes, value: bytes | None) -> None:
        table = self._tables.get(namespace) or self._table(namespace)
        if self.expiry is not None:
            value = self.expiry.seal(value)
        table.dirty[key] = value
        self._dirty_bytes += _size(key, value)
        if self._dirty_bytes > self._dirty_limit:
            self._make_room()

    def read_many(self, namespace: str, keys: Sequence[bytes]) -> list[bytes | None]:
        table = self._tables.get(namespace) or self._table(namespace)
        values = list(map(table.dirty.get, keys, [_UNKNOWN] * len(keys)))
        missing = []
        for place, value in enumerate(values):
            if value is _UNKNOWN:
                value = values[place] = self._cached(table, keys[place])
                if value is _UNKNOWN:
                    missing.append(place)
        if missing:
            found = self._database.get_many(namespace, [keys[place] for place in missing])
            for place, value in zip(missing, found, strict=True):
                values[place] = value
                self._remember(table, keys[place], value)
        return values if self.expiry is None else self.expiry.open_many(values)

    def write_many(self, namespace: str, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        table = self._tables.get(namespace) or self._table(namespace)
        if self.expiry is not None:
            values = self.expiry.seal_many(values)
        table.dirty.update(zip(keys, values, strict=True))
        self._dirty_bytes += sum(map(len, keys)) + sum(map(len, filter(None, values))) + _ENTRY_BYTES * len(keys)
        if self._dirty_bytes > self._dirty_limit:
            self._make_room()

    def items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        table = self._tables.get(namespace) or _Table()
        # In this order, because entries move from dirty to flushing to the database, even while another thread is in
        # this method.
        above: _Entries = {}
        for entries in reversed([table.dirty.copy(), *table.flushing]):
            above.update(entries)
        return self._alive(_merged(sorted(above.items()), self._database.items(namespace)))

    def _alive(self, pairs: Iterator[tuple[bytes, bytes | None]]) -> Iterator[tuple[bytes, bytes]]:
        for key, stored in pairs:
            value = stored if self.expiry is None else self.expiry.open(stored)
            if value is not None:
                yield key, value

    def namespaces(self) -> list[str]:
        known = {*list(self._tables), *self._database.namespaces()}
        return sorted(name for name in known if any(True for _ in self.items(name)))

    def statistics(self) -> dict[str, int]:
        """Returns `keys` and `bytes`, which are RocksDB's estimates plus the entries not flushed yet; `cached_*` and
        `dirty_*` count entries in memory.
        """
        tables = list(self._tables.values())
        dirty, dirty_bytes = sum(len(table.dirty) for table in tables), self._dirty_bytes
        # else RocksDB counts them
        if self._failed is not None or not all(write.done() for write in list(self._writes)):
            dirty += sum(len(entries) for table in tables for entries in table.flushing)
            dirty_bytes += self._flushing_bytes
        figures = self._database.statistics()
        return {
            "keys": figures["keys"] + dirty,
            "bytes": figures["bytes"] + dirty_bytes,
            "dirty_keys": dirty,
            "dirty_bytes": dirty_bytes,
            "cached_keys": sum(len(table.young) + len(table.old) for table in tables),
            "cached_bytes": self._young_bytes + self._old_bytes,
        }

    @property
    def is_empty(self) -> bool:
        return not self._dirty_bytes and not self._writes and not self._database.namespaces()

    def cut(self) -> RocksDBCut:
        self._tables.get("")  # raises on a closed backend
        if all(write.done() for write in self._writes):
            self._settle()
        directory = self.path / "snapshots" / str(next(self._numbers))
        return RocksDBCut(directory, self._start(directory), sealed=self.expires)

    def load(
        self, parts: Sequence[BackendCut | Snapshot], mine: EntryFilter | None = None, passed: bytes = b""
    ) -> None:
        self._tables.get("")
        self._settle()
        database = self._rebuilt(parts, mine, passed)
        previous, self._database = self._database, database
        self._tables = {}
        self._dirty_bytes = self._young_bytes = self._old_bytes = 0
        previous.close()
        remove_tree(previous.directory)

    def shut(self) -> None:
        if isinstance(self._tables, ClosedTables):
            return
        self._tables = ClosedTables()
        self._worker.shutdown()
        self._database.close()
        self._claim.release()

    def _table(self, namespace: str) -> _Table:
        return self._tables.setdefault(namespace, _Table())

    def _cached(self, table: _Table, key: bytes) -> bytes | None:
        """Returns the cached value of a key that is not dirty, or `_UNKNOWN` if it is not in memory."""
        for entries in table.flushing:
            value = entries.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                return value
        value = table.young.get(key, _UNKNOWN)
        if value is _UNKNOWN:
            value = table.old.get(key, _UNKNOWN)
            if value is not _UNKNOWN:
                self._remember(table, key, value)
        return value

    def _remember(self, table: _Table, key: bytes, value: bytes | None) -> None:
        table.young[key] = value
        self._young_bytes += _size(key, value)
        if self._young_bytes > self._young_limit:
            self._age()

    def _age(self) -> None:
        for table in self._tables.values():
            table.old, table.young = table.young, {}
        self._old_bytes, self._young_bytes = self._young_bytes, 0

    def _make_room(self) -> None:
        """Starts a flush of the dirty entries in the worker thread. Raises SabotError if an earlier flush has failed."""
        dirty = [table.dirty for table in self._tables.values()]
        if _ENTRY_BYTES * sum(map(len, dirty)) < self._dirty_limit // 4:  # few keys, perhaps written again and again
            self._dirty_bytes = sum(_size(key, value) for entries in dirty for key, value in entries.items())
            if self._dirty_bytes <= self._dirty_limit // 2:
                return
        error = self._settle()
        if error is not None:
            raise SabotError(f"state directory {self.path}: {error}", hint=hint_of(error)) from error
        self._start(None)

    def _start(self, directory: Path | None) -> "Future[Exception | None]":
        """Queues a flush of all dirty entries after the queued ones. With `directory`, a checkpoint of the database
        follows it.
        """
        parts = []
        for namespace, table in self._tables.items():
            if table.dirty:
                parts.append((namespace, table.dirty))
                table.flushing = (table.dirty, *table.flushing)
                table.dirty = {}
        self._flushing_bytes += self._dirty_bytes
        self._dirty_bytes = 0
        passed = None if self.expiry is None else self.expiry.passed_mark()
        dropped, self._dropped = self._dropped, []
        write = self._worker.submit(self._write_out, parts, directory, passed, dropped)
        self._writes.append(write)
        return write

    def _write_out(
        self, parts: list[tuple[str, _Entries]], directory: Path | None, passed: bytes | None, dropped: list[_Entries]
    ) -> Exception | None:
        """Writes entries to the database, in the worker thread. Returns an error instead of raising it; the owner
        then still has all entries.

        `passed`: before a checkpoint, values that had expired by this mark are removed from the database. `dropped`:
        entries to free.
        """
        for entries in dropped:
            while entries:  # one by one, because freeing a dict as a whole would make the owner wait
                entries.popitem()
        if self._failed is not None:
            return self._failed  # the entries that an earlier write could not write belong to this cut too
        try:
            for namespace, entries in parts:
                self._database.write(namespace, entries)
            if directory is not None:
                if passed is not None:
                    self._database.remove_expired(passed)
                self._database.checkpoint(directory)
        except Exception as error:
            self._failed = error
        return self._failed

    def _settle(self) -> Exception | None:
        """Waits for all writes. Entries that were written become clean copies; if a write has failed, all become
        dirty again. Returns the error or None.
        """
        if not self._writes:
            return None
        for write in self._writes:
            write.result()
        self._writes = []
        error, self._failed = self._failed, None
        few = sum(len(entries) for table in self._tables.values() for entries in table.flushing) <= _FEW
        fits = few and self._young_bytes + self._flushing_bytes <= self._young_limit
        if error is None and not fits:
            self._dropped += [table.old for table in self._tables.values()]
            self._age()
        for table in self._tables.values():
            flushing, table.flushing = table.flushing, ()
            if error is not None:
                for entries in flushing:
                    table.dirty = {**entries, **table.dirty}
            elif fits:
                for entries in reversed(flushing):
                    table.young.update(entries)
            elif flushing:
                table.young = flushing[0]
                if len(flushing) > 1:  # copies older than the two newest dicts must not be read any more
                    self._dropped += [table.old, *flushing[2:]]
                    table.old = flushing[1]
        if error is None:
            self._young_bytes += self._flushing_bytes
        else:
            self._dirty_bytes += self._flushing_bytes
        self._flushing_bytes = 0
        return error

    def _open(self) -> StateDatabase:
        directory = self.path / "db" / str(next(self._numbers))
        try:
            return StateDatabase(directory, self._options, sealed=self.expires)
        except Exception as error:  # rocksdict has no exception class of its own for RocksDB's errors
            raise UserError(f"state directory {self.path}: {error}", hint=hint_of(error)) from error

    def _rebuilt(
        self, parts: Sequence[BackendCut | Snapshot], mine: EntryFilter | None, passed: bytes
    ) -> StateDatabase:
        directory = self.path / "db" / str(next(self._numbers))
        source = parts[0] if len(parts) == 1 and mine is None else None
        try:
            if isinstance(source, RocksDBCut | SavedDatabase) and source.sealed == self.expires:
                source.wait()
                make_folder(directory)
                link_tree(source.path, directory)
                return StateDatabase(directory, self._options, sealed=self.expires)
            database = StateDatabase(directory, self._options, sealed=self.expires)
            try:
                self._import(database, stored_entries(parts, mine, passed, self.expiry))
            except BaseException:
                database.close()
                raise
            return database
        except BaseException as error:
            remove_tree(directory)
            if isinstance(error, SabotError) or not isinstance(error, Exception):
                raise
            raise checkpoint_error(f"{parts[0].path}: cannot be restored", error) from error

    def _import(self, database: StateDatabase, entries: Iterator[Entry]) -> None:
        part: _Entries = {}
        size = 0
        current = ""
        for namespace, key, value in entries:
            if namespace != current or size > _IMPORT_BYTES:
                database.write(current, part)
                current, part, size = namespace, {}, 0
            part[key] = value
            size += _size(key, value)
        database.write(current, part)


def _size(key: bytes, value: bytes | None) -> int:
    return len(key) + _ENTRY_BYTES + (0 if value is None else len(value))


def _merged(
    above: list[tuple[bytes, bytes | None]], below: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes | None]]:
    """Merges two sequences in key order. Of equal keys the entry of `above` wins."""
    place = 0
    for key, value in below:
        while place < len(above) and above[place][0] < key:
            yield above[place]
            place += 1
        if place < len(above) and above[place][0] == key:
            yield above[place]
            place += 1
        else:
            yield key, value
    yield from above[place:]


def _wipe(directory: Path) -> None:
    """Empties the directory: files of an earlier process are not needed. Raises UserError for a file that is not from
    Sabot.
    """
    own_folder(directory)
    for entry in directory.iterdir():
        if not entry.name.split(".")[0].isdigit():
            raise UserError(f"{entry} was not made by Sabot", hint="give the state a directory that nothing else uses")
    for entry in directory.iterdir():
        if entry.is_dir():
            remove_tree(entry)
        else:
            entry.unlink()
