"""The engine: it makes equal requests once, keeps limits, repeats failed calls, asks fallbacks, and counts tokens and
cost.

complete, stream ─▶ idempotency key? ─▶ cache? ─▶ for each provider: middleware ─▶ circuit ─▶ limits ─▶ the provider
                    in flight: shared    found:      logging, timeout, retry,
                    answered: its answer its answer  budget, telemetry, the program's own
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, Self, overload

import msgspec

from sabot.base.checks import Of, Whole, check
from sabot.base.config import Duration, parse_seconds
from sabot.clock import SYSTEM_CLOCK, Clock
from sabot.engine.calls.errors import BudgetExceeded, ModelError, ModelUnavailable, with_message
from sabot.engine.calls.judging import RefusingJudge
from sabot.engine.calls.messages import ChatMessage
from sabot.engine.calls.model_figures import join_loop
from sabot.engine.calls.model_requests import NamesCaller, RequestContext, RequestSpec, context_of
from sabot.engine.calls.options import Retry
from sabot.engine.calls.schema import Schema
from sabot.engine.calls.usage import Usage
from sabot.errors import EffectError, PolicyDenied, TransientError, UserError, short_repr
from sabot.llm.cache import CompletionCache
from sabot.llm.idempotency import IdempotencyTracker, SharedCall
from sabot.llm.judges import judge_of_this
from sabot.llm.limits import CircuitBreaker, Limits
from sabot.llm.middleware import (
    MIDDLEWARE,
    BuiltIn,
    CallBudget,
    CallFigures,
    DecidedRequest,
    Middleware,
    ModelCall,
    Outcome,
    chained,
)
from sabot.llm.prices import Prices, known_prices
from sabot.llm.provider import Provider
from sabot.llm.requests import declared_schema, error_of_end, request_of, with_output
from sabot.llm.results import Completion, Embeddings, Piece, in_pieces, joined
from sabot.llm.route import Route

# If the caller that began a shared call gets one of these, the other callers make the call themselves.
_CALLER_ERRORS = (BudgetExceeded, EffectError)
_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("cache", CompletionCache, "MemoryCache(), SqliteCache(path), RedisCache(url)"),
    ("idempotency_tracker", IdempotencyTracker, "IdempotencyTracker()"),
    ("limits", Limits, "Limits(concurrency=…)"),
    ("breaker", CircuitBreaker, "CircuitBreaker()"),
    ("prices", Prices, "PriceTable({…}, version=…), GenaiPrices()"),
)
_TEXTS_AT_ONCE = 256  # in one request for embeddings
_CACHED_REASONS = ("stop", "tool_calls")


class Engine:
    """The base class of `ExecutionEngine`. It makes the calls; `ExecutionEngine` only adds methods for streams and
    agents.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        cache: CompletionCache | None = None,
        idempotency_tracker: IdempotencyTracker | None = None,
        limits: Limits | None = None,
        fallback: Sequence[Provider] = (),
        retries: int = 3,
        backoff: Duration = "500ms",
        patience: Duration = "2m",
        timeout: Duration | None = "2m",
        total_timeout: Duration | None = None,
        max_answer_bytes: int | None = 64 << 20,
        breaker: CircuitBreaker | None = None,
        budget: CallBudget | None = None,
        prices: Prices | None = None,
        middleware: Sequence[str | Middleware] = MIDDLEWARE,
        clock: Clock = SYSTEM_CLOCK,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        seed: int | None = None,
    ) -> None:
        check("ExecutionEngine: retries", retries, Whole(0))
        check("ExecutionEngine: fallback", fallback, Of(Sequence, "a list of providers"))
        for each in (provider, *fallback):
            if isinstance(each, type) or not isinstance(each, Provider):
                raise UserError(
                    f"ExecutionEngine: {short_repr(each)} is no provider",
                    hint='OpenAIProvider("gpt-4o-mini"), AnthropicProvider(…), or any object with the methods of sabot.llm.Provider',
                )
        if max_answer_bytes is not None:
            check("ExecutionEngine: max_answer_bytes", max_answer_bytes, Whole(1))
        for given, (name, kind, hint) in zip(
            (cache, idempotency_tracker, limits, breaker, prices), _PARTS, strict=True
        ):
            check(f"ExecutionEngine: {name}", given, Of(kind | None, hint))
        prices = known_prices() if prices is None else prices
        self._cache, self._tracker, self._clock = cache, idempotency_tracker, clock
        self.concurrency = (limits or Limits()).concurrency  # requests that a provider may have in flight at most
        self._figures = CallFigures()
        built_in = BuiltIn(
            timeout_s=_seconds("timeout", timeout),
            total_s=_seconds("total_timeout", total_timeout),
            retry=Retry(retries, parse_seconds(backoff, name="backoff")),
            patience_s=parse_seconds(patience, name="patience"),
            budget=budget,
            prices=prices,
            figures=self._figures,
            clock=clock,
            sleep=sleep,
            dice=random.Random(seed),
        )
        if breaker is None and fallback:
            breaker = CircuitBreaker()
        self._routes = [
            Route(each, limits or Limits(), breaker, prices, clock, sleep, max_answer_bytes)
            for each in (provider, *fallback)
        ]
        self._chains = [chained(middleware, built_in, route.send) for route in self._routes]
        self.tool_middleware = built_in.tool_middleware(middleware)
        self._calls_by_key: dict[
            bytes, SharedCall
        ] = {}  # the calls in flight whose answers will be written to the cache
        self._shared: set[SharedCall] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._in_flight = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def provider(self) -> Provider:
        """The provider that is asked first."""
        return self._routes[0].provider

    # -- calls --------------------------------------------------------------------------------------------------------

    async def complete(
        self,
        prompt: Any,
        *,
        output: Any = None,
        idempotency_key: str = "",
        context: RequestContext | NamesCaller | None = None,
        timeout: Duration | None = None,
        budget: CallBudget | None = None,
        cache: bool | CompletionCache = True,
        **fields: Any,
    ) -> Completion:
        """Asks the model, and returns its whole answer.

        - `prompt`: a text, a ChatMessage, a list of them, or a RequestSpec.
        - `output`: a type, a dict of columns, or a JSON schema (see `Schema`). The decoded answer is in
          `Completion.output`, which is None if the model calls tools.
        - `idempotency_key`: a key by which the engine's IdempotencyTracker recognizes a repeated call; "" for none.
        - `context`: a RequestContext or an ExecutionContext, with the tenant and the user of the call. None is that of the
          job that makes the call, if there is one.
        - `timeout`: the time limit of one attempt; None for that of the engine.
        - `budget`: a budget for this call, in addition to that of the engine. Without the layer "budget" in the
          engine's `middleware` it has no effect.
        - `cache`: True to use the engine's cache; False to use no cache; a CompletionCache to use it if the engine has
          no cache of its own.
        - `fields`: fields of the RequestSpec. If `prompt` is a RequestSpec, they replace its fields. The field `tools`
          may contain Tools.

        Raises MalformedAnswer if the answer does not match `output`; another ModelError if the call has failed;
        BudgetExceeded; PolicyDenied; IdempotencyConflict if the key was used for a different request; UserError for
        arguments that are not valid, and if the function of a durable agent calls this method: it has to use
        `ctx.llm(engine)`.
        """
        call, schema = self._call("complete", prompt, output, idempotency_key, context, timeout, budget, fields)
        while True:
            shared, joined = self._find_or_start(call, schema, cache)
            if shared is None:
                return with_output(await self._ask(call), schema)
            try:
                if isinstance(shared, SharedCall):
                    limited = joined and call.idempotency_key and self._tracker
                    shared = await shared.result(limited.request_timeout_s if limited else None)
                return with_output(_without_cost(shared) if joined else shared, schema)
            except _CALLER_ERRORS:
                if not joined:
                    raise

    def stream(
        self,
        prompt: Any,
        *,
        output: Any = None,
        idempotency_key: str = "",
        context: RequestContext | NamesCaller | None = None,
        timeout: Duration | None = None,
        budget: CallBudget | None = None,
        cache: bool = True,
        **fields: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Asks the model, and yields its answer in pieces as they come. The last piece contains the whole answer as a
        Completion. Parameters and errors are those of `complete`, but `timeout` limits the wait for each piece. A call
        that fails after its first piece is not repeated. To end the request early, close the generator (`contextlib.aclosing`).
        """
        call, schema = self._call("stream", prompt, output, idempotency_key, context, timeout, budget, fields)
        return self._stream(call, schema, cache)

    async def _stream(self, call: ModelCall, schema: Schema | None, cache: bool) -> AsyncGenerator[Piece, None]:
        emitted = 0
        while True:
            shared, joined = self._find_or_start(call, schema, cache)
            if shared is None:
                shared = self._start(call, lambda _: self._answer(call, schema))
            pieces = shared.stream() if isinstance(shared, SharedCall) else in_pieces(shared)
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        if piece.completion is not None:
                            answer = _without_cost(piece.completion) if joined else piece.completion
                            piece = Piece(completion=with_output(answer, schema))
                        emitted += 1
                        yield piece
                return
            except _CALLER_ERRORS:
                if emitted or not joined:
                    raise

    async def complete_in_pieces(
        self, spec: RequestSpec, listener: Callable[[Piece], None], *, idempotency_key: str = "", cache: bool = True
    ) -> Completion:
        """Asks the model as `stream` does, calls `listener` with each piece of the answer when it comes, and returns the
        whole answer. Costs less than `stream`: without a cache and a tracker of idempotency keys, the request has no task
        and no queue of its own.
        """
        call = self._new_call("stream", spec, idempotency_key, None, None, None)
        if (self._cache is None or not cache) and (self._tracker is None or not idempotency_key):
            self._check()
            call.listener = listener
            return await self._ask(call)
        async with aclosing(self._stream(call, None, cache)) as pieces:
            async for piece in pieces:
                if piece.completion is not None:
                    return piece.completion
                listener(piece)
        raise ModelUnavailable("the stream ended before the answer", provider=call.provider, model=call.model)

    @overload
    async def complete_many(
        self, prompts: Iterable[Any], *, errors: Literal["raise"] = "raise", concurrency: int = 1000, **how: Any
    ) -> list[Completion]: ...

    @overload
    async def complete_many(
        self, prompts: Iterable[Any], *, errors: Literal["return"], concurrency: int = 1000, **how: Any
    ) -> list[Completion | ModelError | BudgetExceeded | PolicyDenied]: ...

    async def complete_many(
        self, prompts: Iterable[Any], *, errors: str = "raise", concurrency: int = 1000, **how: Any
    ) -> Any:
        """Asks the model about each prompt, and returns the answers in the order of the prompts.

        - `how`: parameters of `complete`, used for each prompt.
        - `errors`: "raise" cancels the other calls after the first error, and raises it. "return" puts a ModelError,
          BudgetExceeded or PolicyDenied into the returned list in place of the answer; other errors are raised.
        - `concurrency`: the most calls of `complete` at the same time; the engine's limits can allow fewer requests.
          The next prompt is read from the iterable when one of these calls has ended.
        """
        check("complete_many: concurrency", concurrency, Whole(1))
        if errors not in ("raise", "return"):
            raise UserError(f"complete_many: errors={errors!r}", hint="'raise' or 'return'")
        if isinstance(prompts, str | ChatMessage | RequestSpec):
            raise UserError(
                f"complete_many: {short_repr(prompts)} is one prompt", hint="complete(…), or a list of prompts"
            )
        answers: dict[int, Any] = {}
        source = enumerate(prompts)

        async def work() -> None:
            for place, prompt in source:
                try:
                    answers[place] = await self.complete(prompt, **how)
                except (ModelError, BudgetExceeded, PolicyDenied) as error:
                    if errors == "raise":
                        raise
                    answers[place] = error

        size = len(prompts) if isinstance(prompts, Sequence) else concurrency
        await _gather(work() for _ in range(min(concurrency, size)))
        return [answers[place] for place in sorted(answers)]

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        context: RequestContext | NamesCaller | None = None,
        timeout: Duration | None = None,
        budget: CallBudget | None = None,
    ) -> Embeddings:
        """Returns a vector for each text. More than 256 texts are sent in several requests. Only the first provider
        is asked, because vectors of different models cannot be compared. `model`: the model that is asked; that of the
        provider if "". If one of several requests fails, the others are cancelled, and its error is raised. Raises
        the errors of `complete`.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(each, str) for each in texts):
            raise UserError(f"embed: {short_repr(texts)} is no list of texts", hint='engine.embed(["a text", …])')
        calls = [
            self._new_call("embed", RequestSpec(messages=(), model=model), "", context, timeout, budget)
            for _ in range(0, len(texts), _TEXTS_AT_ONCE)
        ]
        for place, call in enumerate(calls):
            call.texts = tuple(texts[place * _TEXTS_AT_ONCE : (place + 1) * _TEXTS_AT_ONCE])
        parts: list[Any] = await _gather(self._through(call, 1) for call in calls)
        return parts[0] if len(parts) == 1 else joined(parts)

    def price(self, model: str, usage: Usage) -> Decimal | None:
        """Returns the cost in US dollars of this usage with a model of the first provider, or None if the price is
        unknown.
        """
        return self._routes[0].price(model, usage)

    def most_cost(self, model: str, usage: Usage) -> Decimal | None:
        """Computes the cost of this usage with the first provider and `model`, and with each fallback and its own
        model. Returns the highest cost in US dollars, or None if none of the prices is known.
        """
        others = (each.price(each.provider.model, usage) for each in self._routes[1:])
        return max((each for each in (self.price(model, usage), *others) if each is not None), default=None)

    async def close(self) -> None:
        """Cancels the calls that several callers share, including streams. Then closes the providers and the cache. If
        one of them cannot be closed, the others are closed nevertheless, and the error is raised. Later calls of the
        engine raise UserError. A repeated `close` does nothing.
        """
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as closing:
            if self._cache is not None:
                closing.push_async_callback(self._cache.close)
            for route in reversed(self._routes):
                closing.push_async_callback(route.provider.close)
            for call in list(self._shared):
                await call.cancel()

    def statistics(self) -> dict[str, Any]:
        """Returns the figures of the engine since its creation, by name. Some are counted by a layer of the engine's
        `middleware`, and are 0 without this layer: `retries` and `overloads` by "retry"; `attempts`, `failed_attempts`,
        tokens, `cost`, times and the figures of tools by "telemetry".

        - `calls`: the calls for which a provider had to be asked; `embed` makes one for each 256 texts. `in_flight`: how
          many of them are under way now. `failed`: how many of them have failed.
        - `unasked`: the calls that were answered without a provider: from the cache, by an idempotency key, or together
          with an equal call.
        - `attempts`: the attempts of all calls. `failed_attempts`: how many of them have failed. `retries`: how many of
          them repeated an earlier attempt. `overloads`: how many of them the provider refused with 429 (too many
          requests).
        - `fallbacks`: how often a fallback was asked.
        - `input_tokens`, `output_tokens`, `cached_tokens`, `reasoning_tokens`: the sums of these fields of `Usage`.
        - `cost`: US dollars; answers with an unknown price are not included.
        - `seconds_total`: the time of all attempts. `durations`: a histogram of their times, in the form of
          `Durations.read`.
        - `tool_calls`: how often the functions of tools were called by agents of this engine that do not run in a job; a
          repetition after a failure is counted too. `failed_tool_calls`: how many of these calls have failed.
          `tool_seconds`: the sum of their times in seconds.
        - `waiting`: the requests that wait because of the limits. `limit`: how many requests may be in flight to the
          first provider now.
        """
        figures = self._figures.read()
        first = self._routes[0].admission
        return {
            "calls": figures["calls"],
            "in_flight": self._in_flight,
            **figures,
            "waiting": sum(route.admission.waiting for route in self._routes),
            "limit": first.limit,
        }

    # -- making a ModelCall ---------------------------------------------------------------------------------------------

    def _call(
        self,
        kind: Literal["complete", "stream"],
        prompt: Any,
        output: Any,
        key: str,
        context: RequestContext | NamesCaller | None,
        timeout: Duration | None,
        budget: CallBudget | None,
        fields: dict[str, Any],
    ) -> tuple[ModelCall, Schema | None]:
        spec, schema = request_of(prompt, output, fields)
        return self._new_call(kind, spec, key, context, timeout, budget), schema

    def _new_call(
        self,
        kind: Literal["complete", "stream", "embed"],
        spec: RequestSpec,
        key: str,
        context: RequestContext | NamesCaller | None,
        timeout: Duration | None,
        budget: CallBudget | None,
    ) -> ModelCall:
        return ModelCall(
            kind=kind,
            spec=spec,
            context=context_of(context),
            idempotency_key=key,
            timeout_s=_seconds("timeout", timeout),
            budget=budget,
        )

    # -- shared calls ---------------------------------------------------------------------------------------------------

    def _find_or_start(
        self, call: ModelCall, schema: Schema | None, use_cache: bool | CompletionCache
    ) -> tuple[SharedCall | Completion | None, bool]:
        """Finds or starts the call whose answer a request can share with equal requests. Returns a pair: the answer or
        the call, and True if it was there before.

        - A stored answer or a call in flight was found: it, and True.
        - None was found: the call that this method has started, and False.
        - The request cannot share an answer, because it has no cache, and no idempotency key with a tracker: None and
          False.
        """
        self._check()
        cache = None if use_cache is False else self._cache
        if cache is None and not isinstance(use_cache, bool):
            cache = use_cache
        key, context = call.idempotency_key, call.context
        tracker = self._tracker if key else None
        if cache is None and tracker is None:
            return None, False
        model = call.spec.model or self.provider.model
        content = blake2b(f"{self.provider.name}\0{model}\0".encode() + call.spec.digest(), digest_size=16).digest()
        found = self._calls_by_key.get(content) if tracker is None else tracker.find(key, content, context)
        if found is not None and not (isinstance(found, SharedCall) and found.abandoned):
            self._figures.unasked += 1
            return found, True
        if tracker is not None:
            make = partial(self._start, call, partial(self._make_tracked, tracker, call, schema, content, cache))
            return tracker.start(key, content, context, make), False
        shared = self._calls_by_key[content] = self._start(
            call, partial(self._make_cached, call, schema, content, cache)
        )
        return shared, False

    def _start(self, call: ModelCall, work: Callable[[SharedCall], Awaitable[Completion]]) -> SharedCall:
        async def run(emit: Callable[[Piece], None]) -> Completion:
            call.listener = emit
            try:
                return await work(shared)
            finally:
                self._shared.discard(shared)

        shared = SharedCall(run, f"{call.kind} for {call.context.request_id}")
        self._shared.add(shared)
        return shared

    async def _make_tracked(
        self,
        tracker: IdempotencyTracker,
        call: ModelCall,
        schema: Schema | None,
        content: bytes,
        cache: CompletionCache | None,
        shared: SharedCall,
    ) -> Completion:
        """Makes a call with an idempotency key. Then reports the answer to the tracker; after an error, reports that
        the key can be used again.

        `content`: the digest of the request. `cache`: the cache that is asked first, or None. `shared`: the SharedCall
        that runs this coroutine.
        """
        key, context = call.idempotency_key, call.context
        try:
            answer = await self._answer(call, schema, content, cache)
        except BaseException:
            tracker.fail(key, context, shared)
            raise
        tracker.complete(key, content, context, shared, answer)
        return answer

    async def _make_cached(
        self, call: ModelCall, schema: Schema | None, content: bytes, cache: CompletionCache | None, shared: SharedCall
    ) -> Completion:
        """Returns the answer from the cache. If the cache has none, asks a provider and stores the answer in the cache.
        At the end, removes `shared` from the calls in flight.

        `content`: the digest of the request. `shared`: the SharedCall that runs this coroutine.
        """
        try:
            return await self._answer(call, schema, content, cache)
        finally:
            if self._calls_by_key.get(content) is shared:
                del self._calls_by_key[content]

    async def _answer(
        self, call: ModelCall, schema: Schema | None, content: bytes = b"", cache: CompletionCache | None = None
    ) -> Completion:
        """Returns the answer from the cache, or else asks a provider. An answer is stored in the cache if it comes from
        the first provider, ended normally (was neither cut off nor filtered), and matches the schema. So does one of an
        agent or a job, which decodes it later. `content`: the digest of the request, which is the key in the cache.
        """
        wanted = schema if cache is None else schema or declared_schema(call.spec)
        found = None if cache is None else await cache.get(content)
        if found is not None and _matches(found, wanted):
            self._figures.unasked += 1
            return _without_cost(found)
        answer = await self._ask(call)
        with_output(answer, schema)
        by_first = answer.provider == self.provider.name
        is_whole = answer.finish_reason in _CACHED_REASONS and error_of_end(answer) is None
        if cache is not None and by_first and is_whole and _matches(answer, wanted):
            await cache.put(content, answer)
        return answer

    # -- requests -------------------------------------------------------------------------------------------------------

    async def _ask(self, call: ModelCall) -> Completion:
        answer = await self._through(call, len(self._routes))
        if not isinstance(answer, Completion):
            raise UserError(
                f"a middleware returned {short_repr(answer)}", hint="return the result of `await forward(call)`"
            )
        return answer

    async def _through(self, call: ModelCall, most_routes: int) -> Outcome:
        """Makes the call with at most `most_routes` providers, and returns the answer. If the app has a policy or
        budgets, they decide first whether the call may be made; PolicyDenied or BudgetExceeded is raised if not.
        """
        model = call.spec.model or self.provider.model
        judge = judge_of_this(model)
        if judge is None:
            return await self._routed(call, most_routes)
        return await judge(call, model, self.most_cost, partial(self._routed, call, most_routes))

    async def _routed(self, call: ModelCall, most_routes: int) -> Outcome:
        """Asks the first provider, and then the fallbacks in order, until one of them answers. `most_routes`: the most
        providers, including the first.

        The next provider is asked after a TransientError, unless the reader has already got a piece of the answer or
        the time of the call is over. If all providers have failed, raises the last TransientError. Raises any other
        error at once. A fallback that the policy or a budget does not allow is left out.
        """
        self._check()
        self._figures.calls += 1
        self._in_flight += 1
        call.began = self._clock.monotonic()
        asked, failed, failures, refusals = call.spec, [], [], []
        try:
            for place, (route, chain) in enumerate(zip(self._routes[:most_routes], self._chains, strict=False), 1):
                if place > 1:
                    call.spec = route.fallback_request(self.provider, asked)
                call.provider = route.provider.name
                call.model = call.spec.model or route.provider.model
                if place > 1:
                    try:
                        if call.before_fallback is not None:
                            await call.before_fallback(call, route.price)
                    except (PolicyDenied, BudgetExceeded) as error:
                        refusals.append(error.message)
                        continue
                    self._figures.fallbacks += 1
                call.decided = DecidedRequest(call.spec, call.texts, 0 if call.decided is None else call.decided.sent)
                try:
                    return await chain(call)
                except TransientError as error:
                    if call.pieces or self._clock.monotonic() >= call.until:
                        raise
                    failed.append(error)
                    named = error.message.startswith(f"{call.provider}, {call.model}")
                    failures.append(error.message if named else f"{call.model}: {error.message}")
            if not refusals:
                raise failed[-1]
            raise with_message(failed[-1], "; ".join([failures[-1], *failures[:-1], *refusals])) from failed[-1]
        except Exception:
            self._figures.failed += 1
            raise
        finally:
            failed.clear()  # the errors refer to this frame, which would make a reference cycle
            self._in_flight -= 1

    def _check(self) -> None:
        """Raises UserError if no call can be made. The reasons are: the engine is closed; the engine belongs to another
        event loop; or the function of a durable agent calls the engine directly instead of by `ctx.llm(engine)`.
        """
        if self._closed:
            raise UserError("the engine is closed")
        if isinstance(judge := judge_of_this(self.provider.model), RefusingJudge):
            raise judge.refuse_engine()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise UserError(
                    "the engine is in use in another event loop that is not closed",
                    hint="make an engine for each event loop",
                )
            self._loop = loop
            join_loop(loop, self.statistics, (self.provider.name, self.provider.model), self._figures.read)
            for route in self._routes:
                route.admission.reset()


def _matches(answer: Completion, schema: Schema | None) -> bool:
    try:
        with_output(answer, schema)
    except ModelError:
        return False
    return True


def _without_cost(answer: Completion) -> Completion:
    """Returns a copy of an answer for a caller that got it from a cache or from another call: its tokens are 0, its
    cost is 0 (None if the price was unknown), and `cached` is True.
    """
    cost = None if answer.cost is None else Decimal(0)
    return msgspec.structs.replace(answer, cached=True, usage=answer.usage and Usage(), cost=cost, output=None)


async def _gather(works: Iterable[Any]) -> list[Any]:
    """Runs the coroutines at the same time, and returns their results in order. If one of them raises an error, cancels
    the others and raises this error.
    """
    tasks = [asyncio.ensure_future(each) for each in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _seconds(name: str, value: Duration | None) -> float | None:
    if value is None:
        return None
    seconds = parse_seconds(value, name=name)
    if not seconds:
        raise UserError(f"{name}=0", hint='a time above 0 ("30s"), or None for no limit')
    return seconds
