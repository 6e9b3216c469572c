"""Models in durable agents: each request that a job sends to a model (`ctx.llm(engine)`) is an effect in the job's journal.

The class of the effect is `metered`: a request without a recorded answer may be repeated after a crash, but a recorded
answer is never paid for again.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from sabot.errors import EffectError, TransientError
from sabot.jobs.guard import Price
from sabot.jobs.judges import GuardJudge
from sabot.jobs.run import JobRun, Pieces
from sabot.jobs.values import pack
from sabot.journal.effects import EffectClass
from sabot.llm.asked_batches import AgentModel, Said
from sabot.llm.engine_core import Engine
from sabot.llm.errors import ModelError, model_error
from sabot.llm.judges import JUDGE, CallJudge
from sabot.llm.messages import ChatMessage
from sabot.llm.middleware import ModelCall, Outcome
from sabot.llm.requests import request_of, with_output
from sabot.llm.results import Completion, Piece
from sabot.llm.schema import Schema
from sabot.llm.spec import RequestSpec
from sabot.llm.tools import Effect, Tool, as_tool

ASKS = "llm"
"""The name of the effect of a request to a model. It is not the name of the model, because that may change while jobs
are open.
"""


class JobModel(AgentModel):
    """The models of an engine, for one job: `ctx.llm(engine)`. Each answer is in the journal before the job continues.

    The journal's entry for a request has a digest of the whole request, but only those messages that follow the model's
    last answer. Earlier entries have the messages before. `call` is the method `DurableContext.call` of the job, which
    calls tools.
    """

    def __init__(self, call: Callable[..., Awaitable[Any]], job: JobRun, engine: Engine) -> None:
        self._call_tool = call
        self._job = job
        self._tool = as_tool(_asking(engine, job.job_id, job.pieces), effect=EffectClass.METERED)
        super().__init__(engine)
        self._model = engine.provider.model or "default"
        self._price = engine.most_cost

    async def complete(self, prompt: object, *, output: Any = None, **fields: Any) -> Completion:
        """Returns the answer of the model. In a replay it returns or raises the same as in the first run. Raises
        ModelError, and EffectError if the call was denied or abandoned.

        - `prompt`: a text, a ChatMessage, several ChatMessages, or a RequestSpec.
        - `output`: the type that the answer must have; None allows any answer.
        - `fields`: further fields of the RequestSpec.
        """
        spec, schema = request_of(prompt, output, fields)
        body = request_body(spec)
        try:
            model = spec.model or self._model
            said = await self._job.call(self._tool, (spec,), {}, body, model=model, price=self._price)
        except EffectError as error:
            raise model_error(error.type, error.message) or error from error
        return with_output(msgspec.convert(said, Completion), schema)

    async def answer_all(self, requests: Sequence[RequestSpec], output: Schema | None) -> Sequence[Said]:
        """Sends requests, each as an effect of its own. Returns the answer or the error of each request, in order."""
        return await asyncio.gather(*(self._answer(each, output) for each in requests))

    async def _answer(self, request: RequestSpec, output: Schema | None) -> Said:
        try:
            return await self.complete(request, output=output)
        except (ModelError, EffectError) as error:
            return error

    async def stream(self, prompt: object, **fields: Any) -> AsyncGenerator[Piece, None]:
        """Yields the answer of the model in one piece, because a job sees only recorded answers. Arguments and errors
        are those of `complete`.
        """
        yield Piece(completion=await self.complete(prompt, **fields))

    def of(self, engine: Engine) -> "JobModel":
        """Returns the models of another engine, for the same job."""
        return JobModel(self._call_tool, self._job, engine)

    async def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Any:
        """Calls a tool, as an effect of the job in the tool's effect class."""
        return await self._call_tool(tool, **arguments)


class _Requests:
    """A judge (`CallJudge`) for the requests that one effect sends to a model. The guard has allowed the effect, and
    with it the first request. If the answer to a request could not be read, the next request is a new attempt of the
    effect, and the guard may refuse it.

    `around` is the judge that is in force outside of the effect, or None. If it is a `GuardJudge`, it also decides
    whether a fallback model may be asked.
    """

    def __init__(self, effect: Effect, around: CallJudge | None) -> None:
        self.effect = effect.id
        self._instead = around.instead if isinstance(around, GuardJudge) else None
        self._again = effect.again
        self._asked: ModelCall | None = None

    async def __call__(
        self, call: ModelCall, model: str, price: Price, ask: Callable[[], Awaitable[Outcome]]
    ) -> Outcome:
        if self._asked is not None and self._asked.unread:
            await self._next()
        self._asked = call
        call.before_repeat = self._next
        call.before_fallback = self._stands_in
        return await ask()

    async def _stands_in(self, call: ModelCall, price: Price) -> None:
        if self._instead is not None:
            await self._instead(self.effect, call, price)

    async def _next(self) -> None:
        if self._again is not None:
            self.effect = await self._again(self.effect)


def _asking(engine: Engine, job_id: str, pieces: Pieces | None) -> Callable[..., Any]:
    async def llm(spec: RequestSpec, effect: Effect) -> Completion:
        requests = _Requests(effect, JUDGE.get())
        JUDGE.set(requests)  # for this effect only: each effect runs in its own context
        if pieces is None or not await pieces.wants_fragments(job_id):
            return await engine.complete(spec, idempotency_key=effect.key)
        return await _in_pieces(engine, spec, effect, pieces, requests)

    llm.__name__ = ASKS
    return llm


async def _in_pieces(
    engine: Engine, spec: RequestSpec, effect: Effect, pieces: Pieces, requests: _Requests
) -> Completion:
    """Asks the model for the answer in pieces, publishes the pieces as they come, and returns the whole answer. If the
    stream breaks off after the first piece, asks again for the whole answer. If it breaks off before, raises
    TransientError.
    """
    number = 0
    try:
        async with aclosing(engine.stream(spec, idempotency_key=effect.key)) as stream:
            async for piece in stream:
                if piece.completion is not None:
                    return piece.completion
                if piece.text or piece.reasoning:
                    pieces.fragment(requests.effect, number, piece.text, piece.reasoning)
                    number += 1
    except TransientError:
        if not number:
            raise
    return await engine.complete(spec, idempotency_key=effect.key)


def request_body(spec: RequestSpec) -> bytes:
    """Returns a request in the form in which the journal has it: the digest of the request, the number of its messages,
    and the messages that are new since the last request.
    """
    return pack([spec.digest(), len(spec.messages), _news(spec.messages)], "a request to a model")


def _news(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """Returns the messages that follow the model's last answer; all messages if there is no answer yet."""
    for at in range(len(messages), 0, -1):
        if messages[at - 1].role == "assistant":
            return messages[at:]
    return messages
