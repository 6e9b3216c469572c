"""The web: a sink that sends rows to an address (the extra `http`)."""

from sabot.connectors.http.sink import HttpSink

__all__ = ["HttpSink"]
