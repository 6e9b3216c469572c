"""Decodes the values in the bodies of entries, for people and programs that only read them."""

import math
from contextlib import suppress
from datetime import date, time, timedelta
from itertools import islice
from typing import Any

import msgspec
import pyarrow as pa

from sabot.agents.durable.job_batches import from_ipc, place_of_rows, read_batch
from sabot.agents.durable.job_rows import JobInput, decode_record, row_of
from sabot.codecs.records import text_or_hex
from sabot.engine.operators.agents.rows import place_of
from sabot.errors import UNREADABLE, CorruptJournal, EffectError
from sabot.jobs.values import unpack, unpack_error
from sabot.journal.entries import Answer, Begin, EffectResult, End, Entry, Intent, Signal

_LEAST_OF_FIELD, _LEAST_OF_ITEM = 16, 256  # characters of a field of a long object, and of an item of a long list
_DIGITS = 12  # the hexadecimal digits of a digest that people see


def value_of(entry: Entry, body: bytes) -> Any:
    """Returns the value that the body of an entry contains:

    - for a RESULT or END entry of a failure, an EffectError;
    - for the INTENT entry of a tool's call, the list [args, kwargs];
    - for the INTENT entry of a model's call, the list [digest of the request, number of its messages, new messages].
      The new messages are those after the model's last answer in the request, or all if it has no answer;
    - for the BEGIN entry of an agent's job, a dict with "message" (the decoded message) and "record" (the text
      "topic[partition]@offset" of the record with which the job began). For a job that began with a batch of records,
      the dict has only "records": the place of the first record, and the number of records;
    - for an empty body, None;
    - for other entries, the decoded body.

    A body that cannot be decoded is returned unchanged, as bytes.
    """
    if not body:
        return None
    if isinstance(entry, Begin) and entry.agent:
        with suppress(*UNREADABLE):
            record = decode_record(body)
            return {"message": _message(record), "record": place_of(row_of(record))}
        with suppress(CorruptJournal):
            batch = read_batch(body, entry.job)
            return {"records": place_of_rows(batch.topic, from_ipc(batch.records))}
    try:
        match entry:
            case Begin(agent="") | Intent(kind="ask") | Answer() | Signal():
                return msgspec.json.decode(body)
            case EffectResult() if entry.outcome != "ok":
                return unpack_error(body)
            case End() if entry.outcome != "succeeded":
                return unpack_error(body)
            case _:
                return unpack(body)
    except (CorruptJournal, *UNREADABLE):
        return body


def _message(record: JobInput) -> Any:
    if record.columns:
        return from_ipc(record.columns).to_pylist()[0]
    if record.payload is None:
        return None
    try:
        return msgspec.json.decode(record.payload)
    except UNREADABLE:
        return record.payload


def as_plain(value: Any, rows: int = 0) -> Any:
    """Returns the value as JSON types. A value that JSON cannot represent becomes a text, an error becomes an object
    with "type" and "message", and a batch of rows becomes its number of rows and its column names, with its first
    `rows` rows as "first", if `rows` is not 0.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {key if isinstance(key, str) else str(key): as_plain(each, rows) for key, each in value.items()}
        case list() | tuple():
            return [as_plain(each, rows) for each in value]
        case EffectError():
            return {"type": value.type, "message": value.message}
        case pa.RecordBatch():
            facts = {"rows": value.num_rows, "columns": value.schema.names}
            return facts | {"first": as_plain(value.slice(0, rows).to_pylist())} if rows else facts
        case bytes():
            return text_or_hex(value)
        case date() | time() | timedelta():
            return msgspec.to_builtins(value)
        case _:
            return str(value)


def beginnings(value: Any, most: int) -> Any:
    """Returns JSON types with about `most` characters at most, which are shared out evenly: of each long text, list and object
    the beginning, and how much more there is. So no part hides another one.
    """
    match value:
        case str() if len(value) > most:
            return f"{value[:most]}… ({len(value) - most:,} more characters)"
        case dict() if value:
            shown = max(1, min(len(value), most // _LEAST_OF_FIELD))
            fields = {name: beginnings(each, most // shown) for name, each in islice(value.items(), shown)}
            return fields | ({"…": f"{len(value) - shown:,} more"} if shown < len(value) else {})
        case list() if value:
            shown = max(1, min(len(value), most // _LEAST_OF_ITEM))
            items = [beginnings(each, most // shown) for each in value[:shown]]
            return items + ([f"… {len(value) - shown:,} more"] if shown < len(value) else [])
    return value


def readable(value: Any) -> Any:
    """Returns the value in a form that people can compare. Bytes that are not text, such as digests, become their first
    12 hexadecimal digits. Lists and dicts are converted value by value.
    """
    match value:
        case bytes() if (text := text_or_hex(value)) == value.hex():
            return _Digits(text if len(text) <= _DIGITS else f"{text[:_DIGITS]}…")
        case list() | tuple():
            return [readable(each) for each in value]
        case dict():
            return {key: readable(each) for key, each in value.items()}
    return value


class _Digits(str):
    def __repr__(self) -> str:
        return str(self)
