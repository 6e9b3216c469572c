"""Files and folders that the engine makes for itself: for its own user alone, and never in the place of somebody else's.

Whoever may write into a folder may put something under a name that we are about to use: a symbolic link to a file of another, a
pipe that lets us wait for ever. So a folder that only the engine uses is checked once (`own_folder`: it is a folder, and ours) and
closed to everybody else (0700); below it nobody has to be suspicious, whatever the mode of a file that RocksDB made there under the
process' umask. What stands beside files of others (a lock, a journal beside the user's output) is opened by `private` or `open_lock`.

As PostgreSQL with its data directory and ssh with its keys, but a directory that the user made keeps its mode and its owner: volumes are
mounted 0777, or with an owner of their own. What is ours stands one level below.
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

from sabot.errors import SabotError, UserError

__all__ = [
    "TemporaryFolder",
    "close_to_others",
    "copy_private",
    "hold",
    "is_held",
    "link_or_copy",
    "lock",
    "make_folder",
    "name_new",
    "no_link",
    "open_lock",
    "own_folder",
    "private",
    "regular",
    "remove_left",
    "sync",
    "tell_of_open_folder",
]

_log = logging.getLogger(__name__)

_MARK = "temporary.lock"  # in each TemporaryFolder, held by its process: the mark of those that may be removed

_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}
_NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EROFS}  # of a file system without modes


def private(path: str, flags: int) -> int:
    """An opener, for `open`: a new file is 0600, and the last part of the path is no symbolic link (OSError ELOOP)."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def no_link(path: str, flags: int) -> int:
    """An opener, for `open`: what it opens and makes is no symbolic link; a new file has the mode that the user's umask leaves."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def regular(path: str, flags: int) -> int:
    """An opener, for `open`: to read a file, and nothing else. A pipe would wait for ever, a link may lead anywhere: OSError."""
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
    """The contents under another name, which is new."""
    with open(copy, "xb", opener=private):
        pass
    shutil.copyfile(file, copy)


def link_or_copy(file: Path | str, copy: Path | str) -> bool:
    """A file that never changes again, under a second name, which is new. False: no link can be (another file system, one without
    links, too many links), so it is a copy, which is not safe on disk before `sync`. Raises OSError.
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
    """The file under a name that nothing has. Raises FileExistsError where something has it; OSError."""
    try:
        os.link(unfinished, name)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if name.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
        os.rename(unfinished, name)


def sync(path: Path) -> None:
    """The contents of a file, or the names in a folder, are safe on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """It is there; what was missing of it, and above it, is 0700."""
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
            each.chmod(0o700)  # a umask may have taken our own rights too


def own_folder(folder: Path) -> None:
    """It is there, for us alone: made 0700, or found as a folder of ours, and closed to others.

    Raises UserError where something else is in its place; OSError.
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
    """Locks an open file for this process, until it is closed or the process is gone. Raises BlockingIOError where another has it.

    A lock belongs to what was opened, which a child made by fork shares: it would hold the lock as long as it lives, also when its
    parent has let go or was killed. So a child of ours lets go at once (`_let_go`).
    """
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _held.add(file)


def is_held(descriptor: int) -> bool:
    """Whether a process holds the file that is open here (`hold`). Nothing is locked once the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _let_go() -> None:
    """In a forked child. The descriptors stay taken, by nothing: objects that will close them have their numbers."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for file in _held:
        if not file.closed:
            os.dup2(nothing, file.fileno(), inheritable=False)
    os.close(nothing)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def open_lock(path: Path) -> int:
    """A descriptor of a file that `hold` will lock, which is made where it is missing; its contents are ours to change.

    Raises UserError where something else is in its place; OSError.
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


def lock(path: Path, holder: str, taken: Callable[[str], SabotError]) -> IO[bytes]:
    """The file at `path`, with the text `holder` in it, locked until it is closed or the process is gone, however it ended.

    It is made where it is missing, and never removed: two processes would hold two locks. Raises `taken(text)` where another process
    has it, with the text of that one; UserError where something else is in its place; OSError.
    """
    file = os.fdopen(open_lock(path), "rb+", buffering=0)
    try:
        try:
            hold(file)
        except BlockingIOError:
            raise taken(file.read(400).decode("utf-8", "replace").strip()) from None
        file.truncate(0)
        file.write(holder.encode())
    except BaseException:
        file.close()
        raise
    return file


def tell_of_open_folder(folder: Path) -> None:
    """A warning where anyone may rename what is in it: no check below helps against that."""
    mode = folder.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        _log.warning("%s: every user of this machine may rename and remove what is in it (chmod o-w)", folder)


def _refuse(path: Path, status: os.stat_result, right_kind: Callable[[int], bool], kind: str) -> None:
    """Raises UserError for what is none of ours."""
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
    """Whose the files are that we make here: of some network file systems not ours."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:  # none can be made here
        return os.geteuid()


class TemporaryFolder:
    """A folder until `cleanup`, or the end of the process; of a process that was killed it goes when the next one of its prefix is made.

    where: the folder that it is made in; None: that of the machine for temporary files. Raises OSError.
    """

    def __init__(self, prefix: str, where: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if where is None else where
        remove_left(parent, prefix)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        unlocked = self.path / f"{_MARK}.new"
        self._mark = open(unlocked, "xb", opener=private)  # noqa: SIM115 - it is held as long as the folder is there
        hold(self._mark)
        unlocked.rename(self.path / _MARK)  # so nobody sees it before it is locked

    def cleanup(self) -> None:
        """It is gone. Idempotent."""
        self._folder.cleanup()
        self._mark.close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.cleanup()


def remove_left(where: Path, prefix: str) -> None:
    """Removes every TemporaryFolder of this prefix whose process is gone. What resists stays."""
    for folder in where.glob(f"{glob.escape(prefix)}*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Whoever made this folder is gone; it is one of ours, whatever its name says."""
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return False
        mark = os.open(folder / _MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it has no mark; or it is not ours to read
        return False
    try:
        return os.fstat(mark).st_uid == os.geteuid() and not is_held(mark)
    finally:
        os.close(mark)


def close_to_others(descriptor: int) -> None:
    """Whom it does not belong to may neither read nor write an open file, or list an open folder."""
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        try:
            os.fchmod(descriptor, mode & ~0o077)
        except OSError as error:
            if error.errno not in _NO_MODES:
                raise
