"""Makes calls of the user's function on the event loop, with a limit on how many run at once. Each call runs in a context
(`contextvars`) of its own, as it would in a task of its own.

    queue ──▶ worker: begin ▶ await ▶ written ▶ ended ──▶ the next one
                        ▲                │
                        └─ after a wait ─┴ attempt_failed ▶ … ▶ failed

Before an attempt begins, the limits are asked (`limits`): a rate that the user gave, and the number of calls that the
service accepts, once it has refused one as too many (`Overloaded`). A refused call is made again when there is room;
that is not a failed attempt.

A worker is one long-lived task that makes one call after the other, inline: a task for each call would take as much time
again as the call. Workers share one queue, or each has a queue of its own; then the items of one queue are called one
after the other, in their order.
"""

import asyncio
import contextvars
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sabot.base.process_exit import EXITS
from sabot.base.supervision import watch_call
from sabot.clock import Clock
from sabot.engine.calls.judging import JUDGE, OnceJudge
from sabot.engine.calls.limits import AdaptiveLimit, Limit, TokenBucket
from sabot.engine.calls.options import CallOptions
from sabot.errors import Overloaded, SabotError

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_log = logging.getLogger(__name__)

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

CANCEL_SECONDS = 5.0
"""Seconds after which a cancelled call that has not ended is abandoned."""

_CANCEL_AGAIN_SECONDS = 2.5  # for code that swallows one cancellation; its clean-up is not disturbed before that
_SLICE_SECONDS = 0.002  # calls that never wait let other tasks run after this time
_OVERLOADED_SECONDS = 600.0  # a call that has been refused for so long has failed
_WATCH_SHARE = 0.01  # the share of timeout= by which an attempt may exceed it: the watch checks no more often


class Calls(Protocol[T_contra]):
    """The object for which a crew (class `Crew`) makes calls. The crew decides when a call begins and when it is
    repeated; this object calls the user's function and handles the outcome. T_contra is the type of an item: the work
    of one call, such as a row. All methods run on the event loop.
    """

    def begin(self, item: T_contra, run: Callable[..., Any]) -> tuple[Any, Any, bool]:
        """Calls the user's function as `run(function, …)`. `run` is the method `Context.run` of a `contextvars.Context`
        that is new for each attempt. If this method raises an error, the attempt fails.

        Returns a tuple of three:

        - a value that this object needs later: the crew passes it to `ended` as `about`;
        - the result of the function;
        - True if this result is a coroutine that the crew has to await.
        """

    def written(self, item: T_contra, value: Any) -> Any:
        """Converts the function's result, which is not None, to the form in which it is stored. Returns that form,
        which `ended` gets as `output`. An error of this method makes the attempt fail.
        """

    def ended(self, item: T_contra, about: Any, output: Any) -> Awaitable[None] | None:
        """Called when a call has succeeded, to use its result. Returns an awaitable if the worker has to wait before its
        next call, and None otherwise.

        `about`: the first value that `begin` has returned. `output`: the value that `written` has returned; None if
        the function has returned None.
        """

    def attempt_failed(self, item: T_contra, failure: BaseException, attempts: int) -> bool:
        """Called when an attempt has failed. `attempts`: the number of failed attempts, including this one.

        Returns False in the usual case: the attempt counts, and the option `retries` decides whether another one
        follows.

        Returns True if this method has made the item smaller, by removing the part that failed. The crew then does not
        count the attempt, and calls the function again at once with what remains.
        """

    def renew(self, item: T_contra) -> None:
        """Restores the item, which the failed attempt may have changed. Called before another attempt."""

    def failed(self, item: T_contra, failure: BaseException, attempts: int) -> Awaitable[None] | None:
        """Called when no further attempt of a call follows: all attempts have failed, or the service has refused the
        call for too long because it is overloaded, or the last attempt has raised KeyboardInterrupt or SystemExit. This
        object has to drop the item, to send it to the dead letters, or to end its step or agent.

        `attempts`: the number of attempts that have failed. Returns an awaitable or None, as `ended` does.
        """

    def worker_ended(self, item: T_contra | None, error: BaseException | None) -> None:
        """Called when the task of a worker has ended although the crew was not stopped. The crew starts no new worker;
        this object has to report the error, and to end its step or agent. `item`: the item of the worker's current
        call; None if it had none. `error`: the error of the task; None if other code has cancelled the task.
        """

    def broke(self, what: str, error: SabotError) -> None:
        """Called with an unexpected error in a timer callback of the crew. This object has to report the error, and to
        end its step or agent. `what`: the name of that callback, for messages.
        """


class _Resume:
    """An awaitable that runs the rest of a coroutine whose first step was run before. Every step runs in the
    `contextvars` context of the call, but in the worker's task. So `asyncio.current_task()` returns the worker's task,
    and a cancellation of that task reaches the coroutine.
    """

    __slots__ = ("_coroutine", "_run", "_waiting")

    def __init__(self, run: Callable[..., Any], coroutine: Any, waiting: Any) -> None:
        self._run = run
        self._coroutine = coroutine
        self._waiting = waiting

    def __await__(self) -> Generator[Any, Any, Any]:
        run, coroutine, waiting = self._run, self._coroutine, self._waiting
        try:
            while True:
                try:
                    sent = yield waiting
                except BaseException as error:  # the loop throws it in; most often it is a cancellation
                    waiting = run(coroutine.throw, error)
                else:
                    waiting = run(coroutine.send, sent)
        except StopIteration as stop:
            return stop.value


class Worker(Generic[T]):
    """A long-lived task that makes one call after the other.

    - `item`: the item of the current call; None if there is no current call.
    - `started`: the time at which the current attempt began, in seconds of the monotonic clock; infinity while no
      attempt is running.
    """

    __slots__ = ("item", "overtime", "queue", "started", "task", "waiter")

    def __init__(self, queue: deque[T]) -> None:
        self.queue = queue
        self.item: T | None = None
        self.started = math.inf
        self.overtime = False  # True if the attempt was cancelled because it took too long
        self.waiter: asyncio.Future[None] | None = None  # set while it has nothing to do: `rouse` ends the wait
        self.task: asyncio.Task[None] | None = None

    def items(self) -> list[T]:
        """Returns the items that are not finished: the item of the current call, if there is one, and then the items
        in the worker's queue.
        """
        return list(self.queue) if self.item is None else [self.item, *self.queue]

    def rouse(self) -> None:
        """Wakes the worker, because an item was put into its queue."""
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)


class Crew(Generic[T]):
    """The worker tasks that call one user's function, with a limit on how many calls are in flight at once.

    - `name`: the name of the crew in messages, such as "agent shop.check".
    - `calls`: the object that calls the function and handles the outcomes.
    - `own_queues`: True to make `concurrency` workers at once, each with a queue of its own. False to let all workers
      share the attribute `queue`; `rouse` then makes a worker when it is needed.
    - `refill`: a function that the crew calls when the shared queue is empty. It puts the next items into that queue.
    """

    def __init__(
        self,
        name: str,
        calls: Calls[T],
        options: CallOptions,
        *,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        own_queues: bool = False,
        refill: Callable[[deque[T]], None] | None = None,
    ) -> None:
        self.name = name
        self.queue: deque[T] = deque()  # shared by the workers, unless each has its own
        self.workers = [Worker(deque[T]()) for _ in range(options.concurrency)] if own_queues else []
        self.left_behind: list[T] = []  # items whose calls did not end after a cancellation
        self.retries = self.timeouts = self.overloads = 0
        self._attempts = 0
        self._attempt_seconds = 0.0  # of the attempts that have ended
        self._calls, self._options, self._clock, self._loop = calls, options, clock, loop
        self._own_queues, self._refill = own_queues, refill
        self._parked: deque[Worker[T]] = deque()  # idle workers, if they share a queue
        self._limits: list[Limit] = []
        self._adaptive: AdaptiveLimit | None = None  # None until the first call is refused
        self._waiting: deque[asyncio.Future[None]] = deque()  # workers that wait until the limits let a call begin
        self._admitting: asyncio.TimerHandle | None = None
        self._reset_limits()
        self._stopping = False
        self._over = False
        self._stop_asked = asyncio.Event()
        self._watching: asyncio.TimerHandle | None = None
        self._context = contextvars.copy_context()

    # -- start and stop ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the tasks of the existing workers, and allows calls to begin. Called for a new crew, and to start a
        crew again after `close`. The items of calls that `close` has cancelled are still in the crew, and are called
        again.
        """
        self._stopping = False
        self._stop_asked.clear()
        self._reset_limits()
        for number, worker in enumerate(self.workers):
            self._employ(worker, number)

    def rouse(self, count: int) -> None:
        """Wakes idle workers, because the shared queue has new items, or `refill` has some. If there are too few idle
        workers, makes new ones up to the option `concurrency`. `count`: the number of new items, which is the number
        of workers that are needed.
        """
        parked = self._parked
        while count and parked:
            parked.popleft().rouse()
            count -= 1
        for _ in range(min(count, self._options.concurrency - len(self.workers))):
            worker = Worker(self.queue)
            self.workers.append(worker)
            self._employ(worker, len(self.workers) - 1)

    def _employ(self, worker: Worker[T], number: int) -> None:
        # the text of an error and handlers of logging are code of users too: they are judged as the calls are
        context = self._context.copy()
        worker.task = self._loop.create_task(self._serve(worker), name=f"{self.name}#{number}", context=context)
        worker.task.add_done_callback(partial(self._worker_ended, worker))

    def _worker_ended(self, worker: Worker[T], task: asyncio.Task[None]) -> None:
        """Handles the end of a worker's task. Calls `Calls.worker_ended` if the crew was not stopped. Otherwise only
        logs the error of the task, if it has one.
        """
        error = None if task.cancelled() else task.exception()
        if not self._stopping and not self._over and worker.task is task:
            self._calls.worker_ended(worker.item, error)
        elif error is not None:
            _log.error("%s: a call ended with an error when it was cancelled", self.name, exc_info=error)

    @property
    def stopped(self) -> bool:
        """True if no further call begins, because `stop`, `cancel` or `close` was called."""
        return self._stopping

    def stop(self) -> None:
        """Makes the crew begin no further calls. Running calls continue."""
        self._stopping = True
        self._stop_asked.set()
        if self._watching is not None and not self._busy():
            self._watching.cancel()
            self._watching = None
        for worker in self.workers:
            worker.rouse()
        self._parked.clear()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()
        if self._admitting is not None:
            self._admitting.cancel()
            self._admitting = None

    async def quiesce(self, grace_s: float) -> None:
        """Stops the crew, so that no further call begins, and waits up to `grace_s` seconds until the running calls
        have ended. Calls that take longer continue.
        """
        self.stop()
        tasks = [worker.task for worker in self.workers if worker.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)

    def cancel(self) -> None:
        """Stops the crew, so that no further call begins, and cancels the running calls. Does not wait until they
        have ended.
        """
        self.stop()
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        for worker in self.workers:
            if worker.task is not None:
                worker.task.cancel()

    async def close(self) -> None:
        """Cancels the running calls, and waits at most CANCEL_SECONDS until they have ended. Items whose call was
        cancelled or has not begun remain in the crew; `start` calls them.

        Stores in `left_behind` the items of the calls that are still running after that time. If `close` is called
        again, it cancels these calls again, with the same time limit.
        """
        rounds = max(1, round(CANCEL_SECONDS / _CANCEL_AGAIN_SECONDS))
        for _ in range(rounds):
            self.cancel()
            running = [worker.task for worker in self.workers if worker.task is not None and not worker.task.done()]
            if not running:
                break
            await asyncio.wait(running, timeout=CANCEL_SECONDS / rounds)
        stuck = [worker for worker in self.workers if worker.task is not None and not worker.task.done()]
        self.left_behind = [worker.item for worker in stuck if worker.item is not None]
        for worker in self.workers:
            worker.started = math.inf

    def end(self) -> None:
        """Ends the crew for good after the failure of a call. No further call begins, and the calls of all other
        workers are cancelled.
        """
        self._over = True
        current = asyncio.current_task()
        for worker in self.workers:
            if worker.task is not None and worker.task is not current:
                worker.task.cancel()

    # -- figures ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of calls that have begun and have not ended. It includes calls that wait for another attempt.
        May be read from any thread.
        """
        return sum(worker.item is not None for worker in self.workers)

    @property
    def limit(self) -> int:
        """The number of calls that may be in flight now: the user's limit, or less after the service was overloaded."""
        return self._options.concurrency if self._adaptive is None else self._adaptive.limit

    def statistics(self) -> "ToldStep":
        """Returns its figures, without `calls` and `failed_calls`. May be called from any thread."""
        now = self._clock.monotonic()
        running = [started for worker in self.workers if (started := worker.started) < math.inf]
        return {
            "in_flight": self.in_flight,
            "limit": self.limit,
            "attempts": self._attempts,
            "attempt_seconds": self._attempt_seconds,
            "running_seconds": sum(max(0.0, now - started) for started in running),
            "retries": self.retries,
            "timeouts": self.timeouts,
            "overloads": self.overloads,
        }

    def longest(self) -> tuple[T, float] | None:
        """Returns the item of the attempt that has been running for the longest time, and that time in seconds.
        Returns None if no attempt is running.
        """
        running = [worker for worker in self.workers if worker.started < math.inf and worker.item is not None]
        if not running:
            return None
        worker = min(running, key=lambda each: each.started)
        assert worker.item is not None
        return worker.item, self._clock.monotonic() - worker.started

    def _busy(self) -> bool:
        return any(worker.started < math.inf for worker in self.workers)

    # -- calls --------------------------------------------------------------------------------------------------------

    async def _serve(self, worker: Worker[T]) -> None:
        """Runs the loop of one worker until the crew stops: removes the next item from the queue, calls the user's
        function until an attempt succeeds or no further attempt follows, and passes the outcome to `Calls.ended` or
        `Calls.failed`.
        """
        calls, queue, monotonic, context = self._calls, worker.queue, self._clock.monotonic, self._context
        begin, written, ended = calls.begin, calls.written, calls.ended
        timed = self._options.timeout_s is not None
        retry = self._options.retry
        task = asyncio.current_task()
        assert task is not None
        once, context = OnceJudge(context.get(JUDGE)), context.copy()
        context.run(JUDGE.set, once)
        fresh = context.copy
        attempts = overloads = made_of_item = 0
        # Calls that do not wait are counted together, and the next one's beginning is taken for the end of one: a clock
        # read and two additions for each call could be measured.
        made, spent, since = 0, 0.0, math.inf
        first_began = math.inf  # the time at which the first refused attempt began
        slice_end = monotonic() + _SLICE_SECONDS
        while not self._stopping and not self._over:
            item = worker.item
            if item is None:
                if not queue and not self._refilled():
                    made, spent, since = self._counted(made, spent, since)
                    await self._rest(worker)
                    slice_end = monotonic() + _SLICE_SECONDS
                    continue
                item = worker.item = queue.popleft()
                attempts = overloads = made_of_item = 0
            if self._limits:
                made, spent, since = self._counted(made, spent, since)
                if not await self._admitted():
                    continue
            failure: BaseException | None = None
            output: Any = None
            worker.started = began = now = monotonic()
            if since < began:
                spent += began - since
            waited = False
            if timed and self._watching is None:
                self._watch_soon()
            try:
                run = fresh().run
                if once.called:
                    once.begin(made_of_item)
                made_of_item += 1
                about, value, pending = begin(item, run)
                if pending:
                    try:
                        waiting = run(value.send, None)
                    except StopIteration as stop:
                        value = stop.value
                    else:
                        value = await _Resume(run, value, waiting)
                        now = monotonic()
                        slice_end = now + _SLICE_SECONDS
                        waited = True
                if value is not None:
                    output = written(item, value)
            except asyncio.CancelledError as error:
                failure = self._cancelled(worker, task, error)
                if failure is None:
                    raise
            except GeneratorExit:  # the loop is gone
                raise
            except BaseException as error:
                failure = error
            if worker.task is not task:  # the call was left behind, and the crew has started again
                return
            worker.started = math.inf
            made += 1
            if waited or failure is not None:
                made, spent, since = self._counted(made, spent, began)
            else:
                since = began
            late, worker.overtime = worker.overtime, False
            if task.cancelling():
                if failure is not None and self._stopping:
                    return  # the call was cancelled to stop the worker, and raised another error instead
                # Requests to cancel are left over by TaskGroup (Python 3.11), and by a call that returns although it
                # was cancelled.
                for _ in range(task.cancelling()):
                    task.uncancel()
            if self._over:
                return
            if failure is None:
                if self._limits:
                    self._attempt_ended(began, well=True)
                room = ended(item, about, output)
            else:
                is_exit = isinstance(failure, EXITS)
                if late and not is_exit:
                    failure = TimeoutError(f"the call took longer than timeout={self._options.timeout_s}s")
                if isinstance(failure, Overloaded):
                    wait_s = max(failure.retry_after, retry.wait_s(overloads))
                    first_began = first_began if overloads else began
                    overloads += 1
                    self._turned_away(began, failure.retry_after)
                    if monotonic() + wait_s <= first_began + _OVERLOADED_SECONDS:
                        await asyncio.sleep(wait_s)
                        calls.renew(item)
                        continue
                elif self._limits:
                    self._attempt_ended(began, well=False)
                if not is_exit and calls.attempt_failed(item, failure, attempts + 1):
                    continue
                attempts += 1
                if attempts <= retry.retries and not isinstance(failure, (*EXITS, Overloaded)):
                    self.retries += 1
                    await asyncio.sleep(retry.wait_s(attempts - 1))
                    calls.renew(item)
                    continue
                room = calls.failed(item, failure, attempts)
                now = slice_end  # calls that only fail must let other tasks run too
            if self._over:
                return
            worker.item = None
            if room is None and now < slice_end:
                continue
            made, spent, since = self._counted(made, spent, since)
            if room is not None:
                await self._unless_stopped(room)
            else:
                await asyncio.sleep(0)
            slice_end = monotonic() + _SLICE_SECONDS

    def _counted(self, attempts: int, seconds: float, since: float) -> tuple[int, float, float]:
        """Adds attempts to the crew's statistics. Returns (0, 0.0, infinity): the new values for the three local
        variables in which a worker counts its attempts, and which it passes as arguments.

        - `attempts`: the number of attempts to add; with 0, nothing is added.
        - `seconds`: the total duration of these attempts without the last one.
        - `since`: the time at which the last one began. It has lasted until now.
        """
        if attempts:
            self._attempts += attempts
            self._attempt_seconds += seconds + self._clock.monotonic() - since
        return 0, 0.0, math.inf

    def _refilled(self) -> bool:
        if self._refill is None:
            return False
        self._refill(self.queue)
        return bool(self.queue)

    async def _rest(self, worker: Worker[T]) -> None:
        """Waits until `rouse` wakes this worker, because its queue has an item or `refill` has one for it."""
        worker.waiter = waiter = self._loop.create_future()
        if not self._own_queues:
            self._parked.append(worker)
        await waiter

    async def _unless_stopped(self, waiting: Awaitable[None]) -> None:
        """Waits until `waiting` is done or the crew is stopped. Cancels `waiting` if it is not done by then. Raises
        its error if it has failed.
        """
        ends = [asyncio.ensure_future(waiting), self._loop.create_task(self._stop_asked.wait())]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in done:
                end.result()
        finally:
            for end in ends:
                end.cancel()

    def _cancelled(
        self, worker: Worker[T], task: asyncio.Task[Any], error: asyncio.CancelledError
    ) -> BaseException | None:
        """Handles a CancelledError that a call has raised.

        - If the worker was cancelled, returns None: the worker has to end.
        - If the call was cancelled by its time limit, or has cancelled itself, returns the error with which the attempt
          fails.
        """
        if self._stopping or self._over:
            return None
        if worker.overtime or not task.cancelling():
            failure = RuntimeError("the call cancelled itself")
            failure.__cause__ = error
            return failure
        return None

    # -- limits -------------------------------------------------------------------------------------------------------

    def _reset_limits(self) -> None:
        self._adaptive, self._limits = None, []
        if self._options.rate is not None:
            self._adaptive = AdaptiveLimit(self._options.concurrency)
            self._limits = [TokenBucket(self._options.rate), self._adaptive]

    async def _admitted(self) -> bool:
        """Waits until the limits allow the next call of this worker. Workers are admitted in the order in which they
        asked. Returns True if the call may begin, and False if the crew was stopped meanwhile.
        """
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        self._admit()
        try:
            await waiter
        except asyncio.CancelledError:
            # the worker was admitted, and takes no call now
            if waiter.done() and not waiter.cancelled() and not self._stopping:
                self._attempt_ended(self._clock.monotonic(), well=False)
            raise
        return not self._stopping

    def _admit(self) -> None:
        """Admits as many waiting workers as the limits allow now. If the next one only has to wait for some time, and
        not for the end of another call, sets a timer that admits it.
        """
        waiting, limits = self._waiting, self._limits
        if self._admitting is not None:
            self._admitting.cancel()
            self._admitting = None
        now = self._clock.monotonic()
        while waiting:
            if waiting[0].done():  # cancelled
                waiting.popleft()
                continue
            wait_s = max(limit.wait_s(now) for limit in limits)
            if wait_s > 0.0:
                if wait_s < math.inf:
                    what = f"the timer for limits of {self.name}"
                    turn = watch_call(self._admit, what, partial(self._calls.broke, what))
                    self._admitting = self._loop.call_later(wait_s, turn)
                return
            for limit in limits:
                limit.begun(now)
            waiting.popleft().set_result(None)

    def _attempt_ended(self, began: float, *, well: bool) -> None:
        now = self._clock.monotonic()
        for limit in self._limits:
            limit.ended(now, began, well=well)
        if self._waiting:
            self._admit()

    def _turned_away(self, began: float, retry_after_s: float) -> None:
        """Lowers the limit on calls in flight, because the service has refused a call with the reason that it is
        overloaded. `began`: the time at which that call began. `retry_after_s`: the seconds for which the service
        asks for no further calls.
        """
        self.overloads += 1
        if self._adaptive is None:
            running = sum(worker.started < math.inf for worker in self.workers)
            self._adaptive = AdaptiveLimit(self._options.concurrency, running + 1)
            self._limits.append(self._adaptive)
        now = self._clock.monotonic()
        for limit in self._limits:
            limit.overloaded(now, began, min(retry_after_s, _OVERLOADED_SECONDS))
        if self._waiting:
            self._admit()

    # -- calls that take too long -------------------------------------------------------------------------------------

    def _watch_soon(self) -> None:
        assert self._options.timeout_s is not None
        self._watch_in(self._options.timeout_s)

    def _watch_in(self, seconds: float) -> None:
        what = f"the timer for timeout= of {self.name}"
        self._watching = self._loop.call_later(seconds, watch_call(self._watch, what, partial(self._calls.broke, what)))

    def _watch(self) -> None:
        """Cancels the attempts that have taken longer than `timeout=`, and sets the timer for the next check. One
        timer serves all workers, because an `asyncio.timeout` around each call would take longer than the crew's own
        work for the call.
        """
        timeout_s = self._options.timeout_s
        assert timeout_s is not None
        self._watching = None
        now = self._clock.monotonic()
        first = math.inf
        for worker in self.workers:
            due = worker.started + timeout_s
            if due > now:
                first = min(first, due)
            elif not worker.overtime and worker.task is not None:
                worker.overtime = True
                self.timeouts += 1
                worker.task.cancel()
        if first < math.inf:
            self._watch_in(max(first - now, timeout_s * _WATCH_SHARE))
