"""The screen of the budgets of an app: limits and their use, what was used by whom, and the calls that were not simply allowed.

A ledger belongs to the event loop of the app, so it is asked there, also that of an app in another process: then a budget that several
processes share has one face. The rows of a ledger in a state directory are there without the app too.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup

from sabot.agents.accounts.contract import LedgerSum
from sabot.agents.accounts.reads import BudgetFacts, BudgetQuery, LimitRecord, budget_facts, sum_facts, used_facts
from sabot.agents.accounts.rows import DATABASE, SqliteLedgerWriter
from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import UserError
from sabot.web.charts import curve
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.texts import money, number

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
        """Returns the screen, which shows names of people; none if the app has no budgets, or nothing is known of them."""
        app = self._app
        if app.live is None if app.here else app.jobs is None and self._file is None:
            return ScreenGroup()
        if app.here and app.live is not None and app.live.accounts is None:
            return ScreenGroup()
        return ScreenGroup({"budgets": Screen("Budgets", "/budgets", more=self._facts, rows=self._rows, role="act")})

    @property
    def _file(self) -> Path | None:
        """The ledger in the state directory, if there is one."""
        file = None if self._app.state is None else self._app.state / DATABASE
        return file if file is not None and file.is_file() else None

    async def _facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the screen. Raises UserError if the app cannot be asked."""
        by, since = _by(query), _since(query)

        used = await self._asked(BudgetQuery(_BY[by], since, SYSTEM_CLOCK.time() - _DAYS * 86_400))
        wanted = query.get("q", "").casefold()
        found = [each for each in used.sums if wanted in "\n".join(each.group).casefold()]
        return {
            "limits": [each for each in used.limits or () if wanted in each.scope.casefold()],
            "asked": used.limits is not None,
            "workers": len(self._app.figures.last.figures.workers),
            "curves": _curves(used.days),
            "sums": found[:_MOST_SUMS],
            "found": len(found),
            "groups": _BY[by],
            "by": by,
            "choices": list(_BY),
            "spans": list(_SPANS),
            "judged": [each for each in reversed(used.judged) if wanted in _words(each).casefold()],
            "bars": _bars,
            "scrubbed": scrubbed,
            "at": SYSTEM_CLOCK.time(),
        }

    async def _rows(self, query: Query) -> Rows:
        by = _by(query)
        used = await self._asked(BudgetQuery(_BY[by], _since(query), SYSTEM_CLOCK.time()))
        if query.get("of") == "limits":
            return [_flat(asdict(each)) for each in used.limits or ()]
        return [sum_facts(_BY[by], each) for each in used.sums]

    async def _asked(self, query: BudgetQuery) -> BudgetFacts:
        """Returns what the app's ledger says, or the file of the ledger if the app does not run. Raises UserError if neither is there."""
        app = self._app
        if app.here:
            return await self._asked_here(query)
        if not app.refusal():
            answer = await app.ask({"budgets": msgspec.to_builtins(query)}, _SECONDS)
            return msgspec.convert(answer, BudgetFacts)
        if self._file is None:
            raise UserError(
                "the budgets of the app are known only while it runs: its ledger is not in a state directory that is known here",
                hint="sabot ledger PLACE sums up a ledger in PostgreSQL",
            )
        writer = SqliteLedgerWriter(self._file)
        try:
            return await used_facts(writer, query)
        finally:
            await writer.close()

    async def _asked_here(self, query: BudgetQuery) -> BudgetFacts:
        """Asks on the event loop of an app of this process. Raises UserError if that does not answer."""
        app = self._app.live
        assert app is not None  # it is here
        ledger, loop = app.accounts, app.agent_runtime.runner.status.loop
        if ledger is None or loop is None or loop.is_closed():
            raise UserError("the app does not run now", hint="sabot budgets shows its budgets")
        asked = asyncio.run_coroutine_threadsafe(budget_facts(ledger, query), loop)
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


def _flat(limit: Mapping[str, Any]) -> dict[str, str | float]:
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
