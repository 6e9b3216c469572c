"""An account: the usage under some limits, with the most that calls in flight may still use.

    reserve ─▶ the call ─┬─▶ settle    what the call has used counts in place of its reservation
                         ├─▶ doubt     nobody knows whether the call was made: its reservation counts as used
                         └─▶ release   the call was not made: nothing counts

Every budget is an account. That of a `CallBudget` of `llm` has no windows; that of a `BudgetSpec` has as children the accounts of the jobs
that its job has begun; that of a `Budget` has windows, and `agents/accounts` keeps it in memory or in SQL; that of a `ResourceQuota` counts
the tokens of an instance.

A window is an hour, a day or a month of the calendar, in UTC; `total` has no end. Windows only go on: if the clock is set back, the later
window continues, so nobody gets a day twice.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, NamedTuple

from sabot.base.quantities import money

Measure = Literal["tokens", "cost", "calls", "tool_calls"]
Window = Literal["hourly", "daily", "monthly", "total"]
WINDOWS: tuple[Window, ...] = ("hourly", "daily", "monthly")
"""The windows that end."""

SKEW_SECONDS = 60.0
"""By how much clocks of several machines may differ."""

_UNITS = {"tool_calls": "calls of tools"}


class Amounts(NamedTuple):
    """Tokens and calls of models, US dollars, and calls of tools."""

    tokens: int = 0
    cost: Decimal = Decimal(0)
    calls: int = 0
    tool_calls: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        """Returns the sum."""
        return Amounts(
            self.tokens + other.tokens,
            self.cost + other.cost,
            self.calls + other.calls,
            self.tool_calls + other.tool_calls,
        )

    def minus(self, other: "Amounts") -> "Amounts":
        """Returns the difference."""
        return Amounts(
            self.tokens - other.tokens,
            self.cost - other.cost,
            self.calls - other.calls,
            self.tool_calls - other.tool_calls,
        )

    def costing(self, cost: Decimal) -> "Amounts":
        """Returns the same tokens and calls at another cost."""
        return Amounts(self.tokens, cost, self.calls, self.tool_calls)

    def reaching(self, other: "Amounts") -> "Amounts":
        """Returns the same calls with at least the tokens and the cost of `other`."""
        return Amounts(max(self.tokens, other.tokens), max(self.cost, other.cost), self.calls, self.tool_calls)

    def times(self, number: int) -> "Amounts":
        """Returns each amount so many times."""
        return Amounts(self.tokens * number, self.cost * number, self.calls * number, self.tool_calls * number)


NOTHING = Amounts()


class AmountLimit(NamedTuple):
    """The most that may be used of a measure in a window. Exactly so much is allowed."""

    measure: Measure
    most: Decimal | int
    window: Window = "total"

    @property
    def words(self) -> str:
        """The limit in words: "1000 tokens", "$0.5"."""
        return (
            self.amount(self.most)
            if self.measure == "cost"
            else f"{self.most} {_UNITS.get(self.measure, self.measure)}"
        )

    def amount(self, value: Decimal | int) -> str:
        """Returns an amount of the measure: a number, or dollars such as "$0.5"."""
        return money(value) if self.measure == "cost" else str(value)


class LimitState(NamedTuple):
    """The state of a limit: the usage in its window, the reservations of calls in flight, and the amount that a call asks for."""

    limit: AmountLimit
    used: Decimal | int
    reserved: Decimal | int
    asked: Decimal | int

    @property
    def most(self) -> Decimal | int:
        """The most that is used with this call and with those in flight."""
        return self.used + self.reserved + self.asked

    @property
    def exceeded(self) -> bool:
        """True if the limit has no room for the call. A call that names no cost, such as one of a model without a known price, fits only
        below a limit of money.
        """
        return self.most > self.limit.most or (
            self.limit.measure == "cost" and not self.asked and self.used >= self.limit.most
        )

    @property
    def words(self) -> str:
        """The state in words, for the error of a call that does not fit."""
        used, reserved, asked = map(self.limit.amount, (self.used, self.reserved, self.asked))
        return (
            f"{self.limit.words}: {used} used, {reserved} reserved for calls in flight, and this call may use {asked}"
        )


class Account:
    """The usage under some limits, and the reservations of calls in flight. All of it counts for the parent too, if the account has one.
    It is used by one thread.

    `windows`: the windows in which usage is counted. Times are in seconds since 1970; an account that has only the window `total` needs
    none.
    """

    def __init__(
        self,
        limits: Iterable[AmountLimit] = (),
        *,
        windows: Iterable[Window] = ("total",),
        parent: "Account | None" = None,
    ) -> None:
        self.limits = [*limits]
        self.reserved = NOTHING
        self.root: Account = self if parent is None else parent.root
        self._parent = parent
        self._began: dict[Window, float] = dict.fromkeys(windows, 0.0)
        self._used: dict[Window, Amounts] = dict.fromkeys(self._began, NOTHING)
        self._calls: dict[Hashable, Amounts] = {}
        self._hour = -1.0 if {*self._began} & {*WINDOWS} else math.inf  # of the last `_roll`; inf: no window ever ends

    # -- what is there ------------------------------------------------------------------------------------------------

    @property
    def total(self) -> Amounts:
        """The usage of all time, of an account that counts it."""
        return self._used["total"]

    @property
    def windows(self) -> dict[Window, tuple[float, Amounts]]:
        """The time at which each window began, and the usage in it so far: what a book keeps, beside `reserved`."""
        return {window: (self._began[window], used) for window, used in self._used.items()}

    def restore(self, windows: Mapping[Window, tuple[float, Amounts]], reserved: Amounts = NOTHING) -> None:
        """Puts the account back as it was when `windows` and `reserved` were read from it."""
        self._began = {window: windows[window][0] for window in self._began}
        self._used = {window: windows[window][1] for window in self._used}
        if self._hour < math.inf:
            self._hour = -1.0
        self.reserved = reserved

    def used(self, now_s: float) -> dict[Window, Amounts]:
        """Returns the usage in each window of this time, without reservations."""
        self._roll(now_s)
        return dict(self._used)

    def states(self, wanted: Amounts, now_s: float = 0.0) -> Iterator[LimitState]:
        """Yields the state of each limit, of this account and of its parents, if a call asks for `wanted`."""
        account: Account | None = self
        while account is not None:
            account._roll(now_s)
            for limit in account.limits:
                used, reserved = account._used[limit.window], account.reserved
                yield LimitState(limit, *(getattr(each, limit.measure) for each in (used, reserved, wanted)))
            account = account._parent

    def exceeded(self, wanted: Amounts, now_s: float = 0.0) -> LimitState | None:
        """Returns the first limit that has no room for a call; None if the call fits."""
        return next((each for each in self.states(wanted, now_s) if each.exceeded), None)

    # -- calls --------------------------------------------------------------------------------------------------------

    def reserve(self, call: Hashable, wanted: Amounts) -> None:
        """Reserves the most that a call may use, in place of an earlier reservation of the call."""
        self.reserve_instead(self._calls.get(call, NOTHING), wanted)
        self._calls[call] = wanted

    def settle(self, call: Hashable, used: Amounts, now_s: float = 0.0, at_s: float | None = None) -> None:
        """Counts what a call has used in place of its reservation. `at_s`: as of `add`."""
        self.release(call)
        self.add(used, now_s, at_s)

    def doubt(self, call: Hashable, now_s: float = 0.0) -> None:
        """Counts the reservation of a call as used."""
        self.add(self.release(call), now_s)

    def release(self, call: Hashable) -> Amounts:
        """Ends the reservation of a call, and returns it."""
        reserved = self._calls.pop(call, NOTHING)
        self.reserve_instead(reserved, NOTHING)
        return reserved

    def reserve_instead(self, before: Amounts, after: Amounts) -> None:
        """Changes the reserved amounts by those of one call, which is kept elsewhere."""
        if before == after:
            return
        change = after if before is NOTHING else after.minus(before)
        account: Account | None = self
        while account is not None:
            account.reserved = account.reserved.plus(change)
            account = account._parent

    def add(self, used: Amounts, now_s: float = 0.0, at_s: float | None = None) -> None:
        """Counts usage of now; or of `at_s` by the clock of another machine, in the windows that had begun by then or soon after."""
        account: Account | None = self
        while account is not None:
            account._roll(now_s)
            for window, before in account._used.items():
                if at_s is None or at_s + SKEW_SECONDS >= account._began[window]:
                    account._used[window] = before.plus(used)
            account = account._parent

    def _roll(self, now_s: float) -> None:
        """Begins the windows of this time. Each window begins with an hour."""
        if self._hour == math.inf or (hour := now_s // 3600) == self._hour:
            return
        self._hour = hour
        for window, began in self._began.items():
            start = window_start(window, now_s)
            if start > began:
                self._began[window], self._used[window] = start, NOTHING


def window_start(window: Window, at_s: float) -> float:
    """Returns the time at which the window began that `at_s` is in; both in seconds since 1970."""
    if window == "hourly":
        return at_s - at_s % 3600
    if window == "daily":
        return at_s - at_s % 86400
    if window == "total":
        return 0.0
    return datetime.fromtimestamp(at_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
