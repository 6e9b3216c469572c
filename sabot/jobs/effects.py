"""The effects of jobs: noted, made, made again, judged where nobody knows whether they were made.

asked ─▶ guard ─▶ INTENT ─▶ runner ─▶ RESULT ─▶ the job's next turn
                      │
                      ├─ it failed, and may be repeated: ATTEMPT, and again
                      └─ nobody knows: `journal.effects.in_doubt` decides: again, look it up, ask a person, …
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec

from sabot.base.stored_names import stored_name
from sabot.clock import Clock
from sabot.errors import UNREADABLE, EffectError, JournalFailed, SabotError, UserError
from sabot.jobs.children import Children
from sabot.jobs.derived import question_token
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
from sabot.jobs.history import GIVEN_UP, IN_DOUBT, LOOK_UP, VERDICTS
from sabot.jobs.judges import judge_within
from sabot.jobs.owner import HostServices, OpenJob, RunningJob
from sabot.jobs.questions import CallQuestions
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.runner import Certainty, EffectRunner, Outcome
from sabot.jobs.timers import JobTimers
from sabot.jobs.values import copied, gives_rows, pack, pack_error, rows_of_answer, type_of, unpack
from sabot.journal import Position
from sabot.journal.effects import RULES, Doubt, EffectClass, EffectId, Reconciled, digest, in_doubt
from sabot.journal.entries import Answer, Attempt, EffectResult, Intent
from sabot.llm.errors import model_error
from sabot.llm.tools import Tool

_log = logging.getLogger(__name__)

_CLAIM_SECONDS = 0.05  # so often is looked whether a claim holds again
_UNAWAITED = GuardVerdict(Decision.DENY, reason="the function did not wait until it was decided")
_UNTIMED_SECONDS = 60.0  # how long a call of an earlier worker may take, where the tool has no time-out


class Effects:
    """Makes what jobs ask. Its methods are items of the host's task, or put some."""

    def __init__(
        self,
        host: HostServices,
        timers: JobTimers,
        clock: Clock,
        *,
        broke: Callable[[str, SabotError], object],
        guard: EffectGuard | None = None,
    ) -> None:
        """broke: the run has to end. guard: decides what may be made; None: all may."""
        self.asked_total = self.doubts_total = 0
        self.children = Children(host, guard, result=self._result)
        judge = None if guard is None else partial(judge_within, host, guard, clock, self.instead)
        asks: dict[str, Any] = {"may_send": self._may_send, "sendable": self._sendable, "again": self.resend}
        self.runner = EffectRunner(clock=clock, on_broken=partial(broke, "an effect"), judge=judge, **asks)
        self._questions = CallQuestions(host, timers, stop=self.runner.stop, again=self._retry)
        self.runner.ask = self._questions.ask
        self._host, self._timers = host, timers
        self._guard = guard
        self._outlived: dict[tuple[str, int], Ask] = {}  # calls of jobs that are not in memory any more, and not over

    def _may_send(self) -> None:
        journal = self._host.journal
        if journal.claim_left() <= 0:
            raise JournalFailed(f"{journal.where}: its claim is over: another worker may have taken it")

    # -- making -------------------------------------------------------------------------------------------------------

    def submit(self, running: RunningJob, ask: Ask) -> None:
        """What the function has asked for is noted, and made."""
        host = self._host
        if not host.is_running(running) or (host.stopping and not ask.noted):
            return
        if ask.noted:
            if ask.ordinal in running.job.open and running.job.history.end is None:  # else nobody waits for it
                self._go_on(running, ask)
        elif ask.dropped and ask.kind == "call":
            ask.verdict = _UNAWAITED
            self._note(running, ask)
        elif self._guard is not None and (kind := ask.guarded) is not None:
            self._decide(running, ask, kind, self._guard)
        else:
            self._note(running, ask)

    def _note(self, running: RunningJob, ask: Ask) -> None:
        """Its INTENT, and what follows of it."""
        host, verdict = self._host, ask.verdict
        at_ms = host.now_ms()
        if ask.due_ms:  # by the loop of its job, which is ahead where the machine's clock was set back before this life
            ask.due_ms -= max(0, round(running.job.loop.now * 1000) - at_ms)
        position = host.append(ask.intent(running.job.job_id, at_ms), running)
        ask.noted = True
        self.asked_total += 1
        if ask.ordinal not in running.job.open:
            return  # there is nothing to make: a patch, a wait whose signal was there
        if verdict is not None and not self._allowed(running, ask, verdict):
            return
        match ask.kind:
            case "call":
                self._make(running, ask, position)
            case "sleep" | "ask" if ask.due_ms:
                self._timers.add_rest(at_ms, ask.due_ms, running.job.job_id, ask.ordinal)
            case "child":
                self.children.begin(running, ask)

    def _go_on(self, running: RunningJob, ask: Ask) -> None:
        """It was asked before, and nothing has come of it."""
        verdict = ask.verdict
        if verdict is not None:
            try:
                ask.change(verdict)
            except UserError as error:  # the function asks for it with something else than it did
                self._refused(running, ask, error.message)
                return
            if self._guard is not None and verdict.decision is not Decision.DENY:
                job = running.job
                effect = job.effect_id(ask)
                self._guard.reopen(effect, job.history.begin.agent, job.behalf, job.history.decided(effect, verdict))
            if not self._allowed(running, ask, verdict):
                return
        match ask.kind:
            case "call":
                self._judge(running, ask)
            case "sleep" | "ask" if ask.due_ms:
                asked_ms = getattr(running.job.history.intents.get(ask.ordinal), "at_ms", 0)
                self._timers.add_rest(asked_ms, ask.due_ms, running.job.job_id, ask.ordinal)
            case "child":
                self.children.begin(running, ask)

    def _make(self, running: RunningJob, ask: Ask, entry: Position | None) -> None:
        """entry: of this attempt. The call waits until it is durable, if the class wants that."""
        assert ask.tool is not None
        first = entry if RULES[EffectClass(ask.effect_class)].intent == "first" else None
        ready = partial(self._sendable, first)
        args, kwargs = copied((ask.args, ask.kwargs), ask.name)  # the tool may change what it gets, and be called again
        self.runner.make(running.job.effect_id(ask), ask.tool, args, kwargs, self._receive, ready)

    async def _sendable(self, first: Position | None = None) -> None:
        """Returns when this entry is durable and the claim holds. Where that is over, the server of the journal is away for now, and then
        it comes back; or another worker has it, and then the journal fails.
        """
        journal = self._host.journal
        if first is not None:
            await journal.durable(first)
        while journal.claim_left() <= 0:
            await journal.room()
            await asyncio.sleep(_CLAIM_SECONDS)

    def _receive(self, effect: EffectId, outcome: Outcome) -> None:
        self._host.put(partial(self._outcome, effect.job, effect.ordinal, outcome))

    def _outcome(self, job_id: str, ordinal: int, outcome: Outcome) -> None:
        """An attempt is over."""
        running = self._host.running_job(job_id)
        ask = self._outlived.pop((job_id, ordinal), None) if running is None else running.job.open.get(ordinal)
        if ask is None:
            return
        assert ask.tool is not None
        retry, repeatable = ask.tool.retry, RULES[EffectClass(ask.effect_class)].repeatable
        failed, certainty = outcome.outcome != "ok", outcome.certainty
        unsent = certainty is Certainty.NOT_SENT and not ask.dropped
        again = failed and ask.attempt <= retry.retries and (repeatable or unsent)
        doubtful = certainty is Certainty.UNKNOWN and not repeatable
        if running is None:
            if not (again or doubtful):  # else the next start judges it
                self._host.append(self._settled(job_id, ask, outcome.outcome, outcome.body))
        elif again:
            self._host.put_later(retry.wait_s(ask.attempt - 1), partial(self._retry, running, ask))
        elif doubtful:
            self._judge(running, ask)
        else:
            self._result(running, ask, outcome.outcome, outcome.body)

    def forget(self, job: JobRun, stays_open: bool) -> None:
        """The job is not in memory any more. stays_open: the next start goes on with it, so what comes of its calls is recorded."""
        if stays_open:
            self._outlived.update({(job.job_id, ask.ordinal): ask for ask in job.open.values() if ask.kind == "call"})
        else:
            self.runner.drop(job.job_id)

    def _settled(self, job_id: str, ask: Ask, outcome: str, body: bytes) -> EffectResult:
        """Its RESULT, with what it has used."""
        at_ms, used, asked, kind = self._host.now_ms(), b"", b"", ask.guarded
        if self._guard is not None and kind is not None:
            effect, name = EffectId(job_id, ask.ordinal, ask.attempt), ask.model or ask.name
            used, asked = (
                self._guard.settle(effect, kind, name, outcome, body, at_ms),
                self._guard.asked_by_tool(effect),
            )
        return EffectResult(job_id, at_ms, ask.ordinal, ask.attempt, outcome, body, used, asked=asked)

    def _retry(self, running: RunningJob, ask: Ask) -> None:
        """Begins another attempt of an effect. An effect that the function awaits no longer gets one only if its class
        makes a repetition harmless; else its RESULT says that it was not made.
        """
        if not self._host.is_running(running) or self._host.stopping:
            return
        if ask.dropped and not RULES[EffectClass(ask.effect_class)].repeatable:
            error = asyncio.CancelledError(f"{ask.name} was not done, and its job waits for it no longer")
            self._result(running, ask, GIVEN_UP, pack_error(error))
            return
        self._ask_guard(
            EffectId(running.job.job_id, ask.ordinal, ask.attempt + 1), partial(self._retry_judged, running, ask)
        )

    def _ask_guard(self, effect: EffectId, go_on: Callable[[GuardVerdict | None], None]) -> None:
        """Whether this attempt may be made: at once, or when the guard knows."""
        said = None if self._guard is None else self._guard.decide_again(effect)
        if said is None or isinstance(said, GuardVerdict):
            return go_on(said)

        async def wait() -> None:
            self._host.put(partial(go_on, await said))

        self._host.spawn(wait(), f"what decides on effect {effect}")

    def _retry_judged(self, running: RunningJob, ask: Ask, refused: GuardVerdict | None) -> None:
        if not self._host.is_running(running) or self._host.stopping or ask.ordinal not in running.job.open:
            return
        if refused is not None:
            self._refused(running, ask, refused.reason, refused.error, refused.rule)
            return
        ask.attempt += 1
        ask.doubt = ""
        running.job.history.stopped.discard(ask.ordinal)
        entry = Attempt(running.job.job_id, self._host.now_ms(), ask.ordinal, ask.attempt)
        self._make(running, ask, self._host.append(entry, running))

    async def resend(self, effect: EffectId) -> EffectId:
        """The call itself is about to send its request once more, as it has not read what came of the last one: another attempt, if a guard
        lets it. Returns when that may be sent. Raises EffectError where nobody waits for it any more, BudgetExceeded.
        """
        asked: asyncio.Future[tuple[EffectId, Position]] = asyncio.get_running_loop().create_future()
        self._host.put(partial(self._resend, effect, asked))
        effect, entry = await asked
        await self._sendable(entry)
        return effect

    def _resend(self, effect: EffectId, asked: "asyncio.Future[tuple[EffectId, Position]]") -> None:
        found = self._waited_for(effect, asked)
        if found is not None:
            effect = EffectId(effect.job, effect.ordinal, found[1].attempt + 1)
            self._ask_guard(effect, partial(self._resend_judged, effect, asked))

    def _resend_judged(
        self, effect: EffectId, asked: "asyncio.Future[tuple[EffectId, Position]]", refused: GuardVerdict | None
    ) -> None:
        found = self._waited_for(effect, asked)
        if found is None:
            return
        running, ask = found
        if refused is not None:
            said = _refusal(ask, refused.reason, refused.rule)
            asked.set_exception(model_error(refused.error, said) or EffectError(refused.error, said))
            return
        ask.attempt = effect.attempt
        entry = Attempt(effect.job, self._host.now_ms(), effect.ordinal, effect.attempt)
        asked.set_result((effect, self._host.append(entry, running)))

    def _waited_for(self, effect: EffectId, asked: "asyncio.Future[Any]") -> tuple[RunningJob | None, Ask] | None:
        """The effect of a call that is under way; None: nobody waits for it any more, and the call is told so, or was cancelled."""
        if asked.done():
            return None
        running = self._host.running_job(effect.job)
        ask = self._outlived.get(effect[:2]) if running is None else running.job.open.get(effect.ordinal)
        if ask is None:
            asked.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect}: it was not asked again"))
            return None
        return running, ask

    async def instead(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """The call itself is about to ask another model in place of the first one, from this attempt on, if the verdict on that lets it.
        Returns when the journal has the verdict. Raises EffectError where nobody waits for the effect any more.
        """
        asked: asyncio.Future[Position] = asyncio.get_running_loop().create_future()

        def note() -> None:
            found = self._waited_for(effect, asked)
            if found is not None:
                entry = Attempt(
                    effect.job, self._host.now_ms(), effect.ordinal, effect.attempt, encode_verdict(verdict)
                )
                asked.set_result(self._host.append(entry, found[0]))

        self._host.put(note)
        await self._sendable(await asked)

    def _result(self, running: RunningJob, ask: Ask, outcome: str, body: bytes) -> None:
        """The effect has a certain outcome: it is recorded, and the function told."""
        entry = self._settled(running.job.job_id, ask, outcome, body)
        self._host.deliver(self._host.append(entry, running), entry)

    # -- what may be made ---------------------------------------------------------------------------------------------

    async def reopen(self, jobs: Iterable[OpenJob]) -> None:
        """What was decided of the open effects of these jobs in an earlier run holds."""
        if self._guard is None:
            return
        for job in jobs:
            for ordinal, each in job.decided.items() if job.ended is None else ():
                if each.verdict.decision is not Decision.DENY:
                    effect = EffectId(job.job_id, ordinal, each.attempt)
                    self._guard.reopen(effect, job.agent, job.behalf, each)
        await self._guard.ready()

    def _decide(self, running: RunningJob, ask: Ask, kind: CallKind, guard: EffectGuard) -> None:
        """What may become of it is decided, now or, where that takes time, beside."""
        job = running.job
        call = GuardedCall(
            job.effect_id(ask),
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
        ask.judging = True
        running.judging[ask.ordinal] = ask

        async def wait() -> None:
            self._host.put(partial(self._decided_later, running, ask, guard, await found))

        self._host.spawn(wait(), f"what decides on {ask.name} of job {job.job_id}")

    def _decided_later(self, running: RunningJob, ask: Ask, guard: EffectGuard, verdict: GuardVerdict) -> None:
        """The job may have ended meanwhile, or the function waits no longer for it: then it is not made."""
        ask.judging = False
        running.judging.pop(ask.ordinal, None)
        runs = self._host.is_running(running) and not self._host.stopping
        if ask.dropped or not runs:
            guard.drop(running.job.effect_id(ask))
            verdict = _UNAWAITED
        if runs:
            self._decided(running, ask, verdict)
            self._host.settle(running)
        else:
            running.job.open.pop(ask.ordinal, None)

    def leave(self, running: RunningJob) -> None:
        """The job is about to end, or to begin anew. What is being decided is not made; it has its intent all the same, as what
        the function has asked is counted.
        """
        for ask in running.judging.values():
            ask.verdict, ask.noted = _UNAWAITED, True
            self._host.append(ask.intent(running.job.job_id, self._host.now_ms()), running)

    def _decided(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> None:
        if ask.model:
            verdict = msgspec.structs.replace(verdict, about=ask.model)
        ask.change(verdict)
        if verdict.decision is Decision.ASK:
            ask.attempt = 0
        if verdict.decision is Decision.WARN or verdict.notes:
            said = "; ".join(filter(None, (verdict.reason, *verdict.notes)))
            _log.warning("job %s: %s, effect %d: %s", running.job.job_id, ask.name, ask.ordinal, said)
        self._note(running, ask)

    def _allowed(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> bool:
        """Whether it may be made now. Else it is denied, or a person is asked."""
        if verdict.decision is Decision.DENY:
            self._refused(running, ask, verdict.reason or "a rule denies it", verdict.error, verdict.rule)
            return False
        if verdict.decision is not Decision.ASK or ask.attempt:
            return True
        answer = running.job.history.approval(ask.ordinal)
        if answer is not None:
            self._approval(running, ask, answer)
        else:
            self._ask_approval(running, ask, verdict)
        return False

    def _refused(self, running: RunningJob, ask: Ask, why: str, error: str = "PolicyDenied", rule: str = "") -> None:
        self._result(running, ask, error, pack_error(EffectError(error, _refusal(ask, why, rule))))

    def _ask_approval(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> None:
        """A question of type "confirm", with the ordinal of its effect; asked once, also over restarts."""
        job, history = running.job, running.job.history
        question = history.approvals.get(ask.ordinal)
        if question is None:
            at_ms, key = self._host.now_ms(), self._host.journal.key
            payload: dict[str, Any] = {"effect": ask.model or ask.name, "kind": ask.guarded, "ordinal": ask.ordinal}
            payload |= {"reason": verdict.reason, "rule": verdict.rule, "answers": ["approve", "reject"]}
            due_ms = at_ms + round(verdict.wait_s * 1000) if verdict.wait_s else 0
            asked, token = digest(key, "ask", CONFIRM, payload), question_token(key, job.job_id, ask.ordinal)
            body = msgspec.json.encode(payload)
            question = Intent(job.job_id, at_ms, ask.ordinal, "ask", CONFIRM, asked, "", body, token, due_ms)
            self._host.append(question, running)
            history.approvals[ask.ordinal] = question
        ask.token, ask.due_ms = question.token, question.due_ms
        if ask.due_ms:
            self._timers.add_rest(question.at_ms, ask.due_ms, job.job_id, ask.ordinal)
        self._host.put_front([partial(self._host.settle, running)])

    def deliver_answer(self, running: RunningJob, ask: Ask, answer: Answer) -> None:
        """A person has answered a question about an effect: whether it may be made, or whether it was."""
        if answer.token == ask.doubt:
            self.verdict(running, ask, answer)
        else:
            running.job.history.verdicts[answer.token] = answer
            (self._questions.waits if ask.attempt else self._approval)(running, ask, answer)

    def _approval(self, running: RunningJob, ask: Ask, answer: Answer) -> None:
        """Whether a person allows it. An entry says so before it is made: only behind that it may be in doubt."""
        ask.token, ask.due_ms = "", 0
        if answer.outcome != "resolved":
            self._refused(running, ask, f"nobody has approved it: the question was {answer.outcome}")
        elif not is_approved(answer):
            self._refused(running, ask, _rejection(answer))
        elif ask.kind == "child":
            ask.attempt = 1
            self.children.begin(running, ask)
        else:
            self._retry(running, ask)

    # -- the time of an attempt ---------------------------------------------------------------------------------------

    def limit(self, running: RunningJob) -> None:
        """The time of its attempt begins. It ends when the job is parked (with `sleep_counts`: waits for others) or over."""
        left = running.owner.time_left(running.job)
        if left is not None:
            left_s, running.limit = left
            running.due_s = self._host.steady_s() + left_s
            self._timers.add(left_s, running.job.job_id, 0)

    def time_out(self, job_id: str) -> None:
        """An attempt has run for too long: its calls are given up, as by time-outs of their own, and the function is cancelled, once."""
        host, running = self._host, self._host.running_job(job_id)
        if host.stopping or running is None or not 0 < running.due_s <= host.steady_s():
            return
        running.due_s, job = 0.0, running.job
        error = TimeoutError(f"job {job_id} ran longer than {running.limit}")
        self.runner.give_up(job_id, error)
        if not job.finished:
            late = EffectResult(job_id, host.now_ms(), 0, job.history.attempt, type_of(error), pack_error(error))
            host.deliver(host.append(late, running), late)

    # -- in doubt -----------------------------------------------------------------------------------------------------

    def _judge(
        self, running: RunningJob, ask: Ask, found: Reconciled | None = None, result: bytes | None = None
    ) -> None:
        """The effect has an intent, and nobody knows whether it was made. found, result: what its reconciling function says."""
        job, tool = running.job, ask.tool
        if self._host.stopping or not self._host.is_running(running):
            return  # the next start judges it
        assert tool is not None
        if self.runner.is_under_way(job.job_id, ask.ordinal):  # the job is run again in the process that makes the call
            self._make(running, ask, None)
            return
        if ask.ordinal in job.history.stopped:
            answer = job.history.approval(ask.ordinal)
            if answer is None and ask.ordinal in job.history.approvals:
                return self._questions.waits(running, ask, None)
            return self._retry(running, ask)
        question = job.history.doubts.get(ask.ordinal)
        if question is not None and found is None:
            self._asked_before(running, ask, question)
            return
        kind = EffectClass(ask.effect_class)
        wait_s = self._host.journal.predecessor_left() + (tool.timeout_s or _UNTIMED_SECONDS)
        if wait_s > 0 and found is None and not RULES[kind].repeatable:
            self._host.put_later(wait_s, partial(self._judge, running, ask))
            return
        match in_doubt(kind, configured=tool.in_doubt, found=found):
            case Doubt.AGAIN | Doubt.AGAIN_WITH_KEY:
                self._retry(running, ask)
            case Doubt.RECONCILE:
                self._look_up(running, ask, tool)
            case Doubt.TAKE | Doubt.ASSUME_DONE:
                self._result(running, ask, "ok", pack(None, tool.name) if result is None else result)
            case Doubt.FAIL:
                error = EffectError(
                    "InDoubt", f"nobody knows whether {tool.name} was done (in_doubt='ask' asks a person)"
                )
                self._result(running, ask, error.type, pack_error(error))
            case Doubt.ASK:
                self._ask_person(running, ask)

    def _look_up(self, running: RunningJob, ask: Ask, tool: Tool) -> None:
        """Asks the tool's `reconcile=` whether the effect was made."""
        args, kwargs = copied((ask.args, ask.kwargs), ask.name)
        self.runner.reconcile(running.job.effect_id(ask), tool, args, kwargs, self._reconciled, self._sendable)

    def _reconciled(self, effect: EffectId, found: Reconciled, result: bytes | None) -> None:
        def judge() -> None:
            running = self._host.running_job(effect.job)
            ask = None if running is None else running.job.open.get(effect.ordinal)
            if running is not None and ask is not None:
                self._judge(running, ask, found, result)

        self._host.put(judge)

    def _ask_person(self, running: RunningJob, ask: Ask) -> None:
        """A question of type "in_doubt", with the ordinal of its effect: done, not done, or abandon; or that it is looked up again, after
        which it may be asked again, as another question.
        """
        job, journal = running.job, self._host.journal
        earlier = job.history.doubts.get(ask.ordinal)
        looked = 0 if earlier is None else _asked(earlier).get("looked", 0) + 1
        answers = [*VERDICTS, *([LOOK_UP] if ask.tool is not None and ask.tool.reconcile is not None else [])]
        payload = {"effect": ask.name, "ordinal": ask.ordinal, "attempt": ask.attempt, "answers": answers}
        if looked:
            payload["looked"] = looked
        asked = f"{IN_DOUBT} {ask.attempt}" + (f" {looked}" if looked else "")
        ask.doubt = question_token(journal.key, job.job_id, ask.ordinal, asked)
        if ask.tool is not None and gives_rows(ask.tool.func):
            payload["gives"] = "rows"
        name = digest(journal.key, "ask", IN_DOUBT, payload)
        body = msgspec.json.encode(payload)
        question = Intent(job.job_id, self._host.now_ms(), ask.ordinal, "ask", IN_DOUBT, name, "", body, ask.doubt)
        self._host.append(question, running)
        job.history.doubts[ask.ordinal] = question
        self.doubts_total += 1
        _log.warning("job %s: nobody knows whether %s was done: a person is asked", job.job_id, ask.name)
        self._host.put_front([partial(self._host.settle, running)])

    def _asked_before(self, running: RunningJob, ask: Ask, question: Intent) -> None:
        """A person was asked before the restart, and may have answered."""
        ask.doubt = question.token
        verdict = running.job.history.verdicts.get(question.token)
        if verdict is None:
            self._host.put_front([partial(self._host.settle, running)])
        else:
            self.verdict(running, ask, verdict)

    def verdict(self, running: RunningJob, ask: Ask, answer: Answer) -> None:
        """What a person says of an effect in doubt."""
        said, result = _said(answer)
        if said == LOOK_UP and ask.tool is not None and ask.tool.reconcile is not None:
            ask.doubt = ""  # the question stays in the history: it says how often this was looked up
            self._look_up(running, ask, ask.tool)
            return
        del running.job.history.doubts[ask.ordinal]
        if said == "done":
            try:
                result = rows_of_answer(result) if ask.tool is not None and gives_rows(ask.tool.func) else result
            except UserError as error:  # nobody has checked the answer: it came straight into the inbox
                self._result(running, ask, stored_name(type(error)), pack_error(error))
                return
            self._result(running, ask, "ok", pack(result, ask.name))
        elif said == "not_done":
            self._retry(running, ask)
        else:
            by = f" by {answer.by}" if answer.by else ""
            self._result(
                running, ask, "Abandoned", pack_error(EffectError("Abandoned", f"{ask.name} was abandoned{by}"))
            )


def _refusal(ask: Ask, why: str, rule: str) -> str:
    return f"{ask.model or ask.name} was not done: {why}" + (f" (rule {rule})" if rule else "")


def is_approved(answer: Answer) -> bool:
    """Whether it says yes: {"approved": true}, and nothing else counts."""
    return answer.outcome == "resolved" and _resolution(answer).get("approved") is True


def _resolution(answer: Answer) -> dict[str, Any]:
    """Returns what a person has answered; {} if it is no JSON object."""
    try:
        body: dict[str, Any] = msgspec.json.decode(answer.body or b"{}", type=dict[str, Any])  # type: ignore[arg-type]
    except UNREADABLE:
        return {}
    return body


def _rejection(answer: Answer) -> str:
    """Returns who has rejected an effect and why, as far as the answer says it, for the error in the job."""
    by, reason = f" by {answer.by}" if answer.by else "", _resolution(answer).get("reason")
    return f"it was rejected{by}" + (f": {reason}" if isinstance(reason, str) and reason else "")


def _said(answer: Answer) -> tuple[str, Any]:
    """The verdict of a person, and the result that goes with it. Any other word means `abandon`: nothing is repeated by mistake."""
    body = _resolution(answer) if answer.outcome == "resolved" else {}
    said = body.get("outcome", body.get("answer"))
    return (said if said in (*VERDICTS, LOOK_UP) else "abandon"), body.get("result")


def _asked(question: Intent) -> dict[str, Any]:
    """Returns what a question of this module has asked."""
    body: dict[str, Any] = msgspec.json.decode(question.body or b"{}")  # type: ignore[arg-type]
    return body
