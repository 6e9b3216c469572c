"""Opens backends from the user's `state=`, and snapshots from directories."""

from pathlib import Path
from typing import Any

from sabot.base.config import checked_path
from sabot.base.redaction import redacted_url
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.state.backends.memory import STATE_FILE, MemoryBackend, SavedFile
from sabot.engine.state.backends.rocksdb import RocksDBBackend, SavedDatabase
from sabot.engine.state.base import BackendConfig, BackendCut, LocalSnapshot, Snapshot, StateBackend
from sabot.errors import CorruptCheckpoint, UserError

_HINT = 'write "memory", a directory, or rocksdb:///absolute/directory'


def state_directory(state: str | None) -> Path | None:
    """Returns the directory in `state=`, given as DIR or "rocksdb:///abs/dir"; None for "memory" and None. Raises
    UserError.
    """
    if state is None or state == "memory":
        return None
    if not isinstance(state, str | Path):
        raise UserError(f"state {redacted_url(str(state))!r} is unknown", hint=_HINT)
    scheme, separator, rest = (checked_path(state, "state") if state else "").partition("://")
    if not separator:
        if not scheme or scheme == "rocksdb":
            raise UserError(f"state {redacted_url(str(state))!r} names no directory", hint=_HINT)
        return Path(scheme).expanduser()
    if scheme != "rocksdb":
        raise UserError(f"state {redacted_url(str(state))!r} is unknown", hint=_HINT)
    if not rest.startswith("/") or not rest.strip("/"):
        raise UserError(
            f"state {redacted_url(str(state))!r} is not an absolute directory",
            hint=f"write rocksdb:///{redacted_url(rest) or 'dir'} or a plain directory",
        )
    return Path(rest)


def open_backend(
    state: str | None, directory_name: str, *, clock: Clock = SYSTEM_CLOCK, **config: Any
) -> StateBackend | None:
    """Returns the backend for `state=`: in memory for "memory", RocksDB in DIR/directory_name for DIR or
    "rocksdb:///abs/dir"; None for None.

    `config`: further fields of BackendConfig. Raises UserError, AppLocked.
    """
    if state is None:
        return None
    directory = state_directory(state)
    if directory is None:
        return MemoryBackend(BackendConfig("memory", **config), clock=clock)
    return RocksDBBackend(BackendConfig("rocksdb", directory / directory_name, **config), clock=clock)


def saved_values(directory: Path) -> BackendCut:
    """Returns the values that a backend of either kind has saved in `directory`. Raises CorruptCheckpoint naming a
    missing file.
    """
    if (directory / STATE_FILE).exists():
        return SavedFile(directory)
    if (directory / "CURRENT").exists():
        return SavedDatabase(directory)
    raise CorruptCheckpoint(f"{directory}: holds no state ({STATE_FILE} or CURRENT is missing)")


def load_snapshot(directory: Path) -> Snapshot:
    """Returns the snapshot that a backend of either kind has saved in `directory`. Raises CorruptCheckpoint naming a
    missing file.
    """
    return LocalSnapshot(saved_values(directory))
