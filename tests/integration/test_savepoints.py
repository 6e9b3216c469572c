"""Savepoints of running apps: kept by themselves, started from with another parallelism, in another place or to go back; and the
state of an app, read from outside.
"""

import asyncio
import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sabot
from sabot import App, SqlSink, UserError, tumbling
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage, Coordinator, ask
from tools.agent_tools import bounded, checkpoint, environment, manifests, publish, read_lines, until, write_lines

SCHEMA = pa.schema([("id", pa.int64()), ("k", pa.string()), ("amount", pa.int64()), ("ts", pa.int64())])
BASE, STEP_MS, WINDOW_MS = 1_700_000_000_000, 100, 2_000
PARTITIONS = 4
SABOT = (sys.executable, "-P", "-c", "from sabot.cli import main; main()")

Row = dict[str, Any]


def payments(first: int, last: int) -> list[Row]:
    return [
        {"id": n, "k": f"k{n * n % 11}", "amount": n % 13, "ts": BASE + n * STEP_MS + n * 7 % 50}
        for n in range(first, last)
    ]


def answer(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """(key, start of the window, count, sum) by plain Python."""
    windows: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in rows:
        windows[row["k"], row["ts"] // WINDOW_MS * WINDOW_MS].append(row["amount"])
    return sorted((k, start, len(amounts), sum(amounts)) for (k, start), amounts in windows.items())


def in_table(folder: Path, table: str, columns: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "out.db")) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", [table]).fetchall():
            return []
        return sorted(connection.execute(f"SELECT {columns} FROM {table}").fetchall())


def windows_in(folder: Path) -> list[tuple[Any, ...]]:
    rows = in_table(folder, "windows", "k, window_start, n, total")
    assert len({row[:2] for row in rows}) == len(rows), "a window is there twice"
    return rows


def totals(url: str, folder: Path, checkpoints: str = "checkpoints", **settings: Any) -> App:
    """Windows and running totals of a topic of four partitions, into two tables; and an agent that counts."""
    settings = {"checkpoint_interval": "1h", "restart": "none", **settings}
    app = App("totals", url, state="memory", checkpoint_dir=str(folder / checkpoints), **settings)
    keyed = app.stream("in", schema=SCHEMA, time="ts", idle="1h").key_by("k")
    sums = keyed.window(tumbling("2s")).aggregate(n=sabot.count(), total=sabot.sum("amount"))
    sums.select("k", "n", "total", window_start=sabot.col("window_start").cast(pa.int64())).to(
        SqlSink(f"sqlite:///{folder}/out.db", table="windows")
    )
    running = app.stream("in", schema=SCHEMA).key_by("k").aggregate(n=sabot.count(), total=sabot.sum("amount"))
    running.named("running").to(SqlSink(f"sqlite:///{folder}/out.db", table="running"))

    @app.agent("in", key="k")
    async def seen(ctx: Any) -> None:
        await ctx.state().put("ids", (await ctx.state().get("ids") or 0) + 1)

    return app


@contextlib.asynccontextmanager
async def running(app: App) -> AsyncIterator[None]:
    """The app runs (as by `App.run`) inside the block, and is stopped after it. Raises what ends it."""
    over = asyncio.ensure_future(app.run())
    await until(lambda: over.done() or "running" in states(app) or rows_read(app) is not None, "the start")
    try:
        if not over.done():
            yield
    finally:
        app.request_stop()
        await bounded(over)


def states(app: App) -> set[str]:
    return {figures["state"].lower() for figures in app.statistics()["agents"].values()}


def rows_read(app: App) -> int | None:
    tasks = app.statistics()["streams"]
    inputs = [task["input"]["rows_in"] for name, task in tasks.items() if name.startswith("read")]
    return sum(inputs) if inputs else None


def send(url: str, rows: Sequence[Row]) -> None:
    broker = MemoryBroker.get(url)
    broker.create_topic("in", PARTITIONS)
    for row in rows:
        broker.publish("in", [row], partition=row["id"] % PARTITIONS)


def finish(url: str, rows: int) -> list[Row]:
    """Rows of much later in each partition: all windows before them are over."""
    late = [{"id": p, "k": "late", "amount": 1, "ts": BASE + rows * STEP_MS + 100_000 + p} for p in range(PARTITIONS)]
    send(url, late)
    return late


async def savepoint(app: App, place: Path) -> dict[str, Any]:
    """As `sabot savepoint create` asks for it."""
    return await bounded(asyncio.to_thread(ask, str(app.settings.checkpoint_dir), {"savepoint": str(place)}, 60.0))


# -- another parallelism --------------------------------------------------------------------------------------------------


@pytest.mark.one_in(4, "half a second of a core each")
@pytest.mark.parametrize("same_directory", [True, False])
@pytest.mark.parametrize("plan", [(1, 4, 2), (4, 1, 4)])
async def test_an_app_goes_on_from_savepoints_with_another_parallelism_and_the_same_answers(
    memory_url: str, tmp_path: Path, plan: tuple[int, ...], same_directory: bool
) -> None:
    rows, each = payments(0, 900), 300
    start: Path | None = None
    number: int | None = None
    for life, parallelism in enumerate(plan):
        app = totals(memory_url, tmp_path, "checkpoints" if same_directory else f"checkpoints-{life}")
        app.configure(parallelism=parallelism, from_=None if start is None else str(start))
        send(memory_url, rows[life * each : (life + 1) * each])
        async with running(app):
            await all_read(app, 2 * each, agent=(life + 1) * each)
            assert app.agent_runtime.runner.restored_from == number
            start = tmp_path / f"saved-{life}"
            said = await savepoint(app, start)
            assert Path(said["path"]) == start
            number = said["checkpoint"]
    app = totals(memory_url, tmp_path, "checkpoints" if same_directory else "checkpoints-9")
    app.configure(parallelism=1, from_=str(start))
    async with running(app):
        finish(memory_url, len(rows))
        await until(lambda: rows_read(app) == 2 * PARTITIONS)
        await checkpoint(app)
        await until(lambda: len(windows_in(tmp_path)) >= len(answer(rows)), "the windows")
    assert windows_in(tmp_path) == answer(rows)
    found = in_table(tmp_path, "running", "k, n, total")
    counts: dict[str, list[int]] = defaultdict(list)
    for k, n, _ in found:
        counts[k].append(n)
    assert {k: sorted(n) for k, n in counts.items() if k != "late"} == {
        k: list(range(1, sum(row["k"] == k for row in rows) + 1)) for k in {row["k"] for row in rows}
    }, "each running total once"
    agent = {row["record_key"]: row["value"] for row in app.state("seen").to_arrow().to_pylist()}
    assert sum(agent.values()) == len(rows) + PARTITIONS


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("parallelism", [1, 2])
async def test_a_window_that_is_sparse_in_one_subtask_and_dense_in_another_is_emitted_once(
    memory_url: str, tmp_path: Path, parallelism: int
) -> None:
    """Windows with few rows beside many such windows share a table. A subtask that got both kinds emitted the groups twice."""
    rows = [{"id": 0, "k": "many", "amount": 1, "ts": BASE + n * WINDOW_MS} for n in range(80)]
    rows += [{"id": 0, "k": f"one {n}", "amount": 1, "ts": rows[-1]["ts"]} for n in range(20)]
    app = totals(memory_url, tmp_path)
    app.configure(parallelism=4)
    send(memory_url, rows)  # into one partition: the others hold all windows open
    async with running(app):
        await all_read(app, 2 * len(rows), agent=len(rows))
        await savepoint(app, tmp_path / "saved")
    app = totals(memory_url, tmp_path, "checkpoints-1")
    app.configure(parallelism=parallelism, from_=str(tmp_path / "saved"))
    async with running(app):
        finish(memory_url, 2_000)
        await until(lambda: rows_read(app) == 2 * PARTITIONS)
        await checkpoint(app)
        await until(lambda: len(windows_in(tmp_path)) >= len(answer(rows)), "the windows")
    assert windows_in(tmp_path) == answer(rows)


async def all_read(app: App, rows: int, *, agent: int) -> None:
    """By the streams since the start, by the agent in all its lives."""
    await until(lambda: rows_read(app) == rows, "the rows")
    await until(lambda: seen_by(app) == agent, "the agent")


def seen_by(app: App) -> int:
    count = app.statistics()["agents"]["totals.seen"]["messages_processed"]
    assert isinstance(count, int)
    return count


# -- what a savepoint is --------------------------------------------------------------------------------------------------


def counter(url: str, folder: Path, calls: list[int] | None = None, **settings: Any) -> App:
    """Counts, and says each number once; `calls` notes what it is called with."""
    settings = {"checkpoint_interval": "1h", "restart": "none", **settings}
    app = App("counter", url, state="memory", checkpoint_dir=str(folder / "checkpoints"), **settings)

    @app.agent("in", sink=SqlSink(f"sqlite:///{folder}/out.db", table="counts"))
    async def count(ctx: Any) -> Any:
        n = (await ctx.state().get("n") or 0) + 1
        await ctx.state().put("n", n)
        if calls is not None:
            calls.append(ctx.message["n"])
        return {"n": n, "of": ctx.message["n"]}

    return app


async def counted(app: App, url: str, rows: Sequence[int]) -> None:
    done = app.statistics()["agents"]["counter.count"]["messages_processed"]
    publish(app, "in", [{"n": n} for n in rows])
    await until(lambda: app.statistics()["agents"]["counter.count"]["messages_processed"] == done + len(rows))


def counts_in(folder: Path) -> list[tuple[Any, ...]]:
    return in_table(folder, "counts", "n, of")


def n_of(app: App, **which: Any) -> int:
    (row,) = app.state("count", **which).to_arrow().to_pylist()
    assert isinstance(row["value"], int)
    return row["value"]


@pytest.mark.slow  # half a second of a core
async def test_a_savepoint_outlives_the_checkpoints_and_their_directory(memory_url: str, tmp_path: Path) -> None:
    folder, saved = tmp_path / "app", tmp_path / "saved"
    folder.mkdir()
    app = counter(memory_url, folder)
    async with running(app):
        await counted(app, memory_url, [1, 2])
        said = await savepoint(app, saved)
        for n in range(6):
            await counted(app, memory_url, [10 + n])
            await checkpoint(app)
        assert said["checkpoint"] not in CheckpointStorage(folder / "checkpoints").ids()
        assert len(manifests(folder / "checkpoints")) <= 4
    shutil.rmtree(folder / "checkpoints")
    storage = CheckpointStorage(saved)
    manifest = storage.latest()
    assert manifest is not None
    storage.verify(manifest)
    (folder / "out.db").unlink()
    app = counter(memory_url, folder)
    app.configure(from_=str(saved), redeliver="repeat")
    async with running(app):
        await until(lambda: app.statistics()["agents"]["counter.count"]["messages_processed"] >= 8)
    assert n_of(app) == 8, "two in the savepoint, six read again"
    storage.verify(manifest)
    assert CheckpointStorage(saved).ids() == [said["checkpoint"]], "a start leaves it as it is"


@pytest.mark.slow  # half a second of a core
async def test_going_back_to_a_savepoint_while_newer_checkpoints_are_there(memory_url: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1, 2])
        await savepoint(app, saved)
        for n in (3, 4):
            await counted(app, memory_url, [n])
            await checkpoint(app)
    assert n_of(app) == 4
    back = counter(memory_url, tmp_path)
    back.configure(from_=str(saved))
    with pytest.raises(sabot.DeliveryConflict):
        await bounded(back.run())
    assert counts_in(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    back = counter(memory_url, tmp_path)
    back.configure(from_=str(saved), redeliver="repeat")
    async with running(back):
        await until(lambda: seen_of(back) == 4)
        await counted(back, memory_url, [5])
    assert n_of(back) == 5
    on = counter(memory_url, tmp_path)
    async with running(on):
        await counted(on, memory_url, [6])
    assert n_of(on) == 6, "the next start goes on from there, not from the checkpoints of the other history"
    found = counts_in(tmp_path)
    assert set(found) == {(n, n) for n in range(1, 7)}
    assert [found.count((n, n)) for n in (5, 6)] == [1, 1]


def seen_of(app: App) -> int:
    count = app.statistics()["agents"]["counter.count"]["messages_processed"]
    assert isinstance(count, int)
    return count


async def test_output_that_was_pending_in_the_savepoint_is_not_delivered_twice(memory_url: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        await checkpoint(app)
        await until(lambda: counts_in(tmp_path) == [(1, 1)])
        other = sqlite3.connect(tmp_path / "out.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # somebody else writes, so the part has to wait
        await counted(app, memory_url, [2, 3])
        await savepoint(app, saved)
        other.execute("ROLLBACK")
        other.close()
    manifest = CheckpointStorage(saved).latest()
    assert manifest is not None
    assert [part.rows for track in manifest.lanes.values() for part in track.pending] == [2]
    assert counts_in(tmp_path) == [(1, 1), (2, 2), (3, 3)]
    shutil.rmtree(tmp_path / "checkpoints")
    app = counter(memory_url, tmp_path)
    app.configure(from_=str(saved))
    async with running(app):
        await counted(app, memory_url, [4])
    assert counts_in(tmp_path) == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.slow  # a second of a core
async def test_a_failure_before_the_first_checkpoint_goes_back_to_the_savepoint(
    memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the newest checkpoint of the directory, which is of another history. The first checkpoint does not come: else it is asked for
    at once, and on a busy machine it was complete before the failure.
    """
    monkeypatch.setattr(Coordinator, "beat", lambda coordinator: None)
    saved, broken = tmp_path / "saved", [False]
    calls: list[int] = []

    def build() -> App:
        app = counter(memory_url, tmp_path, calls, restart="fixed(3, 1ms)")

        def fail(batch: pa.RecordBatch) -> pa.RecordBatch:
            if broken[0]:
                broken[0] = False
                raise OSError("flaky")
            return batch

        app.stream("go", schema=pa.schema([("n", pa.int64())])).map_batches(
            fail, schema=pa.schema([("n", pa.int64())])
        ).to("gone")
        return app

    app = build()
    async with running(app):
        await counted(app, memory_url, [1, 2])
        await savepoint(app, saved)
        await counted(app, memory_url, [3, 4])
    back = build()
    back.configure(from_=str(saved), redeliver="repeat")
    calls.clear()
    async with running(back):
        await until(lambda: calls == [3, 4])
        broken[0] = True
        publish(back, "go", [{"n": 1}])
        await until(lambda: calls == [3, 4, 3, 4], "the rows behind the savepoint again")
    assert n_of(back) == 4


# -- asking ---------------------------------------------------------------------------------------------------------------


async def test_a_checkpoint_can_be_asked_for(memory_url: str, tmp_path: Path) -> None:
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        for _ in range(2):
            said = await bounded(asyncio.to_thread(ask, str(app.settings.checkpoint_dir), {"checkpoint": True}, 60.0))
            assert said["checkpoint"] == CheckpointStorage(tmp_path / "checkpoints").last_id()
    requests = list((tmp_path / "checkpoints" / "requests").glob("*"))
    assert requests == [], "nothing is left behind"


async def test_who_asks_when_nobody_runs_is_told_so_and_the_next_run_does_not_answer(
    memory_url: str, tmp_path: Path
) -> None:
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
    with pytest.raises(UserError) as caught:
        await asyncio.to_thread(ask, tmp_path / "checkpoints", {"savepoint": str(tmp_path / "saved")}, 0.2)
    assert caught.value.hint
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [2])
        await bounded(asyncio.to_thread(ask, str(app.settings.checkpoint_dir), {"checkpoint": True}, 60.0))
    assert not (tmp_path / "saved").exists()


async def test_a_place_that_holds_a_savepoint_is_refused_and_the_app_goes_on(memory_url: str, tmp_path: Path) -> None:
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        first = await savepoint(app, tmp_path / "saved")
        with pytest.raises(UserError, match="saved"):
            await savepoint(app, tmp_path / "saved")
        await counted(app, memory_url, [2])
        await savepoint(app, tmp_path / "another")
    assert CheckpointStorage(tmp_path / "saved").ids() == [first["checkpoint"]]
    assert counts_in(tmp_path) == [(1, 1), (2, 2)]


async def test_a_savepoint_that_is_not_there_is_named(memory_url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        said = await savepoint(app, tmp_path / "saved")
    for place in (tmp_path / "nowhere", tmp_path / "empty", f"{tmp_path}/saved@{said['checkpoint'] + 7}"):
        app = counter(memory_url, tmp_path)
        app.configure(from_=str(place))
        with pytest.raises(UserError) as caught:
            await bounded(app.run())
        assert Path(place).name.split("@")[0] in str(caught.value)
    assert not (tmp_path / "nowhere").exists(), "looking for it makes nothing"
    app = counter(memory_url, tmp_path)
    app.configure(from_=f"{tmp_path}/saved@{said['checkpoint']}")
    async with running(app):
        assert app.agent_runtime.runner.restored_from == said["checkpoint"]


async def test_a_place_with_an_at_sign_in_its_name_can_be_started_from(memory_url: str, tmp_path: Path) -> None:
    place = tmp_path / "me@home" / "saved"
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        said = await savepoint(app, place)
    app = counter(memory_url, tmp_path)
    app.configure(from_=str(place))
    async with running(app):
        assert app.agent_runtime.runner.restored_from == said["checkpoint"]


async def test_a_savepoint_of_another_app_is_refused(memory_url: str, tmp_path: Path) -> None:
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1])
        await savepoint(app, tmp_path / "saved")
    other = totals(memory_url, tmp_path, "others")
    other.configure(from_=str(tmp_path / "saved"))
    with pytest.raises(UserError, match="counter"):
        await bounded(other.run())


# -- from another process -------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
from sabot import App, NdjsonSink, NdjsonSource
from pathlib import Path

app = App("lines", state="state", checkpoint_interval="100ms")

@app.agent(NdjsonSource("in.ndjson"), sink=NdjsonSink("out.ndjson"))
async def number(ctx):
    n = (await ctx.state().get("n") or 0) + 1
    await ctx.state().put("n", n)
    while n == 6 and not Path("go").exists():
        await asyncio.sleep(0.01)
    return {"n": n, "of": ctx.message["of"]}
"""


@pytest.mark.slow  # two processes; savepoints themselves are tested above
def test_the_command_line_makes_a_savepoint_of_a_running_app_and_starts_from_it(tmp_path: Path) -> None:
    """The app hangs in a call when it is asked, and is killed thereafter."""
    (tmp_path / "lines_program.py").write_text(PROGRAM)
    write_lines(tmp_path / "in.ndjson", [{"of": n} for n in range(10)])
    env = environment()

    def sabot_runs(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*SABOT, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)

    process = subprocess.Popen([*SABOT, "run", "lines_program:app"], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(until(lambda: len(read_lines(tmp_path / "out.ndjson")) == 5))
        made = sabot_runs("savepoint", "create", "lines_program:app", "--to", "saved")
        assert made.returncode == 0, made.stderr
        assert "saved" in made.stdout
        assert process.poll() is None, "it goes on"
    finally:
        process.kill()
        process.wait()
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "go").touch()
    done = sabot_runs("run", "lines_program:app", "--from", "saved")
    assert done.returncode == 0, done.stderr
    assert read_lines(tmp_path / "out.ndjson") == [{"n": n + 1, "of": n} for n in range(10)]


# -- state, read from outside ---------------------------------------------------------------------------------------------


async def test_state_of_a_running_app_is_as_it_is_now(memory_url: str, tmp_path: Path) -> None:
    app = counter(memory_url, tmp_path)
    async with running(app):
        await counted(app, memory_url, [1, 2])
        assert await asyncio.to_thread(n_of, app) == 2
        await counted(app, memory_url, [3])
        assert await asyncio.to_thread(n_of, app) == 3
    assert n_of(app) == 3
    assert n_of(counter(memory_url, tmp_path)) == 3, "an app that has not been started reads the checkpoint"


async def test_state_of_a_stopped_app_by_name_key_and_checkpoint(memory_url: str, tmp_path: Path) -> None:
    rows = payments(0, 60)
    app = totals(memory_url, tmp_path)
    send(memory_url, rows[:30])
    async with running(app):
        await until(lambda: rows_read(app) == 60 and seen_by(app) == 30)
        first = await checkpoint(app)
        send(memory_url, rows[30:])
        await until(lambda: rows_read(app) == 120 and seen_by(app) == 60)
    app = totals(memory_url, tmp_path)
    found = app.state("running").to_arrow()
    assert set(found.column_names) >= {"k", "n", "total"}
    sums = {row["k"]: (row["n"], row["total"]) for row in found.to_pylist()}
    amounts = {k: [row["amount"] for row in rows if row["k"] == k] for k in {row["k"] for row in rows}}
    assert sums == {k: (len(each), sum(each)) for k, each in amounts.items()}
    (one,) = app.state("running", key="k1").to_arrow().to_pylist()
    assert (one["n"], one["total"]) == sums["k1"]
    earlier = app.state("running", as_of=first).to_arrow()
    assert sum(earlier["n"].to_pylist()) == 30
    assert sum(app.state("seen", as_of=first).to_arrow()["value"].to_pylist()) == 30
    assert sum(app.state("seen").to_arrow()["value"].to_pylist()) == 60


async def test_state_that_is_not_there_is_a_clear_error(memory_url: str, tmp_path: Path) -> None:
    app = counter(memory_url, tmp_path)
    with pytest.raises(UserError):
        app.state("count").to_arrow()
    async with running(app):
        await counted(app, memory_url, [1])
    with pytest.raises(UserError, match="nobody") as caught:
        app.state("nobody").to_arrow()
    assert "count" in str(caught.value), "it says what there is"
    with pytest.raises(UserError, match="77"):
        app.state("count", as_of=77).to_arrow()
