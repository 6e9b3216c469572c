"""The journal of effects: what jobs have asked of the world, before and after. `base` is the contract."""

from sabot.journal.base import MAY_BEGIN_AGAIN, Inbox, JobMark, Journal, JournalReader, Position, Question, check_place
from sabot.journal.effects import Doubt, EffectClass, EffectId, Reconciled, digest, effect_class, in_doubt
from sabot.journal.entries import (
    INLINE_BYTES,
    Answer,
    Attempt,
    Begin,
    Body,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    Signal,
    StoredBody,
    kind_of,
)
from sabot.journal.memory import MemoryHome, MemoryInbox, MemoryJournal, MemoryReader
from sabot.journal.opening import open_inbox, open_journal, open_reader
from sabot.journal.postgres import PostgresInbox, PostgresJournal, PostgresReader
from sabot.journal.sqlite import SqliteInbox, SqliteJournal, SqliteReader

__all__ = [
    "INLINE_BYTES",
    "MAY_BEGIN_AGAIN",
    "Answer",
    "Attempt",
    "Begin",
    "Body",
    "Cancel",
    "Doubt",
    "EffectClass",
    "EffectId",
    "EffectResult",
    "End",
    "Entry",
    "Inbox",
    "Intent",
    "JobMark",
    "Journal",
    "JournalReader",
    "Letter",
    "MemoryHome",
    "MemoryInbox",
    "MemoryJournal",
    "MemoryReader",
    "Position",
    "PostgresInbox",
    "PostgresJournal",
    "PostgresReader",
    "Question",
    "Reconciled",
    "Signal",
    "SqliteInbox",
    "SqliteJournal",
    "SqliteReader",
    "StoredBody",
    "check_place",
    "digest",
    "effect_class",
    "in_doubt",
    "kind_of",
    "open_inbox",
    "open_journal",
    "open_reader",
]
