"""A provider without a model: it answers by a script, in this process. `sabot.testing.FakeModelServer` answers by
such scripts too.

    ScriptedProvider("yes")                                      every request gets this answer
    ScriptedProvider(["yes", RateLimited("slow down"), "no"])    one answer for each request, in order; a fourth request is a UserError
    ScriptedProvider(lambda spec: spec.messages[-1].text[::-1])  the result of the function for each request

An answer is a text; a message (`assistant("", ToolCall(…))`); a `Completion`, which may have a usage; an error, which
is raised; a tuple of texts, which are the pieces of a stream, with an error at the end if the stream is to break off;
or a function of the request, sync or async, that returns one of these. A server also sends what is in no form that
Sabot knows: a dict (the JSON of a whole answer), bytes (a body), or a list with dicts or bytes (events of a stream).
"""

import asyncio
import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from sabot.base.options import answers_wrong_options
from sabot.engine.calls.errors import AnswerTooLarge, ModelError, ModelTimeout
from sabot.engine.calls.messages import ChatMessage, assistant
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.usage import Usage
from sabot.errors import UserError, short_repr
from sabot.llm.judges import refuse_beside_engine
from sabot.llm.results import Completion, Embeddings, Piece
from sabot.llm.token_counts import count_tokens, tokens_of

Raw: TypeAlias = Mapping[str, Any] | bytes | list[Mapping[str, Any] | str | bytes]
Answer: TypeAlias = str | ChatMessage | Completion | Exception | tuple[str | Exception, ...] | Raw
Answers: TypeAlias = Answer | Callable[[Any], Any] | list[Answer | Callable[[Any], Any]]


@dataclass(frozen=True, slots=True)
class ScriptedAnswer:
    """One answer of a Script.

    - `texts`: the pieces of its text.
    - `end`: the completion, or the error that is raised after the pieces.
    - `counted`: True if the provider has to estimate the tokens. False if the script gives a Completion, which has its
      own usage.
    - `raw`: the response as a server sends it, in place of the text and the completion; None if it has those.
    """

    texts: tuple[str, ...]
    end: Completion | Exception
    counted: bool = True
    raw: Raw | None = None


class Script:
    """The answers for successive requests to a ScriptedProvider: one answer for all requests, or a list with one for
    each.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._taken = 0

    async def answer(self, request: object) -> ScriptedAnswer:
        """Returns the answer to this request. Raises UserError if all answers of the list are used up, or if an answer
        is of a type that a script cannot contain.
        """
        answer: Any = self._answers
        if isinstance(answer, list):
            if self._taken == len(answer):
                raise UserError(
                    f"the script of the model has {len(answer)} answers, and one more request has come: {short_repr(request)}",
                    hint="give it another answer, or a function of the request",
                )
            answer = answer[self._taken]
            self._taken += 1
        if callable(answer):
            try:
                answer = answer(request)
                if inspect.isawaitable(answer):
                    answer = await answer
            except ModelError as error:
                return _parse_answer(error)
        return _parse_answer(answer)


def _parse_answer(answer: Any) -> ScriptedAnswer:
    match answer:
        case Exception():
            return ScriptedAnswer((), answer)
        case str():
            return ScriptedAnswer(tuple(re.findall(r"\s*\S+\s*", answer)) or (answer,), _completion(assistant(answer)))
        case ChatMessage():
            return ScriptedAnswer((answer.text,), _completion(answer))
        case Completion():
            return ScriptedAnswer((answer.content,), answer, counted=False)
        case Mapping() | bytes():
            return ScriptedAnswer((), _completion(assistant()), raw=answer)
        case list() if any(isinstance(each, Mapping | bytes) for each in answer):
            return ScriptedAnswer((), _completion(assistant()), raw=answer)
        case (*texts, str() | Exception() as last) if all(isinstance(each, str) for each in texts):
            if isinstance(last, Exception):
                return ScriptedAnswer(tuple(texts), last)
            return ScriptedAnswer((*texts, last), _completion(assistant("".join((*texts, last)))))
    raise UserError(
        f"the script of the model answers {short_repr(answer)}",
        hint="a text, a message, a Completion, an error, a tuple of texts; of a server also a dict or a list of dicts",
    )


def _completion(message: ChatMessage) -> Completion:
    return Completion(message=message, finish_reason="tool_calls" if message.tool_calls else "stop")


def vectors_of(texts: Sequence[str], dimensions: int) -> npt.NDArray[np.float32]:
    """Returns a random vector of length 1 for each text. The same text has the same vector in every process."""
    drawn = [blake2b(text.encode(), digest_size=8).digest() for text in texts]
    rows = [np.random.default_rng(int.from_bytes(each)).standard_normal(dimensions) for each in drawn]
    found = np.array(rows, np.float32).reshape(len(texts), dimensions)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


@answers_wrong_options
class ScriptedProvider:
    """A provider for tests of programs that call models. It gives the answers of a script, without a network.

    - `answers`: one answer for all requests, or a list with one answer for each request. An answer is one of these: a
      text; a message, such as `assistant("", ToolCall(…))`; a `Completion`, with its own usage; an error, which is
      raised; a tuple of texts, which a stream yields as its pieces; such a tuple with an error at its end, which is
      raised after the pieces; or a function, sync or async, that gets the `RequestSpec` and returns one of these.
    - `dimensions`: the length of the vectors that `embed` returns.
    - `requests`: all requests so far, in order. `keys`: the idempotency key of each of them. `embedded`: all texts that
      `embed` has got.
    - `in_flight`: the number of requests in flight. `most_in_flight`: its highest value so far.
    - `cancelled`: the number of requests that their caller has cancelled.

    After `hold()` requests wait until `release()` is called. `arrived(n)` waits until there were `n` requests.
    """

    def __init__(
        self, answers: Answers, *, name: str = "scripted", model: str = "scripted-1", dimensions: int = 8
    ) -> None:
        self.name = name
        self.model = model
        self.lacks: frozenset[str] = frozenset()
        self.requests: list[RequestSpec] = []
        self.keys: list[str] = []
        self.embedded: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.cancelled = 0
        self.closed = False
        self._script = Script(answers)
        self._dimensions = dimensions
        self._arrivals = 0
        self._open = asyncio.Event()
        self._open.set()
        self._watched: list[tuple[int, asyncio.Future[None]]] = []

    def hold(self) -> None:
        """Makes requests wait before they are answered, until `release`."""
        self._open.clear()

    def release(self) -> None:
        """Ends the effect of `hold`: the waiting requests and all later ones are answered."""
        self._open.set()

    async def arrived(self, count: int) -> None:
        """Waits until `count` requests have come since the provider was made."""
        if self._arrivals < count:
            watch = asyncio.get_running_loop().create_future()
            self._watched.append((count, watch))
            await watch

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        """Returns the next answer of the script, or raises its error. Raises ModelTimeout after `timeout_s` seconds of
        waiting, and AnswerTooLarge if the text has more than `max_answer_bytes` bytes.
        """
        completion = None
        how: dict[str, Any] = {"idempotency_key": idempotency_key, "max_answer_bytes": max_answer_bytes}
        async with aclosing(self.stream(spec, timeout_s=timeout_s, **how)) as pieces:
            async for piece in pieces:
                completion = piece.completion
        assert completion is not None
        return completion

    async def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Yields the next answer of the script: its text word by word, its tool calls, and finally the whole answer as
        a Completion.
        """
        model = spec.model or self.model
        refuse_beside_engine(model)
        self.requests.append(spec)
        self.keys.append(idempotency_key)
        number = len(self.requests)
        async with self._call():
            answer = await self._in_time(spec, model, timeout_s)
            if answer.raw is not None:
                raise UserError(
                    f"the script of the model answers {short_repr(answer.raw)}, which only a server sends",
                    hint="FakeModelServer(…), or a text, a message or a Completion",
                )
            size = 0
            for text in filter(None, answer.texts):
                size += len(text.encode())
                if max_answer_bytes is not None and size > max_answer_bytes:
                    said = f"the answer has more than {max_answer_bytes:,} bytes"
                    raise AnswerTooLarge(said, provider=self.name, model=model, request_id=f"{self.name}-{number}")
                yield Piece(text)
            if isinstance(answer.end, Exception):
                raise _with_origin(answer.end, self.name, model)
            for call in answer.end.whole_calls:
                yield Piece(tool_call=call)
        usage = answer.end.usage
        if answer.counted:
            usage = Usage(input_tokens=tokens_of(spec.messages), output_tokens=tokens_of([answer.end.message]))
        yield Piece(
            completion=msgspec.structs.replace(
                answer.end,
                usage=usage,
                provider=self.name,
                model=model,
                request_id=answer.end.request_id or f"{self.name}-{number}",
            )
        )

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """Returns a vector for each text, which is equal for equal texts."""
        refuse_beside_engine(model or self.model)
        self.embedded += texts
        async with self._call():
            return Embeddings(
                vectors=vectors_of(texts, self._dimensions),
                usage=Usage(input_tokens=sum(map(count_tokens, texts))),
                provider=self.name,
                model=model or self.model,
                request_id=f"{self.name}-e{len(self.embedded)}",
            )

    async def close(self) -> None:
        """Sets `closed` to True. Later requests raise UserError."""
        self.closed = True

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        """Counts the request that is answered in the `with` block as in flight. Raises UserError after `close`."""
        if self.closed:
            raise UserError(f"{self.name}: the provider is closed")
        self._arrivals += 1
        for count, watch in self._watched:
            if count <= self._arrivals and not watch.done():
                watch.set_result(None)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def _in_time(self, spec: RequestSpec, model: str, timeout_s: float | None) -> ScriptedAnswer:
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await self._open.wait()
                return await self._script.answer(spec)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise ModelTimeout(f"no answer in {timeout_s} s", provider=self.name, model=model) from error


def _with_origin(error: Exception, provider: str, model: str) -> Exception:
    """Returns the error of a script. If it is a ModelError without a provider, sets its provider and model, because the
    errors of real providers have them.
    """
    if isinstance(error, ModelError) and not error.provider:
        error.provider, error.model = provider, model
    return error.with_traceback(None)
