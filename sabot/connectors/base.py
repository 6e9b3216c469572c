"""The contracts of sources and sinks: all that a connector may do is on this page.

Every source needs `name`, `open`, `read_batch`, `positions` and `close` (and `schema`, if its rows are columns), every
sink `name`, `open`, `write`, `flush` and `close`. All other members have defaults, which a connector overrides if it
can do better. Both classes have their members in four groups: what moves rows, what a restart needs, what the delivery
of rows needs, and facts about the connector.

An *ability* is a small base class that a connector names beside `Source` or `Sink`, as in `class Numbers(Source,
Bounded)`. There is one only where the engine plans differently for connectors that have it, before it calls any
member: Bounded, TakesBound and Scans of sources, Delivers, KeepsToken and TakesChanges of sinks. The functions at the
end of this page say what holds without them. A connector that has a member of an ability, but does not name the
ability, is refused where it is given to a stream or an agent (`connectors/checks.py`), because the engine would never
call that member.

One thread at a time calls the methods of a connector, but not always the same one: another thread may open it than that
which reads or writes it, and close it, so a client must not be bound to its thread. Rows are read by the thread of a
reader; they are written by the task of the sink, or by the thread that delivers its parts. A method may block unless its
docstring says otherwise.
After a crash no method is called: a new process opens the source at the positions of the last complete checkpoint.
The suites of `sabot.testing.connectors` check these rules, and `sabot init NAME --connector` writes a package with a
source, a sink and these suites.
"""

# ruff: noqa: B027  a default that does nothing is what most connectors need

from abc import ABC, abstractmethod, update_abstractmethods
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypeVar

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.base.config import RECORD_BYTES
from sabot.codecs.base import Format, LostFloats
from sabot.codecs.formats import JSON
from sabot.connectors.places import Bound, Place
from sabot.errors import UserError

__all__ = [
    "MEMORY_BYTES",
    "Bounded",
    "Delivers",
    "Delivery",
    "Guarantee",
    "KeepsToken",
    "LostFloats",
    "OnNan",
    "Positions",
    "Scans",
    "Sink",
    "Source",
    "Stages",
    "TakesBound",
    "TakesChanges",
    "Token",
    "Track",
    "address_of",
    "bound_of",
    "columns_of",
    "ends",
    "exhausted_of",
    "expect_changes",
    "overrides",
    "receiver_of",
    "scan",
    "stands_before",
    "start_of",
    "takes_changes",
]

T = TypeVar("T")

Positions = dict[tuple[str, int], int]
"""The next offset to read, by (topic, partition). The topic is the `name` of the source, or begins with it, because a dict may have the
positions of several sources.
"""

MEMORY_BYTES = 4 << 20
"""The most that a checkpoint keeps of the memory of one reader (`Source.remember`)."""

Delivery = Literal["exactly_once", "at_least_once"] | None
"""The delivery guarantee of a sink. None means exactly once if the sink can do that, else at least once."""

Guarantee = Literal["exactly once", "at least once", "at most once"]
"""How often a row of a source counts in the state and the results of an app that is killed."""

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

    Of the other members a source overrides those that it can do better. Its abilities are Bounded and TakesBound (it ends), and Scans
    (it decodes only the columns that are needed).
    """

    # -- read: readers, leave_headers, recall, open, (read_batch | with_headers | hold)*, close: in this order

    @abstractmethod
    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Makes the source ready to read. `positions` are those of the restored checkpoint, at which reading continues.

        Without positions of this source (None, or a dict that has none of them) reading begins at `start`: "earliest", "latest",
        "committed" (the offsets of the consumer group, or "earliest" if it has none) or a timestamp in ms. If `positions` has only some
        partitions of this source, the others are new since that checkpoint, and begin at their first record, as do partitions that are
        found while the app runs. `offsets_of` and `goes_on_at` (`connectors/places.py`) turn a `start` into offsets and check a position.
        Raises UserError for a source that does not exist, for a `start` that the source does not have, and for a position that no longer
        exists (retention): no record is skipped silently. Raises BrokerUnavailable, within 10 s and with the address, if no broker answers.
        """

    @abstractmethod
    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        """Returns the next rows, at most `max_rows`, in order within each partition, as soon as there is one; None after `timeout` seconds.

        The `offsets` of the batch are those behind its rows, including the rows in its `bad`. Its columns are those of `schema`, or of
        RECORD_SCHEMA. The source waits until faults of the network are over, and logs them; it raises only errors that will not pass.
        """

    @abstractmethod
    def close(self) -> None:
        """Releases all resources. Also called after an `open` that failed, and may be called twice. Until the next `open`,
        `read_batch` raises UserError ("… is not open").
        """

    def readers(self, count: int) -> "Sequence[Source]":
        """Returns at most `count` sources that share the partitions of this one. The same `count` gives the same
        shares. By default there is one reader, the source itself.

        Called before `open`. Each returned source is then opened, read and closed by a thread of its own. This source
        itself is not opened, unless it is the only one returned. The engine keeps the readers at about the same event
        time. Their positions do not overlap, so they fit into one dict. `open` of each source receives the positions
        of all readers, and uses those of its own partitions. `open` raises UserError for positions of another number
        of readers.
        """
        return [self]

    def hold(self, partitions: Set[tuple[str, int]]) -> None:
        """Makes `read_batch` return no rows of `partitions` from now on, and rows of all other partitions. Called
        between two `read_batch`. A source that does not override it refuses `max_drift=`.
        """

    def leave_headers(self) -> None:
        """Allows the source to leave the column `headers` of its records null, because no step reads it. Called
        before `open`. Never blocks.
        """

    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the rows with the headers that the source has left out. `records` are rows of the last batch
        (RECORD_SCHEMA), in any order: those that become dead letters. Called before the next `read_batch`. Never
        blocks.
        """
        return records

    # -- position: what a checkpoint keeps of the source, and how a restart knows the log again

    @abstractmethod
    def positions(self) -> Positions:
        """Returns the offset behind the last row that `read_batch` returned, for each known partition. The checkpoint stores these.

        An offset is a whole number of 64 bits; another one is a UserError at the first barrier. A place of another kind, such as the
        cursor of a service, is kept by `remember`.
        """

    def remember(self) -> Mapping[tuple[str, int], bytes]:
        """Returns what a restart needs beside the positions, by (name, partition): a cursor, or the ids of messages that are under way.

        Asked after `open` and after each batch (also one without rows), so the memory and the positions of a checkpoint are those of one
        moment: return the bytes of the call before where nothing has changed. At most MEMORY_BYTES for each reader. Never blocks.
        """
        return {}

    def recall(self, memory: Mapping[tuple[str, int], bytes]) -> None:
        """Takes what `remember` had returned at the checkpoint, in all readers; {} if that has nothing of this source.

        Called before `open` if that gets the positions of a checkpoint, and only then: an `open` without positions begins anew. Raises
        any error for a memory that it cannot read.
        """

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

    def identity(self) -> str | None:
        """Returns a name of the log that no other log ever has, even if it is made again under the same topic or path; None if there is
        none, or the rows are no records. This name, a partition and an offset name a record, and so a job of a durable agent. Called after
        `open`, and raises as `open` does.
        """
        return None

    app: str = ""
    """The id of the app. The engine sets it before `readers` and `open`, for what a source keeps at its server under a name."""

    # -- delivery: what complete checkpoints let the source publish

    def commit(self, positions: Positions) -> None:
        """Publishes positions that a complete checkpoint covers, such as the offsets of a consumer group, for tools
        that show how far an app is. They are read back only with `start="committed"`: a restart uses those of the
        checkpoint. Called between two `read_batch`. A TransientError is logged and does not stop the app.
        """

    # -- facts

    name: str
    """The name in positions, metrics and dead letters: the topic, or the path. A checkpoint finds the source again by its name."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the batches, for a source that decodes its rows itself; None for a source whose batches have
        RECORD_SCHEMA, which the engine decodes. If a decoding source does not have the ability Scans, these are all
        of its columns, and the engine drops those that no step uses.
        """
        return None

    @property
    def keys(self) -> Sequence[str]:
        """The columns of the key of a source whose batches are changes of a table; () for a source of rows. The batches then have
        `__op` (int8) as their last column, behind those of `schema`: 0 and 2 add the row or replace that of its key, 3 removes it, and has
        only the key. `app.table` takes such a source, and `app.stream` if all ops are 0. May block, and raises as `open` does.
        """
        return ()

    guarantee: Guarantee = "exactly once"
    """How often a row counts across a crash: "exactly once" if the log can be read again from a position, "at least once" if some rows may
    come again and nothing tells which, "at most once" if the log keeps nothing that was sent while the app is down. `sabot connectors`
    shows that of the class, the plan and the log of a start that of the object.
    """

    record_bytes: int = RECORD_BYTES
    """The largest size of a record that is decoded, in bytes. A larger record becomes a dead letter with its first bytes."""

    def lag(self) -> dict[tuple[str, int], int]:
        """Returns the number of unread rows of each partition for which it is known: for metrics, and to know which
        partitions are idle. Never blocks; called from any thread, also before `open` and after `close`.
        """
        return {}

    lag_unit: str = "rows"
    """What `lag` counts: "rows", or "bytes" if the number of rows is not known, as for files."""

    def backlog(self) -> int | None:
        """Returns an upper bound of the number of records that were there at `open` and are not read yet: 0 if all
        have been read, and None if it is not known. An endless source that does not override it cannot be read first
        (`app.table(first=True)`). Never blocks; called from any thread.
        """
        return None

    def progress(self) -> tuple[float, float] | None:
        """Returns (bytes read, bytes in all) for the progress bar of a run, or None before `open` and for a source
        that cannot tell. The figures of several readers add up. Never blocks; called from any thread.
        """
        return None

    def figures(self) -> Mapping[str, int | float | str]:
        """Returns more figures for `App.statistics`, by name, such as what a server keeps for the source. Never blocks; called from any
        thread.
        """
        return {}

    def as_sink(self) -> "Sink | None":
        """Returns the sink that writes to the same place, for `to(source)`; None if there is none. Called when the
        program is built. Raises UserError if rows cannot be written to this place.
        """
        return None


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


class Scans(ABC):
    """The ability of a source to decode its rows itself, and to leave out columns that no step of the stream uses."""

    has_records: bool = True
    """True if the source returns undecoded records unless `scan` is called. False if its rows are always columns."""

    guessed: Collection[str] = ()
    """The columns of the `schema` that `scan` gets whose types were inferred, and not declared. In them a value that reads as another one
    of the type, as 01234 reads as 1234, is one that does not fit. Set before `scan` is called.
    """

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

    def with_fields(self, fields: Mapping[str, str]) -> "Source":
        """Returns the source with further columns that say where each row is from, such as {"source": "file.path"}; a schema that
        `scan` gets has them too. Raises UserError if the rows have no such fields, as here. Called before all other methods.
        """
        raise UserError(
            f"stream: fields= are for records, and the rows of this source have no {next(iter(fields.values()))!r}",
            hint="a topic has records, and rows of files have file.path",
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

    Of the other members a sink overrides those that it can do better. Its abilities are Delivers and KeepsToken (exactly once), and
    TakesChanges (it keeps a table up to date).
    """

    # -- write: the order of the calls is above

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

    def finish(self) -> None:
        """Completes the result after the last row: writes a footer, or renames a file. When it returns, the result is
        complete and safe, as after `flush`. Called in place of the last `flush`. If the app is started again when its
        inputs have ended, `finish` is called again.
        """
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Releases all resources without flushing. May be called twice. If `finish` was not called before, the next `open` continues.
        `write` and `flush` raise UserError ("… is not open") until then, and so does `deliver` until the next `claim`.
        """

    # -- position: where the output begins

    def start_afresh(self) -> None:
        """Says that the app starts without a checkpoint, so that the sink may begin empty and drop what an earlier
        run left unfinished. Called before `open` (or `known`). Only after this call rows may be removed from the
        receiver: by the first `write`, `flush` or `finish` after `open`, or the first `settle` or `deliver` after
        `claim`. `open` and `claim` themselves only check, because another sink may refuse the start after that.
        """

    # -- delivery: what the engine sets

    still_ours: Callable[[], bool] | None = None
    """The function that returns True if this process owns the app, or None if nobody can tell. The engine sets it
    before `claim`. The function blocks, is called from the track's thread, and raises TransientError if the owner
    cannot be found out.
    """

    only_letters: bool = False
    """True if the program writes only dead letters to this sink. The engine sets it before `open` or `known`."""

    # -- facts: the names, and the columns

    name: str
    """The name in metrics and messages: the topic, the path or the table. A checkpoint finds the sink again by its name."""

    format: Format | None = JSON
    """The format in which rows become records, for a sink of records, and for rows with a `key=`. None for a sink that
    stores columns, which has no place for the key of a record: `to(…, key=)` is then refused.
    """

    evolve: bool = False
    """True if the sink adds columns to its receiver that come and that the receiver lacks. Else such columns end the start."""

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

    def expect(self, schema: pa.Schema) -> None:
        """Announces the columns that will come, if the plan knows them: a result without rows needs them. Called
        before `open` (or `known`). If a sink overrides it, the checkpoints keep which columns the app has written.
        """

    def expect_no_more(self, columns: Sequence[str]) -> None:
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
    whole: bool = True
    """False if a crash may leave a prefix of a part visible, which a later `deliver` of the part completes: for a receiver
    without transactions of that size. Such a sink refuses rows in `fitting` only, as the rows of a part keep their numbers, or takes
    the other rows of the part, when they come without those that were refused, for those that it has.
    """
    repeats: str = ""
    """The reason why a crash, or an answer that is lost, may repeat rows of a part, for people; "" if the receiver recognises parts. The
    sink then writes at least once, but in the parts of complete checkpoints: only what was under way is written twice.
    """

    @property
    def address(self) -> str:
        """The place to which the sink writes. Two sinks of one name that write to different places have different addresses."""
        return self.name

    def known(self, track: Track) -> Token | None:
        """Returns the token of the track, or None if the receiver has no token or can return it only after a claim.
        Does not claim the track, so a start that is refused afterwards does not end another process that runs the
        app.

        Called before `claim`. Makes a missing topic, because other tasks may read it before the claim, unless it is
        made with its first row (`Sink.only_letters`). Raises the errors of `open`.
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
        `refused_rows` is asked; any other error ends the app. Whatever it raises, the receiver has all rows of the part or none (or
        its first rows, if the sink is not `whole`).
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
    """The ability of a sink to store the token at the receiver, in one step with the rows: `claim` then tells which parts have arrived.

    The receiver has a token for each `Track.key`, because several apps, and several sinks of an app, may write to one receiver. `deliver`
    does nothing with a part whose number the token of the same incarnation has reached. The first claim of a track returns None.
    """

    gather_s: float = 0.0
    """The seconds between two deliveries. Parts of complete checkpoints that wait meanwhile are delivered as one part, of at most some
    256 MiB, under the number of the last one: for a receiver that makes a file or a commit of each part. Parts are not gathered for a
    sink that is not `whole`.
    """

    @property
    def token_place(self) -> str:
        """The path of the file that has the token, for messages; "" if the token is not in a file. Known after `known` or `claim`."""
        return ""

    @abstractmethod
    def settle(self, seq: int) -> None:
        """Sets the token to `seq` without rows: at each start, and once an hour if no part comes, as a receiver may forget old tokens.
        Does nothing if the place of the token is made with the first part. Raises the errors of `deliver`.
        """


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
        if isinstance(self.receiver, Delivers):
            self.receiver.fitting(data)

    def letters_to(self, write: Callable[[pa.RecordBatch], None], origin: Mapping[str, str]) -> None:
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


# -- faces ------------------------------------------------------------------------------------------------------------


def stands_before(attribute: str) -> Callable[[type[T]], type[T]]:
    """Returns a decorator for the class of a *face*: a connector for code of users, such as `KafkaSource`, which has another
    connector behind it, in `attribute`. Each member of the contract that the class does not define itself is that of the
    connector behind it, also a member that the contract gets later. A class that derives from the face may override it.

    Streams read what `readers` returns: the source behind the face, whose batches then do not pass through it.
    """

    def passed(name: str, default: Any) -> Any:
        if not callable(default):  # an attribute or a property
            return property(
                lambda self: getattr(getattr(self, attribute), name),
                lambda self, value: setattr(getattr(self, attribute), name, value),
            )

        @wraps(default)
        def call(self: Any, *args: Any, **named: Any) -> Any:
            return getattr(getattr(self, attribute), name)(*args, **named)

        call.passes_to = attribute  # type: ignore[attr-defined]
        vars(call).pop("__isabstractmethod__", None)  # which `wraps` copies
        return call

    def face(cls: type[T]) -> type[T]:
        for contract in (base for base in cls.__mro__ if base.__module__ == __name__):
            for name, default in list(vars(contract).items()):
                if name[0] != "_" and name not in vars(cls):
                    setattr(cls, name, passed(name, default))
        return update_abstractmethods(cls)

    return face


# -- what holds without an ability ------------------------------------------------------------------------------------


def overrides(connector: Source | Sink, member: str) -> bool:
    """Returns True if the connector has a method of its own in place of the default."""
    own = getattr(type(connector), member)
    if (behind := getattr(own, "passes_to", None)) is not None:  # a face, which passes all on
        return overrides(getattr(connector, behind), member)
    return own is not getattr(Source if isinstance(connector, Source) else Sink, member)


def ends(source: Source) -> bool:
    """Returns True if the source ends by itself, or at a bound."""
    return isinstance(source, Bounded) and source.bounded


def exhausted_of(source: Source) -> Callable[[], bool]:
    """Returns a function that returns True if the source has given its last row."""
    return (lambda: source.exhausted) if isinstance(source, Bounded) else (lambda: False)


def bound_of(source: Source) -> Bound | None:
    """Returns the place at which the source ends although its log continues, or None."""
    return source.bound if isinstance(source, TakesBound) else None


def start_of(source: Source, start: Place) -> Place:
    """Returns the place at which reading begins without a checkpoint: `start`, or "earliest" for a source that ends by
    itself, such as files and rows in memory. `start=` of an app is meant for its topics.
    """
    return "earliest" if isinstance(source, Bounded) and not isinstance(source, TakesBound) else start


def scan(
    source: Source, schema: pa.Schema | None, columns: Sequence[str] | None, guessed: Collection[str] = ()
) -> bool:
    """Asks the source for decoded columns, as `Scans.scan`; `guessed`: as in Scans.

    For a source without that ability, returns True if it has a schema of its own; then all its columns come. Raises
    UserError if such a source lacks a column of `schema`, or has it with another type.
    """
    if isinstance(source, Scans):
        if guessed:
            source.guessed = guessed
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


def columns_of(source: Source) -> pa.Schema | None:
    """Returns all columns that decoded batches can have, as `Scans.infer_schema`, or the schema of the source."""
    return source.infer_schema() if isinstance(source, Scans) else source.schema


def receiver_of(sink: Sink) -> Sink:
    """Returns the sink whose members the engine asks for facts: the receiver of a StagedSink, or `sink` itself."""
    return sink.receiver if isinstance(sink, Stages) else sink


def address_of(sink: Sink) -> str:
    """Returns the place to which the sink writes: its name, or as `Delivers.address`."""
    return sink.address if isinstance(sink, Delivers) else sink.name


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
