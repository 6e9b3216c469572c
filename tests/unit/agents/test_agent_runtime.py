"""AgentRuntime (row 0.07), and what becomes of results: values, keys, sinks, channels between agents, order and overlap."""

import asyncio
import contextvars
import random
import threading

import pytest

from sabot import App, Message, UserError
from sabot.agents.runtime import AgentProcess, AgentRuntime, AgentState
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.connectors.memory import MemoryBroker
from tools.agent_tools import (
    bounded,
    processed,
    publish,
    read_lines,
    records,
    started,
    state_of,
    until,
    values,
    within,
    write_lines,
)


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
    with within(5):
        await bounded(app.stop())
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


@pytest.mark.one_in(2, "a tenth of a second of a core each")
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


async def test_one_call_runs_in_one_task_and_may_use_task_groups_and_timeouts(app):
    tasks, results = [], []

    @app.agent("in", concurrency=2)
    async def look(ctx):
        before = asyncio.current_task()
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(0, n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks.append(before is not None and before is asyncio.current_task())
        results.append([child.result() for child in children])

    publish(app, "in", [1, 2, 3], key="k")
    async with started(app):
        await until(lambda: processed(app, "look") == 3)
    assert tasks == [True] * 3
    assert results == [[0, 1, 2]] * 3


async def test_a_retry_keeps_the_order_of_its_key_and_does_not_hold_up_the_other_keys(app):
    seen, others_done = [], asyncio.Event()

    @app.agent("in", concurrency=8, on_error="retry", retries=200, backoff="1ms")
    async def look(ctx):
        if ctx.message == "first" and not others_done.is_set():
            raise ConnectionError("not yet")
        seen.append(ctx.message)
        if len(seen) >= 30:
            others_done.set()

    publish(app, "in", ["first", "second"], key="patient")
    for n in range(64):
        publish(app, "in", [n], key=f"key-{n}")  # most of them are in other lanes
    async with started(app):
        await until(lambda: processed(app, "look") == 66)
    assert seen.index("first") >= 30
    assert seen.index("first") < seen.index("second")
    assert records(app, "in.dlq") == []


# Results and messages are values: what a program does to its objects afterwards changes nothing


async def test_a_result_is_what_it_was_when_it_was_returned(app):
    totals = {}

    @app.agent("in", sink="out")
    async def count(ctx):
        totals[ctx.message] = totals.get(ctx.message, 0) + 1
        return totals

    publish(app, "in", ["a", "b", "a"])
    async with started(app):
        await until(lambda: len(records(app, "out")) == 3)
    assert values(app, "out") == [{"a": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]


@pytest.mark.parametrize("as_async", [False, True], ids=["generator", "async_generator"])
async def test_a_yielded_result_is_what_it_was_when_it_was_yielded(app, as_async):
    if as_async:

        @app.agent("in", sink="out")
        async def count(ctx):
            row = {}
            for n in range(3):
                row["n"] = n
                yield row
    else:

        @app.agent("in", sink="out")
        def count(ctx):
            row = {}
            for n in range(3):
                row["n"] = n
                yield row

    publish(app, "in", [1])
    async with started(app):
        await until(lambda: len(records(app, "out")) == 3)
    assert values(app, "out") == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_a_result_for_another_agent_is_what_it_was_when_it_was_returned(app):
    totals, seen = {}, []

    @app.agent("second-in")
    async def second(ctx):
        ctx.message["changed"] = True
        seen.append(dict(ctx.message))

    @app.agent("in", sink=second)
    async def first(ctx):
        totals[ctx.message] = totals.get(ctx.message, 0) + 1
        return totals

    publish(app, "in", ["a", "b"])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert seen == [{"a": 1, "changed": True}, {"a": 1, "b": 1, "changed": True}]


async def test_a_message_that_one_agent_changes_reaches_the_others_as_it_came(app):
    seen = []

    @app.agent("in")
    async def one(ctx):
        ctx.message["n"] += 1
        seen.append(ctx.message["n"])

    @app.agent("in")
    async def two(ctx):
        ctx.message["n"] += 1
        seen.append(ctx.message["n"])

    publish(app, "in", [{"n": 1}])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert seen == [2, 2]


async def test_a_message_that_an_attempt_changed_comes_to_the_next_attempt_as_it_came(app):
    seen = []

    @app.agent("in", sink="out", on_error="retry", retries=2, backoff="1ms")
    async def grow(ctx):
        seen.append(ctx.message["n"])
        ctx.message["n"] += 1
        raise ConnectionError("never")

    publish(app, "in", [{"n": 1}])
    async with started(app):
        await until(lambda: len(records(app, "in.dlq")) == 1)
    assert seen == [1, 1, 1]
    assert values(app, "in.dlq") == [{"n": 1}]


# Bounds and ends


@pytest.mark.slow  # many thousand records; the bound of a channel: test_channel
async def test_an_agent_does_not_run_ahead_of_a_slow_one_without_bound(app):
    rows = 300_000
    free = asyncio.Event()

    @app.agent("slow-in")
    async def slow(ctx):
        await free.wait()

    @app.agent("in", sink=slow)
    async def fast(ctx):
        return ctx.message

    publish(app, "in", [b"1"] * rows)
    async with started(app):
        last, still = -1, 0
        while still < 10:  # until it stands still for a while
            await asyncio.sleep(0.05)
            count = processed(app, "fast")
            last, still = count, still + 1 if count == last and count > 0 else 0
            if count == rows:
                break
        assert 0 < processed(app, "fast") < rows
        free.set()
        await until(lambda: processed(app, "slow") == rows)


async def test_a_stop_lets_a_hanging_generator_clean_up(app):
    inside, cleaned = asyncio.Event(), []

    @app.agent("in", sink="out")
    async def hangs(ctx):
        try:
            yield 1
            inside.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(ctx.message)

    publish(app, "in", ["x"])
    await app.start()
    await bounded(inside.wait())
    with within(5):
        await bounded(app.stop())
    assert cleaned == ["x"]


async def test_two_apps_on_one_broker_both_get_every_message(app):
    other = App("other", broker=app.broker)
    seen = []

    @app.agent("in")
    async def one(ctx):
        seen.append(("one", ctx.message))

    @other.agent("in")
    async def two(ctx):
        seen.append(("two", ctx.message))

    publish(app, "in", [1, 2])
    async with started(app, other):
        await until(lambda: len(seen) == 4)
    assert sorted(seen) == [("one", 1), ("one", 2), ("two", 1), ("two", 2)]
