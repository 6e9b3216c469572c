"""The runtime of document 004, with small programs of the shell as its agents."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.process.children import ByHand, alive

import sabot.process.instance as instances
from sabot.agents import InMemoryEventBus
from sabot.errors import IllegalTransition, SabotError, UserError
from sabot.process import (
    AgentError,
    AgentNotFound,
    ExecutionError,
    InvalidContext,
    LeadAgent,
    MonitoringConfig,
    NotFound,
    ProcessConfig,
    ProcessEvent,
    ProcessRuntime,
    ProcessState,
    RecoveryConfig,
    ResourceLimitExceeded,
    ResourceLimits,
    RuntimeAgent,
    RuntimeConfig,
    SpawnFailed,
    Supervisor,
    TaskDelegation,
    TaskResult,
    TerminateFailed,
    Timeout,
)
from sabot.process.phases import RUNS
from tools.agent_tools import until

pytestmark = pytest.mark.usefixtures("supervisor")

ANSWERS = """while read -r task; do echo '{"result": "done"}'; done"""
HANGS = "while read -r task; do sleep 1000; done"
CALLS = """
while read -r task; do
  echo '{"id": 7, "method": "tools/call", "params": {"name": "search", "arguments": {"query": "x"}}}'
  read -r answer
  echo "{\\"result\\": $answer}"
done"""
CALLS_FOR_EVER = """
read -r task
while echo '{"id": 7, "method": "tools/call", "params": {"name": "search"}}'; do read -r answer; done"""
TASK = TaskDelegation(objective="look")


class Bus:
    def __init__(self) -> None:
        self.events: list[ProcessEvent] = []

    async def publish(self, event: ProcessEvent) -> None:
        self.events.append(event)

    def types(self) -> list[str]:
        return [each.type for each in self.events]


class Tools:
    """In the place of a pool of MCP servers."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.error: Exception | None = None

    async def get_or_create(self, agent_id: str) -> None:
        self.opened.append(agent_id)

    async def call_tool(self, agent_id: str, call: Any) -> Any:
        self.calls.append((agent_id, call.name, call.arguments))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(content=[{"type": "text", "text": "found"}], is_error=False)


Make = Callable[..., Awaitable[ProcessRuntime]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[ProcessRuntime] = []

    async def runtime(*, bus: Bus | None = None, by_hand: ByHand | None = None, **config: Any) -> ProcessRuntime:
        more: dict[str, Any] = {} if by_hand is None else {"clock": by_hand.clock, "sleep": by_hand.sleep}
        made.append(ProcessRuntime(RuntimeConfig(**config), bus, **more))
        await made[-1].start()
        return made[-1]

    yield runtime
    for each in made:
        await each.shutdown()


async def sh(runtime: ProcessRuntime, script: str, name: str = "worker", **more: Any) -> str:
    return await runtime.spawn_agent(name, "developer", "sh", ["-c", script], **more)


# -- what it is told ----------------------------------------------------------------------------------------------------


def test_the_defaults_of_the_configuration_are_those_of_the_document() -> None:
    config = RuntimeConfig()
    assert config.process == ProcessConfig(
        max_concurrent_processes=10, spawn_timeout=30, shutdown_grace_period=10, enable_isolation=True
    )
    assert config.resources == ResourceLimits(
        max_memory_bytes=2 << 30, cpu_limit_percent=80.0, max_task_duration=300, max_tool_calls_per_task=50
    )
    assert config.monitoring == MonitoringConfig(
        health_check_interval=10,
        heartbeat_timeout=30,
        enable_metrics=True,
        metrics_interval=5,
        enable_log_aggregation=True,
        log_buffer_bytes=1 << 20,
    )
    assert config.recovery == RecoveryConfig(
        enable_auto_restart=True,
        max_restart_attempts=3,
        enable_graceful_degradation=True,
        backoff_seconds=5,
        failure_threshold=3,
    )


@pytest.mark.parametrize(
    "config",
    [
        lambda: ProcessConfig(max_concurrent_processes=0),
        lambda: ProcessConfig(shutdown_grace_period=-1),
        lambda: MonitoringConfig(health_check_interval=0),
        lambda: RecoveryConfig(failure_threshold=0),
        lambda: RecoveryConfig(max_restart_attempts=-1),
        lambda: TaskDelegation(objective="x", timeout=0),
        lambda: TaskDelegation(objective="x", max_tool_calls=-1),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(config: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        config()


def test_a_task_has_an_objective() -> None:
    with pytest.raises(InvalidContext):
        TaskDelegation(objective="")


async def test_it_is_started_before_agents_are_spawned() -> None:
    runtime = ProcessRuntime()
    with pytest.raises(UserError, match=r"runtime\.start"):
        await sh(runtime, ANSWERS)
    async with runtime:
        await sh(runtime, ANSWERS)
    with pytest.raises(UserError, match=r"runtime\.start"):
        await sh(runtime, ANSWERS)


async def test_there_are_at_most_so_many_agents(make: Make) -> None:
    runtime = await make(process=ProcessConfig(max_concurrent_processes=1))
    first = await sh(runtime, ANSWERS)
    with pytest.raises(SpawnFailed, match="max_concurrent_processes=1"):
        await sh(runtime, ANSWERS)
    await runtime.terminate(first)
    await sh(runtime, ANSWERS)


async def test_a_program_that_is_not_there_is_named(make: Make) -> None:
    runtime = await make()
    with pytest.raises(SpawnFailed, match="no-such-program"):
        await runtime.spawn_agent("a", "developer", "no-such-program")
    assert runtime.list_agents() == []


async def test_an_agent_that_says_so_is_ready_only_then(make: Make) -> None:
    runtime = await make(process=ProcessConfig(spawn_timeout=0.05))
    with pytest.raises(Timeout, match="not ready"):
        await sh(runtime, ANSWERS, wait_ready=True)
    with pytest.raises(SpawnFailed, match="ended with 3"):
        await sh(await make(), "exit 3", wait_ready=True)
    await sh(await make(), """echo '{"method": "ready"}'; cat""", wait_ready=True)


@pytest.mark.parametrize("isolated", [True, False])
async def test_isolation_keeps_the_environment_of_the_worker_from_agents(
    make: Make, isolated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_WORKER", "seen")
    runtime = await make(process=ProcessConfig(enable_isolation=isolated))
    agent = await sh(
        runtime,
        """while read -r task; do echo "{\\"result\\": \\"$OF_THE_WORKER$OWN\\"}"; done""",
        environment={"OWN": "1"},
    )
    assert (await runtime.execute_task(agent, TASK)).result == ("1" if isolated else "seen1")


# -- tasks ----------------------------------------------------------------------------------------------------------------


async def test_a_task_takes_the_eight_steps_of_the_flow(make: Make) -> None:
    bus, tools = Bus(), Tools()
    runtime = await make(bus=bus, mcp=tools)
    agent = await sh(runtime, CALLS)
    result = await runtime.execute_task(agent, TASK)
    assert result.result["id"] == 7
    assert result.result["result"] == {"content": [{"type": "text", "text": "found"}], "isError": False}
    assert (result.task_id, result.agent_id, result.tool_calls) == (TASK.task_id, agent, 1)
    assert tools.opened == [agent]
    assert tools.calls == [(agent, "search", {"query": "x"})]
    steps = "submitted acquired process_checked tools_checked started tool_call collected released"
    assert bus.types() == ["agent.spawned", *(f"task.{each}" for each in steps.split())]
    assert {each.agent_id for each in bus.events} == {agent}


async def test_a_process_gets_the_whole_task_and_goes_on_with_the_next_one(make: Make) -> None:
    runtime = await make()
    agent = await sh(runtime, """while read -r task; do echo "{\\"result\\": $task}"; done""")
    task = TaskDelegation(objective="büild", context={"files": ["a"]}, boundaries=["no network"], allowed_tools=["x"])
    said = (await runtime.execute_task(agent, task)).result
    assert (said["id"], said["method"], said["params"]) == (
        task.task_id,
        "task/execute",
        json.loads(json.dumps(task.params())),
    )
    pid = runtime.agent(agent).pid
    assert (await runtime.execute_task(agent, TASK)).result["id"] == TASK.task_id
    assert runtime.agent(agent).pid == pid
    assert runtime.agent(agent).state is ProcessState.IDLE


async def test_an_error_that_the_process_answers_fails_the_task_and_not_the_agent(make: Make) -> None:
    runtime = await make()
    agent = await sh(runtime, """while read -r task; do echo '{"error": {"code": 1, "message": "no idea"}}'; done""")
    for _ in range(2):
        with pytest.raises(ExecutionError, match="no idea"):
            await runtime.execute_task(agent, TASK)
    assert runtime.agent(agent).restarts == 0


async def test_an_answer_with_a_result_and_an_error_of_null_is_a_result(make: Make) -> None:
    """Programs of the first JSON-RPC write both."""
    runtime = await make()
    agent = await sh(runtime, """while read -r task; do echo '{"result": 3, "error": null}'; done""")
    assert (await runtime.execute_task(agent, TASK)).result == 3


async def test_a_line_that_is_nested_too_deep_is_a_line_of_the_log(make: Make) -> None:
    """The reader failed at it, and from then on nobody heard the agent."""
    runtime = await make()
    script = """
import sys
for line in sys.stdin:
    print('{"a":' * 100_000)
    print('{"result": 4}', flush=True)
"""
    agent = await runtime.spawn_agent("worker", "developer", sys.executable, ["-c", script])
    async with asyncio.timeout(60):
        assert (await runtime.execute_task(agent, TASK)).result == 4
    assert runtime.logs(agent) == '{"a":' * 100_000 + "\n"


@pytest.mark.slow  # half a second of a core
async def test_an_agent_that_floods_does_not_hold_the_event_loop_up(make: Make) -> None:
    """All the lines that were there were read at once, for more than a second."""
    runtime = await make(resources=ResourceLimits(max_task_duration=1, max_output_bytes=None))
    agent = await sh(runtime, "exec yes")
    worst = [0.5]
    # If the flood holds it up, it does so each time; a garbage collection, or the host of the machine, does so once.
    while worst[-1] >= 0.5 and len(worst) < 6:
        worst.append(0.0)
        task = asyncio.create_task(runtime.execute_task(agent, TASK))
        async with asyncio.timeout(60):
            while not task.done():
                before = time.thread_time()  # of the event loop's thread: that others have the cores is not the flood's
                await asyncio.sleep(0.01)
                worst[-1] = max(worst[-1], time.thread_time() - before)
            with pytest.raises(Timeout):
                await task
    assert worst[-1] < 0.5, worst


@pytest.mark.parametrize("params", [{"name": "find", "arguments": {"for": "\ud800"}}, {"name": "\ud800"}])
async def test_a_call_of_a_tool_with_half_a_surrogate_pair_is_told_to_the_process(
    make: Make, params: dict[str, Any]
) -> None:
    """The task failed with a UnicodeEncodeError, and its process was ended."""
    tools = Tools()
    runtime = await make(mcp=tools)
    script = f"""
import json, sys
for line in sys.stdin:
    print(json.dumps({{"id": chr(0xD800), "method": "tools/call", "params": {params!a}}}), flush=True)
    print(json.dumps({{"result": json.loads(sys.stdin.readline())}}), flush=True)
"""
    agent = await runtime.spawn_agent("worker", "developer", sys.executable, ["-c", script])
    said = (await runtime.execute_task(agent, TASK)).result
    assert said["id"] == "\ud800"
    assert "half a surrogate pair" in said["error"]["message"]
    assert tools.calls == []


async def test_a_listener_that_fails_does_not_keep_an_agent_from_its_next_process() -> None:
    """The agent was never started again, and its tasks waited without end."""

    def listen(agent: RuntimeAgent, before: ProcessState, state: ProcessState) -> None:
        raise ValueError(state)

    config = RuntimeConfig(recovery=RecoveryConfig(backoff_seconds=0.01))
    async with asyncio.timeout(60), ProcessRuntime(config, on_state=listen) as runtime:
        agent = await sh(runtime, ANSWERS)
        os.kill(runtime.agent(agent).pid, signal.SIGKILL)
        await until(lambda: runtime.agent(agent).restarts == 1)
        assert (await runtime.execute_task(agent, TASK)).result == "done"


async def test_what_is_no_list_of_texts_no_task_and_no_number_is_refused(make: Make) -> None:
    """A text was taken for a list of its letters."""
    for wrong in ({"allowed_tools": "search"}, {"boundaries": "no network"}, {"allowed_tools": [5]}):
        with pytest.raises(InvalidContext, match="a list of texts"):
            TaskDelegation(objective="x", **wrong)  # type: ignore[arg-type]
    runtime = await make()
    with pytest.raises(UserError, match="a list of texts"):
        await runtime.spawn_agent("worker", "developer", "sh", "-c")
    agent = await sh(runtime, "cat")
    with pytest.raises(InvalidContext, match="TaskDelegation"):
        await runtime.execute_task(agent, "count the issues")  # type: ignore[arg-type]
    for most in ("2", 1.5, None, 0):
        with pytest.raises(UserError, match="a whole number above 0"):
            await runtime.execute_tasks_parallel([(agent, TASK)], most)  # type: ignore[arg-type]


async def test_a_tool_that_fails_or_may_not_be_called_is_told_to_the_process(make: Make) -> None:
    tools = Tools()
    runtime = await make(mcp=tools)
    agent = await sh(runtime, CALLS)
    tools.error = SabotError("the server is gone")
    assert (await runtime.execute_task(agent, TASK)).result["error"]["message"] == "the server is gone"
    other = TaskDelegation(objective="x", allowed_tools=["other"])
    assert "does not allow" in (await runtime.execute_task(agent, other)).result["error"]["message"]
    assert len(tools.calls) == 1
    agent = await sh(await make(), CALLS)


def digest(**arguments: Any) -> str:
    return sha256(json.dumps(arguments, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def test_each_call_of_a_tool_is_audited_with_its_tool_its_arguments_digest_and_its_outcome(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sabot.process")
    bus, tools = Bus(), Tools()
    runtime = await make(mcp=tools, bus=bus)
    agent = await sh(runtime, CALLS)
    await runtime.execute_task(agent, TASK)
    tools.error = SabotError("the server is gone")
    await runtime.execute_task(agent, TASK)
    await runtime.execute_task(agent, TaskDelegation(objective="x", allowed_tools=["other"]))
    with pytest.raises(ResourceLimitExceeded):
        await runtime.execute_task(agent, TaskDelegation(objective="x", max_tool_calls=0))
    calls = [event.tool_call for event in bus.events if event.type == "task.tool_call"]
    assert [(call.tool, call.outcome) for call in calls if call] == [
        *(("search", "ok"), ("search", "failed")),
        *(("search", "refused"), ("search", "refused")),
    ]
    assert [call.reason for call in calls if call][:2] == ["", "the server is gone"]
    assert {call.arguments_digest for call in calls if call} == {digest(query="x")}
    assert "called 'search' with arguments" in caplog.text, "also where there is no bus"


async def test_a_call_of_a_tool_that_breaks_fails_and_the_task_goes_on(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the tool servers that was no SabotError ended the task, and the process with it."""
    bus, tools = Bus(), Tools()
    runtime = await make(mcp=tools, bus=bus)
    agent = await sh(runtime, CALLS)
    tools.error = TypeError("search() got multiple values for argument 'query'")
    said = (await runtime.execute_task(agent, TASK)).result
    assert said["error"]["message"] == "TypeError: search() got multiple values for argument 'query'"
    assert [each.tool_call.outcome for each in bus.events if each.tool_call] == ["failed"]
    assert "Traceback" in caplog.text, "who runs the servers finds the place"


@pytest.mark.parametrize(
    ("allowed", "called"),
    [
        (["search"], True),
        (["sea*"], True),
        (["*"], True),
        (["[st]earch"], True),
        (["SEARCH", "se"], False),
        ([], False),
    ],
)
async def test_the_tools_of_a_task_are_named_by_patterns_too(make: Make, allowed: list[str], called: bool) -> None:
    tools = Tools()
    agent = await sh(runtime := await make(mcp=tools), CALLS)
    await runtime.execute_task(agent, TaskDelegation(objective="x", allowed_tools=allowed))
    assert len(tools.calls) == called


async def test_the_statistics_of_an_executor_are_awaited_or_not(make: Make) -> None:
    executor = (await make()).executor
    assert await executor.get_statistics() == executor.get_statistics()


async def test_calls_of_tools_above_the_rate_are_refused_and_say_when(make: Make) -> None:
    by_hand, tools = ByHand(), Tools()
    runtime = await make(mcp=tools, by_hand=by_hand, resources=ResourceLimits(max_tool_calls_per_minute=2))
    agent = await sh(runtime, CALLS)
    for seconds in (0, 10, 20):
        by_hand.clock.advance(seconds)
        result = (await runtime.execute_task(agent, TASK)).result
    assert "at most 2 tools a minute: the next one in 30.0 s" in result["error"]["message"]
    assert result["error"]["data"] == {"retry_after_seconds": 30.0}
    by_hand.clock.advance(30)
    assert "error" not in (await runtime.execute_task(agent, TASK)).result
    assert len(tools.calls) == 3


async def test_without_a_pool_there_are_no_tools(make: Make) -> None:
    runtime = await make()
    agent = await sh(runtime, CALLS)
    assert "no tools" in (await runtime.execute_task(agent, TASK)).result["error"]["message"]


@pytest.mark.parametrize("most", [1, 3])
async def test_calls_of_tools_above_the_limit_end_the_task(make: Make, most: int) -> None:
    tools = Tools()
    runtime = await make(mcp=tools, resources=ResourceLimits(max_tool_calls_per_task=most))
    agent = await sh(runtime, CALLS_FOR_EVER)
    with pytest.raises(ResourceLimitExceeded) as raised:
        await runtime.execute_task(agent, TASK)
    assert raised.value.limit == "max_tool_calls_per_task"
    assert len(tools.calls) == most


TAKES = f"""read -r task; exec {sys.executable} -c 'x = b"x" * ({{}}); input()'"""


async def test_exactly_as_many_calls_as_the_limit_are_allowed(make: Make) -> None:
    runtime = await make(mcp=Tools(), resources=ResourceLimits(max_tool_calls_per_task=1))
    agent = await sh(runtime, CALLS)
    assert [(await runtime.execute_task(agent, TASK)).tool_calls for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("limits", "script", "error", "limit"),
    [
        ({"max_task_duration": 0.05}, HANGS, Timeout, None),
        ({"max_memory_mb": 20}, "read -r task; cat /dev/zero | tail -c 30m", ResourceLimitExceeded, "max_memory_bytes"),
        ({"max_memory_mb": 60}, TAKES.format("1 << 30"), ResourceLimitExceeded, "max_memory_bytes"),
        ({"max_memory_mb": 60}, TAKES.format("1 << 50"), ResourceLimitExceeded, "max_memory_bytes"),
        ({"max_output_bytes": 5000}, "read -r task; exec yes", ResourceLimitExceeded, "max_output_bytes"),
        ({"max_output_bytes": 5000}, "read -r task; exec yes >&2", ResourceLimitExceeded, "max_output_bytes"),
        ({"max_output_bytes": 5000}, "read -r task; exec cat /dev/zero", ResourceLimitExceeded, "max_output_bytes"),
        ({}, "read -r task; exit 4", ExecutionError, None),
    ],
)
async def test_what_a_task_uses_is_limited(
    make: Make, limits: dict[str, Any], script: str, error: type[AgentError], limit: str | None
) -> None:
    runtime = await make(by_hand=ByHand())
    agent = await sh(runtime, script, limits=ResourceLimits(**limits))
    with pytest.raises(error) as raised:
        await runtime.execute_task(agent, TASK)
    assert getattr(raised.value, "limit", None) == limit
    assert (await runtime.get_statistics()).tasks.failed_tasks == 1


async def test_a_process_whose_task_is_out_of_time_is_replaced_at_once(make: Make) -> None:
    runtime = await make(by_hand=ByHand())
    agent = await sh(runtime, """read -r task; case "$task" in *slow*) sleep 1000;; esac; echo '{"result": 1}'; cat""")
    pid = runtime.agent(agent).pid
    with pytest.raises(Timeout):
        await runtime.execute_task(agent, TaskDelegation(objective="slow", timeout=0.02))
    assert not alive(pid)
    assert (await runtime.execute_task(agent, TASK)).result == 1
    assert (runtime.agent(agent).restarts, runtime.agent(agent).failures) == (1, 0)


async def test_who_is_cancelled_leaves_no_task_behind(make: Make) -> None:
    runtime = await make(by_hand=ByHand())
    agent = await sh(runtime, HANGS)
    pid = runtime.agent(agent).pid
    task = asyncio.ensure_future(runtime.execute_task(agent, TASK))
    await until(lambda: runtime.agent(agent).state is ProcessState.BUSY)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert not alive(pid)
    await until(lambda: runtime.agent(agent).state is ProcessState.READY)


async def test_tasks_run_side_by_side_at_most_so_many_and_one_at_a_time_for_each_agent(make: Make) -> None:
    bus = Bus()
    runtime = await make(bus=bus)
    agents = [await sh(runtime, ANSWERS, name=str(number)) for number in range(3)]
    tasks = [(agents[number % 3], TaskDelegation(objective=str(number))) for number in range(9)]
    results = await runtime.execute_tasks_parallel([*tasks, ("nobody", TASK)], max_parallel=2)
    assert [each.task_id for each in results[:-1] if isinstance(each, TaskResult)] == [
        task.task_id for _, task in tasks
    ]
    assert isinstance(results[-1], AgentNotFound)
    at_work: list[str] = []
    most = 0
    for event in bus.events:
        if event.type == "task.acquired":
            assert event.agent_id not in at_work
            at_work.append(event.agent_id)
            most = max(most, len(at_work))
        elif event.type == "task.released":
            at_work.remove(event.agent_id)
    assert most == 2


# -- the life of a process --------------------------------------------------------------------------------------------------

LEGAL = {
    "Initial": {"Starting"},
    "Starting": {"Ready", "Terminated"},  # the process ends before it was ready
    "Ready": {"Busy", "ShuttingDown"},
    "Busy": {"Idle", "ShuttingDown"},
    "Idle": {"Busy", "ShuttingDown"},
    "ShuttingDown": {"Terminated"},
    "Terminated": {"Starting"},  # of the next process of the instance
}
STEPS = st.lists(
    st.sampled_from(["task", "crash", "stop", "slow", "kill", "restart", "terminate"]), min_size=1, max_size=5
)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
async def test_states_follow_each_other_as_the_document_says_whatever_happens(steps: list[str]) -> None:
    seen: dict[str, list[str]] = {}

    def changed(agent: RuntimeAgent, before: ProcessState, state: ProcessState) -> None:
        states = seen.setdefault(agent.id, ["Initial"])
        assert states[-1] == before
        states.append(state)

    time = ByHand()
    script = """while read -r task; do case "$task" in *crash*) exit 1;; *slow*) sleep 1000;; esac; echo '{"result": 1}'; done"""
    runtime = ProcessRuntime(RuntimeConfig(), on_state=changed, clock=time.clock, sleep=time.sleep)
    async with runtime:
        agent = runtime.agent(await sh(runtime, script))
        for step in steps:
            if step == "terminate":
                await runtime.terminate(agent.id)
                with pytest.raises(AgentNotFound):
                    await runtime.execute_task(agent.id, TASK)
                agent = runtime.agent(await sh(runtime, script))
            elif not agent.pid or agent.is_over:
                await until(lambda: time.asleep >= 3 or agent.pid != 0 or agent.is_over)  # noqa: B023
                time.advance(100)  # beside the two looks of the runtime, the instance waits for its next start
                await until(lambda: agent.pid != 0 or agent.is_over)  # noqa: B023
            elif step in ("task", "crash", "slow"):
                task = TaskDelegation(objective=step, timeout=0.02 if step == "slow" else None)
                result = (await runtime.execute_tasks_parallel([(agent.id, task)], 1))[0]
                assert isinstance(result, {"task": TaskResult, "crash": ExecutionError, "slow": Timeout}[step])
            elif step in ("kill", "stop"):
                os.kill(agent.pid, signal.SIGKILL if step == "kill" else signal.SIGSTOP)
                # A process that is being started can be stopped, and counts as one that hangs as soon as it is ready.
                await until(lambda: agent.state == "Terminated" or (agent.is_stopped and agent.phase in RUNS))  # noqa: B023
                while step == "stop" and not await runtime.check_health():
                    assert agent.is_stopped
    assert seen
    for states in seen.values():
        assert states[-1] == "Terminated"
        assert all(after in LEGAL[before] for before, after in pairwise(states))


async def test_a_process_that_is_at_a_task_gets_no_other_one(make: Make) -> None:
    runtime = await make()
    agent = runtime.agent(await sh(runtime, ANSWERS))
    async with agent.busy():
        with pytest.raises(IllegalTransition, match="one that is busy does not become busy"):
            async with agent.busy():
                raise AssertionError("not reached")


@pytest.mark.parametrize("starts_again", [True, False])
async def test_a_process_that_ends_while_its_tools_are_checked_costs_no_task(make: Make, starts_again: bool) -> None:
    """Sessions with tool servers take seconds to open. The task goes to the next process, or to another agent of this type."""
    dies: list[RuntimeAgent] = []

    class SlowTools(Tools):
        async def get_or_create(self, agent_id: str) -> None:
            await super().get_or_create(agent_id)
            while dies:
                agent = dies.pop()
                os.kill(agent.pid, signal.SIGKILL)
                await until(lambda: bool(agent.restarts if starts_again else agent.is_over))  # noqa: B023

    recovery = RecoveryConfig(backoff_seconds=0, enable_auto_restart=starts_again)
    runtime = await make(mcp=SlowTools(), recovery=recovery)
    first, second = [await sh(runtime, ANSWERS) for _ in range(2)]
    dies.append(runtime.agent(first))
    result = await runtime.execute_task(first, TASK)
    assert (result.result, result.agent_id) == ("done", first if starts_again else second)
    assert (await runtime.get_statistics()).tasks.total_tasks == 1


async def test_a_terminated_agent_is_gone_with_all_that_it_has_started(make: Make) -> None:
    runtime = await make(process=ProcessConfig(shutdown_grace_period=0.05))
    agent = await sh(
        runtime, """trap '' TERM; sleep 1000 & while read -r task; do echo "{\\"result\\": $!}"; done; wait"""
    )
    stray = (await runtime.execute_task(agent, TASK)).result
    pid = runtime.agent(agent).pid
    waiting = asyncio.ensure_future(runtime.execute_task(agent, TASK))
    await runtime.terminate(agent)
    assert not alive(pid)
    assert not alive(stray)
    with pytest.raises(AgentNotFound):
        await runtime.terminate(agent)
    with pytest.raises(NotFound):
        runtime.logs(agent)
    await asyncio.wait([waiting])


async def test_a_spawn_that_waits_for_its_program_while_the_runtime_is_shut_down_ends_it(
    make: Make, tmp_path: Path
) -> None:
    runtime = await make(process=ProcessConfig(shutdown_grace_period=0.05))
    pid, go = tmp_path / "pid", tmp_path / "go"
    script = f"""echo $$ > {pid}; until [ -e {go} ]; do sleep 0.01; done; echo '{{"method": "ready"}}'; sleep 1000"""
    spawning = asyncio.ensure_future(sh(runtime, script, wait_ready=True))
    await until(lambda: pid.exists() and bool(pid.read_text()))
    await asyncio.sleep(0.05)  # until the runtime waits for the line
    await runtime.shutdown()
    go.touch()
    async with asyncio.timeout(60):
        with pytest.raises(UserError, match="the runtime does not run"):
            await spawning
    assert not alive(int(pid.read_text()))


# -- health, recovery ---------------------------------------------------------------------------------------------------------


async def test_a_process_that_ends_is_started_three_times_and_then_degraded(make: Make) -> None:
    time, bus = ByHand(), Bus()
    watch = MonitoringConfig(health_check_interval=1000, enable_metrics=False)
    runtime = await make(by_hand=time, bus=bus, monitoring=watch)
    agent = runtime.agent(await sh(runtime, ANSWERS))
    for restarts in range(3):
        os.kill(agent.pid, signal.SIGKILL)
        await until(lambda: len(time.waits) == restarts + 2)  # noqa: B023
        time.advance(time.waits[-1] - 1)
        assert agent.restarts == restarts
        time.advance(1)
        await until(lambda: agent.state is ProcessState.READY)
    os.kill(agent.pid, signal.SIGKILL)
    await until(lambda: agent.degraded)
    assert time.waits[1:4] == [5, 10, 20]
    await until(lambda: bus.types()[-1] == "agent.degraded")
    assert bus.types() == ["agent.spawned", *["agent.failed", "agent.restarted"] * 3, "agent.failed", "agent.degraded"]
    with pytest.raises(ExecutionError, match="signal 9"):
        await runtime.execute_task(agent.id, TASK)
    other = await sh(runtime, ANSWERS)
    assert (await runtime.execute_task(agent.id, TASK)).agent_id == other


async def test_a_task_that_is_done_begins_the_count_anew(make: Make) -> None:
    time = ByHand()
    runtime = await make(by_hand=time, recovery=RecoveryConfig(max_restart_attempts=1))
    agent = runtime.agent(await sh(runtime, ANSWERS))
    for _ in range(3):
        os.kill(agent.pid, signal.SIGKILL)
        await until(lambda: time.waits.count(5.0) > 0 and agent.failures == 1)
        running = asyncio.ensure_future(runtime.execute_task(agent.id, TASK))
        while not running.done():
            time.advance(5)
            await asyncio.sleep(0.005)
        assert (await running).result == "done"
    assert (agent.restarts, agent.failures, agent.degraded) == (3, 0, False)


async def test_where_nothing_is_started_again_tasks_are_refused(make: Make) -> None:
    runtime = await make(recovery=RecoveryConfig(enable_auto_restart=False, enable_graceful_degradation=False))
    agent = runtime.agent(await sh(runtime, ANSWERS))
    await sh(runtime, ANSWERS)
    os.kill(agent.pid, signal.SIGKILL)
    await until(lambda: agent.is_over)
    with pytest.raises(ExecutionError, match="signal 9"):
        await runtime.execute_task(agent.id, TASK)
    assert (agent.restarts, agent.degraded) == (0, False)


async def test_a_stopped_process_is_noticed_within_thirty_seconds_and_replaced(make: Make) -> None:
    time = ByHand()
    runtime = await make(by_hand=time, monitoring=MonitoringConfig(enable_metrics=False))
    agent = runtime.agent(await sh(runtime, HANGS))
    lines, pid = agent.lines, agent.pid
    assert lines is not None
    running = asyncio.ensure_future(runtime.execute_task(agent.id, TASK))
    await until(lambda: agent.state is ProcessState.BUSY)
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: agent.is_stopped)
    for checks in range(1, 4):
        assert alive(pid)
        time.advance(10)
        await until(lambda: lines.stops.count == checks)  # noqa: B023
    with pytest.raises(ExecutionError, match="SIGSTOP"):
        await running
    assert not alive(pid)
    await until(lambda: 5 in time.waits)
    time.advance(5)
    await until(lambda: agent.state is ProcessState.READY)


async def test_a_process_whose_heartbeats_stop_is_ended(make: Make) -> None:
    time = ByHand()
    runtime = await make(by_hand=time)
    beats = await sh(runtime, """echo '{"method": "heartbeat"}'; echo '{"method": "ready"}'; cat""", wait_ready=True)
    quiet = await sh(runtime, "cat")
    time.clock.advance(30)
    assert await runtime.check_health() == []
    time.clock.advance(1)
    assert await runtime.check_health() == [beats]
    assert runtime.agent(quiet).pid


async def test_a_process_that_cannot_be_ended_leaves_the_health_checks_of_the_others(
    make: Make, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor is stopped for a while. The checks ended for good with the first process that was not ended in time."""
    monkeypatch.setattr(instances, "_KILL_SECONDS", 0.02)
    time = ByHand()
    runtime = await make(by_hand=time, monitoring=MonitoringConfig(enable_metrics=False))
    beats = """echo '{"method": "heartbeat"}'; echo '{"method": "ready"}'; cat"""
    agents = [runtime.agent(await sh(runtime, beats, wait_ready=True)) for _ in range(2)]
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        time.advance(31)
        await until(lambda: all(each.state is ProcessState.SHUTTING_DOWN for each in agents))
        await until(lambda: time.asleep == 1)  # the next check is planned
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    await until(lambda: all(each.next_start_at is not None for each in agents))


async def test_a_shutdown_that_cannot_end_a_process_still_closes_the_rest(
    make: Make, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnTools(Tools):
        closed = 0

        def tool_servers(self) -> "OwnTools":
            return self

        async def close(self) -> None:
            self.closed += 1

    monkeypatch.setattr(instances, "_KILL_SECONDS", 0.02)
    tools, time = OwnTools(), ByHand()
    runtime = await make(by_hand=time, mcp=tools, process=ProcessConfig(shutdown_grace_period=0))
    agent = runtime.agent(await sh(runtime, ANSWERS))
    os.kill(supervisor.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TerminateFailed, match="has not ended"):
            await runtime.shutdown()
        assert (tools.closed, time.asleep, runtime.list_agents()) == (1, 0, [])
    finally:
        os.kill(supervisor.pid, signal.SIGCONT)
    child = agent.child
    await until(lambda: child is None or child.is_over)


async def test_the_log_is_the_newest_of_what_is_no_answer(make: Make) -> None:
    runtime = await make(monitoring=MonitoringConfig(log_buffer_bytes=12))
    agent = await sh(runtime, "echo dropped >&2; echo said >&2; read -r task; echo words; echo '{\"result\": 1}'; cat")
    await until(lambda: "said" in runtime.logs(agent))
    await runtime.execute_task(agent, TASK)
    assert runtime.logs(agent) == "\nsaid\nwords\n"


# -- statistics -----------------------------------------------------------------------------------------------------------------


async def test_statistics_are_those_of_proc(make: Make) -> None:
    runtime = await make(by_hand=ByHand())
    nothing = await runtime.get_statistics()
    assert (nothing.total_agents_spawned, nothing.success_rate, nothing.tasks.avg_execution_time_ms) == (0, 1.0, 0.0)
    works = await sh(runtime, ANSWERS)
    script = """echo '{"method": "ready"}'; read -r task; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; exit 1"""
    fails = await sh(runtime, script, wait_ready=True)
    for agent in (works, works, works):
        await runtime.execute_task(agent, TASK)
    pids = [each.pid for each in runtime.list_agents()]
    before = (await runtime.get_statistics()).processes
    assert before.active_processes == 2
    assert before.total_memory_bytes == about(sum(map(resident, pids)))
    with pytest.raises(ExecutionError):
        await runtime.execute_task(fails, TASK)
    after = await runtime.get_statistics()
    assert (after.total_agents_spawned, after.active_agents, after.total_tasks_executed) == (2, 1, 4)
    assert (after.tasks.total_tasks, after.tasks.successful_tasks, after.tasks.failed_tasks) == (4, 3, 1)
    assert after.success_rate == 0.75
    assert after.processes.total_memory_bytes == about(resident(pids[0]))
    assert after.processes.total_cpu_time_ms > before.total_cpu_time_ms + 10


async def test_the_time_of_tasks_is_averaged(make: Make) -> None:
    time, tools = ByHand(), Tools()
    runtime = await make(by_hand=time, mcp=tools)
    agent = await sh(runtime, CALLS)

    async def slowly(agent_id: str, call: Any) -> Any:
        time.clock.advance(len(tools.opened))
        return SimpleNamespace(content=[], is_error=False)

    tools.call_tool = slowly  # type: ignore[method-assign]
    assert [(await runtime.execute_task(agent, TASK)).seconds for _ in range(3)] == [1, 2, 3]
    assert (await runtime.get_statistics()).tasks.avg_execution_time_ms == 2000


def about(size: int) -> Any:
    """The kernel adds up what its cores have counted at another moment in each of its files."""
    return pytest.approx(size, rel=0.25)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Deaf:
    """It has no method `publish`."""


class OfDicts:
    async def publish(self, event: dict[str, Any]) -> None: ...


class OfTexts:
    async def publish(self, event: "str") -> None: ...


@pytest.mark.parametrize(
    ("bus", "words"),
    [
        (InMemoryEventBus, "takes a RuntimeEvent, and no ProcessEvent"),
        (OfTexts, "takes a str, and no ProcessEvent"),
        (Deaf, "has no method publish"),
    ],
)
def test_a_bus_that_takes_no_events_of_processes_is_refused_at_once(bus: Any, words: str) -> None:
    """Each event was a traceback in the log."""
    with pytest.raises(UserError, match=f"ProcessRuntime: .*{words}") as refused:
        ProcessRuntime(message_bus=bus())
    assert "async def publish(self, event: ProcessEvent)" in (refused.value.hint or "")
    with pytest.raises(UserError, match=f"LeadAgent: .*{words}"):
        LeadAgent("lead", None, lambda query, context: [], None, lambda query, results: "", bus())  # type: ignore[arg-type]
