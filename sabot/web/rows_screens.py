"""The screen of the rows behind a step: the last of them, copied while somebody looks."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sabot.base.arrays import shown
from sabot.clock import SYSTEM_CLOCK
from sabot.codecs.records import text_or_hex
from sabot.runtime.taps import LEASE_SECONDS, ROWS_A_SECOND, TapPoint
from sabot.web.payloads import Payloads
from sabot.web.records import StepRecord, folded, step_records, tap_points
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp

_MOST_SHOWN = 50
_MOST_COLUMNS = 100
_AT_MOST_EACH = 0.5  # seconds between two reads of one point, however many look


@dataclass
class PointView:
    """The last rows that passed a point. `columns`: the names of the columns of the newest ones. `rows`: the newest first, the part of
    each row that may be shown, by column. `asked_at`: the steady time of the last read.
    """

    columns: Sequence[str] = ()
    rows: deque[dict[str, str]] = field(default_factory=lambda: deque(maxlen=_MOST_SHOWN))
    copied: int = 0
    asked_at: float = -LEASE_SECONDS
    newest_at: float | None = None

    def add(self, batches: Sequence[pa.RecordBatch], payloads: Payloads, now: float) -> None:
        """Adds copied rows, at most 50 of them. `now`: seconds since 1970."""
        for batch in batches:
            self.columns = [str(name) for name in batch.schema.names[:_MOST_COLUMNS]]
            values = [_values(batch.column(at)) for at in range(len(self.columns))]
            for row in zip(*values, strict=True) if values else []:
                pairs = zip(self.columns, row, strict=True)
                self.rows.appendleft({name: _shown(value, name, payloads) for name, value in pairs})
            self.copied += batch.num_rows
            self.newest_at = now


class RowsScreens:
    """The facts of the screen of rows. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._views: dict[TapPoint, PointView] = {}

    def group(self) -> ScreenGroup:
        """Returns the screen; none if the app does not run in this process, or has no streams."""
        live = self._app.live
        if live is None or not self._app.here or not live.agent_runtime.writes:
            return ScreenGroup()
        screen = Screen("Rows", "/rows", ("rows",), self._facts, self._more, self._rows, role="act")
        return ScreenGroup({"rows": screen})

    def _view(self, query: Query) -> PointView | None:
        """Returns the rows of the point that the query names, with those that have come since the last call; None without such a point."""
        point, now = TapPoint(query.get("of", ""), query.get("branch", "")), SYSTEM_CLOCK.monotonic()
        if self._app.live is None or point not in tap_points(self._app.figures):
            return None
        self._views = {name: each for name, each in self._views.items() if now - each.asked_at <= LEASE_SECONDS}
        view = self._views.setdefault(point, PointView())
        if now - view.asked_at >= _AT_MOST_EACH:
            view.asked_at = now
            view.add(self._app.live.agent_runtime.runner.tap(point), self._app.payloads, SYSTEM_CLOCK.time())
        return view

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
        return {"points": tap_points(self._app.figures), "rate": ROWS_A_SECOND}

    def _rows(self, query: Query) -> Rows:
        view = self._view(query)
        return [] if view is None else list(map(dict, view.rows))


def _values(column: pa.Array) -> list[Any]:
    """Returns the values of a column. Times outside the range of Python's become texts."""
    try:
        return [text_or_hex(value) if isinstance(value, bytes) else value for value in column.to_pylist()]
    except (OverflowError, ValueError):
        return [shown(each) for each in column]


def _shown(value: Any, name: str, payloads: Payloads) -> str:
    """Returns the value of a column as text, as far as it may be shown."""
    if payloads.shows(name):
        return payloads.cell(value, name)
    inside = payloads.shown(value) if isinstance(value, dict | list) else None
    return "" if inside is None else ", ".join(f"{each}: {text}" if each else text for each, text in inside.fields)
