"""Agents on the engine; and jobs and actions, which need no App.

Only what an app needs is loaded with this package. Jobs and actions bring the journal, so they are loaded when they are first named.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sabot.agents.runtime import AgentProcess, AgentRuntime, AgentState

if TYPE_CHECKING:
    from sabot.agents.actions import ActionManager as ActionManager
    from sabot.agents.actions import ActionRecord as ActionRecord
    from sabot.agents.actions import ActionSpec as ActionSpec
    from sabot.agents.actions import ActionStatus as ActionStatus
    from sabot.agents.actions import ActionStore as ActionStore
    from sabot.agents.context import BudgetSpec as BudgetSpec
    from sabot.agents.context import ExecutionContext as ExecutionContext
    from sabot.agents.context import PolicyRef as PolicyRef
    from sabot.agents.context import RunVersions as RunVersions
    from sabot.agents.events import EventBus as EventBus
    from sabot.agents.events import InMemoryEventBus as InMemoryEventBus
    from sabot.agents.events import RuntimeEvent as RuntimeEvent
    from sabot.agents.events import RuntimeEventType as RuntimeEventType
    from sabot.agents.events import Subscription as Subscription
    from sabot.agents.jobs import JobManager as JobManager
    from sabot.agents.jobs import JobRecord as JobRecord
    from sabot.agents.jobs import JobSpec as JobSpec
    from sabot.agents.jobs import JobStatus as JobStatus
    from sabot.agents.jobs import JobStore as JobStore
    from sabot.agents.jobs import OpenEffect as OpenEffect
    from sabot.agents.store import InMemoryActionStore as InMemoryActionStore
    from sabot.agents.store import InMemoryJobStore as InMemoryJobStore
    from sabot.agents.store import JournalStore as JournalStore
    from sabot.api.durable import DurableContext as DurableContext
    from sabot.api.durable import Reply as Reply
    from sabot.errors import EffectError as EffectError
    from sabot.errors import IdempotencyConflict as IdempotencyConflict
    from sabot.errors import IllegalTransition as IllegalTransition
    from sabot.errors import LetterRefused as LetterRefused
    from sabot.errors import NotSent as NotSent
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
    "AgentProcess",
    "AgentRuntime",
    "AgentState",
    "BudgetSpec",
    "DurableContext",
    "Effect",
    "EffectError",
    "EventBus",
    "ExecutionContext",
    "IdempotencyConflict",
    "IllegalTransition",
    "InMemoryActionStore",
    "InMemoryEventBus",
    "InMemoryJobStore",
    "JobManager",
    "JobRecord",
    "JobSpec",
    "JobStatus",
    "JobStore",
    "JournalStore",
    "KafkaInbox",
    "KafkaJournal",
    "LetterRefused",
    "NotSent",
    "OpenEffect",
    "PolicyRef",
    "PostgresInbox",
    "PostgresJournal",
    "Reconciled",
    "Reply",
    "RunVersions",
    "RuntimeEvent",
    "RuntimeEventType",
    "SqliteInbox",
    "SqliteJournal",
    "Subscription",
    "tool",
]

_HOMES = {
    "sabot.agents.actions": ("ActionManager", "ActionRecord", "ActionSpec", "ActionStatus", "ActionStore"),
    "sabot.agents.context": ("BudgetSpec", "ExecutionContext", "PolicyRef", "RunVersions"),
    "sabot.agents.events": ("EventBus", "InMemoryEventBus", "RuntimeEvent", "RuntimeEventType", "Subscription"),
    "sabot.agents.jobs": ("JobManager", "JobRecord", "JobSpec", "JobStatus", "JobStore", "OpenEffect"),
    "sabot.agents.store": ("InMemoryActionStore", "InMemoryJobStore", "JournalStore"),
    "sabot.api.durable": ("DurableContext", "Reply"),
    "sabot.errors": ("EffectError", "IdempotencyConflict", "IllegalTransition", "LetterRefused", "NotSent"),
    "sabot.journal.effects": ("Reconciled",),
    "sabot.journal.kafka": ("KafkaInbox", "KafkaJournal"),
    "sabot.journal.postgres": ("PostgresInbox", "PostgresJournal"),
    "sabot.journal.sqlite": ("SqliteInbox", "SqliteJournal"),
    "sabot.llm.tools": ("Effect", "tool"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
