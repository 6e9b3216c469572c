"""A function that blocks the event loop, or a step that does not come back, is named while it does so.

An agent that called `time.sleep` stopped everything without a word, and a process function that never returned showed as a checkpoint that
timed out.
"""

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sabot import App, CheckpointFailed
from sabot.agents import ExecutionRequest, RuntimeKernel
from sabot.engine.runtime.tasks import blocking
from sabot.testing import END, ListSink, ScriptedSource
from tools.agent_tools import publish, started, until

PATIENCE = 60.0


class Lines(logging.Handler):
    """Keeps the lines. again: a function was named with what waits behind it. stuck: a step was named."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.stuck = threading.Event(), threading.Event()
        self.lines: list[str] = []
        self.once = False  # the first line is enough

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.once or "; behind it wait " in self.lines[-1]:
            self.again.set()
        if " has not returned for " in self.lines[-1]:
            self.stuck.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "BLOCKED_S", 0.05)
    monkeypatch.setattr(blocking, "STEP_S", 0.05)
    monkeypatch.setattr(blocking, "AGAIN", 2.0)


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler = Lines()
    logging.getLogger("sabot.engine.runtime.tasks.blocking").addHandler(handler)
    yield handler
    logging.getLogger("sabot.engine.runtime.tasks.blocking").removeHandler(handler)


@pytest.mark.usefixtures("quick")
async def test_a_function_that_blocks_the_loop_is_named_with_its_line_and_what_waits_behind_it(
    memory_url: str, lines: Lines
) -> None:
    app, done = App("slow", memory_url), []

    @app.agent("orders")
    async def score(ctx: Any) -> None:
        if not done:
            lines.again.wait(PATIENCE)  # this line
        done.append(ctx.message["n"])

    publish(app, "orders", [{"n": n} for n in range(7)])
    async with started(app):
        await until(lambda: len(done) == 7, "all records")
    (agent_id,) = app.agent_runtime.agents
    first = next(line for line in lines.lines if "blocks" in line and "score, " in line)
    assert first.startswith(f"agent {agent_id} blocks the event loop for ")
    assert f"score, {__file__}:" in first
    assert "# this line" in first
    assert "behind it wait" not in first
    again = next(line for line in lines.lines if "behind it wait" in line)
    assert f"records of agent {agent_id}" in again


@pytest.mark.parametrize("blocks", ["function", "tool", "listener"])
@pytest.mark.usefixtures("quick")
async def test_what_blocks_the_loop_of_a_kernel_is_named_with_its_line(lines: Lines, blocks: str) -> None:
    lines.once = True

    def stuck() -> None:
        lines.again.wait(PATIENCE)  # this line

    async def works() -> None:
        if blocks == "tool":
            stuck()

    async def pays(ctx: Any) -> None:
        if blocks == "function":
            stuck()
        await ctx.step(works, effect="read")

    async def listens(event: Any) -> None:
        if blocks == "listener" and not lines.again.is_set():
            stuck()

    async with RuntimeKernel.create(agent=pays) as kernel:
        await kernel.event_bus.subscribe(listens)
        await (await kernel.execute(ExecutionRequest(prompt=1))).result()
        await until(lambda: lines.again.is_set())
    line = next(line for line in lines.lines if "stuck, " in line or "# this line" in line)
    assert " blocks the event loop for " in line
    assert f"{__file__}:" in line
    assert "# this line" in line
    assert {"function": "pays, ", "tool": "works, ", "listener": "listens, "}[blocks] in line
    assert not [thread for thread in threading.enumerate() if thread.name == "sabot-watch"]


@pytest.mark.parametrize("step", ["map_batches", "process"])
@pytest.mark.usefixtures("quick")
async def test_a_step_of_a_stream_that_does_not_come_back_is_named(memory_url: str, lines: Lines, step: str) -> None:
    def stuck(*given: Any) -> Any:
        lines.stuck.wait(PATIENCE)  # this line
        return None

    app, schema = App("stuck", memory_url), {"n": "int64"}
    stream = app.stream(ScriptedSource([[{"n": 1}], END], name="in"), schema=schema)
    made = (
        stream.map_batches(stuck, schema=schema)
        if step == "map_batches"
        else stream.key_by("n").process(stuck, schema=schema)
    )
    made.to(ListSink())
    await app.run()
    line = next(line for line in lines.lines if "stuck, " in line)  # a busy machine makes other steps late, too
    assert "has not returned for " in line
    assert "stuck, " in line
    assert f"{__file__}:" in line
    assert "# this line" in line
    assert " of task read-1/0" in line


async def test_nothing_is_said_of_an_app_that_waits(memory_url: str, lines: Lines) -> None:
    app = App("idle", memory_url)

    @app.agent("orders")
    async def score(ctx: Any) -> None:
        """Takes it."""

    async with started(app):
        publish(app, "orders", [{"n": 1}])
        await until(lambda: app.statistics()["agents"] and not lines.lines)
    assert not lines.lines
    assert not [thread for thread in threading.enumerate() if thread.name == "sabot-watch"]


INTERRUPTED = """
import signal, sys, time
from sabot import App
from sabot.testing import MemoryBroker

app = App("stuck", "memory://", stop_timeout=float(sys.argv[1]))

@app.agent("orders")
async def score(ctx):
    signal.raise_signal(signal.SIGINT)
    time.sleep(float(sys.argv[2]))  # this line

broker = MemoryBroker.get()
broker.create_topic("orders", 1)
broker.publish("orders", [{"n": 1}])
app.main()
"""


@pytest.mark.one_in(2, "half a second of a core each")
@pytest.mark.parametrize(
    ("stop_s", "blocks_s", "code"), [("0.05", "3600", 130), ("60", "0", 0)], ids=["never", "in time"]
)
def test_ctrl_c_ends_a_program_in_time_though_a_function_blocks_the_loop(
    tmp_path: Any, stop_s: str, blocks_s: str, code: int
) -> None:
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, program, stop_s, blocks_s], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert ("sabot: not stopped within 0.05 s; still in " in done.stderr) is (code != 0)
    assert ("# this line" in done.stderr) is (code != 0)


async def test_a_checkpoint_that_waits_for_a_process_function_says_in_which_line_it_is(
    memory_url: str, tmp_path: Any
) -> None:
    go_on = threading.Event()

    def stuck(row: Any, ctx: Any) -> None:
        go_on.wait(PATIENCE)  # this line

    app = App("stuck", memory_url, checkpoint_dir=tmp_path, checkpoint_timeout="100ms")
    publish(app, "in", [{"n": 1}])
    app.stream("in", schema={"n": "int64"}).key_by("n").process(stuck, schema={"n": "int64"}).to(ListSink())
    await app.start()
    try:
        await until(lambda: app.statistics()["streams"]["read-1/0"]["input"]["rows_in"] == 1, "the row")
        with pytest.raises(CheckpointFailed, match=r"stuck, .*test_blocking.py:\d+: .*# this line"):
            await app.agent_runtime.trigger_checkpoint()
    finally:
        go_on.set()
        with contextlib.suppress(CheckpointFailed):  # that of the stop has 100 ms too, which a busy machine may exceed
            await app.stop()
