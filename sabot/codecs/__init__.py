"""Codecs: a list of payloads -> a RecordBatch."""

from sabot.codecs.json import JsonCodec

__all__ = ["JsonCodec"]
