"""Parts that a sink gathers (`gather_s`): fewer deliveries, and of each row as many as without."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sabot import App, Batch, Sink, Token, Track, TransientError, UserError
from sabot.connectors.base import KeepsToken
from sabot.connectors.memory import MemoryBroker
from sabot.steps import step
from sabot.testing import BARRIER, END, ManualClock, ScriptedSource, simulate
from tools.agent_tools import bounded, checkpoint, publish, started, until

SCHEMA = pa.schema([("n", pa.int64())])
GATHER_SECONDS = 60.0
PATIENCE = 120.0


class Commits(Sink, KeepsToken):
    """A receiver that keeps each delivery as a commit, with its number. Rows below 0 are refused. `trouble(count)` may raise, behind the
    commit with this number, or wait.
    """

    name = "commits"
    gather_s = GATHER_SECONDS

    def __init__(self) -> None:
        self.commits: list[tuple[int, list[int]]] = []
        self.token: Token | None = None
        self.track: Track | None = None
        self.settled = 0
        self.trouble: Callable[[int], None] = lambda count: None

    @property
    def parts(self) -> list[list[int]]:
        return [rows for _, rows in self.commits]

    def claim(self, track: Track) -> Token | None:
        self.track = track
        return self.token

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        if self.refused_rows(batches):
            raise UserError("a row is refused")
        assert self.track is not None
        with step("commit", self.name):
            self.commits.append((seq, [n for data in batches for n in data.column("n").to_pylist()]))
            self.token = Token(seq, self.track.incarnation)
        self.trouble(len(self.commits))

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        values = [value for data in batches for value in data.column("n").to_pylist()]
        return {row: f"{value} is below 0" for row, value in enumerate(values) if value < 0}

    def settle(self, seq: int) -> None:
        assert self.track is not None
        self.token = Token(seq, self.track.incarnation)
        self.settled += 1

    def open(self) -> None:
        raise AssertionError("a sink that delivers is claimed")

    def write(self, batch: Batch) -> None:
        raise AssertionError("a sink that delivers is given parts")

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


def assert_true(found: bool) -> None:
    assert found


class Gathering:
    """An app that passes the numbers of a topic on, with a clock that stands still."""

    def __init__(self, url: str, folder: Path, sink: Sink, **settings: Any) -> None:
        self.clock = ManualClock(1000.0)
        self.app = App(
            "gathering",
            url,
            clock=self.clock,
            checkpoint_dir=str(folder / "checkpoints"),
            checkpoint_interval="1h",
            restart="none",
            **settings,
        )
        self.app.stream("in", schema=SCHEMA, dead_letter="refused").to(sink)
        self.given = 0

    async def epoch(self, *rows: int) -> None:
        """The rows are read, and a checkpoint that has them is complete."""
        publish(self.app, "in", [{"n": n} for n in rows])
        self.given += len(rows)
        await until(lambda: self.read() == self.given, "the rows to be read")
        await checkpoint(self.app)

    def read(self) -> int:
        figures = self.app.statistics()["streams"]
        return sum(task["input"].get("rows_in", 0) for name, task in figures.items() if name.startswith("read"))

    def track(self) -> dict[str, Any]:
        (found,) = [each for each in self.app.statistics()["delivery"].values() if each["sink"] == "commits"]
        return found


async def test_the_parts_of_a_minute_are_one_delivery_under_the_number_of_the_last(
    memory_url: str, tmp_path: Path
) -> None:
    sink = Commits()
    gathering = Gathering(memory_url, tmp_path, sink)
    async with started(gathering.app):
        await gathering.epoch(1)
        await until(lambda: sink.parts == [[1]], "the first part, which nothing waits for")
        for n in range(2, 22):  # more checkpoints than may wait elsewhere
            await gathering.epoch(n)
        assert gathering.track()["undelivered_rows"] == 20
        assert gathering.track()["undelivered_epochs"] == 1
        assert sink.parts == [[1]]
        gathering.clock.advance(GATHER_SECONDS)
        await until(lambda: sink.parts == [[1], list(range(2, 22))], "the others, as one")
        (first, last) = (seq for seq, _ in sink.commits)
        assert last == first + 20
        assert gathering.track()["undelivered_epochs"] == 0
        await gathering.epoch(22)
    assert sink.parts[2:] == [[22]], "a stop waits for no more"


async def test_parts_of_many_bytes_wait_for_no_time(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.engine.delivery.tracks.GATHER_BYTES", 1500)
    sink = Commits()
    gathering = Gathering(memory_url, tmp_path, sink)
    async with started(gathering.app):
        await gathering.epoch(0)
        await until(lambda: sink.parts == [[0]], "the first part")
        await gathering.epoch(1)
        assert gathering.track()["undelivered_rows"] == 1
        await gathering.epoch(*range(2, 202))
        await until(lambda: len(sink.parts) == 2, "the parts")
    assert sink.parts == [[0], list(range(1, 202))]


async def test_parts_that_no_checkpoint_has_yet_hurry_none_that_are_gathered(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sabot.engine.delivery.tracks.GATHER_BYTES", 1500)
    monkeypatch.setattr("sabot.engine.delivery.tracks.RENEW_SECONDS", 10.0)
    monkeypatch.setattr("sabot.engine.delivery.parts.PART_BYTES", 1)
    sink = Commits()
    gathering = Gathering(memory_url, tmp_path, sink)
    async with started(gathering.app):
        await gathering.epoch(0)
        await until(lambda: sink.parts == [[0]], "the first part")
        await gathering.epoch(1)
        publish(gathering.app, "in", [{"n": n} for n in range(2, 202)])
        await until(lambda: gathering.track()["undelivered_bytes"] >= 1500, "the parts, before their checkpoint")
        before = sink.settled
        gathering.clock.advance(10)
        await until(lambda: sink.settled > before or len(sink.parts) > 1, "a look at the parts that are due")
        assert sink.parts == [[0]]
        await checkpoint(gathering.app)
        await until(lambda: sum(map(len, sink.parts)) == 202, "the parts")
    assert sink.parts[:2] != [[0], [1]]
    assert [n for rows in sink.parts for n in rows] == list(range(202))


async def test_a_receiver_that_is_away_holds_the_sources_after_as_many_deliveries_as_any(
    memory_url: str, tmp_path: Path
) -> None:
    sink, healed = Commits(), threading.Event()
    gathering = Gathering(memory_url, tmp_path, sink)
    async with started(gathering.app):
        await gathering.epoch(0)
        await until(lambda: sink.parts == [[0]], "the first part")
        sink.trouble = lambda count: assert_true(healed.wait(PATIENCE))
        for n in range(1, 40):
            gathering.clock.advance(GATHER_SECONDS / 2)
            publish(gathering.app, "in", [{"n": n}])
            await bounded(gathering.app.agent_runtime.trigger_checkpoint())
        assert 16 <= gathering.track()["undelivered_epochs"] <= 20
        held = gathering.read()
        assert held < 40
        healed.set()
        await until(lambda: gathering.read() == 40, "the sources to go on")
        await checkpoint(gathering.app)
    assert [n for rows in sink.parts for n in rows] == list(range(40))
    assert len(sink.parts) < 8, "what had waited is one delivery"


def test_rows_are_there_once_whatever_is_lost_and_wherever_the_app_dies(tmp_path: Path) -> None:
    """Parts that a crash has left are gathered anew, and the number of the last one says what has arrived."""

    def build(folder: Path) -> App:
        app = App("gathering", checkpoint_dir=str(folder))
        script = [item for n in range(0, 40, 2) for item in ([{"n": n}, {"n": n + 1}], BARRIER)]
        app.stream(ScriptedSource([*script, END], schema=SCHEMA)).to(sink)
        return app

    def lost(count: int) -> None:
        if count in (2, 3):
            raise TransientError("the answer was lost")

    gathered = 0
    for seed in range(12):
        sink = Commits()
        sink.gather_s, sink.trouble = 0.5, lost
        simulate(build, seed=seed, crashes=3, directory=tmp_path / str(seed))
        assert [n for rows in sink.parts for n in rows] == list(range(40))
        gathered += sum(len(rows) > 2 for rows in sink.parts)
    assert gathered > 12, "the seeds have parts that were put together"


async def test_letters_of_refused_rows_keep_their_ids_however_their_parts_are_put_together(
    memory_url: str, tmp_path: Path
) -> None:
    sink = Commits()
    gathering = Gathering(memory_url, tmp_path, sink)
    async with started(gathering.app):
        await gathering.epoch(0)
        await until(lambda: sink.parts == [[0]], "the first part")
        await gathering.epoch(1, -1)
        await gathering.epoch(-2, 2, -3)
        gathering.clock.advance(GATHER_SECONDS)
        await until(lambda: len(sink.parts) == 2, "the parts")
    assert sink.parts == [[0], [1, 2]]
    ids = {
        json.loads(letter.payload)["n"]: dict(letter.headers)["sabot.row"].decode()
        for letter in MemoryBroker.get(memory_url).records("refused")
    }
    last = sink.commits[-1][0]
    assert {n: each.split(".")[-2:] for n, each in ids.items()} == {
        -1: [f"{last - 1}", "1"],
        -2: [f"{last}", "0"],
        -3: [f"{last}", "2"],
    }
