"""Keyed state: backends that keep bytes, the kinds of state that users see, and the overlay for the writes of an
unfinished call.
"""

from sabot.engine.state.backends.memory import MemoryBackend
from sabot.engine.state.backends.rocksdb import RocksDBBackend
from sabot.engine.state.base import BackendConfig, Snapshot, StateBackend
from sabot.engine.state.opening import load_snapshot, open_backend, state_directory
from sabot.engine.state.overlay import HeldWrites, Overlay, StateAt
from sabot.engine.state.values import AggregatingState, ListState, MapState, ReducingState, ValueState

__all__ = [
    "AggregatingState",
    "BackendConfig",
    "HeldWrites",
    "ListState",
    "MapState",
    "MemoryBackend",
    "Overlay",
    "ReducingState",
    "RocksDBBackend",
    "Snapshot",
    "StateAt",
    "StateBackend",
    "ValueState",
    "load_snapshot",
    "open_backend",
    "state_directory",
]
