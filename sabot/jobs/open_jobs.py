"""Reads from a journal the jobs that have not ended. A start of the app needs them, and so do readers in other
processes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from operator import attrgetter, itemgetter
from typing import Any

import msgspec

from sabot.jobs.answers import always_in
from sabot.jobs.guard import CONFIRM, Behalf, DecidedEffect, Decision, decode_verdict, stood_in
from sabot.jobs.history import callee_of, standing_words
from sabot.jobs.owner import NOTHING_DECIDED, OpenJob
from sabot.jobs.tree import first_of
from sabot.journal import JournalReader, Position
from sabot.journal.base import MAY_BEGIN_AGAIN, Approval, JobMark, entry_of_letter, once_of
from sabot.journal.entries import (
    Answer,
    Attempt,
    Begin,
    Cancel,
    EffectResult,
    End,
    Entry,
    Intent,
    Letter,
    Signal,
    StoredBody,
)
from sabot.journal.entry_counts import parts

Standing = dict[tuple[str, str, str], dict[str, str]]
"""Approvals that hold for other jobs too. By the scope, its session (`session_of`), and the name of the tool, model or
agent: by rule, who has approved it. The session "" stands for the whole scope.
"""


def add_approvals(standing: Standing, approvals: Iterable[Approval]) -> None:
    """Adds the approvals of a journal that hold for other jobs."""
    for _, scope, session, name, rule, words in approvals:
        standing.setdefault((scope, session, name), {})[rule] = words


def unapplied_jobs(facts: Mapping[str, Any]) -> dict[str, Position]:
    """Returns jobs that had ended before a checkpoint, but whose output and changes of the state are not in that
    checkpoint. The result has, by the id of the job, the position of its END entry. `facts`: the facts about the
    journal that the checkpoint has stored (`JobLog.facts`).
    """
    return {job_id: Position(partition, offset) for job_id, partition, offset in facts.get("unapplied", ())}


def open_jobs(
    reader: JournalReader,
    positions: Mapping[int, int],
    unapplied: Mapping[str, Position],
    approvals: list[Approval] | None = None,
    *,
    whole: bool = False,
    jobs: Collection[str] | None = None,
) -> list[OpenJob]:
    """Returns all jobs of a journal that have not ended, and those whose end is not part of a checkpoint, in the
    order in which they began. Reads their entries, and blocks meanwhile.

    `positions`: by partition of the journal, the offset behind the last entry that is part of the checkpoint.
    `unapplied`: the jobs whose end is not part of the checkpoint although it is before `positions` (the result of
    `unapplied_jobs`). `approvals`: a list, to which the approvals for whole scopes and sessions are added that these
    jobs have got. `whole`: True to read the whole log, and to add those that any job has got.
    `jobs`: the ids of the open jobs that are read; None for all.
    """
    if whole or not positions:
        found = [*_folded(reader, reader.read(), positions, unapplied, approvals)]
    else:
        chosen = sorted({*(reader.unfinished(positions) if jobs is None else jobs), *unapplied})
        found = []
        for some in parts(chosen):  # what is noted while their entries are read is dropped before the next ones
            found += _folded(reader, reader.read_jobs(some), positions, unapplied, approvals)
    return sorted(found, key=attrgetter("began"))


def _folded(
    reader: JournalReader,
    entries: Iterable[tuple[Position, Entry]],
    positions: Mapping[int, int],
    unapplied: Mapping[str, Position],
    approvals: list[Approval] | None,
) -> Iterator[OpenJob]:
    """Yields the jobs of `open_jobs` that these entries make, which are all entries of the jobs in them."""
    asked: dict[str, Intent] = {}
    asking: dict[
        tuple[str, int], tuple[str, str]
    ] = {}  # of each effect about which a rule asks: its name, and the rule
    begun: dict[str, tuple[Position, Begin]] = {}
    ends: dict[str, tuple[Position, End]] = {}
    lasts: dict[str, Position] = {}
    decided: dict[str, dict[int, DecidedEffect]] = {}
    cancelled: set[str] = set()
    missing: dict[str, int] = {}  # by job that continues another one: the number of entries that are still to come
    for position, entry in entries:
        lasts[entry.job] = position
        if entry.job in missing:
            missing[entry.job] -= 1
        elif isinstance(entry, Begin) and entry.origin is not None:
            missing[entry.job] = entry.origin.entries + entry.origin.waiting
        if isinstance(entry, Begin):
            goes_on = entry.job in begun and entry.job not in ends  # ctx.continue_as
            begun[entry.job] = (begun[entry.job][0] if goes_on else position, entry)
            if not goes_on:
                cancelled.discard(entry.job)
            ends.pop(entry.job, None)
        elif isinstance(entry, Intent) and entry.name == CONFIRM and entry.kind == "ask":
            asked[entry.token] = entry
        elif isinstance(entry, Answer) and (question := asked.pop(entry.token, None)) is not None:
            about = asking.get((entry.job, question.ordinal))  # None for a question that the job's own code asks
            if approvals is not None and about is not None and entry.job in begun and entry.job not in cancelled:
                approvals += _standing_of(begun[entry.job][1], whole_entry(reader, entry), *about)
        elif isinstance(entry, Intent) and (verdict := decode_verdict(entry.note)) is not None:
            if verdict.decision is Decision.ASK and not verdict.once:
                asking[entry.job, entry.ordinal] = callee_of(entry, verdict), verdict.asked_by
            else:
                asking.pop((entry.job, entry.ordinal), None)
            attempt = 0 if verdict.decision is Decision.ASK else 1
            made = DecidedEffect(verdict, attempt, is_child=entry.kind == "child")
            decided.setdefault(entry.job, {})[entry.ordinal] = made
        elif isinstance(entry, Attempt) and entry.job in decided and entry.ordinal in decided[entry.job]:
            before = decided[entry.job][entry.ordinal]
            if not entry.note:
                decided[entry.job][entry.ordinal] = DecidedEffect(
                    before.verdict, entry.attempt, before.recorded, before.instead, before.is_child
                )
            elif (verdict := stood_in(entry)) is not None:
                instead = {**before.instead, entry.attempt: verdict}
                decided[entry.job][entry.ordinal] = DecidedEffect(
                    before.verdict, before.attempt, before.recorded, instead, before.is_child
                )
        elif isinstance(entry, Cancel):
            cancelled.add(entry.job)
        elif isinstance(entry, EffectResult) and entry.job in decided:
            decided[entry.job].pop(entry.ordinal, None)
            asking.pop((entry.job, entry.ordinal), None)
        elif isinstance(entry, End) and entry.job in begun:
            left = {
                at: DecidedEffect(each.verdict, each.attempt, each.attempt, each.instead, each.is_child)
                for at, each in decided.pop(entry.job, {}).items()
                if each.attempt  # else another attempt of the job asks anew, and it is decided then
            }
            if left and entry.outcome in MAY_BEGIN_AGAIN:
                decided[entry.job] = left
            covered = position.offset < positions.get(position.partition, 0)
            if covered and unapplied.get(entry.job) != position:
                del begun[entry.job], lasts[entry.job]
                ends.pop(entry.job, None)
            else:
                ends.setdefault(entry.job, (position, entry))
    for job_id, (position, begin) in begun.items():
        ended_at, end = ends.get(job_id, (None, None))
        fresh = position.offset >= positions.get(position.partition, 0)
        facts = begin.agent, begin.key, begin.body, begin.digest, position, fresh
        behalf = Behalf(begin.scope, begin.principal, begin.labels, begin.session)
        noted = decided.get(job_id, NOTHING_DECIDED)
        last, cut = lasts[job_id], missing.get(job_id, 0) > 0
        told = begin.at_ms, behalf, noted, begin.run, cut, job_id in cancelled
        yield OpenJob(job_id, *facts, end, ended_at, last, *told)


def cancelled_unrun(entries: Sequence[Entry]) -> tuple[Begin, str] | None:
    """Returns the BEGIN entry of the last run of a job, and the reason of its cancel, if it was cancelled before it has done
    anything that the journal knows: its function was not called then, or it has asked for nothing. Else None.
    """
    reason: str | None = None
    for entry in reversed(entries):
        if isinstance(entry, Cancel):
            reason = entry.reason
        elif isinstance(entry, Begin):
            return None if reason is None or entry.origin is not None else (entry, reason)
        elif not isinstance(entry, Signal):
            return None
    return None


def standing_place(begin: Begin, word: object, name: str) -> tuple[str, str, str] | None:
    """Returns the place in a Standing of an approval that a job has got. Returns None if it does not hold for other jobs.

    `begin`: the BEGIN entry of the job. `word`: the word of the answer (one of ALWAYS). `name`: the tool, model or agent.
    """
    if word == "scope" or (word == "session" and begin.session):
        return scope_of(begin), session_of(begin) if word == "session" else "", name
    return None


def session_of(begin: Begin) -> str:
    """Returns the name in a Standing of a job's session: with its principal, because whoever begins jobs may choose the
    session, and not on whose behalf they are.
    """
    return f"{len(begin.principal)} {begin.principal} {begin.session}"


def scope_of(begin: Begin) -> str:
    """Returns the tenant of a job. If the job names none, it is the app."""
    return begin.scope or begin.agent.rpartition(".")[0]


def _standing_of(begin: Begin, answer: Answer, name: str, rule: str) -> list[Approval]:
    """Returns the approval in an answer as a list, which is empty if it does not hold for other jobs too. `name`: the
    tool, model or agent about which the rule has asked.
    """
    word = always_in(answer)
    if word in ("", "job"):
        return []
    place = standing_place(begin, word, name)
    return [] if place is None else [(begin.job, *place, rule, standing_words(answer, word))]


def entries_of_trees(reader: JournalReader, jobs: Collection[str]) -> Iterator[tuple[Position, Entry]]:
    """Yields the entries of whole trees of jobs with their places: the entries of one tree after those of another, each
    in the order of the log. Blocks. `jobs`: jobs of these trees.
    """
    roots = {first_of(job_id) for job_id in jobs}
    trees: dict[str, list[str]] = {}
    for job_id in reader.logged_below(roots):
        trees.setdefault(first_of(job_id), []).append(job_id)
    yield from reader.read_jobs(roots - trees.keys())
    for root, below in trees.items():
        yield from merge(*map(reader.read, (root, *below)), key=itemgetter(0))


def last_begin(reader: JournalReader, job_id: str) -> Begin | None:
    """Returns the last BEGIN entry of a job; None if the journal has none of this job. Blocks."""
    begins = [entry for _, entry in reader.read(job_id) if isinstance(entry, Begin)]
    return begins[-1] if begins else None


def begun_or_queued(reader: JournalReader, job_id: str) -> tuple[JobMark | None, Begin | None]:
    """Returns what a journal knows about a job, and the BEGIN entry in a letter that begins the job, for the first time or
    again, and was not taken yet. Both are None if there is no such job. Blocks.

    The letter that begins a known job for the first time does not count: it was taken, or waits after the kernel has begun
    the job for another caller.
    """
    letter = reader.letter(f"begin:{job_id}")  # first: if the owner takes it meanwhile, the mark is there
    mark = reader.job(job_id)
    letter = letter if mark is None else None
    while mark is not None and mark.outcome in MAY_BEGIN_AGAIN:
        letter = reader.letter(once_of(Letter("retry", job=job_id), mark))
        if letter is not None:
            break
        before, mark = mark, reader.job(job_id)
        if mark is None or mark.began == before.began:
            break  # else the owner has taken a retry between the mark and its letter
    begin = None if letter is None else entry_of_letter(letter, None, 0)
    return mark, begin if isinstance(begin, Begin) else None


def jobs_begun_within(reader: JournalReader, effect: str) -> frozenset[str]:
    """Returns the jobs of a journal that the tool of an effect has begun by idempotency keys, or that wait in the inbox
    until they begin. `effect`: the key of the effect (`Begin.within`). Blocks.
    """
    # letters first: see `begun_or_queued`
    queued = [entry_of_letter(each, None, 0) for each in reader.letters() if each.kind == "begin"]
    begun = {entry.job for entry in queued if isinstance(entry, Begin) and entry.within == effect}
    return frozenset(begun.union(reader.begun_within(effect)))


def whole_entries(reader: JournalReader, job_id: str) -> list[tuple[Position, Any]]:
    """Returns the entries of a job with their positions. Long bodies, which the journal stores outside of the
    entries, are loaded into the entries. Blocks.
    """
    return [(position, whole_entry(reader, entry)) for position, entry in reader.read(job_id)]


def whole_histories(reader: JournalReader, jobs: Collection[str]) -> dict[str, list[tuple[Position, Any]]]:
    """Returns the entries of several jobs, by job, as `whole_entries` does. Blocks."""
    found: dict[str, list[tuple[Position, Any]]] = {job_id: [] for job_id in jobs}
    for position, entry in reader.read_jobs(jobs):
        found[entry.job].append((position, whole_entry(reader, entry)))
    return found


def whole_entry(reader: JournalReader, entry: Any) -> Any:
    """Returns the entry with its body. A long body, which the journal stores outside of the entry, is loaded into the
    entry. Blocks.
    """
    body = getattr(entry, "body", None)
    if not isinstance(body, StoredBody):
        return entry
    return msgspec.structs.replace(entry, body=reader.load(body))
