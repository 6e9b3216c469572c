"""AgentRuntime (row 0.07), and what becomes of results: values, keys, sinks, channels between agents, order and overlap."""

import asyncio
import contextvars
import random
import threading

import pytest
from agent_tools import bounded, processed, publish, read_lines, records, started, state_of, until, values, write_lines

from sabot import App, Message, UserError
from sabot.agents.runtime import AgentProcess, AgentRuntime, AgentState
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.connectors.memory import MemoryBroker


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url)


# Row 0.07


async def test_runtime_registers_starts_counts_and_stops_agents(app):
    seen = []

    async def first(ctx):
        seen.append(("first", ctx.message))

    async def second(ctx):
        seen.append(("second", ctx.message))

    runtime = AgentRuntime(app)
    assert runtime.app is app
    await runtime.register_agent(agent_id="one", agent_func=first, topic="a")
    await runtime.register_agent(agent_id="two", agent_func=second, topic="b")
    assert set(runtime.agents) == {"one", "two"}
    assert all(isinstance(agent, AgentProcess) for agent in runtime.agents.values())
    assert runtime.agents["one"].broker == app.broker
    await bounded(runtime.start_all())
    assert {agent.state for agent in runtime.agents.values()} == {AgentState.RUNNING}
    publish(app, "a", [1])
    publish(app, "b", [2, 3])
    await until(lambda: len(seen) == 3)
    stats = runtime.get_stats()
    assert set(stats) == {"one", "two"}
    assert {"state", "messages_processed", "errors", "last_message_time"} <= set(stats["one"])
    assert stats["one"]["state"] == AgentState.RUNNING.value
    assert stats["one"]["messages_processed"] == 1
    assert stats["two"]["messages_processed"] == 2
    assert stats["two"]["errors"] == 0
    assert stats["two"]["last_message_time"] > 1_600_000_000
    await bounded(runtime.stop_all())
    assert {agent.state for agent in runtime.agents.values()} == {AgentState.STOPPED}
    assert runtime.get_stats()["two"]["messages_processed"] == 2


async def test_runtime_stats_before_the_start_say_stopped_and_nothing_done(app):
    async def idle(ctx):
        return None

    runtime = AgentRuntime(app)
    await runtime.register_agent("one", idle, "a")
    stats = runtime.get_stats()["one"]
    assert stats["state"] == AgentState.STOPPED.value
    assert stats["messages_processed"] == 0
    assert stats["errors"] == 0
    assert stats["last_message_time"] is None


async def test_runtime_stop_all_stops_every_agent_although_one_has_failed(app):
    async def bad(ctx):
        raise ValueError("no")

    async def good(ctx):
        return None

    runtime = AgentRuntime(app)
    await runtime.register_agent("bad", bad, "a")
    await runtime.register_agent("good", good, "b")
    publish(app, "a", [1])
    await bounded(runtime.start_all())
    await until(lambda: runtime.agents["bad"].state == AgentState.FAILED)
    assert runtime.agents["good"].state == AgentState.RUNNING
    await bounded(runtime.stop_all())
    assert runtime.agents["good"].state == AgentState.STOPPED
    await bounded(runtime.stop_all())


async def test_runtime_run_blocks_until_it_is_stopped(app):
    async def idle(ctx):
        return None

    runtime = AgentRuntime(app)
    await runtime.register_agent("one", idle, "a")
    run = asyncio.create_task(runtime.run())
    await until(lambda: runtime.agents["one"].state == AgentState.RUNNING)
    assert not run.done()
    await bounded(runtime.stop_all())
    await bounded(run)
    assert runtime.agents["one"].state == AgentState.STOPPED


async def test_runtime_run_that_is_cancelled_stops_the_agents_and_is_cancelled(app):
    async def idle(ctx):
        return None

    runtime = AgentRuntime(app)
    await runtime.register_agent("one", idle, "a")
    run = asyncio.create_task(runtime.run())
    await until(lambda: runtime.agents["one"].state == AgentState.RUNNING)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bounded(run)
    assert runtime.agents["one"].state == AgentState.STOPPED


async def test_runtime_refuses_a_second_agent_under_one_id(app):
    async def one(ctx):
        return None

    async def two(ctx):
        return None

    runtime = AgentRuntime(app)
    await runtime.register_agent("same-id", one, "a")
    with pytest.raises(UserError, match="same-id"):
        await runtime.register_agent("same-id", two, "b")


async def test_a_call_that_hangs_is_cancelled_by_the_stop(app):
    inside, ended = asyncio.Event(), []

    @app.agent("orders")
    async def hangs(ctx):
        inside.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(ctx.message)

    publish(app, "orders", ["x"])
    await app.start()
    await bounded(inside.wait())
    await bounded(app.stop(), 5)
    assert ended == ["x"]
    assert processed(app, "hangs") == 0
    assert state_of(app, "hangs") == "stopped"


# Results


async def collected(app, inputs, expected):
    """Runs the app on the inputs until `out` holds this many records."""
    for key, value in inputs:
        publish(app, "in", [value], key=key)
    async with started(app):
        await until(lambda: len(records(app, "out")) >= expected)
        await until(lambda: sum(s["messages_processed"] for s in app.agent_runtime.get_stats().values()) == len(inputs))
    return [(record.key, record.payload) for record in records(app, "out")]


async def test_none_is_no_message_and_a_value_is_one_with_the_key_of_its_input(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        return None if ctx.message == 2 else {"n": ctx.message}

    assert await collected(app, [("a", 1), ("b", 2), (None, 3)], 2) == [(b"a", b'{"n":1}'), (None, b'{"n":3}')]


async def test_falsy_values_are_messages(app):
    results = [0, False, "", [], {}]

    @app.agent("in", sink="out")
    async def answer(ctx):
        return results[ctx.message]

    assert await collected(app, [(None, n) for n in range(5)], 5) == [
        (None, b"0"),
        (None, b"false"),
        (None, b'""'),
        (None, b"[]"),
        (None, b"{}"),
    ]


async def test_a_list_is_one_message(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        return [1, {"two": 2}]

    assert await collected(app, [("k", "x")], 1) == [(b"k", b'[1,{"two":2}]')]


async def test_bytes_go_as_they_are(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        return b"\x00\xff raw"

    assert await collected(app, [("k", "x")], 1) == [(b"k", b"\x00\xff raw")]


async def test_a_message_names_its_own_key(app):
    keys = ["text", b"\x00\x01"]

    @app.agent("in", sink="out")
    async def answer(ctx):
        return Message({"n": ctx.message}, key=keys[ctx.message])

    assert await collected(app, [("k", 0), ("k", 1)], 2) == [(b"text", b'{"n":0}'), (b"\x00\x01", b'{"n":1}')]


async def test_a_message_carries_headers(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        return Message("x", key="k", headers=(("trace", b"1"),))

    await collected(app, [(None, 1)], 1)
    assert records(app, "out")[0].headers == (("trace", b"1"),)


async def test_an_async_generator_yields_several_messages(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        for n in range(ctx.message):
            yield n
        await asyncio.sleep(0)
        yield Message("last", key="other")

    assert await collected(app, [("k", 2), ("l", 0)], 4) == [
        (b"k", b"0"),
        (b"k", b"1"),
        (b"other", b'"last"'),
        (b"other", b'"last"'),
    ]


async def test_a_generator_yields_several_messages(app):
    @app.agent("in", sink="out")
    def answer(ctx):
        for n in range(ctx.message):
            yield {"n": n}

    assert await collected(app, [("k", 2), ("l", 1)], 3) == [(b"k", b'{"n":0}'), (b"k", b'{"n":1}'), (b"l", b'{"n":0}')]


async def test_results_keep_the_order_of_their_inputs(app):
    @app.agent("in", sink="out")
    async def answer(ctx):
        return ctx.message

    publish(app, "in", list(range(5000)))
    async with started(app):
        await until(lambda: len(records(app, "out")) == 5000)
    assert values(app, "out") == list(range(5000))


# Sinks and sources


async def test_without_a_sink_results_go_nowhere(app):
    @app.agent("in")
    async def answer(ctx):
        return ctx.message

    publish(app, "in", [1, 2])
    async with started(app):
        await until(lambda: processed(app, "answer") == 2)
    assert len(records(app, "in")) == 2
    assert records(app, "answer") == []


async def test_a_sink_object_gets_the_results(app, tmp_path):
    @app.agent("in", sink=NdjsonSink(tmp_path / "out.ndjson"))
    async def answer(ctx):
        return {"n": ctx.message}

    publish(app, "in", [1, 2])
    async with started(app):
        await until(lambda: processed(app, "answer") == 2)
    assert read_lines(tmp_path / "out.ndjson") == [{"n": 1}, {"n": 2}]


async def test_a_file_in_and_a_file_out_is_a_job_that_ends_by_itself(memory_url, tmp_path):
    app = App("files", broker=memory_url)

    @app.agent(NdjsonSource(write_lines(tmp_path / "in.ndjson", range(2000))), sink=NdjsonSink(tmp_path / "out.ndjson"))
    async def double(ctx):
        return ctx.message * 2

    await bounded(app.run())
    assert read_lines(tmp_path / "out.ndjson") == [n * 2 for n in range(2000)]


async def test_another_agent_as_sink_is_a_channel_and_no_topic(app):
    @app.agent("second-in", sink="out")
    async def second(ctx):
        return {"got": ctx.message, "key": ctx.key.decode() if ctx.key else None}

    @app.agent("in", sink=second)
    async def first(ctx):
        return {"n": ctx.message}

    publish(app, "in", [1], key="a")
    publish(app, "in", [2], key=None)
    async with started(app):
        await until(lambda: len(records(app, "out")) == 2)
        publish(app, "second-in", ["by topic"], key="t")
        await until(lambda: len(records(app, "out")) == 3)
    assert values(app, "out") == [
        {"got": {"n": 1}, "key": "a"},
        {"got": {"n": 2}, "key": None},
        {"got": "by topic", "key": "t"},
    ]
    topics = {name for name in MemoryBroker.get(app.broker).topics() if not name.endswith(".dlq")}
    assert topics == {"in", "second-in", "out"}
    assert [record.payload for record in records(app, "second-in")] == [b'"by topic"']


async def test_a_chain_of_three_agents_on_a_file_delivers_every_record_once(memory_url, tmp_path):
    app = App("chain", broker=memory_url)

    @app.agent("c", sink=NdjsonSink(tmp_path / "out.ndjson"))
    async def c(ctx):
        return ctx.message + 1

    @app.agent("b", sink=c)
    async def b(ctx):
        yield ctx.message
        yield ctx.message

    @app.agent(NdjsonSource(write_lines(tmp_path / "in.ndjson", range(300))), sink=b)
    async def a(ctx):
        return ctx.message * 10

    async with started(app):
        await until(lambda: processed(app, "c") == 600)
    assert sorted(read_lines(tmp_path / "out.ndjson")) == sorted(n * 10 + 1 for n in range(300) for _ in "ab")


async def test_one_agent_reads_several_topics(app):
    seen = set()

    @app.agent(["a", "b", "c"])
    async def look(ctx):
        seen.add((ctx.topic, ctx.message))

    for topic in "abc":
        publish(app, topic, [topic * 2])
    async with started(app):
        await until(lambda: len(seen) == 3)
    assert seen == {("a", "aa"), ("b", "bb"), ("c", "cc")}


async def test_two_agents_on_one_topic_both_get_every_message(app):
    seen = {"one": [], "two": []}

    @app.agent("in")
    async def one(ctx):
        seen["one"].append(ctx.message)

    @app.agent("in")
    async def two(ctx):
        seen["two"].append(ctx.message)

    publish(app, "in", list(range(100)))
    async with started(app):
        await until(lambda: processed(app, "one") == processed(app, "two") == 100)
    assert seen == {"one": list(range(100)), "two": list(range(100))}


# Order and overlap


async def test_concurrency_really_overlaps_calls(app):
    active, most, together = 0, 0, asyncio.Event()

    @app.agent("in", concurrency=4)
    async def slow(ctx):
        nonlocal active, most
        active += 1
        most = max(most, active)
        if active >= 2:
            together.set()
        await bounded(together.wait())
        await asyncio.sleep(0)
        active -= 1

    for n in range(64):
        publish(app, "in", [n], key=f"key-{n}")
    async with started(app):
        await until(lambda: processed(app, "slow") == 64)
    assert 2 <= most <= 4


async def test_without_concurrency_one_call_ends_before_the_next_begins(app):
    active, most = 0, 0

    @app.agent("in")
    async def slow(ctx):
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        active -= 1

    for n in range(64):
        publish(app, "in", [n], key=f"key-{n}")
    async with started(app):
        await until(lambda: processed(app, "slow") == 64)
    assert most == 1


@pytest.mark.parametrize("keyed", [False, True], ids=["key_of_the_record", "key_of_the_agent"])
async def test_concurrency_keeps_the_order_per_key(app, keyed):
    chance = random.Random(7)
    begun, ended, active = {}, {}, set()

    @app.agent("in", sink="out", concurrency=8, key="who" if keyed else None)
    async def slow(ctx):
        who, n = ctx.message["who"], ctx.message["n"]
        assert who not in active
        active.add(who)
        begun.setdefault(who, []).append(n)
        for _ in range(chance.randrange(5)):
            await asyncio.sleep(0)
        ended.setdefault(who, []).append(n)
        active.discard(who)
        return ctx.message

    for n in range(400):
        who = f"w{chance.randrange(10)}"
        publish(app, "in", [{"who": who, "n": n}], key=None if keyed else who)
    async with started(app):
        await until(lambda: len(records(app, "out")) == 400)
    assert all(numbers == sorted(numbers) for numbers in begun.values())
    assert begun == ended
    out = {}
    for value in values(app, "out"):
        out.setdefault(value["who"], []).append(value["n"])
    assert out == begun
    assert records(app, "in.dlq") == []


async def test_context_variables_of_one_call_do_not_leak_into_the_next(app):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    @app.agent("in")
    async def look(ctx):
        seen.append(variable.get())
        variable.set(ctx.message)
        await asyncio.sleep(0)
        assert variable.get() == ctx.message

    publish(app, "in", ["a", "b", "c"])
    async with started(app):
        await until(lambda: processed(app, "look") == 3)
    assert seen == ["unset"] * 3


async def test_calls_run_on_the_loop_that_started_the_app(app):
    where = []

    @app.agent("in")
    async def look(ctx):
        where.append((asyncio.get_running_loop(), threading.get_ident()))

    publish(app, "in", [1])
    async with started(app):
        await until(lambda: where)
    assert where == [(asyncio.get_running_loop(), threading.get_ident())]
