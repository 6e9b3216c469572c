"""A durable agent: each record is a job (`jobs.host`). After a crash, the job gets the results that its journal has.

    put ─▶ its turn? ─▶ ready ─▶ begun: BEGIN ─▶ runs ◀─▶ parked ─▶ ended: state, results, END, its row
             │                                                        │
             └─ behind its key: in memory; if that is parked, in the mailbox ◀─┘ the turn of the next

With `key=`, a key has at most one job at a time, even if that job is parked. `concurrency=` limits the jobs that run; a
parked job does not count. A row stays in the agent's queue until its job is parked or has ended.

A checkpoint saves the rows whose jobs have not begun. The journal has all other rows, and the checkpoint is complete only
when the journal is durable up to the barrier. If the source gives a row again whose job has begun, the row is recognised
by the id of the job and dropped.

The id of a job says where its record is: the agent, the identity of the log (`Source.identity`), partition and offset.
If the row came from another durable agent, the id is made from the id of the job that emitted it. With `job_id=` a field
of the record gives the id. A dead letter has the id in a header, so a record that is sent again belongs to the same job.
"""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from sabot._cython.arrow.batch import Batch
from sabot.agents.admission import JobAdmission
from sabot.agents.durable.context import apply_job_writes
from sabot.agents.durable.job_batches import is_batch
from sabot.agents.durable.job_function import job_function
from sabot.agents.durable.job_rows import (
    LAST_RUN,
    FailedRun,
    JobCall,
    JobInput,
    JobNames,
    begun_with,
    decode_record,
    first_digest,
    in_session,
    input_headers,
    input_of,
    inputs_of,
    json_headers,
    label_headers,
    payload_from,
    result_headers,
    row_of,
    rows_of_begun,
    value_headers,
    version_of,
)
from sabot.agents.durable.key_order import KeyOrder, OrderOwner
from sabot.agents.durable.waiting_rows import MailRoom
from sabot.api.agent import AgentSpec
from sabot.base.process_exit import EXITS
from sabot.base.supervision import watch_call, watch_task
from sabot.engine.calls.effects import digest
from sabot.engine.calls.judging import ValueCode
from sabot.engine.calls.limits import TokenBucket
from sabot.engine.operators.agents.operator import AgentOperator
from sabot.engine.operators.agents.rows import RecordReader, Row, place_of, results_of, waiting_batches
from sabot.engine.operators.agents.timers import key_of
from sabot.engine.operators.state_facts import AgentFacts
from sabot.errors import DataError, InputChanged, NonDeterminism, SabotError, UserError
from sabot.jobs.guard import Behalf
from sabot.jobs.host import JobHost
from sabot.jobs.journal_calls import call_journal
from sabot.jobs.open_jobs import last_begin
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.values import conversation_of, pack, pack_error, unpack, unpack_error
from sabot.journal.base import MAY_BEGIN_AGAIN
from sabot.journal.entries import VALUE, Begin

if TYPE_CHECKING:
    from sabot.base.figures import ToldLanes


class DurableAgentOperator(AgentOperator, OrderOwner):
    """The operator that runs a durable agent: it makes a job of each record, and decides when a job begins. It
    implements the interface `jobs.owner.JobOwner`, through which the JobHost uses an agent.

    `calls` contains, by job id, the jobs that may run or have begun. Rows that wait behind another job of their key
    are in `order`. `undecided` contains, by job id, the rows that are kept until the journal has answered whether a job
    with their id exists.
    """

    def __init__(
        self, spec: AgentSpec, *, host: JobHost, mail: MailRoom, leaves_at_once: bool, version: str = "", **wiring: Any
    ) -> None:
        """Makes the operator. No job begins before `admit` is called.

        - `host`: runs the jobs and writes the journal.
        - `mail`: the store of the mailboxes.
        - `leaves_at_once`: True if other programs can see results before a checkpoint is complete.
        - `version`: the version of the agent's code. With "" a hash of the code is used.
        - `wiring`: the arguments of the base class.
        """
        super().__init__(spec, version=version, **wiring)
        self.leaves_at_once, self.sleep_counts = leaves_at_once, False
        self.code = version_of(spec.func, version)
        self.names = JobNames(spec)
        self.hands_on = False  # True if this agent writes into another durable agent
        self.leaving = False  # True while the app drains: parked jobs stay parked
        self.host = host
        self.order = KeyOrder(spec, mail, self)
        self._reader = RecordReader(spec, self.key_kinds, self.codec_for, self._key_begun_with)
        self.function = job_function(spec, self.backend, self.clock)
        self._keyed = self.function.keyed
        self.calls: dict[str, JobCall] = {}
        self._admission = JobAdmission(spec.calls.concurrency, self._run, self._is_held)
        self._rate = None if spec.calls.rate is None else TokenBucket(spec.calls.rate)
        self._waits_for_rate: asyncio.TimerHandle | None = None
        self._known: dict[str, bytes] = {}  # by id of a job that the journal had at the start, the digest of its input
        self.undecided: dict[str, list[JobCall]] = {}  # by job id, rows that `is_known` could not compare yet
        self._begun: dict[tuple[str, int], int] = {}  # by topic and partition, the last offset whose job has begun
        self._duplicates = 0
        self._admitted = self._started = False
        self._waits_for_port: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        host.register(spec.agent_id, self, spec.children)

    # -- start and end ---------------------------------------------------------------------------------------------------------

    def restore(self, jobs: Iterable[OpenJob]) -> None:
        """Takes over the jobs of this agent that were open in the journal, and then the rows in its mailboxes. `jobs`
        must be in the order in which the jobs began. Must be called before the first row arrives.
        """
        calls = [self.open_call(job) for job in jobs]
        self._known = {call.job_id: call.digest for call in calls}
        self.order.restore(calls)

    def open_call(self, job: OpenJob) -> JobCall:
        """Makes the JobCall for a job that was open in the journal. Raises UserError if this agent processes single
        records and the job is one of a batch.
        """
        if self.spec.job_id is None and is_batch(job.job_id, self.spec.agent_id):
            raise UserError(
                f"agent {self.spec.agent_id} takes records, and its open job {job.job_id} has a batch",
                hint="keep batch=True until its jobs have ended",
            )
        self._note_begun(self.read_input(self.host.journal.load(job.body), job.job_id))
        self.function.opened(job.job_id, job.begun_ms)
        return JobCall(job.job_id, job.key if self._keyed else b"", job.digest, before=job, reopened=True)

    def own_facts(self) -> AgentFacts:
        """Returns the data that a checkpoint stores for this operator: the data of the base class, and `begun`, a
        list of [topic, partition, offset] with the greatest offset in each partition for which a job has begun.

        After a restart these offsets can be greater than the position of the source: open jobs continue at once, and
        the source reads their rows again later.
        """
        return {**super().own_facts(), "begun": [[*place, at] for place, at in sorted(self._begun.items())]}

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        super().take_facts(facts)
        for topic, partition, offset in facts.get("begun", ()):
            self._begun[topic, partition] = max(offset, self._begun.get((topic, partition), -1))

    def _note_begun(self, record: JobInput) -> None:
        place = record.topic, record.partition
        if record.offset > self._begun.get(place, -1) and record.topic in self.names.logs:
            self._begun[place] = record.offset

    def admit(self) -> None:
        """Allows jobs to begin. Called when a complete checkpoint contains the position in the journal, or at the start
        if the app makes no checkpoints. Jobs must not begin earlier: after a crash the journal would contain jobs, but
        the app would have no checkpoint that belongs to this journal.
        """
        self._admitted = True
        self.go_on()

    def start(self) -> None:
        self._started = True
        self.order.start(self.calls.values())
        self.go_on()

    async def quiesce(self, grace_s: float) -> None:
        """Prevents further jobs from beginning. Jobs that run are not stopped or awaited here: the JobHost does that.
        `grace_s` is not used.
        """
        self._started = False
        self.release()

    async def close(self) -> None:
        await self.quiesce(0.0)
        self.error_log.flush()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def stopped(self) -> bool:
        return not self._started

    def end_calls(self) -> None:
        """Does nothing, although the base class cancels calls when the agent has failed. Here running jobs continue,
        because calls of their effects may have been sent. No further job begins.
        """

    def busy(self) -> tuple[str, float] | None:
        """Returns None, because a checkpoint barrier does not wait for running jobs."""
        return None

    @property
    def unprocessed(self) -> bool:
        """True if there are jobs for which the end of the app must wait. These are the jobs that run, that are ready
        to run, or that are parked (they wait for something).

        Parked jobs are ignored while the app drains its inputs in order to stop. Blocked jobs, whose functions no
        longer match their journals, are always ignored.
        """
        jobs = self._admission
        return bool(jobs.waiting or jobs.running or (jobs.parked and not self.leaving))

    # -- input --------------------------------------------------------------------------------------------------------

    def put(self, batch: Batch) -> None:
        for row in self.take_records(self._reader, batch):
            record = input_of(row)
            call = JobCall("", row.scope, self._digest(record), record, row=row)
            begun = begun_with(self.host.journal.key, call.digest, row.headers) if row.headers else None
            try:
                self.names.name(call, row, None if begun is None else begun[1])
            except DataError as error:
                self.refuse(call, error)
            else:
                if call.failed_run:
                    call.digest = first_digest(self.host.journal.key, call.digest, row.headers)
                if row.offset <= self._begun.get((row.topic, row.partition), -1):
                    call.named = True  # the job may have begun and ended already: ask the journal
                self._add_call(call)
        self.go_on()

    def put_restored(self, batch: Batch, log: str | None) -> None:
        """Adds rows from a checkpoint. `log` is the identity that the log of their topic had at the checkpoint. If
        the topic was deleted and created again since then, the job ids of the rows are added as headers, because
        their positions now belong to other records. With None the rows are added unchanged.
        """
        self.put(batch if log is None else self.names.stamped(batch, log))

    def _add_call(self, call: JobCall) -> None:
        if not self.is_known(call):
            self.order.add(call)

    def is_known(self, call: JobCall) -> bool:
        """Decides whether the row of this call needs no new job, because a job with its id exists. Returns False if
        there is no such job. A dead letter that was sent again is only compared with jobs that wait or run, because a
        job that has failed may begin again.

        Returns True in these cases:

        - The row equals the input of that job. Then it is dropped.
        - The row differs from that input. Then it is refused as an error (`refuse`).
        - The journal is being asked for the input, and the row differs from the row for which it is asked. Then the row
          is kept in `undecided`, and is compared when the journal has answered.
        """
        other = self.calls.get(call.job_id)
        if other is not None and other.named and other.digest != call.digest:
            call.named = True
            self.undecided.setdefault(call.job_id, []).append(call)
            return True
        if other is not None:
            other.failed_run = max(other.failed_run, call.failed_run)  # used if the journal is being asked for the job
        before = other.digest if other is not None else None if call.failed_run else self._known.get(call.job_id)
        if before is not None:
            self.drop_known(call, before)
        return before is not None

    def drop_known(self, call: JobCall, before: bytes) -> None:
        """Drops the row of a call whose job has begun already. If the row differs from the job's input, refuses it as
        an error instead. `before` is the hash of that input.
        """
        if before != call.digest:
            error = InputChanged(
                f"job {call.job_id}: it began with another record than the one that has this id now",
                hint="was a topic or file replaced under its name? Only the same request may have the same value in the field of job_id=",
            )
            self.refuse(call, error)
            return
        self._duplicates += 1
        self.end_row(call)

    def refuse(self, call: JobCall, error: SabotError) -> None:
        """Handles a record that cannot become a job, because of `error`. It becomes a dead letter, with two
        exceptions:

        - If the record is the input of a child job, the error is reported to the parent job.
        - If the job with this id began with another record, and the agent has on_error="fail", the agent fails.
        """
        self.counters.errors_count += 1
        assert call.record is not None
        if call.record.offset < 0:  # it is a child
            self.host.child_not_begun(call.job_id, "failed", pack_error(error))
            return
        if isinstance(error, InputChanged) and self.spec.calls.on_error == "fail":
            self.fail(error, place_of(row_of(call.record)))
            return
        self.error_log.add(error, place_of(row_of(call.record)), "it is a dead letter")
        run = FailedRun(call.job_id, call.failed_run, call.digest, key=call.scope, behalf=call.behalf)
        self.send_to_dead_letters(call.record, run, error, 0)
        self.end_row(call)

    def _digest(self, record: JobInput | Row) -> bytes:
        return digest(self.host.journal.key, "input", self.spec.agent_id, [record.payload, record.key])

    def _key_begun_with(self, row: Row) -> Any:
        """Returns the key with which the job of a dead letter began, if it says so; else None (`RecordReader`)."""
        begun = begun_with(self.host.journal.key, self._digest(row), row.headers)
        return None if begun is None or not begun[0] else key_of(begun[0])

    @property
    def has_room(self) -> bool:  # False while rows wait in memory for a full mailbox
        return not self.order.crowded and super().has_room

    # -- methods for the order of keys (`key_order.OrderOwner`) -------------------------------------------------------

    def turn(self, call: JobCall) -> None:
        """Called when no other job of the call's key is open. Puts the call into the queue of jobs that may run.

        There is one exception. If the job was parked before the restart of the app, and the event for which it waits
        has not come, it is parked again and not queued.
        """
        self.calls[call.job_id] = call
        if call.before is None or not self.host.stays_parked(call.before):
            self._admission.wait(call)

    def has_failed(self) -> bool:
        return self.failure is not None

    def mail_room(self) -> None:
        self.release()

    # -- begin of jobs ---------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Lets as many jobs run as possible: first parked jobs that can continue, then new jobs. Stops when
        `concurrency=` jobs are running, when the next operator or the dead letter topic accepts no more rows, or when
        `rate=` is reached.
        """
        self._admission.go_on()
        if not self.unprocessed:
            self.release()

    def _is_held(self, call: JobCall) -> bool:
        """Returns True if the next job (`call`) must not run now. The reasons are:

        - The operator is stopped, has failed, or `admit` has not been called.
        - The next operator or the dead letter topic accepts no more rows. `go_on` is called when they accept rows
          again.
        - `rate=` is reached. `go_on` is called when the next job may begin. The rate limits new jobs, and jobs that
          were open in the journal when the app started. It does not limit parked jobs, nor calls about which the
          journal must first be asked (`JobCall.named`).
        """
        if not self._started or not self._admitted or self.failure is not None:
            return True
        if (self.port is not None and self.port.full) or self.dead_letters_full:
            self._wait_for_port()
            return True
        return not call.parked and not call.named and self._is_rate_limited()

    def _run(self, call: JobCall, was_parked: bool) -> None:
        """Lets a job run. `was_parked` is True if the job was parked in this run of the app: it waited for something,
        and its function was not in memory.

        - A parked job is loaded into memory and continues.
        - A job that was open in the journal continues from there.
        - If it is not certain that the job is new (`JobCall.named`), the journal is asked first.
        - Otherwise a new job begins.
        """
        if was_parked:
            self.host.parking.wake(call.job_id)
        elif call.before is not None:
            self.host.resume(call.before)
        elif call.named:
            self._spawn(self.ask_journal(call))
        else:
            self.begin(call)

    def begin(self, call: JobCall) -> None:
        """Begins the job of a call: lets the JobHost write its BEGIN entry and run it."""
        assert call.record is not None
        self._note_begun(call.record)
        behalf = in_session(call, self.spec.agent_id)
        self.host.begin(self.spec.agent_id, call.job_id, **inputs_of(call), run=call.run, behalf=behalf)

    async def ask_journal(self, call: JobCall) -> None:
        """Finds out from the journal whether the job of this call exists. The first of these rules that applies
        decides:

        - If the operator was stopped meanwhile, the call becomes the first in the queue, and the journal is asked again
          after the next start.
        - If the job does not exist, it begins.
        - If the job has failed or was cancelled, and the record is the dead letter of its last run, which was sent
          again, the job begins a new run that reuses the recorded results. If the entries of the job have been deleted
          from the journal, the record is refused instead.
          A child begins a new run too, also if it has succeeded after its parent had given it up.
        - Otherwise the record is dropped, or refused if it differs from the input of the job.
        """
        await self.host.journal.flush()  # entries of jobs that have just ended
        mark = await self.host.mark_of(call.job_id)
        if not self._started or (mark is None and not call.is_failed_child):
            call.named = not self._started
            self._begin_first(call)
            return
        again = mark is not None and (mark.outcome in MAY_BEGIN_AGAIN or call.is_failed_child)
        may_begin = mark is None or (call.failed_run and again and mark.digest == call.digest)
        begin = await call_journal(last_begin, self.host.journal, call.job_id) if may_begin else None
        if begin is not None and call.failed_run >= begin.run:
            if (error := self._misplaced(call, begin)) is None:
                labels = tuple(sorted({*begin.labels, *self.spec.labels}))
                call.behalf = Behalf(begin.scope, begin.principal, labels, begin.session)  # not those of the record
                call.named, call.run = False, begin.run + 1
                self._begin_first(call)
                return
            self.refuse(call, error)
        elif mark is not None and (begin is not None or not may_begin):
            # the job has succeeded, or has run again since the dead letter was written
            self.drop_known(call, mark.digest)
        else:
            forgotten = UserError(
                f"job {call.job_id} failed or was cancelled so long ago that its history has been deleted from the journal",
                hint="dedupe= says how long histories are kept; to process it again send a new record, without the header sabot.job",
            )
            self.refuse(call, forgotten)
        if self.failure is None:
            self._close_call(call)

    def _misplaced(self, call: JobCall, begin: Begin) -> UserError | None:
        """Returns the error for the dead letter of a job that has continued with a message of another key, if the letter
        does not say with which key the job began: it would run in the order of that other key. Otherwise returns None.
        """
        if not self._keyed or begin.key in (b"", call.scope):
            return None
        if call.record is None or call.digest == self._digest(call.record):
            return None  # key= of the agent has changed
        return UserError(
            f"job {call.job_id} began with {self.spec.key} {key_of(begin.key)!r}, and its dead letter has {key_of(call.scope)!r}",
            hint="send the dead letter with all of its headers; one that an earlier version wrote has no header sabot.begun",
        )

    def _begin_first(self, call: JobCall) -> None:
        """Puts the call at the front of the queue of jobs that may begin.

        Rows with the same job id may have been kept until the journal had answered. They are now compared with the
        row of this call: equal ones are dropped, and different ones are refused.
        """
        for other in () if call.named else self.undecided.pop(call.job_id, ()):
            mailed = other.mailed
            self.drop_undecided(other, call)
            if mailed:
                self.order.end(other)
        self._admission.leave(call)
        self._admission.wait(call, first=True)
        self.go_on()

    def drop_undecided(self, call: JobCall, begins: JobCall) -> None:
        """Drops the row of `call`, which was kept until the journal had answered, if it equals the row of `begins`.
        Otherwise refuses it as an error. `begins` is a call with the same job id, whose job begins now.
        """
        self.drop_known(call, begins.digest)

    def _is_rate_limited(self) -> bool:
        """Returns True if `rate=` allows no job to begin at present, and arranges that `go_on` is called when it
        does. Otherwise counts one more job as begun, and returns False.
        """
        if self._rate is None:
            return False
        wait_s = self._rate.wait_s(now := self.clock.monotonic())
        if not wait_s:
            self._rate.begun(now)
        elif self._waits_for_rate is None:
            what = f"the start of jobs of agent {self.spec.agent_id} after rate="
            go_on = watch_call(self._go_on_by_rate, what, partial(self.on_broken, what))
            self._waits_for_rate = self.loop.call_later(wait_s, go_on)
        return wait_s > 0

    def _go_on_by_rate(self) -> None:
        self._waits_for_rate = None
        self.go_on()

    def _wait_for_port(self) -> None:
        if self._waits_for_port is None:

            async def wait() -> None:
                if self.port is not None:
                    await self.port.writable()
                await self.dead_letters_writable()
                self._waits_for_port = None
                self.go_on()

            self._waits_for_port = self._spawn(wait())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts a task for the coroutine, and returns it. If the task fails, the error is passed to the operator's
        function `on_broken`.
        """
        what = f"the start of jobs of agent {self.spec.agent_id}"
        task = self.loop.create_task(work, name=what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return watch_task(task, what, partial(self.on_broken, what))

    # -- methods for the host (`jobs.owner.JobOwner`) -----------------------------------------------------------------

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        call = self.calls[job.job_id]
        call.begun = True
        call.ctx, call.record = self.function.context(job)  # type: ignore[assignment]  # a batch has its own
        return self.function.call(call.ctx)

    def ended(self, job: JobRun, value: Any) -> bytes:
        call = self.calls[job.job_id]
        with ValueCode(self.spec.agent_id):
            output = (
                ()
                if value is None
                else self.check_results(results_of(value, self.payload_of), value, f"job {job.job_id}")
            )
        packed, job.form = self.function.packed(job, value), VALUE
        record, ctx = call.record, call.ctx
        assert record is not None
        if self._keyed and ctx is not None:
            try:
                apply_job_writes(ctx)
            except (Exception, *EXITS) as error:
                self.on_broken(f"state, at the end of job {job.job_id}", error)
        if self.results is not None:
            carried = label_headers(job.labels)
            for number, (payload, key, headers, topic) in enumerate(output):
                into = self.results if topic is None else self.branches[topic]
                headers = (*headers, *carried)
                if self.hands_on:
                    headers = (*headers, *result_headers(job.job_id, number, replayed=call.reopened))
                key = record.key if key is None else key
                into.add(payload, key, record.timestamp, record.partition, record.offset, headers)
        self.counters.messages_processed += 1
        self.counters.last_message_time = self.clock.time()
        return packed

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        """Decides what follows after the function of a job has failed (`JobOwner.failed`). Returns "again" for another
        attempt, "end" if the record has become a dead letter and the job ends, or "stop" if the agent fails and the job
        stays open. The first of these that applies gives the result:

        - "stop" if the agent has failed already, or if the error asks for the end of the process, as SystemExit does.
        - "end" for an error that always makes a record a dead letter (`AgentSpec.buried`), and with on_error="skip".
        - With on_error="fail": "again" if the job was open in the journal when the app started and has not failed
          since, because the same error may have stopped the app before the restart. Otherwise "stop".
        - With on_error="retry": "again" until the allowed number of attempts is used up, and then "end".
        """
        call, attempts = self.calls[job.job_id], job.history.attempt
        self.counters.errors_count += 1
        record = self.read_input(job.history.begin.body, job.job_id)  # type: ignore[arg-type]
        where = f"{self.place(record)} (job {job.job_id})"
        if self.failure is not None:
            return "stop"
        policy = self.policy(error)
        if not isinstance(error, EXITS):
            self.log_error(error, where, attempts)
        if isinstance(error, EXITS) or (policy == "fail" and (not call.reopened or call.renewed)):
            self.fail(error, where)
            return "stop"
        if policy == "fail" or (policy == "retry" and attempts <= self.spec.calls.retry.retries):
            call.renewed = True
            return "again"
        # the same text as END has, so that a restore makes the same dead letter
        packed, begin = pack_error(error, whole=True), job.history.begin
        reported, said = unpack_error(packed), conversation_of(packed)
        behalf = Behalf(begin.scope, begin.principal, begin.labels, begin.session)
        run = FailedRun(job.job_id, begin.run, begin.digest, said, begin.key, behalf, tuple(job.labels))
        self.send_to_dead_letters(record, run, (reported.type, reported.message), attempts)
        return "end"

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        return None if (most := self.spec.calls.timeout_s) is None else (most, f"timeout={most:g}s")

    def backoff_s(self, attempt: int) -> float:
        return 0.0 if self.spec.calls.on_error == "fail" else self.spec.calls.retry.wait_s(attempt - 1)

    def continued(self, job: JobRun, message: Any) -> bytes:
        return self.function.continued(job, message)

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        if job_id in self.order.children or job_id in self.calls:
            return
        agent_id = self.spec.agent_id
        # The digest of the payload names the child's input: it is as in earlier versions.
        payload = payload_from(unpack(pack(message, "the message", exact=False)))
        row = Row(payload, None, self.now_ms(), -1, -1, (), agent_id)
        self._reader.decode(row)
        headers = value_headers(message, payload)
        record = JobInput(agent_id, -1, -1, row.timestamp, None, headers, row.payload)
        call = JobCall(job_id, row.scope, self._digest(record), record, failed, LAST_RUN * failed, behalf=behalf)
        if not self.is_known(call):
            self.order.add_child(call)
            behalf = in_session(call, agent_id)
            call.before = self.host.begin_waiting(agent_id, job_id, **inputs_of(call), failed=failed, behalf=behalf)
        self.go_on()

    def parked(self, job_id: str) -> None:
        call = self.calls[job_id]
        self._admission.park(call)
        self._suspend(call)

    def woken(self, job_id: str) -> None:
        """Called when the event has come for which a parked job waited. Queues the job to continue. It counts as
        parked until it runs.
        """
        self._admission.wait(self.calls[job_id], continues=True)
        self.go_on()

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Called when a job is blocked: its function no longer makes the effects that the journal contains. Registers
        the job as blocked with its error, and lets other keys continue. No other job of the same key begins until the
        app runs with code that fits, or the job is cancelled.
        """
        call = self.calls[job_id]
        call.blocked = True
        self.blocked_jobs[job_id] = error
        self._admission.leave(call)
        self._suspend(call)

    def job_closed(self, job_id: str, outcome: str) -> None:
        self._close_call(self.calls[job_id])

    def had_ended(self, job: OpenJob) -> None:
        if (end := job.ended) is not None and end.outcome == "failed":
            packed, began = self.host.journal.load(end.body), self.host.journal.load(job.body)
            error, record = unpack_error(packed), self.read_input(began, job.job_id)
            said = conversation_of(packed)
            run = FailedRun(job.job_id, job.run, job.digest, said, job.key, job.behalf, end.labels)
            self.send_to_dead_letters(record, run, (error.type, error.message), None)
        self._close_call(self.calls[job.job_id])

    def _suspend(self, call: JobCall) -> None:
        """Frees the memory of a job that is parked (it waits for something) or blocked (its function no longer
        matches its journal). Its row is removed from the queue, and the rows of its key that wait in memory are moved
        to the mailbox of the key. The job still prevents other jobs of its key from beginning.
        """
        call.ctx = None
        self.end_row(call)
        self.order.suspend(call)
        self.go_on()

    def _close_call(self, call: JobCall) -> None:
        """Removes a call whose job has ended, or that will have no job. The next job of the same key may then begin."""
        del self.calls[call.job_id]
        self.function.begun.pop(call.job_id, None)
        self._admission.leave(call)
        self.end_row(call)
        self.order.end(call)
        for other in self.undecided.pop(call.job_id, ()):
            if other.mailed:
                self.order.look_again(other)
            else:
                self._add_call(other)
        self.go_on()

    def end_row(self, call: JobCall) -> None:
        """Removes the row of a call from the agent's queue or its mailbox, so that later checkpoints do not store it.
        Does nothing if it was removed before.
        """
        row, call.row = call.row, None
        if call.mailed:
            call.mailed = False
            self.order.boxes.remove_first(call.scope)
        elif row is not None:
            self.rows_ended(row.held, last=self.held.end(row.held, row.place))

    def read_input(self, body: bytes, job_id: str) -> Any:
        """Decodes the input of a job. `body` is the body of its BEGIN entry. Returns a JobInput."""
        return decode_record(body)

    def place(self, record: Any) -> str:
        """Returns the position of an input as topic[partition]@offset, for messages."""
        return place_of(row_of(record))

    def send_to_dead_letters(
        self, record: Any, failed: FailedRun, error: BaseException | tuple[str, str], attempts: int | None
    ) -> None:
        """Writes a record to the dead letter topic.

        - `failed`: the job of the record and the number of its failed run. They are written into the headers.
        - `error`: the error, or its (type, message).
        - `attempts`: the number of attempts that failed, or None if it is not known.
        """
        row = row_of(record)
        row.headers = failed.headers((*row.headers, *json_headers(record, self.spec.format)))
        if failed.job_id:
            row.headers += input_headers(self.host.journal.key, self._digest(record), failed)
        self.dead_letter(row, error, attempts)

    # -- metrics and barriers -----------------------------------------------------------------------------------------

    def statistics(self) -> "ToldLanes":
        """Returns the figures of the base class and of the jobs. `running` and `in_flight` are the same."""
        return {
            **super().statistics(),
            "limit": self._admission.limit,
            "in_flight": self._admission.running,
            "running": self._admission.running,
            "parked": self._admission.parked,
            "blocked": len(self.blocked_jobs),
            "behind_blocked": self.order.behind_blocked,
            "mailbox_rows": self.order.boxes.rows,
            "duplicates": self._duplicates,
        }

    def unfinished(self) -> list[Batch]:
        """Returns the rows in the queue whose jobs have not begun. A checkpoint stores them, and after a restart they
        are added again. Other rows need not be stored: the journal contains their jobs, and it is durable before the
        checkpoint is complete. A batch agent also returns the rows of the jobs that run.
        """
        return waiting_batches(self.held, rows_of_begun(self.calls.values()))

    def earliest_read_ms(self) -> int:
        return min(self.function.begun.values(), default=self.now_ms())
