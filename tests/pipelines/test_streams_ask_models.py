"""map_llm in whole apps: over HTTP, over crashes and restarts, with the requests counted."""

import asyncio
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness import Gate, Kept, Rows, until

from sabot import App
from sabot.codecs.records import iterate_records
from sabot.llm import (
    ExecutionEngine,
    Limits,
    OpenAIProvider,
    RequestRefused,
    RequestSpec,
    ScriptedProvider,
    SqliteCache,
)
from sabot.testing import FakeModelServer, ListSink

ROWS = 40
TEXTS = [f"t{n % 20}" for n in range(ROWS)]  # each of them twice
TABLE = pa.table({"n": pa.array(range(ROWS)), "text": TEXTS})
LABELS = {"label": "string", "score": "float64"}
WANT = [{"n": n, "text": text, "label": text.upper(), "score": 0.5} for n, text in enumerate(TEXTS)]


def verdict(prompt: str) -> str:
    return json.dumps({"label": prompt.rpartition(" ")[2].upper(), "score": 0.5})


def app_with(engine: ExecutionEngine, kept: Kept, gate: Gate, directory: Path, **how: Any) -> App:
    app = App("reviews", state=str(directory), checkpoint_dir=directory / "checkpoints", checkpoint_interval=3600)
    stream = app.stream(Rows(TABLE, split="all", gate=gate))
    stream.map_llm("Sentiment of: {text}", engine, output=LABELS, **how).to(kept)
    return app


@pytest.mark.parametrize("ordered", [True, False])
async def test_an_answer_that_the_checkpoint_has_is_not_paid_again(ordered: bool, tmp_path: Path) -> None:
    """Half of the questions have an answer when the checkpoint is taken; a crash. The other half is asked again, and nothing else."""
    asked: Counter[str] = Counter()

    async def answer(spec: RequestSpec) -> str:
        prompt = spec.messages[-1].text
        asked[prompt] += 1
        if prompt in slow and asked[prompt] == 1:
            await asyncio.Event().wait()
        return verdict(prompt)

    def engine() -> ExecutionEngine:
        return ExecutionEngine(ScriptedProvider(answer), limits=Limits(concurrency=20))

    prompts = {f"Sentiment of: {text}" for text in TEXTS}
    slow = {prompt for prompt in prompts if int(prompt.rpartition("t")[2]) % 2 == 0}
    first = Kept()
    asking = engine()
    left = tmp_path / "left"
    app = app_with(asking, first, Gate(), tmp_path / "life", ordered=ordered)
    await app.start()
    try:
        await until(
            lambda: len(asked) == 20 and asking.statistics()["in_flight"] == len(slow), "the answers of one half"
        )
        await app.agent_runtime.trigger_checkpoint()
        first.crash()
        shutil.copytree(
            tmp_path / "life", left
        )  # what a crash leaves: the stop below makes a checkpoint behind this one
    finally:
        await app.stop()
    assert asked == Counter(prompts)

    second = first.again()
    await asyncio.wait_for(app_with(engine(), second, Gate(), left, ordered=ordered).run(), 60)
    assert sorted(second.table().to_pylist(), key=lambda row: row["n"]) == WANT
    if ordered:
        assert second.table().to_pylist() == WANT
    assert asked == Counter({prompt: 1 + (prompt in slow) for prompt in prompts})


async def test_with_a_cache_on_disk_no_answer_is_paid_again_even_without_a_checkpoint(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def answer(spec: RequestSpec) -> str:
        asked[spec.messages[-1].text] += 1
        return verdict(spec.messages[-1].text)

    for life in ("first", "second"):
        kept = Kept()
        async with ExecutionEngine(ScriptedProvider(answer), cache=SqliteCache(tmp_path / "answers.db")) as engine:
            await asyncio.wait_for(app_with(engine, kept, Gate(), tmp_path / life).run(), 60)
        assert kept.table().to_pylist() == WANT
    assert asked == Counter({f"Sentiment of: {text}": 1 for text in TEXTS})


@pytest.mark.slow  # half a second of a core
async def test_over_http_equal_prompts_are_asked_once_and_faults_lose_no_row(tmp_path: Path) -> None:
    """Requests that are turned away, or whose connection breaks, are made again; one that is refused is a dead letter."""

    def answer(spec: RequestSpec) -> str:
        prompt = spec.messages[-1].text
        if prompt.endswith(" t7"):
            raise RequestRefused("not this one")
        return verdict(prompt)

    kept, dead = Kept(), ListSink("dead")
    with FakeModelServer(answer) as server:
        server.plan("rate_limit", times=2, seconds=0.01)
        server.plan("drop_before")
        server.plan("error")
        provider = OpenAIProvider("any", base_url=server.openai_url, api_key="any")
        async with ExecutionEngine(provider, backoff="1ms") as engine:
            app = app_with(engine, kept, Gate(), tmp_path, on_error="skip", dead_letter=dead)
            await asyncio.wait_for(app.run(), 60)
    assert kept.table().to_pylist() == [row for row in WANT if row["text"] != "t7"]
    assert len(server.requests) == 20 + 4
    letters = [record for batch in dead.batches for record in iterate_records(batch, "dead")]
    assert [json.loads(letter.payload)["n"] for letter in letters] == [7, 27]
    for letter in letters:
        headers = dict(letter.headers)
        assert headers["sabot.error"] == b"RequestRefused"
        assert headers["sabot.message"].startswith(b"openai, any, request req-")
