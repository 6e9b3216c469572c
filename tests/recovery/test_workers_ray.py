"""`sabot run --ray`: workers on a Ray cluster of two nodes, which are killed and paused by a seed; every window is there once.

SABOT_RAY_SEEDS: so many seeds.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.agent_tools import environment, manifests, write_lines
from tools.command_line import lines
from tools.ray_cluster import NODES, RayCluster
from tools.stream_tools import PARTITIONS, answers, expected, payments, tick

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, World, where

from tools.fault_tools import Place, jsons, lines_of, one_line, running, sabot_run

REQUIRED = bool(os.environ.get("SABOT_REQUIRE_RAY"))
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,  # two Ray nodes, some forty processes
    pytest.mark.skipif(
        find_spec("ray") is None and not REQUIRED,
        reason="Ray is not installed: `make ray` does that, and runs these tests",
    ),
]
SECONDS = 240
SEEDS = int(os.environ.get("SABOT_RAY_SEEDS", "1"))
DISTURBANCES = 3


async def test_a_cluster_that_is_not_there_is_told_in_one_line(tmp_path):
    write_lines(tmp_path / "in.ndjson", payments(10))
    env = {
        "MINUTES_ID": "files",
        "MINUTES_IN": str(tmp_path / "in.ndjson"),
        "MINUTES_OUT": str(tmp_path / "out.ndjson"),
    }
    done = await asyncio.to_thread(
        lambda: sabot_run(
            "minutes_app:app", "--workers", "2", "--ray", "127.0.0.1:1", folder=HERE, seconds=SECONDS, **env
        )
    )
    assert "there is no Ray cluster at 127.0.0.1:1" in one_line(done, 1)


@pytest.fixture
def short():
    """A folder whose path is short, which stays until the processes of the cluster have ended."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Dance:
    """An app on a Ray cluster whose nodes are killed and paused at random, in the middle of its work and while it starts. Nodes and app are
    started again when they have ended, as an operator would.

    The head is also the coordinator's node: what ends it ends the app, and the cluster with it.
    """

    def __init__(self, seed, cluster, folder, words, env):
        self.done = []
        self._random = random.Random(seed)
        self._cluster = cluster
        self._folder = folder
        self._log = folder / "log"
        self._words = words
        self._env = env
        self._coordinator = None
        self._running = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._running.close()

    async def work(self):
        """The app runs, if need be from a new start, and has taken a checkpoint."""
        known = manifests(self._folder / "state" / "checkpoints")
        await self.until(lambda: manifests(self._folder / "state" / "checkpoints") - known, "a checkpoint")

    async def until(self, reached, what):
        """Waits for it, with the cluster whole and the app started whenever it has ended."""
        await asyncio.to_thread(self._cluster.mend)
        limit = time.monotonic() + SECONDS
        while not await asyncio.to_thread(reached):
            if self._coordinator is None or self._coordinator.poll() is not None:
                await asyncio.to_thread(self._cluster.mend)
                self._running.close()
                self._coordinator = self._running.enter_context(
                    running(self._log, *self._words, folder=HERE, **self._env)
                )
            assert time.monotonic() < limit, f"waited in vain for {what} after {self.done}: {lines_of(self._log)}"
            await asyncio.sleep(0.1)

    async def disturb(self):
        """Kills a node, or pauses it: for a moment, or so long that the cluster gives it up."""
        draw = self._random
        if draw.random() < 0.75:
            await self.work()
        await asyncio.sleep(draw.uniform(0, 2))
        node = draw.choices(NODES, (1, 3))[0]
        if draw.random() < 0.5:
            self.done.append(f"{node} killed")
            self._cluster.signal(node, signal.SIGKILL)
            return
        paused_s = draw.choice((0.5, 3.0, 12.0))
        self.done.append(f"{node} paused for {paused_s:g} s")
        self._cluster.signal(node, signal.SIGSTOP)
        await asyncio.sleep(paused_s)
        self._cluster.signal(node, signal.SIGCONT)

    async def stop(self):
        """In good order, however long that takes: Ray would abort the process three seconds after the signal."""
        await self.work()
        self._coordinator.terminate()
        code = await asyncio.to_thread(self._coordinator.wait, SECONDS)
        assert code == 0, f"ended with {code} after {self.done}: {lines_of(self._log)}"
        assert "SIGTERM received" not in lines_of(self._log), "Ray handles the signal"


@pytest.mark.kafka
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_windows_are_there_once_though_nodes_of_the_cluster_are_killed_and_paused(
    kafka_url, tmp_path, short, seed
):
    place, name, state = Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}", tmp_path / "state"
    topic, out = place.topic(PARTITIONS), place.topic()
    env = {"MINUTES_ID": name, "MINUTES_IN": topic, "MINUTES_OUT": out, **environment()}
    with RayCluster(short, **env) as cluster:
        words = ["minutes_app:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
        words += ["--workers", "2", "--ray", cluster.address, "--ray-resources", "CPU=1", "--restart", "fixed(100, 1s)"]
        with World(place, topic) as world, Dance(seed, cluster, tmp_path, words, {**env, **cluster.env}) as dance:
            await dance.work()
            found = await asyncio.to_thread(lines, "rescale", state, "--workers", 3, "--json")
            assert [each["worker"] for each in found] == [1, 2, 3]
            for _ in range(DISTURBANCES):
                await dance.disturb()
            world.end()
            tick(place.settings, topic)
            wanted = expected(world.sent)
            await dance.until(lambda: answers(jsons(place.read(out))).keys() >= wanted.keys(), "every window")
            await dance.stop()
    rows = jsons(place.read(out))
    assert answers(rows) == wanted, dance.done
    assert len(rows) == len(wanted), f"a window came twice: {dance.done}"
    print(f"seed {seed}: {dance.done}, {len(rows)} windows")
