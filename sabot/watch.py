"""What ends a task, a callback or a thread of the engine unexpectedly is told to who can end the run: nothing stands still in silence.

watched(task, …)     of the event loop: an error, or a cancellation that nobody wanted
guarded(run, …)      a callback of the loop, or what a thread runs: an error, whatever its class
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
    """The error by which `what` ended, as one of ours; an error of ours says what it is by itself, and an exit is carried."""
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
    """The task itself. `tell` is called on its loop when it ends with an error, or is cancelled while it is not `stopped()`."""

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
    """`run`, whose errors go to `tell`, in the same thread."""

    def guard(*args: P.args, **options: P.kwargs) -> None:
        try:
            run(*args, **options)
        except BaseException as error:
            tell(unexpected(what, error))

    return guard
