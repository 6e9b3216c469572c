"""A record agent: JSON in, state get + put, result out; counted from the first record read to the last result out.

    python benchmarks/pipelines/record_agent.py --rows 1000000
    python benchmarks/pipelines/record_agent.py --rows 1000000 --sleepers     one call in 1,000 sleeps 50 ms
    python benchmarks/pipelines/record_agent.py --broker kafka://localhost:19092 --state /tmp/state

Checked: as many results as records, and per account the counts 1..n, each exactly once.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter

from sabot import App
from sabot._cython.arrow.batch import Batch
from sabot.codecs.records import build_records, iterate_records
from sabot.kafka import open_sink, open_source

ACCOUNTS = 10_000


def publish(broker: str, topic: str, rows: int) -> list[int]:
    """Seeded records, 100 bytes each; -> records per account."""
    draw = random.Random(1)
    counts = [0] * ACCOUNTS
    sink = open_sink(topic, broker)
    sink.open()
    for first in range(0, rows, 10_000):
        payloads, keys = [], []
        for number in range(first, min(first + 10_000, rows)):
            account = draw.randrange(ACCOUNTS)
            counts[account] += 1
            payloads.append(
                b'{"txn_id": %d, "account": "acc%d", "amount": %.2f, "ts": %d, "merchant": "shop", "online": true}'
                % (number, account, draw.random() * 100, 1_700_000_000_000 + number)
            )
            keys.append(b"acc%d" % account)
        count = len(payloads)
        sink.write(Batch(build_records(payloads, keys, [0] * count, 0, range(count)), None, topic))
    sink.flush()
    sink.close()
    return counts


def check(broker: str, topic: str, counts: list[int]) -> None:
    """Reads the results back and compares."""
    total = sum(counts)
    source = open_source(topic, broker, "check")
    source.open(None, "earliest")
    seen: dict[str, Counter[int]] = {}
    read = 0
    while read < total:
        batch = source.read_batch(65536, 10.0)
        assert batch is not None, f"{read} results of {total}"
        read += batch.num_rows
        for record in iterate_records(batch.data, topic):
            result = json.loads(record.payload or b"")
            seen.setdefault(result["account"], Counter())[result["seen"]] += 1
    source.close()
    for account, count in enumerate(counts):
        expected = Counter(range(1, count + 1))
        assert seen.get(f"acc{account}", Counter()) == expected, f"acc{account}"


async def measure(arguments: argparse.Namespace, in_topic: str, out_topic: str) -> tuple[float, int]:
    app = App("bench", arguments.broker, state=arguments.state, checkpoint_interval=arguments.checkpoint_interval)
    sleepers = arguments.sleepers

    @app.agent(in_topic, key="account", sink=out_topic, concurrency=arguments.concurrency)
    async def count(ctx):  # type: ignore[no-untyped-def]
        state = ctx.state()
        seen = (await state.get("seen") or 0) + 1
        await state.put("seen", seen)
        if sleepers and ctx.offset % 1000 == 0:
            await asyncio.sleep(0.05)
        return {"account": ctx.message["account"], "seen": seen}

    agent = app.agent_runtime.agents["bench.count"]
    await app.start()
    began = time.perf_counter()
    while agent.messages_processed < arguments.rows:
        await asyncio.sleep(0.005)
        if agent.error is not None:
            raise agent.error
    await app.stop(drain=True)  # the last results have left
    seconds = time.perf_counter() - began
    return seconds, app.agent_runtime.checkpoint_coordinator.statistics()["completed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--broker", default="memory://")
    parser.add_argument("--state", default="memory")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--checkpoint-interval", default="1s")
    parser.add_argument("--sleepers", action="store_true")
    arguments = parser.parse_args()
    suffix = f"{time.time_ns()}"
    in_topic, out_topic = f"payments-{suffix}", f"counts-{suffix}"
    counts = publish(arguments.broker, in_topic, arguments.rows)
    seconds, checkpoints = asyncio.run(measure(arguments, in_topic, out_topic))
    check(arguments.broker, out_topic, counts)
    print(
        json.dumps(
            {
                "rows": arguments.rows,
                "seconds": round(seconds, 3),
                "rows_per_s": round(arguments.rows / seconds),
                "checkpoints": checkpoints,
                "state": arguments.state,
                "broker": arguments.broker,
                "sleepers": arguments.sleepers,
            }
        )
    )


if __name__ == "__main__":
    main()
