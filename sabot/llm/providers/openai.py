"""OpenAI, and the many servers that speak its API: Ollama, vLLM, proxies. Only this module imports openai."""

import base64
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np

from sabot.errors import MissingExtra, UserError, short_repr
from sabot.llm.providers.openai_chat import ChatGathering, chat_request
from sabot.llm.providers.openai_responses import RESPONSES_LACK, ResponsesGathering, responses_request
from sabot.llm.providers.sdk import SdkCalls, api_key_of, checked_model, usage_of
from sabot.llm.results import Completion, Embeddings, Piece
from sabot.llm.spec import RequestSpec

_MOST_VECTOR = 1 << 20  # bytes of a vector as JSON
_HOSTS = ("openai.com", "openai.azure.com")


class OpenAIProvider:
    """Models of OpenAI, or of a server that speaks its API: `OpenAIProvider(model="llama3", base_url="http://localhost:11434/v1")`.

    model: of requests that name none. base_url: OPENAI_BASE_URL or OpenAI's own, if not given. api_key: OPENAI_API_KEY, if not given; a
    server of one's own may need none. api: "chat" (completions, which all servers speak) or "responses". name: of the vendor, in errors and
    prices. client: an `openai.AsyncOpenAI` of one's own, for Azure, a proxy, or other limits of connections (1,000, if not given); `close`
    leaves it open. Raises MissingExtra, and UserError where there is no key.
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
        if client is not None and (base_url is not None or api_key is not None):
            raise UserError("OpenAIProvider: a client has its own address and key", hint="give client= alone")
        self.name = name
        self.model = checked_model(model, "OpenAIProvider")
        self.lacks = RESPONSES_LACK if api == "responses" else frozenset[str]()
        make = partial(_same, client)
        if client is None:
            key = api_key_of(api_key, "OPENAI", "OpenAIProvider", base_url)
            make = partial(openai.AsyncOpenAI, api_key=key, base_url=base_url)
        methods = _chat_methods if api == "chat" else _responses_methods
        self._calls = SdkCalls(name, openai, openai.OpenAIError, make, methods, owned=client is None)
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
        """The whole answer."""
        model = spec.model or self.model
        if self._api == "chat":
            body = chat_request(spec, self.model, is_openai=self._is_openai, stream=False)
            data, request_id = await self._calls.whole(
                "answer", body, timeout_s, idempotency_key, max_answer_bytes, messages=[]
            )
            return ChatGathering(self._calls, self.name, model).whole(data, request_id)
        body = responses_request(spec, self.model, stream=False)
        data, request_id = await self._calls.whole("answer", body, timeout_s, idempotency_key, max_answer_bytes)
        return ResponsesGathering(self._calls, self.name, model).whole(data, request_id)

    def stream(
        self,
        spec: RequestSpec,
        *,
        timeout_s: float | None = None,
        idempotency_key: str = "",
        max_answer_bytes: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The answer in pieces as they come."""
        model = spec.model or self.model
        if self._api == "chat":
            body = chat_request(spec, self.model, is_openai=self._is_openai, stream=True)
            chat = ChatGathering(self._calls, self.name, model)
            return self._calls.stream("answer", body, chat, timeout_s, idempotency_key, max_answer_bytes, messages=[])
        body = responses_request(spec, self.model, stream=True)
        responses = ResponsesGathering(self._calls, self.name, model)
        return self._calls.stream("answer", body, responses, timeout_s, idempotency_key, max_answer_bytes)

    async def embed(self, texts: Sequence[str], *, model: str = "", timeout_s: float | None = None) -> Embeddings:
        """A vector for each text."""
        model = model or self.model
        if not texts:
            return Embeddings(vectors=np.empty((0, 0), np.float32), provider=self.name, model=model)
        body = {"model": model, "input": list(texts), "encoding_format": "base64"}
        data, request_id = await self._calls.whole(
            "embed", body, timeout_s, most=_MOST_VECTOR * (1 + len(texts)), input=[]
        )
        answer = self._calls.decoded(data, _Vectors, model, request_id)
        try:
            vectors = np.stack([_row(each.embedding) for each in sorted(answer.data, key=lambda each: each.index)])
            if len(vectors) != len(texts):
                raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
        except ValueError as error:  # no vectors, of different lengths, or no base64
            raise self._calls.no_answer(data, model, request_id, str(error)) from None
        used = answer.usage.get("prompt_tokens") if isinstance(answer.usage, dict) else None
        return Embeddings(
            vectors=vectors,
            usage=usage_of(used, 0),
            provider=self.name,
            model=answer.model or model,
            request_id=request_id,
        )

    async def close(self) -> None:
        """Ends its connections."""
        await self._calls.close()


def _same(client: Any) -> Any:
    return client


def _chat_methods(client: Any) -> dict[str, Any]:
    return _methods(client, client.chat.completions)


def _responses_methods(client: Any) -> dict[str, Any]:
    return _methods(client, client.responses)


def _methods(client: Any, resource: Any) -> dict[str, Any]:
    return {
        "answer": resource.with_streaming_response.create,
        "embed": client.embeddings.with_streaming_response.create,
    }


class _Vector(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    model: str = ""
    usage: Any = None


def _row(embedding: str | list[float]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Servers that do not know base64 give numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    return np.array(embedding, np.float32)
