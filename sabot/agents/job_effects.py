"""The effects of one job, in the order in which it asked for them, with what became of each: for people who look at a job."""

from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal, TypeAlias

from sabot.agents.accounts.guard import rows_of
from sabot.agents.jobs import JobRecord
from sabot.agents.store import JobsOfJournal
from sabot.errors import UserError
from sabot.jobs.guard import CONFIRM, Decision, GuardVerdict, decode_verdict
from sabot.jobs.history import IN_DOUBT
from sabot.jobs.tree import child_id, parent_of
from sabot.journal.base import JournalReader
from sabot.journal.entries import Answer, Attempt, Begin, EffectResult, End, Entry, Intent, Signal

EffectState: TypeAlias = Literal[
    "open", "in_doubt", "needs_approval", "done", "failed", "denied", "answered", "expired", "withdrawn", "closed"
]
"""The state of an effect. in_doubt: a person is asked whether the effect was made. needs_approval: a person is asked whether it may be
made. withdrawn: its question was taken back. closed: the job ended, or began anew, while the effect was open.
"""

_MOST_JOBS = 1_000  # of a tree, whose tokens and money are added up
_ANSWERS: dict[str, EffectState] = {"resolved": "answered", "expired": "expired"}
_QUESTIONS: dict[str, EffectState] = {IN_DOUBT: "in_doubt", CONFIRM: "needs_approval"}
_OPEN = ("open", "in_doubt", "needs_approval")


@dataclass(frozen=True, slots=True)
class EffectRecord:
    """An effect of a job. Times are seconds since 1970.

    `kind`: call, ask, sleep, wait, child or patch. `attempts`: how often the call was made or may have been made. `ended_at`: None while
    the effect is open. `outcome`: "ok", the type of the error, or "". `by`: the person who answered last, or "". `decision`: the
    decision of the policy, or "" if there was none. `rule`: the rule that decided. `tokens`, `dollars`: the use that budgets count.
    `child`: the id of the job that the effect began, or "".
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
    child: str = ""

    @property
    def is_open(self) -> bool:
        """True if nothing has come of the effect yet."""
        return self.state in _OPEN


@dataclass(frozen=True, slots=True)
class JobStory:
    """A job with all of its effects.

    `parent`: the id of the job that began this one, or "". `children`: the jobs that this one began. `tokens`, `dollars`: the use of
    this job's own calls; `tree_tokens`, `tree_dollars`: with those of all jobs below it, of which at most 1,000 are read.
    """

    record: JobRecord
    effects: list[EffectRecord]
    parent: str
    children: list[JobRecord]
    tokens: int
    dollars: Decimal
    tree_tokens: int
    tree_dollars: Decimal


@dataclass(slots=True)
class EffectsOfJob:
    """A fold of the entries of one job: `add` takes them in their order."""

    effects: dict[int, EffectRecord] = field(default_factory=dict)
    tokens: int = 0
    dollars: Decimal = Decimal(0)
    _early: Counter[str] = field(default_factory=Counter)  # signals for which no wait was open

    def add(self, entry: Entry) -> None:
        """Adds the next entry of the job. Raises CorruptJournal for a note or a use that cannot be read."""
        at = entry.at_ms / 1000
        match entry:
            case Begin():
                self._close_open(at)
                self._early.clear()
            case Intent():
                self._intend(entry, at)
            case Attempt() if entry.ordinal in self.effects:
                known = self.effects[entry.ordinal]
                self.effects[entry.ordinal] = replace(
                    known, attempts=max(entry.attempt, known.attempts), state="open", ended_at=None, outcome=""
                )
            case EffectResult() if entry.ordinal in self.effects:
                self._result(entry, at)
            case Answer() if entry.ordinal in self.effects:
                self._answer(entry, at)
            case Signal():
                self._signal(entry, at)
            case End():
                self._close_open(at)
                self._use(entry)

    def _intend(self, intent: Intent, at: float) -> None:
        known = self.effects.get(intent.ordinal)
        if known is not None and intent.kind == "ask":  # a question about an effect, which has the effect's ordinal
            question = _QUESTIONS.get(intent.name, "open")
            self.effects[intent.ordinal] = replace(known, state=question, ended_at=None)
            return
        verdict = decode_verdict(intent.note) or GuardVerdict()
        made = EffectRecord(
            intent.ordinal,
            intent.kind,
            intent.name,
            intent.effect_class,
            at,
            due_at=intent.due_ms / 1000 if intent.due_ms else None,
            decision=str(verdict.decision) if intent.note else "",
            rule=verdict.rule,
            child=child_id(intent.job, intent.ordinal) if intent.kind == "child" else "",
        )
        if intent.kind == "patch":
            made = replace(made, state="done", ended_at=at)
        elif intent.kind == "wait" and self._early[intent.name]:
            self._early[intent.name] -= 1
            made = replace(made, state="done", ended_at=at)
        self.effects[intent.ordinal] = made

    def _result(self, entry: EffectResult, at: float) -> None:
        known = self.effects[entry.ordinal]
        tokens, dollars = self._use(entry)
        denied = known.decision == Decision.DENY
        self.effects[entry.ordinal] = replace(
            known,
            state="done" if entry.outcome == "ok" else "denied" if denied else "failed",
            attempts=max(entry.attempt, known.attempts),
            ended_at=at,
            outcome=entry.outcome,
            tokens=known.tokens + tokens,
            dollars=known.dollars + dollars,
        )

    def _answer(self, entry: Answer, at: float) -> None:
        known = self.effects[entry.ordinal]
        if known.state in ("in_doubt", "needs_approval"):
            self.effects[entry.ordinal] = replace(known, state="open", by=entry.by)
        else:
            state = _ANSWERS.get(entry.outcome, "withdrawn")
            self.effects[entry.ordinal] = replace(known, state=state, ended_at=at, by=entry.by)

    def _signal(self, entry: Signal, at: float) -> None:
        for ordinal, known in self.effects.items():
            if known.kind == "wait" and known.name == entry.name and known.is_open:
                self.effects[ordinal] = replace(known, state="done", ended_at=at, by=entry.by)
                return
        self._early[entry.name] += 1

    def _close_open(self, at: float) -> None:
        for ordinal, known in self.effects.items():
            if known.is_open:
                self.effects[ordinal] = replace(known, state="closed", ended_at=at)

    def _use(self, entry: EffectResult | End) -> tuple[int, Decimal]:
        tokens, dollars = 0, Decimal(0)
        for row in rows_of([entry]):
            tokens, dollars = tokens + row.adds.tokens, dollars + row.adds.cost
        self.tokens, self.dollars = self.tokens + tokens, self.dollars + dollars
        return tokens, dollars


def job_story(reader: JournalReader, job_id: str) -> JobStory:
    """Returns a job with its effects, its children, and its use of tokens and money. Reads the entries of the jobs of its tree, and
    blocks. Raises UserError if the journal does not have the job, and CorruptJournal for an entry that cannot be read.
    """
    record, own = _folded(reader, job_id)
    if record is None:
        raise UserError(f"{reader.where} has no job {job_id}", hint="sabot jobs list shows the jobs")
    effects = sorted(own.effects.values(), key=lambda each: each.ordinal)
    children: list[JobRecord] = []
    tokens, dollars = own.tokens, own.dollars
    below = [each.child for each in reversed(effects) if each.child]
    direct, left = set(below), _MOST_JOBS
    while below and left > 0:
        child, left = below.pop(), left - 1
        found, used = _folded(reader, child)
        if found is None:
            continue
        if child in direct:
            children.append(found)
        tokens, dollars = tokens + used.tokens, dollars + used.dollars
        below += [each.child for each in used.effects.values() if each.child]
    return JobStory(record, effects, parent_of(job_id)[0], children, own.tokens, own.dollars, tokens, dollars)


def _folded(reader: JournalReader, job_id: str) -> tuple[JobRecord | None, EffectsOfJob]:
    jobs, effects = JobsOfJournal(reader, job_id, blank=True), EffectsOfJob()
    for _, entry in reader.read(job_id):
        jobs.apply(entry)
        effects.add(entry)
    return jobs.job(job_id), effects
