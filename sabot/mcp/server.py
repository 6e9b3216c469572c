"""A server that offers tools of Sabot to any MCP client, on standard input and output or on HTTP.

   server = ToolServer("shop", [*memory.tools(), lookup])
   await server.serve_stdio()                                     one client, which has started this process
   await server.serve_http(port=8000)                             any number of clients, on this machine alone
   await server.serve_http("0.0.0.0", 8000, token=token)          from elsewhere, with `Authorization: Bearer …`

The tools are functions with the decorator `@tool`. The server checks the arguments of a call by the tool's schema, and
ends the call after the tool's time limit. It tells clients the class of the tool's effect by the hints of the protocol.
If a tool raises an error, the client gets a result with `isError`, whose text has the message and the hint, so that a
model can correct its call. A result is JSON of at most `max_result_bytes`, in which known secrets of this process are
hidden.
"""

import asyncio
import hmac
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import msgspec

from sabot.base.addresses import is_loopback
from sabot.base.checks import check_called
from sabot.base.doors import SESSION, WAITING_MOST, Door
from sabot.base.options import answers_wrong_options
from sabot.base.os_errors import hint_of
from sabot.base.redaction import clean_value, keep_secret, scrubbed
from sabot.base.threads import run_in_thread
from sabot.engine.calls.effects import EffectClass
from sabot.engine.calls.judging import JUDGE
from sabot.engine.calls.tool_results import json_of_result
from sabot.engine.calls.tools import UNTRUSTED, Tool, ToolAnswer
from sabot.errors import MissingExtra, SabotError, UserError, message_of, short_repr

try:
    import mcp_types as types
    import uvicorn
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server
    from mcp.shared.exceptions import MCPError
    from mcp.shared.memory import create_client_server_memory_streams
except ImportError as error:
    raise MissingExtra("ToolServer", "mcp") from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_log = logging.getLogger(__name__)

_TOKEN_LEAST = 16  # characters
_CONNECTIONS_MOST = 64
_GRACE_SECONDS = 5
_READING = (EffectClass.READ, EffectClass.LOCAL)
_REPEATABLE = (*_READING, EffectClass.METERED, EffectClass.IDEMPOTENT)


@answers_wrong_options
class ToolServer:
    """A server that offers `tools` to MCP clients, under the names of the tools.

    - `name`, `version`, `instructions`: texts that are shown to clients.
    - `concurrency`: the most calls that are made at the same time; further calls wait. A sync tool that exceeds its time
      limit runs on in its thread, but is not counted any more.
    - `max_result_bytes`: the most bytes of a result as JSON. A longer result is not sent; the client gets an
      error.

    Raises UserError if two tools have the same name, or if a tool has a parameter of type `Effect`. Such a tool needs
    the idempotency key of a journal, and no journal records the calls of clients.
    """

    def __init__(
        self,
        name: str,
        tools: Iterable[Tool],
        *,
        version: str = "",
        instructions: str = "",
        concurrency: int = 8,
        max_result_bytes: int = 262_144,
    ) -> None:
        self.name = name
        self._tools: dict[str, Tool] = {}
        self._places = asyncio.Semaphore(concurrency)
        self._most = max_result_bytes
        for each in tools:
            if each.name in self._tools:
                raise UserError(
                    f"MCP server {name}: two tools are called {each.name}", hint="@tool(name=…) renames one"
                )
            if each.takes_effect or each.takes_context:
                what = "an Effect" if each.takes_effect else "a ToolContext"
                raise UserError(
                    f"MCP server {name}: tool {each.name} takes {what}, and a call from outside has none",
                    hint="offer a tool without that parameter",
                )
            self._tools[each.name] = each
        self._offered = [_offered(each) for each in self._tools.values()]
        self.server: Server[Any] = Server(
            name, version=version, instructions=instructions or None, on_list_tools=self._list, on_call_tool=self._call
        )
        """The server as the SDK knows it: `mcp.Client(tool_server.server)` is connected to it inside this process."""

    async def serve_stdio(self) -> None:
        """Serves one client on standard input and output, until the client closes the input. In this time, everything
        else that this process writes to standard output goes to standard error.
        """
        async with stdio_server() as (requests, answers):
            await self.server.run(requests, answers, self.server.create_initialization_options())

    @asynccontextmanager
    async def connect(self, key: object, ended: Callable[[str], object]) -> AsyncIterator[Any]:
        """Connects a client in this process to this server. Yields to the `with` block the client's two message streams
        of the MCP SDK, one to read and one to write.

        A McpServerPool calls this method if the server was added as `pool.add("shop", connect=server.connect)`. `key`:
        not used. `ended`: a function that is called with a reason when the server has ended.
        """
        async with create_client_server_memory_streams() as (client, (requests, answers)):
            options = self.server.create_initialization_options()
            # The call that opens the session is over when later ones come, so its judge must not decide on them.
            context = copy_context()
            context.run(JUDGE.set, None)
            running = self.server.run(requests, answers, options)
            serving = asyncio.get_running_loop().create_task(running, context=context)
            serving.add_done_callback(lambda _: ended("it has ended"))
            try:
                yield client
            finally:
                serving.cancel()
                await asyncio.wait([serving])

    async def serve_http(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        token: str | None = None,
        on_start: Callable[[str], None] | None = None,
    ) -> None:
        """Serves clients at `http://host:port/mcp` (streamable HTTP) until the caller is cancelled. Then calls that are
        under way have 5 seconds to end. At most 64 connections are open: further ones wait, or take the place of one that
        does not send a request. A client has 5 seconds to send a request, and 10 to read a part of its answer.

        - `host`: the address to listen on. `port`: the port, or 0 for any free one.
        - `token`: the text that each request must contain in its header `Authorization: Bearer TOKEN`. None if no token
          is needed; that is allowed only for a `host` that other machines cannot reach. Then each program of this
          machine may call, but web pages in a browser may not (the headers `Host` and `Origin` are checked).
        - `on_start`: a function that is called with the address when the server begins to serve.

        Raises UserError if the address is in use, if the token has fewer than 16 characters, and if a host that other
        machines can reach has no token.
        """
        from sabot.base.http_connections import MOST_HEAD_BYTES, LimitedHttp

        check_called("serve_http", on_start=on_start)
        if token is not None:
            keep_secret(token)
            if len(token) < _TOKEN_LEAST:
                raise UserError(
                    f"MCP server {self.name}: a token of {len(token)} characters", hint=f"{_TOKEN_LEAST} or more"
                )
        elif not is_loopback(host):
            raise UserError(
                f"MCP server {self.name}: others can reach {host}, and there is no token",
                hint="give it one, or serve 127.0.0.1",
            )
        app = _known(self.server.streamable_http_app(host=host, json_response=True, stateless_http=True))
        if token is not None:
            app = _with_token(app, token)
        with _listening(host, port, self.name) as listener:
            where, at = listener.getsockname()[:2]
            config = uvicorn.Config(
                app,
                http=LimitedHttp,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="none",
                h11_max_incomplete_event_size=MOST_HEAD_BYTES,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
            running = _Http(config)

            def make(left: Callable[[Any], None]) -> LimitedHttp:
                return LimitedHttp(config, running.server_state, running.lifespan.state, left=left)

            door = Door(f"MCP server {self.name}", listener, make, _CONNECTIONS_MOST)
            accepting: list[asyncio.Task[None]] = []

            def begin() -> None:
                if on_start is not None:
                    on_start(f"http://{_in_url(where)}:{at}/mcp")
                accepting.append(asyncio.get_running_loop().create_task(door.serve()))

            running.on_start = begin
            serving = asyncio.ensure_future(running.serve(sockets=[]))  # the door accepts
            try:
                await asyncio.shield(serving)
            finally:
                for each in accepting:
                    each.cancel()
                running.should_exit = True
                await serving

    async def _list(self, context: Any, params: Any) -> "types.ListToolsResult":
        return types.ListToolsResult(tools=self._offered)

    async def _call(self, context: Any, params: "types.CallToolRequestParams") -> "types.CallToolResult":
        tool = self._tools.get(params.name)
        if tool is None:
            names = ", ".join(self._tools)
            raise MCPError(
                types.INVALID_PARAMS, f"{self.name} has no tool {short_repr(params.name)}: there are {names}"
            )
        try:
            arguments = tool.arguments(msgspec.json.encode(params.arguments or {}).decode())
            async with self._places, asyncio.timeout(tool.timeout_s):
                done = tool.func(**arguments) if tool.is_async else run_in_thread(tool.func, **arguments)
                return self._result(tool, await done)
        except SabotError as error:
            return _failed(str(error))
        except TimeoutError:
            if tool.timeout_s is None:
                return _failed(f"{tool.name} failed: TimeoutError")
            return _failed(f"{tool.name} did not answer within {tool.timeout_s:g} s")
        except Exception as error:
            _log.exception("tool %s failed", tool.name)
            return _failed(scrubbed(f"{tool.name} failed: {type(error).__name__}: {message_of(error)}"))

    def _result(self, tool: Tool, value: Any) -> "types.CallToolResult":
        answer = value.text if isinstance(value, ToolAnswer) else value
        said = clean_value(msgspec.json.decode(json_of_result(tool.name, answer)))
        encoded = (said if isinstance(said, str) else msgspec.json.encode(said).decode()).encode()
        if len(encoded) > self._most:
            raise UserError(
                f"the result of {tool.name} has {len(encoded):,} bytes of JSON, and {self._most:,} are the most",
                hint="ask for less",
            )
        if isinstance(value, ToolAnswer):
            return types.CallToolResult(content=[types.TextContent(text=said)], is_error=value.is_error)
        structured = said if isinstance(said, dict) else {"result": said}
        return types.CallToolResult(content=[types.TextContent(text=encoded.decode())], structured_content=structured)


def _known(app: "ASGIApp") -> "ASGIApp":
    """Returns an ASGI app that marks each request whose body is here, so that the door does not end its connection
    while it is answered.
    """

    async def marked(scope: "Scope", receive: "Receive", send: "Send") -> None:
        async def received() -> Any:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                scope[SESSION] = {}
            return message

        await app(scope, received if scope["type"] == "http" else receive, send)

    return marked


def _with_token(app: "ASGIApp", token: str) -> "ASGIApp":
    """Returns an ASGI app that passes a request on to `app` only if its header is `Authorization: Bearer TOKEN` with
    this token. Other requests get the status 401.
    """
    wanted = f"Bearer {token}".encode()

    async def checked(scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, wanted):
                headers = [(b"www-authenticate", b"Bearer"), (b"content-length", b"0")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return checked


class _Http(uvicorn.Server):
    """An HTTP server that calls `on_start` when it has begun to serve, and installs no signal handlers."""

    on_start: Callable[[], object]

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.on_start()


def _offered(tool: Tool) -> "types.Tool":
    schema = tool.schema
    hints = types.ToolAnnotations(
        read_only_hint=tool.effect in _READING,
        destructive_hint=False if tool.effect in _REPEATABLE else None,
        idempotent_hint=tool.effect in _REPEATABLE,
        open_world_hint=UNTRUSTED in tool.labels,
    )
    return types.Tool(
        name=tool.name, description=schema.description, input_schema=dict(schema.parameters), annotations=hints
    )


def _failed(text: str) -> "types.CallToolResult":
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int, name: str) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=WAITING_MOST)
    except OSError as error:
        raise UserError(
            f"MCP server {name}: cannot listen on {host}:{port}: {error.strerror or error}",
            hint=hint_of(error) or "give another port; 0 takes a free one",
        ) from error
