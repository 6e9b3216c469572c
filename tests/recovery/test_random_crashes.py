"""Random programs under random crashes: the state is exact, every key keeps its order, and no input is missing from the outputs.

One seed is a few lives of an app: its agents run for a random while, under random checkpoints, stops of single agents, slow calls,
errors and retries, then it crashes or is stopped. A crash is what the disk holds at that moment: the last complete checkpoint, and
what the sinks had written by then. A new app goes on from there, with a new and empty state backend; the last one runs to its end.
The seed fixes the program and its data; threads add some chance of their own, so a rare failure may want its seed repeated.

    SABOT_CRASH_SEEDS=500 pytest tests/recovery/test_random_crashes.py          more seeds than the 25 of `make slow`
    pytest tests/recovery/test_random_crashes.py -k "[17]"                      one of them again
"""

import asyncio
import contextlib
import functools
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sabot import App, RowErrors
from sabot._cython.flow.channel import Channel
from sabot._cython.text.records import state_key
from sabot.api.context import AgentContext
from sabot.connectors.files import NdjsonSink, NdjsonSource
from sabot.engine.operators.agents.kinds import agent_operator
from sabot.engine.state import BackendConfig, MemoryBackend, RocksDBBackend
from sabot.errors import CheckpointFailed
from tools.agent_tools import bounded, crash_image, manifests, read_lines, until, write_lines

pytestmark = pytest.mark.integration

SEEDS = int(os.environ.get("SABOT_CRASH_SEEDS", "25"))
INPUTS = ("x", "y", "plain", "columns")  # x and y are the topics of one agent
SECOND = 1_000_000  # numbers of y begin here
OUTPUTS = ("pairs", "batches", "dead-split", "dead-pair", "dead-plain", "dead-columns")


class LateBackend(MemoryBackend):
    """A user's own, whose snapshot does other things before it takes its cut."""

    async def snapshot(self):
        await asyncio.sleep(0.001)
        return await super().snapshot()


def bad_row(n: int) -> bool:
    return n % 97 == 5


def bad_column(n: int) -> bool:
    return n % 31 == 3


class Program:
    """The same four agents each time, with other settings; `calls` counts what they begin."""

    def __init__(self, rng: random.Random, inputs: Path, directory: Path, url: str, kind: str):
        self.rng = rng
        self.calls = 0
        self.inputs = inputs
        self.directory = directory
        self.slow = rng.choice([0.0, 0.02, 0.2])
        self.backend = {
            "memory": MemoryBackend,
            "rocksdb": lambda: RocksDBBackend(
                BackendConfig("rocksdb", path=str(directory / "db"), memory_budget="1MB")
            ),
            "late": LateBackend,
        }[kind]()
        self.app = App(
            "shop",
            broker=url,
            checkpoint_dir=directory / "checkpoints",
            checkpoint_interval=rng.choice([0.005, 0.02, 0.1]),
            checkpoint_timeout=rng.choice([30, 30, 0.02]),
        )
        self.app.state_backend = self.backend
        pair = self.agent("pair", self.pair, [], key="k", sink=self.sink("pairs"), **self.retrying())
        self.agent("split", self.split, ["x", "y"], key="k", sink=pair, on_error="skip", concurrency=self.lanes())
        self.agent("plain", self.plain, ["plain"], **self.retrying())
        retrying = self.retrying() | {"concurrency": 1}
        self.agent("columns", self.columns, ["columns"], batch=True, sink=self.sink("batches"), **retrying)

    def agent(self, name, function, topics, **options):
        block_bytes = self.rng.choice([300, 3000])
        sources = [NdjsonSource(self.inputs / topic, block_bytes=block_bytes) for topic in topics]
        dead = self.sink(f"dead-{name}")
        options["delivery"] = "at_least_once"  # each life writes into a folder of its own
        return self.app.agent(sources or None, name=name, dead_letter=dead, **options)(function)

    def sink(self, name):
        return NdjsonSink(self.directory / name)

    def lanes(self):
        return self.rng.choice([1, 2, 7])

    def retrying(self):
        return {"on_error": "retry", "retries": 50, "backoff": 0.001, "concurrency": self.lanes()}

    async def nap(self):
        self.calls += 1
        dice = self.rng.random()
        if dice < self.slow:
            await asyncio.sleep(0.002 * self.rng.random())
        elif dice < 0.3:
            await asyncio.sleep(0)

    def perhaps(self, share):
        if self.rng.random() < share:
            raise ValueError("try again")

    # -- the agents ---------------------------------------------------------------------------------------------------

    async def split(self, ctx):
        """Counts by key, and writes each row twice into `pair`."""
        row = ctx.message
        await self.nap()
        await ctx.state().put("n", (await ctx.state().get("n") or 0) + 1)
        await self.nap()
        if bad_row(row["n"]):
            raise RuntimeError("bad row")
        yield row | {"part": 0}
        yield row | {"part": 1}

    async def pair(self, ctx):
        """Keeps by key what came, in its order."""
        await self.nap()
        await ctx.list_state("seen").add(0, [ctx.message["n"], ctx.message["part"]])
        await self.nap()
        self.perhaps(0.02)
        return ctx.message

    async def plain(self, ctx):
        """Counts in a namespace that it shares with `columns`. Nothing waits between get and the end of the call."""
        await self.nap()
        self.perhaps(0.02)
        await add(ctx.state("shared"), ctx.message["k"], 1)

    async def columns(self, batch, ctx):
        await self.nap()
        self.perhaps(0.2)
        rows = batch.to_pylist()
        bad = [number for number, row in enumerate(rows) if bad_column(row["n"])]
        if bad:
            raise RowErrors(dict.fromkeys(bad[:1] if self.rng.random() < 0.5 else bad, "bad"))
        for key, count in Counter(row["k"] for row in rows).items():
            await add(ctx.state("shared"), key, count)
        await add(ctx.state("total"), "n", sum(row["n"] for row in rows))
        return batch

    # -- its life -----------------------------------------------------------------------------------------------------

    async def some_calls(self, most):
        """Until a few more calls have begun, or there are none to come."""
        goal = self.calls + self.rng.randrange(most)
        with contextlib.suppress(TimeoutError):
            await bounded(until(lambda: self.calls >= goal), 0.25)

    async def live(self, rows):
        """Runs for a while; -> the directory of what a crash leaves, or of a stop in good order."""
        await self.app.start()
        runtime = self.app.agent_runtime
        for _ in range(self.rng.randrange(1, 4)):
            await self.some_calls(2 * rows)
            for _ in range(self.rng.choice([0, 0, 3])):
                runtime.checkpoint_coordinator.trigger()
            if self.rng.random() < 0.4:
                agent = runtime.agents[f"shop.{self.rng.choice(['split', 'pair', 'plain', 'columns'])}"]
                await agent.stop()
                if self.rng.random() < 0.5:
                    await agent.start()
        crashed = crash(self.directory) if self.rng.random() < 0.7 else None
        with contextlib.suppress(CheckpointFailed):
            await bounded(self.app.stop(drain=self.rng.random() < 0.3))
        await self.backend.close()
        return crashed or self.directory

    async def finish(self):
        with contextlib.suppress(CheckpointFailed):  # the last one, when it has 20 ms
            await bounded(self.app.run())

    def state(self, agent=None, key=None):
        scope, prefix = (b"", "") if agent is None else (state_key(key), f"shop.{agent}/")
        return AgentContext(None, self.backend, scope=scope, prefix=prefix)


async def add(state, key, number):
    await state.put(key, (await state.get(key) or 0) + number)


def crash(directory):
    """What the disk holds now: the checkpoint first, then the sinks' files, which may be ahead of it as after any crash."""
    image = directory.with_name(f"{directory.name}-crashed")
    if manifests(directory / "checkpoints"):
        crash_image(directory / "checkpoints", image / "checkpoints")
    image.mkdir(exist_ok=True)
    copy_outputs(directory, image)
    return image


def copy_outputs(source, target):
    for name in OUTPUTS:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


def next_directory(left, directory):
    """Where the next life begins: nothing but the checkpoints and outputs that are left."""
    directory.mkdir()
    if (left / "checkpoints").exists():
        shutil.copytree(
            left / "checkpoints", directory / "checkpoints", ignore=shutil.ignore_patterns("LOCK", "scratch")
        )
    copy_outputs(left, directory)


def written(directory, name):
    rows = read_lines(directory / name)
    if name.startswith("dead-"):  # a letter of a file has the record as it came
        rows = [json.loads(letter["payload"]) for letter in rows]
    return as_lines(rows)


def as_lines(rows):
    return {json.dumps(row, sort_keys=True) for row in rows}


async def check(program, rows):
    """Everything against what the inputs say."""
    split = [row for name in ("x", "y") for row in rows[name]]
    good = [row for row in split if not bad_row(row["n"])]
    columns = [row for row in rows["columns"] if not bad_column(row["n"])]
    for key in {row["k"] for row in split}:
        mine = [row["n"] for row in good if row["k"] == key]
        assert await program.state("split", key).state().get("n") == (len(mine) or None), f"count of key {key}"
        seen = await program.state("pair", key).list_state("seen").get(0)
        for is_second in (False, True):  # in order within each file
            expected = [[n, part] for n in mine if (n >= SECOND) is is_second for part in (0, 1)]
            assert [entry for entry in seen if (entry[0] >= SECOND) is is_second] == expected, f"rows of key {key}"
    shared = Counter(row["k"] for row in rows["plain"] + columns)
    assert {key: await program.state().state("shared").get(key) for key in shared} == shared
    assert await program.state().state("total").get("n") == sum(row["n"] for row in columns)
    pairs = [row | {"part": part} for row in good for part in (0, 1)]
    assert as_lines(pairs) == written(program.directory, "pairs")
    assert as_lines(columns) == written(program.directory, "batches")
    assert as_lines(row for row in split if bad_row(row["n"])) == written(program.directory, "dead-split")
    assert as_lines(row for row in rows["columns"] if bad_column(row["n"])) == written(
        program.directory, "dead-columns"
    )
    assert not written(program.directory, "dead-pair") | written(program.directory, "dead-plain")


@pytest.mark.one_in(16, "any seed draws all kinds of lives; `make slow` runs 25")
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_state_is_exact_and_nothing_is_lost_under_random_crashes(seed, memory_url, tmp_path, monkeypatch):
    print(f"seed {seed}")  # pytest shows it with a failure
    rng = random.Random(seed)
    keys, count = rng.choice([1, 3, 20]), rng.choice([60, 300])
    kind, lives = rng.choice(["memory", "rocksdb", "late"]), rng.randrange(1, 5)
    rows = {
        name: [{"k": f"k{rng.randrange(keys)}", "n": n + SECOND * (name == "y")} for n in range(count)]
        for name in INPUTS
    }
    for name in INPUTS:
        write_lines(tmp_path / name, rows[name])
    lanes_hold, channels_hold = rng.choice([8, 16384]), rng.choice([8, 65536])  # narrow: something is full all the time
    monkeypatch.setattr(
        "sabot.engine.runtime.agents.local_agents.agent_operator",
        functools.partial(agent_operator, capacity_rows=lanes_hold),
    )
    for module in ("agents.source", "tasks.writing"):
        monkeypatch.setattr(
            f"sabot.engine.runtime.{module}.Channel", functools.partial(Channel, capacity_rows=channels_hold)
        )
    left = tmp_path / "nothing"
    for life in range(lives + 1):
        directory = tmp_path / f"life-{life}"
        next_directory(left, directory)
        program = Program(rng, tmp_path, directory, memory_url, kind)
        if life < lives:
            left = await program.live(count)
    await program.finish()
    await check(program, rows)
    await program.backend.close()
