"""Checkpoints: who takes part and when one is complete (`coordinator`), how one is stored (`storage`, `manifest`, `places`), which worker
owns the app (`protocol`, `ownership`), and what is asked of a running app (`requests`).
"""

from sabot.checkpoint.coordinator import Coordinator, TaskSnapshot
from sabot.checkpoint.manifest import Manifest, StoredTask
from sabot.checkpoint.requests import Requests, ask, serve
from sabot.checkpoint.storage import CheckpointStorage

__all__ = [
    "CheckpointStorage",
    "Coordinator",
    "Manifest",
    "Requests",
    "StoredTask",
    "TaskSnapshot",
    "ask",
    "serve",
]
