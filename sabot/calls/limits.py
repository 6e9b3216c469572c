"""Limits of the called service: they decide when another call may begin.

    AdaptiveLimit   calls in flight: fewer after the service has said that it is overloaded, more again afterwards
    TokenBucket     calls that begin per second, or tokens of models

Times are seconds of a monotonic clock, given by the caller. Everything belongs to one event loop.
"""

import math
from typing import Protocol

_LOWERED_TO = 0.5  # the share of the calls in flight that is allowed after a refusal
_BURST_SECONDS = (
    0.05  # the part of the rate that may begin at once, because an event loop is sometimes late by some milliseconds
)
_NEARLY_S = 1e-6  # a wait that a clock may round away


class Limit(Protocol):
    """A limit on calls. A crew asks it before a call begins, and reports the begin and the end of calls."""

    def wait_s(self, now: float) -> float:
        """Returns the seconds until another call may begin: 0 for now, infinity if another call must end first."""

    def begun(self, now: float) -> None:
        """Counts a call that begins. `wait_s` has allowed it."""

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """Counts a call that has ended: with a result, or with an error other than an overload. `began`: the time at
        which it began.
        """

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """Counts a call that the service has refused as too many. `began`: the time at which it began.
        `retry_after_s`: the seconds for which the service asks for no more calls.
        """


class AdaptiveLimit:
    """A limit that adapts the number of calls in flight to the number that the service accepts: additive increase,
    multiplicative decrease, like TCP (RFC 5681, section 3.1).

    After a refusal, half of the calls in flight are allowed. After each round of successful calls with the limit
    reached, one more is allowed, up to `most`. Refused calls that began before the limit was lowered do not lower it
    again.
    """

    def __init__(self, most: int, in_flight: int = 0) -> None:
        self.in_flight = in_flight
        self._most = self._limit = float(most)
        self._lowered_at = -math.inf
        self._paused_until = -math.inf

    @property
    def limit(self) -> int:
        """The number of calls that may be in flight."""
        return int(self._limit)

    def wait_s(self, now: float) -> float:
        if now < self._paused_until:
            return self._paused_until - now
        return 0.0 if self.in_flight < self.limit else math.inf

    def begun(self, now: float) -> None:
        self.in_flight += 1

    def ended(self, now: float, began: float, *, well: bool) -> None:
        if well and began > self._lowered_at and self.in_flight >= self.limit:
            self._limit = min(self._most, self._limit + 1.0 / self._limit)
        self.in_flight -= 1

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        if began > self._lowered_at:
            self._limit = max(1.0, min(self._limit, self.in_flight) * _LOWERED_TO)
            self._lowered_at = now
        self._paused_until = max(self._paused_until, now + retry_after_s)
        self.in_flight -= 1


class TokenBucket:
    """A limit of `rate` calls per second, which begin evenly; or of so many tokens, of which a call takes `amount`. After
    a pause, as much may be taken at once as the rate allows in `burst_s` seconds, but at least one. A call that takes more
    than there is leaves a debt, and the next one waits.
    """

    def __init__(self, rate: float, burst_s: float = _BURST_SECONDS) -> None:
        self._rate = rate
        self._most = max(1.0, rate * burst_s)
        self._tokens = self._most
        self._seen = math.inf  # the time at which tokens were last counted

    def wait_s(self, now: float, amount: float = 1.0) -> float:
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._seen) * self._rate)
        self._seen = now
        wait_s = (min(amount, self._most) - self._tokens) / self._rate
        return wait_s if wait_s > _NEARLY_S else 0.0

    def begun(self, now: float, amount: float = 1.0) -> None:
        self.take(amount)

    def take(self, amount: float) -> None:
        """Takes so much; a negative number gives back what was taken and not used."""
        self._tokens -= amount

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """Does nothing: the end of a call does not let another one begin earlier."""

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """Does nothing: the user has chosen the rate, and an overload does not change it."""
