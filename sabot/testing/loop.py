"""Runs a whole app on one thread: an event loop that also runs the engine's threads, in turns whose order a seed
decides.

    ready        callbacks of the event loop, in order
    threads      the engine's threads of control (`sabot.base.threads.Turn`), one turn at a time
    calls        work of the loop's executors: a call runs in one turn, and its result goes to the loop
    timers       by virtual time, which grows a little in each turn, and jumps to the next timer if nothing else can run

Everything that runs belongs to a process (`SimulatedProcess`), which is found by its context. Most simulations have
one process. An app over workers has one for each worker, which may be killed while the others continue.

A turn may create work for others, so a thread that had nothing to do gets another turn after any other part has done
something.
"""

import asyncio
import heapq
import itertools
import logging
import math
import os
import random
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple

from sabot.base.threads import Turn, threads
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import InternalError

_log = logging.getLogger("asyncio")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EPOCH = 1_700_000_000.0  # the calendar time at virtual time 0, in seconds since 1970
_LONGEST_SLEEP = 1.0  # the longest jump of virtual time, because threads read the clock without setting a timer
_JOIN_LOOK_SECONDS = 0.05
_CLOSING_TURNS = 100_000
_EXECUTOR = "executor"


class Stuck(InternalError):
    """The simulation makes no progress, or has not ended within its bounds."""


class SimulatedProcess:
    """A process of a simulation. All tasks and threads that are created in its `context`, directly or by others of
    its tasks, belong to it.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.dead = False  # True if it was killed: its steps change nothing any more
        self.tasks: set[asyncio.Task[Any]] = set()  # tasks that have not ended
        self.context = copy_context()
        self.context.run(_process.set, self)


_process: ContextVar[SimulatedProcess | None] = ContextVar("process", default=None)


def process_here() -> SimulatedProcess | None:
    """Returns the process to which the running code belongs, or None for the first process of a simulation."""
    return _process.get()


class _SimulatedThread:
    """A thread of control whose turns are run by the loop."""

    def __init__(self, name: str, turn: Turn, loop: "SimulatedLoop") -> None:
        self.name = name
        self._take = turn
        self._loop = loop
        self._alive = False
        self._context = copy_context()
        self.lazy = loop.dice.choice((0.0, 0.0, 0.5, 0.95))  # the probability that it leaves its turn to others

    def start(self) -> None:
        self._alive = True
        self._loop.threads.append(self)

    def is_alive(self) -> bool:
        return self._alive

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end of the thread. If an executor's call waits, all others continue; if the event loop waits,
        only this thread continues.
        """
        loop = self._loop
        until = math.inf if timeout is None else loop.time() + timeout
        who = loop.now_in
        while self._alive and loop.time() < until:
            if who == _EXECUTOR:
                loop.turn()
            elif self.turn() is None:
                loop.pass_time(_JOIN_LOOK_SECONDS)
        loop.now_in = who

    def turn(self) -> bool | None:
        took = self._context.run(self._take, 0.0)
        if took is False:
            self._alive = False
            self._loop.threads.remove(self)
        return took


class _ExecutorCall:
    """A call that was given to the loop's `run_in_executor` and has not run yet."""

    def __init__(self, future: "asyncio.Future[Any]", function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.future = future
        self._function = function
        self._args = args
        self._context = copy_context()

    def run(self) -> Callable[[], None]:
        """Makes the call, and returns the function that passes its result to the loop."""
        try:
            result = self._context.run(self._function, *self._args)
        except BaseException as raised:
            error = raised  # Python deletes the name of an except clause at its end
            return lambda: None if self.future.done() else self.future.set_exception(error)
        return lambda: None if self.future.done() else self.future.set_result(result)


def _submit_here(
    executor: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **named: Any
) -> "Future[Any]":
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args, **named))
    except BaseException as error:
        future.set_exception(error)
    return future


class SimulatedLoop(asyncio.AbstractEventLoop):
    """The event loop, threads, executors and clock of a simulation. The same seed makes the same choices.

    `dice`: the random numbers. `most_turns` and `longest_s`: the bounds, in turns and in seconds of virtual time,
    beyond which `turn` raises Stuck.
    """

    def __init__(self, dice: random.Random, *, most_turns: int = 1_000_000, longest_s: float = 7200.0) -> None:
        self.dice = dice
        self.turns = 0
        self.threads: list[_SimulatedThread] = []
        self.on_turn: Callable[[], None] | None = None
        self.now_in = "loop"  # the part whose turn it is: a thread's name, "loop" or "executor"
        self._most_turns = most_turns
        self._longest_s = longest_s
        self._now = 0.0
        self._turn_seconds = dice.choice((0.0, 1e-5, 1e-4, 1e-3))  # the longest virtual duration of a turn
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        # A queue for each executor with one thread; calls of other executors have a queue each, because they run in any order.
        self._calls: dict[int, deque[_ExecutorCall]] = {}
        self._idle: set[_SimulatedThread] = set()
        self._running = False
        self._closed = False

    # -- the turns ----------------------------------------------------------------------------------------------------

    def run_until_complete(self, future: Any) -> Any:
        """Runs turns until the future is done, and returns its result."""
        with self._hosting():
            done = asyncio.ensure_future(future, loop=self)
            while not done.done():
                self.turn()
        return done.result()

    @contextmanager
    def _hosting(self) -> Iterator[None]:
        """Replaces threads, clock and executors of the real process by simulated ones until it exits."""

        def begin(generator: AsyncGenerator[Any, Any]) -> None:
            """Does nothing: asyncio demands the hook."""

        def end(generator: AsyncGenerator[Any, Any]) -> None:
            self.call_soon(self.create_task, generator.aclose())

        hooks, to_the_disk, submit = sys.get_asyncgen_hooks(), os.fsync, ThreadPoolExecutor.submit
        own = vars(SYSTEM_CLOCK)
        self._running = True
        threads.made_by(lambda name, turn: _SimulatedThread(name, turn, self))
        sys.set_asyncgen_hooks(begin, end)
        os.fsync = lambda fd: None  # a simulated machine does not lose power
        ThreadPoolExecutor.submit = _submit_here  # type: ignore[method-assign, assignment]  # used by threads that wait for the result
        own.update(time=lambda: _EPOCH + self._now, monotonic=self.time)
        try:
            yield
        finally:
            own.clear()
            os.fsync = to_the_disk
            ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
            sys.set_asyncgen_hooks(*hooks)
            threads.made_by(None)
            self._running = False

    def turn(self) -> None:
        """Runs one turn of a part that can do something, chosen at random. Raises Stuck beyond the bounds."""
        self.turns += 1
        if self.turns > self._most_turns or self._now > self._longest_s:
            raise Stuck(
                f"the app does not end: {self.turns} turns, {self._now:.1f} s of virtual time",
                hint=f"threads that run: {', '.join(thread.name for thread in self.threads) or 'only the event loop'}",
            )
        if self.on_turn is not None:
            self.on_turn()
        self._now += self.dice.random() * self._turn_seconds
        self._fire_timers()
        awake = [thread for thread in self.threads if thread not in self._idle]
        lines = [key for key, line in self._calls.items() if line]
        choices = bool(self._ready) + len(awake) + len(lines)
        if not choices:
            self._sleep()
            return
        choice = int(self.dice.random() * choices)
        if choice < len(awake):
            others = choices > len(awake) or any(not thread.lazy for thread in awake)
            self._step(awake[choice], others)
        elif choice < len(awake) + len(lines):
            self._run_call(lines[choice - len(awake)])
        else:
            self._call(self._ready.popleft())

    def _step(self, thread: _SimulatedThread, others: bool) -> None:
        if others and thread.lazy and self.dice.random() < thread.lazy:
            return
        self.now_in = thread.name
        if thread.turn() is None:
            self._idle.add(thread)
        else:
            self._idle.clear()

    def _run_call(self, key: int) -> None:
        line = self._calls[key]
        call = line.popleft()
        if not line:
            del self._calls[key]
        if not call.future.cancelled():
            self.now_in = _EXECUTOR
            self.call_soon(call.run())
        self._idle.clear()

    def _call(self, handle: asyncio.Handle) -> None:
        if handle.cancelled():
            return
        self.now_in = "loop"
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)
        self._idle.clear()

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)

    def _sleep(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        longest = self._now + _LONGEST_SLEEP
        self._now = max(self._now, min(self._timers[0][0], longest)) if self._timers else longest
        self._idle.clear()

    def pass_time(self, seconds: float) -> None:
        """Moves virtual time forward for a part that waits."""
        self._now += seconds

    # -- AbstractEventLoop --------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Does nothing: the timer is dropped when its time comes."""

    def run_in_executor(self, executor: Any, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self.create_future()
        number = next(self._numbers)
        in_order = getattr(executor, "_max_workers", 0) == 1
        key = id(executor) if in_order else -number
        self._calls.setdefault(key, deque()).append(_ExecutorCall(future, func, args))
        return future

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, context: Context | None = None, **options: Any) -> "asyncio.Task[Any]":
        task = asyncio.Task(coro, loop=self, context=context, **options)
        process = process_here() if context is None else context.get(_process)
        if process is not None:
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)
        return task

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Cancels the tasks that are left, and runs until they have ended. Threads that are left get no more turns."""
        if self._closed:
            return
        left = asyncio.all_tasks(self)
        for task in left:
            task.cancel()
        self._most_turns = self.turns + _CLOSING_TURNS
        self._longest_s += self._now
        if left:
            self.run_until_complete(asyncio.wait(left))
        self._closed = True
        self.threads.clear()
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        level = logging.DEBUG if self._closed else logging.ERROR  # after close, errors are expected
        _log.log(level, "%s", context.get("message"), exc_info=context.get("exception"))
