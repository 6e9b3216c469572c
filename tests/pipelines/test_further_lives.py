"""Steps by event time over several lives of an app, in which topics, partitions and tasks have rows or none: what all lives
have written is what one life writes that reads all rows.

    SABOT_LIVES=100 pytest tests/pipelines/test_further_lives.py          more seeds than the one of `make slow`
"""

import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import sabot
from sabot import App, Stream, cumulative, hopping, session, tumbling
from sabot.connectors.memory import MemoryBroker
from tools.agent_tools import started, until

SEEDS = int(os.environ.get("SABOT_LIVES", "1"))
SCHEMA = {"n": "int64", "k": "int64", "ts": "int64"}
SUMS = {"n": sabot.sum("n"), "c": sabot.count()}
STEPS: dict[str, Callable[[Stream, Stream], Stream]] = {
    "as of": lambda a, b: a.join_asof(b, on="k"),
    "as of a table": lambda a, b: a.join_asof(b.upsert("k"), on="k"),
    "nearest": lambda a, b: a.join_asof(b, on="k", strategy="nearest", tolerance="5s"),
    "interval": lambda a, b: a.join(b, on="k", between=("-5s", "5s"), how="left"),
    "full interval": lambda a, b: a.join(b, on="k", between=("-5s", "5s"), how="full"),
    "anti": lambda a, b: a.join(b, on="k", between=("-5s", "5s"), how="anti"),
    "semi": lambda a, b: a.join(b, on="k", between=("-5s", "5s"), how="semi"),
    "joined windows": lambda a, b: a.join(b, on="k", window=tumbling("7s"), how="full"),
    "tumbling": lambda a, b: a.union(b).key_by("k").window(tumbling("5s")).aggregate(**SUMS),
    "hopping": lambda a, b: a.union(b).key_by("k").window(hopping("9s", "3s")).aggregate(l=sabot.collect_list("n")),
    "cumulative": lambda a, b: a.union(b).window(cumulative("9s", "3s")).aggregate(**SUMS),
    "sessions": lambda a, b: a.union(b).key_by("k").window(session("4s")).aggregate(**SUMS),
    "top": lambda a, b: a.union(b).window(tumbling("5s")).top_n(2, by="n"),
    "windows of windows": lambda a, b: (
        a.union(b).key_by("k").window(tumbling("3s")).aggregate(**SUMS).key_by("k").window(tumbling("9s"))
    ).aggregate(n=sabot.sum("n")),
}


@pytest.mark.slow  # one to two seconds of a core
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", STEPS)
async def test_the_rows_of_all_lives_are_those_of_one(memory_url: str, tmp_path: Path, name: str, seed: int) -> None:
    """A source without new rows told no watermark behind a restart: joins and unions held complete rows back."""
    rng, broker = random.Random(f"{seed} {name}"), MemoryBroker.get(memory_url)
    partitions = {topic: rng.choice([1, 1, 2]) for topic in "ab"}
    for topic, count in partitions.items():
        broker.create_topic(topic, partitions=count)
    rows, now = 0, 1_700_000_000_000

    def publish(count: int, topics: str = "ab") -> None:
        nonlocal rows, now
        for _ in range(count):
            rows, now, topic = rows + 1, now + rng.randrange(1500), rng.choice(topics)
            row = {"n": rows, "k": rng.randrange(3), "ts": now - rng.randrange(800)}
            broker.publish(topic, [row], partition=rng.randrange(partitions[topic]))

    async def live(out: str, parallelism: int) -> None:
        app = App("lives", memory_url, checkpoint_dir=tmp_path / out, parallelism=parallelism)
        a, b = (app.stream(topic, schema=SCHEMA, time="ts", lateness="1s", idle="1h", max_drift=None) for topic in "ab")
        STEPS[name](a, b).to(out)

        def has_read_all() -> bool:
            inputs = [each.get("input", {}) for each in app.statistics()["streams"].values()]
            lags = [each["lag"] for each in inputs if "lag" in each]
            return bool(lags) and all(lag is not None and not any(lag.values()) for lag in lags)

        async with started(app):
            await until(has_read_all, "all rows")

    def written(topic: str) -> Counter[str]:
        return Counter(json.dumps(json.loads(each.payload), sort_keys=True) for each in broker.records(topic))

    publish(40)
    for _ in range(4):
        await live("out", rng.choice([1, 2]))
        publish(rng.choice([3, 10]), rng.choice(["ab", "a", "b"]))
    await live("out", 1)
    await live("fresh", 1)
    assert written("out") == written("fresh")
