"""Dead letters: records that could not be processed, as they came, each with its origin and with what happened to it.

One schema, made here and read here, whoever sets a record apart (a source, a step of a stream, a call, an agent) and wherever it goes:

    topics           the record itself; what is known of it stands behind its own headers, `sabot.topic` first
    files, tables    a row of LETTER_SCHEMA (`as_columns`): these keep no headers

`Letters` are those of one place, whatever that is; `sabot dlq` lists them and sends them back.
"""

import base64
import binascii
import itertools
import json
import secrets
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from sabot._cython.text.json import encode_rows
from sabot._cython.text.records import bytes_list
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records, encode_json, header_rows
from sabot.errors import DataError, UserError, words_of
from sabot.redaction import scrubbed

__all__ = [
    "LETTER_SCHEMA",
    "DeadLetter",
    "Home",
    "Letters",
    "Ranges",
    "as_columns",
    "letter_headers",
    "letter_of_record",
    "letter_of_row",
    "letters_of",
    "letters_of_rows",
]

_PREFIX = "sabot."
_ORIGIN = "sabot.topic"  # the first of the headers that a dead letter has beside its own
_NUMBERS = ("partition", "offset", "timestamp", "attempts")

LETTER_SCHEMA = pa.schema(
    [
        ("letter", pa.int64()),  # its number: unique, and greater for one that was written later
        ("written", pa.int64()),  # ms since 1970, when the letter was written
        ("topic", pa.string()),  # the record's: a topic, a file's path
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),  # ms since 1970, of the record
        ("agent", pa.string()),  # who set it apart: an agent, or app/task of a stream
        ("error", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("version", pa.string()),  # of the program
        ("step", pa.string()),  # of a row of a stream: the step that it was in. Null: the record is as its topic has it
        ("key", pa.string()),
        ("headers", pa.string()),  # the record's own: JSON, a list of [name, value]
        ("payload", pa.string()),
    ]
)
"""A dead letter where there are no headers. Bytes that are no text stand as "base64:…"."""

_FACTS = [name for name in LETTER_SCHEMA.names if name not in ("letter", "written", "key", "headers", "payload")]
_SEQUENCE_BITS = 21  # of a letter's number; above them stand milliseconds
_sequence = itertools.count(secrets.randbits(_SEQUENCE_BITS))


# -- made --------------------------------------------------------------------------------------------------------------


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
) -> Headers:
    """What happened to a record, and where: header `sabot.<name>` for each fact, to stand behind the record's own.

    error: a text is that of a DataError; a pair, the name of a class and what it said. What the user's function says of its errors may
    repeat a setting of his: known secrets are taken out. topic "": not known. step: of a row of a stream, which is no record of the
    topic any more.
    """
    if isinstance(error, str):
        error = DataError.__name__, error
    kind, message = error if isinstance(error, tuple) else (type(error).__name__, words_of(error))
    facts = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "agent": agent,
        "error": kind,
        "message": scrubbed(message),
        "attempts": attempts,
        "version": version,
        "step": step,
    }
    return tuple(
        (_PREFIX + name, str(value).encode(errors="backslashreplace"))
        for name, value in facts.items()
        if value is not None
    )


def letters_of(
    records: pa.RecordBatch, errors: Sequence[BaseException | str], *, topic: str, agent: str, version: str
) -> pa.RecordBatch:
    """Records (RECORD_SCHEMA) of a topic -> their letters, each with its error."""
    payload, key, timestamp, partition, offset, headers = records.columns
    places = zip(timestamp.to_pylist(), partition.to_pylist(), offset.to_pylist(), strict=True)
    made = [
        (
            *own,
            *letter_headers(
                error, topic=topic, partition=p, offset=o, timestamp=t, agent=agent, attempts=1, version=version
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
) -> pa.RecordBatch:
    """Rows of a stream that were in a step -> their letters: the payload is the row as JSON. times: of events, if there are.

    Where a row was in its topic is not known any more; topic: where all rows come from, "" from several.
    """
    origin: dict[str, Any] = {"topic": topic, "partition": None, "offset": None, "agent": agent, "version": version}
    stamps = [None] * rows.num_rows if times is None else times
    made = [
        letter_headers(error, timestamp=stamp, attempts=count, step=step, **origin)
        for error, stamp, count in zip(errors, stamps, attempts, strict=True)
    ]
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    return build_records(
        _objects(rows), None, [now_ms] * rows.num_rows if times is None else times, 0, [0] * len(made), made
    )


def as_columns(data: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters among records -> LETTER_SCHEMA, for a sink that keeps no headers. Anything else as it is."""
    if not data.schema.equals(RECORD_SCHEMA) or data.column("headers").null_count or not data.num_rows:
        return data
    told = [_parted(headers) for headers in header_rows(data.column("headers"))]
    if not all(facts for _, facts in told):
        return data
    now_ms = int(SYSTEM_CLOCK.time() * 1000)
    columns: dict[str, list[Any]] = {
        "letter": [_number(now_ms) for _ in told],
        "written": [now_ms] * len(told),
        "key": [_text(key) for key in bytes_list(data.column("key"))],
        "headers": [json.dumps([[name, _text(value)] for name, value in own]) if own else None for own, _ in told],
        "payload": [_text(payload) for payload in bytes_list(data.column("payload"))],
    }
    for name in _FACTS:
        columns[name] = [_fact(facts, name) for _, facts in told]
    return pa.RecordBatch.from_pydict({name: columns[name] for name in LETTER_SCHEMA.names}, schema=LETTER_SCHEMA)


def _objects(rows: pa.RecordBatch) -> list[bytes | None]:
    """Each row as a JSON object. What JSON cannot say stands as text: a letter is written whatever is in it."""
    try:
        return bytes_list(encode_rows(rows))
    except (UserError, TypeError, ValueError):
        columns = {name: [_sayable(value) for value in rows.column(name).to_pylist()] for name in rows.schema.names}
        return [encode_json(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def _sayable(value: Any) -> Any:
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
    """Text as it stands, if a database can hold it; all else, and what begins like it, as base64."""
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
            pass  # somebody else wrote it
    return text.encode(errors="surrogatepass")


# -- read --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record that could not be processed: where it stands, what it was, and what happened to it.

    `headers` are those that the record had by itself. `facts` are the others, without `sabot.`: topic, partition, offset and
    timestamp of the record, agent, error, message, attempts, version, step; empty for a record that is no dead letter of ours.
    """

    partition: int
    offset: int
    timestamp: int  # ms, when the letter was written
    key: bytes | None
    payload: bytes | None
    headers: Headers
    facts: dict[str, str]
    redriven: bool = False

    @property
    def place(self) -> str:
        """PARTITION:OFFSET."""
        return f"{self.partition}:{self.offset}"

    def number(self, name: str) -> int | None:
        """A fact that is one; None where it is not there, or somebody else has written it."""
        return _integer(self.facts.get(name, ""))

    def says(self, text: str) -> bool:
        """The text stands in the name of its error or in its message."""
        return text in self.facts.get("error", "") or text in self.facts.get("message", "")


def letter_of_record(
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    payload: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> DeadLetter:
    """The letter that a record of a topic is."""
    own, facts = _parted(headers)
    return DeadLetter(partition, offset, timestamp, key, payload, own, facts)


def letter_of_row(row: Mapping[str, Any], partition: int, offset: int) -> DeadLetter | None:
    """The letter at this place that a row of LETTER_SCHEMA is; None: somebody else has made the row."""
    texts = [row.get(name) for name in ("key", "headers", "payload")]
    if not set(LETTER_SCHEMA.names) <= row.keys() or not all(text is None or isinstance(text, str) for text in texts):
        return None
    key, headers, payload = texts
    facts = {name: str(row[name]) for name in _FACTS if row[name] is not None}
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
    """The record's own headers, and the facts behind them. A letter about a letter has two sets: the first belongs to the record."""
    own = max((at for at, (name, _) in enumerate(headers) if name == _ORIGIN), default=len(headers))
    facts = {name.removeprefix(_PREFIX): (value or b"").decode(errors="replace") for name, value in headers[own:]}
    kept: Any = tuple(headers[:own])  # a header may have no value: it goes back as it came
    return kept, facts


# -- where they lie ----------------------------------------------------------------------------------------------------


class Ranges:
    """A set of offsets, as sorted ranges that do not touch."""

    def __init__(self) -> None:
        self._first: list[int] = []
        self._last: list[int] = []

    def add(self, first: int, last: int) -> None:
        """All from `first` to `last`, both included."""
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

    def behind(self, offset: int) -> int:
        """The first offset from this one on that is not in it."""
        at = bisect_right(self._first, offset)
        return self._last[at - 1] + 1 if at and self._last[at - 1] >= offset else offset

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))


class Home(Protocol):
    """A place in which dead letters lie, as it was when it was opened. Blocking; one thread."""

    name: str
    """The topic, the file's path, the table."""
    words: str
    """What it is and its name, for messages."""
    id: str
    """Another one for a place of the same name that was made anew."""
    bounds: dict[int, tuple[int, int]]
    """partition -> its first offset, and the end."""
    grows_at_its_end: bool
    """What comes later has a greater offset than all that is there."""

    def read(self, partition: int, first: int, end: int) -> Iterator[DeadLetter]:
        """Those with first <= offset < end, by offset."""

    def close(self) -> None:
        """Lets go of it. Idempotent."""


class Letters:
    """The dead letters of a place as they stood when it was opened. Blocking; one thread. `close` it at the end.

    What comes while it is read is not shown: letters that a running job writes because it fails again would else be redriven for ever.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.redriven: dict[int, Ranges] = {index: Ranges() for index in home.bounds}

    def letters(self, *, redriven: bool = False) -> Iterator[DeadLetter]:
        """By partition and offset; with `redriven` those too that were redriven already."""
        for index, (_, end) in self.home.bounds.items():
            done = self.redriven[index]
            for letter in self.home.read(index, self.begin(index, redriven=redriven), end):
                if redriven or letter.offset not in done:
                    yield replace(letter, redriven=letter.offset in done)

    def begin(self, partition: int, *, redriven: bool = False) -> int:
        """Where `letters` begins to read a partition."""
        first, _ = self.home.bounds[partition]
        return first if redriven else self.redriven[partition].behind(first)

    def find(self, partition: int, offset: int) -> DeadLetter:
        """The letter at this place. Raises UserError when none is there."""
        first, end = self.home.bounds.get(partition, (0, 0))
        if first <= offset < end:
            for letter in self.home.read(partition, offset, offset + 1):
                return replace(letter, redriven=offset in self.redriven[partition])
        held = ", ".join(
            f"{index}:{first} to {index}:{end - 1}" for index, (first, end) in self.home.bounds.items() if first < end
        )
        raise UserError(
            f"{self.home.words} has no letter at {partition}:{offset}",
            hint=f"it holds {held}" if held else "it is empty",
        )

    def close(self) -> None:
        """Lets go of the place. Idempotent."""
        self.home.close()
