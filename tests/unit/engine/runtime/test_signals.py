"""SIGINT, SIGTERM and SIGHUP at every moment of a start, of a run and of a stop: the first stops in good order, the second at once.

Most of it within this process: the signal is raised by the main thread itself, at its n-th call of a function of ours.
"""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sabot import App
from sabot.cli.run import _work
from sabot.cli.running import guarded
from sabot.engine.runtime.life.signals import StopSignals
from sabot.steps import watch
from sabot.testing import MemoryBroker
from tools.agent_tools import environment, until
from tools.command_line import child

OURS = str(Path(__file__).parents[4] / "sabot")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SECONDS = 60.0  # far above what any of this takes


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBroker]:
    """The signals of the test's process, as Python has them, before and after. A command line that ran in this process holds them for
    good: an app would leave them to it, and the first one raised here would end the tests.
    """
    monkeypatch.setattr(StopSignals, "_holder", None)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    MemoryBroker.get().reset()
    yield MemoryBroker.get()
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def at_call(place: int, number: int | None, within: str = OURS) -> Iterator[list[str]]:
    """At the `place`-th call of a function in `within` by this thread the signal is raised; -> the functions called until then.

    Callbacks of the garbage collector do not count: what is raised there, Python reports as ignored, and `raising()` raises it at its end.
    """
    calls: list[str] = []
    collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}

    def on_call(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code in collecting:
            return
        if code.co_filename.startswith(within) and not code.co_filename.endswith("signals.py"):
            calls.append(code.co_name)
            if len(calls) == place and number is not None:
                sys.setprofile(None)
                signal.raise_signal(number)

    gc.disable()  # else generators that other tests have left are closed in here, and their calls count
    sys.setprofile(on_call)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        gc.enable()


def idle(state: Path) -> App:
    """Nothing comes, and nothing else wakes the event loop for a minute."""
    app = App("a", state=str(state))
    app.agent("in", name="f")(lambda ctx: None)
    app.stream("in", schema={"x": "int64"}).to("out")
    return app


def calls_of_a_start(state: Path) -> int:
    """How many functions the main thread calls until the app runs."""
    app = idle(state)
    with at_call(0, None) as calls:

        async def start_and_stop() -> int:
            await app.start()
            count = len(calls)
            sys.setprofile(None)
            await app.stop()
            return count

        return asyncio.run(start_and_stop())


def within_seconds(work: Callable[[], Any], sent: Callable[[], bool] = lambda: True) -> Any:
    """An app that has lost its signal does not end the tests with it: a thread sends a second one, and a third. sent: there was one."""
    late = threading.Event()

    def again() -> None:
        while not over.wait(SECONDS):
            late.set()
            os.kill(os.getpid(), signal.SIGINT)

    over = threading.Event()
    thread = threading.Thread(target=again)
    thread.start()
    try:
        return work()
    finally:
        over.set()
        thread.join()
        assert not (late.is_set() and sent()), "the signal was lost"


# --- every moment


@pytest.mark.parametrize("apart", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_at_any_call_of_a_start_stops_the_app(apart: int, tmp_path: Path) -> None:
    """One that came before `run()` had its event was forgotten, and the app ran on. The next start finds the directory free."""
    # Some behind the start, too. A start that has to wait for something makes more calls, so the least of three counts.
    calls = min(calls_of_a_start(tmp_path / f"before{number}") for number in range(3)) + 40
    for place in range(2, calls, apart):  # the first is `main` itself
        app = idle(tmp_path / "state")
        with at_call(place, SIGNALS[place % 3]) as made:
            within_seconds(app.main, lambda place=place, made=made: len(made) >= place)
        assert not app.agent_runtime.runner.running
        if len(made) < place:  # each start that was counted had to wait for something
            assert place > calls // 2
            return


class AtStep:
    """Raises the signal of the process at its n-th step (`sabot.steps`), whatever thread makes it."""

    def __init__(self, place: int, number: int) -> None:
        self.place, self.number = place, number
        self.names: list[str] = []

    def before(self, name: str, what: str) -> None:
        self.names.append(name)
        if len(self.names) == self.place:
            os.kill(os.getpid(), self.number)

    def after(self, name: str, what: str) -> None:
        """Nothing."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@pytest.mark.slow  # half a second of a core
def test_a_signal_at_any_step_of_a_life_stops_the_app(tmp_path: Path) -> None:
    """From the claim of the directory to the removal of old checkpoints at the end: a stop asked for meanwhile, too."""
    place, steps = 0, 1
    while place < steps:
        place += 1
        app, watcher = idle(tmp_path / "state"), AtStep(place, SIGNALS[place % 3])
        watch(watcher)
        try:
            within_seconds(partial(asyncio.run, stopped_by_itself(app)))
        finally:
            watch(None)
        steps = len(watcher.names)
    assert steps > 5


async def stopped_by_itself(app: App) -> None:
    async def stop() -> None:
        await until(lambda: app.agent_runtime.runner.started)
        app.request_stop()

    stopping = asyncio.create_task(stop())
    await app.run()
    stopping.cancel()


@pytest.mark.one_in(3, "a tenth of a second of a core each")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_another_thread_takes_wakes_the_app(number: signal.Signals) -> None:
    """So does one that comes just before the loop waits. It was heard when something else woke the loop: after a minute, or never."""
    app = App("a")  # no directory whose requests are looked for each quarter of a second
    app.agent("in", name="f")(lambda ctx: None)

    def elsewhere() -> None:
        while not app.agent_runtime.runner.started:
            pass
        resting.wait(0.2)  # the loop has nothing to do by then; if it has, the test shows less
        signal.pthread_kill(threading.get_ident(), number)

    resting = threading.Event()
    thread = threading.Thread(target=elsewhere)
    thread.start()
    within_seconds(app.main)
    thread.join()


# --- sabot run, before the app runs


PROGRAM = """
from sabot import App
app = App("a")
@app.agent("in")
async def f(ctx):
    "Nothing comes."
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "signalled.py"
    path.write_text(PROGRAM)
    yield path
    sys.modules.pop("signalled", None)
    sys.path[:] = [each for each in sys.path if each != str(tmp_path)]


SETTINGS: dict[str, Any] = dict.fromkeys(
    [
        "broker",
        "state",
        "checkpoint_dir",
        "checkpoint_interval",
        "parallelism",
        "fresh",
        "metrics_port",
        "from_",
        "until",
    ]
)


@pytest.mark.parametrize("part", range(12))
def test_a_signal_at_any_call_of_sabot_run_ends_it(part: int, program: Path) -> None:
    number = SIGNALS[part % 3]
    with at_call(3 + 8 * part, number) as calls:  # the first two are before anybody holds the signals
        code = within_seconds(lambda: guarded(lambda: _work("signalled:app", SETTINGS), debug=False))
    assert calls
    assert code in (0, 128 + number)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_while_the_users_module_is_imported_ends_it(
    swallowed: bool, number: signal.Signals, program: Path
) -> None:
    """Also where the module swallows what is raised in it."""
    lines = ["import signal", "try:", f"    signal.raise_signal({int(number)})", "    open('passed', 'w')"]
    lines += ["except BaseException:", "    if not " + str(swallowed) + ": raise"]
    program.write_text("\n".join(lines) + PROGRAM)
    assert within_seconds(lambda: guarded(lambda: _work("signalled:app", SETTINGS), debug=False)) == 128 + number
    assert not Path("passed").exists()


# --- who holds the signals


async def test_run_gives_the_signals_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    app = App("a")
    app.agent("in", name="f")(lambda ctx: None)
    asyncio.get_running_loop().call_later(0.05, app.request_stop)
    await app.run()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


async def test_a_signal_stops_all_apps_of_a_loop() -> None:
    """The second app had no handler of its own, and ran on."""
    apps = [App("a"), App("b")]
    for app in apps:
        app.agent("in", name="f")(lambda ctx: None)
    running = [asyncio.create_task(app.run()) for app in apps]
    await until(lambda: all(app.agent_runtime.runner.started for app in apps))
    apps[0].request_stop()
    await running[0]  # whose run took them first
    assert signal.set_wakeup_fd(waking := signal.set_wakeup_fd(-1)) == -1
    assert waking != -1
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(SECONDS):
        await running[1]


async def test_signals_that_somebody_has_claimed_stay_his() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    app = App("a")
    app.agent("in", name="f")(lambda ctx: None)
    running = asyncio.create_task(app.run())
    await until(lambda: app.agent_runtime.runner.started)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    assert heard == [signal.SIGTERM]
    assert not running.done()
    signal.raise_signal(signal.SIGINT)
    await running


# --- the second one


BLOCKED = """
import sys, time
from pathlib import Path
from sabot import App
from sabot.testing import MemoryBroker
app = App("a", state="state")
@app.agent("in", batch="BATCH" in sys.argv)
def f(message, ctx=None):
    print("in", flush=True)
    while True:
        time.sleep(0.01)
MemoryBroker.get().publish("in", [{"x": 1}])
if __name__ == "__main__":
    RUN
"""


@pytest.mark.one_in(4, "a second of a core each")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("run", ["app.main()", "import asyncio; asyncio.run(app.run())"])
def test_an_agent_that_blocks_the_loop_is_ended_by_the_second_signal(
    number: signal.Signals, run: str, tmp_path: Path
) -> None:
    """`main()` could be ended by SIGKILL only: the third Ctrl-C was raised in the agent, and the end of asyncio waited for ever."""
    file = tmp_path / "blocked.py"
    file.write_text(BLOCKED.replace("RUN", run))
    with child(
        sys.executable, file, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(number)
        for _ in range(100):  # within 0.3 s of the first it counts as the same one
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=0.4)
                break
            process.send_signal(number)
    assert process.returncode in (128 + number, -number)


def test_a_keyboard_interrupt_between_the_users_calls_ends_run_too(tmp_path: Path) -> None:
    """The second Ctrl-C in `asyncio.run(app.run())` is Python's own: here it hits the event loop, not the user's function."""
    app = idle(tmp_path / "state")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        running = asyncio.ensure_future(app.run())
        await until(lambda: app.agent_runtime.runner.started)
        loop.call_soon(broken)
        await running

    def broken() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within_seconds(lambda: asyncio.run(main()))
    assert not app.agent_runtime.runner.running
    within_seconds(partial(asyncio.run, stopped_by_itself(idle(tmp_path / "state"))))  # the directory is free


@pytest.mark.slow  # a second of a core, or more
def test_what_holds_up_the_end_of_the_process_is_ended_by_the_second_signal(tmp_path: Path) -> None:
    """Signals were ignored from the end of the run on, and a thread of the user's held the process for ever."""
    (tmp_path / "held.py").write_text(
        textwrap.dedent("""
            import json, threading
            from sabot import App
            from sabot.connectors.files import files
            open("in.ndjson", "w").write(json.dumps({"x": 1}))
            app = App("a")
            app.stream(files("in.ndjson"), schema={"x": "int64"}).to("out")
            def hold():
                app_over.wait()
            app_over = threading.Event()
            threading.Thread(target=hold).start()
        """)
    )
    command = [sys.executable, "-c", "import sabot.cli; sabot.cli.main()", "run", "held:app", "--loglevel", "info"]
    with child(*command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert any("streams run" in line for line in process.stderr)
        for _ in range(100):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=0.4)
                break
    assert process.returncode == 130


def test_a_reader_of_stderr_that_stands_still_does_not_hold_up_a_stop() -> None:
    """Both signals waited for the full pipe, inside of the handler: only SIGKILL was left."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    stderr = os.dup(2)
    stopped = []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        os.dup2(writer, 2)
        with StopSignals.held() as signals:
            signals._stops.append(lambda: stopped.append(signals.first))
            signal.raise_signal(signal.SIGTERM)
    finally:
        os.dup2(stderr, 2)
        for descriptor in (stderr, reader, writer):
            os.close(descriptor)
        signal.signal(signal.SIGTERM, before)
    assert stopped == [signal.SIGTERM]


@pytest.mark.slow  # a second of a core, or more
def test_a_closed_stderr_is_no_file_of_the_users(tmp_path: Path) -> None:
    """A file that the program opens got the free descriptor, and the words of a stop, and what libraries say, were written into it."""
    (tmp_path / "results.py").write_text(
        textwrap.dedent("""
            import os, signal, threading, time
            from sabot import App

            out = open("results.csv", "a")
            app = App("results", state="memory")

            @app.agent("t")
            async def a(ctx):
                pass

            def stop():
                while not app.agent_runtime.runner.running:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGTERM)

            threading.Thread(target=stop, daemon=True).start()
        """)
    )
    code = "import sys; from sabot.cli import main; sys.argv = ['sabot', 'run', 'results:app']; main()"
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, env=os.environ, timeout=60, check=False)
    assert (tmp_path / "results.csv").read_bytes() == b""
