"""The inference of a topic's columns from its first records, for which the start of an app waits."""

import logging
from collections.abc import Callable

import pyarrow as pa

from sabot.clock import Clock
from sabot.codecs.base import Format
from sabot.connectors.base import Positions, Source, ends, exhausted_of
from sabot.errors import SabotError, UserError

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 0.2  # for more records than the inference has
_PATIENCE_SECONDS = 2.0  # until the wait for the first record is logged


class StoppedEarly(SabotError):
    """The error raised if the app is stopped while it waits for the first records of a stream."""


def wait_for_columns(
    name: str,
    source: Source,
    format: Format,
    clock: Clock,
    stopped: Callable[[], bool],
    first_record_s: float,
    positions: Positions | None = None,
) -> pa.Schema:
    """Returns the columns of the first records of a topic. It reads them with a source of its own, which it closes.
    Blocks until records come.

    `name`: the name of the stream. `positions`: where to begin, or None for the first record. Raises StoppedEarly
    when `stopped()` returns True, and UserError for records that cannot be decoded, and if none has come within
    `first_record_s`.
    """
    codec, sample = format.codec(name, None), format.sample_rows
    exhausted = exhausted_of(source)
    source.open(positions or None, "earliest")
    try:
        rows: list[pa.RecordBatch] = []
        count, deadline = 0, float("inf")
        begun = clock.monotonic()
        patience = begun + _PATIENCE_SECONDS
        while count < sample and clock.monotonic() < deadline:
            if stopped():
                raise StoppedEarly(f"stream {name}: stopped before its first record came")
            batch = source.read_batch(sample - count, 0.05)
            if batch is not None:
                if "payload" not in batch.data.schema.names:
                    raise UserError(
                        f"stream {name}: its source returns columns ({', '.join(batch.data.schema.names)}), but declares no schema",
                        hint='schema = pa.schema([("name", pa.int64()), …]) in the class of the Source',
                    )
                rows.append(batch.data.select(["payload"]))
                count += batch.num_rows
                deadline = min(deadline, clock.monotonic() + _SETTLE_SECONDS)
            elif exhausted():
                break
            elif not rows and clock.monotonic() > begun + first_record_s:
                raise UserError(
                    f"stream {name}: no record has come in {first_record_s:g} s, and the columns are inferred from the first records",
                    hint="give it schema=, or send a record first; app.run() and `sabot run` wait for it",
                )
            elif not rows and clock.monotonic() > patience:
                patience = float("inf")
                _log.warning(
                    "stream %s: waiting for its first record, from which its columns are inferred (with schema= it would not wait)",
                    name,
                )
        if rows:
            codec.decode(pa.concat_batches(rows))
    finally:
        source.close()
    if not rows and ends(source):
        raise UserError(
            f"stream {name}: there is no record before until=, and the columns are inferred from the first records",
            hint="give it schema=",
        )
    if codec.schema is None:
        if format.name != "json":
            raise UserError(
                f"stream {name}: its first records are not of format {format.name}",
                hint="correct format=; or declare schema=, and these records become dead letters",
            )
        raise UserError(f"stream {name}: its first records are not JSON objects", hint="give the stream schema=")
    _log.info(
        "stream %s: its %d columns were inferred from its first %s records (infer= looks at more)",
        *(name, len(codec.schema), f"{count:,}"),
    )
    return codec.schema
