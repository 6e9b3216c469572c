"""Encodes the results of a record agent as payloads: as JSON, or in the format `sink_format=`."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.codecs.base import Encoder, Format
from sabot.codecs.raw import VALUE
from sabot.codecs.records import empty_batch, encode_payload
from sabot.errors import UserError

PayloadOf = Callable[[Any, Any, str | None], bytes | None]
"""A function of (value, key, the topic that the result names, or None for the first) that returns the payload. Raises
UserError for a value that the format cannot encode.
"""


def as_json(value: Any, key: Any, topic: str | None) -> bytes | None:
    """Encodes a result as JSON (`encode_payload`)."""
    return encode_payload(value, key)


class RowPayloads:
    """An encoder of results that are rows: dicts with the columns of the format. Bytes are used as the payload. None
    with a key is a tombstone.
    """

    def __init__(self, format: Format, topics: list[str]) -> None:
        self._format = format
        self._first = topics[0]
        self._encoders: dict[str, Encoder] = {topic: format.encoder(topic) for topic in topics}
        self._columns: dict[str, pa.Schema | None] = dict.fromkeys(topics)

    def open(self) -> None:
        """Asks the schema registry for the schemas of the topics. Blocks. Raises UserError and RegistryUnavailable."""
        for topic, encoder in self._encoders.items():
            known = self._columns[topic] = self._format.columns(topic)
            if known is not None:
                encoder.encode(empty_batch(known))

    def __call__(self, value: Any, key: Any, topic: str | None) -> bytes | None:
        if isinstance(value, bytes) or (value is None and key is not None):
            return value
        name = self._first if topic is None else topic
        if name not in self._encoders:
            return encode_payload(value, key)  # not a topic of the agent: the caller raises the error
        payload: bytes = self._encoders[name].encode(self._row(value, self._columns[name]))[0].as_py()
        return payload

    def _row(self, value: Any, columns: pa.Schema | None) -> pa.RecordBatch:
        format = self._format.name
        if columns is not None and columns.names == [VALUE] and not isinstance(value, dict):
            value = {VALUE: value}
        if not isinstance(value, dict):
            raise UserError(
                f"a {type(value).__name__} cannot be written as {format}", hint="return a dict of its columns"
            )
        if columns is not None and (unknown := value.keys() - set(columns.names)):
            raise UserError(
                f"{', '.join(map(repr, sorted(map(str, unknown))))} is not a column of the {format} schema",
                hint=f"the columns are {', '.join(columns.names)}",
            )
        try:
            return pa.RecordBatch.from_pylist([value], schema=columns)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"the result cannot be written as {format}: {error}") from error


def payloads_of(spec: AgentSpec) -> PayloadOf:
    """Returns the function that encodes the results of this agent."""
    if spec.batch or spec.sink_format is None or spec.writes_json:
        return as_json
    return RowPayloads(spec.sink_format, list(spec.sinks))
