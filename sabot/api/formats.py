"""The argument `format=`, for records that come in and for rows that go out."""

from typing import Any

import pyarrow as pa

from sabot.codecs.base import Format
from sabot.codecs.formats import format_of
from sabot.connectors.base import Scans, Sink, Source
from sabot.errors import UserError


def payload_format(given: Any, source: Any, schema: pa.Schema | None, where: str) -> Format:
    """Returns the format of the payloads of a source. Raises UserError if `given` is not a format, or does not fit
    the source or the schema; the message begins with `where`.
    """
    if given is not None and isinstance(source, Source) and (isinstance(source, Scans) or source.schema is not None):
        raise UserError(f"{where}: format= is for records, and {source.name} has rows", hint="leave format= out")
    found = format_of(given, where)
    found.check_input(schema, where)
    return found


def sink_format(given: Any, sink: Any, where: str, *, keyed: bool) -> Format | None:
    """Returns the format of the records of a topic; None if `given` is None.

    - `given`: the argument `format=` of the user. `sink`: the topic or the Sink.
    - `where`: the text with which error messages begin. `keyed`: True if each row becomes a record with a key.

    Raises UserError if `given` is set for a Sink, which has a format of its own. Also raises it with `keyed` if a record
    contains several rows, in the format `given` or in the own format of a Sink.
    """
    if given is not None and not isinstance(sink, str):
        raise UserError(
            f"{where}: format= is for topics, and this sink has its own",
            hint='leave it out; for a topic of another broker: KafkaSink("topic", "kafka://…", format=…)',
        )
    found = None if given is None else format_of(given, where)
    written = sink.format if isinstance(sink, Sink) else found
    if keyed and written is not None and not written.one_row:
        raise UserError(
            f"{where}: a record of format {written.name} has many rows, so it cannot have a key",
            hint="leave key= out, or give it a format whose record is a row",
        )
    return found
