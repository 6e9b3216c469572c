"""The engine of models, with what streams and agents ask it for (`api.model_engine`)."""

from typing import Any

from sabot.api.nodes.calls import MapLlm
from sabot.api.nodes.node import Node
from sabot.base.options import answers_wrong_options
from sabot.llm.asked_batches import AgentModel
from sabot.llm.asking import map_llm_node
from sabot.llm.engine_core import Engine


@answers_wrong_options
class ExecutionEngine(Engine):
    """An engine that asks a model through one provider, and through other providers if the first fails. An engine can
    be used in one event loop at a time. `close` also closes its providers and its cache.

    - `provider`: the provider that is asked first.
    - `fallback`: the providers that are asked next, in this order and with their own models, if a call has failed with
      a TransientError, which means that another attempt may succeed.
    - `limits`: the limits of requests, which apply to each provider separately.
    - `breaker`: how many failures in a row stop the requests to a provider, and for how long. Without fallbacks the
      default is None; with fallbacks it is `CircuitBreaker()`.
    - `retries`: the number of further attempts after a TransientError, for each provider that is asked. A CircuitOpen
      is never repeated. With 0 no call is repeated, whatever the error.
    - `backoff`: the wait before the second attempt. Each later wait is twice as long, at most 30 seconds. A random part
      of up to one half is subtracted from each wait, and the time for which the provider asks (`Retry-After`) is added.
    - `patience`: how long a call is repeated while the provider answers 429 (too many requests). The time begins with
      the first attempt with this provider. Repetitions after a 429 are not counted in `retries`.
    - `timeout`: the time limit of one attempt; for a stream, of the wait for each piece. None for no limit.
    - `total_timeout`: the time limit of a call with all its attempts and waits, or None for no limit.
    - `max_answer_bytes`: the most bytes of an answer as it is received, with its JSON (about 300 bytes for each piece
      of a stream). Reading stops at this limit, and AnswerTooLarge is raised. None for no limit.
    - `cache`: the cache of answers.
    - `idempotency_tracker`: the tracker that sends calls with the same idempotency key only once.
    - `budget`: a budget for all calls of the engine together. It also counts the tool calls of the engine's agents
      outside of jobs.
    - `prices`: the prices of tokens. By default those of the package genai-prices, if it is installed (extra `llm`).
    - `middleware`: the layers around each call, the outermost first: names in the list MIDDLEWARE, or functions.
      Without the layer "timeout", `timeout` and `total_timeout` have no effect. Without "retry", `retries`, `backoff`
      and `patience` have none. Without "budget", `budget` has none.
    - `clock`, `sleep`, `seed`: for tests. `seed` makes the random waits repeatable.

    Raises UserError for arguments that are not valid.
    """

    def models(self) -> AgentModel:
        """Returns an AgentModel, through which an agent that is not durable asks the models of this engine.
        `ctx.llm(engine)` returns the same.
        """
        return AgentModel(self)

    def stream_step(self, node: Node, prompt: Any, *how: Any) -> MapLlm:
        """Returns the node of the plan that executes `Stream.map_llm`. `Stream.map_llm` calls this method of the engine
        that it was given. `how`: the further positional arguments of `map_llm_node`, after the engine. Raises UserError
        for arguments that are not valid.
        """
        return map_llm_node(node, prompt, self, *how)
