"""Reports a task, a callback or a thread of the engine that ends unexpectedly to whoever can end the run, so that no part stops silently.

watched(task, …)     for a task of the event loop: reports its error, or a cancellation that nobody asked for
guarded(run, …)      for a callback of the loop or the function of a thread: reports an error of any class
KeptTasks            for tasks that nobody waits for: the log has their errors
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

from sabot.errors import InternalError, SabotError
from sabot.exits import EXITS, carried

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")


def unexpected(what: str, error: BaseException) -> SabotError:
    """The error by which `what` ended, as a SabotError: a SabotError stays as it is, an exit is `carried`, any other becomes an
    InternalError with the original as its cause.
    """
    if isinstance(error, SabotError):
        return error
    if isinstance(error, EXITS):
        return carried(error, what)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    made = InternalError(
        f"{what} has ended unexpectedly: {said}", hint="the next start goes on from the last checkpoint"
    )
    made.__cause__ = error
    return made


def watched(
    task: F, what: str, tell: Callable[[SabotError], object], *, stopped: Callable[[], bool] = lambda: True
) -> F:
    """Returns the task. `tell` is called on the task's loop when it ends with an error, or is cancelled while `stopped()` is false."""

    def ended(_: "asyncio.Future[Any]") -> None:
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                tell(unexpected(what, error))
        elif not stopped():
            tell(unexpected(what, RuntimeError("it was cancelled from outside")))

    task.add_done_callback(ended)
    return task


def guarded(run: Callable[P, object], what: str, tell: Callable[[SabotError], object]) -> Callable[P, None]:
    """A function that calls `run` and gives any error of it to `tell`, in the same thread."""

    def guard(*args: P.args, **options: P.kwargs) -> None:
        try:
            run(*args, **options)
        except BaseException as error:
            tell(unexpected(what, error))

    return guard


class KeptTasks:
    """Tasks of one owner. The event loop knows tasks by weak references only; here they are held until they end."""

    def __init__(self, owner: str) -> None:
        """owner: its name in the log."""
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], *, awaited: bool = False) -> "asyncio.Task[T]":
        """awaited: somebody waits for it, and hears its error; else the log has it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task if awaited else watched(task, self._owner, partial(_log.error, "%s"))

    async def cancel(self) -> None:
        """Cancels all, and returns when they have ended."""
        tasks = list(self._tasks)
        for each in tasks:
            each.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def ended(self) -> None:
        """Returns when those of now have ended by themselves."""
        if self._tasks:
            await asyncio.wait(self._tasks)
