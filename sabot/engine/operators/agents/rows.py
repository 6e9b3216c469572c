"""Decodes the records of agents, and encodes their results."""

import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from sabot._cython.arrow.batch import Batch
from sabot._cython.text.json import NESTING_MAX, BadRow, is_too_deep
from sabot._cython.text.records import bytes_list, state_key
from sabot.api.agent import AgentSpec
from sabot.api.context import Message
from sabot.base.arrays import python_rows
from sabot.codecs import Codec
from sabot.codecs.formats import JSON
from sabot.codecs.json import JsonCodec
from sabot.codecs.records import (
    Headers,
    build_records,
    decode_json,
    encode_json,
    header_rows,
    nulled_fields,
    to_records,
)
from sabot.engine.calls.functions import for_each_piece, unwrap
from sabot.engine.operators.agents.payloads import PayloadOf, as_json
from sabot.engine.operators.agents.timers import DueTimer
from sabot.engine.operators.row_queue import QueuedRows
from sabot.errors import UNREADABLE, DataError, UserError

RECORD_ROWS = 2048
"""The most records that an agent takes at once: to decode so many blocks the event loop for 2 ms."""

JOB_HEADER = "sabot.job"
"""The header with the id of a record's durable job, in dead letters and in records that are sent back."""

JSON_HEADER = "sabot.json"
"""The header of a record that has a JSON payload though its topic has another format. A job has made it from its own
message.
"""

Result = tuple[bytes | None, bytes | None, Headers, str | None]
"""(payload, or None for a tombstone; key, or None for that of the input; headers; the name of the sink, or None for
the first).
"""

_log = logging.getLogger(__name__)

_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    # keys of other kinds are refused
}
_decode = msgspec.json.Decoder().decode
_NOT_HELD = QueuedRows(0)
_NONE: Mapping[int, Collection[int]] = {}


@dataclass(slots=True)
class Row:
    """A record that an agent processes, or a timer that is due (`timer`; None for a record). After decoding,
    `payload` is None and `value` is the content.

    `scope`: the encoded key of the row's state, empty without `key=`. `columns`: the content as a batch of one row,
    for a durable agent whose format is not JSON; else None. `held`, `place`: the rows that arrived together with this
    one, and its number among them.
    """

    payload: bytes | None
    key: bytes | None
    timestamp: int
    partition: int
    offset: int
    headers: Headers
    topic: str
    value: Any = None
    scope: bytes = b""
    # the rows that came together with it, and its number among them
    held: QueuedRows = _NOT_HELD
    place: int = 0
    timer: DueTimer | None = None
    columns: pa.RecordBatch | None = None

    def raw(self) -> bytes | None:
        """Returns the payload before it was decoded. A decoded row keeps no copy of its payload: it is read from the
        row's batch.
        """
        data = self.held.data
        return self.payload if data is None else data.column(0)[self.place].as_py()


def rows_of(data: pa.RecordBatch, topic: str) -> list[Row]:
    """Converts a batch of RECORD_SCHEMA to rows."""
    payload, key, timestamp, partition, offset, headers = data.columns
    return [
        Row(p, k, t, n, o, h, topic)
        for p, k, t, n, o, h in zip(
            bytes_list(payload),
            bytes_list(key),
            timestamp.to_pylist(),
            partition.to_pylist(),
            offset.to_pylist(),
            header_rows(headers),
            strict=True,
        )
    ]


def records_batch(
    rows: Sequence[tuple[bytes | None, bytes | None, int, int, int, Headers]],
) -> pa.RecordBatch:
    """Converts rows (payload, key, timestamp, partition, offset, headers) to a batch of RECORD_SCHEMA."""
    payloads, keys, timestamps, partitions, offsets, headers = zip(*rows, strict=True)
    return build_records(payloads, keys, timestamps, partitions, offsets, headers if any(headers) else None)


def place_of(row: Row) -> str:
    """Returns topic[partition]@offset of a row, for messages."""
    return f"{row.topic}[{row.partition}]@{row.offset}"


def _no_key(row: Row) -> None:
    return None


class RecordReader:
    """A decoder of batches to rows, by the agent's `key=`, `schema=` and `format=`.

    `key_kinds`: the kinds of values that keys have had so far. A key of another kind is logged as a warning once,
    because 1 and "1" are two keys with two states.
    """

    def __init__(
        self,
        spec: AgentSpec,
        key_kinds: set[str],
        codec_for: Callable[[str], Codec],
        known_key: Callable[[Row], Any] = _no_key,
    ) -> None:
        """- `codec_for`: returns the codec of a topic; used if the agent's `format=` is not JSON.
        - `known_key`: returns the key of a row with headers, if it is not that of the row's field `key=`; else None.
        """
        self._agent_id = spec.agent_id
        self._key_kinds = key_kinds
        self._key = spec.key
        self._check = spec.check
        self._by_partition = spec.process > 1  # each process owns the keys of its partitions
        self._tombstones = spec.tombstones
        self._text_keys = spec.tombstones and spec.text_keys
        self._codec_for, self._known_key = codec_for, known_key
        self._decoded = frozenset[str]() if spec.format == JSON else frozenset(spec.topics)
        self._durable = spec.durable
        self._checker = None if spec.schema is None else JsonCodec(spec.schema)

    def read(self, batch: Batch, now_ms: int) -> tuple[QueuedRows, list[Row], list[tuple[Row, DataError]]]:
        """Decodes a batch. Returns (the batch as queued rows, its rows, the rows that cannot be processed with their
        errors). The latter have ended.
        """
        records = to_records(batch, now_ms) if batch.records is None else batch.records
        values: dict[int, Any] = {}
        columns: Mapping[int, pa.RecordBatch] = {}
        formatted = batch.topic in self._decoded
        if formatted:
            values, columns, reasons = self._columns(batch, records)
        else:
            reasons = self._misfits(records)
        held = QueuedRows(records.num_rows, records, topic=batch.topic)
        rows, bad = [], []
        for number, row in enumerate(rows_of(records, batch.topic)):
            try:
                if formatted and not self._is_decoded(row):
                    self.decode(row)
                elif number in reasons:
                    raise DataError(f"{place_of(row)}: {reasons[number]}")
                else:
                    row.columns = columns.get(number)
                    self.decode(row, values.get(number))
            except DataError as error:
                bad.append((row, error))
                held.end(number)
            else:
                row.held, row.place, row.payload = held, number, None
                rows.append(row)
        return held, rows, bad

    def _misfits(self, records: pa.RecordBatch) -> dict[int, str]:
        """Returns the reason for each record that does not fit `schema=`, by the number of the record. All other
        records are later decoded as json.loads does, and not converted to the schema.
        """
        if self._checker is None:
            return {}
        return self._reasons(records, self._checker.decode(records)[1])

    def _columns(
        self, batch: Batch, records: pa.RecordBatch
    ) -> tuple[dict[int, Any], dict[int, pa.RecordBatch], dict[int, str]]:
        """Returns three dicts by the record's index: the columns of the record as a dict; its columns as
        `Row.columns`; and, for a record that cannot be decoded, the reason. In most batches the source's thread has
        already decoded the records.
        """
        if batch.records is None:
            data, bad = self._codec_for(batch.topic).decode(records)
        else:
            data, bad = batch.data, list(batch.rejected)
        numbers = np.delete(np.arange(records.num_rows), [each.row for each in bad]).tolist()
        pieces = {number: data.slice(place, 1) for place, number in enumerate(numbers)} if self._durable else {}
        reasons = self._reasons(records, bad)
        try:
            return dict(zip(numbers, python_rows(data), strict=True)), pieces, reasons
        except DataError:
            values: dict[int, Any] = {}
            for place, number in enumerate(numbers):
                try:
                    (values[number],) = python_rows(data.slice(place, 1))
                except DataError as error:
                    reasons[number] = error.message
            return values, pieces, reasons

    def _is_decoded(self, row: Row) -> bool:
        """Returns True if the row's payload has the agent's format. Records from streams, agents and jobs are JSON
        instead. They have no partition, the name of another topic, or JSON_HEADER.
        """
        apart = row.partition < 0 or any(name == JSON_HEADER for name, _ in row.headers)
        return row.topic in self._decoded and not apart

    def _reasons(self, records: pa.RecordBatch, bad: Iterable[BadRow]) -> dict[int, str]:
        """Returns the reasons by the number of the record. If the agent accepts tombstones, they are left out."""
        reasons = {each.row: each.reason for each in bad}
        if self._tombstones and records.column(0).null_count:
            payloads = records.column(0)
            return {row: reason for row, reason in reasons.items() if payloads[row].is_valid}
        return reasons

    def decode(self, row: Row, value: Any = None) -> None:
        """Sets the value of a row and, with `key=`, the scope of its state. Raises DataError, and UserError if a key
        is in the wrong partition for `process=`.

        `value`: the content, if the row's batch was decoded to columns.
        """
        payload = row.payload
        if payload is None:
            if not self._tombstones:
                hint = "a tombstone has no JSON value; @app.agent(…, tombstones=True) takes it, with the message None"
                raise DataError(f"{place_of(row)}: the payload is null", hint=hint)
            row.value = None
            if self._key is not None:
                row.scope = self._scope(row, self._key_of(row))
            return
        row.value = self._value(row, payload) if value is None else value
        if self._check is not None:
            try:
                self._check(row.value)
            except DataError as error:
                raise DataError(f"{place_of(row)}: {error.message}", hint=error.hint) from error
        if self._key is not None:
            key = self._known_key(row) if row.headers else None
            if key is None:
                key = row.value.get(self._key) if isinstance(row.value, dict) else None
            if key is None:
                raise DataError(f"{place_of(row)}: no key: field {self._key!r} is missing or null")
            if self._by_partition and row.key not in (str(key).encode(), encode_json(key)):
                raise UserError(
                    f"{place_of(row)}: its field {self._key!r} is {key!r}, and the key of the record {row.key!r}, so records of one key may"
                    " be in several partitions, and in several processes",
                    hint="process=True; or send the records with the key that key= names, as app.stream(…).to(topic, key=…) does",
                )
            row.scope = self._scope(row, key)

    def _value(self, row: Row, payload: bytes) -> Any:
        if self._is_decoded(row):
            data, bad = self._codec_for(row.topic).decode(pa.record_batch([pa.array([payload])], names=["payload"]))
            if bad:
                raise DataError(f"{place_of(row)}: {bad[0].reason}")
            return python_rows(data)[0]
        try:
            if len(payload) > NESTING_MAX and is_too_deep(payload):
                return decode_json(payload, where=place_of(row))  # raises the error for it
            return _decode(payload)
        except UNREADABLE:
            return decode_json(payload, where=place_of(row))

    def _scope(self, row: Row, key: Any) -> bytes:
        if (kind := _KINDS.get(type(key))) is not None and kind not in self._key_kinds:
            if self._key_kinds:
                _log.warning(
                    "agent %s: key %r of %s is %s, and those before were %s: it is another key, with its own state. "
                    "If the type has changed, the state of the old keys is not found with the new ones",
                    *(self._agent_id, self._key, place_of(row), kind, " or ".join(sorted(self._key_kinds))),
                )
            self._key_kinds.add(kind)
        try:
            return state_key(key)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{place_of(row)}: no key: field {self._key!r}: {error}") from error

    def _key_of(self, row: Row) -> Any:
        """Returns the key of a tombstone from the record's key, which is text, or else JSON. Raises DataError."""
        if row.key is None:
            raise DataError(f"{place_of(row)}: a tombstone without a key")
        try:
            if self._text_keys:
                return row.key.decode()
            value = decode_json(row.key, where="")
        except (UnicodeDecodeError, DataError) as error:
            form = "text" if self._text_keys else "JSON"
            raise DataError(f"{place_of(row)}: the key of a tombstone is no {form}: {row.key[:40]!r}") from error
        if (key := value.get(self._key) if isinstance(value, dict) else value) is None:
            raise DataError(f"{place_of(row)}: a tombstone without a key: {self._key!r} is missing or null in it")
        return key


def with_headers(data: pa.RecordBatch, headers: Sequence[Headers]) -> pa.RecordBatch:
    """Returns records with these headers in place of their own."""
    payload, key, timestamp, partition, offset, _ = data.columns
    return build_records(bytes_list(payload), bytes_list(key), timestamp, partition, offset, headers)


def waiting_batches(held: Iterable[QueuedRows], without: Mapping[int, Collection[int]] = _NONE) -> list[Batch]:
    """Returns the rows that have not ended, in order, as one batch for each topic.

    `without`: the numbers of rows to leave out, by the id of the QueuedRows that they came in.
    """
    by_topic: dict[str, list[pa.RecordBatch]] = {}
    for each in held:
        if (rows := each.waiting_data(without.get(id(each), ()))) is not None:
            by_topic.setdefault(each.topic, []).append(rows)
    return [Batch(pa.concat_batches(pieces), None, topic) for topic, pieces in by_topic.items()]


# -- results ----------------------------------------------------------------------------------------------------------


def _result(value: Any, payload_of: PayloadOf) -> Result:
    """Encodes a value or Message. Raises UserError for a value that the format cannot encode."""
    key: bytes | None = None
    headers: Headers = ()
    topic: str | None = None
    if isinstance(value, Message):
        key, headers, topic, value = value.key, value.headers, value.topic, value.value
    try:
        return payload_of(value, key, topic), key, headers, topic
    except UserError:
        if isinstance(value, list | tuple) and any(isinstance(each, Message) for each in value):
            raise UserError(
                f"a {type(value).__name__} with a Message in it would be one result, a JSON array",
                hint="yield each Message",
            ) from None
        raise


@dataclass(slots=True)
class _CollectedResults:
    """The results that a generator has yielded. They are encoded at once, because the agent may change the values
    afterwards.
    """

    results: list[Result]
    payload_of: PayloadOf
    nulled: list[str] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Adds a yielded value. None is no result."""
        if value is not None:
            result = _result(value, self.payload_of)
            self.results.append(result)
            if self.payload_of is as_json:
                self.nulled += null_fields(value, (result,))


def results_of(value: Any, payload_of: PayloadOf = as_json) -> Sequence[Result]:
    """Encodes the result of a call (not None). Raises UserError for a value that the format cannot encode."""
    return value.results if type(value) is _CollectedResults else (_result(value, payload_of),)


def null_fields(value: Any, output: Sequence[Result]) -> list[str]:
    """Returns the fields of a result whose NaN or infinity is null in its output (see `nulled_fields`)."""
    if type(value) is _CollectedResults:
        return value.nulled
    payload = output[0][0]
    if payload is None or b"null" not in payload:
        return []
    plain = plain_value(value)
    return [] if isinstance(plain, bytes) else nulled_fields(plain)


def plain_value(value: Any) -> Any:
    """Returns the result of a call without keys and headers. For a generator, returns the list of its encoded
    payloads.
    """
    if type(value) is _CollectedResults:
        return [payload for payload, *_ in value.results]
    return value.value if isinstance(value, Message) else value


def collect_results(
    func: Callable[..., Any], form: Callable[[Any], Any] = lambda value: value, payload_of: PayloadOf = as_json
) -> tuple[Callable[..., Any], bool]:
    """Returns (the function to call, True if it is a coroutine function). For a generator, returns a function that
    collects its results for `results_of`.

    `form`: converts each yielded value.
    """
    target = unwrap(func)
    if inspect.isasyncgenfunction(target):

        async def collect(*given: Any) -> _CollectedResults:
            collected = _CollectedResults([], payload_of)
            await for_each_piece(func(*given), lambda value: collected.add(form(value)))
            return collected

        return collect, True
    if inspect.isgeneratorfunction(target):

        def collect_now(*given: Any) -> _CollectedResults:
            collected = _CollectedResults([], payload_of)
            for value in func(*given):
                collected.add(form(value))
            return collected

        return collect_now, False
    return func, inspect.iscoroutinefunction(target)
