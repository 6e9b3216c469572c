"""A sink for a table of Delta Lake, exactly once: the rows and the track's token are in one commit of its log."""

from sabot.connectors.delta.sink import DeltaSink

__all__ = ["DeltaSink"]
