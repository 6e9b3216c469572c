"""Checkpoints: who takes part and when one is complete (`coordinator`), and how it stands on the disk (`storage`)."""

from sabot.checkpoint.coordinator import Coordinator, StateSnapshot, TaskSnapshot
from sabot.checkpoint.storage import CheckpointStorage, Manifest, StoredTask

__all__ = ["CheckpointStorage", "Coordinator", "Manifest", "StateSnapshot", "StoredTask", "TaskSnapshot"]
