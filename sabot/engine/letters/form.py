"""The form of dead letters: records that could not be processed, unchanged, each with its origin and its error.

All dead letters have one schema, which is written and read here, whatever component sets the record apart (a source,
a step of a stream, a call, an agent) and wherever the dead letter goes:

    topics           the record itself; the facts about it are headers after the record's own, `sabot.topic` first
    files, tables    a row of LETTER_SCHEMA (`as_columns`), because these keep no headers
"""

import base64
import binascii
import itertools
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from sabot._cython.text.json import encode_rows
from sabot._cython.text.records import bytes_list
from sabot.base.arrays import shown
from sabot.base.dataclass import dataclass
from sabot.base.logs import trace_of
from sabot.base.redaction import scrubbed, visible
from sabot.base.stored_names import stored_name
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import RECORD_SCHEMA, Headers, build_records, encode_json, header_rows
from sabot.errors import DataError, UserError, message_of

_MESSAGE_CHARACTERS = 2048  # the most characters of an error's message in a dead letter
_PREFIX = "sabot."
_ORIGIN = "sabot.topic"  # the first header that Sabot adds
BEFORE_HEADER = "sabot.letter"
"""The header of a record that was sent back: the place of its dead letter, as "NAME PARTITION:OFFSET". The name of a
file is without its folder."""
ATTEMPTS_HEADER = "sabot.letter.attempts"
"""The header of a record that was sent back: the number of attempts so far. They count in its next dead letter too."""
ROW_HEADER = "sabot.row"
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
    told = [((*own, (ROW_HEADER, facts["row"].encode())) if "row" in facts else own, facts) for own, facts in told]
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
