"""What an engine adds to a call of a model, and how it holds many of them.

    python benchmarks/agents/models.py --rows 2000 --in-flight 1000 --streams 200 --long-run 20000 --peers pydantic_ai

alone       one call after the other of a provider that answers at once in this process, then of the same provider through an engine: in
            turns, so that what else the machine does meets both. By what the engine has: nothing, output=, an idempotency key, a cache.
in_flight   --in-flight calls at once, which the provider holds until all have come
streams     --streams answers of 200 words, streamed at once
over_http   against FakeModelServer, each client in a process of its own on one core: the vendor's library alone ("sdk"), an engine, an
            agent, and with --peers pydantic_ai an agent of Pydantic AI. One call after the other; --in-flight calls at once, which the
            server answers after a second, with how many of them it saw at most; --streams streams at once; and the memory in a run of
            --long-run calls. The peer is installed into .venv-peers/.

Times in microseconds; cpu is that of this process for each call. Checked: the answers, and how many requests were made. The last line is
one JSON object.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from venvs import python_of

from sabot.llm import (
    ExecutionEngine,
    IdempotencyTracker,
    Limits,
    MemoryCache,
    RequestSpec,
    ScriptedProvider,
    user,
)
from sabot.testing import FakeModelServer

PEERS = Path(__file__).parents[1] / "peers"
PATIENCE_SECONDS = 1800
HELD_SECONDS = 1.0
ANSWER = '{"label": "good"}'
WORDS = "word " * 200
MOST_ROWS = 2000
ROUND = 50  # calls of one side, before it is the other's turn

Ask = Callable[[int], Awaitable[Any]]


async def in_turns(calls: int, sides: dict[str, Ask]) -> dict[str, dict[str, float]]:
    """Of each side the median and the 99th percentile of a call, and the CPU time for each."""
    took: dict[str, list[float]] = {side: [] for side in sides}
    cpu = dict.fromkeys(sides, 0.0)
    for first in range(0, calls, ROUND):
        for side, ask in sides.items():
            began_cpu = time.process_time()
            for number in range(first, min(first + ROUND, calls)):
                began = time.perf_counter()
                answer = await ask(number)
                took[side].append(time.perf_counter() - began)
                assert answer.content == ANSWER, answer
            cpu[side] += time.process_time() - began_cpu
    return {
        side: {
            "p50": round(median(took[side]) * 1e6, 1),
            "p99": round(sorted(took[side])[int(len(took[side]) * 0.99)] * 1e6, 1),
            "cpu": round(cpu[side] / len(took[side]) * 1e6, 1),
        }
        for side in sides
    }


async def alone(calls: int) -> dict[str, Any]:
    """One call after the other, without a network."""
    provider = ScriptedProvider(ANSWER)
    plain = ExecutionEngine(provider)
    keyed = ExecutionEngine(provider, idempotency_tracker=IdempotencyTracker())
    caching = ExecutionEngine(provider, cache=MemoryCache())
    spec = RequestSpec(messages=(user("hello"),))
    output = {"label": "string"}
    figures = await in_turns(
        calls,
        {
            "provider": lambda number: provider.complete(spec),
            "engine": lambda number: plain.complete("hello"),
            "output": lambda number: plain.complete("hello", output=output),
            "key": lambda number: keyed.complete("hello", idempotency_key=str(number)),
            "cache_miss": lambda number: caching.complete(f"hello {number}"),
            "cache_hit": lambda number: caching.complete("hello"),
        },
    )
    assert len(provider.requests) == 5 * calls + 1, len(provider.requests)
    return figures


async def answered(spec: RequestSpec) -> str:
    """What the server answers to the prompts of models_client.py."""
    match spec.messages[-1].text:
        case "wait":
            await asyncio.sleep(HELD_SECONDS)
        case "words":
            return WORDS
    return ANSWER


def over_http(options: argparse.Namespace, pythons: dict[str, str]) -> dict[str, Any]:
    """Each client in a process of its own on one core; the server has this process, and the other core."""
    found: dict[str, Any] = {}
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)  # before the server's thread, which inherits it
    asked = {"--calls": min(options.rows, 1000), "--in-flight": options.in_flight}
    asked |= {"--streams": options.streams, "--long-run": options.long_run}
    words = [str(word) for pair in asked.items() for word in pair]
    for kind, python in pythons.items():
        with FakeModelServer(answered) as server:
            done = subprocess.run(
                [python, PEERS / "models_client.py", kind, server.openai_url, *words],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=PATIENCE_SECONDS,
                preexec_fn=lambda: os.sched_setaffinity(0, cores[:1]),
            )
            figures = found[kind] = json.loads(done.stdout.splitlines()[-1])
            figures["in_flight"]["most"] = server.most_in_flight
            print(kind, figures, file=sys.stderr)
            answered_calls = asked["--calls"] + options.in_flight - figures["in_flight"]["failed"]
            calls = 50 + answered_calls + options.streams + figures["long_run"]["calls"]
            assert len(server.requests) >= calls, (kind, len(server.requests), calls)
    return found


async def in_flight(calls: int) -> dict[str, float]:
    """All calls at once."""
    provider = ScriptedProvider(ANSWER)
    engine = ExecutionEngine(provider, limits=Limits(concurrency=calls))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    provider.hold()
    began, began_cpu = time.perf_counter(), time.process_time()
    asked = asyncio.create_task(engine.complete_many([f"hello {number}" for number in range(calls)], concurrency=calls))
    await provider.arrived(calls)
    assert engine.statistics()["in_flight"] == calls
    provider.release()
    answers = await asked
    cpu = time.process_time() - began_cpu
    assert [answer.content for answer in answers] == [ANSWER] * calls
    return {
        "calls": calls,
        "seconds": round(time.perf_counter() - began, 3),
        "cpu": round(cpu / calls * 1e6, 1),
        "kb_each": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / calls, 1),
    }


async def streams(count: int) -> dict[str, float]:
    """All streams at once; the CPU time is for each piece, beside that of the provider's own streams."""
    spec = RequestSpec(messages=(user("hello"),))
    provider = ScriptedProvider(WORDS)
    engine = ExecutionEngine(provider, limits=Limits(concurrency=count))

    async def read(stream: Any) -> int:
        pieces = [piece async for piece in stream]
        assert pieces[-1].completion.content == WORDS
        return len(pieces)

    figures: dict[str, float] = {"streams": count}
    for side, ask in (("provider", provider.stream), ("engine", engine.stream)):
        began_cpu = time.process_time()
        pieces = await asyncio.gather(*(read(ask(spec)) for _ in range(count)))
        assert pieces == [201] * count
        figures[f"{side}_cpu_a_piece"] = round((time.process_time() - began_cpu) / sum(pieces) * 1e6, 2)
    return figures


async def in_process(options: argparse.Namespace) -> dict[str, Any]:
    rows = min(options.rows, MOST_ROWS)
    return {
        "alone": await alone(rows),
        "in_flight": await in_flight(options.in_flight),
        "streams": await streams(options.streams),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=MOST_ROWS, help=f"calls of each side, {MOST_ROWS} at most")
    parser.add_argument("--in-flight", type=int, default=1000, help="calls at once")
    parser.add_argument("--streams", type=int, default=200, help="streams at once")
    parser.add_argument("--long-run", type=int, default=640, help="calls of each client")
    parser.add_argument("--peers", default="none", choices=("none", "pydantic_ai"))
    options = parser.parse_args()
    for name in ("in_flight", "streams", "long_run"):  # few rows are a look at the answers
        setattr(options, name, min(getattr(options, name), options.rows))
    options.streams = min(options.streams, max(1, options.rows // 10))  # each has 200 pieces
    pythons = dict.fromkeys(("sdk", "engine", "agent"), sys.executable)
    if options.peers != "none":
        pythons[options.peers] = python_of(options.peers)
    figures = asyncio.run(in_process(options))
    print(json.dumps({"benchmark": "models", **figures, "over_http": over_http(options, pythons)}))


if __name__ == "__main__":
    main()
