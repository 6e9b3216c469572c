"""The jobs of a kernel. The BEGIN of a job has a request, over which an agent or a function runs.

ExecutionRequest ─▶ BEGIN ─▶ Agent.run(…, effects=ctx.llm(engine)), or f(ctx) ─▶ END with the returned value
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from sabot.agents.context import BudgetSpec, ExecutionContext, PolicyRef, RunVersions, check_request
from sabot.agents.durable.context import DurableContext, durable_context
from sabot.agents.durable.job_rows import version_of
from sabot.agents.session_turns import TURN, Recalled, SessionId, Turn
from sabot.base.checks import Whole, check
from sabot.base.config import Duration, checked_name, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.base.process_exit import EXITS
from sabot.clock import Clock
from sabot.engine.calls.decoded import NO_FORM, form_of, with_form
from sabot.engine.calls.effects import EffectClass, EffectId, digest
from sabot.engine.calls.error_log import ErrorLog
from sabot.engine.calls.functions import awaitable
from sabot.engine.calls.judging import ValueCode, permitted_begin
from sabot.engine.calls.messages import ChatMessage, decode_prompt
from sabot.engine.calls.options import Retry
from sabot.engine.calls.tool_context import CALL, PLAIN_CALL
from sabot.engine.calls.tool_results import json_text, model_or_text
from sabot.engine.calls.tools import Tool
from sabot.engine.calls.usage import Usage
from sabot.engine.operators.agents.rows import Row
from sabot.engine.state.backends.memory import MemoryBackend
from sabot.errors import IdempotencyConflict, NonDeterminism, UserError, short_repr
from sabot.jobs.guard import Behalf, EffectGuard
from sabot.jobs.owner import AfterFailure, OpenJob
from sabot.jobs.run import JobRun
from sabot.jobs.tree import parent_of
from sabot.jobs.values import pack, unpack
from sabot.journal.begin_facts import key_text
from sabot.journal.entries import ANSWER, VALUE, EffectResult
from sabot.llm.agent import Agent, AgentResult
from sabot.llm.conversation import Conversation
from sabot.llm.engine import ExecutionEngine

if TYPE_CHECKING:
    StartAfter = Duration | datetime | None
else:
    StartAfter = Any  # it is not stored with the request, and msgspec refuses such unions

_MOST_PRIORITY = 1_000_000
_AFTER = 'start_after="10min", a timedelta, seconds, or a datetime with a zone'
_LAST_S = 253_402_300_800.0  # the end of the last year that a datetime can have
_NO_STATE = MemoryBackend()  # the empty state that contexts of jobs show; nothing is ever written to it


@answers_wrong_options
@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionRequest:
    """A request to run an agent of a kernel as one job.

    - `prompt`: a text, a ChatMessage, or a list of ChatMessages, each of which may be a dict with its fields. For an agent
      that is a function, it is any value that msgpack can encode, and the function reads it as `ctx.message`.
    - `scope_id`, `principal_id`: the tenant and the actor.
    - `session_id`: the session. The job of an Agent continues the conversation of its session: of the jobs of the same agent,
      scope, principal and session that have succeeded before it begins to run. None for a job of its own.
    - `run_id`, `metadata`, `versions`: are recorded with the job.
    - `policy_ref`: the policy that the kernel must have; otherwise `execute` raises UserError. None accepts any policy.
    - `budgets`: the limits for the job together with the jobs that it begins.
    - `idempotency_key`: if the agent already has a job of this scope with the same key, no second job is begun. None for no key.
    - `agent`: the name of the agent; "" means the first agent of the kernel.
    - `max_turns`: the most turns of the Agent, in place of its own `max_turns`. It is not for agents that are functions.
    - `key`: the key of the job, such as a customer: `JobLimit(agent, per="key", concurrency=1)` runs the jobs of each key one
      after the other. It is in lists of jobs. None for no key.
    - `priority`: of jobs that wait to begin, those with smaller numbers begin first.
    - `start_after`: the job does not begin before this time: a datetime with a zone, or a duration from now on.
    """

    prompt: Any
    scope_id: str = "default"
    principal_id: str = ""
    session_id: str | None = None
    run_id: str = ""
    budgets: BudgetSpec = field(default_factory=BudgetSpec)
    policy_ref: PolicyRef | None = None
    versions: RunVersions = field(default_factory=RunVersions)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    agent: str = ""
    max_turns: int | None = None
    key: str | None = None
    priority: int = 0
    start_after: StartAfter = None

    def __post_init__(self) -> None:
        check_request(self, "agent", given=("session_id", "idempotency_key", "key"))
        if self.max_turns is not None:
            check("ExecutionRequest: max_turns", self.max_turns, Whole(1))
        check("ExecutionRequest: priority", self.priority, Whole(-_MOST_PRIORITY, _MOST_PRIORITY))
        self.begins_ms(0.0)

    def begins_ms(self, now: float) -> int:
        """Returns the time from `start_after`, in milliseconds since 1970; 0 for None. `now`: the present time in seconds."""
        after = self.start_after
        if after is None:
            return 0
        if not isinstance(after, datetime):
            begins_s = now + parse_seconds(after, name="start_after", hint=_AFTER)
            if begins_s > _LAST_S:
                raise UserError(f"start_after={short_repr(after)} is behind the year 9999", hint=_AFTER)
            return round(begins_s * 1000)
        if after.tzinfo is None:
            raise UserError(f"start_after={short_repr(after)} has no zone", hint="datetime(…, tzinfo=ZoneInfo(…))")
        return max(0, round(after.timestamp() * 1000))

    @property
    def waits(self) -> bool:
        """True if the job may have to wait behind others in the queue, or for its time."""
        return bool(self.key or self.priority or self.start_after is not None)

    def context(self, job_id: str = "") -> ExecutionContext:
        """Returns the context of the job for this request: the tenant, the actor, the limits and the other fields of
        the request.
        """
        shared = {name: getattr(self, name) for name in ExecutionContext.__dataclass_fields__ if name != "job_id"}
        return ExecutionContext(**{**shared, "session_id": self.session_id or "", "job_id": job_id})

    @property
    def behalf(self) -> Behalf:
        """The tenant, the actor and the session for which the job of this request runs."""
        return Behalf(self.scope_id, self.principal_id, session=self.session_id or "")

    async def permitted(self, agent_id: str) -> "ExecutionRequest":
        """Returns the request as the rules of the code that makes it let it begin a job (`judging.permitted_begin`)."""
        prompt = await permitted_begin(agent_id, self.prompt)
        return self if prompt is self.prompt else replace(self, prompt=prompt)

    @property
    def content(self) -> dict[str, Any]:
        """The fields, by name, that must be equal in two requests with the same idempotency key."""
        left_out = ["run_id", "versions", "idempotency_key", "priority", "start_after"]
        if not self.key:  # as max_turns
            left_out.append("key")
        if self.max_turns is None:  # earlier versions did not have it, and have stored digests without it
            left_out.append("max_turns")
        said = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return {**said, "session_id": self.session_id or "", "budgets": self.budgets.content}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """The result of a job.

    - `content`: the last answer of the Agent as a text. For a function, its result as a text.
    - `output`: the answer converted to the output type of the Agent, or None if it has no output type. For a function,
      its result.
    - `usage`, `cost` (US dollars), `turns`, `tool_calls`: the sums over the Agent's own requests to models. Requests
      that its tools make are not included. For a function, they have their default values.
    - `finish_reason`: the reason for which the model ended its last answer, such as "stop" or "length".

    The ledger of the kernel (`RuntimeKernel(budgets=…)`) also includes the requests of tools and functions.
    """

    job_id: str
    content: str = ""
    output: Any = None
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = None
    turns: int = 0
    tool_calls: int = 0
    finish_reason: str = "stop"


_DEFAULTS = {
    name: getattr(ExecutionRequest(prompt=""), name)
    for name in ExecutionRequest.__dataclass_fields__
    if name != "prompt"
}

# the others are in the letter, or in the BEGIN entry itself
_STORED = [name for name in _DEFAULTS if name not in ("key", "priority", "start_after")]


class _Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of an Agent in the form that the END entry of its job stores. `output`: the output in the form of
    `calls.decoded`, if its type adds something to the text of the answer by itself. New fields are only added at the end.
    """

    content: str
    usage: Usage = Usage()
    cost: Decimal | None = None
    turns: int = 0
    tool_calls: int = 0
    finish_reason: str = "stop"
    output: Any = None
    turn: Turn | None = None  # the field TURN


@dataclass(frozen=True, slots=True)
class _InSession:
    """The value that the coroutine of an Agent's job in a session returns: the result, and the turn of the job."""

    result: AgentResult[Any]
    turn: Turn


def encode_request(request: ExecutionRequest) -> bytes:
    """Encodes a request for the BEGIN entry of its job. Fields that have their default value are left out. Raises
    UserError for a value that cannot be encoded.
    """
    prompt = [request.prompt] if isinstance(request.prompt, ChatMessage) else request.prompt
    if isinstance(prompt, list | tuple):
        prompt = [
            # content is stored also if it is empty: `decode_prompt` refuses a message without it
            {"content": "", **msgspec.to_builtins(each)} if isinstance(each, ChatMessage) else each
            for each in prompt
        ]
    said = {name: value for name in _STORED if (value := getattr(request, name)) != _DEFAULTS[name]}
    return pack({**said, "prompt": prompt}, "the request")


def _request(job: JobRun) -> ExecutionRequest:
    return msgspec.convert(unpack(job.history.begin.body), ExecutionRequest, strict=False)  # type: ignore[arg-type]


def job_id_of(agent_id: str, request: ExecutionRequest) -> str:
    """Returns the job id for a request. Two requests to an agent with the same scope and the same idempotency key have
    the same job id. So a repeated request is recognized, as long as the journal keeps the job. A request without a key
    gets a random id.
    """
    if not request.idempotency_key:
        return f"{agent_id}/{uuid.uuid4().hex}"
    name = f"{request.scope_id}\0{request.idempotency_key}"
    return f"{agent_id}/{blake2b(name.encode(), digest_size=16).hexdigest()}"


def digest_of(key: bytes, agent_id: str, request: ExecutionRequest) -> bytes:
    """Returns the digest by which a request is compared with a later one of the same idempotency key. `key`: that of the
    journal. Raises UserError for a value that cannot be written down.
    """
    return digest(key, "request", agent_id, msgspec.to_builtins(request.content, enc_hook=model_or_text))


def check_same(request: ExecutionRequest, job_id: str, before: bytes, key: bytes, agent_id: str) -> None:
    """Raises IdempotencyConflict if the job with the idempotency key of a request was begun with another request. Its agent
    may be named in one of them only. `before`: the digest of the earlier request. `key`: the key of the journal.
    """
    names = (request.agent, agent_id.partition(".")[2], "")
    if all(before != digest_of(key, agent_id, replace(request, agent=name)) for name in names):
        raise IdempotencyConflict(
            f"idempotency key {request.idempotency_key!r} of scope {request.scope_id} is that of job {job_id}, with another request",
            hint="give this request another key, or ask for the same",
        )


# By effect: the present attempt, the jobs with keys that earlier attempts have begun, and those of the present one. Of all
# kernels of the process, since a tool may make a kernel in each attempt.
_begun_by: dict[str, tuple[int, frozenset[str], set[str]]] = {}
_MOST_BEGUN_BY = 1_000


def effect_around() -> str:
    """Returns the key of the effect whose tool runs here, "" outside of one (`Begin.within`)."""
    return "" if (call := CALL.get()) is None else call[0].key


async def read_earlier_attempts(read: Callable[[str], Awaitable[frozenset[str]]]) -> None:
    """Notes what earlier attempts of the effect around have begun, if only the journal knows it: the attempts of this
    process are in memory (`_begun_by`). `read`: reads them from the journal (`open_jobs.jobs_begun_within`), by the key of
    the effect.
    """
    if (call := CALL.get()) is None or call[0].attempt == 1:
        return
    effect = call[0]
    place = effect.key
    if place not in _begun_by:
        found = await read(effect.key)
        _begun_by.setdefault(place, (effect.attempt, found, set()))


def check_attempts(job_id: str) -> None:
    """Notes that an effect begins or finds a job with an idempotency key. Raises UserError if earlier attempts of the
    effect have begun others, and this attempt none of these yet: a key that is new at each attempt begins another job.
    So also of a tool that an agent calls again outside of a job.
    """
    if (call := CALL.get()) is not None:
        _check_attempt(call[0], job_id, f"effect {call[0].ordinal} of job {call[0].job}")
    if (plain := PLAIN_CALL.get()) is not None:
        _check_attempt(plain, job_id, "the tool that begins it")


def _check_attempt(effect: EffectId, job_id: str, what: str) -> None:
    place = effect.key
    attempt, before, now = _begun_by.pop(place, (effect.attempt, frozenset[str](), set[str]()))
    if effect.attempt > attempt:
        before, now = before | now, set()
    if before and job_id not in before and not before <= now:
        _begun_by[place] = effect.attempt, before, now
        raise UserError(
            f"no job was begun: an earlier attempt of {what} has begun {min(before - now)}, and this "
            "one would begin another one, which would do everything again: its idempotency_key= is another one",
            hint="one that is the same at each attempt: from the arguments of the tool, or `effect.key` of a parameter "
            "`effect: Effect`; several jobs are begun in the same order at each attempt",
        )
    now.add(job_id)
    _begun_by[place] = effect.attempt, before, now
    while len(_begun_by) > _MOST_BEGUN_BY:
        del _begun_by[next(iter(_begun_by))]


def is_agent_result(value: Any, form: str) -> bool:
    """Returns True if the value in the END entry of a job is the answer of an Agent. `form`: the form in the entry; for an
    entry of an earlier version, which has none, the fields of the value decide.
    """
    if not isinstance(value, dict) or form:
        return form == ANSWER and isinstance(value, dict)
    return {"content", "turns"} <= value.keys() <= set(_Ended.__struct_fields__)


def recorded_result(job_id: str, body: bytes, form: str) -> ExecutionResult:
    """Returns the result in the END entry of a job, for a reader that does not have the agent. The `output` of an Agent is
    None. `form`: the form in the entry.
    """
    value = unpack(body)
    if is_agent_result(value, form):
        said = msgspec.convert({**value, "output": None, TURN: None}, _Ended, strict=False)
        return _of_agent(job_id, said, None)
    return _of_function(job_id, value)


def _of_agent(job_id: str, ended: _Ended, output: Any) -> ExecutionResult:
    said = {name: each for name, each in msgspec.structs.asdict(ended).items() if name != TURN}
    return ExecutionResult(**{**said, "job_id": job_id, "output": output})


def _of_function(job_id: str, value: Any) -> ExecutionResult:
    content = value if isinstance(value, str) else "" if value is None else json_text(value)
    return ExecutionResult(job_id=job_id, content=content, output=value)


class JobWatch(ABC):
    """The interface by which the agents of a kernel report to the kernel what happens to their jobs. All methods are
    called on the event loop of the kernel.
    """

    @abstractmethod
    def began(self, job_id: str) -> None:
        """Reports that the BEGIN entry of a job is in the journal, so that tasks that wait for this can continue."""

    @abstractmethod
    def rests(self, job_id: str) -> None:
        """Reports that a job was parked: it was removed from memory until something for which it waits comes. Another
        job may now run in its place.
        """

    @abstractmethod
    def wakes(self, job_id: str) -> None:
        """Reports that a parked job can continue, because an answer, a signal or a timer has come. The kernel lets it
        continue when fewer than `max_jobs` jobs run.
        """

    @abstractmethod
    def child(self, agent: "KernelAgent", job_id: str, request: ExecutionRequest, behalf: Behalf) -> None:
        """Requests that a child job begins, because the function of another job has called `ctx.child`. The kernel
        begins it when fewer than `max_jobs` jobs run.

        - `agent`: the agent that the child runs.
        - `job_id`: the id of the child.
        - `request`: the request with which the child begins.
        - `behalf`: the tenant, the actor and the labels, which the child has in common with its parent.
        """

    @abstractmethod
    async def recall(self, session: SessionId) -> Recalled:
        """Returns the conversation of a session, as far as it is in the journal."""

    @abstractmethod
    def says(self, job_id: str, said: bytes | BaseException, labels: Collection[str]) -> None:
        """Reports how the function of a job has ended, before the END entry of the job is written. `said` is the
        encoded return value, or the error that the function has raised. `labels`: those of the data that the job has received.
        """

    @abstractmethod
    def over(self, job_id: str, outcome: str) -> None:
        """Reports that the END entry of a job was appended to the journal, with this outcome. When it is durable, the kernel
        sets the outcome of the job's handle.
        """

    @abstractmethod
    def is_blocked(self, job_id: str, error: NonDeterminism) -> None:
        """Reports that a job cannot continue, because the present code of the agent requests other effects than the
        journal has. The result of the job's handle is then `error`.
        """

    @abstractmethod
    def asked_to_exit(self, job_id: str, error: BaseException) -> None:
        """Reports that the function of a job has raised SystemExit or KeyboardInterrupt. The kernel then stops with
        this error.
        """


def other_policy(policy: EffectGuard | None, asked: PolicyRef | None) -> bool:
    """Returns True if a kernel with this policy does not have the one for which a request asks: it has none, or one with
    another name or version. None asks for no policy, and the version "" for any version.
    """
    if asked is None:
        return False
    name = "" if policy is None else policy.name
    return not name or asked.name != name or asked.version not in ("", getattr(policy, "version", ""))


def policy_words(asked: PolicyRef) -> str:
    """Returns words for a policy in a message: "policy 'production', version 4711"."""
    return f"policy {asked.name!r}{asked.version and ', version ' + asked.version}"


class KernelAgent:
    """The object in a kernel that is responsible for the jobs of one agent: it is their `JobOwner`, whose methods the
    JobHost of the kernel calls. The agent is an Agent, or a function that takes a DurableContext.
    """

    leaves_at_once, sleep_counts = False, True  # callers hear of a result when END, and so all before it, is durable

    def __init__(
        self,
        kernel: str,
        agent: "Agent | Callable[[DurableContext], Any]",
        engine: ExecutionEngine | None,
        clock: Clock,
        version: str,
        policy: EffectGuard | None = None,
    ) -> None:
        """Makes the object for one agent. Before jobs run, the host of the jobs sets the attribute `watch`.

        - `kernel`: the name of the kernel, with which the agent's id begins.
        - `engine`: the engine through which models are called, in place of the Agent's own engine. None means the
          Agent's own.
        - `clock`: the clock of the kernel.
        - `version`: the version of the code. With "" it is a digest of the code.
        - `policy`: the policy of the kernel. Jobs whose requests ask for another one make no call under it.
        """
        if not isinstance(agent, Agent) and not callable(agent):
            raise UserError(f"{short_repr(agent)} is no agent", hint="an Agent of sabot.llm, or `async def f(ctx)`")
        if isinstance(agent, Tool):
            raise UserError(
                f"tool {agent.name} is no agent", hint=f"`async def f(ctx)`, which awaits ctx.call({agent.name}, …)"
            )
        self.agent = agent
        name = agent.name if isinstance(agent, Agent) else getattr(agent, "__name__", None)
        if name is None:
            raise UserError(f"agent {short_repr(agent)} has no name", hint="`async def f(ctx)` has one")
        self.name = checked_name(name, "agent: name")
        self.agent_id = f"{kernel}.{self.name}"
        self.code = version_of(Agent.run if isinstance(agent, Agent) else agent, version)
        self._engine = engine if engine is not None else agent.engine if isinstance(agent, Agent) else None
        self._clock, self._policy = clock, policy
        self._errors = ErrorLog(f"agent {self.agent_id}", clock)
        self.watch: JobWatch
        self._recall = Tool(
            self._recalled, "conversation", EffectClass.LOCAL, None, "ask", None, Retry(0, 0.0), False, is_async=True
        )
        self._decoded: tuple[JobRun, ExecutionRequest] | None = None  # the request that was decoded last

    def check_prompt(self, request: ExecutionRequest) -> None:
        """Raises UserError if the prompt of a request is none for this agent. Functions take any value."""
        if isinstance(self.agent, Agent) and not isinstance(request.prompt, str):
            decode_prompt(unpack(encode_request(request))["prompt"])

    # -- as a JobOwner ------------------------------------------------------------------------------------------------

    def call(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        self.watch.began(job.job_id)
        return self.coroutine(job)

    def coroutine(self, job: JobRun) -> Coroutine[Any, Any, Any]:
        """Returns the coroutine that runs the agent for this job. The caller starts it."""
        request, begin = self._asked(job), job.history.begin
        if request.policy_ref is not None and other_policy(self._policy, request.policy_ref):
            job.lost_policy = f"its request asks for {policy_words(request.policy_ref)}, which the kernel does not have"
        row = Row(None, None, begin.at_ms, -1, -1, (), "", request.prompt, key_text(begin.key).encode())
        ctx = durable_context(job, row, _NO_STATE, self.agent_id, "", self._clock, request.metadata)
        return self._run(ctx, request, job)

    def _asked(self, job: JobRun) -> ExecutionRequest:
        if self._decoded is None or self._decoded[0] is not job:
            self._decoded = job, _request(job)
        return self._decoded[1]

    def policy_of(self, job: JobRun) -> PolicyRef | None:
        """Returns the policy for which the request of this job asks, which its children have to run under too."""
        return self._asked(job).policy_ref

    async def _run(self, ctx: DurableContext, request: ExecutionRequest, job: JobRun) -> Any:
        if not isinstance(self.agent, Agent):
            value, pending = awaitable(self.agent(ctx))
            return await value if pending else value
        assert self._engine is not None
        said, history = request.prompt, job.history
        try:
            said = decode_prompt(said)
        except UserError:
            if not (history.intents or history.deliveries):
                raise
            said = msgspec.convert(said, list[ChatMessage])  # earlier versions have asked models with any fields
        how: dict[str, Any] = {"effects": ctx.llm(self._engine), "max_turns": request.max_turns}
        begin, recalled = job.history.begin, None
        if begin.session and not parent_of(job.job_id)[0]:
            recalled = job.recall(self._recall, (begin.scope, begin.principal, begin.session))
        if recalled is None:
            return await self.agent.run(said, **how)
        earlier = msgspec.convert(await recalled, Recalled)
        job.labels.update(earlier.labels)
        conversation = Conversation(earlier.messages)
        result = await self.agent.run(said, conversation=conversation, **how)
        own = list(result.messages)  # the last ones of the conversation
        return _InSession(result, earlier.turn(conversation.messages[: -len(own)], own))

    async def _recalled(self, scope: str, principal: str, session: str) -> Recalled:
        """Returns the conversation of a session of this agent. It is the function of an effect."""
        return await self.watch.recall(SessionId(self.agent_id, scope, principal, session))

    def time_left(self, job: JobRun) -> tuple[float, str] | None:
        """Returns the number of seconds that the job may still run under its limit `max_runtime_seconds`, and the limit
        in words. Returns None if the job has no such limit, or if the function was already told that its time is over.
        Time before a restart counts, because the running time is computed from the entries of the job.
        """
        most = self._asked(job).budgets.max_runtime_seconds
        told = any(isinstance(each, EffectResult) and not each.ordinal for each in job.history.deliveries)
        if most is None or told:  # its time was over already, and the function may clean up
            return None
        left_s = most - job.history.ran_until(round(self._clock.time() * 1000)) / 1000
        parent = parent_of(job.job_id)[0]
        of_parent = f", which job {parent} had left" if parent else ""
        return max(0.0, left_s), f"max_runtime_seconds={most:g}{of_parent}"

    def ended(self, job: JobRun, value: Any) -> bytes:
        body, job.form = self.packed(job, value), ANSWER if isinstance(self.agent, Agent) else VALUE
        self.watch.says(job.job_id, body, job.labels)
        return body

    def packed(self, job: JobRun, value: Any) -> bytes:
        """Encodes the value that the agent or function has returned, for the END entry of the job. Raises UserError for
        a value that cannot be encoded.
        """
        with ValueCode(self.name):
            if isinstance(value, _InSession):
                value = self._ended(value.result, value.turn)
            elif isinstance(value, AgentResult):
                value = self._ended(value)
            return pack(value, f"the result of job {job.job_id}")

    def _ended(self, result: AgentResult[Any], turn: Turn | None = None) -> Any:
        facts = result.usage, result.cost, result.turns, result.tool_calls, result.finish_reason
        ended = _Ended(result.content, *facts, turn=turn)
        shape = self.agent.output if isinstance(self.agent, Agent) else None
        form = form_of(result.output) if shape is not None and shape.adds_values else NO_FORM
        if form is NO_FORM or form is None:
            return ended
        return {**msgspec.to_builtins(ended), "output": form}  # a dict, in which a UUID is recorded as a UUID

    def failed(self, job: JobRun, error: BaseException) -> AfterFailure:
        if isinstance(error, EXITS):
            self.watch.asked_to_exit(job.job_id, error)
            return "stop"
        self._errors.add(error, f"job {job.job_id}", "it has failed")
        self.watch.says(job.job_id, error, job.labels)
        return "end"

    def backoff_s(self, attempt: int) -> float:
        """Returns 0, because a kernel does not try a failed job again."""
        return 0.0

    def begin_child(self, job_id: str, message: Any, *, failed: bool, behalf: Behalf) -> None:
        request = ExecutionRequest(
            prompt=message,
            scope_id=behalf.scope,
            principal_id=behalf.principal,
            session_id=behalf.session or None,
            agent=self.name,
        )
        self.watch.child(self, job_id, request, behalf)

    def continued(self, job: JobRun, message: Any) -> bytes:
        return encode_request(replace(self._asked(job), prompt=message))

    def parked(self, job_id: str) -> None:
        self.watch.rests(job_id)

    def woken(self, job_id: str) -> None:
        self.watch.wakes(job_id)

    def blocked(self, job_id: str, error: NonDeterminism) -> None:
        self.watch.is_blocked(job_id, error)

    def job_closed(self, job_id: str, outcome: str) -> None:
        self.watch.over(job_id, outcome)

    def had_ended(self, job: OpenJob) -> None:
        """Does nothing. In an app, this method records the ended job for the next checkpoint of the app; a kernel has
        no such checkpoints.
        """

    # -- results of jobs ----------------------------------------------------------------------------------------------

    def result(self, job_id: str, body: bytes) -> ExecutionResult:
        """Decodes the result in the END entry of a job. Raises Mismatch if it does not fit the present output type of
        the agent.
        """
        value = unpack(body)
        if not isinstance(self.agent, Agent):
            return _of_function(job_id, value)
        said, shape = msgspec.convert(value, _Ended, strict=False), self.agent.output
        output = None if shape is None else shape.decode(said.content)
        if output is not None and said.output is not None:
            output = with_form(output, said.output)
        return _of_agent(job_id, said, output)
