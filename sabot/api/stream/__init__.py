"""Streams as users write them: plain, by key, by key and window, grouped, connected.

The kinds of streams lead to each other: `key_by` of a `Stream` returns a `KeyedStream`, whose `aggregate` returns a
`Stream` again. Therefore they are all in one module, `stream`.
"""

from sabot.api.stream.owner import Owner
from sabot.api.stream.stream import (
    ConnectedStreams,
    GroupedStream,
    KeyedStream,
    ProcessedStream,
    Stream,
    WindowedStream,
)

__all__ = ["ConnectedStreams", "GroupedStream", "KeyedStream", "Owner", "ProcessedStream", "Stream", "WindowedStream"]
