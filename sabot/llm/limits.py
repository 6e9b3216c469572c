"""Limits of the requests to a provider: requests in flight, requests and tokens per minute, and a pause after
repeated failures.

`Admission` lets requests begin in the order in which they came. The number in flight adapts to the provider
(`calls/limits`): it is lowered after a 429 and grows again with successful requests. `Circuit` stops asking a
provider that fails again and again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sabot.base.checks import Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.calls.limits import AdaptiveLimit, TokenBucket
from sabot.clock import Clock
from sabot.errors import UserError, short_repr
from sabot.llm.errors import CircuitOpen, ModelTimeout, ModelUnavailable, RateLimited

_MOST_AT_ONCE = 100_000
_BURST_SECONDS = 10.0  # the tokens of a model of this time may be used at once
_LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one provider.

    `concurrency`: the number of requests in flight, lowered while the provider answers 429. `requests_per_minute`:
    the number of requests that may begin, evenly spaced, or None for no limit. `tokens_per_minute`: the number of
    tokens read and written, or None for no limit; they are estimated when a request begins, and corrected when it
    ends.
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


class Admission:
    """The queue of requests before one provider."""

    def __init__(self, limits: Limits, clock: Clock, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.waiting = 0
        self._clock, self._sleep = clock, sleep
        self._in_flight = AdaptiveLimit(limits.concurrency)
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self._rate = None if requests is None else TokenBucket(requests / 60.0)
        self._tokens = None if tokens is None else TokenBucket(tokens / 60.0, _BURST_SECONDS)
        self._turn = asyncio.Lock()
        self._room: asyncio.Future[None] | None = None

    def reset(self) -> None:
        """Prepares for another event loop, after the first one was closed: no request is in flight. The adapted limit
        of requests in flight is kept.
        """
        self._turn, self._room = asyncio.Lock(), None
        self._in_flight.in_flight = self.waiting = 0

    @property
    def needs_tokens(self) -> bool:
        """True if `enter` needs an estimate of tokens."""
        return self._tokens is not None

    @property
    def limit(self) -> int:
        """The number of requests that may be in flight now."""
        return self._in_flight.limit

    async def enter(self, tokens: int) -> float:
        """Waits until a request may begin. Returns the time at which it began, for `leave`."""
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
                    self._tokens.begun(now, tokens)
                return now
        finally:
            self.waiting -= 1

    def leave(self, began: float, tokens: int, used: int | None, failure: BaseException | None) -> None:
        """Reports that the request has ended. `tokens`: the number given to `enter`. `used`: the tokens counted by
        the provider, or None if unknown.
        """
        now = self._clock.monotonic()
        if isinstance(failure, RateLimited):
            self._in_flight.overloaded(now, began, min(failure.retry_after_s, _LONGEST_PAUSE_SECONDS))
        else:
            self._in_flight.ended(now, began, well=failure is None)
        if self._tokens is not None and used is not None:
            self._tokens.take(used - tokens)
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
    """The rule for a provider that fails again and again: after `failures` failures in a row it is not asked for the
    time `pause`; then one request tries it. Only failures of the provider count: no connection, a 5xx, no answer in
    time. Raises UserError for `failures` below 1 and for a pause of 0.
    """

    failures: int = 5
    pause: Duration = "30s"

    def __post_init__(self) -> None:
        check("CircuitBreaker: failures", self.failures, Whole(1))
        if not parse_seconds(self.pause, name="pause"):
            raise UserError("CircuitBreaker: pause=0", hint='a time above 0 ("30s")')


class Circuit:
    """The state of a CircuitBreaker for one provider."""

    def __init__(self, breaker: CircuitBreaker, clock: Clock) -> None:
        self._failures = breaker.failures
        self._pause_s = parse_seconds(breaker.pause)
        self._clock = clock
        self._failed = 0  # failures in a row
        self._open_until: float | None = None
        self._probing = False

    def enter(self, provider: str, model: str) -> bool:
        """Checks that a request may be made. Returns True if it is the one that tries the provider after a pause;
        pass this to `leave`. Raises CircuitOpen.
        """
        if self._open_until is None:
            return False
        left_s = self._open_until - self._clock.monotonic()
        if left_s > 0 or self._probing:
            raise CircuitOpen(
                f"the provider failed {self._failed} times in a row, and is not asked for now",
                provider=provider,
                model=model,
                sent=False,
                retry_after_s=max(0.0, left_s),
            )
        self._probing = True
        return True

    def leave(self, probing: bool, failure: BaseException | None) -> None:
        """Reports that the request has ended, with its failure or None."""
        if probing:
            self._probing = False
        if isinstance(failure, ModelUnavailable | ModelTimeout):
            self._failed += 1
            if probing or self._failed >= self._failures:
                self._open_until = self._clock.monotonic() + self._pause_s
        elif failure is None or isinstance(failure, Exception):  # a refusal shows that the provider works
            self._failed = 0
            self._open_until = None
