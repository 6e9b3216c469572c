"""Sabot: a Python streaming engine that runs agents."""

from sabot._cython.batch import Batch
from sabot.api.context import AgentContext, Message
from sabot.app import App
from sabot.connectors.base import Record, Sink, Source
from sabot.errors import (
    AgentFailed,
    BrokerUnavailable,
    CheckpointFailed,
    CorruptCheckpoint,
    DataError,
    JobLocked,
    MissingExtra,
    NoStateBackend,
    RowErrors,
    SabotError,
    TransientError,
    UserError,
)

__all__ = [
    "AgentContext",
    "AgentFailed",
    "App",
    "Batch",
    "BrokerUnavailable",
    "CheckpointFailed",
    "CorruptCheckpoint",
    "DataError",
    "JobLocked",
    "Message",
    "MissingExtra",
    "NoStateBackend",
    "Record",
    "RowErrors",
    "SabotError",
    "Sink",
    "Source",
    "TransientError",
    "UserError",
]

__version__ = "0.1.0"
