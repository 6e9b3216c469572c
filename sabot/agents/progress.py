"""What the entries of jobs say, for people and programs that only look: the values in their bodies, and how far a job of an agent is."""

import math
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from sabot.agents.jobs import OpenEffect
from sabot.errors import UNREADABLE, CorruptJournal, EffectError
from sabot.jobs.guard import CONFIRM
from sabot.jobs.history import IN_DOUBT
from sabot.jobs.values import unpack, unpack_error
from sabot.journal.entries import Answer, Attempt, Begin, EffectResult, End, Entry, Intent, Signal
from sabot.operators.agents.job_batches import from_ipc, place_of_rows, read_batch
from sabot.operators.agents.job_rows import JobInput, decode_record, row_of
from sabot.operators.agents.rows import place_of

_DIGITS = 12  # of a digest, as people see it


def value_of(entry: Entry, body: bytes) -> Any:
    """What the body of an entry says: a value; the EffectError of what has failed; of a call [args, kwargs]; of the BEGIN of an agent's job
    its message, and the place of the record; None where there is none. Bytes that are nothing of that come back as they are.
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


def as_plain(value: Any) -> Any:
    """The value as JSON can say it. Secrets are references; what JSON has no word for is text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            return {key if isinstance(key, str) else str(key): as_plain(each) for key, each in value.items()}
        case list() | tuple():
            return [as_plain(each) for each in value]
        case EffectError():
            return {"type": value.type, "message": value.message}
        case pa.RecordBatch():
            return {"rows": value.num_rows, "columns": value.schema.names}
        case bytes():
            return text_or_hex(value)
        case _:
            return str(value)


def text_or_hex(data: bytes | None) -> str:
    """Bytes as text where they are UTF-8, else as hexadecimal digits; "" for None."""
    if data is None:
        return ""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.hex()
    return text if all(char.isprintable() or char in "\t\n\r" for char in text) else data.hex()


def readable(value: Any) -> Any:
    """The value with bytes in it that are no text, like digests, as their first hexadecimal digits, for people who compare them."""
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


@dataclass(slots=True)
class Progress:
    """How far a job of an agent is, as its entries say.

    attempt: of the job, from 1. effects: how many it has asked for. last_at: when its last entry was written, epoch seconds. asked: what
    it has asked for and nothing came of, by ordinal: the intent, and the question to a person about it, if one is open.
    failed: those that came to an error, which another attempt may make again. early: signals that nobody waited for when they came.
    """

    attempt: int = 1
    effects: int = 0
    ended: bool = False
    last_at: float = 0.0
    asked: dict[int, tuple[Intent, Intent | None]] = field(default_factory=dict)
    failed: dict[int, Intent] = field(default_factory=dict)
    early: Counter[str] = field(default_factory=Counter)

    def add(self, entry: Entry) -> None:
        """The next entry of the job."""
        self.last_at = entry.at_ms / 1000
        match entry:
            case Attempt(ordinal=0):
                self.attempt = entry.attempt
            case Attempt():
                if (intent := self.failed.pop(entry.ordinal, None)) is not None:
                    self.asked[entry.ordinal] = intent, None
            case Intent():
                self._intend(entry)
            case EffectResult():
                intent, _ = self.asked.pop(entry.ordinal, (None, None))
                if intent is not None and entry.outcome != "ok":
                    self.failed[entry.ordinal] = intent
            case Answer():
                self._answer(entry)
            case Signal():
                self._signal(entry)
            case End():
                self.ended = True
            case Begin() if self.ended:  # its dead letter was sent again
                self.attempt += 1
                self.ended = False
            case Begin():  # ctx.continue_as
                self.attempt = 1
                for of_before in (self.asked, self.failed, self.early):
                    of_before.clear()

    def _intend(self, intent: Intent) -> None:
        known = self.asked.get(intent.ordinal)
        if known is not None and intent.kind == "ask":
            self.asked[intent.ordinal] = known[0], intent
            return
        self.effects += 1
        if intent.kind == "wait" and self.early[intent.name]:
            self.early[intent.name] -= 1
        elif intent.kind != "patch":
            self.asked[intent.ordinal] = intent, None

    def _answer(self, answer: Answer) -> None:
        intent, question = self.asked.get(answer.ordinal, (None, None))
        if intent is not None and question is not None:
            self.asked[answer.ordinal] = intent, None
        else:
            self.asked.pop(answer.ordinal, None)

    def _signal(self, signal: Signal) -> None:
        for ordinal, (intent, _) in self.asked.items():
            if intent.kind == "wait" and intent.name == signal.name:
                del self.asked[ordinal]
                return
        self.early[signal.name] += 1

    def open(self) -> tuple[OpenEffect, ...]:
        """What is open, the last one first. A timer that the function has cancelled leaves no entry: it is among them until the job goes on
        at a time at which it would have been due.
        """
        if self.ended:
            return ()
        return tuple(
            OpenEffect(
                ordinal,
                intent.kind,
                intent.name,
                asked_at=intent.at_ms / 1000,
                due_at=intent.due_ms / 1000 if intent.due_ms else None,
                in_doubt=question is not None and question.name == IN_DOUBT,
                needs_approval=question is not None and question.name == CONFIRM,
            )
            for ordinal, (intent, question) in sorted(self.asked.items(), reverse=True)
            if intent.kind != "sleep" or intent.due_ms / 1000 > self.last_at
        )
