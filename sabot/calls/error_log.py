"""Errors of the user's calls, told in the log though the app goes on."""

import logging
from dataclasses import dataclass
from types import TracebackType

from sabot.clock import Clock
from sabot.errors import message_of
from sabot.logs import users_part, warn_of_users_error
from sabot.redaction import scrubbed

_log = logging.getLogger(__name__)

EVERY_S = 10.0  # at most one line of a kind of error in so many seconds
_PLACES = 100  # of so many places the traceback is told


@dataclass
class _ErrorCount:
    """What was not told yet of a class of errors."""

    logged_at: float
    count: int = 0
    last: str = ""


class ErrorLog:
    """The first error that is raised at a place of the program is told with the user's traceback; of each class of errors after that a line
    in some seconds says how many there were, and the last one. One thread owns it.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        """name: whose calls they are, as the log says it."""
        self._name = name
        self._clock = clock
        self._places: set[tuple[str, str, int]] = set()
        self._kinds: dict[str, _ErrorCount] = {}

    def add(self, error: BaseException, where: str, fate: str) -> None:
        """where: the record or row. fate: what becomes of it."""
        name, own = scrubbed(type(error).__name__), users_part(error.__traceback__)
        said = f"{name}: {scrubbed(message_of(error))}; {where}; {fate}"
        place, now = _place(name, own), self._clock.monotonic()
        kind = self._kinds.setdefault(name, _ErrorCount(now))
        if place not in self._places and len(self._places) < _PLACES:
            self._places.add(place)
            warn_of_users_error(_log, error, "%s: %s", self._name, said)
            return
        kind.count += 1
        kind.last = said
        if now - kind.logged_at >= EVERY_S:
            self._log_count(name, kind, now)

    def flush(self) -> None:
        """At the end: what was not told yet."""
        for name, kind in self._kinds.items():
            if kind.count:
                self._log_count(name, kind, self._clock.monotonic())

    def _log_count(self, name: str, kind: _ErrorCount, now: float) -> None:
        _log.warning(
            "%s: %d more errors %s in %.0f s, the last one: %s",
            *(self._name, kind.count, name, now - kind.logged_at, kind.last),
        )
        kind.logged_at, kind.count = now, 0


def _place(name: str, trace: TracebackType | None) -> tuple[str, str, int]:
    """The class of an error, and the innermost line."""
    if trace is None:
        return name, "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return name, trace.tb_frame.f_code.co_filename, trace.tb_lineno
