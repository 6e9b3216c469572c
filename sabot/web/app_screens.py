"""The screens App and Steps: what a running app does now, and where its time goes."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from sabot.base.figures import STEP_COUNTS
from sabot.base.redaction import scrubbed
from sabot.engine.plan.drawing import SHARE_WORDS
from sabot.engine.plan.drawing.render import render
from sabot.engine.runtime.tasks.taps import TapPoint
from sabot.engine.runtime.watch.bottleneck import Cause, NarrowPlace, in_one_process, narrow_places
from sabot.errors import SabotError, UserError
from sabot.web.charts import curve
from sabot.web.records import (
    StepRecord,
    app_record,
    chosen,
    flat,
    folded,
    plan_figures,
    source_records,
    step_records,
    tap_points,
)
from sabot.web.screen import BY, Query, Rows, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.stack_screens import has_stacks
from sabot.web.texts import counted, duration, nbytes, number

_EVENTS = {  # failed checkpoints are on their own screen
    "start": "started",
    "restart": "restarted",
    "rescale": "rescaled",
    "killed": "killed",
    "failed": "failed",
}
_MOST_EVENTS = 20
_MOST_WORKERS = 1_000
_RESCALE_SECONDS = 100.0

_STEP_TITLES = {  # of the columns of the table of steps, by the name in the record
    "step": "step",
    "task": "task",
    "busy": "task's time",
    "seconds": "own time",
    "rows_per_second": "rows/s",
    "rows_in": "rows in",
    "rows_out": "rows out",
    "skew": "skew",
    "behind": "behind",
    "fill": "input full",
    "queue": "queue",
    "lag": "lag",
    "state_keys": "keys",
    "state_bytes": "state",
    **{each.column: each.title for each in STEP_COUNTS},
}


class AppScreens:
    """The facts of the screens App and Steps, and the action that stops the app. Used by the thread of the server."""

    def __init__(self, app: ShownApp) -> None:
        self._app = app
        self._figures = app.figures
        self._narrow_since: dict[tuple[str, Cause], float] = {}

    def group(self) -> ScreenGroup:
        """Returns both screens and their actions."""
        screens = {
            "app": Screen(
                "App",
                "/",
                ("status", "narrow", "curves", "graph", "events", "actions"),
                self._app_facts,
                self._settings,
            ),
            "steps": Screen("Steps", "/steps", ("steps",), self._steps_facts, self._steps_legend, self._steps_rows),
        }
        return ScreenGroup(screens, {"stop": self.stop, "rescale": self._rescale})

    def _app_facts(self, query: Query) -> dict[str, Any]:
        curves = self._figures.curves
        drawn = [
            curve(curves["rows"].fine, "rows read/s", number, "15 min"),
            curve(curves["lag"].fine, "lag", number, "15 min"),
            curve(curves["watermark_lag"].fine, "watermark lag", duration, "15 min"),
            curve(curves["memory"].fine, "memory", nbytes, "15 min"),
        ]
        run = self._app.run()
        kinds = Counter(each.kind for each in run.events)
        begun = next((each for each in reversed(run.events) if each.kind in ("start", "restart", "rescale")), None)
        return {
            "record": app_record(self._app.id, run, self._figures),
            "anew": None if begun is None or begun.kind == "start" else begun,  # since then streams count from 0
            "earlier": run.restarts > 0 or kinds["start"] > 1,
            "killed": kinds["killed"],
            "sources": source_records(self._figures),
            "of_servers": self._figures.last.figures.of_servers,
            "agents": bool(self._figures.last.figures.agents),
            "places": self._narrow_places(),
            "known": self._figures.known,
            "curves": drawn,
            "graph": self._graph,
            "events": [each for each in reversed(run.events) if each.kind in _EVENTS][:_MOST_EVENTS],
            "event_words": _EVENTS,
            "keeps": self._app.checkpoints is not None,
            "refusal": self._app.refusal(),
            "workers": len(self._figures.last.figures.workers),
            "program": self._app.start_words(),
            "start": self._app.start_command,
            "one_process": in_one_process(self._figures.last.figures),
        }

    def _narrow_places(self) -> list[tuple[NarrowPlace, float]]:
        """Returns at most three narrow places, the narrowest first, each with the time since when it is one."""
        before, now = self._figures.span
        places = narrow_places(before.figures, now.figures)[:3] if self._figures.known else []
        self._narrow_since = {
            (each.task, each.cause): self._narrow_since.get((each.task, each.cause), now.at) for each in places
        }
        return [(each, self._narrow_since[each.task, each.cause]) for each in places]

    def _graph(self, rows: str) -> Markup:
        """Returns the plan with its figures as SVG, in which the drawing has escaped all names. `rows`: the address of the screen of rows,
        to which links and steps lead, or "".
        """
        try:
            tasks = self._app.tasks()
        except SabotError as error:
            return Markup("<p>{}</p>").format(scrubbed(str(error)))
        points = tap_points(self._figures) if rows else {}

        def address(origin: str, branch: str) -> str:
            query = urlencode({"of": origin, "branch": branch})
            return f"{rows}?{query}" if TapPoint(origin, branch) in points else ""

        figures = plan_figures(self._figures)
        return Markup(render(tasks, figures, title=self._app.id, styled=False, address=address if points else None))

    async def _settings(self, query: Query) -> dict[str, Any]:
        return {"settings": self._app.settings(), "guarantees": self._app.guarantees()}

    async def stop(self, form: Mapping[str, str]) -> str:
        """Stops the app in good order."""
        await self._app.stop(form[BY])
        return "The app stops: it takes a last checkpoint, and its process ends."

    async def _rescale(self, form: Mapping[str, str]) -> str:
        """Gives the app the number of workers of the form. Raises UserError."""
        wanted = form.get("workers", "")
        count = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) <= 6 else 0
        if not 1 <= count <= _MOST_WORKERS:
            raise UserError(f"{wanted[:20]!r} is no number of workers", hint=f"give 1 to {_MOST_WORKERS:,}")
        answer = await self._app.ask({"rescale": count}, _RESCALE_SECONDS)
        return f"The app has {counted(len(answer['workers']), 'worker')}."

    # -- steps --------------------------------------------------------------------------------------------------------

    def _steps(self, query: Query) -> list[StepRecord]:
        steps = step_records(self._figures)
        shown = steps if query.get("subtasks") else folded(steps)
        return chosen(shown, query.get("q", ""), query.get("sort", ""))

    def _steps_facts(self, query: Query) -> dict[str, Any]:
        return {
            "steps": self._steps(query),
            "columns": _STEP_TITLES,
            "sampled": has_stacks(self._app),
            "link": partial(_sorted_link, query),
        }

    async def _steps_legend(self, query: Query) -> dict[str, Any]:
        return {"states": SHARE_WORDS}

    def _steps_rows(self, query: Query) -> Rows:
        return [flat(each) for each in self._steps(query)]


def _sorted_link(query: Query, column: str) -> str:
    """Returns the address of the same table in the order of this column: the greatest first, or the least if it is so already."""
    order = column if query.get("sort") == f"-{column}" or column in ("step", "task") else f"-{column}"
    if query.get("sort") == order:
        order = f"-{column}"
    return "?" + urlencode({**query, "sort": order})
