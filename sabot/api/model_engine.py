"""The engine that asks models, as streams and agents see it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from sabot.api.nodes.node import Node
from sabot.connectors.base import Sink
from sabot.errors import UserError, short_repr

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class ModelEngine(Protocol[M_co]):
    """An engine that asks models (`sabot.llm.ExecutionEngine`), for code that does not know models."""

    def models(self) -> M_co:
        """Returns the models for an agent that is not durable."""

    def stream_step(
        self,
        node: Node,
        prompt: Any,
        output: Any,
        instructions: str,
        dead_letter: str | Sink | None,
        options: Mapping[str, Any],
        fields: Mapping[str, Any],
        judge: Callable[[], Any],
    ) -> Node:
        """Returns the node of `Stream.map_llm`. Raises UserError.

        `options`: concurrency, ordered, on_error and cache. `judge`: a function that returns the judge of the calls,
        or None.
        """


def checked_engine(engine: ModelEngine[M], where: str) -> ModelEngine[M]:
    """Returns the engine. Raises UserError for any other object."""
    if not hasattr(engine, "stream_step"):
        raise UserError(f"{where}: {short_repr(engine)} is not an engine", hint="sabot.llm.ExecutionEngine(provider)")
    return engine
