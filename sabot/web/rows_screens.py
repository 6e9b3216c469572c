"""The screen of the rows behind a step: the last of them, copied while somebody looks."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sabot.base.redaction import scrubbed
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.runtime.tasks.taps import LEASE_SECONDS, ROWS_A_SECOND, TapPoint, plain_rows
from sabot.errors import UserError
from sabot.web.payloads import Payloads
from sabot.web.records import StepRecord, folded, step_records, tap_points
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

_MOST_SHOWN = 50
_ASK_SECONDS = 10.0  # for an app of another process to answer
_AT_MOST_EACH = 0.5  # seconds between two reads of one point, however many look


@dataclass
class PointView:
    """The last rows that passed a point. `columns`: the names of the columns of the newest ones. `rows`: the newest first, the part of
    each row that may be shown, by column. `asked_at`: the steady time of the last read. `asking`: the last read of an app in another
    process. `problem`: the reason why it has not answered, or "".
    """

    columns: Sequence[str] = ()
    rows: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=_MOST_SHOWN))
    copied: int = 0
    asked_at: float = -LEASE_SECONDS
    newest_at: float | None = None
    asking: "asyncio.Task[None] | None" = None
    problem: str = ""

    def add(self, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], payloads: Payloads, now: float) -> None:
        """Adds copied rows, at most 50 of them. `now`: seconds since 1970."""
        self.problem = ""
        if not columns:
            return
        self.columns = columns
        for row in rows:
            self.rows.appendleft({name: _shown(value, name, payloads) for name, value in row.items()})
        self.copied += len(rows)
        self.newest_at = now


class RowsScreens:
    """The facts of the screen of rows. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._views: dict[TapPoint, PointView] = {}

    def group(self) -> ScreenGroup:
        """Returns the screen; none if the app has no streams, or cannot be asked from here."""
        live = self._app.live
        if not self._app.here:
            if self._app.checkpoints is None:
                return ScreenGroup()
        elif live is None or not live.spec.ends:
            return ScreenGroup()
        screen = Screen("Rows", "/rows", ("rows",), self._facts, self._more, self._rows, role="act")
        return ScreenGroup({"rows": screen})

    def _view(self, query: Query) -> PointView | None:
        """Returns the rows of the point that the query names, with those that have come since the last call; None without such a point."""
        point, now = TapPoint(query.get("of", ""), query.get("branch", "")), SYSTEM_CLOCK.monotonic()
        if point not in tap_points(self._app.figures):
            return None
        self._views = {name: each for name, each in self._views.items() if now - each.asked_at <= LEASE_SECONDS}
        view = self._views.setdefault(point, PointView())
        if now - view.asked_at >= _AT_MOST_EACH:
            view.asked_at = now
            if self._app.here and self._app.live is not None:
                copies = plain_rows(self._app.live.agent_runtime.runner.watch.tap(point))
                view.add(*copies, self._app.payloads, SYSTEM_CLOCK.time())
            elif view.asking is None or view.asking.done():  # its answer is on the page of the next second
                view.asking = asyncio.get_running_loop().create_task(self._ask(view, point))
        return view

    async def _ask(self, view: PointView, point: TapPoint) -> None:
        """Adds the rows that an app of another process has copied since the last time."""
        try:
            if self._app.refusal():
                raise UserError("the app does not run on this machine: only running streams have rows")
            answer = await self._app.ask({"rows": list(point)}, _ASK_SECONDS)
        except UserError as error:
            view.problem = scrubbed(str(error))
            return
        view.add(answer["columns"], answer["rows"], self._app.payloads, SYSTEM_CLOCK.time())

    def _facts(self, query: Query) -> dict[str, Any]:
        payloads, view = self._app.payloads, self._view(query)
        hidden = [] if view is None else [name for name in view.columns if not payloads.shows(name)]
        return {"view": view, "hidden": hidden, "chosen": bool(query.get("of")), "late": self._late(query)}

    def _late(self, query: Query) -> StepRecord | None:
        """Returns the figures of the step if the rows are its late ones, which do not say how late they were."""
        if not query.get("branch", "").startswith("late"):
            return None
        steps = folded(step_records(self._app.figures))
        return next((each for each in steps if each.step == query.get("of") and each.late_most is not None), None)

    async def _more(self, query: Query) -> dict[str, Any]:
        points = tap_points(self._app.figures)
        self._check(query, points)
        return {"points": points, "rate": ROWS_A_SECOND}

    def _check(self, query: Query, points: Mapping[TapPoint, str]) -> None:
        """Raises UserError if the query names no step of the streams that run now."""
        if points and query.get("of") and TapPoint(query["of"], query.get("branch", "")) not in points:
            raise UserError("the streams of the app have no such step now", hint="the screen Rows lists them")

    def _rows(self, query: Query) -> Rows:
        self._check(query, tap_points(self._app.figures))
        view = self._view(query)
        return [] if view is None else list(map(dict, view.rows))


def _shown(value: Any, name: str, payloads: Payloads) -> str:
    """Returns the value of a column as text, as far as it may be shown."""
    if payloads.shows(name):
        return payloads.cell(value, name)
    inside = payloads.shown(value) if isinstance(value, dict | list) else None
    return "" if inside is None else ", ".join(f"{each}: {text}" if each else text for each, text in inside.fields)
