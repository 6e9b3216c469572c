"""Keyed state as users name it: backends, and the kinds of state. The room that does the work is `engine/state/`."""

from sabot.engine.state import (
    AggregatingState,
    BackendConfig,
    ListState,
    MapState,
    MemoryBackend,
    ReducingState,
    RocksDBBackend,
    Snapshot,
    StateBackend,
    ValueState,
)

__all__ = [
    "AggregatingState",
    "BackendConfig",
    "ListState",
    "MapState",
    "MemoryBackend",
    "ReducingState",
    "RocksDBBackend",
    "Snapshot",
    "StateBackend",
    "ValueState",
]
