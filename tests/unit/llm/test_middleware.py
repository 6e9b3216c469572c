"""What stands around each call: its order, retries, time limits, budgets, one's own."""

import asyncio
import logging
from decimal import Decimal

import pytest

from sabot.agents import Budget
from sabot.errors import UserError
from sabot.llm import (
    MIDDLEWARE,
    AuthenticationFailed,
    BudgetExceeded,
    CallBudget,
    Completion,
    ExecutionEngine,
    MemoryCache,
    ModelTimeout,
    ModelUnavailable,
    RateLimited,
    RequestContext,
    RequestRefused,
    ScriptedProvider,
    Usage,
    assistant,
)
from sabot.llm.prices import Price, PriceTable


def marks(name, seen):
    """A middleware that tells when it is entered and left."""

    async def mark(call, forward):
        seen.append(f"{name} in")
        try:
            return await forward(call)
        finally:
            seen.append(f"{name} out")

    return mark


def test_the_default_order_is_logging_timeout_retry_budget_telemetry():
    assert MIDDLEWARE == ("logging", "timeout", "retry", "budget", "telemetry")


async def test_order_of_middleware_is_from_outside_in():
    seen = []
    engine = ExecutionEngine(ScriptedProvider("yes"), middleware=[marks("a", seen), *MIDDLEWARE, marks("b", seen)])
    await engine.complete("hello")
    assert seen == ["a in", "b in", "b out", "a out"]


async def test_order_says_what_each_of_the_default_chain_sees(time, caplog):
    """Between each two of them stands a mark: what is inside of retry is entered again, what is outside of budget never sees a refusal."""
    seen = []
    chain = [part for name in MIDDLEWARE for part in (name, marks(f"after {name}", seen))]
    provider = ScriptedProvider([ModelUnavailable("down"), "yes"])
    engine = ExecutionEngine(
        provider, middleware=chain, budget=CallBudget(max_tokens=100), total_timeout="1h", **time.options()
    )
    caplog.set_level(logging.DEBUG, "sabot.llm")
    await engine.complete("hello", max_tokens=20)
    attempt = [
        f"after {name} {way}"
        for way, names in (("in", ("retry", "budget", "telemetry")), ("out", ("telemetry", "budget", "retry")))
        for name in names
    ]
    assert seen == [
        "after logging in",
        "after timeout in",
        *attempt,
        *attempt,
        "after timeout out",
        "after logging out",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG"]  # one retry, one call
    seen.clear()
    with pytest.raises(BudgetExceeded):
        await engine.complete("hello", max_tokens=1000)
    assert seen == [
        "after logging in",
        "after timeout in",
        "after retry in",
        "after retry out",
        "after timeout out",
        "after logging out",
    ]
    assert engine.statistics()["attempts"] == 2


async def test_middleware_of_ones_own_may_change_a_call_or_answer_it():
    async def louder(call, forward):
        call.spec = type(call.spec)(messages=call.spec.messages, temperature=1.0)
        return await forward(call)

    async def known(call, forward):
        if call.spec.messages[0].text == "2 + 2":
            return Completion(message=assistant("4"))
        return await forward(call)

    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, middleware=[louder, known, *MIDDLEWARE])
    assert (await engine.complete("2 + 2")).content == "4"
    assert provider.requests == []
    assert (await engine.complete("hello")).content == "yes"
    assert provider.requests[0].temperature == 1.0


async def test_middleware_stands_around_a_stream_and_sees_how_many_pieces_it_gave():
    seen = []

    async def look(call, forward):
        answer = await forward(call)
        seen.append((call.kind, call.pieces, answer.content))
        return answer

    engine = ExecutionEngine(ScriptedProvider("to be or"), middleware=[look])
    assert len([piece async for piece in engine.stream("hello")]) == 4
    assert seen == [("stream", 3, "to be or")]


async def test_middleware_that_is_not_known_or_returns_nothing_is_told():
    with pytest.raises(UserError, match="'caching' is not known"):
        ExecutionEngine(ScriptedProvider("yes"), middleware=["caching"])

    async def forgets(call, forward):
        await forward(call)

    with pytest.raises(UserError, match="a middleware returned None"):
        await ExecutionEngine(ScriptedProvider("yes"), middleware=[forgets]).complete("hello")


# -- retries ----------------------------------------------------------------------------------------------------------


async def test_failures_are_tried_again_after_waits_that_double(time):
    provider = ScriptedProvider([*[ModelUnavailable("down")] * 3, "yes"])
    engine = ExecutionEngine(provider, retries=3, backoff="1s", **time.options())
    assert (await engine.complete("hello")).content == "yes"
    for slept, most in zip(time.slept, (1, 2, 4), strict=True):
        assert most / 2 <= slept <= most
    assert engine.statistics()["retries"] == 3


async def test_the_same_seed_draws_the_same_waits_and_another_one_others(time):
    waits = []
    for seed in (1, 1, 2):
        time.slept = []
        provider = ScriptedProvider([ModelUnavailable("down"), "yes"])
        await ExecutionEngine(provider, clock=time.clock, sleep=time.sleep, seed=seed).complete("hello")
        waits.append(time.slept)
    assert waits[0] == waits[1] != waits[2]


async def test_after_so_many_attempts_the_error_is_told(time):
    provider = ScriptedProvider(lambda spec: ModelUnavailable("down"))
    engine = ExecutionEngine(provider, retries=2, **time.options())
    with pytest.raises(ModelUnavailable):
        await engine.complete("hello")
    assert len(provider.requests) == 3
    assert (engine.statistics()["failed"], engine.statistics()["failed_attempts"]) == (1, 3)


@pytest.mark.parametrize("error", [AuthenticationFailed("wrong key"), RequestRefused("bad"), ValueError("ours")])
async def test_what_will_not_pass_is_not_tried_again(time, error):
    provider = ScriptedProvider(lambda spec: error)
    with pytest.raises(type(error)):
        await ExecutionEngine(provider, **time.options()).complete("hello")
    assert len(provider.requests) == 1


@pytest.mark.parametrize("error", [RateLimited, ModelUnavailable])
async def test_no_attempt_is_made_before_the_provider_wants_one(time, error):
    provider = ScriptedProvider([error("later", retry_after_s=20.0), "yes"])
    engine = ExecutionEngine(provider, backoff="1s", **time.options())
    began = time.clock.monotonic()
    await engine.complete("hello")
    assert 20.5 <= time.clock.monotonic() - began <= 21.0


async def test_calls_that_are_turned_away_have_patience_not_attempts(time):
    provider = ScriptedProvider(lambda spec: RateLimited("slow down", retry_after_s=10.0))
    engine = ExecutionEngine(provider, retries=1, patience="2m", **time.options())
    began = time.clock.monotonic()
    with pytest.raises(RateLimited):
        await engine.complete("hello")
    assert 60 <= time.clock.monotonic() - began <= 120
    assert len(provider.requests) > 4


async def test_a_wait_that_is_longer_than_the_patience_is_not_begun(time):
    provider = ScriptedProvider([RateLimited("tomorrow", retry_after_s=86400.0)])
    with pytest.raises(RateLimited):
        await ExecutionEngine(provider, **time.options()).complete("hello")
    assert time.slept == []


async def test_without_retries_there_is_one_attempt(time):
    for error in (RateLimited("slow down"), ModelUnavailable("down")):
        provider = ScriptedProvider([error])
        with pytest.raises(type(error)):
            await ExecutionEngine(provider, retries=0, **time.options()).complete("hello")


async def test_a_stream_is_made_again_only_before_its_first_piece(time):
    provider = ScriptedProvider([ModelUnavailable("down"), ("half", ModelUnavailable("gone"))])
    engine = ExecutionEngine(provider, **time.options())
    stream = engine.stream("hello")
    assert (await anext(stream)).text == "half"
    with pytest.raises(ModelUnavailable, match="gone"):
        await anext(stream)
    assert len(provider.requests) == 2


# -- time -------------------------------------------------------------------------------------------------------------


async def test_an_attempt_gets_the_engines_time_or_the_calls_own(time):
    class Bounds(ScriptedProvider):
        async def complete(self, spec, *, timeout_s=None, idempotency_key="", max_answer_bytes=None):
            bounds.append(timeout_s)
            return await super().complete(spec, idempotency_key=idempotency_key)

    bounds = []
    provider = Bounds([ModelUnavailable("down"), "yes", "yes", "yes"])
    engine = ExecutionEngine(provider, timeout="10s", total_timeout="11s", backoff="2s", **time.options())
    await engine.complete("hello")
    await engine.complete("hello", timeout="3s")
    await ExecutionEngine(provider, timeout=None).complete("hello")
    assert bounds[0] == 10.0
    assert bounds[1] == pytest.approx(11.0 - time.slept[0])
    assert bounds[2:] == [3.0, None]


async def test_all_attempts_together_have_a_bound():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, total_timeout="10ms", timeout=None)
    with pytest.raises(ModelTimeout, match=r"no answer in 0\.0"):
        await asyncio.gather(engine.complete("hello"))
    assert provider.in_flight == 0


async def test_no_wait_goes_beyond_the_end_of_the_call(time):
    provider = ScriptedProvider([ModelUnavailable("down", retry_after_s=50.0)])
    engine = ExecutionEngine(provider, total_timeout="40s", **time.options())
    with pytest.raises(ModelUnavailable):
        await engine.complete("hello")
    assert time.slept == []


# -- budgets ----------------------------------------------------------------------------------------------------------


def used(tokens):
    return Completion(message=assistant("yes"), usage=Usage(tokens - 1, 1))


async def test_a_budget_of_tokens_may_be_used_up_and_not_more():
    provider = ScriptedProvider(lambda spec: used(10))
    budget = CallBudget(max_tokens=20)
    engine = ExecutionEngine(provider, budget=budget)
    for _ in range(2):
        await engine.complete("four", max_tokens=9)
    assert budget.tokens == 20
    with pytest.raises(BudgetExceeded, match="20 tokens: 20 used"):
        await engine.complete("four", max_tokens=9)
    assert len(provider.requests) == 2


async def test_calls_in_flight_count_with_what_they_may_use():
    provider = ScriptedProvider(lambda spec: used(10))
    provider.hold()
    budget = CallBudget(max_tokens=100)
    engine = ExecutionEngine(provider, budget=budget)
    calls = [asyncio.create_task(engine.complete("four", max_tokens=9)) for _ in range(200)]
    await provider.arrived(10)
    provider.release()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, BudgetExceeded) for each in outcomes) == 190
    assert budget.tokens == 100


async def test_a_call_that_failed_gives_back_what_it_might_have_used(time):
    provider = ScriptedProvider([RequestRefused("no"), used(10)])
    engine = ExecutionEngine(provider, budget=CallBudget(max_tokens=10), **time.options())
    with pytest.raises(RequestRefused):
        await engine.complete("four", max_tokens=9)
    await engine.complete("four", max_tokens=9)


async def test_requests_whose_answers_were_not_read_count_with_what_they_may_have_used(time):
    lost = ModelUnavailable("the connection broke")
    prices = PriceTable({"scripted-1": Price("100000", "100000")}, version="v")  # ten cents a token
    provider = ScriptedProvider(
        [lost, RateLimited("slow down"), ModelUnavailable("refused", sent=False), lost, used(10)]
    )
    budget = CallBudget(max_tokens=100)
    engine = ExecutionEngine(provider, budget=budget, prices=prices, **time.options())
    await engine.complete("four", max_tokens=9)
    assert (budget.tokens, budget.cost) == (30, Decimal("3.0"))
    few, provider = CallBudget(max_cost="1.5"), ScriptedProvider([lost, used(10)])
    with pytest.raises(BudgetExceeded, match=r"\$1\.50: \$1 used"):
        await ExecutionEngine(provider, budget=few, prices=prices, **time.options()).complete("four", max_tokens=9)
    assert len(provider.requests) == 1


async def test_a_budget_of_money_ends_when_it_is_used_up():
    prices = PriceTable({"scripted-1": Price("100000", "100000")}, version="v")  # ten cents a token
    budget = CallBudget(max_cost="2.00")
    engine = ExecutionEngine(ScriptedProvider(lambda spec: used(10)), prices=prices)
    for _ in range(2):
        answer = await engine.complete("hello", max_tokens=8, budget=budget)
        assert (answer.cost, answer.prices_version) == (Decimal("1.0"), "v")
    with pytest.raises(BudgetExceeded, match=r"the budget has \$2: \$2 used"):
        await engine.complete("hello", max_tokens=8, budget=budget)
    assert engine.statistics()["cost"] == budget.cost == Decimal("2.0")
    await engine.complete("hello")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("limit", [{"max_cost": "2.00"}, {"max_tokens": 20}])
async def test_calls_in_flight_wait_for_each_other_where_a_budget_has_no_room_for_all(limit, streamed):
    """A budget of five cents paid for sixty answers: the first answer came when all sixty requests had been sent."""
    prices = PriceTable({"scripted-1": Price("100000", "100000")}, version="v")  # ten cents a token
    provider = ScriptedProvider(lambda spec: used(5))
    provider.hold()
    budget = CallBudget(**limit)
    engine = ExecutionEngine(provider, prices=prices, budget=budget)

    async def ask():
        if not streamed:
            return await engine.complete("four", max_tokens=9)
        return [piece async for piece in engine.stream("four", max_tokens=9)]

    calls = [asyncio.create_task(ask()) for _ in range(60)]
    await provider.arrived(2)
    provider.release()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, BudgetExceeded) for each in outcomes) == 57
    assert (len(provider.requests), budget.tokens, budget.cost) == (3, 15, Decimal("1.5")), "10 were reserved for each"


async def test_a_request_without_a_limit_gets_one_so_that_its_budget_holds():
    prices = PriceTable({"scripted-1": Price("100", "100")}, version="v")  # a hundredth of a cent a token
    provider = ScriptedProvider(lambda spec: used(10))
    await ExecutionEngine(provider, budget=CallBudget(max_tokens=100)).complete("four")
    await ExecutionEngine(provider, prices=prices, budget=CallBudget(max_cost=1)).complete("four")
    await ExecutionEngine(provider, budget=CallBudget(max_tool_calls=1)).complete("four")
    assert [each.max_tokens for each in provider.requests] == [99, 4096, None]
    with pytest.raises(BudgetExceeded, match=r"this call may use \$0\.4097.*set max_tokens="):
        await ExecutionEngine(provider, prices=prices, budget=CallBudget(max_cost="0.4")).complete("four")


async def test_requests_without_a_limit_take_what_the_ones_before_have_left():
    provider = ScriptedProvider(lambda spec: used(10))
    budget = CallBudget(max_tokens=25)
    engine = ExecutionEngine(provider, budget=budget)
    outcomes = await asyncio.gather(*(engine.complete("four") for _ in range(4)), return_exceptions=True)
    assert [each.max_tokens for each in provider.requests] == [24, 14, 4]
    assert isinstance(outcomes[3], BudgetExceeded)


async def test_a_call_within_a_call_of_its_budget_does_not_wait_for_ever():
    provider = ScriptedProvider(lambda spec: used(10))
    provider.hold()
    engine = ExecutionEngine(provider, budget=CallBudget(max_tokens=19))
    outer = asyncio.create_task(engine.complete("four", max_tokens=9))
    await provider.arrived(1)
    with pytest.raises(BudgetExceeded, match="10 reserved for calls in flight"):
        await engine.complete("four", max_tokens=9, timeout="10ms")
    provider.release()
    await outer


async def test_an_answer_without_usage_costs_what_was_reserved():
    prices = PriceTable({"scripted-1": Price("100000", "100000")}, version="v")  # ten cents a token
    budget = CallBudget(max_cost=1)
    provider = ScriptedProvider(lambda spec: Completion(message=assistant("yes"), usage=None))
    engine = ExecutionEngine(provider, prices=prices, budget=budget)
    await engine.complete("four", max_tokens=9)
    with pytest.raises(BudgetExceeded, match=r"\$1: \$1 used"):
        await engine.complete("four", max_tokens=9)


async def test_what_a_cache_answers_uses_no_budget():
    budget = CallBudget(max_tokens=10)
    engine = ExecutionEngine(ScriptedProvider(lambda spec: used(10)), cache=MemoryCache(), budget=budget)
    for _ in range(3):
        await engine.complete("four")
    assert budget.tokens == 10


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": -1},
        {"max_tokens": 1.5},
        {"max_tokens": float("nan")},
        {"max_tokens": True},
        {"max_cost": "-0.01"},
        {"max_cost": "NaN"},
        {"max_cost": float("inf")},
        {"max_cost": "much"},
        {"max_cost": True},
    ],
)
def test_a_budget_of_what_is_no_amount_is_refused(options):
    with pytest.raises(UserError, match=f"CallBudget: {next(iter(options))}="):
        CallBudget(**options)


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("cache", 3),
        ("idempotency_tracker", True),
        ("limits", 3),
        ("breaker", 3),
        ("prices", {"gpt-4o": 1}),
        ("fallback", 3),
        ("middleware", 3),
        ("middleware", [3]),
    ],
)
def test_parts_of_an_engine_that_are_none_are_refused_by_name(option, wrong):
    """Some were taken until the first call, others ended in an AttributeError."""
    with pytest.raises(UserError, match=option):
        ExecutionEngine(ScriptedProvider("yes"), **{option: wrong})


async def test_the_budget_of_a_scope_given_to_an_engine_or_a_call_is_refused_by_name():
    """It was taken, and limited nothing: the first call ended with an AttributeError."""
    of_scope = Budget("tenant", max_tokens_daily=10)
    with pytest.raises(UserError, match=r"ExecutionEngine: budget=Budget\(scope_id='tenant'") as refused:
        ExecutionEngine(ScriptedProvider("yes"), budget=of_scope)
    assert "CallBudget" in refused.value.hint
    assert "App(" in refused.value.hint
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider)
    for kind, ask in (("complete", engine.complete), ("embed", lambda text, **how: engine.embed([text], **how))):
        with pytest.raises(UserError, match=f"{kind}: budget=Budget"):
            await ask("hello", budget=of_scope)
    with pytest.raises(UserError, match="stream: budget=3"):
        engine.stream("hello", budget=3)
    assert provider.requests == []


# -- logs -------------------------------------------------------------------------------------------------------------


async def test_logs_say_who_was_asked_and_never_what_was_said(caplog, time):
    caplog.set_level(logging.DEBUG, "sabot")
    provider = ScriptedProvider([ModelUnavailable("cannot take: a question"), "an answer", RequestRefused("no")])
    engine = ExecutionEngine(provider, **time.options())
    context = RequestContext(request_id="req-1")
    await engine.complete("a question", context=context)
    with pytest.raises(RequestRefused):
        await engine.complete("a question", context=context)
    assert len(caplog.records) == 3
    assert "complete for req-1: scripted scripted-1: attempt 1" in caplog.messages[0]
    assert "request scripted-2" in caplog.messages[1]
    assert "failed: RequestRefused" in caplog.messages[2]
    assert "a question" not in caplog.text
    assert "an answer" not in caplog.text
