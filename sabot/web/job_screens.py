"""The screens of the jobs of an app: their list, one job with its effects, and the actions on them.

They are read, and the rows of their tables are rendered, in a process of the console's reader, so that they take nothing from the run. The
start of this process takes longer than most reads: until it has started, a thread reads what is short. A journal that only this process
has is always read in a thread.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urlencode

from markupsafe import Markup

from sabot.agents.app_jobs import JournalAddress
from sabot.agents.job_reads import JobPage, shown_status
from sabot.agents.jobs import ENDS, JobRecord, JobStatus
from sabot.agents.replay import Recording, record_job
from sabot.agents.store import cancel_letter
from sabot.base.redaction import scrubbed
from sabot.base.threads import run_in_thread
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.letters.opening import LetterPlace, letter_places, opened_letters, redrive
from sabot.engine.letters.pages import job_of
from sabot.engine.letters.redrive import Selection
from sabot.errors import LetterRefused, UserError
from sabot.journal.ended_jobs import BLOCKED, JobQuery
from sabot.web.job_code import AppCode, ForkedJob
from sabot.web.job_reading import (
    MOST_SEARCHED,
    OwnJournal,
    effects_table,
    jobs_table,
    loaded,
    read_job,
    read_jobs,
    read_short_log,
    selected_jobs,
)
from sabot.web.reader import ConsoleReader
from sabot.web.screen import BY, FORM, Query, Screen, ScreenGroup
from sabot.web.shown import ShownApp
from sabot.web.texts import TableForm

if TYPE_CHECKING:
    from sabot.agents.app_jobs import AppJobs
    from sabot.app import App

P = ParamSpec("P")
T = TypeVar("T")

_MOST_AT_ONCE = 1_000  # jobs that one form cancels, signals or retries
_ORDINAL = re.compile(r"\d{1,18}", re.ASCII)
_FORK_STEPS = 20  # that are named
_AGES = {"1h": 3600, "1d": 86_400, "7d": 7 * 86_400, "30d": 30 * 86_400}
_FILTERS = ("q", "agent", "scope", "key", "session", "status", "age")
_WHY_NO_CODE = "The console does not know the program: start the app with sabot run MODULE:APP --web."


class JobScreens:
    """The facts of the screens of jobs, and their actions. Used by the thread of the server."""

    def __init__(self, app: ShownApp, reader: ConsoleReader, root: str) -> None:
        """`root`: the path below which the pages of the app are."""
        self._known = app.jobs
        self._live = app.live
        self._figures = app.figures
        self._payloads = app.payloads
        self._code = AppCode(app.program) if app.program else None
        self._reader = reader
        self._root = root

    def group(self) -> ScreenGroup:
        """Returns the screens and their actions; none if the app has no durable agents."""
        if self._known is None:
            return ScreenGroup()
        screens = {
            "jobs": Screen("Jobs", "/jobs", more=self.list_facts, rows=self.table, role="act"),
            "job": Screen("Job", "/job", more=self.job_facts, rows=self.effects_table, role="act", listed=False),
        }
        actions = {
            "cancel-job": self.cancel,
            "signal-job": self.signal,
            "retry-job": self.retry,
            "cancel-jobs": self.cancel_all,
            "signal-jobs": self.signal_all,
            "retry-jobs": self.retry_all,
        }
        if self._code is not None:
            actions |= {"dry-run": self.dry_run, "fork": self.fork}
        return ScreenGroup(screens, actions)

    @property
    def _jobs(self) -> "AppJobs":
        assert self._known is not None  # without jobs there are no such screens
        return self._known

    @property
    def _own(self) -> OwnJournal:
        return OwnJournal("", "", {}, self._jobs.store)

    # -- the list -----------------------------------------------------------------------------------------------------

    async def list_facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of the list of jobs. Raises UserError for a cursor that is none, and if the journal cannot be read."""
        table, page = await self._page(query)
        filters = {name: query[name] for name in _FILTERS if query.get(name)}
        counts = page.counts
        if status := query.get("status", ""):
            counts = {status: page.found}
        return {
            "table": Markup(table),  # rendered by the templates, which escape
            "found": page.found,
            "counts": page.counts,
            "waiting": 0 if filters else self._figures.last.figures.jobs.waiting,
            "open": sum(count for name, count in counts.items() if name not in ENDS),
            "failed": counts.get(JobStatus.FAILED, 0) if self._live is not None else 0,
            "filters": filters,
            "following": urlencode(filters | {"after": page.following}) if page.following else "",
            "statuses": [*JobStatus, BLOCKED],
            "ages": list(_AGES),
            "at": SYSTEM_CLOCK.time(),
            "most": _MOST_AT_ONCE,
            "fields": self._searched(),
        }

    def _searched(self) -> str:
        """Returns the fields of records that a search looks at, in words, or ""."""
        if not self._payloads.shows_any:
            return ""
        names = "all fields" if self._payloads.mode == "all" else ", ".join(sorted(self._payloads.names))
        return f"{names} of the records of the newest {MOST_SEARCHED:,} jobs"

    async def table(self, query: Query) -> str:
        """Returns the list as CSV or JSON: the jobs of all pages, at most 20,000."""
        return await self._read(
            jobs_table, self._wanted({**query, "after": ""}), self._payloads, cast("TableForm", query[FORM])
        )

    async def _page(self, query: Query) -> tuple[str, JobPage]:
        wanted = self._wanted(query)
        if not self._reads_elsewhere() and not (wanted.text and self._payloads.shows_any):
            here = await run_in_thread(read_short_log, self._own, wanted, self._root)
            if here is not None:
                return here
        return await self._read(read_jobs, wanted, self._payloads, self._root)

    def _wanted(self, query: Mapping[str, str]) -> JobQuery:
        age = _AGES.get(query.get("age", ""))
        return JobQuery(
            agent=query.get("agent", ""),
            scope=query.get("scope", ""),
            key=query.get("key", ""),
            status=query.get("status", ""),
            text=query.get("q", ""),
            since=self._jobs.store.clock.time() - age if age else 0.0,
            after=query.get("after", ""),
            session=query.get("session", ""),
        )

    def _reads_elsewhere(self) -> bool:
        """Returns True if a process has started that reads the journal. Starts one if that is possible."""
        if self._jobs.store.address() is None:
            return False
        self._reader.start(loaded)
        return self._reader.started

    async def _read(
        self, function: Callable[Concatenate[JournalAddress, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Calls a function with the journal, in a process that reads for the console if it finds the journal, else in a thread."""
        store = self._jobs.store
        address = store.address()
        if address is None:
            return await run_in_thread(function, self._own, *args, **kwargs)
        return await self._reader.read(function, address, *args, **kwargs)

    # -- one job ------------------------------------------------------------------------------------------------------

    async def job_facts(self, query: Query) -> dict[str, Any]:
        """Returns the facts of one job. Raises UserError if the journal does not have it."""
        job, part = await self._shown(query)
        return {
            "job": job,
            "part": Markup(part),  # rendered by the templates, which escape
            "state": shown_status(job),
            "error": scrubbed(job.blocked or job.error),
            "can_retry": job.status is JobStatus.FAILED and self._live is not None,
            "why_no_code": "" if self._code is not None else _WHY_NO_CODE,
            "at": SYSTEM_CLOCK.time(),
        }

    async def effects_table(self, query: Query) -> str:
        """Returns the effects of one job as CSV or JSON."""
        return await self._read(effects_table, query.get("id", ""), _first(query), cast("TableForm", query[FORM]))

    async def _shown(self, query: Query) -> tuple[JobRecord, str]:
        wanted = query.get("id", ""), _first(query), self._payloads, self._root, SYSTEM_CLOCK.time()
        if not self._payloads.shows_any and not self._reads_elsewhere():  # values may be large
            return await run_in_thread(read_job, self._own, *wanted)
        return await self._read(read_job, *wanted)

    # -- code ---------------------------------------------------------------------------------------------------------

    async def dry_run(self, form: Mapping[str, str]) -> str:
        """Runs today's code over the steps of the form's job. Raises UserError if the code does something else."""
        assert self._code is not None  # without it there is no such action
        return await self._code.dry_run(await self._recorded(form.get("job", "")))

    async def fork(self, form: Mapping[str, str]) -> str:
        """Lets a copy of the form's job continue behind a step with live calls, and says what it did. Raises UserError for a step that is
        none, and if the code cannot be run.
        """
        assert self._code is not None  # without it there is no such action
        step = form.get("step", "")
        if not _ORDINAL.fullmatch(step):
            raise UserError(f"{step[:20]!r} is not the number of a step")
        return _fork_words(await self._code.fork(await self._recorded(form.get("job", "")), int(step)))

    async def _recorded(self, job_id: str) -> Recording:
        def read() -> Recording:
            with self._jobs.store.reader() as reader:
                return record_job(reader, job_id)

        return await run_in_thread(read)

    # -- actions ------------------------------------------------------------------------------------------------------

    async def cancel(self, form: Mapping[str, str]) -> str:
        """Asks the job of the form to end."""
        job = form.get("job", "")
        await run_in_thread(self._cancel, job, form)
        return f"Job {job} will be cancelled."

    async def cancel_all(self, form: Mapping[str, str]) -> str:
        """Asks all open jobs that the filters of the form select to end. Raises as `_selected`."""
        asked = await run_in_thread(self._each, await self._selected(form, is_open=True), self._cancel, form)
        return f"{asked:,} jobs will be cancelled."

    async def signal(self, form: Mapping[str, str]) -> str:
        """Sends the signal of the form to its job, without a value."""
        await self._jobs.signal(form.get("job", ""), form.get("name", ""), by=form[BY])
        return f"Job {form.get('job', '')} has signal {form.get('name', '')}."

    async def signal_all(self, form: Mapping[str, str]) -> str:
        """Sends the signal of the form to all open jobs that its filters select, without a value. Raises as `_selected`."""
        sent = 0
        for job in await self._selected(form, is_open=True):
            try:
                await self._jobs.signal(job, form.get("name", ""), by=form[BY])
                sent += 1
            except LetterRefused as refused:  # the job has ended meanwhile
                if refused.reason != "closed":
                    raise
        return f"{sent:,} jobs have signal {form.get('name', '')}."

    async def retry(self, form: Mapping[str, str]) -> str:
        """Sends the dead letter of the form's job back, so that the job begins again. Raises UserError if it has none."""
        return await run_in_thread(self._retry, [form.get("job", "")])

    async def retry_all(self, form: Mapping[str, str]) -> str:
        """Sends the dead letters of all failed jobs that the filters of the form select back. Raises as `_selected`."""
        return await run_in_thread(self._retry, await self._selected(form, is_open=False))

    async def _selected(self, form: Mapping[str, str], *, is_open: bool) -> list[str]:
        """Returns the open jobs, or the failed ones, that the filters of a form select. Raises UserError if their number is no longer that
        of the form, or above 1,000.
        """
        query = {**form, "after": ""}
        if not is_open and not form.get("status"):
            query["status"] = JobStatus.FAILED
        jobs = await self._read(selected_jobs, self._wanted(query), self._payloads, is_open)
        if form.get("count") != str(len(jobs)):
            raise UserError(f"{len(jobs):,} such jobs are there now", hint="load the list again, then repeat this")
        if len(jobs) > _MOST_AT_ONCE:
            raise UserError(f"{len(jobs):,} jobs are more than {_MOST_AT_ONCE:,}", hint="select fewer jobs")
        return jobs

    @staticmethod
    def _each(jobs: Collection[str], do: Callable[[str, Mapping[str, str]], None], form: Mapping[str, str]) -> int:
        """Does something with each job, and returns for how many it was done: not for those that have ended, or were asked before."""
        done = 0
        for job in jobs:
            try:
                do(job, form)
                done += 1
            except LetterRefused as refused:
                if refused.reason not in ("second", "closed"):
                    raise
        return done

    def _cancel(self, job: str, form: Mapping[str, str]) -> None:
        self._jobs.store.post(cancel_letter(job, form.get("reason", ""), form[BY]))

    def _retry(self, jobs: Collection[str]) -> str:
        """Sends the dead letters of jobs back. Blocks. Raises UserError if none was sent."""
        if self._live is None:
            raise UserError("the app does not run in this process", hint="sabot jobs retry does it from elsewhere")
        names, sent = frozenset(jobs), 0
        for each in letter_places(self._live.spec.ends, self._live.spec.agent_specs):
            if not each.unread:
                sent += _sent_back(self._live, each, names)
        if not sent:
            raise UserError("no dead letter of such a job waits to be sent back", hint="it may have been sent before")
        return f"{sent:,} dead letters are sent back; their jobs begin again with the effects that they have made."


def _sent_back(app: "App", place: LetterPlace, jobs: Collection[str]) -> int:
    """Sends the dead letters of these jobs at a place back, and returns how many. A place without dead letters has none."""

    broker, kafka = place.broker or app.broker, {} if place.broker else app.settings.kafka
    with opened_letters(place, broker, kafka, sends=True) as dead:
        return redrive(dead, Selection(wanted=lambda letter: job_of(letter) in jobs)).letters


def _fork_words(made: ForkedJob) -> str:
    """Returns what a fork did, without the values that it had."""
    differs = made.first_difference
    said = [f"The fork {made.outcome}, {'as the job did' if differs is None else f'different from step {differs} on'}."]
    steps = [each for each in made.steps if differs is not None and each.ordinal >= differs]
    shown = [f"{each.ordinal} {each.kind} {each.name}".strip() + f": {each.outcome or 'open'}" for each in steps]
    said += [f"Steps: {'; '.join(shown[:_FORK_STEPS])}{' …' if len(shown) > _FORK_STEPS else ''}."] if shown else []
    said += [f"It waits for {', '.join(made.waits_for)}."] if made.waits_for else []
    said += [f"Error: {scrubbed(made.error)}."] if made.error else []
    said += [f"Its use is booked as job {made.booked_as}."] if made.booked_as else []
    return " ".join(said)


def _first(query: Query) -> int:
    """Returns the ordinal of the first effect of a page."""
    return int(query["from"]) if _ORDINAL.fullmatch(query.get("from", "")) else 0
