"""The base of bridges. A bridge is a class whose methods call the tools of an MCP server of one kind.

The bridges are `sessions.SessionBridge` and `documents.DocumentBridge`. Each works with any server that offers the
tools that the bridge calls. These calls can be repeated without harm. So if a call did not reach the server, or its
connection broke, the bridge repeats it: by default three times, after 1, 2 and 4 seconds. If the last try fails, the
option `on_error` decides:

   "fail_fast"    an error is raised, with its code
   "graceful"     the agent continues: a snapshot, or the end of a session, is kept in this process and sent with the
                  next heartbeat, and a search returns the last answer to the same query

In both modes a refusal of the server raises an error, and no data are made up.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol, get_args

import msgspec

from sabot.base.backoff import Backoff
from sabot.base.checks import is_whole
from sabot.base.config import Duration, parse_seconds
from sabot.errors import UNREADABLE, SabotError, TransientError, UserError, message_of, short_repr
from sabot.mcp.results import McpResult

_log = logging.getLogger("sabot.mcp.bridges")

_LONGEST_BACKOFF_SECONDS = 30.0

OnBridgeError = Literal["fail_fast", "graceful"]


class CallTool(Protocol):
    """The interface of a session with an MCP server whose tools can be called. `McpSession` implements it."""

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, timeout: Duration | None = None
    ) -> McpResult:
        """Calls a tool once, and returns its result. `timeout`: the time for the answer; None for the session's
        default. Raises TransientError or TimeoutError if the server cannot be reached or does not answer; another
        SabotError if it refuses.
        """


class BridgedServer:
    """A server whose tools a bridge calls. If the server cannot be reached, a call is tried again, at most `retries`
    times.

    - `on_error`: "fail_fast" or "graceful". `ask` says what each means if the server cannot be reached in any try.
    - `backoff`: the wait before the second try. It doubles each time, up to 30 seconds.
    - `timeout`: the time limit of each try.
    - `reachable`: False if the server could not be reached in the last call, else True.
    """

    def __init__(
        self,
        server: CallTool,
        on_error: OnBridgeError,
        retries: int,
        backoff: Duration,
        timeout: Duration,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        if on_error not in get_args(OnBridgeError):
            raise UserError(f"bridge: on_error={short_repr(on_error)}", hint=" or ".join(get_args(OnBridgeError)))
        if not is_whole(retries, 0):
            raise UserError(f"bridge: retries={short_repr(retries)}", hint="a whole number from 0 up")
        self._server = server
        self.graceful = on_error == "graceful"
        self._retries = retries
        self._backoff = Backoff(parse_seconds(backoff, name="bridge: backoff"), _LONGEST_BACKOFF_SECONDS)
        self._timeout_s = parse_seconds(timeout, name="bridge: timeout", zero=False)
        self._sleep = sleep
        self.reachable = True

    async def ask(
        self,
        name: str,
        arguments: Mapping[str, Any],
        error: type[SabotError],
        what: str,
        *,
        once_s: float | None = None,
        gone: type[SabotError] | None = None,
    ) -> dict[str, Any] | None:
        """Calls the tool `name`, and returns its answer, which is a JSON object. If the server cannot be reached in any
        try:

        - If `gone` is given, raises an error of the class `gone`.
        - Else, if the bridge has `on_error="graceful"`, returns None.
        - Else, raises an error of the class `error`.

        Also raises `error` if the tool refuses the call or fails, and if its answer is not a JSON object. `what`: the
        text with which the message of the error begins. `once_s`: if given, there is only one try, and it has this time
        limit in seconds.
        """
        tries = 1 if once_s is not None else self._retries + 1
        for attempt in range(tries):
            try:
                answer = await self._server.call(name, arguments, timeout=once_s or self._timeout_s)
            except (TransientError, TimeoutError) as failure:
                if attempt + 1 < tries:
                    await self._sleep(self._backoff.wait_s(attempt + 1))
                    continue
                if self.reachable:
                    _log.warning("%s: %s cannot be reached: %s", what, name, message_of(failure))
                self.reachable = False
                if gone is None and self.graceful:
                    return None
                raise (gone or error)(f"{what}: {name} cannot be reached: {message_of(failure)}") from failure
            except SabotError as failure:
                self.reachable = True
                raise error(f"{what}: {name}: {failure.message}", hint=failure.hint) from failure
            self.reachable = True
            if answer.is_error:
                raise error(f"{what}: {name}: {answer.text[:500]}")
            return _object(answer, name, error, what)
        raise AssertionError("the last try returns or raises")


def _object(answer: McpResult, name: str, error: type[SabotError], what: str) -> dict[str, Any]:
    said = answer.structured
    try:
        said = msgspec.json.decode(answer.text) if said is None else said
    except UNREADABLE:
        raise error(f"{what}: {name} answers no JSON: {short_repr(answer.text)}") from None
    if isinstance(said, dict) and said.keys() == {"result"} and isinstance(said["result"], dict):
        said = said["result"]
    if not isinstance(said, dict):
        raise error(f"{what}: {name} answers no object: {short_repr(said)}")
    return said
