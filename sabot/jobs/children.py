"""The children of jobs: begun, unless their job may have no more of them, and told of where they have ended."""

from collections.abc import Callable

import msgspec

from sabot.errors import DataError, EffectError, UserError
from sabot.jobs.gate import EffectGate
from sabot.jobs.owner import Desk, Live
from sabot.jobs.run import Ask
from sabot.jobs.tree import ChildLimits, child_id, parent_of
from sabot.jobs.values import pack_error, unpack
from sabot.journal import EffectId
from sabot.journal.entries import EffectResult

__all__ = ["Children"]


class Children:
    """Its methods are parts of items of the host's task. limits: by agent."""

    def __init__(self, desk: Desk, gate: EffectGate | None, *, result: Callable[[Live, Ask, str, bytes], None]) -> None:
        """result: records what has come of an effect."""
        self.limits: dict[str, ChildLimits] = {}
        self._desk, self._gate, self._result = desk, gate, result

    def begin(self, live: Live, ask: Ask) -> None:
        """The child of this effect, unless it has begun."""
        child, failed = child_id(live.job.job_id, ask.ordinal), ask.ordinal in live.job.history.failed_children
        if child in self._desk.jobs:
            return  # it tells its end
        if (refusal := self._refused(live, ask)) is not None:
            self._result(live, ask, refusal.type, pack_error(refusal))
            return
        try:
            owner = self._desk.owner_of(ask.name)
            if owner is None:
                raise UserError(f"ctx.child: there is no durable agent {ask.name}")
            owner.begin_child(child, unpack(ask.body), failed=failed, behalf=live.job.behalf)
        except (UserError, DataError) as error:
            self._result(live, ask, type(error).__name__, pack_error(error))

    def _refused(self, live: Live, ask: Ask) -> EffectError | None:
        """Why a job may not begin this child; None: it may."""
        job, jobs = live.job, self._desk.jobs
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

    def over(self, job_id: str, outcome: str, body: bytes, labels: tuple[str, ...], ran_ms: int = 0) -> None:
        """A job has ended; if it is a child, its parent hears of it. body, labels: of its END. ran_ms: how long it has run."""
        if self._gate is not None:
            self._gate.over(job_id)
        parent, ordinal = parent_of(job_id)
        if parent not in self._desk.jobs:
            return
        live = self._desk.live(parent)
        if live is not None and ordinal not in live.job.open:
            return  # it was told before the restart
        told = "ok" if outcome == "succeeded" else outcome
        entry = EffectResult(parent, self._desk.now_ms(), ordinal, 1, told, body, labels=labels, ran_ms=ran_ms)
        if self._gate is not None:
            used = self._gate.settle(EffectId(parent, ordinal), "child", "", told, body, entry.at_ms)
            entry = msgspec.structs.replace(entry, usage=used)
        self._desk.arrived(self._desk.append(entry, live), entry)
