"""The guards of a fork: which calls it really makes, and which budgets pay for them."""

from collections.abc import Awaitable

import msgspec

from sabot.agents.accounts.guard import LedgerGuard
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.replay.answers import ForkAnswers
from sabot.clock import Clock
from sabot.engine.calls.effects import EffectClass, EffectId
from sabot.jobs.guard import (
    NO_OBJECTION,
    Behalf,
    CallKind,
    DecidedEffect,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
)
from sabot.journal.entries import EffectResult


class ForkGuard(EffectGuard):
    """The first of the guards that decide on the calls of a fork. It allows calls for which `answers` has a value, and
    calls whose declared effect class or name is in `allow`. It denies all other calls. If `model` is not "", allowed requests to
    models use this model.
    """

    declared: frozenset[str] = frozenset()

    def __init__(self, job_id: str, allow: frozenset[str], changes: ForkAnswers, model: str) -> None:
        self._job_id, self._allow, self._changes, self._model = job_id, allow, changes, model

    def decide(self, call: GuardedCall) -> GuardVerdict:
        if call.after:  # it was allowed before
            return NO_OBJECTION
        is_model = call.kind == "model"
        if (self._changes.of_model(call.name) if is_model else self._changes.of(call.name)) is not None:
            if call.within is None:  # a call that is asked for within a tool has no stand-in
                self._changes.stood_in.add((call.effect.job, call.effect.ordinal))
            return NO_OBJECTION
        by_hint = call.tool is not None and call.tool.by_hint
        declared = EffectClass.UNSAFE if by_hint else call.effect_class
        if call.kind != "child" and (declared in self._allow or call.name in self._allow):
            if is_model and self._model:
                return GuardVerdict(Decision.DEGRADE, rule="fork", reason="another model is asked", model=self._model)
            return NO_OBJECTION
        kind = "a child" if call.kind == "child" else f"an effect of class {call.effect_class}"
        ways = f"answers={{{call.name!r}: …}} stands in for it"
        if by_hint:
            kind += " by the hints of its MCP server only"
            ways += f"; pool.tools(…, effects=…) declares its class, and allow=[{call.name!r}] makes it"
        reason = f"this is a fork of job {self._job_id}, and it is {kind}; {ways}"
        return GuardVerdict(Decision.DENY, rule="fork", reason=reason)


class ForkLedger(LedgerGuard):
    """The last of the guards that decide on the calls of a fork. It checks the budgets of a ledger, and records the
    usage of the real calls there. The rows have the present time, and not the time of the fork's clock. They also have
    another job id, so that they do not collide with the rows of the original job.
    """

    def __init__(self, ledger: Ledger, job_id: str, booked_as: str, changes: ForkAnswers, clock: Clock) -> None:
        super().__init__(ledger, closes=False, counted=True)
        self._job_id, self._booked_as, self._changes, self._today = job_id, booked_as, changes, clock

    def _own(self, effect: EffectId) -> EffectId:
        return EffectId(self._own_job(effect.job), effect.ordinal, effect.attempt)

    def _own_job(self, job_id: str) -> str:
        return self._booked_as + job_id.removeprefix(self._job_id)

    def _now_ms(self) -> int:
        return round(self._today.time() * 1000)

    def decide(self, call: GuardedCall) -> GuardVerdict | Awaitable[GuardVerdict]:
        """Decides on a call by the budgets of the ledger. If a value of `answers` is used instead of the call, allows
        the call without a check, and records no usage for it.
        """
        if (call.effect.job, call.effect.ordinal) in self._changes.stood_in:
            return NO_OBJECTION
        return super().decide(msgspec.structs.replace(call, effect=self._own(call.effect)))

    def drop(self, effect: EffectId) -> None:
        super().drop(self._own(effect))

    def settle(self, entry: EffectResult, kind: CallKind, name: str) -> EffectResult:
        its_own = msgspec.structs.replace(entry, job=self._own_job(entry.job), at_ms=self._now_ms())
        return msgspec.structs.replace(entry, usage=super().settle(its_own, kind, name).usage or entry.usage)

    def reopen(self, effect: EffectId, agent: str, behalf: Behalf, decided: DecidedEffect) -> None:
        if (effect.job, effect.ordinal) not in self._changes.stood_in:
            super().reopen(self._own(effect), agent, behalf, decided)

    def end_job(self, job_id: str, at_ms: int) -> bytes:
        return super().end_job(self._own_job(job_id), self._now_ms())
