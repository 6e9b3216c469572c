"""Records on their way through an agent: decoded where they come in, and what becomes of them on the way out."""

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
from sabot.calls.functions import for_each_piece, unwrap
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
from sabot.errors import UNREADABLE, DataError, UserError
from sabot.operators.agents.payloads import PayloadOf, as_json
from sabot.operators.agents.timers import DueTimer
from sabot.operators.row_queue import QueuedRows

RECORD_ROWS = 2048
"""More records do not come at once: to take so many in holds the event loop up for 2 ms."""

JSON_HEADER = "sabot.json"
"""The header of a record whose payload is JSON, whatever the format of its topic: a job has made it, out of a message of its own."""

Result = tuple[bytes | None, bytes | None, Headers, str | None]
"""Payload (None: a tombstone), key (None: the key of the input), headers, the name of the sink (None: the first one)."""

_log = logging.getLogger(__name__)

_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}  # others are refused as keys
_decode = msgspec.json.Decoder().decode
_NOT_HELD = QueuedRows(0)
_NONE: Mapping[int, Collection[int]] = {}


@dataclass(slots=True)
class Row:
    """One record on its way through an agent, or a timer that is due: then `timer` says which. Once it is decoded, a row has no payload any
    more, as `value` is what it says. columns: the same as a batch of one row, for a durable agent whose records are no JSON.
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
    held: QueuedRows = _NOT_HELD  # those that it came with, and its place among them
    place: int = 0
    timer: DueTimer | None = None
    columns: pa.RecordBatch | None = None

    def raw(self) -> bytes | None:
        """The payload as it came: of a decoded row the batch that it came in has it, and the row keeps no copy."""
        data = self.held.data
        return self.payload if data is None else data.column(0)[self.place].as_py()


def rows_of(data: pa.RecordBatch, topic: str) -> list[Row]:
    """RECORD_SCHEMA -> rows."""
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
    """Rows (payload, key, timestamp, partition, offset, headers) -> RECORD_SCHEMA."""
    payloads, keys, timestamps, partitions, offsets, headers = zip(*rows, strict=True)
    return build_records(payloads, keys, timestamps, partitions, offsets, headers if any(headers) else None)


def place_of(row: Row) -> str:
    """topic[partition]@offset"""
    return f"{row.topic}[{row.partition}]@{row.offset}"


class RecordReader:
    """Batches -> decoded rows, as an agent says with `key=` and `schema=`.

    key_kinds: which kinds of values keys were so far. The first key of another kind is warned of: 1 and "1" are two keys, with two states.
    """

    def __init__(self, spec: AgentSpec, key_kinds: set[str], codec_for: Callable[[str], Codec]) -> None:
        """codec_for: how the records of its topics are decoded, where `format=` says that they are not JSON."""
        self._agent_id = spec.agent_id
        self._key_kinds = key_kinds
        self._key = spec.key
        self._check = spec.check
        self._by_partition = spec.process > 1  # each process has the keys of its partitions
        self._tombstones = spec.tombstones
        self._text_keys = spec.tombstones and spec.text_keys
        self._codec_for = codec_for
        self._decoded = frozenset[str]() if spec.format == JSON else frozenset(spec.topics)
        self._durable = spec.durable
        self._checker = None if spec.schema is None else JsonCodec(spec.schema)

    def read(self, batch: Batch, now_ms: int) -> tuple[QueuedRows, list[Row], list[tuple[Row, DataError]]]:
        """(what the batch is held as, its rows, those that cannot be processed, which have ended)."""
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
        """With `schema=`: which records do not fit it, and why. The agent gets the others as json.loads gives them."""
        if self._checker is None:
            return {}
        return self._reasons(records, self._checker.decode(records)[1])

    def _columns(
        self, batch: Batch, records: pa.RecordBatch
    ) -> tuple[dict[int, Any], dict[int, pa.RecordBatch], dict[int, str]]:
        """By number of the record: its columns, as a dict and as `Row.columns`, and why others cannot be decoded. The source's thread has
        decoded most batches already.
        """
        if batch.records is None:
            data, bad = self._codec_for(batch.topic).decode(records)
        else:
            data, bad = batch.data, list(batch.rejected)
        numbers = np.delete(np.arange(records.num_rows), [each.row for each in bad]).tolist()
        pieces = {number: data.slice(place, 1) for place, number in enumerate(numbers)} if self._durable else {}
        return dict(zip(numbers, data.to_pylist(), strict=True)), pieces, self._reasons(records, bad)

    def _is_decoded(self, row: Row) -> bool:
        """Whether its payload is of the agent's format. What streams, other agents and jobs have made for it is JSON: it has no partition,
        or another name than that of a topic of the agent, or says so itself.
        """
        apart = row.partition < 0 or any(name == JSON_HEADER for name, _ in row.headers)
        return row.topic in self._decoded and not apart

    def _reasons(self, records: pa.RecordBatch, bad: Iterable[BadRow]) -> dict[int, str]:
        """The reasons by number of the record. A tombstone that the agent takes is none of them."""
        reasons = {each.row: each.reason for each in bad}
        if self._tombstones and records.column(0).null_count:
            payloads = records.column(0)
            return {row: reason for row, reason in reasons.items() if payloads[row].is_valid}
        return reasons

    def decode(self, row: Row, value: Any = None) -> None:
        """Gives the row its value, and with `key=` the scope of its state. value: what it is, where its batch was decoded into columns.

        Raises DataError.
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
            return data.to_pylist()[0]
        try:
            if len(payload) > NESTING_MAX and is_too_deep(payload):
                return decode_json(payload, where=place_of(row))  # which says so
            return _decode(payload)
        except UNREADABLE:
            return decode_json(payload, where=place_of(row))

    def _scope(self, row: Row, key: Any) -> bytes:
        if (kind := _KINDS.get(type(key))) is not None and kind not in self._key_kinds:
            if self._key_kinds:
                _log.warning(
                    "agent %s: key %r of %s is %s, where those before were %s: it is another key, with a state of its own. "
                    "Where the type has changed, what was kept by the former keys is not found by the new ones",
                    *(self._agent_id, self._key, place_of(row), kind, " or ".join(sorted(self._key_kinds))),
                )
            self._key_kinds.add(kind)
        try:
            return state_key(key)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{place_of(row)}: no key: field {self._key!r}: {error}") from error

    def _key_of(self, row: Row) -> Any:
        """The key of a tombstone, as the payloads of its key have it: text as it is, anything else as JSON. Raises DataError."""
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
    """RECORD_SCHEMA with these headers in place of its own."""
    payload, key, timestamp, partition, offset, _ = data.columns
    return build_records(bytes_list(payload), bytes_list(key), timestamp, partition, offset, headers)


def waiting_batches(held: Iterable[QueuedRows], without: Mapping[int, Collection[int]] = _NONE) -> list[Batch]:
    """The rows that have not ended, one batch a topic, in order. without: places of rows that are left out, by the id of what they came
    with.
    """
    by_topic: dict[str, list[pa.RecordBatch]] = {}
    for each in held:
        if (rows := each.waiting_data(without.get(id(each), ()))) is not None:
            by_topic.setdefault(each.topic, []).append(rows)
    return [Batch(pa.concat_batches(pieces), None, topic) for topic, pieces in by_topic.items()]


# -- results ----------------------------------------------------------------------------------------------------------


def _result(value: Any, payload_of: PayloadOf) -> Result:
    """A value or Message as it will be written. Raises UserError for what the format cannot say."""
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
                f"a {type(value).__name__} with a Message in it: it would be one result, a JSON array",
                hint="yield each Message",
            ) from None
        raise


@dataclass(slots=True)
class _Several:
    """What a call yielded, written down at once: the agent may go on changing the values."""

    results: list[Result]
    payload_of: PayloadOf
    nulled: list[str] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """One of them; None is no result."""
        if value is not None:
            result = _result(value, self.payload_of)
            self.results.append(result)
            if self.payload_of is as_json:
                self.nulled += nulled_in(value, (result,))


def results_of(value: Any, payload_of: PayloadOf = as_json) -> Sequence[Result]:
    """What a call gave (not None), as it will be written. Raises UserError for what the format cannot say."""
    return value.results if type(value) is _Several else (_result(value, payload_of),)


def nulled_in(value: Any, output: Sequence[Result]) -> list[str]:
    """The fields of what a call gave whose NaN or infinity is null in its output (see `nulled_fields`)."""
    if type(value) is _Several:
        return value.nulled
    payload = output[0][0]
    if payload is None or b"null" not in payload:
        return []
    plain = plain_of(value)
    return [] if isinstance(plain, bytes) else nulled_fields(plain)


def plain_of(value: Any) -> Any:
    """What a call gave, without keys and headers. Of a generator: the list of what it gave, as it is written."""
    if type(value) is _Several:
        return [payload for payload, *_ in value.results]
    return value.value if isinstance(value, Message) else value


def gathering(
    func: Callable[..., Any], form: Callable[[Any], Any] = lambda value: value, payload_of: PayloadOf = as_json
) -> tuple[Callable[..., Any], bool]:
    """The function to call, and whether it is a coroutine function; what generators give is gathered for `results_of`, in this form."""
    target = unwrap(func)
    if inspect.isasyncgenfunction(target):

        async def gather(*given: Any) -> _Several:
            several = _Several([], payload_of)
            await for_each_piece(func(*given), lambda value: several.add(form(value)))
            return several

        return gather, True
    if inspect.isgeneratorfunction(target):

        def gather_here(*given: Any) -> _Several:
            several = _Several([], payload_of)
            for value in func(*given):
                several.add(form(value))
            return several

        return gather_here, False
    return func, inspect.iscoroutinefunction(target)
