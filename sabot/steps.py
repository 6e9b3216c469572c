"""The steps by which an app changes files, topics and tables. Each step has a name and is announced here.

    with step("rename", path):
        os.rename(unfinished, path)

A test can count the steps, and crash before, after or in the middle of each (`sabot.testing`). Without a test, no
watcher is set. Every write, rename, removal, send and commit is a step and happens only inside `with step(…)`. Reads
are no steps.
"""

from types import TracebackType
from typing import Any, Protocol


class Watcher(Protocol):
    """An observer of steps. Its methods are called in the thread of the step, and an error that they raise comes out
    of the step.
    """

    def before(self, name: str, what: str) -> None:
        """Called before the step begins."""

    def after(self, name: str, what: str) -> None:
        """Called when the step is done; not called if it raised."""

    def torn(self, name: str, what: str, size: int) -> int:
        """Returns how many of the `size` bytes of a write to write: fewer than `size` before a simulated crash, else
        all.
        """


_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> None:
    """Makes `watcher` the observer of every step of the process; None removes it."""
    global _watcher
    _watcher = watcher


class step:
    """A context manager for one step. `name`: the kind of step, one of a few constants. `what`: the object, such as a
    path or a topic.
    """

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
        """Writes `data` into `file`. A watcher may cut the write short, as a crash would."""
        if _watcher is not None:
            size = len(data)
            part = _watcher.torn(self._name, str(self._what), size)
            if part < size:
                file.write(data[:part])
                file.flush()
                _watcher.after(self._name, str(self._what))  # the watcher simulates its crash here
                return
        file.write(data)
