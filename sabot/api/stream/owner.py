"""What streams need of the app to which they belong."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Node
from sabot.api.nodes.read import StreamEnd

if TYPE_CHECKING:
    from sabot.llm.judges import CallJudge


class Owner(Protocol):
    """The app, as its streams use it."""

    def write(self, end: StreamEnd) -> None:
        """Adds a stream that runs when the app runs."""

    def agent_of(self, function: Callable[..., Any]) -> AgentSpec:
        """The agent that this function is. Raises UserError where it is none of the app's."""

    def collect(self, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
        """Runs the steps up to this node, now: to their end, to `limit` rows, or for so many seconds."""

    def explain(self, node: Node) -> str:
        """The plan of the steps up to this node."""

    def schema(self, node: Node) -> pa.Schema:
        """The columns of the rows of this node."""

    def judge(self) -> "CallJudge | None":
        """Who judges calls of models that its streams make; None: all may be made."""
