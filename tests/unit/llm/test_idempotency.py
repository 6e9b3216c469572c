"""`IdempotencyTracker`: a call for each key, in flight and afterwards, and the hooks that tell of it."""

import asyncio

import pytest

from sabot.clock import ManualClock
from sabot.errors import IdempotencyConflict, UserError
from sabot.llm import (
    Completion,
    ExecutionEngine,
    IdempotencyTracker,
    MemoryCache,
    ModelTimeout,
    ModelUnavailable,
    RequestContext,
    ScriptedProvider,
    Usage,
    assistant,
)
from sabot.llm.idempotency import HOOKS


class Told(list):
    """The hooks that were called."""

    def __init__(self, tracker):
        for name in HOOKS:
            tracker.on(name, lambda event: self.append((event.name.removeprefix("idempotency."), event.key)))


@pytest.fixture
def tracker():
    return IdempotencyTracker(request_timeout=60.0)


@pytest.fixture
def told(tracker):
    return Told(tracker)


async def pieces_of(stream):
    return [piece async for piece in stream]


async def test_calls_with_one_key_in_flight_share_one_request(tracker, told):
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    calls = [asyncio.create_task(engine.complete("hello", idempotency_key="k")) for _ in range(5)]
    await provider.arrived(1)
    provider.release()
    answers = await asyncio.gather(*calls)
    assert len(provider.requests) == 1
    assert provider.keys == ["k"]
    assert [answer.content for answer in answers] == ["yes"] * 5
    assert [answer.cached for answer in answers] == [False, True, True, True, True]
    assert told == [("start", "k"), *[("hit", "k")] * 4, ("complete", "k")]
    assert (tracker.hits, engine.statistics()["unasked"]) == (4, 4)


async def test_a_key_that_was_answered_is_answered_again_and_costs_nothing(tracker, told):
    provider = ScriptedProvider(Completion(message=assistant("yes"), usage=Usage(3, 1)))
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    first = await engine.complete("hello", idempotency_key="k")
    again = await engine.complete("hello", idempotency_key="k")
    assert (first.cached, first.usage) == (False, Usage(3, 1))
    assert (again.cached, again.usage, again.content, again.request_id) == (True, Usage(), "yes", first.request_id)
    assert len(provider.requests) == 1
    assert told == [("start", "k"), ("complete", "k"), ("hit", "k")]


@pytest.mark.parametrize("in_flight", [True, False])
async def test_a_key_with_another_request_is_a_conflict(tracker, told, in_flight):
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    provider.hold()
    first = asyncio.create_task(engine.complete("hello", idempotency_key="k"))
    await provider.arrived(1)
    if not in_flight:
        provider.release()
        await first
    with pytest.raises(IdempotencyConflict, match="'k' was used for another request"):
        await engine.complete("hello", idempotency_key="k", temperature=0.5)
    provider.release()
    assert (await first).content == "yes"
    assert ("conflict", "k") in told
    assert len(provider.requests) == 1


async def test_the_key_of_a_call_that_failed_is_free(tracker, told):
    provider = ScriptedProvider([ModelUnavailable("down"), "yes"])
    engine = ExecutionEngine(provider, idempotency_tracker=tracker, retries=0)
    with pytest.raises(ModelUnavailable):
        await engine.complete("hello", idempotency_key="k")
    assert (await engine.complete("hello", idempotency_key="k")).content == "yes"
    assert told == [("start", "k"), ("fail", "k"), ("start", "k"), ("complete", "k")]


async def test_all_who_share_a_call_get_its_error(tracker):
    provider = ScriptedProvider([ModelUnavailable("down")])
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=tracker, retries=0)
    calls = [asyncio.create_task(engine.complete("hello", idempotency_key="k")) for _ in range(3)]
    await provider.arrived(1)
    provider.release()
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in errors] == [ModelUnavailable] * 3


async def test_a_call_goes_on_for_the_others_when_the_first_has_gone(tracker):
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    first, second = (asyncio.create_task(engine.complete("hello", idempotency_key="k")) for _ in range(2))
    await provider.arrived(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert provider.cancelled == 0
    provider.release()
    assert (await second).content == "yes"
    assert len(provider.requests) == 1


async def test_a_call_is_cancelled_when_nobody_waits_and_its_key_is_free(tracker, told):
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    calls = [asyncio.create_task(engine.complete("hello", idempotency_key="k")) for _ in range(2)]
    await provider.arrived(1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (provider.in_flight, provider.cancelled) == (0, 1)
    provider.release()
    assert (await engine.complete("hello", idempotency_key="k")).content == "yes"
    assert [name for name, _ in told] == ["start", "hit", "fail", "start", "complete"]


async def test_streams_share_a_call_from_its_first_piece_on(tracker):
    provider = ScriptedProvider("to be or not")
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    provider.hold()
    streams = [asyncio.create_task(pieces_of(engine.stream("hello", idempotency_key="k"))) for _ in range(2)]
    await provider.arrived(1)
    provider.release()
    first, second = await asyncio.gather(*streams)
    assert [piece.text for piece in first] == [piece.text for piece in second] == ["to ", "be ", "or ", "not", ""]
    assert (first[-1].completion.cached, second[-1].completion.cached) == (False, True)
    later = await pieces_of(engine.stream("hello", idempotency_key="k"))
    assert [piece.text for piece in later] == ["to be or not", ""]
    assert (await engine.complete("hello", idempotency_key="k")).content == "to be or not"
    assert len(provider.requests) == 1


async def test_who_waits_too_long_for_anothers_call_is_told_and_the_call_goes_on():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=IdempotencyTracker(request_timeout="1ms"))
    first = asyncio.create_task(engine.complete("hello", idempotency_key="k"))
    await provider.arrived(1)
    with pytest.raises(ModelTimeout, match=r"after 0\.001 s"):
        await engine.complete("hello", idempotency_key="k")
    provider.release()
    assert (await first).content == "yes"


async def test_who_shares_a_call_without_a_key_waits_for_it_as_long_as_it_takes():
    """The limit of the tracker, which has nothing to do with it, ended the wait, with words about a key."""
    provider = ScriptedProvider("yes")
    provider.hold()
    tracker = IdempotencyTracker(request_timeout=0)
    engine = ExecutionEngine(provider, idempotency_tracker=tracker, cache=MemoryCache())
    calls = [asyncio.create_task(engine.complete("hello")) for _ in range(2)]
    await provider.arrived(1)
    for _ in range(20):
        await asyncio.sleep(0)
    provider.release()
    assert [(await call).content for call in calls] == ["yes", "yes"]
    assert len(provider.requests) == 1


async def test_tenants_have_keys_of_their_own(tracker):
    provider = ScriptedProvider(lambda spec: spec.messages[0].text)
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    for tenant in ("a", "b"):
        answer = await engine.complete(tenant, idempotency_key="k", context=RequestContext(tenant_id=tenant))
        assert answer.content == tenant
    assert len(provider.requests) == 2


async def test_answers_are_kept_up_to_a_number_and_an_age():
    clock = ManualClock()
    tracker = IdempotencyTracker(most=2, ttl="1h", clock=clock)
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, idempotency_tracker=tracker)
    for key in ("a", "b", "c", "b", "a"):
        await engine.complete("hello", idempotency_key=key)
    assert provider.keys == ["a", "b", "c", "a"]
    clock.advance(3600)
    await engine.complete("hello", idempotency_key="a")
    assert provider.keys[-1:] == ["a"]
    assert len(provider.keys) == 5


async def test_two_engines_may_share_a_tracker(tracker):
    providers = [ScriptedProvider("yes"), ScriptedProvider("yes")]
    for provider in providers:
        engine = ExecutionEngine(provider, idempotency_tracker=tracker)
        assert (await engine.complete("hello", idempotency_key="k")).content == "yes"
    assert [len(provider.requests) for provider in providers] == [1, 0]


async def test_an_error_of_a_hook_is_that_of_the_call_and_the_next_call_is_made(tracker):
    left = ["no"]

    def broken(event):
        if left:
            raise RuntimeError(left.pop())

    tracker.on("idempotency.start", broken)
    engine = ExecutionEngine(ScriptedProvider("yes"), idempotency_tracker=tracker)
    with pytest.raises(RuntimeError, match="no"):
        await engine.complete("hello", idempotency_key="k")
    assert (await engine.complete("hello", idempotency_key="k")).content == "yes"


def test_what_is_no_hook_and_no_number_is_refused(tracker):
    with pytest.raises(UserError, match="is no hook"):
        tracker.on("start", print)
    with pytest.raises(UserError, match="most=-1"):
        IdempotencyTracker(most=-1)
