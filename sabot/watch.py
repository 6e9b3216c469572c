"""Reports a task, a callback or a thread of the engine that ends unexpectedly to whoever can end the run, so that no part stops silently.

watched(task, …)     for a task of the event loop: reports its error, or a cancellation that nobody asked for
guarded(run, …)      for a callback of the loop or the function of a thread: reports an error of any class
"""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sabot.errors import InternalError, SabotError
from sabot.exits import EXITS, carried

__all__ = ["guarded", "unexpected", "watched"]

P = ParamSpec("P")
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
