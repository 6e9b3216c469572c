"""The argument `ctx` of a durable agent's function: an AgentContext whose effects are in the journal."""

import asyncio
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import pyarrow as pa

from sabot.api.context import AgentContext, RecordFields, record_context
from sabot.api.functions import Timers
from sabot.base.config import Duration, checked_text, parse_seconds
from sabot.clock import Clock
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.jobs.history import ACTION_TYPES, ContinueAs
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack
from sabot.journal.entries import Answer, Signal
from sabot.llm.spec import RequestSpec
from sabot.llm.tools import Tool, as_tool
from sabot.state import StateBackend

if TYPE_CHECKING:
    from sabot.agents.durable.models import JobModel
    from sabot.llm.engine_core import Engine
    from sabot.llm.results import Completion


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of a question to a person.

    - `outcome`: "resolved", "expired" or "cancelled".
    - `resolution`: the answer.
    - `by`: the person who answered, or "".
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
    """The context of one job. The function makes each effect (a call, a question, a wait) by a method of this context,
    which records the result in the journal.

    After a crash the function runs again, and gets the recorded results in place of new calls. So it must be
    deterministic: with the same results it must ask for the same effects in the same order. It may compute and use its
    state. Everything else (files, sockets, threads, the clock, random numbers) has a method here, or must be done in a
    function that `step` calls. Writes of state take effect when the job succeeds.
    """

    __slots__ = ("_job",)

    _job: JobRun

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
        """The tenant for whom this job runs; by default the name of the app."""
        return self._job.behalf.scope or self.agent_id.rpartition(".")[0]

    @property
    def principal(self) -> str:
        """The person on whose behalf this job runs, or "" if nobody is named."""
        return self._job.behalf.principal

    @property
    def labels(self) -> frozenset[str]:
        """The labels of all data that this job has seen: those of its record, and those of the results of tools
        (`@tool(open_world=True, labels=…)`). The output of the job has them in the header "sabot.labels".
        """
        return frozenset(self._job.labels)

    async def call(self, tool: Tool | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls a tool, and returns its result. The result is encoded and decoded by msgpack, so for example a tuple
        becomes a list.

        The result is in the journal before the job continues, and a replay reads it from there. A function that is not
        a tool is called as a tool of the effect class "unsafe". Raises EffectError if the tool fails, if the call could
        not be made or was abandoned, or if the result cannot be encoded.
        """
        made = as_tool(tool)
        if made.converse is not None and not args:
            return await made.converse(made, _JobCaller(self), kwargs)
        return await self._made(made, args, kwargs)

    async def step(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        effect: str = "unsafe",
        timeout: Duration | None = None,
        retries: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls any function as if it were a tool. Returns and raises as `call` does.

        - `effect`: the class of the effect, as in `@tool`: for example "read" for a function that changes nothing. By
          default "unsafe".
        - `timeout`: the time limit of each attempt; None sets none.
        - `retries`: the number of further attempts after a failure.
        """
        return await self._made(as_tool(func, effect=effect, timeout=timeout, retries=retries), args, kwargs)

    async def _made(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await self._job.call(tool, args, kwargs, pack([args, kwargs], f"arguments of {tool.name}", sort=True))

    async def ask(self, kind: str, payload: Mapping[str, Any], *, timeout: Duration | None = None) -> Reply:
        """Asks a person, and returns the reply. The job is parked until the answer comes, even for days. `sabot
        actions` shows and answers questions.

        - `kind`: the type of the question: "confirm", "choose", "input", "approval" or another type of actions, or one
          word of your own.
        - `payload`: the data to show to the person. It must be JSON.
        - `timeout`: the time after which the reply is `expired`; None sets no limit.

        Raises UserError for a payload that is not JSON. Also raises UserError for a kind that is not one word, or that
        looks like a misspelt type.
        """
        _check_type(kind)
        try:
            body = msgspec.json.encode(dict(payload))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise UserError(
                f"ask {kind}: its payload cannot be written as JSON: {error}",
                hint="give it text, numbers, lists, dicts",
            ) from error
        seconds = None if timeout is None else parse_seconds(timeout, name="timeout")
        entry: Answer = await self._job.question(kind, body, seconds)
        return Reply(entry.outcome, _said(entry.body), entry.by)  # type: ignore[arg-type]

    async def sleep(self, duration: Duration) -> None:
        """Waits for this time. If it is more than a second, the job is parked meanwhile. `asyncio.sleep` in a job does
        the same.
        """
        await asyncio.sleep(parse_seconds(duration, name="sleep"))

    async def wait(self, name: str, *, timeout: Duration | None = None) -> Any:
        """Waits for the next signal of this name (`sabot jobs signal JOB NAME`), and returns the value of the signal.
        If a signal came before this call, and no earlier call has returned it, it is returned at once. Raises
        TimeoutError if no signal comes within `timeout`.
        """
        checked_text(name, "wait: name")
        async with asyncio.timeout(None if timeout is None else parse_seconds(timeout, name="timeout")):
            signal: Signal = await self._job.wait(name)
        return _value(signal.body)  # type: ignore[arg-type]

    async def child(self, agent: Callable[..., Any] | str, message: Any) -> Any:
        """Begins another durable agent of this app with this message, as a child job. Returns the result of the child.
        This job is parked meanwhile. `agent` is the function of the other agent, or its name.

        If this job ends, or this call is cancelled, the child is cancelled too, unless the child's agent has
        `ChildLimits(outlive=True)`. Raises EffectError if the child fails.
        """
        name = agent if isinstance(agent, str) else getattr(agent, "__name__", "")
        agent_id = f"{self.agent_id.rpartition('.')[0]}.{name}"
        return await self._job.child(agent_id, pack(message, f"message to {agent_id}", sort=True))

    def llm(self, engine: "Engine") -> "JobModel":  # type: ignore[override]  # these models ask as effects
        """Returns the models of an engine for this job: `await ctx.llm(engine).complete("…", output=Verdict)`.

        Each answer is in the journal before the job continues, so no answer is paid for twice. `Agent.run(…,
        effects=ctx.llm(engine))` runs a whole agent in this way.
        """
        from sabot.agents.durable.models import JobModel

        return JobModel(self.call, self._job, engine)

    def now(self) -> int:
        """Returns the time of the job in milliseconds since 1970: the time at which the job received its last result,
        answer or timer. A replay returns the same time.
        """
        return self._job.now_ms()

    def uuid(self) -> uuid.UUID:
        """Returns a random UUID (version 4). A replay returns the same UUID."""
        return self._job.uuid()

    def random(self) -> random.Random:
        """Returns the random number generator of the job. A replay gives the same numbers."""
        return self._job.random()

    def patched(self, name: str) -> bool:
        """Returns True if the job may run the new code of a changed function: `if ctx.patched("fraud-check"): … else:
        …old…`.

        Use it where a change alters the effects that a function asks for. `name` names the change. A job that comes to
        this call for the first time gets True. A job gets False if its journal shows that it passed this place when the
        old code ran.
        """
        return self._job.patched(checked_text(name, "patched: name"))

    def continue_as(self, message: Any) -> NoReturn:
        """Ends this run of the function, and starts the function again, for the same job, with this message and an
        empty history. Use it in jobs that go on forever, whose histories would grow without a limit.
        """
        raise ContinueAs(message)

    @property
    def timers(self) -> Timers:
        """Raises UserError: durable agents have no timers, they use `await ctx.sleep(…)`."""
        raise UserError(f"agent {self.agent_id}: a durable agent has no timers", hint="await ctx.sleep('1h')")


class _JobCaller:
    """The environment of a tool that uses `converse` and is called by a job. The tool's calls of other tools and its
    requests to models become effects of the job, and its questions become actions for people.
    """

    def __init__(self, ctx: DurableContext) -> None:
        self._ctx = ctx
        self.scope, self.principal = ctx._job.behalf.scope or "", ctx.principal

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        return await self._ctx.call(tool, **arguments)

    async def ask(self, kind: str, payload: Mapping[str, Any], timeout_s: float) -> tuple[str, Mapping[str, Any]]:
        reply = await self._ctx.ask(kind, payload, timeout=timeout_s)
        return reply.outcome, reply.resolution

    async def complete(self, engine: "Engine", spec: RequestSpec) -> "Completion":
        return await self._ctx.llm(engine).complete(spec)


class BatchJobContext(DurableContext):
    """The context of one job of a batch agent. `message` is the batch.

    `given_up` has the rows that the function has reported as bad by raising `RowErrors`. The key is the number of the
    row in the journal's batch, and the value is the reason.
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
        """Raises UserError: the job of a batch ends with its rows."""
        raise UserError(
            f"agent {self.agent_id}: a batch agent cannot use continue_as",
            hint="its job ends with the rows of its batch",
        )

    @property
    def asked(self) -> int:
        """The number of effects that the job has asked for so far."""
        return self._job.last_asked


def durable_context(
    job: JobRun, record: RecordFields, state_backend: StateBackend | None, agent_id: str, prefix: str, clock: Clock
) -> DurableContext:
    """Makes the context in which a job's function runs over the record of the job."""
    ctx = record_context(record, state_backend, agent_id, prefix, clock, None, DurableContext)
    assert isinstance(ctx, DurableContext)
    ctx._job = job
    return ctx


def batch_job_context(job: JobRun, data: pa.RecordBatch, topic: str, agent_id: str, clock: Clock) -> BatchJobContext:
    """Makes the context in which a job's function runs over the batch of the job."""
    ctx = BatchJobContext(data, topic=topic, agent_id=agent_id, buffered=True, clock=clock)
    ctx._job, ctx.given_up = job, {}
    return ctx


def _check_type(kind: str) -> None:
    if not checked_text(kind, "ask: kind") or kind.split() != [kind]:
        raise UserError(
            f"ask: {short_repr(kind)} is not a type of questions, which has one word",
            hint="put the question into the payload: ctx.ask('confirm', {'message': '…'})",
        )
    meant = next((each for each in ACTION_TYPES if _misspelt(kind.lower(), each)), None)
    if meant is not None and kind not in ACTION_TYPES:
        raise UserError(
            f"ask: {kind!r} is not a type of questions: did you mean {meant!r}?",
            hint=f"one of {', '.join(ACTION_TYPES)}; or a word that differs from them by more than a letter",
        )


def _misspelt(word: str, meant: str) -> bool:
    """Returns True if `word` becomes `meant` by changing one letter: replacing it, removing it, adding it, or swapping
    it with the next.
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
