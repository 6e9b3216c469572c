"""Logs errors of the user's calls in apps that go on after them."""

import logging
from dataclasses import dataclass
from types import TracebackType

from sabot.base.logs import users_part, warn_of_users_error
from sabot.base.redaction import scrubbed
from sabot.clock import Clock
from sabot.errors import message_of

_log = logging.getLogger(__name__)

EVERY_S = 10.0  # the shortest interval in seconds between two lines about a class of errors
_PLACES = 100  # the number of places whose traceback is logged


@dataclass
class _ErrorCount:
    """The errors of one class that were counted and not logged yet: their number, the text of the newest one, and the
    time at which a line about this class was last logged.
    """

    logged_at: float
    count: int = 0
    last: str = ""


class ErrorLog:
    """A log of the errors of calls, whose size is bounded. The first error at each place of the user's program is
    logged with its traceback, up to a number of places. All other errors are only counted: for each class of errors,
    at most every EVERY_S seconds, one line is logged with the number of its errors since the last line and the text
    of the newest one. Belongs to one thread.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        """Makes a log. `name`: the owner of the calls, such as "agent shop.check", with which each line begins."""
        self._name = name
        self._clock = clock
        self._places: set[tuple[str, str, int]] = set()
        self._kinds: dict[str, _ErrorCount] = {}

    def add(self, error: BaseException, where: str, fate: str) -> None:
        """Logs an error, or only counts it (see the class). `where`: a text that names the record or the row of the
        failed call. `fate`: a text that says what happens to that record or row, such as "skipped".
        """
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
        """Logs, for each class of errors, the errors that were counted and not logged yet. The owner calls this when
        it makes no more calls.
        """
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
    """Returns the place of an error: the name of its class, and the file and the line of the innermost frame of its
    traceback. Without a traceback, the file is "" and the line is 0.
    """
    if trace is None:
        return name, "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return name, trace.tb_frame.f_code.co_filename, trace.tb_lineno
