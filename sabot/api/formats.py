"""What users give as `format=`, for records that come in and for rows that leave."""

from typing import Any

import pyarrow as pa

from sabot.codecs.base import Format
from sabot.codecs.formats import format_of
from sabot.connectors.base import Sink, Source
from sabot.connectors.defaults import decodes
from sabot.errors import UserError


def payload_format(given: Any, source: Any, schema: pa.Schema | None, where: str) -> Format:
    """The format of the payloads of a source. UserError, which begins with `where`, for one that does not fit source or schema."""
    if given is not None and isinstance(source, Source) and decodes(source):
        raise UserError(
            f"{where}: format= is of records, and {source.name} has rows without any", hint="leave format= out"
        )
    found = format_of(given, where)
    found.check_input(schema, where)
    return found


def sink_format(given: Any, sink: Any, where: str, *, keyed: bool) -> Format | None:
    """The format of the payloads of a topic; None: none is said. keyed: each row is a record with a key.

    Raises UserError, whose text begins with `where`, for a format of what is no topic, and for one whose records have many rows and no key.
    """
    if given is not None and not isinstance(sink, str):
        raise UserError(
            f"{where}: format= is of topics, and this sink has its own",
            hint='leave it out; of another broker: KafkaSink("topic", "kafka://…", format=…)',
        )
    found = None if given is None else format_of(given, where)
    written = sink.format if isinstance(sink, Sink) else found
    if keyed and written is not None and not written.one_row:
        raise UserError(
            f"{where}: a record of format {written.name} has many rows, and so no key",
            hint="leave key= out, or give it a format whose record is a row",
        )
    return found
