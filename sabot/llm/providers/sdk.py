"""Calls through the vendors' own libraries, which are alike: one attempt in a bounded time, its answer whole or in events, errors as ours.

The libraries give the addresses, the authentication and the connections. The JSON that is sent is made by us, and what comes is read by us.
"""

import asyncio
import logging
import math
import os
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from sabot.clock import SYSTEM_CLOCK
from sabot.config import checked_text
from sabot.errors import UNREADABLE, UserError
from sabot.llm.errors import (
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
from sabot.llm.results import Completion, Piece, Usage
from sabot.redaction import keep_secret, redacted_url, scrubbed
from sabot.threads import close_with_loop

T = TypeVar("T")

_log = logging.getLogger("sabot.llm")

_DEFAULT_TIMEOUT_S = 600.0  # that of the vendors' libraries
_DRAIN_S = 1.0  # for the end of a connection after the end of the answer
_MOST_TEXT = 500  # characters of an answer or a message, in an error
_LONGEST_WAIT_S = 86400.0
_MOST_TOKENS = 1_000_000_000  # of one request that a vendor is believed; a thousand times what models take
_TOO_LONG = re.compile(
    r"context.?length|context window|prompt is too long|input is too long|too many tokens", re.IGNORECASE
)
_FILTERED = re.compile(r"content.?(filter|policy|management)|responsible.?ai", re.IGNORECASE)
_WRONG_KEY = "it is the argument api_key, else that of the environment; may it use this model?"
_NO_PARAMETER = re.compile(r"temperature|top_p", re.IGNORECASE)
_NO_CREDIT = re.compile(r"insufficient.?quota|credit balance|billing", re.IGNORECASE)
_NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}  # of httpx, under any of its names
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")  # of a stream of events
_STATUS = {  # of errors that come in a stream, after a 200
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


class Gathering(Protocol):
    """Makes pieces, and in the end the whole, of the events of one streamed answer."""

    is_over: bool
    """No further event is needed."""

    def feed(self, data: bytes, request_id: str) -> Iterable[Piece]:
        """The pieces that this event brings. Raises ModelError."""

    def end(self, request_id: str) -> Completion | None:
        """The whole; None: it is not all here."""

    def whole(self, data: bytes, request_id: str) -> Completion:
        """The whole, of an answer that is no stream. Raises ModelError."""


class _SdkClient(NamedTuple):
    client: Any
    methods: dict[str, Callable[..., Any]]


class SdkCalls:
    """Calls of one provider. A connection belongs to the event loop in which it was made, so each loop that asks has a client of its own,
    unless the client is the user's: programs call `asyncio.run` more than once, and tests have a loop each.

    provider: the vendor's name. sdk: its library. trouble: the class of all of its errors. make: makes a client. methods: the methods of a
    client that are called here, by our names. owned: the clients are closed with the calls.
    """

    def __init__(
        self,
        provider: str,
        sdk: ModuleType,
        trouble: type[Exception],
        make: Callable[[], Any],
        methods: Callable[[Any], dict[str, Callable[..., Any]]],
        *,
        owned: bool,
    ) -> None:
        self._provider = provider
        self._sdk: Any = sdk
        self._trouble = trouble
        self._make = make
        self._methods = methods
        self._owned = owned
        self._closed = self._says_whole = False
        self._clients: dict[asyncio.AbstractEventLoop, _SdkClient] = {}
        # The first client is made here and not in a call: libraries import themselves in parts, which takes a while.
        self._unused: _SdkClient | None = self._new()
        client = self._unused.client
        self.host = str(client.base_url.host)
        self.base_url = redacted_url(str(client.base_url))
        if owned and (client.base_url.scheme not in ("http", "https") or not self.host):
            raise UserError(
                f"{provider}: {self.base_url or 'the empty text'} is no address of a server",
                hint='base_url="http://localhost:11434/v1"',
            )
        if owned and client.base_url.userinfo:
            raise UserError(
                f"{provider}: base_url={self.base_url} with a user or password, which the vendor's library would write into logs",
                hint="give api_key=, or a client= that is authenticated otherwise",
            )
        if isinstance(client.api_key, str):
            keep_secret(client.api_key)

    def _new(self) -> "_SdkClient":
        client = self._make().with_options(max_retries=0)
        return _SdkClient(client, self._methods(client))

    def _client(self) -> "_SdkClient":
        """That of the running loop. Raises UserError after `close`."""
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
        """Ends the connections of this loop, unless the client is the user's. Those of another loop end with it."""
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
        """(the body of the answer, request id). method: our name of one of `.with_streaming_response`. body: the request. key: the
        idempotency key. most: bytes of the answer. needed: what the method does not go without, whatever it is.
        """
        manager = self._client().methods[method](**self._arguments(body, timeout_s, key, needed))
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
        gathering: Gathering,
        timeout_s: float | None,
        key: str = "",
        most: int | None = None,
        **needed: Any,
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of an answer, as `Provider.stream` promises. The rest as for `whole`. Some servers know no streams, and answer whole:
        that answer is paid, so it is read.
        """
        model, request_id = body["model"], ""
        async with aclosing(self._events(method, body, timeout_s, key, most, needed)) as events:
            async for data, request_id, is_event in events:
                if not is_event:
                    for piece in self._in_pieces(gathering.whole(data, request_id)):
                        yield piece
                    return
                for piece in gathering.feed(data, request_id):
                    yield piece
                if gathering.is_over:
                    break
            completion = gathering.end(request_id)
            if completion is None:
                where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
                raise ModelUnavailable("the answer broke off", **where)
            yield Piece(completion=completion)
            with suppress(TimeoutError, ModelError):  # a connection that was read to its end is used again
                async with asyncio.timeout(_DRAIN_S):
                    async for _ in events:
                        pass

    def _in_pieces(self, answer: Completion) -> Iterator[Piece]:
        """Of an answer that came whole, though a stream was asked for."""
        if not self._says_whole:
            self._says_whole = True
            _log.warning("%s at %s answers requests for streams whole: pieces come late", self._provider, self.base_url)
        if answer.content:
            yield Piece(answer.content)
        for call in answer.tool_calls:
            yield Piece(tool_call=call)
        yield Piece(completion=answer)

    async def _events(
        self,
        method: str,
        body: dict[str, Any],
        timeout_s: float | None,
        key: str,
        most: int | None,
        needed: dict[str, Any],
    ) -> AsyncGenerator[tuple[bytes, str, bool], None]:
        """(data of an event, request id, true); of what is no stream of events: all of it, request id, false."""
        model, request_id = body["model"], ""
        manager = self._client().methods[method](**self._arguments(body, timeout_s, key, needed), stream=True)
        response = await self._in_time(manager.__aenter__(), model, request_id, timeout_s)
        try:
            request_id = _request_id(response.headers)
            async with aclosing(response.iter_bytes()) as chunks:
                rest: list[bytes] = []  # of a line whose end is not here
                size, is_stream = 0, True
                while (chunk := await self._in_time(anext(chunks, None), model, request_id, timeout_s)) is not None:
                    size += len(chunk)
                    self._check_size(size, most, model, request_id)
                    if size == len(chunk):
                        is_stream = _begins_stream(chunk)
                    rest.append(chunk)
                    if b"\n" not in chunk or not is_stream:
                        continue
                    *lines, last = b"".join(rest).split(b"\n")
                    rest = [last]
                    for line in lines:
                        if line.startswith(b"data:"):
                            yield line[5:].strip(), request_id, True
                if not is_stream:
                    yield b"".join(rest), request_id, False
        finally:
            await manager.__aexit__(None, None, None)

    def _arguments(
        self, body: dict[str, Any], timeout_s: float | None, key: str, needed: dict[str, Any]
    ) -> dict[str, Any]:
        """All of the request goes as `extra_body`: so parameters that the installed library does not know are sent too, and long
        conversations are not walked once more.
        """
        timeout = _DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s
        headers = {"Idempotency-Key": quote(key, safe=" !#$&'()*+,/:;=?@[]")} if key else None
        return {**needed, "model": body["model"], "extra_body": body, "extra_headers": headers, "timeout": timeout}

    async def _in_time(self, work: Awaitable[T], model: str, request_id: str, timeout_s: float | None) -> T:
        """The error that is raised has no link to the library's, whose request has the key in its headers."""
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
        """None: it is neither the vendor's, nor the library's, nor the connection's."""
        sdk, cause = self._sdk, error.__cause__ or error
        sent = type(cause).__name__ not in _NOT_SENT
        if isinstance(error, sdk.APIStatusError):
            response: Any = error.response
            request_id = _request_id(response.headers) or request_id
            return self.error_of(error.body, model, request_id, error.status_code, response.headers)
        if isinstance(error, sdk.APITimeoutError) or type(error).__name__.endswith("Timeout"):
            return self._timeout(timeout_s, model, request_id, sent=sent)
        where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
        if isinstance(error, sdk.APIConnectionError) or type(error).__module__.startswith("http"):
            words = f"{type(cause).__name__} {cause}".strip()
            said = f"the connection failed: {words}"
            if sent:
                return ModelUnavailable(said, **where)
            return ModelUnreachable(said, sent=False, hint=f"is {self.base_url} the right address?", **where)
        if isinstance(error, self._trouble):
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
        """The error that a vendor tells. body: its JSON. status: 0 where it came in a stream, whose beginning was a 200."""
        told = body.get("error", body) if isinstance(body, Mapping) else {"message": body}
        told = told if isinstance(told, Mapping) else {"message": told}
        kinds = [str(told[name]) for name in ("type", "code") if told.get(name)]
        words = str(told.get("message") or "it gives no reason")[:_MOST_TEXT]
        sent = not status or status >= 500
        text = " ".join((*kinds, words))
        if not status:
            ours = 400 if _TOO_LONG.search(text) or _FILTERED.search(text) else 500
            status = next((_STATUS[each] for each in reversed(kinds) if each in _STATUS), ours)
        where: dict[str, Any] = {
            "provider": self._provider,
            "model": model,
            "request_id": request_id,
            "status": status,
            "sent": sent,
        }
        said = f"{', '.join([*kinds, str(status)])}: {words}"
        wait = _retry_after_s(headers or {})
        if status in (401, 403):  # the vendor's words may have parts of the key
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
        hint = f"are the model's name and the address {self.base_url} right?" if status == 404 else ""
        if found := _NO_PARAMETER.search(text):
            hint = f"this model does not take it: {found[0].lower()}=None leaves it out"
        return RequestRefused(said, hint=hint, **where)

    def decoded(self, data: bytes, kind: type[T], model: str, request_id: str) -> T:
        """The JSON as this type. Raises MalformedAnswer, or what the vendor tells in place of an answer."""
        try:
            return msgspec.json.decode(data, type=kind)
        except UNREADABLE as error:
            words = str(error)
        raise self.no_answer(data, model, request_id, words)

    def no_answer(self, data: bytes, model: str, request_id: str, words: str = "there is none in it") -> ModelError:
        """The error for something that is no answer: what the vendor tells in place of one, else MalformedAnswer."""
        try:
            told = msgspec.json.decode(data)
        except UNREADABLE:
            told = None
        if isinstance(told, dict) and (told.get("error") or told.get("type") == "error"):
            return self.error_of(told.get("error") or told, model, request_id)
        text = scrubbed(data[: 4 * _MOST_TEXT].decode(errors="replace")[:_MOST_TEXT])
        where: dict[str, Any] = {"provider": self._provider, "model": model, "request_id": request_id}
        return MalformedAnswer(f"the answer cannot be read: {words}", text=text, **where)


def api_key_of(given: str | None, variables: str, provider: str, base_url: str | None) -> str:
    """The key that is given, or that of the environment, `{variables}_API_KEY`. A server of one's own, named by base_url or by
    `{variables}_BASE_URL`, may need none; the vendor's does: UserError. So is a key that no HTTP header takes, since libraries log headers
    that they refuse.
    """
    key = given or os.environ.get(f"{variables}_API_KEY", "")
    if not key and base_url is None and not os.environ.get(f"{variables}_BASE_URL"):
        raise UserError(f"{provider}: there is no key", hint=f"give api_key=, or set {variables}_API_KEY")
    keep_secret(key)
    if not all("!" <= each <= "~" for each in key):
        raise UserError(
            f"{provider}: the key has a space, a line break or another character that no key has",
            hint=f"api_key=text.strip(), or mend {variables}_API_KEY",
        )
    return key or "none"


def checked_model(model: str, vendor: str) -> str:
    """The name of a model. Raises UserError for what is none."""
    if not checked_text(model, f"{vendor}: model"):
        raise UserError(f"{vendor}: the name of the model is empty", hint='model="gpt-4o-mini", as the vendor calls it')
    return model


def merged(body: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A request with the user's options: they win, objects are merged, and None takes a field out. Fields that are None are left out."""
    for name, value in options.items():
        ours = body.get(name)
        body[name] = {**ours, **value} if isinstance(ours, dict) and isinstance(value, dict) else value
    return {name: value for name, value in body.items() if value is not None}


def is_strict(schema: Any) -> bool:
    """Whether a vendor can hold its model to the schema: each object in it requires all of its properties, and takes no other."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(names):
            return False
    inner = [value for key, value in schema.items() if key not in ("properties", "$defs", "enum", "const", "default")]
    return is_strict(inner) and all(is_strict(list(schema.get(each, {}).values())) for each in ("properties", "$defs"))


def usage_of(read: Any, written: Any, *, cached: Any = 0, cache_write: Any = 0, reasoning: Any = 0) -> Usage | None:
    """Tokens as a vendor counts them; None where it does not say them, or says what cannot be."""
    counts = [read, written, cached or 0, cache_write or 0, reasoning or 0]
    if any(type(each) is not int or not 0 <= each <= _MOST_TOKENS for each in counts):
        return None
    if counts[2] + counts[3] > read or counts[4] > written:
        return None
    return Usage(*counts)


def _begins_stream(chunk: bytes) -> bool:
    """Whether these are the first bytes of a stream of events: a field, or a comment."""
    text = chunk.removeprefix(b"\xef\xbb\xbf").lstrip()
    return not text or any(text.startswith(each[: len(text)]) for each in _FIELDS)


def _request_id(headers: Mapping[str, str]) -> str:
    return headers.get("x-request-id") or headers.get("request-id") or ""


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """The wait that a server asks for, as a number or as a date; 0: it asks for none, or for what cannot be."""
    text = headers.get("retry-after", "")
    try:
        wait = float(headers["retry-after-ms"]) / 1000 if "retry-after-ms" in headers else float(text)
    except ValueError:
        from email.utils import parsedate_to_datetime  # it takes as long to import as all of this package

        try:
            wait = parsedate_to_datetime(text).timestamp() - SYSTEM_CLOCK.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(wait, 0.0), _LONGEST_WAIT_S) if math.isfinite(wait) else 0.0
