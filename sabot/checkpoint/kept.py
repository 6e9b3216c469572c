"""State on its way into a checkpoint, and state of ended tasks, which is saved once and linked into every later checkpoint."""

import shutil
from pathlib import Path

from sabot.checkpoint.storage import CheckpointStorage
from sabot.disk import link_or_copy, make_folder
from sabot.state.base import Cut, Snapshot
from sabot.threads import aside

__all__ = ["KeptState", "SavedAlready", "save_state"]


async def save_state(state: Cut | Snapshot, directory: Path) -> None:
    """Into `directory`, which is not there yet. A cut is saved in a thread; the snapshot of a user's own backend saves itself."""
    if isinstance(state, Snapshot):
        await state.save(directory)
        make_folder(directory)  # an empty one may have written nothing
        return
    if isinstance(state, KeptState):
        await state.keep()
    await aside(_save, state, directory)


def _save(cut: Cut, directory: Path) -> None:
    make_folder(directory)
    cut.save(directory)


class SavedAlready:
    """A Cut of what a checkpoint has, for those to come: a restored task that has nothing more to do hands it on as it is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, directory: Path) -> int:
        """Links to the files, any number of times; -> their bytes."""
        shutil.copytree(self._directory, directory, copy_function=link_or_copy, dirs_exist_ok=True)
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    def discard(self) -> None:
        """Nothing: the files are their checkpoint's."""


class KeptState:
    """A Cut of an ended task. It is saved in a place of its own first, so that it outlives a checkpoint that fails."""

    def __init__(self, state: Cut | Snapshot, storage: CheckpointStorage) -> None:
        self._state = state
        self._storage = storage
        self._home: Path | None = None

    async def keep(self) -> None:
        """Saves it in its own place, if it is not there yet."""
        if self._home is None:
            home = await aside(self._storage.keep)
            try:
                await save_state(self._state, home / "state")
            except BaseException:
                shutil.rmtree(home, ignore_errors=True)
                raise
            self._home = home

    def save(self, directory: Path) -> int:
        """Links to what `keep` has saved, any number of times; -> bytes."""
        assert self._home is not None, "keep comes first"
        return SavedAlready(self._home / "state").save(directory)

    def discard(self) -> None:
        """Its own place goes too."""
        self._state.discard()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)  # what resists goes with the next lock
