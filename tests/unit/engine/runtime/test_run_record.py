"""The record of the runs of an app in its state directory."""

import asyncio
import json
import logging
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, NdjsonSink, NdjsonSource
from sabot.base.redaction import keep_secret
from sabot.connectors.base import Sink
from sabot.engine.plan.drawing import frames_from, frames_of
from sabot.engine.plan.drawing.render import render
from sabot.engine.runtime.watch.figure_rings import FigureRings
from sabot.engine.runtime.watch.run_record import RECORD_FILE, RunRecord, read_record
from sabot.errors import UserError


def shop(folder: Path, **settings: Any) -> App:
    rows = folder / "orders.ndjson"
    rows.write_text("".join(json.dumps({"account": f"a{n % 3}", "ts": n}) + "\n" for n in range(30)))
    app = App("shop", state=str(folder / "state"), version="v7", **settings)
    orders = app.stream(NdjsonSource(rows), schema={"account": "string", "ts": "int64"}, time="ts")
    counts = orders.key_by("account").window(sabot.tumbling("1s")).aggregate(n=sabot.count())
    counts.to(NdjsonSink(folder / "out.ndjson"))
    return app


def record_in(folder: Path) -> RunRecord:
    found = read_record(folder / "state")
    assert found is not None
    return found


async def test_a_run_leaves_its_figures_its_plan_and_the_end_of_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = shop(tmp_path, journal="postgresql://user:s3cret-word@localhost/jobs")
    await app.run()
    record = record_in(tmp_path)
    assert (record.app, record.version, record.state, record.why) == ("shop", "v7", "stopped", "")
    kept = FigureRings(dict)
    kept.load(record.run, record.figures)
    assert kept.last.figures.checkpoints.completed >= 1
    drawn = render(frames_of(app.plan()))
    assert render(frames_from(record.plan)) == drawn
    assert dict((name, value) for name, value, _ in record.settings)["checkpoint_interval"] == ""
    assert [event.kind for event in record.events] == ["start"]
    assert "app shop: 30 rows in" in "\n".join(line.message for line in record.log)
    file = tmp_path / "state" / RECORD_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert record.journal == "postgresql://user@localhost/jobs"
    assert "s3cret-word" not in file.read_text()


async def test_a_secret_that_is_a_word_of_the_record_leaves_the_record_readable(tmp_path: Path) -> None:
    class Owner:
        """A secret is let go with its owner."""

    owner = Owner()
    keep_secret("right", "started", "completed", owner=owner)
    await shop(tmp_path, journal="postgresql://user:hunter-two@localhost/jobs").run()
    record = record_in(tmp_path)
    assert [each.id for each in frames_from(record.plan)]
    assert record.figures.ticks[-1].figures.checkpoints.completed >= 1


async def test_a_failed_run_and_a_killed_one_are_told_by_the_next(tmp_path: Path) -> None:
    app = shop(tmp_path)

    class Refusing(Sink):
        name = "refusing"

        def open(self) -> None:
            """Nothing to open."""

        def write(self, batch: Any) -> None:
            raise RuntimeError("no such account")

        def flush(self) -> None:
            """Nothing to flush."""

        def close(self) -> None:
            """Nothing to close."""

    app.stream(NdjsonSource(tmp_path / "orders.ndjson"), schema={"account": "string"}).to(Refusing())
    app.configure(restart="fixed(1, 0s)")
    with pytest.raises(sabot.errors.SabotError, match="no such account"):
        await app.run()
    record = record_in(tmp_path)
    assert record.state == "failed"
    assert "no such account" in record.why
    assert [event.kind for event in record.events] == ["start", "restart", "failed"]
    assert "no such account" in record.events[1].reason
    file = tmp_path / "state" / RECORD_FILE
    file.write_text(file.read_text().replace('"state":"failed"', '"state":"running"'))  # as kill -9 leaves it
    await shop(tmp_path).run()
    kinds = [event.kind for event in record_in(tmp_path).events]
    assert kinds == ["start", "restart", "failed", "killed", "start"]


@pytest.mark.slow  # half a second of a core
async def test_the_record_is_bounded(tmp_path: Path) -> None:
    app = shop(tmp_path)
    recorder = app.agent_runtime.runner.watch.recorder
    recorder.open()
    try:
        for n in range(2_000):
            logging.getLogger("shop").warning("line %d %s", n, "x" * 7_000)
            recorder.note("checkpoint", f"reason {n} " + "y" * 5_000)
        recorder.begun()
        recorder.ended()
    finally:
        recorder.close()
    record = record_in(tmp_path)
    assert (tmp_path / "state" / RECORD_FILE).stat().st_size < 1_000_000
    assert record.log[-1].message.startswith("line 1999 ")
    failed = [event for event in record.events if event.kind == "checkpoint"]
    assert (len(failed), failed[-1].reason[:11]) == (100, "reason 1999")


async def test_an_app_whose_directory_another_process_has_writes_nothing_there(tmp_path: Path) -> None:
    app, other = shop(tmp_path), shop(tmp_path)
    await app.start()
    try:
        before = record_in(tmp_path)
        with pytest.raises(sabot.errors.SabotError):
            await other.start()
        assert record_in(tmp_path).run == before.run
    finally:
        await app.stop()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("damage", [lambda text: text[:200], lambda text: "[]", lambda text: text.replace("1", '"1"')])
async def test_a_damaged_record_is_named_and_written_anew(tmp_path: Path, damage: Callable[[str], str]) -> None:
    await shop(tmp_path).run()
    file = tmp_path / "state" / RECORD_FILE
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        read_record(tmp_path / "state")
    (tmp_path / "out.ndjson").unlink()
    await shop(tmp_path).run()
    assert record_in(tmp_path).state == "stopped"


async def test_a_running_app_writes_each_ten_seconds(tmp_path: Path) -> None:
    app = shop(tmp_path)
    recorder = app.agent_runtime.runner.watch.recorder
    recorder.begun()
    file = tmp_path / "state" / RECORD_FILE
    file.unlink()
    recorder.open()
    try:
        deadline = time.monotonic() + 90
        while not file.exists():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert record_in(tmp_path).figures.ticks[-1].number == 4
    finally:
        recorder.close()
