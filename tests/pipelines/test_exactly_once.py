"""What users are promised of results: there once a checkpoint covers them, once each and in order, whatever the receiver does
and wherever the app dies; and a stop with the choice spelled out where nobody can know.
"""

import asyncio
import contextlib
import itertools
import json
import random
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
import pytest

from sabot import (
    App,
    AppLocked,
    Batch,
    CheckpointFailed,
    CorruptCheckpoint,
    DeliveryConflict,
    NdjsonSink,
    NdjsonSource,
    ParquetSink,
    SabotError,
    Sink,
    SqlSink,
    Token,
    Track,
    TransientError,
    UserError,
)
from sabot.codecs.records import RECORD_SCHEMA, iterate_records
from sabot.connectors.base import Delivers, KeepsToken
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage
from sabot.engine.delivery import undelivered
from sabot.engine.runtime.life.restore import plan_of, sinks_of
from sabot.kafka import open_sink
from sabot.steps import step, watch
from sabot.testing import BARRIER, CRASH, END, ListSink, ScriptedSource, run, simulate
from tools.agent_tools import bounded, checkpoint, manifest_files, publish, started, until, write_lines

SCHEMA = pa.schema([("n", pa.int64())])
PATIENCE = 180.0


class Receiver(Sink, Delivers):
    """A user's own: keeps no token, knows a part by its number. `trouble(seq, rows)` may raise or wait, before a part is taken;
    `late_trouble` after it was.
    """

    name = "receiver"

    def __init__(self) -> None:
        self.claims: list[Track] = []
        self.given: list[tuple[int, list[Any]]] = []  # each call, in order
        self.calls: list[tuple[tuple[str, int], list[Any]]] = []  # the same, with the incarnation
        self.taken: dict[tuple[str, int], list[Any]] = {}
        self.trouble: Callable[[int, list[Any]], None] = lambda seq, rows: None
        self.late_trouble: Callable[[int, list[Any]], None] = lambda seq, rows: None

    @property
    def rows(self) -> list[Any]:
        return [row for part in list(self.taken.values()) for row in part]

    def claim(self, track: Track) -> Token | None:
        with step("claim", track.key):
            self.claims.append(track)
        return None

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        rows = [row for data in batches for row in values_of(data)]
        self.given.append((seq, rows))
        self.calls.append(((self.claims[-1].incarnation, seq), rows))
        self.trouble(seq, rows)
        with step("deliver", seq):
            self.taken.setdefault((self.claims[-1].incarnation, seq), rows)
        self.late_trouble(seq, rows)

    def open(self) -> None:
        raise AssertionError("a sink that delivers is claimed")

    def write(self, batch: Batch) -> None:
        raise AssertionError("a sink that delivers is given parts")

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


def waiting_for(event: threading.Event) -> Callable[[int, list[Any]], None]:
    """The trouble of a receiver that does not answer before the event."""

    def trouble(seq: int, rows: list[Any]) -> None:
        event.wait(PATIENCE)

    return trouble


class Plain(Sink):
    """A user's own that cannot deliver exactly once."""

    name = "plain"

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def open(self) -> None:
        """Ready."""

    def write(self, batch: Batch) -> None:
        self.rows += values_of(batch.taken())

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing to let go of."""


def values_of(data: pa.RecordBatch) -> list[Any]:
    """What a result says: `n` of a row, or the value of a record."""
    if data.schema.equals(RECORD_SCHEMA):
        return [record.value["n"] for record in iterate_records(data, "result")]
    return data.column("n").to_pylist()


def dicts(rows: Sequence[int]) -> list[dict[str, int]]:
    return [{"n": n} for n in rows]


def numbers(
    url: str, folder: Path, sink: Any, *, delivery: Any = None, checkpoints: bool = True, **settings: Any
) -> App:
    """Passes the numbers of the topic "in" on to the sink; a checkpoint when it is asked for."""
    if checkpoints:
        settings["checkpoint_dir"] = str(folder / "checkpoints")
    settings = {"checkpoint_interval": "1h", "restart": "none", **settings}
    app = App("numbers", url, **settings)
    app.stream("in", schema=SCHEMA).to(sink, delivery=delivery)
    return app


@contextlib.asynccontextmanager
async def running(app: App) -> AsyncIterator[None]:
    """The app runs (as by `App.run`) inside the block, and is stopped after it. Raises what ends it."""
    run_of_it = asyncio.ensure_future(app.run())
    await until(lambda: run_of_it.done() or app.statistics()["streams"], "the start")
    try:
        if not run_of_it.done():
            yield
    finally:
        app.request_stop()
        await bounded(run_of_it)


def rows_read(app: App) -> int:
    figures = app.statistics()["streams"]
    return sum(task["input"].get("rows_in", 0) for name, task in figures.items() if name.startswith("read"))


async def feed(app: App, rows: Sequence[int]) -> None:
    """Rows are in the topic, and read: the next checkpoint covers them."""
    before = rows_read(app)
    publish(app, "in", dicts(rows))
    await until(lambda: rows_read(app) >= before + len(rows), "the rows to be read")


def delivery(app: App) -> dict[str, Any]:
    """The figures of the only track."""
    (figures,) = app.statistics()["delivery"].values()
    return figures


def scripted(*script: Any) -> ScriptedSource:
    return ScriptedSource(list(script), schema=SCHEMA)


class Watcher:
    """Notes the steps; `at(name, what)` is called before each of them."""

    def __init__(self, at: Callable[[str, str], None] = lambda name, what: None) -> None:
        self.at = at
        self.lock = threading.Lock()

    def __enter__(self) -> "Watcher":
        watch(self)
        return self

    def __exit__(self, *error: object) -> None:
        watch(None)

    def before(self, name: str, what: str) -> None:
        with self.lock:
            self.at(name, what)

    def after(self, name: str, what: str) -> None:
        """Done."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


# -- which delivery -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "exactly_once"])
async def test_rows_are_there_once_a_checkpoint_covers_them_and_not_before(
    memory_url: str, tmp_path: Path, asked: str | None
) -> None:
    sink = ListSink()
    app = numbers(memory_url, tmp_path, sink, delivery=asked)
    async with started(app):
        await feed(app, [1, 2])
        assert sink.rows == []
        await checkpoint(app)
        await until(lambda: sink.rows == dicts([1, 2]), "the rows of the checkpoint")
        await feed(app, [3])
        assert sink.rows == dicts([1, 2])
    assert sink.rows == dicts([1, 2, 3]), "stopping takes a last checkpoint, and delivers what it covers"


async def test_at_least_once_is_there_at_once(memory_url: str, tmp_path: Path) -> None:
    sink = Plain()
    app = numbers(memory_url, tmp_path, sink, delivery="at_least_once")
    async with started(app):
        await feed(app, [1, 2])
        await until(lambda: sink.rows == [1, 2], "rows without a checkpoint")
        assert manifest_files(tmp_path / "checkpoints") == []


async def test_a_sink_that_cannot_deliver_is_at_least_once_unless_asked(memory_url: str, tmp_path: Path) -> None:
    sink = Plain()
    async with started(app := numbers(memory_url, tmp_path, sink)):
        await feed(app, [1])
        await until(lambda: sink.rows == [1], "rows without a checkpoint")
    with pytest.raises(UserError, match=r"plain.*exactly.once") as caught:
        await numbers(memory_url, tmp_path / "other", Plain(), delivery="exactly_once").start()
    assert "at_least_once" in str(caught.value), "it says what to do"


async def test_without_checkpoints_results_are_at_least_once_unless_asked(memory_url: str, tmp_path: Path) -> None:
    sink = ListSink()
    app = numbers(memory_url, tmp_path, sink, checkpoints=False)
    async with started(app):
        await feed(app, [1])
    assert sink.rows == dicts([1])
    with pytest.raises(UserError, match="checkpoint") as caught:
        await numbers(memory_url, tmp_path, ListSink(), checkpoints=False, delivery="exactly_once").start()
    assert caught.value.hint


def test_another_word_for_delivery_is_refused_where_it_is_written(memory_url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="twice") as caught:
        numbers(memory_url, tmp_path, ListSink(), delivery="twice")
    assert "exactly_once" in str(caught.value)
    app = App("words", memory_url)
    with pytest.raises(UserError, match="twice"):

        @app.agent("in", sink="out", delivery="twice")
        async def pass_on(ctx: Any) -> Any:
            return ctx.message


async def test_what_dies_with_the_process_is_exactly_once_only_if_asked(memory_url: str, tmp_path: Path) -> None:
    broker = MemoryBroker.get(memory_url)
    async with started(app := numbers(memory_url, tmp_path / "a", "at-once")):
        await feed(app, [1])
        await until(lambda: len(broker.records("at-once")) == 1, "the record")
    async with started(app := numbers(memory_url, tmp_path / "b", "staged", delivery="exactly_once")):
        await until(lambda: rows_read(app) == 1, "the rows")
        assert broker.records("staged") == []
        await checkpoint(app)
        await until(lambda: len(broker.records("staged")) == 1, "the record")


@pytest.mark.parametrize("asked", ["exactly_once", "at_least_once", None])
async def test_an_agent_delivers_like_a_stream(memory_url: str, tmp_path: Path, asked: str | None) -> None:
    sink = ListSink()
    app = App("agents", memory_url, checkpoint_dir=str(tmp_path), checkpoint_interval="1h")

    @app.agent("in", sink=sink, delivery=asked)
    async def pass_on(ctx: Any) -> Any:
        return ctx.message

    async with started(app):
        publish(app, "in", dicts([1, 2, 3]))
        await until(lambda: app.statistics()["agents"]["agents.pass_on"]["messages_processed"] == 3)
        if asked == "at_least_once":
            await checkpoint(app)  # a ListSink keeps what was flushed
        else:
            assert sink.rows == []
            await checkpoint(app)
        await until(lambda: len(sink.rows) == 3, "the results")
    assert sink.rows == dicts([1, 2, 3])


@pytest.mark.slow  # half a second of a core
@pytest.mark.parametrize(("asked", "least", "most"), [("exactly_once", 290, 330), ("at_least_once", 4, 8)])
def test_a_checkpoint_each_second_with_an_exactly_once_sink_each_minute_without(
    asked: Any, least: int, most: int
) -> None:
    """300 s of virtual time."""
    sink = ListSink()

    def build(folder: Path) -> App:
        app = App("intervals", checkpoint_dir=str(folder), checkpoint_timeout="10m")  # longer than the call

        @app.agent(ScriptedSource([{"n": 1}, END]), sink=sink, delivery=asked)
        async def slow(ctx: Any) -> Any:
            await asyncio.sleep(300)
            return ctx.message

        return app

    steps = simulate(build, seed=1).steps
    assert least <= sum(step.endswith("executor: manifest") for step in steps) <= most
    assert sink.rows == dicts([1])


# -- receivers in trouble -------------------------------------------------------------------------------------------------


async def test_a_receiver_that_fails_for_a_while_gets_all_of_it_once_and_in_order(
    memory_url: str, tmp_path: Path
) -> None:
    sink = Receiver()
    failures = iter([TransientError("busy"), TransientError("still busy")])
    passed = threading.Event()

    def trouble(seq: int, rows: list[Any]) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        passed.wait(PATIENCE)

    sink.trouble = trouble
    app = numbers(memory_url, tmp_path, sink)
    async with started(app):
        for n in range(4):  # checkpoints go on meanwhile
            await feed(app, [2 * n, 2 * n + 1])
            await checkpoint(app)
        assert sink.rows == []
        assert app.statistics()["checkpoints"]["failed"] == 0
        passed.set()
        await until(lambda: len(sink.rows) == 8, "the receiver to have all")
    assert sink.rows == list(range(8))
    assert len(sink.claims) == 3, "after each error the track is claimed again"
    assert [seq for seq, _ in sink.given[:3]] == [sink.given[0][0]] * 3, "the same part is tried again"
    assert [seq for seq, _ in sink.given] == sorted(seq for seq, _ in sink.given)


async def test_a_part_that_got_through_before_the_error_is_not_there_twice(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()
    failures = iter([TransientError("the answer was lost")])

    def late_trouble(seq: int, rows: list[Any]) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    sink.late_trouble = late_trouble
    app = numbers(memory_url, tmp_path, sink)
    async with started(app):
        await feed(app, [1, 2])
        await checkpoint(app)
        await until(lambda: len(sink.given) == 2, "the part to be given again")
    assert sink.given[0] == sink.given[1], "the same number, the same rows"
    assert sink.rows == [1, 2]


@pytest.mark.slow  # half a second of a core
async def test_a_stuck_receiver_holds_the_sources_but_no_checkpoint(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()
    healed = threading.Event()
    sink.trouble = waiting_for(healed)
    app = numbers(memory_url, tmp_path, sink)
    directory = tmp_path / "checkpoints"
    sent = 0
    async with started(app):
        for _ in range(60):
            publish(app, "in", dicts(range(sent, sent + 10)))
            sent += 10
            await bounded(app.agent_runtime.trigger_checkpoint())
            held = rows_read(app)
        stuck = delivery(app)
        assert 0 < held < sent, "the sources are held"
        assert 16 <= stuck["undelivered_epochs"] <= 20, "not before the bound, and not much behind it"
        files = sorted(directory.rglob("*"))
        sizes = sum(path.stat().st_size for path in files if path.is_file())
        for _ in range(10):  # more of the same
            await bounded(app.agent_runtime.trigger_checkpoint())
        assert rows_read(app) == held
        assert delivery(app)["undelivered_rows"] == stuck["undelivered_rows"]
        assert delivery(app)["undelivered_epochs"] == stuck["undelivered_epochs"]
        assert len(sorted(directory.rglob("*"))) <= len(files) + 3
        assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) <= sizes * 1.2 + 1000
        assert app.statistics()["checkpoints"]["failed"] == 0
        healed.set()
        await until(lambda: rows_read(app) == sent, "the sources to go on")
        await checkpoint(app)
        await until(lambda: len(sink.rows) == sent, "the receiver to have all")
        assert sink.rows == list(range(sent))
    assert len(sink.given) == len(sink.taken), "no part was given twice"


async def test_a_stuck_receiver_keeps_no_row_from_another_sink(memory_url: str, tmp_path: Path) -> None:
    stuck, other = Receiver(), ListSink("other")
    healed = threading.Event()
    stuck.trouble = waiting_for(healed)
    app = numbers(memory_url, tmp_path, stuck)
    app.stream("in", schema=SCHEMA).to(other)
    async with started(app):
        publish(app, "in", dicts([1, 2]))
        await until(lambda: rows_read(app) == 4)
        await checkpoint(app)
        await until(lambda: other.rows == dicts([1, 2]), "the other sink's rows")
        assert stuck.rows == []
        healed.set()
        await until(lambda: stuck.rows == [1, 2])


async def test_a_receiver_that_refuses_for_good_ends_the_app_and_the_next_start_delivers(
    memory_url: str, tmp_path: Path
) -> None:
    broken, sink = True, Receiver()

    def trouble(seq: int, rows: list[Any]) -> None:
        if broken:
            raise ValueError("no such table")

    sink.trouble = trouble
    app = numbers(memory_url, tmp_path, sink, checkpoint_interval="20ms")
    publish(app, "in", dicts([1, 2, 3]))
    with pytest.raises(Exception, match="no such table") as caught:
        await bounded(app.run())
    assert "receiver" in str(caught.value) or "receiver" in str(caught.value.__notes__), "it says which sink"
    assert sink.rows == []
    broken = False
    async with started(numbers(memory_url, tmp_path, sink)):
        await until(lambda: sink.rows == [1, 2, 3], "what was pending")
    assert sink.rows == [1, 2, 3]


async def test_a_part_that_is_given_again_by_the_next_process_is_the_same(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()

    def late_trouble(seq: int, rows: list[Any]) -> None:
        raise ValueError("died just after it")

    sink.late_trouble = late_trouble
    app = numbers(memory_url, tmp_path, sink, checkpoint_interval="20ms")
    publish(app, "in", dicts(range(5)))
    with pytest.raises(Exception, match="died just after"):
        await bounded(app.run())
    before = list(sink.given)
    sink.late_trouble = lambda seq, rows: None
    publish(app, "in", dicts(range(5, 8)))
    app = numbers(memory_url, tmp_path, sink)
    async with started(app):
        await until(lambda: len(sink.given) > len(before), "the part again")
        await checkpoint(app)
    again = sink.given[len(before)]
    assert again in before, "the same number, the same rows"
    assert sink.rows == list(range(8))
    assert len({track.incarnation for track in sink.claims}) == 1
    assert len({track.key for track in sink.claims}) == 1


@pytest.mark.slow  # half a second of a core
def test_numbers_grow_over_lives_and_are_never_used_for_other_rows(tmp_path: Path) -> None:
    sink = Receiver()

    def build(folder: Path) -> App:
        app = App("grow", checkpoint_dir=str(folder))
        rows = [[{"n": n}] for n in range(8)]
        script: list[Any] = []
        for row in rows:
            script += [row, BARRIER, row, CRASH]
        app.stream(scripted(*script, END)).to(sink)
        return app

    assert run(build, tmp_path) == 9
    assert sorted(sink.rows) == sorted([*range(8), *range(8)])
    assert sink.rows == sorted(sink.rows), "in order"
    contents: dict[int, list[Any]] = {}
    for seq, part in sink.given:
        assert contents.setdefault(seq, part) == part
    assert list(contents) == sorted(contents)


@pytest.mark.slow  # a second of a core
def test_a_receiver_that_fails_here_and_there_and_crashes_in_between(tmp_path: Path) -> None:
    """Seeds: errors before and after a part is taken, crashes, and stops in good order; all of it once, and in order."""
    for seed in range(5):
        rng, sink = random.Random(seed), Receiver()

        def trouble(seq: int, rows: list[Any], rng: random.Random = rng) -> None:
            if rng.random() < 0.3:
                raise TransientError("flaky")

        sink.trouble = sink.late_trouble = trouble

        def build(folder: Path, sink: Receiver = sink, rng: random.Random = rng) -> App:
            app = App("flaky", checkpoint_dir=str(folder), checkpoint_interval=rng.choice(["50ms", "1s"]))
            script: list[Any] = [mark for n in range(12) for mark in (dicts(range(5 * n, 5 * n + 5)), BARRIER)]
            app.stream(scripted(*script, END)).to(sink)
            return app

        simulate(build, seed, crashes=3, stops=1, directory=tmp_path / str(seed))
        assert sink.rows == list(range(60)), f"seed {seed}"
        contents: dict[int, list[Any]] = {}
        for seq, rows in sink.given:
            assert contents.setdefault(seq, rows) == rows, f"seed {seed}: one number, two contents"


# -- checkpoints that fail ------------------------------------------------------------------------------------------------


async def test_rows_of_a_failed_checkpoint_come_with_the_next_one(memory_url: str, tmp_path: Path) -> None:
    sink = ListSink()
    app = numbers(memory_url, tmp_path, sink)
    full = True

    def at(name: str, what: str) -> None:
        if name == "manifest" and full:
            raise OSError(28, "No space left on device")

    async with started(app):
        with Watcher(at):
            await feed(app, [1, 2])
            with pytest.raises(Exception, match="space"):
                await bounded(app.agent_runtime.trigger_checkpoint())
            await feed(app, [3])
            assert sink.rows == []
            full = False
            await checkpoint(app)
            await until(lambda: len(sink.rows) == 3, "both epochs")
    assert sink.rows == dicts([1, 2, 3])


def test_rows_behind_the_last_checkpoint_are_not_delivered_by_a_dead_process(tmp_path: Path) -> None:
    sink = ListSink()

    def build(folder: Path) -> App:
        app = App("dead", checkpoint_dir=str(folder))
        app.stream(scripted([{"n": 1}], BARRIER, [{"n": 2}], CRASH, [{"n": 3}], BARRIER, [{"n": 4}], CRASH, END)).to(
            sink
        )
        return app

    assert run(build, tmp_path) == 3
    assert sink.rows == dicts([1, 2, 3, 4])


# -- a bounded app, killed near its end -----------------------------------------------------------------------------------


def bounded_app(folder: Path, kind: str) -> App:
    app = App("bounded", checkpoint_dir=str(folder / "checkpoints"), checkpoint_interval="1h", restart="none")
    parquet = ParquetSink(str(folder / "out.parquet"))
    sql = SqlSink(f"sqlite:///{folder}/out.db", table="out")
    stream = app.stream(scripted(dicts(range(50)), dicts(range(50, 90)), END))
    if kind == "join":
        stream = stream.join(app.stream(NdjsonSource(folder / "others.ndjson")), on="n").select("n")
    stream.to(sql if kind == "sqlite" else parquet)
    return app


def results(folder: Path, kind: str) -> list[int] | None:
    """None: there are none."""
    if kind != "sqlite":
        path = folder / "out.parquet"
        return sorted(pyarrow.parquet.read_table(path)["n"].to_pylist()) if path.exists() else None
    return in_table(folder / "out.db")


def in_table(path: Path) -> list[int] | None:
    if not path.exists():
        return None
    with sqlite3.connect(path) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'out'").fetchall():
            return None
        return [n for (n,) in connection.execute("SELECT n FROM out ORDER BY rowid")] or None


@pytest.mark.one_in(4, "a third of a second of a core each")
@pytest.mark.parametrize("kind", ["parquet", "sqlite", "join"])
async def test_a_bounded_app_killed_at_its_end_is_completed_by_the_next_start(tmp_path: Path, kind: str) -> None:
    """A picture of the disk is taken before each step from the last checkpoint on, and an app starts on each of them. Where that checkpoint
    is complete the app reads no more: the rows of a join are not kept, and a row that came into its file since would find no partner.
    """
    live, pictures = tmp_path / "live", tmp_path / "pictures"
    live.mkdir()
    write_lines(live / "others.ndjson", dicts(range(90)))
    taken: list[Path] = []

    def at(name: str, what: str) -> None:
        if (taken or name == "manifest") and name != "write":
            taken.append(pictures / f"{len(taken):03}-{name}")
            shutil.copytree(live, taken[-1])

    with Watcher(at):
        await bounded_app(live, kind).run()
    assert results(live, kind) == list(range(90))
    kinds = [path.name[4:] for path in taken]
    assert kinds.count("manifest") == 2, "the end, and that the result is complete"
    assert len(taken) >= 5
    for picture in taken:
        shutil.rmtree(live)
        shutil.copytree(picture, live)
        found = results(live, kind)
        assert found in (None, list(range(90))), f"half a result at {picture.name}"
        write_lines(live / "others.ndjson", dicts([*range(90), 3] if picture != taken[0] else range(90)))
        app = bounded_app(live, kind)
        await bounded(app.run())
        assert rows_read(app) == 0 or picture == taken[0]
        assert results(live, kind) == list(range(90)), picture.name
    before = {path: path.stat().st_mtime_ns for path in live.glob("out*")}
    await bounded(bounded_app(live, kind).run())
    assert {path: path.stat().st_mtime_ns for path in live.glob("out*")} == before, "a further start does nothing"


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("kind", ["parquet", "sqlite"])
async def test_a_disk_that_fails_once_at_any_step_costs_no_row(tmp_path: Path, kind: str) -> None:
    """Each step raises once, in a run of its own; whatever comes of that run, after the next start the result is exact."""
    names: list[str] = []
    with Watcher(lambda name, what: names.append(name)):
        (tmp_path / "undisturbed").mkdir()
        await bounded_app(tmp_path / "undisturbed", kind).run()
    assert len(names) > 8
    for number, name in enumerate(names):
        if name in names[:number] and name in names[number + 1 :]:
            continue  # the first and the last of each kind
        folder = tmp_path / f"{number}-{name}"
        folder.mkdir()
        steps = itertools.count()

        def at(step: str, what: str, steps: Any = steps, number: int = number) -> None:
            if next(steps) == number:
                raise OSError(5, "Input/output error", what)

        with Watcher(at):
            with contextlib.suppress(SabotError, OSError, sqlite3.Error):
                await bounded(bounded_app(folder, kind).run())
            assert results(folder, kind) in (None, list(range(90))), f"half a result after {folder.name}"
        await bounded(bounded_app(folder, kind).run())
        assert results(folder, kind) == list(range(90)), folder.name


async def test_a_bounded_app_whose_last_checkpoint_fails_says_so_and_the_next_start_completes_it(
    tmp_path: Path,
) -> None:
    def at(name: str, what: str) -> None:
        if name == "manifest":
            raise OSError(28, "No space left on device")

    with Watcher(at), pytest.raises(SabotError, match="space"):
        await bounded(bounded_app(tmp_path, "parquet").run())
    assert results(tmp_path, "parquet") is None
    await bounded(bounded_app(tmp_path, "parquet").run())
    assert results(tmp_path, "parquet") == list(range(90))


async def test_a_bounded_app_ends_when_its_last_rows_are_delivered(tmp_path: Path) -> None:
    sink = Receiver()
    failures = iter([TransientError("busy"), TransientError("still busy")])

    def trouble(seq: int, rows: list[Any]) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    sink.trouble = trouble
    app = App("bounded", checkpoint_dir=str(tmp_path), checkpoint_interval="1h")
    app.stream(scripted(dicts(range(50)), END)).to(sink)
    await bounded(app.run())
    assert sink.rows == list(range(50))
    assert delivery_left(tmp_path) == 0


@pytest.mark.slow  # half a second of a core
def test_stopping_does_not_wait_for_ever_for_a_stuck_receiver(tmp_path: Path) -> None:
    """In virtual time. What is not delivered is in the last checkpoint, and the next start delivers it."""
    sink = Receiver()

    def away(seq: int, rows: list[Any]) -> None:
        raise TransientError("away")

    def build(folder: Path) -> App:
        app = App("stopping", checkpoint_dir=str(folder))

        @app.agent(ScriptedSource([{"n": n} for n in range(5)] + [END]), sink=sink)
        async def slow(ctx: Any) -> Any:
            await asyncio.sleep(5)
            if ctx.message["n"] == 3 and sink.trouble is away:
                app.request_stop()
            return ctx.message

        return app

    sink.trouble = away
    found = simulate(build, seed=11, directory=tmp_path)
    assert found.seconds < 20 + 90
    assert sink.rows == []
    assert delivery_left(tmp_path) >= 3
    sink.trouble = lambda seq, rows: None
    simulate(build, seed=12, directory=tmp_path)
    assert sink.rows == list(range(5))


@pytest.mark.one_in(2, "a quarter of a second of a core each")
@pytest.mark.parametrize("failures", [3, 40])
def test_an_input_that_ends_while_the_receiver_is_away_is_delivered_or_its_end_is_an_error(
    tmp_path: Path, failures: int
) -> None:
    """In virtual time: forty failures take some six minutes. An app without an error has delivered everything."""
    sink = Receiver()
    errors = iter([TransientError("away")] * failures)

    def trouble(seq: int, rows: list[Any]) -> None:
        if (error := next(errors, None)) is not None:
            raise error

    def build(folder: Path) -> App:
        app = App("ends", checkpoint_dir=str(folder))
        app.stream(scripted(dicts(range(50)), END)).to(sink)
        return app

    sink.trouble = trouble
    if failures == 40:
        with pytest.raises(TransientError, match=r"50 rows .*receiver"):
            simulate(build, seed=5, directory=tmp_path)
        assert sink.rows == []
        assert delivery_left(tmp_path) == 50
        sink.trouble = lambda seq, rows: None
    simulate(build, seed=6, directory=tmp_path)
    assert sink.rows == list(range(50))
    assert delivery_left(tmp_path) == 0


def delivery_left(checkpoints: Path) -> int:
    """Rows that the newest checkpoint lists as not delivered."""
    manifest = CheckpointStorage(checkpoints).latest()
    assert manifest is not None
    return sum(part.rows for track in manifest.lanes.values() for part in track.pending)


# -- where checkpoint and receiver disagree -------------------------------------------------------------------------------


def to_sql(url: str, folder: Path, **settings: Any) -> App:
    return numbers(url, folder, SqlSink(f"sqlite:///{folder}/out.db", table="out"), **settings)


async def lived(app: App, *epochs: Sequence[int]) -> None:
    """A run with a checkpoint behind each epoch; all is delivered when it ends."""
    async with started(app):
        for rows in epochs:
            await feed(app, rows)
            await checkpoint(app)


async def died_before_delivery(url: str, folder: Path, rows: Sequence[int]) -> None:
    """The folder is as a crash leaves it that comes when a checkpoint with these rows is complete and they are not delivered."""
    app = to_sql(url, folder)
    picture = folder.with_name(folder.name + "-picture")

    def at(name: str, what: str) -> None:
        if not picture.exists() and taking and manifest_files(folder / "checkpoints") != manifests_before:
            shutil.copytree(folder, picture)

    taking = False
    manifests_before = manifest_files(folder / "checkpoints")
    with Watcher(at):
        async with started(app):
            await feed(app, rows)
            manifests_before, taking = manifest_files(folder / "checkpoints"), True
            await checkpoint(app)
            await until(picture.exists, "a step behind the manifest")
    shutil.rmtree(folder)
    picture.rename(folder)
    pending = CheckpointStorage(folder / "checkpoints").latest()
    assert pending is not None
    assert [part.rows for track in pending.lanes.values() for part in track.pending] == [len(rows)]


def tokens(folder: Path, sql: str = "SELECT lane, seq FROM sabot_tokens") -> list[Any]:
    with sqlite3.connect(folder / "out.db") as connection:
        return connection.execute(sql).fetchall()


async def test_what_was_pending_when_the_process_died_is_delivered_by_the_next(memory_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    await lived(to_sql(memory_url, folder), [1, 2])
    await died_before_delivery(memory_url, folder, [3, 4])
    assert in_table(folder / "out.db") == [1, 2]
    await lived(to_sql(memory_url, folder), [5])
    assert in_table(folder / "out.db") == [1, 2, 3, 4, 5]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize(("choice", "then"), [("repeat", [1, 2, 3, 4, 5]), ("skip", [1, 2, 5])])
async def test_a_lost_token_with_pending_parts_is_a_choice(
    memory_url: str, tmp_path: Path, choice: str, then: list[int]
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    await lived(to_sql(memory_url, folder), [1, 2])
    await died_before_delivery(memory_url, folder, [3, 4])
    tokens(folder, "DELETE FROM sabot_tokens")
    before = manifest_files(folder / "checkpoints")
    for _ in range(2):
        with pytest.raises(DeliveryConflict) as caught:
            await bounded(to_sql(memory_url, folder).run())
        assert "repeat" in str(caught.value)
        assert "skip" in str(caught.value)
        assert "out" in caught.value.message
        assert in_table(folder / "out.db") == [1, 2]
        assert manifest_files(folder / "checkpoints") == before, "a refused start changes nothing"
    app = to_sql(memory_url, folder)
    app.configure(redeliver=choice)
    await lived(app, [5])
    assert in_table(folder / "out.db") == then


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("change", ["another sink", "at_least_once"])
async def test_pending_output_whose_sink_is_gone_stops_the_start(memory_url: str, tmp_path: Path, change: str) -> None:
    """It would be dropped without a word. (Finding 7: the second change is not told as what it is.)"""
    folder = tmp_path / "app"
    folder.mkdir()
    await lived(to_sql(memory_url, folder), [1, 2])
    await died_before_delivery(memory_url, folder, [3, 4])
    app = to_sql(memory_url, folder, delivery="at_least_once")
    if change == "another sink":
        app = numbers(memory_url, folder, ListSink())
    with pytest.raises(UserError, match=r"2 undelivered rows.*out") as caught:
        await bounded(app.run())
    assert caught.value.hint
    restored = CheckpointStorage(folder / "checkpoints").latest()
    assert restored is not None
    plan = plan_of(app.spec.ends, restored, agents=(), parallelism=1, infer=lambda node, readers: None)
    lost = list(undelivered(restored, sinks_of(plan, [], lambda topic: open_sink(topic, app.broker))))
    assert [sum(part.rows for part in track.pending) for _, track, _ in lost] == [2], (
        "`sabot plan --against` says so too"
    )
    assert all(why in caught.value.message for _, _, why in lost)
    if change == "at_least_once":
        assert "delivery" in str(caught.value) or "exactly" in str(caught.value)
    assert in_table(folder / "out.db") == [1, 2]
    await lived(to_sql(memory_url, folder), [5])
    assert in_table(folder / "out.db") == [1, 2, 3, 4, 5]


async def test_two_sinks_of_one_name_are_refused_and_one_sink_of_two_streams_is_not(
    memory_url: str, tmp_path: Path
) -> None:
    sink = Receiver()
    app = numbers(memory_url, tmp_path, sink)
    app.stream("in", schema=SCHEMA).to(Receiver())
    with pytest.raises(UserError, match="receiver"):
        await bounded(app.run())
    app = numbers(memory_url, tmp_path / "other", sink)
    app.stream("also", schema=SCHEMA).to(sink)
    publish(app, "in", dicts([1, 2]))
    publish(app, "also", dicts([11, 12]))
    async with started(app):
        await until(lambda: rows_read(app) == 4)
        await checkpoint(app)
    assert sorted(sink.rows) == [1, 2, 11, 12]


async def test_a_lost_token_where_nothing_waits_is_set_again(memory_url: str, tmp_path: Path) -> None:
    await lived(to_sql(memory_url, tmp_path), [1, 2])
    await lived(to_sql(memory_url, tmp_path))
    tokens(tmp_path, "DELETE FROM sabot_tokens")
    await lived(to_sql(memory_url, tmp_path), [3])
    assert in_table(tmp_path / "out.db") == [1, 2, 3]
    assert len(tokens(tmp_path)) == 1


async def test_a_deleted_state_directory_does_not_deliver_everything_again_by_itself(
    memory_url: str, tmp_path: Path
) -> None:
    await lived(to_sql(memory_url, tmp_path), [1, 2])
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(DeliveryConflict, match="another incarnation") as caught:
        await bounded(to_sql(memory_url, tmp_path).run())
    assert caught.value.hint
    assert in_table(tmp_path / "out.db") == [1, 2]
    app = to_sql(memory_url, tmp_path)
    app.configure(fresh=True)
    async with started(app):
        await until(lambda: rows_read(app) == 2)
        await checkpoint(app)
    assert in_table(tmp_path / "out.db") == [1, 2, 1, 2], "afresh: it was asked for"
    await lived(to_sql(memory_url, tmp_path), [3])
    assert in_table(tmp_path / "out.db") == [1, 2, 1, 2, 3]


async def test_a_token_that_was_left_beside_removed_output_is_named_and_a_start_without_it_goes_on(
    memory_url: str, tmp_path: Path
) -> None:
    """Whoever removed state and output did not see `.out.ndjson.token`, of which the refusal said nothing."""

    def to_file() -> App:
        return numbers(memory_url, tmp_path, NdjsonSink(str(tmp_path / "out.ndjson")))

    await lived(to_file(), [1, 2])
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "out.ndjson").unlink()
    token = tmp_path / ".out.ndjson.token"
    with pytest.raises(DeliveryConflict, match="another incarnation") as caught:
        await bounded(to_file().run())
    assert f"the place of its token is {token}" in caught.value.message
    assert f"remove {token}, if the output is gone" in caught.value.hint
    token.unlink()
    app = to_file()
    async with started(app):
        await until(lambda: rows_read(app) == 2)
        await checkpoint(app)
    assert (tmp_path / "out.ndjson").read_text().count("\n") == 2


async def test_an_app_that_dies_before_its_first_checkpoint_starts_without_a_question(
    memory_url: str, tmp_path: Path
) -> None:
    """The token has been claimed by a life that left no checkpoint."""
    live, picture = tmp_path / "live", tmp_path / "picture"
    live.mkdir()

    def at(name: str, what: str) -> None:
        if name == "manifest" and not picture.exists():
            shutil.copytree(live, picture)

    with Watcher(at):
        await lived(to_sql(memory_url, live), [1])
    shutil.rmtree(live)
    picture.rename(live)
    app = to_sql(memory_url, live)
    async with started(app):
        await until(lambda: rows_read(app) == 1)
    assert in_table(live / "out.db") == [1]


@pytest.mark.one_in(2, "a fifth of a second of a core each")
@pytest.mark.parametrize("choice", ["repeat", "skip"])
async def test_a_savepoint_older_than_what_was_delivered_is_a_choice(
    memory_url: str, tmp_path: Path, choice: str
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    await lived(to_sql(memory_url, folder), [1, 2])
    await lived(to_sql(memory_url, folder))  # its checkpoint knows that they are delivered
    storage = CheckpointStorage(folder / "checkpoints")
    storage.copy_to(storage.latest(), tmp_path / "saved")
    await lived(to_sql(memory_url, folder), [3, 4])
    before = tokens(folder)
    for _ in range(2):
        app = to_sql(memory_url, folder)
        app.configure(from_=str(tmp_path / "saved"))
        with pytest.raises(DeliveryConflict) as caught:
            await bounded(app.run())
        assert "repeat" in str(caught.value)
        assert "skip" in str(caught.value)
    assert in_table(folder / "out.db") == [1, 2, 3, 4]
    app = to_sql(memory_url, folder)
    app.configure(from_=str(tmp_path / "saved"), redeliver=choice)
    async with running(app):
        await until(lambda: rows_read(app) == 2, "the rows behind the savepoint")
        await feed(app, [5])
    found = in_table(folder / "out.db")
    assert found is not None
    if choice == "repeat":
        assert found == [1, 2, 3, 4, 3, 4, 5]
    else:  # exact for saved parts only: what is computed anew comes
        assert found[:4] == [1, 2, 3, 4]
        assert found[-1] == 5
    await lived(to_sql(memory_url, folder), [6])
    assert in_table(folder / "out.db") == [*found, 6]
    assert tokens(folder) > before


async def test_start_goes_on_from_the_savepoint_as_run_does(memory_url: str, tmp_path: Path) -> None:
    """(Finding 3.)"""
    await lived(to_sql(memory_url, tmp_path), [1, 2])
    storage = CheckpointStorage(tmp_path / "checkpoints")
    storage.copy_to(storage.latest(), tmp_path / "saved")
    await lived(to_sql(memory_url, tmp_path), [3, 4])
    app = to_sql(memory_url, tmp_path)
    app.configure(from_=str(tmp_path / "saved"))
    with pytest.raises(DeliveryConflict):
        await app.start()
    await app.stop()


async def test_a_savepoint_for_a_sink_without_a_token_is_a_choice_too(memory_url: str, tmp_path: Path) -> None:
    """(Finding 1.)"""
    sink = Receiver()
    await lived(numbers(memory_url, tmp_path, sink), [1, 2])
    storage = CheckpointStorage(tmp_path / "checkpoints")
    storage.copy_to(storage.latest(), tmp_path / "saved")
    await lived(numbers(memory_url, tmp_path, sink), [3, 4])
    app = numbers(memory_url, tmp_path, sink)
    app.configure(from_=str(tmp_path / "saved"))
    with pytest.raises(DeliveryConflict, match="receiver"):
        await bounded(app.run())
    assert sink.rows == [1, 2, 3, 4]


@pytest.mark.one_in(2, "a tenth of a second of a core each")
@pytest.mark.parametrize("starts", [1, 2])
async def test_a_number_is_never_used_twice_by_two_histories_of_one_savepoint(
    memory_url: str, tmp_path: Path, starts: int
) -> None:
    """A sink without a token knows parts by their numbers: what comes under one that it has is lost. (Finding 4.)"""
    sink = Receiver()
    await lived(numbers(memory_url, tmp_path / "app", sink), [1, 2])
    storage = CheckpointStorage(tmp_path / "app" / "checkpoints")
    storage.copy_to(storage.latest(), tmp_path / "saved")
    await lived(numbers(memory_url, tmp_path / "app", sink), [3])
    for start in range(
        starts
    ):  # the same app goes on from the savepoint, each time where nothing is known of the others
        app = numbers(memory_url, tmp_path / f"elsewhere-{start}", sink)
        app.configure(from_=str(tmp_path / "saved"), redeliver="repeat")
        async with running(app):
            await until(lambda app=app, start=start: rows_read(app) == 1 + start)
            await feed(app, [4 + start])
    assert set(sink.rows) == {1, 2, 3, *range(4, 4 + starts)}, "what comes after the savepoint is delivered, not lost"
    contents: dict[tuple[str, int], list[Any]] = {}
    for key, rows in sink.calls:
        assert contents.setdefault(key, rows) == rows, "one number, two contents"


def stage_file(folder: Path) -> Path:
    """The pending part's file."""
    manifest = CheckpointStorage(folder / "checkpoints").latest()
    assert manifest is not None
    (part,) = [part for track in manifest.lanes.values() for part in track.pending]
    return folder / "checkpoints" / manifest.contents[part.file].name


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("harm", ["truncated", "changed", "removed"])
async def test_a_damaged_stage_stops_the_start_and_is_named(memory_url: str, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    await lived(to_sql(memory_url, folder), [1, 2])
    await died_before_delivery(memory_url, folder, [3, 4])
    path = stage_file(folder)
    data = path.read_bytes()
    path.chmod(0o644)
    if harm == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "changed":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    else:
        path.unlink()
    for choice in (None, "repeat", "skip"):
        app = to_sql(memory_url, folder)
        app.configure(redeliver=choice)
        with pytest.raises(CorruptCheckpoint) as caught:
            await bounded(app.run())
        assert path.name in str(caught.value) or "stages" in str(caught.value), "the file is named"
        assert caught.value.hint
        assert in_table(folder / "out.db") == [1, 2]


async def test_a_manifest_of_a_newer_version_stops_the_start(memory_url: str, tmp_path: Path) -> None:
    await lived(to_sql(memory_url, tmp_path), [1, 2])
    path = manifest_files(tmp_path / "checkpoints")[-1]
    manifest = json.loads(path.read_text())
    (version,) = [name for name in manifest if "version" in name or "format" in name]
    manifest[version] += 1
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptCheckpoint, match="newer") as caught:
        await bounded(to_sql(memory_url, tmp_path).run())
    assert caught.value.hint
    assert in_table(tmp_path / "out.db") == [1, 2]


# -- two of one app -------------------------------------------------------------------------------------------------------


async def test_a_second_run_on_one_directory_is_refused_and_the_first_goes_on(memory_url: str, tmp_path: Path) -> None:
    sink = ListSink()
    async with started(first := numbers(memory_url, tmp_path, sink)):
        await feed(first, [1])
        with pytest.raises(AppLocked) as caught:
            await numbers(memory_url, tmp_path, sink).start()
        assert str(tmp_path) in str(caught.value)
        await feed(first, [2])
        await checkpoint(first)
    assert sink.rows == dicts([1, 2])


def elsewhere(place: Path) -> CheckpointStorage:
    """Checkpoints in a file system that is not this machine's, as far as Sabot can see."""
    place.mkdir(exist_ok=True)
    return CheckpointStorage((pyarrow.fs.SubTreeFileSystem(str(place), pyarrow.fs.LocalFileSystem()), "two"))


def on_one_store(memory_url: str, folder: Path, sink: Sink) -> tuple[App, App]:
    """The same app two times."""

    def build() -> App:
        app = App("two", memory_url, checkpoint_interval="1h", restart="none", checkpoint_dir=str(folder / "none"))
        app.spec.checkpoints = partial(elsewhere, folder / "bucket")  # type: ignore[method-assign]
        app.stream("in", schema=SCHEMA).to(sink)
        return app

    return build(), build()


async def test_a_run_that_stood_still_takes_no_sink_from_the_run_after_it(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()
    healed = threading.Event()

    def stands_still(seq: int, rows: list[Any]) -> None:
        sink.trouble = lambda seq, rows: None
        healed.wait(PATIENCE)
        raise TransientError("the connection was cut meanwhile")

    sink.trouble = stands_still
    first, second = on_one_store(memory_url, tmp_path, sink)
    publish(first, "in", dicts([1]))
    running = asyncio.ensure_future(first.run())
    await until(lambda: first.statistics()["streams"] and rows_read(first) == 1)
    await checkpoint(first)
    await until(lambda: len(sink.given) == 1)
    async with started(second):
        await until(lambda: sink.rows == [1])
        claims = len(sink.claims)
        healed.set()
        with pytest.raises(AppLocked, match="another worker has taken this app over"):
            await bounded(running)
        assert len(sink.claims) == claims
        await feed(second, [2])
        await checkpoint(second)
        await until(lambda: len(sink.rows) == 2)
    assert sink.rows == [1, 2]


async def test_of_two_runs_on_one_object_store_the_later_one_goes_on_alone(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()
    first, second = on_one_store(memory_url, tmp_path, sink)
    publish(first, "in", dicts([1]))
    running = asyncio.ensure_future(first.run())
    await until(lambda: first.statistics()["streams"] and rows_read(first) == 1)
    await checkpoint(first)
    await until(lambda: sink.rows == [1])
    async with started(second):
        await feed(second, [2, 3])
        publish(first, "in", dicts([4]))
        await until(lambda: rows_read(first) == 4)
        with pytest.raises((AppLocked, CheckpointFailed), match="another worker"):
            await bounded(first.agent_runtime.trigger_checkpoint())
        with pytest.raises(AppLocked, match="another worker"):
            await bounded(running)
        await until(lambda: rows_read(second) == 3)
        await checkpoint(second)
        await until(lambda: len(sink.rows) == 4)
    assert sink.rows == [1, 2, 3, 4], "nothing of the first one's came"


# -- calls that take long -------------------------------------------------------------------------------------------------


async def test_a_slow_call_delays_no_checkpoint_and_is_repeated_after_a_crash(memory_url: str, tmp_path: Path) -> None:
    sink = Receiver()
    calls: list[int] = []
    answered = asyncio.Event()

    def build(folder: Path) -> App:
        app = App("slow", memory_url, checkpoint_dir=str(folder), checkpoint_interval="1h", restart="none")

        @app.agent("in", sink=sink, concurrency=4)
        async def ask(ctx: Any) -> Any:
            calls.append(ctx.message["n"])
            if ctx.message["n"] == 2:
                await answered.wait()
            return ctx.message

        return app

    picture = tmp_path / "picture"
    app = build(tmp_path / "live")
    async with started(app):
        publish(app, "in", dicts([1, 2, 3]))
        await until(lambda: sorted(calls) == [1, 2, 3])
        await until(lambda: app.statistics()["agents"]["slow.ask"]["messages_processed"] == 2)
        for _ in range(3):
            await checkpoint(app)
        await until(lambda: sorted(sink.rows) == [1, 3], "the results of the others")
        shutil.copytree(tmp_path / "live", picture)
        assert app.statistics()["checkpoints"]["last_seconds"] < PATIENCE
        answered.set()
    calls.clear()
    sink.taken = {part: rows for part, rows in sink.taken.items() if 2 not in rows}  # that life had crashed
    async with started(build(picture)):
        await until(lambda: sorted(sink.rows) == [1, 3], "nothing again")
        await until(lambda: calls == [2], "the unfinished input")
    assert sorted(sink.rows) == [1, 2, 3]


@pytest.mark.slow  # half a second of a core
def test_checkpoints_are_taken_each_second_during_a_call_of_ten(tmp_path: Path) -> None:
    """In virtual time: between the begin and the end of the call lie at least nine checkpoints."""
    sink = ListSink()

    def build(folder: Path) -> App:
        app = App("ten", checkpoint_dir=str(folder), state="memory")

        @app.agent(ScriptedSource([{"n": n} for n in range(3)] + [END]), sink=sink)
        async def slow(ctx: Any) -> Any:
            calls = (await ctx.state().get("calls") or 0) + 1
            await ctx.state().put("calls", calls)
            await asyncio.sleep(10)
            return {"n": ctx.message["n"], "calls": calls}

        return app

    for seed in (1, 2):
        sink = ListSink()
        found = simulate(build, seed=seed, crashes=1)
        assert sink.rows == [{"n": n, "calls": n + 1} for n in range(3)]
        assert sum(step.endswith("executor: manifest") for step in found.steps) >= 25


@pytest.mark.one_in(3, "a fifth of a second of a core each")
@pytest.mark.parametrize("kind", ["file", "folder", "table"])
async def test_a_start_that_is_refused_takes_nothing_from_the_app_that_runs(
    memory_url: str, tmp_path: Path, kind: str
) -> None:
    """It had claimed the tracks before it compared the tokens: the healthy app lost them, and ended, and nobody ran."""

    def build(state: str) -> App:
        sink: Sink = NdjsonSink(tmp_path / "out.ndjson")
        if kind == "folder":
            sink = NdjsonSink(tmp_path / "parts/")
        elif kind == "table":
            sink = SqlSink(f"sqlite:{tmp_path / 'out.db'}", table="rows")
        app = App("one", memory_url, checkpoint_interval="1h", restart="none", checkpoint_dir=str(tmp_path / state))
        app.stream("in", schema=SCHEMA).to(sink)
        return app

    def delivered(app: App) -> int:
        (track,) = [each for each in app.statistics()["delivery"].values() if each["sink"] != "in.dlq"]
        return int(track["delivered_rows"])

    first = build("state")
    publish(first, "in", dicts([1, 2]))
    async with started(first):
        await until(lambda: rows_read(first) == 2)
        await checkpoint(first)
        await until(lambda: delivered(first) == 2)
        with pytest.raises(DeliveryConflict, match="another incarnation"):
            await bounded(build("other").run())
        publish(first, "in", dicts([3]))
        await until(lambda: rows_read(first) == 3)
        await checkpoint(first)
        await until(lambda: delivered(first) == 3)


@pytest.mark.slow  # half a second of a core
def test_a_receiver_that_can_be_claimed_and_takes_nothing_is_asked_less_and_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In virtual time. On a full disk the claim worked and the part did not: each claim was taken for a recovery, so the log said
    "takes parts again" five times a second, and nothing was backed off.
    """

    class Full(Receiver, KeepsToken):
        def claim(self, track: Track) -> Token | None:
            super().claim(track)
            last = max((seq for _, seq in self.taken), default=0)
            return Token(last, track.incarnation)

        def settle(self, seq: int) -> None:
            """The number of the last part is that of the last one taken."""

    sink = Full()
    refusals = iter(range(8))

    def full(seq: int, rows: list[Any]) -> None:
        if next(refusals, None) is not None:
            raise TransientError("no room")

    sink.trouble = full

    def build(folder: Path) -> App:
        app = App("full", checkpoint_dir=str(folder))
        app.stream(ScriptedSource([[{"n": 1}], BARRIER, [{"n": 2}], END])).to(sink)
        return app

    found = simulate(build, seed=3, directory=tmp_path)
    assert sink.rows == [1, 2]
    assert found.seconds > 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4 + 10
    said = [line for line in caplog.messages if "receiver" in line]
    assert len([line for line in said if "has failed, and will be retried" in line]) == 1
    assert len([line for line in said if "accepts output again, after 8 failed deliveries" in line]) == 1


async def test_agents_of_one_topic_share_its_dead_letters_whatever_their_delivery(
    memory_url: str, tmp_path: Path
) -> None:
    """The second agent was refused: "two agents write it, with different delivery="."""
    app = App("letters", memory_url, checkpoint_dir=str(tmp_path), checkpoint_interval="1h", restart="none")

    @app.agent("in", sink="firsts", on_error="skip")
    async def first(ctx: Any) -> None:
        raise ValueError("first")

    @app.agent("in", sink="seconds", on_error="skip", delivery="at_least_once")
    async def second(ctx: Any) -> None:
        raise ValueError("second")

    publish(app, "in", dicts([1]))
    async with started(app):
        await until(lambda: len(MemoryBroker.get(memory_url).records("in.dlq")) == 2)
