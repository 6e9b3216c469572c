"""The phases of an instance and their changes, with the states that the specifications 002, 003 and 004 have for each phase
(`docs/names.md` says which documents these are, and has the table).

Only `Instance.become` changes a phase, and only as the table `NEXT` allows. It is called by

- the verbs of an instance, which its owner calls: start, end, end_and_plan, restart, suspend, release, resume, work;
- the busy time of an agent with tasks (`RuntimeAgent.busy`);
- the planned start after a failure (`_start_later`);
- `_watch`, when the process has ended, for an instance with a TaskSet;
- `see`, which an owner calls before it reads a phase: it notices that somebody else has sent SIGSTOP or SIGCONT and, for
 an instance without a TaskSet, that the process has ended.

In `NEXT`, the comment above a row names the causes of the changes in that row, in the same order.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from sabot.process.document_names import AgentStatus, LifecycleState, ProcessState


class Phase(StrEnum):
    """The phase of an instance: the step of its life that Sabot works with. Each phase has the state that an instance in it has by the
    names of three specifications (`docs/names.md`): `lifecycle_state` of document 002, `agent_status` of 003, `process_state` of 004.
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
"""Phases in which the process runs: it was given no work yet, has work, or has done work. An instance to which its owner
gives no work, such as one of a lifecycle manager or a runner, stays ready as long as its process runs.
"""

OVER: Final = (Phase.COMPLETED, Phase.TERMINATED, Phase.FAILED)
"""Phases in which there is no process, and none is planned."""

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
