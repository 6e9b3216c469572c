"""Limits of the requests to a provider: requests in flight, requests and tokens per minute, and a pause after
repeated failures.

`Admission` lets requests begin in the order in which they came. The number in flight adapts to the provider
(`engine/calls/limits`): it is lowered after a 429 and grows again with successful requests. `Circuit` stops asking a
provider that fails again and again.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sabot.base.checks import Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import Clock
from sabot.engine.calls.errors import CircuitOpen, ModelError, ModelTimeout, ModelUnavailable, RateLimited
from sabot.engine.calls.limits import AdaptiveLimit, TokenBucket
from sabot.errors import UserError, short_repr

_MOST_AT_ONCE = 100_000
_BURST_SECONDS = 10.0  # the tokens of a model of this time may be used at once
_LONGEST_PAUSE_SECONDS = 60.0


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of the requests to one provider.

    - `concurrency`: the most requests in flight. While the provider answers 429 (too many requests), fewer are allowed.
    - `requests_per_minute`: the most requests that begin in a minute, evenly spaced, or None for no limit.
    - `tokens_per_minute`: the most tokens, input and output together, in a minute, or None for no limit. A request is
      counted with an estimate when it begins, and with its actual tokens when it has ended. The tokens of ten seconds
      may be used at once.
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
    """The queue in which requests wait until the limits of a provider allow them."""

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
        """Prepares the queue for use in another event loop, after the first one was closed: it has no requests in
        flight and no waiting requests. The number of requests that may be in flight, which was adapted to the provider,
        remains.
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
        """Waits until the limits allow another request. Returns the time at which it began, in seconds of the monotonic
        clock, which has to be passed to `leave`. `tokens`: the estimated tokens of the request.
        """
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
        """Records the end of a request, so that waiting requests may begin.

        - `began`: the time that `enter` has returned. `tokens`: the estimate that was passed to `enter`.
        - `used`: the tokens that the provider has counted, or None if unknown.
        - `failure`: the error of the request, or None. After a RateLimited fewer requests may be in flight.
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


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """The rule by which a provider that fails again and again is not asked for some time.

    - `failures`: the number of failures in a row after which the provider is not asked. No connection, a 5xx, an answer
      that broke off, and no answer in time are failures.
    - `pause`: the time for which it is not asked. Then one request is sent as a trial.

    Raises UserError for `failures` below 1 and for a pause of 0.
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

    def check(self, provider: str, model: str) -> None:
        """Raises CircuitOpen if the provider has failed several times in a row, and the pause is not over or the trial
        after it is under way.
        """
        if self._open_until is None:
            return
        left_s = self._open_until - self._clock.monotonic()
        if left_s > 0 or self._probing:
            raise CircuitOpen(
                f"the provider failed {self._failed} times in a row, and is not asked for now",
                provider=provider,
                model=model,
                sent=False,
                retry_after_s=max(0.0, left_s),
            )

    def enter(self, provider: str, model: str) -> bool:
        """Begins a request, unless `check` raises CircuitOpen. After the pause, one request is allowed as a trial.
        Returns True for this trial, else False. The value has to be passed to `leave`.
        """
        self.check(provider, model)
        self._probing = self._open_until is not None
        return self._probing

    def leave(self, probing: bool, failure: BaseException | None) -> None:
        """Records the end of a request.

        - After a failure of the provider, the pause begins if it was the trial, or if there were too many failures in a
          row.
        - After a success, or a ModelError that is no failure of the provider, the failures are counted from 0 again.
        - After a cancellation or any other error nothing changes, because the provider may not have been asked. If this
          request was the trial, the next one is a trial too.

        `probing`: the value that `enter` has returned. `failure`: the error of the request, or None.
        """
        if probing:
            self._probing = False
        if isinstance(failure, ModelUnavailable | ModelTimeout):
            self._failed += 1
            if probing or self._failed >= self._failures:
                self._open_until = self._clock.monotonic() + self._pause_s
        elif failure is None or isinstance(failure, ModelError):  # a refusal shows that the provider works
            self._failed = 0
            self._open_until = None
