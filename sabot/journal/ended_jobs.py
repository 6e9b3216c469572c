"""Ended jobs, as the history of a journal lists them without their entries, and queries for such jobs."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

_NANO = Decimal(1_000_000_000)


class EndedJob(msgspec.Struct, frozen=True, array_like=True):
    """A job that has ended, as a row of the history. Times are in milliseconds since 1970. New fields are only added
    at the end, with a default.

    - `agent`, `name`: the agent's id APP.NAME, and NAME alone.
    - `scope`: the tenant. `key`: the key of the job's record, as text.
    - `status`: how the job has ended.
    - `searched`: the texts that a search compares with its words, in lower case.
    - `tokens`, `nanodollars`: the usage of the job's own calls. A dollar has 10⁹ nanodollars.
    - `record`: further fields, encoded. Only the code that makes the row can decode them.
    """

    job: str
    agent: str
    name: str
    scope: str
    key: str
    status: str
    created_ms: int
    ended_ms: int
    searched: str
    tokens: int
    nanodollars: int
    record: bytes


class EndedQuery(NamedTuple):
    """A query for ended jobs. It selects the jobs that fulfil all of its conditions. A field that is "" or 0 sets no
    condition.

    - `agent`: the agent's id APP.NAME, or only NAME.
    - `text`: a text to search for, in any letter case.
    - `since_ms`, `until_ms`: the job was created at or after the first time, and before the second, in milliseconds
      since 1970.
    - `after`: the last job of the previous page, as its time of creation and its id; None for the first page. Pages
      are in order from the newest job to the oldest.
    """

    agent: str = ""
    scope: str = ""
    key: str = ""
    status: str = ""
    text: str = ""
    since_ms: int = 0
    until_ms: int = 0
    after: tuple[int, str] | None = None

    def selects(self, job: EndedJob) -> bool:
        """Returns True if the job fulfils all conditions of the query."""
        return (
            self.agent in ("", job.agent, job.name)
            and self.scope in ("", job.scope)
            and self.key in ("", job.key)
            and self.status in ("", job.status)
            and self.text.casefold() in job.searched
            and job.created_ms >= self.since_ms
            and (not self.until_ms or job.created_ms < self.until_ms)
            and (self.after is None or (job.created_ms, job.job) < self.after)
        )

    def behind(self, job: EndedJob) -> "EndedQuery":
        """Returns the query for the next page. `job`: the last job of this page."""
        return EndedQuery(*self[:-1], after=(job.created_ms, job.job))


class HistoryBounds(NamedTuple):
    """The limits of a history. Jobs that ended before `before_ms` (milliseconds since 1970) are removed from it. If
    the remaining jobs need more than `most_bytes` bytes, the oldest of them are removed too.
    """

    before_ms: int
    most_bytes: int


def dollars_of(nanodollars: int) -> Decimal:
    """Converts nanodollars (10⁻⁹ dollars) to dollars, without trailing zeros."""
    return (nanodollars / _NANO).normalize() + 0


def nanodollars_of(dollars: Decimal) -> int:
    """Converts dollars to nanodollars (10⁻⁹ dollars), rounded."""
    return round(dollars * _NANO)


def descendants(job: str) -> tuple[str, str]:
    """Returns two ids that delimit the ids of all descendants of a job: an id is that of a descendant if it is at or
    after the first and before the second, in the order of texts.
    """
    return f"{job}~", f"{job}\x7f"


def newest_first(jobs: Sequence[EndedJob]) -> list[EndedJob]:
    """Returns the jobs in order, from the one that was created last to the one that was created first."""
    return sorted(jobs, key=lambda job: (job.created_ms, job.job), reverse=True)
