"""Errors of the operating system: recognizes them in exceptions, and gives a hint for each. For all modules that read
or write.

Python's errors have the number of the error (`OSError.errno`). Those of RocksDB, Arrow and librdkafka only quote the
system's text for it ("IO error: No space left on device: While appending to file: …"), so the number is derived from
that text.
"""

import errno
import os
import resource
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sabot.errors import CorruptCheckpoint, InternalError, SabotError, TransientError, UserError

_MOST_COUNTED = 65_536  # the most descriptors that are counted


def _full() -> str:
    return "the disk is full (df -h), or has no room for more files (df -i): make room there"


def _over_quota() -> str:
    return "this user's quota of the disk is used up: make room there, or have it raised"


def _too_large() -> str:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit == resource.RLIM_INFINITY:
        return "a file would be larger than this file system allows: give a directory on another one"
    return f"a file would be larger than this process may write, {limit:,} bytes: raise that (ulimit -f)"


def _read_only() -> str:
    return "the disk is mounted read-only: mount it writable, or give another directory"


def _not_allowed() -> str:
    return f"this process runs as user {os.geteuid()}, who may not: change the owner or the mode, or give another directory"


def _too_many_open() -> str:
    """Counts the open files by kind. No more file can be opened, not even /proc/self/fd, so each descriptor is asked for by itself."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    kinds: Counter[str] = Counter()
    for descriptor in range(min(limit, _MOST_COUNTED)):
        try:
            kinds[_kind(os.fstat(descriptor).st_mode)] += 1
        except OSError:  # this descriptor is not open
            continue
    counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return (
        f"this process has {kinds.total():,} files open ({counted}) and may have {limit:,}: raise that (ulimit -n 65536, "
        "LimitNOFILE= of a service). A Kafka source, sink or exactly-once sink takes some 14, RocksDB one for each file of "
        "state, a file source or sink one or two"
    )


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "sockets"
    if stat.S_ISREG(mode):
        return "files"
    return "pipes" if stat.S_ISFIFO(mode) else "others"


def _too_many_of_all() -> str:
    return (
        "all processes of this machine together have as many files open as it allows: raise that (sysctl fs.file-max)"
    )


def _broken() -> str:
    return "the disk, or its connection, is failing: look into the machine's log (dmesg)"


def _too_long() -> str:
    return "a name or path is longer than the file system allows: give a directory with a shorter one"


def _no_memory() -> str:
    return "there is not enough memory: raise the limit of this process (ulimit -v, its cgroup), unless damaged data gives a wrong size"


def _no_more_threads() -> str:
    return "no more threads can be made: raise how many this user (ulimit -u) or this container (pids.max) may have"


def _stale() -> str:
    return "the server of this network disk has lost the file: mount it anew"


_HINTS: dict[int, Callable[[], str]] = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _over_quota,
    errno.EFBIG: _too_large,
    errno.EROFS: _read_only,
    errno.EACCES: _not_allowed,
    errno.EPERM: _not_allowed,
    errno.EMFILE: _too_many_open,
    errno.ENFILE: _too_many_of_all,
    errno.EIO: _broken,
    errno.ENAMETOOLONG: _too_long,
    errno.ESTALE: _stale,
    errno.ENOMEM: _no_memory,
    errno.EAGAIN: _no_more_threads,
}
_PASSING = set(_HINTS) - {errno.EIO}  # errors that do not damage files
_STAYS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}
_WORDS = {os.strerror(number).casefold(): number for number in _HINTS if number != errno.EAGAIN}
_WORDS["can't start new thread"] = errno.EAGAIN  # Python's own text
_WORDS["database or disk is full"] = errno.ENOSPC  # SQLite's own text
_CANNOT_OPEN = "unable to open database file"  # SQLite's, for whatever error the system has given
_FILES_OF_SQLITE = 8  # at most: the database, its log, the index of the log, folders
# The longest text comes first, because "Too many open files in system" contains the text of another error.
_LONGEST_FIRST = sorted(_WORDS, key=len, reverse=True)


def errno_of(error: object) -> int:
    """Returns the `errno` of the system error that `error` is, or that its text quotes. Returns 0 for other errors,
    and for system errors without a hint in this module.
    """
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _HINTS and error.errno != errno.EAGAIN:
        return error.errno
    words = str(error).casefold()
    if _CANNOT_OPEN in words:
        return errno.EMFILE if _descriptors_are_gone() else 0
    return next((_WORDS[text] for text in _LONGEST_FIRST if text in words), 0)


def _descriptors_are_gone() -> bool:
    """Returns True if this process has no more descriptors than SQLite needs, which has closed its own by now. A new one
    has the lowest free number.
    """
    try:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.EMFILE
    os.close(descriptor)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and descriptor + _FILES_OF_SQLITE >= limit


def hint_of(error: object, otherwise: str = "") -> str:
    """Returns what to do about an error of the operating system, or `otherwise` for any other error."""
    fault = errno_of(error)
    return _HINTS[fault]() if fault else otherwise


def stays(error: object) -> bool:
    """Returns True for an error of a disk of this machine that does not end by itself: this process may not, or nobody may."""
    return errno_of(error) in _STAYS


def is_environment_error(error: BaseException) -> bool:
    """Returns True if an error of a user's function has nothing to do with the row: the network, the disk or the memory failed, and the
    same call may succeed later. A missing or unreadable file is an error of the row, which may have named the file.
    """
    of_a_path = isinstance(
        error, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError | PermissionError
    )
    return isinstance(error, OSError | TransientError | MemoryError) and not of_a_path


def checkpoint_error(what: str, error: BaseException) -> UserError:
    """Returns the error for a file of a checkpoint that cannot be used: a UserError if the machine failed and the file may be good (no
    memory, too many open files, …), else a CorruptCheckpoint.
    """
    message = f"{what}: {getattr(error, 'strerror', None) or error}"
    if errno_of(error) in _PASSING:
        return UserError(message, hint=hint_of(error))
    return CorruptCheckpoint(message)


@contextmanager
def restoring(what: str, where: object) -> Iterator[None]:
    """Wraps code that restores state from a checkpoint: an error that the contents cause becomes a CorruptCheckpoint that names `where`.

    Hashes and checksums reveal damage, but whoever can write a file can write its hash too, so contents are not trusted. An error of the
    machine becomes a UserError, and a SabotError passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SabotError) and not isinstance(error, InternalError):
            raise
        found = checkpoint_error(f"{what} cannot be restored from {where}: {type(error).__name__}", error)
        if isinstance(found, CorruptCheckpoint):
            found.hint = (
                "this version of Sabot does not write such contents: restore another checkpoint, or start with --fresh"
            )
        raise found from error
