"""The contracts of sources and sinks, and of their abilities.

`Source` and `Sink` have only the members that every connector needs. A further capability, which some connectors
have, is an *ability*: a small base class that a connector names beside `Source` or `Sink`, as in `class
Numbers(Source, Bounded)`. The engine looks for abilities once, when it opens the connector
(`connectors/defaults.py`). A class that defines a member of an ability without naming the ability raises UserError
when the class is defined, because the engine would never call that member.

One thread at a time calls the methods of a connector. For a source it is the thread of its reader; for a sink, the
task that writes to it, or the thread that delivers its parts. A method may block unless its docstring says otherwise.
After a crash no method is called: a new process opens the source at the positions of the last complete checkpoint.
`tests/contracts/` checks these rules for every implementation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.config import RECORD_BYTES
from sabot.codecs.base import Format, LostFloats
from sabot.codecs.formats import JSON
from sabot.connectors.places import Bound
from sabot.errors import UserError

__all__ = [
    "AsksOwner",
    "Bounded",
    "ChecksTypes",
    "Commits",
    "Delivers",
    "Delivery",
    "ExpectsColumns",
    "Finishes",
    "HasIdentity",
    "HoldsPartitions",
    "KeepsToken",
    "LimitsRecords",
    "LostFloats",
    "OnNan",
    "Positions",
    "ReadsInParallel",
    "ReportsBacklog",
    "ReportsLag",
    "ReportsProgress",
    "Scans",
    "Sink",
    "SkipsHeaders",
    "Source",
    "StartsAfresh",
    "TakesBound",
    "TakesChanges",
    "Token",
    "Track",
    "WritesBack",
    "attributes_without_ability",
]

Positions = dict[tuple[str, int], int]
"""The next offset to read, by (topic, partition). The topic is the `name` of the source, or begins with it, because a dict may have the
positions of several sources.
"""

Delivery = Literal["exactly_once", "at_least_once"] | None
"""The delivery guarantee of a sink. None means exactly once if the sink can do that, else at least once."""

OnNan = Literal["null", "fail"] | None
"""The treatment of floats (NaN, infinities) that the format of a sink cannot represent: "null" writes null, and
"fail" stops the app. None writes null and logs a warning.
"""


# -- sources ----------------------------------------------------------------------------------------------------------


class Source(ABC):
    """A source of rows, in partitions that can be read again from an offset. This one is complete; an app reads it to its end:

    ```python
    import pyarrow as pa

    from sabot import App, Batch, Source
    from sabot.connectors import Bounded


    class Numbers(Source, Bounded):
        name = "numbers"
        schema = pa.schema([("n", pa.int64())])

        def open(self, positions, start="earliest"):
            self.next = (positions or {}).get((self.name, 0), 0)

        def read_batch(self, max_rows, timeout):
            rows = pa.record_batch({"n": list(range(self.next, min(self.next + max_rows, 3)))}, self.schema)
            self.next += rows.num_rows
            return Batch(rows, self.positions(), self.name) if rows.num_rows else None

        @property
        def exhausted(self):
            return self.next == 3

        def positions(self):
            return {(self.name, 0): self.next}

        def close(self):
            "There is nothing to release."


    print(App("count").stream(Numbers()).collect().to_pylist())
    ```

    ```text
    [{'n': 0}, {'n': 1}, {'n': 2}]
    ```

    Abilities of a source: Bounded and TakesBound (it ends), ReadsInParallel, Scans (it decodes only the columns that are needed),
    HoldsPartitions, SkipsHeaders, LimitsRecords, HasIdentity, Commits, ReportsLag, ReportsBacklog, ReportsProgress, WritesBack.
    """

    name: str
    """The name in positions, metrics and dead letters: the topic, or the path. A checkpoint finds the source again by its name."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the batches, for a source that decodes its rows itself; None for a source whose batches have
        RECORD_SCHEMA, which the engine decodes. If a decoding source does not have the ability Scans, these are all
        of its columns, and the engine drops those that no step uses.
        """
        return None

    @abstractmethod
    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Makes the source ready to read. `positions` are those of the restored checkpoint, at which reading continues.

        Without positions of this source (None, or a dict that has none of them) reading begins at `start`: "earliest", "latest",
        "committed" (the offsets of the consumer group, or "earliest" if it has none) or a timestamp in ms. If `positions` has only some
        partitions of this source, the others are new since that checkpoint, and begin at their first record, as do partitions that are
        found while the app runs. Raises UserError for a source that does not exist, and for a position that no longer exists (retention):
        no record is skipped silently. Raises BrokerUnavailable, within 10 s and with the address, if no broker answers.
        """

    @abstractmethod
    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        """Returns the next rows, at most `max_rows`, in order within each partition, as soon as there is one; None after `timeout` seconds.

        The `offsets` of the batch are those behind its rows, including the rows in its `bad`. Its columns are those of `schema`, or of
        RECORD_SCHEMA. The source waits until faults of the network are over, and logs them; it raises only errors that will not pass.
        """

    @abstractmethod
    def positions(self) -> Positions:
        """Returns the offset behind the last row that `read_batch` returned, for each known partition. The checkpoint stores these."""

    @abstractmethod
    def close(self) -> None:
        """Releases all resources. Also called after an `open` that failed, and may be called twice."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _refuse_members_without_ability(cls, "Source", _SOURCE_ABILITIES)


class Bounded(ABC):
    """The ability of a source to end by itself. The stream then ends too, and its windows close; the app ends when
    all its inputs have ended.
    """

    bounded: bool = True
    """True if the rows have an end. An object that cannot end although its class can, such as a topic without `until=`, sets False before
    it is given to a stream.
    """

    @property
    @abstractmethod
    def exhausted(self) -> bool:
        """True if `read_batch` has returned the last row. Asked after each `read_batch` that returned None. Never blocks."""


class TakesBound(Bounded):
    """The ability of an endless source, such as a topic, to end at a place that the user chooses (`until=`)."""

    bounded: bool = False
    bound: Bound | None = None
    """The place at which this source ends although its log continues, or None. `open` turns it into offsets (`Bound.settle`)."""

    def end_at(self, bound: Bound) -> None:
        """Makes the source return only the records before `bound`, and then be exhausted. Called before `readers` and
        `open`. Never blocks.
        """
        self.bound, self.bounded = bound, True

    skips_removed: bool = False
    """True if `open` goes on at the first record that is there when the log no longer has that of the position."""

    def skip_removed(self) -> None:
        """Sets `skips_removed`. Called before `readers` and `open`. Never blocks."""
        self.skips_removed = True


class ReadsInParallel(ABC):
    """The ability of a source to be read by several threads, each of which reads some of the partitions."""

    @abstractmethod
    def readers(self, count: int) -> Sequence[Source]:
        """Returns at most `count` sources that share the partitions of this one. The same `count` gives the same
        shares.

        Called before `open`. Each returned source is then opened, read and closed by a thread of its own. This source
        itself is not opened, unless it is the only one returned. The engine keeps the readers at about the same event
        time. Their positions do not overlap, so they fit into one dict. `open` of each source receives the positions
        of all readers, and uses those of its own partitions. `open` raises UserError for positions of another number
        of readers.
        """


class Scans(ABC):
    """The ability of a source to decode its rows itself, and to leave out columns that no step of the stream uses."""

    has_records: bool = True
    """True if the source returns undecoded records unless `scan` is called. False if its rows are always columns."""

    @abstractmethod
    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        """Asks for decoded batches with the columns `columns` (None: all) of `schema` (None: the columns of the
        data).

        Returns True if the source decodes. The property `schema` then has these columns, in the order of `columns`,
        and so do the batches of `read_batch`. Rows that do not fit are in `Batch.bad` (BAD_SCHEMA) of the next batch,
        which may have no other rows. Returns False if the source returns records, which the engine decodes. Called
        before `readers` and `open`. May read the beginning of the data. Raises UserError for columns that the data
        does not have.
        """

    @abstractmethod
    def infer_schema(self) -> pa.Schema | None:
        """Returns all columns that decoded batches can have, or None if they are not known before records arrive. Called before `open`,
        whose errors it raises. May read the beginning of the data.
        """

    def inferring(self, rows: int) -> "Source":
        """Returns the source with columns that are inferred from so many records. Raises UserError if they are not
        inferred, as here. Called before all other methods.
        """
        raise UserError(f"infer={rows} is for JSON and CSV, whose types are inferred", hint="leave infer= out")


class SkipsHeaders(ABC):
    """The ability of a source to read records without their headers, which saves memory and time where no step reads headers."""

    @abstractmethod
    def leave_headers(self) -> None:
        """Asks for records whose column `headers` is null. Called before `open`. Never blocks."""

    @abstractmethod
    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with their headers. `records` are rows of the last batch (RECORD_SCHEMA), in any order: those that become dead
        letters. Called before the next `read_batch`. Never blocks.
        """


class LimitsRecords:
    """The ability of a source of records to have another limit for the size of a record than the engine's (16 MiB)."""

    record_bytes: int = RECORD_BYTES
    """The largest size of a record that is decoded, in bytes. A larger record becomes a dead letter with its first bytes."""


class HasIdentity(ABC):
    """The ability of a source to tell whether its log is still the same one: offsets mean nothing in another log."""

    @property
    def log_id(self) -> str:
        """The id of a log that ends with its process, or "" if the log outlives the process. A checkpoint stores it beside the positions;
        they are ignored, with a warning, in a log with another id. Never blocks.
        """
        return ""

    def topic_id(self) -> str:
        """Returns the id that the broker gave the topic when it was made, or "" if the broker gives none. A checkpoint stores it beside the
        positions; a start with another id is a UserError. The id does not change between `open` and `close`. Raises as `open` does.
        """
        return ""

    @abstractmethod
    def identity(self) -> str | None:
        """Returns a name of the log that no other log ever has, even if it is made again under the same topic or path; None if there is
        none, or the rows are no records. This name, a partition and an offset name a record, and so a job of a durable agent. Called after
        `open`, and raises as `open` does.
        """


class Commits(ABC):
    """The ability of a source to publish its progress, such as the offsets of a consumer group, for tools that show how far an app is."""

    @abstractmethod
    def commit(self, positions: Positions) -> None:
        """Publishes positions that a complete checkpoint covers. They are read back only with `start="committed"`: a restart uses those of
        the checkpoint. Called between two `read_batch`. A TransientError is logged and does not stop the app.
        """


class ReportsLag(ABC):
    """The ability of a source to tell how many of its rows are not read yet: for metrics, and to know which partitions are idle."""

    @abstractmethod
    def lag(self) -> dict[tuple[str, int], int]:
        """Returns the number of unread rows of each partition for which it is known. Never blocks; called from any thread, also before
        `open` and after `close`.
        """

    lag_unit: str = "rows"
    """What `lag` counts: "rows", or "bytes" if the number of rows is not known, as for files."""


class ReportsBacklog(ABC):
    """The ability of an endless source to tell when all that was there at its start has been read (`app.table(first=True)`)."""

    @abstractmethod
    def backlog(self) -> int | None:
        """Returns an upper bound of the number of records that were there at `open` and are not read yet: 0 if all
        have been read, and None if it is not known. Never blocks; called from any thread.
        """


class ReportsProgress(ABC):
    """The ability of a bounded source to tell how much of it has been read, for the progress bar of a run."""

    @abstractmethod
    def progress(self) -> tuple[float, float] | None:
        """Returns (bytes read, bytes in all), or None before `open`. The figures of several readers add up. Never blocks; called from any
        thread.
        """


class HoldsPartitions(ABC):
    """The ability of a source to leave out some of its partitions while others are read (`max_drift=`)."""

    @abstractmethod
    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        """Makes `read_batch` return no rows of `partitions` from now on, and rows of all other partitions. Called
        between two `read_batch`.
        """


class WritesBack(ABC):
    """The ability of a source to name the sink that writes to the same place, as `to(files("s3://bucket/folder/"))`
    needs it.
    """

    @abstractmethod
    def as_sink(self) -> "Sink":
        """Returns the sink. Called when the program is built. Raises UserError if rows cannot be written to this place."""


_SOURCE_ABILITIES = (
    Bounded,
    TakesBound,
    ReadsInParallel,
    Scans,
    SkipsHeaders,
    LimitsRecords,
    HasIdentity,
    Commits,
    ReportsLag,
    ReportsBacklog,
    ReportsProgress,
    HoldsPartitions,
    WritesBack,
)


# -- sinks ------------------------------------------------------------------------------------------------------------


class Sink(ABC):
    """A receiver of results. This one is complete, and an app writes to it:

    ```python
    from sabot import App, Sink


    class Printed(Sink):
        name = "printed"

        def open(self):
            "There is nothing to open."

        def write(self, batch):
            print(batch.taken().to_pylist())

        def flush(self):
            "No row waits in memory."

        def close(self):
            "There is nothing to release."


    app = App("orders")
    app.stream("orders", schema={"id": "int64", "amount": "int64"}, until="now").to(Printed())
    await app.send("orders", {"id": 1, "amount": 500})
    await app.run()
    ```

    ```text
    [{'id': 1, 'amount': 500}]
    ```

    At least once: rows that were flushed before a barrier are at the receiver after a crash, possibly twice. Order of calls:
    [start_afresh] [check_types]* [expect | expect_changes] open (write | flush)* [finish] close.

    Exactly once, for a sink that Delivers: the engine keeps the rows of an epoch in its checkpoint, as parts, and does not call `write`.
    When the checkpoint is complete, a thread of the sink's track delivers its parts in order. Order of calls:
    [start_afresh] [check_types]* [expect | expect_changes] known (claim (deliver | settle)*)* [finish] close.

    Abilities of a sink: Delivers and KeepsToken (exactly once), AsksOwner, WaitsForLetters, TakesChanges, StartsAfresh, ExpectsColumns,
    ChecksTypes, Finishes.
    """

    name: str
    """The name in metrics and messages: the topic, the path or the table. A checkpoint finds the sink again by its name."""
    format: Format | None = JSON
    """The format in which rows become records, for a sink of records, and for rows with a `key=`. None for a sink that
    stores columns, which has no place for the key of a record: `to(…, key=)` is then refused.
    """

    @abstractmethod
    def open(self) -> None:
        """Makes the sink ready to write, and makes a topic if it is missing. Removes nothing from the receiver, because another sink may
        refuse the start after that. Raises the errors of `Source.open`.
        """

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Writes the rows, in order. Rows of RECORD_SCHEMA are written unchanged: payload, key, headers and timestamp
        (null: now), without partition and offset. Rows of any other schema are encoded in `format`, or in the format
        of the sink's files. The sink may keep rows in memory until `flush`; if there are too many, `write` blocks.
        Raises an error that names the rows which the receiver refuses: with RowErrors no row of the batch is written,
        the named rows become dead letters, and `write` gets the others again.
        """

    @abstractmethod
    def flush(self) -> None:
        """Waits until all written rows are safe at the receiver. Raises an error that names the rows which the receiver refused."""

    @abstractmethod
    def close(self) -> None:
        """Releases all resources without flushing. May be called twice. If `finish` was not called before, the next `open` continues."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _refuse_members_without_ability(cls, "Sink", _SINK_ABILITIES)


@dataclass(frozen=True, slots=True)
class Track:
    """The identity of the stream of parts that a sink receives, under which the receiver stores the token.

    `app`: the app's id. `sink`: the place of the sink in the program, the same in each run. `incarnation`: an id that
    is made anew when the app starts afresh; every start from its checkpoints keeps it.
    """

    app: str
    sink: str
    incarnation: str

    @property
    def key(self) -> str:
        """The name of the track at the receiver, such as the name of a consumer group, or of a row in the table of
        tokens.
        """
        return f"sabot.{self.app}.{self.sink}"


@dataclass(frozen=True, slots=True)
class Token:
    """The progress of a track at its receiver: the number of the last part that arrived, and the incarnation that sent that part.

    A receiver may keep only a digest of the incarnation. Then the token of a part that another incarnation than that of
    the track has sent has a text made of this digest.

    `empty`: True if it is certain that the receiver has no part: its topic does not exist yet, or has no records.
    """

    seq: int
    incarnation: str
    empty: bool = False


class Delivers(ABC):
    """The ability of a sink to write each row exactly once.

    Its methods are called by the thread of the sink's track; only `known` and `fitting` are called by the task that
    writes to the sink. The numbers of parts grow, except that rows which another thread needs at the receiver at once (dead letters of
    refused rows) come as a part with a number above 2^62; `settle` then sets the token back.
    """

    name: str
    lasting: bool = True
    """False if rows in the receiver end with the process: exactly once is then used only if the user asks for it."""

    @property
    def address(self) -> str:
        """The place to which the sink writes. Two sinks of one name that write to different places have different addresses."""
        return self.name

    def known(self, track: Track) -> Token | None:
        """Returns the token of the track, or None if the receiver has no token or can return it only after a claim.
        Does not claim the track, so a start that is refused afterwards does not end another process that runs the
        app.

        Called before `claim`. Makes a missing topic, because other tasks may read it before the claim, unless it is
        made with its first row (`WaitsForLetters`). Raises the errors of `open`.
        """
        return None

    @abstractmethod
    def claim(self, track: Track) -> Token | None:
        """Makes the sink ready to deliver. Called in place of `open`, whose errors it raises, and again after each error.

        When it returns, no process that claimed this track before can deliver any more (as far as the receiver can prevent it), and a part
        that such a process was delivering is at the receiver completely or not at all. Returns the receiver's token, or None if no part
        came; a sink that keeps no token returns None, and recognises a repeated part by its number. A later call, before `close`, raises
        AppLocked if another process has claimed the track meanwhile: the earlier process must not take it back.
        """

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows in the form in which `deliver` gets them. Called after `claim`, in place of `write`, whose errors it raises for
        rows that the receiver would refuse. Changes nothing: rows for which it raises become dead letters, if it takes
        a batch without rows.
        """
        return data

    @abstractmethod
    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Writes a part: rows that `fitting` has returned, at most some 64 MiB. When it returns, all rows are at the
        receiver, safe and visible, and none is there twice, however often the part is given (with the same number and
        the same rows).

        `seq`, the number of the part, grows, with gaps. Track, incarnation and number together name a part for ever,
        so a receiver that remembers parts by a key needs all three in the key. Raises TransientError if the part may
        be tried again (after a `claim`, whose token says whether the part arrived), and AppLocked if another process
        has claimed the track. After UserError, DataError, TypeError or ValueError the track is claimed again, and
        `refused_rows` is asked; any other error ends the app. Whatever it raises, the receiver has all rows of the part or none.
        """

    def refused_rows(self, batches: Sequence[pa.RecordBatch]) -> Mapping[int, str]:
        """Returns the rows for which `deliver`, or `write`, has raised UserError, DataError, TypeError or ValueError: the
        reason, by the number of the row in the part. Changes nothing at the receiver. After `deliver` the track is claimed
        before and after it.

        Their dead letters are made safe, and the others are delivered as the part, or written. Without any (the
        default) the error ends the app, and each start fails at this part.
        """
        return {}


class KeepsToken(Delivers):
    """The ability of a sink to store the token at the receiver, in one step with the rows: `claim` then tells which parts have arrived."""

    @property
    def token_place(self) -> str:
        """The path of the file that has the token, for messages; "" if the token is not in a file. Known after `known` or `claim`."""
        return ""

    @abstractmethod
    def settle(self, seq: int) -> None:
        """Sets the token to `seq` without rows: at each start, and once an hour if no part comes, as a receiver may forget old tokens.
        Does nothing if the place of the token is made with the first part. Raises the errors of `deliver`.
        """


class AsksOwner:
    """The ability of a sink to ask whether this process still owns the app, when its receiver reports that another process has claimed the
    track.
    """

    still_ours: Callable[[], bool] | None = None
    """The function that returns True if this process owns the app, or None if nobody can tell. The engine sets it
    before `claim`. The function blocks, is called from the track's thread, and raises TransientError if the owner
    cannot be found out.
    """


class WaitsForLetters:
    """The ability of a sink to make its place, such as a topic, with the first dead letter, because most programs have none."""

    only_letters: bool = False
    """True if the program writes only dead letters to this sink. The engine sets it before `open` or `known`."""


class TakesChanges(ABC):
    """The ability of a sink to keep a table up to date: later rows replace earlier ones, or remove them."""

    @abstractmethod
    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        """Announces changes of a table with these columns. Called before `open` (or `known`), in place of `expect`.

        Batches then have OP_COLUMN (int8) as their last column. After INSERT and UPDATE_AFTER the row is the only one with its values of
        `keys`; after DELETE no row has these values (the other columns are those of the deleted row). No other ops come. A change holds
        until the next change of its key, so writing again from some point on (at least once) ends in the same table, and of several rows
        of a key in one batch only the last one matters. Later, `write` raises UserError for a row with a null in its key. Raises UserError
        for keys that the receiver does not have.
        """


class StartsAfresh(ABC):
    """The ability of a sink to begin empty, and to drop rows that an earlier run left unfinished."""

    @abstractmethod
    def start_afresh(self) -> None:
        """Says that the app starts without a checkpoint. Called before `open` (or `known`). Only after this call rows may be removed
        from the receiver: by the first `write`, `flush` or `finish` after `open`, or the first `settle` or `deliver` after `claim`.
        `open` and `claim` themselves only check, because another sink may refuse the start after that.
        """


class ExpectsColumns(ABC):
    """The ability of a sink to learn its columns before the first row, which a result without rows needs."""

    @abstractmethod
    def expect(self, schema: pa.Schema) -> None:
        """Announces the columns that will come, if the plan knows them. Called before `open` (or `known`)."""

    evolve: bool = False
    """True if the sink adds columns to its receiver that come and that the receiver lacks. Else such columns end the start."""

    def expect_no_more(self, columns: Sequence[str]) -> None:  # noqa: B027  only some receivers replace rows
        """Announces columns that the app has written before a change of its program, and does not write any more. Called
        after `expect` or `expect_changes`, before `open`. A row of the receiver that is written again must not keep its
        values in them, because nothing keeps these up to date.
        """

    def missing_columns(self, schema: pa.Schema) -> Sequence[str] | None:
        """Returns the names of those columns that the receiver lacks; None if there is no receiver yet, or if its columns
        cannot be known. Changes nothing.

        Called by `sabot plan --against`, without `open`. May block. Raises the errors of `open` if the receiver cannot be asked.
        """
        return None

    def misfit(self, schema: pa.Schema) -> str:
        """Returns the reason why the receiver cannot take rows with these columns, such as a column of another type, or
        "". Missing columns are none. Called as `missing_columns`.
        """
        return ""


class ChecksTypes(ABC):
    """The ability of a sink to refuse columns that it can never write, before the app runs."""

    @abstractmethod
    def check_types(self, schema: pa.Schema) -> None:
        """Raises UserError, with sink, column, type and a remedy, for a column that can never be written. Changes nothing in the sink.

        Called before `open` for each stream whose columns the plan knows; for the results of batch agents while the sink is open, from
        another thread.
        """

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        """Returns which floats become null in a column of this type, because the sink's format cannot represent them.
        Called for types with floats. Never blocks.
        """
        return None


class Finishes(ABC):
    """The ability of a sink to complete its result when the input has ended: to write a footer, or to rename a file."""

    @abstractmethod
    def finish(self) -> None:
        """Completes the result after the last row. When it returns, the result is complete and safe, as after
        `flush`. Called in place of the last `flush`. If the app is started again when its inputs have ended, `finish`
        is called again.
        """


_SINK_ABILITIES = (
    Delivers,
    KeepsToken,
    AsksOwner,
    WaitsForLetters,
    TakesChanges,
    StartsAfresh,
    ExpectsColumns,
    ChecksTypes,
    Finishes,
)


# -- abilities that a class does not name -------------------------------------------------------------------------------


@cache
def _members(ability: type) -> list[str]:
    inherited = {name for base in ability.__bases__ for name in dir(base)}
    return [name for name in vars(ability) if not name.startswith("_") and name not in inherited]


def _refuse_members_without_ability(cls: type, kind: str, abilities: Sequence[type]) -> None:
    for ability in abilities:
        if issubclass(cls, ability):
            continue
        for name in _members(ability):
            if hasattr(cls, name):
                raise UserError(
                    f"class {cls.__name__} has {name}, which the engine uses only of a {kind} that names the ability {ability.__name__}",
                    hint=f"class {cls.__name__}({kind}, {ability.__name__}), from sabot.connectors import {ability.__name__}; "
                    f"or another name, if {name} is a helper of your own",
                )


def attributes_without_ability(connector: Source | Sink) -> Iterator[tuple[str, str]]:
    """Yields (attribute, ability) for each attribute of an ability that the object has set although its class does not name the ability."""
    for ability in (*_SOURCE_ABILITIES,) if isinstance(connector, Source) else _SINK_ABILITIES:
        if not isinstance(connector, ability):
            for name in _members(ability):
                if name in vars(connector) and not callable(vars(ability)[name]):
                    yield name, ability.__name__
