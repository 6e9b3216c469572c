"""A session with a server, and the asyncio task that owns it. The SDK demands that the same task opens and closes a
session; calls may come from any task.

   owner:  connect ─▶ initialize ─▶ list tools ─▶ ready … until it is closed, or the server ends
   call:   request ─▶ result
                   └─▶ the server asks (elicitation, sampling): the call is suspended, and its caller gets the questions
           answers ─▶ the call goes on ─▶ result

   state:  opening ─▶ open ◀─▶ hung ─▶ ended        (opening ─▶ ended, open ─▶ ended)

If a call is not answered in time, the session sends a ping. If the server answers the ping, only the tool is slow, and
the session stays open. If the server does not answer the ping, the session hangs, and new calls fail at once. If the
server then answers a call that is still under way, the session is open again. When no call is under way any more, a
hung session ends. If the sessions of a server hang again and again, `McpServerPool` decides for how long no new session
is opened.

How a server asks something before it answers a call, and how the call waits for the answers, is in `calls`.

A tool that was written for older versions (`ctx.elicit` of the SDK) cannot ask in a session of the newer one, and its
call fails at the question. Then `asks_as_before` is True, and the pool opens sessions of the older version.
"""

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any

import mcp.types as types
from mcp import Client, MCPError
from mcp.shared.inbound import find_invalid_x_mcp_header
from mcp.types import HEADER_MISMATCH, Implementation
from pydantic import BaseModel, TypeAdapter, ValidationError

from sabot.base.version import sabot_version
from sabot.engine.calls.messages import ChatMessage, assistant, user
from sabot.engine.calls.schema import Mismatch
from sabot.errors import SabotError, message_of, short_repr
from sabot.mcp.calls import OF_SESSION, AskingCalls, SentCall, restarted
from sabot.mcp.config import PROTOCOL_VERSIONS, McpConfig, McpServerSpec, SessionKey
from sabot.mcp.errors import (
    McpConnectionLost,
    McpError,
    McpInvalidAnswer,
    McpInvalidArguments,
    McpRefused,
    McpResultTooLarge,
    McpTimeout,
    McpToolChanged,
    McpUnavailable,
)
from sabot.mcp.loop_thread import seen
from sabot.mcp.offers import Offer, OfferedArguments, mismatch_with, offers_of
from sabot.mcp.results import McpPrompt, McpResource, McpResult
from sabot.mcp.transport import CONTENT, SESSION_OVER, messages_of
from sabot.mcp.wire import (
    CLOSED,
    all_pages,
    as_json,
    asks_as_before,
    block_of,
    check_encoded,
    check_granted,
    errors_in,
    first_wrong,
    is_closed,
    is_lost,
    may_pass,
    reason_of,
    recordable,
    refusal,
    responses_of,
    state_unknown,
    unsent,
    visits_wanted,
)

_log = logging.getLogger(__name__)

OnProgress = Callable[[float, float | None, str], object]
"""A function or coroutine function that is called with the progress of a call: how much is done, the total or None, and
a text."""

_PING_SECONDS = 5.0  # seconds for the answer to a ping, after a call was not answered in time
_MODERN = "2026-07-28"
_CLOSE_SECONDS = 10.0
_ROUNDS = 20  # the most rounds of a call whose server only wants to be asked again
_ROUND_SECONDS = 0.1
_CALLED: TypeAdapter[Any] = TypeAdapter(types.CallToolResult | types.InputRequiredResult)


class SessionState(StrEnum):
    """The state of a session.

    - OPENING: the client and the server have not agreed on a version of the protocol yet.
    - OPEN: calls can be made.
    - HUNG: the server does not answer. New calls fail, and nothing is sent for them.
    - ENDED: the session has ended, and is never opened again.
    """

    OPENING = "opening"
    OPEN = "open"
    HUNG = "hung"
    ENDED = "ended"


class McpConnection:
    """A session with a server, in the event loop that has opened it.

    - `state`: the SessionState; only `_enter` changes it. `version`: the version of the protocol.
    - `offers`: the tools that agents can get, by name. `left_out`: the tools that they cannot get, each with the
      reason.
    - `used_at`: the time of the last use, by the clock of the event loop. `busy`: the number of calls under way.
    - `failed_at_discover`: True if the server's program ended before the session was open. The cause may be that it is
      an older program, which does not know the first message, `server/discover`. The pool then opens a new session with
      `legacy=True`.
    - `asks_as_before`: True if a tool of the server has tried to ask something in the way of older versions.
    """

    def __init__(
        self,
        spec: McpServerSpec,
        key: SessionKey,
        config: McpConfig,
        *,
        samples: bool,
        legacy: bool,
        on_over: "Callable[[McpConnection], object]",
        on_hung: Callable[[SessionKey, str, bool], object],
    ) -> None:
        """Creates a session that is not open yet; the method `open` opens it.

        - `samples`: True if the server may request answers of a model (sampling).
        - `legacy`: True if the first message, `server/discover`, is not sent, because older servers do not know it.
        - `on_over`: a function that is called with this session when it has ended.
        - `on_hung`: a function that is called when the session ends because the server does not answer. Its arguments
          are the key, the reason, and True if the session had been open before, else False.
        """
        self.key = key
        self.offers: dict[str, Offer] = {}
        self.left_out: dict[str, str] = {}
        self.version = ""
        self.used_at = 0.0
        self.busy = 0
        self.failed_at_discover = False
        self.asks_as_before = False
        self._spec = spec
        self._config = config
        self._samples = samples
        self._legacy = legacy
        self._on_over = on_over
        self._on_hung = on_hung
        self.state = SessionState.OPENING
        self._why = ""  # the reason why it hangs or has ended
        self._over = asyncio.Event()  # set when it has ended, and its owner has to close it
        self._client: Any = None  # the client of the SDK
        self._under_way = 0  # the number of requests that wait for an answer
        self._pinging: asyncio.Task[None] | None = None
        self._stale = False  # the list of tools has changed
        self._asking = AskingCalls(key.server, config, self._doubt)
        self._listener: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """True if the session was opened and has not ended. A hung session counts as open, although new calls fail."""
        return self.state in (SessionState.OPEN, SessionState.HUNG)

    @property
    def is_modern(self) -> bool:
        """True if the session has a version of the protocol in which a server asks by the answer to a call."""
        return self.version >= _MODERN

    @property
    def _session(self) -> Any:
        """The session of the MCP SDK. Raises McpUnavailable if the session is not open."""
        if self._client is None:
            raise McpUnavailable(self.key.server, f"its session is over: {self._why}")
        return self._client.session

    @property
    def is_idle(self) -> bool:
        """True if no call is under way, and no person is being asked."""
        return not self.busy and not self._asking.is_waiting

    def _enter(self, state: SessionState, why: str = "") -> None:
        """Changes the state to `state`, and stores the reason `why`. Does nothing if the session has ended, so the
        reason of its end remains.
        """
        if self.state not in (state, SessionState.ENDED):
            self.state, self._why = state, why
            if state is SessionState.ENDED:
                self._over.set()

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Opens the session: connects, agrees on a version, and lists the tools. Raises McpUnavailable."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._own(ready), name=f"mcp {self.key}")
        try:
            async with asyncio.timeout(self._config.seconds("connect_timeout")):
                await asyncio.shield(ready)
        except TimeoutError:
            ready.cancel()
            await self.close()
            why = f"it did not agree on a session within {self._config.seconds('connect_timeout'):g} s"
            self._on_hung(self.key, why, False)
            hint = "is it an MCP server? McpConfig(connect_timeout=…) gives it longer"
            raise McpUnavailable(self.key.server, why, hint=hint) from None
        except asyncio.CancelledError:
            ready.cancel()
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the session and the process of the server, and waits until both have ended."""
        self._enter(SessionState.ENDED, "it was closed")
        if self._task is None or self._task.done():
            return
        _, running = await asyncio.wait([self._task], timeout=_CLOSE_SECONDS if self._client is not None else 0.05)
        if running:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CLOSE_SECONDS)

    async def _own(self, ready: "asyncio.Future[None]") -> None:
        """Opens the session of the MCP SDK, waits until the session has to end, and closes it. These are in one method
        because the SDK requires that the same task opens and closes a session. `ready`: a future that is set when the
        session is open, or gets the error if it cannot be opened.
        """
        error: BaseException | None = None
        try:
            async with self._opened() as client:
                self._check(client)
                self._client = client
                self._enter(SessionState.OPEN)
                await self._list_tools()
                self._watch()
                if not ready.done():
                    ready.set_result(None)
                await self._over.wait()
        except BaseException as failed:
            error = failed
        self._end(error)
        if not ready.done():
            ready.set_exception(self._unavailable(error))
        if isinstance(error, BaseException) and not isinstance(error, Exception | asyncio.CancelledError):
            raise error

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Any]:
        client = Client(
            messages_of(self._spec, self.key, self._config, self.ended, self._awaits),
            mode="legacy" if self._legacy else "auto",
            cache=None,
            client_info=Implementation(name="sabot", version=sabot_version()),
            message_handler=self._heard,
            elicitation_callback=self._elicited,
            sampling_callback=self._sampled if self._samples else None,
        )
        async with client:
            yield client

    def _check(self, client: Any) -> None:
        self.version = client.protocol_version
        oldest = self._config.protocol_version
        if PROTOCOL_VERSIONS.index(self.version) < PROTOCOL_VERSIONS.index(oldest):
            raise McpUnavailable(
                self.key.server,
                f"it speaks version {self.version} of the protocol, and McpConfig(protocol_version={oldest!r}) asks for a later one",
            )

    def ended(self, why: str) -> None:
        """Records that the server has ended the session. `why`: the reason."""
        self._enter(SessionState.ENDED, why)

    def _end(self, error: BaseException | None) -> None:
        self._enter(SessionState.ENDED, "it was closed" if error is None else reason_of(error))
        self._client = None
        if self._pinging is not None:
            self._pinging.cancel()
        if self._listener is not None:
            self._listener.cancel()
        self._asking.forget_all()
        self._on_over(self)

    def _unavailable(self, error: BaseException | None) -> SabotError:
        for each in errors_in(error):
            if isinstance(each, McpUnavailable):
                return each
            if isinstance(each, SabotError):
                if isinstance(each, McpTimeout):
                    self._on_hung(self.key, each.message.removeprefix(f"MCP server {self.key.server}: "), False)
                return unsent(each, self.key.server)
        self.failed_at_discover = not (self._legacy or self.version or self._spec.url)
        return McpUnavailable(self.key.server, f"no session could be opened: {self._why}", passes=may_pass(error))

    def _watch(self) -> None:
        """Starts a task that is informed by the server when its list of tools changes. Does nothing if the server does
        not offer such a subscription.
        """
        capabilities = self._client.server_capabilities.tools
        if self.is_modern and capabilities is not None and capabilities.list_changed:
            self._listener = asyncio.create_task(self._listen())
            self._listener.add_done_callback(seen)

    async def _listen(self) -> None:
        try:
            async with self._client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    self._stale = True
        except (MCPError, RuntimeError, TimeoutError) as error:
            _log.debug("MCP server %s: no subscription any more: %s", self.key, message_of(error))
        self._stale = True  # missed changes are looked up before the next call

    def _awaits(self) -> bool:
        """Returns True if a request is under way, if the session is still being opened, or if it has ended."""
        return not self.is_open or self._under_way > 0

    def _doubt(self, what: str) -> None:
        """Begins to ping the server, because it has not answered a request in time. New calls wait for the result of
        the ping. `what`: the text that says which request was not answered.
        """
        if self._pinging is None and self.is_open:
            self._pinging = asyncio.create_task(self._ping(what))
            self._pinging.add_done_callback(seen)

    async def _ping(self, what: str) -> None:
        seconds = min(_PING_SECONDS, self._config.seconds("request_timeout"))
        try:
            async with asyncio.timeout(seconds):
                if self.is_modern:
                    await self._session.send_discover(self.version)
                else:
                    await self._session.send_ping()
            self._answered()
        except TimeoutError:
            self._enter(SessionState.HUNG, f"it hangs: {what}, and a ping was not answered within {seconds:g} s")
        except MCPError:  # an error is an answer too; the end of the session is noticed elsewhere
            self._answered()
        finally:
            self._pinging = None
        self._end_if_hung()

    def _answered(self) -> None:
        if self.state is SessionState.HUNG:
            self._enter(SessionState.OPEN)

    def _end_if_hung(self) -> None:
        if self.state is SessionState.HUNG and not self._under_way:
            self._enter(SessionState.ENDED, self._why)
            self._on_hung(self.key, self._why, True)

    async def _until_usable(self) -> None:
        """Waits for the result of a ping, if one is under way. Raises McpUnavailable if the session hangs or has ended.
        It is called before a request, so that no request is sent in these cases.
        """
        if self._pinging is not None:
            await asyncio.wait([self._pinging])
        if self.state is not SessionState.OPEN:
            why = self._why if self.state is SessionState.HUNG else f"its session is over: {self._why}"
            raise McpUnavailable(self.key.server, why, hint="it was sent nothing, so the call may be made again")

    async def _heard(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._stale = True

    # -- requests -----------------------------------------------------------------------------------------------------

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        expects: str = "",
        timeout_s: float | None = None,
        progress: OnProgress | None = None,
        answers: Mapping[str, Any] | None = None,
        state: str = "",
        may_repeat: bool = False,
    ) -> McpResult:
        """Calls a tool, and returns its result. If the server has questions before it can answer, the result contains
        the questions and a `state`. The caller then calls this method again with the answers and this `state`.

        - `expects`: the digest of the tool that the caller knows, or its `Offer.by_hints`. If the tool has another one
          now, McpToolChanged is raised, and nothing is sent. "" for no check.
        - `timeout_s`: the time for the answer in seconds; `request_timeout` if None. It begins again with each report of
          progress, but the whole call takes at most `max_call_time`.
        - `progress`: a function, sync or async, that is called with the server's reports of progress.
        - `answers`: the answers by the keys of the questions. `state`: the `state` of the result with the questions.
        - `may_repeat`: True if it does no harm to make the call twice. If the call that had asked was under way in a
          session that has ended, the result is then `McpResult(restart=True)` instead of an error.

        Raises McpError. Its subclass shows whether the call was not sent, was done, or may have been done.
        """
        seconds = self._config.seconds("request_timeout") if timeout_s is None else timeout_s
        check_encoded(self.key.server, name, [arguments, answers])
        if (waiting := self._asking.go_on(state, answers or {})) is not None:
            return await self._asking.until_it_asks(waiting)
        if answers is not None and (state.startswith(OF_SESSION) or not self.is_modern):
            return restarted(self.key.server, name, state, may_repeat)
        check_granted(self.key.server, name, answers or {})
        await self._until_usable()
        await self.refresh([name])
        self._check_call(name, arguments, expects)
        call = SentCall(name, seconds, self._config.most_seconds(seconds))
        responses = {} if answers is None else responses_of(answers)
        request = self._request_call(call, name, arguments, expects, progress, responses, state)
        if self.is_modern:
            try:
                async with call.in_time(self.key.server, self._config, self._doubt):
                    return await request
            except McpRefused as error:
                if answers is None or not state_unknown(error):
                    raise
                return restarted(self.key.server, name, state, may_repeat)
        call.task = asyncio.create_task(request)
        call.task.add_done_callback(seen)
        return await self._asking.until_it_asks(call)

    def _check_call(self, name: str, arguments: Mapping[str, Any], expects: str) -> None:
        offer, server = self.offers.get(name), self.key.server
        if offer is None:
            why = f": {self.left_out[name]}" if name in self.left_out else ""
            raise McpToolChanged(server, f"it offers no tool {short_repr(name)}{why}")
        if expects and expects not in (offer.digest, offer.by_hints):
            allowed = " " in expects
            raise McpToolChanged(
                server,
                f"{name} was not called: its {'' if allowed else 'description, schema or '}hints are others than when it was offered",
                hint="look at them, and call pool.tools(…) again; or "
                + (f"declare its class, effects={{{name!r}: …}}" if allowed else "on_change='allow'"),
            )
        try:
            OfferedArguments(name, "", offer.schema).check(arguments)
        except Mismatch as error:
            raise McpInvalidArguments(server, f"{name} does not take these arguments: {error}") from None

    async def _request_call(
        self,
        call: SentCall,
        name: str,
        arguments: Mapping[str, Any],
        expects: str,
        progress: OnProgress | None,
        responses: Mapping[str, Any],
        state: str,
    ) -> McpResult:
        async def on_progress(done: float, total: float | None, words: str | None) -> None:
            call.prolong()
            if progress is not None:
                told = progress(done, total, (words or "")[:1000])
                if inspect.isawaitable(told):
                    await told

        relisted = False
        for _ in range(_ROUNDS):
            request = types.CallToolRequest(
                params=types.CallToolRequestParams(
                    name=name,
                    arguments=dict(arguments),
                    input_responses=dict(responses) or None,
                    request_state=state or None,
                )
            )
            try:
                send = self._session.send_request
                found = await self._sent(name, send, request, _CALLED, progress_callback=on_progress)
            except McpRefused as error:
                if self.is_modern and asks_as_before(error):
                    self.asks_as_before = True
                    raise McpConnectionLost(
                        self.key.server,
                        f"{name} was broken off when it asked in the way of older versions of the protocol, and nobody "
                        "knows what it had done before; from now on the server is used with an older version",
                        hint="legacy=True of this server uses the older version from the beginning",
                    ) from None
                if visits := visits_wanted(error):
                    return recordable(self.key.server, name, McpResult(questions=visits, restart=True))
                if error.number != HEADER_MISMATCH or relisted:  # else its schema demands headers: nothing was done
                    raise
                relisted = True
                await self._list_tools()
                self._check_call(name, arguments, expects)  # it may be another tool by now
                continue
            if isinstance(found, types.CallToolResult):
                return self._result(name, found)
            if found.input_requests:
                asked = {key: as_json(each) for key, each in found.input_requests.items()}
                return recordable(self.key.server, name, McpResult(questions=asked, state=found.request_state or ""))
            state = found.request_state or ""
            await asyncio.sleep(_ROUND_SECONDS)
        raise McpInvalidAnswer(self.key.server, f"{name} wanted to be asked again {_ROUNDS} times")

    def _result(self, name: str, found: Any) -> McpResult:
        offer = self.offers.get(name)
        blocks, structured = (found.meta or {}).get(CONTENT, (found.content, found.structured_content))
        content = [block_of(self.key.server, name, each) for each in blocks]
        if offer is not None and offer.output is not None and not found.is_error:
            wrong = mismatch_with(structured, offer.output)
            if wrong:
                why = "there is none" if structured is None else wrong
                raise McpInvalidAnswer(
                    self.key.server, f"{name}: its structured content does not match its output schema: {why}"
                )
        result = McpResult(content=content, structured=structured, is_error=bool(found.is_error))
        return recordable(self.key.server, name, result)

    async def _sent(self, what: str, send: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        """Sends a request, and returns the server's answer. Raises McpError."""
        self._under_way += 1
        try:
            found = await send(*args, **options)
            self._answered()
            return found
        except MCPError as error:
            raise self._refusal(what, error) from None
        except ValidationError as error:
            raise McpInvalidAnswer(
                self.key.server, f"{what}: its answer is not what the protocol says: {first_wrong(error)}"
            ) from None
        finally:
            self._under_way -= 1
            self._end_if_hung()

    def _refusal(self, what: str, error: Any) -> McpError:
        if error.code == SESSION_OVER or is_closed(error):
            self.ended(str(error.message))
        if is_lost(error) or (not self.is_open and error.code == CLOSED):
            return self._lost(what, "" if is_closed(error) else str(error.message))
        return refusal(self.key.server, what, error, self._config)

    def _lost(self, what: str, why: str = "") -> McpConnectionLost:
        how = "no whole answer came" if self.is_open else "the session ended before the answer came"
        return McpConnectionLost(self.key.server, f"{what}: {how}: {why or self._why or 'it was closed'}")

    # -- questions of the server --------------------------------------------------------------------------------------

    async def _elicited(self, context: Any, params: Any) -> Any:
        return await self._asking.asked("elicitation/create", params)

    async def _sampled(self, context: Any, params: Any) -> Any:
        return await self._asking.asked("sampling/createMessage", params)

    def forget(self, state: str) -> None:
        """Cancels the call that waits for answers of its caller under the key `state`, as in `AskingCalls.forget`."""
        self._asking.forget(state)

    # -- tools, resources, prompts ------------------------------------------------------------------------------------

    async def refresh(self, wanted: Iterable[str] = ()) -> None:
        """Gets the list of tools again if the server has reported a change, if the subscription to changes has ended,
        or if the list lacks one of the tools that are `wanted`: not all servers report that they have another one.
        """
        if not self._stale and self._offers_any("tools"):
            self._stale = any(name not in self.offers for name in wanted)
        if self._stale and self.is_open:
            self._stale = False
            try:
                await self._list_tools()
            except BaseException as error:
                self._stale = True  # no call may be checked against an outdated list
                if isinstance(error, McpTimeout | McpConnectionLost):  # of the list: nothing else was sent
                    raise unsent(error) from None
                raise
            if self._listener is not None and self._listener.done():
                self._watch()

    async def _list_tools(self) -> None:
        if not self._offers_any("tools"):
            self.offers, self.left_out = {}, {}
            return
        try:
            listed = await self._pages("list_tools")
        except McpResultTooLarge as error:  # the list is too large, and no call was sent
            raise unsent(error) from None
        offers, left_out = await offers_of(listed, self._config.max_description_chars, modern=self.is_modern)
        if self.is_modern:  # the SDK would not send the headers that the protocol demands, and drops them too
            for name in [*offers]:
                if wrong := find_invalid_x_mcp_header(offers[name].schema):
                    left_out[name] = f"its schema cannot be used: {wrong}"
                    del offers[name]
        if left_out != self.left_out:
            for name, why in left_out.items():
                _log.warning("MCP server %s: tool %r is left out: %s", self.key.server, name, why)
        self.offers, self.left_out = offers, left_out

    async def listed(self, wanted: Iterable[str] = ()) -> tuple[dict[str, Offer], dict[str, str], str]:
        """Returns three values: the tools that agents can get now, by name; the tools that they cannot get, by name,
        each with the reason; and the version of the protocol. `wanted`: as in `refresh`.
        """
        await self.refresh(wanted)
        return dict(self.offers), dict(self.left_out), self.version

    async def resources(self) -> list[McpResource]:
        """Returns the resources of the server, followed by its templates of resources, which are addresses with
        placeholders. The list is empty if the server has neither.
        """
        if not self._offers_any("resources"):
            return []
        found = await self._items("list_resources", types.Resource)
        with contextlib.suppress(McpRefused):  # a server without templates
            found += await self._items("list_resource_templates", types.ResourceTemplate)
        return [
            McpResource(
                each["uriTemplate"] if (is_template := "uriTemplate" in each) else each["uri"],
                each["name"],
                each.get("description", ""),
                each.get("mimeType", ""),
                is_template,
            )
            for each in found
        ]

    async def contents(self, uri: str) -> list[dict[str, Any]]:
        """Returns the contents of a resource as JSON values, in the form that MCP defines. `uri`: the address of the
        resource.
        """
        found = await self._request("read_resource", uri)
        return [as_json(each) for each in found.contents]

    async def prompts(self) -> list[McpPrompt]:
        """Returns the prompts of the server. The list is empty if the server has none."""
        if not self._offers_any("prompts"):
            return []
        return [
            McpPrompt(
                each["name"],
                each.get("description", ""),
                {one["name"]: bool(one.get("required")) for one in each.get("arguments", ())},
            )
            for each in await self._items("list_prompts", types.Prompt)
        ]

    async def messages(self, name: str, arguments: Mapping[str, str]) -> list[ChatMessage]:
        """Returns the messages of the prompt `name` as ChatMessages. `arguments`: the values that the server inserts
        into the prompt.
        """
        found = await self._request("get_prompt", name, arguments=dict(arguments))
        said = [(each.role, McpResult(content=[as_json(each.content)]).text) for each in found.messages]
        return [assistant(text) if role == "assistant" else user(text) for role, text in said]

    async def _items(self, method: str, kind: type[BaseModel]) -> list[dict[str, Any]]:
        """Returns the items of one of the server's lists without those that are ill, which the log names. `method`: as
        in `_pages`. `kind`: the model of an item.
        """
        kept = []
        for number, each in enumerate(await self._pages(method), 1):
            try:
                kept.append(as_json(kind.model_validate(each, by_name=False)))
            except ValidationError as error:
                words = self.key.server, kind.__name__.lower(), number, first_wrong(error)
                _log.warning("MCP server %s: %s %d of its list is left out: %s", *words)
        return kept

    async def _pages(self, method: str) -> list[Any]:
        """Returns all items of one of the server's lists as the server has sent them. `method`: the method of the MCP
        SDK that fetches a page of the list, such as "list_tools". Raises McpResultTooLarge if the list is too long, or
        another McpError.
        """

        async def fetch(cursor: str | None) -> Any:
            params = types.PaginatedRequestParams(cursor=cursor)
            return await self._sent(method, getattr(self._session, method), params=params)

        async with self._timed(method):
            return await all_pages(self.key.server, method, fetch, self._config)

    async def _request(self, method: str, *args: Any, **options: Any) -> Any:
        """Sends a request that changes nothing at the server, and returns the answer. `method`: the method of the MCP
        SDK that sends it. Raises McpError.
        """
        check_encoded(self.key.server, method, [args, options])
        await self._until_usable()
        async with self._timed(method):
            return await self._sent(method, getattr(self._session, method), *args, **options)

    def _offers_any(self, what: str) -> bool:
        """Returns True if the server offers `what`, which is "tools", "resources" or "prompts"."""
        return self._client is not None and getattr(self._client.server_capabilities, what) is not None

    @contextlib.asynccontextmanager
    async def _timed(self, what: str) -> AsyncIterator[None]:
        seconds = self._config.seconds("request_timeout")
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            why = f"{what} was not answered within {seconds:g} s"
            self._doubt(why)
            raise McpTimeout(self.key.server, why) from None
