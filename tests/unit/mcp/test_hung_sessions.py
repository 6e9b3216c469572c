"""MCP servers that hang, or flood: one verdict for all callers, another session where that helps, and no core kept busy."""

import asyncio
import time

import pytest

from sabot.mcp import McpConfig, McpServerPool, McpTimeout, McpUnavailable
from tools.mcp_servers import over_sockets, peer, text


async def echo(there, request):
    await there.answer(request, text(request["params"]["name"]))


async def opened(pool, connect):
    pool.add("bad", connect=connect)
    return await pool.session("bad")


async def answer_nothing(there, request):
    pass


def hanging(openings, hangs):
    """A server that answers nothing at all in its first `hangs` sessions, once it is asked to call a tool."""

    def connect(key, ended):
        openings.append(key)
        hung = len(openings) <= hangs
        return peer(answer_nothing if hung else echo, on_other=answer_nothing if hung else None)(key, ended)

    return connect


@pytest.mark.slow  # it waits
async def test_a_call_behind_one_that_was_never_answered_is_made_in_another_session():
    openings = []
    async with McpServerPool(McpConfig(request_timeout="2s", connect_timeout="20s")) as pool:
        session = await opened(pool, hanging(openings, 1))
        with pytest.raises(McpTimeout):
            await session.call("go", timeout="50ms")
        calls = await asyncio.gather(*(session.call("go") for _ in range(10)))
        assert [call.text for call in calls] == ["go"] * 10
        assert len(openings) == 2, "one verdict, and one new session, for all ten"


@pytest.mark.slow  # it waits
async def test_a_server_that_hangs_again_and_again_is_not_asked_for_a_while():
    openings = []
    async with McpServerPool(McpConfig(request_timeout="2s", connect_timeout="20s")) as pool:
        session = await opened(pool, hanging(openings, 9))
        for _ in range(2):
            with pytest.raises(McpTimeout):
                await session.call("go", timeout="50ms")
        for _ in range(10):
            with pytest.raises(
                McpUnavailable, match=r"go did not answer in time, and a ping was not .* another one is opened in"
            ):
                await session.call("go")
        assert len(openings) == 2


async def test_a_server_that_hangs_while_it_is_opened_is_not_waited_for_by_each_caller():
    openings = []

    def connect(key, ended):
        openings.append(key)
        return over_sockets(serve)(key, ended)

    async def serve(there):
        while True:
            await there.read()

    async with McpServerPool(McpConfig(connect_timeout="50ms")) as pool:
        pool.add("bad", connect=connect)
        with pytest.raises(McpUnavailable, match=r"did not agree on a session within 0\.05 s"):
            await pool.session("bad")
        for _ in range(10):
            with pytest.raises(McpUnavailable, match=r"within 0\.05 s .*another one is opened in"):
                await pool.session("bad")
        assert len(openings) == 1


async def test_a_tool_that_is_slow_costs_no_session():
    openings = []

    def connect(key, ended):
        openings.append(key)
        return peer(slow_at_first)(key, ended)

    async def slow_at_first(there, request):
        if request["params"]["arguments"]:
            await there.answer(request, text("done"))

    async with McpServerPool() as pool:
        session = await opened(pool, connect)
        with pytest.raises(McpTimeout):
            await session.call("go", timeout="50ms")
        assert (await session.call("go", {"now": True})).text == "done"
        assert len(openings) == 1, "it has refused the ping, which is an answer"


async def test_a_call_that_has_time_left_keeps_its_session_and_others_fail_at_once():
    async def hear(there, said):
        pass

    async def slow(there, request):
        if request["params"]["arguments"]:
            await answered.wait()
            await there.answer(request, text("done"))

    openings = []

    def connect(key, ended):
        openings.append(key)
        return peer(slow, on_other=hear)(key, ended)

    answered = asyncio.Event()
    async with McpServerPool(McpConfig(request_timeout="2s", connect_timeout="20s")) as pool:
        session = await opened(pool, connect)
        long = asyncio.create_task(session.call("go", {"slowly": True}, timeout="60s"))
        with pytest.raises(McpTimeout):
            await session.call("go", timeout="50ms")
        for _ in range(3):
            with pytest.raises(McpUnavailable, match="it hangs: go did not answer in time"):
                await session.call("go")
        pool._loop._loop.call_soon_threadsafe(answered.set)
        assert (await long).text == "done"
        assert (await session.call("go", {"slowly": True})).text == "done"
        assert len(openings) == 1, "an answer opens the session again that hung"


async def test_a_server_that_floods_notifications_is_made_to_wait_when_nothing_is_asked_of_it():
    """It kept 40 % of a core, long after the call was out of time."""
    note = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n'
    sent = 0

    async def flood(there, request):
        nonlocal sent
        while True:
            await there.raw(note * 100)
            sent += 100

    async def settled():
        seen = []
        while seen[-5:] != [sent] * 5:  # on a busy machine the flood may have no core for a moment
            seen.append(sent)
            await asyncio.sleep(0.1)

    async with McpServerPool(McpConfig(connect_timeout="20s")) as pool:
        session = await opened(pool, peer(flood))
        with pytest.raises(McpTimeout):
            await session.call("go", timeout="200ms")
        before = time.thread_time()  # the loop's: what earlier tests have left in this process may compute too
        async with asyncio.timeout(60):
            await settled()
        settled_at, shares = time.thread_time(), []
        while len(shares) < 10 and min(shares, default=1) >= 0.2:  # another's leftovers may have a turn now and then
            used, since = time.thread_time(), time.monotonic()
            await asyncio.sleep(1)
            shares.append((time.thread_time() - used) / (time.monotonic() - since))
        assert min(shares) < 0.2, f"of a core; {settled_at - before:.1f} s until it stood"
