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
from sabot.base.quantities import plain


@dataclass(frozen=True, slots=True)
class LimitRecord:
    """A limit of a budget, and how much of it is used in the current window (hour, day or month).

    - `measure`: "tokens", "cost" (in US dollars) or "calls".
    - `spent`: the usage of calls whose usage is known. For the measure "calls" it is the number of all calls.
    - `in_doubt`: the most that may have been used by calls whose outcome is not known. The provider may charge for
      them. It is 0 for the measure "calls".
    - `reserved`: the most that may be used by calls that have no result yet.
    - `began`: the time at which the window began, in seconds since 1970.
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
        """The usage that is counted against the limit: `spent` plus `in_doubt`. Reservations are not included."""
        return self.spent + self.in_doubt

    @property
    def part(self) -> float:
        """The fraction of the limit that is used. It is 1 if the limit is 0."""
        return float(self.used / self.limit) if self.limit else 1.0


class BudgetQuery(msgspec.Struct, frozen=True):
    """The parameters for a report of the usage in a ledger.

    - `by`: the columns by which rows are grouped, for example "scope" and "model" (`rows.GROUPS` has all names).
    - `since_ms`: the time from which rows are counted in the totals of these groups, in milliseconds since 1970.
    - `days_since_s`: the time from which rows are counted in the totals by day, in seconds since 1970.
    """

    by: tuple[str, ...]
    since_ms: int = 0
    days_since_s: float = 0.0


class BudgetFacts(msgspec.Struct, frozen=True):
    """A report of the usage in a ledger and of its budgets.

    - `sums`: the totals by the columns of the query (`BudgetQuery.by`).
    - `days`: the totals by scope and day.
    - `limits`: the limits of the budgets, or None if the report was made from the stored rows only, because the
      budgets are known only to the program that uses the ledger.
    - `judged`: the last calls for which the decision was not ALLOW, the oldest first. Empty if `limits` is None.
    """

    sums: list[LedgerSum]
    days: list[LedgerSum]
    limits: list[LimitRecord] | None = None
    judged: list[JudgedCall] = []


async def budget_facts(ledger: Ledger, query: BudgetQuery) -> BudgetFacts:
    """Returns a report of the usage and the budgets of a ledger. `query` selects and groups the rows. Must be called
    on the event loop of the ledger. Raises BudgetUnavailable if a shared budget cannot be read.
    """
    used = await used_facts(ledger.writer, query)
    return msgspec.structs.replace(used, limits=await limit_records(ledger), judged=list(ledger.judged))


async def used_facts(writer: LedgerWriter, query: BudgetQuery) -> BudgetFacts:
    """Returns a report of the usage in the rows that `writer` has stored. It contains no budgets: `limits` is None.
    `query` selects and groups the rows.
    """
    days = await writer.sums(["scope", "day"], round(query.days_since_s * 1000))
    return BudgetFacts(list(await writer.sums(query.by, query.since_ms)), list(days))


async def limit_records(ledger: Ledger) -> list[LimitRecord]:
    """Returns a record for each limit of the budgets of a ledger (`Ledger.budgets_in_use`). Called on its event loop.
    Raises BudgetUnavailable if a shared budget cannot be read.
    """
    doubts: dict[Window, dict[str, LedgerSum]] = {}
    found = []
    for budget in await ledger.budgets_in_use():
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
    """Returns the part of these totals that comes from calls whose outcome is not known: their tokens if `measure` is
    "tokens", or their cost if it is "cost". Returns 0 for the measure "calls", because LedgerSum does not contain the
    number of these calls. Returns 0 if `rows` is None.
    """
    if rows is None or measure == "calls":
        return Decimal(0)
    return Decimal(rows.doubt_tokens) if measure == "tokens" else rows.doubt_cost


def sum_facts(words: Sequence[str], found: LedgerSum) -> dict[str, Any]:
    """Converts the totals of a group to a dict of columns. The first columns are the names in `words`, by which the
    rows were grouped (for example "scope" and "model"), with the values of the group. Then follow the totals:
    "calls", "read" (input tokens), "written" (output tokens), "in_doubt", "cost", "cost_in_doubt" and "unpriced".
    """
    return {
        **dict(zip(words, found.group, strict=True)),
        "calls": found.calls,
        "read": found.input_tokens,
        "written": found.output_tokens,
        "in_doubt": found.doubt_tokens,
        "cost": plain(found.cost),
        "cost_in_doubt": plain(found.doubt_cost),
        "unpriced": found.unpriced,
    }
