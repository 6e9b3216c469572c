"""Redis beside stores: signals, the cache of jobs that are over, actions; what happens without a server (rows 1.28, 2.19)."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from sabot.agents import (
    ActionManager,
    ActionRecord,
    ActionSpec,
    ActionStatus,
    ActionStore,
    ExecutionHandle,
    ExecutionRequest,
    HotState,
    IllegalTransition,
    InMemoryActionStore,
    InMemoryJobStore,
    JobManager,
    JobSpec,
    LetterRefused,
    RedisActionStore,
    RedisJobCache,
    RedisSignalChannel,
    RuntimeKernel,
)
from sabot.clock import ManualClock
from sabot.errors import DataError, TransientError, UserError
from tools.agent_tools import until
from tools.broker import free_ports
from tools.redis_server import Redis, server_or_skip

SPEC = ActionSpec(job_id="job-123", type="confirm", payload={"message": "Proceed?"}, timeout_seconds=300)


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    made = redis.asyncio.Redis.from_url(server_or_skip().url)
    await made.flushdb()
    yield made
    await made.aclose()


def waits(channel: RedisSignalChannel) -> bool:
    return bool(channel._local._waiting)


async def refused(actions: ActionManager, token: str) -> str:
    with pytest.raises(LetterRefused) as error:
        await actions.resolve(token, {"confirmed": True})
    return error.value.reason


# -- actions ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "redis", "redis, texts"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ActionStore]:
    if request.param == "memory":
        yield InMemoryActionStore(clock=ManualClock())
        return
    made = redis.asyncio.Redis.from_url(server_or_skip().url, decode_responses=request.param != "redis")
    await made.flushdb()
    yield RedisActionStore(made, clock=ManualClock())
    await made.aclose()


async def test_an_action_is_asked_and_answered_once(store: ActionStore) -> None:
    actions = ActionManager(store)
    action = await actions.require_action(SPEC)
    assert (action.status, action.job_id, dict(action.payload)) == ("pending", "job-123", {"message": "Proceed?"})
    assert await refused(actions, "wrong") == "unknown"
    await actions.resolve(action.resume_token, {"confirmed": True, "none": [], "n": 2**60}, by="ann")
    assert (await actions.wait_for_resolution(action.action_id)).by == "ann"
    assert (action.status, action.resolution) == ("resolved", {"confirmed": True, "none": [], "n": 2**60})
    assert await refused(actions, action.resume_token) == "second"
    assert await actions.get(action.action_id) == action
    with pytest.raises(IllegalTransition):
        await actions.cancel(action.action_id)
    with pytest.raises(UserError, match="there is none of this name"):
        await actions.get("job-123/99")


async def test_a_late_answer_and_one_to_a_cancelled_action_are_refused(store: ActionStore) -> None:
    actions, clock = ActionManager(store), store.clock
    assert isinstance(clock, ManualClock)
    late, other = await actions.require_action(SPEC), await actions.require_action(ActionSpec(job_id="b"))
    clock.advance(300)
    assert (await actions.get(late.action_id)).status is ActionStatus.PENDING, "exactly in time"
    clock.advance(0.001)
    assert await refused(actions, late.resume_token) == "expired"
    assert late.status is ActionStatus.EXPIRED
    assert await refused(actions, late.resume_token) == "second"
    assert (await actions.cancel(other.action_id)).status is ActionStatus.CANCELLED
    assert await refused(actions, other.resume_token) == "second"
    assert await actions.expire() == []


async def test_a_program_that_only_asks_keeps_no_question(client: Any) -> None:
    """It kept each one until it read the answer itself, which another process may do."""
    actions, other = ActionManager(RedisActionStore(client)), ActionManager(RedisActionStore(client))
    handle, dropped = [await actions.require_action(ActionSpec(job_id=job)) for job in "ab"]
    kept, name = weakref.ref(dropped), dropped.action_id
    del dropped
    gc.collect()
    assert kept() is None
    for action_id in (handle.action_id, name):
        await other.resolve((await other.get(action_id)).resume_token, {"choice": 1})
        assert (await actions.get(action_id)).resolution == {"choice": 1}
    assert handle.resolution == {"choice": 1}, "what the caller still has is kept up to date"


async def test_actions_are_found_in_the_order_in_which_they_were_asked(store: ActionStore) -> None:
    actions = ActionManager(store)
    asked = [await actions.require_action(ActionSpec(job_id=job)) for job in "abca" * 3]
    await actions.resolve(asked[0].resume_token, {})
    assert [each.action_id for each in await actions.find()] == [each.action_id for each in asked]
    assert [each.action_id for each in await actions.find(job_id="a", statuses=[ActionStatus.PENDING])] == [
        each.action_id for each in asked if each.job_id == "a"
    ][1:]
    assert await actions.find(job_id="none") == []
    with pytest.raises(UserError, match="payload cannot be written as JSON"):
        await actions.require_action(ActionSpec(job_id="j", payload={"socket": object()}))


async def test_of_many_answers_one_is_accepted_and_all_see_it(client: Any) -> None:
    stores = [RedisActionStore(client) for _ in range(8)]
    managers = [ActionManager(each) for each in stores]
    action = await managers[0].require_action(SPEC)

    async def answer(number: int) -> int | str:
        try:
            await managers[number].resolve(action.resume_token, {"n": number})
        except LetterRefused as error:
            return error.reason
        return number

    said = await asyncio.gather(*map(answer, range(8)))
    (accepted,) = [each for each in said if each != "second"]
    seen = await asyncio.gather(*(each.get(action.action_id) for each in managers))
    assert {(each.status, each.resolution["n"]) for each in seen} == {("resolved", accepted)}
    assert action.resolution == {"n": accepted}


async def test_an_answer_that_the_client_sends_twice_is_accepted_once(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the connection breaks when the server has taken it."""
    store, send = RedisActionStore(client), client.eval

    async def twice(*words: Any) -> Any:
        await send(*words)
        return await send(*words)

    actions = ActionManager(store)
    action = await actions.require_action(SPEC)
    monkeypatch.setattr(client, "eval", twice)
    assert (await actions.resolve(action.resume_token, {"n": 1})).resolution == {"n": 1}
    assert await refused(actions, action.resume_token) == "second"


# -- signals ---------------------------------------------------------------------------------------------------------------


async def test_an_answer_of_another_process_wakes_who_waits(client: Any) -> None:
    async with RedisSignalChannel(client) as mine, RedisSignalChannel(server_or_skip().url) as theirs:
        waiting_for = ActionManager(RedisActionStore(client), mine, poll="1h")
        answering = ActionManager(RedisActionStore(client), theirs, poll="1h")
        action = await waiting_for.require_action(SPEC)
        waiting = asyncio.ensure_future(waiting_for.wait_for_resolution(action.action_id))
        await until(lambda: waits(mine))
        await answering.resolve(action.resume_token, {"approved": True})
        async with asyncio.timeout(60):
            assert (await waiting).resolution == {"approved": True}
        with pytest.raises(UserError, match="has been started"):
            await mine.start()
    with pytest.raises(UserError, match="hears nothing yet"):
        await mine.wait("a", 1)


async def test_who_waits_hears_again_when_the_server_is_back(caplog: pytest.LogCaptureFixture) -> None:
    server_or_skip()
    server = Redis()
    store = InMemoryActionStore()
    try:
        async with RedisSignalChannel(server.url) as mine, RedisSignalChannel(server.url) as theirs:
            server.stop()
            asking, answering = ActionManager(store, mine, poll="20ms"), ActionManager(store, theirs)
            action = await asking.require_action(SPEC)
            await answering.resolve(action.resume_token, {"n": 1})  # nothing comes over Redis
            assert (await asking.wait_for_resolution(action.action_id)).resolution == {"n": 1}
            await until(lambda: "answers are found by polling only" in caplog.text)
            server.start()
            heard = asyncio.ensure_future(mine.wait("a", 3600))
            async with asyncio.timeout(60):
                while not heard.done():
                    await theirs.notify("a")
                    await asyncio.sleep(0.02)
    finally:
        server.remove()


# -- the cache of jobs -----------------------------------------------------------------------------------------------------


async def test_a_job_that_is_over_is_read_from_its_store_once(client: Any) -> None:
    store = InMemoryJobStore(clock=ManualClock(1000.0))
    cache, other = RedisJobCache(store, client), RedisJobCache(InMemoryJobStore(), client)
    jobs = JobManager(cache)
    job = await jobs.create(JobSpec(scope_id="s", metadata={"a": [1]}, deadline=5000.0))
    await jobs.start(job.job_id)
    assert (await jobs.get(job.job_id)).status == "running"
    await jobs.complete(job.job_id, "s3://r")
    assert cache.hits == 0, "it changed"
    ended = await jobs.get(job.job_id)
    assert await jobs.get(job.job_id) == ended == await store.get(job.job_id)
    assert await other.get(job.job_id) == ended, "of another process"
    assert (cache.hits, other.hits, other.misses) == (1, 1, 0)
    assert await jobs.find() == [ended]
    assert 0 < await client.pttl(f"sabot:jobs:{job.job_id}") <= 3_600_000
    await client.set(f"sabot:jobs:{job.job_id}", b"{")
    assert await jobs.get(job.job_id) == ended


async def test_a_cache_before_the_store_of_a_kernel_has_its_jobs_that_are_over(client: Any) -> None:
    async def doubles(ctx: Any) -> Any:
        return ctx.message * 2

    cache = RedisJobCache(InMemoryJobStore(), client)
    async with RuntimeKernel.create(agent=doubles, job_store=cache) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=21))
        assert (await handle.result()).output == 42
        await kernel.record(handle.job_id)
        ended = await cache.get(handle.job_id)
        assert ended is not None
        assert ended.status == "succeeded"
    other = RedisJobCache(InMemoryJobStore(), client)
    assert await other.get(handle.job_id) == ended


# -- the actions of a kernel -------------------------------------------------------------------------------------------------


async def asks(ctx: Any) -> Any:
    return dict((await ctx.ask("confirm", {"what": ctx.message})).resolution)


async def shown(store: ActionStore, handle: ExecutionHandle) -> ActionRecord:
    """The action of a job, once another process sees it."""
    async with asyncio.timeout(60):
        while not (found := await store.actions(job_id=handle.job_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return found[0]


async def test_the_actions_of_a_kernel_are_answered_by_another_process(client: Any) -> None:
    store, other = RedisActionStore(client, poll="5ms"), ActionManager(RedisActionStore(client), poll="5ms")
    async with RuntimeKernel.create(agent=asks, action_store=store) as kernel:
        first, second, third = [await kernel.execute(ExecutionRequest(prompt=number)) for number in range(3)]
        action = await shown(other.store, first)
        assert (action.type, dict(action.payload), action.status) == ("confirm", {"what": 0}, "pending")
        assert await ActionManager(store).get(action.action_id) == action, "of the kernel itself"
        await other.resolve(action.resume_token, {"choice": 7}, by="ann")
        assert (await first.result()).output == {"choice": 7}
        assert await refused(other, action.resume_token) == "second"
        action = await shown(other.store, second)
        await ActionManager(store).resolve(action.resume_token, {"choice": 8})
        assert (await other.wait_for_resolution(action.action_id)).resolution == {"choice": 8}
        action = await shown(other.store, third)
        await third.cancel()
        assert (await other.wait_for_resolution(action.action_id)).status is ActionStatus.CANCELLED
    with pytest.raises(UserError, match="of another kernel"):
        RuntimeKernel.create(agent=asks, action_store=store)


async def test_an_answer_that_the_journal_does_not_take_is_told_of_and_the_journal_is_shown(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store, other = RedisActionStore(client, poll="1h"), ActionManager(RedisActionStore(client), poll="5ms")
    async with RuntimeKernel.create(agent=asks, action_store=store) as kernel:
        handle = await kernel.execute(ExecutionRequest(prompt=1))
        action = await shown(other.store, handle)
        await other.resolve(action.resume_token, {"choice": "Redis"})
        await kernel.actions.resolve(action.resume_token, {"choice": "journal"})
        assert (await handle.result()).output == {"choice": "journal"}
    assert (await other.get(action.action_id)).resolution == {"choice": "journal"}
    assert "is resolved in Redis, and resolved in the journal, which holds" in caplog.text


async def test_an_answer_that_came_while_the_kernel_was_away_is_taken_at_its_start(client: Any, tmp_path: Path) -> None:
    other = ActionManager(RedisActionStore(client), poll="5ms")
    async with RuntimeKernel.create(agent=asks, action_store=RedisActionStore(client), journal=tmp_path) as kernel:
        action = await shown(other.store, await kernel.execute(ExecutionRequest(prompt=1)))
    await other.resolve(action.resume_token, {"choice": 9})
    store = RedisActionStore(client, poll="5ms")
    async with RuntimeKernel.create(agent=asks, action_store=store, journal=tmp_path) as kernel:
        [handle] = await kernel.resume()
        assert (await handle.result()).output == {"choice": 9}


@pytest.mark.slow  # a server of its own is made, stopped and started
async def test_a_server_that_is_away_holds_no_job_up_and_is_shown_all_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server_or_skip()
    server = Redis()
    try:
        store = RedisActionStore(server.url, poll="5ms")
        async with RuntimeKernel.create(agent=asks, action_store=store) as kernel:
            first = await kernel.execute(ExecutionRequest(prompt=1))
            await shown(RedisActionStore(server.url), first)
            server.stop()
            second = await kernel.execute(ExecutionRequest(prompt=2))
            await until(lambda: "actions are not shown" in caplog.text or "are not heard" in caplog.text)
            server.start()
            third = await kernel.execute(ExecutionRequest(prompt=3))
            other = ActionManager(RedisActionStore(server.url), poll="5ms")
            for handle in (third, second, first):
                action = await shown(other.store, handle)
                await other.resolve(action.resume_token, {"choice": 1})
                assert (await handle.result()).output == {"choice": 1}
        await store.close()
    finally:
        server.remove()


@pytest.mark.parametrize("command", ["eval", "zadd"])
async def test_a_server_that_refuses_for_a_time_holds_no_job_up_and_is_shown_all_when_it_takes_them(
    client: Any, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    """The kernel ended its run, although its journal had everything; and the task that reads the answers ended unseen.
    If only one command of the script was refused, the action was written in part, and was never found.
    """
    store, other = RedisActionStore(client, poll="5ms"), ActionManager(RedisActionStore(client), poll="5ms")
    async with RuntimeKernel.create(agent=asks, action_store=store) as kernel:
        first = await kernel.execute(ExecutionRequest(prompt=1))
        action = await shown(other.store, first)
        await client.execute_command("ACL", "SETUSER", "default", f"-{command}")
        try:
            second = await kernel.execute(ExecutionRequest(prompt=2))
            await until(lambda: "actions are not shown" in caplog.text)
        finally:
            await client.execute_command("ACL", "SETUSER", "default", f"+{command}")
        for asked in (action, await shown(other.store, second)):
            await other.resolve(asked.resume_token, {"choice": 1})
        for handle in (first, second):
            assert (await handle.result()).output == {"choice": 1}
    assert caplog.text.count("actions are not shown") == 1


# -- without a server ------------------------------------------------------------------------------------------------------


async def test_a_missing_server_is_told_of_at_the_start_and_a_cache_does_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_ports(1)[0]}/0"
    for made in (RedisSignalChannel(url), RedisActionStore(url)):
        with pytest.raises(TransientError, match=r"at redis://127\.0\.0\.1") as error:
            await made.start()
        assert "s3cret" not in str(error.value)
    jobs = JobManager(RedisJobCache(InMemoryJobStore(), url))
    job = await jobs.create(JobSpec(scope_id="s"))
    await jobs.cancel(job.job_id)
    assert (await jobs.get(job.job_id)).status == "cancelled"
    assert caplog.text.count("jobs are read from their store") == 1
    with pytest.raises(UserError, match="is no client"):
        RedisSignalChannel(object())


# -- hot state ------------------------------------------------------------------------------------------------------------


async def test_hot_state_is_read_by_other_processes_and_outlives_the_one_that_wrote_it(client: Any) -> None:
    writer, reader = HotState(server_or_skip().url, ttl="60s"), HotState(client)
    await writer.save("agent-7", {"phase": "writing", "page": 3})
    await writer.close()
    assert await reader.load("agent-7") == {"phase": "writing", "page": 3}
    assert 0 < await client.pttl("sabot:hot:agent-7") <= 60_000
    await reader.remove("agent-7")
    assert await reader.load("agent-7") is None
    await client.set("sabot:hot:agent-7", b"no json")
    with pytest.raises(DataError, match="hot state agent-7 cannot be read"):
        await reader.load("agent-7")


async def test_hot_state_says_that_its_server_is_away() -> None:
    away = HotState(f"redis://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TransientError, match=r"hot state at .*: ConnectionError"):
        await away.save("agent-7", {})
    await away.close()
