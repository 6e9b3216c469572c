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
from sabot.engine.calls.certainty import Certainty
from sabot.engine.calls.effects import RULES, Doubt, EffectClass, EffectId, Reconciled, SaltedEffectId, digest, in_doubt
from sabot.engine.calls.judging import ValueCode
from sabot.errors import EffectError, InternalError, UserError
from sabot.jobs.answers import (
    APPROVAL_WORDS,
    DOUBT_WORDS,
    answer_object,
    edit_of,
    fault_of,
    is_approved,
    refusal_words,
)
from sabot.jobs.guard import CONFIRM, CallKind, Decision, GuardVerdict, encode_verdict
from sabot.jobs.history import IN_DOUBT, LOOK_UP, NOT_MADE, VERDICTS, History
from sabot.jobs.values import pack, pack_error
from sabot.journal.entries import UNSENT, Answer, Attempt, EffectResult, Entry, Intent


class EffectPhase(IntEnum):
    """The state of an effect in the state machine of `step`. TRANSITIONS has the phases that may follow each phase.
    In all phases after AWAITS_GUARD, the journal has the INTENT entry of the effect.
    """

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
"""The phases that may follow a phase. The index is the number of the phase."""


CALLS = ("call", "recall")
"""The kinds of effects that call a tool. Nobody decides on a "recall", and no event tells of it."""


@dataclass(slots=True, eq=False)
class EffectState:
    """The state of an effect that the function of a job has requested.

    - `ordinal`: the number of the effect in its job.
    - `kind`: "call", "recall" (a call by which Sabot itself reads something for the job), "ask" (a question to a person),
      "sleep", "wait" (for a signal), "child" or "patch" (`ctx.patched`).
    - `name`: the name of the tool, the child's agent, the timer, the question, the signal or the patch.
    - `effect_class`: for a call, the class of its tool (`EffectClass`), by which the call may or may not be repeated.
    - `digest`, `body`: the digest of the arguments, and the packed arguments.
    - `token`: the token of the open question; "" for none. If `kind` is "ask", the effect itself is that question. For
      other kinds, it is a question to a person about the effect, such as an approval.
    - `due_ms`: the deadline of the open question; for a sleep, the time at which it ends. In milliseconds since 1970; 0
      for none.
    - `attempt`: the number of the last attempt, from 1; 0 while a person still has to approve the first attempt.
    - `phase`: the present state of the state machine.
    - `dropped`: True once the function no longer awaits the effect.
    - `verdict`: the decision of the guard (`EffectGuard`); None if no guard has decided.
    - `model`: the name of the model that the call asks, or "" if it asks none.
    - `retries`, `in_doubt`: the options of these names of the call's tool.
    - `not_found`: how often this process has looked for the call and not found it, up to one more than `doubted` allows.
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
    not_found: int = 0

    @property
    def title(self) -> str:
        """The name of the effect in messages. It is the name of the model if the call asks one, and otherwise `name`."""
        return self.model or self.name

    @property
    def callee(self) -> str:
        """The kind and the name of the tool, model or agent, for approvals of later calls and for refusals (`callee_of`)."""
        return f"{self.guarded} {self.title}"

    @property
    def guarded(self) -> CallKind | None:
        """The kind of call that the guard (`EffectGuard`) decides on: "tool", "model" or "child". None if no guard
        decides on this effect, such as a timer or a question.
        """
        if self.kind == "call":
            return "model" if self.model else "tool"
        return "child" if self.kind == "child" else None

    def wanted_result(self) -> dict[str, Any]:
        """Returns the fields of the question whether the effect was made that say which result the answer needs."""
        return {}

    def given_result(self, result: Any) -> Any:
        """Converts the result that a person has given for the effect. Raises UserError if it cannot be one."""
        return result

    def enter(self, phase: EffectPhase) -> None:
        """Changes the phase of the effect. Raises InternalError if TRANSITIONS does not allow the change."""
        if phase not in TRANSITIONS[self.phase]:
            raise InternalError(
                f"effect {self.ordinal} ({self.kind} {self.name}) goes from {self.phase!r} to {phase!r}"
            )
        self.phase = phase

    @property
    def recorded(self) -> bool:
        """True if the INTENT entry of the effect is in the journal."""
        return self.phase > AWAITS_GUARD

    @property
    def repeatable(self) -> bool:
        """True if it does no harm to make the effect twice."""
        return RULES[self.effect_class].repeatable


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one attempt of a call.

    - `certainty`: whether the call was made.
    - `outcome`: "ok", or the name of the error's class. `body`: the packed result or the packed error.
    - `stopped`: True if the call was never sent because the app was stopping. The next start of the app then makes
      the call.
    """

    effect: EffectId
    certainty: Certainty
    outcome: str
    body: bytes
    stopped: bool = False


class LookedUp(msgspec.Struct, frozen=True):
    """The answer of a tool's `reconcile=` function about an effect. `found`: whether the effect was done. `result`: the
    packed result, or None if the function gave none.
    """

    effect: EffectId
    found: Reconciled
    result: bytes | None = None


class Judged(NamedTuple):
    """The event that the guard (`EffectGuard`) has decided whether another attempt may be made. `denied`: the verdict
    that denies it; None if the attempt may be made.
    """

    denied: GuardVerdict | None


class PersonAsked(NamedTuple):
    """The request of a call to ask a person. `kind`: the type of the question. `body`: its payload as JSON.
    `seconds`: the number of seconds that the person has for the answer; None for no limit.
    """

    kind: str
    body: bytes
    seconds: float | None


EffectEvent = (
    Outcome | Literal["asked", "unawaited", "resumed", "due", "unsure"] | Judged | LookedUp | PersonAsked | Answer
)
"""An event that `step` handles. An Answer is the answer of a person to the open question about the effect. The texts
mean:

- "asked": the function has asked for the effect, and the guard's decision is in `EffectState.verdict`.
- "unawaited": as "asked", but the function awaits the effect no longer, so only its INTENT entry is recorded.
- "resumed": the job runs again over its history, which has the INTENT of the effect and no result.
- "due": the wait before the next attempt (the retry option of the tool) is over.
- "unsure": nobody knows whether the effect was made, and no worker can still be making it.
"""


class EffectCommand(msgspec.Struct, frozen=True, gc=False):
    """A command that `step` returns, and that the host (`JobHost`) then runs. `kind` is one of these:

    - "make": call the tool.
    - "again": ask the guard whether another attempt may be made, and make it if so.
    - "edit": change the arguments of the call as the person wants who has approved it (`body` is the answer), ask the
      guard about them, and then do the same as for "again".
    - "later": wait for the tool's backoff time, and then do the same as for "again".
    - "begin": begin the child job.
    - "reconcile": call the tool's `reconcile=` function.
    - "doubt": wait until no worker can still be making the call, and then pass the event "unsure" to `step`.
    - "wait": set a timer for the deadline of the effect, if it has one. The wait began at `at_ms`.
    - "nothing": do nothing until the next event.

    Three more kinds exist only inside of `step`. It does not return them, but turns each into a journal entry:
    "result" becomes the RESULT entry with `outcome` and `body`; "approve" becomes a question to a person whether the
    effect may be made; "inquire" becomes a question to a person whether it was made.
    """

    kind: str
    outcome: str = ""
    body: bytes = b""
    at_ms: int = 0


MAKE, BEGIN, AGAIN, LATER, RESOLVE_DOUBT = map(EffectCommand, ("make", "begin", "again", "later", "doubt"))
NOT_EDITABLE = "it was approved with other arguments, which nobody may give it: editable=False"
RECONCILE, APPROVE, INQUIRE, NOTHING = map(EffectCommand, ("reconcile", "approve", "inquire", "nothing"))


class JobFacts(Protocol):
    """The facts about a job that the function `step` needs. `JobRun` has them."""

    @property
    def job_id(self) -> str:
        """The id of the job."""

    @property
    def key(self) -> bytes:
        """The secret key of the journal, with which tokens and digests are made."""

    @property
    def history(self) -> History:
        """The history of the job up to now."""


def step(job: JobFacts, effect: EffectState, event: EffectEvent, now_ms: int) -> tuple[list[Entry], EffectCommand]:
    """Handles one event of an effect by the rules of the state machine. Changes the fields of `effect`, and records
    questions, answers and attempts in the history of the job. Returns the journal entries that the caller has to
    append, in this order, and the command that the caller has to run after that.
    """
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
        case Judged(None) if effect.kind == "child":  # which has no attempts: a person has approved it
            effect.attempt = 1
            effect.enter(OPEN)
            command = BEGIN
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
            about = f"attempt {history.attempt}" if history.attempt > 1 else ""  # that of an earlier one is closed
            asked = question(effect, job.job_id, now_ms, job.key, kind, body, about=about, due_ms=due_ms)
        case Answer():
            history.answers[event.token] = event
            if effect.phase is APPROVAL and verdict is not None:
                history.note_approval(event, verdict, effect.callee, effect.body)
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
    """Decides how an effect continues after its INTENT entry was recorded. Returns the next command: to ask a person
    for approval, to make the call, to begin the child, or to wait.

    - `at_ms`: the time of the INTENT entry, in milliseconds since 1970.
    - `resumed`: True if the INTENT was recorded before the job was loaded from the journal, so that the call may have
      been made already.
    - `asks`: True if the guard requires the approval of a person.
    - `answer`: the person's answer to that question; None if there is none yet.
    """
    effect.enter(OPEN)
    if asks and not resumed:
        effect.attempt = 0
    if asks and not effect.attempt:
        effect.enter(APPROVAL)
        return APPROVE if answer is None else approved(effect, answer)
    if effect.kind in CALLS:
        return RESOLVE_DOUBT if resumed else MAKE
    if effect.kind == "child":
        return BEGIN
    return EffectCommand("wait", at_ms=at_ms) if effect.due_ms else NOTHING


def asked_person(effect: EffectState, question: Intent) -> EffectCommand:
    """Changes the state of an effect because a person was asked about it: stores the token and the deadline of the
    question, and enters the phase DOUBT or APPROVAL. Returns the command that waits for the deadline. `question`: the
    INTENT entry of the question.
    """
    effect.token, effect.due_ms = question.token, question.due_ms
    effect.enter(DOUBT if question.name == IN_DOUBT else APPROVAL)
    return EffectCommand("wait", at_ms=question.at_ms)


def answered(effect: EffectState, answer: Answer) -> EffectCommand:
    """Handles a person's answer to the open question about an effect. Returns the next command."""
    effect.token, effect.due_ms = "", 0
    if effect.phase is DOUBT:
        return _verdict(effect, answer)
    return repeat_or_drop(effect) if effect.attempt else approved(effect, answer)


def approved(effect: EffectState, answer: Answer) -> EffectCommand:
    """Handles a person's answer to the question whether an effect may be made. Returns the next command.

    If the person has approved, the command makes the first attempt, or begins the child. A call then gets an ATTEMPT
    entry. So after a crash before that entry, it is certain that the call was not made. With any other answer, the
    command records an error as the result. If the person has changed the arguments of a call, the guard judges it
    again first.
    """
    effect.token, effect.due_ms = "", 0
    if answer.outcome != "resolved":
        return refused(effect, f"nobody has approved it: the question was {answer.outcome}")
    if not is_approved(answer):
        return refused(effect, refusal_words(answer))
    if edit_of(answer) is not None:
        if effect.guarded != "tool" or (effect.verdict is not None and not effect.verdict.editable):
            return refused(effect, NOT_EDITABLE)
        return EffectCommand("edit", body=bytes(answer.body))  # type: ignore[arg-type]  # it was loaded
    return AGAIN if effect.kind == "child" else repeat_or_drop(effect)


def refused(effect: EffectState, why: str, error: str = "PolicyDenied", rule: str = "") -> EffectCommand:
    """Returns the command that records an error as the result of an effect that must not be made.

    `why`: the reason, for the message. `error`: the type of the error. `rule`: the name of the rule that denies the
    effect, if one does.
    """
    return EffectCommand("result", error, pack_error(EffectError(error, refusal(effect, why, rule))))


def refusal(effect: EffectState, why: str, rule: str) -> str:
    """Returns the message of the error that the function gets for a refused effect. The message contains the reason
    `why` and, if `rule` is not "", the name of the rule.
    """
    return f"{effect.title} was not done: {why}" + (f" (rule {rule})" if rule else "")


def attempt_ended(effect: EffectState, ended: Outcome) -> EffectCommand:
    """Handles the outcome of an attempt. Returns the next command: to record the outcome as the result, to make
    another attempt, or, if nobody knows whether the call was made, to find that out.
    """
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
    """Decides whether another attempt of an effect follows. Called if the last attempt was not made, or if it does no
    harm to make the effect twice. Returns the next command:

    - Usually the command for another attempt.
    - If the function of the job no longer awaits the effect, and making it twice would do harm: the command to record a
      result, which says that the effect was not made.
    """
    if not may_repeat(effect, not_made=True):
        error = CancelledError(f"{effect.name} was not done, and its job waits for it no longer")
        return EffectCommand("result", NOT_MADE, pack_error(error))
    return AGAIN


def attempted(effect: EffectState) -> EffectCommand:
    """Begins the next attempt of an effect: raises its number by one. Returns the command to call the tool. The
    caller has to write the ATTEMPT entry.
    """
    effect.attempt += 1
    effect.enter(OPEN)
    return MAKE


def continue_with_question(
    effect: EffectState, not_made: bool, asked: Intent | None, answer: Answer | None
) -> EffectCommand | None:
    """Decides how to continue with a call whose last attempt has no result. Returns the next command. Returns None if
    it is unknown whether the call was made, and nobody was asked about it yet.

    - `not_made`: True if the last attempt was certainly not made.
    - `asked`: the last question to a person about the call; None if there was none. `answer`: the answer; None if
      there is none.

    With an answer, the answer decides. With a question that has no answer, the command waits for the answer. Without
    a question, the call is made again if `not_made` is True.
    """
    if asked is None:
        return repeat_or_drop(effect) if not_made else None
    waits = asked_person(effect, asked)
    return waits if answer is None else answered(effect, answer)


def doubted(effect: EffectState, found: Reconciled | None = None, result: bytes | None = None) -> EffectCommand:
    """Decides about an effect in doubt, that is, one of which nobody knows whether it was made. The decision depends
    on the class of the effect and on the option `in_doubt=` of its tool. Returns the next command. A call that was not
    found is made again at once, then after the pauses of its tool as often as `retries=` says; then it is in doubt.

    `found`, `result`: the answer of the tool's `reconcile=` function, and the result that the function has found;
    both None if the function was not called.
    """
    effect.enter(DOUBT)
    if found is Reconciled.NOT_DONE:
        effect.not_found = min(effect.not_found, effect.retries + 1) + 1
        # a look-up that lags behind its service says so of calls that were made
        if effect.not_found > effect.retries + 1:
            found = Reconciled.UNKNOWN
    match in_doubt(EffectClass(effect.effect_class), configured=effect.in_doubt, found=found):
        case Doubt.AGAIN | Doubt.AGAIN_WITH_KEY:
            later = effect.not_found > 1 and may_repeat(effect, not_made=True)
            return LATER if later else repeat_or_drop(effect)
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
    """Handles a person's answer to the question whether an effect in doubt was made. Returns the next command.

    - "done": records the result that the person gave, or an error if this result cannot be packed.
    - "not_done": makes another attempt, if `may_repeat` allows it.
    - "look_up": calls the tool's `reconcile=` function again, if the tool has one.
    - One of these with a field that nobody knows, or twice the same: asks again, since it may mean another one.
    - Any other answer, or an expired question: records the error Abandoned as the result, so that nothing is repeated
      by mistake.
    """
    body = answer_object(answer) if answer.outcome == "resolved" else {}
    said, result = body.get("outcome", body.get("answer")), body.get("result")
    if said in (*VERDICTS, LOOK_UP) and faulty(effect, answer):
        return INQUIRE
    if said == LOOK_UP and effect.effect_class == EffectClass.RECONCILABLE:
        return RECONCILE
    if said == "not_done":
        return repeat_or_drop(effect)
    if said != "done":
        by = f" by {answer.by}" if answer.by else ""
        error = EffectError("Abandoned", f"{effect.name} was abandoned{by}")
        return EffectCommand("result", error.type, pack_error(error))
    try:
        with ValueCode(effect.name):
            return EffectCommand("result", "ok", pack(effect.given_result(result), effect.name))
    except UserError as error:  # an unchecked answer, which came straight into the inbox
        return EffectCommand("result", stored_name(type(error)), pack_error(error))


def faulty(effect: EffectState, answer: Answer) -> str:
    """Returns why nobody knows what the answer to the open question about an effect means (`fault_of`), or "". A question of
    a tool itself may have any answer.
    """
    if effect.phase is DOUBT:
        return fault_of(answer, DOUBT_WORDS)
    return fault_of(answer, APPROVAL_WORDS) if effect.phase is APPROVAL and not effect.attempt else ""


def drop(effect: EffectState) -> bool:
    """Handles an effect that the function no longer awaits. The job was cancelled, a timeout has passed, or the
    function has cancelled its future. Returns True if the effect continues, and False if it is withdrawn.

    - A call that waits for the approval of its first attempt is withdrawn.
    - Any other call continues, but the function does not get its outcome. Another attempt follows only if it does no
      harm to make the call twice. If the call may change something outside of Sabot, the job does not end before the
      call has a RESULT entry. That may take days if a person has to find out whether the call was made. The outcome of
      another call is recorded only if the job has not ended before it comes.
    - Effects of other kinds are withdrawn: questions, timers, waits for signals, and children.
    """
    effect.dropped = True
    return effect.kind in CALLS and effect.attempt > 0


def may_repeat(effect: EffectState, *, not_made: bool) -> bool:
    """Returns True if another attempt of the effect may be made. One of two things allows it:

    - It does no harm to make the effect twice.
    - The last attempt was certainly not made (`not_made`), and the function still awaits the effect.
    """
    return (not_made and not effect.dropped) or effect.repeatable


def may_happen(effects: Iterable[EffectState]) -> bool:
    """Returns True if one of these open effects is a call that may still change something outside of Sabot. A job
    does not end while it has such a call (see `drop`).
    """
    return any(each.kind == "call" and RULES[each.effect_class].settles for each in effects)


def question(
    effect: EffectState, job_id: str, at_ms: int, key: bytes, name: str, asked: Any, *, about: str = "", due_ms: int = 0
) -> Intent:
    """Returns the INTENT entry of a question to a person about an effect. The entry has the same ordinal as the
    effect.

    - `at_ms`: the time at which the question is asked. `due_ms`: the time at which it expires, or 0 for never. Both
      are in milliseconds since 1970.
    - `key`: the key of the journal, from which the token of the question is made.
    - `name`: the type of the question. `asked`: its payload, either as bytes of JSON or as a value that is encoded as
      JSON.
    - `about`: a text that differs between several questions about one effect, so that each gets another token.
    """
    token, name_of = question_token(key, job_id, effect.ordinal, about), digest(key, "ask", name, asked)
    body = asked if isinstance(asked, bytes) else msgspec.json.encode(asked)
    return Intent(job_id, at_ms, effect.ordinal, "ask", name, name_of, "", body, token, due_ms)


def approval(job: JobFacts, effect: EffectState, at_ms: int) -> Intent:
    """Returns the INTENT entry of the question to a person whether an effect may be made. Its type is "confirm"."""
    verdict = effect.verdict
    assert verdict is not None
    payload: dict[str, Any] = {"effect": effect.title, "kind": effect.guarded, "ordinal": effect.ordinal}
    payload |= {"reason": verdict.reason, "rule": verdict.rule, "answers": ["approve", "reject"]}
    due_ms = at_ms + round(verdict.wait_s * 1000) if verdict.wait_s else 0
    return question(effect, job.job_id, at_ms, job.key, CONFIRM, payload, due_ms=due_ms)


def inquiry(job: JobFacts, effect: EffectState, at_ms: int) -> Intent:
    """Returns the INTENT entry of the question that asks a person whether an effect was made. These answers are
    possible:

    - "done": it was made.
    - "not_done": it was not made.
    - "abandon": nobody will find out; the effect ends with an error.
    - "look_up", only for a tool with a `reconcile=` function: that function is called again. If it does not find out
      whether the effect was made, a new question follows.
    """
    answers = [*VERDICTS, *([LOOK_UP] if effect.effect_class == EffectClass.RECONCILABLE else [])]
    payload = {"effect": effect.name, "ordinal": effect.ordinal, "attempt": effect.attempt, "answers": answers}
    about = f"{IN_DOUBT} {effect.attempt}"
    if job.history.attempt > 1:
        about += f" attempt {job.history.attempt}"
    if (earlier := job.history.doubts.get(effect.ordinal)) is not None:
        payload["looked"] = msgspec.json.decode(earlier.body).get("looked", 0) + 1  # type: ignore[arg-type]
        about += f" {payload['looked']}"
    if salt := job.history.begin.salt:
        payload["key"] = SaltedEffectId.of(job.job_id, effect.ordinal, effect.attempt, salt).key
    payload |= effect.wanted_result()
    return question(effect, job.job_id, at_ms, job.key, IN_DOUBT, payload, about=about)


_SEED_BYTES = 32

SEQUENCES_APART = b"\x01"
"""The `seed` of the BEGIN entries of jobs whose ids and numbers are drawn from sequences apart (see `drawing_from`)."""


def job_seed(given: bytes, job_id: str, runs: int, key: bytes) -> bytes:
    """Returns the seed for the random numbers of a job.

    - `given`: the `seed` of the BEGIN entry of its history.
    - `runs`: how many histories the job has begun; the first is 1, and each call of `ctx.continue_as` begins one more.
    - `key`: the key of the journal.
    """
    if given not in (b"", SEQUENCES_APART):
        return given
    return given + blake2b(f"{job_id}\0{runs}".encode(), key=key, digest_size=_SEED_BYTES).digest()


def drawing_from(seed: bytes, kind: str, name: str) -> bytes:
    """Returns the seed of one sequence of a job's random numbers. `seed`: the seed of the job. `kind`: "random" or
    "uuid". `name`: the name of the sequence, or "".

    An id that was drawn from the sequence of the numbers would change when new code draws one number more before it, and
    the job would be blocked. Jobs that began before there were several sequences draw all that has no name from one.
    """
    is_apart = len(seed) == len(SEQUENCES_APART) + _SEED_BYTES and seed.startswith(SEQUENCES_APART)
    if not (name or is_apart):
        return seed
    return blake2b(f"{kind}\0{name}".encode(), key=seed[:64], digest_size=_SEED_BYTES).digest()


def question_token(key: bytes, job_id: str, ordinal: int, about: str = "") -> str:
    """Returns the token of a question, a secret word with which a person can answer the question on a command line.
    The token depends only on the arguments, so a job that runs again after a crash makes the same token. `key`: the
    key of the journal. `about`: a text that must differ between several questions about one effect.
    """
    name = f"token\0{job_id}\0{ordinal}\0{about}"
    return blake2b(name.encode(), key=key, digest_size=20).hexdigest()
