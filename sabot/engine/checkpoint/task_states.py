"""Saves state into a checkpoint, and keeps the state of ended tasks, which is saved once and linked into every later
checkpoint.
"""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

from sabot.base.disk import link_or_copy, make_folder
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.checkpoint.places import StoredFile
from sabot.engine.checkpoint.storage import CheckpointStorage
from sabot.engine.state.base import Cut, Snapshot
from sabot.errors import InternalError
from sabot.steps import step

# The number of states that are saved at a time, each in a thread. At its end the app waits for its last checkpoint:
# saved one after the other, the states of two subtasks would take as long as one state with all keys.
_AT_ONCE = 4


async def save_states(states: Mapping[str, Cut | Snapshot], directory: Path) -> dict[str, float]:
    """Saves each state into the folder below `directory` that its path names. Returns the seconds of each, by its path.
    After an error no further state is saved; the first error is raised when all saves under way have ended.
    """
    room = asyncio.Semaphore(_AT_ONCE)
    errors: list[Exception] = []
    seconds: dict[str, float] = {}

    async def save(path: str, state: Cut | Snapshot) -> None:
        async with room:
            if errors:
                return
            try:
                seconds[path] = await _save_one(path, state, directory)
            except Exception as error:
                errors.append(error)

    users = {path: state for path, state in states.items() if _is_users(state)}
    # In this task: an exit of the user's code would leave another task through the event loop.
    for path, state in users.items():
        seconds[path] = await _save_one(path, state, directory)
    await asyncio.gather(*(save(path, state) for path, state in states.items() if path not in users))
    if errors:
        raise errors[0]
    return seconds


async def _save_one(path: str, state: Cut | Snapshot, directory: Path) -> float:
    began = SYSTEM_CLOCK.monotonic()
    make_folder((directory / path).parent)
    with step("state write", path):
        await _save_state(state, directory / path)
    return SYSTEM_CLOCK.monotonic() - began


def _is_users(state: Cut | Snapshot) -> bool:
    """Returns True if the user's own code saves the state."""
    return isinstance(state, Snapshot) or (isinstance(state, FinalState) and state.is_users)


async def _save_state(state: Cut | Snapshot, directory: Path) -> None:
    """Saves the state into `directory`, which does not exist yet. A cut is saved in another thread; the snapshot of a
    user's own backend is awaited.
    """
    if isinstance(state, Snapshot):
        await state.save(directory)
        make_folder(directory)  # the snapshot of an empty backend may have written nothing
        return
    if isinstance(state, FinalState):
        await state.keep()
    await run_in_thread(_save, state, directory)


def _save(cut: Cut, directory: Path) -> None:
    make_folder(directory)
    cut.save(directory)


class RestoredState:
    """A Cut of state that is in a checkpoint already. A restored task that has nothing more to do hands it to later
    checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, directory: Path) -> int:
        """Links the files into `directory`. Returns their bytes. May be called any number of times."""
        shutil.copytree(self._directory, directory, copy_function=link_or_copy, dirs_exist_ok=True)
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    def discard(self) -> None:
        """Does nothing: the files belong to their checkpoint."""


class StoredState:
    """A Cut whose files a worker has already stored in the checkpoints' object store. This object only lists the
    files; this machine has no copy of them.
    """

    def __init__(self, files: Mapping[str, StoredFile], storage: CheckpointStorage) -> None:
        """`files`: by their path below the folder of the state."""
        self.files = files
        self._storage = storage

    def save(self, directory: Path) -> int:
        """Raises InternalError: the files are stored already, and the coordinator writes their list `files` into the
        manifest.
        """
        raise InternalError(f"{directory}: its files are stored already")

    def discard(self) -> None:
        """Removes the files, unless a manifest lists them."""
        self._storage.unneeded(self.files.values())


class FinalState:
    """A Cut of an ended task. It is saved once, in a folder of its own, so that it outlives a failed checkpoint."""

    def __init__(self, state: Cut | Snapshot, storage: CheckpointStorage) -> None:
        self._state = state
        self._storage = storage
        self._home: Path | None = None

    @property
    def is_users(self) -> bool:
        """True if the user's own code saves the state."""
        return isinstance(self._state, Snapshot)

    async def keep(self) -> None:
        """Saves the state into its own folder, unless that was done before."""
        if self._home is None:
            home = await run_in_thread(self._storage.keep)
            try:
                await _save_state(self._state, home / "state")
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                raise
            self._home = home

    def save(self, directory: Path) -> int:
        """Links the files that `keep` has saved into `directory`. Returns the bytes. May be called any number of
        times.
        """
        assert self._home is not None, "keep comes first"
        return RestoredState(self._home / "state").save(directory)

    def discard(self) -> None:
        """Discards the state and removes its own folder."""
        self._state.discard()
        if self._home is not None:
            # files that cannot be removed now are removed when the app is locked next
            shutil.rmtree(self._home, ignore_errors=True)
