"""The steps by which an app changes the world outside it: files, topics, tables. Each step has a name and is announced here.

    with step("rename", path):
        os.rename(unfinished, path)

So a test can count the steps, and crash before, after or in the middle of each (`sabot.testing`). Outside tests nobody watches.
Reading is no step. Every write, rename, removal, send and commit is one, and happens only inside `with step(…)`.
"""

from types import TracebackType
from typing import Any, Protocol


class Watcher(Protocol):
    """Is told of the steps. Its methods are called in the thread of the step; an error that they raise comes out of the step."""

    def before(self, name: str, what: str) -> None:
        """Called before anything of the step has happened."""

    def after(self, name: str, what: str) -> None:
        """Called when the step is done; not for a step that raised."""

    def torn(self, name: str, what: str, size: int) -> int:
        """How many of the `size` bytes of a write are to be written: fewer than `size` before a simulated crash, else all."""


_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """From now on `watcher` is told of every step of the process; with None nobody is."""
    global _watcher
    _watcher = watcher


class step:
    """One step, from its beginning to its end. `name` is its kind, one of a few constants; `what` is its object: a path, a topic."""

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
        """Writes `data`; a watcher may have only its first bytes written, as a crash would leave them."""
        if _watcher is not None:
            size = len(data)
            part = _watcher.torn(self._name, str(self._what), size)
            if part < size:
                file.write(data[:part])
                file.flush()
                _watcher.after(self._name, str(self._what))  # the watcher simulates its crash here
                return
        file.write(data)
