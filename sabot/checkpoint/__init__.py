"""Checkpoints: who takes part and when one is complete (`coordinator`), how it is stored (`storage`, `files`), whose job it is
(`protocol`), the output that it saves until it is delivered (`delivery`, `lanes`, `parts`, `tokens`), and what is asked of a running
job (`requests`).
"""

from sabot.checkpoint.coordinator import Coordinator, TaskSnapshot
from sabot.checkpoint.delivery import Delivery, StagedSink, undelivered
from sabot.checkpoint.requests import Requests, ask, serve
from sabot.checkpoint.storage import CheckpointStorage, Manifest, StoredTask
from sabot.checkpoint.tokens import CHOICES

__all__ = [
    "CHOICES",
    "CheckpointStorage",
    "Coordinator",
    "Delivery",
    "Manifest",
    "Requests",
    "StagedSink",
    "StoredTask",
    "TaskSnapshot",
    "ask",
    "serve",
    "undelivered",
]
