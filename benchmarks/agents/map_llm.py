"""map_llm over rows of which half have a prompt that came before: requests, rows a second, and how near that is to the ideal.

    python benchmarks/agents/map_llm.py --rows 100000 --concurrency 200 --latency-ms 100

Rows of a file -> `map_llm("Sentiment of: {text}", …)` -> a sink. Row 2i has a new prompt, row 2i + 1 one of the 2,000 before it. The
provider answers in this process, after the latency: FakeModelServer and the vendors' HTTP clients would be the bound, at some hundred
microseconds of CPU a request. `seconds` runs from the first request to the last row in the sink. The ideal is concurrency / latency
requests a second; `share` is of that. `by_hand_share`: the same prompts, each distinct one once, from `engine.complete_many`.
Memory: of the process after a tenth of the rows, and at the end. Checked: every row's answer and, where ordered, its place; that no prompt
was asked twice. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import resource
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sabot import App, Batch, Sink, files
from sabot.llm import Completion, Embeddings, ExecutionEngine, Limits, Piece, RequestSpec, Usage, assistant

NEAR = 2000  # a repeated prompt is one of so many before it
OUTPUT = {"label": "string", "score": "float64"}
USAGE = Usage(input_tokens=12, output_tokens=12)


class Model:
    """A provider that answers after a time; asked: how many requests there were, began: when the first one came."""

    name, model, lacks = "bench", "bench-1", frozenset[str]()

    def __init__(self, latency_s: float) -> None:
        self.asked, self.began, self.least_s = 0, 0.0, float("inf")
        self._latency_s = latency_s

    async def complete(self, spec: RequestSpec, **_: Any) -> Completion:
        """The length of the prompt's text, as a score."""
        came = time.perf_counter()
        if not self.asked:
            self.began = came
        self.asked += 1
        await asyncio.sleep(self._latency_s)
        self.least_s = min(self.least_s, time.perf_counter() - came)
        text = spec.messages[-1].text
        said = f'{{"label": "{text[-7:]}", "score": {len(text)}}}'
        return Completion(message=assistant(said), usage=USAGE, provider=self.name, model=self.model, request_id="1")

    def stream(self, spec: RequestSpec, **_: Any) -> AsyncGenerator[Piece, None]:
        """Not for this benchmark."""
        raise NotImplementedError

    async def embed(self, texts: Sequence[str], **_: Any) -> Embeddings:
        """Not for this benchmark."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


class Keep(Sink):
    """Keeps what comes, and when the last of it came; memory: of the process, after a tenth of the rows and at the end."""

    def __init__(self, rows: int) -> None:
        self.name = "answers"
        self.batches: list[pa.RecordBatch] = []
        self.last, self.rows, self.all = 0.0, 0, rows
        self.memory: list[float] = []

    def open(self) -> None:
        """Nothing to do."""

    def write(self, batch: Batch) -> None:
        self.batches.append(batch.data)
        self.rows += batch.num_rows
        self.last = time.perf_counter()
        if self.rows >= self.all * (0.1, 1.0)[min(len(self.memory), 1)]:
            self.memory.append(resident_mb())

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def texts_of(rows: int) -> list[str]:
    """Half of them, or one more, are distinct."""
    rng = random.Random(7)
    return [
        f"review number {n if n % 2 == 0 else 2 * rng.randrange(max(0, n - NEAR) // 2, n // 2 + 1):07}"
        for n in range(rows)
    ]


def by_stream(model: Model, path: Path, texts: list[str], concurrency: int, ordered: bool) -> tuple[float, list[float]]:
    """-> seconds, memory."""
    engine = ExecutionEngine(model, limits=Limits(concurrency=concurrency))
    kept = Keep(len(texts))
    app = App("map_llm")
    stream = app.stream(files(path), schema={"n": "int64", "text": "string"})
    stream.map_llm("Sentiment of: {text}", engine, output=OUTPUT, ordered=ordered).to(kept)
    app.main()
    table = pa.Table.from_batches(kept.batches)
    assert not ordered or table.column("n").to_pylist() == list(range(len(texts))), "not in order"
    table = table.sort_by("n")
    assert table.column("text").to_pylist() == texts
    assert pc.all(pc.equal(table.column("label"), pc.utf8_slice_codeunits(table.column("text"), -7))).as_py()
    assert set(table.column("score").to_pylist()) == {float(len("Sentiment of: " + texts[0]))}
    assert model.asked == len(set(texts)), f"{model.asked} requests for {len(set(texts))} prompts"
    return kept.last - model.began, kept.memory


async def by_hand(model: Model, texts: list[str], concurrency: int) -> float:
    """-> seconds."""
    engine = ExecutionEngine(model, limits=Limits(concurrency=concurrency))
    prompts = [f"Sentiment of: {text}" for text in dict.fromkeys(texts)]
    await engine.complete_many(prompts, output=OUTPUT, concurrency=concurrency)
    return time.perf_counter() - model.began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--latency-ms", type=float, default=100.0)
    options = parser.parse_args()
    latency_s, texts = options.latency_ms / 1000, texts_of(options.rows)
    distinct = len(set(texts))
    ideal_s = distinct * latency_s / options.concurrency
    seconds: dict[str, float] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), path)
        for name in ("ordered", "unordered"):
            model = Model(latency_s)
            seconds[name], memory[name] = by_stream(model, path, texts, options.concurrency, name == "ordered")
            assert model.least_s >= latency_s - 1e-3, f"an answer came after {model.least_s} s"
    seconds["by_hand"] = asyncio.run(by_hand(Model(latency_s), texts, options.concurrency))
    share = {name: round(ideal_s / taken, 3) for name, taken in seconds.items()}
    result = {
        "benchmark": "map_llm",
        "rows": options.rows,
        "requests": distinct,
        "concurrency": options.concurrency,
        "latency_ms": options.latency_ms,
        "seconds": round(seconds["ordered"], 3),
        "rows_per_s": round(options.rows / seconds["ordered"]),
        "share": share["ordered"],
        "unordered_share": share["unordered"],
        "by_hand_share": share["by_hand"],
        "memory_mb": memory["ordered"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
