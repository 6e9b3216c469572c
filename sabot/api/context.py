"""The argument `ctx` of an agent's function: the message, its origin, and the agent's state."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from sabot.api.functions import Timers, checked_ms
from sabot.api.model_engine import ModelEngine, checked_engine
from sabot.base.config import checked_text
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.records import HeadersLike, checked_headers
from sabot.engine.state import (
    AggregatingState,
    ListState,
    MapState,
    Overlay,
    ReducingState,
    StateBackend,
    ValueState,
)
from sabot.errors import NoStateBackend, UserError

M = TypeVar("M")
TimerChange = tuple[bool, int, str]
"""A change of a timer: True if it is set and False if it is deleted, its time in ms, and its name."""

DURABLE_NAMES = frozenset(
    {
        *("ask", "attempt", "call", "child", "continue_as", "job_id", "labels", "log", "patched", "principal"),
        *("random", "scope", "session", "sleep", "step", "uuid", "wait"),
    }
)
"""The attributes that only the context of a durable agent has (`durable.DurableContext`)."""


class Message:
    """A result with its own key, headers or topic: `return Message(value, key=b"acc1", topic="alerts")`.

    - `value`: bytes are written as they are, other values as JSON; None with a `key` is a tombstone (a null payload).
    - `key`: bytes or str; by default the key of the input record.
    - `headers`: a dict, or pairs of a name and bytes or str; a str is written in UTF-8.
    - `topic`: the name of one of the agent's sinks; by default the first one.

    Raises UserError for a key or headers of another type.
    """

    __slots__ = ("headers", "key", "topic", "value")

    def __init__(
        self,
        value: Any,
        *,
        key: bytes | str | None = None,
        headers: HeadersLike = (),
        topic: str | None = None,
    ) -> None:
        self.value = value
        self.topic = None if topic is None else checked_text(topic, "Message: topic")
        self.key = key.encode() if isinstance(key, str) else key
        self.headers = checked_headers(headers, "Message")
        if self.key is not None and not isinstance(self.key, bytes):
            raise UserError(f"Message: the key is {type(key).__name__}", hint="bytes or str, such as str(key)")


class StateAccessor(ValueState):
    """A namespace of an agent's state. `get`, `put` and `delete` are coroutine methods for one key (`await
    state.get(key)`); `get_many` and `put_many` are plain methods for Arrow arrays of keys.
    """

    __slots__ = ()


class CallTimers:
    """The timers of one call of an agent. It records the changes, which take effect when the call has succeeded.

    `fires`: True if the agent has a function for timers; otherwise setting or deleting a timer raises UserError.
    """

    __slots__ = ("agent_id", "changes", "fires")

    def __init__(self, agent_id: str, *, fires: bool = True) -> None:
        self.agent_id, self.fires = agent_id, fires
        self.changes: list[TimerChange] = []

    def processing(self, at_ms: int, name: str = "") -> None:
        self._note(True, at_ms, name)

    def delete(self, at_ms: int, name: str = "", *, kind: str = "processing") -> None:
        if kind != "processing":
            raise self._untimed()
        self._note(False, at_ms, name)

    def event(self, at_ms: int, name: str = "") -> None:
        raise self._untimed()

    def _note(self, is_set: bool, at_ms: int, name: str) -> None:
        if not self.fires:
            raise UserError(
                f"agent {self.agent_id}: a timer is set, but there is no function for it",
                hint="@app.agent(..., key=..., on_timer=f)",
            )
        self.changes.append((is_set, checked_ms(at_ms), checked_text(name, "timer: name")))

    def _untimed(self) -> UserError:
        return UserError(
            f"agent {self.agent_id}: agents have no event time",
            hint="ctx.timers.processing(at_ms) goes by the clock; stream.key_by(...).process(f) has event timers",
        )


class AgentContext:
    """The context of one call of an agent.

    - `message`: the decoded value, or the RecordBatch of a batch agent; None for a tombstone. For a timer it is
      {field of the key: key}.
    - `key`: the key of the record in bytes, or None if it has none; for a timer, the key of the timer.
    - `timestamp`: the timestamp of the record in ms since 1970 UTC; for a timer, its time.
    - `headers`, `topic`, `partition`, `offset`: the origin of the record. `agent_id`: the id of the agent.

    In a batch agent only `message`, `topic` and `agent_id` are set, because the rows of a batch have several origins.

    In a context that the engine makes, state writes take effect when the call has succeeded, and are dropped if it
    raises. In one that you make yourself (`AgentContext(message, state_backend)`), they go to the backend at once.
    """

    __slots__ = (
        "_backend",
        "_buffered",
        "_clock",
        "_overlay",
        "_prefix",
        "_raw",
        "_scope",
        "_timers",
        "agent_id",
        "headers",
        "key",
        "message",
        "offset",
        "partition",
        "timestamp",
        "topic",
    )

    def __init__(
        self,
        message: Any,
        state_backend: StateBackend | None = None,
        *,
        payload: bytes | None = None,
        key: bytes | None = None,
        headers: tuple[tuple[str, bytes], ...] = (),
        timestamp: int = 0,
        topic: str = "",
        partition: int = 0,
        offset: int = 0,
        agent_id: str = "",
        buffered: bool = False,
        scope: bytes = b"",
        prefix: str = "",
        clock: Clock = SYSTEM_CLOCK,
        timers: CallTimers | None = None,
    ) -> None:
        self.message = message
        self._raw: bytes | RecordFields | None = payload
        self.key = key
        self.headers = headers
        self.timestamp = timestamp
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.agent_id = agent_id
        self._backend = state_backend
        self._buffered = buffered
        self._overlay: Overlay | None = None
        self._scope = scope
        self._prefix = prefix
        self._clock = clock
        self._timers = timers

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in DURABLE_NAMES:
                what = (
                    f"only durable agents have ctx.{name}, and {self.agent_id} is not one: @app.agent(…, durable=True)"
                )
            raise AttributeError(what, name=name, obj=self)

    def llm(self, engine: ModelEngine[M]) -> M:
        """Returns an object by which the call can ask the models of this engine: `await ctx.llm(engine).complete("…",
        output=Verdict)`.

        For the rows of a batch it is `await ctx.llm(engine).map("Sentiment of: {text}", batch, output={"label":
        "string"})`. In a durable agent each answer is recorded in the journal.
        """
        return checked_engine(engine, "ctx.llm").models()

    @property
    def payload(self) -> bytes | None:
        """The payload of the record in bytes; None for a tombstone, a batch and a timer."""
        raw = self._raw
        return raw if raw is None or isinstance(raw, bytes) else raw.raw()

    def now(self) -> int:
        """Returns the time of the clock in ms since 1970. If the record is processed again after a restart, the time
        is a different one.
        """
        return int(self._clock.time() * 1000)

    @property
    def timers(self) -> Timers:
        """The timers of the agent's key, for an agent with `on_timer=`. They fire by processing time.

        Changes of timers take effect when the call has succeeded. Setting a timer raises UserError without
        `on_timer=`.
        """
        if self._timers is None:
            self._timers = CallTimers(self.agent_id)
        return self._timers

    @property
    def state_backend(self) -> StateBackend:
        """The state backend for this call: its reads return the writes that the call has made so far. Raises
        NoStateBackend if the app has no state.
        """
        if self._backend is None:
            raise NoStateBackend()
        if not self._buffered:
            return self._backend
        if self._overlay is None:
            self._overlay = Overlay(self._backend)
        return self._overlay

    def _space(self, namespace: str) -> str:
        return self._prefix + (namespace if isinstance(namespace, str) else checked_text(namespace, "state: namespace"))

    def state(self, namespace: str = "default") -> StateAccessor:
        """Returns the agent's state in this namespace. Raises NoStateBackend if the app has no state.

        With `key=`, the agent has a state of its own for each key. Without `key=`, all agents of the app that name
        the same namespace share its state.
        """
        # Agents call this for each record, so the common case makes no further call.
        space = self._prefix + namespace if type(namespace) is str else self._space(namespace)
        return StateAccessor(self.state_backend, space, self._scope)

    def list_state(self, namespace: str) -> ListState:
        """Returns state with a list for each key. The cost of adding a value does not depend on the length of the
        list. Raises NoStateBackend if the app has no state.
        """
        return ListState(self.state_backend, self._space(namespace), scope=self._scope)

    def map_state(self, namespace: str) -> MapState:
        """Returns state with values by key and field. Raises NoStateBackend if the app has no state."""
        return MapState(self.state_backend, self._space(namespace), scope=self._scope)

    def reducing_state(self, namespace: str, reduce: Callable[[Any, Any], Any]) -> ReducingState:
        """Returns state with one value for each key. Adding a value stores `reduce(old, new)`. Raises NoStateBackend
        if the app has no state.
        """
        return ReducingState(self.state_backend, self._space(namespace), reduce=reduce, scope=self._scope)

    def aggregating_state(
        self,
        namespace: str,
        create: Callable[[], Any],
        add: Callable[[Any, Any], Any],
        result: Callable[[Any], Any],
    ) -> AggregatingState[Any]:
        """Returns state with an accumulator for each key. Raises NoStateBackend if the app has no state.

        - `create`: a function that returns an empty accumulator.
        - `add`: a function that is called with an accumulator and an added value, and returns the next accumulator.
        - `result`: a function that is called with the accumulator, and returns the value that is read.
        """
        backend = self.state_backend
        return AggregatingState(
            backend, self._space(namespace), create=create, add=add, result=result, scope=self._scope
        )


class RecordFields(Protocol):
    """The fields of a record that `AgentContext` shows."""

    value: Any
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int
    topic: str
    partition: int
    offset: int
    scope: bytes

    def raw(self) -> bytes | None:
        """Returns the payload as it was read, or None for a tombstone."""


_new_context = AgentContext.__new__


def record_context(
    record: RecordFields,
    state_backend: StateBackend | None,
    agent_id: str,
    prefix: str,
    clock: Clock,
    timers: CallTimers | None,
    kind: type[AgentContext] = AgentContext,
) -> AgentContext:
    """Returns the context of a call for one record. Its state writes are buffered until the call has succeeded.

    - `state_backend`: the state; None if the app has none. `prefix`: a text that separates the agent's state from
      that of other agents.
    - `timers`: the timers of the call; None if there are none. `kind`: the class of the context.

    It is called for each record, so it does not use `__init__`: passing that many keyword arguments would double its
    cost.
    """
    ctx = _new_context(kind)
    ctx.message = record.value
    ctx._raw = record
    ctx.key = record.key
    ctx.headers = record.headers
    ctx.timestamp = record.timestamp
    ctx.topic = record.topic
    ctx.partition = record.partition
    ctx.offset = record.offset
    ctx.agent_id = agent_id
    ctx._backend = state_backend
    ctx._buffered = True
    ctx._overlay = None
    ctx._scope = record.scope
    ctx._prefix = prefix
    ctx._clock = clock
    ctx._timers = timers
    return ctx


def apply_writes(ctx: AgentContext) -> None:
    """Applies the buffered writes of a successful call to the state."""
    if ctx._overlay is not None:
        ctx._overlay.apply()


def timer_changes(ctx: AgentContext) -> Sequence[TimerChange]:
    """Returns the changes of timers that the call has made, in order."""
    return () if ctx._timers is None else ctx._timers.changes
