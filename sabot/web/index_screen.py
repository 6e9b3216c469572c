"""The screen above several apps: one row for each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sabot.engine.runtime.watch.figure_rings import FigureRings
from sabot.web.records import AppRecord, app_record
from sabot.web.screen import Query, Rows, Screen, ScreenGroup
from sabot.web.screens import Screens
from sabot.web.shown import PageHead, ShownApp


@dataclass(frozen=True)
class _IndexHead(PageHead):
    """The head of the index."""

    id: str
    figures: FigureRings

    def notice(self) -> str:
        return ""


def index_of(title: str, apps: Mapping[str, ShownApp]) -> Screens:
    """Returns the screens of the index. `apps`: by the path below which each is."""

    def records(query: Query) -> list[tuple[str, AppRecord]]:
        wanted = query.get("q", "").casefold()
        found = [(root, app_record(app.id, app.run(), app.figures)) for root, app in apps.items()]
        return [(root, each) for root, each in found if wanted in f"{each.id}\n{each.state}".casefold()]

    def facts(query: Query) -> dict[str, Any]:
        return {"apps": records(query)}

    def rows(query: Query) -> Rows:
        return [asdict(each) for _, each in records(query)]

    screen = Screen("Apps", "/", ("apps",), facts, rows=rows)
    return Screens(_IndexHead(title, FigureRings(dict)), [ScreenGroup({"apps": screen})])
