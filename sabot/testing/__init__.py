"""Tools for the tests of programs that use Sabot: a broker inside the process, a clock that is moved by hand."""

from sabot.clock import ManualClock
from sabot.connectors.memory import MemoryBroker

__all__ = ["ManualClock", "MemoryBroker"]
