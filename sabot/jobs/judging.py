"""The gates of an app before calls of models that no job makes: in agents that are not durable, and in streams (`map_llm`).

There is no journal, so nothing is decided but for this one call, nobody can be asked, and what a crash cuts off has no row.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from decimal import Decimal
from itertools import count
from typing import ParamSpec, TypeVar

import msgspec

from sabot.clock import Clock
from sabot.errors import PolicyDenied
from sabot.jobs.gate import Decision, EffectGate, GatedCall, GateVerdict, gate_of, hidden, judged
from sabot.jobs.values import pack, pack_error, type_of
from sabot.journal.effects import EffectClass, EffectId
from sabot.llm.errors import model_error
from sabot.llm.judging import JUDGE
from sabot.llm.messages import assistant, user
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.results import Completion, Usage
from sabot.llm.spec import RequestSpec

__all__ = ["GateJudge", "judge_of", "judged_within"]

P = ParamSpec("P")
T = TypeVar("T")


class GateJudge:
    """A `CallJudge`, for one event loop."""

    def __init__(self, app: str, gate: EffectGate, clock: Clock) -> None:
        """app: its id, which is the scope of these calls."""
        self._agent, self._gate, self._clock = f"{app}.calls", gate, clock
        self._numbers = count(1)

    async def __call__(
        self,
        call: ModelCall,
        model: str,
        price: Callable[[str, Usage], Decimal | None],
        ask: Callable[[], Awaitable[Outcome]],
    ) -> Outcome:
        gate, effect = self._gate, EffectId(f"{self._agent}/{call.context.request_id}", next(self._numbers))
        kind = EffectClass.METERED
        asked = GatedCall(effect, "model", model, self._agent, effect_class=kind, spec=_told(call), price=price)
        found = judged(gate, asked)
        verdict = found if isinstance(found, GateVerdict) else await found
        if verdict.decision in (Decision.DENY, Decision.ASK):
            gate.drop(effect)
            raise _denied(model, verdict)
        call.spec = hidden(verdict.spec(call.spec), verdict.hide)
        call.texts = hidden(call.texts, verdict.hide)

        async def again() -> None:
            nonlocal effect
            following = EffectId(effect.job, effect.ordinal, effect.attempt + 1)
            refused = gate.again(following)
            if refused is not None:
                raise _denied(model, refused)
            effect = following

        call.again = again
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

    def _settle(self, effect: EffectId, model: str, outcome: str, body: bytes) -> None:
        self._gate.settle(effect, "model", model, outcome, body, round(self._clock.time() * 1000))
        self._gate.over(effect.job)


def _told(call: ModelCall) -> RequestSpec:
    """What the model is told: texts of which vectors are made are messages to it, and nothing is written."""
    if call.kind != "embed":
        return call.spec
    return msgspec.structs.replace(call.spec, messages=tuple(map(user, call.texts)), max_tokens=0)


def _denied(model: str, verdict: GateVerdict) -> Exception:
    why = verdict.reason or "a rule denies it"
    if verdict.decision is Decision.ASK:
        why = f"{why}: a person would have to allow it, and only durable agents ask"
    said = f"{model} was not asked: {why}" + (f" (rule {verdict.rule})" if verdict.rule else "")
    return model_error(verdict.error, said) or PolicyDenied(said)


def judge_of(app: str, gates: Sequence[EffectGate], clock: Clock) -> GateJudge | None:
    """Of an app with these gates; None: it has none."""
    gate = gate_of(gates)
    return None if gate is None else GateJudge(app, gate, clock)


def judged_within(function: Callable[P, T], app: str, gates: Sequence[EffectGate], clock: Clock) -> Callable[P, T]:
    """The function, as it runs in this app: calls of models of what it makes are judged."""
    context = copy_context()
    context.run(JUDGE.set, judge_of(app, gates, clock))

    def within(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(function, *args, **kwargs)

    return within
