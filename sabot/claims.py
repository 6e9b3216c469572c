"""Claims: the right of one holder at a time to something that others want too, such as a folder, an app or a topic.

`Claim` is the contract, which `tests/contracts/test_claim_contract.py` checks for each kind:

FileClaim                          a folder of this machine, by a lock on a file in it
checkpoint.ownership.Ownership     an app, by a file in the place of its checkpoints
kafka.lease.KafkaLease             a topic that is read without checkpoints, by a member of a consumer group
journal                            the owner of a journal holds its claim from its construction to `close` (`Journal.claim_left`)
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from sabot.disk import hold, open_lock
from sabot.errors import SabotError

_LOOKED_SECONDS = 0.01  # a process that only asks whether the lock is held has let it go by then


class Claim(Protocol):
    """The right of one holder at a time. Of two holders one is refused: the second by `take`, or the first by its next `renew`."""

    def take(self) -> object:
        """Makes this the holder. Blocks. Raises AppLocked if another holder shows that it is alive."""

    def renew(self) -> None:
        """Checks that this is still the holder. May block. Raises AppLocked if another one has taken the claim since."""

    def left_s(self) -> float:
        """Returns the seconds for which this is the holder without a sign of life. The result is `math.inf` if the claim does not end by
        time, and 0.0 if it is not held, or may be lost. Does not block.
        """

    def release(self) -> None:
        """Lets others take the claim at once. Idempotent."""


class FileClaim:
    """A claim by the lock on a file, which ends with the process, however that ends.

    `holder`: a text about this process, which is written into the file. `taken`: makes the error for another holder, of its text ("" if it
    is not known). The file is made if it is missing, and stays: were it removed, two processes could lock two files of one name.
    """

    def __init__(self, path: Path, holder: str, taken: Callable[[str], SabotError]) -> None:
        self._path = path
        self._holder = holder
        self._taken = taken
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Locks the file, if it does not hold it already. Raises `taken(holder)`; UserError if something else is at the path; OSError.

        The lock is tried twice, because a process that only looks whether the file is locked (`disk.is_held`) locks it for a moment.
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
        """Checks that the locked file is still at its path: somebody may have removed it, and another process may have locked a new one.
        Raises `taken("")`.
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


def _text_of(file: IO[bytes]) -> str:
    return file.read(400).decode("utf-8", "replace").strip()
