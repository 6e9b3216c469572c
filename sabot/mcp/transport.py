"""The transports of messages: lines of JSON over a pair of byte streams, or streamable HTTP. Both give the two streams
of messages, one to read and one to write, over which the SDK's session works.

   Child's stdout ─▶ lines of bounded length ─▶ messages ─▶ session ─▶ messages ─▶ lines ─▶ Child's stdin

The size of a server's messages is bounded. A line or body that is longer than `most_bytes` is dropped, and the call
that it would have answered gets an error. A call whose answer cannot be parsed, such as the beginning of one, is in
doubt over both transports. If a TCP connection of HTTP breaks, only the request on that connection gets an error; the
session and its other calls go on.
"""

import asyncio
import contextlib
import functools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgspec
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import ErrorData, JSONRPCError, JSONRPCNotification, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import ValidationError

from sabot.base.redaction import scrubbed
from sabot.base.surrogates import has_lone_halves, whole_json
from sabot.base.threads import run_to_end
from sabot.engine.calls.limits import TokenBucket
from sabot.errors import UNREADABLE, SabotError
from sabot.mcp.config import McpConfig, McpServerSpec, SessionKey
from sabot.process.command import Command
from sabot.process.errors import CommunicationError
from sabot.process.instance import Instance
from sabot.process.pool import end_member
from sabot.process.streams import ChildInput, ChildOutput, LastWords

_log = logging.getLogger(__name__)

# Codes of errors that this module puts in the place of answers. JSON-RPC leaves them to servers; MCP and its SDKs use others.
TOO_LARGE = -32091
NOT_SENT = -32092
LOST = -32093
SESSION_OVER = -32094

_END = 512  # the bytes that are kept of each end of a line that is too long
_MOST_JUNK = 10_000  # the lines that are not messages after which a server is given up
_CLOSE_SECONDS = 1.0
_GRACE_SECONDS = 2.0  # seconds that a server has to end after its stdin was closed
_LAST_WORDS = 1000  # the characters of stderr that an error shows
# the bytes that are searched for secrets, so that one that begins before those words is hidden too
_SCRUBBED = 4 * _LAST_WORDS
_JUNK_WORDS = 200  # the characters shown of the first line that is not a message
_UNASKED_PER_SECOND = 50.0  # notifications that are read per second while no request waits
_LOOK_SECONDS = 0.02

ITEMS = "sabot/items"
"""The key in the `_meta` of a page of a list under which are its items, as the server has sent them, by the name that
the SDK has for the list."""

CONTENT = "sabot/content"
"""The key in the `_meta` of the result of a tool under which are its blocks and its structured content, as the server
has sent them."""

_LISTS = {
    "tools": "tools",
    "resources": "resources",
    "resourceTemplates": "resource_templates",
    "prompts": "prompts",
}
_PAGE = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}  # what a page must have since 2026-07-28
_ID = rb'"id"\s*:\s*(\d{1,18}|"[^"\\]{1,100}")'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"'
_FIRST_ID = re.compile(
    rb"\A\s*\{\s*(?:" + _VERSION + rb"\s*,\s*)?" + _ID + rb"\s*,\s*(?:" + _VERSION + rb'\s*,\s*)?"(?:result|error)"\s*:'
)
_LAST_ID = re.compile(rb"[{,]\s*" + _ID + rb"\s*(?:,\s*" + _VERSION + rb"\s*)?\}\s*\Z")
_ANSWERS = re.compile(rb"\A\s*\{\s*(?:" + _VERSION + rb'\s*,\s*)?"(?:result|error)"\s*:')


async def _lines(
    source: ChildOutput | asyncio.StreamReader, buffer: int, most: int
) -> AsyncIterator[tuple[bytes, int]]:
    """Yields the lines of a stream that are not blank, each with its size in bytes. If a line is longer than `most`
    bytes, yields only its beginning and its end, joined. `buffer`: the number of bytes that are read at a time.
    """
    line, size = bytearray(), 0
    while data := await source.read(buffer):
        for number, part in enumerate(data.split(b"\n")):
            if number:
                if line and not line.isspace():
                    yield bytes(line), size
                line.clear()
                size = 0
            line += part
            size += len(part)
            if size > most:
                del line[_END:-_END]


def _answered(line: bytes) -> int | str | None:
    """Returns the id of the request to which a line is the answer. Searches only the first and the last 512 bytes of
    the line. Returns None if the line is not an answer, or if these bytes do not contain the id.
    """
    first, last = line[:_END], line[-_END:]
    found = _FIRST_ID.match(first) or (_ANSWERS.match(first) and _LAST_ID.search(last))
    return msgspec.json.decode(found[1], type=int | str) if found else None


@asynccontextmanager
async def over_bytes(
    source: ChildOutput | asyncio.StreamReader,
    sink: ChildInput | asyncio.StreamWriter,
    *,
    most_bytes: int,
    most_list_bytes: int,
    buffer: int,
    on_end: Callable[[str], Awaitable[None]],
) -> AsyncIterator[tuple[Any, Any]]:
    """Yields to the `with` block two message streams of the MCP SDK, one to read and one to write. Messages are read
    from `source` and written to `sink` as lines of JSON.

    - `most_bytes`: the most bytes of a message. `most_list_bytes`: the most bytes of a message with a list.
    - `buffer`: the number of bytes that are read at a time.
    - `on_end`: an async function that is called with the reason when no further messages can be exchanged. Then the
      stream for reading is closed.

    The reasons are:

    - `source` or `sink` has ended during the block.
    - A message is longer than `most_bytes`, and the request that it answers is unknown.
    - More than 10,000 lines are not messages.
    """
    lists = set[int | str]()  # the ids of requests for lists that have no answer yet
    heard, incoming = anyio.create_memory_object_stream[Any](0)
    outgoing, said = anyio.create_memory_object_stream[Any](0)

    async def over(why: str) -> None:
        await on_end(why)
        heard.close()  # calls that wait for an answer get an error

    async def read() -> None:
        junk, why = 0, "it closed its output"
        try:
            async for line, size in _lines(source, buffer, most_bytes):
                most = most_bytes
                if lists and (request_id := _answered(line)) in lists:
                    lists.discard(request_id)
                    most = most_list_bytes
                message = _message(line, size, most)
                if message is not None:
                    await heard.send(message)
                    continue
                junk += 1
                if junk == 1:
                    _log.warning("an MCP server writes what is no message: %r", _junk(line))
                if junk > _MOST_JUNK:
                    raise CommunicationError(f"it wrote {junk:,} lines that are no messages")
        except CommunicationError as error:
            why = error.message
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            why = f"its output cannot be read: {type(error).__name__}"
        await over(why)

    async def write() -> None:
        try:
            async with said:
                async for each in said:
                    if getattr(each.message, "method", "").endswith("/list"):
                        lists.add(each.message.id)
                    sink.write(each.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                    await sink.drain()
        except (OSError, SabotError) as error:
            await over(f"it does not read its input: {type(error).__name__}")

    tasks = [asyncio.create_task(read()), asyncio.create_task(write())]
    try:
        yield incoming, outgoing
    finally:
        outgoing.close()
        await asyncio.wait(tasks[1:], timeout=_CLOSE_SECONDS)  # so that written messages are sent
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in (heard, incoming, outgoing, said):
            stream.close()


def _message(line: bytes, size: int, most_bytes: int) -> Any:
    """Returns the message in a line, or None if the line is not a JSON-RPC message. `size`: the size of the whole line
    in bytes, of which `line` may be only the beginning and the end.

    If the line is an answer that is too long or cannot be decoded, such as half of one, returns an error message for
    the request that it answers. Raises CommunicationError if the line is longer than `most_bytes`, and the id of its
    request is not known.
    """
    if size > most_bytes:
        words = f"a message of {size:,} bytes, and {most_bytes:,} are the most"
        if (request_id := _answered(line)) is None:
            raise CommunicationError(f"it sent {words}")
        return SessionMessage(_error(request_id, TOO_LARGE, words))
    try:
        whole = whole_json(line) if has_lone_halves(line) else line
        return SessionMessage(jsonrpc_message_adapter.validate_python(msgspec.json.decode(whole), by_name=False))
    except UNREADABLE as error:
        if (request_id := _answered(line)) is None:
            return None
        return SessionMessage(_error(request_id, LOST, f"an answer that cannot be read: {_first_wrong(error)}"))


def _first_wrong(error: Exception) -> str:
    """Returns a text that describes the first error that was found when a line of the server was decoded. The text
    quotes nothing from the line.
    """
    told = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else []
    return str(told[0]["msg"])[:_JUNK_WORDS] if told else type(error).__name__


def _junk(line: Any) -> str:
    """Returns the beginning of a line that is not a message, for the log. Known secrets in it are hidden."""
    return scrubbed(line[:_SCRUBBED].decode(errors="replace"))[:_JUNK_WORDS]


def _error(request_id: int | str | None, code: int, words: str) -> Any:
    return JSONRPCError(jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=words))


# -- processes ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_process(
    command: Command, *, config: McpConfig, on_end: Callable[[str], object]
) -> AsyncIterator[tuple[Any, Any]]:
    """Starts a program. Yields to the `with` block two message streams of the MCP SDK over the program's stdin and
    stdout, one to read and one to write. After the block, ends the program and all its descendants. Raises SpawnFailed
    if the program cannot be started.

    `on_end`: a function that is called if the program ends by itself, closes its stdin or stdout, or writes too many
    lines that are not messages. Its argument is a text with the reason and the last lines of stderr.
    """
    instance = Instance(command)
    child = await instance.start()
    assert child.stdin is not None
    assert child.stdout is not None
    last = LastWords(_SCRUBBED, child.stderr)

    async def ended(why: str) -> None:
        with contextlib.suppress(TimeoutError, SabotError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await child.wait()
                await last.over(timeout_s=_CLOSE_SECONDS)
        if child.status is not None:
            why = child.how
        words = scrubbed(last.text().strip())[-_LAST_WORDS:]
        on_end(f"{why}; its last words: {words}" if words else why)

    try:
        async with over_bytes(
            child.stdout,
            child.stdin,
            most_bytes=config.most_bytes,
            most_list_bytes=config.most_list_bytes,
            buffer=config.stdio_buffer,
            on_end=ended,
        ) as streams:
            yield streams
    finally:
        await run_to_end(end_member(instance, _GRACE_SECONDS, "its session is over"))
        await last.over(close=True)


# -- HTTP -----------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def over_http(spec: McpServerSpec, key: SessionKey, *, config: McpConfig) -> AsyncIterator[tuple[Any, Any]]:
    """Yields to the `with` block two message streams of the MCP SDK over streamable HTTP, one to read and one to write.
    Reading has no time limit, because the callers of the session limit the time of each request.
    """
    client = httpx2.AsyncClient(
        headers={"accept-encoding": "identity"},
        timeout=httpx2.Timeout(config.seconds("connect_timeout"), read=None),
        transport=_BoundedHttp(config),
    )
    # secrets in the headers are hidden in texts while the client lives
    client.headers.update(spec.headers_of(key, client))
    async with (
        client,
        streamable_http_client(spec.url, http_client=client, max_sse_event_size=config.most_bytes) as streams,
    ):
        yield streams


@functools.cache
def _trusted() -> Any:
    """Returns the trusted certificates. They are cached, since reading them takes longer than opening a session."""
    return httpx2.create_ssl_context()


class _BoundedHttp(httpx2.AsyncBaseTransport):  # type: ignore[misc]  # its package is not read by mypy
    """An HTTP transport for the MCP SDK. It limits the size of answers. If a request fails, it returns an answer with
    an error instead of raising.

    The SDK sends the message `server/discover` first. If that fails for any reason, the SDK assumes that the server
    speaks an older version of the protocol, and sends `initialize`. That would be wrong for a server that cannot be
    reached because it is just starting. So if `server/discover` did not reach the server, this transport also answers
    `initialize` with an error.
    """

    def __init__(self, config: McpConfig) -> None:
        self._http = httpx2.AsyncHTTPTransport(verify=_trusted())
        self._config = config
        self._not_discovered = ""  # the reason why `server/discover` did not reach the server

    async def handle_async_request(self, request: Any) -> Any:
        if request.method != "POST":
            return await self._http.handle_async_request(request)
        asked = msgspec.json.decode(request.content, type=_Asked)
        if asked.method == "initialize" and self._not_discovered:
            return _answer(request, 503, NOT_SENT, self._not_discovered)
        try:
            response = await self._http.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.UnsupportedProtocol) as error:
            why = f"it cannot be reached: {error or type(error).__name__}"
            if asked.method == "server/discover":
                self._not_discovered = why
            return _answer(request, 503, NOT_SENT, why)
        except httpx2.TransportError as error:
            return _answer(request, 502, LOST, f"the connection broke: {error or type(error).__name__}")
        kind = response.headers.get("content-type", "").lower()
        if response.status_code == 404 and "mcp-session-id" in request.headers:
            await response.aclose()
            return _answer(request, 404, SESSION_OVER, "it does not know the session any more")
        if response.status_code >= 400 and not kind.startswith("application/json"):
            await response.aclose()
            if response.status_code in (404, 405):  # the answers of servers that do not know `server/discover`
                return httpx2.Response(response.status_code, request=request)
            code = LOST if response.status_code >= 500 else -32600
            return _answer(request, response.status_code, code, f"HTTP {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            return _answer(request, 502, LOST, "its answer is compressed, which was not asked for")
        status = response.status_code
        is_told = status < 300 and status != 202 and kind.startswith(("application/json", "text/event-stream"))
        if asked.method == "tools/call" and status < 400 and status not in (307, 308) and not is_told:
            # a proxy may have answered in the server's place, when the server had done the call
            await response.aclose()
            said = f"HTTP {status}{f' with {kind}' if kind else ''} is no answer to a call"
            return _answer(request, 502, LOST, said)
        is_list = asked.method.endswith("/list")
        if kind.startswith("application/json"):
            most_bytes = self._config.most_list_bytes if is_list else self._config.most_bytes
            response.stream = _BoundedBody(response.stream, most_bytes)
        elif is_list and kind.startswith("text/event-stream"):
            response.stream = _BoundedEvents(response.stream, self._config.most_list_bytes, asked.id)
        if kind.startswith(("application/json", "text/event-stream")):
            response.stream = _WholeTexts(response.stream, self._config.most_bytes, kind.startswith("text"))
        return response

    async def aclose(self) -> None:
        await self._http.aclose()


class _Asked(msgspec.Struct):
    """The method and the id of a message to a server. `method` is "" if the message is an answer; `id` is None if it is
    a notification.
    """

    method: str = ""
    id: int | str | None = None


def _answer(request: Any, status: int, code: int, words: str) -> Any:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": words}}
    return httpx2.Response(status, json=body, request=request)


class _BoundedBody(httpx2.AsyncByteStream):  # type: ignore[misc]
    """The body of an answer. Reading it raises `StreamError` when it gets longer than `most_bytes`, or the connection
    breaks.
    """

    def __init__(self, body: Any, most_bytes: int) -> None:
        self._body = body
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in self._body:
                size += len(part)
                if size > self._most_bytes:
                    raise httpx2.StreamError(f"more than {self._most_bytes:,} bytes")
                yield part
        except httpx2.TransportError as error:
            raise httpx2.StreamError(f"the connection broke: {error or type(error).__name__}") from error

    async def aclose(self) -> None:
        await self._body.aclose()


class _WholeTexts(_BoundedBody):
    """The body of an answer without halves of surrogate pairs, which the SDK cannot read. With `lines`, it is a stream of
    events, each of whose lines of data is JSON; otherwise it is one JSON value. What is longer than `most_bytes` is
    passed on as it is.
    """

    def __init__(self, body: Any, most_bytes: int, lines: bool) -> None:
        super().__init__(body, most_bytes)
        self._lines = lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = bytearray()
        async for part in self._body:
            held += part
            end = held.rfind(b"\n") + 1 if self._lines else 0
            if len(held) - end > self._most_bytes:
                end = len(held)
            if end:
                yield self._whole(bytes(held[:end]))
                del held[:end]
        yield self._whole(bytes(held))

    def _whole(self, data: bytes) -> bytes:
        if not has_lone_halves(data):
            return data
        if not self._lines:
            return whole_json(data)
        lines = data.split(b"\n")
        return b"\n".join(b"data:" + whole_json(line[5:]) if line.startswith(b"data:") else line for line in lines)


class _BoundedEvents(_BoundedBody):
    """The body of an answer that is a stream of events. Only whole events are passed on. If the events together are
    longer than `most_bytes`, the last event is an error for the request `request_id`, and the stream ends. Without this
    event, the SDK would not report an error to the caller.
    """

    def __init__(self, body: Any, most_bytes: int, request_id: int | str | None) -> None:
        super().__init__(body, most_bytes)
        self._request_id = request_id

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held, size = bytearray(), 0
        async for part in self._body:
            held += part
            size += len(part)
            if size > self._most_bytes:
                error = _error(self._request_id, TOO_LARGE, f"more than {self._most_bytes:,} bytes")
                yield b"event: message\ndata: " + error.model_dump_json(by_alias=True).encode() + b"\n\n"
                return
            if held.endswith((b"\n\n", b"\r\n\r\n")):
                yield bytes(held)
                held.clear()
        yield bytes(held)


# -- any ------------------------------------------------------------------------------------------------------------------


def _with_items_apart(found: Any) -> Any:
    """Changes the message of a server, and returns it. In a page of a list, the items are in the `_meta`, under the key ITEMS. In the
    result of a tool, what the tool has returned is there under the key CONTENT.

    The SDK checks the items of a page together, so a single one that is ill would make the whole list unusable, and so
    would a block of an unknown kind the result of a call that was made. It gets only what it needs itself: of tools, the
    schemas that may ask for HTTP headers.
    """
    message = getattr(found, "message", None)
    if not isinstance(message, JSONRPCResponse):
        return found
    said = message.result
    if "content" in said or "structuredContent" in said:
        message.result = _without_content(said)
        return found
    apart = {name: items for name in _LISTS if isinstance(items := said.get(name), list)}
    if not apart:
        return found
    shown: dict[str, list[Any]] = {name: [] for name in apart}
    if "tools" in apart:
        shown["tools"] = [each for each in map(_named_schema, apart["tools"]) if each is not None]
    meta = {ITEMS: {_LISTS[name]: items for name, items in apart.items()}}
    message.result = {**_PAGE, **said, **shown, "_meta": meta}
    return found


def _without_content(said: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of a tool with its content apart. A result that has no list of blocks is returned unchanged,
    unless it has structured content: then it needs no blocks.
    """
    content, structured = said.get("content"), said.get("structuredContent")
    if content is None and structured is not None:
        content = []
    if not isinstance(content, list):
        return said
    kept = {name: each for name, each in said.items() if each is not None and name != "structuredContent"}
    return {**kept, "content": [], "_meta": {CONTENT: [content, structured]}}


def _named_schema(tool: Any) -> dict[str, Any] | None:
    """Returns the name and the schema of the arguments of a listed tool; None if the SDK would not take them."""
    match tool:
        case {"name": str(name), "inputSchema": {"type": "object", **schema}} if isinstance(
            properties := schema.get("properties") or {}, dict
        ) and all(isinstance(each, dict | bool) for each in properties.values()):
            return {"name": name, "inputSchema": {"type": "object", "properties": properties}}
    return None


class PacedStream:
    """A stream of the messages from a server. While the function `is_awaited` returns False, it reads at most 50
    notifications per second. So a server that sends very many notifications does not use up a processor core. Items of
    lists are kept from the SDK (`_with_items_apart`).

    `is_awaited`: a function that returns True while a request waits for the server, while the session is being opened,
    and after it has ended.
    """

    def __init__(self, stream: Any, is_awaited: Callable[[], bool]) -> None:
        self._stream = stream
        self._is_awaited = is_awaited
        self._unasked = TokenBucket(_UNASKED_PER_SECOND)

    @property
    def last_context(self) -> Any:
        """The attribute `last_context` of the inner stream, or None if it has no such attribute. The MCP SDK reads this
        attribute.
        """
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> Any:
        """Returns the next message. Raises `anyio.EndOfStream` at the end of the stream."""
        found = await self._stream.receive()
        if isinstance(getattr(found, "message", None), JSONRPCNotification) and not self._is_awaited():
            now = asyncio.get_running_loop().time
            while self._unasked.wait_s(now()) and not self._is_awaited():  # noqa: ASYNC110 - room comes with the time, and nothing tells
                await asyncio.sleep(_LOOK_SECONDS)
            self._unasked.begun(now())
        return _with_items_apart(found)

    async def aclose(self) -> None:
        """Closes the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> "PacedStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "PacedStream":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()


@asynccontextmanager
async def messages_of(
    spec: McpServerSpec,
    key: SessionKey,
    config: McpConfig,
    on_end: Callable[[str], object],
    is_awaited: Callable[[], bool],
) -> AsyncIterator[tuple[Any, Any]]:
    """Connects to a server. Yields to the `with` block two message streams of the MCP SDK, one to read and one to
    write.

    - `on_end`: a function that is called with the reason if the server ends the session. It is not called for a server
      that is reached by a URL: there, an error of a request shows that the session has ended.
    - `is_awaited`: as in `PacedStream`.
    """
    if spec.connect is not None:
        opened = spec.connect(key, on_end)
    elif spec.url:
        opened = over_http(spec, key, config=config)
    else:
        opened = over_process(spec.command_of(key), config=config, on_end=on_end)
    async with opened as (heard, said):
        yield PacedStream(heard, is_awaited), said
