"""The budget of a scope: what the scope may use in an hour, a day and a month, and how the budget judges a call.

The arithmetic is that of every account (`base/accounts.py`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import KW_ONLY, dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from fnmatch import translate
from typing import Literal, NamedTuple

from sabot.agents.context import checked_word
from sabot.base.accounts import WINDOWS, Account, AmountLimit, Amounts, Measure, Window
from sabot.base.checks import OneOf, check_fields, check_pattern, is_number
from sabot.base.config import Dollars, amount
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr
from sabot.jobs.guard import Decision
from sabot.llm.prices import PRICES_HINT

BudgetDecision = Decision
"""The name of `Decision` in document 001."""

FITS = (Decision.ALLOW, Decision.WARN)
"""The decisions that allow a call because the budget has room for the call."""

_MEASURES: tuple[Measure, ...] = ("tokens", "cost", "calls")


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of a scope, usually a tenant. All jobs of the scope share it. It limits the tokens, the cost and the
    number of model calls in each hour, day and month of the calendar (UTC).

    - `scope_id`: the scope, or an `fnmatch` pattern: `Budget("tenant-*", …)` is a budget for each scope that matches,
      which has its own usage (`BudgetTable`).
    - `max_…`: the limits. None means no limit. Usage of exactly a limit is allowed. Costs are in US dollars.
    - `exhausted`: the decision on a call that would exceed a limit. "deny" refuses the call. "ask" asks a person.
      "degrade" sends the request to the model `degrade_to` instead. That request is sent even if it exceeds the limit
      too.
    - `unpriced`: the decision on a call of a model whose price is not known: "deny" or "ask". It has an effect only if
      the budget limits the cost.
    - `warn_at`: a fraction of each limit. If an allowed call may bring the usage to this fraction or above, a warning is
      logged, once in each window of the limit. The usage then includes the reservations and the most that the call
      may use. 1 turns the warnings off.

    Raises UserError for a value that is not valid.
    """

    scope_id: str
    _: KW_ONLY
    max_tokens_hourly: int | None = None
    max_tokens_daily: int | None = None
    max_tokens_monthly: int | None = None
    max_cost_hourly: Dollars = None  # type: ignore[assignment]
    max_cost_daily: Dollars = None  # type: ignore[assignment]
    max_cost_monthly: Dollars = None  # type: ignore[assignment]
    max_calls_hourly: int | None = None
    max_calls_daily: int | None = None
    max_calls_monthly: int | None = None
    warn_at: float = 0.8
    exhausted: Literal["deny", "degrade", "ask"] = "deny"
    degrade_to: str = ""
    unpriced: Literal["deny", "ask"] = "deny"

    def __post_init__(self) -> None:
        where = f"Budget of {checked_word(self.scope_id, 'Budget: scope_id', empty=False)}"
        check_pattern("Budget: scope_id", self.scope_id)
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

        if not any(self.limits()):
            raise UserError(
                f"{where}: it limits nothing", hint="max_cost_daily=5, max_tokens_hourly=…, max_calls_monthly=…"
            )

    def merge(self, other: "Budget") -> "Budget":
        """Returns a budget of the same scope (a tenant) that has the limits of both budgets. Where both limit the
        same amount in the same window, it has the lower limit. Raises UserError if the other settings differ.
        """
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

    def limits(self) -> Iterator[AmountLimit]:
        """Yields a limit for each `max_…` field that is not None: first the limits for an hour, then for a day, then
        for a month.
        """
        for window in WINDOWS:
            for measure in _MEASURES:
                most = getattr(self, f"max_{measure}_{window}")
                if most is not None:
                    yield AmountLimit(measure, Decimal(most), window)


_WILD = frozenset("*?[")
_WILDCARDS = re.compile(r"\[.+?\]|[*?]")
_MOST_SCOPES = 10_000  # the most scopes with budgets by patterns in memory
_MOST_NAMED = 8


class BudgetTable:
    """The budgets of a ledger. A scope has the budget that names it. If there is none, it has a budget of its own, made
    of a pattern that matches it: of the pattern with the most characters that are no wildcards, and of equal ones the
    first. Upper and lower case are different.

    - `given`: the budgets that were set, by the scope or the pattern that they name.
    - `made`: the budgets that were made of patterns, by scope. If there are too many, they are dropped and made again.
    - `on_made`, `on_dropped`: functions that are called with each budget that is made or set, and with the scope of
      each that is dropped.
    """

    def __init__(self, on_made: Callable[[Budget], object], on_dropped: Callable[[str], object]) -> None:
        self.given: dict[str, Budget] = {}
        self.made: dict[str, Budget] = {}
        self._patterns: list[tuple[re.Pattern[str], Budget]] = []
        self._on_made, self._on_dropped = on_made, on_dropped
        self._called: set[str] = set()  # the names in `given` that hold for a scope that has called a model
        self._others: set[str] = set()  # scopes without a budget that have called models, at most _MOST_SCOPES
        self._told: list[str] = []

    def set(self, budget: Budget) -> None:
        """Sets a budget, in place of the one that names the same scope or pattern."""
        self.given[budget.scope_id] = budget
        of_patterns = [each for name, each in self.given.items() if is_pattern(name)]
        of_patterns.sort(key=lambda each: -len(_WILDCARDS.sub("", each.scope_id)))
        self._patterns = [(re.compile(translate(each.scope_id)), each) for each in of_patterns]
        scopes = [*self.made]
        self.made.clear()
        for scope in scopes:  # their usage stays
            self.find(scope)
        if not is_pattern(budget.scope_id):
            self._on_made(budget)

    def find(self, scope_id: str) -> Budget | None:
        """Returns the budget of a scope, or None if it has none."""
        found = self.given.get(scope_id)
        if found is None and self._patterns:
            found = self.made.get(scope_id) or self._make(scope_id)
        return found

    def pattern_of(self, scope_id: str) -> Budget | None:
        """Returns the budget whose pattern holds for a scope. None if there is none, or if a budget names the scope."""
        if not scope_id or scope_id in self.given:
            return None
        return next((each for form, each in self._patterns if form.match(scope_id)), None)

    def _make(self, scope_id: str) -> Budget | None:
        pattern = self.pattern_of(scope_id)
        if pattern is None:
            return None
        if len(self.made) >= _MOST_SCOPES:
            for each in self.made:
                self._on_dropped(each)
            self.made.clear()
        made = copy(pattern)  # not checked again: a scope of a job may have a "[", and is no pattern
        object.__setattr__(made, "scope_id", scope_id)
        self.made[scope_id] = made
        self._called.add(pattern.scope_id)
        self._on_made(made)
        return made

    def find_for_call(self, scope_id: str) -> Budget | None:
        """Returns the budget of a scope that calls a model, or None. Remembers the call for `unused`."""
        found = self.find(scope_id)
        if found is None:
            if len(self._others) < _MOST_SCOPES:
                self._others.add(scope_id)
        elif scope_id in self.given:
            self._called.add(scope_id)
        return found

    def unused(self) -> str:
        """Returns a message about the budgets of scopes that have called no model, with similar names of scopes that
        have done so without a budget. Returns "" if there are no such budgets, if no scope has called a model at all,
        and if it has returned the same message before.
        """
        names = [name for name in self.given if name not in self._called]
        if not names or names == self._told or not (self._called or self._others):
            return ""
        self._told = names
        said = f"no call of a model in this process was of the scope of these budgets: {', '.join(names[:_MOST_NAMED])}"
        near = {each for name in names for each in get_close_matches(name, self._others, n=3, cutoff=0.6)}
        known = f"scopes without a budget that have called models: {', '.join(sorted(self._others)[:_MOST_NAMED])}"
        return f"{said}; " + (f"did you mean {' or '.join(sorted(near))}?" if near else known if self._others else "")


def is_pattern(scope_id: str) -> bool:
    """Returns True if the scope of a budget has wildcards of `fnmatch`, so that it is a pattern."""
    return not _WILD.isdisjoint(scope_id)


class Judgement(NamedTuple):
    """The result of checking one call against a budget.

    - `decision`: ALLOW, WARN, DEGRADE (another model is asked), ASK (a person is asked) or DENY.
    - `reason`: the explanation of a decision other than ALLOW, or "".
    - `window`: the window ("hourly", "daily" or "monthly") of the limit that led to the decision. It is "" if no
      limit did, for example because the database that keeps a shared budget did not answer.
    - `error`: the name of the exception that is raised in the job if the call is denied.
    - `near`: if the decision is WARN, all windows with a limit of which `Budget.warn_at` may be used.
    """

    decision: Decision
    reason: str = ""
    window: str = ""
    error: str = "BudgetExceeded"
    near: tuple[Window, ...] = ()

    @property
    def rule(self) -> str:
        """The rule that led to the decision:

        - "hourly budget", "daily budget" or "monthly budget": a limit of the budget.
        - "budget owner": no limit. The budget could not be read, for example because the database that keeps it did not
          answer.
        - "": none, because the call is allowed without a reason.
        """
        return f"{self.window} budget" if self.window else "budget owner" if self.reason else ""


ALLOWED = Judgement(Decision.ALLOW)


def judge(budget: Budget, account: Account, wanted: Amounts, now_s: float) -> Judgement:
    """Checks a call against the limits of a budget, and returns the judgement. A limit is exceeded if the sum of these
    amounts is greater:

    - what `account` has used and reserved in the window of the limit at the time `now_s`, in seconds since 1970;
    - `wanted`, the most that the call may use.

    The function reads the limits from `account.limits`. So the caller must have copied the limits of `budget` there.
    """
    near: list[Window] = []
    reasons: list[str] = []
    for each in account.states(wanted, now_s):
        window = each.limit.window
        if each.exceeded:
            return Judgement(
                Decision(budget.exhausted), f"the {window} budget of {budget.scope_id} has {each.words}", window
            )
        if budget.warn_at < 1 and each.most >= each.limit.most * Decimal(str(budget.warn_at)):
            of = f"of the {window} budget of {budget.scope_id}, {each.limit.words}"
            reasons.append(f"{of}, {each.limit.amount(each.most)} may be used with this call")
            near.append(window)
    if not near:
        return ALLOWED
    return Judgement(Decision.WARN, "; ".join(reasons), near[0], near=tuple(dict.fromkeys(near)))


def unpriced(budget: Budget, model: str) -> Judgement | None:
    """Returns the judgement on a call of a model whose price is not known: the decision `Budget.unpriced` ("deny" or
    "ask"), with a reason. Returns None if the budget does not limit the cost.
    """
    for limit in budget.limits():
        if limit.measure == "cost":
            has = f"the {limit.window} budget of {budget.scope_id} has {limit.words}"
            why = f"{has}, and the price of {model} is not known: {PRICES_HINT}"
            return Judgement(Decision(budget.unpriced), why, limit.window)
    return None


class Standing(NamedTuple):
    """The usage and the reservations of a scope (a tenant) at the time `at`, in seconds since 1970.

    - `used`: the usage in the current hour, day and month, by window, without reservations.
    - `reserved`: the amounts that are reserved for calls that have no result yet.
    """

    used: Mapping[Window, Amounts]
    reserved: Amounts
    at: float


class JudgedCall(NamedTuple):
    """A record of a model call for which a budget has decided something other than ALLOW. `at` is the time of the
    decision in seconds since 1970. `name` is the name of the model, or "" if it is not known. `scope`, `job` and
    `principal` identify the caller.
    """

    at: float
    scope: str
    job: str
    principal: str
    name: str
    judgement: Judgement
