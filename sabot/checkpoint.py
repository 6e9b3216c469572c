"""The coordinator of checkpoints, under the name that the documents give it. The room is `engine/checkpoint/`."""

from sabot.engine.checkpoint import Coordinator

__all__ = ["Coordinator"]
