"""Checkpoints: who takes part and when one is complete (`coordinator`), how it is stored (`storage`, `files`), whose job it is
(`protocol`), and what is asked of a running job (`requests`).
"""

from sabot.checkpoint.coordinator import Coordinator, TaskSnapshot
from sabot.checkpoint.requests import Requests, ask, serve
from sabot.checkpoint.storage import CheckpointStorage, Manifest, StoredTask

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
