"""The engine's threads of control, and calls between threads and an event loop.

    threads.spawn     makes an engine thread, which works in turns, so that a simulation can run the turns itself
    run_in_thread     called on the loop: runs blocking work in a thread of the engine's pool, and awaits it
    run_connected     the same for work that opens connections of its own to a server, of which few run at once
    begin_in_thread   called from any thread: begins blocking work in a thread of the pool
    call_on_loop      called from any thread: schedules a call on the loop
    wait_done         called on the loop: waits for a future that a thread completes
    end_tasks         called on the loop: cancels tasks, and waits until they have ended
    wait_all          called on the loop: waits until all of these futures have ended
    run_to_end        called on the loop: finishes a step even if its caller is cancelled half way
    close_with_loop   called on the loop: closes an object, such as connections, when the loop is about to be closed

The pool of `run_in_thread` is the engine's own. The pool of `asyncio.to_thread` belongs to the user: when the user's
calls fill it, checkpoints and deliveries must not wait for those calls, least of all when the calls themselves wait
for a checkpoint.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

from sabot.base.process_exit import EXITS, wrap_exit

P = ParamSpec("P")
T = TypeVar("T")

_CANCEL_AGAIN_SECONDS = 5.0  # what a task may take to close what it has open

Turn = Callable[[float], bool | None]
"""One turn of an engine thread: `turn(wait_seconds)` takes one element, and waits at most `wait_seconds` for it.

It returns True if it took an element, None if there was none or its output had no room, and False if the thread has
ended and must not be called again. It never raises. With `wait_seconds` 0 it does not block: output that a full
channel refuses stays with the thread until a later turn.
"""

_WAIT_SECONDS = 0.05
# More threads than are ever busy at once: a checkpoint takes a few, and so does each sink that is being closed.
_POOL_THREADS = 32

_pool = ThreadPoolExecutor(_POOL_THREADS, thread_name_prefix="sabot-blocking")

# Each may have two connections to a journal, and PostgreSQL has 100 for all processes: four of a web server get on.
_CONNECTED_THREADS = 6

_connected = ThreadPoolExecutor(_CONNECTED_THREADS, thread_name_prefix="sabot-connected")


class Handle(Protocol):
    """An engine thread, as its owner sees it."""

    def start(self) -> None:
        """Lets the thread take its first turn."""

    def join(self, timeout: float | None = None) -> None:
        """Returns when the thread has ended, or after `timeout` seconds."""

    def is_alive(self) -> bool:
        """Returns True if the thread was started and has not ended."""


Spawn = Callable[[str, Turn], Handle]
"""Makes an engine thread of (name, turn), not started yet."""


class Threads:
    """The maker of engine threads: threads of the process, unless a simulation replaces them."""

    def __init__(self) -> None:
        self._make: Spawn = _Thread

    def spawn(self, name: str, turn: Turn) -> Handle:
        """Makes a thread that calls `turn` until it returns False. The thread does not run before `start`."""
        return self._make(name, turn)

    @property
    def simulated(self) -> bool:
        """True if a simulation makes the threads and runs their turns itself."""
        return self._make is not _Thread

    def made_by(self, make: Spawn | None) -> None:
        """Makes `spawn` use `make(name, turn)` from now on; None restores threads of the process."""
        self._make = make or _Thread


class _Thread(threading.Thread):
    def __init__(self, name: str, turn: Turn) -> None:
        super().__init__(name=name, daemon=True)
        self._turn = turn

    def run(self) -> None:
        while self._turn(_WAIT_SECONDS) is not False:
            pass


threads = Threads()


async def run_in_thread(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """Runs `work(*args, **options)`, which may block, in the engine's pool of threads, and returns its result.
    Cancelling this call does not stop the work. An exit that the work raises is wrapped (`process_exit`).
    """
    return await asyncio.get_running_loop().run_in_executor(_pool, partial(_carrying, partial(work, *args, **options)))


async def run_connected(work: Callable[P, T], /, *args: P.args, **options: P.kwargs) -> T:
    """Runs work as `run_in_thread` does, which opens connections of its own to a server, and closes them. Little of such work
    runs at once in a process, so that many callers do not take all connections of the server.
    """
    return await asyncio.get_running_loop().run_in_executor(
        _connected, partial(_carrying, partial(work, *args, **options))
    )


def begin_in_thread(work: Callable[[], T]) -> "Future[T]":
    """Begins `work()`, which may block, in the engine's pool of threads, and returns its future: for a thread that goes on meanwhile."""
    return _pool.submit(_carrying, work)


def _carrying(work: Callable[[], T]) -> T:
    try:
        return work()
    except EXITS as asked:  # `work` may call the user's code, whose exit must not end the event loop through the task that awaits it
        raise wrap_exit(asked, "the user's code") from asked


def call_on_loop(loop: asyncio.AbstractEventLoop, what: Callable[..., object], *values: Any) -> None:
    """Schedules `what(*values)` on the loop, from any thread. Does nothing if the loop is closed, because an
    abandoned thread may outlive it.
    """
    try:
        loop.call_soon_threadsafe(what, *values)
    except RuntimeError:
        if not loop.is_closed():
            raise


async def wait_done(future: Future[Any]) -> None:
    """Returns when the future is done, with a result or an error. Cancelling this wait does not cancel the future.

    `asyncio.wrap_future` would pass a cancellation on, and would log an error that nobody fetches from its copy of
    the future.
    """
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()

    def wake(_: Future[Any]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(finished.set)

    future.add_done_callback(wake)
    await finished.wait()


async def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Runs a step that must not stop half way, such as taking a lock. If the caller is cancelled, however often, it
    waits for the end of the step, and then raises CancelledError.
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


async def end_tasks(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancels tasks until they have ended, and leaves their errors out. One cancellation may be lost: that of a client
    or a user's function in `asyncio.wait_for` of Python 3.11 is, if the call that it awaits ends in the same turn.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)
        for task in ended:
            if not task.cancelled():
                task.exception()  # else asyncio logs that nobody has asked for it


async def wait_all(running: "list[asyncio.Future[None]]") -> None:
    """Returns when all futures have ended. Raises the error of the first one that fails, at once."""
    if running:
        ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        for one in ended:
            one.result()


def close_with_loop(close: Callable[[], Awaitable[object]]) -> None:
    """Awaits `close()` when the running loop ends as `asyncio.run` ends it, because objects of a loop cannot be
    closed in a later one.

    Such a loop finishes its asynchronous generators first, so a generator that is suspended at its only `yield`
    notices the end.
    """
    waiting = _until_the_end(close)
    try:
        waiting.__anext__().send(None)
    except StopIteration:  # the generator has reached its `yield`
        for loop in list(_endings):
            if loop.is_closed():  # without finishing its generators
                _endings.pop(loop, None)
        _endings.setdefault(asyncio.get_running_loop(), []).append(waiting)


async def _until_the_end(close: Callable[[], Awaitable[object]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _endings.pop(asyncio.get_running_loop(), None)
        await close()


_endings: dict[asyncio.AbstractEventLoop, list[AsyncGenerator[None, None]]] = {}
"""The generators of `close_with_loop` by loop; a loop itself has weak references to its generators only."""
