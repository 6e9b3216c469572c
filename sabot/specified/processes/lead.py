"""The lead agent of document 004: a query becomes tasks of workers, and their results become one answer.

    query ─▶ memories of the workspace ─▶ plan: (kind of worker, task), … ─▶ workers, side by side ─▶ one answer ─▶ remembered

`LeadAgent` is made with the eight collaborators that the document names. `LeadAgentWithRuntime` gives the tasks to
instances of a `ProcessRuntime`. If this process ends, a query that is under way is lost. For queries that must survive
this, use a durable agent with child jobs.
"""

import inspect
import logging
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from copy import copy
from typing import Any

from sabot.base.checks import Of, check, check_called
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import SabotError, UserError, short_repr
from sabot.process.command import ToolRequest
from sabot.process.errors import AgentNotFound, ExecutionError, InvalidContext
from sabot.specified.processes.executor import TaskDelegation, TaskResult, ToolServers
from sabot.specified.processes.runtime import (
    ProcessEvent,
    ProcessEventBus,
    ProcessRuntime,
    RuntimeConfig,
    check_bus,
    publish,
)

_log = logging.getLogger("sabot.process.lead")

_MEMORIES = 5  # the most memories with which a plan is made

Delegations = Sequence[tuple[str, TaskDelegation]]
"""Tasks, each with the kind of its worker."""


class LeadAgent:
    """An agent that answers a query: it plans tasks for the query, gives them to workers, and makes one answer of
    their results. A worker is an instance of a `ProcessRuntime`.
    """

    def __init__(
        self,
        name: str,
        cortex: ToolServers | None,
        strategy_library: Callable[[str, Mapping[str, Any]], Delegations | Awaitable[Delegations]],
        worker_registry: Callable[[str], Sequence[str]] | None,
        result_synthesizer: Callable[[str, Sequence[TaskResult]], Any],
        message_bus: ProcessEventBus | None = None,
        coordinator: Any = None,
        config: RuntimeConfig | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Makes a lead agent.

        - `name`: the name of the agent in events and errors.
        - `cortex`: tool servers with the tools `cortex_search` and `cortex_store`, in which the agent remembers
          earlier queries and answers. It uses a session of its own for each workspace, `NAME/WORKSPACE`. If None, the
          agent has no memory.
        - `strategy_library`: a function that makes the plan: the tasks, each as a pair of the kind of worker and the
          task. It is called with the query and a dict with `workspace_id`, `session_id` and `memories` (the content
          that `cortex_search` has returned). It may be a coroutine function.
        - `worker_registry`: a function that is called with a kind, and returns the ids of the workers of this kind.
          The tasks of one kind are given to them in turn. None is allowed if `with_runtime` is used, which knows the
          workers.
        - `result_synthesizer`: a function that makes the answer. It is called with the query and the results of the
          tasks that were done, in the order of the plan. It may be a coroutine function.
        - `message_bus`: gets a ProcessEvent with the type `query.received`, one with `query.planned`, and one with
          `query.answered` or `query.failed`.
        - `coordinator`: an object whose method `execute_tasks_parallel` executes the tasks, as that of ProcessRuntime
          does. None is allowed if `with_runtime` is used.
        - `config`: at most `process.max_concurrent_processes` tasks are executed at a time. With
          `recovery.enable_graceful_degradation`, a query is answered even if its memories cannot be read, or if some
          of its tasks fail; at least one task must succeed.
        """
        check_called("LeadAgent", worker_registry=worker_registry)
        for what, given in (("strategy_library", strategy_library), ("result_synthesizer", result_synthesizer)):
            check(f"LeadAgent: {what}", given, Of(Callable, "a function, which may be async"))  # type: ignore[arg-type]
        self.name = name
        self.config = config or RuntimeConfig()
        self._cortex = cortex
        self._strategies = strategy_library
        self._workers = worker_registry
        self._synthesizer = result_synthesizer
        check_bus("LeadAgent", message_bus)
        self._bus = message_bus
        self._coordinator = coordinator
        self._clock = clock

    async def handle_query(self, query: str, workspace_id: str, session_id: str) -> TaskResult:
        """Answers a query, and returns the answer as the `result` of a TaskResult. Its `agent_id` is the name of this
        agent, and its `tool_calls` is the number of tool calls of all tasks together.

        - Raises InvalidContext if the query or its plan is empty; AgentNotFound if the plan names a kind that has no
          worker; UserError if the agent has no coordinator or no worker registry.
        - Raises ExecutionError if all tasks failed; without `enable_graceful_degradation` also if one task failed.
        - Raises the errors of `strategy_library`, `worker_registry` and `result_synthesizer`. Without
          `enable_graceful_degradation` also raises those of `cortex`.
        """
        if self._coordinator is None or self._workers is None:
            raise UserError(
                f"lead agent {self.name!r} has no coordinator, or no registry of workers",
                hint="LeadAgentWithRuntime(lead_agent, runtime).handle_query(…)",
            )
        if not isinstance(query, str) or not query.strip():
            raise InvalidContext(f"lead agent {self.name!r}: query={short_repr(query)}", hint="a text")
        query_id, began = uuid.uuid4().hex, self._clock.monotonic()
        outcome = "query.failed"
        await self._tell("query.received", query_id)
        try:
            memories = await self._remembered(query, workspace_id)
            context = {"workspace_id": workspace_id, "session_id": session_id, "memories": memories}
            tasks = self._assigned(await _awaited(self._strategies(query, context)), self._workers)
            await self._tell("query.planned", query_id)
            done = await self._coordinator.execute_tasks_parallel(tasks, self.config.process.max_concurrent_processes)
            results = self._checked(done)
            answer = await _awaited(self._synthesizer(query, results))
            await self._remember(query, answer, workspace_id, session_id)
            outcome = "query.answered"
        finally:
            await self._tell(outcome, query_id)
        calls = sum(each.tool_calls for each in results)
        return TaskResult(query_id, self.name, answer, calls, self._clock.monotonic() - began)

    def with_runtime(self, runtime: ProcessRuntime) -> "LeadAgent":
        """Returns a copy of this agent whose coordinator is the runtime. If this agent has no worker registry, the
        workers of a kind are the instances of the runtime whose `type` is that kind.
        """
        made = copy(self)
        made._coordinator = runtime
        made._workers = self._workers or (
            lambda kind: [each.id for each in runtime.list_agents() if each.type == kind and not each.is_over]
        )
        return made

    def _assigned(self, plan: Delegations, workers: Callable[[str], Sequence[str]]) -> list[tuple[str, TaskDelegation]]:
        """Returns the tasks of the plan, each with the id of the worker that is to do it. The tasks of one kind are
        given to its workers in turn.
        """
        turns, assigned = Counter[str](), []
        for kind, task in plan:
            ids = workers(kind)
            if not ids:
                raise AgentNotFound(f"lead agent {self.name!r} has no worker of the kind {kind!r}", hint="spawn one")
            assigned.append((ids[turns[kind] % len(ids)], task))
            turns[kind] += 1
        if not assigned:
            raise InvalidContext(f"lead agent {self.name!r}: the plan of the query has no task")
        return assigned

    def _checked(self, done: Sequence[TaskResult | Exception]) -> list[TaskResult]:
        results = [each for each in done if isinstance(each, TaskResult)]
        failed = [each for each in done if isinstance(each, Exception)]
        if failed and not (results and self.config.recovery.enable_graceful_degradation):
            raise ExecutionError(
                f"lead agent {self.name!r}: {len(failed)} of {len(done)} tasks have failed, the first one: {failed[0]}"
            ) from failed[0]
        for each in failed:
            _log.warning("lead agent %r answers without a task that has failed: %s", self.name, each)
        return results

    async def _remembered(self, query: str, workspace_id: str) -> Any:
        found = await self._call_cortex(workspace_id, "cortex_search", {"query": query, "limit": _MEMORIES})
        return [] if found is None else found.content

    async def _remember(self, query: str, answer: Any, workspace_id: str, session_id: str) -> None:
        text = f"{query}\n\n{answer}"
        await self._call_cortex(workspace_id, "cortex_store", {"text": text, "tags": [workspace_id, session_id]})

    async def _call_cortex(self, workspace_id: str, tool: str, arguments: Mapping[str, Any]) -> Any:
        """Calls a tool of the agent's memory, and returns its answer. Returns None if the agent has no memory. If the
        call fails, returns None with `enable_graceful_degradation`, and raises the error without it.
        """
        if self._cortex is None:
            return None
        session = f"{self.name}/{workspace_id}"
        try:
            await self._cortex.get_or_create(session)
            found = await self._cortex.call_tool(session, ToolRequest(tool, arguments))
            if found.is_error:
                raise ExecutionError(f"lead agent {self.name!r}: {tool} has failed: {short_repr(found.content)}")
        except SabotError as error:
            if not self.config.recovery.enable_graceful_degradation:
                raise
            _log.warning("lead agent %r goes on without %s: %s", self.name, tool, error)
            return None
        return found

    async def _tell(self, kind: str, query_id: str) -> None:
        if self._bus is not None:
            await publish(self._bus, ProcessEvent(kind, self.name, query_id, self._clock.time()))


class LeadAgentWithRuntime:
    """A lead agent whose tasks are done by instances of a runtime."""

    def __init__(self, lead_agent: LeadAgent, runtime: ProcessRuntime) -> None:
        """Makes an agent like `lead_agent` whose coordinator is the runtime, which must be started. If `lead_agent` has
        no worker registry, the workers of a kind are the instances that were spawned with this kind as their `type`.
        """
        self._lead = lead_agent.with_runtime(runtime)

    async def handle_query(self, query: str, workspace_id: str, session_id: str) -> TaskResult:
        """Answers a query. Results and errors are those of `LeadAgent.handle_query`."""
        return await self._lead.handle_query(query, workspace_id, session_id)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
