"""The origin of a step: the statement of a script that made it, and the place in the script.

A start uses the name of the statement as a hint to find the state of the step in a checkpoint, so a script may change
around the statement. The name of a step that a user gives (`.named("totals")`) comes before it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import NamedTuple

_LONGEST = 60


class StepOrigin(NamedTuple):
    """The statement of a script that made a step.

    `name`: the name of the statement, such as "INSERT INTO totals" or "VIEW late". It does not depend on other
    statements, and is stored in checkpoints. `place`: the position in the script, such as "pipeline.sql:3:14".
    """

    name: str = ""
    place: str = ""

    @property
    def prefix(self) -> str:
        """The beginning of the ids of its steps: "totals." for "INSERT INTO totals", "orders.read." for "TABLE orders",
        and "" for a step of Python. Characters that an id cannot have are "-".
        """
        name = self.name.removeprefix("INSERT INTO ").removeprefix("VIEW ")
        if name.startswith("TABLE "):
            name = f"{name.removeprefix('TABLE ')}.read"
        words = re.sub(r"[^A-Za-z0-9_.]+", "-", name.replace(", ", ".")).strip("-.")
        if len(words) > _LONGEST:  # ids are names of folders
            words = f"{words[:_LONGEST]}-{sha256(name.encode()).hexdigest()[:8]}"
        return f"{words}." if words else ""


NO_ORIGIN = StepOrigin()
"""The origin of a step of Python."""

_current: ContextVar[Callable[[], StepOrigin] | None] = ContextVar("origin", default=None)


def current_origin() -> StepOrigin:
    """Returns the origin of a step that is made now. Both texts of the origin are "" if no context of `originating`
    is active.
    """
    origin = _current.get()
    return NO_ORIGIN if origin is None else origin()


@contextmanager
def originating(origin: Callable[[], StepOrigin]) -> Iterator[None]:
    """Returns a context manager. Each step that is made in its block gets the origin that the function returns at
    that moment.
    """
    token = _current.set(origin)
    try:
        yield
    finally:
        _current.reset(token)
