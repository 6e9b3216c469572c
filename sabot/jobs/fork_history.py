"""Makes a part of a job's history the beginning of another job.

   BEGIN  INTENT 1  RESULT 1  INTENT 2  INTENT 3  ▏RESULT 2 …      of a job, up to a place
   BEGIN  INTENT 1  RESULT 1  INTENT 3  …                          of another job

Effect 2, a call without a result, is asked for anew. Effect 3, a question or a timer, keeps the rest of its time.
Entries keep their times, so the function reads the same clock over them. Their usage does not count a second time.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from sabot.jobs.core import job_seed, question_token
from sabot.jobs.history import History
from sabot.journal.entries import Answer, Begin, EffectResult, End, Entry, Intent, JobOrigin, Signal

CHECKPOINT = "sabot.checkpoint"
"""The name of the signal that marks a place in the history of a job. A fork does not take it over."""


class HistoryPart(NamedTuple):
    """A part of a history. `settled` has the entries without those of effects that had no result, and `waiting` the
    intents of timers and questions among these.
    """

    settled: list[Entry]
    waiting: list[Intent]


def part_of(entries: Iterable[Entry]) -> HistoryPart:
    """Returns the part of a history up to a place with which another job may begin."""
    entries = list(entries)
    asked: dict[int, Intent] = {}  # the first intent of an ordinal; later ones are questions about it
    over: set[int] = set()
    waiting: dict[int, Intent] = {}
    ended = False
    for entry in entries:
        match entry:
            case Begin() if not ended:  # ctx.continue_as: nobody waits any more for earlier effects
                waiting.clear()
            case Intent() if entry.ordinal not in asked:
                asked[entry.ordinal] = entry
                if entry.kind in ("ask", "sleep"):
                    waiting[entry.ordinal] = entry
                elif entry.kind in ("wait", "patch"):  # their deliveries do not have the ordinal
                    over.add(entry.ordinal)
            case EffectResult() | Answer() if _settles(entry, asked.get(entry.ordinal)):
                over.add(entry.ordinal)
                waiting.pop(entry.ordinal, None)
        ended = isinstance(entry, End)
    return HistoryPart(
        [entry for entry in entries if getattr(entry, "ordinal", 0) in {0, *over}], list(waiting.values())
    )


def _settles(entry: EffectResult | Answer, asked: Intent | None) -> bool:
    return isinstance(entry, EffectResult) or (asked is not None and asked.kind == "ask")


def open_calls(whole: Iterable[Entry], part: HistoryPart) -> list[Intent]:
    """Returns the calls and children of the whole history that are not settled in this part of it, and were not denied."""
    settled = {entry.ordinal for entry in part.settled if isinstance(entry, Intent)}
    calls: dict[int, Intent] = {}
    for entry in whole:
        if isinstance(entry, Intent) and entry.kind in ("call", "child") and entry.ordinal not in settled:
            calls[entry.ordinal] = entry
        elif isinstance(entry, EffectResult) and entry.outcome in _NEVER_MADE:
            calls.pop(entry.ordinal, None)
    return list(calls.values())


_NEVER_MADE: Collection[str] = ("PolicyDenied", "BudgetExceeded", "BudgetUnavailable", "NotSent")


def seeds_of(job_id: str, entries: Iterable[Entry], key: bytes) -> tuple[bytes, ...]:
    """Returns the seed of the random numbers of each history of a job. `key`: the key of its journal."""
    history: History | None = None
    seeds: dict[int, bytes] = {}
    for entry in entries:
        if isinstance(entry, Begin):
            history = History(entry) if history is None else history.followed_by(entry)
            seeds.setdefault(history.runs, entry.seed or job_seed(job_id, history.runs, key))
        elif history is not None:
            history.add(entry)
    return tuple(seeds.values())


def take_over(before: Sequence[Entry], job_id: str, origin: JobOrigin, at_ms: int, key: bytes) -> list[Entry]:
    """Returns the entries with which the job of this id begins: those of another job before a place. `origin`: the
    origin with the present time. `at_ms`: the time at which the other job was at that place. `key`: the key of the
    journal of both.
    """
    part, first = part_of(before), before[0]
    assert isinstance(first, Begin)
    origin = msgspec.structs.replace(origin, entries=len(part.settled) - 1, waiting=len(part.waiting))
    children = {entry.ordinal for entry in part.settled if isinstance(entry, Intent) and entry.kind == "child"}
    seeds = iter(seeds_of(first.job, before, key))
    taken: list[Entry] = []
    ended = False
    for entry in part.settled:
        if isinstance(entry, Begin):
            seed = b"" if ended else next(seeds)
            entry = msgspec.structs.replace(entry, origin=None if taken else origin, seed=seed, digest=b"")
        ended = isinstance(entry, End)
        if isinstance(entry, EffectResult | End) and getattr(entry, "ordinal", 0) not in children:
            entry = msgspec.structs.replace(
                entry, usage=b""
            )  # the usage is in the ledger already; that of a child counts in the budget of its parent
        taken.append(_of_job(entry, job_id, key))
    for intent in part.waiting:
        due_ms = origin.at_ms + max(0, intent.due_ms - at_ms) if intent.due_ms else 0
        taken.append(_of_job(msgspec.structs.replace(intent, at_ms=origin.at_ms, due_ms=due_ms), job_id, key))
    return taken


def _of_job(entry: Entry, job_id: str, key: bytes) -> Entry:
    changes: dict[str, Any] = {}
    token = getattr(entry, "token", "")
    if token:
        ordinal = getattr(entry, "ordinal", 0)
        its_own = token == question_token(key, entry.job, ordinal)  # by which a deadline finds it
        changes["token"] = question_token(key, job_id, ordinal, "" if its_own else f"taken {token}")
    if isinstance(entry, Signal) and entry.name == CHECKPOINT:
        changes["name"] = f"{CHECKPOINT}.taken"
    return msgspec.structs.replace(entry, job=job_id, **changes)
