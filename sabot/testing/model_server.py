"""A server in place of models, for tests: real HTTP, the APIs of both vendors, answers by a script, and faults by a
plan.
"""

import asyncio
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, get_args

import msgspec

from sabot.base.config import Duration, parse_seconds
from sabot.engine.calls.errors import (
    AuthenticationFailed,
    MalformedAnswer,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    RateLimited,
    RequestRefused,
)
from sabot.engine.calls.messages import ToolCall, assistant
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.usage import Usage
from sabot.errors import SabotError, UserError
from sabot.llm.providers.scripted import Answers, Raw, Script, ScriptedAnswer, vectors_of
from sabot.llm.results import Completion
from sabot.llm.token_counts import count_tokens, tokens_of
from sabot.testing.http_server import HttpExchange, HttpServer
from sabot.testing.model_apis import ChatApi, MessagesApi, ModelApi, ResponsesApi, status_of
from sabot.testing.witness_server import FaultPlan

ModelFault = Literal[
    "rate_limit", "error", "overloaded", "hang", "slow", "truncate", "bad_arguments", "drop_before", "drop_after"
]

_APIS: dict[str, tuple[str, ModelApi]] = {
    "/v1/chat/completions": ("chat", ChatApi()),
    "/v1/responses": ("responses", ResponsesApi()),
    "/v1/messages": ("messages", MessagesApi()),
}
_EMBEDDINGS = "/v1/embeddings"
_SECRET_HEADERS = ("authorization", "x-api-key")
_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A request that the server has received.

    `number`: counts from 1. `api`: "chat", "responses", "messages" or "embeddings". `spec`: the request, or None for
    embeddings. `texts`: the texts for embeddings. `stream`: True if the answer was to be streamed. `headers`: the
    headers without keys, their names in lower case. `body`: the decoded JSON. `fault`: the name of the fault that the
    request got, or "".
    """

    number: int
    api: str
    spec: RequestSpec | None
    texts: tuple[str, ...]
    stream: bool
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    fault: str

    @property
    def text(self) -> str:
        """The text of the last message."""
        return self.spec.messages[-1].text if self.spec is not None else ""


class FakeModelServer:
    """A server that answers like the vendors of models, by a script, for tests of programs and of their HTTP.

        with FakeModelServer(["Paris", RateLimited("slow down", retry_after_s=1.0), "Rome"]) as server:
            provider = OpenAIProvider(model="any", base_url=server.openai_url, api_key="any")

    It offers OpenAI's chat completions, responses and embeddings below `openai_url`, and Anthropic's messages below
    `anthropic_url`, streamed or not. It runs in a thread of its own, so it serves sync and async programs, and other
    processes. It accepts any model's name.

    `answers`: the answers as for `ScriptedProvider`: one for all requests, or a list with one for each request. An
    answer is a text, a message, a `Completion`, an error of `sabot.llm`, a tuple of texts, or a function of the
    `RequestSpec`. An error is sent in the vendor's form; a ModelTimeout never answers, and a MalformedAnswer is sent
    as invalid JSON. A dict is sent as the JSON of a whole answer, bytes as a body, and a list with dicts or bytes as
    the events of a stream: a dict as `data:` with its JSON (and `event:` with its "type"), a text as `data:`, bytes as
    they are. `keys`: the accepted keys, or None for any; requests with other keys are refused with status 401.
    `dimensions`: the length of the vectors, which are equal for equal texts.

    `faults`: shares of the requests that get a fault, such as {"rate_limit": 0.1}. `seed`: decides which requests
    these are, by their content and by how often it has been asked. `seconds`: the time of Retry-After, and the wait
    before each piece of a slow answer.

        rate_limit     429 with Retry-After           overloaded     503 with Retry-After (529 for Anthropic)
        error          500                            hang           no answer until the caller leaves or the server stops
        slow           each piece `seconds` later     truncate       the connection ends in the middle of the answer
        bad_arguments  the arguments of tool calls end half-way, so that they are not JSON
        drop_before    the connection is reset before an answer is made
        drop_after     the connection is reset after the answer was made, so that its tokens count

    `requests`: all requests received. `tokens`: the usage of the answers made. `in_flight` and `most_in_flight`: the
    number of requests now, and the greatest number so far. `abandoned`: the number of requests whose caller left
    before the end. Any thread may read them. Raises UserError for unknown faults.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        keys: tuple[str, ...] | None = None,
        dimensions: int = 8,
        faults: Mapping[ModelFault, float] | None = None,
        seed: int = 0,
        seconds: Duration = 0.05,
    ) -> None:
        shares = {str(name): share for name, share in (faults or {}).items()}
        if shares.keys() - set(get_args(ModelFault)) or sum(shares.values()) > 1 or min(shares.values(), default=0) < 0:
            known = ", ".join(get_args(ModelFault))
            raise UserError(f"faults of a model server: {shares}", hint=f"shares of {known}, in total at most 1")
        self.requests: list[ModelRequest] = []
        self.tokens = Usage()
        self.in_flight = self.most_in_flight = self.abandoned = 0
        self._script = Script(answers)
        self._keys = keys
        self._dimensions = dimensions
        self._faults = FaultPlan(shares, seed, parse_seconds(seconds, name="seconds"))
        self._script_errors: list[Exception] = []
        self._changed = threading.Condition()
        self._open = asyncio.Event()
        self._open.set()
        self._server = HttpServer(self._serve)
        self.start()

    @property
    def url(self) -> str:
        """The address, which stays the same when the server is stopped and started again."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return self._server.connections

    @property
    def openai_url(self) -> str:
        """The `base_url` for clients of OpenAI."""
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        """The `base_url` for clients of Anthropic."""
        return self.url

    def start(self) -> None:
        """Starts the server. Does nothing if it runs already."""
        self._server.start()

    def stop(self) -> None:
        """Stops the server. Callers that wait lose their connection. Does nothing if it is stopped."""
        self._server.stop()
        self._open = asyncio.Event()  # the next start has another event loop
        self._open.set()

    def __enter__(self) -> "FakeModelServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server. If no other error is raised, raises the first error of the script: one that a function of
        it raised, or the UserError that it has no further answer.
        """
        self.stop()
        if kind is None and self._script_errors:
            raise self._script_errors[0]

    def plan(self, fault: ModelFault, *, times: int = 1, seconds: Duration | None = None) -> None:
        """Gives the fault to the next `times` requests. Several plans are carried out one after another. Raises
        UserError for an unknown fault.
        """
        if fault not in get_args(ModelFault):
            raise UserError(
                f"{fault!r} is no fault of a model server", hint=f"one of {', '.join(get_args(ModelFault))}"
            )
        with self._changed:
            seconds_each = None if seconds is None else parse_seconds(seconds, name="seconds")
            self._faults.plan(fault, times=times, seconds=seconds_each)

    def hold(self) -> None:
        """Makes requests wait before they are answered, until `release`."""
        self._server.run(self._set_open(False))

    def release(self) -> None:
        """Answers requests again, those that wait because of `hold` too."""
        self._server.run(self._set_open(True))

    def wait(self, condition: Callable[[], bool], timeout: Duration = _WAIT_SECONDS) -> None:
        """Blocks until the condition is true: `server.wait(lambda: server.in_flight == 3)`. It is checked whenever
        something changes. On an event loop: `await asyncio.to_thread(server.wait, …)`. Raises TimeoutError.
        """
        timeout_s = parse_seconds(timeout, name="wait: timeout")
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(
                    f"the condition is not true after {timeout_s:g} s: {len(self.requests)} requests, {self.in_flight} in flight"
                )

    async def _set_open(self, is_open: bool) -> None:
        if is_open:
            self._open.set()
        else:
            self._open.clear()

    # -- in the server's loop ---------------------------------------------------------------------------------------------------------

    async def _serve(self, exchange: HttpExchange) -> None:
        with self._changed:
            self.in_flight += 1
            self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await self._answer(exchange)
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    async def _answer(self, exchange: HttpExchange) -> None:
        path, headers = exchange.request.path.partition("?")[0], exchange.request.headers
        name, api = _APIS.get(path, ("embeddings", _APIS["/v1/chat/completions"][1]))
        if path not in _APIS and path != _EMBEDDINGS:
            refused = RequestRefused(f"no such path: {path}; there are {', '.join([*_APIS, _EMBEDDINGS])}", status=404)
            await self._send_error(exchange, api, refused, "", is_stream=False)
            return
        try:
            body = json.loads(exchange.request.body)
            spec = api.spec(body) if path in _APIS else None
            texts = () if path in _APIS else _texts(body["input"])
            is_stream = bool(body.get("stream"))
        except (KeyError, TypeError, ValueError, AttributeError, SabotError) as error:
            refused = RequestRefused(f"the request is not one of {name}: {type(error).__name__} {error}")
            await self._send_error(exchange, api, refused, "", is_stream=False)
            return
        shown = {key: value for key, value in headers.items() if key not in _SECRET_HEADERS}
        with self._changed:
            fault, seconds = self._faults.next("", exchange.request.body.decode())
            request = ModelRequest(len(self.requests) + 1, name, spec, texts, is_stream, shown, body, fault)
            self.requests.append(request)
            self._changed.notify_all()
        await self._open.wait()
        wrong = self._planned(exchange, name, fault, seconds)
        if wrong is not None:
            await self._send_error(exchange, api, wrong, f"req-{request.number}", is_stream=is_stream)
        elif fault == "drop_before":
            exchange.reset()
        elif spec is None:
            self._embed(exchange, request)
        else:
            await self._complete(exchange, api, request, spec, seconds)

    def _planned(self, exchange: HttpExchange, name: str, fault: str, seconds: float) -> ModelError | None:
        """Returns the error that the request gets in place of an answer of the script, because of its key or of a
        fault, or None.
        """
        if self._keys is not None and _key(exchange) not in self._keys:
            return AuthenticationFailed("Incorrect API key provided")
        match fault:
            case "rate_limit":
                return RateLimited("Rate limit reached", retry_after_s=seconds)
            case "error":
                return ModelUnavailable("The server had an error while processing the request")
            case "overloaded":
                return ModelUnavailable("Overloaded", retry_after_s=seconds, status=529 if name == "messages" else 503)
            case "hang":
                return ModelTimeout("")
        return None

    def _embed(self, exchange: HttpExchange, request: ModelRequest) -> None:
        used = sum(map(count_tokens, request.texts))
        self._count_usage(Usage(input_tokens=used))
        if request.fault == "drop_after":
            exchange.reset()
            return
        vectors = vectors_of(request.texts, self._dimensions)
        is_packed = request.body.get("encoding_format") == "base64"
        rows = [b64encode(row.tobytes()).decode() if is_packed else row.tolist() for row in vectors]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        usage = {"prompt_tokens": used, "total_tokens": used}
        body = {"object": "list", "data": data, "model": request.body["model"], "usage": usage}
        exchange.answer(200, body, _ids(f"req-{request.number}"))

    async def _complete(
        self, exchange: HttpExchange, api: ModelApi, request: ModelRequest, spec: RequestSpec, seconds: float
    ) -> None:
        request_id = f"req-{request.number}"
        try:
            scripted = await self._script.answer(spec)
        except (
            Exception
        ) as error:  # an error of the user's function is sent to the caller, and raised when the server stops
            self._script_errors.append(error)
            refused = RequestRefused(f"the script of the model: {type(error).__name__}: {error}")
            await self._send_error(exchange, api, refused, request_id, is_stream=request.stream)
            return
        if isinstance(scripted.end, Exception) and not (request.stream and scripted.texts):
            await self._send_error(exchange, api, scripted.end, request_id, is_stream=request.stream)
            return
        if scripted.raw is not None:
            await self._send_raw(exchange, request, scripted.raw, seconds)
            return
        answer = _completion(scripted, spec, request_id)
        if request.fault == "bad_arguments":
            answer = _with_bad_arguments(answer)
        self._count_usage(answer.usage)
        if request.fault == "drop_after":
            exchange.reset()
        elif request.stream:
            await self._stream(exchange, api, answer, scripted, request.fault, seconds)
        else:
            body = api.whole(answer)
            if request.fault == "slow":
                await asyncio.sleep(seconds * len(scripted.texts))
            if request.fault == "truncate":
                exchange.truncate(200, body, _ids(request_id))
            else:
                exchange.answer(200, body, _ids(request_id))

    async def _stream(
        self,
        exchange: HttpExchange,
        api: ModelApi,
        answer: Completion,
        scripted: ScriptedAnswer,
        fault: str,
        seconds: float,
    ) -> None:
        texts = [text for text in scripted.texts if text]
        events = list(api.events(answer, texts))
        if fault == "truncate":
            events = events[: _first_text(api, answer, events) + (len(texts) + 1) // 2]
        elif isinstance(scripted.end, Exception):
            events = events[: _first_text(api, answer, events) + len(texts)]
            if isinstance(scripted.end, ModelError) and not isinstance(scripted.end, ModelUnavailable | ModelTimeout):
                events.append(_error_event(api, scripted.end))
        exchange.begin({"Content-Type": "text/event-stream", **_ids(answer.request_id)})
        await _write(exchange, events, seconds if fault == "slow" else 0.0)
        if isinstance(scripted.end, ModelTimeout):
            await asyncio.Event().wait()
        if fault == "truncate" or isinstance(scripted.end, ModelUnavailable):
            exchange.break_off()
        else:
            exchange.end()

    async def _send_raw(self, exchange: HttpExchange, request: ModelRequest, raw: Raw, seconds: float) -> None:
        """Sends what the script gives as it is, in the form in which a stream or a whole answer is sent."""
        if request.fault == "drop_after":
            exchange.reset()
            return
        ids = _ids(f"req-{request.number}")
        if isinstance(raw, Mapping):
            exchange.answer(200, raw, ids)
            return
        kind = "text/event-stream" if request.stream or isinstance(raw, list) else "application/json"
        exchange.begin({"Content-Type": kind, **ids})
        parts = [raw] if isinstance(raw, bytes) else [_raw_event(each) for each in raw]
        is_cut = request.fault == "truncate"
        await _write(
            exchange, parts[: len(parts) // 2] if is_cut else parts, seconds if request.fault == "slow" else 0.0
        )
        if is_cut:
            exchange.break_off()
        else:
            exchange.end()

    async def _send_error(
        self, exchange: HttpExchange, api: ModelApi, error: Exception, request_id: str, *, is_stream: bool
    ) -> None:
        if isinstance(error, ModelTimeout):
            await asyncio.Event().wait()
        if isinstance(error, MalformedAnswer):
            exchange.begin(
                {"Content-Type": "text/event-stream" if is_stream else "application/json", **_ids(request_id)}
            )
            exchange.write(f"data: {error.text or error.message}\n\n".encode())
            exchange.end()
            return
        if not isinstance(error, ModelError):
            error = ModelUnavailable(f"{type(error).__name__}: {error}")
        wait = getattr(error, "retry_after_s", 0.0)
        headers = _ids(request_id) | ({"Retry-After": f"{wait:g}"} if wait else {})
        exchange.answer(status_of(error), api.error(error), headers)

    def _count_usage(self, usage: Usage | None) -> None:
        with self._changed:
            self.tokens += usage or Usage()
            self._changed.notify_all()


async def _write(exchange: HttpExchange, parts: list[bytes], seconds: float) -> None:
    """Writes the parts of a response at once, or each after `seconds` if that is not 0."""
    if not seconds:
        exchange.write(b"".join(parts))
        return
    for number, part in enumerate(parts):
        await asyncio.sleep(seconds if number else 0)
        exchange.write(part)


def _raw_event(event: Mapping[str, Any] | str | bytes) -> bytes:
    if isinstance(event, bytes):
        return event
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    kind = f"event: {event['type']}\n" if isinstance(event.get("type"), str) else ""
    return f"{kind}data: {json.dumps(event)}\n\n".encode()


def _ids(request_id: str) -> dict[str, str]:
    """Returns the headers with the request id: one of OpenAI's name, and one of Anthropic's."""
    return {"x-request-id": request_id, "request-id": request_id}


def _texts(given: Any) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the input has other values than texts")
    return texts


def _key(exchange: HttpExchange) -> str:
    headers = exchange.request.headers
    return headers.get("x-api-key", "") or headers.get("authorization", "").removeprefix("Bearer ")


def _completion(scripted: ScriptedAnswer, spec: RequestSpec, request_id: str) -> Completion:
    """Returns the scripted answer as a Completion, with usage, model and request id."""
    whole = scripted.end
    if isinstance(whole, Exception):
        whole = Completion(message=assistant("".join(scripted.texts)))
    usage = whole.usage
    if scripted.counted:
        usage = Usage(input_tokens=tokens_of(spec.messages), output_tokens=tokens_of([whole.message]))
    return msgspec.structs.replace(whole, usage=usage, model=whole.model or spec.model, request_id=request_id)


def _with_bad_arguments(answer: Completion) -> Completion:
    calls = tuple(
        ToolCall(call.id, call.name, call.arguments[: len(call.arguments) // 2]) for call in answer.tool_calls
    )
    message = msgspec.structs.replace(answer.message, tool_calls=calls, vendor=None)
    return msgspec.structs.replace(answer, message=message)


def _first_text(api: ModelApi, answer: Completion, events: list[bytes]) -> int:
    """Returns the index of the event with the first piece of text, or of the middle event if the answer has no text."""
    without = list(api.events(answer, ()))
    if len(without) == len(events):
        return len(events) // 2
    return next(index for index, event in enumerate(events) if event != without[index])


def _error_event(api: ModelApi, error: ModelError) -> bytes:
    body = api.error(error)
    if isinstance(api, ResponsesApi):
        body = {"type": "error", "code": body["error"]["code"], "message": body["error"]["message"], "param": None}
    return _raw_event(body)
