"""The phases of an instance and their changes, with the states that the specifications 002, 003 and 004 have for each phase
(`docs/names.md` says which documents these are, and has the table).

Only `Instance.become` changes a phase, and only as the table `NEXT` allows. These call `become`:

- the verbs of an instance, which are the methods that its owner calls to change the phase: start, end, end_and_plan,
  restart, suspend, release, resume, work;
- `RuntimeAgent.busy`, when a task begins and when it ends;
- `Instance._start_later`, which makes the planned start after a failure;
- `Instance._watch`, when the process has ended, for an instance with a TaskSet;
- `Instance.see`, which an owner calls before it reads a phase. It notices that somebody else has stopped the process
  (SIGSTOP) or continued it (SIGCONT) and, for an instance without a TaskSet, that the process has ended.

In `NEXT`, the comment above a row names the causes of the changes in that row, in the same order.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from sabot.process.document_names import AgentStatus, LifecycleState, ProcessState


class Phase(StrEnum):
    """The phase of an instance, which says what it does at present: for example starting, ready, or suspended.

    Three specifications have names of their own for the same state (`docs/names.md`). Each phase has these names as
    attributes: `lifecycle_state` is the name in specification 002, `agent_status` that in 003, and `process_state`
    that in 004.
    """

    lifecycle_state: LifecycleState
    agent_status: AgentStatus
    process_state: ProcessState

    def __new__(cls, value: str, state_of_002: str, state_of_003: str, state_of_004: str) -> "Phase":
        self = str.__new__(cls, value)
        self._value_ = value
        self.lifecycle_state = LifecycleState(state_of_002)
        self.agent_status = AgentStatus(state_of_003)
        self.process_state = ProcessState(state_of_004)
        return self

    NEW = "new", "pending", "Idle", "Initial"
    STARTING = "starting", "pending", "Initializing", "Starting"
    READY = "ready", "running", "Running", "Ready"
    BUSY = "busy", "running", "Thinking", "Busy"
    IDLE = "idle", "running", "Idle", "Idle"
    SUSPENDED = "suspended", "suspended", "Paused", "Idle"
    STOPPING = "stopping", "running", "Running", "ShuttingDown"
    WAITING = "waiting", "pending", "Initializing", "Terminated"
    COMPLETED = "completed", "terminated", "Completed", "Terminated"
    TERMINATED = "terminated", "terminated", "Terminated", "Terminated"
    FAILED = "failed", "failed", "Failed", "Terminated"


RUNS: Final = (Phase.READY, Phase.BUSY, Phase.IDLE)
"""The phases in which the process runs: it was given no work yet (READY), has work (BUSY), or has done its work (IDLE).
An instance whose owner never calls `work`, such as a lifecycle manager or a runner, stays READY as long as its process
runs.
"""

OVER: Final = (Phase.COMPLETED, Phase.TERMINATED, Phase.FAILED)
"""Phases in which no process is wanted, and none is planned. A process that could not be killed may still run."""

NEXT: Final[Mapping[Phase, tuple[Phase, ...]]] = {
    # start | end
    Phase.NEW: (Phase.STARTING, Phase.TERMINATED),
    # the process is ready | the start fails: tried again, or in a `resume` suspended as before, or ended meanwhile, or given up
    Phase.STARTING: (Phase.READY, Phase.WAITING, Phase.SUSPENDED, Phase.TERMINATED, Phase.FAILED),
    # work | suspend, release, or somebody stops the process (SIGSTOP) | end, end_and_plan, restart, or the process ends by itself
    Phase.READY: (Phase.BUSY, Phase.SUSPENDED, Phase.STOPPING),
    Phase.BUSY: (Phase.IDLE, Phase.SUSPENDED, Phase.STOPPING),
    Phase.IDLE: (Phase.BUSY, Phase.SUSPENDED, Phase.STOPPING),
    # resume, or SIGCONT: where it was | resume: in a new process | restart, end_and_plan
    # | end; or, without a restart policy, the process ends by itself
    Phase.SUSPENDED: (*RUNS, Phase.STARTING, Phase.WAITING, *OVER),
    # the end of the process, by the restart policy: another start is planned, or none
    Phase.STOPPING: (Phase.WAITING, *OVER),
    # the planned start | end
    Phase.WAITING: (Phase.STARTING, Phase.TERMINATED),
    Phase.COMPLETED: (),
    Phase.TERMINATED: (),
    # restart, which begins anew | end, which is for good
    Phase.FAILED: (Phase.WAITING, Phase.TERMINATED),
}
