"""The effects of jobs: writes their entries and runs the commands of the core.

asked ─▶ guard ─▶ INTENT ─▶ runner ─▶ RESULT ─▶ the job's next turn
                      │
                      ├─ it failed, and may be repeated: ATTEMPT, and again
                      └─ nobody knows: `core.doubted` decides: again, look it up, ask a person, …
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from sabot.clock import Clock
from sabot.errors import DataError, EffectError, JournalFailed, SabotError, UserError
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
    refusal,
    refused,
    repeat_or_drop,
)
from sabot.jobs.guard import (
    CONFIRM,
    CallKind,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    encode_verdict,
    judge_call,
)
from sabot.jobs.judges import judge_within
from sabot.jobs.owner import HostServices, OpenJob, RunningJob
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.runner import EffectRunner, Outcome
from sabot.jobs.timers import JobTimers
from sabot.jobs.tree import child_id
from sabot.jobs.values import copied, gives_rows, pack_error, type_of, unpack
from sabot.journal import Position
from sabot.journal.effects import RULES, EffectClass, EffectId, Reconciled, digest
from sabot.journal.entries import Answer, Attempt, EffectResult, Intent
from sabot.llm.errors import model_error

_log = logging.getLogger(__name__)

_CLAIM_SECONDS = 0.05  # so often is looked whether a claim holds again
_UNAWAITED = GuardVerdict(Decision.DENY, reason="the function did not wait until it was decided")
_UNTIMED_SECONDS = 60.0  # how long a call of an earlier worker may take, where the tool has no time-out


class Effects:
    """Runs the effects of jobs. Its methods are items of the host's task, or add some."""

    def __init__(
        self,
        host: HostServices,
        timers: JobTimers,
        clock: Clock,
        *,
        broke: Callable[[str, SabotError], object],
        guard: EffectGuard | None = None,
    ) -> None:
        """`broke`: called if the run has to end. `guard`: decides which effects may be made; None allows all."""
        self.asked_total = self.doubts_total = 0
        judge = None if guard is None else partial(judge_within, host, guard, clock, self.instead)
        self.runner = EffectRunner(
            clock=clock,
            put=host.put,
            may_send=self._may_send,
            sendable=self._sendable,
            on_broken=partial(broke, "an effect"),
            again=self.resend,
            judge=judge,
        )
        self.runner.ask = self.ask_person
        self._host, self._timers, self._loop = host, timers, asyncio.get_running_loop()
        self._guard = guard
        self._outlived: dict[tuple[str, int], Ask] = {}  # calls of jobs that are not in memory any more, and not over

    def _may_send(self) -> None:
        journal = self._host.journal
        if journal.claim_left() <= 0:
            raise JournalFailed(f"{journal.where}: its claim is over: another worker may have taken it")

    # -- making -------------------------------------------------------------------------------------------------------

    def submit(self, running: RunningJob, ask: Ask) -> None:
        """Takes up what the function has asked for."""
        host = self._host
        if not running.in_memory:
            return
        if ask.phase is not ASKED:  # its INTENT is in the journal
            if ask.ordinal in running.job.open and running.job.history.end is None:  # else nobody waits for it
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

    def _record(self, running: RunningJob, ask: Ask) -> None:
        """Writes the INTENT of an effect, and begins it."""
        host = self._host
        at_ms = host.now_ms()
        if ask.due_ms:  # by the loop of its job, which is ahead where the machine's clock was set back before this life
            ask.due_ms -= max(0, round(running.job.loop.now * 1000) - at_ms)
        position = host.append(ask.intent(running.job.job_id, at_ms), running)
        self.asked_total += 1
        if ask.ordinal not in running.job.open:
            ask.enter(OPEN)  # there is nothing to make: a patch, a wait whose signal was there
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
            except UserError as error:  # the function asks for it with something else than it did
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
        """Returns what follows the INTENT of an effect on which the guard has decided."""
        if verdict.decision is Decision.DENY:
            ask.enter(OPEN)
            return refused(ask, verdict.reason or "a rule denies it", verdict.error, verdict.rule)
        asks, answer = verdict.decision is Decision.ASK, running.job.history.approval(ask.ordinal)
        return intended(ask, at_ms, resumed=resumed, asks=asks, answer=answer)

    def _do(self, running: RunningJob, ask: Ask, command: EffectCommand, entry: Position | None = None) -> None:
        """Runs a command of the core. `entry`: the entry of this attempt, for MAKE. The call waits until it is durable, if the class of the
        effect wants that.
        """
        host, job_id = self._host, running.job.job_id
        if command is MAKE:
            assert ask.tool is not None
            first = entry if RULES[EffectClass(ask.effect_class)].intent == "first" else None
            args, kwargs = copied((ask.args, ask.kwargs), ask.name)  # the tool may change them, and be called again
            ready = partial(self._sendable, first)
            self.runner.make(
                EffectId(running.job.job_id, ask.ordinal, ask.attempt), ask.tool, args, kwargs, self._outcome, ready
            )
        elif command.kind == "result":
            result = self._settled(job_id, ask, command.outcome, command.body)
            host.deliver([(host.append(result, running), result)])
        elif command.kind == "wait":
            if ask.due_ms:
                self._timers.add_rest(command.at_ms, ask.due_ms, job_id, ask.ordinal)
            if ask.phase is not OPEN:  # a person is asked, for which the job may be parked
                host.put_front(partial(host.settle, running))
        elif command is BEGIN:
            self._begin_child(running, ask)
        elif command is AGAIN:
            if not host.stopping:
                attempt = EffectId(job_id, ask.ordinal, ask.attempt + 1)
                self._ask_guard(attempt, partial(self._attempt, running, ask))
        elif command is RESOLVE_DOUBT:
            self._resolve_doubt(running, ask)
        elif command is APPROVE:
            self._ask_approval(running, ask)
        elif command is INQUIRE:
            self._inquire(running, ask)
        elif command is not NOTHING:
            assert ask.tool is not None
            if command is LATER:
                host.put_later(ask.tool.retry.wait_s(ask.attempt - 1), partial(self._again, running, ask))
            else:
                args, kwargs = copied((ask.args, ask.kwargs), ask.name)
                effect = EffectId(running.job.job_id, ask.ordinal, ask.attempt)
                self.runner.reconcile(effect, ask.tool, args, kwargs, self._reconciled, self._sendable)

    def _begin_child(self, running: RunningJob, ask: Ask) -> None:
        """Begins the child of an effect, unless it has begun: then it tells its end."""
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

    async def _sendable(self, first: Position | None = None) -> None:
        """Returns when the entry is durable and the claim holds. If the claim has run out, either the server of the
        journal is away, and the claim comes back with it, or another worker has the claim, and the journal fails.
        """
        journal = self._host.journal
        if first is not None:
            await journal.durable(first)
        while journal.claim_left() <= 0:
            await journal.room()
            await asyncio.sleep(_CLAIM_SECONDS)

    def _outcome(self, effect: EffectId, outcome: Outcome) -> None:
        """Handles the outcome of an attempt."""
        job_id, ordinal = effect.job, effect.ordinal
        running = self._host.running.get(job_id)
        ask = self._outlived.pop((job_id, ordinal), None) if running is None else running.job.open.get(ordinal)
        if ask is None:
            return
        assert ask.tool is not None
        command = attempt_ended(ask, outcome.outcome, outcome.body, outcome.certainty, ask.tool.retry.retries)
        if running is not None:
            self._do(running, ask, command)
        elif command.kind == "result":  # else the next start judges it
            self._host.append(self._settled(job_id, ask, outcome.outcome, outcome.body))

    def forget(self, job: JobRun, stays_open: bool) -> None:
        """Handles a job that leaves memory. `stays_open`: the next start goes on with it, so the outcomes of its calls
        are still recorded.
        """
        if stays_open:
            self._outlived.update({(job.job_id, ask.ordinal): ask for ask in job.open.values() if ask.kind == "call"})
        else:
            self.runner.drop(job.job_id)

    def _settled(self, job_id: str, ask: Ask, outcome: str, body: bytes) -> EffectResult:
        """Returns its RESULT, with what it has used."""
        at_ms, used, asked = self._host.now_ms(), b"", b""
        if self._guard is not None and (kind := ask.guarded) is not None:
            effect = EffectId(job_id, ask.ordinal, ask.attempt)
            used = self._guard.settle(effect, kind, ask.title, outcome, body, at_ms)
            asked = self._guard.asked_by_tool(effect)
        return EffectResult(job_id, at_ms, ask.ordinal, ask.attempt, outcome, body, used, asked=asked)

    def _again(self, running: RunningJob, ask: Ask) -> None:
        if running.in_memory and not self._host.stopping:
            self._do(running, ask, repeat_or_drop(ask))

    def _ask_guard(self, effect: EffectId, go_on: Callable[[GuardVerdict | None], None]) -> None:
        """Asks the guard whether this attempt may be made, and passes its answer on, at once or later."""
        said = None if self._guard is None else self._guard.decide_again(effect)
        if said is None or isinstance(said, GuardVerdict):
            return go_on(said)

        async def wait() -> None:
            self._host.put(partial(go_on, await said))

        self._host.spawn(wait(), f"what decides on effect {effect}")

    def _attempt(self, running: RunningJob, ask: Ask, denied: GuardVerdict | None) -> None:
        host = self._host
        if not running.in_memory or host.stopping or ask.ordinal not in running.job.open:
            return
        if denied is not None:
            self._do(running, ask, refused(ask, denied.reason, denied.error, denied.rule))
            return
        command = attempted(ask)
        running.job.history.begin_attempt(ask.ordinal, ask.attempt)
        self._do(running, ask, command, self._write_attempt(running.job.job_id, running, ask))

    def _write_attempt(self, job_id: str, running: RunningJob | None, ask: Ask) -> Position:
        return self._host.append(Attempt(job_id, self._host.now_ms(), ask.ordinal, ask.attempt), running)

    # -- what a call under way asks for -------------------------------------------------------------------------------

    async def _request(self, effect: EffectId, item: Callable[..., None]) -> Any:
        """Runs an item of the host's task for a call that is under way, and returns its answer. Raises EffectError if nobody waits for the
        effect any more.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._host.put(partial(self._handle_request, effect, item, answer))
        return await answer

    def _handle_request(
        self, effect: EffectId, item: Callable[..., None], answer: "asyncio.Future[Any]", *given: Any
    ) -> None:
        if answer.done():
            return  # the call was cancelled
        running = self._host.running.get(effect.job)
        ask = self._outlived.get(effect[:2]) if running is None else running.job.open.get(effect.ordinal)
        if ask is None:
            answer.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect} any more"))
        else:
            item(running, ask, answer, *given)

    async def resend(self, effect: EffectId) -> EffectId:
        """Begins another attempt for a call that sends its request once more, because it has not read the answer to the last one. Returns
        when that may be sent. Raises EffectError if nobody waits for the effect any more, BudgetExceeded.
        """

        def decide(_: RunningJob | None, ask: Ask, answer: "asyncio.Future[Any]") -> None:
            later = EffectId(effect.job, effect.ordinal, ask.attempt + 1)
            self._ask_guard(later, partial(self._handle_request, later, partial(self._resend, effect.job), answer))

        attempt, entry = await self._request(effect, decide)
        await self._sendable(entry)
        return EffectId(effect.job, effect.ordinal, attempt)

    def _resend(
        self,
        job_id: str,
        running: RunningJob | None,
        ask: Ask,
        answer: "asyncio.Future[Any]",
        denied: GuardVerdict | None,
    ) -> None:
        if denied is not None:
            said = refusal(ask, denied.reason, denied.rule)
            answer.set_exception(model_error(denied.error, said) or EffectError(denied.error, said))
            return
        attempted(ask)
        answer.set_result((ask.attempt, self._write_attempt(job_id, running, ask)))

    async def instead(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records the verdict on another model, which a call asks in place of the first one from this attempt on. Returns when the journal
        has it. Raises EffectError if nobody waits for the effect any more.
        """

        def note(running: RunningJob | None, ask: Ask, answer: "asyncio.Future[Any]") -> None:
            entry = Attempt(effect.job, self._host.now_ms(), *effect[1:], encode_verdict(verdict))
            answer.set_result(self._host.append(entry, running))

        await self._sendable(await self._request(effect, note))

    async def ask_person(self, effect: EffectId, kind: str, body: bytes, seconds: float | None) -> str:
        """Asks a person on behalf of a call under way (`AsksPerson`). Raises UserError for a second question,
        EffectError if nobody waits for the call any more.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise UserError(
                f"effect {effect} asks a person in an event loop of its own", hint="make its tool a coroutine function"
            )
        return str(await self._request(effect, partial(self._ask_person, effect, kind, body, seconds)))

    def _ask_person(
        self,
        effect: EffectId,
        kind: str,
        body: bytes,
        seconds: float | None,
        running: RunningJob | None,
        ask: Ask,
        answer: "asyncio.Future[Any]",
    ) -> None:
        if running is None or self._host.stopping:
            answer.set_exception(EffectError("EffectOver", f"effect {effect} is left for the next start"))
            return
        history, ordinal = running.job.history, effect.ordinal
        before, name = history.approvals.get(ordinal), digest(self._host.journal.key, "ask", kind, body)
        if before is None:
            at_ms = self._host.now_ms()
            due_ms = 0 if seconds is None else at_ms + round(seconds * 1000)
            before = history.approvals[ordinal] = self._question(running, ask, at_ms, kind, body, due_ms=due_ms)
            history.not_made.add(ordinal)
            self.runner.stop(effect)
            self._do(running, ask, asked_person(ask, before))
        elif (before.name, before.digest) == (kind, name) and history.approval(ordinal) is not None:
            answer.set_result(before.token)
        else:
            said = f"{ask.name} asks a person, who was asked something else about this call before: a call asks one question"
            hint = "let another tool ask it, or the agent's function by ctx.ask; where a rule asks, the tool need not"
            answer.set_exception(UserError(said, hint=hint))

    # -- what may be made ---------------------------------------------------------------------------------------------

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

    def _decide(self, running: RunningJob, ask: Ask, kind: CallKind, guard: EffectGuard) -> None:
        """Asks the guard whether the effect may run. If the guard takes time, its decision arrives through
        `_decided_later`.
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

        async def wait() -> None:
            self._host.put(partial(self._decided_later, running, ask, guard, await found))

        self._host.spawn(wait(), f"what decides on {ask.name} of job {job.job_id}")

    def _decided_later(self, running: RunningJob, ask: Ask, guard: EffectGuard, verdict: GuardVerdict) -> None:
        """Handles a decision of the guard that has taken time. An effect that nobody waits for any more is not made."""
        running.undecided.pop(ask.ordinal, None)
        runs = running.in_memory and not self._host.stopping
        if ask.dropped or not runs:
            guard.drop(EffectId(running.job.job_id, ask.ordinal, ask.attempt))
            verdict = _UNAWAITED
        if runs:
            self._decided(running, ask, verdict)
            self._host.settle(running)
        else:
            running.job.open.pop(ask.ordinal, None)

    def leave(self, running: RunningJob) -> None:
        """Records the INTENT of all effects that are being decided, because the job is about to end or to begin anew.
        They are not made; they are recorded because all that the function asks for is counted.
        """
        for ask in running.undecided.values():
            ask.verdict = _UNAWAITED
            self._host.append(ask.intent(running.job.job_id, self._host.now_ms()), running)
            ask.enter(DONE)

    def _decided(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> None:
        if ask.model:
            verdict = msgspec.structs.replace(verdict, about=ask.model)
        ask.change(verdict)
        if verdict.decision is Decision.ASK:
            ask.attempt = 0
        if verdict.decision is Decision.WARN or verdict.notes:
            said = "; ".join(filter(None, (verdict.reason, *verdict.notes)))
            _log.warning("job %s: %s, effect %d: %s", running.job.job_id, ask.name, ask.ordinal, said)
        self._record(running, ask)

    def _ask_approval(self, running: RunningJob, ask: Ask) -> None:
        """Asks a person whether the effect may be made, by a question of type "confirm"; once, also over restarts."""
        history, verdict = running.job.history, ask.verdict
        assert verdict is not None
        if (asked := history.approvals.get(ask.ordinal)) is None:
            at_ms = self._host.now_ms()
            payload: dict[str, Any] = {"effect": ask.title, "kind": ask.guarded, "ordinal": ask.ordinal}
            payload |= {"reason": verdict.reason, "rule": verdict.rule, "answers": ["approve", "reject"]}
            due_ms = at_ms + round(verdict.wait_s * 1000) if verdict.wait_s else 0
            asked = history.approvals[ask.ordinal] = self._question(
                running, ask, at_ms, CONFIRM, payload, due_ms=due_ms
            )
        self._do(running, ask, asked_person(ask, asked))

    def _question(
        self, running: RunningJob, ask: Ask, at_ms: int, kind: str, payload: Any, *, about: str = "", due_ms: int = 0
    ) -> Intent:
        job_id, key = running.job.job_id, self._host.journal.key
        asked = question(ask, job_id, at_ms, key, kind, payload, about=about, due_ms=due_ms)
        self._host.append(asked, running)
        return asked

    def deliver_answer(self, running: RunningJob, ask: Ask, answer: Answer) -> None:
        """Handles a person's answer to a question about an effect: whether it may be made, or whether it was."""
        running.job.history.answers[answer.token] = answer
        self._do(running, ask, answered(ask, answer, gives_rows=_gives_rows(ask)))

    # -- the time of an attempt ---------------------------------------------------------------------------------------

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
        """Handles an attempt that has run for too long: gives up its calls, as their own timeouts would, and cancels
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
            host.deliver([(host.append(late, running), late)])

    # -- in doubt -----------------------------------------------------------------------------------------------------

    def _resolve_doubt(
        self, running: RunningJob, ask: Ask, found: Reconciled | None = None, result: bytes | None = None
    ) -> None:
        """Decides on an effect with an intent of which nobody knows whether it was made. `found`, `result`: the answer
        of its `reconcile=` function.
        """
        job, tool = running.job, ask.tool
        if self._host.stopping or not running.in_memory:
            return  # the next start judges it
        assert tool is not None
        if self.runner.is_under_way(job.job_id, ask.ordinal):  # the job is run again in the process that makes the call
            self._do(running, ask, MAKE)
            return
        history, not_made = job.history, ask.ordinal in job.history.not_made
        asked = (history.approvals if not_made else history.doubts).get(ask.ordinal)
        answer = None if asked is None else history.answers.get(asked.token)
        command = (
            continue_with_question(ask, not_made, asked, answer, gives_rows=_gives_rows(ask)) if found is None else None
        )
        if command is not None:
            self._do(running, ask, command)
            return
        wait_s = self._host.journal.predecessor_left() + (tool.timeout_s or _UNTIMED_SECONDS)
        if wait_s > 0 and found is None and not ask.repeatable:
            self._host.put_later(wait_s, partial(self._resolve_doubt, running, ask))
            return
        self._do(running, ask, doubted(ask, tool.in_doubt, found, result))

    def _reconciled(self, effect: EffectId, found: Reconciled, result: bytes | None) -> None:
        running = self._host.running.get(effect.job)
        ask = None if running is None else running.job.open.get(effect.ordinal)
        if running is not None and ask is not None:
            self._resolve_doubt(running, ask, found, result)

    def _inquire(self, running: RunningJob, ask: Ask) -> None:
        """Asks a person whether the effect was made: done, not done, or abandon; or to look it up again, which may lead to another
        question.
        """
        history = running.job.history
        answers = [*VERDICTS, *([LOOK_UP] if ask.effect_class == EffectClass.RECONCILABLE else [])]
        payload = {"effect": ask.name, "ordinal": ask.ordinal, "attempt": ask.attempt, "answers": answers}
        about = f"{IN_DOUBT} {ask.attempt}"
        if (earlier := history.doubts.get(ask.ordinal)) is not None:
            payload["looked"] = msgspec.json.decode(earlier.body).get("looked", 0) + 1  # type: ignore[arg-type]
            about += f" {payload['looked']}"
        if _gives_rows(ask):
            payload["gives"] = "rows"
        asked = self._question(running, ask, self._host.now_ms(), IN_DOUBT, payload, about=about)
        history.doubts[ask.ordinal] = asked
        self.doubts_total += 1
        _log.warning("job %s: nobody knows whether %s was done: a person is asked", running.job.job_id, ask.name)
        self._do(running, ask, asked_person(ask, asked))


def _gives_rows(ask: Ask) -> bool:
    return ask.tool is not None and gives_rows(ask.tool.func)
