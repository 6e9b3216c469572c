"""Checkpoints on a file system: a checkpoint is there completely or not at all.

    <directory>/LOCK                 held by the worker that owns the job
    <directory>/chk-0000000007/      complete: manifest.json and every file that it lists
    <directory>/chk-0000000008.tmp/  being written, or left over from a crash: never read
    <directory>/kept-….tmp/          of this run: what later checkpoints link from

A checkpoint is written into its `.tmp` directory, made durable from the leaves up (files, directories, the
manifest last), and gets its final name by one rename. So a crash between any two steps leaves the checkpoint
before or the new one, never a mix; an old checkpoint leaves the same way back, by a rename to `.tmp`. No step
relies on the order in which a file system persists two others without an fsync between them (Pillai et al.,
"All File Systems Are Not Created Equal", OSDI 2014).
"""

import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from sabot.errors import CheckpointFailed, CorruptCheckpoint, InternalError, JobLocked, UserError

__all__ = ["FORMAT_VERSION", "CheckpointStorage", "Manifest", "StoredFile", "StoredLane", "StoredPart", "StoredTask"]

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_COMPLETE = re.compile(r"chk-(\d{10,})")
_TEMPORARY = re.compile(r"(chk-\d{10,}|kept-.+)\.tmp")
_READ_BYTES = 1 << 20
_Inode = tuple[int, int]  # device, number
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoredFile(msgspec.Struct, frozen=True):
    """Length in bytes and CRC-32 of a file."""

    size: int
    crc32: int


class StoredTask(msgspec.Struct, frozen=True):
    """One task in a checkpoint. `files` and `states`: name -> path relative to the checkpoint's directory."""

    meta: dict[str, Any] = {}
    files: dict[str, str] = {}
    states: dict[str, str] = {}


class StoredPart(msgspec.Struct, frozen=True):
    """Output that waits to be delivered: its number, its file (a path in the manifest's contents), its rows."""

    seq: int
    file: str
    rows: int


class StoredLane(msgspec.Struct, frozen=True):
    """The output of one exactly-once sink: the highest seq given out, the highest known to be delivered, what waits."""

    sink: str  # its name, for people
    given: int = 0
    delivered: int = 0
    pending: list[StoredPart] = []


class Manifest(msgspec.Struct, frozen=True):
    """What a checkpoint holds.

    `contents` lists every file by its path relative to `path`, which is None for a checkpoint kept in memory.
    incarnation: of the job, made at its fresh start. generation: of the run that wrote this.
    """

    checkpoint_id: int
    created_ms: int
    describe: dict[str, Any] = {}
    tasks: dict[str, StoredTask] = {}
    lanes: dict[str, StoredLane] = {}
    incarnation: str = ""
    generation: int = 0
    contents: dict[str, StoredFile] = {}
    path: Path | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all files listed."""
        return sum(file.size for file in self.contents.values())

    def read_file(self, task: str, name: str) -> bytes:
        """The blob that the task put into its snapshot under this name."""
        return (self._directory() / self.tasks[task].files[name]).read_bytes()

    def state_directory(self, task: str, name: str) -> Path:
        """The directory that the state snapshot of this name was saved into: to read, never to write."""
        return self._directory() / self.tasks[task].states[name]

    def _directory(self) -> Path:
        if self.path is None:
            raise InternalError(f"checkpoint {self.checkpoint_id} was kept in memory only: it has no files")
        return self.path


class _Envelope(msgspec.Struct):
    """manifest.json: the body's own bytes stay as written, so that their checksum can be compared."""

    format_version: int
    crc32: int
    body: msgspec.Raw


class CheckpointStorage:
    """The checkpoints of one job in one directory; the newest `retain` of them are kept.

    All methods may block on the disk, and may be called from any thread; those that write exclude each other.
    Writing needs the lock, and takes it if `lock` was not called before.
    """

    def __init__(self, directory: str | os.PathLike[str], retain: int = 3) -> None:
        if retain < 1:
            raise UserError(f"retain={retain}: the newest checkpoint is always kept", hint="give 1 or more")
        self.directory = Path(directory).absolute()
        self.retain = retain
        self._lock_file: int | None = None
        self._exclusive = threading.RLock()
        # State files that are hard links come again in every checkpoint: they are read and synced once. Only what
        # the newest checkpoint holds is known here, so no inode can have been freed and used again.
        # -> (size, mtime in ns, file)
        self._durable: dict[_Inode, tuple[int, int, StoredFile]] = {}

    # Owning the directory

    def lock(self) -> None:
        """Own the directory until `unlock` or the end of the process, however it ends.

        Removes what a crash left unfinished. Raises JobLocked when another worker owns it. Idempotent.
        """
        with self._exclusive:
            if self._lock_file is not None:
                return
            try:
                self._lock_file = self._take_lock()
                for entry in self._entries():
                    if _TEMPORARY.fullmatch(entry):
                        _log.info("removing what a crash left in %s", self.directory / entry)
                        shutil.rmtree(self.directory / entry)
            except OSError as error:
                self.unlock()
                raise UserError(
                    f"checkpoint directory {self.directory} cannot be used: {error.strerror or error}",
                    hint="make room there and make it writable, or give another one (checkpoint_dir=)",
                ) from error

    def unlock(self) -> None:
        """Another worker may own the directory now. Idempotent."""
        with self._exclusive:
            if self._lock_file is not None:
                os.close(self._lock_file)  # the file itself stays: removing it would let two workers in
                self._lock_file = None

    def _take_lock(self) -> int:
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(descriptor, 400, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise JobLocked(
                f"{self.directory} is in use by {owner or 'another process'}",
                hint="stop that process first, or give this job another directory (checkpoint_dir=)",
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    # Writing one

    def begin(self, checkpoint_id: int) -> Path:
        """An empty directory to write this checkpoint's files into."""
        with self._exclusive, self.explained():
            self.lock()
            unfinished = self._unfinished(checkpoint_id)
            if unfinished.exists():
                shutil.rmtree(unfinished)
            unfinished.mkdir()
            return unfinished

    def commit(self, checkpoint_id: int, manifest: Manifest) -> Manifest:
        """Makes durable what was written since `begin`, adds the manifest, gives the checkpoint its name.

        Returns the manifest with `contents` and `path`. Raises CheckpointFailed; `abort` then cleans up.
        """
        with self._exclusive, self.explained():
            self.lock()
            unfinished, complete = self._unfinished(checkpoint_id), self._complete(checkpoint_id)
            if complete.exists():
                raise CheckpointFailed(
                    f"{complete} exists already",
                    hint="two jobs may be using one directory: give each its own checkpoint_dir",
                )
            durable = self._sync_tree(unfinished)
            contents = {name: file for name, (_, _, _, file) in durable.items()}
            manifest = msgspec.structs.replace(manifest, contents=contents, path=complete)
            _write_durably(unfinished / _MANIFEST, _encode(manifest))
            _sync_directory(unfinished)
            os.rename(unfinished, complete)
            try:
                _sync_directory(self.directory)
            except OSError:
                os.rename(complete, unfinished)  # failed means gone: the caller keeps to the one before
                raise
            self._durable = {inode: (size, mtime, file) for inode, size, mtime, file in durable.values()}
            return manifest

    def abort(self, checkpoint_id: int) -> None:
        """Removes what was written since `begin`. Idempotent. What resists goes with the next `lock`."""
        with self._exclusive:
            unfinished = self._unfinished(checkpoint_id)
            if unfinished.exists():
                shutil.rmtree(unfinished, ignore_errors=True)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Around what writes below `begin`'s directory: OSError -> CheckpointFailed that names the directory."""
        try:
            yield
        except OSError as error:
            raise CheckpointFailed(
                f"it could not be written to {self.directory}: {error.strerror or error}",
                hint="make room there; the next checkpoint tries again" if error.errno in _NO_ROOM else "",
            ) from error

    def keep(self) -> Path:
        """A new directory, until the caller removes it or the next `lock`: on the same disk, so that files can be linked."""
        with self._exclusive, self.explained():
            self.lock()
            return Path(tempfile.mkdtemp(prefix="kept-", suffix=".tmp", dir=self.directory))

    def drop_old(self) -> None:
        """Removes all but the newest `retain` checkpoints."""
        with self._exclusive:
            self._drop(self.ids()[: -self.retain])

    def clear(self) -> None:
        """Removes all checkpoints, the oldest first: the job starts afresh."""
        with self._exclusive:
            self.lock()
            self._durable = {}
            self._drop(self.ids())

    # Reading

    def ids(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        return sorted(int(match[1]) for entry in self._entries() if (match := _COMPLETE.fullmatch(entry)))

    def last_id(self) -> int:
        """The newest complete checkpoint's id; 0 without one."""
        return max(self.ids(), default=0)

    def latest(self) -> Manifest | None:
        """The newest complete checkpoint, verified; None without one.

        Raises CorruptCheckpoint when it cannot be used. Going back to an older one by itself would deliver
        again what is delivered already, so the error leaves that choice to the user, and spells it out.
        """
        newest = self.last_id()
        if newest == 0:
            return None
        manifest = self.read(newest)
        self.verify(manifest)
        return manifest

    def manifests(self) -> list[Manifest]:
        """All complete checkpoints, oldest first, not verified. Raises CorruptCheckpoint, as `read`."""
        return [self.read(checkpoint_id) for checkpoint_id in self.ids()]

    def read(self, checkpoint_id: int) -> Manifest:
        """The manifest of this checkpoint. Raises CorruptCheckpoint naming the file."""
        with self._with_ways_on(checkpoint_id):
            return _read(self._complete(checkpoint_id))

    def verify(self, manifest: Manifest) -> None:
        """Compares every file with the manifest. Raises CorruptCheckpoint naming the first that differs."""
        with self._with_ways_on(manifest.checkpoint_id):
            _verify(manifest)

    # Below: how

    def _complete(self, checkpoint_id: int) -> Path:
        return self.directory / f"chk-{checkpoint_id:010d}"

    def _unfinished(self, checkpoint_id: int) -> Path:
        return self.directory / f"chk-{checkpoint_id:010d}.tmp"

    def _entries(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []

    def _drop(self, checkpoint_ids: list[int]) -> None:
        if not checkpoint_ids:
            return
        for checkpoint_id in checkpoint_ids:  # half removed must not look complete
            os.rename(self._complete(checkpoint_id), self._unfinished(checkpoint_id))
        _sync_directory(self.directory)
        for checkpoint_id in checkpoint_ids:
            shutil.rmtree(self._unfinished(checkpoint_id))

    def _sync_tree(self, root: Path) -> dict[str, tuple[_Inode, int, int, StoredFile]]:
        """Every file and directory below `root` is durable; -> what is there, by relative path."""
        found = {}
        for folder, _, names in os.walk(root, topdown=False, onerror=_raise):
            for name in names:
                path = Path(folder, name)
                status = path.stat()
                inode, size, mtime = (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
                known = self._durable.get(inode)
                file = known[2] if known is not None and known[:2] == (size, mtime) else _sync_file(path)
                found[path.relative_to(root).as_posix()] = (inode, size, mtime, file)
            if Path(folder) != root:
                _sync_directory(Path(folder))
        return dict(sorted(found.items()))

    @contextmanager
    def _with_ways_on(self, checkpoint_id: int) -> Iterator[None]:
        """CorruptCheckpoint gets the hint that names the ways on."""
        try:
            yield
        except CorruptCheckpoint as error:
            error.hint += self._ways_on(checkpoint_id)
            raise

    def _ways_on(self, corrupt: int) -> str:
        """Remove directories down to the newest good checkpoint, or start afresh."""
        bad = [corrupt]
        for older in reversed([each for each in self.ids() if each < corrupt]):
            try:
                _verify(_read(self._complete(older)))
            except CorruptCheckpoint:
                bad.append(older)
                continue
            remove = " and ".join(str(self._complete(each)) for each in bad)
            return (
                f"remove {remove} to go back to checkpoint {older}: what came after it is then processed "
                "and delivered again; or start with --fresh, which forgets all state"
            )
        return "no older checkpoint can be read either: start with --fresh, which forgets all state"


def _encode(manifest: Manifest) -> bytes:
    body = {name: value for name, value in msgspec.structs.asdict(manifest).items() if name != "path"}
    try:
        encoded = msgspec.json.encode(body)
    except (TypeError, ValueError, OverflowError) as error:
        raise InternalError(
            f"its manifest cannot be written as JSON: {error}",
            hint="`describe` and the `meta` of each task take JSON values with string keys",
        ) from error
    return msgspec.json.encode(_Envelope(FORMAT_VERSION, zlib.crc32(encoded), msgspec.Raw(encoded)))


def _read(directory: Path) -> Manifest:
    path = directory / _MANIFEST
    try:
        envelope = msgspec.json.decode(path.read_bytes(), type=_Envelope)
        if envelope.format_version > FORMAT_VERSION:
            raise CorruptCheckpoint(
                f"{path} was written by a newer Sabot: it has format {envelope.format_version}, not {FORMAT_VERSION}",
                hint="install that version again; or ",
            )
        if zlib.crc32(bytes(envelope.body)) != envelope.crc32:
            raise CorruptCheckpoint(f"{path} is damaged: its checksum differs")
        manifest = msgspec.json.decode(envelope.body, type=Manifest)
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptCheckpoint(f"{path} is damaged: {error}") from error
    return msgspec.structs.replace(manifest, path=directory)


def _verify(manifest: Manifest) -> None:
    directory = manifest._directory()
    for name, stored in manifest.contents.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != stored.size:
                raise CorruptCheckpoint(f"{path} is damaged: {size} bytes, not {stored.size}")
            with path.open("rb") as file:
                found = _crc32(file.fileno())
        except OSError as error:
            raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
        if found.crc32 != stored.crc32:
            raise CorruptCheckpoint(f"{path} is damaged: its checksum differs")
    for task in manifest.tasks.values():
        for state in task.states.values():
            if not (directory / state).is_dir():
                raise CorruptCheckpoint(f"{directory / state} is missing")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_file(path: Path) -> StoredFile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return _crc32(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32(descriptor: int) -> StoredFile:
    size = checksum = 0
    while chunk := os.read(descriptor, _READ_BYTES):
        size += len(chunk)
        checksum = zlib.crc32(chunk, checksum)
    return StoredFile(size, checksum)


def _raise(error: OSError) -> None:
    raise error
