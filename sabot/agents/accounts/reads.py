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

    - `measure`: "tokens", "cost" (in US dollars) or "calls".
    - `spent`: the usage of calls whose usage is known.
    - `in_doubt`: the upper bound of the usage of calls of which nobody knows whether they have to be paid.
    - `reserved`: the upper bound of the usage of calls in flight.
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
        """The usage that counts in the budget, including calls in doubt, without reservations."""
        return self.spent + self.in_doubt

    @property
    def part(self) -> float:
        """The fraction of the limit that is used. It is 1 if the limit is 0."""
        return float(self.used / self.limit) if self.limit else 1.0


class BudgetQuery(msgspec.Struct, frozen=True):
    """A query for the usage in a ledger.

    - `by`: the words that name the groups of rows (`rows.GROUPS`).
    - `since_ms`: the earliest time of the grouped rows, in milliseconds since 1970.
    - `days_since_s`: the earliest time of the rows that are summed by day, in seconds since 1970.
    """

    by: tuple[str, ...]
    since_ms: int = 0
    days_since_s: float = 0.0


class BudgetFacts(msgspec.Struct, frozen=True):
    """The budgets of a ledger and their usage.

    - `sums`: the sums by the groups of the query.
    - `days`: the sums by day.
    - `limits`: the limits of the budgets, or None if the ledger is read without the program that has the budgets.
    - `judged`: calls that were not simply allowed, the oldest first. Empty if `limits` is None.
    """

    sums: list[LedgerSum]
    days: list[LedgerSum]
    limits: list[LimitRecord] | None = None
    judged: list[JudgedCall] = []


async def budget_facts(ledger: Ledger, query: BudgetQuery) -> BudgetFacts:
    """Returns the budgets of a ledger and their usage. Must be called on the event loop of the ledger. Raises
    BudgetUnavailable if the owner of shared budgets does not answer.
    """
    used = await used_facts(ledger.writer, query)
    return msgspec.structs.replace(used, limits=await limit_records(ledger), judged=list(ledger.judged))


async def used_facts(writer: LedgerWriter, query: BudgetQuery) -> BudgetFacts:
    """Returns the usage in the rows that `writer` has stored, without budgets."""
    days = await writer.sums(["scope", "day"], round(query.days_since_s * 1000))
    return BudgetFacts(list(await writer.sums(query.by, query.since_ms)), list(days))


async def limit_records(ledger: Ledger) -> list[LimitRecord]:
    """Returns the limits of all budgets of a ledger. Must be called on the event loop of the ledger. Raises
    BudgetUnavailable if the owner of shared budgets does not answer.
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
    """Returns the part of `measure` that comes from calls in doubt. It is 0 for the measure "calls", because sums do
    not count calls in doubt separately.
    """
    if rows is None or measure == "calls":
        return Decimal(0)
    return Decimal(rows.doubt_tokens) if measure == "tokens" else rows.doubt_cost


def sum_facts(words: Sequence[str], found: LedgerSum) -> dict[str, Any]:
    """Returns one sum of ledger rows as a row of a table, by column: the values that these rows share, under the words by which the
    query groups (`words`, such as "scope" and "model"), and then the figures, from "calls" to "unpriced".
    """
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
