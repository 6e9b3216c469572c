"""The effects of jobs: appends the entries that `core.step` returns, and runs its commands.

asked ─▶ guard ─▶ INTENT ─▶ runner ─▶ RESULT ─▶ the job's next turn
                      │
                      ├─ it failed, and may be repeated: ATTEMPT, and again
                      └─ nobody knows: again, reconcile, ask a person, …

Requests of calls under way are handled in `call_requests`.
"""

import logging
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from types import MappingProxyType
from typing import Literal

import msgspec

from sabot.clock import Clock
from sabot.engine.calls.certainty import Certainty
from sabot.engine.calls.effects import RULES, EffectId, Reconciled, SaltedEffectId
from sabot.engine.calls.tools import wraps_itself
from sabot.errors import DataError, EffectError, UserError
from sabot.jobs.answers import APPROVAL_WORDS, edit_of, fault_of
from sabot.jobs.call_requests import CallRequests
from sabot.jobs.core import (
    AGAIN,
    ASKED,
    AWAITS_GUARD,
    BEGIN,
    DOUBT,
    LATER,
    MAKE,
    NOT_EDITABLE,
    OPEN,
    RECONCILE,
    RESOLVE_DOUBT,
    EffectEvent,
    Judged,
    LookedUp,
    Outcome,
    faulty,
    step,
)
from sabot.jobs.events import CallAsked, EffectWaited
from sabot.jobs.guard import (
    CallKind,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    OpenCall,
    UseOf,
    declared_by,
    denial_of,
    judge_call,
)
from sabot.jobs.history import UNNAMED, History
from sabot.jobs.host_state import HostState
from sabot.jobs.judges import judge_within
from sabot.jobs.log import JobLog
from sabot.jobs.open_jobs import scope_of, session_of, standing_place
from sabot.jobs.owner import OpenJob, RunningJob
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.runner import EffectRunner
from sabot.jobs.timers import JobTimers
from sabot.jobs.tree import child_id
from sabot.jobs.values import pack_error, type_of
from sabot.journal.entries import Answer, EffectResult

_log = logging.getLogger(__name__)

_UNAWAITED = GuardVerdict(Decision.DENY, reason="the function did not wait until it was decided")
_MOST_REPEATED = 3  # repetitions of a refused call, after which the job says so
_ENDED_BY_TIME = ("call", "child")
_NONE_STANDING: Mapping[str, str] = MappingProxyType({})
_UNTIMED_SECONDS = 60.0  # the assumed time of a call of an earlier worker, if the tool has no time-out


class Effects:
    """The part of a host (`JobHost`) that runs the effects of jobs. It appends their entries to the journal. An entry
    that the function of a job has to receive, such as a result, is also added to `HostState.told`; the host then
    delivers it.
    """

    def __init__(
        self,
        host: HostState,
        log: JobLog,
        timers: JobTimers,
        clock: Clock,
        guard: EffectGuard | None = None,
        use_of: UseOf | None = None,
    ) -> None:
        """Makes the part of a host that runs effects. `guard` decides which effects may be made; None allows all.
        `use_of`: makes the usage of an answer that no guard has counted.
        """
        self._use_of = use_of
        self.asked_total = self.doubts_total = 0
        requests = self._requests = CallRequests(host, log, self._decide_again)
        # the labels of results that tools under way got from other tools, by job and ordinal
        self._read: dict[tuple[str, int], frozenset[str]] = {}
        judge = None
        if guard is not None:
            judge = partial(judge_within, host.running, guard, clock, requests.instead, self._read)
        self.runner = EffectRunner(
            clock=clock,
            sendable=log.sendable,
            on_broken=partial(host.on_broken, "an effect"),
            again=requests.resend,
            judge=judge,
            running=host.running,
            declared=declared_by(guard),
        )
        self.runner.ask = requests.ask_person
        self._host, self._log, self._timers, self._guard = host, log, timers, guard
        # calls under way of jobs that have left memory and are still open
        self._outlived: dict[tuple[str, int], tuple[RunningJob, Ask]] = {}

    # -- effects that the function asks for ---------------------------------------------------------------------------

    def submit(self, running: RunningJob, ask: Ask) -> None:
        """Begins an effect that the function has requested: asks the guard, records the INTENT entry, and runs the
        effect. If the journal has the INTENT entry from an earlier run of the job, continues from there without a new
        decision. Does nothing if the job is no longer in memory, or if the effect is new and the host is stopping.
        """
        if not running.in_memory:
            return
        if ask.phase is not ASKED:  # its INTENT is in the journal
            # otherwise nobody waits for the effect
            if ask.ordinal in running.job.open and running.job.history.end is None:
                self._go_on(running, ask)
        elif self._host.stopping:
            return
        elif ask.dropped and ask.kind == "call":
            ask.verdict = _UNAWAITED
            self._record(running, ask)
        elif 0 < running.due_s <= self._host.steady_s() and ask.kind in _ENDED_BY_TIME:
            # its timer, which lets the function end, comes behind what the function has asked for by then
            reason = f"job {running.job.job_id} ran longer than {running.limit}"
            ask.verdict = GuardVerdict(Decision.DENY, reason=reason, error="TimeoutError")
            self._record(running, ask)
        elif self._guard is not None and (kind := ask.guarded) is not None:
            self._decide(running, ask, kind, self._guard)
        else:
            self._record(running, ask)

    def _decide(self, running: RunningJob, ask: Ask, kind: CallKind, guard: EffectGuard) -> None:
        """Asks the guard whether an effect may be made. If the guard returns a verdict, handles it at once. If the
        guard returns an awaitable, the host continues with other events; when the verdict is there, it is put into
        the queue as the event EffectWaited. `kind`: the kind of call that the guard decides on.
        """
        job = running.job
        call = self._call(running, ask, kind)
        found = judge_call(guard, call)
        if isinstance(found, GuardVerdict):
            self._decided(running, ask, found, call)
            return
        ask.enter(AWAITS_GUARD)
        running.undecided[ask.ordinal] = ask
        what = f"what decides on {ask.name} of job {job.job_id}"
        self._host.put_when(found, lambda said: EffectWaited(running, ask, said, call), what)

    def _call(self, running: RunningJob, ask: Ask, kind: CallKind) -> GuardedCall:
        """Returns the call of an effect, for the guard."""
        job = running.job
        return GuardedCall(
            EffectId(job.job_id, ask.ordinal, ask.attempt),
            kind,
            ask.model or ask.name,
            agent=job.history.begin.agent,
            behalf=job.behalf,
            effect_class=ask.effect_class,
            tool=ask.tool,
            args=ask.args,
            kwargs=ask.kwargs,
            spec=ask.args[0] if kind == "model" else None,
            price=ask.price,
            labels=frozenset(job.labels),
            apart=ask.apart,
            standing=self._standing(job, ask)
            if job.history.standing or self._host.standing or ask.earlier
            else _NONE_STANDING,
        )

    def _standing(self, job: JobRun, ask: Ask) -> Mapping[str, str]:
        """Returns the approvals that hold for this call of a job too: by rule, who has approved it."""
        history, shared, tool, found = job.history, self._host.standing, ask.tool, dict[str, str]()
        scope, session = scope_of(history.begin), session_of(history.begin)
        part_of = None if tool is None else tool.part_of
        names = [ask.callee] if part_of is None else [f"{ask.guarded} {part_of.name}", ask.callee]
        for name in names if ask.title != UNNAMED else ():
            found |= shared.get((scope, "", name), {}) | shared.get((scope, session, name), {})
            found |= history.standing.get(("job", name), {})
        has_own_arguments = part_of is not None and tool is not None and not tool.waits
        for ordinal in ask.earlier:
            answer = history.approval(ordinal) if has_own_arguments else None
            if answer is None or edit_of(answer) is None:  # else it lacks what the person has changed
                rules = history.approved.get(ordinal, {})
                if not rules or part_of is not None or not ask.adds_to(history, ordinal):
                    found |= rules
        return found

    def note_standing(self, history: History) -> None:
        """Notes the approvals in the history of a job that hold for its whole scope or session, also beside the log."""
        for (word, name), rules in history.standing.items():
            if (place := standing_place(history.begin, word, name)) is not None:
                known = self._host.standing.setdefault(place, {})
                for rule, words in rules.items():
                    if known.get(rule) != words:
                        known[rule] = words
                        self._host.journal.note_approval((history.begin.job, *place, rule, words))

    def _decided_late(self, running: RunningJob, ask: Ask, verdict: GuardVerdict, call: GuardedCall) -> None:
        """Handles a verdict that has come from an awaitable of the guard. The effect is not made if the function no
        longer awaits it, if the job is no longer in memory, or if the host is stopping. The guard is then told to
        drop its decision.
        """
        running.undecided.pop(ask.ordinal, None)
        runs = running.in_memory and not self._host.stopping
        if ask.dropped or not runs:
            assert self._guard is not None
            self._guard.drop(EffectId(running.job.job_id, ask.ordinal, ask.attempt))
            verdict = _UNAWAITED
        if runs:
            self._decided(running, ask, verdict, call)
        else:
            running.job.open.pop(ask.ordinal, None)

    def _decided(self, running: RunningJob, ask: Ask, verdict: GuardVerdict, call: GuardedCall) -> None:
        if ask.model:
            verdict = msgspec.structs.replace(verdict, about=ask.model)
        if verdict.decision is Decision.ASK and (ask.title == UNNAMED or verdict.rule.startswith(UNNAMED)):
            verdict = msgspec.structs.replace(verdict, once=True)  # "always" would hold for each other lambda
        try:
            ask.change(verdict, call if call.was_seen or verdict.decision is Decision.ASK else None)
        except UserError as error:  # code of a value calls a tool while the value is recorded
            if self._guard is not None and verdict.decision is not Decision.DENY:
                self._guard.drop(EffectId(running.job.job_id, ask.ordinal, ask.attempt))
            ask.verdict = verdict = GuardVerdict(Decision.DENY, reason=error.message)
        if verdict.decision is Decision.ASK:
            verdict = self._refused_before(running, ask, verdict)
        if verdict.decision is Decision.ASK and ask.tool is not None and wraps_itself(ask.tool):
            assert self._guard is not None
            self._guard.drop(EffectId(running.job.job_id, ask.ordinal, 0))
            reason = (
                f"{verdict.reason}; a person would be asked in vain, since the function only wraps the tool, whose call in it asks "
                f"nobody: wrap the function of the tool, {ask.tool.name}.func, and make a tool of that"
            )
            ask.verdict = verdict = msgspec.structs.replace(verdict, decision=Decision.DENY, reason=reason, wait_s=0.0)
        if verdict.decision is Decision.WARN or verdict.notes:
            said = "; ".join(filter(None, (verdict.reason, *verdict.notes)))
            _log.warning("job %s: %s, effect %d: %s", running.job.job_id, ask.name, ask.ordinal, said)
        self._record(running, ask)

    def _refused_before(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> GuardVerdict:
        """Returns a verdict that denies the call if a person has refused the same call of this job before, so that nobody
        is asked again. Otherwise returns `verdict`, which asks a person.
        """
        refusal = running.job.history.repeat_refused(ask.callee, ask.body)
        if refusal is None:
            return verdict
        assert self._guard is not None
        job_id, reason = running.job.job_id, f"{refusal.why}; nobody is asked again about the same call"
        if refusal.repeated >= _MOST_REPEATED:
            reason += f", which was asked for {refusal.repeated} times since: ask for another one, or give up"
            _log.warning(
                "job %s: it has asked for %s %d times after a person has refused it, with the same arguments",
                job_id,
                ask.title,
                refusal.repeated,
            )
        self._guard.drop(EffectId(job_id, ask.ordinal, 0))
        ask.verdict = msgspec.structs.replace(verdict, decision=Decision.DENY, reason=reason, wait_s=0.0)
        return ask.verdict

    def _record(self, running: RunningJob, ask: Ask) -> None:
        """Writes the INTENT entry of an effect, and begins the effect if the function waits for its result. The
        function does not wait for the result of a patch (`ctx.patched`), for a signal that has arrived before, or for
        an effect that it has cancelled.
        """
        # by the time of the job's loop, which is ahead if the machine's clock was set back before this start
        if ask.due_ms:
            ask.due_ms -= max(0, round(running.job.loop.now * 1000) - self._host.now_ms())
        verdict = ask.verdict
        if ask.guarded == "tool" and (verdict is None or not (verdict.named or verdict.decision is Decision.DENY)):
            ask.record_defaults()
        self.asked_total += 1
        self.step(running, ask, "asked" if ask.ordinal in running.job.open else "unawaited")

    def _go_on(self, running: RunningJob, ask: Ask) -> None:
        """Continues with an effect whose INTENT entry was recorded before the job was loaded from the journal, and
        which has no result yet.
        """
        job, verdict, intent = running.job, ask.verdict, running.job.history.intents.get(ask.ordinal)
        if verdict is not None or ask.tool is not None:
            try:
                # the model is no part of the request if it is that of the engine
                others = verdict is not None and verdict.about not in ("", ask.model)
                changed = intent is not None and (others or intent.digest != ask.digest)
                if changed and verdict is not None and verdict.decision is Decision.ASK:
                    raise UserError("a person was asked about other arguments, before the program was changed")
                if intent is not None and (added := ask.restore(intent)):
                    if verdict is not None and verdict.decision is Decision.ASK:
                        raise UserError(f"a person has seen it without {added}, which the program has added since")
                    changed = True
                if verdict is None:
                    self.step(running, ask, "resumed")
                    return
                if verdict.decision is Decision.ASK and ask.attempt and self._edited_before(running, ask, verdict):
                    return
                ask.change(verdict)
            except UserError as error:  # the function asks for it with other arguments than before
                self.step(running, ask, self._forbidden(ask, GuardVerdict(Decision.DENY, reason=error.message)))
                return
            if self._guard is not None and verdict.decision is not Decision.DENY:
                effect = EffectId(job.job_id, ask.ordinal, ask.attempt)
                self._guard.reopen(effect, job.history.begin.agent, job.behalf, job.history.decided(effect, verdict))
                if changed and (kind := ask.guarded) is not None:
                    self._decide_changed(running, ask, kind, self._guard, verdict)
                    return
        self.step(running, ask, "resumed")

    def _forbidden(self, ask: Ask, verdict: GuardVerdict) -> EffectEvent:
        """Returns the event that an effect of an earlier start must not be made as today's program makes it. If it may have
        been made then, and may not be repeated, its outcome has to be found first: only another attempt is forbidden.
        """
        if ask.kind != "call" or not ask.attempt or ask.repeatable:
            return Judged(verdict)
        ask.refused = verdict
        return "resumed"

    def _decide_changed(
        self, running: RunningJob, ask: Ask, kind: CallKind, guard: EffectGuard, before: GuardVerdict
    ) -> None:
        """Asks the guard about a call that today's code makes with other arguments than the journal has, as a call of the
        classes "read" and "metered" may be. `before`: the verdict on the arguments that the journal has.
        """
        call = self._call(running, ask, kind)
        if kind == "model":  # so that a budget adds to what it has reserved for the request of before
            call = msgspec.structs.replace(call, after="degraded")

        def judged(said: GuardVerdict) -> EffectWaited:
            try:
                if said.decision not in (Decision.DENY, Decision.ASK):
                    ask.change(before.and_then(said))
                    return EffectWaited(running, ask, "resumed")
                why = f"its arguments are others than before the restart: {said.reason or 'a person would be asked'}"
            except UserError as error:
                why = error.message
            denied = msgspec.structs.replace(said, decision=Decision.DENY, reason=why)
            return EffectWaited(running, ask, self._forbidden(ask, denied))

        found = judge_call(guard, call)
        if isinstance(found, GuardVerdict):
            said = judged(found)
            self.waited(running, ask, said.event)
        else:
            self._host.put_when(found, judged, f"what decides on the changed call of {ask.name}")

    # -- events of one effect -----------------------------------------------------------------------------------------

    def step(self, running: RunningJob, ask: Ask, event: EffectEvent) -> None:
        """Handles an event of an effect: appends the entries that `core.step` returns, and runs the command that it
        returns. If the class of the effect requires it (`ClassRule.intent`), a call is not sent before the last of
        these entries is durable.
        """
        host, job_id, last = self._host, running.job.job_id, None
        if type(event) is Answer:
            fault = faulty(ask, event)
        else:  # the answer has come while the job was parked, or before a restart
            answer = None if ask.attempt or event != "resumed" else running.job.history.approval(ask.ordinal)
            fault = "" if answer is None else fault_of(answer, APPROVAL_WORDS)
        if fault:
            _log.warning("job %s: the answer to the question about %s %s", job_id, ask.title, fault)
        entries, command = step(running.job, ask, event, host.now_ms())
        if type(event) is Answer:
            self.note_standing(running.job.history)
        for entry in entries:
            if type(entry) is EffectResult:
                # before it is appended, because the entry has what the guard has counted
                if self._guard is not None and (kind := ask.guarded) is not None:
                    entry = self._guard.settle(entry, kind, ask.title)
                    if self._read and (read := self._read.pop((job_id, ask.ordinal), None)):
                        entry = msgspec.structs.replace(entry, labels=tuple(sorted(read)))
                if ask.model and entry.outcome == "ok" and not entry.usage and self._use_of is not None:
                    entry = self._with_use(running.job, ask, entry, self._use_of)
                host.told.append((self._log.append(entry, running), entry))
                continue
            last = self._log.append(entry, running)
            if ask.phase is DOUBT:  # the entry is the question
                self.doubts_total += 1
                _log.warning("job %s: nobody knows whether %s was done: a person is asked", job_id, ask.name)
        if command is MAKE:
            assert ask.tool is not None
            first = last if RULES[ask.effect_class].intent == "first" else None
            effect = SaltedEffectId.of(job_id, ask.ordinal, ask.attempt, running.job.salt)
            try:
                # copies, since the tool may change them, and be called again
                args, kwargs = ask.copied_arguments()
            except UserError as error:
                self.step(running, ask, Outcome(effect, Certainty.DONE, type_of(error), pack_error(error)))
                return
            self.runner.make(effect, ask.tool, args, kwargs, host.put, first)
        elif command.kind == "wait":
            if ask.due_ms:
                self._timers.add_rest(command.at_ms, ask.due_ms, job_id, ask.ordinal)
            if ask.phase is not OPEN:  # a person is asked, and the job may be parked for that
                host.put_front(running)
        elif command is BEGIN:
            self._begin_child(running, ask)
        elif command is AGAIN:
            self._ask_again(running, ask)
        elif command.kind == "edit":
            self._edit(running, ask, command.body)
        elif command is RESOLVE_DOUBT:
            self._resolve_doubt(running, ask, "unsure")
        elif command is LATER:
            assert ask.tool is not None
            host.put_later(ask.tool.retry.wait_s(ask.attempt - 1), EffectWaited(running, ask, "due"))
        elif command is RECONCILE:
            assert ask.tool is not None
            effect = SaltedEffectId.of(job_id, ask.ordinal, ask.attempt, running.job.salt)
            try:
                args, kwargs = ask.copied_arguments()
            except UserError as error:
                _log.warning("job %s: it cannot be looked up whether %s was done: %s", job_id, ask.name, error)
                self._resolve_doubt(running, ask, LookedUp(effect, Reconciled.UNKNOWN))
                return
            self.runner.reconcile(effect, ask.tool, args, kwargs, host.put)

    @staticmethod
    def _with_use(job: JobRun, ask: Ask, entry: EffectResult, use_of: UseOf) -> EffectResult:
        effect, agent, body = EffectId(job.job_id, ask.ordinal, ask.attempt), job.history.begin.agent, bytes(entry.body)  # type: ignore[arg-type]
        used = use_of(effect, agent, job.behalf, ask.title, body, entry.at_ms)
        return msgspec.structs.replace(entry, usage=used)

    def waited(
        self, running: RunningJob, ask: Ask, event: EffectEvent | GuardVerdict, call: GuardedCall | None = None
    ) -> None:
        """Handles an event of an effect that was delayed by a timer or by an awaitable of the guard. If the job is no
        longer in memory, the effect is not made; it remains open in the journal, and the next start of the app
        decides on it.
        """
        if isinstance(event, GuardVerdict):
            assert call is not None
            self._decided_late(running, ask, event, call)
        elif event == "unsure":
            self._resolve_doubt(running, ask, event)
        elif running.in_memory and not self._host.stopping and ask.ordinal in running.job.open:
            self.step(running, ask, event)

    def call_ended(self, ended: Outcome | LookedUp) -> None:
        """Handles the outcome of an attempt, or the answer of a tool's `reconcile=` function. Does nothing if the job
        no longer waits for the effect.
        """
        job_id, ordinal, _ = ended.effect
        running = self._host.running.get(job_id)
        ask = None if running is None else running.job.open.get(ordinal)
        if running is None:
            running, ask = self._outlived.pop((job_id, ordinal), (None, None))
        if running is None or ask is None:
            return
        if isinstance(ended, Outcome):
            self.step(running, ask, ended)
        else:
            self._resolve_doubt(running, ask, ended)

    def call_asked(self, event: CallAsked) -> None:
        """Handles a request that a running call has made (`CallRequests`): answers it, or cancels the call and asks a
        person. If the job no longer waits for the effect, the call gets an EffectError as the answer.
        """
        effect, answer = event.effect, event.answer
        if answer.done():
            return  # the call was cancelled
        running = self._host.running.get(effect.job)
        ask = None if running is None else running.job.open.get(effect.ordinal)
        if running is None:
            running, ask = self._outlived.get(effect[:2], (None, None))
        if running is None or ask is None:
            answer.set_exception(EffectError("EffectOver", f"nobody waits for effect {effect} any more"))
        elif (asks := self._requests.answer(event, running, ask)) is not None:
            self.runner.stop(effect)
            self.step(running, ask, asks)

    # -- what some commands need --------------------------------------------------------------------------------------

    def _ask_again(self, running: RunningJob, ask: Ask) -> None:
        """Asks the guard whether another attempt of an effect may be made, and handles the verdict as the event
        Judged. If the host is stopping, does nothing; the next start of the app then decides on the effect.
        """
        if self._host.stopping:
            return
        attempt = EffectId(running.job.job_id, ask.ordinal, ask.attempt + 1)
        denied = self._decide_again(running, ask)
        if denied is None or isinstance(denied, GuardVerdict):
            self.waited(running, ask, Judged(denied))
        else:
            what = f"what decides on effect {attempt}"
            self._host.put_when(denied, lambda said: EffectWaited(running, ask, Judged(said)), what)

    def _decide_again(self, running: RunningJob, ask: Ask) -> GuardVerdict | Awaitable[GuardVerdict | None] | None:
        """Asks the guard whether another attempt of an effect may be made. Returns None if it may, and the verdict if it
        is denied; if the decision takes time, an awaitable of either.
        """
        if ask.refused is not None:
            return ask.refused
        if self._guard is None or (kind := ask.guarded) is None:
            return None
        attempt = EffectId(running.job.job_id, ask.ordinal, ask.attempt + 1)
        asked_under = "" if ask.attempt or ask.verdict is None else ask.verdict.version
        call = msgspec.structs.replace(
            self._call(running, ask, kind), effect=attempt, after="again", asked_under=asked_under
        )
        return denial_of(judge_call(self._guard, call))

    def _edit(self, running: RunningJob, ask: Ask, answer: bytes) -> None:
        """Changes the arguments of a call as the person wants who has approved it, and asks the guard about the call
        again. A rule that would ask a person is satisfied, because a person has just answered. If the guard denies the
        call, or if the tool does not take the arguments, the call is not made.
        """
        if self._host.stopping:
            return
        guard, job_id = self._guard, running.job.job_id
        try:
            changes = msgspec.json.decode(answer)["arguments"]
            ask.check_edit(changes)
            ask.edit(changes)
        except UserError as error:
            why = f"it was approved with arguments that it does not take: {error.message}"
            self.waited(running, ask, Judged(GuardVerdict(Decision.DENY, reason=why)))
            return
        if guard is None:
            self._ask_again(running, ask)
            return

        def judged(verdict: GuardVerdict) -> GuardVerdict | Awaitable[GuardVerdict | None] | None:
            if verdict.decision is Decision.DENY:
                return msgspec.structs.replace(verdict, reason=f"as it was changed: {verdict.reason}")
            if not verdict.editable:  # since the question was asked
                return msgspec.structs.replace(verdict, decision=Decision.DENY, reason=NOT_EDITABLE)
            try:
                ask.hide(verdict.hide)
            except UserError as error:
                return msgspec.structs.replace(verdict, decision=Decision.DENY, reason=error.message)
            return self._decide_again(running, ask)

        async def later(found: Awaitable[GuardVerdict]) -> GuardVerdict | None:
            said = judged(await found)
            return said if said is None or isinstance(said, GuardVerdict) else await said

        found = judge_call(guard, self._call(running, ask, "tool"))
        if not isinstance(found, GuardVerdict):
            awaited: Awaitable[GuardVerdict | None] = later(found)
        elif (said := judged(found)) is None or isinstance(said, GuardVerdict):
            self.waited(running, ask, Judged(said))
            return
        else:
            awaited = said
        what = f"what decides on the changed call of {ask.name} of job {job_id}"
        self._host.put_when(awaited, lambda said: EffectWaited(running, ask, Judged(said)), what)

    def _edited_before(self, running: RunningJob, ask: Ask, verdict: GuardVerdict) -> bool:
        """Changes the arguments of a call that was made, or may have been made, with those of its approval. Returns True
        if the guard still has to say which texts are hidden in them; the effect then goes on as an event.
        """
        answer = running.job.history.approval(ask.ordinal)
        changes = None if answer is None else edit_of(answer)
        if changes is None:
            return False
        ask.edit(changes)
        ask.change(verdict)
        if self._guard is None:
            return False
        found = judge_call(self._guard, self._call(running, ask, "tool"))

        def hidden(said: GuardVerdict) -> EffectWaited:
            try:
                ask.hide(said.hide)
            except UserError as error:
                denied = GuardVerdict(Decision.DENY, reason=error.message)
                return EffectWaited(running, ask, self._forbidden(ask, denied))
            return EffectWaited(running, ask, "resumed")

        if isinstance(found, GuardVerdict):
            ask.hide(found.hide)
            return False
        self._host.put_when(found, hidden, f"what decides on the changed call of {ask.name}")
        return True

    def _resolve_doubt(self, running: RunningJob, ask: Ask, event: Literal["unsure"] | LookedUp) -> None:
        """Handles an effect of which nobody knows whether its call was made. Passes the event to `core.step`, which
        decides, but not while the call may still be running:

        - If this process is still making the call, drops the event. The outcome of the call then decides.
        - The previous owner of the journal may still be making the call. This matters if it would do harm to make the
          call twice, and if no person was asked about it. A timer then brings the event back when that owner has lost
          its claim on the journal and the time limit of the tool has passed (60 seconds if the tool has none).
        - If the host is stopping or the job has left memory, drops the event. The next start of the app then decides.

        `event`: "unsure", or the answer of the tool's `reconcile=` function.
        """
        host, job, tool = self._host, running.job, ask.tool
        if host.stopping or not running.in_memory:
            return  # the next start decides on it
        assert tool is not None
        # the job runs again in the process that still makes the call
        if self.runner.is_under_way(job.job_id, ask.ordinal):
            effect = SaltedEffectId.of(job.job_id, ask.ordinal, ask.attempt, job.salt)
            self.runner.make(effect, tool, ask.args, ask.kwargs, host.put)
            return
        asked, _ = job.history.question_about(ask.ordinal)
        if event == "unsure" and asked is None and ask.ordinal not in job.history.not_made and not ask.repeatable:
            # A worker that has lost the journal may still make the call, until its claim and the call's time-out are over.
            wait_s = host.journal.predecessor_left(job.job_id) + (tool.timeout_s or _UNTIMED_SECONDS)
            if wait_s > 0:
                host.put_later(wait_s, EffectWaited(running, ask, event))
                return
        self.step(running, ask, event)

    def _begin_child(self, running: RunningJob, ask: Ask) -> None:
        """Begins the child job that an effect requests, or lets it wait if the job has as many children as it may have.
        If the child must not begin, the error becomes the result of the effect. Does nothing if the child is already
        known to the host: when the child ends, the effect gets its result; or it begins again, if an earlier attempt of
        the job has given it up.
        """
        child = child_id(running.job.job_id, ask.ordinal)
        if child in self._host.jobs:
            if ask.ordinal in running.job.history.failed_children and self._host.jobs.wants(child):
                self._host.given_up.add(child)
            return
        waits = running.waiting_children or not self._has_place(running, ask)
        if waits and self._refusal(running, ask) is None:
            running.waiting_children.append(ask)
        else:
            self._let_child_begin(running, ask)

    def _refusal(self, running: RunningJob, ask: Ask) -> EffectError | None:
        job = running.job
        return self._host.jobs.refusal(job.job_id, ask.name, cancelled=bool(job.cancels))

    def _has_place(self, running: RunningJob, ask: Ask) -> bool:
        """Returns True if fewer children are open that the job has requested before `ask` than it may have."""
        limits = self._host.jobs.limits[running.job.history.begin.agent]
        before = takewhile(lambda each: each.ordinal < ask.ordinal, running.job.open.values())
        return sum(each.kind == "child" for each in before) < limits.max_child_jobs

    def begin_waiting_children(self, running: RunningJob, *, all_of_them: bool = False) -> None:
        """Begins children that wait until others of the job have ended, as many as there are places for. Called when a
        child has ended, or is no longer awaited. `all_of_them`: True to begin all, because the job ends before them.
        """
        waiting = running.waiting_children
        while waiting:
            if waiting[0].ordinal not in running.job.open:  # the function does not await it any more
                waiting.popleft()
            elif all_of_them or self._has_place(running, waiting[0]):
                self._let_child_begin(running, waiting.popleft())
            else:
                return

    def begin_again(self, running: RunningJob, ordinal: int) -> None:
        """Begins a child that has ended now once more, since an earlier attempt of the job had given it up."""
        self._begin_child(running, running.job.open[ordinal])

    def _let_child_begin(self, running: RunningJob, ask: Ask) -> None:
        job, jobs = running.job, self._host.jobs
        child, owner = child_id(job.job_id, ask.ordinal), self._host.owners.get(ask.name)
        error: EffectError | UserError | DataError | None = self._refusal(running, ask)
        if error is None and owner is None:
            error = UserError(f"ctx.child: there is no durable agent {ask.name}")
        elif error is None and owner is not None:
            jobs.ask(child)
            try:
                failed = ask.ordinal in job.history.failed_children
                owner.begin_child(child, ask.args[0], failed=failed, behalf=job.behalf)
            except (UserError, DataError) as refused:
                jobs.not_begun(child)
                error = refused
        if error is not None:
            effect = EffectId(job.job_id, ask.ordinal, ask.attempt)
            self.step(running, ask, Outcome(effect, Certainty.DONE, type_of(error), pack_error(error)))

    # -- time limits of attempts --------------------------------------------------------------------------------------

    def limit(self, running: RunningJob) -> None:
        """Starts the timer for the time limit of the job's attempt. Does nothing if the job's owner (its agent) sets
        no limit.

        The limit applies while the job is in memory. If the owner's `sleep_counts` is True, it also applies while the
        job is parked and waits only for timers.
        """
        left = running.owner.time_left(running.job)
        if left is not None:
            left_s, running.limit = left
            running.due_s = self._host.steady_s() + left_s
            self._timers.add(left_s, running.job.job_id, 0)

    def time_out(self, job_id: str) -> None:
        """Handles the timer of a job's time limit. If the limit has passed, ends the running calls of the job with a
        TimeoutError, and cancels the function of the job. This happens at most once in an attempt of the job. Does
        nothing if the limit has not passed or no longer applies.
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

    async def take(self, jobs: Sequence[OpenJob]) -> None:
        """Lets the guard take up these jobs, with its earlier decisions on their effects that have no result yet
        (`EffectGuard.take`). Called before the jobs go on.
        """
        if self._guard is not None:
            going_on = {job.job_id: job.body for job in jobs if job.ended is None}
            await self._guard.take(self._host.journal, going_on, [*self._open_calls(jobs)])

    def _open_calls(self, jobs: Iterable[OpenJob]) -> Iterator[OpenCall]:
        for job in jobs:
            for ordinal, each in job.decided.items() if job.ended is None else ():
                if each.verdict.decision is not Decision.DENY:
                    yield EffectId(job.job_id, ordinal, each.attempt), job.agent, job.behalf, each

    def leave(self, running: RunningJob) -> None:
        """Records the INTENT entry of each effect on which the guard is still deciding, with a denial as the
        decision. Such an effect is not made. Its entry is needed because the journal must have an INTENT for every
        ordinal. Called when the job is about to end, to begin another attempt, or to begin a new history.
        """
        for ask in running.undecided.values():
            ask.verdict = _UNAWAITED
            self.step(running, ask, "unawaited")

    def forget(self, running: RunningJob, stays_open: bool) -> None:
        """Handles the running calls of a job that is removed from memory. If `stays_open` is True, the job continues
        at the next start of the app, so the outcomes of its calls are still recorded. Otherwise the outcomes are
        dropped, unless the job begins again while a call still runs (`EffectRunner.drop`).
        """
        job = running.job
        if not stays_open:
            self.runner.drop(job.job_id)
            for place in [each for each in self._read if each[0] == job.job_id]:
                del self._read[place]
            return
        for ask in job.open.values():
            if ask.kind == "call":
                self._outlived[job.job_id, ask.ordinal] = running, ask
