"""Error policies and dead letters: fail, retry, skip; what cannot be decoded; failing batches; calls that hang (row 0.06)."""

import asyncio
import itertools
import time

import pyarrow as pa
import pytest

from sabot import AgentFailed, App, Overloaded, RowErrors, UserError
from sabot.connectors.files import NdjsonSource
from sabot.connectors.memory import MemoryBroker
from sabot.engine.calls import Retry
from tools.agent_tools import (
    bounded,
    processed,
    publish,
    records,
    started,
    state_of,
    until,
    values,
    within,
    write_lines,
)

HEADERS = {
    "sabot.topic",
    "sabot.partition",
    "sabot.offset",
    "sabot.timestamp",
    "sabot.agent",
    "sabot.error",
    "sabot.message",
    "sabot.attempts",
    "sabot.version",
    "sabot.written",
}


@pytest.fixture
def app(memory_url):
    return App("shop", broker=memory_url, version="v7")


def headers_of(record):
    return {name: value.decode() for name, value in record.headers}


def stats(app, name):
    return app.agent_runtime.get_stats()[f"{app.id}.{name}"]


# skip


async def test_skip_sends_the_record_to_the_dead_letters_and_goes_on(app):
    seen = []

    @app.agent("orders", on_error="skip")
    async def check(ctx):
        if ctx.message == "bad":
            raise ValueError("no good")
        seen.append(ctx.message)

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: seen == ["a", "b"])
        await until(lambda: len(records(app, "orders.dlq")) == 1 and processed(app, "check") == 2)
        assert state_of(app, "check") == "running"
        assert stats(app, "check")["errors"] == 1
    assert values(app, "orders.dlq") == ["bad"]


async def test_skip_calls_the_agent_once_for_a_bad_record(app):
    calls = []

    @app.agent("orders", on_error="skip")
    async def check(ctx):
        calls.append(ctx.message)
        raise ValueError("never")

    publish(app, "orders", [1, 2])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 2)
    assert calls == [1, 2]


async def test_skip_leaves_a_dead_letter_with_the_original_bytes_and_all_headers(app):
    @app.agent("orders", on_error="skip")
    async def check(ctx):
        raise ValueError("no good")

    broker_value = b'{ "id" :  7 }'
    broker = MemoryBroker.get(app.broker)
    broker.create_topic("orders", 2)
    broker.publish("orders", [1], partition=1)
    broker.publish("orders", [broker_value], key=b"\x00\xffk", partition=1, timestamp=1_700_000_000_123)
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 2)
    letter = next(letter for letter in records(app, "orders.dlq") if letter.key is not None)
    assert letter.payload == broker_value
    assert letter.key == b"\x00\xffk"
    assert len(letter.headers) == len(HEADERS) + 1
    headers = headers_of(letter)
    assert set(headers) == HEADERS | {"sabot.traceback"}
    assert headers["sabot.traceback"].endswith('raise ValueError("no good")')
    assert headers["sabot.topic"] == "orders"
    assert headers["sabot.partition"] == "1"
    assert headers["sabot.offset"] == "1"
    assert headers["sabot.timestamp"] == "1700000000123"
    assert headers["sabot.agent"] == "shop.check"
    assert headers["sabot.error"].rpartition(".")[2] == "ValueError"
    assert "no good" in headers["sabot.message"]
    assert headers["sabot.attempts"] == "1"
    assert headers["sabot.version"] == "v7"


async def test_skip_writes_to_the_dead_letter_topic_that_was_asked_for(app):
    @app.agent(["a", "b"], on_error="skip", dead_letter="bad-{topic}-x")
    async def check(ctx):
        raise ValueError("no")

    @app.agent("c", on_error="skip", dead_letter="graveyard")
    async def other(ctx):
        raise ValueError("no")

    for topic in "abc":
        publish(app, topic, [topic])
    async with started(app):
        await until(lambda: values(app, "bad-a-x") == ["a"])
        await until(lambda: values(app, "bad-b-x") == ["b"])
        await until(lambda: values(app, "graveyard") == ["c"])


async def test_skip_takes_a_result_that_json_cannot_say_as_an_error_of_that_record(app):
    @app.agent("orders", sink="out", on_error="skip")
    async def check(ctx):
        return object() if ctx.message == "bad" else ctx.message

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["a", "b"])
        await until(lambda: values(app, "orders.dlq") == ["bad"])


async def test_skip_drops_what_a_call_yielded_before_it_raised(app):
    @app.agent("orders", sink="out", on_error="skip")
    async def check(ctx):
        yield f"{ctx.message}-1"
        if ctx.message == "bad":
            raise ValueError("half way")
        yield f"{ctx.message}-2"

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: values(app, "orders.dlq") == ["bad"])
        await until(lambda: values(app, "out") == ["a-1", "a-2", "b-1", "b-2"])


@pytest.mark.parametrize("policy", ["skip", "retry"])
async def test_skip_or_retry_drops_the_state_writes_of_a_call_that_raised(memory_url, policy):
    app = App("shop", broker=memory_url, state="memory")
    seen = []

    @app.agent("orders", on_error=policy, backoff="1ms", **({"retries": 2} if policy == "retry" else {}))
    async def check(ctx):
        count = await ctx.state().get("n") or 0
        await ctx.state().put("n", count + 1)
        await ctx.state("other").put("last", ctx.message)
        if ctx.message == "bad":
            await ctx.state().delete("n")
            raise ValueError("after the put")
        seen.append((ctx.message, count, await ctx.state("other").get("last")))

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: len(seen) == 2)
    assert seen == [("a", 0, "a"), ("b", 1, "b")]


# retry


async def test_retry_calls_again_and_says_nothing_when_a_later_attempt_succeeds(app):
    calls = []

    @app.agent("orders", sink="out", on_error="retry", retries=3, backoff="1ms")
    async def check(ctx):
        calls.append(ctx.message)
        if calls.count(ctx.message) < 3:
            raise ConnectionError("not yet")
        return ctx.message

    publish(app, "orders", ["a", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["a", "b"])
    assert calls == ["a", "a", "a", "b", "b", "b"]
    assert records(app, "orders.dlq") == []


async def test_retry_is_bounded_and_ends_in_the_dead_letters(app):
    calls = []

    @app.agent("orders", sink="out", on_error="retry", retries=2, backoff="1ms")
    async def check(ctx):
        calls.append(ctx.message)
        if ctx.message == "bad":
            raise ConnectionError("never")
        return ctx.message

    publish(app, "orders", ["bad", "good"])
    async with started(app):
        await until(lambda: values(app, "out") == ["good"])
        await until(lambda: values(app, "orders.dlq") == ["bad"])
        assert state_of(app, "check") == "running"
    assert calls == ["bad", "bad", "bad", "good"]
    headers = headers_of(records(app, "orders.dlq")[0])
    assert headers["sabot.attempts"] == "3"
    assert headers["sabot.error"].rpartition(".")[2] == "ConnectionError"


async def test_retry_backs_off_longer_each_time(app):
    times = []

    @app.agent("orders", on_error="retry", retries=3, backoff="40ms")
    async def check(ctx):
        times.append(time.monotonic())
        raise ConnectionError("never")

    publish(app, "orders", ["x"])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 1)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(pauses) == 3
    assert all(pause >= 0.02 for pause in pauses)  # jitter may shorten a pause, not to nothing
    assert sum(pauses) >= 0.12


async def test_many_retries_wait_half_a_minute_at_most_and_end_in_the_dead_letters(app):
    """The wait doubled without a bound: retries=20 waited 14 hours, and after 1,024 the number was no float any more: the agent ended."""

    @app.agent("orders", on_error="retry", retries=1100, backoff=0)
    async def check(ctx):
        raise ConnectionError("never")

    publish(app, "orders", ["x"])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 1)
    assert headers_of(records(app, "orders.dlq")[0])["sabot.attempts"] == "1101"
    waits = [Retry(5000, 0.1).wait_s(retries) for retries in (0, 1, 8, 9, 19, 5000)]
    assert waits == [0.1, 0.2, 25.6, 30.0, 30.0, 30.0]


async def test_a_call_that_is_turned_away_is_made_again_in_its_place_whatever_the_policy(app):
    turned_away = []

    @app.agent("orders", sink="out", key="who", concurrency=4, backoff="1ms")
    async def check(ctx):
        await asyncio.sleep(0)
        if ctx.message["n"] % 3 == 0 and ctx.message["n"] not in turned_away:
            turned_away.append(ctx.message["n"])
            raise Overloaded("too many requests", retry_after="0.001")
        return ctx.message

    publish(app, "orders", [{"who": "ab"[n % 2], "n": n} for n in range(12)])
    async with started(app):
        await until(lambda: len(values(app, "out")) == 12)
        assert stats(app, "check")["errors"] == 0
    assert sorted(turned_away) == [0, 3, 6, 9]
    for who in "ab":
        mine = [message["n"] for message in values(app, "out") if message["who"] == who]
        assert mine == sorted(mine)


async def test_a_rate_that_cannot_be_is_refused(app):
    with pytest.raises(UserError, match="rate: 'fast' is no rate"):

        @app.agent("orders", rate="fast")
        async def check(ctx): ...


async def test_an_error_that_is_no_exception_is_one_of_the_call_too(app):
    """pytest's Failed and those of gevent are BaseExceptions: it was told as a bug of the engine, and restarted the app."""

    class Odd(BaseException):
        pass

    @app.agent("orders", on_error="skip")
    async def check(ctx):
        raise Odd("odd")

    publish(app, "orders", ["x"])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 1)
    assert headers_of(records(app, "orders.dlq")[0])["sabot.message"] == "odd"


async def test_retry_while_it_backs_off_does_not_hold_up_the_stop(app):
    calls = []

    @app.agent("orders", on_error="retry", retries=3, backoff="1h")
    async def check(ctx):
        calls.append(ctx.message)
        raise ConnectionError("never")

    publish(app, "orders", ["x"])
    await app.start()
    await until(lambda: calls == ["x"])
    with within(5):
        await bounded(app.stop())
    assert records(app, "orders.dlq") == []  # it was neither done nor given up


# fail


async def test_fail_stops_the_agent_at_the_record_and_ends_run_when_no_agent_is_left(app):
    seen = []

    @app.agent("orders")
    async def check(ctx):
        seen.append(ctx.message)
        if ctx.message == "bad":
            raise ValueError("no good")

    publish(app, "orders", ["a", "bad", "b"])
    with pytest.raises(AgentFailed) as raised:
        await bounded(app.run())
    assert seen == ["a", "bad"]
    assert "shop.check" in str(raised.value)
    assert "1" in str(raised.value)  # the offset
    assert "no good" in str(raised.value) or "no good" in str(raised.value.__cause__)
    assert state_of(app, "check") == "failed"
    assert stats(app, "check")["errors"] == 1
    assert records(app, "orders.dlq") == []


async def test_fail_of_one_agent_lets_the_others_go_on_to_their_end(memory_url, tmp_path):
    app = App("shop", broker=memory_url)
    seen = []
    failed = asyncio.Event()

    @app.agent(NdjsonSource(write_lines(tmp_path / "a.ndjson", ["bad"])))
    async def bad(ctx):
        failed.set()
        raise ValueError("no good")

    @app.agent(NdjsonSource(write_lines(tmp_path / "b.ndjson", range(500))))
    async def good(ctx):
        await bounded(failed.wait())
        if ctx.message == 0:
            await until(lambda: state_of(app, "bad") == "failed")
        seen.append(ctx.message)

    with pytest.raises(AgentFailed, match=r"shop\.bad"):
        await bounded(app.run())
    assert seen == list(range(500))


async def test_fail_of_one_agent_leaves_the_others_running_on_unbounded_topics(app):
    seen = []

    @app.agent("one")
    async def bad(ctx):
        raise ValueError("no good")

    @app.agent("two")
    async def good(ctx):
        seen.append(ctx.message)

    publish(app, "one", [1])
    run = asyncio.create_task(app.run())
    await until(lambda: "shop.bad" in app.agent_runtime.get_stats() and state_of(app, "bad") == "failed")
    publish(app, "two", [1, 2, 3])
    await until(lambda: seen == [1, 2, 3])
    assert not run.done()
    assert state_of(app, "good") == "running"
    await bounded(app.stop())
    with pytest.raises(AgentFailed, match=r"shop\.bad"):
        await bounded(run)


async def test_fail_keeps_the_offset_so_that_a_mended_agent_goes_on_at_the_record(memory_url, tmp_path):
    lines = write_lines(tmp_path / "in.ndjson", range(10))

    def build(broken: bool) -> tuple[App, list]:
        app = App("shop", broker=memory_url, state=str(tmp_path / "state"))
        counts = []

        @app.agent(NdjsonSource(lines))
        async def count(ctx):
            n = await ctx.state().get("n") or 0
            await ctx.state().put("n", n + 1)
            if broken and ctx.message == 6:
                raise ValueError("six")
            counts.append((ctx.message, n + 1))

        return app, counts

    app, counts = build(broken=True)
    with pytest.raises(AgentFailed):
        await bounded(app.run())
    assert counts == [(n, n + 1) for n in range(6)]
    app, counts = build(broken=False)
    await bounded(app.run())
    assert counts == [(n, n + 1) for n in range(6, 10)]


def test_fail_skip_and_retry_are_the_only_policies(app):
    with pytest.raises(UserError, match="ignore"):

        @app.agent("orders", on_error="ignore")
        async def check(ctx):
            return None


# What cannot be decoded


@pytest.mark.parametrize("policy", ["fail", "retry", "skip"])
async def test_undecodable_payloads_go_to_the_dead_letters_under_policy(app, policy):
    seen = []

    @app.agent("orders", on_error=policy, backoff="1ms", **({"retries": 2} if policy == "retry" else {}))
    async def check(ctx):
        seen.append(ctx.message)

    bad = [b"{not json", b"", b"\xff\xfe\x00", b'"\xc3\x28"', b'{"a": 1} trailing']
    publish(app, "orders", [{"n": 1}, *bad, {"n": 2}], key="k")
    async with started(app):
        await until(lambda: seen == [{"n": 1}, {"n": 2}])
        await until(lambda: len(records(app, "orders.dlq")) == len(bad))
        assert state_of(app, "check") == "running"
    letters = records(app, "orders.dlq")
    assert [letter.payload for letter in letters] == bad
    assert {letter.key for letter in letters} == {b"k"}
    assert [headers_of(letter)["sabot.offset"] for letter in letters] == ["1", "2", "3", "4", "5"]
    assert all(set(headers_of(letter)) == HEADERS for letter in letters)
    assert {headers_of(letter)["sabot.agent"] for letter in letters} == {"shop.check"}


async def test_undecodable_rows_of_a_batch_go_to_the_dead_letters_and_the_rest_is_a_batch(app):
    seen = []

    @app.agent("orders", batch=True, schema=pa.schema([("n", pa.int64())]))
    def check(batch, ctx):
        seen.extend(batch.column("n").to_pylist())

    publish(app, "orders", [{"n": 1}, b"{not json", {"n": "text"}, {"n": 2}, b""])
    async with started(app):
        await until(lambda: seen == [1, 2])
        await until(lambda: len(records(app, "orders.dlq")) == 3)
        assert state_of(app, "check") == "running"
    assert [letter.payload for letter in records(app, "orders.dlq")] == [b"{not json", b'{"n":"text"}', b""]
    assert all(set(headers_of(letter)) == HEADERS for letter in records(app, "orders.dlq"))


async def test_a_payload_of_ten_megabytes_is_a_message_like_any_other(app):
    sizes = []

    @app.agent("orders")
    async def check(ctx):
        sizes.append(len(ctx.message))

    publish(app, "orders", ["x" * 10_000_000, "y"])
    async with started(app):
        await until(lambda: sizes == [10_000_000, 1])


# Failing batches


SCHEMA = pa.schema([("n", pa.int64())])


async def test_skip_of_a_failing_batch_sends_all_its_rows_to_the_dead_letters(app):
    @app.agent("orders", batch=True, schema=SCHEMA, on_error="skip")
    def check(batch, ctx):
        raise ValueError("the whole batch")

    publish(app, "orders", [{"n": n} for n in range(5)])
    async with started(app):
        await until(lambda: len(records(app, "orders.dlq")) == 5)
    assert values(app, "orders.dlq") == [{"n": n} for n in range(5)]
    assert [headers_of(letter)["sabot.offset"] for letter in records(app, "orders.dlq")] == list("01234")
    assert all("the whole batch" in headers_of(letter)["sabot.message"] for letter in records(app, "orders.dlq"))


async def test_retry_of_a_failing_batch_gives_the_same_rows_again(app):
    calls = []

    @app.agent("orders", sink="out", batch=True, schema=SCHEMA, on_error="retry", retries=3, backoff="1ms")
    async def check(batch, ctx):
        calls.append(batch.column("n").to_pylist())
        if len(calls) < 3:
            raise ConnectionError("not yet")
        return batch

    publish(app, "orders", [{"n": n} for n in range(5)])
    async with started(app):
        await until(lambda: len(values(app, "out")) == 5)
    assert calls == [[0, 1, 2, 3, 4]] * 3
    assert values(app, "out") == [{"n": n} for n in range(5)]
    assert records(app, "orders.dlq") == []


async def test_fail_of_a_batch_stops_the_agent(app):
    @app.agent("orders", batch=True, schema=SCHEMA)
    def check(batch, ctx):
        raise ValueError("the whole batch")

    publish(app, "orders", [{"n": 1}])
    with pytest.raises(AgentFailed, match=r"shop\.check"):
        await bounded(app.run())
    assert state_of(app, "check") == "failed"


@pytest.mark.parametrize("policy", ["fail", "retry", "skip"])
async def test_row_errors_send_the_named_rows_to_the_dead_letters_under_policy(app, policy):
    """The named rows go, and the agent is called again with the rest, whatever the policy."""
    calls = []

    @app.agent("orders", sink="out", batch=True, schema=SCHEMA, on_error=policy, backoff="1ms")
    def check(batch, ctx):
        numbers = batch.column("n").to_pylist()
        calls.append(numbers)
        bad = {row: f"{n} is negative" for row, n in enumerate(numbers) if n < 0}
        if bad:
            raise RowErrors(bad)
        return batch

    publish(app, "orders", [{"n": n} for n in (1, -2, 3, -4, 5)])
    async with started(app):
        await until(lambda: len(values(app, "out")) == 3)
        await until(lambda: len(values(app, "orders.dlq")) == 2)
        assert state_of(app, "check") == "running"
    assert calls == [[1, -2, 3, -4, 5], [1, 3, 5]]
    assert values(app, "out") == [{"n": 1}, {"n": 3}, {"n": 5}]
    assert values(app, "orders.dlq") == [{"n": -2}, {"n": -4}]
    headers = [headers_of(letter) for letter in records(app, "orders.dlq")]
    assert [h["sabot.offset"] for h in headers] == ["1", "3"]
    assert "-2 is negative" in headers[0]["sabot.message"]
    assert "-4 is negative" in headers[1]["sabot.message"]
    assert all(set(h) == HEADERS for h in headers)


async def test_row_errors_that_name_every_row_leave_nothing_to_call_again(app):
    calls = []

    @app.agent("orders", sink="out", batch=True, schema=SCHEMA)
    def check(batch, ctx):
        calls.append(batch.num_rows)
        if batch.column("n")[0].as_py() < 0:
            raise RowErrors({row: "bad" for row in range(batch.num_rows)})
        return batch

    publish(app, "orders", [{"n": -1}, {"n": -2}])
    async with started(app):
        await until(lambda: len(values(app, "orders.dlq")) == 2)
        publish(app, "orders", [{"n": 3}])
        await until(lambda: values(app, "out") == [{"n": 3}])
    assert calls == [2, 1]


async def test_row_errors_drop_the_state_writes_of_their_call(memory_url):
    app = App("shop", broker=memory_url, state="memory")
    totals = []

    @app.agent("orders", batch=True, schema=SCHEMA)
    def check(batch, ctx):
        keys = pa.array(["rows"])
        before = ctx.state().get_many(keys)[0].as_py() or 0
        ctx.state().put_many(keys, pa.array([before + batch.num_rows]))
        bad = {row: "negative" for row, n in enumerate(batch.column("n").to_pylist()) if n < 0}
        if bad:
            raise RowErrors(bad)
        totals.append(before + batch.num_rows)

    publish(app, "orders", [{"n": n} for n in (1, -2, 3)])
    async with started(app):
        await until(lambda: totals == [2])


@pytest.mark.parametrize("wrong", [17, "text", {"n": [1]}, [1, 2]])
async def test_skip_takes_a_batch_agents_wrong_return_type_as_an_error(app, wrong):
    @app.agent("orders", sink="out", batch=True, schema=SCHEMA, on_error="skip")
    def check(batch, ctx):
        return wrong

    publish(app, "orders", [{"n": 1}])
    async with started(app):
        await until(lambda: values(app, "orders.dlq") == [{"n": 1}])
    assert values(app, "out") == []
    assert type(wrong).__name__ in headers_of(records(app, "orders.dlq")[0])["sabot.message"]


async def test_fail_names_the_agent_whose_batch_function_returns_the_wrong_type(app):
    @app.agent("orders", sink="out", batch=True, schema=SCHEMA)
    async def check(batch, ctx):
        return 17

    publish(app, "orders", [{"n": 1}])
    with pytest.raises(AgentFailed, match=r"shop\.check"):
        await bounded(app.run())


# Calls that hang


async def test_skip_of_a_hanging_call_after_its_timeout_goes_on(app):
    cancelled = []

    @app.agent("orders", sink="out", timeout="50ms", on_error="skip")
    async def check(ctx):
        if ctx.message == "hangs":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(ctx.message)
                raise
        return ctx.message

    publish(app, "orders", ["a", "hangs", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["a", "b"])
        await until(lambda: values(app, "orders.dlq") == ["hangs"])
        assert stats(app, "check")["errors"] == 1
    assert cancelled == ["hangs"]
    assert "Timeout" in headers_of(records(app, "orders.dlq")[0])["sabot.error"]


async def test_retry_of_a_hanging_call_after_its_timeout(app):
    calls = []

    @app.agent("orders", sink="out", timeout=0.05, on_error="retry", backoff="1ms")
    async def check(ctx):
        calls.append(ctx.message)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return ctx.message

    publish(app, "orders", ["x"])
    async with started(app):
        await until(lambda: values(app, "out") == ["x"])
    assert calls == ["x", "x"]


async def test_fail_of_a_hanging_call_after_its_timeout(app):
    @app.agent("orders", timeout=0.05)
    async def check(ctx):
        await asyncio.Event().wait()

    publish(app, "orders", ["x"])
    with pytest.raises(AgentFailed, match=r"shop\.check"):
        await bounded(app.run())


async def test_a_timeout_that_the_agent_sets_itself_works_and_is_its_own(app):
    """`asyncio.timeout` inside an agent must not be mistaken for the agent's own limit."""
    seen = []

    @app.agent("orders", timeout="30s")
    async def check(ctx):
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append(ctx.message)

    publish(app, "orders", [1, 2])
    async with started(app):
        await until(lambda: seen == [1, 2])
    assert records(app, "orders.dlq") == []


# Odd messages and odd errors: nothing may get lost without a word


@pytest.mark.one_in(3, "hundredths of a second of a core each")
@pytest.mark.parametrize("odd", [{"other": 1}, {"who": None}, {"who": {"deep": [1]}}, 5, "text", None, [1]], ids=repr)
async def test_skip_or_call_but_never_lose_a_message_whose_key_is_odd(memory_url, odd):
    """A keyed agent and a message without its key field: it is called, or the message is in the dead letters."""
    app = App("shop", broker=memory_url, state="memory")
    seen = []

    @app.agent("orders", key="who", on_error="skip")
    async def check(ctx):
        await ctx.state().put("n", 1)
        seen.append(ctx.message)

    publish(app, "orders", [{"who": "a"}, b"null" if odd is None else odd, {"who": "b"}])
    async with started(app):
        await until(lambda: len(seen) + len(records(app, "orders.dlq")) == 3)
        assert state_of(app, "check") == "running"
    assert {"who": "a"} in seen
    assert {"who": "b"} in seen
    assert odd in seen or values(app, "orders.dlq") == [odd]


async def test_a_null_payload_is_not_lost(app):
    seen = []

    @app.agent("orders", on_error="skip")
    async def check(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [1, None, 2])
    async with started(app):
        await until(lambda: len(seen) + len(records(app, "orders.dlq")) == 3)
    assert [message for message in seen if message is not None] == [1, 2]


async def test_skip_takes_a_cancellation_of_the_agents_own_making_as_an_error(app):
    """Something that the agent awaits was cancelled by somebody else: that is no stop of the agent."""

    @app.agent("orders", sink="out", on_error="skip")
    async def check(ctx):
        if ctx.message == "bad":
            work = asyncio.create_task(asyncio.sleep(60))
            work.cancel()
            await work
        return ctx.message

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["a", "b"])
        await until(lambda: values(app, "orders.dlq") == ["bad"])
        assert state_of(app, "check") == "running"


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@pytest.mark.one_in(3, "some hundredths of a second of a core each")
@pytest.mark.parametrize(
    "error",
    [Unprintable(), ValueError("half a pair: \ud800"), ValueError("x" * 5_000_000), ValueError("a\x00b\n"), KeyError()],
    ids=["unprintable", "surrogate", "five_megabytes", "control_characters", "no_message"],
)
async def test_skip_survives_an_error_with_an_odd_message(app, error):
    @app.agent("orders", sink="out", on_error="skip")
    async def check(ctx):
        if ctx.message == "bad":
            raise error
        return ctx.message

    publish(app, "orders", ["bad", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["b"])
        await until(lambda: values(app, "orders.dlq") == ["bad"])
    headers = headers_of(records(app, "orders.dlq")[0])
    assert set(headers) == HEADERS | {"sabot.traceback"}
    assert headers["sabot.traceback"].endswith("raise error")
    assert headers["sabot.error"].rpartition(".")[2] == type(error).__name__


async def test_skip_takes_a_state_value_that_cannot_be_kept_as_an_error(memory_url):
    app = App("shop", broker=memory_url, state="memory")

    @app.agent("orders", sink="out", on_error="skip")
    async def check(ctx):
        await ctx.state().put("last", object() if ctx.message == "bad" else ctx.message)
        return await ctx.state().get("last")

    publish(app, "orders", ["a", "bad", "b"])
    async with started(app):
        await until(lambda: values(app, "out") == ["a", "b"])
        await until(lambda: values(app, "orders.dlq") == ["bad"])


async def test_fail_with_concurrency_leaves_no_record_out_and_counts_none_twice(memory_url, tmp_path):
    rows = 200
    lines = write_lines(tmp_path / "in.ndjson", [{"k": f"k{n % 8}", "n": n} for n in range(rows)])
    totals = {}

    def build(bad):
        app = App("shop", broker=memory_url, state=str(tmp_path / "state"))

        @app.agent(NdjsonSource(lines), key="k", concurrency=4)
        async def count(ctx):
            n = (await ctx.state().get("n") or 0) + 1
            await ctx.state().put("n", n)
            await asyncio.sleep(0)
            if ctx.message["n"] == bad:
                raise ValueError("no good")
            totals.setdefault(ctx.message["k"], []).append(n)

        return app

    with pytest.raises(AgentFailed, match=r"shop\.count"):
        await bounded(build(bad=101).run())
    await bounded(build(bad=None).run())
    assert totals == {f"k{n}": list(range(1, rows // 8 + 1)) for n in range(8)}


async def test_records_that_do_not_fit_a_record_agents_schema_go_to_the_dead_letters(app):
    seen = []

    @app.agent("orders", schema={"n": "int64", "name": "string"})
    async def look(ctx):
        seen.append(ctx.message)

    publish(app, "orders", [{"n": 1, "more": [2]}, {"n": "one"}, {"n": 2, "name": "x"}, {"name": 3}])
    async with started(app):
        await until(lambda: len(seen) == 2)
        await until(lambda: len(records(app, "orders.dlq")) == 2)
    assert seen == [{"n": 1, "more": [2]}, {"n": 2, "name": "x"}]
    assert values(app, "orders.dlq") == [{"n": "one"}, {"name": 3}]


async def test_a_bad_line_of_a_file_goes_to_the_dead_letters(memory_url, tmp_path):
    app = App("shop", broker=memory_url)
    seen = []
    path = tmp_path / "in.ndjson"
    path.write_bytes(b'1\n{"half":\n\xff\xfe\n2\n')

    @app.agent(NdjsonSource(path))
    async def look(ctx):
        seen.append(ctx.message)

    await bounded(app.run())
    assert seen == [1, 2]
    letters = records(app, f"{str(path).strip('/').replace('/', '-')}.dlq")
    assert [letter.payload for letter in letters] == [b'{"half":', b"\xff\xfe"]
    assert [headers_of(letter)["sabot.offset"] for letter in letters] == ["2", "11"]


async def test_skip_of_a_generator_that_hangs_after_a_yield_drops_what_it_yielded(app):
    @app.agent("orders", sink="out", timeout="50ms", on_error="skip")
    async def check(ctx):
        yield ctx.message
        if ctx.message == "hangs":
            await asyncio.Event().wait()

    publish(app, "orders", ["a", "hangs", "b"])
    async with started(app):
        await until(lambda: values(app, "orders.dlq") == ["hangs"])
        await until(lambda: values(app, "out") == ["a", "b"])


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("durable", [False, True])
async def test_keys_that_come_as_another_type_than_before_a_restart_are_told_of_once(
    memory_url, tmp_path, caplog, durable
):
    """What was kept by texts is not found by numbers."""
    seen = []

    async def life(*users):
        app = App("shop", memory_url, checkpoint_dir=tmp_path / "checkpoints", state=str(tmp_path / "state"))

        @app.agent("orders", key="user", durable=durable)
        async def count(ctx):
            seen.append((ctx.message["user"], n := (await ctx.state().get("n") or 0) + 1))
            await ctx.state().put("n", n)

        publish(app, "orders", [{"user": user} for user in users])
        wanted = len(seen) + len(users)
        async with started(app):
            await until(lambda: len(seen) == wanted)

    def told():
        return [each.getMessage() for each in caplog.records if "it is another key" in each.getMessage()]

    await life("1", "1")
    assert told() == []
    await life(1, 2.5, "1", 1)
    assert seen == [("1", 1), ("1", 2), (1, 1), (2.5, 1), ("1", 3), (1, 2)]
    [said] = told()
    assert "agent shop.count: key 'user' of orders[0]@2 is a number, and those before were text" in said
    await life(1, "1")
    assert len(told()) == 1
