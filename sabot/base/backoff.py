"""How long to wait before something that has failed is tried again."""

from dataclasses import dataclass

_MOST_DOUBLINGS = 60  # more would overflow a float; any first wait above 0 has passed its limit long before


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double: `first_s` seconds after the first failure, twice as long after each further one, and at most
    `longest_s`.

    It keeps no count and reads no clock: the caller counts the failures since the last success. If many callers fail
    at once, each should randomize its wait, as `llm.middleware` does.
    """

    first_s: float
    longest_s: float

    def wait_s(self, failures: int) -> float:
        """Returns the seconds to wait after this number of failures in a row; 0 if there was none."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS)) if failures > 0 else 0.0
