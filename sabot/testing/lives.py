"""Runs an app that crashes where its scripts say, and starts again: several lives in one process."""

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
from sabot.errors import SabotError, UserError
from sabot.plan import walk
from sabot.runtime.host import run_here
from sabot.steps import watch
from sabot.testing.loop import process_here
from sabot.testing.script import ScriptedSource

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""The machine's folder for files that are kept in memory, if it has one: `temporary_directory` makes its folders there."""


class Crash(SabotError):
    """Raised by each step of a life that is over, instead of the step's work."""


class Life:
    """One life of an app: it directs the scripts, and after its crash it stops every step (`sabot.steps`)."""

    def __init__(self, app: App, died_at: set[tuple[str, int]]) -> None:
        self.app = app
        self.dead = False
        self._died_at = died_at
        self._loop: asyncio.AbstractEventLoop
        self._main: asyncio.Future[None]
        self._lock = threading.Lock()

    async def live(self) -> bool:
        """Runs the app, and returns whether it came to its end. Raises what `App.run` raises."""
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
                self._main.exception()  # fetched, because errors after a crash are of no interest
        finally:
            watch(None)
            logger.setLevel(level)
        return not self.dead

    def die(self) -> None:
        """Ends this life: from here on no step of it happens. May be called from any thread."""
        with self._lock:
            if self.dead:
                return
            self.dead = True
        logging.getLogger("sabot").setLevel(logging.CRITICAL + 1)  # messages about its end are of no interest
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

    # -- called by steps----------------------------------------------------------------------------------------------------

    def before(self, name: str, what: str) -> None:
        process = process_here()
        if self.dead or (process is not None and process.dead):
            raise Crash(f"{name} {what}: after the crash")

    def after(self, name: str, what: str) -> None:
        """Done."""

    def torn(self, name: str, what: str, size: int) -> int:
        return size


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A temporary directory, in memory where the machine has a place for that: in these tests processes crash, but the machine does not,
    so nothing needs to reach a disk.
    """
    with tempfile.TemporaryDirectory(prefix="sabot-", dir=IN_MEMORY) as folder:
        yield Path(folder)


def sources_of(app: App) -> Iterator[Source]:
    """The Source objects that the streams and agents of the app read."""
    for node in walk(app.agent_runtime.writes):
        if isinstance(node, Read) and isinstance(node.source, Source):
            yield node.source
    for agent in app.agent_runtime.agents.values():
        if agent.spec is not None:
            yield from (entry for entry in agent.spec.inputs if isinstance(entry, Source))


def run(build: Callable[[Path], App], directory: Path | None = None) -> int:
    """Runs the app that `build(directory)` makes. At each CRASH of its scripts the app dies, and a new one goes on.

    Returns how many lives it took. directory: for state and checkpoints; either empty or that of an earlier run; by default a temporary
    one. After a crash no step of that life changes anything outside it. Raises what `App.run` raises. May be called where an event
    loop runs.
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
            raise UserError(f"script {source.name} has no end, so the run would have none", hint="put END last")
