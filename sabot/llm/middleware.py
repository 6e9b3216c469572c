"""The layers around each call of a model, from the outermost: logging, timeout, retry, budget, telemetry. The same
layers stand around the calls of an agent's tools (`ToolMiddleware`); your own layers stand around models only.

    async def my_middleware(call: ModelCall, forward: Forward) -> Outcome:
        …                                  before the call
        outcome = await forward(call)      the inner layers, and the request
        …                                  after the call
        return outcome

    ExecutionEngine(provider, middleware=(my_middleware, *MIDDLEWARE))

A layer may change the call before it forwards it, forward it again, return an outcome of its own, or raise. A layer
inside of "retry" sees each attempt; a layer outside of it sees the call once for each provider that is asked. For a
stream, `forward` returns when the stream has ended; the reader gets the pieces meanwhile (`call.pieces` is their
number), and the outcome has all of them.
"""

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

from sabot.base.accounts import Account, AmountLimit, Amounts, Measure
from sabot.base.checks import Of, Whole, check
from sabot.base.config import amount
from sabot.base.metrics import Durations
from sabot.calls.options import Retry
from sabot.clock import Clock
from sabot.errors import TransientError, UserError, short_repr
from sabot.llm.errors import BudgetExceeded, CircuitOpen, ModelError, ModelTimeout, RateLimited
from sabot.llm.prices import PRICES_HINT, Prices
from sabot.llm.results import Completion, Embeddings, Piece, Usage, is_cost
from sabot.llm.spec import RequestContext, RequestSpec
from sabot.llm.token_counts import count_tokens, input_tokens_of, tokens_of

_log = logging.getLogger("sabot.llm")

Outcome: TypeAlias = Completion | Embeddings
MIDDLEWARE = ("logging", "timeout", "retry", "budget", "telemetry")
"""The names of the default layers of an engine, the outermost first."""

_FIGURES = (
    *("calls", "failed", "unasked"),
    *("attempts", "failed_attempts", "retries", "overloads", "fallbacks"),
    *("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost"),
    *("tool_calls", "failed_tool_calls", "tool_seconds"),
)
_MIDDLEWARE_HINT = f"a list of these and of functions: {', '.join(MIDDLEWARE)}"


@dataclass(slots=True, kw_only=True)
class ModelCall:
    """A call of a model on its way to a provider.

    `kind`: "complete", "stream", or "embed", which has `texts` in place of messages. `provider` and `model`: those
    that are asked now. `timeout_s`: the time limit in seconds of an attempt, or of a stream between two pieces.
    `began` and `until`: the times when the call began and when it must have ended, in seconds of the engine's
    monotonic clock. `attempts`: the number of attempts that have begun. `budget`: the budget of this call, in
    addition to the engine's. `pieces`: the number of pieces that the reader has; a call with any is not repeated.
    `listener`: the function that gets the pieces.

    `unread`: True if the last request was sent and its answer was not read, so that it may have to be paid. `lost`
    and `lost_cost`: the number of such requests, and the sum of their greatest known costs.

    `before_repeat`: called before a request that follows an unread one; it raises if no further request is allowed.
    `before_fallback`: called before a fallback is asked, with the call, which names the fallback, and with the
    fallback's price function. It may change the request, and raises PolicyDenied or BudgetExceeded if the fallback
    may not be asked.
    """

    kind: Literal["complete", "stream", "embed"]
    spec: RequestSpec
    texts: tuple[str, ...] = ()
    context: RequestContext
    idempotency_key: str = ""
    timeout_s: float | None = None
    budget: "CallBudget | None" = None
    began: float = 0.0
    until: float = math.inf
    provider: str = ""
    model: str = ""
    attempts: int = 0
    pieces: int = 0
    listener: Callable[[Piece], None] | None = None
    unread: bool = False
    lost: int = 0
    lost_cost: Decimal = Decimal(0)
    before_repeat: Callable[[], Awaitable[object]] | None = None
    before_fallback: Callable[["ModelCall", Callable[[str, Usage], Decimal | None]], Awaitable[object]] | None = None

    def __post_init__(self) -> None:
        _check_budget(self.kind, self.budget)

    def emit(self, piece: Piece) -> None:
        """Passes a piece to the reader."""
        self.pieces += 1
        if self.listener is not None:
            self.listener(piece)

    @property
    def tokens(self) -> int:
        """The estimated number of tokens of the call: its input, and `max_tokens` for its output, or 0 without
        `max_tokens`.
        """
        return self.usage.total_tokens

    @property
    def usage(self) -> Usage:
        """The same estimate, as input and output tokens."""
        return Usage(input_tokens_of(self.spec) + sum(map(count_tokens, self.texts)), self.spec.max_tokens or 0)


Forward: TypeAlias = Callable[[ModelCall], Awaitable[Outcome]]
Middleware: TypeAlias = Callable[[ModelCall, Forward], Awaitable[Outcome]]


class CallBudget(Account):
    """A limit for the tokens and the US dollars of model calls together, and for the number of tool calls.

    `max_tokens`, `max_cost`, `max_tool_calls`: the limits, which may be reached exactly; None is no limit.

    A call in flight counts with an estimate: its input, and `max_tokens` of its request. A call whose estimate does
    not fit raises BudgetExceeded. Hence a request without `max_tokens` may exceed the limit by its output. Cost
    counts when a call has ended, so calls in flight may exceed `max_cost`. An answer without a token count counts
    with the estimate, and its output too if the request has no `max_tokens`. A request that was sent and whose answer
    was not read may have to be paid, so it counts with its estimate. With `max_cost`, calls of models without a known
    price are refused.
    """

    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        max_cost: Decimal | str | float | None = None,
        max_tool_calls: int | None = None,
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_tool_calls", max_tool_calls)):
            if value is not None:
                check(f"CallBudget: {name}", value, Whole())
        self.max_tokens = max_tokens
        self.max_tool_calls = max_tool_calls
        self.max_cost = amount("CallBudget: max_cost", max_cost)
        limits: dict[Measure, Decimal | int | None] = {"tokens": max_tokens, "cost": self.max_cost}
        super().__init__(AmountLimit(measure, most) for measure, most in limits.items() if most is not None)
        self._tools = Account([] if max_tool_calls is None else [AmountLimit("tool_calls", max_tool_calls)])

    def __repr__(self) -> str:
        return f"CallBudget(max_tokens={self.max_tokens}, max_cost={self.max_cost})"

    @property
    def tokens(self) -> int:
        """The tokens that were used."""
        return self.total.tokens

    @property
    def cost(self) -> Decimal:
        """The US dollars that were used."""
        return self.total.cost

    @property
    def tool_calls(self) -> int:
        """The calls of tools that were made."""
        return self._tools.total.tool_calls

    def allow(self, tokens: int, unpriced: str = "") -> Amounts:
        """Returns the amounts to reserve for a call of a model. `unpriced`: the model of the call if its price is unknown, or "". Raises
        BudgetExceeded.
        """
        if self.max_cost is not None and unpriced:
            raise BudgetExceeded(
                f"the budget has {self.max_cost} dollars, and the price of {unpriced} is not known", hint=PRICES_HINT
            )
        return _allowed(self, Amounts(tokens))

    def count_tool_call(self) -> None:
        """Counts a tool call that is about to be made. Raises BudgetExceeded if there are too many."""
        self._tools.add(_allowed(self._tools, Amounts(tool_calls=1)))


def _allowed(account: Account, wanted: Amounts) -> Amounts:
    """Returns `wanted`. Raises BudgetExceeded if the account has no room for it."""
    if (full := account.exceeded(wanted)) is not None:
        raise BudgetExceeded(f"the budget has {full.words}")
    return wanted


@dataclass(slots=True)
class CallFigures:
    """The counters of an engine. `calls`: calls that needed a provider. `unasked`: calls that did not. `tool_calls`:
    attempts of agents to call tools. The others are described at `ExecutionEngine.statistics`.
    """

    calls: int = 0
    failed: int = 0
    unasked: int = 0
    attempts: int = 0
    failed_attempts: int = 0
    retries: int = 0
    overloads: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: Decimal = Decimal(0)
    seconds: Durations = field(default_factory=Durations)
    tool_calls: int = 0
    failed_tool_calls: int = 0
    tool_seconds: float = 0.0

    def read(self) -> dict[str, Any]:
        """Returns the figures by their names in `ExecutionEngine.statistics`."""
        counted = {name: getattr(self, name) for name in _FIGURES}
        durations = self.seconds.read()
        return {**counted, "seconds_total": durations[-1], "durations": durations}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIn:
    """The layers that every engine has.

    `timeout_s`: the time limit of an attempt, in seconds. `total_s`: that of a call with all its attempts and waits.
    `retry`: the number of retries and their waits. `patience_s`: the seconds for which a call that is turned away
    (429) is repeated. `prices`: the prices of tokens, or None if unknown. `dice`: the random numbers of the waits.
    """

    timeout_s: float | None
    total_s: float | None
    retry: Retry
    patience_s: float
    budget: CallBudget | None
    prices: Prices | None
    figures: CallFigures
    clock: Clock
    sleep: Callable[[float], Awaitable[None]]
    dice: random.Random

    def __post_init__(self) -> None:
        _check_budget("ExecutionEngine", self.budget)

    def layer(self, name: str) -> Middleware:
        """Returns the layer with a name of MIDDLEWARE."""
        return {
            "logging": self.log,
            "timeout": self.limit_time,
            "retry": self.repeat,
            "budget": self.charge,
            "telemetry": self.count,
        }[name]

    def tool_middleware(self, middleware: "str | Sequence[str | Middleware]") -> "ToolMiddleware":
        """Returns the layers around tools: those of the engine's middleware that have names."""
        named = [middleware] if isinstance(middleware, str) else middleware
        return ToolMiddleware(frozenset(each for each in named if isinstance(each, str)), self)

    async def log(self, call: ModelCall, forward: Forward) -> Outcome:
        """Logs the provider and the outcome of a call to "sabot.llm" with level debug, without prompt and answer."""
        try:
            outcome = await forward(call)
        except BaseException as error:
            _log.debug("%s failed: %s", _shown(call), type(error).__name__)
            raise
        if _log.isEnabledFor(logging.DEBUG):
            took_ms = (self.clock.monotonic() - call.began) * 1000
            tokens = "?" if outcome.usage is None else outcome.usage.total_tokens
            _log.debug("%s: request %s, %s tokens, %.0f ms", _shown(call), outcome.request_id, tokens, took_ms)
        return outcome

    async def limit_time(self, call: ModelCall, forward: Forward) -> Outcome:
        """Sets the time limits of a call. Raises ModelTimeout after `total_s`."""
        if call.timeout_s is None:
            call.timeout_s = self.timeout_s
        if self.total_s is None:
            return await forward(call)
        call.until = call.began + self.total_s
        limit = asyncio.timeout(max(0.0, call.until - self.clock.monotonic()))
        try:
            async with limit:
                return await forward(call)
        except TimeoutError as error:
            if not limit.expired():
                raise
            where: dict[str, Any] = {"provider": call.provider, "model": call.model, "sent": call.attempts > 0}
            raise ModelTimeout(f"no answer in {self.total_s} s, {call.attempts} attempts", **where) from error

    async def repeat(self, call: ModelCall, forward: Forward) -> Outcome:
        """Repeats a call after errors that may pass. Each wait is the time that the provider asks for, plus a random
        part of the backoff. A call that has emitted a piece, or that would end after its time limit, is not repeated.
        """
        failures = overloads = 0
        first = self.clock.monotonic()
        while True:
            call.attempts += 1
            try:
                return await forward(call)
            except CircuitOpen:
                raise
            except TransientError as error:
                until = call.until
                if isinstance(error, RateLimited):
                    until = min(until, first + self.patience_s)
                    backoff_s, overloads = self.retry.wait_s(overloads), overloads + 1
                    self.figures.overloads += 1
                else:
                    backoff_s, failures = self.retry.wait_s(failures), failures + 1
                wait_s = getattr(error, "retry_after_s", 0.0) + backoff_s * self.dice.uniform(0.5, 1.0)
                if not self.retry.retries or failures > self.retry.retries or call.pieces:
                    raise
                if self.clock.monotonic() + wait_s > until:
                    raise
                self.figures.retries += 1
                what = type(error).__name__  # not the message: it may quote the vendor, who may quote the prompt
                _log.info("%s: attempt %d: %s; again in %.2f s", _shown(call), call.attempts, what, wait_s)
            await self.sleep(wait_s)

    async def charge(self, call: ModelCall, forward: Forward) -> Outcome:
        """Reserves the tokens of an attempt in the engine's budget and in the call's own, and settles them
        afterwards. Raises BudgetExceeded.
        """
        budgets = [each for each in (self.budget, call.budget) if each is not None]
        if not budgets:
            return await forward(call)
        attempt, tokens, used = object(), call.tokens, Amounts()
        lost, lost_cost = call.lost, call.lost_cost
        unpriced = self._unpriced(call) if any(each.max_cost is not None for each in budgets) else ""
        try:
            for each in budgets:
                each.reserve(attempt, each.allow(tokens, unpriced))
            outcome = await forward(call)
            counted = tokens if outcome.usage is None else outcome.usage.total_tokens
            if outcome.usage is None and isinstance(outcome, Completion) and call.spec.max_tokens is None:
                counted += tokens_of([outcome.message])
            used = Amounts(counted, outcome.cost or Decimal(0))
            return outcome
        finally:
            unread = Amounts((call.lost - lost) * tokens, call.lost_cost - lost_cost)
            for each in budgets:
                each.settle(attempt, used.plus(unread))

    def _unpriced(self, call: ModelCall) -> str:
        """Returns the model of the call if its price is unknown, else ""."""
        cost = None if self.prices is None else self.prices.cost(call.provider, call.model, call.usage)
        return "" if cost is not None and is_cost(cost) else call.model or f"the model of {call.provider}"

    async def count(self, call: ModelCall, forward: Forward) -> Outcome:
        """Counts an attempt for `ExecutionEngine.statistics`."""
        figures = self.figures
        figures.attempts += 1
        began = self.clock.monotonic()
        try:
            outcome = await forward(call)
        except ModelError:
            figures.failed_attempts += 1
            raise
        finally:
            figures.seconds.add(self.clock.monotonic() - began)
        usage = outcome.usage
        if usage is not None:
            figures.input_tokens += usage.input_tokens
            figures.output_tokens += usage.output_tokens
            figures.cached_tokens += usage.cached_tokens
            figures.reasoning_tokens += usage.reasoning_tokens
        if outcome.cost is not None:
            figures.cost += outcome.cost
        return outcome


@dataclass(frozen=True, slots=True)
class ToolMiddleware:
    """The layers around the calls of an agent's tools outside of jobs: logging around a call with all its attempts,
    budget and telemetry around each attempt. Time limits and retries are the tool's own. `names`: the names of the
    layers that are active.
    """

    names: frozenset[str]
    built_in: BuiltIn

    @contextmanager
    def call(self, tool: str, context: RequestContext) -> Iterator[None]:
        """A context manager around a call, which logs tool, request id, outcome and time to "sabot.llm" with level
        debug, and not the arguments.
        """
        began, how = self.built_in.clock.monotonic(), "ok"
        try:
            yield
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            if "logging" in self.names:
                took_ms = (self.built_in.clock.monotonic() - began) * 1000
                _log.debug("tool %s for %s: %s, %.0f ms", tool, context.request_id, how, took_ms)

    def charge(self) -> None:
        """Counts an attempt in the budget. Raises BudgetExceeded."""
        if "budget" in self.names and self.built_in.budget is not None:
            self.built_in.budget.count_tool_call()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """A context manager around an attempt, which counts it for `ExecutionEngine.statistics`."""
        if "telemetry" not in self.names:
            yield
            return
        figures, began = self.built_in.figures, self.built_in.clock.monotonic()
        figures.tool_calls += 1
        try:
            yield
        except Exception:
            figures.failed_tool_calls += 1
            raise
        finally:
            figures.tool_seconds += self.built_in.clock.monotonic() - began


def chained(middleware: Sequence[str | Middleware], built_in: BuiltIn, send: Forward) -> Forward:
    """Returns `send` with the layers around it, the first one outermost. Raises UserError for an unknown name or
    anything but a function.
    """
    check("middleware", middleware, Of(Sequence, _MIDDLEWARE_HINT))
    forward = send
    for each in reversed([middleware] if isinstance(middleware, str) else middleware):
        if isinstance(each, str):
            if each not in MIDDLEWARE:
                raise UserError(f"middleware {each!r} is not known", hint=_MIDDLEWARE_HINT)
            each = built_in.layer(each)
        elif isinstance(each, type) or not callable(each):
            raise UserError(f"middleware {short_repr(each)} is no function", hint=_MIDDLEWARE_HINT)
        forward = partial(_around, each, forward)
    return forward


def _around(middleware: Middleware, forward: Forward, call: ModelCall) -> Awaitable[Outcome]:
    return middleware(call, forward)


def _check_budget(where: str, given: object) -> None:
    """Raises UserError if the budget is not a CallBudget. A Budget of sabot.agents is another thing."""
    hint = (
        "CallBudget(max_tokens=…, max_cost=…) of sabot.llm; a Budget of sabot.agents is a scope's: App(…, budgets=[…])"
    )
    check(f"{where}: budget", given, Of(CallBudget | None, hint))


def _shown(call: ModelCall) -> str:
    return f"{call.kind} for {call.context.request_id}: {call.provider} {call.model}"
