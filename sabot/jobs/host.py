"""The host of jobs: begins jobs over a journal, delivers the outcomes of their effects, parks them, and ends them.

   begin ─▶ BEGIN ─▶ turn ─▶ INTENT ─▶ runner ─▶ RESULT ─▶ turn ─▶ … ─▶ END        (effects)
                       │                           ▲
                       └─ quiet, and all open effects take long: parked ────────────┘    (parking, timers)

One task of the host handles one event after the other (`_handle`): a job that begins, an outcome, a timer, the letters
of the inbox. Only this task appends entries, so each job gets its deliveries in the order of the journal. The task
never waits for a disk or for a call. It waits only if the queue of the journal is full, or if the listener is far
behind.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sabot.api.child_limits import DEFAULT_LIMITS, ChildLimits
from sabot.base.process_exit import EXITS
from sabot.base.stored_names import stored_name
from sabot.base.supervision import watch_task
from sabot.base.threads import run_in_thread, run_to_end
from sabot.clock import Clock
from sabot.engine.calls.effects import EffectId, digest
from sabot.engine.calls.judging import ValueCode, with_judge
from sabot.errors import NonDeterminism, SabotError, TransientError
from sabot.jobs.core import APPROVAL, OPEN, SEQUENCES_APART, LookedUp, Outcome, may_happen
from sabot.jobs.effects import Effects
from sabot.jobs.events import (
    Arrived,
    AttemptDue,
    BeginJob,
    CallAsked,
    Due,
    EffectWaited,
    Event,
    GiveBack,
    LastDurable,
    LettersCame,
    Loaded,
    NotBegun,
)
from sabot.jobs.guard import NOBODY, Behalf, EffectGuard, UseOf, declared_by
from sabot.jobs.history import NOT_MADE, PARKS_MS, ContinueAs, Delivery, History, rejects_answer
from sabot.jobs.host_state import HostState
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.judges import GuardJudge
from sabot.jobs.letters import JobLetters
from sabot.jobs.log import LAST_SECONDS, JobLog, Listener
from sabot.jobs.open_jobs import add_approvals, cancelled_unrun, open_jobs
from sabot.jobs.owner import JobOwner, OpenJob, RunningJob
from sabot.jobs.parking import ParkedNotes, Parking
from sabot.jobs.run import Ask, JobRun
from sabot.jobs.timers import JobTimers
from sabot.jobs.tree import UNAWAITED_CHILD, child_id, first_of, is_retry, parent_of
from sabot.jobs.values import as_before, pack_error, unpack_error
from sabot.journal import Journal, Position
from sabot.journal.base import EVERY, Approval, JobMark
from sabot.journal.ended_jobs import BLOCKED, JobQuery
from sabot.journal.entries import Answer, Attempt, Begin, EffectResult, End, Entry, Signal
from sabot.journal.memory import salt_of

if TYPE_CHECKING:
    from sabot.base.figures import ToldJobs

T = TypeVar("T")

_log = logging.getLogger(__name__)

STOP_GRACE_SECONDS = 30.0

_SLICE_SECONDS = 0.002  # then others get the event loop
_GIVES_BACK_SECONDS = 0.2  # between two looks of a stopping worker for trees whose calls have ended
_AGAIN_SECONDS = 0.05  # a timer of a job whose history is being read comes again so much later


class JobHost(HostState):
    """Runs jobs over a journal: begins them, delivers the outcomes of their effects to them, parks them, and ends
    them. A host belongs to one event loop.

    - `left`: the number of open jobs that `open` has left in the journal, and that are not in memory yet. Its caller sets it.
    - `fetched`: by id, open jobs that were fetched from there, and with which nobody has gone on.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        clock: Clock,
        on_broken: Callable[[str, BaseException], None],
        stop_grace_s: float = STOP_GRACE_SECONDS,
        notes: ParkedNotes | None = None,
        listener: Listener | None = None,
        guard: EffectGuard | None = None,
        use_of: UseOf | None = None,
        make_run: Callable[..., JobRun] = JobRun,
        on_letter: Callable[[OpenJob], None] | None = None,
        refusal: Callable[[OpenJob], Awaitable[str]] | None = None,
    ) -> None:
        """Makes a host for a journal.

        - `on_broken`: a function that is called when the journal or the host has failed, so that no job can continue.
          Its arguments are a text that says what has failed, and the error.
        - `stop_grace_s`: the seconds that running calls have to end when the host stops.
        - `notes`: the notes about parked jobs in the restored checkpoint; None if checkpoints have no such notes.
        - `listener`: gets every entry of the host's jobs, pieces of models' answers, and blocked jobs; None for no
          listener.
        - `guard`: decides which effects may be made; None allows all.
        - `use_of`: makes the usage of an answer of a model that no guard has counted; None records none.
        - `make_run`: makes the JobRun of a job.
        - `on_letter`: a function that is called when a letter has begun a job, for the first time or again, and when a job
          of another worker goes on here (`fresh` is False). It has to call `resume` as soon as the job may run. None for
          a host whose jobs are not begun by letters.
        - `refusal`: returns the reason why the code here cannot continue a job of another worker; "" if it can.
        """
        super().__init__(journal, clock, on_broken)
        self.stop_grace_s = stop_grace_s
        self._make_run = make_run
        self._on_letter, self._refusal = on_letter, refusal
        # jobs that a letter has begun, and whose history was not read since: their BEGIN, or None if more entries may be there
        self._unread: dict[str, Begin | None] = {}
        self._blocked: dict[str, NonDeterminism] = {}
        self._unnoted: dict[str, str] = {}  # of blocked jobs: the reasons that the journal has not noted yet
        self._noting: asyncio.Task[None] | None = None
        self._refusing: dict[
            str, str
        ] = {}  # by tree that other workers shall have: why this one does not go on with it
        self._given_back: set[str] = set()  # jobs that other workers go on with
        self._republished: set[str] = set()  # jobs that were open at the start, which the listener is told of again
        self._serving: asyncio.Task[None] | None = None
        self._delivering = False
        self._guard, self._judges = guard or EffectGuard(), guard is not None
        self._declared = declared_by(guard)
        self._judge: tuple[str, GuardJudge] | None = None  # of hooks, and the first of the owners when it was made
        self.log = JobLog(self, listener, kept=self._guard.leave, judge=self._judge_of_hooks)
        self._letters = JobLetters(self, self.log, self._fetch_trees)
        self.parking = Parking(self, notes, has_letter=self._letters.under_way)
        self._timers = JobTimers(self, keeps=self._awaits)
        self._effects = Effects(self, self.log, self._timers, clock, guard, use_of)
        self._begun_total = self._ended_total = 0
        self.left = 0
        self._wanted: list[str] = []  # jobs that are fetched with the next look for letters
        self.fetched: dict[str, OpenJob] = {}

    def _judge_of_hooks(self) -> GuardJudge | None:
        """Returns the judge of the calls that code makes which the host calls for no job: handlers of events, the writer of
        a ledger, a journal or an inbox of the program's own, rules. None if there is no guard.
        """
        if not self._judges:
            return None
        owner = next(iter(self.owners), "")
        if self._judge is None or self._judge[0] != owner:
            who = f"{owner.rpartition('.')[0]}.events"
            self._judge = owner, GuardJudge(who, who, self._guard, self.clock)
        return self._judge[1]

    def _judged(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Returns an awaitable of this work of the host, in which the calls of such code are judged."""
        judge = self._judge_of_hooks()
        return work if judge is None else with_judge(self.loop.create_task, judge)(work)

    # -- life ---------------------------------------------------------------------------------------------------------

    def register(self, agent_id: str, owner: JobOwner, children: ChildLimits = DEFAULT_LIMITS) -> None:
        """Registers the owner (the agent) of jobs. Must be called before these jobs begin. `children`: the limits on
        the children that these jobs may begin.
        """
        self.owners[agent_id] = owner
        self.jobs.limits[agent_id] = children

    async def open(
        self,
        positions: Mapping[int, int] | None,
        unapplied: Mapping[str, Position] | None = None,
        *,
        leaves: bool = False,
    ) -> list[OpenJob]:
        """Reads jobs from the journal when the app starts: all jobs that have not ended, and those whose end is not
        part of the restored checkpoint. Returns them in the order in which they began.

        - `positions`: by partition of the journal, the offset behind the last entry at that checkpoint; None if no
          checkpoint was restored, and then all jobs are returned.
        - `unapplied`: jobs that had ended before `positions`, but whose output and changes of the state the checkpoint
          does not contain (see `JobLog.facts`). The value is the position of the END entry.
        - `leaves`: True to leave the jobs in the journal, and to return only the trees of those that the guard has to take up
          (`EffectGuard.catch_up`). Until `fetch` reads the others, they do not go on, and the guard does not know their calls.
        """
        return await self._judged(self._opened(dict(positions or {}), dict(unapplied or {}), leaves=leaves))

    async def _opened(
        self, positions: Mapping[int, int], unapplied: Mapping[str, Position], *, leaves: bool
    ) -> list[OpenJob]:
        needed = await self._guard.catch_up(self.journal)
        jobs = await call_journal(_trees_of, self.journal, needed) if leaves and needed is not None else None
        found = await run_to_end(run_in_thread(self._read_first, positions, unapplied, jobs))
        await self.log.open()
        self._add_open(found)
        self.log.unapplied = {job.job_id: job.ended_at for job in found if job.ended_at is not None}
        await run_to_end(run_in_thread(self.parking.open, found))
        await self._effects.take(found)
        return found

    def _add_open(self, found: Iterable[OpenJob]) -> None:
        for job in found:
            if not job.cut:
                self.jobs.add(job.job_id, job.agent, begun=True, cancelled=job.cancelled)
        self._republished.update(job.job_id for job in found)

    async def fetch(self, jobs: Collection[str]) -> None:
        """Reads open jobs into `fetched` that `open` has left in the journal. Passes over those that are in memory. `jobs`: whole
        trees, but for jobs that have ended.
        """
        self._wanted += jobs
        await self.take_letters()

    async def fetch_tree(self, job_id: str) -> None:
        """Does the same for all jobs of the tree of a job."""
        await self.fetch(await call_journal(_trees_of, self.journal, [job_id]))

    async def _fetch_trees(self, jobs: Iterable[str], begun: Collection[str]) -> None:
        """Fetches the jobs of the trees of `jobs` from the journal, but for those of `begun`, which have begun now."""
        for job_id in jobs if self.left else ():
            if job_id not in self.jobs:
                tree = await call_journal(_trees_of, self.journal, [job_id])
                await self._judged(self._fetch([each for each in tree if each not in begun]))

    async def _fetch(self, jobs: Collection[str]) -> None:
        chosen = [each for each in jobs if each not in self.jobs]
        if not chosen or self.stopping:
            return
        await self.journal.flush()  # the letters to them are entries
        found = await self._read_open(self._read_left, chosen)
        self.left -= sum(1 for job in found if job.agent)
        self.fetched.update((job.job_id, job) for job in await self._known(found))

    async def _take_over(self, jobs: Collection[str]) -> None:
        """Goes on with the open jobs of a worker that is gone."""
        found = await self._read_open(self._read_taken_over, jobs)
        refused = await self._refused(found)
        for job in await self._known([job for job in found if first_of(job.job_id) not in refused]):
            if self._on_letter is not None:
                self._on_letter(job)

    async def _read_open(
        self, read: Callable[[Mapping[int, int], Collection[str]], list[OpenJob]], jobs: Collection[str]
    ) -> list[OpenJob]:
        positions = await call_journal(self.journal.positions)
        return await run_to_end(call_journal(read, positions, jobs))

    async def _known(self, found: Sequence[OpenJob]) -> list[OpenJob]:
        """Adds open jobs to those in memory. Ends those that a crash has cut short, and returns those that may go on."""
        self._add_open(found)
        await self._effects.take(found)
        for job in found:
            if job.cut:
                self.end_cut(job)
        return [job for job in found if job.agent and not job.cut]

    async def _refused(self, found: Sequence[OpenJob]) -> Mapping[str, str]:
        """Gives the trees back that the code of this worker cannot continue. Returns the reasons by the first job of each."""
        reasons, refusal = dict[str, str](), self._refusal
        for job in found if refusal is not None else ():
            if job.agent and not job.cut and refusal is not None and (why := await refusal(job)):
                _log.warning("job %s is left to workers of other code: %s", job.job_id, why)
                reasons.setdefault(first_of(job.job_id), why)
        self._refusing.update(reasons)
        await self._give_refused()
        return reasons

    async def _give_refused(self) -> None:
        if self._refusing:
            try:
                await run_in_thread(self.journal.begins.refuse, dict(self._refusing))
                self._refusing.clear()
            except TransientError as error:  # the next look for letters tries again
                _log.warning("%s: jobs are not given back yet: %s", self.journal.where, error)

    def end_cut(self, job: OpenJob) -> None:
        """Ends a job that a crash has cut short while its first entries were copied."""
        why = "a crash has cut short what it was to go on from"
        self.put(Arrived(End(job.job_id, self.now_ms(), "cancelled", why)))

    def _read_first(
        self, positions: Mapping[int, int], unapplied: Mapping[str, Position], jobs: Collection[str] | None
    ) -> list[OpenJob]:
        """Returns the jobs of `open`, or those of `jobs` if it is not None. Blocks. A sole owner also removes the notes about
        blocked jobs: they were about the code of an earlier start, and this one tries again to continue the jobs.
        """
        if not self.journal.begins.shared:
            self._unblock(self.journal.logged(JobQuery(status=BLOCKED), EVERY))
        return self._read(positions, unapplied, jobs, self.journal.approvals())

    def _read_left(self, positions: Mapping[int, int], jobs: Collection[str]) -> list[OpenJob]:
        """Returns those of the jobs that are open and that the start has left in the journal. Blocks."""
        return self._read(positions, {}, jobs, self.journal.approvals(jobs))

    def _read_taken_over(self, positions: Mapping[int, int], jobs: Collection[str]) -> list[OpenJob]:
        """Returns those of the jobs that are open, of workers that are gone. Blocks. Also reads the approvals that jobs of other
        workers have got, and removes the notes about blocked jobs.
        """
        self._unblock(map(self.journal.job, jobs))
        return self._read(positions, {}, jobs, self.journal.approvals())

    def _unblock(self, marks: Iterable[JobMark | None]) -> None:
        blocked = [mark.job for mark in marks if mark is not None and mark.status == BLOCKED]
        if blocked:
            self.journal.note_blocked(dict.fromkeys(blocked, ""))

    def _read(
        self,
        positions: Mapping[int, int],
        unapplied: Mapping[str, Position],
        jobs: Collection[str] | None,
        kept: Collection[Approval] | None,
    ) -> list[OpenJob]:
        """Returns the jobs of `open_jobs`, and notes the approvals that they have got and a crash has cut off. Blocks.

        `kept`: the approvals that the journal keeps, at least those of these jobs; None if it keeps none.
        """
        own = list[Approval]()
        found = open_jobs(self.journal, positions, unapplied, own, whole=kept is None, jobs=jobs)
        if kept is None and jobs is not None:
            found = [job for job in found if job.job_id in jobs]
        if kept is None:
            self.journal.keep_approvals(own)
        else:
            for approval in {*own} - {*kept}:  # a crash came before the next entry
                self.journal.note_approval(approval)
        add_approvals(self.standing, (*(kept or ()), *own))
        return found

    async def forget(self, jobs: Collection[str]) -> None:
        """Removes ended jobs from the journal, and with them the approvals for other jobs that they have got."""
        await run_in_thread(self.journal.forget, jobs)
        await self.journal.flush()  # with the approvals that wait for the next entry
        left = await call_journal(self.journal.approvals)
        if left is not None:
            self.standing.clear()
            add_approvals(self.standing, left)

    def start(self) -> None:
        """Starts the task that handles the events of the queue."""
        self.stopping = False
        if self._on_letter is not None:
            self.journal.begins.agents, self.journal.begins.declared = frozenset(self.owners), self._declared
            self.journal.begins.cancelled = lambda why: pack_error(asyncio.CancelledError(why))
        (with_judge(self._start, judge) if (judge := self._judge_of_hooks()) is not None else self._start)()

    def _start(self) -> None:
        self._serving = self.loop.create_task(self._serve(), name="jobs")
        what = "the task that runs jobs"
        watch_task(self._serving, what, partial(self.on_broken, what), stopped=lambda: self.stopping)
        self._timers.start()

    async def quiesce(self) -> None:
        """Stops the host, so that no further job begins and no further call is made. Waits up to `stop_grace_s`
        seconds for the outcomes of running calls, and records these.
        """
        self.stopping = True
        self.log.stop_waiting()
        self._timers.stop()
        # before the task ends: the outcomes of these calls are events, which it still has to record
        closing = self.loop.create_task(self._effects.runner.close(self.stop_grace_s))
        if self.journal.begins.shared:
            await self._give_back_until(closing)
        await closing
        if self._serving is None:
            return
        last: asyncio.Future[None] = self.loop.create_future()
        self.put(last)  # behind the last outcomes
        await asyncio.wait([last, self._serving], return_when=asyncio.FIRST_COMPLETED)
        self._serving.cancel()
        await asyncio.wait([self._serving])
        self._serving = None

    async def _give_back_until(self, closing: "asyncio.Task[None]") -> None:
        """Gives jobs back to the journal, so that other workers go on with them, until the calls of this one have ended: first
        those that only wait, then each tree whose last call has ended.
        """
        while self._serving is not None and not self._serving.done() and self.journal.claim_left():
            done: asyncio.Future[None] = self.loop.create_future()
            self.put(GiveBack(done))
            await asyncio.wait([done, self._serving], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([closing], timeout=_GIVES_BACK_SECONDS)
            if closing.done():
                return

    async def _give_back(self, event: GiveBack) -> None:
        try:
            ending = (job_id for job_id, running in self.running.items() if running.ending)
            busy = {first_of(job_id) for job_id in (*self._effects.runner.calling(), *ending)}
            given = [job_id for job_id in self.jobs if first_of(job_id) not in busy and job_id not in self._given_back]
            for job_id in given:
                if (running := self.running.get(job_id)) is not None:
                    self._remove(running)
                    running.job.discard()
            await self.journal.flush()
            if given:
                await run_in_thread(self.journal.begins.give_back, given)
            self._given_back.update(given)
        except TransientError as error:  # its lease ends with the stop, or by itself
            _log.warning("%s: jobs are not given back before the stop: %s", self.journal.where, error)
        finally:
            if not event.done.done():
                event.done.set_result(None)

    async def close(self) -> None:
        """Stops the host, removes all jobs from memory, and closes the guard. The jobs remain in the journal, and
        continue at the next start of the app.
        """
        await self._judged(self._close())

    async def _close(self) -> None:
        await self.quiesce()
        await self.log.wait_published()
        if self._noting is not None:
            await asyncio.wait([self._noting], timeout=LAST_SECONDS)
        for task in list(self.tasks):
            task.cancel()
        for running in [*self.running.values()]:
            self._remove(running)
            running.job.discard()
        try:
            await self._guard.close()
        except (SabotError, OSError) as error:  # the journal has it, and the next start reads it there
            _log.warning("%s: what its results have used is not kept elsewhere: %s", self.journal.where, error)

    @property
    def left_behind(self) -> list[str]:
        """The calls that were cancelled and are still running, each as a text for messages."""
        return list(self._effects.runner.left_behind)

    # -- what an agent asks -------------------------------------------------------------------------------------------

    def begin(
        self,
        agent_id: str,
        job_id: str,
        *,
        record: bytes,
        key: bytes,
        digest: bytes,
        run: int = 1,
        behalf: Behalf = NOBODY,
        taken: Sequence[Entry] = (),
        form: str = "",
        within: str = "",
    ) -> None:
        """Puts a new job into the queue of events. When the host handles that event, the job begins, unless it was
        cancelled before or the host is stopping.

        - `record`: the input, as bytes that the owner of the job can read. `digest`: the digest of the input.
        - `key`: the key of the job. Its owner lets jobs with the same key run one after the other.
        - `run`: 1 for a new job. It is higher if the job has failed or was cancelled before, and now runs again and
          keeps the recorded results of its effects.
        - `behalf`: the tenant, the actor and the session for which the job runs.
        - `taken`: if the job continues from a checkpoint of another job, the copied entries with which it begins;
          else empty.
        - `form`: the form of `record` (`Begin.form`). `within`: as in `Begin`.
        """
        self.jobs.add(job_id, agent_id, begun=False)
        self.put(BeginJob(agent_id, job_id, record, key, digest, run, behalf, taken, form, within))

    def _begin_job(self, event: BeginJob) -> None:
        """Handles the event that a new job may begin: records its BEGIN entry and starts its function. If the job was
        cancelled before, does not begin it; its owner and its parent are told that it was cancelled.
        """
        job_id, owner = event.job_id, self.owners[event.agent_id]
        if self.stopping:
            return
        if not self.jobs.begins(job_id):
            self.jobs.end(job_id)
            owner.job_closed(job_id, "cancelled")
            self._tell_parent(job_id, "cancelled", pack_error(asyncio.CancelledError(UNAWAITED_CHILD)), ())
            return
        behalf, session = event.behalf, event.behalf.session
        facts = event.agent_id, event.record, event.key, event.digest, owner.code, *behalf[:2], event.run, behalf.labels
        entry = self._begin_entry(job_id, facts, session, form=event.form, within=event.within, keeps=event.run > 1)
        entries: Sequence[Any] = event.taken or (entry,)
        self._guard.begin_job(entries[0], entries[1:])
        self._begun_total += 1
        if event.run == 1 and not event.taken:
            self._begin(History(entry), owner, entry)
            return
        for each in entries:
            self.log.append(each)
        self.parking.load(job_id)

    def _begin_entry(
        self, job_id: str, facts: Sequence[Any], session: str, salt: bytes | None = None, **more: Any
    ) -> Begin:
        """Returns a BEGIN entry. `facts`: its fields from `agent` to `labels`. `salt`: None for that of the journal. `more`:
        other fields by name.
        """
        parent = self.running.get(parent_of(job_id)[0])
        declared = self._declared if parent is None else self._declared | parent.job.history.declared
        salt = salt_of(self.journal) if salt is None else salt
        how: dict[str, Any] = {"seed": SEQUENCES_APART, "session": session, "salt": salt, **more}
        how["declared"] = tuple(sorted(declared))
        return Begin(job_id, self.now_ms(), *facts, **how)

    def begin_waiting(
        self,
        agent_id: str,
        job_id: str,
        *,
        record: bytes,
        key: bytes,
        digest: bytes,
        behalf: Behalf,
        failed: bool,
    ) -> OpenJob | None:
        """Records the BEGIN entry of a child that cannot run yet, because its agent still runs other jobs. May only be
        called while an event is handled.

        Without this entry, a child that may outlive its parent could be lost: if the parent ends and the app restarts,
        nobody requests the child again. Returns the child. The caller has to pass it to `resume` when it may run.

        Returns None and records nothing if the child may not outlive its parent, or if it has run and failed before
        (`failed` is True). The caller then has to call `begin` when the child may run.
        """
        if failed or not self.jobs.limits[self.jobs.agent_of(parent_of(job_id)[0])].outlive:
            return None
        facts = agent_id, record, key, digest, self.owners[agent_id].code, *behalf[:2], 1, behalf.labels
        entry = self._begin_entry(job_id, facts, behalf.session)
        self._guard.begin_job(entry)
        self.jobs.add(job_id, agent_id, begun=True)
        self._begun_total += 1
        at = self.log.append(entry)
        return OpenJob(
            job_id, agent_id, key, record, digest, at, True, None, last=at, begun_ms=entry.at_ms, behalf=behalf
        )

    def child_not_begun(self, job_id: str, outcome: str, body: bytes) -> None:
        """Reports to the parent of a child that the child will not begin. The parent gets `outcome` and `body` as if
        the child had ended with them.
        """
        self.put(NotBegun(job_id, outcome, body))

    def _begin(self, history: History, owner: JobOwner, entry: Begin) -> None:
        running = self._load(history, owner)
        self.log.append(entry, running)
        self._run(running, running.job.start, owner.call)

    def _load(self, history: History, owner: JobOwner, last: Position | None = None) -> RunningJob:
        """Makes a RunningJob for a job with this history, adds it to the jobs in memory, and returns it. `last`: the
        position of the history's last entry; None if it was not appended yet.
        """
        job = self._make_run(history.begin.job, history, key=self.journal.key, code=owner.code, pieces=self.log)
        job.lost_policy = history.lost(self._declared)
        running = self.running[job.job_id] = RunningJob(
            job, owner, last, since_ms=self.now_ms(), since_s=self.steady_s()
        )
        job.loop.allows_io = history.end is not None  # it ended under an older version, or another switch: so it stays
        self._effects.limit(running)
        return running

    def stays_parked(self, job: OpenJob) -> bool:
        """Parks an open job again, if the restored checkpoint has a valid note about it as a parked job. The owner of
        the job is told. Returns True if the job is parked, and False if its history has to be replayed instead.
        """
        return self.parking.take_up(job, self.owners[job.agent], self._timers)

    def resume(self, job: OpenJob) -> None:
        """Continues with a job that `open` has returned: replays its history, and then lets its function run on. If
        the job has failed or was cancelled, its history is not replayed; its owner and its parent are told of the end
        again. If the job is a child that has never run, or a new one that a letter has begun, its timers count from now.
        """
        is_new = job.last == job.began and job.run == 1
        waits = is_new and (parent_of(job.job_id)[0] or job.job_id in self._unread)
        if waits or (job.ended is not None and job.ended.outcome != "succeeded"):
            self.put(job)
        else:
            self.parking.load(job.job_id)

    def _resume(self, job: OpenJob) -> None:
        """Handles the event that a job which `open` or `begin_waiting` has returned may continue. If the job has
        ended, tells its owner and its parent. Otherwise begins the job; its BEGIN entry is already recorded.
        """
        job_id, end = job.job_id, job.ended
        if end is not None:
            self.jobs.end(job_id)
            self.log.unapplied.pop(job_id, None)
            if job.ended_at is not None:
                self.log.publish_again([(job.ended_at, end)])
            self.owners[job.agent].had_ended(job)
            self._tell_parent(job_id, end.outcome, self.journal.load(end.body), end.labels)
        elif job_id in self.jobs.cancelled:  # since it was begun; its function is not called
            self.parking.load(job_id)
        elif not self.stopping:
            begin = self._unread.get(job_id) if job.fresh else None
            if begin is not None:
                self.log.note_begun(job.began, begin)
            attempt = Attempt(job_id, self.now_ms(), 0, 1)  # its timers count from now
            at = self.log.append(attempt)
            if begin is None:
                self.parking.load(job_id)
            else:  # there is nothing to be read
                self._replay_job(job_id, [(job.began, begin), (at, attempt)], 0)

    async def mark_of(self, job_id: str) -> JobMark | None:
        """Returns what the journal knows about a job: whether it is open, or how it has ended. Returns None if the
        journal does not know the job.
        """
        return await call_journal(self.journal.job, job_id)

    # -- the task that serves -----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        monotonic = self.steady_s
        slice_end = monotonic() + _SLICE_SECONDS
        while True:
            if not self.events:
                self.waker = self.loop.create_future()
                await self.waker
                slice_end = monotonic() + _SLICE_SECONDS
                continue
            await self.journal.room()
            while self.log.behind is not None:
                await self.log.behind
            waiting = self._handle(self.events.popleft())
            if waiting is not None:
                await waiting
            if monotonic() > slice_end:  # a flood of events must not hold up the rest of the loop, such as a checkpoint
                await asyncio.sleep(0)
                slice_end = monotonic() + _SLICE_SECONDS

    def _handle(self, event: Event) -> Awaitable[None] | None:
        """Handles an event. Returns an awaitable that the caller has to await before the next event, or None."""
        effects = self._effects
        match event:
            case RunningJob():  # the two events of each effect come first, and capture nothing: that takes longer
                self._take_up(event)
            case Outcome() | LookedUp():
                effects.call_ended(event)
            case EffectWaited(running, ask, waited, call):
                effects.waited(running, ask, waited, call)
                self.deliver()
                if not self.stopping:
                    self.settle(running)
            case CallAsked():
                effects.call_asked(event)
            case Due(job_id, ordinal):
                self._due(job_id, ordinal)
            case LettersCame():
                return run_to_end(self._take_letters(event.posted_by))
            case BeginJob():
                self._begin_job(event)
            case OpenJob():
                self._resume(event)
            case NotBegun(job_id, outcome, body):
                self.jobs.not_begun(job_id)
                self._tell_parent(job_id, outcome, body, ())
            case Loaded(job_id, entries):
                self._replay_job(job_id, *self.parking.loaded(job_id, entries))
            case LastDurable(running, error):
                self._end_safely(running, error)
            case AttemptDue():
                self._attempt(event)
            case GiveBack():
                return run_to_end(self._give_back(event))
            case Arrived(entry, ask):
                self._arrived(entry, ask)
            case asyncio.Future():
                event.set_result(None)
        if self.told:
            self.deliver()
        return None

    async def take_letters(self) -> None:
        """Takes the letters that are in the inbox now, before the next look for them is due."""
        done: asyncio.Future[None] = self.loop.create_future()
        self.put(LettersCame())
        self.put(done)
        if self._serving is not None:
            await asyncio.wait([done, self._serving], return_when=asyncio.FIRST_COMPLETED)

    async def _take_letters(self, posted_by: str) -> None:
        begun = await self._letters.take()
        ends = {each.job: each for _, each in self.told if isinstance(each, End)} if begun else {}
        for position, begin in begun:
            if (end := ends.get(begin.job)) is not None:
                self._over_by_letter(position, begin, end)
            else:
                self._begun_by_letter(position, begin)
        self.journal.begins.begun_all()
        granted, self.journal.begins.granted = self.journal.begins.granted, []
        for go in granted:
            go()
        await self._give_refused()
        if jobs := self.journal.begins.taken_over:
            self.journal.begins.taken_over = []
            await self._judged(self._take_over(jobs))
        if wanted := self._wanted:
            self._wanted = []
            await self._judged(self._fetch(wanted))
        self.deliver()
        if posted_by and self._letters.taken(posted_by):
            self.parking.letters_taken(posted_by)

    def _over_by_letter(self, at: Position, begin: Begin, end: End) -> None:
        """Handles the BEGIN entry of a job that was cancelled before it has begun, for the first time or again, and that the
        journal has ended with it: its function is not called. Its agent need not be here.
        """
        self._begun_total += 1
        if self._on_letter is not None:
            self._on_letter(self._job_of_letter(at, begin, end))
        self._over(begin, end)

    def _begun_by_letter(self, at: Position, begin: Begin) -> None:
        """Handles the BEGIN entry that the journal has made from a letter: lets a new job run, or a failed or cancelled one
        run again.
        """
        if begin.agent not in self.owners or self._on_letter is None:
            _log.error(
                "job %s was to run again, and this program has no agent %s that begins it: start one that has it",
                *(begin.job, begin.agent),
            )
            return
        self.jobs.add(begin.job, begin.agent, begun=True)
        self._unread[begin.job] = None if is_retry(begin) else begin
        self._begun_total += 1
        self._on_letter(self._job_of_letter(at, begin, None))

    def _job_of_letter(self, at: Position, begin: Begin, end: End | None) -> OpenJob:
        facts = begin.agent, begin.key, begin.body, begin.digest, at, True, end
        behalf = Behalf(begin.scope, begin.principal, begin.labels, begin.session)
        return OpenJob(begin.job, *facts, last=at, begun_ms=begin.at_ms, behalf=behalf, run=begin.run)

    def _arrived(self, entry: Answer | Signal | End, ask: Ask | None) -> None:
        running = self.running.get(entry.job)
        # the effect may have ended meanwhile, or the job may have been loaded anew, which makes other objects of its effects
        if ask is not None and (running is None or running.job.open.get(ask.ordinal) is not ask):
            return
        # an answer to an earlier question about the effect
        if ask is not None and isinstance(entry, Answer) and entry.token != ask.token:
            return
        # it has waited in the queue, and the clock of a job shows the times of its entries, which must not go back
        entry = msgspec.structs.replace(entry, at_ms=self.now_ms())
        self.told.append((self.log.append(entry, running), entry))

    # -- turns --------------------------------------------------------------------------------------------------------

    def _run(self, running: RunningJob, turn: Callable[..., None], *given: Any) -> None:
        """Runs one turn of the job, in which its function runs until it waits again: calls `turn` with the arguments
        `given`, and handles its errors. If the function has requested effects, or no longer awaits some, puts the job
        into the queue so that the host handles these effects. Otherwise calls `settle`.
        """
        job = running.job
        try:
            turn(*given)
        except (Exception, *EXITS) as error:
            self._failed(running, error)
            return
        if job.blocked is not None:
            self._block(running, job.blocked)
            return
        if (job.new or job.gone) and not running.noting:
            running.noting = True
            self.put_front(running)
        else:
            self.settle(running)

    def _take_up(self, running: RunningJob) -> None:
        """Handles one effect that the function has requested or no longer awaits. If there are more such effects,
        puts the job into the queue again; otherwise calls `settle`. Each effect is an event of its own, because
        before each event the host waits until the journal has room for an entry.
        """
        job = running.job
        if job.new:
            self._effects.submit(running, job.new.popleft())
            if self.told:
                self.deliver()
        elif job.gone:
            self._drop(running, job.gone.popleft())
        if job.new or job.gone:
            self.put_front(running)
        else:
            running.noting = False
            self.settle(running)

    def _drop(self, running: RunningJob, ask: Ask) -> None:
        """Handles an effect that the function no longer awaits:

        - A question is withdrawn.
        - A child is cancelled, with all jobs below it.
        - A call that waits for the approval of its first attempt is not made. Its question is withdrawn, and the guard
          releases what it has reserved.
        - A call that waits for another attempt, because the last one was not sent, gets a result at once.
        - A call whose tool has asked a person gets its result when that question is withdrawn.
        """
        job, ordinal, now_ms = running.job, ask.ordinal, self.now_ms()
        if ordinal in job.open and ask.phase is APPROVAL:
            self._letters.withdraw(job.job_id, ordinal, ask.token, "cancelled")
            return
        if ordinal in job.open:
            self._effects.step(running, ask, "due")
            self.deliver()
            return
        if ask.token:
            self._letters.withdraw(job.job_id, ordinal, ask.token, "cancelled")
        if ask.kind == "call":  # a person has not allowed it yet
            self._guard.drop(EffectId(job.job_id, ordinal, ask.attempt))
        if ask.kind == "child":
            child = child_id(job.job_id, ordinal)
            has_begun = self.jobs.has_begun(child)
            told = self._append_all(self.jobs.drop(job.job_id, [ordinal], job.late or UNAWAITED_CHILD, now_ms))
            if running.in_memory and not job.history.has_result(ordinal):
                tries = int(has_begun or ordinal in job.history.failed_children)
                left = self._result_of_left(job.job_id, ordinal, tries)
                told.append((self.log.append(left, running), left))
            if running.in_memory and has_begun:
                self.given_up.add(child)
            self._effects.begin_waiting_children(running)
            self.deliver(told)

    def _result_of_left(self, job_id: str, ordinal: int, tries: int) -> EffectResult:
        """Returns the RESULT of a child that its job has given up. `tries`: 0 if the child has never begun."""
        error = pack_error(asyncio.CancelledError(UNAWAITED_CHILD))
        return EffectResult(job_id, self.now_ms(), ordinal, tries, NOT_MADE, error)

    def _leave_children(self, running: RunningJob) -> list[tuple[Position, Entry]]:
        """Cancels the open children of a job that is about to end or to begin a new history, and all jobs below them.
        Returns the CANCEL entries, which the caller has to deliver. If the children of the job's agent may outlive
        their parent, cancels none and returns an empty list. A child that has not begun gets a RESULT: if the job runs again,
        another one takes its place.
        """
        job, outlive = running.job, self.jobs.limits[self.jobs.agent_of(running.job.job_id)].outlive
        if running.waiting_children and outlive:
            self._effects.begin_waiting_children(running, all_of_them=True)
        open_children = [ask.ordinal for ask in job.open.values() if ask.kind == "child"]
        for ordinal in () if outlive else open_children:
            if job.open[ordinal].phase is OPEN and not self.jobs.has_begun(child_id(job.job_id, ordinal)):
                tries = int(ordinal in job.history.failed_children)
                self.log.append(self._result_of_left(job.job_id, ordinal, tries), running)
        why = job.late or f"job {job.job_id} has ended, and did not wait for it"
        return self._append_all(self.jobs.leave(job.job_id, open_children, why, self.now_ms()))

    def _append_all(self, entries: Iterable[Entry]) -> list[tuple[Position, Entry]]:
        return [(self.log.append(each), each) for each in entries]

    def _tell_parent(self, job_id: str, outcome: str, body: bytes, labels: tuple[str, ...], ran_ms: int = 0) -> None:
        """Reports the end of a job to its parent, as the result of the effect by which the parent has requested the
        job. Does nothing if no parent waits for it. A child that an earlier attempt of the parent has given up, and that
        the present one awaits, runs again instead, over what it has made.

        `outcome`: how the job has ended, such as "succeeded". `body`, `labels`: the values of these fields in the END
        entry of the job. `ran_ms`: the milliseconds that the job has run.
        """
        self._guard.end_job(job_id, self.now_ms())  # of a job that has not run here; else it has ended before
        parent, ordinal = parent_of(job_id)
        was_given_up = job_id in self.given_up
        self.given_up.discard(job_id)
        if was_given_up and outcome == "cancelled":  # the journal has that it was given up
            waits = self.running.get(parent)
            if waits is None:
                self.parking.let_run(parent)  # it asks for it anew, if it waits for it
            elif ordinal in waits.job.open and not self.stopping:
                self._effects.begin_again(waits, ordinal)
            return
        result = self.jobs.result(job_id, self.now_ms(), outcome, body, labels, ran_ms)
        running = None if result is None else self.running.get(result.job)
        if result is None or (running is not None and result.ordinal not in running.job.open):
            return  # it was told before the restart, or does not wait any more
        result = self._guard.settle(result, "child", "")
        self.deliver([(self.log.append(result, running), result)])

    def settle(self, running: RunningJob) -> None:
        """Decides how a job continues whose function does not run at present, because it has ended or waits for
        something.

        - The job ends if its function has ended and no running call may still change something outside of Sabot.
        - The job fails if its function waits for something that is not an effect, since nothing can wake it.
        - The job is parked if everything that it awaits takes long.
        - Otherwise the job remains in memory.
        """
        if not running.in_memory or running.ending or running.noting:
            return
        job, finished = running.job, running.job.finished
        if finished and not may_happen(job.open.values()):
            self._end(running)
        elif self.stopping:
            return  # what it has asked last is not in the journal
        elif not finished and not job.open:
            self._failed(running, job.stuck())
        elif (
            not running.undecided
            and job.may_park(self.clock.time())
            and not 0 < running.limit_s <= self.steady_s() + PARKS_MS / 1000  # else its time is over soon
        ):
            self._remove(running)
            self.parking.park(running, self.jobs.agent_of(job.job_id))

    def _remove(self, running: RunningJob) -> None:
        del self.running[running.job.job_id]
        running.in_memory = False
        self._effects.runner.leave(running.job.job_id)

    def deliver(self, entries: Iterable[tuple[Position, Entry]] = ()) -> None:
        """Delivers recorded entries to their jobs: first those in the attribute `told`, then `entries`. For each
        entry, the function of a job in memory runs until it waits again; a parked job is woken. Entries that are
        recorded during a delivery are delivered after all others.
        """
        told = self.told
        told.extend(entries)
        if self._delivering or not told:
            return
        self._delivering = True
        try:
            while told:
                position, entry = told.popleft()
                if not isinstance(entry, Delivery):
                    continue
                running = self.running.get(entry.job)
                if running is None:
                    if entry.job in self._unread:  # it comes before its function has run: the history has it
                        self._unread[entry.job] = None
                    self.parking.deliver(position, entry)
                    continue
                if running.last is None or running.last < position:
                    running.last = position
                ask = running.job.open.get(entry.ordinal) if isinstance(entry, Answer) else None
                if isinstance(entry, Answer) and ask is not None and ask.kind != "ask" and entry.token == ask.token:
                    self._effects.step(running, ask, entry)
                else:
                    self._run(running, running.job.deliver, entry)
                    if running.waiting_children and running.in_memory:  # the entry may be the result of a child
                        self._effects.begin_waiting_children(running)
        finally:
            self._delivering = False

    def _replay_job(self, job_id: str, entries: list[tuple[Position, Entry]], parked: int) -> None:
        if self.stopping:
            return
        if entries and isinstance(first := entries[0][1], Begin) and is_retry(first):
            # trimmed while it was begun again: without their results, its function would make each effect again
            why = "its earlier entries were removed from the journal when it was to run again"
            _log.error("job %s does not run: %s", job_id, why)
            self._end_unrun(first, why)
            return
        if (unrun := cancelled_unrun([entry for _, entry in entries])) is not None:
            if job_id in self._unread or job_id in self._republished:
                self._republished.discard(job_id)
                self.log.publish_again(entries)
            self._end_unrun(*unrun)
            return
        if job_id in self._unread:
            if self._unread.pop(job_id) is None:
                self._republished.add(job_id)
            at, begin = [(at, each) for at, each in entries if isinstance(each, Begin)][-1]
            self._guard.begin_job(begin, [each for place, each in entries if place < at])
        if job_id in self._republished:
            self._republished.remove(job_id)
            self.log.publish_again(entries)
        history = History.of(job_id, [entry for _, entry in entries], parked)
        self._effects.note_standing(history)
        owner = self.owners[history.begin.agent]
        running = self._load(history, owner, entries[-1][0])
        self._run(running, running.job.start, owner.call)

    def _end_unrun(self, begin: Begin, why: str) -> None:
        """Ends a job whose function is not called in this run."""
        self._unread.pop(begin.job, None)
        body = pack_error(asyncio.CancelledError(why))
        end = End(begin.job, self.now_ms(), "cancelled", why, body=body, labels=begin.labels)
        self.log.append(end)
        self.jobs.end(begin.job)
        self.owners[begin.agent].job_closed(begin.job, "cancelled")
        self._over(begin, end)

    def _over(self, begin: Begin, end: End) -> None:
        """Counts the end of a job whose function was not called in this run, and tells its parent."""
        self._ended_total += 1
        assert isinstance(end.body, bytes)
        self._tell_parent(begin.job, end.outcome, end.body, end.labels)

    # -- timers and letters -------------------------------------------------------------------------------------------

    def _awaits(self, job_id: str, ordinal: int) -> bool:
        running = self.running.get(job_id)
        return self.parking.awaits(job_id, ordinal) if running is None else running.awaits(ordinal)

    def _due(self, job_id: str, ordinal: int) -> None:
        """Handles a timer of a job that is due. If the timer belongs to a sleep, the sleep gets its result. If it is
        the deadline of a question, the question is withdrawn. `ordinal`: the ordinal of the effect for which the
        timer was set; 0 for the time limit of the job's attempt.
        """
        if not ordinal:
            self._effects.time_out(job_id)
            self.deliver()
            self.parking.time_out(job_id)
            return
        if not self._awaits(job_id, ordinal):
            return
        if self.parking.is_loading(job_id):
            self.put_later(_AGAIN_SECONDS, Due(job_id, ordinal))
            return
        running = self.running.get(job_id)
        asked = self.parking.asks(job_id, ordinal) if running is None else running.job.open[ordinal].kind != "sleep"
        if asked:
            token = self.parking.token_of(job_id, ordinal) if running is None else running.job.open[ordinal].token
            self._letters.withdraw(job_id, ordinal, token, "expired")
            return
        entry = EffectResult(job_id, self.now_ms(), ordinal)
        self.deliver([(self.log.append(entry, running), entry)])

    # -- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, running: RunningJob) -> None:
        """Ends a job whose function has ended, and which has no running call that may still change something outside
        of Sabot. If the owner's `leaves_at_once` is True, others can read the output at once; the job then ends only
        when its last entry is durable.
        """
        job, owner = running.job, running.owner
        value, error = job.outcome()
        if error is not None:
            self._failed(running, error)
            return
        recorded = job.history.end
        if owner.leaves_at_once and not running.safe and running.last is not None and recorded is None:
            running.ending = True
            self.log.when_durable(running.last, LastDurable(running, None))
            return
        try:
            output = owner.ended(job, value)
        except (Exception, *EXITS) as failure:
            self._failed(running, failure)
            return
        name = digest(self.journal.key, "output", "", output)
        if (
            recorded is not None
            and recorded.digest != name
            # a version that packed Decimals and times as texts may have written it
            and recorded.digest != digest(self.journal.key, "output", "", as_before(output))
        ):
            other = f"job {job.job_id} has given other output than before the restart"
            self.on_broken(f"job {job.job_id}", NonDeterminism(other, hint="bring the old code back"))
            return
        self._close_job(running, "succeeded", output, name)

    def _end_safely(self, running: RunningJob, error: BaseException | None) -> None:
        """Continues to end a job, now that its last entry is durable. `error`: the error that its function has
        raised; None if the function has returned.
        """
        running.ending, running.safe = False, True
        if running.in_memory and error is not None:
            self._failed(running, error)
        elif running.in_memory:
            self.settle(running)

    def _close_job(self, running: RunningJob, outcome: str, body: bytes, name: bytes = b"", result: str = "") -> None:
        """Writes the END entry of a job, removes the job from memory, and tells its owner and its parent.

        - `outcome`: "succeeded", "failed" or "cancelled".
        - `body`: the packed output or the packed error.
        - `name`: the digest of the output; b"" if there is none.
        - `result`: the type of the error, or the reason of the cancel; "" for a success.
        """
        job_id, labels, ran_ms = running.job.job_id, running.job.behalf.labels, running.ran_ms(self.steady_s())
        told: Sequence[tuple[Position, Entry]] = ()
        if running.job.history.end is None:
            self._effects.leave(running)
            told = self._leave_children(running)  # before END: where that is durable, they are told
            used = self._guard.end_job(job_id, self.now_ms())
            end = End(job_id, self.now_ms(), outcome, result, name, body, labels, used, running.job.form)
            self.log.append(end, running)
        self._forget(running)
        self.jobs.end(job_id)
        self.log.unapplied.pop(job_id, None)
        self._ended_total += 1
        running.owner.job_closed(job_id, outcome)
        self._tell_parent(job_id, outcome, body, labels, ran_ms)
        self.deliver(told)

    def _forget(self, running: RunningJob, *, stays_open: bool = False) -> None:
        """Removes a job from memory. `stays_open`: True if the job has not ended, so that it continues at the next
        start of the app.
        """
        self._remove(running)
        self._effects.forget(running, stays_open)
        running.job.discard()

    def _failed(self, running: RunningJob, error: BaseException) -> None:
        """Handles an error with which the function of a job has ended:

        - ContinueAs (`ctx.continue_as`): the job begins a new history.
        - CancelledError, if a cancel was requested: the job ends as cancelled.
        - Any other error: the job has failed. When its last entry is durable, `JobOwner.failed` decides what follows:
          another attempt, the end of the job as failed, or the stop of its agent. In the last case the job leaves
          memory and stays open.
        """
        job = running.job
        if isinstance(error, ContinueAs):
            try:
                with ValueCode("ctx.continue_as"):
                    record = running.owner.continued(job, error.message)
            except (Exception, *EXITS) as wrong:  # a message that cannot be recorded, or the code of its objects
                error = wrong
            else:
                self._continue(running, record)
                return
        if isinstance(error, asyncio.CancelledError):
            if job.cancels:
                self._close_job(running, "cancelled", pack_error(error), result=job.cancels[-1].reason)
                return
            error = RuntimeError("the call was cancelled from inside")
        if not running.safe and running.last is not None and job.history.end is None:
            running.ending = True
            self.log.when_durable(running.last, LastDurable(running, error))  # before its dead letter leaves
            return
        verdict = running.owner.failed(job, error)
        if verdict == "again":
            running.ending = True  # else the next outcome of a call would count as another failure of this attempt
            packed = pack_error(error)
            due = AttemptDue(running, packed if rejects_answer(unpack_error(packed)) else b"")
            self.put_later(running.owner.backoff_s(job.history.attempt), due)
        elif verdict == "end":
            self._close_job(running, "failed", pack_error(error, whole=True), result=stored_name(type(error)))
        else:
            self._forget(running, stays_open=True)

    def _attempt(self, event: AttemptDue) -> None:
        """Begins another attempt of a failed job: its function begins again, with a replay of its history. Effects
        that have succeeded keep their results, but for an answer of a model that the job could not use. Failed effects
        that may be repeated are requested again by the function.
        """
        running = event.running
        job_id = running.job.job_id
        if not running.in_memory or self.stopping:
            return
        if self._letters.under_way(job_id):  # what it has given up must stand before the attempt
            self.put_later(_AGAIN_SECONDS, event)
            return
        self._effects.leave(running)
        attempt = running.job.history.attempt + 1
        self.log.append(Attempt(job_id, self.now_ms(), 0, attempt, event.error, keeps=True), running)
        self._forget(running)
        self.parking.load(job_id)

    def _continue(self, running: RunningJob, record: bytes) -> None:
        """Begins a new history of the job, because its function has called `ctx.continue_as(message)`. `record`: the
        message as the input of the new history (`JobOwner.continued`).
        """
        self._effects.leave(running)
        told = self._leave_children(running)
        job, owner = running.job, running.owner
        old, behalf = job.history.begin, job.behalf
        facts = old.agent, record, old.key, old.digest, owner.code, *behalf[:2], old.run, behalf.labels
        entry = self._begin_entry(job.job_id, facts, old.session, old.salt, form=old.form)
        # ordinals go on, since the id of an effect, by which a service knows a call again, must never come twice
        job.history.last_ordinal = job.last_asked
        self._forget(running)
        self._begin(job.history.anew(entry), owner, entry)
        self.deliver(told)

    def _block(self, running: RunningJob, error: NonDeterminism) -> None:
        _log.error("%s", error)
        self._blocked[running.job.job_id] = error
        self._unnoted[running.job.job_id] = str(error)
        if self._noting is None:
            self._noting = self.spawn(self._note_blocked(), "what notes blocked jobs in the journal")
        self._forget(running, stays_open=True)
        self.log.blocked(running.job.job_id, error)
        running.owner.blocked(running.job.job_id, error)

    async def _note_blocked(self) -> None:
        """Notes in the journal which jobs are blocked. Those that are blocked meanwhile are noted together."""
        try:
            while self._unnoted:
                reasons, self._unnoted = self._unnoted, {}
                await self.journal.flush()  # a row of a job is there when its BEGIN entry is durable
                await call_journal(self.journal.note_blocked, reasons)
        finally:
            self._noting = None

    # -- figures ------------------------------------------------------------------------------------------------------

    def statistics(self) -> "ToldJobs":
        """Returns the figures since the start of the app, without `waiting`. From any thread."""
        return {
            "running": len(self.running) + self.parking.loading,
            "parked": self.parking.parked,
            "blocked": {job_id: str(error) for job_id, error in self._blocked.items()},
            "begun": self._begun_total,
            "ended": self._ended_total,
            "effects": self._effects.asked_total,
            "doubts": self._effects.doubts_total,
            "in_flight": self._effects.runner.in_flight(),
            "tools": self._effects.runner.tools(),
            "journal": self.journal.statistics(),
        }


def _trees_of(journal: Journal, jobs: Iterable[str]) -> list[str]:
    roots = {first_of(job_id) for job_id in jobs}
    return [*roots, *journal.logged_below(roots)]
