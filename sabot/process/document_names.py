"""The states of a child process as documents 002, 003 and 004 name them. `phases.Phase` has the state of each phase."""

from enum import StrEnum


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
