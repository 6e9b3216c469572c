"""What the function of a durable agent gets: an AgentContext whose effects are in the journal."""

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
from sabot.clock import Clock
from sabot.config import Duration, checked_text, parse_seconds
from sabot.errors import UNREADABLE, UserError, short_repr
from sabot.jobs.history import ACTION_TYPES, ContinueAs
from sabot.jobs.run import JobRun
from sabot.jobs.values import pack
from sabot.journal.entries import Answer, Signal
from sabot.llm.spec import RequestSpec
from sabot.llm.tools import Tool, as_tool
from sabot.state import StateBackend

if TYPE_CHECKING:
    from sabot.api.models import JobModel
    from sabot.llm.engine import ExecutionEngine
    from sabot.llm.results import Completion


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a question. outcome: "resolved", "expired" or "cancelled". resolution: what was answered. by: who did, if known."""

    outcome: str
    resolution: Mapping[str, Any]
    by: str = ""

    @property
    def approved(self) -> bool:
        """Somebody has said yes: `sabot actions resolve TOKEN --approve`, or {"approved": true}."""
        return self.outcome == "resolved" and self.resolution.get("approved") is True

    @property
    def expired(self) -> bool:
        """Nobody has answered in time."""
        return self.outcome == "expired"


class DurableContext(AgentContext):
    """One job. What it asks of the world goes through these methods, and is asked once.

    The function must do the same each time that it runs over the same results: it may compute, read and write its state, and ask effects.
    Everything else (files, sockets, threads, the clock, chance) belongs into `step`, or has a method here. Writes to state take effect when
    the job ends well.
    """

    __slots__ = ("_job",)

    _job: JobRun

    @property
    def job_id(self) -> str:
        """The id of this job: the same after any crash."""
        return self._job.job_id

    @property
    def attempt(self) -> int:
        """How often the function was tried, from 1 (`on_error="retry"`). Runs over the journal after a crash do not count."""
        return self._job.history.attempt

    @property
    def scope(self) -> str:
        """The tenant for which this job runs; by default the app."""
        return self._job.behalf.scope or self.agent_id.rpartition(".")[0]

    @property
    def principal(self) -> str:
        """For whom this job runs; "" where nobody is named."""
        return self._job.behalf.principal

    @property
    def labels(self) -> frozenset[str]:
        """The labels of what this job has seen so far: of its record, and of the results of tools (`@tool(open_world=True, labels=…)`).
        Its output carries them in the header "sabot.labels".
        """
        return frozenset(self._job.labels)

    async def call(self, tool: Tool | Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls the tool, once: its result is in the journal before the job goes on. A plain function counts as `unsafe`.

        Returns what the tool returned, as msgpack writes and reads it. Raises EffectError for the tool's own error, and where it could not
        be made, was abandoned, or gave what cannot be written down.
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
        """`call` of any function, with what `@tool` would say of it: effect="read" for one that only looks."""
        return await self._made(as_tool(func, effect=effect, timeout=timeout, retries=retries), args, kwargs)

    async def _made(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return await self._job.call(tool, args, kwargs, pack([args, kwargs], f"arguments of {tool.name}", sort=True))

    async def ask(self, kind: str, payload: Mapping[str, Any], *, timeout: Duration | None = None) -> Reply:
        """Asks a person, and parks the job until the answer comes, also for days: `sabot actions` shows and answers questions.

        kind: "confirm", "choose", "input", "approval" or another type of actions, or a word of yours. payload: what is shown, as JSON.
        timeout: then the answer is `expired`. Raises UserError for a kind that is no word, or is a type misspelt: who answers questions
        by their types would not see it.
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
        """Waits; for more than a second the job is parked. `asyncio.sleep` in a job is the same."""
        await asyncio.sleep(parse_seconds(duration, name="sleep"))

    async def wait(self, name: str, *, timeout: Duration | None = None) -> Any:
        """Waits for the next signal of this name (`sabot jobs signal JOB NAME`), and returns what it says. One that came before counts.

        Raises TimeoutError.
        """
        checked_text(name, "wait: name")
        async with asyncio.timeout(None if timeout is None else parse_seconds(timeout, name="timeout")):
            signal: Signal = await self._job.wait(name)
        return _value(signal.body)  # type: ignore[arg-type]

    async def child(self, agent: Callable[..., Any] | str, message: Any) -> Any:
        """Runs another durable agent of this app for this message, as a job of its own, and returns its result. This job is parked
        meanwhile.

        agent: its function, or its name. Raises EffectError when the child fails. A child that is not waited for any more is cancelled,
        also by the end of this job, unless its agent says `ChildLimits(outlive=True)`.
        """
        name = agent if isinstance(agent, str) else getattr(agent, "__name__", "")
        agent_id = f"{self.agent_id.rpartition('.')[0]}.{name}"
        return await self._job.child(agent_id, pack(message, f"message to {agent_id}", sort=True))

    def llm(self, engine: "ExecutionEngine") -> "JobModel":
        """The models of this engine, asked by this job: `await ctx.llm(engine).complete("…", output=Verdict)`. Each answer is in the
        journal before the job goes on, so it is paid once. `Agent.run(…, doing=ctx.llm(engine))` runs a whole agent so.
        """
        from sabot.api.models import JobModel

        return JobModel(self.call, self._job, engine)

    def now(self) -> int:
        """The job's time, in ms since 1970: that of the last result, answer or timer that it was told. The same in every replay."""
        return self._job.now_ms()

    def uuid(self) -> uuid.UUID:
        """A random UUID (version 4) that is the same in every replay."""
        return self._job.uuid()

    def random(self) -> random.Random:
        """The job's own generator, which gives the same numbers in every replay."""
        return self._job.random()

    def patched(self, name: str) -> bool:
        """Guards code that changes what a job asks: `if ctx.patched("fraud-check"): … else: …old…`. True for jobs that come here for the
        first time, False for those whose journal shows that they came by before the change.
        """
        return self._job.patched(checked_text(name, "patched: name"))

    def continue_as(self, message: Any) -> NoReturn:
        """Ends this run, and runs the function again for the same job with this message and a new history. For jobs without end."""
        raise ContinueAs(message)

    @property
    def timers(self) -> Timers:
        """A durable agent sleeps: `await ctx.sleep(…)`."""
        raise UserError(f"agent {self.agent_id}: a durable agent has no timers", hint="await ctx.sleep('1h')")


class _JobCaller:
    """Where a tool that converses is called in a job: each step is an effect, each question an action."""

    def __init__(self, ctx: DurableContext) -> None:
        self._ctx = ctx
        self.scope, self.principal = ctx._job.behalf.scope or "", ctx.principal

    async def make(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        return await self._ctx.call(tool, **arguments)

    async def ask(self, kind: str, payload: Mapping[str, Any], timeout_s: float) -> tuple[str, Mapping[str, Any]]:
        reply = await self._ctx.ask(kind, payload, timeout=timeout_s)
        return reply.outcome, reply.resolution

    async def complete(self, engine: "ExecutionEngine", spec: RequestSpec) -> "Completion":
        return await self._ctx.llm(engine).complete(spec)


class BatchJobContext(DurableContext):
    """One job of a batch agent. `message` is the batch.

    given_up: the rows that the function has named as bad (`RowErrors`), by their number in the batch of the journal, with the reasons.
    """

    __slots__ = ("given_up",)

    given_up: dict[int, Any]

    @property
    def state_backend(self) -> NoReturn:
        """There is none: batches are independent jobs."""
        raise UserError(
            f"agent {self.agent_id}: a durable batch agent has no state, as its batches are independent jobs",
            hint="a record agent with key= has state; or group_by(...) on a stream",
        )

    def continue_as(self, message: Any) -> NoReturn:
        """The job of a batch ends with its rows."""
        raise UserError(
            f"agent {self.agent_id}: continue_as in a batch agent", hint="its job is about the rows of its batch"
        )

    @property
    def asked(self) -> int:
        """How many effects the job has asked for so far."""
        return self._job.last_asked


def durable_context(
    job: JobRun, record: RecordFields, state_backend: StateBackend | None, agent_id: str, prefix: str, clock: Clock
) -> DurableContext:
    """The context of one run of a job over its record."""
    ctx = record_context(record, state_backend, agent_id, prefix, clock, None, DurableContext)
    assert isinstance(ctx, DurableContext)
    ctx._job = job
    return ctx


def batch_job_context(job: JobRun, data: pa.RecordBatch, topic: str, agent_id: str, clock: Clock) -> BatchJobContext:
    """The context of one run of a job over its batch."""
    ctx = BatchJobContext(data, topic=topic, agent_id=agent_id, buffered=True, clock=clock)
    ctx._job, ctx.given_up = job, {}
    return ctx


def _check_type(kind: str) -> None:
    if not checked_text(kind, "ask: kind") or kind.split() != [kind]:
        raise UserError(
            f"ask: {short_repr(kind)} is no type of questions, which is one word",
            hint="what is asked goes into the payload: ctx.ask('confirm', {'message': '…'})",
        )
    meant = next((each for each in ACTION_TYPES if _misspelt(kind.lower(), each)), None)
    if meant is not None and kind not in ACTION_TYPES:
        raise UserError(
            f"ask: {kind!r} is no type of questions: did you mean {meant!r}?",
            hint=f"one of {', '.join(ACTION_TYPES)}; or a word that differs from them by more than a letter",
        )


def _misspelt(word: str, meant: str) -> bool:
    """Whether they are the same, but for a letter that is another one, missing, too many, or swapped with the next."""
    at = 0
    while word[at : at + 1] == meant[at : at + 1] != "":
        at += 1
    one, other = word[at:], meant[at:]
    swapped = one[:2] == other[1::-1] and one[2:] == other[2:]
    return swapped or one[1:] == other[1:] or one[1:] == other or one == other[1:]


def _value(body: bytes) -> Any:
    """What somebody outside has written: JSON, or else text."""
    try:
        return msgspec.json.decode(body or b"null")
    except UNREADABLE:
        return body.decode(errors="replace")


def _said(body: bytes) -> Mapping[str, Any]:
    value = _value(body)
    if isinstance(value, dict):
        return value
    return {} if value is None else {"answer": value}
