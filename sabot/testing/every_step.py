"""Crashes an app before, after and in the middle of each step that changes the outside world, each time in a new
process.

A fork server, which has imported all modules and runs no threads, makes the processes, so that each takes a few
hundredths of a second. They end by `os._exit`, so threads, clients and databases end in the middle of their work, as
in a real crash.
"""

import asyncio
import faulthandler
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.forkserver import _forkserver
from pathlib import Path
from typing import Any, Literal, Protocol

from sabot.app import App
from sabot.base.config import Duration, parse_seconds
from sabot.errors import UserError
from sabot.steps import watch
from sabot.testing.lives import sources_of, temporary_directory
from sabot.testing.script import ScriptedSource

Moment = Literal["before", "after", "torn"]

_DIED = 77  # the exit code of a process that died at its step
# Modules that an app imports when it starts. Each process would import them anew otherwise, in several times the time of its run.
# (numpy.ma: imported by numpy.unique. pandas: by pyarrow, for the first value of Python that becomes a column.)
_PRELOADED = (
    __name__,
    "sabot.engine.runtime.life.run",
    "sabot.engine.runtime.life.requests",  # run loads it late
    "sabot.engine.runtime.life.app_runner",
    "sabot.engine.runtime.agents.local_agents",
    "sabot.engine.runtime.agents.sinks",
    "sabot.engine.runtime.agents.source",
    "sabot.engine.runtime.agents.stream_feed",
    "sabot.engine.runtime.agents.unfinished",
    "sabot.engine.operators.aggregates.combining",
    "sabot.engine.operators.agents.kinds",
    "sabot.engine.operators.changes.steps",
    "sabot.engine.operators.joins.join",
    "sabot.engine.operators.keyed.running",
    "sabot.engine.operators.windows.fixed",
    "sabot.engine.operators.windows.sparse",
    "numpy.ma",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.pandas_compat",
    "pyarrow.parquet",
    "pyarrow.vendored.version",
    "rocksdict",
)
_imported: list[str] = []  # by the fork server


@dataclass
class Crashes:
    """The counts of the crashes that were tried."""

    steps: int  # steps of the run without a crash
    kinds: Counter[str]  # the number of these steps by name
    runs: int = 0  # runs that were to crash
    died: int = 0  # runs that did crash; the others ended before their step
    by_moment: Counter[str] = field(default_factory=Counter)  # the crashes by moment

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.kinds.most_common())
        moments = ", ".join(f"{count} {moment}" for moment, count in self.by_moment.most_common())
        return f"{self.steps} steps ({kinds}); {self.died} of {self.runs} runs died ({moments})"


@dataclass(frozen=True)
class _Death:
    """The moment at which a process dies: at the step with number `at`, from 1, or never if `at` is 0."""

    at: int = 0
    moment: Moment = "before"

    def __str__(self) -> str:
        return f"{self.moment} step {self.at}" if self.at else "no crash"


class Program(Protocol):
    """An App, or another object with an async `run`, such as a program that uses a RuntimeKernel."""

    async def run(self) -> object:
        """Returns when all work is done."""


def crash_at_every_step(
    build: Callable[[Path], Program],
    check: Callable[[Path], Any],
    *,
    prepare: Callable[[Path], None] | None = None,
    torn: bool = True,
    deaths: int = 1,
    workers: int = 1,
    timeout: Duration = 600.0,
    preload: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
) -> Crashes:
    """Runs an app once without a crash, and then once for each of its steps with a crash before the step, after it,
    and in the middle of its write. After a crash it starts the app again. Raises AssertionError if `check` then
    returns another value than after the run without a crash.

    `build`: makes the app, or another object with an async `run()`, for a directory. It is called in other processes,
    so it must be a function at the top of a module. All that the app reads and writes must be below its directory, or
    be named after it, and the app must end by itself. `check`: returns the outcome in a directory; it is called in
    this process after the last start. `prepare`: fills a directory before the first start, in this process.

    `torn`: False leaves out the crashes in the middle of writes. `deaths`: the number of crashes of each run; those
    after the first one are at random steps. `workers`: the number of runs in parallel. `timeout`: the time limit of a
    process. `preload`: modules that the app imports late. `sample`: the number of crashes to try, drawn by `seed`, or
    None for all. If threads make the number of steps vary, a run may end before its step; its outcome is compared
    nevertheless. Raises UserError if `build` cannot be called in another process.
    """
    _refuse_unpicklable(build)
    context = _fork_server([*_PRELOADED, build.__module__, *preload])
    with temporary_directory() as folder:
        runs = _Runs(build, check, prepare, folder, parse_seconds(timeout, name="timeout"), context, deaths)
        expected, names, writes = runs.undisturbed()
        crashes = Crashes(len(names), Counter(names))

        def attempt(death: _Death) -> bool:
            return runs.attempt(death, expected, len(names))

        def count(tried: Sequence[_Death], died: Sequence[bool]) -> None:
            crashes.runs += len(tried)
            crashes.died += sum(died)
            crashes.by_moment.update(death.moment for death, so in zip(tried, died, strict=True) if so)

        planned = [
            _Death(at, moment) for at, name in enumerate(names, 1) for moment in _moments(torn and name in writes)
        ]
        if sample is not None:
            planned = random.Random(seed).sample(planned, min(sample, len(planned)))
        with ThreadPoolExecutor(workers) as pool:
            count(planned, list(pool.map(attempt, planned)))
        if sample is not None:
            return crashes
        at = len(names) + 1
        while True:  # later steps too, until a run has no further step
            death = _Death(at)
            died = attempt(death)
            count([death], [died])
            if not died:
                return crashes
            at += 1


def _fork_server(modules: list[str]) -> Any:
    """Returns the fork server, with these modules imported, and those of the calls before. It is started anew for
    modules that it has not imported, as each of its processes would import them.
    """
    context = multiprocessing.get_context("forkserver")
    new = [module for module in modules if module not in _imported]
    if new and not multiprocessing.active_children():  # which would lose their exit codes with their server
        _imported.extend(new)
        _forkserver._stop()  # type: ignore[attr-defined]  # nothing public ends it
        context.set_forkserver_preload(_imported)
    before = os.environ.get("PYTHONPATH")
    # Python 3.11 has no other way to give the server a path.
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def _moments(writes: bool) -> tuple[Moment, ...]:
    return ("before", "torn", "after") if writes else ("before", "after")


def _refuse_unpicklable(build: Callable[[Path], Program]) -> None:
    try:
        pickle.dumps(build)
    except (pickle.PicklingError, AttributeError) as error:
        raise UserError(
            f"{build!r} cannot be called in another process: {error}", hint="pass a function at the top of a module"
        ) from error


@dataclass
class _Runs:
    """The runs of one app. Each run has a directory of its own, below `folder`."""

    build: Callable[[Path], Program]
    check: Callable[[Path], Any]
    prepare: Callable[[Path], None] | None
    folder: Path
    timeout: float
    context: Any
    deaths: int
    # multiprocessing can start processes from one thread at a time only.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def undisturbed(self) -> tuple[Any, list[str], set[str]]:
        """Runs the app without a crash. Returns the result of `check`, the names of the steps in order, and the names
        of those that write.
        """
        directory = self._directory("undisturbed")
        self._process(directory, _Death(), (0,))
        report = json.loads(_report(directory).read_text())
        return self.check(directory), report["names"], set(report["writes"])

    def attempt(self, death: _Death, expected: Any, steps: int) -> bool:
        """Runs the app with the crash `death`, then with `deaths - 1` crashes at random steps among `steps`, and then
        to its end. Returns True if the process died at the step of `death`. Raises AssertionError if the outcome is
        not `expected`.
        """
        directory = self._directory(f"{death.at}-{death.moment}")
        dice = random.Random(f"{death}")
        died = self._process(directory, death, (0, _DIED)) == _DIED
        where = f"{death} ({json.loads(_report(directory).read_text())['died_in']})" if died else str(death)
        for _ in range(self.deaths - 1 if died else 0):
            self._process(
                directory, _Death(dice.randint(1, max(steps, 1)), dice.choice(["before", "after"])), (0, _DIED)
            )
        if died:
            self._process(directory, _Death(), (0,))
        found = self.check(directory)
        if found != expected:
            kept = self._keep(directory)
            raise AssertionError(
                f"crash {where}: the outcome is\n{found!r}\n"
                f"and should be\n{expected!r}\nThe files of that run are in {kept}\n{_log_of(kept)}"
            )
        shutil.rmtree(directory)
        _log(directory).unlink()
        _report(directory).unlink(missing_ok=True)
        return died

    def _directory(self, name: str) -> Path:
        directory = self.folder / name
        directory.mkdir()
        if self.prepare is not None:
            self.prepare(directory)
        return directory

    def _process(self, directory: Path, death: _Death, allowed: tuple[int, ...]) -> int:
        process = self.context.Process(target=_run_life, args=(self.build, directory, death))
        with self.lock:
            process.start()  # also polls all other processes
        if not wait([process.sentinel], self.timeout):
            os.kill(process.pid, signal.SIGABRT)  # faulthandler then prints the stacks of its threads
            wait([process.sentinel])
            why = f"did not end within {self.timeout:g} s"
        else:
            with self.lock:
                process.join()
            if process.exitcode in allowed:
                return int(process.exitcode)
            why = f"ended with exit code {process.exitcode}"
        kept = self._keep(directory)
        raise AssertionError(f"crash {death}: the process {why}; its files are in {kept}\n{_log_of(kept)}")

    @staticmethod
    def _keep(directory: Path) -> Path:
        kept = Path(tempfile.mkdtemp(prefix="sabot-failed-"))
        for path in (directory, _log(directory), _report(directory)):
            if path.exists():
                shutil.move(path, kept / path.name)
        return kept / directory.name


def _log(directory: Path) -> Path:
    return directory.with_suffix(".log")


def _report(directory: Path) -> Path:
    return directory.with_suffix(".json")


def _log_of(directory: Path) -> str:
    """Returns the end of the process's log, without faulthandler's long line of extension modules."""
    log = _log(directory)
    if not log.exists():
        return ""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith("Extension modules:"))[-20_000:]


# -- in the process -------------------------------------------------------------------------------------------------------


def _run_life(build: Callable[[Path], Program], directory: Path, death: _Death) -> None:
    """Runs the app in a process of its own, and ends the process without any cleanup."""
    log = os.open(_log(directory), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    print(f"-- {death}", file=sys.stderr, flush=True)
    faulthandler.enable()
    steps = _Steps(death, _report(directory))
    try:
        watch(steps)
        asyncio.run(_run(build(directory)))
        steps.write_report()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


async def _run(program: Program) -> None:
    if isinstance(program, App):
        director = _Director(program, asyncio.get_running_loop())
        for source in sources_of(program):
            if isinstance(source, ScriptedSource):
                source.directed_by(director)
    await program.run()


@dataclass
class _Director:
    """The Director of scripts in a process of `crash_at_every_step`. It carries out BARRIER marks, and refuses CRASH
    marks, because the crashes are made at steps.
    """

    app: App
    loop: asyncio.AbstractEventLoop

    def checkpoint(self) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(self.app.agent_runtime.trigger_checkpoint(), self.loop)

    def crash(self, place: tuple[str, int]) -> bool:
        raise UserError(f"script {place[0]} has a CRASH", hint="remove it: crash_at_every_step makes the crashes")


class _Steps:
    """An observer that numbers the steps of the process, and ends the process at one of them."""

    def __init__(self, death: _Death, report: Path) -> None:
        self._death = death
        self._report = report
        self._names: list[str] = []
        self._writes: set[str] = set()
        self._died_in = ""
        self._lock = threading.Lock()
        self._local = threading.local()  # the steps that this thread is in

    def before(self, name: str, what: str) -> None:
        with self._lock:
            self._names.append(name)
            number = len(self._names)
            if number == self._death.at and self._death.moment == "before":
                self._die(name, what)
        self._stack().append((number, name, what))

    def after(self, name: str, what: str) -> None:
        stack = self._stack()
        while stack:  # above the step there may be others that raised, and so did not end here
            number, *of = stack.pop()
            if of == [name, what]:
                if number == self._death.at and self._death.moment != "before":
                    with self._lock:
                        self._die(name, what)
                return

    def torn(self, name: str, what: str, size: int) -> int:
        with self._lock:
            self._writes.add(name)
        stack = self._stack()
        here = bool(stack) and stack[-1][0] == self._death.at and self._death.moment == "torn"
        return size // 2 if here else size

    def _stack(self) -> list[tuple[int, str, str]]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[tuple[int, str, str]] = self._local.stack
        return stack

    def _die(self, name: str, what: str) -> None:
        self._died_in = f"{name} {what}"
        self.write_report()
        os._exit(_DIED)

    def write_report(self) -> None:
        """Writes the names of the steps to the report for the runner."""
        facts = {"names": self._names, "writes": sorted(self._writes), "died_in": self._died_in}
        self._report.write_text(json.dumps(facts))
