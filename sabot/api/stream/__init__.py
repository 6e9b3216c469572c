"""Streams as users write them (see `base`): plain, by key, by key and window, grouped, connected.

The kinds of streams lead to each other: `key_by` of a `Stream` gives a `KeyedStream`, whose `aggregate` gives a `Stream` again. So their
modules name each other's types, the others those of `base` under TYPE_CHECKING. Only `base` imports the others when the program runs:
`Steps`, which it hands to them, makes the streams that they return.
"""

from sabot.api.stream.base import ProcessedStream, Stream
from sabot.api.stream.connected import ConnectedStreams
from sabot.api.stream.grouped import GroupedStream
from sabot.api.stream.keyed import KeyedStream
from sabot.api.stream.owner import Owner
from sabot.api.stream.windowed import WindowedStream

__all__ = ["ConnectedStreams", "GroupedStream", "KeyedStream", "Owner", "ProcessedStream", "Stream", "WindowedStream"]
