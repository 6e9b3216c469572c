"""Encodes the results of a record agent as payloads: as JSON, or in the format of the topic or Sink."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.base.arrays import batch_of_rows, column_of, empty_batch, typed_fields
from sabot.codecs.base import Format
from sabot.codecs.formats import JSON
from sabot.codecs.raw import VALUE
from sabot.codecs.records import encode_payload
from sabot.errors import DataError, UserError

PayloadOf = Callable[[Any, Any, str | None], bytes | None]
"""A function of (value, key, the topic that the result names, or None for the first) that returns the payload. Raises
UserError for a value that the format cannot encode, and DataError for one that does not fit into its columns.
"""


def as_json(value: Any, key: Any, topic: str | None) -> bytes | None:
    """Encodes a result as JSON (`encode_payload`)."""
    return encode_payload(value, key)


class RowPayloads:
    """An encoder of results for sinks of which at least one has another format than JSON. `formats`: the format of
    each sink, by its name, the first sink first.

    Results are rows: dicts with the columns of the format, or objects with such fields. Bytes are used as the payload.
    None with a key is a tombstone.
    """

    def __init__(self, formats: Mapping[str, Format]) -> None:
        self._formats = formats
        self._first = next(iter(formats))
        self._encoders = {name: each.encoder(name) for name, each in formats.items() if each != JSON}
        self._columns: dict[str, pa.Schema | None] = dict.fromkeys(self._encoders)

    def open(self) -> None:
        """Asks the schema registry for the schemas of the topics. Blocks. Raises UserError and RegistryUnavailable."""
        for topic, encoder in self._encoders.items():
            known = self._columns[topic] = self._formats[topic].columns(topic)
            if known is not None:
                encoder.encode(empty_batch(known))

    def __call__(self, value: Any, key: Any, topic: str | None) -> bytes | None:
        if isinstance(value, bytes) or (value is None and key is not None):
            return value
        name = self._first if topic is None else topic
        encoder = self._encoders.get(name)
        if encoder is None:  # JSON; or not a sink of the agent, for which the caller raises the error
            return encode_payload(value, key)
        row = self._row(value, name)
        try:
            payload: bytes = encoder.encode(row)[0].as_py()
        except UserError as error:
            if self._columns[name] is None:
                raise
            raise DataError(f"the result cannot be written: {error.message}", hint=error.hint) from error
        return payload

    def _row(self, value: Any, topic: str) -> pa.RecordBatch:
        format, columns = self._formats[topic].name, self._columns[topic]
        fields = value if isinstance(value, dict) else typed_fields(value)
        if columns is not None and columns.names == [VALUE] and not isinstance(fields, dict):
            fields = {VALUE: fields}
        if not isinstance(fields, dict):
            raise UserError(
                f"a {type(value).__name__} cannot be written as {format}", hint="return a dict of its columns"
            )
        if columns is not None and (unknown := fields.keys() - set(columns.names)):
            raise UserError(
                f"{', '.join(map(repr, sorted(map(str, unknown))))} is not a column of the {format} schema",
                hint=f"the columns are {', '.join(columns.names)}",
            )
        try:
            if columns is not None:
                return batch_of_rows([fields], columns)
            return pa.RecordBatch.from_arrays([column_of([each], None) for each in fields.values()], list(fields))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            if fields is value and (plain := typed_fields(value)) != value:  # it has objects in it, such as models
                return self._row(plain, topic)
            raise DataError(f"the result cannot be written as {format}: {error}") from error


_REPLY = "reply=, a function that makes of each answer what the sink takes"


def payloads_of(spec: AgentSpec) -> PayloadOf:
    """Returns the function that encodes the results of this agent."""
    return as_json if spec.batch or spec.writes_json else RowPayloads(spec.sink_formats)


def check_sample(spec: AgentSpec, payload_of: PayloadOf) -> None:
    """Raises UserError, with agent, type and sink, if one of the sinks cannot write `spec.sample`. Each sink is asked,
    because a result may name any of them.
    """
    if spec.sample is None:
        return
    value, kind = spec.sample
    for topic, format in spec.sink_formats.items():
        try:
            payload_of(value, None, topic)
        except (UserError, DataError) as error:
            raise UserError(
                f"agent {spec.agent_id}: output={kind} cannot be written to sink {topic!r} as {format.name}: {error.message}",
                hint=f"an output= with the columns of the sink; or {_REPLY}",
            ) from error
