"""`ScriptedProvider`: what it answers, counts, and lets a test wait for."""

import asyncio
from contextlib import aclosing

import numpy as np
import pytest

from sabot.errors import UserError
from sabot.llm import (
    Completion,
    ModelTimeout,
    ModelUnavailable,
    Provider,
    RateLimited,
    RequestSpec,
    ScriptedProvider,
    ToolCall,
    Usage,
    assistant,
    system,
    user,
)


def spec(text="hello", **fields):
    return RequestSpec(messages=(user(text),), **fields)


async def pieces(provider, **options):
    return [piece async for piece in provider.stream(spec(), **options)]


async def test_one_answer_is_that_of_every_request():
    provider = ScriptedProvider("yes")
    answers = [await provider.complete(spec(), idempotency_key=key) for key in "ab"]
    assert [answer.content for answer in answers] == ["yes", "yes"]
    assert (provider.requests, provider.keys) == ([spec(), spec()], ["a", "b"])
    assert [answer.request_id for answer in answers] == ["scripted-1", "scripted-2"]
    assert isinstance(provider, Provider)


async def test_a_list_is_answered_one_after_the_other_and_ends():
    provider = ScriptedProvider(
        ["one", RateLimited("slow down", retry_after_s=2.0), assistant("", ToolCall("1", "f", "{}"))]
    )
    assert (await provider.complete(spec())).content == "one"
    with pytest.raises(RateLimited) as caught:
        await provider.complete(spec(model="other"))
    assert (caught.value.provider, caught.value.model, caught.value.retry_after_s) == ("scripted", "other", 2.0)
    called = await provider.complete(spec())
    assert (called.finish_reason, called.tool_calls) == ("tool_calls", (ToolCall("1", "f", "{}"),))
    with pytest.raises(UserError, match="has 3 answers"):
        await provider.complete(spec("too many"))
    assert len(provider.requests) == 4


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_answers_what_it_makes_of_the_request(is_async):
    async def later(asked):
        return asked.messages[-1].text[::-1]

    provider = ScriptedProvider(later if is_async else lambda asked: asked.messages[-1].text[::-1])
    assert (await provider.complete(spec("abc"))).content == "cba"


async def test_a_stream_comes_in_words_and_ends_with_the_whole():
    call = ToolCall("1", "look", '{"at": 1}')
    found = await pieces(ScriptedProvider(assistant("I look.", call)))
    assert [piece.tool_call for piece in found] == [None, call, None]
    found = await pieces(ScriptedProvider("to be, or  not"))
    assert [piece.text for piece in found] == ["to ", "be, ", "or  ", "not", ""]
    assert found[-1].completion == await ScriptedProvider("to be, or  not").complete(spec())
    assert [piece.text for piece in await pieces(ScriptedProvider(("a b", "c")))] == ["a b", "c", ""]


async def test_a_stream_breaks_off_where_the_script_says():
    provider = ScriptedProvider(("half of", ModelUnavailable("gone")))
    stream = provider.stream(spec())
    assert (await anext(stream)).text == "half of"
    with pytest.raises(ModelUnavailable):
        await anext(stream)
    assert (provider.in_flight, provider.cancelled) == (0, 0)


async def test_tokens_are_counted_unless_the_answer_says_them():
    asked = RequestSpec(messages=(system("four"), user("eight ch")))
    assert (await ScriptedProvider("12345").complete(asked)).usage == Usage(3, 2)
    for said in (None, Usage(7, 1, 3)):
        provider = ScriptedProvider(Completion(message=assistant("x"), usage=said, finish_reason="length"))
        answer = await provider.complete(asked)
        assert (answer.usage, answer.finish_reason) == (said, "length")


async def test_held_requests_wait_and_count_as_in_flight():
    provider = ScriptedProvider("yes")
    provider.hold()
    calls = [asyncio.create_task(provider.complete(spec())) for _ in range(3)]
    await provider.arrived(3)
    assert (provider.in_flight, provider.most_in_flight) == (3, 3)
    calls[0].cancel()
    provider.release()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError, Completion, Completion]
    assert (provider.in_flight, provider.most_in_flight, provider.cancelled) == (0, 3, 1)


async def test_a_stream_that_is_closed_early_counts_as_cancelled():
    provider = ScriptedProvider("one two three")
    async with aclosing(provider.stream(spec())) as stream:
        assert (await anext(stream)).text == "one "
    assert (provider.in_flight, provider.cancelled) == (0, 1)


async def test_what_is_held_too_long_is_a_timeout():
    provider = ScriptedProvider("late")
    provider.hold()
    with pytest.raises(ModelTimeout, match=r"scripted, scripted-1: no answer in 0\.001 s"):
        await provider.complete(spec(), timeout_s=0.001)
    assert provider.in_flight == 0


async def test_what_is_no_answer_is_refused():
    for wrong in (7, ("a", 1), (), lambda _: None):
        with pytest.raises(UserError, match="the script of the model answers"):
            await ScriptedProvider(wrong).complete(spec())
    for raw in ({"choices": []}, b"{}", [[{"choices": []}]]):
        with pytest.raises(UserError, match="which only a server sends"):
            await ScriptedProvider(raw).complete(spec())


async def test_equal_texts_have_equal_vectors():
    provider = ScriptedProvider("", dimensions=4)
    found = await provider.embed(["a", "b", "a"])
    assert found.vectors.shape == (3, 4)
    assert np.array_equal(found.vectors[0], found.vectors[2])
    assert not np.array_equal(found.vectors[0], found.vectors[1])
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1)
    assert (provider.embedded, (await provider.embed([])).vectors.shape) == (["a", "b", "a"], (0, 4))


async def test_after_close_no_call_is_made():
    provider = ScriptedProvider("yes")
    await provider.close()
    await provider.close()
    with pytest.raises(UserError, match="closed"):
        await provider.complete(spec())
