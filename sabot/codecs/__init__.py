"""Codecs: a list of payloads <-> a RecordBatch."""

from sabot.codecs.base import Codec
from sabot.codecs.json import JsonCodec
from sabot.codecs.raw import RawCodec

__all__ = ["Codec", "JsonCodec", "RawCodec"]
