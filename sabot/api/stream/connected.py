"""Two streams that one step will process."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sabot.api.arguments import RowPolicy, Schema, row_policy
from sabot.api.functions import process_spec
from sabot.api.nodes.functions import Connect
from sabot.api.nodes.node import Node
from sabot.api.nodes.rows import (
    Broadcast,
)
from sabot.config import Duration

if TYPE_CHECKING:
    from sabot.api.stream.base import ProcessedStream, Steps


class ConnectedStreams:
    """Two streams that one step will process."""

    def __init__(self, steps: "Steps", keys: tuple[str, ...], right: Node, right_keys: tuple[str, ...]) -> None:
        self._steps = steps
        self._keys = keys
        self._right = right
        self._right_keys = right_keys

    def process(
        self,
        function: Any,
        *,
        right: Callable[..., Any] | None = None,
        schema: Schema,
        batch: bool = False,
        on_timer: Callable[..., Any] | None = None,
        sides: Mapping[str, Schema] | None = None,
        ttl: Duration | None = None,
        on_error: RowPolicy | None = None,
    ) -> "ProcessedStream":
        """As KeyedStream.process; `right(row, ctx)` gets the rows of the other stream. Both functions share state and timers by key.

        Each subtask gets all rows of a broadcast stream; what they say is kept in `ctx.broadcast(name)`, a map that all keys read.
        """
        spec = process_spec(
            function,
            schema=schema,
            batch=batch,
            on_timer=on_timer,
            sides=sides,
            ttl=ttl,
            right=right,
            two_inputs=True,
            broadcast=isinstance(self._right, Broadcast),
        )
        own = None if on_error is None else row_policy(spec.name, on_error)
        node = Connect(self._steps.node, self._right, self._keys, self._right_keys, spec, on_error=own)
        return self._steps.then_process(node)
