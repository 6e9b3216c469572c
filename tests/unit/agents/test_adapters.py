"""Events in Kafka topics and Redis Streams: in order, counted, and through a server that goes and comes back."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio

from sabot.agents import (
    InMemoryEventBus,
    KafkaConfig,
    KafkaEventAdapter,
    RedisStreamsAdapter,
    RedisStreamsConfig,
    RuntimeEvent,
    RuntimeEventType,
)
from sabot.connectors.memory import MemoryBroker
from sabot.errors import DataError, SabotError, TransientError, UserError
from sabot.kafka import RecordSender
from tools.agent_tools import until
from tools.broker import free_ports
from tools.redis_server import Redis, server_or_skip

Type = RuntimeEventType


def events(count: int, jobs: int = 3) -> list[RuntimeEvent]:
    kinds = [Type.JOB_STARTED, Type.TOOL_START, Type.TOOL_END]
    return [RuntimeEvent(kinds[n % 3], f"job {n % jobs}", {"n": n}, f"e{n}", 1000.0 + n) for n in range(count)]


async def published(bus: InMemoryEventBus, told: list[RuntimeEvent]) -> None:
    for event in told:
        await bus.publish(event)


# -- Kafka -----------------------------------------------------------------------------------------------------------------


async def test_events_are_records_of_the_topic_of_their_category(memory_url: str) -> None:
    bus = InMemoryEventBus()
    config = KafkaConfig(bootstrap_servers=memory_url, topic_prefix="shop.events")
    async with KafkaEventAdapter(bus, config) as adapter:
        await published(bus, events(30))
    assert adapter.statistics() == {"sent": 30, "lost": 0, "waiting": 0, "dropped": 0}
    broker = MemoryBroker.get(memory_url)
    jobs, tools = broker.records("shop.events.job"), broker.records("shop.events.tool")
    assert (len(jobs), len(tools)) == (10, 20)
    for job in {record.key for record in tools}:
        numbers = [record.value["data"]["n"] for record in tools if record.key == job]
        assert numbers == sorted(numbers)
    assert jobs[0].value == {
        "type": "job.started",
        "job_id": "job 0",
        "data": {"n": 0},
        "event_id": "e0",
        "at": 1000.0,
    } | {name: "" for name in ("scope_id", "principal_id", "session_id")}


async def test_an_adapter_may_be_stopped_and_started_again(memory_url: str) -> None:
    bus = InMemoryEventBus()
    adapter = KafkaEventAdapter(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"))
    await adapter.stop()
    await adapter.start()
    with pytest.raises(UserError, match="has been started"):
        await adapter.start()
    await published(bus, events(3))
    await adapter.stop()
    await published(bus, events(3))
    await adapter.start()
    await published(bus, events(6))
    await adapter.stop()
    assert adapter.sent == 9


async def test_an_adapter_that_is_started_twice_keeps_its_client_and_a_wrong_type_of_events_leaves_none(
    memory_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = list[RecordSender](), list[RecordSender]()

    class Counted(RecordSender):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append(self)

        def close(self) -> None:
            super().close()
            closed.append(self)

    monkeypatch.setattr("sabot.specified.brokers.RecordSender", Counted)
    bus, config = InMemoryEventBus(), KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e")
    async with KafkaEventAdapter(bus, config) as adapter:
        with pytest.raises(UserError, match="has been started"):
            await adapter.start()
    with pytest.raises(UserError, match="event_types"):
        await KafkaEventAdapter(bus, config, event_types=["job.begun"]).start()
    assert len(opened) == 2
    assert opened == closed


async def test_a_stop_that_is_cancelled_can_be_made_again(memory_url: str) -> None:
    goes_on = asyncio.Event()

    class Waits(KafkaEventAdapter):
        async def _send(self, events: Any) -> Any:
            await goes_on.wait()
            return await super()._send(events)

    bus = InMemoryEventBus()
    adapter = Waits(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"))
    await adapter.start()
    await published(bus, events(1))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await adapter.stop()
    goes_on.set()
    await adapter.stop()
    assert adapter.sent == 1
    await adapter.start()
    await published(bus, events(1))
    await adapter.stop()
    assert adapter.sent == 2


@pytest.mark.slow  # half a second of a core
async def test_events_that_were_dropped_stay_counted_when_the_adapter_has_stopped(memory_url: str) -> None:
    bus = InMemoryEventBus()
    config = KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e")
    adapter = KafkaEventAdapter(bus, config, slow="drop", at_once=1)
    async with adapter:
        for told in events(10_250, jobs=1):
            await bus.publish(told)
        dropped = adapter.statistics()["dropped"]
    assert adapter.statistics()["dropped"] == dropped > 0
    assert adapter.sent + dropped == 10_250


class Broken(KafkaEventAdapter):
    """Fails so often, with such an error, at each event."""

    failures: list[SabotError]

    async def _send(self, events: Any) -> Any:
        return [
            self.failures.pop() if self.failures else (await super(Broken, self)._send([each]))[0] for each in events
        ]


async def test_what_cannot_be_sent_is_tried_again_or_counted(memory_url: str, caplog: pytest.LogCaptureFixture) -> None:
    bus = InMemoryEventBus()
    adapter = Broken(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"))
    adapter.failures = [TransientError("away")]
    async with adapter:
        await published(bus, events(3, jobs=1))
    assert (adapter.sent, adapter.lost) == (3, 0)
    told = [record.value["event_id"] for record in MemoryBroker.get(memory_url).records("e.tool")]
    assert told == ["e1", "e2"]
    adapter.failures = [DataError("too large"), DataError("too large")]
    async with adapter:
        await published(bus, events(3, jobs=1))
    assert (adapter.sent, adapter.lost) == (4, 2)
    assert str(adapter.last_error) == "too large"
    assert caplog.text.count("is lost") == 1
    impatient = Broken(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"), patience=0)
    impatient.failures = [TransientError("away")]
    async with impatient:
        await published(bus, events(1))
    assert impatient.lost == 1


async def test_an_event_whose_type_is_a_text_goes_to_the_topic_of_its_category(memory_url: str) -> None:
    bus = InMemoryEventBus()
    async with KafkaEventAdapter(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e")) as adapter:
        for event_type in ("job.started", "tool.start"):
            await bus.publish(RuntimeEvent(type=event_type, job_id="job"))  # type: ignore[arg-type]
    assert adapter.statistics() == {"sent": 2, "lost": 0, "waiting": 0, "dropped": 0}
    assert [record.value["type"] for record in MemoryBroker.get(memory_url).records("e.job")] == ["job.started"]


class Poisoned(KafkaEventAdapter):
    """Its client raises an error that nobody has foreseen where one of these events is among those that it is given."""

    poison: set[str]

    async def _send(self, events: Any) -> Any:
        if any(event.event_id in self.poison for event, _ in events):
            raise AttributeError("no such thing")
        return await super()._send(events)


async def test_an_event_that_cannot_be_sent_is_counted_and_costs_no_other_of_its_batch(
    memory_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    bus = InMemoryEventBus()
    adapter = Poisoned(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"), patience=0)
    adapter.poison = {"e4", "e8"}
    async with adapter:
        await published(bus, events(12, jobs=1))
    assert adapter.statistics() == {"sent": 10, "lost": 2, "waiting": 0, "dropped": 0}
    told = [record.value["event_id"] for record in MemoryBroker.get(memory_url).records("e.tool")]
    assert told == ["e1", "e2", "e5", "e7", "e10", "e11"]
    assert str(adapter.last_error) == "AttributeError: no such thing"
    assert "event e4 is lost: AttributeError: no such thing" in caplog.text


async def test_an_error_that_nobody_has_foreseen_is_tried_again(memory_url: str) -> None:
    bus = InMemoryEventBus()
    adapter = Poisoned(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e"))
    adapter.poison = {"e1"}
    async with adapter:
        await published(bus, events(3, jobs=1))
        await until(lambda: adapter.sent == 2)
        adapter.poison.clear()
    assert (adapter.sent, adapter.lost) == (3, 0)


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_event_that_cannot_be_written_is_counted_and_costs_no_other(memory_url: str) -> None:
    bus = InMemoryEventBus()
    async with KafkaEventAdapter(bus, KafkaConfig(bootstrap_servers=memory_url, topic_prefix="e")) as adapter:
        await bus.publish(RuntimeEvent(Type.JOB_STARTED, "job", {"n": Unwritable()}, "bad"))
        await published(bus, events(3, jobs=1))
    assert adapter.statistics() == {"sent": 3, "lost": 1, "waiting": 0, "dropped": 0}
    assert str(adapter.last_error) == "event bad cannot be written as JSON: no words"


@pytest.mark.parametrize("kind", ["kafka", "redis"])
async def test_an_adapter_whose_server_is_missing_says_so_at_its_start(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    [port], bus = free_ports(1), InMemoryEventBus()
    adapter: Any
    if kind == "kafka":
        kafka = KafkaConfig(bootstrap_servers=f"127.0.0.1:{port}", topic_prefix="e")
        adapter = KafkaEventAdapter(bus, kafka, patience="100ms")
    else:
        config = RedisStreamsConfig(stream_prefix="e")
        adapter = RedisStreamsAdapter(f"redis://127.0.0.1:{port}/0", bus, config, patience="100ms")
    async with adapter:
        await until(lambda: "events wait, and are lost after 0.1 s each" in caplog.text)
    assert f"127.0.0.1:{port}" in caplog.text


@pytest.mark.kafka
async def test_a_real_broker_has_them_in_order(kafka_url: str, topic: str) -> None:
    bus = InMemoryEventBus()
    config = KafkaConfig(bootstrap_servers=kafka_url.removeprefix("kafka://"), topic_prefix=topic)
    async with KafkaEventAdapter(bus, config) as adapter:
        await published(bus, events(300, jobs=1))
    assert (adapter.sent, adapter.lost) == (300, 0)
    numbers = await asyncio.to_thread(_numbers, kafka_url, f"{topic}.tool", 200)
    assert numbers == [n for n in range(300) if n % 3]


def _numbers(url: str, topic: str, count: int) -> list[int]:
    from confluent_kafka import Consumer

    settings = {"bootstrap.servers": url.removeprefix("kafka://"), "group.id": topic, "auto.offset.reset": "earliest"}
    consumer = Consumer(settings)
    consumer.subscribe([topic])
    found: list[int] = []
    try:
        while len(found) < count:
            message = consumer.poll(10)
            assert message is not None, found[-3:]
            if message.error() is None:
                found.append(json.loads(message.value())["data"]["n"])
    finally:
        consumer.close()
    return found


# -- Redis -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Redis:
    return server_or_skip()


@pytest.fixture
async def client(server: Redis) -> AsyncIterator[Any]:
    made = redis.asyncio.from_url(server.url)
    yield made
    await made.aclose()


async def test_events_are_entries_of_a_stream_and_are_read_back(client: Any, topic: str) -> None:
    bus = InMemoryEventBus()
    adapter = RedisStreamsAdapter(client, bus, RedisStreamsConfig(stream_prefix=topic))
    told = events(30, jobs=1)
    async with adapter:
        await published(bus, told)
    assert (adapter.sent, adapter.lost) == (30, 0)
    found = [event async for event in adapter.read_events(f"{topic}:tool")]
    assert found == [event for event in told if event.type.category == "tool"]
    assert [event async for event in adapter.read_events(f"{topic}:nothing")] == []
    assert await client.ping(), "the client is the caller's"
    with pytest.raises(UserError, match="is no client"):
        RedisStreamsAdapter(7, bus, RedisStreamsConfig(stream_prefix=topic))
    with pytest.raises(UserError, match="max_len"):
        RedisStreamsConfig(stream_prefix=topic, max_len=0)


async def test_entries_that_are_no_events_are_skipped_counted_and_told_once(
    server: Redis, client: Any, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One of them had ended the reading of all that stood behind it."""
    bus = InMemoryEventBus()
    adapter = RedisStreamsAdapter(client, bus, RedisStreamsConfig(stream_prefix=topic))
    told = [event for event in events(4, jobs=1) if event.type.category == "tool"]
    first = await client.xadd(f"{topic}:tool", {"event": b"{}"})
    async with adapter:
        await published(bus, told[:1])
        for garbage in (
            {b"garbage": b"\xff"},
            {"event": b"\xff"},
            {"event": b"[" * 5000},
            {"event": b'{"type":"nope"}'},
        ):
            await client.xadd(f"{topic}:tool", garbage)
        await published(bus, told[1:])
    with caplog.at_level(logging.WARNING):
        found = [event async for event in adapter.read_events(f"{topic}:tool")]
    assert found == told
    assert adapter.statistics()["unreadable"] == 5
    assert [first.decode() in record.getMessage() for record in caplog.records] == [True]
    decoding = redis.asyncio.from_url(server.url, decode_responses=True)
    try:
        other = RedisStreamsAdapter(decoding, bus, RedisStreamsConfig(stream_prefix=topic))
        with pytest.raises(UserError, match=r"not text.*without decode_responses"):
            [event async for event in other.read_events(f"{topic}:tool")]
    finally:
        await decoding.aclose()


async def test_a_stream_is_followed_and_bounded(server: Redis, client: Any, topic: str) -> None:
    bus = InMemoryEventBus()
    adapter = RedisStreamsAdapter(server.url, bus, RedisStreamsConfig(stream_prefix=topic, max_len=100))
    async with adapter:
        await published(bus, events(3000))
    async with adapter:
        followed = adapter.read_events(f"{topic}:job", after="$", follow=True)
        waiting = asyncio.create_task(anext(followed))
        while not waiting.done():  # it may begin to read behind an entry that comes now
            await bus.publish(RuntimeEvent(Type.JOB_STARTED, "late"))
            await asyncio.wait([waiting], timeout=0.01)
        assert (await waiting).job_id == "late"
        await followed.aclose()  # type: ignore[attr-defined]
    assert await client.xlen(f"{topic}:tool") < 400


async def test_events_wait_for_a_server_that_goes_and_comes_back(topic: str) -> None:
    own = server_or_skip(password="open sesame")
    try:
        bus = InMemoryEventBus()
        adapter = RedisStreamsAdapter(own.url, bus, RedisStreamsConfig(stream_prefix=topic), patience="60s")
        await adapter.start()
        own.stop()
        await published(bus, events(30, jobs=1))
        await until(lambda: adapter._sending is not None)
        assert adapter.sent == 0
        own.start()
        await adapter.stop()
        assert (adapter.sent, adapter.lost) == (30, 0)
    finally:
        own.remove()
