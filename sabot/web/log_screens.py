"""The screen of the last lines of the log."""

from typing import Any

from sabot.base.logs import LOG_LEVELS
from sabot.engine.runtime.watch.log_ring import LogLine, LogRing, first_page, log_rows
from sabot.web.screen import Query, Rows, Screen, ScreenGroup


class LogScreens:
    """The facts of the screen of the log. Used by the thread of the server."""

    def __init__(self, log: LogRing) -> None:
        self._log = log

    def group(self) -> ScreenGroup:
        """Returns the screen, which shows texts that can contain data."""
        screen = Screen("Log", "/log", ("log",), self._log_facts, self._log_levels, self._log_rows, role="act")
        return ScreenGroup({"log": screen})

    def _log_lines(self, query: Query) -> list[LogLine]:
        return self._log.lines(query.get("level", ""), query.get("q", ""))

    def _log_facts(self, query: Query) -> dict[str, Any]:
        lines = self._log_lines(query)
        return {"shown": first_page(lines), "found": len(lines)}

    async def _log_levels(self, query: Query) -> dict[str, Any]:
        return {"levels": LOG_LEVELS}

    def _log_rows(self, query: Query) -> Rows:
        return log_rows(self._log_lines(query))
