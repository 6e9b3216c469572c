"""Tables of Iceberg. The sink writes exactly once: the rows and the track's token are in one commit of the catalog."""

from sabot.connectors.iceberg.sink import IcebergSink
from sabot.connectors.iceberg.source import IcebergSource

__all__ = ["IcebergSink", "IcebergSource"]
