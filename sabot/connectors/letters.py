"""Dead letters: records that could not be processed, unchanged, each with its origin and its error.

All dead letters have one schema, which is written and read here, whatever component sets the record apart (a source,
a step of a stream, a call, an agent) and wherever the dead letter goes:

    topics           the record itself; the facts about it are headers after the record's own, `sabot.topic` first
    files, tables    a row of LETTER_SCHEMA (`as_columns`), because these keep no headers

`Letters` reads the dead letters of one place of any kind; `sabot dlq` lists them and sends them back.
"""

import base64
import binascii
import hashlib
import itertools
import json
import logging
import re
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from sabot._cython.text.json import encode_rows
from sabot._cython.text.records import bytes_list
from sabot.base.arrays import shown
from sabot.base.logs import trace_of, warn_of_users_error
from sabot.base.quantities import counted_words
from sabot.base.redaction import scrubbed, visible
from sabot.base.stored_names import stored_name
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records, carries_changes, encode_json, header_rows
from sabot.connectors.refused import by_batch
from sabot.errors import DataError, UserError, message_of

_log = logging.getLogger(__name__)

_MESSAGE_CHARACTERS = 2048  # the most characters of an error's message in a dead letter
_REASONS, _REASON_CHARACTERS = 16, 100
_BLOCK_LETTERS, _BLOCK_BYTES = (
    50,
    4 << 20,
)  # read at once from the newest on: the first block, and the aim for the next ones
_EVERY_S = 60.0  # the least time between two lines of the log about the dead letters of one place
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")
_PREFIX = "sabot."
_ORIGIN = "sabot.topic"  # the first header that Sabot adds
BEFORE_HEADER = "sabot.letter"
"""The header of a record that was sent back: the place of its dead letter, as "NAME PARTITION:OFFSET". The name of a
file is without its folder."""
ATTEMPTS_HEADER = "sabot.letter.attempts"
"""The header of a record that was sent back: the number of attempts so far. They count in its next dead letter too."""
_ROW = "sabot.row"
"""The last header of a row that a receiver refused: an id that the same row has again after a crash."""
_NUMBERS = ("partition", "offset", "timestamp", "attempts", "written")

LETTER_SCHEMA = pa.schema(
    [
        ("letter", pa.int64()),  # a unique number, greater for a dead letter that was written later
        ("written", pa.int64()),  # the time at which the dead letter was written, in ms since 1970
        ("topic", pa.string()),  # the topic of the record, or the path of its file
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),  # the time of the record, in ms since 1970
        ("agent", pa.string()),  # the agent, or app/task of a stream, that set the record apart
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("version", pa.string()),  # the version of the program
        # The step of a stream in which the row was. Null: the dead letter is a record as it was in its topic.
        ("step", pa.string()),
        ("key", pa.string()),
        ("headers", pa.string()),  # the record's own: JSON, a list of [name, value]
        ("payload", pa.string()),
        ("traceback", pa.string()),  # the part of the user's code, if an exception of it is the cause
    ]
)
"""The columns of a dead letter in a file or a table. Bytes that are no text are written as "base64:…"."""

_FACTS = [name for name in LETTER_SCHEMA.names if name not in ("letter", "written", "key", "headers", "payload")]
_SEQUENCE_BITS = 21  # the low bits of a dead letter's number count up; the others are ms since 1970
_sequence = itertools.count(secrets.randbits(_SEQUENCE_BITS))


# -- made --------------------------------------------------------------------------------------------------------------


def reason_in(text: str) -> str:
    """Returns a text that Sabot has made about a record as a reason: without numbers and quoted values."""
    return _VALUES.sub("…", text)[:_REASON_CHARACTERS]


class ReasonCounts:
    """The number of dead letters by reason, for figures. One thread adds; any thread may read."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, error: BaseException | str | tuple[str, str], count: int = 1) -> None:
        """Counts dead letters of this error, as in `letter_headers`.

        The reason is the class of the error, since a message may quote a payload; of a text, which Sabot has made,
        the text without numbers and quoted values. After 16 reasons further ones are counted as "other".
        """
        kind = error[0] if isinstance(error, tuple) else stored_name(type(error))
        reason = reason_in(error) if isinstance(error, str) else kind
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason = "other"
        self._counts[reason] = self._counts.get(reason, 0) + count

    def statistics(self) -> dict[str, int]:
        """Returns the counts by reason."""
        return dict(self._counts)


class LetterLog:
    """A log of the dead letters of one place, such as a source. It logs the first one at once; later ones are counted,
    and logged by reason at most once a minute and at the end. Belongs to one thread.
    """

    def __init__(self, reasons: ReasonCounts, clock: Clock, row: str = "dead letter") -> None:
        """`reasons`: the counts of the place, which the caller has increased before it calls `note`. `row`: the name of a
        counted row in the log.
        """
        self._reasons, self._clock, self._row = reasons, clock, row
        self._logged: dict[str, int] | None = None  # the counts that were logged; None before the first dead letter
        self._logged_at = 0.0

    @property
    def begun(self) -> bool:
        """True once a dead letter was logged."""
        return self._logged is not None

    def begin(self, reason: BaseException | str, first: str, *given: object) -> None:
        """Logs the first dead letter. `reason`: its error, as in `ReasonCounts.add`; if it is an exception, the
        traceback of the user's code is logged too. `first`, `given`: the message and its arguments.
        """
        if isinstance(reason, BaseException):
            warn_of_users_error(_log, reason, first, *given)
        else:
            _log.warning(first, *given)
        one = ReasonCounts()
        one.add(reason)
        self._logged, self._logged_at = one.statistics(), self._clock.monotonic()

    def note(self, name: str) -> None:
        """Logs the number of dead letters since the last line, if that line is a minute old. `name`: the place."""
        if self._clock.monotonic() - self._logged_at >= _EVERY_S:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Logs the number of dead letters since the last line, if there are any. Called at the end."""
        if self._logged is None:
            return
        counts, now = self._reasons.statistics(), self._clock.monotonic()
        more = {reason: count - self._logged.get(reason, 0) for reason, count in counts.items()}
        more = {reason: count for reason, count in more.items() if count}
        if not more:
            return
        by_reason = "; ".join(f"{count:,} × {reason}" for reason, count in more.items())
        _log.warning(
            "%s: %s in %.0f s: %s",
            *(name, counted_words(sum(more.values()), f"more {self._row}"), now - self._logged_at, by_reason),
        )
        self._logged, self._logged_at = counts, now


def letter_headers(
    error: BaseException | str | tuple[str, str],
    *,
    topic: str,
    partition: int | None,
    offset: int | None,
    timestamp: int | None,
    agent: str,
    attempts: int | None,
    version: str,
    step: str | None = None,
    trace: str | None = None,
) -> Headers:
    """Returns the facts about a dead letter as headers `sabot.<name>`, which stand after the record's own headers.

    `error`: an exception, the text of a DataError, or a pair of a class name and its message. Known secrets are taken
    out of the message, because an error of the user's function may repeat a setting. `topic`: the record's topic, or
    "" if it is not known. `step`: the step of a stream in which a row was that is no longer a record of the topic, or
    None. `trace`: the traceback of the error if `error` is none, as `trace_of` returns it.
    """
    if isinstance(error, str):
        error = stored_name(DataError), error
    kind, message = error if isinstance(error, tuple) else (stored_name(type(error)), message_of(error))
    facts = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "agent": agent,
        "error": kind,
        "message": visible(_clipped(scrubbed(message))),
        "attempts": attempts,
        "version": version,
        "step": step,
        "written": int(SYSTEM_CLOCK.time() * 1000),
        "traceback": trace_of(error) if isinstance(error, BaseException) else trace,
    }
    return tuple(
        (_PREFIX + name, str(value).encode(errors="backslashreplace"))
        for name, value in facts.items()
        if value is not None
    )


def _clipped(message: str) -> str:
    """Returns the message, cut off at 2,048 characters: a message that quotes a payload would double the dead
    letter's size, which its topic may refuse.
    """
    over = len(message) - _MESSAGE_CHARACTERS
    return message if over <= 0 else f"{message[:_MESSAGE_CHARACTERS]}… and {over} characters more"


def attempts_before(headers: Headers) -> int:
    """Returns the number of attempts that were made before a record was sent back; 0 for other records."""
    found = next((value for name, value in headers if name == ATTEMPTS_HEADER), None)
    return _integer((found or b"").decode(errors="replace")) or 0


def letters_of(
    records: pa.RecordBatch, errors: Sequence[BaseException | str], *, topic: str, agent: str, version: str
) -> pa.RecordBatch:
    """Returns the dead letters of records (RECORD_SCHEMA) of a topic that cannot be decoded, each with its error."""
    payload, key, timestamp, partition, offset, headers = records.columns
    places = zip(timestamp.to_pylist(), partition.to_pylist(), offset.to_pylist(), strict=True)
    made = [
        (
            *own,
            *letter_headers(
                error,
                topic=topic,
                partition=p,
                offset=o,
                timestamp=t,
                agent=agent,
                attempts=attempts_before(own),  # no function was called with it
                version=version,
            ),
        )
        for own, (t, p, o), error in zip(header_rows(headers), places, errors, strict=True)
    ]
    return build_records(bytes_list(payload), bytes_list(key), timestamp, partition, offset, made)


def letters_of_rows(
    rows: pa.RecordBatch,
    errors: Sequence[tuple[str, str]],
    attempts: Sequence[int | None],
    *,
    times: Sequence[int] | None,
    topic: str,
    step: str,
    agent: str,
    version: str,
    places: Sequence[tuple[int | None, int | None]] | None = None,
    traces: Sequence[str | None] | None = None,
) -> pa.RecordBatch:
    """Returns the dead letters of rows that were in a step of a stream. The payload is the row as JSON.

    `times`: the event times of the rows, or None. `topic`: the topic of all rows, or "" if they come from several.
    `places`: the partition and the offset of the record from which each row was made, as far as they are known.
    `traces`: the traceback of the error of each row, as `trace_of` returns it.
    """
    origin: dict[str, Any] = {"topic": topic, "agent": agent, "version": version, "step": step}
    stamps = [None] * rows.num_rows if times is None else times
    made = [
        letter_headers(
            error, partition=partition, offset=offset, timestamp=stamp, attempts=count, trace=trace, **origin
        )
        for error, stamp, count, (partition, offset), trace in zip(
            *(errors, stamps, attempts, places or [(None, None)] * rows.num_rows, traces or [None] * rows.num_rows),
            strict=True,
        )
    ]
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    return build_records(
        _objects(rows), None, [now_ms] * rows.num_rows if times is None else times, 0, [0] * len(made), made
    )


def letters_of_refused(
    batches: Sequence[pa.RecordBatch],
    refused: Mapping[int, str],
    *,
    step: str,
    agent: str,
    version: str,
    ids: Sequence[str] | None = None,
) -> pa.RecordBatch:
    """Returns the dead letters of rows that a receiver refuses, in their order. `refused`: the reasons, by the number of
    the row over all batches. A record keeps its payload, key and headers; any other row is its payload, as JSON. `ids`:
    as in `with_row_ids`; by default a digest of step, payload and key, which equal rows share.
    """
    made, first = [], 0
    for data, own in zip(batches, by_batch(batches, refused), strict=True):
        if own:
            rows = data.take(pa.array(own))
            errors = [(stored_name(DataError), refused[first + row]) for row in own]
            if carries_changes(rows.schema):
                rows = rows.select(rows.schema.names[:-1])
            made.append(_letters_of_results(rows, errors, {"step": step, "agent": agent, "version": version}))
        first += data.num_rows
    letters = pa.Table.from_batches(made, RECORD_SCHEMA).combine_chunks().to_batches()[0]
    if ids is None:
        payloads, keys = (bytes_list(letters.column(name)) for name in ("payload", "key"))
        ids = [_digest(agent, step, key, payload) for key, payload in zip(keys, payloads, strict=True)]
    return with_row_ids(letters, ids)


def _digest(agent: str, step: str, key: bytes | None, payload: bytes | None) -> str:
    whole = hashlib.blake2b(digest_size=12)
    for each in (agent.encode(), step.encode(), key or b"", payload or b""):
        whole.update(len(each).to_bytes(8, "big") + each)
    return whole.hexdigest()


def with_row_ids(letters: pa.RecordBatch, ids: Sequence[str]) -> pa.RecordBatch:
    """Returns dead letters of refused rows (RECORD_SCHEMA), each with this id as `sabot.row`, its last header, in place
    of the one that it has.
    """
    payload, key, timestamp, partition, offset, headers = letters.columns
    own = [each[:-1] if each and each[-1][0] == _ROW else each for each in header_rows(headers)]
    named = [(*each, (_ROW, id.encode())) for each, id in zip(own, ids, strict=True)]
    return build_records(bytes_list(payload), bytes_list(key), timestamp, partition, offset, named)


def _letters_of_results(
    rows: pa.RecordBatch, errors: Sequence[tuple[str, str]], origin: Mapping[str, str]
) -> pa.RecordBatch:
    none = [None] * len(errors)
    if not rows.schema.equals(RECORD_SCHEMA):
        return letters_of_rows(rows, errors, none, times=None, topic="", places=None, **origin)
    payload, key, timestamp, _, _, headers = rows.columns
    now = int(SYSTEM_CLOCK.time() * 1000)
    times = [now if each is None else each for each in timestamp.to_pylist()]
    facts = [
        letter_headers(error, topic="", partition=None, offset=None, timestamp=time, attempts=None, **origin)
        for error, time in zip(errors, times, strict=True)
    ]
    headers = [(*own, *more) for own, more in zip(header_rows(headers), facts, strict=True)]
    # A topic takes no time far ahead of its clock: where the record's own was refused, that of the letter would be too.
    return build_records(
        bytes_list(payload), bytes_list(key), [min(each, now) for each in times], 0, [0] * len(facts), headers
    )


def as_columns(data: pa.RecordBatch) -> pa.RecordBatch:
    """Turns records that are dead letters into columns (LETTER_SCHEMA), for a sink that keeps no headers. Returns
    other data unchanged.
    """
    if not data.schema.equals(RECORD_SCHEMA) or data.column("headers").null_count or not data.num_rows:
        return data
    told = [_parted(headers) for headers in header_rows(data.column("headers"))]
    if not all(facts for _, facts in told):
        return data
    # Tables and files of earlier versions have no column for it.
    told = [((*own, (_ROW, facts["row"].encode())) if "row" in facts else own, facts) for own, facts in told]
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    columns: dict[str, list[Any]] = {
        "letter": [_number(now_ms) for _ in told],
        "written": [_fact(facts, "written") or now_ms for _, facts in told],
        "key": [_text(key) for key in bytes_list(data.column("key"))],
        "headers": [json.dumps([[name, _text(value)] for name, value in own]) if own else None for own, _ in told],
        "payload": [_text(payload) for payload in bytes_list(data.column("payload"))],
    }
    for name in _FACTS:
        columns[name] = [_fact(facts, name) for _, facts in told]
    return pa.RecordBatch.from_pydict({name: columns[name] for name in LETTER_SCHEMA.names}, schema=LETTER_SCHEMA)


def _objects(rows: pa.RecordBatch) -> list[bytes | None]:
    """Returns each row as a JSON object. Values that JSON cannot express become text, because a dead letter must be
    writable whatever it contains.
    """
    try:
        return bytes_list(encode_rows(rows))
    except (UserError, TypeError, ValueError):
        columns = {name: [_sayable(value) for value in rows.column(name)] for name in rows.schema.names}
        return [encode_json(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _sayable(scalar: pa.Scalar) -> Any:
    try:
        value = scalar.as_py()
    except (OverflowError, ValueError):  # a time beyond those of Python
        return shown(scalar)
    if isinstance(value, bytes):
        return _text(value)
    try:
        encode_json(value)
    except UserError:
        return str(value)
    return value


def _number(now_ms: int) -> int:
    return now_ms << _SEQUENCE_BITS | next(_sequence) & (1 << _SEQUENCE_BITS) - 1


def _fact(facts: Mapping[str, str], name: str) -> Any:
    value = facts.get(name)
    if name not in _NUMBERS or value is None:
        return value
    bits = 31 if LETTER_SCHEMA.field(name).type == pa.int32() else 63
    number = _integer(value)
    return number if number is not None and -(1 << bits) <= number < 1 << bits else None


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _text(data: bytes | None) -> str | None:
    """Returns the bytes as text. Bytes that are not UTF-8, or contain NUL, become "base64:" and their base64. So does
    text that itself begins with "base64:", so that each result has one meaning. None stays None.
    """
    if data is None:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or text.startswith("base64:"):
        return "base64:" + base64.b64encode(data).decode()
    return text


def _bytes(text: str | None) -> bytes | None:
    if text is None:
        return None
    if text.startswith("base64:"):
        try:
            return base64.b64decode(text.removeprefix("base64:"), validate=True)
        except binascii.Error:
            pass  # the header was not written by Sabot
    return text.encode(errors="surrogatepass")


# -- read --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that could not be processed: the place of the dead letter, the record, and the error.

    `headers` are the record's own. `facts` are the headers that Sabot added, without `sabot.`: topic, partition,
    offset and timestamp of the record, agent, error, message, attempts, version, step, traceback. They are empty for a record
    that Sabot did not write as a dead letter.
    """

    partition: int
    offset: int
    timestamp: int  # ms since 1970, when the dead letter was written
    key: bytes | None
    payload: bytes | None
    headers: Headers
    facts: dict[str, str]
    redriven: bool = False

    @property
    def place(self) -> str:
        """The place of the dead letter, as PARTITION:OFFSET."""
        return f"{self.partition}:{self.offset}"

    @property
    def before(self) -> tuple[str, str] | None:
        """The name and the place of the dead letter that the record was before it was sent back, or None."""
        found = next((value for name, value in self.headers if name == BEFORE_HEADER), None)
        name, _, place = (found or b"").decode(errors="replace").rpartition(" ")
        return (name, place) if name else None

    def number(self, name: str) -> int | None:
        """Returns a fact that is a number, or None if it is missing or was not written by Sabot."""
        return _integer(self.facts.get(name, ""))

    def says(self, text: str) -> bool:
        """Returns True if the text is in the name of the error or in its message."""
        return text in self.facts.get("error", "") or text in self.facts.get("message", "")


def letter_of_record(
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    payload: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> DeadLetter:
    """Returns a record of a topic as a dead letter."""
    own, facts = _parted(headers)
    written = _integer(facts.pop("written", ""))  # the dead letter has the timestamp of its record
    return DeadLetter(partition, offset, timestamp if written is None else written, key, payload, own, facts)


def letter_of_row(row: Mapping[str, Any], partition: int, offset: int) -> DeadLetter | None:
    """Returns a row of LETTER_SCHEMA as the dead letter at this place, or None if the row was not written by Sabot."""
    texts = [row.get(name) for name in ("key", "headers", "payload")]
    if not set(LETTER_SCHEMA.names) - {"traceback"} <= row.keys() or not all(
        text is None or isinstance(text, str) for text in texts
    ):
        return None
    key, headers, payload = texts
    facts = {name: str(row[name]) for name in _FACTS if row.get(name) is not None}
    written = row["written"]
    return DeadLetter(
        partition,
        offset,
        written if isinstance(written, int) else 0,
        _bytes(key),
        _bytes(payload),
        _headers(headers),
        facts,
    )


def _headers(text: str | None) -> Any:
    try:
        return tuple((str(name), _bytes(value)) for name, value in json.loads(text or "[]"))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()


def _parted(headers: Sequence[tuple[str, bytes | None]]) -> tuple[Headers, dict[str, str]]:
    """Separates the record's own headers from the facts after them. If the record was a dead letter itself, it has
    two sets of facts; the first set belongs to the record.
    """
    own = max((at for at, (name, _) in enumerate(headers) if name == _ORIGIN), default=len(headers))
    facts = {name.removeprefix(_PREFIX): (value or b"").decode(errors="replace") for name, value in headers[own:]}
    kept: Any = tuple(headers[:own])  # a header without a value is sent back without a value
    return kept, facts


# -- where they lie ----------------------------------------------------------------------------------------------------


LetterTime: TypeAlias = tuple[int, int, int]
"""The place of a dead letter in the order of time: the time (ms since 1970), the partition, and the offset."""


class Ranges:
    """A set of offsets, as sorted ranges that do not touch."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add(self, first: int, last: int) -> None:
        """Adds all offsets from `first` to `last`, both included."""
        at = bisect_right(self._first, first)
        if at and self._last[at - 1] >= first - 1:
            at -= 1
            first = self._first[at]
        end = bisect_right(self._first, last + 1)
        if end > at:
            last = max(last, self._last[end - 1])
        self._first[at:end], self._last[at:end] = [first], [last]

    def __contains__(self, offset: int) -> bool:
        at = bisect_right(self._first, offset)
        return at > 0 and self._last[at - 1] >= offset

    def copy(self) -> "Ranges":
        """Returns an equal set."""
        other = Ranges()
        other._first, other._last = list(self._first), list(self._last)
        return other

    def behind(self, offset: int) -> int:
        """Returns the first offset, from `offset` on, that is not in the set."""
        at = bisect_right(self._first, offset)
        return self._last[at - 1] + 1 if at and self._last[at - 1] >= offset else offset

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))


class Home(Protocol):
    """A place with dead letters, as it was when it was opened. Its methods block, and are called from one thread."""

    name: str
    """The name of the topic, the path of the file, or the name of the table."""
    words: str
    """The kind and the name of the place, for messages."""
    id: str
    """The id of the place. A place that is made later under the same name has another id."""
    bounds: dict[int, tuple[int, int]]
    """The first offset of each partition, and the offset after its last."""
    grows_at_its_end: bool
    """True if later dead letters always have greater offsets than earlier ones."""

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        """Yields the dead letters of a partition with first <= offset < end, by offset."""

    def before(self, partition: int, end: int, count: int) -> int:
        """Returns an offset before `end`, at least 0. From there to `end` are about `count` dead letters, and at least one if any is
        before `end`, unless offsets are missing.
        """

    def close(self) -> None:
        """Closes the place. May be called twice."""


class Letters:
    """The dead letters of a place as they were when it was opened. Methods block, and are called from one thread.
    `close` it at the end.

    Dead letters that come while the place is read are left out: a record that fails again would otherwise be redriven
    for ever.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.redriven: dict[int, Ranges] = {index: Ranges() for index in home.bounds}

    def letters(self, *, redriven: bool = False, after: tuple[int, int] = (-1, -1)) -> Iterator[DeadLetter]:
        """Yields the dead letters by partition and offset. `redriven`: True includes those that were redriven before.
        `after`: the place behind which to begin.
        """
        for index, (_, end) in sorted(self.home.bounds.items()):
            if index < after[0]:
                continue
            done, begin = self.redriven[index], self.begin(index, redriven=redriven)
            for letter in self.home.read(index, max(begin, after[1] + 1) if index == after[0] else begin, end):
                if redriven or letter.offset not in done:
                    yield replace(letter, redriven=letter.offset in done)

    def newest(self, *, redriven: bool = False) -> "Iterator[tuple[LetterTime, DeadLetter]]":
        """Yields the dead letters, the one that was written last first, each with its place in this order. `redriven`: as in `letters`.
        Only blocks of some megabytes are read at once, one of each partition.
        """
        parts = (self._backwards(index, redriven) for index in sorted(self.home.bounds))
        return merge(*parts, key=lambda each: each[0], reverse=True)

    def _backwards(self, partition: int, redriven: bool) -> "Iterator[tuple[LetterTime, DeadLetter]]":
        begin, end = self.begin(partition, redriven=redriven), self.home.bounds[partition][1]
        done, count, time = self.redriven[partition], _BLOCK_LETTERS, 1 << 62
        while begin < end:
            first = max(begin, self.home.before(partition, end, count))
            block = list(self.home.read(partition, first, end))
            for letter in reversed(block):
                time = min(time, letter.timestamp)  # writers may be behind each other a little
                if redriven or letter.offset not in done:
                    yield (time, partition, letter.offset), replace(letter, redriven=letter.offset in done)
            nbytes = sum(len(each.payload or b"") for each in block)
            count = max(1, min(2 * count, _BLOCK_BYTES * count // max(1, nbytes)))
            end = first

    def begin(self, partition: int, *, redriven: bool = False) -> int:
        """Returns the offset at which reading of a partition begins: its first offset, or, unless `redriven`, the
        first one behind the dead letters that were redriven from its beginning on.
        """
        first, _ = self.home.bounds[partition]
        return first if redriven else self.redriven[partition].behind(first)

    def before(self, letter: DeadLetter) -> tuple[str, str] | None:
        """Returns the name and the place of the dead letter that a record was before it was sent back, or None. A row of a step has no
        headers: those of its record are read from the topic, if the place of the record is known and the broker still has it.
        """
        topic, partition, offset = letter.facts.get("topic"), letter.number("partition"), letter.number("offset")
        if letter.before is not None or "step" not in letter.facts or not topic or partition is None or offset is None:
            return letter.before
        try:
            record = self.record(topic, partition, offset)
        except (UserError, DataError):  # there is no such topic any more, or no such record
            return None
        return None if record is None else record.before

    def record(self, topic: str, partition: int, offset: int) -> DeadLetter | None:
        """Returns a record of a topic of the broker, or None. Raises UserError and DataError if it is not there any more."""
        return None

    def find(self, partition: int, offset: int) -> DeadLetter:
        """Returns the dead letter at this place. Raises UserError if there is none."""
        first, end = self.home.bounds.get(partition, (0, 0))
        if first <= offset < end:
            for letter in self.home.read(partition, offset, offset + 1):
                return replace(letter, redriven=offset in self.redriven[partition])
        held = ", ".join(
            f"{index}:{first} to {index}:{end - 1}" for index, (first, end) in self.home.bounds.items() if first < end
        )
        raise UserError(
            f"{self.home.words} has no dead letter at {partition}:{offset}",
            hint=f"it holds {held}" if held else "it is empty",
        )

    def close(self) -> None:
        """Closes the place. May be called twice."""
        self.home.close()
