"""Caches of answers, and what an engine does with them."""

import asyncio
import sqlite3
from decimal import Decimal

import pytest

from sabot.errors import UserError
from sabot.llm import (
    Completion,
    ExecutionEngine,
    MalformedAnswer,
    MemoryCache,
    ModelUnavailable,
    ScriptedProvider,
    SqliteCache,
    ToolCall,
    Usage,
    assistant,
)

ANSWER = Completion(
    message=assistant("yes", ToolCall("1", "f", "{}")),
    usage=Usage(5, 4, 3, 2, 1),
    cost=Decimal("0.000123"),
    prices_version="v",
    provider="p",
    model="m",
    request_id="r",
)


@pytest.fixture(params=["memory", "sqlite"])
def make(request, tmp_path, time):
    """Makes a cache; one in a file has what the one before it had."""
    if request.param == "memory":
        return lambda **options: MemoryCache(**options, clock=time.clock)
    return lambda **options: SqliteCache(tmp_path / "cache.db", **options, clock=time.clock)


async def test_a_cache_gives_what_it_was_given(make):
    cache = make()
    assert await cache.get(b"k") is None
    await cache.put(b"k", ANSWER)
    assert await cache.get(b"k") == ANSWER
    assert await cache.get(b"l") is None
    await cache.close()
    await cache.close()


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
