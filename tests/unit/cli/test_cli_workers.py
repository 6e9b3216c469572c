"""`sabot workers` and `sabot rescale` of apps that have no workers, or do not run; with workers: tests/recovery/test_workers_rescale.py."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from sabot import App
from sabot.engine.checkpoint import CheckpointStorage, Requests
from tools.command_line import lines, sabot_says

PLACE = "state"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_an_app_in_one_process_has_no_workers_and_cannot_be_rescaled(here: Path, memory_url: str) -> None:
    app = App("alone", memory_url, state="state", checkpoint_interval=60)
    app.stream("rows", schema={"n": "int64"}).to("out")
    await app.start()
    try:
        assert app.statistics()["workers"] == []
        said = await asyncio.to_thread(sabot_says, "workers", "state")
        assert said.stdout == "alone: no workers: all tasks run in the process that was started\n"
        assert await asyncio.to_thread(lines, "workers", "state", "--json") == []
        refused = await asyncio.to_thread(sabot_says, "rescale", "state", "--workers", 3)
        assert refused.exit_code == 1
        assert "app alone runs in one process" in refused.stderr
        assert app.agent_runtime.runner.started
    finally:
        await app.stop()


@pytest.mark.parametrize("words", [["workers"], ["rescale", "--workers", "2"]])
def test_an_app_that_does_not_run_is_told_at_once(here: Path, words: list[str]) -> None:
    (here / PLACE).mkdir(parents=True)
    said = sabot_says(*words, "state")
    assert said.exit_code == 1
    assert said.stderr.startswith("sabot: no app runs on ")
    assert "--workers N" in said.stderr


@pytest.mark.parametrize("workers", ["0", "-1", "some", ""])
def test_a_number_that_is_none_is_wrong_use(here: Path, workers: str) -> None:
    assert sabot_says("rescale", "state", "--workers", workers).exit_code == 2


class Answering(threading.Thread):
    """An app that gives this answer to the first request."""

    def __init__(self, answer: dict[str, Any], place: str) -> None:
        super().__init__(daemon=True)
        self._place = place
        self.requests: list[dict[str, Any]] = []
        self._answer = answer

    def run(self) -> None:
        box = Requests(self._place)
        while not (pending := box.pending()):
            threading.Event().wait(0.01)
        for request_id, request in pending:
            self.requests.append(request)
            box.answer(request_id, self._answer)


def worker(number: int, **tasks: dict[str, Any]) -> dict[str, Any]:
    of_process = {"cpu_percent": 97.6, "memory_bytes": 210_000_000, "silent_seconds": 0.3}
    return {"worker": number, "pid": 4700 + number, "rows": 7, "rows_per_second": 12_345.6, "lag": 9, **of_process} | {
        "tasks": tasks
    }


@pytest.mark.parametrize("words", [["workers"], ["rescale", "--workers", "2"]])
@pytest.mark.parametrize("place", [PLACE, f"{PLACE}/checkpoints", f"{PLACE}/scratch"], ids=["place", "state", "store"])
def test_what_workers_do_is_a_table_or_an_object_for_each(here: Path, place: str, words: list[str]) -> None:
    """place: where the running app holds its lock: that of its checkpoints, or beside its state, where these are in an object store."""
    running = CheckpointStorage(here / place)
    running.lock()
    unknown = {"rows": None, "rows_per_second": None, "lag": None}
    known = {"rows": 1_000_000, "rows_per_second": 12_345.6, "lag": 9}
    silent = worker(2) | unknown | {"cpu_percent": None, "memory_bytes": None}
    answer = {"app": "shop", "restarts": 1, "checkpoint": 12, "workers": [worker(1, read=known, keyed=unknown), silent]}
    answering = Answering(answer, place)
    answering.start()
    said = sabot_says(*words, "state")
    answering.join(60)
    assert answering.requests == [{"rescale": 2} if words[0] == "rescale" else {"workers": True}]
    assert said.stdout.splitlines() == [
        "shop: workers 2, tasks 2, restarts 1, checkpoint 12",
        "",
        "worker  pid   tasks  rows/s  lag  cpu   memory",
        "1       4701  2      12,346  9    98 %  210.0 MB",
        "2       4702  0      -       -    -     -",
        "",
        "task   worker  rows/s  lag  rows",
        "read   1       12,346  9    1,000,000",
        "keyed  1       -       -    -",
    ]
    answering = Answering(answer, place)
    answering.start()
    found = sabot_says(*words, "state", "--json").stdout.splitlines()
    answering.join(60)
    running.unlock()
    assert [json.loads(line) for line in found] == [
        {"app": "shop", "restarts": 1, **each} for each in answer["workers"]
    ]
