"""Values by key of a process function: the backends of agents, as a stream's operator uses them.

An operator has no event loop: all it does are the plain calls of a LocalBackend. And time is its own: with a ttl, a value expires when so
much *event* time has passed since it was put. A read asks whether the value counts at the time of the row (or timer) that reads
(`EventExpiry.now_ms`); what has expired is removed when the watermark says that nobody can read it any more.
"""

from collections.abc import Sequence
from pathlib import Path

from sabot.state.backends.memory import MemoryBackend
from sabot.state.backends.rocksdb import RocksDBBackend
from sabot.state.base import BackendConfig, LocalBackend, Mine
from sabot.state.expiry import EventExpiry, event_mark
from sabot.state.opening import saved_values

__all__ = ["load_values", "open_values"]

_LEAST_BUDGET = 1_000_000


def open_values(directory: Path | None, memory_budget: int, expiry: EventExpiry | None) -> LocalBackend:
    """In the directory, which is the values' own; without one in memory."""
    if directory is None:
        return MemoryBackend(expiry=expiry)
    config = BackendConfig("rocksdb", directory, memory_budget=max(memory_budget, _LEAST_BUDGET))
    return RocksDBBackend(config, expiry=expiry)


def load_values(values: LocalBackend, saved: Sequence[Path], mine: Mine | None, watermark_ms: int) -> None:
    """What cuts of values saved in these directories comes back, without what has expired. Raises CorruptCheckpoint."""
    if saved:
        values.load([saved_values(directory) for directory in saved], mine, event_mark(watermark_ms))
