"""Values by key of process functions, kept in the same backends as those of agents.

A stream's operator has no event loop, so it uses the plain calls of a LocalBackend. A ttl is in *event* time: a value
has expired or not at the time of the row or timer that reads it (`EventExpiry.now_ms`). An expired value is removed
when the watermark says that no row or timer can read it any more.
"""

from collections.abc import Sequence
from pathlib import Path

from sabot.engine.state.backends.memory import MemoryBackend
from sabot.engine.state.backends.rocksdb import RocksDBBackend
from sabot.engine.state.base import BackendConfig, EntryFilter, LocalBackend
from sabot.engine.state.expiry import EventExpiry, event_mark
from sabot.engine.state.opening import saved_values

_LEAST_BUDGET = 1_000_000


def open_values(directory: Path | None, memory_budget: int, expiry: EventExpiry | None) -> LocalBackend:
    """Opens a backend for values: RocksDB in `directory`, which nothing else uses, or memory for None."""
    if directory is None:
        return MemoryBackend(expiry=expiry)
    config = BackendConfig("rocksdb", directory, memory_budget=max(memory_budget, _LEAST_BUDGET))
    return RocksDBBackend(config, expiry=expiry)


def load_values(values: LocalBackend, saved: Sequence[Path], mine: EntryFilter | None, watermark_ms: int) -> None:
    """Restores the values that snapshots have saved in these directories, without values that had expired at the
    watermark. `mine`: selects the entries to load, or None for all. Raises CorruptCheckpoint.
    """
    if saved:
        values.load([saved_values(directory) for directory in saved], mine, event_mark(watermark_ms))
