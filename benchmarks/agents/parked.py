"""Jobs that wait for a person: what each of them costs in memory, and how soon one goes on when the answer is there.

    python benchmarks/agents/parked.py --rows 100000 --wakes 2000 --rate 100

--rows jobs of a durable agent are read from a file; each asks for an approval and parks. The first --wakes of them make --effects `read`
steps before that. Then --wakes approvals are given, --rate a second, in another thread through an inbox of its own, as another process
would give them.

    bytes_each         RSS that a parked job adds: the slope of a line through RSS against the jobs that are parked, from a fifth of them on
    parked_per_s       jobs that begin, ask and park
    wake_p50_ms, _p99  from the answer's being durable until the function goes on behind `ctx.ask`, its history read and its steps replayed
    checkpoint_ms      of a checkpoint with all of them parked
    restart_s          from the next start until all that were not answered are parked again

Checked: each job whose answer was given went on once, its steps were called once, and all others are parked still; the restart runs no
function. The last line is one
JSON object.
"""

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "pipelines"))
from journal import fsync_ms
from memory_flat import rss_mb

from sabot import App
from sabot.connectors.files import NdjsonSource
from sabot.journal import open_inbox, open_reader
from sabot.journal.entries import Intent, Letter

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 1200.0


class Approvals:
    """The app, and when its jobs went on."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.woken: dict[int, list[float]] = {}
        self.calls = 0
        self.runs = 0
        self.app = App("approvals", state=str(folder / "state"), checkpoint_interval="10m")

        async def step(number: int) -> int:
            self.calls += 1
            return number

        @self.app.agent(NdjsonSource(folder / "orders.ndjson"), durable=True, concurrency=64)
        async def approve(ctx: Any) -> None:
            self.runs += 1
            order = ctx.message["order"]
            if order < options.wakes:
                for number in range(options.effects):
                    assert await ctx.step(step, number, effect="read") == number
            answer = await ctx.ask("confirm", {"order": order})
            assert answer.approved
            self.woken.setdefault(order, []).append(time.perf_counter())

    def parked(self) -> int:
        """How many jobs are parked."""
        return int(self.app.statistics()["jobs"].get("parked", 0))

    async def until(self, true: Any, what: str) -> None:
        """Returns when it is true."""
        limit = time.monotonic() + PATIENCE_SECONDS
        while not true():
            assert time.monotonic() < limit, f"waited {PATIENCE_SECONDS:g} s in vain for {what}"
            assert not self.app.statistics()["failure"], self.app.statistics()["failure"]
            await asyncio.sleep(LOOK_SECONDS)


def tokens(address: str, orders: int) -> dict[int, str]:
    """Of the questions of the first orders."""
    reader = open_reader(address)
    asked = (entry for _, entry in reader.read() if isinstance(entry, Intent) and entry.kind == "ask")
    found = {json.loads(bytes(entry.body))["order"]: entry.token for entry in asked}  # type: ignore[arg-type]
    reader.close()
    return {order: found[order] for order in range(orders)}


def give(address: str, questions: dict[int, str], rate: float, given: dict[int, float]) -> None:
    """Answers each of them, so many a second. given: when each answer was durable."""
    inbox = open_inbox(address)
    began = time.perf_counter()
    for number, (order, token) in enumerate(questions.items()):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        inbox.post(Letter("answer", token, body=b'{"approved": true}'))
        given[order] = time.perf_counter()
    inbox.close()


async def measure(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    (folder / "orders.ndjson").write_text("".join(f'{{"order": {number}}}\n' for number in range(options.rows)))
    shop = Approvals(folder, options)
    samples: list[tuple[int, float]] = []

    def all_parked() -> bool:
        samples.append((shop.parked(), rss_mb() * 1e6))
        return samples[-1][0] >= options.rows

    began = time.perf_counter()
    await shop.app.start()
    await shop.until(all_parked, "the jobs to park")
    parked_seconds = time.perf_counter() - began
    gc.collect()
    samples.append((options.rows, rss_mb() * 1e6))
    counts, sizes = np.array([each for each in samples if each[0] >= options.rows / 5]).T
    slope = round(np.polyfit(counts, sizes, 1)[0]) if len(set(counts)) > 2 else None  # too few for a line

    taken = []
    for _ in range(3):
        began = time.perf_counter()
        await shop.app.agent_runtime.trigger_checkpoint()
        taken.append(time.perf_counter() - began)

    questions = await asyncio.to_thread(tokens, str(folder / "state"), options.wakes)
    given: dict[int, float] = {}
    giver = threading.Thread(target=give, args=(str(folder / "state"), questions, options.rate, given), daemon=True)
    giver.start()
    await shop.until(lambda: len(shop.woken) == options.wakes, "the answered jobs to go on")
    giver.join()
    await shop.until(lambda: shop.parked() == options.rows - options.wakes, "the answered jobs to end")
    assert all(len(times) == 1 for times in shop.woken.values()), "a job went on twice"
    assert shop.calls == options.wakes * options.effects, f"{shop.calls} calls"
    await shop.app.stop()
    again = Approvals(folder, options)
    began = time.perf_counter()
    await again.app.start()
    await again.until(lambda: again.parked() == options.rows - options.wakes, "the restarted jobs to park")
    restart_s = time.perf_counter() - began
    assert not again.runs, f"{again.runs} runs at the restart"
    await again.app.stop()
    waits = sorted(shop.woken[order][0] - given[order] for order in questions)
    return {
        "bytes_each": slope,
        "parked_per_s": round(options.rows / parked_seconds),
        "wake_p50_ms": round(waits[len(waits) // 2] * 1000, 2),
        "wake_p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2),
        "checkpoint_ms": round(median(taken) * 1000, 2),
        "restart_s": round(restart_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="jobs")
    parser.add_argument("--wakes", type=int, help="of them are answered; default: 2,000, a tenth of the jobs at most")
    parser.add_argument("--rate", type=float, default=100.0, help="answers a second")
    parser.add_argument("--effects", type=int, default=20, help="of a job that is answered, before it asks")
    options = parser.parse_args()
    options.wakes = min(2_000, options.rows // 10) if options.wakes is None else options.wakes
    with tempfile.TemporaryDirectory(prefix="sabot-bench-") as folder:
        outcome: dict[str, Any] = {"benchmark": "parked", "rows": options.rows, "wakes": options.wakes}
        outcome |= {"fsync_ms": round(fsync_ms(Path(folder)), 3), **asyncio.run(measure(Path(folder), options))}
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
