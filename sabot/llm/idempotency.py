"""Calls that several callers share, and calls that are made once for each idempotency key.

A `SharedCall` runs in a task of its own. All callers that wait for it get its result, or its pieces from the first
one on. It is cancelled when the last of them has stopped waiting.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgspec

from sabot.base.checks import Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.base.options import answers_wrong_options
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.cache import UNKNOWN, AnswerCache
from sabot.engine.calls.errors import ModelTimeout, ModelUnavailable
from sabot.engine.calls.model_requests import RequestContext
from sabot.errors import IdempotencyConflict, UserError
from sabot.llm.results import Completion, Piece, in_pieces

HOOKS = ("idempotency.start", "idempotency.hit", "idempotency.conflict", "idempotency.complete", "idempotency.fail")


class SharedCall:
    """One call of a model whose answer is passed to several callers.

    - `work`: a coroutine function that makes the call and returns the answer. It gets a function as its argument, and
      calls this function with each piece of the answer.
    - `name`: the name of the call in error messages.
    """

    def __init__(self, work: Callable[[Callable[[Piece], None]], Coroutine[Any, Any, Completion]], name: str) -> None:
        # True when the last caller has left: the call is being cancelled, and no new caller may share it.
        self.abandoned = False
        self._name = name
        self._pieces: list[Piece] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._users = 0
        self._task = asyncio.get_running_loop().create_task(work(self._emit), name=name)
        self._task.add_done_callback(self._ended)

    async def result(self, timeout_s: float | None = None) -> Completion:
        """Returns the answer, or raises the error of the call. Raises ModelTimeout if there is no answer within
        `timeout_s` seconds; other callers continue to wait.
        """
        self._users += 1
        try:
            await asyncio.wait([self._task], timeout=timeout_s)
            if not self._task.done():
                raise ModelTimeout(f"{self._name}: the call in flight with this key has no answer after {timeout_s} s")
            return self._result()
        finally:
            await self._leave()

    async def stream(self) -> AsyncGenerator[Piece, None]:
        """Yields all pieces of the answer from the first on, and finally a piece with the whole answer as a Completion.
        If the answer was not streamed, its text and its tool calls are yielded as pieces.
        """
        self._users += 1
        try:
            seen = 0
            while True:
                while seen < len(self._pieces):
                    yield self._pieces[seen]
                    seen += 1
                if self._task.done():
                    break
                waiter = asyncio.get_running_loop().create_future()
                self._waiting.append(waiter)
                await waiter
            completion = self._result()
            if seen:
                yield Piece(completion=completion)
            else:
                async for piece in in_pieces(completion):
                    yield piece
        finally:
            await self._leave()

    async def cancel(self) -> None:
        """Cancels the call. Callers that wait for it get ModelUnavailable."""
        self.abandoned = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _leave(self) -> None:
        self._users -= 1
        if not self._users and not self._task.done():
            await self.cancel()

    def _result(self) -> Completion:
        if self._task.cancelled():
            raise ModelUnavailable(f"{self._name}: the call was cancelled", hint="the engine was closed")
        return self._task.result()

    def _emit(self, piece: Piece) -> None:
        self._pieces.append(piece)
        self._wake()

    def _ended(self, task: "asyncio.Task[Completion]") -> None:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it if no caller waits any more
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()


@dataclass(frozen=True, slots=True)
class IdempotencyEvent:
    """The argument of a hook that was registered with `IdempotencyTracker.on`.

    - `name`: the name of the event, such as "idempotency.hit".
    - `key`, `context`: the idempotency key and the RequestContext of the model call.
    """

    name: str
    key: str
    context: RequestContext


@answers_wrong_options
class IdempotencyTracker:
    """A tracker of idempotency keys: of several calls with the same key, only the first makes a request. Each tenant
    (`RequestContext.tenant_id`) has its own keys. Several engines of one event loop may use the same tracker.

    - If the first call is still in flight, later calls with its key wait for its answer.
    - If it was answered, later calls get the stored answer.
    - If it failed, the next call with the key makes a new request.
    - If a later call with the key has a different request, it raises IdempotencyConflict.

    `request_timeout`: how long a later call of `complete` waits for the first one before it raises ModelTimeout; a later
    `stream` has no such limit. `most`: the most answers that are stored. `ttl`: how long an answer is stored, or None
    for no limit. `hits`: the number of calls that made no request.
    """

    def __init__(
        self,
        request_timeout: Duration = 60.0,
        *,
        most: int = 10_000,
        ttl: Duration | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.request_timeout_s = parse_seconds(request_timeout, name="request_timeout")
        check("IdempotencyTracker: most", most, Whole(0))
        self.hits = 0
        ttl_s = None if ttl is None else parse_seconds(ttl, name="ttl")
        self._answers: AnswerCache[tuple[str, str]] = AnswerCache(most, ttl_s, clock)
        self._in_flight: dict[tuple[str, str], tuple[bytes, SharedCall]] = {}
        self._hooks: dict[str, list[Callable[[IdempotencyEvent], None]]] = {name: [] for name in HOOKS}

    def on(self, name: str, hook: Callable[[IdempotencyEvent], None]) -> None:
        """Registers a function that is called with an IdempotencyEvent when the event `name` occurs:

        - "idempotency.start": a call with a new key begins.
        - "idempotency.hit": a call shares the answer of an earlier call with its key.
        - "idempotency.conflict": a call has the key of a different request.
        - "idempotency.complete": the answer was stored.
        - "idempotency.fail": the call has failed or was cancelled.

        An error that the hook raises becomes the error of the call. Raises UserError for another name.
        """
        if name not in self._hooks:
            raise UserError(f"IdempotencyTracker: {name!r} is no hook", hint=", ".join(HOOKS))
        self._hooks[name].append(hook)

    def find(self, key: str, content: bytes, context: RequestContext) -> Completion | SharedCall | None:
        """Looks up an idempotency key. Returns the stored answer of an earlier call with this key, or that call if it
        is still in flight. Returns None if there is neither; then the caller has to begin the call with `start`.

        `content`: a digest of the request. `context`: its `tenant_id` is part of the key. Raises IdempotencyConflict if
        the earlier call had a different digest.
        """
        place = _scoped_key(key, context)
        found = self._in_flight.get(place)
        if found is None or found[1].abandoned:
            found = self._answers.known(place, self._answers.now())
            if found is UNKNOWN:
                return None
        if found[0] != content:
            self._call_hooks("idempotency.conflict", key, context)
            raise IdempotencyConflict(
                f"idempotency key {key!r} was used for another request",
                hint="a key for each request, the same for its repetitions",
            )
        self.hits += 1
        self._call_hooks("idempotency.hit", key, context)
        answer: Completion | SharedCall = found[1]
        return answer

    def start(self, key: str, content: bytes, context: RequestContext, make: Callable[[], SharedCall]) -> SharedCall:
        """Calls `make`, which starts the model call, and returns this call. The call remains registered as in flight
        until `complete` or `fail` is called for it. `content`: a digest of the request.
        """
        self._call_hooks("idempotency.start", key, context)
        call = make()
        self._in_flight[_scoped_key(key, context)] = (content, call)
        return call

    def complete(self, key: str, content: bytes, context: RequestContext, call: SharedCall, answer: Completion) -> None:
        """Stores the answer of the call for later calls with its key, and removes the call from the calls in flight.
        Calls the functions that were registered for the event "idempotency.complete".
        """
        self._end(key, context, call)
        self._answers.keep(_scoped_key(key, context), (content, msgspec.structs.replace(answer, output=None)))
        self._call_hooks("idempotency.complete", key, context)

    def fail(self, key: str, context: RequestContext, call: SharedCall) -> None:
        """Removes a call that failed or was cancelled from the calls in flight, so that its key can be used again.
        Calls the functions that were registered for the event "idempotency.fail".
        """
        self._end(key, context, call)
        self._call_hooks("idempotency.fail", key, context)

    def _end(self, key: str, context: RequestContext, call: SharedCall) -> None:
        """Removes `call` from the calls in flight. Does nothing if another call with the same key has replaced it. That
        can happen if all callers have stopped waiting for `call`, and a new caller used the key before `call` ended.
        """
        place = _scoped_key(key, context)
        found = self._in_flight.get(place)
        if found is not None and found[1] is call:
            del self._in_flight[place]

    def _call_hooks(self, name: str, key: str, context: RequestContext) -> None:
        for hook in self._hooks[name]:
            hook(IdempotencyEvent(name, key, context))


def _scoped_key(key: str, context: RequestContext) -> tuple[str, str]:
    return context.tenant_id or "", key
