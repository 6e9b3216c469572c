"""Journals that an earlier Sabot has written, kept in `kept/`, are read, and their jobs go on: those that run, are parked, are in doubt,
wait for approval or for a child. `kept_journals` has the app, `kept/make_journals.py` says what the files hold.
"""

import asyncio
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from kept_journals import (
    BEFORE,
    BEHIND,
    EARLY,
    HOMES,
    LATER,
    LONG,
    RESTORED_S,
    Calls,
    kept_app,
    publish,
    put_back,
    words_of,
)

from sabot import App
from sabot.agents import ActionStatus
from sabot.journal.opening import open_reader
from tools.agent_tools import read_lines, started, until

pytestmark = pytest.mark.integration

ARCHIVES = Path(__file__).parent / "kept"
each_home = pytest.mark.parametrize(
    "home", [pytest.param(home, marks=pytest.mark.kafka) if home == "kafka" else home for home in HOMES]
)


def unpacked(home: str, folder: Path) -> Path:
    with tarfile.open(ARCHIVES / f"journal-{home}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def address_of_broker(home: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("kafka_url")) if home == "kafka" else ""


def begins_with(found: Any, kept: Any) -> bool:
    """Whether the values are those that are kept, in each entry perhaps with more behind them."""
    return len(found) == len(kept) and all(now[: len(then)] == then for now, then in zip(found, kept, strict=True))


@each_home
def test_a_kept_journal_says_what_it_said(
    home: str, tmp_path: Path, topic: str, request: pytest.FixtureRequest
) -> None:
    folder = unpacked(home, tmp_path)
    with put_back(home, folder, address_of_broker(home, request), topic) as address:
        reader = open_reader(address)
        entries, bodies, letters = json.loads(json.dumps(words_of(reader)))
        reader.close()
    kept = json.loads((folder / "words.json").read_text())
    assert begins_with(entries, kept[0])
    assert bodies == kept[1]
    assert letters == kept[2]
    assert sum(LONG[:20] in body for body in bodies) == 1


async def answer(app: App, job: str, resolution: dict[str, Any]) -> None:
    """Answers the question of the job, once it is asked."""
    while not (pending := await app.actions.find(job_id=job, statuses=[ActionStatus.PENDING])):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await app.actions.resolve(pending[0].resume_token, resolution, by="ann")


@each_home
async def test_the_jobs_of_a_kept_journal_go_on(
    home: str, tmp_path: Path, topic: str, memory_url: str, request: pytest.FixtureRequest
) -> None:
    folder, calls = unpacked(home, tmp_path), Calls()
    with put_back(home, folder, address_of_broker(home, request), topic) as address:
        publish(memory_url, [*EARLY, *BEFORE, *BEHIND, *LATER])
        app = kept_app(folder, memory_url, None if home == "sqlite" else address, RESTORED_S, calls)
        async with started(app):
            await answer(app, "kept.orders/n=4", {"approved": True})
            await answer(app, "kept.orders/n=5", {"approved": True})
            await answer(app, "kept.orders/n=8", {"outcome": "not_done"})
            await answer(app, "kept.orders/n=9", {"outcome": "done", "result": "mailed"})
            await answer(app, "kept.orders/n=10~2", {"choice": "blue"})
            await answer(app, "kept.orders/n=14", {"outcome": "not_done"})
            await app.jobs.signal("kept.orders/n=11", "read")
            await until(lambda: app.statistics()["jobs"]["ended"] == 12, "all jobs to end")
            assert app.statistics()["jobs"]["blocked"] == {}
    said = {row["n"]: row["said"] for row in read_lines(folder / "answers.ndjson")}
    assert said == {
        4: [True, "ann"],
        5: "paid 5",
        6: "refunded 6 which sleeps",
        7: 12.5,
        8: "refunded 8 which hangs",
        9: "mailed",
        10: {"chosen": {"choice": "blue"}},
        11: len(LONG),
        13: "refunded 13 which returns",
        14: "refunded 14 which hangs",
        15: "refunded 15 which returns",
    }
    assert [row["error"] for row in read_lines(folder / "dead.ndjson")] == []
    assert sorted(calls.made) == [
        "pay 5",
        *(f"refund {n}" for n in ("14 which hangs", "15 which returns", "8 which hangs")),
    ]
