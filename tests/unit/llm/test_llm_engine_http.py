"""`ExecutionEngine` over HTTP: what reaches a server that counts, and what becomes of a server that breaks."""

import asyncio
import gc
import logging
import warnings
from contextlib import aclosing

import pytest

from sabot.llm import (
    AuthenticationFailed,
    ExecutionEngine,
    IdempotencyTracker,
    Limits,
    MemoryCache,
    ModelUnavailable,
    OpenAIProvider,
)
from sabot.testing import FakeModelServer

KEY = "sk-live-0123456789abcdef"


def openai(server):
    return OpenAIProvider("any", base_url=server.openai_url, api_key=KEY)


async def until(server, condition):
    """Waits beside the event loop for what the server has seen."""
    await asyncio.to_thread(server.wait, condition)


@pytest.mark.slow  # half a second of a core
async def test_calls_with_one_key_are_one_request_in_flight_and_afterwards():
    with FakeModelServer("yes") as server:
        async with ExecutionEngine(openai(server), idempotency_tracker=IdempotencyTracker()) as engine:
            server.hold()
            calls = [asyncio.create_task(engine.complete("hello", idempotency_key="k")) for _ in range(8)]
            await until(server, lambda: server.requests)
            server.release()
            assert {answer.content for answer in await asyncio.gather(*calls)} == {"yes"}
            assert (await engine.complete("hello", idempotency_key="k")).content == "yes"
            texts = [piece.text async for piece in engine.stream("hello", idempotency_key="k")]
            assert texts == ["yes", ""]
        assert len(server.requests) == 1


async def test_equal_prompts_are_one_request():
    with FakeModelServer(lambda spec: spec.messages[-1].text.upper()) as server:
        async with ExecutionEngine(openai(server), cache=MemoryCache(), limits=Limits(concurrency=16)) as engine:
            answers = await engine.complete_many([f"text {number % 20}" for number in range(100)])
        assert [answer.content for answer in answers[:3]] == ["TEXT 0", "TEXT 1", "TEXT 2"]
        assert len(server.requests) == 20
        assert server.most_in_flight <= 16


async def test_faults_of_all_kinds_are_outlived(time):
    faults = {"rate_limit": 0.1, "overloaded": 0.1, "error": 0.1, "truncate": 0.1, "drop_before": 0.1}
    with FakeModelServer(lambda spec: spec.messages[-1].text, faults=faults, seed=7, seconds=2.0) as server:
        engine = ExecutionEngine(openai(server), retries=20, limits=Limits(concurrency=8), **time.options())
        async with engine:
            prompts = [f"text {number}" for number in range(20)]
            answers = await engine.complete_many(prompts)
            assert [answer.content for answer in answers] == prompts
            figures = engine.statistics()
        assert figures["overloads"] > 0
        assert figures["retries"] >= figures["overloads"]
        assert len(server.requests) == figures["attempts"] == 20 + figures["retries"]


async def test_a_stream_that_is_truncated_is_told_and_one_that_is_closed_is_abandoned(time):
    with FakeModelServer("word " * 1000) as server:
        async with ExecutionEngine(openai(server), **time.options()) as engine:
            server.plan("truncate")
            stream = engine.stream("hello")
            assert (await anext(stream)).text
            with pytest.raises(ModelUnavailable):
                [piece async for piece in stream]
            server.plan("slow", seconds=0.02)
            async with aclosing(engine.stream("hello")) as pieces:
                assert (await anext(pieces)).text
            await until(server, lambda: server.abandoned == 1)
            assert len(server.requests) == 2


async def test_a_key_that_is_wrong_is_in_no_error_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    with FakeModelServer("yes", keys=["another"]) as server:
        provider = openai(server)
        async with ExecutionEngine(provider) as engine:
            with pytest.raises(AuthenticationFailed) as caught:
                await engine.complete("hello", idempotency_key="k")
            assert KEY not in f"{caught.value} {caught.value!r} {engine!r} {provider!r} {engine.statistics()}"
        assert len(server.requests) == 1
    assert caplog.records
    assert KEY not in caplog.text


def test_the_connections_of_an_event_loop_are_closed_with_it(caplog):
    """A program in a thread asks a model (`map_llm(…).collect()`), then another loop closes the engine. The connections of the first loop
    stayed open, and when they were collected the vendor's library closed them in the second loop: "Event loop is closed"."""
    with FakeModelServer("yes") as server, warnings.catch_warnings(record=True) as left_open:
        warnings.simplefilter("always")

        async def ask(engine):
            return (await engine.complete("hello")).content

        async def close(engine):
            assert await asyncio.to_thread(asyncio.run, ask(engine)) == "yes"
            await engine.close()

        asyncio.run(close(ExecutionEngine(openai(server))))
        gc.collect()
        assert [str(each.message) for each in left_open if issubclass(each.category, ResourceWarning)] == []
    assert "Event loop is closed" not in caplog.text
