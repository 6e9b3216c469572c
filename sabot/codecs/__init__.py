"""Codecs, which decode records into batches, and encoders, which make payloads of batches."""

from sabot.codecs.base import Codec
from sabot.codecs.json import JsonCodec
from sabot.codecs.table import TableCodec

__all__ = ["Codec", "JsonCodec", "TableCodec"]
