"""The way of a request to one provider: its limits, its circuit breaker, the request itself, and the cost of the
answer.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec

from sabot.clock import Clock
from sabot.engine.calls.errors import CircuitOpen, ModelUnavailable, ModelUnreachable, may_cost
from sabot.engine.calls.judging import SENDABLE
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.names import MODELS
from sabot.engine.calls.usage import Usage, counted_usage, is_cost
from sabot.errors import UserError
from sabot.llm.judges import ASKING
from sabot.llm.limits import Admission, Circuit, CircuitBreaker, Limits
from sabot.llm.middleware import DecidedRequest, JudgesModel, ModelCall, Outcome
from sabot.llm.prices import Prices
from sabot.llm.provider import Provider
from sabot.llm.requests import check_request
from sabot.llm.results import FINISH_REASONS, Completion

_log = logging.getLogger("sabot.llm")

_EMPTY = RequestSpec(messages=())
_MOST_REASONS = 100  # unknown finish reasons that are logged


class Route:
    """The requests of an engine to one provider, with the limits, the circuit breaker and the prices of this provider.
    `send` makes a request, after all layers of the middleware.
    """

    def __init__(
        self,
        provider: Provider,
        limits: Limits,
        breaker: CircuitBreaker | None,
        prices: Prices | None,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]],
        max_answer_bytes: int | None = None,
    ) -> None:
        self.provider = provider
        MODELS.add(provider.model)
        self._max_answer_bytes = max_answer_bytes
        self._left_out: set[str] = set()
        self._without_usage: set[str] = set()  # models of which the log has said that their answers have no usage
        self._unknown_reasons: set[str] = set()  # those of which the log has said that they are unknown
        self.admission = Admission(limits, clock, sleep)
        self._circuit = None if breaker is None else Circuit(breaker, clock)
        self._prices, self._clock = prices, clock

    def fallback_request(self, first: Provider, spec: RequestSpec) -> RequestSpec:
        """Returns the request that this provider gets if the provider `first` has failed. The model is that of this
        provider. Fields that this provider does not have are removed. A warning is logged when a field is removed for
        the first time.
        """
        lacks = self.provider.lacks if self.provider.name == first.name else {*self.provider.lacks, "options"}
        left_out = {name for name in lacks if getattr(spec, name) != getattr(_EMPTY, name)}
        for name in sorted(left_out - self._left_out):
            self._left_out.add(name)
            _log.warning("%s has no %s= of %s, which is left out", self.provider.name, name, first.name)
        return msgspec.structs.replace(spec, model="", **{name: getattr(_EMPTY, name) for name in left_out})

    async def send(self, call: ModelCall) -> Outcome:
        """Waits until the limits allow a request, makes it, and returns the outcome with its cost. Raises ModelError. If
        the circuit breaker does not allow the request, raises CircuitOpen without waiting for the limits.
        """
        if (decided := call.decided) is None:
            raise UserError(
                "a middleware has passed on a call that it has made itself, on which nobody has decided",
                hint="change call.spec, or pass on dataclasses.replace(call, spec=…)",
            )
        if call.unread or decided.sent:
            if decided.sent:
                self._note_lost(call)  # a layer asks once more, and budgets count the answer that comes out
            if call.before_repeat is not None:
                await call.before_repeat()
            call.unread = False
        if call.before_fallback is not None and (call.spec != decided.spec or call.texts != decided.texts):
            await self._judge_changes(call, decided, call.before_fallback)
        decided.sent += 1  # before the wait: a layer may ask twice at a time
        try:
            return await self._admitted(call)
        except BaseException:
            decided.sent -= 1
            raise

    async def _admitted(self, call: ModelCall) -> Outcome:
        admission, circuit = self.admission, self._circuit
        tokens = call.tokens if admission.needs_tokens else 0
        if circuit is not None:
            circuit.check(call.provider, call.model)
        began = await admission.enter(tokens)
        failure: BaseException | None = None
        used: int | None = None
        probing: bool | None = None
        try:
            if circuit is not None:
                probing = circuit.enter(call.provider, call.model)
            if (sendable := SENDABLE.get()) is not None:
                await sendable()  # the wait for the limits may have lasted longer than the claim of the journal
            outcome = self._check_usage(await self._count_lost(call), call)
            used = None if outcome.usage is None else outcome.usage.total_tokens
        except BaseException as error:
            failure = error
            if isinstance(error, CircuitOpen | ModelUnreachable):  # nothing was sent
                used = 0
            raise
        finally:
            admission.leave(began, tokens, used, failure)
            if circuit is not None and probing is not None:
                circuit.leave(probing, failure)
        return self._priced(outcome, call)

    async def _judge_changes(self, call: ModelCall, decided: DecidedRequest, judge: JudgesModel) -> None:
        """Lets policy and budgets decide on a request that a layer of the program has changed since they have decided on
        the call, for example by another model or further messages. Raises PolicyDenied or BudgetExceeded if it may not be
        sent.
        """
        if call.spec.max_tokens is None and decided.spec.max_tokens is not None:
            call.spec = msgspec.structs.replace(call.spec, max_tokens=decided.spec.max_tokens)
        check_request(call.spec)
        call.model = call.spec.model or self.provider.model
        await judge(call, self.price)
        decided.spec, decided.texts = call.spec, call.texts

    def _note_lost(self, call: ModelCall) -> None:
        call.lost += 1
        call.lost_cost += self.price(call.model, call.usage) or 0

    def _check_usage(self, outcome: Outcome, call: ModelCall) -> Outcome:
        """Returns the outcome, or a copy without figures that cannot be true:

        - The usage is as `counted_usage` returns it. If that is None, the copy has no cost either.
        - If the cost is not valid, the copy has none.
        - If the usage has 0 tokens although the answer is not empty, the copy has no usage.

        For an outcome without usage a warning is logged, once for each model, and for an answer with an unknown finish
        reason once for each reason.
        """
        usage, model = outcome.usage, outcome.model or call.model
        counted = None if usage is None else counted_usage(usage)
        zeros = usage is not None and usage.total_tokens == 0
        strange = usage is not None and counted is None
        if strange or (outcome.cost is not None and not is_cost(outcome.cost)):
            strange, outcome = True, _with(outcome, cost=None)
        if zeros and (not isinstance(outcome, Completion) or outcome.content or outcome.tool_calls):
            counted = None
        if counted is not usage:
            outcome = _with(outcome, usage=counted)
        if outcome.usage is None and model not in self._without_usage:
            self._without_usage.add(model)
            said = "an impossible usage" if strange else "0 tokens" if usage is not None else "no usage"
            _log.warning(
                "%s reports %s for an answer of %s: budgets count what was reserved for it",
                self.provider.name,
                said,
                model or "its model",
            )
        if isinstance(outcome, Completion) and outcome.finish_reason not in FINISH_REASONS:
            self._note_reason(outcome.finish_reason)
        return outcome

    def _note_reason(self, reason: str) -> None:
        """Logs, once for each reason, that an answer has ended for a reason that is unknown."""
        if reason not in self._unknown_reasons and len(self._unknown_reasons) < _MOST_REASONS:
            self._unknown_reasons.add(reason)
            _log.warning(
                "%s has ended an answer with the finish reason %r, which is unknown: no unsafe tool is called for it",
                self.provider.name,
                reason,
            )

    async def _count_lost(self, call: ModelCall) -> Outcome:
        """Makes the request, and returns its outcome. If it fails after it was sent, sets `call.unread`, and adds the
        request to `call.lost` and `call.lost_cost`, because the vendor may charge for it.
        """
        before = ASKING.set(True)
        try:
            return await self._request(call)
        except BaseException as error:
            if may_cost(error):
                call.unread = True
                self._note_lost(call)
            raise
        finally:
            ASKING.reset(before)

    async def _request(self, call: ModelCall) -> Outcome:
        left_s = call.until - self._clock.monotonic()
        timeout_s = left_s if call.timeout_s is None else min(call.timeout_s, left_s)
        bound = None if timeout_s == math.inf else timeout_s
        provider = self.provider
        how: dict[str, Any] = {"idempotency_key": call.idempotency_key, "max_answer_bytes": self._max_answer_bytes}
        if call.kind == "complete":
            return await provider.complete(call.spec, timeout_s=bound, **how)
        if call.kind == "embed":
            return await provider.embed(call.texts, model=call.spec.model, timeout_s=bound)
        answer: Completion | None = None
        async with aclosing(provider.stream(call.spec, timeout_s=bound, **how)) as pieces:
            async for piece in pieces:
                if piece.completion is None:
                    call.emit(piece)
                else:
                    answer = piece.completion
        if answer is None:
            raise ModelUnavailable("the stream ended before the answer", provider=call.provider, model=call.model)
        return answer

    def price(self, model: str, usage: Usage) -> Decimal | None:
        """Returns the cost in US dollars of these tokens, or None if the price is unknown."""
        return self._cost(self.provider.name, model, usage)

    def _cost(self, provider: str, model: str, usage: Usage) -> Decimal | None:
        cost = None if self._prices is None else self._prices.cost(provider, model, usage)
        return cost if cost is not None and is_cost(cost) else None

    def _priced(self, outcome: Outcome, call: ModelCall) -> Outcome:
        """Returns the outcome with its cost, unless it has one: by the model that has answered, or if the price of that one is
        unknown, by the model that was asked. The cost is None if both are unknown.
        """
        prices, usage = self._prices, outcome.usage
        if prices is None or usage is None or outcome.cost is not None:
            return outcome
        cost = self._cost(outcome.provider or call.provider, outcome.model or call.model, usage)
        if cost is None:  # a proxy names the model as it likes: budgets of money count what they have reserved by
            cost = self.price(call.model, usage)
        return _with(outcome, cost=cost, prices_version=prices.version)


def _with(outcome: Outcome, **facts: Any) -> Outcome:
    if isinstance(outcome, Completion):
        return msgspec.structs.replace(outcome, **facts)
    return replace(outcome, **facts)
