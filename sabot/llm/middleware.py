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
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec

from sabot.base.accounts import Account, AmountLimit, Amounts, Measure
from sabot.base.checks import Of, Whole, check
from sabot.base.config import amount
from sabot.base.metrics import Durations
from sabot.base.options import answers_wrong_options
from sabot.base.quantities import money
from sabot.clock import Clock
from sabot.engine.calls.errors import BudgetExceeded, CircuitOpen, ModelError, ModelTimeout, RateLimited
from sabot.engine.calls.model_requests import RequestContext, RequestSpec
from sabot.engine.calls.options import Retry
from sabot.engine.calls.usage import Usage, is_cost
from sabot.errors import TransientError, UserError, short_repr
from sabot.llm.prices import PRICES_HINT, Prices
from sabot.llm.results import Completion, Embeddings, Piece
from sabot.llm.token_counts import ASSUMED_TOKENS, count_tokens, input_tokens_of, tokens_of

_log = logging.getLogger("sabot.llm")
_SMALLER = "a call in flight reserves its max_tokens: set max_tokens= to what an answer needs, or lower the concurrency"

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


@dataclass(slots=True)
class DecidedRequest:
    """The state of a call of a model behind the layers of the middleware.

    - `spec`, `texts`: the request and the texts on which policy and budgets have decided. A layer may change those of the
      call; then they decide again.
    - `sent`: the number of requests that are in flight or have got an answer. A layer that passes the call on once more
      sends another request.
    """

    spec: RequestSpec
    texts: tuple[str, ...]
    sent: int = 0


@dataclass(slots=True, kw_only=True)
class ModelCall:
    """A call of a model, as it is passed through the layers of an engine's middleware.

    - `kind`: "complete", "stream" or "embed". A call of the kind "embed" has `texts`; the others have messages in
      `spec`.
    - `provider`, `model`: the provider and the model that are asked now; a fallback changes them.
    - `timeout_s`: the time limit of one attempt in seconds; for a stream, of the wait for each piece.
    - `began`, `until`: when the call began, and when it has to end at the latest, in seconds of the engine's monotonic
      clock.
    - `attempts`: the number of attempts so far, with all providers. The layer "retry" counts them. In an engine without
      this layer the number is always 0.
    - `budget`: a budget for this call, in addition to that of the engine.
    - `listener`: the function that is called with each piece of a streamed answer.
    - `pieces`: how many pieces the answer has had so far. A call with at least one is not repeated after a failure.
    - `unread`: True if the last request was sent, but its answer was not read. The vendor may charge for such a
      request.
    - `lost`: how many such requests the call has made. `lost_cost`: the US dollars that they may cost, as far as known.
    - `before_repeat`: a function that is called before a new attempt if `unread` is True. It raises an error if no
      further request is allowed.
    - `before_fallback`: a function that is called before a fallback is asked. Its arguments are this call, with the
      fallback's provider and model, and a function that returns the fallback's cost of a Usage. It may change `spec`.
      It raises PolicyDenied or BudgetExceeded if the fallback may not be asked. It is also called before a request that
      a layer of the program has changed.
    - `decided`: the request on which policy and budgets have decided; None before the call is passed to the layers. Copies
      of the call share it.
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
    decided: "DecidedRequest | None" = None
    before_repeat: Callable[[], Awaitable[object]] | None = None
    before_fallback: "JudgesModel | None" = None

    def __post_init__(self) -> None:
        _check_budget(self.kind, self.budget)

    def emit(self, piece: Piece) -> None:
        """Passes a piece of the answer to the `listener`, and counts it in `pieces`."""
        self.pieces += 1
        if self.listener is not None:
            self.listener(piece)

    @property
    def tokens(self) -> int:
        """The estimated number of tokens of the call: those of its input, plus `max_tokens` of the request for its
        output. Without `max_tokens`, only those of its input.
        """
        return self.usage.total_tokens

    @property
    def usage(self) -> Usage:
        """The estimated tokens of the call: those of its input, and `max_tokens` of the request as its output (0
        without `max_tokens`).
        """
        return Usage(input_tokens_of(self.spec) + sum(map(count_tokens, self.texts)), self.spec.max_tokens or 0)


JudgesModel: TypeAlias = Callable[[ModelCall, Callable[[str, Usage], Decimal | None]], Awaitable[object]]
Forward: TypeAlias = Callable[[ModelCall], Awaitable[Outcome]]
Middleware: TypeAlias = Callable[[ModelCall, Forward], Awaitable[Outcome]]


@answers_wrong_options
class CallBudget(Account):
    """A budget: a limit for the tokens and the US dollars of model calls, and for the number of tool calls.

    `max_tokens`, `max_cost`, `max_tool_calls`: the highest sums that are allowed; None for no limit. A model call that
    would exceed one of them raises BudgetExceeded. A tool call that would exceed `max_tool_calls` is not made, and the
    model of the agent gets the BudgetExceeded as the result of its call.

    - While a call is in flight, an estimate is reserved for it: the tokens of its input and the `max_tokens` of its
      request, and what these cost. At its end the estimate is replaced by the actual tokens and cost. So calls in flight
      together cannot exceed a limit: a call waits until they leave room for it, and is refused if it does not fit without
      them.
    - A request without `max_tokens` is sent with one: 4096, or as many tokens as `max_tokens` of the budget has left.
    - If the price of a model is unknown, a budget with `max_cost` refuses the call.
    - If the provider reports no tokens for an answer, the estimate is kept.
    - If a request was sent, but its answer was not read, the vendor may charge for it. So its estimate is kept too.
    - Tool calls: the budget of an ExecutionEngine counts those of its agents that do not run in a job. A repetition
      after a failure counts as a further tool call. One that was not sent counts nothing.
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
        self._waiting: list[asyncio.Future[None]] = []
        self._tools = Account([] if max_tool_calls is None else [AmountLimit("tool_calls", max_tool_calls)])

    def __repr__(self) -> str:
        return f"CallBudget(max_tokens={self.max_tokens}, max_cost={self.max_cost})"

    @property
    def tokens(self) -> int:
        """The number of tokens that the calls of this budget have used."""
        return self.total.tokens

    @property
    def cost(self) -> Decimal:
        """The US dollars that the calls of this budget have cost."""
        return self.total.cost

    @property
    def tool_calls(self) -> int:
        """The number of tool calls that this budget has counted, including repetitions after a failure."""
        return self._tools.total.tool_calls

    @property
    def tokens_left(self) -> float:
        """The number of tokens that are not used; infinite without a limit. Calls in flight may have reserved them."""
        return math.inf if self.max_tokens is None else self.max_tokens - self.total.tokens

    async def admit(self, call: Hashable, most: "_Most", patience_s: float | None) -> None:
        """Reserves what `most` returns for a call. If it fits only without the calls in flight, waits until they end, and
        at most `patience_s` seconds for each: the caller may be in one of them, as the reader of a stream is. Raises
        BudgetExceeded as `allow` does.
        """
        loop = asyncio.get_running_loop()
        while (full := self.exceeded(most()[0])) is not None and 0 < full.reserved >= full.most - full.limit.most:
            self._waiting.append(settled := loop.create_future())
            try:
                await asyncio.wait_for(settled, patience_s)
            except TimeoutError:
                break
            finally:
                self._waiting.remove(settled)
        self.reserve(call, self.allow(*most()))

    def settle(self, call: Hashable, used: Amounts, now_s: float = 0.0, at_s: float | None = None) -> None:
        super().settle(call, used, now_s, at_s)
        for each in [*self._waiting]:  # of any event loop: agents of several apps may share an engine
            each.get_loop().call_soon_threadsafe(_wake, each)

    def allow(self, wanted: Amounts, unpriced: str = "") -> Amounts:
        """Checks that a model call that may use the amounts `wanted` fits into the budget. Returns the amounts that have
        to be reserved for it. `unpriced`: the name of the call's model if its price is unknown, else "". Raises
        BudgetExceeded if the call does not fit, or if the budget has a `max_cost` and the price is unknown.
        """
        if self.max_cost is not None and unpriced:
            raise BudgetExceeded(
                f"the budget has {money(self.max_cost)}, and the price of {unpriced} is not known", hint=PRICES_HINT
            )
        return _allowed(self, wanted)

    def count_tool_call(self) -> None:
        """Counts a tool call that is about to be made. Raises BudgetExceeded if the budget allows no further tool call."""
        self._tools.add(_allowed(self._tools, Amounts(tool_calls=1)))

    def forget_tool_call(self) -> None:
        """Takes back the count of a tool call that was certainly not made."""
        self._tools.add(Amounts(tool_calls=-1))


# the most that a call may use, and the name of its model if that has no price
_Most: TypeAlias = Callable[[], tuple[Amounts, str]]


def _wake(waiting: "asyncio.Future[None]") -> None:
    if not waiting.done():
        waiting.set_result(None)


def _allowed(account: Account, wanted: Amounts) -> Amounts:
    """Returns the amounts `wanted` if the limits of the account allow them in addition to what is used and reserved.
    Raises BudgetExceeded if not.
    """
    if (full := account.exceeded(wanted)) is not None:
        raise BudgetExceeded(f"the budget has {full.words}", hint=_SMALLER if wanted.tokens else "")
    return wanted


@dataclass(slots=True)
class CallFigures:
    """The counters of an engine.

    - `calls`: the calls for which a provider had to be asked. `unasked`: the calls that were answered without one.
    - `tool_calls`: attempts of agents to call tools.

    `ExecutionEngine.statistics` describes the others.
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
    """The built-in layers of an engine's middleware, and their settings.

    - `timeout_s`: the time limit of one attempt in seconds. `total_s`: the time limit in seconds of a call with all its
      attempts and waits. None for no limit.
    - `retry`: the number of further attempts, and the waits before them.
    - `patience_s`: how many seconds a call is repeated while the provider answers 429 (too many requests), from the
      first attempt with this provider.
    - `budget`: the budget of the engine, or None.
    - `prices`: the prices of tokens, or None if no prices are known.
    - `figures`: the counters of the engine.
    - `dice`: the generator of random numbers for the waits.
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
        """Returns the built-in layer `name`, which is one of the names in the list MIDDLEWARE."""
        return {
            "logging": self.log,
            "timeout": self.limit_time,
            "retry": self.repeat,
            "budget": self.charge,
            "telemetry": self.count,
        }[name]

    def tool_middleware(self, middleware: "str | Sequence[str | Middleware]") -> "ToolMiddleware":
        """Returns the middleware around tool calls for an engine with this `middleware`. It consists of the built-in
        layers whose names are in the list; functions in the list are not called for tools.
        """
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
        """Sets the time limits of a call. Raises ModelTimeout if the call with all its attempts takes more than
        `total_s` seconds.
        """
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
        """Makes a call to one provider, and repeats it after each TransientError except CircuitOpen. Before each
        further attempt, waits for the time for which the provider asks, plus the backoff. A random part of up to one
        half is subtracted from the backoff.

        Raises the error of the last attempt in these cases:

        - `retries` is 0, or the provider wants no repetition (`ModelError.may_repeat`).
        - `retries` further attempts have failed. Attempts that the provider refused with 429 (RateLimited) are not
          counted.
        - The reader has got a piece of the answer.
        - The next attempt would begin after the time limit of the call.
        - The error is RateLimited, and the next attempt would begin more than `patience_s` seconds after the first one.
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
                if not getattr(error, "may_repeat", True):
                    raise
                if self.clock.monotonic() + wait_s > until:
                    raise
                self.figures.retries += 1
                what = type(error).__name__  # not the message: it may quote the vendor, who may quote the prompt
                _log.info("%s: attempt %d: %s; again in %.2f s", _shown(call), call.attempts, what, wait_s)
            await self.sleep(wait_s)

    async def charge(self, call: ModelCall, forward: Forward) -> Outcome:
        """Reserves the most that an attempt may use, in tokens and money, in the budget of the engine and in that of the
        call. A request for a text without `max_tokens` gets one first, so that there is a most. After the attempt, replaces
        the reservation by the actual tokens and cost. Raises BudgetExceeded if a budget does not allow the attempt.
        """
        budgets = [each for each in (self.budget, call.budget) if each is not None]
        if not budgets:
            return await forward(call)
        attempt, used, asked = object(), Amounts(), call.spec
        lost, lost_cost = call.lost, call.lost_cost
        limited = call.kind != "embed" and asked.max_tokens is None and any(each.limits for each in budgets)
        priced = any(each.max_cost is not None for each in budgets)

        def most() -> tuple[Amounts, str]:
            if limited:
                call.spec = asked
                left = min(each.tokens_left - call.tokens for each in budgets)
                written = min(ASSUMED_TOKENS, left)
                call.spec = msgspec.structs.replace(asked, max_tokens=int(written)) if written > 0 else asked
            cost = self._most_cost(call) if priced else Decimal(0)
            unpriced = "" if cost is not None else call.model or f"the model of {call.provider}"
            return Amounts(call.tokens, cost or Decimal(0)), unpriced

        try:
            for each in budgets:
                await each.admit(attempt, most, call.timeout_s)
            wanted = most()[0]
            outcome = await forward(call)
            counted = wanted.tokens if outcome.usage is None else outcome.usage.total_tokens
            if outcome.usage is None and isinstance(outcome, Completion) and call.spec.max_tokens is None:
                counted += tokens_of([outcome.message])
            used = Amounts(counted, wanted.cost if outcome.cost is None else outcome.cost)
            return outcome
        finally:
            unread = Amounts((call.lost - lost) * call.tokens, call.lost_cost - lost_cost)
            if limited:
                call.spec = asked  # the next attempt may have fewer tokens left
            for each in budgets:
                each.settle(attempt, used.plus(unread))

    def _most_cost(self, call: ModelCall) -> Decimal | None:
        """Returns the most that an attempt of the call may cost, or None if the model's price is unknown."""
        cost = None if self.prices is None else self.prices.cost(call.provider, call.model, call.usage)
        return cost if cost is not None and is_cost(cost) else None

    async def count(self, call: ModelCall, forward: Forward) -> Outcome:
        """Makes an attempt, and adds it to the counters for `ExecutionEngine.statistics`."""
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
    """The engine's middleware around tool calls of agents outside of jobs. `call` logs a tool call with all its
    attempts; `charge` and `attempt` apply the budget and the counters to each attempt. Time limits and retries are
    settings of the tool.

    `names`: the names of the layers of the engine's middleware; a layer that is not in it has no effect.
    """

    names: frozenset[str]
    built_in: BuiltIn

    @contextmanager
    def call(self, tool: str, context: RequestContext) -> Iterator[None]:
        """Logs the tool call that is made in the `with` block: the tool, the request id, the outcome and the time, but
        not the arguments. The log is "sabot.llm", with level debug.
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
                _log.debug("tool %s for %s: %s, %.0f ms", tool, _whom(context), how, took_ms)

    def charge(self) -> None:
        """Counts an attempt of a tool call in the engine's budget. Raises BudgetExceeded if the budget allows no
        further tool call. Does nothing if the engine has no budget, or if its middleware does not have the layer
        "budget".
        """
        if "budget" in self.names and self.built_in.budget is not None:
            self.built_in.budget.count_tool_call()

    def take_back(self) -> None:
        """Undoes `charge` for an attempt that was not sent."""
        if "budget" in self.names and self.built_in.budget is not None:
            self.built_in.budget.forget_tool_call()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Adds the attempt of a tool call that is made in the `with` block to the counters for
        `ExecutionEngine.statistics`.
        """
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
    """Returns a function that passes a call through all layers of the middleware, the first one first, and then to
    `send`. `middleware`: names of the layers of `built_in`, and functions. Raises UserError for an unknown name, and
    for an object that is not a function.
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
    """Raises UserError if the budget is neither None nor a CallBudget. `where`: the text with which the message begins.
    `sabot.agents` has another class, Budget, which is not accepted.
    """
    hint = (
        "CallBudget(max_tokens=…, max_cost=…) of sabot.llm; a Budget of sabot.agents is a scope's: App(…, budgets=[…])"
    )
    check(f"{where}: budget", given, Of(CallBudget | None, hint))


def _shown(call: ModelCall) -> str:
    return f"{call.kind} for {_whom(call.context)}: {call.provider} {call.model}"


def _whom(context: RequestContext) -> str:
    """Returns the request id, and in parentheses what else is known of the caller."""
    known = {
        "tenant": context.tenant_id,
        "user": context.user_id,
        "session": context.session_id,
        "job": context.job_id,
        "trace": context.trace_id,
    }
    words = ", ".join(f"{name} {each}" for name, each in known.items() if each)
    return f"{context.request_id} ({words})" if words else context.request_id
