"""Reads of budgets and ledgers that return records: the command line and the console only render them."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from sabot.agents.accounts.budgets import JudgedCall
from sabot.agents.accounts.contract import LedgerSum, LedgerWriter
from sabot.agents.accounts.ledger import Ledger
from sabot.base.accounts import Window, window_start


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """A limit of a budget, with the usage in its present window, which began at `began`, in seconds since 1970.

    `measure` is tokens, cost (US dollars) or calls. `spent` is the usage of calls whose usage is known. `in_doubt` is
    the upper bound for calls of which nobody knows whether they were paid, and `reserved` that for calls in flight.
    """

    scope: str
    window: Window
    measure: str
    limit: Decimal
    spent: Decimal
    reserved: Decimal
    in_doubt: Decimal
    began: float

    @property
    def used(self) -> Decimal:
        """The usage that counts in the budget, without reservations."""
        return self.spent + self.in_doubt

    @property
    def part(self) -> float:
        """The used fraction of the limit. It is 1 if the limit is 0."""
        return float(self.used / self.limit) if self.limit else 1.0


class BudgetQuery(msgspec.Struct, frozen=True):
    """A query for the usage in a ledger. `by` has the words by which its rows are grouped. `since_ms` is the earliest
    time of these rows, in milliseconds since 1970; `days_since_s` that of the sums by day, in seconds.
    """

    by: tuple[str, ...]
    since_ms: int = 0
    days_since_s: float = 0.0


class BudgetFacts(msgspec.Struct, frozen=True):
    """The budgets of a ledger and their use. `sums` and `days` are the sums that the query asks for. `judged` has calls
    that were not simply allowed, the oldest first. `limits` is None if the ledger is read without the program that has
    the budgets; then there are no calls in `judged` either.
    """

    sums: list[LedgerSum]
    days: list[LedgerSum]
    limits: list[LimitRecord] | None = None
    judged: list[JudgedCall] = []


async def budget_facts(ledger: Ledger, query: BudgetQuery) -> BudgetFacts:
    """Returns the budgets of a ledger and their usage. Called on the ledger's event loop. Raises the errors of
    `limit_records`.
    """
    used = await used_facts(ledger.writer, query)
    return msgspec.structs.replace(used, limits=await limit_records(ledger), judged=list(ledger.judged))


async def used_facts(writer: LedgerWriter, query: BudgetQuery) -> BudgetFacts:
    """Returns the usage in the rows of a ledger, without budgets."""
    days = await writer.sums(["scope", "day"], round(query.days_since_s * 1000))
    return BudgetFacts(list(await writer.sums(query.by, query.since_ms)), list(days))


async def limit_records(ledger: Ledger) -> list[LimitRecord]:
    """Returns the limits of all budgets of a ledger. Called on the ledger's event loop. Raises BudgetUnavailable if the
    owner of shared budgets does not answer.
    """
    doubts: dict[Window, dict[str, LedgerSum]] = {}
    found = []
    for budget in ledger.budgets:
        standing = await ledger.standing(budget.scope_id)
        for measure, most, window in budget.limits():
            began = window_start(window, standing.at)
            if window not in doubts:
                sums = await ledger.writer.sums(["scope"], round(began * 1000))
                doubts[window] = {each.group[0]: each for each in sums}
            used = Decimal(getattr(standing.used[window], measure))
            in_doubt = min(used, _in_doubt(doubts[window].get(budget.scope_id), measure))
            reserved = Decimal(getattr(standing.reserved, measure))
            found.append(
                LimitRecord(budget.scope_id, window, measure, Decimal(most), used - in_doubt, reserved, in_doubt, began)
            )
    return found


def _in_doubt(rows: LedgerSum | None, measure: str) -> Decimal:
    """Returns the part of a measure that is in doubt. Sums do not count calls in doubt separately, so it is 0 for the
    measure "calls".
    """
    if rows is None or measure == "calls":
        return Decimal(0)
    return Decimal(rows.doubt_tokens) if measure == "tokens" else rows.doubt_cost


def sum_facts(words: Sequence[str], found: LedgerSum) -> dict[str, Any]:
    """Returns the figures of grouped rows, by name."""
    return {
        **dict(zip(words, found.group, strict=True)),
        "calls": found.calls,
        "read": found.input_tokens,
        "written": found.output_tokens,
        "in_doubt": found.doubt_tokens,
        "cost": str(found.cost),
        "cost_in_doubt": str(found.doubt_cost),
        "unpriced": found.unpriced,
    }
