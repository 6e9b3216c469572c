"""The contracts of sources and sinks. What is written here, `tests/contracts/` checks for every
implementation.

Both are driven by one owner at a time: a source by its source thread, a sink by the task that writes to it.
Unless said otherwise a method may block, and is called from that one thread. After a crash nothing is called:
a new process opens the source at the positions of the last complete checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot.config import RECORD_BYTES, checked_no_password, checked_text, checked_topic
from sabot.errors import UserError

__all__ = [
    "Delivery",
    "Lane",
    "Positions",
    "Sink",
    "Source",
    "Token",
    "Track",
    "agreed_delivery",
    "check_delivery",
    "check_input",
    "check_sink",
]

Positions = dict[tuple[str, int], int]
"""(topic, partition) -> the next offset to read."""

Delivery = Literal["exactly_once", "at_least_once"] | None
"""How often a result reaches its sink when something crashes; None: exactly once where that can be."""


def check_delivery(delivery: object, where: str) -> None:
    """Raises UserError that begins with `where`."""
    if delivery not in (None, "exactly_once", "at_least_once"):
        raise UserError(f"{where}: delivery={delivery!r}", hint='"exactly_once" or "at_least_once"')


def agreed_delivery(sink: "str | Sink", one: Delivery, other: Delivery) -> Delivery:
    """Of two who write one sink; who says None leaves it to the other. Raises UserError where they differ."""
    if None not in (one, other) and one != other:
        name = sink if isinstance(sink, str) else sink.name
        raise UserError(f"sink {name}: two write it, with different delivery=", hint="give both the same")
    return one or other


def check_input(source: object, where: str, hint: str) -> None:
    """A topic, or a Source, with a name that a checkpoint can hold. Raises UserError that begins with `where`."""
    _check_connector(source, Source, where, hint)


def check_sink(sink: object, where: str, hint: str = '"{topic}.dlq"') -> None:
    """A topic, or a Sink, with a name that a checkpoint can hold. Raises UserError that begins with `where`."""
    _check_connector(sink, Sink, where, hint)


def _check_connector(given: object, kind: "type[Source] | type[Sink]", where: str, hint: str) -> None:
    if isinstance(given, str):
        checked_topic(given, where)
    elif isinstance(given, kind):
        what = f"{where}: the name of its {type(given).__name__}"
        checked_no_password(checked_text(given.name, what), what)
    else:
        raise UserError(f"{where}: {given!r} is no topic and no {kind.__name__}", hint=hint)


class Source(ABC):
    """Where records come from: partitions that can be read again from an offset.

    `name` is the topic (or path) in dead letters, metrics and positions; `bounded`: it ends by itself.
    """

    name: str
    bounded: bool = False
    record_bytes: int = RECORD_BYTES
    """Of records that are not decoded: one above it goes to the dead letters, with its first bytes."""

    def readers(self, count: int) -> "Sequence[Source]":
        """At most `count` sources that share the partitions of this one among them; the same `count` gives the
        same shares.

        Before `open`; each of them is then opened, read and closed by a thread of its own, and this one is not.
        They read close together in event time. Their positions are distinct and may be put together: each takes
        its own out of what `open` is given. Positions made with another number of readers are a UserError that
        says so.
        """
        return [self]

    def scan(self, schema: pa.Schema | None, columns: Sequence[str] | None) -> bool:
        """Before `readers` and `open`: asks for decoded batches of `columns` (None: all) of `schema` (None: what is
        there). May read the beginning of the data.

        True: the source decodes by itself; `schema` says what comes, in the order of `columns`. Rows that do not
        fit are set apart: `Batch.bad` (BAD_SCHEMA) of the next batch has them, and a batch may consist of nothing
        else. False: it gives records, which the engine decodes. Raises UserError for columns that are not there.
        """
        return False

    def infer_schema(self) -> pa.Schema | None:
        """All columns that decoded batches can have, as far as the data tells before it is read; None: unknown
        until records come. Before `open`; raises like `open`.
        """
        return None

    def progress(self) -> tuple[float, float] | None:
        """(done, total) in bytes, of a bounded source that knows; several readers' add up. Never blocks; from any
        thread.
        """
        return None

    @abstractmethod
    def open(self, positions: Positions | None, start: str | int = "earliest") -> None:
        """Ready to read. `positions` are those of the checkpoint being restored: reading goes on there.

        Without positions of its own (None, or none of this source in it) it begins at `start`: "earliest",
        "latest", "committed" (the group's offsets, earliest where there are none) or a timestamp in ms.
        Partitions that `positions` lacks beside others of this source are new since that checkpoint and begin
        at their first record, as do partitions found while running. Raises UserError for a source that does
        not exist, BrokerUnavailable (within 10 s, naming the address) when nobody answers. Restored positions
        that no longer exist (retention) are a UserError that names them, never a silent skip.
        """

    @abstractmethod
    def read_batch(self, max_rows: int, timeout: float) -> Batch | None:
        """The next rows, at most `max_rows`, in order per partition; returns as soon as there are some, None
        after `timeout` seconds.

        The batch's `offsets` cover exactly its rows (and those in its `bad`). Columns: RECORD_SCHEMA, or the
        source's own where records come decoded (`schema` is then set). Faults of the network are waited out inside, and logged;
        raises only what cannot heal.
        """

    @property
    def schema(self) -> pa.Schema | None:
        """The columns of decoded batches; None: RECORD_SCHEMA."""
        return None

    @property
    def log_id(self) -> str:
        """Which log the positions count in: "" where it outlives the process. In another log they mean nothing."""
        return ""

    @property
    def exhausted(self) -> bool:
        """True when a bounded source has given its last row; `read_batch` then returns None at once."""
        return False

    @abstractmethod
    def positions(self) -> Positions:
        """Per known partition, the offset after what `read_batch` returned; goes into the checkpoint."""

    def commit(self, positions: Positions) -> None:  # noqa: B027 - a source without groups has nothing to do
        """Tell the outside world (a consumer group) that a complete checkpoint covers these positions.

        For lag tools only: never read back unless `start="committed"`. Called from the source thread; may
        raise TransientError, which is logged and does not stop the job.
        """

    def lag(self) -> dict[tuple[str, int], int]:
        """Rows not read yet per partition, where known without asking anyone; never blocks; from any thread."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything. Idempotent; also after a failed `open`."""


@dataclass(frozen=True, slots=True)
class Track:
    """Whose parts a sink is given: the key under which it keeps its token.

    job: the app's id. sink: the place of the sink in the program, stable over restarts. incarnation: of the job; new when
    it starts afresh, kept by all that goes on from its checkpoints.
    """

    job: str
    sink: str
    incarnation: str

    @property
    def key(self) -> str:
        """One name for it at the receiver: a group, a row of the table of tokens."""
        return f"sabot.{self.job}.{self.sink}"


Lane = Track
"""The name of `Track` in sinks of users' own. Elsewhere a lane is an agent's."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a receiver knows of a track: the number of the last part that it has, and which incarnation sent it."""

    seq: int
    incarnation: str


class Sink(ABC):
    """Where results go.

    At least once: what was flushed before a barrier is there after a crash, and may be there twice.
    [start_afresh] [expect] open (write | flush)* [finish] close.

    Exactly once, by a sink with `deliver`: the rows of an epoch are saved in its checkpoint, as parts; once the
    checkpoint is complete they are delivered, in order, by a thread that does nothing else.
    [start_afresh] [check_types]* [expect] [known] (claim (deliver | settle)*)* [finish] close.
    """

    name: str
    keeps_token: bool = False
    """`deliver` keeps (seq, incarnation) at the receiver, in one step with the rows, and `claim` reads it back."""
    lasting: bool = True
    """What it holds outlives the process; if not, exactly once has to be asked for."""
    takes_changes: bool = False
    """It can keep a table: `expect_changes`."""
    still_ours: Callable[[], bool] | None = None
    """Set by the engine before `claim`, for a sink that is told that somebody else has taken its track: whether this process still
    owns the job. Blocking; in the track's thread. None: nobody knows.
    """
    sealed: Mapping[str, int] = {}
    """The engine's own, of what stands before a sink that delivers: by track, the last part of what was written before the last flush."""

    def start_afresh(self) -> None:  # noqa: B027 - most sinks add to what is there
        """Before `open`: the job begins, and goes on from no checkpoint. What an earlier run left unfinished is
        then not its own and may be dropped, and a sink that may overwrite begins with nothing. Without this call
        nothing that is there is lost.
        """

    def expect(self, schema: pa.Schema) -> None:  # noqa: B027 - only a format with columns needs them
        """Before `open`, where the plan knows it: the columns that will come. For results without a row."""

    def check_types(self, schema: pa.Schema) -> None:  # noqa: B027 - a sink may take all there are
        """Raises UserError that names sink, column, type, and the way out, for a column that can never be written. Before `open`, for each
        stream that comes in and whose columns the plan knows; for the results of batch agents too, from another thread. Changes nothing.
        """

    def expect_changes(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        """Before `open`, in place of `expect`, of a sink that `takes_changes`: what is written are changes of a table with these columns.

        Batches then have OP_COLUMN (int8) as their last column. INSERT and UPDATE_AFTER: the row is the only one with these values of
        `keys` now; DELETE: there is none (the rest of the row is the old one). Nothing else comes. What is said of a key holds
        until more is said of it, so a repetition from some point on, at least once, ends in the same table, and of the rows of a key in
        one batch the last is enough. A row whose key is null is a UserError. Raises UserError for a sink that keeps no table, and for
        keys that are not the receiver's.
        """
        if not self.takes_changes:
            raise UserError(
                f"sink {self.name} takes rows that are final, not changes of them",
                hint="a topic or a SqlSink takes changes; or write .materialize() (the last state, at the end of the input) "
                "or .changelog() (each change as a row) before .to()",
            )

    @abstractmethod
    def open(self) -> None:
        """Ready to write; makes the topic or file if missing. Raises like Source.open."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Takes the rows, in order. Rows of RECORD_SCHEMA are written as they are (payload, key, headers;
        timestamp null: now; partition, offset ignored); any other schema is encoded as JSON, or as the sink's
        format. May buffer; blocks when its buffer is full.
        """

    @abstractmethod
    def flush(self) -> None:
        """Returns when all that was written is safe at the receiver. Raises when anything was refused, naming
        it.
        """

    def known(self, track: Track) -> Token | None:
        """What the receiver knows of the track, asked before `claim`, and taking nothing from whoever writes into it now: a start that
        is refused must not end a job that runs. None: nothing, or it cannot be told without claiming. A topic that is missing is made
        here: others may want to read it before the claim. Raises like `open`.
        """
        return None

    def claim(self, track: Track) -> Token | None:
        """Ready to deliver, in place of `open`, whose errors it raises. Also after an error: it starts over.

        When it returns no process that claimed this track before can deliver any more (as far as the receiver can keep
        it out), and what that one left half done is gone or finished. Called again before `close` it raises JobLocked
        where another process has claimed the track since: who is late must not take it back. -> what the receiver knows;
        None: no part came. A sink that keeps no token returns None, and knows a part that it is given again by its seq.
        """
        self.open()
        return None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Rows as `write` takes them -> as `deliver` shall get them. After `claim`; in the thread that writes, not the track's.

        Raises for rows that the receiver would refuse, as `write` does: once they are in a checkpoint nobody can take them out.
        """
        return data

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Takes a part: rows that were `fitting`, at most some 64 MiB. When it returns they are at the receiver, safe
        and to be seen, all of them, and none twice however often the part is given (the same seq, the same rows).

        seq grows, with gaps; with the track that was claimed (its incarnation, too) it names the part for ever: what remembers
        parts by a key of its own puts all three into it. Raises TransientError when it may be tried again (`claim` comes
        first, and its token says whether the part got through); JobLocked when another process has claimed the track;
        anything else ends the job. Whatever it raises, the rows are at the receiver all or not at all.
        """
        raise NotImplementedError

    def settle(self, seq: int) -> None:  # noqa: B027 - only a receiver that forgets tokens needs it
        """Sets the token to `seq` without rows: one that the receiver lost or may forget. A sink that keeps tokens."""

    @property
    def address(self) -> str:
        """Where it writes: two sinks of one name that write into different places have different ones."""
        return self.name

    @property
    def delivers(self) -> bool:
        """It can deliver exactly once."""
        return type(self).deliver is not Sink.deliver

    def finish(self) -> None:
        """The input has ended for good and nothing more will be written: the result is complete and safe when this
        returns, as after `flush`. May be called again, by a job that is found to be finished.
        """
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Flushes nothing; lets go of everything. Idempotent. Without `finish` before, the next `open` goes on."""
