"""Caches of answers, and what an engine does with them."""

import asyncio
import copy
import logging
import sqlite3
import sys
import traceback
import uuid
from decimal import Decimal

import pydantic
import pytest
import redis

from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.errors import EffectError, MissingExtra, UserError
from sabot.llm import (
    Agent,
    BudgetExceeded,
    Completion,
    ExecutionEngine,
    MalformedAnswer,
    MemoryCache,
    ModelUnavailable,
    RedisCache,
    ScriptedProvider,
    SqliteCache,
    ToolCall,
    Usage,
    assistant,
)
from sabot.llm.judges import JUDGE
from sabot.llm.requests import request_of
from tools.agent_tools import until
from tools.redis_server import Redis, server_or_skip

ANSWER = Completion(
    message=assistant("yes", ToolCall("1", "f", "{}")),
    usage=Usage(5, 4, 3, 2, 1),
    cost=Decimal("0.000123"),
    prices_version="v",
    provider="p",
    model="m",
    request_id="r",
)


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make(request, tmp_path, time):
    """Makes a cache; one in a file or in a server has what the one before it had."""
    if request.param == "memory":
        return lambda **options: MemoryCache(**options, clock=time.clock)
    if request.param == "redis":
        url, prefix = server_or_skip().url, f"{uuid.uuid4().hex}:"
        return lambda **options: RedisCache(url, prefix=prefix, timeout="30s", **options, clock=time.clock)
    return lambda **options: SqliteCache(tmp_path / "cache.db", **options, clock=time.clock)


async def test_a_cache_gives_what_it_was_given(make):
    cache = make()
    assert await cache.get(b"k") is None
    await cache.put(b"k", ANSWER)
    assert await cache.get(b"k") == ANSWER
    assert await cache.get(b"l") is None
    await cache.close()
    await cache.close()


def test_a_cache_goes_on_in_the_next_event_loop_and_closes_in_a_third(make):
    """`map_llm(…).collect()` runs each program in a loop that it closes. The connections of a Redis cache were of the first loop, so the
    second program failed, and so did `engine.close()` after it ("Event loop is closed")."""
    engine = ExecutionEngine(ScriptedProvider(["yes"]), cache=make())

    async def ask():
        return (await engine.complete("Is it?")).content

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["yes", "yes"]
    assert engine.statistics()["unasked"] == 1, "the second answer is the cache's"
    asyncio.run(engine.close())


async def test_answers_grow_old(make, time):
    cache = make(ttl="1m")
    await cache.put(b"k", ANSWER)
    time.clock.advance(59)
    assert await cache.get(b"k") == ANSWER
    time.clock.advance(1)
    assert await cache.get(b"k") is None
    await cache.close()


async def test_a_memory_cache_keeps_so_many():
    cache = MemoryCache(2)
    for key in (b"a", b"b"):
        await cache.put(key, ANSWER)
    await cache.get(b"a")
    await cache.put(b"c", ANSWER)
    assert [await cache.get(key) is None for key in (b"a", b"b", b"c")] == [False, True, False]
    assert len(cache) == 2


async def test_a_file_keeps_so_many_the_newest(tmp_path, time):
    cache = SqliteCache(tmp_path / "cache.db", most=10, clock=time.clock)
    for number in range(256):
        await cache.put(b"%d" % number, ANSWER)
        time.clock.advance(1)
    found = [number for number in range(256) if await cache.get(b"%d" % number) is not None]
    assert found == list(range(246, 256))
    await cache.close()


async def test_a_file_lasts_and_several_may_use_it(tmp_path):
    first, second = (SqliteCache(tmp_path / "cache.db") for _ in range(2))
    await first.put(b"k", ANSWER)
    assert await second.get(b"k") == ANSWER
    await asyncio.gather(*(each.put(b"%d" % n, ANSWER) for n in range(20) for each in (first, second)))
    await first.close()
    await second.close()
    with pytest.raises(UserError, match="it is closed"):
        await first.get(b"k")
    third = SqliteCache(tmp_path / "cache.db")
    assert await third.get(b"k") == ANSWER
    await third.close()


async def test_a_file_that_is_no_cache_is_refused_with_its_name(tmp_path):
    (tmp_path / "cache.db").write_bytes(b"no database at all" * 100)
    cache = SqliteCache(tmp_path / "cache.db")
    with pytest.raises(UserError, match=r"cache\.db: file is not a database"):
        await cache.get(b"k")
    await cache.close()


async def test_a_file_is_for_its_user_alone_and_a_folder_that_is_not_there_is_told(tmp_path):
    cache = SqliteCache(tmp_path / "cache.db")
    await cache.put(b"k", ANSWER)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    await cache.close()
    cache = SqliteCache(tmp_path / "nowhere" / "cache.db")
    with pytest.raises(UserError, match=r"nowhere/cache\.db: .*No such file"):
        await cache.get(b"k")
    await cache.close()


async def test_an_answer_in_the_file_that_cannot_be_read_is_told(tmp_path):
    cache = SqliteCache(tmp_path / "cache.db")
    await cache.put(b"k", ANSWER)
    with sqlite3.connect(tmp_path / "cache.db") as connection:
        connection.execute("UPDATE answers_1 SET answer = ?", (b"\xc1",))
    connection.close()
    with pytest.raises(UserError, match="cannot be read"):
        await cache.get(b"k")
    await cache.close()


async def test_an_equal_request_is_answered_by_the_cache(make):
    provider = ScriptedProvider("yes")
    async with ExecutionEngine(provider, cache=make()) as engine:
        answers = [await engine.complete("hello", temperature=0) for _ in range(3)]
        assert [answer.cached for answer in answers] == [False, True, True]
        assert answers[1].usage == Usage()
        for other in ({"temperature": 1}, {"model": "other"}, {"temperature": 0, "cache": False}):
            assert not (await engine.complete("hello", **other)).cached
        assert len(provider.requests) == 4
        assert engine.statistics()["unasked"] == 2
        assert [piece.text async for piece in engine.stream("hello", temperature=0)] == ["yes", ""]
        assert len(provider.requests) == 4


async def test_equal_requests_in_flight_are_one(make):
    provider = ScriptedProvider("yes")
    provider.hold()
    async with ExecutionEngine(provider, cache=make()) as engine:
        calls = [asyncio.create_task(engine.complete("hello")) for _ in range(10)]
        await provider.arrived(1)
        provider.release()
        answers = await asyncio.gather(*calls)
        assert sorted(answer.cached for answer in answers) == [False] + [True] * 9
        assert len(provider.requests) == 1


async def test_failures_and_answers_that_do_not_match_are_not_kept(make):
    provider = ScriptedProvider([ModelUnavailable("down"), "no json", '{"a": 1}'])
    async with ExecutionEngine(provider, cache=make(), retries=0) as engine:
        for error in (ModelUnavailable, MalformedAnswer):
            with pytest.raises(error):
                await engine.complete("hello", output={"a": "int64"})
        for _ in range(2):
            assert (await engine.complete("hello", output={"a": "int64"})).output == {"a": 1}
        assert len(provider.requests) == 3


class Even(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def _is_even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("odd")
        return n


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize("wrong", ["no json", '{"n": "x"}', '{"n": 3}'], ids=["text", "type", "validator"])
@pytest.mark.parametrize("surface", ["script", "job", "ctx.llm"])
async def test_a_wrong_answer_of_an_agent_is_not_kept_for_others_with_its_prompt(make, surface, wrong):
    """Agents and jobs decode the answer themselves, after the engine has stored it."""
    provider = ScriptedProvider([wrong, '{"n": 4}'])
    async with ExecutionEngine(provider, cache=make(), retries=0) as engine:
        agent = Agent(engine, output=Even, repairs=0)

        async def work(ctx):
            return (await ctx.llm(engine).complete("go", output=Even)).output.n

        async def ask():
            if surface == "script":
                return (await agent.run("go")).output.n
            async with RuntimeKernel.create(agent=agent if surface == "job" else work) as kernel:
                found = (await (await kernel.execute(ExecutionRequest(prompt="go"))).result()).output
                return getattr(found, "n", found)

        with pytest.raises((MalformedAnswer, EffectError)):
            await ask()
        assert [await ask() for _ in range(2)] == [4, 4]
        assert len(provider.requests) == 2


async def test_a_kept_answer_that_fits_no_more_is_asked_for_anew(make):
    provider = ScriptedProvider(['{"n": 3}', '{"n": 4}'])
    async with ExecutionEngine(provider, cache=make(), retries=0) as engine:
        kept = request_of("go", Even, {})[0]
        await engine.complete(copy.deepcopy(kept))  # an earlier version has kept what the JSON schema allows
        for _ in range(2):
            assert (await engine.complete("go", output=Even)).output.n == 4
        assert len(provider.requests) == 2


async def test_an_answer_that_was_cut_off_is_not_kept(make):
    provider = ScriptedProvider(Completion(message=assistant("ye"), finish_reason="length"))
    async with ExecutionEngine(provider, cache=make()) as engine:
        for _ in range(2):
            assert not (await engine.complete("hello")).cached
        assert len(provider.requests) == 2


@pytest.mark.parametrize("make_cache", [MemoryCache, lambda most: SqliteCache("x", most=most)])
def test_a_cache_has_room_for_one(make_cache):
    with pytest.raises(UserError, match="most=0"):
        make_cache(0)


# -- in a Redis server ------------------------------------------------------------------------------------------------------


def test_the_library_of_redis_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingExtra, match="RedisCache needs") as caught:
        RedisCache("redis://127.0.0.1:6379")
    assert "sabot[redis]" in caught.value.hint


@pytest.mark.parametrize(
    "url", ["127.0.0.1:6379", "http://127.0.0.1", "redis://127.0.0.1:many", "redis://h/?socket_timeout=x"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UserError, match="the cache: "):
        RedisCache(url)


@pytest.mark.slow  # half a second of a core
async def test_caches_of_one_server_share_and_old_answers_leave_it(time):
    server, prefix = server_or_skip(), f"{uuid.uuid4().hex}:"
    first, second = (RedisCache(server.url, prefix=prefix, ttl="1h", timeout="30s", clock=time.clock) for _ in range(2))
    other = RedisCache(server.url, prefix=prefix + "other:", timeout="30s")
    await first.put(b"\0k\xff", ANSWER)
    assert await second.get(b"\0k\xff") == ANSWER
    assert await other.get(b"\0k\xff") is None
    await asyncio.gather(*(each.put(b"%d" % n, ANSWER) for n in range(100) for each in (first, second)))
    with redis.Redis.from_url(server.url) as client:
        assert 0 < client.pttl(f"{prefix}1:".encode() + b"\0k\xff") <= 3_600_000, "the server lets it go by itself"
    for each in (first, second, other):
        await each.close()
    with pytest.raises(UserError, match="it is closed"):
        await first.get(b"k")


async def test_an_answer_in_the_server_that_cannot_be_read_is_told():
    server, prefix = server_or_skip(), f"{uuid.uuid4().hex}:"
    cache, client = RedisCache(server.url, prefix=prefix, timeout="30s"), redis.Redis.from_url(server.url)
    client.set(f"{prefix}1:k", b"\xc1")
    with pytest.raises(UserError, match="cannot be read"):
        await cache.get(b"k")
    client.lpush(f"{prefix}1:list", b"x")
    client.close()
    with pytest.raises(UserError, match="WRONGTYPE"):
        await cache.get(b"list")
    await cache.close()


PASSWORD = "pw-Zq81MvtT0p5ecret"


@pytest.fixture
def server():
    """One of this test's own, with a password."""
    made: Redis = server_or_skip(PASSWORD)
    yield made
    made.remove()


async def test_a_server_that_is_away_costs_answers_and_no_call(server, time, caplog):
    caplog.set_level(logging.INFO, "sabot.llm")
    provider = ScriptedProvider("yes")
    cache = RedisCache(server.url, timeout="30s", clock=time.clock)
    async with ExecutionEngine(provider, cache=cache) as engine:
        assert [(await engine.complete("hello")).cached for _ in range(2)] == [False, True]
        server.stop()
        assert [(await engine.complete("hello")).cached for _ in range(3)] == [False] * 3
        assert cache.failures == 1, "it is not asked again at once"
        server.start()
        assert not (await engine.complete("hello")).cached
        time.clock.advance(5)
        assert [(await engine.complete("hello")).cached for _ in range(2)] == [False, True]
        assert [cache.failures, len(provider.requests)] == [1, 6]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert f"127.0.0.1:{server.port}" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_password_that_is_wrong_is_refused_and_none_is_in_a_message(server):
    wrong = f"wr0ng-{PASSWORD}"
    cache = RedisCache(server.url.replace(PASSWORD, wrong), timeout="30s")
    with pytest.raises(UserError, match="check user and password") as caught:
        await cache.get(b"k")
    assert PASSWORD not in "".join([repr(caught.value), repr(cache), *traceback.format_exception(caught.value)])
    await cache.close()
    cache = RedisCache(f"redis://127.0.0.1:{server.port}", timeout="30s")
    with pytest.raises(UserError, match="Authentication"):
        await cache.put(b"k", ANSWER)
    await cache.close()


@pytest.mark.parametrize("kind", ["complete", "stream"])
async def test_what_keeps_one_caller_from_asking_keeps_nobody_from_it_who_has_joined(kind):
    """Two callers with equal prompts share a request; the budget of the first one says no while it waits."""
    go_on, engine = asyncio.Event(), ExecutionEngine(ScriptedProvider("yes"), cache=MemoryCache())

    async def refuses(call, model, price, ask):
        await go_on.wait()
        raise BudgetExceeded("tenant one has used up its budget")

    async def ask(judge):
        JUDGE.set(judge)
        if kind == "complete":
            return (await engine.complete("the same")).content
        return "".join([piece.text async for piece in engine.stream("the same")])

    asking = [asyncio.create_task(ask(judge)) for judge in (refuses, None, None)]
    await until(lambda: engine.statistics()["unasked"] == 2)
    go_on.set()
    first, *others = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, BudgetExceeded)
    assert others == ["yes", "yes"]
    assert len(engine.provider.requests) == 1
