"""Limits of the called service: they decide when another call may begin.

    AdaptiveLimit   calls in flight: fewer after the service has said that it is overloaded, more again afterwards
    TokenBucket     calls that begin per second, or tokens of models

Times are seconds of a monotonic clock, given by the caller. Everything belongs to one event loop.
"""

import math
from typing import TypeAlias

_LOWERED_TO = 0.5  # the share of the calls in flight that is allowed after a refusal
_BURST_SECONDS = (
    0.05  # the part of the rate that may begin at once, because an event loop is sometimes late by some milliseconds
)
_NEARLY_S = 1e-6  # a wait that a clock may round away


class AdaptiveLimit:
    """A limit that adapts the number of calls in flight to the number that the service accepts. It uses additive
    increase and multiplicative decrease, like TCP (RFC 5681, section 3.1).

    - `most`: the maximum of the limit, which is also its first value.
    - `in_flight`: the number of calls that are in flight already.

    When the service refuses a call, the limit falls to half of the calls in flight, but not below 1, and no call begins
    for the time that the service asks for. While as many calls are in flight as the limit allows, each successful call
    raises the limit a little: by one for every `limit` calls, up to `most`. A refused call that began before the limit
    fell does not lower the limit again.
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
        """Returns the seconds until another call may begin: 0 if it may begin now, and infinity if another call has
        to end first. `now`: the present time, in seconds of a monotonic clock.
        """
        if now < self._paused_until:
            return self._paused_until - now
        return 0.0 if self.in_flight < self.limit else math.inf

    def begun(self, now: float) -> None:
        """Records that a call begins at the time `now`. The caller must have got 0 from `wait_s` before."""
        self.in_flight += 1

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """Records that a call has ended at the time `now`. `began`: the time at which it began. `well`: True if it
        has succeeded, and False if it has failed. If the service has refused the call because of overload, the crew
        calls `overloaded` instead.
        """
        if well and began > self._lowered_at and self.in_flight >= self.limit:
            self._limit = min(self._most, self._limit + 1.0 / self._limit)
        self.in_flight -= 1

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """Records that the service has refused a call at the time `now` because it is overloaded. `began`: the time
        at which the call began. `retry_after_s`: the seconds for which the service asks for no further calls.
        """
        if began > self._lowered_at:
            self._limit = max(1.0, min(self._limit, self.in_flight) * _LOWERED_TO)
            self._lowered_at = now
        self._paused_until = max(self._paused_until, now + retry_after_s)
        self.in_flight -= 1


class TokenBucket:
    """A limit of `rate` calls per second, which begin at even intervals. It can also limit other units per second, such
    as the tokens of models; `amount` is then the number of units that a call uses.

    Units accrue at this rate, up to a maximum: the units of `burst_s` seconds, or 1 if that is more. After a pause, the
    accrued units may be used at once. A call that uses more units than the maximum begins when the maximum has accrued.
    The next calls then wait until the missing units have accrued too.
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
        """Uses this many units of the limit. A negative number returns units that were taken before and were not
        used.
        """
        self._tokens -= amount

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """Does nothing: the end of a call does not let another one begin earlier."""

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """Does nothing: the user has chosen the rate, and an overload does not change it."""


Limit: TypeAlias = AdaptiveLimit | TokenBucket
"""A limit that decides when the next call may begin. A crew (class `Crew`) calls `wait_s` before a call begins, `begun`
when it begins, and `ended` or `overloaded` when it has ended.
"""
