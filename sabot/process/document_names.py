"""The states of a child process under the names of the specifications 002, 003 and 004 (`docs/names.md` compares their names with
Sabot's). `phases.Phase` gives the state in each of the three for each phase of an instance.
"""

from enum import StrEnum


class LifecycleState(StrEnum):
    """The state of an instance of a lifecycle manager, by its name in specification 002 (`docs/names.md`)."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    FAILED = "failed"


class AgentStatus(StrEnum):
    """The status of an instance of a runner, by its name in specification 003 (`docs/names.md`).

    Such an instance works on one task from its start to its end, so its status is RUNNING or PAUSED until it has
    ended: it is never IDLE or THINKING.
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
    """The state of the process of an instance of a runtime, by its name in specification 004 (`docs/names.md`)."""

    INITIAL = "Initial"
    STARTING = "Starting"
    READY = "Ready"
    BUSY = "Busy"
    IDLE = "Idle"
    SHUTTING_DOWN = "ShuttingDown"
    TERMINATED = "Terminated"
