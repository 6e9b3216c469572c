"""What the user says of calls: how many at once, how long each, how often again. Parsed, checked and bounded here, and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sabot.arrays import python_value
from sabot.backoff import Backoff
from sabot.config import Duration, is_whole, parse_rate, parse_seconds
from sabot.errors import UserError

CALL_WORDS = ("concurrency", "timeout", "retries", "backoff", "on_error", "rate")
"""The arguments of `CallOptions.of` that users write, which agents and steps with calls share."""

_MOST_AT_ONCE = 100_000
_LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """A call that failed is made again at most `retries` times: after `backoff_s` seconds, then after twice as long each time."""

    retries: int = 0
    backoff_s: float = 0.1

    def wait_s(self, retries: int) -> float:
        """Seconds before the next attempt, where `retries` have been made already: at most half a minute."""
        return Backoff(self.backoff_s, _LONGEST_BACKOFF_SECONDS).wait_s(retries + 1)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """concurrency: calls in flight at most. timeout_s: of one attempt, in seconds; None: it may take as long as it likes.

    on_error: what happens when a call has failed; which words there are is the step's to say. rate: attempts that begin in a second at
    most; None: as many as come.
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
        """Checks what the user wrote; raises UserError that begins with `where`. policies: the words that on_error= may be."""
        concurrency, retries = python_value([concurrency, retries])
        checked_whole(where, "concurrency", concurrency, 1, _MOST_AT_ONCE)
        checked_whole(where, "retries", retries, 0)
        if on_error not in policies:
            raise UserError(f"{where}: on_error={on_error!r}", hint=f"one of {', '.join(map(repr, policies))}")
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout")
        if timeout_s == 0:
            raise UserError(f"{where}: timeout=0", hint='more than nothing ("30s"), or None for no limit')
        retry = Retry(retries, parse_seconds(backoff, name="backoff"))
        return cls(concurrency, timeout_s, retry, on_error, None if rate is None else parse_rate(rate))

    def shared_by(self, crews: int) -> "CallOptions":
        """Of one of several crews that make the calls of one step: each has its share of the rate, and all the rest."""
        return self if self.rate is None else replace(self, rate=self.rate / crews)


def checked_whole(where: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises UserError unless the value is a whole number within these bounds."""
    if not is_whole(value, least, most):
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{where}: {name}={value!r}", hint=f"a whole number, {bounds}")
