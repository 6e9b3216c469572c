"""Codecs, which decode records into a RecordBatch."""

from sabot.codecs.base import Codec
from sabot.codecs.json import JsonCodec
from sabot.codecs.table import TableCodec

__all__ = ["Codec", "JsonCodec", "TableCodec"]
