"""The history of one job in the form that a replay needs: its effects and their outcomes, in the order of the journal.

   BEGIN  INTENT 1  RESULT 1  INTENT 2  INTENT 3  RESULT 3  ATTEMPT  RESULT 2 …
          ───────── asked     ───────── asked     delivered first    delivered second

BEGIN: `ctx.continue_as` writes another BEGIN, which begins a history anew; only the entries after it count. The
ordinals of effects go on, so no effect gets the id of an earlier one. A BEGIN after END is different. It is another
attempt of the same history: the job has failed, and its dead letter was sent again, or a retry was asked for. If the job
had used `continue_as` before, it keeps the input of its last history, because the sender of the dead letter may only know
the job's first input. A retry has the last input, and may have other limits.

RESULT with ordinal 0: the time limit of the attempt is over.

ATTEMPT with ordinal 0: a new attempt of the job. It keeps all results. It forgets the errors of effects that may be
repeated, so the function asks for these again. It also forgets everything that the earlier attempt had given up: timers
that have not fired, questions that were withdrawn, children that were given up before they had begun, and effects that
a rule has denied. The function asks for these as new effects. Two kinds keep their ordinals: a call that was not made
because nobody awaited it, so that its idempotency key stays the same; and a child that was cancelled, so that the same
job runs again, over what it has made. Entries of earlier versions say that another child takes its place (`keeps`).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from sabot.engine.calls.effects import RULES, EffectClass, EffectId
from sabot.errors import CorruptJournal, EffectError
from sabot.jobs.answers import ALWAYS, always_in, is_approved, refusal_words, says_yes
from sabot.jobs.guard import BUDGET, DecidedEffect, Decision, GuardVerdict, decode_verdict, stood_in
from sabot.jobs.tree import is_retry
from sabot.jobs.values import unpack, unpack_error
from sabot.journal.entries import UNSENT, Answer, Attempt, Begin, Body, Cancel, EffectResult, End, Entry, Intent, Signal

IN_DOUBT = "in_doubt"
"""The type of the question that asks a person whether an effect was made. Its intent has the ordinal of that effect."""

VERDICTS = ("done", "not_done", "abandon")
"""The answers to a question of type IN_DOUBT, as {"outcome": …}; with "done" also {"result": …}, which the job gets."""

LOOK_UP = "look_up"
"""One more answer to a question of type IN_DOUBT, if the effect's tool has a `reconcile=` function. That function is
called again, which may lead to another question.
"""

NOT_MADE = "cancelled"
"""The outcome of a child or a call that was certainly not made and that the job awaits no longer (`core.drop`)."""

TIMEOUT = "timeout"
"""The name of a timer that limits the time of something. Another attempt of the job starts such a timer anew, unlike
that of a sleep.
"""

WAITS_LONG = ("ask", "wait", "child")
"""The kinds of effects that take long. A job that only awaits such effects is parked, and so is one that awaits a timer
that is due in more than PARKS_MS.
"""

PARKS_MS = 1_000

ACTION_TYPES = ("confirm", "choose", "input", "upload", "reauth", "apply_changes", "approval", IN_DOUBT, "custom")
"""The types of questions to people that Sabot knows. A durable agent may use further types."""

ASKS = "llm"
"""The name of the effect of a request to a model. It is not the name of the model, because that may change while jobs
are open.
"""

_REJECTS = ("MalformedAnswer", "ContentFiltered")  # the names of errors of model calls that a journal has

Delivery = EffectResult | Answer | Signal | Cancel
"""An entry that the function of a job gets from outside."""


UNNAMED = (lambda: None).__name__
"""The name of each lambda, by which nobody can tell which tool or rule an approval is about."""


def always_of(session: str) -> tuple[str, ...]:
    """Returns the words of ALWAYS that an approval in a job of this session may have. `session`: "" if the job has none."""
    return ALWAYS if session else ("job", "scope")


def rejects_answer(error: EffectError) -> bool:
    """Returns True if a job has failed with this error because it has read the answer of a model, and cannot use it."""
    if error.type.endswith("ExceptionGroup"):  # `pack_error` names its errors in the message
        return any(f"; {each}: " in error.message for each in _REJECTS)
    return error.type in _REJECTS


def _request_id(answer: EffectResult) -> str:
    """Returns the vendor's id of the request with this answer; "" if there is none."""
    told = unpack(answer.body) if isinstance(answer.body, bytes) else None
    return str(told.get("request_id") or "") if isinstance(told, dict) else ""


def standing_words(answer: Answer, word: str) -> str:
    """Returns the words that say who has approved later calls too, or the later steps of one. `word`: one of ALWAYS, or
    "call".
    """
    whom = f" by {answer.by}" if answer.by else ""
    return f"approved{whom} for the whole {word}, in job {answer.job} (effect {answer.ordinal})"


def callee_of(intent: Intent, verdict: GuardVerdict) -> str:
    """Returns the kind and the name of the tool, model or agent of an INTENT entry. A model may have the name of a tool."""
    kind = "model" if verdict.about else "child" if intent.kind == "child" else "tool"
    return f"{kind} {verdict.about or intent.name}"


def _name_of_call(name: str, body: bytes) -> tuple[str, bytes]:
    return name, blake2b(body, digest_size=16).digest()


class ContinueAs(BaseException):
    """The exception that `ctx.continue_as(input)` raises, to end the function of the job. The job then continues with
    the new input in a new history. `message`: the new input.
    """

    def __init__(self, message: Any) -> None:
        super().__init__("continue_as")
        self.message = message


@dataclass(slots=True)
class Refusal:
    """The refusal of a call by a person. `why`: the words for the function. `repeated`: how often the job has asked for
    the same call since then.
    """

    why: str
    repeated: int = 0


@dataclass(slots=True)
class History:
    """The history of one job, as a replay needs it. "By ordinal" means a dict whose keys are the ordinals of effects.

    - `begin`: the last BEGIN entry. `end`: the END entry; None if the job has not ended.
    - `runs`: the number of histories that the job has begun; `ctx.continue_as` begins a new one.
    - `attempt`: the number of the job's present attempt, from 1. `tried_ms`: the time at which that attempt began; 0
      for the first.
    - `intents`: the INTENT entries of the effects, by ordinal.
    - `deliveries`: the entries that the function of the job receives (results, answers, signals and cancels), in the
      order of the journal. The first `kept` of them remain from earlier attempts of the job.
    - `said`: how many of the deliveries behind `kept` the function has certainly got before, because another entry
      follows them; -1 if the function has certainly done nothing in this attempt. In a replay, the function repeats
      what it did up to then.
    - `tries`: the number of the last attempt of each effect, by ordinal; missing for effects that were only tried
      once.
    - `doubts`: by ordinal, the last question that asks a person whether the effect was made.
    - `approvals`: by ordinal, the question that asks a person whether the effect may be made, or the question that
      the effect's tool has asked.
    - `answers`: the answers to the questions in `doubts` and `approvals`, by token.
    - `approved`: by ordinal, the rules (`GuardVerdict.asked_by`) whose question about the effect a person has answered with
      yes, each with the words that say who has. They hold for the later steps of a call that is made in several.
    - `standing`: the approvals that hold for later calls too. By the word of the answer (one of ALWAYS) and the tool,
      model or agent (`callee_of`): by rule, who has approved it. `cancelled`: True if the job was cancelled; later
      answers are no such approvals.
    - `refusals`: by name and digest of the arguments, the refusals of calls by a person.
    - `not_made`: the ordinals of calls whose last attempt was certainly not made: it could not be sent, its tool had
      to ask a person first, or the job no longer awaited it.
    - `failed_children`: the ordinals of children that failed, or were cancelled, in an earlier attempt of the job.
    - `recorded`: by ordinal, the number of the last attempt whose usage the journal has.
    - `instead`: by ordinal, the guard's verdicts on other models to which the call has changed. They are a dict by the
      number of the first attempt with that model.
    - `began_ms`: the time at which the history began, which its function reads before its first delivery: also in another run,
      whose calls are known by their arguments.
    - `keeps`: True if the present attempt goes on with the children that earlier ones have given up (`Attempt.keeps`).
    - `base`: the last ordinal of the job's previous history; 0 in the first one. `last_ordinal`: the last ordinal of
      all.
    - `last_ms`: the time of the last entry. `ran_ms`: the milliseconds that the job has run up to that time, in all
      its histories. The time in which it waited for people, signals or children is not included.
    - `seed`: the seed of the random numbers, as the BEGIN entry has it.
    - `unread`: the digests of the requests to models whose recorded answer did not match, so that another attempt of the
      job sends them again (see `_forget_wrong_answer`).
    - `untaken`: for a job that continues from a checkpoint of another job, how many of the copied entries have still to
      be added.
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
    standing: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    cancelled: bool = False
    approved: dict[int, dict[str, str]] = field(default_factory=dict)
    refusals: dict[tuple[str, bytes], "Refusal"] = field(default_factory=dict)
    not_made: set[int] = field(default_factory=set)
    failed_children: set[int] = field(default_factory=set)
    answers: dict[str, Answer] = field(default_factory=dict)
    recorded: dict[int, int] = field(default_factory=dict)
    instead: dict[int, dict[int, GuardVerdict]] = field(default_factory=dict)
    base: int = 0
    keeps: bool = False
    began_ms: int = 0
    last_ordinal: int = 0
    ran_ms: int = 0
    last_ms: int = 0
    seed: bytes = b""
    unread: set[bytes] = field(default_factory=set)
    untaken: int = 0
    said: int = -1
    _waited_ms: int = 0  # the waits for open children, minus the time that ended ones have run
    _restored_ms: int = 0
    # effects without a result, and timers that nobody awaits any more
    _open: dict[int, Intent] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last_ms, self.seed = self.begin.at_ms, self.begin.seed
        self.began_ms = self.began_ms or self.begin.at_ms
        if self.begin.origin is not None:
            self.untaken, self._restored_ms = self.begin.origin.entries, self.begin.origin.at_ms

    @classmethod
    def of(cls, job_id: str, entries: Iterable[Entry], parked: int = 0) -> "History":
        """Returns the history of a job. Raises CorruptJournal if there is no entry, or if the first one is not a BEGIN.

        `entries`: all entries of the job in order, with their bodies loaded. `parked`: the number of them that were there
        when the job was parked, so that its function has got them all; 0 if that is unknown.
        """
        history: History | None = None
        for number, entry in enumerate(entries, 1):
            if isinstance(entry, Begin):
                history = cls(entry) if history is None else history.followed_by(entry)
            elif history is None:
                raise CorruptJournal(
                    f"job {job_id}: its first entry is no BEGIN", hint="go back to a copy of the journal"
                )
            else:
                history.add(entry)
            if number == parked:
                history.said = len(history.deliveries) - history.kept
        if history is None:
            raise CorruptJournal(f"job {job_id} has no entry in its journal", hint="go back to a copy of the journal")
        return history

    @property
    def declared(self) -> frozenset[str]:
        """The options "policy" and "budgets", as far as the programs had them that have begun the job, or have gone on with it.
        An entry of an earlier version does not tell: if a policy has decided on the last recorded call, there was one.
        """
        for intent in reversed(self.intents.values()):
            if (verdict := decode_verdict(intent.note)) is not None:
                judged = any(each != BUDGET for each in verdict.version.split())
                return frozenset(self.begin.declared) | ({"policy"} if judged else set())
        return frozenset(self.begin.declared)

    def lost(self, declared: Collection[str]) -> str:
        """Returns words why the job may make no call in a program with these of the options "policy" and "budgets"; or ""."""
        lost = sorted(self.declared.difference(declared))
        return (
            f"{' and '.join(f'{each}=' for each in lost)} judged the calls of the job before, and there is none now"
            if lost
            else ""
        )

    def followed_by(self, begin: Begin) -> "History":
        """Returns the history of the job after it got another BEGIN entry. If the present history has no END entry,
        this is a new history. If it has one, this is the same history, in which the BEGIN begins another attempt.
        """
        if self.end is None:
            followed = self.anew(begin)
            followed.untaken, followed._restored_ms = self.untaken, self._restored_ms
            followed._take()
            return followed
        begin = self._as_before(begin)
        if self.runs > 1 and not is_retry(begin):
            begin = msgspec.structs.replace(begin, body=self.begin.body)
        error = self.end.body if self.end.outcome == "failed" else b""
        self.begin, self.end, self.last_ms, self.cancelled = begin, None, begin.at_ms, False
        self._take()
        self._forget_open_questions()
        self.deliveries = [each for each in self.deliveries if not isinstance(each, Cancel)]
        if not begin.keeps:  # of an earlier version, whose calls may have been asked for with this time
            self.began_ms = begin.at_ms
        else:  # the end of the run before has cancelled them, and has said nothing of those that had begun
            over = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult)}
            self.failed_children |= {at for at, each in self.intents.items() if each.kind == "child" and at not in over}
        self._try(self.attempt + 1, begin.at_ms, error, keeps=begin.keeps)
        return self

    def anew(self, begin: Begin) -> "History":
        """Returns a new, empty history of the same job, which the BEGIN entry begins. Ordinals and `ran_ms` continue
        from the values of this history.
        """
        ran_ms, last = self.ran_until(begin.at_ms), self.last_ordinal
        return History(
            self._as_before(begin),
            self.runs + 1,
            base=last,
            last_ordinal=last,
            ran_ms=ran_ms,
            standing=self.standing,
            refusals=self.refusals,
        )

    def _as_before(self, begin: Begin) -> Begin:
        """Returns a later BEGIN entry with the salt of the first one, and with all that was declared so far: an effect has the
        same key in each run of the job, also if the first one was of an earlier version, and no run loses a policy.
        """
        salt, declared = self.begin.salt, tuple(sorted(self.declared.union(begin.declared)))
        if (begin.salt, begin.declared) == (salt, declared):
            return begin
        return msgspec.structs.replace(begin, salt=salt, declared=declared)

    def add(self, entry: Entry) -> None:
        """Adds the next entry. Ignores entries after END."""
        if self.end is not None:
            self._take()
            return
        self._run_to(entry)
        self._open_or_close(entry)
        copied = self.untaken > 0
        self._take()
        if not isinstance(entry, Delivery):  # it was asked for, or has followed, in the turn after the last delivery
            self.said = len(self.deliveries) - self.kept
        match entry:
            case Intent():
                self._intend(entry)
            case Attempt(ordinal=0):
                self._try(entry.attempt, entry.at_ms, entry.note, keeps=entry.keeps or self.begin.keeps)
            case Attempt(note=note) if note == UNSENT:
                self.not_made.add(entry.ordinal)
            case Attempt() if entry.note:
                if (verdict := stood_in(entry)) is not None:
                    self.instead.setdefault(entry.ordinal, {})[entry.attempt] = verdict
            case Attempt():
                self.begin_attempt(entry.ordinal, entry.attempt)
            case Answer() if self._is_about_effect(entry):
                self.answers[entry.token] = entry
                self._note_answer(entry, own=not copied)
            case EffectResult() | Answer() | Signal() | Cancel():
                self.cancelled = self.cancelled or isinstance(entry, Cancel)
                self.deliveries.append(entry)
                if isinstance(entry, EffectResult) and entry.usage:
                    self.recorded[entry.ordinal] = entry.attempt
            case End():
                self.end = entry
                if entry.usage:
                    self._record_open()

    def _note_answer(self, answer: Answer, own: bool) -> None:
        intent, asked = self.intents.get(answer.ordinal), self.approvals.get(answer.ordinal)
        verdict = None if intent is None else decode_verdict(intent.note)
        if intent is None or asked is None or asked.token != answer.token or verdict is None:
            return
        if verdict.decision is Decision.ASK and isinstance(intent.body, bytes):
            self.note_approval(answer, verdict, callee_of(intent, verdict), intent.body, own=own)

    def note_approval(self, answer: Answer, verdict: GuardVerdict, name: str, body: bytes, *, own: bool = True) -> None:
        """Notes what a person's answer to the question whether a call may be made says about later calls of the job.

        `verdict`: the verdict that has asked. `name`: the tool, model or agent (`callee_of`). `body`: the packed arguments.
        `own`: False if another job has got the answer, from which this one was restored; "always" for that job holds no more.
        """
        if answer.outcome != "resolved":
            return
        if not is_approved(answer):
            if not says_yes(answer):  # nobody knows what a faulty one means, so a person is asked again
                self.refusals[_name_of_call(name, body)] = Refusal(refusal_words(answer))
            return
        if verdict.once and not verdict.terms and not verdict.rule.startswith(UNNAMED):  # of a budget: each step costs
            return
        self.approved.setdefault(answer.ordinal, {})[verdict.asked_by] = standing_words(answer, "call")
        if verdict.once:
            return
        word = always_in(answer)
        if word in always_of(self.begin.session) and not self.cancelled and (own or word != "job"):
            self.standing.setdefault((word, name), {})[verdict.asked_by] = standing_words(answer, word)

    def repeat_refused(self, name: str, body: bytes) -> Refusal | None:
        """Returns the refusal of the same call by a person, after it has counted one more repetition of the call. Returns
        None if nobody has refused it. `name`, `body`: the tool, model or agent, and the packed arguments.
        """
        refusal = self.refusals.get(_name_of_call(name, body)) if self.refusals else None
        if refusal is not None:
            refusal.repeated += 1
        return refusal

    def begin_attempt(self, ordinal: int, attempt: int) -> None:
        """Records that another attempt of an effect begins. Removes the effect from `doubts` and `not_made`, whose
        contents were about an earlier attempt.
        """
        self.tries[ordinal] = max(attempt, self.tries.get(ordinal, 1))
        self.doubts.pop(ordinal, None)
        self.not_made.discard(ordinal)

    def add_question(self, question: Intent) -> None:
        """Records a question that a person was asked about an effect. If it asks whether the effect was made, stores
        it in `doubts`. Otherwise stores it in `approvals`, and adds the effect to `not_made`.
        """
        if question.name == IN_DOUBT:
            self.doubts[question.ordinal] = question
        else:
            self.approvals[question.ordinal] = question
            self.not_made.add(question.ordinal)

    def question_about(self, ordinal: int) -> tuple[Intent | None, Answer | None]:
        """Returns the last question that a person was asked about an effect without a result, and the answer to it.
        Each of the two is None if it does not exist.

        If the last attempt of the effect was certainly not made, the question is the one in `approvals`, and
        otherwise the one in `doubts`.
        """
        asked = (self.approvals if ordinal in self.not_made else self.doubts).get(ordinal)
        return asked, None if asked is None else self.answers.get(asked.token)

    def _record_open(self) -> None:
        """Updates `recorded` for the calls that have no result when the job ends. The END entry contains the usage of
        all attempts of these calls.
        """
        over = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult)}
        self.recorded |= {at: self.attempt_of(each) for at, each in self.intents.items() if at not in over}

    def _take(self) -> None:
        """Counts down `untaken`, because one more entry was added. When it reaches 0, all entries that were copied
        from the other job have been added. Then sets `last_ms` to the time at which this job was forked
        (`JobOrigin.at_ms`).
        """
        self.untaken -= 1
        if self.untaken == 0:
            self.last_ms = self._restored_ms

    def ran_until(self, now_ms: int) -> int:
        """Returns the milliseconds that the job has run until the time `now_ms`. Like `ran_ms`, they do not include
        the time in which the job waited for people, signals or children.
        """
        return self.ran_ms if self._waits_for_others() else self.ran_ms + max(0, now_ms - self.last_ms)

    def _run_to(self, entry: Entry) -> None:
        """Updates `ran_ms` and `last_ms` for the next entry. Adds the time since the last entry, unless the job waited
        for a person, a signal or a child during that time.

        The time that a child ran counts for its parent too. It is added when the entry is the result of the child. No
        more is added than the time that this job has waited for children, so two children that ran at the same time
        count once.
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
        self.ran_ms = ran_ms
        # The clock of a process goes forward only. An earlier time is that of the next process, whose clock is behind or was set
        # back: what the job runs from here on counts too. Letters have the time of the inbox, which may go back.
        of_host = isinstance(entry, Intent | Attempt | EffectResult)
        self.last_ms = entry.at_ms if of_host else max(self.last_ms, entry.at_ms)

    def _waits_for_others(self) -> bool:
        """Returns True if the job was parked after its last entry, and waited for a person, a signal or a child. It may
        have waited for timers as well. Returns False if it ran, or if it waited only for timers.
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
        """Returns True if this answers a question about an effect, such as an approval. Returns False if it answers a
        question that the function itself has asked (`ctx.ask`).
        """
        asked = (self.doubts.get(answer.ordinal), self.approvals.get(answer.ordinal))
        return any(each is not None and each.token == answer.token for each in asked)

    def attempt_of(self, intent: Intent) -> int:
        """Returns the number of the last attempt of this effect; 0 if a person has to approve the effect before its
        first attempt.
        """
        verdict = decode_verdict(intent.note)
        asks = verdict is not None and verdict.decision is Decision.ASK
        return self.tries.get(intent.ordinal, 0 if asks else 1)

    def decided(self, effect: EffectId, verdict: GuardVerdict) -> DecidedEffect:
        """Returns the guard's decision on an effect without a result. `verdict`: the verdict in its INTENT entry."""
        recorded, instead = self.recorded.get(effect.ordinal, 0), self.instead.get(effect.ordinal, {})
        is_child = self.intents[effect.ordinal].kind == "child"
        return DecidedEffect(verdict, effect.attempt, recorded, instead, is_child)

    def approval(self, ordinal: int) -> Answer | None:
        """Returns a person's answer to the question whether this effect may be made. Returns None if nobody was asked,
        or nobody has answered yet.
        """
        question = self.approvals.get(ordinal)
        return None if question is None else self.answers.get(question.token)

    def has_result(self, ordinal: int) -> bool:
        """Returns True if a RESULT entry of this effect is recorded, and the present attempt uses that result."""
        return any(isinstance(each, EffectResult) and each.ordinal == ordinal for each in self.deliveries)

    def _try(self, attempt: int, at_ms: int, error: Body = b"", *, keeps: bool) -> None:
        """Begins another attempt of the job in this history. Keeps the results of effects. Removes what the new
        attempt requests again: failed effects that may be repeated, timers that have not fired, withdrawn questions,
        cancelled children (`keeps`: but those that have begun), effects that a rule has denied, and an answer of a model
        that did not match. `error`: the packed error of the attempt before, as far as it is known.
        """
        self.attempt, self.tried_ms, self.keeps = attempt, at_ms, keeps
        if isinstance(error, bytes) and error:
            self._forget_wrong_answer(unpack_error(error))
        for ordinal in [at for at, each in self.intents.items() if each.note and self._was_denied(each)]:
            del self.intents[ordinal]
        self.intents = {at: each for at, each in self.intents.items() if (each.kind, each.name) != ("sleep", TIMEOUT)}
        for entry in self.deliveries:
            if self._unwanted(entry):
                self.intents.pop(entry.ordinal, None)  # type: ignore[union-attr]  # it is of an effect
            elif isinstance(entry, EffectResult) and entry.outcome == NOT_MADE:
                self.not_made.add(entry.ordinal)
                self.doubts.pop(entry.ordinal, None)
                if (answer := self.approval(entry.ordinal)) is not None and answer.outcome == "cancelled":
                    del self.approvals[entry.ordinal]  # the question of its tool, which the job has withdrawn
        results = [each for each in self.deliveries if isinstance(each, EffectResult) and self._asked_again(each)]
        children = {at for at, each in self.intents.items() if each.kind == "child"}
        self.failed_children |= children.intersection(each.ordinal for each in results)
        self.deliveries = [each for each in self.deliveries if not self._asked_again(each)]
        self.kept, self.said = len(self.deliveries), -1
        fired = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult)}
        self.intents = {at: each for at, each in self.intents.items() if each.kind != "sleep" or at in fired}

    def _forget_open_questions(self) -> None:
        """Removes the questions that have no answer, because the end of the job has closed them. Another attempt asks them
        anew, with other tokens: the function requests its own questions and calls that were never approved as new effects,
        and a call whose tool has asked, or that is in doubt, asks again.
        """
        ended = {each.ordinal for each in self.deliveries if isinstance(each, EffectResult | Answer)}
        for ordinal, intent in [*self.intents.items()]:
            if ordinal in ended:
                continue
            for asked in (self.doubts, self.approvals):
                if ordinal in asked and asked[ordinal].token not in self.answers:
                    del asked[ordinal]
            if intent.kind == "ask" or (not self.attempt_of(intent) and ordinal not in self.approvals):
                del self.intents[ordinal]
                self._open.pop(ordinal, None)

    def _forget_wrong_answer(self, error: EffectError) -> None:
        """Removes the answer of a model for which the job has failed with this error, because another attempt would read
        the same answer and fail again. All other answers are kept. It is the answer with the request id that the error
        names; if there is none, the last one.
        """
        if not rejects_answer(error):
            return
        asked = {
            at for at, each in self.intents.items() if (each.name, each.effect_class) == (ASKS, EffectClass.METERED)
        }
        answers = [each for each in self.deliveries if isinstance(each, EffectResult) and each.ordinal in asked][::-1]
        named = (each for each in answers if each.outcome == "ok" and f"request {_request_id(each)}: " in error.message)
        answer = next(named, None) or next(iter(answers), None)
        if answer is not None and answer.outcome == "ok":  # a failed request is sent again anyway
            self.unread.add(self.intents.pop(answer.ordinal).digest)

    def _intend(self, intent: Intent) -> None:
        if intent.kind == "ask" and intent.ordinal in self.intents:
            self.add_question(intent)
        else:
            self.intents[intent.ordinal] = intent
            self.last_ordinal = max(self.last_ordinal, intent.ordinal)
            if self.refusals and isinstance(intent.body, bytes):
                verdict = decode_verdict(intent.note)
                if verdict is not None and verdict.decision is Decision.DENY:
                    self.repeat_refused(callee_of(intent, verdict), intent.body)

    def _was_denied(self, intent: Intent) -> bool:
        """Returns True if a rule has denied the effect, or if the question whether it may be made has expired or was
        withdrawn. Another attempt of the job requests such an effect again. Returns False if a person has refused the
        effect. The effect must have a verdict.
        """
        verdict = decode_verdict(intent.note)
        assert verdict is not None
        if verdict.decision is Decision.DENY:
            return True
        answer = self.approval(intent.ordinal)
        return verdict.decision is Decision.ASK and answer is not None and answer.outcome != "resolved"

    def _unwanted(self, entry: Delivery) -> bool:
        """Returns True if this entry ends a question or a child because the job itself no longer wanted it: the job
        has withdrawn the question, or has cancelled the child, and does not go on with that (`keeps`).
        """
        match entry:
            case Answer():
                return entry.outcome == "cancelled" and entry.by == entry.job
            case EffectResult() if not (self.keeps and entry.attempt):
                intent = self.intents.get(entry.ordinal)
                return entry.outcome == NOT_MADE and intent is not None and intent.kind == "child"
        return False

    def _asked_again(self, entry: Delivery) -> bool:
        """Returns True if this entry is the outcome of an effect that another attempt of the job has to request
        again. It is False for results that are kept, and for signals and cancels.
        """
        if not isinstance(entry, Answer | EffectResult):
            return False
        intent = self.intents.get(entry.ordinal)
        failed = isinstance(entry, EffectResult) and entry.outcome != "ok"
        return intent is None or (
            failed and (entry.outcome == NOT_MADE or not intent.effect_class or RULES[intent.effect_class].repeatable)
        )
