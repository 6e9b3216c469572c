"""Agents that are processes: a supervisor, itself a process, that starts and owns every child of a worker; their streams, limits and ends.

`import sabot` loads nothing of it, and neither does the supervisor, which needs the standard library alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sabot.process.client import (
        Child,
        Command,
        ExitStatus,
        ProcessUsage,
        Supervisor,
    )
    from sabot.process.errors import (
        AgentError,
        CommunicationError,
        ExecutionError,
        InvalidContext,
        IoError,
        NotFound,
        ProviderError,
        SpawnFailed,
        Timeout,
    )
    from sabot.process.limits import (
        ResourceLimits,
    )
    from sabot.process.runner import (
        AgentConfig,
        AgentHandle,
        AgentInfo,
        AgentMetrics,
        AgentSignal,
        AgentStatus,
        GracefulShutdown,
        LocalProcessRunner,
        ProcessRunnerConfig,
    )
    from sabot.process.streams import (
        ChildInput,
        ChildOutput,
    )

__all__ = [
    "AgentConfig",
    "AgentError",
    "AgentHandle",
    "AgentInfo",
    "AgentMetrics",
    "AgentSignal",
    "AgentStatus",
    "Child",
    "ChildInput",
    "ChildOutput",
    "Command",
    "CommunicationError",
    "ExecutionError",
    "ExitStatus",
    "GracefulShutdown",
    "InvalidContext",
    "IoError",
    "LocalProcessRunner",
    "NotFound",
    "ProcessRunnerConfig",
    "ProcessUsage",
    "ProviderError",
    "ResourceLimits",
    "SpawnFailed",
    "Supervisor",
    "Timeout",
]

_HOMES = {
    "sabot.process.client": (
        "Child",
        "Command",
        "ExitStatus",
        "ProcessUsage",
        "Supervisor",
    ),
    "sabot.process.errors": (
        "AgentError",
        "CommunicationError",
        "ExecutionError",
        "InvalidContext",
        "IoError",
        "NotFound",
        "ProviderError",
        "SpawnFailed",
        "Timeout",
    ),
    "sabot.process.limits": ("ResourceLimits",),
    "sabot.process.runner": (
        "AgentConfig",
        "AgentHandle",
        "AgentInfo",
        "AgentMetrics",
        "AgentSignal",
        "AgentStatus",
        "GracefulShutdown",
        "LocalProcessRunner",
        "ProcessRunnerConfig",
    ),
    "sabot.process.streams": (
        "ChildInput",
        "ChildOutput",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
