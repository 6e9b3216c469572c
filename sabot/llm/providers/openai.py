"""OpenAI, and other servers with its API, such as Ollama, vLLM and proxies. Only this module imports openai."""

import base64
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from sabot.base.options import answers_wrong_options
from sabot.engine.calls.model_requests import RequestSpec
from sabot.errors import MissingExtra, UserError, short_repr
from sabot.llm.providers.openai_chat import ChatDecoder, chat_request
from sabot.llm.providers.openai_responses import RESPONSES_LACK, ResponsesDecoder, responses_request
from sabot.llm.providers.sdk import SdkCalls, checked_model, usage_of
from sabot.llm.results import Completion, Embeddings, Piece

_MOST_VECTOR = 1 << 20  # bytes of a vector as JSON
_HOSTS = ("openai.com", "openai.azure.com")


@answers_wrong_options
class OpenAIProvider:
    """A provider of OpenAI's models, or of the models of another server that has the same API. For example, for a local
    server: `OpenAIProvider(model="llama3", base_url="http://localhost:11434/v1")`.

    - `model`: the model for requests without a model of their own.
    - `base_url`: the address of the server; by default the environment variable OPENAI_BASE_URL, or OpenAI's server.
    - `api_key`: the key; by default the environment variable OPENAI_API_KEY. It is optional if the server is given by
      `base_url` or OPENAI_BASE_URL.
    - `api`: "chat" for the API "chat completions", which all such servers have, or "responses".
    - `name`: the name of the vendor in errors and in lists of prices.
    - `client`: your own `openai.AsyncOpenAI` object, for example for Azure, a proxy, or more than 1,000 connections.
      `close` does not close it.

    Raises MissingExtra if the package `openai` is not installed; UserError if there is no key, if an argument is not
    valid, or if `client` is given together with a key or an address.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        api: Literal["chat", "responses"] = "chat",
        name: str = "openai",
        client: Any = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("OpenAIProvider", "llm") from error
        if api not in ("chat", "responses"):
            raise UserError(f"OpenAIProvider: api={short_repr(api)}", hint='"chat" or "responses"')
        self.name = name
        self.model = checked_model(model, "OpenAIProvider")
        self.lacks = RESPONSES_LACK if api == "responses" else frozenset[str]()
        methods = _chat_methods if api == "chat" else _responses_methods
        how: dict[str, Any] = {"client": client, "api_key": api_key, "base_url": base_url}
        self._calls = SdkCalls(name, openai, "OpenAI", methods, **how)
        self._api = api
        self._is_openai = self._calls.host.endswith(_HOSTS)

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.model!r}, base_url={self._calls.base_url!r}, api={self._api!r})"

    async def complete(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> Completion:
        model = spec.model or self.model
        if self._api == "chat":
            body = chat_request(spec, self.model, is_openai=self._is_openai, stream=False, host=self._calls.host)
            data, request_id = await self._calls.whole(
                "answer", body, timeout_s, idempotency_key, max_answer_bytes, messages=[]
            )
            return ChatDecoder(self._calls, self.name, model, spec.messages).whole(data, request_id)
        body = responses_request(spec, self.model, stream=False)
        data, request_id = await self._calls.whole("answer", body, timeout_s, idempotency_key, max_answer_bytes)
        return ResponsesDecoder(self._calls, self.name, model, spec.messages).whole(data, request_id)

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        model = spec.model or self.model
        if self._api == "chat":
            body = chat_request(spec, self.model, is_openai=self._is_openai, stream=True, host=self._calls.host)
            chat = ChatDecoder(self._calls, self.name, model, spec.messages)
            return self._calls.stream("answer", body, chat, timeout_s, idempotency_key, max_answer_bytes, messages=[])
        body = responses_request(spec, self.model, stream=True)
        responses = ResponsesDecoder(self._calls, self.name, model, spec.messages)
        return self._calls.stream("answer", body, responses, timeout_s, idempotency_key, max_answer_bytes)

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        model = model or self.model
        if not texts:
            return Embeddings(vectors=np.empty((0, 0), np.float32), provider=self.name, model=model)
        body = {"model": model, "input": list(texts), "encoding_format": "base64"}
        data, request_id = await self._calls.whole(
            "embed", body, timeout_s, most=_MOST_VECTOR * (1 + len(texts)), input=[]
        )
        answer = self._calls.decoded(data, _Vectors, model, request_id)
        try:
            vectors = np.stack([_row(each.embedding) for each in sorted(answer.data, key=lambda each: each.index or 0)])
            if len(vectors) != len(texts) or not vectors.shape[1]:
                raise ValueError(f"{len(vectors)} vectors of {vectors.shape[1]} numbers for {len(texts)} texts")
        except ValueError as error:  # there are no vectors, their lengths differ, or the base64 is invalid
            raise self._calls.no_answer(data, model, request_id, str(error)) from None
        told = answer.usage if isinstance(answer.usage, dict) else {}
        return Embeddings(
            vectors=vectors,
            usage=usage_of(told.get("prompt_tokens"), 0, total=told.get("total_tokens")),
            provider=self.name,
            model=answer.model or model,
            request_id=request_id,
        )

    async def close(self) -> None:
        await self._calls.close()


def _chat_methods(client: Any) -> dict[str, Callable[..., Any]]:
    return _methods(client, client.chat.completions)


def _responses_methods(client: Any) -> dict[str, Callable[..., Any]]:
    return _methods(client, client.responses)


def _methods(client: Any, resource: Any) -> dict[str, Callable[..., Any]]:
    return {
        "answer": resource.with_streaming_response.create,
        "embed": client.embeddings.with_streaming_response.create,
    }


class _Vector(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    model: str | None = ""
    usage: Any = None


def _row(embedding: str | list[float]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Decodes one vector. It is a text in base64; from servers that do not know base64, it is a list of numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    return np.array(embedding, np.float32)
