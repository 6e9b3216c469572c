"""Reports a task, a callback or a thread of the engine that ends unexpectedly to whoever can end the run, so that no part stops silently.

watch_task(task, …)  for a task of the event loop: reports its error, or a cancellation that nobody asked for
watch_call(run, …)   for a callback of the loop or the function of a thread: reports an error of any class
TaskSet              for tasks that nobody waits for: the log has their errors
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

from sabot.errors import InternalError, SabotError
from sabot.process_exit import EXITS, wrap_exit

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")


def unexpected_end(what: str, error: BaseException) -> SabotError:
    """The error by which `what` ended, as a SabotError: a SabotError stays as it is, an exit goes through `wrap_exit`, any other becomes an
    InternalError with the original as its cause.
    """
    if isinstance(error, SabotError):
        return error
    if isinstance(error, EXITS):
        return wrap_exit(error, what)
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    made = InternalError(
        f"{what} has ended unexpectedly: {said}", hint="the next start goes on from the last checkpoint"
    )
    made.__cause__ = error
    return made


def watch_task(
    task: F, what: str, tell: Callable[[SabotError], object], *, stopped: Callable[[], bool] = lambda: True
) -> F:
    """Returns the task. `tell` is called on the task's loop when it ends with an error, or is cancelled while `stopped()` is false."""

    def ended(_: "asyncio.Future[Any]") -> None:
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                tell(unexpected_end(what, error))
        elif not stopped():
            tell(unexpected_end(what, RuntimeError("it was cancelled from outside")))

    task.add_done_callback(ended)
    return task


def watch_call(run: Callable[P, object], what: str, tell: Callable[[SabotError], object]) -> Callable[P, None]:
    """A function that calls `run` and gives any error of it to `tell`, in the same thread."""

    def guard(*args: P.args, **options: P.kwargs) -> None:
        try:
            run(*args, **options)
        except BaseException as error:
            tell(unexpected_end(what, error))

    return guard


class TaskSet:
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
        return task if awaited else watch_task(task, self._owner, partial(_log.error, "%s"))

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
