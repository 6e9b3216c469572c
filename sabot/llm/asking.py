"""The questions that a step asks a model: one for each prompt, and the values of the answer's columns."""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import msgspec

from sabot.api.calls import AsyncCall, PromptCall
from sabot.api.nodes.calls import MapLlm
from sabot.api.nodes.node import Node
from sabot.api.prompts import prompt_of
from sabot.base.checks import FLAG, Whole, check
from sabot.connectors.base import Sink
from sabot.connectors.checks import check_sink
from sabot.engine.calls import CallOptions
from sabot.engine.calls.judging import present_judge
from sabot.engine.calls.messages import system, user
from sabot.engine.calls.model_requests import RequestContext, RequestSpec
from sabot.errors import UserError
from sabot.llm.cache import MemoryCache
from sabot.llm.columns import AnswerColumns
from sabot.llm.engine_core import Engine
from sabot.llm.judges import JUDGE, CallJudge
from sabot.llm.requests import request_of


class Asking:
    """A callable that asks the engine: `await asking(prompt)` returns the values of the answer, one for each column, or
    raises ModelError. All subtasks of a step in one event loop share one Asking.

    - `columns`: the columns of the answers.
    - `instructions`: the system message that is sent before each prompt; none if "".
    - `fields`: further fields of each RequestSpec.
    - `where`: the text with which messages of errors begin.

    Raises UserError for names that are no fields of a RequestSpec, and for the field `tools`.
    """

    def __init__(
        self, engine: Engine, columns: AnswerColumns, instructions: str, fields: Mapping[str, Any], where: str
    ) -> None:
        if "tools" in fields:
            raise UserError(f"{where}: tools= would need a conversation for each row", hint="app.llm_agent(…, tools=…)")
        self.columns = columns
        self.judge: Callable[[], CallJudge | None] = present_judge  # map_llm_node sets the judge of the app
        self._engine = engine
        self._before = (system(instructions),) if instructions else ()
        try:
            self._spec, _ = request_of("", columns.output, fields)
        except UserError as error:
            raise UserError(f"{where}: {error.message}", hint=error.hint) from error
        self._cache: MemoryCache | None = None
        # one UUID per request would cost a tenth of a call
        self._requests = map((RequestContext().request_id + "-{}").format, count(1))

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self._spec.model or self._engine.provider.model

    @property
    def concurrency(self) -> int:
        """The most requests that the engine may have in flight to one provider."""
        return self._engine.concurrency

    def share(self, answers: int) -> None:
        """Creates a cache for the answers, which all parallel subtasks of the step share. Equal prompts are then sent
        only once, also while the first request is still under way. If the engine has its own cache, that cache is used
        instead.

        `answers`: the most answers in the new cache.
        """
        if self._cache is None:
            self._cache = MemoryCache(max(answers, 1))

    def request(self, prompt: str) -> RequestSpec:
        """Returns the request for a prompt."""
        return msgspec.structs.replace(self._spec, messages=(*self._before, user(prompt)))

    async def __call__(self, prompt: str) -> tuple[Any, ...]:
        spec = self.request(prompt)
        cache = True if self._cache is None else self._cache
        context = RequestContext(request_id=next(self._requests))
        before = JUDGE.set(self.judge())
        try:
            answer = await self._engine.complete(spec, output=self.columns.output, context=context, cache=cache)
        finally:
            JUDGE.reset(before)
        return self.columns.values(answer)


def map_llm_node(
    node: Node,
    prompt: Any,
    engine: Engine,
    output: Any,
    instructions: str,
    dead_letter: str | Sink | None,
    options: Mapping[str, Any],
    fields: Mapping[str, Any],
    judge: Callable[[], CallJudge | None],
) -> MapLlm:
    """Returns the node of the plan that executes `Stream.map_llm`. Raises UserError for arguments that are not valid.

    - `prompt`, `engine`, `output`, `instructions`, `dead_letter`, `fields`: the parameters of `Stream.map_llm` with
      these names.
    - `options`: its parameters `concurrency`, `ordered`, `on_error`, `cache` and `allow_cut`, by name.
    - `judge`: a function that returns a CallJudge, which applies the app's policy and budgets to each model call. It
      returns None if the app has neither.
    """
    where = "map_llm"
    made = prompt_of(prompt, where)
    columns = AnswerColumns(output, where, allow_cut=options.get("allow_cut", False))
    asking = Asking(engine, columns, instructions, fields, where)
    asking.judge = judge
    most = options["concurrency"]
    calls = CallOptions.of(
        where,
        concurrency=asking.concurrency if most is None else most,
        timeout=None,
        retries=0,
        backoff=0,
        on_error=options["on_error"],
        policies=("fail", "skip"),
    )
    check(f"{where}: cache", options["cache"], Whole(0))
    if dead_letter is not None:
        check_sink(dead_letter, "map_llm: dead_letter")
    call = AsyncCall(asking, asking.columns.schema, calls, check(f"{where}: ordered", options["ordered"], FLAG))
    return MapLlm(node, PromptCall(call, made, options["cache"]), dead_letter)
