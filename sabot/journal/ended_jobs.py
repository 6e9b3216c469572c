"""Jobs that have ended, as the history of a journal shows them without their entries, and the queries of lists."""

from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import msgspec

_NANO = Decimal(1_000_000_000)


class EndedJob(msgspec.Struct, frozen=True, array_like=True):
    """A job that has ended. Times are in milliseconds since 1970. Fields are only added, at the end, with a default.

    `name` is the agent's id without its app. `key` is the key of the job's record, as text. `searched` has the texts
    that a search looks through, in lower case. `tokens` and `nanodollars` are the usage of its own calls; a dollar has
    10⁹ nanodollars. `record` has the other fields, encoded by the code that makes the row.
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
    """A query for ended jobs: those that fulfil all conditions; "" and 0 stand for all.

    `agent` is the id APP.NAME, or NAME alone. `text` is searched in any letter case. A job was created at `since_ms` or
    later, and before `until_ms`, in milliseconds since 1970. `after` is the last job of the page before, by time of
    creation and id; pages go from the newest job to the oldest.
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
        """Returns True if the job fulfils the conditions."""
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
        """Returns the query for the next page, when `job` is the last job of this page."""
        return EndedQuery(*self[:-1], after=(job.created_ms, job.job))


class HistoryBounds(NamedTuple):
    """The bounds of a history. It keeps the jobs that have ended at `before_ms` (milliseconds since 1970) or later. If
    these have more than `most_bytes` bytes, it keeps only the newest of them.
    """

    before_ms: int
    most_bytes: int


def dollars_of(nanodollars: int) -> Decimal:
    """Returns an amount of nanodollars (10⁻⁹ dollars) in dollars, without trailing zeros."""
    return (nanodollars / _NANO).normalize() + 0


def nanodollars_of(dollars: Decimal) -> int:
    """Returns an amount of dollars in nanodollars (10⁻⁹ dollars), rounded."""
    return round(dollars * _NANO)


def descendants(job: str) -> tuple[str, str]:
    """Returns two ids that enclose the ids of all descendants of a job (`jobs.tree`): the least id, and the first id
    after the last one.
    """
    return f"{job}~", f"{job}\x7f"


def newest_first(jobs: Sequence[EndedJob]) -> list[EndedJob]:
    """Returns the jobs from the newest to the oldest, as lists show them."""
    return sorted(jobs, key=lambda job: (job.created_ms, job.job), reverse=True)
