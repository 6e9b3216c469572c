"""The base of bridges: classes that call the tools of a server, and repeat a call while the server cannot be reached.

The bridges are `sessions.SessionBridge` and `documents.DocumentBridge`; each works with any MCP server that offers the
tools that it calls. Repeating such a call does no harm, so a call that did not reach the server, or whose connection
broke, is repeated three times, after 1, 2 and 4 seconds. The option `on_error` decides what follows after the last try.

   "fail_fast"    an error with its code
   "graceful"     the agent goes on: a snapshot is kept here and sent with the next heartbeat, a search returns its last answer

Neither mode invents data. A refusal of the server is an error in both.
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

_log = logging.getLogger(__name__)

_LONGEST_BACKOFF_SECONDS = 30.0

OnBridgeError = Literal["fail_fast", "graceful"]


class CallTool(Protocol):
    """A session with a server in which tools can be called. `McpSession` is such a session."""

    async def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, timeout: Duration | None = None
    ) -> McpResult:
        """Calls a tool once. Raises TransientError or TimeoutError if the server cannot be reached or does not answer, and another
        SabotError if it refuses.
        """


class BridgedServer:
    """The tools of a server, whose calls are repeated while it cannot be reached."""

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
        """Calls the tool `name`, and returns its answer, a JSON object. Returns None if the server cannot be reached, `on_error`
        is "graceful" and `gone` is None.

        - `error`: the class of the error to raise if the tool refuses, if its answer is no object, or if the server cannot be
          reached. `what`: the words with which its message begins.
        - `once_s`: if given, the call is tried once only, within so many seconds.
        - `gone`: if given, the class of the error to raise if the server cannot be reached, even if `on_error` is "graceful".
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
