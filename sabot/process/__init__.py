"""Agents that are processes: a supervisor, itself a process, that starts and owns every child of a worker; their streams, limits and ends.

`import sabot` loads nothing of it, and neither does the supervisor, which needs the standard library alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sabot.process.client import (
        Child,
        Supervisor,
    )
    from sabot.process.command import (
        Command,
    )
    from sabot.process.errors import (
        AgentError,
        AgentNotFound,
        AgentNotSpawned,
        CommunicationError,
        DrainTimeout,
        ExecutionError,
        InvalidContext,
        InvalidQuota,
        IoError,
        LifecycleError,
        NotFound,
        ProviderError,
        QuotaError,
        QuotaExceeded,
        QuotaNotFound,
        QuotaSuspendFailed,
        QuotaTerminateFailed,
        QuotaUpdateFailed,
        ResourceLimitExceeded,
        RestartFailed,
        ResumeFailed,
        SandboxError,
        SandboxPathRefused,
        SandboxStepFailed,
        SandboxUnavailable,
        ScaleDownFailed,
        ScaleUpFailed,
        SpawnFailed,
        SuspendFailed,
        TerminateFailed,
        Timeout,
        TrustExceeded,
        UnknownAgent,
        WarmPoolExhausted,
    )
    from sabot.process.executor import (
        AgentExecutor,
        ExecutorStatistics,
        TaskDelegation,
        TaskResult,
        ToolRequest,
        ToolServers,
    )
    from sabot.process.fleet.instances import (
        AgentInstance,
        InstanceInfo,
        LifecycleConfig,
        LifecycleState,
    )
    from sabot.process.fleet.lifecycle import (
        LifecycleManager,
    )
    from sabot.process.fleet.quotas import (
        CountsTokens,
        QuotaAction,
        QuotaMode,
        QuotaResource,
        QuotaViolation,
        ResourceQuota,
        ResourceReport,
    )
    from sabot.process.fleet.recommending import (
        FleetConfig,
        FleetMetrics,
        ScalingDecision,
    )
    from sabot.process.fleet.resources import (
        ResourceManager,
    )
    from sabot.process.fleet.scaling import (
        FleetManager,
        FleetReplica,
    )
    from sabot.process.fleet.warm import (
        WarmPool,
        WarmPoolConfig,
        WarmPoolStatus,
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
    from sabot.process.runtime import (
        MonitoringConfig,
        ProcessConfig,
        ProcessEvent,
        ProcessEventBus,
        ProcessRuntime,
        ProcessStatistics,
        RecoveryConfig,
        RuntimeConfig,
        RuntimeStatistics,
    )
    from sabot.process.sandbox import (
        Sandbox,
        SandboxSupport,
        TrustLevel,
    )
    from sabot.process.status import (
        ExitStatus,
        ProcessUsage,
    )
    from sabot.process.streams import (
        ChildInput,
        ChildOutput,
    )
    from sabot.process.worker import (
        ProcessState,
        RuntimeAgent,
    )

__all__ = [
    "AgentConfig",
    "AgentError",
    "AgentExecutor",
    "AgentHandle",
    "AgentInfo",
    "AgentInstance",
    "AgentMetrics",
    "AgentNotFound",
    "AgentNotSpawned",
    "AgentSignal",
    "AgentStatus",
    "Child",
    "ChildInput",
    "ChildOutput",
    "Command",
    "CommunicationError",
    "CountsTokens",
    "DrainTimeout",
    "ExecutionError",
    "ExecutorStatistics",
    "ExitStatus",
    "FleetConfig",
    "FleetManager",
    "FleetMetrics",
    "FleetReplica",
    "GracefulShutdown",
    "InstanceInfo",
    "InvalidContext",
    "InvalidQuota",
    "IoError",
    "LifecycleConfig",
    "LifecycleError",
    "LifecycleManager",
    "LifecycleState",
    "LocalProcessRunner",
    "MonitoringConfig",
    "NotFound",
    "ProcessConfig",
    "ProcessEvent",
    "ProcessEventBus",
    "ProcessRunnerConfig",
    "ProcessRuntime",
    "ProcessState",
    "ProcessStatistics",
    "ProcessUsage",
    "ProviderError",
    "QuotaAction",
    "QuotaError",
    "QuotaExceeded",
    "QuotaMode",
    "QuotaNotFound",
    "QuotaResource",
    "QuotaSuspendFailed",
    "QuotaTerminateFailed",
    "QuotaUpdateFailed",
    "QuotaViolation",
    "RecoveryConfig",
    "ResourceLimitExceeded",
    "ResourceLimits",
    "ResourceManager",
    "ResourceQuota",
    "ResourceReport",
    "RestartFailed",
    "ResumeFailed",
    "RuntimeAgent",
    "RuntimeConfig",
    "RuntimeStatistics",
    "Sandbox",
    "SandboxError",
    "SandboxPathRefused",
    "SandboxStepFailed",
    "SandboxSupport",
    "SandboxUnavailable",
    "ScaleDownFailed",
    "ScaleUpFailed",
    "ScalingDecision",
    "SpawnFailed",
    "Supervisor",
    "SuspendFailed",
    "TaskDelegation",
    "TaskResult",
    "TerminateFailed",
    "Timeout",
    "ToolRequest",
    "ToolServers",
    "TrustExceeded",
    "TrustLevel",
    "UnknownAgent",
    "WarmPool",
    "WarmPoolConfig",
    "WarmPoolExhausted",
    "WarmPoolStatus",
]

_HOMES = {
    "sabot.process.client": (
        "Child",
        "Supervisor",
    ),
    "sabot.process.command": ("Command",),
    "sabot.process.errors": (
        "AgentError",
        "AgentNotFound",
        "AgentNotSpawned",
        "CommunicationError",
        "DrainTimeout",
        "ExecutionError",
        "InvalidContext",
        "InvalidQuota",
        "IoError",
        "LifecycleError",
        "NotFound",
        "ProviderError",
        "QuotaError",
        "QuotaExceeded",
        "QuotaNotFound",
        "QuotaSuspendFailed",
        "QuotaTerminateFailed",
        "QuotaUpdateFailed",
        "ResourceLimitExceeded",
        "RestartFailed",
        "ResumeFailed",
        "SandboxError",
        "SandboxPathRefused",
        "SandboxStepFailed",
        "SandboxUnavailable",
        "ScaleDownFailed",
        "ScaleUpFailed",
        "SpawnFailed",
        "SuspendFailed",
        "TerminateFailed",
        "Timeout",
        "TrustExceeded",
        "UnknownAgent",
        "WarmPoolExhausted",
    ),
    "sabot.process.executor": (
        "AgentExecutor",
        "ExecutorStatistics",
        "TaskDelegation",
        "TaskResult",
        "ToolRequest",
        "ToolServers",
    ),
    "sabot.process.fleet.instances": (
        "AgentInstance",
        "InstanceInfo",
        "LifecycleConfig",
        "LifecycleState",
    ),
    "sabot.process.fleet.lifecycle": ("LifecycleManager",),
    "sabot.process.fleet.quotas": (
        "CountsTokens",
        "QuotaAction",
        "QuotaMode",
        "QuotaResource",
        "QuotaViolation",
        "ResourceQuota",
        "ResourceReport",
    ),
    "sabot.process.fleet.recommending": (
        "FleetConfig",
        "FleetMetrics",
        "ScalingDecision",
    ),
    "sabot.process.fleet.resources": ("ResourceManager",),
    "sabot.process.fleet.scaling": (
        "FleetManager",
        "FleetReplica",
    ),
    "sabot.process.fleet.warm": (
        "WarmPool",
        "WarmPoolConfig",
        "WarmPoolStatus",
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
    "sabot.process.runtime": (
        "MonitoringConfig",
        "ProcessConfig",
        "ProcessEvent",
        "ProcessEventBus",
        "ProcessRuntime",
        "ProcessStatistics",
        "RecoveryConfig",
        "RuntimeConfig",
        "RuntimeStatistics",
    ),
    "sabot.process.sandbox": (
        "Sandbox",
        "SandboxSupport",
        "TrustLevel",
    ),
    "sabot.process.status": (
        "ExitStatus",
        "ProcessUsage",
    ),
    "sabot.process.streams": (
        "ChildInput",
        "ChildOutput",
    ),
    "sabot.process.worker": (
        "ProcessState",
        "RuntimeAgent",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
