"""Streams of Redis as sources and sinks. A sink writes exactly once: chunks of a part and how far they go are one step."""

from sabot.connectors.redis.sink import RedisStreamSink
from sabot.connectors.redis.source import RedisStreamSource

__all__ = ["RedisStreamSink", "RedisStreamSource"]
