"""Two topics that are joined by event time, each read by another worker: neither runs ahead of the other, and every pair is found."""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import pytest

from tools.agent_tools import read_lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from tools.fault_tools import Place, sabot_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.usefixtures("warm_children"),
]  # three processes

ROWS = 100_000  # several times what a reader takes at once: without a backlog a source waits for nobody
PROGRAM = """
import os, sabot

app = sabot.App(os.environ["ID"], checkpoint_interval=1)
columns = {"k": "int64", "ts": "int64"}
left, right = (app.stream(os.environ[name], schema=columns, time="ts", until="now") for name in ("LEFT", "RIGHT"))
left.join(right.rename({"ts": "at"}), on="k", between=("0s", "0s")).select("k").to(sabot.NdjsonSink("pairs.ndjson"))
"""


async def test_sources_of_two_workers_are_read_at_about_the_same_event_time(kafka_url: str, tmp_path: Path) -> None:
    place = Place(kafka_url)
    topics = {"LEFT": place.topic(), "RIGHT": place.topic()}
    place.fill(topics["LEFT"], [json.dumps({"k": n, "ts": n * 1000}).encode() for n in range(ROWS)])
    # Four rows a second, of which one meets another: so many rows of the left one are four times their event time.
    place.fill(
        topics["RIGHT"], [json.dumps({"k": -1 if n % 4 else n // 4, "ts": n * 250}).encode() for n in range(ROWS)]
    )
    (tmp_path / "met.py").write_text(PROGRAM)
    words = ["met:app", "--broker", place.url, "--state", "state", "--workers", "2"]
    done = await asyncio.to_thread(
        lambda: sabot_run(*words, folder=tmp_path, seconds=200, ID=f"met-{uuid.uuid4().hex[:8]}", **topics)
    )
    assert done.returncode == 0, done.stderr
    assert sorted(row["k"] for row in read_lines(tmp_path / "pairs.ndjson")) == list(range(ROWS // 4))
    assert "other partitions are more than max_drift= behind it in event time" in done.stderr
