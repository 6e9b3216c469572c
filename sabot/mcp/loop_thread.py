"""An event loop in a thread of its own, for sessions that are used from several event loops."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sabot.base.present_job import refuse_in_job
from sabot.base.threads import call_on_loop, wait_done
from sabot.errors import UserError

T = TypeVar("T")


_HINT = "await ctx.call(tool, …) calls a tool of pool.tools(…); await ctx.step(f, …) calls f outside of the job, once"


class LoopThread:
    """An event loop in a thread of its own, which is started at the first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: Future[None] | None = None

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_turn, args=(self._loop,), name="sabot-mcp", daemon=True).start()
            return self._loop

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs the coroutine on the event loop of this thread, and returns its result. Starts the thread at the first
        use. If the caller is cancelled, the coroutine is cancelled too. Raises UserError, and runs nothing, in the
        function of a job, because each run of the function would do it again.
        """
        here = asyncio.get_running_loop()
        try:
            refuse_in_job("uses a session of an MCP server", _HINT)
        except UserError:
            work.close()
            raise
        there = self._started()
        answer: asyncio.Future[T] = here.create_future()
        task: asyncio.Task[T] | None = None

        def start() -> None:
            nonlocal task
            task = there.create_task(work)
            task.add_done_callback(lambda done: call_on_loop(here, _pass_on, done, answer))

        def cancel() -> None:
            if task is not None:
                task.cancel()

        there.call_soon_threadsafe(start)
        try:
            return await answer
        except asyncio.CancelledError:
            call_on_loop(there, cancel)
            raise

    def call(self, what: Callable[..., object], *values: Any) -> None:
        """Schedules `what(*values)` on the event loop. Does nothing if the thread was never started or has ended."""
        if self._loop is not None:
            call_on_loop(self._loop, what, *values)

    async def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs the coroutine function `last` on the event loop, and then stops the loop and its thread. Does nothing if
        the thread was never started. If the caller is cancelled, only its wait ends: `last` runs on, and then the
        thread ends. Further calls wait for the same end.
        """
        with self._lock:
            loop = self._loop
            if loop is None:
                return
            if self._ending is None:
                self._ending = asyncio.run_coroutine_threadsafe(last(), loop)
                self._ending.add_done_callback(lambda _: call_on_loop(loop, loop.stop))
        await wait_done(self._ending)
        self._ending.result()


def seen(task: "asyncio.Task[Any]") -> None:
    """Reads the error of a finished task. Else asyncio would log that the error was never retrieved, because no caller
    waits for this task.
    """
    if not task.cancelled():
        task.exception()


def _pass_on(done: "asyncio.Task[T]", answer: "asyncio.Future[T]") -> None:
    """Passes the outcome of the finished task `done` to the future `answer`, for which a caller in another event loop
    waits: sets its result or its error.
    """
    error = None if done.cancelled() else done.exception()
    if answer.done():
        return
    if done.cancelled():  # and not by who waits
        answer.set_exception(UserError("the McpServerPool is closed", hint="make another one"))
    elif error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(done.result())


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Runs the loop, in its thread."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
