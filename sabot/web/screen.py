"""The types of the screens of the console: a screen, and a group of screens with their actions."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from sabot.web.access import ConsoleSession, Role

Query: TypeAlias = Mapping[str, str]
Rows: TypeAlias = list[dict[str, Any]]
Table: TypeAlias = Callable[[Query], "Rows | Awaitable[Rows | str]"]
"""Returns the rows of a table for programs, or its text in the form that the query has as FORM: a long one is written by the process that
has read it.
"""

Action: TypeAlias = Callable[[Mapping[str, str]], Awaitable[str]]
"""Does what a form asks for. Returns what was done, in words. Raises SabotError if it is not possible. The server sets the form's field
BY, whatever the browser has sent.
"""

BY = "by"
"""The field of a form with the principal who has sent it, for the records of what was done."""

FORM = "as"
"""The field of the query of a table with its form, csv or json. The server sets it, whatever the browser has sent."""


def no_facts(query: Query) -> dict[str, Any]:
    """Returns no facts: those of a screen without fragments."""
    return {}


class Download(NamedTuple):
    """A file for the browser to save. `name`: ASCII letters, digits, "-" and "."."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Screen:
    """A screen. `parts`: the names of its fragments. `facts`: the facts that these show. `more`: the facts of the rest of the
    page, which stay as they are until it is loaded again; None if there are none. `rows`: the rows of its table for CSV and JSON, or
    None if it has no table. `file`: the bytes of the page to be saved, or None. `role`: "act" if it shows texts that can contain
    data, which sessions that may only read do not get. `listed`: True if the head of each page has a link to it. `badge`: returns
    the number that this link shows, such as that of open questions; it is asked once a second.
    """

    title: str
    path: str
    parts: Sequence[str] = ()
    facts: Callable[[Query], dict[str, Any]] = no_facts
    more: Callable[[Query], Awaitable[Mapping[str, Any]]] | None = None
    rows: Table | None = None
    file: Callable[[Query], Awaitable[Download]] | None = None
    role: Role = "read"
    listed: bool = True
    badge: Callable[[], int] | None = None

    def open_to(self, session: ConsoleSession) -> bool:
        """Returns True if the session may see this screen."""
        return self.role in ("read", session.role)


@dataclass(frozen=True)
class ScreenGroup:
    """The screens of one theme, by the name of their template, and their actions, by the last part of their address."""

    screens: Mapping[str, Screen] = field(default_factory=dict)
    actions: Mapping[str, Action] = field(default_factory=dict)
