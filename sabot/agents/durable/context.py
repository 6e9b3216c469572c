"""The argument `ctx` of a durable agent's function: an AgentContext whose effects are in the journal."""

import asyncio
import inspect
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar, overload

import msgspec
import pyarrow as pa

from sabot.api.context import AgentContext, RecordFields, apply_writes, record_context
from sabot.api.functions import Timers
from sabot.base.config import Duration, checked_text, parse_seconds
from sabot.clock import Clock
from sabot.engine.calls.effects import RULES, EffectClass, EffectName, may_call
from sabot.engine.calls.functions import unwrap
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.tool_context import TakesEffect, ToolContext
from sabot.engine.calls.tool_results import plain_form
from sabot.engine.calls.tools import Tool, as_tool, declared_tool, tool_of_function
from sabot.engine.state import StateBackend
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.jobs.history import ACTION_TYPES, ContinueAs
from sabot.jobs.run import JobRun
from sabot.jobs.values import in_order, pack, unpack
from sabot.journal.entries import Answer, Signal

P = ParamSpec("P")
# The results that are of the same type after they were recorded. A tuple becomes a list, a dataclass a dict.
Plain = TypeVar("Plain", bound=bool | int | float | str | bytes | datetime | None)

if TYPE_CHECKING:
    from sabot.agents.durable.models import JobModel
    from sabot.llm.engine_core import Engine
    from sabot.llm.results import Completion

_LABELS = "sabot.labels"  # the namespace of the labels of a key's state; its only entry has the key ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a question that a job has asked a person.

    - `outcome`: "resolved" (a person has answered), "expired" (the time for the answer is over) or "cancelled".
    - `resolution`: the answer. It is empty if nobody answered.
    - `by`: the name of the person who answered, or "".
    """

    outcome: str
    resolution: Mapping[str, Any]
    by: str = ""

    @property
    def approved(self) -> bool:
        """True if the person approved: the answer came from `sabot actions resolve TOKEN --approve`, or is {"approved":
        true}.
        """
        return self.outcome == "resolved" and self.resolution.get("approved") is True

    @property
    def expired(self) -> bool:
        """True if nobody answered within the timeout of the question."""
        return self.outcome == "expired"


class DurableContext(AgentContext):
    """The argument `ctx` of a durable agent's function, for one job. Each effect of the function (a call, a question,
    a wait) is made by a method of this object, and its result is recorded in the journal.

    After a crash the function is called again from its beginning, and the methods return the recorded results. So the
    function must be deterministic: with the same results it must make the same effects in the same order. It may
    compute, and read and write its keyed state. It must not directly use files, sockets, threads, the clock or random
    numbers. It either uses a method of this object for that, or does it in a function that it passes to `step`.

    Writes to the keyed state are applied when the job succeeds.
    """

    __slots__ = ("_job", "_unread")

    _job: JobRun
    _unread: bool  # True until the function uses the state of its key, which has labels too

    @property
    def job_id(self) -> str:
        """The id of this job. It stays the same after a crash."""
        return self._job.job_id

    @property
    def attempt(self) -> int:
        """The number of this attempt of the job, from 1. With `on_error="retry"` a failed job gets further attempts. A
        replay of the journal after a crash is not a new attempt.
        """
        return self._job.history.attempt

    @property
    def scope(self) -> str:
        """The tenant for whom this job runs: the value of the agent's option `scope=` for the record. Without that
        option it is the name of the app.
        """
        return self._job.behalf.scope or self.agent_id.rpartition(".")[0]

    @property
    def principal(self) -> str:
        """The person on whose behalf this job runs, or "" if nobody is named."""
        return self._job.behalf.principal

    @property
    def session(self) -> str:
        """The session (the conversation) to which this job belongs: "AGENT/KEY", the id of the agent and the key of the
        record, if the agent has `key=`, and `session_id` of the request in a kernel. A child has the session of its
        parent. "" if there is none.
        """
        return self._job.behalf.session

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all data that this job has seen: those of its record, and those of the results of tools
        (`@tool(open_world=True, labels=…)`). The output of the job has them in the header "sabot.labels", unless the
        agent gets batches: its output has no labels.
        """
        return frozenset(self._job.labels)

    @property
    def state_backend(self) -> StateBackend:
        """The state backend for this call, as in AgentContext. If the agent has `key=`, the job gets the labels that
        earlier jobs of the key had when they wrote the state.
        """
        backend = super().state_backend
        if self._unread:
            self._unread = False
            (kept,) = self.state(_LABELS).get_many(pa.array([""])).to_pylist()
            self._job.labels.update(() if kept is None else kept.split(","))
        return backend

    @overload
    async def call(
        self, tool: Callable[Concatenate[ToolContext[Any], P], Awaitable[Plain]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Plain: ...
    @overload
    async def call(
        self, tool: Callable[Concatenate[ToolContext[Any], P], Plain], /, *args: P.args, **kwargs: P.kwargs
    ) -> Plain: ...
    @overload
    async def call(
        self, tool: Callable[Concatenate[ToolContext[Any], P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Any: ...
    @overload
    async def call(self, tool: Callable[P, Awaitable[Plain]], /, *args: P.args, **kwargs: P.kwargs) -> Plain: ...
    @overload
    async def call(self, tool: Callable[P, Plain], /, *args: P.args, **kwargs: P.kwargs) -> Plain: ...
    @overload
    async def call(self, tool: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any: ...
    @overload
    async def call(self, tool: TakesEffect, /, *args: Any, **kwargs: Any) -> Any: ...
    async def call(self, tool: Tool | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a tool, and returns its result. The result is encoded and decoded by msgpack, so for example a tuple
        becomes a list.

        The result is recorded in the journal before the job continues, and a replay reads it from there. A function
        that is not a tool is called as a tool of the effect class "unsafe".

        Raises EffectError if the tool fails, if the call is denied, if its result cannot be encoded, or if the call
        was interrupted by a crash and must not be repeated.
        """
        made = tool if isinstance(tool, Tool) else self._tool_of(tool)[0]
        if made.converse is not None and not args:
            return await made.converse(made, _JobCaller(self), kwargs)
        return await self._made(made, args, kwargs)

    @overload
    async def step(
        self,
        func: Callable[..., Awaitable[Plain]],
        /,
        *args: Any,
        effect: EffectName | EffectClass = "unsafe",
        timeout: Duration | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> Plain: ...
    @overload
    async def step(
        self,
        func: Callable[..., Plain],
        /,
        *args: Any,
        effect: EffectName | EffectClass = "unsafe",
        timeout: Duration | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> Plain: ...
    @overload
    async def step(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        effect: EffectName | EffectClass = "unsafe",
        timeout: Duration | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> Any: ...
    async def step(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        effect: EffectName | EffectClass = "unsafe",
        timeout: Duration | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls any function as if it were a tool, and records its result in the journal. Returns and raises as `call`
        does.

        - `effect`: the effect class, with the same meaning as in `@tool(effect=…)`. It decides whether the call may be
          repeated after a crash. For example, a "read" call, which changes nothing, may be repeated. An "unsafe" call
          may not. A tool whose own class forbids repetition cannot be given one that allows it: this raises UserError.
        - `timeout`: the time limit for each attempt. None means no limit.
        - `retries`: the number of further attempts after a failure. None means no further attempt.

        Raises UserError if one of these three is given, and the function has a parameter with its name that `args` do
        not fill: it would not be clear for which of the two the value is.
        """
        given: dict[str, Any] = {"effect": effect, "timeout": timeout, "retries": retries}
        made, declared = (as_tool(func, **given), func) if isinstance(func, Tool) else self._tool_of(func, **given)
        for name in _shared_names(made, args):
            given["effect"] = effect != "unsafe" and not made.takes_effect
            if given[name] not in (None, False) and not self._job.has_passed(""):  # earlier versions took it as ours
                raise UserError(
                    f"ctx.step({made.name}, {name}=…): {made.name} has a parameter {name!r} too, so this may be for it",
                    hint=f"functools.partial({made.name}, {name}=…) gives it to the function; or declare the tool, "
                    f"@tool({name}=…), and await ctx.call({made.name}, …)",
                )
        if (
            declared is not None
            and not may_call(made.effect, declared.effect)
            and (isinstance(func, Tool) or not self._job.has_called(made.name))  # earlier versions took any class
        ):
            held = (
                "every call of it changes something"
                if RULES[declared.effect].repeatable
                else "no call of it may be repeated"
            )
            raise UserError(
                f"ctx.step({made.name}, effect={effect!r}): the tool is declared {declared.effect.value!r}, so {held}",
                hint=f"await ctx.call({made.name}, …); or declare what it does: @tool(effect={effect!r})",
            )
        return await self._made(made, args, kwargs)

    def _tool_of(self, func: Callable[..., Any], **settings: Any) -> tuple[Tool, Tool | None]:
        """Returns the tool that a call of this function makes, and the tool whose function it is, or None. Earlier versions made
        a call of its own of the function of a tool: under the name of the function, which a job that has asked for it so keeps.
        """
        try:
            declared = declared_tool(func)
        except UserError:
            if self._job.has_called(getattr(unwrap(func), "__name__", "")):
                return tool_of_function(func, **settings), None
            raise
        if not isinstance(declared, Tool):
            return tool_of_function(declared, **settings), None
        made, own = as_tool(func, **settings), getattr(unwrap(func), "__name__", "")
        if own != made.name and self._job.has_called(own):
            made = tool_of_function(func, **settings)
        return made, declared

    async def _call_of_model(self, tool: Tool, arguments: Mapping[str, Any], said: str | None) -> Any:
        """Does the same as `call`. `said`: the arguments as a model has written them, or None."""
        if tool.converse is not None:
            return await tool.converse(tool, _JobCaller(self), arguments)
        return await self._made(tool, (), arguments, said=said)

    async def _made(
        self,
        tool: Tool,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        steps: list[int] | None = None,
        said: str | None = None,
    ) -> Any:
        name = tool.takes_context
        if name and (name in kwargs or any(isinstance(each, ToolContext) for each in args)):
            raise UserError(
                f"{tool.name} was called with its {name}: ToolContext, which the job gives it",
                hint=f"leave it out: await ctx.call({tool.name}, …) with the other arguments",
            )
        body = pack([args, kwargs], f"arguments of {tool.name}", sort=True)
        return await self._job.call(tool, args, kwargs, body, steps=steps, said=said)

    async def ask(self, kind: str, payload: Mapping[str, Any], *, timeout: Duration | None = None) -> Reply:
        """Asks a person a question, waits for the answer, and returns it. While the question is open, the job is
        parked: it needs no memory, and may wait for days. The command `sabot actions` lists open questions and
        answers them.

        - `kind`: the type of the question: "confirm", "choose", "input", "approval", another of `ACTION_TYPES`, or
          one word that you choose.
        - `payload`: the data that are shown to the person, in the JSON in which models get results of tools.
        - `timeout`: the time after which the method returns a Reply with the outcome "expired". None means no limit.

        Raises UserError if the payload cannot be encoded, and if `kind` is not exactly one word, or differs by one
        letter from a known type.
        """
        _check_type(kind)
        try:
            body = msgspec.json.encode(in_order(dict(payload)), enc_hook=plain_form)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(
                f"ask {kind}: its payload cannot be written as JSON: {error}",
                hint="give it text, numbers, lists, dicts",
            ) from error
        seconds = None if timeout is None else parse_seconds(timeout, name="timeout")
        entry: Answer = await self._job.question(kind, body, seconds)
        return Reply(entry.outcome, _said(entry.body), entry.by)  # type: ignore[arg-type]

    async def sleep(self, duration: Duration) -> None:
        """Waits for this time. If it is longer than a second, the job may be parked meanwhile, so that it needs no
        memory. `asyncio.sleep` has the same effect in the function of a durable agent.
        """
        await asyncio.sleep(parse_seconds(duration, name="sleep"))

    async def wait(self, name: str, *, timeout: Duration | None = None) -> Any:
        """Waits for a signal with this name, and returns its value. The command `sabot jobs signal JOB NAME` sends
        signals. Signals of a name are returned in the order in which they came, each once. A signal that came before
        this call is returned without waiting. Raises TimeoutError if there is no signal within `timeout`.
        """
        checked_text(name, "wait: name")
        try:
            async with asyncio.timeout(None if timeout is None else parse_seconds(timeout, name="timeout")):
                signal: Signal = await self._job.wait(name)
        except TimeoutError:
            raise TimeoutError(f"job {self.job_id}: no signal {short_repr(name)} came within {timeout}") from None
        return _value(signal.body)  # type: ignore[arg-type]

    async def child(self, agent: Callable[..., Any] | str, message: Any) -> Any:
        """Begins a job of another durable agent of this app (a child), waits until it has ended, and returns its
        result. `agent` is the function of the other agent, or its name. `message` is the input of the child.

        If this job or this call is cancelled, the child is cancelled too. If this job ends before the child, the
        child is cancelled as well, unless this job's agent has `children=ChildLimits(outlive=True)`. Raises
        EffectError if the child fails or cannot begin.
        """
        name = agent if isinstance(agent, str) else getattr(agent, "__name__", "")
        agent_id = f"{self.agent_id.rpartition('.')[0]}.{name}"
        what = f"message to {agent_id}"
        given = unpack(pack(message, what, sort=True, exact=True))
        return await self._job.child(agent_id, pack(message, what, sort=True), given)

    def llm(self, engine: "Engine") -> "JobModel":  # type: ignore[override]  # these models ask as effects
        """Returns an object that sends requests to the models of `engine` as effects of this job. For example: `await
        ctx.llm(engine).complete("…", output=Verdict)`.

        Each answer is recorded in the journal before the job continues, so that an answer is never paid for twice.
        `Agent.run(…, effects=ctx.llm(engine))` lets a whole agent send its requests in this way.
        """
        from sabot.agents.durable.models import JobModel

        return JobModel(self._call_of_model, self._job, engine)

    @property
    def log(self) -> logging.Logger:
        """A logger for the function. It logs each line once: lines that the function has logged before are dropped when
        it is replayed, after a wait or a restart. After a crash, the last lines before it may be logged again.

        Its lines begin with the job's id. They go where those of `logging.getLogger(ctx.agent_id)` go.
        """
        log = logging.Logger(self.agent_id)
        log.parent = logging.getLogger(self.agent_id)
        log.addFilter(self._is_new)
        return log

    def _is_new(self, record: logging.LogRecord) -> bool:
        job = self._job
        shown = f"job {job.job_id}: "
        record.msg = f"{shown.replace('%', '%%') if record.args else shown}{record.msg}"
        return not job.loop.repeats

    def now(self) -> int:
        """Returns the time in milliseconds since 1970. It is the time at which the job received its last result,
        answer, signal or timer, and does not advance in between. After a crash the same call returns the same time.
        """
        return self._job.now_ms()

    def uuid(self, name: str = "") -> uuid.UUID:
        """Returns a random UUID (version 4). A replay returns the same UUID. `name`: the name of a sequence of UUIDs
        (see `random`).
        """
        return self._job.uuid(checked_text(name, "ctx.uuid: name"))

    def random(self, name: str = "") -> random.Random:
        """Returns the random number generator of the job. A replay gives the same numbers.

        `name`: the name of a generator of its own, such as the name of the place that draws. What the code draws from
        one generator changes no number of another one, and no UUID. So code that is changed should draw from a new name:
        a job that runs on with one number more, or in another order, asks for other effects and is blocked.
        """
        return self._job.random(checked_text(name, "ctx.random: name"))

    def patched(self, name: str) -> bool:
        """Returns True if the job must execute the new code of a function that was changed, and False if it must
        execute the old code: `if ctx.patched("fraud-check"): … else: …old…`. `name` is a name that you give to the
        change.

        Use it if the change alters which effects the function makes, or their order. Then a job that began with the
        old code would not match its journal any more. The method returns False if the journal shows that the job has
        passed this place with the old code, and otherwise True.
        """
        return self._job.patched(checked_text(name, "patched: name"))

    def continue_as(self, message: Any) -> NoReturn:
        """Ends this call of the function, and calls the function again for the same job, with `message` as its input.
        The journal of the job then begins anew. Use it in jobs that never end, because their journal would grow
        without limit.
        """
        raise ContinueAs(message)

    @property
    def timers(self) -> Timers:
        """Raises UserError: durable agents have no timers, they use `await ctx.sleep(…)`."""
        raise UserError(f"agent {self.agent_id}: a durable agent has no timers", hint="await ctx.sleep('1h')")


class _JobCaller:
    """The environment in which a job calls a tool with a `converse` function, for example an agent that is used as a
    tool. When that function calls other tools or models, these calls become effects of the job. When it asks a
    person, this becomes a question of the job.
    """

    def __init__(self, ctx: DurableContext) -> None:
        self._ctx = ctx
        self.scope, self.principal = ctx._job.behalf.scope or "", ctx.principal
        self._steps: list[int] = []  # the ordinals of the steps of the call: an approval holds for those that follow

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        return await self._ctx._made(tool, (), arguments, self._steps)

    async def ask(self, kind: str, payload: Mapping[str, Any], timeout_s: float) -> tuple[str, Mapping[str, Any]]:
        reply = await self._ctx.ask(kind, payload, timeout=timeout_s)
        return reply.outcome, reply.resolution

    async def complete(self, engine: "Engine", spec: RequestSpec) -> "Completion":
        return await self._ctx.llm(engine).complete(spec)


def calls_in_steps(ctx: DurableContext) -> Callable[..., Awaitable[Any]]:
    """Returns a function `call(tool, *args)`, which calls tools as `ctx.call` does, each as a step of one call: what a
    person approves for one step holds for those that follow.
    """
    steps: list[int] = []

    async def call(tool: Tool, *args: Any) -> Any:
        return await ctx._made(tool, args, {}, steps)

    return call


class BatchJobContext(DurableContext):
    """The argument `ctx` of a durable batch agent's function, for one job. `message` is the batch of rows.

    `given_up` contains the rows that the function has rejected by raising `RowErrors`: the reason, by the index of
    the row in the job's original batch.
    """

    __slots__ = ("given_up",)

    given_up: dict[int, Any]

    @property
    def state_backend(self) -> NoReturn:
        """Raises UserError: batches are independent jobs, which have no state."""
        raise UserError(
            f"agent {self.agent_id}: a durable batch agent has no state, as its batches are independent jobs",
            hint="a record agent with key= has state; or group_by(...) on a stream",
        )

    def continue_as(self, message: Any) -> NoReturn:
        """Raises UserError, because a job that processes a batch cannot continue with another message."""
        raise UserError(
            f"agent {self.agent_id}: a batch agent cannot use continue_as",
            hint="its job ends with the rows of its batch",
        )

    @property
    def asked(self) -> int:
        """The number of effects that the job has made or asked for up to now."""
        return self._job.last_asked


def durable_context(
    job: JobRun,
    record: RecordFields,
    state_backend: StateBackend | None,
    agent_id: str,
    prefix: str,
    clock: Clock,
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> DurableContext:
    """Makes the `ctx` argument for the function of a durable agent.

    - `record`: the decoded record of the job.
    - `state_backend`: the store of the keyed state, or None.
    - `prefix`: the text that precedes the names of this agent's states in the store.
    - `metadata`: those of the request to a kernel, for the tools of the job.
    """
    job.input = record.value, record.key, metadata
    ctx = record_context(record, state_backend, agent_id, prefix, clock, None, DurableContext)
    assert isinstance(ctx, DurableContext)
    ctx._job, ctx._unread = job, bool(prefix)  # without a prefix no other job has written the state
    return ctx


def apply_job_writes(ctx: DurableContext) -> None:
    """Applies the writes of a job that has succeeded to the state of its key, with the labels of the job. Later jobs
    of the key that use the state get these labels, because what they read may come from labelled data.
    """
    labels = ctx._job.labels
    if labels and not ctx._unread and ctx.state_backend.statistics()["keys"]:
        ctx.state(_LABELS).put_many(pa.array([""]), pa.array([",".join(sorted(labels))]))
    apply_writes(ctx)


def batch_job_context(job: JobRun, data: pa.RecordBatch, topic: str, agent_id: str, clock: Clock) -> BatchJobContext:
    """Makes the `ctx` argument for the function of a durable batch agent. `data` has the rows of the job, which were
    read from `topic`.
    """
    ctx = BatchJobContext(data, topic=topic, agent_id=agent_id, buffered=True, clock=clock)
    ctx._job, ctx._unread, ctx.given_up = job, False, {}
    job.input = data, None, {}
    return ctx


_OPTIONS = frozenset({"effect", "timeout", "retries"})  # of `DurableContext.step`


def _shared_names(made: Tool, args: Sequence[Any]) -> Iterable[str]:
    """Returns the options of `DurableContext.step` that are parameters of the tool's function too, and that neither these
    arguments nor those of a partial fill.
    """
    func: Any = made.func
    if made.plain is not None:  # as of most functions, and to unwrap one takes longer
        names: Iterable[str] = made.plain.names
    else:
        code = getattr(unwrap(func), "__code__", None)
        names = _OPTIONS if code is None else code.co_varnames
    if _OPTIONS.isdisjoint(names):  # so it is nearly always, and inspecting is slow
        return ()
    try:
        signature = inspect.signature(func)
        filled = signature.bind_partial(*args).arguments
    except (TypeError, ValueError):  # the call says what is wrong with them
        return ()
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name for name, each in signature.parameters.items() if each.kind in kinds}
    return sorted(named & _OPTIONS - set(filled) - set(getattr(func, "keywords", ())))


def _check_type(kind: str) -> None:
    if not checked_text(kind, "ask: kind") or kind.split() != [kind]:
        raise UserError(
            f"ask: {short_repr(kind)} is not a type of questions, which has one word",
            hint="put the question into the payload: ctx.ask('confirm', {'message': '…'})",
        )
    if kind in ACTION_TYPES:
        return
    meant = next((each for each in ACTION_TYPES if _misspelt(kind.lower(), each)), None)
    if meant is not None:
        raise UserError(
            f"ask: {kind!r} is not a type of questions: did you mean {meant!r}?",
            hint=f"one of {', '.join(ACTION_TYPES)}; or a word that differs from them by more than a letter",
        )


def _misspelt(word: str, meant: str) -> bool:
    """Returns True if `word` is at most one typing mistake away from `meant`: one letter is replaced, missing or
    added, or two neighbouring letters are swapped.
    """
    at = 0
    while word[at : at + 1] == meant[at : at + 1] != "":
        at += 1
    one, other = word[at:], meant[at:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]


def _value(body: bytes) -> Any:
    """Returns the value of a signal's body: decoded from JSON, or the body as text if it is not JSON."""
    try:
        return msgspec.json.decode(body or b"null")
    except UNREADABLE:
        return body.decode(errors="replace")


def _said(body: bytes) -> Mapping[str, Any]:
    value = _value(body)
    if isinstance(value, dict):
        return value
    return {} if value is None else {"answer": value}
