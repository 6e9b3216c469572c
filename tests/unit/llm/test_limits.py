"""Limits before a provider: requests in flight, requests and tokens a minute, and the circuit of one that fails."""

import asyncio
from contextvars import copy_context

import pytest

from sabot.engine.calls.judging import SENDABLE
from sabot.engine.calls.limits import TokenBucket
from sabot.errors import UserError
from sabot.llm import (
    CircuitBreaker,
    CircuitOpen,
    Completion,
    ExecutionEngine,
    Limits,
    ModelTimeout,
    ModelUnavailable,
    ModelUnreachable,
    RateLimited,
    RequestRefused,
    ScriptedProvider,
    Usage,
    assistant,
)


async def ask(engine, count, **fields):
    return await asyncio.gather(*(engine.complete(f"hello {number}", **fields) for number in range(count)))


async def test_so_many_requests_are_in_flight_at_most():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, limits=Limits(concurrency=3))
    calls = asyncio.create_task(ask(engine, 10))
    await provider.arrived(3)
    assert (engine.statistics()["waiting"], engine.statistics()["limit"]) == (7, 3)
    provider.release()
    assert len(await calls) == 10
    assert provider.most_in_flight == 3
    assert engine.statistics()["waiting"] == 0


async def test_requests_begin_in_the_order_of_their_calls():
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, limits=Limits(concurrency=1))
    await ask(engine, 10)
    assert [spec.messages[0].text for spec in provider.requests] == [f"hello {number}" for number in range(10)]


async def test_a_call_that_is_cancelled_while_it_waits_holds_nobody_up():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, limits=Limits(concurrency=1))
    calls = [asyncio.create_task(engine.complete(f"{number}")) for number in range(4)]
    await provider.arrived(1)
    for call in calls[1:3]:
        call.cancel()
    await asyncio.gather(*calls[1:3], return_exceptions=True)
    provider.release()
    assert [(await calls[place]).content for place in (0, 3)] == ["yes", "yes"]
    assert len(provider.requests) == 2


async def test_a_429_halves_the_requests_in_flight_and_they_grow_again(time):
    turned_away = [RateLimited("slow down", retry_after_s=5.0)]

    def answer(spec):
        return turned_away.pop() if turned_away else "yes"

    provider = ScriptedProvider(answer)
    provider.hold()
    engine = ExecutionEngine(provider, limits=Limits(concurrency=8), **time.options())
    calls = asyncio.create_task(ask(engine, 8))
    await provider.arrived(8)
    provider.release()
    assert [each.content for each in await calls] == ["yes"] * 8
    assert engine.statistics()["limit"] == 4
    assert engine.statistics()["overloads"] == 1
    assert sum(time.slept) >= 5.0
    for _ in range(30):
        time.clock.advance(1)
        provider.hold()
        seen = len(provider.requests)
        calls = asyncio.create_task(ask(engine, 8))
        await provider.arrived(seen + engine.statistics()["limit"])
        provider.release()
        await calls
    assert engine.statistics()["limit"] == 8


async def test_requests_a_minute_begin_evenly(time):
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, limits=Limits(requests_per_minute=60), **time.options())
    began = time.clock.monotonic()
    await ask(engine, 11)
    assert time.clock.monotonic() - began == pytest.approx(10.0)


async def test_tokens_a_minute_are_estimated_then_counted(time):
    provider = ScriptedProvider(Completion(message=assistant("yes"), usage=Usage(0, 100)))
    engine = ExecutionEngine(provider, limits=Limits(tokens_per_minute=600, concurrency=1), **time.options())
    began = time.clock.monotonic()
    await engine.complete("hello", max_tokens=50)  # 100 are there at once, and all of them are used
    assert time.slept == []
    await engine.complete("hello", max_tokens=48)  # thought to use 50, at 10 a second
    assert time.clock.monotonic() - began == pytest.approx(5.0)
    await engine.complete("hello", max_tokens=48)  # the one before used 100, so 50 are missing too
    assert time.clock.monotonic() - began == pytest.approx(15.0)


def test_a_request_that_is_above_all_there_may_be_waits_for_that():
    balance = TokenBucket(10.0, burst_s=10.0)
    assert balance.wait_s(0.0, 10_000) == 0.0
    balance.begun(0.0, 10_000)
    assert balance.wait_s(0.0, 1) == pytest.approx(990.1)
    assert balance.wait_s(990.2, 1) == 0.0


@pytest.mark.parametrize("error", [ModelUnavailable("down"), ModelTimeout("slow")])
async def test_a_provider_that_fails_again_and_again_is_not_asked_for_a_while(time, error):
    healthy = []
    provider = ScriptedProvider(lambda spec: "yes" if healthy else error)
    breaker = CircuitBreaker(failures=3, pause="30s")
    engine = ExecutionEngine(provider, retries=0, breaker=breaker, **time.options())
    for _ in range(3):
        with pytest.raises(type(error)):
            await engine.complete("hello")
    with pytest.raises(CircuitOpen, match="failed 3 times in a row") as caught:
        await engine.complete("hello")
    assert (caught.value.sent, caught.value.retry_after_s, caught.value.provider) == (False, 30.0, "scripted")
    assert len(provider.requests) == 3
    time.clock.advance(30)
    with pytest.raises(type(error)):
        await engine.complete("hello")  # the one that tries
    with pytest.raises(CircuitOpen):
        await engine.complete("hello")
    assert len(provider.requests) == 4
    healthy.append(True)
    time.clock.advance(30)
    provider.hold()
    tries = asyncio.create_task(engine.complete("hello"))
    await provider.arrived(5)
    with pytest.raises(CircuitOpen):
        await engine.complete("hello")
    provider.release()
    assert (await tries).content == "yes"
    assert len(await ask(engine, 3)) == 3


async def test_a_try_that_is_cancelled_lets_the_next_one_try(time):
    provider = ScriptedProvider([ModelUnavailable("down"), "no", "yes"])
    engine = ExecutionEngine(provider, retries=0, breaker=CircuitBreaker(1), **time.options())
    with pytest.raises(ModelUnavailable):
        await engine.complete("hello")
    time.clock.advance(30)
    provider.hold()
    tries = asyncio.create_task(engine.complete("hello"))
    await provider.arrived(2)
    tries.cancel()
    await asyncio.gather(tries, return_exceptions=True)
    provider.release()
    assert (await engine.complete("hello")).content == "no"


async def test_refusals_are_answers_and_do_not_open_the_circuit(time):
    provider = ScriptedProvider(lambda spec: RequestRefused("no such model"))
    engine = ExecutionEngine(provider, breaker=CircuitBreaker(1), **time.options())
    for _ in range(3):
        with pytest.raises(RequestRefused):
            await engine.complete("hello")


async def test_calls_that_an_open_circuit_refuses_wait_for_no_limit_and_use_none(time):
    """Each one waited for its turn, so a fallback answered as slowly as the limits of the provider that is down."""
    provider = ScriptedProvider([ModelUnavailable("down"), "yes"])
    limits = Limits(requests_per_minute=1, tokens_per_minute=600)
    engine = ExecutionEngine(provider, retries=0, breaker=CircuitBreaker(1), limits=limits, **time.options())
    with pytest.raises(ModelUnavailable):
        await engine.complete("hello", max_tokens=100)
    began = time.clock.monotonic()
    for _ in range(20):
        with pytest.raises(CircuitOpen):
            await engine.complete("hello", max_tokens=100)
    assert time.clock.monotonic() == began
    time.clock.advance(60)
    assert (await engine.complete("hello", max_tokens=100)).content == "yes"
    assert time.clock.monotonic() == began + 60


async def test_tokens_of_requests_that_were_never_sent_are_there_for_others(time):
    provider = ScriptedProvider(lambda spec: ModelUnreachable("no connection", sent=False))
    limits = Limits(tokens_per_minute=600)
    engine = ExecutionEngine(provider, retries=0, limits=limits, **time.options())
    began = time.clock.monotonic()
    for _ in range(20):
        with pytest.raises(ModelUnreachable):
            await engine.complete("hello", max_tokens=100)
    assert time.clock.monotonic() == began


async def test_a_try_that_was_not_sent_says_nothing_about_the_provider(time):
    down = ModelUnavailable("down")
    provider = ScriptedProvider([down, down, UserError("no such image"), down, "yes"])
    engine = ExecutionEngine(provider, retries=0, breaker=CircuitBreaker(2), **time.options())
    for error in (ModelUnavailable, ModelUnavailable, UserError, ModelUnavailable, CircuitOpen):
        if error is UserError:
            time.clock.advance(30)
        with pytest.raises(error) as caught:
            await engine.complete("hello")
        assert type(caught.value) is error


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Limits(concurrency=0), "concurrency=0"),
        (lambda: Limits(requests_per_minute=0), "requests_per_minute is 0"),
        (lambda: Limits(tokens_per_minute=float("nan")), "tokens_per_minute is nan"),
        (lambda: CircuitBreaker(0), "failures=0"),
        (lambda: CircuitBreaker(1, 0), "pause=0"),
    ],
)
def test_limits_that_let_nothing_through_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


async def test_a_request_that_has_waited_for_its_turn_is_sent_only_when_it_may_still_be():
    """A worker that was paused sent, when it woke up, what had waited for the limits of the provider: its journal was another's by then."""
    provider, claim, asked = ScriptedProvider("yes"), asyncio.Event(), asyncio.Event()
    provider.hold()

    async def sendable():
        asked.set()
        await claim.wait()

    engine = ExecutionEngine(provider, limits=Limits(concurrency=1))
    first = asyncio.create_task(engine.complete("one"))
    await provider.arrived(1)
    context = copy_context()
    context.run(SENDABLE.set, sendable)
    second = asyncio.create_task(engine.complete("two"), context=context)
    provider.release()
    await first
    await asked.wait()
    assert (len(provider.requests), second.done()) == (1, False)
    claim.set()
    await second
    assert len(provider.requests) == 2
