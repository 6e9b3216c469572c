"""The screens of the console: the facts that each one shows, and the actions that are open to a session that may act."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

from markupsafe import Markup

from sabot.api.settings import Settings
from sabot.checkpoint.inspection import SavepointRecord, copy_checkpoint
from sabot.checkpoint.places import Location
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import SabotError
from sabot.logs import LOG_LEVELS
from sabot.options import options_of
from sabot.plan import Plan
from sabot.plan.drawing import SHARES, svg
from sabot.redaction import redacted_url, scrubbed
from sabot.runtime.bottleneck import Cause, NarrowPlace, narrow_places
from sabot.web.access import ConsoleSession, Role
from sabot.web.charts import curve
from sabot.web.figures import FigureRings
from sabot.web.job_screens import JobReads, has_jobs
from sabot.web.kept import KeptCheckpoints
from sabot.web.log_ring import LogLine, LogRing, first_page, log_rows
from sabot.web.records import StepRecord, app_record, chosen, flat, folded, plan_figures, step_records
from sabot.web.texts import duration, nbytes, number

if TYPE_CHECKING:
    from sabot.app import App

Query: TypeAlias = Mapping[str, str]
Action: TypeAlias = Callable[[Mapping[str, str]], Awaitable[str]]
"""Does what a form asks for. Returns what was done, in words. Raises SabotError if it is not possible."""

_SHOWN = (
    "broker",
    "state",
    "checkpoint_dir",
    "checkpoint_interval",
    "parallelism",
    "memory_budget",
    "restart",
    "start",
    "until",
)

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
    "late_rows": "late",
    "dead_letters": "dead letters",
}


@dataclass(frozen=True)
class Screen:
    """A screen. `parts`: the names of its fragments. `facts`: the facts that these show. `more`: the facts of the rest of the
    page, which stay as they are until it is loaded again; None if there are none. `rows`: the rows of its table for CSV and JSON, or
    None if it has no table. `role`: "act" if it shows texts that can contain data, which sessions that may only read do not get.
    `listed`: True if the head of each page has a link to it.
    """

    title: str
    path: str
    parts: Sequence[str]
    facts: Callable[[Query], dict[str, Any]]
    more: Callable[[Query], Awaitable[dict[str, Any]]] | None = None
    rows: Callable[[Query], list[dict[str, Any]] | Awaitable[list[dict[str, Any]]]] | None = None
    role: Role = "read"
    listed: bool = True

    def open_to(self, session: ConsoleSession) -> bool:
        """Returns True if the session may see this screen."""
        return self.role in ("read", session.role)


class Screens:
    """The screens of a running app, and its actions. Used by the thread of the server."""

    def __init__(self, app: "App", figures: FigureRings, log: LogRing) -> None:
        self.app = app
        self._log = log
        self.figures = figures
        self._began = SYSTEM_CLOCK.time()
        self._known_plan: Plan | None = None
        self._kept = KeptCheckpoints(app)
        self._savepoint_at_stop: Location | None = None
        self._narrow_since: dict[tuple[str, Cause], float] = {}
        self.screens = {
            "app": Screen("App", "/", ("status", "narrow", "curves", "graph"), self._app_facts, self._settings),
            "steps": Screen("Steps", "/steps", ("steps",), self._steps_facts, self._steps_legend, self._steps_rows),
        }
        if self._kept.app is not None:
            self.screens["checkpoints"] = Screen(
                "Checkpoints",
                "/checkpoints",
                ("checkpoints",),
                self._checkpoints_facts,
                self._read_checkpoints,
                self._kept.rows,
            )
        jobs = JobReads(app) if has_jobs(app) else None
        if jobs is not None:
            self.screens["jobs"] = Screen("Jobs", "/jobs", (), _no_facts, jobs.list_facts, jobs.rows, role="act")
            self.screens["job"] = Screen("Job", "/job", (), _no_facts, jobs.job_facts, jobs.effect_rows, "act", False)
        self.screens["log"] = Screen(
            "Log", "/log", ("log",), self._log_facts, self._log_levels, self._log_rows, role="act"
        )
        self.actions: dict[str, Action] = {"stop": self._stop}
        if self._kept.app is not None:
            self.actions |= {
                "checkpoint": self._checkpoint,
                "savepoint": self._savepoint,
                "stop-with-savepoint": self._stop_with_savepoint,
            }

        if jobs is not None:
            self.actions |= {"cancel-job": jobs.cancel, "cancel-jobs": jobs.cancel_all, "signal-job": jobs.signal}

    # -- steps --------------------------------------------------------------------------------------------------------

    def _steps(self, query: Query) -> list[StepRecord]:
        steps = step_records(self.figures)
        shown = steps if query.get("subtasks") else folded(steps)
        return chosen(shown, query.get("q", ""), query.get("sort", ""))

    def _steps_facts(self, query: Query) -> dict[str, Any]:
        return {"steps": self._steps(query), "columns": _STEP_TITLES, "link": partial(_sorted_link, query)}

    async def _steps_legend(self, query: Query) -> dict[str, Any]:
        return {"states": SHARES}

    def _steps_rows(self, query: Query) -> list[dict[str, Any]]:
        return [flat(each) for each in self._steps(query)]

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _checkpoints_facts(self, query: Query) -> dict[str, Any]:
        statistics = self.figures.last.statistics["checkpoints"]
        self._kept.read_if_new(statistics["last_id"])
        return {
            "kept": list(reversed(self._kept.records)),
            "damaged": self._kept.damaged,
            "statistics": statistics,
            "error": scrubbed(statistics["last_error"]),
        }

    async def _read_checkpoints(self, query: Query) -> dict[str, Any]:
        return {"place": redacted_url(self._kept.place)}

    async def _checkpoint(self, form: Mapping[str, str]) -> str:
        taken = await self._kept.checkpoint()
        return f"Checkpoint {taken} is complete."

    async def _savepoint(self, form: Mapping[str, str]) -> str:
        made = await self._kept.savepoint()
        return f"Checkpoint {made.checkpoint} is kept in {redacted_url(made.savepoint)}"

    async def _stop_with_savepoint(self, form: Mapping[str, str]) -> str:
        place = self._savepoint_at_stop = self._kept.new_place()
        await self._stop(form)
        return f"The app stops. Its last checkpoint is then kept in {redacted_url(str(place))}"

    def after_run(self) -> SavepointRecord | None:
        """Makes the savepoint that was asked for with the stop, and returns it; None if none was. Called when the run has ended without
        an error, by any thread. Blocks. Raises SabotError.
        """
        place, app = self._savepoint_at_stop, self._kept.app
        return None if place is None or app is None else copy_checkpoint(app, place)

    # -- the log ------------------------------------------------------------------------------------------------------

    def _log_lines(self, query: Query) -> list[LogLine]:
        return self._log.lines(query.get("level", ""), query.get("q", ""))

    def _log_facts(self, query: Query) -> dict[str, Any]:
        lines = self._log_lines(query)
        return {"shown": first_page(lines), "found": len(lines)}

    async def _log_levels(self, query: Query) -> dict[str, Any]:
        return {"levels": LOG_LEVELS}

    def _log_rows(self, query: Query) -> list[dict[str, Any]]:
        return log_rows(self._log_lines(query))

    # -- the app ------------------------------------------------------------------------------------------------------

    def _app_facts(self, query: Query) -> dict[str, Any]:
        curves = self.figures.curves
        drawn = [
            curve(curves["rows"].fine, "rows/s", number, "15 min"),
            curve(curves["lag"].fine, "lag", number, "15 min"),
            curve(curves["watermark_lag"].fine, "watermark lag", duration, "15 min"),
            curve(curves["memory"].fine, "memory", nbytes, "15 min"),
        ]
        return {
            "record": app_record(self.app, self.figures, self._began),
            "places": self._narrow_places(),
            "known": self.figures.known,
            "curves": drawn,
            "graph": self._graph(),
        }

    def _narrow_places(self) -> list[tuple[NarrowPlace, float]]:
        """Returns at most three narrow places, the narrowest first, each with the time since when it is one."""
        before, now = self.figures.span
        places = narrow_places(before.statistics, now.statistics)[:3] if self.figures.known else []
        self._narrow_since = {
            (each.task, each.cause): self._narrow_since.get((each.task, each.cause), now.at) for each in places
        }
        return [(each, self._narrow_since[each.task, each.cause]) for each in places]

    def _graph(self) -> Markup:
        """Returns the plan with its figures as SVG, in which the drawing has escaped all names."""
        if self._known_plan is None:
            try:
                self._known_plan = self.app.plan()
            except SabotError as error:
                return Markup("<p>{}</p>").format(scrubbed(str(error)))
        return Markup(svg(self._known_plan, plan_figures(self.figures), title=self.app.id, styled=False))

    async def _settings(self, query: Query) -> dict[str, Any]:
        """Returns the settings that a reader may see: no settings of clients, and no passwords in addresses. `keeps`: True if the app keeps
        checkpoints.
        """
        settings, helps = self.app.settings, options_of(Settings)
        rows = []
        for name in _SHOWN:
            value = getattr(settings, name)
            text = redacted_url(value) if isinstance(value, str) else "" if value is None else repr(value)
            rows.append((name, scrubbed(text), helps[name].help))
        return {"settings": rows, "keeps": self._kept.app is not None}

    async def _stop(self, form: Mapping[str, str]) -> str:
        self.app.agent_runtime.runner.request_stop()
        return "The app stops: it takes a last checkpoint, and its process ends."


def _no_facts(query: Query) -> dict[str, Any]:
    return {}


def _sorted_link(query: Query, column: str) -> str:
    """Returns the address of the same table in the order of this column: the greatest first, or the least if it is so already."""
    order = column if query.get("sort") == f"-{column}" or column in ("step", "task") else f"-{column}"
    if query.get("sort") == order:
        order = f"-{column}"
    return "?" + urlencode({**query, "sort": order})
