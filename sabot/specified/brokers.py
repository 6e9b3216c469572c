"""Adapters that send the events of a bus to Kafka topics or Redis Streams. Each category of events has its own topic or
stream.

   bus ─▶ adapter: at most `at_once` wait ─▶ {prefix}.job, {prefix}.tool, {prefix}.model, …     (Redis: {prefix}:job, …)

If the server is slower than the events come, an adapter makes publishers wait (`slow="hold"`), or drops events and counts
them ("drop"). If an event could not be sent, the adapter tries again for the time `patience`. After that the event is
counted as lost; the first lost event is logged. If a batch fails as a whole, its events are sent one by one, so that one
bad event does not stop the others. An event that is sent twice has the same `event_id` both times.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sabot.agents.context import checked_word
from sabot.agents.events.bus import EventBus, RuntimeEvent, RuntimeEventType, Slow, Subscription
from sabot.base.backoff import Backoff
from sabot.base.checks import Of, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK
from sabot.connectors.redis.server import RedisServer
from sabot.engine.calls.tool_results import model_or_text
from sabot.errors import UNREADABLE, DataError, SabotError, TransientError, UserError, message_of, short_repr
from sabot.kafka import RecordSender

_log = logging.getLogger("sabot.agents.events.brokers")

_BACKOFF = Backoff(0.05, 5.0)  # between attempts
_READ = 1000  # entries of a stream at a time


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaConfig:
    """The settings of a KafkaEventAdapter.

    - `bootstrap_servers`: "host:port", or an address with kafka:// or memory://.
    - `topic_prefix`: the beginning of the topic names. The events of a category, such as "job", are sent to the topic
      "PREFIX.job".
    - `kafka`: other settings of the Kafka client, by name.
    """

    bootstrap_servers: str
    topic_prefix: str
    kafka: Mapping[str, Any] = field(default_factory=dict)


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStreamsConfig:
    """The settings of a RedisStreamsAdapter.

    - `stream_prefix`: the beginning of the stream names. The events of a category, such as "job", are sent to the
      stream "PREFIX:job".
    - `max_len`: the approximate number of entries that Redis keeps in a stream. Older entries are removed.
    """

    stream_prefix: str
    max_len: int = 100_000

    def __post_init__(self) -> None:
        check("RedisStreamsConfig: max_len", self.max_len, Whole(1))


class _Adapter(ABC):
    """An adapter that sends the events of a bus to a broker.

    - `sent`: the number of events that were sent.
    - `lost`: the number of events that the adapter has given up.
    - `last_error`: the error of the last lost event, or None.
    """

    def __init__(
        self,
        event_bus: EventBus,
        *,
        event_types: Iterable[RuntimeEventType | str] | None = None,
        slow: Slow = "hold",
        at_once: int = 500,
        patience: Duration = "2m",
    ) -> None:
        check(f"{type(self).__name__}: at_once", at_once, Whole(1))
        if not hasattr(event_bus, "subscribe"):
            raise UserError(f"{type(self).__name__}: event_bus={short_repr(event_bus)}", hint="an InMemoryEventBus")
        self.sent = self.lost = self._dropped = 0
        self.last_error: SabotError | None = None
        self._bus = event_bus
        self._event_types = event_types
        self._slow: Slow = slow
        self._most = at_once
        self._patience_s = parse_seconds(patience, name="patience")
        self._subscription: Subscription | None = None
        self._waiting: list[RuntimeEvent] = []
        self._sending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribes to the bus, and begins to send events. If no server answers, logs a warning, and the events wait
        in the adapter. Raises UserError if the adapter was started before.
        """
        if self._subscription is not None:
            raise UserError(f"{type(self).__name__} has been started", hint="await adapter.stop() first")
        self._connect()
        try:
            self._subscription = await self._bus.subscribe(self._take, self._event_types, slow=self._slow)
        except BaseException:
            await self._close()
            raise
        self._looking = asyncio.create_task(self._look(), name=f"the look for the server of {type(self).__name__}")

    async def _look(self) -> None:
        try:
            await self._reach()
        except (TransientError, UserError) as error:
            name, patience_s = type(self).__name__, self._patience_s
            _log.warning("%s: events wait, and are lost after %g s each: %s", name, patience_s, error)

    async def stop(self) -> None:
        """Stops the adapter: sends the events that it has already received from the bus, and closes the connection. An
        event that cannot be sent within the time `patience` is lost. Repeated calls do nothing. If this call is
        cancelled, another call continues to stop the adapter.
        """
        subscription = self._subscription
        if subscription is None:
            return
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await subscription.flush(timeout=None)  # no endless wait: `patience` limits each event
        await subscription.unsubscribe()
        while self._sending is not None:
            await asyncio.shield(self._sending)
        if self._subscription is subscription:
            self._subscription = None
            self._dropped += subscription.dropped
            await self._close()

    async def __aenter__(self) -> "_Adapter":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _take(self, event: RuntimeEvent) -> None:
        while len(self._waiting) >= self._most and self._sending is not None:
            await asyncio.shield(self._sending)
        self._waiting.append(event)
        if self._sending is None:
            self._sending = asyncio.create_task(self._deliver(), name=f"events to {type(self).__name__}")

    async def _deliver(self) -> None:
        """Sends all waiting events as one batch, then all events that have arrived meanwhile, and so on until no event
        waits. So the events keep their order.
        """
        try:
            while self._waiting:
                events, self._waiting = self._waiting, []
                await self._patiently([(event, data) for event in events if (data := self._encoded(event))])
        finally:
            self._sending = None

    def _encoded(self, event: RuntimeEvent) -> bytes:
        try:
            return msgspec.json.encode(event, enc_hook=model_or_text)
        except Exception as error:  # any error: the `__str__` of a user's value may raise
            self._lose(event, DataError(f"event {event.event_id} cannot be written as JSON: {message_of(error)}"))
            return b""

    async def _patiently(self, events: list[tuple[RuntimeEvent, bytes]]) -> None:
        until, attempt = SYSTEM_CLOCK.monotonic() + self._patience_s, 0
        while events:
            attempt += 1
            wait_s, again = _BACKOFF.wait_s(attempt), []
            for each, error in zip(events, await self._outcomes(events), strict=True):
                if error is None:
                    self.sent += 1
                elif isinstance(error, TransientError) and SYSTEM_CLOCK.monotonic() + wait_s <= until:
                    again.append(each)
                else:
                    self._lose(each[0], error)
            events = again
            if events:
                await asyncio.sleep(wait_s)

    async def _outcomes(self, events: Sequence[tuple[RuntimeEvent, bytes]]) -> list[SabotError | None]:
        """Sends events, each given with its JSON. Returns a list with the error of each event, or None for an event
        that was sent. If `_send` raises an error for the whole batch, sends each event by a call of its own.
        """
        try:
            return await self._send(events)
        except Exception as error:
            if len(events) == 1:
                return [_ours(error)]
        return [each for one in events for each in await self._outcomes([one])]

    def _lose(self, event: RuntimeEvent, error: SabotError) -> None:
        self.lost += 1
        if self.last_error is None:
            _log.warning("event %s is lost: %s", event.event_id, error)
        self.last_error = error

    @abstractmethod
    async def _send(self, events: Sequence[tuple[RuntimeEvent, bytes]]) -> list[SabotError | None]:
        """Sends events, each given with its JSON, and returns when the server has stored them. Returns a list with the
        error of each event, or None for an event that was sent. If this method raises an error, the caller treats all
        events as not sent.
        """

    @abstractmethod
    def _connect(self) -> None:
        """Makes the client of the server, if the adapter has none."""

    @abstractmethod
    async def _reach(self) -> None:
        """Checks whether the server answers. Raises TransientError if it does not answer, and UserError if it refuses
        the connection.
        """

    @abstractmethod
    async def _close(self) -> None:
        """Closes the connection."""

    def statistics(self) -> dict[str, int]:
        """Returns four numbers of events since the adapter was made: `sent`, `lost` (given up after errors), `waiting`
        (in the adapter; those that are being sent do not count), and `dropped` (left out because the adapter's queue on
        the bus was full).
        """
        dropped = self._dropped + (0 if self._subscription is None else self._subscription.dropped)
        return {"sent": self.sent, "lost": self.lost, "waiting": len(self._waiting), "dropped": dropped}


class KafkaEventAdapter(_Adapter):
    """An adapter that sends events as JSON records to Kafka topics. The key of a record is the id of the event's job,
    so the events of a job stay in order.
    """

    def __init__(self, event_bus: EventBus, config: KafkaConfig, **how: Any) -> None:
        """Makes an adapter; `start` begins to send. `how` has these options:

        - `event_types`: the types of events that are sent; by default all.
        - `slow`: "hold" (the default) makes publishers wait while the server is too slow; "drop" drops events instead.
        - `at_once`: the most events that wait in the adapter, by default 500. Further events wait in the adapter's
          queue on the bus.
        - `patience`: the time for which the adapter tries to send an event, by default 2 minutes. After that the event
          is lost.
        """
        super().__init__(event_bus, **how)
        check("KafkaEventAdapter: config", config, Of(KafkaConfig))
        servers = config.bootstrap_servers
        self.config = config
        self._sender: Callable[[], RecordSender] = lambda: RecordSender(
            servers if "://" in servers else f"kafka://{servers}", config.kafka
        )
        self._open: RecordSender | None = None
        self._known: set[str] = set()  # the topics that this sender has used

    def topic(self, event_type: RuntimeEventType) -> str:
        """Returns the name of the topic to which events of this type are sent: the prefix, ".", and the category of the
        type.
        """
        return f"{self.config.topic_prefix}.{event_type.category}"

    def _connect(self) -> None:
        self._open, self._known = self._sender(), set()

    async def _send(self, events: Sequence[tuple[RuntimeEvent, bytes]]) -> list[SabotError | None]:
        assert self._open is not None
        said: list[object] = []
        calls: list[Coroutine[Any, Any, int]] = []
        for event, data in events:
            topic = self.topic(event.type)
            call = self._open.send(topic, data, event.job_id.encode(), timestamp=round(event.at * 1000))
            # the topic may have to be created first; events sent meanwhile would lose their order
            if topic not in self._known:
                said += await asyncio.gather(*calls, call, return_exceptions=True)
                calls = []
                self._known.add(topic)
            else:
                calls.append(call)
        said += await asyncio.gather(*calls, return_exceptions=True)
        return [_error(each) for each in said]

    async def _reach(self) -> None:
        assert self._open is not None
        await self._open.reach(self._patience_s)

    async def _close(self) -> None:
        if self._open is not None:
            await asyncio.to_thread(self._open.close)
        self._open = None


def _error(said: object) -> SabotError | None:
    if isinstance(said, BaseException) and not isinstance(said, Exception):
        raise said
    return _ours(said) if isinstance(said, Exception) else None


def _ours(error: Exception) -> SabotError:
    """Returns `error` unchanged if it is a SabotError. Otherwise returns a TransientError with its class name and
    message, so that the event is sent again.
    """
    return error if isinstance(error, SabotError) else TransientError(f"{type(error).__name__}: {message_of(error)}")


class RedisStreamsAdapter(_Adapter):
    """An adapter that sends events as entries of Redis Streams, with the fields `id` and `event` (JSON)."""

    def __init__(self, client: Any, event_bus: EventBus, config: RedisStreamsConfig, **how: Any) -> None:
        """Makes an adapter; `start` begins to send. `client` is a `redis.asyncio.Redis`, which the caller closes, or
        the address of a server. `how` has the same options as for KafkaEventAdapter.
        """
        super().__init__(event_bus, **how)
        check("RedisStreamsAdapter: config", config, Of(RedisStreamsConfig))
        self.unreadable = 0
        self.config = config
        self._server = RedisServer.of(client, "events", "RedisStreamsAdapter")

    def statistics(self) -> dict[str, int]:
        """Returns the numbers `sent`, `lost`, `waiting` and `dropped`, which every adapter has, and also `unreadable`:
        the number of stream entries that `read_events` has skipped because they are not events.
        """
        return {**super().statistics(), "unreadable": self.unreadable}

    def stream(self, event_type: RuntimeEventType) -> str:
        """Returns the name of the stream to which events of this type are sent: the prefix, ":", and the category of
        the type.
        """
        return f"{self.config.stream_prefix}:{event_type.category}"

    async def _send(self, events: Sequence[tuple[RuntimeEvent, bytes]]) -> list[SabotError | None]:
        pipeline = self._server.client.pipeline(transaction=False)
        for event, data in events:
            fields = {"id": event.event_id, "event": data}
            pipeline.xadd(self.stream(event.type), fields, maxlen=self.config.max_len, approximate=True)
        try:
            with self._server.explained():
                said = await pipeline.execute(raise_on_error=False)
        except SabotError as error:
            return [error] * len(events)
        return [self._server.error_of(each) if isinstance(each, Exception) else None for each in said]

    def _connect(self) -> None:
        """Does nothing, because the RedisServer connects when it is used."""

    async def _reach(self) -> None:
        with self._server.explained():
            await self._server.client.ping()

    async def _close(self) -> None:
        await self._server.close()

    async def read_events(self, stream: str, *, after: str = "0", follow: bool = False) -> AsyncIterator[RuntimeEvent]:
        """Yields the events of a stream, the oldest first, beginning after the entry with the id `after`. With
        `follow=False` it ends after the last entry. With `follow=True` it never ends, but waits for new entries.

        An entry that is not an event is skipped and counted in the attribute `unreadable`. The id of the first such
        entry is logged. Raises TransientError if the server does not answer, and UserError if it refuses the request.
        """
        checked_word(stream, "read_events: stream", empty=False)
        checked_word(after, "read_events: after", empty=False)
        while True:
            with self._server.explained():
                found = await self._server.client.xread({stream: after}, count=_READ, block=1000 if follow else None)
            entries = found[0][1] if found else []
            for name, fields in entries:
                after = name.decode() if isinstance(name, bytes) else name
                data = fields.get(b"event", fields.get("event"))
                try:
                    event = msgspec.json.decode(data or b"", type=RuntimeEvent)
                except (*UNREADABLE, UserError) as error:  # UserError: the constructor of the event refuses a value
                    if not self.unreadable:
                        _log.warning(
                            "entry %s of %s is no event, and is skipped: %s: %s", after, stream, short_repr(data), error
                        )
                    self.unreadable += 1
                    continue
                yield event
            if not entries and not follow:
                return
