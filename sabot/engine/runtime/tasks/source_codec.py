"""The codecs of a source's records, and the facts about them that a checkpoint keeps."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from sabot.api.nodes.read import Read
from sabot.base.backoff import Backoff, Failures
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs import Codec, TableCodec
from sabot.codecs.base import Format
from sabot.codecs.fields import FieldCodec
from sabot.codecs.formats import JSON
from sabot.codecs.json import InferredColumns, JsonCodec
from sabot.codecs.keyed import key_rows_of, payload_codec
from sabot.errors import RegistryUnavailable

_log = logging.getLogger(__name__)

_BACKOFF = Backoff(0.25, 5.0)  # before a registry is asked again


def codec_of(node: Read, schema: pa.Schema, readers: Iterable[Mapping[str, Any]], *, refresh: bool) -> Codec:
    """Returns the codec that decodes the records of a stream into these columns. Blocks if it has to ask a schema
    registry.

    `readers`: the facts of the checkpoint about the stream's readers. `refresh`: True to ignore the schema in these
    facts.
    """
    readers = list(readers)
    if before := next(filter(None, (changed_format(node.format, facts) for facts in readers)), ""):
        _log.warning(
            "stream %s: its records were decoded as %s until the checkpoint, and are decoded as %s now",
            node.name,
            before,
            node.format.description,
        )
    text = None if refresh else kept_text(node.format, readers)
    fields = [(column, field) for column, field in node.fields if column in schema.names]
    own = dict(node.fields)
    wanted = pa.schema([field for field in schema if field.name not in own])
    assert node.schema is not None
    table, every = node.table, node.schema
    if table is not None:  # a payload may lack its key
        every = pa.schema([field.with_nullable(True) if field.name in table.keys else field for field in every])
    key_rows = None if table is None else key_rows_of(node.format, every, table.keys)
    if table is not None and table.format == "debezium":  # the rows are inside envelopes, and with types of Connect
        codec: Codec = TableCodec(wanted, table.keys, table.format, node.time_column, key_rows=key_rows)
    else:
        codec = node.format.codec(node.name, every, wanted.names, text)
        if node.inferred and isinstance(payloads := payload_codec(codec), JsonCodec):
            payloads.take_inferred(InferredColumns(node.name, node.schema, node.guessed))
        if table is not None:
            codec = TableCodec(wanted, table.keys, table.format, node.time_column, codec, key_rows)
    return FieldCodec(codec, fields) if fields else codec


def format_facts(format: Format, codec: Codec | None) -> dict[str, Any]:
    """Returns the facts about decoding that a checkpoint keeps. A format that brings its own columns resumes with
    them.
    """
    if codec is None:
        return {}
    return {"format": format.description, "codec": codec.text if format.own_columns else None}


def kept_text(format: Format, readers: Iterable[Mapping[str, Any]]) -> str | None:
    """Returns the text of the codec (its schema) that the checkpoint has for this format, or None. `readers`: the
    checkpoint's facts about the readers of the source.
    """
    texts = (facts.get("codec") for facts in readers if not changed_format(format, facts))
    return next((text for text in texts if text is not None), None)


def changed_format(format: Format, facts: Mapping[str, Any]) -> str:
    """Returns the format with which the checkpoint's reader decoded its records if that differs from `format`, else
    "".
    """
    before = facts.get("format") or JSON.description
    return "" if before == format.description else before


class Outage:
    """The pause of a reader that waits for a schema registry: the time at which it asks the registry again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failures = Failures(_BACKOFF)

    @property
    def why(self) -> str:
        """The last error, or "" if the registry answers."""
        return self._failures.why

    def began(self, error: RegistryUnavailable) -> None:
        """Called when the registry has not answered."""
        if not self.why:
            _log.warning("%s: reading is paused: %s", self._name, error.message)
        self._failures.note(error.message, SYSTEM_CLOCK.monotonic())

    def over(self) -> None:
        """Called when the registry has answered."""
        if self.why:
            _log.info("%s: the schema registry answers again, reading continues", self._name)
            self._failures.note("")

    def left_seconds(self) -> float:
        """Returns the seconds until the next attempt."""
        return self._failures.until_s - SYSTEM_CLOCK.monotonic()
