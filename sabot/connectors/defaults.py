"""Functions with which the engine uses the abilities of a source or sink. For a connector without the ability, the
function returns a default.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import pyarrow as pa

from sabot.base.config import RECORD_BYTES
from sabot.codecs.base import LostFloats
from sabot.connectors.base import (
    AsksOwner,
    Bounded,
    ChecksTypes,
    Commits,
    Delivers,
    ExpectsColumns,
    Finishes,
    HasIdentity,
    HoldsPartitions,
    KeepsToken,
    LimitsRecords,
    Positions,
    ReadsInParallel,
    ReportsBacklog,
    ReportsLag,
    ReportsProgress,
    Scans,
    Sink,
    SkipsHeaders,
    Source,
    StartsAfresh,
    TakesBound,
    TakesChanges,
    WaitsForLetters,
    WritesBack,
)
from sabot.connectors.places import Bound, Place
from sabot.errors import UserError

__all__ = [
    "Stages",
    "address_of",
    "backlog_of",
    "bound_of",
    "check_ends",
    "check_start",
    "check_types",
    "columns_of",
    "commit_of",
    "decodes",
    "delivers_of",
    "ends",
    "exhausted_of",
    "expect",
    "expect_changes",
    "expect_no_more",
    "finish_of",
    "floats_lost",
    "gives_columns",
    "hold_of",
    "identity_of",
    "is_same_log",
    "keeps_token_of",
    "lag_of",
    "lag_unit_of",
    "leave_headers",
    "log_id_of",
    "misfit_of",
    "progress_of",
    "readers_of",
    "receiver_of",
    "record_bytes_of",
    "scan",
    "set_owner",
    "sink_of",
    "start_afresh",
    "start_of",
    "takes_changes",
    "topic_id_of",
    "up_to",
    "with_headers",
]


# -- sources ----------------------------------------------------------------------------------------------------------


def ends(source: Source) -> bool:
    """Returns True if the source ends by itself, or at a bound."""
    return isinstance(source, Bounded) and source.bounded


def bound_of(source: Source) -> Bound | None:
    """Returns the place at which the source ends although its log continues, or None."""
    return source.bound if isinstance(source, TakesBound) else None


def check_ends(source: "str | Source", where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a source without the ability TakesBound, to which
    `until=` does not apply.
    """
    if isinstance(source, Source) and not isinstance(source, TakesBound):
        raise UserError(
            f"{where}: until= needs a topic, and {source.name} is none", hint="leave it out, and filter by a column"
        )


def check_start(source: "str | Source", start: Place, where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a source that is always read from its beginning, if
    `start=` names another place.
    """
    if isinstance(source, Source) and start_of(source, start) != start:
        raise UserError(
            f"{where}: start= needs a topic, and {source.name} is none",
            hint="leave start= out: it is read from its beginning; filter by a column for a part of its rows",
        )


def start_of(source: Source, start: Place) -> Place:
    """Returns the place at which reading begins without a checkpoint: `start`, or "earliest" for a source that ends by
    itself, such as files and rows in memory. `start=` of an app is meant for its topics.
    """
    return "earliest" if isinstance(source, Bounded) and not isinstance(source, TakesBound) else start


def up_to(source: Source, until: Place | None) -> Source:
    """Makes the source end at `until`, and returns it. None leaves the source as it is. Raises UserError as
    `check_ends`.
    """
    if until is not None:
        check_ends(source, "end_at")
        assert isinstance(source, TakesBound)
        source.end_at(Bound(until))
    return source


def readers_of(source: Source, count: int) -> Sequence[Source]:
    """Returns the sources that share the partitions of this one: the source alone, or as `ReadsInParallel.readers`."""
    return source.readers(count) if isinstance(source, ReadsInParallel) else [source]


def scan(source: Source, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
    """Asks the source for decoded columns, as `Scans.scan`. For a source without that ability, returns True if it has
    a schema of its own; then all its columns come. Raises UserError if such a source lacks a column of `schema`, or
    has it with another type.
    """
    if isinstance(source, Scans):
        return source.scan(schema, columns)
    own = source.schema
    if own is None:
        return False
    for field in schema or ():
        if field.name not in own.names:
            raise UserError(f"source {source.name} has no column {field.name}", hint=f"it has {', '.join(own.names)}")
        if (kind := own.field(field.name).type) != field.type:
            raise UserError(
                f"source {source.name}: {field.name} is {kind}, and schema= of the stream says {field.type}",
                hint=f'leave schema= out, and cast: .with_columns({field.name}=col("{field.name}").cast(…))',
            )
    return True


def decodes(source: Source) -> bool:
    """Returns True for a source that can decode its rows itself, so that a format of the stream has no meaning."""
    return isinstance(source, Scans)


def gives_columns(source: Source) -> bool:
    """Returns True for a source whose rows are always columns, never records. An agent then asks the source with
    `scan` for the columns that the agent uses.
    """
    return isinstance(source, Scans) and not source.has_records


def columns_of(source: Source) -> pa.Schema | None:
    """Returns all columns that decoded batches can have, as `Scans.infer_schema`, or the schema of the source."""
    return source.infer_schema() if isinstance(source, Scans) else source.schema


def inferring(source: Source, rows: int) -> Source | None:
    """Returns the source with columns that are inferred from so many records, as `Scans.inferring`. Returns None for a source of
    records, whose columns the engine infers. Raises UserError if the columns are not inferred.
    """
    return source.inferring(rows) if isinstance(source, Scans) else None


def leave_headers(source: Source) -> None:
    """Asks the source to leave headers out, if it can."""
    if isinstance(source, SkipsHeaders):
        source.leave_headers()


def with_headers(source: Source, records: pa.RecordBatch) -> pa.RecordBatch:
    """Returns rows of the last batch with the headers that the source left out, if it did."""
    return source.with_headers(records) if isinstance(source, SkipsHeaders) else records


def record_bytes_of(source: Source) -> int:
    """Returns the largest size of a record that is decoded, in bytes."""
    return source.record_bytes if isinstance(source, LimitsRecords) else RECORD_BYTES


def log_id_of(source: Source) -> str:
    """Returns the id of a log that ends with its process; "": the log outlives the process."""
    return source.log_id if isinstance(source, HasIdentity) else ""


def is_same_log(source: Source, facts: Mapping[str, Any]) -> bool:
    """Returns True if the source still has the log to which the offsets of a checkpoint belong. `facts`: the facts
    about the source in that checkpoint.
    """
    return bool(facts["log"] == log_id_of(source))


def identity_of(source: Source) -> str | None:
    """Returns a name of the log that no other log ever has, or None. Blocks; raises as `HasIdentity.identity`."""
    return source.identity() if isinstance(source, HasIdentity) else None


def topic_id_of(source: Source) -> str:
    """Returns the id that the broker gave the topic, or "". Blocks; raises as `HasIdentity.topic_id`."""
    return source.topic_id() if isinstance(source, HasIdentity) else ""


def exhausted_of(source: Source) -> Callable[[], bool]:
    """Returns a function that returns True if the source has given its last row."""
    return (lambda: source.exhausted) if isinstance(source, Bounded) else (lambda: False)


def lag_of(source: Source) -> Callable[[], dict[tuple[str, int], int]]:
    """Returns a function that returns the number of unread rows of each partition for which the source knows it; from any thread."""
    return source.lag if isinstance(source, ReportsLag) else dict


def lag_unit_of(source: Source) -> str:
    """Returns what the lag of the source counts: "rows" or "bytes"."""
    return source.lag_unit if isinstance(source, ReportsLag) else "rows"


def backlog_of(source: Source) -> Callable[[], int | None] | None:
    """Returns `ReportsBacklog.backlog` of the source, or None if it cannot tell when all that was there at its start has been read."""
    return source.backlog if isinstance(source, ReportsBacklog) else None


def progress_of(source: Source) -> tuple[float, float] | None:
    """Returns (bytes read, bytes in all), or None if the source does not know them; from any thread."""
    return source.progress() if isinstance(source, ReportsProgress) else None


def hold_of(source: Source) -> Callable[[Set[tuple[str, int]]], None] | None:
    """Returns `HoldsPartitions.hold` of the source, or None if its partitions cannot wait for each other."""
    return source.hold if isinstance(source, HoldsPartitions) else None


def commit_of(source: Source) -> Callable[[Positions], None] | None:
    """Returns `Commits.commit` of the source, or None for a source without that ability."""
    return source.commit if isinstance(source, Commits) else None


def sink_of(given: object, where: str) -> Any:
    """Returns the sink that `to(given)` writes to: for a Source the one that writes to its place, else `given`. Raises UserError, whose
    text begins with `where`, for a Source that has none.
    """
    if not isinstance(given, Source):
        return given
    if isinstance(given, WritesBack):
        return given.as_sink()
    raise UserError(
        f"{where}: {given!r} is neither a topic nor a Sink", hint='"topic", or a Sink: ParquetSink("out.parquet")'
    )


# -- sinks ------------------------------------------------------------------------------------------------------------


class Stages(ABC):
    """The ability of `delivery.StagedSink`, which collects rows into parts in front of another sink, the receiver, to
    which they are delivered later.
    """

    sealed: Mapping[str, int] = {}
    """By track id, the number of the last part that was complete at the last flush."""

    @property
    @abstractmethod
    def receiver(self) -> Sink:
        """The sink to which the parts are delivered. The engine uses the abilities of this sink, not those of the
        StagedSink.
        """

    def fits(self, data: pa.RecordBatch) -> None:
        """Raises the error of `write` for these rows. Writes nothing."""
        if (receiver := delivers_of(self.receiver)) is not None:
            receiver.fitting(data)

    def letters_to(self, write: Callable[[pa.RecordBatch], None], origin: Mapping[str, str]) -> None:  # noqa: B027
        """Sets the function that makes dead letters safe: those of `put_letters`, and of rows that the receiver refuses
        when they are delivered. `origin`: their fields step, agent and version.
        """

    def put_letters(self, letters: pa.RecordBatch) -> None:
        """Adds the dead letters of rows that do not fit to the open part. They are made safe before the part counts as
        delivered. Raises UserError if the parts hold only rows, as here.
        """
        raise UserError(f"sink {self.receiver.name}: its parts hold no dead letters")

    def deliver_aside(self, data: pa.RecordBatch) -> None:
        """Writes rows at once, in any thread. When it returns they are at the receiver. Raises TransientError if the
        delivery ends before that, and UserError where no thread delivers, as here and in a worker process.
        """
        raise UserError(f"sink {self.receiver.name} is not delivered to in this process")


def receiver_of(sink: Sink) -> Sink:
    """Returns the sink whose abilities the engine uses: the receiver of a StagedSink, or `sink` itself."""
    return sink.receiver if isinstance(sink, Stages) else sink


def start_afresh(sink: Sink) -> None:
    """Calls `StartsAfresh.start_afresh`, as the app starts without a checkpoint. Does nothing for a sink without that
    ability.
    """
    receiver = receiver_of(sink)
    if isinstance(receiver, StartsAfresh):
        receiver.start_afresh()


def check_types(sink: Sink, schema: pa.Schema) -> None:
    """Raises UserError for a column that the sink can never write, if the sink can tell."""
    receiver = receiver_of(sink)
    if isinstance(receiver, ChecksTypes):
        receiver.check_types(schema)


def floats_lost(sink: Sink, kind: pa.DataType) -> LostFloats:
    """Returns which floats become null in a column of this type; None: none."""
    receiver = receiver_of(sink)
    return receiver.floats_lost(kind) if isinstance(receiver, ChecksTypes) else None


def expect(sink: Sink, schema: pa.Schema) -> None:
    """Announces the columns that will come, to a sink that needs them."""
    receiver = receiver_of(sink)
    if isinstance(receiver, ExpectsColumns):
        receiver.expect(schema)


def expect_no_more(sink: Sink, columns: Sequence[str]) -> None:
    """Announces columns that the app does not write any more, to a sink that needs its columns."""
    receiver = receiver_of(sink)
    if isinstance(receiver, ExpectsColumns):
        receiver.expect_no_more(columns)


def missing_columns(sink: Sink, schema: pa.Schema) -> tuple[Sequence[str] | None, bool]:
    """Returns those columns that the receiver of the sink lacks, or None if the sink cannot tell, and True if it adds them."""
    receiver = receiver_of(sink)
    return (
        (receiver.missing_columns(schema), receiver.evolve) if isinstance(receiver, ExpectsColumns) else (None, False)
    )


def misfit_of(sink: Sink, schema: pa.Schema) -> str:
    """Returns the reason why the receiver of the sink cannot take rows with these columns, or "", as far as the sink can tell."""
    receiver = receiver_of(sink)
    return receiver.misfit(schema) if isinstance(receiver, ExpectsColumns) else ""


def takes_changes(sink: Sink) -> bool:
    """Returns True if the sink can keep a table up to date."""
    return isinstance(receiver_of(sink), TakesChanges)


def expect_changes(sink: Sink, schema: pa.Schema, keys: Sequence[str]) -> None:
    """Announces changes, as `TakesChanges.expect_changes`. Raises UserError for a sink that can only add rows."""
    receiver = receiver_of(sink)
    if not isinstance(receiver, TakesChanges):
        raise UserError(
            f"sink {sink.name} takes rows that are final, not changes of them",
            hint="a topic or a SqlSink takes changes; or write .materialize() (the last state, at the end of the input) "
            "or .changelog() (each change as a row) before .to()",
        )
    receiver.expect_changes(schema, keys)


def delivers_of(sink: Sink) -> Delivers | None:
    """Returns the sink as one that takes each row exactly once, or None if it cannot."""
    return sink if isinstance(sink, Delivers) else None


def keeps_token_of(sink: Sink) -> KeepsToken | None:
    """Returns the sink as one that stores the token at the receiver, or None if it stores none."""
    return sink if isinstance(sink, KeepsToken) else None


def set_owner(sink: Sink, still_ours: Callable[[], bool]) -> None:
    """Gives an AsksOwner sink the function that returns True if this process still owns the app. Does nothing for
    other sinks.
    """
    if isinstance(sink, AsksOwner):
        sink.still_ours = still_ours


def set_only_letters(sink: Sink, only_letters: bool) -> None:
    """Tells a WaitsForLetters sink whether the program writes only dead letters to it. Does nothing for others."""
    if isinstance(sink, WaitsForLetters):
        sink.only_letters = only_letters


def finish_of(sink: Sink) -> Callable[[], None]:
    """Returns a function that completes the result of the sink: `Finishes.finish`, or else `flush`."""
    return sink.finish if isinstance(sink, Finishes) else sink.flush


def address_of(sink: Sink) -> str:
    """Returns the place to which the sink writes: its name, or as `Delivers.address`."""
    return sink.address if isinstance(sink, Delivers) else sink.name
