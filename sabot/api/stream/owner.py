"""The protocol by which streams and SQL statements use their app."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import pyarrow as pa

from sabot.api.agent import AgentSpec
from sabot.api.nodes.node import Node
from sabot.api.nodes.read import Read, StreamEnd
from sabot.api.settings import Settings
from sabot.clock import Clock


class Owner(Protocol):
    """The interface of an app, as its streams and its SQL statements use it."""

    id: str
    settings: Settings
    """The settings of the next start; SET changes them."""
    begun_streams: list[Read]
    """The first steps of all streams and tables that the program has made since the app was created."""

    @property
    def clock(self) -> Clock:
        """The clock of the app."""

    def write(self, end: StreamEnd) -> None:
        """Registers a stream that has a sink, so that it runs when the app runs."""

    def agent_of(self, function: Callable[..., Any] | str) -> AgentSpec:
        """Returns the agent that has this function or this name. Raises UserError if the app has no such agent."""

    def collect(self, node: Node, limit: int | None, seconds: float | None) -> pa.Table:
        """Runs the steps up to this node now, and returns the rows. Stops at the end of the inputs, after `limit`
        rows, or after so many seconds.
        """

    def ended(self, node: Node) -> Node:
        """Returns the same steps, but each topic without an end of its own ends after the records that it has now."""

    def explain(self, node: Node) -> str:
        """Returns the plan of the steps up to this node."""

    def draw(self, node: Node) -> str:
        """Returns the plan of the steps up to this node, as SVG."""

    def schema(self, node: Node) -> pa.Schema:
        """Returns the columns of the rows of this node."""

    def judge(self) -> Any:
        """Returns the object that allows or refuses the model calls of the app's streams (`llm.judges.CallJudge`);
        None if all calls are allowed.
        """

    def captured(self) -> AbstractContextManager[list[StreamEnd]]:
        """Returns a context in which streams that are written do not become a part of the app, but are in the list."""

    def explain_ends(self, ends: Sequence[StreamEnd], form: str, checkpoint: str | None) -> str:
        """Returns the plan of these ends of streams; see `runtime.life.explaining`."""
