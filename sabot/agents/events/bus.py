"""Events of jobs, and the bus that hands them to subscribers.

   publish ─▶ a queue of each subscriber ─▶ its handler, one event after the other

Each subscriber has a bounded queue and a task of its own. So a handler that hangs, raises or is slow does not delay other
subscribers. If the queue of a subscriber is full, its option `slow` decides: "drop" leaves the event out and counts it,
"hold" makes `publish` wait until there is room.

Each event is delivered at least once. If it is delivered again, it has the same `event_id`, so a subscriber can recognise
it. An `InMemoryEventBus` belongs to one event loop.
"""

import asyncio
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from types import CoroutineType
from typing import Any, Literal, Protocol, TypeAlias, get_args

import msgspec

from sabot.base.checks import Of, OneOf, check, is_number, is_whole
from sabot.base.config import Duration, checked_text, parse_seconds
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import TransientError, UserError, short_repr

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 60.0
_FLUSH_HINT = "timeout= gives it longer; await subscription.unsubscribe() ends it"

CAPACITY_EVENTS = 10_000
"""The default number of events that may wait for one subscriber."""

_SLICE = 256  # events that one task publishes, or handles, before others get the event loop


class RuntimeEventType(StrEnum):
    """The types of events, such as "job.started". The word before the dot is the category of the type."""

    PROGRESS = "progress"
    MODEL_TOKEN = "model.token"
    MODEL_REASONING = "model.reasoning"
    MODEL_DONE = "model.done"
    TOOL_START = "tool.start"
    TOOL_END = "tool.end"
    TOOL_ERROR = "tool.error"
    ACTION_REQUIRED = "action.required"
    ACTION_RESOLVED = "action.resolved"
    ACTION_EXPIRED = "action.expired"
    ACTION_CANCELLED = "action.cancelled"
    ARTIFACT_CREATED = "artifact.created"
    ARTIFACT_UPDATED = "artifact.updated"
    JOB_STARTED = "job.started"
    JOB_STATUS_CHANGED = "job.status_changed"
    JOB_COMPLETED = "job.completed"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    FINAL_RESULT = "final.result"
    FINAL_ERROR = "final.error"

    @property
    def category(self) -> str:
        """The category of the type: "job" for "job.started"."""
        return self.value.partition(".")[0]


class RuntimeEvent(msgspec.Struct, frozen=True):
    """An event: something that has happened in a job.

    - `type`: a `RuntimeEventType`, or its text ("job.started"), which is converted.
    - `job_id`: the id of the job.
    - `data`: a dict. Its fields depend on the type of the event.
    - `event_id`: the id of the event, which stays the same if the event is published again. By default it is random.
    - `at`: the time of the event in seconds since 1970.
    - `scope_id`, `principal_id`, `session_id`: the tenant, the actor and the session for which the job runs.

    Raises UserError for an unknown type, and for a field with a value of a wrong type, because such an event could not
    be sent to a broker.
    """

    type: RuntimeEventType
    job_id: str
    data: Mapping[str, Any] = {}
    event_id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)
    at: float = msgspec.field(default_factory=SYSTEM_CLOCK.time)
    scope_id: str = ""
    principal_id: str = ""
    session_id: str = ""

    def __post_init__(self) -> None:
        if type(self.type) is not RuntimeEventType:
            msgspec.structs.force_setattr(self, "type", _type(self.type))
        texts = type(self.job_id) is type(self.event_id) is type(self.scope_id) is type(self.principal_id) is str
        if not texts or type(self.session_id) is not str:
            for name in ("job_id", "event_id", "scope_id", "principal_id", "session_id"):
                check(f"RuntimeEvent: {name}", getattr(self, name), Of(str))
        if not is_number(self.at) or not math.isfinite(self.at):
            raise UserError(f"RuntimeEvent: at={short_repr(self.at)}", hint="seconds since 1970, a finite number")
        if type(self.data) is not dict:
            check("RuntimeEvent: data", self.data, Of(Mapping, "a dict of what belongs to the type"))


Handler: TypeAlias = Callable[[RuntimeEvent], Awaitable[object] | object]
"""The function that a subscriber gives: plain or async. A plain function is called on the event loop, so it must not
block.
"""

Slow: TypeAlias = Literal["drop", "hold"]


class EventBus(Protocol):
    """A bus for events of jobs: programs publish events to it, and it passes each event to the handlers that have
    subscribed to events of its type and job.
    """

    async def subscribe(
        self,
        handler: Handler,
        event_types: Iterable[RuntimeEventType | str] | None = None,
        *,
        job_id: str | None = None,
        slow: Slow = "drop",
        capacity: int = CAPACITY_EVENTS,
    ) -> "Subscription":
        """Subscribes a handler, and returns the subscription. The handler gets each event that is published after this
        call, in the order in which the events are published. Raises UserError for wrong arguments.

        - `event_types`: only events of these types are delivered; None delivers all.
        - `job_id`: only events of this job are delivered; None delivers the events of all jobs.
        - `slow`: decides what happens when the queue of this handler is full. "drop" leaves out events for this
          handler. "hold" makes each `publish` on the bus wait, even of an event that this handler does not get.
        - `capacity`: the most events that wait in the queue of this handler.
        """

    async def publish(self, event: RuntimeEvent) -> None:
        """Puts the event into the queue of each subscriber that wants events of its type and job. First waits while any
        subscriber with `slow="hold"` has a full queue.
        """

    def wants(self, event_type: RuntimeEventType, job_id: str) -> bool:
        """Returns True if a subscriber wants events of this type and job. If it returns False, a publisher need not
        make such an event.
        """


class Subscription:
    """The subscription of one subscriber to a bus. If it has a handler, the handler is called for each event. If it has
    none, the program iterates over the subscription.

    - `delivered`: the number of events for which the handler was called, or which the iteration has returned.
    - `dropped`: the number of events that were left out because the queue was full. The first one is logged.
    - `errors`: the number of errors that the handler has raised. The first one is logged.
    - `last_error`: the last error that the handler has raised, or None.
    - `queue`: the events that are not delivered yet.
    """

    __slots__ = (
        "_awaited",
        "_bus",
        "_full",
        "_handler",
        "_pump",
        "capacity",
        "closed",
        "delivered",
        "dropped",
        "errors",
        "event_types",
        "job_id",
        "last_error",
        "queue",
        "slow",
    )

    def __init__(
        self,
        bus: "InMemoryEventBus",
        handler: Handler | None,
        event_types: Iterable[RuntimeEventType | str] | None,
        job_id: str | None,
        slow: Slow,
        capacity: int,
    ) -> None:
        """Makes a subscription to `bus`. The other arguments are those of `EventBus.subscribe`; with `handler=None` the
        program iterates over the subscription.
        """
        check("slow", slow, OneOf(get_args(Slow)))
        if not is_whole(capacity, 1):
            raise UserError(f"capacity={short_repr(capacity)}", hint="a whole number of events, at least 1")
        if job_id is not None:
            checked_text(job_id, "job_id")
        self.event_types = None if event_types is None else _types(event_types)
        self.job_id = job_id
        self.slow: Slow = slow
        self.capacity = capacity
        self.delivered = self.dropped = self.errors = 0
        self.last_error: Exception | None = None
        self.closed = False
        self._bus = bus
        self._handler = handler
        self.queue: deque[RuntimeEvent] = deque()
        self._full = False
        self._pump: asyncio.Task[None] | None = None
        self._awaited: asyncio.Future[None] | None = None

    @property
    def name(self) -> str:
        """The name of the handler, for log and error messages."""
        return getattr(self._handler, "__qualname__", None) or short_repr(self._handler)

    def wants(self, event_type: str) -> bool:
        """Returns True if the subscriber has subscribed to events of this type."""
        return self.event_types is None or event_type in self.event_types

    def take(self, event: RuntimeEvent) -> None:
        """Puts an event from the bus into the queue. If the queue is full, `slow="drop"` drops the event and counts it.
        `slow="hold"` puts it into the queue nevertheless, and makes the next `publish` wait.
        """
        queue = self.queue
        if len(queue) >= self.capacity:
            if self.slow == "drop":
                self.dropped += 1
                if self.dropped == 1:
                    _log.warning("events are dropped: %d wait for subscriber %s", len(queue), self.name)
                return
            self._full = True  # this event is taken; the next `publish` waits
            self._bus.holds(self)
        queue.append(event)
        if self._handler is None:
            self._wake()
        elif self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._deliver(), name=f"events of {self.name}")

    async def _deliver(self) -> None:
        queue, handler = self.queue, self._handler
        assert handler is not None
        try:
            while queue:
                for _ in range(min(_SLICE, len(queue))):
                    event = queue.popleft()
                    try:
                        result = handler(event)
                        if type(result) is CoroutineType or hasattr(result, "__await__"):
                            await result
                    except asyncio.CancelledError as error:
                        if self.closed or _is_cancelled():
                            raise
                        self._failed(RuntimeError(f"something that it awaited was cancelled: {error}"))
                    except Exception as error:
                        self._failed(error)
                    self.delivered += 1
                    if self.closed:  # the handler has ended its own subscription
                        return
                    if self._full:
                        self._drained()
                if queue:
                    await asyncio.sleep(0)
        finally:
            self._pump = None

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        self.last_error = error
        if self.errors == 1:
            _log.warning("subscriber %s of events has raised; it gets the next ones", self.name, exc_info=error)

    def _drained(self) -> None:
        if self._full and len(self.queue) <= self.capacity // 2:
            self._full = False
            self._bus.drained(self)

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> RuntimeEvent:
        while not self.queue:
            if self.closed:
                raise StopAsyncIteration
            if self._awaited is not None and not self._awaited.done():
                raise UserError(
                    "another task waits for the next event of this subscription", hint="bus.listen() for each task"
                )
            self._awaited = asyncio.get_running_loop().create_future()
            await self._awaited
        event = self.queue.popleft()
        self.delivered += 1
        self._drained()
        return event

    async def flush(self, *, timeout: Duration | None = FLUSH_SECONDS) -> None:
        """Waits until the handler has handled all events in the queue, including events that are published during the
        wait. Returns at once if the subscription has no handler.

        `timeout` is the limit of the wait; None waits without a limit. At the limit, raises TransientError with the
        name of the handler. The handler continues.
        """
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        pump = self._pump
        if pump is None:
            return
        await asyncio.wait([pump], timeout=timeout_s)
        if not pump.done():
            raise TransientError(self._backlog(), hint=_FLUSH_HINT)

    def _backlog(self) -> str:
        return f"subscriber {self.name} is still at an event, and {len(self.queue):,} wait behind it"

    async def unsubscribe(self) -> None:
        """Ends the subscription. No more events are delivered, and the events in the queue are discarded. If the
        handler is running, it is cancelled, except when the handler itself has called this method. Repeated calls do
        nothing.
        """
        self.close()

    def close(self) -> None:
        """Ends the subscription as `unsubscribe` does. This method is not a coroutine, so a plain function can call it
        too.
        """
        if self.closed:
            return
        self.closed = True
        self._bus.leave(self)
        self.queue.clear()
        self._drained()
        self._wake()
        if self._pump is not None and self._pump is not _current_task():
            self._pump.cancel()


class InMemoryEventBus:
    """An event bus in the memory of one process. All its subscribers and publishers use the same event loop."""

    def __init__(self) -> None:
        self.published = 0
        self._shared: dict[Subscription, None] = {}  # subscribers for events of all jobs, in the order of subscribing
        self._of_type: dict[str, tuple[Subscription, ...]] = {}  # the subscribers in `_shared`, by type of event
        self._of_job: dict[str, dict[Subscription, None]] = {}
        self._full: set[Subscription] = set()  # the subscribers for which `publish` waits
        self._roomless: list[asyncio.Future[None]] = []
        self._turn = 0

    async def subscribe(
        self,
        handler: Handler,
        event_types: Iterable[RuntimeEventType | str] | None = None,
        *,
        job_id: str | None = None,
        slow: Slow = "drop",
        capacity: int = CAPACITY_EVENTS,
    ) -> Subscription:
        """Subscribes a handler, and returns the subscription. `EventBus.subscribe` describes the arguments."""
        return self.on(handler, event_types, job_id=job_id, slow=slow, capacity=capacity)

    def on(
        self,
        handler: Handler,
        event_types: Iterable[RuntimeEventType | str] | None = None,
        *,
        job_id: str | None = None,
        slow: Slow = "drop",
        capacity: int = CAPACITY_EVENTS,
    ) -> Subscription:
        """Subscribes a handler, and returns the subscription, as `subscribe` does. This method is not a coroutine, so
        it can be called before an event loop runs.
        """
        if not callable(handler):
            raise UserError(f"{short_repr(handler)} is no handler of events", hint="a function of the event")
        return self._join(Subscription(self, handler, event_types, job_id, slow, capacity))

    def listen(
        self,
        event_types: Iterable[RuntimeEventType | str] | None = None,
        *,
        job_id: str | None = None,
        slow: Slow = "drop",
        capacity: int = CAPACITY_EVENTS,
    ) -> Subscription:
        """Returns a subscription without a handler, over which the program iterates: `async for event in bus.listen():
        …`. `close` ends it. The arguments are those of `subscribe`. A second task that iterates over it while the first
        one waits gets a UserError.
        """
        return self._join(Subscription(self, None, event_types, job_id, slow, capacity))

    def _join(self, subscription: Subscription) -> Subscription:
        if subscription.job_id is None:
            self._shared[subscription] = None
            self._routes()
        else:
            self._of_job.setdefault(subscription.job_id, {})[subscription] = None
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Removes a subscription from the bus, so that it gets no more events. A subscription calls this when it is
        closed.
        """
        if subscription.job_id is None:
            del self._shared[subscription]
            self._routes()
        else:
            those = self._of_job[subscription.job_id]
            del those[subscription]
            if not those:
                del self._of_job[subscription.job_id]

    def _routes(self) -> None:
        self._of_type = {kind: tuple(each for each in self._shared if each.wants(kind)) for kind in RuntimeEventType}

    async def publish(self, event: RuntimeEvent) -> None:
        """Puts the event into the queue of each subscriber that wants events of its type and job. First waits while any
        subscriber with `slow="hold"` has a full queue, unless the handler of such a subscriber calls this method.
        """
        check("publish: event", event, Of(RuntimeEvent))
        while self._full and not self._is_full_handler(asyncio.current_task()):
            room = asyncio.get_running_loop().create_future()
            self._roomless.append(room)
            await room
        self.published += 1
        for each in self._of_type.get(event.type, ()):
            queue = each.queue
            if each._pump is not None and len(queue) < each.capacity:  # `take` inlined, for speed
                queue.append(event)
            else:
                each.take(event)
        for each in self._of_job.get(event.job_id, ()):
            if each.wants(event.type):
                each.take(event)
        self._turn += 1
        if self._turn >= _SLICE:  # else handlers would starve while a task publishes without another `await`
            self._turn = 0
            await asyncio.sleep(0)

    def _is_full_handler(self, task: "asyncio.Task[Any] | None") -> bool:
        """Returns True if the task calls the handler of a subscriber whose queue is full. If a publish of that handler
        waited, nobody would empty the queue.
        """
        return any(each._pump is task for each in self._full)

    def wants(self, event_type: RuntimeEventType, job_id: str) -> bool:
        """Returns True if a subscriber has subscribed to events of this type and job."""
        if self._of_type.get(event_type):
            return True
        of_job = self._of_job.get(job_id)
        return of_job is not None and any(each.wants(event_type) for each in of_job)

    def holds(self, subscription: Subscription) -> None:
        """Makes each `publish` wait until `drained` is called for this subscription. A subscription with `slow="hold"`
        calls this when its queue is full.
        """
        self._full.add(subscription)

    def drained(self, subscription: Subscription) -> None:
        """Ends the wait that `holds` began for this subscription. Calls of `publish` continue when no other
        subscription makes them wait. A subscription calls this when its queue is at most half full again, or when it
        has ended.
        """
        self._full.discard(subscription)
        if not self._full:
            roomless, self._roomless = self._roomless, []
            for future in roomless:
                if not future.done():
                    future.set_result(None)

    async def flush(self, *, timeout: Duration | None = FLUSH_SECONDS) -> None:
        """Waits until all handlers have handled all their events, including events that are published during the wait.
        Does not wait for subscriptions without a handler.

        `timeout` is the limit of the whole wait; None waits without a limit. At the limit, raises TransientError with
        the names of the handlers that have not finished. These handlers continue.
        """
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        until = math.inf if timeout_s is None else SYSTEM_CLOCK.monotonic() + timeout_s
        while pumps := [each._pump for each in self._subscriptions() if each._pump is not None]:
            left_s = None if timeout_s is None else max(0.0, until - SYSTEM_CLOCK.monotonic())
            await asyncio.wait(pumps, timeout=left_s)
            if SYSTEM_CLOCK.monotonic() >= until:
                late = [each._backlog() for each in self._subscriptions() if each._pump is not None]
                if late:
                    raise TransientError(f"after {timeout_s:g} s, {'; '.join(late)}", hint=_FLUSH_HINT)

    async def close(self) -> None:
        """Ends all subscriptions."""
        for each in self._subscriptions():
            each.close()

    def _subscriptions(self) -> list[Subscription]:
        return [*self._shared, *(each for those in self._of_job.values() for each in those)]


def _type(name: object) -> RuntimeEventType:
    try:
        return RuntimeEventType(name)  # type: ignore[arg-type]
    except ValueError as error:
        near = get_close_matches(str(name), map(str, RuntimeEventType), 1)
        hint = f"{near[0]!r} is one" if near else f"there are {', '.join(RuntimeEventType)}"
        raise UserError(f"RuntimeEvent: type={short_repr(name)} does not exist", hint=hint) from error


def _types(names: Iterable[RuntimeEventType | str]) -> frozenset[RuntimeEventType]:
    try:
        return frozenset(map(RuntimeEventType, [names] if isinstance(names, str) else names))
    except (ValueError, TypeError) as error:
        raise UserError(f"event_types: {error}", hint=f"there are {', '.join(RuntimeEventType)}") from error


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
