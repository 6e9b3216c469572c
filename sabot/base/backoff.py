"""How long to wait before something that has failed is tried again, and how often it has failed in a row."""

from sabot.base.dataclass import dataclass

_MOST_DOUBLINGS = 60  # more would overflow a float; any first wait above 0 has passed its limit long before


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double: `first_s` seconds after the first failure, twice as long after each further one, and at most
    `longest_s`.

    It keeps no count and reads no clock: the caller counts the failures since the last success, or has `Failures` for
    that. If many callers fail at once, each should randomize its wait, as `llm.middleware` does.
    """

    first_s: float
    longest_s: float

    def wait_s(self, failures: int) -> float:
        """Returns the seconds to wait after this number of failures in a row; 0 if there was none."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)) if failures > 0 else 0.0


_NO_WAIT = Backoff(0.0, 0.0)


class Failures:
    """The failures of one thing in a row, and the time before which it is not tried again.

    - `count`: the failures since the last success. `why`: the reason of the last one, or "".
    - `until_s`: the time before which the thing is not tried again, by the caller's clock.
    """

    def __init__(self, backoff: Backoff = _NO_WAIT) -> None:
        self.count = 0
        self.why = ""
        self.until_s = 0.0
        self._backoff = backoff

    def note(self, why: str, now_s: float = 0.0, *, since: int | None = None, excused: int = 0) -> int:
        """Notes the reason of a failure, or "" for a success, which begins the row anew. Returns the count.

        `since`: the count at the beginning of the try; of tries that fail together one is counted. `excused`: the
        number of failures that do not make the wait longer.
        """
        if not why:
            self.count = 0
        elif since is None or since >= self.count:
            self.count += 1
        self.why = why
        self.until_s = now_s + self._backoff.wait_s(self.count - excused)
        return self.count
