"""The engine of models, with what streams and agents ask it for (`api.model_engine`)."""

from typing import Any

from sabot.api.nodes.calls import MapLlm
from sabot.api.nodes.node import Node
from sabot.llm.asked_batches import AgentModel
from sabot.llm.asking import map_llm_node
from sabot.llm.engine_core import Engine


class ExecutionEngine(Engine):
    """An engine that asks a model through one provider, and through others if that one fails. It belongs to one event
    loop at a time, and `close` closes its providers and its cache.

    `provider`: the provider that is asked first. `fallback`: providers that are asked in this order, with their own
    models, when a call has failed with an error that may pass. `limits`: the limits of each provider. `breaker`: the
    rule by which a failing provider is not asked for a while; an engine with a fallback has one by default.

    `retries`: the number of further attempts after a failure; 0 makes one attempt. `backoff`: the wait before the
    first of them; each further wait is twice as long, at most 30 s, drawn at random between half and the whole, and
    begins after the time that the provider asks for. `patience`: the time for which a call that is turned away (429)
    is repeated; this does not count as a failure. `timeout`: the time limit of an attempt, or of a stream the wait
    between two pieces. `total_timeout`: the time limit of a call with all its attempts. `max_answer_bytes`: the
    greatest length of an answer as it arrives, with the JSON around it (about 300 bytes for each piece of a stream),
    or None for no limit. Reading stops at the limit and raises AnswerTooLarge.

    `cache`: the cache of answers. `idempotency_tracker`: makes calls with the same key once. `budget`: the budget of
    all calls together. `prices`: the prices of tokens, by default those of the package genai-prices if it is
    installed (extra `llm`). `middleware`: the layers around each call, the outermost first: names out of MIDDLEWARE,
    and functions. `clock`, `sleep` and `seed` (of the random waits) are for tests. Raises UserError.
    """

    def models(self) -> AgentModel:
        """Returns the models of this engine for an agent that is not durable, as `ctx.llm(engine)` does."""
        return AgentModel(self)

    def stream_step(self, node: Node, prompt: Any, *how: Any) -> MapLlm:
        """Returns the node of `Stream.map_llm`, which calls this method (`api.calls.ModelEngine`). Raises UserError."""
        return map_llm_node(node, prompt, self, *how)
