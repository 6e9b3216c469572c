"""The contracts of sources and sinks. What is written here, `tests/contracts/` checks for every
implementation.

Both are driven by one owner at a time: a source by its source thread, a sink by the task that writes to it.
Unless said otherwise a method may block, and is called from that one thread. After a crash nothing is called:
a new process opens the source at the positions of the last complete checkpoint.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sabot._cython.batch import Batch, normalise
from sabot._cython.json import NESTING_MAX, encode_rows, is_too_deep
from sabot._cython.rows import binary_array, bytes_list
from sabot.codecs.marks import DELETE, OP_COLUMN
from sabot.config import RECORD_BYTES, checked_no_password, checked_text, checked_topic
from sabot.errors import UNREADABLE, DataError, UserError
from sabot.redaction import scrubbed

__all__ = [
    "BAD_SCHEMA",
    "HEAD_BYTES",
    "RECORD_SCHEMA",
    "Delivery",
    "Headers",
    "Lane",
    "Positions",
    "Record",
    "Sink",
    "Source",
    "Token",
    "above",
    "bounded",
    "build_records",
    "carries_changes",
    "change_records",
    "check_delivery",
    "check_keys",
    "dead_letter_headers",
    "decode_json",
    "empty_batch",
    "encode_json",
    "encode_key",
    "header_rows",
    "iterate_records",
    "json_records",
    "record_keys",
    "refuse_json_types",
    "refuse_types",
    "to_records",
]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

Positions = dict[tuple[str, int], int]
"""(topic, partition) -> the next offset to read."""

_HEADERS: Any = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))

RECORD_SCHEMA = pa.schema(
    [
        ("payload", pa.binary()),
        ("key", pa.binary()),
        ("timestamp", pa.int64()),  # ms, UTC
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("headers", _HEADERS),  # null: none
    ]
)
"""The columns of a batch of records that are not decoded yet; its topic stands on the Batch."""

BAD_SCHEMA = RECORD_SCHEMA.append(pa.field("reason", pa.string()))
"""Records that a decoding source set apart (`Batch.bad`): as they came, and why."""

HEAD_BYTES = 1024
"""So much of a record above its bound is kept, for its dead letter."""

Headers = tuple[tuple[str, bytes], ...]

Delivery = Literal["exactly_once", "at_least_once"] | None
"""How often a result reaches its sink when something crashes; None: exactly once where that can be."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the broker has it. `payload` None is a tombstone; `timestamp` is ms since 1970 UTC."""

    payload: bytes | None
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...] = field(default=())
    timestamp: int = 0
    topic: str = ""
    partition: int = 0
    offset: int = 0

    @property
    def value(self) -> Any:
        """The payload decoded as JSON; raises DataError naming topic, partition and offset."""
        return decode_json(self.payload, where=f"{self.topic}[{self.partition}]@{self.offset}")


def decode_json(payload: bytes | None, *, where: str) -> Any:
    """What `json.loads` gives for this payload, faster. Raises DataError that begins with `where`, also for one that is nested
    deeper than NESTING_MAX, whatever the interpreter's stack would still take: code that goes through its value has room then.
    """
    if payload is None:
        raise DataError(f"{where}: the payload is null", hint="a tombstone has no JSON value")
    if is_too_deep(payload):
        raise DataError(f"{where}: the payload is nested deeper than {NESTING_MAX}")
    try:
        return _decode(payload)
    except UNREADABLE:
        pass  # NaN, 1e400 and lone surrogates are fine with json.loads
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the payload is not JSON: {error}") from error


def encode_json(value: Any) -> bytes:
    """The value as compact JSON; raises UserError for what JSON cannot say. `decode_json` gives it back."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()  # lone surrogates, as escapes
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"a {type(value).__name__} cannot be written as JSON: {error}") from error


def encode_key(key: Any) -> bytes | None:
    """The key of a record: None and bytes as they are, a string as UTF-8, anything else as JSON."""
    if key is None or isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else encode_json(key)


def build_records(
    payloads: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None,
    timestamps: Any,
    partitions: Any,
    offsets: Any,
    headers: Sequence[Headers] | None = None,
) -> pa.RecordBatch:
    """Lists of records -> RECORD_SCHEMA. `timestamps`, `partitions` and `offsets` are anything numpy reads as
    integers; one partition for all rows may be a plain number.

    None for `keys` or `headers` says that no record has any.
    """
    rows = len(payloads)
    columns = [
        binary_array(payloads),
        pa.nulls(rows, pa.binary()) if keys is None else binary_array(keys),
        pa.array(np.asarray(timestamps, dtype=np.int64)),
        pa.array(np.full(rows, partitions, dtype=np.int32)),
        pa.array(np.asarray(offsets, dtype=np.int64)),
        pa.nulls(rows, _HEADERS) if headers is None else _header_array(headers),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def _header_array(headers: Sequence[Headers]) -> Any:
    bounds: list[int | None] = []
    names: list[str] = []
    values: list[bytes | None] = []
    for pairs in headers:
        bounds.append(len(names) if pairs else None)
        for name, value in pairs:
            names.append(name)
            values.append(value)
    bounds.append(len(names))
    pair_type = _HEADERS.value_type
    pairs_array = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()), binary_array(values)], fields=list(pair_type)
    )
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pairs_array, type=_HEADERS)


def header_rows(column: Any) -> list[Headers]:
    """The headers column of RECORD_SCHEMA -> one tuple of (name, value) per row."""
    if column.null_count == len(column):
        return [()] * len(column)
    return [tuple((pair["name"], pair["value"]) for pair in row) if row else () for row in column.to_pylist()]


def dead_letter_headers(**facts: Any) -> Headers:
    """What happened to a record, and where: header `sabot.<name>` for each fact, behind the record's own.

    What the user's function says of its errors may repeat a setting of his: known secrets are taken out of the message.
    """
    if "message" in facts:
        facts["message"] = scrubbed(str(facts["message"]))
    return tuple((f"sabot.{name}", str(value).encode(errors="backslashreplace")) for name, value in facts.items())


def to_records(batch: Batch, now_ms: int, keys: Sequence[str] | None = None) -> pa.RecordBatch:
    """What a sink of records writes: RECORD_SCHEMA as it is (timestamp null: `now_ms`), other columns as one
    JSON object a row. keys: of a sink that was told to expect changes.
    """
    data = batch.taken()
    if keys is not None and carries_changes(data.schema):
        return change_records(data, keys, now_ms)
    if data.schema.equals(RECORD_SCHEMA):
        stamps = data.column(2)
        if stamps.null_count == 0:
            return data
        return data.set_column(2, RECORD_SCHEMA.field(2), stamps.fill_null(now_ms))
    return json_records(data, None, now_ms)


def json_records(data: pa.RecordBatch, keys: pa.BinaryArray | None, now_ms: int) -> pa.RecordBatch:
    """Columns -> RECORD_SCHEMA: one JSON object a row; None for `keys` says that no record has one."""
    rows = data.num_rows
    columns = [
        encode_rows(data),
        pa.nulls(rows, pa.binary()) if keys is None else keys,
        pa.array(np.full(rows, now_ms, dtype=np.int64)),
        pa.array(np.zeros(rows, dtype=np.int32)),
        pa.array(np.zeros(rows, dtype=np.int64)),
        pa.nulls(rows, _HEADERS),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def carries_changes(schema: pa.Schema) -> bool:
    """The rows say what becomes of their key, in OP_COLUMN, the last column."""
    return len(schema) > 0 and schema.field(len(schema) - 1).name == OP_COLUMN


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """No rows, of these columns."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def refuse_types(schema: pa.Schema, try_out: Callable[[pa.RecordBatch], object], where: str, format: str) -> None:
    """Raises UserError, which begins with `where`, for the first column of which `try_out` cannot write even no rows.

    Records as they are (RECORD_SCHEMA) are passed over.
    """
    for column in () if schema.equals(RECORD_SCHEMA) else schema:
        try:
            try_out(empty_batch(pa.schema([column])))
        except (UserError, pa.ArrowException, TypeError) as error:
            hint = f"leave it out before the sink: .drop({column.name!r})"
            if not pa.types.is_nested(column.type):
                hint = f"cast it before the sink, .with_columns({_cast_of(column.name)}), or {hint}"
            raise UserError(
                f"{where}: column {column.name!r} of type {column.type} cannot be written as {format}", hint=hint
            ) from error


def _cast_of(column: str) -> str:
    cast = f'col({column!r}).cast("string")'
    return f"{column}={cast}" if column.isidentifier() else f"**{{{column!r}: {cast}}}"


def refuse_json_types(schema: pa.Schema, where: str) -> None:
    """`refuse_types`, of what is written as JSON."""
    refuse_types(schema, encode_rows, where, "JSON")


def record_keys(data: pa.RecordBatch, keys: Sequence[str]) -> pa.BinaryArray:
    """The keys of records for these rows: of one column its value, text as it is, the rest as JSON, null as none; several columns as
    one JSON object, which of none is empty.
    """
    if not keys:
        return pa.array([b"{}"]).take(pa.array(np.zeros(data.num_rows, np.int64)))
    said = normalise(data.select(list(keys)))
    if len(keys) > 1:
        return encode_rows(said)
    column = said.column(0)
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        written = column.cast(pa.binary())
    else:
        text: Any = column if pa.types.is_primitive(column.type) else encode_rows(said)
        written = text.cast(pa.string()).cast(pa.binary())
    return pc.if_else(pc.is_null(column), pa.scalar(None, pa.binary()), written)


def change_records(data: pa.RecordBatch, keys: Sequence[str], now_ms: int) -> pa.RecordBatch:
    """Rows with their op -> RECORD_SCHEMA, each with the key of `keys`: the row as JSON; where it ends its key no payload, a tombstone.

    Raises UserError for a row without its key: nobody could read of it what ends.
    """
    rows = data.select(data.schema.names[:-1])
    check_keys(rows, keys, "a log of changes")
    records = json_records(rows, record_keys(rows, keys), now_ms)
    ends = pc.equal(data.column(data.num_columns - 1), pa.scalar(DELETE, pa.int8()))
    if not pc.any(ends).as_py():
        return records
    payloads = pc.if_else(ends, pa.scalar(None, pa.binary()), records.column(0))
    return records.set_column(0, RECORD_SCHEMA.field(0), payloads)


def check_keys(data: pa.RecordBatch, keys: Sequence[str], where: str) -> None:
    """Raises UserError, which begins with `where`, for a row whose key is null or NaN."""
    for key in keys:
        column = data.column(key)
        if column.null_count or (pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py()):
            raise UserError(
                f"{where}: a row without its key {key!r} came", hint=f"filter(col({key!r}).is_not_null()) before it"
            )


def above(data: pa.RecordBatch, size: int) -> list[int]:
    """The rows that take more than `size` bytes."""
    if data.nbytes <= size:
        return []
    rows = data.num_rows
    if rows == 1:
        return [0]
    half = rows // 2
    return above(data.slice(0, half), size) + [half + row for row in above(data.slice(half), size)]


def bounded(batch: Batch, record_bytes: int) -> Batch:
    """The batch, of RECORD_SCHEMA, with the records above the bound set apart: with their first bytes, without headers."""
    data = batch.data
    long = above(data, record_bytes + HEAD_BYTES)  # beside its bytes a record has places in columns
    if not long:
        return batch
    apart = data.take(pa.array(long, pa.int64()))
    reasons = [
        f"{apart.slice(row, 1).nbytes} bytes are more than a record may have ({record_bytes}): these are the first"
        for row in range(len(long))
    ]
    heads = [pc.binary_slice(apart.column(name), 0, HEAD_BYTES) for name in ("payload", "key")]
    bad: Any = [*heads, *apart.columns[2:5], pa.nulls(len(long), _HEADERS), pa.array(reasons, pa.string())]
    good = np.ones(data.num_rows, bool)
    good[long] = False
    kept = data.filter(pa.array(good))
    return Batch(kept, batch.offsets, batch.topic, bad=pa.RecordBatch.from_arrays(bad, schema=BAD_SCHEMA))


def iterate_records(data: pa.RecordBatch, topic: str) -> list[Record]:
    """A batch of RECORD_SCHEMA -> its records as objects, for code that handles one at a time."""
    payload, key, timestamp, partition, offset, headers = data.columns
    return [
        Record(p, k, h, t, topic, n, o)
        for p, k, h, t, n, o in zip(
            bytes_list(payload),
            bytes_list(key),
            header_rows(headers),
            timestamp.to_pylist(),
            partition.to_pylist(),
            offset.to_pylist(),
            strict=True,
        )
    ]


def check_delivery(delivery: object, where: str) -> None:
    """Raises UserError that begins with `where`."""
    if delivery not in (None, "exactly_once", "at_least_once"):
        raise UserError(f"{where}: delivery={delivery!r}", hint='"exactly_once" or "at_least_once"')


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
class Lane:
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


@dataclass(frozen=True, slots=True)
class Token:
    """What a receiver knows of a lane: the number of the last part that it has, and which incarnation sent it."""

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
    """Set by the engine before `claim`, for a sink that is told that somebody else has taken its lane: whether this process still
    owns the job. Blocking; in the lane's thread. None: nobody knows.
    """
    sealed: Mapping[str, int] = {}
    """The engine's own, of what stands before a sink that delivers: by lane, the last part of what was written before the last flush."""

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

    def known(self, lane: Lane) -> Token | None:
        """What the receiver knows of the lane, asked before `claim`, and taking nothing from whoever writes into it now: a start that
        is refused must not end a job that runs. None: nothing, or it cannot be told without claiming. A topic that is missing is made
        here: others may want to read it before the claim. Raises like `open`.
        """
        return None

    def claim(self, lane: Lane) -> Token | None:
        """Ready to deliver, in place of `open`, whose errors it raises. Also after an error: it starts over.

        When it returns no process that claimed this lane before can deliver any more (as far as the receiver can keep
        it out), and what that one left half done is gone or finished. Called again before `close` it raises JobLocked
        where another process has claimed the lane since: who is late must not take it back. -> what the receiver knows;
        None: no part came. A sink that keeps no token returns None, and knows a part that it is given again by its seq.
        """
        self.open()
        return None

    def fitting(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Rows as `write` takes them -> as `deliver` shall get them. After `claim`; in the thread that writes, not the lane's.

        Raises for rows that the receiver would refuse, as `write` does: once they are in a checkpoint nobody can take them out.
        """
        return data

    def deliver(self, seq: int, batches: Sequence[pa.RecordBatch]) -> None:
        """Takes a part: rows that were `fitting`, at most some 64 MiB. When it returns they are at the receiver, safe
        and to be seen, all of them, and none twice however often the part is given (the same seq, the same rows).

        seq grows, with gaps; with the lane that was claimed (its incarnation, too) it names the part for ever: what remembers
        parts by a key of its own puts all three into it. Raises TransientError when it may be tried again (`claim` comes
        first, and its token says whether the part got through); JobLocked when another process has claimed the lane;
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
