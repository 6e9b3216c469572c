"""Tables of Delta Lake. The sink writes exactly once: the rows and the track's token are in one commit of the table's log."""

from sabot.connectors.delta.sink import DeltaSink
from sabot.connectors.delta.source import DeltaSource

__all__ = ["DeltaSink", "DeltaSource"]
