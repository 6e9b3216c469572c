"""The contracts of sources and sinks. `tests/contracts/` checks them for every implementation.

One thread at a time calls the methods: those of a source its reader's thread, those of a sink the task that writes to it. Unless a
docstring says otherwise a method may block. After a crash nothing is called: a new process opens the source at the positions of the
last complete checkpoint.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.codecs.base import Format, LostFloats
from sabot.codecs.formats import JSON
from sabot.config import RECORD_BYTES, checked_no_password, checked_text, checked_topic
from sabot.connectors.places import Bound, Place
from sabot.errors import UserError

__all__ = [
    "Delivery",
    "LostFloats",
    "OnNan",
    "Positions",
    "Sink",
    "Source",
    "Token",
    "Track",
    "agreed_delivery",
    "check_delivery",
    "check_ends",
    "check_input",
    "check_nan",
    "check_sink",
    "sink_of",
    "up_to",
]

Positions = dict[tuple[str, int], int]
"""(topic, partition) -> the next offset to read."""

Delivery = Literal["exactly_once", "at_least_once"] | None
"""How often a result reaches its sink when something crashes. None: exactly once where that is possible."""

OnNan = Literal["null", "fail"] | None
"""What becomes of floats that a sink's format has no form for. "fail": the app stops. None: null, with a warning."""


def check_nan(nan: object, where: str) -> None:
    """Raises a UserError, whose text begins with `where`, for anything but an OnNan."""
    if nan not in (None, "null", "fail"):
        raise UserError(f"{where}: nan={nan!r}", hint='"null" or "fail"; left out: null, with a warning')


def check_delivery(delivery: object, where: str) -> None:
    """Raises a UserError, whose text begins with `where`, for anything but a Delivery."""
    if delivery not in (None, "exactly_once", "at_least_once"):
        raise UserError(f"{where}: delivery={delivery!r}", hint='"exactly_once" or "at_least_once"')


def agreed_delivery(sink: "str | Sink", one: Delivery, other: Delivery) -> Delivery:
    """The delivery of a sink that two streams or agents write. None leaves it to the other. Raises UserError where the two differ."""
    if None not in (one, other) and one != other:
        name = sink if isinstance(sink, str) else sink.name
        raise UserError(f"sink {name}: two write it, with different delivery=", hint="give both the same")
    return one or other


def check_input(source: object, where: str, hint: str) -> None:
    """A topic, or a Source, with a name that a checkpoint can hold. Raises UserError that begins with `where`."""
    _check_connector(source, Source, where, hint)


def check_ends(source: "str | Source", where: str) -> None:
    """Raises UserError, whose text begins with `where`, for a source that `until=` cannot be said of."""
    if isinstance(source, Source) and type(source).end_at is Source.end_at:
        raise UserError(
            f"{where}: until= is of topics, and {source.name} is none", hint="leave it out, and filter by a column"
        )


def up_to(source: "Source", until: Place | None) -> "Source":
    """The source, which ends at this bound; None: where it ends by itself, if it does. Raises UserError as `Source.end_at`."""
    if until is not None:
        source.end_at(Bound(until))
    return source


def sink_of(given: object, where: str) -> Any:
    """Where rows go that are to go to `given`: for a Source it is the Sink that writes there. UserError begins with `where`."""
    if not isinstance(given, Source):
        return given
    made = given.as_sink()
    if made is None:
        raise UserError(
            f"{where}: {given!r} is no topic and no Sink", hint='"topic", or a Sink: ParquetSink("out.parquet")'
        )
    return made


def check_sink(sink: object, where: str, hint: str = '"{topic}.dlq"') -> None:
    """A topic, or a Sink, with a name that a checkpoint can hold. Raises UserError that begins with `where`."""
    _check_connector(sink, Sink, where, hint)


def _check_connector(given: object, kind: "type[Source] | type[Sink]", where: str, hint: str) -> None:
    if isinstance(given, str):
        _check_no_file(checked_topic(given, where), where, kind)
    elif isinstance(given, kind):
        what = f"{where}: the name of its {type(given).__name__}"
        checked_no_password(checked_text(given.name, what), what)
    else:
        raise UserError(f"{where}: {given!r} is no topic and no {kind.__name__}", hint=hint)


_FILE = re.compile(r".+\.(ndjson|jsonl?|[ct]sv|parquet|pq|arrows?|ipc|feather)(\.(gz|zstd?))?", re.IGNORECASE)
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://.*", re.DOTALL)
_FILE_SINKS = {"n": "NdjsonSink", "j": "NdjsonSink", "c": "CsvSink", "t": "CsvSink", "p": "ParquetSink"}


def _check_no_file(topic: str, where: str, kind: "type[Source] | type[Sink]") -> None:
    """Refuses the name of a file or an address: a topic of that name would be read or made, and nobody would look there."""
    if (address := _ADDRESS.fullmatch(topic)) is not None:
        of_database = address[1] in ("sqlite", "postgres", "postgresql") and kind is Sink
        of_broker = address[1] in ("memory", "kafka")
        place = f"files({topic!r})" if kind is Source else f'files({topic!r}, "parquet")'
        hint = f'SqlSink({topic!r}, table="…")' if of_database else "App(broker=…) takes it" if of_broker else place
        raise UserError(f"{where}: {topic!r} is an address, and a text is the name of a topic", hint=hint)
    if (file := _FILE.fullmatch(topic)) is not None:
        made = "files" if kind is Source else _FILE_SINKS.get(file[1][0].lower(), "ArrowSink")
        raise UserError(
            f"{where}: {topic!r} is the name of a file, and a text is the name of a topic",
            hint=f"{made}({topic!r}); a topic that is called so: sabot.kafka.Kafka{kind.__name__}({topic!r}, broker)",
        )


class Source(ABC):
    """A source of records: partitions that can be read again from an offset.

    name: the topic (or path) in dead letters, metrics and positions. bounded: whether the input ends by itself.
    """

    name: str
    bounded: bool = False
    has_records: bool = True
    """It gives records until `scan` asks for columns, or says a `schema` of its own. False: its rows are columns, and `scan` says which."""
    record_bytes: int = RECORD_BYTES
    """The greatest size of a record that is not decoded, in bytes. A larger one goes to the dead letters, with its first bytes."""
    bound: Bound | None = None
    """Where this source ends although its log goes on, as `end_at` was told; None: nowhere. `open` makes offsets of it."""

    def readers(self, count: int) -> "Sequence[Source]":
        """Returns at most `count` sources that share the partitions of this one. The same `count` gives the same shares.

        Called before `open`. Each returned source is then opened, read and closed by a thread of its own, and this one is not. They read
        at about the same event time. Their positions do not overlap, so they may be put into one dict; `open` is given all of them, and
        each source takes its own. Positions made with another number of readers are a UserError that says so.
        """
        return [self]

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        """Asks for decoded batches of `columns` (None: all) of `schema` (None: the columns of the data). Called before `readers` and
        `open`. May read the beginning of the data. Raises UserError for columns that the data does not have.

        True: the source decodes by itself, and its property `schema` says which columns come, in the order of `columns`. Rows that do not
        fit are set apart: the next batch has them in `Batch.bad` (BAD_SCHEMA), and may have no other rows. False: the source gives
        records, which the engine decodes.

        A source that overrides only `schema` gives all its columns: the engine takes those that it asked for.
        """
        own = self.schema
        if own is None:
            return False
        for field in schema or ():
            if field.name not in own.names:
                raise UserError(f"source {self.name} has no column {field.name}", hint=f"it has {', '.join(own.names)}")
            if (kind := own.field(field.name).type) != field.type:
                raise UserError(
                    f"source {self.name}: {field.name} is {kind}, and schema= of the stream says {field.type}",
                    hint=f'leave schema= out, and cast: .with_columns({field.name}=col("{field.name}").cast(…))',
                )
        return True

    def infer_schema(self) -> pa.Schema | None:
        """All columns that decoded batches can have. None: they are not known before records come. Called before `open`, and raises the
        same errors.
        """
        return self.schema

    def progress(self) -> tuple[float, float] | None:
        """(done, total) in bytes, of a bounded source that knows them. The figures of several readers add up. Never blocks; callable from
        any thread.
        """
        return None

    def end_at(self, bound: Bound) -> None:
        """Makes an endless source one that ends at the bound: it gives the records before it, and is then exhausted. Called before
        `readers` and `open`. Only topics can: of another source it raises UserError.
        """
        check_ends(self, "end_at")

    def leave_headers(self) -> None:  # noqa: B027 - a source for which it saves nothing goes on giving them
        """Asks for records whose column `headers` is null, because nobody looks at them. Called before `open`."""

    def with_headers(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Rows of the last batch (RECORD_SCHEMA), in any order, with the headers that `leave_headers` left out. Called from the source's
        thread, before the next `read_batch`.
        """
        return records

    @abstractmethod
    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Makes the source ready to read. `positions` are those of the restored checkpoint, at which reading goes on.

        Without positions of this source (None, or a dict that has none of them) it begins at `start`: "earliest", "latest", "committed"
        (the offsets of the group, "earliest" where it has none) or a timestamp in ms. Where `positions` has some partitions of this
        source, the others are new since that checkpoint: they begin at their first record, as do partitions that are found while running.
        Raises UserError for a source that does not exist, and BrokerUnavailable (within 10 s, with the address) when no broker answers.
        A restored position that no longer exists (retention) is a UserError that names it; no record is skipped silently.
        """

    @abstractmethod
    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        """Returns the next rows, at most `max_rows`, in order per partition, as soon as there are some. None after `timeout` seconds.

        The batch's `offsets` cover exactly its rows (and those in its `bad`). Its columns are RECORD_SCHEMA, or those of the property
        `schema` where the source decodes. The source itself waits until faults of the network are over, and logs them; it raises only
        errors that will not pass.
        """

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of the batches of a source that decodes. None: batches have RECORD_SCHEMA."""
        return None

    @property
    def log_id(self) -> str:
        """The id of the log whose offsets the positions are. "": the log outlives the process. In another log the positions are void."""
        return ""

    def topic_id(self) -> str:
        """The id that the broker gave the topic when it was made; "": it gives none. A checkpoint keeps it beside the positions, which mean
        nothing in a topic with another id. Does not change until `close`. May block, and raises as `open` does.
        """
        return ""

    def identity(self) -> str | None:
        """Names the log whose records this source gives, for ever: no other log has this name, also none that is made anew under the same
        topic or path. With partition and offset it names a record, so the jobs of durable agents are called by it. None: the source cannot
        say, or its rows are no records. Called after `open`; may block, and raises as `open` does.
        """
        return None

    @property
    def exhausted(self) -> bool:
        """Whether a bounded source has given its last row. `read_batch` then returns None at once."""
        return False

    @abstractmethod
    def positions(self) -> Positions:
        """For each known partition, the offset behind the last row that `read_batch` returned. These go into the checkpoint."""

    def commit(self, positions: Positions) -> None:  # noqa: B027 - a source without groups has nothing to do
        """Tells the outside world (a consumer group) that a complete checkpoint covers these positions.

        They are for tools that show the lag, and are read back only with `start="committed"`. Called from the source's thread. May raise
        TransientError, which is logged and does not stop the app.
        """

    def lag(self) -> dict[tuple[str, int], int]:
        """The number of rows not read yet, for each partition for which the source knows it. Never blocks; callable from any thread."""
        return {}

    def hold(self, partitions: Set[tuple[str, int]]) -> None:  # noqa: B027 - a source may be held only as a whole
        """Asks for no rows of these partitions from now on, and for those of all others. A source that cannot leave some of its partitions
        out ignores it. Called from the source's thread, between calls of `read_batch`.
        """

    def backlog(self) -> int | None:
        """The number of records, at most, that were there at `open` and have not been read yet; 0: all have. A source without an end that
        says so may be read before the streams that wait for it (`app.table(first=)`). None: it cannot say. Never blocks; callable from any
        thread.
        """
        return None

    def as_sink(self) -> "Sink | None":
        """The Sink that writes where this source reads, for `to(files("s3://…"))`; None: none does. May raise UserError."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Releases all resources. Idempotent. Also called after an `open` that failed."""


@dataclass(frozen=True, slots=True)
class Track:
    """The source of the parts that a sink is given, and so the key of its token.

    app: the app's id. sink: the place of the sink in the program, the same in each run. incarnation: of the app; an app that starts afresh
    gets a new one, and every start from its checkpoints keeps it.
    """

    app: str
    sink: str
    incarnation: str

    @property
    def key(self) -> str:
        """The name of the track at the receiver: of a consumer group, or of a row in the table of tokens."""
        return f"sabot.{self.app}.{self.sink}"


@dataclass(frozen=True, slots=True)
class Token:
    """What a receiver knows of a track: the number of the last part that it has, and the incarnation that sent the part."""

    seq: int
    incarnation: str


class Sink(ABC):
    """A receiver of results.

    At least once: rows that were flushed before a barrier are at the receiver after a crash, possibly twice. Order of calls:
    [start_afresh] [expect] open (write | flush)* [finish] close.

    Exactly once, for a sink that has `deliver`: the rows of an epoch are saved in its checkpoint, as parts. When the checkpoint is
    complete, a thread of the sink's track delivers the parts, in order. Order of calls:
    [start_afresh] [check_types]* [expect] [known] (claim (deliver | settle)*)* [finish] close.
    """

    name: str
    keeps_token: bool = False
    """`deliver` keeps (seq, incarnation) at the receiver, in one step with the rows, and `claim` reads it back."""
    token_place: str = ""
    """Where the token is, if that is a file beside the output, for messages; known after `known` or `claim`."""
    lasting: bool = True
    """The rows in it outlive the process. Where they do not, exactly once is used only if the user asks for it."""
    takes_changes: bool = False
    """It can keep a table up to date by changes (see `expect_changes`)."""
    format: Format = JSON
    """What rows become where they are written as records."""
    still_ours: Callable[[], bool] | None = None
    """Whether this process still owns the app. The engine sets it before `claim`; a sink asks it when its receiver reports that somebody
    else has claimed the track. Blocks; called from the track's thread. None: nobody knows.
    """
    sealed: Mapping[str, int] = {}
    """Only set by the engine's StagedSink: by track id, the number of the last part that was complete at the last flush."""

    def start_afresh(self) -> None:  # noqa: B027 - most sinks add to what is there
        """Tells, before `open`, that the app starts without a checkpoint. Rows that an earlier run has left unfinished do not belong to it
        and may be dropped, and a sink that may overwrite begins empty. Without this call nothing at the receiver is lost.
        """

    def expect(self, schema: pa.Schema) -> None:  # noqa: B027 - only a format with columns needs them
        """Tells, before `open`, the columns that will come, where the plan knows them: a result without rows needs them."""

    def check_types(self, schema: pa.Schema) -> None:  # noqa: B027 - a sink may take all there are
        """Raises a UserError, with sink, column, type and what to do, for a column that can never be written. Changes nothing.

        Called before `open` for each stream whose columns the plan knows, and for the results of batch agents, from another thread.
        """

    def floats_lost(self, kind: pa.DataType) -> LostFloats:
        """Which floats become null in a column of this type, because the format has no form for them. Called for types with floats."""
        return None

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        """Tells, before `open` and in place of `expect`, that changes of a table with these columns will be written.

        Batches then have OP_COLUMN (int8) as their last column. After INSERT and UPDATE_AFTER the row is the only one with its values of
        `keys`; after DELETE no row has them (the other columns are those of the deleted row). No other operations come. A change holds
        until the next change of its key, so writing again from some point on (at least once) ends in the same table, and of several rows
        of a key in one batch only the last matters. A row with a null in its key is a UserError. Raises UserError for a sink that keeps
        no table, and for keys that the receiver does not have.
        """
        if not self.takes_changes:
            raise UserError(
                f"sink {self.name} takes rows that are final, not changes of them",
                hint="a topic or a SqlSink takes changes; or write .materialize() (the last state, at the end of the input) "
                "or .changelog() (each change as a row) before .to()",
            )

    @abstractmethod
    def open(self) -> None:
        """Makes the sink ready to write, and makes the topic or file if it is missing. Raises the errors of Source.open."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Takes the rows, in order. Rows of RECORD_SCHEMA are written as they are (payload, key, headers;
        timestamp null: now; partition, offset ignored); any other schema is encoded in the sink's `format`, or in that of its
        files. May buffer; blocks when its buffer is full.
        """

    @abstractmethod
    def flush(self) -> None:
        """Returns when all written rows are safe at the receiver. Raises when some were refused, and names them."""

    def known(self, track: Track) -> Token | None:
        """What the receiver knows of the track, without claiming it: a start that is refused must not end an app that runs.

        Called before `claim`. None: the receiver knows nothing, or cannot tell without a claim. A missing topic is made here, since other
        tasks may want to read it before the claim. Raises the errors of `open`.
        """
        return None

    def claim(self, track: Track) -> Token | None:
        """Makes the sink ready to deliver. Called in place of `open`, whose errors it raises, and again after each error.

        When it returns, no process that claimed this track before can deliver any more (as far as the receiver can prevent it), and a part
        that such a process was delivering is at the receiver completely or not at all. A later call, before `close`, raises AppLocked
        where another process has claimed the track in the meantime: the earlier process must not take it back. Returns what the receiver
        knows, or None where no part came. A sink that keeps no token returns None, and recognises a repeated part by its seq.
        """
        self.open()
        return None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Turns rows as `write` takes them into rows as `deliver` gets them. Called after `claim`, in the thread that writes.

        Raises, as `write` does, for rows that the receiver would refuse: once they are in a checkpoint nobody can take them out.
        """
        return data

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Takes a part: rows that `fitting` has returned, at most some 64 MiB. When it returns, all of them are at the receiver, safe and
        visible, and none is there twice, however often the part is given (with the same seq and the same rows).

        seq grows, with gaps. Track, incarnation and seq together name a part for ever, so a receiver that remembers parts by a key needs
        all three in it. Raises TransientError when the part may be tried again (after a `claim`, whose token says whether it arrived), and
        AppLocked when another process has claimed the track; any other error ends the app. Whatever it raises, the receiver has all rows
        of the part or none.
        """
        raise NotImplementedError

    def settle(self, seq: int) -> None:  # noqa: B027 - only a receiver that forgets tokens needs it
        """Sets the token to `seq` without rows, for a token that the receiver lost or may forget. Only called where `keeps_token`."""

    @property
    def address(self) -> str:
        """The place into which the sink writes. Two sinks of one name that write into different places have different addresses."""
        return self.name

    @property
    def delivers(self) -> bool:
        """Whether the sink can deliver exactly once."""
        return type(self).deliver is not Sink.deliver

    def finish(self) -> None:
        """Completes the result: the input has ended for good, and no more rows will be written. When it returns, the result is complete
        and safe, as after `flush`. May be called again, by an app that turns out to be finished.
        """
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Releases all resources without flushing. Idempotent. Where `finish` was not called before, the next `open` goes on."""
