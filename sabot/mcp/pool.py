"""The MCP servers of a process, and the sessions with them. A session is opened when it is needed, and closed when it
was not used for some time. Only one tenant with one principal (a user or an agent) uses it.

A session hangs if the server does not answer. After the first session that hangs in a call, the pool opens the next one
at once. If that one hangs, too, before it has answered a call, or if the server does not answer while a session is
opened, the pool opens no session with the server for some time. This time doubles with each further session in a row
that hangs.

A session belongs to one event loop, but a program may look up tools in one event loop and call them in another. So a
pool has an event loop of its own, in a thread, in which all its sessions live.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Unpack

import msgspec

from sabot.base.backoff import Backoff, Failures
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options, no_option
from sabot.base.supervision import TaskSet
from sabot.engine.calls.judging import judge_of_this
from sabot.engine.calls.messages import ChatMessage
from sabot.engine.calls.names import SERVERS
from sabot.engine.calls.tools import IN_THREAD, InDoubt, Tool
from sabot.errors import MissingExtra, UserError, short_repr
from sabot.mcp.config import McpConfig, McpServerOptions, McpServerSpec, SessionKey
from sabot.mcp.errors import McpBusy, McpConnectionLost, McpError, McpInvalidArguments, McpUnavailable
from sabot.mcp.loop_thread import LoopThread, seen
from sabot.mcp.offers import names_of, other_names_of
from sabot.mcp.results import McpPrompt, McpResource, McpResult
from sabot.mcp.tools import Ask, RemoteTool, ServerQuestions, checked_effects, tool_of

if TYPE_CHECKING:
    from sabot.llm.engine import ExecutionEngine
    from sabot.mcp.connection import McpConnection, OnProgress
    from sabot.mcp.offers import Offer

T = TypeVar("T")

_log = logging.getLogger(__name__)

OnChange = Literal["refuse", "allow"]
"""The handling of a call of a tool whose description has changed since the tool was offered: the call fails, or is
made.
"""

_AGENT_SERVER = "agent"  # the name of the server that an agent has if none is named
_BACKOFF = Backoff(0.1, 30.0)  # the waits between attempts to open a session
_HUNG_BACKOFF = Backoff(5.0, 60.0)  # the waits before the next session with a server whose sessions hang
_STOP_SECONDS = 15.0


class McpServerFacts(NamedTuple):
    """A server of a pool, with the present figures of its open sessions.

    - `name`: the name of the server. `way`: its program, or its URL without the password.
    - `sessions`: the number of open sessions. `busy`: the number of calls under way.
    - `tools`: for each tool that agents can get, by its name, the hash that `McpSession.digests` returns.
    - `left_out`: the tools that agents cannot get, each with the reason.
    """

    name: str
    way: str
    sessions: int
    busy: int
    tools: Mapping[str, str]
    left_out: Mapping[str, str]


@answers_wrong_options
class McpServerPool:
    """A pool of sessions with MCP servers.

    pool = McpServerPool()
    agent = Agent(engine, tools=[*await pool.tools("git", command=["mcp-server-git"])])

    A pool may be used from any event loop and thread. `close`, or leaving an `async with pool` block, ends its sessions
    and the servers that it has started. They also end when this process ends.
    """

    def __init__(
        self,
        config: McpConfig | None = None,
        *,
        command: Sequence[str] = (),
        url: str = "",
        sampling: "ExecutionEngine | None" = None,
        ask: Ask | None = None,
    ) -> None:
        """Creates a pool. Raises MissingExtra if the MCP SDK is not installed.

        - `command`, `url`: how to reach the default server, which `get_or_create` and `call_tool` use. If neither is
          given, it is the program `config.cortex_binary_path`.
        - `sampling`: the engine that is asked if a server requests an answer of a model. If None, such requests are
          refused.
        - `ask`: an async function `ask(kind, payload, timeout_s)` that asks the user. It is called if a server has a
          question for the user (elicitation) during a call outside of durable jobs. It returns the answer as a dict, or
          None if there is none. In a durable agent it is not called: the job waits for a person, who answers with the
          command `sabot actions`.
        """
        _require_sdk()
        self.config = config or McpConfig()
        self._default = (tuple(command), url)
        self._sampling = sampling
        self._questions = ServerQuestions(self.config, sampling, ask)
        self._specs: dict[str, McpServerSpec] = {}
        self._loop = LoopThread()
        self._opened: dict[SessionKey, McpConnection] = {}
        self._opening: dict[SessionKey, asyncio.Task[McpConnection]] = {}
        self._admitted: set[SessionKey] = set()  # the keys of `_opening` that have room; the others wait for it
        self._closing = 0
        self._tasks = TaskSet("the McpServerPool")
        self._changed = asyncio.Event()  # set when there may be room, and replaced
        self._legacy: set[str] = set()  # the servers whose program ends at `server/discover`
        self._ask_as_before: set[str] = set()  # those whose tools ask as in older versions of the protocol
        self._hangs: dict[SessionKey, Failures] = {}  # by session: hangs in a row, without an answer to a call
        self._sweep: asyncio.Task[None] | None = None
        self._closed = False
        self._given: dict[tuple[str, str], Tool] = {}  # by server and its name for a tool: what `tools` returned last
        SERVERS.add(self)

    async def __aenter__(self) -> "McpServerPool":
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    # -- servers ------------------------------------------------------------------------------------------------------

    def add(self, server: str, **options: Unpack[McpServerOptions]) -> None:
        """Adds a server to the pool. `server`: its name. `options`: the fields of McpServerSpec that say how to reach
        it. Adding the same server again has no effect. Raises UserError if the pool has a server of this name with
        different options.
        """
        _check_options("McpServerPool.add", options, ["server"])
        spec = McpServerSpec(name=server, **options)
        if self._specs.setdefault(server, spec) != spec:
            raise UserError(
                f"MCP server {server}: it is reached otherwise already", hint="give the second one a name of its own"
            )

    async def session(self, server: str, *, scope: str = "", principal: str = "") -> "McpSession":
        """Returns a session with the server, and opens it if it is not open yet. Only this tenant (`scope`) and this
        user or agent (`principal`) use it. Raises UserError if no server of this name was added, and McpError if the
        session cannot be opened.
        """
        session = McpSession(self, SessionKey(self._known(server).name, scope, principal))
        await self.run(self._connection(session.key))
        return session

    async def get_or_create(self, agent_id: str) -> "McpSession":
        """Returns the session of the agent with the default server of the pool, and opens it if it is not open yet.
        Raises UserError if there is no default server, and McpError if the session cannot be opened.
        """
        if _AGENT_SERVER not in self._specs:
            command, url = self._default
            self.add(_AGENT_SERVER, command=command or (() if url else self.config.default_command()), url=url)
        return await self.session(_AGENT_SERVER, principal=agent_id)

    async def call_tool(self, agent_id: str, call: Any) -> McpResult:
        """Calls a tool of the default server of the pool for an agent, and returns its result.

        `call`: a `sabot.mcp.ToolCall`, such as `ToolCall("get_current_time", {"timezone": "UTC"})`; or a
        `sabot.llm.ToolCall`, whose arguments are the text that a model wrote; or another object with `name` and
        `arguments`. Raises UserError for an object without these, and McpError if the call fails.
        """
        name, arguments = getattr(call, "name", None), getattr(call, "arguments", None)
        if not isinstance(name, str) or not isinstance(arguments, Mapping | str):
            raise UserError(
                f"call_tool: call={short_repr(call)}", hint='ToolCall("get_current_time", {"timezone": "UTC"})'
            )
        session = await self.get_or_create(agent_id)
        if isinstance(arguments, str):
            try:
                arguments = msgspec.json.decode(arguments or "{}", type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise McpInvalidArguments(
                    session.key.server, f"tool {name}: the arguments are no JSON object: {error}"
                ) from None
        return await session.call(name, arguments)

    async def tools(
        self,
        server: str,
        *,
        scope: str = "",
        principal: str = "",
        only: Collection[str] | None = None,
        effects: str | Mapping[str, str] | None = None,
        trust_annotations: bool = True,
        in_doubt: InDoubt = "ask",
        timeout: Duration | None = None,
        retries: int | None = None,
        labels: Collection[str] = (),
        prefix: str = "",
        on_change: OnChange = "refuse",
        approved: Mapping[str, str] | None = None,
        **options: Unpack[McpServerOptions],
    ) -> list[Tool]:
        """Returns the tools of a server as Tools for agents and for `ctx.call`.

        - `options`: the options of `add`; needed only if the server was not added yet.
        - `scope`, `principal`: the tenant and the user or agent whose session is used to list the tools. It is also
          used to call them, unless the caller of a tool has a tenant or a user of its own.
        - `only`: the names of the tools to return; None for all.
        - `effects`: the effect class of all tools, or a dict with the class of each tool by name, in which "*" stands
          for all others. A tool without a class here gets the class that the server's hints propose if
          `trust_annotations` is True, else "unsafe". In a fork of a
          job a tool without a class here is "unsafe", whatever its server proposes.
        - `in_doubt`, `timeout`, `retries`, `labels`: as in the decorator `tool`. With `retries=None` a call that may be
          repeated is repeated once.
        - `prefix`: a text that is put before the name of each tool. The names have the characters, and the length, that
          all vendors accept. Those that become equal by this end with a hash of the server's name.
        - `on_change`: what happens to a later call if the title, description, schemas or hints of the tool have changed
          by then.
          "refuse" raises McpToolChanged; "allow" makes the call, unless the hints of a tool that has its class from them
          say something else now.
        - `approved`: the digest of each tool by name, as `McpSession.digests` has returned them after the user has
          checked the tools. If one of the tools has a different digest or is missing there, UserError is raised.

        Raises UserError for options that are not valid, and McpError if the server cannot be asked for its tools.
        """
        if options:
            _check_options("McpServerPool.tools", options, signature(McpServerPool.tools).parameters)
            self.add(server, **options)
        if on_change not in ("refuse", "allow"):
            raise UserError(f"MCP server {server}: on_change={short_repr(on_change)}", hint='"refuse" or "allow"')
        session = await self.session(server, scope=scope, principal=principal)
        offers = await session.offers(only or ())
        wanted = set(offers) if only is None else set(only)
        known = {} if approved is None else {name: offers[name].digest for name in wanted & offers.keys()}
        if changed := sorted(name for name, digest in known.items() if (approved or {}).get(name) != digest):
            raise UserError(
                f"MCP server {server}: {', '.join(changed)} is not what was approved",
                hint="look at what it says of itself, and approve the digest of McpSession.digests()",
            )
        if missing := sorted(wanted - offers.keys()):
            raise UserError(
                f"MCP server {server}: it offers no tool {', '.join(missing)}",
                hint=f"it offers {', '.join(sorted(offers)) or 'none'}",
            )
        if len(wanted) > self.config.max_tools:
            raise UserError(
                f"MCP server {server}: {len(wanted):,} tools, and an agent is given {self.config.max_tools:,} at most",
                hint="only=[…] names those that it needs; McpConfig(max_tools=…) allows more",
            )
        classes = checked_effects(server, effects, offers)
        timeout_s = (
            None if timeout is None else parse_seconds(timeout, name=f"MCP server {server}: timeout", zero=False)
        )
        made = []
        names = names_of([offers[name] for name in wanted], prefix)
        for name in sorted(wanted):
            offer = offers[name]
            by_hints = offer.by_hints if trust_annotations and not classes.get(name) else ""
            expects = offer.digest if on_change == "refuse" else by_hints
            remote = self.remote(session.key, name, expects=expects, timeout_s=timeout_s)
            tool = self._given[server, name] = tool_of(
                offer,
                remote,
                effect=classes.get(name, ""),
                trust_annotations=trust_annotations,
                in_doubt=in_doubt,
                timeout_s=timeout_s,
                retries=retries,
                labels=labels,
                name=names[name],
                other_names=other_names_of(offer, prefix, names[name]),
            )
            made.append(tool)
        return made

    async def judged_as(self, key: SessionKey, name: str) -> Tool:
        """Returns the Tool by which rules judge a call that a session makes without one: the one that `tools` has
        returned last for this tool of the server, or one with the class that the server's hints propose. Raises
        UserError if the server offers agents no such tool, because no rule could see its arguments.
        """
        if (key.server, name) not in self._given:
            await self.tools(key.server, scope=key.scope, principal=key.principal, only=[name], on_change="allow")
        return self._given[key.server, name]

    def remote(
        self,
        key: SessionKey,
        name: str,
        *,
        expects: str = "",
        timeout_s: float | None = None,
        progress: "OnProgress | None" = None,
    ) -> RemoteTool:
        """Returns an object that calls the tool `name` of a server. `key`: the session that is used if the caller has
        no tenant and no user. `expects`, `timeout_s`, `progress`: the same as in `McpConnection.call`.
        """
        return RemoteTool(self._step, self._forget, key, name, expects, timeout_s, self._questions, progress)

    async def _step(
        self, key: SessionKey, name: str, arguments: Mapping[str, Any], options: Mapping[str, Any]
    ) -> McpResult:
        """Sends one request of a call to the server, and returns its result, which may also be a question of the
        server. If the session has ended, and the request was certainly not sent, sends it once more in a new session.
        `options`: further arguments for `McpConnection.call`.
        """

        async def call(connection: "McpConnection") -> McpResult:
            try:
                result = await connection.call(name, arguments, **options)
            finally:
                if connection.asks_as_before:
                    self._begin_legacy(key.server)
            self._hangs.pop(key, None)
            return result

        return await self.use(key, call, again=McpUnavailable)

    def _forget(self, key: SessionKey, state: str) -> None:
        """Ends a call of a tool that waits for answers to the server's questions, because nobody will answer. `state`:
        the `state` of the result with the questions.
        """

        def forget() -> None:
            if (connection := self._opened.get(key)) is not None:
                connection.forget(state)
                self._look_for_room()

        self._loop.call(forget)

    # -- on the pool's loop -------------------------------------------------------------------------------------------

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the pool's event loop, and returns its result. Raises UserError if the pool is closed."""
        if self._closed:
            work.close()
            raise UserError("the McpServerPool is closed", hint="make another one")
        return await self._loop.run(work)

    async def use(
        self,
        key: SessionKey,
        what: "Callable[[McpConnection], Awaitable[T]]",
        *,
        again: type[McpError] | tuple[type[McpError], ...] = (McpUnavailable, McpConnectionLost),
    ) -> T:
        """Calls the function `what` with an open session, on the pool's event loop, and returns its result.

        If the session has ended and `what` raises an error of a class in `again`, calls `what` once more with a new
        session. The default of `again` contains McpConnectionLost, after which the server may have got the request
        already. So use the default only for requests that change nothing.
        """
        return await self.run(self._used(key, what, again))

    async def _used(
        self,
        key: SessionKey,
        what: "Callable[[McpConnection], Awaitable[T]]",
        again: type[McpError] | tuple[type[McpError], ...],
    ) -> T:
        for first in (True, False):
            async with self._in_use(key) as connection:
                try:
                    return await what(connection)
                except again:
                    if not first or connection.is_open:
                        raise
        raise AssertionError("the second try returns or raises")

    @contextlib.asynccontextmanager
    async def _in_use(self, key: SessionKey) -> "AsyncIterator[McpConnection]":
        connection = await self._connection(key)
        connection.busy += 1
        try:
            yield connection
        finally:
            connection.busy -= 1
            connection.used_at = asyncio.get_running_loop().time()
            self._look_for_room()

    async def _connection(self, key: SessionKey) -> "McpConnection":
        """Returns the open session for this key. If there is none, opens one. If another caller is already opening it,
        waits for that session.
        """
        found = self._opened.get(key)
        if found is not None and found.is_open:
            return found
        opening = self._opening.get(key)
        if opening is None:
            self._check_hangs(key)
            opening = self._opening[key] = asyncio.create_task(self._open(key))
            opening.add_done_callback(functools.partial(self._was_opened, key))
        return await asyncio.shield(opening)

    def _was_opened(self, key: SessionKey, task: "asyncio.Task[McpConnection]") -> None:
        self._opening.pop(key, None)
        self._admitted.discard(key)
        asyncio.get_running_loop().call_soon(self._look_for_room)  # after the callers that wait for this session
        seen(task)  # the callers that waited have its error

    async def _open(self, key: SessionKey) -> "McpConnection":
        from sabot.mcp.connection import McpConnection

        await self._make_room(key)
        attempt = 0
        while True:
            connection = McpConnection(
                self._specs[key.server],
                key,
                self.config,
                samples=self._sampling is not None,
                legacy=key.server in self._legacy | self._ask_as_before or self._specs[key.server].legacy,
                on_over=self._over,
                on_hung=self._hung,
            )
            began = asyncio.get_running_loop().time()
            try:
                await connection.open()
            except McpUnavailable as error:
                if connection.failed_at_discover:
                    _log.info(
                        "MCP server %s did not survive `server/discover`, and has ended after %.1f s: from now on it is asked as older"
                        " ones are",
                        key.server,
                        asyncio.get_running_loop().time() - began,
                    )
                    self._legacy.add(key.server)
                    continue
                self._legacy.discard(key.server)
                if not error.passes or attempt == self.config.max_retries:
                    raise
                attempt += 1
                await asyncio.sleep(_BACKOFF.wait_s(attempt))
                continue
            connection.used_at = asyncio.get_running_loop().time()
            self._opened[key] = connection
            if self._sweep is None:
                self._sweep = self._tasks.every(self._idle_seconds / 2, self._close_idle, asyncio.sleep)
            return connection

    def _hung(self, key: SessionKey, why: str, opened: bool) -> None:
        """Records that a session has ended because the server did not answer. The more often this happens in a row, the
        longer no new session is opened (see `_check_hangs`). The first time causes no wait if the session had been
        open.

        `why`: the reason. `opened`: True if the session had been open, False if it was still being opened.
        """
        hangs = self._hangs.setdefault(key, Failures(_HUNG_BACKOFF))
        hangs.note(why, asyncio.get_running_loop().time(), excused=int(opened))

    def _check_hangs(self, key: SessionKey) -> None:
        """Raises McpUnavailable if the last sessions for this key have ended because the server did not answer, and the
        time before the next try is not over yet.
        """
        hangs = self._hangs.get(key)
        if hangs is not None and (left := hangs.until_s - asyncio.get_running_loop().time()) > 0:
            raise McpUnavailable(
                key.server,
                f"{hangs.why} ({hangs.count} sessions in a row); another one is opened in {left:.1f} s at the earliest",
                hint="it was sent nothing, so the call may be made again",
            )

    async def _make_room(self, key: SessionKey) -> None:
        """Waits until the pool may open one more session. If the pool has `max_servers` sessions, closes one that is
        not in use: the one whose last use is the longest ago. Raises McpBusy if all are in use, or if none could be
        closed within `connect_timeout`.
        """
        try:
            async with asyncio.timeout(self.config.seconds("connect_timeout")):
                while len(self._opened) + len(self._admitted) + self._closing >= self.config.max_servers:
                    idle = [each for each in self._opened.values() if each.is_idle]
                    if idle and self._closing < len(self._opening) - len(self._admitted):
                        self._tasks.begin(self._close(min(idle, key=lambda each: each.used_at)))
                    elif not (idle or self._admitted or self._closing):
                        raise self._busy(key)
                    await self._changed.wait()
        except TimeoutError:
            raise self._busy(key) from None
        self._admitted.add(key)

    def _busy(self, key: SessionKey) -> McpBusy:
        in_use = sum(not each.is_idle for each in self._opened.values())
        others = {"are being opened": len(self._admitted), "are being closed": self._closing}
        words = "".join(f", {count} {what}" for what, count in others.items() if count)
        return McpBusy(
            key.server,
            f"{in_use} sessions are in use{words}, and there may be {self.config.max_servers}",
            hint="McpConfig(max_servers=…) allows more",
        )

    def _look_for_room(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _close(self, connection: "McpConnection") -> Coroutine[Any, Any, None]:
        """Removes a session from the pool, and returns a coroutine that closes the session; the caller has to run it."""
        self._over(connection)
        self._closing += 1
        return self._closed_down(connection)

    def _begin_legacy(self, server: str) -> None:
        """Uses a server with an older version of the protocol from now on. The sessions that it has end when their calls
        have ended; new calls get other sessions.
        """
        if server not in self._ask_as_before:
            self._ask_as_before.add(server)
            _log.warning(
                "MCP server %s: %s", server, "its tools ask as those of older versions do: legacy=True is right for it"
            )
        for each in [each for each in self._opened.values() if each.key.server == server and each.is_modern]:
            self._over(each)
            self._closing += 1
            self._tasks.begin(self._closed_when_idle(each))

    async def _closed_when_idle(self, connection: "McpConnection") -> None:
        try:
            while not connection.is_idle:
                await self._changed.wait()
        finally:  # also if the pool is closed
            await self._closed_down(connection)

    async def _closed_down(self, connection: "McpConnection") -> None:
        try:
            await connection.close()
        finally:
            self._closing -= 1
            self._look_for_room()

    def _over(self, connection: "McpConnection") -> None:
        if self._opened.get(connection.key) is connection:
            del self._opened[connection.key]
            self._look_for_room()

    async def _close_idle(self) -> None:
        """Begins to close sessions that were not used for `idle_timeout`."""
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        for each in list(self._opened.values()):
            if each.is_idle and each.used_at <= oldest:
                self._tasks.begin(self._close(each))

    @property
    def _idle_seconds(self) -> float:
        return self.config.seconds("idle_timeout")

    # -- servers and sessions -----------------------------------------------------------------------------------------

    def open_sessions(self) -> list[SessionKey]:
        """Returns the keys of the sessions that are open now."""
        return list(self._opened)

    def servers(self) -> list[McpServerFacts]:
        """Returns the servers that were added, with the tools of their open sessions. May be called from any thread."""
        found = []
        for name, spec in list(self._specs.items()):
            opened = [each for key, each in list(self._opened.items()) if key.server == name]
            tools = {offer.name: offer.digest for each in opened for offer in list(each.offers.values())}
            left_out = {tool: why for each in opened for tool, why in list(each.left_out.items())}
            found.append(
                McpServerFacts(name, spec.way, len(opened), sum(each.busy for each in opened), tools, left_out)
            )
        return found

    async def close(self) -> None:
        """Ends all sessions, and the servers that were started for them, and returns when they have ended. The pool
        cannot be used afterwards. If the caller is cancelled, only its wait ends, and the sessions are ended
        nevertheless. A repeated `close` waits for the end too.
        """
        self._closed = True
        SERVERS.discard(self)
        await self._loop.stop(self._close_all)
        self._given.clear()  # its tools know the pool: rules would find them as long as no garbage is collected

    async def _close_all(self) -> None:
        for opening in list(self._opening.values()):
            opening.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await asyncio.gather(*(self._close(each) for each in list(self._opened.values())))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:  # calls whose session has just ended
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_STOP_SECONDS)

    def _known(self, server: str) -> McpServerSpec:
        if server not in self._specs:
            raise UserError(
                f"MCP server {short_repr(server)} is not known", hint='pool.add("git", command=["mcp-server-git"])'
            )
        return self._specs[server]


class McpSession:
    """A session with a server, for one tenant and one user or agent. `key` is the SessionKey with the names of all
    three. If the session is not used for `idle_timeout`, the pool closes it. At the next use the pool opens it again.
    """

    def __init__(self, pool: McpServerPool, key: SessionKey) -> None:
        self.key = key
        self._pool = pool

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: Duration | None = None,
        progress: "OnProgress | None" = None,
    ) -> McpResult:
        """Calls a tool once, and returns its result. Policy and budgets of the code that calls it decide first; PolicyDenied
        or BudgetExceeded is raised if they do not allow the call.

        - `timeout`: the time for the answer; `McpConfig.request_timeout` if None. It begins again with each report of
          progress, but the whole call takes at most `McpConfig.max_call_time`.
        - `progress`: a function, sync or async, that is called as `progress(done, total, text)` with each report of
          progress: how much is done, the total or None, and a text. It is called in the pool's thread.

        Raises McpError. After a McpConnectionLost or a McpTimeout it is not known whether the server has done the call.
        McpToolChanged is raised if rules decide on a tool that is not as it was listed (`McpServerPool.tools`, `on_change`).
        """
        timeout_s = None if timeout is None else parse_seconds(timeout, name="timeout", zero=False)
        make = functools.partial(self._pool.remote, self.key, name, timeout_s=timeout_s, progress=progress)
        judge = judge_of_this(name, "called", IN_THREAD)
        if judge is None:
            return await make()(**dict(arguments or {}))
        tool = await self._pool.judged_as(self.key, name)
        assert isinstance(tool.func, RemoteTool)
        remote = make(expects=tool.func.expects)  # the rules decide on the tool as it was listed
        result: McpResult = await judge.make(tool, (), dict(arguments or {}), lambda _, judged: remote(**judged))
        return result

    async def digests(self) -> dict[str, str]:
        """Returns a hash of the name, title, description, schemas and hints of each tool, by the name of the tool. The
        result can be passed as `McpServerPool.tools(approved=…)`. Raises McpError.
        """
        return {name: offer.digest for name, offer in (await self.offers()).items()}

    async def offers(self, wanted: Collection[str] = ()) -> "dict[str, Offer]":
        """Returns the tools that agents can get, by name, as the server lists them now. If the last list lacks one of
        those that are `wanted`, the server is asked for its list again. Raises McpError.
        """
        return (await self._pool.use(self.key, lambda server: server.listed(wanted)))[0]

    async def left_out(self) -> dict[str, str]:
        """Returns the reasons why agents cannot get some of the server's tools, by the names of these tools. Raises
        McpError.
        """
        return (await self._pool.use(self.key, lambda server: server.listed()))[1]

    async def version(self) -> str:
        """Returns the version of the protocol on which this session and the server have agreed. Raises McpError."""
        return (await self._pool.use(self.key, lambda server: server.listed()))[2]

    async def resources(self) -> list[McpResource]:
        """Returns the resources of the server, followed by its templates of resources, which are addresses with
        placeholders. Raises McpError.
        """
        return await self._pool.use(self.key, lambda server: server.resources())

    async def read_resource(self, uri: str) -> list[dict[str, Any]]:
        """Returns the contents of a resource in the form that MCP defines: `{"uri": …, "text": …}`, or `{"uri": …,
        "blob": …}` with bytes in base64. Raises McpError.
        """
        return await self._pool.use(self.key, lambda server: server.contents(uri))

    async def prompts(self) -> list[McpPrompt]:
        """Returns the prompts of the server. Raises McpError."""
        return await self._pool.use(self.key, lambda server: server.prompts())

    async def prompt(self, name: str, arguments: Mapping[str, str] | None = None) -> list[ChatMessage]:
        """Returns the messages of a prompt as ChatMessages. `name`: the name of the prompt. `arguments`: the values
        that the server inserts into it. Raises McpError.
        """
        return await self._pool.use(self.key, lambda server: server.messages(name, arguments or {}))


def _check_options(where: str, options: Mapping[str, Any], own: Collection[str]) -> None:
    """Raises UserError for an option that neither a server has nor the function `where`, whose parameters are `own`."""
    known = McpServerOptions.__annotations__.keys()
    if unknown := options.keys() - known:
        raise no_option(where, unknown, {*known, *own} - {"self", "options"})


def _require_sdk() -> None:
    try:
        import mcp
    except ImportError as error:
        raise MissingExtra("McpServerPool", "mcp") from error
    del mcp
