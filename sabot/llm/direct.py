"""The effects of an agent outside of a job: calls are made at once and not recorded."""

import asyncio
import contextvars
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import nullcontext
from functools import partial
from secrets import token_hex
from typing import Any

from sabot.base.threads import call_on_loop
from sabot.calls.judging import judge_of_this
from sabot.calls.pool import ThreadPool
from sabot.calls.steps import watched
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.errors import EffectError, NotSent, message_of
from sabot.journal.effects import RULES, EffectId
from sabot.llm.engine_core import Engine
from sabot.llm.errors import ToolTimeout
from sabot.llm.middleware import ToolMiddleware
from sabot.llm.results import Completion, Piece
from sabot.llm.spec import RequestContext, RequestSpec
from sabot.llm.tools import IN_THREAD, Effect, Tool

_MOST_THREADS = (
    64  # the most threads for the sync tools of one event loop, including threads of tools that never return
)


class DirectTools:
    """The tool calls of one run of an agent outside of a job. Each call is made directly, and no journal records it. The
    attempts of a call have one idempotency key, which no other call has, also if another run has the same `context`.
    """

    def __init__(self, context: RequestContext, clock: Clock = SYSTEM_CLOCK) -> None:
        self._context = context
        self._clock = clock
        # Several runs may have the same context, and number their calls alike: their keys must differ.
        self._run = f"{context.request_id}/{token_hex(8)}"
        self._calls = 0
        self.middleware: ToolMiddleware | None = None

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """Calls the tool, and returns its result. After a failure it calls again, at most `tool.retry.retries` times.
        An unsafe or reconcilable call is repeated only if its request was certainly not sent. Raises the error of the
        tool, ToolTimeout, or BudgetExceeded.
        """
        with nullcontext() if self.middleware is None else self.middleware.call(tool.name, self._context):
            if tool.converse is not None:
                return await tool.converse(tool, DirectCaller(self, self._context), arguments)
            return await self.make(tool, arguments)

    def looks_at_ends(self) -> bool:
        return True

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """Calls the function `tool.func`, with the same repetitions after a failure and the same errors as `call`. The
        function `converse` of a tool calls this method once for each step of the tool call.

        If the app has a policy or budgets, they decide first whether the call may be made; PolicyDenied or
        BudgetExceeded is raised if not.
        """
        judge = judge_of_this(tool.name, "called", IN_THREAD)
        if judge is None:
            return await self._attempts(tool, arguments)
        return await judge.make(tool, (), arguments, lambda _, changed: self._attempts(tool, changed))

    async def _attempts(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        self._calls += 1
        number, attempt = self._calls, 1
        while True:
            if self.middleware is not None:
                self.middleware.charge()
            try:
                with nullcontext() if self.middleware is None else self.middleware.attempt():
                    return await self._attempt(tool, arguments, EffectId(self._run, number, attempt))
            except Exception as error:
                again = RULES[tool.effect].repeatable or isinstance(error, NotSent)
                if attempt > tool.retry.retries or not again:
                    raise
            await asyncio.sleep(tool.retry.wait_s(attempt - 1))
            attempt += 1

    async def _attempt(self, tool: Tool, arguments: Mapping[str, Any], effect: EffectId) -> Any:
        seconds = tool.timeout_s
        if tool.takes_effect:
            deadline = None if seconds is None else self._clock.time() + seconds
            arguments = {**arguments, "effect": Effect(effect, effect.key, effect.attempt, deadline)}
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if tool.is_async:
                    value = tool.func(**arguments)
                else:
                    value = await _threads().call(partial(tool.func, **arguments))
                return await watched(value, f"tool {tool.name}", self._clock) if inspect.isawaitable(value) else value
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ToolTimeout(f"{tool.name} did not return within {seconds:g} s") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Something within the tool was cancelled, and not this task.
            raise EffectError("CancelledError", message_of(error)) from error


class DirectCaller:
    """The interface ToolCaller for tools with a function `converse`, in an agent that does not run in a job. It cannot
    ask a person: `ask` returns None.
    """

    def __init__(self, tools: DirectTools, context: RequestContext) -> None:
        self._tools = tools
        self._context = context
        self.scope = context.tenant_id or ""
        self.principal = context.user_id or ""

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        return await self._tools.make(tool, arguments)

    async def ask(self, kind: str, payload: Mapping[str, Any], timeout_s: float) -> None:
        return None

    async def complete(self, engine: Engine, spec: RequestSpec) -> Completion:
        return await engine.complete(spec, context=self._context.child())


class DirectEffects(DirectTools):
    """The interface AgentEffects for one run of an agent outside of a job: models and tools are called directly, and no
    journal records the calls.
    """

    def __init__(self, engine: Engine, context: RequestContext, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(context, clock)
        self._engine = engine

    def of(self, engine: Engine) -> "DirectEffects":
        return DirectEffects(engine, self._context.child(), self._clock)

    def with_middleware(self, use: bool) -> "DirectEffects":
        """Puts the engine's middleware around tool calls if `use` is True. Returns this object."""
        self.middleware = self._engine.tool_middleware if use else None
        return self

    async def complete(self, spec: RequestSpec) -> Completion:
        return await self._engine.complete(spec, context=self._context.child())

    def stream(self, spec: RequestSpec) -> AsyncGenerator[Piece, None]:
        return self._engine.stream(spec, context=self._context.child())


class _ToolThreads:
    """A pool of threads for the synchronous tools of one event loop. asyncio's default executor is not used: if some
    tools never returned, they would occupy all of its threads. Then asyncio could not look up host names any more, and
    the process could not exit.
    """

    def __init__(self) -> None:
        self._pool = ThreadPool(SYSTEM_CLOCK)
        self._room = asyncio.Semaphore(_MOST_THREADS)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs the function in a thread, and returns its result or raises its error. If the waiting task is cancelled,
        this method ends at once, and the function continues in its thread.
        """
        await self._room.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        context = contextvars.copy_context()

        def work() -> Callable[[], None]:
            value, error = None, None
            try:
                value = context.run(function)
            except BaseException as raised:
                error = raised
            return partial(call_on_loop, loop, self._finish, ended, value, error)

        self._pool.run(work)
        value, error = await ended
        if error is not None:
            raise error
        return value

    def _finish(self, ended: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
        self._room.release()
        if not ended.done():
            ended.set_result((value, error))


_threads_by_loop: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _ToolThreads]" = weakref.WeakKeyDictionary()


def _threads() -> _ToolThreads:
    loop = asyncio.get_running_loop()
    found = _threads_by_loop.get(loop)
    if found is None:
        found = _threads_by_loop[loop] = _ToolThreads()
    return found
