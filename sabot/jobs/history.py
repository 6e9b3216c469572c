"""The history of one job, in the form that a replay needs: its effects and their outcomes, in the order of the journal.

   BEGIN  INTENT 1  RESULT 1  INTENT 2  INTENT 3  RESULT 3  ATTEMPT  RESULT 2 …
          ───────── asked     ───────── asked     delivered first    delivered second

Only entries after the last BEGIN count (`ctx.continue_as` begins a history anew). Ordinals go on, so that no effect has
the id of an earlier one. But a BEGIN after END is another attempt of the same history: the dead letter of a failed job
was sent again. The job keeps the input with which this history began, because the sender may only know the first input
of the job.

A RESULT with ordinal 0 means that the time of the attempt is over.

A new attempt of the job (ATTEMPT with ordinal 0) keeps all results, and forgets the errors of effects that may be
repeated: the function asks for these again. It also forgets everything that the attempt before had given up: timers
that have not fired, questions that it has withdrawn, children that were cancelled, and effects that were denied
(`guard`). The function asks for them anew, as new effects. A call that was not made because nobody awaited it is asked
for again under its own ordinal, so that its idempotency key stays the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sabot.errors import CorruptJournal
from sabot.jobs.guard import DecidedEffect, Decision, GuardVerdict, decode_verdict, stood_in
from sabot.journal.effects import RULES, EffectId
from sabot.journal.entries import UNSENT, Answer, Attempt, Begin, Cancel, EffectResult, End, Entry, Intent, Signal

IN_DOUBT = "in_doubt"
"""The type of the question that asks a person whether an effect was made. Its intent has the ordinal of that effect."""

VERDICTS = ("done", "not_done", "abandon")
"""The answers to a question of type IN_DOUBT, as {"outcome": …}; with "done" also {"result": …}, which the job gets."""

LOOK_UP = "look_up"
"""A further answer if the effect's tool has `reconcile=`: that function is called again, and may lead to another question."""

NOT_MADE = "cancelled"
"""The outcome of a child or a call that was certainly not made, and that the job no longer awaits (`core.drop`)."""

TIMEOUT = "timeout"
"""The name of a timer that limits the time of something, unlike a sleep. It starts anew in another attempt of the job."""

WAITS_LONG = ("ask", "wait", "child")
"""The kinds of effects that park a job which waits for nothing else. So does a timer, unless it is due within PARKS_MS."""

PARKS_MS = 1_000

ACTION_TYPES = ("confirm", "choose", "input", "upload", "reauth", "apply_changes", "approval", IN_DOUBT, "custom")
"""The types of questions that Sabot knows. A durable agent may use further types."""

Delivery = EffectResult | Answer | Signal | Cancel
"""An entry that changes a job from outside."""


class ContinueAs(BaseException):
    """The exception that `ctx.continue_as(input)` raises in the function, so that the job goes on with a new input and a new history."""

    def __init__(self, message: Any) -> None:
        super().__init__("continue_as")
        self.message = message


@dataclass(slots=True)
class History:
    """The history of one job, as a replay needs it.

    `begin` is the last BEGIN, and `runs` the number of BEGIN entries. `attempt` counts the attempts of the job from 1,
    and `tried_ms` is the time at which a later one began. `tries` has the number of attempts of each effect. `end` is
    the END entry, if there is one.

    `intents` has the effects by ordinal, and `deliveries` their outcomes in order; the first `kept` of these came in
    attempts before this one. `doubts` has the last question about an effect in doubt, by its ordinal, `approvals` the
    question whether an effect may be made, and `answers` the answers to both, by token. An approval may also be a
    question of the call's tool.

    `not_made` has the ordinals of calls whose last attempt was certainly not made: it could not be sent, its tool asked
    a person first, or the job waited no longer. `failed_children` has the ordinals of children that failed in an attempt
    before this one. `recorded` has for each effect the last attempt whose use is in an entry, and `instead` the decisions
    on models that stand in for the first one, by the attempt from which they hold.

    `base` is the last ordinal before the last BEGIN, and `last_ordinal` the last one of all. `ran_ms` is the time up to
    the last entry (`last_ms`) in all histories of the job, without waits for others. `seed` is the seed of random
    numbers, if it is not the job's own. `untaken` is the number of entries still to come from the job from whose
    checkpoint this one goes on.
    """

    begin: Begin
    runs: int = 1
    attempt: int = 1
    end: End | None = None
    intents: dict[int, Intent] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    kept: int = 0
    tried_ms: int = 0
    tries: dict[int, int] = field(default_factory=dict)
    doubts: dict[int, Intent] = field(default_factory=dict)
    approvals: dict[int, Intent] = field(default_factory=dict)
    not_made: set[int] = field(default_factory=set)
    failed_children: set[int] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    recorded: dict[int, int] = field(default_factory=dict)
    instead: dict[int, dict[int, GuardVerdict]] = field(default_factory=dict)
    base: int = 0
    last_ordinal: int = 0
    ran_ms: int = 0
    last_ms: int = 0
    seed: bytes = b""
    untaken: int = 0
    _waited_ms: int = 0  # the waits for open children, minus the time that ended ones have run
    _restored_ms: int = 0
    _open: dict[int, Intent] = field(
        default_factory=dict
    )  # effects without a result, and timers that nobody awaits any more

    def __post_init__(self) -> None:
        self.last_ms, self.seed = self.begin.at_ms, self.begin.seed
        if self.begin.origin is not None:
            self.untaken, self._restored_ms = self.begin.origin.entries, self.begin.origin.at_ms

    @classmethod
    def of(cls, job_id: str, entries: Iterable[Entry]) -> "History":
        """Returns the history of a job, from all its entries in order, with their bodies loaded. Raises CorruptJournal."""
        history: History | None = None
        for entry in entries:
            if isinstance(entry, Begin):
                history = cls(entry) if history is None else history.followed_by(entry)
            elif history is None:
                raise CorruptJournal(
                    f"job {job_id}: its first entry is no BEGIN", hint="go back to a copy of the journal"
                )
            else:
                history.add(entry)
        if history is None:
            raise CorruptJournal(f"job {job_id} has no entry in its journal", hint="go back to a copy of the journal")
        return history

    def followed_by(self, begin: Begin) -> "History":
        """Returns the history after another BEGIN of the job, which either begins it anew or continues it."""
        if self.end is None:
            followed = self.anew(begin)
            followed.untaken, followed._restored_ms = self.untaken, self._restored_ms
            followed._take()
            return followed
        if self.runs > 1:
            begin = msgspec.structs.replace(begin, body=self.begin.body)
        self.begin, self.end, self.last_ms = begin, None, begin.at_ms
        self._take()
        self.deliveries = [each for each in self.deliveries if not isinstance(each, Cancel)]
        self._try(self.attempt + 1, begin.at_ms)
        return self

    def anew(self, begin: Begin) -> "History":
        """Returns the new history that another BEGIN of the job begins."""
        ran_ms, last = self.ran_until(begin.at_ms), self.last_ordinal
        return History(begin, self.runs + 1, base=last, last_ordinal=last, ran_ms=ran_ms)

    def add(self, entry: Entry) -> None:
        """Adds the next entry. An entry behind END changes nothing."""
        if self.end is not None:
            self._take()
            return
        self._run_to(entry)
        self._open_or_close(entry)
        self._take()
        match entry:
            case Intent():
                self._intend(entry)
            case Attempt(ordinal=0):
                self._try(entry.attempt, entry.at_ms)
            case Attempt(note=note) if note == UNSENT:
                self.not_made.add(entry.ordinal)
            case Attempt() if entry.note:
                if (verdict := stood_in(entry)) is not None:
                    self.instead.setdefault(entry.ordinal, {})[entry.attempt] = verdict
            case Attempt():
                self.begin_attempt(entry.ordinal, entry.attempt)
            case Answer() if self._is_about_effect(entry):
                self.answers[entry.token] = entry
            case EffectResult() | Answer() | Signal() | Cancel():
                self.deliveries.append(entry)
                if isinstance(entry, EffectResult) and entry.usage:
                    self.recorded[entry.ordinal] = entry.attempt
            case End():
                self.end = entry
                if entry.usage:
                    self._record_open()

    def begin_attempt(self, ordinal: int, attempt: int) -> None:
        """Records another attempt of an effect. Questions about earlier attempts no longer count."""
        self.tries[ordinal] = max(attempt, self.tries.get(ordinal, 1))
        self.doubts.pop(ordinal, None)
        self.not_made.discard(ordinal)

    def add_question(self, question: Intent) -> None:
        """Notes a question to a person about an effect: whether it was made (`doubts`), or whether it may be (`approvals`)."""
        if question.name == IN_DOUBT:
            self.doubts[question.ordinal] = question
        else:
            self.approvals[question.ordinal] = question
            self.not_made.add(question.ordinal)

    def question_about(self, ordinal: int) -> tuple[Intent | None, Answer | None]:
        """Returns the question that a person was asked last about an effect without a result, and its answer; (None, None) if nobody was.
        If the last attempt was certainly not made, it asks whether the effect may be made, or the tool has asked it; else whether it was.
        """
        asked = (self.approvals if ordinal in self.not_made else self.doubts).get(ordinal)
        return asked, None if asked is None else self.answers.get(asked.token)

    def _record_open(self) -> None:
        """Records that the usage of calls without a result is in the journal, since the END entry has it."""
        over = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult)}
        self.recorded |= {at: self.attempt_of(each) for at, each in self.intents.items() if at not in over}

    def _take(self) -> None:
        """Counts an entry that was taken from another job. The time of this job begins after the last of these entries."""
        self.untaken -= 1
        if self.untaken == 0:
            self.last_ms = self._restored_ms

    def ran_until(self, now_ms: int) -> int:
        """Returns the time that the job has run until `now_ms`, in milliseconds, counted as `ran_ms` is."""
        return self.ran_ms if self._waits_for_others() else self.ran_ms + max(0, now_ms - self.last_ms)

    def _run_to(self, entry: Entry) -> None:
        """Moves the time forward to this entry. The time of a child counts when the child has ended, up to the time
        that the job has waited for children.
        """
        ran_ms, passed_ms = self.ran_until(entry.at_ms), max(0, entry.at_ms - self.last_ms)
        parked_ms = passed_ms - (ran_ms - self.ran_ms)
        if parked_ms or self._waited_ms:
            waits = any(each.kind == "child" for each in self._open.values())
            self._waited_ms = self._waited_ms + parked_ms if waits else 0
        if isinstance(entry, EffectResult) and entry.ran_ms:
            of_child = min(entry.ran_ms, self._waited_ms)
            self._waited_ms -= of_child
            ran_ms += of_child
        self.ran_ms, self.last_ms = ran_ms, self.last_ms + passed_ms

    def _waits_for_others(self) -> bool:
        """Returns True if the job was parked behind its last entry, and did not just sleep: it waited for a person, a
        signal or a child.
        """
        waits = False
        for each in self._open.values():
            if each.kind == "sleep":
                if 0 < each.due_ms - self.last_ms <= PARKS_MS:
                    return False
            elif not self._parks(each):
                return False  # returns early: with a thousand calls under way the first one decides
            else:
                waits = True
        return waits

    def _parks(self, intent: Intent) -> bool:
        questions = (self.doubts.get(intent.ordinal), self.approvals.get(intent.ordinal))
        return intent.kind in WAITS_LONG or any(each and each.token not in self.answers for each in questions)

    def _open_or_close(self, entry: Entry) -> None:
        match entry:
            case Intent() if entry.kind != "patch":
                self._open.setdefault(entry.ordinal, entry)
            case EffectResult():
                self._open.pop(entry.ordinal, None)
            case Answer() if not self._is_about_effect(entry):
                self._open.pop(entry.ordinal, None)
            case Signal():
                waits = (at for at, each in self._open.items() if (each.kind, each.name) == ("wait", entry.name))
                self._open.pop(next(waits, 0), None)

    def _is_about_effect(self, answer: Answer) -> bool:
        """Returns True if the answer is to a question about an effect, and not to one of the function's own."""
        asked = (self.doubts.get(answer.ordinal), self.approvals.get(answer.ordinal))
        return any(each is not None and each.token == answer.token for each in asked)

    def attempt_of(self, intent: Intent) -> int:
        """Returns the last attempt of this effect; 0 if a person has to allow it first."""
        verdict = decode_verdict(intent.note)
        asks = verdict is not None and verdict.decision is Decision.ASK
        return self.tries.get(intent.ordinal, 0 if asks else 1)

    def decided(self, effect: EffectId, verdict: GuardVerdict) -> DecidedEffect:
        """Returns the decision on an effect without a result. `verdict`: the verdict in its intent."""
        recorded, instead = self.recorded.get(effect.ordinal, 0), self.instead.get(effect.ordinal, {})
        return DecidedEffect(verdict, effect.attempt, recorded, instead)

    def approval(self, ordinal: int) -> Answer | None:
        """Returns a person's answer to the question whether this effect may be made. None if there is no answer yet, or
        nobody was asked.
        """
        question = self.approvals.get(ordinal)
        return None if question is None else self.answers.get(question.token)

    def has_result(self, ordinal: int) -> bool:
        """Returns True if the outcome of this effect is recorded."""
        return any(isinstance(each, EffectResult) and each.ordinal == ordinal for each in self.deliveries)

    def _try(self, attempt: int, at_ms: int) -> None:
        """Begins another attempt of the job."""
        self.attempt, self.tried_ms = attempt, at_ms
        for ordinal in [at for at, each in self.intents.items() if each.note and self._was_denied(each)]:
            del self.intents[ordinal]
        self.intents = {at: each for at, each in self.intents.items() if (each.kind, each.name) != ("sleep", TIMEOUT)}
        for entry in self.deliveries:
            if self._unwanted(entry):
                self.intents.pop(entry.ordinal, None)  # type: ignore[union-attr]  # it is of an effect
            elif isinstance(entry, EffectResult) and entry.outcome == NOT_MADE:
                self.not_made.add(entry.ordinal)
                self.doubts.pop(entry.ordinal, None)
        results = [each for each in self.deliveries if isinstance(each, EffectResult) and self._asked_again(each)]
        children = {at for at, each in self.intents.items() if each.kind == "child"}
        self.failed_children |= children.intersection(each.ordinal for each in results)
        self.deliveries = [each for each in self.deliveries if not self._asked_again(each)]
        self.kept = len(self.deliveries)
        fired = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult)}
        self.intents = {at: each for at, each in self.intents.items() if each.kind != "sleep" or at in fired}

    def _intend(self, intent: Intent) -> None:
        if intent.kind == "ask" and intent.ordinal in self.intents:
            self.add_question(intent)
        else:
            self.intents[intent.ordinal] = intent
            self.last_ordinal = max(self.last_ordinal, intent.ordinal)

    def _was_denied(self, intent: Intent) -> bool:
        """Returns True if the effect was denied by a rule, or because no person has answered. Another attempt of the job may ask
        for such an effect again. Returns False if a person has refused it.
        """
        verdict = decode_verdict(intent.note)
        assert verdict is not None
        if verdict.decision is Decision.DENY:
            return True
        answer = self.approval(intent.ordinal)
        return verdict.decision is Decision.ASK and answer is not None and answer.outcome != "resolved"

    def _unwanted(self, entry: Delivery) -> bool:
        """Returns True if the entry shows that the job itself gave the effect up."""
        match entry:
            case Answer():
                return entry.outcome == "cancelled" and entry.by == entry.job
            case EffectResult():
                intent = self.intents.get(entry.ordinal)
                return entry.outcome == NOT_MADE and intent is not None and intent.kind == "child"
        return False

    def _asked_again(self, entry: Delivery) -> bool:
        """Returns True if another attempt of the job may ask for the effect of this entry again."""
        if not isinstance(entry, Answer | EffectResult):
            return False
        intent = self.intents.get(entry.ordinal)
        failed = isinstance(entry, EffectResult) and entry.outcome != "ok"
        return intent is None or (
            failed and (entry.outcome == NOT_MADE or not intent.effect_class or RULES[intent.effect_class].repeatable)
        )
