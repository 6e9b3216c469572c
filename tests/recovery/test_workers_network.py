"""The network between two workers of `sabot run --workers` is cut: the app goes on from its last checkpoint, with every window once."""

import asyncio
import sys
import uuid
from pathlib import Path

import pytest

from tools.agent_tools import manifests, until
from tools.stream_tools import PARTITIONS, answers, expected, tick

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from test_stream_kill import HERE, World, where

from tools.fault_tools import Place, jsons, lines_of, running

pytestmark = [pytest.mark.integration, pytest.mark.kafka, pytest.mark.slow]


async def test_windows_are_there_once_though_the_network_between_workers_was_cut(kafka_url, tmp_path):
    place, name = Place(kafka_url), f"app-{uuid.uuid4().hex[:8]}"
    topic, out, log, cut = place.topic(PARTITIONS), place.topic(), tmp_path / "log", tmp_path / "cut"
    env = {
        "MINUTES_ID": name,
        "MINUTES_IN": topic,
        "MINUTES_OUT": out,
        "CUT_FILE": str(cut),
    }
    words = ["cut_app:app", "--broker", place.url, *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1"]
    words += ["--workers", "2", "--restart", "fixed(20, 100ms)"]

    def lives():
        return lines_of(log).count("tasks on 2 workers")

    with running(log, *words, folder=HERE, **env) as process:

        async def reached(what, is_there):
            await until(lambda: process.poll() is not None or is_there(), what)
            assert process.poll() is None, lines_of(log)

        with World(place, topic) as world:
            for life in (1, 2):
                await reached("workers", lambda life=life: lives() >= life)
                known = manifests(tmp_path / "state" / "checkpoints")
                await reached("a checkpoint", lambda known=known: manifests(tmp_path / "state" / "checkpoints") - known)
                cut.touch()
                await reached("a cut", lambda: not cut.exists())
            await reached("workers", lambda: lives() >= 3)
        tick(place.settings, topic)
        wanted = expected(world.sent)
        await reached("every window", lambda: answers(jsons(place.read(out))).keys() >= wanted.keys())
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0, lines_of(log)
    rows = jsons(place.read(out))
    assert answers(rows) == wanted
    assert len(rows) == len(wanted), "a window came twice"
    assert "is broken" in lines_of(log)
