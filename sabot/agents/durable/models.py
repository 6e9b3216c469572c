"""Models in durable agents: each request that a job sends to a model (`ctx.llm(engine)`) is an effect in the job's journal.

The class of the effect is `metered`: a request without a recorded answer may be repeated after a crash, but a recorded
answer is never paid for again.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from sabot.base.surrogates import whole_text
from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.errors import ModelError, model_error
from sabot.engine.calls.judging import Make
from sabot.engine.calls.messages import ChatMessage
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.schema import Schema
from sabot.engine.calls.tool_context import Effect
from sabot.engine.calls.tools import Tool, as_tool
from sabot.errors import EffectError, TransientError
from sabot.jobs.guard import Price
from sabot.jobs.history import ASKS
from sabot.jobs.judges import GuardJudge
from sabot.jobs.run import JobRun, Pieces
from sabot.jobs.values import pack
from sabot.llm.agent import ASKING_AGENT, asks_summary
from sabot.llm.asked_batches import AgentModel, Said
from sabot.llm.engine_core import Engine
from sabot.llm.judges import JUDGE
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.requests import error_of_end, known_schema, request_of, with_output
from sabot.llm.results import Completion, Piece


class JobModel(AgentModel):
    """The models of an engine, as the function of one job uses them: `ctx.llm(engine)`. Each answer is recorded in
    the journal before the job continues.

    A request is recorded with a hash of all its messages, but only the messages after the model's last answer are
    stored. The earlier messages are in the entries of earlier requests.

    `call` is a method of the job's context, by which tools are called (`DurableContext`).
    """

    def __init__(self, call: Callable[..., Awaitable[Any]], job: JobRun, engine: Engine) -> None:
        self._call_tool = call
        self._job = job
        self._tool = as_tool(_asking(engine, job.job_id, job.pieces), effect=EffectClass.METERED)
        super().__init__(engine)
        self._model = engine.provider.model or "default"
        self._price = engine.most_cost

    async def complete(self, prompt: object, *, output: Any = None, **fields: Any) -> Completion:
        """Sends a request to a model, and returns the answer. When the job is replayed after a crash, returns the
        recorded answer, or raises the recorded error, without sending the request.

        - `prompt`: a text, a ChatMessage, several ChatMessages, or a RequestSpec.
        - `output`: the type to which the answer is converted. With None the answer is not converted.
        - `fields`: further fields of the RequestSpec.

        Raises ModelError if the request fails, and EffectError if it fails for a reason outside of the model, for
        example because a guard denies it.
        """
        spec, schema = request_of(prompt, output, fields)
        body, tool, wanted = request_body(spec), self._tool, schema or known_schema(spec)
        adds = wanted if wanted is not None and wanted.adds_values else None
        cache = not self._job.asks_anew(ASKS, body)  # it would have the answer that the job could not use
        agent = self._asking_agent()
        if adds is not None or agent or not cache:
            asking = _asking(self.engine, self._job.job_id, self._job.pieces, cache=cache, adds=adds, agent=agent)
            tool = as_tool(asking, effect=EffectClass.METERED)
        try:
            model = spec.model or self._model
            said = await self._job.call(tool, (spec,), {}, body, model=model, price=self._price)
        except EffectError as error:
            raise model_error(error.type, error.message) or error from error
        answer = msgspec.convert(said, Completion)
        if schema is None or error_of_end(answer) is None:
            return with_output(answer, schema)
        return with_output(answer, schema, looks_at_end=self.looks_at_ends())

    def _asking_agent(self) -> str:
        """Returns the name of the agent of this job that asks as a tool of another one, or ""."""
        effects, name = ASKING_AGENT.get() or (None, "")
        return name if isinstance(effects, JobModel) and effects._job is self._job else ""

    async def answer_all(self, requests: Sequence[RequestSpec], output: Schema | None) -> Sequence[Said]:
        """Sends each request as an effect of its own, all at the same time. Returns the answer or the error of each
        request, in the order of `requests`.
        """
        return await asyncio.gather(*(self._answer(each, output) for each in requests))

    def looks_at_ends(self) -> bool:
        return self._job.looks_at_ends()

    def note_labels(self, labels: frozenset[str], /) -> None:
        self._job.labels.update(labels)

    async def _answer(self, request: RequestSpec, output: Schema | None) -> Said:
        try:
            return await self.complete(request, output=output)
        except (ModelError, EffectError) as error:
            return error

    async def stream(self, prompt: object, **fields: Any) -> AsyncGenerator[Piece, None]:
        """Yields one piece that contains the whole answer of the model. It cannot yield the parts of the answer,
        because a job gets only answers that are recorded. Arguments and errors are those of `complete`.
        """
        yield Piece(completion=await self.complete(prompt, **fields))

    def of(self, engine: Engine) -> "JobModel":
        """Returns a JobModel for another engine, for the same job."""
        return JobModel(self._call_tool, self._job, engine)

    async def call(self, tool: Tool, arguments: Mapping[str, Any], said: str | None = None) -> Any:
        """Calls a tool as an effect of the job, and returns its result. `arguments` are its arguments, by name. Calls of
        agents that are tools were no effects in earlier versions: a job that has passed this place in one of them gets
        the prompt back.
        """
        if tool.is_agent and self._job.has_passed(tool.name):
            return arguments["prompt"]
        return await self._call_tool(tool, arguments, said)


class _Requests:
    """A judge (`CallJudge`) of the requests that one effect of a job sends to a model. Usually an effect sends one
    request. If it sends another one, for example because an answer cannot be read, this counts as a new attempt of the
    effect, and a guard may refuse the attempt.

    Other calls in the effect are made by code of the program: a layer of the engine's middleware, a cache, a provider.
    They are judged as those of a tool.

    - `effect`: the effect, with the number of its present attempt.
    - `spec`: its request.
    - `around`: the judge of the code that requested the effect, or None. It decides on other calls, and if it is a
      GuardJudge, its guard also decides whether a fallback model may be asked.
    """

    def __init__(self, effect: Effect, around: Any, spec: RequestSpec) -> None:
        self.effect = effect.id
        self._around, self._spec, self._expected = around, spec, False
        self.declared: frozenset[str] = getattr(around, "declared", frozenset())
        self.guarded: bool = getattr(around, "guarded", False)
        self.repeats: bool = getattr(around, "repeats", False)
        self._instead = around.instead if isinstance(around, GuardJudge) else None
        self._again = effect.again
        self._asked: ModelCall | None = None

    def expect(self) -> None:
        """Notes that the effect sends its request now. The same request is that of other code before and behind that."""
        self._expected = True

    async def __call__(
        self, call: ModelCall, model: str, price: Price, ask: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        if not self._expected or call.spec is not self._spec:
            return await (ask() if self._around is None else self._around(call, model, price, ask))
        self._expected = False
        if self._asked is not None and self._asked.unread:
            await self._next()
        self._asked = call
        call.before_repeat = self._next
        call.before_fallback = self._stands_in
        return await ask()

    def repeats_with_key(self) -> bool:
        return bool(self._around.repeats_with_key())

    def why_not_again(self, tool: Tool) -> str:
        return str(self._around.why_not_again(tool))

    def note_labels(self, labels: frozenset[str]) -> None:
        note = getattr(self._around, "note_labels", None)
        if note is not None:
            note(labels)

    def call_plainly(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return tool.func(*args, **kwargs) if self._around is None else self._around.call_plainly(tool, args, kwargs)

    async def make(self, tool: Tool, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Make) -> Any:
        return await (make(args, kwargs) if self._around is None else self._around.make(tool, args, kwargs, make))

    async def _stands_in(self, call: ModelCall, price: Price) -> None:
        if self._instead is not None:
            await self._instead(self.effect, call, price)

    async def _next(self) -> None:
        if self._again is not None:
            self.effect = await self._again(self.effect)


def _asking(
    engine: Engine,
    job_id: str,
    pieces: Pieces | None,
    *,
    cache: bool = True,
    adds: Schema | None = None,
    agent: str = "",
) -> Callable[..., Any]:
    """Returns the function of the effect that asks a model. With the answer it records the name of the agent that asks as
    a tool of another one (`agent`), whose answers are not those of the job, and what the type of the output adds to the
    text by itself, such as a new id. `adds`: the schema of the output if its type does so.
    """

    async def ask(spec: RequestSpec, effect: Effect) -> Completion:
        requests = _Requests(effect, JUDGE.get(), spec)
        JUDGE.set(requests)  # for this effect only: each effect runs in its own context
        # A summary of the conversation is for the model, and no part of an answer.
        if pieces is None or asks_summary(spec.messages) or not await pieces.wants_fragments(job_id):
            requests.expect()
            return await engine.complete(spec, idempotency_key=effect.key, cache=cache)
        return await _in_pieces(engine, spec, effect, pieces, requests, cache, agent)

    async def llm(spec: RequestSpec, effect: Effect) -> Any:
        answer = await ask(spec, effect)
        more: dict[str, Any] = {"agent": agent} if agent else {}
        if adds is not None and not answer.tool_calls and (form := adds.form_of(answer.content)) is not None:
            more["output"] = form
        return {**msgspec.to_builtins(answer), **more} if more else answer  # a dict: a UUID is recorded as a UUID

    llm.__name__ = ASKS
    return llm


async def _in_pieces(
    engine: Engine, spec: RequestSpec, effect: Effect, pieces: Pieces, requests: _Requests, cache: bool, agent: str
) -> Completion:
    """Sends a request to a model, and publishes each piece of the answer when it arrives. Returns the whole answer.

    If the stream raises a TransientError after the first piece was published, the request is sent once more, this time
    without a stream of pieces. All other errors of the stream are raised. So is a TransientError before the first piece.
    """
    number = 0

    def publish(piece: Piece) -> None:
        nonlocal number
        if piece.text or piece.reasoning:
            pieces.fragment(requests.effect, number, whole_text(piece.text), whole_text(piece.reasoning), agent)
            number += 1

    try:
        requests.expect()
        return await engine.complete_in_pieces(spec, publish, idempotency_key=effect.key, cache=cache)
    except TransientError:
        if not number:
            raise
    requests.expect()
    return await engine.complete(spec, idempotency_key=effect.key, cache=cache)


def request_body(spec: RequestSpec) -> bytes:
    """Encodes a request for the journal: the hash of the whole request, the number of its messages, and the messages
    after the model's last answer, which are new.
    """
    return pack([spec.digest(), len(spec.messages), _news(spec.messages)], "a request to a model", exact=False)


def _news(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """Returns the messages that follow the model's last answer. Returns all messages if there is no answer yet."""
    for at in range(len(messages), 0, -1):
        if messages[at - 1].role == "assistant":
            return messages[at:]
    return messages
