"""The user's options for calls: concurrency, time-out, retries, rate. They are parsed and checked only here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypedDict

from sabot.base.arrays import python_value
from sabot.base.backoff import Backoff
from sabot.base.checks import OneOf, Whole, check
from sabot.base.config import Duration, parse_rate, parse_seconds
from sabot.base.dataclass import dataclass
from sabot.errors import UserError

Trim = Literal["drop_oldest", "summarize", "refuse"]


class LoopOptions(TypedDict, total=False):
    """The options of the loop of an agent (`sabot.llm.Agent`), but for its name and those on which its type depends."""

    tools: Sequence[Any]
    model: str
    max_turns: int
    max_concurrent_tools: int
    tool_timeout: Duration
    max_tool_retries: int
    max_tool_chars: int
    repairs: int
    allow_cut: bool
    context_window: int
    trim: Trim
    temperature: float | None
    max_tokens: int | None
    options: Mapping[str, Any] | None
    use_middleware: bool


CALL_WORDS = ("concurrency", "timeout", "retries", "backoff", "on_error", "rate")
"""The options of `CallOptions.of` that users write; agents and steps with calls share them."""

_MOST_AT_ONCE = 100_000
_LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Retry:
    """The rule for retries of a failed call. At most `retries` retries are made. The first one begins after
    `backoff_s` seconds. The wait doubles before each later one, up to 30 seconds.
    """

    retries: int = 0
    backoff_s: float = 0.1

    def wait_s(self, retries: int) -> float:
        """Returns the seconds to wait before the next attempt. `retries`: the number of retries that were made
        already. The result is at most 30.
        """
        return Backoff(self.backoff_s, _LONGEST_BACKOFF_SECONDS).wait_s(retries + 1)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """The checked options of the calls of a step or an agent.

    - `concurrency`: the maximum number of calls in flight.
    - `timeout_s`: the maximum duration of one attempt, in seconds; None for no limit.
    - `retry`: the rule for retries.
    - `on_error`: a word that says what happens after a failed call, such as "skip". Each kind of step defines the
      words that it allows.
    - `rate`: the maximum number of attempts that begin per second; None for no limit.
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
        """Checks options as a user wrote them, and returns them as CallOptions. Raises UserError for a wrong one; for
        most of them the message begins with `where`. `policies`: the words that on_error= allows. `rate`: a number
        per second, or a text such as "300/m".
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
        """Returns the options for one crew, if the calls of one step are made by `crews` crews (class `Crew`). Each
        crew gets an equal share of `rate`; all other options are unchanged.
        """
        return self if self.rate is None else replace(self, rate=self.rate / crews)
