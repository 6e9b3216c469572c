"""What the command line asks of a running app, and who answers when the app has ended."""

import asyncio
import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sabot.clock import ManualClock
from sabot.engine.checkpoint import CheckpointStorage, Requests, ask, requests
from sabot.errors import UserError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """Time passes where `ask` waits, and nowhere else."""
    clock = ManualClock()
    monkeypatch.setattr(requests, "SYSTEM_CLOCK", clock)
    monkeypatch.setattr(requests, "time", SimpleNamespace(sleep=lambda seconds: slept(clock, seconds)))
    return clock


def slept(clock: ManualClock, seconds: float) -> None:
    clock.advance(seconds)
    meanwhile(clock.monotonic() - ManualClock().monotonic())


def meanwhile(seconds: float) -> None:
    """What happens while `ask` waits; tests put theirs in its place."""


def test_an_app_that_ends_is_not_waited_for(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: `sabot rescale` of an app that was just ending waited for 100 s."""
    storage = CheckpointStorage(tmp_path)
    storage.lock()
    began = clock.monotonic()

    monkeypatch.setattr(f"{__name__}.meanwhile", lambda seconds: storage.unlock() if seconds > 7 else None)
    with pytest.raises(UserError, match=r"the app that used .* has ended"):
        ask(tmp_path, {"workers": True}, 60)
    assert 9 < clock.monotonic() - began < 11
    assert not list((tmp_path / "requests").iterdir())


def test_an_app_that_is_busy_is_waited_for(tmp_path: Path, clock: ManualClock) -> None:
    storage = CheckpointStorage(tmp_path)
    storage.lock()
    began = clock.monotonic()
    with pytest.raises(UserError, match="no app that uses the checkpoint directory"):
        ask(tmp_path, {"workers": True}, 60)
    assert clock.monotonic() - began > 60
    storage.unlock()


def test_the_next_run_of_an_app_answers(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two runs of an app its directory is locked by nobody."""

    def answers(seconds: float) -> None:
        if seconds > 2.5:
            for request_id, _ in Requests(tmp_path).pending():
                Requests(tmp_path).answer(request_id, {"workers": []})

    monkeypatch.setattr(f"{__name__}.meanwhile", answers)
    assert ask(tmp_path, {"workers": True}, 60) == {"workers": []}


async def test_a_request_whose_answer_cannot_be_written_is_executed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: a checkpoint four times a second, until the client gave up, and no answer on a disk with room again."""
    monkeypatch.setattr(requests, "_SERVE_SECONDS", 0.0)
    storage, request_id, executed = CheckpointStorage(tmp_path), "a" * 32, []
    storage.lock()
    (tmp_path / f"requests/{request_id}.json").write_text('{"checkpoint": true}')
    done, written = tmp_path / f"requests/{request_id}.done.json", asyncio.Event()

    class FullDisk(Requests):
        refused = 0

        def answer(self, request_id: str, answer: dict[str, Any]) -> None:
            if self.refused < 3:
                self.refused += 1
                done.with_suffix(".tmp").write_text("{")
                raise OSError(errno.ENOSPC, "no space left on device")
            super().answer(request_id, answer)
            loop.call_soon_threadsafe(written.set)

    async def checkpoint(request: dict[str, Any]) -> dict[str, Any]:
        executed.append(request["id"])
        return {"checkpoint": len(executed)}

    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(requests.serve(FullDisk(tmp_path), checkpoint))
    await asyncio.wait_for(written.wait(), 60)
    serving.cancel()
    assert executed == [request_id]
    assert json.loads(done.read_text()) == {"checkpoint": 1}
    storage.unlock()
