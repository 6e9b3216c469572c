"""Calls for an operator in a thread of its own, made by a crew on the event loop.

    operator's thread                              event loop
    give(works) ──────── call_soon_threadsafe ───▶ works ▶ queue ▶ crew
    settled()   ◀─────── on_ready ──────────────── outcomes

Calls and outcomes are passed on in batches, because waking a thread takes longer than a call.
"""

import asyncio
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

import pyarrow as pa

from sabot.base.logs import trace_of
from sabot.base.process_exit import EXITS
from sabot.base.redaction import scrubbed
from sabot.base.stored_names import stored_name
from sabot.base.supervision import watch_call
from sabot.clock import Clock
from sabot.engine.calls.crew import CANCEL_SECONDS, Crew
from sabot.engine.calls.error_log import ErrorLog
from sabot.engine.calls.options import CallOptions
from sabot.errors import InternalError, SabotError, UserError, short_repr

if TYPE_CHECKING:
    from sabot.base.figures import ToldStep

_log = logging.getLogger(__name__)

P = ParamSpec("P")

_TELL_SECONDS = 0.002  # the shortest interval between two notifications of the operator; outcomes gather meanwhile
# The interval at which `close`, while it waits for cancelled calls, checks that their event loop still runs.
_LOOK_SECONDS = 0.5


class Failed:
    """The outcome of a call whose attempts have all failed, in a step with on_error="skip".

    - `text`: the class and the message of the error, as "ValueError: …". For an error of a class of Sabot, only the
      message.
    - `kind`: the name of the error's class.
    - `attempts`: the number of attempts that were made.
    - `trace`: the frames of the traceback that are in the user's code, as text; None if there are none.

    If this object was restored from a checkpoint, only `text` is known.
    """

    __slots__ = ("attempts", "kind", "text", "trace")

    def __init__(self, text: str, kind: str = "", attempts: int | None = None, trace: str | None = None) -> None:
        self.text, self.kind, self.attempts, self.trace = text, kind, attempts, trace

    @property
    def error(self) -> tuple[str, str]:
        """The error's class and its message."""
        kind, behind, message = self.text.partition(": ")
        if behind and (kind == self.kind or (not self.kind and kind.isidentifier() and kind[0].isupper())):
            return kind, message
        return self.kind or "SabotError", self.text


class Work(Protocol):
    """A batch of calls, which are numbered. `outcomes` stores the outcome of each call under its number. The event
    loop sets an outcome; the operator may read it once `Handover.settled` has yielded the call.
    """

    outcomes: list[Any]

    @property
    def calls(self) -> int:
        """The number of calls in this batch."""

    @property
    def exhausted(self) -> bool:
        """True when `take` has returned all calls of this batch."""

    def take(self, places: Iterator[int]) -> Sequence["Call"]:
        """Reads some of the next rows or questions, and returns calls for those that need one, in order. Gives each
        call its place in the order of all calls, which is the next number of the iterator `places`.

        Returns an empty sequence if none of the rows or questions that it has read needs a call. The caller calls this
        method again until `exhausted` is True.
        """

    def argument(self, number: int) -> Any:
        """Returns a new copy of the argument of the call with this number. It is needed for another attempt, because
        the failed attempt may have changed the copy that it got.
        """

    def outcome(self, number: int, result: Any) -> Any:
        """Converts the result of call `number` to the form in which `outcomes` stores it, and returns that form.
        Raises UserError for a result that the step does not allow.
        """


Call = tuple[Work, int, Any, int]
"""The work, the number of the call in it, the argument, and the place in the order of all calls."""


class Handover:
    """Passes calls from an operator, which runs in a thread of its own, to a crew (class `Crew`) on the event loop,
    and passes the outcomes back. Calls begin in the order in which the operator has passed them.

    - `name`: the name of the step, for errors.
    - `argument`: a noun for the argument of a call, such as "row", for errors.
    - `again`: the sentence about retries in the hint of an error.
    - `on_ready`: a function that the event loop calls to notify the operator that calls have ended.
    - `ordered`: True if the operator needs the outcomes in the order of the calls. `on_ready` is then called only
      when the first call without an outcome has ended, and not for calls after it.

    With on_error="skip" in the options, the outcome of a failed call is a `Failed`. Otherwise the first failure stops
    all calls, and `settled` raises it.
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
        clock: Clock,
        argument: str = "row",
        again: str = "retries= calls again",
    ) -> None:
        self.left_behind = 0  # calls that had not ended when `close` gave up
        self._name, self._function, self._loop, self._on_ready = name, function, loop, on_ready
        self._ordered, self._skip = ordered, options.on_error == "skip"
        self._argument, self._again = argument, again
        self._errors = ErrorLog(name, clock)
        self._crew: Crew[Call] = Crew(name, self, options, clock=clock, loop=loop, refill=self._refill)
        self._settled: deque[tuple[Work, int]] = deque()  # the loop appends; the operator pops from the left
        self._told = False  # the loop sets it; the operator clears it before it reads
        self._closing = False
        self._given = False
        self._over = threading.Event()
        self._failure: SabotError | None = None
        # The following fields belong to the event loop alone.
        self._thread: int | None = None
        self._works: deque[Work] = deque()
        self._places = itertools.count()
        self._head = 0  # all calls before this place have ended
        self._ended_behind: set[int] = set()  # the places of ended calls after the head
        self._tell_at = 0.0
        self._telling: asyncio.TimerHandle | None = None
        self._ended = self._failed = 0
        self._closer: asyncio.Task[None] | None = None

    # -- the operator's thread ----------------------------------------------------------------------------------------

    def give(self, works: Sequence[Work]) -> None:
        """Passes the works to the event loop, where their calls are queued for the crew. Does not wait for the calls.
        Called in the operator's thread.
        """
        self._given = True
        self._loop.call_soon_threadsafe(self._safely(self._take), list(works))

    def settled(self) -> Iterator[tuple[Work, int]]:
        """Yields a pair (work, number) for each call that has ended and was not yielded before. Its outcome is
        `work.outcomes[number]`.

        Raises the error that has stopped all calls, if there is one: the failure of a call without on_error="skip",
        or an error of a worker.
        """
        self._told = False
        if self._failure is not None:
            raise self._failure
        settled = self._settled
        while settled:
            yield settled.popleft()

    def close(self) -> None:
        """Cancels the calls in flight, and waits until they have ended. It waits for about CANCEL_SECONDS plus one
        second at most. The number of calls that are still running then, because they ignore their cancellation, is
        stored in `left_behind`.

        If this is called in the thread of the event loop, it does not wait: the calls end after it has returned, when
        the loop runs again.
        """
        if self._closing:
            return
        self._closing = True
        if not self._given:
            return
        here = self._thread is None or self._thread == threading.get_ident()
        try:
            self._loop.call_soon_threadsafe(self._cancel, not here)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            self._errors.flush()
            return  # the loop is closed, and its tasks are gone
        if here:
            return
        looks = round(CANCEL_SECONDS / _LOOK_SECONDS) + 2
        over = any(self._over.wait(_LOOK_SECONDS) or not self._loop.is_running() for _ in range(looks))
        if not self._loop.is_running():  # else the log belongs to the thread of the loop
            self._errors.flush()
        self.left_behind = len(self._crew.left_behind) if over else self._crew.in_flight
        if self.left_behind:
            _log.error(
                "%s: %d calls did not end after their cancellation and are abandoned", self._name, self.left_behind
            )

    def statistics(self) -> "ToldStep":
        """Returns the figures of the crew, with `calls` and `failed_calls`. May be called from any thread."""
        figures = self._crew.statistics()
        return {**figures, "calls": self._ended + figures["in_flight"], "failed_calls": self._failed}

    # -- the event loop -----------------------------------------------------------------------------------------------

    def _take(self, works: list[Work]) -> None:
        """Queues the works on the event loop, and wakes or makes workers for their calls, up to the option
        `concurrency`.
        """
        self._thread = threading.get_ident()
        if self._closing or self._failure is not None:
            return
        self._works.extend(works)
        self._crew.rouse(sum(work.calls for work in works))

    def _safely(self, turn: Callable[P, None]) -> Callable[P, None]:
        """Returns a function that runs the callback `turn` of the event loop. If the callback raises an error, the
        function passes the error to `_fail`, so that `settled` raises it in the operator's thread.
        """
        return watch_call(turn, f"{self._name}: a turn of its calls", self._fail)

    def _cancel(self, awaited: bool) -> None:
        if self._telling is not None:
            self._telling.cancel()
        if not awaited:
            self._crew.cancel()
            self._errors.flush()
            return
        self._closer = self._loop.create_task(self._crew.close())
        self._closer.add_done_callback(self._closed)

    def _closed(self, closer: asyncio.Task[None]) -> None:
        self._errors.flush()
        self._over.set()

    def _refill(self, queue: deque[Call]) -> None:
        works = self._works
        while works and not queue:
            work = works[0]
            try:
                queue.extend(work.take(self._places))
            except (Exception, *EXITS) as error:
                failure = UserError(f"{self._name}: a row cannot be given to Python: {type(error).__name__}: {error}")
                failure.__cause__ = error
                self._fail(failure)
                return
            if work.exhausted:
                works.popleft()

    # -- the methods of `crew.Calls` --------------------------------------------------------------------------------------

    def begin(self, item: Call, run: Callable[..., Any]) -> tuple[None, Any, bool]:
        return None, run(self._function, item[2]), True

    def written(self, item: Call, value: Any) -> Any:
        return value

    def ended(self, item: Call, about: None, output: Any) -> None:
        work, number, argument, _ = item
        try:
            outcome = work.outcome(number, output)
        except (Exception, *EXITS) as error:
            outcome = self._given_up(error, argument, 1)  # another attempt would give the same result
        self._settle(item, outcome)

    def attempt_failed(self, item: Call, failure: BaseException, attempts: int) -> bool:
        return False

    def renew(self, item: Call) -> None:
        """Restores the argument of a call before another attempt. If the argument is a dict, the failed attempt may
        have changed it, so it gets its original contents again. Other arguments cannot be changed.
        """
        work, number, argument, _ = item
        if isinstance(argument, dict):  # other arguments cannot be changed: Arrow data, keys, requests
            argument.clear()
            argument.update(work.argument(number))

    def failed(self, item: Call, failure: BaseException, attempts: int) -> None:
        self._settle(item, self._given_up(failure, item[2], attempts))

    def worker_ended(self, item: Call | None, error: BaseException | None) -> None:
        what = "the task that makes the calls was cancelled from outside" if error is None else repr(error)
        failure = InternalError(f"{self._name}: {what}")
        failure.__cause__ = error
        self._fail(failure)

    def broke(self, what: str, error: SabotError) -> None:
        self._fail(error)

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _given_up(self, failure: BaseException, argument: Any, attempts: int) -> Failed:
        self._failed += 1
        text = failure.message if isinstance(failure, SabotError) else f"{type(failure).__name__}: {failure}"
        if not self._skip or isinstance(failure, EXITS):
            times = f" ({attempts} attempts)" if attempts > 1 else ""
            hint = getattr(failure, "hint", "") or f"{self._again}; on_error='skip' goes on without the row"
            error = UserError(f"{self._name}: {text}{times}; {shown(argument, self._argument)}", hint=hint)
            error.__cause__ = failure
            self._fail(error)
        else:
            self._errors.add(
                failure, shown(argument, self._argument), "its row goes to the dead letters, if there are any"
            )
        return Failed(scrubbed(text), stored_name(type(failure)), attempts, trace_of(failure))

    def _fail(self, error: SabotError) -> None:
        """Stops all calls because of an error: drops the queued calls, cancels the running ones, and notifies the
        operator without delay. `settled` then raises the error. Does nothing if the calls were stopped before.
        """
        if self._failure is None:
            self._failure = error
            self._works.clear()
            self._crew.queue.clear()
            self._crew.end()
            if not self._closing:
                self._tell()

    def _settle(self, item: Call, outcome: Any) -> None:
        """Stores the outcome of a call that has ended, and notifies the operator if the operator can use an outcome
        now (see `ordered`). If an error has stopped all calls, drops the outcome.
        """
        self._ended += 1
        if self._failure is not None:
            return
        work, number, _, place = item
        work.outcomes[number] = outcome
        self._settled.append((work, number))
        if self._ordered:
            if place != self._head:
                self._ended_behind.add(place)
                return
            head, ended = place + 1, self._ended_behind
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


def shown(argument: Any, what: str = "row") -> str:
    """Returns the argument of a call as a short text for messages. `what`: a noun that is put in front of it, such as
    "row".
    """
    if isinstance(argument, pa.RecordBatch):
        first = argument.slice(0, 1).to_pylist()
        return f"a batch of {argument.num_rows} rows, the first {short_repr(first[0] if first else None)}"
    return f"{what} {short_repr(argument)}"
