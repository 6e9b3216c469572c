"""Counts of dead letters by reason, for figures, and the log's lines about them."""

import logging
import re

from sabot.base.logs import warn_of_users_error
from sabot.base.quantities import counted_words
from sabot.base.stored_names import stored_name
from sabot.clock import Clock

_log = logging.getLogger(__name__)

_REASONS, _REASON_CHARACTERS = 16, 100
_EVERY_S = 60.0  # the least time between two lines of the log about the dead letters of one place
_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*")


def reason_in(text: str) -> str:
    """Returns a text that Sabot has made about a record as a reason: without numbers and quoted values."""
    return _VALUES.sub("…", text)[:_REASON_CHARACTERS]


class ReasonCounts:
    """The number of dead letters by reason, for figures. One thread adds; any thread may read."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, error: BaseException | str | tuple[str, str], count: int = 1) -> None:
        """Counts dead letters of this error, as in `letter_headers`.

        The reason is the class of the error, since a message may quote a payload; of a text, which Sabot has made,
        the text without numbers and quoted values. After 16 reasons further ones are counted as "other".
        """
        kind = error[0] if isinstance(error, tuple) else stored_name(type(error))
        reason = reason_in(error) if isinstance(error, str) else kind
        if reason not in self._counts and len(self._counts) >= _REASONS:
            reason = "other"
        self._counts[reason] = self._counts.get(reason, 0) + count

    def statistics(self) -> dict[str, int]:
        """Returns the counts by reason."""
        return dict(self._counts)


class LetterLog:
    """A log of the dead letters of one place, such as a source. It logs the first one at once; later ones are counted,
    and logged by reason at most once a minute and at the end. Belongs to one thread.
    """

    def __init__(self, reasons: ReasonCounts, clock: Clock, row: str = "dead letter") -> None:
        """`reasons`: the counts of the place, which the caller has increased before it calls `note`. `row`: the name of a
        counted row in the log.
        """
        self._reasons, self._clock, self._row = reasons, clock, row
        self._logged: dict[str, int] | None = None  # the counts that were logged; None before the first dead letter
        self._logged_at = 0.0

    @property
    def begun(self) -> bool:
        """True once a dead letter was logged."""
        return self._logged is not None

    def begin(self, reason: BaseException | str, first: str, *given: object) -> None:
        """Logs the first dead letter. `reason`: its error, as in `ReasonCounts.add`; if it is an exception, the
        traceback of the user's code is logged too. `first`, `given`: the message and its arguments.
        """
        if isinstance(reason, BaseException):
            warn_of_users_error(_log, reason, first, *given)
        else:
            _log.warning(first, *given)
        one = ReasonCounts()
        one.add(reason)
        self._logged, self._logged_at = one.statistics(), self._clock.monotonic()

    def note(self, name: str) -> None:
        """Logs the number of dead letters since the last line, if that line is a minute old. `name`: the place."""
        if self._clock.monotonic() - self._logged_at >= _EVERY_S:
            self.flush(name)

    def flush(self, name: str) -> None:
        """Logs the number of dead letters since the last line, if there are any. Called at the end."""
        if self._logged is None:
            return
        counts, now = self._reasons.statistics(), self._clock.monotonic()
        more = {reason: count - self._logged.get(reason, 0) for reason, count in counts.items()}
        more = {reason: count for reason, count in more.items() if count}
        if not more:
            return
        by_reason = "; ".join(f"{count:,} × {reason}" for reason, count in more.items())
        _log.warning(
            "%s: %s in %.0f s: %s",
            *(name, counted_words(sum(more.values()), f"more {self._row}"), now - self._logged_at, by_reason),
        )
        self._logged, self._logged_at = counts, now
