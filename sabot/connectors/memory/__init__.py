"""Topics inside the process, `memory://`; and sinks that stay in memory."""

from sabot.connectors.memory.broker import MemoryBroker
from sabot.connectors.memory.collected import CountSink, TableSink
from sabot.connectors.memory.sink import MemorySink
from sabot.connectors.memory.source import MemorySource

__all__ = ["CountSink", "MemoryBroker", "MemorySink", "MemorySource", "TableSink"]
