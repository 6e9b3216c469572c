"""Claims: the exclusive right of one holder to a shared object, such as a folder, an app or a topic.

`Claim` is the contract, which `tests/contracts/test_claim_contract.py` checks for each kind:

    FileClaim                          a folder of this machine, by a lock on a file in it
    checkpoint.ownership.Ownership     an app, by a file in the place of its checkpoints
    kafka.lease.KafkaLease             a topic that is read without checkpoints, by a member of a consumer group
    journal                            the owner of a journal holds its claim from its construction to `close` (`Journal.claim_left`)

`ObjectClaims` are those of this process to its own objects, such as a Journal that two kernels got.
"""

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from sabot.base.disk import hold, open_lock
from sabot.errors import SabotError

T = TypeVar("T")

_LOOKED_SECONDS = 0.01  # a process that only tests the lock has released it by then


class Claim(Protocol):
    """The exclusive right of one holder at a time. If two processes want it, one gets AppLocked: the second holder
    from `take`, or, if the second one has taken the claim over, the first holder from its next `renew`.
    """

    def take(self) -> object:
        """Makes this object the holder. Blocks. Raises AppLocked if another holder shows that it is alive."""

    def renew(self) -> None:
        """Checks that this object is still the holder. May block. Raises AppLocked if another holder has taken the
        claim since.
        """

    def left_s(self) -> float:
        """Returns the seconds for which this object stays the holder without a further `renew`: `math.inf` for a
        claim without a time limit, and 0.0 if the claim is not held, or may be lost. Does not block.
        """

    def release(self) -> None:
        """Gives the claim up, so that others can take it at once. Idempotent."""


class FileClaim:
    """A claim by a lock on a file. The operating system releases the lock when the process ends, even if it is
    killed.

    `holder`: a text about this process, which is written into the file. `taken`: a function that makes the error to
    raise if another process holds the lock; it receives the text in the file, or "" if that is not known. The file is
    created if it is missing, and is never removed: otherwise two processes could lock two different files of the same
    name.
    """

    def __init__(self, path: Path, holder: str, taken: Callable[[str], SabotError]) -> None:
        self._path = path
        self._holder = holder
        self._taken = taken
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Locks the file; does nothing if this object holds the lock already. Raises `taken(text in the file)` if
        another process holds it, UserError if something other than a file is at the path, and OSError.

        If the lock is refused, it is tried once more, because a process that only tests whether the file is locked
        (`disk.is_held`) locks it for a moment.
        """
        again = True
        while self._file is None:
            file = os.fdopen(open_lock(self._path), "rb+", buffering=0)
            try:
                hold(file)
                if self._is_there(file):
                    file.truncate(0)
                    file.write(self._holder.encode())
                    self._file = file
            except BlockingIOError:
                if not again:
                    raise self._taken(_text_of(file)) from None
                again = False
                time.sleep(_LOOKED_SECONDS)
            finally:
                if self._file is None:
                    file.close()

    def renew(self) -> None:
        """Checks that the locked file is still at its path: somebody may have removed it, and another process may
        have locked a new file there. Raises `taken("")` if it is not, or if this object holds no lock.
        """
        if self._file is None or not self._is_there(self._file):
            raise self._taken("")

    def left_s(self) -> float:
        return 0.0 if self._file is None else math.inf

    def release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _is_there(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            return False


class ObjectClaims(Generic[T]):
    """The holders of objects of this process, such as a Journal or the writer of a ledger: at most one for each object.
    A holder that is garbage holds nothing. Each holder refers to its object, so no other object gets its id meanwhile.
    """

    def __init__(self) -> None:
        self._holders: WeakValueDictionary[int, T] = WeakValueDictionary()  # by id of the object
        self._lock = threading.RLock()  # garbage that is collected meanwhile may give its object up

    def holder(self, held: object) -> T | None:
        """Returns the holder of an object, or None."""
        return self._holders.get(id(held))

    def take(self, held: object, holder: T, *, gives_way: Callable[[T], bool] = lambda other: False) -> T | None:
        """Makes `holder` the holder of an object that is free, and returns None; else returns the other holder. Of several threads one
        gets a free object. `gives_way`: returns True for another holder whose place is taken.
        """
        with self._lock:
            other = self.holder(held)
            if other is not None and other is not holder and not gives_way(other):
                return other
            self._holders[id(held)] = holder
            return None

    def release(self, held: object, holder: T) -> None:
        """Gives an object up, if this one holds it."""
        with self._lock:
            if self.holder(held) is holder:
                del self._holders[id(held)]


def _text_of(file: IO[bytes]) -> str:
    return file.read(400).decode("utf-8", "replace").strip()
