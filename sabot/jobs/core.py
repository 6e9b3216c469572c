"""The durable core: the phases of one effect of a job, and what follows each event. It does no I/O, and has no clock
and no event loop.

   asked ─▶ awaits the guard ─▶ open ─▶ done        approval: a person is asked, and nothing is made before the answer
                         │      │  ▲                doubt: nobody knows whether the last attempt was made
                         ▼      ▼  │
                       approval  doubt

`step` takes an effect and an event, changes the effect in place, and returns the next entries and the next command. The
host (`effects`) appends the entries and then runs the command, so an entry is always in the journal before the call that
relies on it. The functions below `step` decide on one kind of event each.
"""

from asyncio import CancelledError
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from sabot.base.stored_names import stored_name
from sabot.errors import UNREADABLE, EffectError, InternalError, UserError
from sabot.jobs.certainty import Certainty
from sabot.jobs.guard import CONFIRM, CallKind, Decision, GuardVerdict, encode_verdict
from sabot.jobs.history import IN_DOUBT, LOOK_UP, NOT_MADE, VERDICTS, History
from sabot.jobs.values import pack, pack_error, rows_of_answer
from sabot.journal.effects import RULES, Doubt, EffectClass, EffectId, Reconciled, digest, in_doubt
from sabot.journal.entries import UNSENT, Answer, Attempt, EffectResult, Entry, Intent


class EffectPhase(IntEnum):
    """The phase of an effect. Its INTENT is in the journal in all phases after AWAITS_GUARD."""

    ASKED = 0
    AWAITS_GUARD = 1
    APPROVAL = 2
    OPEN = 3
    DOUBT = 4
    DONE = 5


# a name of a module is faster than an attribute of an enum
ASKED, AWAITS_GUARD, APPROVAL, OPEN, DOUBT, DONE = EffectPhase
TRANSITIONS: tuple[tuple[EffectPhase, ...], ...] = (
    (AWAITS_GUARD, APPROVAL, OPEN, DONE),  # after ASKED
    (APPROVAL, OPEN, DONE),  # after AWAITS_GUARD
    (APPROVAL, OPEN, DONE),  # after APPROVAL
    (APPROVAL, OPEN, DOUBT, DONE),  # after OPEN: a tool may ask a person, and is called again after the answer
    (OPEN, DOUBT, DONE),  # after DOUBT
    (),  # after DONE
)
"""The phases that may follow each phase, by its number."""


@dataclass(slots=True, eq=False)
class EffectState:
    """The state of an effect that the function of a job has asked for.

    `kind` is "call", "ask", "sleep", "wait", "child" or "patch". `token` and `due_ms` are those of the question that is open: the
    function's own, or one about the effect. `attempt` counts from 1; 0 means that a person has to allow the effect first. `dropped` is
    True once the function awaits it no longer. `verdict` is what the guard has decided. `model` is the name of the model that a call asks.
    `retries` and `in_doubt` are what the tool of a call says.
    """

    ordinal: int
    kind: str
    name: str
    effect_class: str = ""
    digest: bytes = b""
    body: bytes = b""
    token: str = ""
    due_ms: int = 0
    attempt: int = 1
    phase: EffectPhase = ASKED
    dropped: bool = False
    verdict: GuardVerdict | None = None
    model: str = ""
    retries: int = 0
    in_doubt: Literal["ask", "fail", "assume_done"] = "ask"

    @property
    def title(self) -> str:
        """The name of the effect in messages. A call that asks a model has the name of the model."""
        return self.model or self.name

    @property
    def guarded(self) -> CallKind | None:
        """The kind of the call for the guard, which decides on it; None for effects on which no guard decides."""
        if self.kind == "call":
            return "model" if self.model else "tool"
        return "child" if self.kind == "child" else None

    @property
    def gives_rows(self) -> bool:
        """True if the result is a list of rows."""
        return False

    def enter(self, phase: EffectPhase) -> None:
        """Changes the phase. Raises InternalError for a transition that the table does not have."""
        if phase not in TRANSITIONS[self.phase]:
            raise InternalError(
                f"effect {self.ordinal} ({self.kind} {self.name}) goes from {self.phase!r} to {phase!r}"
            )
        self.phase = phase

    @property
    def recorded(self) -> bool:
        """True if its INTENT is in the journal."""
        return self.phase > AWAITS_GUARD

    @property
    def repeatable(self) -> bool:
        """True if repeating the call is harmless."""
        return RULES[self.effect_class].repeatable


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one attempt. `outcome` is "ok" or the class of the error, `body` the packed value or the packed error.
    `stopped` is True if the worker stops and has not sent the call: then the next start makes it.
    """

    effect: EffectId
    certainty: Certainty
    outcome: str
    body: bytes
    stopped: bool = False


class LookedUp(msgspec.Struct, frozen=True):
    """The finding of a tool's `reconcile=`: whether the effect was done, and its packed result if there is one."""

    effect: EffectId
    found: Reconciled
    result: bytes | None = None


class Judged(NamedTuple):
    """The event that the guard has decided on another attempt. `denied` is its verdict, or None if the attempt may be
    made.
    """

    denied: GuardVerdict | None


class PersonAsked(NamedTuple):
    """The request of a call to ask a person. `kind` is the type of the question, `body` its payload as JSON, and
    `seconds` the time for the answer, or None.
    """

    kind: str
    body: bytes
    seconds: float | None


EffectEvent = (
    Outcome | Literal["asked", "unawaited", "resumed", "due", "unsure"] | Judged | LookedUp | PersonAsked | Answer
)
"""An event of an effect. An Answer is the answer of a person to the open question about the effect.

"asked": the function has asked for the effect, and the guard has decided (`verdict`). "unawaited": the same, but nothing
is to be made. "resumed": an earlier run of the job has written the INTENT. "due": the back-off of the tool is over.
"unsure": nobody knows whether the effect was made, and no worker can be making it now.
"""


class EffectCommand(msgspec.Struct, frozen=True, gc=False):
    """A command to the host.

    "make" calls the tool. "again" makes another attempt if the guard allows it, and "later" does so after the tool's
    back-off. "begin" begins the child. "reconcile" calls the tool's `reconcile=`. "doubt" waits until no worker can be
    making the call; then the event "unsure" follows. "wait" sets the timer of the effect, if it has one, which counts
    from `at_ms`. "nothing" waits for an event.

    `step` makes entries of three commands, so that the host never sees them: "result" records the outcome and the body,
    "approve" asks a person whether the effect may be made, and "inquire" whether it was made.
    """

    kind: str
    outcome: str = ""
    body: bytes = b""
    at_ms: int = 0


MAKE, BEGIN, AGAIN, LATER, RESOLVE_DOUBT = map(EffectCommand, ("make", "begin", "again", "later", "doubt"))
RECONCILE, APPROVE, INQUIRE, NOTHING = map(EffectCommand, ("reconcile", "approve", "inquire", "nothing"))


class JobFacts(Protocol):
    """A job, as `step` knows it."""

    @property
    def job_id(self) -> str:
        """The id of the job."""

    @property
    def key(self) -> bytes:
        """The key of the journal."""

    @property
    def history(self) -> History:
        """The history of the job up to now."""


def step(job: JobFacts, effect: EffectState, event: EffectEvent, now_ms: int) -> tuple[list[Entry], EffectCommand]:
    """Handles an event of an effect. Returns the next entries in their order, and the next command, which relies on them."""
    history, ordinal, verdict = job.history, effect.ordinal, effect.verdict
    entries: list[Entry] = []
    asked: Intent | None = None
    command = NOTHING
    match event:
        case Outcome():
            command = attempt_ended(effect, event)
            # else the next start would not know that it was not sent
            if (command is LATER or command is NOTHING) and not effect.repeatable:
                history.not_made.add(ordinal)
                entries.append(Attempt(job.job_id, now_ms, ordinal, effect.attempt, UNSENT))
        case "asked" | "unawaited" | "resumed":
            at_ms, resumed = now_ms, event == "resumed"
            if resumed:
                intent = history.intents.get(ordinal)
                at_ms = 0 if intent is None else intent.at_ms
            else:
                note = b"" if verdict is None else encode_verdict(verdict)
                entries.append(
                    Intent(
                        job.job_id,
                        at_ms,
                        ordinal,
                        effect.kind,
                        effect.name,
                        effect.digest,
                        effect.effect_class,
                        effect.body,
                        effect.token,
                        effect.due_ms,
                        note,
                    )
                )
            if event == "unawaited":
                effect.enter(OPEN)
            elif verdict is None:
                command = intended(effect, at_ms, resumed=resumed)
            elif verdict.decision is Decision.DENY:
                command = refused(effect, verdict.reason or "a rule denies it", verdict.error, verdict.rule)
            else:
                asks, answer = verdict.decision is Decision.ASK, history.approval(ordinal)
                command = intended(effect, at_ms, resumed=resumed, asks=asks, answer=answer)
        case Judged(None):
            command = attempted(effect)
            history.begin_attempt(ordinal, effect.attempt)
            entries.append(Attempt(job.job_id, now_ms, ordinal, effect.attempt))
        case Judged(denied) if denied is not None:
            command = refused(effect, denied.reason, denied.error, denied.rule)
        case "due":
            command = repeat_or_drop(effect)
        case "unsure":
            said = continue_with_question(effect, ordinal in history.not_made, *history.question_about(ordinal))
            command = doubted(effect) if said is None else said
        case LookedUp():
            command = doubted(effect, event.found, event.result)
        case PersonAsked(kind, body, seconds):
            due_ms = 0 if seconds is None else now_ms + round(seconds * 1000)
            asked = question(effect, job.job_id, now_ms, job.key, kind, body, due_ms=due_ms)
        case Answer():
            history.answers[event.token] = event
            command = answered(effect, event)
    if command.kind == "result":
        entries.append(EffectResult(job.job_id, now_ms, ordinal, effect.attempt, command.outcome, command.body))
        command = NOTHING
    elif command is INQUIRE:
        asked = inquiry(job, effect, now_ms)
    elif command is APPROVE and (before := history.approvals.get(ordinal)) is not None:
        command = asked_person(effect, before)  # once, also over restarts
    elif command is APPROVE:
        asked = approval(job, effect, now_ms)
    if asked is not None:
        entries.append(asked)
        history.add_question(asked)
        command = asked_person(effect, asked)
    return entries, command


def intended(
    effect: EffectState, at_ms: int, *, resumed: bool = False, asks: bool = False, answer: Answer | None = None
) -> EffectCommand:
    """Handles an effect whose INTENT is in the journal since `at_ms`. `resumed` is True if it was before this run of
    the job. `asks` is True if the guard wants the approval of a person, and `answer` is that person's answer, if there
    is one.
    """
    effect.enter(OPEN)
    if asks and not resumed:
        effect.attempt = 0
    if asks and not effect.attempt:
        effect.enter(APPROVAL)
        return APPROVE if answer is None else approved(effect, answer)
    if effect.kind == "call":
        return RESOLVE_DOUBT if resumed else MAKE
    if effect.kind == "child":
        return BEGIN
    return EffectCommand("wait", at_ms=at_ms) if effect.due_ms else NOTHING


def asked_person(effect: EffectState, question: Intent) -> EffectCommand:
    """Handles a question about an effect that a person has not answered."""
    effect.token, effect.due_ms = question.token, question.due_ms
    effect.enter(DOUBT if question.name == IN_DOUBT else APPROVAL)
    return EffectCommand("wait", at_ms=question.at_ms)


def answered(effect: EffectState, answer: Answer) -> EffectCommand:
    """Handles a person's answer to the open question about an effect."""
    effect.token, effect.due_ms = "", 0
    if effect.phase is DOUBT:
        return _verdict(effect, answer)
    return repeat_or_drop(effect) if effect.attempt else approved(effect, answer)


def approved(effect: EffectState, answer: Answer) -> EffectCommand:
    """Handles the answer to the question whether an effect may be made. An ATTEMPT entry is written before the call, so a crash before
    that entry cannot leave the effect in doubt.
    """
    effect.token, effect.due_ms = "", 0
    if answer.outcome != "resolved":
        return refused(effect, f"nobody has approved it: the question was {answer.outcome}")
    if not is_approved(answer):
        by, reason = f" by {answer.by}" if answer.by else "", _resolution(answer).get("reason")
        why = f"it was rejected{by}" + (f": {reason}" if isinstance(reason, str) and reason else "")
        return refused(effect, why)
    if effect.kind != "child":
        return repeat_or_drop(effect)
    effect.attempt = 1
    effect.enter(OPEN)
    return BEGIN


def refused(effect: EffectState, why: str, error: str = "PolicyDenied", rule: str = "") -> EffectCommand:
    """Returns the result of an effect that must not be made."""
    return EffectCommand("result", error, pack_error(EffectError(error, refusal(effect, why, rule))))


def refusal(effect: EffectState, why: str, rule: str) -> str:
    """Returns the message of the error that the function gets."""
    return f"{effect.title} was not done: {why}" + (f" (rule {rule})" if rule else "")


def attempt_ended(effect: EffectState, ended: Outcome) -> EffectCommand:
    """Handles the outcome of an attempt."""
    if ended.stopped:
        return NOTHING
    certainty, failed = ended.certainty, ended.outcome != "ok"
    if failed and effect.attempt <= effect.retries and may_repeat(effect, not_made=certainty is Certainty.NOT_SENT):
        return LATER
    if certainty is Certainty.UNKNOWN and not effect.repeatable:
        effect.enter(DOUBT)
        return RESOLVE_DOUBT
    return EffectCommand("result", ended.outcome, ended.body)


def repeat_or_drop(effect: EffectState) -> EffectCommand:
    """Makes another attempt of an effect whose last one was not made, or may be repeated. If none may be made
    (`may_repeat`), its RESULT records that the effect was not made.
    """
    if not may_repeat(effect, not_made=True):
        error = CancelledError(f"{effect.name} was not done, and its job waits for it no longer")
        return EffectCommand("result", NOT_MADE, pack_error(error))
    return AGAIN


def attempted(effect: EffectState) -> EffectCommand:
    """Handles a new attempt, whose entry is written next."""
    effect.attempt += 1
    effect.enter(OPEN)
    return MAKE


def continue_with_question(
    effect: EffectState, not_made: bool, asked: Intent | None, answer: Answer | None
) -> EffectCommand | None:
    """Continues with a call whose last attempt has no result: with the question that a person was already asked about
    it, or with another attempt if the last one was certainly not made (`not_made`). Returns None if neither applies, so
    that the doubt has to be resolved. `asked` and `answer` are the question about it, and its answer.
    """
    if asked is None:
        return repeat_or_drop(effect) if not_made else None
    waits = asked_person(effect, asked)
    return waits if answer is None else answered(effect, answer)


def doubted(effect: EffectState, found: Reconciled | None = None, result: bytes | None = None) -> EffectCommand:
    """Decides on an effect of which nobody knows whether it was made. `found` and `result` are the findings of its `reconcile=`."""
    effect.enter(DOUBT)
    match in_doubt(EffectClass(effect.effect_class), configured=effect.in_doubt, found=found):
        case Doubt.AGAIN | Doubt.AGAIN_WITH_KEY:
            return repeat_or_drop(effect)
        case Doubt.RECONCILE:
            return RECONCILE
        case Doubt.TAKE | Doubt.ASSUME_DONE:
            return EffectCommand("result", "ok", pack(None, effect.name) if result is None else result)
        case Doubt.FAIL:
            why = f"nobody knows whether {effect.name} was done (in_doubt='ask' asks a person)"
            return EffectCommand("result", "InDoubt", pack_error(EffectError("InDoubt", why)))
        case Doubt.ASK:
            return INQUIRE


def _verdict(effect: EffectState, answer: Answer) -> EffectCommand:
    """Returns what follows a person's answer on an effect in doubt. "done" records its result, "not_done" makes another attempt if
    one may be made, and "look_up" asks `reconcile=` again if the tool has it. Anything else, also a question that has expired,
    abandons the effect, so that nothing is repeated by mistake.
    """
    body = _resolution(answer) if answer.outcome == "resolved" else {}
    said, result = body.get("outcome", body.get("answer")), body.get("result")
    if said == LOOK_UP and effect.effect_class == EffectClass.RECONCILABLE:
        return RECONCILE
    if said == "not_done":
        return repeat_or_drop(effect)
    if said != "done":
        by = f" by {answer.by}" if answer.by else ""
        error = EffectError("Abandoned", f"{effect.name} was abandoned{by}")
        return EffectCommand("result", error.type, pack_error(error))
    try:
        return EffectCommand("result", "ok", pack(rows_of_answer(result) if effect.gives_rows else result, effect.name))
    except UserError as error:  # an unchecked answer, which came straight into the inbox
        return EffectCommand("result", stored_name(type(error)), pack_error(error))


def drop(effect: EffectState) -> bool:
    """Handles an effect that the function no longer awaits, because of a cancel, of a timeout or of its own code.
    Returns True if it stays open, and False if it is withdrawn.

    A cancel ends the function, but no call. A call under way runs to its end, and its result is recorded without being
    delivered. It is repeated only if its class makes that harmless (`may_repeat`). Until its RESULT the job stays open
    (`may_happen`), for days if a person has to say whether it was made. Questions, timers, waits, children, and calls
    without the approval that they need are withdrawn.
    """
    effect.dropped = True
    return effect.kind == "call" and effect.attempt > 0


def may_repeat(effect: EffectState, *, not_made: bool) -> bool:
    """Returns True if another attempt may be made. That is so if a repetition is harmless; and if the function still
    awaits the effect, and its last attempt was certainly not made (`not_made`).
    """
    return (not_made and not effect.dropped) or effect.repeatable


def may_happen(effects: Iterable[EffectState]) -> bool:
    """Returns True if one of the open effects is a call that may still change something outside: no job ends during it
    (`drop`).
    """
    return any(each.kind == "call" and RULES[each.effect_class].settles for each in effects)


def question(
    effect: EffectState, job_id: str, at_ms: int, key: bytes, name: str, asked: Any, *, about: str = "", due_ms: int = 0
) -> Intent:
    """Returns the INTENT of a question about an effect, which has the ordinal of that effect.

    `key`: the key of the journal. `asked`: the payload of the question, or its JSON. `about`: tells several questions
    about one effect apart.
    """
    token, name_of = question_token(key, job_id, effect.ordinal, about), digest(key, "ask", name, asked)
    body = asked if isinstance(asked, bytes) else msgspec.json.encode(asked)
    return Intent(job_id, at_ms, effect.ordinal, "ask", name, name_of, "", body, token, due_ms)


def approval(job: JobFacts, effect: EffectState, at_ms: int) -> Intent:
    """Returns the question whether an effect may be made, of type "confirm"."""
    verdict = effect.verdict
    assert verdict is not None
    payload: dict[str, Any] = {"effect": effect.title, "kind": effect.guarded, "ordinal": effect.ordinal}
    payload |= {"reason": verdict.reason, "rule": verdict.rule, "answers": ["approve", "reject"]}
    due_ms = at_ms + round(verdict.wait_s * 1000) if verdict.wait_s else 0
    return question(effect, job.job_id, at_ms, job.key, CONFIRM, payload, due_ms=due_ms)


def inquiry(job: JobFacts, effect: EffectState, at_ms: int) -> Intent:
    """Returns the question whether an effect was made: done, not done, or abandon; or to look it up again, which may lead to another
    question.
    """
    answers = [*VERDICTS, *([LOOK_UP] if effect.effect_class == EffectClass.RECONCILABLE else [])]
    payload = {"effect": effect.name, "ordinal": effect.ordinal, "attempt": effect.attempt, "answers": answers}
    about = f"{IN_DOUBT} {effect.attempt}"
    if (earlier := job.history.doubts.get(effect.ordinal)) is not None:
        payload["looked"] = msgspec.json.decode(earlier.body).get("looked", 0) + 1  # type: ignore[arg-type]
        about += f" {payload['looked']}"
    if effect.gives_rows:
        payload["gives"] = "rows"
    return question(effect, job.job_id, at_ms, job.key, IN_DOUBT, payload, about=about)


def job_seed(job_id: str, runs: int, key: bytes) -> bytes:
    """Returns the seed of a job's random numbers. `runs`: the number of histories that the job has begun. `key`: the
    key of the journal.
    """
    return blake2b(f"{job_id}\0{runs}".encode(), key=key, digest_size=32).digest()


def question_token(key: bytes, job_id: str, ordinal: int, about: str = "") -> str:
    """Returns the secret word of a question, fit for a command line. It is derived, so that a crash before INTENT
    changes nothing. `key`: the key of the journal.
    """
    name = f"token\0{job_id}\0{ordinal}\0{about}"
    return blake2b(name.encode(), key=key, digest_size=20).hexdigest()


def is_approved(answer: Answer) -> bool:
    """Returns True only if the answer has {"approved": true}."""
    return answer.outcome == "resolved" and _resolution(answer).get("approved") is True


def _resolution(answer: Answer) -> dict[str, Any]:
    """Returns the answer of a person as an object; {} if it is no JSON object."""
    try:
        body: dict[str, Any] = msgspec.json.decode(answer.body or b"{}", type=dict[str, Any])  # type: ignore[arg-type]
    except UNREADABLE:
        return {}
    return body
