"""Two topics that are joined by event time, each read by another worker: neither runs ahead of the other, and every pair is found."""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import pytest

from tools.agent_tools import read_lines

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from fault_tools import Place, sabot_run

pytestmark = [pytest.mark.integration, pytest.mark.kafka, pytest.mark.slow]  # three processes

ROWS = 50_000
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
    payloads = [json.dumps({"k": n, "ts": n * 1000}).encode() for n in range(ROWS)]
    place.fill(topics["LEFT"], payloads)
    # Four rows a second, of which one meets another: as many rows as of the left one are a fourth of its event time.
    others = [[json.dumps({"k": -1 - part, "ts": n * 1000}).encode() for part in range(3)] for n in range(ROWS)]
    rows = [row for one, more in zip(payloads, others, strict=True) for row in (one, *more)]
    for first in range(0, len(rows), ROWS):  # no more than a producer holds
        place.fill(topics["RIGHT"], rows[first : first + ROWS])
    (tmp_path / "met.py").write_text(PROGRAM)
    words = ["met:app", "--broker", place.url, "--state", "state", "--workers", "2"]
    done = await asyncio.to_thread(
        lambda: sabot_run(*words, folder=tmp_path, seconds=200, ID=f"met-{uuid.uuid4().hex[:8]}", **topics)
    )
    assert done.returncode == 0, done.stderr
    assert sorted(row["k"] for row in read_lines(tmp_path / "pairs.ndjson")) == list(range(ROWS))
    assert "others are more than max_drift= behind it in event time" in done.stderr
