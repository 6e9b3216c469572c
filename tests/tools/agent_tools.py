"""What the tests of agents share: waiting for a condition, an app that is stopped again, the picture of a crash."""

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sabot
from sabot import App, Record
from sabot.connectors.memory import MemoryBroker
from sabot.engine.checkpoint import CheckpointStorage
from sabot.errors import CheckpointFailed, CorruptCheckpoint

# Seconds until a condition that never comes true fails its test. Nothing waits this long to be right, so none has less: three interpreters
# start in a minute where ten other programs have the cores.
PATIENCE = 180.0


async def until(condition: Callable[[], Any], what: str = "", *, patience: float = PATIENCE) -> None:
    """Returns as soon as the condition holds; AssertionError when it does not come true. Looking takes a fifth of the time: to ask an app
    for its figures costs a millisecond, and what it is asked about wants the core too.
    """
    loop = asyncio.get_running_loop()
    limit = (began := loop.time()) + patience
    while not condition():
        if (looked := loop.time()) > limit:
            raise AssertionError(f"waited {patience} s in vain" + (f" for {what}" if what else ""))
        await asyncio.sleep(max(0.002, 4 * (looked - began)))
        began = loop.time()


@contextlib.asynccontextmanager
async def started(*apps: App) -> AsyncIterator[None]:
    """The apps run inside the block and are stopped after it."""
    begun: list[App] = []
    try:
        for app in apps:
            await app.start()
            begun.append(app)
        yield
    finally:
        for app in reversed(begun):
            await app.stop()


class Remembered:
    """`over_workers`, with the streams of each run of the app."""

    def __init__(self, maker: Any) -> None:
        self.maker = maker
        self.runs: list[Any] = []

    def __call__(self, *given: Any) -> Any:
        self.runs.append(self.maker(*given))
        return self.runs[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.maker, name)


async def bounded(awaitable: Any, patience: float = PATIENCE) -> Any:
    """The result, or TimeoutError instead of a test that hangs."""
    return await asyncio.wait_for(awaitable, patience)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes less time than this. What its threads, or on a system that tells it any process, waited for a core does not count:
    so the bound is that of an idle machine.
    """
    began, before, pressed = time.monotonic(), waits_for_cores(), pressure()
    yield
    waited = sum(max(0.0, waits - before.get(thread, 0.0)) for thread, waits in waits_for_cores().items())
    waited = max(waited, pressure() - pressed)  # a broker, or a child, may have waited in place of this process
    taken = time.monotonic() - began - waited
    assert taken < seconds, f"{taken:.1f} s, where {seconds} s are the most"


def waits_for_cores() -> dict[str, float]:
    """The seconds in which each thread of this process could have run and others had the cores. Empty on a system that does not tell."""
    waits = {}
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            waits[thread.parent.name] = int(thread.read_text().split()[1]) / 1e9
    return waits


def pressure() -> float:
    """The seconds in which somebody on this machine waited for a core, or for a disk. 0.0 on a system that does not tell."""
    waits = 0.0
    for resource in ("cpu", "io"):
        with contextlib.suppress(OSError):
            waits += int(Path(f"/proc/pressure/{resource}").read_text().split()[4].removeprefix("total=")) / 1e6
    return waits


def records(app: App, topic: str) -> list[Record]:
    """What the embedded broker of the app holds of the topic."""
    return MemoryBroker.get(app.broker).records(topic)


def values(app: App, topic: str) -> list[Any]:
    """The decoded values of the topic."""
    return [record.value for record in records(app, topic)]


def publish(app: App, topic: str, messages: Sequence[Any], *, key: Any = None) -> int:
    return MemoryBroker.get(app.broker).publish(topic, messages, key=key)


def processed(app: App, name: str) -> int:
    """How many messages the agent of this function name has processed."""
    count = app.agent_runtime.get_stats()[f"{app.id}.{name}"]["messages_processed"]
    assert isinstance(count, int)
    return count


def state_of(app: App, name: str) -> str:
    state = app.agent_runtime.get_stats()[f"{app.id}.{name}"]["state"]
    assert isinstance(state, str)
    return state.lower()


async def checkpoint(app: App) -> int:
    """A checkpoint that is complete when this returns."""
    checkpoint_id = await bounded(app.agent_runtime.trigger_checkpoint())
    await bounded(app.agent_runtime.checkpoint_coordinator.wait(checkpoint_id))
    assert isinstance(checkpoint_id, int)
    return checkpoint_id


def crash_image(checkpoints: Path, target: Path) -> Path:
    """What counts of what a crash at this moment would leave: the newest complete checkpoint."""
    storage = CheckpointStorage(checkpoints)
    for attempt in range(20):
        assert storage.ids(), "there was no complete checkpoint"
        try:
            storage.copy_to(storage.read(storage.last_id()), target)
            break
        except (CheckpointFailed, CorruptCheckpoint):  # dropped just now, for newer ones
            shutil.rmtree(target, ignore_errors=True)
            if attempt == 19:
                raise
    return target


def manifests(checkpoints: Path) -> set[str]:
    """The names of the complete checkpoints."""
    return {path.name for path in manifest_files(checkpoints)}


def manifest_files(checkpoints: Path) -> list[Path]:
    """The manifests of the complete checkpoints, in order."""
    return sorted((checkpoints / "checkpoints").glob("*.json"))


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """An NDJSON file of these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def environment() -> dict[str, str]:
    """For a process started by a test: it imports the same Sabot as the test, and its output is not held back."""
    return {**os.environ, "PYTHONPATH": str(Path(sabot.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
