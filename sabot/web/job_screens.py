"""The screens of the jobs of an app: their list, one job with its effects, and the actions on them.

The journal is read in threads, because a read blocks: the server's loop goes on meanwhile.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from sabot.agents.job_effects import EffectRecord, JobStory, job_story
from sabot.agents.job_reads import JobPage, JobQuery, ListedJob, jobs_page
from sabot.agents.jobs import ENDS, JobRecord, JobStatus
from sabot.agents.store import cancel_letter
from sabot.clock import SYSTEM_CLOCK
from sabot.errors import LetterRefused, UserError
from sabot.redaction import scrubbed
from sabot.threads import run_in_thread
from sabot.web.screen import BY, Rows, Screen, ScreenGroup

if TYPE_CHECKING:
    from sabot.agents.app_jobs import AppJobs

T = TypeVar("T")

_MOST_ROWS = 100_000  # of a table as CSV or JSON
_MOST_CANCELLED = 1_000  # by one form
_AGES = {"1h": 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
_FILTERS = ("q", "agent", "scope", "key", "status", "age")
_COLUMNS = (
    "job_id",
    "agent",
    "key",
    "scope_id",
    "principal_id",
    "status",
    "attempt",
    "effects",
    "created_at",
    "updated_at",
    "completed_at",
)


class JobScreens:
    """The facts of the screens of jobs, and their actions. Used by the thread of the server."""

    def __init__(self, jobs: "AppJobs | None") -> None:
        """`jobs`: None if the app has no durable agents."""
        self._known = jobs

    def group(self) -> ScreenGroup:
        """Returns both screens and their actions; none if the app has no durable agents."""
        if self._known is None:
            return ScreenGroup()
        screens = {
            "jobs": Screen("Jobs", "/jobs", more=self.list_facts, rows=self.rows, role="act"),
            "job": Screen("Job", "/job", more=self.job_facts, rows=self.effect_rows, role="act", listed=False),
        }
        return ScreenGroup(
            screens, {"cancel-job": self.cancel, "cancel-jobs": self.cancel_all, "signal-job": self.signal}
        )

    @property
    def _jobs(self) -> "AppJobs":
        assert self._known is not None  # without jobs there are no such screens
        return self._known

    async def list_facts(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns the facts of the list of jobs. Raises UserError for a cursor that is none, and if the journal cannot be read."""
        page = await run_in_thread(self._page, query)
        filters = {name: query[name] for name in _FILTERS if query.get(name)}
        following = urlencode(filters | {"after": page.following}) if page.following else ""
        going = sum(count for status, count in page.counts.items() if JobStatus(status) not in ENDS)
        status = query.get("status", "")
        if status:
            going = page.found if status not in ENDS else 0
        return {
            "jobs": [(job, _open_text(job.record), scrubbed(job.record.error)) for job in page.jobs],
            "found": page.found,
            "counts": page.counts,
            "going": going,
            "filters": filters,
            "following": following,
            "statuses": list(JobStatus),
            "ages": list(_AGES),
            "at": SYSTEM_CLOCK.time(),
            "most_cancelled": _MOST_CANCELLED,
        }

    async def rows(self, query: Mapping[str, str]) -> Rows:
        """Returns the rows of the list for CSV and JSON: those of all pages."""
        page = await run_in_thread(self._page, {**query, "after": ""}, _MOST_ROWS)
        return [_flat(job) for job in page.jobs]

    async def job_facts(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns the facts of one job. Raises UserError if the journal does not have it."""
        story = await run_in_thread(self._story, query.get("id", ""))
        now = SYSTEM_CLOCK.time()
        begin = min([story.record.created_at, *(each.asked_at for each in story.effects)])
        ends = [each.ended_at for each in story.effects if each.ended_at is not None]
        end = max([now if not story.record.ended else story.record.updated_at, *ends, begin + 0.001])
        return {
            "story": story,
            "job": story.record,
            "error": scrubbed(story.record.error),
            "effects": [(each, *_place(each, begin, end)) for each in story.effects],
            "at": now,
            "span": end - begin,
        }

    async def effect_rows(self, query: Mapping[str, str]) -> Rows:
        """Returns the effects of one job for CSV and JSON."""
        story = await run_in_thread(self._story, query.get("id", ""))
        return [asdict(each) | {"dollars": str(each.dollars)} for each in story.effects]

    async def cancel(self, form: Mapping[str, str]) -> str:
        """Asks the job of the form to end."""
        job = form.get("job", "")
        await run_in_thread(self._cancel, job, form)
        return f"Job {job} will be cancelled."

    async def cancel_all(self, form: Mapping[str, str]) -> str:
        """Asks all jobs that the filters of the form select to end. Raises UserError if their number is no longer that of the form, or
        above 1,000.
        """
        jobs = [job.record for job in (await run_in_thread(self._page, form, _MOST_ROWS)).jobs if not job.record.ended]
        if form.get("count") != str(len(jobs)):
            raise UserError(f"{len(jobs):,} jobs are open now", hint="load the list again, then cancel them")
        if len(jobs) > _MOST_CANCELLED:
            raise UserError(f"{len(jobs):,} jobs are more than {_MOST_CANCELLED:,}", hint="select fewer jobs")
        asked = 0
        for job in jobs:
            try:
                await run_in_thread(self._cancel, job.job_id, form)
                asked += 1
            except LetterRefused as refused:  # it has ended, or was cancelled meanwhile
                if refused.reason not in ("second", "closed"):
                    raise
        return f"{asked:,} jobs will be cancelled."

    async def signal(self, form: Mapping[str, str]) -> str:
        """Sends the signal of the form to its job, without a value."""
        await self._jobs.signal(form.get("job", ""), form.get("name", ""), by=form[BY])
        return f"Job {form.get('job', '')} has signal {form.get('name', '')}."

    def _page(self, query: Mapping[str, str], most: int = 200) -> JobPage:
        age = _AGES.get(query.get("age", ""))
        with self._jobs.store.reader() as reader:
            wanted = JobQuery(
                agent=query.get("agent", ""),
                scope=query.get("scope", ""),
                key=query.get("key", ""),
                status=query.get("status", ""),
                text=query.get("q", ""),
                since=self._jobs.store.clock.time() - age if age else 0.0,
                after=query.get("after", ""),
            )
            return jobs_page(reader, wanted, most)

    def _story(self, job_id: str) -> JobStory:
        with self._jobs.store.reader() as reader:
            return job_story(reader, job_id)

    def _cancel(self, job: str, form: Mapping[str, str]) -> None:
        self._jobs.store.post(cancel_letter(job, form.get("reason", ""), form[BY]))


def _open_text(job: JobRecord) -> str:
    words = {"ask": "question", "sleep": "timer", "wait": "signal"}
    named = [f"{words.get(each.kind, each.kind)} {each.name}".strip() for each in job.open[:2]]
    return "; ".join(named) + (f"; {len(job.open) - 2} more" if len(job.open) > 2 else "")


def _flat(job: ListedJob) -> dict[str, Any]:
    record = job.record
    facts = {name: getattr(record, name) for name in _COLUMNS} | {"status": job.status}
    facts |= {"open": _open_text(record), "error": scrubbed(record.error)}
    return facts | {"tokens": job.tokens, "dollars": str(job.dollars)}


def _place(effect: EffectRecord, begin: float, end: float) -> tuple[str, str]:
    """Returns the start and the width of the bar of an effect, in hundredths of the time from `begin` to `end`."""
    start = max(0.0, (effect.asked_at - begin) / (end - begin)) * 100
    wide = ((end if effect.ended_at is None else effect.ended_at) - effect.asked_at) / (end - begin) * 100
    return f"{min(start, 99.5):.2f}", f"{max(wide, 0.5):.2f}"
