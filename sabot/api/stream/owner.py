"""The protocol by which streams use their app."""

from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Node
from sabot.api.nodes.read import StreamEnd


class Owner(Protocol):
    """The app that owns a stream."""

    def write(self, end: StreamEnd) -> None:
        """Adds a stream that runs when the app runs."""

    def agent_of(self, function: Callable[..., Any] | str) -> AgentSpec:
        """Returns the agent that has this function or this name. Raises UserError if the app has no such agent."""

    def collect(self, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
        """Runs the steps up to this node now: to the end of their inputs, to `limit` rows, or for this number of
        seconds.
        """

    def ended(self, node: Node) -> Node:
        """Returns the same steps, in which each topic without an end of its own ends behind its present records."""

    def explain(self, node: Node) -> str:
        """Returns the plan of the steps up to this node."""

    def draw(self, node: Node) -> str:
        """Returns the plan of the steps up to this node, as SVG."""

    def schema(self, node: Node) -> pa.Schema:
        """Returns the columns of the rows of this node."""

    def judge(self) -> Any:
        """Returns the judge of the model calls that streams of the app make (`llm.judges.CallJudge`), or None if all
        calls are allowed.
        """
