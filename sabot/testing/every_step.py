"""Crashes an app before, after and in the middle of every step by which it changes the outside world, each time in a new process.

A fork server that has everything imported and runs no threads makes the processes, so each costs a few hundredths of a second. Threads,
clients and databases die as in a real crash: by `os._exit` in the middle of their work.
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
from pathlib import Path
from typing import Any, Literal, Protocol

from sabot.app import App
from sabot.config import Duration, parse_seconds
from sabot.errors import UserError
from sabot.steps import watch
from sabot.testing.lives import sources_of, temporary_directory
from sabot.testing.script import ScriptedSource

Moment = Literal["before", "after", "torn"]

_DIED = 77  # the exit code of a process that dies as it was told
# With what the run of an app loads when it begins: each process would load it anew, in several times what its life takes. (numpy: unique.)
_PRELOADED = (__name__, "sabot.runtime.run", "sabot.runtime.app_runner", "sabot.operators.keyed.running", "numpy.ma")


@dataclass
class Crashes:
    """Counts of the crashes that were tried."""

    steps: int  # how many steps the undisturbed run had
    kinds: Counter[str]  # the steps of the undisturbed run by name
    runs: int = 0  # how many runs were told to crash
    died: int = 0  # how many did crash; the others ended before they came to their step
    by_moment: Counter[str] = field(default_factory=Counter)  # the crashes by moment

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {name}" for name, count in self.kinds.most_common())
        moments = ", ".join(f"{count} {moment}" for moment, count in self.by_moment.most_common())
        return f"{self.steps} steps ({kinds}); {self.died} of {self.runs} runs died ({moments})"


@dataclass(frozen=True)
class _Death:
    """The moment at which a process dies: at its `at`th step; 0 if it is not to die."""

    at: int = 0
    moment: Moment = "before"

    def __str__(self) -> str:
        return f"{self.moment} step {self.at}" if self.at else "no crash"


class Program(Protocol):
    """An App, or something else that runs to its end, as what uses a RuntimeKernel."""

    async def run(self) -> object:
        """Returns when all is done."""


def crash_at_every_step(
    build: Callable[[Path], Program],
    check: Callable[[Path], Any],
    *,
    prepare: Callable[[Path], None] | None = None,
    torn: bool = True,
    deaths: int = 1,
    workers: int = 1,
    timeout: Duration = 60.0,
    preload: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
) -> Crashes:
    """Runs the app, or any other object with an async `run()`, that `build(directory)` makes to its end, undisturbed. Then, for each of its
    steps, runs it again in a fresh directory with a crash before the step, after it, and (torn) in the middle of what it writes; starts it
    again after the crash; and compares what `check(directory)` returns then with what it returned after the undisturbed run. Raises
    AssertionError where they differ.

    `build` must be a function of a module, because it is called in other processes. `prepare(directory)` and `check` are called in this
    process, before the first start and after the end. Whatever the app reads and writes must be below its directory, or be named after
    it, and the app must end by itself. deaths: how many crashes there are in all; those after the first are at random steps. workers:
    how many runs go on at a time. timeout: of a process. preload: modules that the app imports late. sample: only so
    many crashes are tried, drawn by the seed. Where threads make the number of steps vary, a run may not reach its step; its outcome is
    compared all the same.
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
        while True:  # until no run has more steps than those before
            death = _Death(at)
            died = attempt(death)
            count([death], [died])
            if not died:
                return crashes
            at += 1


def _fork_server(modules: list[str]) -> Any:
    """The fork server, with these modules imported; it is made at the first call."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(modules)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        path or os.getcwd() for path in sys.path
    )  # Python 3.11 offers no other way to ask
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
            f"{build!r} cannot be called in another process: {error}", hint="make it a function at the top of a module"
        ) from error


@dataclass
class _Runs:
    build: Callable[[Path], Program]
    check: Callable[[Path], Any]
    prepare: Callable[[Path], None] | None
    folder: Path
    timeout: float
    context: Any
    deaths: int
    # Because multiprocessing starts processes from one thread only.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def undisturbed(self) -> tuple[Any, list[str], set[str]]:
        """The result of `check`, the names of the steps in their order, and the names of those that write."""
        directory = self._directory("undisturbed")
        self._process(directory, _Death(), (0,))
        report = json.loads(_report(directory).read_text())
        return self.check(directory), report["names"], set(report["writes"])

    def attempt(self, death: _Death, expected: Any, steps: int) -> bool:
        """Whether the process died at its step. Raises AssertionError where the outcome differs."""
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
                f"and should be\n{expected!r}\nThe world of that run is kept in {kept}\n{_log_of(kept)}"
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
        process = self.context.Process(target=_live, args=(self.build, directory, death))
        with self.lock:
            process.start()  # also polls all other processes
        if not wait([process.sentinel], self.timeout):
            os.kill(process.pid, signal.SIGABRT)  # makes it print where its threads are
            wait([process.sentinel])
            why = f"did not end within {self.timeout:g} s"
        else:
            with self.lock:
                process.join()
            if process.exitcode in allowed:
                return int(process.exitcode)
            why = f"ended with exit code {process.exitcode}"
        kept = self._keep(directory)
        raise AssertionError(f"crash {death}: the process {why}; its world is kept in {kept}\n{_log_of(kept)}")

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
    log = _log(directory)
    return log.read_text(errors="replace")[-4000:] if log.exists() else ""


# -- in the process -------------------------------------------------------------------------------------------------------


def _live(build: Callable[[Path], Program], directory: Path, death: _Death) -> None:
    """Runs one life of the app, in a process that does nothing else, and ends without any cleaning up."""
    log = os.open(_log(directory), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    print(f"-- {death}", file=sys.stderr, flush=True)
    faulthandler.enable()
    steps = _Steps(death, _report(directory))
    try:
        watch(steps)
        asyncio.run(_run(build(directory)))
        steps.tell()
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
    """Directs the scripts: it makes their checkpoints. The runner, and not a script, makes the crashes."""

    app: App
    loop: asyncio.AbstractEventLoop

    def checkpoint(self) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(self.app.agent_runtime.trigger_checkpoint(), self.loop)

    def crash(self, place: tuple[str, int]) -> bool:
        raise UserError(f"script {place[0]} has a CRASH", hint="crash_at_every_step crashes by itself: leave it out")


class _Steps:
    """Numbers the steps, and dies at one of them."""

    def __init__(self, death: _Death, report: Path) -> None:
        self._death = death
        self._report = report
        self._names: list[str] = []
        self._writes: set[str] = set()
        self._died_in = ""
        self._lock = threading.Lock()
        self._mine = threading.local()  # the numbers of the steps that this thread is in

    def before(self, name: str, what: str) -> None:
        with self._lock:
            self._names.append(name)
            number = len(self._names)
            if number == self._death.at and self._death.moment == "before":
                self._die(name, what)
        self._stack().append((number, name, what))

    def after(self, name: str, what: str) -> None:
        stack = self._stack()
        while stack:  # a step that raised was never taken off
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
        if not hasattr(self._mine, "stack"):
            self._mine.stack = []
        stack: list[tuple[int, str, str]] = self._mine.stack
        return stack

    def _die(self, name: str, what: str) -> None:
        self._died_in = f"{name} {what}"
        self.tell()
        os._exit(_DIED)

    def tell(self) -> None:
        """Reports the counts to the runner."""
        facts = {"names": self._names, "writes": sorted(self._writes), "died_in": self._died_in}
        self._report.write_text(json.dumps(facts))
