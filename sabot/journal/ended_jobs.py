"""Ended jobs, as the history of a journal lists them without their entries, and queries for jobs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from sabot.base.checks import is_number
from sabot.base.options import answers_wrong_options
from sabot.errors import UserError, short_repr

OUTCOMES = ("succeeded", "failed", "cancelled", "timed_out")
"""The outcomes with which a job ends. Lists show any other outcome as "failed"."""

BLOCKED = "blocked"
"""The status that lists show for an open job that the present code of its agent cannot continue."""

STATUSES = ("queued", "running", "waiting_action", *OUTCOMES, BLOCKED)
"""All statuses that lists show."""

MOST_CHARS = 500
"""The most characters of a text in a row of a list of jobs."""

_LAST_S = 253_402_300_800.0  # the end of the year 9999
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no database stores
_NANO = Decimal(1_000_000_000)
_MOMENT = re.compile(r"-?\d{1,18}", re.ASCII)  # in ms; more digits have no place in 64 bits


class EndedJob(msgspec.Struct, frozen=True, array_like=True):
    """A job that has ended, as a row of the history. Times are in milliseconds since 1970. New fields are only added
    at the end, with a default.

    - `agent`, `name`: the agent's id APP.NAME, and NAME alone.
    - `scope`: the tenant. `key`: the key of the job's record, as text.
    - `status`: how the job has ended.
    - `searched`: the texts that a search compares with its words, in lower case.
    - `tokens`, `nanodollars`: the usage of the job's own calls. A dollar has 10⁹ nanodollars.
    - `record`: further fields, encoded. Only the code that makes the row can decode them.
    - `session`: the conversation to which the job belongs, or "".
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
    session: str = ""


@answers_wrong_options
@dataclass(frozen=True, slots=True)
class JobQuery:
    """A query for a list of jobs, from the newest to the oldest. It selects the jobs that fulfil all conditions; "" and 0
    are no condition. Times are in seconds since 1970.

    - `agent`: the id APP.NAME of the job's agent, or NAME alone.
    - `scope`, `status`: the tenant and the status of the job.
    - `key`: the key of the job's record, as a text.
    - `session`: the conversation to which the job belongs: the `session_id` of a request, or the key of an app's record.
    - `text`: a text that occurs in the id, the agent, the scope, the principal, the key or the error. Upper and lower
      case are equal.
    - `since`, `until`: the job was created at the time `since` or later, and before the time `until`.
    - `after`: the cursor of the page (`cursor_of` for the last job of the page before); "" for the first page.
    """

    agent: str = ""
    scope: str = ""
    key: str = ""
    status: str = ""
    text: str = ""
    since: float = 0.0
    until: float = 0.0
    after: str = ""
    session: str = ""

    @classmethod
    def of(cls, given: "JobQuery | Mapping[str, Any] | None") -> "JobQuery":
        """Returns the query that `given` describes. A JobQuery is returned unchanged, a mapping must have the fields of a
        JobQuery, and None has no conditions. Raises UserError for fields that are unknown or have a wrong type.
        """
        if isinstance(given, JobQuery):
            return given
        if given is None:
            return cls()
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise UserError(f"query={short_repr(given)}", hint='the conditions by name, such as {"status": "failed"}')
        found = cls(**given)
        for name in given:
            value = getattr(found, name)
            if name in ("since", "until"):
                if not (is_number(value) and 0 <= value <= _LAST_S):
                    raise UserError(
                        f"query: {name}={short_repr(value)}", hint="seconds since 1970, as of `time.time()`"
                    )
            elif not isinstance(value, str):
                raise UserError(f"query: {name}={short_repr(value)}: a text is wanted")
            elif found_wrong := _NO_TEXT.search(value):
                wrong = "the character NUL" if found_wrong[0] == "\0" else "half of a surrogate pair"
                raise UserError(f"query: {name}={short_repr(value)}: it has {wrong}, and no job has such a text")
        if found.status not in ("", *STATUSES):
            raise UserError(f"query: status={short_repr(found.status)}", hint=f"one of {', '.join(STATUSES)}")
        found.last  # noqa: B018 - it raises for what is no cursor
        return found

    @property
    def since_ms(self) -> int:
        """The time `since` in milliseconds."""
        return round(self.since * 1000)

    @property
    def until_ms(self) -> int:
        """The time `until` in milliseconds."""
        return round(self.until * 1000)

    @property
    def last(self) -> tuple[int, str] | None:
        """The last job of the page before: the time at which it was created, in milliseconds since 1970, and its id.
        None for the first page. Raises UserError if `after` is no cursor.
        """
        if not self.after:
            return None
        at, _, job = self.after.partition(":")
        if not _MOMENT.fullmatch(at):
            raise UserError(f"{self.after!r} is no cursor of a list of jobs", hint="begin with the first page")
        return int(at), job

    @property
    def of_all_pages(self) -> "JobQuery":
        """This query without its conditions on the status and the page: it selects the jobs that a list counts."""
        return replace(self, status="", after="")

    def fits(
        self, agent: str, scope: str, session: str, created_ms: int, key: str, searched: Callable[[], str]
    ) -> bool:
        """Returns True if a job with these facts fulfils the conditions, except those on the status and the page. `searched`
        returns the searched texts (see `EndedJob`). It is called only if the query has a condition on them.
        """
        return (
            self.agent in ("", agent, agent.rpartition(".")[2])
            and self.scope in ("", scope)
            and self.session in ("", session)
            and (not self.since or created_ms >= self.since_ms)
            and (not self.until or created_ms < self.until_ms)
            and self.key in ("", key)
            and (not self.text or self.text.casefold() in searched())
        )

    def selects(self, job: EndedJob) -> bool:
        """Returns True if the job fulfils all conditions. Raises UserError if `after` is no cursor."""
        return (
            self.status in ("", job.status)
            and ((last := self.last) is None or (job.created_ms, job.job) < last)
            and self.fits(job.agent, job.scope, job.session, job.created_ms, job.key, lambda: job.searched)
        )


def cut(text: str) -> str:
    """Returns the text in a form that every database can store in a list of jobs: at most 500 characters, and without
    NUL characters.
    """
    return text[:MOST_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")


def cursor_of(created_ms: int, job: str) -> str:
    """Returns the cursor of the page behind a job, for `JobQuery.after`."""
    return f"{created_ms}:{job}"


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
