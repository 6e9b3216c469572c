"""Counts and reports floats that become null when they are written, because the format has no form for NaN or
infinity.
"""

import logging
from collections.abc import Callable

from sabot.connectors.base import OnNan
from sabot.errors import UserError

_NAMES_TOLD = 100  # of how many columns or fields a warning tells


class Nulled:
    """A counter of floats that are written as null (`count`). It warns once for each column or field.

    `policy`: "fail" raises an error for such a float; "null" counts it without a warning. `ways`: a text for the
    warning that says how the user chooses between the two.
    """

    def __init__(self, policy: OnNan, ways: str, log: logging.Logger) -> None:
        self.count = 0
        self._policy, self._ways, self._log = policy, ways, log
        self._told: set[str] = set()

    def note(self, name: str, count: int, what: Callable[[], str], hint: str) -> None:
        """Counts `count` floats, at least 1, in the column or field `name`. Raises UserError with this hint if the
        policy is "fail".

        `what`: returns a text that names the first one.
        """
        if self._policy == "fail":
            raise UserError(what(), hint=hint)
        if self._policy is None and name not in self._told and len(self._told) < _NAMES_TOLD:
            self._told.add(name)
            self._log.warning("%s: written as null, as all such values of it. %s", what(), self._ways)
        self.count += count
