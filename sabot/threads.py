"""The engine's threads of control, and what passes between threads and an event loop.

threads.spawn     a thread of control of the engine: it takes turns, so that a simulation can take them in its place
aside             from the loop: blocking work in a thread of the engine's pool, awaited
tell              from any thread: a call on the loop
done              from the loop: waits for a future that a thread fulfils
to_the_end        on the loop: a step that a cancellation does not stop half way

The pool of `aside` is the engine's own. That of `asyncio.to_thread` is the user's: when his calls fill it, checkpoints and deliveries
must not wait behind them, least of all when these calls wait for a checkpoint.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from sabot.exits import EXITS, carried

__all__ = ["Handle", "Spawn", "Threads", "Turn", "aside", "done", "tell", "threads", "to_the_end"]

P = ParamSpec("P")
T = TypeVar("T")

Turn = Callable[[float], bool | None]
"""One turn of a thread of control: `turn(wait_seconds)` takes one element if there is one, and waits for it at most so long.

True: it took one. None: there was none, or no room for what it had made. False: it is over, and is not called again. Never raises.
With 0 seconds it never waits, for nothing: what a full channel refuses stays with the thread until a later turn.
"""

_WAIT_SECONDS = 0.05
_POOL_THREADS = 32  # more than waits at any time: a few for each checkpoint, one for each sink that is being closed

_pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="sabot-aside")


class Handle(Protocol):
    """A thread of control from outside."""

    def start(self) -> None:
        """Its first turn may come."""

    def join(self, timeout: float | None = None) -> None:
        """Returns when it is over, or after `timeout` seconds."""

    def is_alive(self) -> bool:
        """Between `start` and its end."""


Spawn = Callable[[str, Turn], Handle]
"""(name, turn) -> a thread of control that is not started yet."""


class Threads:
    """Where the engine's threads of control come from: threads of the process, unless a simulation puts its own in their place."""

    def __init__(self) -> None:
        self._make: Spawn = _Thread

    def spawn(self, name: str, turn: Turn) -> Handle:
        """A thread of control that takes its turns until it is over; `start` begins."""
        return self._make(name, turn)

    def made_by(self, make: Spawn | None) -> None:
        """From now on `make(name, turn)` makes them; None: threads of the process."""
        self._make = make or _Thread


class _Thread(threading.Thread):
    def __init__(self, name: str, turn: Turn) -> None:
        super().__init__(name=name, daemon=True)
        self._turn = turn

    def run(self) -> None:
        while self._turn(_WAIT_SECONDS) is not False:
            pass


threads = Threads()


async def aside(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """The result of `work(*args, **options)`, which may block."""
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_carrying, partial(work, *args, **options)))


def _carrying(work: Callable[[], T]) -> T:
    try:
        return work()
    except EXITS as asked:  # the user's code is in there: a task that awaits this must not end the event loop
        raise carried(asked, "the user's code") from asked


def tell(loop: asyncio.AbstractEventLoop, what: Callable[..., object], *values: Any) -> None:
    """From a thread to the loop; a thread that was left behind may come back when there is no loop any more."""
    try:
        loop.call_soon_threadsafe(what, *values)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def done(future: Future[Any]) -> None:
    """Returns when the future is done, however it ended. Cancelling this leaves it alone.

    `asyncio.wrap_future` passes a cancellation on, and complains of an error that nobody fetched from its copy.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    def wake(_: Future[Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finished.set)

    future.add_done_callback(wake)
    await finished.wait()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """For steps that must not stop half way (a lock being taken, everything being closed): who is cancelled meanwhile, however
    often, waits for the step's end, then goes.
    """
    step = asyncio.ensure_future(work)
    cancelled = False
    while not step.done():
        try:
            await asyncio.wait([step])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return step.result()
