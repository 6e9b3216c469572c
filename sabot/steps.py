"""The steps by which a job changes the world outside it: files, topics, tables. Each has a name and passes here.

    with step("rename", path):
        os.rename(unfinished, path)

So a test can count them and crash before, after or in the middle of each (`sabot.testing`). Nobody watches otherwise.
What is read is no step; what is written, renamed, removed, sent or committed is one, and nothing of it happens outside.
"""

from types import TracebackType
from typing import Any, Protocol

__all__ = ["Watcher", "step", "watch"]


class Watcher(Protocol):
    """Who looks on. Called in the thread of the step; what it raises comes out of the step."""

    def before(self, name: str, what: str) -> None:
        """The step begins: nothing of it has happened."""

    def after(self, name: str, what: str) -> None:
        """It is done. Not called for a step that raised."""

    def torn(self, name: str, what: str, size: int) -> int:
        """Of a write of `size` bytes so many are to be written before a crash; `size` for all."""


_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """From now on this one is told of every step of the process; None: nobody."""
    global _watcher
    _watcher = watcher


class step:
    """One step, from its beginning to its end. `name` is the kind (few, constant), `what` says which: a path, a topic."""

    __slots__ = ("_name", "_what")

    def __init__(self, name: str, what: object = "") -> None:
        self._name = name
        self._what = what

    def __enter__(self) -> "step":
        if _watcher is not None:
            _watcher.before(self._name, str(self._what))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if _watcher is not None and error is None:
            _watcher.after(self._name, str(self._what))

    def write(self, file: Any, data: Any) -> None:
        """Writes bytes, of which a crash may leave the beginning."""
        if _watcher is not None:
            size = len(data)
            part = _watcher.torn(self._name, str(self._what), size)
            if part < size:
                file.write(data[:part])
                file.flush()
                _watcher.after(self._name, str(self._what))  # a crash is expected here
                return
        file.write(data)
