"""Agents on the engine; and jobs and actions, which need no App.

Nothing is loaded before it is named (`late`): jobs and actions bring the journal.
"""

from typing import TYPE_CHECKING

from sabot.late import late_names

if TYPE_CHECKING:
    from sabot.agents.accounts.budgets import Budget as Budget
    from sabot.agents.accounts.budgets import BudgetDecision as BudgetDecision
    from sabot.agents.accounts.contract import LedgerEvent as LedgerEvent
    from sabot.agents.accounts.contract import LedgerSum as LedgerSum
    from sabot.agents.accounts.contract import LedgerWriter as LedgerWriter
    from sabot.agents.accounts.ledger import BudgetExceededError as BudgetExceededError
    from sabot.agents.accounts.ledger import Ledger as Ledger
    from sabot.agents.accounts.rows import InMemoryLedgerWriter as InMemoryLedgerWriter
    from sabot.agents.accounts.rows import SqliteLedgerWriter as SqliteLedgerWriter
    from sabot.agents.actions import ActionManager as ActionManager
    from sabot.agents.actions import ActionRecord as ActionRecord
    from sabot.agents.actions import ActionSpec as ActionSpec
    from sabot.agents.actions import ActionStatus as ActionStatus
    from sabot.agents.actions import ActionStore as ActionStore
    from sabot.agents.context import BudgetSpec as BudgetSpec
    from sabot.agents.context import ExecutionContext as ExecutionContext
    from sabot.agents.context import PolicyRef as PolicyRef
    from sabot.agents.context import RunVersions as RunVersions
    from sabot.agents.events.brokers import KafkaConfig as KafkaConfig
    from sabot.agents.events.brokers import KafkaEventAdapter as KafkaEventAdapter
    from sabot.agents.events.brokers import RedisStreamsAdapter as RedisStreamsAdapter
    from sabot.agents.events.brokers import RedisStreamsConfig as RedisStreamsConfig
    from sabot.agents.events.bus import EventBus as EventBus
    from sabot.agents.events.bus import InMemoryEventBus as InMemoryEventBus
    from sabot.agents.events.bus import RuntimeEvent as RuntimeEvent
    from sabot.agents.events.bus import RuntimeEventType as RuntimeEventType
    from sabot.agents.events.bus import Subscription as Subscription
    from sabot.agents.events.otel import OpenTelemetryAdapter as OpenTelemetryAdapter
    from sabot.agents.events.otel import OTelConfig as OTelConfig
    from sabot.agents.jobs import JobManager as JobManager
    from sabot.agents.jobs import JobRecord as JobRecord
    from sabot.agents.jobs import JobSpec as JobSpec
    from sabot.agents.jobs import JobStatus as JobStatus
    from sabot.agents.jobs import JobStore as JobStore
    from sabot.agents.jobs import OpenEffect as OpenEffect
    from sabot.agents.kernel import ExecutionHandle as ExecutionHandle
    from sabot.agents.kernel import ExecutionRequest as ExecutionRequest
    from sabot.agents.kernel import ExecutionResult as ExecutionResult
    from sabot.agents.kernel import RuntimeKernel as RuntimeKernel
    from sabot.agents.orchestration import AgentNode as AgentNode
    from sabot.agents.orchestration import AgentStep as AgentStep
    from sabot.agents.orchestration import ChainOperator as ChainOperator
    from sabot.agents.orchestration import ConditionalNode as ConditionalNode
    from sabot.agents.orchestration import DebateOperator as DebateOperator
    from sabot.agents.orchestration import DepthExceeded as DepthExceeded
    from sabot.agents.orchestration import EndNode as EndNode
    from sabot.agents.orchestration import ExecutionGraph as ExecutionGraph
    from sabot.agents.orchestration import FlowCycle as FlowCycle
    from sabot.agents.orchestration import FlowError as FlowError
    from sabot.agents.orchestration import FlowFailed as FlowFailed
    from sabot.agents.orchestration import FlowTimeout as FlowTimeout
    from sabot.agents.orchestration import FunctionStep as FunctionStep
    from sabot.agents.orchestration import GraphEdge as GraphEdge
    from sabot.agents.orchestration import GraphExecutor as GraphExecutor
    from sabot.agents.orchestration import GraphNode as GraphNode
    from sabot.agents.orchestration import MapReduceOperator as MapReduceOperator
    from sabot.agents.orchestration import Operator as Operator
    from sabot.agents.orchestration import OperatorContext as OperatorContext
    from sabot.agents.orchestration import OperatorResult as OperatorResult
    from sabot.agents.orchestration import OrchestrationConfig as OrchestrationConfig
    from sabot.agents.orchestration import ParallelNode as ParallelNode
    from sabot.agents.orchestration import ParallelOperator as ParallelOperator
    from sabot.agents.orchestration import PlannerExecutorOperator as PlannerExecutorOperator
    from sabot.agents.orchestration import Router as Router
    from sabot.agents.orchestration import Workflow as Workflow
    from sabot.agents.orchestration import WorkflowState as WorkflowState
    from sabot.agents.plugins import Plugin as Plugin
    from sabot.agents.plugins import PluginCapability as PluginCapability
    from sabot.agents.plugins import PluginManifest as PluginManifest
    from sabot.agents.plugins import PluginRegistry as PluginRegistry
    from sabot.agents.policy.auditing import AuditRecord as AuditRecord
    from sabot.agents.policy.auditing import audit_job as audit_job
    from sabot.agents.policy.cedar import CedarPolicy as CedarPolicy
    from sabot.agents.policy.engine import PolicyEngine as PolicyEngine
    from sabot.agents.policy.engine import PolicyResult as PolicyResult
    from sabot.agents.policy.rules import AgentPolicy as AgentPolicy
    from sabot.agents.policy.rules import ConstraintPolicy as ConstraintPolicy
    from sabot.agents.policy.rules import DataAccessPolicy as DataAccessPolicy
    from sabot.agents.policy.rules import LabelPolicy as LabelPolicy
    from sabot.agents.policy.rules import ModelPolicy as ModelPolicy
    from sabot.agents.policy.rules import PolicyRule as PolicyRule
    from sabot.agents.policy.rules import RedactionPolicy as RedactionPolicy
    from sabot.agents.policy.rules import ToolPolicy as ToolPolicy
    from sabot.agents.replay import Forked as Forked
    from sabot.agents.replay import JobCode as JobCode
    from sabot.agents.replay import Recording as Recording
    from sabot.agents.replay import ReplayDifference as ReplayDifference
    from sabot.agents.replay import ReplayMode as ReplayMode
    from sabot.agents.replay import ReplayPlayer as ReplayPlayer
    from sabot.agents.replay import ReplayRecorder as ReplayRecorder
    from sabot.agents.replay import RunMetadata as RunMetadata
    from sabot.agents.replay import Verified as Verified
    from sabot.agents.replay import code_of as code_of
    from sabot.agents.replay import fork as fork
    from sabot.agents.replay import record_job as record_job
    from sabot.agents.runtime import AgentProcess as AgentProcess
    from sabot.agents.runtime import AgentRuntime as AgentRuntime
    from sabot.agents.runtime import AgentState as AgentState
    from sabot.agents.states import JobCheckpoint as JobCheckpoint
    from sabot.agents.states import JobCheckpointDamaged as JobCheckpointDamaged
    from sabot.agents.states import JobCheckpointFailed as JobCheckpointFailed
    from sabot.agents.states import JobCheckpointTooLarge as JobCheckpointTooLarge
    from sabot.agents.states import RestoreFailed as RestoreFailed
    from sabot.agents.states import StateManager as StateManager
    from sabot.agents.store import InMemoryActionStore as InMemoryActionStore
    from sabot.agents.store import InMemoryJobStore as InMemoryJobStore
    from sabot.agents.store import JournalStore as JournalStore
    from sabot.agents.stores.jobs import PostgresActionStore as PostgresActionStore
    from sabot.agents.stores.jobs import PostgresJobStore as PostgresJobStore
    from sabot.agents.stores.jobs import PostgresJobViews as PostgresJobViews
    from sabot.agents.stores.ledger import PostgresLedgerWriter as PostgresLedgerWriter
    from sabot.agents.stores.redis import RedisActionStore as RedisActionStore
    from sabot.agents.stores.redis import RedisJobCache as RedisJobCache
    from sabot.agents.stores.redis import RedisSignalChannel as RedisSignalChannel
    from sabot.agents.stores.redis_budgets import RedisBudgets as RedisBudgets
    from sabot.api.durable import DurableContext as DurableContext
    from sabot.api.durable import Reply as Reply
    from sabot.errors import EffectError as EffectError
    from sabot.errors import IdempotencyConflict as IdempotencyConflict
    from sabot.errors import IllegalTransition as IllegalTransition
    from sabot.errors import LetterRefused as LetterRefused
    from sabot.errors import NotSent as NotSent
    from sabot.errors import PolicyDenied as PolicyDenied
    from sabot.jobs.gate import Decision as Decision
    from sabot.jobs.gate import GatedCall as GatedCall
    from sabot.jobs.gate import GateVerdict as GateVerdict
    from sabot.jobs.tree import ChildLimits as ChildLimits
    from sabot.journal.effects import Reconciled as Reconciled
    from sabot.journal.kafka import KafkaInbox as KafkaInbox
    from sabot.journal.kafka import KafkaJournal as KafkaJournal
    from sabot.journal.postgres import PostgresInbox as PostgresInbox
    from sabot.journal.postgres import PostgresJournal as PostgresJournal
    from sabot.journal.sqlite import SqliteInbox as SqliteInbox
    from sabot.journal.sqlite import SqliteJournal as SqliteJournal
    from sabot.llm.tools import Effect as Effect
    from sabot.llm.tools import tool as tool

__all__ = [
    "ActionManager",
    "ActionRecord",
    "ActionSpec",
    "ActionStatus",
    "ActionStore",
    "AgentNode",
    "AgentPolicy",
    "AgentProcess",
    "AgentRuntime",
    "AgentState",
    "AgentStep",
    "AuditRecord",
    "Budget",
    "BudgetDecision",
    "BudgetExceededError",
    "BudgetSpec",
    "CedarPolicy",
    "ChainOperator",
    "ChildLimits",
    "ConditionalNode",
    "ConstraintPolicy",
    "DataAccessPolicy",
    "DebateOperator",
    "Decision",
    "DepthExceeded",
    "DurableContext",
    "Effect",
    "EffectError",
    "EndNode",
    "EventBus",
    "ExecutionContext",
    "ExecutionGraph",
    "ExecutionHandle",
    "ExecutionRequest",
    "ExecutionResult",
    "FlowCycle",
    "FlowError",
    "FlowFailed",
    "FlowTimeout",
    "FunctionStep",
    "GateVerdict",
    "GatedCall",
    "GraphEdge",
    "GraphExecutor",
    "GraphNode",
    "IdempotencyConflict",
    "IllegalTransition",
    "InMemoryActionStore",
    "InMemoryEventBus",
    "InMemoryJobStore",
    "InMemoryLedgerWriter",
    "JobCheckpoint",
    "JobCheckpointDamaged",
    "JobCheckpointFailed",
    "JobCheckpointTooLarge",
    "JobCode",
    "JobManager",
    "JobRecord",
    "JobSpec",
    "JobStatus",
    "JobStore",
    "JournalStore",
    "KafkaConfig",
    "KafkaEventAdapter",
    "KafkaInbox",
    "KafkaJournal",
    "LabelPolicy",
    "Ledger",
    "LedgerEvent",
    "LedgerSum",
    "LedgerWriter",
    "LetterRefused",
    "MapReduceOperator",
    "ModelPolicy",
    "NotSent",
    "OTelConfig",
    "OpenEffect",
    "OpenTelemetryAdapter",
    "Operator",
    "OperatorContext",
    "OperatorResult",
    "OrchestrationConfig",
    "ParallelNode",
    "ParallelOperator",
    "PlannerExecutorOperator",
    "Plugin",
    "PluginCapability",
    "PluginManifest",
    "PluginRegistry",
    "PolicyDenied",
    "PolicyEngine",
    "PolicyRef",
    "PolicyResult",
    "PolicyRule",
    "PostgresActionStore",
    "PostgresInbox",
    "PostgresJobStore",
    "PostgresJobViews",
    "PostgresJournal",
    "PostgresLedgerWriter",
    "Reconciled",
    "Recording",
    "RedactionPolicy",
    "RedisActionStore",
    "RedisBudgets",
    "RedisJobCache",
    "RedisSignalChannel",
    "RedisStreamsAdapter",
    "RedisStreamsConfig",
    "ReplayDifference",
    "ReplayMode",
    "ReplayPlayer",
    "ReplayRecorder",
    "Reply",
    "RestoreFailed",
    "Router",
    "RunMetadata",
    "RunVersions",
    "RuntimeEvent",
    "RuntimeEventType",
    "RuntimeKernel",
    "SqliteInbox",
    "SqliteJournal",
    "SqliteLedgerWriter",
    "StateManager",
    "Subscription",
    "ToolPolicy",
    "Verified",
    "Workflow",
    "WorkflowState",
    "audit_job",
    "code_of",
    "record_job",
    "tool",
]

_HOMES = {
    "sabot.agents.actions": ("ActionManager", "ActionRecord", "ActionSpec", "ActionStatus", "ActionStore"),
    "sabot.agents.events.brokers": ("KafkaConfig", "KafkaEventAdapter", "RedisStreamsAdapter", "RedisStreamsConfig"),
    "sabot.agents.policy.auditing": ("AuditRecord", "audit_job"),
    "sabot.agents.policy.cedar": ("CedarPolicy",),
    "sabot.agents.accounts.budgets": ("Budget", "BudgetDecision"),
    "sabot.agents.context": ("BudgetSpec", "ExecutionContext", "PolicyRef", "RunVersions"),
    "sabot.agents.events.bus": ("EventBus", "InMemoryEventBus", "RuntimeEvent", "RuntimeEventType", "Subscription"),
    "sabot.agents.kernel": ("ExecutionHandle", "ExecutionRequest", "ExecutionResult", "RuntimeKernel"),
    "sabot.agents.jobs": ("JobManager", "JobRecord", "JobSpec", "JobStatus", "JobStore", "OpenEffect"),
    "sabot.agents.accounts.contract": ("LedgerEvent", "LedgerSum", "LedgerWriter"),
    "sabot.agents.accounts.ledger": ("BudgetExceededError", "Ledger"),
    "sabot.agents.accounts.rows": ("InMemoryLedgerWriter", "SqliteLedgerWriter"),
    "sabot.agents.orchestration": (
        "AgentNode",
        "AgentStep",
        "ChainOperator",
        "ConditionalNode",
        "DebateOperator",
        "DepthExceeded",
        "EndNode",
        "ExecutionGraph",
        "FlowCycle",
        "FlowError",
        "FlowFailed",
        "FlowTimeout",
        "FunctionStep",
        "GraphEdge",
        "GraphExecutor",
        "GraphNode",
        "MapReduceOperator",
        "Operator",
        "OperatorContext",
        "OperatorResult",
        "OrchestrationConfig",
        "ParallelNode",
        "ParallelOperator",
        "PlannerExecutorOperator",
        "Router",
        "Workflow",
        "WorkflowState",
    ),
    "sabot.agents.events.otel": ("OTelConfig", "OpenTelemetryAdapter"),
    "sabot.agents.plugins": ("Plugin", "PluginCapability", "PluginManifest", "PluginRegistry"),
    "sabot.agents.policy.engine": ("PolicyEngine", "PolicyResult"),
    "sabot.agents.replay": (
        "Forked",
        "JobCode",
        "Recording",
        "ReplayDifference",
        "ReplayMode",
        "ReplayPlayer",
        "ReplayRecorder",
        "RunMetadata",
        "Verified",
        "code_of",
        "fork",
        "record_job",
    ),
    "sabot.agents.policy.rules": (
        "AgentPolicy",
        "ConstraintPolicy",
        "DataAccessPolicy",
        "LabelPolicy",
        "ModelPolicy",
        "PolicyRule",
        "RedactionPolicy",
        "ToolPolicy",
    ),
    "sabot.agents.runtime": ("AgentProcess", "AgentRuntime", "AgentState"),
    "sabot.agents.states": (
        "JobCheckpoint",
        "JobCheckpointDamaged",
        "JobCheckpointFailed",
        "JobCheckpointTooLarge",
        "RestoreFailed",
        "StateManager",
    ),
    "sabot.agents.store": ("InMemoryActionStore", "InMemoryJobStore", "JournalStore"),
    "sabot.agents.stores.jobs": ("PostgresActionStore", "PostgresJobStore", "PostgresJobViews"),
    "sabot.agents.stores.ledger": ("PostgresLedgerWriter",),
    "sabot.agents.stores.redis_budgets": ("RedisBudgets",),
    "sabot.agents.stores.redis": ("RedisActionStore", "RedisJobCache", "RedisSignalChannel"),
    "sabot.api.durable": ("DurableContext", "Reply"),
    "sabot.errors": (
        "EffectError",
        "IdempotencyConflict",
        "IllegalTransition",
        "LetterRefused",
        "NotSent",
        "PolicyDenied",
    ),
    "sabot.jobs.gate": ("Decision", "GateVerdict", "GatedCall"),
    "sabot.jobs.tree": ("ChildLimits",),
    "sabot.journal.effects": ("Reconciled",),
    "sabot.journal.kafka": ("KafkaInbox", "KafkaJournal"),
    "sabot.journal.postgres": ("PostgresInbox", "PostgresJournal"),
    "sabot.journal.sqlite": ("SqliteInbox", "SqliteJournal"),
    "sabot.llm.tools": ("Effect", "tool"),
}

if not TYPE_CHECKING:  # for type checkers every name would exist, misspelled ones too
    __getattr__, __dir__ = late_names(__name__, _HOMES)
