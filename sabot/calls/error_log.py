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
    """The errors of one class that were not logged yet."""

    logged_at: float
    count: int = 0
    last: str = ""


class ErrorLog:
    """A log of errors that is bounded in size. It logs the first error at each place of the program with the user's
    traceback. After that, for each class of errors, a line at most every EVERY_S seconds gives their number and the
    last one. Belongs to one thread.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        """`name`: the owner of the calls, as the log names it."""
        self._name = name
        self._clock = clock
        self._places: set[tuple[str, str, int]] = set()
        self._kinds: dict[str, _ErrorCount] = {}

    def add(self, error: BaseException, where: str, fate: str) -> None:
        """Logs or counts an error. `where`: the record or row. `fate`: what happens to it, such as "skipped"."""
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
        """Logs the errors that were only counted. Called at the end."""
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
    """Returns the class of an error, and the file and line of the innermost frame."""
    if trace is None:
        return name, "", 0
    while trace.tb_next is not None:
        trace = trace.tb_next
    return name, trace.tb_frame.f_code.co_filename, trace.tb_lineno
