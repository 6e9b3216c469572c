"""The runner that crashes an app at every step (`sabot.testing.crash_at_every_step`): it counts, it dies where it should, it sees loss."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

import sabot
from sabot import App, Message, ParquetSink, Sink, SqlSink, UserError, col
from sabot.connectors.base import Delivers
from sabot.steps import step
from sabot.testing import BARRIER, END, ScriptedSource, crash_at_every_step

pytestmark = pytest.mark.integration

ROWS = [[{"k": f"k{number % 3}", "n": number} for number in range(start, start + 6)] for start in (0, 6)]


class LineSink(Sink, Delivers):
    """A file of lines, one for each part: "seq rows…"."""

    def __init__(self, path: Path, *, forgetful: bool = False) -> None:
        self.name = path.name
        self._path = path
        self._forgetful = forgetful

    def open(self) -> None:
        self._path.touch()

    def write(self, batch):
        raise AssertionError("it delivers")

    def flush(self) -> None:
        """Nothing waits."""

    def claim(self, track):
        self.open()

    def deliver(self, seq, batches):
        lines = self._path.read_bytes().split(b"\n")[:-1]  # a line that is torn does not count
        if not self._forgetful and any(json.loads(line)["seq"] == seq for line in lines):
            return
        rows = [row for batch in batches for row in batch.to_pylist()]
        whole = self._path.with_suffix(".new")
        with step("write", self.name) as this, whole.open("wb") as file:
            this.write(
                file, b"".join(line + b"\n" for line in lines) + json.dumps({"seq": seq, "rows": rows}).encode() + b"\n"
            )
        with step("rename", self.name):
            whole.rename(self._path)

    def close(self) -> None:
        """Nothing is open."""


def build(directory: Path, *, forgetful: bool = False) -> App:
    app = App("sums", state="memory", checkpoint_dir=directory / "checkpoints")
    rows = app.stream(ScriptedSource([ROWS[0], BARRIER, ROWS[1], END]))
    summed = rows.filter(col("n") >= 0).key_by("k").aggregate(total=sabot.sum("n"))
    summed.to(LineSink(directory / "out.txt", forgetful=forgetful), delivery="exactly_once")
    return app


def build_forgetful(directory: Path) -> App:
    return build(directory, forgetful=True)


def check(directory: Path) -> list[list[object]]:
    lines = (directory / "out.txt").read_text().splitlines()
    return sorted([row["k"], row["total"]] for line in lines for row in json.loads(line)["rows"])


# Two lives for each crash, 0.1 s of processor time each.
each_or_some = pytest.mark.parametrize("sample", [pytest.param(None, id="each", marks=pytest.mark.slow), 8])


@each_or_some
def test_the_outcome_is_the_same_wherever_the_process_dies(sample: int | None) -> None:
    crashes = crash_at_every_step(build, check, workers=2, sample=sample)
    print(crashes)
    assert crashes.steps > 5
    assert crashes.died > (sample // 2 if sample else crashes.steps)


@pytest.fixture
def kept_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worlds of runs that fail. A short path: it is that of a socket too."""
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp(prefix="kept-"))


@pytest.mark.slow  # a process for each step of a pipeline
@pytest.mark.usefixtures("kept_here")
def test_a_part_that_is_taken_twice_is_seen_and_the_step_is_named() -> None:
    """Which crash shows it first depends on the threads: a part is delivered beside the steps of the next checkpoint, so a step that is
    torn, or that has only begun, may come after the rename. After the last part there is no such step.
    """
    with pytest.raises(
        AssertionError, match=r"(?s)crash (before|after|torn) step \d+ \(.*and should be.*files of that run are in"
    ):
        crash_at_every_step(build_forgetful, check)


def build_timers(directory: Path) -> App:
    """Each row sets a timer that is due at once, and each of these sets another one."""
    app = App("reminders", state=str(directory / "state"), checkpoint_interval=3600)
    columns = pa.schema([("k", pa.string()), ("name", pa.string()), ("fired", pa.int64())])
    sink = SqlSink(f"sqlite:///{directory / 'out.db'}", table="fired", schema=columns)

    async def fire(timer, ctx):
        fired = (await ctx.state("fired").get(timer.name) or 0) + 1
        await ctx.state("fired").put(timer.name, fired)
        if not timer.name.endswith("again"):
            ctx.timers.processing(timer.at + 1, f"{timer.name} again")
        return {"k": ctx.message["k"], "name": timer.name, "fired": fired}

    @app.agent(ScriptedSource([ROWS[0], BARRIER, ROWS[1], END]), key="k", concurrency=2, sink=sink, on_timer=fire)
    async def remind(ctx):
        ctx.timers.processing(ctx.message["n"], f"n{ctx.message['n']}")
        ctx.timers.processing(ctx.now() + 3_600_000, "late")

    return app


def check_timers(directory: Path) -> list[list[object]]:
    with contextlib.closing(sqlite3.connect(directory / "out.db")) as database:
        fired = sorted(map(list, database.execute("select k, name, fired from fired")))
    assert fired == sorted([f"k{n % 3}", f"n{n}{again}", 1] for n in range(12) for again in ("", " again"))
    return fired


@each_or_some
def test_timers_of_agents_fire_once_wherever_the_process_dies(sample: int | None) -> None:
    crashes = crash_at_every_step(build_timers, check_timers, workers=2, sample=sample)
    assert crashes.died > (sample // 2 if sample else crashes.steps)


def build_parted(directory: Path) -> App:
    """Each result says into which of two sinks it goes, and how often its key was seen."""
    app = App("parted", state=str(directory / "state"), checkpoint_interval=3600)
    columns = pa.schema([("k", pa.string()), ("n", pa.int64()), ("seen", pa.int64())])
    even, odd = (SqlSink(f"sqlite:///{directory / name}.db", table=name, schema=columns) for name in ("even", "odd"))

    @app.agent(ScriptedSource([ROWS[0], BARRIER, ROWS[1], END]), key="k", concurrency=2, sink=[even, odd])
    async def part(ctx):
        seen = (await ctx.state().get("seen") or 0) + 1
        await ctx.state().put("seen", seen)
        return Message({**ctx.message, "seen": seen}, topic=odd.name if ctx.message["n"] % 2 else None)

    return app


def check_parted(directory: Path) -> list[list[object]]:
    found = []
    for name, left in (("even", 0), ("odd", 1)):
        with contextlib.closing(sqlite3.connect(directory / f"{name}.db")) as database:
            rows = sorted(map(list, database.execute(f"select k, n, seen from {name}")))
        assert rows == sorted([f"k{n % 3}", n, n // 3 + 1] for n in range(12) if n % 2 == left)
        found += rows
    return found


@pytest.mark.parametrize("sample", [pytest.param(None, id="each", marks=pytest.mark.slow), 6])
def test_results_are_once_in_the_sink_that_they_name_wherever_the_process_dies(sample: int | None) -> None:
    crashes = crash_at_every_step(build_parted, check_parted, workers=2, sample=sample)
    assert crashes.died > (sample // 2 if sample else crashes.steps)


@pytest.mark.slow  # it waits
@each_or_some
def test_more_than_one_death_in_a_row_changes_nothing(sample: int | None) -> None:
    crashes = crash_at_every_step(build, check, torn=False, deaths=3, workers=2, sample=sample)
    assert crashes.by_moment["torn"] == 0
    assert crashes.died > (sample // 2 if sample else crashes.steps)


class Loading:
    """An app that keeps the names of the modules which it loads when it runs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def app(self) -> App:
        app = App("sums", state="memory", checkpoint_dir=self._directory / "checkpoints")
        rows = app.stream(ScriptedSource([ROWS[0], END]))
        summed = rows.filter(col("n") >= 0).key_by("k").aggregate(total=sabot.sum("n"))
        summed.to(LineSink(self._directory / "out.txt"), delivery="exactly_once")
        return app

    async def run(self) -> None:
        before = set(sys.modules)
        await self.app().run()
        (self._directory / "loaded.json").write_text(json.dumps(sorted(sys.modules.keys() - before)))


class LoadingWindows(Loading):
    """Rows of Python in windows, and an agent with state on a disk."""

    def app(self) -> App:
        app = App("windows", state=str(self._directory / "state"), checkpoint_interval=3600)
        sink = SqlSink(f"sqlite:///{self._directory / 'out.db'}", table="seen")
        rows = app.stream([{"k": f"k{n % 3}", "n": n, "ts": n} for n in range(12)], time="ts")
        totals = rows.key_by("k").window(sabot.tumbling("10s")).aggregate(total=sabot.sum("n"))
        totals.to(ParquetSink(str(self._directory / "totals.parquet")), delivery="exactly_once")

        @app.agent(ScriptedSource([ROWS[0], END]), key="k", sink=sink)
        async def seen(ctx):
            await ctx.state().put("seen", (await ctx.state().get("seen") or 0) + 1)
            return ctx.message

        return app


@pytest.mark.parametrize("program", [Loading, LoadingWindows])
def test_a_process_finds_loaded_what_its_life_needs(program: type[Loading]) -> None:
    loaded = []
    crash_at_every_step(program, lambda place: loaded.append(json.loads((place / "loaded.json").read_text())), sample=0)
    assert loaded == [[]]


class Asks:
    """A program that says whether a module is loaded that nothing of ours loads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def run(self) -> None:
        (self._directory / "loaded").write_text(str("colorsys" in sys.modules))


@pytest.mark.slow  # two runs of a program at each of its steps
def test_a_call_behind_others_finds_loaded_what_it_names() -> None:
    loaded: list[str] = []
    for preload in ([], ["colorsys"]):
        crash_at_every_step(
            Asks, lambda place: loaded.append((place / "loaded").read_text()), preload=preload, sample=0
        )
    assert loaded == ["False", "True"]


def hang(directory: Path) -> App:
    app = build(directory)

    class Stuck(LineSink):
        def claim(self, lane):
            while True:
                pass

    app.stream(ScriptedSource([{"n": 1}, END], name="other")).to(
        Stuck(directory / "stuck.txt"), delivery="exactly_once"
    )
    return app


@pytest.mark.slow  # it waits
@pytest.mark.usefixtures("kept_here")
def test_a_process_that_hangs_is_ended_and_says_where_it_was() -> None:
    for seconds in (12, 60, 300):  # its imports are in this time, which take longer on a busy machine
        with pytest.raises(AssertionError, match=f"did not end within {seconds} s") as said:
            crash_at_every_step(hang, check, timeout=seconds)
        if "in claim" in str(said.value):
            return
    raise AssertionError(said.value)


def test_a_function_that_no_other_process_can_call_is_refused() -> None:
    with pytest.raises(UserError, match="top of a module"):
        crash_at_every_step(lambda directory: build(directory), check)


@pytest.mark.slow
def test_the_test_that_the_documents_show_passes(tmp_path: Path) -> None:
    page = (Path(sabot.__file__).parents[1] / "docs" / "testing.md").read_text()
    (tmp_path / "test_page.py").write_text(page.split("```py\n")[1].split("```")[0])
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
