"""Makes the calls of tools, one attempt each, and passes on their outcomes.

   make ─▶ it has a thread ─▶ sendable ─▶ the tool, in a task of its own or in a thread ─▶ done(outcome)
                                              └─ its time is over ─▶ done(unknown); it is cancelled, and its result dropped

Calls do not belong to jobs. If a job leaves memory or runs again, its calls go on. If the job then asks again for a
call that is under way, that call is adopted and not made twice.

A thread cannot be cancelled, and a coroutine may ignore its cancellation. Such a call is left behind: its name is in
`left_behind`, and it no longer counts in the limit of threads. So a tool that hangs does not block other tools.
"""

import asyncio
import contextvars
import dataclasses
import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from sabot.base.config import Secret
from sabot.base.metrics import Durations
from sabot.base.present_job import PRESENT_JOB
from sabot.base.process_exit import EXITS, find_exit, wrap_exit
from sabot.base.redaction import HIDDEN, without_secrets
from sabot.base.supervision import unexpected_end
from sabot.base.threads import call_on_loop
from sabot.clock import Clock
from sabot.engine.calls.certainty import Certainty, certainty_of, is_ours
from sabot.engine.calls.crew import CANCEL_SECONDS
from sabot.engine.calls.effects import RULES, EffectClass, EffectId, Reconciled
from sabot.engine.calls.error_log import ErrorLog
from sabot.engine.calls.functions import awaitable, unwrap
from sabot.engine.calls.judging import JUDGE, OVER, SENDABLE, OnceJudge, begin_judging, end_judging
from sabot.engine.calls.pool import ThreadPool
from sabot.engine.calls.steps import watched
from sabot.engine.calls.tool_context import CALL, EFFECT, Effect, OpenDeps, ToolContext, no_deps
from sabot.engine.calls.tools import Tool
from sabot.errors import EffectError, JournalFailed, SabotError, UserError, short_repr
from sabot.jobs.core import LookedUp, Outcome
from sabot.jobs.judges import REPEATED, GuardJudge, judge_of_repeated
from sabot.jobs.owner import RunningJob
from sabot.jobs.values import pack, pack_error, type_of, unpack, unpack_error
from sabot.journal import Position
from sabot.steps import step

__all__ = ["Certainty", "EffectRunner", "LookedUp", "Outcome"]

_log = logging.getLogger(__name__)

_UNSENT_SECONDS = 5.0  # seconds that a stop waits if no call was sent
_MOST_TOOLS = 1_000  # the most tools whose figures are kept
_RECONCILE_SECONDS = 60.0  # the time-out of the reconciling function of a tool without one
_CANCEL_AGAIN_SECONDS = 2.5  # seconds until a second cancellation, for code that swallows one
_LEFT_PER_THREAD = 4  # the most calls left behind in threads, for each thread that calls may have


AsksPerson = Callable[[EffectId, str, bytes, float | None], Awaitable[str]]
"""A function by which a call asks a person. Its arguments are the effect, the type of the question, its payload as
JSON, and the seconds for the answer (None for no limit). It returns the token of the question if the question was
answered. If not, it does not return: the call is cancelled, and made again after the answer.
"""


Done = Callable[[Outcome], object]


@dataclass(slots=True, eq=False)
class _Call:
    """One attempt of a call.

    - `effect`, `tool`, `args`, `kwargs`: the id of the attempt, the tool and its arguments.
    - `done`: a function that is called with the outcome; None if nobody needs the outcome any more.
    - `entry`: the position of the journal entry that has to be durable before the call is sent; None for no such
      entry.
    - `look`: True if the called function is the tool's `reconcile=` function.
    - `task`, `timer`: the task that makes the call, and the timer of its time limit or of its second cancellation.
    - `began`: the time at which the call was sent, by the monotonic clock; infinity before that.
    - `told`: True once `done` was called, or once it must not be called any more.
    - `thread`: True while the call uses one of the threads that sync tools share.
    - `working`: for a call in a thread, a future that is done when the thread has ended the call.
    - `secrets`: the secrets that were put into the arguments.
    - `figures`: the figures of the tool; None before the call was sent.
    - `once`: notes which tools this call has called itself that must not be called twice; None if it is no call that is
      repeated although its class forbids that, after an error by which nothing was sent.
    - `running`: the job; None if it is not in memory.
    - `context`: what the function is told about the call, if it takes a ToolContext.
    - `cut`: the error with which the call was ended before its function; None if it was not.
    """

    effect: EffectId
    tool: Tool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    done: Done | None
    entry: Position | None
    look: bool
    task: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    began: float = math.inf
    told: bool = False
    thread: bool = False
    working: "asyncio.Future[tuple[Any, BaseException | None]] | None" = None
    secrets: list[str] = dataclasses.field(default_factory=list)
    figures: "ToolFigures | None" = None
    once: OnceJudge | None = None
    running: RunningJob | None = None
    context: ToolContext[Any] | None = None
    cut: BaseException | None = None

    def __str__(self) -> str:
        return f"tool {self.tool.name}, effect {self.effect}"

    def why_over(self) -> str:
        """Returns why the function may call nothing any more, or "". An `async def` that is cancelled may, to clean up."""
        ended = self.cut is not None and (self.working is not None or self.task is None or self.task.done())
        return f"the call of {self} is over ({self.cut})" if ended else ""


@dataclass(slots=True)
class ToolFigures:
    """The figures of one tool since the start of the app.

    - `calls`: the number of calls that were sent. `in_flight`: the number of calls that were sent and have no outcome
      yet.
    - `failed`: the number of calls whose outcome is an error.
    - `unknown`: the number of calls of which nobody knows whether they were made.
    - `seconds`: the distribution of the durations of calls in seconds, from the sending to the outcome.
    """

    calls: int = 0
    in_flight: int = 0
    failed: int = 0
    unknown: int = 0
    seconds: Durations = dataclasses.field(default_factory=Durations)


class EffectRunner:
    """Makes the calls of tools for the host of jobs (`JobHost`), one attempt each. It belongs to one event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        sendable: Callable[[Position | None], Awaitable[None]] | None = None,
        sync_threads: int = 16,
        on_broken: Callable[[SabotError], object] | None = None,
        again: Callable[[EffectId], Awaitable[EffectId]] | None = None,
        judge: Callable[[EffectId, Tool], GuardJudge] | None = None,
        running: Mapping[str, RunningJob] = MappingProxyType({}),
        declared: frozenset[str] = frozenset(),
    ) -> None:
        """Makes a runner.

        - `sendable`: a coroutine function that is awaited just before each call, with the position of the call's
          entry. It is also awaited, with None, before each request that a call sends to a model. It raises
          JournalFailed if no call may be made any more.
        - `sync_threads`: the number of sync tools that may run at the same time.
        - `on_broken`: a function that is called with an error that has to end the app. That is the case if the
          journal has failed, or if a tool has raised KeyboardInterrupt or SystemExit. If it is None, the error is
          raised in a callback of the event loop.
        - `again`: a coroutine function that begins another attempt of a running call, when the call's tool requests
          it (see `Effect.again`).
        - `judge`: a function that returns, for an effect and its tool, the judge that decides on the calls of models
          and other tools which the tool makes itself. None if there is no policy and no budget; then only the effect
          classes of these tools are checked.
        - `running`: the jobs in memory, by id: the model calls and log lines of their effects say on whose behalf they
          are made.
        - `declared`: those of the options "policy" and "budgets" for which the judge stands.
        """
        self._clock = clock
        self._sendable = sendable
        self._on_broken = _raise if on_broken is None else on_broken
        self._again = again
        self._judge, self._running = judge, running
        if judge is not None:  # not only from the first effect: the function of a job may start threads before it
            begin_judging(self, declared)
        self._judges: dict[tuple[str, EffectClass], GuardJudge] = {}  # without `judge`, by name and class of the tool
        self.ask: AsksPerson | None = None
        """The function by which tools ask a person; None if they cannot."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._context.run(SENDABLE.set, None if sendable is None else partial(sendable, None))
        self._context.run(JUDGE.set, None)
        self._context.run(PRESENT_JOB.set, None)
        self._jobs: dict[str, dict[tuple[int, bool], _Call]] = {}  # by job: calls whose outcome was not passed on
        self._deps: dict[str, OpenDeps] = {}  # by job in memory: the dependencies of the tools that it has called
        self._closing: set[asyncio.Task[None]] = set()
        self._left: dict[_Call, None] = {}  # calls that still run after their outcome was passed on
        self._pool = ThreadPool(clock)
        self._errors = ErrorLog("jobs", clock)
        self._free = sync_threads
        self._waiting: deque[asyncio.Future[None]] = deque()  # calls that wait for a thread, in their order
        self._most_left = sync_threads * _LEFT_PER_THREAD
        self._uncounted = 0  # the number of threads of calls that were left behind
        self._in_flight = 0
        self._calls = self._timeouts = self._unknown = self._not_sent = 0
        self._of_tools: dict[str, ToolFigures] = {}

    # -- called by the owner ------------------------------------------------------------------------------------------

    def make(
        self,
        effect: EffectId,
        tool: Tool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        done: Done,
        entry: Position | None = None,
        *,
        look: bool = False,
    ) -> None:
        """Makes one attempt of an effect. If a call of the same effect is still running, makes no second call: the
        running call passes its outcome to this `done`.

        - `done`: called once with the outcome, on the event loop, and only after this method has returned.
        - `entry`: the position of the journal entry that has to be durable before the call is sent; None for no such
          entry.
        - `look`: True if the called function is the tool's `reconcile=` function.
        """
        calls = self._jobs.setdefault(effect.job, {})
        key = (effect.ordinal, look)
        if (under_way := calls.get(key)) is not None:
            under_way.done = done
            return
        call = calls[key] = _Call(effect, tool, args, kwargs, done, entry, look)
        self._in_flight += 1
        running = call.running = self._running.get(effect.job)
        if running is None:
            context = self._context.copy()
        elif running.context is None:
            running.context = context = self._context.copy()
            context.run(PRESENT_JOB.set, running.job.present)
            context = context.copy()
        else:
            context = running.context.copy()
        judge: GuardJudge | OnceJudge | None = None if self._judge is None else self._judge(effect, tool)
        if tool.effect not in REPEATED:
            if tool.retry.retries:
                judge = call.once = OnceJudge(judge)
        elif judge is None and (judge := self._judges.get((tool.name, tool.effect))) is None:
            if len(self._judges) >= _MOST_TOOLS:
                self._judges.clear()
            judge = self._judges[tool.name, tool.effect] = judge_of_repeated(tool, self._clock)
        # No task factory is asked: an eager one would begin the call in here.
        call.task = asyncio.Task(self._run(call, judge), loop=self._loop, name=f"effect {effect}", context=context)

    def reconcile(
        self,
        effect: EffectId,
        tool: Tool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        done: Callable[[LookedUp], object],
    ) -> None:
        """Calls the tool's `reconcile=` function, which finds out whether the effect was done, and passes its answer
        to `done`. The answer is `Reconciled.UNKNOWN` if the function raises an error, returns something unexpected,
        or takes longer than the tool's `timeout=`. Without that option its limit is 60 seconds.
        """
        look = tool.reconcile
        assert look is not None, f"tool {tool.name} has nothing to reconcile with"
        seconds = _RECONCILE_SECONDS if tool.timeout_s is None else tool.timeout_s
        first = Effect(effect, effect.key, effect.attempt, self._clock.time() + seconds)
        asks = replace(
            tool,
            func=partial(look, first),
            effect=EffectClass.READ,
            timeout_s=seconds,
            takes_effect=False,
            takes_context="",
            is_async=inspect.iscoroutinefunction(unwrap(look)),
        )
        self.make(effect, asks, args, kwargs, partial(_found, done, tool.name), look=True)

    def leave(self, job: str) -> None:
        """Closes the dependencies of the tools of a job that has left memory, when none of its calls is under way."""
        if job not in self._jobs and (opened := self._deps.pop(job, None)) is not None:
            closing = self._loop.create_task(opened.close(), name=f"deps of job {job}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def drop(self, job: str) -> None:
        """Lets the calls of this job continue, but no longer reports their outcomes. If the job is loaded again and
        requests a call that is still running, `EffectRunner.make` does not start it a second time. It reports the
        outcome of the running call.
        """
        for call in self._jobs.get(job, {}).values():
            call.done = None

    def cut_short(self, job: str, error: BaseException) -> None:
        """Cancels the calls of this job, and passes on the error as their outcome. For a call that was already sent,
        nobody knows then whether it was made.
        """
        for call in list(self._jobs.get(job, {}).values()):
            self._cut_short(call, error)

    def stop(self, effect: EffectId) -> None:
        """Cancels the call of this effect, and passes on no outcome. Used when the tool of the call has asked a
        person; the host calls the tool again after the answer. Figures then count no failure of the tool.
        """
        call = self._jobs.get(effect.job, {}).get((effect.ordinal, False))
        if call is not None:
            why = asyncio.CancelledError("its tool asks a person, and is called again behind the answer")
            self._tell(call, None)  # no outcome is counted: the call that follows the answer has one
            self._cut_short(call, why)

    def is_under_way(self, job: str, ordinal: int) -> bool:
        """Returns True if a call of this effect is still running. If `make` is called for the effect then, it makes
        no second call: the running call passes its outcome to the new `done`.
        """
        return (ordinal, False) in self._jobs.get(job, {})

    def in_flight(self) -> int:
        """Returns the number of calls whose outcome was not passed on yet. It includes calls that were not sent yet,
        because they wait for their journal entry or for a thread.
        """
        return self._in_flight

    def calling(self) -> list[str]:
        """Returns the ids of the jobs that have calls under way."""
        return list(self._jobs)

    @property
    def left_behind(self) -> list[str]:
        """The calls that were cancelled and are still running. Each is a text with the name of the tool and the
        effect.
        """
        return [str(call) for call in self._left]

    def statistics(self) -> dict[str, int]:
        """Returns figures. All except the last three count calls since the start.

        - `calls`: the calls that were sent.
        - `timeouts`: the calls that took too long.
        - `unknown`: the calls of which nobody knows whether they were made.
        - `not_sent`: the calls that were certainly not made.
        - `in_flight`: the number of calls that have no outcome yet.
        - `left_behind`: the number of calls that were cancelled and are still running.
        - `threads`: the number of threads that exist.
        """
        return {
            "calls": self._calls,
            "in_flight": self._in_flight,
            "timeouts": self._timeouts,
            "unknown": self._unknown,
            "not_sent": self._not_sent,
            "left_behind": len(self._left),
            "threads": self._pool.alive,
        }

    def tools(self) -> dict[str, dict[str, Any]]:
        """Returns figures by the name of the tool, for each tool that was called since the start: `calls`,
        `in_flight`, `failed` and `unknown` as in `ToolFigures`, and `durations`, the distribution of the durations.
        May be called from any thread.
        """
        counts = ("calls", "in_flight", "failed", "unknown")
        return {
            name: {each: getattr(figures, each) for each in counts} | {"durations": figures.seconds.read()}
            for name, figures in list(self._of_tools.items())
        }

    async def close(self, grace_s: float) -> None:
        """Waits up to `grace_s` seconds for the outcomes of the calls, and then cancels the calls that remain. Waits at
        most _UNSENT_SECONDS if no remaining call was sent: calls are not sent while the journal does not answer, and it
        may never answer.

        The journal has the INTENT entries of the cancelled calls, so the next start of the app decides on them. For a
        call that was not sent, passes on an outcome whose `stopped` is True. For a call that was sent, passes on no
        outcome. Calls that are still running some seconds after their cancellation are listed in `left_behind`.
        """
        began = self._loop.time()
        while self._jobs:
            is_sent = any(call.began != math.inf for call in self._under_way())
            left_s = began + (grace_s if is_sent else min(grace_s, _UNSENT_SECONDS)) - self._loop.time()
            if left_s <= 0:
                break
            tasks = [call.task for call in self._under_way() if call.task is not None]
            await asyncio.wait(tasks, timeout=min(left_s, _UNSENT_SECONDS))
        for call in list(self._under_way()):
            if call.began == math.inf and not call.look:
                self._tell(call, Outcome(call.effect, Certainty.NOT_SENT, "", b"", stopped=True))
            call.done = None
            self._cut_short(call, asyncio.CancelledError("the worker stops"))
        until = self._loop.time() + CANCEL_SECONDS
        while (left_s := until - self._loop.time()) > 0:
            running = [call.task for call in self._left if call.task is not None and not call.task.done()]
            if not running:
                break
            await asyncio.wait(running, timeout=left_s)
        for job in list(self._deps):
            self.leave(job)
        if self._closing:
            await asyncio.wait(self._closing)
        self._errors.flush()
        end_judging(self)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _under_way(self) -> Iterator[_Call]:
        return (call for calls in self._jobs.values() for call in calls.values())

    async def _run(self, call: _Call, judge: GuardJudge | OnceJudge | None) -> None:
        tool = call.tool
        if judge is not None:
            JUDGE.set(judge)
        OVER.set(call.why_over)
        CALL.set((call.effect, self.ask, {}))
        try:
            if not tool.is_async:
                await self._thread(call)
            if self._sendable is not None:
                await self._sendable(call.entry)
            if tool.takes_context:
                await self._make_context(call)
            if call.told:
                raise asyncio.CancelledError  # it was given up as one that was not sent
            args, kwargs = self._sent(call)
            if tool.is_async:
                value = await watched(tool.func(*args, **kwargs), f"tool {tool.name}", self._clock)
            else:
                value, pending = awaitable(await self._in_thread(call, partial(tool.func, *args, **kwargs)))
                if pending:
                    value = await value
            with step("outcome", tool.name):  # a crash here: the call was made, and no entry records it
                try:
                    body = pack(value, "its result")
                    if call.secrets:
                        body = pack(_hidden(unpack(body), call.secrets), "its result")
                except UserError as error:
                    raise EffectError("ResultNotRecorded", f"tool {tool.name} was called, and {error}") from None
                outcome = Outcome(call.effect, Certainty.DONE, "ok", body)
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as error:
            outcome = self._failure(call, error)
            if isinstance(error, EXITS):
                self._break(call, wrap_exit(error, f"tool {tool.name}"))
            elif isinstance(error, JournalFailed) and call.began == math.inf:
                self._break(call, error)
        if call.timer is not None:
            call.timer.cancel()
        if call.working is None:
            self._left.pop(call, None)
            if call.thread:
                self._release(call)
        if call.cut is None:
            call.task = None  # whose context has the call (OVER): the circle would wait for the garbage collector
        self._tell(call, outcome)

    async def _make_context(self, call: _Call) -> None:
        """Makes what the function of a tool is told about its call, with the dependencies of the tool's agent. The call is
        sent behind this, so it waits again until that is allowed: to open the dependencies may take long.
        """
        running, tool = call.running, call.tool
        if tool.wants_deps and tool.deps is None:
            raise no_deps(f"tool {tool.name}", tool.takes_context, tool.wants_deps, agent=False)
        context = ToolContext[Any](job=call.effect.job) if running is None else running.job.tool_context()
        if tool.deps is not None:
            opened = self._deps.setdefault(call.effect.job, OpenDeps())
            try:
                async with asyncio.timeout(tool.timeout_s):
                    context = replace(context, deps=await opened.of(tool.deps, context))
            except TimeoutError as error:
                late = f"deps of agent {tool.deps.agent} were not made within timeout={tool.timeout_s:g}s"
                raise TimeoutError(late) from error
            if self._sendable is not None:
                await self._sendable(call.entry)
        call.context = context

    def _sent(self, call: _Call) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Records that the call is sent now, and starts the timer of its time limit. Returns the arguments for the
        tool, in which each `Secret` is replaced by the text of the secret.
        """
        tool, effect, args, kwargs = call.tool, call.effect, call.args, call.kwargs
        plain = _PLAIN.issuperset  # at once for the arguments of most calls
        if not plain(map(type, args)) or not plain(map(type, kwargs.values())):
            args, kwargs = _with_secrets(args, call.secrets), _with_secrets(kwargs, call.secrets)
        if tool.takes_effect or call.context is not None:
            deadline = None if tool.timeout_s is None else self._clock.time() + tool.timeout_s
            told = Effect(effect, effect.key, effect.attempt, deadline, self._again)
            if call.context is not None:
                context = replace(call.context, deadline=deadline, effect=told, _inner={})
                kwargs = {**kwargs, tool.takes_context: context}
            if tool.takes_effect:
                kwargs = {**kwargs, EFFECT: told}
        with step("call", tool.name):  # the world is changed behind this step, not in it: the call may be a coroutine
            self._calls += 1
        if tool.timeout_s is not None:
            call.timer = self._loop.call_later(tool.timeout_s, self._overtime, call)
        call.began = self._clock.monotonic()
        name = tool.name
        if (figures := self._of_tools.get(name)) is None:  # further tools than the first thousand share theirs
            name = name if len(self._of_tools) < _MOST_TOOLS else "others"
            figures = self._of_tools.setdefault(name, ToolFigures())
        call.figures = figures
        figures.calls += 1
        figures.in_flight += 1
        return args, kwargs

    def _failure(self, call: _Call, error: BaseException) -> Outcome:
        certainty = Certainty.NOT_SENT if call.began == math.inf else _certainty_of(call, error)
        kind = type_of(error)
        if not isinstance(error, (asyncio.CancelledError, *EXITS, JournalFailed)):
            self._errors.add(error, f"tool {call.tool.name}, effect {call.effect}", "the job is told")
        return Outcome(call.effect, certainty, "Error" if kind == "ok" else kind, pack_error(error))

    def _break(self, call: _Call, error: SabotError) -> None:
        """Passes an error to `on_broken`, which ends the app. The outcome of the call is not passed on, because the
        job must not continue with it. The next start of the app decides on the effect.
        """
        call.done = None
        self._on_broken(error)

    def _tell(self, call: _Call, outcome: Outcome | None) -> None:
        """Passes on the outcome of a call, and counts it. None stands for a call that ends without an outcome. Does
        nothing if this method was called for the call before.
        """
        if call.told:
            return
        call.told = True
        job = call.effect.job
        calls = self._jobs[job]
        del calls[call.effect.ordinal, call.look]
        if not calls:
            del self._jobs[job]
            if self._deps and job not in self._running:
                self.leave(job)
        self._in_flight -= 1
        if (figures := call.figures) is not None:
            figures.in_flight -= 1
        if outcome is None:
            return
        if figures is not None:
            figures.failed += outcome.outcome != "ok"
            figures.unknown += outcome.certainty is Certainty.UNKNOWN
            figures.seconds.add(self._clock.monotonic() - call.began)
        self._unknown += outcome.certainty is Certainty.UNKNOWN
        self._not_sent += outcome.certainty is Certainty.NOT_SENT
        if call.done is None:
            return
        try:
            call.done(outcome)
        except BaseException as error:  # of the owner: it must not be kept in a task that nobody looks at
            self._on_broken(unexpected_end(f"what is told of {call}", error))

    # -- calls that are cancelled -------------------------------------------------------------------------------------

    def _overtime(self, call: _Call) -> None:
        self._timeouts += 1
        self._cut_short(call, TimeoutError(f"the call took longer than timeout={call.tool.timeout_s:g}s"))

    def _cut_short(self, call: _Call, error: BaseException) -> None:
        """Passes on the error as the outcome of the call, if the call has no outcome yet, and cancels the call."""
        assert call.task is not None
        if call.timer is not None:
            call.timer.cancel()
        steps: Any = call.task.get_coro()
        if inspect.getcoroutinestate(steps) == inspect.CORO_CREATED:  # cancelled now, it never begins to run
            self._tell(call, self._failure(call, error))
            call.task.cancel()
            return
        self._left[call], call.cut = None, error
        if call.working is not None:
            _log.warning("%s: %s; its thread cannot be cancelled, and is left behind", call, error)
            if self._uncounted < self._most_left:
                self._uncounted += 1
                self._release(call)
            else:
                _log.error("%d threads are held by tools that do not return: sync tools wait for them", self._uncounted)
        self._tell(call, self._failure(call, error))
        call.task.cancel()
        if call.working is None:
            call.timer = self._loop.call_later(_CANCEL_AGAIN_SECONDS, self._insist, call)

    def _insist(self, call: _Call) -> None:
        assert call.task is not None
        call.task.cancel()
        _log.warning("%s: it ignores that it was cancelled, and is left behind", call)

    # -- calls in threads ---------------------------------------------------------------------------------------------

    async def _thread(self, call: _Call) -> None:
        """Waits until the call may use one of the threads that sync tools share. Waiting calls get a thread in the
        order in which they began to wait.
        """
        if self._free:
            self._free -= 1
        else:
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                call.thread = waiter.done() and not waiter.cancelled()
                raise
        call.thread = True

    def _release(self, call: _Call) -> None:
        """Releases the thread of this call. If another call waits for a thread, that call may use it now."""
        call.thread = False
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1

    async def _in_thread(self, call: _Call, run: Callable[[], Any]) -> Any:
        working = call.working = self._loop.create_future()
        context = contextvars.copy_context()

        def work() -> Callable[[], None]:
            value, error = None, None
            try:
                value = context.run(run)
            except BaseException as raised:
                error = raised
            return partial(call_on_loop, self._loop, self._returned, call, working, value, error)

        self._pool.run(work)
        value, error = await working
        if error is not None:
            raise error
        return value

    def _returned(self, call: _Call, working: "asyncio.Future[Any]", value: Any, error: BaseException | None) -> None:
        """Handles the end of a call that ran in a thread. `working`: the future that is done when the thread has
        ended the call. `value`: the value that the tool has returned. `error`: the error that it has raised; None if
        it has returned.
        """
        call.working = None
        if call.thread:
            self._release(call)
        else:
            self._uncounted -= 1
        if not working.done():
            working.set_result((value, error))
            return
        self._left.pop(call, None)  # too late
        if isinstance(error, EXITS):
            self._break(call, wrap_exit(error, f"tool {call.tool.name}"))
        if isinstance(value, Coroutine):
            value.close()


def _certainty_of(call: _Call, error: BaseException) -> Certainty:
    """Decides from the error that the tool has raised whether its call was made.

    If the tool has called another one that must not be called twice, the error can only be about what came after it.
    The error of a client says that the client's request was not sent, and the function may have made another one
    before. `retries=` of a tool says that it has not. Those of an agent, for all of its tools, do not say it, so by them
    no call is made twice that must not be, unless the tool itself says that nothing was sent.
    """
    found, tool = certainty_of(error), call.tool
    if found is Certainty.NOT_SENT and call.once is not None and call.once.called:
        return Certainty.DONE
    if found is Certainty.NOT_SENT and tool.retry.retries and not tool.has_retries and not is_ours(error):
        return found if RULES[tool.effect].repeatable else Certainty.DONE
    return found


def _raise(error: SabotError) -> None:
    asyncio.get_running_loop().call_soon(_raise_here, find_exit(error) or error)


def _raise_here(error: BaseException) -> None:
    raise error


def _found(done: Callable[[LookedUp], object], name: str, outcome: Outcome) -> None:
    """Passes the answer of a tool's `reconcile=` function to `done`, as a LookedUp. `name`: the name of the tool.
    `outcome`: the outcome of the call of that function.
    """
    effect = outcome.effect
    if outcome.outcome != "ok":
        _log.warning(
            "tool %s, effect %s: nobody knows whether it was done: %s", name, effect, unpack_error(outcome.body)
        )
        done(LookedUp(effect, Reconciled.UNKNOWN))
        return
    match unpack(outcome.body):
        case True | Reconciled.DONE:
            done(LookedUp(effect, Reconciled.DONE))
        case [Reconciled.DONE | True, result]:
            done(LookedUp(effect, Reconciled.DONE, pack(result, f"result of tool {name}")))
        case False | Reconciled.NOT_DONE:
            done(LookedUp(effect, Reconciled.NOT_DONE))
        case Reconciled.UNKNOWN:
            done(LookedUp(effect, Reconciled.UNKNOWN))
        case other:
            _log.warning(
                "tool %s, effect %s: reconcile= gave %s, which is not DONE, (DONE, result), NOT_DONE or UNKNOWN",
                name,
                effect,
                short_repr(other),
            )
            done(LookedUp(effect, Reconciled.UNKNOWN))


# -- secrets ----------------------------------------------------------------------------------------------------------

_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


def _has_secret(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return False
    if isinstance(value, dict):
        return any(map(_has_secret, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_secret, value))
    if dataclasses.is_dataclass(kind):
        return any(_has_secret(getattr(value, each.name)) for each in dataclasses.fields(kind))
    return kind is Secret


def _with_secrets(value: Any, read: list[str]) -> Any:
    """Returns the value with the text of the secret in place of each `Secret`: a copy, or the value itself if it has
    none. Also adds these texts to the list `read`. Raises UserError if a secret is missing.
    """
    if not _has_secret(value):
        return value
    if isinstance(value, Secret):
        read.append(value.read())
        return read[-1]
    if isinstance(value, dict):
        return {key: _with_secrets(each, read) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with_secrets(each, read) for each in value))
    if isinstance(value, list | tuple | set | frozenset):
        kind = next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))
        return kind(_with_secrets(each, read) for each in value)
    names = [each.name for each in dataclasses.fields(value) if each.init]
    return replace(value, **{name: _with_secrets(getattr(value, name), read) for name in names})


def _hidden(value: Any, secrets: list[str]) -> Any:
    """Returns a copy of the value in which all occurrences of these secrets are replaced by `***`. `value`: a value
    that `unpack` has returned, so it consists of plain types.
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, bytes):
        for each in secrets:
            value = value.replace(each.encode(errors="surrogateescape"), HIDDEN.encode())
        return value
    if isinstance(value, list | tuple):
        return type(value)(_hidden(each, secrets) for each in value)
    if isinstance(value, dict):
        return {_hidden(key, secrets): _hidden(each, secrets) for key, each in value.items()}
    return value
