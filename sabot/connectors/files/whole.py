"""A file each of whose writes writes all bytes or raises."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sabot.disk import hold
from sabot.steps import step

Opener = Callable[[str, int], int]


class WholeFile:
    """A file without a buffer. Each write is a step, and writes all bytes or raises."""

    def __init__(self, path: Path, mode: str, name: str, opener: Opener | None) -> None:
        self._path = path
        self._name = name
        self.dead = False
        """True if writes are ignored from now on."""
        if "x" in mode:
            with step("create", path):
                self._file: Any = open(path, mode, buffering=0, opener=opener)  # noqa: SIM115 - closed by close()
        else:
            self._file = open(path, mode, buffering=0, opener=opener)  # noqa: SIM115

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if not self.dead:
            with step(self._name, self._path) as each:
                each.write(_All(self._file), view)
        return len(view)

    def lock(self) -> None:
        """Locks the file until it is closed. Raises OSError if another process has locked it."""
        hold(self._file)

    def write_at(self, at: int, data: bytes) -> None:
        self._file.seek(at)
        self.write(data)

    def read_at(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        found: bytes = self._file.read(size)
        return found

    def seek_end(self) -> int:
        found: int = self._file.seek(0, os.SEEK_END)
        return found

    def tell(self) -> int:
        found: int = self._file.tell()
        return found

    def fileno(self) -> int:
        found: int = self._file.fileno()
        return found

    def sync(self) -> None:
        with step("sync", self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class _All:
    """A file whose `write` writes all bytes, as the system may write fewer bytes than it is given."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]

    def flush(self) -> None:
        """There is no buffer."""
