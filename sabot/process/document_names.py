"""The states of a child process under the names of the specifications 002, 003 and 004 (`docs/names.md` compares their names with
Sabot's). `phases.Phase` gives the state in each of the three for each phase of an instance.
"""

from enum import StrEnum


class LifecycleState(StrEnum):
    """The state of an instance in document 002."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    TERMINATED = "terminated"
    FAILED = "failed"


class AgentStatus(StrEnum):
    """The status of an instance in document 003. An instance of a runner works on one task from its start to its end, so
    its status is RUNNING or PAUSED until it has ended: it is never IDLE or THINKING.
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
