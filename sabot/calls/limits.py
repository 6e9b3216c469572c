"""When another call may begin: limits that the service has to which the calls go.

    AdaptiveLimit   calls in flight: fewer when the service says that it is overloaded, more again while it does not
    TokenBucket     calls that begin in a second

Times are seconds of a steady clock, and come from the caller. All of it belongs to one event loop.
"""

import math
from typing import Protocol

_LOWERED_TO = 0.5  # of the calls in flight
_BURST_SECONDS = 0.05  # of the rate may begin at once: an event loop is late by some milliseconds now and then
_NEARLY = 1e-9


class Limit(Protocol):
    """What a crew asks before a call begins, and tells when it has begun and ended."""

    def wait_s(self, now: float) -> float:
        """Seconds until another call may begin. 0: now; infinite: not before one has ended."""

    def begun(self, now: float) -> None:
        """A call begins, as `wait_s` allowed."""

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """The call that began then has ended: with a result, or with an error that says nothing of limits."""

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """The call that began then was turned away: too many requests. retry_after_s: for so long it asks for no more."""


class AdaptiveLimit:
    """So many calls in flight as the service takes: additive increase, multiplicative decrease, as TCP has it (RFC 5681, section 3.1).

    Turned away, half of the calls in flight are allowed; for each round of calls that end well while as many were in flight as might be,
    one more, up to `most`. Calls that had begun before the limit was lowered do not lower it again: they were too many together.
    """

    def __init__(self, most: int, in_flight: int = 0) -> None:
        self.in_flight = in_flight
        self._most = self._limit = float(most)
        self._lowered_at = -math.inf
        self._paused_until = -math.inf

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
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
    """At most `rate` calls begin in a second, evenly: after a pause no more at once than come in 50 ms."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * _BURST_SECONDS)
        self._tokens = self._most
        self._seen = math.inf  # when tokens were counted last

    def wait_s(self, now: float) -> float:
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._seen) * self._rate)
        self._seen = now
        return 0.0 if self._tokens >= 1.0 - _NEARLY else (1.0 - self._tokens) / self._rate

    def begun(self, now: float) -> None:
        self._tokens -= 1.0

    def ended(self, now: float, began: float, *, well: bool) -> None:
        """Tokens come with time alone."""

    def overloaded(self, now: float, began: float, retry_after_s: float) -> None:
        """The rate is the user's, and stays."""
