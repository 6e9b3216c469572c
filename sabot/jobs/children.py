"""The children of jobs: begun, unless their job may have no more of them, and told of where they have ended."""

from collections.abc import Callable

import msgspec

from sabot.api.child_limits import ChildLimits
from sabot.base.stored_names import stored_name
from sabot.errors import DataError, EffectError, UserError
from sabot.jobs.core import EffectCommand
from sabot.jobs.guard import Behalf, EffectGuard
from sabot.jobs.owner import HostServices, OpenJob, RunningJob
from sabot.jobs.run import Ask
from sabot.jobs.tree import child_id, parent_of
from sabot.jobs.values import pack_error, unpack
from sabot.journal.effects import EffectId
from sabot.journal.entries import Attempt, Begin, EffectResult


class Children:
    """Its methods, but for `not_begun`, are parts of items of the host's task. limits: by agent."""

    def __init__(
        self, host: HostServices, guard: EffectGuard | None, *, do: Callable[[RunningJob, Ask, EffectCommand], None]
    ) -> None:
        """do: runs a command for an effect."""
        self.limits: dict[str, ChildLimits] = {}
        self.begun_total = 0  # of those that have waited so
        self._host, self._guard, self._do = host, guard, do

    def begin(self, running: RunningJob, ask: Ask) -> None:
        """The child of this effect, unless it has begun."""
        child, failed = child_id(running.job.job_id, ask.ordinal), ask.ordinal in running.job.history.failed_children
        if child in self._host.jobs:
            return  # it tells its end
        if (refusal := self._refused(running, ask)) is not None:
            self._do(running, ask, EffectCommand("result", refusal.type, pack_error(refusal)))
            return
        try:
            owner = self._host.owners.get(ask.name)
            if owner is None:
                raise UserError(f"ctx.child: there is no durable agent {ask.name}")
            self._host.jobs.ask(child)
            owner.begin_child(child, unpack(ask.body), failed=failed, behalf=running.job.behalf)
        except (UserError, DataError) as error:
            self._host.jobs.not_begun(child)
            self._do(running, ask, EffectCommand("result", stored_name(type(error)), pack_error(error)))

    def _refused(self, running: RunningJob, ask: Ask) -> EffectError | None:
        """Why a job may not begin this child; None: it may."""
        job, jobs = running.job, self._host.jobs
        if job.cancels or job.job_id in jobs.cancelled:
            return EffectError("JobCancelled", f"job {job.job_id} was cancelled, and begins no child {ask.name}")
        agent, chain = job.history.begin.agent, jobs.chain(job.job_id)
        limits = self.limits[agent]
        before = sum(each.kind == "child" and each.ordinal < ask.ordinal for each in job.open.values())
        if len(chain) > limits.max_depth:
            why = f"jobs of {agent} may be {limits.max_depth} levels of children deep (ChildLimits(max_depth=…))"
        elif before >= limits.max_child_jobs:
            why = f"a job of {agent} may have {limits.max_child_jobs} children at once (ChildLimits(max_child_jobs=…))"
        else:
            return None
        return EffectError("DepthExceeded", f"{' > '.join([*chain, ask.name])} is not begun: {why}")

    def begun(
        self,
        agent_id: str,
        job_id: str,
        *,
        record: bytes,
        key: bytes,
        digest: bytes,
        code: str,
        behalf: Behalf,
        failed: bool,
    ) -> OpenJob | None:
        """A child of this agent waits for its turn. Where it goes on when its job has ended, its BEGIN is recorded now: after a restart
        nobody might ask for it. failed: it has begun before. -> it, as `JobHost.resume` takes it; None: it begins at its turn.
        """
        host = self._host
        if failed or not self.limits[host.jobs.agent_of(parent_of(job_id)[0])].outlive:
            return None
        facts = code, *behalf[:2], 1, behalf.labels
        entry = Begin(job_id, host.now_ms(), agent_id, record, key, digest, *facts)
        if self._guard is not None:
            self._guard.begin_job(entry)
        host.jobs.add(job_id, agent_id, begun=True)
        self.begun_total += 1
        at = host.append(entry)
        return OpenJob(
            job_id, agent_id, key, record, digest, at, True, None, last=at, begun_ms=entry.at_ms, behalf=behalf
        )

    def turn(self, job_id: str, load: Callable[[str], None]) -> None:
        """The turn of a child that has waited, with its BEGIN in the journal: its timers count from now."""
        if not self._host.stopping:
            self._host.append(Attempt(job_id, self._host.now_ms(), 0, 1))
            load(job_id)

    def not_begun(self, job_id: str, outcome: str, body: bytes) -> None:
        """It does not begin: its parent is told this of it, as of its END."""

        def tell() -> None:
            self._host.jobs.not_begun(job_id)
            self.over(job_id, outcome, body, ())

        self._host.put(tell)

    def over(self, job_id: str, outcome: str, body: bytes, labels: tuple[str, ...], ran_ms: int = 0) -> None:
        """A job has ended; if it is a child, its parent hears of it. body, labels: of its END. ran_ms: how long it has run."""
        if self._guard is not None:
            self._guard.forget_job(job_id)
        parent, ordinal = parent_of(job_id)
        if parent not in self._host.jobs:
            return
        running = self._host.running.get(parent)
        if running is not None and ordinal not in running.job.open:
            return  # it was told before the restart
        told = "ok" if outcome == "succeeded" else outcome
        entry = EffectResult(parent, self._host.now_ms(), ordinal, 1, told, body, labels=labels, ran_ms=ran_ms)
        if self._guard is not None:
            used = self._guard.settle(EffectId(parent, ordinal), "child", "", told, body, entry.at_ms)
            entry = msgspec.structs.replace(entry, usage=used)
        self._host.deliver([(self._host.append(entry, running), entry)])
