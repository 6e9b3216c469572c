"""The jobs and actions in a journal whose jobs an app or a kernel runs. They are read from the journal when a program asks
for them. To change them, a program puts letters into the inbox of the journal.

It does not matter whether the app runs in this process, in another one, or not at all. When a call returns, its letter is
durable. Later reads see answers to questions, withdrawals of questions and new jobs of clients, even if the owner of the
journal has not taken their letters yet. They see a cancel only when the owner has taken its letter.
"""

import dataclasses
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import msgspec

from sabot.agents.actions import ActionRecord, ActionSpec, ActionStatus, check_resolution, no_action
from sabot.agents.context import BudgetSpec, checked_word
from sabot.agents.durable.run import journal_place
from sabot.agents.job_history import ended_records
from sabot.agents.job_reads import (
    JobPage,
    apply_queued,
    jobs_page,
    jobs_that_ask,
    moved_records,
    oldest_first,
    queued_begins,
    selected_jobs,
)
from sabot.agents.job_view import JobView
from sabot.agents.jobs import JobManager, JobRecord, JobSpec, JobStatus, check_move, no_job
from sabot.agents.session_turns import Recalled, SessionId, recall
from sabot.agents.store import JobsAndActions, as_json, cancel_letter
from sabot.base.checks import Of, Whole, check
from sabot.base.threads import run_connected
from sabot.clock import Clock
from sabot.engine.calls.tool_context import CALL
from sabot.engine.runtime.app_spec import AppSpec
from sabot.errors import IllegalTransition, LetterRefused, UserError
from sabot.jobs.tree import first_of, parent_of
from sabot.jobs.url_ids import stored_id
from sabot.jobs.values import pack, unpack
from sabot.journal.base import EVERY, MAY_BEGIN_AGAIN, Inbox, Journal, JournalReader, entry_of_letter
from sabot.journal.ended_jobs import OUTCOMES, STATUSES, JobQuery, cut
from sabot.journal.entries import REQUEST, Begin, Letter, encode_entry
from sabot.journal.entry_counts import parts
from sabot.journal.memory import MemoryInbox, MemoryReader, MemoryStorage
from sabot.journal.opening import open_inbox, open_reader
from sabot.llm.conversation import Conversation


@dataclass(frozen=True)
class JournalAddress:
    """The address of a journal. Other processes can open the journal by it too.

    - `place`: the folder of the journal, or its postgresql:// or kafka:// address.
    - `app`: the id of the app or kernel whose journal it is. A database or a Kafka cluster can have journals of several
      apps.
    - `kafka`: the settings of the Kafka client; {} for other journals.
    """

    place: str
    app: str
    kafka: dict[str, str | int | float | bool]

    @contextmanager
    def opened(self) -> Iterator[JournalReader]:
        """Opens a reader of the journal for a `with` block, and closes it afterwards. Blocks the thread. Raises
        UserError if there is no journal at this address.
        """
        with closing(open_reader(self.place, app=self.app, kafka=self.kafka)) as reader:
            yield reader

    @property
    def works_elsewhere(self) -> bool:
        """True if another process can use this address. False if the settings of the Kafka client have functions, which
        exist only in this process.
        """
        return not any(map(callable, self.kafka.values()))


JournalPlace: TypeAlias = JournalAddress | MemoryStorage | None
"""The place of a journal that a store reads. None stands for a journal in memory whose owner has not run yet."""


def place_of_app(app: AppSpec) -> JournalPlace:
    """Returns the place where an app stores its journal: an address, or the memory of this process. Returns None if the
    journal is in memory and the app has not run yet. Raises UserError if the settings of the app give no place for a
    journal.
    """
    place = str(journal_place(app))
    if place == "memory":
        kept: MemoryStorage | None = app.journal_storage
        return kept
    return JournalAddress(place, app.id, app.settings.kafka if place.startswith("kafka://") else {})


class AppJobStore(JobsAndActions):
    """The store of the jobs and actions of an app or a kernel. It has no data of its own: it reads them from the
    journal of the app or kernel, and changes them by letters (requests in the inbox of that journal). This also works
    if the app runs in another process, or does not run.
    """

    def __init__(
        self, place: Callable[[], JournalPlace], clock: Clock, running: Callable[[], Journal | None] = lambda: None
    ) -> None:
        """Makes a store.

        - `place`: a function that returns the place of the journal: its address, its storage in the memory of this
          process, or None if it shall be in memory and its owner has not run yet.
        - `clock`: the clock for the times of new letters.
        - `running`: a function that returns the open journal while an app or kernel in this process runs jobs over it,
          and otherwise None.
        """
        self.clock = clock
        self._place = place
        self._running = running

    @property
    def running(self) -> Journal | None:
        """The open journal while an app or kernel in this process runs jobs over it; otherwise None."""
        return self._running()

    @contextmanager
    def reader(self) -> Iterator[JournalReader]:
        """Yields a reader of the journal to a `with` block. Blocks the thread. Raises UserError if
        there is no journal.
        """
        running = self.running
        if running is not None:
            yield running
            return
        place = self._place()
        if isinstance(place, JournalAddress):
            with place.opened() as reader:
                yield reader
        else:
            yield MemoryReader(_made(place))

    def address(self) -> JournalAddress | None:
        """Returns the address by which another process can read the journal. Returns None in these cases:

        - The journal is in the memory of this process.
        - The settings of the Kafka client contain functions, which exist only in this process.
        - The journal is in Kafka, and this process has it open. Then a read in this process is faster, because the
          process already has a copy of the topic.
        """
        place = self._place()
        if not isinstance(place, JournalAddress) or not place.works_elsewhere:
            return None
        return None if place.place.startswith("kafka://") and self.running is not None else place

    def post(self, letter: Letter) -> None:
        """Writes a letter into the inbox of the journal. A letter is a request to change a job: an answer, a withdrawn
        question, a signal, or a cancel. The process that runs the jobs applies it. Blocks the thread. Raises
        LetterRefused if the letter cannot be applied, for example because the question is closed, and UserError if
        there is no journal.
        """
        with self.inbox() as inbox:
            inbox.post(letter)

    @contextmanager
    def inbox(self) -> Iterator[Inbox]:
        """Yields the inbox of the journal to a `with` block, for several letters. Blocks the thread. Raises UserError if
        there is no journal.
        """
        running = self.running
        if running is not None:
            yield running
            return
        place = self._place()
        if isinstance(place, JournalAddress):
            opened = open_inbox(place.place, app=place.app, clock=self.clock, kafka=place.kafka)
        else:
            opened = MemoryInbox(_made(place))
        with closing(opened) as inbox:
            yield inbox

    async def own_writes(self) -> None:
        """Waits until a reader of the journal can see every change of a job that this process has already reported to a
        caller. Does nothing here; a subclass waits if its process reports changes before they are durable.
        """

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def create(self, spec: JobSpec) -> tuple[JobRecord, bool]:
        """Raises UserError always: a job of an app begins when a durable agent gets a record, and cannot be made
        through this store.
        """
        raise UserError("jobs of an app begin with the records of its durable agents", hint="await app.send(topic, …)")

    async def get(self, job_id: str) -> JobRecord | None:
        await self.own_writes()
        return await run_connected(self._job, job_id)

    def _job(self, job_id: str) -> JobRecord | None:
        with self.reader() as reader:
            return self._known(reader, job_id).job(job_id)

    async def move(self, job_id: str, status: JobStatus, *, result_ref: str = "", error: str = "") -> JobRecord:
        """Cancels a job, and returns the job as it was before. `status` must be CANCELLED, and `error` is the reason.
        The cancel is written into the inbox of the journal. The job ends later, when the process that runs the jobs
        reads the inbox. Raises IllegalTransition for any other status, and UserError for an unknown job.
        """
        job = await self.get(job_id)
        if job is None:
            raise no_job(job_id)
        check_move(job_id, job.status, status)
        if status is not JobStatus.CANCELLED:
            raise IllegalTransition(f"job {job_id} is a run of agent {job.agent}, which says itself how far it is")
        await run_connected(self.post, cancel_letter(job_id, error))
        return job

    async def find(self, *, scope_id: str | None = None, statuses: Sequence[JobStatus] = ()) -> list[JobRecord]:
        if scope_id is not None:
            checked_word(scope_id, "find: scope_id")

        def find() -> list[JobRecord]:
            query = JobQuery(scope=cut(scope_id or ""))
            with self.reader() as reader:
                letters = reader.letters()  # as in `_known`
                queued, _ = queued_begins(reader, letters)
                marks = reader.logged(query, EVERY)
                kept = ended_records(reader, query, statuses, {mark.job for mark in marks})
                # an answer that the owner has not taken yet changes the status of its job
                answered = {asked.job for letter in letters if (asked := reader.question(letter.token)) is not None}
                statuses_may_differ = answered | {mark.job for mark in marks if mark.blocked} | queued.keys()
                some = [
                    mark for mark in marks if not statuses or mark.status in statuses or mark.job in statuses_may_differ
                ]
                known = self._with_letters(reader, JobView.of_jobs(reader, [mark.job for mark in some]), letters)
                known.note_marks(some)
                kept += moved_records(reader, some, known, statuses)
                apply_queued(reader, known, queued, queued, self.clock)
            logged = [
                job
                for job in known.seen()
                if scope_id in (None, job.scope_id) and (not statuses or job.status in statuses)
            ]
            # a job in the history may have been created after one that is open
            return sorted([*reversed(kept), *logged], key=lambda job: job.created_at)

        await self.own_writes()
        return await run_connected(find)

    # -- actions ------------------------------------------------------------------------------------------------------

    async def require(self, spec: ActionSpec) -> ActionRecord:
        """Asks a person the question `spec` during a call of a tool that the job makes.

        The first time, this method does not return: the call of the tool is cancelled, and the job waits for the
        answer. After the answer, the tool is called again, and then this method returns the closed action. Raises
        UserError if the caller is not a tool of the job `spec.job_id`. The function of an agent asks by `ctx.ask`
        instead.
        """
        check("require: spec", spec, Of(ActionSpec, "ActionSpec(job_id=…)"))
        call, payload = CALL.get(), as_json(spec.payload, "payload")
        if call is None or call[1] is None or call[0].job != spec.job_id:
            within = "" if call is None else f", and this is a call of job {call[0].job}"
            raise UserError(
                f"job {spec.job_id} is a run of an agent, which asks by itself{within}",
                hint="in the agent's function: await ctx.ask('confirm', {…}); a tool of the job may call require_action",
            )
        seconds: Any = spec.timeout_seconds
        effect, ask, _ = call
        token = await ask(effect, spec.type, payload, seconds)
        return await run_connected(self._action_of, token)

    async def action(self, action_id: str) -> ActionRecord | None:
        found = await self.actions(job_id=action_id.rpartition("/")[0])
        return next((action for action in found if action.action_id == action_id), None)

    async def actions(self, *, job_id: str | None = None, statuses: Sequence[ActionStatus] = ()) -> list[ActionRecord]:
        def find() -> list[ActionRecord]:
            with self.reader() as reader:
                found = list(self._asking(reader, job_id, statuses).actions.values())
            return [action for action in map(self._in_time, found) if not statuses or action.status in statuses]

        await self.own_writes()
        return await run_connected(find)

    async def resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        return await run_connected(self._resolve, token, resolution, by)

    def _resolve(self, token: str, resolution: Mapping[str, Any], by: str) -> ActionRecord:
        asked = self._of_token(token)
        if asked is not None:
            check_resolution(asked, resolution)
        self.post(Letter("answer", token, body=as_json(dict(resolution), "resolution"), by=by))
        return self._action_of(token)

    async def close_action(self, action_id: str, status: ActionStatus) -> ActionRecord:
        action = await self.action(action_id)
        if action is None:
            raise no_action(action_id)
        try:
            await run_connected(self.post, Letter("withdraw", action.resume_token, name=status))
        except LetterRefused as refused:
            if refused.reason not in ("second", "closed"):
                raise
        return await run_connected(self._action_of, action.resume_token)

    def _of_token(self, token: str) -> ActionRecord | None:
        with self.reader() as reader:
            question = reader.question(token)
            return None if question is None else self._known(reader, question.job).of_token(token)

    def _action_of(self, token: str) -> ActionRecord:
        action = self._of_token(token)
        if action is None:  # the job has ended meanwhile, and is trimmed
            raise LetterRefused("the job of this question is over, and forgotten", reason="closed")
        return action

    def _in_time(self, action: ActionRecord) -> ActionRecord:
        """Returns the action, with the status EXPIRED if its time has run out and the process that runs the jobs has
        not closed it yet.
        """
        if action.overdue(self.clock.time()):
            action.status, action.resolved_at = ActionStatus.EXPIRED, action.expires_at
        return action

    # -- the journal --------------------------------------------------------------------------------------------------

    def _known(self, reader: JournalReader, job_id: str) -> JobView:
        """Returns one job and its actions, as the entries of the journal describe them. Answers to questions, and
        withdrawals of questions, are included even if they are still in the inbox of the journal.
        """
        # letters are read first: if the owner takes one meanwhile, it is seen twice and not missed
        letters = reader.letters()
        queued, _ = queued_begins(reader, [letter for letter in letters if letter.job == job_id])
        known = JobView.of(reader, job_id)
        apply_queued(reader, known, queued, queued, self.clock)
        return self._with_letters(reader, known, letters)

    def _asking(self, reader: JournalReader, job_id: str | None, statuses: Sequence[ActionStatus]) -> JobView:
        """Returns the jobs with the actions that may have one of these statuses, as `_known` does: for open actions only
        the jobs that wait, otherwise all in the log.
        """
        if job_id is not None:
            return self._known(reader, job_id)
        letters = reader.letters()
        is_open = bool(statuses) and set(statuses) == {ActionStatus.PENDING}
        jobs = (
            jobs_that_ask(reader) if is_open else [mark.job for mark in oldest_first(reader.logged(JobQuery(), EVERY))]
        )
        return self._with_letters(reader, JobView.of_jobs(reader, jobs), letters)

    def _with_letters(self, reader: JournalReader, known: JobView, letters: Sequence[Letter]) -> JobView:
        now_ms = round(self.clock.time() * 1000)
        for letter in letters:
            question = reader.question(letter.token) if letter.kind in ("answer", "withdraw") else None
            if question is not None and known.of_token(letter.token) is not None:
                known.apply(entry_of_letter(letter, question, now_ms))
        return known


def checked_limits_of_retry(budgets: BudgetSpec | Mapping[str, Any] | None, max_turns: int | None) -> None:
    """Raises UserError for limits that `retry_letter` does not take."""
    if max_turns is not None:
        check("retry: max_turns", max_turns, Whole(1))
    if budgets is not None:
        BudgetSpec.of(budgets)


def retry_letter(
    reader: JournalReader, job_id: str, budgets: BudgetSpec | Mapping[str, Any] | None, max_turns: int | None
) -> Letter:
    """Returns a letter that requests another run of a kernel's job, with other limits. The parameters are those of
    `AppJobs.retry`. Blocks. Raises the errors of that method.
    """
    checked_limits_of_retry(budgets, max_turns)
    mark, parent = reader.job(job_id), parent_of(job_id)[0]
    begun = [(at, entry) for at, entry in reader.read(job_id) if isinstance(entry, Begin)]
    if mark is None or not begun:
        why = "there is none of this name" if mark is None else "its entries are no longer in the journal"
        raise LetterRefused(f"job {job_id}: {why}", reason="unknown")
    if parent:
        raise UserError(
            f"job {job_id} is a child, and runs again when its parent asks for it",
            hint=f"retry job {first_of(job_id)}: what its children have done is kept",
        )
    at, begin = begun[-1]
    if begin.form != REQUEST:
        raise UserError(
            f"job {job_id} is none of a kernel",
            hint="a failed job of an app runs again when its dead letter is sent back: sabot jobs retry JOB --letters PLACE",
        )
    asked = unpack(reader.load(begin.body))
    if isinstance(budgets, Mapping):
        before = msgspec.convert(asked.get("budgets", {}), BudgetSpec, strict=False)
        budgets = dataclasses.replace(before, **budgets)
    given = {"budgets": budgets, "max_turns": max_turns}
    asked |= {name: value for name, value in given.items() if value is not None}
    body = pack(asked, "the request")
    again = msgspec.structs.replace(begin, body=body, run=begin.run + 1, origin=None, keeps=True)
    return Letter("retry", job=job_id, name=str(at.offset), body=encode_entry(again))


def _made(storage: MemoryStorage | None) -> MemoryStorage:
    if storage is None:
        raise UserError("the app has not run: its journal in memory is not made")
    return storage


class JobsAsked(NamedTuple):
    """The outcome of a request to many jobs.

    - `found`: the number of jobs that the query has selected.
    - `done`: the number of jobs whose request is durable.
    - `refused`: the other jobs, each with the reason.
    """

    found: int
    done: int
    refused: list[tuple[str, str]]


class AppJobs(JobManager):
    """The jobs of an app's durable agents (`app.jobs`). A program can use this object in any process that can reach the
    journal of the app.
    """

    store: AppJobStore

    def __init__(self, store: AppJobStore) -> None:
        super().__init__(store)

    async def retry(
        self, job_id: str, *, budgets: BudgetSpec | Mapping[str, Any] | None = None, max_turns: int | None = None
    ) -> JobRecord:
        """Requests that a kernel's job which has failed or was cancelled runs again, from where it stopped, as the same job.
        Results of effects are kept, so nothing that was done is done or paid again. Calls that have failed and may be
        repeated, calls that a limit or a rule has denied, and an answer of a model that did not fit are made anew.

        - `budgets`: the new limits of the job. A mapping changes only the limits that it names, and a BudgetSpec all of them.
          What the job has used so far counts. None keeps the limits.
        - `max_turns`: the most turns of the Agent in all runs of the job, in place of its own `max_turns`. None keeps the
          number.

        Returns the job as it was before. The request is durable when this method returns; the process that owns the journal
        takes it soon, or at its next start. There, `RuntimeKernel.handle` returns the handle of the next run. A job that was
        set aside, since several workers have died with it, goes on as it was, with the limits that it has.

        Raises LetterRefused if the journal has no such job, if the job has succeeded ("closed"), or if it has not ended or
        was retried already ("second"). Raises UserError for limits that are not valid, for a child, whose first parent has
        to be retried, and for a job of an app, whose dead letter has to be sent back.
        """
        job = await self.get(job_id)

        def post() -> None:
            with self.store.reader() as reader:
                letter = retry_letter(reader, job.job_id, budgets, max_turns)
            self.store.post(letter)

        await run_connected(post)
        return job

    async def conversation(
        self, agent: str, session: str, *, scope: str = "default", principal: str = ""
    ) -> Conversation:
        """Returns the conversation of a session of a kernel: what the next job of the session begins with. `agent` is the name
        of the Agent; the others are those of the requests (`ExecutionRequest`). The conversation is empty if no job of the
        session has succeeded, and if the journal has forgotten all of them.
        """
        for name, given in {"agent": agent, "session": session}.items():
            checked_word(given, f"conversation: {name}", empty=False)
        for name, given in {"scope": scope, "principal": principal}.items():
            checked_word(given, f"conversation: {name}")

        def read() -> Recalled:
            with self.store.reader() as reader:
                marks = reader.logged(JobQuery(agent, cut(scope), session=cut(session)), EVERY)
                ids = sorted({mark.agent for mark in marks})
                if len(ids) > 1:
                    raise UserError(
                        f"session {session} has jobs of the agents {', '.join(ids)}", hint="give the id of one of them"
                    )
                return recall(reader, SessionId(ids[0], scope, principal, session)) if ids else Recalled()

        await self.store.own_writes()
        return Conversation((await run_connected(read)).messages)

    async def page(self, query: JobQuery | Mapping[str, Any] | None = None, *, most: int = 200) -> JobPage:
        """Returns a page of the jobs that a query selects, the newest first, with the numbers of jobs by status on all pages.

        - `query`: the conditions by name: `agent`, `scope`, `key`, `session`, `status`, `text`, `since`, `until`, such as
          `{"status": "failed"}`; None for all jobs. The condition `after` is the field `following` of the page before.
        - `most`: the most jobs of the page.

        Raises UserError for a query that is not valid.
        """
        asked = JobQuery.of(query)
        check("page: most", most, Whole(1, 20_000))

        def page() -> JobPage:
            with self.store.reader() as reader:
                return jobs_page(reader, asked, most)

        await self.store.own_writes()
        return await run_connected(page)

    async def cancel_all(self, query: JobQuery | Mapping[str, Any], *, reason: str = "", by: str = "") -> "JobsAsked":
        """Requests that all jobs that a query selects end, as `cancel` does for one. The query is one of `page`, and selects
        jobs that have not ended; jobs below these end with them. `by` is the person who cancels them.

        Returns how many jobs were found, for how many the cancel is durable, and why the others have refused it.
        """
        asked = JobQuery.of(check("cancel_all: query", query, Of(JobQuery | Mapping, '{"agent": "shop.support"}')))
        checked_word(reason, "cancel_all: reason")
        checked_word(by, "cancel_all: by")
        is_open = set(STATUSES).difference(OUTCOMES)
        return await self._ask_all(asked, is_open, lambda _, job_id: cancel_letter(job_id, reason, by))

    async def retry_all(
        self,
        query: JobQuery | Mapping[str, Any],
        *,
        budgets: BudgetSpec | Mapping[str, Any] | None = None,
        max_turns: int | None = None,
    ) -> "JobsAsked":
        """Requests that all failed jobs of a kernel that a query selects run again, as `retry` does for one. The query is one of
        `page`. Cancelled jobs run again only if it says `{"status": "cancelled"}`.

        Returns how many jobs were found, for how many the retry is durable, and why the others have refused it.
        """
        asked = JobQuery.of(check("retry_all: query", query, Of(JobQuery | Mapping, '{"status": "failed"}')))
        checked_limits_of_retry(budgets, max_turns)
        statuses = MAY_BEGIN_AGAIN if asked.status else ("failed",)
        return await self._ask_all(
            asked, statuses, lambda reader, job_id: retry_letter(reader, job_id, budgets, max_turns)
        )

    async def _ask_all(
        self, query: JobQuery, statuses: Collection[str], letter: Callable[[JournalReader, str], Letter]
    ) -> "JobsAsked":
        def ask() -> JobsAsked:
            with self.store.reader() as reader, self.store.inbox() as inbox:
                found, refused = selected_jobs(reader, query, statuses), list[tuple[str, str]]()
                for some in parts(found):
                    letters = list[Letter]()
                    for job_id in some:
                        try:
                            letters.append(letter(reader, job_id))
                        except (LetterRefused, UserError) as error:
                            refused.append((job_id, error.message))
                    answers = zip(letters, inbox.post_all(letters), strict=True)
                    refused += [(each.job, error.message) for each, error in answers if error is not None]
                return JobsAsked(len(found), len(found) - len(refused), refused)

        await self.store.own_writes()
        return await run_connected(ask)

    async def signal(self, job_id: str, name: str, value: Any = None, *, token: str = "", by: str = "") -> None:
        """Sends a signal to a job. The call `ctx.wait(name)` in the job's function returns the value of the signal. The
        signal is kept if the job does not wait for it yet.

        - `value`: the value of the signal. It must be JSON.
        - `token`: identifies the signal. If a signal with the same token is sent again, LetterRefused ("second") is
          raised. With "" each call sends a new signal.
        - `by`: the person who sends it.

        The signal is durable when this method returns. Raises LetterRefused if there is no such job, or if it has
        ended.
        """
        if stored_id(checked_word(job_id, "signal: job_id")) != job_id:  # the form for URLs, or an odd id
            job_id = (await self.get(job_id)).job_id
        checked_word(name, "name", empty=False)
        checked_word(token, "signal: token")
        body = b"" if value is None else as_json(value, "the signal")
        letter = Letter(
            "signal", token or uuid.uuid4().hex, job=job_id, name=name, body=body, by=checked_word(by, "by")
        )
        await run_connected(self.store.post, letter)
