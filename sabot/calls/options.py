"""The user's options for calls: concurrency, time-out, retries, rate. They are parsed and checked only here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sabot.base.arrays import python_value
from sabot.base.backoff import Backoff
from sabot.base.checks import OneOf, Whole, check
from sabot.base.config import Duration, parse_rate, parse_seconds
from sabot.errors import UserError

CALL_WORDS = ("concurrency", "timeout", "retries", "backoff", "on_error", "rate")
"""The options of `CallOptions.of` that users write; agents and steps with calls share them."""

_MOST_AT_ONCE = 100_000
_LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The retries of a failed call: at most `retries`, the first after `backoff_s` seconds, and each further one
    after twice as long, at most 30 seconds.
    """

    retries: int = 0
    backoff_s: float = 0.1

    def wait_s(self, retries: int) -> float:
        """Returns the seconds before the next attempt, after `retries` retries; at most half a minute."""
        return Backoff(self.backoff_s, _LONGEST_BACKOFF_SECONDS).wait_s(retries + 1)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The checked options of calls. `concurrency`: the most calls in flight. `timeout_s`: the most seconds of one
    attempt, or None for no limit.

    `on_error`: what happens after a failed call; each step defines its words. `rate`: the most attempts that begin
    per second, or None for no limit.
    """

    concurrency: int = 1
    timeout_s: float | None = None
    retry: Retry = Retry()
    on_error: str = "fail"
    rate: float | None = None

    @classmethod
    def of(
        cls,
        where: str,
        *,
        concurrency: int,
        timeout: Duration | None,
        retries: int,
        backoff: Duration,
        on_error: str,
        policies: Sequence[str],
        rate: str | float | None = None,
    ) -> "CallOptions":
        """Checks the options that the user wrote. Raises UserError, beginning with `where`. `policies`: the allowed
        words of on_error=.
        """
        concurrency, retries = python_value([concurrency, retries])
        check(f"{where}: concurrency", concurrency, Whole(1, _MOST_AT_ONCE))
        check(f"{where}: retries", retries, Whole(0))
        check(f"{where}: on_error", on_error, OneOf(policies))
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        if timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='a time above 0 ("30s"), or None for no limit')
        retry = Retry(retries, parse_seconds(backoff, name="backoff"))
        return cls(concurrency, timeout_s, retry, on_error, None if rate is None else parse_rate(rate))

    def shared_by(self, crews: int) -> "CallOptions":
        """Returns the options for one of several crews that make the calls of one step: each has its share of the
        rate.
        """
        return self if self.rate is None else replace(self, rate=self.rate / crews)
