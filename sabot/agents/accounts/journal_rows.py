"""The ledger rows in the entries of a journal, and how a ledger gets those that it lacks, for example after a crash.

   journal   ───────────────────────────┬──────────────────────────────▶ end
             has its rows in the ledger │ is read by the next start
                                      mark

A mark is a place in a journal: the ledger has the rows of all entries before it. With the mark, the ledger notes the open
jobs that had a reservation then. So a start reads the entries behind the mark, and finds there which other jobs have one.
Marks are notes of the ledger (`LedgerWriter`), since they are true of this ledger: one that is empty, or an older copy,
has none, or earlier ones. Later marks only spare reading, so it does no harm if one is not made.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice

import msgspec

from sabot.agents.accounts.contract import LedgerEvent
from sabot.agents.accounts.job_limits import TreeUse
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.shared import SHORT_PATIENCE_S
from sabot.base.quantities import counted_words
from sabot.base.threads import run_in_thread, run_to_end
from sabot.errors import UNREADABLE, CorruptJournal, UserError, message_of
from sabot.jobs.guard import decode_verdict, stood_in
from sabot.journal import JournalReader
from sabot.journal.entries import Attempt, Begin, EffectResult, End, Entry, Intent

_log = logging.getLogger(__name__)

_AT_ONCE = 1000  # rows
_MOST_NOTED = 10_000  # jobs with a reservation beside a mark; with more of them a start reads all open jobs
_JOBS = "jobs"

_decode = msgspec.msgpack.Decoder(list[LedgerEvent] | TreeUse).decode
_encode_jobs, _decode_jobs = msgspec.json.encode, msgspec.json.Decoder(list[str]).decode


def rows_of(entries: Iterable[Entry]) -> Iterator[LedgerEvent]:
    """Yields the ledger rows that are stored in these journal entries (RESULT and END entries have such rows). Raises
    CorruptJournal if the rows in an entry cannot be decoded.
    """
    for entry in entries:
        if isinstance(entry, EffectResult | End) and entry.usage:
            try:
                used = _decode(entry.usage)
                if not isinstance(used, TreeUse):  # the use of a child, whose calls have rows of their own
                    yield from used
            except UNREADABLE as error:
                what = (
                    f"effect {entry.ordinal} has used" if isinstance(entry, EffectResult) else "its calls may have used"
                )
                raise CorruptJournal(f"job {entry.job}: what {what} cannot be read: {error}") from error


async def update_ledger(ledger: Ledger, journal: JournalReader, jobs: Collection[str] | None = None) -> int:
    """Writes into the ledger the rows that the journal has and the ledger lacks, for example after a crash. Ledger
    rows that differ from the rows in the journal are replaced, and a warning is logged. Returns the number of all
    rows in the journal. `jobs`: looks at the rows of these jobs only; None for all.

    Raises BrokerUnavailable if the database of the ledger does not answer, UserError if it cannot be used, and
    CorruptJournal if rows in the journal cannot be decoded.
    """
    await ledger.reach()
    return await _correct(
        ledger, journal, (entry for _, entry in (journal.read() if jobs is None else journal.read_jobs(jobs)))
    )


async def _correct(ledger: Ledger, journal: JournalReader, entries: Iterable[Entry]) -> int:
    count, corrected, rows = 0, 0, rows_of(entries)
    while chunk := await run_to_end(run_in_thread(list, islice(rows, _AT_ONCE))):
        corrected += await ledger.correct(chunk)
        count += len(chunk)
    if corrected:
        _log.warning(
            "%s: corrected %s of the ledger, which said something else", journal.where, counted_words(corrected, "row")
        )
    return count


async def catch_up(
    ledger: Ledger, journal: JournalReader, *, shared: bool
) -> tuple[Mapping[int, int], set[str] | None]:
    """Does what `update_ledger` does, for the entries behind the marks of the journal. Returns the ends of the journal, for a
    mark, and the jobs that may have a reservation, of which some may have ended; None if the ledger does not know them. Called
    when the program starts, so a missing database is noticed before the first call. Raises the errors of `update_ledger`.

    `shared`: True if several workers append to the journal. Then the rows of all of them are read.
    """
    await ledger.reach(SHORT_PATIENCE_S)
    notes, ends = await _notes(ledger, _name(journal, "")), await run_in_thread(journal.ends)
    jobs = notes.pop(_name(journal, _JOBS), "")
    marks = {int(name.removeprefix(_name(journal, ""))): int(value) for name, value in notes.items()}
    if not shared and any(behind > ends.get(run, 0) for run, behind in marks.items()):
        marks, jobs = {}, ""  # the journal is an older copy: other entries will come before the marks
    calls: dict[str, set[int]] = {job: {0} for job in _decode_jobs(jobs)} if jobs else {}
    await _correct(ledger, journal, _noting(entries_behind(journal, ends, marks), calls))
    await _note(ledger, {_name(journal, run): "" for run in marks.keys() - ends.keys()})
    return ends, {job for job, reserved in calls.items() if reserved} if jobs else None


async def mark(ledger: Ledger, journal: JournalReader, ends: Mapping[int, int], jobs: Collection[str] | None) -> None:
    """Notes that the ledger has the rows of all entries before `ends`, which are offsets by run (`JournalReader.ends`).

    `jobs`: the open jobs that have a reservation, but for those whose calls have INTENT entries at or behind `ends`; None of
    a journal that several workers share.
    """
    notes = {_name(journal, run): str(end) for run, end in ends.items()}
    if jobs is not None:
        notes[_name(journal, _JOBS)] = _encode_jobs(sorted(jobs)).decode() if len(jobs) <= _MOST_NOTED else ""
    await _note(ledger, notes)


async def _notes(ledger: Ledger, prefix: str) -> dict[str, str]:
    """Returns the notes whose names begin with a prefix, by name; {} if the writer keeps none."""
    read: Callable[[str], Awaitable[dict[str, str]]] | None = getattr(ledger.writer, "notes", None)
    try:
        return {} if read is None else await read(prefix)
    except UserError as error:  # the user of a database may not use the table of notes
        _log.info("ledger: no notes are kept: %s", message_of(error))
        return {}


async def _note(ledger: Ledger, notes: Mapping[str, str]) -> None:
    """Keeps notes, by name, in place of earlier ones; "" removes one. Does nothing if the writer keeps none."""
    keep: Callable[[Mapping[str, str]], Awaitable[None]] | None = getattr(ledger.writer, "note", None)
    if notes and keep is not None:
        with suppress(UserError):  # as above
            await keep(notes)


def _name(journal: JournalReader, what: int | str) -> str:
    return f"{journal.identity}/{what}"


def entries_behind(journal: JournalReader, ends: Mapping[int, int], marks: Mapping[int, int]) -> Iterator[Entry]:
    """Yields the entries behind the marks and before the ends of all runs. Blocks."""
    for run, end in sorted(ends.items()):
        if (first := marks.get(run, 0)) < end:
            for position, entry in journal.read_run(run, first):
                if position.offset >= end:
                    break
                yield entry


def _noting(entries: Iterable[Entry], calls: dict[str, set[int]]) -> Iterator[Entry]:
    """Yields the entries, and keeps in `calls`, by job, the ordinals of its open calls of models; 0 stands for those before
    these entries, and for those of an earlier run of a job that begins again.
    """
    for entry in entries:
        if isinstance(entry, Intent) or (isinstance(entry, Attempt) and entry.ordinal):
            verdict = decode_verdict(entry.note) if isinstance(entry, Intent) else stood_in(entry)
            if verdict is not None and (verdict.model or verdict.about):
                calls.setdefault(entry.job, set()).add(entry.ordinal)
        elif isinstance(entry, EffectResult) and entry.job in calls:
            calls[entry.job].discard(entry.ordinal)
        elif isinstance(entry, End):
            calls.pop(entry.job, None)
        elif isinstance(entry, Begin) and entry.run > 1:
            calls.setdefault(entry.job, set()).add(0)
        yield entry
