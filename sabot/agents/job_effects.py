"""The effects of one job, in the order in which the job asked for them, each with its result. They are for people who
look at a job.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from sabot.agents.actions import ActionRecord
from sabot.agents.entry_values import value_of
from sabot.agents.job_history import amounts_of, record_of
from sabot.agents.job_view import EffectState, EffectView, HasBodies, JobView, resolution_of
from sabot.agents.jobs import JobRecord, JobStatus
from sabot.agents.questions import answer_name
from sabot.base.accounts import NOTHING, Amounts
from sabot.errors import UserError
from sabot.jobs.guard import NO_OBJECTION, decode_verdict
from sabot.jobs.history import IN_DOUBT
from sabot.jobs.open_jobs import begun_or_queued
from sabot.jobs.tree import child_id
from sabot.journal.base import JournalReader
from sabot.journal.entries import Begin, End, Entry

_MOST_JOBS = 1_000  # the most jobs of a tree whose tokens and money are added up
_OPEN = ("open", "in_doubt", "needs_approval")


@dataclass(frozen=True, slots=True)
class EffectAnswer:
    """The answer to a question about an effect, or the way in which the question ended without an answer.

    - `question`: "in_doubt" for the question whether the effect was made, or "confirm" for the question whether it may
      be made.
    - `answer`: the short name of the answer (`inbox.answer_name`). If nobody answered, it is the outcome of the
      question, such as "expired".
    - `by`: the person who answered, or "".
    - `at`: the time of the answer in seconds since 1970.
    - `found`: the result if the answer was to ask the tool's `reconcile=` function once more: "done", "not done" or
      "unknown". Otherwise, or while there is no result yet, "".
    - `again_at`: the time in seconds since 1970 at which the effect was made again after the answer. None if it was not
      made again, or if the question was "confirm".
    """

    question: str
    answer: str
    by: str
    at: float
    found: str = ""
    again_at: float | None = None


@dataclass(frozen=True, slots=True)
class EffectRecord:
    """An effect of a job, for people who look at the job. Times are in seconds since 1970.

    - `kind`: "call", "ask", "sleep", "wait", "child" or "patch".
    - `asked_at`, `due_at`: the time at which the job requested the effect, and the time at which the effect ends by
      itself (None if it does not).
    - `attempts`: the number of times that the call was made or may have been made.
    - `ended_at`: the time at which the effect ended; None while it is open.
    - `outcome`: "ok", or the type of the error; "" while the effect is open.
    - `by`: the person who answered the last question about the effect, or "".
    - `decision`, `rule`: the decision of the policy, and the rule that made it; "" if there was no decision.
    - `tokens`, `dollars`: the usage that counts in budgets.
    - `doubt_tokens`, `doubt_dollars`: the part of that usage which is only an upper bound.
    - `child`: the id of the job that the effect began, or "".
    - `answers`: the answers to questions about the effect, the oldest first.
    """

    ordinal: int
    kind: str
    name: str
    effect_class: str
    asked_at: float
    due_at: float | None = None
    state: EffectState = "open"
    attempts: int = 1
    ended_at: float | None = None
    outcome: str = ""
    by: str = ""
    decision: str = ""
    rule: str = ""
    tokens: int = 0
    dollars: Decimal = Decimal(0)
    doubt_tokens: int = 0
    doubt_dollars: Decimal = Decimal(0)
    child: str = ""
    answers: tuple[EffectAnswer, ...] = ()

    @property
    def is_open(self) -> bool:
        """True if the effect has no result yet."""
        return self.state in _OPEN


def effect_record(effect: EffectView, bodies: HasBodies) -> EffectRecord:
    """Returns an effect in the form that people are shown. `bodies` is the journal, from which the answers to questions
    are loaded. Raises CorruptJournal if the stored decision of the policy cannot be read.
    """
    intent = effect.intent
    verdict = decode_verdict(intent.note) or NO_OBJECTION
    return EffectRecord(
        intent.ordinal,
        intent.kind,
        intent.name,
        intent.effect_class,
        intent.at_ms / 1000,
        due_at=intent.due_ms / 1000 if intent.due_ms else None,
        state=effect.state,
        attempts=effect.attempts,
        ended_at=effect.ended_at,
        outcome=effect.outcome,
        by=effect.by,
        decision=str(verdict.decision) if intent.note else "",
        rule=verdict.rule,
        tokens=effect.used.tokens,
        dollars=effect.used.cost,
        doubt_tokens=effect.doubts.tokens,
        doubt_dollars=effect.doubts.cost,
        child=child_id(intent.job, intent.ordinal) if intent.kind == "child" else "",
        answers=tuple(_answer_of(effect, number, bodies) for number in range(1, len(effect.answers) + 1)),
    )


def _answer_of(effect: EffectView, number: int, bodies: HasBodies) -> EffectAnswer:
    question, entry = effect.answers[number - 1]
    name = answer_name(resolution_of(bodies.load(entry.body))) if entry.outcome == "resolved" else entry.outcome
    again = dict(effect.again).get(number) if question == IN_DOUBT else None
    found = ""
    if name == "look-up":
        if again is not None:
            found = "not done"
        elif number < len(effect.answers) or effect.question is not None:
            found = "unknown"  # a person was asked once more
        elif effect.outcome == "ok":
            found = "done"
    return EffectAnswer(question, name, entry.by, entry.at_ms / 1000, found, again)


def effects_of(view: JobView, entries: Iterable[Entry]) -> dict[int, EffectView]:
    """Applies the entries of one job to `view`. Returns the effects of the job by their ordinals, in the order in which
    the job requested them.
    """
    effects: dict[int, EffectView] = {}
    for entry in entries:
        for effect in view.apply(entry).effects:
            effects[effect.intent.ordinal] = effect
    return dict(sorted(effects.items()))


class FoldedJob(NamedTuple):
    """A job as computed from all its entries.

    - `record`: the job.
    - `actions`: its questions to people.
    - `effects`: its effects, by ordinal.
    - `begin`, `end`: its last BEGIN entry and its last END entry, or None if the journal has none.
    """

    record: JobRecord
    actions: list[ActionRecord]
    effects: Mapping[int, EffectView]
    begin: Begin | None
    end: End | None

    def values(self, reader: JournalReader) -> dict[str, Any]:
        """Returns a dict with the decoded input of the job as "input" and, if the job has succeeded, its decoded result
        as "output". Returns {} if the job is not one of an agent. Blocks the thread.
        """
        found: dict[str, Any] = {}
        if self.record.agent and self.begin is not None:
            found["input"] = value_of(self.begin, reader.load(self.begin.body))
            if self.end is not None and self.record.status is JobStatus.SUCCEEDED:
                found["output"] = value_of(self.end, reader.load(self.end.body))
        return found


def folded_job(reader: JournalReader, job_id: str) -> FoldedJob:
    """Returns a job with its actions and effects, computed from all entries that the journal still has of the job.
    Blocks the thread. Raises UserError if the journal does not have the job, and CorruptJournal for an entry that
    cannot be read.
    """
    # a job that its owner begins meanwhile is found at the second look
    found = _folded(reader, job_id) or _queued(reader, job_id) or _folded(reader, job_id)
    if found is None:
        raise UserError(f"{reader.where} has no job {job_id}", hint="sabot jobs list shows the jobs")
    return found


def family_of(reader: JournalReader, job: FoldedJob) -> tuple[list[JobRecord], Amounts, Amounts]:
    """Returns the jobs that a job has begun, the usage of the calls of the job and of all its descendants, and the part
    of that usage which is known to be only an upper bound. Reads the entries of at most 1,000 descendants: if there are
    more, the usage of some may be missing. Blocks the thread.
    """
    record, job_id = job.record, job.record.job_id
    children: list[JobRecord] = []
    used, doubts = amounts_of(record)
    if record.children:
        used = used.plus(reader.history.used_below([job_id]).get(job_id, NOTHING))
    below = _children_of(job.effects)[::-1]
    direct, left = set(below), _MOST_JOBS
    while below and left > 0:
        child, left = below.pop(), left - 1
        kept_row = reader.history.known([child])  # its use is counted already, with that of the history below the job
        found = None if kept_row else _folded(reader, child)
        known = [record_of(row) for row in kept_row]
        if found is not None:
            used = used.plus(amounts_of(found.record)[0])
            below += _children_of(found.effects)
            known = [found.record]
        for each in known:
            doubts = doubts.plus(amounts_of(each)[1])
        if child in direct:
            children += known
    return children, used, doubts


def _folded(reader: JournalReader, job_id: str) -> FoldedJob | None:
    _, again = begun_or_queued(reader, job_id)  # first: a retry that begins meanwhile is among the entries
    view, entries = JobView(reader), [entry for _, entry in reader.history.entries(job_id)]
    effects = effects_of(view, entries)
    view.note_marks(filter(None, [reader.job(job_id)]))
    if view.is_over(job_id) and again is not None:
        view.apply_queued(again, reader.waits([job_id]).get(job_id, ""))
    record = view.job(job_id)
    if record is None:
        return None
    begin = next((each for each in reversed(entries) if isinstance(each, Begin)), None)
    end = next((each for each in reversed(entries) if isinstance(each, End)), None)
    return FoldedJob(record, list(view.actions.values()), effects, begin, end)


def _queued(reader: JournalReader, job_id: str) -> FoldedJob | None:
    """Returns a job that a client has begun, and the owner of the journal has not taken yet."""
    _, begin = begun_or_queued(reader, job_id)
    if begin is None:
        return None
    view = JobView(reader)
    view.apply_queued(begin, reader.waits([job_id]).get(job_id, ""))
    return FoldedJob(view.present(job_id), [], {}, begin, None)


def _children_of(effects: Mapping[int, EffectView]) -> list[str]:
    intents = [effect.intent for effect in effects.values()]
    return [child_id(intent.job, intent.ordinal) for intent in intents if intent.kind == "child"]
