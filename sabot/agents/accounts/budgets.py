"""What a scope may use in an hour, a day and a month; and the account of it, with what calls in flight may still use.

A window is one of the calendar, in UTC. Windows only go on: where the clock is set back, the later one still counts, so nobody gets a day
twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Literal, NamedTuple, get_args

from sabot.agents.context import checked_word
from sabot.base.checks import OneOf, check_fields, is_number
from sabot.base.config import amount
from sabot.errors import UserError, short_repr
from sabot.llm.prices import PRICES_HINT

Window = Literal["hourly", "daily", "monthly"]
WINDOWS: tuple[Window, ...] = get_args(Window)
SKEW_SECONDS = 60.0
"""By how much clocks of several machines may differ."""

_MEASURES = ("tokens", "cost", "calls")


class BudgetDecision(StrEnum):
    """What may be done. warn: it may, and little is left. degrade: by a cheaper model. ask: if a person says so."""

    ALLOW = "allow"
    WARN = "warn"
    DEGRADE = "degrade"
    ASK = "ask"
    DENY = "deny"


class Amounts(NamedTuple):
    """Tokens, US dollars, calls."""

    tokens: int = 0
    cost: Decimal = Decimal(0)
    calls: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        """The sum."""
        return Amounts(self.tokens + other.tokens, self.cost + other.cost, self.calls + other.calls)

    def times(self, number: int) -> "Amounts":
        """So often that much."""
        return Amounts(self.tokens * number, self.cost * number, self.calls * number)

    def minus(self, other: "Amounts") -> "Amounts":
        """The difference."""
        return Amounts(self.tokens - other.tokens, self.cost - other.cost, self.calls - other.calls)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the jobs of a scope may use together; None: no limit. Exactly at a limit is allowed.

    exhausted: what follows for a call that does not fit: "deny"; "degrade": it is made by the model `degrade_to`, which nothing limits; or
    "ask" a person. unpriced: what follows, where money has a limit, for a call of a model whose price is not known: "deny", or "ask" a
    person. warn_at: the part of a limit from which on a call that fits is told as a warning; 1: none is. Raises UserError.
    """

    scope_id: str
    _: KW_ONLY
    max_tokens_hourly: int | None = None
    max_tokens_daily: int | None = None
    max_tokens_monthly: int | None = None
    max_cost_hourly: Decimal | None = None
    max_cost_daily: Decimal | None = None
    max_cost_monthly: Decimal | None = None
    max_calls_hourly: int | None = None
    max_calls_daily: int | None = None
    max_calls_monthly: int | None = None
    warn_at: float = 0.8
    exhausted: Literal["deny", "degrade", "ask"] = "deny"
    degrade_to: str = ""
    unpriced: Literal["deny", "ask"] = "deny"

    def __post_init__(self) -> None:
        where = f"Budget of {checked_word(self.scope_id, 'Budget: scope_id', empty=False)}"
        for measure in _MEASURES:
            for window in WINDOWS:
                name = f"max_{measure}_{window}"
                value = amount(f"{where}: {name}", getattr(self, name))
                if value is not None and measure != "cost" and value != int(value):
                    raise UserError(f"{where}: {name}={value}: a whole number is wanted")
                object.__setattr__(self, name, value if value is None or measure == "cost" else int(value))
        check_fields(self, where, exhausted=OneOf(("deny", "degrade", "ask")), unpriced=OneOf(("deny", "ask")))
        checked_word(self.degrade_to, f"{where}: degrade_to")
        if (self.exhausted == "degrade") != bool(self.degrade_to):
            raise UserError(
                f"{where}: the model that is asked instead is not clear", hint='exhausted="degrade", degrade_to="…"'
            )
        if not (is_number(self.warn_at) and 0 < self.warn_at <= 1):
            raise UserError(
                f"{where}: warn_at={short_repr(self.warn_at)}", hint="a part of the limit: more than 0, at most 1"
            )

    def merge(self, other: "Budget") -> "Budget":
        """Both at once, for the same scope: of two limits of a kind the lower one. Raises UserError where different things follow."""
        for name in ("exhausted", "degrade_to", "unpriced", "warn_at"):
            if (mine := getattr(self, name)) != (its := getattr(other, name)):
                raise UserError(
                    f"two budgets of {self.scope_id}: one has {name}={mine!r}, the other {name}={its!r}",
                    hint="budgets of the same scope hold together: say the same in both, or make one of them",
                )
        names = [f"max_{measure}_{window}" for measure in _MEASURES for window in WINDOWS]
        given = {
            name: [each for each in (getattr(self, name), getattr(other, name)) if each is not None] for name in names
        }
        return replace(self, **{name: min(values) for name, values in given.items() if values})

    def limits(self) -> Iterator[tuple[Window, str, Decimal]]:
        """Window, measure and limit of each that there is."""
        for window in WINDOWS:
            for measure in _MEASURES:
                limit = getattr(self, f"max_{measure}_{window}")
                if limit is not None:
                    yield window, measure, Decimal(limit)


def window_start(window: Window, at_s: float) -> float:
    """When the window began in which this time is; both in seconds since 1970."""
    if window == "hourly":
        return at_s - at_s % 3600
    if window == "daily":
        return at_s - at_s % 86400
    return datetime.fromtimestamp(at_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def unpriced(budget: Budget, model: str) -> "Judgement | None":
    """Returns what the budget says of a call of a model whose price is not known; None where it does not limit money."""
    for window, measure, limit in budget.limits():
        if measure == "cost":
            has = f"the {window} budget of {budget.scope_id} has {_words(measure, limit)}"
            why = f"{has}, and the price of {model} is not known: {PRICES_HINT}"
            return Judgement(BudgetDecision(budget.unpriced), why, window)
    return None


class Judgement(NamedTuple):
    """What a budget says of a call. reason: why, where it does not simply allow it. window: of the limit that says so."""

    decision: BudgetDecision
    reason: str = ""
    window: str = ""


class Standing(NamedTuple):
    """The account of a scope at one time. `used`: in the windows of `at`, seconds since 1970. `reserved`: for the calls in flight, in
    addition.
    """

    used: Mapping[Window, Amounts]
    reserved: Amounts
    at: float


class JudgedCall(NamedTuple):
    """A call that a budget has not simply allowed. `at`: seconds since 1970. `name`: the model or the tool, "" if it is not known."""

    at: float
    scope: str
    job: str
    principal: str
    name: str
    judgement: Judgement


_ALLOWED = Judgement(BudgetDecision.ALLOW)


@dataclass(slots=True)
class _Used:
    """In a window that began at `start`."""

    start: float = 0.0
    used: Amounts = field(default_factory=Amounts)


class Account:
    """What a scope has used in its windows, and what is reserved for its calls in flight. Not for several threads."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._windows: dict[Window, _Used] = {window: _Used() for window in WINDOWS}
        self._reserved: dict[str, Amounts] = {}
        self._all_reserved = Amounts()
        self._limits = [*budget.limits()]

    def changed(self, budget: Budget) -> None:
        """Other limits of the same scope. What is used and reserved stays."""
        self.budget = budget
        self._limits = [*budget.limits()]

    def load(self, used: Mapping[Window, Amounts], now_s: float) -> None:
        """What was used in the windows of now, before this account was opened."""
        for window in WINDOWS:
            self._windows[window] = _Used(window_start(window, now_s), used.get(window, Amounts()))

    def restore(self, windows: Mapping[Window, tuple[float, Amounts]], reserved: Amounts) -> None:
        """As it was when it gave these: `windows` and `reserved`."""
        self._windows = {window: _Used(*windows[window]) for window in WINDOWS}
        self._all_reserved = reserved

    @property
    def windows(self) -> dict[Window, tuple[float, Amounts]]:
        """When each window began, in seconds since 1970, and what was used in it so far."""
        return {window: (each.start, each.used) for window, each in self._windows.items()}

    @property
    def limits_answers(self) -> bool:
        """Whether tokens or money have a limit."""
        return any(measure != "calls" for _, measure, _ in self._limits)

    @property
    def reserved(self) -> Amounts:
        """For all calls in flight."""
        return self._all_reserved

    def used(self, now_s: float) -> dict[Window, Amounts]:
        """In each window of now, without what is reserved."""
        self._roll(now_s)
        return {window: each.used for window, each in self._windows.items()}

    def judge(self, wanted: Amounts, now_s: float) -> Judgement:
        """Whether a call may use that much, beside what is used and reserved. A call that can cost nothing may be made at the limit."""
        self._roll(now_s)
        judged, budget = _ALLOWED, self.budget
        for window, measure, limit in self._limits:
            used = getattr(self._windows[window].used, measure)
            reserved = getattr(self._all_reserved, measure)
            asked = getattr(wanted, measure)
            most = used + reserved + asked
            full = asked == 0 and measure == "cost" and used >= limit  # its price is not known
            if most > limit or full:
                has = f"the {window} budget of {budget.scope_id} has {_words(measure, limit)}"
                why = f"{used} used, {reserved} reserved for calls in flight, and this call may use {asked}"
                return Judgement(BudgetDecision(budget.exhausted), f"{has}: {why}", window)
            if budget.warn_at < 1 and judged is _ALLOWED and most >= limit * Decimal(str(budget.warn_at)):
                has = f"of the {window} budget of {budget.scope_id}, {_words(measure, limit)}"
                judged = Judgement(BudgetDecision.WARN, f"{has}, {most} may be used with this call", window)
        return judged

    def reserve(self, call: str, wanted: Amounts) -> None:
        """This call is about to be made. A reservation of the same call is replaced."""
        self.release(call)
        self._reserved[call] = wanted
        self._all_reserved = self._all_reserved.plus(wanted)

    def release(self, call: str) -> None:
        """The call is over, or not made. One that has no reservation is no error."""
        had = self._reserved.pop(call, None)
        if had is not None:
            self._all_reserved = self._all_reserved.minus(had)

    def reserve_instead(self, before: Amounts, after: Amounts) -> None:
        """What all calls in flight have reserved has changed by one of them, which is kept elsewhere."""
        self._all_reserved = self._all_reserved.minus(before).plus(after)

    def add(self, used: Amounts, now_s: float, at_s: float | None = None) -> None:
        """It was used now; or then, by the clock of another machine: it counts in the windows that had begun by then, or soon after."""
        self._roll(now_s)
        for each in self._windows.values():
            if at_s is None or at_s + SKEW_SECONDS >= each.start:
                each.used = each.used.plus(used)

    def _roll(self, now_s: float) -> None:
        for window, each in self._windows.items():
            start = window_start(window, now_s)
            if start > each.start:
                each.start, each.used = start, Amounts()


def _words(measure: str, limit: Decimal) -> str:
    return f"{limit} dollars" if measure == "cost" else f"{limit} {measure}"
