"""The screens of the console: the facts that each one shows, and the actions that are open to a session that may act."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from markupsafe import Markup

from sabot.api.settings import Settings
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import SabotError
from sabot.options import options_of
from sabot.plan import Plan
from sabot.plan.drawing import svg
from sabot.redaction import redacted_url, scrubbed
from sabot.web.charts import curve
from sabot.web.figures import FigureRings
from sabot.web.records import app_record, plan_figures
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


@dataclass(frozen=True)
class Screen:
    """A screen. `parts`: the names of its fragments. `facts`: the facts that these show. `more`: the facts of the rest of the
    page, which stay as they are until it is loaded again; None if there are none.
    """

    title: str
    path: str
    parts: Sequence[str]
    facts: Callable[[Query], dict[str, Any]]
    more: Callable[[Query], Awaitable[dict[str, Any]]] | None = None


class Screens:
    """The screens of a running app, and its actions. Used by the thread of the server."""

    def __init__(self, app: "App", figures: FigureRings) -> None:
        self.app = app
        self.figures = figures
        self._began = SYSTEM_CLOCK.time()
        self._known_plan: Plan | None = None
        self.screens = {
            "app": Screen("App", "/", ("status", "curves", "graph"), self._app_facts, self._settings),
        }
        self.actions: dict[str, Action] = {"stop": self._stop}

    # -- the app ------------------------------------------------------------------------------------------------------

    def _app_facts(self, query: Query) -> dict[str, Any]:
        curves = self.figures.curves
        drawn = [
            curve(curves["rows"].fine, "rows/s", number, "15 min"),
            curve(curves["lag"].fine, "lag", number, "15 min"),
            curve(curves["watermark_lag"].fine, "watermark lag", duration, "15 min"),
            curve(curves["memory"].fine, "memory", nbytes, "15 min"),
        ]
        return {"record": app_record(self.app, self.figures, self._began), "curves": drawn, "graph": self._graph()}

    def _graph(self) -> Markup:
        """Returns the plan with its figures as SVG, in which the drawing has escaped all names."""
        if self._known_plan is None:
            try:
                self._known_plan = self.app.plan()
            except SabotError as error:
                return Markup("<p>{}</p>").format(scrubbed(str(error)))
        return Markup(svg(self._known_plan, plan_figures(self.figures), title=self.app.id, styled=False))

    async def _settings(self, query: Query) -> dict[str, Any]:
        """Returns the settings that a reader may see: no settings of clients, and no passwords in addresses."""
        settings, helps = self.app.settings, options_of(Settings)
        rows = []
        for name in _SHOWN:
            value = getattr(settings, name)
            text = redacted_url(value) if isinstance(value, str) else "" if value is None else repr(value)
            rows.append((name, scrubbed(text), helps[name].help))
        return {"settings": rows}

    async def _stop(self, form: Mapping[str, str]) -> str:
        self.app.agent_runtime.runner.request_stop()
        return "The app stops: it takes a last checkpoint, and its process ends."
