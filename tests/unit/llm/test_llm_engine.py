"""`ExecutionEngine`: what is asked, what comes back, and who is asked when the first provider fails."""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal

import msgspec
import numpy as np
import pytest

from sabot.engine.calls.schema import Schema
from sabot.errors import UserError
from sabot.llm import (
    MIDDLEWARE,
    Agent,
    BudgetExceeded,
    CallBudget,
    CircuitBreaker,
    Completion,
    ExecutionEngine,
    IdempotencyTracker,
    Image,
    Limits,
    MalformedAnswer,
    MemoryCache,
    ModelTimeout,
    ModelUnavailable,
    Piece,
    RateLimited,
    RequestRefused,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    Usage,
    assistant,
    system,
    tool,
    user,
)
from sabot.llm.prices import Price, PriceTable


@dataclass
class Verdict:
    label: str
    score: float


@tool(effect="read")
async def search(query: str):
    """Searches."""


# -- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "messages"),
    [
        ("hello", (user("hello"),)),
        (user("look", Image(url="https://x/y.png")), (user("look", Image(url="https://x/y.png")),)),
        ([system("Be kind."), "hello"], (system("Be kind."), user("hello"))),
        (RequestSpec(messages=(user("hello"),)), (user("hello"),)),
    ],
)
async def test_a_prompt_is_a_text_a_message_several_or_a_request(prompt, messages):
    provider = ScriptedProvider("yes")
    answer = await ExecutionEngine(provider).complete(prompt, temperature=0.5, model="big")
    assert (answer.content, answer.model, answer.provider) == ("yes", "big", "scripted")
    assert provider.requests == [RequestSpec(messages=messages, temperature=0.5, model="big")]


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"model": "gpt-9"}, "model="),
        ({"Model": "gpt-9"}, "model="),  # servers in Go read it so
        ({"models": ["gpt-9"]}, "fallback="),
        ({"max_tokens": 70_000}, "max_tokens="),
        ({"max_tokens": None}, "max_tokens="),
        ({"max_completion_tokens": 70_000}, "max_tokens="),
        ({"max_output_tokens": 70_000}, "max_tokens="),
        ({"n": 5}, "complete_many"),
        ({"messages": []}, "prompt"),
        ({"input": "more"}, "prompt"),
        ({"previous_response_id": "resp_1"}, "prompt"),
        ({"system": "more"}, "system"),
        ({"instructions": "more"}, "system"),
    ],
)
async def test_options_that_policies_and_budgets_would_not_see_are_refused_before_anything_is_asked(options, meant):
    provider = ScriptedProvider("yes")
    engine, (name,) = ExecutionEngine(provider), options
    refused = rf"options=\{{'{name}': …\}}: policies and budgets would not see it.*{meant}"
    for prompt, fields in (("hello", {"options": options}), (RequestSpec(messages=(user("hi"),), options=options), {})):
        with pytest.raises(UserError, match=refused):
            await engine.complete(prompt, **fields)
        with pytest.raises(UserError, match=refused):
            engine.stream(prompt, **fields)
    with pytest.raises(UserError, match=refused):
        Agent(engine, options=options)
    assert provider.requests == []
    assert (await engine.complete("hello", options={"reasoning_effort": "low"})).content == "yes"


async def test_tools_of_a_request_may_be_tools():
    provider = ScriptedProvider(assistant("", ToolCall("1", "search", '{"query": "x"}')))
    answer = await ExecutionEngine(provider).complete("hello", tools=[search, search.schema], stop=["\n"])
    assert provider.requests[0].tools == (search.schema, search.schema)
    assert provider.requests[0].stop == ("\n",)
    assert answer.tool_calls[0].name == "search"


@pytest.mark.parametrize(
    ("prompt", "fields", "says"),
    [
        (7, {}, "7 is no prompt"),
        ([], {}, "is no prompt"),
        ("hello", {"temprature": 1}, "'temprature' is no field of a request"),
        ("hello", {"messages": ()}, "'messages' is no field"),
        ("hello", {"output": {}}, "no columns"),
        ("hello", {"timeout": 0}, "timeout=0"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_a_request(prompt, fields, says):
    provider = ScriptedProvider("yes")
    with pytest.raises(UserError, match=says):
        await ExecutionEngine(provider).complete(prompt, **fields)
    assert provider.requests == []


@pytest.mark.parametrize("provider", ["openai:gpt-4o", ScriptedProvider, None])
def test_what_is_no_provider_is_refused_with_those_that_there_are(provider):
    for wrong in ((provider, []), (ScriptedProvider("x"), [provider])):
        with pytest.raises(UserError, match="is no provider") as caught:
            ExecutionEngine(wrong[0], fallback=wrong[1])
        assert "OpenAIProvider(" in caught.value.hint


# -- structured output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (Verdict, Verdict("good", 1.0)),
        (Schema(Verdict), Verdict("good", 1.0)),
        ({"label": "string", "score": "float64"}, {"label": "good", "score": 1.0}),
        ({"type": "object", "properties": {"label": {"type": "string"}}}, {"label": "good", "score": 1}),
    ],
)
async def test_an_answer_comes_as_what_was_asked_for(output, value):
    provider = ScriptedProvider('{"label": "good", "score": 1}')
    engine = ExecutionEngine(provider)
    for _ in range(2):
        assert (await engine.complete("hello", output=output)).output == value
    pieces = [piece async for piece in engine.stream("hello", output=output)]
    assert pieces[-1].completion.output == value
    assert provider.requests[0].output["properties"]["label"] == {"type": "string"}
    assert provider.requests[0].output_name == ("Verdict" if isinstance(value, Verdict) else "answer")


async def test_an_answer_that_does_not_match_names_who_gave_it_and_has_its_text():
    engine = ExecutionEngine(ScriptedProvider('{"label": "good"}' + " " * 10_000))
    with pytest.raises(MalformedAnswer, match="missing required field `score`") as caught:
        await engine.complete("hello", output=Verdict)
    error = caught.value
    assert (error.provider, error.model, error.request_id) == ("scripted", "scripted-1", "scripted-1")
    assert error.text.startswith('{"label"')
    assert len(error.text) == 2000


async def test_an_answer_that_was_cut_off_is_told_as_that():
    provider = ScriptedProvider(Completion(message=assistant('{"label": "go'), finish_reason="length"))
    with pytest.raises(MalformedAnswer, match="cut off at max_tokens"):
        await ExecutionEngine(provider).complete("hello", output=Verdict)


async def test_a_model_that_calls_tools_has_not_answered_yet():
    engine = ExecutionEngine(ScriptedProvider(assistant("", ToolCall("1", "search", "{}"))))
    assert (await engine.complete("hello", output=Verdict)).output is None


async def test_who_shares_a_call_gets_the_output_too():
    provider = ScriptedProvider('{"label": "good", "score": 1}')
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=IdempotencyTracker(), cache=MemoryCache())
    calls = [asyncio.create_task(engine.complete("hello", output=Verdict, idempotency_key="k")) for _ in range(3)]
    await provider.arrived(1)
    provider.release()
    calls += [asyncio.create_task(engine.complete("hello", output=Verdict))]
    assert [answer.output for answer in await asyncio.gather(*calls)] == [Verdict("good", 1.0)] * 4
    assert len(provider.requests) == 1


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_a_stream_gives_pieces_as_they_come_and_the_whole_at_last():
    gate = asyncio.Event()

    class Slow(ScriptedProvider):
        async def stream(self, spec, **how):
            async for piece in super().stream(spec, **how):
                yield piece
                await gate.wait()

    provider = Slow("to be or not")
    async with aclosing(ExecutionEngine(provider).stream("hello")) as stream:
        assert (await anext(stream)).text == "to "
        gate.set()
        rest = [piece async for piece in stream]
    assert [piece.text for piece in rest] == ["be ", "or ", "not", ""]
    assert rest[-1].completion.content == "to be or not"
    assert rest[-1].completion.usage is not None


async def test_a_stream_that_is_closed_early_ends_the_request():
    class Endless(ScriptedProvider):
        async def stream(self, spec, **how):
            async with self._call():
                while True:
                    yield Piece("more")
                    await asyncio.sleep(0)

    provider = Endless("")
    engine = ExecutionEngine(provider)
    async with aclosing(engine.stream("hello")) as stream:
        assert (await anext(stream)).text == "more"
    assert (provider.in_flight, provider.cancelled) == (0, 1)
    assert engine.statistics()["in_flight"] == 0


async def test_a_stream_without_an_answer_is_told(time):
    class Short(ScriptedProvider):
        async def stream(self, spec, **how):
            async for piece in super().stream(spec, **how):
                if piece.completion is None:
                    yield piece

    stream = ExecutionEngine(Short("word"), **time.options()).stream("hello")
    assert (await anext(stream)).text == "word"
    with pytest.raises(ModelUnavailable, match="ended before the answer"):
        await anext(stream)


async def test_a_call_that_is_cancelled_ends_its_request():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider)
    call = asyncio.create_task(engine.complete("hello"))
    await provider.arrived(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (provider.in_flight, provider.cancelled) == (0, 1)


# -- many -------------------------------------------------------------------------------------------------------------


async def test_answers_to_many_prompts_come_in_their_order():
    async def answer(spec):
        number = int(spec.messages[0].text)
        for _ in range(-number % 7):
            await asyncio.sleep(0)
        return f"{number}"

    provider = ScriptedProvider(answer)
    engine = ExecutionEngine(provider, limits=Limits(concurrency=7))
    prompts = (str(number) for number in range(100))
    answers = await engine.complete_many(prompts, concurrency=20, temperature=0.0)
    assert [answer.content for answer in answers] == [str(number) for number in range(100)]
    assert provider.most_in_flight == 7
    assert provider.requests[0].temperature == 0.0
    assert await engine.complete_many([]) == []


async def test_errors_of_many_come_in_place_of_answers_or_end_it():
    def answer(spec):
        text = spec.messages[0].text
        return RequestRefused("no") if text == "bad" else text

    prompts = ["a", "bad", "b"]
    answers = await ExecutionEngine(ScriptedProvider(answer)).complete_many(prompts, errors="return")
    assert [type(each) for each in answers] == [Completion, RequestRefused, Completion]
    assert answers[2].content == "b"
    with pytest.raises(RequestRefused):
        await ExecutionEngine(ScriptedProvider(answer)).complete_many(prompts)
    engine = ExecutionEngine(ScriptedProvider(answer), budget=CallBudget(max_tokens=2))
    answers = await engine.complete_many(["a", "b"], errors="return")
    assert isinstance(answers[1], BudgetExceeded)
    with pytest.raises(UserError, match="is no prompt"):
        await engine.complete_many([7], errors="return")
    with pytest.raises(UserError, match="'hello' is one prompt"):
        await engine.complete_many("hello")
    with pytest.raises(UserError, match="errors='skip'"):
        await engine.complete_many(prompts, errors="skip")


async def test_the_first_error_of_many_cancels_the_other_calls():
    def answer(spec):
        return RequestRefused("no") if spec.messages[0].text == "bad" else held()

    async def held():
        await asyncio.Event().wait()

    provider = ScriptedProvider(answer)
    with pytest.raises(RequestRefused):
        await ExecutionEngine(provider).complete_many(["a", "b", "bad"])
    assert (provider.in_flight, provider.cancelled) == (0, 2)


async def test_a_thousand_calls_are_in_flight_at_once():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, limits=Limits(concurrency=1000))
    calls = asyncio.create_task(engine.complete_many([f"{number}" for number in range(1000)]))
    await provider.arrived(1000)
    assert engine.statistics()["in_flight"] == 1000
    provider.release()
    assert len(await calls) == 1000


# -- embeddings -------------------------------------------------------------------------------------------------------


async def test_many_texts_are_embedded_in_several_requests_and_come_in_order():
    provider = ScriptedProvider("")
    prices = PriceTable({"scripted-1": Price("1000000", "0")}, version="v")
    engine = ExecutionEngine(provider, prices=prices)
    texts = [f"text {number}" for number in range(600)]
    found = await engine.embed(texts)
    alone = await engine.embed(texts[599:])
    assert found.vectors.shape == (600, 8)
    assert np.array_equal(found.vectors[599:], alone.vectors)
    assert found.usage == Usage(sum(-(-len(text) // 4) for text in texts), 0)
    assert (found.cost, found.prices_version) == (Decimal(found.usage.input_tokens), "v")
    assert engine.statistics()["attempts"] == 4


async def test_embeddings_are_tried_again_and_never_asked_of_another_model(time):
    class Fails(ScriptedProvider):
        async def embed(self, texts, **how):
            self.embedded += texts
            raise ModelUnavailable("down")

    first, second = Fails(""), ScriptedProvider("")
    engine = ExecutionEngine(first, fallback=[second], retries=2, **time.options())
    with pytest.raises(ModelUnavailable):
        await engine.embed(["a"])
    assert (first.embedded, second.embedded) == (["a"] * 3, [])


@pytest.mark.parametrize("texts", ["text", [], [7]])
async def test_what_is_no_list_of_texts_is_not_embedded(texts):
    with pytest.raises(UserError, match="no list of texts"):
        await ExecutionEngine(ScriptedProvider("")).embed(texts)


# -- other providers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ModelUnavailable("down"), ModelTimeout("slow"), RateLimited("full", retry_after_s=900.0)]
)
async def test_another_provider_answers_by_its_own_model_when_the_first_fails(time, error):
    first, second = ScriptedProvider(lambda spec: error), ScriptedProvider("yes", name="other", model="other-1")
    engine = ExecutionEngine(first, fallback=[second], retries=1, **time.options())
    answer = await engine.complete("hello", model="big")
    assert (answer.content, answer.provider, answer.model) == ("yes", "other", "other-1")
    assert first.requests[0].model == "big"
    assert engine.statistics()["fallbacks"] == 1
    pieces = [piece.text async for piece in engine.stream("hello")]
    assert pieces == ["yes", ""]


async def test_a_first_provider_that_is_down_is_soon_not_asked(time):
    first, second = ScriptedProvider(lambda spec: ModelUnavailable("down")), ScriptedProvider("yes")
    breaker = CircuitBreaker(failures=4, pause="30s")
    engine = ExecutionEngine(first, fallback=[second], retries=1, breaker=breaker, backoff="10ms", **time.options())
    for _ in range(10):
        assert (await engine.complete("hello")).content == "yes"
    assert (len(first.requests), len(second.requests)) == (4, 10)


async def test_what_is_wrong_with_the_request_is_asked_of_nobody_else():
    second = ScriptedProvider("yes")
    engine = ExecutionEngine(ScriptedProvider([RequestRefused("no")]), fallback=[second])
    with pytest.raises(RequestRefused):
        await engine.complete("hello")
    assert second.requests == []


@pytest.mark.parametrize("way", ["complete", "stream"])
async def test_another_provider_is_asked_without_what_it_does_not_take_and_one_warning_says_so(time, caplog, way):
    first = ScriptedProvider(lambda spec: ModelUnavailable("down"))
    same, other = ScriptedProvider("yes", model="same-2"), ScriptedProvider("yes", name="other")
    same.lacks, other.lacks = frozenset({"seed"}), frozenset({"seed", "stop"})
    asked = {"seed": 7, "stop": ("END",), "temperature": 0.5, "max_tokens": 9, "options": {"reasoning_effort": "low"}}
    for second in (same, other):
        engine = ExecutionEngine(first, fallback=[second], retries=0, **time.options())
        for _ in range(2):
            if way == "complete":
                await engine.complete("hello", model="big", **asked)
            else:
                assert [piece.text async for piece in engine.stream("hello", model="big", **asked)] == ["yes", ""]
    whole = first.requests[0]
    assert {name: getattr(whole, name) for name in asked} == asked
    assert same.requests == [msgspec.structs.replace(whole, model="", seed=None)] * 2
    assert other.requests == [msgspec.structs.replace(whole, model="", seed=None, stop=(), options={})] * 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "scripted has no seed= of scripted, which is left out",
        *(f"other has no {name}= of scripted, which is left out" for name in ("options", "seed", "stop")),
    ]


async def test_middleware_changes_the_request_to_each_provider_once(time):
    async def polite(call, forward):
        call.spec = msgspec.structs.replace(call.spec, messages=(*call.spec.messages, user("Please.")))
        return await forward(call)

    first, second = ScriptedProvider(lambda spec: ModelUnavailable("down")), ScriptedProvider("yes")
    engine = ExecutionEngine(first, fallback=[second], retries=0, middleware=[polite, *MIDDLEWARE], **time.options())
    await engine.complete("hello")
    assert [each.text for each in second.requests[0].messages] == ["hello", "Please."]


async def test_a_stream_that_broke_off_is_not_begun_anew_elsewhere(time):
    first, second = ScriptedProvider([("half", ModelUnavailable("gone"))]), ScriptedProvider("yes")
    stream = ExecutionEngine(first, fallback=[second], **time.options()).stream("hello")
    assert (await anext(stream)).text == "half"
    with pytest.raises(ModelUnavailable):
        await anext(stream)
    assert second.requests == []


async def test_the_answer_of_another_provider_is_not_kept_for_the_first(time):
    first = ScriptedProvider([ModelUnavailable("down"), "mine"])
    engine = ExecutionEngine(
        first, fallback=[ScriptedProvider("yes", name="other")], retries=0, cache=MemoryCache(), **time.options()
    )
    assert [(await engine.complete("hello")).content for _ in range(3)] == ["yes", "mine", "mine"]


async def test_a_minute_without_the_provider_is_waited_out(time):
    came = time.clock.monotonic() + 60

    def answer(spec):
        return "yes" if time.clock.monotonic() >= came else ModelUnavailable("down")

    provider = ScriptedProvider(answer)
    engine = ExecutionEngine(provider, retries=10, **time.options())
    answers = await engine.complete_many([f"{number}" for number in range(50)])
    assert len(answers) == 50


# -- figures, and the end ---------------------------------------------------------------------------------------------


async def test_statistics_count_calls_attempts_tokens_and_money(time):
    prices = PriceTable({"scripted-1": Price("1000000", "2000000")}, version="v")
    usage = Usage(10, 5, 4, 0, 3)
    provider = ScriptedProvider(
        [ModelUnavailable("down"), Completion(message=assistant("yes"), usage=usage), RequestRefused("no")]
    )
    engine = ExecutionEngine(provider, prices=prices, **time.options())
    assert (await engine.complete("hello")).cost == Decimal(20)
    with pytest.raises(RequestRefused):
        await engine.complete("hello")
    found = engine.statistics()
    assert found.pop("seconds_total") >= 0
    assert sum(found.pop("durations")[:-1]) == 3
    assert found == {
        "calls": 2,
        "in_flight": 0,
        "failed": 1,
        "unasked": 0,
        "attempts": 3,
        "failed_attempts": 2,
        "retries": 1,
        "overloads": 0,
        "fallbacks": 0,
        "input_tokens": 10,
        "output_tokens": 5,
        "cached_tokens": 4,
        "reasoning_tokens": 3,
        "cost": Decimal(20),
        "tool_calls": 0,
        "failed_tool_calls": 0,
        "tool_seconds": 0.0,
        "waiting": 0,
        "limit": 64,
    }


async def test_a_model_without_a_price_has_no_cost():
    prices = PriceTable({"other": Price("1", "1")}, version="v")
    assert (await ExecutionEngine(ScriptedProvider("yes"), prices=prices).complete("hello")).cost is None


async def test_the_vendor_gets_the_idempotency_key_also_without_a_tracker():
    provider = ScriptedProvider("yes")
    await ExecutionEngine(provider).complete("hello", idempotency_key="k")
    assert provider.keys == ["k"]


async def test_close_ends_streams_and_shared_calls_and_no_call_is_made_afterwards():
    provider = ScriptedProvider("yes")
    provider.hold()
    engine = ExecutionEngine(provider, idempotency_tracker=IdempotencyTracker())
    call = asyncio.create_task(engine.complete("hello", idempotency_key="k"))
    stream = asyncio.create_task(anext(engine.stream("hello")))
    await provider.arrived(2)
    await engine.close()
    await engine.close()
    for each in (call, stream):
        with pytest.raises(ModelUnavailable, match="was cancelled"):
            await each
    assert (provider.closed, provider.in_flight) == (True, 0)
    with pytest.raises(UserError, match="the engine is closed"):
        await engine.complete("hello")


async def test_what_cannot_be_closed_keeps_nothing_else_open():
    class Stuck(ScriptedProvider):
        async def close(self):
            raise OSError("the connection is stuck")

    class Cache(MemoryCache):
        closed = False

        async def close(self):
            self.closed = True

    other, cache = ScriptedProvider("yes"), Cache()
    engine = ExecutionEngine(Stuck("yes"), fallback=[other], cache=cache)
    with pytest.raises(OSError, match="stuck"):
        await engine.close()
    assert (other.closed, cache.closed) == (True, True)


def test_an_engine_belongs_to_one_event_loop_until_that_is_closed():
    """In the next one nothing is in flight any more, whatever was left behind in the one before."""
    provider = ScriptedProvider("yes")
    engine = ExecutionEngine(provider, limits=Limits(concurrency=1))
    provider.hold()

    async def leave_behind():
        calls = [asyncio.ensure_future(engine.complete("hello")) for _ in range(2)]
        await provider.arrived(1)
        return calls

    with asyncio.Runner() as first:
        first.run(leave_behind())
        with asyncio.Runner() as second, pytest.raises(UserError, match="in use in another event loop"):
            second.run(engine.complete("hello"))
    provider.release()
    assert asyncio.run(engine.complete("hello")).content == "yes"
