"""The phases of an instance and their changes, with the states that documents 002, 003 and 004 have for each phase.

A phase is changed by `Instance.become` alone, which holds every change to the table `NEXT`. Three kinds of code call it: the verbs of an
instance, which its owner calls; the planned start after a failure (`_start_later`); and the end of the process (`_watch`, or `see` for an
instance without a task of its own). Beside each row stands who brings about its changes, in the row's order.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class LifecycleState(StrEnum):
    """The state of an instance in document 002."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    FAILED = "failed"


class AgentStatus(StrEnum):
    """The status of an instance in document 003. An instance of a runner has one task from its start on: it is Running,
    Paused or over.
    """

    IDLE = "Idle"
    INITIALIZING = "Initializing"
    RUNNING = "Running"
    THINKING = "Thinking"
    PAUSED = "Paused"
    COMPLETED = "Completed"
    FAILED = "Failed"
    TERMINATED = "Terminated"


class ProcessState(StrEnum):
    """The state of an instance's process in document 004."""

    INITIAL = "Initial"
    STARTING = "Starting"
    READY = "Ready"
    BUSY = "Busy"
    IDLE = "Idle"
    SHUTTING_DOWN = "ShuttingDown"
    TERMINATED = "Terminated"


class Phase(StrEnum):
    """The phase of an instance, with its `lifecycle_state` (002), `agent_status` (003) and `process_state` (004)."""

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
"""Phases in which the process runs: it was given no work yet, has work, or has done work."""

OVER: Final = (Phase.COMPLETED, Phase.TERMINATED, Phase.FAILED)
"""Phases in which there is no process, and none is planned."""

NEXT: Final[Mapping[Phase, tuple[Phase, ...]]] = {
    # start | end
    Phase.NEW: (Phase.STARTING, Phase.TERMINATED),
    # the process is ready | the start fails: tried again, or in a `resume` suspended as before, or ended meanwhile, or given up
    Phase.STARTING: (Phase.READY, Phase.WAITING, Phase.SUSPENDED, Phase.TERMINATED, Phase.FAILED),
    # work | suspend, release, or somebody stops the process (SIGSTOP) | end, replace, restart, or the process ends by itself
    Phase.READY: (Phase.BUSY, Phase.SUSPENDED, Phase.STOPPING),
    Phase.BUSY: (Phase.IDLE, Phase.SUSPENDED, Phase.STOPPING),
    Phase.IDLE: (Phase.BUSY, Phase.SUSPENDED, Phase.STOPPING),
    # resume: where it was | resume: in a new process | restart, replace | the process ends by itself, or end
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
