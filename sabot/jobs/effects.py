"""The effects of jobs: writes their entries, and runs the commands of the core.

asked ─▶ guard ─▶ INTENT ─▶ runner ─▶ RESULT ─▶ the job's next turn
                     │
                     ├─ it failed, and may be repeated: ATTEMPT, and again
                     └─ nobody knows: `core.doubted` decides: again, reconcile, ask a person, …

Requests of calls under way are handled in `call_requests`.
"""

import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from sabot.clock import Clock
from sabot.errors import DataError, EffectError, UserError
from sabot.jobs.call_requests import CallRequests
from sabot.jobs.core import (
    AGAIN,
    APPROVE,
    ASKED,
    AWAITS_GUARD,
    BEGIN,
    DONE,
    IN_DOUBT,
    INQUIRE,
    LATER,
    LOOK_UP,
    MAKE,
    NOTHING,
    OPEN,
    RESOLVE_DOUBT,
    VERDICTS,
    EffectCommand,
    answered,
    asked_person,
    attempt_ended,
    attempted,
    continue_with_question,
    doubted,
    intended,
    question,
    refused,
    repeat_or_drop,
)
from sabot.jobs.events import CallAsked, DoubtDue, GuardDecided, RepeatDecided, RepeatDue, Turned
from sabot.jobs.guard import (
    CONFIRM,
    CallKind,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    judge_call,
)
from sabot.jobs.host_state import HostState
from sabot.jobs.judges import judge_within
from sabot.jobs.log import JobLog
from sabot.jobs.owner import OpenJob, RunningJob
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.runner import EffectRunner, LookedUp, Outcome
from sabot.jobs.timers import JobTimers
from sabot.jobs.tree import child_id
from sabot.jobs.values import copied, pack_error, type_of, unpack
from sabot.journal import Position
from sabot.journal.effects import RULES, EffectClass, EffectId, Reconciled
from sabot.journal.entries import UNSENT, Answer, Attempt, EffectResult, Intent

_log = logging.getLogger(__name__)

_UNAWAITED = GuardVerdict(Decision.DENY, reason="the function did not wait until it was decided")
_UNTIMED_SECONDS = 60.0  # the assumed time of a call of an earlier worker, if the tool has no time-out


class Effects:
    """The part of a host that runs the effects of jobs. Entries that it appends for a delivery are added to
    `HostState.told`, and the host delivers them.
    """

    def __init__(
        self, host: HostState, log: JobLog, timers: JobTimers, clock: Clock, guard: EffectGuard | None = None
    ) -> None:
        """Makes the part. `guard` decides which effects may be made; None allows all."""
        self.asked_total = self.doubts_total = 0
        requests = self._requests = CallRequests(host, log, guard)
        judge = None if guard is None else partial(judge_within, host.running, guard, clock, requests.instead)
        self.runner = EffectRunner(
            clock=clock,
            sendable=log.sendable,
            on_broken=partial(host.on_broken, "an effect"),
            again=requests.resend,
            judge=judge,
        )
        self.runner.ask = requests.ask_person
        self._host, self._log, self._timers, self._guard = host, log, timers, guard
        # calls under way of jobs that have left memory and are still open
        self._outlived: dict[tuple[str, int], Ask] = {}

    # -- effects that the function asks for ---------------------------------------------------------------------------

    def submit(self, running: RunningJob, ask: Ask) -> None:
        """Takes up an effect that the function has asked for."""
        host = self._host
        if not running.in_memory:
            return
        if ask.phase is not ASKED:  # its INTENT is in the journal
            # otherwise nobody waits for the effect
            if ask.ordinal in running.job.open and running.job.history.end is None:
                self._go_on(running, ask)
        elif host.stopping:
            return
        elif ask.dropped and ask.kind == "call":
            ask.verdict = _UNAWAITED
            self._record(running, ask)
        elif self._guard is not None and (kind := ask.guarded) is not None:
            self._decide(running, ask, kind, self._guard)
        else:
            self._record(running, ask)

    def _decide(self, running: RunningJob, ask: Ask, kind: CallKind, guard: EffectGuard) -> None:
        """Asks the guard whether the effect may be made. If the guard returns an awaitable, the event GuardDecided has
        its decision.
        """
        job = running.job
        call = GuardedCall(
            EffectId(job.job_id, ask.ordinal, ask.attempt),
            kind,
            ask.model or ask.name,
            agent=job.history.begin.agent,
            behalf=job.behalf,
            effect_class=ask.effect_class,
            tool=ask.tool,
            args=(unpack(ask.body),) if kind == "child" else ask.args,
            kwargs=ask.kwargs,
            spec=ask.args[0] if kind == "model" else None,
            price=ask.price,
            labels=frozenset(job.labels),
            apart=ask.apart,
        )
        found = judge_call(guard, call)
        if isinstance(found, GuardVerdict):
            self._decided(running, ask, found)
            return
        ask.enter(AWAITS_GUARD)
        running.undecided[ask.ordinal] = ask
        what = f"what decides on {ask.name} of job {job.job_id}"
        self._host.put_when(found, partial(GuardDecided, running, ask), what)

    def guard_decided(self, event: GuardDecided) -> None:
        """Handles a decision of the guard that has taken time. If nobody waits for the effect any more, it is not made."""
        running, ask, verdict = event.running, event.ask, event.verdict
        running.undecided.pop(ask.ordinal, None)
        runs = running.in_memory and not self._host.stopping
        if ask.dropped or not runs:
            assert self._guard is not None
            self._guard.drop(EffectId(running.job.job_id, ask.ordinal, ask.attempt))
            verdict = _UNAWAITED
        if runs:
            self._decided(running, ask, verdict)
        else:
            running.job.open.pop(ask.ordinal, None)

    def _decided(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> None:
        if ask.model:
            verdict = msgspec.structs.replace(verdict, about=ask.model)
        ask.change(verdict)
        if verdict.decision is Decision.WARN or verdict.notes:
            said = "; ".join(filter(None, (verdict.reason, *verdict.notes)))
            _log.warning("job %s: %s, effect %d: %s", running.job.job_id, ask.name, ask.ordinal, said)
        self._record(running, ask)

    def _record(self, running: RunningJob, ask: Ask) -> None:
        """Writes the INTENT of an effect, and begins it."""
        host = self._host
        at_ms = host.now_ms()
        # by the time of the job's loop, which is ahead if the machine's clock was set back before this
        # start
        if ask.due_ms:
            ask.due_ms -= max(0, round(running.job.loop.now * 1000) - at_ms)
        position = self._log.append(ask.intent(running.job.job_id, at_ms), running)
        self.asked_total += 1
        if ask.ordinal not in running.job.open:
            ask.enter(OPEN)  # nothing to make: a patch, or a wait whose signal is there
        elif ask.verdict is None:
            self._do(running, ask, intended(ask, at_ms), position)
        else:
            self._do(running, ask, self._as_decided(running, ask, ask.verdict, at_ms), position)

    def _go_on(self, running: RunningJob, ask: Ask) -> None:
        """Continues with an effect of an earlier run that has no result."""
        job, verdict = running.job, ask.verdict
        if verdict is not None:
            try:
                ask.change(verdict)
            except UserError as error:  # the function asks for it with other arguments than before
                self._do(running, ask, refused(ask, error.message))
                return
            if self._guard is not None and verdict.decision is not Decision.DENY:
                effect = EffectId(job.job_id, ask.ordinal, ask.attempt)
                self._guard.reopen(effect, job.history.begin.agent, job.behalf, job.history.decided(effect, verdict))
        intent = job.history.intents.get(ask.ordinal)
        at_ms = 0 if intent is None else intent.at_ms
        if verdict is None:
            self._do(running, ask, intended(ask, at_ms, resumed=True))
        else:
            self._do(running, ask, self._as_decided(running, ask, verdict, at_ms, resumed=True))

    def _as_decided(
        self, running: RunningJob, ask: Ask, verdict: GuardVerdict, at_ms: int, *, resumed: bool = False
    ) -> EffectCommand:
        """Returns the command that follows the INTENT of an effect on which the guard has decided."""
        if verdict.decision is Decision.DENY:
            return refused(ask, verdict.reason or "a rule denies it", verdict.error, verdict.rule)
        asks, answer = verdict.decision is Decision.ASK, running.job.history.approval(ask.ordinal)
        return intended(ask, at_ms, resumed=resumed, asks=asks, answer=answer)

    # -- commands of the core -----------------------------------------------------------------------------------------

    def _do(self, running: RunningJob, ask: Ask, command: EffectCommand, entry: Position | None = None) -> None:
        """Runs a command of the core. For "make", `entry` is the entry of this attempt: the call waits until it is
        durable, if the class of the effect demands that.
        """
        host, job_id = self._host, running.job.job_id
        if command is MAKE:
            assert ask.tool is not None
            first = entry if RULES[EffectClass(ask.effect_class)].intent == "first" else None
            # copies, since the tool may change them, and be called again
            args, kwargs = copied((ask.args, ask.kwargs), ask.name)
            self.runner.make(EffectId(job_id, ask.ordinal, ask.attempt), ask.tool, args, kwargs, host.put, first)
        elif command.kind == "result":
            result = self._settled(job_id, ask, command.outcome, command.body)
            host.told.append((self._log.append(result, running), result))
        elif command.kind == "wait":
            if ask.due_ms:
                self._timers.add_rest(command.at_ms, ask.due_ms, job_id, ask.ordinal)
            if ask.phase is not OPEN:  # a person is asked, and the job may be parked for that
                host.put_front(Turned(running))
        elif command is BEGIN:
            self._begin_child(running, ask)
        elif command is AGAIN:
            if not host.stopping:
                attempt = EffectId(job_id, ask.ordinal, ask.attempt + 1)
                denied = None if self._guard is None else self._guard.decide_again(attempt)
                if denied is None or isinstance(denied, GuardVerdict):
                    self.repeat_decided(running, ask, denied)
                else:
                    host.put_when(denied, partial(RepeatDecided, running, ask), f"what decides on effect {attempt}")
        elif command is RESOLVE_DOUBT:
            self.resolve_doubt(running, ask)
        elif command is APPROVE:
            self._ask_approval(running, ask)
        elif command is INQUIRE:
            self._inquire(running, ask)
        elif command is not NOTHING:
            assert ask.tool is not None
            if command is LATER:
                if not ask.repeatable:  # the next start would not know that it was not sent
                    self._log.append(Attempt(job_id, host.now_ms(), ask.ordinal, ask.attempt, UNSENT), running)
                    running.job.history.not_made.add(ask.ordinal)
                host.put_later(ask.tool.retry.wait_s(ask.attempt - 1), RepeatDue(running, ask))
            else:
                args, kwargs = copied((ask.args, ask.kwargs), ask.name)
                effect = EffectId(job_id, ask.ordinal, ask.attempt)
                self.runner.reconcile(effect, ask.tool, args, kwargs, host.put)

    def _begin_child(self, running: RunningJob, ask: Ask) -> None:
        """Begins the child of an effect, unless it is open already: then it reports its end itself. A refusal becomes
        the result.
        """
        job, jobs = running.job, self._host.jobs
        child, owner = child_id(job.job_id, ask.ordinal), self._host.owners.get(ask.name)
        if child in jobs:
            return
        siblings = sum(each.kind == "child" and each.ordinal < ask.ordinal for each in job.open.values())
        error: EffectError | UserError | DataError | None = jobs.refusal(
            job.job_id, ask.name, siblings, cancelled=bool(job.cancels)
        )
        if error is None and owner is None:
            error = UserError(f"ctx.child: there is no durable agent {ask.name}")
        elif error is None and owner is not None:
            jobs.ask(child)
            try:
                failed = ask.ordinal in job.history.failed_children
                owner.begin_child(child, unpack(ask.body), failed=failed, behalf=job.behalf)
            except (UserError, DataError) as refused:
                jobs.not_begun(child)
                error = refused
        if error is not None:
            self._do(running, ask, EffectCommand("result", type_of(error), pack_error(error)))

    # -- results of calls ---------------------------------------------------------------------------------------------

    def call_ended(self, outcome: Outcome) -> None:
        """Handles the outcome of an attempt."""
        job_id, ordinal, _ = outcome.effect
        running = self._host.running.get(job_id)
        ask = self._outlived.pop((job_id, ordinal), None) if running is None else running.job.open.get(ordinal)
        if ask is None:
            return
        assert ask.tool is not None
        command = attempt_ended(ask, outcome.outcome, outcome.body, outcome.certainty, ask.tool.retry.retries)
        if running is not None:
            self._do(running, ask, command)
        elif command.kind == "result":  # otherwise the next start decides on it
            self._log.append(self._settled(job_id, ask, outcome.outcome, outcome.body))

    def _settled(self, job_id: str, ask: Ask, outcome: str, body: bytes) -> EffectResult:
        """Returns the RESULT of an effect, with its usage."""
        at_ms, used, asked = self._host.now_ms(), b"", b""
        if self._guard is not None and (kind := ask.guarded) is not None:
            effect = EffectId(job_id, ask.ordinal, ask.attempt)
            used = self._guard.settle(effect, kind, ask.title, outcome, body, at_ms)
            asked = self._guard.asked_by_tool(effect)
        return EffectResult(job_id, at_ms, ask.ordinal, ask.attempt, outcome, body, used, asked=asked)

    def repeat_due(self, event: RepeatDue) -> None:
        """Handles the end of a back-off."""
        if event.running.in_memory and not self._host.stopping:
            self._do(event.running, event.ask, repeat_or_drop(event.ask))

    def repeat_decided(self, running: RunningJob, ask: Ask, denied: GuardVerdict | None) -> None:
        """Makes another attempt, unless the guard has denied it."""
        if not running.in_memory or self._host.stopping or ask.ordinal not in running.job.open:
            return
        if denied is not None:
            self._do(running, ask, refused(ask, denied.reason, denied.error, denied.rule))
            return
        command = attempted(ask)
        running.job.history.begin_attempt(ask.ordinal, ask.attempt)
        entry = Attempt(running.job.job_id, self._host.now_ms(), ask.ordinal, ask.attempt)
        self._do(running, ask, command, self._log.append(entry, running))

    def call_asked(self, event: CallAsked) -> None:
        """Handles a request of a call under way."""
        effect, answer = event.effect, event.answer
        if answer.done():
            return  # the call was cancelled
        running = self._host.running.get(effect.job)
        ask = self._outlived.get(effect[:2]) if running is None else running.job.open.get(effect.ordinal)
        if ask is None:
            answer.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect} any more"))
            return
        command = self._requests.answer(event, running, ask)
        if command is not None and running is not None:
            self.runner.stop(effect)
            self._do(running, ask, command)

    # -- in doubt -----------------------------------------------------------------------------------------------------

    def resolve_doubt(
        self, running: RunningJob, ask: Ask, found: Reconciled | None = None, result: bytes | None = None
    ) -> None:
        """Decides on an effect with an intent of which nobody knows whether it was made. `found`, `result`: the answer
        of its `reconcile=` function.
        """
        job, tool = running.job, ask.tool
        if self._host.stopping or not running.in_memory:
            return  # the next start decides on it
        assert tool is not None
        # the job runs again in the process that still makes the call
        if self.runner.is_under_way(job.job_id, ask.ordinal):
            self._do(running, ask, MAKE)
            return
        if found is None:
            asked, answer = job.history.question_about(ask.ordinal)
            not_made = ask.ordinal in job.history.not_made
            command = continue_with_question(ask, not_made, asked, answer, gives_rows=ask.gives_rows)
            if command is not None:
                self._do(running, ask, command)
                return
            # A worker that has lost the journal may still make the call, until its claim and the call's time-out are over.
            wait_s = self._host.journal.predecessor_left() + (tool.timeout_s or _UNTIMED_SECONDS)
            if wait_s > 0 and not ask.repeatable:
                self._host.put_later(wait_s, DoubtDue(running, ask))
                return
        self._do(running, ask, doubted(ask, tool.in_doubt, found, result))

    def looked_up(self, event: LookedUp) -> None:
        """Handles the finding of a tool's `reconcile=`."""
        running = self._host.running.get(event.effect.job)
        ask = None if running is None else running.job.open.get(event.effect.ordinal)
        if running is not None and ask is not None:
            self.resolve_doubt(running, ask, event.found, event.result)

    def _inquire(self, running: RunningJob, ask: Ask) -> None:
        """Asks a person whether the effect was made: done, not done, abandon, or look it up again, which may lead to
        another question.
        """
        history = running.job.history
        answers = [*VERDICTS, *([LOOK_UP] if ask.effect_class == EffectClass.RECONCILABLE else [])]
        payload = {"effect": ask.name, "ordinal": ask.ordinal, "attempt": ask.attempt, "answers": answers}
        about = f"{IN_DOUBT} {ask.attempt}"
        if (earlier := history.doubts.get(ask.ordinal)) is not None:
            payload["looked"] = msgspec.json.decode(earlier.body).get("looked", 0) + 1  # type: ignore[arg-type]
            about += f" {payload['looked']}"
        if ask.gives_rows:
            payload["gives"] = "rows"
        asked = self._question(running, ask, self._host.now_ms(), IN_DOUBT, payload, about=about)
        self.doubts_total += 1
        _log.warning("job %s: nobody knows whether %s was done: a person is asked", running.job.job_id, ask.name)
        self._do(running, ask, asked_person(ask, asked))

    # -- questions to people ------------------------------------------------------------------------------------------

    def _ask_approval(self, running: RunningJob, ask: Ask) -> None:
        """Asks a person whether the effect may be made, by a question of type "confirm". It is asked once, also over
        restarts.
        """
        history, verdict = running.job.history, ask.verdict
        assert verdict is not None
        if (asked := history.approvals.get(ask.ordinal)) is None:
            at_ms = self._host.now_ms()
            payload: dict[str, Any] = {"effect": ask.title, "kind": ask.guarded, "ordinal": ask.ordinal}
            payload |= {"reason": verdict.reason, "rule": verdict.rule, "answers": ["approve", "reject"]}
            due_ms = at_ms + round(verdict.wait_s * 1000) if verdict.wait_s else 0
            asked = self._question(running, ask, at_ms, CONFIRM, payload, due_ms=due_ms)
        self._do(running, ask, asked_person(ask, asked))

    def deliver_answer(self, running: RunningJob, ask: Ask, answer: Answer) -> None:
        """Handles a person's answer to a question about an effect: whether it may be made, or whether it was."""
        running.job.history.answers[answer.token] = answer
        self._do(running, ask, answered(ask, answer, gives_rows=ask.gives_rows))

    def _question(
        self, running: RunningJob, ask: Ask, at_ms: int, kind: str, payload: Any, *, about: str = "", due_ms: int = 0
    ) -> Intent:
        job_id, key = running.job.job_id, self._host.journal.key
        asked = question(ask, job_id, at_ms, key, kind, payload, about=about, due_ms=due_ms)
        self._log.append(asked, running)
        running.job.history.add_question(asked)
        return asked

    # -- time limits of attempts --------------------------------------------------------------------------------------

    def limit(self, running: RunningJob) -> None:
        """Starts the time limit of the job's attempt. The time ends when the job is over or parked (with
        `sleep_counts`: parked for others).
        """
        left = running.owner.time_left(running.job)
        if left is not None:
            left_s, running.limit = left
            running.due_s = self._host.steady_s() + left_s
            self._timers.add(left_s, running.job.job_id, 0)

    def time_out(self, job_id: str) -> None:
        """Handles an attempt that has run for too long: cuts its calls short, as their own timeouts would, and cancels
        the function once.
        """
        host, running = self._host, self._host.running.get(job_id)
        if host.stopping or running is None or not 0 < running.due_s <= host.steady_s():
            return
        running.due_s, job = 0.0, running.job
        error = TimeoutError(f"job {job_id} ran longer than {running.limit}")
        self.runner.cut_short(job_id, error)
        if not job.finished:
            late = EffectResult(job_id, host.now_ms(), 0, job.history.attempt, type_of(error), pack_error(error))
            host.told.append((self._log.append(late, running), late))

    # -- starts and ends of jobs --------------------------------------------------------------------------------------

    async def reopen(self, jobs: Iterable[OpenJob]) -> None:
        """Gives the guard its earlier decisions on the open effects of these jobs."""
        if self._guard is None:
            return
        for job in jobs:
            for ordinal, each in job.decided.items() if job.ended is None else ():
                if each.verdict.decision is not Decision.DENY:
                    effect = EffectId(job.job_id, ordinal, each.attempt)
                    self._guard.reopen(effect, job.agent, job.behalf, each)
        await self._guard.ready()

    def leave(self, running: RunningJob) -> None:
        """Records the INTENT of all effects that are being decided, because the job is about to end or to begin anew.
        They are not made; they are recorded because every effect that the function asks for has an ordinal.
        """
        for ask in running.undecided.values():
            ask.verdict = _UNAWAITED
            self._log.append(ask.intent(running.job.job_id, self._host.now_ms()), running)
            ask.enter(DONE)

    def forget(self, job: JobRun, stays_open: bool) -> None:
        """Handles a job that leaves memory. `stays_open` is True if the next start goes on with it, so that the
        outcomes of its calls are still recorded.
        """
        if stays_open:
            self._outlived.update({(job.job_id, ask.ordinal): ask for ask in job.open.values() if ask.kind == "call"})
        else:
            self.runner.drop(job.job_id)
