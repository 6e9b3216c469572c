"""The screen of the budgets of an app: limits and their use, what was used by whom, and the calls that were not simply allowed.

A ledger belongs to the event loop of the app, so it is asked there: then a budget that several processes share has one face.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sabot.agents.accounts.contract import LedgerSum
from sabot.agents.accounts.ledger import Ledger
from sabot.agents.accounts.reads import LimitRecord, day_sums, limit_records, sum_facts
from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError
from sabot.web.charts import curve
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.texts import money, number

if TYPE_CHECKING:
    from sabot.app import App

_SECONDS = 5.0  # for the event loop of the app to answer
_DAYS = 30
_MOST_SUMS = 500  # rows of a table on a page
_MOST_CURVES = 6
_BY = {
    "scope, model": ("scope", "model"),
    "scope, tool": ("scope", "tool"),
    "scope, principal": ("scope", "principal"),
    "scope, day": ("scope", "day"),
    "job, model, tool": ("job", "model", "tool"),
}
_SPANS = {"1h": 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": _DAYS * 86_400}


class BudgetScreens:
    """The facts of the screen. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app

    def group(self) -> ScreenGroup:
        """Returns the screen, which shows names of people; none if the app has no budgets, or is no app of this process."""
        if self._app.live is None or not self._app.here or self._app.live.accounts is None:
            return ScreenGroup()
        return ScreenGroup({"budgets": Screen("Budgets", "/budgets", more=self._facts, rows=self._rows, role="act")})

    @property
    def _live(self) -> "App":
        assert self._app.live is not None  # without an app there is no such screen
        return self._app.live

    async def _facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the screen. Raises UserError if the app cannot be asked."""
        by, since = _by(query), _since(query)

        async def read(ledger: Ledger) -> tuple[list[LimitRecord], Sequence[LedgerSum], Sequence[LedgerSum]]:
            days = await day_sums(ledger, SYSTEM_CLOCK.time() - _DAYS * 86_400)
            return await limit_records(ledger), await ledger.writer.sums(_BY[by], since), days

        limits, sums, days = await self._asked(read)
        wanted = query.get("q", "").casefold()
        found = [each for each in sums if wanted in "\n".join(each.group).casefold()]
        ledger = self._live.accounts
        judged = (
            [] if ledger is None else [each for each in reversed(ledger.judged) if wanted in _words(each).casefold()]
        )
        return {
            "limits": [each for each in limits if wanted in each.scope.casefold()],
            "curves": _curves(days),
            "sums": found[:_MOST_SUMS],
            "found": len(found),
            "groups": _BY[by],
            "by": by,
            "choices": list(_BY),
            "spans": list(_SPANS),
            "judged": judged,
            "bars": _bars,
            "scrubbed": scrubbed,
            "at": SYSTEM_CLOCK.time(),
        }

    async def _rows(self, query: Query) -> Rows:
        if query.get("of") == "limits":
            return [_flat(asdict(each)) for each in await self._asked(limit_records)]
        by, since = _by(query), _since(query)

        async def read(ledger: Ledger) -> Sequence[LedgerSum]:
            return await ledger.writer.sums(_BY[by], since)

        return [sum_facts(_BY[by], each) for each in await self._asked(read)]

    async def _asked(self, read: Any) -> Any:
        """Returns what `read` returns of the app's ledger, called on the app's event loop. Raises UserError if that does not answer."""
        app = self._live
        ledger, loop = app.accounts, app.agent_runtime.runner.loop
        if ledger is None or loop is None or loop.is_closed():
            raise UserError("the app does not run now", hint="sabot budgets shows its budgets")
        asked = asyncio.run_coroutine_threadsafe(read(ledger), loop)
        try:
            async with asyncio.timeout(_SECONDS):
                return await asyncio.wrap_future(asked)
        except TimeoutError:
            asked.cancel()
            hint = "load the page again; the screen App shows what the event loop does"
            raise UserError(f"the app's event loop has not answered for {_SECONDS:g} s", hint=hint) from None


def _by(query: Query) -> str:
    return query["by"] if query.get("by") in _BY else next(iter(_BY))


def _since(query: Query) -> int:
    """Returns the earliest time of the rows, in milliseconds since 1970."""
    span = _SPANS.get(query.get("age", ""))
    return 0 if span is None else round((SYSTEM_CLOCK.time() - span) * 1000)


def _words(judged: Any) -> str:
    return "\n".join((judged.scope, judged.job, judged.principal, judged.name))


def _flat(limit: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each if isinstance(each, str | float) else str(each) for name, each in limit.items()}


def _bars(limit: LimitRecord) -> list[tuple[str, str, str]]:
    """Returns the parts of the bar of a limit, with their starts and widths, in hundredths of the limit."""
    parts, at = [], 0.0
    for name, amount in (("spent", limit.spent), ("doubt", limit.in_doubt), ("reserved", limit.reserved)):
        wide = min(100 - at, float(amount / limit.limit) * 100 if limit.limit else 100.0)
        if wide > 0:
            parts.append((name, f"{at:.1f}", f"{wide:.1f}"))
            at += wide
    return parts


def _curves(days: Sequence[LedgerSum]) -> list[Markup]:
    """Returns a curve of dollars, or of tokens where nothing has a price, for each of the scopes that have used most."""
    today = datetime.fromtimestamp(SYSTEM_CLOCK.time(), UTC).date()
    dates = [str(today - timedelta(days=_DAYS - 1 - each)) for each in range(_DAYS)]
    by_scope: dict[str, dict[str, LedgerSum]] = {}
    for each in days:
        by_scope.setdefault(each.group[0], {})[each.group[1]] = each
    priced = any(each.cost for each in days)

    def values(scope: str) -> list[float]:
        found = [by_scope[scope].get(date) for date in dates]
        return [
            0.0 if each is None else float(each.cost) if priced else float(each.input_tokens + each.output_tokens)
            for each in found
        ]

    most = sorted(by_scope, key=lambda scope: -sum(values(scope)))[:_MOST_CURVES]
    what = "dollars" if priced else "tokens"
    return [curve(values(each), f"{each}: {what} a day", money if priced else number, f"{_DAYS} days") for each in most]
