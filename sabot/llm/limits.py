"""How much is asked of a provider: requests in flight, requests and tokens a minute, and nothing for a while when it fails again and again.

`Admission` lets requests begin, first come, first served. The number in flight follows what the provider takes (`calls/limits`): fewer
after a 429, more again afterwards. `CircuitBreaker` says when a provider is no longer asked.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sabot.calls.limits import AdaptiveLimit, TokenBucket
from sabot.checks import Whole, check
from sabot.clock import Clock
from sabot.config import Duration, parse_seconds
from sabot.errors import UserError, short_repr
from sabot.llm.errors import CircuitOpen, ModelTimeout, ModelUnavailable, RateLimited

_MOST_AT_ONCE = 100_000
_BURST_SECONDS = 10.0  # of the tokens of a minute may be used at once
_LONGEST_PAUSE_SECONDS = 60.0
_NEARLY = 1e-3  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one provider is asked at most. concurrency: requests in flight, fewer while the provider answers 429. requests_per_minute: begin
    evenly. tokens_per_minute: read and written; they are estimated when a request begins and counted when it ends. None: as many as come.
    """

    concurrency: int = 64
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        check("Limits: concurrency", self.concurrency, Whole(1, _MOST_AT_ONCE))
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
            ):
                raise UserError(f"Limits: {name} is {short_repr(value)}", hint="a number above 0, or None for no limit")


class TokenBalance:
    """Tokens of a model that may be used: they come at an even rate, up to those of ten seconds. A request that used more than was thought
    leaves the balance below 0, and the next one waits. Times are seconds of a steady clock.
    """

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60.0
        self._most = self._balance = self._rate * _BURST_SECONDS
        self._seen = math.inf

    def wait_s(self, now: float, tokens: int) -> float:
        """Seconds until a request may begin that is thought to use so many."""
        self._balance = min(self._most, self._balance + max(0.0, now - self._seen) * self._rate)
        self._seen = now
        missing = min(tokens, self._most) - self._balance
        return missing / self._rate if missing > _NEARLY else 0.0

    def use(self, tokens: int) -> None:
        """So many are used, or less than nothing: were not used after all."""
        self._balance -= tokens


class Admission:
    """The gate before one provider. needs_tokens: `enter` wants an estimate."""

    def __init__(self, limits: Limits, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.waiting = 0
        self._clock, self._sleep = clock, sleep
        self._in_flight = AdaptiveLimit(limits.concurrency)
        per_minute = limits.requests_per_minute
        self._rate = None if per_minute is None else TokenBucket(per_minute / 60.0)
        self._tokens = None if limits.tokens_per_minute is None else TokenBalance(limits.tokens_per_minute)
        self._turn = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None

    def begin_anew(self) -> None:
        """In another event loop, the one before being closed: nothing is in flight. What was learnt of the provider stays."""
        self._turn, self._room = asyncio.Lock(), None
        self._in_flight.in_flight = self.waiting = 0

    @property
    def needs_tokens(self) -> bool:
        return self._tokens is not None

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return self._in_flight.limit

    async def enter(self, tokens: int) -> float:
        """Waits until a request may begin. -> when it began, for `leave`."""
        self.waiting += 1
        try:
            async with self._turn:
                while wait_s := self._wait_s(tokens):
                    if math.isinf(wait_s):
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
                    else:
                        await self._sleep(wait_s)
                now = self._clock.monotonic()
                self._in_flight.begun(now)
                if self._rate is not None:
                    self._rate.begun(now)
                if self._tokens is not None:
                    self._tokens.use(tokens)
                return now
        finally:
            self.waiting -= 1

    def leave(self, began: float, tokens: int, used: int | None, failure: BaseException | None) -> None:
        """The request has ended. tokens: as for `enter`. used: what was counted; None: nobody knows."""
        now = self._clock.monotonic()
        if isinstance(failure, RateLimited):
            self._in_flight.overloaded(now, began, min(failure.retry_after_s, _LONGEST_PAUSE_SECONDS))
        else:
            self._in_flight.ended(now, began, well=failure is None)
        if self._tokens is not None and used is not None:
            self._tokens.use(used - tokens)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _wait_s(self, tokens: int) -> float:
        now = self._clock.monotonic()
        wait_s = self._in_flight.wait_s(now)
        if self._rate is not None:
            wait_s = max(wait_s, self._rate.wait_s(now))
        if self._tokens is not None:
            wait_s = max(wait_s, self._tokens.wait_s(now, tokens))
        return wait_s


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """After so many failures of a provider, one after the other, it is not asked for the time `pause`; then one request tries whether it is
    well again. Failures are those of the provider: no connection, a 5xx, no answer in time.
    """

    failures: int = 5
    pause: Duration = "30s"

    def __post_init__(self) -> None:
        check("CircuitBreaker: failures", self.failures, Whole(1))
        if not parse_seconds(self.pause, name="pause"):
            raise UserError("CircuitBreaker: pause=0", hint='more than nothing ("30s")')


class Circuit:
    """The state of a CircuitBreaker for one provider."""

    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self._failures = breaker.failures
        self._pause_s = parse_seconds(breaker.pause)
        self._clock = clock
        self._failed = 0  # one after the other
        self._open_until: float | None = None
        self._probing = False

    def enter(self, provider: str, model: str) -> bool:
        """A request is about to be made. -> whether it is the one that tries, for `leave`. Raises CircuitOpen."""
        if self._open_until is None:
            return False
        left_s = self._open_until - self._clock.monotonic()
        if left_s > 0 or self._probing:
            raise CircuitOpen(
                f"it has failed {self._failed} times, one after the other, and is not asked",
                provider=provider,
                model=model,
                sent=False,
                retry_after_s=max(0.0, left_s),
            )
        self._probing = True
        return True

    def leave(self, probing: bool, failure: BaseException | None) -> None:
        """The request has ended."""
        if probing:
            self._probing = False
        if isinstance(failure, ModelUnavailable | ModelTimeout):
            self._failed += 1
            if probing or self._failed >= self._failures:
                self._open_until = self._clock.monotonic() + self._pause_s
        elif failure is None or isinstance(failure, Exception):  # a refusal is an answer; a cancellation says nothing
            self._failed = 0
            self._open_until = None
