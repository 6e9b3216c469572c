"""One client of benchmarks/agents/models.py, in a process of its own with one event loop: it asks the server of the benchmark over HTTP.

    sdk          the vendor's library alone: openai.AsyncOpenAI
    engine       sabot.llm.ExecutionEngine
    agent        sabot.llm.Agent
    pydantic_ai  pydantic_ai.Agent, in its own environment (requirements-pydantic_ai.txt)

The last line is one JSON object. Checked: each answer.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ANSWER = '{"label": "good"}'
WORDS = "word " * 200
AT_ONCE = 64  # calls of the long run
TIMEOUT_S = (
    120.0  # that of an engine; by default the library waits 5 s for a connection, too short for 1,000 on a busy core
)


class Client(NamedTuple):
    """ask: the text of the answer. stream: its pieces."""

    ask: Callable[[str], Awaitable[str]]
    stream: Callable[[str], AsyncIterator[str]]


def of_sdk(url: str, at_once: int) -> Client:
    from openai import AsyncOpenAI

    create = AsyncOpenAI(base_url=url, api_key="any", timeout=TIMEOUT_S).chat.completions.create

    async def ask(prompt: str) -> str:
        answer = await create(model="any", messages=[{"role": "user", "content": prompt}])
        return answer.choices[0].message.content or ""

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for chunk in await create(model="any", messages=[{"role": "user", "content": prompt}], stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content

    return Client(ask, stream)


def engine_at(url: str, at_once: int) -> Any:
    from sabot.llm import ExecutionEngine, Limits, OpenAIProvider

    return ExecutionEngine(OpenAIProvider("any", base_url=url, api_key="any"), limits=Limits(concurrency=at_once))


def of_engine(url: str, at_once: int) -> Client:
    engine = engine_at(url, at_once)

    async def ask(prompt: str) -> str:
        return str((await engine.complete(prompt)).content)

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for piece in engine.stream(prompt):
            if piece.text:
                yield piece.text

    return Client(ask, stream)


def of_agent(url: str, at_once: int) -> Client:
    from sabot.llm import Agent, Piece

    agent = Agent(engine_at(url, at_once))

    async def ask(prompt: str) -> str:
        return (await agent.run(prompt)).content

    async def stream(prompt: str) -> AsyncIterator[str]:
        async for event in agent.stream(prompt):
            if isinstance(event, Piece) and event.text:
                yield event.text

    return Client(ask, stream)


def of_pydantic_ai(url: str, at_once: int) -> Client:
    from openai import AsyncOpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    client = AsyncOpenAI(base_url=url, api_key="any", timeout=TIMEOUT_S)
    agent = Agent(OpenAIChatModel("any", provider=OpenAIProvider(openai_client=client)))

    async def ask(prompt: str) -> str:
        return (await agent.run(prompt)).output

    async def stream(prompt: str) -> AsyncIterator[str]:
        async with agent.run_stream(prompt) as answer:
            async for text in answer.stream_text(delta=True, debounce_by=None):
                yield text

    return Client(ask, stream)


CLIENTS = {"sdk": of_sdk, "engine": of_engine, "agent": of_agent, "pydantic_ai": of_pydantic_ai}


def rss_mb() -> float:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def one_by_one(client: Client, calls: int) -> dict[str, float]:
    took = []
    began_cpu = time.process_time()
    for _ in range(calls):
        began = time.perf_counter()
        answer = await client.ask("hello")
        took.append(time.perf_counter() - began)
        assert answer == ANSWER, answer
    cpu = time.process_time() - began_cpu
    return {
        "p50_us": round(median(took) * 1e6),
        "p99_us": round(sorted(took)[int(calls * 0.99)] * 1e6),
        "cpu_us": round(cpu / calls * 1e6),
    }


async def at_once(client: Client, calls: int) -> dict[str, float]:
    """All calls at once. failed: by a time-out of the client's own, after the attempts that it makes."""
    before, began, began_cpu = rss_mb(), time.perf_counter(), time.process_time()
    answers = await asyncio.gather(*(client.ask("wait") for _ in range(calls)), return_exceptions=True)
    cpu = time.process_time() - began_cpu
    failed = [answer for answer in answers if isinstance(answer, Exception)]
    assert set(answers) - set(failed) <= {ANSWER}
    return {
        "failed": len(failed),
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_us": round(cpu / calls * 1e6),
        "kb_each": round((rss_mb() - before) / calls * 1e3, 1),
    }


async def streamed(client: Client, count: int) -> dict[str, float]:
    """All streams at once."""

    async def read() -> int:
        texts = [text async for text in client.stream("words")]
        assert "".join(texts) == WORDS, texts[:5]
        return len(texts)

    began, began_cpu = time.perf_counter(), time.process_time()
    pieces = sum(await asyncio.gather(*(read() for _ in range(count))))
    cpu = time.process_time() - began_cpu
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "pieces": pieces,
        "cpu_us_a_piece": round(cpu / pieces * 1e6, 1),
    }


async def long_run(client: Client, calls: int) -> dict[str, float]:
    """Memory after a quarter of the calls, and after all."""
    seen: list[float] = []

    async def work(calls: int) -> None:
        for _ in range(calls):
            assert await client.ask("hello") == ANSWER

    for _ in range(4):
        await asyncio.gather(*(work(calls // 4 // AT_ONCE) for _ in range(AT_ONCE)))
        seen.append(round(rss_mb(), 1))
    return {"calls": calls // 4 // AT_ONCE * AT_ONCE * 4, "rss_quarter_mb": seen[0], "rss_end_mb": seen[-1]}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    client = CLIENTS[options.kind](options.url, max(options.in_flight, options.streams, AT_ONCE))
    await one_by_one(client, 50)
    return {
        "one_by_one": await one_by_one(client, options.calls),
        "in_flight": await at_once(client, options.in_flight),
        "streams": await streamed(client, options.streams),
        "long_run": await long_run(client, options.long_run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--long-run", type=int, required=True)
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
