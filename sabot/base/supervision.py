"""Reports of tasks, callbacks and threads of the engine that end unexpectedly, so that no part of an app stops
silently.

- `watch_task`: for a task of the event loop. It reports an error, or a cancellation from outside.
- `watch_call`: for a callback of the loop, or the function of a thread. It reports an error of any class.
- `TaskSet`: for tasks that nobody awaits. It logs their errors.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

from sabot.base.process_exit import EXITS, wrap_exit
from sabot.errors import InternalError, SabotError

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")


def unexpected_end(what: str, error: BaseException) -> SabotError:
    """Returns a SabotError for the error with which `what` has ended: a SabotError as it is, an exit as `wrap_exit`
    converts it, and any other error as an InternalError with the original as its cause.
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
    """Returns the task, and makes it call `tell` on its loop if it ends with an error, or is cancelled while
    `stopped()` is False. `what`: the task's description, for the message.
    """

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
    """Returns a function that calls `run`, and passes any error of it to `tell`, in the same thread. `what`: the
    description of `run`, for the message.
    """

    def guard(*args: P.args, **options: P.kwargs) -> None:
        try:
            run(*args, **options)
        except BaseException as error:
            tell(unexpected_end(what, error))

    return guard


def call_listener(what: str, listener: Callable[P, object] | None, *args: P.args, **options: P.kwargs) -> None:
    """Calls a listener, if there is one. An error of it is logged, and stops nobody. `what`: the listener's description."""
    if listener is not None:
        try:
            listener(*args, **options)
        except Exception:
            _log.exception("%s has failed", what)


class TaskSet:
    """A set of the tasks of one owner, with strong references until they end; the event loop itself has weak
    references only.
    """

    def __init__(self, owner: str) -> None:
        """`owner`: the name of the owner, for log lines."""
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], *, awaited: bool = False) -> "asyncio.Task[T]":
        """Starts a task and returns it. `awaited`: True if a caller awaits the task and gets its error; else an error
        is logged.
        """
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task if awaited else watch_task(task, self._owner, partial(_log.error, "%s"))

    def every(
        self, seconds: float, work: Callable[[], Awaitable[object]], sleep: Callable[[float], Awaitable[None]]
    ) -> "asyncio.Task[None]":
        """Starts a task that does the work again and again, the first time after `seconds`. An error of the work is
        logged; the work is then done again at its next time.
        """

        async def repeat() -> None:
            while True:
                await sleep(seconds)
                try:
                    await work()
                except Exception:
                    _log.exception("%s: its regular work has failed, and is done again in %g s", self._owner, seconds)

        return self.begin(repeat())

    async def cancel(self) -> None:
        """Cancels all tasks, and returns when they have ended."""
        tasks = list(self._tasks)
        for each in tasks:
            each.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def ended(self) -> None:
        """Returns when all tasks that run now have ended by themselves."""
        if self._tasks:
            await asyncio.wait(self._tasks)
