"""The web: a sink that sends rows to an address, and a source that asks an address for them (the extra `http`)."""

from sabot.connectors.http.poll import PollSource
from sabot.connectors.http.sink import HttpSink

__all__ = ["HttpSink", "PollSource"]
