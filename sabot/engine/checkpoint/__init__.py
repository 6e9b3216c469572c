"""Checkpoints: which tasks take part and when a checkpoint is complete (`coordinator`), its storage (`storage`,
`manifest`, `places`), the ownership of an app by one worker (`protocol`, `ownership`), and requests to a running app
(`requests`). `inspection` gives checkpoints and savepoints as records.
"""

from sabot.engine.checkpoint.coordinator import Coordinator, TaskSnapshot
from sabot.engine.checkpoint.manifest import Manifest, StoredTask
from sabot.engine.checkpoint.requests import Requests, ask, serve
from sabot.engine.checkpoint.storage import CheckpointStorage

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
