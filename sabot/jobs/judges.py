"""Asks the guards of an app before calls of models and tools that are not effects of a job. Such calls are made by
agents that are not durable, by streams, and by tools that ask models or call other tools themselves.

No journal records these calls. So a decision holds for one call only, and no person can be asked. Before a model is asked,
the guards are told ("unrecorded" of `EffectGuard.decide`): a budget stores the most that the call may use, in case of a
crash.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from itertools import count
from secrets import randbits
from typing import Any

import msgspec

from sabot.base.threads import call_on_loop
from sabot.clock import Clock
from sabot.engine.calls.effects import RULES, EffectClass, EffectId, may_call
from sabot.engine.calls.errors import model_error
from sabot.engine.calls.judging import JUDGE, Make, OnceJudge
from sabot.engine.calls.messages import user
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tools import Tool, recorded_way
from sabot.errors import NotSent, PolicyDenied, UserError
from sabot.jobs.guard import (
    NOBODY,
    After,
    CallKind,
    Decision,
    EffectGuard,
    GuardedCall,
    GuardVerdict,
    Price,
    declared_by,
    guard_of,
    judge_call,
)
from sabot.jobs.masking import mask
from sabot.jobs.owner import RunningJob
from sabot.jobs.values import pack, pack_error, type_of
from sabot.journal.entries import EffectResult

_log = logging.getLogger(__name__)

REPEATED = frozenset(each for each in EffectClass if RULES[each].repeatable)
"""The classes of tools that may be called again when nobody knows whether they were called."""

NoteInstead = Callable[[EffectId, GuardVerdict], Awaitable[None]]


class GuardJudge:
    """A judge that asks a guard (`EffectGuard`) before each call of a model or a tool that is not an effect of a job.
    It has the interface `CallJudge`, and belongs to the event loop on which it is made.
    """

    _only_asks = "only durable agents ask"
    _tool_asks = "only durable agents ask: give the agent durable=True, and {way} in its function"

    def __init__(self, calls: str, agent: str, guard: EffectGuard | None, clock: Clock) -> None:
        """Makes a judge. `calls`: a name that replaces the job's id in the ledger (the table with the costs of
        calls), because these calls belong to no job. `agent`: the id of the agent or stream that makes the calls; its
        app is the tenant. `guard`: decides on each call; None if there is none, and only the effect classes of tools
        are checked.
        """
        self._calls, self._agent, self._guard, self._clock = calls, agent, guard, clock
        self._numbers: Iterator[int] | None = None
        self._behalf = NOBODY
        self.repeated: Tool | None = None
        """The tool around the calls, if its class allows to repeat it."""
        self.loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._late: set[asyncio.Future[None]] = set()  # verdicts that nobody waits for

    @property
    def declared(self) -> frozenset[str]:
        """The options "policy" and "budgets" for which the guard stands."""
        return declared_by(self._guard)

    @property
    def guarded(self) -> bool:
        """True if a guard decides on the calls, or counts them."""
        return self._guard is not None

    def _next_number(self) -> int:
        """Returns the number of the next call. A request id may come again: after a restart, or in another attempt of a
        tool. Rows of the ledger with one id count once, so the numbers begin where those of no other judge do.
        """
        if self._numbers is None:  # each effect has a judge, and most tools make no call
            self._numbers = count(randbits(48))
        return next(self._numbers)

    async def __call__(self, call: Any, model: str, price: Price, ask: Callable[[], Awaitable[Any]]) -> Any:
        if self._guard is None:
            return await ask()
        if asyncio.get_running_loop() is not self.loop:
            raise UserError(
                f"{model} was not asked: policy and budgets judge nothing in the event loop of a thread, in which a sync tool asks it",
                hint="make the tool `async def`, and await the engine in it",
            )
        guard, effect = self._guard, EffectId(f"{self._calls}/{call.context.request_id}", self._next_number())
        found = judge_call(guard, self._asked(effect, model, call, price))
        try:
            verdict = found if isinstance(found, GuardVerdict) else await found
        except BaseException:  # cancelled, when some of several guards may have reserved its cost
            guard.drop(effect)
            raise
        if verdict.decision in (Decision.DENY, Decision.ASK):
            guard.drop(effect)
            raise self._denied(model, verdict)
        call.spec = mask(verdict.spec(call.spec), verdict.hide)
        call.texts = mask(call.texts, verdict.hide)

        async def instead(call: Any, price: Price) -> None:
            await self.instead(effect, call, price)
            await self._noted_unrecorded(effect, call.model, call, price)

        async def again() -> None:
            nonlocal effect
            following = EffectId(effect.job, effect.ordinal, effect.attempt + 1)
            said = judge_call(guard, self._asked(following, model, call, price, "again"))
            verdict = said if isinstance(said, GuardVerdict) else await said
            if verdict.decision is Decision.DENY:
                raise self._denied(model, verdict)
            effect = following
            await self._noted_unrecorded(effect, model, call, price)

        call.before_repeat, call.before_fallback = again, instead
        try:
            await self._noted_unrecorded(effect, model, call, price)
        except BaseException:  # its row may be durable
            unsent = NotSent(f"{model} was not asked")
            self._settle(effect, "model", model, type_of(unsent), pack_error(unsent))
            raise
        try:
            outcome = await ask()
        except BaseException as error:
            self._settle(effect, "model", model, type_of(error), pack_error(error))
            raise
        said = outcome.without_vectors(model) if call.kind == "embed" else outcome
        self._settle(effect, "model", model, "ok", pack(said, "an answer"))
        return outcome

    async def instead(self, effect: EffectId, call: Any, price: Price) -> None:
        """Asks the guard whether a call may ask another provider, because its first provider has failed. The guard
        decides on the model of the other provider. If this model may cost more, the guard reserves the difference. If
        the verdict allows the model, makes the changes of the verdict to `call`.

        Otherwise logs the reason, and raises the error that the guard has chosen, such as PolicyDenied or
        BudgetExceeded.
        """
        if self._guard is None:
            return
        effect = EffectId(effect.job, effect.ordinal, effect.attempt + call.unread)  # the attempt that asks it
        found = judge_call(self._guard, self._asked(effect, call.model, call, price, "degraded"))
        verdict = found if isinstance(found, GuardVerdict) else await found
        await self._noted(effect, msgspec.structs.replace(verdict, about=call.model))
        if verdict.decision in (Decision.DENY, Decision.ASK):
            refusal = self._denied(call.model, verdict, "nobody is asked for a model that stands in for another one")
            _log.warning("%s: %s", self._calls, refusal)
            raise refusal
        call.spec = mask(verdict.spec(call.spec), verdict.hide)
        call.texts = mask(call.texts, verdict.hide)
        call.model = call.spec.model or call.model

    async def _noted_unrecorded(self, effect: EffectId, model: str, call: Any, price: Price) -> None:
        """Tells the guard that this attempt is sent next. Raises BudgetUnavailable if a budget cannot store it."""
        assert self._guard is not None
        found = judge_call(self._guard, self._asked(effect, model, call, price, "unrecorded"))
        verdict = found if isinstance(found, GuardVerdict) else await found
        if verdict.decision is Decision.DENY:
            raise self._denied(model, verdict)

    async def _noted(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records the verdict on another provider (see `instead`). Does nothing in this class, because the calls that
        it judges are in no journal.
        """

    def _asked(self, effect: EffectId, model: str, call: Any, price: Price, after: After = "") -> GuardedCall:
        behalf, kind, spec = self._behalf, EffectClass.METERED, _told(call)
        made = GuardedCall(effect, "model", model, self._agent, behalf, kind, spec=spec, price=price, after=after)
        return msgspec.structs.replace(made, labels=frozenset(behalf.labels)) if behalf.labels else made

    def _denied(self, name: str, verdict: GuardVerdict, only_asks: str = "", verb: str = "asked") -> Exception:
        why = verdict.reason or "a rule denies it"
        if verdict.decision is Decision.ASK:
            why = f"{why}: a person would have to allow it, and {only_asks or self._only_asks}"
        said = f"{name} was not {verb}: {why}" + (f" (rule {verdict.rule})" if verdict.rule else "")
        return model_error(verdict.error, said) or PolicyDenied(said)

    def _settle(self, effect: EffectId, kind: CallKind, name: str, outcome: str, body: bytes) -> None:
        if self._guard is not None:
            at_ms = round(self._clock.time() * 1000)
            self._guard.settle(EffectResult(effect.job, at_ms, *effect[1:], outcome, body), kind, name)

    # -- tools --------------------------------------------------------------------------------------------------------

    def call_plainly(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if tool.is_async:
            return self.make(tool, args, kwargs, lambda args, kwargs: tool.func(*args, **kwargs))
        self._check_class(tool)
        call = self._asked_tool(tool, args, kwargs)
        if self._guard is not None:
            call = self._permitted_now(call)
        with self._calling(call, tool):
            return tool.func(*call.args, **call.kwargs)

    async def make(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Make) -> Any:
        self._check_class(tool)
        call = self._asked_tool(tool, args, kwargs)
        if self._guard is not None:
            permitted = self._permitted(call)
            if asyncio.get_running_loop() is self.loop:
                call = await permitted
            else:
                call = await asyncio.wrap_future(self._on_loop(call, permitted))
        with self._calling(call, tool):
            return await make(call.args, call.kwargs)

    @property
    def repeats(self) -> bool:
        """True if the code whose calls it judges may be repeated."""
        return self.repeated is not None

    def repeats_with_key(self) -> bool:
        """Returns True if that code may be repeated, and make calls with the same idempotency keys then."""
        return self.repeated is not None and may_call(self.repeated.effect, EffectClass.IDEMPOTENT)

    def why_not_again(self, tool: Tool) -> str:
        """Returns why a job that this code has begun, or an app that it has started, may not call this tool, or ""."""
        outer = self.repeated
        if outer is None or not RULES[tool.effect].settles:
            return ""
        again = "with another idempotency key" if tool.effect in REPEATED else "too"
        return (
            f"{outer.name} has begun it, whose class {outer.effect.value!r} allows to repeat it, and the class of {tool.name} is "
            f"{tool.effect.value!r}: it would be called again {again}. Begin the job outside of {outer.name}; or declare what it does: "
            f'effect="unsafe" for {outer.name}, or effect="idempotent" and a request with idempotency_key= over a durable journal'
        )

    def _check_class(self, tool: Tool) -> None:
        """Raises UserError if this call would be repeated with the tool that makes it, which its class forbids."""
        outer = self.repeated
        if outer is None or may_call(outer.effect, tool.effect):
            return
        repeatable = tool.effect in REPEATED
        also = "with another idempotency key" if repeatable else "too"
        said = (
            f"{tool.name} was not called: {outer.name} calls it, whose class {outer.effect.value!r} allows to repeat it, and the class of "
            f"{tool.name} is {tool.effect.value!r}: it would be repeated {also}"
        )
        _log.warning("%s: %s", self._calls, said)
        declared = ("idempotent", "read") if repeatable else ("unsafe", "idempotent")
        raise UserError(
            said,
            hint=f"await ctx.call({tool.name}, …) in the function of a durable agent; or declare what each does: "
            f'effect="{declared[0]}" for {outer.name}, or effect="{declared[1]}" for {tool.name}',
        )

    def _asked_tool(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GuardedCall:
        effect = EffectId(f"{self._calls}/tools", self._next_number())
        kind, labels = tool.effect, frozenset(self._behalf.labels)
        asked = GuardedCall(effect, "tool", tool.name, self._agent, self._behalf, kind, tool, args, kwargs)
        return msgspec.structs.replace(asked, labels=labels) if labels else asked

    async def permitted_begin(self, agent: str, message: Any) -> Any:
        """Returns the input of a job that this code begins, with the changes of the guard's verdict (`judging.permitted_begin`)."""
        if self._guard is None:
            return message
        call = self._asked_begin(agent, message)
        permitted = self._permitted(call)
        if asyncio.get_running_loop() is self.loop:
            call = await permitted
        else:
            call = await asyncio.wrap_future(self._on_loop(call, permitted))
        return call.args[0]

    def _asked_begin(self, agent: str, message: Any) -> GuardedCall:
        effect, labels = EffectId(f"{self._calls}/begins", self._next_number()), frozenset(self._behalf.labels)
        return GuardedCall(effect, "child", agent, self._agent, self._behalf, args=(message,), labels=labels)

    async def _permitted(self, call: GuardedCall) -> GuardedCall:
        """Returns the call with the changes of the guard's verdict. Raises PolicyDenied or BudgetExceeded if the guard
        does not allow it.
        """
        assert self._guard is not None
        found = judge_call(self._guard, call)
        if isinstance(found, GuardVerdict):
            return self._with(call, found)
        judged = call.contents()
        try:
            verdict = await found
        except BaseException:  # cancelled, when some of several guards may have counted it
            self._guard.drop(call.effect)
            raise
        if verdict.decision is not Decision.DENY and call.contents() != judged:
            reason = "its arguments were changed while a rule decided about them"
            verdict = GuardVerdict(Decision.DENY, verdict.rule, verdict.version, reason)
        return self._with(call, verdict)

    def _permitted_now(self, call: GuardedCall) -> GuardedCall:
        """Does the same as `_permitted`. A thread waits for the verdict of the event loop. On the event loop itself, a
        verdict that takes time cannot be awaited: raises UserError.
        """
        assert self._guard is not None
        if threading.get_ident() != self._thread:
            return self._on_loop(call, self._permitted(call)).result()
        found = judge_call(self._guard, call)
        if isinstance(found, GuardVerdict):
            return self._with(call, found)
        late = asyncio.ensure_future(self._drop_later(call, found), loop=self.loop)
        self._late.add(late)
        late.add_done_callback(self._late.discard)
        raise UserError(
            f"{call.name} was not called: what decides on it takes time, for which a call of a sync tool on the event loop cannot wait",
            hint="make it `async def`, and await it; or in the function of a durable agent await ctx.call(…)",
        )

    async def _drop_later(self, call: GuardedCall, found: Awaitable[GuardVerdict]) -> None:
        try:
            await found
        finally:
            assert self._guard is not None
            self._guard.drop(call.effect)

    def _on_loop(self, call: GuardedCall, permitted: Coroutine[Any, Any, GuardedCall]) -> Future[GuardedCall]:
        """Lets the event loop of the guard decide, for a thread or another event loop."""
        if self.loop.is_closed():
            permitted.close()
            raise UserError(f"{call.name} was not called: the app that decides on it has ended")
        return asyncio.run_coroutine_threadsafe(permitted, self.loop)

    def _with(self, call: GuardedCall, verdict: GuardVerdict) -> GuardedCall:
        assert self._guard is not None
        said = "; ".join(filter(None, (verdict.reason, *verdict.notes)))
        if verdict.decision in (Decision.DENY, Decision.ASK):
            self._guard.drop(call.effect)
            way = "await ctx.child(…)" if call.tool is None else recorded_way(call.tool)
            only_asks = self._tool_asks.format(way=way)
            refusal = self._denied(call.name, verdict, only_asks, "begun" if call.tool is None else "called")
            _log.warning("%s: %s", self._calls, refusal)
            raise refusal
        if verdict.decision is Decision.WARN or verdict.notes:
            _log.warning("%s: %s %s: %s", self._calls, "agent" if call.tool is None else "tool", call.name, said)
        return call.changed(verdict)

    @contextmanager
    def _calling(self, call: GuardedCall, tool: Tool) -> Iterator[None]:
        """Sets the judge of the calls that the tool makes in the `with` block, and settles its own call at the end."""
        judge: GuardJudge | OnceJudge = self
        outcome = "ok"
        if self.repeated is None and tool.effect in REPEATED:
            judge = copy(self)
            judge.repeated = tool
        if isinstance(present := JUDGE.get(), OnceJudge):
            judge = present.within(judge)
        before = JUDGE.set(judge)
        try:
            yield
        except BaseException as error:
            outcome = type_of(error)
            raise
        finally:
            JUDGE.reset(before)
            if self._guard is not None:
                if threading.get_ident() == self._thread:
                    self._settle(call.effect, "tool", call.name, outcome, b"")
                else:
                    call_on_loop(self.loop, self._settle, call.effect, "tool", call.name, outcome, b"")
            self._told(tool)

    def _told(self, tool: Tool) -> None:
        """Notes that the results of this tool are known here. Does nothing in this class. Raises UserError if nobody can
        be told.
        """


class _ToolJudge(GuardJudge):
    """A judge for calls of models and tools that a tool makes itself while it runs as an effect of a job. It asks the
    guard for the tenant and the actor of that job.
    """

    _only_asks = "a tool asks nobody: let the agent ask the model, by ctx.llm(engine)"
    _tool_asks = "a tool or step asks nobody: {way} in the function of the agent"

    def __init__(
        self,
        effect: EffectId,
        tool: Tool,
        running: Mapping[str, RunningJob],
        guard: EffectGuard,
        clock: Clock,
        note: NoteInstead,
        read: dict[tuple[str, int], frozenset[str]],
    ) -> None:
        job = running[effect.job].job  # no effect is made for a job that is not in memory
        super().__init__(f"{effect.job}/{effect.ordinal}", job.history.begin.agent, guard, clock)
        self._effect, self._behalf, self._note, self._read = effect, job.behalf, note, read
        self._name, self._running = tool.name, running
        if tool.effect in REPEATED:
            self.repeated = tool

    async def _noted(self, effect: EffectId, verdict: GuardVerdict) -> None:
        """Records the verdict in the journal if `effect` is the model call of the job itself. A call of a model that a
        tool makes has no entries in the journal, so its verdict is not recorded.
        """
        if effect[:2] == self._effect[:2]:
            await self._note(effect, verdict)

    def _asked(self, effect: EffectId, model: str, call: Any, price: Price, after: After = "") -> GuardedCall:
        asked = super()._asked(effect, model, call, price, after)
        return asked if effect.job == self._effect.job else self._of_effect(asked)

    def _asked_tool(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> GuardedCall:
        if tool.labels and self._is_over():
            raise self._unlabelled(f"{tool.name} was not called", tool.labels)
        return self._of_effect(super()._asked_tool(tool, args, kwargs))

    def _asked_begin(self, agent: str, message: Any) -> GuardedCall:
        return self._of_effect(super()._asked_begin(agent, message))

    def _is_over(self) -> bool:
        """Returns True if the job has got the result of the effect, and a task or a thread of its tool goes on."""
        running = self._running.get(self._effect.job)
        return running is not None and self._effect.ordinal not in running.job.open

    def _unlabelled(self, what: str, labels: frozenset[str]) -> UserError:
        return UserError(
            f"{what}: the call of {self._name} has ended, which has begun this task, so job {self._effect.job} would not get the "
            f"labels {', '.join(sorted(labels))} of the result",
            hint=f"await the task in {self._name}, before it returns",
        )

    def _of_effect(self, asked: GuardedCall) -> GuardedCall:
        read = self._read.get(self._effect[:2], frozenset())
        return msgspec.structs.replace(asked, within=self._effect, labels=asked.labels | read)

    def _told(self, tool: Tool) -> None:
        if tool.labels:
            self.note_labels(tool.labels, f"the result of {tool.name} is withheld")

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all data that the job has received, and of the results that this effect has got from other tools."""
        return frozenset(self._behalf.labels) | self._read.get(self._effect[:2], frozenset())

    def note_labels(self, labels: frozenset[str], what: str = "what was kept with labels is withheld") -> None:
        """Adds labels to those of the effect's result. Raises UserError if the job has got it already. `what`: words for
        this error.
        """
        if self._is_over():
            raise self._unlabelled(what, labels)
        place = self._effect[:2]
        self._read[place] = self._read.get(place, frozenset()) | labels


def _told(call: Any) -> RequestSpec:
    """Returns the request of a call of a model, as a RequestSpec for the guards. If the call computes embeddings of
    texts, the texts become the messages of the request, and its limit on tokens to write is 0.
    """
    spec: RequestSpec = call.spec
    if call.kind != "embed":
        return spec
    return msgspec.structs.replace(spec, messages=tuple(map(user, call.texts)), max_tokens=0)


def judge_of(app: str, guards: Sequence[EffectGuard], clock: Clock) -> GuardJudge | None:
    """Returns a judge that asks the guards of an app before each call of a model that is not an effect of a job.
    Returns None if there are no guards. `app`: the id of the app.
    """
    guard = guard_of(guards)
    return None if guard is None else GuardJudge(f"{app}.calls", f"{app}.calls", guard, clock)


def judge_within(
    running: Mapping[str, RunningJob],
    guard: EffectGuard,
    clock: Clock,
    note: NoteInstead,
    read: dict[tuple[str, int], frozenset[str]],
    effect: EffectId,
    tool: Tool,
) -> GuardJudge:
    """Returns the judge for the calls of models and other tools that the tool of this effect makes itself.

    - `running`: the jobs in memory, by id.
    - `note`: a function that records the guard's verdict on another model in the journal (`CallRequests.instead`). It
      is only used if the effect itself is a call of a model.
    - `read`: the labels of the results that the tools of effects got from other tools, by job and ordinal. The judge
      adds to them.
    """
    return _ToolJudge(effect, tool, running, guard, clock, note, read)


def judge_of_repeated(tool: Tool, clock: Clock) -> GuardJudge:
    """Returns the judge for the calls that a tool makes itself, if there is no policy and no budget. The class of the
    tool allows to repeat it, so it may call no tool whose class forbids that.
    """
    judge = GuardJudge(f"tool {tool.name}", "", None, clock)
    judge.repeated = tool
    return judge
