"""The checkpoints of an app, in a directory or an object store: stores them, reads them, removes old ones (`drop_old`).

A checkpoint exists completely or not at all.

    <root>/LOCK                                    only in a directory: locked by the worker that owns the app
    <root>/claims/0000000003-<uuid>                the claim of generation 3 of the app
    <root>/checkpoints/0000000007-0000000003.json  manifest of checkpoint 7, made by generation 3: it never changes
    <root>/copies/<hash>.json                      the app's note of a savepoint (`savepoints`)
    <root>/files/ab/ab12…-3                        contents by their SHA-256, shared by all checkpoints that list them
    <root>/scratch/                                only in a directory: files that this run is writing, or has restored
    <root>/reading-…/                              only in a directory: files restored by a process that only reads

The files of a checkpoint are moved to their names first; then its manifest is created, in one step. So a crash between
any two steps leaves the previous checkpoint or the new one, never a mix. Contents that are stored already are not stored
again, and a file that an earlier checkpoint has too (the same inode) is not even read again. An old checkpoint is
removed in the opposite order: its manifest first, then the files that no other manifest lists. `protocol` decides which
worker owns the app, which checkpoints count and which files may be removed; `places` stores the bytes.
"""

import logging
import shutil
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from sabot.base.disk import make_folder
from sabot.base.os_errors import checkpoint_error, hint_of
from sabot.engine.checkpoint.contents import ContentsWriter, files_below, sha256_of_each
from sabot.engine.checkpoint.encoding import decode_manifest, encode_manifest, folders_of_format_1, refuse_format_1
from sabot.engine.checkpoint.manifest import Manifest
from sabot.engine.checkpoint.ownership import Ownership, claims_in, marks_in
from sabot.engine.checkpoint.places import LocalPlace, Location, StoredFile, check_files, each, place_of
from sabot.engine.checkpoint.protocol import (
    Mark,
    counting,
    half_written,
    manifest_name,
    outdated,
    unlisted,
)
from sabot.engine.checkpoint.savepoints import (
    SavepointNote,
    drop_savepoint,
    forget_savepoint,
    is_savepoint,
    make_savepoint,
    note_savepoint,
    savepoints_of,
)
from sabot.errors import CheckpointFailed, CorruptCheckpoint, TransientError, UserError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class CheckpointStorage:
    """The checkpoints of one app in one place; the newest `retain` of them are kept.

    `location`: a directory, a URI of a file system that pyarrow knows (`s3://bucket/path`), or a pyarrow FileSystem
    and a path. `scratch`: for a remote location, a folder on this machine for files being written; best on the disk
    of the state, so that files are linked and not copied. `directory` is the directory's path, or a URI for messages.

    All methods may block on the disk or the network, and may be called from any thread; those that write exclude each
    other. Writing needs the lock, and takes it if `lock` was not called before. After `unlock` only `lock` takes it
    again, and writing raises CheckpointFailed: a thread of a run that has ended must not own the app for ever.
    """

    def __init__(self, location: Location, retain: int = 3, *, scratch: Path | None = None) -> None:
        if retain < 1:
            raise UserError(f"retain={retain}: the newest checkpoint is always kept", hint="give 1 or more")
        self._place = place_of(location, scratch)
        self.directory: Path | str = self._place.where
        self.retain = retain
        self._exclusive = threading.RLock()
        self._ownership = Ownership(self._place)
        self._unlocked = False  # by `unlock`
        self._begun: set[int] = set()  # checkpoints whose files are being written
        # By hash, the contents that a new checkpoint may use: those of the checkpoint from which the app started, and
        # those stored since.
        self._stored: dict[str, StoredFile] = {}
        # The files of each manifest that was written or read here. A file is removed when no manifest lists it any
        # more.
        self._known: dict[Mark, frozenset[str]] = {}
        self._listed: Counter[str] = Counter()
        self._unreadable: set[Mark] = set()
        self._swept = False
        self._pinned: Counter[Mark] = Counter()
        self._unneeded: deque[StoredFile] = deque()

    # Ownership

    @property
    def generation(self) -> int:
        """The generation of this run, greater than those of all earlier runs; 0 without the lock."""
        return 0 if self._ownership.claim is None else self._ownership.claim.generation

    def lock(self) -> None:
        """Makes this worker the owner of the app, until `unlock`, the end of the process, or another worker takes it
        over. Idempotent. Raises UserError if the place cannot be written.

        In a directory, another worker on the same machine gets AppLocked while this process lives. In an object
        store, the worker that locks later becomes the owner, and the earlier owner finds out at its next checkpoint
        or `check_owner`.
        """
        with self._exclusive:
            self._unlocked = False
            if self._ownership.claim is not None:
                return
            try:
                self._place.own()
                self._ownership.take()
                self._place.doubt = self.check_owner
                self._ownership.tidy()
                self._build_upon_newest()
            except OSError as error:
                self._release()
                raise UserError(
                    f"checkpoint directory {self.directory} cannot be used: {error.strerror or error}",
                    hint=hint_of(error, self._place.advice(error)),
                ) from error
            except BaseException:
                self._release()
                raise

    def _need_lock(self) -> None:
        """Takes the lock, unless `unlock` was called. Raises CheckpointFailed then, and the errors of `lock`."""
        if self._unlocked:
            raise CheckpointFailed(f"{self.directory} is not written any more: the run that owned it has ended")
        self.lock()

    def claim_above(self, generation: int) -> None:
        """Makes `self.generation` greater than `generation`, which was used elsewhere. Raises the errors of `lock`."""
        with self._exclusive, self.explained():
            self._need_lock()
            if self.generation <= generation:
                self.check_owner()
                self._ownership.take(above=generation)

    def check_owner(self) -> None:
        """Raises AppLocked if another worker has taken the app over. Does not wait for a checkpoint that is being
        written.
        """
        with self.explained():
            self._ownership.renew()

    def unlock(self) -> None:
        """Lets another worker own the app, and removes restored files. Idempotent."""
        with self._exclusive:
            self._unlocked = True
            self._release()

    def _release(self) -> None:
        if self._place.owned:
            self._place.release()
            self._place.disown()
        self._place.known = {}
        self._place.doubt = lambda: None
        self._ownership.release()
        self._begun.clear()
        self._forget()

    def _build_upon_newest(self) -> None:
        marks = self._counting()
        if marks:
            try:
                manifest = self._read(marks[-1])
            except CorruptCheckpoint:  # `latest` will raise it
                return
            self._stored = {file.sha256: file for file in manifest.contents.values()}

    @property
    def request_folder(self) -> Path | None:
        """The folder of requests, see `Place.request_folder`: the directory, or the folder next to the state of an app
        whose checkpoints are in an object store.
        """
        return self._place.request_folder

    def in_use(self) -> bool:
        """Returns True if a worker owns the app now. Always False for an object store, which has no lock."""
        return self._place.in_use()

    # Writing a checkpoint

    def begin(self, checkpoint_id: int) -> Path:
        """Returns an empty directory on this machine for this checkpoint's files."""
        with self._exclusive, self.explained():
            self._need_lock()
            unfinished = self._unfinished(checkpoint_id)
            if unfinished.exists():
                shutil.rmtree(unfinished)
            make_folder(unfinished)
            self._begun.add(checkpoint_id)
            return unfinished

    def commit(
        self,
        checkpoint_id: int,
        manifest: Manifest,
        stored: Mapping[str, StoredFile] | None = None,
        seconds: Callable[[], float] | None = None,
    ) -> Manifest:
        """Stores the files that were written since `begin`, then the manifest. After that the checkpoint is complete.

        `stored`: files that workers have stored already (`writer`), by their path in the checkpoint. `seconds`: returns
        the time since the begin of the checkpoint, for the manifest. Returns the
        manifest with its `contents`, `generation` and location. Raises CheckpointFailed, after which `abort` cleans
        up, and AppLocked if another worker has taken the app over; then the checkpoint does not count. Also raises
        CheckpointFailed after `abort`, which a thread that still writes files does not notice: some are missing.
        """
        with self._exclusive, self.explained():
            self._need_lock()
            if checkpoint_id not in self._begun:
                raise CheckpointFailed(f"checkpoint {checkpoint_id} was given up while its files were written")
            mark = Mark(self.generation, checkpoint_id)
            name = f"checkpoints/{manifest_name(mark)}"
            contents, known = self._store_all(self._unfinished(checkpoint_id))
            contents = dict(sorted((contents | dict(stored or {})).items()))
            took = manifest.seconds if seconds is None else round(seconds(), 6)
            manifest = msgspec.structs.replace(manifest, contents=contents, generation=self.generation, seconds=took)
            encoded = encode_manifest(manifest)
            self.check_owner()
            try:
                self._place.create(name, encoded, "manifest")
            except FileExistsError as error:
                raise CheckpointFailed(
                    f"{self._place.locate(name)} exists already",
                    hint="two apps may be using one directory: give each its own checkpoint_dir",
                ) from error
            except OSError:
                if not isinstance(self._place, LocalPlace):  # an object store may have it in spite of the error
                    self._learn(mark, contents.values())
                self._ownership.renew()
                raise
            self._learn(mark, contents.values())
            self.check_owner()
            self._place.known = known
            pinned = (self._known.get(mark, frozenset()) for mark in self._pinned)  # they are being copied
            self._place.drop_copies({file.name for file in contents.values()}.union(*pinned))
            self.abort(checkpoint_id)
            return self._here(manifest, mark)

    def abort(self, checkpoint_id: int) -> None:
        """Removes the files written since `begin`. Idempotent. The next `lock` removes files that cannot be removed
        now.
        """
        with self._exclusive:
            self._begun.discard(checkpoint_id)
            if self._place.owned:
                shutil.rmtree(self._unfinished(checkpoint_id), ignore_errors=True)

    def unneeded(self, files: Iterable[StoredFile]) -> None:
        """Notes that no worker needs these files any more: the next `drop_old` that can read all manifests removes
        those that no manifest lists. Does not block.
        """
        self._unneeded.extend(files)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Wraps code that writes below the directory of `begin`: an OSError becomes a CheckpointFailed that names the
        place. Raises StorageLost if the directory of the checkpoints was removed.
        """
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self._ownership.check_place()
            raise CheckpointFailed(
                f"it could not be written to {self.directory}: {error.strerror or error}",
                hint=f"{hint}; the next checkpoint tries again" if (hint := hint_of(error)) else "",
            ) from error

    def keep(self) -> Path:
        """Returns a new directory on the disk of the checkpoints, so that its files can be linked into them. It stays
        until the caller removes it, or until the next `lock`.
        """
        with self._exclusive, self.explained():
            self._need_lock()
            return Path(tempfile.mkdtemp(prefix="kept-", dir=self._place.scratch))

    def drop_old(self) -> int | None:
        """Removes all but the newest `retain` checkpoints, and the files that none of these lists.

        Returns the id of the oldest remaining one, to which a start can still go back, or None if none is left.
        Savepoints in other places do not count.
        """
        with self._exclusive:
            self._need_lock()
            self._learn_all()
            gone = outdated(
                {*self._known, *self._unreadable},
                self._ownership.seen,
                self._ownership.mine,
                self.retain,
                set(self._pinned),
            )
            self._drop(gone)
            left = {mark.checkpoint_id for mark in self._known} | {mark.checkpoint_id for mark in self._unreadable}
            return min(left, default=None)

    def withdraw(self, manifest: Manifest) -> None:
        """Removes a checkpoint from which no run has gone on, so that the one before it is the newest again."""
        with self._exclusive:
            self._need_lock()
            self._learn_all()
            self._drop([Mark(manifest.generation, manifest.checkpoint_id)])

    def clear(self) -> None:
        """Makes the app start afresh, in a new generation: no earlier checkpoint counts any more. The change is
        atomic.
        """
        with self._exclusive:
            self._need_lock()
            with self.explained():
                self.check_owner()
                self._ownership.take(afresh=True)
                self._place.known = {}
                self._forget()
                if isinstance(self._place, LocalPlace):
                    for folder in folders_of_format_1(self._place.where):
                        shutil.rmtree(folder)
            self.drop_old()
            self._learn_all()  # now, if a damaged manifest was in the way: later, workers have files that none lists yet

    def copy_to(self, manifest: Manifest, location: Location) -> Path | str:
        """Makes a savepoint: a copy of the checkpoint in a place of its own, from which nothing is removed. Returns
        that place.

        `CheckpointStorage(location).latest()` reads it. Files are linked if both are on one disk. The manifest is
        written last, so a failed copy is not a savepoint, and may be made again. If it needs a journal, a note of it
        is written first (`savepoints`). Raises CheckpointFailed, and UserError if the place has a checkpoint.
        """
        with self.pinned(manifest):
            return make_savepoint(self._place, manifest, location)

    def note(self, manifest: Manifest, location: Location) -> None:
        """Notes that a start may go back to a savepoint that the app has made in another directory. Does nothing if
        the location has an app's own checkpoints instead of a savepoint. Raises CheckpointFailed.
        """
        with self._exclusive, self.explained():
            if is_savepoint(location):
                note_savepoint(self._place, manifest, location)

    def savepoints(self) -> list[SavepointNote]:
        """Returns the savepoints of this app that need a journal, without missing ones. Raises CheckpointFailed,
        CorruptCheckpoint.
        """
        with self.explained():
            return savepoints_of(self._place, tidy=self._place.owned)

    def drop_savepoint(self, location: Location) -> None:
        """Removes a savepoint of this app. The journal then no longer keeps entries for it. Raises UserError,
        CheckpointFailed.
        """
        drop_savepoint(location)
        with self.explained():
            forget_savepoint(self._place, location)

    @contextmanager
    def pinned(self, manifest: Manifest) -> Iterator[None]:
        """Keeps this checkpoint and its files from `drop_old` inside of a `with` statement."""
        with self._exclusive:
            self._pinned[manifest.mark] += 1
        try:
            yield
        finally:
            with self._exclusive:
                self._pinned[manifest.mark] -= 1
                if not self._pinned[manifest.mark]:
                    del self._pinned[manifest.mark]

    # Files of workers

    @property
    def is_remote(self) -> bool:
        """True for an object store: each worker of a distributed app stores its files there itself."""
        return not isinstance(self._place, LocalPlace)

    def writer(self, generation: int, name: str) -> ContentsWriter:
        """Returns the writer with which a worker stores files. `generation`: that of its coordinator."""
        return ContentsWriter(self._place, generation, name)

    def fetched(self, stored: StoredFile) -> Path:
        """Returns a copy on this machine of a file that a worker has stored; it may be removed when no checkpoint
        lists it. Raises TransientError and CorruptCheckpoint.
        """
        try:
            return self._place.fetch(stored)
        except OSError as error:
            raise TransientError(
                f"{self._place.locate(stored.name)} cannot be read: {error.strerror or error}", hint=hint_of(error)
            ) from error

    # Reading

    def ids(self) -> list[int]:
        """Returns the ids of the complete checkpoints, oldest first."""
        return list(dict.fromkeys(mark.checkpoint_id for mark in self._counting()))

    def last_id(self) -> int:
        """Returns the greatest id of a complete checkpoint, or 0."""
        return max(self.ids(), default=0)

    def latest(self) -> Manifest | None:
        """Returns the newest complete checkpoint, checked, or None. Remote files are compared when they are fetched.

        Raises CorruptCheckpoint if it cannot be used. To go back to an older checkpoint without asking would deliver
        output again, so the error leaves that choice to the user, and names the commands.
        """
        while marks := self._counting():
            try:
                with self._with_recovery_hint(marks[-1]):
                    manifest = self._read(marks[-1])
                    check_files(self._place, manifest.contents)
                    return manifest
            except CorruptCheckpoint:
                if marks[-1] in marks_in(self._place):
                    raise
                # The owner of the app has removed this checkpoint in the meantime, and there are newer ones.
        if isinstance(self._place, LocalPlace):
            refuse_format_1(self._place.where)
        return None

    def manifests(self) -> list[Manifest]:
        """Returns the manifests of all complete checkpoints, oldest first. Their files are not checked. Raises
        CorruptCheckpoint like `read`.
        """
        return [self.read(checkpoint_id) for checkpoint_id in self.ids()]

    def read(self, checkpoint_id: int) -> Manifest:
        """Returns the manifest of this checkpoint. Raises CorruptCheckpoint naming the file."""
        marks = [mark for mark in self._counting() if mark.checkpoint_id == checkpoint_id]
        if not marks:
            raise CorruptCheckpoint(f"{self.directory} has no checkpoint {checkpoint_id}")
        with self._with_recovery_hint(marks[-1]):
            return self._read(marks[-1])

    def verify(self, manifest: Manifest) -> None:
        """Reads every file and compares its hash. Raises CorruptCheckpoint, which names the first file that differs,
        or AppLocked if another worker owns the app by now. An error while a file is read is raised as
        `checkpoint_error` says.
        """
        with self._with_recovery_hint(manifest.mark):
            check_files(self._place, manifest.contents, fully=True)

    def release_restored(self) -> None:
        """Removes the directories that `Manifest.state_directory` made. Each is removed with its checkpoint at the
        latest.
        """
        self._place.release()

    # Private methods

    def _unfinished(self, checkpoint_id: int) -> Path:
        return self._place.scratch / f"{checkpoint_id:010d}"

    def _counting(self) -> list[Mark]:
        try:
            return counting(marks_in(self._place), claims_in(self._place))
        except OSError as error:
            raise UserError(
                f"{self.directory} cannot be read: {error.strerror or error}", hint=hint_of(error)
            ) from error

    def _read(self, mark: Mark) -> Manifest:
        name = f"checkpoints/{manifest_name(mark)}"
        where = self._place.locate(name)
        try:
            data = self._place.read(name)
        except OSError as error:
            raise checkpoint_error(f"{where} cannot be read", error) from error
        manifest = decode_manifest(data, where)
        if manifest.mark != mark:
            raise CorruptCheckpoint(f"{where} is damaged: it has the contents of {manifest_name(manifest.mark)}")
        return self._here(manifest, mark)

    def _here(self, manifest: Manifest, mark: Mark) -> Manifest:
        path = None
        if isinstance(self._place, LocalPlace):
            path = self._place.where / "checkpoints" / manifest_name(mark)
        return msgspec.structs.replace(manifest, path=path, place=self._place)

    def _store_all(
        self, root: Path
    ) -> tuple[dict[str, StoredFile], dict[tuple[int, int], tuple[int, int, StoredFile]]]:
        """Stores every file below `root`. Returns the contents by path, and the files that the place now has, by
        inode.
        """
        contents: dict[str, StoredFile] = {}
        known: dict[tuple[int, int], tuple[int, int, StoredFile]] = {}
        new: dict[str, tuple[Path, StoredFile]] = {}
        unread: dict[Path, tuple[tuple[int, int], int, int]] = {}
        for path in files_below(root):
            status = path.stat()
            inode = status.st_dev, status.st_ino
            size, mtime = status.st_size, status.st_mtime_ns
            before = self._place.known.get(inode)
            if before is not None and before[:2] == (size, mtime) and self._stored.get(before[2].sha256) == before[2]:
                contents[path.relative_to(root).as_posix()] = before[2]
                known[inode] = before
            else:
                unread[path] = inode, size, mtime
        for path, sha256 in sha256_of_each(list(unread)).items():
            inode, size, mtime = unread[path]
            file = self._stored.get(sha256) or StoredFile(size, sha256, self.generation)
            if sha256 not in self._stored and file.name not in new:
                new[file.name] = path, file
                known[inode] = size, mtime, file
            elif self._place.holds(path, file):  # a link to a file of the restored checkpoint
                known[inode] = size, mtime, file
            contents[path.relative_to(root).as_posix()] = file
        each(self._place.parallel, self._store, new.values())
        self._place.sync()
        return contents, known

    def _store(self, new: tuple[Path, StoredFile]) -> None:
        path, file = new
        self._place.put(path, file.name)
        self._stored[file.sha256] = file

    def _forget(self) -> None:
        self._stored = {}
        self._known = {}
        self._listed = Counter()
        self._unreadable = set()
        self._swept = False

    def _learn(self, mark: Mark, contents: Iterable[StoredFile]) -> None:
        names = frozenset(file.name for file in contents)
        self._known[mark] = names
        self._listed.update(names)

    def _learn_all(self) -> None:
        """Reads, once, the lists of the manifests of earlier runs, and removes files that no manifest lists."""
        if self._swept:
            return
        marks = marks_in(self._place)
        self._ownership.renew()
        for mark in marks:
            if mark not in self._known and mark not in self._unreadable:
                try:
                    self._learn(mark, self._read(mark).contents.values())
                except UserError as error:
                    _log.warning(
                        "%s; unused files of checkpoints are not removed as long as this manifest is stored", error
                    )
                    self._unreadable.add(mark)
        if not self._unreadable:
            self._place.remove(unlisted(self._place.all_files(), self._listed, self._ownership.mine))
            left = half_written(self._place.names("checkpoints"), self._ownership.mine)
            self._place.remove(f"checkpoints/{name}" for name in left)
            self._swept = True

    def _drop(self, marks: list[Mark]) -> None:
        if marks:
            self._place.remove(f"checkpoints/{manifest_name(mark)}" for mark in marks)
        for mark in marks:
            self._place.release(manifest_name(mark))
            self._unreadable.discard(mark)
            self._listed.subtract(self._known.pop(mark, frozenset()))
        if self._unreadable:
            return
        offered = [self._unneeded.popleft() for _ in range(len(self._unneeded))]
        self._place.remove(sorted({file.name for file in offered if not self._listed[file.name]}))
        gone = [name for name, count in self._listed.items() if count <= 0]
        unused = [file for file in self._stored.values() if not self._listed[file.name]]
        self._place.remove(sorted({*gone, *(file.name for file in unused)}))
        for name in gone:
            del self._listed[name]
        for file in unused:
            del self._stored[file.sha256]

    @contextmanager
    def _with_recovery_hint(self, mark: Mark) -> Iterator[None]:
        """Adds a hint to a CorruptCheckpoint with the commands for going on. Raises AppLocked instead if another
        worker owns the app by now.
        """
        try:
            yield
        except CorruptCheckpoint as error:
            self._place.doubt()
            error.hint += self._recovery_hint(mark)
            raise

    def _recovery_hint(self, corrupt: Mark) -> str:
        """Returns the hint for a corrupt checkpoint: the newer one from which the app starts; else the manifests to
        remove down to the newest good one; else the ways without a checkpoint of the app.
        """
        marks = self._counting()
        newest = next((mark for mark in reversed(marks) if mark > corrupt and self._is_good(mark)), None)
        if newest is not None and newest == marks[-1]:
            return f"the app starts from its newest checkpoint, {newest.checkpoint_id}, which can be read"
        bad = [corrupt]
        for older in reversed([mark for mark in marks if mark < corrupt]):
            if self._is_good(older):
                remove = " and ".join(self._place.locate(f"checkpoints/{manifest_name(each)}") for each in bad)
                return (
                    f"remove {remove} to go back to checkpoint {older.checkpoint_id}: what came after it is then "
                    "processed and delivered again"
                )
            bad.append(older)
        return (
            "no older checkpoint can be read either: start from a savepoint (--from PLACE); or, if there is none, start "
            "with --fresh, which forgets all state"
        )

    def _is_good(self, mark: Mark) -> bool:
        """Returns True if a checkpoint can be read and none of its files is missing."""
        try:
            check_files(self._place, self._read(mark).contents)
        except CorruptCheckpoint:
            return False
        return True
