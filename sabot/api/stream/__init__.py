"""Streams as users write them (see `base`): plain, by key, by key and window, grouped, connected."""

from sabot.api.stream.base import Owner, ProcessedStream, Stream
from sabot.api.stream.connected import ConnectedStreams
from sabot.api.stream.grouped import GroupedStream
from sabot.api.stream.keyed import KeyedStream
from sabot.api.stream.windowed import WindowedStream

__all__ = ["ConnectedStreams", "GroupedStream", "KeyedStream", "Owner", "ProcessedStream", "Stream", "WindowedStream"]
