"""Streams behind `window`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sabot.api.aggregates import Aggregate
from sabot.api.arguments import (
    aggregates_of_keywords,
    one_of,
    order_of,
)
from sabot.api.expr import Expr
from sabot.api.nodes.keyed import Ties
from sabot.api.nodes.node import Node
from sabot.api.nodes.rows import Rename
from sabot.api.nodes.windows import AggregateWindow, WindowTopN
from sabot.api.stream.elsewhere import NamedElsewhere
from sabot.api.windows import CumulativeWindow, HoppingWindow, TumblingWindow, Window
from sabot.connectors.base import Sink
from sabot.errors import UserError

if TYPE_CHECKING:
    from sabot.api.stream.base import Steps, Stream


class WindowedStream(NamedElsewhere):
    """Rows with a key and a window: its methods work on the rows of each key and window separately."""

    _made_by = 'window(tumbling("1m"))'
    _ends_in = "aggregate(…), top_n(…)"

    def __init__(
        self,
        steps: "Steps",
        keys: tuple[str, ...],
        window: Window,
        allowed_lateness_ms: int,
        emit_every_ms: int | None,
        late: str | Sink | None,
    ) -> None:
        self._steps = steps
        self._keys = keys
        self._window = window
        self._allowed_lateness_ms = allowed_lateness_ms
        self._emit_every_ms = emit_every_ms
        self._late = late

    def aggregate(self, *unnamed: Aggregate, **aggregates: Aggregate | Expr) -> "Stream":
        """One row for each key and window: the keys, window_start, window_end (the end is exclusive), then these aggregates, or what is
        computed of them: `share=sum("a") / sum("b")`.
        """
        known, computed = aggregates_of_keywords(unnamed, aggregates)
        node = AggregateWindow(
            self._steps.node,
            self._keys,
            self._window,
            known,
            self._allowed_lateness_ms,
            self._emit_every_ms,
            self._late,
        )
        for name in aggregates:
            if name in (*self._keys, "window_start", "window_end"):
                raise UserError(f"aggregate: {name!r} is the name of another column", hint="choose another name")
        return self._steps.then_aggregate(node, known, computed)

    def top_n(
        self,
        n: int,
        by: str | Sequence[str],
        *,
        descending: bool | Sequence[bool] = True,
        ties: Ties = "row_number",
        rank: str | None = None,
    ) -> "Stream":
        """The first `n` rows of each key and window in the order of `by`, when the window closes: the row, window_start, window_end.

        The arguments are as in KeyedStream.top_n. For tumbling, hopping and cumulative windows. Behind another window, the bounds of the
        rows' own window are row_window_start and row_window_end.
        """
        window = self._window
        if not isinstance(window, TumblingWindow | HoppingWindow | CumulativeWindow) or self._emit_every_ms is not None:
            raise UserError(
                "top_n: only of tumbling, hopping and cumulative windows, at their end", hint='window(tumbling("1m"))'
            )
        number, order = order_of("top_n", n, by, descending)
        ties = one_of("top_n: ties", ties, ("row_number", "rank", "dense_rank"))
        known = self._steps.node.column_names or ()
        own = {name: f"row_{name}" for name in ("window_start", "window_end") if name in known}
        node: Node = self._steps.node
        if own and not any(name in own for name in self._keys):
            node = Rename(node, tuple(own.items()))
            node.check()
            order = tuple((own.get(name, name), down) for name, down in order)
        node = WindowTopN(node, self._keys, window, number, order, ties, rank, self._allowed_lateness_ms, self._late)
        return self._steps.then(node)

    def __repr__(self) -> str:
        return f"WindowedStream({self._window})"
