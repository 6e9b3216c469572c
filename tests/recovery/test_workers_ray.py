"""`sabot run --ray`: workers on a Ray cluster of two nodes; one node is killed, and every window is there once."""

import asyncio
import os
import re
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.agent_tools import environment, manifests, read_lines, until, write_lines
from tools.ray_cluster import RayCluster
from tools.stream_tools import answers, expected, payments

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from fault_tools import lines_of, one_line, running, sabot_run
from test_stream_kill import HERE, where

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


def files(folder, rows, **more):
    write_lines(folder / "in.ndjson", rows)
    return {
        "MINUTES_ID": "files",
        "MINUTES_IN": str(folder / "in.ndjson"),
        "MINUTES_OUT": str(folder / "out.ndjson"),
        **more,
    }


async def test_a_cluster_that_is_not_there_is_told_in_one_line(tmp_path):
    env = files(tmp_path, payments(10))
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


async def test_windows_are_there_once_though_a_node_of_the_cluster_was_killed(tmp_path, short):
    rows, log = payments(6000), tmp_path / "log"
    env = files(tmp_path, rows, MINUTES_SLOW="0.1", **environment())
    with RayCluster(short, **env) as cluster:
        await killed_once(cluster, log, tmp_path, {**env, **cluster.env})
    found = read_lines(tmp_path / "out.ndjson")
    assert answers(found) == expected(rows)
    assert len(found) == len(expected(rows)), "a window came twice"


async def killed_once(cluster, log, tmp_path, env):
    """Runs the job to its end, while the second node of the cluster is killed."""
    words = ["minutes_app:app", *where("rocksdb", tmp_path), "--checkpoint-interval", "0.1", "--workers", "2"]
    words += ["--ray", cluster.address, "--ray-resources", "CPU=1", "--restart", "fixed(10, 1s)"]

    def lives():
        return re.findall(r"tasks on 2 workers: pids (\d+), (\d+)", lines_of(log))

    with running(log, *words, folder=HERE, **env) as process:
        await until(lambda: process.poll() is not None or lives(), "workers", patience=120)
        await until(
            lambda: process.poll() is not None or manifests(tmp_path / "state" / "checkpoints"),
            "a checkpoint",
            patience=60,
        )
        assert process.poll() is None, lines_of(log)
        cluster.signal("second", signal.SIGKILL)
        assert await asyncio.to_thread(process.wait, SECONDS) == 0, lines_of(log)
    assert len(lives()) >= 2, lines_of(log)
