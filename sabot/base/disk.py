"""Files and folders that the engine makes for itself: only its own user can read them, and they never replace a file
of somebody else.

A user who may write into a folder may put something under a name that the engine is about to use: a symbolic link to
another user's file, or a pipe that blocks for ever. So a folder that only the engine uses is checked once by
`own_folder`, which also closes it to other users (0700). Files below it can be trusted, whatever mode RocksDB gives
them. Files beside those of others (a lock, a pending list beside the user's output) are opened by `private` or
`open_lock`.

PostgreSQL treats its data directory and ssh its keys in this way. A directory that the user made keeps its mode and
its owner, because volumes are mounted 0777 or with an owner of their own; the engine's folder is one level below it.
"""

import errno
import fcntl
import glob
import logging
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from sabot.errors import UserError

_log = logging.getLogger(__name__)

# Stands in each TemporaryFolder, locked by its process: a folder whose mark is not locked may be removed.
_MARK = "temporary.lock"

_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
# errors of a file system without modes
_NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}


def check_reach(path: Path) -> None:
    """Raises OSError if no file can be made at this path: what exists of the folders above it is no folder, or may not be
    written. Changes nothing.
    """
    above = next(each for each in path.absolute().parents if os.path.lexists(each))
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(above))
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(above))


def private(path: str, flags: int) -> int:
    """An opener for `open`: a new file gets mode 0600. Raises OSError (ELOOP) if the last part of the path is a
    symbolic link.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def no_link(path: str, flags: int) -> int:
    """An opener for `open` that refuses a symbolic link as `private` does. A new file gets the mode that the user's
    umask leaves.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def regular(path: str, flags: int) -> int:
    """An opener for `open` to read a regular file. Raises OSError for a pipe, which could block for ever, and for a
    symbolic link, which may lead anywhere.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link", path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", path)
    return descriptor


def copy_private(file: Path, copy: Path) -> None:
    """Copies `file` to the new name `copy`, with mode 0600. Raises FileExistsError if the name is taken."""
    with open(copy, "xb", opener=private):
        pass
    shutil.copyfile(file, copy)


def link_or_copy(file: Path | str, copy: Path | str) -> bool:
    """Gives a file that never changes again a second, new name. Raises OSError.

    Returns True for a hard link. Returns False if no link is possible (another file system, one without links, too
    many links); then `copy` is a copy, which is not durable before `sync`.
    """
    try:
        os.link(file, copy)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_private(Path(file), Path(copy))
        return False
    return True


def name_new(unfinished: Path, name: Path) -> None:
    """Gives the file `unfinished` the new name `name`: as a second name (hard link), or, on a file system without
    links, by a rename. Raises FileExistsError if `name` is taken, and OSError.
    """
    try:
        os.link(unfinished, name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if name.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
        os.rename(unfinished, name)


def sync(path: Path) -> None:
    """Makes the contents of a file, or the names in a folder, durable (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes the folder and its missing parents with mode 0700. A folder that exists is not changed."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(0o700)
        except FileExistsError:
            if not each.is_dir():
                raise
        else:
            each.chmod(0o700)  # a umask may have removed this user's rights too


def own_folder(folder: Path) -> None:
    """Makes the folder with mode 0700. A folder that exists must belong to this user, and is closed to other users.

    Raises UserError if the folder belongs to somebody else or something else is at its path, and OSError.
    """
    make_folder(folder.parent)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        pass
    else:
        folder.chmod(0o700)
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        _refuse(folder, os.lstat(folder), stat.S_ISDIR, "folder")
        raise
    try:
        _refuse(folder, os.fstat(descriptor), stat.S_ISDIR, "folder")
        close_to_others(descriptor)
    finally:
        os.close(descriptor)


_held: "weakref.WeakSet[IO[Any]]" = weakref.WeakSet()


def hold(file: IO[Any]) -> None:
    """Locks an open file until it is closed or the process ends. Raises BlockingIOError if another process holds it.

    A lock belongs to the open file description, which a forked child shares: the child would hold the lock as long as
    it lives, even after its parent has closed the file or was killed. So a forked child releases its locks at once
    (`_let_go`).
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.add(file)


def is_held(descriptor: int) -> bool:
    """Returns True if a process has locked (`hold`) the file of this descriptor. The test locks the file itself;
    close the descriptor to release that lock.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _let_go() -> None:
    """Releases all locks in a forked child. Points each descriptor at /dev/null instead of closing it, because the
    file object will close its number.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for file in _held:
        if not file.closed:
            os.dup2(nothing, file.fileno(), inheritable=False)
    os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def open_lock(path: Path) -> int:
    """Opens a file for `hold`, and makes it if it is missing. Returns a descriptor for reading and writing.

    Raises UserError if something else is at the path or the file has a second name, and OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        try:
            status = os.lstat(path)
        except OSError:
            raise error from None
        _refuse(path, status, stat.S_ISREG, "file")
        raise
    try:
        status = os.fstat(descriptor)
        _refuse(path, status, stat.S_ISREG, "file")
        if status.st_nlink > 1:
            raise UserError(f"{path} is the same file as another one", hint="remove this name of it, and start again")
        close_to_others(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def warn_of_open_folder(folder: Path) -> None:
    """Logs a warning if every user may rename entries of the folder, because the checks below it do not help against
    that.
    """
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _log.warning("%s: every user of this machine may rename and remove what is in it (chmod o-w)", folder)


def _refuse(path: Path, status: os.stat_result, right_kind: Callable[[int], bool], kind: str) -> None:
    """Raises UserError unless `status` is of the right kind and belongs to this user."""
    hint = "somebody else may have put it there: look at it and remove it, or give another directory"
    if stat.S_ISLNK(status.st_mode):
        raise UserError(f"{path} is a symbolic link, and not the {kind} that Sabot makes there", hint=hint)
    if not right_kind(status.st_mode):
        raise UserError(f"{path} is no {kind}", hint=hint)
    if status.st_uid != os.geteuid() and status.st_uid != _uid_of_new_files(path.parent):
        raise UserError(
            f"{path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}",
            hint="run it as that user; or, if all of it is to be yours, change the owner (chown -R); or give another directory",
        )


def _uid_of_new_files(folder: Path) -> int:
    """Returns the owner of new files in this folder; some network file systems give them to another user."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:  # no file can be made here
        return os.geteuid()


class TemporaryFolder:
    """A folder that is removed by `cleanup` or at the end of the process. If the process is killed, the next
    TemporaryFolder with the same prefix removes it.

    `where`: its parent, or None for the machine's folder for temporary files. Raises OSError.
    """

    def __init__(self, prefix: str, where: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if where is None else where
        remove_abandoned(parent, prefix)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        unlocked = self.path / f"{_MARK}.new"
        self._mark = open(unlocked, "xb", opener=private)  # noqa: SIM115 - it is held as long as the folder is there
        hold(self._mark)
        unlocked.rename(self.path / _MARK)  # so no process finds the mark before it is locked

    def cleanup(self) -> None:
        """Removes the folder. Idempotent."""
        self._folder.cleanup()
        self._mark.close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()


def remove_abandoned(where: Path, prefix: str) -> None:
    """Removes every TemporaryFolder with this prefix whose process is gone. A folder that cannot be removed is left."""
    for folder in where.glob(f"{glob.escape(prefix)}*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Returns True if this user's process has made the folder as a TemporaryFolder, and is gone."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return False
        mark = os.open(folder / _MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it has no mark, or belongs to another user
        return False
    try:
        return os.fstat(mark).st_uid == os.geteuid() and not is_held(mark)
    finally:
        os.close(mark)


def close_to_others(descriptor: int) -> None:
    """Removes all rights of other users from an open file or folder. Does nothing on a file system without modes."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        try:
            os.fchmod(descriptor, mode & ~0o077)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise
