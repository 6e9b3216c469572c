"""The engine that asks models, as streams and agents see it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from sabot.api.nodes.node import Node
from sabot.connectors.base import Sink
from sabot.errors import UserError, short_repr

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class ModelEngine(Protocol[M_co]):
    """The interface of an engine that sends prompts to models. `sabot.llm.ExecutionEngine` has it; code that uses
    this interface need not import `sabot.llm`.
    """

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
        """Returns the step that `Stream.map_llm` adds after `node`. Raises UserError if an argument is not valid.

        - `prompt`, `output`, `instructions`, `dead_letter`: the arguments of `map_llm`.
        - `options`: its arguments concurrency, ordered, on_error, cache and allow_cut. `fields`: further fields of
          the request to the model.
        - `judge`: a function that returns the object that allows or refuses the model calls (`llm.judges.CallJudge`),
          or None.
        """


def checked_engine(engine: ModelEngine[M], where: str) -> ModelEngine[M]:
    """Returns the engine. Raises UserError for any other object."""
    if not hasattr(engine, "stream_step"):
        raise UserError(f"{where}: {short_repr(engine)} is not an engine", hint="sabot.llm.ExecutionEngine(provider)")
    return engine
