"""What a program or a notebook sees of a stream: its rows now, and its plan."""

import pyarrow as pa

from sabot.api.nodes.agents import AgentRead
from sabot.api.nodes.changes import Materialize
from sabot.api.nodes.node import Node, walk
from sabot.api.nodes.read import endless_read
from sabot.api.nodes.rows import Head
from sabot.api.stream.outputs import html, shown
from sabot.api.stream.owner import Owner
from sabot.arrays import python_value
from sabot.checks import is_whole
from sabot.config import Duration, parse_seconds
from sabot.errors import SabotError, UserError

_PRINT_SECONDS = 10.0  # that `print` waits for the rows of a stream without an end


class PlanText(str):
    """A text of several lines, which notebooks show as it is."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return html(self)


class Looks:
    """The part of a Stream that runs it now, or describes it."""

    _owner: Owner
    _node: Node

    def collect(self, *, limit: int | None = None, seconds: Duration | None = None) -> pa.Table:
        """Runs the stream now and returns its rows; for changes, those that exist at the end. Works in notebooks.

        limit: no more than so many rows; reading stops when they are there. seconds: those that come within this time ("500ms"). A stream
        over a topic needs one of the two, or ends in `head(n)`; it begins where the app's `start=` says, and commits nothing. For changes
        without an end it is `seconds`: what exists then. A window that is still open then gives no row.
        """
        return self._rows("collect", limit, seconds)

    def _rows(self, where: str, limit: int | None, seconds: Duration | None) -> pa.Table:
        """What `collect` returns. where: who looks, for errors."""
        node, endless = self._node, endless_read(self._node) is not None
        if agents := [each.agent.agent_id for each in walk([node]) if isinstance(each, AgentRead)]:
            raise UserError(
                f"{where}: agent {agents[0]} gives rows only while the app runs",
                hint="write the stream with .to(…), .to(sabot.console()) to see it, and start the app; explain() shows its plan",
            )
        limit = python_value(limit)
        if limit is not None and not is_whole(limit, 0):
            raise UserError(f"{where}: limit={limit!r} is no number of rows", hint="a whole number, 0 or more")
        if endless and isinstance(node, Head):
            limit = node.n if limit is None else min(limit, node.n)
        wait = None if seconds is None else parse_seconds(seconds, name=f"{where}: seconds", zero=False)
        return self._owner.collect(Materialize(node) if node.changes else node, limit, wait)

    def print(self, n: int = 20, *, seconds: Duration | None = None) -> None:
        """Runs the stream now and prints the first `n` rows. A stream over a topic: the next n rows, or those that come within `seconds`
        (by default 10).
        """
        n = python_value(n)
        if not is_whole(n, 0):
            raise UserError(f"print: {n!r} is no number of rows", hint="a whole number, 0 or more")
        if endless_read(self._node) is None:
            table, within = self._rows("print", None, seconds), ""
        else:
            wait = _PRINT_SECONDS if seconds is None else parse_seconds(seconds, name="print: seconds", zero=False)
            table = self._rows("print", n, wait)
            most = min(n, self._node.n) if isinstance(self._node, Head) else n
            within = f" in {wait:g} s" if table.num_rows < most else ""
        print(f"{shown(table.slice(0, n))}\n{table.num_rows} rows{within}")

    def explain(self) -> str:
        """Returns the plan as text: its stages, what each of them does and reads, and where rows are changes."""
        return PlanText(self._owner.explain(self._node))

    def __repr__(self) -> str:
        return f"Stream({type(self._node).__name__})"

    def _repr_html_(self) -> str:
        """For notebooks: the columns, where they are known, and the plan. Nothing runs."""
        try:
            schema = self._owner.schema(self._node)
            columns = "\n".join(f"{field.name}: {field.type}" for field in schema)
        except (SabotError, OSError) as error:
            columns = str(error)
        try:
            plan = str(self.explain())
        except (SabotError, OSError) as error:
            plan = str(error)
        return f"<b>Stream</b>{html(columns)}{html(plan)}"
