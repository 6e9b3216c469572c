"""Calls through the vendors' libraries, which are alike: one attempt within a time limit, answers whole or as events,
and Sabot's errors.

The libraries provide addresses, authentication and connections. Sabot encodes the JSON of requests and decodes that
of answers.
"""

import asyncio
import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from itertools import count
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from sabot.base.config import checked_text
from sabot.base.redaction import keep_secret, redacted_url, scrubbed
from sabot.base.surrogates import CutPairs, whole_json, whole_text
from sabot.base.threads import close_with_loop
from sabot.clock import SYSTEM_CLOCK
from sabot.engine.calls.errors import (
    AnswerTooLarge,
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    MalformedAnswer,
    ModelError,
    ModelTimeout,
    ModelUnavailable,
    ModelUnreachable,
    RateLimited,
    RequestRefused,
)
from sabot.engine.calls.messages import ChatMessage, given_arguments
from sabot.engine.calls.model_requests import RequestSpec
from sabot.engine.calls.usage import Usage, counted_usage
from sabot.errors import UNREADABLE, UserError
from sabot.llm.judges import refuse_beside_engine
from sabot.llm.results import Completion, FinishReason, Piece, in_pieces

T = TypeVar("T")

_log = logging.getLogger("sabot.llm")

_DEFAULT_TIMEOUT_S = 600.0  # the default of the vendors' libraries
_DRAIN_S = 1.0  # for the rest of a response after the last piece
_MOST_TEXT = 500  # characters of an answer or a message that an error quotes
_LONGEST_REASON = 100  # characters of a finish reason
_LONGEST_WAIT_S = 86400.0
_MOST_TOKENS = 1_000_000_000  # of one request; a higher count, a thousand times what models read, is not believed
_TOO_LONG = re.compile(
    r"context.?length|context window|prompt is too long|input is too long|too many tokens", re.IGNORECASE
)
_FILTERED = re.compile(r"content.?(filter|policy|management)|responsible.?ai", re.IGNORECASE)
_WRONG_KEY = "check api_key=, or the key in the environment, and that it may use this model"
_NO_PARAMETER = re.compile(r"temperature|top_p", re.IGNORECASE)
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"})
_NO_CREDIT = re.compile(r"insufficient.?quota|credit balance|billing", re.IGNORECASE)
# Class names of httpx's errors, because the package may be httpx or httpx2.
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
_STREAM_OPTIONS = "stream_options"  # by which a server of OpenAI's chat completions is asked for the usage
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # with which a line of a stream of events begins
_STATUS = {  # the HTTP status of errors that come within a stream, after a 200
    "authentication_error": 401,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "tokens": 429,
}
_NOT_WHOLE = ("length", "content_filter")
_REASONS: dict[str, FinishReason] = {  # of all vendors, because proxies pass on the words of those behind them
    "blocklist": "content_filter",
    "complete": "stop",
    "completed": "stop",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "end_turn": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "error_toxic": "content_filter",
    "function_call": "tool_calls",
    "guardrail_intervened": "content_filter",
    "image_safety": "content_filter",
    "length": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "pause_turn": "pause_turn",
    "prohibited_content": "content_filter",
    "recitation": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
    "spii": "content_filter",
    "stop": "stop",
    "stop_sequence": "stop",
    "tool_call": "tool_calls",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
}
# reasons that are errors of the server
_FAILED = {"abort", "error", "insufficient_system_resource", "network_error", "timeout"}


class AnswerDecoder(ABC):
    """An interface: a decoder of one answer. It converts each event of a stream into pieces of the answer, and at the
    end returns the whole answer as a Completion.
    """

    is_over: bool
    """True if no further event is needed."""

    @abstractmethod
    def feed(self, data: bytes, request_id: str) -> Iterable[Piece]:
        """Returns the pieces that an event contains. Raises ModelError."""

    @abstractmethod
    def end(self, request_id: str) -> Completion | None:
        """Returns the whole answer as a Completion, or None if it is not complete yet."""

    @abstractmethod
    def whole(self, data: bytes, request_id: str) -> Completion:
        """Decodes an answer that is not a stream, and returns it as a Completion. Raises ModelError."""


class _SdkClient(NamedTuple):
    client: Any
    methods: dict[str, Callable[..., Any]]


class SdkCalls:
    """The requests of one provider, which are made with the library (SDK) of its vendor. A connection can be used in
    one event loop only. So a client of the library is created for each event loop, for example for several calls of
    `asyncio.run`. If the user has given a client, only that is used.

    - `provider`: the vendor's name. `sdk`: the module of its library. `vendor`: the vendor's name in the library's
      classes, such as "OpenAI" in `AsyncOpenAI`.
    - `methods`: a function that gets a client and returns a dict of its methods. The keys are the names that `whole`
      and `stream` accept as `method`.
    - `client`: the user's client, which `close` does not close, or None. Without it, clients are created with `api_key`
      and `base_url`.

    Raises UserError if there is no key; if `client` is given together with `api_key` or `base_url`; and if the base URL
    is not the address of an HTTP server, or contains a user or password.
    """

    def __init__(
        self,
        provider: str,
        sdk: ModuleType,
        vendor: str,
        methods: Callable[[Any], dict[str, Callable[..., Any]]],
        *,
        client: Any,
        api_key: str | None,
        base_url: str | None,
    ) -> None:
        self._provider = provider
        self._sdk: Any = sdk
        self._base_error: type[Exception] = getattr(sdk, f"{vendor}Error")
        self._methods = methods
        self._owned = client is None
        if client is None:
            key = api_key_of(api_key, vendor.upper(), f"{vendor}Provider", base_url)
            self._make: Callable[[], Any] = partial(getattr(sdk, f"Async{vendor}"), api_key=key, base_url=base_url)
        elif base_url is not None or api_key is not None:
            raise UserError(f"{vendor}Provider: a client has its own address and key", hint="give client= alone")
        else:
            self._make = lambda: client
        self._closed = self._logged_whole = self._refuses_stream_options = False
        self._clients: dict[asyncio.AbstractEventLoop, _SdkClient] = {}
        # The first client is made here and not in a call, because the libraries import parts of themselves then, which is slow.
        self._unused: _SdkClient | None = self._new()
        made = self._unused.client
        self.host = str(made.base_url.host)
        self.base_url = redacted_url(str(made.base_url))
        if self._owned and (made.base_url.scheme not in ("http", "https") or not self.host):
            raise UserError(
                f"{provider}: base_url={self.base_url!r} is not the address of a server",
                hint='base_url="http://localhost:11434/v1"',
            )
        if self._owned and made.base_url.userinfo:
            raise UserError(
                f"{provider}: base_url={self.base_url} has a user or password, which the vendor's library would log",
                hint="give api_key=, or a client= with another authentication",
            )
        if isinstance(made.api_key, str):
            keep_secret(made.api_key)

    def _new(self) -> "_SdkClient":
        client = self._make().with_options(max_retries=0)
        return _SdkClient(client, self._methods(client))

    def _client(self, model: str) -> "_SdkClient":
        """Returns the client of the running loop. Raises UserError after `close`, and if this model is asked by code whose
        calls are judged, and not by an engine.
        """
        refuse_beside_engine(model)
        if self._closed:
            raise UserError(f"{self._provider}: the provider is closed")
        loop = asyncio.get_running_loop()
        found = self._clients.get(loop)
        if found is None:
            found, self._unused = self._unused or self._new(), None
            self._clients = {each: client for each, client in self._clients.items() if not each.is_closed()}
            self._clients[loop] = found
            if self._owned:
                close_with_loop(found.client.close)
        return found

    async def close(self) -> None:
        """Closes the connections of the running event loop, except those of a client that the user has given. The
        connections of other event loops are closed when these loops are closed. Later requests raise UserError. A
        repeated `close` does nothing.
        """
        if not self._closed:
            self._closed = True
            mine = self._clients.pop(asyncio.get_running_loop(), self._unused)
            if self._owned and mine is not None:
                await mine.client.close()

    async def whole(
        self,
        method: str,
        body: dict[str, Any],
        timeout_s: float | None,
        key: str = "",
        most: int | None = None,
        **needed: Any,
    ) -> tuple[bytes, str]:
        """Makes a request, and returns the body of the response and the vendor's request id. Raises ModelError.

        - `method`: a key of the dict that `methods` returns. `body`: the JSON of the request.
        - `timeout_s`: the time limit in seconds, or None for the library's default. `key`: the idempotency key, or "".
        - `most`: the most bytes of the response; AnswerTooLarge is raised for a longer one. None for no limit.
        - `needed`: arguments without which the library refuses the call. Their values are not sent, because `body`
          replaces them.
        """
        manager = self._client(body["model"]).methods[method](**self._arguments(body, timeout_s, key, needed))
        return await self._in_time(self._read(manager, body["model"], most), body["model"], "", timeout_s)

    async def _read(self, manager: Any, model: str, most: int | None) -> tuple[bytes, str]:
        async with manager as response:
            request_id = _request_id(response.headers)
            read: list[bytes] = []
            size = 0
            async with aclosing(response.iter_bytes()) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    self._check_size(size, most, model, request_id)
                    read.append(chunk)
            return b"".join(read), request_id

    def _check_size(self, size: int, most: int | None, model: str, request_id: str) -> None:
        if most is not None and size > most:
            raise AnswerTooLarge(
                f"the answer has more than {most:,} bytes",
                provider=self._provider,
                model=model,
                request_id=request_id,
                hint="give the request max_tokens=, or the engine a larger max_answer_bytes=",
            )

    async def stream(
        self,
        method: str,
        body: dict[str, Any],
        decoder: AnswerDecoder,
        timeout_s: float | None,
        key: str = "",
        most: int | None = None,
        **needed: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Makes a request, and yields the pieces of its answer as `Provider.stream` does. The parameters are those of
        `whole`, and the `decoder` of the answer. If the server does not stream but sends the whole answer at once, this
        answer is split into pieces. The request is not repeated in that case, because the vendor would charge for it
        twice.
        """
        model, request_id, pairs = body["model"], "", CutPairs()
        async with aclosing(self._events(method, body, timeout_s, key, most, needed)) as events:
            async for data, request_id, is_event in events:
                if not is_event:
                    self._log_whole()
                    async for piece in in_pieces(decoder.whole(data, request_id)):
                        yield piece
                    return
                for piece in decoder.feed(pairs.join(data), request_id):
                    yield piece
                if decoder.is_over:
                    break
            for data in pairs.rest():
                for piece in decoder.feed(data, request_id):
                    yield piece
            completion = decoder.end(request_id)
            if completion is None:
                where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
                raise ModelUnavailable("the answer broke off", **where)
            for call in completion.whole_calls:  # not before the end is known: it may say that the answer was cut off
                yield Piece(tool_call=call)
            yield Piece(completion=completion)
            # only a connection whose response was read to the end can be reused
            with suppress(TimeoutError, ModelError):
                async with asyncio.timeout(_DRAIN_S):
                    async for _ in events:
                        pass

    def _log_whole(self) -> None:
        """Logs, once, that an answer came whole although a stream was asked for."""
        if not self._logged_whole:
            self._logged_whole = True
            _log.warning("%s at %s does not stream: each answer comes as a whole", self._provider, self.base_url)

    async def _events(
        self,
        method: str,
        body: dict[str, Any],
        timeout_s: float | None,
        key: str,
        most: int | None,
        needed: dict[str, Any],
    ) -> AsyncGenerator[tuple[bytes, str, bool], None]:
        """Yields the data of each event, the request id, and True. If the answer is not a stream of events, it yields
        the whole body, the request id, and False.
        """
        model, request_id = body["model"], ""
        if self._refuses_stream_options:
            body.pop(_STREAM_OPTIONS, None)
        while True:
            manager = self._client(body["model"]).methods[method](
                **self._arguments(body, timeout_s, key, needed), stream=True
            )
            try:
                response = await self._in_time(manager.__aenter__(), model, request_id, timeout_s)
                break
            except RequestRefused as error:  # nothing was charged, so it may be asked again without them
                if _STREAM_OPTIONS not in body or _STREAM_OPTIONS not in error.message:
                    raise
            if not self._refuses_stream_options:
                self._refuses_stream_options = True
                said = "%s at %s refuses stream_options: it is asked without them, and may report no usage"
                _log.warning(said, self._provider, self.base_url)
            del body[_STREAM_OPTIONS]
        try:
            request_id = _request_id(response.headers)
            async with aclosing(response.iter_bytes()) as chunks:
                rest: list[bytes] = []  # the chunks of a line whose end has not come yet
                size, is_stream = 0, True
                while (chunk := await self._in_time(anext(chunks, None), model, request_id, timeout_s)) is not None:
                    size += len(chunk)
                    self._check_size(size, most, model, request_id)
                    rest.append(chunk)
                    if size - len(chunk) < len(_BYTE_ORDER_MARK):  # a mark may be cut between the first chunks
                        is_stream = _begins_stream(b"".join(rest))
                    if b"\n" not in chunk or not is_stream:
                        continue
                    *lines, last = b"".join(rest).split(b"\n")
                    rest = [last]
                    for line in lines:
                        if line and (data := _data_in(line)):
                            yield data, request_id, True
                last = b"".join(rest)
                if not is_stream:
                    yield last, request_id, False
                elif _is_whole(data := _data_in(last)):  # some servers end their last event without an empty line
                    yield data, request_id, True
        finally:
            await manager.__aexit__(None, None, None)

    def _arguments(
        self, body: dict[str, Any], timeout_s: float | None, key: str, needed: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the arguments for the method of the vendor's library. The whole request is passed as `extra_body`. So
        parameters that the installed version of the library does not know are sent too, and the library spends no time
        on checking long conversations.
        """
        timeout = _DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        headers = {"Idempotency-Key": quote(key, safe=" !#$&'()*+,/:;=?@[]")} if key else None
        return {**needed, "model": body["model"], "extra_body": body, "extra_headers": headers, "timeout": timeout}

    async def _in_time(self, work: Awaitable[T], model: str, request_id: str, timeout_s: float | None) -> T:
        """Waits for the work, and returns its result. Raises ModelTimeout after `timeout_s` seconds, and a ModelError
        in place of an error of the vendor's library. The library's error is not kept as the cause, because its request
        contains the key.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError:
            failed: ModelError = self._timeout(timeout_s, model, request_id)
        except Exception as error:
            ours = self._failed(error, model, request_id, timeout_s)
            if ours is None:
                raise
            failed = ours
        raise failed

    def _timeout(self, timeout_s: float | None, model: str, request_id: str, *, sent: bool = True) -> ModelTimeout:
        within = _DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        message = f"no answer in {within:g} s"
        return ModelTimeout(message, provider=self._provider, model=model, request_id=request_id, sent=sent)

    def _failed(self, error: Exception, model: str, request_id: str, timeout_s: float | None) -> ModelError | None:
        """Returns the ModelError for an error of the vendor, its library or the connection, or None for any other
        error.
        """
        sdk, cause = self._sdk, error.__cause__ or error
        sent = type(cause).__name__ not in _NOT_SENT
        if isinstance(error, sdk.APIStatusError):
            response: Any = error.response
            request_id = _request_id(response.headers) or request_id
            made = self.error_of(error.body, model, request_id, error.status_code, response.headers)
            made.may_repeat = _should_repeat(response.headers) is not False
            return made
        if isinstance(error, sdk.APITimeoutError) or type(error).__name__.endswith("Timeout"):
            return self._timeout(timeout_s, model, request_id, sent=sent)
        where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
        if isinstance(error, sdk.APIConnectionError) or type(error).__module__.startswith("http"):
            words = f"{type(cause).__name__} {cause}".strip()
            said = f"the connection failed: {words}"
            if sent:
                return ModelUnavailable(said, **where)
            return ModelUnreachable(said, sent=False, hint=f"is {self.base_url} the right address?", **where)
        if isinstance(error, self._base_error):
            return RequestRefused(f"{type(error).__name__}: {error}", sent=False, **where)
        return None

    def error_of(
        self,
        body: object,
        model: str,
        request_id: str,
        status: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> ModelError:
        """Returns the error that a vendor's answer describes. `body`: its decoded JSON. `status`: the HTTP status, or
        0 if the error came within a stream that began with a 200.
        """
        told = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
        told = told if isinstance(told, Mapping) else {"message": told}
        kinds = [str(told[name]) for name in ("type", "code") if told.get(name)]
        words = str(told.get("message") or _detail_of(told.get("detail")) or "it gives no reason")[:_MOST_TEXT]
        sent = not status or status >= 500
        text = " ".join((*kinds, words))
        if not status:
            ours = 400 if _TOO_LONG.search(text) or _FILTERED.search(text) else 500
            status = next(filter(None, map(_status_of, reversed(kinds))), ours)
        where: dict[str, Any] = {
            "provider": self._provider,
            "model": model,
            "request_id": request_id,
            "status": status,
            "sent": sent,
        }
        said = f"{', '.join(dict.fromkeys([*kinds, str(status)]))}: {words}"
        wait = _retry_after_s(headers or {})
        if status in (401, 403):  # the vendor's message is left out, because it may contain parts of the key
            return AuthenticationFailed(
                f"the key is not accepted ({', '.join([*kinds, str(status)])})", hint=_WRONG_KEY, **where
            )
        if status == 429:
            if _NO_CREDIT.search(text):
                return RequestRefused(said, hint="the account has no credit left", **where)
            return RateLimited(said, retry_after_s=wait, **where)
        if status == 408 or status == 504:
            return ModelTimeout(said, **where)
        if status == 409 or status >= 500:
            return ModelUnavailable(said, retry_after_s=wait, **where)
        if _TOO_LONG.search(text):
            return ContextLengthExceeded(said, hint="shorten the conversation, or max_tokens", **where)
        if _FILTERED.search(text):
            return ContentFiltered(said, **where)
        if _should_repeat(headers or {}):
            return ModelUnavailable(said, retry_after_s=wait, **where)
        hint = f"are the model's name and the address {self.base_url} right?" if status == 404 else ""
        if found := _NO_PARAMETER.search(text):
            hint = f"if the model has no such parameter, give {found[0].lower()}=None"
        return RequestRefused(said, hint=hint, **where)

    def check_error(self, told: object, model: str, request_id: str) -> None:
        """Raises the error that a vendor's answer with a status 200 contains, if it does. `told`: the value of its
        field "error"; servers also send null, and an object with empty fields, where there is none.
        """
        if any(told.values()) if isinstance(told, dict) else told:
            raise self.error_of(told, model, request_id)

    def reason(self, word: str, model: str, request_id: str, before: str | None = None) -> str:
        """Returns the reason why an answer has ended: one of `FinishReason` for the vendor's `word`, or the word itself
        if it is unknown. `before`: the reason that an earlier event of the stream gave. If that is a cut or a filter, it
        stays: some proxies end each stream with "stop". Raises ModelUnavailable if the word says that the server has
        failed.
        """
        if word.lower() in _FAILED:
            where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
            raise ModelUnavailable(f"the server has ended the answer with {word!r}", **where)
        return before if before in _NOT_WHOLE else _REASONS.get(word.lower(), word[:_LONGEST_REASON])

    def decoded(self, data: bytes, kind: type[T], model: str, request_id: str) -> T:
        """Decodes JSON into the type `kind`. Raises MalformedAnswer if it does not match; if the vendor has sent an
        error in place of an answer, raises that as a ModelError. An answer that was paid is not lost for a character
        that a proxy has cut: U+FFFD stands in its place.
        """
        try:
            return msgspec.json.decode(data, type=kind)
        except UNREADABLE as error:
            words = str(error)
        with suppress(*UNREADABLE):
            return msgspec.json.decode(whole_json(data.removeprefix(_BYTE_ORDER_MARK)), type=kind)
        raise self.no_answer(data, model, request_id, words)

    def no_answer(self, data: bytes, model: str, request_id: str, words: str = "it contains no answer") -> ModelError:
        """Returns the error for a response that contains no answer. If the response describes an error of the vendor,
        that is returned, else a MalformedAnswer. `words`: the reason in the message of the MalformedAnswer.
        """
        if (told := self.error_in(data, model, request_id)) is not None:
            return told
        text = scrubbed(data[: 4 * _MOST_TEXT].decode(errors="replace")[:_MOST_TEXT])
        where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
        return MalformedAnswer(f"the answer cannot be read: {words}", text=text, **where)

    def error_in(self, data: bytes, model: str, request_id: str) -> ModelError | None:
        """Returns the error of the vendor that a response or an event describes, or None if it describes none."""
        try:
            told = msgspec.json.decode(data.removeprefix(_BYTE_ORDER_MARK))
        except UNREADABLE:
            return None
        if isinstance(told, dict) and (told.get("error") or "error" in (told.get("type"), told.get("object"))):
            return self.error_of(told.get("error") or told, model, request_id)
        return None


def api_key_of(given: str | None, variables: str, provider: str, base_url: str | None) -> str:
    """Returns the key for a vendor's API: `given`, or the value of the environment variable `{variables}_API_KEY`.

    If both are empty, the result depends on the server. `base_url` or the environment variable `{variables}_BASE_URL`
    names another server than the vendor's, which may need no key: returns "none". With neither, raises UserError.

    Also raises UserError for a key with characters that are not allowed in HTTP headers, because the library would log
    the refused header with the key.
    """
    key = given or os.environ.get(f"{variables}_API_KEY", "")
    if not key and base_url is None and not os.environ.get(f"{variables}_BASE_URL"):
        raise UserError(f"{provider}: there is no key", hint=f"give api_key=, or set {variables}_API_KEY")
    keep_secret(key)
    if not all("!" <= each <= "~" for each in key):
        raise UserError(
            f"{provider}: the key has a space, a line break or another character that no key has",
            hint=f"give api_key=text.strip(), or correct {variables}_API_KEY",
        )
    return key or "none"


def checked_model(model: str, vendor: str) -> str:
    """Returns the name of the model. Raises UserError if it is empty or not a text. `vendor`: the text with which the
    error message begins.
    """
    if not checked_text(model, f"{vendor}: model"):
        raise UserError(f"{vendor}: the name of the model is empty", hint='model="gpt-4o-mini", as the vendor calls it')
    return model


def merged(body: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the request `body` with the user's `options` added. An option replaces the field of the same name; if
    both are dicts, they are merged. Fields whose value is None are removed.
    """
    for name, value in options.items():
        ours = body.get(name)
        body[name] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return {name: value for name, value in body.items() if value is not None}


def is_strict(schema: Any) -> bool:
    """Returns True if a vendor can enforce the schema: each object in it requires all of its properties and accepts
    no others, and its texts have no format that OpenAI refuses to enforce.
    """
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if isinstance(form := schema.get("format"), str) and form not in _FORMATS:
        return False
    if schema.get("type") == "object" or "properties" in schema:
        names = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(names):
            return False
    inner = [value for key, value in schema.items() if key not in ("properties", "$defs", "enum", "const", "default")]
    return is_strict(inner) and all(is_strict(list(schema.get(each, {}).values())) for each in ("properties", "$defs"))


def has_only(told: Mapping[str, Any], known: Collection[str] | None) -> bool:
    """Returns True if no other fields than the `known` ones have a value. `known`: None if nothing of it is known."""
    return known is not None and all(name in known or value in (None, "", [], {}) for name, value in told.items())


def usage_of(
    read: Any, written: Any, *, total: Any = None, cached: Any = 0, cache_write: Any = 0, reasoning: Any = 0
) -> Usage | None:
    """Returns the usage of a request, which is never less than was told. The arguments are counts as they came.

    - Parts that are more than their whole were counted beside it, and are added: `cached` and `cache_write` to `read`,
      `reasoning` to `written` (`counted_usage`).
    - What the `total` has beyond input and output is added to the output, whose tokens cost most.
    - `read` or `written` may be None (not told) if the `total` says how much it is.
    - A part or a total that is no count is ignored.

    Returns None if input and output are not known, or are numbers that no request can have.
    """
    if not all(each is None or _is_count(each) for each in (read, written)):
        return None
    total, *parts = (each if _is_count(each) else 0 for each in (total, cached, cache_write, reasoning))
    if read is None or written is None:
        if not total:
            return None
        read = max(total - written, 0) if read is None and written is not None else read or 0
        written = written or 0
    usage = counted_usage(Usage(read, written, *parts))
    if usage is None or usage.total_tokens >= total:
        return usage
    return msgspec.structs.replace(usage, output_tokens=total - usage.input_tokens)


def most_used(before: Usage | None, later: Usage | None) -> Usage | None:
    """Returns the usage of a stream that tells it several times, such as with each event: the greatest of each count."""
    if before is None or later is None:
        return before or later
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(later), strict=True)
    return Usage(*(max(pair) for pair in pairs))


def greatest(*told: Any) -> int:
    """Returns the greatest of these values that is a count of tokens; 0 if none is. Vendors tell one count under several
    names.
    """
    return max((each for each in told if _is_count(each)), default=0)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


def distinct_ids(ids: Sequence[str], messages: Iterable[ChatMessage]) -> list[str]:
    """Returns the ids of the tool calls of one answer, with a new id for each that is empty, or that another call of
    the answer or of the conversation `messages` has. A result names its call by the id, and vendors refuse equal ones.
    """
    known = {call.id for message in messages for call in message.tool_calls} if ids else set()
    others, found, numbers = known.union(ids), list[str](), count()
    for each in ids:
        if not each or each in known:
            each = next(new for number in numbers if (new := f"call_{number}") not in others)
        known.add(each)
        found.append(each)
    return found


def called_name(name: str, spec: RequestSpec) -> str:
    """Returns the name of a called tool as the request `spec` sends it back to a vendor. Vendors refuse a conversation
    with names that tools cannot have, also if a model has made them up, or was cut off before them. The names of the
    tools of the request are for the vendor to judge.
    """
    if _NAME.fullmatch(name) or any(each.name == name for each in spec.tools):
        return name
    return _NOT_IN_NAME.sub("_", name)[:64] or "unnamed"


def arguments_of(text: str) -> str:
    """Returns the arguments of a tool call as they are sent back to a vendor: as a JSON object, because vendors and
    the templates of models refuse a conversation with anything else. Text that is not a JSON object becomes
    {"unreadable": text}; the model has got an error for it.
    """
    found, text = None, given_arguments(text)
    with suppress(*UNREADABLE):
        found = msgspec.json.decode(text)
    return text if isinstance(found, dict) else msgspec.json.encode({"unreadable": whole_text(text)}).decode()


def _status_of(kind: str) -> int:
    """Returns the HTTP status of an error by its type or code, or 0 if that names none."""
    return _STATUS.get(kind, 0) or (int(kind) if kind.isdecimal() and 400 <= int(kind[:4]) <= 599 else 0)


def _begins_stream(chunk: bytes) -> bool:
    """Returns True if a response that begins with these bytes can be a stream of server-sent events, that is, if they
    are the beginning of a line such as "data:" or ":".
    """
    text = chunk.removeprefix(_BYTE_ORDER_MARK).lstrip()
    return _BYTE_ORDER_MARK.startswith(text) or any(text.startswith(each[: len(text)]) for each in _FIELDS)


def _data_in(line: bytes) -> bytes:
    """Returns the data of a line of a stream of events, or b"" if it has none."""
    line = line.removeprefix(_BYTE_ORDER_MARK)
    return line[5:].strip() if line.startswith(b"data:") else b""


def _is_whole(data: bytes) -> bool:
    """Returns True if the data of an event was not cut off."""
    try:
        return data == b"[DONE]" or bool(msgspec.json.decode(data, type=msgspec.Raw))
    except UNREADABLE:
        return False


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("x-request-id") or headers.get("request-id") or ""


def _detail_of(told: object) -> str:
    """Returns the words of an error as FastAPI sends it: a text, or a list of fields, each with what is wrong with it."""
    if not isinstance(told, list):
        return str(told or "")
    fields = [each for each in told if isinstance(each, Mapping)]
    return "; ".join(f"{'.'.join(map(str, each.get('loc') or ()))}: {each.get('msg')}" for each in fields)


def _should_repeat(headers: Mapping[str, str]) -> bool | None:
    """Returns whether the vendor wants the request to be repeated (`x-should-retry`), or None if it does not say so."""
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Returns the seconds for which the server asks the client to wait, at most one day. Uses the header
    `retry-after-ms` if it has a number; otherwise `Retry-After`, which has a number of seconds or a date. Returns 0
    if neither is there and valid.
    """
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            wait = float(headers[name]) * unit_s
            if math.isfinite(wait):
                return min(max(wait, 0.0), _LONGEST_WAIT_S)
    from email.utils import parsedate_to_datetime  # imported late: it takes as long as this whole package

    try:
        wait = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - SYSTEM_CLOCK.time()
    except (TypeError, ValueError):
        return 0.0
    return min(max(wait, 0.0), _LONGEST_WAIT_S)
