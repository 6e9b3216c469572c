"""The lead agent of document 004, over instances that are small programs of the shell."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sabot.errors import SabotError, UserError
from sabot.process import (
    AgentNotFound,
    ExecutionError,
    InvalidContext,
    LeadAgent,
    LeadAgentWithRuntime,
    ProcessConfig,
    ProcessEvent,
    ProcessRuntime,
    RecoveryConfig,
    RuntimeConfig,
    TaskDelegation,
    TaskResult,
)

pytestmark = pytest.mark.usefixtures("supervisor")

DOES = """while read -r task; do
  case "$task" in *fails*) echo '{"error": {"message": "no idea"}}';; *) echo "{\\"result\\": \\"$0\\"}";; esac
done"""
STRICT = RuntimeConfig(recovery=RecoveryConfig(enable_graceful_degradation=False))


class Bus:
    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []

    async def publish(self, event: ProcessEvent) -> None:
        self.events.append(event)


class Cortex:
    """In the place of a pool of MCP servers with a memory."""

    def __init__(self, *, fails: bool = False) -> None:
        self.calls: list[tuple[str, str, Mapping[str, Any]]] = []
        self.opened: set[str] = set()
        self.fails = fails

    async def get_or_create(self, agent_id: str) -> None:
        self.opened.add(agent_id)

    async def call_tool(self, agent_id: str, call: Any) -> Any:
        assert agent_id in self.opened
        if self.fails:
            raise SabotError("the server is gone")
        self.calls.append((agent_id, call.name, call.arguments))
        return SimpleNamespace(content=[{"type": "text", "text": "Ada prefers tea"}], is_error=False)


class Coordinator:
    """In the place of a runtime: each task is done by its worker's name."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, str]] = []
        self.most = 0

    async def execute_tasks_parallel(
        self, tasks: Sequence[tuple[str, TaskDelegation]], max_parallel: int
    ) -> list[TaskResult | Exception]:
        self.most = max_parallel
        self.tasks = [(worker, task.objective) for worker, task in tasks]
        done: list[TaskResult | Exception] = []
        for worker, task in tasks:
            fails = "fails" in task.objective
            done.append(ExecutionError("no idea") if fails else TaskResult(task.task_id, worker, worker, 2, 0.1))
        return done


def plan(*parts: tuple[str, str]) -> Any:
    """A strategy whose plan are these (kind, objective)."""
    return lambda query, context: [(kind, TaskDelegation(objective=f"{query}: {part}")) for kind, part in parts]


def joined(query: str, results: Sequence[TaskResult]) -> str:
    return " ".join(str(each.result) for each in results)


def lead(strategy: Any, coordinator: Any = None, **more: Any) -> LeadAgent:
    workers = {"developer": ["ann", "bob"], "tester": ["tom"]}
    return LeadAgent(
        "lead",
        more.pop("cortex", None),
        strategy,
        lambda kind: workers.get(kind, []),
        more.pop("result_synthesizer", joined),
        more.pop("message_bus", None),
        coordinator or Coordinator(),
        **more,
    )


async def test_a_query_is_done_by_processes_of_the_kinds_that_the_strategy_names() -> None:
    bus = Bus()
    agent = LeadAgent("lead", None, plan(("a", "one"), ("b", "two"), ("a", "three")), None, joined, bus)
    async with ProcessRuntime(message_bus=bus) as runtime:
        for kind in ("a", "b", "c"):
            await runtime.spawn_agent(f"worker of {kind}", kind, "sh", ["-c", DOES, f"of-{kind}"])
        answer = await LeadAgentWithRuntime(agent, runtime).handle_query("look", "w", "s")
        assert answer.result == "of-a of-b of-a"
        assert answer.agent_id == "lead"
        assert (await runtime.get_statistics()).total_tasks_executed == 3
    of_query = [each.type for each in bus.events if each.task_id == answer.task_id]
    assert of_query == ["query.received", "query.planned", "query.answered"]


async def test_the_parts_of_a_query_run_side_by_side(tmp_path: Path) -> None:
    both = """read -r task; touch "$0"; while [ ! -e "$1" ]; do sleep 0.005; done; echo '{"result": "met"}'; cat"""
    agent = LeadAgent("lead", None, plan(("a", "one"), ("b", "two")), None, joined)
    async with asyncio.timeout(60), ProcessRuntime() as runtime:
        for mine, other in (("a", "b"), ("b", "a")):
            await runtime.spawn_agent(mine, mine, "sh", ["-c", both, str(tmp_path / mine), str(tmp_path / other)])
        assert (await LeadAgentWithRuntime(agent, runtime).handle_query("meet", "w", "s")).result == "met met"


async def test_workers_of_one_kind_take_turns() -> None:
    coordinator = Coordinator()
    agent = lead(plan(("developer", "1"), ("tester", "2"), ("developer", "3"), ("developer", "4")), coordinator)
    answer = await agent.handle_query("look", "w", "s")
    assert coordinator.tasks == [("ann", "look: 1"), ("tom", "look: 2"), ("bob", "look: 3"), ("ann", "look: 4")]
    assert (answer.result, answer.tool_calls) == ("ann tom bob ann", 8)


async def test_so_many_tasks_at_a_time_as_the_config_allows_processes() -> None:
    coordinator = Coordinator()
    config = RuntimeConfig(process=ProcessConfig(max_concurrent_processes=3))
    await lead(plan(("tester", "1")), coordinator, config=config).handle_query("look", "w", "s")
    assert coordinator.most == 3


async def test_a_strategy_gets_the_memories_of_the_workspace_and_the_answer_is_remembered() -> None:
    cortex, seen = Cortex(), list[Any]()

    async def strategy(query: str, context: Mapping[str, Any]) -> Any:
        seen.append(context)
        return [("tester", TaskDelegation(objective=query))]

    async def synthesize(query: str, results: Sequence[TaskResult]) -> str:
        return "tea"

    agent = lead(strategy, cortex=cortex, result_synthesizer=synthesize)
    assert (await agent.handle_query("What does Ada drink?", "w", "s")).result == "tea"
    memories = [{"type": "text", "text": "Ada prefers tea"}]
    assert seen == [{"workspace_id": "w", "session_id": "s", "memories": memories}]
    stored = {"text": "What does Ada drink?\n\ntea", "tags": ["w", "s"]}
    assert cortex.calls == [
        ("lead/w", "cortex_search", {"query": "What does Ada drink?", "limit": 5}),
        ("lead/w", "cortex_store", stored),
    ]
    await agent.handle_query("And Bob?", "another", "s")
    assert cortex.opened == {"lead/w", "lead/another"}


async def test_a_query_is_answered_without_what_has_failed_where_it_may_be(caplog: pytest.LogCaptureFixture) -> None:
    agent = lead(plan(("tester", "fails"), ("developer", "2")), cortex=Cortex(fails=True))
    assert (await agent.handle_query("look", "w", "s")).result == "ann"
    assert "answers without a task that has failed: no idea" in caplog.text
    assert "goes on without cortex_search: the server is gone" in caplog.text


async def test_a_query_fails_where_no_task_was_done_or_none_may_be_missing() -> None:
    bus = Bus()
    with pytest.raises(ExecutionError, match="2 of 2 tasks have failed, the first one: no idea"):
        await lead(plan(("tester", "fails"), ("tester", "fails")), message_bus=bus).handle_query("look", "w", "s")
    assert [each.type for each in bus.events] == ["query.received", "query.planned", "query.failed"]
    with pytest.raises(ExecutionError, match="1 of 2 tasks have failed"):
        await lead(plan(("tester", "fails"), ("tester", "2")), config=STRICT).handle_query("look", "w", "s")
    with pytest.raises(SabotError, match="the server is gone"):
        await lead(plan(("tester", "2")), config=STRICT, cortex=Cortex(fails=True)).handle_query("look", "w", "s")


async def test_what_cannot_be_delegated_is_refused() -> None:
    with pytest.raises(InvalidContext, match="the plan of the query has no task"):
        await lead(plan()).handle_query("look", "w", "s")
    with pytest.raises(InvalidContext, match="query=' '"):
        await lead(plan(("tester", "1"))).handle_query(" ", "w", "s")
    with pytest.raises(AgentNotFound, match="has no worker of the kind 'painter'"):
        await lead(plan(("painter", "1"))).handle_query("look", "w", "s")
    without = LeadAgent("lead", None, plan(("tester", "1")), None, joined)
    with pytest.raises(UserError, match="has no coordinator"):
        await without.handle_query("look", "w", "s")
    with pytest.raises(UserError, match="strategy_library"):
        LeadAgent("lead", None, ["no function"], None, joined)  # type: ignore[arg-type]
