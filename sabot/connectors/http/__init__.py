"""The web: a sink that sends rows to an address, and sources that ask an address for them (the extra `http`), or wait for requests."""

from sabot.connectors.http.poll import PollSource
from sabot.connectors.http.sink import HttpSink
from sabot.connectors.http.sse import SseSource
from sabot.connectors.http.webhook import WebhookSource
from sabot.connectors.http.websocket import WebsocketSource

__all__ = ["HttpSink", "PollSource", "SseSource", "WebhookSource", "WebsocketSource"]
