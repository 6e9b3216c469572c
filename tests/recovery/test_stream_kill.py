"""kill -9 of `sabot run` with a stream, at any moment, and start again: every window comes out exact, none is missing.

Sinks deliver at least once, so a window may come twice, but never with two answers.
"""

import asyncio
import itertools
import json
import random
import sys
import threading
import uuid
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tools.agent_tools import manifests, read_lines, until, write_lines
from tools.stream_tools import PARTITIONS, answers, expected, payments, tick

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from tools.fault_tools import Place, jsons, lines_of, running

pytestmark = pytest.mark.integration

HERE = Path(__file__).parent


def where(state, folder):
    """Keyed tables in memory, and checkpoints; or tables before RocksDB, with the checkpoints beside them."""
    if state == "memory":
        return ["--state", "memory", "--checkpoint-dir", str(folder / "state" / "checkpoints")]
    return ["--state", str(folder / "state")]


async def killed(rng, folder, words, env, *, at_once=False, shown=lambda: True):
    """One life: it goes on for a random moment after its first checkpoint (at_once: after its start), and until `shown`; then kill -9."""
    log, checkpoints = folder / "log", folder / "state" / "checkpoints"
    known = manifests(checkpoints)
    with running(log, *words, "--checkpoint-interval", "0.1", folder=HERE, **env) as process:
        if not at_once:
            await until(
                lambda: process.poll() is not None or (manifests(checkpoints) - known and shown()),
                "a checkpoint",
            )
        await asyncio.sleep(rng.uniform(0, 0.8 if at_once else 0.3))
        assert process.poll() is None, lines_of(log)
        process.kill()
        process.wait()


class World:
    """Goes on sending payments, 2,000 a second and from the start 2,000 at once, until it is over."""

    def __init__(self, place, topic):
        self.sent = []
        self._place, self._topic = place, topic
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self):
        producer = Producer({**self._place.settings, "enable.idempotence": True, "linger.ms": 5})
        for first in itertools.count(0, 20):
            rows = payments(20, first=first)
            for row in rows:
                producer.produce(self._topic, json.dumps(row), row["account"], partition=row["id"] % PARTITIONS)
            producer.poll(0)
            self.sent += rows
            if self._over.wait(0.01 if first > 2000 else 0):
                break
        assert producer.flush(60) == 0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """All that it has sent is in the topic."""
        self._over.set()
        self._thread.join()


@pytest.mark.kafka
@pytest.mark.slow  # the kills over files, and those of a delivery to Kafka, are always run
@pytest.mark.parametrize(("state", "parallelism"), [("memory", 1), ("rocksdb", 3)])
async def test_windows_of_a_topic_are_exact_whenever_the_process_was_killed(kafka_url, tmp_path, state, parallelism):
    rng, place, name = random.Random(f"{state} {parallelism}"), Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}"
    topic, out = place.topic(PARTITIONS), place.topic()
    env = {"MINUTES_ID": name, "MINUTES_IN": topic, "MINUTES_OUT": out}
    words = ["minutes_app:app", "--broker", place.url, "--parallelism", str(parallelism), "--loglevel", "warning"]
    words += where(state, tmp_path)
    with World(place, topic) as world:
        await killed(rng, tmp_path, words, env, at_once=True)
        for _ in range(2):
            # The first windows close where a life is long enough: on a busy machine it is waited for.
            await killed(rng, tmp_path, words, env, shown=lambda: place.read(out))
            closed = {row["window_start"] for row in jsons(place.read(out))}
        assert closed, "no window was complete before the last kill"
    tick(place.settings, topic)
    wanted = expected(world.sent)
    assert max(closed) < max(start for _, start in wanted), "all was over before the last kill"
    with running(tmp_path / "log", *words, folder=HERE, **env) as process:

        def complete():
            assert process.poll() is None, lines_of(tmp_path / "log")
            return answers(jsons(place.read(out))).keys() >= wanted.keys()

        await until(complete, "every window")
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(tmp_path / "log")
    assert answers(jsons(place.read(out))) == wanted
    assert place.committed(f"{name}-group", topic) == place.ends(topic)


@pytest.mark.slow  # six processes; crashes without a kill: test_stream_recovery
async def test_windows_of_a_file_are_exact_whenever_the_process_was_killed(tmp_path):
    rng, rows, out = random.Random(9), payments(6000), tmp_path / "out.ndjson"
    write_lines(tmp_path / "in.ndjson", rows)
    env = {"MINUTES_ID": "files", "MINUTES_IN": str(tmp_path / "in.ndjson"), "MINUTES_OUT": str(out)}
    words = ["minutes_app:app", "--parallelism", "2", "--loglevel", "warning", *where("rocksdb", tmp_path)]
    slow = {**env, "MINUTES_SLOW": "0.2"}  # it is not over before the last kill
    await killed(rng, tmp_path, words, slow, at_once=True)
    for _ in range(2):
        await killed(rng, tmp_path, words, slow)
    await killed(
        rng, tmp_path, words, slow, shown=lambda: out.exists() and out.stat().st_size
    )  # on a busy machine lives are short
    half = answers(read_lines(out))
    with running(tmp_path / "log", *words, folder=HERE, **env) as process:
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(tmp_path / "log")
    assert 0 < len(half) < len(expected(rows))
    assert answers(read_lines(out)) == expected(rows)
