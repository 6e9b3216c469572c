"""The instances of document 004, and the execution of their tasks.

A task goes through these steps: it is submitted; an instance is acquired for it; the process and the tools of the
instance are checked; the instance executes the task within its limits, and its calls of tools are passed on to their
servers; the result is collected; and the instance is released for the next task.
"""

import asyncio
import json
import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import msgspec

from sabot.base.accounts import Account, AmountLimit, Amounts
from sabot.base.checks import is_whole
from sabot.base.config import check_numbers, checked_durations
from sabot.base.redaction import scrubbed
from sabot.base.threads import run_to_end
from sabot.clock import Clock
from sabot.errors import SabotError, UserError, message_of, short_repr
from sabot.process.client import ProcessUsage
from sabot.process.command import Command, ToolRequest, are_texts
from sabot.process.document_names import ProcessState
from sabot.process.errors import ExecutionError, InvalidContext, ResourceLimitExceeded, Timeout
from sabot.process.instance import Instance
from sabot.process.limits import ResourceLimits
from sabot.process.phases import Phase
from sabot.process.streams import LastWords
from sabot.specified.processes.task_lines import TaskLines

_log = logging.getLogger("sabot.process.executor")

_INVALID, _REFUSED, _FAILED = -32602, -32601, -32000  # codes of JSON-RPC
_MINUTE = 60.0
_MOST_NAME = 200
_ONE_CALL = Amounts(tool_calls=1)
_FREE = (Phase.READY, Phase.IDLE)  # phases in which an instance can be given a task


@runtime_checkable
class ToolServers(Protocol):
    """The servers of the tools that instances may call, such as `sabot.mcp.McpServerPool`."""

    async def get_or_create(self, agent_id: str) -> Any:
        """Returns the session that an instance has with the tool servers. Opens a session if the instance has none."""

    async def call_tool(self, agent_id: str, call: Any) -> Any:
        """Calls the tool `call.name` with `call.arguments` for the instance. The result has `content`, a list of blocks
        of the Model Context Protocol, and `is_error`; it may have `structured`, the same as a JSON value.
        """


@runtime_checkable
class ToolServerConfig(Protocol):
    """A configuration from which tool servers are made, such as `sabot.mcp.McpConfig`."""

    def tool_servers(self) -> Any:
        """Returns the tool servers, which also have a method `close`; None if the configuration names no server."""


@dataclass(frozen=True, slots=True)
class ToolAudit:
    """A call of a tool by an instance, for audits.

    - `tool`: the name of the tool, at most its first 200 characters.
    - `arguments_digest`: SHA-256 of the arguments as JSON with sorted names, so that equal arguments have equal
      digests.
    - `outcome`: "ok"; "tool_error" if the tool reported that it failed; "failed" if the server did not answer;
      "refused" if the tool was not called; "cancelled" if the task was ended during the call.
    - `reason`: the reason of the outcome; "" for "ok".
    """

    tool: str
    arguments_digest: str
    outcome: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskDelegation:
    """A task for an instance of a runtime. The process of the instance gets it as JSON, without `max_tool_calls` and
    `timeout`.

    - `objective`: what the instance is to do. `context`: values that it needs for this.
    - `output_format`: the form of the answer. `boundaries`: rules that the instance must follow.
    - `allowed_tools`: the names of the tools that the instance may call, or `fnmatch` patterns of names, such as
      "cortex_*"; None for all tools.
    - `max_tool_calls`: the most calls of tools. `timeout`: the most seconds from the moment at which the task is sent
      to the process. None for no limit of this task. The limits of the instance apply too, so the lower one counts.
    """

    objective: str
    context: Mapping[str, Any] = field(default_factory=dict)
    output_format: str = ""
    boundaries: Sequence[str] = ()
    allowed_tools: Sequence[str] | None = None
    max_tool_calls: int | None = None
    timeout: float | None = None
    task_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if not isinstance(self.objective, str) or not self.objective:
            raise InvalidContext("a task has no objective")
        check_numbers(self, "max_tool_calls", zero=True, whole=True, none=True)
        checked_durations(self, "timeout", none=True)
        for what in ("boundaries", "allowed_tools"):
            if (given := getattr(self, what)) is not None and not are_texts(given):
                raise InvalidContext(f"TaskDelegation: {what}={short_repr(given)}", hint="a list of texts")
        try:
            msgspec.json.encode(self.params())
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidContext(
                f"a task that cannot be written as JSON: {error}", hint="texts, numbers, lists, dicts"
            ) from error

    def params(self) -> dict[str, Any]:
        """Returns the JSON object that the process gets: the task without its limits."""
        return {
            "task_id": self.task_id,
            "objective": self.objective,
            "context": dict(self.context),
            "output_format": self.output_format,
            "boundaries": list(self.boundaries),
            "allowed_tools": None if self.allowed_tools is None else list(self.allowed_tools),
        }


@dataclass(frozen=True)
class TaskResult:
    """The answer of an instance to a task.

    - `agent_id`: the id of the instance that did the task. It differs from the id in the request if that instance
      could not be restarted any more, so that another one did the task
      (`RecoveryConfig.enable_graceful_degradation`).
    - `result`: the answer. `tool_calls`: the number of tools that the instance called for the task.
    - `seconds`: the time that the instance took for the task, including the opening of its sessions with tool servers.
      The wait for earlier tasks of the instance is not part of it.
    """

    task_id: str
    agent_id: str
    result: Any
    tool_calls: int
    seconds: float


@dataclass(frozen=True)
class ExecutorStatistics:
    """The statistics of an executor.

    - `total_tasks`: the number of tasks that an instance has begun and that have ended since the executor was made. A
      task that ends before an instance begins it is not counted, for example because there is no instance with its id,
      or because its caller was cancelled while it waited.
    - `successful_tasks`, `failed_tasks`: the numbers of these tasks that returned a result, and that raised an error or
      were cancelled.
    - `avg_execution_time_ms`: the average time in milliseconds that these tasks took, without their wait for the
      instance; 0 if there was none.
    """

    total_tasks: int
    successful_tasks: int
    failed_tasks: int
    avg_execution_time_ms: float

    def __await__(self) -> Generator[Any, None, "ExecutorStatistics"]:
        """Returns these statistics, so that `await executor.get_statistics()` is possible too, as document 004 has it."""
        return self
        yield


class RuntimeAgent(Instance):
    """An instance of a runtime: a program in a child process that gets tasks as JSON lines on stdin.

    - `type`: a word of the user for the kind of its work, such as "search". `limits`: the limits of its processes,
      and of each of its tasks.
    - `log`: the newest output of its processes, without the answers to tasks.
    - `lines`: the TaskLines by which tasks and answers are exchanged with the present process, or with the last one.
    - `turn`: a lock that the present task holds, so that the instance gets one task at a time.
    - `usage`: the usage of the process when it was last measured.
    """

    def __init__(self, command: Command, kind: str, limits: ResourceLimits, log: LastWords, **options: Any) -> None:
        """Makes an instance.

        - `kind`: becomes its `type`. `limits`: the limits of its processes and tasks. `log`: the buffer for its
          output.
        - `options`: the keyword arguments of `Instance`.
        """
        super().__init__(command, **options)
        self.type = kind
        self.limits = limits
        self.log = log
        self.lines: TaskLines | None = None
        self.turn = asyncio.Lock()
        self.usage: ProcessUsage | None = None
        self.tool_calls = deque[float]()  # times of the calls of tools in the last minute

    @property
    def state(self) -> ProcessState:
        """The state of the instance's process, by the names of specification 004 (`ProcessState`)."""
        return self.phase.process_state

    @property
    def is_stopped(self) -> bool:
        """True if somebody has stopped the process (SIGSTOP)."""
        return self.child is not None and self.child.paused

    @property
    def degraded(self) -> bool:
        """True if the instance has used up its restarts."""
        return self.phase is Phase.FAILED and self.policy is not None

    async def usable(self) -> TaskLines | None:
        """Waits until the instance can be given a task, and returns the TaskLines by which tasks are given to its
        process. Returns None if the instance has ended, and no other process will be started for it.
        """
        if self.phase not in _FREE:
            await self.until(lambda phase: self.is_over or phase in _FREE)
        return None if self.is_over else self.lines

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Keeps the instance in the phase BUSY during the `with` block. Raises IllegalTransition if the instance has a
        task already, or cannot be given one.
        """
        lines = self.lines
        assert lines is not None
        self.become(Phase.BUSY)
        lines.begin_task()
        try:
            yield
        finally:
            lines.end_task()
            if self.phase is Phase.BUSY and self.lines is lines:
                self.become(Phase.IDLE)

    async def end_task(self, lines: TaskLines) -> None:
        """Ends a process that has not answered its task. Otherwise its late answer could be mistaken for the answer
        to the next task. If the instance has a restart policy, it starts another process at once, and the end does not
        count as a failure; otherwise the instance fails.
        `lines`: the TaskLines of the process to end.
        """
        lines.is_at_fault = False
        await self.end_and_plan(lines.child, "its task was ended", counts=False)


class AgentExecutor:
    """An executor that gives tasks to instances of a runtime.

    - `choose`: a function that is called with the id of an instance, and returns the instance that does the task: the
      one with this id, or another one in its place.
    - `tools`: the servers of the tools that instances may call; None for no tools.
    - `tell`: an async function that is called at each step of a task. Its arguments are the step (one of the `task.`
      types of ProcessEvent), the instance's id, the task's id, and the ToolAudit if the step is a call of a tool, else
      None.
    """

    def __init__(
        self,
        choose: Callable[[str], RuntimeAgent],
        tools: ToolServers | None,
        clock: Clock,
        tell: Callable[[str, str, str, ToolAudit | None], Awaitable[None]],
    ) -> None:
        self._choose = choose
        self.tools = tools
        self.no_tools = "this runtime has no tools"
        self._clock = clock
        self._tell = tell
        self._succeeded = 0
        self._failed = 0
        self._seconds = 0.0

    def get_statistics(self) -> ExecutorStatistics:
        """Returns the number of finished tasks since the executor was made, and their average time. A task is finished if
        an instance has begun it and it has ended, in whichever way.
        """
        total = self._succeeded + self._failed
        return ExecutorStatistics(total, self._succeeded, self._failed, 1000 * self._seconds / total if total else 0.0)

    async def execute_task(
        self, agent_id: str, task: TaskDelegation, *, slots: asyncio.Semaphore | None = None
    ) -> TaskResult:
        """Executes a task as soon as the instance has done its earlier tasks, and returns the result. `slots`: a
        semaphore that limits how many tasks are executed at a time; None for no limit.

        - Raises AgentNotFound if there is no instance with this id; InvalidContext if `task` is no TaskDelegation.
        - Raises Timeout or ResourceLimitExceeded if the task exceeds a limit. The process is then ended; another one is
          started if `RecoveryConfig.enable_auto_restart` is set.
        - Raises ExecutionError if the process reports that the task failed, if the process ends during the task, or if
          the instance gets no further process and no other instance of its type may do the task.
        - Raises the error of `ToolServers.get_or_create` if the tool servers cannot be reached.
        """
        if not isinstance(task, TaskDelegation):
            raise InvalidContext(f"a task is no {type(task).__name__}", hint='TaskDelegation(objective="…")')
        instance = self._choose(agent_id)
        await self._tell("task.submitted", instance.id, task.task_id, None)
        while True:
            some: AbstractAsyncContextManager[Any] = nullcontext() if slots is None else slots
            async with instance.turn, some:
                if await instance.usable() is not None and (done := await self._counted(instance, task)) is not None:
                    return done
            instance = self._choose(agent_id)  # it was terminated, or is degraded

    async def execute_tasks_parallel(
        self, tasks: Sequence[tuple[str, TaskDelegation]], max_parallel: int
    ) -> list[TaskResult | Exception]:
        """Executes several tasks, at most `max_parallel` at a time. `tasks`: pairs of an instance's id and a task.
        Returns, in the order of `tasks`, the result of each task or the error that it raised. Raises UserError if
        `max_parallel` is not a whole number above 0.
        """
        if not is_whole(max_parallel, 1):
            raise UserError(f"max_parallel={short_repr(max_parallel)} allows no task", hint="a whole number above 0")
        slots = asyncio.Semaphore(max_parallel)

        async def one(agent_id: str, task: TaskDelegation) -> TaskResult | Exception:
            try:
                return await self.execute_task(agent_id, task, slots=slots)
            except Exception as error:
                return error

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(one(*each)) for each in tasks]
        return [each.result() for each in running]

    async def _counted(self, instance: RuntimeAgent, task: TaskDelegation) -> TaskResult | None:
        """Executes a task on an instance that has no other task. Counts the task as done or failed, and returns its
        result. Returns None, and counts nothing, if the instance has ended for good before its process got the task.
        """
        began = self._clock.monotonic()
        try:
            await self._tell("task.acquired", instance.id, task.task_id, None)
            await self._tell("task.process_checked", instance.id, task.task_id, None)
            if self.tools is not None:
                await self.tools.get_or_create(instance.id)
            await self._tell("task.tools_checked", instance.id, task.task_id, None)
            # The process may have ended during these checks, and another one may have been started.
            if (lines := await instance.usable()) is None:
                return None
            result, calls = await self._executed(instance, lines, task)
        except BaseException:
            self._failed += 1
            self._seconds += self._clock.monotonic() - began
            raise
        else:
            self._succeeded += 1
            self._seconds += (seconds := self._clock.monotonic() - began)
            instance.failures = 0
            await self._tell("task.collected", instance.id, task.task_id, None)
            return TaskResult(task.task_id, instance.id, result, calls, seconds)
        finally:
            await self._tell("task.released", instance.id, task.task_id, None)

    async def _executed(self, instance: RuntimeAgent, lines: TaskLines, task: TaskDelegation) -> tuple[Any, int]:
        """Sends the task to the process, and returns the answer and the number of tools that were called. Ends the
        process if an error or the time limit comes before the answer, since the process may still work on the task.
        """
        seconds = _lower(task.timeout, instance.limits.max_task_duration)
        answer: Mapping[str, Any] | None = None
        async with instance.busy():
            try:
                async with asyncio.timeout(seconds):
                    answer, calls = await self._conversation(instance, lines, task)
            except TimeoutError as error:
                raise Timeout(
                    f"task {task.task_id} of instance {instance.label} was not done in {seconds:g} s"
                ) from error
            finally:
                if answer is None:
                    await run_to_end(instance.end_task(lines))
        # older programs write "error": null beside a result
        if answer.get("error") is not None or "result" not in answer:
            wrong = answer["error"]
            said = wrong.get("message", wrong) if isinstance(wrong, Mapping) else wrong
            raise ExecutionError(f"task {task.task_id} of instance {instance.label} has failed: {said}")
        return answer["result"], calls

    async def _conversation(
        self, instance: RuntimeAgent, lines: TaskLines, task: TaskDelegation
    ) -> tuple[dict[str, Any], int]:
        most = _lower(task.max_tool_calls, instance.limits.max_tool_calls_per_task)
        account = Account([] if most is None else [AmountLimit("tool_calls", int(most))])
        await lines.tell({"id": task.task_id, "method": "task/execute", "params": task.params()})
        await self._tell("task.started", instance.id, task.task_id, None)
        while True:
            message = await lines.hear()
            if message.get("method") != "tools/call":
                if message.get("id", task.task_id) == task.task_id:
                    return message, account.total.tool_calls
                continue
            if account.exceeded(_ONE_CALL) is not None:
                why = f"task {task.task_id} of instance {instance.label} has called more than {most:g} tools"
                await self._audit(instance, task, message.get("params"), "refused", why)
                raise ResourceLimitExceeded(why, limit="max_tool_calls_per_task")
            account.add(_ONE_CALL)
            await lines.tell({"id": message.get("id"), **await self._called(instance, task, message.get("params"))})

    async def _called(self, instance: RuntimeAgent, task: TaskDelegation, params: Any) -> dict[str, Any]:
        """Calls a tool for the process, and returns the message with the result, which is sent to the process. If the
        call is refused or fails, this message contains the error instead, so that the model in the process learns of
        it. `params`: the name and the arguments of the tool.
        """
        refused = self._refusal(instance, task, params)
        if refused is not None:
            await self._audit(instance, task, params, "refused", refused["error"]["message"])
            return refused
        assert self.tools is not None
        outcome, reason = "cancelled", "the task was ended"
        try:
            result = await self.tools.call_tool(instance.id, ToolRequest(params["name"], params.get("arguments") or {}))
            outcome, reason = ("tool_error", "the tool says so") if result.is_error else ("ok", "")
            said = {"content": result.content, "isError": result.is_error}
            structured = getattr(result, "structured", None)
            return {"result": said if structured is None else said | {"structuredContent": structured}}
        except SabotError as error:
            outcome, reason = "failed", str(error)
            return _error(_FAILED, str(error))
        except Exception as error:  # the servers may be the user's code: its error is one of this call, not of the task
            outcome, reason = "failed", f"{type(error).__name__}: {message_of(error)}"
            _log.exception("tool %r of instance %r failed", params["name"], instance.name)
            return _error(_FAILED, scrubbed(reason))
        finally:
            await run_to_end(self._audit(instance, task, params, outcome, reason))

    def _refusal(self, instance: RuntimeAgent, task: TaskDelegation, params: Any) -> dict[str, Any] | None:
        """Checks whether the process may make this call of a tool. Returns None if it may. Otherwise returns the
        message that is sent to the process in place of a result, with the error. `params`: the parameters of the
        process's request.
        """
        match params:
            case {"name": str(name), **rest} if isinstance(rest.get("arguments") or {}, dict):
                pass
            case _:
                return _error(_INVALID, "a call of a tool has a name, and arguments, which are an object")
        if not _is_unicode(params):
            return _error(_INVALID, "a text of the call has half a surrogate pair, which no tool can be given")
        if self.tools is None:
            return _error(_REFUSED, self.no_tools)
        allowed = task.allowed_tools
        if allowed is not None and name not in allowed and not any(fnmatchcase(name, each) for each in allowed):
            return _error(_REFUSED, f"the task does not allow the tool {name!r}")
        most, now = instance.limits.max_tool_calls_per_minute, self._clock.monotonic()
        if most is None:
            return None
        recent = instance.tool_calls
        while recent and recent[0] <= now - _MINUTE:
            recent.popleft()
        if len(recent) >= most:
            wait = recent[0] + _MINUTE - now
            refused = _error(_FAILED, f"the instance calls at most {most} tools a minute: the next one in {wait:.1f} s")
            refused["error"]["data"] = {"retry_after_seconds": round(wait, 3)}
            return refused
        recent.append(now)
        return None

    async def _audit(
        self, instance: RuntimeAgent, task: TaskDelegation, params: Any, outcome: str, reason: str
    ) -> None:
        asked = params if isinstance(params, Mapping) else {}
        given = asked.get("arguments") or {}
        arguments = (
            msgspec.json.encode(given, order="deterministic")
            if _is_unicode(given)
            else json.dumps(given, sort_keys=True).encode()
        )
        call = ToolAudit(str(asked.get("name", ""))[:_MOST_NAME], sha256(arguments).hexdigest(), outcome, reason)
        words = (call.tool, call.arguments_digest, f"{outcome}: {reason}" if reason else outcome)
        _log.info("task %s of instance %r called %r with arguments %s: %s", task.task_id, instance.name, *words)
        await self._tell("task.tool_call", instance.id, task.task_id, call)


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def _is_unicode(value: Any) -> bool:
    """Returns True if all texts in a JSON value can be written in UTF-8. A text with half a surrogate pair cannot,
    although JSON can express it as an escape.
    """
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    return True


def _lower(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)
