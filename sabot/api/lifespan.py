"""The objects and functions that accompany a run of an app: shared clients, functions at start and stop, and timers."""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from sabot.base.config import Duration, parse_seconds
from sabot.base.process_exit import EXITS, find_exit, wrap_exit
from sabot.engine.calls.judging import begin_judging, end_judging, with_judge
from sabot.errors import SabotError, UserError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[[], Any])

_CLOSE_SECONDS = 30.0  # the longest time for functions of the stop and for closing resources

_log = logging.getLogger(__name__)

OnTimerError = Literal["fail", "skip"]


class Resource(Generic[T]):
    """A client or another object that agents and functions share. It is open from before the first record until after
    the last one. Calling the resource returns the object.
    """

    def __init__(self, name: str, open_: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self.name = name
        self._open = open_
        self._opened: list[T] = []

    def __call__(self) -> T:
        """Returns the open object. Raises UserError while the app does not run."""
        if not self._opened:
            raise UserError(
                f"resource {self.name} is not open", hint="it is open while the app runs, for its agents and functions"
            )
        return self._opened[0]

    @asynccontextmanager
    async def held(self) -> AsyncIterator[T]:
        """Opens the object for the duration of a `with` block, and closes it afterwards."""
        async with self._open() as opened:
            self._opened.append(opened)
            try:
                yield opened
            finally:
                self._opened.clear()


class Lifespan:
    """The functions for start and stop, the resources and the timers of one app. All methods run on the app's event
    loop.
    """

    def __init__(self) -> None:
        self.topics: dict[str, tuple[int, dict[str, str]]] = {}  # by name: partitions and settings
        self.starts: list[Callable[[], Any]] = []
        self.stops: list[Callable[[], Any]] = []
        self.resources: list[Resource[Any]] = []
        self.timers: list[tuple[float, Callable[[], Awaitable[Any]], OnTimerError]] = []
        self._task: asyncio.Task[None] | None = None
        self._over: asyncio.Event | None = None

    async def open(self, stop_asked: asyncio.Event, judge: object) -> bool:
        """Opens the resources, then calls the functions of `on_start`, in the order of their declaration. Returns
        True when all have succeeded. `judge`: decides on the calls of tools and models that the functions make
        (`calls.judging.JUDGE`); None if there is none.

        Returns False if a stop was requested meanwhile; then everything is closed again. If a resource or function
        raises an error, open resources are closed again, and a UserError names the function. One task opens and
        closes everything, because some libraries require that the task that opened an object also closes it.
        """
        if judge is not None:  # before agents and streams begin: also these functions may start plain threads
            begin_judging(self, getattr(judge, "declared", frozenset()))
        self._over = asyncio.Event()
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begin = with_judge(asyncio.create_task, judge)
        self._task = task = begin(self._live(opened, self._over), name="resources")
        stopping = asyncio.ensure_future(stop_asked.wait())
        try:
            waits: list[asyncio.Future[Any]] = [opened, task, stopping]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                await self._ended(cancel=True)
            return opened.done()
        finally:
            stopping.cancel()

    async def close(self) -> None:
        """Calls the functions of `on_stop` in their order, then closes the resources, the last one first. An error
        does not prevent the other calls.

        Raises the last error as a UserError that names the function. Does nothing if it was called before, or if
        `open` was not called or has failed.
        """
        if self._task is not None:
            assert self._over is not None
            self._over.set()
            await self._ended(cancel=False)

    async def _ended(self, *, cancel: bool) -> None:
        task, self._task = self._task, None
        assert task is not None
        if cancel:
            task.cancel()
        try:
            done, _ = await asyncio.wait([task], timeout=_CLOSE_SECONDS)
        finally:
            end_judging(self)
        if not done:
            _log.error("functions and resources of the app have not ended in %g s, and are cancelled", _CLOSE_SECONDS)
            task.cancel()
        elif not task.cancelled():
            task.result()

    async def _live(self, opened: "asyncio.Future[None]", over: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            for resource in self.resources:
                with _told(f"resource {resource.name} could not be opened"):
                    opening = resource.held()
                    await opening.__aenter__()
                stack.push_async_exit(partial(_left, resource.name, opening))
            for function in self.starts:
                with _told(f"on_start {_name(function)} has failed"):
                    await _called(function)
            for function in reversed(self.stops):
                stack.push_async_callback(_stopped, function)
            opened.set_result(None)
            await over.wait()

    def ticking(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Yields for each timer a pair: its name, and a function that returns a coroutine which calls the user's
        function for ever.
        """
        for seconds, function, on_error in self.timers:
            yield f"timer {_name(function)}", partial(_tick, seconds, function, on_error)


class HasLifespan:
    """The methods of an App that register resources, timers, and functions for its start and its stop."""

    lifespan: Lifespan

    def on_start(self, function: F) -> F:
        """Registers a function that is called without arguments at each start of the app, before the first record is
        read: `@app.on_start`.

        It may be async. If it raises an error, the start fails with a UserError that names the function. Raises
        UserError for a value that cannot be called.
        """
        self.lifespan.starts.append(_callable(function, "on_start"))
        return function

    def on_stop(self, function: F) -> F:
        """Registers a function that is called when the app stops: after the last record and the last checkpoint, and
        before resources are closed: `@app.on_stop`.

        It is also called after a failure, and may be async. If the process is killed, it is not called: write results
        that must not be lost into a sink. Raises UserError for a value that cannot be called.
        """
        self.lifespan.stops.append(_callable(function, "on_stop"))
        return function

    def resource(self, function: Callable[[], AsyncIterator[T]]) -> Resource[T]:
        """Registers a client that agents and functions share, for example a pool of connections: an async generator
        that yields it once.

            @app.resource
            async def http():
                async with httpx.AsyncClient(timeout=10) as client:
                    yield client

        While the app runs, `http()` returns the client. It is opened before the first record, in the order of
        declaration, and closed after the last one. Raises UserError for anything but an async generator function.
        """
        if not inspect.isasyncgenfunction(function):
            raise UserError(
                f"resource {_name(function)} is not an async generator function",
                hint="write async def …, which opens, yields and closes it",
            )
        made = Resource(_name(function), asynccontextmanager(function))
        self.lifespan.resources.append(made)
        return made

    def timer(self, interval: Duration, *, on_error: OnTimerError = "fail") -> Callable[[F], F]:
        """Registers an async function that is called each `interval` of wall time while the app runs:
        `@app.timer("10s")`.

        The first call is one interval after the start. Calls do not overlap: a call that takes longer than the
        interval delays the next call. A restart begins with a new interval. `on_error`: "fail" ends the run, as a
        failed agent does; "skip" logs the error and continues. Raises UserError for a function that is not async.
        """
        seconds = parse_seconds(interval, name="timer", zero=False)
        if on_error not in ("fail", "skip"):
            raise UserError(f"timer: on_error={on_error!r} is unknown", hint='"fail" or "skip"')

        def added(function: F) -> F:
            if not inspect.iscoroutinefunction(function):
                raise UserError(f"timer {_name(function)} is not async", hint="write async def")
            self.lifespan.timers.append((seconds, function, on_error))
            return function

        return added


async def _tick(seconds: float, function: Callable[[], Awaitable[Any]], on_error: OnTimerError) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            with _told(f"timer {_name(function)} has failed"):
                await function()
        except SabotError as error:
            if on_error == "fail" or find_exit(error) is not None:
                raise
            _log.error("%s; it goes on in %g s", error, seconds, exc_info=error.__cause__)


async def _left(name: str, opening: AbstractAsyncContextManager[Any], *raised: Any) -> None:
    with _told(f"resource {name} could not be closed"):
        await opening.__aexit__(None, None, None)


async def _stopped(function: Callable[[], Any]) -> None:
    with _told(f"on_stop {_name(function)} has failed"):
        await _called(function)


async def _called(function: Callable[[], Any]) -> None:
    made = function()
    if inspect.isawaitable(made):
        await made


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Returns a context manager for a block that runs the user's code. An error of the block becomes a UserError
    whose message begins with `what`, and so does a CancelledError, unless the task of the block was cancelled. A
    request to exit (such as SystemExit) becomes an error that contains the request.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise UserError(f"{what}: it cancelled itself") from error
    except EXITS as asked:
        raise wrap_exit(asked, what) from asked
    except SabotError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise UserError(f"{what}: {said}") from error


def _callable(function: Any, word: str) -> Any:
    if not callable(function):
        raise UserError(f"{word}: {function!r} is not a function", hint=f"put @app.{word} above a function")
    return function


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", repr(function)))
