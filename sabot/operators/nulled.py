"""Floats that become null on their way out, as what is written has no form for them: what becomes of them, and what is said of it."""

import logging
from collections.abc import Callable

from sabot.connectors.base import OnNan
from sabot.errors import UserError

_NAMES_TOLD = 100  # of how many columns or fields a warning tells


class Nulled:
    """Counts them (`count`), and warns of the first ones of each column or field; with `policy` "fail" they are an error instead.

    ways: for the warning, how the user says that they are meant, or not.
    """

    def __init__(self, policy: OnNan, ways: str, log: logging.Logger) -> None:
        self.count = 0
        self._policy, self._ways, self._log = policy, ways, log
        self._told: set[str] = set()

    def note(self, name: str, count: int, what: Callable[[], str], hint: str) -> None:
        """`count` of them, 1 or more, were found under `name`. what: says where the first one is. Raises UserError, with this hint."""
        if self._policy == "fail":
            raise UserError(what(), hint=hint)
        if self._policy is None and name not in self._told and len(self._told) < _NAMES_TOLD:
            self._told.add(name)
            self._log.warning("%s: written as null, as all such values of it. %s", what(), self._ways)
        self.count += count
