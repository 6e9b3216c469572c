"""`sabot top`: one reading, and the table on a terminal."""

import asyncio
import io
import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sabot
from sabot import App, col, tumbling
from sabot.base.figures import AppFigures
from sabot.cli.app_checkpoints import AppCheckpoints
from sabot.cli.top import _Poller, _table
from sabot.engine.plan import Plan, make_plan
from sabot.engine.plan.drawing import frames_of
from sabot.engine.plan.drawing.render import svg
from sabot.engine.runtime.watch.app_rates import AppReading, rates_between
from sabot.engine.runtime.watch.bottleneck import Cause, NarrowPlace
from sabot.errors import UserError
from sabot.testing import MemoryBroker
from tools.agent_tools import until
from tools.command_line import ENV, SABOT, sabot_says

ROWS = [{"k": f"k{n % 3}", "n": n, "ts": n * 1000} for n in range(60)]


@pytest.fixture
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_url: str) -> AsyncIterator[App]:
    """An app that runs, with its state in the folder `state` here."""
    monkeypatch.chdir(tmp_path)
    MemoryBroker.get(memory_url).publish("rows", ROWS)
    app = App("shop", memory_url, state="state", parallelism=2, checkpoint_interval=60)
    rows = app.stream("rows", schema={"k": "string", "n": "int64", "ts": "int64"}, time="ts")
    minutes = rows.filter(col("n") > 1).key_by("k").window(tumbling("10s"), late="late").aggregate(n=sabot.count())
    minutes.to("minutes")

    @app.agent("minutes", sink="alerts")
    async def alert(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    await app.start()
    yield app
    await app.stop()


async def top(*words: object) -> Any:
    return await asyncio.to_thread(sabot_says, "top", "state", "--interval", 0.3, *words)


async def test_one_reading_has_the_tasks_with_their_steps(shop: App) -> None:
    await shop.agent_runtime.trigger_checkpoint()
    done = await top("--once")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "shop: restarts 0, late rows 0, dead letters 0"
    assert lines[1].startswith("checkpoint: 1, ")
    (head,) = [number for number, line in enumerate(lines) if line.startswith("task  ")]
    names = [line[: lines[head].index("rows in/s")].rstrip() for line in lines[head + 1 :]]
    assert {"window-1 ×2", "  tumbling-1", "write-3 minutes", "shop.alert/minutes", "agents", "  shop.alert"} <= {
        *names
    }
    assert any(name.startswith("read-1 rows") for name in names)


async def test_output_that_is_no_terminal_gets_one_reading(shop: App) -> None:
    assert (await top()).stdout.startswith("shop: restarts 0")


async def test_json_has_the_figures_of_tasks_and_of_all_links_of_the_plan(shop: App) -> None:
    done = await top("--json")
    found = json.loads(done.stdout)
    assert found["app"] == "shop"
    assert found["seconds"] > 0.2
    assert found["workers"] == []
    assert found["narrow_places"] == []
    tasks = {task["id"]: task for task in found["tasks"]}
    assert tasks["window-1"]["subtasks"] == 2
    assert set(tasks["window-1"]["shares"]) == {"busy", "contended", "backpressured", "waiting", "aligning", "idle"}
    assert abs(sum(tasks["window-1"]["shares"].values()) - 1) < 0.01
    drawn = {tuple(link.key) for frame in frames_of(plan_of(shop)) for box in frame.boxes() for link in box.links}
    counted = {(link["origin"], link["target"], link["branch"]) for link in found["links"]}
    assert drawn - counted == {("shop.alert", "sinks/alerts", "")}  # what goes into a sink of agents is counted there


def plan_of(app: App) -> Plan:
    return make_plan(app.spec.ends, agents=app.spec.agent_specs, parallelism=2)


async def test_the_rates_are_drawn_into_the_plan(shop: App) -> None:
    """Each task, step and link of the figures is one of the drawing."""

    def drawn() -> Any:
        answer = {"app": "shop", "restarts": 0, "seconds": 1.0, "now_ms": 1e12, "figures": shop.statistics()}
        reading = AppReading.of(answer)
        return rates_between(replace(reading, seconds=0.0, figures=AppFigures()), reading).drawn()

    await until(lambda: 'class="idle"' in svg(plan_of(shop), drawn()), "a task that has been idle for most of its time")
    figures = drawn()
    frames = frames_of(plan_of(shop))
    assert {frame.id for frame in frames} - {"sinks/alerts"} <= figures.tasks.keys()
    assert {box.id for frame in frames for box in frame.boxes() if box.kind == "step"} <= figures.steps.keys()
    drawing = svg(plan_of(shop), figures)
    assert re.search(r">\d+/s<", drawing)


async def test_no_request_is_left_behind(shop: App) -> None:
    assert (await top("--once")).exit_code == 0
    assert list(Path("state/checkpoints/requests").iterdir()) == []


@pytest.mark.parametrize("words", [(), ("--once",), ("--json",)])
def test_an_app_that_does_not_run_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").mkdir()
    done = sabot_says("top", "state", *words)
    assert done.exit_code == 1
    assert done.stderr.startswith("sabot: no app runs on ")
    assert "sabot run module:app starts it" in done.stderr


def test_a_place_that_there_is_not_is_wrong_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sabot_says("top", "nowhere").exit_code == 2
    assert sabot_says("top", "nowhere", "--interval", "0").exit_code == 2


# -- on a terminal ------------------------------------------------------------------------------------------------------------


class Terminal:
    """`sabot top` in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        env = {**ENV, "TERM": "xterm-256color", "COLUMNS": "130", "LINES": "40"}
        env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [*SABOT, "top", *words],
            stdin=slave,
            stdout=slave,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def until(self, text: str, seconds: float = 60) -> None:
        limit = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < limit, self.shown
            if not select.select([self._master], [], [], 0.5)[0]:
                continue
            try:
                self.shown += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        assert text in self.shown, self.shown

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def close(self) -> int:
        try:
            while piece := os.read(self._master, 65_536):
                self.shown += piece.decode(errors="replace")
        except OSError:
            pass
        os.close(self._master)
        return self.process.wait(timeout=60)


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize("key", [b"q", b"\x03"])
async def test_the_table_is_on_the_screen_until_a_key_ends_it(shop: App, key: bytes) -> None:
    terminal = Terminal("state", "--interval", "0.3")
    try:
        await asyncio.to_thread(terminal.until, "tumbling-1")
        assert "\x1b[?1049h" in terminal.shown  # a screen of its own, so that nothing of the table is left behind
        if key == b"\x03":
            os.killpg(terminal.process.pid, 2)
        else:
            terminal.press(key)
        await asyncio.to_thread(terminal.until, "\x1b[?1049l")
        assert await asyncio.to_thread(terminal.close) == 0
    finally:
        terminal.process.kill()


@pytest.mark.slow  # half a second of a core
async def test_the_table_ends_with_the_app(shop: App) -> None:
    terminal = Terminal("state", "--interval", "0.3")
    try:
        await asyncio.to_thread(terminal.until, "tumbling-1")
        await shop.stop()
        await asyncio.to_thread(terminal.until, "\x1b[?1049l")
        assert await asyncio.to_thread(terminal.close) == 0
        # the second where the app ended while it was asked
        assert re.search(r"\?1049lshop: (no app runs on |the app that used .* has ended )", terminal.shown)
    finally:
        terminal.process.kill()


def test_an_app_that_does_not_answer_is_asked_again_until_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, answers = UserError("no app has answered"), iter([many(1), "silent", many(1), "silent", "silent"])
    running = iter([True, True, False])

    def read(app: object) -> AppReading:
        found = next(answers)
        if isinstance(found, str):
            raise silent
        return found

    monkeypatch.setattr("sabot.cli.top._read", read)
    monkeypatch.setattr("sabot.cli.top.control_of", lambda app: "here" if next(running) else None)
    poller = _Poller(AppCheckpoints("nowhere"), 0.01)
    poller.run()
    assert poller.ended is silent
    assert len(poller.readings) == 2


def many(tasks: int, workers: int = 0) -> AppReading:
    """A reading of an app with this many tasks, one of which has a name that would control the terminal."""
    streams = {
        f"task-{n}\x1b[2J/0": {
            "rows": 5,
            "time": {"busy": 1.0, "idle": 0.5},
            "operators": {f"step-{n}": {"rows_in": 1}},
            "input": {"source": "a-rather-long-name-of-a-topic", "lag": {"t": 10**9}},
        }
        for n in range(tasks)
    }
    of_process = {"rows_per_second": 1.0, "lag": 5, "cpu_percent": 3.0, "memory_bytes": 10**8, "tasks": {}}
    members = [{"worker": n, "pid": 4000 + n, **of_process} for n in range(workers)]
    told = {"streams": streams, "workers": members, "failure": "it broke " * 20}
    return AppReading("shop", 1.0, 1e12, 0, AppFigures.of(told))


@pytest.mark.one_in(4, "hundredths of a second of a core each")
@pytest.mark.parametrize(("wide", "high"), [(60, 20), (80, 24), (100, 30), (130, 40), (200, 60)])
@pytest.mark.parametrize(("tasks", "workers"), [(0, 0), (3, 0), (12, 3), (80, 0)])
def test_the_table_fits_the_terminal(wide: int, high: int, tasks: int, workers: int) -> None:
    from rich.console import Console

    before, after = many(0), many(tasks, workers)
    screen = io.StringIO()
    Console(file=screen, width=wide, height=high, color_system=None).print(_table([before, after], 0.0, wide, high))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= wide
    assert len(lines) <= high
    assert "\x1b[2J" not in screen.getvalue()
    if tasks == 80:
        assert "more tasks than lines: --once prints all" in " ".join(lines)


def test_the_narrow_place_is_said_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    place = NarrowPlace("read-1/0", Cause.SLOW_STEP, 0.9, None, "filter-1", "read-1/0 is the narrow place", "less work")
    monkeypatch.setattr("sabot.cli.top.narrow_places", lambda before, now: [place])
    from rich.console import Console

    screen = io.StringIO()
    Console(file=screen, width=130, height=40).print(_table([many(1), many(1)], 0.0, 130, 40))
    assert "read-1/0 is the narrow place\nwhat would help: less work\n" in re.sub(" +\n", "\n", screen.getvalue())


def test_old_figures_are_said_to_be_old() -> None:
    from rich.console import Console

    screen = io.StringIO()
    Console(file=screen, width=130, height=40).print(_table([many(1), many(1)], 12.0, 130, 40))
    assert "no answer for 12 s, these figures are old" in screen.getvalue()
