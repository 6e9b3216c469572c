"""Agents on a broker (rows 0.02, 0.10, 0.11): every test runs on the embedded broker and on a real Kafka.

`--broker kafka://host:port` takes a running Kafka; without it the fixture starts one.
"""

import asyncio
import json
import uuid

import pytest

from sabot import AgentFailed, App, BrokerUnavailable, Message, UserError
from sabot._cython.arrow.batch import Batch
from sabot.agents.runtime import AgentProcess, AgentState
from sabot.codecs.records import build_records
from sabot.connectors.memory import MemoryBroker
from sabot.kafka import KafkaSource, open_sink
from sabot.kafka.admin import create_topic
from tools.agent_tools import bounded, checkpoint, crash_image, started, state_of, until, within
from tools.broker import free_ports
from tools.kafka_clients import have_ended, threads

pytestmark = pytest.mark.integration


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def url(request):
    """The address of a broker, of both kinds one after the other."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def make_topic(url):
    """make_topic(partitions=1) -> the name of a new topic."""

    def make(partitions: int = 1) -> str:
        name = f"t-{uuid.uuid4().hex[:12]}"
        if url.startswith("memory"):
            MemoryBroker.get(url).create_topic(name, partitions)
        else:
            create_topic(url, name, partitions)
        return name

    return make


@pytest.fixture
def app(url):
    return App(f"app-{uuid.uuid4().hex[:8]}", broker=url)


async def read_topic(url, topic, count):
    """The first `count` records of a topic with one partition."""
    source = KafkaSource(topic, url, f"reader-{uuid.uuid4().hex[:8]}")
    await source.start()
    try:
        return [await bounded(source.next_record()) for _ in range(count)]
    finally:
        await source.stop()


async def test_payloads_come_as_they_are_and_tombstones_to_who_asks(app, url, make_topic):
    topic, out = make_topic(), make_topic()

    @app.agent(topic, tombstones=True, sink=out)
    async def told(ctx):
        return {"raw": None if ctx.payload is None else ctx.payload.decode(), "key": ctx.key.decode()}

    sink = open_sink(topic, url)
    sink.open()
    records = build_records([b'{"n" : 1}', None, b"2 "], [b"a", b"a", b"b"], [0] * 3, 0, range(3))
    sink.write(Batch(records, None, topic))
    sink.flush()
    sink.close()
    async with started(app):
        found = [json.loads(record.payload) for record in await read_topic(url, out, 3)]
    assert found == [{"raw": '{"n" : 1}', "key": "a"}, {"raw": None, "key": "a"}, {"raw": "2 ", "key": "b"}]


async def test_tombstones_and_headers_are_sent_alike_to_both_brokers(app, url, make_topic):
    topic, out = make_topic(), make_topic()

    @app.agent(topic, tombstones=True, sink=out)
    async def told(ctx):
        return Message(ctx.message, key=ctx.key, headers={"unit": dict(ctx.headers)["unit"].decode()})

    await app.send(topic, 1, key="a", headers={"unit": "°C"})
    await app.send(topic, None, key="a", headers=[("unit", "°C")])
    async with started(app):
        found = await read_topic(url, out, 2)
    unit = (("unit", "°C".encode()),)
    assert [(record.payload, record.key, tuple(record.headers)) for record in found] == [
        (b"1", b"a", unit),
        (None, b"a", unit),
    ]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_result_goes_into_the_topic_that_it_names(url, make_topic, tmp_path):
    """With a state directory: exactly once, in transactions of two tracks."""
    topic, even, odd = make_topic(), make_topic(), make_topic()
    app = App(f"app-{uuid.uuid4().hex[:8]}", broker=url, state=str(tmp_path), checkpoint_interval="100ms")

    @app.agent(topic, sink=[even, odd])
    async def part(ctx):
        return Message(ctx.message, topic=odd if ctx.message % 2 else even)

    async with started(app):
        for number in range(20):
            await app.send(topic, number, key="k")
        found = [[(r.value, r.key) for r in await read_topic(url, place, 10)] for place in (even, odd)]
    assert found == [[(number, b"k") for number in range(first, 20, 2)] for first in (0, 1)]


async def test_agent_receives_kafka_messages(app, make_topic):
    """Document 000, step 2.2."""
    topic, received = make_topic(), []

    @app.agent(topic=topic)
    async def test_agent(ctx):
        received.append((ctx.message, ctx.key, ctx.headers, ctx.topic, ctx.partition, ctx.offset))

    for n in range(3):
        await bounded(app.send(topic, {"n": n}, key=f"k{n}", headers=(("h", b"\x00"),)))
    async with started(app):
        await until(lambda: len(received) == 3)
        await bounded(app.send(topic, {"n": 3}))
        await until(lambda: len(received) == 4)
    headers = (("h", b"\x00"),)
    assert received == [
        *[({"n": n}, f"k{n}".encode(), headers, topic, 0, n) for n in range(3)],
        ({"n": 3}, None, (), topic, 0, 3),
    ]


async def test_agent_handles_json_messages(app, make_topic):
    """Document 000, step 2.2: a JSON object is a dict."""
    topic, received = make_topic(), []

    @app.agent(topic=topic)
    async def json_agent(ctx):
        assert isinstance(ctx.message, dict)
        assert "key" in ctx.message
        received.append(ctx.message)

    message = {"key": "value", "nested": {"list": [1, 2.5, None, True, "zürich"]}}
    await bounded(app.send(topic, message))
    await bounded(app.send(topic, json.dumps(message, indent=2).encode()))
    async with started(app):
        await until(lambda: len(received) == 2)
        assert state_of(app, "json_agent") == "running"
    assert received == [message, message]


async def test_json_that_is_none_goes_to_the_dead_letters_of_its_topic(app, url, make_topic):
    topic, received = make_topic(), []

    @app.agent(topic=topic)
    async def json_agent(ctx):
        received.append(ctx.message)

    await bounded(app.send(topic, {"n": 1}))
    await bounded(app.send(topic, b"{not json", key=b"\xff"))
    await bounded(app.send(topic, {"n": 2}))
    async with started(app):
        await until(lambda: received == [{"n": 1}, {"n": 2}])
    [letter] = await read_topic(url, f"{topic}.dlq", 1)
    assert (letter.payload, letter.key) == (b"{not json", b"\xff")
    headers = dict(letter.headers)
    assert headers["sabot.topic"] == topic.encode()
    assert headers["sabot.offset"] == b"1"
    assert headers["sabot.agent"] == f"{app.id}.json_agent".encode()


@pytest.mark.one_in(6, "some hundredths of a second of a core each")
@pytest.mark.parametrize("policy", ["fail", "retry", "skip"])
async def test_agent_error_handling(app, url, make_topic, policy):
    """Document 000, step 2.2."""
    topic, out, calls = make_topic(), make_topic(), []

    @app.agent(topic=topic, sink=out, on_error=policy, backoff="1ms", **({"retries": 2} if policy == "retry" else {}))
    async def failing_agent(ctx):
        calls.append(ctx.message["n"])
        if ctx.message.get("trigger_error"):
            raise ValueError("Test error")
        return ctx.message

    await bounded(app.send(topic, {"n": 1}))
    await bounded(app.send(topic, {"n": 2, "trigger_error": True}))
    await bounded(app.send(topic, {"n": 3}))
    if policy == "fail":
        with pytest.raises(AgentFailed, match=r"failing_agent"):
            await bounded(app.run())
        assert calls == [1, 2]
        return
    async with started(app):
        await until(lambda: calls[-1:] == [3])
    assert calls == ([1, 2, 3] if policy == "skip" else [1, 2, 2, 2, 3])
    assert [record.value["n"] for record in await read_topic(url, out, 2)] == [1, 3]
    [letter] = await read_topic(url, f"{topic}.dlq", 1)
    assert letter.value == {"n": 2, "trigger_error": True}
    assert dict(letter.headers)["sabot.attempts"] == (b"1" if policy == "skip" else b"3")


async def test_lifecycle_of_an_agent_process(url, make_topic):
    """Rows 0.02 and 0.03, on either broker."""
    topic, received = make_topic(), []

    async def collect(ctx):
        received.append(ctx.message)

    app = App("sender", broker=url)
    await bounded(app.send(topic, 1))
    agent = AgentProcess(agent_id=f"agent-{uuid.uuid4().hex[:8]}", agent_func=collect, topic=topic, broker=url)
    await bounded(agent.start())
    assert agent.state == AgentState.RUNNING
    assert isinstance(agent.consumer, KafkaSource)
    assert agent.consumer.group_id == f"{agent.agent_id}-group"
    await until(lambda: received == [1])
    await bounded(agent.stop())
    await bounded(agent.stop())
    assert agent.state == AgentState.STOPPED
    assert agent.messages_processed == 1


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_results_keep_key_and_order_on_their_way_through_two_topics(app, url, make_topic):
    first, second, out = make_topic(), make_topic(), make_topic()

    @app.agent(first, sink=second)
    async def one(ctx):
        return ctx.message + 1

    @app.agent(second, sink=out)
    async def two(ctx):
        yield ctx.message
        yield b"raw"

    for n in range(20):
        await bounded(app.send(first, n, key=f"k{n % 3}"))
    async with started(app):
        records = await read_topic(url, out, 40)
    assert [record.value for record in records[::2]] == list(range(1, 21))
    assert {record.payload for record in records[1::2]} == {b"raw"}
    assert [record.key for record in records[::2]] == [f"k{n % 3}".encode() for n in range(20)]


async def test_several_partitions_are_read_each_in_order(app, make_topic):
    topic, seen = make_topic(partitions=4), {}

    @app.agent(topic)
    async def look(ctx):
        seen.setdefault(ctx.partition, []).append((ctx.offset, ctx.message))

    await asyncio.gather(*(app.send(topic, {"p": p, "n": n}, partition=p) for n in range(25) for p in range(4)))
    async with started(app):
        await until(lambda: sum(map(len, seen.values())) == 100)
    for partition, rows in seen.items():
        assert [offset for offset, _ in rows] == list(range(25))
        assert {message["p"] for _, message in rows} == {partition}


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_a_stopped_app_goes_on_with_state_and_position(url, make_topic, tmp_path):
    topic, seen = make_topic(), []
    name = f"app-{uuid.uuid4().hex[:8]}"

    def build():
        app = App(name, broker=url, state=str(tmp_path / "state"))

        @app.agent(topic)
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            seen.append((ctx.message, n))

        return app

    app = build()
    for n in range(10):
        await bounded(app.send(topic, n))
    async with started(app):
        await until(lambda: len(seen) == 10)
    app = build()
    for n in range(10, 15):
        await bounded(app.send(topic, n))
    async with started(app):
        await until(lambda: len(seen) >= 15)
        await checkpoint(app)
    assert seen == [(n, n + 1) for n in range(15)]


@pytest.mark.kafka
async def test_a_missing_source_topic_is_a_user_error_that_names_it(kafka_url):
    app = App("missing", broker=kafka_url)
    missing = f"missing-{uuid.uuid4().hex[:8]}"

    @app.agent(missing)
    async def look(ctx):
        return None

    with pytest.raises(UserError, match=missing):
        await bounded(app.run())


@pytest.mark.slow  # it waits
async def test_a_broker_that_is_absent_at_the_start_is_named_within_ten_seconds():
    address = f"127.0.0.1:{free_ports(1)[0]}"
    app = App("absent", broker=f"kafka://{address}")

    @app.agent("orders")
    async def look(ctx):
        return None

    before = threads()
    with within(10), pytest.raises(BrokerUnavailable, match=address):
        await bounded(app.run())
    assert have_ended(before)


@pytest.mark.one_in(2, "a tenth of a second of a core each")
async def test_after_a_crash_state_and_position_come_back_together(url, make_topic, tmp_path):
    """The crash is a copy of the complete checkpoints, taken while the app runs and has gone on."""
    topic, name = make_topic(partitions=2), f"app-{uuid.uuid4().hex[:8]}"

    def build(root, counts):
        app = App(name, broker=url, state=str(root / "state"), checkpoint_dir=root / "checkpoints")

        @app.agent(topic)
        async def count(ctx):
            n = (await ctx.state().get(ctx.message["k"]) or 0) + 1
            await ctx.state().put(ctx.message["k"], n)
            counts.append((ctx.message["k"], n))

        return app

    async def send(app, how_many):
        await asyncio.gather(*(bounded(app.send(topic, {"k": f"k{n % 5}"}, partition=n % 2)) for n in range(how_many)))

    counts, again = [], []
    app = build(tmp_path / "first", counts)
    async with started(app):
        await send(app, 50)
        await until(lambda: len(counts) == 50)
        await checkpoint(app)
        image = crash_image(tmp_path / "first" / "checkpoints", tmp_path / "crash" / "checkpoints")
        await send(app, 50)
        await until(lambda: len(counts) == 100)
    async with started(build(image.parent, again)):
        await until(lambda: len(again) >= 50)
    assert len(again) == 50
    assert sorted(again) == sorted((f"k{key}", n) for key in range(5) for n in range(11, 21))


async def test_offsets_are_committed_to_the_agents_group_on_the_broker(app, url, make_topic):
    topic = make_topic()

    @app.agent(topic)
    async def look(ctx):
        return None

    for n in range(5):
        await bounded(app.send(topic, n))
    async with started(app):
        await until(lambda: app.agent_runtime.get_stats()[f"{app.id}.look"]["messages_processed"] == 5)
        await checkpoint(app)
    await bounded(app.send(topic, "next"))
    source = KafkaSource(topic, url, f"{app.id}.look-group")
    await source.start()  # a reader of the group goes on behind what the checkpoint covers
    try:
        assert await bounded(source.get_next()) == "next"
    finally:
        await source.stop()


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.kafka
@pytest.mark.parametrize("own", [False, True], ids=["topic", "source of its own"])
async def test_an_agent_without_checkpoints_goes_on_at_the_offsets_of_its_group(kafka_url, caplog, own):
    """It read its topic from the first record at each start, without a word, though it committed to its group."""
    caplog.set_level("INFO")
    topic, name = f"t-{uuid.uuid4().hex[:12]}", f"app-{uuid.uuid4().hex[:8]}"
    create_topic(kafka_url, topic, 1)

    async def seen_by(count, **options):
        seen = []
        app = App(name, broker=kafka_url)

        @app.agent(KafkaSource(topic, kafka_url, f"{name}-own") if own else topic, name="look", **options)
        async def look(ctx):
            seen.append(ctx.message)

        async with started(app):
            await until(lambda: len(seen) == count)
        return seen

    app = App("sender", broker=kafka_url)
    for n in range(3):
        await bounded(app.send(topic, n))
    assert await seen_by(3) == [0, 1, 2]
    assert f"{topic}[0]@0. Records that were under way come again" in caplog.text
    await bounded(app.send(topic, 3))
    assert await seen_by(1) == [3]
    assert f"goes on at the offsets of its group {name}{'-own' if own else '.look-group'}: {topic}[0]@3." in caplog.text
    assert await seen_by(4, start="earliest") == [0, 1, 2, 3]
    await app.stop()
