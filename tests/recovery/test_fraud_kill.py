"""The fraud demo killed with SIGKILL half way and started again: state equal to the byte, alerts equal as a set."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot._cython.arrow.batch import Batch
from sabot.app import App
from sabot.connectors.files import NdjsonSink
from sabot.demos.fraud.app import build
from sabot.demos.fraud.generator import FraudSource
from sabot.engine.state import StateBackend, open_backend

pytestmark = pytest.mark.usefixtures("warm_children")

ROWS = 200_000
WORLD = {"customers": 900, "terminals": 450}
NAMESPACES = ("alerts", "customers", "terminals", "totals")


class DeadlySource(FraudSource):
    """Kills the process in the middle: behind a complete checkpoint, and behind rows that it does not cover."""

    def __init__(self, app: App, output: Path) -> None:
        super().__init__(ROWS, seed=3, **WORLD)
        self.runtime = app.agent_runtime
        self.output = output  # has to have some results
        self.never = threading.Event()

    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        (row,) = self.positions().values()
        scored = self.runtime.get_stats()["fraud.score"]["messages_processed"]
        if scored > ROWS // 2 and self.output.stat().st_size:
            os.kill(os.getpid(), signal.SIGKILL)
        covered = self.runtime.checkpoint_coordinator.statistics()["completed"]
        if row > (ROWS // 2 + 10_000 if covered else ROWS // 2 - 10_000):
            self.never.wait(timeout)
            return None
        return super().read_batch(max_rows, timeout)


async def run(directory: Path, state: str, *, killed: bool = False) -> dict[str, Any]:
    """The demo's agents over all rows. `killed`: this process ends in the middle, behind a complete checkpoint."""
    app = App("fraud", state=state, checkpoint_interval="50ms")
    app.state_backend = backend = open_backend(state, "db")
    assert backend is not None
    source = DeadlySource(app, directory / "alerts.ndjson") if killed else FraudSource(ROWS, seed=3, **WORLD)
    build(app, source, alerts=NdjsonSink(directory / "alerts.ndjson"), seed=3)
    try:
        await app.run()
        return {
            "state": {name: digest(backend, name) for name in NAMESPACES},
            "restored_from": app.agent_runtime.runner.restored_from,
        }
    finally:
        await backend.close()


def digest(backend: StateBackend, namespace: str) -> str:
    found = hashlib.sha256()
    for key, value in backend.items(namespace):
        found.update(len(key).to_bytes(4) + key + len(value).to_bytes(4) + value)
    return found.hexdigest()


def alerts(directory: Path) -> list[str]:
    return [json.dumps(json.loads(line)) for line in (directory / "alerts.ndjson").read_text().splitlines()]


@pytest.mark.slow  # kills of windows and of agents: test_stream_kill, test_kill_minus_nine
@pytest.mark.integration
def test_a_kill_in_the_middle_changes_neither_state_nor_alerts(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = asyncio.run(run(whole, "memory"))

    command = [sys.executable, __file__, str(broken)]
    env = {**os.environ, "PYTHONPATH": str(Path(sabot.__file__).parents[1])}
    first = subprocess.run([*command, "killed"], timeout=300, env=env)
    assert first.returncode == -signal.SIGKILL
    written = (broken / "alerts.ndjson").read_bytes().count(b"\n")  # behind them may be a part of a line
    assert 0 < written < len(alerts(whole))
    second = subprocess.run(command, timeout=300, check=True, stdout=subprocess.PIPE, text=True, env=env)
    outcome = json.loads(second.stdout)

    assert outcome["restored_from"] >= 1
    assert outcome["state"] == expected["state"]
    assert set(alerts(broken)) == set(alerts(whole))
    assert len(alerts(whole)) == len(set(alerts(whole))) > 1_000


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps(asyncio.run(run(folder, str(folder / "state"), killed="killed" in sys.argv[2:]))))
