"""The user's coroutines on an event loop, for an operator in another thread.

    operator's thread                              event loop
    give(works) ──────── call_soon_threadsafe ───▶ works ▶ workers: one long-lived task for each call in flight at most
    settled()   ◀─────── on_ready ──────────────── outcomes

Workers await the function inline: a task for each call would cost as much again as the call. What goes over goes by the batch.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Protocol

import pyarrow as pa

from sabot.calls import CallOptions
from sabot.errors import InternalError, SabotError, UserError
from sabot.exits import EXITS
from sabot.redaction import scrubbed
from sabot.watch import guarded

__all__ = ["Crew", "Failed", "Work", "shown"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")

_TELL_SECONDS = 0.002  # the operator is told of results at most so often: they gather meanwhile
_WATCH_SHARE = 0.01  # of the time that an attempt may take: it may take so much more
_SLICE_SECONDS = 0.002  # calls that never wait give the loop to others after this long
_CANCEL_SECONDS = 5.0
_CANCEL_AGAIN_SECONDS = 0.5
_SHOWN_CHARACTERS = 200


class Failed:
    """The outcome of a call whose attempts have all failed, where that is passed over."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Work(Protocol):
    """Calls that are made together, by number. Its argument and outcomes are the event loop's until a call has settled."""

    outcomes: list[Any]

    @property
    def calls(self) -> int:
        """How many are to be made."""

    @property
    def exhausted(self) -> bool:
        """`take` has given all calls."""

    def take(self) -> Sequence[tuple["Work", int, Any]]:
        """The next calls that are to be made: (itself, number, argument). May be none, and there are more."""

    def outcome(self, number: int, result: Any) -> Any:
        """What is kept of the function's result. Raises UserError where it is none of those that are allowed."""


Argument = tuple[Work, int, Any]


class _Worker:
    """One call after the other. deadline: of the attempt that runs; infinite: none, or it has been cancelled for it."""

    __slots__ = ("deadline", "expired", "task")

    def __init__(self) -> None:
        self.deadline = math.inf
        self.expired = False
        self.task: asyncio.Task[None]


class Crew:
    """At most `options.concurrency` calls of `function` at once, in the order in which they are given.

    name: of the step, for errors. ordered: `on_ready` (called on the loop) tells that the first call that had not ended has; else, of
    any. on_error="skip": a call that fails is `Failed` and no more; else the first one is raised by `settled`, and no more calls are made.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[Any], Any],
        loop: asyncio.AbstractEventLoop,
        on_ready: Callable[[], None],
        *,
        options: CallOptions,
        ordered: bool,
    ) -> None:
        self.left_behind = 0  # calls that had not ended when `close` gave up
        self._name, self._function, self._loop, self._on_ready = name, function, loop, on_ready
        self._concurrency, self._ordered, self._skip = options.concurrency, ordered, options.on_error == "skip"
        self._timeout_s, self._retry = options.timeout_s, options.retry
        self._settled: deque[tuple[Work, int]] = deque()  # loop: append; operator: popleft
        self._told = False  # loop: sets; operator: clears, before it looks
        self._closing = False
        self._given = False
        self._over = threading.Event()
        self._failure: SabotError | None = None
        # the loop's alone
        self._thread: int | None = None
        self._works: deque[Work] = deque()
        self._piece: deque[Argument] = deque()
        self._workers: dict[asyncio.Task[None], _Worker] = {}
        self._parked: deque[asyncio.Future[None]] = deque()
        self._begun = 0  # calls
        self._head = 0  # all calls before this one have ended
        self._ended: set[int] = set()  # of those behind it
        self._tell_at = 0.0
        self._telling: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._slice_began = 0.0
        self._in_flight = self._retried = self._failed = self._timeouts = 0

    # -- the operator's thread ----------------------------------------------------------------------------------------

    def give(self, works: Sequence[Work]) -> None:
        """They go to the loop in one hand-over."""
        self._given = True
        self._loop.call_soon_threadsafe(self._safely(self._take), list(works))

    def settled(self) -> Iterator[tuple[Work, int]]:
        """The calls that have ended and were not told of before. Raises the error of one that failed."""
        self._told = False
        if self._failure is not None:
            raise self._failure
        settled = self._settled
        while settled:
            yield settled.popleft()

    def close(self) -> None:
        """Cancels what is in flight, and waits until it has ended: some seconds at most, for a function that does not let go.

        On the loop's own thread it does not wait: the calls end in the loop's next turns.
        """
        if self._closing:
            return
        self._closing = True
        if not self._given or not self._cancel_soon():
            return
        if self._thread is None or self._thread == threading.get_ident():
            return
        for _ in range(max(1, round(_CANCEL_SECONDS / _CANCEL_AGAIN_SECONDS))):
            if self._over.wait(_CANCEL_AGAIN_SECONDS):
                return
            if not self._loop.is_running() or not self._cancel_soon():
                return
        self.left_behind = len(self._workers)
        if self.left_behind:
            _log.error("%s: %d calls refuse to be cancelled and are left behind", self._name, self.left_behind)

    def _cancel_soon(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return False  # and its tasks are gone with it
        return True

    def statistics(self) -> dict[str, int]:
        """Figures, from any thread."""
        return {
            "calls": self._begun,
            "in_flight": self._in_flight,
            "retries": self._retried,
            "timeouts": self._timeouts,
            "failed_calls": self._failed,
        }

    # -- the event loop -----------------------------------------------------------------------------------------------

    def _take(self, works: list[Work]) -> None:
        """As many workers as there may be calls are roused, or made."""
        self._thread = threading.get_ident()
        if self._closing:
            return
        self._works.extend(works)
        wanted = sum(work.calls for work in works)
        parked = self._parked
        while wanted and parked:
            waiter = parked.popleft()
            if not waiter.done():
                waiter.set_result(None)
                wanted -= 1
        for _ in range(min(wanted, self._concurrency - len(self._workers))):
            worker = _Worker()
            task = worker.task = self._loop.create_task(self._serve(worker), name=self._name)
            self._workers[task] = worker
            task.add_done_callback(self._worker_ended)

    def _safely(self, turn: Callable[P, None]) -> Callable[P, None]:
        """A callback of the loop, whose error is told by `settled`."""
        return guarded(turn, f"{self._name}: a turn of its calls", self._fail)

    def _cancel(self) -> None:
        for timer in (self._telling, self._watching):
            if timer is not None:
                timer.cancel()
        for task in self._workers:
            task.cancel()
        if not self._workers:
            self._over.set()

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        del self._workers[task]
        error = None if task.cancelled() else task.exception()
        if self._closing:
            if not self._workers:
                self._over.set()
            if error is not None:
                _log.error("%s: a call ended with an error when it was cancelled", self._name, exc_info=error)
        elif error is not None or task.cancelled():
            what = "the task that makes the calls was cancelled from outside" if error is None else repr(error)
            failure = InternalError(f"{self._name}: {what}")
            failure.__cause__ = error
            self._fail(failure)

    async def _serve(self, worker: _Worker) -> None:
        while not self._closing:
            call = self._next()
            if call is None:
                waiter = self._loop.create_future()
                self._parked.append(waiter)
                await waiter
                continue
            work, number, argument = call
            place = self._begun
            self._begun = place + 1
            self._in_flight += 1
            try:
                outcome = await self._called(worker, work, number, argument)
            finally:
                self._in_flight -= 1
            if self._closing or self._failure is not None:
                continue
            work.outcomes[number] = outcome
            self._settled.append((work, number))
            self._end(place)
            if self._begun == place + 1:  # no other call has begun: perhaps this one has not waited for anything
                await self._give_way()

    def _next(self) -> Argument | None:
        piece, works = self._piece, self._works
        while not piece:
            if not works or self._failure is not None:
                return None
            work = works[0]
            try:
                piece.extend(work.take())
            except (Exception, *EXITS) as error:
                failure = UserError(f"{self._name}: a row cannot be given to Python: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._fail(failure)
                return None
            if work.exhausted:
                works.popleft()
        return None if self._failure is not None else piece.popleft()

    async def _called(self, worker: _Worker, work: Work, number: int, argument: Any) -> Any:
        """The outcome of a call with all its attempts."""
        attempt = 0
        while True:
            failure: BaseException
            if self._timeout_s is not None:
                worker.deadline = self._loop.time() + self._timeout_s
                if self._watching is None:
                    self._watching = self._loop.call_at(worker.deadline, self._safely(self._watch))
            try:
                result = await self._function(argument)
            except asyncio.CancelledError as error:
                expired = self._expired(worker)
                if self._closing or worker.task.cancelling():
                    raise
                failure = TimeoutError(f"no answer within {self._timeout_s:g} s") if expired else error
            except (Exception, *EXITS) as error:
                self._expired(worker)
                failure = error
            else:
                self._expired(worker)
                try:
                    return work.outcome(number, result)
                except (Exception, *EXITS) as error:
                    return self._given_up(error, argument, 0)  # the same once more would not be another
            if attempt >= self._retry.retries or self._closing or isinstance(failure, EXITS):
                return self._given_up(failure, argument, attempt)
            self._retried += 1
            await asyncio.sleep(self._retry.wait_s(attempt))
            attempt += 1

    def _expired(self, worker: _Worker) -> bool:
        """An attempt has ended. -> whether it was cancelled because it took too long."""
        worker.deadline = math.inf
        if not worker.expired:
            return False
        worker.expired = False
        worker.task.uncancel()
        return True

    def _watch(self) -> None:
        """Cancels attempts that take too long. One timer for all calls: `asyncio.timeout` around each costs more than all else here."""
        assert self._timeout_s is not None
        now = self._loop.time()
        first = math.inf
        for worker in self._workers.values():
            if worker.deadline <= now:
                worker.deadline = math.inf
                worker.expired = True
                self._timeouts += 1
                worker.task.cancel()
            first = min(first, worker.deadline)
        again = max(first, now + self._timeout_s * _WATCH_SHARE)
        self._watching = None if first == math.inf else self._loop.call_at(again, self._safely(self._watch))

    def _given_up(self, failure: BaseException, argument: Any, attempts: int) -> Failed:
        self._failed += 1
        text = failure.message if isinstance(failure, SabotError) else f"{type(failure).__name__}: {failure}"
        if not self._skip or isinstance(failure, EXITS):
            times = f" ({attempts + 1} attempts)" if attempts else ""
            hint = getattr(failure, "hint", "") or "retries= calls again; on_error='skip' goes on without the row"
            error = UserError(f"{self._name}: {text}{times}; {shown(argument)}", hint=hint)
            error.__cause__ = failure
            self._fail(error)
        return Failed(scrubbed(text))

    async def _give_way(self) -> None:
        now = self._loop.time()
        if now - self._slice_began >= _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._slice_began = self._loop.time()

    def _fail(self, error: SabotError) -> None:
        """No call is begun any more, and the operator is told at once."""
        if self._failure is None:
            self._failure = error
            self._works.clear()
            self._piece.clear()
            if not self._closing:
                self._tell()

    def _end(self, place: int) -> None:
        """The operator is told if it can go on."""
        if self._ordered:
            if place != self._head:
                self._ended.add(place)
                return
            head, ended = place + 1, self._ended
            while head in ended:
                ended.remove(head)
                head += 1
            self._head = head
        if self._told or self._telling is not None:
            return
        if self._loop.time() >= self._tell_at:
            self._tell()
        else:
            self._telling = self._loop.call_at(self._tell_at, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._told = True
        self._tell_at = self._loop.time() + _TELL_SECONDS
        self._on_ready()


def shown(argument: Any) -> str:
    """What a call was made with, shortened."""
    if isinstance(argument, pa.RecordBatch):
        first = argument.slice(0, 1).to_pylist()
        return f"a batch of {argument.num_rows} rows, the first {_short(first[0] if first else None)}"
    return f"{'row' if isinstance(argument, dict) else 'key'} {_short(argument)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
