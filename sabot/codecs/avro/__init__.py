"""Avro: its schemas as columns, and the decoding and encoding of payloads."""

from sabot.codecs.avro.codec import AvroCodec, AvroEncoder
from sabot.codecs.avro.columns import arrow_schema, avro_schema
from sabot.codecs.avro.references import with_references

__all__ = ["AvroCodec", "AvroEncoder", "arrow_schema", "avro_schema", "with_references"]
