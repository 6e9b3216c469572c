"""The effects of an agent outside of a job: calls are made at once and not recorded."""

import asyncio
import contextvars
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from secrets import token_hex
from typing import Any

from sabot.base.threads import call_on_loop
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.certainty import Certainty, certainty_of
from sabot.engine.calls.effects import RULES, EffectId
from sabot.engine.calls.errors import ToolTimeout
from sabot.engine.calls.judging import JUDGE, OVER, OnceJudge, judge_of_this, note_labels, present_judge
from sabot.engine.calls.model_requests import RequestContext, RequestSpec
from sabot.engine.calls.pool import ThreadPool
from sabot.engine.calls.steps import watched
from sabot.engine.calls.tool_context import EFFECT, PLAIN_CALL, Effect, OpenDeps, ToolContext, id_within, no_deps
from sabot.engine.calls.tools import IN_THREAD, Tool
from sabot.errors import EffectError, NotSent, message_of
from sabot.llm.engine_core import Engine
from sabot.llm.middleware import ToolMiddleware
from sabot.llm.results import Completion, Piece

_CANNOT_CHANGE = frozenset({str, int, float, bool, bytes, type(None)})
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
        self._calls = 0
        self._deps = OpenDeps()
        self.message: Any = None
        """The prompt of the run, which tools with a ToolContext get."""
        self.middleware: ToolMiddleware | None = None

    @cached_property
    def _run(self) -> str:
        # Several runs may have the same context, and number their calls alike: their keys must differ.
        return f"{self._context.request_id}/{token_hex(8)}"

    async def call(self, tool: Tool, arguments: Mapping[str, Any], said: str | None = None) -> Any:
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

    def note_labels(self, labels: frozenset[str], /) -> None:
        note_labels(labels)  # the agent may run in a tool of a job

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
        attempt, own, number = 1, None, self._calls
        if tool.takes_effect or tool.takes_context:
            own = id_within(tool.name, arguments) or EffectId(self._run, number)
        repeatable, once = RULES[tool.effect].repeatable, OnceJudge(present_judge())
        changeable = bool(tool.retry.retries) and not _CANNOT_CHANGE.issuperset(map(type, arguments.values()))
        while True:
            if self.middleware is not None:
                self.middleware.charge()
            if once.called:
                once.begin(attempt - 1)
            before = JUDGE.set(once)
            plain = PLAIN_CALL.set(EffectId(self._run, number, attempt)) if tool.retry.retries else None
            try:
                # each attempt gets what was judged, and not what the one before has made of it
                given = deepcopy(arguments) if changeable else arguments
                with nullcontext() if self.middleware is None else self.middleware.attempt():
                    return await self._attempt(tool, given, own, attempt)
            except Exception as error:
                if self.middleware is not None and certainty_of(error) is Certainty.NOT_SENT:
                    self.middleware.take_back()
                again = repeatable or (isinstance(error, NotSent) and not once.called)
                if attempt > tool.retry.retries or not again:
                    raise
            finally:
                JUDGE.reset(before)
                if plain is not None:
                    PLAIN_CALL.reset(plain)
            await asyncio.sleep(tool.retry.wait_s(attempt - 1))
            attempt += 1

    async def _attempt(self, tool: Tool, arguments: Mapping[str, Any], own: EffectId | None, attempt: int) -> Any:
        seconds = tool.timeout_s
        if own is not None:
            effect = EffectId(own.job, own.ordinal, attempt)
            deadline = None if seconds is None else self._clock.time() + seconds
            told = Effect(effect, effect.key, effect.attempt, deadline)
            if tool.takes_effect:
                arguments = {**arguments, EFFECT: told}
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                if tool.takes_context:
                    arguments = {**arguments, tool.takes_context: await self._context_of(tool, told)}
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

    async def _context_of(self, tool: Tool, effect: Effect) -> ToolContext[Any]:
        caller = self._context
        if tool.wants_deps and tool.deps is None:
            raise no_deps(f"tool {tool.name}", tool.takes_context, tool.wants_deps, agent=False)
        context = ToolContext[Any](
            scope=caller.tenant_id or "",
            principal=caller.user_id or "",
            session=caller.session_id or "",
            job=caller.job_id or "",
            message=self.message,
            deadline=effect.deadline,
            effect=effect,
            _inner={},
        )
        return replace(context, deps=await self._deps.of(tool.deps, context))

    async def close(self) -> None:
        """Closes the dependencies of the tools of this run."""
        await self._deps.close()


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

    def of_run(self, prompt: object, use_middleware: bool) -> "DirectEffects":
        """Notes the prompt of the run, and puts the engine's middleware around tool calls if `use_middleware` is True.
        Returns this object.
        """
        self.message = prompt
        self.middleware = self._engine.tool_middleware if use_middleware else None
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
        context.run(
            OVER.set, lambda: "the call of a tool is over, for which its agent has not waited" * ended.cancelled()
        )

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
