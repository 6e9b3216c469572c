"""Asks the guards of an app before calls of models that are not effects of a job. Such calls are made by agents that
are not durable, by streams (`map_llm`), and by tools that ask models themselves.

No journal records these calls. So a decision holds for one call only, and no person can be asked. A call during which
the process crashes has no row in the ledger.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from secrets import randbits

import msgspec

from sabot.clock import Clock
from sabot.errors import PolicyDenied, UserError
from sabot.jobs.guard import (
    NOBODY,
    Behalf,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    Price,
    guard_of,
    judge_call,
)
from sabot.jobs.masking import mask
from sabot.jobs.owner import RunningJob
from sabot.jobs.values import pack, pack_error, type_of
from sabot.journal.effects import EffectClass, EffectId
from sabot.llm.errors import model_error
from sabot.llm.messages import assistant, user
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Completion
from sabot.llm.spec import RequestSpec

_log = logging.getLogger(__name__)

NoteInstead = Callable[[EffectId, GuardVerdict], Awaitable[None]]


class GuardJudge:
    """A judge that asks a guard (`EffectGuard`) before each call of a model that is not an effect of a job. It has
    the interface `CallJudge`, and belongs to one event loop.
    """

    _only_asks = "only durable agents ask"

    def __init__(self, calls: str, agent: str, guard: EffectGuard, clock: Clock) -> None:
        """Makes a judge. `calls`: a name that replaces the job's id in the ledger (the table with the costs of
        calls), because these calls belong to no job. `agent`: the id of the agent or stream that makes the calls; its
        app is the tenant. `guard`: decides on each call.
        """
        self._calls, self._agent, self._guard, self._clock = calls, agent, guard, clock
        # A request id may come again: after a restart, or in another attempt of a tool. Rows of the ledger with one id
        # count once, so the numbers begin where those of no other judge do.
        self._numbers = count(randbits(48))
        self._behalf = NOBODY

    async def __call__(
        self, call: ModelCall, model: str, price: Price, ask: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        guard, effect = self._guard, EffectId(f"{self._calls}/{call.context.request_id}", next(self._numbers))
        found = judge_call(guard, self._asked(effect, model, call, price))
        try:
            verdict = found if isinstance(found, GuardVerdict) else await found
        except BaseException:  # cancelled, when some of several guards may have reserved its cost
            guard.drop(effect)
            raise
        if verdict.decision in (Decision.DENY, Decision.ASK):
            guard.drop(effect)
            raise self._denied(model, verdict)
        call.spec = mask(verdict.spec(call.spec), verdict.hide)
        call.texts = mask(call.texts, verdict.hide)

        async def instead(call: ModelCall, price: Price) -> None:
            await self.instead(effect, call, price)

        async def again() -> None:
            nonlocal effect
            following = EffectId(effect.job, effect.ordinal, effect.attempt + 1)
            said = guard.decide_again(following)
            refused = said if said is None or isinstance(said, GuardVerdict) else await said
            if refused is not None:
                raise self._denied(model, refused)
            effect = following

        call.before_repeat, call.before_fallback = again, instead
        try:
            outcome = await ask()
        except BaseException as error:
            self._settle(effect, model, type_of(error), pack_error(error))
            raise
        said = outcome
        if not isinstance(outcome, Completion):  # vectors
            said = Completion(message=assistant(""), usage=outcome.usage, cost=outcome.cost, model=model)
        self._settle(effect, model, "ok", pack(said, "an answer"))
        return outcome

    async def instead(self, effect: EffectId, call: ModelCall, price: Price) -> None:
        """Asks the guard whether a call may ask another provider, because its first provider has failed. The guard
        decides on the model of the other provider. If this model may cost more, the guard reserves the difference. If
        the verdict allows the model, makes the changes of the verdict to `call`.

        Otherwise logs the reason, and raises the error that the guard has chosen, such as PolicyDenied or
        BudgetExceeded.
        """
        effect = EffectId(effect.job, effect.ordinal, effect.attempt + call.unread)  # the attempt that asks it
        found = judge_call(self._guard, self._asked(effect, call.model, call, price), degraded=True)
        verdict = found if isinstance(found, GuardVerdict) else await found
        await self._noted(effect, msgspec.structs.replace(verdict, about=call.model))
        if verdict.decision in (Decision.DENY, Decision.ASK):
            refusal = self._denied(call.model, verdict, "nobody is asked for a model that stands in for another one")
            _log.warning("%s: %s", self._calls, refusal)
            raise refusal
        call.spec = mask(verdict.spec(call.spec), verdict.hide)
        call.model = call.spec.model or call.model

    async def _noted(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records the verdict on another provider (see `instead`). Does nothing in this class, because the calls that
        it judges are in no journal.
        """

    def _asked(self, effect: EffectId, model: str, call: ModelCall, price: Price) -> GuardedCall:
        behalf, kind, spec = self._behalf, EffectClass.METERED, _told(call)
        labels = frozenset(behalf.labels)
        return GuardedCall(effect, "model", model, self._agent, behalf, kind, spec=spec, price=price, labels=labels)

    def _denied(self, model: str, verdict: GuardVerdict, only_asks: str = "") -> Exception:
        why = verdict.reason or "a rule denies it"
        if verdict.decision is Decision.ASK:
            why = f"{why}: a person would have to allow it, and {only_asks or self._only_asks}"
        said = f"{model} was not asked: {why}" + (f" (rule {verdict.rule})" if verdict.rule else "")
        return model_error(verdict.error, said) or PolicyDenied(said)

    def _settle(self, effect: EffectId, model: str, outcome: str, body: bytes) -> None:
        self._guard.settle(effect, "model", model, outcome, body, round(self._clock.time() * 1000))


class _ToolJudge(GuardJudge):
    """A judge for calls of models that a tool makes itself while it runs as an effect of a job. It asks the guard for
    the tenant and the actor of that job.
    """

    _only_asks = "a tool asks nobody: let the agent ask the model, by ctx.llm(engine)"

    def __init__(
        self, effect: EffectId, agent: str, behalf: Behalf, guard: EffectGuard, clock: Clock, note: NoteInstead
    ) -> None:
        super().__init__(f"{effect.job}/{effect.ordinal}", agent, guard, clock)
        self._effect, self._behalf, self._note = effect, behalf, note
        self._loop = asyncio.get_running_loop()

    async def _noted(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records the verdict in the journal if `effect` is the model call of the job itself. A call of a model that a
        tool makes has no entries in the journal, so its verdict is not recorded.
        """
        if effect[:2] == self._effect[:2]:
            await self._note(effect, verdict)

    def _asked(self, effect: EffectId, model: str, call: ModelCall, price: Price) -> GuardedCall:
        asked = super()._asked(effect, model, call, price)
        return asked if effect.job == self._effect.job else replace(asked, within=self._effect)

    async def __call__(
        self, call: ModelCall, model: str, price: Price, ask: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        if asyncio.get_running_loop() is not self._loop:
            raise UserError(
                f"{model} was not asked: policy and budgets judge nothing in the event loop of a thread, in which a sync tool asks it",
                hint="make the tool `async def`, and await the engine in it",
            )
        return await super().__call__(call, model, price, ask)


def _told(call: ModelCall) -> RequestSpec:
    """Returns the request of a call of a model, as a RequestSpec for the guards. If the call computes embeddings of
    texts, the texts become the messages of the request, and its limit on tokens to write is 0.
    """
    if call.kind != "embed":
        return call.spec
    return msgspec.structs.replace(call.spec, messages=tuple(map(user, call.texts)), max_tokens=0)


def judge_of(app: str, guards: Sequence[EffectGuard], clock: Clock) -> GuardJudge | None:
    """Returns a judge that asks the guards of an app before each call of a model that is not an effect of a job.
    Returns None if there are no guards. `app`: the id of the app.
    """
    guard = guard_of(guards)
    return None if guard is None else GuardJudge(f"{app}.calls", f"{app}.calls", guard, clock)


def judge_within(
    running: Mapping[str, RunningJob], guard: EffectGuard, clock: Clock, note: NoteInstead, effect: EffectId
) -> GuardJudge:
    """Returns the judge for the calls of models that the tool of this effect makes itself.

    - `running`: the jobs in memory, by id.
    - `note`: a function that records the guard's verdict on another model in the journal (`CallRequests.instead`). It
      is only used if the effect itself is a call of a model.
    """
    job = running[effect.job].job  # no effect is made for a job that is not in memory
    return _ToolJudge(effect, job.history.begin.agent, job.behalf, guard, clock, note)
