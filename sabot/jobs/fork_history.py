"""Copies the beginning of a job's history into a new job, which goes on from there.

   BEGIN  INTENT 1  RESULT 1  INTENT 2  INTENT 3  ▏RESULT 2 …      the history of a job; ▏ is the place of the fork
   BEGIN  INTENT 1  RESULT 1  INTENT 3  …                          the history with which the new job begins

Effect 2 is a call that had no result at that place, so the new job asks for it again. Effect 3 is a question or a
timer, which keeps the rest of its time. Copied entries keep their times, so the function reads the same clock while
they are replayed. Their usage (tokens and costs) does not count a second time.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from sabot.engine.calls.effects import RULES
from sabot.jobs.core import job_seed, question_token
from sabot.jobs.history import History
from sabot.journal.entries import Answer, Begin, EffectResult, End, Entry, Intent, JobOrigin, Signal

CHECKPOINT = "sabot.checkpoint"
"""The name of the signal that marks a checkpoint in the history of a job. In the copy of a history the signal gets
another name, so the new job does not have the checkpoint.
"""


class HistoryPart(NamedTuple):
    """The part of a job's history that is copied into another job, which continues from there. An effect is open if it
    had no result at that place of the history. A wait for a signal is never open.

    - `settled`: all entries in order, without those of open effects.
    - `waiting`: the INTENT entries of the open timers and questions. Open calls and children are in neither list.
    """

    settled: list[Entry]
    waiting: list[Intent]


def part_of(entries: Iterable[Entry]) -> HistoryPart:
    """Returns the part of a history that can be copied into another job. `entries`: the entries of the history from
    its first one up to the place at which the other job is to continue.
    """
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
    """Returns the INTENT entries of those calls and children in the whole history that have no result in `part`.
    Leaves out calls that were certainly not made, because the guard has denied them or because they could not be
    sent.

    `whole`: all entries of the job. `part`: the part of its history that is copied into another job.
    """
    settled = {entry.ordinal for entry in part.settled if isinstance(entry, Intent)}
    calls: dict[int, Intent] = {}
    for entry in whole:
        if isinstance(entry, Intent) and entry.kind in ("call", "child") and entry.ordinal not in settled:
            calls[entry.ordinal] = entry
        elif isinstance(entry, EffectResult) and entry.outcome in _NEVER_MADE:
            calls.pop(entry.ordinal, None)
    return list(calls.values())


_NEVER_MADE: Collection[str] = ("PolicyDenied", "BudgetExceeded", "BudgetUnavailable", "NotSent")


def doubted_calls(whole: Iterable[Entry]) -> list[Intent]:
    """Returns the INTENT entries of those calls that change something outside of Sabot, and of which these entries do not
    tell whether they were made: a call without an outcome, also one that is still under way, and one that was given up
    as such. Leaves out calls that were certainly not made. `whole`: all entries of a job, with their bodies.
    """
    history: History | None = None
    found: dict[int, Intent] = {}
    for entry in whole:
        if isinstance(entry, Begin):
            found |= {} if history is None else _doubted(history)
            history = History(entry) if history is None else history.followed_by(entry)
        elif history is not None:
            history.add(entry)
    return list((found | ({} if history is None else _doubted(history))).values())


def _doubted(history: History) -> dict[int, Intent]:
    outcomes = {each.ordinal: each.outcome for each in history.deliveries if isinstance(each, EffectResult)}
    return {
        at: intent
        for at, intent in history.intents.items()
        if intent.kind == "call"
        and RULES[intent.effect_class].settles
        and outcomes.get(at, _GIVEN_UP[0]) in _GIVEN_UP
        and history.attempt_of(intent)
        and at not in history.not_made
    }


_GIVEN_UP = ("Abandoned", "InDoubt")  # the outcomes of calls of which nobody has found out whether they were made


def seeds_of(job_id: str, entries: Iterable[Entry], key: bytes) -> tuple[bytes, ...]:
    """Returns the seeds of a job's random numbers, one for each history that the job has begun. `entries`: all entries
    of the job. `key`: the key of its journal.
    """
    history: History | None = None
    seeds: dict[int, bytes] = {}
    for entry in entries:
        if isinstance(entry, Begin):
            history = History(entry) if history is None else history.followed_by(entry)
            seeds.setdefault(history.runs, job_seed(entry.seed, job_id, history.runs, key))
        elif history is not None:
            history.add(entry)
    return tuple(seeds.values())


def take_over(before: Sequence[Entry], job_id: str, origin: JobOrigin, at_ms: int, key: bytes) -> list[Entry]:
    """Returns the entries with which the new job `job_id` begins. They are copies of another job's entries.

    - `before`: the entries of the other job up to the place at which the new job continues.
    - `origin`: names the other job and its checkpoint. Its `at_ms` must be the present time.
    - `at_ms`: the time at which the other job was at that place, in milliseconds since 1970.
    - `key`: the key of the journal, which contains both jobs.
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
            # the usage is in the ledger already; that of a child counts in the budget of its parent
            entry = msgspec.structs.replace(entry, usage=b"")
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
