"""Calls of a server's tools that are under way: their time, the server's questions, and the wait for the answers.

A server may have to ask something before it can answer a call. Since version 2026-07-28 of the protocol it puts the
question into its answer, with a state that the next request returns to it. The call has ended with the question, so if
the server does not know the state any more, the call begins anew. In older versions the server sends a request of its
own while the call is under way. This request does not name the call, so this module can answer it only if a single call
is under way. If the session ends before the answer, nobody knows what the call has done.
"""

import asyncio
import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import mcp.types as types

from sabot.mcp.config import McpConfig
from sabot.mcp.errors import McpConnectionLost, McpInvalidAnswer, McpTimeout
from sabot.mcp.results import McpResult
from sabot.mcp.wire import as_json, recordable, responses_of

OF_SESSION = "session:"
"""The beginning of the states of calls that wait in their session."""

_BEFORE = re.compile("[0-9a-f]{32}")  # … as journals of earlier versions of Sabot have them
_ANSWER_SECONDS = 60.0  # seconds in which the answer of a person must be passed on


@dataclass(slots=True, eq=False)
class SentCall:
    """A call of a tool that is under way.

    - `name`: the name of the tool. `seconds`: the time in which the server has to answer, in seconds.
    - `left`: the seconds that remain for the whole call. The time in which a person answers questions is not
      subtracted.
    - `ends`: the time at which `left` is used up, by the clock of the event loop.
    - `deadline`: the time limit for the answer; None while the call does not wait for the server.
    - `task`: the task that waits for the server's result. It is None for versions of the protocol since 2026-07-28, in
      which the server ends the request to ask a question.
    - `asked`: the questions of the server that the caller has not answered yet, by their keys.
    - `asks`: a future that is done when the server has asked a question.
    - `answers`: for each question, by its key, the future that gets the answer of the caller.
    - `forget`: the timer that cancels the call if the caller does not answer the questions.
    """

    name: str
    seconds: float
    left: float  # the seconds that are left for the whole call
    ends: float = 0.0  # the end of these seconds, by the loop's clock
    deadline: asyncio.Timeout | None = None
    task: "asyncio.Task[McpResult] | None" = None
    asks: "asyncio.Future[None] | None" = None
    forget: asyncio.TimerHandle | None = None
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: "dict[str, asyncio.Future[Any]]" = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def in_time(self, server: str, config: McpConfig, late: Callable[[str], object]) -> AsyncIterator[None]:
        """Limits the time of the `with` block, in which the call waits for the server. At the end of that time, calls
        `late` with a text that says what was not answered, and raises McpTimeout.

        The limit is `self.seconds`; a report of progress begins it again (`prolong`). But the block takes at most
        `self.left`, the seconds that remain for the whole call. At the end of the block, the time that it took is
        subtracted from `self.left`.
        """
        now = asyncio.get_running_loop().time
        self.ends = now() + self.left
        try:
            async with asyncio.timeout(min(self.seconds, self.left)) as self.deadline:
                yield
        except TimeoutError:
            words, hint = f"within {self.seconds:g} s", "timeout= gives it longer"
            if self.deadline is not None and (self.deadline.when() or 0) >= self.ends:
                words = f"within {config.most_seconds(self.seconds):g} s, though it reported progress"
                hint = "McpConfig(max_call_time=…) gives it longer"
            late(f"{self.name} did not answer in time")
            raise McpTimeout(server, f"{self.name} did not answer {words}", hint=hint) from None
        finally:
            self.left, self.deadline = max(0.0, self.ends - now()), None

    def prolong(self) -> None:
        """Begins the time for the answer again, because the server has reported progress."""
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(min(asyncio.get_running_loop().time() + self.seconds, self.ends))

    def go_on(self, answers: Mapping[str, Any]) -> None:
        """Passes the caller's answers to the futures that wait for them, so that the call continues. `answers`: the
        answers by the keys of the questions.
        """
        if self.forget is not None:
            self.forget.cancel()
        responses = responses_of({key: each for key, each in answers.items() if key in self.asked})
        for key in responses:
            self.asked.pop(key)
            if not self.answers[key].done():
                self.answers[key].set_result(responses[key])
        self.asks = None if self.asked else self.asks

    def cancel(self) -> None:
        """Ends the call. The server gets an error in place of each answer for which it still waits."""
        if self.task is not None:
            self.task.cancel()
        for answer in self.answers.values():
            if not answer.done():
                answer.set_result(types.ErrorData(code=-32600, message="nobody has answered"))


class AskingCalls:
    """The calls of one session whose server asks while they are under way (versions of the protocol before
    2026-07-28).
    """

    def __init__(self, server: str, config: McpConfig, late: Callable[[str], object]) -> None:
        """`late`: as in `SentCall.in_time`."""
        self._server = server
        self._config = config
        self._late = late
        self._calls: set[SentCall] = set()  # those that wait for the server
        self._suspended: dict[str, SentCall] = {}  # those that wait for their caller's answers, by state

    @property
    def is_waiting(self) -> bool:
        """True if a call waits for the answers of its caller."""
        return bool(self._suspended)

    def go_on(self, state: str, answers: Mapping[str, Any]) -> SentCall | None:
        """Gives the answers to the call that waits for them under the key `state`, and returns it; None if there is no
        such call.
        """
        call = self._suspended.pop(state, None)
        if call is not None:
            call.go_on(answers)
        return call

    async def until_it_asks(self, call: SentCall) -> McpResult:
        """Waits for the result of the call, and returns it. If the server asks something first, returns a result with
        the questions instead. The call then remains stored until `go_on` gets the answers. If they do not come within
        `question_timeout` plus one minute, the call is cancelled.
        """
        assert call.task is not None
        stays = False
        self._calls.add(call)
        if not call.asked:
            call.asks = asyncio.get_running_loop().create_future()
        try:
            async with call.in_time(self._server, self._config, self._late):
                if call.asks is not None:
                    waiting: list[asyncio.Future[Any]] = [call.task, call.asks]
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if call.task.done():
                return call.task.result()
            stays = True
            state = f"{OF_SESSION}{secrets.token_hex(16)}"
            self._suspended[state] = call
            seconds = self._config.seconds("question_timeout") + _ANSWER_SECONDS
            call.forget = asyncio.get_running_loop().call_later(seconds, self.forget, state)
            return McpResult(questions=dict(call.asked), state=state)
        finally:
            self._calls.discard(call)
            if not stays:
                call.cancel()

    async def asked(self, method: str, params: Any) -> Any:
        """Passes a question of the server to the caller of the tool, waits for the answer, and returns it. The question
        does not say to which call it belongs. So if there is no call or more than one, an error for the server is
        returned. The same happens if the call has had `max_questions` questions.
        """
        # A call that waits for its server comes first; a suspended one may ask on while its caller answers.
        calls = list(self._calls or self._suspended.values())
        if len(calls) != 1:
            several = "several calls are" if calls else "no call is"
            return types.ErrorData(code=-32600, message=f"{several} under way: nobody can say who is asked")
        call = calls[0]
        if len(call.answers) >= self._config.max_questions:
            return types.ErrorData(code=-32600, message="it has asked too much")
        asked = {"method": method, "params": as_json(params)}
        try:
            recordable(self._server, method, asked)
        except McpInvalidAnswer as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=error.message)
        key = f"q{len(call.answers) + 1}"
        call.answers[key] = answer = asyncio.get_running_loop().create_future()
        call.asked[key] = asked
        if call.asks is not None and not call.asks.done():
            call.asks.set_result(None)
        return await answer

    def forget(self, state: str) -> None:
        """Cancels the call that waits for answers of its caller under the key `state`. Does nothing if the call has got
        its answers or has ended.
        """
        call = self._suspended.pop(state, None)
        if call is not None:
            call.cancel()

    def forget_all(self) -> None:
        """Cancels all calls that wait for answers of their callers."""
        for state in list(self._suspended):
            self.forget(state)


def restarted(server: str, name: str, state: str, may_repeat: bool) -> McpResult:
    """Returns the result that tells the caller to begin the call anew, because neither its session nor the server
    knows `state`. Raises McpConnectionLost if the call was under way in a session when it asked, since it may have
    changed something before its question, unless `may_repeat` is True.
    """
    if not may_repeat and (state.startswith(OF_SESSION) or _BEFORE.fullmatch(state)):
        raise McpConnectionLost(
            server,
            f"{name}: its session ended while a person was asked, and nobody knows what it had done before",
        )
    return McpResult(restart=True)
