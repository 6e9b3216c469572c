"""Runs an app that crashes at the CRASH marks of its scripts, and starts it again, in one process. A *life* is the
time of an app from a start to the next crash or to the end.
"""

import asyncio
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sabot.api.nodes.read import Read
from sabot.app import App
from sabot.connectors.base import Source
from sabot.engine.plan import walk
from sabot.engine.runtime.life.host import run_here
from sabot.errors import SabotError, UserError
from sabot.steps import watch
from sabot.testing.loop import process_here
from sabot.testing.script import ScriptedSource

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""The machine's folder for files in memory, or None if there is none. `temporary_directory` makes its folders there."""


class Crash(SabotError):
    """Raised by each step of an app after its crash, in place of the step's work."""


class Life:
    """One life of an app. It carries out the marks of scripts, and after its crash it stops every step
    (`sabot.steps`).
    """

    def __init__(self, app: App, died_at: set[tuple[str, int]]) -> None:
        self.app = app
        self.dead = False
        self._died_at = died_at
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.Future[None]
        self._lock = threading.Lock()

    async def live(self) -> bool:
        """Runs the app. Returns True if it came to its end, and False if it crashed. Raises the errors of `App.run`."""
        for source in sources_of(self.app):
            if isinstance(source, ScriptedSource):
                source.directed_by(self)
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.ensure_future(self.app.run())
        logger = logging.getLogger("sabot")
        level = logger.level
        watch(self)
        try:
            await asyncio.wait([self._main])
            if not self.dead:
                self._main.result()
            elif not self._main.cancelled():
                self._main.exception()  # retrieved, so that asyncio does not log an error after the crash
        finally:
            watch(None)
            logger.setLevel(level)
        return not self.dead

    def die(self) -> None:
        """Crashes the app: none of its steps changes anything from now on. May be called from any thread."""
        with self._lock:
            if self.dead:
                return
            self.dead = True
        # hides the messages of an app that ends after its crash
        logging.getLogger("sabot").setLevel(logging.CRITICAL + 1)
        self._loop.call_soon_threadsafe(self._main.cancel)

    # -- called by scripts ---------------------------------------------------------------------------------------------------

    def checkpoint(self) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(self.app.agent_runtime.trigger_checkpoint(), self._loop)

    def crash(self, place: tuple[str, int]) -> bool:
        if not self.dead:
            if place in self._died_at:
                return False
            self._died_at.add(place)
            self.die()
        return True

    # -- called by steps ----------------------------------------------------------------------------------------------------

    def before(self, name: str, what: str) -> None:
        process = process_here()
        if self.dead or (process is not None and process.dead):
            raise Crash(f"{name} {what}: the app has crashed")

    def after(self, name: str, what: str) -> None:
        """Does nothing."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Makes a temporary directory, in memory if possible. In these tests processes crash and the machine does not, so
    nothing has to reach a disk.
    """
    with tempfile.TemporaryDirectory(prefix="sabot-", dir=IN_MEMORY) as folder:
        yield Path(folder)


def sources_of(app: App) -> Iterator[Source]:
    """Yields the Source objects that the streams and agents of the app read."""
    for node in walk(app.spec.ends):
        if isinstance(node, Read) and isinstance(node.source, Source):
            yield node.source
    for agent in app.spec.agents.values():
        if agent.spec is not None:
            yield from (entry for entry in agent.spec.inputs if isinstance(entry, Source))


def run(build: Callable[[Path], App], directory: Path | None = None) -> int:
    """Runs the app that `build(directory)` makes. At each CRASH mark of its scripts the app dies, and a new one
    continues from the last checkpoint.

    Returns the number of starts. `directory`: the folder of state and checkpoints, either empty or that of an earlier
    run; by default a temporary one. After a crash the crashed app changes nothing outside any more. Raises UserError
    for a script without END, and the errors of `App.run`. May be called where an event loop runs.
    """
    if directory is None:
        with temporary_directory() as folder:
            return run(build, folder)
    lives = 0
    died_at: set[tuple[str, int]] = set()

    async def live() -> None:
        nonlocal lives
        over = False
        while not over:
            app = build(directory)
            _refuse_endless(app)
            lives += 1
            over = await Life(app, died_at).live()

    run_here(live)
    return lives


def _refuse_endless(app: App) -> None:
    for source in sources_of(app):
        if isinstance(source, ScriptedSource) and not source.bounded:
            raise UserError(f"script {source.name} has no END, so the run would never end", hint="put END last")
